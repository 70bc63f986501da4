//! Are two databases equal? One order-independent digest per table, the same on PostgreSQL 14 to 18.
//!
//! Each row, columns in name order, is rendered as text under fixed session settings, hashed with MD5, and both halves of
//! the hash are summed modulo 2^64: no sorting, and rows may sit anywhere. Sums find loss and damage; they do not
//! withstand somebody who forges rows on purpose. Leaf partitions and plain tables count, each by its own name.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::FutureExt;
use futures_util::stream::{self, StreamExt};
use tokio_postgres::{Client, SimpleQueryRow};

use super::range::add_halves;
use crate::error::Error;
use crate::fence::{literal, refused, rows};
use crate::large_objects;

/// What one table holds.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TableDigest {
    /// `schema.table`, quoted where SQL needs it.
    pub table: String,
    /// Number of rows.
    pub rows: u64,
    /// Sum of the row hashes, both 64-bit halves.
    pub hash: u128,
}

/// What one table holds, apart by the first bits of the rows' hashes. A row that changes moves from one bucket to another, so
/// that on live data a bucket that is equal once is proven, and one that holds a real difference never becomes equal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableBuckets {
    /// `schema.table`, quoted where SQL needs it.
    pub table: String,
    /// Rows and sum of row hashes of each bucket that has any.
    sums: BTreeMap<u16, (u64, u128)>,
}

impl TableBuckets {
    /// Number of rows.
    pub fn rows(&self) -> u64 {
        self.sums.values().map(|(rows, _)| rows).sum()
    }

    /// Sum of the row hashes, as in [`TableDigest::hash`].
    pub fn hash(&self) -> u128 {
        self.sums.values().fold(0, |sum, (_, hash)| add_halves(sum, *hash))
    }

    /// The buckets in which this and `other` are not the same.
    pub fn differing(&self, other: &Self) -> BTreeSet<u16> {
        let all = self.sums.keys().chain(other.sums.keys());
        all.filter(|bucket| self.sums.get(bucket) != other.sums.get(bucket)).copied().collect()
    }

    fn add(&mut self, bucket: u16, rows: u64, hash: u128) {
        let sum = self.sums.entry(bucket).or_default();
        *sum = (sum.0 + rows, add_halves(sum.1, hash));
    }
}

/// What a snapshot holds, as far as it can still be read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SnapshotDigest {
    /// Every table that is still what it was, and large objects.
    pub tables: Vec<TableDigest>,
    /// Tables that were dropped, emptied, renamed or rewritten since, or have another key or columns of other types: the rows of then are not to be
    /// had. Under the names that they had and that they have.
    pub lost: BTreeSet<String>,
}

/// How many rows of a table are told apart by.
#[derive(Clone, Copy)]
enum Detail {
    Whole,
    Buckets,
}

/// Rows per query: keeps each one short, so that the digest can be cancelled, never holds a long-running query, and nobody waits long for its locks.
const CHUNK_ROWS: u64 = 50_000;

/// The same in pages, of a table without a key.
const CHUNK_PAGES: u64 = 1_024;

/// How often tables are read that are dropped, emptied, renamed or rewritten meanwhile.
const READINGS: u32 = 5;

/// Tables that are asked for ahead.
const AHEAD: usize = 16;

/// Text forms that differ between servers or sessions unless pinned; and a snapshot that nobody reads ends, since it keeps VACUUM from all that died after it.
const SESSION: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;
SET LOCAL search_path = pg_catalog;
SET LOCAL extra_float_digits = 1;
SET LOCAL \"DateStyle\" = 'ISO, YMD';
SET LOCAL \"IntervalStyle\" = 'postgres';
SET LOCAL \"TimeZone\" = 'UTC';
SET LOCAL bytea_output = 'hex';
SET LOCAL xmloption = 'content';
SET LOCAL lc_monetary = 'C';
SET LOCAL idle_in_transaction_session_timeout = '10min';
SET LOCAL row_security = off";

/// From 17 on a server can end long transactions. Asked so, since somebody may be held meanwhile: `pg_settings` takes its time.
const WITHOUT_TIMEOUT: &str = "SELECT set_config('transaction_timeout', '0', true) \
    WHERE current_setting('server_version_num')::int >= 170000";

/// Gives back the locks on what was read since [`begin_snapshot`], whose snapshot stays: whoever alters a table waits for one query.
const LET_GO: &str = "ROLLBACK TO SAVEPOINT godwit";

