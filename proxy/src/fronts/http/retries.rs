//! What is sent again, and how often: the rule is pure, the budget bounds it.
//!
//! A request is repeated only if that cannot do anything twice: it found no connection; or its method is safe; or its method
//! is idempotent and a kept connection had died; or the endpoint had closed the connection in order before its kernel took one byte
//! of it, which the kernel tells ([`Connection::taken`](crate::fronts::pools::connections::Connection::taken)).

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use crossbeam::utils::CachePadded;
use http::Method;

use super::settings::Retries;
use crate::lock::lock;

/// What is known of a request whose connection broke.
#[derive(Clone, Copy, Debug)]
pub(super) struct Broken<'a> {
    pub(super) method: &'a Method,
    /// The connection had served another request before.
    pub(super) reused: bool,
    /// The proxy library says that the endpoint refused it unseen (HTTP/2), or that a kept connection had died.
    pub(super) refused: bool,
    /// The endpoint closed the connection before its kernel took anything of it.
    pub(super) untouched: bool,
    /// Nothing was answered, and the body is still known.
    pub(super) repeatable: bool,
    /// It went to another endpoint already because of this.
    pub(super) moved: bool,
    /// There is another endpoint.
    pub(super) elsewhere: bool,
}

impl Broken<'_> {
    /// Whether it may be sent again.
    pub(super) fn again(self) -> bool {
        if !self.repeatable {
            false
        } else if self.untouched {
            true
        } else if self.method.is_safe() {
            self.reused || !self.moved && self.elsewhere
        } else {
            self.method.is_idempotent() && self.refused
        }
    }
}

/// A bucket of repeats: each request adds a share of one, each second a whole one.
pub struct Budget {
    share: f64,
    /// Requests by shard.
    requests: Box<[CachePadded<AtomicU64>]>,
    bucket: Mutex<Bucket>,
}

struct Bucket {
    repeats: f64,
    requests: u64,
    filled: Instant,
}

/// As many repeats as the bucket holds.
const MOST: f64 = 100.0;
/// As many as it begins with.
const FIRST: f64 = 10.0;
/// Repeats a second that are allowed however few requests there are.
const PER_SECOND: f64 = 1.0;

impl Budget {
    /// A bucket with a few repeats.
    pub fn new(rules: &Retries, now: Instant) -> Self {
        Self {
            share: rules.budget.get(),
            requests: (0..crate::fronts::shards()).map(|_| CachePadded::default()).collect(),
            bucket: Mutex::new(Bucket { repeats: FIRST, requests: 0, filled: now }),
        }
    }

    /// A request came.
    pub fn count(&self) {
        self.requests[crate::fronts::shard()].fetch_add(1, Relaxed);
    }

    /// Takes a repeat, if there is one.
    pub fn take(&self, now: Instant) -> bool {
        if self.share == 0.0 {
            return false;
        }
        let requests: u64 = self.requests.iter().map(|shard| shard.load(Relaxed)).sum();
        let mut bucket = lock(&self.bucket);
        let came = requests.saturating_sub(bucket.requests) as f64;
        let seconds = now.saturating_duration_since(bucket.filled).as_secs_f64();
        bucket.repeats = (bucket.repeats + came * self.share + seconds * PER_SECOND).min(MOST);
        (bucket.requests, bucket.filled) = (requests, now);
        let allowed = bucket.repeats >= 1.0;
        if allowed {
            bucket.repeats -= 1.0;
        }
        allowed
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use migration::units::Ratio;

    use super::*;

    #[test]
    fn the_rule() {
        let of = |method: Method, reused, refused, untouched| {
            let broken = Broken {
                method: &method,
                reused,
                refused,
                untouched,
                repeatable: true,
                moved: false,
                elsewhere: false,
            };
            assert!(!Broken { repeatable: false, ..broken }.again());
            broken.again()
        };
        for method in [Method::GET, Method::PUT, Method::POST, Method::PATCH] {
            assert!(of(method.clone(), true, true, true), "{method}: nobody saw it");
        }
        assert!(!of(Method::POST, true, true, false), "it may have been seen");
        assert!(of(Method::PUT, true, true, false) && !of(Method::PUT, false, false, false));
        assert!(of(Method::GET, true, false, false) && !of(Method::GET, false, false, false));
        let method = Method::GET;
        let fresh = Broken {
            method: &method,
            reused: false,
            refused: false,
            untouched: false,
            repeatable: true,
            moved: false,
            elsewhere: true,
        };
        assert!(fresh.again() && !Broken { moved: true, ..fresh }.again());
    }

    #[test]
    fn a_share_of_the_requests_and_one_a_second() {
        let start = crate::fronts::now();
        let budget = Budget::new(&Retries { budget: Ratio::new(0.2).unwrap() }, start);
        let taken = |now| (0..1000).filter(|_| budget.take(now)).count();
        assert_eq!(taken(start), 10);
        assert_eq!(taken(start), 0);
        assert_eq!(taken(start + Duration::from_secs(3)), 3);
        for _ in 0..50 {
            budget.count();
        }
        assert_eq!(taken(start + Duration::from_secs(3)), 10);
        assert_eq!(taken(start + Duration::from_secs(3000)), 100);
        let none = Budget::new(&Retries { budget: Ratio::new(0.0).unwrap() }, start);
        assert!(!none.take(start));
    }
}
