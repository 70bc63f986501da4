//! Fills a table that the shadow lacks ([`new`]), or whose rows are not whole there, beside the stream.
//!
//! Writers of the table wait for the moment in which the publication gets it and a snapshot is taken; its rows are copied under that,
//! and committed on the shadow with the position it is of ([`crate::apply`]'s window). A stream that meets a change of the table before
//! waits for the commit: of a table that is not there yet by [`over`], of another by its lock. Whatever breaks in between, the shadow does
//! not have the table, or says that it is not whole (`godwit.unfilled`), and it is filled again.
//!
//! Several are filled together where the shadow lacks them: as if they were one.

mod enums;
pub(super) mod new;

use std::collections::BTreeMap;
use std::path::Path;
use std::pin::pin;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use tokio::sync::watch;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::PgLsn;

use super::{KIND, columns, in_the_way, is_prepared};
use crate::apply::postgres::APPLICATION as APPLIES;
use crate::copy::{self, Pace, TableToCopy};
use crate::error::Error;
use crate::fence::refused;
use crate::postgres::connection::settings_sql;
use crate::postgres::slot::{KEYLESS, Lane};
use crate::postgres::{Dsn, block, connect, quote_ident, quote_literal};

/// How long a table of the shadow may stay locked by others.
pub(super) const PATIENCE: &str = "5s";
/// How long each try to lock a table of the source waits for others: so long may its writers wait for those.
const TRIES: [&str; 8] = ["50ms", "100ms", "200ms", "400ms", "800ms", "1s", "1s", "1s"];
/// The same for a table that can wait until nobody holds it.
const ONE_TRY: [&str; 1] = ["1ms"];
/// Seconds between tries.
const BETWEEN: f64 = 0.3;
/// How long the source's reader waits for its locks, which nobody can hold.
const MOMENT: &str = "100ms";
/// What the server shows in `pg_stat_activity`.
const APPLICATION: &str = "godwit-fill";
/// Whoever fills a table of the shadow's holds this lock there until it is committed.
pub(crate) const FILLS: i64 = 7_221_037_481_926_144_002;
/// Whoever ends appliers within a transaction holds this lock until it is committed: those that begin anew wait for it.
const ENDS: i64 = 7_221_037_481_926_144_003;

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

/// A table of the shadow's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Numbered {
    /// `schema.table`, quoted where SQL needs it.
    pub name: String,
    /// By which its server knows it (oid), whatever it is called.
    pub number: u32,
}

/// What filling a table came to.
#[derive(Debug)]
pub(super) struct Filled {
    /// How many rows it has; none: its rows are not published: it is partitioned, and its partitions have them, or it is unlogged.
    pub(super) rows: Option<u64>,
    /// What inherits from it and was filled with it.
    pub(super) heirs: Vec<String>,
}

impl From<Option<u64>> for Filled {
    fn from(rows: Option<u64>) -> Self {
        Self { rows, heirs: Vec::new() }
    }
}

/// Where tables are filled from and to.
#[derive(Clone, Copy, Debug)]
pub struct Sides<'a> {
    /// The source: how to reach it, and a session there.
    pub source: (&'a Dsn, &'a Client),
    /// The shadow: how to reach it, and a session there, of no transaction, that rows are written by
    /// ([`crate::postgres::connect_unseen_to_write`]).
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

/// Waits while somebody ends appliers there: who looks at a table afterwards sees what it has become.
pub(crate) async fn begun(shadow: &Client) -> Result<(), Error> {
    let wait = format!(
        "SELECT pg_catalog.pg_advisory_lock_shared({ENDS}), pg_catalog.pg_advisory_unlock_shared({ENDS})"
    );
    shadow.batch_execute(&wait).await.map_err(Error::database("wait until a table is altered"))
}

