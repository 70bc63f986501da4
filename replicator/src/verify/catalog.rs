//! Which tables there are, what their rows consist of, and how each can be walked.

use std::collections::BTreeMap;

use serde::Deserialize;
use tokio_postgres::Client;

use crate::error::Error;
use crate::fence::{refused, rows};
use crate::postgres::slot::filled;

/// A table as one side describes it.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Description {
    pub(super) name: String,
    /// `p` permanent, `u` unlogged.
    pub(super) persistence: String,
    pub(super) rows: f64,
    pub(super) pages: u64,
    pub(super) toast_bytes: u64,
    pub(super) columns: Vec<Column>,
    /// Of the best unique index: no NULL, no predicate, no expression.
    #[serde(default)]
    pub(super) key: Option<Vec<KeyColumn>>,
}

/// A column.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct Column {
    /// Unquoted.
    pub(super) name: String,
    pub(super) quoted: String,
    pub(super) bytea: bool,
    pub(super) variable: bool,
}

/// A column of a key.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct KeyColumn {
    pub(super) name: String,
    pub(super) quoted: String,
    /// With modifiers.
    pub(super) kind: String,
    /// Schema of its `=`.
    pub(super) equals_in: String,
    /// Its order is the server's own: no extension's type.
    pub(super) plain: bool,
    /// What decides the order of text: provider and locale; none: not text.
    pub(super) collation: Option<String>,
}

/// How a table is walked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// In key order.
    Ordered,
    /// Whole, in buckets by hash of the key: the sides sort the key differently, or its order is an extension's.
    Buckets,
    /// Whole, in buckets by hash of the row: there is no key.
    Multiset,
}

/// A table to compare.
#[derive(Clone, Debug)]
pub(super) struct Table {
    pub(super) name: String,
    pub(super) columns: Vec<Column>,
    pub(super) key: Vec<KeyColumn>,
    pub(super) way: Way,
    /// Large values are hashed one by one: a row's text may not exceed a gigabyte.
    pub(super) large: bool,
    /// Estimate.
    pub(super) rows: u64,
    pub(super) pages: u64,
}

/// Tables that are on both sides, and what stands in the way of others.
#[derive(Debug, Default)]
pub(super) struct Catalog {
    pub(super) tables: Vec<Table>,
    pub(super) only_source: Vec<String>,
    pub(super) only_target: Vec<String>,
    /// Table, columns only on the source, columns only on the target.
    pub(super) columns: Vec<(String, Vec<String>, Vec<String>)>,
    pub(super) notes: Vec<String>,
}

