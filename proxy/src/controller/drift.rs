//! Whether the shadow's schema is its primary's, and making it so.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use migration::policy::{KeylessTables, Policy, Reseed, SchemaFollows};
use migration::units::Generation;
use replicator::drift::{self, Difference, Filling, Mend, Numbered, When};
use replicator::fence;
use replicator::postgres::slot;
use replicator::preflight::Severity;
use replicator::status::Phase;
use serde::{Deserialize, Serialize};
use tokio_postgres::Client;

use super::Denied;
use super::databases::{Databases, Purpose};
use super::seeds;
use super::streams::{self, Streams};
use super::view::ResourceView;
use crate::audit::{Audit, Entry};
use crate::causes::chain;
use crate::config::model::{Database, Resource};
use crate::fronts::postgres::PostgresFront;
use crate::lock::lock;
use crate::store::Journal;

/// How long reading both schemas may take.
const PATIENCE: Duration = Duration::from_mins(1);
/// How long it is waited for the stream, where the shadow must have what was written before.
const CATCHES_UP: Duration = Duration::from_secs(10);
/// How long differences that the policy has the shadow follow in stop no move, from when they were found: what is still there then does.
pub(super) const FOLLOWS: Duration = Duration::from_secs(10);
/// Who follows reads both schemas so often.
const READINGS: u32 = 3;
/// How soon it is tried again to follow before a move.
const AGAIN: Duration = Duration::from_millis(100);
/// A sync that takes longer is answered with how far it is.
const ANSWERS: Duration = Duration::from_secs(15);
/// Why nothing is made on a shadow that is to be copied first.
const NO_COPY: &str = "there is no copy on the shadow yet: wait for its end";
/// The same of one whose tables are of different times.
const SETTLES: &str = "changes are bringing the shadow's tables to one point: wait until the stream is up";
/// How often what is left is looked at again.
const ROUNDS: usize = 3;
/// Of what a stream says that stands still at a value that its shadow's type does not have, or of a column that the shadow computes.
const NEEDS: [&str; 3] = ["(SQLSTATE 22P02)", "(SQLSTATE 428C9)", "(SQLSTATE 42P10)"];
/// So many differences are named among the problems.
const NAMED: usize = 10;

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
    /// Only the shadow has it: `godwit schema sync --drop` drops it.
    #[serde(default)]
    pub drops: bool,
    /// No move is made with it; otherwise it is how something is stored, planned or described, and nothing else is done without it.
    #[serde(default = "stops")]
    pub stops: bool,
    /// `godwit reseed RESOURCE --table SUBJECT` mends it.
    #[serde(default)]
    pub reseed: bool,
}

/// Of older nodes.
fn stops() -> bool {
    true
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
    /// Every difference, sorted; empty: the schemas are alike. None is told while a table is being filled.
    pub differences: Vec<DifferenceView>,
    /// What a sync did, one line each.
    #[serde(default)]
    pub done: Vec<String>,
    /// Some of it a sync could not do yet: the shadow does not have all that was written before.
    #[serde(default)]
    pub waits: bool,
    /// The table that is just being filled; a sync goes on after it.
    #[serde(default)]
    pub filling: Option<FillingView>,
}

/// A table that is being filled beside the stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct FillingView {
    /// `schema.table`.
    pub table: String,
    /// Of its size on the primary, so many bytes are copied.
    pub bytes: u64,
    /// Its size on the primary, bytes.
    pub of: u64,
}

impl FillingView {
    fn now(streams: &Streams) -> Option<Self> {
        let filling = streams.filling().borrow().clone();
        filling.map(|Filling { table, bytes, of }| Self { table, bytes, of })
    }
}

/// The table that is being filled, for a person.
pub(super) fn filling(streams: &Streams) -> Option<String> {
    let FillingView { table, bytes, of } = FillingView::now(streams)?;
    let percent = bytes * 100 / of.max(1);
    Some(format!("table {table} is being copied to the shadow: {percent} % of {} MiB", of >> 20))
}

