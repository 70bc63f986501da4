use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;
use crate::change::{Change, LargeHeader, PgTimestamp, Transaction};
use crate::wire::{Frame, PIECE, Progress, Resume};

fn transaction(end: u64, size: usize, origin: Option<&str>) -> Transaction {
    Transaction {
        xid: end as u32,
        commit_lsn: Lsn(end - 1),
        end_lsn: Lsn(end),
        commit_time: PgTimestamp(0),
        origin: origin.map(str::to_owned),
        changes: vec![Change::Message { prefix: "x".into(), content: vec![b'x'; size].into() }],
    }
}

/// Sessions that carry a numbered history through any interleaving of work and breaks.
struct Simulation {
    now: Instant,
    history: Vec<Transaction>,
    /// What the target keeps.
    applied: Vec<Lsn>,
    checkpoint: Lsn,
    sender: Sender,
    receiver: Receiver,
    read: usize,
    greatest_wait: u64,
    held: u64,
    pending: Vec<Work>,
    /// Bytes of a large transaction that are still to be sent, and the one that the target has open.
    unsent: Option<usize>,
    large: Option<LargeHeader>,
}

/// Larger ones go in pieces.
const LARGE: usize = 300_000;

impl Simulation {
    fn new(history: Vec<Transaction>) -> Self {
        let now = crate::clock::now();
        let resume = Resume { copied: true, ..Resume::default() };
        Self {
            now,
            history,
            applied: Vec::new(),
            checkpoint: Lsn::ZERO,
            sender: Sender::new(Framing::new(now), resume),
            receiver: Receiver::new(Framing::new(now), resume, now),
            read: 0,
            greatest_wait: 0,
            held: 0,
            pending: Vec::new(),
            unsent: None,
            large: None,
        }
    }

    /// A new link; the source starts `back` transactions before the checkpoint, as a slot may.
    fn reconnect(&mut self, back: usize) {
        let resume = Resume { applied: self.checkpoint, copied: true, ..Resume::default() };
        let mut framing = Framing::new(self.now);
        self.receiver = Receiver::new(Framing::new(self.now), resume, self.now);
        // The shell hears the resume before it makes the sender.
        let first = self.receiver.poll_message().expect("resume");
        let first = framing.open(first, self.now).expect("own frame");
        assert_eq!(first, Frame::Resume(resume));
        self.sender = Sender::new(framing, resume);
        self.pending.clear();
        (self.unsent, self.large) = (None, None);
        self.held = 0;
        self.read =
            self.history.iter().position(|t| t.end_lsn > self.checkpoint).unwrap_or(self.history.len());
        self.read = self.read.saturating_sub(back);
    }

    fn source(&mut self) {
        if !self.sender.wants_more() {
            return;
        }
        match self.unsent {
            Some(0) => {
                self.sender.handle_large_end(self.now);
                self.unsent = None;
            }
            Some(left) => {
                let piece = vec![b'x'; left.min(PIECE)];
                self.unsent = Some(left - piece.len());
                self.sender.handle_large_piece(piece.into(), self.now);
            }
            None => self.next_transaction(),
        }
    }

    fn next_transaction(&mut self) {
        let Some(transaction) = self.history.get(self.read).cloned() else { return };
        self.read += 1;
        let Change::Message { content, .. } = &transaction.changes[0] else { panic!("a message") };
        if content.len() < LARGE {
            self.sender.handle_transaction(&transaction, self.now).expect("small");
            return;
        }
        let Transaction { xid, commit_lsn, end_lsn, commit_time, origin, .. } = transaction.clone();
        let header = LargeHeader { xid, commit_lsn, end_lsn, commit_time, origin };
        if self.sender.handle_large(&header, self.now) {
            self.unsent = Some(content.len());
        }
    }

    fn towards_receiver(&mut self) -> bool {
        let Some(message) = self.sender.poll_message() else { return false };
        self.receiver.handle_message(message, self.now).expect("a good sender");
        while let Some(work) = self.receiver.poll_work() {
            self.held += match &work {
                Work::Transaction { bytes, .. } => *bytes,
                Work::LargePiece(piece) => piece.len() as u64,
                _ => 0,
            };
            self.pending.push(work);
        }
        self.greatest_wait = self.greatest_wait.max(self.held);
        true
    }

