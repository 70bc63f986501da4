//! The newest of every feed. Readers look without waiting; each feed's state is replaced as a whole.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use migration::units::Timestamp;
use tokio::sync::Notify;

use super::{Failure, Feed, Understood};
use crate::clock;

/// What is known of one feed.
#[derive(Clone, Debug, Default)]
pub struct FeedState {
    /// The last that was understood; kept when later runs fail, and judged by its age.
    pub understood: Arc<Understood>,
    /// When that was said, or confirmed as unchanged; none: never.
    pub at: Option<Timestamp>,
    /// When that was heard, by a clock that is never put back.
    pub heard: Option<Instant>,
    /// Its length, bytes.
    pub bytes: u64,
    /// The last failure, if nothing succeeded since.
    pub failure: Option<(Failure, Timestamp)>,
    /// Failures in a row.
    pub failures: u32,
    /// When it is asked next; none: it is posted to.
    pub next: Option<Timestamp>,
    /// When the last accepted post was signed.
    pub signed: Option<Timestamp>,
}

impl FeedState {
    /// After a run that understood something.
    #[must_use]
    pub fn succeeded(&self, understood: Understood, bytes: u64, at: Timestamp) -> Self {
        Self { understood: Arc::new(understood), bytes, ..self.unchanged(at) }
    }

    /// After the source said that nothing has changed.
    #[must_use]
    pub fn unchanged(&self, at: Timestamp) -> Self {
        Self { at: Some(at), heard: Some(clock::monotonic()), failure: None, failures: 0, ..self.clone() }
    }

    /// After a failure at `now`.
    #[must_use]
    pub fn failed(&self, failure: Failure, now: Timestamp) -> Self {
        Self { failure: Some((failure, now)), failures: self.failures.saturating_add(1), ..self.clone() }
    }

    /// How old what it said last is; none: it has said nothing yet. By the clock that was not put back meanwhile.
    pub fn age(&self, now: Timestamp) -> Option<Duration> {
        let at = self.at?;
        let passed = self.heard.map(|heard| clock::monotonic().saturating_duration_since(heard));
        Some(now.since(at).max(passed.unwrap_or_default()))
    }

    /// Why what it said last does not count any more, or never did; `None` when it is fresh.
    pub fn stale(&self, feed: &Feed, now: Timestamp) -> Option<String> {
        let failing = || match &self.failure {
            Some((failure, _)) => format!("; {failure}"),
            None => String::new(),
        };
        let Some(age) = self.age(now) else {
            return Some(format!("feed {} has said nothing yet{}", feed.name, failing()));
        };
        (age > feed.stale_after).then(|| {
            format!(
                "the newest of feed {} is {} old, {} are allowed{}",
                feed.name,
                super::moment::span(age),
                super::moment::span(feed.stale_after),
                failing()
            )
        })
    }
}

struct Cell {
    feed: Arc<Feed>,
    state: ArcSwap<FeedState>,
    /// Held by a post from its check to its effect.
    turn: tokio::sync::Mutex<()>,
}

/// Every feed of the node.
#[derive(Clone, Default)]
pub struct FeedBoard {
    cells: Arc<BTreeMap<String, Cell>>,
    changed: Arc<Notify>,
}

impl FeedBoard {
    /// A board on which nothing was said yet.
    pub fn new(feeds: impl IntoIterator<Item = Feed>) -> Self {
        let cell = |feed: Feed| {
            let (name, state) = (feed.name.clone(), ArcSwap::from_pointee(FeedState::default()));
            (name, Cell { feed: Arc::new(feed), state, turn: tokio::sync::Mutex::default() })
        };
        Self { cells: Arc::new(feeds.into_iter().map(cell).collect()), changed: Arc::default() }
    }

    /// Every feed and its state, by name.
    pub fn all(&self) -> impl Iterator<Item = (&Arc<Feed>, Arc<FeedState>)> {
        self.cells.values().map(|cell| (&cell.feed, cell.state.load_full()))
    }

    /// The feed of this name.
    pub fn get(&self, name: &str) -> Option<(&Arc<Feed>, Arc<FeedState>)> {
        self.cells.get(name).map(|cell| (&cell.feed, cell.state.load_full()))
    }

    /// The right to post to `name`, one at a time.
    pub(super) async fn turn(&self, name: &str) -> Option<tokio::sync::MutexGuard<'_, ()>> {
        Some(self.cells.get(name)?.turn.lock().await)
    }

    /// Changes the state of `name`; whoever changes it meanwhile is not lost.
    pub fn change(&self, name: &str, change: impl Fn(&FeedState) -> FeedState) {
        if let Some(cell) = self.cells.get(name) {
            cell.state.rcu(|state| change(state));
            self.changed.notify_waiters();
        }
    }

    /// The state of `name` as soon as `fact` is true of it; for ever, if there is no such feed.
    pub async fn until(&self, name: &str, fact: impl Fn(&FeedState) -> bool) -> Arc<FeedState> {
        loop {
            // Before the look: a change between the two must wake us.
            let changed = self.changed.notified();
            if let Some((_, state)) = self.get(name)
                && fact(&state)
            {
                return state;
            }
            changed.await;
        }
    }
}
