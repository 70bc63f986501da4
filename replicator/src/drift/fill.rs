//! Fills a table that the shadow lacks, or whose rows are not whole there, beside the stream.
//!
//! Writers of the table wait for the moment in which the publication gets it and a snapshot is taken; its rows are copied under that,
//! and committed on the shadow with the position it is of ([`crate::apply`]'s window). A stream that meets a change of the table before
//! waits for the commit: of a table that is not there yet by [`over`], of another by its lock. Whatever breaks in between, the shadow does
//! not have the table, or says that it is not whole (`godwit.unfilled`), and it is filled again.

use std::path::Path;
use std::pin::pin;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use tokio::sync::watch;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::PgLsn;

use super::{KIND, columns, is_prepared};
use crate::apply::postgres::APPLICATION as APPLIES;
use crate::copy::{self, Pace, TableToCopy};
use crate::error::Error;
use crate::fence::refused;
use crate::postgres::connection::settings_sql;
use crate::postgres::slot::Lane;
use crate::postgres::{Dsn, connect, quote_ident, quote_literal};
use crate::schema;
use crate::schema::statements::{Kind, Statement, joined, statements};

/// How long a table of the source may stay locked by others.
pub(super) const PATIENCE: &str = "5s";
/// What the server shows in `pg_stat_activity`.
const APPLICATION: &str = "godwit-fill";
/// Whoever fills a table of the shadow's holds this lock there until it is committed.
pub(crate) const FILLS: i64 = 7_221_037_481_926_144_002;

/// So many bytes are let through together.
const AT_ONCE: u64 = 64 << 10;

/// How far a table is that is being filled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filling {
    /// `schema.table`, quoted where SQL needs it.
    pub table: String,
    /// Of its size on the source, how many bytes are copied.
    pub bytes: u64,
    /// Its size on the source.
    pub of: u64,
}

/// Where tables are filled from and to.
#[derive(Clone, Copy, Debug)]
pub struct Sides<'a> {
    /// The source: how to reach it, and a session there.
    pub source: (&'a Dsn, &'a Client),
    /// The shadow: how to reach it, and a session there, of no transaction.
    pub shadow: (&'a Dsn, &'a Client),
    /// The resource.
    pub resource: &'a str,
    /// Where `pg_dump` is; none: where the system has it.
    pub bin: Option<&'a Path>,
    /// At most so many bytes of rows per second; none: no bound.
    pub bytes_per_second: Option<u64>,
    /// Told how far it is.
    pub filling: &'a watch::Sender<Option<Filling>>,
}

/// Waits while somebody fills a table there.
pub(crate) async fn over(shadow: &Client) -> Result<(), Error> {
    let wait = format!(
        "SELECT pg_catalog.pg_advisory_lock_shared({FILLS}), pg_catalog.pg_advisory_unlock_shared({FILLS})"
    );
    shadow.batch_execute(&wait).await.map_err(Error::database("wait until a table is filled"))
}

/// Makes the table where it is missing, fills it, and publishes it where it is not published; how many rows it has. None: its rows are not
/// published: it is partitioned, and its partitions have them, or it is unlogged.
pub(super) async fn table(sides: Sides<'_>, name: &str) -> Result<Option<u64>, Error> {
    let (dsn, source) = sides.source;
    let failed = |error| refused(&format!("fill table {name}"))(error);
    let dump = schema::dump_table(dsn, sides.bin, name).await?;
    let dump = without_dangling(sides.shadow.1, &dump).await.map_err(failed)?;
    let kind = "SELECT relkind = 'r' AND relpersistence = 'p' FROM pg_catalog.pg_class WHERE oid = pg_catalog.to_regclass($1)";
    let kind = source.query_opt(kind, &[&name]).await.map_err(failed)?;
    if kind.is_some_and(|row| !row.get::<_, bool>(0)) {
        let shadow = sides.shadow.1;
        shadow.batch_execute(&format!("SET lock_timeout = '{PATIENCE}'")).await.map_err(failed)?;
        return schema::load(shadow, &dump).await.map(|()| None);
    }
    // Reads under the snapshot while the other session lets writers go on.
    let reader = connect(dsn, APPLICATION).await?;
    let result = rows(sides, name, &dump, &reader).await;
    if result.is_err() {
        for client in [sides.shadow.1, source] {
            // The failure itself is what is told.
            let _ = client.batch_execute("ROLLBACK").await;
        }
    }
    result.map(Some)
}

