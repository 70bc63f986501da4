//! A PostgreSQL target: rows and checkpoint in one transaction, about one round trip for a group.
//!
//! `BEGIN`, the checkpoint, the rows and `COMMIT` are sent without waiting for each other. A statement that fails makes
//! the server answer the COMMIT with a rollback; so nothing half done can commit. The session holds the replication
//! origin: a second session of the same stream waits for it, so nobody reads a checkpoint that an older session is
//! about to move.
//!
//! It never skips a change: what cannot be applied is an [`Error::Conflict`].

mod catalog;
mod large;
mod plan;
mod sql;

use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::SinkExt;
use tokio_postgres::types::{PgLsn, ToSql, Type};
use tokio_postgres::{Client, CopyInSink, Statement};

use self::catalog::Table;
use self::plan::Order;
use super::Target;
use crate::change::{Change, LargeHeader, Relation, Transaction};
use crate::error::Error;
use crate::lsn::Lsn;
use crate::postgres::{Dsn, connect, connection, quote_ident, quote_literal};
use crate::wire::{CopyTable, Resume, StreamSpec};
use crate::{copy, schema};

/// How long to wait for an older session of this stream to let go of the origin.
const TAKE_OVER: Duration = Duration::from_secs(20);

/// After so long the older session is told to end.
const PATIENCE: Duration = Duration::from_millis(500);

/// Prepared statements kept.
const STATEMENTS: usize = 1_000;

const CHECKPOINT: &str = "\
WITH w AS (UPDATE godwit.progress SET applied_lsn = $1, \
  marker_generation = coalesce($2, marker_generation), updated_at = now() \
  WHERE stream = $3 AND applied_lsn = $4 AND generation = $5 RETURNING 1) SELECT 1 / count(*) FROM w";

/// Puts a stream's checkpoint in place where nothing is copied: the reverse stream of a cutover.
///
/// Idempotent: a checkpoint that is further already stays.
pub async fn seed_progress(client: &Client, stream: &str, lsn: Lsn, generation: u64) -> Result<(), Error> {
    let generation = signed(generation)?;
    client
        .execute(
            "INSERT INTO godwit.progress AS p (stream, applied_lsn, copied, generation) VALUES ($1, $2, true, $3) \
             ON CONFLICT (stream) DO UPDATE SET applied_lsn = EXCLUDED.applied_lsn, copied = true, \
               generation = EXCLUDED.generation, marker_generation = NULL, updated_at = now() \
             WHERE p.applied_lsn < EXCLUDED.applied_lsn",
            &[&stream, &PgLsn::from(lsn.0), &generation],
        )
        .await
        .map_err(Error::database(format!("seed the checkpoint of {stream}")))?;
    Ok(())
}

fn signed(generation: u64) -> Result<i64, Error> {
    i64::try_from(generation).map_err(|_| Error::Protocol(format!("generation {generation} is out of range")))
}

struct Session {
    client: Client,
    checkpoint: Statement,
    statements: HashMap<String, Statement>,
    /// By the source's OID; the relation says whether it is still the same.
    tables: HashMap<u32, Arc<Table>>,
    copying: Option<Copying>,
    large: Option<large::Large>,
}

struct Copying {
    sink: Option<(String, Pin<Box<CopyInSink<Bytes>>>)>,
    tables: Vec<String>,
}

/// One stream's target.
pub struct PostgresTarget {
    dsn: Dsn,
    spec: StreamSpec,
    generation: i64,
    expected: Lsn,
    session: Option<Session>,
}

impl PostgresTarget {
    /// Not connected yet: [`Target::resume`] connects.
    pub fn new(dsn: Dsn, spec: StreamSpec) -> Result<Self, Error> {
        let generation = signed(spec.generation)?;
        Ok(Self { dsn, spec, generation, expected: Lsn::ZERO, session: None })
    }

    fn application(&self) -> String {
        format!("godwit apply {}", self.spec.slot).chars().take(63).collect()
    }

