//! Change streams of others (change data capture, subscriptions) that go with the primary: their slots, and their positions.
//!
//! A slot and the positions in it are one server's. Where the primary moves, a slot of the same name is made on the shadow before the move, and
//! what opens it notes where the old primary's changes end (the fence's marker) and its own begin. Clients see one row of numbers that only grows:
//! a server's own, and so much more ([`Positions::ahead`]).

use std::collections::BTreeSet;
use std::fmt::Write as _;

use tokio_postgres::types::{PgLsn, Type};
use tokio_postgres::{Client, Row};

use crate::beside::Sides;
use crate::drift::{self, Mend};
use crate::error::Error;
use crate::fence::{self, literal, not_installed, refused, sql_generation};
use crate::lsn::Lsn;
use crate::postgres::quote_ident;
use crate::schema::server_version;

/// Of a slot of the primary of resource $1, see [`Stream::anew`].
const ANEW: &str =
    "coalesce(confirmed_flush_lsn > (SELECT start FROM godwit.change_positions WHERE resource = $1), false)";

/// How the primary of a generation numbers changes for clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Positions {
    /// Positions that clients see are its own and so much more.
    pub ahead: u64,
    /// Where the generation before ended; none in the first one, and where its primary was lost.
    pub before: Option<Before>,
}

/// The end of what another server has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Before {
    /// The zone whose database was primary.
    pub zone: String,
    /// What clients see there is its own and so much more.
    pub ahead: u64,
    /// The marker, as that server numbers it: of what was committed after it nothing is the service's.
    pub end: Lsn,
    /// From where on the primary of now has the changes, as it numbers them.
    pub start: Lsn,
}

impl Before {
    /// The end as clients see it.
    pub fn end_for_clients(&self) -> u64 {
        self.end.0 + self.ahead
    }
}

/// A slot that somebody reads through the front.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stream {
    /// Its output plugin.
    pub plugin: String,
    /// What was written before the last move has been read to its end.
    pub passed: bool,
    /// It is past its beginning at the primary: so it was made there since the last move, or its reader has passed that. Nobody confirms anything of
    /// the primary's before all of the old one's.
    pub anew: bool,
}

/// The positions of a primary; where Godwit was never installed, the server's own.
pub async fn positions(client: &Client, resource: &str) -> Result<Positions, Error> {
    // Whichever generation its epoch row tells of: it has heard of the next one since it was fenced.
    let sql = "SELECT ahead, before_zone, before_ahead, before_end, start FROM godwit.change_positions \
               WHERE resource = $1 AND start IS NOT NULL";
    let row = match client.query_opt(sql, &[&resource]).await {
        Err(error) if not_installed(&error) => None,
        found => found.map_err(Error::database("read the positions of change streams"))?,
    };
    let Some(row) = row else { return Ok(Positions { ahead: 0, before: None }) };
    let read = || {
        let number = |at: usize| row.try_get::<_, i64>(at).map(i64::cast_unsigned);
        let lsn = |at: usize| row.try_get::<_, PgLsn>(at).map(|lsn| Lsn(lsn.into()));
        let zone: Option<String> = row.try_get(1)?;
        let before = zone.map(|zone| Ok(Before { zone, ahead: number(2)?, end: lsn(3)?, start: lsn(4)? }));
        Ok(Positions { ahead: number(0)?, before: before.transpose()? })
    };
    read().map_err(Error::database("read the positions of change streams"))
}

