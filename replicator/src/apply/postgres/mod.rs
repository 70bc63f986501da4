//! A PostgreSQL target: rows and checkpoint in one transaction, about one round trip for a group.
//!
//! `BEGIN`, the checkpoint, the rows and `COMMIT` are sent without waiting for each other. A statement that fails makes
//! the server answer the COMMIT with a rollback; so nothing half done can commit. The session holds the replication
//! origin: a second session of the same stream waits for it, so nobody reads a checkpoint that an older session is
//! about to move.
//!
//! It never skips a change of a table that the source has ([`crate::drift::gone`]): what cannot be applied is an [`Error::Conflict`].

mod catalog;
mod copying;
mod encode;
mod finishing;
mod large;
mod met;
mod plan;
mod session;
mod sql;
mod window;

use std::ops::Range;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio_postgres::Client;
use tokio_postgres::types::PgLsn;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use self::catalog::Tables;
use self::copying::Copying;
use self::large::Large;
use self::met::Met;
use self::plan::{Item, Order};
use self::session::{Checkpoint, Failure, PART, Session, halves, has_code};
use super::Target;
use super::window::Window;
use crate::change::{Change, LargeHeader, Transaction};
use crate::drift::fill;
use crate::error::{Cause, Error, ErrorKind, chain};
use crate::fence::not_installed;
use crate::identity::SourceId;
use crate::lsn::Lsn;
use crate::postgres::connection::settings_sql;
use crate::postgres::{Dsn, connect_to_write_watched};
use crate::wire::{CopyStart, CopyTable, KeptTable, Resume, StreamSpec};

/// What the sessions that apply a stream are called by; its slot follows.
pub(crate) const APPLICATION: &str = "godwit apply ";
/// How long to wait for an older session of this stream to let go of the origin.
const TAKE_OVER: Duration = Duration::from_secs(20);

/// After so long the older session is told to end.
const PATIENCE: Duration = Duration::from_millis(500);

/// Puts a stream's checkpoint in place where nothing is copied: the reverse stream of a cutover.
///
/// Idempotent: a checkpoint that is further already stays, and so does one that waits for a copy; one of before, such as of a lane that was
/// closed, is moved on. So only where nothing that the target lacks lies before `lsn`. `source` is the cluster that `lsn` is a position of, where
/// that is known.
pub async fn seed_progress(
    client: &Client,
    stream: &str,
    lsn: Lsn,
    generation: u64,
    source: Option<SourceId>,
) -> Result<(), Error> {
    let generation = signed(generation)?;
    let (system, timeline) = source.map(SourceId::stored).unzip();
    client
        .execute(
            "INSERT INTO godwit.progress AS p \
               (stream, applied_lsn, copied, generation, source_system, source_timeline) VALUES ($1, $2, true, $3, $4, $5) \
             ON CONFLICT (stream) DO UPDATE SET applied_lsn = EXCLUDED.applied_lsn, \
               generation = EXCLUDED.generation, marker_generation = NULL, updated_at = now(), \
               source_system = EXCLUDED.source_system, source_timeline = EXCLUDED.source_timeline \
             WHERE p.copied AND p.applied_lsn < EXCLUDED.applied_lsn AND p.generation <= EXCLUDED.generation",
            &[&stream, &PgLsn::from(lsn.0), &generation, &system, &timeline],
        )
        .await
        .map_err(Error::database(format!("seed the checkpoint of {stream}")))?;
    Ok(())
}

fn signed(generation: u64) -> Result<i64, Error> {
    i64::try_from(generation).map_err(|_| Error::Protocol(format!("generation {generation} is out of range")))
}

/// One stream's target.
pub struct PostgresTarget {
    dsn: Dsn,
    spec: StreamSpec,
    generation: i64,
    expected: Lsn,
    session: Option<Session>,
    ended: CancellationToken,
    tables: Tables,
    /// Has the session while a large transaction is open.
    large: Option<Large>,
    copying: Option<Copying>,
    /// The number of the copy to go on with, where one broke.
    attempt: Option<i64>,
    window: Window,
    /// ANALYZE of what was copied.
    analyzing: Option<AbortOnDropHandle<()>>,
    /// What the checkpoint says, and what the sender says.
    known: Option<SourceId>,
    source: Option<SourceId>,
}

