//! The planner's statistics: logical replication does not carry them, and nobody analyzes the root of a partitioned table by itself.

use tokio_postgres::Client;

use crate::error::Error;

/// Tables with their partitions and materialized views, the biggest first, where this role may analyze them; and their bytes.
/// A database-wide `ANALYZE` would put a warning into the server's log for each catalog that it leaves out.
const RELATIONS: &str = "\
SELECT pg_catalog.format('%I.%I', n.nspname, c.relname), \
  coalesce((SELECT sum(pg_catalog.pg_table_size(p.relid))::bigint FROM pg_catalog.pg_partition_tree(c.oid) p), \
   pg_catalog.pg_table_size(c.oid), 0) AS bytes \
 FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
 WHERE c.relkind IN ('r', 'p', 'm') AND NOT c.relispartition AND c.relpersistence <> 't' \
  AND n.nspname NOT IN ('information_schema', 'godwit') AND n.nspname !~ '^pg_' \
  AND (pg_catalog.pg_has_role(c.relowner, 'USAGE') OR pg_catalog.pg_has_role( \
   (SELECT d.datdba FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database()), 'USAGE')) \
 ORDER BY bytes DESC, 1";

/// One of up to so many bytes takes less time than a round trip.
const SMALL: i64 = 1 << 20;
/// Small ones that share a statement.
const TOGETHER: usize = 100;

/// Analyzes every table and materialized view of a database. Returns what went wrong with some of them: an index's expression may fail, say,
/// which is the planner's loss only.
pub async fn renew(client: &Client) -> Result<Vec<Error>, Error> {
    let unread = |error| Error::database("cannot read which tables there are")(error);
    let rows = client.query(RELATIONS, &[]).await.map_err(unread)?;
    let relations: Vec<(&str, i64)> = rows
        .iter()
        .map(|row| Ok((row.try_get(0)?, row.try_get(1)?)))
        .collect::<Result<_, _>>()
        .map_err(unread)?;
    let (big, small) = relations.split_at(relations.partition_point(|(_, bytes)| *bytes > SMALL));
    let mut without = Vec::new();
    for together in big.chunks(1).chain(small.chunks(TOGETHER)) {
        let names: Vec<&str> = together.iter().map(|(name, _)| *name).collect();
        if names.len() > 1 && analyze(client, &names.join(", ")).await.is_ok() {
            continue;
        }
        for name in names {
            if let Err(error) = analyze(client, name).await {
                if client.is_closed() {
                    return Err(error);
                }
                without.push(error);
            }
        }
    }
    Ok(without)
}

async fn analyze(client: &Client, names: &str) -> Result<(), Error> {
    let analyzed = client.batch_execute(&format!("ANALYZE {names}")).await;
    analyzed.map_err(Error::database(format!("cannot analyze {names}")))
}