    fn apply(&mut self) {
        for work in std::mem::take(&mut self.pending) {
            match work {
                Work::Source(_) => {}
                Work::Transaction { transaction, bytes } => {
                    assert!(transaction.end_lsn > self.checkpoint, "applied twice");
                    self.applied.push(transaction.end_lsn);
                    self.checkpoint = transaction.end_lsn;
                    self.held -= bytes;
                    self.receiver.handle_done(bytes, self.now);
                }
                Work::LargeBegin(header) => {
                    assert!(header.end_lsn > self.checkpoint, "applied twice");
                    assert_eq!(self.large.replace(header), None, "one at a time");
                }
                Work::LargePiece(piece) => {
                    assert!(self.large.is_some(), "a piece of nothing");
                    self.held -= piece.len() as u64;
                    self.receiver.handle_done(piece.len() as u64, self.now);
                }
                Work::LargeEnd => {
                    let end = self.large.take().expect("begun").end_lsn;
                    self.applied.push(end);
                    self.checkpoint = end;
                }
                Work::Position(lsn) => self.checkpoint = self.checkpoint.max(lsn),
                Work::Copy(_) => panic!("no copy here"),
            }
        }
        let progress =
            Progress { applied: self.checkpoint, durable: self.checkpoint, ..self.receiver.progress() };
        self.receiver.handle_applied(progress, self.now);
    }