/// What a sync is asked for.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SyncRequest {
    /// Only say what would be done.
    #[serde(default)]
    pub dry_run: bool,
    /// Drop what only the shadow has.
    #[serde(default)]
    pub drop: bool,
}

/// Which tables are to be seeded anew.
#[derive(Clone, Debug, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TablesRequest {
    /// Each as `schema.table`, quoted where SQL needs it; a partitioned one stands for its partitions.
    pub tables: Vec<String>,
}

/// What is to be done about the differences.
#[derive(Clone, Debug)]
enum Wanted {
    Sync(SyncRequest),
    /// Only these tables.
    Tables(Vec<String>),
}

impl Wanted {
    fn wants(&self, difference: &Difference) -> bool {
        match (self, &difference.mend) {
            (Self::Sync(request), _) => difference.is_mended(request.drop),
            (Self::Tables(tables), Mend::Table(table)) => tables.contains(table),
            (Self::Tables(_), _) => false,
        }
    }
}

impl DifferenceView {
    fn of(difference: Difference) -> Self {
        let (additive, drops) = (difference.is_mended(false), difference.is_mended(true));
        let (stops, reseed) = (difference.stops, matches!(difference.mend, Mend::Anew(_)));
        let sql = match difference.mend {
            Mend::Add(sql) | Mend::Drop(sql) | Mend::Rename(sql) => Some(sql),
            Mend::Table(_) | Mend::Anew(_) => None,
            Mend::Identity(sql) | Mend::Person(sql) => sql,
        };
        Self {
            subject: difference.subject,
            what: difference.what,
            sql,
            additive,
            drops: drops && !additive,
            stops,
            reseed,
        }
    }
}

/// Tells every difference, and writes down what is seen of both.
async fn compared(clients: [&Client; 2], zones: [&str; 2]) -> Result<Vec<Difference>, replicator::Error> {
    let [one, other] = drift::fingerprints(clients).await?;
    drift::remember(clients, [&one, &other]).await?;
    Ok(drift::compare(&one, &other, zones))
}

/// The differences between the schemas, the primary's first: sorted.
pub(super) async fn differences(databases: &Databases, zones: [&str; 2]) -> Result<Vec<Difference>, String> {
    let read = async {
        let [source, shadow] = databases.both(zones, Purpose::Schema).await?;
        compared([&source, &shadow], zones).await
    };
    let found = tokio::time::timeout(PATIENCE, read).await;
    let found =
        found.map_or_else(|_| Err(format!("no answer within {PATIENCE:?}")), |read| read.map_err(chain));
    if found.is_err() {
        for zone in zones {
            databases.forget(zone, Purpose::Schema).await;
        }
    }
    found
}

/// In what the shadow's schema is not its primary's yet, by table or type: their rows cannot be the same.
pub(super) async fn follows(
    databases: &Databases,
    streams: &Streams,
    zones: [&str; 2],
) -> Result<BTreeMap<String, String>, String> {
    // Whoever asks for definitions waits for the lock of the table that is being filled.
    if let Some(filling) = filling(streams) {
        return Err(filling);
    }
    let found = differences(databases, zones).await?;
    let stop = found.into_iter().filter(|difference| difference.stops);
    Ok(stop.map(|difference| (difference.subject, difference.what)).collect())
}

/// What seeds this table of the shadow's anew.
pub fn reseed_command(resource: &str, table: &str) -> String {
    format!("godwit reseed {resource} --table '{table}'")
}

/// They as they stand among the problems: the first few of those that stop a move, what is for a person before what may be followed.
pub(super) fn named(resource: &str, found: &[Difference]) -> Vec<String> {
    let mut found: Vec<_> = found.iter().filter(|difference| difference.stops).collect();
    found.sort_by_key(|difference| difference.is_mended(true));
    let more = found.len().saturating_sub(NAMED);
    let line = |difference: &&Difference| {
        let mend = match &difference.mend {
            Mend::Anew(table) => format!(" (mend: {})", reseed_command(resource, table)),
            _ => String::new(),
        };
        format!("{}: {}{mend}", difference.subject, difference.what)
    };
    let mut lines: Vec<String> = found.iter().take(NAMED).map(line).collect();
    if more > 0 {
        lines.push(format!(
            "the schemas differ in {more} more: godwit schema diff {resource} (godwit schema sync {resource} has the shadow follow)"
        ));
    }
    lines
}

