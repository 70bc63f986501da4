//! Connections to the database that clients share, each for a transaction at a time.
//!
//! A [`Role`] has at most so many connections. Who has a transaction to run takes a *place* among them (first come, first served), and
//! with it a connection that lies on its [`Shelf`], or makes one where none does. Connections that were made with other `options` lie on
//! other shelves: what those set is what RESET goes back to. What a client has set is its *profile*; a connection that has the same is
//! preferred, another is brought to it. A connection that lies there has nothing else of anybody's.
//!
//! What lies there needs no place. Who has one takes away one that lies there before it makes another, of whichever shelf
//! ([`Shelf::make_room`]), unless there are fewer than there may be, places and those that lie there together. So there are never more, and what
//! becomes of a connection gives or takes no place.

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
const GREETINGS: usize = 64;

/// After how long a connection that nobody had may have ended without a word so far: a runtime that is busy hears of it a little later. Those that
/// go from hand to hand are not asked about.
const RESTED: Duration = Duration::from_millis(1);

/// The connections of a front.
pub(super) struct Pool {
    pub(super) settings: PostgresPool,
    /// The statements that its clients have prepared.
    pub(super) registry: Arc<Registry>,
    roles: Mutex<HashMap<String, Arc<Role>>>,
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
        Self { settings, registry: Arc::default(), roles: Mutex::default() }
    }

    /// The connections of a role that are made with these `options` of a startup packet.
    pub(super) fn shelf(&self, user: &str, options: Option<&str>) -> Arc<Shelf> {
        let mut roles = lock(&self.roles);
        // Roles come and go.
        roles.retain(|_, role| Arc::strong_count(role) > 1 || !lock(&role.idle).is_empty());
        let role = roles.entry(user.to_owned()).or_insert_with(|| Arc::new(Role::new(self.settings)));
        let mut kinds = lock(&role.kinds);
        kinds.retain(|_, kind| Arc::strong_count(kind) > 1);
        let kind = Arc::clone(kinds.entry(options.map(str::to_owned)).or_default());
        Arc::new(Shelf { role: Arc::clone(role), kind })
    }

    /// Closes what nobody has: it leads to where the primary was.
    pub(super) fn clear(&self) {
        for role in lock(&self.roles).values() {
            lock(&role.idle).clear();
        }
    }

    pub(super) fn filled(&self) -> Filled {
        lock(&self.roles).values().fold(Filled::default(), |sum, role| Filled {
            used: sum.used + role.used(),
            idle: sum.idle + lock(&role.idle).len(),
            pinned: sum.pinned + role.pinned.load(SeqCst),
            waiting: sum.waiting + role.waiting.load(SeqCst),
        })
    }
}

/// All connections of a role.
struct Role {
    settings: PostgresPool,
    places: Arc<Semaphore>,
    idle: Mutex<Vec<Lying>>,
    /// By `options`.
    kinds: Mutex<HashMap<Option<String>, Arc<Kind>>>,
    waiting: AtomicUsize,
    pinned: AtomicUsize,
    /// Somebody closes those that lie too long.
    tidied: Mutex<bool>,
}

/// What connections of a role differ in from the beginning: the `options` of their startup packets.
#[derive(Default)]
struct Kind {
    greetings: Mutex<Vec<Greeting>>,
}

/// The connections of a role that were made alike.
pub(super) struct Shelf {
    role: Arc<Role>,
    kind: Arc<Kind>,
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
    kind: Arc<Kind>,
    since: Instant,
}

impl Lying {
    /// Whether nobody had it for so long that it may have ended in that time.
    pub(super) fn rested(&self) -> bool {
        crate::fronts::now().saturating_duration_since(self.since) >= RESTED
    }
}

/// The right to have a connection.
pub(super) struct Place {
    role: Arc<Role>,
    _permit: OwnedSemaphorePermit,
    pinned: bool,
}

impl Role {
    fn new(settings: PostgresPool) -> Self {
        Self {
            settings,
            places: Arc::new(Semaphore::new(settings.size)),
            idle: Mutex::default(),
            kinds: Mutex::default(),
            waiting: AtomicUsize::new(0),
            pinned: AtomicUsize::new(0),
            tidied: Mutex::new(false),
        }
    }