/// Makes the table where it is missing, fills it, and publishes it where it is not published.
pub(super) async fn table(sides: Sides<'_>, name: &str) -> Result<Filled, Error> {
    let failed = |error| refused(&format!("fill table {name}"))(error);
    let there = "SELECT pg_catalog.to_regclass($1) IS NOT NULL";
    if !sides.shadow.1.query_one(there, &[&name]).await.map_err(failed)?.get::<_, bool>(0) {
        return new::table(sides, name).await.map(Filled::from);
    }
    // Reads under the snapshot while the other session lets writers go on.
    let reader = connect(sides.source.0, APPLICATION).await?;
    // What it says of types goes into SQL for the shadow, whose session has no path either.
    reader.batch_execute("SET search_path = ''").await.map_err(failed)?;
    let result = anew(sides, name, &reader).await;
    if result.is_err() {
        undo(sides).await;
    }
    result
}

/// Ends what a failure left open.
async fn undo(sides: Sides<'_>) {
    for client in [sides.shadow.1, sides.source.1] {
        // The failure itself is what is told.
        let _ = client.batch_execute("ROLLBACK").await;
    }
}

/// Begins the transaction of the shadow's in which tables are filled; a stream that meets changes of a table that is not there waits for it.
async fn begin(shadow: &Client) -> Result<(), tokio_postgres::Error> {
    let settings =
        settings_sql(&[("session_replication_role", "replica"), ("transaction_timeout", "0")], true);
    let begin = format!(
        "BEGIN; {settings}; SET LOCAL search_path = ''; SET LOCAL lock_timeout = '{PATIENCE}'; SELECT pg_catalog.pg_advisory_xact_lock({FILLS})"
    );
    shadow.batch_execute(&begin).await
}

/// Within the open transaction: these tables are whole, and their columns are what they are called from now on.
async fn whole(shadow: &Client, names: &[&str]) -> Result<(), tokio_postgres::Error> {
    let whole = "WITH whole AS (SELECT pg_catalog.to_regclass(name) AS number FROM unnest($1::text[]) name), \
        filled AS (DELETE FROM godwit.unfilled USING whole WHERE target_table = number) \
        DELETE FROM godwit.identities USING whole WHERE target_table = number";
    shadow.execute(whole, &[&names]).await.map(drop)
}

/// The table is there: its rows are taken away and copied anew.
async fn anew(sides: Sides<'_>, name: &str, reader: &Client) -> Result<Filled, Error> {
    let (shadow_dsn, shadow) = sides.shadow;
    let failed = |error| refused(&format!("fill table {name}"))(error);
    let mut is_whole = unfilled(shadow).await?.into_iter().all(|table| table != name);
    let any = format!("SELECT 1 FROM ONLY {name} LIMIT 1");
    is_whole &= shadow.query_opt(&any, &[]).await.map_err(failed)?.is_some();
    if is_whole {
        return Err(Error::Unready(format!(
            "fill table {name}: the shadow's has rows that nobody knows: seed it anew (godwit reseed with --table {name})"
        )));
    }
    // Until its rows are committed nobody takes it for whole.
    seed_anew(shadow, &[name.to_owned()]).await?;
    if !keeps_order([reader, shadow], name).await? {
        return new::again(sides, name).await.map(Filled::from);
    }
    begin(shadow).await.map_err(failed)?;
    let _told = Told(sides.filling);
    let lock = format!("LOCK TABLE ONLY {name} IN ACCESS EXCLUSIVE MODE");
    shadow.batch_execute(&lock).await.map_err(failed)?;
    // What fails of this, the source's writers and the stream do not notice.
    empty(shadow, name).await.map_err(failed)?;
    enums::exchange(shadow, name, reader).await?;
    // Those are filled together with it: the stream is to find their rows.
    let heirs = alike(shadow, name, reader).await?;
    for heir in &heirs {
        enums::exchange(shadow, heir, reader).await?;
        alike(shadow, heir, reader).await?;
    }
    enums::tidy(shadow).await.map_err(failed)?;
    let mut names = vec![name];
    names.extend(heirs.iter().map(String::as_str));
    let (position, locked) = published(sides, &names, Locks::Waits, reader).await.map_err(failed)?;
    // What the stream brings nothing of stays empty, and is not whole.
    names.retain(|one| *one == name || locked.iter().any(|locked| locked == one));
    let tables = described(&names, reader).await?;
    if tables.iter().all(|(of, _)| of != name) {
        return Err(Error::Unready(format!("fill table {name}: it is none that is copied")));
    }
    // Appliers that do not know of it end: what they wait to write, the snapshot shows already.
    let aside = connect(shadow_dsn, APPLICATION).await?;
    record(&aside, &tables, position, reader).await.map_err(failed)?;
    end_appliers(&aside).await.map_err(failed)?;
    let mut rows = 0;
    for (of, table) in &tables {
        rows += copied(sides, of, table, reader).await?;
    }
    let names: Vec<&str> = tables.iter().map(|(of, _)| of.as_str()).collect();
    whole(shadow, &names).await.map_err(failed)?;
    // Those that came since have looked at the columns that it had.
    shadow.batch_execute(&format!("{}; COMMIT", ends())).await.map_err(failed)?;
    let heirs = names.into_iter().filter(|one| *one != name).map(str::to_owned).collect();
    Ok(Filled { rows: Some(rows), heirs })
}