/// The dump of a table without its foreign keys to tables that the shadow lacks: two new ones may refer to each other. They are made once both
/// are there, as any that is missing.
async fn without_dangling(shadow: &Client, dump: &str) -> Result<String, tokio_postgres::Error> {
    let statements = statements(dump);
    let refers_to = |statement: &Statement| match &statement.kind {
        Kind::ForeignKey { table, refers_to, .. } if table != refers_to => Some(refers_to.clone()),
        _ => None,
    };
    let others: Vec<String> = statements.iter().filter_map(refers_to).collect();
    if others.is_empty() {
        return Ok(dump.to_owned());
    }
    let missing = "SELECT name FROM unnest($1::text[]) name WHERE pg_catalog.to_regclass(name) IS NULL";
    let missing = shadow.query(missing, &[&others]).await?;
    let missing: Vec<String> = missing.iter().map(|row| row.get(0)).collect();
    if missing.is_empty() {
        return Ok(dump.to_owned());
    }
    let stays = |one: &Statement| refers_to(one).is_none_or(|to| !missing.contains(&to));
    Ok(joined(statements.into_iter().filter(stays)))
}

async fn rows(sides: Sides<'_>, name: &str, dump: &str, reader: &Client) -> Result<u64, Error> {
    let (shadow_dsn, shadow) = sides.shadow;
    let failed = |error| refused(&format!("fill table {name}"))(error);
    let there = "SELECT pg_catalog.to_regclass($1) IS NOT NULL";
    let there: bool = shadow.query_one(there, &[&name]).await.map_err(failed)?.get(0);
    if there {
        let mut whole = unfilled(shadow).await?.into_iter().all(|table| table != name);
        let any = format!("SELECT 1 FROM ONLY {name} LIMIT 1");
        whole &= shadow.query_opt(&any, &[]).await.map_err(failed)?.is_some();
        if whole {
            return Err(Error::Unready(format!(
                "fill table {name}: the shadow's has rows that nobody knows: seed it anew (godwit reseed RESOURCE --table {name})"
            )));
        }
        // Until its rows are committed nobody takes it for whole.
        seed_anew(shadow, &[name.to_owned()]).await?;
    }
    shadow
        .batch_execute(&format!(
            "BEGIN; {}; SET LOCAL lock_timeout = '{PATIENCE}'; SELECT pg_catalog.pg_advisory_xact_lock({FILLS})",
            settings_sql(&[("session_replication_role", "replica"), ("transaction_timeout", "0")], true)
        ))
        .await
        .map_err(failed)?;
    let _told = Told(sides.filling);
    if there {
        let lock = format!("LOCK TABLE ONLY {name} IN ACCESS EXCLUSIVE MODE");
        shadow.batch_execute(&lock).await.map_err(failed)?;
    } else {
        schema::load(shadow, dump).await?;
    }
    let position = published(sides, name, reader).await?;
    let table = described(name, reader).await?;
    if there {
        // Appliers that do not know of it end: what they wait to write, the snapshot shows already.
        let aside = connect(shadow_dsn, APPLICATION).await?;
        record(&aside, &table, position).await.map_err(failed)?;
        end_appliers(&aside).await.map_err(failed)?;
        empty(shadow, name).await.map_err(failed)?;
        alike(shadow, name, reader).await.map_err(failed)?;
    } else {
        record(shadow, &table, position).await.map_err(failed)?;
    }
    let rows = copied(sides, name, &table, reader).await?;
    // Its columns are what they are called from now on.
    let whole = "WITH filled AS (DELETE FROM godwit.unfilled WHERE target_table = pg_catalog.to_regclass($1)) \
        DELETE FROM godwit.identities WHERE target_table = pg_catalog.to_regclass($1)";
    shadow.execute(whole, &[&name]).await.map_err(failed)?;
    shadow.batch_execute("COMMIT").await.map_err(failed)?;
    Ok(rows)
}

/// Writes down what the table's rows are of, for each stream that may still bring what they show already.
async fn record(client: &Client, table: &TableToCopy, position: PgLsn) -> Result<(), tokio_postgres::Error> {
    let record = "INSERT INTO godwit.copied_parts (stream, schema_name, table_name, part, parts, position, rows, bytes) \
        SELECT stream, $1, $2, 0, 1, $3, 0, 0 FROM godwit.progress WHERE copied AND applied_lsn < $3 \
        ON CONFLICT (stream, schema_name, table_name, part) DO UPDATE SET position = EXCLUDED.position";
    client.execute(record, &[&table.schema, &table.name, &position]).await.map(drop)
}

/// Ends the sessions that apply streams in this database; they begin anew.
pub(crate) async fn end_appliers(shadow: &Client) -> Result<(), tokio_postgres::Error> {
    let end = "SELECT pg_catalog.pg_terminate_backend(pid, 5000) FROM pg_catalog.pg_stat_activity \
        WHERE starts_with(application_name, $1) AND datname = current_database() AND usename = current_user";
    shadow.execute(end, &[&APPLIES]).await.map(drop)
}

