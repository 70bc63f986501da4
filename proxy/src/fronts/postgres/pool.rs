//! Connections to the database that clients share, each for a transaction at a time.
//!
//! A role has a [`Shelf`] of at most so many connections. Who has a transaction to run takes a *place* on it (first come, first
//! served), and with it a connection that lies there, or makes one where none does. What a client has set is its *profile*; a connection
//! that has the same is preferred, another is brought to it. A connection that lies there has nothing else of anybody's.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::backend::{Backend, Parameters};
use super::protocol::state::State;
use super::protocol::statements::{Has, Registry};
use crate::config::model::PostgresPool;
use crate::lock::lock;

/// Profiles for which it is known how a server greets who has them.
const GREETINGS: usize = 256;

/// What connections of a role can differ in only from the beginning: the role, and `options` of the startup packet that cannot be set later.
type Key = (String, Option<String>);

/// The connections of a front.
pub(super) struct Pool {
    pub(super) settings: PostgresPool,
    /// The statements that its clients have prepared.
    pub(super) registry: Arc<Registry>,
    shelves: Mutex<HashMap<Key, Arc<Shelf>>>,
}

/// How full a pool is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Filled {
    /// Connections that somebody has, pinned or for a transaction.
    pub(super) used: usize,
    /// Connections that nobody has.
    pub(super) idle: usize,
    /// Connections that a client keeps for what it has there.
    pub(super) pinned: usize,
    /// Clients that wait for one.
    pub(super) waiting: usize,
}

impl Pool {
    pub(super) fn new(settings: PostgresPool) -> Self {
        Self { settings, registry: Arc::default(), shelves: Mutex::default() }
    }

    /// The connections of a role.
    pub(super) fn shelf(&self, user: &str, options: Option<&str>) -> Arc<Shelf> {
        let mut shelves = lock(&self.shelves);
        // Roles come and go.
        shelves.retain(|_, shelf| Arc::strong_count(shelf) > 1 || !lock(&shelf.idle).is_empty());
        let shelf = shelves.entry((user.to_owned(), options.map(str::to_owned)));
        Arc::clone(shelf.or_insert_with(|| Arc::new(Shelf::new(self.settings))))
    }

    /// Closes what nobody has: it leads to where the primary was.
    pub(super) fn clear(&self) {
        for shelf in lock(&self.shelves).values() {
            lock(&shelf.idle).clear();
        }
    }

    pub(super) fn filled(&self) -> Filled {
        lock(&self.shelves).values().fold(Filled::default(), |sum, shelf| Filled {
            used: sum.used + shelf.settings.size - shelf.places.available_permits(),
            idle: sum.idle + lock(&shelf.idle).len(),
            pinned: sum.pinned + shelf.pinned.load(SeqCst),
            waiting: sum.waiting + shelf.waiting.load(SeqCst),
        })
    }
}

/// The connections of a role.
pub(super) struct Shelf {
    settings: PostgresPool,
    places: Arc<Semaphore>,
    idle: Mutex<Vec<Lying>>,
    greetings: Mutex<Vec<Greeting>>,
    waiting: AtomicUsize,
    pinned: AtomicUsize,
    /// Somebody closes those that lie too long.
    tidied: Mutex<bool>,
}

/// How the primary of a generation greets a session with this profile.
struct Greeting {
    generation: u64,
    profile: Arc<State>,
    parameters: Parameters,
}

/// A connection that nobody has.
pub(super) struct Lying {
    pub(super) backend: Backend,
    pub(super) has: Has,
    /// What is set there.
    pub(super) profile: Arc<State>,
    /// The turnstile's turn when it was last used.
    pub(super) turn: u64,
    since: Instant,
}

/// The right to have a connection.
pub(super) struct Place {
    shelf: Arc<Shelf>,
    _permit: OwnedSemaphorePermit,
    pinned: bool,
}

impl Shelf {
    fn new(settings: PostgresPool) -> Self {
        Self {
            settings,
            places: Arc::new(Semaphore::new(settings.size)),
            idle: Mutex::default(),
            greetings: Mutex::default(),
            waiting: AtomicUsize::new(0),
            pinned: AtomicUsize::new(0),
            tidied: Mutex::new(false),
        }
    }

    /// A place, if one is free.
    pub(super) fn free(self: &Arc<Self>) -> Option<Place> {
        let permit = Arc::clone(&self.places).try_acquire_owned().ok()?;
        Some(Place { shelf: Arc::clone(self), _permit: permit, pinned: false })
    }