/// What the shadow's server lacks for the service to go on there: roles that were made since the copy, what they may do, and the
/// like; and who could not log in there through the front. What cannot be read is told where the databases are examined one by one.
pub(super) async fn lacks(
    databases: &Databases,
    zones: [&str; 2],
    policy: &Policy,
    front: Option<&PostgresFront>,
) -> Vec<String> {
    let read = async {
        let [source, shadow] = databases.both(zones, Purpose::Schema).await?;
        // Roles that come through the front are tried, below; what others prove themselves by is their owners' to know.
        let found = super::preflight::compared(&source, &shadow, policy, Severity::Warning).await?;
        Ok::<_, replicator::Error>(super::preflight::worded(found, zones[1]))
    };
    let mut found = match tokio::time::timeout(PATIENCE, read).await {
        Ok(Ok(found)) => found,
        _ => Vec::new(),
    };
    if let Some(front) = front {
        found.extend(front.rehearse(zones[1], PATIENCE).await);
    }
    found
}

/// That another node has the shadow's lease, if it is so.
pub(super) async fn leases(databases: &Databases, zones: [&str; 2], resource: &str) -> Vec<String> {
    let read = async {
        let [source, shadow] = databases.both(zones, Purpose::Schema).await?;
        super::preflight::leases(&source, &shadow, resource).await
    };
    // Who cannot be asked now is asked again, and looked at for more.
    let found = tokio::time::timeout(PATIENCE, read).await.ok().and_then(Result::ok).flatten();
    super::preflight::worded(found.into_iter().collect(), zones[1])
}

/// Gives tables without a key a replica identity where the policy has it so. What was done, one line each.
pub(super) async fn identified(
    policy: &Policy,
    resource: &str,
    source: &Client,
) -> Result<Vec<String>, String> {
    if policy.keyless != KeylessTables::Identify {
        return Ok(Vec::new());
    }
    let done = drift::identify(source).await.map_err(chain)?;
    if !done.is_empty() {
        tracing::info!(resource, ?done, "tables without a key have a replica identity");
    }
    Ok(done)
}

/// The same, and notes it.
async fn identify(resource: &Resource, source: &Client, zone: &str, audit: &Audit) -> Result<(), String> {
    let done = identified(&resource.policy, &resource.name, source).await?;
    if !done.is_empty() {
        audit.note(Entry::Schema { resource: resource.name.clone(), zone: zone.to_owned(), done });
    }
    Ok(())
}

/// Gives tables without a key a replica identity where the policy has it so, and publishes those no more that lost their keys: the primary would
/// refuse to update and delete their rows. Not those that were not found `before`, which they then are: a key may be changed for another.
pub(super) async fn spare(
    resource: &Resource,
    databases: &Databases,
    zones: [&str; 2],
    before: &mut Vec<String>,
    streams: &Streams,
    audit: &Audit,
) -> Result<(), String> {
    let source = databases.get(zones[0], Purpose::Schema).await.map_err(chain)?;
    identify(resource, &source, zones[0], audit).await?;
    let found = drift::published_keyless(&source, &resource.name).await.map_err(chain)?;
    let (lost, new): (Vec<_>, Vec<_>) = found.into_iter().partition(|table| before.contains(table));
    *before = new;
    if !lost.is_empty() {
        // One that cannot be reached has rows of them that nobody knows: that is told when they have keys again.
        let shadow = databases.get(zones[1], Purpose::Schema).await.ok();
        drift::unpublish(&source, shadow.as_deref(), &resource.name, &lost).await.map_err(chain)?;
        tracing::warn!(resource = resource.name, tables = ?lost, "tables that lost their keys are published no more");
        let done = lost.iter().map(|table| format!("{table}: published no more, since it lost its key"));
        audit.note(Entry::Schema {
            resource: resource.name.clone(),
            zone: zones[0].to_owned(),
            done: done.collect(),
        });
    }
    // Last: where the shadow cannot be reached, the service's writes go on all the same.
    note_unpublished(resource, databases, zones, &source, streams).await
}

