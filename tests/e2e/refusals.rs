//! What Godwit refuses, and that the service stays where it is meanwhile.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use godwit::cli::client::{OPERATOR, Refusal};
use godwit::controller::Plan;
use godwit::controller::zones::ChoiceView;
use godwit::demo::zone::{DATABASE, Playground, RESOURCE, SUPERUSER};
use serde_json::json;

use crate::leader::{Leader, connect, load, options};

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_not_ready_is_named_before_anything_changes() -> Result<()> {
    let mut options = options(false)?;
    options.settings[0].push_str("wal_level = replica\nmax_prepared_transactions = 5\n");
    let playground = Playground::start(&options).await?;
    let primary = connect(&playground.zones[0]).await?;
    primary.batch_execute("CREATE TABLE log (line text)").await?;
    primary.batch_execute("BEGIN; INSERT INTO log VALUES ('x'); PREPARE TRANSACTION 'left-behind'").await?;
    let mut leader = Leader::start(&playground, &[])?;
    let view = leader
        .until("the findings are shown", |view| {
            let text = view.problems.join("\n");
            ["wal_level", "public.log", "left-behind"].iter().all(|what| text.contains(what))
        })
        .await?;
    ensure!(view.phase == "preparing" && view.primary == playground.zones[0].name, "{view:#?}");
    let refused = leader.ask_to_migrate(&view.shadow).await.expect_err("a migration must be refused");
    ensure!(refused.downcast_ref::<Refusal>().is_some_and(|Refusal(p)| p.status == 409), "{refused:?}");
    for zone in &playground.zones {
        let made: bool = connect(zone)
            .await?
            .query_one("SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = 'godwit')", &[])
            .await?
            .get(0);
        ensure!(!made, "schema godwit was made in {} although the database is not ready", zone.name);
    }
    serves(&playground, &mut leader, "serves1").await?;
    primary.batch_execute("ROLLBACK PREPARED 'left-behind'").await?;
    Ok(())
}

