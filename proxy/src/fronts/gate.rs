//! The gate: counts requests in flight, holds new ones while closed, and tells when none is left inside.
//!
//! It lives outside the pools, one per resource: a waiter never sleeps on something a swap replaces. It knows nothing of
//! HTTP, picks nothing and evicts nobody: over a bound the newest is refused, never one that already waits.
//!
//! Who was held is released in a ramp: some at once, twice as many again after each pause, in order of arrival; who comes meanwhile stands
//! at the end of the queue. The ramp refuses nobody: whose time runs out in it, or who finds the queue full, goes through at once.
//!
//! Open costs one addition, one load and one subtraction on a counter that threads rarely share. The race "enter while it
//! closes" is settled by order: an entering request *counts itself first and looks second*, the closer *closes first and
//! counts second* (all sequentially consistent), so one of the two always sees the other.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crossbeam::utils::CachePadded;
use migration::policy::Release;
use tokio::sync::{Notify, oneshot};

use crate::config::model::HoldLimits;
use crate::lock::lock;

use super::now;

/// Holds, drains and releases the requests of one resource.
pub struct Gate {
    limits: HoldLimits,
    /// Turns so far, times four, plus the [`Mode`]. Changes only under the queue's lock.
    turns: AtomicU64,
    /// Requests inside, by shard. An admission leaves through the shard it entered by, so no shard is ever negative.
    inside: Box<[CachePadded<AtomicU64>]>,
    queue: Mutex<Queue>,
    /// Somebody left while the gate was closed, or it closed.
    settled: Notify,
    refused: AtomicU64,
}

/// What becomes of who enters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Open,
    /// All wait.
    Closed,
    /// Those who were held are let go; who comes waits behind them.
    Ramp,
}

/// Room for the modes in a number.
const MODES: u64 = 4;

impl Mode {
    fn of(turns: u64) -> Self {
        match turns % MODES {
            0 => Self::Open,
            1 => Self::Closed,
            _ => Self::Ramp,
        }
    }
}

/// Who is let go.
struct Released {
    waiting: BTreeMap<u64, Waiting>,
    shard: usize,
    now: Instant,
}

/// Those who wait, by ticket, that is in order of arrival.
#[derive(Default)]
struct Queue {
    tickets: u64,
    waiting: BTreeMap<u64, Waiting>,
    bytes: usize,
    longest: Duration,
}

struct Waiting {
    release: oneshot::Sender<Admission>,
    bytes: usize,
    since: Instant,
}

/// Why a request may not wait any longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// As many requests wait as may.
    #[error("as many requests are held as may be")]
    TooMany,
    /// Their headers take as many bytes as they may.
    #[error("the headers of held requests take as many bytes as they may")]
    TooLarge,
    /// It waited as long as it may.
    #[error("the request was held as long as it may be")]
    TooLong,
}

/// What a gate holds and what it has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HoldStats {
    /// Requests that wait now.
    pub held: usize,
    /// Bytes of their headers.
    pub held_bytes: usize,
    /// Requests inside. For a moment it may count one that is about to find the gate closed: for "nobody is inside" ask
    /// [`Gate::drained`].
    pub in_flight: u64,
    /// Requests refused since the start.
    pub refused_total: u64,
    /// Longest hold of the current closure, or of the last one.
    pub longest: Duration,
}

/// The right to be inside; dropping it leaves.
#[derive(Debug)]
pub struct Admission {
    /// How long the request was held; none: the gate was open.
    pub held: Option<Duration>,
    gate: Arc<Gate>,
    shard: usize,
}

impl Gate {
    /// An open gate.
    pub fn new(limits: HoldLimits) -> Arc<Self> {
        Arc::new(Self {
            limits,
            turns: AtomicU64::new(0),
            inside: (0..super::shards()).map(|_| CachePadded::new(AtomicU64::new(0))).collect(),
            queue: Mutex::default(),
            settled: Notify::new(),
            refused: AtomicU64::new(0),
        })
    }

