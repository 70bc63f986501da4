//! The simulated link: messages on their way, everything that may happen to them, and an observer of the credit.

use std::collections::VecDeque;

use bytes::Bytes;
use rand::Rng;
use rand::rngs::SmallRng;

use crate::wire::compression::Decompressor;
use crate::wire::{self, Frame};

/// One direction.
#[derive(Debug, Default)]
pub(super) struct Way {
    /// With the bulk bytes in each.
    messages: VecDeque<(Bytes, u64)>,
    /// Reads along with whoever writes.
    observer: Option<Decompressor>,
    /// The side that writes has closed: an end follows the last message.
    pub(super) closed: bool,
    /// Everything disappears, unnoticed by the one who writes.
    pub(super) black_hole: bool,
    /// Bulk bytes that ever entered, and in what is under way.
    pub(super) bulk: u64,
    pub(super) in_flight: u64,
    /// The greatest credit that ever entered.
    pub(super) granted: u64,
}

/// Faults that the network below would hide and a broken one would not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    Lose,
    Duplicate,
    Swap,
    Damage,
}

impl Way {
    pub(super) fn new(zstd: bool) -> Self {
        Self { observer: zstd.then(|| Decompressor::new().expect("zstd")), ..Self::default() }
    }

    pub(super) fn enter(&mut self, message: Bytes) {
        let decoded = wire::decode_as(self.observer.as_mut(), message.clone()).expect("the sides speak well");
        if let Frame::Credit { granted } = decoded.frame {
            self.granted = self.granted.max(granted);
        }
        let bulk = decoded.frame.payload_len() as u64;
        self.bulk += bulk;
        if !self.black_hole && !self.closed {
            self.in_flight += bulk;
            self.messages.push_back((message, bulk));
        }
    }

    pub(super) fn leave(&mut self) -> Option<Bytes> {
        let (message, bulk) = self.messages.pop_front()?;
        self.in_flight -= bulk;
        Some(message)
    }

    /// Does it to the message that is next; false when there is none to do it to.
    pub(super) fn fault(&mut self, fault: Fault, rng: &mut SmallRng) -> bool {
        let Some((first, bulk)) = self.messages.front_mut() else { return false };
        match fault {
            Fault::Lose => {
                self.leave();
            }
            Fault::Duplicate => {
                self.in_flight += *bulk;
                let again = (first.clone(), *bulk);
                self.messages.push_front(again);
            }
            Fault::Swap => {
                if self.messages.len() < 2 {
                    return false;
                }
                self.messages.swap(0, 1);
            }
            Fault::Damage => {
                let mut bytes = first.to_vec();
                let at = rng.random_range(0..bytes.len());
                bytes[at] ^= 1 << rng.random_range(0..8);
                *first = bytes.into();
            }
        }
        true
    }
}
