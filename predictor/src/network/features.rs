//! What the network sees of a series, free of its unit: distances from the present level in units of its scale.

use super::inputs::{AHEAD, INPUTS};
use crate::forecast::{LEVELS, Quantiles};
use crate::model::{EXPERTS, LAGS};

/// Newest values, one by one.
const RECENT: usize = 12;
/// Experts whose every quantile is shown: the windows of 6, 24 and 240 steps and the level.
const SHOWN: [usize; 4] = [0, 2, 5, 6];
/// Numbers about the series as a whole.
pub(crate) const STATE: usize = 14;
/// Length of the feature vector.
pub const FEATURES: usize =
    RECENT + SHOWN.len() * LEVELS.len() + EXPERTS + EXPERTS * LAGS.len() + STATE + INPUTS;

/// The unit-free frame of one moment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Frame {
    /// The present level.
    pub centre: f64,
    /// How far values usually are from it; never zero.
    pub scale: f64,
}

impl Frame {
    /// From what the long window (or whichever is awake) and the level say.
    pub(crate) fn of(spread: &Quantiles, centre: f64) -> Self {
        let broad = (spread[4] - spread[0]) / 3.29;
        let narrow = (spread[3] - spread[1]) / 1.349;
        let scale = f64::midpoint(broad, narrow).max(centre.abs() * 1e-6).max(1e-9);
        Self { centre, scale }
    }

    /// Distance from the centre, in scales.
    pub fn standardise(&self, value: f64) -> f32 {
        (((value - self.centre) / self.scale).clamp(-1e6, 1e6)) as f32
    }

    /// The same, with far ones drawn in.
    pub(crate) fn draw_in(&self, value: f64) -> f32 {
        self.standardise(value).asinh()
    }
}

/// Everything the feature vector is made of.
pub(crate) struct Sight<'a> {
    pub(crate) frame: Frame,
    /// Newest first.
    pub(crate) recent: &'a mut dyn Iterator<Item = Option<f64>>,
    /// What the experts say of the next step.
    pub(crate) said: &'a [Option<Quantiles>; EXPERTS],
    /// Recent losses by distance and expert, in units of their mean.
    pub(crate) losses: &'a [[f32; EXPERTS]; LAGS.len()],
    pub(crate) state: [f32; STATE],
    pub(crate) inputs: [f32; INPUTS],
}

impl Sight<'_> {
    pub(crate) fn features(self) -> [f32; FEATURES] {
        let mut out = [0.0; FEATURES];
        let frame = self.frame;
        let recent: Vec<f32> =
            self.recent.take(RECENT).map(|value| value.map_or(0.0, |value| frame.draw_in(value))).collect();
        let padded = (0..RECENT).map(|place| recent.get(place).copied().unwrap_or(0.0));
        let shown = SHOWN.iter().flat_map(|place| {
            self.said[*place].map_or([0.0; LEVELS.len()], |said| said.map(|value| frame.draw_in(value)))
        });
        let medians = self.said.iter().map(|said| said.map_or(0.0, |said| frame.draw_in(said[2])));
        let losses = self.losses.iter().flatten().map(|loss| loss - 1.0);
        let all = padded.chain(shown).chain(medians).chain(losses).chain(self.state).chain(self.inputs);
        for (slot, value) in out.iter_mut().zip(all) {
            *slot = if value.is_finite() { value.clamp(-12.0, 12.0) } else { 0.0 };
        }
        out
    }

    /// Where the inputs of the present step begin in the vector.
    pub(crate) const INPUTS_FROM: usize = FEATURES - INPUTS;
}

/// One moment of a series with what came of it: what the network learns from.
#[derive(Clone, Debug)]
pub struct Example {
    /// What was seen.
    pub features: [f32; FEATURES],
    /// What was to be foreseen, at four distances.
    pub targets: [Target; LAGS.len()],
    /// Whether the level became worse within 12 and within 48 steps; `None` where that cannot be said.
    pub worse: [Option<bool>; 2],
}

/// One distance of an [`Example`], standardised.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Steps ahead.
    pub ahead: usize,
    /// What was known of that step.
    pub inputs: [f32; AHEAD],
    /// What each expert said.
    pub said: [Option<[f32; LEVELS.len()]>; EXPERTS],
    /// The experts' recent losses at about this distance.
    pub losses: [f32; EXPERTS],
    /// What an offset of the network is in units of: about what the best of the experts misses by.
    pub reach: f32,
    /// What came, if anything.
    pub came: Option<f32>,
    /// How much a loss of one scale counts: less where the experts miss by much anyway.
    pub weight: f32,
}
