//! Functions that find what they use only by the client's `search_path`: a copy, a restored dump and the applier have none, so that
//! nobody can say for them which schemas that would be.

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::{Finding, Severity};
use crate::error::Error;
use crate::fence::{refused, rows};

/// What is computed of a row by functions of the database's own: what it is called, of which table, the expressions, the functions; and
/// the path that sessions begin with.
const COMPUTED: &str = "\
WITH computed AS ( \
  SELECT 'pg_constraint'::regclass AS of, k.oid AS id, conrelid AS relation, format('constraint %I', conname) AS name, pg_catalog.pg_get_expr(conbin, conrelid) AS value \
  FROM pg_catalog.pg_constraint k WHERE contype = 'c' AND conrelid <> 0 \
  UNION ALL \
  SELECT 'pg_class', i.indexrelid, indrelid, format('index %I', c.relname), concat_ws(', ', pg_catalog.pg_get_expr(indexprs, indrelid), pg_catalog.pg_get_expr(indpred, indrelid)) \
  FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = indexrelid WHERE indexprs IS NOT NULL OR indpred IS NOT NULL \
  UNION ALL \
  SELECT 'pg_attrdef', d.oid, adrelid, format('column %I', attname), pg_catalog.pg_get_expr(adbin, adrelid) \
  FROM pg_catalog.pg_attrdef d JOIN pg_catalog.pg_attribute a ON attrelid = adrelid AND attnum = adnum WHERE attgenerated <> '') \
SELECT format('%s of %I.%I', o.name, n.nspname, c.relname), format('%I.%I', n.nspname, c.relname), o.value, \
  string_agg(DISTINCT format('ALTER FUNCTION %s SET search_path = %s, pg_temp', p.oid::regprocedure, coalesce(s.path, 'public')), '; ') \
FROM computed o JOIN pg_catalog.pg_class c ON c.oid = o.relation JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
JOIN pg_catalog.pg_depend d ON d.classid = o.of AND d.objid = o.id AND d.refclassid = 'pg_catalog.pg_proc'::regclass \
JOIN pg_catalog.pg_proc p ON p.oid = d.refobjid AND p.oid >= 16384 \
LEFT JOIN LATERAL (SELECT substr(e, 13) AS path FROM pg_catalog.pg_db_role_setting, unnest(setconfig) e \
  WHERE setrole = 0 AND setdatabase = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database()) AND e LIKE 'search_path=%') s ON true \
WHERE c.relkind = 'r' AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend e \
  WHERE e.classid = 'pg_catalog.pg_proc'::regclass AND e.objid = p.oid AND e.deptype = 'e') GROUP BY 1, 2, 3";
/// One simple query is one transaction, which an error ends as well: nothing of this outlives it, and who shares the connection meets nothing of it.
const ALONE: &str = "SET LOCAL search_path = ''; SET LOCAL transaction_read_only = on; SET LOCAL row_security = off; SET LOCAL statement_timeout = '2s'";

/// Tried with a row of each table, reading only: what is not found without a path is not found by a copy.
pub(super) async fn lost(client: &Client) -> Result<Vec<Finding>, Error> {
    let answer = client.simple_query(&format!("{ALONE}; {COMPUTED}")).await;
    let mut found = Vec::new();
    for row in &rows(answer.map_err(refused("cannot read what is computed"))?) {
        let (Some(subject), Some(table), Some(value)) = (row.get(0), row.get(1), row.get(2)) else {
            continue;
        };
        let sql = format!("{ALONE}; SELECT ROW({value}) FROM ONLY {table} LIMIT 1");
        let Err(error) = client.batch_execute(&sql).await else { continue };
        let lost = [
            SqlState::UNDEFINED_FUNCTION,
            SqlState::UNDEFINED_TABLE,
            SqlState::UNDEFINED_OBJECT,
            SqlState::INVALID_SCHEMA_NAME,
        ];
        // What else may be wrong with it, the source lives with.
        if let Some(server) = error.as_db_error().filter(|server| lost.contains(server.code())) {
            found.push(Finding {
                severity: Severity::Blocker,
                subject: subject.to_owned(),
                problem: format!(
                    "finds what it uses by the client's search_path only, which a copy has not: {}",
                    server.message()
                ),
                remedy: row.get(3).map(str::to_owned),
            });
        }
    }
    Ok(found)
}
