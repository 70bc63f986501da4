//! Everything that can be wrong with a history.

use std::collections::HashMap;
use std::fmt;

use super::graph::Graph;
use super::orders::Orders;
use super::{Fate, History, Op};

/// What kind of wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A value was appended by two operations: the history proves nothing.
    BadTest,
    /// An acknowledged append is in no version that was read after it.
    Lost,
    /// A read that began after an append was acknowledged does not see it, and later ones do.
    Stale,
    /// A value is in a list twice.
    Duplicate,
    /// A value that nobody appended.
    Garbage,
    /// Two reads of one list of which neither continues the other.
    IncompatibleOrders,
    /// A transaction does not see its own appends, or sees others come and go.
    Internal,
    /// G1a: a value of an aborted transaction.
    AbortedRead,
    /// G1b: a version from the middle of a transaction.
    IntermediateRead,
    /// G0: writes in a circle.
    G0,
    /// G1c: writes and reads in a circle.
    G1c,
    /// G-single: a circle with one anti-dependency (read skew, lost update).
    GSingle,
    /// G2: a circle with several anti-dependencies (write skew).
    G2,
    /// A circle that the clients' clocks close: what was answered before another began comes after it.
    RealTime,
}

/// Something that must not be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Anomaly {
    /// What.
    pub kind: Kind,
    /// Indexes of the transactions that it is about.
    pub transactions: Vec<usize>,
    /// In words.
    pub what: String,
}

impl Anomaly {
    pub(super) fn new(kind: Kind, transactions: impl IntoIterator<Item = usize>, what: String) -> Self {
        Self { kind, transactions: transactions.into_iter().collect(), what }
    }
}

/// What the checker says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Transactions that were committed, as far as their clients know.
    pub committed: usize,
    /// Transactions of unknown fate.
    pub unknown: usize,
    /// Appends that were acknowledged.
    pub appends: usize,
    /// Reads with an answer.
    pub reads: usize,
    /// All that is wrong.
    pub anomalies: Vec<Anomaly>,
}

impl Verdict {
    /// Nothing is wrong.
    pub fn accepts(&self) -> bool {
        self.anomalies.is_empty()
    }

    /// Whether this kind was found.
    pub fn has(&self, kind: Kind) -> bool {
        self.anomalies.iter().any(|anomaly| anomaly.kind == kind)
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} transactions committed, {} unknown; {} appends, {} reads: ",
            self.committed, self.unknown, self.appends, self.reads
        )?;
        if self.accepts() {
            return f.write_str("strictly serializable");
        }
        writeln!(f, "{} anomalies", self.anomalies.len())?;
        for anomaly in self.anomalies.iter().take(10) {
            writeln!(f, "  {:?} {:?}: {}", anomaly.kind, anomaly.transactions, anomaly.what)?;
        }
        Ok(())
    }
}

/// Looks at the whole history.
pub fn check(history: &History) -> Verdict {
    let mut verdict = Verdict::default();
    for transaction in &history.transactions {
        match transaction.fate {
            Fate::Committed => verdict.committed += 1,
            Fate::Unknown => verdict.unknown += 1,
            Fate::Aborted => {}
        }
        if transaction.fate == Fate::Committed {
            let appends = transaction.ops.iter().filter(|op| matches!(op, Op::Append { .. })).count();
            verdict.appends += appends;
            verdict.reads +=
                transaction.ops.iter().filter(|op| matches!(op, Op::Read { seen: Some(_), .. })).count();
        }
    }
    let mut found = Vec::new();
    let orders = Orders::of(history, &mut found);
    after_the_answer(history, &orders, &mut found);
    Graph::of(&orders, history).circles(&mut found);
    found.sort_by_key(|anomaly| anomaly.kind);
    verdict.anomalies = found;
    verdict
}

/// What was acknowledged before a read began must be in what it reads.
fn after_the_answer(history: &History, orders: &Orders, found: &mut Vec<Anomaly>) {
    // Acknowledged appends of each list by the moment of the answer.
    let mut acknowledged: HashMap<u64, Vec<(u64, u64, usize)>> = HashMap::new();
    for (by, transaction) in history.transactions.iter().enumerate() {
        let (Fate::Committed, Some(ended)) = (transaction.fate, transaction.ended) else { continue };
        for op in &transaction.ops {
            if let Op::Append { list, value } = op {
                acknowledged.entry(*list).or_default().push((ended, *value, by));
            }
        }
    }
    // Where each value stands in its list.
    let places: HashMap<(u64, u64), usize> = orders
        .versions
        .iter()
        .flat_map(|(list, version)| version.iter().enumerate().map(|(at, value)| ((*list, *value), at)))
        .collect();
    let mut by_list: HashMap<u64, Vec<(u64, usize, usize)>> = HashMap::new();
    for read in &orders.reads {
        let began = history.transactions[read.by].began;
        by_list.entry(read.list).or_default().push((began, read.length, read.by));
    }
    for (list, mut reads) in by_list {
        let Some(appends) = acknowledged.get_mut(&list) else { continue };
        appends.sort_unstable();
        reads.sort_unstable();
        let mut appends = appends.iter().peekable();
        // The furthest place that was acknowledged so far: a read that begins now must reach beyond it.
        let mut furthest: Option<(usize, u64, usize)> = None;
        for (began, length, reader) in reads {
            while let Some((_, value, by)) = appends.next_if(|(ended, ..)| *ended < began) {
                match places.get(&(list, *value)) {
                    Some(place) => furthest = furthest.max(Some((*place, *value, *by))),
                    None => {
                        let text = format!("value {value} of list {list} was acknowledged and is gone");
                        found.push(Anomaly::new(Kind::Lost, [*by, reader], text));
                    }
                }
            }
            if let Some((place, value, by)) = furthest
                && place >= length
                && by != reader
            {
                let text =
                    format!("value {value} of list {list} was acknowledged before a read that misses it");
                found.push(Anomaly::new(Kind::Stale, [by, reader], text));
            }
        }
    }
}
