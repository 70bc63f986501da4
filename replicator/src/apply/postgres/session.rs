//! One connection to the target, and how a plan runs on it.

use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::ops::Range;
use std::pin::Pin;
use std::task::Poll;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use tokio_postgres::Client;
use tokio_postgres::types::{ToSql, Type};

use super::catalog::Tables;
use super::encode::Array;
use super::plan::{self, Data, Item, Order, Statement};
use super::sql;
use crate::error::Error;
use crate::lsn::Lsn;
use crate::postgres::quote_literal;

/// Prepared statements kept.
const STATEMENTS: usize = 1_000;

/// Fewer changes than this are not halved again but written one after the other.
const ROW_BY_ROW: usize = 16;

/// A group of more changes is planned and written in parts of this many.
pub(super) const PART: usize = 20_000;

/// Moves the checkpoint, if it is where it should be, and says what the commit waits for. Prepared in SQL, so that it needs no message of its own.
///
/// A durable one waits for the disk, and for standbys of the server's own. Not where commits of another resource, which has its primary there, wait
/// for that one's shadow: whose applier may wait for this one's, if that shadow is here in turn.
const CHECKPOINT: &str = "\
PREPARE godwit_checkpoint (pg_lsn, int8, text, pg_lsn, int8, bool) AS \
WITH w AS (UPDATE godwit.progress SET applied_lsn = $1, \
  marker_generation = coalesce($2, marker_generation), updated_at = now() \
  WHERE stream = $3 AND applied_lsn = $4 AND generation = $5 RETURNING 1) \
SELECT 1 / count(*), pg_catalog.set_config('synchronous_commit', CASE WHEN NOT $6 THEN 'off' \
  WHEN pg_catalog.strpos(pg_catalog.current_setting('synchronous_standby_names'), 'godwit_') > 0 THEN 'local' \
  ELSE 'on' END, true) FROM w";

/// What [`CHECKPOINT`] fails with when it is not.
const CHECKPOINT_MOVED: &str = "22012";

/// Rows are found by key, some at a time: by the index, whatever the statistics say. What reads a whole table asks for hash
/// joins itself.
const BY_KEY: &str =
    "SET LOCAL enable_seqscan = off; SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off";

/// Planned anew each time, because a table may have grown since. For a few rows that would take longer than to write them.
const ANEW: &str = "SET LOCAL plan_cache_mode = force_custom_plan";

/// A statement of fewer rows goes by a plan that was made before, where the server has one.
const FEW: usize = 64;

pub(super) struct Session {
    pub(super) client: Client,
    statements: HashMap<String, tokio_postgres::Statement>,
}

/// A move of the checkpoint.
#[derive(Clone, Debug)]
pub(super) struct Checkpoint {
    pub(super) to: Lsn,
    pub(super) from: Lsn,
    /// The commit is durable when it is answered.
    pub(super) flush: bool,
    pub(super) marker: Option<i64>,
    pub(super) stream: String,
    pub(super) generation: i64,
}

impl Checkpoint {
    fn sql(&self, durable: bool) -> String {
        let marker = self.marker.map_or_else(|| "NULL".to_owned(), |marker| marker.to_string());
        let (to, stream, from, generation) =
            (self.to, quote_literal(&self.stream), self.from, self.generation);
        format!("EXECUTE godwit_checkpoint ('{to}', {marker}, {stream}, '{from}', {generation}, {durable})")
    }
}

/// Why a plan did not go in.
#[derive(Debug)]
pub(super) enum Failure {
    /// Change by change it may.
    Batch,
    Error(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

/// What a request of a pipeline was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Begin,
    Checkpoint,
    Statement(usize),
    Commit,
}

impl Session {
    pub(super) async fn open(client: Client) -> Result<Self, Error> {
        client.batch_execute(CHECKPOINT).await.map_err(Error::database("prepare the checkpoint"))?;
        Ok(Self { client, statements: HashMap::new() })
    }

