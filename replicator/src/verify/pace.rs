//! How fast a verification may go: pure arithmetic.

use std::time::Duration;

/// Bounds on what a verification takes from the databases.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pace {
    /// Rows per second; none: no bound.
    pub rows_per_second: Option<u64>,
    /// Share of the time in which statements run, 0..=1.
    pub duty: f64,
    /// How long a statement should take: chunks grow and shrink towards it.
    pub statement: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self { rows_per_second: None, duty: 0.5, statement: Duration::from_millis(300) }
    }
}

/// Chunk sizes.
const ROWS: std::ops::RangeInclusive<u64> = 500..=200_000;

impl Pace {
    /// How long to rest after a chunk of so many rows that took so long.
    pub fn rest(&self, rows: u64, took: Duration) -> Duration {
        let duty = self.duty.clamp(0.01, 1.0);
        let by_duty = took.mul_f64((1.0 - duty) / duty);
        // The statement's own time does not count: statements overlap, and the rate is a bound.
        let by_rate = self
            .rows_per_second
            .map_or(Duration::ZERO, |rate| Duration::from_secs_f64(rows as f64 / rate.max(1) as f64));
        by_duty.max(by_rate)
    }

    /// The size of the next chunk, when one of so many rows took so long in its slower database.
    pub fn next_rows(&self, rows: u64, took: Duration) -> u64 {
        let wanted = rows as f64 * self.statement.as_secs_f64() / took.as_secs_f64().max(0.001);
        // At most twice as many at once: the next rows may be wider.
        let mut next =
            (wanted as u64).clamp(rows / 4, rows.saturating_mul(2)).clamp(*ROWS.start(), *ROWS.end());
        if let Some(rate) = self.rows_per_second {
            // Not more than half a second's worth, or the rate would come in bursts.
            next = next.min((rate / 2).max(1));
        }
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    #[test]
    fn the_stricter_bound_counts() {
        let pace = Pace { rows_per_second: Some(1_000), duty: 0.25, ..Pace::default() };
        assert_eq!(pace.rest(10, MS(100)), MS(300), "a quarter of the time");
        assert_eq!(pace.rest(1_000, MS(100)), MS(1_000), "a thousand rows a second");
        let free = Pace { rows_per_second: None, duty: 1.0, ..Pace::default() };
        assert_eq!(free.rest(1_000_000, MS(100)), Duration::ZERO);
    }

    #[test]
    fn chunks_follow_the_time_they_take() {
        let pace = Pace::default();
        assert_eq!(pace.next_rows(10_000, MS(600)), 5_000);
        assert_eq!(pace.next_rows(10_000, MS(1)), 20_000);
        assert_eq!(pace.next_rows(600, MS(60_000)), 500);
        let slow = Pace { rows_per_second: Some(100), ..pace };
        assert_eq!(slow.next_rows(500, MS(1)), 50);
    }
}
