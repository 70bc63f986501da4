//! The fence: stops every write to a database, and knows the position where writing stopped.
//!
//! | call      | triggers     | switch  | CONNECT    | epoch row                  | used for                                 |
//! |-----------|--------------|---------|------------|----------------------------|------------------------------------------|
//! | [`close`] | put          | refuses | taken away | generation, fenced, marker | the old primary, during a cutover        |
//! | [`guard`] | put          | refuses | given back | generation, fenced         | a shadow: only the applier writes        |
//! | [`open`]  | dropped, few | passes  | given back | generation, not fenced     | the new primary; the old one on an abort |
//!
//! Every trigger calls one function, the switch: refusing, it raises SQLSTATE 25006 in every session but those with
//! `session_replication_role = replica` (the applier). To turn it is one change of the catalog, however many tables there are (docs/adr/0032).
//! What [`close`] does for each table is a lock, the drain barrier: once it is held on a table, every earlier writer of that table has ended, and
//! a later one gets its own only with the news of what the switch is. Then it looks once more: a trigger that such a writer has switched off or
//! dropped is put again, and a table that came meanwhile gets one.
//! `default_transaction_read_only` is no fence (a session can turn it off), a lease is none either.
//!
//! Each call is one round trip: the session settings, the call and their reset go out together, and everything that
//! waits does so in the server (`install.sql`). A connection lost midway is harmless: the server finishes, and repeating the
//! call for the same generation continues or returns what was stored.
//!
//! Never fenced: DDL, `nextval`, large objects ([`crate::large_objects`]), and superusers that set `session_replication_role` themselves. Their
//! sessions are ended by [`close`]; what they write later shows as row changes after the marker.
//!
//! # Rights
//! A superuser, or a role with: ownership of (membership in the owner of) every user table and of the database,
//! `CREATE` on the database for [`install`], `pg_signal_backend`, `pg_read_all_stats`. Without superuser the sessions of
//! superusers cannot be ended: [`close`] then fails with 42501 unless `app_roles` leaves them out.

mod way;

pub use way::in_the_way;

use std::time::Duration;

use tokio_postgres::error::SqlState;
use tokio_postgres::types::PgLsn;
use tokio_postgres::{Client, SimpleQueryMessage, SimpleQueryRow};

use crate::error::Error;
use crate::large_objects;
use crate::lead::Candidate;
use crate::lsn::Lsn;
use crate::sequences::SequenceState;

/// How to close a database.
#[derive(Clone, Debug)]
pub struct FenceSpec {
    /// Resource name: key of the epoch row.
    pub resource: String,
    /// The new generation: content of the end marker.
    pub generation: u64,
    /// Id of the migration: only it can undo this fence, and once undone it fences no more.
    pub run: String,
    /// Who asks, where several nodes may lead: refused unless it holds the lease ([`crate::lead`]).
    pub holder: Option<String>,
    /// Roles of the application. Empty: every session and grant that is not Godwit's. Otherwise superusers outside
    /// this list keep their sessions.
    pub app_roles: Vec<String>,
    /// Bound on waiting for table locks, all tables together.
    pub lock_timeout: Duration,
    /// Bound on waiting for ended sessions to be gone.
    pub kill_timeout: Duration,
    /// From which transaction on large objects may have been written that the shadow does not have.
    pub large_objects: Option<u64>,
}

/// What a closed database reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FenceReport {
    /// Position of the end marker: every client write committed before it. A shadow that has applied up to here, and
    /// this generation's marker, has everything.
    pub marker: Lsn,
    /// User sequences, read after the last session ended: those that are not as [`prepare`] told, and those in [`Raised::sequences`]. All where
    /// this run was not prepared, or the server crashed since.
    pub sequences: Vec<SequenceState>,
    /// See [`schema_stamp`].
    pub schema: String,
    /// Tables that carry the trigger.
    pub tables: u32,
    /// Sessions ended by this call.
    pub terminated: u32,
    /// Large objects, after the last session ended.
    pub large_objects: large_objects::Left,
}

/// What is known as soon as writes are stopped, while sessions still end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Raised {
    /// Position of the end marker.
    pub marker: Lsn,
    /// As in [`FenceReport::sequences`]; a session that is not over yet may still take numbers.
    pub sequences: Vec<SequenceState>,
}

