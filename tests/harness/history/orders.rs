//! The order of versions of each list, from what was read of it.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::check::{Anomaly, Kind};
use super::{Fate, History, Op};

/// A value that was appended.
#[derive(Clone, Copy, Debug)]
pub(super) struct Write {
    /// Index of the transaction.
    pub(super) by: usize,
    /// It is the last that this transaction appended to the list.
    pub(super) last: bool,
}

/// What a transaction read of a list.
#[derive(Clone, Copy, Debug)]
pub(super) struct Read {
    pub(super) by: usize,
    pub(super) list: u64,
    /// Length of the version, the transaction's own appends included.
    pub(super) length: usize,
}

/// Everything that is known of versions.
#[derive(Debug, Default)]
pub(super) struct Orders {
    /// The longest version of each list that anybody read.
    pub(super) versions: BTreeMap<u64, Vec<u64>>,
    /// Who appended what.
    pub(super) writes: HashMap<(u64, u64), Write>,
    /// Reads of transactions that were not aborted.
    pub(super) reads: Vec<Read>,
}

impl Orders {
    /// Reads the history; what is wrong with single reads goes to `found`.
    pub(super) fn of(history: &History, found: &mut Vec<Anomaly>) -> Self {
        let mut orders = Self::default();
        orders.note_writes(history, found);
        let reads = Self::committed_reads(history, found);
        for (_, list, seen) in &reads {
            let longest = orders.versions.entry(*list).or_default();
            if seen.len() > longest.len() {
                longest.clone_from(seen);
            }
        }
        for (by, list, seen) in reads {
            let longest = &orders.versions[&list];
            if longest[..seen.len()] == seen {
                orders.reads.push(Read { by, list, length: seen.len() });
            } else {
                let text = format!("list {list} was read as {seen:?} and as {longest:?}");
                found.push(Anomaly::new(Kind::IncompatibleOrders, [by], text));
            }
        }
        orders.check_values(history, found);
        orders
    }

    fn note_writes(&mut self, history: &History, found: &mut Vec<Anomaly>) {
        for (by, transaction) in history.transactions.iter().enumerate() {
            let mut lists = HashSet::new();
            for op in transaction.ops.iter().rev() {
                let Op::Append { list, value } = op else { continue };
                let write = Write { by, last: lists.insert(*list) };
                if let Some(other) = self.writes.insert((*list, *value), write) {
                    let text = format!("value {value} is appended to list {list} twice: this proves nothing");
                    found.push(Anomaly::new(Kind::BadTest, [other.by, by], text));
                }
            }
        }
    }

    /// Reads of committed transactions. Their own appends must be at the end, and nothing else may move under their feet.
    fn committed_reads(history: &History, found: &mut Vec<Anomaly>) -> Vec<(usize, u64, Vec<u64>)> {
        let mut reads = Vec::new();
        for (by, transaction) in history.transactions.iter().enumerate() {
            if transaction.fate != Fate::Committed {
                continue;
            }
            let mut own: HashMap<u64, Vec<u64>> = HashMap::new();
            let mut before: HashMap<u64, Vec<u64>> = HashMap::new();
            for op in &transaction.ops {
                match op {
                    Op::Append { list, value } => own.entry(*list).or_default().push(*value),
                    Op::Read { seen: None, .. } => {}
                    Op::Read { list, seen: Some(seen) } => {
                        let own = own.get(list).map_or(&[][..], Vec::as_slice);
                        let Some(outside) = seen.strip_suffix(own) else {
                            let text = format!("it appended {own:?} to list {list} and then read {seen:?}");
                            found.push(Anomaly::new(Kind::Internal, [by], text));
                            continue;
                        };
                        let first = before.entry(*list).or_insert_with(|| outside.to_vec());
                        if first != outside {
                            let text = format!("it read list {list} as {first:?} and then as {outside:?}");
                            found.push(Anomaly::new(Kind::Internal, [by], text));
                        }
                        // With its own values: those are part of the order as well.
                        reads.push((by, *list, seen.clone()));
                    }
                }
            }
        }
        reads
    }

    /// Each value of each version: once, by somebody, not by an aborted transaction.
    fn check_values(&self, history: &History, found: &mut Vec<Anomaly>) {
        for (list, version) in &self.versions {
            let mut seen = HashSet::new();
            for value in version {
                if !seen.insert(value) {
                    let text = format!("value {value} is in list {list} more than once");
                    found.push(Anomaly::new(Kind::Duplicate, [], text));
                }
                match self.writes.get(&(*list, *value)) {
                    None => {
                        let text = format!("value {value} is in list {list} and nobody appended it");
                        found.push(Anomaly::new(Kind::Garbage, [], text));
                    }
                    Some(write) if history.transactions[write.by].fate == Fate::Aborted => {
                        let text = format!("value {value} of an aborted transaction is in list {list}");
                        found.push(Anomaly::new(Kind::AbortedRead, [write.by], text));
                    }
                    Some(_) => {}
                }
            }
        }
        for read in &self.reads {
            let Some(last) = read.length.checked_sub(1) else { continue };
            let value = self.versions[&read.list][last];
            let Some(write) = self.writes.get(&(read.list, value)) else { continue };
            if !write.last && write.by != read.by {
                let text =
                    format!("list {} was read up to {value}, in the middle of a transaction", read.list);
                found.push(Anomaly::new(Kind::IntermediateRead, [write.by, read.by], text));
            }
        }
    }
}
