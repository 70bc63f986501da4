//! The initial copy on its way in: several sessions write parts at the same time.
//!
//! The schema is committed first, together with a note in `godwit.copying` that a copy is under way; then every part in
//! a transaction of its own; then what comes after the rows, the checkpoint and the note's end in one transaction. A
//! copy that finds the note of one that broke empties the tables and begins again: its snapshot is another one, so
//! nothing of the old rows may stay.
//!
//! A session of the broken copy that still lives cannot slip rows in behind that: each part's transaction shares the
//! note as it was for its own attempt, and the next attempt changes the note before it empties anything.

use std::collections::HashMap;
use std::pin::pin;

use bytes::Bytes;
use futures_util::SinkExt;
use tokio::sync::mpsc;
use tokio_postgres::Client;
use tokio_postgres::types::PgLsn;
use tokio_util::task::AbortOnDropHandle;

use super::{PostgresTarget, not_open};
use crate::error::Error;
use crate::lsn::Lsn;
use crate::postgres::quote_ident;
use crate::wire::CopyTable;
use crate::{copy, schema};

/// Pieces that wait for one session.
const WAITING: usize = 4;

/// More parts than this at once are not meant.
const MOST: usize = 32;

/// A copy that is under way.
#[derive(Default)]
pub(super) struct Copying {
    attempt: i64,
    open: HashMap<u32, Loader>,
    idle: Vec<Loader>,
    tables: Vec<String>,
}

/// A session that writes parts, one after the other.
struct Loader {
    orders: mpsc::Sender<Order>,
    task: AbortOnDropHandle<Result<(), Error>>,
}

enum Order {
    Begin { context: String, sql: String },
    Rows(Bytes),
    End { rows: u64 },
}

impl Loader {
    fn start(target: &PostgresTarget, attempt: i64) -> Self {
        let (orders, queue) = mpsc::channel(WAITING);
        let (dsn, application, stream) = (target.dsn.clone(), target.loader_name(), target.spec.slot.clone());
        let task = async move {
            let client = super::open(&dsn, &application).await?;
            // The checkpoint's commit makes the rows durable with it: it comes later in the WAL.
            client
                .batch_execute("SET synchronous_commit = off")
                .await
                .map_err(Error::database("prepare a copy session"))?;
            work(&client, queue, &stream, attempt).await
        };
        Self { orders, task: AbortOnDropHandle::new(tokio::spawn(task)) }
    }

    async fn order(self, order: Order) -> Result<Self, Error> {
        match self.orders.send(order).await {
            Ok(()) => Ok(self),
            // It ends by itself only by an error.
            Err(_) => Err(self.finish().await.err().unwrap_or_else(not_open)),
        }
    }

    /// Waits until everything that it was told is committed.
    async fn finish(self) -> Result<(), Error> {
        drop(self.orders);
        self.task.await.map_err(|error| Error::Link(format!("a copy session broke off: {error}")))?
    }
}

async fn work(
    client: &Client,
    mut queue: mpsc::Receiver<Order>,
    stream: &str,
    attempt: i64,
) -> Result<(), Error> {
    while let Some(order) = queue.recv().await {
        let Order::Begin { context, sql } = order else {
            return Err(Error::Protocol("rows of no part".into()));
        };
        part(client, &mut queue, &context, &sql, (stream, attempt)).await?;
    }
    Ok(())
}

/// Writes one part. Without its end it is rolled back with the session.
async fn part(
    client: &Client,
    queue: &mut mpsc::Receiver<Order>,
    context: &str,
    sql: &str,
    (stream, attempt): (&str, i64),
) -> Result<(), Error> {
    let failed = || Error::database(context.to_owned());
    client.batch_execute("BEGIN").await.map_err(failed())?;
    let note = "SELECT FROM godwit.copying WHERE stream = $1 AND attempt = $2 FOR SHARE";
    if client.query_opt(note, &[&stream, &attempt]).await.map_err(failed())?.is_none() {
        return Err(Error::Link("a newer copy has begun".into()));
    }
    let mut sink = pin!(client.copy_in::<_, Bytes>(sql).await.map_err(failed())?);
    loop {
        match queue.recv().await {
            Some(Order::Rows(data)) => sink.feed(data).await.map_err(failed())?,
            Some(Order::End { rows }) => {
                let written = sink.as_mut().finish().await.map_err(failed())?;
                if written != rows {
                    return Err(Error::Protocol(format!("{context}: {written} rows came of {rows}")));
                }
                return client.batch_execute("COMMIT").await.map_err(failed());
            }
            Some(Order::Begin { .. }) | None => return Err(Error::Link("the session ended".into())),
        }
    }
}

impl PostgresTarget {
    fn loader_name(&self) -> String {
        format!("godwit load {}", self.spec.slot).chars().take(63).collect()
    }

    fn copying(&mut self) -> Result<&mut Copying, Error> {
        self.copying.as_mut().ok_or_else(not_open)
    }

