//! The replication stream: transactions out of a slot, as they commit or while they still run; progress back into it.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::time::{Sleep, sleep};

use super::connection::{Connection, Purpose, notice, server_error, within};
use super::{CONNECT_TIMEOUT, Dsn, quote_ident, quote_literal};
use crate::error::Error;
use crate::identity::{self, SourceId};
use crate::lsn::Lsn;
use crate::pgoutput::reader::Reader;
use crate::pgoutput::{Decoder, Event};

/// After this long without a byte the server is asked for a sign of life …
const ASK_AFTER: Duration = Duration::from_secs(20);
/// … and after this long more the connection counts as dead. Together PostgreSQL's own default (`wal_sender_timeout`).
const DEAD_AFTER: Duration = Duration::from_secs(40);
/// How long the server may take to begin streaming: it first reads the WAL that the slot retains.
const START_TIMEOUT: Duration = Duration::from_mins(1);
/// From 1970-01-01 to 2000-01-01, PostgreSQL's epoch: 30 years, 7 of them leap.
const POSTGRES_EPOCH: Duration = Duration::from_hours((30 * 365 + 7) * 24);

/// What the stream brings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StreamEvent {
    /// Of a transaction: see [`Event`].
    Transaction(Event),
    /// The server is alive.
    Keepalive {
        /// Every transaction that ended before this position has been handed out to its end.
        wal_end: Lsn,
        /// The server wants a report soon, or it will close the connection.
        reply_requested: bool,
    },
}

/// Progress to report to the server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Feedback {
    /// Received up to here.
    pub write: Lsn,
    /// Durable up to here: the server may forget what lies before.
    pub flush: Lsn,
    /// Applied up to here.
    pub apply: Lsn,
    /// Ask for a keepalive in return.
    pub reply_requested: bool,
}

/// A running logical replication stream; dropping it closes the connection and frees the slot.
pub struct ReplicationStream {
    connection: Connection,
    decoder: Decoder,
    wal_end: Lsn,
    reported: Feedback,
    silence: Pin<Box<Sleep>>,
    asked: bool,
}

impl ReplicationStream {
    /// Starts streaming `publication` out of `slot`: every transaction whose commit is at or after `from`, or after the
    /// slot's confirmed position where that is later (so [`Lsn::ZERO`] means "from the slot's position").
    ///
    /// Transactions that outgrow the server's `logical_decoding_work_mem` come while they still run, rather than waiting on
    /// its disk. Values come as text: the binary form of a user-defined type means nothing on another cluster. What other
    /// appliers wrote comes too (`origin` cannot tell ours from theirs); see [`Event::Origin`].
    ///
    /// A slot that another session still holds is SQLSTATE 55006, which passes.
    pub async fn start(dsn: &Dsn, slot: &str, publication: &str, from: Lsn) -> Result<Self, Error> {
        Self::start_at(dsn, slot, publication, from, None).await
    }

    /// The same, from this cluster only: the server that streams is asked who it is.
    pub async fn start_at(
        dsn: &Dsn,
        slot: &str,
        publication: &str,
        from: Lsn,
        source: Option<SourceId>,
    ) -> Result<Self, Error> {
        let context = format!("start streaming from slot {slot}");
        let mut connection = Connection::open(dsn, slot, Purpose::Replication).await?;
        if source.is_some() {
            within(CONNECT_TIMEOUT, &context, identity::ask(&mut connection))
                .await?
                .check(source, from, slot)?;
        }
        let sql = format!(
            "START_REPLICATION SLOT {} LOGICAL {from} \
             (proto_version '2', streaming 'on', publication_names {}, messages 'true', binary 'false')",
            quote_ident(slot),
            quote_literal(&quote_ident(publication)).trim_start(),
        );
        within(START_TIMEOUT, &context, connection.copy_both(&sql, &context)).await?;
        Ok(Self {
            connection,
            decoder: Decoder::new(),
            wal_end: from,
            reported: Feedback::default(),
            silence: Box::pin(sleep(ASK_AFTER)),
            asked: false,
        })
    }

