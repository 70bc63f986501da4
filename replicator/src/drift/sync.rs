//! Makes on the shadow what only the source has.

use std::path::Path;
use std::pin::pin;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::{Difference, Mend};
use crate::apply::postgres::APPLICATION;
use crate::error::Error;
use crate::fence::refused;
use crate::postgres::{Dsn, quote_ident};
use crate::schema;

/// A table that is larger is not copied while its writers wait.
const LARGEST: i64 = 64 << 20;
/// How long a table of the source may stay locked by others.
const PATIENCE: &str = "5s";

/// What a sync did.
#[derive(Debug, Default)]
pub struct Synced {
    /// What was done, one line each.
    pub done: Vec<String>,
    /// Why not all of it was.
    pub failure: Option<Error>,
}

/// Applies these differences, as far as they need nobody to decide. What fails is tried again after the rest, as long as anything goes:
/// one thing may need another. What was done before a failure stays.
///
/// A table that is missing is made by `pg_dump` of it, filled while its writers wait, and put into the publication before
/// they go on: from there the stream brings its changes. It must be small (64 MiB) and its types must exist.
pub async fn sync(
    source: (&Dsn, &Client),
    shadow: &Client,
    publication: &str,
    bin: Option<&Path>,
    mut wanted: Vec<&Difference>,
) -> Synced {
    wanted.sort_by_key(|difference| rank(&difference.mend));
    let mut done = Vec::new();
    let mut failure = None;
    while !wanted.is_empty() {
        let before = wanted.len();
        failure = None;
        let mut failed = Vec::new();
        for difference in wanted {
            let mended = match &difference.mend {
                Mend::Add(sql) | Mend::Drop(sql) => {
                    add(shadow, &difference.subject, sql).await.map(|()| Some(sql.clone()))
                }
                Mend::Rename(sql) => {
                    rename(shadow, &difference.subject, sql).await.map(|()| Some(sql.clone()))
                }
                Mend::Table(name) => table(source, shadow, publication, bin, name).await.map(|rows| {
                    Some(match rows {
                        Some(rows) => format!("{name}: made, {rows} rows copied, published"),
                        None => format!("{name}: made, for its partitions"),
                    })
                }),
                Mend::Person(_) => Ok(None),
            };
            match mended {
                Ok(line) => done.extend(line),
                Err(error) => {
                    failed.push(difference);
                    failure.get_or_insert(error);
                }
            }
        }
        if failed.len() == before {
            break;
        }
        wanted = failed;
    }
    Synced { done, failure }
}

/// Writes a message to the source's WAL: even an idle source has something to bring then, and all before it is durable.
pub async fn mark(source: &Client) -> Result<(), Error> {
    let mark = "BEGIN; SET LOCAL synchronous_commit = local; \
        SELECT pg_catalog.pg_logical_emit_message(true, 'godwit.schema', ''); COMMIT";
    source.batch_execute(mark).await.map_err(refused("mark a place in the source's WAL"))
}

/// What others may need comes first.
fn rank(mend: &Mend) -> usize {
    const FIRST: [&str; 5] =
        ["CREATE SCHEMA ", "CREATE EXTENSION ", "CREATE TYPE ", "CREATE DOMAIN ", "ALTER TYPE "];
    const LAST: [&str; 4] = ["CREATE OR REPLACE ", "DROP POLICY ", "GRANT ", "REVOKE "];
    match mend {
        Mend::Add(sql) if FIRST.iter().any(|word| sql.starts_with(word)) => 0,
        // What follows is not done to what is no part of it any more.
        Mend::Add(sql) if sql.contains(" DETACH PARTITION ") || sql.contains(" NO INHERIT ") => 0,
        Mend::Add(sql) if sql.starts_with("CREATE SEQUENCE ") => 1,
        Mend::Table(_) => 2,
        Mend::Add(sql) if sql.contains(" ADD COLUMN ") => 3,
        Mend::Add(sql) if sql.contains(" FOREIGN KEY ") => 5,
        Mend::Add(sql) => LAST.iter().position(|word| sql.starts_with(word)).map_or(4, |place| 6 + place),
        Mend::Rename(_) => 0,
        // What stood in its way is changed by then.
        Mend::Drop(_) => 10,
        Mend::Person(_) => 11,
    }
}

async fn add(shadow: &Client, subject: &str, sql: &str) -> Result<(), Error> {
    let index = ["CREATE INDEX ", "CREATE UNIQUE INDEX "].iter().any(|words| sql.starts_with(words));
    if index && index_beside_writers(shadow, subject, sql).await? {
        return Ok(());
    }
    // A value of an enum may not be added in a transaction with other things. The body of a function may speak of what comes later.
    let settings =
        format!("SET search_path = ''; SET check_function_bodies = off; SET lock_timeout = '{PATIENCE}'; ");
    let settings = if sql.starts_with("ALTER TYPE") { String::new() } else { settings };
    shadow.batch_execute(&format!("{settings}{sql}")).await.map_err(refused(&format!("{subject}: {sql}")))
}

/// Gives what is there another name. Appliers that know it by the old one end before anything else can have that, and begin anew.
async fn rename(shadow: &Client, subject: &str, sql: &str) -> Result<(), Error> {
    add(shadow, subject, sql).await?;
    let end = "SELECT pg_catalog.pg_terminate_backend(pid, 5000) FROM pg_catalog.pg_stat_activity \
        WHERE starts_with(application_name, $1) AND datname = current_database() AND usename = current_user";
    shadow.execute(end, &[&APPLICATION]).await.map(drop).map_err(refused(&format!("{subject}: {sql}")))
}