    /// What exists before the rows: loaded, or there already from a copy that broke.
    pub(super) async fn load_before(&mut self, sql: &str) -> Result<(), Error> {
        let client = &self.session.as_ref().ok_or_else(not_open)?.client;
        let failed = || Error::database("begin the copy");
        client
            .execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1 \
                 AND datname = current_database() AND usename = current_user",
                &[&self.loader_name()],
            )
            .await
            .map_err(failed())?;
        client.batch_execute("BEGIN").await.map_err(failed())?;
        let broken = client
            .query_opt(
                "UPDATE godwit.copying SET attempt = attempt + 1 WHERE stream = $1 RETURNING attempt, pre_data = $2",
                &[&self.spec.slot, &sql],
            )
            .await
            .map_err(failed())?;
        let there = copy::tables(client).await?;
        let attempt = match broken {
            Some(row) if row.get(1) => {
                let names: Vec<String> = there.iter().map(|table| name(&table.schema, &table.name)).collect();
                if !names.is_empty() {
                    let empty = format!("TRUNCATE {}", names.join(", "));
                    client.batch_execute(&empty).await.map_err(failed())?;
                }
                row.get(0)
            }
            Some(_) => {
                return Err(Error::Unready(
                    "a copy broke off and the source's schema changed since: give the target an empty database".into(),
                ));
            }
            None => {
                if let Some(table) = there.first() {
                    return Err(Error::Unready(format!(
                        "the target already holds {} tables ({}.{} …): the copy goes into an empty database only",
                        there.len(),
                        table.schema,
                        table.name
                    )));
                }
                schema::load(client, sql).await?;
                client
                    .execute(
                        "INSERT INTO godwit.copying (stream, attempt, pre_data) VALUES ($1, 1, $2)",
                        &[&self.spec.slot, &sql],
                    )
                    .await
                    .map_err(failed())?;
                1
            }
        };
        client.batch_execute("COMMIT").await.map_err(failed())?;
        self.copying()?.attempt = attempt;
        Ok(())
    }

    /// Every row is committed; then what comes after them, in a transaction that [`Self::commit_copy`] ends.
    pub(super) async fn load_after(&mut self, sql: &str) -> Result<(), Error> {
        let copying = self.copying()?;
        if !copying.open.is_empty() {
            return Err(Error::Protocol("a copy ends within a part".into()));
        }
        for loader in std::mem::take(&mut copying.idle) {
            loader.finish().await?;
        }
        let client = &self.session.as_ref().ok_or_else(not_open)?.client;
        client.batch_execute("BEGIN").await.map_err(Error::database("end the copy"))?;
        schema::load(client, sql).await
    }

    pub(super) async fn open_part(&mut self, part: u32, table: &CopyTable) -> Result<(), Error> {
        let columns: Vec<String> = table.columns.iter().map(|column| quote_ident(column)).collect();
        let name = name(&table.schema, &table.name);
        let list = if columns.is_empty() { String::new() } else { format!(" ({})", columns.join(", ")) };
        let format = if table.binary { "binary" } else { "text" };
        let order = Order::Begin {
            context: format!("copy into {name}"),
            sql: format!("COPY {name}{list} FROM STDIN WITH (FORMAT {format})"),
        };
        let copying = self.copying()?;
        if copying.open.len() >= MOST || copying.open.contains_key(&part) {
            return Err(Error::Protocol(format!("part {part} begins out of order")));
        }
        let (idle, attempt) = (copying.idle.pop(), copying.attempt);
        let loader = idle.unwrap_or_else(|| Loader::start(self, attempt)).order(order).await?;
        let copying = self.copying()?;
        copying.open.insert(part, loader);
        if !copying.tables.contains(&name) {
            copying.tables.push(name);
        }
        Ok(())
    }

    pub(super) async fn write_part(&mut self, part: u32, data: Bytes) -> Result<(), Error> {
        let loader = self.copying()?.open.remove(&part).ok_or_else(not_open)?;
        let loader = loader.order(Order::Rows(data)).await?;
        self.copying()?.open.insert(part, loader);
        Ok(())
    }

    pub(super) async fn close_part(&mut self, part: u32, rows: u64) -> Result<(), Error> {
        let loader = self.copying()?.open.remove(&part).ok_or_else(not_open)?;
        let loader = loader.order(Order::End { rows }).await?;
        self.copying()?.idle.push(loader);
        Ok(())
    }

    /// Ends the transaction that [`Self::load_after`] began.
    pub(super) async fn commit_copy(&mut self, consistent_point: Lsn) -> Result<(), Error> {
        let copying = self.copying.take().ok_or_else(not_open)?;
        let client = &self.session.as_ref().ok_or_else(not_open)?.client;
        if !copying.tables.is_empty() {
            client
                .batch_execute(&format!("ANALYZE {}", copying.tables.join(", ")))
                .await
                .map_err(Error::database("analyze what was copied"))?;
        }
        client
            .execute("DELETE FROM godwit.copying WHERE stream = $1", &[&self.spec.slot])
            .await
            .map_err(Error::database("end the copy"))?;
        client
            .execute(
                "INSERT INTO godwit.progress (stream, applied_lsn, copied, generation) VALUES ($1, $2, true, $3) \
                 ON CONFLICT (stream) DO UPDATE SET applied_lsn = EXCLUDED.applied_lsn, copied = true, \
                   generation = EXCLUDED.generation, updated_at = now()",
                &[&self.spec.slot, &PgLsn::from(consistent_point.0), &self.generation],
            )
            .await
            .map_err(Error::database("set the checkpoint"))?;
        client.batch_execute("COMMIT").await.map_err(Error::database("commit the copy"))?;
        self.expected = consistent_point;
        Ok(())
    }
}

fn name(schema: &str, table: &str) -> String {
    format!("{}.{}", quote_ident(schema), quote_ident(table))
}