/// Somebody reads this slot of the primary through the front: it goes with the primary from now on. None: there is no such slot. Prepares the
/// database for it where that is not done.
pub async fn register(
    client: &Client,
    resource: &str,
    slot: &str,
    publications: &[String],
) -> Result<Option<Stream>, Error> {
    let sql = "WITH slot AS ( \
                 SELECT plugin::text, temporary, confirmed_flush_lsn FROM pg_catalog.pg_replication_slots \
                 WHERE slot_name = $2::text AND slot_type = 'logical' AND database = pg_catalog.current_database() \
               ), known AS ( \
                 INSERT INTO godwit.change_streams AS s (resource, slot, publications) \
                 SELECT $1, $2, $3 FROM slot WHERE NOT temporary AND $2 !~ '^godwit_' \
                 ON CONFLICT (resource, slot) DO UPDATE SET publications = EXCLUDED.publications RETURNING passed \
               ) SELECT plugin, coalesce((SELECT passed FROM known), true), \
                   {{anew}} FROM slot"
        .replace("{{anew}}", ANEW);
    let mut found = client.query_opt(&sql, &[&resource, &slot, &publications]).await;
    if found.as_ref().is_err_and(not_installed) {
        fence::install_schema(client).await?;
        found = client.query_opt(&sql, &[&resource, &slot, &publications]).await;
    }
    let context = || format!("look at slot {slot}");
    let Some(row) = found.map_err(Error::database(context()))? else { return Ok(None) };
    let stream = || Ok(Stream { plugin: row.try_get(0)?, passed: row.try_get(1)?, anew: row.try_get(2)? });
    stream().map(Some).map_err(Error::database(context()))
}

/// Drops at the old primary the slots of which what it wrote as one is read to its end; those that are still to be read there. A slot that the
/// primary has no more nobody reads, and [one that is past its beginning](Stream::anew) there needs nothing of the old one.
pub async fn settle(primary: &Client, old: &Client, resource: &str) -> Result<Vec<String>, Error> {
    let Some(before) = positions(primary, resource).await?.before else { return Ok(Vec::new()) };
    let sql = "SELECT s.slot::text, r.slot_name IS NULL OR r.confirmed_flush_lsn > $2::text::pg_lsn FROM godwit.change_streams s \
               LEFT JOIN pg_catalog.pg_replication_slots r ON r.slot_name = s.slot \
               WHERE s.resource = $1 AND NOT s.passed ORDER BY s.slot";
    let rows = primary.query(sql, &[&resource, &before.start.to_string()]).await;
    let rows = rows.map_err(Error::database("read the change streams"))?;
    let mut unread = Vec::new();
    for row in rows {
        let (slot, anew): (String, Option<bool>) = (row.get(0), row.get(1));
        let sql = "SELECT active_pid IS NULL, confirmed_flush_lsn >= $2::text::pg_lsn FROM pg_catalog.pg_replication_slots \
                   WHERE slot_name = $1 AND slot_type = 'logical' AND database = pg_catalog.current_database()";
        let read = old.query_opt(sql, &[&slot, &before.end.to_string()]).await;
        let read = read.map_err(Error::database(format!("look at slot {slot} of the old primary")))?;
        // One that is in somebody's hands could not be dropped.
        let free = read.as_ref().is_none_or(|row| row.get(0));
        let read = read.and_then(|row| row.get(1)).unwrap_or(false);
        if !free || anew != Some(true) && !read {
            unread.push(slot);
            continue;
        }
        // Noted first: one that is gone and was not read is a gap.
        let passed = "UPDATE godwit.change_streams SET passed = true WHERE resource = $1 AND slot = $2";
        let noted = primary.execute(passed, &[&resource, &slot]).await;
        noted.map_err(Error::database("note a change stream"))?;
        drop_slot(old, &slot).await?;
    }
    Ok(unread)
}

/// Why the next move waits for the readers by these slots; none: there are none.
pub fn unread(slots: &[String]) -> Option<String> {
    let first = slots.first()?;
    Some(format!(
        "replication slot {} is not read up to the last move: let its reader catch up through the front, or drop it on the primary \
         (SELECT pg_drop_replication_slot({}))",
        slots.join(", "),
        literal(first)
    ))
}

async fn drop_slot(client: &Client, slot: &str) -> Result<(), Error> {
    let sql = "SELECT pg_drop_replication_slot(slot_name) FROM pg_catalog.pg_replication_slots \
               WHERE slot_name = $1 AND slot_type = 'logical' AND database = pg_catalog.current_database() AND active_pid IS NULL";
    client.execute(sql, &[&slot]).await.map(drop).map_err(Error::database(format!("drop slot {slot}")))
}

