//! Two nodes and two databases, killed by `kill -9` at random moments while clients write: nothing that was acknowledged
//! is lost, nothing comes twice, and what a copy had finished is not copied again.
//!
//! `SEED` repeats a run's choices, `KILLS` says how many kills while streaming (`make test-kills`: 20).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use godwit::controller::view::ResourceView;
use godwit::demo::node::Node;
use godwit::demo::zone::{Playground, SUPERUSER, Zone};
use godwit_tests::postgres::wal_position;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use replicator::lsn::Lsn;
use replicator::postgres::Dsn;
use tokio::time::{Instant, sleep};
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use super::leader::{Leader, agent, connect, options};

const PATIENCE: Duration = Duration::from_mins(2);

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

fn luck() -> StdRng {
    let seed = number("SEED", 11);
    println!("SEED={seed}");
    StdRng::seed_from_u64(seed)
}

/// What writers were told.
#[derive(Debug, Default)]
struct Ledger {
    acknowledged: BTreeSet<i64>,
    /// The connection broke before the answer: either may be.
    unknown: BTreeSet<i64>,
}

const WRITTEN: &str = "
CREATE TABLE ledger (id bigint PRIMARY KEY, writer int NOT NULL, body text);
CREATE TABLE entries (id bigint NOT NULL, body text);
ALTER TABLE entries REPLICA IDENTITY FULL;
CREATE TABLE lines (ledger bigint NOT NULL REFERENCES ledger, n int NOT NULL, PRIMARY KEY (ledger, n));
CREATE INDEX entries_id ON entries (id);
CREATE TABLE counters (writer int PRIMARY KEY, n bigint NOT NULL);
INSERT INTO counters SELECT w, 0 FROM generate_series(0, 1) w;
CREATE MATERIALIZED VIEW totals AS SELECT count(*) AS n FROM ledger;
";

/// Tables that are compared, by name.
async fn tables(client: &Client) -> Result<Vec<String>> {
    let sql = "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables \
               WHERE schemaname NOT IN ('pg_catalog', 'information_schema', 'godwit') ORDER BY 1";
    Ok(client.query(sql, &[]).await?.iter().map(|row| row.get(0)).collect())
}

async fn digest(client: &Client, table: &str) -> Result<(i64, String)> {
    let sql = format!("SELECT count(*), coalesce(sum(hashtextextended(t::text, 0)), 0)::text FROM {table} t");
    let row = client.query_one(&sql, &[]).await?;
    Ok((row.get(0), row.get(1)))
}

async fn write(dsn: Dsn, writer: i32, ledger: Arc<Mutex<Ledger>>, stop: CancellationToken) {
    let mut id = i64::from(writer) * 1_000_000_000;
    while !stop.is_cancelled() {
        let Ok(client) = replicator::postgres::connect(&dsn, "ledger").await else {
            sleep(Duration::from_millis(50)).await;
            continue;
        };
        while !stop.is_cancelled() {
            id += 1;
            let sql = format!(
                "BEGIN; INSERT INTO ledger VALUES ({id}, {writer}, repeat('x', {})); INSERT INTO entries VALUES ({id}, 'e'); \
                 INSERT INTO lines SELECT {id}, n FROM generate_series(1, 3) n; \
                 UPDATE counters SET n = n + 1 WHERE writer = {writer}; \
                 UPDATE ledger SET body = body || 'y' WHERE id = {id} - 5; COMMIT",
                id % 50
            );
            let told = client.batch_execute(&sql).await;
            let mut ledger = ledger.lock().unwrap_or_else(PoisonError::into_inner);
            if told.is_err() {
                ledger.unknown.insert(id);
                break;
            }
            ledger.acknowledged.insert(id);
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    SourceNode,
    TargetNode,
    SourceDatabase,
    TargetDatabase,
}

const VICTIMS: [Victim; 4] =
    [Victim::SourceNode, Victim::TargetNode, Victim::SourceDatabase, Victim::TargetDatabase];

struct World<'a> {
    playground: &'a Playground,
    leader: Leader<'a>,
    agent: Node,
}

/// Waits until a database answers, and starts it as often as it takes (after a kill the old one's processes may still hold
/// its memory; the leader's driver may be quicker).
async fn revived(zone: &Zone) -> Result<Client> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Ok(client) = connect(zone).await
            && client.simple_query("SELECT 1").await.is_ok()
        {
            return Ok(client);
        }
        ensure!(Instant::now() < deadline, "{} does not come back", zone.name);
        let cluster = zone.cluster.clone();
        let _ = tokio::task::spawn_blocking(move || cluster.start()).await?;
        sleep(Duration::from_millis(50)).await;
    }
}

