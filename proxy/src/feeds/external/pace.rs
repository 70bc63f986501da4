//! When a feed runs next: pure, luck comes in.

use std::time::Duration;

/// First pause after a failure, unless the feed runs more often than that anyhow.
const FIRST: Duration = Duration::from_secs(5);
/// Longest pause between tries of a feed that runs more often than this.
const LONGEST: Duration = Duration::from_secs(5 * 60);
/// Longest that a service may ask to be left alone.
const PATIENCE: Duration = Duration::from_secs(24 * 3600);

/// The pause after a run. `failures` in a row, 0 after a success; `luck` from 0 to 1 keeps feeds, and nodes, from asking
/// at the same moment.
pub fn pause(every: Duration, failures: u32, retry_after: Option<Duration>, luck: f64) -> Duration {
    let luck = luck.clamp(0.0, 1.0);
    if failures == 0 {
        // Up to a tenth earlier, never later: what is asked every minute must not be older than a minute.
        return every.mul_f64(1.0 - 0.1 * luck);
    }
    let longest = LONGEST.max(every);
    let doubled = FIRST.min(every).saturating_mul(2_u32.saturating_pow(failures - 1)).min(longest);
    let pause = doubled.mul_f64(0.5 + 0.5 * luck);
    pause.max(retry_after.unwrap_or_default().min(PATIENCE))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn failures_double_the_pause_up_to_a_bound() {
        let pauses: Vec<u64> = (1..=9).map(|n| pause(MINUTE, n, None, 1.0).as_secs()).collect();
        assert_eq!(pauses, [5, 10, 20, 40, 80, 160, 300, 300, 300]);
        assert_eq!(pause(MINUTE, 1, None, 0.0), Duration::from_millis(2500));
        // A feed that is asked once an hour is not asked less often for failing.
        assert_eq!(pause(60 * MINUTE, u32::MAX, None, 1.0), 60 * MINUTE);
        // One that is asked every second begins there.
        assert_eq!(pause(Duration::from_secs(1), 1, None, 1.0), Duration::from_secs(1));
    }

    #[test]
    fn success_keeps_the_pace() {
        assert_eq!(pause(MINUTE, 0, None, 0.0), MINUTE);
        assert_eq!(pause(MINUTE, 0, None, 1.0), Duration::from_secs(54));
    }

    #[test]
    fn a_service_may_ask_for_more_but_not_for_ever() {
        let asked = |seconds| pause(MINUTE, 1, Some(Duration::from_secs(seconds)), 1.0);
        assert_eq!(asked(120), Duration::from_secs(120));
        assert_eq!(asked(1), Duration::from_secs(5));
        assert_eq!(asked(u64::MAX), PATIENCE);
    }
}
