//! Who came before whom, and circles in it.

use std::collections::{BTreeSet, HashMap, VecDeque};

use super::check::{Anomaly, Kind};
use super::orders::Orders;
use super::{Fate, History};

/// Why one transaction comes before another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Because {
    /// It wrote the version before.
    WriteWrite,
    /// The other read what it wrote.
    WriteRead,
    /// It read the version before the other's write.
    ReadWrite,
    /// Its client had the answer before the other's client asked.
    RealTime,
}

/// Edges between transactions, by index; behind them the moments at which answers came, each before the next: a transaction
/// leads to the moment of its answer, and the newest moment before a transaction began leads to it.
#[derive(Debug)]
pub(super) struct Graph {
    edges: Vec<BTreeSet<(usize, Because)>>,
    transactions: usize,
}

impl Graph {
    pub(super) fn of(orders: &Orders, history: &History) -> Self {
        let transactions = history.transactions.len();
        let mut graph = Self { edges: vec![BTreeSet::new(); transactions], transactions };
        let writer = |list: u64, at: usize| -> Option<usize> {
            let value = orders.versions.get(&list)?.get(at)?;
            Some(orders.writes.get(&(list, *value))?.by)
        };
        for (list, version) in &orders.versions {
            for at in 1..version.len() {
                if let (Some(one), Some(next)) = (writer(*list, at - 1), writer(*list, at)) {
                    graph.add(one, next, Because::WriteWrite);
                }
            }
        }
        for read in &orders.reads {
            if let Some(by) = read.length.checked_sub(1).and_then(|last| writer(read.list, last)) {
                graph.add(by, read.by, Because::WriteRead);
            }
            // Past its own appends: they follow what it read.
            let next = (read.length..).map_while(|at| writer(read.list, at)).find(|by| *by != read.by);
            if let Some(by) = next {
                graph.add(read.by, by, Because::ReadWrite);
            }
        }
        graph.clocks(history);
        graph
    }

    /// Who was answered before another was sent.
    fn clocks(&mut self, history: &History) {
        let answered = |at: usize| {
            let transaction = &history.transactions[at];
            transaction.ended.filter(|_| transaction.fate == Fate::Committed)
        };
        let mut moments: Vec<u64> = (0..self.transactions).filter_map(answered).collect();
        moments.sort_unstable();
        moments.dedup();
        let first = self.transactions;
        let node = |moment: usize| first + moment;
        self.edges.resize(node(moments.len()), BTreeSet::new());
        for later in 1..moments.len() {
            self.add(node(later - 1), node(later), Because::RealTime);
        }
        for (at, transaction) in history.transactions.iter().enumerate() {
            if let Some(place) = answered(at).and_then(|moment| moments.binary_search(&moment).ok()) {
                self.add(at, node(place), Because::RealTime);
            }
            if let Some(last) = moments.partition_point(|moment| *moment < transaction.began).checked_sub(1) {
                self.add(node(last), at, Because::RealTime);
            }
        }
    }

    fn add(&mut self, from: usize, to: usize, because: Because) {
        if from != to {
            self.edges[from].insert((to, because));
        }
    }

    /// One anomaly for each knot of transactions that wait for each other, named by the worst circle in it.
    pub(super) fn circles(&self, found: &mut Vec<Anomaly>) {
        let mut told: BTreeSet<usize> = BTreeSet::new();
        let strict = [(Kind::G0, Because::WriteWrite), (Kind::G1c, Because::WriteRead)];
        for (kind, most) in strict {
            for knot in self.knots(most) {
                if !knot.iter().any(|node| told.contains(node)) {
                    told.extend(&knot);
                    found.push(self.circle(kind, &knot, most));
                }
            }
        }
        for knot in self.knots(Because::ReadWrite) {
            if knot.iter().any(|node| told.contains(node)) {
                continue;
            }
            told.extend(&knot);
            found.push(self.with_reads(&knot));
        }
        // A read that misses what was acknowledged is told by itself.
        told.extend(found.iter().flat_map(|anomaly| &anomaly.transactions));
        for knot in self.knots(Because::RealTime) {
            if !knot.iter().any(|node| told.contains(node)) {
                found.push(self.circle(Kind::RealTime, &knot, Because::RealTime));
            }
        }
    }