    /// Places that somebody has.
    fn used(&self) -> usize {
        self.settings.size - self.places.available_permits()
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
}

impl Shelf {
    /// A place, if one is free.
    pub(super) fn free(&self) -> Option<Place> {
        let permit = Arc::clone(&self.role.places).try_acquire_owned().ok()?;
        Some(Place { role: Arc::clone(&self.role), _permit: permit, pinned: false })
    }

    /// A place, in the order of asking. Cancel-safe; who gives up loses its turn.
    pub(super) async fn place(&self) -> Option<Place> {
        let _waiting = Waiting::new(&self.role.waiting);
        let permit = Arc::clone(&self.role.places).acquire_owned().await.ok()?;
        Some(Place { role: Arc::clone(&self.role), _permit: permit, pinned: false })
    }

    /// Whether somebody waits for a place.
    pub(super) fn wanted(&self) -> bool {
        self.role.waiting.load(SeqCst) > 0
    }

    /// One that lies there and leads to this generation's primary; if there is one, with this profile. For who has a place.
    pub(super) fn take(&self, generation: u64, profile: &Arc<State>) -> Option<Lying> {
        let own = |lying: &Lying| Arc::ptr_eq(&lying.kind, &self.kind);
        let mut idle = lock(&self.role.idle);
        loop {
            let alike = idle.iter().rposition(|lying| own(lying) && lying.profile == *profile);
            let at = alike.or_else(|| idle.iter().rposition(own))?;
            let lying = idle.swap_remove(at);
            if lying.backend.generation == generation {
                return Some(lying);
            }
        }
    }

    /// Who has a place may make a connection from here on: where there would be too many, the one of its role that has lain for the longest is
    /// closed.
    pub(super) async fn make_room(&self) {
        if let Some(lying) = self.surplus() {
            lying.backend.end().await;
        }
    }

    fn surplus(&self) -> Option<Lying> {
        let mut idle = lock(&self.role.idle);
        if self.role.used() + idle.len() <= self.role.settings.size {
            return None;
        }
        let (at, _) = idle.iter().enumerate().min_by_key(|(_, lying)| lying.since)?;
        Some(idle.swap_remove(at))
    }

    /// Lays one down, whose place is then given back. Needs a tokio runtime.
    pub(super) fn lay(&self, backend: Backend, has: Has, profile: Arc<State>, turn: u64) {
        let (kind, since) = (Arc::clone(&self.kind), crate::fronts::now());
        lock(&self.role.idle).push(Lying { backend, has, profile, turn, kind, since });
        let mut tidied = lock(&self.role.tidied);
        if !std::mem::replace(&mut *tidied, true) {
            tokio::spawn(Arc::clone(&self.role).tidy());
        }
    }

    /// How this generation's primary greets a session with this profile, if it did: another server may say other things of itself.
    pub(super) fn greeting(&self, generation: u64, profile: &Arc<State>) -> Option<Parameters> {
        let greetings = lock(&self.kind.greetings);
        let known =
            greetings.iter().find(|known| known.generation == generation && known.profile == *profile);
        known.map(|known| Arc::clone(&known.parameters))
    }

    /// So it does.
    pub(super) fn greets(&self, generation: u64, profile: &Arc<State>, parameters: &Parameters) {
        let mut greetings = lock(&self.kind.greetings);
        greetings.retain(|known| known.profile != *profile);
        if greetings.len() >= GREETINGS {
            greetings.remove(0);
        }
        let (profile, parameters) = (Arc::clone(profile), Arc::clone(parameters));
        greetings.push(Greeting { generation, profile, parameters });
    }

    /// How long a client may wait.
    pub(super) fn wait(&self) -> Duration {
        self.role.settings.wait
    }

