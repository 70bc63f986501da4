//! From stored values to the steps of a forecaster. Pure.

use std::collections::BTreeMap;

use migration::units::Timestamp;

use super::told::Told;

/// Values of one series, oldest first: when, and what.
pub type Samples = Vec<(Timestamp, f64)>;

/// How far back the shape of a day is looked for, milliseconds.
pub const DAYS_MS: u64 = 3 * 86_400_000;

/// Means of five minutes, by the step in their middle.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Days {
    /// The request path of the primary.
    pub requests: Vec<(u64, f64)>,
    /// Each zone's probe.
    pub probes: BTreeMap<String, Vec<(u64, f64)>>,
}

/// From when on a resource's steps had which length, oldest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// From when.
    pub from: Timestamp,
    /// Milliseconds.
    pub step_ms: u64,
}

/// What a resource's forecasters are fed after a restart.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Replay {
    /// The number of the newest step.
    pub newest: u64,
    /// When it was.
    pub at: Timestamp,
    /// The request path of the primary, by step.
    pub requests: Vec<(u64, f64)>,
    /// Each zone's HTTP probe, by step.
    pub probes: Vec<(String, Vec<(u64, f64)>)>,
    /// The request path whichever zone served, by step: for what is usual.
    pub usual: Vec<(u64, f64)>,
    /// What is kept of the days before these steps.
    pub days: Days,
    /// What was told of each zone's steps beforehand; a zone of which nothing was is missing.
    pub told: BTreeMap<String, Told>,
}

/// The first moment from which on steps fit those of `step_ms`: of the same length, or a whole number of them makes one.
/// None: the newest do not.
pub fn fits_from(paces: &[Pace], step_ms: u64) -> Option<Timestamp> {
    let fits = |pace: &&Pace| pace.step_ms > 0 && step_ms.is_multiple_of(pace.step_ms);
    paces.iter().rev().take_while(fits).last().map(|pace| pace.from)
}

/// The number of the step at `at`: as many as have passed since 1970, so that the time of day keeps its place in a season.
pub fn number(at: Timestamp, step_ms: u64) -> u64 {
    at.0 / step_ms.max(1)
}

/// Numbers values backwards from `newest`, the step at `end`. What lies about a step apart gets neighbouring numbers, however
/// late the clock's ticks were; longer distances are gaps. Where steps were `shorter` than now, those that fall into one
/// become their median.
pub fn numbered(
    samples: &[(Timestamp, f64)],
    (newest, end): (u64, Timestamp),
    step_ms: u64,
    shorter: bool,
) -> Vec<(u64, f64)> {
    let mut steps: Vec<(u64, Vec<f64>)> = Vec::new();
    let (mut step, mut last) = (newest, end);
    for (at, value) in samples.iter().rev() {
        step = if shorter {
            newest.saturating_sub(end.0.saturating_sub(at.0) / step_ms.max(1))
        } else {
            let passed = last.0.saturating_sub(at.0);
            step.saturating_sub(passed.saturating_add(step_ms / 2) / step_ms.max(1))
        };
        last = *at;
        match steps.last_mut() {
            Some((of, values)) if *of == step => values.push(*value),
            _ => steps.push((step, vec![*value])),
        }
    }
    steps.reverse();
    steps.into_iter().map(|(step, mut values)| (step, median(&mut values))).collect()
}

fn median(values: &mut [f64]) -> f64 {
    let middle = values.len() / 2;
    *values.select_nth_unstable_by(middle, f64::total_cmp).1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(samples: &[(u64, f64)]) -> Samples {
        samples.iter().map(|(ms, value)| (Timestamp(*ms), *value)).collect()
    }

    #[test]
    fn late_ticks_are_neighbours_and_silence_is_a_gap() {
        // Each tick 30 ms later than the last; then a step without a value; then ten steps of downtime.
        let samples = at(&[(0, 1.0), (1030, 2.0), (2060, 3.0), (4120, 4.0), (14_120, 5.0)]);
        let steps = numbered(&samples, (100, Timestamp(15_120)), 1000, false);
        assert_eq!(steps, [(85, 1.0), (86, 2.0), (87, 3.0), (89, 4.0), (99, 5.0)]);
    }

    #[test]
    fn drift_never_makes_gaps_or_doubles() {
        let samples: Samples = (0..5000).map(|place| (Timestamp(place * 1007), place as f64)).collect();
        let steps = numbered(&samples, (9000, samples[4999].0), 1000, false);
        assert_eq!(steps.len(), 5000);
        assert!(steps.windows(2).all(|pair| pair[0].0 + 1 == pair[1].0));
    }

    #[test]
    fn shorter_steps_become_their_median() {
        let samples: Samples = (0..12).map(|place| (Timestamp(place * 250), place as f64)).collect();
        let steps = numbered(&samples, (50, Timestamp(2750)), 1000, true);
        assert_eq!(steps.iter().map(|(step, _)| *step).collect::<Vec<_>>(), [48, 49, 50]);
        assert!(steps.windows(2).all(|pair| pair[0].1 < pair[1].1), "{steps:?}");
    }

    #[test]
    fn only_paces_that_fit_are_used() {
        let pace = |from, step_ms| Pace { from: Timestamp(from), step_ms };
        let paces = [pace(1, 7000), pace(2, 1000), pace(3, 5000)];
        assert_eq!(fits_from(&paces, 10_000), Some(Timestamp(2)));
        assert_eq!(fits_from(&paces, 5000), Some(Timestamp(2)));
        assert_eq!(fits_from(&paces, 3000), None);
        assert_eq!(fits_from(&[], 3000), None);
    }
}
