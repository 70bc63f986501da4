//! The turnstile: holds sessions between transactions, and tells when every one of them stands there.
//!
//! It does for sessions what [`super::super::gate`] does for requests. The difference: a session exists between its transactions,
//! and what it has must be read from its server before that is taken away; so a session is *running* until it has parked, idle or
//! not, and the drain is over when none runs. Closing takes two steps, *arm* and *close*, because HTTP drains first: an opening
//! that comes between the two wins, however late the second one is.
//!
//! A running session looks at one atomic per transaction. Everything else is under one lock that is never held across a wait.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};

use crate::config::model::HoldLimits;

/// One turn of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Turn {
    /// Changes with every turn.
    pub number: u64,
    /// Transactions may not begin.
    pub closed: bool,
    /// The zone that sessions may get ready for while they wait.
    pub next: Option<Arc<str>>,
    /// Transactions that are still open are ended.
    pub ending: bool,
}

/// Holds and releases the sessions of one front.
pub struct Turnstile {
    limits: HoldLimits,
    closed: AtomicBool,
    state: Mutex<State>,
    turns: watch::Sender<Turn>,
    settled: Notify,
}

#[derive(Default)]
struct State {
    armed: bool,
    running: usize,
    parked: usize,
    /// Parked sessions that are getting ready for the next zone.
    preparing: usize,
    /// Parked sessions whose client waits.
    held: usize,
    refused: u64,
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
            closed: AtomicBool::new(false),
            state: Mutex::default(),
            turns: watch::Sender::default(),
            settled: Notify::new(),
        })
    }

    /// The next [`Self::close_if_armed`] counts.
    pub fn arm(&self) {
        self.state().armed = true;
    }

    /// Closes if it was armed and not opened since; `next` is where sessions may get ready for. Whether it is closed.
    pub fn close_if_armed(&self, next: Option<Arc<str>>) -> bool {
        let state = self.state();
        if state.armed && !self.is_closed() {
            self.turn(true, next);
        }
        self.is_closed()
    }

    /// Closes at once.
    pub fn close(&self) {
        let mut state = self.state();
        state.armed = true;
        if !self.is_closed() {
            self.turn(true, None);
        }
    }

    /// Opens; whoever waits goes on.
    pub fn open(&self) {
        let mut state = self.state();
        state.armed = false;
        if self.is_closed() {
            self.turn(false, None);
        }
    }

    /// Transactions that are open while it is closed are ended.
    pub fn end_transactions(&self) {
        let _state = self.state();
        if self.is_closed() {
            self.turns.send_modify(|turn| turn.ending = true);
        }
    }

    /// Whether transactions may not begin.
    pub fn is_closed(&self) -> bool {
        self.closed.load(SeqCst)
    }

    /// Tells of each turn.
    pub fn turns(&self) -> watch::Receiver<Turn> {
        self.turns.subscribe()
    }

    /// A place for a session, parked.
    pub fn sit(self: &Arc<Self>) -> Seat {
        self.state().parked += 1;
        Seat { turnstile: Arc::clone(self), runs: false }
    }

    /// Resolves when it is closed and no session runs. Cancel-safe.
    pub async fn drained(&self) {
        self.settles(|state| self.is_closed() && state.running == 0).await;
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

    fn turn(&self, closed: bool, next: Option<Arc<str>>) {
        self.closed.store(closed, SeqCst);
        self.turns.send_modify(|turn| {
            *turn = Turn { number: turn.number + 1, closed, next, ending: false };
        });
        self.settled.notify_waiters();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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
}

impl Seat {
    /// Runs, if it is open.
    pub fn resume(&mut self) -> bool {
        if self.runs {
            return true;
        }
        let mut state = self.turnstile.state();
        if self.turnstile.is_closed() {
            return false;
        }
        state.running += 1;
        state.parked -= 1;
        self.runs = true;
        true
    }

    /// Stands between transactions, with nothing left to do there.
    pub fn park(&mut self) {
        if std::mem::take(&mut self.runs) {
            self.turnstile.change(|state| {
                state.running -= 1;
                state.parked += 1;
            });
        }
    }

    /// It is getting ready for the next zone until the guard is dropped.
    pub fn prepare(&self) -> Preparing {
        self.turnstile.state().preparing += 1;
        Preparing(Arc::clone(&self.turnstile))
    }

    /// Its client waits, until the guard is dropped.
    pub fn hold(&self) -> Result<Held, Refused> {
        let mut state = self.turnstile.state();
        if state.held >= self.turnstile.limits.requests {
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
        let runs = self.runs;
        self.turnstile.change(|state| if runs { state.running -= 1 } else { state.parked -= 1 });
    }
}

/// See [`Seat::prepare`].
pub struct Preparing(Arc<Turnstile>);

impl Drop for Preparing {
    fn drop(&mut self) {
        self.0.change(|state| state.preparing -= 1);
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
    async fn drained_when_every_session_has_parked() {
        let turnstile = Turnstile::new(WIDE);
        let (mut one, mut two) = (turnstile.sit(), turnstile.sit());
        assert!(one.resume() && two.resume());
        turnstile.close();
        assert!(!turnstile.sit().resume(), "new ones wait");
        let mut drained = std::pin::pin!(turnstile.drained());
        one.park();
        assert!(futures_util::poll!(&mut drained).is_pending());
        drop(two);
        drained.await;
        assert!(!one.resume());
        assert_eq!(turnstile.stats(), Stats { running: 0, parked: 1, held: 0, refused_total: 0 });
        turnstile.open();
        assert!(one.resume());
        assert_eq!(turnstile.stats().running, 1);
    }

    #[test]
    fn an_opening_wins_over_a_late_closing() {
        let turnstile = Turnstile::new(WIDE);
        turnstile.arm();
        turnstile.open();
        assert!(!turnstile.close_if_armed(None));
        turnstile.arm();
        assert!(turnstile.close_if_armed(Some("b".into())));
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
