//! Which transactions are open, and what of them is in memory.

use std::collections::HashMap;

use super::Spill;
use super::log::{LargeTransaction, Log};
use crate::change::{Cell, Change, LargeHeader, OldRow, Row, Transaction};
use crate::error::Error;
use crate::pgoutput::Event;
use crate::session::is_own;
use crate::status::OpenWork;

/// From here on changes are kept encoded: as values they take several times the room.
const ENCODE_FROM: u64 = 256 << 10;

/// From here on a transaction goes in pieces, bytes encoded.
pub(crate) const LARGE_FROM: u64 = 4 << 20;

/// A transaction that is committed.
pub enum Committed {
    /// Held as a value.
    Whole(Transaction),
    /// Too large for that.
    Large(Box<LargeTransaction>),
}

/// The open transactions of one stream.
pub struct OpenTransactions {
    spill: Spill,
    open: HashMap<u32, Open>,
    /// Of all of them.
    memory: u64,
    disk: u64,
}

#[derive(Default)]
struct Open {
    /// Godwit wrote it: its changes are not kept.
    own: bool,
    small: Vec<(u32, Change)>,
    small_bytes: u64,
    log: Option<Log>,
}

impl Open {
    fn memory(&self) -> u64 {
        self.small_bytes + self.log.as_ref().map_or(0, Log::memory)
    }

    fn disk(&self) -> u64 {
        self.log.as_ref().map_or(0, Log::disk)
    }

    fn push(&mut self, sub: u32, change: Change) {
        if let Some(log) = &mut self.log {
            log.push(sub, &change);
            return;
        }
        self.small_bytes += weight(&change);
        self.small.push((sub, change));
        if self.small_bytes > ENCODE_FROM {
            self.encode();
        }
    }

    fn encode(&mut self) -> &mut Log {
        let small = std::mem::take(&mut self.small);
        self.small_bytes = 0;
        let log = self.log.get_or_insert_default();
        for (sub, change) in &small {
            log.push(*sub, change);
        }
        log
    }

    fn abort(&mut self, sub: u32) {
        if let Some(log) = &mut self.log {
            log.abort(sub);
            return;
        }
        self.small.retain(|(by, _)| *by != sub);
        self.small_bytes = self.small.iter().map(|(_, change)| weight(change)).sum();
    }
}

impl OpenTransactions {
    /// None is open.
    pub fn new(spill: Spill) -> Self {
        Self { spill, open: HashMap::new(), memory: 0, disk: 0 }
    }

    /// Takes what the stream told; gives the transaction that it committed, if it did.
    ///
    /// Not cancel-safe. After an error the stream must begin anew.
    pub async fn handle(&mut self, event: Event) -> Result<Option<Committed>, Error> {
        match event {
            Event::Change { xid, sub, change } => {
                let open = self.open.entry(xid).or_default();
                if !open.own {
                    let before = open.memory();
                    open.push(sub, change);
                    self.memory = self.memory + open.memory() - before;
                    self.bound().await?;
                }
                Ok(None)
            }
            Event::Origin { xid, name } => {
                if is_own(Some(&name)) {
                    self.close(xid);
                    self.open.insert(xid, Open { own: true, ..Open::default() });
                }
                Ok(None)
            }
            Event::Abort { xid, sub } => {
                if xid == sub {
                    self.close(xid);
                } else if let Some(open) = self.open.get_mut(&xid) {
                    let before = open.memory();
                    open.abort(sub);
                    self.memory = self.memory + open.memory() - before;
                }
                Ok(None)
            }
            Event::Commit(header) => self.commit(header).await.map(Some),
        }
    }

    async fn commit(&mut self, header: LargeHeader) -> Result<Committed, Error> {
        let open = self.close(header.xid).unwrap_or_default();
        let Some(log) = open.log else {
            return Ok(Committed::Whole(
                header.with(open.small.into_iter().map(|(_, change)| change).collect()),
            ));
        };
        let small = log.bytes() < LARGE_FROM && log.disk() == 0;
        let large = log.commit(header).await?;
        Ok(if small { Committed::Whole(large.whole().await?) } else { Committed::Large(Box::new(large)) })
    }

    fn close(&mut self, xid: u32) -> Option<Open> {
        let open = self.open.remove(&xid)?;
        self.memory -= open.memory();
        self.disk -= open.disk();
        Some(open)
    }

    /// Over the bound the largest go to the disk, as far as needed.
    async fn bound(&mut self) -> Result<(), Error> {
        while self.memory > self.spill.memory {
            let Some((xid, open)) = self.open.iter_mut().max_by_key(|(_, open)| open.memory()) else {
                return Ok(());
            };
            let (memory, disk) = (open.memory(), open.disk());
            if disk == 0 {
                tracing::debug!(xid, bytes = memory, "an open transaction goes to the disk");
            }
            open.encode().spill(&self.spill).await?;
            self.memory = self.memory + open.memory() - memory;
            self.disk = self.disk + open.disk() - disk;
        }
        Ok(())
    }

    /// What they take up.
    pub fn work(&self) -> OpenWork {
        OpenWork {
            transactions: u32::try_from(self.open.len()).unwrap_or(u32::MAX),
            memory_bytes: self.memory,
            disk_bytes: self.disk,
        }
    }
}

/// About what a change takes in memory.
pub(crate) fn weight(change: &Change) -> u64 {
    let row = |row: &Row| -> usize {
        let cells = row.iter().map(|cell| if let Cell::Text(text) = cell { text.len() } else { 0 });
        size_of_val(row.as_slice()) + cells.sum::<usize>()
    };
    let old = |old: &OldRow| match old {
        OldRow::Key(old) | OldRow::Full(old) => row(old),
    };
    let content = match change {
        Change::Insert { new, .. } => row(new),
        Change::Update { old: before, new, .. } => row(new) + before.as_ref().map_or(0, old),
        Change::Delete { old: before, .. } => old(before),
        Change::Truncate { relations, .. } => size_of_val(relations.as_slice()),
        Change::Message { prefix, content } => prefix.len() + content.len(),
    };
    (size_of::<(u32, Change)>() + content) as u64
}
