//! What stands in the way in a database, in words that an operator can act on.

use replicator::preflight::{Severity, Side, check};
use tokio_postgres::Client;

use super::effects::chain;

/// Everything that forbids a move; warnings are not in it.
pub(super) async fn blockers(client: &Client, side: Side, zone: &str) -> Result<Vec<String>, String> {
    let findings = check(client, side).await.map_err(chain)?;
    let blockers = findings.into_iter().filter(|finding| finding.severity == Severity::Blocker);
    Ok(blockers
        .map(|finding| {
            let remedy = finding.remedy.map(|remedy| format!(" (mend: {remedy})")).unwrap_or_default();
            format!("{zone}: {}: {}{remedy}", finding.subject, finding.problem)
        })
        .collect())
}
