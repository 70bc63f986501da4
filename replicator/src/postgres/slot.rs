//! Replication slots and publications, by SQL.

use std::time::Duration;

use tokio::time::sleep;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, SimpleQueryMessage};

use super::{quote_ident, quote_literal};
use crate::error::Error;
use crate::fence::rows;
use crate::lsn::Lsn;

/// How long a slot may stay in use after its walsender was told to end.
const DROP_TIMEOUT: Duration = Duration::from_secs(15);
/// How often a slot in use is tried again.
const DROP_RETRY: Duration = Duration::from_millis(25);
/// Longest resource part that fits a 63-byte name beside `godwit_`, `_g` and any generation.
const RESOURCE_LIMIT: usize = 34;
/// What is behind the names of a critical lane.
const CRITICAL: &str = ".critical";
const CRITICAL_SLOT: &str = "_critical";

/// SQL: true for what `pg_repack` makes in its schema while it rewrites a table, and drops with that; of a `pg_class c` in a `pg_namespace n`.
macro_rules! passing {
    () => {
        "(n.nspname = 'repack' AND c.relname ~ '^(log|table)_[0-9]+(_id_seq)?$' \
          AND EXISTS (SELECT FROM pg_catalog.pg_class o WHERE o.oid::text = split_part(c.relname, '_', 2)))"
    };
}

/// What only passes: not replicated, and no part of the schema.
pub(crate) const PASSING: &str = passing!();

/// SQL condition on `pg_class c`, `pg_namespace n`: tables and leaf partitions of users that are kept so; an extension's own tables come with the
/// extension.
macro_rules! user_tables {
    ($persistence:literal) => {
        concat!(
            "c.relkind = 'r' AND c.relpersistence = '",
            $persistence,
            "' AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast', 'godwit') \
             AND NOT EXISTS (SELECT 1 FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass \
                 AND d.objid = c.oid AND d.objsubid = 0 AND d.deptype = 'e') AND NOT ",
            passing!()
        )
    };
}

/// Nothing tells the rows of this one of `pg_class` apart: a server that publishes it refuses to update and delete them, whoever asks.
macro_rules! keyless {
    ($of:literal) => {
        concat!(
            "CASE ",
            $of,
            ".relreplident WHEN 'f' THEN false WHEN 'n' THEN true \
             WHEN 'i' THEN NOT EXISTS (SELECT FROM pg_catalog.pg_index i \
               WHERE i.indrelid = ",
            $of,
            ".oid AND i.indisreplident AND i.indisvalid) \
             ELSE NOT EXISTS (SELECT FROM pg_catalog.pg_index i \
               WHERE i.indrelid = ",
            $of,
            ".oid AND i.indisprimary AND i.indisvalid AND i.indimmediate) END"
        )
    };
}

/// Whether no row has NULL in the column `a` of `pg_attribute`: a constraint may be for new rows only (from 18 on).
macro_rules! filled {
    () => {
        "(a.attnotnull AND NOT EXISTS (SELECT FROM pg_catalog.pg_constraint nn WHERE nn.conrelid = a.attrelid AND nn.contype = 'n' \
           AND nn.conkey[1] = a.attnum AND NOT nn.convalidated))"
    };
}
pub(crate) use filled;

/// The name of an index of this one of `pg_class` which does what a key would: of columns that are never NULL, as few as may be.
macro_rules! telling_index {
    ($of:literal) => {
        concat!(
            "(SELECT format('%I', x.relname) FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid \
             WHERE i.indrelid = ",
            $of,
            ".oid AND i.indisunique AND i.indimmediate AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL \
               AND NOT EXISTS (SELECT FROM pg_catalog.pg_attribute a WHERE a.attrelid = ",
            $of,
            ".oid AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1]) \
                 AND (NOT ",
            filled!(),
            " OR a.attgenerated <> '')) \
             ORDER BY i.indnkeyatts, x.relname LIMIT 1)"
        )
    };
}