/// The front answers reads and writes; `run` is new for each call, since it is in the keys of the orders.
async fn serves(playground: &Playground, leader: &mut Leader<'_>, run: &str) -> Result<()> {
    let load = load(playground, 50.0, run);
    leader.until("the service answers", |_| load.snapshot().acknowledged > 10).await?;
    let outcome = load.stop().await;
    ensure!(outcome.totals.failed == 0, "{:#?}", outcome.failures);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreachable_shadow_keeps_the_service_on_the_primary() -> Result<()> {
    let playground = Playground::start(&options(false)?).await?;
    let [near, far] = &playground.zones;
    far.path.cut();
    let mut leader = Leader::start(&playground, &[])?;
    let view = leader
        .until("status says so", |view| {
            view.problems.iter().any(|problem| problem.contains(&format!("stays in {}", near.name)))
        })
        .await?;
    ensure!(view.primary == near.name && view.phase == "preparing", "{view:#?}");
    serves(&playground, &mut leader, "serves2").await?;
    far.path.restore();
    leader.ready().await?;

    // Lost again while it follows: nothing moves, and the stream resumes by itself.
    far.path.cut();
    far.path.reset_connections();
    leader.until("the stream is seen broken", |view| view.replication.state != "streaming").await?;
    ensure!(leader.ask_to_migrate(&far.name).await.is_err(), "a shadow out of reach must not be migrated to");
    serves(&playground, &mut leader, "serves3").await?;
    far.path.restore();
    leader.ready().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_migration_is_refused_with_the_id_of_the_first() -> Result<()> {
    let playground = Playground::start(&options(false)?).await?;
    let mut leader = Leader::start(&playground, &[])?;
    let view = leader.ready().await?;
    let choice: ChoiceView = leader.client.fetch(&format!("/api/v1/resources/{RESOURCE}/zones")).await?;
    let [only] = choice.candidates.as_slice() else { bail!("one zone beside the primary: {choice:#?}") };
    let chosen = choice.chosen.as_deref() == Some(&*view.shadow);
    ensure!(only.zone == view.shadow && only.verdict == "chosen" && chosen, "{choice:#?}");
    ensure!(only.terms[0].detail == "1087 km from eu-west", "{choice:#?}");

    let load = load(&playground, 50.0, "second");
    let first = leader.migrate(&view.shadow).await?;
    let refused = leader.ask_to_migrate(&view.shadow).await.expect_err("one at a time");
    let Refusal(problem) = refused.downcast_ref().context("a problem document")?;
    ensure!(problem.status == 409 && problem.migration.as_deref() == Some(first.as_str()), "{problem:?}");
    ensure!(problem.detail.contains(&first), "{problem:?}");

    let abort = format!("/api/v1/resources/{RESOURCE}/migrations/{first}/abort");
    leader.client.send(&abort, &json!({})).await?;
    let after = leader.ready().await?;
    ensure!(after.primary == view.primary, "an aborted migration must leave the primary: {after:#?}");
    let run = leader.migration(&first).await?;
    ensure!(run.state == "aborted" && run.reason.is_some(), "{run:#?}");
    ensure!(leader.client.send(&abort, &json!({})).await.is_err(), "there is nothing left to abort");

    // Nothing of the aborted one is in the way of the next.
    let second = leader.migrate(&view.shadow).await?;
    leader.until("the next one", |now| now.primary == view.shadow && now.phase == "shadowing").await?;
    ensure!(leader.migration(&second).await?.verified == Some(true), "not verified");

    // Who asked, what was refused, and every step of both are in the audit.
    let records = leader.audit().await?;
    let calls = records.iter().filter(|record| record["kind"] == "call").count();
    let failed = |record: &&serde_json::Value| record["status"].as_u64() >= Some(400);
    let refused = records.iter().filter(failed).count();
    ensure!(calls == 5 && refused == 2, "{records:#?}");
    let phases = |id: &str| -> Vec<&str> {
        let steps = records.iter().filter(|record| record["kind"] == "step" && record["migration"] == id);
        steps.filter_map(|step| step["after"].as_str()).collect()
    };
    ensure!(phases(&first).contains(&"aborting") && !phases(&first).contains(&"committed"), "{records:#?}");
    ensure!(phases(&second).contains(&"committed"), "{records:#?}");
    let fenced =
        |record: &&serde_json::Value| record["effect"] == "fence" && record["migration"] == second.as_str();
    ensure!(records.iter().any(|record| fenced(&record) && record["error"].is_null()), "{records:#?}");
    let outcome = load.stop().await;
    ensure!(outcome.totals.failed == 0, "{:#?}", outcome.failures);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_outlasts_the_fence_aborts_the_cutover() -> Result<()> {
    let playground = Playground::start(&options(false)?).await?;
    let mut leader = Leader::start(&playground, &[])?;
    let view = leader.ready().await?;
    let load = load(&playground, 50.0, "blocked");
    // A session of the application that holds a row lock and never ends.
    let mut dsn = playground.zones[0].dsn(SUPERUSER);
    dsn.dbname(DATABASE).application_name("batch-job");
    let (blocker, connection) = dsn.connect(tokio_postgres::NoTls).await?;
    let connection = tokio::spawn(connection);
    blocker.batch_execute("BEGIN; UPDATE customers SET balance = balance WHERE id = 1").await?;
    let id = leader.migrate(&view.shadow).await?;
    leader.until("it is rolled back", |now| now.phase == "shadowing" && now.migration.is_none()).await?;
    let run = leader.migration(&id).await?;
    let reason = run.reason.clone().unwrap_or_default();
    ensure!(
        run.state == "aborted" && reason.contains("batch-job"),
        "the reason must name the session: {run:#?}"
    );
    blocker.batch_execute("ROLLBACK").await?;
    drop(blocker);
    let _ = tokio::time::timeout(Duration::from_secs(5), connection).await?;
    leader.ready().await?;
    let outcome = load.stop().await;
    ensure!(outcome.totals.failed == 0, "{:#?}", outcome.failures);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_service_stays_and_says_why() -> Result<()> {
    let playground = Playground::start(&options(false)?).await?;
    let mut leader = Leader::start(&playground, &[])?;
    let view = leader.ready().await?;
    let freeze = format!("/api/v1/resources/{RESOURCE}/freeze");
    leader.client.send(&freeze, &json!({ "why": "the release of today" })).await?;
    let dry_run = json!({ "to": view.shadow, "dry_run": true });
    let plan = leader.client.send(&format!("/api/v1/resources/{RESOURCE}/migrations"), &dry_run).await?;
    let plan: Plan = serde_json::from_slice(&plan)?;
    let frozen = plan.guards.iter().find(|guard| guard.name == "not frozen").context("the guard")?;
    ensure!(!frozen.passed, "a plan is of now: {plan:#?}");
    // It outlives the process.
    drop(leader);
    let mut leader = Leader::start(&playground, &[])?;
    leader
        .until("the guard shows it", |view| {
            let guards = view.decision.iter().flat_map(|decision| &decision.guards);
            guards
                .into_iter()
                .any(|guard| guard.name == "not frozen" && !guard.passed && guard.binds_operator)
        })
        .await?;
    let refused = leader.ask_to_migrate(&view.shadow).await.expect_err("frozen");
    let Refusal(problem) = refused.downcast_ref().context("a problem document")?;
    ensure!(problem.status == 409 && problem.detail.contains("the release of today"), "{problem:?}");
    let none = format!("/api/v1/resources/{RESOURCE}/proposals/p0/approve");
    let refused = leader.client.send(&none, &json!({})).await.expect_err("nothing is proposed");
    let Refusal(problem) = refused.downcast_ref().context("a problem document")?;
    ensure!(problem.status == 404, "{problem:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_that_needs_two_people_waits_for_the_second() -> Result<()> {
    let mut options = options(false)?;
    options.policy = options.policy.replace("limits: {", "limits: {approvals: 2, ");
    let playground = Playground::start(&options).await?;
    let mut leader = Leader::start(&playground, &[])?;
    let view = leader.ready().await?;
    let asks = async |leader: &Leader<'_>, who: &str, path: &str| -> Result<Plan> {
        let path = format!("/api/v1/resources/{RESOURCE}/{path}");
        let (body, _) =
            leader.client.call_with(http::Method::POST, &path, Some(&json!({})), &[(OPERATOR, who)]).await?;
        Ok(serde_json::from_slice(&body)?)
    };
    let plan = asks(&leader, "ann", "migrations").await?;
    let approval = plan.approval.context("it waits")?;
    ensure!(plan.id.is_none() && approval.approved_by == ["ann"] && approval.needed == 2, "{approval:?}");
    let approve = format!("proposals/{}/approve", approval.proposal);
    let again = asks(&leader, "ann", &approve).await?;
    ensure!(again.id.is_none() && again.approval.is_some(), "one person counts once: {again:?}");
    // It outlives the process.
    drop(leader);
    let mut leader = Leader::start(&playground, &[])?;
    let shown = leader.ready().await?.proposal.context("the proposal is still open")?;
    ensure!(shown.asked_by.as_deref() == Some("ann") && shown.to == view.shadow, "{shown:?}");

    // Whose approval is refused has not approved.
    let freeze = format!("/api/v1/resources/{RESOURCE}/freeze");
    leader.client.send(&freeze, &json!({ "why": "the release of today" })).await?;
    let frozen = asks(&leader, "eve", &approve).await.expect_err("it is frozen").to_string();
    ensure!(frozen.contains("the release of today"), "{frozen}");
    leader.client.call_with(http::Method::DELETE, &freeze, None, &[]).await?;

    let begun = asks(&leader, "bob", &approve).await?;
    let id = begun.id.context("it begins")?;
    leader.until("it is served from the other zone", |now| now.primary == view.shadow).await?;
    let run = leader.migration(&id).await?;
    ensure!(run.trigger == "ann, bob", "the history knows both: {run:#?}");
    let over = asks(&leader, "eve", &approve).await.expect_err("it is over");
    ensure!(over.downcast_ref::<Refusal>().is_some_and(|Refusal(problem)| problem.status == 409), "{over:?}");
    Ok(())
}
