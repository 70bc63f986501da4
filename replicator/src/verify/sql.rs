//! The statements of a verification. Rows are hashed in the database; what comes back is numbers, keys and hashes.

use super::catalog::{Table, Way};
use super::range::{Key, Range};
use crate::fence::literal;
use crate::postgres::quote_literal;

/// Text forms that differ between servers or sessions unless pinned; and modest use of the server.
pub(super) const SESSION: &str = "SET search_path = pg_catalog;
SET extra_float_digits = 1;
SET \"DateStyle\" = 'ISO, YMD';
SET \"IntervalStyle\" = 'postgres';
SET \"TimeZone\" = 'UTC';
SET bytea_output = 'hex';
SET xmloption = 'content';
SET lc_monetary = 'C';
SET row_security = off;
SET default_transaction_isolation = 'read committed';
SET default_transaction_read_only = off;
SET jit = off;
SET max_parallel_workers_per_gather = 0";

/// Joins what each of `items` becomes.
fn list<T>(items: &[T], each: impl Fn(&T) -> String) -> String {
    items.iter().map(each).collect::<Vec<_>>().join(", ")
}

/// The hash of a row `t`: columns in name order, as text.
pub(super) fn row_hash(table: &Table) -> String {
    let column = |column: &super::catalog::Column| {
        let name = format!("t.{}", column.quoted);
        match (table.large, column.bytea, column.variable) {
            (true, true, _) => format!("md5({name})"),
            (true, false, true) => format!("md5(convert_to({name}::text, 'UTF8'))"),
            _ => name,
        }
    };
    format!("md5(convert_to(ROW({})::text, 'UTF8'))", list(&table.columns, column))
}

fn key_columns(table: &Table) -> String {
    list(&table.key, |column| format!("t.{}", column.quoted))
}

/// The key of row `t` as text, one column each; a row without a key goes by its hash.
fn key_texts(table: &Table) -> String {
    match table.way {
        Way::Multiset => row_hash(table),
        _ => list(&table.key, |column| format!("t.{}::text", column.quoted)),
    }
}

fn key_literal(table: &Table, key: &Key) -> String {
    let values: Vec<String> = table
        .key
        .iter()
        .zip(key)
        .map(|(column, text)| format!("{}::{}", quote_literal(text), column.kind))
        .collect();
    values.join(", ")
}

fn condition(table: &Table, range: &Range) -> String {
    let names = key_columns(table);
    let mut bounds: Vec<String> = Vec::new();
    bounds.extend(range.after.iter().map(|key| format!("({names}) > ({})", key_literal(table, key))));
    bounds.extend(range.until.iter().map(|key| format!("({names}) <= ({})", key_literal(table, key))));
    if bounds.is_empty() { String::new() } else { format!(" WHERE {}", bounds.join(" AND ")) }
}

/// One half of the sum of hashes `h`; exact, reduced modulo 2^64 by the reader.
fn half(from: u32) -> String {
    format!("coalesce(sum(('x' || substr(h, {from}, 16))::bit(64)::bigint), 0)")
}

/// Number, rows and both halves of the sum, one line per table and range.
pub(super) fn sums(ranges: &[(&Table, &Range)]) -> String {
    let one = |(number, (table, range)): (usize, &(&Table, &Range))| {
        format!(
            "SELECT {number}, count(h), {}, {} FROM (SELECT {} AS h FROM ONLY {} t{}) s",
            half(1),
            half(17),
            row_hash(table),
            table.name,
            condition(table, range),
        )
    };
    ranges.iter().enumerate().map(one).collect::<Vec<_>>().join("\nUNION ALL ")
}

/// The key that is `rows` further on.
pub(super) fn boundary(table: &Table, after: Option<&Key>, rows: u64) -> String {
    let range = Range { after: after.cloned(), until: None };
    format!(
        "SELECT {} FROM ONLY {} t{} ORDER BY {} OFFSET {} LIMIT 1",
        key_texts(table),
        table.name,
        condition(table, &range),
        // Qualified: a bare name would mean the output column, and sort as text.
        key_columns(table),
        rows.saturating_sub(1),
    )
}

/// Every `rows`-th key of a range.
pub(super) fn split(table: &Table, range: &Range, rows: u64) -> String {
    format!(
        "SELECT {} FROM (SELECT t.*, row_number() OVER (ORDER BY {}) AS godwit_place FROM ONLY {} t{}) t
         WHERE godwit_place % {} = 0 ORDER BY godwit_place",
        key_texts(table),
        key_columns(table),
        table.name,
        condition(table, range),
        rows.max(1),
    )
}