/// The client keeps all that the old primary wrote as one, which its slot there need not have been told.
pub async fn advance(old: &Client, slot: &str, end: Lsn) -> Result<(), Error> {
    let sql = "SELECT pg_catalog.pg_replication_slot_advance(slot_name, $2::text::pg_lsn) FROM pg_catalog.pg_replication_slots \
               WHERE slot_name = $1 AND active_pid IS NULL AND confirmed_flush_lsn < $2::text::pg_lsn";
    let advanced = old.execute(sql, &[&slot, &end.to_string()]).await;
    advanced.map(drop).map_err(Error::database(format!("advance slot {slot}")))
}

/// How far a reader of changes is, at the primary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reader {
    /// Its slot.
    pub slot: String,
    /// Somebody reads by it.
    pub active: bool,
    /// WAL that was written since what it has confirmed.
    pub behind_bytes: u64,
    /// See [`Stream`].
    pub passed: bool,
}

/// Who reads changes of this database's resource through the front; none, where Godwit was never installed. One round trip.
pub async fn readers(client: &Client, resource: &str) -> Result<Vec<Reader>, Error> {
    let sql = "SELECT s.slot::text, r.active, \
                 s.passed OR {{anew}}, \
                 greatest(pg_catalog.pg_wal_lsn_diff(CASE WHEN NOT pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_current_wal_lsn() END, \
                   r.confirmed_flush_lsn), 0)::bigint \
               FROM godwit.change_streams s JOIN pg_catalog.pg_replication_slots r ON r.slot_name = s.slot \
               WHERE s.resource = $1 AND r.slot_type = 'logical' AND r.database = pg_catalog.current_database() ORDER BY s.slot"
        .replace("{{anew}}", ANEW);
    let context = "look at the readers of changes";
    let rows = match client.query_typed(&sql, &[(&resource, Type::TEXT)]).await {
        Ok(rows) => rows,
        Err(error) if not_installed(&error) => return Ok(Vec::new()),
        Err(error) => return Err(Error::database(context)(error)),
    };
    let reader = |row: &Row| {
        let behind: Option<i64> = row.try_get(3)?;
        let behind_bytes = behind.unwrap_or_default().unsigned_abs();
        Ok(Reader { slot: row.try_get(0)?, active: row.try_get(1)?, passed: row.try_get(2)?, behind_bytes })
    };
    rows.iter().map(reader).collect::<Result<_, _>>().map_err(Error::database(context))
}

/// Slots that go with the primary; none, where Godwit was never installed.
pub async fn carried(client: &Client) -> Result<Vec<String>, Error> {
    match client.query("SELECT slot::text FROM godwit.change_streams", &[]).await {
        Ok(rows) => Ok(rows.iter().map(|row| row.get(0)).collect()),
        Err(error) if not_installed(&error) => Ok(Vec::new()),
        Err(error) => Err(Error::database("read the change streams")(error)),
    }
}

