//! Whether a resource can move, on both databases and between them: every finding, with what mends it.

use std::collections::BTreeSet;
use std::time::Duration;

use migration::policy::Caches;
use migration::units::ByteCount;
use replicator::Error;
use replicator::caches;
use replicator::drift::{self, Difference, Mend};
use replicator::error::Cause;
use replicator::postgres::slot::{self, Orphan};
use replicator::postgres::{Dsn, quote_ident, quote_literal};
use replicator::preflight::{Finding, Severity, Side, check_for, has_copy, retention};
use serde::{Deserialize, Serialize};
use tokio_postgres::Client;

use super::drift::reseed_command;
use super::view::ReplicationView;
use super::{answering, preflight, verification};
use crate::causes::chain;
use crate::config::model::{PostgresAuth, Resource};

/// How long the whole examination may take; less than a client of the API waits.
const PATIENCE: Duration = Duration::from_secs(20);
/// For how long a service that does not answer is asked.
const ASKED: Duration = Duration::from_secs(1);
/// A smaller database is read soon by itself: 1 GiB.
const LARGE: i64 = 1 << 30;
/// What the server shows in `pg_stat_activity`.
const APPLICATION: &str = "godwit-doctor";

/// One thing that is not as it should be. The order of the fields is that in which findings are sorted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
pub struct FindingView {
    /// `blocker`, `warning`.
    pub severity: String,
    /// The zone of the database; both, for what differs between them.
    pub zone: String,
    /// Table, role, setting or other object.
    pub subject: String,
    /// What is wrong with it.
    pub problem: String,
    /// SQL or setting that mends it.
    pub remedy: Option<String>,
}

/// The examination of one resource.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct DoctorView {
    /// The resource.
    pub resource: String,
    /// Where it is served.
    pub primary: String,
    /// Where it would move to.
    pub shadow: String,
    /// No blocker was found.
    pub go: bool,
    /// Blockers first.
    pub findings: Vec<FindingView>,
}

/// Examines both services, and both databases over connections of its own. What cannot be examined is a blocker: it is not known to be well.
/// `stream`: what the node knows of it; `differing`: tables whose rows a verification found to differ; `configured`: every resource of the node.
pub async fn examine(
    resource: &Resource,
    [primary, shadow]: [&str; 2],
    stream: &ReplicationView,
    differing: BTreeSet<String>,
    configured: &BTreeSet<String>,
) -> DoctorView {
    let both = format!("{primary}, {shadow}");
    let mut found: Vec<FindingView> =
        differing.into_iter().map(|table| differs(&resource.name, &both, table)).collect();
    found.extend(stands(stream, &both));
    let work = async {
        if !resource.has_database() {
            return;
        }
        let source = database(resource, primary, &[Side::Source], &mut found).await;
        // The way back starts there: it must fulfil what a source must, too.
        let target = database(resource, shadow, &[Side::Target, Side::Source], &mut found).await;
        for (zone, client) in [(primary, &source), (shadow, &target)] {
            let Some(client) = client else { continue };
            match slot::orphans(client, configured.iter().map(String::as_str)).await {
                Ok(orphans) => found.extend(orphans.into_iter().map(|slot| unread(zone, slot))),
                Err(error) => found.push(unexamined(zone, chain(error))),
            }
        }
        if let (Some(source), Some(target)) = (source, target) {
            match preflight::compared(&source, &target, &resource.policy, logins(resource)).await {
                Ok(findings) => found.extend(views(&both, findings)),
                Err(error) => found.push(unexamined(&both, chain(error))),
            }
            match preflight::leases(&source, &target, &resource.name).await {
                Ok(finding) => found.extend(views(shadow, finding)),
                Err(error) => found.push(unexamined(&both, chain(error))),
            }
            if resource.policy.caches == Caches::Fill {
                match caches::lacking(&target, LARGE).await {
                    Ok(finding) => found.extend(views(shadow, finding)),
                    Err(error) => found.push(unexamined(shadow, chain(error))),
                }
            }
            match drifted(&source, &target, [primary, shadow]).await {
                Ok(differences) => {
                    found.extend(differences.into_iter().map(|it| difference(&resource.name, &both, it)));
                }
                Err(error) => found.push(unexamined(&both, chain(error))),
            }
        }
    };
    let services = services(resource, [primary, shadow]);
    let (examined, silent) = tokio::join!(tokio::time::timeout(PATIENCE, work), services);
    found.extend(silent);
    if examined.is_err() {
        let why = format!("the databases did not answer within {} s", PATIENCE.as_secs());
        found.push(unexamined(&both, why));
    }
    found.sort();
    found.dedup();
    DoctorView {
        resource: resource.name.clone(),
        primary: primary.into(),
        shadow: shadow.into(),
        go: found.iter().all(|finding| finding.severity != "blocker"),
        findings: found,
    }
}