/// Of the table `c`.
pub(crate) const TELLING_INDEX: &str = telling_index!("c");
/// Of the table `t`.
pub(crate) const TELLING_INDEX_OF_T: &str = telling_index!("t");
/// Whether the table `c` is not to be published.
pub(crate) const KEYLESS: &str = keyless!("c");
/// Whether the table `t` is not to be published.
pub(crate) const KEYLESS_OF_T: &str = keyless!("t");

/// The tables that are replicated: permanent ones.
pub(crate) const USER_TABLES: &str = user_tables!("p");
/// Those that are not in the WAL.
pub(crate) const UNLOGGED_TABLES: &str = user_tables!("u");

/// A replication slot as the server sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotInfo {
    /// Name.
    pub name: String,
    /// A walsender uses it now.
    pub active: bool,
    /// The position up to which the consumer has confirmed.
    pub confirmed_flush: Option<Lsn>,
    /// The oldest position that the server keeps for it.
    pub restart: Option<Lsn>,
    /// WAL kept for it, from `restart` to now.
    pub retained_bytes: u64,
    /// WAL written since `confirmed_flush`.
    pub unconfirmed_bytes: u64,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    pub wal_status: String,
    /// Why the server has invalidated it, where it says so (from 17 on).
    pub invalidated: Option<String>,
}

impl SlotInfo {
    /// Why nothing can be read from it any more; none: it can.
    pub fn lost(&self) -> Option<String> {
        (self.wal_status == "lost").then(|| why_lost(self.invalidated.as_deref()))
    }
}

fn why_lost(invalidated: Option<&str>) -> String {
    match invalidated {
        None | Some("wal_removed") => "its WAL is over max_slot_wal_keep_size".into(),
        Some("idle_timeout") => "nobody has read it for idle_replication_slot_timeout".into(),
        Some(other) => format!("the server has invalidated it: {other}"),
    }
}

/// Name of the slot of a resource's stream in this generation.
pub fn slot_name(resource: &str, generation: u64) -> String {
    format!("godwit_{}_g{generation}", name_part(resource))
}

/// Name of a resource's publication.
pub fn publication_name(resource: &str) -> String {
    format!("godwit_{}", name_part(resource))
}

/// Name of a resource's replication origin on the target.
pub fn origin_name(resource: &str) -> String {
    format!("godwit_{}", name_part(resource))
}

/// A resource's changes travel in one lane, or in two: the tables that its policy calls critical in a lane of their own, so
/// that a commit which waits for them does not wait behind others. Each has its slot, publication and origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// Every table, or all that are not critical.
    Main,
    /// The critical tables.
    Critical,
}

impl Lane {
    /// Name of the lane's slot; see [`slot_name`]. Fits for any generation below 10¹¹.
    pub fn slot_name(self, resource: &str, generation: u64) -> String {
        format!(
            "{}{}",
            slot_name(resource, generation),
            if self == Self::Critical { CRITICAL_SLOT } else { "" }
        )
    }

    /// Name of the lane's publication. No resource has a dot in its names, so none can meet another's.
    pub fn publication_name(self, resource: &str) -> String {
        format!("{}{}", publication_name(resource), if self == Self::Critical { CRITICAL } else { "" })
    }

    /// Name of the lane's replication origin.
    pub fn origin_name(self, resource: &str) -> String {
        format!("{}{}", origin_name(resource), if self == Self::Critical { CRITICAL } else { "" })
    }
}

/// Whether `slot` is one that Godwit made for some generation of `resource`.
pub fn is_slot_of(slot: &str, resource: &str) -> bool {
    generation_of(slot, resource).is_some()
}

/// Whether `slot` is named as those that Godwit makes, of whatever resource.
pub fn is_own(slot: &str) -> bool {
    let rest = slot.strip_suffix(CRITICAL_SLOT).unwrap_or(slot);
    let parts = rest.strip_prefix("godwit_").and_then(|rest| rest.rsplit_once("_g"));
    parts.is_some_and(|(resource, generation)| !resource.is_empty() && generation.parse::<u64>().is_ok())
}

/// The generation of `resource` that Godwit made `slot` for, if it did.
pub fn generation_of(slot: &str, resource: &str) -> Option<u64> {
    let prefix = format!("godwit_{}_g", name_part(resource));
    let rest = slot.strip_prefix(&prefix)?;
    let digits = rest.strip_suffix(CRITICAL_SLOT).unwrap_or(rest);
    digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
}

