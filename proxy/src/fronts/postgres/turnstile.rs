//! The turnstile: holds sessions between transactions, and tells when every one of them stands there.
//!
//! It does for sessions what [`super::super::gate`] does for requests. The difference: a session exists between its transactions,
//! and what it has must be read from its server before that is taken away; so a session is *running* until it has parked, idle or
//! not, and the drain is over when none runs. Closing takes two steps, *arm* and *close*, because HTTP drains first: an opening
//! that comes between the two wins, however late the second one is.
//!
//! Opening it in a ramp lets the sessions whose clients wait go on some at a time, twice as many after each pause; those whose clients
//! do not wait come after them. Whose time runs out in a ramp goes on at once: it refuses nobody.
//!
//! Where the policy has it, sessions that only read (`default_transaction_read_only`) go on while the others' open transactions are
//! awaited; they are held, and their own transactions awaited, when those are over.
//!
//! A running session looks at one atomic per transaction. Everything else is under one lock that is never held across a wait.

use std::sync::atomic::{AtomicU8, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use migration::policy::Release;
use tokio::sync::{Notify, watch};

use crate::config::model::HoldLimits;
use crate::lock::lock;

/// One turn of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Turn {
    /// Changes with every turn.
    pub number: u64,
    /// Transactions may not begin.
    pub closed: bool,
    /// But those of sessions that only read.
    pub but_reads: bool,
    /// The zone that sessions may get ready for while they wait.
    pub next: Option<Arc<str>>,
    /// Transactions that are still open are ended.
    pub ending: bool,
}

impl Turn {
    /// Whether a session may not begin a transaction; `reads`: it only reads.
    pub fn holds(&self, reads: bool) -> bool {
        self.closed && !(self.but_reads && reads)
    }
}

/// What [`Turnstile::closed`] says.
const OPEN: u8 = 0;
const BUT_READS: u8 = 1;
const CLOSED: u8 = 2;

/// Holds and releases the sessions of one front.
pub struct Turnstile {
    limits: HoldLimits,
    closed: AtomicU8,
    state: Mutex<State>,
    turns: watch::Sender<Turn>,
    settled: Notify,
}

#[derive(Default)]
struct State {
    armed: bool,
    running: usize,
    /// Running sessions that only read, as they have said since the last turn.
    reading: usize,
    parked: usize,
    /// Parked sessions that are getting ready for the next zone.
    preparing: usize,
    /// Parked sessions that have at their server what another one might get.
    claims: usize,
    /// How often those were told to go back.
    called: u64,
    /// Parked sessions whose client waits.
    held: usize,
    refused: u64,
    /// There while a ramp goes on.
    ramp: Option<Ramp>,
}

/// Who may go on in a ramp.
struct Ramp {
    /// The turn that it belongs to.
    turn: u64,
    /// Sessions that may go on before the next pause is over.
    left: usize,
}

/// Why a session may not wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// As many wait as may.
    #[error("as many sessions wait as may")]
    TooMany,
    /// It waited as long as it may.
    #[error("it waited as long as it may")]
    TooLong,
}

/// What it holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Sessions that run, idle or not.
    pub running: usize,
    /// Sessions that stand between transactions.
    pub parked: usize,
    /// Those of them whose client waits.
    pub held: usize,
    /// Sessions that were refused since the start.
    pub refused_total: u64,
}

impl Turnstile {
    /// An open one.
    pub fn new(limits: HoldLimits) -> Arc<Self> {
        Arc::new(Self {
            limits,
            closed: AtomicU8::new(OPEN),
            state: Mutex::default(),
            turns: watch::Sender::default(),
            settled: Notify::new(),
        })
    }

    /// The next [`Self::close_if_armed`] counts.
    pub fn arm(&self) {
        self.state().armed = true;
    }

    /// Closes if it was armed and not opened since; `next` is where sessions may get ready for, `but_reads`: sessions that only
    /// read go on until [`Self::close_reads`]. Whether it is closed.
    pub fn close_if_armed(&self, next: Option<Arc<str>>, but_reads: bool) -> bool {
        let mut state = self.state();
        if state.armed && !self.is_closed() {
            state.ramp = None;
            self.turn(&mut state, if but_reads { BUT_READS } else { CLOSED }, next);
        }
        self.is_closed()
    }

    /// Sessions that only read may not begin a transaction either.
    pub fn close_reads(&self) {
        let mut state = self.state();
        if self.closed.load(SeqCst) == BUT_READS {
            let next = self.turns.borrow().next.clone();
            self.turn(&mut state, CLOSED, next);
        }
    }