    /// The next event among the bytes that are here. After an error the stream must be dropped.
    pub fn try_next(&mut self) -> Result<Option<StreamEvent>, Error> {
        while let Some(frame) = self.connection.buffered()? {
            match frame.tag {
                b'd' => {
                    if let Some(event) = self.copy_data(frame.body)? {
                        return Ok(Some(event));
                    }
                }
                b'E' => return Err(server_error("stream changes", frame.body)),
                // CopyDone, CommandComplete: the server is shutting down.
                b'c' | b'C' => return Err(ended("the server ended the replication stream")),
                b'N' => notice("stream changes", frame.body)?,
                b'S' => {}
                tag => {
                    return Err(Error::Protocol(format!(
                        "unexpected message {:?} in the replication stream",
                        char::from(tag)
                    )));
                }
            }
        }
        Ok(None)
    }

    /// The next event. Keepalives come out at once, also from inside a transaction that is still arriving. Sends meanwhile the
    /// reports that are queued.
    ///
    /// Cancel-safe: what has been received stays in the stream. After an error the stream must be dropped.
    pub async fn next(&mut self) -> Result<StreamEvent, Error> {
        loop {
            if let Some(event) = self.try_next()? {
                return Ok(event);
            }
            tokio::select! {
                // Bytes that are there count before a timer that ran out while nobody was asking for them.
                biased;
                received = self.connection.fill() => {
                    received.map_err(Error::io("receive changes"))?;
                    self.asked = false;
                    self.silence.as_mut().reset((crate::clock::now() + ASK_AFTER).into());
                }
                () = self.silence.as_mut() => {
                    if self.asked {
                        return Err(ended("the server has been silent for a minute"));
                    }
                    self.asked = true;
                    self.silence.as_mut().reset((crate::clock::now() + DEAD_AFTER).into());
                    self.queue(Feedback { reply_requested: true, ..self.reported })?;
                }
            }
        }
    }

    /// Sends the reports that are queued and reads nothing, so that the server waits with its next changes. Ends only by an error;
    /// cancel-safe.
    pub async fn hold(&mut self) -> Result<Infallible, Error> {
        self.connection.flush().await.map_err(Error::io("report progress"))?;
        std::future::pending().await
    }

    /// Sends a standby status update: [`Self::queue_report`], and waits until it is on its way.
    ///
    /// Cancel-safe: a report is sent whole, at the latest by the next call.
    pub async fn report(&mut self, feedback: Feedback) -> Result<(), Error> {
        self.queue_report(feedback)?;
        within(CONNECT_TIMEOUT, "report progress", async {
            self.connection.flush().await.map_err(Error::io("report progress"))
        })
        .await
    }

    /// Queues a standby status update for [`Self::next`] or [`Self::hold`] to send. A position never goes back: the highest
    /// reported so far is sent.
    pub fn queue_report(&mut self, feedback: Feedback) -> Result<(), Error> {
        self.reported = Feedback {
            write: self.reported.write.max(feedback.write),
            flush: self.reported.flush.max(feedback.flush),
            apply: self.reported.apply.max(feedback.apply),
            reply_requested: false,
        };
        self.queue(Feedback { reply_requested: feedback.reply_requested, ..self.reported })
    }

    /// The newest position of the server that the stream has heard of.
    pub fn wal_end(&self) -> Lsn {
        self.wal_end
    }

    fn queue(&mut self, feedback: Feedback) -> Result<(), Error> {
        // A server that takes nothing must not make us collect reports: the ones under way say nearly the same.
        if self.connection.unsent() > 4096 {
            return Ok(());
        }
        let mut message = Vec::with_capacity(34);
        message.push(b'r');
        for position in [feedback.write, feedback.flush, feedback.apply] {
            message.extend_from_slice(&position.0.to_be_bytes());
        }
        message.extend_from_slice(&postgres_now().to_be_bytes());
        message.push(u8::from(feedback.reply_requested));
        self.connection.queue_copy(&message)
    }