/// Clients that the PostgreSQL front lets in by the database's verifiers come to the next primary with the same.
fn logins(resource: &Resource) -> Severity {
    let asks = resource.postgres.as_ref().is_some_and(|front| matches!(front.auth, PostgresAuth::Query(_)));
    if asks { Severity::Blocker } else { Severity::Warning }
}

/// Services that do not answer. One that a driver starts for a move is asked then.
async fn services(resource: &Resource, [primary, shadow]: [&str; 2]) -> Vec<FindingView> {
    let started = resource.placements.get(shadow).is_none_or(|placement| placement.driver.is_some());
    let (here, there) = tokio::join!(answering::asked(resource, primary, ASKED), async {
        if started { None } else { answering::asked(resource, shadow, ASKED).await }
    });
    let finding = |severity: &str, zone: &str, problem| FindingView {
        severity: severity.into(),
        zone: zone.into(),
        subject: "service".into(),
        problem,
        remedy: None,
    };
    let here = here.map(|why| finding("warning", primary, format!("does not answer: {why}")));
    let there = there.map(|why| {
        finding(
            "blocker",
            shadow,
            format!("does not answer: {why}; nobody is moved to where nothing answers"),
        )
    });
    here.into_iter().chain(there).collect()
}

/// A stream that something keeps from going on.
fn stands(stream: &ReplicationView, zone: &str) -> Option<FindingView> {
    (stream.state == "failed").then(|| FindingView {
        severity: "blocker".into(),
        zone: zone.into(),
        subject: "stream".into(),
        problem: format!("stands still: {}", stream.detail),
        remedy: None,
    })
}

fn differs(resource: &str, zone: &str, table: String) -> FindingView {
    FindingView {
        severity: "blocker".into(),
        zone: zone.into(),
        problem: verification::DIFFER.into(),
        remedy: Some(verification::mend(resource, &table)),
        subject: table,
    }
}

/// Of a resource that was taken out of the configuration, or that another node leads and does not read now.
fn unread(zone: &str, Orphan { name, database, retained_bytes }: Orphan) -> FindingView {
    FindingView {
        severity: "warning".into(),
        zone: zone.into(),
        problem: format!(
            "nobody reads this slot, it keeps {} of WAL, and no resource of this node has it",
            ByteCount(retained_bytes)
        ),
        remedy: Some(format!(
            "if no other node has its resource, in database {}: SELECT pg_drop_replication_slot({}); see docs/operations.md, \"Taking a resource out\"",
            quote_ident(&database),
            quote_literal(&name)
        )),
        subject: name,
    }
}