/// Writes down what the tables' rows are of, for each stream that may still bring what they show already: by their numbers at the source, which
/// `reader` tells.
async fn record(
    client: &Client,
    tables: &[(String, TableToCopy)],
    position: PgLsn,
    reader: &Client,
) -> Result<(), tokio_postgres::Error> {
    let names: Vec<&str> = tables.iter().map(|(name, _)| name.as_str()).collect();
    let numbers = "SELECT array_agg(pg_catalog.to_regclass(name)::oid ORDER BY place) FROM unnest($1::text[]) WITH ORDINALITY t (name, place)";
    let numbers: Option<Vec<Option<u32>>> = reader.query_one(numbers, &[&names]).await?.get(0);
    let record = "INSERT INTO godwit.copied_parts (stream, schema_name, table_name, part, parts, position, rows, bytes, source_table) \
        SELECT stream, schema_name, table_name, 0, 1, $3, 0, 0, number \
        FROM godwit.progress, unnest($1::text[], $2::text[], $4::oid[]) AS filled (schema_name, table_name, number) \
        WHERE copied AND applied_lsn < $3 \
        ON CONFLICT (stream, schema_name, table_name, part) \
        DO UPDATE SET position = EXCLUDED.position, source_table = EXCLUDED.source_table";
    let (schemas, names): (Vec<&str>, Vec<&str>) =
        tables.iter().map(|(_, table)| (table.schema.as_str(), table.name.as_str())).unzip();
    client.execute(record, &[&schemas, &names, &position, &numbers]).await.map(drop)
}

/// Ends the sessions that apply streams in this database; they begin anew.
pub(crate) async fn end_appliers(shadow: &Client) -> Result<(), tokio_postgres::Error> {
    shadow.batch_execute(&ending()).await
}

fn ending() -> String {
    format!(
        // A transaction that has asked who is there before would hear of the same sessions again.
        "SELECT pg_catalog.pg_stat_clear_snapshot(); SELECT pg_catalog.pg_terminate_backend(pid, 5000) FROM pg_catalog.pg_stat_activity \
         WHERE starts_with(application_name, {}) AND datname = current_database() AND usename = current_user",
        quote_literal(APPLIES)
    )
}

/// SQL that does this and ends the appliers before it is committed: none of them writes by what the table was before.
pub(super) fn unseen(sql: &str) -> String {
    format!("{sql}; {}", ends())
}

