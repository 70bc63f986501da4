//! Will it become worse, and how long will it stay as it is?
//!
//! Onsets are hard to foresee and persistence is easy. The probabilities say so: they are kept honest by an intercept that
//! follows what really came (recalibration in the large, online), and the level is expected to stay as often as it used to.

use std::collections::VecDeque;

use crate::sample;
use crate::sorted::SortedWindow;

/// Horizons, in steps, that events are foreseen over.
pub const EVENT_HORIZONS: [usize; 2] = [12, 48];
/// What counts as now: the median of this many steps.
const NOW: usize = 12;
/// How fast an intercept follows.
const PACE: f64 = 0.03;
/// How often a level is expected to stay before anything is known, and how many observations that is worth.
const STAYS: (f64, f64) = (0.95, 20.0);
/// How fast that follows, once there are many.
const STAYS_PACE: f64 = 0.01;

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
    pub(crate) fn within(&self, now: f64, values: &mut [f64], steps: usize) -> Option<bool> {
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
    /// Probability that it is neither worse nor better by as much.
    pub stays: [f64; EVENT_HORIZONS.len()],
}

impl Events {
    /// Steps that the present level is expected to stay, were it left at a constant rate.
    pub fn expected_stay(&self) -> f64 {
        let last = EVENT_HORIZONS.len() - 1;
        -(EVENT_HORIZONS[last] as f64) / self.stays[last].clamp(1e-6, 1.0 - 1e-6).ln()
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
    stays: [f64; EVENT_HORIZONS.len()],
    judged: [u32; EVENT_HORIZONS.len()],
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
            stays: [STAYS.0; EVENT_HORIZONS.len()],
            judged: [0; EVENT_HORIZONS.len()],
        }
    }

    pub(crate) fn observe(&mut self, step: u64, skipped: u64, value: Option<f64>) {
        for window in self.later.iter_mut().chain([&mut self.now]) {
            window.skip(skipped);
            window.push(value);
        }
        for (place, horizon) in EVENT_HORIZONS.into_iter().enumerate() {
            let Some(at) = step.checked_sub(horizon as u64) else { continue };
            let Ok(found) = self.issued.binary_search_by_key(&at, |issued| issued.step) else { continue };
            let issued = self.issued[found];
            let later = &self.later[place];
            if let (Some(median), true) = (later.median(), later.len() * 2 >= horizon) {
                let worse = self.worse.is(issued.now, median);
                let came = if worse { 1.0 } else { 0.0 };
                self.intercepts[place] =
                    (self.intercepts[place] + PACE * (came - issued.probability[place])).clamp(-4.0, 4.0);
                let stayed = !worse && !self.worse.is(median, issued.now);
                let pace = STAYS_PACE.max(1.0 / (f64::from(self.judged[place]) + STAYS.1));
                self.stays[place] += pace * (if stayed { 1.0 } else { 0.0 } - self.stays[place]);
                self.judged[place] = self.judged[place].saturating_add(1);
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
        Some(Events { now, worse: probability, stays: self.stays })
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
            watch.observe(step, 0, Some(value));
            let events = watch.issue(step, None).unwrap();
            if step >= 3000 {
                sum += events.worse[0];
                // Of every 50 steps, the last six see the other level in their next twelve.
                assert!((0.6..0.95).contains(&events.stays[0]), "{:?}", events.stays);
                assert!(events.expected_stay() < 100.0);
            }
        }
        let mean = sum / 3000.0;
        assert!((0.04..0.2).contains(&mean), "{mean}");
    }
}
