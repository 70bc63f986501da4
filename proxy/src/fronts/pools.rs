//! Pools: the upstreams of the active placement, and the swap.
//!
//! A pool is a snapshot that belongs to one generation. It is replaced, never edited: by [`ActivePool::swap`] for the next
//! generation, by [`ActivePool::set_upstreams`] within one. Both retire the endpoints that go: a request that still holds
//! the old snapshot backs out and looks again, so after either returns nothing new is sent to a retired endpoint, and
//! [`Endpoint::idle`] tells when what was sent before is done. It never waits for anything on the request path.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, Guard};
use crossbeam::utils::CachePadded;
use tokio::sync::Notify;

/// An endpoint that refused a connection is skipped this long, unless all did.
const SKIP_AFTER_REFUSAL: Duration = Duration::from_secs(1);
/// At most this many endpoints are compared for one request.
const COMPARED: usize = 8;

/// The upstreams of one generation.
pub struct Pool {
    /// Its generation; keys the connections to its endpoints.
    pub generation: u64,
    /// The zone of its placement.
    pub zone: Arc<str>,
    endpoints: Vec<Arc<Endpoint>>,
    turn: CachePadded<AtomicUsize>,
}

/// One upstream of a pool.
pub struct Endpoint {
    address: SocketAddr,
    in_flight: CachePadded<AtomicUsize>,
    /// Milliseconds after `epoch`, one more than the time of the last refusal; zero: none.
    refused: AtomicU64,
    epoch: Instant,
    retired: AtomicBool,
    emptied: Notify,
}

/// A request's claim on an endpoint; dropping it ends the claim.
pub struct Pick {
    endpoint: Arc<Endpoint>,
    /// Generation of the pool it came from.
    pub generation: u64,
    /// Zone of that pool.
    pub zone: Arc<str>,
}

/// A swap that must not happen.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the pool of generation {offered} does not follow generation {active} in {zone}")]
pub struct Stale {
    /// What was offered.
    pub offered: u64,
    /// What is active.
    pub active: u64,
    /// The zone of the active pool.
    pub zone: Arc<str>,
}

/// The pool that requests are sent to now.
pub struct ActivePool {
    pool: ArcSwap<Pool>,
    /// One writer at a time.
    writer: Mutex<()>,
}

impl Pool {
    /// A pool of fresh endpoints; doubles are dropped.
    pub fn new(generation: u64, zone: impl Into<Arc<str>>, upstreams: &[SocketAddr]) -> Self {
        Self::of(generation, zone.into(), upstreams, &[])
    }

    /// Keeps the endpoints of `known` whose address stays.
    fn of(generation: u64, zone: Arc<str>, upstreams: &[SocketAddr], known: &[Arc<Endpoint>]) -> Self {
        let mut endpoints: Vec<Arc<Endpoint>> = Vec::with_capacity(upstreams.len());
        for address in upstreams {
            if endpoints.iter().all(|endpoint| endpoint.address != *address) {
                let kept = known.iter().find(|endpoint| endpoint.address == *address).cloned();
                endpoints.push(kept.unwrap_or_else(|| Arc::new(Endpoint::new(*address))));
            }
        }
        Self { generation, zone, endpoints, turn: CachePadded::default() }
    }

    /// Its addresses.
    pub fn upstreams(&self) -> Vec<SocketAddr> {
        self.endpoints.iter().map(|endpoint| endpoint.address).collect()
    }

    /// Its endpoints.
    pub fn endpoints(&self) -> &[Arc<Endpoint>] {
        &self.endpoints
    }

    /// Resolves when no endpoint of a replaced pool has a request in flight. Cancel-safe.
    pub async fn idle(&self) {
        for endpoint in &self.endpoints {
            endpoint.idle().await;
        }
    }

    /// The endpoint with the fewest requests in flight among the next few in turn: not one of `avoid`, and not one that
    /// refused lately unless there is no other.
    fn choose(&self, avoid: &[SocketAddr], now: Instant) -> Option<&Arc<Endpoint>> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let in_turn = (0..self.endpoints.len()).map(|step| {
            let at = turn.wrapping_add(step) % self.endpoints.len();
            &self.endpoints[at]
        });
        let allowed = || in_turn.clone().filter(|endpoint| !avoid.contains(&endpoint.address));
        let least = |endpoint: &&Arc<Endpoint>| endpoint.in_flight.load(Ordering::Relaxed);
        allowed()
            .filter(|endpoint| !endpoint.refused_lately(now))
            .take(COMPARED)
            .min_by_key(least)
            .or_else(|| allowed().min_by_key(least))
    }
}

