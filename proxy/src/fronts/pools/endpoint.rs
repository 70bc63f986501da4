//! One upstream: how busy it is, how fast it answers, and whether it is well.
//!
//! Latency is a *peak* moving average (as in Finagle and Linkerd): a slow answer counts at once, fast ones bring it down with
//! time. All of it is a handful of relaxed atomics: two requests that end at the same moment may lose one observation.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst};
use std::time::{Duration, Instant};

use crossbeam::utils::CachePadded;
use pingora::connectors::L4Connect;
use tokio::sync::Notify;

use super::connections::{Connections, Dialer};
use crate::fronts::http::settings::Ejection;

/// An endpoint that refused a connection is skipped this long, unless all did.
pub(super) const SKIP_AFTER_REFUSAL: Duration = Duration::from_secs(1);
/// How fast what was observed is forgotten.
const DECAY: Duration = Duration::from_secs(10);
/// What an endpoint that has not answered yet is taken to need.
const UNKNOWN: Duration = Duration::from_millis(10);
/// An endpoint that is thrown out again and again stays out at most this many times the first span.
const LONGEST_EJECTION: u32 = 8;

/// One upstream of a pool.
pub struct Endpoint {
    number: u64,
    address: SocketAddr,
    weight: u32,
    in_flight: CachePadded<AtomicUsize>,
    streams: AtomicUsize,
    epoch: Instant,
    /// Nanoseconds.
    latency: AtomicU64,
    /// When it was observed: nanoseconds after `epoch`.
    observed: AtomicU64,
    /// Milliseconds after `epoch`; until then it is skipped.
    skipped: AtomicU64,
    failures: AtomicU32,
    /// Milliseconds after `epoch`; until then it is out.
    ejected: AtomicU64,
    ejections: AtomicU32,
    /// Active checks say that it is not well.
    down: AtomicBool,
    retired: AtomicBool,
    emptied: Notify,
    connections: Arc<Connections>,
    dialer: Arc<dyn L4Connect + Send + Sync>,
}

impl Endpoint {
    pub(super) fn new(address: SocketAddr, weight: u32) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let connections = Arc::new(Connections::default());
        Self {
            number: NEXT.fetch_add(1, Relaxed),
            address,
            weight,
            in_flight: CachePadded::default(),
            streams: AtomicUsize::new(0),
            epoch: crate::fronts::now(),
            latency: AtomicU64::new(nanos(UNKNOWN)),
            observed: AtomicU64::new(0),
            skipped: AtomicU64::new(0),
            failures: AtomicU32::new(0),
            ejected: AtomicU64::new(0),
            ejections: AtomicU32::new(0),
            down: AtomicBool::new(false),
            retired: AtomicBool::new(false),
            emptied: Notify::new(),
            dialer: Arc::new(Dialer(Arc::clone(&connections))),
            connections,
        }
    }

    /// No other endpoint of this process has it, whatever its resource and its address: keys the connections to it.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Its address as it was configured; where its name leads now, the front's resolver knows.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Requests sent to it that are not done, long streams included.
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(SeqCst)
    }

    /// Long streams among them.
    pub fn streams(&self) -> usize {
        self.streams.load(SeqCst)
    }

    /// Its open connections.
    pub fn connections(&self) -> &Arc<Connections> {
        &self.connections
    }

    pub(super) fn dialer(&self) -> Arc<dyn L4Connect + Send + Sync> {
        Arc::clone(&self.dialer)
    }

    /// Whether active checks found it well.
    pub fn is_up(&self) -> bool {
        !self.down.load(Relaxed)
    }

    /// What active checks found; returns whether that is new.
    pub fn found(&self, up: bool) -> bool {
        self.down.swap(!up, Relaxed) == up
    }

    /// Resolves when it was retired and no request is in flight. Cancel-safe.
    pub async fn idle(&self) {
        loop {
            let mut emptied = std::pin::pin!(self.emptied.notified());
            emptied.as_mut().enable();
            if self.is_retired() && self.in_flight() == 0 {
                return;
            }
            emptied.await;
        }
    }

    pub(super) fn retire(&self) {
        self.retired.store(true, SeqCst);
        self.emptied.notify_waiters();
    }

    pub(super) fn is_retired(&self) -> bool {
        self.retired.load(SeqCst)
    }

    pub(super) fn enter(&self) {
        self.in_flight.fetch_add(1, SeqCst);
    }

    pub(super) fn leave(&self) {
        let before = self.in_flight.fetch_sub(1, SeqCst);
        if before == 1 && self.is_retired() {
            self.emptied.notify_waiters();
        }
    }

    pub(super) fn stream_began(&self) {
        self.streams.fetch_add(1, SeqCst);
    }

    pub(super) fn stream_ended(&self) {
        self.streams.fetch_sub(1, SeqCst);
    }

    pub(super) fn weight(&self) -> u32 {
        self.weight
    }

    /// Whether requests should go elsewhere if they can.
    pub(super) fn is_avoided(&self, now: Instant) -> bool {
        let (down, skipped, ejected) =
            (self.down.load(Relaxed), self.skipped.load(Relaxed), self.ejected.load(Relaxed));
        down || (skipped | ejected != 0 && self.since(now) < skipped.max(ejected))
    }

    /// Whether failing requests have taken it out for now.
    pub fn is_ejected(&self, now: Instant) -> bool {
        let until = self.ejected.load(Relaxed);
        until != 0 && self.since(now) < until
    }

    /// What one more request here costs: latency times those who share it.
    pub(super) fn cost(&self, now: Instant) -> f64 {
        let load = self.in_flight.load(Relaxed) as f64 / f64::from(self.weight);
        self.latency(now) * (load + 1.0)
    }

    /// Nanoseconds, forgotten with time.
    fn latency(&self, now: Instant) -> f64 {
        let silent = self.nanos_since(now).saturating_sub(self.observed.load(Relaxed));
        let latency = self.latency.load(Relaxed) as f64;
        // Most requests follow each other closely: the exponential of nearly nothing is not computed.
        if silent < nanos(DECAY) / 100 {
            return latency;
        }
        latency * (-(silent as f64) / nanos(DECAY) as f64).exp()
    }

    pub(super) fn observe(&self, took: Duration, now: Instant) {
        let (at, took) = (self.nanos_since(now), nanos(took));
        let before = self.latency.load(Relaxed);
        let first = self.observed.load(Relaxed) == 0;
        let next = if first || took >= before {
            took
        } else {
            let silent = at.saturating_sub(self.observed.load(Relaxed));
            let kept = (-(silent as f64) / nanos(DECAY) as f64).exp();
            (before as f64 * kept + took as f64 * (1.0 - kept)) as u64
        };
        self.latency.store(next.max(1), Relaxed);
        self.observed.store(at, Relaxed);
    }

    pub(super) fn refused(&self, now: Instant) {
        self.skipped.store(self.since(now) + millis(SKIP_AFTER_REFUSAL), Relaxed);
    }

    pub(super) fn connected(&self) {
        if self.skipped.load(Relaxed) != 0 {
            self.skipped.store(0, Relaxed);
        }
    }

    pub(super) fn succeeded(&self) {
        if self.failures.load(Relaxed) != 0 {
            self.failures.store(0, Relaxed);
        }
    }

    /// Counts a failure; true: it is one too many, and [`Self::eject`] may be called.
    pub(super) fn failed(&self, rules: &Ejection) -> bool {
        self.failures.fetch_add(1, Relaxed) + 1 >= rules.failures
    }

    pub(super) fn eject(&self, rules: &Ejection, now: Instant) {
        let (at, before) = (self.since(now), self.ejected.load(Relaxed));
        // It has been well for long: that it was out once is forgotten.
        if at > before + millis(rules.time * LONGEST_EJECTION) {
            self.ejections.store(0, Relaxed);
        }
        let times = self.ejections.fetch_add(1, Relaxed).saturating_add(1).min(LONGEST_EJECTION);
        self.failures.store(0, Relaxed);
        self.ejected.store(at + millis(rules.time * times), Relaxed);
    }

    fn since(&self, now: Instant) -> u64 {
        millis(now.saturating_duration_since(self.epoch)) + 1
    }

    fn nanos_since(&self, now: Instant) -> u64 {
        nanos(now.saturating_duration_since(self.epoch))
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX / 2)
}

