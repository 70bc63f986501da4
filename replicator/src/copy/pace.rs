//! How fast a copy may read: pure arithmetic.

use std::time::{Duration, Instant};

/// Spreads bytes over time; one for all sessions of a copy.
#[derive(Debug)]
pub struct Pace {
    bytes_per_second: Option<u64>,
    /// When everything that was let through so far has had its time.
    free: Option<Instant>,
}

impl Pace {
    /// At most so many bytes per second; `None`: no bound.
    pub fn new(bytes_per_second: Option<u64>) -> Self {
        Self { bytes_per_second, free: None }
    }

    /// Lets `bytes` through; how long to wait before they go.
    pub fn take(&mut self, bytes: u64, now: Instant) -> Duration {
        let Some(rate) = self.bytes_per_second else { return Duration::ZERO };
        let start = self.free.map_or(now, |free| free.max(now));
        self.free = Some(start + Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64));
        start.saturating_duration_since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_readers_share_one_rate() {
        let now = crate::clock::now();
        let mut pace = Pace::new(Some(1_000));
        assert_eq!(pace.take(500, now), Duration::ZERO);
        assert_eq!(pace.take(500, now), Duration::from_millis(500));
        assert_eq!(pace.take(500, now), Duration::from_millis(1_000));
        // What was not used is not saved up for a burst.
        let later = now + Duration::from_secs(60);
        assert_eq!(pace.take(2_000, later), Duration::ZERO);
        assert_eq!(pace.take(1, later), Duration::from_secs(2));
    }

    #[test]
    fn without_a_rate_nobody_waits() {
        let now = crate::clock::now();
        let mut pace = Pace::new(None);
        assert_eq!(pace.take(u64::MAX, now), Duration::ZERO);
        assert_eq!(pace.take(u64::MAX, now), Duration::ZERO);
    }
}