/// What slot names allow: `[a-z0-9_]`, and short enough. A name that is too long keeps its start and gets a checksum.
fn name_part(resource: &str) -> String {
    let safe: String = resource
        .chars()
        .map(|c| c.to_ascii_lowercase())
        .map(|c| if matches!(c, 'a'..='z' | '0'..='9') { c } else { '_' })
        .collect();
    if safe.len() <= RESOURCE_LIMIT {
        return safe;
    }
    format!("{}_{:08x}", &safe[..RESOURCE_LIMIT - 9], crc32fast::hash(resource.as_bytes()))
}

/// Makes a logical `pgoutput` slot and returns where it starts. Idempotent: an existing slot of this name in this database
/// returns its confirmed position.
///
/// Waits for the transactions that are running now to end.
pub async fn create_slot(client: &Client, name: &str) -> Result<Lsn, Error> {
    if let Some(position) = existing_slot(client, name).await? {
        return Ok(position);
    }
    let created = client
        .query_one(
            "SELECT lsn::text FROM pg_catalog.pg_create_logical_replication_slot($1, 'pgoutput')",
            &[&name],
        )
        .await;
    match created {
        Ok(row) => lsn(row.get(0)),
        Err(error) if error.code() == Some(&SqlState::DUPLICATE_OBJECT) => existing_slot(client, name)
            .await?
            .ok_or_else(|| Error::Unready(format!("slot {name} came and went while it was being created"))),
        Err(error) => Err(Error::database(format!("create slot {name}"))(error)),
    }
}

async fn existing_slot(client: &Client, name: &str) -> Result<Option<Lsn>, Error> {
    let row = client
        .query_opt(
            "SELECT coalesce(plugin::text, ''), coalesce(database::text, ''), current_database()::text, \
                    coalesce(wal_status, ''), confirmed_flush_lsn::text, \
                    pg_catalog.to_jsonb(s) ->> 'invalidation_reason' \
             FROM pg_catalog.pg_replication_slots s WHERE slot_name = $1",
            &[&name],
        )
        .await
        .map_err(Error::database(format!("look for slot {name}")))?;
    let Some(row) = row else { return Ok(None) };
    let (plugin, database, here): (&str, &str, &str) = (row.get(0), row.get(1), row.get(2));
    if plugin != "pgoutput" || database != here {
        return Err(Error::Unready(format!(
            "slot {name} exists already, for plugin {plugin:?} in database {database:?}: \
             a pgoutput slot in {here:?} is needed"
        )));
    }
    if row.get::<_, &str>(3) == "lost" {
        let why = why_lost(row.get(5));
        return Err(Error::Unready(format!("slot {name} is lost: {why}; drop it and copy again")));
    }
    match row.get::<_, Option<&str>>(4) {
        Some(text) => lsn(text).map(Some),
        // Another session is still waiting for its starting point.
        None => Err(Error::Server {
            context: format!("create slot {name}"),
            sqlstate: "55006".into(),
            message: "the slot is being created by another session".into(),
        }),
    }
}

/// Drops a slot. Idempotent: a slot that is not there is fine. A walsender that uses it is told to end, and waited for.
pub async fn drop_slot(client: &Client, name: &str) -> Result<(), Error> {
    let context = || format!("drop slot {name}");
    let deadline = crate::clock::now() + DROP_TIMEOUT;
    loop {
        // Terminating is best done again each time: a consumer may have reconnected in between.
        client
            .execute(
                "SELECT pg_catalog.pg_terminate_backend(active_pid) FROM pg_catalog.pg_replication_slots \
                 WHERE slot_name = $1 AND active_pid IS NOT NULL AND active_pid <> pg_catalog.pg_backend_pid()",
                &[&name],
            )
            .await
            .map_err(Error::database(context()))?;
        let dropped = client
            .execute(
                "SELECT pg_catalog.pg_drop_replication_slot(slot_name) FROM pg_catalog.pg_replication_slots \
                 WHERE slot_name = $1",
                &[&name],
            )
            .await;
        match dropped {
            Ok(_) => return Ok(()),
            Err(error) if error.code() == Some(&SqlState::UNDEFINED_OBJECT) => return Ok(()),
            Err(error)
                if error.code() == Some(&SqlState::OBJECT_IN_USE) && crate::clock::now() < deadline =>
            {
                sleep(DROP_RETRY).await;
            }
            Err(error) => return Err(Error::database(context())(error)),
        }
    }
}