/// What describes a collation across versions: the catalogue's columns changed their names.
const SQL: &str = concat!(
    "WITH c AS (
  SELECT c.oid, format('%I.%I', n.nspname, c.relname) AS name, c.relpersistence, c.reltuples, c.reltoastrelid
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
  WHERE c.relkind = 'r' AND c.relpersistence <> 't'
    AND n.nspname <> ALL ('{pg_catalog,information_schema,godwit}') AND n.nspname !~ '^pg_(toast|temp_|toast_temp_)'
    AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')),
columns AS (
  SELECT a.attrelid, json_agg(json_build_object('name', a.attname, 'quoted', format('%I', a.attname),
    'bytea', a.atttypid = 'bytea'::regtype, 'variable', a.attlen = -1) ORDER BY a.attname COLLATE \"C\") AS list
  FROM pg_attribute a JOIN c ON c.oid = a.attrelid
  WHERE a.attnum > 0 AND NOT a.attisdropped GROUP BY 1),
base AS (
  SELECT coalesce(to_jsonb(d) ->> 'datlocprovider', 'c') || ':'
    || coalesce(to_jsonb(d) ->> 'datlocale', to_jsonb(d) ->> 'daticulocale', d.datcollate) AS locale
  FROM pg_database d WHERE d.datname = current_database()),
keys AS (
  SELECT DISTINCT ON (i.indrelid) i.indrelid, i.indexrelid, i.indnkeyatts
  FROM pg_index i JOIN c ON c.oid = i.indrelid
  WHERE i.indisunique AND i.indisvalid AND i.indimmediate AND i.indpred IS NULL AND i.indexprs IS NULL
    AND NOT EXISTS (
      SELECT FROM generate_series(0, i.indnkeyatts - 1) AS k
      JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[k]
      JOIN pg_opclass o ON o.oid = i.indclass[k]
      WHERE NOT ",
    filled!(),
    " OR NOT o.opcdefault OR i.indcollation[k] <> a.attcollation)
  ORDER BY i.indrelid, i.indisprimary DESC, i.indisreplident DESC, i.indnkeyatts, i.indexrelid),
key AS (
  SELECT k.indrelid, json_agg(json_build_object('name', a.attname, 'quoted', format('%I', a.attname),
      'kind', format_type(a.atttypid, a.atttypmod),
      'equals_in', (SELECT n.nspname FROM pg_amop m JOIN pg_operator p ON p.oid = m.amopopr
        JOIN pg_namespace n ON n.oid = p.oprnamespace
        WHERE m.amopfamily = o.opcfamily AND m.amopstrategy = 3 AND m.amoplefttype = o.opcintype
          AND m.amoprighttype = o.opcintype LIMIT 1),
      'plain', o.opcnamespace = 'pg_catalog'::regnamespace,
      'collation', CASE i.indcollation[p.place] WHEN 0 THEN NULL
        WHEN 'pg_catalog.\"default\"'::regcollation THEN (SELECT locale FROM base)
        ELSE (SELECT (to_jsonb(l) ->> 'collprovider') || ':' || coalesce(to_jsonb(l) ->> 'colllocale',
          to_jsonb(l) ->> 'colliculocale', to_jsonb(l) ->> 'collcollate', l.collname)
          FROM pg_collation l WHERE l.oid = i.indcollation[p.place]) END) ORDER BY p.place) AS list
  FROM keys k JOIN pg_index i ON i.indexrelid = k.indexrelid
  CROSS JOIN LATERAL generate_series(0, k.indnkeyatts - 1) AS p (place)
  JOIN pg_attribute a ON a.attrelid = k.indrelid AND a.attnum = i.indkey[p.place]
  JOIN pg_opclass o ON o.oid = i.indclass[p.place]
  GROUP BY 1)
SELECT json_build_object('name', c.name, 'persistence', c.relpersistence, 'rows', c.reltuples,
  'pages', pg_relation_size(c.oid) / current_setting('block_size')::bigint,
  'toast_bytes', CASE c.reltoastrelid WHEN 0 THEN 0 ELSE pg_relation_size(c.reltoastrelid) END,
  'columns', coalesce(columns.list, '[]'), 'key', key.list)
FROM c LEFT JOIN columns ON columns.attrelid = c.oid LEFT JOIN key ON key.indrelid = c.oid
WHERE pg_relation_size(c.oid) IS NOT NULL"
);

/// Describes every table of a database.
pub(super) async fn describe(client: &Client) -> Result<BTreeMap<String, Description>, Error> {
    let answer = client.simple_query(SQL).await.map_err(refused("cannot list the tables"))?;
    rows(answer)
        .iter()
        .map(|row| {
            let description: Description = serde_json::from_str(row.get(0).unwrap_or_default())
                .map_err(|error| Error::Protocol(format!("description of a table: {error}")))?;
            Ok((description.name.clone(), description))
        })
        .collect()
}

/// Puts both sides together.
pub(super) fn pair(
    source: BTreeMap<String, Description>,
    mut target: BTreeMap<String, Description>,
) -> Catalog {
    let mut catalog = Catalog::default();
    for (name, here) in source {
        let there = target.remove(&name);
        if here.persistence == "u" {
            catalog.notes.push(format!("{name} is unlogged: its rows are not replicated and not compared"));
            continue;
        }
        let Some(there) = there else {
            catalog.only_source.push(name);
            continue;
        };
        if there.persistence == "u" {
            catalog
                .notes
                .push(format!("{name} is unlogged on the target: its rows do not survive a crash there"));
        }
        catalog.tables.push(join(here, &there, &mut catalog.columns));
    }
    catalog.only_target =
        target.into_values().filter(|table| table.persistence == "p").map(|table| table.name).collect();
    catalog
}

/// Columns of a table, on the source only and on the target only.
type Missing = (String, Vec<String>, Vec<String>);

fn join(here: Description, there: &Description, missing: &mut Vec<Missing>) -> Table {
    let lacks = |in_these: &[Column], name: &str| in_these.iter().all(|column| column.name != name);
    let names = |columns: Vec<&Column>| columns.iter().map(|column| column.name.clone()).collect();
    let only_here: Vec<&Column> =
        here.columns.iter().filter(|column| lacks(&there.columns, &column.name)).collect();
    let only_there: Vec<&Column> =
        there.columns.iter().filter(|column| lacks(&here.columns, &column.name)).collect();
    if !only_here.is_empty() || !only_there.is_empty() {
        missing.push((here.name.clone(), names(only_here), names(only_there)));
    }
    let large = here.toast_bytes.max(there.toast_bytes) > LARGE;
    let usable = here.key.iter().flatten().all(|key| !lacks(&there.columns, &key.name));
    let key = here.key.filter(|_| usable).unwrap_or_default();
    let way = way(&key, there.key.as_deref().unwrap_or_default());
    // The planner may not have looked yet.
    let rows = if here.rows < 0.0 || (here.rows == 0.0 && here.pages > 0) {
        here.pages.saturating_mul(ROWS_PER_PAGE)
    } else {
        here.rows as u64
    };
    let columns = here.columns.into_iter().filter(|column| !lacks(&there.columns, &column.name)).collect();
    Table { name: here.name, columns, key, way, large, rows, pages: here.pages }
}

/// Bytes of out-of-line values above which they are hashed one by one.
const LARGE: u64 = 16 << 20;
/// A guess for tables that were never analysed.
const ROWS_PER_PAGE: u64 = 50;

fn way(here: &[KeyColumn], there: &[KeyColumn]) -> Way {
    if here.is_empty() {
        return Way::Multiset;
    }
    let same_order = here.iter().all(|column| {
        let order = |column: &KeyColumn| column.collation.as_deref().map(order);
        // An index that the target lacks makes it slow there, not wrong: the order is that of the type.
        let other = there.iter().find(|other| other.name == column.name);
        column.plain && other.is_none_or(|other| order(other) == order(column))
    });
    if same_order { Way::Ordered } else { Way::Buckets }
}

/// The order that a collation gives, as far as its name tells: bytes, or the locale's. Two versions of one locale may differ in
/// some places; that costs readings, not exactness.
fn order(collation: &str) -> String {
    let (provider, locale) = collation.split_once(':').unwrap_or(("c", collation));
    match (provider, locale) {
        ("c", "C" | "POSIX" | "ucs_basic") | ("b", _) => "bytes".into(),
        _ => format!("{provider}:{}", locale.to_ascii_lowercase().replace("utf-8", "utf8")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(plain: bool, collation: Option<&str>) -> KeyColumn {
        KeyColumn {
            name: "k".into(),
            quoted: "k".into(),
            kind: "text".into(),
            equals_in: "pg_catalog".into(),
            plain,
            collation: collation.map(str::to_owned),
        }
    }

    #[test]
    fn a_table_is_walked_in_order_only_where_both_sides_sort_alike() {
        let go = |a: (bool, Option<&str>), b: Option<&str>| way(&[column(a.0, a.1)], &[column(a.0, b)]);
        assert_eq!(go((true, None), None), Way::Ordered);
        assert_eq!(go((true, Some("c:en_US.UTF-8")), Some("c:en_US.utf8")), Way::Ordered);
        assert_eq!(go((true, Some("c:C")), Some("b:C.UTF-8")), Way::Ordered);
        assert_eq!(go((true, Some("c:C")), Some("c:en_US.utf8")), Way::Buckets);
        assert_eq!(go((true, Some("i:en-US")), Some("c:en_US.utf8")), Way::Buckets);
        assert_eq!(go((false, None), None), Way::Buckets);
        assert_eq!(way(&[], &[]), Way::Multiset);
    }
}