/// Ends appliers right before a transaction's end; those that begin meanwhile wait for that.
fn ends() -> String {
    format!("SELECT pg_catalog.pg_advisory_xact_lock({ENDS}); {}", ending())
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

/// What a column's type is part of: constraints of its table and of what refers to it, indexes and statistics of expressions or conditions. They
/// are made again by the next comparison.
const CONSTRAINTS: &str = "SELECT format('ALTER TABLE %I.%I DROP CONSTRAINT IF EXISTS %I', n.nspname, c.relname, k.conname) \
    FROM pg_catalog.pg_constraint k JOIN pg_catalog.pg_class c ON c.oid = k.conrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
    JOIN pg_catalog.pg_attribute a ON a.attrelid = pg_catalog.to_regclass($1) AND a.attname = $2::text \
    WHERE k.contype IN ('f', 'c', 'x') AND k.conparentid = 0 AND k.conislocal \
      AND (k.conrelid = a.attrelid AND a.attnum = ANY (k.conkey) OR k.confrelid = a.attrelid AND a.attnum = ANY (k.confkey)) \
    UNION ALL SELECT format('DROP INDEX IF EXISTS %I.%I', n.nspname, c.relname) \
    FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
    JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attname = $2::text \
    WHERE i.indrelid = pg_catalog.to_regclass($1) AND (i.indexprs IS NOT NULL OR i.indpred IS NOT NULL) AND NOT c.relispartition \
      AND NOT EXISTS (SELECT FROM pg_catalog.pg_constraint k WHERE k.conindid = i.indexrelid AND k.conrelid = i.indrelid) \
      AND EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = i.indexrelid \
                    AND d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjid = i.indrelid AND d.refobjsubid = a.attnum) \
    UNION ALL SELECT format('DROP STATISTICS IF EXISTS %I.%I', n.nspname, s.stxname) \
    FROM pg_catalog.pg_statistic_ext s JOIN pg_catalog.pg_namespace n ON n.oid = s.stxnamespace \
    JOIN pg_catalog.pg_attribute a ON a.attrelid = s.stxrelid AND a.attname = $2::text \
    WHERE s.stxrelid = pg_catalog.to_regclass($1) AND s.stxexprs IS NOT NULL \
      AND EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_catalog.pg_statistic_ext'::regclass AND d.objid = s.oid \
                    AND d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjid = s.stxrelid AND d.refobjsubid = a.attnum) \
    ORDER BY 1";

/// What inherits from a table, at whatever remove, and has rows of its own.
const HEIRS: &str = "WITH RECURSIVE heirs AS ( \
      SELECT inhrelid AS oid FROM pg_catalog.pg_inherits WHERE inhparent = pg_catalog.to_regclass($1) \
      UNION SELECT h.inhrelid FROM heirs JOIN pg_catalog.pg_inherits h ON h.inhparent = heirs.oid) \
    SELECT format('%I.%I', n.nspname, c.relname) FROM heirs JOIN pg_catalog.pg_class c USING (oid) \
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind = 'r' AND c.relpersistence = 'p' ORDER BY 1";

/// The columns that a table has of its own, in their order: name, type, and what computes it.
async fn columns_of(client: &Client, name: &str) -> Result<Vec<[String; 3]>, tokio_postgres::Error> {
    let columns = format!(
        "SELECT a.attname::text, {KIND}, CASE WHEN a.attgenerated <> '' THEN format(' GENERATED ALWAYS AS (%s) %s', pg_catalog.pg_get_expr(d.adbin, d.adrelid), \
            CASE a.attgenerated WHEN 'v' THEN 'VIRTUAL' ELSE 'STORED' END) ELSE '' END \
        FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type y ON y.oid = a.atttypid \
        LEFT JOIN (pg_catalog.pg_collation co JOIN pg_catalog.pg_namespace cn ON cn.oid = co.collnamespace) ON co.oid = a.attcollation \
        LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum \
        WHERE a.attrelid = pg_catalog.to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped AND a.attinhcount = 0 ORDER BY a.attnum"
    );
    let found = client.query(&columns, &[&name]).await?;
    Ok(found.iter().map(|row| [row.get(0), row.get(1), row.get(2)]).collect())
}

/// Whether the shadow's table has its columns in the source's order once [`alike`] has added what it lacks. One with children is taken as it
/// is: they would have to go with it.
async fn keeps_order([source, shadow]: [&Client; 2], name: &str) -> Result<bool, Error> {
    let failed = |error| refused(&format!("read the columns of {name}"))(error);
    let children =
        "SELECT EXISTS (SELECT FROM pg_catalog.pg_inherits WHERE inhparent = pg_catalog.to_regclass($1))";
    let (here, there) = (columns_of(source, name), columns_of(shadow, name));
    let (here, there) = tokio::try_join!(here, there).map_err(failed)?;
    let place = |[called, _, computed]: &[String; 3]| {
        let same = |[other, _, theirs]: &[String; 3]| other == called && theirs == computed;
        there.iter().position(same).unwrap_or(there.len())
    };
    Ok(here.iter().is_sorted_by_key(place)
        || shadow.query_one(children, &[&name]).await.map_err(failed)?.get(0))
}

