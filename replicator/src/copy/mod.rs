//! The rows that are there at the start, by `COPY` under the slot's snapshot.

mod held;
mod pace;
mod part;
mod reader;
mod writer;

use std::collections::HashMap;

use tokio_postgres::Client;

pub(crate) use held::Locks;
pub use held::{HOLD, Held, Lease, Snapshots};
pub use pace::Pace;
pub use part::{Part, cut};
pub use reader::Reader;
pub use writer::Writer;

use crate::error::Error;
use crate::postgres::slot::USER_TABLES;
use crate::postgres::{connection, quote_ident, quote_literal};

/// Sessions that read at the same time, where nothing is said.
pub const SESSIONS: u32 = 4;

/// Most sessions.
pub const MOST_SESSIONS: u32 = 32;

/// What is said of a target that holds tables before the copy begins.
pub const COPIES_INTO_EMPTY: &str = "the copy goes into an empty database only";

/// How a source makes the initial copy.
#[derive(Clone, Debug)]
pub struct CopyOptions {
    /// Sessions that read at the same time, 1..=[`MOST_SESSIONS`]; as many write and build indexes at the target.
    pub sessions: u32,
    /// At most so many bytes of rows per second, all sessions together; `None`: no bound.
    pub bytes_per_second: Option<u64>,
    /// Where the copy's snapshot outlives a session.
    pub snapshots: Snapshots,
}

impl Default for CopyOptions {
    fn default() -> Self {
        Self { sessions: SESSIONS, bytes_per_second: None, snapshots: Snapshots::default() }
    }
}

/// A table whose rows are copied. Leaf partitions stand for themselves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableToCopy {
    /// Schema, unquoted.
    pub schema: String,
    /// Table, unquoted.
    pub name: String,
    /// Columns to copy, unquoted, in table order: all but generated ones.
    pub columns: Vec<String>,
    /// The planner's estimate of its rows.
    pub rows_estimate: u64,
    /// COPY's binary form of every column means the same on every server.
    pub binary: bool,
    /// Blocks of its main file now.
    pub blocks: u32,
    /// Its size on disk, TOAST included, indexes not.
    pub bytes: u64,
}

impl TableToCopy {
    /// `"schema"."table"`.
    pub(crate) fn sql_name(&self) -> String {
        format!("{}.{}", quote_ident(&self.schema), quote_ident(&self.name))
    }

    fn sql_columns(&self) -> String {
        let columns: Vec<String> = self.columns.iter().map(|column| quote_ident(column)).collect();
        columns.join(", ")
    }
}

/// SQL: true for a column whose binary form is the same on every major version and holds no OID of this cluster's own.
///
/// Built-in types that are listed, arrays of them, domains over them, and enums (their binary form is the label). Not:
/// arrays of user-defined types and composites (they hold OIDs), types of extensions (the form is their version's),
/// `money` (its scale is the locale's), `interval` (a server before 17 takes an infinite one for a long one), `xml` and `reg*`. One such column makes its table go as text: COPY knows one
/// format for all columns.
const BINARY: &str = "EXISTS (\
    WITH RECURSIVE base AS ( \
      SELECT t.oid, t.typtype, t.typbasetype, t.typname FROM pg_catalog.pg_type t WHERE t.oid = a.atttypid \
      UNION ALL \
      SELECT t.oid, t.typtype, t.typbasetype, t.typname FROM base b \
      JOIN pg_catalog.pg_type t ON t.oid = b.typbasetype WHERE b.typtype = 'd') \
    SELECT FROM base b WHERE b.typtype = 'e' \
      OR (b.oid < 10000 AND ltrim(b.typname, '_') = ANY (ARRAY['bool', 'bytea', 'char', 'name', 'int2', 'int4', 'int8', 'oid', \
        'text', 'varchar', 'bpchar', 'float4', 'float8', 'numeric', 'date', 'time', 'timetz', 'timestamp', \
        'timestamptz', 'uuid', 'json', 'jsonb', 'inet', 'cidr', 'macaddr', 'macaddr8', 'bit', 'varbit', \
        'point', 'line', 'lseg', 'box', 'path', 'polygon', 'circle', 'pg_lsn', 'xid8', 'tsvector', \
        'int4range', 'int8range', 'numrange', 'tsrange', 'tstzrange', 'daterange'])))";

