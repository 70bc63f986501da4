//! What is left in a stream of tables that its source has no more.
//!
//! A table that was altered, written and dropped before the shadow followed leaves changes that fit nowhere, and the shadow's is not dropped before
//! they are through. Nobody can read their rows any more: the applier writes down which tables the changes are of that it cannot apply
//! (`godwit.stands_at`), the source is asked for these by number, and of those that are gone there the changes up to then are skipped, as are
//! changes of a table that was copied later ([`crate::apply`]'s window). Changes of a table that lives never are.

use tokio_postgres::Client;
use tokio_postgres::types::PgLsn;

use super::{is_prepared, mark};
use crate::error::Error;
use crate::fence::refused;
use crate::identity;

/// Has the stream of this slot skip what is left of tables among those that it stands at which are gone on the source; gives their names, as
/// `schema.table`.
pub async fn pass_over(source: &Client, shadow: &Client, slot: &str) -> Result<Vec<String>, Error> {
    let failed = |error| refused("pass over tables that are gone")(error);
    if !is_prepared(shadow, "stands_at").await? {
        return Ok(Vec::new());
    }
    let stands = "SELECT source_table, name FROM godwit.stands_at WHERE stream = $1";
    let stands = shadow.query(stands, &[&slot]).await.map_err(failed)?;
    if stands.is_empty() {
        return Ok(Vec::new());
    }
    // Numbers mean nothing in another database.
    let known = identity::of_checkpoint(shadow, slot).await?;
    if known.is_none() || known != identity::of(source).await? {
        return Ok(Vec::new());
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
    let skip = "WITH told AS (DELETE FROM godwit.stands_at WHERE stream = $1 AND source_table = ANY ($2::oid[])) \
        INSERT INTO godwit.copied_parts (stream, schema_name, table_name, part, parts, position, rows, bytes, source_table) \
        SELECT stream, '', number::text, 0, 1, $4, 0, 0, number FROM godwit.progress, unnest($3::oid[]) number \
        WHERE stream = $1 AND copied AND applied_lsn < $4 \
        ON CONFLICT (stream, schema_name, table_name, part) DO UPDATE SET position = EXCLUDED.position";
    shadow.execute(skip, &[&slot, &numbers, &gone, &position]).await.map_err(failed)?;
    let names = stands.iter().filter(|row| gone.contains(&row.get(0))).map(|row| row.get(1));
    Ok(names.collect())
}