/// The epoch row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EpochState {
    /// Newest generation this database heard of.
    pub generation: u64,
    /// Triggers are in place.
    pub fenced: bool,
    /// End marker of this generation; only after [`close`].
    pub marker: Option<Lsn>,
    /// The migration that closed it.
    pub run: Option<String>,
}

impl EpochState {
    /// The old primary of the move that made `generation`, as [`close`] left it: with everything of the generation before.
    pub fn is_left_by(&self, generation: u64) -> bool {
        self.fenced && self.generation == generation && self.marker.is_some()
    }
}

/// Bound on lock waits of [`guard`] and [`open`], which have no budget of their own.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);

const INSTALL: &str = include_str!("install.sql");

/// Settings that could stop or mislead a fence, made harmless for the time of the call.
const SETTINGS: &[(&str, &str)] = &[
    ("statement_timeout", "0"),
    ("transaction_timeout", "0"),
    ("default_transaction_read_only", "off"),
    ("default_transaction_isolation", "read committed"),
    ("search_path", "pg_catalog"),
];

/// Creates or renews schema `godwit` (tables, functions) and the epoch row of `resource` at `generation`, not fenced.
///
/// Idempotent; an existing epoch row stays as it is. Safe when called by several nodes at once. One round trip.
pub async fn install(client: &Client, resource: &str, generation: u64) -> Result<(), Error> {
    let sql = format!(
        "{INSTALL}\nINSERT INTO godwit.epoch (resource, generation, fenced) VALUES ({}, {}, false) ON CONFLICT DO NOTHING",
        literal(resource),
        sql_generation(generation)?,
    );
    client.batch_execute(&sql).await.map_err(refused("cannot install schema godwit"))
}

/// The schema alone: no resource begins with it.
pub async fn install_schema(client: &Client) -> Result<(), Error> {
    client.batch_execute(INSTALL).await.map_err(refused("cannot install schema godwit"))
}

/// What [`close`] for `run` has to do for each table and sequence, done before anybody is held: where there are more than a hundred tables, triggers
/// that still let pass; and a note of how the sequences are, which it returns. The database must be open. Idempotent. One round trip.
///
/// A table that writers keep to themselves is left to [`close`].
pub async fn prepare(client: &Client, resource: &str, run: &str) -> Result<Vec<SequenceState>, Error> {
    let arguments = serde_json::json!({ "resource": resource, "run": run }).to_string();
    let sql = format!("CALL godwit.prepare_fence({}::jsonb, NULL)", literal(&arguments));
    let report = value(&call(client, &sql, "cannot prepare the fence").await?)?;
    parse_states(&report).ok_or_else(|| unexpected("prepare_fence", &report))
}

/// Drops the triggers that [`open`] has left where there were many, or somebody was reading: they let pass, but are called. Only in a database that
/// is open. A table whose readers leave no moment keeps it until the next call. Idempotent. One round trip.
pub async fn clear(client: &Client, resource: &str) -> Result<(), Error> {
    let sql = format!("CALL godwit.change_triggers({}, false)", literal(resource));
    call(client, &sql, "cannot drop the fence's triggers").await.map(drop)
}

/// Stops every client write and session, and emits the end marker.
///
/// In this order: refuse if a prepared transaction exists ([`Error::Unready`], naming it); take CONNECT away from PUBLIC
/// and the application's roles; in one transaction put the trigger on every table, set the epoch row and emit the marker;
/// end the application's sessions; read the sequences. One round trip. With hundreds of tables or sequences, [`prepare`] before it.
///
/// Idempotent per run: a repeated call returns the stored marker and the sequences as they are now.
/// # Errors
/// An older generation than the epoch row's, a generation that another run has fenced, a run that was undone:
/// [`Error::Fenced`]. A table that stayed locked (55P03, kind `Retry`, names the
/// holder) or any other failure before the marker: everything is as before, CONNECT given back. Sessions that do not
/// end in time (55006, kind `Retry`): the fence stays; repeat the call or [`open`].
///
/// Not cancel-safe in one respect: the server goes on when the future is dropped.
pub async fn close(client: &Client, spec: &FenceSpec) -> Result<FenceReport, Error> {
    close_telling(client, spec, |_| {}).await
}