/// Makes on the shadow, before a move to it, the slots that are read at the primary of `zone`; where the move is undone they go with the way back
/// ([`crate::fence::drop_way_back`]). Idempotent.
///
/// # Errors
/// [`Error::Unready`], in words: a slot that is not read to the end of what it had at the last move, a publication that cannot be made, a slot of
/// somebody else's by that name.
pub async fn carry(sides: Sides<'_>, zone: &str) -> Result<(), Error> {
    let Sides { source, shadow, resource, generation } = sides;
    let unready = |what: String| Err(Error::Unready(what));
    if let Some(unread) = unread(&settle(source, shadow, resource).await?) {
        return Err(Error::Unready(unread));
    }
    let sql = "SELECT s.slot::text, r.plugin::text, s.publications, r.two_phase, \
                 coalesce((to_jsonb(r) ->> 'failover')::boolean, false) FROM godwit.change_streams s \
               JOIN pg_catalog.pg_replication_slots r ON r.slot_name = s.slot AND r.database = pg_catalog.current_database() \
               WHERE s.resource = $1 AND r.slot_type = 'logical' AND NOT r.temporary ORDER BY s.slot";
    let slots = source.query(sql, &[&resource]).await.map_err(Error::database("read the change streams"))?;
    let ahead = positions(source, resource).await?.ahead;
    if slots.is_empty() && ahead == 0 {
        return Ok(());
    }
    let names: Vec<String> = slots.iter().map(|row| row.get(0)).collect();
    let known = carried(shadow).await?;
    let sql =
        "SELECT slot_name::text FROM pg_catalog.pg_replication_slots WHERE slot_name = ANY ($1::text[])";
    let taken = shadow.query(sql, &[&names]).await.map_err(Error::database("look at the shadow's slots"))?;
    for slot in taken.iter().map(|row| row.get::<_, String>(0)) {
        if !known.contains(&slot) {
            return unready(format!(
                "replication slot {slot} is on the shadow already, and not by Godwit: SELECT pg_drop_replication_slot({}) there",
                literal(&slot)
            ));
        }
        // Of a move that was undone, or whose reader came to its end.
        drop_slot(shadow, &slot).await?;
    }
    publish(sides, slots.iter().flat_map(|row| row.get::<_, Vec<String>>(2)).collect()).await?;
    let resource = literal(resource);
    let mut sql = format!(
        "{}DELETE FROM godwit.change_streams WHERE resource = {resource}; \
         INSERT INTO godwit.change_positions (resource, generation, ahead, before_zone, before_ahead) \
         VALUES ({resource}, {}, 0, {}, {ahead}) ON CONFLICT (resource) DO UPDATE SET generation = EXCLUDED.generation, \
         ahead = 0, before_zone = EXCLUDED.before_zone, before_ahead = EXCLUDED.before_ahead, before_end = NULL, start = NULL;",
        sides.guard_sql()?,
        sql_generation(generation + 1)?,
        literal(zone),
    );
    for row in &slots {
        let (slot, publications): (&str, Vec<String>) = (row.get(0), row.get(2));
        let publications = publications.iter().map(|name| literal(name)).collect::<Vec<_>>().join(", ");
        let _ = write!(
            sql,
            "INSERT INTO godwit.change_streams (resource, slot, publications, passed) VALUES ({resource}, {}, ARRAY[{publications}]::text[], false);",
            literal(slot),
        );
    }
    let noted = shadow.batch_execute(&format!("BEGIN; {sql} COMMIT")).await;
    noted.map_err(Error::database("note the change streams on the shadow"))?;
    let major = server_version(shadow).await? / 10_000;
    for row in &slots {
        let (slot, plugin, two_phase): (&str, &str, bool) = (row.get(0), row.get(1), row.get(3));
        // Standbys have it too, from 17 on.
        let failover = if row.get(4) && major >= 17 { ", true" } else { "" };
        let sql = format!(
            "SELECT pg_catalog.pg_create_logical_replication_slot($1::text, $2::text, false, $3{failover})"
        );
        let made = shadow.execute(&sql, &[&slot, &plugin, &two_phase]).await;
        made.map_err(Error::database(format!("make replication slot {slot} on the shadow")))?;
    }
    Ok(())
}

/// Whether a name, quoted where SQL needs it, is one of these.
fn is_among(names: &BTreeSet<String>, quoted: &str) -> bool {
    names.iter().any(|name| name == quoted || quote_ident(name) == quoted)
}

/// Makes these publications of the shadow's what the primary's are: by others its readers would be given something else.
async fn publish(sides: Sides<'_>, names: BTreeSet<String>) -> Result<(), Error> {
    if names.is_empty() {
        return Ok(());
    }
    let (here, there) =
        tokio::try_join!(drift::publications(sides.source), drift::publications(sides.shadow))?;
    let found = drift::compare(&here, &there, ["the primary", "the shadow"]);
    for difference in found.iter().filter(|difference| is_among(&names, &difference.subject)) {
        let remedy = match &difference.mend {
            Mend::Add(sql) => {
                let guarded = format!("BEGIN; {}{sql}; COMMIT", sides.guard_sql()?);
                let Err(error) = sides.shadow.batch_execute(&guarded).await else { continue };
                sides.shadow.batch_execute("ROLLBACK").await.map_err(refused("undo what failed"))?;
                match refused("make a publication on the shadow")(error) {
                    Error::Server { message, .. } => format!("{message}: on the shadow, {sql}"),
                    other => return Err(other),
                }
            }
            _ => "make it there as it is on the primary".into(),
        };
        let (name, what) = (&difference.subject, &difference.what);
        return Err(Error::Unready(format!(
            "publication {name}, by which changes are read: {what} ({remedy})"
        )));
    }
    Ok(())
}
