//! What connections cost that do nothing: each made one request, and waits.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

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

/// Prints what each proxy has in memory with so many idle connections, and without.
pub(super) fn run(peers: &[Peer], connections: usize) -> Result<()> {
    println!("{connections} idle HTTP/1.1 connections, one request made on each");
    println!("| proxy | MiB before | MiB with them | KiB each |\n|---|---|---|---|");
    for peer in peers {
        let mut open = Vec::with_capacity(connections);
        // What the first request makes the proxy get is not what a connection costs.
        open.push(ask(peer)?);
        let before = peer.memory_mib()?;
        for number in 1..connections {
            open.push(ask(peer).with_context(|| format!("{}, connection {number}", peer.name))?);
        }
        let after = peer.memory_mib()?;
        let each = (after - before) * 1024.0 / connections as f64;
        println!("| {} | {before:.1} | {after:.1} | {each:.1} |", peer.name);
    }
    Ok(())
}

/// A connection with one request answered.
fn ask(peer: &Peer) -> Result<TcpStream> {
    let mut connection = TcpStream::connect_timeout(&peer.clear, PATIENCE)?;
    connection.set_read_timeout(Some(PATIENCE))?;
    connection.write_all(b"GET / HTTP/1.1\r\nHost: bench.example\r\n\r\n")?;
    let (mut answer, mut piece) = (Vec::new(), [0; 4096]);
    // The upstream's answer is 1 KiB of x.
    while !answer.ends_with(&[b'x'; 1024]) {
        let length = connection.read(&mut piece)?;
        ensure!(length > 0, "closed: {}", String::from_utf8_lossy(&answer));
        answer.extend_from_slice(&piece[..length]);
    }
    Ok(connection)
}
