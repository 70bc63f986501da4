//! PostgreSQL's `pgoutput` messages (protocol version 2, no streaming of unfinished transactions) into [`Transaction`]s.
//!
//! Pure: bytes in, values out; no I/O, no clock. Whatever the bytes, the answer is a value or [`Error::Protocol`],
//! never a panic, and no length is believed before the bytes are there.
//!
//! Source: PostgreSQL documentation, section 55.9 "Logical Replication Message Formats".

mod message;
pub(crate) mod reader;

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;

use crate::change::{Change, OldRow, Relation, Row, Transaction};
use crate::error::Error;
use crate::lsn::Lsn;
use message::{Message, OldTuple};

/// Collects the messages between Begin and Commit.
///
/// It remembers the relations that the stream has described, so it lives as long as its replication connection and no
/// longer: the server describes every table anew on the next one. After an error it must be thrown away.
#[derive(Debug, Default)]
pub struct Decoder {
    relations: HashMap<u32, Arc<Relation>>,
    open: Option<Transaction>,
}

impl Decoder {
    /// A decoder for a fresh replication connection.
    pub fn new() -> Self {
        Self::default()
    }

    /// True between a Begin and its Commit.
    pub fn in_transaction(&self) -> bool {
        self.open.is_some()
    }

    /// Takes one message; gives the transaction that it completed, if it did.
    ///
    /// Non-transactional logical messages carry no order against transactions and are dropped.
    pub fn decode(&mut self, wal_message: Bytes) -> Result<Option<Transaction>, Error> {
        match Message::parse(wal_message)? {
            Message::Begin { final_lsn, commit_time, xid } => {
                if self.open.is_some() {
                    return Err(violation("a transaction begins inside another"));
                }
                self.open = Some(Transaction {
                    xid,
                    commit_lsn: final_lsn,
                    end_lsn: Lsn::ZERO,
                    commit_time,
                    origin: None,
                    changes: Vec::new(),
                });
            }
            Message::Commit { commit_lsn, end_lsn, commit_time } => {
                let mut transaction =
                    self.open.take().ok_or_else(|| violation("a commit outside a transaction"))?;
                if transaction.commit_lsn != commit_lsn {
                    return Err(violation(format!(
                        "transaction {} began for a commit at {} and committed at {commit_lsn}",
                        transaction.xid, transaction.commit_lsn
                    )));
                }
                transaction.end_lsn = end_lsn;
                transaction.commit_time = commit_time;
                return Ok(Some(transaction));
            }
            Message::Origin { name } => self.open_transaction("an origin")?.origin = Some(name),
            Message::Relation(relation) => {
                self.relations.insert(relation.id, Arc::new(relation));
            }
            Message::Insert { relation, new } => {
                let relation = self.relation(relation)?;
                fits(&relation, &new)?;
                self.push(Change::Insert { relation, new })?;
            }
            Message::Update { relation, old, new } => {
                let relation = self.relation(relation)?;
                fits(&relation, &new)?;
                let old = old.map(|old| old_row(&relation, old)).transpose()?;
                self.push(Change::Update { relation, old, new })?;
            }
            Message::Delete { relation, old } => {
                let relation = self.relation(relation)?;
                let old = old_row(&relation, old)?;
                self.push(Change::Delete { relation, old })?;
            }
            Message::Truncate { relations, cascade, restart_identity } => {
                let relations =
                    relations.into_iter().map(|id| self.relation(id)).collect::<Result<Vec<_>, _>>()?;
                self.push(Change::Truncate { relations, cascade, restart_identity })?;
            }
            Message::Logical { transactional: true, prefix, content } => {
                self.push(Change::Message { prefix, content })?;
            }
            Message::Type | Message::Logical { transactional: false, .. } => {}
        }
        Ok(None)
    }

    fn open_transaction(&mut self, what: &str) -> Result<&mut Transaction, Error> {
        self.open.as_mut().ok_or_else(|| violation(format!("{what} outside a transaction")))
    }

    fn push(&mut self, change: Change) -> Result<(), Error> {
        self.open_transaction("a change")?.changes.push(change);
        Ok(())
    }

    fn relation(&self, id: u32) -> Result<Arc<Relation>, Error> {
        self.relations
            .get(&id)
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
mod tests;
