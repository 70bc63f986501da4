//! Pools: the upstreams of the active placement, and the swap.
//!
//! A pool is a snapshot that belongs to one generation. It is replaced, never edited: by [`ActivePool::swap`] for the next
//! generation, by [`ActivePool::set_upstreams`] within one. Both retire the endpoints that go: a request that still holds
//! the old snapshot backs out and looks again, so after either returns nothing new is sent to a retired endpoint, and
//! [`Endpoint::idle`] tells when what was sent before is done. It never waits for anything on the request path.
//!
//! Of two endpoints drawn by luck and weight the one with the lower cost is taken (latency times those who share it:
//! [`endpoint`]). Endpoints that are not well are taken only when there is no other.

pub mod asking;
pub mod connections;
pub mod endpoint;
pub mod looking_up;
pub mod reach;
pub mod upgrading;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, Guard};
use pingora::connectors::L4Connect;

use super::http::settings::Ejection;
use connections::Connection;
pub use endpoint::Endpoint;
pub use looking_up::LookingUp;
pub use reach::Reach;
use upgrading::Upgrading;

use crate::lock::lock;

/// How often two endpoints are drawn before they are gone through one by one.
const DRAWS: usize = 4;

/// The upstreams of one generation.
pub struct Pool {
    /// Its generation.
    pub generation: u64,
    /// The zone of its placement.
    pub zone: Arc<str>,
    /// How its endpoints are reached.
    pub reach: Arc<Reach>,
    endpoints: Vec<Arc<Endpoint>>,
    /// Sums of the endpoints' weights; empty: all weigh the same.
    weights: Vec<u32>,
}

/// A request's claim on an endpoint; dropping it ends the claim.
pub struct Pick {
    pool: Arc<Pool>,
    at: usize,
}

/// Why there is no endpoint for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoPick {
    /// The pool has none, or none that was not tried.
    None,
    /// The placement has as many requests as it may.
    Full,
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
    /// How the placements are reached, by zone; missing: by default.
    reaches: HashMap<Arc<str>, Arc<Reach>>,
    /// One writer at a time; endpoints that went and still have requests or connections.
    retired: Mutex<Vec<Arc<Endpoint>>>,
}

impl Pool {
    /// Ends every connection to its endpoints, whoever uses them: what is lost answers nobody any more.
    pub fn end_connections(&self) {
        for endpoint in &self.endpoints {
            endpoint.connections().end_all();
        }
    }

    /// A pool of fresh endpoints; doubles are dropped.
    pub fn new(generation: u64, zone: impl Into<Arc<str>>, upstreams: &[SocketAddr]) -> Self {
        Self::of(generation, zone.into(), upstreams, Arc::default(), &[])
    }

    /// Keeps the endpoints of `known` whose address stays.
    fn of(
        generation: u64,
        zone: Arc<str>,
        upstreams: &[SocketAddr],
        reach: Arc<Reach>,
        known: &[Arc<Endpoint>],
    ) -> Self {
        let mut endpoints: Vec<Arc<Endpoint>> = Vec::with_capacity(upstreams.len());
        for address in upstreams {
            if endpoints.iter().all(|endpoint| endpoint.address() != *address) {
                let kept = known.iter().find(|endpoint| endpoint.address() == *address).cloned();
                let fresh = || Arc::new(Endpoint::new(*address, reach.weight(*address)));
                endpoints.push(kept.unwrap_or_else(fresh));
            }
        }
        let mut weights = Vec::new();
        if endpoints.iter().any(|endpoint| endpoint.weight() != endpoints[0].weight()) {
            let mut sum = 0;
            weights.extend(endpoints.iter().map(|endpoint| {
                sum += endpoint.weight();
                sum
            }));
        }
        Self { generation, zone, reach, endpoints, weights }
    }