/// Returns when it is gone and its ports are free.
fn kill_node(node: &mut Node) -> Result<()> {
    node.signal(rustix::process::Signal::KILL)?;
    while node.ended()?.is_none() {
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

fn kill_database(zone: &Zone) -> Result<()> {
    let text = std::fs::read_to_string(zone.cluster.data.join("postmaster.pid"))?;
    let pid = text.lines().next().context("a pid")?.trim().to_owned();
    let killed = std::process::Command::new("kill").args(["-KILL", &pid]).status()?;
    ensure!(killed.success(), "kill -KILL {pid}");
    Ok(())
}

impl<'a> World<'a> {
    fn start(playground: &'a Playground) -> Result<Self> {
        let agent = agent(playground)?.context("an agent")?;
        Ok(Self { playground, leader: Leader::start(playground, &[])?, agent })
    }

    fn zones(&self) -> (&'a Zone, &'a Zone) {
        let [near, far] = &self.playground.zones;
        (near, far)
    }

    fn kill(&mut self, victim: Victim) -> Result<()> {
        let (near, far) = self.zones();
        match victim {
            Victim::SourceNode => kill_node(&mut self.leader.node),
            Victim::TargetNode => kill_node(&mut self.agent),
            Victim::SourceDatabase => kill_database(near),
            Victim::TargetDatabase => kill_database(far),
        }
    }

    async fn revive(&mut self, victim: Victim) -> Result<()> {
        let (near, far) = self.zones();
        match victim {
            Victim::SourceNode => {
                self.leader.node =
                    Node::start(std::path::Path::new(super::leader::PROGRAM), &self.playground.config, &[])?;
            }
            Victim::TargetNode => self.agent = agent(self.playground)?.context("an agent")?,
            Victim::SourceDatabase => drop(revived(near).await?),
            Victim::TargetDatabase => drop(revived(far).await?),
        }
        Ok(())
    }

    /// The stream is where the primary is now: a node that died a moment ago is not missed yet.
    async fn follows(&mut self) -> Result<()> {
        let now = wal_position(&connect(self.zones().0).await?).await?;
        let follows = |view: &ResourceView| {
            view.phase == "shadowing"
                && view.replication.applied_lsn.parse::<Lsn>().is_ok_and(|applied| applied >= now)
        };
        self.leader.until("the stream follows", follows).await?;
        Ok(())
    }

    /// Both databases hold the same, and exactly what writers were told.
    async fn settle_accounts(&self, ledger: &Mutex<Ledger>) -> Result<()> {
        let (near, far) = self.zones();
        let (from, to) = (connect(near).await?, connect(far).await?);
        let names = tables(&from).await?;
        ensure!(names == tables(&to).await?, "other tables");
        let deadline = Instant::now() + PATIENCE;
        for table in &names {
            loop {
                let (left, right) = (digest(&from, table).await?, digest(&to, table).await?);
                if left == right {
                    break;
                }
                ensure!(
                    Instant::now() < deadline,
                    "{table} differs: {left:?} against {right:?}\n{}\n{}",
                    self.leader.node.tail(30),
                    self.agent.tail(30)
                );
                sleep(Duration::from_millis(100)).await;
            }
        }
        let ids = |rows: Vec<tokio_postgres::Row>| rows.iter().map(|row| row.get(0)).collect::<Vec<i64>>();
        for table in ["ledger", "entries"] {
            let there = ids(to.query(&format!("SELECT id FROM {table}"), &[]).await?);
            let once: BTreeSet<i64> = there.iter().copied().collect();
            let ledger = ledger.lock().unwrap_or_else(PoisonError::into_inner);
            ensure!(there.len() == once.len(), "{table}: {} rows came twice", there.len() - once.len());
            let lost = ledger.acknowledged.difference(&once).count();
            ensure!(lost == 0, "{table}: {lost} acknowledged rows are lost");
            let strange = once
                .iter()
                .filter(|id| !ledger.acknowledged.contains(id) && !ledger.unknown.contains(id))
                .count();
            ensure!(strange == 0, "{table}: {strange} rows that nobody wrote");
        }
        let wrong = "SELECT count(*) FROM counters c WHERE n <> (SELECT count(*) FROM ledger l WHERE l.writer = c.writer)";
        let wrong: i64 = to.query_one(wrong, &[]).await?.get(0);
        ensure!(wrong == 0, "a change was applied twice or not at all");
        let made = "SELECT (SELECT string_agg(indexdef, E'\\n' ORDER BY indexdef) FROM pg_indexes \
                 WHERE schemaname NOT IN ('pg_catalog', 'godwit')) || (SELECT string_agg(conname || contype::text || \
                 convalidated::text, ',' ORDER BY conname) FROM pg_constraint c JOIN pg_namespace n ON n.oid = connamespace \
                 WHERE nspname NOT IN ('pg_catalog', 'information_schema', 'godwit') AND contype <> 'n')";
        let made_at =
            async |client: &Client| -> Result<String> { Ok(client.query_one(made, &[]).await?.get(0)) };
        let (left, right) = (made_at(&from).await?, made_at(&to).await?);
        ensure!(left == right, "other indexes or constraints:\n{left}\nagainst\n{right}");
        let ledger = ledger.lock().unwrap_or_else(PoisonError::into_inner);
        println!(
            "{} acknowledged writes, {} of unknown outcome: 0 lost, 0 doubled",
            ledger.acknowledged.len(),
            ledger.unknown.len()
        );
        Ok(())
    }
}

struct Writers {
    ledger: Arc<Mutex<Ledger>>,
    stop: CancellationToken,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Writers {
    fn start(zone: &Zone) -> Self {
        let (ledger, stop) = (Arc::new(Mutex::new(Ledger::default())), CancellationToken::new());
        let tasks = (0..2)
            .map(|writer| tokio::spawn(write(zone.dsn(SUPERUSER), writer, ledger.clone(), stop.clone())))
            .collect();
        Self { ledger, stop, tasks }
    }

    async fn end(self) -> Result<Arc<Mutex<Ledger>>> {
        self.stop.cancel();
        for task in self.tasks {
            task.await?;
        }
        Ok(self.ledger)
    }
}

/// What a kill found finished, by table: rows, and the target's transaction counter then.
type Finished = BTreeMap<String, (i64, i64)>;

async fn finished(to: &Client) -> Result<Finished> {
    let sql = "SELECT format('%I.%I', schema_name, table_name), sum(rows)::bigint, txid_current() \
               FROM godwit.copied_parts GROUP BY 1 HAVING count(*) = min(parts)";
    Ok(to.query(sql, &[]).await?.iter().map(|row| (row.get(0), (row.get(1), row.get(2)))).collect())
}

async fn parts_done(zone: &Zone) -> Option<i64> {
    let client = connect(zone).await.ok()?;
    Some(client.query_one("SELECT count(*) FROM godwit.copied_parts", &[]).await.ok()?.get(0))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_is_killed_goes_on_and_copies_no_finished_table_again() -> Result<()> {
    let mut rng = luck();
    let mut options = options(true)?;
    options.policy =
        options.policy.replace("{mode: async}", "{mode: async, copy: {sessions: 2, rate: 10MiB}}");
    let playground = Playground::start(&options).await?;
    let [near, far] = &playground.zones;
    let from = connect(near).await?;
    from.batch_execute(WRITTEN).await?;
    for n in 0..10 {
        from.batch_execute(&format!(
            "CREATE TABLE still_{n} (id int PRIMARY KEY, filler text NOT NULL); \
             INSERT INTO still_{n} SELECT i, repeat(md5(i::text), 25) FROM generate_series(1, 8000) i; ANALYZE still_{n}"
        ))
        .await?;
    }
    let writers = Writers::start(near);
    let mut world = World::start(&playground)?;
    let mut kept: Vec<(Victim, Finished)> = Vec::new();
    let mut seen = 0;
    // Each kind once at least, in a random order.
    let mut order = VICTIMS.to_vec();
    for at in (1..order.len()).rev() {
        order.swap(at, rng.random_range(0..=at));
    }
    for victim in order {
        let deadline = Instant::now() + PATIENCE;
        // Somewhat further than the last time.
        loop {
            let done = parts_done(far).await.unwrap_or(0);
            if done > seen + 1 {
                seen = done;
                break;
            }
            if world.leader.view().await.is_ok_and(|view| view.phase == "shadowing") {
                break;
            }
            ensure!(
                Instant::now() < deadline,
                "the copy does not go on after {kept:?}\n{}\n{}",
                world.leader.node.tail(30),
                world.agent.tail(30)
            );
            sleep(Duration::from_millis(20)).await;
        }
        sleep(Duration::from_millis(rng.random_range(0..400))).await;
        world.kill(victim)?;
        let to = revived(far).await?;
        let finished = finished(&to).await?;
        println!("killed {victim:?} with {} tables finished", finished.len());
        kept.push((victim, finished));
        world.revive(victim).await?;
    }
    world.leader.until("the copy is through", |view| view.phase == "shadowing").await?;
    let ledger = writers.end().await?;
    world.settle_accounts(&ledger).await?;
    let to = connect(far).await?;
    let mut proven = 0;
    for (victim, finished) in &kept {
        for (table, (rows, counter)) in finished.iter().filter(|(table, _)| table.contains("still_")) {
            // A row that was copied again would be of a later transaction.
            let sql = format!("SELECT count(*) FROM {table} WHERE xmin::text::bigint < $1");
            let old: i64 = to.query_one(&sql, &[counter]).await?.get(0);
            ensure!(old == *rows, "{table} was copied again after {victim:?}: {old} of {rows} rows are old");
            proven += 1;
        }
    }
    println!("{proven} times a finished table was kept");
    ensure!(proven > 0, "the kills came too early or too late to prove anything");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_random_while_streaming_nothing_is_lost_and_nothing_comes_twice() -> Result<()> {
    let mut rng = luck();
    let kills = number("KILLS", 4);
    let playground = Playground::start(&options(true)?).await?;
    let [near, _] = &playground.zones;
    connect(near).await?.batch_execute(WRITTEN).await?;
    let writers = Writers::start(near);
    let mut world = World::start(&playground)?;
    for kill in 0..kills {
        // It follows again, and then it dies at any moment.
        let written =
            |ledger: &Mutex<Ledger>| ledger.lock().unwrap_or_else(PoisonError::into_inner).acknowledged.len();
        let before = written(&writers.ledger);
        world.follows().await?;
        sleep(Duration::from_millis(rng.random_range(0..1_200))).await;
        let victim = VICTIMS[rng.random_range(0..VICTIMS.len())];
        world.kill(victim)?;
        println!("kill {}: {victim:?} after {} more writes", kill + 1, written(&writers.ledger) - before);
        sleep(Duration::from_millis(rng.random_range(0..300))).await;
        world.revive(victim).await?;
    }
    let ledger = writers.end().await?;
    world.settle_accounts(&ledger).await
}