    /// Closes at once.
    pub fn close(&self) {
        let mut state = self.state();
        state.armed = true;
        if self.closed.load(SeqCst) != CLOSED {
            state.ramp = None;
            self.turn(&mut state, CLOSED, None);
        }
    }

    /// Whoever lost its connection at `zone` may get ready to go back there. Sessions with a [`Claim`] count as getting ready until they have heard of
    /// it. Nothing happens where sessions that only read go on.
    pub fn go_back(&self, zone: Arc<str>) {
        let mut state = self.state();
        if self.closed.load(SeqCst) == CLOSED {
            state.called += 1;
            state.preparing += state.claims;
            self.turn(&mut state, CLOSED, Some(zone));
        }
    }

    /// Opens; whoever waits goes on.
    pub fn open(&self) {
        let mut state = self.state();
        state.armed = false;
        let ramped = state.ramp.take().is_some();
        if self.is_closed() || ramped {
            self.turn(&mut state, OPEN, None);
        }
    }

    /// Opens; whoever waits goes on in a ramp. Needs a tokio runtime, and does nothing where it is open.
    pub fn open_in_ramp(self: &Arc<Self>, ramp: Release) {
        let turn = {
            let mut state = self.state();
            state.armed = false;
            if !self.is_closed() {
                return;
            }
            let turn = self.turns.borrow().number + 1;
            let left = ramp.first.max(1) as usize;
            state.ramp = (state.held > left).then_some(Ramp { turn, left });
            self.turn(&mut state, OPEN, None);
            if state.ramp.is_none() {
                return;
            }
            turn
        };
        let turnstile = Arc::clone(self);
        tokio::spawn(async move {
            let mut batch = ramp.first.max(1) as usize;
            loop {
                tokio::time::sleep(ramp.every).await;
                batch = batch.saturating_mul(2);
                if !turnstile.go_on(turn, batch) {
                    return;
                }
            }
        });
    }

    /// Lets the next ones of a ramp go on. Whether it goes on itself.
    fn go_on(&self, turn: u64, batch: usize) -> bool {
        let mut state = self.state();
        let held = state.held;
        let Some(ramp) = state.ramp.as_mut().filter(|ramp| ramp.turn == turn) else { return false };
        ramp.left = batch;
        let left = held > batch;
        if !left {
            state.ramp = None;
        }
        // Nothing of the turn is another: they only look again.
        self.turns.send_modify(|_| {});
        left
    }

    /// Sessions whose clients wait go first.
    pub fn ramps(&self) -> bool {
        self.state().ramp.is_some()
    }

    /// Transactions that are open while it is closed are ended; sessions that only read may not begin one either.
    pub fn end_transactions(&self) {
        self.close_reads();
        let _state = self.state();
        if self.is_closed() {
            self.turns.send_modify(|turn| turn.ending = true);
        }
    }

    /// Whether transactions may not begin.
    pub fn is_closed(&self) -> bool {
        self.closed.load(SeqCst) != OPEN
    }

    /// Whether a session may not begin a transaction; `reads`: it only reads.
    pub fn holds(&self, reads: bool) -> bool {
        match self.closed.load(SeqCst) {
            OPEN => false,
            BUT_READS => !reads,
            _ => true,
        }
    }

    /// The number of the turn.
    pub fn turn_number(&self) -> u64 {
        self.turns.borrow().number
    }

    /// Tells of each turn.
    pub fn turns(&self) -> watch::Receiver<Turn> {
        self.turns.subscribe()
    }

    /// A place for a session, parked.
    pub fn sit(self: &Arc<Self>) -> Seat {
        self.state().parked += 1;
        Seat { turnstile: Arc::clone(self), runs: false, reading: None }
    }

    /// Resolves when it is closed and no session runs. Cancel-safe.
    pub async fn drained(&self) {
        self.settles(|state| self.is_closed() && state.running == 0).await;
    }

    /// Resolves when it is closed and no session runs but those that only read. Cancel-safe.
    pub async fn only_reads(&self) {
        self.settles(|state| self.is_closed() && state.running == state.reading).await;
    }

    /// Resolves when no parked session is getting ready any more. Cancel-safe.
    pub async fn prepared(&self) {
        self.settles(|state| state.preparing == 0).await;
    }