struct Table {
    /// Quoted, with its schema.
    name: String,
    /// Quoted columns in name order, comma-separated.
    columns: String,
    /// What tells the types that those of `x` have by now, likewise, and what the snapshot says of them.
    types: (String, String),
    /// Primary key columns in key order: quoted name and type. Empty: no key.
    key: Vec<(String, String)>,
}

/// Digests every user table as of one moment, in a transaction of its own: [`begin_snapshot`], then [`digest_snapshot`].
///
/// The snapshot holds back vacuum for as long as it takes. Use a connection of its own: when the future is dropped midway,
/// the connection is left inside that transaction. No table is locked for longer than a query of 50,000 rows, or of 8 MiB without a key. What is dropped,
/// emptied or rewritten meanwhile is left out.
pub async fn digest(client: &Client) -> Result<Vec<TableDigest>, Error> {
    begin_snapshot(client).await?;
    Ok(digest_snapshot(client).await?.tables)
}

/// Fixes what the connection sees: a read-only transaction whose snapshot is of now. One round trip.
pub async fn begin_snapshot(client: &Client) -> Result<(), Error> {
    // SET takes no snapshot; the SELECT does.
    let sql = format!("{SESSION};\n{WITHOUT_TIMEOUT};\nSELECT 1 FROM pg_class LIMIT 1;\nSAVEPOINT godwit");
    client.batch_execute(&sql).await.map_err(refused("cannot start the verification"))
}

/// Digests what the snapshot of [`begin_snapshot`] sees, large objects too, and ends it.
pub async fn digest_snapshot(client: &Client) -> Result<SnapshotDigest, Error> {
    let read = async {
        let read = read_what_is_left(client, None, Detail::Whole).await?;
        Ok((read, large_objects::digest(client).await?))
    };
    let ((tables, lost), objects) = end_snapshot(client, read.await).await?;
    let digest = |table: TableBuckets| {
        let (rows, hash) = (table.rows(), table.hash());
        TableDigest { table: table.table, rows, hash }
    };
    Ok(SnapshotDigest { tables: tables.into_iter().map(digest).chain(objects).collect(), lost })
}

async fn end_snapshot<T>(client: &Client, read: Result<T, Error>) -> Result<T, Error> {
    let ended = client.batch_execute("ROLLBACK").await.map_err(refused("cannot end the verification"));
    let read = read?;
    ended?;
    Ok(read)
}

/// Reads every user table, or `only` some, in transactions of its own: each table as of one moment, and those that are emptied, renamed or rewritten
/// meanwhile as of a later one. As [`digest`].
///
/// # Errors
/// Also [`Error::Unready`] where that happens to one at each reading.
pub async fn buckets(client: &Client, only: Option<&BTreeSet<String>>) -> Result<Vec<TableBuckets>, Error> {
    let (mut found, mut left) = (Vec::new(), only.cloned());
    for _ in 0..READINGS {
        begin_snapshot(client).await?;
        let read = read_what_is_left(client, left.as_ref(), Detail::Buckets).await;
        let (read, mut gone) = end_snapshot(client, read).await?;
        found.extend(read);
        gone.retain(|table| left.as_ref().is_none_or(|left| left.contains(table)));
        if gone.is_empty() {
            return Ok(found);
        }
        left = Some(gone);
    }
    let tables: Vec<String> = left.into_iter().flatten().collect();
    Err(Error::Unready(format!("emptied, renamed or rewritten at each reading: {}", tables.join(", "))))
}

/// One readable line for every table that is not the same on both sides; empty when all are equal.
pub fn differences(source: &[TableDigest], target: &[TableDigest]) -> Vec<String> {
    let mut both: BTreeMap<&str, (Option<&TableDigest>, Option<&TableDigest>)> = BTreeMap::new();
    for digest in source {
        both.entry(&digest.table).or_default().0 = Some(digest);
    }
    for digest in target {
        both.entry(&digest.table).or_default().1 = Some(digest);
    }
    both.into_iter()
        .filter_map(|(table, sides)| match sides {
            (Some(a), Some(b)) if a.rows != b.rows => {
                Some(format!("{table}: {} rows on the source, {} on the target", a.rows, b.rows))
            }
            (Some(a), Some(b)) if a.hash != b.hash => {
                Some(format!("{table}: {} rows on both, but their content differs", a.rows))
            }
            (Some(a), None) => {
                Some(format!("{table}: missing on the target ({} rows on the source)", a.rows))
            }
            (None, Some(b)) => Some(format!("{table}: only on the target ({} rows)", b.rows)),
            _ => None,
        })
        .collect()
}

