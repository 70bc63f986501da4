//! What a slot retains, read by SQL: how a stream that lags far behind catches up.
//!
//! A walsender sends each message by itself, and that costs the server more than decoding it (measured, a transaction of
//! one row: 18 µs by streaming, 5 µs by `pg_logical_slot_get_binary_changes` under COPY; a row of a large one: 11 and 3 µs). So
//! a backlog is read in chunks of WAL by that function, which hands out nothing but committed transactions.
//!
//! The function forgets what it has handed out, which must not happen before the target has it. So it reads from a temporary
//! *copy* of the slot that goes with this connection; the slot itself stays where the target's checkpoint is, and is moved
//! after it from time to time, so that the server need not keep all of the backlog until its end. Whatever breaks, the
//! next session begins at the slot. Nobody holds the slot in between: that two senders do not serve one target is seen
//! to at the target, as it is when a walsender is late to end.
//!
//! The server decodes a chunk before it sends the first byte of it, and nothing while it sends. So a task of its own takes what it
//! sends, as far as memory is meant for that, and asks for the next chunk while the one before is handed out.
//!
//! Sources: PostgreSQL documentation, section 9.27.6 "Replication Management Functions", and COPY's binary format.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio_util::task::AbortOnDropHandle;

use super::connection::{
    Connection, HEADER, Purpose, TextRow, notice, server_error, settings_sql, text_row, unexpected, within,
};
use super::rows::SIGNATURE;
use super::{CONNECT_TIMEOUT, Dsn, quote_ident, quote_literal};
use crate::change::LargeHeader;
use crate::error::Error;
use crate::identity::{self, SourceId};
use crate::lsn::Lsn;
use crate::pgoutput::{Decoder, Event};

/// From so much on a backlog is read this way, bytes of WAL …
const WORTH_IT: u64 = 8 << 20;
/// … until it is down to this; a stream takes what is left.
const LEFT_OVER: u64 = 1 << 20;
/// WAL decoded at a time: at first, so that there is soon something to do, and then. The server keeps the outcome in memory or in
/// temporary files until it is taken.
const FIRST: u64 = 16 << 20;
const CHUNK: u64 = 64 << 20;
/// So many bytes of a chunk are taken before they are needed: most of it, so that the server decodes the next one meanwhile.
const AHEAD: usize = 48 << 20;
/// A chunk that brought nothing lies inside a large transaction. Each chunk decodes it from its beginning, so the next one reaches
/// so many times further …
const REACH: u64 = 8;
/// … up to this.
const FURTHEST: u64 = 4 << 30;
/// The slot follows the target's checkpoint after so much WAL, or so long: each time the server reads from the slot on.
const FOLLOW_BYTES: u64 = 1 << 30;
const FOLLOW_EVERY: Duration = Duration::from_secs(60);
/// After so long without a byte somebody looks whether the server still works on it.
const SILENCE: Duration = Duration::from_secs(30);
/// A chunk without any change brings so many bytes: a message with COPY's header and end.
const EMPTY: usize = HEADER + SIGNATURE.len() + 2;

/// What the backlog brings.
#[derive(Debug)]
pub(crate) enum Retained {
    /// Of a transaction that is committed; its parts follow each other.
    Event(Event),
    /// Every transaction that ended before this position has been handed out.
    Position(Lsn),
    /// That was all that is worth it: a stream takes over from this position.
    End(Lsn),
}

/// What the task that reads tells.
#[derive(Debug)]
enum Read {
    /// Rows of another chunk follow.
    Begin,
    /// Whole messages with rows; they count as read ahead until they are dropped.
    Rows(Bytes, OwnedSemaphorePermit),
    /// The end of an answer: how far it reaches, and the newest position of the server.
    Answered { at: Lsn, newest: Lsn },
    /// That was all.
    End,
}

/// A backlog that is being read; dropping it frees the copy of the slot.
pub(crate) struct Backlog {
    reads: mpsc::UnboundedReceiver<Read>,
    reading: AbortOnDropHandle<Result<(), Error>>,
    /// Rows that are being handed out.
    rows: Option<(Bytes, OwnedSemaphorePermit)>,
    decoder: Decoder,
    /// COPY's header has been read.
    begun: bool,
    at: Lsn,
    newest: Lsn,
    /// The target's checkpoint.
    durable: watch::Sender<Lsn>,
}