/// Within the open transaction.
async fn empty(shadow: &Client, name: &str) -> Result<(), tokio_postgres::Error> {
    shadow.batch_execute("SAVEPOINT emptied").await?;
    let Err(error) = shadow.batch_execute(&format!("TRUNCATE ONLY {name}")).await else { return Ok(()) };
    if error.code() != Some(&SqlState::FEATURE_NOT_SUPPORTED) {
        return Err(error);
    }
    // Other tables refer to it.
    shadow.batch_execute(&format!("ROLLBACK TO SAVEPOINT emptied; DELETE FROM ONLY {name}")).await
}

/// Within the open transaction: gives the empty table the columns that the source's has, of the types that they have there.
async fn alike(shadow: &Client, name: &str, reader: &Client) -> Result<(), tokio_postgres::Error> {
    let columns = format!(
        "SELECT a.attname::text, {KIND}, CASE WHEN a.attgenerated <> '' THEN format(' GENERATED ALWAYS AS (%s) %s', pg_catalog.pg_get_expr(d.adbin, d.adrelid), \
            CASE a.attgenerated WHEN 'v' THEN 'VIRTUAL' ELSE 'STORED' END) ELSE '' END \
        FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type y ON y.oid = a.atttypid \
        LEFT JOIN (pg_catalog.pg_collation co JOIN pg_catalog.pg_namespace cn ON cn.oid = co.collnamespace) ON co.oid = a.attcollation \
        LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum \
        WHERE a.attrelid = pg_catalog.to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped AND a.attinhcount = 0 ORDER BY a.attnum"
    );
    // Every name is qualified, and both say it alike.
    let (here, there) = (reader.query(&columns, &[&name]).await?, shadow.query(&columns, &[&name]).await?);
    for column in &here {
        let (called, kind, generated): (&str, &str, &str) = (column.get(0), column.get(1), column.get(2));
        let quoted = quote_ident(called);
        let add = format!("ALTER TABLE {name} ADD COLUMN {quoted} {kind}{generated}");
        let sql = match there.iter().find(|other| other.get::<_, &str>(0) == called) {
            None => add,
            Some(other) if other.get::<_, &str>(2) != generated => columns::made_anew(name, called, &add),
            Some(other) if other.get::<_, &str>(1) != kind => format!(
                "ALTER TABLE {name} ALTER COLUMN {quoted} DROP DEFAULT; \
                 ALTER TABLE {name} ALTER COLUMN {quoted} TYPE {kind} USING NULL"
            ),
            Some(_) => continue,
        };
        shadow.batch_execute(&sql).await?;
    }
    Ok(())
}

/// The shadow's tables whose rows are not whole, as `schema.table`.
pub(crate) async fn unfilled(shadow: &Client) -> Result<Vec<String>, Error> {
    let failed = |error| refused("read which tables are not whole")(error);
    if !is_prepared(shadow, "unfilled").await? {
        return Ok(Vec::new());
    }
    let names = "SELECT format('%I.%I', n.nspname, c.relname) FROM godwit.unfilled u JOIN pg_catalog.pg_class c ON c.oid = u.target_table \
        JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace ORDER BY 1";
    let rows = shadow.query(names, &[]).await.map_err(failed)?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Writes down on the shadow that the rows of these tables (of a partitioned one: of its partitions) are to be copied anew; gives their
/// names. Until they are, the shadow differs from its source.
///
/// # Errors
/// [`Error::Unready`] where the shadow has no such table; then nothing is written down.
pub async fn seed_anew(shadow: &Client, tables: &[String]) -> Result<Vec<String>, Error> {
    let failed = |error| refused("write down which tables are not whole")(error);
    let found = "SELECT t.name, found.oid, found.called FROM unnest($1::text[]) AS t(name) LEFT JOIN LATERAL ( \
          SELECT c.oid, format('%I.%I', n.nspname, c.relname) AS called \
          FROM (SELECT relid FROM pg_catalog.pg_partition_tree(pg_catalog.to_regclass(t.name)) \
                UNION SELECT pg_catalog.to_regclass(t.name)) p \
          JOIN pg_catalog.pg_class c ON c.oid = p.relid AND c.relkind = 'r' AND c.relpersistence = 'p' \
          JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
            AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'godwit') \
        ) found ON true ORDER BY 1, 3";
    let found = shadow.query(found, &[&tables]).await.map_err(failed)?;
    let (mut numbers, mut names) = (Vec::new(), Vec::new());
    for row in &found {
        let (Some(number), Some(name)) = (row.get::<_, Option<u32>>(1), row.get(2)) else {
            let name: &str = row.get(0);
            return Err(Error::Unready(format!("the shadow has no table {name} (write it as schema.table)")));
        };
        numbers.push(number);
        names.push(name);
    }
    let mark =
        "INSERT INTO godwit.unfilled (target_table) SELECT DISTINCT unnest($1::oid[]) ON CONFLICT DO NOTHING";
    shadow.execute(mark, &[&numbers]).await.map_err(failed)?;
    Ok(names)
}