    /// Its addresses.
    pub fn upstreams(&self) -> Vec<SocketAddr> {
        self.endpoints.iter().map(|endpoint| endpoint.address()).collect()
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

    /// Not one of `avoid`; well, unless none is.
    fn choose(&self, avoid: &[SocketAddr], now: Instant) -> Option<usize> {
        let well = |at: usize| {
            let endpoint = &self.endpoints[at];
            !endpoint.is_avoided(now) && !avoid.contains(&endpoint.address())
        };
        let cheaper = |a: usize, b: usize| {
            if self.endpoints[b].cost(now) < self.endpoints[a].cost(now) { b } else { a }
        };
        match self.endpoints.len() {
            0 => return None,
            1 => return (!avoid.contains(&self.endpoints[0].address())).then_some(0),
            _ => {}
        }
        for _ in 0..DRAWS {
            let (one, two) = self.draw(crate::rng::quick());
            match (well(one), well(two)) {
                (true, true) => return Some(cheaper(one, two)),
                (true, false) => return Some(one),
                (false, true) => return Some(two),
                (false, false) => {}
            }
        }
        let first = crate::rng::quick() as usize % self.endpoints.len();
        let around = || (0..self.endpoints.len()).map(|step| (first + step) % self.endpoints.len());
        let allowed = || around().filter(|at| !avoid.contains(&self.endpoints[*at].address()));
        let least = |at: &usize| self.endpoints[*at].in_flight();
        allowed().filter(|at| well(*at)).min_by_key(least).or_else(|| allowed().min_by_key(least))
    }

    /// Two endpoints: different ones where all weigh the same, else each by its weight.
    fn draw(&self, luck: u64) -> (usize, usize) {
        // The high bits of a product are as even as a remainder, and cost no division.
        let below = |luck: u32, count: usize| ((u64::from(luck) * count as u64) >> 32) as usize;
        let (high, low) = ((luck >> 32) as u32, luck as u32);
        let count = self.endpoints.len();
        let Some(sum) = self.weights.last() else {
            let one = below(high, count);
            return (one, (one + 1 + below(low, count - 1)) % count);
        };
        let by_weight = |luck: u32| {
            let point = below(luck, *sum as usize) as u32;
            self.weights.partition_point(|sum| *sum <= point)
        };
        (by_weight(high), by_weight(low))
    }
}

impl Pick {
    /// The endpoint.
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.pool.endpoints[self.at]
    }

    /// Its address as it was configured.
    pub fn address(&self) -> SocketAddr {
        self.endpoint().address()
    }

    /// Where its name leads now.
    pub fn reached_at(&self) -> SocketAddr {
        self.pool.reach.reached_at(self.address())
    }

    /// Generation of the pool it came from.
    pub fn generation(&self) -> u64 {
        self.pool.generation
    }

    /// Zone of that pool.
    pub fn zone(&self) -> &Arc<str> {
        &self.pool.zone
    }

    /// How it is reached.
    pub fn reach(&self) -> &Reach {
        &self.pool.reach
    }

    /// Opens connections to it.
    pub fn dialer(&self) -> Arc<dyn L4Connect + Send + Sync> {
        self.endpoint().dialer()
    }

    /// Opens the connection of one request that asks for an upgrade.
    pub fn upgrading(&self) -> Arc<Upgrading> {
        Upgrading::new(Arc::clone(self.endpoint().connections()))
    }

    /// The endpoint refused a connection: others are preferred for a short while.
    pub fn refused(&self, now: Instant) {
        self.endpoint().refused(now);
    }

    /// The endpoint took a connection.
    pub fn connected(&self) {
        self.endpoint().connected();
    }

    /// The endpoint answered after this long; `well` is whether the answer counts as good.
    pub fn answered(&self, took: Duration, well: bool, rules: Option<&Ejection>, now: Instant) {
        self.endpoint().observe(took, now);
        match (well, rules) {
            (true, _) => self.endpoint().succeeded(),
            (false, Some(rules)) => self.failed(rules, now),
            (false, None) => {}
        }
    }

    /// A request failed at the endpoint.
    pub fn failed(&self, rules: &Ejection, now: Instant) {
        // What was under way when it was taken out says nothing new.
        if self.endpoint().is_ejected(now) || !self.endpoint().failed(rules) {
            return;
        }
        let all = &self.pool.endpoints;
        let out = all.iter().filter(|endpoint| endpoint.is_ejected(now)).count();
        // One more may go if the share allows it, and the last one never.
        if (out + 1) as f64 <= all.len() as f64 * rules.most.get() {
            self.endpoint().eject(rules, now);
        }
    }

    /// From now on it is a long stream, on this connection if that is known.
    pub fn streams(&self, connection: Option<Arc<Connection>>) -> Streaming {
        // Before the endpoint's: once that has nothing but streams, the connections without one are ended.
        if let Some(connection) = &connection {
            connection.streams.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        }
        self.endpoint().stream_began();
        Streaming { endpoint: Arc::clone(self.endpoint()), connection }
    }
}

/// A long stream at an endpoint; dropping it says that it ended.
pub struct Streaming {
    endpoint: Arc<Endpoint>,
    connection: Option<Arc<Connection>>,
}

impl Streaming {
    /// Its connection, which other streams may share; it ends with that.
    pub fn connection(&self) -> Option<&Arc<Connection>> {
        self.connection.as_ref()
    }
}

impl Drop for Streaming {
    fn drop(&mut self) {
        self.endpoint.stream_ended();
        if let Some(connection) = &self.connection {
            connection.streams.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
        }
    }
}

impl Drop for Pick {
    fn drop(&mut self) {
        self.endpoint().leave();
        self.pool.reach.leave();
    }
}