/// [`close`], which also tells when writes are stopped, before sessions have ended: the marker can be awaited meanwhile.
pub async fn close_telling(
    client: &Client,
    spec: &FenceSpec,
    tell: impl FnOnce(Raised),
) -> Result<FenceReport, Error> {
    let arguments = serde_json::json!({
        "resource": spec.resource,
        "generation": sql_generation(spec.generation)?,
                "run": spec.run,
        "holder": spec.holder,
        "app_roles": spec.app_roles,
        "lock_timeout_ms": millis(spec.lock_timeout),
                "kill_timeout_ms": millis(spec.kill_timeout),
        "large_objects": spec.large_objects,
    });
    let arguments = literal(&arguments.to_string());
    let raise = format!("CALL godwit.close_fence({arguments}::jsonb, NULL)");
    let end = format!("SELECT godwit.end_sessions({arguments}::jsonb)");
    let context = "cannot close the fence";
    let raised = async {
        let report = value(&rows(client.simple_query(&raise).await.map_err(refused(context))?))?;
        let (raised, tables) = parse_raised(&report).ok_or_else(|| unexpected("close_fence", &report))?;
        let marker = raised.marker;
        tell(raised);
        Ok((marker, tables))
    };
    let ended = async {
        let report = value(&rows(client.simple_query(&end).await.map_err(refused(context))?))?;
        parse_ended(&report).ok_or_else(|| unexpected("end_sessions", &report))
    };
    let [set, reset] = settings();
    // The client writes each query when its future is first polled: `join!` sends all of them before it reads.
    let (set, raised, ended, reset) =
        tokio::join!(client.simple_query(&set), raised, ended, client.batch_execute(&reset));
    // Where the first half failed, the second only says so.
    let (marker, tables) = raised?;
    let ended = ended?;
    set.map_err(Error::database("cannot prepare the session"))?;
    reset.map_err(Error::database("cannot reset the session"))?;
    let Ended { sequences, schema, terminated, large_objects } = ended;
    Ok(FenceReport { marker, sequences, schema, tables, terminated, large_objects })
}

fn unexpected(function: &str, report: &serde_json::Value) -> Error {
    Error::Protocol(format!("godwit.{function} returned something unexpected: {report}"))
}

/// Puts the triggers only, and gives CONNECT back: what a shadow has. Call it again after tables were created.
///
/// Idempotent. One round trip. An older generation than the epoch row's: [`Error::Fenced`].
pub async fn guard(client: &Client, resource: &str, generation: u64) -> Result<(), Error> {
    guard_as(client, resource, generation, Of::default()).await
}

/// [`guard`] of a shadow that takes over by `run`: of its primary's next generation, until it is opened. `holder`: the lease of the node that leads,
/// where there are several.
///
/// # Errors
/// Also [`Error::Fenced`] where another node leads by now, it was opened as this generation already, or the run was undone ([`forestall`]).
pub async fn guard_to_take_over(
    client: &Client,
    resource: &str,
    generation: u64,
    run: &str,
    holder: Option<&str>,
) -> Result<(), Error> {
    let of = Of { run: Some(run), takes_over: true, holder, ..Of::default() };
    guard_as(client, resource, generation, of).await
}

async fn guard_as(client: &Client, resource: &str, generation: u64, of: Of<'_>) -> Result<(), Error> {
    let sql = format!("SELECT godwit.guard_fence({}::jsonb)", arguments(resource, generation, of)?);
    call(client, &sql, "cannot guard the database").await.map(drop)
}

/// Lets everybody write, gives CONNECT back and sets the epoch row to `generation`, not fenced.
///
/// Drops the triggers, unless there are more than a hundred; one of a table that a reader holds stays too (dropping needs an exclusive lock):
/// [`clear`] drops them. Idempotent. One round trip.
///
/// An older generation than the epoch row's is [`Error::Fenced`], but for one case: undoing the [`close`] of the run `undo`
/// for `generation + 1`, which is an aborted cutover. Whether that cutover was committed is for the caller's journal to
/// know. A run that was undone can no longer [`close`], however late its call comes.
pub async fn open(client: &Client, resource: &str, generation: u64, undo: Option<&str>) -> Result<(), Error> {
    open_as(client, resource, generation, Of { undo, moved: undo.is_none(), ..Of::default() }).await
}