/// Writes down which of the shadow's tables are not published: whoever publishes one again does not bring back what was written meanwhile.
async fn note_unpublished(
    resource: &Resource,
    databases: &Databases,
    zones: [&str; 2],
    source: &Client,
    streams: &Streams,
) -> Result<(), String> {
    // One that is just being filled is published at the end.
    let Ok(_turn) = streams.schema().try_lock() else { return Ok(()) };
    let tables = drift::not_published(source, &resource.name).await.map_err(chain)?;
    if tables.is_empty() {
        return Ok(());
    }
    let shadow = databases.get(zones[1], Purpose::Schema).await.map_err(chain)?;
    drift::not_whole(source, &shadow, &tables).await.map_err(chain)
}

/// What changes when the schemas of these zones do, but for what is rarely changed; none: it cannot be told.
pub(super) async fn stamps(databases: &Databases, zones: [&str; 2]) -> Option<[(String, String); 2]> {
    let read = async {
        let [source, shadow] = databases.both(zones, Purpose::Schema).await?;
        Ok::<_, replicator::Error>([
            (zones[0].to_owned(), fence::schema_stamp(&source).await?),
            (zones[1].to_owned(), fence::schema_stamp(&shadow).await?),
        ])
    };
    tokio::time::timeout(PATIENCE, read).await.ok()?.ok()
}

/// Whose schema is to be like whose.
#[derive(Clone, Copy)]
pub(super) struct Pair<'a> {
    pub primary: &'a str,
    pub shadow: &'a str,
    /// Of the stream between them.
    pub generation: Generation,
}

impl<'a> Pair<'a> {
    fn of(view: &'a ResourceView) -> Self {
        Self { primary: &view.primary, shadow: &view.shadow, generation: Generation(view.generation) }
    }

    fn zones(self) -> [&'a str; 2] {
        [self.primary, self.shadow]
    }
}

struct Sides {
    source: Client,
    shadow: Client,
    differences: Vec<Difference>,
}

impl Sides {
    /// Whether the shadow has all that was written before the source was read, or will within a moment.
    async fn caught_up(&self, streams: &Streams, generation: Generation) -> Result<bool, Denied> {
        drift::mark(&self.source).await.map_err(chain).map_err(Denied::Conflict)?;
        let caught_up = streams.caught_up(generation, &self.source);
        Ok(matches!(tokio::time::timeout(CATCHES_UP, caught_up).await, Ok(Ok(()))))
    }
}

fn database<'a>(resource: &'a Resource, zone: &str) -> Result<&'a Database, String> {
    let database = resource.placements.get(zone).and_then(|placement| placement.postgres.as_ref());
    database.ok_or_else(|| format!("zone {zone} has no database in the configuration"))
}

async fn connect(resource: &Resource, zone: &str) -> Result<Client, String> {
    replicator::postgres::connect_unseen(&database(resource, zone)?.dsn, drift::APPLICATION)
        .await
        .map_err(chain)
}

/// The same where tables may be filled.
async fn connect_to_write(resource: &Resource, zone: &str) -> Result<Client, String> {
    let dsn = &database(resource, zone)?.dsn;
    replicator::postgres::connect_unseen_to_write(dsn, drift::APPLICATION).await.map_err(chain)
}

async fn read(resource: &Resource, pair: Pair<'_>) -> Result<Sides, Denied> {
    let read = async {
        let (source, shadow) =
            (connect(resource, pair.primary).await?, connect_to_write(resource, pair.shadow).await?);
        let differences = compared([&source, &shadow], pair.zones()).await.map_err(chain)?;
        Ok::<_, String>(Sides { source, shadow, differences })
    };
    let answer = tokio::time::timeout(PATIENCE, read).await;
    answer.unwrap_or_else(|_| Err(format!("no answer within {PATIENCE:?}"))).map_err(Denied::Conflict)
}

