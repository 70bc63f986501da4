//! Debezium reads a service's changes through the PostgreSQL front (`tests/drivers/Debezium.java`): `make test-postgres-front`.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, bail, ensure};
use godwit::demo::zone::{DATABASE, Zone};
use godwit_tests::waiting::until;
use serde_json::Value;

use crate::change_streams::{READER, Setup, slots};
use crate::large_objects::moved;
use crate::leader::{Leader, superuser};

/// Where it keeps its place, and what it was told.
struct Debezium {
    jars: PathBuf,
    directory: tempfile::TempDir,
    came: Arc<Mutex<Vec<Value>>>,
}

/// It, running. Killed when dropped.
struct Running {
    child: Child,
    input: Option<ChildStdin>,
    log: PathBuf,
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Debezium {
    fn new(setup: &Setup) -> Result<Self> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/debezium.sh");
        let fetched = Command::new(script).stderr(Stdio::inherit()).output()?;
        ensure!(fetched.status.success(), "Debezium cannot be had");
        let jars = PathBuf::from(String::from_utf8(fetched.stdout)?.trim());
        let directory = tempfile::tempdir()?;
        let front = setup.playground.postgres_front.context("a PostgreSQL front")?;
        let properties = format!(
            "name=events
connector.class=io.debezium.connector.postgresql.PostgresConnector
offset.storage=org.apache.kafka.connect.storage.FileOffsetBackingStore
offset.storage.file.filename={}
offset.flush.interval.ms=100
database.hostname={}
database.port={}
database.user={READER}
database.password=none
database.dbname={DATABASE}
topic.prefix=godwit
plugin.name=pgoutput
heartbeat.interval.ms=500
slot.name=debezium
publication.name=outbox
publication.autocreate.mode=disabled
table.include.list=public.events
converter.schemas.enable=false
",
            directory.path().join("offsets").display(),
            front.ip(),
            front.port()
        );
        std::fs::write(directory.path().join("properties"), properties)?;
        Ok(Self { jars, directory, came: Arc::default() })
    }

    fn start(&self) -> Result<Running> {
        let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("drivers/Debezium.java");
        let log = self.directory.path().join("log");
        let mut child = Command::new("java")
            .arg("-Dlog4j2.level=WARN")
            .arg("-cp")
            .arg(self.jars.join("*"))
            .args([own, self.directory.path().join("properties")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(&log)?)
            .spawn()?;
        let output = child.stdout.take().context("its output")?;
        let came = Arc::clone(&self.came);
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(std::io::Result::ok) {
                if let Ok(event) = serde_json::from_str(&line) {
                    lock(&came).push(event);
                } else {
                    eprintln!("debezium: {line}");
                }
            }
        });
        let input = child.stdin.take();
        Ok(Running { child, input, log })
    }

    /// The ids of the events that came, with how: r is read from the table, c created.
    fn ids(&self, how: &str) -> Vec<i64> {
        let came = lock(&self.came);
        let of = came.iter().filter(|event| event["op"] == how);
        of.filter_map(|event| event["after"]["id"].as_i64()).collect()
    }

    /// What came that is no event, nor a heartbeat of its own.
    fn others(&self) -> Vec<Value> {
        let came = lock(&self.came);
        let other = |event: &&Value| event["after"]["id"].is_null() && event.get("op").is_some();
        came.iter().filter(other).cloned().collect()
    }
}

fn lock(came: &Mutex<Vec<Value>>) -> MutexGuard<'_, Vec<Value>> {
    came.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Running {
    async fn until(&mut self, what: &str, mut fact: impl FnMut() -> bool) -> Result<()> {
        self.until_fact(what, async || Ok(fact())).await
    }

    async fn until_fact(&mut self, what: &str, mut fact: impl AsyncFnMut() -> Result<bool>) -> Result<()> {
        until(what, async || {
            if let Some(status) = self.child.try_wait()? {
                bail!("it ended with {status}:\n{}", std::fs::read_to_string(&self.log)?);
            }
            fact().await
        })
        .await
    }

    /// Lets it end by itself; it must be content.
    fn stop(mut self) -> Result<()> {
        drop(self.input.take());
        let status = self.child.wait()?;
        ensure!(status.success(), "it ended with {status}:\n{}", std::fs::read_to_string(&self.log)?);
        Ok(())
    }
}

/// The ids of the events that a zone has.
async fn wanted(zone: &Zone) -> Result<Vec<i64>> {
    let rows =
        superuser(zone).await?.query("SELECT id FROM events WHERE note <> 'old' ORDER BY id", &[]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "fetches Debezium: make test-postgres-front"]
async fn debezium_goes_with_the_primary() -> Result<()> {
    let setup = Setup::start().await?;
    let [near, far] = &setup.playground.zones;
    let mut leader = Leader::start(&setup.playground, &[])?;
    leader.ready().await?;
    setup.publish().await?;
    let debezium = Debezium::new(&setup)?;
    let mut running = debezium.start()?;
    running.until("what was there before is read", || debezium.ids("r").len() == 1000).await?;

    // Connected all along: each once, in order.
    let writer = setup.write(false)?;
    for to in [far, near, far] {
        moved(&mut leader, to).await?;
        let old = if to.name == near.name { far } else { near };
        until("the old primary keeps nothing for it", async || Ok(slots(old).await?.is_empty())).await?;
    }
    let written = writer.stop().await?;
    let all = wanted(far).await?;
    running.until("every event has come", || debezium.ids("c").len() >= all.len()).await?;
    ensure!(debezium.ids("c") == all, "{} came, {} were written", debezium.ids("c").len(), all.len());
    println!("debezium, connected: {written} events over 3 moves, each once");

    // Away for a move, in either direction.
    running.stop()?;
    for [from, to] in [[far, near], [near, far]] {
        let rows = "INSERT INTO events (note) SELECT 'away' FROM generate_series(1, 5000)";
        superuser(from).await?.batch_execute(rows).await?;
        moved(&mut leader, to).await?;
        superuser(to).await?.batch_execute(rows).await?;
        let all = wanted(to).await?;
        let mut running = debezium.start()?;
        running.until("the rest has come", || debezium.ids("c").len() >= all.len()).await?;
        ensure!(debezium.ids("c") == all, "{} came, {} were written", debezium.ids("c").len(), all.len());
        running
            .until_fact("the old primary keeps nothing for it", async || Ok(slots(from).await?.is_empty()))
            .await?;
        running.stop()?;
    }
    println!("debezium, away for a move: 20000 events over 2 moves, each once");

    // Killed as it reads: what it has not noted as read comes once more, and nothing is missing.
    let mut running = debezium.start()?;
    let writer = setup.write(false)?;
    let so_far = debezium.ids("c").len();
    running.until("it reads", || debezium.ids("c").len() > so_far).await?;
    moved(&mut leader, near).await?;
    drop(running);
    let mut running = debezium.start()?;
    let written = writer.stop().await?;
    let all = wanted(near).await?;
    let last = *all.last().context("an event")?;
    running.until("the last event has come", || debezium.ids("c").contains(&last)).await?;
    let mut came = debezium.ids("c");
    let again = came.len() - all.len();
    came.sort_unstable();
    came.dedup();
    ensure!(came == all, "{} came, {} were written", came.len(), all.len());
    println!("debezium, killed: {written} events over 1 move, {again} of them twice");
    ensure!(debezium.others().is_empty(), "{:?}", debezium.others());
    Ok(())
}
