//! A session that writes parts of a copy.
//!
//! It speaks the protocol itself and goes on without waiting for answers: one by one, what a small table needs would cost more round trips than all of
//! its rows. The server reads a COPY's data as they come, and where the COPY was refused it passes over them (PostgreSQL documentation, "Message
//! Flow": COPY Operations). Several parts share a transaction.

use std::collections::VecDeque;

use crate::error::Error;
use crate::postgres::Dsn;
use crate::postgres::connection::{Connection, Frame, Purpose, server_error, unexpected};

/// So much is collected before it is sent.
const SEND: usize = 256 * 1024;

/// Writes parts; dropping it rolls back what is not committed.
pub struct Writer {
    connection: Connection,
    /// What was sent, and its end is not heard of yet, in order.
    sent: VecDeque<Sent>,
    begun: bool,
}

struct Sent {
    context: String,
    /// Of a COPY: rows that it must have taken.
    rows: Option<u64>,
    taken: Option<u64>,
}

impl Writer {
    /// Opens it, with these settings for the session.
    pub async fn open(dsn: &Dsn, name: &str, settings: &str) -> Result<Self, Error> {
        let mut connection = Connection::open(dsn, name, Purpose::Sql).await?;
        connection.query(settings, "prepare a copy session").await?;
        Ok(Self { connection, sent: VecDeque::new(), begun: false })
    }

    /// Begins a part with its COPY statement, and before it, where none is under way, a transaction with `first`.
    pub fn begin(&mut self, first: &str, copy: &str, context: &str) -> Result<(), Error> {
        if !self.begun {
            self.send(&format!("BEGIN; {first}"), "take part in the copy")?;
            self.begun = true;
        }
        self.send(copy, context)
    }

    /// Writes rows of it, in its COPY format, cut anywhere.
    pub async fn rows(&mut self, data: &[u8]) -> Result<(), Error> {
        self.connection.queue_copy(data)?;
        if self.connection.unsent() < SEND {
            return Ok(());
        }
        let flushed = self.connection.flush().await;
        flushed.map_err(|source| Error::Io { context: self.context(), source })
    }

    /// Ends it: so many rows were written. Whether the server has as many is known with the commit.
    pub fn end(&mut self, rows: u64) {
        if let Some(copy) = self.sent.back_mut() {
            copy.rows = Some(rows);
        }
        self.connection.queue_copy_done();
    }

    /// Commits with `last` what was written since the transaction began, once the server has all of it.
    pub async fn commit(&mut self, last: &str) -> Result<(), Error> {
        self.settle().await?;
        self.send(&format!("{last}; COMMIT"), "commit a part of the copy")?;
        self.begun = false;
        self.settle().await
    }

    fn send(&mut self, sql: &str, context: &str) -> Result<(), Error> {
        self.sent.push_back(Sent { context: context.to_owned(), rows: None, taken: None });
        self.connection.queue_query(sql)
    }

    fn context(&self) -> String {
        self.sent.front().map(|sent| sent.context.clone()).unwrap_or_default()
    }

    /// Until everything that was sent is answered. The first error is why the others are.
    async fn settle(&mut self) -> Result<(), Error> {
        while let Some(sent) = self.sent.front_mut() {
            let Frame { tag, body } = self.connection.frame(&sent.context).await?;
            match tag {
                b'E' => return Err(server_error(&sent.context, body)),
                b'C' => sent.taken = rows_of(&body),
                b'G' | b'T' | b'D' | b'N' | b'S' => {}
                b'Z' => {
                    if sent.rows.is_some() && sent.rows != sent.taken {
                        let (context, taken) = (&sent.context, sent.taken.unwrap_or_default());
                        let rows = sent.rows.unwrap_or_default();
                        return Err(Error::Protocol(format!("{context}: {taken} rows came of {rows}")));
                    }
                    self.sent.pop_front();
                }
                tag => return Err(unexpected(tag, &sent.context)),
            }
        }
        Ok(())
    }
}

/// Of a CommandComplete: `COPY 7`.
fn rows_of(body: &[u8]) -> Option<u64> {
    std::str::from_utf8(body).ok()?.trim_end_matches('\0').strip_prefix("COPY ")?.parse().ok()
}