    /// A place, in the order of asking. Cancel-safe; who gives up loses its turn.
    pub(super) async fn place(self: &Arc<Self>) -> Option<Place> {
        let _waiting = Waiting::new(&self.waiting);
        let permit = Arc::clone(&self.places).acquire_owned().await.ok()?;
        Some(Place { shelf: Arc::clone(self), _permit: permit, pinned: false })
    }

    /// Whether somebody waits for a place.
    pub(super) fn wanted(&self) -> bool {
        self.waiting.load(SeqCst) > 0
    }

    /// One that lies there and leads to this generation's primary; if there is one, with this profile.
    pub(super) fn take(&self, generation: u64, profile: &Arc<State>) -> Option<Lying> {
        let mut idle = lock(&self.idle);
        loop {
            let at =
                idle.iter().rposition(|lying| lying.profile == *profile).or(idle.len().checked_sub(1))?;
            let lying = idle.swap_remove(at);
            if lying.backend.generation == generation {
                return Some(lying);
            }
        }
    }

    /// Lays one down. Needs a tokio runtime.
    pub(super) fn lay(self: &Arc<Self>, backend: Backend, has: Has, profile: Arc<State>, turn: u64) {
        let since = crate::fronts::now();
        lock(&self.idle).push(Lying { backend, has, profile, turn, since });
        let mut tidied = lock(&self.tidied);
        if !std::mem::replace(&mut *tidied, true) {
            tokio::spawn(Arc::clone(self).tidy());
        }
    }

    /// Closes those that lie for too long, until none lies there.
    async fn tidy(self: Arc<Self>) {
        loop {
            tokio::time::sleep(self.settings.idle / 2).await;
            let mut old = Vec::new();
            {
                let mut tidied = lock(&self.tidied);
                let mut idle = lock(&self.idle);
                let now = crate::fronts::now();
                let too_long =
                    |lying: &mut Lying| now.saturating_duration_since(lying.since) >= self.settings.idle;
                old.extend(idle.extract_if(.., too_long));
                if idle.is_empty() {
                    *tidied = false;
                }
            }
            for lying in old {
                lying.backend.close().await;
            }
            if !*lock(&self.tidied) {
                return;
            }
        }
    }

    /// How this generation's primary greets a session with this profile, if it did: another server may say other things of itself.
    pub(super) fn greeting(&self, generation: u64, profile: &Arc<State>) -> Option<Parameters> {
        let greetings = lock(&self.greetings);
        let known =
            greetings.iter().find(|known| known.generation == generation && known.profile == *profile);
        known.map(|known| Arc::clone(&known.parameters))
    }

    /// So it does.
    pub(super) fn greets(&self, generation: u64, profile: &Arc<State>, parameters: &Parameters) {
        let mut greetings = lock(&self.greetings);
        greetings.retain(|known| known.profile != *profile);
        if greetings.len() >= GREETINGS {
            greetings.remove(0);
        }
        let (profile, parameters) = (Arc::clone(profile), Arc::clone(parameters));
        greetings.push(Greeting { generation, profile, parameters });
    }

    /// How long a client may wait.
    pub(super) fn wait(&self) -> Duration {
        self.settings.wait
    }

    /// Statements that are kept on each.
    pub(super) fn statements(&self) -> usize {
        self.settings.statements
    }
}

impl Place {
    /// Whether its client keeps it for what it has there.
    pub(super) fn pin(&mut self, pinned: bool) {
        if self.pinned != pinned {
            self.pinned = pinned;
            if pinned {
                self.shelf.pinned.fetch_add(1, SeqCst);
            } else {
                self.shelf.pinned.fetch_sub(1, SeqCst);
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.pin(false);
    }
}

struct Waiting<'c>(&'c AtomicUsize);

impl<'c> Waiting<'c> {
    fn new(count: &'c AtomicUsize) -> Self {
        count.fetch_add(1, SeqCst);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_greeting_is_of_one_primary() {
        let pool = Pool::new(PostgresPool::default());
        let shelf = pool.shelf("ann", None);
        let profile = Arc::new(State::default());
        let of = |version: &[u8]| Arc::new(vec![(Box::from(&b"server_version"[..]), Box::from(version))]);
        shelf.greets(1, &profile, &of(b"15.4"));
        assert_eq!(shelf.greeting(1, &profile), Some(of(b"15.4")));
        assert_eq!(shelf.greeting(2, &profile), None, "another server is the primary");
        shelf.greets(2, &profile, &of(b"18.0"));
        assert_eq!(shelf.greeting(2, &profile), Some(of(b"18.0")));
    }
}
