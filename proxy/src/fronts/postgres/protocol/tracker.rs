//! What a session owes and is in the middle of, from the types of its messages alone: when it is between transactions.
//!
//! A *unit* is what the server answers with one ReadyForQuery: a simple query, a function call, or everything up to a Sync. A
//! client may send units before earlier ones are answered. During COPY from the client the server ignores Sync, also one that was
//! sent before the client knew that it would be a COPY; that one is never answered. A client may also send the copy, to its end, before
//! the server has asked for it: what follows that end is answered.
//!
//! Where such a COPY fails it cannot be told which Syncs the server ignored before it did, and so not how many answers are still to
//! come: see [`Tracker::is_unsure`].

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
enum Owed {
    Simple,
    Synced,
    /// Nothing is answered to it: the end of a copy that the server had not asked for when it was sent. `batch`: it belongs to messages that
    /// a Sync must follow, not to the unit before it.
    CopyEnd {
        batch: bool,
    },
}

/// Follows one session.
#[derive(Debug, Default)]
pub struct Tracker {
    status: Status,
    /// Units sent and not answered, the oldest first, and ends of copies between them.
    owed: VecDeque<Owed>,
    /// How many units are among them.
    units: usize,
    /// Messages were sent that a Sync must follow.
    batch: bool,
    /// The server takes COPY data.
    copying: bool,
    /// More than the copy was sent before its end, which the server ignores, unless the copy has failed before.
    ignores: bool,
    unsure: bool,
}

/// What a message of the client did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// It belongs to a unit that is not complete.
    Part,
    /// It completed one.
    Unit,
    /// It ends a copy that the server has not asked for yet. `batch`: of a unit that is not complete.
    CopyEnd {
        /// See there.
        batch: bool,
    },
    /// The client says goodbye.
    Goodbye,
}

impl Tracker {
    /// The client's message of this type goes to the server.
    pub fn sent(&mut self, tag: u8) -> Sent {
        self.ignores |= self.copying && !matches!(tag, b'd' | b'c' | b'f' | b'H');
        match tag {
            b'Q' | b'F' => {
                // A batch without a Sync ends with it, as at the server: JDBC closes a statement so.
                self.batch = false;
                return self.unit(Owed::Simple);
            }
            b'S' if !self.copying => {
                self.batch = false;
                return self.unit(Owed::Synced);
            }
            b'P' | b'B' | b'E' | b'D' | b'C' if !self.copying => self.batch = true,
            b'c' | b'f' if self.copying => self.copying = false,
            b'c' | b'f' if self.owes() || self.batch => {
                let batch = self.batch;
                self.owed.push_back(Owed::CopyEnd { batch });
                return Sent::CopyEnd { batch };
            }
            b'X' => return Sent::Goodbye,
            _ => {}
        }
        Sent::Part
    }

    fn unit(&mut self, unit: Owed) -> Sent {
        self.owed.push_back(unit);
        self.units += 1;
        Sent::Unit
    }

    /// The server asks for COPY data.
    pub fn copy_begins(&mut self) {
        let end = self.owed.iter().position(|owed| matches!(owed, Owed::CopyEnd { .. }));
        self.copying = end.is_none();
        if let Some(end) = end {
            self.owed.remove(end);
        }
        // Nothing but a Sync is ignored. A client that waits for nothing does not send one behind a simple query.
        if self.owed.front() == Some(&Owed::Simple) {
            return;
        }
        // The Syncs before the end of the copy are ignored: the unit goes on until the one after it.
        let mut left = end.unwrap_or(self.owed.len());
        let before = self.owed.len();
        self.owed.retain(|owed| {
            let within = left > 0;
            left = left.saturating_sub(1);
            !within || *owed != Owed::Synced
        });
        let ignored = before - self.owed.len();
        self.units -= ignored;
        self.ignores |= ignored > 0;
        self.batch |= self.copying || self.units == 0;
    }

    /// The server reports an error: it takes no COPY data any more.
    pub fn failed(&mut self) {
        self.copying = false;
        self.unsure |= self.ignores;
    }