fn shown(
    resource: &Resource,
    pair: Pair<'_>,
    filling: Option<FillingView>,
    differences: Vec<Difference>,
    done: Vec<String>,
    waits: bool,
) -> SchemaView {
    SchemaView {
        filling,
        resource: resource.name.clone(),
        primary: pair.primary.to_owned(),
        shadow: pair.shadow.to_owned(),
        differences: differences.into_iter().map(DifferenceView::of).collect(),
        done,
        waits,
    }
}

/// Reads both schemas now, unless a table is being filled.
pub async fn diff(resource: &Resource, view: &ResourceView, streams: &Streams) -> Result<SchemaView, Denied> {
    let filling = FillingView::now(streams);
    // Whoever asks for definitions waits for the lock of the table that is being filled.
    let pair = Pair::of(view);
    let differences = if filling.is_some() { Vec::new() } else { read(resource, pair).await?.differences };
    Ok(shown(resource, pair, filling, differences, Vec::new(), false))
}

/// Why the shadow's schema must be left as it is, if it must.
pub(super) fn stands_in_the_way(view: &ResourceView) -> Option<String> {
    if let Some(id) = &view.migration
        && view.phase != "soaking"
    {
        return Some(format!("migration {id} is under way: wait for its end, or abort it"));
    }
    // What is made before a copy stands in its way.
    let settles = view.replication.copy.as_ref().is_some_and(|copy| copy.stage == "settling");
    (!copied(view)).then(|| if settles { SETTLES } else { NO_COPY }.into())
}

/// The shadow has a copy: a stream that begins again has one, or begins with it.
pub(super) fn copied(view: &ResourceView) -> bool {
    let finishes = view.replication.copy.as_ref().is_some_and(|copy| copy.stage == "finishing");
    !matches!(view.phase.as_str(), "" | "idle" | "preparing")
        && (finishes || matches!(view.replication.state.as_str(), "streaming" | "failed" | "connecting"))
}

/// Whether the shadow says itself that the stream has a copy there to go on from.
async fn has_copy(shadow: &Client, resource: &Resource, generation: Generation) -> Result<(), Denied> {
    // Where it was not prepared it cannot say.
    match streams::copied(shadow, &slot::slot_name(&resource.name, generation.0)).await {
        Ok(Some(true)) => Ok(()),
        _ => Err(Denied::Conflict(NO_COPY.into())),
    }
}

/// When a table was seeded anew by itself, so that it is not done again and again.
pub(super) struct Seeded(BTreeMap<String, Instant>);

impl Seeded {
    /// As far as the journal knows.
    pub(super) fn known(journal: &Journal, resource: &str) -> Self {
        let seeds = seeds::of(journal, resource).into_iter();
        Self(seeds.filter_map(|(table, when)| Some((table?, when))).collect())
    }

    /// The tables among these that are to be seeded anew by themselves.
    fn due(&mut self, policy: &Policy, differences: &[Difference], now: Instant) -> Vec<String> {
        self.0.retain(|_, when| now.saturating_duration_since(*when) < policy.cooldown);
        if policy.schema != SchemaFollows::All || policy.slot.reseed != Reseed::Auto {
            return Vec::new();
        }
        let anew = differences.iter().filter_map(|difference| match &difference.mend {
            Mend::Anew(table) if !self.0.contains_key(table) => Some(table.clone()),
            _ => None,
        });
        anew.collect::<BTreeSet<_>>().into_iter().collect()
    }
}

/// What came of it.
pub(super) enum Followed {
    /// Nothing was to be done, or can be yet.
    Nothing,
    /// Something was done.
    Some,
    /// This was done, and is as it was before: to do it again at once would be for nothing.
    InVain(String),
}