    async fn prepare(&mut self, statements: &[Statement]) -> Result<(), Error> {
        if self.statements.len() > STATEMENTS {
            self.statements.clear();
        }
        let mut missing: Vec<&Statement> = Vec::new();
        for statement in statements {
            if !self.statements.contains_key(&statement.sql)
                && !missing.iter().any(|other| other.sql == statement.sql)
            {
                missing.push(statement);
            }
        }
        let types: Vec<Vec<Type>> = missing
            .iter()
            .map(|statement| match &statement.data {
                Data::Arrays(arrays) => arrays.iter().map(Array::array_type).collect(),
                Data::None | Data::Copy(_) => Vec::new(),
            })
            .collect();
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

    /// The whole transaction at once: one wait, and one more for each COPY.
    pub(super) async fn commit(
        &mut self,
        step: &Checkpoint,
        statements: &[Statement],
    ) -> Result<(), Failure> {
        self.prepare(statements).await?;
        let this = &*self;
        // The checkpoint before the settings: its plan is kept.
        let mut begin = format!("BEGIN; {}; {BY_KEY}", step.sql(step.flush));
        if statements.iter().any(|statement| statement.scans || statement.rows >= FEW) {
            begin = format!("{begin}; {ANEW}");
        }
        let mut pipeline = Pipeline::default();
        pipeline.push(Step::Checkpoint, this.client.batch_execute(&begin)).await;
        this.send(statements, &mut pipeline).await?;
        pipeline.push(Step::Commit, this.client.batch_execute("COMMIT")).await;
        verdict(pipeline.finish().await, Some(step), statements, Order::Net)
    }

    /// The same for many changes: planned part by part, each while the one before it is being written.
    pub(super) async fn commit_large(
        &mut self,
        step: &Checkpoint,
        items: &[Item<'_>],
        tables: &Tables,
    ) -> Result<(), Failure> {
        self.begin().await?;
        let mut parts = items.chunks(PART).map(|part| plan::plan(part, Order::Net, tables));
        let mut current = parts.next().transpose()?;
        while let Some(statements) = current {
            self.prepare(&statements).await?;
            let mut pipeline = Pipeline::default();
            self.send(&statements, &mut pipeline).await?;
            current = parts.next().transpose()?;
            if let Err(failure) = verdict(pipeline.finish().await, None, &statements, Order::Net) {
                self.client.batch_execute("ROLLBACK").await.map_err(Error::database("go back"))?;
                return Err(failure);
            }
        }
        Ok(self.end(step).await?)
    }

    /// The transaction again, in parts: as little as possible change by change.
    pub(super) async fn commit_in_parts(
        &mut self,
        step: &Checkpoint,
        items: &[Item<'_>],
        tables: &Tables,
    ) -> Result<(), Error> {
        self.begin().await?;
        self.in_parts(items, tables).await?;
        self.end(step).await
    }

    pub(super) async fn begin(&self) -> Result<(), Error> {
        let begin = format!("BEGIN; {BY_KEY}; {ANEW}");
        self.client.batch_execute(&begin).await.map_err(Error::database("begin a group"))
    }

    /// Moves the checkpoint and commits what is open.
    pub(super) async fn end(&self, step: &Checkpoint) -> Result<(), Error> {
        let checkpoint = step.sql(true);
        let mut pipeline = Pipeline::default();
        pipeline.push(Step::Checkpoint, self.client.batch_execute(&checkpoint)).await;
        pipeline.push(Step::Commit, self.client.batch_execute("COMMIT")).await;
        match verdict(pipeline.finish().await, Some(step), &[], Order::Rows) {
            Ok(()) => Ok(()),
            Err(Failure::Error(error)) => Err(error),
            Err(Failure::Batch) => Err(Error::Conflict {
                table: "the commit".into(),
                lsn: step.to,
                what: "a deferred constraint refuses the transaction".into(),
            }),
        }
    }

    /// Runs a plan inside the open transaction, behind a savepoint: after [`Failure::Batch`] the transaction stands where
    /// it stood.
    pub(super) async fn attempt(&mut self, statements: &[Statement]) -> Result<(), Failure> {
        self.prepare(statements).await?;
        let this = &*self;
        let mut pipeline = Pipeline::default();
        pipeline.push(Step::Begin, this.client.batch_execute("SAVEPOINT godwit")).await;
        this.send(statements, &mut pipeline).await?;
        pipeline.push(Step::Commit, this.client.batch_execute("RELEASE SAVEPOINT godwit")).await;
        let result = verdict(pipeline.finish().await, None, statements, Order::Net);
        if matches!(result, Err(Failure::Batch)) {
            this.client
                .batch_execute("ROLLBACK TO SAVEPOINT godwit; RELEASE SAVEPOINT godwit")
                .await
                .map_err(Error::database("go back to a savepoint"))?;
        }
        result
    }

    /// Applies changes inside the open transaction after they failed as a batch: halves, halves of the half that fails,
    /// and the last few one after the other, where a failure is a conflict and names its row.
    pub(super) async fn in_parts(&mut self, items: &[Item<'_>], tables: &Tables) -> Result<(), Error> {
        let mut waiting: Vec<Range<usize>> = halves(0..items.len()).into();
        while let Some(range) = waiting.pop() {
            let part = &items[range.clone()];
            if part.len() < ROW_BY_ROW {
                self.row_by_row(part, tables).await?;
                continue;
            }
            match self.attempt(&plan::plan(part, Order::Net, tables)?).await {
                Ok(()) => {}
                Err(Failure::Error(error)) => return Err(error),
                Err(Failure::Batch) => waiting.extend(halves(range)),
            }
        }
        Ok(())
    }

    async fn row_by_row(&mut self, items: &[Item<'_>], tables: &Tables) -> Result<(), Error> {
        let statements = plan::plan(items, Order::Rows, tables)?;
        self.prepare(&statements).await?;
        let mut pipeline = Pipeline::default();
        self.send(&statements, &mut pipeline).await?;
        match verdict(pipeline.finish().await, None, &statements, Order::Rows) {
            Ok(()) => Ok(()),
            Err(Failure::Error(error)) => Err(error),
            Err(Failure::Batch) => Err(Error::Protocol("a failure of nothing".into())),
        }
    }

    async fn send<'a>(
        &'a self,
        statements: &'a [Statement],
        pipeline: &mut Pipeline<'a>,
    ) -> Result<(), Error> {
        let client = &self.client;
        for (at, statement) in statements.iter().enumerate() {
            let prepared = self
                .statements
                .get(&statement.sql)
                .ok_or_else(|| Error::Protocol("a statement was not prepared".into()))?;
            let step = Step::Statement(at);
            if statement.scans {
                pipeline.push(step, client.batch_execute("SET LOCAL enable_hashjoin = on")).await;
            }
            match &statement.data {
                Data::None => pipeline.push(step, execute(client, prepared, &[])).await,
                Data::Arrays(arrays) => pipeline.push(step, execute(client, prepared, arrays)).await,
                // Nothing else may be on its way while rows are; and a COPY that the server refuses to begin, as it does
                // after a failure, would cost the connection.
                Data::Copy(rows) => {
                    if pipeline.settle().await {
                        return Ok(());
                    }
                    let copied = copy(client, prepared, rows).await;
                    pipeline.note(step, copied).await;
                }
            }
            if statement.scans {
                pipeline.push(step, client.batch_execute("SET LOCAL enable_hashjoin = off")).await;
            }
        }
        Ok(())
    }
}

async fn execute(
    client: &Client,
    prepared: &tokio_postgres::Statement,
    arrays: &[Array],
) -> Result<(), tokio_postgres::Error> {
    let parameters: Vec<&(dyn ToSql + Sync)> =
        arrays.iter().map(|array| array as &(dyn ToSql + Sync)).collect();
    client.execute(prepared, &parameters).await.map(drop)
}

async fn copy(
    client: &Client,
    prepared: &tokio_postgres::Statement,
    rows: &[Bytes],
) -> Result<(), tokio_postgres::Error> {
    let mut sink = Box::pin(client.copy_in::<_, Bytes>(prepared).await?);
    // A failure inside comes out of `finish`.
    let mut chunks = futures_util::stream::iter(rows.iter().cloned().map(Ok));
    while let Some(chunk) = chunks.next().await {
        let chunk: Result<Bytes, tokio_postgres::Error> = chunk;
        if sink.feed(chunk?).await.is_err() {
            break;
        }
    }
    sink.as_mut().finish().await.map(drop)
}

/// The first error in order is the cause; what follows it failed because of it.
fn verdict(
    failed: Option<(Step, tokio_postgres::Error)>,
    step: Option<&Checkpoint>,
    statements: &[Statement],
    order: Order,
) -> Result<(), Failure> {
    let Some((at, error)) = failed else { return Ok(()) };
    let code = error.code().map(|code| code.code().to_owned()).unwrap_or_default();
    let found = rows_found(&error);
    match (at, step) {
        (Step::Checkpoint, Some(step)) if code == CHECKPOINT_MOVED => Err(Error::Fenced(format!(
            "the checkpoint of {} is not at {} under generation {}: another writer took over",
            step.stream, step.from, step.generation
        ))
        .into()),
        (Step::Begin | Step::Checkpoint, _) => Err(Error::database("begin a group")(error).into()),
        (Step::Commit, _) if code.starts_with("23") => Err(Failure::Batch),
        (Step::Commit, _) => Err(Error::database("commit a group")(error).into()),
        (Step::Statement(_), _) if order == Order::Net && (found.is_some() || code.starts_with("23")) => {
            Err(Failure::Batch)
        }
        (Step::Statement(at), _) => Err(conflict(&statements[at], &code, found, error).into()),
    }
}

fn conflict(statement: &Statement, code: &str, found: Option<String>, error: tokio_postgres::Error) -> Error {
    let key = &statement.key;
    let what = match (found, error.as_db_error()) {
        (Some(found), _) if found.starts_with("0 ") => format!("{key} is not there"),
        (Some(found), _) => format!("{key}: found {found}"),
        (None, Some(error)) if code.starts_with("23") => {
            format!("{key} {}: {}", error.message(), error.detail().unwrap_or_default())
        }
        _ => {
            let others = match statement.rows {
                0 | 1 => String::new(),
                rows => format!(" and {} more rows", rows - 1),
            };
            let what = format!("apply to {} at {}: {key}{others}", statement.table, statement.lsn);
            return Error::database(what)(error);
        }
    };
    Error::Conflict { table: statement.table.clone(), lsn: statement.lsn, what }
}

/// `1 of 2 rows`, when the error says that another number of rows was found than was given.
fn rows_found(error: &tokio_postgres::Error) -> Option<String> {
    let error = error.as_db_error().filter(|error| error.code().code() == sql::COUNT_FAILED)?;
    let (_, rest) = error.message().split_once(sql::ROWS_FOUND)?;
    Some(rest.trim_end_matches(|letter: char| !letter.is_alphanumeric()).to_owned())
}

/// Both halves; the first comes last, to be taken first from a stack.
pub(super) fn halves(range: Range<usize>) -> [Range<usize>; 2] {
    let middle = range.start + range.len() / 2;
    [middle..range.end, range.start..middle]
}

pub(super) fn has_code(error: &tokio_postgres::Error, codes: &[&str]) -> bool {
    error.code().is_some_and(|code| codes.contains(&code.code()))
}

type Reply<'a> = Pin<Box<dyn Future<Output = Result<(), tokio_postgres::Error>> + Send + 'a>>;

/// Requests that are sent in order, each at its first poll, and awaited afterwards.
#[derive(Default)]
struct Pipeline<'a> {
    replies: Vec<(Step, Reply<'a>)>,
    failed: Option<(Step, tokio_postgres::Error)>,
}

impl<'a> Pipeline<'a> {
    async fn push(
        &mut self,
        step: Step,
        request: impl Future<Output = Result<(), tokio_postgres::Error>> + Send + 'a,
    ) {
        let mut reply: Reply<'a> = Box::pin(request);
        match poll_fn(|context| Poll::Ready(reply.as_mut().poll(context))).await {
            Poll::Pending => self.replies.push((step, reply)),
            Poll::Ready(result) => self.note(step, result).await,
        }
    }

    /// An answer that is there; those before it are awaited first, so that the first error is the first in order.
    async fn note(&mut self, step: Step, result: Result<(), tokio_postgres::Error>) {
        self.settle().await;
        self.keep(step, result);
    }

    /// Waits for what is on its way; true when something failed.
    async fn settle(&mut self) -> bool {
        for (step, reply) in std::mem::take(&mut self.replies) {
            let result = reply.await;
            self.keep(step, result);
        }
        self.failed.is_some()
    }

    fn keep(&mut self, step: Step, result: Result<(), tokio_postgres::Error>) {
        if let Err(error) = result
            && self.failed.is_none()
        {
            self.failed = Some((step, error));
        }
    }

    async fn finish(mut self) -> Option<(Step, tokio_postgres::Error)> {
        self.settle().await;
        self.failed
    }
}
