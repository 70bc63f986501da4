//! What connections cost that do nothing: each made one request, or none, and waits.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use super::peers::Peer;

/// Files that this process has open besides the connections.
const BESIDES: u64 = 256;
const PATIENCE: Duration = Duration::from_secs(10);

/// Lets this process and those that it starts have so many connections open.
pub(super) fn allow(connections: usize) -> Result<()> {
    let wanted = connections as u64 + BESIDES;
    let limit = getrlimit(Resource::Nofile);
    ensure!(
        limit.maximum.is_none_or(|most| most >= wanted),
        "{connections} connections need a limit of {wanted} open files (ulimit -Hn)"
    );
    if limit.current.is_some_and(|now| now < wanted) {
        setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), ..limit })?;
    }
    Ok(())
}

/// A connection that is open.
trait Open: Read + Write {}

impl<T: Read + Write> Open for T {}

/// How clients connect.
pub(super) struct Clients {
    tls: Option<Arc<ClientConfig>>,
    silent: bool,
}

impl Clients {
    /// In the clear, or over TLS by the authority in `folder`; with a request, or `silent`.
    pub(super) fn new(folder: &Path, tls: bool, silent: bool) -> Result<Self> {
        if !tls {
            return Ok(Self { tls: None, silent });
        }
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(folder.join("ca.pem"))?)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let config = builder.with_root_certificates(roots).with_no_client_auth();
        Ok(Self { tls: Some(Arc::new(config)), silent })
    }

    /// A connection on which nothing is to be expected.
    fn open(&self, peer: &Peer) -> Result<Box<dyn Open>> {
        let at = if self.tls.is_some() { peer.secure } else { peer.clear };
        let socket = TcpStream::connect_timeout(&at, PATIENCE)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        // Or a request waits until the last words of its handshake are acknowledged: 40 ms.
        socket.set_nodelay(true)?;
        let mut connection: Box<dyn Open> = match &self.tls {
            None => Box::new(socket),
            Some(config) => {
                let mut stream = StreamOwned::new(
                    ClientConnection::new(Arc::clone(config), ServerName::try_from("bench.example")?)?,
                    socket,
                );
                while stream.conn.is_handshaking() {
                    stream.conn.complete_io(&mut stream.sock)?;
                }
                Box::new(stream)
            }
        };
        if !self.silent {
            ask(&mut *connection)?;
        }
        Ok(connection)
    }
}

/// Prints what each proxy has in memory with so many idle connections, and without.
pub(super) fn run(peers: &[Peer], connections: usize, clients: &Clients) -> Result<()> {
    let over = if clients.tls.is_some() { " over TLS" } else { "" };
    let made = if clients.silent { "no request" } else { "one request" };
    println!("{connections} idle HTTP/1.1 connections{over}, {made} made on each");
    println!("| proxy | MiB before | MiB with them | KiB each |\n|---|---|---|---|");
    let asking = Clients { tls: clients.tls.clone(), silent: false };
    for peer in peers {
        let mut open = Vec::with_capacity(connections);
        // What the first request makes the proxy get is not what a connection costs.
        open.push(asking.open(peer)?);
        let before = peer.memory_mib()?;
        for number in 1..connections {
            open.push(clients.open(peer).with_context(|| format!("{}, connection {number}", peer.name))?);
        }
        if clients.silent {
            // Connections are taken in their order: once this one is answered, all are there.
            open.push(asking.open(peer)?);
        }
        let after = peer.memory_mib()?;
        let each = (after - before) * 1024.0 / connections as f64;
        println!("| {} | {before:.1} | {after:.1} | {each:.1} |", peer.name);
    }
    Ok(())
}

/// One request, answered.
fn ask(connection: &mut dyn Open) -> Result<()> {
    connection.write_all(b"GET / HTTP/1.1\r\nHost: bench.example\r\n\r\n")?;
    connection.flush()?;
    let (mut answer, mut piece) = (Vec::new(), [0; 4096]);
    // The upstream's answer is 1 KiB of x.
    while !answer.ends_with(&[b'x'; 1024]) {
        let length = connection.read(&mut piece)?;
        ensure!(length > 0, "closed: {}", String::from_utf8_lossy(&answer));
        answer.extend_from_slice(&piece[..length]);
    }
    Ok(())
}