    /// From now on requests wait. Closing a closed gate changes nothing; a ramp ends where it is.
    pub fn close(&self) {
        let mut queue = self.queue();
        if self.is_closed() {
            return;
        }
        queue.longest = Duration::ZERO;
        self.turn(Mode::Closed);
        drop(queue);
        self.settled.notify_waiters();
    }

    /// Admits all who wait, in order of arrival, and whoever comes next; ends a ramp. Opening an open gate changes nothing.
    pub fn open(self: &Arc<Self>) {
        let mut queue = self.queue();
        if self.mode() == Mode::Open {
            return;
        }
        self.turn(Mode::Open);
        let released = self.let_go(&mut queue, usize::MAX);
        drop(queue);
        self.admit(released);
    }

    /// Admits who waits in a ramp, in order of arrival, and then whoever comes. Opening a gate that is not closed changes nothing.
    /// Needs a tokio runtime: what is left after the first ones is let go by a task.
    pub fn open_in_ramp(self: &Arc<Self>, ramp: Release) {
        let turn = {
            let _queue = self.queue();
            if !self.is_closed() {
                return;
            }
            self.turn(Mode::Ramp)
        };
        let mut batch = ramp.first.max(1) as usize;
        if !self.go_on(turn, batch) {
            return;
        }
        let gate = Arc::clone(self);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(ramp.every).await;
                batch = batch.saturating_mul(2);
                if !gate.go_on(turn, batch) {
                    return;
                }
            }
        });
    }

    /// Lets the next ones of a ramp go. Whether any are left; none are when the gate was turned since.
    fn go_on(self: &Arc<Self>, turn: u64, batch: usize) -> bool {
        let mut queue = self.queue();
        if self.turns.load(SeqCst) != turn {
            return false;
        }
        let released = self.let_go(&mut queue, batch);
        let left = !queue.waiting.is_empty();
        if !left {
            self.turn(Mode::Open);
        }
        drop(queue);
        self.admit(released);
        left
    }

    /// The oldest that wait, counted as inside before the gate can close again: a release is never taken back.
    fn let_go(&self, queue: &mut Queue, most: usize) -> Released {
        let (shard, now) = (super::shard(), now());
        let mut released = std::mem::take(&mut queue.waiting);
        if let Some(first_left) = released.keys().nth(most).copied() {
            queue.waiting = released.split_off(&first_left);
        }
        queue.bytes -= released.values().map(|waiting| waiting.bytes).sum::<usize>();
        if let Some(first) = released.values().next() {
            queue.longest = queue.longest.max(now.saturating_duration_since(first.since));
        }
        self.inside[shard].fetch_add(released.len() as u64, SeqCst);
        Released { waiting: released, shard, now }
    }

    fn admit(self: &Arc<Self>, released: Released) {
        let Released { waiting, shard, now } = released;
        for waiting in waiting.into_values() {
            let held = Some(now.saturating_duration_since(waiting.since));
            // When the waiter is gone the admission comes back, is dropped, and so leaves.
            let _ = waiting.release.send(Admission { held, gate: Arc::clone(self), shard });
        }
    }

    /// Whether new requests wait until it opens; in a ramp they only wait for their turn.
    pub fn is_closed(&self) -> bool {
        self.mode() == Mode::Closed
    }

    fn mode(&self) -> Mode {
        Mode::of(self.turns.load(SeqCst))
    }

    /// Only under the queue's lock. What [`Self::turns`] is from now on.
    fn turn(&self, mode: Mode) -> u64 {
        let next = (self.turns.load(SeqCst) / MODES + 1) * MODES + mode as u64;
        self.turns.store(next, SeqCst);
        next
    }

    /// Enters if the gate is open; never waits.
    pub fn try_enter(self: &Arc<Self>) -> Option<Admission> {
        if self.mode() != Mode::Open {
            return None;
        }
        let admission = self.count(None);
        (self.mode() == Mode::Open).then_some(admission)
    }

    /// Enters, waiting while the gate is closed, within the limits. `header_bytes` is what the request costs to hold.
    ///
    /// Cancel-safe: a waiter that is dropped gives its place up, and leaves if it had been released already.
    pub async fn enter(self: &Arc<Self>, header_bytes: usize) -> Result<Admission, Refused> {
        if let Some(admission) = self.try_enter() {
            return Ok(admission);
        }
        let since = now();
        let (release, mut released) = oneshot::channel();
        let mut place = {
            let mut queue = self.queue();
            let mode = self.mode();
            let full = queue.full(&self.limits, header_bytes);
            if mode == Mode::Open || (mode == Mode::Ramp && full.is_some()) {
                return Ok(self.count(None));
            }
            if let Some(refused) = full {
                self.refused.fetch_add(1, SeqCst);
                return Err(refused);
            }
            Place { ticket: Some(queue.push(Waiting { release, bytes: header_bytes, since })), gate: self }
        };
        let answer = match tokio::time::timeout(self.limits.time, &mut released).await {
            Ok(answer) => answer,
            Err(_) if place.give_up() => {
                let _queue = self.queue();
                if !self.is_closed() {
                    return Ok(self.count(Some(now().saturating_duration_since(since))));
                }
                self.refused.fetch_add(1, SeqCst);
                return Err(Refused::TooLong);
            }
            // Its time ran out as the gate opened: the admission is on its way.
            Err(_) => released.await,
        };
        place.ticket = None;
        answer.map_err(|_| Refused::TooLong)
    }

    /// Resolves when the gate is closed and nobody is inside. Cancel-safe.
    pub async fn drained(&self) {
        loop {
            let mut settled = std::pin::pin!(self.settled.notified());
            settled.as_mut().enable();
            let turn = self.turns.load(SeqCst);
            // A shard that is read as zero stays so until the gate opens, which the second look at `turns` rules out.
            if Mode::of(turn) == Mode::Closed && self.in_flight() == 0 && self.turns.load(SeqCst) == turn {
                return;
            }
            settled.await;
        }
    }

    /// What it holds and what it has seen.
    pub fn stats(&self) -> HoldStats {
        let queue = self.queue();
        let oldest = queue
            .waiting
            .values()
            .next()
            .map_or(Duration::ZERO, |w| now().saturating_duration_since(w.since));
        HoldStats {
            held: queue.waiting.len(),
            held_bytes: queue.bytes,
            in_flight: self.in_flight(),
            refused_total: self.refused.load(SeqCst),
            longest: queue.longest.max(oldest),
        }
    }

    /// The bounds it was given.
    pub fn limits(&self) -> HoldLimits {
        self.limits
    }

    fn in_flight(&self) -> u64 {
        self.inside.iter().map(|shard| shard.load(SeqCst)).sum()
    }

    fn count(self: &Arc<Self>, held: Option<Duration>) -> Admission {
        let shard = super::shard();
        self.inside[shard].fetch_add(1, SeqCst);
        Admission { held, gate: Arc::clone(self), shard }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        lock(&self.queue)
    }
}

