//! Published tables that lost their key: the server refuses to update and delete their rows, whoever asks, for as long as they are published.
//!
//! Source: PostgreSQL documentation, "Logical Replication", "Publication", on replica identity.

use tokio_postgres::Client;

use super::fill::seed_anew;
use crate::error::Error;
use crate::fence::refused;
use crate::postgres::quote_ident;
use crate::postgres::slot::{KEYLESS, Lane};

const LANES: [Lane; 2] = [Lane::Main, Lane::Critical];

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

/// Publishes these tables no more. Their rows are to be copied anew once they have a key; that is written down first.
pub async fn unpublish(
    source: &Client,
    shadow: &Client,
    resource: &str,
    tables: &[String],
) -> Result<(), Error> {
    for table in tables {
        match seed_anew(shadow, std::slice::from_ref(table)).await {
            // One that the shadow lacks is copied whole in any case.
            Ok(_) | Err(Error::Unready(_)) => {}
            Err(error) => return Err(error),
        }
        for lane in LANES {
            let publication = quote_ident(&lane.publication_name(resource));
            let drop = format!(
                "DO $godwit$ BEGIN ALTER PUBLICATION {publication} DROP TABLE {table}; \
                 EXCEPTION WHEN undefined_object OR undefined_table THEN END $godwit$"
            );
            source.batch_execute(&drop).await.map_err(refused("publish a table no more"))?;
        }
    }
    Ok(())
}