/// [`open`] after the commit of `run`, unless another node has made sure that it is undone ([`forestall`]): then [`Error::Fenced`]. `end`: the
/// marker, where what the generation before wrote ends; none: its primary is lost. `leads`: who moves, where several nodes may lead; a lease that
/// another has here ([`crate::lead`]) is that one's in the same transaction.
pub async fn open_committed(
    client: &Client,
    resource: &str,
    generation: u64,
    run: &str,
    end: Option<Lsn>,
    leads: Option<&Candidate>,
) -> Result<(), Error> {
    open_as(
        client,
        resource,
        generation,
        Of {
            run: Some(run),
            moved: true,
            taken_over: end.is_none(),
            end,
            holder: leads.map(|node| &*node.id),
            lease: leads.map(|node| (&*node.node, node.within)),
            ..Of::default()
        },
    )
    .await
}

async fn open_as(client: &Client, resource: &str, generation: u64, of: Of<'_>) -> Result<(), Error> {
    let sql = format!("SELECT godwit.open_fence({}::jsonb)", arguments(resource, generation, of)?);
    call(client, &sql, "cannot open the fence").await.map(drop)
}

/// Makes sure in the shadow's database that `run`, which is to commit `generation`, never opens it: for a node that does not know whether
/// that was committed. True: it can be undone in the other database, and by then nothing was ever written here. False: this one is at that
/// generation already. Idempotent. One round trip.
pub async fn forestall(client: &Client, resource: &str, generation: u64, run: &str) -> Result<bool, Error> {
    let of = Of { run: Some(run), ..Of::default() };
    let sql = format!("SELECT godwit.forestall({}::jsonb)", arguments(resource, generation, of)?);
    let found = call(client, &sql, "cannot forestall a migration").await?;
    Ok(found.first().and_then(|row| row.get(0)) == Some("t"))
}

/// Whether this database refuses what `run` sends: it was undone, or [`forestall`]ed.
pub async fn is_undone(client: &Client, run: &str) -> Result<bool, Error> {
    let sql = "SELECT EXISTS (SELECT FROM godwit.undone WHERE run = $1)";
    let found = client.query_one(sql, &[&run]).await;
    found.map(|row| row.get(0)).map_err(Error::database("ask whether a migration was undone"))
}

/// Whether clients may write to this database since it took over from a lost primary.
///
/// # Errors
/// [`Error::Database`].
pub async fn took_over(client: &Client, resource: &str) -> Result<bool, Error> {
    let sql = "SELECT EXISTS (SELECT FROM godwit.epoch e JOIN godwit.change_positions p USING (resource, generation) \
               WHERE e.resource = $1 AND NOT e.fenced AND p.start IS NOT NULL AND p.before_zone IS NULL AND p.before_end IS NULL)";
    match client.query_one(sql, &[&resource]).await {
        Ok(row) => Ok(row.get(0)),
        Err(error) if not_installed(&error) => Ok(false),
        Err(error) => Err(Error::database("ask whether a shadow took over")(error)),
    }
}

/// Where the log of this server was when it was opened as the primary of `generation`: everything that clients have written in that comes
/// after. None: an older version opened it, or nobody has. Needs schema `godwit`.
///
/// # Errors
/// [`Error::Database`].
pub async fn opened(client: &Client, resource: &str, generation: u64) -> Result<Option<Lsn>, Error> {
    let sql = format!(
        "SELECT at FROM godwit.opened WHERE resource = {} AND generation = {}",
        literal(resource),
        sql_generation(generation)?
    );
    let row = client.query_opt(&sql, &[]).await;
    let row = row.map_err(Error::database("ask where a primary was opened"))?;
    Ok(row.map(|row| Lsn(row.get::<_, PgLsn>(0).into())))
}