/// Ends whatever reads slots of `resource` in this database: of a node that does not lead any more, and whose machine may be gone without
/// the server having noticed.
///
/// # Errors
/// [`Error::Database`].
pub async fn end_readers(client: &Client, resource: &str) -> Result<(), Error> {
    let slots: Vec<String> = slots_of(client, resource).await?.into_iter().map(|slot| slot.name).collect();
    let sql = "SELECT pg_catalog.pg_terminate_backend(active_pid) FROM pg_catalog.pg_replication_slots WHERE slot_name = ANY ($1::text[]::name[])";
    let ended = client.execute(sql, &[&slots]).await;
    ended.map(drop).map_err(Error::database("end the readers of slots"))
}

/// What the server says of a slot; `None` when there is no such slot. One round trip.
pub async fn slot_info(client: &Client, name: &str) -> Result<Option<SlotInfo>, Error> {
    let found = look(client, &format!("slot_name = {}", quote_literal(name))).await?;
    Ok(found.into_iter().next())
}

/// The slots of `resource` in this database, of every generation and lane. One round trip.
pub async fn slots_of(client: &Client, resource: &str) -> Result<Vec<SlotInfo>, Error> {
    let mut found =
        look(client, "slot_name ~ '^godwit_' AND database = pg_catalog.current_database()").await?;
    found.retain(|slot| is_slot_of(&slot.name, resource));
    Ok(found)
}

/// A slot of Godwit's that nobody reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Orphan {
    /// Its name.
    pub name: String,
    /// Its database: it can be dropped there only.
    pub database: String,
    /// WAL that it keeps.
    pub retained_bytes: u64,
}

/// Slots of this server, in whichever database, that are named as Godwit's, that nobody reads, and that are of none of these resources.
pub async fn orphans<'r>(
    client: &Client,
    resources: impl Iterator<Item = &'r str> + Clone,
) -> Result<Vec<Orphan>, Error> {
    let found =
        look(client, "slot_name ~ '^godwit_' AND NOT active AND slot_type = 'logical' AND NOT temporary")
            .await?;
    let mut orphans = Vec::new();
    for slot in found {
        if is_own(&slot.name) && !resources.clone().any(|resource| is_slot_of(&slot.name, resource)) {
            let sql = "SELECT database::text FROM pg_catalog.pg_replication_slots WHERE slot_name = $1";
            let row = client.query_opt(sql, &[&slot.name]).await;
            let Some(row) = row.map_err(Error::database("look at replication slots"))? else { continue };
            orphans.push(Orphan {
                name: slot.name,
                database: row.get(0),
                retained_bytes: slot.retained_bytes,
            });
        }
    }
    Ok(orphans)
}

/// Sessions of our role here that make a slot, and what each waits for: the server begins a slot only when every transaction that has written has
/// ended, in whichever database.
const HELD_UP: &str = "\
SELECT CASE WHEN p.pid = 0 THEN 'a prepared transaction (pg_prepared_xacts)' \
  ELSE concat_ws(' ', format('the transaction of pid %s', p.pid), 'of ' || b.usename, 'in ' || b.datname, '(' || nullif(b.application_name, '') || ')', \
    'that began ' || date_trunc('second', now() - b.xact_start) || ' ago', 'and is ' || b.state) END \
FROM pg_catalog.pg_stat_activity w CROSS JOIN LATERAL unnest(pg_catalog.pg_blocking_pids(w.pid)) AS p (pid) \
LEFT JOIN pg_catalog.pg_stat_activity b ON b.pid = p.pid \
WHERE w.usename = current_user AND w.datname = current_database() AND w.wait_event = 'transactionid' \
  AND w.query ~ '(CREATE_REPLICATION_SLOT|pg_create_logical_replication_slot|pg_copy_logical_replication_slot)'";