/// Does by itself what the policy says is to be done about these differences.
pub(super) async fn follow(
    resource: &Resource,
    view: &ResourceView,
    differences: &[Difference],
    seeded: &mut Seeded,
    streams: &Streams,
    audit: &Audit,
) -> Result<Followed, Denied> {
    let drop = resource.policy.schema == SchemaFollows::All;
    let now = crate::clock::monotonic();
    let anew = seeded.due(&resource.policy, differences, now);
    let wanted = resource.policy.schema != SchemaFollows::Manual
        && differences.iter().any(|difference| difference.is_mended(drop));
    if !wanted && anew.is_empty() || stands_in_the_way(view).is_some() || streams.filling().borrow().is_some()
    {
        return Ok(Followed::Nothing);
    }
    if !anew.is_empty() {
        let shadow = connect(resource, &view.shadow).await.map_err(Denied::Conflict)?;
        has_copy(&shadow, resource, Generation(view.generation)).await?;
        // What is written down now is filled below with what is missing.
        let tables = drift::seed_anew(&shadow, &anew).await.map_err(chain).map_err(Denied::Conflict)?;
        note_seeded(streams, &view.shadow, tables);
        tracing::info!(resource = resource.name, tables = ?anew, "tables of the shadow are seeded anew");
        for table in &anew {
            seeds::note(streams.journal(), &resource.name, Some(table));
        }
        seeded.0.extend(anew.into_iter().map(|table| (table, now)));
    }
    // Whoever else does it does what is wanted here.
    let Ok(_turn) = streams.schema().try_lock() else { return Ok(Followed::Nothing) };
    let (SchemaView { shadow, done, differences: left, .. }, failed) =
        bring_up(resource, Pair::of(view), streams, Wanted::Sync(SyncRequest { dry_run: false, drop }))
            .await?;
    // What stops no move is tried again when the schemas are looked at again.
    let failed = failed.filter(|_| left.iter().any(|left| left.stops));
    if done.is_empty() {
        return failed.map_or(Ok(Followed::Nothing), Err);
    }
    let again = left.iter().find(|left| {
        let before =
            differences.iter().find(|before| (&before.subject, &before.what) == (&left.subject, &left.what));
        let sql = left.sql.as_ref().is_some_and(|sql| done.contains(sql));
        sql && left.stops && before.is_some_and(|before| before.when == When::Now)
    });
    let again = again.map(|left| format!("{}: {}: it was made so, and is not", left.subject, left.what));
    audit.note(Entry::Schema { resource: resource.name.clone(), zone: shadow, done });
    match failed {
        Some(error) => Err(error),
        None => Ok(again.map_or(Followed::Some, Followed::InVain)),
    }
}

/// Makes on the shadow what only adds, and drops what only it has where that is asked for; tells what is left. What takes longer than a
/// client waits goes on without it.
pub async fn sync(
    resource: Arc<Resource>,
    view: Arc<ResourceView>,
    streams: Arc<Streams>,
    request: SyncRequest,
) -> Result<SchemaView, Denied> {
    if streams.filling().borrow().is_some() {
        return diff(&resource, &view, &streams).await;
    }
    answered(resource, view, streams, Wanted::Sync(request)).await
}

/// Copies these tables of the shadow's anew, beside the stream. What takes longer than a client waits goes on without it.
pub async fn seed_anew(
    resource: Arc<Resource>,
    view: Arc<ResourceView>,
    streams: Arc<Streams>,
    TablesRequest { tables }: TablesRequest,
) -> Result<SchemaView, Denied> {
    if tables.is_empty() {
        return Err(Denied::Conflict("no table is named".into()));
    }
    if let Some(why) = stands_in_the_way(&view).or_else(|| filling(&streams)) {
        return Err(Denied::Conflict(why));
    }
    let shadow = connect(&resource, &view.shadow).await.map_err(Denied::Conflict)?;
    has_copy(&shadow, &resource, Generation(view.generation)).await?;
    let tables = drift::seed_anew(&shadow, &tables).await.map_err(chain).map_err(Denied::Conflict)?;
    // From here on no move is made until they are whole.
    let names = tables.iter().map(|table| table.name.clone()).collect();
    note_seeded(&streams, &view.shadow, tables);
    answered(resource, view, streams, Wanted::Tables(names)).await
}