/// The slots of the way back, whose stream is of `generation`, belong to `run`, which began at `begun_ms` (Unix milliseconds), unless a later run
/// of the same node (`holder`, see [`FenceSpec::holder`]) has them: call it before they are looked for or made.
///
/// # Errors
/// [`Error::Fenced`] where another node leads, or the database is at that generation already: the slots may be of its stream.
pub async fn claim_way_back(
    client: &Client,
    resource: &str,
    generation: u64,
    (run, begun_ms): (&str, u64),
    holder: Option<&str>,
) -> Result<(), Error> {
    let generation = sql_generation(generation)?;
    let begun_ms = i64::try_from(begun_ms).unwrap_or(i64::MAX);
    let arguments = serde_json::json!({
        "resource": resource, "generation": generation, "run": run, "begun_ms": begun_ms, "holder": holder,
    });
    let sql = format!("SELECT godwit.claim_way_back({}::jsonb)", literal(&arguments.to_string()));
    call(client, &sql, "cannot claim the way back").await.map(drop)
}

/// Drops `slots` of `generation`, which no stream reads, if they still belong to `run`; false: a later run has them, or clients write to this
/// database since that generation. One that is still being made goes with the session that makes it.
///
/// # Errors
/// [`Error::Server`] where one is still in use: it is there, and may be tried again.
pub async fn drop_way_back(
    client: &Client,
    resource: &str,
    generation: u64,
    run: &str,
    slots: &[String],
) -> Result<bool, Error> {
    let generation = sql_generation(generation)?;
    let arguments =
        serde_json::json!({ "resource": resource, "generation": generation, "run": run, "slots": slots });
    drop_slots(client, &arguments).await
}

/// Drops `slots` of ways back whoever made them, for the node that leads (`holder`, see [`FenceSpec::holder`]) and that knows of no run at
/// `generation`.
///
/// # Errors
/// [`Error::Fenced`] where another node leads, or the database is at a later generation: the slots may be of its stream. [`Error::Server`] as for
/// [`drop_way_back`].
pub async fn drop_left_over(
    client: &Client,
    resource: &str,
    generation: u64,
    holder: Option<&str>,
    slots: &[String],
) -> Result<(), Error> {
    let generation = sql_generation(generation)?;
    let arguments = serde_json::json!({ "resource": resource, "generation": generation, "holder": holder, "slots": slots });
    drop_slots(client, &arguments).await.map(drop)
}

async fn drop_slots(client: &Client, arguments: &serde_json::Value) -> Result<bool, Error> {
    let sql = format!("SELECT godwit.drop_way_back({}::jsonb)", literal(&arguments.to_string()));
    let found = call(client, &sql, "cannot drop the slots of the way back").await?;
    Ok(found.first().and_then(|row| row.get(0)) == Some("t"))
}

/// A stamp of the schema: another one after any DDL on user tables, their indexes and constraints, enums, or publications. What it
/// says means nothing by itself.
pub async fn schema_stamp(client: &Client) -> Result<String, Error> {
    let found = call(client, "SELECT godwit.schema_stamp()", "cannot read the schema's stamp").await?;
    let stamp = found.first().and_then(|row| row.get(0));
    stamp.map(str::to_owned).ok_or_else(|| Error::Protocol("the server returned no stamp".into()))
}

/// The epoch row; `None` when Godwit was never installed for this resource.
pub async fn state(client: &Client, resource: &str) -> Result<Option<EpochState>, Error> {
    let sql = format!(
        "SELECT generation, fenced, marker_lsn, run FROM godwit.epoch WHERE resource = {}",
        literal(resource)
    );
    let rows = match client.simple_query(&sql).await {
        Ok(messages) => rows(messages),
        Err(error) if not_installed(&error) => return Ok(None),
        Err(error) => return Err(refused("cannot read the epoch row")(error)),
    };
    let Some(row) = rows.first() else { return Ok(None) };
    let parsed = || {
        Some(EpochState {
            generation: row.get(0)?.parse().ok()?,
            fenced: row.get(1)? == "t",
            marker: row.get(2).map(str::parse).transpose().ok()?,
            run: row.get(3).map(str::to_owned),
        })
    };
    parsed().map(Some).ok_or_else(|| Error::Protocol("the epoch row cannot be read".into()))
}

/// Another resource that a database remembers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtherResource {
    /// Its name.
    pub name: String,
    /// Newest generation that the database heard of.
    pub generation: u64,
    /// Only its applier may write.
    pub fenced: bool,
}

