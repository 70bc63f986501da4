//! Makes on the shadow what only the source has.

use std::collections::BTreeSet;

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::fill::{self, PATIENCE, Sides};
use super::{Difference, Mend, worded};
use crate::error::Error;
use crate::fence::refused;

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
/// A table that is missing is made by `pg_dump` of it, and filled beside the stream, which brings its changes from there. Its types must
/// exist. What fails of the tables in `anew` is no failure: it waits until these are seeded anew, which gives them their columns.
pub async fn sync(sides: Sides<'_>, mut wanted: Vec<&Difference>, anew: &BTreeSet<&str>) -> Synced {
    let (_, shadow) = sides.shadow;
    wanted.sort_by_key(|difference| rank(&difference.mend));
    let mut done = Vec::new();
    let mut failure = None;
    while !wanted.is_empty() {
        let before = wanted.len();
        failure = None;
        let mut failed = Vec::new();
        let tables = wanted.iter().filter_map(|difference| match &difference.mend {
            Mend::Table(name) => Some(name.as_str()),
            _ => None,
        });
        let tables: Vec<&str> = tables.collect();
        let mut together = None;
        for difference in wanted {
            let mended = match &difference.mend {
                Mend::Add(sql) | Mend::Drop(sql) => {
                    add(shadow, &difference.subject, sql).await.map(|()| Some(sql.clone()))
                }
                Mend::Rename(sql) => {
                    rename(shadow, &difference.subject, sql).await.map(|()| Some(sql.clone()))
                }
                Mend::Table(name) => {
                    if together.is_none() {
                        // By now what they may need is there.
                        together = Some(fill::new::tables(sides, &tables).await);
                    }
                    let made = match together.as_mut().and_then(|made| made.remove(name)) {
                        Some(rows) => Ok(rows),
                        None => fill::table(sides, name).await,
                    };
                    made.map(|rows| {
                        Some(match rows {
                            Some(rows) => format!("{name}: made, {rows} rows copied, published"),
                            None => format!("{name}: made"),
                        })
                    })
                }
                Mend::Anew(_) | Mend::Person(_) => Ok(None),
            };
            let mended = match (&difference.mend, &difference.made) {
                (Mend::Add(_), Some((key, of))) if mended.is_ok() => {
                    worded::made(shadow, key, of).await.and(mended)
                }
                _ => mended,
            };
            match mended {
                Ok(line) => done.extend(line),
                Err(error) => {
                    failed.push(difference);
                    if !anew.contains(difference.subject.as_str()) {
                        failure.get_or_insert(error);
                    }
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
    const FIRST: [&str; 7] = [
        "CREATE SCHEMA ",
        "CREATE EXTENSION ",
        "CREATE COLLATION ",
        "CREATE TEXT SEARCH ",
        "CREATE TYPE ",
        "CREATE DOMAIN ",
        "ALTER TYPE ",
    ];
    const LAST: [&str; 4] = ["CREATE OR REPLACE ", "DROP POLICY ", "GRANT ", "REVOKE "];
    match mend {
        Mend::Add(sql) if FIRST.iter().any(|word| sql.starts_with(word)) => 0,
        // What follows is not done to what is no part of it any more.
        Mend::Add(sql) if sql.contains(" DETACH PARTITION ") || sql.contains(" NO INHERIT ") => 0,
        // What is made in a schema may need what its owner may do there.
        Mend::Add(sql) if sql.starts_with("ALTER SCHEMA ") || is_grant_on_schema(sql) => 1,
        Mend::Add(sql) if sql.starts_with("CREATE SEQUENCE ") => 1,
        Mend::Table(_) => 2,
        Mend::Add(sql) if sql.contains(" ADD COLUMN ") => 3,
        Mend::Add(sql) if sql.contains(" FOREIGN KEY ") => 5,
        Mend::Add(sql) => LAST.iter().position(|word| sql.starts_with(word)).map_or(4, |place| 6 + place),
        Mend::Rename(_) => 0,
        // What stood in its way is changed by then.
        Mend::Drop(_) => 10,
        Mend::Anew(_) | Mend::Person(_) => 11,
    }
}

fn is_grant_on_schema(sql: &str) -> bool {
    sql.starts_with("GRANT ") && sql.contains(" ON SCHEMA ")
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
    let Err(error) = shadow.batch_execute(&format!("{settings}{sql}")).await else { return Ok(()) };
    // Another type of what a function returns, another column of a view.
    let is_another = [SqlState::INVALID_FUNCTION_DEFINITION, SqlState::INVALID_TABLE_DEFINITION]
        .iter()
        .any(|state| error.code() == Some(state));
    if is_another && let Some(drop) = dropped(subject, sql) {
        let made = async {
            let rest = if derived(shadow, subject).await? { "CASCADE" } else { "RESTRICT" };
            shadow.batch_execute(&format!("{settings}{drop} {rest}; {sql}")).await
        };
        return made.await.map_err(refused(&format!("{subject}: {drop}; {sql}")));
    }
    Err(refused(&format!("{subject}: {sql}"))(error))
}

/// What takes away that which this would replace; none: it replaces nothing.
fn dropped(subject: &str, sql: &str) -> Option<String> {
    let made = sql.strip_prefix("CREATE OR REPLACE ")?;
    let kind = ["VIEW ", "FUNCTION ", "PROCEDURE "].into_iter().find(|kind| made.starts_with(kind))?;
    Some(format!("DROP {kind}{subject}"))
}

/// Whether all that hangs on a view or a function is compared, holds no rows, and so is made anew after it.
async fn derived(shadow: &Client, subject: &str) -> Result<bool, tokio_postgres::Error> {
    let row = shadow.query_one(include_str!("derived.sql"), &[&subject]).await?;
    Ok(row.get(0))
}

/// Gives what is there another name. Appliers that know it by the old one end before anything else can have that, and begin anew.
async fn rename(shadow: &Client, subject: &str, sql: &str) -> Result<(), Error> {
    add(shadow, subject, sql).await?;
    fill::end_appliers(shadow).await.map_err(refused(&format!("{subject}: {sql}")))
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
