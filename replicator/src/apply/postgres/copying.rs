//! The initial copy on its way in: several sessions write parts at the same time.
//!
//! The schema is committed first, together with a note in `godwit.copying` that a copy is under way; then the parts, small ones
//! together in a transaction, each with its record in `godwit.copied_parts`; then what comes after the rows ([`super::finishing`]);
//! then the checkpoint and the note's end in one transaction. A copy that finds the note of one that broke keeps what
//! [`KeptTable::stays`] and empties every other table.
//!
//! A session of the broken copy that still lives cannot slip rows in behind that: each transaction shares the note as it was
//! for its own attempt, and the next attempt changes the note before it looks at what is there.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_postgres::types::PgLsn;
use tokio_util::task::AbortOnDropHandle;

use super::finishing::{Work, analyze, taken_over};
use super::{PostgresTarget, not_open, window};
use crate::copy::{COPIES_INTO_EMPTY, Writer};
use crate::error::Error;
use crate::lsn::Lsn;
use crate::postgres::{quote_ident, quote_literal};
use crate::wire::{CopyStart, CopyTable, KeptTable};
use crate::{clock, copy, schema};

/// Pieces, beginnings and ends that wait for one session.
const WAITING: usize = 16;

/// Parts, bytes and time of one transaction: what a break costs.
const TOGETHER: usize = 64;
const TOGETHER_BYTES: u64 = 16 << 20;
const LINGER: Duration = Duration::from_secs(1);

const RECORD: &str =
    "INSERT INTO godwit.copied_parts (stream, schema_name, table_name, part, parts, position, rows, bytes)";

/// What the target has of each table, and the position of the snapshot it is of.
const KEPT: &str = "SELECT schema_name, table_name, max(position), count(*) = min(parts), array_agg(part), \
       sum(rows)::bigint, sum(bytes)::bigint \
     FROM godwit.copied_parts WHERE stream = $1 GROUP BY 1, 2 ORDER BY 1, 2";

/// A copy that is under way.
#[derive(Default)]
pub(super) struct Copying {
    pub(super) start: CopyStart,
    pub(super) attempt: i64,
    open: HashMap<u32, Loader>,
    /// Who has waited longest comes first.
    idle: VecDeque<Loader>,
}

impl Copying {
    pub(super) fn new(start: CopyStart) -> Self {
        Self { start, ..Self::default() }
    }
}

/// A session that writes parts, one after the other.
struct Loader {
    orders: mpsc::Sender<Order>,
    task: AbortOnDropHandle<Result<(), Error>>,
}

enum Order {
    Begin(Box<Part>),
    Rows(Bytes),
    End { rows: u64 },
}

/// A part to be written.
struct Part {
    context: String,
    sql: String,
    number: u32,
    table: CopyTable,
    position: Lsn,
}

impl Part {
    /// The values of its line in `godwit.copied_parts`.
    fn record(&self, stream: &str, rows: u64, bytes: u64) -> String {
        let CopyTable { schema, name, of, .. } = &self.table;
        let names = [stream, schema, name].map(quote_literal).join(", ");
        format!("({names}, {}, {of}, '{}', {rows}, {bytes})", self.number, self.position)
    }
}

