//! The source's side of the initial copy: slot, snapshot, schema, rows.

use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::BytesMut;
use futures_util::StreamExt;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_postgres::Client;

use crate::copy::{self, Part};
use crate::error::Error;
use crate::lsn::Lsn;
use crate::postgres::stream::ExportedSlot;
use crate::postgres::{Dsn, connect, slot};
use crate::schema;
use crate::wire::{CopyTable, Frame, PIECE, StreamSpec};

/// Sessions that read at the same time.
const READERS: usize = 4;

/// Makes the slot anew and puts the whole copy into `frames`; waits whenever they are not taken. Gives the slot's
/// consistent point.
pub(super) async fn produce(
    dsn: &Dsn,
    bin: Option<PathBuf>,
    spec: &StreamSpec,
    frames: mpsc::Sender<Frame>,
) -> Result<Lsn, Error> {
    let client = connect(dsn, &format!("godwit copy {}", spec.slot)).await?;
    slot::ensure_publication(&client, &spec.publication).await?;
    // Left over from a copy that did not finish.
    slot::drop_slot(&client, &spec.slot).await?;
    let exported = ExportedSlot::create(dsn, &spec.slot).await?;
    copy::begin_snapshot(&client, &exported.snapshot).await?;
    let tables = copy::tables(&client).await?;
    let begin = Frame::CopyBegin {
        consistent_point: exported.consistent_point,
        tables: tables.len() as u32,
        rows_estimate: tables.iter().map(|table| table.rows_estimate).sum(),
        bytes_estimate: tables.iter().map(|table| table.bytes).sum(),
    };
    let parts = copy::cut(tables);
    let mut readers = vec![client];
    while readers.len() < READERS.min(parts.len()) {
        let client = connect(dsn, &format!("godwit copy {}", spec.slot)).await?;
        copy::begin_snapshot(&client, &exported.snapshot).await?;
        readers.push(client);
    }
    let consistent_point = exported.consistent_point;
    // Every session has the snapshot now.
    drop(exported);
    let dump = schema::dump(dsn, bin.as_deref()).await?;
    frames.send(begin).await.map_err(gone)?;
    send_schema(&frames, dump.pre_data, false).await?;
    let queue = Queue::new(parts);
    let mut reading = JoinSet::new();
    for client in readers {
        reading.spawn(read(client, queue.clone(), frames.clone()));
    }
    while let Some(read) = reading.join_next().await {
        read.map_err(|error| Error::Link(format!("a copy session broke off: {error}")))??;
    }
    send_schema(&frames, dump.post_data, true).await?;
    frames.send(Frame::CopyEnd).await.map_err(gone)?;
    Ok(consistent_point)
}

/// Parts that nobody has taken, and how many of each table are not through yet.
struct Queue {
    parts: VecDeque<(u32, Part)>,
    missing: HashMap<(String, String), u32>,
}

impl Queue {
    fn new(parts: Vec<Part>) -> Arc<Mutex<Self>> {
        let mut missing = HashMap::new();
        for part in &parts {
            *missing.entry((part.table.schema.clone(), part.table.name.clone())).or_default() += 1;
        }
        Arc::new(Mutex::new(Self { parts: (0..).zip(parts).collect(), missing }))
    }

    /// Notes that one more part of the table is through; true when it was the last.
    fn done(&mut self, part: &Part) -> bool {
        let key = (part.table.schema.clone(), part.table.name.clone());
        self.missing.get_mut(&key).is_some_and(|missing| {
            *missing -= 1;
            *missing == 0
        })
    }
}

fn lock(queue: &Mutex<Queue>) -> MutexGuard<'_, Queue> {
    queue.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One session's work: part after part.
async fn read(client: Client, queue: Arc<Mutex<Queue>>, frames: mpsc::Sender<Frame>) -> Result<(), Error> {
    loop {
        let next = lock(&queue).parts.pop_front();
        let Some((number, part)) = next else { return Ok(()) };
        let rows = read_part(&client, number, &part, &frames).await?;
        let last = lock(&queue).done(&part);
        frames.send(Frame::CopyTableEnd { part: number, rows, last }).await.map_err(gone)?;
    }
}

async fn read_part(
    client: &Client,
    number: u32,
    part: &Part,
    frames: &mpsc::Sender<Frame>,
) -> Result<u64, Error> {
    let table = CopyTable {
        schema: part.table.schema.clone(),
        name: part.table.name.clone(),
        columns: part.table.columns.clone(),
        binary: part.table.binary,
    };
    frames.send(Frame::CopyTable { part: number, table }).await.map_err(gone)?;
    let mut chunks = std::pin::pin!(copy::copy_out(client, part).await?);
    let mut data = BytesMut::new();
    let (mut total, mut rows) = (0, 0);
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk?;
        // The server sends every row for itself, and the end of the binary format too.
        rows += u32::from(!(part.table.binary && is_end(&chunk)));
        data.extend_from_slice(&chunk);
        while data.len() >= PIECE {
            let data = data.split_to(PIECE).freeze();
            total += u64::from(rows);
            frames
                .send(Frame::CopyRows { part: number, rows: std::mem::take(&mut rows), data })
                .await
                .map_err(gone)?;
        }
    }
    total += u64::from(rows);
    if !data.is_empty() {
        frames.send(Frame::CopyRows { part: number, rows, data: data.freeze() }).await.map_err(gone)?;
    }
    Ok(total)
}

/// The end mark, alone or (no row at all) right behind the header.
fn is_end(chunk: &[u8]) -> bool {
    const END: [u8; 2] = [0xff; 2];
    const HEADER: usize = 19;
    chunk == END
        || (chunk.len() == HEADER + END.len() && chunk.starts_with(b"PGCOPY\n") && chunk.ends_with(&END))
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