/// The tables to copy, by schema and name: the same ones as the publication lists.
pub async fn tables(client: &Client) -> Result<Vec<TableToCopy>, Error> {
    let rows = client
        .query(
            &format!(
                "SELECT n.nspname::text, c.relname::text, greatest(c.reltuples, 0)::bigint, \
                        coalesce(array_agg(a.attname::text ORDER BY a.attnum) FILTER (WHERE a.attnum IS NOT NULL), '{{}}'), \
                        coalesce(bool_and({BINARY}) FILTER (WHERE a.attnum IS NOT NULL), false), \
                        coalesce(pg_catalog.pg_relation_size(c.oid) / current_setting('block_size')::bigint, 0), \
                        coalesce(pg_catalog.pg_table_size(c.oid), 0) \
                 FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
                 LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped \
                     AND a.attgenerated = '' \
                 WHERE {USER_TABLES} GROUP BY 1, 2, c.oid, c.reltuples ORDER BY 1, 2"
            ),
            &[],
        )
        .await
        .map_err(Error::database("list the tables to copy"))?;
    Ok(rows
        .iter()
        .map(|row| TableToCopy {
            schema: row.get(0),
            name: row.get(1),
            rows_estimate: row.get::<_, i64>(2).unsigned_abs(),
            columns: row.get(3),
            binary: row.get(4),
            blocks: u32::try_from(row.get::<_, i64>(5)).unwrap_or(u32::MAX),
            bytes: row.get::<_, i64>(6).unsigned_abs(),
        })
        .collect())
}

/// A hash of what each table's rows are made of, columns with their defaults, by schema and name.
pub(crate) type Columns = HashMap<(String, String), String>;

/// As the client's snapshot shows them. Of what the server computes from newer catalogs nothing is asked: it would not fit.
pub(crate) async fn columns(client: &Client) -> Result<Columns, Error> {
    let sql = format!(
        "SELECT n.nspname::text, c.relname::text, pg_catalog.md5(concat(c.oid, ' ', pg_catalog.string_agg( \
             concat_ws(' ', a.attnum, a.attname, a.atttypid, a.atttypmod, a.attgenerated, d.adbin), ',' ORDER BY a.attnum))) \
         FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
         LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped \
         LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum \
         WHERE {USER_TABLES} GROUP BY 1, 2, c.oid"
    );
    let rows = client.query(&sql, &[]).await.map_err(Error::database("read the columns to copy"))?;
    Ok(rows.iter().map(|row| ((row.get(0), row.get(1)), row.get(2))).collect())
}

/// Begins a transaction that sees what `snapshot` saw, with the text output and time-outs that copying needs.
///
/// Row security is an error here rather than a filter: a copy must not lose rows in silence.
pub(crate) fn snapshot_sql(snapshot: &str) -> String {
    format!(
        "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT {}; {}",
        quote_literal(snapshot),
        connection::settings_sql(&[("row_security", "off"), ("transaction_timeout", "0")], true)
    )
}

/// The statement that takes a table's rows: without columns all of them, in the order that the table has here.
pub(crate) fn copy_in_sql(schema: &str, name: &str, columns: &[String], binary: bool) -> String {
    let columns: Vec<String> = columns.iter().map(|column| quote_ident(column)).collect();
    let list = if columns.is_empty() { String::new() } else { format!(" ({})", columns.join(", ")) };
    let (schema, name) = (quote_ident(schema), quote_ident(name));
    let format = if binary { "binary" } else { "text" };
    format!("COPY {schema}.{name}{list} FROM STDIN WITH (FORMAT {format})")
}
