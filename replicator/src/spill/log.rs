//! The changes of one transaction as a sequence of records, at first in memory, then on the disk.
//!
//! ```text
//! 0    4       8
//! sub  length  a table's description (sub = 0) or a change     (integers big-endian)
//! ```
//! Without `sub` a record is what goes over the link (see [`crate::wire::large`]), so reading is copying.

use std::collections::{HashSet, VecDeque};

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::Spill;
use super::file::{BLOCK, Reader, Writer};
use crate::change::{Change, LargeHeader, Transaction};
use crate::error::Error;
use crate::wire::transaction::{Encoder, put_change};
use crate::wire::{PIECE, large};

const HEADER: usize = 8;

/// What no subtransaction made.
const NOBODY: u32 = 0;

#[derive(Default)]
pub(super) struct Log {
    encoder: Encoder,
    /// Full blocks in memory, and the one that is being filled.
    blocks: VecDeque<Bytes>,
    filling: BytesMut,
    file: Option<Writer>,
    /// Bytes in memory.
    memory: u64,
    /// Bytes in all.
    bytes: u64,
    aborted: HashSet<u32>,
}

impl Log {
    pub(super) fn push(&mut self, sub: u32, change: &Change) {
        let Self { encoder, filling, .. } = self;
        let before = filling.len();
        encoder.describe(change, |put| record(filling, NOBODY, put));
        record(filling, sub, |out| put_change(out, change));
        let added = (self.filling.len() - before) as u64;
        self.memory += added;
        self.bytes += added;
        while self.filling.len() >= BLOCK {
            // A copy, so that each block is memory of its own.
            self.blocks.push_back(Bytes::copy_from_slice(&self.filling[..BLOCK]));
            if self.filling.len() > 2 * BLOCK {
                self.filling.advance(BLOCK);
            } else {
                let rest = self.filling.split_off(BLOCK);
                self.filling.clear();
                self.filling.extend_from_slice(&rest);
            }
        }
    }

    /// Leaves out what `sub` made.
    pub(super) fn abort(&mut self, sub: u32) {
        self.aborted.insert(sub);
    }

    pub(super) fn memory(&self) -> u64 {
        self.memory
    }

    pub(super) fn disk(&self) -> u64 {
        self.file.as_ref().map_or(0, Writer::bytes)
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Moves about a block of it to the disk, the oldest first: little at a time, so that nobody waits long for the disk. After an
    /// error the log is worth nothing.
    pub(super) async fn spill(&mut self, spill: &Spill) -> Result<(), Error> {
        let file = match &mut self.file {
            Some(file) => file,
            None => self.file.insert(Writer::create(&spill.directory).await?),
        };
        let block = self.blocks.pop_front().unwrap_or_else(|| std::mem::take(&mut self.filling).freeze());
        self.memory -= block.len() as u64;
        for block in block.chunks(BLOCK) {
            file.append(block).await?;
        }
        Ok(())
    }

    /// For reading, when it is committed.
    pub(super) async fn commit(self, header: LargeHeader) -> Result<LargeTransaction, Error> {
        let file = match self.file {
            Some(file) => Some(file.read().await?),
            None => None,
        };
        let mut blocks = self.blocks;
        blocks.push_back(self.filling.freeze());
        Ok(LargeTransaction {
            header,
            aborted: self.aborted,
            file,
            blocks,
            unread: Bytes::new(),
            head: BytesMut::with_capacity(HEADER),
            record: None,
            piece: BytesMut::new(),
        })
    }
}

fn record(out: &mut BytesMut, sub: u32, put: impl Fn(&mut BytesMut)) {
    let start = out.len();
    out.put_u32(sub);
    out.put_u32(0);
    put(out);
    let length = (out.len() - start - HEADER) as u32;
    out[start + 4..start + HEADER].copy_from_slice(&length.to_be_bytes());
}

/// A committed transaction that is read once, piece by piece.
pub struct LargeTransaction {
    header: LargeHeader,
    aborted: HashSet<u32>,
    file: Option<Reader>,
    blocks: VecDeque<Bytes>,
    unread: Bytes,
    /// The header of a record, as far as it has been read.
    head: BytesMut,
    /// What is left of the record being read, and whether it counts.
    record: Option<(usize, bool)>,
    piece: BytesMut,
}

impl LargeTransaction {
    /// What is known of it apart from its changes.
    pub fn header(&self) -> &LargeHeader {
        &self.header
    }

    /// The next piece of its records, as [`crate::wire::large::Decoder`] reads them; at most [`PIECE`] bytes. `None` at the end.
    ///
    /// Not cancel-safe.
    pub async fn next_piece(&mut self) -> Result<Option<Bytes>, Error> {
        while self.piece.len() < PIECE {
            if self.unread.is_empty() {
                let Some(block) = self.next_block().await? else { break };
                self.unread = block;
            }
            self.copy();
        }
        if self.piece.is_empty() {
            if self.record.is_some() || !self.head.is_empty() {
                return Err(Error::Protocol("a spilled transaction ends inside a record".into()));
            }
            return Ok(None);
        }
        let length = self.piece.len().min(PIECE);
        Ok(Some(self.piece.split_to(length).freeze()))
    }

    async fn next_block(&mut self) -> Result<Option<Bytes>, Error> {
        if let Some(file) = &mut self.file {
            if let Some(block) = file.next().await? {
                return Ok(Some(block));
            }
            self.file = None;
        }
        Ok(self.blocks.pop_front())
    }

    /// Moves what is unread into the piece until that is full, leaving out what was taken back.
    fn copy(&mut self) {
        while !self.unread.is_empty() && self.piece.len() < PIECE {
            let Some((left, counts)) = &mut self.record else {
                let wanted = HEADER - self.head.len();
                self.head.extend_from_slice(&self.unread.split_to(wanted.min(self.unread.len())));
                if self.head.len() == HEADER {
                    let (sub, length) = (self.head.get_u32(), self.head.get_u32() as usize);
                    self.head.clear();
                    let counts = !self.aborted.contains(&sub);
                    if counts {
                        large::put_record_header(&mut self.piece, length);
                    }
                    self.record = Some((length, counts));
                }
                continue;
            };
            let room = if *counts { PIECE.saturating_sub(self.piece.len()).max(1) } else { usize::MAX };
            let taken = self.unread.split_to((*left).min(room).min(self.unread.len()));
            if *counts {
                self.piece.extend_from_slice(&taken);
            }
            *left -= taken.len();
            if *left == 0 {
                self.record = None;
            }
        }
    }

    /// All of it at once: for transactions that turned out small.
    pub async fn whole(mut self) -> Result<Transaction, Error> {
        let mut decoder = large::Decoder::default();
        let mut changes = Vec::new();
        while let Some(piece) = self.next_piece().await? {
            decoder.feed(piece, &mut changes)?;
        }
        decoder.finish()?;
        Ok(self.header.with(changes))
    }
}