/// Within the open transaction: gives the empty table the columns that the source's has, of the types that they have there. Which of its heirs are
/// empty now as well, and not whole.
async fn alike(shadow: &Client, name: &str, reader: &Client) -> Result<Vec<String>, Error> {
    let failed = |error| refused(&format!("give table {name} its columns"))(error);
    let read = async |client: &Client| columns_of(client, name).await.map_err(failed);
    // Every name is qualified, and both say it alike.
    let (here, there) = (read(reader).await?, read(shadow).await?);
    let retyped: Vec<_> = here
        .iter()
        .filter(|[called, kind, generated]| {
            there.iter().any(|[other, old, computed]| other == called && old != kind && computed == generated)
        })
        .collect();
    let heirs = shadow.query(HEIRS, &[&name]).await.map_err(failed)?;
    let heirs: Vec<String> = heirs.iter().map(|row| row.get(0)).collect();
    if !retyped.is_empty() {
        // Whoever waits for this table may hold one that refers to it.
        end_appliers(shadow).await.map_err(failed)?;
        // Their columns get the type with it, and may have to have a value, or one that tells their rows.
        for heir in &heirs {
            empty(shadow, heir).await.map_err(failed)?;
        }
    }
    for [called, kind, _] in &retyped {
        let quoted = quote_ident(called);
        let mut steps = Vec::new();
        for table in [name].into_iter().chain(heirs.iter().map(String::as_str)) {
            let constraints = shadow.query(CONSTRAINTS, &[&table, called]).await.map_err(failed)?;
            steps.extend(constraints.iter().map(|row| row.get::<_, String>(0)));
        }
        steps.extend(in_the_way::dropped(shadow, name, &format!("{quoted} TYPE {kind}")).await?);
        let alter = format!("ALTER TABLE {name} ALTER COLUMN {quoted}");
        steps.push(format!(
            "{alter} DROP IDENTITY IF EXISTS; {alter} DROP DEFAULT; {alter} TYPE {kind} USING NULL"
        ));
        shadow.batch_execute(&steps.join("; ")).await.map_err(failed)?;
    }
    // Columns that are computed of those are gone by now.
    let there = read(shadow).await?;
    let mut emptied = !retyped.is_empty();
    for [called, kind, generated] in &here {
        let add = format!("ALTER TABLE {name} ADD COLUMN {} {kind}{generated}", quote_ident(called));
        let sql = match there.iter().find(|[other, ..]| other == called) {
            None => add,
            Some([.., computed]) if computed != generated => columns::made_anew(name, called, &add),
            Some(_) => continue,
        };
        shadow.batch_execute(&sql).await.map_err(failed)?;
        // What is computed, heirs compute of their own.
        emptied |= generated.is_empty();
    }
    if emptied {
        // Nothing is in a column of theirs that their parent just got.
        seed_anew(shadow, &heirs).await?;
    }
    Ok(if retyped.is_empty() { Vec::new() } else { heirs })
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

/// These tables of the shadow's, as far as they are there.
pub(super) async fn numbered(
    shadow: &Client,
    names: &[&str],
) -> Result<Vec<Numbered>, tokio_postgres::Error> {
    let numbers = "SELECT name, c.oid FROM unnest($1::text[]) name JOIN pg_catalog.pg_class c ON c.oid = pg_catalog.to_regclass(name)";
    let numbers = shadow.query(numbers, &[&names]).await?;
    Ok(numbers.iter().map(|row| Numbered { name: row.get(0), number: row.get(1) }).collect())
}

/// Writes down on the shadow that the rows of these tables (of a partitioned one: of its partitions) are to be copied anew; gives which
/// they are. Until they are, the shadow differs from its source.
///
/// # Errors
/// [`Error::Unready`] where the shadow has no such table; then nothing is written down.
pub async fn seed_anew(shadow: &Client, tables: &[String]) -> Result<Vec<Numbered>, Error> {
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
    let (mut numbers, mut tables) = (Vec::new(), Vec::new());
    for row in &found {
        let (Some(number), Some(name)) = (row.get::<_, Option<u32>>(1), row.get(2)) else {
            let name: &str = row.get(0);
            return Err(Error::Unready(format!("the shadow has no table {name} (write it as schema.table)")));
        };
        numbers.push(number);
        tables.push(Numbered { name, number });
    }
    let mark =
        "INSERT INTO godwit.unfilled (target_table) SELECT DISTINCT unnest($1::oid[]) ON CONFLICT DO NOTHING";
    shadow.execute(mark, &[&numbers]).await.map_err(failed)?;
    Ok(tables)
}

/// Writes down on the shadow that the rows of these tables of the source's (each as `schema.table`) are not whole there. One that the shadow lacks is
/// copied whole in any case; what has its name there may be another of the source's, which was renamed since.
pub async fn not_whole(source: &Client, shadow: &Client, tables: &[String]) -> Result<(), Error> {
    let failed = |error| refused("write down which tables are not whole")(error);
    let numbers = "SELECT name, pg_catalog.to_regclass(name)::oid FROM unnest($1::text[]) name WHERE pg_catalog.to_regclass(name) IS NOT NULL";
    let numbers = source.query(numbers, &[&tables]).await.map_err(failed)?;
    let (names, numbers): (Vec<&str>, Vec<u32>) =
        numbers.iter().map(|row| (row.get::<_, &str>(0), row.get::<_, u32>(1))).unzip();
    let mark = "INSERT INTO godwit.unfilled (target_table) \
        SELECT DISTINCT c.oid FROM unnest($1::text[], $2::oid[]) AS t (name, number) \
        JOIN pg_catalog.pg_class c ON c.relkind = 'r' AND c.relpersistence = 'p' AND CASE \
          WHEN EXISTS (SELECT FROM godwit.identities i JOIN pg_catalog.pg_class k ON k.oid = i.target_table \
                       WHERE i.source_table = t.number AND i.source_column = 0) \
          THEN c.oid IN (SELECT i.target_table FROM godwit.identities i WHERE i.source_table = t.number AND i.source_column = 0) \
          ELSE c.oid = pg_catalog.to_regclass(t.name) \
            AND NOT EXISTS (SELECT FROM godwit.identities i WHERE i.target_table = c.oid AND i.source_column = 0) END \
        ON CONFLICT DO NOTHING";
    shadow.execute(mark, &[&names, &numbers]).await.map_err(failed).map(drop)
}

/// How tables of the source are locked for the moment in which they are published. One that is gone is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Locks {
    /// A while is waited for others, and told where that does not help.
    Waits,
    /// Those that others hold are left out: nobody's writers wait for somebody else's table.
    Tries,
}