impl Queue {
    fn full(&self, limits: &HoldLimits, bytes: usize) -> Option<Refused> {
        if self.waiting.len() >= limits.requests {
            Some(Refused::TooMany)
        } else if self.bytes.saturating_add(bytes) > limits.bytes {
            Some(Refused::TooLarge)
        } else {
            None
        }
    }

    fn push(&mut self, waiting: Waiting) -> u64 {
        let ticket = self.tickets;
        self.tickets += 1;
        self.bytes += waiting.bytes;
        self.waiting.insert(ticket, waiting);
        ticket
    }
}

/// A place in the queue, given up when dropped before the release.
struct Place<'a> {
    gate: &'a Gate,
    ticket: Option<u64>,
}

impl Place<'_> {
    /// Whether it was still waiting.
    fn give_up(&mut self) -> bool {
        let Some(ticket) = self.ticket.take() else { return false };
        let mut queue = self.gate.queue();
        let Some(waiting) = queue.waiting.remove(&ticket) else { return false };
        queue.bytes -= waiting.bytes;
        queue.longest = queue.longest.max(now().saturating_duration_since(waiting.since));
        true
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.give_up();
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.gate.inside[self.shard].fetch_sub(1, SeqCst);
        if self.gate.is_closed() {
            self.gate.settled.notify_waiters();
        }
    }
}