/// Reads these tables, or up to the first that fails; and which of them have columns of other types by now.
async fn read_into(
    read: &mut Vec<TableBuckets>,
    altered: &mut BTreeSet<String>,
    client: &Client,
    tables: &[&Table],
    detail: Detail,
) -> Result<(), Error> {
    // The server answers one after the other; nobody waits for the way there and back of each.
    let reads: Vec<_> = tables.iter().map(|table| read_table(client, table, detail).boxed()).collect();
    let mut reads = stream::iter(reads).buffered(AHEAD);
    let (mut failed, mut names) = (None, tables.iter().map(|table| &table.name));
    while let Some(table) = reads.next().await {
        let name = names.next();
        match table {
            Ok(Some(table)) => read.push(table),
            Ok(None) => altered.extend(name.cloned()),
            // What was asked for after one that fails is refused, also for a table before that one: the one that failed by itself says why.
            Err(error) => {
                let by_itself = error.sqlstate() != Some("25P02");
                failed = Some(error);
                if by_itself {
                    break;
                }
            }
        }
    }
    failed.map_or(Ok(()), Err)
}

/// Reads every table, or `only` some, as the snapshot has it, but those that are not what they were: all of these are named.
async fn read_what_is_left(
    client: &Client,
    only: Option<&BTreeSet<String>>,
    detail: Detail,
) -> Result<(Vec<TableBuckets>, BTreeSet<String>), Error> {
    let step = async |sql: &str| client.batch_execute(sql).await.map_err(refused("cannot go on reading"));
    let mut all = tables(client).await?;
    all.retain(|table| only.is_none_or(|only| only.contains(&table.name)));
    let (mut read, mut gone) = (Vec::with_capacity(all.len()), BTreeSet::new());
    loop {
        let done: BTreeSet<&str> = read.iter().map(|table: &TableBuckets| table.table.as_str()).collect();
        let is_left = |table: &&Table| !done.contains(table.name.as_str()) && !gone.contains(&table.name);
        let left: Vec<&Table> = all.iter().filter(is_left).collect();
        match read_into(&mut read, &mut gone, client, &left, detail).await {
            Ok(()) => break,
            // Dropped, or it or another one of that name has other columns. The snapshot stays.
            Err(error) if error.sqlstate().is_some() => {
                step(LET_GO).await?;
                let before = gone.len();
                gone.extend(lost(client).await?);
                if gone.len() == before {
                    return Err(error);
                }
            }
            Err(error) => return Err(error),
        }
    }
    // Also those that could be read: what was emptied or made anew, whole or since a part of it was read, seems to have no rows.
    gone.extend(lost(client).await?);
    read.retain(|table| !gone.contains(&table.table));
    Ok((read, gone))
}

/// The snapshot's tables that are not what they were, have a column no more, or another order of their keys, and what those are called by now that are
/// there. What functions tell of a table is of now, and what is selected is of the snapshot.
async fn lost(client: &Client) -> Result<Vec<String>, Error> {
    let sql = format!(
        "SELECT format('%I.%I', n.nspname, c.relname), \
           CASE WHEN pg_relation_filenode(c.oid) IS NOT NULL THEN c.oid::regclass::text END \
         FROM {TABLES} AND (to_regclass(format('%I.%I', n.nspname, c.relname)) IS DISTINCT FROM c.oid::regclass \
           OR pg_relation_filenode(c.oid) IS DISTINCT FROM c.relfilenode \
           OR EXISTS (SELECT FROM pg_index i JOIN pg_class k ON k.oid = i.indexrelid \
                      WHERE i.indrelid = c.oid AND i.indisprimary AND pg_relation_filenode(k.oid) IS DISTINCT FROM k.relfilenode) \
           OR EXISTS (SELECT FROM pg_attribute a, pg_identify_object('pg_class'::regclass, c.oid, a.attnum) o \
                      WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped \
                        AND o.identity IS DISTINCT FROM format('%I.%I.%I', n.nspname, c.relname, a.attname)))"
    );
    let answer = client.simple_query(&sql).await.map_err(refused("cannot list the tables"))?;
    let names = |row: SimpleQueryRow| [0, 1].map(|at| row.get(at).map(str::to_owned));
    Ok(rows(answer).into_iter().flat_map(names).flatten().collect())
}

/// Those that are compared: `pg_class c` with its `pg_namespace n`, and a condition.
const TABLES: &str = "pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
    WHERE c.relkind = 'r' AND c.relpersistence = 'p' \
      AND n.nspname <> ALL ('{pg_catalog,information_schema,godwit}') AND n.nspname !~ '^pg_(toast|temp_|toast_temp_)' \
      AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass \
                      AND d.objid = c.oid AND d.deptype = 'e')";