/// The task that reads it.
struct Reading {
    connection: Connection,
    tell: mpsc::UnboundedSender<Read>,
    room: Arc<Semaphore>,
    dsn: Dsn,
    backend: String,
    slot: String,
    copy: String,
    publication: String,
    /// How far the chunk that is asked for reaches, bytes of WAL, and bytes that it has brought.
    reach: u64,
    brought: usize,
    at: Lsn,
    /// Where the chunk begins.
    before: Lsn,
    newest: Lsn,
    /// The target's checkpoint, and where the slot was moved to, when.
    durable: watch::Receiver<Lsn>,
    followed: (Lsn, Instant),
}

impl Backlog {
    /// The backlog of `slot` from `from` on, which the target has durably; `None` if there is little of it, or no room for a
    /// copy of the slot (`max_replication_slots`).
    pub(crate) async fn open(
        dsn: &Dsn,
        slot: &str,
        publication: &str,
        from: Lsn,
        source: SourceId,
    ) -> Result<Option<Self>, Error> {
        let context = format!("read the backlog of slot {slot}");
        let mut connection = Connection::open(dsn, slot, Purpose::Replication).await?;
        within(CONNECT_TIMEOUT, &context, identity::ask(&mut connection)).await?.check(
            Some(source),
            from,
            slot,
        )?;
        let rows = connection
            .query("SELECT pg_catalog.pg_backend_pid(), pg_catalog.pg_current_wal_flush_lsn()", &context)
            .await?;
        let row = rows.into_iter().next().unwrap_or_default();
        let (backend, newest) = (text(&row, 0, &context)?.to_owned(), position(&row, 1, &context)?);
        if newest.bytes_since(from) < WORTH_IT {
            return Ok(None);
        }
        let name = quote_literal(slot);
        // A slot that another session still holds is 55006 here, as it is for a stream.
        connection
            .query(
                &format!(
                    "SELECT pg_catalog.pg_replication_slot_advance(slot_name, '{from}') \
                     FROM pg_catalog.pg_replication_slots WHERE slot_name = {name} AND confirmed_flush_lsn < '{from}'"
                ),
                &context,
            )
            .await?;
        let copy = format!("godwit_backlog_{backend}");
        let copied = connection
            .query(
                &format!(
                    "SELECT pg_catalog.pg_copy_logical_replication_slot({name}, {}, true)",
                    quote_literal(&copy)
                ),
                &context,
            )
            .await;
        match copied {
            Err(Error::Server { sqlstate, message, .. }) if sqlstate == "53400" => {
                tracing::info!(slot, message, "no room for a copy of the slot: the backlog is streamed");
                return Ok(None);
            }
            copied => copied?,
        };
        // What a chunk comes to usually stays in memory; a statement takes as long as it is decoded and taken.
        let settings = settings_sql(&[("transaction_timeout", "0"), ("work_mem", "64MB")], false);
        connection.query(&settings, &context).await?;
        let (tell, reads) = mpsc::unbounded_channel();
        let (durable, durable_seen) = watch::channel(from);
        let reading = Reading {
            connection,
            tell,
            room: Arc::new(Semaphore::new(AHEAD)),
            dsn: dsn.clone(),
            backend,
            slot: slot.to_owned(),
            copy,
            publication: publication.to_owned(),
            reach: FIRST,
            brought: 0,
            at: from,
            before: Lsn::ZERO,
            newest,
            durable: durable_seen,
            followed: (from, crate::clock::now()),
        };
        Ok(Some(Self {
            reads,
            reading: AbortOnDropHandle::new(tokio::spawn(reading.run())),
            rows: None,
            decoder: Decoder::new(),
            begun: false,
            at: from,
            newest,
            durable,
        }))
    }

    /// The transaction whose parts are being handed out: all that is known of it before its end.
    pub(crate) fn header(&self) -> Option<&LargeHeader> {
        self.decoder.begun()
    }

    /// The newest position of the server that was heard of.
    pub(crate) fn newest(&self) -> Lsn {
        self.newest
    }

    /// The target has everything up to here on its disk.
    pub(crate) fn set_durable(&mut self, lsn: Lsn) {
        self.durable.send_modify(|durable| *durable = lsn.max(*durable));
    }