/// The connection, when there is one.
async fn database(
    resource: &Resource,
    zone: &str,
    sides: &[Side],
    found: &mut Vec<FindingView>,
) -> Option<Client> {
    let Some(database) = resource.placements.get(zone).and_then(|placement| placement.postgres.as_ref())
    else {
        found.push(unexamined(zone, "the configuration names no database here".into()));
        return None;
    };
    let client = match replicator::postgres::connect_unhurried(&database.dsn, APPLICATION).await {
        Ok(client) => client,
        Err(error) => {
            let remedy = let_in(&error, &resource.name, zone, &database.dsn);
            found.push(FindingView { remedy, ..unexamined(zone, chain(error)) });
            return None;
        }
    };
    let mut answers = vec![retention(&client).await];
    for side in sides {
        answers.push(check_for(&client, *side, preflight::allowed(&resource.policy)).await);
    }
    if sides == [Side::Source] && !resource.policy.critical.is_empty() {
        answers.push(replicator::lanes::findings(&client, &resource.policy.critical).await);
    }
    let verifiers = preflight::verifiers(&client, resource, zone).await;
    let dumps = preflight::dumps(&client, resource, zone).await;
    answers.push(Ok(verifiers.into_iter().chain(dumps).collect()));
    for answer in answers {
        match answer {
            Ok(findings) => found.extend(views(zone, findings)),
            Err(error) => found.push(unexamined(zone, chain(error))),
        }
    }
    Some(client)
}

/// How the schemas differ. A shadow without a copy gets its schema with that: nothing is to be compared yet.
async fn drifted(source: &Client, shadow: &Client, zones: [&str; 2]) -> Result<Vec<Difference>, Error> {
    if !has_copy(shadow).await? {
        return Ok(Vec::new());
    }
    drift::differences(source, shadow, zones).await
}

/// What a person types, or has the shadow's server do.
fn mended(resource: &str, mend: Mend) -> Option<String> {
    let sync = format!("godwit schema sync {resource}");
    match mend {
        Mend::Add(sql) | Mend::Rename(sql) => Some(format!("{sync}; or on the shadow: {sql}")),
        Mend::Table(_) => Some(sync),
        Mend::Drop(sql) => Some(format!("{sync} --drop; or on the shadow: {sql}")),
        Mend::Anew(table) => Some(reseed_command(resource, &table)),
        Mend::Identity(sql) => sql.map(|sql| format!("on the primary: {sql}")),
        Mend::Person(sql) => sql.map(|sql| format!("on the shadow: {sql}")),
    }
}

fn difference(resource: &str, zone: &str, difference: Difference) -> FindingView {
    FindingView {
        severity: if difference.stops { "blocker" } else { "warning" }.into(),
        zone: zone.into(),
        subject: difference.subject,
        problem: difference.what,
        remedy: mended(resource, difference.mend),
    }
}

fn views(zone: &str, findings: impl IntoIterator<Item = Finding>) -> impl Iterator<Item = FindingView> {
    findings.into_iter().map(move |finding| FindingView {
        severity: if finding.severity == Severity::Blocker { "blocker" } else { "warning" }.into(),
        zone: zone.into(),
        subject: finding.subject,
        problem: finding.problem,
        remedy: finding.remedy,
    })
}

/// What lets Godwit in where a server does not.
fn let_in(error: &Error, resource: &str, zone: &str, dsn: &Dsn) -> Option<String> {
    let user = quote_ident(dsn.get_user().unwrap_or_default());
    let database = quote_ident(dsn.get_dbname().unwrap_or_default());
    match error.cause() {
        Cause::DatabaseGone => Some(format!(
            "CREATE DATABASE {database} there, empty on the shadow's side, with the encoding and locale of the other; then what \
             godwit grants {resource} prints"
        )),
        Cause::Credentials => Some(format!(
            "godwit grants {resource} makes {user}; \\password {user} in psql gives it the password that \
             resources.{resource}.placements.{zone}.postgres.password has; pg_hba.conf must let it in"
        )),
        _ => None,
    }
}

fn unexamined(zone: &str, why: String) -> FindingView {
    FindingView {
        severity: "blocker".into(),
        zone: zone.into(),
        subject: "database".into(),
        problem: format!("cannot be examined: {why}"),
        remedy: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_mends_a_difference_can_be_typed() {
        let sql = || "SQL".to_owned();
        for mend in [
            Mend::Add(sql()),
            Mend::Rename(sql()),
            Mend::Table(sql()),
            Mend::Drop(sql()),
            Mend::Anew("public.a".into()),
        ] {
            let remedy = mended("shop", mend).unwrap();
            let command = remedy.split(';').next().unwrap();
            assert!(crate::cli::parses(command), "{command}");
        }
    }
}
