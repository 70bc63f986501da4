//! A node whose state directory is gone: the databases know who serves, and what they do not know nobody guesses.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use godwit::controller::view::ResourceView;
use godwit::demo::zone::{LEADER, Playground, RESOURCE};
use godwit_tests::postgres::{copy_files, wal_position};
use godwit_tests::waiting::until;
use replicator::postgres::slot;
use replicator::verify;
use rustix::process::Signal;
use serde_json::json;

use crate::faults::fault::{freeze, signal_all};
use crate::leader::{Leader, PATIENCE, connect, load, options};
use crate::takeover::take_over;

fn state(playground: &Playground) -> PathBuf {
    playground.directory.join("state").join(LEADER)
}

/// A leader that follows, and stands still once a commit is in its journal: then there is a file of that name.
async fn stops_at_a_commit(playground: &Playground) -> Result<(Leader<'_>, PathBuf)> {
    let (mut leader, stops) = Leader::that_stops(playground)?;
    std::fs::write(stops.join("committed"), "")?;
    leader.ready().await?;
    Ok((leader, stops.join("committed.reached")))
}

/// A node that was killed when a move to the other zone was committed, before anything of that was done.
async fn killed_at_a_commit(playground: &Playground) -> Result<Leader<'_>> {
    let (leader, reached) = stops_at_a_commit(playground).await?;
    leader.migrate(&playground.zones[1].name).await?;
    until("it is committed", async || Ok(reached.exists())).await?;
    leader.node.signal(Signal::KILL)?;
    Ok(leader)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_journal_is_made_up_for_by_the_databases() -> Result<()> {
    let playground = Playground::start(&options(false)?).await?;
    let [near, far] = &playground.zones;
    let mut leader = Leader::start(&playground, &[])?;
    leader.ready().await?;
    let before = load(&playground, 60.0, "before");
    leader.migrate(&far.name).await?;
    leader.until("it moves", |view| view.primary == far.name && view.phase == "shadowing").await?;
    let before = before.stop().await;
    ensure!(before.totals.failed == 0, "{:#?}", before.failures);
    drop(leader);
    std::fs::remove_dir_all(state(&playground)).context("the state directory")?;

    // The configuration says that the near zone is the first primary; its database is fenced, and older.
    let mut leader = Leader::start(&playground, &[])?;
    let view = leader.ready().await?;
    ensure!(view.primary == far.name && view.generation == 2, "{view:#?}");
    let after = load(&playground, 60.0, "after");
    leader.until("the load runs", |_| after.snapshot().acknowledged > 20).await?;
    leader.migrate(&near.name).await?;
    leader.until("it moves back", |view| view.primary == near.name && view.phase == "shadowing").await?;
    let after = after.stop().await;
    ensure!(after.totals.failed == 0, "{:#?}", after.failures);
    let primary = connect(near).await?;
    for outcome in [&before, &after] {
        let report = outcome.check(&primary).await?;
        ensure!(report.acknowledged > 0 && report.clean(), "{report}: {report:?}");
    }
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let shadow = connect(far).await?;
    while let differences =
        verify::differences(&verify::digest(&primary).await?, &verify::digest(&shadow).await?)
        && !differences.is_empty()
    {
        ensure!(tokio::time::Instant::now() < deadline, "both sides stay different: {differences:?}");
    }
    drop(leader);

    // Lost in the middle of a move: both are fenced, and only the journal knew whether it was committed.
    std::fs::remove_dir_all(state(&playground)).context("the state directory")?;
    let fence =
        format!("UPDATE godwit.epoch SET fenced = true, generation = 4 WHERE resource = '{RESOURCE}'");
    for client in [&primary, &shadow] {
        client.batch_execute(&fence).await?;
    }
    let mut leader = Leader::start(&playground, &[])?;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while leader.node.ended()?.is_none() {
        ensure!(
            tokio::time::Instant::now() < deadline,
            "it leads what it does not know:\n{}",
            leader.node.tail(20)
        );
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let said = leader.node.tail(20);
    ensure!(said.contains("do not say who serves") && said.contains("generation 4"), "{said}");
    drop(leader);

    // A person who knows says so (docs/operations.md).
    let opened = format!(
        r#"SELECT godwit.open_fence('{{"resource": "{RESOURCE}", "generation": 4, "lock_timeout_ms": 5000}}')"#
    );
    primary.batch_execute(&opened).await?;
    let mut leader = Leader::start(&playground, &[])?;
    let anew =
        |view: &ResourceView| view.problems.iter().any(|problem| problem.contains("must be made anew"));
    let view = leader.until("it says that the shadow must be made anew", anew).await?;
    ensure!(view.primary == near.name && view.generation == 4, "{view:#?}");
    let serving = load(&playground, 60.0, "again");
    leader.until("it serves", |_| serving.snapshot().acknowledged > 20).await?;
    let serving = serving.stop().await;
    ensure!(serving.totals.failed == 0, "{:#?}", serving.failures);
    Ok(())
}

/// Its name was changed in the files, and so nobody knows it: the database of the configured primary is the other name's, which has moved away.
#[tokio::test(flavor = "multi_thread")]
async fn a_renamed_resource_does_not_go_back_to_where_it_began() -> Result<()> {
    let playground = Playground::start(&options(false)?).await?;
    let near = &playground.zones[0];
    let client = connect(near).await?;
    replicator::fence::install(&client, RESOURCE, 1).await?;
    replicator::fence::guard(&client, RESOURCE, 2).await?;
    let as_it_is = std::fs::read_to_string(&playground.config)?;
    let renamed = as_it_is.replace(&format!("\n  {RESOURCE}:\n"), "\n  shop:\n");
    ensure!(renamed != as_it_is, "{as_it_is}");
    std::fs::write(&playground.config, renamed)?;

    let mut leader = Leader::start(&playground, &[])?;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while leader.node.ended()?.is_none() {
        ensure!(tokio::time::Instant::now() < deadline, "it leads:\n{}", leader.node.tail(20));
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let (said, zone) = (leader.node.tail(20), &near.name);
    let named = format!("its database in {zone} is fenced by resource {RESOURCE}, generation 2");
    ensure!(said.contains(&named), "{said}");
    drop(leader);

    // That one is gone for good (docs/operations.md).
    client
        .batch_execute(&format!(
            r#"SELECT godwit.open_fence('{{"resource": "{RESOURCE}", "generation": 2, "lock_timeout_ms": 5000}}');
               DELETE FROM godwit.epoch WHERE resource = '{RESOURCE}'"#
        ))
        .await?;
    let leader = Leader::start(&playground, &[])?;
    let serving = load(&playground, 60.0, "renamed");
    until("it serves", async || Ok(serving.snapshot().acknowledged > 20)).await?;
    drop((leader, serving.stop().await));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_journal_from_a_backup_is_made_up_for_by_the_databases() -> Result<()> {
    let playground = Playground::start(&options(false)?).await?;
    let [_, far] = &playground.zones;
    let mut leader = Leader::start(&playground, &[])?;
    leader.ready().await?;
    drop(leader);
    let (kept, backup) = (state(&playground), playground.directory.join("backup"));
    copy_files(&kept, &backup)?;

    let mut leader = Leader::start(&playground, &[])?;
    leader.ready().await?;
    let load = load(&playground, 60.0, "backup");
    leader.migrate(&far.name).await?;
    leader.until("it moves", |view| view.primary == far.name && view.phase == "shadowing").await?;
    drop(leader);
    std::fs::remove_dir_all(&kept).context("the state directory")?;
    std::fs::rename(&backup, &kept).context("the backup")?;

    let mut leader = Leader::start(&playground, &[])?;
    let view = leader.ready().await?;
    ensure!(view.primary == far.name && view.generation == 2, "{view:#?}");
    let served = load.snapshot().acknowledged;
    leader.until("it serves", |_| load.snapshot().acknowledged > served + 20).await?;
    let report = load.stop().await.check(&connect(far).await?).await?;
    ensure!(report.acknowledged > 0 && report.clean(), "{report}: {report:?}");
    Ok(())
}

/// In the middle of a move, committed or not: it cannot be known, and need not be.
#[tokio::test(flavor = "multi_thread")]
async fn a_move_whose_journal_is_lost_is_undone() -> Result<()> {
    let playground = Playground::start(&options(false)?).await?;
    let [near, far] = &playground.zones;
    let (mut leader, reached) = stops_at_a_commit(&playground).await?;
    let load = load(&playground, 60.0, "undone");
    leader.until("the load runs", |_| load.snapshot().acknowledged > 20).await?;
    leader.migrate(&far.name).await?;
    until("it is committed", async || Ok(reached.exists())).await?;
    leader.node.signal(Signal::KILL)?;
    drop(leader);
    std::fs::remove_dir_all(state(&playground)).context("the state directory")?;
    let mut leader = Leader::start(&playground, &[])?;
    let view = leader.ready().await?;
    ensure!(view.primary == near.name && view.generation == 1, "{view:#?}");
    let served = load.snapshot().acknowledged;
    leader.until("it serves", |_| load.snapshot().acknowledged > served + 20).await?;
    leader.migrate(&far.name).await?;
    leader.until("it moves", |view| view.primary == far.name && view.phase == "shadowing").await?;
    let report = load.stop().await.check(&connect(far).await?).await?;
    ensure!(report.acknowledged > 0 && report.clean(), "{report}: {report:?}");
    Ok(())
}

/// The node was lost together with the primary's zone: another one, which knows nothing, has the shadow take over.
#[tokio::test(flavor = "multi_thread")]
async fn a_shadow_is_known_by_what_it_is_of() -> Result<()> {
    let playground = Playground::start(&options(false)?).await?;
    let [near, far] = &playground.zones;
    let mut leader = Leader::start(&playground, &[])?;
    leader.ready().await?;
    let load = load(&playground, 60.0, "lost");
    leader.until("the load runs", |_| load.snapshot().acknowledged > 20).await?;
    leader.until("it has caught up", |view| view.replication.lag_bytes == Some(0)).await?;
    leader.node.signal(Signal::KILL)?;
    let frozen = freeze(near)?;
    drop(leader);
    std::fs::remove_dir_all(state(&playground)).context("the state directory")?;
    let mut leader = Leader::start(&playground, &[])?;
    leader.until("it knows", |view| view.primary == near.name && view.phase == "shadowing").await?;
    let asked = serde_json::json!({"accept_loss": true});
    leader.client.send(&format!("/api/v1/resources/{RESOURCE}/takeover"), &asked).await?;
    leader.until("it takes over", |view| view.primary == far.name && view.phase == "shadowing").await?;
    let served = load.snapshot().acknowledged;
    leader.until("it serves", |_| load.snapshot().acknowledged > served + 20).await?;
    drop(load.stop().await);
    signal_all(&frozen, Signal::CONT)?;
    until("the old one is fenced", async || {
        let epoch = replicator::fence::state(&connect(near).await?, RESOURCE).await?;
        Ok(epoch.is_some_and(|epoch| epoch.fenced && epoch.generation == 2))
    })
    .await?;
    ensure!(leader.node.ended()?.is_none(), "{}", leader.node.tail(20));

    // That it was lost is known to whoever leads after that, too.
    leader.node.signal(Signal::KILL)?;
    drop(leader);
    std::fs::remove_dir_all(state(&playground)).context("the state directory")?;
    let mut leader = Leader::start(&playground, &[])?;
    let told = |view: &ResourceView| {
        let lost = format!("{} was lost and {} took over", near.name, far.name);
        view.primary == far.name && view.problems.iter().any(|problem| problem.contains(&lost))
    };
    leader.until("it knows what was lost", told).await?;
    Ok(())
}

/// A single node goes by its journal, and its primary is an empty database: the other one, which was lost and is back, may have all that is left.
#[tokio::test(flavor = "multi_thread")]
async fn a_primary_that_was_made_anew_has_nobody_fenced_as_its_shadow() -> Result<()> {
    let playground = Playground::start(&options(false)?).await?;
    let [near, far] = &playground.zones;
    let mut leader = Leader::start(&playground, &[])?;
    leader.ready().await?;
    leader.migrate(&far.name).await?;
    leader.until("it moves", |view| view.primary == far.name && view.phase == "shadowing").await?;
    leader.ready().await?;
    drop(leader);
    let (lost, empty) = (connect(near).await?, connect(far).await?);
    lost.batch_execute(
        "UPDATE godwit.epoch SET generation = 1, marker_lsn = NULL, run = NULL; DELETE FROM godwit.progress",
    )
    .await?;
    replicator::fence::open(&lost, RESOURCE, 1, None).await?;
    let stream = slot::slot_name(RESOURCE, 2);
    until("its slot is gone", async || Ok(slot::drop_slot(&empty, &stream).await.is_ok())).await?;
    empty.batch_execute("DROP SCHEMA godwit CASCADE").await?;
    let mut leader = Leader::start(&playground, &[])?;
    let never = |view: &ResourceView| {
        view.problems.iter().any(|problem| problem.contains("was never the primary of generation 2"))
    };
    leader.until("it says so", never).await?;
    let epoch = replicator::fence::state(&lost, RESOURCE).await?;
    ensure!(epoch.as_ref().is_some_and(|epoch| !epoch.fenced && epoch.generation == 1), "{epoch:?}");
    let epoch = replicator::fence::state(&empty, RESOURCE).await?;
    ensure!(epoch.is_none(), "{epoch:?}");
    Ok(())
}

/// The primary that did not answer was in the middle of a move: nobody would have opened it again.
#[tokio::test(flavor = "multi_thread")]
async fn a_primary_that_answers_late_says_what_was_under_way() -> Result<()> {
    let playground = Playground::start(&options(false)?).await?;
    let [near, _] = &playground.zones;
    let leader = killed_at_a_commit(&playground).await?;
    let frozen = freeze(near)?;
    drop(leader);
    std::fs::remove_dir_all(state(&playground)).context("the state directory")?;
    let mut leader = Leader::start(&playground, &[])?;
    leader.until("it waits", |view| view.primary == near.name && view.phase == "shadowing").await?;
    signal_all(&frozen, Signal::CONT)?;
    until("it is undone", async || {
        let epoch = replicator::fence::state(&connect(near).await?, RESOURCE).await?;
        Ok(epoch.is_some_and(|epoch| !epoch.fenced && epoch.generation == 1))
    })
    .await?;
    let load = load(&playground, 60.0, "late");
    leader.until("it serves", |_| load.snapshot().acknowledged > 20).await?;
    leader.ready().await?;
    let report = load.stop().await.check(&connect(near).await?).await?;
    ensure!(report.acknowledged > 0 && report.clean(), "{report}: {report:?}");
    Ok(())
}

/// A way back whose shadow was set back: what its slot has told already is not told again, so that nothing but a new copy makes it whole.
#[tokio::test(flavor = "multi_thread")]
async fn a_shadow_that_went_back_in_time_is_not_taken_for_whole() -> Result<()> {
    let playground = Playground::start(&options(false)?).await?;
    let [near, far] = &playground.zones;
    let mut leader = Leader::start(&playground, &[])?;
    leader.ready().await?;
    leader.migrate(&far.name).await?;
    leader.until("it moves", |view| view.primary == far.name && view.phase == "shadowing").await?;
    leader.ready().await?;
    drop(leader);
    let stream = slot::slot_name(RESOURCE, 2);
    near.cluster.stop("fast")?;
    let older = playground.directory.join("older");
    copy_files(&near.cluster.data, &older)?;
    near.cluster.start()?;
    let mut leader = Leader::start(&playground, &[])?;
    leader.ready().await?;
    let load = load(&playground, 60.0, "forgotten");
    leader.until("the load runs", |_| load.snapshot().acknowledged > 50).await?;
    ensure!(load.stop().await.totals.failed == 0);
    leader.until("it has caught up", |view| view.replication.lag_bytes == Some(0)).await?;
    // The slot is told of it at the next checkpoint.
    let (primary, written) = (connect(far).await?, wal_position(&connect(far).await?).await?);
    until("the slot has told all", async || {
        let slot = slot::slot_info(&primary, &stream).await?;
        Ok(slot.and_then(|slot| slot.confirmed_flush).is_some_and(|at| at >= written))
    })
    .await?;
    drop(leader);
    near.cluster.stop("immediate")?;
    std::fs::remove_dir_all(&near.cluster.data)?;
    std::fs::rename(&older, &near.cluster.data)?;
    near.cluster.start()?;

    let needs = |what: &'static str| {
        move |view: &ResourceView| view.problems.iter().any(|problem| problem.contains(what))
    };
    let mut leader = Leader::start(&playground, &[])?;
    let view = leader.until("it says so", needs("the target needs a new copy")).await?;
    ensure!(view.replication.state != "streaming", "{view:#?}");
    ensure!(leader.ask_to_migrate(&near.name).await.is_err(), "rows that are missing there would be lost");
    drop(leader);

    // As before its stream began: the fence's marker is there, and no checkpoint.
    let shadow = connect(near).await?;
    let forget = format!("DELETE FROM godwit.progress WHERE stream = '{stream}'");
    shadow.batch_execute(&forget).await?;
    let mut leader = Leader::start(&playground, &[])?;
    let anew = needs("has no checkpoint of slot");
    let view = leader.until("it does not begin in the middle", &anew).await?;
    ensure!(view.replication.state != "streaming", "{view:#?}");
    drop(leader);
    // As before the move: open, and of the generation before.
    let restored = "UPDATE godwit.epoch SET generation = 1, fenced = false, marker_lsn = NULL";
    shadow.batch_execute(restored).await?;
    let mut leader = Leader::start(&playground, &[])?;
    leader.until("nor from there", &anew).await?;
    until("nobody takes it for the primary", async || {
        let epoch = replicator::fence::state(&shadow, RESOURCE).await?;
        Ok(epoch.is_some_and(|epoch| epoch.fenced && epoch.generation == 2))
    })
    .await?;
    let plan =
        take_over(&leader, &json!({"accept_loss": true, "primary_answers": true, "dry_run": true})).await?;
    let whole = plan.guards.iter().find(|guard| guard.name == "shadow whole").context("the guard")?;
    ensure!(!whole.passed, "{plan:#?}");

    let path = format!("/api/v1/resources/{RESOURCE}/reseed");
    until("a new seed is taken up", async || Ok(leader.client.send(&path, &json!({})).await.is_ok())).await?;
    leader.until("it is mended", |view| view.problems.is_empty()).await?;
    leader.ready().await?;
    let differences =
        verify::differences(&verify::digest(&primary).await?, &verify::digest(&connect(near).await?).await?);
    ensure!(differences.is_empty(), "{differences:?}");
    Ok(())
}

/// What an unread slot of a way back begins with, the shadow need not know of.
#[tokio::test(flavor = "multi_thread")]
async fn a_way_back_begins_although_its_node_died_before_it_did() -> Result<()> {
    let playground = Playground::start(&options(false)?).await?;
    let [near, far] = &playground.zones;
    let leader = killed_at_a_commit(&playground).await?;
    drop(leader);
    let mut leader = Leader::start(&playground, &[])?;
    leader.until("it goes on", |view| view.primary == far.name && view.phase == "shadowing").await?;
    let stream = slot::slot_name(RESOURCE, 2);
    let (shadow, primary) = (connect(near).await?, connect(far).await?);
    let opened = replicator::fence::opened(&primary, RESOURCE, 2).await?.context("where it was opened")?;
    drop(leader);
    // As it was right after the move, with a slot that nobody has read.
    let forget = format!("DELETE FROM godwit.progress WHERE stream = '{stream}'");
    shadow.batch_execute(&forget).await?;
    let unread = format!("UPDATE godwit.opened SET at = pg_current_wal_insert_lsn() WHERE at = '{opened}'");
    primary.batch_execute(&unread).await?;
    let mut leader = Leader::start(&playground, &[])?;
    leader.ready().await?;
    drop(leader);
    // A checkpoint of before the slot, as an earlier life of the resource leaves it, is moved on.
    let older = format!("UPDATE godwit.progress SET applied_lsn = '0/1' WHERE stream = '{stream}'; ");
    shadow.batch_execute(&older).await?;
    primary.batch_execute("UPDATE godwit.opened SET at = pg_current_wal_insert_lsn()").await?;
    let mut leader = Leader::start(&playground, &[])?;
    leader.ready().await?;
    drop(leader);
    // Opened by a version that did not note where.
    shadow.batch_execute(&forget).await?;
    primary.batch_execute("DELETE FROM godwit.opened").await?;
    let mut leader = Leader::start(&playground, &[])?;
    leader.ready().await?;
    Ok(())
}