    /// What comes next among the rows that were taken last.
    pub(crate) fn try_next(&mut self) -> Result<Option<Retained>, Error> {
        while let Some(message) = self.message()? {
            if let Some(event) = self.decoder.decode(message)? {
                return Ok(Some(Retained::Event(event)));
            }
        }
        Ok(None)
    }

    /// What comes next. Cancel-safe. After an error, or [`Retained::End`], it must be dropped.
    pub(crate) async fn next(&mut self) -> Result<Retained, Error> {
        loop {
            if let Some(found) = self.try_next()? {
                return Ok(found);
            }
            match self.reads.recv().await {
                Some(Read::Begin) => {
                    // Each call describes the tables anew.
                    self.decoder = Decoder::new();
                    self.begun = false;
                }
                Some(Read::Rows(bytes, room)) => self.rows = Some((bytes, room)),
                Some(Read::Answered { at, newest }) => {
                    if self.decoder.begun().is_some() {
                        return Err(Error::Protocol("a backlog ends inside a transaction".into()));
                    }
                    (self.at, self.newest) = (at, newest);
                    return Ok(Retained::Position(at));
                }
                Some(Read::End) => return Ok(Retained::End(self.at)),
                None => {
                    let ended = (&mut self.reading).await;
                    let why = |error| Error::Link(format!("what reads a backlog ended: {error}"));
                    ended.map_err(why)??;
                    return Err(Error::Link("what reads a backlog ended".into()));
                }
            }
        }
    }

    /// The next message of `pgoutput` among the rows.
    fn message(&mut self) -> Result<Option<Bytes>, Error> {
        while let Some((rows, _)) = &mut self.rows {
            let Some((_, length)) = Connection::header(rows)? else {
                self.rows = None;
                break;
            };
            // They were cut off whole.
            let mut row = rows.split_to(rows.len().min(length + 1));
            row.advance(HEADER);
            if let Some(message) = self.row(row)? {
                return Ok(Some(message));
            }
        }
        Ok(None)
    }

    /// A row of the copy: one message of `pgoutput`.
    fn row(&mut self, mut bytes: Bytes) -> Result<Option<Bytes>, Error> {
        let broken = || Error::Protocol("a backlog's rows are not as COPY sends them".into());
        if !self.begun {
            self.begun = true;
            if !bytes.starts_with(SIGNATURE) {
                return Err(broken());
            }
            bytes.advance(SIGNATURE.len());
            if bytes.is_empty() {
                return Ok(None);
            }
        }
        match bytes.try_get_i16() {
            // The end.
            Ok(-1) if bytes.is_empty() => return Ok(None),
            Ok(1) => {}
            _ => return Err(broken()),
        }
        let length = bytes.try_get_u32().map_err(|_| broken())?;
        if bytes.len() != length as usize {
            return Err(broken());
        }
        Ok(Some(bytes))
    }
}

impl Reading {
    /// Chunk after chunk. Ends when nothing is left that is worth it, or nobody listens.
    async fn run(mut self) -> Result<(), Error> {
        while self.newest.bytes_since(self.at) >= LEFT_OVER && self.before != self.at {
            let chunk = self.ask()?;
            if chunk {
                self.tell(Read::Begin)?;
            }
            self.answer().await?;
            if chunk {
                self.reach = if self.brought > EMPTY { CHUNK } else { (self.reach * REACH).min(FURTHEST) };
            }
            self.tell(Read::Answered { at: self.at, newest: self.newest })?;
        }
        self.tell(Read::End)
    }

    fn tell(&self, read: Read) -> Result<(), Error> {
        self.tell.send(read).map_err(|_| Error::Link("nobody reads the backlog any more".into()))
    }

    /// Takes an answer to its end.
    async fn answer(&mut self) -> Result<(), Error> {
        loop {
            while let Some(rows) = self.connection.take_copied()? {
                self.brought += rows.len();
                // What is larger than all the room there is must be able to pass, too.
                let size = u32::try_from(rows.len().min(AHEAD)).unwrap_or(u32::MAX);
                let room = Arc::clone(&self.room).acquire_many_owned(size).await;
                let room = room.map_err(|error| Error::Link(error.to_string()))?;
                self.tell(Read::Rows(rows, room))?;
            }
            match self.connection.buffered()? {
                None => self.fill().await?,
                Some(frame) => match frame.tag {
                    b'D' => self.stands(&text_row(frame.body)?)?,
                    b'Z' => return Ok(()),
                    b'E' => return Err(server_error(&self.context(), frame.body)),
                    b'N' => notice(&self.context(), frame.body)?,
                    b'H' | b'c' | b'C' | b'T' | b'S' => {}
                    tag => return Err(unexpected(tag, &self.context())),
                },
            }
        }
    }

