//! The source's side of the initial copy: slot, snapshot, schema, rows.
//!
//! A copy that broke goes on (docs/adr/0010): the slot stays, with it every change since; what the target holds stays where
//! [`KeptTable::stays`]; the rest is read under the snapshot that this process still has, or under a later one.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::BytesMut;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_postgres::Client;

use super::send::Source;
use crate::copy::{Held, Lease, Locks, MOST_SESSIONS, Pace, Part, Reader, TableToCopy};
use crate::drift;
use crate::error::Error;
use crate::fence;
use crate::lsn::Lsn;
use crate::postgres::stream::ExportedSlot;
use crate::postgres::{Dsn, connect_unseen, slot};
use crate::schema;
use crate::wire::{CopyStart, CopyTable, Frame, KeptTable, PIECE, StreamSpec};

/// A copy that has gone out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Produced {
    /// The slot's position: the stream goes on from here.
    pub(super) consistent_point: Lsn,
    /// From here on the target's tables are at one point.
    pub(super) settled: Lsn,
}

/// Puts the copy, or what is missing of it, into `frames`; waits whenever they are not taken.
pub(super) async fn produce(
    source: &Source<'_>,
    spec: &StreamSpec,
    kept: &[KeptTable],
    resumable: bool,
    lease: &mut Lease,
    frames: mpsc::Sender<Frame>,
) -> Result<Produced, Error> {
    let dsn = source.dsn;
    let client = connect_unseen(dsn, &name(spec)).await?;
    slot::ensure_publication(&client, &spec.publication).await?;
    drift::dumped(&client, !kept.is_empty()).await?;
    let stamp = fence::schema_stamp(&client).await?;
    let there = if resumable { usable_slot(&client, &spec.slot).await? } else { None };
    let (consistent_point, mut dump) = tokio::try_join!(
        hold(dsn, &client, spec, kept, there, lease),
        schema::dump(dsn, source.bin.as_deref())
    )?;
    let held = lease.held().ok_or_else(|| Error::Protocol("a copy without a snapshot".into()))?;
    if fence::schema_stamp(&client).await? != stamp {
        // It was begun while the slot waited for whoever changed something. Now the tables are locked.
        dump = schema::dump(dsn, source.bin.as_deref()).await?;
    }
    let stays: Vec<&KeptTable> =
        kept.iter().filter(|table| table.stays(consistent_point, held.position)).collect();
    let named = held.parts.iter().map(|part| (&*part.table.schema, &*part.table.name));
    let parts: Vec<(u32, Part)> = missing(named, &stays)
        .into_iter()
        .filter_map(|number| held.parts.get(number as usize).map(|part| (number, part.clone())))
        .collect();
    let sessions = source.copy.sessions.clamp(1, MOST_SESSIONS);
    let start = start(held, &stays, consistent_point, sessions);
    tracing::info!(
        stream = spec.slot, %consistent_point, snapshot = %held.position, tables = start.tables,
        tables_kept = start.tables_kept, bytes_kept = start.bytes_kept, parts = parts.len(), "initial copy"
    );
    let newest = stays.iter().map(|table| table.position).max().unwrap_or_default();
    let settled = newest.max(if parts.is_empty() { consistent_point } else { held.position });
    let mut readers = Vec::new();
    while readers.len() < parts.len().min(sessions as usize) {
        readers.push(Reader::open(dsn, &name(spec), &held.snapshot).await?);
    }
    frames.send(Frame::CopyBegin(start)).await.map_err(gone)?;
    send_schema(&frames, dump.pre_data, false).await?;
    let pace = Arc::new(Mutex::new(Pace::new(source.copy.bytes_per_second)));
    let queue = Queue::new(parts, held);
    let mut reading = JoinSet::new();
    for reader in readers {
        let (queue, pace, frames) = (queue.clone(), pace.clone(), frames.clone());
        let work = Reading { queue, pace, frames, locks: held.locks.clone() };
        reading.spawn(work.read(reader));
    }
    while let Some(read) = reading.join_next().await {
        read.map_err(|error| Error::Link(format!("a copy session broke off: {error}")))??;
    }
    send_schema(&frames, dump.post_data.text().await?, true).await?;
    frames.send(Frame::CopyEnd).await.map_err(gone)?;
    Ok(Produced { consistent_point, settled })
}

fn name(spec: &StreamSpec) -> String {
    format!("godwit copy {}", spec.slot)
}

