//! A move after which requests fail is taken back, and then nothing moves until a person has looked.

use anyhow::{Context, Result, ensure};
use godwit::controller::freezes::FreezeView;
use godwit::controller::view::MigrationView;
use godwit::demo::load::Load;
use godwit::demo::zone::{DATABASE, POLICY, Playground, RESOURCE, SERVICE_ROLE, SUPERUSER};
use godwit_tests::waiting::until;
use rustix::process::Signal;

use crate::leader::{Leader, load, options};

/// A score so high is never reached: nothing moves but by a person, and back.
const NEVER: &str = "threshold: 90.0";

/// Answers of the service, so many more than now.
async fn answered(load: &Load, more: u64) -> Result<()> {
    let enough = load.snapshot().sent + more;
    until("the load goes on", async || Ok(load.snapshot().sent >= enough)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_after_which_requests_fail_is_taken_back() -> Result<()> {
    is_taken_back(false).await
}

/// Also where the process ends with the record that commits the way back.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_moves_after_that_although_the_node_was_killed() -> Result<()> {
    is_taken_back(true).await
}

async fn is_taken_back(killed: bool) -> Result<()> {
    let mut options = options(false)?;
    options.policy = POLICY
        .replace("threshold: 0.25", NEVER)
        .replace("retire: {after: 5s", "retire: {after: 100ms")
        .replace("step: 500ms", "step: 200ms");
    ensure!(options.policy.contains(NEVER));
    let playground = Playground::start(&options).await?;
    let [near, far] = &playground.zones;
    let stops = playground.directory.join("stops");
    std::fs::create_dir_all(&stops)?;
    let stopping = stops.to_str().context("a path")?;
    let mut leader = Leader::start(&playground, &[("GODWIT_TEST_STOPS", stopping)])?;
    leader.ready().await?;
    // What nobody compares: over there the service may not write.
    let administrator = replicator::postgres::connect(&far.dsn(SUPERUSER), "godwit-test").await?;
    let shut =
        format!("ALTER ROLE {SERVICE_ROLE} IN DATABASE {DATABASE} SET default_transaction_read_only = on");
    let anew =
        format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{SERVICE_ROLE}'");
    administrator.batch_execute(&format!("{shut}; {anew}")).await?;
    leader.ready().await?;
    let load = load(&playground, 60.0, "taken back");
    answered(&load, 200).await?;

    let id = leader.migrate(&far.name).await?;
    if killed {
        // The stop is meant for the way back.
        leader.until("it has moved", |view| view.primary == far.name && view.phase != "committed").await?;
        std::fs::write(stops.join("committed"), "")?;
        let reached = stops.join("committed.reached");
        until("the way back is committed", async || Ok(reached.exists())).await?;
        leader.node.signal(Signal::KILL)?;
        std::fs::remove_file(&reached)?;
        drop(leader);
        leader = Leader::start(&playground, &[])?;
    }
    let view = leader
        .until("it is taken back", |view| {
            view.primary == near.name && view.phase == "shadowing" && view.generation >= 2
        })
        .await?;
    let there = leader.migration(&id).await?;
    ensure!(there.to == far.name && there.verified.is_some_and(|equal| equal), "{there:#?}");
    let migrations: Vec<MigrationView> =
        leader.client.fetch(&format!("/api/v1/resources/{RESOURCE}/migrations")).await?;
    let back = migrations.iter().find(|run| run.from == far.name).context("the way back")?;
    ensure!(
        back.trigger.starts_with("failures: ") && back.trigger.contains("failed since the move"),
        "{back:#?}"
    );
    let freezes: Vec<FreezeView> = leader.client.fetch("/api/v1/freezes").await?;
    let freeze = freezes.first().context("a freeze")?;
    let why = format!("the move to {} was taken back: ", far.name);
    ensure!(freeze.by == "godwit" && freeze.why.starts_with(&why) && freeze.until_ms.is_none(), "{freeze:?}");
    ensure!(leader.ask_to_migrate(&far.name).await.is_err(), "until a person lifts it: {view:#?}");
    let failed = load.snapshot().failed;
    answered(&load, 100).await?;
    let outcome = load.stop().await;
    ensure!(outcome.totals.failed - failed < 5, "it is well again: {:#?}", outcome.totals);
    Ok(())
}
