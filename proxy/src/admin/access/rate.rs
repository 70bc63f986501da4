//! How often a caller may ask: a bucket for each, refilled by time.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::lock::lock;

/// Changes: how many at once, and how many a second after that.
const CHANGES: (f64, f64) = (200.0, 20.0);
/// Reads.
const READS: (f64, f64) = (4_000.0, 1_000.0);
/// Callers that are kept track of; the one seen longest ago makes room.
const CALLERS: usize = 10_000;

#[derive(Clone, Copy)]
struct Bucket {
    left: f64,
    at: Instant,
}

/// The buckets of all callers.
#[derive(Default)]
pub(in crate::admin) struct Rate {
    buckets: Mutex<HashMap<(String, bool), Bucket>>,
}

impl Rate {
    /// Takes one turn of `caller`, or says how long to wait for it.
    pub(super) fn take(&self, caller: &str, changes: bool, now: Instant) -> Result<(), Duration> {
        let (most, each_second) = if changes { CHANGES } else { READS };
        let mut buckets = lock(&self.buckets);
        if buckets.len() >= CALLERS
            && let Some(oldest) =
                buckets.iter().min_by_key(|(_, bucket)| bucket.at).map(|(key, _)| key.clone())
        {
            buckets.remove(&oldest);
        }
        let bucket = buckets.entry((caller.to_owned(), changes)).or_insert(Bucket { left: most, at: now });
        let gained = now.saturating_duration_since(bucket.at).as_secs_f64() * each_second;
        bucket.left = (bucket.left + gained).min(most);
        bucket.at = now;
        if bucket.left < 1.0 {
            return Err(Duration::from_secs_f64((1.0 - bucket.left) / each_second));
        }
        bucket.left -= 1.0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_too_often_waits_and_nobody_else() {
        let rate = Rate::default();
        let start = crate::clock::monotonic();
        for turn in 0..200 {
            assert_eq!(rate.take("ann", true, start), Ok(()), "{turn}");
        }
        let wait = rate.take("ann", true, start).unwrap_err();
        assert_eq!(wait, Duration::from_millis(50));
        assert_eq!(rate.take("bob", true, start), Ok(()));
        assert_eq!(rate.take("ann", false, start), Ok(()));
        assert_eq!(rate.take("ann", true, start + wait), Ok(()));
        assert!(rate.take("ann", true, start + wait).is_err());
    }

    #[test]
    fn a_crowd_of_names_does_not_grow_without_bound() {
        let rate = Rate::default();
        let start = crate::clock::monotonic();
        for i in 0..CALLERS + 10 {
            let _ = rate.take(&i.to_string(), false, start + Duration::from_millis(i as u64));
        }
        assert!(rate.buckets.lock().unwrap().len() <= CALLERS);
    }
}
