//! The end of the demo: every claim, checked against the databases.

use anyhow::{Context, Result};
use replicator::Lsn;
use tokio_postgres::types::PgLsn;

use super::super::load::Outcome;
use super::super::zone::{GODWIT_ROLE, Playground, Zone};
use super::Screen;
use crate::controller::view::MigrationView;

struct Proof<'a> {
    screen: &'a mut Screen,
    holds: bool,
}

impl Proof<'_> {
    fn claim(&mut self, ok: bool, line: String) {
        self.holds &= ok;
        self.screen.line(&format!("  {} {line}", if ok { "ok  " } else { "FAIL" }));
    }
}

/// Prints one line for each claim; true if all hold.
pub(super) async fn print(
    playground: &Playground,
    outcome: &Outcome,
    migrations: &[MigrationView],
    screen: &mut Screen,
) -> Result<bool> {
    let mut proof = Proof { screen, holds: true };
    proof.screen.line("\nproof");
    let totals = &outcome.totals;
    proof.claim(totals.failed == 0, format!("requests: {} sent, {} failed", totals.sent, totals.failed));
    for failure in outcome.failures.iter().take(5) {
        proof.screen.line(&format!(
            "         {} at {:.1} s: {:?} {}",
            failure.request,
            failure.at.as_secs_f64(),
            failure.status,
            failure.body
        ));
    }
    let committed = migrations.iter().filter(|run| run.committed_ms.is_some()).count();
    proof.claim(
        committed >= 2,
        format!("migrations: {committed} committed, there and back, by the score alone"),
    );
    let longest = migrations.iter().filter_map(|run| run.held_ms).max();
    proof.claim(longest.is_some(), format!("longest hold: {} ms", longest.unwrap_or_default()));
    for run in migrations.iter().rev() {
        let steps: Vec<String> = run
            .steps
            .iter()
            .map(|step| match step.ended_ms {
                Some(ended) => format!("{} {} ms", step.phase, ended.saturating_sub(step.started_ms)),
                None => step.phase.clone(),
            })
            .collect();
        let steps = steps.join(", ");
        proof.screen.line(&format!("         {} → {} ({}): {steps}", run.from, run.to, run.trigger));
        let comparison = run.comparison.as_deref().unwrap_or("not compared");
        proof.claim(
            run.verified == Some(true),
            format!("{} → {} at its end marker: {comparison}", run.from, run.to),
        );
    }
    let [near, far] = &playground.zones;
    let (here, there) = (connect(near).await?, connect(far).await?);
    let report = outcome.check(&here).await.context("cannot check the primary")?;
    proof.claim(
        report.missing.is_empty(),
        format!("acknowledged writes missing: {} of {}", report.missing.len(), report.acknowledged),
    );
    let doubled = report.duplicated.len() + report.numbers_given_twice.len();
    proof.claim(doubled == 0, format!("duplicates: {doubled}"));
    proof.claim(report.clean(), format!("consistency: {report}"));
    let (one, other) = (replicator::verify::digest(&here).await?, replicator::verify::digest(&there).await?);
    let differences = replicator::verify::differences(&one, &other);
    let rows: u64 = one.iter().map(|table| table.rows).sum();
    proof.claim(
        differences.is_empty(),
        if differences.is_empty() {
            format!("both databases now: {} tables, {rows} rows, row hashes equal", one.len())
        } else {
            format!("both databases now: {}", differences.join("; "))
        },
    );
    proof.screen.line(if proof.holds { "\nall of it holds" } else { "\nNOT proven" });
    Ok(proof.holds)
}

/// The end of what is written in a zone.
pub(super) async fn position(zone: &Zone) -> Result<Lsn> {
    let row = connect(zone).await?.query_one("SELECT pg_current_wal_flush_lsn()", &[]).await?;
    Ok(Lsn(row.get::<_, PgLsn>(0).into()))
}

async fn connect(zone: &Zone) -> Result<tokio_postgres::Client> {
    replicator::postgres::connect(&zone.dsn(GODWIT_ROLE), "godwit-demo")
        .await
        .with_context(|| format!("cannot connect to the database in {}", zone.name))
}