    async fn settles(&self, reached: impl Fn(&State) -> bool) {
        loop {
            let mut settled = std::pin::pin!(self.settled.notified());
            settled.as_mut().enable();
            if reached(&self.state()) {
                return;
            }
            settled.await;
        }
    }

    /// What it holds.
    pub fn stats(&self) -> Stats {
        let state = self.state();
        Stats { running: state.running, parked: state.parked, held: state.held, refused_total: state.refused }
    }

    /// How long a session may be held.
    pub fn longest(&self) -> Duration {
        self.limits.time
    }

    /// The bounds it was given.
    pub fn limits(&self) -> HoldLimits {
        self.limits
    }

    fn turn(&self, state: &mut State, closed: u8, next: Option<Arc<str>>) {
        self.closed.store(closed, SeqCst);
        state.reading = 0;
        self.turns.send_modify(|turn| {
            let (closed, but_reads) = (closed != OPEN, closed == BUT_READS);
            *turn = Turn { number: turn.number + 1, closed, but_reads, next, ending: false };
        });
        self.settled.notify_waiters();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let changed = change(&mut self.state());
        self.settled.notify_waiters();
        changed
    }
}

/// A session's place; dropping it leaves.
pub struct Seat {
    turnstile: Arc<Turnstile>,
    runs: bool,
    /// The turn in which it was counted among those that only read.
    reading: Option<u64>,
}

impl Seat {
    /// Runs, if it is open and a ramp leaves room. `reads`: the session only reads.
    pub fn resume(&mut self, reads: bool) -> bool {
        self.run(true, reads)
    }

    /// Runs, if it is open: the time in which it may wait for its turn is over.
    pub fn resume_at_once(&mut self, reads: bool) -> bool {
        self.run(false, reads)
    }

    /// The session only reads: nobody waits for it before [`Turnstile::close_reads`].
    pub fn only_reads(&mut self) {
        if self.runs {
            let turnstile = Arc::clone(&self.turnstile);
            turnstile.change(|state| self.count_reading(state));
        }
    }

    fn run(&mut self, in_turn: bool, reads: bool) -> bool {
        if self.runs {
            return true;
        }
        let turnstile = Arc::clone(&self.turnstile);
        let mut state = turnstile.state();
        if turnstile.holds(reads) {
            return false;
        }
        if let Some(ramp) = state.ramp.as_mut().filter(|_| in_turn) {
            if ramp.left == 0 {
                return false;
            }
            ramp.left -= 1;
        }
        state.running += 1;
        state.parked -= 1;
        self.runs = true;
        if turnstile.is_closed() {
            self.count_reading(&mut state);
        }
        true
    }

    fn count_reading(&mut self, state: &mut State) {
        let turn = Some(self.turnstile.turn_number());
        if std::mem::replace(&mut self.reading, turn) != turn {
            state.reading += 1;
        }
    }

    /// It runs no more.
    fn uncount(&mut self, state: &mut State) {
        state.running -= 1;
        if self.reading.take() == Some(self.turnstile.turn_number()) {
            state.reading -= 1;
        }
    }

    /// Stands between transactions, with nothing left to do there.
    pub fn park(&mut self) {
        if std::mem::take(&mut self.runs) {
            let turnstile = Arc::clone(&self.turnstile);
            turnstile.change(|state| {
                self.uncount(state);
                state.parked += 1;
            });
        }
    }

    /// It is getting ready for the next zone until the guard is dropped.
    pub fn prepare(&self) -> Preparing {
        self.turnstile.state().preparing += 1;
        Preparing(Arc::clone(&self.turnstile))
    }

    /// It has at its server what another one might get.
    pub fn claim(&self) -> Claim {
        let mut state = self.turnstile.state();
        state.claims += 1;
        Claim { turnstile: Arc::clone(&self.turnstile), heard: state.called }
    }

    /// Its client waits, until the guard is dropped.
    pub fn hold(&self) -> Result<Held, Refused> {
        let mut state = self.turnstile.state();
        if state.held >= self.turnstile.limits.requests && state.ramp.is_none() {
            state.refused += 1;
            return Err(Refused::TooMany);
        }
        state.held += 1;
        Ok(Held { turnstile: Arc::clone(&self.turnstile), since: super::super::now() })
    }

    /// It waited too long.
    pub fn refuse(&self) -> Refused {
        self.turnstile.state().refused += 1;
        Refused::TooLong
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let turnstile = Arc::clone(&self.turnstile);
        turnstile.change(|state| if self.runs { self.uncount(state) } else { state.parked -= 1 });
    }
}

