//! Tables that are not in the WAL (`CREATE UNLOGGED TABLE`). No logical decoding carries their rows, and their server empties them
//! after a crash. When a database moves they can be left empty, or carried under the hold, while nobody writes them: so they must be small.
//!
//! They are read and written by one message each way, as text that both sides read alike, however many there are: under a hold round trips
//! cost more than rows.
//!
//! Source: PostgreSQL documentation, CREATE TABLE, "UNLOGGED"; "Message Flow", "Multiple Statements in a Simple Query".

use tokio_postgres::SimpleQueryMessage;

use crate::beside::{Sides, answers, insert};
use crate::error::Error;
use crate::fence::refused;
use crate::postgres::connection::settings_sql;
use crate::postgres::quote_ident;
use crate::postgres::slot::UNLOGGED_TABLES;

/// What becomes of the rows of such tables when a database moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unlogged {
    /// A database that has one is not moved.
    Refused,
    /// They are gone, as after a crash.
    Emptied,
    /// They are carried.
    Carried,
}

impl Unlogged {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Emptied => "emptied",
            Self::Carried => "carried",
        }
    }
}

/// How many bytes of them, on the source's disk, are carried at most.
pub(crate) const MOST: u64 = 16 << 20;
/// How long mirrored reads may keep one of the shadow's.
const PATIENCE: &str = "5s";

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// `schema.table`, quoted where SQL needs it.
    name: String,
    /// Its columns but those that are generated, quoted.
    columns: Vec<String>,
}

/// Those of the source: the shadow's are the same, or nothing is moved.
///
/// # Errors
/// [`Error::Database`]; [`Error::Unready`] where `rows` are wanted and there are too many of them.
pub async fn tables(sides: Sides<'_>, rows: bool) -> Result<Vec<Table>, Error> {
    let sql = format!(
        "SELECT n.nspname::text, c.relname::text, pg_catalog.pg_table_size(c.oid), \
           ARRAY(SELECT a.attname::text FROM pg_catalog.pg_attribute a \
                 WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '' ORDER BY a.attnum) \
         FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
         WHERE {UNLOGGED_TABLES} ORDER BY 1, 2"
    );
    let found = sides.source.query_typed(&sql, &[]).await.map_err(refused("list unlogged tables"))?;
    let bytes: u64 = found.iter().map(|row| row.get::<_, i64>(2).unsigned_abs()).sum();
    if rows && bytes > MOST {
        let [bytes, most] = [bytes, MOST].map(|bytes| bytes >> 20);
        return Err(Error::Unready(format!(
            "unlogged tables hold {bytes} MiB, and at most {most} MiB of them are carried under a hold"
        )));
    }
    let table = |row: &tokio_postgres::Row| Table {
        name: format!("{}.{}", quote_ident(row.get(0)), quote_ident(row.get(1))),
        columns: row.get::<_, Vec<String>>(3).iter().map(|column| quote_ident(column)).collect(),
    };
    Ok(found.iter().map(table).collect())
}

/// Empties them on the shadow.
///
/// # Errors
/// [`Error::Fenced`] where the database is another generation's by now; [`Error::Database`].
pub async fn empty(sides: Sides<'_>, tables: &[Table]) -> Result<(), Error> {
    write(sides, tables, "").await
}

/// Gives the shadow's the rows of the source's, whatever they held; how many rows that are.
///
/// # Errors
/// Those of [`empty`].
pub async fn carry(sides: Sides<'_>, tables: &[Table]) -> Result<u64, Error> {
    let failed = |error| refused("read unlogged tables")(error);
    if tables.is_empty() {
        return Ok(0);
    }
    // Each message is a transaction.
    let mut read = settings_sql(&[("row_security", "off"), ("transaction_timeout", "0")], true);
    for Table { name, columns } in tables {
        read.push_str(&format!("; SELECT {} FROM ONLY {name}", columns.join(", ")));
    }
    let answer = sides.source.simple_query(&read).await.map_err(failed)?;
    let (inserts, rows) = inserts(tables, &answer)
        .ok_or_else(|| Error::Protocol("the rows of unlogged tables are not those asked for".into()))?;
    write(sides, tables, &inserts).await?;
    Ok(rows)
}

/// Empties them and does what comes then, in one transaction.
async fn write(sides: Sides<'_>, tables: &[Table], then: &str) -> Result<(), Error> {
    if tables.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = tables.iter().map(|table| table.name.as_str()).collect();
    let settings =
        [("session_replication_role", "replica"), ("transaction_timeout", "0"), ("lock_timeout", PATIENCE)];
    let sql = format!(
        "{}{}; TRUNCATE ONLY {};\n{then}",
        sides.guard_sql()?,
        settings_sql(&settings, true),
        names.join(", ONLY ")
    );
    sides.shadow.batch_execute(&sql).await.map_err(refused("write unlogged tables"))
}

/// What writes the rows that were read, one table after the other, after a statement without rows; and how many there are.
fn inserts(tables: &[Table], answer: &[SimpleQueryMessage]) -> Option<(String, u64)> {
    let (mut sql, mut rows) = (String::new(), 0);
    let mut answers = answers(answer);
    answers.next()?;
    for Table { name, columns } in tables {
        let values = answers.next()?;
        rows += values.len() as u64;
        insert(name, columns, |_| None, &values, &mut sql)?;
    }
    Some((sql, rows))
}