/// Makes an index of this table while the applier goes on writing; whether that is possible (not of a partitioned table).
async fn index_beside_writers(shadow: &Client, table: &str, sql: &str) -> Result<bool, Error> {
    let context = format!("{table}: {sql}");
    // It waits for those who write, and nobody for it.
    let settings = "SET search_path = ''; SET lock_timeout = 0";
    shadow.batch_execute(settings).await.map_err(refused(&context))?;
    let Err(error) = shadow.batch_execute(&sql.replacen(" INDEX ", " INDEX CONCURRENTLY ", 1)).await else {
        return Ok(true);
    };
    if error.code() == Some(&SqlState::FEATURE_NOT_SUPPORTED) {
        return Ok(false);
    }
    // What is left of it nobody uses, and its name is taken.
    let left = "SELECT format('DROP INDEX %s', indexrelid::pg_catalog.regclass) FROM pg_catalog.pg_index \
        WHERE indrelid = pg_catalog.to_regclass($1) AND NOT indisvalid";
    for row in shadow.query(left, &[&table]).await.map_err(refused(&context))? {
        shadow.batch_execute(row.get(0)).await.map_err(refused(&context))?;
    }
    Err(refused(&context)(error))
}

async fn table(
    (dsn, source): (&Dsn, &Client),
    shadow: &Client,
    publication: &str,
    bin: Option<&Path>,
    name: &str,
) -> Result<Option<u64>, Error> {
    let context = format!("add table {name}");
    let dump = schema::dump_table(dsn, bin, name).await?;
    let kind = "SELECT relkind::text FROM pg_catalog.pg_class WHERE oid = pg_catalog.to_regclass($1)";
    let kind = source.query_opt(kind, &[&name]).await.map_err(refused(&context))?;
    if kind.is_some_and(|row| row.get::<_, &str>(0) == "p") {
        // Its partitions have the rows.
        let limits = format!("SET lock_timeout = '{PATIENCE}'");
        shadow.batch_execute(&limits).await.map_err(refused(&context))?;
        return schema::load(shadow, &dump).await.map(|()| None);
    }
    source
        .batch_execute(&format!(
            "BEGIN; SET LOCAL lock_timeout = '{PATIENCE}'; LOCK TABLE ONLY {name} IN SHARE ROW EXCLUSIVE MODE"
        ))
        .await
        .map_err(refused(&context))?;
    let work = async {
        let size = format!("SELECT pg_catalog.pg_relation_size('{}')", name.replace('\'', "''"));
        let size: i64 = source.query_one(&size, &[]).await.map_err(refused(&context))?.get(0);
        if size > LARGEST {
            return Err(Error::Unready(format!(
                "{context}: it has {} MiB, too many to copy while its writers wait: seed the shadow anew (godwit reseed)",
                size >> 20
            )));
        }
        shadow
            .batch_execute(&format!(
                "BEGIN; SET LOCAL session_replication_role = replica; SET LOCAL lock_timeout = '{PATIENCE}'"
            ))
            .await
            .map_err(refused(&context))?;
        let there = "SELECT pg_catalog.to_regclass($1) IS NOT NULL";
        if !shadow.query_one(there, &[&name]).await.map_err(refused(&context))?.get::<_, bool>(0) {
            schema::load(shadow, &dump).await?;
        } else if shadow
            .query_opt(&format!("SELECT 1 FROM {name} LIMIT 1"), &[])
            .await
            .map_err(refused(&context))?
            .is_some()
        {
            return Err(Error::Unready(format!(
                "{context}: the shadow's has rows that nobody knows: empty it (TRUNCATE {name}), or seed anew (godwit reseed)"
            )));
        }
        let out = source.copy_out(&format!("COPY {name} TO STDOUT")).await.map_err(refused(&context))?;
        let sink = shadow
            .copy_in::<_, Bytes>(&format!("COPY {name} FROM STDIN"))
            .await
            .map_err(refused(&context))?;
        let (mut out, mut sink) = (pin!(out), pin!(sink));
        while let Some(chunk) = out.next().await {
            sink.feed(chunk.map_err(refused(&context))?).await.map_err(refused(&context))?;
        }
        let rows = sink.as_mut().finish().await.map_err(refused(&context))?;
        // One commit behind the other: as little as possible lies between them.
        let publish = format!("ALTER PUBLICATION {} ADD TABLE ONLY {name}", quote_ident(publication));
        source.batch_execute(&publish).await.map_err(refused(&context))?;
        shadow.batch_execute("COMMIT").await.map_err(refused(&context))?;
        if let Err(error) = source.batch_execute("COMMIT").await {
            // Without its place in the publication its changes would be missing unseen.
            shadow.batch_execute(&format!("DROP TABLE {name} CASCADE")).await.map_err(refused(&context))?;
            return Err(refused(&context)(error));
        }
        Ok(Some(rows))
    };
    let result = work.await;
    if result.is_err() {
        for client in [shadow, source] {
            // The failure itself is what is told.
            let _ = client.batch_execute("ROLLBACK").await;
        }
    }
    result
}
