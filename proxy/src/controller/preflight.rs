//! What stands in the way in a database, in words that an operator can act on.

use migration::policy::{KeptByExtensions, Policy};
use replicator::Error;
use replicator::preflight::{Finding, Severity, Side, check_for, compare_for};
use tokio_postgres::Client;

use super::effects::chain;
use super::unlogged;

/// What the policy's critical tables lack here.
pub(super) async fn critical(client: &Client, policy: &Policy, zone: &str) -> Result<Vec<String>, String> {
    if policy.critical.is_empty() {
        return Ok(Vec::new());
    }
    let findings = replicator::lanes::findings(client, &policy.critical).await.map_err(chain)?;
    Ok(worded(findings, zone))
}

/// Everything that forbids a move; warnings are not in it.
pub(super) async fn blockers(
    client: &Client,
    side: Side,
    policy: &Policy,
    zone: &str,
) -> Result<Vec<String>, String> {
    let found = check_for(client, side, unlogged::wanted(policy.unlogged)).await;
    Ok(worded(found.map_err(chain)?, zone))
}

/// What is not the same on both sides and should be.
pub(super) async fn compared(
    source: &Client,
    shadow: &Client,
    policy: &Policy,
) -> Result<Vec<Finding>, Error> {
    compare_for(source, shadow, policy.extensions == KeptByExtensions::Carry).await
}

pub(super) fn worded(findings: Vec<Finding>, zone: &str) -> Vec<String> {
    let blockers = findings.into_iter().filter(|finding| finding.severity == Severity::Blocker);
    blockers
        .map(|finding| {
            let remedy = finding.remedy.map(|remedy| format!(" (mend: {remedy})")).unwrap_or_default();
            format!("{zone}: {}: {}{remedy}", finding.subject, finding.problem)
        })
        .collect()
}
