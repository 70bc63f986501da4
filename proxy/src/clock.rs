//! The only file that asks for the time.
//!
//! Wall time is stored and shown, never subtracted to measure; monotonic time is subtracted, never stored.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use migration::units::Timestamp;

/// How far the wall clock is off, milliseconds: always 0, but for tests that let it jump.
pub static SKEW_MS: AtomicI64 = AtomicI64::new(0);

/// Wall-clock time. Before 1970 it is zero.
#[expect(clippy::disallowed_methods, reason = "the one place that asks")]
pub fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let wall = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
    Timestamp(wall.saturating_add_signed(SKEW_MS.load(Ordering::Relaxed)))
}

/// Wall time that does not jump: where the wall clock stood when this began, and what has passed since. For spans that must
/// end in time whatever somebody does to the clock meanwhile.
#[derive(Clone, Copy, Debug)]
pub struct Steady {
    wall: Timestamp,
    since: Instant,
}

impl Steady {
    /// Begins now.
    pub fn begin() -> Self {
        Self { wall: now(), since: monotonic() }
    }

    /// The moment.
    pub fn now(&self) -> Timestamp {
        self.wall.after(self.since.elapsed())
    }
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

    #[test]
    fn what_is_steady_does_not_jump_with_the_wall_clock() {
        let steady = Steady::begin();
        SKEW_MS.store(-3_600_000, Ordering::Relaxed);
        let (jumped, stayed) = (now(), steady.now());
        SKEW_MS.store(0, Ordering::Relaxed);
        assert!(jumped.0 + 3_000_000 < stayed.0, "{jumped:?} {stayed:?}");
    }
}