/// Resources of other names that have fenced this database or moved here, the newest generation first; none where it knows `resource`, or Godwit
/// was never installed.
///
/// # Errors
/// [`Error::Database`].
pub async fn others(client: &Client, resource: &str) -> Result<Vec<OtherResource>, Error> {
    let sql = "SELECT resource, generation, fenced FROM godwit.epoch WHERE (fenced OR generation > 1) \
               AND NOT EXISTS (SELECT FROM godwit.epoch WHERE resource = $1) ORDER BY generation DESC, resource";
    let found = match client.query(sql, &[&resource]).await {
        Ok(found) => found,
        Err(error) if not_installed(&error) => return Ok(Vec::new()),
        Err(error) => return Err(Error::database("ask which resources a database knows")(error)),
    };
    let other = |row: &tokio_postgres::Row| OtherResource {
        name: row.get(0),
        generation: row.get::<_, i64>(1).unsigned_abs(),
        fenced: row.get(2),
    };
    Ok(found.iter().map(other).collect())
}

/// Whether a table of Godwit's is missing, or all of its schema.
pub(crate) fn not_installed(error: &tokio_postgres::Error) -> bool {
    matches!(error.code(), Some(&SqlState::UNDEFINED_TABLE | &SqlState::INVALID_SCHEMA_NAME))
}

/// What sets [`SETTINGS`], and what resets them.
fn settings() -> [String; 2] {
    let names: Vec<&str> = SETTINGS.iter().map(|(name, _)| *name).collect();
    let values: Vec<String> =
        SETTINGS.iter().map(|(name, value)| format!("({}, {})", literal(name), literal(value))).collect();
    let set = format!(
        "SELECT pg_catalog.set_config(n, v, false) FROM (VALUES {}) AS s (n, v) \
         WHERE pg_catalog.current_setting(n, true) IS NOT NULL",
        values.join(", ")
    );
    let reset = format!(
        "DO $$ DECLARE n text; BEGIN FOREACH n IN ARRAY '{{{}}}'::text[] LOOP \
         IF pg_catalog.current_setting(n, true) IS NOT NULL THEN EXECUTE 'RESET ' || n; END IF; END LOOP; END $$",
        names.join(",")
    );
    [set, reset]
}

/// Sends settings, `sql` and the reset in one go, and waits for all three.
pub(crate) async fn call(client: &Client, sql: &str, context: &str) -> Result<Vec<SimpleQueryRow>, Error> {
    let [set, reset] = settings();
    let (set, called, reset) =
        tokio::join!(client.simple_query(&set), client.simple_query(sql), client.batch_execute(&reset));
    let called = called.map_err(refused(context))?;
    set.map_err(Error::database("cannot prepare the session"))?;
    reset.map_err(Error::database("cannot reset the session"))?;
    Ok(rows(called))
}

/// An error with the server's own words in its message; `ZG001` and `ZG002` are raised by `install.sql`.
pub(crate) fn refused(context: &str) -> impl FnOnce(tokio_postgres::Error) -> Error + '_ {
    move |error| {
        let Some(server) = error.as_db_error() else { return Error::database(context)(error) };
        let message = match server.detail() {
            Some(detail) if !detail.is_empty() => format!("{} ({detail})", server.message()),
            _ => server.message().to_owned(),
        };
        match server.code().code() {
            "ZG001" => Error::Unready(format!("{context}: {message}")),
            "ZG002" => Error::Fenced(message),
            sqlstate => Error::Server { context: context.into(), sqlstate: sqlstate.into(), message },
        }
    }
}

pub(crate) fn rows(messages: Vec<SimpleQueryMessage>) -> Vec<SimpleQueryRow> {
    messages
        .into_iter()
        .filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        })
        .collect()
}

pub(crate) fn literal(text: &str) -> String {
    postgres_protocol::escape::escape_literal(text)
}

/// What a call is of, besides its generation.
#[derive(Clone, Copy, Default)]
struct Of<'a> {
    run: Option<&'a str>,
    undo: Option<&'a str>,
    moved: bool,
    taken_over: bool,
    takes_over: bool,
    holder: Option<&'a str>,
    /// The holder's name, and for how long it is to lead.
    lease: Option<(&'a str, Duration)>,
    end: Option<Lsn>,
}