    fn copy_data(&mut self, body: Bytes) -> Result<Option<StreamEvent>, Error> {
        let mut reader = Reader::new("replication", body);
        match reader.u8("kind")? {
            b'w' => {
                let start = reader.lsn("start position")?;
                let end = reader.lsn("end position")?;
                reader.i64("time")?;
                self.wal_end = self.wal_end.max(start).max(end);
                let event = self.decoder.decode(reader.rest())?;
                if let Some(Event::Commit(header)) = &event {
                    self.wal_end = self.wal_end.max(header.end_lsn);
                }
                Ok(event.map(StreamEvent::Transaction))
            }
            b'k' => {
                let wal_end = reader.lsn("end position")?;
                reader.i64("time")?;
                let reply_requested = reader.u8("reply flag")? != 0;
                self.wal_end = self.wal_end.max(wal_end);
                Ok(Some(StreamEvent::Keepalive { wal_end, reply_requested }))
            }
            kind => Err(Error::Protocol(format!("unknown replication message {:?}", char::from(kind)))),
        }
    }
}

fn ended(why: &str) -> Error {
    Error::Io { context: "receive changes".into(), source: io::Error::new(io::ErrorKind::UnexpectedEof, why) }
}

/// Microseconds since PostgreSQL's epoch; the server only shows it (`pg_stat_replication.reply_time`).
pub fn postgres_now() -> i64 {
    crate::clock::wall()
        .duration_since(SystemTime::UNIX_EPOCH + POSTGRES_EPOCH)
        .map_or(0, |since| i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}

/// A new slot with the snapshot of its starting point, both held by a replication connection of their own.
///
/// The snapshot can be imported (`SET TRANSACTION SNAPSHOT`) until this is dropped; transactions that have imported it
/// keep it. The slot stays.
pub struct ExportedSlot {
    /// The slot streams everything committed after this position; the snapshot shows everything before it.
    pub consistent_point: Lsn,
    /// Name of the snapshot.
    pub snapshot: String,
    _held: Connection,
}

impl ExportedSlot {
    /// Makes the slot `name` and exports its snapshot. An existing slot of that name is an error (42710): its snapshot is
    /// gone, so drop it first.
    ///
    /// Waits for the transactions that are running now to end. Dropping the future closes the connection.
    pub async fn create(dsn: &Dsn, name: &str) -> Result<Self, Error> {
        Self::make(dsn, name, "").await
    }

    /// The same with a slot that goes when this is dropped: a snapshot whose position is known.
    pub async fn create_temporary(dsn: &Dsn, name: &str) -> Result<Self, Error> {
        Self::make(dsn, name, " TEMPORARY").await
    }

    async fn make(dsn: &Dsn, name: &str, kind: &str) -> Result<Self, Error> {
        let context = format!("create slot {name} with a snapshot");
        let mut connection = Connection::open(dsn, name, Purpose::Replication).await?;
        // The older spelling, which every version from 14 on takes.
        let sql =
            format!("CREATE_REPLICATION_SLOT {}{kind} LOGICAL pgoutput EXPORT_SNAPSHOT", quote_ident(name));
        let rows = connection.query(&sql, &context).await?;
        let field =
            |at: usize| -> Option<&str> { std::str::from_utf8(rows.first()?.get(at)?.as_deref()?).ok() };
        let answer = field(1).and_then(|lsn| lsn.parse().ok()).zip(field(2));
        let (consistent_point, snapshot) = answer
            .ok_or_else(|| Error::Protocol(format!("{context}: the answer lacks position or snapshot")))?;
        Ok(Self { consistent_point, snapshot: snapshot.to_owned(), _held: connection })
    }
}
