//! The rows that are there at the start, by `COPY` under the slot's snapshot.

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use tokio_postgres::Client;

use crate::error::Error;
use crate::postgres::slot::USER_TABLES;
use crate::postgres::{connection, quote_ident, quote_literal};

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
}

impl TableToCopy {
    /// `"schema"."table" ("column", …)`: what follows `COPY` on either side.
    pub fn copy_target(&self) -> String {
        let columns: Vec<String> = self.columns.iter().map(|column| quote_ident(column)).collect();
        let table = format!("{}.{}", quote_ident(&self.schema), quote_ident(&self.name));
        if columns.is_empty() { table } else { format!("{table} ({})", columns.join(", ")) }
    }
}

/// The tables to copy, by schema and name: the same ones as the publication lists.
pub async fn tables(client: &Client) -> Result<Vec<TableToCopy>, Error> {
    let rows = client
        .query(
            &format!(
                "SELECT n.nspname::text, c.relname::text, greatest(c.reltuples, 0)::bigint, \
                        coalesce(array_agg(a.attname::text ORDER BY a.attnum) FILTER (WHERE a.attnum IS NOT NULL), '{{}}') \
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
        })
        .collect())
}

/// Begins a transaction that sees what `snapshot` saw, with the text output and time-outs that copying needs.
///
/// Row security is an error here rather than a filter: a copy must not lose rows in silence.
pub async fn begin_snapshot(client: &Client, snapshot: &str) -> Result<(), Error> {
    let settings: Vec<String> = connection::SESSION_SETTINGS
        .into_iter()
        .chain([("row_security", "off"), ("transaction_timeout", "0")])
        .map(|(name, value)| format!("({}, {})", quote_literal(name), quote_literal(value)))
        .collect();
    // By way of pg_settings, so that a setting this version does not know is left out.
    let sql = format!(
        "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT {}; \
         DO $$ BEGIN PERFORM pg_catalog.set_config(s.name, s.value, true) FROM (VALUES {}) AS s(name, value) \
         JOIN pg_catalog.pg_settings known ON lower(known.name) = s.name; END $$",
        quote_literal(snapshot),
        settings.join(", ")
    );
    client.batch_execute(&sql).await.map_err(Error::database(format!("use snapshot {snapshot}")))
}

/// The table's rows in COPY's text format; call it inside [`begin_snapshot`]'s transaction.
///
/// The stream borrows nothing; dropping it early leaves the server sending until the rows are through, so drop the
/// client with it.
pub async fn copy_out(
    client: &Client,
    table: &TableToCopy,
) -> Result<impl Stream<Item = Result<Bytes, Error>> + Send + use<>, Error> {
    let context = format!("copy {}.{}", table.schema, table.name);
    let rows = client
        .copy_out(&format!("COPY {} TO STDOUT", table.copy_target()))
        .await
        .map_err(Error::database(context.clone()))?;
    Ok(Box::pin(rows.map(move |chunk| chunk.map_err(Error::database(context.clone())))))
}