    /// The server is ready for the next unit. Whether everything is answered.
    pub fn ready(&mut self, status: Status) -> bool {
        self.status = status;
        (self.copying, self.ignores) = (false, false);
        // Ends of copies that never began are ignored, too.
        while let Some(Owed::CopyEnd { .. }) = self.owed.front() {
            self.owed.pop_front();
        }
        if self.owed.pop_front().is_some() {
            self.units -= 1;
        }
        while let Some(Owed::CopyEnd { batch: false }) = self.owed.front() {
            self.owed.pop_front();
        }
        if self.owed.is_empty() && self.owed.capacity() > 64 {
            self.owed = VecDeque::new();
        }
        !self.owes()
    }

    /// A copy has failed behind which more had been sent: answers may still come when everything seems to be answered. Nobody else may have
    /// this connection.
    pub fn is_unsure(&self) -> bool {
        self.unsure
    }

    /// What is sent from here on goes to another connection, on which nothing was sent.
    pub fn moved(&mut self) {
        self.unsure = false;
    }

    /// What the last ReadyForQuery said.
    pub fn status(&self) -> Status {
        self.status
    }

    /// Units are not answered.
    pub fn owes(&self) -> bool {
        self.units > 0
    }

    /// How many.
    pub fn owed(&self) -> usize {
        self.units
    }

    /// The client's next message belongs to a unit that has begun.
    pub fn within_unit(&self) -> bool {
        self.batch || self.copying
    }

    /// Between transactions: nothing sent, nothing owed.
    pub fn at_boundary(&self) -> bool {
        self.status == Status::Idle && !self.owes() && !self.within_unit()
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

    #[test]
    fn a_copy_may_be_sent_before_it_is_asked_for() {
        let mut tracker = Tracker::default();
        send(&mut tracker, b"QdcQ");
        assert_eq!(tracker.owed(), 2);
        tracker.copy_begins();
        assert!(!tracker.ready(Status::Idle) && !tracker.at_boundary(), "the second query runs");
        assert!(tracker.ready(Status::Idle) && tracker.at_boundary());
        // With several copies in a query, and where it copies nothing.
        send(&mut tracker, b"QdcddcPBES");
        tracker.copy_begins();
        tracker.copy_begins();
        assert!(!tracker.ready(Status::Idle) && tracker.ready(Status::Idle) && tracker.at_boundary());
        send(&mut tracker, b"QdcQ");
        tracker.failed();
        assert!(!tracker.ready(Status::Idle) && tracker.ready(Status::Idle) && tracker.at_boundary());
        // By Execute; also behind another unit, and with the Sync that is ignored.
        for (messages, units) in [(&b"PBEdcS"[..], 1), (b"QPBEdcS", 2), (b"PBESdcS", 2), (b"PBESPBESdfS", 3)]
        {
            send(&mut tracker, messages);
            assert_eq!(tracker.owed(), units);
            if units == 3 || messages.starts_with(b"Q") {
                assert!(!tracker.ready(Status::Idle));
            }
            tracker.copy_begins();
            assert!(tracker.owed() == 1 && !tracker.at_boundary());
            assert!(tracker.ready(Status::Idle) && tracker.at_boundary(), "{messages:?}");
        }
        // The Sync behind it is still to come.
        send(&mut tracker, b"PBESdc");
        tracker.copy_begins();
        assert!(!tracker.at_boundary());
        send(&mut tracker, b"S");
        assert!(tracker.ready(Status::Idle) && tracker.at_boundary() && !tracker.is_unsure());
    }

    #[test]
    fn what_a_copy_that_failed_had_ignored_is_not_known() {
        // The first row is wrong: the Sync, or what follows it, is answered.
        for (ahead, meanwhile) in
            [(&b"PBEdSQ"[..], &b""[..]), (b"PBESPBES", b""), (b"Q", b"dSPBES"), (b"Q", b"dQdcQ")]
        {
            let mut tracker = Tracker::default();
            send(&mut tracker, ahead);
            tracker.copy_begins();
            send(&mut tracker, meanwhile);
            assert!(!tracker.is_unsure());
            tracker.failed();
            assert!(tracker.is_unsure(), "{ahead:?} {meanwhile:?}");
            tracker.ready(Status::Idle);
            assert!(tracker.is_unsure());
            tracker.moved();
            assert!(!tracker.is_unsure());
        }
        // What is sent behind a simple query is answered whatever becomes of the copy.
        let mut tracker = Tracker::default();
        send(&mut tracker, b"QdQ");
        tracker.copy_begins();
        tracker.failed();
        assert!(!tracker.ready(Status::Idle) && !tracker.is_unsure());
        assert!(tracker.ready(Status::Idle) && tracker.at_boundary());
    }
}