async fn tables(client: &Client) -> Result<Vec<Table>, Error> {
    let of_columns = |what: &str| {
        format!(
            "(SELECT {what} FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped)"
        )
    };
    let sql = format!(
        "SELECT format('%I.%I', n.nspname, c.relname), {}, {}, {},
           (SELECT json_agg(json_build_array(format('%I', a.attname), format_type(a.atttypid, a.atttypmod)) ORDER BY k.place)
            FROM pg_index i, unnest(i.indkey) WITH ORDINALITY k (attnum, place)
            JOIN pg_attribute a ON a.attnum = k.attnum
            WHERE i.indrelid = c.oid AND a.attrelid = c.oid AND i.indisprimary AND i.indisvalid
              AND k.place <= i.indnkeyatts
            -- A type from elsewhere may have operators that this search path does not find: no chunks then.
            HAVING bool_and(EXISTS (SELECT FROM pg_type t WHERE t.oid = a.atttypid
              AND (t.typtype = 'e' OR t.typnamespace = 'pg_catalog'::regnamespace))))
         FROM {TABLES}
         ORDER BY n.nspname COLLATE \"C\", c.relname COLLATE \"C\"",
        of_columns("string_agg(format('%I', a.attname), ', ' ORDER BY a.attname COLLATE \"C\")"),
        of_columns("string_agg(format('pg_typeof(x.%I)', a.attname), ', ' ORDER BY a.attname COLLATE \"C\")"),
        of_columns("coalesce(array_agg(a.atttypid::regtype ORDER BY a.attname COLLATE \"C\"), '{}')::text"),
    );
    let answer = client.simple_query(&sql).await.map_err(refused("cannot list the tables"))?;
    rows(answer)
        .iter()
        .map(|row| {
            let text = |at| row.get(at).unwrap_or_default().to_owned();
            let key = row.get(4).unwrap_or("[]");
            Ok(Table {
                name: text(0),
                columns: text(1),
                types: (text(2), text(3)),
                key: serde_json::from_str(key)
                    .map_err(|error| Error::Protocol(format!("primary key is not JSON: {error}")))?,
            })
        })
        .collect()
}

/// Walks the primary key: finds the key `CHUNK_ROWS` further on, reads up to it, and so on to the end. Without one it walks the pages: what a
/// snapshot shows stays where it is until the table is rewritten. None: its columns are of other types by now, and what they hold is told otherwise.
async fn read_table(client: &Client, table: &Table, detail: Detail) -> Result<Option<TableBuckets>, Error> {
    let context = format!("cannot digest {}", table.name);
    let mut total = TableBuckets { table: table.name.clone(), sums: BTreeMap::new() };
    let mut after: Option<String> = None;
    let (mut page, pages) = (0, if table.key.is_empty() { pages(client, table, &context).await? } else { 0 });
    loop {
        let until = if table.key.is_empty() {
            page += CHUNK_PAGES;
            (page < pages).then(|| format!("'({page},0)'::tid"))
        } else {
            boundary(client, table, after.as_deref(), &context).await?
        };
        let sql = digest_sql(table, after.as_deref(), until.as_deref(), detail);
        for row in ask(client, &sql, &context).await? {
            let number = |column| row.get(column)?.parse::<u64>().ok();
            let parsed = number(0).and_then(|bucket| {
                let hash = u128::from(number(2)?) << 64 | u128::from(number(3)?);
                Some((u16::try_from(bucket).ok()?, number(1)?, hash))
            });
            let (bucket, rows, hash) =
                parsed.ok_or_else(|| Error::Protocol(format!("{context}: what came back is no digest")))?;
            if row.get(4) != Some(&table.types.1) {
                return Ok(None);
            }
            total.add(bucket, rows, hash);
        }
        match until {
            Some(key) => after = Some(key),
            None => return Ok(Some(total)),
        }
    }
}

/// Asks, and lets go of what was read.
async fn ask(client: &Client, sql: &str, context: &str) -> Result<Vec<SimpleQueryRow>, Error> {
    // In one message: what fails is not let go before whoever reads all tables knows of it.
    let answer = client.simple_query(&format!("{sql};\n{LET_GO}")).await.map_err(refused(context))?;
    Ok(rows(answer))
}

/// Its size; none of one that is gone.
async fn pages(client: &Client, table: &Table, context: &str) -> Result<u64, Error> {
    let name = literal(&table.name);
    let sql = format!("SELECT pg_relation_size(to_regclass({name})) / current_setting('block_size')::bigint");
    let answer = ask(client, &sql, context).await?;
    Ok(answer.first().and_then(|row| row.get(0)?.parse().ok()).unwrap_or_default())
}