/// See [`Seat::prepare`].
pub struct Preparing(Arc<Turnstile>);

impl Drop for Preparing {
    fn drop(&mut self) {
        self.0.change(|state| state.preparing -= 1);
    }
}

/// See [`Seat::claim`].
pub struct Claim {
    turnstile: Arc<Turnstile>,
    heard: u64,
}

impl Claim {
    /// It was told to go back, and is getting ready by now, or need not.
    pub fn hear(&mut self) {
        let heard = &mut self.heard;
        self.turnstile.change(|state| {
            state.preparing -= (state.called - *heard) as usize;
            *heard = state.called;
        });
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.hear();
        self.turnstile.state().claims -= 1;
    }
}

/// See [`Seat::hold`].
pub struct Held {
    turnstile: Arc<Turnstile>,
    /// Since when.
    pub since: std::time::Instant,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.turnstile.change(|state| state.held -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WIDE: HoldLimits = HoldLimits { requests: 1, bytes: usize::MAX, time: Duration::from_mins(1) };

    #[tokio::test]
    async fn who_claims_something_is_waited_for_until_it_is_back() {
        let turnstile = Turnstile::new(WIDE);
        let prepared = || futures_util::FutureExt::now_or_never(turnstile.prepared()).is_some();
        let mut seat = turnstile.sit();
        assert!(seat.resume(false));
        turnstile.go_back("a".into());
        assert!(!turnstile.turns().borrow().closed && prepared(), "nobody waits");
        turnstile.close();
        let mut claim = seat.claim();
        seat.park();
        assert!(prepared());
        turnstile.go_back("a".into());
        let turn = turnstile.turns().borrow().clone();
        assert!(turn.closed && turn.next.as_deref() == Some("a") && !prepared());
        let preparing = seat.prepare();
        claim.hear();
        assert!(!prepared());
        drop(preparing);
        assert!(prepared());
        turnstile.go_back("a".into());
        assert!(!prepared());
        drop(claim);
        assert!(prepared(), "who has gone is not waited for");
    }

    /// The clock stands still but for what `advance` does.
    #[tokio::test(start_paused = true)]
    async fn a_ramp_lets_twice_as_many_go_on_each_time() {
        let turnstile = Turnstile::new(HoldLimits { requests: 100, ..WIDE });
        turnstile.close();
        let mut waiting: Vec<_> = (0..20).map(|_| turnstile.sit()).collect();
        let mut held: Vec<_> = waiting.iter().map(|seat| seat.hold().ok()).collect();
        let mut turns = turnstile.turns();
        turnstile.open_in_ramp(Release { first: 2, every: Duration::from_millis(10) });
        turns.borrow_and_update();
        let mut go_on = || {
            let mut went = 0;
            for (seat, held) in waiting.iter_mut().zip(&mut held).filter(|(_, held)| held.is_some()) {
                if seat.resume(false) {
                    *held = None;
                    went += 1;
                }
            }
            went
        };
        assert!(turnstile.ramps() && !turnstile.is_closed());
        assert_eq!((go_on(), go_on()), (2, 0));
        tokio::time::advance(Duration::from_millis(9)).await;
        tokio::task::yield_now().await;
        assert_eq!(go_on(), 0, "not before the pause is over");
        for expected in [4, 8] {
            turns.changed().await.unwrap();
            assert_eq!((go_on(), go_on()), (expected, 0));
        }
        turns.changed().await.unwrap();
        assert!(!turnstile.ramps());
        assert_eq!((go_on(), turnstile.stats().running), (6, 20));
    }

    #[tokio::test(start_paused = true)]
    async fn a_ramp_ends_with_the_next_turn_and_refuses_nobody() {
        let turnstile = Turnstile::new(HoldLimits { requests: 100, ..WIDE });
        turnstile.close();
        let mut seats: Vec<_> = (0..4).map(|_| turnstile.sit()).collect();
        let _held: Vec<_> = seats.iter().map(|seat| seat.hold().ok()).collect();
        let slow = Release { first: 1, every: Duration::from_secs(1) };
        turnstile.open_in_ramp(slow);
        assert!(seats[0].resume(false) && !seats[1].resume(false));
        assert!(seats[1].resume_at_once(false), "its time is over");
        turnstile.close();
        assert!(!turnstile.ramps() && !seats[2].resume(false) && !seats[2].resume_at_once(false));
        // The task of the ramp that ended lets nobody go on.
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert!(!seats[2].resume(false));
        turnstile.open_in_ramp(slow);
        assert!(seats[2].resume(false) && !seats[3].resume(false));
        turnstile.open();
        assert!(seats[3].resume(false));
    }

    #[tokio::test]
    async fn who_only_reads_goes_on_until_the_others_have_drained() {
        let turnstile = Turnstile::new(WIDE);
        let (mut reads, mut writes, mut late) = (turnstile.sit(), turnstile.sit(), turnstile.sit());
        assert!(reads.resume(true) && writes.resume(false));
        turnstile.arm();
        assert!(turnstile.close_if_armed(Some("b".into()), true));
        assert!(turnstile.holds(false) && !turnstile.holds(true) && turnstile.is_closed());
        let mut only_reads = Box::pin(turnstile.only_reads());
        assert!(futures_util::poll!(&mut only_reads).is_pending(), "who writes is awaited");
        writes.park();
        assert!(futures_util::poll!(&mut only_reads).is_pending(), "who has not said what it is, too");
        reads.only_reads();
        reads.only_reads();
        only_reads.await;
        assert!(!writes.resume(false) && late.resume(true), "another may begin to read");
        turnstile.only_reads().await;
        turnstile.close_reads();
        assert_eq!(turnstile.turns().borrow().next.as_deref(), Some("b"));
        assert!(turnstile.holds(true));
        let mut drained = Box::pin(turnstile.drained());
        assert!(futures_util::poll!(&mut drained).is_pending());
        drop(late);
        reads.park();
        drained.await;
        assert!(!reads.resume(true));
        turnstile.open();
        assert!(reads.resume(true) && writes.resume(false));
        turnstile.close_reads();
        assert!(!turnstile.is_closed(), "an opening wins");
        turnstile.arm();
        assert!(turnstile.close_if_armed(None, true));
        turnstile.end_transactions();
        assert!(turnstile.holds(true) && turnstile.turns().borrow().ending, "whoever is left is to end");
        turnstile.open();
        // Who was counted in another turn counts for nothing in this one.
        turnstile.arm();
        assert!(turnstile.close_if_armed(None, true));
        assert!(futures_util::poll!(&mut Box::pin(turnstile.only_reads())).is_pending());
        turnstile.close();
        assert!(turnstile.holds(true));
    }

    #[tokio::test]
    async fn drained_when_every_session_has_parked() {
        let turnstile = Turnstile::new(WIDE);
        let (mut one, mut two) = (turnstile.sit(), turnstile.sit());
        assert!(one.resume(false) && two.resume(false));
        turnstile.close();
        assert!(!turnstile.sit().resume(false), "new ones wait");
        let mut drained = std::pin::pin!(turnstile.drained());
        one.park();
        assert!(futures_util::poll!(&mut drained).is_pending());
        drop(two);
        drained.await;
        assert!(!one.resume(false));
        assert_eq!(turnstile.stats(), Stats { running: 0, parked: 1, held: 0, refused_total: 0 });
        turnstile.open();
        assert!(one.resume(false));
        assert_eq!(turnstile.stats().running, 1);
    }

    #[test]
    fn an_opening_wins_over_a_late_closing() {
        let turnstile = Turnstile::new(WIDE);
        turnstile.arm();
        turnstile.open();
        assert!(!turnstile.close_if_armed(None, false));
        turnstile.arm();
        assert!(turnstile.close_if_armed(Some("b".into()), false));
        assert_eq!(turnstile.turns().borrow().next.as_deref(), Some("b"));
        turnstile.end_transactions();
        assert!(turnstile.turns().borrow().ending);
        turnstile.open();
        assert!(!turnstile.is_closed() && !turnstile.turns().borrow().ending);
        turnstile.end_transactions();
        assert!(!turnstile.turns().borrow().ending, "nothing to end while it is open");
    }

    #[tokio::test]
    async fn the_newest_over_the_bound_is_refused_and_preparing_is_awaited() {
        let turnstile = Turnstile::new(WIDE);
        let (one, two) = (turnstile.sit(), turnstile.sit());
        turnstile.close();
        let held = one.hold();
        assert!(held.is_ok());
        assert_eq!(two.hold().err(), Some(Refused::TooMany));
        drop(held);
        assert!(two.hold().is_ok());
        let preparing = one.prepare();
        let mut prepared = std::pin::pin!(turnstile.prepared());
        assert!(futures_util::poll!(&mut prepared).is_pending());
        drop(preparing);
        prepared.await;
        assert_eq!(turnstile.stats().refused_total, 1);
    }
}
