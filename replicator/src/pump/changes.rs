//! Where a source's changes come from: its stream, or what its slot retains.

use std::convert::Infallible;

use crate::change::{Change, LargeHeader};
use crate::error::Error;
use crate::lsn::Lsn;
use crate::pgoutput::Event;
use crate::postgres::backlog::{Backlog, Retained};
use crate::postgres::stream::{Feedback, ReplicationStream, StreamEvent};
use crate::session::{Sender, is_own};
use crate::spill::{LARGE_FROM, weight};
use crate::wire::large::Encoder;

/// What is read.
pub(super) enum Changes {
    /// As it happens.
    Live(ReplicationStream),
    /// What happened long ago.
    Retained(Box<Backlog>, Forward),
}

/// What comes out of it.
pub(super) enum Found {
    Live(StreamEvent),
    Retained(Retained),
}

impl Changes {
    pub(super) fn try_next(&mut self) -> Result<Option<Found>, Error> {
        Ok(match self {
            Self::Live(stream) => stream.try_next()?.map(Found::Live),
            Self::Retained(backlog, _) => backlog.try_next()?.map(Found::Retained),
        })
    }

    /// The next event if `read`; otherwise nothing is read, reports still go out, and only an error ends it. Cancel-safe.
    pub(super) async fn next_or_hold(&mut self, read: bool) -> Result<Found, Error> {
        let never: Infallible = match self {
            Self::Live(stream) if read => return stream.next().await.map(Found::Live),
            Self::Retained(backlog, _) if read => return backlog.next().await.map(Found::Retained),
            Self::Live(stream) => stream.hold().await?,
            Self::Retained(..) => std::future::pending().await,
        };
        match never {}
    }

    /// The newest position of the server that was heard of.
    pub(super) fn newest(&self) -> Lsn {
        match self {
            Self::Live(stream) => stream.wal_end(),
            Self::Retained(backlog, _) => backlog.newest(),
        }
    }

    /// Tells the server how far the target is.
    pub(super) fn report(&mut self, feedback: Feedback) -> Result<(), Error> {
        match self {
            Self::Live(stream) => stream.queue_report(feedback),
            Self::Retained(backlog, _) => {
                backlog.set_durable(feedback.flush);
                Ok(())
            }
        }
    }
}

/// A committed transaction whose changes are handed on while they are read: it needs no room of its own, on no disk.
#[derive(Default)]
pub(super) struct Forward {
    changes: Vec<Change>,
    weight: u64,
    /// It goes in pieces, and has begun to.
    large: Option<Encoder>,
    /// Not for the other side.
    skipped: bool,
}

impl Forward {
    /// Takes what the backlog told of a transaction that is known as `begun` so far.
    pub(super) fn handle(
        &mut self,
        event: Event,
        begun: Option<&LargeHeader>,
        machine: &mut Sender,
    ) -> Result<(), Error> {
        let now = crate::clock::now();
        match event {
            Event::Origin { name, .. } => self.skipped |= is_own(Some(&name)),
            Event::Change { .. } if self.skipped => {}
            Event::Change { change, .. } => {
                if let Some(encoder) = &mut self.large {
                    encoder.push(&change);
                } else {
                    self.weight += weight(&change);
                    self.changes.push(change);
                    if self.weight > LARGE_FROM {
                        self.begin_large(begun, machine)?;
                    }
                }
                self.pieces(machine);
            }
            Event::Commit(header) => {
                let Self { changes, large, skipped, .. } = std::mem::take(self);
                let end = header.end_lsn;
                match large {
                    Some(encoder) => {
                        if let Some(piece) = encoder.finish() {
                            machine.handle_large_piece(piece, now);
                        }
                        machine.handle_large_end(now);
                        machine.handle_position(end, now);
                    }
                    None if skipped => machine.handle_position(end, now),
                    None => machine.handle_transaction(&header.with(changes), now)?,
                }
            }
            Event::Abort { xid, .. } => {
                return Err(Error::Protocol(format!("a backlog takes transaction {xid} back")));
            }
        }
        Ok(())
    }

    fn begin_large(&mut self, begun: Option<&LargeHeader>, machine: &mut Sender) -> Result<(), Error> {
        let begun = begun.ok_or_else(|| Error::Protocol("a change outside a transaction".into()))?;
        // Where it ends is known at its end. One byte into its commit record is past the transaction for everyone: who goes on
        // from there does not get it again.
        let end = Lsn(begun.commit_lsn.0 + 1);
        let header = LargeHeader { end_lsn: end, ..begun.clone() };
        let changes = std::mem::take(&mut self.changes);
        if !machine.handle_large(&header, crate::clock::now()) {
            self.skipped = true;
            return Ok(());
        }
        let encoder = self.large.insert(Encoder::default());
        for change in &changes {
            encoder.push(change);
        }
        Ok(())
    }

    fn pieces(&mut self, machine: &mut Sender) {
        if let Some(encoder) = &mut self.large {
            while let Some(piece) = encoder.poll_piece() {
                machine.handle_large_piece(piece, crate::clock::now());
            }
        }
    }
}
