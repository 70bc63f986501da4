//! Materialized views: logical decoding does not carry what they hold, so the shadow's are filled anew before a move.

use tokio_postgres::Client;

use crate::error::Error;
use crate::fence::call;

/// Those that hold something; an extension's are its own affair.
const FILLED: &str = "\
SELECT pg_catalog.format('%I.%I', n.nspname, c.relname) FROM pg_catalog.pg_class c \
 JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
 WHERE c.relkind = 'm' AND c.relispopulated AND n.nspname NOT IN ('information_schema', 'godwit') AND n.nspname !~ '^pg_' \
 AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d \
  WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')";

/// The ones of these names, each after those that it reads, through plain views or not; and whether it can be filled while others
/// read it.
const IN_ORDER: &str = "\
WITH RECURSIVE uses AS ( \
 SELECT DISTINCT r.ev_class AS view, c.oid AS of FROM pg_catalog.pg_rewrite r \
  JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_rewrite'::regclass AND d.objid = r.oid \
   AND d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjid <> r.ev_class \
  JOIN pg_catalog.pg_class c ON c.oid = d.refobjid AND c.relkind IN ('m', 'v')), \
below AS ( \
 SELECT oid AS view, oid AS at, 0 AS depth FROM pg_catalog.pg_class WHERE relkind = 'm' \
 UNION SELECT b.view, u.of, b.depth + 1 FROM below b JOIN uses u ON u.view = b.at) \
SELECT name, beside FROM ( \
 SELECT pg_catalog.format('%I.%I', n.nspname, c.relname) AS name, (SELECT max(depth) FROM below b WHERE b.view = c.oid) AS depth, \
  c.relispopulated AND EXISTS (SELECT FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid AND i.indisunique AND i.indisvalid \
   AND i.indimmediate AND i.indpred IS NULL AND i.indexprs IS NULL) AS beside \
 FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind = 'm') m \
WHERE name = ANY($1) ORDER BY depth, name";

fn unread(error: tokio_postgres::Error) -> Error {
    Error::database("cannot read which materialized views there are")(error)
}

/// The materialized views of `source` that hold something.
pub async fn filled(source: &Client) -> Result<Vec<String>, Error> {
    let filled = source.query(FILLED, &[]).await.map_err(unread)?;
    filled.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>().map_err(unread)
}

/// Fills each of these materialized views of `target`, in the order in which they read each other: how many.
///
/// One with a unique index stays readable meanwhile. Needs to be a member of their owners. The first that cannot be filled ends it,
/// named, with the server's words; those before it are filled.
pub async fn refresh(target: &Client, filled: &[String]) -> Result<usize, Error> {
    let views = target.query(IN_ORDER, &[&filled]).await.map_err(unread)?;
    for view in &views {
        let (name, beside) = (view.try_get(0).map_err(unread)?, view.try_get(1).map_err(unread)?);
        fill(target, name, beside).await?;
    }
    Ok(views.len())
}

async fn fill(client: &Client, name: &str, beside: bool) -> Result<(), Error> {
    let context = format!("cannot refresh materialized view {name}");
    // It makes a temporary table as the view's owner, who may not be allowed one.
    let concurrently = format!("REFRESH MATERIALIZED VIEW CONCURRENTLY {name}");
    if beside && call(client, &concurrently, &context).await.is_ok() {
        return Ok(());
    }
    call(client, &format!("REFRESH MATERIALIZED VIEW {name}"), &context).await.map(drop)
}
