//! What a session owes and is in the middle of, from the types of its messages alone: when it is between transactions.
//!
//! A *unit* is what the server answers with one ReadyForQuery: a simple query, a function call, or everything up to a Sync. A
//! client may send units before earlier ones are answered. During COPY from the client the server ignores Sync, also one that was
//! sent before the client knew that it would be a COPY; that one is never answered.

use std::collections::VecDeque;

/// What the last ReadyForQuery said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Status {
    /// Not in a transaction.
    #[default]
    Idle,
    /// In one.
    Open,
    /// In one that failed.
    Failed,
}

impl Status {
    /// As the message has it.
    pub fn read(byte: u8) -> Option<Self> {
        match byte {
            b'I' => Some(Self::Idle),
            b'T' => Some(Self::Open),
            b'E' => Some(Self::Failed),
            _ => None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    Simple,
    Synced,
}

/// Follows one session.
#[derive(Debug, Default)]
pub struct Tracker {
    status: Status,
    /// Units sent and not answered, the oldest first.
    owed: VecDeque<Unit>,
    /// Messages were sent that a Sync must follow.
    batch: bool,
    /// The server takes COPY data.
    copying: bool,
}

/// What a message of the client did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// It belongs to a unit that is not complete.
    Part,
    /// It completed one.
    Unit,
    /// The client says goodbye.
    Goodbye,
}

impl Tracker {
    /// The client's message of this type goes to the server.
    pub fn sent(&mut self, tag: u8) -> Sent {
        match tag {
            b'Q' | b'F' => {
                // A batch without a Sync ends with it, as at the server: JDBC closes a statement so.
                self.batch = false;
                self.owed.push_back(Unit::Simple);
                return Sent::Unit;
            }
            b'S' if !self.copying => {
                self.batch = false;
                self.owed.push_back(Unit::Synced);
                return Sent::Unit;
            }
            b'P' | b'B' | b'E' | b'D' | b'C' if !self.copying => self.batch = true,
            b'c' | b'f' => self.copying = false,
            b'X' => return Sent::Goodbye,
            _ => {}
        }
        Sent::Part
    }

    /// The server asks for COPY data.
    pub fn copy_begins(&mut self) {
        self.copying = true;
        match self.owed.front() {
            Some(Unit::Simple) => self.owed.truncate(1),
            // The Syncs behind it are ignored: the unit goes on until the one after the copy.
            _ => {
                self.owed.clear();
                self.batch = true;
            }
        }
    }

    /// The server reports an error: it takes no COPY data any more.
    pub fn failed(&mut self) {
        self.copying = false;
    }

    /// The server is ready for the next unit. Whether everything is answered.
    pub fn ready(&mut self, status: Status) -> bool {
        self.status = status;
        self.copying = false;
        self.owed.pop_front();
        if self.owed.is_empty() && self.owed.capacity() > 64 {
            self.owed = VecDeque::new();
        }
        self.owed.is_empty()
    }

    /// What the last ReadyForQuery said.
    pub fn status(&self) -> Status {
        self.status
    }

    /// Units are not answered.
    pub fn owes(&self) -> bool {
        !self.owed.is_empty()
    }

    /// How many.
    pub fn owed(&self) -> usize {
        self.owed.len()
    }

    /// The client's next message belongs to a unit that has begun.
    pub fn within_unit(&self) -> bool {
        self.batch || self.copying
    }

    /// Between transactions: nothing sent, nothing owed.
    pub fn at_boundary(&self) -> bool {
        self.status == Status::Idle && self.owed.is_empty() && !self.within_unit()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn send(tracker: &mut Tracker, tags: &[u8]) {
        for tag in tags {
            tracker.sent(*tag);
        }
    }

    #[test]
    fn a_transaction_has_no_boundary_inside() {
        let mut tracker = Tracker::default();
        assert!(tracker.at_boundary());
        send(&mut tracker, b"Q");
        assert!(tracker.owes() && !tracker.at_boundary());
        assert!(tracker.ready(Status::Open));
        assert!(!tracker.at_boundary() && !tracker.within_unit());
        send(&mut tracker, b"Q");
        assert!(tracker.ready(Status::Idle));
        assert!(tracker.at_boundary());
    }

    #[test]
    fn pipelined_units_are_counted() {
        let mut tracker = Tracker::default();
        send(&mut tracker, b"PBES");
        send(&mut tracker, b"PBE");
        assert!(tracker.within_unit());
        assert!(tracker.ready(Status::Idle));
        assert!(!tracker.at_boundary(), "an unfinished batch");
        send(&mut tracker, b"SQ");
        assert!(!tracker.ready(Status::Idle));
        assert!(tracker.ready(Status::Idle));
        assert!(tracker.at_boundary());
    }

    #[test]
    fn a_query_ends_a_batch_without_a_sync() {
        for unit in [b"CQ", b"CF"] {
            let mut tracker = Tracker::default();
            send(&mut tracker, unit);
            assert!(!tracker.at_boundary());
            assert!(tracker.ready(Status::Idle));
            assert!(tracker.at_boundary());
        }
    }

    #[test]
    fn a_sync_before_a_copy_is_never_answered() {
        // libpq: Sync goes with the Execute, and once more after the data.
        let mut tracker = Tracker::default();
        send(&mut tracker, b"PBDES");
        tracker.copy_begins();
        assert!(!tracker.owes() && tracker.within_unit());
        send(&mut tracker, b"ddc");
        assert!(!tracker.at_boundary());
        send(&mut tracker, b"S");
        assert!(tracker.ready(Status::Idle) && tracker.at_boundary());
        // Sync that comes during the copy.
        send(&mut tracker, b"PBE");
        tracker.copy_begins();
        send(&mut tracker, b"Sddc");
        assert!(!tracker.owes());
        send(&mut tracker, b"S");
        assert!(tracker.ready(Status::Idle) && tracker.at_boundary());
    }

    #[test]
    fn a_simple_copy_is_one_unit() {
        let mut tracker = Tracker::default();
        send(&mut tracker, b"Q");
        tracker.copy_begins();
        send(&mut tracker, b"ddc");
        assert!(tracker.owes() && !tracker.at_boundary());
        assert!(tracker.ready(Status::Idle) && tracker.at_boundary());
        // The server gives up in the middle; the client does not know yet.
        send(&mut tracker, b"Q");
        tracker.copy_begins();
        send(&mut tracker, b"d");
        tracker.failed();
        assert!(tracker.ready(Status::Idle));
        send(&mut tracker, b"dc");
        assert!(tracker.at_boundary());
    }
}