    async fn open(&self) -> Result<Client, Error> {
        let client = connect(&self.dsn, &self.application()).await?;
        let settings: Vec<String> = connection::SESSION_SETTINGS
            .into_iter()
            .chain([
                ("session_replication_role", "replica"),
                ("synchronous_commit", "on"),
                ("transaction_timeout", "0"),
            ])
            .map(|(name, value)| format!("({}, {})", quote_literal(name), quote_literal(value)))
            .collect();
        client
            .batch_execute(&format!(
                "DO $$ BEGIN PERFORM pg_catalog.set_config(s.name, s.value, false) FROM (VALUES {}) AS s(name, value) \
                 JOIN pg_catalog.pg_settings USING (name); END $$",
                settings.join(", ")
            ))
            .await
            .map_err(Error::database("prepare the apply session"))?;
        Ok(client)
    }

    /// Makes this session the only one of the stream.
    async fn take_origin(&self, client: &Client) -> Result<(), Error> {
        let origin = &self.spec.origin;
        let context = || format!("take replication origin {origin}");
        let create = "SELECT pg_replication_origin_create($1) WHERE pg_replication_origin_oid($1) IS NULL";
        if let Err(error) = client.execute(create, &[origin]).await {
            // Another node made it just now.
            if !has_code(&error, &["42710", "23505"]) {
                return Err(Error::database(context())(error));
            }
        }
        let start = crate::clock::now();
        loop {
            match client.execute("SELECT pg_replication_origin_session_setup($1)", &[origin]).await {
                Ok(_) => return Ok(()),
                Err(error) if has_code(&error, &["55006"]) && start.elapsed() < TAKE_OVER => {}
                Err(error) => return Err(Error::database(context())(error)),
            }
            if start.elapsed() > PATIENCE {
                // An older session whose client is gone; its work is either committed or rolled back by this.
                client
                    .execute(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1 \
                         AND datname = current_database() AND usename = current_user AND pid <> pg_backend_pid()",
                        &[&self.application()],
                    )
                    .await
                    .map_err(Error::database(context()))?;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn apply_in(&mut self, group: &[Transaction], order: Order) -> Result<(), Failure> {
        let Some(last) = group.last() else { return Ok(()) };
        let marker = group.iter().filter_map(Transaction::marker).next_back();
        let marker = marker.map(signed).transpose()?;
        let session = self.session.as_mut().ok_or_else(not_open)?;
        session.look_up(group).await?;
        let tables = &session.tables;
        let statements = plan::plan(group, order, |relation| tables.get(&relation.id).cloned())?;
        session.prepare(&statements).await?;
        session
            .commit(
                Checkpoint {
                    to: last.end_lsn,
                    from: self.expected,
                    marker,
                    stream: &self.spec.slot,
                    generation: self.generation,
                },
                &statements,
            )
            .await?;
        self.expected = last.end_lsn;
        Ok(())
    }
}

/// Why a group did not go in.
enum Failure {
    /// Statement by statement it may.
    Batch,
    Error(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

struct Checkpoint<'a> {
    to: Lsn,
    from: Lsn,
    marker: Option<i64>,
    stream: &'a str,
    generation: i64,
}

impl Checkpoint<'_> {
    /// It is not where this session left it.
    fn moved(&self) -> Error {
        Error::Fenced(format!(
            "the checkpoint of {} is not at {} under generation {}: another writer took over",
            self.stream, self.from, self.generation
        ))
    }
}

impl Session {
    async fn look_up(&mut self, group: &[Transaction]) -> Result<(), Error> {
        for change in group.iter().flat_map(|transaction| &transaction.changes) {
            let relations: &[Arc<Relation>] = match change {
                Change::Insert { relation, .. }
                | Change::Update { relation, .. }
                | Change::Delete { relation, .. } => std::slice::from_ref(relation),
                Change::Truncate { relations, .. } => relations,
                Change::Message { .. } => &[],
            };
            for relation in relations {
                let known = self.tables.get(&relation.id).is_some_and(|table| {
                    Arc::ptr_eq(&table.relation, relation) || table.relation == *relation
                });
                if !known {
                    let table = Table::load(&self.client, Arc::clone(relation)).await?;
                    self.tables.insert(relation.id, Arc::new(table));
                }
            }
        }
        Ok(())
    }

    async fn prepare(&mut self, statements: &[plan::Statement]) -> Result<(), Error> {
        if self.statements.len() > STATEMENTS {
            self.statements.clear();
        }
        let mut missing: Vec<&plan::Statement> = Vec::new();
        for statement in statements {
            if !self.statements.contains_key(&statement.sql)
                && !missing.iter().any(|other| other.sql == statement.sql)
            {
                missing.push(statement);
            }
        }
        let types: Vec<Vec<Type>> =
            missing.iter().map(|statement| vec![Type::TEXT_ARRAY; statement.parameters.len()]).collect();
        let client = &self.client;
        let prepared = futures_util::future::join_all(
            missing.iter().zip(&types).map(|(statement, types)| client.prepare_typed(&statement.sql, types)),
        )
        .await;
        for (statement, prepared) in missing.into_iter().zip(prepared) {
            let prepared = prepared.map_err(Error::database(format!("prepare {}", statement.sql)))?;
            self.statements.insert(statement.sql.clone(), prepared);
        }
        Ok(())
    }

    /// Moves the checkpoint and commits what is open.
    async fn finish(&self, checkpoint: Checkpoint<'_>) -> Result<(), Failure> {
        let client = &self.client;
        let (to, from) = (PgLsn::from(checkpoint.to.0), PgLsn::from(checkpoint.from.0));
        let parameters: [&(dyn ToSql + Sync); 5] =
            [&to, &checkpoint.marker, &checkpoint.stream, &from, &checkpoint.generation];
        let mut pipeline = Pipeline::default();
        pipeline.push(async { client.execute(&self.checkpoint, &parameters).await.map(drop) }).await;
        pipeline.push(async { client.batch_execute("COMMIT").await }).await;
        match pipeline.finish().await {
            None => Ok(()),
            Some((0, error)) if has_code(&error, &[sql::ROW_MISSING]) => Err(checkpoint.moved().into()),
            Some((0, error)) => Err(Error::database("move the checkpoint")(error).into()),
            Some((_, error)) => Err(failure(&[], 0, error)),
        }
    }

    /// Everything at once, one wait.
    async fn commit(
        &self,
        checkpoint: Checkpoint<'_>,
        statements: &[plan::Statement],
    ) -> Result<(), Failure> {
        let client = &self.client;
        let mut arrays = Vec::with_capacity(statements.len());
        for statement in statements {
            arrays.push(
                statement.parameters.iter().map(|column| texts(column)).collect::<Result<Vec<_>, _>>()?,
            );
        }
        let (to, from) = (PgLsn::from(checkpoint.to.0), PgLsn::from(checkpoint.from.0));
        let parameters: [&(dyn ToSql + Sync); 5] =
            [&to, &checkpoint.marker, &checkpoint.stream, &from, &checkpoint.generation];
        let mut pipeline = Pipeline::default();
        pipeline.push(async { client.batch_execute("BEGIN").await }).await;
        pipeline.push(async { client.execute(&self.checkpoint, &parameters).await.map(drop) }).await;
        for (statement, arrays) in statements.iter().zip(&arrays) {
            let Some(prepared) = self.statements.get(&statement.sql) else {
                return Err(Error::Protocol("a statement was not prepared".into()).into());
            };
            pipeline
                .push(async move {
                    let parameters: Vec<&(dyn ToSql + Sync)> =
                        arrays.iter().map(|array| array as &(dyn ToSql + Sync)).collect();
                    client.execute(prepared, &parameters).await.map(drop)
                })
                .await;
        }
        pipeline.push(async { client.batch_execute("COMMIT").await }).await;
        // The first error in order is the cause; what follows it failed because of it.
        let Some((at, error)) = pipeline.finish().await else { return Ok(()) };
        match at.checked_sub(2) {
            None if at == 1 && has_code(&error, &[sql::ROW_MISSING]) => Err(checkpoint.moved().into()),
            None => Err(Error::database("begin a group")(error).into()),
            Some(at) => Err(failure(statements, at, error)),
        }
    }
}

fn failure(statements: &[plan::Statement], at: usize, error: tokio_postgres::Error) -> Failure {
    let code = error.code().map(|code| code.code().to_owned()).unwrap_or_default();
    if code != sql::ROW_MISSING && !code.starts_with("23") {
        let what = statements.get(at).map_or_else(
            || "commit a group".to_owned(),
            |statement| format!("apply to {} at {}: {}", statement.table, statement.lsn, statement.key),
        );
        return Failure::Error(Error::database(what)(error));
    }
    let one = statements.iter().all(|statement| statement.parameters.first().is_none_or(|p| p.len() <= 1));
    let Some(statement) = statements.get(at).filter(|_| one) else { return Failure::Batch };
    let what = match error.as_db_error() {
        Some(error) if code != sql::ROW_MISSING => {
            format!("{} {}: {}", statement.key, error.message(), error.detail().unwrap_or_default())
        }
        _ => format!("{} is not there", statement.key),
    };
    Failure::Error(Error::Conflict { table: statement.table.clone(), lsn: statement.lsn, what })
}

fn texts(column: &[Option<Bytes>]) -> Result<Vec<Option<&str>>, Error> {
    column
        .iter()
        .map(|value| match value {
            None => Ok(None),
            Some(bytes) => std::str::from_utf8(bytes)
                .map(Some)
                .map_err(|_| Error::Protocol("a value is not UTF-8".into())),
        })
        .collect()
}

fn has_code(error: &tokio_postgres::Error, codes: &[&str]) -> bool {
    error.code().is_some_and(|code| codes.contains(&code.code()))
}

fn not_open() -> Error {
    Error::Protocol("the target is not open".into())
}

type Reply<'a> = Pin<Box<dyn Future<Output = Result<(), tokio_postgres::Error>> + Send + 'a>>;

/// Requests that are sent in order, each at its first poll, and awaited afterwards.
#[derive(Default)]
struct Pipeline<'a> {
    replies: Vec<Option<Reply<'a>>>,
    failed: Option<(usize, tokio_postgres::Error)>,
}

impl<'a> Pipeline<'a> {
    async fn push(&mut self, request: impl Future<Output = Result<(), tokio_postgres::Error>> + Send + 'a) {
        let mut reply: Reply<'a> = Box::pin(request);
        let at = self.replies.len();
        match poll_fn(|context| Poll::Ready(reply.as_mut().poll(context))).await {
            Poll::Pending => self.replies.push(Some(reply)),
            Poll::Ready(result) => {
                self.replies.push(None);
                self.note(at, result);
            }
        }
    }

    fn note(&mut self, at: usize, result: Result<(), tokio_postgres::Error>) {
        if let Err(error) = result
            && self.failed.as_ref().is_none_or(|(first, _)| at < *first)
        {
            self.failed = Some((at, error));
        }
    }

    async fn finish(mut self) -> Option<(usize, tokio_postgres::Error)> {
        for at in 0..self.replies.len() {
            if let Some(reply) = self.replies[at].take() {
                let result = reply.await;
                self.note(at, result);
            }
        }
        self.failed
    }
}

#[async_trait]
impl Target for PostgresTarget {
    async fn resume(&mut self) -> Result<Resume, Error> {
        self.session = None;
        let client = self.open().await?;
        self.take_origin(&client).await?;
        let row = client
            .query_opt(
                "SELECT applied_lsn, copied, generation, marker_generation FROM godwit.progress WHERE stream = $1",
                &[&self.spec.slot],
            )
            .await
            .map_err(Error::database("read the checkpoint (is schema godwit installed?)"))?;
        let resume = match row {
            None => Resume::default(),
            Some(row) => {
                let generation: i64 = row.get(2);
                if generation != self.generation {
                    return Err(Error::Fenced(format!(
                        "the checkpoint of {} is of generation {generation}, not {}",
                        self.spec.slot, self.generation
                    )));
                }
                Resume {
                    applied: Lsn(row.get::<_, PgLsn>(0).into()),
                    copied: row.get(1),
                    marker: row.get::<_, Option<i64>>(3).map(i64::unsigned_abs),
                }
            }
        };
        let types = [Type::PG_LSN, Type::INT8, Type::TEXT, Type::PG_LSN, Type::INT8];
        let checkpoint = client
            .prepare_typed(CHECKPOINT, &types)
            .await
            .map_err(Error::database("prepare the checkpoint"))?;
        self.expected = resume.applied;
        self.session = Some(Session {
            client,
            checkpoint,
            statements: HashMap::new(),
            tables: HashMap::new(),
            copying: None,
            large: None,
        });
        Ok(resume)
    }

    async fn apply(&mut self, group: &[Transaction]) -> Result<(), Error> {
        match self.apply_in(group, Order::Lanes).await {
            Ok(()) => return Ok(()),
            Err(Failure::Error(error)) if !matches!(error, Error::Conflict { .. }) => return Err(error),
            Err(_) => {}
        }
        match self.apply_in(group, Order::Rows).await {
            Ok(()) => Ok(()),
            Err(Failure::Error(error)) => Err(error),
            Err(Failure::Batch) => Err(Error::Conflict {
                table: "the commit".into(),
                lsn: self.expected,
                what: "a deferred constraint refuses the group".into(),
            }),
        }
    }

    async fn begin_large(&mut self, header: LargeHeader) -> Result<(), Error> {
        self.open_large(header).await
    }

    async fn apply_part(&mut self, changes: Vec<Change>) -> Result<(), Error> {
        self.large_part(changes).await
    }

    async fn end_large(&mut self) -> Result<(), Error> {
        self.close_large().await
    }

    async fn checkpoint(&mut self, lsn: Lsn) -> Result<(), Error> {
        let session = self.session.as_ref().ok_or_else(not_open)?;
        let step = Checkpoint {
            to: lsn,
            from: self.expected,
            marker: None,
            stream: &self.spec.slot,
            generation: self.generation,
        };
        match session.commit(step, &[]).await {
            Ok(()) => {}
            Err(Failure::Error(error)) => return Err(error),
            Err(Failure::Batch) => return Err(Error::Fenced("the checkpoint cannot be moved".into())),
        }
        self.expected = lsn;
        Ok(())
    }

    async fn begin_copy(&mut self) -> Result<(), Error> {
        let session = self.session.as_mut().ok_or_else(not_open)?;
        // One transaction for all of it: a copy that breaks leaves nothing behind.
        session.client.batch_execute("BEGIN").await.map_err(Error::database("begin the copy"))?;
        let there = copy::tables(&session.client).await?;
        if let Some(table) = there.first() {
            return Err(Error::Unready(format!(
                "the target already holds {} tables ({}.{} …): the copy goes into an empty database only",
                there.len(),
                table.schema,
                table.name
            )));
        }
        session.copying = Some(Copying { sink: None, tables: Vec::new() });
        Ok(())
    }

    async fn load_schema(&mut self, sql: &str, _post: bool) -> Result<(), Error> {
        let session = self.session.as_ref().ok_or_else(not_open)?;
        schema::load(&session.client, sql).await
    }

    async fn begin_table(&mut self, table: &CopyTable) -> Result<(), Error> {
        let session = self.session.as_mut().ok_or_else(not_open)?;
        let copying = session.copying.as_mut().ok_or_else(not_open)?;
        let columns: Vec<String> = table.columns.iter().map(|column| quote_ident(column)).collect();
        let name = format!("{}.{}", quote_ident(&table.schema), quote_ident(&table.name));
        let list = if columns.is_empty() { String::new() } else { format!(" ({})", columns.join(", ")) };
        let context = format!("copy into {name}");
        let sink = session
            .client
            .copy_in(&format!("COPY {name}{list} FROM STDIN"))
            .await
            .map_err(Error::database(context.clone()))?;
        copying.sink = Some((context, Box::pin(sink)));
        copying.tables.push(name);
        Ok(())
    }

    async fn copy_rows(&mut self, data: Bytes) -> Result<(), Error> {
        let copying = self.session.as_mut().and_then(|session| session.copying.as_mut());
        let (context, sink) = copying.and_then(|copying| copying.sink.as_mut()).ok_or_else(not_open)?;
        sink.feed(data).await.map_err(Error::database(context.clone()))
    }

    async fn end_table(&mut self) -> Result<u64, Error> {
        let copying = self.session.as_mut().and_then(|session| session.copying.as_mut());
        let (context, mut sink) = copying.and_then(|copying| copying.sink.take()).ok_or_else(not_open)?;
        sink.as_mut().finish().await.map_err(Error::database(context))
    }

    async fn end_copy(&mut self, consistent_point: Lsn) -> Result<(), Error> {
        let session = self.session.as_mut().ok_or_else(not_open)?;
        let copying = session.copying.take().ok_or_else(not_open)?;
        let client = &session.client;
        if !copying.tables.is_empty() {
            client
                .batch_execute(&format!("ANALYZE {}", copying.tables.join(", ")))
                .await
                .map_err(Error::database("analyze what was copied"))?;
        }
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
