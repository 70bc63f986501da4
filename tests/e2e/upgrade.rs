//! The program replaced under its clients: no request fails, nothing that was acknowledged is lost, and the node goes on leading.

use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use godwit::cli::client::Client;
use godwit::demo::load::Load;
use godwit::demo::node::Node;
use godwit::demo::zone::{DATABASE, Options, Playground, SERVICE_ROLE};

use replicator::postgres::Socket;
use rustix::process::Signal;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_postgres::error::SqlState;
use tokio_rustls::TlsConnector;

use crate::leader::{Leader, PATIENCE, PROGRAM, load, options};

mod secure;

/// The program under a name of its own, so that it can be replaced.
struct Installed {
    path: PathBuf,
    _directory: tempfile::TempDir,
}

impl Installed {
    fn new() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("godwit");
        std::fs::copy(PROGRAM, &path)?;
        Ok(Self { path, _directory: directory })
    }

    /// As a package manager does it: the new file takes the old one's name.
    fn replace(&self, with: &Path) -> Result<()> {
        let new = self.path.with_extension("new");
        std::fs::copy(with, &new)?;
        Ok(std::fs::rename(&new, &self.path)?)
    }

    /// As whoever keeps several versions side by side does it: the name is a link to another one.
    fn link(&self, version: &str) -> Result<PathBuf> {
        let (file, new) = (self.path.with_extension(version), self.path.with_extension("new"));
        std::fs::copy(PROGRAM, &file)?;
        symlink(&file, &new)?;
        std::fs::rename(&new, &self.path)?;
        Ok(file)
    }

    fn leader<'a>(&self, playground: &'a Playground) -> Result<Leader<'a>> {
        let node = Node::start(&self.path, &playground.config, &[])?;
        Ok(Leader { node, client: Client::new(&playground.admin.to_string()), playground })
    }
}

/// Which file a process executes.
fn executes(pid: u32) -> Result<PathBuf> {
    Ok(std::fs::read_link(format!("/proc/{pid}/exe"))?)
}