    /// A circle with one `rw` if there is one, else with more.
    fn with_reads(&self, knot: &BTreeSet<usize>) -> Anomaly {
        for from in knot {
            for (to, because) in &self.edges[*from] {
                if *because != Because::ReadWrite || !knot.contains(to) {
                    continue;
                }
                if let Some(mut way) = self.way(*to, *from, knot, Because::WriteRead) {
                    way.insert(0, *from);
                    return self.tell(Kind::GSingle, &way);
                }
            }
        }
        self.circle(Kind::G2, knot, Because::ReadWrite)
    }

    fn circle(&self, kind: Kind, knot: &BTreeSet<usize>, most: Because) -> Anomaly {
        let shortest = knot
            .iter()
            .filter_map(|from| {
                let next = self.edges[*from].iter().filter(|(to, why)| *why <= most && knot.contains(to));
                let ways = next.filter_map(|(to, _)| self.way(*to, *from, knot, most));
                let mut way = ways.min_by_key(Vec::len)?;
                way.insert(0, *from);
                Some(way)
            })
            .min_by_key(Vec::len);
        self.tell(kind, &shortest.unwrap_or_default())
    }

    fn tell(&self, kind: Kind, way: &[usize]) -> Anomaly {
        let way: Vec<usize> = way.iter().copied().filter(|node| *node < self.transactions).collect();
        let because = |pair: &[usize]| {
            let edge = self.edges[pair[0]].iter().find(|(to, _)| *to == pair[1]);
            match edge.map(|(_, because)| because) {
                Some(Because::WriteWrite) => "ww",
                Some(Because::WriteRead) => "wr",
                Some(Because::ReadWrite) => "rw",
                Some(Because::RealTime) | None => "rt",
            }
        };
        let steps: Vec<String> =
            way.windows(2).map(|pair| format!("{} –{}→ {}", pair[0], because(pair), pair[1])).collect();
        Anomaly::new(kind, way.iter().copied(), steps.join(", "))
    }

    /// The shortest way from one to another inside a knot, both ends included.
    fn way(&self, from: usize, to: usize, within: &BTreeSet<usize>, most: Because) -> Option<Vec<usize>> {
        let mut came: HashMap<usize, usize> = HashMap::from([(from, from)]);
        let mut queue = VecDeque::from([from]);
        while let Some(at) = queue.pop_front() {
            if at == to {
                let mut way = vec![to];
                while way[way.len() - 1] != from {
                    way.push(came[&way[way.len() - 1]]);
                }
                way.reverse();
                return Some(way);
            }
            for (next, because) in &self.edges[at] {
                if *because <= most && within.contains(next) && !came.contains_key(next) {
                    came.insert(*next, at);
                    queue.push_back(*next);
                }
            }
        }
        None
    }

    /// Strongly connected components of more than one transaction (Tarjan, without recursion), over edges up to `most`.
    fn knots(&self, most: Because) -> Vec<BTreeSet<usize>> {
        const NEW: usize = usize::MAX;
        let count = self.edges.len();
        let next = |at: usize| -> Vec<usize> {
            self.edges[at].iter().filter(|(_, why)| *why <= most).map(|(to, _)| *to).collect()
        };
        let (mut number, mut low, mut on_stack) = (vec![NEW; count], vec![0; count], vec![false; count]);
        let (mut stack, mut knots, mut clock) = (Vec::new(), Vec::new(), 0);
        for root in 0..count {
            if number[root] != NEW {
                continue;
            }
            let mut calls = vec![(root, next(root), 0)];
            while let Some((at, edges, done)) = calls.last_mut() {
                let at = *at;
                if *done == 0 {
                    (number[at], low[at]) = (clock, clock);
                    clock += 1;
                    stack.push(at);
                    on_stack[at] = true;
                }
                if let Some(to) = edges.get(*done).copied() {
                    *done += 1;
                    if number[to] == NEW {
                        calls.push((to, next(to), 0));
                    } else if on_stack[to] {
                        low[at] = low[at].min(number[to]);
                    }
                    continue;
                }
                calls.pop();
                if let Some((caller, ..)) = calls.last() {
                    low[*caller] = low[*caller].min(low[at]);
                }
                if low[at] == number[at] {
                    let mut knot = BTreeSet::new();
                    while let Some(node) = stack.pop() {
                        on_stack[node] = false;
                        knot.insert(node);
                        if node == at {
                            break;
                        }
                    }
                    if knot.len() > 1 {
                        knots.push(knot);
                    }
                }
            }
        }
        knots
    }
}