fn nanos(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint() -> (Endpoint, Instant) {
        let endpoint = Endpoint::new(SocketAddr::from(([127, 0, 0, 1], 1)), 1);
        let epoch = endpoint.epoch;
        (endpoint, epoch)
    }

    #[test]
    fn a_slow_answer_counts_at_once_and_is_forgotten_with_time() {
        let (endpoint, epoch) = endpoint();
        let at = |ms: u64| epoch + Duration::from_millis(ms);
        let cost = |ms| endpoint.cost(at(ms)) / 1e6;
        endpoint.observe(Duration::from_millis(100), at(1));
        assert!((cost(1) - 100.0).abs() < 0.1);
        endpoint.observe(Duration::from_millis(10), at(2));
        assert!((99.0..100.0).contains(&cost(2)), "one fast answer right after a slow one changes little");
        assert!((36.0..37.5).contains(&cost(10_002)), "{}", cost(10_002));
        endpoint.observe(Duration::from_millis(10), at(60_000));
        assert!((10.0..10.5).contains(&cost(60_000)));
        endpoint.enter();
        assert!((20.0..21.0).contains(&cost(60_000)), "two share it");
    }

    #[test]
    fn failures_in_a_row_eject_for_longer_each_time() {
        let (endpoint, epoch) = endpoint();
        let rules = Ejection { failures: 2, ..Ejection::default() };
        let mut now = epoch;
        assert!(!endpoint.failed(&rules));
        endpoint.succeeded();
        for times in 1..=10 {
            assert!(!endpoint.failed(&rules) && endpoint.failed(&rules));
            endpoint.eject(&rules, now);
            let span = rules.time * u32::min(times, 8);
            assert!(endpoint.is_avoided(now + span.saturating_sub(Duration::from_millis(1))), "{times}");
            now += span;
            assert!(!endpoint.is_avoided(now) && !endpoint.is_ejected(now), "{times}");
        }
        now += rules.time * 9;
        endpoint.eject(&rules, now);
        assert!(!endpoint.is_avoided(now + rules.time), "it had been well for long");
    }

    #[test]
    fn what_is_down_or_refused_lately_is_avoided() {
        let (endpoint, epoch) = endpoint();
        assert!(!endpoint.is_avoided(epoch) && endpoint.is_up());
        assert!(endpoint.found(false) && !endpoint.found(false));
        assert!(endpoint.is_avoided(epoch));
        assert!(endpoint.found(true));
        endpoint.refused(epoch);
        assert!(endpoint.is_avoided(epoch));
        assert!(!endpoint.is_avoided(epoch + SKIP_AFTER_REFUSAL));
        endpoint.connected();
        assert!(!endpoint.is_avoided(epoch));
    }
}
