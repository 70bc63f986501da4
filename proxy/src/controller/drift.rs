//! Whether the shadow's schema is its primary's, and making it so.

use std::sync::Arc;
use std::time::Duration;

use replicator::drift::{self, Difference, Mend};
use replicator::fence;
use replicator::postgres::slot;
use serde::{Deserialize, Serialize};
use tokio_postgres::Client;

use super::Denied;
use super::databases::{Databases, Purpose};
use super::effects::chain;
use super::view::ResourceView;
use crate::config::model::Resource;
use crate::fronts::postgres::PostgresFront;

/// How long reading both schemas may take.
const PATIENCE: Duration = Duration::from_secs(15);
/// How often what is left is looked at again.
const ROUNDS: usize = 3;
/// So many differences are named among the problems.
const NAMED: usize = 10;
/// What the server shows in `pg_stat_activity`.
const APPLICATION: &str = "godwit-schema";

/// A difference between the schemas.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct DifferenceView {
    /// Table or type.
    pub subject: String,
    /// What differs.
    pub what: String,
    /// SQL for the shadow that mends it, where there is one.
    pub sql: Option<String>,
    /// `godwit schema sync` does it; otherwise a person must decide.
    pub additive: bool,
}

/// The schemas of a resource.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SchemaView {
    /// The resource.
    pub resource: String,
    /// Whose schema counts.
    pub primary: String,
    /// Whose must be like it.
    pub shadow: String,
    /// Every difference, sorted; empty: the schemas are alike.
    pub differences: Vec<DifferenceView>,
    /// What a sync did, one line each.
    #[serde(default)]
    pub done: Vec<String>,
}

/// What a sync is asked for.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SyncRequest {
    /// Only say what would be done.
    #[serde(default)]
    pub dry_run: bool,
}

impl DifferenceView {
    fn of(difference: Difference) -> Self {
        let (sql, additive) = match difference.mend {
            Mend::Add(sql) => (Some(sql), true),
            Mend::Table(_) => (None, true),
            Mend::Person(sql) => (sql, false),
        };
        Self { subject: difference.subject, what: difference.what, sql, additive }
    }
}

/// The differences as they stand among the problems: sorted, the first few.
pub(super) async fn problems(databases: &Databases, zones: [&str; 2]) -> Result<Vec<String>, String> {
    let read = async {
        let [source, shadow] = both(databases, zones).await?;
        let (one, other) = (drift::fingerprint(&source).await?, drift::fingerprint(&shadow).await?);
        Ok::<_, replicator::Error>(drift::compare(&one, &other, zones))
    };
    let found = match tokio::time::timeout(PATIENCE, read).await {
        Ok(Ok(found)) => found,
        failed => {
            for zone in zones {
                databases.forget(zone, Purpose::Schema).await;
            }
            return match failed {
                Ok(read) => read.map(|_| Vec::new()).map_err(chain),
                Err(_) => Err(format!("no answer within {PATIENCE:?}")),
            };
        }
    };
    let more = found.len().saturating_sub(NAMED);
    let mut lines: Vec<String> =
        found.iter().take(NAMED).map(|d| format!("{}: {}", d.subject, d.what)).collect();
    if more > 0 {
        lines.push(format!("the schemas differ in {more} more: godwit schema diff"));
    }
    Ok(lines)
}

/// What the shadow's server lacks for the service to go on there: roles that were made since the copy, what they may do, and the
/// like; and who could not log in there through the front. What cannot be read is told where the databases are examined one by one.
pub(super) async fn lacks(
    databases: &Databases,
    zones: [&str; 2],
    front: Option<&PostgresFront>,
) -> Vec<String> {
    let read = async {
        let [source, shadow] = both(databases, zones).await?;
        let found = replicator::preflight::compare(&source, &shadow).await?;
        Ok::<_, replicator::Error>(super::preflight::worded(found, zones[1]))
    };
    let mut found = match tokio::time::timeout(PATIENCE, read).await {
        Ok(Ok(found)) => found,
        _ => Vec::new(),
    };
    if let Some(front) = front {
        let tried = tokio::time::timeout(PATIENCE, front.rehearse(zones[1])).await;
        found.extend(tried.unwrap_or_default());
    }
    found
}

