//! The text of each statement. Pure.
//!
//! A statement that must find rows compares how many it found with how many it was given, and fails by itself when they
//! differ: the server then refuses the COMMIT that is already on its way, without a round trip to ask.

use std::sync::Arc;

use super::catalog::{Table, TargetColumn};
use super::plan::Kind;
use crate::postgres::quote_literal;

/// SQLSTATE of the failed conversion that says how many rows were found; its text begins with [`ROWS_FOUND`].
pub(super) const COUNT_FAILED: &str = "22P02";

/// See [`COUNT_FAILED`].
pub(super) const ROWS_FOUND: &str = "godwit found ";

pub(super) fn statement(table: &Table, kind: &Kind) -> String {
    let name = &table.sql_name;
    let every: Vec<usize> = (0..table.columns.len()).collect();
    let keyed = |set: &[usize]| source(table, &[&table.key, set].concat());
    match kind {
        Kind::Insert if every.is_empty() => format!("INSERT INTO {name} DEFAULT VALUES"),
        Kind::Insert => format!(
            "INSERT INTO {name} ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM {}",
            names(table, &every),
            every.iter().map(|at| value(table, *at, *at)).collect::<Vec<_>>().join(", "),
            source(table, &every),
        ),
        Kind::Copy => format!("COPY {name} ({}) FROM STDIN", names(table, &every)),
        Kind::Update(set) => counted(&update(table, set, &keyed(set), &by_key(table, "t"))),
        Kind::Replace(set) => {
            let brought = every.iter().map(|at| match set.iter().position(|column| column == at) {
                Some(place) => value(table, *at, table.key.len() + place),
                None => format!("d.{}", table.columns[*at].sql_name),
            });
            let values: Vec<String> =
                brought.chain(table.others.iter().map(|name| format!("d.{name}"))).collect();
            let columns = table.columns.iter().map(|column| &column.sql_name).chain(&table.others);
            let columns: Vec<&str> = columns.map(String::as_str).collect();
            let (source, found, same) = (keyed(set), by_key(table, "t"), same_numbers(table, set));
            counted_with(
                &format!(
                    "u AS ({}), d AS (DELETE FROM {} AS t USING {source} WHERE {found} AND ({same}) IS NOT TRUE RETURNING t.*), \
                     i AS (INSERT INTO {name} ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM d JOIN {source} ON {} RETURNING 1), ",
                    update(table, set, &source, &format!("{found} AND {same}")),
                    only(table),
                    columns.join(", "),
                    values.join(", "),
                    by_key(table, "d"),
                ),
                "SELECT 1 FROM u UNION ALL SELECT 1 FROM i",
            )
        }
        Kind::Delete => counted(&format!(
            "DELETE FROM {} AS t USING {} WHERE {} RETURNING 1",
            only(table),
            keyed(&[]),
            by_key(table, "t")
        )),
        Kind::FullUpdate(set) => counted(&format!(
            "UPDATE {} AS t SET {} FROM {} WHERE t.ctid = ({}) RETURNING 1",
            only(table),
            assignments(table, set.iter().enumerate(), every.len()),
            source(table, &[&every, &set[..]].concat()),
            format_args!(
                "SELECT s.ctid FROM ONLY {name} AS s WHERE {} = {} LIMIT 1",
                whole(table, |column| format!("s.{column}")),
                whole_given(table)
            ),
        )),
        Kind::FullDelete => full_delete(table),
    }
}

/// Deletes as many of each given row as is asked for. Rows are equal when their text is: not every type has an equality,
/// and the source's values, read as the column's type and written again, look the same.
fn full_delete(table: &Table) -> String {
    let width = table.columns.len();
    let every: Vec<usize> = (0..width).collect();
    let mut parameters = parameters(table, &every);
    parameters.push(format!("${}::int8[]", width + 1));
    let names: Vec<String> = (0..=width).map(|at| format!("a{at}")).collect();
    let given = format!(
        "SELECT {} AS whole, u.a{width} AS times FROM unnest({}) AS u({})",
        whole_given(table),
        parameters.join(", "),
        names.join(", ")
    );
    let name = &table.sql_name;
    format!(
        "WITH w AS (DELETE FROM ONLY {name} AS t WHERE t.ctid = ANY (ARRAY(SELECT f.place FROM ( \
           SELECT s.ctid AS place, g.times, row_number() OVER (PARTITION BY g.whole) AS n \
           FROM ONLY {name} AS s JOIN ({given}) AS g ON {} = g.whole) AS f WHERE f.n <= f.times)) RETURNING 1) \
         SELECT {} FROM w",
        whole(table, |column| format!("s.{column}")),
        verdict(&format!("(SELECT sum(g.n) FROM unnest(${}) AS g(n))", width + 1)),
    )
}

