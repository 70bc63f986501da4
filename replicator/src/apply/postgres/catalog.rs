//! What the target's catalog says of a table that the stream changes. Types go by name: OIDs differ between clusters.

use std::collections::HashMap;
use std::sync::Arc;

use tokio_postgres::Client;

use crate::change::{Relation, ReplicaIdentity};
use crate::error::Error;
use crate::postgres::quote_ident;

/// A table of the stream, matched with the target's.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) relation: Arc<Relation>,
    /// Quoted `schema.table`.
    pub(super) sql_name: String,
    /// `schema.table` for people.
    pub(super) label: String,
    pub(super) columns: Vec<TargetColumn>,
    /// Indexes of the columns that tell a row; empty when nothing does.
    pub(super) key: Vec<usize>,
}

/// One column, in stream order.
#[derive(Debug)]
pub(super) struct TargetColumn {
    pub(super) sql_name: String,
    /// As `format_type` writes it, schema-qualified where needed.
    pub(super) type_name: String,
    /// `GENERATED ALWAYS AS IDENTITY`.
    pub(super) always_identity: bool,
}

const COLUMNS: &str = "\
SELECT a.attname::text, pg_catalog.format_type(a.atttypid, a.atttypmod), a.attidentity = 'a', \
       coalesce(a.attnum = ANY (i.indkey::int2[]), false) \
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped \
LEFT JOIN pg_catalog.pg_index i ON i.indrelid = c.oid AND i.indisprimary \
WHERE n.nspname = $1::text AND c.relname = $2::text";

impl Table {
    /// Looks the table up. One round trip.
    pub(super) async fn load(client: &Client, relation: Arc<Relation>) -> Result<Self, Error> {
        let label = format!("{}.{}", relation.schema, relation.name);
        let text = tokio_postgres::types::Type::TEXT;
        let rows = client
            .query_typed(COLUMNS, &[(&relation.schema, text.clone()), (&relation.name, text)])
            .await
            .map_err(Error::database(format!("look up {label} on the target")))?;
        if rows.is_empty() {
            return Err(Error::Unready(format!("table {label} is not on the target")));
        }
        let mut known: HashMap<String, (String, bool, bool)> =
            rows.iter().map(|row| (row.get(0), (row.get(1), row.get(2), row.get(3)))).collect();
        let mut columns = Vec::with_capacity(relation.columns.len());
        let mut primary = Vec::new();
        for (at, column) in relation.columns.iter().enumerate() {
            let (type_name, always_identity, in_primary) = known.remove(&column.name).ok_or_else(|| {
                Error::Unready(format!("column {} of {label} is not on the target", column.name))
            })?;
            if in_primary {
                primary.push(at);
            }
            columns.push(TargetColumn { sql_name: quote_ident(&column.name), type_name, always_identity });
        }
        if known.values().any(|(.., in_primary)| *in_primary) {
            primary.clear();
        }
        let key = match relation.identity {
            ReplicaIdentity::Default | ReplicaIdentity::Index => {
                (0..relation.columns.len()).filter(|at| relation.columns[*at].key).collect()
            }
            // The stream marks every column as key, or none: the primary key finds rows faster and once.
            ReplicaIdentity::Full | ReplicaIdentity::Nothing => primary,
        };
        let sql_name = format!("{}.{}", quote_ident(&relation.schema), quote_ident(&relation.name));
        Ok(Self { relation, sql_name, label, columns, key })
    }
}