/// The key of the last row of the next chunk as a list of typed literals; `None` when fewer rows are left.
async fn boundary(
    client: &Client,
    table: &Table,
    after: Option<&str>,
    context: &str,
) -> Result<Option<String>, Error> {
    let names = key_names(table);
    // Qualified: a bare name would mean the output column, and sort as text.
    let order: Vec<String> = table.key.iter().map(|(name, _)| format!("t.{name}")).collect();
    let order = order.join(", ");
    let texts: Vec<String> = table.key.iter().map(|(name, _)| format!("{name}::text")).collect();
    let sql = format!(
        "SELECT {} FROM ONLY {} t{} ORDER BY {order} OFFSET {} LIMIT 1",
        texts.join(", "),
        table.name,
        after.map(|key| format!(" WHERE ({names}) > ({key})")).unwrap_or_default(),
        CHUNK_ROWS - 1,
    );
    let answer = ask(client, &sql, context).await?;
    let Some(row) = answer.first() else { return Ok(None) };
    let literals: Vec<String> = table
        .key
        .iter()
        .enumerate()
        .map(|(i, (_, kind))| format!("{}::{kind}", literal(row.get(i).unwrap_or_default())))
        .collect();
    Ok(Some(literals.join(", ")))
}

fn digest_sql(table: &Table, after: Option<&str>, until: Option<&str>, detail: Detail) -> String {
    let names = key_names(table);
    let mut bounds: Vec<String> = Vec::new();
    bounds.extend(after.map(|key| format!("({names}) > ({key})")));
    bounds.extend(until.map(|key| format!("({names}) <= ({key})")));
    let bounds = if bounds.is_empty() { String::new() } else { format!("WHERE {}", bounds.join(" AND ")) };
    let bucket = match detail {
        Detail::Whole => "0",
        Detail::Buckets => "('x' || substr(h, 1, 3))::bit(12)::int",
    };
    // sum(bigint) is numeric and exact; modulo 2^64 keeps it in range for the reader.
    let modulus = "18446744073709551616::numeric";
    let half = |from: u32| {
        let sum = format!("sum(('x' || substr(h, {from}, 16))::bit(64)::bigint)");
        format!("mod(mod({sum}, {modulus}) + {modulus}, {modulus})")
    };
    format!(
        "SELECT {bucket}, count(*), {}, {}, \
           (SELECT ARRAY[{}]::regtype[]::text FROM (SELECT) o LEFT JOIN (SELECT * FROM ONLY {} LIMIT 0) x ON true) \
         FROM (SELECT md5(convert_to(ROW({})::text, 'UTF8')) AS h FROM ONLY {} {bounds}) \
         AS hashed GROUP BY 1",
        half(1),
        half(17),
        table.types.0,
        table.name,
        table.columns,
        table.name,
    )
}

/// What a table is walked by.
fn key_names(table: &Table) -> String {
    if table.key.is_empty() {
        return "ctid".into();
    }
    table.key.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(name: &str, rows: u64, hash: u128) -> TableDigest {
        TableDigest { table: name.into(), rows, hash }
    }

    #[test]
    fn differences_say_what_differs() {
        let source = [table("a", 1, 1), table("b", 2, 2), table("c", 3, 3), table("d", 4, 4)];
        let target = [table("e", 5, 5), table("c", 4, 3), table("b", 2, 9), table("a", 1, 1)];
        let lines = differences(&source, &target);
        assert_eq!(
            lines,
            [
                "b: 2 rows on both, but their content differs",
                "c: 3 rows on the source, 4 on the target",
                "d: missing on the target (4 rows on the source)",
                "e: only on the target (5 rows)",
            ]
        );
        assert!(differences(&source, &source).is_empty());
    }

    #[test]
    fn buckets_differ_where_a_row_does() {
        let mut one = TableBuckets { table: "a".into(), sums: BTreeMap::new() };
        one.add(3, 2, 7 << 64 | 8);
        one.add(9, 1, 1);
        let mut other = one.clone();
        assert_eq!(one.differing(&other), BTreeSet::new());
        other.add(3, 1, 5);
        other.add(4, 1, 5);
        assert_eq!(one.differing(&other), BTreeSet::from([3, 4]));
        assert_eq!(other.differing(&one), BTreeSet::from([3, 4]));
        assert_eq!((one.rows(), one.hash()), (3, 7 << 64 | 9));
    }
}