/// Empties these tables and no other. The stream names every published table that a TRUNCATE reached, so one that is not named keeps its rows,
/// even where it refers to one of these: the source may have had no such foreign key, or the table's rows are of a later point or another lane.
/// Then they are emptied row by row, which a foreign key does not forbid a replica.
///
/// No sequence begins again, as the source's may have: the move sets them to what the source's are, which may be before this is applied.
pub(super) fn truncate(tables: &[Arc<Table>]) -> String {
    let names: Vec<String> = tables.iter().map(|table| only(table)).collect();
    let oids: Vec<String> = tables
        .iter()
        .map(|table| format!("{}::pg_catalog.regclass", quote_literal(&table.sql_name)))
        .collect();
    // CASCADE reaches partitioned tables, whose partitions are named, and unlogged ones, which no stream names.
    let body = format!(
        "BEGIN IF EXISTS ( \
           WITH RECURSIVE given AS (SELECT unnest(ARRAY[{}])::pg_catalog.oid AS oid), \
           named AS (SELECT oid FROM given UNION SELECT p.relid FROM given g, pg_catalog.pg_partition_tree(g.oid) AS p), \
           reached AS (SELECT oid FROM named \
             UNION SELECT k.conrelid FROM reached r JOIN pg_catalog.pg_constraint k ON k.confrelid = r.oid AND k.contype = 'f') \
           SELECT FROM reached r JOIN pg_catalog.pg_class c ON c.oid = r.oid \
           WHERE c.relkind = 'r' AND c.relpersistence = 'p' AND r.oid NOT IN (SELECT oid FROM named)) \
         THEN DELETE FROM {}; ELSE TRUNCATE {} CASCADE; END IF; END",
        oids.join(", "),
        names.join("; DELETE FROM "),
        names.join(", "),
    );
    format!("DO {}", quote_literal(&body))
}

fn only(table: &Table) -> String {
    if table.partitioned { table.sql_name.clone() } else { format!("ONLY {}", table.sql_name) }
}

/// A change that returns a row for each row that it found.
fn counted(change: &str) -> String {
    counted_with("", change)
}

/// The same after other WITH entries.
fn counted_with(entries: &str, change: &str) -> String {
    format!("WITH {entries}w AS ({change}) SELECT {} FROM w", verdict("cardinality($1)"))
}

fn verdict(wanted: &str) -> String {
    format!(
        "CASE WHEN count(*) = {wanted} THEN 0 \
         ELSE ('{ROWS_FOUND}' || count(*) || ' of ' || {wanted} || ' rows')::pg_catalog.int4 END"
    )
}

fn parameters(table: &Table, columns: &[usize]) -> Vec<String> {
    columns
        .iter()
        .enumerate()
        .map(|(at, column)| format!("${}::{}", at + 1, table.columns[*column].transport.array_name()))
        .collect()
}

/// `unnest($1, $2) AS u(a0, a1)`.
fn source(table: &Table, columns: &[usize]) -> String {
    let names: Vec<String> = (0..columns.len()).map(|at| format!("a{at}")).collect();
    format!("unnest({}) AS u({})", parameters(table, columns).join(", "), names.join(", "))
}

fn value(table: &Table, column: usize, place: usize) -> String {
    let TargetColumn { type_name, by_input, .. } = &table.columns[column];
    // The only element of an array that is read.
    if *by_input {
        format!("((ARRAY[u.a{place}]::pg_catalog.text)::{type_name}[])[1]")
    } else {
        format!("u.a{place}::{type_name}")
    }
}

fn names(table: &Table, columns: &[usize]) -> String {
    columns.iter().map(|at| table.columns[*at].sql_name.as_str()).collect::<Vec<_>>().join(", ")
}

/// Sets what can be set in the rows that are `found`.
fn update(table: &Table, set: &[usize], source: &str, found: &str) -> String {
    let (table_name, settable) = (only(table), placed(set, |at| !table.columns[at].always_identity));
    match assignments(table, settable, table.key.len()) {
        none if none.is_empty() => {
            format!("SELECT 1 FROM {table_name} AS t, {source} WHERE {found} FOR UPDATE OF t")
        }
        some => format!("UPDATE {table_name} AS t SET {some} FROM {source} WHERE {found} RETURNING 1"),
    }
}

/// Those of these columns that are so, with their places.
fn placed(set: &[usize], is: impl Fn(usize) -> bool) -> impl Iterator<Item = (usize, &usize)> {
    set.iter().enumerate().filter(move |(_, at)| is(**at))
}

/// Whether a row has these numbers, which no UPDATE can set.
fn same_numbers(table: &Table, set: &[usize]) -> String {
    placed(set, |at| table.columns[at].always_identity)
        .map(|(place, at)| {
            let column = &table.columns[*at];
            format!("t.{} {} {}", column.sql_name, column.equals, value(table, *at, table.key.len() + place))
        })
        .collect::<Vec<_>>()
        .join(" AND ")
}

fn assignments<'s>(table: &Table, set: impl Iterator<Item = (usize, &'s usize)>, offset: usize) -> String {
    set.map(|(place, at)| format!("{} = {}", table.columns[*at].sql_name, value(table, *at, offset + place)))
        .collect::<Vec<_>>()
        .join(", ")
}

fn by_key(table: &Table, alias: &str) -> String {
    table
        .key
        .iter()
        .enumerate()
        .map(|(place, at)| {
            let column = &table.columns[*at];
            format!("{alias}.{} {} {}", column.sql_name, column.equals, value(table, *at, place))
        })
        .collect::<Vec<_>>()
        .join(" AND ")
}

/// The text of a whole row; tells NULL from an empty text. A value's cast to text may leave something out (blanks at the end of a `bpchar`): the row's
/// is made of what the types write.
fn whole(table: &Table, cell: impl Fn(&str) -> String) -> String {
    let cells: Vec<String> = table.columns.iter().map(|column| cell(&column.sql_name)).collect();
    format!("ROW({})::pg_catalog.text COLLATE \"C\"", cells.join(", "))
}

/// The same of a given row, whose columns are the first parameters.
fn whole_given(table: &Table) -> String {
    let cells: Vec<String> = (0..table.columns.len()).map(|at| value(table, at, at)).collect();
    format!("ROW({})::pg_catalog.text COLLATE \"C\"", cells.join(", "))
}