/// What changes when the schemas of these zones do, but for rights, owners and what is rarely changed; none: it cannot be told.
pub(super) async fn stamps(databases: &Databases, zones: [&str; 2]) -> Option<[(String, String); 2]> {
    let read = async {
        let [source, shadow] = both(databases, zones).await?;
        Ok::<_, replicator::Error>([
            (zones[0].to_owned(), fence::schema_stamp(&source).await?),
            (zones[1].to_owned(), fence::schema_stamp(&shadow).await?),
        ])
    };
    tokio::time::timeout(PATIENCE, read).await.ok()?.ok()
}

/// The connections to both databases, the primary's first.
async fn both(
    databases: &Databases,
    [primary, shadow]: [&str; 2],
) -> Result<[Arc<Client>; 2], replicator::Error> {
    let purpose = Purpose::Schema;
    Ok([databases.get(primary, purpose).await?, databases.get(shadow, purpose).await?])
}

struct Sides {
    source: Client,
    shadow: Client,
    differences: Vec<Difference>,
}

async fn read(resource: &Resource, view: &ResourceView) -> Result<Sides, Denied> {
    let read = async {
        let connect = async |zone: &str| {
            let database = resource.placements.get(zone).and_then(|placement| placement.postgres.as_ref());
            let database =
                database.ok_or_else(|| format!("zone {zone} has no database in the configuration"))?;
            replicator::postgres::connect(&database.dsn, APPLICATION).await.map_err(chain)
        };
        let (source, shadow) = (connect(&view.primary).await?, connect(&view.shadow).await?);
        let one = drift::fingerprint(&source).await.map_err(chain)?;
        let other = drift::fingerprint(&shadow).await.map_err(chain)?;
        let differences = drift::compare(&one, &other, [&view.primary, &view.shadow]);
        Ok::<_, String>(Sides { source, shadow, differences })
    };
    let answer = tokio::time::timeout(PATIENCE, read).await;
    answer.unwrap_or_else(|_| Err(format!("no answer within {PATIENCE:?}"))).map_err(Denied::Conflict)
}

fn shown(view: &ResourceView, differences: Vec<Difference>, done: Vec<String>) -> SchemaView {
    SchemaView {
        resource: view.name.clone(),
        primary: view.primary.clone(),
        shadow: view.shadow.clone(),
        differences: differences.into_iter().map(DifferenceView::of).collect(),
        done,
    }
}

/// Reads both schemas now.
pub async fn diff(resource: &Resource, view: &ResourceView) -> Result<SchemaView, Denied> {
    Ok(shown(view, read(resource, view).await?.differences, Vec::new()))
}

/// Makes on the shadow what only adds; tells what is left.
pub async fn sync(
    resource: &Resource,
    view: &ResourceView,
    request: SyncRequest,
) -> Result<SchemaView, Denied> {
    if let Some(id) = &view.migration
        && view.phase != "soaking"
    {
        return Err(Denied::Conflict(format!("migration {id} is under way: wait for its end, or abort it")));
    }
    if view.replication.state == "copying" {
        return Err(Denied::Conflict("the shadow is being copied: wait for the copy's end".into()));
    }
    let mut sides = read(resource, view).await?;
    if request.dry_run || sides.differences.is_empty() {
        return Ok(shown(view, sides.differences, Vec::new()));
    }
    let database = resource.placements.get(&view.primary).and_then(|placement| placement.postgres.as_ref());
    let database = database.ok_or_else(|| Denied::Conflict("the primary has no database".into()))?;
    let publication = slot::publication_name(&resource.name);
    let mut all = Vec::new();
    // What belongs to a thing that was missing (its owner, who may use it) is seen when it is there.
    for _ in 0..ROUNDS {
        let from = (&database.dsn, &sides.source);
        let done =
            drift::sync(from, &sides.shadow, &publication, database.bin.as_deref(), &sides.differences).await;
        // New tables need the fence as well, whatever failed.
        let guarded = fence::guard(&sides.shadow, &resource.name, view.generation).await.map_err(chain);
        let done = done.map_err(chain).map_err(Denied::Conflict)?;
        guarded.map_err(Denied::Conflict)?;
        tracing::info!(
            resource = resource.name,
            ?done,
            "the shadow's schema was brought up to its primary's"
        );
        all.extend(done);
        sides = read(resource, view).await?;
        if !sides.differences.iter().any(|left| !matches!(left.mend, Mend::Person(_))) {
            break;
        }
    }
    Ok(shown(view, sides.differences, all))
}