impl ActivePool {
    /// Starts with `pool`; every placement is reached by default.
    pub fn new(pool: Pool) -> Self {
        Self::reaching(pool, HashMap::new())
    }

    /// Starts with `pool`, where placements are reached as `reaches` says.
    pub fn reaching(mut pool: Pool, reaches: HashMap<Arc<str>, Arc<Reach>>) -> Self {
        if let Some(reach) = reaches.get(&pool.zone) {
            pool = Pool::of(pool.generation, pool.zone.clone(), &pool.upstreams(), reach.clone(), &[]);
        }
        Self { pool: ArcSwap::from_pointee(pool), reaches, retired: Mutex::default() }
    }

    /// The pool of this moment.
    pub fn load(&self) -> Guard<Arc<Pool>> {
        self.pool.load()
    }

    /// How the placements are reached that say so.
    pub fn reaches(&self) -> impl Iterator<Item = (&Arc<str>, &Arc<Reach>)> {
        self.reaches.iter()
    }

    /// Picks an endpoint of the active pool other than those to `avoid`.
    pub fn pick(&self, avoid: &[SocketAddr], now: Instant) -> Result<Pick, NoPick> {
        loop {
            let pool = self.pool.load_full();
            let at = pool.choose(avoid, now).ok_or(NoPick::None)?;
            if !pool.reach.enter() {
                // Whether the pool that replaced this one is full is for that to say.
                if pool.endpoints[at].is_retired() {
                    continue;
                }
                return Err(NoPick::Full);
            }
            pool.endpoints[at].enter();
            let pick = Pick { pool, at };
            // Counted first, looked second: whoever retires it stores first and counts second. The pool that
            // replaced this one is in place before anything is retired, so the next look finds it.
            if !pick.endpoint().is_retired() {
                return Ok(pick);
            }
        }
    }

    /// Whether the active pool has an endpoint other than those to `avoid`.
    pub fn has_other_than(&self, avoid: &[SocketAddr]) -> bool {
        self.pool.load().endpoints.iter().any(|endpoint| !avoid.contains(&endpoint.address()))
    }

    /// Makes `pool` the active one and returns the one before. The same generation in the same zone again only updates
    /// the endpoints, so that a repeated effect does no harm; anything older is refused.
    pub fn swap(&self, pool: Pool) -> Result<Arc<Pool>, Stale> {
        let mut retired = self.retired();
        let active = self.pool.load_full();
        let same = pool.generation == active.generation && pool.zone == active.zone;
        if !same && pool.generation <= active.generation {
            return Err(Stale {
                offered: pool.generation,
                active: active.generation,
                zone: Arc::clone(&active.zone),
            });
        }
        let reach = self.reaches.get(&pool.zone).cloned().unwrap_or_default();
        let known = if same { &active.endpoints[..] } else { &[] };
        let next = Pool::of(pool.generation, pool.zone.clone(), &pool.upstreams(), reach, known);
        self.replace(&active, next, &mut retired);
        Ok(active)
    }

    /// Replaces the endpoints of the active pool if it is of this generation. Returns those that went: stop what is
    /// behind one only after its [`Endpoint::idle`].
    pub fn set_upstreams(
        &self,
        generation: u64,
        upstreams: &[SocketAddr],
    ) -> Result<Vec<Arc<Endpoint>>, Stale> {
        let mut retired = self.retired();
        let active = self.pool.load_full();
        if active.generation != generation {
            return Err(Stale {
                offered: generation,
                active: active.generation,
                zone: Arc::clone(&active.zone),
            });
        }
        let (zone, reach) = (Arc::clone(&active.zone), Arc::clone(&active.reach));
        let pool = Pool::of(generation, zone, upstreams, reach, &active.endpoints);
        Ok(self.replace(&active, pool, &mut retired))
    }

    /// Ends the connections of endpoints that went, as soon as only long streams are left there. After a swap that was
    /// drained before, that is at once; else look now and then.
    pub fn end_retired(&self) {
        end(&mut self.retired());
    }

    fn replace(&self, active: &Pool, pool: Pool, retired: &mut Vec<Arc<Endpoint>>) -> Vec<Arc<Endpoint>> {
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
        retired.extend(gone.iter().cloned());
        end(retired);
        gone
    }

    fn retired(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Endpoint>>> {
        lock(&self.retired)
    }
}

fn end(retired: &mut Vec<Arc<Endpoint>>) {
    retired.retain(|endpoint| {
        let in_flight = endpoint.in_flight();
        if in_flight <= endpoint.streams() {
            endpoint.connections().end_unused();
        }
        in_flight > 0 || endpoint.connections().count() > 0
    });
}

#[cfg(test)]
mod tests;