/// The position of a slot that nobody has read from and that has all its WAL.
async fn usable_slot(client: &Client, name: &str) -> Result<Option<Lsn>, Error> {
    let slot = slot::slot_info(client, name).await?;
    Ok(slot.filter(|slot| slot.wal_status != "lost").and_then(|slot| slot.confirmed_flush))
}

/// Sees to it that the lease holds a snapshot to read under; gives the slot's position, of a slot that is made anew where
/// nothing can go on.
async fn hold(
    dsn: &Dsn,
    client: &Client,
    spec: &StreamSpec,
    kept: &[KeptTable],
    there: Option<Lsn>,
    lease: &mut Lease,
) -> Result<Lsn, Error> {
    let position = match lease.held() {
        Some(held) if there.is_some() && held.locks.stand().await => Some(held.position),
        _ => None,
    };
    match go_on(kept, there, position) {
        GoOn::Same(consistent_point) => return Ok(consistent_point),
        GoOn::Later(consistent_point, whole) => {
            lease.set(None);
            let exported = ExportedSlot::create_temporary(dsn, &temporary(&spec.slot)).await?;
            let wanted = |table: &TableToCopy| !whole.contains(&(&*table.schema, &*table.name));
            let held = Held::open(dsn, &name(spec), exported, wanted).await?;
            // The stream tells of no table that is dropped, or called as another one was.
            if drift::are_as_named(client, &whole).await? {
                lease.set(Some(held));
                return Ok(consistent_point);
            }
            tracing::info!(
                stream = spec.slot,
                "tables were made or renamed since the copy began: it begins again"
            );
        }
        GoOn::Anew => {}
    }
    lease.set(None);
    slot::drop_slot(client, &spec.slot).await?;
    drift::named(client).await?;
    let exported = ExportedSlot::create(dsn, &spec.slot).await?;
    let consistent_point = exported.consistent_point;
    lease.set(Some(Held::open(dsn, &name(spec), exported, |_| true).await?));
    Ok(consistent_point)
}

/// How a copy that broke goes on.
#[derive(Debug)]
pub(crate) enum GoOn<'a> {
    /// Under the snapshot that is still held; the slot's position.
    Same(Lsn),
    /// Under a later one, with the slot's position and the tables that stay.
    Later(Lsn, HashSet<(&'a str, &'a str)>),
    /// With a new slot; nothing stays.
    Anew,
}

/// Decides that from what the target holds, the position of a usable slot, and that of a snapshot which is still held.
pub(crate) fn go_on(kept: &[KeptTable], slot: Option<Lsn>, held: Option<Lsn>) -> GoOn<'_> {
    let Some(consistent_point) = slot else { return GoOn::Anew };
    if held.is_some_and(|position| position >= consistent_point) {
        return GoOn::Same(consistent_point);
    }
    // Whole tables only: parts of a snapshot that is gone do not fit those of another.
    let whole: HashSet<(&str, &str)> = kept
        .iter()
        .filter(|table| table.parts.is_none() && table.position >= consistent_point)
        .map(|table| (&*table.schema, &*table.name))
        .collect();
    if whole.is_empty() { GoOn::Anew } else { GoOn::Later(consistent_point, whole) }
}

/// A name beside the slot's, another one for each process.
fn temporary(slot: &str) -> String {
    let suffix = format!("_copy_{}", std::process::id());
    let most = 63 - suffix.len();
    format!("{}{suffix}", &slot[..slot.floor_char_boundary(most)])
}

/// The numbers of those parts, named by table, that are not in what stays at the target.
pub(crate) fn missing<'a>(
    parts: impl IntoIterator<Item = (&'a str, &'a str)>,
    stays: &[&KeptTable],
) -> Vec<u32> {
    let there: HashMap<(&str, &str), Option<HashSet<u32>>> = stays
        .iter()
        .map(|table| {
            let parts = table.parts.as_ref().map(|parts| parts.iter().copied().collect());
            ((&*table.schema, &*table.name), parts)
        })
        .collect();
    let wanted = |number: u32, table| match there.get(&table) {
        None => true,
        Some(None) => false,
        Some(Some(parts)) => !parts.contains(&number),
    };
    (0..).zip(parts).filter(|(number, table)| wanted(*number, *table)).map(|(number, _)| number).collect()
}

