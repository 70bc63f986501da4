//! Moments put away until what came of them is known.

use std::collections::VecDeque;

use crate::event::{EVENT_HORIZONS, Worse};
use crate::forecast::Quantiles;
use crate::model::LAGS;
use crate::model::panel::EXPERTS;
use crate::network::features::Frame;
use crate::network::inputs::Known;
use crate::network::{Example, FEATURES, Target};
use crate::rng::Rng;
use crate::window::Window;

/// From how far to how far ahead each of the four targets lies.
const RANGES: [(usize, usize); LAGS.len()] = [(1, 2), (3, 8), (9, 24), (25, 48)];
/// A loss is never in units of less than this many scales.
const LEAST: f64 = 0.02;

/// Examples in the making.
pub(super) struct Collector {
    every: u64,
    rng: Rng,
    pending: VecDeque<Pending>,
    done: Vec<Example>,
}

/// What is known of one distance ahead.
pub(super) struct Moment {
    pub(super) ahead: usize,
    pub(super) said: [Option<Quantiles>; EXPERTS],
    pub(super) losses: [f32; EXPERTS],
    /// The experts' recent mean loss.
    pub(super) unit: f64,
    /// What an offset of the network is in units of.
    pub(super) reach: f64,
}

struct Pending {
    step: u64,
    frame: Frame,
    now: Option<f64>,
    example: Example,
}

impl Collector {
    pub(super) fn new(every: usize, seed: u64) -> Self {
        Self { every: every as u64, rng: Rng::new(seed), pending: VecDeque::new(), done: Vec::new() }
    }

    /// Whether an example begins at `step`.
    pub(super) fn wants(&self, step: u64) -> bool {
        self.every > 0 && step.is_multiple_of(self.every)
    }

    /// Four distances for the next example.
    pub(super) fn draw(&mut self) -> [usize; LAGS.len()] {
        RANGES.map(|(nearest, furthest)| nearest + self.rng.below(furthest - nearest + 1))
    }

    /// Puts a moment away, with what is said of the distances that were [drawn](Self::draw).
    pub(super) fn begin(
        &mut self,
        step: u64,
        frame: Frame,
        features: &[f32; FEATURES],
        now: Option<f64>,
        known: &Known,
        at: [Moment; LAGS.len()],
    ) {
        let targets = at.map(|Moment { ahead, said, losses, unit, reach }| Target {
            ahead,
            inputs: known.ahead(ahead),
            said: said.map(|said| said.map(|said| said.map(|value| frame.standardise(value)))),
            losses,
            reach: (reach / frame.scale) as f32,
            came: None,
            weight: (1.0 / (unit / frame.scale).max(LEAST)) as f32,
        });
        let example = Example { features: *features, targets, worse: [None; EVENT_HORIZONS.len()] };
        self.pending.push_back(Pending { step, frame, now, example });
    }

    /// Completes what lies far enough back.
    pub(super) fn resolve(&mut self, step: u64, window: &Window, worse: Worse) {
        let furthest = LAGS[LAGS.len() - 1] as u64;
        while let Some(pending) = self.pending.pop_front_if(|pending| step - pending.step >= furthest) {
            let Pending { step: from, frame, now, mut example } = pending;
            let back = |ahead: usize| {
                usize::try_from(step - from).ok().and_then(|span| window.ago(span.checked_sub(ahead)?))
            };
            for target in &mut example.targets {
                target.came = back(target.ahead).map(|value| held(frame.standardise(value), target));
            }
            if let Some(now) = now {
                example.worse = EVENT_HORIZONS.map(|horizon| {
                    let mut values: Vec<f64> = (1..=horizon).filter_map(back).collect();
                    worse.within(now, &mut values, horizon)
                });
            }
            if example.targets.iter().any(|target| target.came.is_some()) {
                self.done.push(example);
            }
        }
    }

    pub(super) fn take(&mut self) -> Vec<Example> {
        std::mem::take(&mut self.done)
    }
}

/// A value no further from what the experts said than twenty usual misses: one wild value must not rule a batch.
fn held(value: f32, target: &Target) -> f32 {
    let furthest = 20.0 / target.weight;
    let (low, high) = target
        .said
        .iter()
        .flatten()
        .flatten()
        .fold((f32::MAX, f32::MIN), |(low, high), said| (low.min(*said), high.max(*said)));
    if low > high { value } else { value.clamp(low - furthest, high + furthest) }
}
