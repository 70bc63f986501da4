//! Tables whose rows nothing tells apart: a server that publishes them refuses to update and delete their rows, whoever asks.
//!
//! Source: PostgreSQL documentation, "Logical Replication", "Publication", on replica identity.

use tokio_postgres::Client;

use super::fill::not_whole;
use crate::error::Error;
use crate::fence::refused;
use crate::postgres::slot::{KEYLESS, Lane, TELLING_INDEX, USER_TABLES};
use crate::postgres::{block, quote_ident, quote_literal};

const LANES: [Lane; 2] = [Lane::Main, Lane::Critical];

/// How long a table of the service may have to wait for one that is to be given an identity, and those after it.
const MOMENT: &str = "50ms";
/// Gives each of the service's tables that has none a replica identity, but those that somebody holds, whose turn comes, or of others. What was done, one
/// line each.
pub async fn identify(source: &Client) -> Result<Vec<String>, Error> {
    let failed = |error| refused("give tables a replica identity")(error);
    let wanted = format!(
        "SELECT format('ALTER TABLE %I.%I REPLICA IDENTITY %s', n.nspname, c.relname, coalesce('USING INDEX ' || {TELLING_INDEX}, 'FULL')) FROM pg_catalog.pg_class c \
         JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE {USER_TABLES} AND {KEYLESS} ORDER BY 1"
    );
    let wanted = async || -> Result<Vec<String>, tokio_postgres::Error> {
        Ok(source.query(&wanted, &[]).await?.iter().map(|row| row.get(0)).collect())
    };
    let mut lines = wanted().await.map_err(failed)?;
    if lines.is_empty() {
        return Ok(lines);
    }
    for line in &lines {
        let line = quote_literal(line);
        let give = format!(
            "BEGIN PERFORM pg_catalog.set_config('lock_timeout', '{MOMENT}', true); EXECUTE {line}; \
             EXCEPTION WHEN lock_not_available OR undefined_table OR undefined_object OR insufficient_privilege THEN END"
        );
        source.batch_execute(&block(&give)).await.map_err(failed)?;
    }
    let left = wanted().await.map_err(failed)?;
    lines.retain(|line| !left.contains(line));
    Ok(lines)
}

/// Those that the source publishes for this resource, as `schema.table`.
pub async fn published_keyless(source: &Client, resource: &str) -> Result<Vec<String>, Error> {
    let names = LANES.map(|lane| lane.publication_name(resource));
    let sql = format!(
        "SELECT format('%I.%I', n.nspname, c.relname) FROM pg_catalog.pg_publication p \
         JOIN pg_catalog.pg_publication_rel r ON r.prpubid = p.oid JOIN pg_catalog.pg_class c ON c.oid = r.prrelid \
         JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE p.pubname = ANY ($1) AND {KEYLESS} ORDER BY 1"
    );
    let found =
        source.query(&sql, &[&names.as_slice()]).await.map_err(refused("look for tables without a key"))?;
    Ok(found.iter().map(|row| row.get(0)).collect())
}

/// Those of the source's that may be published for this resource and are not, as `schema.table`.
pub async fn unpublished(source: &Client, resource: &str) -> Result<Vec<String>, Error> {
    let names = LANES.map(|lane| lane.publication_name(resource));
    let sql = format!(
        "SELECT format('%I.%I', n.nspname, c.relname) FROM pg_catalog.pg_class c \
         JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE {USER_TABLES} AND NOT {KEYLESS} \
         AND NOT EXISTS (SELECT FROM pg_catalog.pg_publication_rel r JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid \
           WHERE r.prrelid = c.oid AND p.pubname = ANY ($1)) ORDER BY 1"
    );
    let found = source.query(&sql, &[&names.as_slice()]).await;
    let found = found.map_err(refused("look for tables that are not published"))?;
    Ok(found.iter().map(|row| row.get(0)).collect())
}

/// Publishes these tables no more: they lost their keys. Their rows are to be copied anew once they have a key; that is written down first.
pub async fn unpublish(
    source: &Client,
    shadow: Option<&Client>,
    resource: &str,
    tables: &[String],
) -> Result<(), Error> {
    if let Some(shadow) = shadow {
        not_whole(source, shadow, tables).await?;
    }
    for table in tables {
        for lane in LANES {
            let publication = quote_ident(&lane.publication_name(resource));
            let drop = format!(
                "BEGIN ALTER PUBLICATION {publication} DROP TABLE {table}; \
                 EXCEPTION WHEN undefined_object OR undefined_table THEN END"
            );
            source.batch_execute(&block(&drop)).await.map_err(refused("publish a table no more"))?;
        }
    }
    Ok(())
}
