//! What of the primary's PostgreSQL configuration a shadow's must have.
//!
//! A shadow becomes the primary: it must take as many sessions, prepared transactions and locks, read text and dates alike,
//! and load what the schema needs. Not here: addresses, files, logging, and whatever a provider sizes by the machine.

use std::collections::BTreeMap;

use tokio_postgres::Client;

/// Settings that are taken over where the primary does not have the built-in value. In lower case: the server calls some
/// `DateStyle`, `IntervalStyle`, `TimeZone`.
const SETTINGS: [&str; 31] = [
    "array_nulls",
    "autovacuum_max_workers",
    "bytea_output",
    "check_function_bodies",
    "datestyle",
    "deadlock_timeout",
    "default_statistics_target",
    "default_text_search_config",
    "default_transaction_deferrable",
    "default_transaction_isolation",
    "extra_float_digits",
    "idle_in_transaction_session_timeout",
    "intervalstyle",
    "lc_monetary",
    "lc_numeric",
    "lc_time",
    "lock_timeout",
    "max_connections",
    "max_locks_per_transaction",
    "max_prepared_transactions",
    "max_wal_senders",
    "max_worker_processes",
    "row_security",
    "search_path",
    "shared_preload_libraries",
    "standard_conforming_strings",
    "statement_timeout",
    "timezone",
    "transform_null_equals",
    "xmlbinary",
    "xmloption",
];

/// Set for the server or the database; what a role or a session sets stays theirs.
const QUERY: &str = "
SELECT name, current_setting(name) FROM pg_settings
 WHERE lower(name) = ANY($1) AND source IN ('configuration file', 'command line', 'environment variable')
UNION ALL
SELECT lower(split_part(entry, '=', 1)), substr(entry, strpos(entry, '=') + 1)
  FROM pg_db_role_setting s, unnest(s.setconfig) AS entry
 WHERE s.setrole = 0 AND s.setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database())
   AND lower(split_part(entry, '=', 1)) = ANY($1)";

/// Reads them from the primary: by name, as text of `postgresql.conf`. A database's own setting goes before the server's.
pub(super) async fn settings(primary: &Client) -> Result<BTreeMap<String, String>, String> {
    let names: Vec<&str> = SETTINGS.to_vec();
    let rows = primary
        .query(QUERY, &[&names])
        .await
        .map_err(|error| format!("the primary's settings cannot be read: {error}"))?;
    Ok(rows.iter().map(|row| (row.get::<_, String>(0).to_lowercase(), row.get(1))).collect())
}
