//! PostgreSQL's `pgoutput` messages (protocol version 2 with `streaming`) into [`Event`]s.
//!
//! A transaction that the server finishes decoding comes whole, between Begin and Commit. One that outgrows the server's
//! `logical_decoding_work_mem` comes while it still runs, in blocks between those of others, and ends with a commit or is
//! taken back; a savepoint in it may be taken back alone. Both look the same here: changes under a transaction id, then an
//! end.
//!
//! Pure: bytes in, values out; no I/O, no clock. Whatever the bytes, the answer is a value or [`Error::Protocol`],
//! never a panic, and no length is believed before the bytes are there.
//!
//! Source: PostgreSQL documentation, section 55.9 "Logical Replication Message Formats".

mod message;
pub(crate) mod reader;

use std::sync::Arc;

use crate::change::{Change, LargeHeader, OldRow, Relation, Row};
use crate::error::Error;
use crate::hash::HashMap;
use bytes::Bytes;
use message::{CommitRecord, Message, OldTuple};

/// What one message tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A change of a transaction that has not ended yet.
    Change {
        /// The transaction.
        xid: u32,
        /// The subtransaction that made it; `xid` outside savepoints.
        sub: u32,
        /// What was done.
        change: Change,
    },
    /// The transaction was written by another applier. Comes before its changes, perhaps again and again.
    Origin {
        /// The transaction.
        xid: u32,
        /// Name of the replication origin.
        name: String,
    },
    /// The transaction is committed; it may have brought no change.
    Commit(LargeHeader),
    /// The transaction never happened (`sub` = `xid`), or the part of it that subtransaction `sub` made.
    Abort {
        /// The transaction.
        xid: u32,
        /// What of it is taken back.
        sub: u32,
    },
}

type Relations = HashMap<u32, Arc<Relation>>;

/// Follows the open transactions of one stream.
///
/// It remembers the relations that the stream has described, so it lives as long as its replication connection and no
/// longer: the server describes every table anew on the next one. After an error it must be thrown away.
#[derive(Debug, Default)]
pub struct Decoder {
    relations: Relations,
    /// Between Begin and Commit.
    open: Option<LargeHeader>,
    /// Begun in blocks, not ended yet.
    streamed: HashMap<u32, Streamed>,
    /// The transaction whose block is being received.
    block: Option<u32>,
}

/// What it describes counts for itself only, until it is committed: it may have altered the table.
#[derive(Debug, Default)]
struct Streamed {
    origin: Option<String>,
    relations: Relations,
}

impl Decoder {
    /// A decoder for a fresh replication connection.
    pub fn new() -> Self {
        Self::default()
    }

    /// The transaction between whose Begin and Commit the stream is; where it ends is not known yet.
    pub(crate) fn begun(&self) -> Option<&LargeHeader> {
        self.open.as_ref()
    }

    /// Takes one message.
    ///
    /// Non-transactional logical messages carry no order against transactions and are dropped.
    pub fn decode(&mut self, wal_message: Bytes) -> Result<Option<Event>, Error> {
        let (message, sub) = Message::parse(wal_message, self.block.is_some())?;
        match message {
            Message::Begin { final_lsn, commit_time, xid } => {
                self.nothing_open("a transaction begins")?;
                self.open =
                    Some(LargeHeader { xid, commit_lsn: final_lsn, commit_time, ..LargeHeader::default() });
                Ok(None)
            }
            Message::Commit(commit) => self.commit(&commit).map(Some),
            Message::StreamStart { xid, first } => {
                self.nothing_open("a block of a transaction begins")?;
                if !first && !self.streamed.contains_key(&xid) {
                    return Err(violation(format!("transaction {xid} goes on that never began")));
                }
                self.streamed.entry(xid).or_default();
                self.block = Some(xid);
                Ok(None)
            }
            Message::StreamStop => match self.block.take() {
                Some(_) => Ok(None),
                None => Err(violation("a block ends that never began")),
            },
            Message::StreamCommit { xid, commit } => self.stream_commit(xid, commit).map(Some),
            Message::StreamAbort { xid, sub } => {
                self.nothing_open("a transaction is taken back")?;
                if xid == sub {
                    self.streamed.remove(&xid);
                }
                Ok(Some(Event::Abort { xid, sub }))
            }
            Message::Origin { name } => self.origin(name).map(Some),
            Message::Relation(relation) => {
                let known = match self.block.and_then(|xid| self.streamed.get_mut(&xid)) {
                    Some(streamed) => &mut streamed.relations,
                    None => &mut self.relations,
                };
                known.insert(relation.id, Arc::new(relation));
                Ok(None)
            }
            Message::Type | Message::Logical { transactional: false, .. } => Ok(None),
            change => {
                let change = self.change(change)?;
                let xid = self.xid("a change")?;
                Ok(Some(Event::Change { xid, sub: sub.unwrap_or(xid), change }))
            }
        }
    }