/// What keeps a slot of this database from being made, in words; empty: nothing does. Needs `pg_read_all_stats`. One round trip.
pub async fn held_up(client: &Client) -> Result<Vec<String>, Error> {
    let answer = client.simple_query(HELD_UP).await.map_err(Error::database("look what a slot waits for"))?;
    Ok(rows(answer).iter().filter_map(|row| row.get(0).map(str::to_owned)).collect())
}

async fn look(client: &Client, condition: &str) -> Result<Vec<SlotInfo>, Error> {
    let sql = format!(
        "SELECT active, confirmed_flush_lsn, restart_lsn, coalesce(wal_status, 'reserved'), \
                coalesce(greatest(pg_catalog.pg_wal_lsn_diff(tip, restart_lsn), 0), 0)::bigint, slot_name, \
                coalesce(greatest(pg_catalog.pg_wal_lsn_diff(tip, confirmed_flush_lsn), 0), 0)::bigint, \
                pg_catalog.to_jsonb(s) ->> 'invalidation_reason' \
         FROM pg_catalog.pg_replication_slots s, \
              (SELECT CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn() \
                           ELSE pg_catalog.pg_current_wal_lsn() END AS tip) AS w \
         WHERE {condition} ORDER BY slot_name"
    );
    let answer = client.simple_query(&sql).await.map_err(Error::database("look at replication slots"))?;
    let slot = |message: &SimpleQueryMessage| {
        let SimpleQueryMessage::Row(row) = message else { return None };
        let position = |at: usize| row.get(at).map(lsn).transpose();
        let text = |at: usize| row.get(at).unwrap_or_default();
        let info = || -> Result<SlotInfo, Error> {
            Ok(SlotInfo {
                name: text(5).to_owned(),
                active: text(0) == "t",
                confirmed_flush: position(1)?,
                restart: position(2)?,
                retained_bytes: text(4).parse().unwrap_or_default(),
                unconfirmed_bytes: text(6).parse().unwrap_or_default(),
                wal_status: text(3).to_owned(),
                invalidated: row.get(7).map(str::to_owned),
            })
        };
        Some(info())
    };
    answer.iter().filter_map(slot).collect()
}

fn lsn(text: &str) -> Result<Lsn, Error> {
    text.parse().map_err(|error| Error::Protocol(format!("{error}")))
}

/// Whether there is a publication of this name.
pub async fn has_publication(client: &Client, name: &str) -> Result<bool, Error> {
    let found =
        client.query_opt("SELECT 1 FROM pg_catalog.pg_publication WHERE pubname = $1", &[&name]).await;
    Ok(found.map_err(Error::database(format!("look for publication {name}")))?.is_some())
}

