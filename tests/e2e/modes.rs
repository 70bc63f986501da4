//! Which commits wait for the shadow, and that none waits for ever: real nodes, real databases, links that break.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use godwit::controller::view::ResourceView;
use godwit::demo::zone::{DATABASE, Options, Playground, RESOURCE, SUPERUSER, Zone};
use godwit_tests::waiting::until;
use replicator::postgres::slot::slot_name;
use replicator::{lanes, verify};
use rustix::process::Signal;
use tokio::task::JoinHandle;
use tokio_postgres::Client;

use crate::leader::{Leader, PATIENCE, agent, connect, load, options};

fn playground(replication: &str, agent: bool) -> Result<Options> {
    let mut options = options(agent)?;
    let policy = options.policy.replace("replication: {mode: async}", &format!("replication: {replication}"));
    ensure!(policy != options.policy, "the policy has no replication to replace");
    options.policy = policy;
    Ok(options)
}

/// A client of the database itself, whose commits wait or not as the server has it.
async fn client(zone: &Zone) -> Result<Client> {
    client_of(zone, DATABASE).await
}

async fn client_of(zone: &Zone, database: &str) -> Result<Client> {
    let mut dsn = zone.dsn(SUPERUSER);
    dsn.dbname(database).application_name("writer");
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
        Self::start_in(zone, DATABASE, sql).await
    }

    async fn start_in(zone: &Zone, database: &str, sql: &str) -> Result<Self> {
        let writer = client_of(zone, database).await?;
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

    // What the shadow never gets to see is waited for as well, and acknowledged: another database, DDL, an empty one.
    let elsewhere = Commit::start_in(near, "postgres", "CREATE TABLE elsewhere AS SELECT 1 AS n").await?;
    elsewhere.returns().await?;
    Commit::start(
        near,
        "CREATE UNLOGGED TABLE scratch (n int); INSERT INTO scratch VALUES (1); DROP TABLE scratch",
    )
    .await?
    .returns()
    .await?;
    let mode = leader.view().await?.replication.mode;
    ensure!(mode.changes.len() == 1, "it must not take a fall-back: {mode:#?}");

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

/// A standby that is gone is taken out by hand, and one is put in: neither is undone, and the shadow is waited for beside what is there.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_operator_sets_stays_and_is_joined() -> Result<()> {
    let playground =
        Playground::start(&playground("{mode: sync, fallback: {after: 2s, back: 1s}}", false)?).await?;
    let [near, _] = &playground.zones;
    let mut leader = Leader::start(&playground, &[])?;
    effective(&mut leader, "sync").await?;
    let slot = slot_name(RESOURCE, 1);
    let (alone, beside) = (format!("FIRST 1 (\"{slot}\")"), format!("FIRST 2 (\"{slot}\", \"b\")"));
    until_setting(near, &alone).await?;
    let operator = client(near).await?;
    for (sets, joined) in
        [("SET synchronous_standby_names = 'b'", beside), ("RESET synchronous_standby_names", alone)]
    {
        operator.batch_execute(&format!("ALTER SYSTEM {sets}")).await?;
        operator.batch_execute("SELECT pg_reload_conf()").await?;
        until_setting(near, &joined).await.with_context(|| sets.to_owned())?;
    }
    effective(&mut leader, "sync").await
}

/// A server shows a walsender as synchronous before commits wait for it: that is when its checkpointer has read the setting, which may be
/// busy. Until then nobody is told that they wait.
#[tokio::test(flavor = "multi_thread")]
async fn commits_are_said_to_wait_once_they_do() -> Result<()> {
    let playground = Playground::start(&options(false)?).await?;
    let [near, _] = &playground.zones;
    let mut leader = Leader::start(&playground, &[])?;
    leader.ready().await?;
    let look = client(near).await?;
    let checkpointer = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'";
    let pid: i32 = look.query_one(checkpointer, &[]).await?.get(0);
    let pid = rustix::process::Pid::from_raw(pid).context("a process")?;
    rustix::process::kill_process(pid, Signal::STOP)?;
    rewrite(&playground, "{mode: sync, fallback: {after: 30s, back: 1s}}")?;
    leader.client.send("/api/v1/config/reload", &serde_json::json!({})).await?;
    let counted = async || {
        let counts = "SELECT EXISTS (SELECT FROM pg_stat_replication WHERE sync_state IN ('sync', 'quorum'))";
        Ok(client(near).await?.query_one(counts, &[]).await?.get::<_, bool>(0))
    };
    godwit_tests::waiting::until("the server counts it", counted).await?;
    let why = |view: &ResourceView| {
        let mode = &view.replication.mode;
        mode.effective == "async" && mode.why.contains("commits do not wait yet")
    };
    let told = leader.until("it is told that they do not wait", why).await;
    rustix::process::kill_process(pid, Signal::CONT)?;
    told?;
    effective(&mut leader, "sync").await
}