    fn commit(&mut self, commit: &CommitRecord) -> Result<Event, Error> {
        let mut header = self.open.take().ok_or_else(|| violation("a commit outside a transaction"))?;
        if header.commit_lsn != commit.commit_lsn {
            return Err(violation(format!(
                "transaction {} began for a commit at {} and committed at {}",
                header.xid, header.commit_lsn, commit.commit_lsn
            )));
        }
        header.end_lsn = commit.end_lsn;
        header.commit_time = commit.commit_time;
        Ok(Event::Commit(header))
    }

    fn stream_commit(&mut self, xid: u32, commit: CommitRecord) -> Result<Event, Error> {
        self.nothing_open("a transaction is committed")?;
        let streamed = self
            .streamed
            .remove(&xid)
            .ok_or_else(|| violation(format!("transaction {xid} is committed that never began")))?;
        self.relations.extend(streamed.relations);
        let CommitRecord { commit_lsn, end_lsn, commit_time } = commit;
        Ok(Event::Commit(LargeHeader { xid, commit_lsn, end_lsn, commit_time, origin: streamed.origin }))
    }

    fn origin(&mut self, name: String) -> Result<Event, Error> {
        let xid = self.xid("an origin")?;
        let origin = match (&mut self.open, self.streamed.get_mut(&xid)) {
            (Some(header), _) => &mut header.origin,
            (None, Some(streamed)) => &mut streamed.origin,
            (None, None) => return Err(violation("an origin outside a transaction")),
        };
        *origin = Some(name.clone());
        Ok(Event::Origin { xid, name })
    }

    fn change(&self, message: Message) -> Result<Change, Error> {
        Ok(match message {
            Message::Insert { relation, new } => {
                let relation = self.relation(relation)?;
                fits(&relation, &new)?;
                Change::Insert { relation, new }
            }
            Message::Update { relation, old, new } => {
                let relation = self.relation(relation)?;
                fits(&relation, &new)?;
                let old = old.map(|old| old_row(&relation, old)).transpose()?;
                Change::Update { relation, old, new }
            }
            Message::Delete { relation, old } => {
                let relation = self.relation(relation)?;
                let old = old_row(&relation, old)?;
                Change::Delete { relation, old }
            }
            Message::Truncate { relations, cascade, restart_identity } => {
                let relations =
                    relations.into_iter().map(|id| self.relation(id)).collect::<Result<Vec<_>, _>>()?;
                Change::Truncate { relations, cascade, restart_identity }
            }
            Message::Logical { prefix, content, .. } => Change::Message { prefix, content },
            other => return Err(violation(format!("{other:?} is not a change"))),
        })
    }

    fn nothing_open(&self, what: &str) -> Result<(), Error> {
        if self.open.is_none() && self.block.is_none() {
            return Ok(());
        }
        Err(violation(format!("{what} inside another")))
    }

    fn xid(&self, what: &str) -> Result<u32, Error> {
        let open = self.block.or(self.open.as_ref().map(|header| header.xid));
        open.ok_or_else(|| violation(format!("{what} outside a transaction")))
    }

    fn relation(&self, id: u32) -> Result<Arc<Relation>, Error> {
        let own = self.block.and_then(|xid| self.streamed.get(&xid)?.relations.get(&id));
        own.or_else(|| self.relations.get(&id))
            .cloned()
            .ok_or_else(|| violation(format!("relation {id} was never described")))
    }
}

fn old_row(relation: &Relation, old: OldTuple) -> Result<OldRow, Error> {
    let old = match old {
        OldTuple::Key(row) => OldRow::Key(row),
        OldTuple::Full(row) => OldRow::Full(row),
    };
    let (OldRow::Key(row) | OldRow::Full(row)) = &old;
    fits(relation, row)?;
    Ok(old)
}

fn fits(relation: &Relation, row: &Row) -> Result<(), Error> {
    if row.len() == relation.columns.len() {
        return Ok(());
    }
    Err(violation(format!(
        "a row of {} values for {}.{}, which has {} columns",
        row.len(),
        relation.schema,
        relation.name,
        relation.columns.len()
    )))
}

fn violation(what: impl Into<String>) -> Error {
    Error::Protocol(what.into())
}

#[cfg(test)]
pub(crate) mod tests;
