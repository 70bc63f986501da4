//! Empties a shadow so that it can be seeded anew: everything that a schema dump would bring goes, schema `godwit` stays.
//!
//! Only ever a database that says itself that it is a copy: fenced with a finished copy in it, with a copy that did not
//! end, or emptied for one that has not begun; or the old primary of before this generation, fenced for it: by the cutover that committed it, or when it was back after a
//! shadow had taken over. The checkpoint stays as "not copied", in the first transaction: from then on nothing but a copy may fill it, and that
//! not before it is empty.

use tokio_postgres::Client;

use crate::drift;
use crate::drift::fill::FILLS;
use crate::error::Error;
use crate::fence::{literal, refused, rows, sql_generation};
use crate::identity;
use crate::preflight::LOCKS;

/// What to empty.
#[derive(Clone, Debug)]
pub struct Reseed<'a> {
    /// The resource.
    pub resource: &'a str,
    /// Its main stream's slot; the checkpoints are called so.
    pub stream: &'a str,
    /// The stream of its critical tables.
    pub critical: &'a str,
    /// The generation under which it will be seeded.
    pub generation: u64,
}

/// Drops a part of what is in the database behind `target`, as much as a transaction has locks for; whether anything is left. Then it is to be
/// called again: until nothing is left the database waits for its copy, and can be given none.
///
/// # Errors
/// [`Error::Unready`] when it does not say of itself that it is a shadow's copy, when it is `source`'s own database, or when a
/// newer generation has been there; then this call has changed nothing. A table that stays locked is SQLSTATE 55P03.
pub async fn empty(source: &Client, target: &Client, what: &Reseed<'_>) -> Result<bool, Error> {
    let place = async |client: &Client| -> Result<_, Error> {
        let row = client.query_one("SELECT current_database()::text", &[]).await;
        let name: String = row.map_err(Error::database("ask for the database's name"))?.get(0);
        Ok((identity::of(client).await?, name))
    };
    let there = place(target).await?;
    if there.0.is_some() && there == place(source).await? {
        return Err(Error::Unready(format!("{} is the primary's own database: it is not emptied", there.1)));
    }
    let sql = include_str!("reseed.sql")
        .replace("{{resource}}", &literal(what.resource))
        .replace("{{stream}}", &literal(what.stream))
        .replace("{{critical}}", &literal(what.critical))
        .replace("{{fills}}", &FILLS.to_string())
        .replace("{{locks}}", LOCKS)
        .replace("{{schema}}", &literal(drift::APPLICATION))
        .replace("{{generation}}", &sql_generation(what.generation)?.to_string());
    let answer = target.simple_query(&sql).await.map_err(refused("empty the shadow"))?;
    Ok(rows(answer).last().and_then(|row| row.get(0)) == Some("true"))
}

/// Whether emptying a database for `stream` broke off: its fence stays until nothing is left, and no copy has begun.
pub async fn broke_off(target: &Client, resource: &str, stream: &str) -> Result<bool, Error> {
    let sql = "SELECT EXISTS (SELECT FROM godwit.epoch WHERE resource = $1 AND fenced) \
        AND EXISTS (SELECT FROM godwit.progress WHERE stream = $2 AND NOT copied) \
        AND NOT EXISTS (SELECT FROM godwit.copying WHERE stream = $2)";
    let row = target.query_one(sql, &[&resource, &stream]).await;
    Ok(row.map_err(refused("look whether it was emptied"))?.get(0))
}

/// Notes in the database behind `target` that `stream` begins with a copy, as in one that was emptied for it: where that holds no table, and knows
/// nothing of the stream.
pub async fn awaits_copy(target: &Client, stream: &str, generation: u64) -> Result<(), Error> {
    let sql = format!(
        "INSERT INTO godwit.progress (stream, applied_lsn, copied, generation) SELECT {}, '0/0', false, {} \
         WHERE NOT EXISTS (SELECT FROM godwit.user_tables()) ON CONFLICT DO NOTHING",
        literal(stream),
        sql_generation(generation)?
    );
    target.batch_execute(&sql).await.map_err(refused("note that a copy is to come"))
}
