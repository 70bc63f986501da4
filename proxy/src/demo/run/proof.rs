//! The end of the demo: every claim, checked against the databases.

use anyhow::{Context, Result};
use replicator::Lsn;
use tokio_postgres::types::PgLsn;

use super::super::load::Outcome;
use super::super::zone::{GODWIT_ROLE, Playground, Zone};
use crate::controller::view::MigrationView;

/// Prints one line for each claim; true if all hold.
pub(super) async fn print(
    playground: &Playground,
    outcome: &Outcome,
    migrations: &[MigrationView],
) -> Result<bool> {
    let mut holds = true;
    let mut claim = |ok: bool, line: String| {
        holds &= ok;
        println!("  {} {line}", if ok { "ok  " } else { "FAIL" });
    };
    println!("\nproof");
    let totals = &outcome.totals;
    claim(totals.failed == 0, format!("requests: {} sent, {} failed", totals.sent, totals.failed));
    for failure in outcome.failures.iter().take(5) {
        println!(
            "         {} at {:.1} s: {:?} {}",
            failure.request,
            failure.at.as_secs_f64(),
            failure.status,
            failure.body
        );
    }
    let committed = migrations.iter().filter(|run| run.committed_ms.is_some()).count();
    claim(committed >= 2, format!("migrations: {committed} committed, there and back, by the score alone"));
    let longest = migrations.iter().filter_map(|run| run.held_ms).max();
    claim(longest.is_some(), format!("longest hold: {} ms", longest.unwrap_or_default()));
    for run in migrations.iter().rev() {
        let steps: Vec<String> = run
            .steps
            .iter()
            .map(|step| match step.ended_ms {
                Some(ended) => format!("{} {} ms", step.phase, ended.saturating_sub(step.started_ms)),
                None => step.phase.clone(),
            })
            .collect();
        println!("         {} → {} ({}): {}", run.from, run.to, run.trigger, steps.join(", "));
        let comparison = run.comparison.as_deref().unwrap_or("not compared");
        claim(
            run.verified == Some(true),
            format!("{} → {} at its end marker: {comparison}", run.from, run.to),
        );
    }
    let [near, far] = &playground.zones;
    let (here, there) = (connect(near).await?, connect(far).await?);
    let report = outcome.check(&here).await.context("cannot check the primary")?;
    claim(
        report.missing.is_empty(),
        format!("acknowledged writes missing: {} of {}", report.missing.len(), report.acknowledged),
    );
    let doubled = report.duplicated.len() + report.numbers_given_twice.len();
    claim(doubled == 0, format!("duplicates: {doubled}"));
    claim(report.clean(), format!("consistency: {report}"));
    let (one, other) = (replicator::verify::digest(&here).await?, replicator::verify::digest(&there).await?);
    let differences = replicator::verify::differences(&one, &other);
    let rows: u64 = one.iter().map(|table| table.rows).sum();
    claim(
        differences.is_empty(),
        if differences.is_empty() {
            format!("both databases now: {} tables, {rows} rows, row hashes equal", one.len())
        } else {
            format!("both databases now: {}", differences.join("; "))
        },
    );
    println!("{}", if holds { "\nall of it holds" } else { "\nNOT proven" });
    Ok(holds)
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