impl PostgresTarget {
    /// Not connected yet: [`Target::resume`] connects.
    pub fn new(dsn: Dsn, spec: StreamSpec) -> Result<Self, Error> {
        let generation = signed(spec.generation)?;
        Ok(Self {
            dsn,
            spec,
            generation,
            expected: Lsn::ZERO,
            session: None,
            ended: CancellationToken::new(),
            tables: Tables::default(),
            large: None,
            copying: None,
            attempt: None,
            window: Window::default(),
            analyzing: None,
            known: None,
            source: None,
        })
    }

    fn application(&self) -> String {
        format!("{APPLICATION}{}", self.spec.slot).chars().take(63).collect()
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

    /// Writes down where the checkpoint is a position, in the transaction that is open, if one is. Never over another one.
    async fn remember(&self, id: SourceId, copied: bool) -> Result<(), Error> {
        let client = &self.session.as_ref().ok_or_else(not_open)?.client;
        let (system, timeline) = id.stored();
        let sql = if copied {
            "UPDATE godwit.progress SET source_system = $2, source_timeline = $3 \
             WHERE stream = $1 AND generation = $4 AND source_system IS NULL"
        } else {
            "INSERT INTO godwit.progress (stream, source_system, source_timeline, generation, applied_lsn, copied) \
             VALUES ($1, $2, $3, $4, '0/0', false) ON CONFLICT (stream) DO UPDATE SET \
               source_system = EXCLUDED.source_system, source_timeline = EXCLUDED.source_timeline"
        };
        client
            .execute(sql, &[&self.spec.slot, &system, &timeline, &self.generation])
            .await
            .map_err(Error::database("remember the source"))?;
        Ok(())
    }

    /// Writes down which tables these are whose changes do not go in, where that does not pass: what is gone at the source need
    /// not ([`crate::drift::gone`]).
    async fn stand_at(&self, why: &Error, tables: &Met) {
        // A value that does not fit the column's type here is seen before it is sent.
        if !splits(why) && why.cause() != Cause::Protocol {
            return;
        }
        let (mut numbers, mut names, mut described) = (Vec::new(), Vec::new(), Vec::new());
        for (number, table) in tables.described() {
            numbers.push(number);
            names.push(format!("{}.{}", table.schema, table.name));
            described.push(serde_json::to_string(&table).unwrap_or_else(|_| "null".into()));
        }
        let note = "INSERT INTO godwit.stands_at (stream, source_table, name, described) \
            SELECT $1, number, name, described::jsonb FROM unnest($2::oid[], $3::text[], $4::text[]) t (number, name, described) \
            ON CONFLICT (stream, source_table) DO UPDATE SET described = EXCLUDED.described";
        let noted = async {
            // The session's transaction is not to be committed.
            let (client, _) = open(&self.dsn, &self.application()).await?;
            let noted = client.execute(note, &[&self.spec.slot, &numbers, &names, &described]).await;
            noted.map_err(Error::database("note what the stream stands at"))
        };
        if let Err(error) = noted.await {
            tracing::debug!(
                stream = self.spec.slot,
                error = chain(&error),
                "what the stream stands at is not noted"
            );
        }
    }

    async fn apply_to_large(&mut self, changes: Vec<Change>) -> Result<(), Error> {
        let large = self.large.as_mut().ok_or_else(not_open)?;
        let commit = large.commit_lsn();
        if self.tables.missing(of_one(&changes, commit), &self.window).is_some() {
            let session = large.session().await?;
            let all = of_one(&changes, commit);
            self.tables.look_up(&session.client, &self.spec.slot, &mut self.window, all).await?;
            large.go_on(session);
        }
        let changes = if self.window.is_open() { self.window.filter(&changes, commit) } else { changes };
        large.part(changes, &self.tables).await
    }

    fn step(&self, to: Lsn, marker: Option<i64>, flush: bool) -> Checkpoint {
        Checkpoint {
            flush,
            to,
            from: self.expected,
            marker,
            stream: self.spec.slot.clone(),
            generation: self.generation,
        }
    }

    async fn apply_group(&mut self, group: &[Transaction], flush: bool) -> Result<(), Error> {
        let Some(last) = group.last() else { return Ok(()) };
        let marker = group.iter().filter_map(Transaction::marker).next_back();
        let step = self.step(last.end_lsn, marker.map(signed).transpose()?, flush);
        let session = self.session.as_mut().ok_or_else(not_open)?;
        self.tables.look_up(&session.client, &self.spec.slot, &mut self.window, changes(group)).await?;
        let group = self.window.filter_all(group);
        let items: Vec<Item<'_>> = group
            .iter()
            .flat_map(|transaction| transaction.changes.iter().map(|change| (transaction.end_lsn, change)))
            .collect();
        let done = if items.len() > PART {
            session.commit_large(&step, &items, &self.tables).await
        } else {
            session.commit(&step, &plan::plan(&items, Order::Net, &self.tables)?).await
        };
        match done {
            Ok(()) => {}
            Err(Failure::Error(error)) => return Err(error),
            Err(Failure::Batch) => session.commit_in_parts(&step, &items, &self.tables).await?,
        }
        self.expected = step.to;
        Ok(())
    }

    /// After a group failed for something that a person must mend: halves of it, and halves of the half that fails. What stands
    /// before the transaction that cannot be applied is there then.
    async fn apply_in_parts(&mut self, group: &[Transaction], flush: bool) -> Result<(), Error> {
        let mut waiting: Vec<Range<usize>> = halves(0..group.len()).into();
        while let Some(range) = waiting.pop() {
            let client = &self.session.as_ref().ok_or_else(not_open)?.client;
            client.batch_execute("ROLLBACK").await.map_err(Error::database("go back"))?;
            match self.apply_group(&group[range.clone()], flush).await {
                Ok(()) => {}
                Err(error) if splits(&error) && range.len() > 1 => waiting.extend(halves(range)),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Settings of a session that writes what the source has, as it is.
const AS_IT_IS: [(&str, &str); 5] = [
    ("session_replication_role", "replica"),
    ("synchronous_commit", "local"),
    ("transaction_timeout", "0"),
    ("row_security", "off"),
    ("jit", "off"),
];

/// A session that writes what the source has, as it is; and what is cancelled once it has ended.
async fn open(dsn: &Dsn, application: &str) -> Result<(Client, CancellationToken), Error> {
    let (client, ended) = connect_to_write_watched(dsn, application).await?;
    client
        .batch_execute(&settings_sql(&AS_IT_IS, false))
        .await
        .map_err(Error::database("prepare the apply session"))?;
    Ok((client, ended))
}

/// These changes, of a transaction that committed there.
fn of_one(changes: &[Change], commit: Lsn) -> impl Iterator<Item = (Lsn, &Change)> + Clone {
    changes.iter().map(move |change| (commit, change))
}

/// The changes of these transactions, each with where it committed.
fn changes(group: &[Transaction]) -> impl Iterator<Item = (Lsn, &Change)> + Clone {
    group.iter().flat_map(|transaction| of_one(&transaction.changes, transaction.commit_lsn))
}

/// Whether a part of a group may go in where all of it does not.
fn splits(error: &Error) -> bool {
    error.kind() == ErrorKind::Operator
}

fn not_open() -> Error {
    Error::Protocol("the target is not open".into())
}

#[async_trait]
impl Target for PostgresTarget {
    async fn resume(&mut self) -> Result<Resume, Error> {
        self.session = None;
        self.large = None;
        self.copying = None;
        self.attempt = None;
        self.window = Window::default();
        (self.known, self.source) = (None, None);
        self.tables = Tables::default();
        let (client, ended) = open(&self.dsn, &self.application()).await?;
        self.ended = ended;
        fill::begun(&client).await?;
        self.take_origin(&client).await?;
        // Written again, so that what an older session did not flush is durable with it.
        let row = client
            .query_opt(
                "UPDATE godwit.progress SET applied_lsn = applied_lsn WHERE stream = $1 \
                 RETURNING applied_lsn, copied, generation, marker_generation, source_system, source_timeline",
                &[&self.spec.slot],
            )
            .await
            .map_err(|error| {
                let hint = if not_installed(&error) { " (is schema godwit installed?)" } else { "" };
                Error::database(format!("read the checkpoint{hint}"))(error)
            })?;
        let mut resume = match row {
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
                    source: SourceId::from_stored(row.get(4), row.get(5)),
                    ..Resume::default()
                }
            }
        };
        self.expected = resume.applied;
        // A copy that did not end may come from anywhere: it begins again.
        self.known = resume.source.filter(|_| resume.copied);
        let client = &self.session.insert(Session::open(client).await?).client;
        if resume.copied {
            self.window = window::read(client, &self.spec.slot).await?;
            resume.settled = self.window.settled();
        }
        Ok(resume)
    }

    fn ended(&self) -> CancellationToken {
        self.ended.clone()
    }

    async fn late(&mut self) -> Result<(), Error> {
        self.settle().await
    }

    async fn source(&mut self, id: SourceId) -> Result<(), Error> {
        self.source = Some(id);
        match self.known {
            Some(known) => known.expect(id, &self.spec.slot),
            // Nothing to write where a copy will begin: its checkpoint comes with it.
            None if self.expected == Lsn::ZERO => Ok(()),
            None => self.remember(id, true).await,
        }
    }

    async fn apply(&mut self, group: &[Transaction], flush: bool) -> Result<(), Error> {
        let applied = match self.apply_group(group, flush).await {
            Err(error) if splits(&error) && group.len() > 1 => self.apply_in_parts(group, flush).await,
            result => result,
        };
        if let Err(error) = &applied {
            self.stand_at(error, &Met::of(group.iter().flat_map(|transaction| &transaction.changes))).await;
        }
        applied?;
        self.settle().await
    }

    async fn begin_large(&mut self, header: LargeHeader) -> Result<(), Error> {
        let session = self.session.take().ok_or_else(not_open)?;
        self.large = Some(Large::begin(session, header).await?);
        Ok(())
    }

    async fn apply_part(&mut self, changes: Vec<Change>) -> Result<(), Error> {
        let large = self.large.as_mut().ok_or_else(not_open)?;
        large.met.meet(&changes);
        let applied = self.apply_to_large(changes).await;
        // What fails may be the part before.
        if let (Err(error), Some(large)) = (&applied, &self.large) {
            self.stand_at(error, &large.met).await;
        }
        applied
    }

    async fn end_large(&mut self) -> Result<(), Error> {
        let large = self.large.take().ok_or_else(not_open)?;
        let (to, marker, met) = (large.end_lsn(), large.marker(), large.met.clone());
        let step = self.step(to, marker.map(signed).transpose()?, true);
        let ended = large.end(&step).await;
        if let Err(error) = &ended {
            self.stand_at(error, &met).await;
        }
        self.session = Some(ended?);
        self.expected = to;
        self.settle().await
    }

    async fn checkpoint(&mut self, lsn: Lsn) -> Result<(), Error> {
        let step = self.step(lsn, None, true);
        let session = self.session.as_mut().ok_or_else(not_open)?;
        match session.commit(&step, &[]).await {
            Ok(()) => {}
            Err(Failure::Error(error)) => return Err(error),
            Err(Failure::Batch) => return Err(Error::Fenced("the checkpoint cannot be moved".into())),
        }
        self.expected = lsn;
        self.settle().await
    }

    async fn kept(&mut self) -> Result<Vec<KeptTable>, Error> {
        self.take_kept().await
    }

    async fn begin_copy(&mut self, start: &CopyStart) -> Result<(), Error> {
        self.copying = Some(Copying::new(*start));
        Ok(())
    }

    async fn load_schema(&mut self, sql: &str, post: bool) -> Result<(), Error> {
        if post { self.load_after(sql).await } else { self.load_before(sql).await }
    }

    async fn begin_part(&mut self, part: u32, table: &CopyTable) -> Result<(), Error> {
        self.open_part(part, table).await
    }

    async fn copy_rows(&mut self, part: u32, data: Bytes) -> Result<(), Error> {
        self.write_part(part, data).await
    }

    async fn end_part(&mut self, part: u32, rows: u64) -> Result<(), Error> {
        self.close_part(part, rows).await
    }

    async fn end_copy(&mut self, consistent_point: Lsn) -> Result<Lsn, Error> {
        if let Some(id) = self.source {
            self.remember(id, false).await?;
        }
        self.commit_copy(consistent_point).await
    }
}