impl Loader {
    fn start(work: Work) -> Self {
        let (orders, queue) = mpsc::channel(WAITING);
        let task = async move {
            let mut writer = work.writer().await?;
            write(&mut writer, queue, &work).await.map_err(taken_over)
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

/// Writes parts until no more come; several small ones in a transaction.
async fn write(writer: &mut Writer, mut queue: mpsc::Receiver<Order>, work: &Work) -> Result<(), Error> {
    let (first, mut records, mut bytes, mut deadline) = (work.takes_part(), Vec::new(), 0, clock::now());
    loop {
        let order = if records.is_empty() {
            queue.recv().await
        } else {
            tokio::time::timeout_at(deadline.into(), queue.recv()).await.unwrap_or(None)
        };
        if let Some(order) = order {
            let Order::Begin(part) = order else {
                return Err(Error::Protocol("rows of no part".into()));
            };
            if records.is_empty() {
                deadline = clock::now() + LINGER;
            }
            writer.begin(&first, &part.sql, &part.context)?;
            let (rows, of_part) = write_part(writer, &mut queue).await?;
            records.push(part.record(&work.stream, rows, of_part));
            bytes += of_part;
            if records.len() < TOGETHER && bytes < TOGETHER_BYTES && clock::now() < deadline {
                continue;
            }
        }
        if records.is_empty() {
            return Ok(());
        }
        writer.commit(&format!("{RECORD} VALUES {}", records.join(", "))).await?;
        records.clear();
        bytes = 0;
    }
}

/// Writes the rows of the part that has begun, and says how many rows and bytes they were.
async fn write_part(writer: &mut Writer, queue: &mut mpsc::Receiver<Order>) -> Result<(u64, u64), Error> {
    let mut bytes = 0u64;
    loop {
        match queue.recv().await {
            Some(Order::Rows(data)) => {
                bytes += data.len() as u64;
                writer.rows(&data).await?;
            }
            Some(Order::End { rows }) => {
                writer.end(rows);
                return Ok((rows, bytes));
            }
            Some(Order::Begin(_)) | None => return Err(Error::Link("the session ended".into())),
        }
    }
}

impl PostgresTarget {
    fn loader_name(&self) -> String {
        format!("godwit load {}", self.spec.slot).chars().take(63).collect()
    }

    pub(super) fn copying(&mut self) -> Result<&mut Copying, Error> {
        self.copying.as_mut().ok_or_else(not_open)
    }

    pub(super) fn work(&self, attempt: i64) -> Work {
        Work {
            dsn: self.dsn.clone(),
            application: self.loader_name(),
            stream: self.spec.slot.clone(),
            attempt,
        }
    }

    /// What is there of a copy that broke. Its sessions write nothing any more when this returns.
    pub(super) async fn take_kept(&mut self) -> Result<Vec<KeptTable>, Error> {
        let client = &self.session.as_ref().ok_or_else(not_open)?.client;
        let failed = || Error::database("look for a copy that broke");
        client
            .execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1 \
                 AND datname = current_database() AND usename = current_user",
                &[&self.loader_name()],
            )
            .await
            .map_err(failed())?;
        // Waits for those that commit just now, and stops those that would later.
        let next = "UPDATE godwit.copying SET attempt = attempt + 1 WHERE stream = $1 RETURNING attempt";
        let row = client.query_opt(next, &[&self.spec.slot]).await.map_err(failed())?;
        self.attempt = row.map(|row| row.get(0));
        if self.attempt.is_none() {
            return Ok(Vec::new());
        }
        self.kept_tables().await
    }

    async fn kept_tables(&self) -> Result<Vec<KeptTable>, Error> {
        let client = &self.session.as_ref().ok_or_else(not_open)?.client;
        let rows = client
            .query(KEPT, &[&self.spec.slot])
            .await
            .map_err(Error::database("look for a copy that broke"))?;
        let number = |number: &i64| u32::try_from(*number).ok();
        Ok(rows
            .iter()
            .map(|row| KeptTable {
                schema: row.get(0),
                name: row.get(1),
                position: Lsn(row.get::<_, PgLsn>(2).into()),
                parts: (!row.get::<_, bool>(3))
                    .then(|| row.get::<_, Vec<i64>>(4).iter().filter_map(number).collect()),
                rows: row.get::<_, i64>(5).unsigned_abs(),
                bytes: row.get::<_, i64>(6).unsigned_abs(),
            })
            .collect())
    }

    /// What exists before the rows: loaded, or there already from a copy that broke.
    pub(super) async fn load_before(&mut self, sql: &str) -> Result<(), Error> {
        let start = self.copying()?.start;
        let attempt = match self.attempt {
            Some(attempt) => {
                let stays: HashSet<(String, String)> = self
                    .kept_tables()
                    .await?
                    .into_iter()
                    .filter(|table| table.stays(start.consistent_point, start.snapshot))
                    .map(|table| (table.schema, table.name))
                    .collect();
                self.go_on(sql, attempt, &stays).await?;
                attempt
            }
            None => {
                self.begin(sql).await?;
                1
            }
        };
        self.copying()?.attempt = attempt;
        Ok(())
    }

    async fn begin(&self, sql: &str) -> Result<(), Error> {
        let client = &self.session.as_ref().ok_or_else(not_open)?.client;
        let failed = || Error::database("begin the copy");
        client.batch_execute("BEGIN").await.map_err(failed())?;
        let there = copy::tables(client).await?;
        if let Some(table) = there.first() {
            return Err(Error::Unready(format!(
                "the target already holds {} tables ({}.{} …): {COPIES_INTO_EMPTY} (godwit reseed empties a shadow)",
                there.len(),
                table.schema,
                table.name
            )));
        }
        schema::load(client, sql).await?;
        // With its grants the application could write here from now on, whatever becomes of the copy.
        client
            .execute("SELECT godwit.put_fence($1, $2, 5000)", &[&self.spec.resource, &self.generation])
            .await
            .map_err(failed())?;
        client
            .execute(
                "INSERT INTO godwit.copying (stream, attempt, pre_data) VALUES ($1, 1, $2)",
                &[&self.spec.slot, &sql],
            )
            .await
            .map_err(failed())?;
        client.batch_execute("COMMIT").await.map_err(failed())
    }

    /// Empties every table but those that stay.
    async fn go_on(&self, sql: &str, attempt: i64, stays: &HashSet<(String, String)>) -> Result<(), Error> {
        let client = &self.session.as_ref().ok_or_else(not_open)?.client;
        let failed = || Error::database("go on with a copy that broke");
        client.batch_execute("BEGIN").await.map_err(failed())?;
        let note = "SELECT pre_data = $3 FROM godwit.copying WHERE stream = $1 AND attempt = $2 FOR UPDATE";
        let row = client.query_opt(note, &[&self.spec.slot, &attempt, &sql]).await.map_err(failed())?;
        let Some(row) = row else { return Err(Error::Link("a newer copy has begun".into())) };
        if !row.get::<_, bool>(0) {
            return Err(Error::Unready(
                "a copy broke off and the source's schema changed since: give the target an empty database"
                    .into(),
            ));
        }
        let leave: Vec<(String, String)> = copy::tables(client)
            .await?
            .into_iter()
            .map(|table| (table.schema, table.name))
            .filter(|table| !stays.contains(table))
            .collect();
        if !leave.is_empty() {
            let names: Vec<String> = leave.iter().map(|(schema, table)| name(schema, table)).collect();
            let empty = format!("TRUNCATE ONLY {}", names.join(", ONLY "));
            client.batch_execute(&empty).await.map_err(failed())?;
            let (schemas, tables): (Vec<String>, Vec<String>) = leave.into_iter().unzip();
            client
                .execute(
                    "DELETE FROM godwit.copied_parts p USING unnest($2::text[], $3::text[]) AS t(s, n) \
                     WHERE p.stream = $1 AND p.schema_name = t.s AND p.table_name = t.n",
                    &[&self.spec.slot, &schemas, &tables],
                )
                .await
                .map_err(failed())?;
        }
        client.batch_execute("COMMIT").await.map_err(failed())
    }

    pub(super) async fn open_part(&mut self, part: u32, table: &CopyTable) -> Result<(), Error> {
        let copying = self.copying()?;
        let order = Order::Begin(Box::new(Part {
            context: format!("copy into {}", name(&table.schema, &table.name)),
            sql: copy::copy_in_sql(&table.schema, &table.name, &table.columns, table.binary),
            number: part,
            table: table.clone(),
            position: copying.start.snapshot,
        }));
        if copying.open.len() >= copy::MOST_SESSIONS as usize || copying.open.contains_key(&part) {
            return Err(Error::Protocol(format!("part {part} begins out of order")));
        }
        let (idle, attempt) = (copying.idle.pop_front(), copying.attempt);
        let loader = idle.unwrap_or_else(|| Loader::start(self.work(attempt))).order(order).await?;
        self.copying()?.open.insert(part, loader);
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
        self.copying()?.idle.push_back(loader);
        Ok(())
    }

    /// Waits until every row is committed; every table must be whole then. Gives the newest position of a table.
    pub(super) async fn end_rows(&mut self) -> Result<Lsn, Error> {
        let copying = self.copying()?;
        if !copying.open.is_empty() {
            return Err(Error::Protocol("a copy ends within a part".into()));
        }
        let wanted = copying.start.tables as usize;
        for loader in std::mem::take(&mut copying.idle) {
            loader.finish().await?;
        }
        let kept = self.kept_tables().await?;
        if kept.len() != wanted || kept.iter().any(|table| table.parts.is_some()) {
            return Err(Error::Protocol(format!("{} tables are there of {wanted}", kept.len())));
        }
        Ok(kept.iter().map(|table| table.position).max().unwrap_or_default())
    }

    /// The checkpoint, and the end of the note, in one step. Tables of a later snapshot than the slot's keep their record.
    pub(super) async fn commit_copy(&mut self, consistent_point: Lsn) -> Result<Lsn, Error> {
        let attempt = self.copying.take().ok_or_else(not_open)?.attempt;
        let client = &self.session.as_ref().ok_or_else(not_open)?.client;
        let failed = || Error::database("end the copy");
        let slot = &self.spec.slot;
        client.batch_execute("BEGIN").await.map_err(failed())?;
        client.execute("DELETE FROM godwit.copying WHERE stream = $1", &[slot]).await.map_err(failed())?;
        client
            .execute(
                "DELETE FROM godwit.copied_parts WHERE stream = $1 AND position <= $2",
                &[slot, &PgLsn::from(consistent_point.0)],
            )
            .await
            .map_err(failed())?;
        client
            .execute("DELETE FROM godwit.copied_statements WHERE stream = $1 AND done", &[slot])
            .await
            .map_err(failed())?;
        client
            .execute(
                "INSERT INTO godwit.progress (stream, applied_lsn, copied, generation) VALUES ($1, $2, true, $3) \
                 ON CONFLICT (stream) DO UPDATE SET applied_lsn = EXCLUDED.applied_lsn, copied = true, \
                   generation = EXCLUDED.generation, updated_at = now()",
                &[slot, &PgLsn::from(consistent_point.0), &self.generation],
            )
            .await
            .map_err(Error::database("set the checkpoint"))?;
        client.batch_execute("COMMIT").await.map_err(Error::database("commit the copy"))?;
        self.expected = consistent_point;
        self.analyzing = Some(AbortOnDropHandle::new(tokio::spawn(analyze(self.work(attempt)))));
        self.window = window::read(client, slot).await?;
        Ok(self.window.settled())
    }
}

fn name(schema: &str, table: &str) -> String {
    format!("{}.{}", quote_ident(schema), quote_ident(table))
}
