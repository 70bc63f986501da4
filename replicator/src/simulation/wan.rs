//! The simulated link: messages on their way, everything that may happen to them, and an observer of the credit.

use std::collections::VecDeque;

use bytes::Bytes;
use rand::Rng;
use rand::rngs::SmallRng;

use crate::wire::{self, Frame};

/// One direction.
#[derive(Debug, Default)]
pub(super) struct Way {
    pub(super) messages: VecDeque<Bytes>,
    /// The side that writes has closed: an end follows the last message.
    pub(super) closed: bool,
    /// Everything disappears, unnoticed by the one who writes.
    pub(super) black_hole: bool,
    /// Bulk bytes that ever entered, and in what is under way.
    pub(super) bulk: u64,
    pub(super) under_way: u64,
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

fn bulk(message: &Bytes) -> u64 {
    wire::decode(message.clone()).map_or(0, |(_, frame)| frame.payload_len() as u64)
}

impl Way {
    pub(super) fn enter(&mut self, message: Bytes) {
        if let Ok((_, Frame::Credit { granted })) = wire::decode(message.clone()) {
            self.granted = self.granted.max(granted);
        }
        self.bulk += bulk(&message);
        if !self.black_hole && !self.closed {
            self.under_way += bulk(&message);
            self.messages.push_back(message);
        }
    }

    pub(super) fn leave(&mut self) -> Option<Bytes> {
        let message = self.messages.pop_front()?;
        self.under_way = self.under_way.saturating_sub(bulk(&message));
        Some(message)
    }

    /// Does it to the message that is next; false when there is none to do it to.
    pub(super) fn fault(&mut self, fault: Fault, rng: &mut SmallRng) -> bool {
        let Some(first) = self.messages.front_mut() else { return false };
        match fault {
            Fault::Lose => {
                self.leave();
            }
            Fault::Duplicate => {
                let again = first.clone();
                self.under_way += bulk(&again);
                self.messages.push_front(again);
            }
            Fault::Swap => {
                if self.messages.len() < 2 {
                    return false;
                }
                self.messages.swap(0, 1);
            }
            Fault::Damage => {
                self.under_way = self.under_way.saturating_sub(bulk(first));
                let mut bytes = first.to_vec();
                let at = rng.random_range(0..bytes.len());
                bytes[at] ^= 1 << rng.random_range(0..8);
                *first = bytes.into();
            }
        }
        true
    }
}