const VERSION: &str = "t.ctid::text || '/' || t.xmin::text";

/// Hash, version and key of every row of a range.
pub(super) fn list_rows(table: &Table, range: &Range) -> String {
    format!(
        "SELECT {}, {VERSION}, {} FROM ONLY {} t{}",
        row_hash(table),
        key_texts(table),
        table.name,
        condition(table, range)
    )
}

/// Number, hash and version of the rows with these keys.
pub(super) fn keys(table: &Table, keys: &[Key], hold: bool) -> String {
    let lock = if hold { " FOR SHARE OF t" } else { "" };
    format!("SELECT k.n, {}, {VERSION} FROM {}{lock}", row_hash(table), keys_join(table, keys))
}

/// `k (n, …)` with these keys, joined to the table's rows.
fn keys_join(table: &Table, keys: &[Key]) -> String {
    let wanted: Vec<String> = keys
        .iter()
        .enumerate()
        .map(|(number, key)| match table.way {
            Way::Multiset => format!("({number}, {})", literal(key.first().map_or("", String::as_str))),
            _ => format!("({number}, {})", key_literal(table, key)),
        })
        .collect();
    let (names, on) = match table.way {
        Way::Multiset => ("h".to_owned(), format!("{} = k.h", row_hash(table))),
        _ => {
            let names: Vec<String> = (0..table.key.len()).map(|place| format!("c{place}")).collect();
            let on: Vec<String> = table
                .key
                .iter()
                .zip(&names)
                .map(|(column, name)| {
                    let schema = crate::postgres::quote_ident(&column.equals_in);
                    format!("t.{} OPERATOR({schema}.=) k.{name}", column.quoted)
                })
                .collect();
            (names.join(", "), on.join(" AND "))
        }
    };
    format!("(VALUES {}) AS k (n, {names}) JOIN ONLY {} t ON {on}", wanted.join(", "), table.name)
}

/// The key, and hash (and text, cut short) of each column, of the row with this key.
pub(super) fn columns(table: &Table, key: &Key, values: bool) -> String {
    let cells = list(&table.columns, |column| {
        let text = format!("t.{}::text", column.quoted);
        let shown = if values { format!("left({text}, 200)") } else { "NULL::text".into() };
        format!("md5(convert_to({text}, 'UTF8')), {shown}")
    });
    let cells = if cells.is_empty() { String::new() } else { format!(", {cells}") };
    format!("SELECT {}{cells} FROM {} LIMIT 1", key_texts(table), keys_join(table, std::slice::from_ref(key)))
}

/// Number of the bucket of row `t` among `buckets`.
fn bucket(table: &Table, buckets: u32) -> String {
    let hash = match table.way {
        Way::Multiset => row_hash(table),
        _ => format!(
            "md5(convert_to(ROW({})::text, 'UTF8'))",
            list(&table.key, |column| format!("t.{}", column.quoted))
        ),
    };
    format!("('x' || substr({hash}, 25, 8))::bit(32)::bigint % {buckets}")
}

/// Row `t` is in pages `from..until`.
fn in_pages(from: u64, until: Option<u64>) -> String {
    let end = until.map(|until| format!(" AND t.ctid < '({until},0)'::tid")).unwrap_or_default();
    format!("t.ctid >= '({from},0)'::tid{end}")
}

/// Bucket, rows and sums of the rows in pages `from..until`.
pub(super) fn buckets(table: &Table, buckets: u32, from: u64, until: Option<u64>) -> String {
    format!(
        "SELECT b, count(h), {}, {} FROM (SELECT {} AS b, {} AS h FROM ONLY {} t WHERE {}) s GROUP BY b",
        half(1),
        half(17),
        bucket(table, buckets),
        row_hash(table),
        table.name,
        in_pages(from, until),
    )
}

/// Hash, version and key of every row in pages `from..until` that is in these buckets.
pub(super) fn list_buckets(
    table: &Table,
    buckets: u32,
    wanted: &[u32],
    from: u64,
    until: Option<u64>,
) -> String {
    format!(
        "SELECT {}, {VERSION}, {} FROM ONLY {} t WHERE {} AND {} IN ({})",
        row_hash(table),
        key_texts(table),
        table.name,
        in_pages(from, until),
        bucket(table, buckets),
        list(wanted, ToString::to_string)
    )
}