/// The shadow's server may be another resource's primary, whose commits wait in turn: for an applier next to ours, perhaps.
#[tokio::test(flavor = "multi_thread")]
async fn an_applier_waits_for_no_other_resources_shadow() -> Result<()> {
    let playground = Playground::start(&playground("{mode: sync}", false)?).await?;
    let [near, far] = &playground.zones;
    let mut leader = Leader::start(&playground, &[])?;
    leader.ready().await?;
    effective(&mut leader, "sync").await?;
    let there = client(far).await?;
    let message = "SELECT pg_logical_emit_message(true, 'theirs', '')";
    for (waited_for, others) in [("godwit_other_g1", true), ("of_the_server", false)] {
        there
            .batch_execute(&format!("ALTER SYSTEM SET synchronous_standby_names = '\"{waited_for}\"'"))
            .await?;
        there.batch_execute("SELECT pg_reload_conf()").await?;
        let theirs = Commit::start(far, message).await?;
        theirs.waits().await?;
        let ours = Commit::start(near, WRITE).await?;
        if others {
            ours.returns().await?;
            for _ in 0..20 {
                Commit::start(near, WRITE).await?.returns().await?;
            }
            ensure!(leader.view().await?.replication.mode.effective == "sync", "{:#?}", leader.view().await?);
        } else {
            // What the server has for itself is kept to: its own standby would have the rows as well.
            ours.waits().await?;
        }
        there.batch_execute("ALTER SYSTEM RESET synchronous_standby_names").await?;
        there.batch_execute("SELECT pg_reload_conf()").await?;
        theirs.returns().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_within_the_patience_keeps_commits_waiting() -> Result<()> {
    let playground =
        Playground::start(&playground("{mode: sync, fallback: {after: 40s, back: 1s}}", false)?).await?;
    let [near, far] = &playground.zones;
    let mut leader = Leader::start(&playground, &[])?;
    effective(&mut leader, "sync").await?;
    far.path.cut();
    let waiting = Commit::start(near, WRITE).await?;
    waiting.waits().await?;
    leader.node.signal(Signal::KILL)?;
    drop(leader);
    far.path.restore();
    ensure!(!setting(near).await?.is_empty() && !waiting.task.is_finished(), "nobody was to let it go yet");
    let mut leader = Leader::start(&playground, &[])?;
    waiting.returns().await?;
    effective(&mut leader, "sync").await?;
    let mode = leader.view().await?.replication.mode;
    ensure!(mode.changes.iter().all(|change| change.mode == "sync"), "it fell back in between: {mode:#?}");
    let guards = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'godwit guard%'";
    let look = client(near).await?;
    until("the guards of the dead process are gone, and its own are there", async || {
        let joined = leader.view().await?.replication.mode.since_ms.is_some();
        Ok(joined && count(&look, guards).await? == 2)
    })
    .await
}

/// The machine of the primary and of Godwit restarts: the setting is on its disk, and what guards it was a session.
#[tokio::test(flavor = "multi_thread")]
async fn a_primary_that_restarts_with_godwit_does_not_wait_for_a_shadow_that_is_away() -> Result<()> {
    let sync = "{mode: sync, fallback: {after: 2s, back: 1s}}";
    let playground = Playground::start(&playground(sync, false)?).await?;
    let [near, far] = &playground.zones;
    let mut leader = Leader::start(&playground, &[])?;
    for next in [sync, "{mode: async}"] {
        effective(&mut leader, "sync").await?;
        near.cluster.stop("immediate")?;
        leader.node.signal(Signal::KILL)?;
        drop(leader);
        far.path.cut();
        near.cluster.start()?;
        let waiting = Commit::start(near, WRITE).await?;
        waiting.waits().await?;
        rewrite(&playground, next)?;
        leader = Leader::start(&playground, &[])?;
        waiting.returns().await.with_context(|| format!("{next}\n{}", leader.node.tail(30)))?;
        until_setting(near, "").await?;
        ensure!(far.path.is_cut(), "the shadow was to be away all the time");
        effective(&mut leader, "async").await?;
        Commit::start(near, WRITE).await?.returns().await?;
        far.path.restore();
    }
    leader.ready().await.map(drop)
}

/// As where a standby takes the primary's place that was made while commits waited.
#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_comes_back_is_taken_out_in_async_mode_too() -> Result<()> {
    let playground = Playground::start(&options(false)?).await?;
    let [near, _] = &playground.zones;
    let mut leader = Leader::start(&playground, &[])?;
    leader.ready().await?;
    let name = slot_name(RESOURCE, 1);
    let look = client(near).await?;
    look.batch_execute(&format!("ALTER SYSTEM SET synchronous_standby_names = '\"{name}_critical\"'"))
        .await?;
    look.batch_execute("SELECT pg_reload_conf()").await?;
    let waiting = Commit::start(near, WRITE).await?;
    waiting.waits().await?;
    waiting.returns().await?;
    until_setting(near, "").await
}

/// Godwit's own table is another one for a while, so that it cannot be asked what commits wait for.
#[tokio::test(flavor = "multi_thread")]
async fn what_keeps_commits_from_being_let_go_is_told_until_it_is_over() -> Result<()> {
    let playground = Playground::start(&options(false)?).await?;
    let [near, far] = &playground.zones;
    let mut leader = Leader::start(&playground, &[])?;
    leader.ready().await?;
    leader.node.signal(Signal::KILL)?;
    drop(leader);
    far.path.cut();
    let look = client(near).await?;
    look.batch_execute("CREATE TABLE godwit.synchronous (another text)").await?;
    let mut leader = Leader::start(&playground, &[])?;
    let tells = |view: &ResourceView| view.problems.iter().any(|told| told.contains("earlier generations"));
    leader.until("commits that cannot be let go are a problem", tells).await?;
    look.batch_execute("DROP TABLE godwit.synchronous").await?;
    let over = |view: &ResourceView| view.replication.mode.why.is_empty() && !tells(view);
    leader.until("it is over", over).await?;
    ensure!(far.path.is_cut(), "the shadow was to be away all the time");
    Ok(())
}

/// Moves there and back under load, commits waiting on either side; nothing fails, nothing is lost.
async fn moves_keep_the_mode(replication: &str, mode: &str) -> Result<()> {
    let playground = Playground::start(&playground(replication, true)?).await?;
    let _agent = agent(&playground)?;
    let mut leader = Leader::start(&playground, &[])?;
    effective(&mut leader, mode).await?;
    let load = load(&playground, 100.0, mode);
    for round in 0..2 {
        let view = leader.ready().await?;
        effective(&mut leader, mode).await?;
        let before = load.snapshot().acknowledged;
        leader.until("the load writes", |_| load.snapshot().acknowledged > before + 20).await?;
        let id = leader.migrate(&view.shadow).await?;
        let to = view.shadow.clone();
        leader
            .until(&format!("move {round}"), |view| view.primary == to && view.phase == "shadowing")
            .await?;
        let run = leader.migration(&id).await?;
        ensure!(run.state == "retired" && run.verified == Some(true), "{run:#?}\n{}", leader.node.tail(40));
        effective(&mut leader, mode).await?;
        ensure!(
            setting(leader.zone(&view.primary)).await?.is_empty(),
            "the old primary still names its stream"
        );
        ensure!(!setting(leader.zone(&view.shadow)).await?.is_empty(), "nobody is named on the new primary");
        ensure!(load.snapshot().failed == 0, "{:#?}\n{}", load.failures(), leader.node.tail(40));
    }
    let outcome = load.stop().await;
    ensure!(outcome.totals.failed == 0, "{:#?}", outcome.failures);
    let view = leader.ready().await?;
    let report = outcome.check(&connect(leader.zone(&view.primary)).await?).await?;
    ensure!(report.acknowledged > 0 && report.clean(), "{report}: {report:?}");
    equal(&mut leader).await
}

/// Both sides hold the same once the stream has caught up.
async fn equal(leader: &mut Leader<'_>) -> Result<()> {
    let [near, far] = &leader.playground.zones;
    let (near, far) = (connect(near).await?, connect(far).await?);
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let differences = verify::differences(&verify::digest(&near).await?, &verify::digest(&far).await?);
        if differences.is_empty() {
            return Ok(());
        }
        ensure!(
            tokio::time::Instant::now() < deadline,
            "both sides stay different: {differences:?}\n{}",
            leader.node.tail(30)
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn moves_keep_commits_waiting_in_sync_mode() -> Result<()> {
    moves_keep_the_mode("{mode: sync, fallback: {after: 5s, back: 1s}}", "sync").await
}

#[tokio::test(flavor = "multi_thread")]
async fn moves_keep_commits_waiting_in_hybrid_mode() -> Result<()> {
    moves_keep_the_mode(
        "{mode: hybrid, critical: [public.payments], fallback: {after: 5s, back: 1s}}",
        "hybrid",
    )
    .await
}

const WRITE_PAYMENT: &str = "INSERT INTO payments (order_id, amount) VALUES (1, 1)";

/// Another `replication:` in the policy file, for the next start.
fn rewrite(playground: &Playground, replication: &str) -> Result<()> {
    let file = playground.directory.join("policies/playground.yaml");
    let text = std::fs::read_to_string(&file)?;
    let changed = text
        .lines()
        .map(|line| {
            if line.starts_with("replication:") { format!("replication: {replication}") } else { line.into() }
        })
        .collect::<Vec<_>>();
    Ok(std::fs::write(&file, changed.join("\n") + "\n")?)
}

async fn count(client: &Client, sql: &str) -> Result<i64> {
    Ok(client.query_one(sql, &[]).await?.get(0))
}

#[tokio::test(flavor = "multi_thread")]
async fn only_commits_of_critical_tables_wait_and_only_for_their_lane() -> Result<()> {
    let hybrid = "{mode: hybrid, critical: [public.payments], fallback: {after: 20s, back: 1s}}";
    let playground = Playground::start(&playground(hybrid, false)?).await?;
    let [near, far] = &playground.zones;
    let mut leader = Leader::start(&playground, &[])?;
    effective(&mut leader, "hybrid").await?;
    ensure!(leader.view().await?.replication.lanes.len() == 2, "two lanes");
    let shadow = connect(far).await?;

    // The main lane stands still: nobody waits for it, critical commits are on the shadow when they are acknowledged.
    let holder = hold(far, "customers").await?;
    Commit::start(near, WRITE).await?.returns().await?;
    let payments = count(&shadow, "SELECT count(*) FROM payments").await?;
    Commit::start(near, WRITE_PAYMENT).await?.returns().await?;
    ensure!(
        count(&shadow, "SELECT count(*) FROM payments").await? == payments + 1,
        "acknowledged, not there"
    );
    // A transaction of both lanes is torn on the shadow until both have passed it.
    let torn = "BEGIN; INSERT INTO customers (name) VALUES ('torn'); INSERT INTO payments (order_id, amount) VALUES (2, 2); COMMIT";
    Commit::start(near, torn).await?.returns().await?;
    ensure!(
        count(&shadow, "SELECT count(*) FROM payments").await? == payments + 2,
        "acknowledged, not there"
    );
    holder.batch_execute("ROLLBACK").await?;
    equal(&mut leader).await?;

    // The critical lane stands still: its commits wait, others do not.
    let holder = hold(far, "payments").await?;
    let waiting = Commit::start(near, WRITE_PAYMENT).await?;
    waiting.waits().await?;
    Commit::start(near, WRITE).await?.returns().await?;
    ensure!(!waiting.task.is_finished(), "it was to wait");
    holder.batch_execute("ROLLBACK").await?;
    waiting.returns().await?;

    // As one who loads data does it, and forgets to switch them on.
    client(near).await?.batch_execute("ALTER TABLE payments DISABLE TRIGGER USER").await?;
    let primary = connect(near).await?;
    let on = "SELECT count(*) FROM pg_trigger WHERE tgname = 'godwit_critical' AND tgrelid = 'payments'::regclass AND tgenabled = 'O'";
    until("the trigger is on again", async || Ok(count(&primary, on).await? == 1)).await?;

    // While the shadow has not applied what a table's old lane carries, the table stays there.
    drop(leader);
    let holder = hold(far, "orders").await?;
    let behind = "BEGIN; UPDATE orders SET amount = amount + 1 WHERE id = 1; UPDATE customers SET balance = 7 WHERE id = 1; COMMIT";
    Commit::start(near, behind).await?.returns().await?;
    rewrite(
        &playground,
        "{mode: hybrid, critical: [public.payments, public.customers], fallback: {after: 20s, back: 1s}}",
    )?;
    leader = Leader::start(&playground, &[])?;
    leader
        .until("the handover is put off", |view| view.replication.mode.why.contains("was not caught up"))
        .await?;
    let members = lanes::members(&primary, RESOURCE).await?.context("a publication")?;
    ensure!(members.len() == 1, "customers changed lanes before its old lane was through: {members:?}");
    Commit::start(near, "UPDATE customers SET balance = 8 WHERE id = 1").await?.returns().await?;
    holder.batch_execute("ROLLBACK").await?;
    effective(&mut leader, "hybrid").await?;
    ensure!(
        lanes::members(&primary, RESOURCE).await?.is_some_and(|members| members.len() == 2),
        "handed over"
    );
    equal(&mut leader).await?;

    // Another list at runtime, under load: tables change lanes, nothing is lost or repeated.
    let load = load(&playground, 100.0, "lanes");
    for (list, waits, passes) in [
        ("{mode: hybrid, critical: [public.customers, public.orders]", WRITE, WRITE_PAYMENT),
        ("{mode: hybrid, critical: [public.payments, public.refunds]", WRITE_PAYMENT, WRITE),
    ] {
        drop(leader);
        rewrite(&playground, &format!("{list}, fallback: {{after: 20s, back: 1s}}}}"))?;
        leader = Leader::start(&playground, &[])?;
        effective(&mut leader, "hybrid").await?;
        let table = if waits == WRITE { "customers" } else { "payments" };
        let holder = hold(far, table).await?;
        let waiting = Commit::start(near, waits).await?;
        waiting.waits().await?;
        Commit::start(near, passes).await?.returns().await?;
        holder.batch_execute("ROLLBACK").await?;
        waiting.returns().await?;
    }
    leader
        .until("the missing table is named", |view| {
            view.problems.iter().any(|problem| problem.contains("public.refunds"))
        })
        .await?;
    // The service had no front while the node restarted: what counts is what was acknowledged.
    let outcome = load.stop().await;
    let report = outcome.check(&connect(near).await?).await?;
    let lost = [&report.missing, &report.altered, &report.duplicated];
    ensure!(report.acknowledged > 0 && lost.iter().all(|list| list.is_empty()), "{report}: {report:?}");
    equal(&mut leader).await?;

    // One lane again: the slot, the trigger and the database's default are gone.
    drop(leader);
    rewrite(&playground, "{mode: async}")?;
    leader = Leader::start(&playground, &[])?;
    leader.until("one lane", |view| view.replication.lanes.is_empty() && view.phase == "shadowing").await?;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let left = "SELECT (SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE '%critical') \
                + (SELECT count(*) FROM pg_trigger WHERE tgname = 'godwit_critical') \
                + (SELECT count(*) FROM pg_publication WHERE pubname LIKE '%critical') \
                + (SELECT count(*) FROM pg_db_role_setting WHERE setrole = 0)";
    while count(&primary, left).await? > 0 {
        ensure!(tokio::time::Instant::now() < deadline, "something is left:\n{}", leader.node.tail(30));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Commit::start(near, WRITE).await?.returns().await?;
    Commit::start(near, WRITE_PAYMENT).await?.returns().await?;
    equal(&mut leader).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_link_lets_critical_commits_go_and_they_wait_again_after_it() -> Result<()> {
    let hybrid = "{mode: hybrid, critical: [public.payments], fallback: {after: 2s, back: 1s}}";
    let playground = Playground::start(&playground(hybrid, false)?).await?;
    let [near, far] = &playground.zones;
    let mut leader = Leader::start(&playground, &[])?;
    effective(&mut leader, "hybrid").await?;
    for _ in 0..2 {
        far.path.cut();
        let waiting = Commit::start(near, WRITE_PAYMENT).await?;
        waiting.waits().await?;
        Commit::start(near, WRITE).await?.returns().await?;
        waiting.returns().await?;
        effective(&mut leader, "async").await?;
        Commit::start(near, WRITE_PAYMENT).await?.returns().await?;
        let view = leader.view().await?;
        ensure!(view.problems.iter().any(|problem| problem.contains("do not wait")), "{:?}", view.problems);
        far.path.restore();
        effective(&mut leader, "hybrid").await?;
        // What was let go has come along; what is critical waits for its lane again.
        equal(&mut leader).await?;
        let holder = hold(far, "payments").await?;
        let waiting = Commit::start(near, WRITE_PAYMENT).await?;
        waiting.waits().await?;
        holder.batch_execute("ROLLBACK").await?;
        waiting.returns().await?;
    }
    let modes: Vec<String> =
        leader.view().await?.replication.mode.changes.iter().map(|change| change.mode.clone()).collect();
    ensure!(modes == ["hybrid", "async", "hybrid", "async", "hybrid"], "{modes:?}");
    Ok(())
}
