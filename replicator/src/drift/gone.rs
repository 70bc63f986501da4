//! What is left in a stream of tables and columns that its source has no more.
//!
//! A table that was altered, written and dropped before the shadow followed leaves changes that fit nowhere, and the shadow's is not dropped before
//! they are through. Nobody can read their rows any more: the applier writes down which tables the changes are of that it cannot apply
//! (`godwit.stands_at`), the source is asked for these by number, and of those that are gone there the changes up to then are skipped, as are
//! changes of a table that was copied later ([`crate::apply`]'s window). Changes of a table that lives never are.
//!
//! Of a table that lives, a column may have come and gone. The shadow's gets one of that name, which takes whatever the stream brings of it and is dropped
//! again when the stream is past that, as any column that the source has no more. Where the source's may only be called otherwise by now, nothing
//! is done.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tokio_postgres::Client;
use tokio_postgres::types::PgLsn;

use super::{identities, is_prepared, mark, sync, target_table};
use crate::error::Error;
use crate::fence::refused;
use crate::identity;
use crate::postgres::quote_ident;

/// How a stream describes a table that it stands at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Described {
    /// Schema, unquoted.
    pub schema: String,
    /// Name, unquoted.
    pub name: String,
    /// Its columns, for each description of it, in the order of the source's table. Generated ones are absent.
    pub columns: Vec<Vec<String>>,
}

/// What a stream passes over.
#[derive(Debug, Default)]
pub struct Passed {
    /// Tables that are gone on the source, as `schema.table`.
    pub tables: Vec<String>,
    /// Columns that are gone there, as `schema.table.column`: the shadow's table has them until the stream is past them.
    pub columns: Vec<String>,
}

/// Has the stream of this slot skip what is left of tables among those that it stands at which are gone on the source, and gives the shadow the columns
/// that are gone there and still named in the stream.
pub async fn pass_over(source: &Client, shadow: &Client, slot: &str) -> Result<Passed, Error> {
    let failed = |error| refused("pass over tables that are gone")(error);
    if !is_prepared(shadow, "stands_at").await? {
        return Ok(Passed::default());
    }
    let stands = "SELECT source_table, name, described::text FROM godwit.stands_at WHERE stream = $1";
    let stands = shadow.query(stands, &[&slot]).await.map_err(failed)?;
    if stands.is_empty() {
        return Ok(Passed::default());
    }
    // Numbers mean nothing in another database.
    let known = identity::of_checkpoint(shadow, slot).await?;
    if known.is_none() || known != identity::of(source).await? {
        return Ok(Passed::default());
    }
    // Read before it is asked: whatever comes after it is kept.
    let position = "SELECT pg_catalog.pg_current_wal_insert_lsn()";
    let position: PgLsn = source.query_one(position, &[]).await.map_err(failed)?.get(0);
    let numbers: Vec<u32> = stands.iter().map(|row| row.get(0)).collect();
    let gone = "SELECT number FROM unnest($1::oid[]) number WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.oid = number) \
        AND EXISTS (SELECT FROM pg_catalog.pg_replication_slots s WHERE s.slot_name = $2::text AND s.database = pg_catalog.current_database())";
    let gone = source.query(gone, &[&numbers, &slot]).await.map_err(failed)?;
    let gone: Vec<u32> = gone.iter().map(|row| row.get(0)).collect();
    if !gone.is_empty() {
        // A server that crashes now must not have them again.
        mark(source).await?;
    }
    let (dropped, living): (Vec<_>, Vec<_>) = stands.iter().partition(|row| gone.contains(&row.get(0)));
    let mut columns = Vec::new();
    for row in living {
        // One that another version wrote down is not described.
        let described = row.get::<_, Option<&str>>(2).and_then(|text| serde_json::from_str(text).ok());
        if let Some(described) = described {
            columns.extend(lend([source, shadow], row.get(0), &described).await?);
        }
    }
    let skip = "WITH told AS (DELETE FROM godwit.stands_at WHERE stream = $1 AND source_table = ANY ($2::oid[])) \
        INSERT INTO godwit.copied_parts (stream, schema_name, table_name, part, parts, position, rows, bytes, source_table) \
        SELECT stream, '', number::text, 0, 1, $4, 0, 0, number FROM godwit.progress, unnest($3::oid[]) number \
        WHERE stream = $1 AND copied AND applied_lsn < $4 \
        ON CONFLICT (stream, schema_name, table_name, part) DO UPDATE SET position = EXCLUDED.position";
    shadow.execute(skip, &[&slot, &numbers, &gone, &position]).await.map_err(failed)?;
    Ok(Passed { tables: dropped.into_iter().map(|row| row.get(1)).collect(), columns })
}