/// Waits until the log says `what` so many times.
async fn logged(leader: &mut Leader<'_>, what: &str, times: usize) -> Result<()> {
    let seen = async {
        loop {
            leader.node.check()?;
            if leader.node.tail(10_000).matches(what).count() >= times {
                return anyhow::Ok(());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let seen = tokio::time::timeout(PATIENCE, seen).await;
    seen.with_context(|| format!("waited in vain: {what:?} in the log; {}", leader.node.tail(30)))?
}

/// Has the program replaced for the so many-th time, and waits until the new one is ready.
async fn replaced(leader: &mut Leader<'_>, times: usize) -> Result<()> {
    leader.node.signal(Signal::QUIT)?;
    logged(leader, "the sockets of the program before are taken over", times).await?;
    leader.ready().await.map(drop)
}

/// An answer, read to its end.
struct Answer {
    status: u16,
    /// The server says that it closes the connection.
    last: bool,
}

async fn answer(connection: &mut (impl AsyncRead + Unpin)) -> Result<Answer> {
    let mut read = Vec::new();
    let head = loop {
        if let Some(at) = read.windows(4).position(|end| end == b"\r\n\r\n") {
            break at + 4;
        }
        ensure!(connection.read_buf(&mut read).await? > 0, "the connection ended before an answer");
    };
    let text = String::from_utf8_lossy(&read[..head]).to_ascii_lowercase();
    let header = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let length: usize = header("content-length:").context("an answer without a length")?.parse()?;
    let status = text.split(' ').nth(1).context("no status")?.parse()?;
    let last = header("connection:") == Some("close");
    let mut rest = vec![0; (head + length).saturating_sub(read.len())];
    connection.read_exact(&mut rest).await?;
    Ok(Answer { status, last })
}

/// Where and how a client connects.
#[derive(Clone)]
struct Door {
    at: SocketAddr,
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

impl Door {
    fn clear(at: SocketAddr) -> Self {
        Self { at, tls: None }
    }

    async fn open(&self) -> Result<Box<dyn Socket>> {
        let socket = TcpStream::connect(self.at).await.context("connect")?;
        let Some((connector, name)) = &self.tls else { return Ok(Box::new(socket)) };
        Ok(Box::new(connector.connect(name.clone(), socket).await.context("the handshake of TLS")?))
    }
}

/// Asks on one connection for as long as the server keeps it, then on the next one. Every request must be answered: one that is sent
/// into a connection that closes is not asked again. How often it connected.
async fn keeps_its_connection(door: Door, ended: Arc<AtomicBool>) -> Result<usize> {
    let mut connections = 0;
    while !ended.load(Ordering::Acquire) {
        let mut connection = door.open().await?;
        connections += 1;
        loop {
            connection.write_all(b"GET /healthz HTTP/1.1\r\nHost: orders.example\r\n\r\n").await?;
            let answer =
                answer(&mut connection).await.with_context(|| format!("connection {connections}"))?;
            ensure!(answer.status == 200, "status {}", answer.status);
            if answer.last || ended.load(Ordering::Acquire) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    Ok(connections)
}

/// Asks on a new connection each time. How often it did.
async fn never_keeps_one(door: Door, ended: Arc<AtomicBool>) -> Result<usize> {
    let mut connections = 0;
    while !ended.load(Ordering::Acquire) {
        let mut connection = door.open().await?;
        connections += 1;
        let request = b"GET /healthz HTTP/1.1\r\nHost: orders.example\r\nConnection: close\r\n\r\n";
        connection.write_all(request).await?;
        let answer = answer(&mut connection).await.with_context(|| format!("connection {connections}"))?;
        ensure!(answer.status == 200 && answer.last, "status {}", answer.status);
    }
    Ok(connections)
}

const ORDER: &str = r#"{"key": "upgrade-1", "customer": 1, "amount": "1.00"}"#;

/// A request whose body does not come yet: it is in flight until [`finish`].
async fn in_flight(leader: &mut Leader<'_>) -> Result<TcpStream> {
    let mut connection = TcpStream::connect(leader.playground.front).await?;
    let (host, kind) = ("Host: orders.example", "Content-Type: application/json");
    let head =
        format!("POST /orders HTTP/1.1\r\n{host}\r\n{kind}\r\nContent-Length: {}\r\n\r\n", ORDER.len());
    connection.write_all(head.as_bytes()).await?;
    leader.until("it is in flight", |view| view.gate.as_ref().is_some_and(|gate| gate.in_flight > 0)).await?;
    Ok(connection)
}

/// Waits until so many requests of the load were answered.
async fn served(leader: &Leader<'_>, load: &Load, requests: u64) -> Result<()> {
    let served = async {
        while load.snapshot().succeeded < requests {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, served).await.with_context(|| leader.node.tail(30))
}

/// Answered with the order's 201.
async fn finish(mut connection: TcpStream) -> Result<Answer> {
    connection.write_all(ORDER.as_bytes()).await?;
    let answer = answer(&mut connection).await?;
    ensure!(answer.status == 201, "status {}", answer.status);
    Ok(answer)
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_fails_while_the_program_is_replaced() -> Result<()> {
    let playground = Playground::start(&options(false)?).await?;
    let installed = Installed::new()?;
    let mut leader = installed.leader(&playground)?;
    leader.ready().await?;
    let pid = leader.node.pid();
    let load = load(&playground, 100.0, "upgrade");
    let ended = Arc::new(AtomicBool::new(false));
    let door = Door::clear(playground.front);
    let keeping: Vec<_> =
        (0..4).map(|_| tokio::spawn(keeps_its_connection(door.clone(), ended.clone()))).collect();
    let coming: Vec<_> = (0..2).map(|_| tokio::spawn(never_keeps_one(door.clone(), ended.clone()))).collect();
    for turn in 1..=3 {
        let before = load.snapshot().succeeded;
        let file = if turn == 1 {
            installed.replace(Path::new(PROGRAM))?;
            ensure!(executes(pid)?.ends_with("godwit (deleted)"), "{:?}", executes(pid)?);
            installed.path.clone()
        } else {
            installed.link(&format!("{turn}"))?
        };
        replaced(&mut leader, turn).await?;
        ensure!(executes(pid)? == file, "the new file is executed: {:?}", executes(pid)?);
        served(&leader, &load, before + 100).await?;
    }
    ended.store(true, Ordering::Release);
    for client in keeping {
        let connections = client.await?.with_context(|| leader.node.tail(40))?;
        ensure!(connections > 3, "told to connect anew by each upgrade: {connections} connections");
    }
    let mut others = 0;
    for client in coming {
        others += client.await?.with_context(|| leader.node.tail(40))?;
    }
    println!("{others} requests on connections of their own");
    let outcome = load.stop().await;
    println!("{} requests over three upgrades, longest {:?}", outcome.totals.sent, outcome.totals.longest);
    ensure!(outcome.failures.is_empty(), "{:#?}\n{}", outcome.failures, leader.node.tail(40));
    // What it leads it still leads: a move works as before.
    let run = leader.migrate("eu-central").await?;
    leader.until("it moved", |view| view.primary == "eu-central").await?;
    ensure!(leader.migration(&run).await?.committed_ms.is_some(), "it is committed");
    let (_, audit) = leader.audited().await?;
    ensure!(audit.checkpoints >= 3, "each program signs what it has written before the next one: {audit:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_would_not_start_replaces_nothing() -> Result<()> {
    let playground = Playground::start(&options(false)?).await?;
    let installed = Installed::new()?;
    let mut leader = installed.leader(&playground)?;
    leader.ready().await?;
    let load = load(&playground, 50.0, "refused");
    let (broken, text) =
        (installed.path.with_extension("broken"), "#!/bin/sh\necho not for this machine >&2\nexit 1\n");
    std::fs::write(&broken, text)?;
    std::fs::set_permissions(&broken, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    installed.replace(&broken)?;
    leader.node.signal(Signal::QUIT)?;
    logged(&mut leader, "does not accept the configuration: not for this machine", 1).await?;
    // Nor does one whose configuration was broken meanwhile.
    installed.replace(Path::new(PROGRAM))?;
    let text = std::fs::read_to_string(&playground.config)?;
    std::fs::write(&playground.config, format!("{text}\nnothing_known: 1\n"))?;
    leader.node.signal(Signal::QUIT)?;
    logged(&mut leader, "nothing_known", 1).await?;
    let before = load.snapshot().succeeded;
    served(&leader, &load, before + 50).await?;
    let outcome = load.stop().await;
    ensure!(outcome.failures.is_empty(), "{:#?}", outcome.failures);
    Ok(())
}

/// What a check of the files alone does not see: the next program would have ended with an error, and the service with it.
#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_could_not_lead_replaces_nothing() -> Result<()> {
    let playground = Playground::start(&options(false)?).await?;
    let mut leader = Leader::start(&playground, &[])?;
    leader.ready().await?;
    let [near, far] = &playground.zones;
    let load = load(&playground, 50.0, "refused");
    let as_it_is = std::fs::read_to_string(&playground.config)?;
    let zone = "\n  third: {country: FR}\ndrivers:\n";
    let elsewhere = |zone_of: &str| {
        let text = as_it_is.replace("\ndrivers:\n", zone);
        text.replace(&format!("\n      {zone_of}:\n"), "\n      third:\n")
    };
    let left = elsewhere(&near.name).replace(&format!("primary: {}", near.name), "primary: third");
    std::fs::write(&playground.config, left)?;
    leader.node.signal(Signal::QUIT)?;
    logged(&mut leader, "the program is not replaced now", 1).await?;
    logged(&mut leader, &format!("served in {}", near.name), 1).await?;

    std::fs::write(&playground.config, &as_it_is)?;
    let scaling = format!("/api/v1/resources/{}/scaling", godwit::demo::zone::RESOURCE);
    let (_, tag) = leader.client.fetch_tagged::<serde_json::Value>(&scaling).await?;
    let less = serde_json::json!({ "capacity": { &near.name: 2, &far.name: 1 } });
    leader.client.replace::<serde_json::Value>(&scaling, &less, &tag).await?;
    std::fs::write(&playground.config, elsewhere(&far.name))?;
    leader.node.signal(Signal::QUIT)?;
    logged(&mut leader, "the program is not replaced now", 2).await?;
    logged(&mut leader, "is not a zone with a placement of this resource", 1).await?;

    let before = load.snapshot().succeeded;
    served(&leader, &load, before + 50).await?;
    ensure!(!leader.node.tail(10_000).contains("are taken over"), "{}", leader.node.tail(30));
    let outcome = load.stop().await;
    ensure!(outcome.failures.is_empty(), "{:#?}", outcome.failures);

    // Without that, another zone of the shadow is no reason.
    std::fs::write(&playground.config, &as_it_is)?;
    let (_, tag) = leader.client.fetch_tagged::<serde_json::Value>(&scaling).await?;
    leader.client.call_with(http::Method::DELETE, &scaling, None, &[("if-match", tag.as_str())]).await?;
    std::fs::write(&playground.config, elsewhere(&far.name))?;
    replaced(&mut leader, 1).await?;
    leader.until("its shadow is there", |view| view.shadow == "third" && view.phase == "shadowing").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_waits_for_requests_and_is_given_up_for_the_end() -> Result<()> {
    let playground = Playground::start(&options(false)?).await?;
    let installed = Installed::new()?;
    let mut leader = installed.leader(&playground)?;
    leader.ready().await?;
    let request = in_flight(&mut leader).await?;
    leader.node.signal(Signal::QUIT)?;
    logged(&mut leader, "the program is replaced", 1).await?;
    let answer = finish(request).await?;
    ensure!(answer.last, "it was not told that the connection closes");
    logged(&mut leader, "the sockets of the program before are taken over", 1).await?;
    leader.ready().await?;
    // This one keeps the upgrade from going on, and the node is told to end.
    let request = in_flight(&mut leader).await?;
    leader.node.signal(Signal::QUIT)?;
    logged(&mut leader, "the program is replaced", 2).await?;
    leader.node.signal(Signal::TERM)?;
    let ended = async {
        loop {
            if let Some(status) = leader.node.ended()? {
                return anyhow::Ok(status);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let status = tokio::time::timeout(PATIENCE, ended).await.context("it did not end")??;
    ensure!(status.success(), "{status}; {}", leader.node.tail(30));
    let text = leader.node.tail(10_000);
    ensure!(text.contains("godwit ends"), "{}", leader.node.tail(30));
    ensure!(text.matches("are taken over").count() == 1, "{}", leader.node.tail(30));
    drop(request);
    Ok(())
}

/// A client of the PostgreSQL front, and how its connection ends.
async fn session(
    front: SocketAddr,
) -> Result<(tokio_postgres::Client, impl Future<Output = Result<Option<SqlState>>>)> {
    let dsn = format!("host={} port={} user={SERVICE_ROLE} dbname={DATABASE}", front.ip(), front.port());
    let (client, connection) = tokio_postgres::connect(&dsn, tokio_postgres::NoTls).await?;
    let connection = tokio::spawn(connection);
    let ended = async move {
        let ended = tokio::time::timeout(PATIENCE, connection).await.context("the connection stays")??;
        Ok(ended.err().and_then(|error| error.code().cloned()))
    };
    Ok((client, ended))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_waits_for_open_transactions() -> Result<()> {
    let playground = Playground::start(&Options { postgres_front: true, ..options(false)? }).await?;
    let front = playground.postgres_front.context("a front")?;
    let installed = Installed::new()?;
    let mut leader = installed.leader(&playground)?;
    leader.ready().await?;
    let ((_idle, idle_ended), (writer, writer_ended)) = (session(front).await?, session(front).await?);
    writer.batch_execute("BEGIN; SELECT 1").await?;
    leader.node.signal(Signal::QUIT)?;
    ensure!(idle_ended.await? == Some(SqlState::ADMIN_SHUTDOWN), "it had nothing open");
    writer.batch_execute("SELECT 2").await?;
    writer.batch_execute("COMMIT").await?;
    ensure!(writer_ended.await? == Some(SqlState::ADMIN_SHUTDOWN), "it has nothing open any more");
    logged(&mut leader, "the sockets of the program before are taken over", 1).await?;
    ensure!(!leader.node.tail(10_000).contains("cut off"), "{}", leader.node.tail(30));
    leader.ready().await?;
    session(front).await?.0.batch_execute("SELECT 3").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_is_refused_while_a_move_holds_requests() -> Result<()> {
    let playground = Playground::start(&options(false)?).await?;
    let installed = Installed::new()?;
    let mut leader = installed.leader(&playground)?;
    leader.ready().await?;
    // The move waits for it.
    let request = in_flight(&mut leader).await?;
    let run = leader.migrate("eu-central").await?;
    leader.until("requests are held", |view| view.phase == "held").await?;
    leader.node.signal(Signal::QUIT)?;
    logged(&mut leader, "the program is not replaced now", 1).await?;
    logged(&mut leader, "orders is being moved (held): when it soaks", 1).await?;
    finish(request).await?;
    ensure!(!leader.node.tail(10_000).contains("are taken over"), "{}", leader.node.tail(30));
    // Once that is over, it is not refused any more.
    leader.ready().await?;
    let moved = leader.migration(&run).await?.committed_ms.is_some();
    leader.node.signal(Signal::QUIT)?;
    logged(&mut leader, "the sockets of the program before are taken over", 1).await?;
    leader.until("the same one serves", |view| (view.primary == "eu-central") == moved).await?;
    Ok(())
}