async fn answered(
    resource: Arc<Resource>,
    view: Arc<ResourceView>,
    streams: Arc<Streams>,
    wanted: Wanted,
) -> Result<SchemaView, Denied> {
    let work = {
        let (resource, view, streams) = (resource.clone(), view.clone(), streams.clone());
        tokio::spawn(async move {
            let _turn = streams.schema().lock().await;
            if let Some(why) = stands_in_the_way(&view) {
                return Err(Denied::Conflict(why));
            }
            bring_up(&resource, Pair::of(&view), &streams, wanted).await
        })
    };
    let Ok(done) = tokio::time::timeout(ANSWERS, work).await else {
        return diff(&resource, &view, &streams).await;
    };
    let (shown, failed) = done.map_err(|error| Denied::Conflict(format!("the sync ended: {error}")))??;
    failed.map_or(Ok(shown), Err)
}

/// The same; also what was done before something failed. Ends when the shadow is to be emptied.
async fn bring_up(
    resource: &Resource,
    pair: Pair<'_>,
    streams: &Streams,
    request: Wanted,
) -> Result<(SchemaView, Option<Denied>), Denied> {
    tokio::select! {
        done = brought_up(resource, pair, streams, request) => done,
        () = streams.to_be_emptied() => Err(Denied::Conflict(NO_COPY.into())),
    }
}

async fn brought_up(
    resource: &Resource,
    pair: Pair<'_>,
    streams: &Streams,
    request: Wanted,
) -> Result<(SchemaView, Option<Denied>), Denied> {
    let generation = pair.generation;
    let mut sides = read(resource, pair).await?;
    let only_said = matches!(request, Wanted::Sync(SyncRequest { dry_run: true, .. }));
    if only_said || sides.differences.is_empty() {
        let shown = shown(resource, pair, FillingView::now(streams), sides.differences, Vec::new(), false);
        return Ok((shown, None));
    }
    let database = database(resource, pair.primary).map_err(Denied::Conflict)?;
    let there = self::database(resource, pair.shadow).map_err(Denied::Conflict)?;
    let failure = streams.status(generation).and_then(|(.., status)| match status.phase {
        Phase::Failed { error, .. } => Some(error),
        _ => None,
    });
    let stands = failure.as_ref().is_some_and(|error| NEEDS.into_iter().any(|state| error.contains(state)));
    let (mut all, mut waits, mut failed, mut unaware) = (Vec::new(), false, None, None);
    // What belongs to a thing that was missing (its owner, who may use it) is seen when it is there.
    for round in 0..=ROUNDS {
        has_copy(&sides.shadow, resource, generation).await?;
        let wanted = || sides.differences.iter().filter(|left| request.wants(left));
        let waits_for =
            |left: &Difference| left.when == When::CaughtUp || left.when == When::Needed && !stands;
        // The stream may stand still at what need not wait: that is made first. Where nothing was, it stands still yet.
        let first = round == 0 && wanted().any(|left| !waits_for(left)) && wanted().any(waits_for);
        waits = wanted().any(waits_for)
            && (first
                || failure.is_some() && all.is_empty()
                || !sides.caught_up(streams, generation).await?);
        let now = wanted().filter(|left| !(waits && waits_for(left))).collect();
        let between = drift::Sides {
            source: (&database.dsn, &sides.source),
            shadow: (&there.dsn, &sides.shadow),
            resource: &resource.name,
            bin: database.bin.as_deref(),
            bytes_per_second: resource.policy.copy_rate.map(|rate| rate.0),
            filling: streams.filling(),
        };
        let anew = sides.differences.iter().filter(|left| matches!(left.mend, Mend::Anew(_)));
        let anew = anew.map(|left| left.subject.as_str()).collect();
        let synced = drift::sync(between, now, &anew).await;
        // What was found in their old rows says nothing of these.
        note_seeded(streams, pair.shadow, synced.filled);
        // New tables need the fence as well, whatever failed.
        let guarded = fence::guard(&sides.shadow, &resource.name, generation.0).await.map_err(chain);
        guarded.map_err(Denied::Conflict)?;
        let (done, old) = (synced.done, synced.unaware);
        failed = synced.failure;
        unaware = old.or(unaware);
        let idle = done.is_empty();
        if !idle {
            tracing::info!(
                resource = resource.name,
                ?done,
                "the shadow's schema was brought up to its primary's"
            );
        }
        let again = done.iter().any(|done| all.contains(done));
        all.extend(done);
        sides = read(resource, pair).await?;
        if idle && !first || again || !sides.differences.iter().any(|left| request.wants(left)) {
            break;
        }
    }
    let mut left = sides.differences.iter().filter(|left| request.wants(left));
    // What failed may have been done by the rest.
    let failed = failed.filter(|_| left.clone().any(|left| !(waits && left.when != When::Now)));
    waits &= left.any(|left| left.when != When::Now);
    let failed = unaware.or(failed).map(|error| Denied::Conflict(chain(error)));
    Ok((shown(resource, pair, FillingView::now(streams), sides.differences, all, waits), failed))
}