    /// Waits for more bytes. While none come somebody looks from time to time whether the server still works on it.
    async fn fill(&mut self) -> Result<(), Error> {
        let lost = async {
            loop {
                tokio::time::sleep(SILENCE).await;
                if let Err(error) = works(&self.dsn, &self.backend).await {
                    return error;
                }
            }
        };
        tokio::select! {
            biased;
            received = self.connection.fill() => {
                received.map_err(|source| Error::Io { context: self.context(), source })
            }
            error = lost => Err(error),
        }
    }

    /// Asks for the next chunk and where that ends; in between that the slot follows the target. Whether it is a chunk.
    fn ask(&mut self) -> Result<bool, Error> {
        let (copy, publication) = (quote_literal(&self.copy), quote_literal(&quote_ident(&self.publication)));
        let stands = "c.confirmed_flush_lsn, pg_catalog.pg_current_wal_flush_lsn()";
        let slots = format!("pg_catalog.pg_replication_slots c WHERE c.slot_name = {copy}");
        let (now, durable) = (crate::clock::now(), *self.durable.borrow());
        let ahead = durable.bytes_since(self.followed.0);
        let late = ahead > 0 && now.duration_since(self.followed.1) >= FOLLOW_EVERY;
        if ahead >= FOLLOW_BYTES || late {
            self.followed = (durable, now);
            let slot = quote_literal(&self.slot);
            self.connection.queue_query(&format!(
                "SELECT {stands} FROM pg_catalog.pg_replication_slot_advance({slot}, '{durable}'), {slots}"
            ))?;
            return Ok(false);
        }
        self.before = self.at;
        self.brought = 0;
        self.connection.queue_query(&format!(
            "COPY (SELECT data FROM pg_catalog.pg_logical_slot_get_binary_changes({copy}, '{}', NULL, \
             'proto_version', '2', 'publication_names', {publication}, 'messages', 'true', 'binary', 'false')) \
             TO STDOUT (FORMAT binary); SELECT {stands} FROM {slots}",
            Lsn(self.at.0.saturating_add(self.reach)),
        ))?;
        Ok(true)
    }

    fn context(&self) -> String {
        format!("read the backlog of slot {}", self.slot)
    }

    fn stands(&mut self, row: &TextRow) -> Result<(), Error> {
        let context = self.context();
        self.at = position(row, 0, &context)?.max(self.at);
        self.newest = position(row, 1, &context)?.max(self.newest);
        Ok(())
    }
}

/// Whether the server is there and still has this session: a chunk with a huge transaction takes its time.
async fn works(dsn: &Dsn, backend: &str) -> Result<(), Error> {
    let context = "see whether the backlog is still being read";
    let found = within(CONNECT_TIMEOUT, context, async {
        let mut connection = Connection::open(dsn, "godwit check", Purpose::Sql).await?;
        let sql = format!("SELECT 1 FROM pg_catalog.pg_stat_activity WHERE pid = {backend}");
        connection.query(&sql, context).await
    })
    .await?;
    if found.is_empty() {
        let gone = std::io::Error::new(std::io::ErrorKind::ConnectionAborted, "the server ended the session");
        return Err(Error::Io { context: context.into(), source: gone });
    }
    Ok(())
}

fn text<'a>(row: &'a TextRow, at: usize, context: &str) -> Result<&'a str, Error> {
    let value = row.get(at).and_then(Option::as_deref).and_then(|value| std::str::from_utf8(value).ok());
    value.ok_or_else(|| Error::Protocol(format!("{context}: the answer makes no sense")))
}

fn position(row: &TextRow, at: usize, context: &str) -> Result<Lsn, Error> {
    text(row, at, context)?.parse().map_err(|error| Error::Protocol(format!("{context}: {error}")))
}
