//! Tables that are not in the WAL (`CREATE UNLOGGED TABLE`). No logical decoding carries their rows, and their server empties them
//! after a crash. When a database moves they can be left empty, or carried under the hold, while nobody writes them: so they must be small.
//!
//! They are read and written by one message each way, as text that both sides read alike, however many there are: under a hold round trips
//! cost more than rows.
//!
//! Source: PostgreSQL documentation, CREATE TABLE, "UNLOGGED"; "Message Flow", "Multiple Statements in a Simple Query".

use tokio_postgres::SimpleQueryMessage;

use crate::beside::Sides;
use crate::error::Error;
use crate::fence::{literal, refused};
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
/// Rows that one INSERT writes.
const AT_ONCE: usize = 500;
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
    let mut answers = answer.split(|message| matches!(message, SimpleQueryMessage::CommandComplete(_)));
    answers.next()?;
    for table in tables {
        let values = answers.next()?.iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some((0..row.len()).map(|at| row.get(at)).collect::<Vec<_>>()),
            _ => None,
        });
        let values: Vec<_> = values.collect();
        rows += values.len() as u64;
        table.insert(&values, &mut sql)?;
    }
    Some((sql, rows))
}

impl Table {
    fn insert(&self, rows: &[Vec<Option<&str>>], sql: &mut String) -> Option<()> {
        let Self { name, columns } = self;
        if columns.is_empty() {
            sql.push_str(&format!(
                "INSERT INTO {name} SELECT FROM pg_catalog.generate_series(1, {});\n",
                rows.len()
            ));
            return Some(());
        }
        for some in rows.chunks(AT_ONCE) {
            sql.push_str(&format!(
                "INSERT INTO {name} ({}) OVERRIDING SYSTEM VALUE VALUES ",
                columns.join(", ")
            ));
            for (at, row) in some.iter().enumerate() {
                if row.len() != columns.len() {
                    return None;
                }
                let values = row.iter().map(|value| value.map_or_else(|| "NULL".to_owned(), literal));
                sql.push_str(if at == 0 { "(" } else { ", (" });
                sql.push_str(&values.collect::<Vec<_>>().join(", "));
                sql.push(')');
            }
            sql.push_str(";\n");
        }
        Some(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_written_as_they_were_read() {
        let table = Table { name: "public.t".into(), columns: vec!["id".into(), "\"Said\"".into()] };
        let mut sql = String::new();
        let mut rows = vec![vec![Some("1"), Some("it's \\ so")], vec![Some("2"), None]];
        table.insert(&rows, &mut sql).unwrap();
        assert_eq!(
            sql,
            "INSERT INTO public.t (id, \"Said\") OVERRIDING SYSTEM VALUE VALUES ('1',  E'it''s \\\\ so'), ('2', NULL);\n"
        );
        rows.push(vec![Some("3")]);
        assert_eq!(table.insert(&rows, &mut sql), None, "a row of another table");
        let many = vec![vec![Some("1"), None]; AT_ONCE + 1];
        sql.clear();
        table.insert(&many, &mut sql).unwrap();
        assert_eq!(sql.matches("INSERT INTO").count(), 2);
        sql.clear();
        Table { name: "public.none".into(), columns: vec![] }.insert(&[vec![], vec![]], &mut sql).unwrap();
        assert_eq!(sql, "INSERT INTO public.none SELECT FROM pg_catalog.generate_series(1, 2);\n");
    }
}