/// Publishes the tables and takes a snapshot of them, in one moment for their writers; gives where in the source's WAL that is, and which
/// of them could be locked for it. What lost its key by now is left out.
async fn published(
    sides: Sides<'_>,
    names: &[&str],
    locks: Locks,
    reader: &Client,
) -> Result<(PgLsn, Vec<String>), tokio_postgres::Error> {
    let (_, source) = sides.source;
    let listed: Vec<String> = names.iter().map(|name| quote_literal(name)).collect();
    let (tries, last) = match locks {
        Locks::Waits => (TRIES.as_slice(), "RAISE;"),
        Locks::Tries => (ONE_TRY.as_slice(), "EXIT;"),
    };
    let tried: Vec<String> = tries.iter().map(|one| quote_literal(one)).collect();
    let one = format!(
        "EXECUTE 'LOCK TABLE ONLY ' || one || ' IN SHARE ROW EXCLUSIVE MODE'; \
         IF NOT (SELECT {KEYLESS} FROM pg_catalog.pg_class c WHERE c.oid = pg_catalog.to_regclass(one)) THEN \
           locked = locked || one; \
         END IF;"
    );
    let each = match locks {
        // A try has all or none: nobody waits for one of them while another is not to be had.
        Locks::Waits => format!(
            "FOR n IN 1 .. pg_catalog.cardinality(tries) LOOP \
               BEGIN \
                 locked = '{{}}'; \
                 PERFORM pg_catalog.set_config('lock_timeout', tries[n], true); \
                 FOREACH one IN ARRAY names LOOP \
                   IF pg_catalog.to_regclass(one) IS NOT NULL THEN {one} END IF; \
                 END LOOP; \
                 EXIT; \
               EXCEPTION WHEN lock_not_available OR undefined_table THEN IF n = pg_catalog.cardinality(tries) THEN {last} END IF; \
               END; \
               PERFORM pg_catalog.pg_sleep({BETWEEN}); \
             END LOOP;"
        ),
        Locks::Tries => format!(
            "FOREACH one IN ARRAY names LOOP \
               FOR n IN 1 .. pg_catalog.cardinality(tries) LOOP \
                 BEGIN \
                   PERFORM pg_catalog.set_config('lock_timeout', tries[n], true); {one} EXIT; \
                 EXCEPTION \
                   WHEN lock_not_available THEN IF n = pg_catalog.cardinality(tries) THEN {last} END IF; \
                   WHEN undefined_table THEN EXIT; \
                 END; \
                 PERFORM pg_catalog.pg_sleep({BETWEEN}); \
               END LOOP; \
             END LOOP;"
        ),
    };
    let lock = format!(
        "DECLARE one text; locked text[] = '{{}}'; names text[] = ARRAY[{}]::text[]; tries text[] = ARRAY[{}]; BEGIN \
           {each} \
           PERFORM pg_catalog.set_config('godwit.locked', locked::text, true); END",
        listed.join(", "),
        tried.join(", ")
    );
    let lock = format!("BEGIN; SET LOCAL synchronous_commit = local; {}", block(&lock));
    source.batch_execute(&lock).await?;
    // All who wrote them before are through, and nobody has written them since.
    let moment = "SELECT pg_catalog.pg_current_wal_insert_lsn(), pg_catalog.pg_export_snapshot(), \
        current_setting('godwit.locked')::text[]";
    let moment = source.query_one(moment, &[]).await?;
    let (position, snapshot, locked): (PgLsn, &str, Vec<String>) =
        (moment.get(0), moment.get(1), moment.get(2));
    let mut begin = copy::snapshot_sql(snapshot);
    if !locked.is_empty() {
        let list: Vec<String> = locked.iter().map(|name| format!("ONLY {name}")).collect();
        begin += &format!(
            "; SET LOCAL lock_timeout = '{MOMENT}'; LOCK TABLE {} IN ACCESS SHARE MODE",
            list.join(", ")
        );
    }
    reader.batch_execute(&begin).await?;
    let [main, critical] = [Lane::Main, Lane::Critical].map(|lane| lane.publication_name(sides.resource));
    let publish = format!(
        "DECLARE added text; BEGIN \
           SELECT pg_catalog.string_agg('ONLY ' || one, ', ') INTO added FROM unnest(current_setting('godwit.locked')::text[]) one \
           WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_publication_rel r JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid \
             WHERE p.pubname IN ({}, {}) AND r.prrelid = pg_catalog.to_regclass(one)); \
         IF added IS NOT NULL THEN EXECUTE {} || added; END IF; END",
        quote_literal(&main),
        quote_literal(&critical),
        quote_literal(&format!("ALTER PUBLICATION {} ADD TABLE ", quote_ident(&main)))
    );
    source.batch_execute(&format!("{}; COMMIT", block(&publish))).await?;
    Ok((position, locked))
}

/// What there is to be copied of the tables that the reader has locked, with the names that they were asked for by: looked up when their
/// writers go on.
async fn described(names: &[impl AsRef<str>], reader: &Client) -> Result<Vec<(String, TableToCopy)>, Error> {
    let names: Vec<&str> = names.iter().map(AsRef::as_ref).collect();
    let called = "SELECT n.nspname::text, c.relname::text, name FROM unnest($1::text[]) name \
        JOIN pg_catalog.pg_class c ON c.oid = pg_catalog.to_regclass(name) \
        JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace";
    let called = reader.query(called, &[&names]).await.map_err(refused("fill tables"))?;
    let mut called: BTreeMap<(String, String), String> =
        called.iter().map(|row| ((row.get(0), row.get(1)), row.get(2))).collect();
    let tables = copy::tables(reader).await?.into_iter();
    let tables = tables.filter_map(|table| {
        let name = called.remove(&(table.schema.clone(), table.name.clone()))?;
        Some((name, table))
    });
    Ok(tables.collect())
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