/// Publishes the table and takes a snapshot of it, in one moment for its writers; gives where in the source's WAL that is.
async fn published(sides: Sides<'_>, name: &str, reader: &Client) -> Result<PgLsn, Error> {
    let (_, source) = sides.source;
    let failed = |error| refused(&format!("fill table {name}"))(error);
    let lock = format!(
        "BEGIN; SET LOCAL synchronous_commit = local; SET LOCAL lock_timeout = '{PATIENCE}'; \
         LOCK TABLE ONLY {name} IN SHARE ROW EXCLUSIVE MODE"
    );
    source.batch_execute(&lock).await.map_err(failed)?;
    // All who wrote it before are through, and nobody has written it since.
    let moment = "SELECT pg_catalog.pg_current_wal_insert_lsn(), pg_catalog.pg_export_snapshot()";
    let moment = source.query_one(moment, &[]).await.map_err(failed)?;
    reader.batch_execute(&copy::snapshot_sql(moment.get(1))).await.map_err(failed)?;
    let lock = format!("SET LOCAL lock_timeout = '{PATIENCE}'; LOCK TABLE ONLY {name} IN ACCESS SHARE MODE");
    reader.batch_execute(&lock).await.map_err(failed)?;
    let [main, critical] = [Lane::Main, Lane::Critical].map(|lane| lane.publication_name(sides.resource));
    let publish = format!(
        "DO $godwit$ BEGIN IF NOT EXISTS (SELECT FROM pg_catalog.pg_publication_rel r JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid \
           WHERE p.pubname IN ({}, {}) AND r.prrelid = pg_catalog.to_regclass({})) \
         THEN ALTER PUBLICATION {} ADD TABLE ONLY {name}; END IF; END $godwit$; COMMIT",
        quote_literal(&main),
        quote_literal(&critical),
        quote_literal(name),
        quote_ident(&main)
    );
    source.batch_execute(&publish).await.map_err(failed)?;
    Ok(moment.get(0))
}

/// What there is to be copied of the table that the reader has locked: looked up when its writers go on.
async fn described(name: &str, reader: &Client) -> Result<TableToCopy, Error> {
    let failed = |error| refused(&format!("fill table {name}"))(error);
    let called = "SELECT n.nspname::text, c.relname::text FROM pg_catalog.pg_class c \
        JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = pg_catalog.to_regclass($1)";
    let called = reader.query_one(called, &[&name]).await.map_err(failed)?;
    let (schema, called): (String, String) = (called.get(0), called.get(1));
    let table = copy::tables(reader).await?.into_iter().find(|t| t.schema == schema && t.name == called);
    table.ok_or_else(|| Error::Unready(format!("fill table {name}: it is none that is copied")))
}

/// What is told of a table that is being filled ends with this, however that ends.
struct Told<'a>(&'a watch::Sender<Option<Filling>>);

impl Drop for Told<'_> {
    fn drop(&mut self) {
        self.0.send_replace(None);
    }
}

async fn copied(sides: Sides<'_>, name: &str, table: &TableToCopy, reader: &Client) -> Result<u64, Error> {
    let failed = |error| refused(&format!("fill table {name}"))(error);
    let parts = copy::cut(vec![table.clone()]);
    let into = copy::copy_in_sql(&table.schema, &table.name, &table.columns, table.binary);
    let (count, mut pace) = (parts.len() as u64, Pace::new(sides.bytes_per_second));
    let (mut rows, mut read) = (0, 0);
    for (done, part) in (0_u64..).zip(&parts) {
        let far = Filling { table: name.into(), bytes: table.bytes * done / count, of: table.bytes };
        tracing::debug!(table = name, bytes = far.bytes, of = far.of, "a table is being filled");
        sides.filling.send_replace(Some(far));
        let out = reader.copy_out(&part.copy_out_sql()).await.map_err(failed)?;
        let sink = sides.shadow.1.copy_in::<_, Bytes>(&into).await.map_err(failed)?;
        let (mut out, mut sink) = (pin!(out), pin!(sink));
        while let Some(chunk) = out.next().await {
            let chunk = chunk.map_err(failed)?;
            // Rows come one by one, and a timer is coarser than what one of them may take.
            read += chunk.len() as u64;
            if read >= AT_ONCE {
                tokio::time::sleep(pace.take(read, crate::clock::now())).await;
                read = 0;
            }
            sink.feed(chunk).await.map_err(failed)?;
        }
        rows += sink.as_mut().finish().await.map_err(failed)?;
    }
    Ok(rows)
}