impl Endpoint {
    fn new(address: SocketAddr) -> Self {
        Self {
            address,
            in_flight: CachePadded::default(),
            refused: AtomicU64::new(0),
            epoch: super::now(),
            retired: AtomicBool::new(false),
            emptied: Notify::new(),
        }
    }

    /// Its address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Requests sent to it that are not done.
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(SeqCst)
    }

    /// Resolves when it was retired and no request is in flight. Cancel-safe.
    pub async fn idle(&self) {
        loop {
            let mut emptied = std::pin::pin!(self.emptied.notified());
            emptied.as_mut().enable();
            if self.retired.load(SeqCst) && self.in_flight() == 0 {
                return;
            }
            emptied.await;
        }
    }

    fn retire(&self) {
        self.retired.store(true, SeqCst);
        self.emptied.notify_waiters();
    }

    fn refused_lately(&self, now: Instant) -> bool {
        let refused = self.refused.load(Ordering::Relaxed);
        refused != 0
            && now.saturating_duration_since(self.epoch)
                < Duration::from_millis(refused - 1) + SKIP_AFTER_REFUSAL
    }
}

impl Pick {
    /// Where the request goes.
    pub fn address(&self) -> SocketAddr {
        self.endpoint.address
    }

    /// The endpoint refused a connection: others are preferred for a short while.
    pub fn refused(&self, now: Instant) {
        let since = now.saturating_duration_since(self.endpoint.epoch).as_millis();
        self.endpoint.refused.store(u64::try_from(since).unwrap_or(u64::MAX - 1) + 1, Ordering::Relaxed);
    }

    /// The endpoint took a connection.
    pub fn connected(&self) {
        if self.endpoint.refused.load(Ordering::Relaxed) != 0 {
            self.endpoint.refused.store(0, Ordering::Relaxed);
        }
    }
}

impl Drop for Pick {
    fn drop(&mut self) {
        let before = self.endpoint.in_flight.fetch_sub(1, SeqCst);
        if before == 1 && self.endpoint.retired.load(SeqCst) {
            self.endpoint.emptied.notify_waiters();
        }
    }
}

impl ActivePool {
    /// Starts with `pool`.
    pub fn new(pool: Pool) -> Self {
        Self { pool: ArcSwap::from_pointee(pool), writer: Mutex::default() }
    }

    /// The pool of this moment.
    pub fn load(&self) -> Guard<Arc<Pool>> {
        self.pool.load()
    }

    /// Picks an endpoint of the active pool other than those to `avoid`; none: it has no such endpoint.
    pub fn pick(&self, avoid: &[SocketAddr], now: Instant) -> Option<Pick> {
        loop {
            let pool = self.pool.load();
            let endpoint = pool.choose(avoid, now)?;
            endpoint.in_flight.fetch_add(1, SeqCst);
            let pick = Pick {
                endpoint: Arc::clone(endpoint),
                generation: pool.generation,
                zone: Arc::clone(&pool.zone),
            };
            // Counted first, looked second: whoever retires it stores first and counts second. The pool that
            // replaced this one is in place before anything is retired, so the next look finds it.
            if !endpoint.retired.load(SeqCst) {
                return Some(pick);
            }
        }
    }

    /// Whether the active pool has an endpoint other than those to `avoid`.
    pub fn has_other_than(&self, avoid: &[SocketAddr]) -> bool {
        self.pool.load().endpoints.iter().any(|endpoint| !avoid.contains(&endpoint.address))
    }

    /// Makes `pool` the active one and returns the one before. The same generation in the same zone again only updates
    /// the endpoints, so that a repeated effect does no harm; anything older is refused.
    pub fn swap(&self, pool: Pool) -> Result<Arc<Pool>, Stale> {
        let _writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let active = self.pool.load_full();
        if pool.generation == active.generation && pool.zone == active.zone {
            let upstreams = pool.upstreams();
            self.replace(&active, Pool::of(pool.generation, pool.zone, &upstreams, &active.endpoints));
            return Ok(active);
        }
        if pool.generation <= active.generation {
            return Err(Stale {
                offered: pool.generation,
                active: active.generation,
                zone: Arc::clone(&active.zone),
            });
        }
        self.replace(&active, pool);
        Ok(active)
    }

    /// Replaces the endpoints of the active pool if it is of this generation. Returns those that went: stop what is
    /// behind one only after its [`Endpoint::idle`].
    pub fn set_upstreams(
        &self,
        generation: u64,
        upstreams: &[SocketAddr],
    ) -> Result<Vec<Arc<Endpoint>>, Stale> {
        let _writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let active = self.pool.load_full();
        if active.generation != generation {
            return Err(Stale {
                offered: generation,
                active: active.generation,
                zone: Arc::clone(&active.zone),
            });
        }
        let pool = Pool::of(generation, Arc::clone(&active.zone), upstreams, &active.endpoints);
        Ok(self.replace(&active, pool))
    }

