//! Which commits wait for the shadow, and that none waits for ever: real nodes, real databases, links that break.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use godwit::demo::zone::{DATABASE, GODWIT_ROLE, Options, Playground, Zone};
use rustix::process::Signal;
use tokio::task::JoinHandle;
use tokio_postgres::Client;

use crate::leader::{Leader, PATIENCE, connect, options};

fn playground(replication: &str, agent: bool) -> Result<Options> {
    let mut options = options(agent)?;
    let policy = options.policy.replace("replication: {mode: async}", &format!("replication: {replication}"));
    ensure!(policy != options.policy, "the policy has no replication to replace");
    options.policy = policy;
    Ok(options)
}

/// A client of the database itself, whose commits wait or not as the server has it.
async fn client(zone: &Zone) -> Result<Client> {
    let mut dsn = zone.dsn(GODWIT_ROLE);
    dsn.dbname(DATABASE).application_name("writer");
    let (client, connection) = dsn.connect(tokio_postgres::NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

/// A commit under way.
struct Commit {
    pid: i32,
    task: JoinHandle<Result<(), tokio_postgres::Error>>,
    watch: Client,
}

impl Commit {
    async fn start(zone: &Zone, sql: &str) -> Result<Self> {
        let writer = client(zone).await?;
        let pid = writer.query_one("SELECT pg_backend_pid()", &[]).await?.get(0);
        let sql = sql.to_owned();
        let task = tokio::spawn(async move { writer.batch_execute(&sql).await });
        Ok(Self { pid, task, watch: client(zone).await? })
    }

    /// Returns when it waits for a standby; fails when it returns instead.
    async fn waits(&self) -> Result<()> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        let look = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $1 AND wait_event = 'SyncRep')";
        while !self.watch.query_one(look, &[&self.pid]).await?.get::<_, bool>(0) {
            ensure!(!self.task.is_finished(), "it does not wait");
            ensure!(tokio::time::Instant::now() < deadline, "it neither waits nor returns");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok(())
    }

    async fn returns(self) -> Result<()> {
        let done = tokio::time::timeout(PATIENCE, self.task).await.context("the commit does not return")?;
        Ok(done??)
    }
}

async fn setting(zone: &Zone) -> Result<String> {
    // A new session: what the server gives to everybody from now on.
    Ok(client(zone).await?.query_one("SHOW synchronous_standby_names", &[]).await?.get(0))
}

async fn until_setting(zone: &Zone, wanted: &str) -> Result<()> {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let now = setting(zone).await?;
        if now == wanted {
            return Ok(());
        }
        if tokio::time::Instant::now() > deadline {
            bail!("synchronous_standby_names stays {now:?}");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Keeps the applier from the table until it is dropped or rolled back.
async fn hold(zone: &Zone, table: &str) -> Result<Client> {
    let client = connect(zone).await?;
    client.batch_execute(&format!("BEGIN; LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")).await?;
    Ok(client)
}

async fn effective(leader: &mut Leader<'_>, mode: &str) -> Result<()> {
    leader.until(&format!("mode {mode}"), |view| view.replication.mode.effective == mode).await.map(drop)
}

const WRITE: &str = "INSERT INTO customers (name) VALUES ('sync')";

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_waits_for_the_shadow_but_never_for_ever() -> Result<()> {
    let playground =
        Playground::start(&playground("{mode: sync, fallback: {after: 2s, back: 1s}}", false)?).await?;
    let [near, far] = &playground.zones;
    let mut leader = Leader::start(&playground, &[])?;
    effective(&mut leader, "sync").await?;

    // Acknowledged means: on the shadow.
    let (writer, shadow) = (client(near).await?, connect(far).await?);
    for n in 0..20 {
        let name = format!("acknowledged {n}");
        writer.execute("INSERT INTO customers (name) VALUES ($1)", &[&name]).await?;
        let found = shadow.query_one("SELECT count(*) FROM customers WHERE name = $1", &[&name]).await?;
        ensure!(found.get::<_, i64>(0) == 1, "commit {n} was acknowledged and is not on the shadow");
    }

    // A stalled shadow: the commit waits, a local one does not; a moment later everything goes on.
    let holder = hold(far, "customers").await?;
    let waiting = Commit::start(near, WRITE).await?;
    waiting.waits().await?;
    let local = Commit::start(near, &format!("SET synchronous_commit = local; {WRITE}")).await?;
    local.returns().await?;
    ensure!(!waiting.task.is_finished(), "it was to wait");
    holder.batch_execute("ROLLBACK").await?;
    waiting.returns().await?;
    ensure!(
        leader.view().await?.replication.mode.effective == "sync",
        "a short stall is no reason to fall back"
    );

    // The link breaks: what waits is let go, what comes later does not wait, and it comes back by itself.
    far.path.cut();
    let waiting = Commit::start(near, WRITE).await?;
    waiting.waits().await?;
    waiting.returns().await?;
    effective(&mut leader, "async").await?;
    ensure!(setting(near).await?.is_empty(), "the name is still in the setting");
    Commit::start(near, WRITE).await?.returns().await?;
    ensure!(far.path.is_cut(), "the link was to be cut all the time");
    let view = leader.view().await?;
    ensure!(!view.replication.mode.why.is_empty(), "no reason is given: {view:#?}");
    ensure!(view.problems.iter().any(|problem| problem.contains("do not wait")), "{:?}", view.problems);
    far.path.restore();
    effective(&mut leader, "sync").await?;
    let changes: Vec<String> =
        leader.view().await?.replication.mode.changes.iter().map(|change| change.mode.clone()).collect();
    ensure!(changes == ["sync", "async", "sync"], "{changes:?}");

    // The shadow stalls for longer than the policy allows.
    let holder = hold(far, "customers").await?;
    let waiting = Commit::start(near, WRITE).await?;
    waiting.waits().await?;
    waiting.returns().await?;
    effective(&mut leader, "async").await?;
    holder.batch_execute("ROLLBACK").await?;
    effective(&mut leader, "sync").await?;

    // Godwit dies while a commit waits: the guard in the database lets it go.
    far.path.cut();
    let waiting = Commit::start(near, WRITE).await?;
    waiting.waits().await?;
    leader.node.signal(Signal::KILL)?;
    waiting.returns().await?;
    until_setting(near, "").await?;
    Commit::start(near, WRITE).await?.returns().await?;
    drop(leader);

    // The next process takes over what was left, and leaves nothing when it ends.
    far.path.restore();
    let mut leader = Leader::start(&playground, &[])?;
    effective(&mut leader, "sync").await?;
    let waiting = {
        let _holder = hold(far, "customers").await?;
        let waiting = Commit::start(near, WRITE).await?;
        waiting.waits().await?;
        waiting
    };
    waiting.returns().await?;
    drop(leader);
    ensure!(setting(near).await?.is_empty(), "an ended process leaves the setting as it found it");
    let left: i64 = client(near)
        .await?
        .query_one(
            "SELECT (SELECT count(*) FROM godwit.synchronous) + (SELECT count(*) FROM pg_stat_activity \
                    WHERE application_name LIKE 'godwit guard%')",
            &[],
        )
        .await?
        .get(0);
    ensure!(left == 0, "{left} rows or guards are left");
    Ok(())
}