    /// Statements that are kept on each.
    pub(super) fn statements(&self) -> usize {
        self.role.settings.statements
    }
}

impl Place {
    /// Whether its client keeps it for what it has there.
    pub(super) fn pin(&mut self, pinned: bool) {
        if self.pinned != pinned {
            self.pinned = pinned;
            if pinned {
                self.role.pinned.fetch_add(1, SeqCst);
            } else {
                self.role.pinned.fetch_sub(1, SeqCst);
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
    use tokio::io::{AsyncReadExt, DuplexStream};

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
        let other = pool.shelf("ann", Some("-c geqo=off"));
        assert_eq!(other.greeting(2, &profile), None, "it was made otherwise");
        assert_eq!(pool.shelf("ann", None).greeting(2, &profile), Some(of(b"18.0")));
    }

    /// Lays one down as a client does that had this place.
    fn laid(shelf: &Shelf, place: Place) -> DuplexStream {
        let (backend, server) = Backend::by_hand("a");
        shelf.lay(backend, Has::default(), Arc::default(), 0);
        drop(place);
        server
    }

    /// One that lies there, or the right to make one.
    async fn obtained(shelf: &Shelf) -> Option<Lying> {
        let lying = shelf.take(0, &Arc::default());
        if lying.is_none() {
            shelf.make_room().await;
        }
        lying
    }

    fn of(pool: &Pool) -> (usize, usize) {
        let filled = pool.filled();
        (filled.used, filled.idle)
    }

    #[tokio::test]
    async fn who_has_other_options_takes_the_place_of_what_has_lain_for_the_longest() {
        let pool = Pool::new(PostgresPool { size: 2, ..PostgresPool::default() });
        let (one, two) = (pool.shelf("ann", None), pool.shelf("ann", Some("-c geqo=off")));
        let (first, second) = (one.free().unwrap(), one.free().unwrap());
        assert!(two.free().is_none(), "as many as the role may have");
        let mut oldest = laid(&one, first);
        // There is room for it.
        let other = two.free().unwrap();
        drop(second);
        assert!(obtained(&two).await.is_none());
        assert_eq!(of(&pool), (1, 1));
        // There is none, and what lies there is its own.
        let own = one.free().unwrap();
        assert!(obtained(&one).await.is_some());
        assert_eq!(of(&pool), (2, 0));
        drop(oldest);
        oldest = laid(&one, own);
        let mut newer = laid(&two, other);
        assert_eq!(of(&pool), (0, 2));
        // What was made otherwise goes, the oldest first, and it is told so.
        let three = pool.shelf("ann", Some("-c geqo=on"));
        let mut places = Vec::new();
        for (server, left) in [(&mut oldest, 1), (&mut newer, 0)] {
            places.push(three.free().unwrap());
            assert!(obtained(&three).await.is_none());
            assert_eq!(of(&pool), (places.len(), left));
            let mut heard = Vec::new();
            server.read_to_end(&mut heard).await.unwrap();
            assert_eq!(heard, b"X\0\0\0\x04");
        }
        assert!(one.free().is_none());
        assert!(pool.shelf("bob", None).free().is_some(), "another role has its own");
    }

    #[tokio::test]
    async fn no_place_is_lost() {
        let pool = Pool::new(PostgresPool { size: 1, ..PostgresPool::default() });
        let (one, two) = (pool.shelf("ann", None), pool.shelf("ann", Some("-c geqo=off")));
        // Its connection breaks, or is not made.
        drop(one.free().unwrap());
        let server = laid(&one, one.free().unwrap());
        // Who makes one is gone before it has.
        let place = two.free().unwrap();
        assert!(two.surplus().is_some());
        drop((place, server));
        assert_eq!(of(&pool), (0, 0));
        // So is who waits, before it has a place and when it has just got it.
        let place = one.free().unwrap();
        let (mut gone, mut waits) = (Box::pin(two.place()), Box::pin(two.place()));
        assert!(futures_util::poll!(&mut gone).is_pending());
        assert!(futures_util::poll!(&mut waits).is_pending());
        assert_eq!(pool.filled().waiting, 2);
        drop(gone);
        drop(place);
        assert!(one.free().is_none(), "it is the other's turn");
        drop(waits);
        assert_eq!(pool.filled().waiting, 0);
        assert!(one.free().is_some());
        assert_eq!(of(&pool), (0, 0));
    }
}
