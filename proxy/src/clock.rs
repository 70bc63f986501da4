//! The only file that asks for the time.
//!
//! Wall time is stored and shown, never subtracted to measure; monotonic time is subtracted, never stored.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use migration::units::Timestamp;

/// Wall-clock time. Before 1970 it is zero.
#[expect(clippy::disallowed_methods, reason = "the one place that asks")]
pub fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// Monotonic time, to measure how long something took.
#[expect(clippy::disallowed_methods, reason = "the one place that asks")]
pub fn monotonic() -> Instant {
    Instant::now()
}

/// Monotonic time as tokio counts it (it stands still where a test pauses it), for deadlines of tasks.
#[expect(clippy::disallowed_methods, reason = "the one place that asks")]
pub fn tick() -> tokio::time::Instant {
    tokio::time::Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wall_time_is_in_milliseconds_and_monotonic_time_does_not_go_back() {
        let before = monotonic();
        // 2020-01-01 to 2200-01-01.
        assert!((1_577_836_800_000..7_258_118_400_000).contains(&now().0));
        assert!(monotonic() >= before);
    }
}
