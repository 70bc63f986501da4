//! What a fence would wait for in vain, or a drain before it: transactions that are open for long. Better found before anybody is held.

use std::time::Duration;

use tokio_postgres::Client;
use tokio_postgres::types::Type;

use super::{millis, refused};
use crate::error::Error;

/// Sessions whose transaction has been open for at least `age` and has a lock which the fence's must wait for (a writer's, a vacuum's,
/// that of CREATE INDEX CONCURRENTLY). Of `ours`, the process numbers of sessions that can be held and ended, it is all if their transactions are
/// `awaited`, and else none. A phrase each, the oldest first; one that is committing and waits for a synchronous standby has it said which.
///
/// Without `pg_read_all_stats` the server does not tell of other roles' sessions, and nothing is found.
pub async fn in_the_way(
    client: &Client,
    age: Duration,
    ours: &[i32],
    awaited: bool,
) -> Result<Vec<String>, Error> {
    let sql = "WITH old AS MATERIALIZED ( \
          SELECT a.pid, a.usename, a.application_name, a.xact_start, a.wait_event, a.pid = ANY ($2) AS ours FROM pg_catalog.pg_stat_activity a \
          WHERE a.datname = current_database() AND a.backend_type = 'client backend' AND a.pid <> pg_catalog.pg_backend_pid() \
            AND a.application_name NOT LIKE 'godwit%' AND a.xact_start < clock_timestamp() - $1 * interval '1 millisecond' \
        ) \
        SELECT format('pid %s (%s, application %s) has %s for %s s', o.pid, o.usename, coalesce(nullif(quote_literal(o.application_name), ''''''), 'unnamed'), \
            coalesce('table ' || l.named || ' locked', 'a transaction open'), round(extract(epoch FROM clock_timestamp() - o.xact_start))) \
            || CASE WHEN o.wait_event = 'SyncRep' THEN format(', and waits in COMMIT for a synchronous standby (synchronous_standby_names = %L)', \
                 current_setting('synchronous_standby_names')) ELSE '' END \
        FROM old o LEFT JOIN LATERAL ( \
          SELECT format('%I.%I', u.schema, u.name) AS named FROM pg_catalog.pg_locks l JOIN godwit.user_tables() u ON u.id = l.relation \
          WHERE l.pid = o.pid AND l.locktype = 'relation' AND l.granted AND l.mode <> ALL ('{AccessShareLock,RowShareLock}') \
          ORDER BY 1 LIMIT 1 \
        ) l ON true \
        WHERE CASE WHEN o.ours THEN $3 ELSE l.named IS NOT NULL END ORDER BY o.xact_start";
    let age = i64::try_from(millis(age)).unwrap_or(i64::MAX);
    let found = client
        .query_typed(sql, &[(&age, Type::INT8), (&ours, Type::INT4_ARRAY), (&awaited, Type::BOOL)])
        .await;
    let found = found.map_err(refused("look what stands in the fence's way"))?;
    Ok(found.iter().map(|row| row.get(0)).collect())
}