impl std::fmt::Debug for Gate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gate").field("closed", &self.is_closed()).finish_non_exhaustive()
    }
}

/// A round robin number per thread, to spread counters.
pub(super) fn thread_number() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static NUMBER: usize = NEXT.fetch_add(1, SeqCst);
    }
    NUMBER.with(|number| *number)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;

    const WIDE: HoldLimits =
        HoldLimits { requests: 100_000, bytes: usize::MAX, time: Duration::from_mins(1) };

    async fn until(gate: &Gate, held: usize) {
        while gate.stats().held != held {
            tokio::task::yield_now().await;
        }
    }

    fn wait(gate: &Arc<Gate>, bytes: usize) -> tokio::task::JoinHandle<Result<Admission, Refused>> {
        let gate = Arc::clone(gate);
        tokio::spawn(async move { gate.enter(bytes).await })
    }

    #[tokio::test]
    async fn drains_only_when_closed_and_empty() {
        let gate = Gate::new(WIDE);
        let admission = gate.enter(10).await.unwrap();
        let drained = tokio::spawn({
            let gate = Arc::clone(&gate);
            async move { gate.drained().await }
        });
        gate.close();
        tokio::task::yield_now().await;
        assert!(!drained.is_finished());
        assert_eq!(gate.stats().in_flight, 1);
        drop(admission);
        drained.await.unwrap();
        let held = wait(&gate, 10);
        until(&gate, 1).await;
        gate.drained().await;
        gate.open();
        let admission = held.await.unwrap().unwrap();
        assert!(admission.held.is_some());
        assert_eq!(gate.stats().in_flight, 1);
        assert!(gate.stats().longest >= admission.held.unwrap());
    }

    #[tokio::test]
    async fn refuses_the_newest_over_a_bound() {
        let gate = Gate::new(HoldLimits { requests: 2, bytes: 100, time: Duration::from_mins(1) });
        gate.close();
        let first = wait(&gate, 60);
        until(&gate, 1).await;
        assert_eq!(gate.enter(41).await.unwrap_err(), Refused::TooLarge);
        let second = wait(&gate, 40);
        until(&gate, 2).await;
        assert_eq!(gate.enter(0).await.unwrap_err(), Refused::TooMany);
        assert_eq!(gate.stats().held_bytes, 100);
        assert_eq!(gate.stats().refused_total, 2);
        gate.open();
        assert!(first.await.unwrap().is_ok());
        assert!(second.await.unwrap().is_ok());
        assert_eq!(gate.stats().held_bytes, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn refuses_after_the_longest_time() {
        let gate = Gate::new(HoldLimits { requests: 2, bytes: 100, time: Duration::from_millis(500) });
        gate.close();
        assert_eq!(gate.enter(10).await.unwrap_err(), Refused::TooLong);
        assert_eq!(gate.stats().held, 0);
        assert_eq!(gate.stats().held_bytes, 0);
    }

    #[tokio::test]
    async fn a_waiter_that_leaves_gives_its_place_up() {
        let gate = Gate::new(HoldLimits { requests: 1, bytes: 100, time: Duration::from_mins(1) });
        gate.close();
        let gone = wait(&gate, 100);
        until(&gate, 1).await;
        gone.abort();
        assert!(gone.await.unwrap_err().is_cancelled());
        assert_eq!(gate.stats().held, 0);
        let stays = wait(&gate, 100);
        until(&gate, 1).await;
        gate.open();
        drop(stays.await.unwrap().unwrap());
        gate.close();
        gate.drained().await;
    }

    #[tokio::test]
    async fn a_waiter_dropped_after_its_release_leaves() {
        let gate = Gate::new(WIDE);
        gate.close();
        let mut waiter = Box::pin(gate.enter(1));
        assert!(futures_util::poll!(&mut waiter).is_pending());
        gate.open();
        assert_eq!(gate.stats().in_flight, 1);
        drop(waiter);
        assert_eq!(gate.stats().in_flight, 0);
    }

    #[tokio::test]
    async fn releases_in_order_of_arrival() {
        let gate = Gate::new(WIDE);
        gate.close();
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut waiters = Vec::new();
        for number in 0..50 {
            let (gate, order) = (Arc::clone(&gate), Arc::clone(&order));
            waiters.push(tokio::spawn({
                let gate = Arc::clone(&gate);
                async move {
                    let _admission = gate.enter(1).await.unwrap();
                    order.lock().unwrap().push(number);
                }
            }));
            until(&gate, number + 1).await;
        }
        gate.open();
        for waiter in waiters {
            waiter.await.unwrap();
        }
        assert_eq!(*order.lock().unwrap(), (0..50).collect::<Vec<_>>());
    }

    /// Requests that arrive one after the other and note their number when they are let in.
    async fn arrive(gate: &Arc<Gate>, order: &Arc<Mutex<Vec<usize>>>, numbers: std::ops::Range<usize>) {
        for number in numbers {
            let (gate, order) = (Arc::clone(gate), Arc::clone(order));
            let held = gate.stats().held;
            tokio::spawn({
                let gate = Arc::clone(&gate);
                async move {
                    let _admission = gate.enter(1).await.unwrap();
                    order.lock().unwrap().push(number);
                }
            });
            until(&gate, held + 1).await;
        }
    }

    /// The clock stands still but for what `advance` does.
    #[tokio::test(start_paused = true)]
    async fn a_ramp_lets_twice_as_many_go_each_time_in_order_of_arrival() {
        let (gate, order) = (Gate::new(WIDE), Arc::new(Mutex::new(Vec::new())));
        let ramp = Release { first: 4, every: Duration::from_millis(10) };
        gate.close();
        arrive(&gate, &order, 0..40).await;
        let in_now = async || {
            for _ in 0..1_000 {
                tokio::task::yield_now().await;
            }
            order.lock().unwrap().len()
        };
        gate.open_in_ramp(ramp);
        assert_eq!(in_now().await, 4, "the first at once");
        assert!(!gate.is_closed() && gate.try_enter().is_none(), "nobody overtakes");
        arrive(&gate, &order, 40..41).await;
        tokio::time::advance(Duration::from_millis(9)).await;
        assert_eq!(in_now().await, 4, "not before the pause is over");
        for (expected, left) in [(4 + 8, 29), (4 + 8 + 16, 13)] {
            tokio::time::advance(Duration::from_millis(if left == 29 { 1 } else { 10 })).await;
            assert_eq!((in_now().await, gate.stats().held), (expected, left));
        }
        tokio::time::advance(Duration::from_millis(10)).await;
        assert_eq!((in_now().await, gate.stats().held), (41, 0));
        assert_eq!(*order.lock().unwrap(), (0..41).collect::<Vec<_>>());
        assert_eq!((gate.stats().held_bytes, gate.stats().in_flight), (0, 0));
        assert!(gate.try_enter().is_some(), "open");
    }

    #[tokio::test(start_paused = true)]
    async fn a_ramp_ends_when_the_gate_closes_and_goes_on_where_it_was() {
        let (gate, order) = (Gate::new(WIDE), Arc::new(Mutex::new(Vec::new())));
        let ramp = Release { first: 2, every: Duration::from_millis(10) };
        gate.close();
        arrive(&gate, &order, 0..10).await;
        gate.open_in_ramp(ramp);
        gate.close();
        tokio::time::sleep(Duration::from_secs(1)).await;
        gate.drained().await;
        assert_eq!((order.lock().unwrap().len(), gate.stats().held), (2, 8), "it holds again");
        gate.open_in_ramp(ramp);
        gate.open_in_ramp(Release { first: 100, ..ramp });
        assert_eq!(gate.stats().held, 6, "one ramp at a time");
        gate.open();
        until(&gate, 0).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(*order.lock().unwrap(), (0..10).collect::<Vec<_>>());
    }

    #[tokio::test(start_paused = true)]
    async fn a_ramp_refuses_nobody() {
        let limits = HoldLimits { requests: 3, bytes: 100, time: Duration::from_millis(500) };
        let (gate, order) = (Gate::new(limits), Arc::new(Mutex::new(Vec::new())));
        gate.close();
        arrive(&gate, &order, 0..3).await;
        // Never over by itself: the pause is longer than anybody may wait.
        gate.open_in_ramp(Release { first: 1, every: Duration::from_mins(1) });
        assert_eq!(gate.stats().held, 2);
        arrive(&gate, &order, 3..4).await;
        drop(gate.enter(1).await.expect("the queue is full: it goes through"));
        tokio::time::sleep(Duration::from_millis(600)).await;
        assert_eq!(
            (order.lock().unwrap().len(), gate.stats().held),
            (4, 0),
            "their time is over: they go through"
        );
        assert_eq!((gate.stats().refused_total, gate.stats().in_flight, gate.stats().held_bytes), (0, 0, 0));
    }

    /// More threads than cores, so that some are stopped between looking and counting whenever the gate closes.
    #[test]
    fn nobody_slips_in_between_looking_and_counting() {
        let gate = Gate::new(WIDE);
        let (sealed, stop) = (AtomicBool::new(false), AtomicBool::new(false));
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        while !stop.load(SeqCst) {
                            if let Some(admission) = gate.try_enter() {
                                assert!(!sealed.load(SeqCst), "inside while closed and drained");
                                drop(admission);
                            }
                        }
                    })
                })
                .collect();
            for _ in 0..60 {
                gate.close();
                while gate.in_flight() != 0 {
                    std::thread::yield_now();
                }
                sealed.store(true, SeqCst);
                for _ in 0..4 {
                    std::thread::yield_now();
                }
                sealed.store(false, SeqCst);
                gate.open();
                std::thread::yield_now();
                if threads.iter().any(std::thread::ScopedJoinHandle::is_finished) {
                    break;
                }
            }
            stop.store(true, SeqCst);
        });
    }

    /// Closed and drained, nobody is inside; and nobody is lost over a thousand closures.
    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn a_thousand_closures_under_load() {
        const TASKS: usize = 64;
        let gate = Gate::new(WIDE);
        let sealed = Arc::new(AtomicBool::new(false));
        let stop = Arc::new(AtomicBool::new(false));
        let (entered, left) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let mut tasks = Vec::new();
        for task in 0..TASKS {
            let gate = Arc::clone(&gate);
            let (sealed, stop) = (Arc::clone(&sealed), Arc::clone(&stop));
            let (entered, left) = (Arc::clone(&entered), Arc::clone(&left));
            tasks.push(tokio::spawn(async move {
                while !stop.load(SeqCst) {
                    let admission = gate.enter(task).await.expect("within the limits");
                    entered.fetch_add(1, SeqCst);
                    assert!(!sealed.load(SeqCst), "admitted while closed and drained");
                    if task % 3 == 0 {
                        tokio::task::yield_now().await;
                    }
                    assert!(!sealed.load(SeqCst), "inside while closed and drained");
                    left.fetch_add(1, SeqCst);
                    drop(admission);
                }
            }));
        }
        for round in 0..1_000_u64 {
            let before = entered.load(SeqCst);
            while entered.load(SeqCst) == before {
                tokio::task::yield_now().await;
            }
            gate.close();
            gate.drained().await;
            sealed.store(true, SeqCst);
            assert_eq!(entered.load(SeqCst), left.load(SeqCst));
            for _ in 0..round % 7 {
                tokio::task::yield_now().await;
            }
            sealed.store(false, SeqCst);
            gate.open();
        }
        stop.store(true, SeqCst);
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(gate.stats().in_flight, 0);
        assert_eq!(gate.stats().held, 0);
        assert_eq!(gate.stats().refused_total, 0);
        assert_eq!(entered.load(SeqCst), left.load(SeqCst));
    }
}
