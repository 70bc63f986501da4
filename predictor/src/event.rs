//! Will it become worse, and how long will it stay as it is?
//!
//! Onsets are hard to foresee and persistence is easy. The probabilities say so: they are kept honest by an intercept that
//! follows what really came (the recalibration in the large of Platt 1999, online), and by a hazard estimated from the
//! level's own past shifts with a weak prior.

use std::collections::VecDeque;

use crate::sample;
use crate::sorted::SortedWindow;

/// Horizons, in steps, that events are foreseen over.
pub const EVENT_HORIZONS: [usize; 2] = [12, 48];
/// What counts as now: the median of this many steps.
const NOW: usize = 12;
/// How fast an intercept follows.
const PACE: f64 = 0.03;
/// Steps in which one shift is expected where none has been seen.
const PRIOR_STEPS: f64 = 500.0;

/// What counts as worse: the median of the horizon lies above now by both.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Worse {
    /// As a share of now.
    pub relative: f64,
    /// In the unit of the series.
    pub absolute: f64,
}

impl Default for Worse {
    /// By a fifth, and by 5 ms.
    fn default() -> Self {
        Self { relative: 0.2, absolute: 5.0 }
    }
}

impl Worse {
    /// Whether `later` is worse than `now`.
    pub fn is(&self, now: f64, later: f64) -> bool {
        later > now + (now.abs() * self.relative).max(self.absolute)
    }

    /// Whether the median of `values` is worse than `now`; `None` where fewer than half of `steps` have a value.
    pub(crate) fn within(&self, now: f64, values: &mut Vec<f64>, steps: usize) -> Option<bool> {
        if values.len() * 2 < steps {
            return None;
        }
        Some(self.is(now, sample::median(values)?))
    }
}

/// What is foreseen of the level.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Events {
    /// The level now.
    pub now: f64,
    /// Probability that the median of the next 12 and of the next 48 steps is worse than now.
    pub worse: [f64; EVENT_HORIZONS.len()],
    /// Steps that the present level is expected to stay.
    pub stays: f64,
}

impl Events {
    /// Probability that the present level is still there after `steps`.
    pub fn stays_for(&self, steps: usize) -> f64 {
        (-(steps as f64) / self.stays.max(1.0)).exp()
    }
}

/// Follows the events of one series.
#[derive(Clone, Debug)]
pub(crate) struct EventWatch {
    worse: Worse,
    now: SortedWindow,
    later: [SortedWindow; EVENT_HORIZONS.len()],
    issued: VecDeque<Issued>,
    intercepts: [f64; EVENT_HORIZONS.len()],
    steps: u64,
    shifts: u64,
}

#[derive(Clone, Copy, Debug)]
struct Issued {
    step: u64,
    now: f64,
    probability: [f64; EVENT_HORIZONS.len()],
}

/// Without a network: the log odds of an event that comes once in fifty times.
const RARE: f64 = -3.9;

impl EventWatch {
    pub(crate) fn new(worse: Worse) -> Self {
        Self {
            worse,
            now: SortedWindow::new(NOW),
            later: EVENT_HORIZONS.map(SortedWindow::new),
            issued: VecDeque::new(),
            intercepts: [0.0; EVENT_HORIZONS.len()],
            steps: 0,
            shifts: 0,
        }
    }

    pub(crate) fn observe(&mut self, step: u64, skipped: u64, value: Option<f64>, shifted: bool) {
        for window in self.later.iter_mut().chain([&mut self.now]) {
            window.skip(skipped);
            window.push(value);
        }
        self.steps += 1;
        self.shifts += u64::from(shifted);
        for (place, horizon) in EVENT_HORIZONS.into_iter().enumerate() {
            let Some(at) = step.checked_sub(horizon as u64) else { continue };
            let Ok(found) = self.issued.binary_search_by_key(&at, |issued| issued.step) else { continue };
            let issued = self.issued[found];
            let later = &self.later[place];
            if let (Some(median), true) = (later.median(), later.len() * 2 >= horizon) {
                let came = if self.worse.is(issued.now, median) { 1.0 } else { 0.0 };
                self.intercepts[place] =
                    (self.intercepts[place] + PACE * (came - issued.probability[place])).clamp(-4.0, 4.0);
            }
        }
        let oldest = step.saturating_sub(EVENT_HORIZONS[EVENT_HORIZONS.len() - 1] as u64);
        while self.issued.front().is_some_and(|issued| issued.step < oldest) {
            self.issued.pop_front();
        }
    }

    /// The level now.
    pub(crate) fn now(&self) -> Option<f64> {
        self.now.median()
    }

    /// What is foreseen after `step`, kept to learn from. `logits` are the network's, if there is one.
    pub(crate) fn issue(&mut self, step: u64, logits: Option<[f32; 2]>) -> Option<Events> {
        let now = self.now()?;
        let probability = std::array::from_fn(|place| {
            let logit = logits.map_or(RARE, |logits| f64::from(logits[place])) + self.intercepts[place];
            1.0 / (1.0 + (-logit).exp())
        });
        self.issued.push_back(Issued { step, now, probability });
        let stays = (self.steps as f64 + PRIOR_STEPS) / (self.shifts as f64 + 1.0);
        Some(Events { now, worse: probability, stays })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_bounds_must_be_passed() {
        let worse = Worse::default();
        assert!(!worse.is(10.0, 14.0), "4 ms are little");
        assert!(!worse.is(100.0, 115.0), "15 % is little");
        assert!(worse.is(100.0, 121.0) && worse.is(10.0, 15.5));
        assert!(!worse.is(100.0, 10.0));
    }

    #[test]
    fn the_probability_goes_to_how_often_it_really_comes() {
        let mut watch = EventWatch::new(Worse::default());
        // Every 100 steps the level doubles for 50: 12 steps ahead it is worse at about a ninth of all moments.
        let mut sum = 0.0;
        for step in 0..6000_u64 {
            let value = if step % 100 < 50 { 20.0 } else { 40.0 };
            watch.observe(step, 0, Some(value), step % 50 == 0);
            let events = watch.issue(step, None).unwrap();
            if step >= 3000 {
                sum += events.worse[0];
                assert!((30.0..70.0).contains(&events.stays), "{}", events.stays);
            }
        }
        let mean = sum / 3000.0;
        assert!((0.04..0.2).contains(&mean), "{mean}");
    }
}
