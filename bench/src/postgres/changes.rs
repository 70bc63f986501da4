//! What a reader of changes receives through the front, and from the server itself. `PgBouncer` passes no replication connections on.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use godwit::clock;
use replicator::Lsn;

use super::DATABASE;
use super::peers::Peer;
use crate::front::median;
use crate::replication::Server;

/// Rows that one transaction writes.
const TOGETHER: usize = 10;

/// Each round the server itself and the front, in turns; each read has a slot of its own that begins before the first change, and every byte of it
/// must be the same.
pub(super) fn run(server: &Server, peers: &[Peer], changes: usize, rounds: usize) -> Result<()> {
    let readers: Vec<&Peer> = peers.iter().filter(|peer| peer.name != "pgbouncer").collect();
    let slots = (rounds + 1) * readers.len();
    let end = tokio::runtime::Runtime::new()?.block_on(written(server, slots, changes))?;
    let (mut rates, mut cpu) = (vec![Vec::new(); readers.len()], Vec::new());
    let mut first: Option<Vec<u8>> = None;
    for round in 0..=rounds {
        for turn in 0..readers.len() {
            let at = (round + turn) % readers.len();
            let peer = readers[at];
            let (before, began) = (peer.cpu()?, clock::monotonic());
            let changed = read(server, peer, &format!("s{}", round * readers.len() + at), end)
                .with_context(|| format!("read changes by {}", peer.name))?;
            let took = clock::monotonic().duration_since(began).as_secs_f64();
            ensure!(
                *first.get_or_insert_with(|| changed.clone()) == changed,
                "{} sends something else",
                peer.name
            );
            // The first round warms up.
            if round > 0 {
                rates[at].push(changes as f64 / took);
                if peer.is_proxy() {
                    cpu.push(peer.cpu()?.saturating_sub(before).as_secs_f64() * 1e6 / changes as f64);
                }
            }
        }
    }
    println!("| changes a second: direct, Godwit | Godwit ÷ direct | CPU us of the front for a change |");
    println!("|---|---|---|");
    let at = |name: &str| readers.iter().position(|peer| peer.name == name).context("a reader");
    let (direct, godwit) = (at("direct")?, at("godwit")?);
    let mut ratios: Vec<f64> =
        rates[godwit].iter().zip(&rates[direct]).map(|(own, other)| own / other).collect();
    println!(
        "| {:.0}, {:.0} | {:.2} | {:.2} |",
        median(&mut rates[direct].clone()),
        median(&mut rates[godwit].clone()),
        median(&mut ratios),
        median(&mut cpu)
    );
    Ok(())
}

/// Makes the slots, and then the changes; where they end.
async fn written(server: &Server, slots: usize, changes: usize) -> Result<Lsn> {
    let client = server.connect(DATABASE).await?;
    client
        .batch_execute(
            "CREATE TABLE events (id bigint PRIMARY KEY, note text); CREATE PUBLICATION outbox FOR TABLE events",
        )
        .await?;
    for slot in 0..slots {
        let sql = format!("SELECT pg_create_logical_replication_slot('s{slot}', 'pgoutput')");
        client.batch_execute(&sql).await?;
    }
    let rows = format!(
        "DO $$ BEGIN FOR begun IN 1..{changes} BY {TOGETHER} LOOP \
         INSERT INTO events SELECT id, 'what a service writes of one of its orders' FROM generate_series(begun, begun + {}) id; \
         COMMIT; END LOOP; END $$",
        TOGETHER - 1
    );
    client.batch_execute(&rows).await.context("write changes")?;
    let end: String = client.query_one("SELECT pg_current_wal_insert_lsn()::text", &[]).await?.get(0);
    // Something beyond it: else a reader waits for the next keepalive.
    client.batch_execute("INSERT INTO events VALUES (0)").await?;
    end.parse().context("a position")
}

/// What came.
fn read(server: &Server, peer: &Peer, slot: &str, end: Lsn) -> Result<Vec<u8>> {
    let file = tempfile::NamedTempFile::new()?;
    let output = Command::new(server.cluster.bin.join("pg_recvlogical"))
        .args(["-h", &peer.address.ip().to_string(), "-p", &peer.address.port().to_string()])
        .args(["-U", "postgres", "-d", DATABASE, "--start", "--no-loop"])
        .arg("-f")
        .arg(file.path())
        .args(["-S", slot, "--endpos", &end.to_string(), "-oproto_version=1", "-opublication_names=outbox"])
        .stdin(Stdio::null())
        .output()
        .context("pg_recvlogical cannot be run")?;
    ensure!(output.status.success(), "pg_recvlogical failed: {}", String::from_utf8_lossy(&output.stderr));
    Ok(std::fs::read(file.path())?)
}