fn start(held: &Held, stays: &[&KeptTable], consistent_point: Lsn, sessions: u32) -> CopyStart {
    CopyStart {
        consistent_point,
        snapshot: held.position,
        tables: held.tables.len() as u32,
        rows_estimate: held.tables.iter().map(|table| table.rows_estimate).sum(),
        bytes_estimate: held.tables.iter().map(|table| table.bytes).sum(),
        sessions,
        tables_kept: stays.iter().filter(|table| table.parts.is_none()).count() as u32,
        rows_kept: stays.iter().map(|table| table.rows).sum(),
        bytes_kept: stays.iter().map(|table| table.bytes).sum(),
    }
}

/// Parts that nobody has taken, and how many of each table are not through yet.
struct Queue {
    parts: VecDeque<(u32, Part)>,
    missing: HashMap<(String, String), u32>,
    /// Of how many parts each table is.
    of: HashMap<(String, String), u32>,
}

fn key(part: &Part) -> (String, String) {
    (part.table.schema.clone(), part.table.name.clone())
}

impl Queue {
    fn new(parts: Vec<(u32, Part)>, held: &Held) -> Arc<Mutex<Self>> {
        let (mut missing, mut of) = (HashMap::new(), HashMap::new());
        for (_, part) in &parts {
            *missing.entry(key(part)).or_default() += 1;
        }
        for part in &held.parts {
            *of.entry(key(part)).or_default() += 1;
        }
        Arc::new(Mutex::new(Self { parts: parts.into(), missing, of }))
    }

    /// Notes that one more part of the table is through; true when it was the last.
    fn done(&mut self, part: &Part) -> bool {
        self.missing.get_mut(&key(part)).is_some_and(|missing| {
            *missing -= 1;
            *missing == 0
        })
    }
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the sessions share.
struct Reading {
    queue: Arc<Mutex<Queue>>,
    pace: Arc<Mutex<Pace>>,
    frames: mpsc::Sender<Frame>,
    locks: Locks,
}

impl Reading {
    /// One session's work: part after part.
    async fn read(self, mut reader: Reader) -> Result<(), Error> {
        loop {
            let next = lock(&self.queue).parts.pop_front();
            let Some((number, part)) = next else { return Ok(()) };
            let rows = self.read_part(&mut reader, number, &part).await?;
            // Whoever ended that session may have rewritten the table before this one had a lock on it, and then no row of it was seen.
            if !self.locks.stand().await {
                return Err(Error::Link("the session that keeps the tables as they are was ended".into()));
            }
            let last = lock(&self.queue).done(&part);
            self.frames.send(Frame::CopyTableEnd { part: number, rows, last }).await.map_err(gone)?;
        }
    }

    async fn read_part(&self, reader: &mut Reader, number: u32, part: &Part) -> Result<u64, Error> {
        let of = lock(&self.queue).of.get(&key(part)).copied().unwrap_or(1);
        let table = CopyTable {
            schema: part.table.schema.clone(),
            name: part.table.name.clone(),
            columns: part.table.columns.clone(),
            binary: part.table.binary,
            of,
        };
        self.frames.send(Frame::CopyTable { part: number, table }).await.map_err(gone)?;
        reader.begin(part).await?;
        let mut total = 0;
        loop {
            let mut data = BytesMut::with_capacity(PIECE);
            let (rows, more) = reader.read(&mut data, PIECE).await?;
            total += u64::from(rows);
            if !data.is_empty() {
                self.send(number, rows, data).await?;
            }
            if !more {
                return Ok(total);
            }
        }
    }

    async fn send(&self, part: u32, rows: u32, data: BytesMut) -> Result<(), Error> {
        let wait = lock(&self.pace).take(data.len() as u64, crate::clock::now());
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
        self.frames.send(Frame::CopyRows { part, rows, data: data.freeze() }).await.map_err(gone)
    }
}

fn gone(_: mpsc::error::SendError<Frame>) -> Error {
    Error::Link("the session ended".into())
}

async fn send_schema(frames: &mpsc::Sender<Frame>, sql: String, post: bool) -> Result<(), Error> {
    let mut rest = bytes::Bytes::from(sql);
    loop {
        let piece = rest.split_to(rest.len().min(PIECE));
        let last = rest.is_empty();
        frames.send(Frame::CopySchema { post, last, piece }).await.map_err(gone)?;
        if last {
            return Ok(());
        }
    }
}
