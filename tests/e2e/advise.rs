//! Mode `advise`: Godwit proposes, a person approves, and only then it moves. What it has recorded meanwhile replays: the
//! same policy would have moved by itself.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use godwit::demo::zone::{POLICY, Playground, RESOURCE};
use serde_json::{Value, json};

use crate::leader::{Leader, PROGRAM, load, options};

/// What is usual must be known before the storm.
const CALM_STEPS: u64 = 24;

async fn godwit(leader: &Leader<'_>, arguments: &[&str]) -> Result<String> {
    let mut command = tokio::process::Command::new(PROGRAM);
    command.args(["--admin", &leader.playground.admin.to_string()]).args(arguments);
    let output = command.output().await?;
    ensure!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proposal_is_approved_and_its_history_replays() -> Result<()> {
    let mut options = options(false)?;
    options.policy =
        POLICY.replace("mode: auto", "mode: advise").replace("retire: {after: 5s", "retire: {after: 1s");
    let playground = Playground::start(&options).await?;
    let [near, far] = &playground.zones;
    let mut leader = Leader::start(&playground, &[])?;
    let ready = leader.ready().await?;
    let load = load(&playground, 60.0, "advise");
    // So many steps of calm, as the steps of the decisions tell.
    let since = ready.decision.as_ref().context("a decision")?.at_ms;
    leader
        .until("calm steps", |view| {
            view.decision.as_ref().is_some_and(|decision| decision.at_ms > since + CALM_STEPS * 500)
        })
        .await?;
    near.path.set_delay(Duration::from_millis(80));
    let view = leader.until("a move is proposed", |view| view.proposal.is_some()).await?;
    let proposal = view.proposal.context("just seen")?;
    ensure!(view.primary == near.name && view.migration.is_none(), "it moved unasked: {:?}", view.migration);
    ensure!(proposal.to == far.name, "{proposal:?}");
    let approve = format!("/api/v1/resources/{RESOURCE}/proposals/{}/approve", proposal.id);
    let answer: Value = serde_json::from_slice(&leader.client.send(&approve, &json!({})).await?)?;
    let id = answer["id"].as_str().context("the migration's id")?.to_owned();
    leader.until("it moves", |view| view.primary == far.name && view.phase == "shadowing").await?;
    let run = leader.migration(&id).await?;
    ensure!(run.state == "retired" && run.trigger != "score", "{run:#?}");
    ensure!(leader.client.send(&approve, &json!({})).await.is_err(), "a proposal can be approved once");
    let outcome = load.stop().await;
    ensure!(outcome.totals.failed == 0, "{:#?}", outcome.failures);

    // What was recorded, replayed with the policy as it would act by itself.
    let file = playground.directory.join("history.csv").display().to_string();
    godwit(&leader, &["history", "export", RESOURCE, "--file", &file]).await?;
    let policy = playground.directory.join("policies/auto.yaml");
    let acting =
        options.policy.replace("mode: advise", "mode: auto").replace("name: playground", "name: auto");
    std::fs::write(&policy, acting)?;
    let policy = policy.display().to_string();
    let replay = ["-o", "json", "backtest", "-p", &policy, "--data", &file, "--primary", &near.name];
    let report = godwit(&leader, &replay).await?;
    let parsed: Value = serde_json::from_str(&report).context("the report")?;
    let moves = parsed["moves"].as_array().context("moves")?;
    ensure!(moves.first().is_some_and(|first| first["to"] == *far.name), "{report}");
    ensure!(parsed["regret_never_ms"].as_f64().is_some_and(|ms| ms < 0.0), "the move was worth it: {report}");
    ensure!(godwit(&leader, &replay).await? == report, "equal seeds, equal reports");
    Ok(())
}