/// These tables of this zone's shadow are to be copied anew, or were.
fn note_seeded(streams: &Streams, shadow: &str, tables: Vec<Numbered>) {
    lock(&streams.seeded).extend(tables.into_iter().map(|table| (shadow.to_owned(), table)));
}

/// The policy has the shadow follow in each of these that stops a move, or the primary's table given what it needs for that.
pub(super) fn are_followed(policy: &Policy, differences: &[Difference]) -> bool {
    let drop = policy.schema == SchemaFollows::All;
    let mut stop = differences.iter().filter(|difference| difference.stops);
    let identified = |difference: &Difference| {
        policy.keyless == KeylessTables::Identify && matches!(difference.mend, Mend::Identity(_))
    };
    policy.schema != SchemaFollows::Manual
        && stop.all(|difference| difference.is_mended(drop) || identified(difference))
}

/// What the primary's schema was like when the shadow's was alike: where that was changed shortly before, the shadow follows now.
pub(super) async fn followed(
    resource: &Resource,
    pair: Pair<'_>,
    databases: &Databases,
    streams: &Streams,
    audit: &Audit,
) -> Result<String, String> {
    let (mut differ, mut why) = (String::new(), String::new());
    let compare = async || {
        // Before it is compared: whatever comes later changes it.
        let source = databases.get(pair.primary, Purpose::Control).await.map_err(chain)?;
        identify(resource, &source, pair.primary, audit).await?;
        let stamp = fence::schema_stamp(&source).await.map_err(chain)?;
        let found = differences(databases, pair.zones()).await;
        Ok::<_, String>((stamp, found.map_err(|why| format!("the schemas were not compared: {why}"))?))
    };
    // Where there are many tables, to read them takes longer than to follow.
    let begun = crate::clock::monotonic();
    let (mut stamp, mut found) = compare().await?;
    let follows = FOLLOWS + (begun.elapsed() * READINGS).min(PATIENCE);
    let wanted = SyncRequest { dry_run: false, drop: resource.policy.schema == SchemaFollows::All };
    let followed = async {
        loop {
            let named = named(&resource.name, &found);
            if named.is_empty() {
                return Ok(stamp);
            }
            differ = format!("the schemas differ: {}", named.join("; "));
            if !are_followed(&resource.policy, &found) {
                return Err(differ.clone());
            }
            let _turn = streams.schema().lock().await;
            let (done, failed) = match bring_up(resource, pair, streams, Wanted::Sync(wanted)).await {
                Ok((shown, failed)) => (shown.done, failed),
                Err(error) => (Vec::new(), Some(error)),
            };
            why = failed.map(|error| format!(": {error}")).unwrap_or_default();
            if done.is_empty() {
                tokio::time::sleep(AGAIN).await;
            } else {
                let (resource, zone) = (resource.name.clone(), pair.shadow.to_owned());
                audit.note(Entry::Schema { resource, zone, done });
            }
            (stamp, found) = compare().await?;
        }
    };
    let answer = tokio::time::timeout(follows, followed).await;
    answer.unwrap_or_else(|_| Err(format!("{differ}; the shadow did not follow within {follows:.0?}{why}")))
}
