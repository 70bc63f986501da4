//! A checker of list-append histories, after Elle (Kingsbury and Alvaro, "Elle: Inferring Isolation Anomalies from
//! Experimental Observations", VLDB 2020).
//!
//! Clients run transactions that append values, each given once in the whole history, to lists and read whole lists. Since a
//! list shows the order in which it was written, reads give the order of versions, and from that follows who must have come
//! before whom: `ww` (wrote the version before), `wr` (read what the other wrote), `rw` (read the version before the other's
//! write), and from the clients' clocks `rt` (its answer was there before the other was sent). A circle is an anomaly; so is a
//! write that was acknowledged before a read began and that the read does not see.
//!
//! - `orders` versions of each list;
//! - `graph` who came before whom, and circles;
//! - [`check()`] all of it, as a [`Verdict`].
//!
//! Pure: no clock, no I/O. It never explains an anomaly away: what PostgreSQL's SERIALIZABLE on one server forbids is an anomaly.

mod check;
mod graph;
mod orders;
#[cfg(test)]
mod tests;

pub use check::{Anomaly, Kind, Verdict, check};

/// One operation of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Appends a value that no other operation of the history appends.
    Append {
        /// Which list.
        list: u64,
        /// The value.
        value: u64,
    },
    /// Reads a whole list.
    Read {
        /// Which list.
        list: u64,
        /// What was there; none: the answer is not known.
        seen: Option<Vec<u64>>,
    },
}

/// What the client was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is committed.
    Committed,
    /// Nothing of it was done.
    Aborted,
    /// It may be committed, now or later.
    Unknown,
}

/// One transaction as its client saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transaction {
    /// Before it was sent: any clock that does not go back, the same for all clients.
    pub began: u64,
    /// After its answer; none: there was none.
    pub ended: Option<u64>,
    /// What the client was told.
    pub fate: Fate,
    /// In the order in which they ran.
    pub ops: Vec<Op>,
}

/// What clients did and saw; the order of transactions means nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    /// All of them.
    pub transactions: Vec<Transaction>,
}