/// Gives the shadow's table columns of these descriptions that it lacks and the source has dropped; their names, as `schema.table.column`.
async fn lend(
    [source, shadow]: [&Client; 2],
    number: u32,
    described: &Described,
) -> Result<Vec<String>, Error> {
    let failed = |error| refused("look for columns that are gone")(error);
    let Described { schema, name, columns } = described;
    // A partition's columns are its parent's.
    let here = concat!(
        "WITH t AS (SELECT ",
        target_table!(),
        " AS oid) \
        SELECT pg_catalog.format('%I.%I', n.nspname, c.relname), \
          ARRAY(SELECT a.attname::text FROM pg_catalog.pg_attribute a WHERE a.attrelid = t.oid AND a.attnum > 0 AND NOT a.attisdropped \
            UNION SELECT i.name FROM godwit.identities i WHERE i.source_table = $3 AND i.target_table = t.oid), t.oid \
        FROM t JOIN pg_catalog.pg_class c ON c.oid = coalesce(pg_catalog.pg_partition_root(t.oid), t.oid) \
        JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
    );
    let Some(row) = shadow.query_opt(here, &[schema, name, &number]).await.map_err(failed)? else {
        return Ok(Vec::new());
    };
    let (table, here, target): (String, Vec<String>, u32) = (row.get(0), row.get(1), row.get(2));
    if columns.iter().flatten().all(|column| here.contains(column)) {
        return Ok(Vec::new());
    }
    let there = "SELECT attname::text, attisdropped, attgenerated <> '' FROM pg_catalog.pg_attribute \
        WHERE attrelid = $1::oid AND attnum > 0 ORDER BY attnum";
    let there = source.query(there, &[&number]).await.map_err(failed)?;
    let there: Vec<There> = there
        .iter()
        .map(|row| match (row.get(1), row.get(2)) {
            (true, _) => There::Dropped,
            (false, true) => There::Generated,
            (false, false) => There::Named(row.get(0)),
        })
        .collect();
    let gone: BTreeMap<&str, i16> = columns.iter().flat_map(|columns| dropped(columns, &there)).collect();
    let mut lent = Vec::new();
    for (column, place) in gone.into_iter().filter(|(column, _)| here.iter().all(|here| here != column)) {
        let sql = format!("ALTER TABLE {table} ADD COLUMN {} text", quote_ident(column));
        sync::add(shadow, &table, &sql, true).await?;
        // One that gets this name on the source by now is another one.
        let lately =
            "SELECT attnum FROM pg_catalog.pg_attribute WHERE attrelid = $1::oid AND attname = $2::text";
        let lately: i16 = shadow.query_one(lately, &[&target, &column]).await.map_err(failed)?.get(0);
        let known = vec![((number, place), (target, lately), column.to_owned())];
        identities::write(shadow, &known).await?;
        lent.push(format!("{schema}.{name}.{column}"));
    }
    Ok(lent)
}

/// A place in the source's table.
#[derive(Debug, PartialEq, Eq)]
enum There {
    Dropped,
    /// The stream does not tell of it.
    Generated,
    Named(String),
}

/// Those of these columns, in a description's order, that the source has dropped for certain, and their numbers there: in the places between their neighbours
/// there is none that one of them may have become by another name.
fn dropped<'c>(columns: &'c [String], there: &[There]) -> Vec<(&'c str, i16)> {
    let places = columns
        .iter()
        .map(|column| there.iter().position(|place| matches!(place, There::Named(name) if name == column)));
    let places: Vec<Option<usize>> = places.collect();
    let mut found = Vec::new();
    let mut at = 0;
    while at < columns.len() {
        let end = (at..columns.len()).find(|next| places[*next].is_some()).unwrap_or(columns.len());
        let after = places[..at].iter().flatten().max().map_or(0, |place| place + 1);
        let before = places[end..].iter().flatten().min().copied().unwrap_or(there.len());
        let between = (1..).zip(there).take(before).skip(after);
        let free = between.clone().filter(|(_, place)| **place == There::Dropped).map(|(number, _)| number);
        if between.clone().all(|(_, place)| !matches!(place, There::Named(_)))
            && free.clone().count() >= end - at
        {
            found.extend(columns[at..end].iter().map(String::as_str).zip(free));
        }
        at = end + 1;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_column_was_dropped_where_none_may_be_it_by_another_name() {
        let there = |places: &str| -> Vec<There> {
            let places = places.split_whitespace().map(|place| match place {
                "-" => There::Dropped,
                "=" => There::Generated,
                name => There::Named(name.into()),
            });
            places.collect()
        };
        let columns = |names: &str| -> Vec<String> { names.split_whitespace().map(Into::into).collect() };
        for (described, now, expected) in [
            ("id c", "id -", "c2"),
            ("id c", "id - =", "c2"),
            ("id c", "id = -", "c3"),
            ("id c n", "id - n", "c2"),
            ("id c n", "id - n later", "c2"),
            ("c id", "- id", "c1"),
            ("id b c n", "id - - n", "b2 c3"),
            ("id b n c", "id - n -", "b2 c4"),
            ("id c", "id", ""),
            ("id n", "id n", ""),
            // Renamed, or another one since: nobody can tell.
            ("id c", "id d", ""),
            ("id c", "id - d", ""),
            ("id b c n", "id - d n", ""),
            ("id b c n", "id - n", ""),
            // Made again, and so in another place.
            ("id b c", "id - c b", ""),
            ("b c id", "id - c b", ""),
        ] {
            let (described, now) = (columns(described), there(now));
            let found: Vec<String> = dropped(&described, &now)
                .into_iter()
                .map(|(column, number)| format!("{column}{number}"))
                .collect();
            assert_eq!(found.join(" "), expected, "{described:?} of {now:?}");
        }
    }
}
