//! What stands in the way in a database, in words that an operator can act on.

use migration::policy::{KeptByExtensions, KeylessTables, Policy, SchemaFollows};
use replicator::Error;
use replicator::grants::verifiers_granted;
use replicator::lead::{self, Holder};
use replicator::preflight::{Allowed, Finding, Severity, Side, check_for, compare_for};
use replicator::schema;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::unlogged;
use crate::causes::chain;
use crate::config::model::{PostgresAuth, Resource};
use crate::fronts::postgres::verifiers::{self, Unknown};

/// What the policy's critical tables lack here.
pub(super) async fn critical(client: &Client, policy: &Policy, zone: &str) -> Result<Vec<String>, String> {
    if policy.critical.is_empty() {
        return Ok(Vec::new());
    }
    let findings = replicator::lanes::findings(client, &policy.critical).await.map_err(chain)?;
    Ok(worded(findings, zone))
}

/// Which tables this policy has something done about.
pub(super) fn allowed(policy: &Policy) -> Allowed {
    Allowed {
        unlogged: unlogged::wanted(policy.unlogged),
        keyless: policy.keyless == KeylessTables::Identify,
    }
}

/// Everything that forbids a move; warnings are not in it.
pub(super) async fn blockers(
    client: &Client,
    side: Side,
    policy: &Policy,
    zone: &str,
) -> Result<Vec<String>, String> {
    let found = check_for(client, side, allowed(policy)).await;
    Ok(worded(found.map_err(chain)?, zone))
}

/// Why nobody could log in through the PostgreSQL front while this database is primary: roles' verifiers cannot be asked for.
pub(super) async fn verifiers(client: &Client, resource: &Resource, zone: &str) -> Option<Finding> {
    let front = resource.postgres.as_ref()?;
    let database = resource.placements.get(zone)?.postgres.as_ref()?;
    let role = database.dsn.get_user().unwrap_or_default();
    let why = verifiers::try_out(&front.auth, client, role).await.err()?;
    let denied =
        matches!(&why, Unknown::Query(error) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE));
    let granted = denied && front.auth == PostgresAuth::Query(None);
    Some(Finding {
        severity: Severity::Blocker,
        subject: "PostgreSQL front".into(),
        problem: format!("nobody can log in while this database is primary: {}", chain(why)),
        remedy: granted.then(|| verifiers_granted(role)),
    })
}

/// Why nothing that the service makes while this database is primary could follow, nor a copy be made: `pg_dump` does not dump it. The shadow
/// follows by itself, or a person has it follow.
pub(super) async fn dumps(client: &Client, resource: &Resource, zone: &str) -> Option<Finding> {
    let database = resource.placements.get(zone)?.postgres.as_ref()?;
    let why = schema::can_dump(&database.dsn, database.bin.as_deref(), client).await.err()?;
    let by_itself = resource.policy.schema != SchemaFollows::Manual;
    Some(Finding {
        severity: if by_itself { Severity::Blocker } else { Severity::Warning },
        subject: "pg_dump".into(),
        problem: format!("no new table could follow while this database is primary: {}", chain(why)),
        remedy: None,
    })
}

/// What is not the same on both sides and should be. `logins`: what it is that a role proves itself by something else there.
pub(super) async fn compared(
    source: &Client,
    shadow: &Client,
    policy: &Policy,
    logins: Severity,
) -> Result<Vec<Finding>, Error> {
    compare_for(source, shadow, policy.extensions == KeptByExtensions::Carry, logins).await
}

/// That the shadow's lease is another node's than the primary's: a move would leave it to the databases which of the two leads.
pub(super) async fn leases(
    source: &Client,
    shadow: &Client,
    resource: &str,
) -> Result<Option<Finding>, Error> {
    let here = lead::look(source, resource).await?.holder;
    Ok(another_leads(here, lead::look(shadow, resource).await?.holder))
}

fn another_leads(here: Option<Holder>, there: Option<Holder>) -> Option<Finding> {
    let (here, there) =
        here.zip(there).filter(|(here, there)| (&here.id, &here.node) != (&there.id, &there.node))?;
    Some(Finding {
        severity: Severity::Blocker,
        subject: "lease".into(),
        problem: format!("node {} has it, and node {} the primary's, which leads", there.node, here.node),
        remedy: None,
    })
}

/// The first of these, and how many more there are.
pub(super) fn first(mut found: Vec<String>, resource: &str) -> Vec<String> {
    const NAMED: usize = 10;
    if found.len() > NAMED + 1 {
        let more = found.split_off(NAMED).len();
        found.push(format!("{more} more are in the way: godwit doctor {resource}"));
    }
    found
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn nobody_is_moved_to_where_another_node_has_the_lease() {
        let holder = |id: &str| {
            Some(Holder { id: id.into(), node: format!("node-{id}"), left: Duration::from_secs(1) })
        };
        for (here, there) in [(holder("a"), holder("a")), (holder("a"), None), (None, holder("b"))] {
            assert!(another_leads(here, there).is_none());
        }
        let found: Vec<_> = another_leads(holder("a"), holder("b")).into_iter().collect();
        assert_eq!(
            worded(found, "far"),
            ["far: lease: node node-b has it, and node node-a the primary's, which leads"]
        );
    }
}