    fn towards_sender(&mut self) -> bool {
        let Some(message) = self.receiver.poll_message() else { return false };
        self.sender.handle_message(message, self.now).expect("a good receiver");
        true
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn whatever_breaks_each_transaction_is_applied_once(
        sizes in proptest::collection::vec((0usize..600_000, 0u8..5), 1..60),
        steps in proptest::collection::vec((0u8..12, 0usize..4), 0..400),
    ) {
        let history: Vec<_> = sizes
            .iter()
            .enumerate()
            .map(|(at, (size, own))| {
                transaction(10 * (at as u64 + 1), *size, (*own == 0).then_some("godwit_orders"))
            })
            .collect();
        let wanted: Vec<Lsn> =
            history.iter().filter(|t| t.origin.is_none()).map(|t| t.end_lsn).collect();
        let end = history.last().expect("not empty").end_lsn;
        let mut it = Simulation::new(history);
        it.reconnect(0);
        for (step, back) in steps {
            it.now += Duration::from_millis(1);
            match step {
                0..4 => it.source(),
                4..7 => drop(it.towards_receiver()),
                7 | 8 => it.apply(),
                9 | 10 => drop(it.towards_sender()),
                _ => it.reconnect(back),
            }
        }
        for _ in 0..10_000 {
            it.source();
            while it.towards_receiver() {}
            it.apply();
            while it.towards_sender() {}
            if it.sender.progress().applied == end { break }
        }
        prop_assert_eq!(&it.applied, &wanted);
        prop_assert_eq!(it.sender.progress().applied, end, "filtered positions advance too");
        prop_assert!(it.greatest_wait <= WINDOW + (1 << 20));
        let mut status = StreamStatus::default();
        it.sender.describe(&mut status, it.now);
        prop_assert_eq!((status.lag_bytes, status.lag), (0, Duration::ZERO));
    }
}

#[test]
fn a_transaction_larger_than_the_window_passes() {
    let mut it = Simulation::new(vec![transaction(10, 3 * WINDOW as usize, None), transaction(20, 1, None)]);
    it.reconnect(0);
    for _ in 0..1_000 {
        it.source();
        while it.towards_sender() {}
        it.towards_receiver();
        while it.towards_receiver() {}
        it.apply();
    }
    assert_eq!(it.applied, [Lsn(10), Lsn(20)]);
}

#[test]
fn a_sender_without_credit_stops_reading() {
    let mut it = Simulation::new((1..=100).map(|n| transaction(n * 10, 1 << 20, None)).collect());
    it.reconnect(0);
    while it.towards_sender() {}
    for _ in 0..200 {
        it.source();
        while it.towards_receiver() {}
        while it.towards_sender() {}
    }
    assert!(!it.sender.wants_more());
    assert!(it.read < 20, "{} read", it.read);
    assert!(it.applied.is_empty());
}

#[test]
fn a_gap_and_silence_end_the_session() {
    let mut it = Simulation::new((1..=3).map(|n| transaction(n * 10, 1, None)).collect());
    it.reconnect(0);
    while it.towards_sender() {}
    it.source();
    it.source();
    let _lost = it.sender.poll_message();
    let next = it.sender.poll_message().expect("two were sent");
    assert!(it.receiver.handle_message(next, it.now).is_err());
    assert!(it.sender.handle_tick(it.now + SILENCE + Duration::from_millis(1)).is_err());
}

#[test]
fn both_sides_show_life() {
    let mut it = Simulation::new(Vec::new());
    it.reconnect(0);
    while it.towards_sender() {}
    it.now += HEARTBEAT;
    it.sender.handle_tick(it.now).expect("not silent yet");
    it.receiver.handle_tick(it.now).expect("not silent yet");
    assert!(it.towards_receiver());
    assert!(it.towards_sender());
}

/// They hold no credit, and a server with other databases tells thousands a second.
#[test]
fn positions_do_not_pile_up_at_a_target_that_is_busy() {
    let mut it = Simulation::new(vec![transaction(150_005, 1, None), transaction(150_015, 1, None)]);
    it.reconnect(0);
    while it.towards_sender() {}
    let tell = |it: &mut Simulation, ends: std::ops::RangeInclusive<u64>| {
        for end in ends {
            it.sender.handle_position(Lsn(end), it.now);
            while it.towards_receiver() {}
        }
    };
    tell(&mut it, 1..=100_000);
    assert!(it.pending.len() <= 2, "{} wait", it.pending.len());
    for _ in 0..2 {
        it.apply();
        while it.towards_sender() {}
        while it.towards_receiver() {}
    }
    assert_eq!(it.sender.progress().applied, Lsn(100_000), "the newest comes when there is time");
    // A server that shuts down asks for the newest, which waits.
    tell(&mut it, 100_001..=150_000);
    it.sender.handle_demanded_position(Lsn(150_000), it.now).expect("small");
    tell(&mut it, 150_001..=150_002);
    let positions: Vec<_> = it.pending.iter().collect();
    let position = |lsn| Work::Position(Lsn(lsn));
    assert_eq!(positions, [&position(100_001), &position(150_000), &position(150_000)]);
    // None comes after a transaction that ends behind it, or in the middle of it.
    it.source();
    it.source();
    it.apply();
    while it.towards_sender() {}
    while it.towards_receiver() {}
    it.apply();
    assert_eq!(it.applied, [Lsn(150_005), Lsn(150_015)]);
}

#[test]
fn a_position_that_the_source_asks_for_again_is_told_again_once() {
    let mut it = Simulation::new(vec![transaction(10, 1, None)]);
    it.reconnect(0);
    while it.towards_sender() {}
    it.source();
    let told = |it: &mut Simulation| {
        while it.towards_receiver() {}
        it.pending.iter().filter(|work| matches!(work, Work::Position(Lsn(20)))).count()
    };
    it.sender.handle_demanded_position(Lsn(10), it.now).expect("a transaction ends there");
    it.sender.handle_position(Lsn(20), it.now);
    assert_eq!(told(&mut it), 1);
    for _ in 0..3 {
        it.sender.handle_demanded_position(Lsn(20), it.now).expect("small");
        assert_eq!(told(&mut it), 2);
    }
    it.apply();
    while it.towards_sender() {}
    // A new one goes as what a commit waits for.
    it.sender.handle_demanded_position(Lsn(30), it.now).expect("small");
    while it.towards_receiver() {}
    assert!(
        matches!(&it.pending[..], [Work::Transaction { transaction, .. }] if transaction.end_lsn == Lsn(30))
    );
}