/// Makes the publication `name` hold exactly the user tables of this database but those of the critical publication beside
/// it, and those that nobody could update and delete from then on; all operations, leaf partitions by their own name; returns how many tables. Touches no table when the list is
/// already right. A critical publication is left as it is: [`crate::lanes`] says what is in it.
pub async fn ensure_publication(client: &Client, name: &str) -> Result<u32, Error> {
    let context = || format!("set up publication {name}");
    if name.ends_with(CRITICAL) {
        return Ok(0);
    }
    let publication = quote_ident(name);
    let settings = "SELECT puballtables, pubinsert AND pubupdate AND pubdelete AND pubtruncate AND NOT pubviaroot \
        FROM pg_catalog.pg_publication WHERE pubname = $1";
    // Only where there is none: to make one that is there would be an error in the server's log.
    let row = match client.query_opt(settings, &[&name]).await.map_err(Error::database(context()))? {
        Some(row) => row,
        None => {
            let created = client.batch_execute(&format!("CREATE PUBLICATION {publication}")).await;
            // What the loser of a race gets.
            let lost = [SqlState::DUPLICATE_OBJECT, SqlState::UNIQUE_VIOLATION];
            if let Err(error) = created
                && !error.code().is_some_and(|code| lost.contains(code))
            {
                return Err(Error::database(context())(error));
            }
            client.query_one(settings, &[&name]).await.map_err(Error::database(context()))?
        }
    };
    if row.get(0) {
        return Err(Error::Unready(format!(
            "publication {name} is FOR ALL TABLES, which would replicate Godwit's own tables: \
             DROP PUBLICATION {publication}"
        )));
    }
    let mut changes = Vec::new();
    if !row.get::<_, bool>(1) {
        changes.push(format!(
            "ALTER PUBLICATION {publication} SET (publish = 'insert, update, delete, truncate', \
             publish_via_partition_root = false)"
        ));
    }
    // to_jsonb: row filters and column lists came with 15.
    let rows = client
        .query(
            &format!(
                "SELECT n.nspname::text, c.relname::text, wanted.oid IS NOT NULL, \
                        p.prrelid IS NOT NULL AND to_jsonb(p)->>'prqual' IS NULL AND to_jsonb(p)->>'prattrs' IS NULL \
                 FROM (SELECT c.oid FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
                       WHERE {USER_TABLES} AND NOT {KEYLESS} AND c.oid NOT IN (SELECT r.prrelid FROM pg_catalog.pg_publication_rel r \
                           JOIN pg_catalog.pg_publication b ON b.oid = r.prpubid WHERE b.pubname = $1 || '{CRITICAL}')) wanted \
                 FULL JOIN (SELECT r.* FROM pg_catalog.pg_publication_rel r JOIN pg_catalog.pg_publication b \
                            ON b.oid = r.prpubid WHERE b.pubname = $1) p ON p.prrelid = wanted.oid \
                 JOIN pg_catalog.pg_class c ON c.oid = coalesce(wanted.oid, p.prrelid) \
                 JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace ORDER BY 1, 2"
            ),
            &[&name],
        )
        .await
        .map_err(Error::database(context()))?;
    let (mut wanted, mut unwanted, mut right) = (Vec::new(), Vec::new(), true);
    for row in &rows {
        let table = format!("{}.{}", quote_ident(row.get(0)), quote_ident(row.get(1)));
        let (want, have): (bool, bool) = (row.get(2), row.get(3));
        right &= want == have;
        if want { wanted.push(format!("ONLY {table}")) } else { unwanted.push(table) }
    }
    if !right && !wanted.is_empty() {
        changes.push(format!("ALTER PUBLICATION {publication} SET TABLE {}", wanted.join(", ")));
    } else if !right {
        changes.push(format!("ALTER PUBLICATION {publication} DROP TABLE {}", unwanted.join(", ")));
    }
    if !changes.is_empty() {
        client.batch_execute(&changes.join("; ")).await.map_err(Error::database(context()))?;
    }
    Ok(u32::try_from(wanted.len()).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_safe_short_and_distinct() {
        assert_eq!(slot_name("Orders-EU", 3), "godwit_orders_eu_g3");
        assert_eq!(publication_name("orders"), "godwit_orders");
        assert_eq!(origin_name("orders"), "godwit_orders");
        let (a, b) = ("x".repeat(200), "x".repeat(201));
        assert!(slot_name(&a, u64::MAX).len() <= 63);
        assert_ne!(slot_name(&a, 1), slot_name(&b, 1));
        assert_eq!(slot_name("größe", 1), "godwit_gr__e_g1");
    }

    #[test]
    fn lanes_have_names_of_their_own() {
        assert_eq!(Lane::Main.slot_name("orders", 3), "godwit_orders_g3");
        assert_eq!(Lane::Critical.slot_name("orders", 3), "godwit_orders_g3_critical");
        assert_eq!(Lane::Critical.publication_name("orders"), "godwit_orders.critical");
        assert!(Lane::Critical.slot_name(&"x".repeat(200), 99_999_999_999).len() <= 63);
        for (slot, expected) in [
            ("godwit_orders_g3", Some(3)),
            ("godwit_orders_g12_critical", Some(12)),
            ("godwit_orders_g", None),
            ("godwit_orders_g+3", None),
            ("godwit_orders_g3x", None),
            ("godwit_orders2_g3", None),
        ] {
            assert_eq!(generation_of(slot, "orders"), expected, "{slot}");
        }
    }
}
