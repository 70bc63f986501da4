//! The text of each statement. Pure.
//!
//! A statement that must find rows divides by zero when it finds another number of them than it was given: the server
//! itself then refuses the COMMIT that is already on its way, without a round trip to ask.

use std::sync::Arc;

use super::catalog::Table;
use super::plan::Kind;

/// SQLSTATE of the division by zero that says: a row was not found.
pub(super) const ROW_MISSING: &str = "22012";

pub(super) fn statement(table: &Table, kind: &Kind) -> String {
    let name = &table.sql_name;
    let every: Vec<usize> = (0..table.columns.len()).collect();
    match kind {
        Kind::Insert if every.is_empty() => format!("INSERT INTO {name} DEFAULT VALUES"),
        Kind::Insert => format!(
            "INSERT INTO {name} ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM {}",
            names(table, &every),
            (0..every.len()).map(|at| value(table, at, at)).collect::<Vec<_>>().join(", "),
            source(every.len()),
        ),
        Kind::Update(set) if set.is_empty() => counted(&format!(
            "SELECT 1 FROM ONLY {name} AS t, {} WHERE {} FOR UPDATE OF t",
            source(table.key.len()),
            by_key(table)
        )),
        Kind::Update(set) => counted(&format!(
            "UPDATE ONLY {name} AS t SET {} FROM {} WHERE {} RETURNING 1",
            assignments(table, set, table.key.len()),
            source(table.key.len() + set.len()),
            by_key(table),
        )),
        Kind::Replace(set) => {
            let values: Vec<String> = every
                .iter()
                .map(|at| match set.iter().position(|column| column == at) {
                    Some(place) => value(table, *at, table.key.len() + place),
                    None => format!("d.{}", table.columns[*at].sql_name),
                })
                .collect();
            let source = source(table.key.len() + set.len());
            format!(
                "WITH d AS (DELETE FROM ONLY {name} AS t USING {source} WHERE {} RETURNING t.*), \
                 w AS (INSERT INTO {name} ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM d, {source} RETURNING 1) \
                 SELECT 1 / (count(*) = cardinality($1))::int FROM w",
                by_key(table),
                names(table, &every),
                values.join(", "),
            )
        }
        Kind::Delete => counted(&format!(
            "DELETE FROM ONLY {name} AS t USING {} WHERE {} RETURNING 1",
            source(table.key.len()),
            by_key(table)
        )),
        Kind::FullUpdate(set) => {
            let width = every.len() + set.len();
            counted(&format!(
                "UPDATE ONLY {name} AS t SET {} FROM {} WHERE t.ctid = ({}) RETURNING 1",
                assignments(table, set, every.len()),
                source(width),
                one_by_all(table, width)
            ))
        }
        Kind::FullDelete => counted(&format!(
            "DELETE FROM ONLY {name} AS t WHERE t.ctid = ({}) RETURNING 1",
            one_by_all(table, every.len())
        )),
    }
}

pub(super) fn truncate(tables: &[Arc<Table>], restart_identity: bool) -> String {
    let names: Vec<&str> = tables.iter().map(|table| table.sql_name.as_str()).collect();
    let identity = if restart_identity { " RESTART IDENTITY" } else { "" };
    format!("TRUNCATE ONLY {}{identity}", names.join(", ONLY "))
}

fn counted(change: &str) -> String {
    format!("WITH w AS ({change}) SELECT 1 / (count(*) = cardinality($1))::int FROM w")
}

/// `unnest($1, $2) AS u(a0, a1)`.
fn source(width: usize) -> String {
    let parameters: Vec<String> = (1..=width).map(|at| format!("${at}::text[]")).collect();
    let names: Vec<String> = (0..width).map(|at| format!("a{at}")).collect();
    format!("unnest({}) AS u({})", parameters.join(", "), names.join(", "))
}

fn value(table: &Table, column: usize, place: usize) -> String {
    format!("u.a{place}::{}", table.columns[column].type_name)
}

fn names(table: &Table, columns: &[usize]) -> String {
    columns.iter().map(|at| table.columns[*at].sql_name.as_str()).collect::<Vec<_>>().join(", ")
}

fn assignments(table: &Table, set: &[usize], offset: usize) -> String {
    set.iter()
        .enumerate()
        .map(|(place, at)| format!("{} = {}", table.columns[*at].sql_name, value(table, *at, offset + place)))
        .collect::<Vec<_>>()
        .join(", ")
}

fn by_key(table: &Table) -> String {
    table
        .key
        .iter()
        .enumerate()
        .map(|(place, at)| format!("t.{} = {}", table.columns[*at].sql_name, value(table, *at, place)))
        .collect::<Vec<_>>()
        .join(" AND ")
}

/// Place of one row that equals the old one in every column. By text form: not every type has an equality, and the
/// source's own values, read as the column's type and written again, look the same.
fn one_by_all(table: &Table, width: usize) -> String {
    let same: Vec<String> = (0..table.columns.len())
        .map(|at| {
            format!(
                "s.{}::text IS NOT DISTINCT FROM ({})::text",
                table.columns[at].sql_name,
                value(table, at, at)
            )
        })
        .collect();
    let same = if same.is_empty() { "true".into() } else { same.join(" AND ") };
    format!("SELECT s.ctid FROM ONLY {} AS s, {} WHERE {same} LIMIT 1", table.sql_name, source(width))
}