fn arguments(resource: &str, generation: u64, of: Of<'_>) -> Result<String, Error> {
    let arguments = serde_json::json!({
        "resource": resource,
        "generation": sql_generation(generation)?,
        "run": of.run,
        "undo": of.undo,
        "moved": of.moved,
        "taken_over": of.taken_over,
        "takes_over": of.takes_over,
        "holder": of.holder,
        "node": of.lease.map(|(node, _)| node),
        "lease_ms": of.lease.map(|(_, within)| millis(within)),
        "before_end": of.end.map(|end| end.to_string()),
        "lock_timeout_ms": millis(LOCK_TIMEOUT),
    });
    Ok(literal(&arguments.to_string()))
}

/// SQL's bigint is signed.
pub(crate) fn sql_generation(generation: u64) -> Result<i64, Error> {
    i64::try_from(generation).map_err(|_| Error::Protocol(format!("generation {generation} is out of range")))
}

/// Whole milliseconds that PostgreSQL accepts as a timeout; never 0, which would mean none.
fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).clamp(1, i32::MAX as u64)
}

fn value(rows: &[SimpleQueryRow]) -> Result<serde_json::Value, Error> {
    let text = rows.first().and_then(|row| row.get(0));
    let text = text.ok_or_else(|| Error::Protocol("the server returned no report".into()))?;
    serde_json::from_str(text).map_err(|error| Error::Protocol(format!("report is not JSON: {error}")))
}

fn parse_raised(report: &serde_json::Value) -> Option<(Raised, u32)> {
    let marker = report.get("marker")?.as_str()?.parse().ok()?;
    let tables = u32::try_from(report.get("tables")?.as_u64()?).ok()?;
    Some((Raised { marker, sequences: parse_sequences(report)? }, tables))
}

/// What is known once nobody is connected any more.
#[derive(Debug, PartialEq, Eq)]
struct Ended {
    sequences: Vec<SequenceState>,
    schema: String,
    terminated: u32,
    large_objects: large_objects::Left,
}

fn parse_ended(report: &serde_json::Value) -> Option<Ended> {
    let terminated = u32::try_from(report.get("terminated")?.as_u64()?).ok()?;
    let large_objects = serde_json::from_value(report.get("large_objects")?.clone()).ok()?;
    let schema = report.get("schema")?.as_str()?.to_owned();
    Some(Ended { sequences: parse_sequences(report)?, schema, terminated, large_objects })
}

fn parse_sequences(report: &serde_json::Value) -> Option<Vec<SequenceState>> {
    parse_states(report.get("sequences")?)
}

fn parse_states(states: &serde_json::Value) -> Option<Vec<SequenceState>> {
    states.as_array()?.iter().map(SequenceState::from_json).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_read_whole_or_not_at_all() {
        let text = r#"{"marker": "16/B374D848", "tables": 3, "terminated": 2, "schema": "1/7",
                        "large_objects": {"objects": 2, "written": 1},
            "sequences": [{"schema": "public", "name": "s", "last_value": -9223372036854775808, "is_called": false}]}"#;
        let json: serde_json::Value = serde_json::from_str(text).expect("valid");
        let (raised, tables) = parse_raised(&json).expect("complete");
        assert_eq!((raised.marker.to_string().as_str(), tables), ("16/B374D848", 3));
        assert_eq!(raised.sequences[0].last_value, i64::MIN);
        let large_objects = large_objects::Left { objects: 2, written: Some(1) };
        assert_eq!(
            parse_ended(&json),
            Some(Ended { sequences: raised.sequences, schema: "1/7".into(), terminated: 2, large_objects })
        );
        for key in ["marker", "tables", "terminated", "schema", "sequences", "large_objects"] {
            let mut less = json.clone();
            less.as_object_mut().expect("object").remove(key);
            let raised = ["marker", "tables", "sequences"].contains(&key);
            assert_eq!(parse_raised(&less).is_none(), raised, "without {key}");
            let ended = ["terminated", "schema", "sequences", "large_objects"].contains(&key);
            assert_eq!(parse_ended(&less).is_none(), ended, "without {key}");
        }
    }

    #[test]
    fn timeouts_are_never_zero() {
        assert_eq!(millis(Duration::ZERO), 1);
        assert_eq!(millis(Duration::from_millis(250)), 250);
        assert_eq!(millis(Duration::MAX), 2_147_483_647);
    }
}