    fn replace(&self, active: &Pool, pool: Pool) -> Vec<Arc<Endpoint>> {
        let gone: Vec<_> = active
            .endpoints
            .iter()
            .filter(|old| !pool.endpoints.iter().any(|kept| Arc::ptr_eq(kept, old)))
            .cloned()
            .collect();
        self.pool.store(Arc::new(pool));
        for endpoint in &gone {
            endpoint.retire();
        }
        gone
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn address(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    #[test]
    fn spreads_over_the_least_busy() {
        let active = ActivePool::new(Pool::new(1, "a", &[address(1), address(2), address(3), address(2)]));
        let now = super::super::now();
        assert_eq!(active.load().upstreams().len(), 3);
        let picks: Vec<_> = (0..6).map(|_| active.pick(&[], now).unwrap()).collect();
        for port in 1..=3 {
            assert_eq!(picks.iter().filter(|pick| pick.address() == address(port)).count(), 2);
        }
        drop(picks);
        assert!(active.load().endpoints().iter().all(|endpoint| endpoint.in_flight() == 0));
    }

    #[test]
    fn skips_one_that_refused_unless_all_did() {
        let active = ActivePool::new(Pool::new(1, "a", &[address(1), address(2)]));
        let now = super::super::now();
        let pick = active.pick(&[address(2)], now).unwrap();
        assert_eq!(pick.address(), address(1));
        pick.refused(now);
        drop(pick);
        for _ in 0..4 {
            assert_eq!(active.pick(&[], now).unwrap().address(), address(2));
        }
        assert_eq!(active.pick(&[address(2)], now).unwrap().address(), address(1));
        assert!(active.pick(&[address(1), address(2)], now).is_none());
        let later = now + SKIP_AFTER_REFUSAL;
        let seen: Vec<_> = (0..2).map(|_| active.pick(&[], later).unwrap().address()).collect();
        assert!(seen.contains(&address(1)));
    }

    #[test]
    fn refuses_an_older_generation_and_takes_a_repeat() {
        let active = ActivePool::new(Pool::new(3, "a", &[address(1)]));
        assert_eq!(active.swap(Pool::new(2, "b", &[address(2)])).err().unwrap().active, 3);
        assert!(active.swap(Pool::new(3, "b", &[address(2)])).is_err());
        assert_eq!(active.swap(Pool::new(4, "b", &[address(2)])).unwrap().generation, 3);
        assert!(active.swap(Pool::new(4, "b", &[address(2), address(3)])).is_ok());
        assert_eq!(active.load().upstreams(), [address(2), address(3)]);
        assert!(active.set_upstreams(3, &[address(1)]).is_err());
    }

    #[tokio::test]
    async fn what_goes_is_idle_once_its_requests_are_done() {
        let active = ActivePool::new(Pool::new(1, "a", &[address(1), address(2)]));
        let now = super::super::now();
        let pick = active.pick(&[address(2)], now).unwrap();
        let gone = active.set_upstreams(1, &[address(2)]).unwrap();
        assert_eq!(gone.iter().map(|endpoint| endpoint.address()).collect::<Vec<_>>(), [address(1)]);
        let mut idle = Box::pin(gone[0].idle());
        assert!(futures_util::poll!(&mut idle).is_pending());
        assert_eq!(active.pick(&[], now).unwrap().address(), address(2));
        drop(pick);
        idle.await;
        let old = active.swap(Pool::new(2, "b", &[])).unwrap();
        old.idle().await;
        assert!(active.pick(&[], now).is_none());
    }

    /// Once a replaced pool was idle nothing is at it, however many were picking: more threads than cores, so that some
    /// are stopped between reading the pool and counting themselves.
    #[test]
    fn nothing_is_sent_to_a_replaced_pool_that_was_idle() {
        let active = ActivePool::new(Pool::new(0, "z", &[address(1), address(2)]));
        let (stop, floor) = (AtomicBool::new(false), AtomicU64::new(0));
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        let now = super::super::now();
                        while !stop.load(SeqCst) {
                            let pick = active.pick(&[], now).unwrap();
                            assert!(pick.generation >= floor.load(SeqCst));
                        }
                    })
                })
                .collect();
            for generation in 1..200 {
                let old = active.swap(Pool::new(generation, "z", &[address(1), address(2)])).unwrap();
                while old.endpoints().iter().any(|endpoint| endpoint.in_flight() != 0) {
                    std::thread::yield_now();
                }
                floor.store(generation, SeqCst);
                std::thread::yield_now();
                if threads.iter().any(std::thread::ScopedJoinHandle::is_finished) {
                    break;
                }
            }
            stop.store(true, SeqCst);
        });
    }
}
