//! What a latency spike is, and how many a day a zone has.
//!
//! The values are means of five minutes of a zone's HTTP probe. One is a *spike* when it is above 1.5 times what was usual
//! there, and at least 5 ms above it; usual is the median of the 24 hours before. What follows within an hour of a spike
//! belongs to it: a bad hour counts once, however often it swings. A level that rises for good is one spike, until the
//! median has followed. Only the time that was measured counts as days.

use std::collections::VecDeque;

/// How far above what is usual, as a factor.
const FACTOR: f64 = 1.5;
/// And in milliseconds.
const LEAST_MS: f64 = 5.0;
/// What is usual is the median of so long, milliseconds.
const USUAL_MS: u64 = 24 * 3_600_000;
/// Values that what is usual needs: an hour.
const ENOUGH: usize = 12;
/// Spikes this near to each other are one, milliseconds.
const APART_MS: u64 = 3_600_000;
/// Days that must have been measured before a rate is given.
const LEAST_DAYS: f64 = 0.25;

/// Spikes a day, or how many days were measured, if too few.
pub fn per_day(values: impl IntoIterator<Item = (u64, f64)>, bucket_ms: u64) -> Result<f64, f64> {
    let mut before: VecDeque<(u64, f64)> = VecDeque::new();
    let (mut spikes, mut judged) = (0_u32, 0_u32);
    let mut last: Option<u64> = None;
    for (at, value) in values {
        while before.front().is_some_and(|(old, _)| at.saturating_sub(*old) > USUAL_MS) {
            before.pop_front();
        }
        if before.len() >= ENOUGH {
            judged += 1;
            let usual = median(&before);
            if value > usual * FACTOR && value > usual + LEAST_MS {
                if last.is_none_or(|last| at.saturating_sub(last) > APART_MS) {
                    spikes += 1;
                }
                last = Some(at);
            }
        }
        before.push_back((at, value));
    }
    let days = f64::from(judged) * bucket_ms as f64 / 86_400_000.0;
    if days < LEAST_DAYS { Err(days) } else { Ok(f64::from(spikes) / days) }
}

fn median(values: &VecDeque<(u64, f64)>) -> f64 {
    let mut sorted: Vec<f64> = values.iter().map(|(_, value)| *value).collect();
    let middle = sorted.len() / 2;
    *sorted.select_nth_unstable_by(middle, f64::total_cmp).1
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUCKET: u64 = 300_000;

    /// `days` of 20 ms with something else where `special` says so.
    fn series(days: u64, special: impl Fn(u64) -> Option<f64>) -> Vec<(u64, f64)> {
        (0..days * 288).map(|place| (place * BUCKET, special(place).unwrap_or(20.0))).collect()
    }

    #[test]
    fn a_bad_hour_counts_once_and_noise_not_at_all() {
        let storm =
            |place: u64| (place % 288 == 100 || place % 288 == 104 || place % 288 == 110).then_some(80.0);
        let rate = per_day(series(10, storm), BUCKET).unwrap();
        assert!((rate - 1.0).abs() < 0.01, "{rate}");
        let noise = |place: u64| Some(20.0 + (place % 7) as f64);
        assert!(per_day(series(10, noise), BUCKET).unwrap().abs() < 1e-9);
        // Half as much again of very little is nothing that a user feels.
        let small = |place: u64| Some(if place.is_multiple_of(50) { 4.0 } else { 1.0 });
        assert!(per_day(series(10, small), BUCKET).unwrap().abs() < 1e-9);
    }

    #[test]
    fn a_new_level_is_one_spike_until_it_is_usual() {
        let risen = per_day(series(10, |place| (place > 1000).then_some(60.0)), BUCKET).unwrap();
        assert!((risen - 0.1).abs() < 0.01, "{risen}");
    }

    #[test]
    fn gaps_are_no_time_and_too_little_is_no_rate() {
        let short = per_day(series(1, |_| None).into_iter().take(60), BUCKET).unwrap_err();
        assert!((short - 48.0 / 288.0).abs() < 1e-9, "{short}");
        let every_other_day = |(at, _): &(u64, f64)| at / 86_400_000 % 2 == 0;
        let storm = |place: u64| (place % 288 == 100).then_some(80.0);
        let rate = per_day(series(10, storm).into_iter().filter(every_other_day), BUCKET).unwrap();
        assert!((0.9..1.2).contains(&rate), "{rate}");
    }
}
