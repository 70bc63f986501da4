//! Reads that are mirrored to the shadow say how the service would be there: that is what is compared, and what `explain` shows.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use godwit::controller::view::{DecisionView, ResourceView};
use godwit::demo::zone::Playground;
use serde_json::Value;

use crate::leader::{Leader, PROGRAM, load, options};

const BETTER: &str = "shadow forecast better";

fn better(view: &ResourceView, passed: bool) -> bool {
    let guards = view.decision.iter().flat_map(|decision| &decision.guards);
    guards
        .filter(|guard| guard.name == BETTER)
        .any(|guard| guard.value.starts_with("mirrored reads forecast") && guard.passed == passed)
}

fn baseline(decision: &DecisionView) -> &str {
    let latency = decision.terms.iter().find(|term| term.name == "latency");
    latency.map_or("", |term| term.detail.as_str())
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_of_both_zones_enter_the_score() -> Result<()> {
    let mut options = options(false)?;
    options.policy.push_str("warm_up: { mirror: 100% }\n");
    let playground = Playground::start(&options).await?;
    let [near, far] = &playground.zones;
    far.path.set_delay(Duration::from_millis(30));
    let mut leader = Leader::start(&playground, &[])?;
    leader.ready().await?;
    let load = load(&playground, 120.0, "mirrored");
    let view =
        leader.until("mirrored reads are compared, and are slower there", |v| better(v, false)).await?;
    let decision = view.decision.as_ref().context("just seen")?;
    ensure!(!baseline(decision).contains("expected from the shadow"), "{}", baseline(decision));
    // The other way round: the primary is the slow one now.
    far.path.set_delay(Duration::ZERO);
    near.path.set_delay(Duration::from_millis(60));
    let expects = |view: &ResourceView| {
        let by = "expected from the shadow by mirrored reads";
        better(view, true) && view.decision.as_ref().is_some_and(|decision| baseline(decision).contains(by))
    };
    leader.until("mirrored reads speak for the shadow", expects).await?;
    let mut command = tokio::process::Command::new(PROGRAM);
    command.args(["--admin", &playground.admin.to_string(), "explain", "orders"]);
    let explained = String::from_utf8(command.output().await?.stdout)?;
    ensure!(explained.contains("mirrored reads forecast"), "{explained}");
    let kept: Value = leader.client.fetch("/api/v1/resources/orders/history?series=mirrored_p95_ms").await?;
    for zone in [&near.name, &far.name] {
        let zones = kept["series"].as_array().into_iter().flatten().map(|series| &series["zone"]);
        ensure!(zones.into_iter().any(|of| of == zone.as_str()), "{kept}");
    }
    ensure!(kept["rows"].as_array().is_some_and(|rows| rows.len() > 2), "{kept}");
    let outcome = load.stop().await;
    ensure!(outcome.totals.failed == 0, "{:#?}", outcome.failures);
    Ok(())
}
