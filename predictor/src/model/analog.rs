//! The next steps will be like those of the past that looked most like them beforehand, by weather, load and where the series was.
//!
//! An analog ensemble (Delle Monache et al. 2013): the quantiles of past values under like circumstances. Likeness is measured
//! on one number, the index: what a ridge regression of this series expects (a single-index model: Härdle, Hall & Ichimura
//! 1993), so that inputs that tell nothing of this series do not blur it. Quantiles are those of the nearest by rank of the
//! index (Stute 1984), found at some places and interpolated between them.
//!
//! What a step is like depends on how far ahead it is: there is a memory for each of [`LAGS`], and steps between are interpolated
//! (direct forecasts: Marcellino, Stock & Watson 2006). Each value is put away under the index that was expected of it, before
//! it was learned from. Says nothing of steps whose inputs are not known, nor before enough was seen; costs nothing where
//! nothing is ever known.

use std::collections::VecDeque;

use super::ensemble::between;
use super::ridge::{Design, Ridge, STATE, design};
use super::{Freshness, LAGS};
use crate::forecast::{LEVELS, Quantiles};
use crate::network::features::Frame;
use crate::network::inputs::{Known, LATELY, Step, WEATHER};
use crate::network::{INPUTS, Inputs};
use crate::sample;
use crate::window::usable;

/// Values that are remembered, at each distance.
const KEPT: usize = 1000;
/// Values that a forecast is made of.
const NEAREST: usize = 60;
/// Values needed to answer.
const NEEDED: usize = 128;
/// Values needed before any is learned from.
const LEAST: usize = 24;
/// Values after which what was learned is used.
const EVERY: u32 = 16;
/// How often then the frame of the values is found anew.
const REFRAME: u32 = 4;
/// Where between the lowest index and the highest quantiles are found: more at the ends, where storms are.
const PLACES: [f64; 17] =
    [0.0, 0.01, 0.03, 0.06, 0.1, 0.17, 0.25, 0.37, 0.5, 0.63, 0.75, 0.83, 0.9, 0.94, 0.97, 0.99, 1.0];
/// The weight of the newest value in each of the means that say where the series is: the first is that value.
const PACES: [f32; STATE] = [1.0, 0.4, 0.1, 0.01];
/// The furthest of [`LAGS`].
const FURTHEST: usize = LAGS[LAGS.len() - 1];

/// The past of a series under what was known of each step.
#[derive(Clone, Debug, Default)]
pub struct Analog {
    freshness: Freshness,
    learned: Option<Box<Learned>>,
}

/// A step ahead: how far, and its index at the distances below and above.
#[derive(Clone, Copy, Debug)]
pub(super) struct Likeness {
    left: (usize, f32),
    right: (usize, f32),
}

#[derive(Clone, Debug)]
struct Learned {
    frame: Option<Frame>,
    /// Where the series was at each of the last steps, the newest first.
    states: VecDeque<[f32; STATE]>,
    /// The weather of the last steps, the newest first; zeros where it was not known.
    weather: VecDeque<[f32; WEATHER]>,
    memories: [Memory; LAGS.len()],
    taken: u32,
}

/// Values by what was expected of them, so many steps before.
#[derive(Clone, Debug)]
struct Memory {
    ridge: Ridge,
    /// Indices, oldest first.
    order: VecDeque<f32>,
    /// Indices in order of size, and the value of each.
    indices: Vec<f32>,
    values: Vec<f64>,
    grid: Vec<(f32, Quantiles)>,
}

impl Analog {
    /// A model that has seen nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes what `step` brought, and what was known of it.
    pub fn observe(&mut self, step: u64, value: Option<f64>, inputs: &Inputs) {
        self.learn(step, value, Some(&Step { vector: inputs.vector(), tells: inputs.tells() }));
    }

    /// Quantiles of the step `ahead`; `known` begins with the newest step. `None` while asleep.
    pub fn quantiles(&self, ahead: usize, known: &[Inputs]) -> Option<Quantiles> {
        self.at(ahead, self.likeness(ahead, &Known::of(known))?)
    }

    pub(super) fn learn(&mut self, step: u64, value: Option<f64>, known: Option<&Step>) {
        let value = usable(value);
        let Some(skipped) = self.freshness.advance(step, value.is_some()) else { return };
        let known = known.filter(|known| known.tells);
        if known.is_some() && value.is_some() {
            self.learned.get_or_insert_with(|| Box::new(Learned::new()));
        }
        if let Some(learned) = &mut self.learned {
            learned.observe(skipped, value, known);
        }
    }

    /// Whether enough was seen to answer wherever something is known.
    pub(super) fn awake(&self) -> bool {
        self.learned.as_ref().is_some_and(|learned| learned.awake())
    }

    /// What the step `ahead` is like; `None` while asleep.
    pub(super) fn likeness(&self, ahead: usize, known: &Known) -> Option<Likeness> {
        let learned = self.learned.as_ref().filter(|learned| learned.awake())?;
        let step = known.later().get(ahead.checked_sub(1)?).filter(|step| step.tells)?;
        let before = weather(&known.before(ahead));
        let design = design(&step.vector, &before, learned.states.front()?);
        let right = LAGS.iter().position(|lag| *lag >= ahead).unwrap_or(LAGS.len() - 1);
        let left = right.saturating_sub(usize::from(LAGS[right] > ahead));
        let index = |place: usize| (place, learned.memories[place].ridge.predict(&design) as f32);
        Some(Likeness { left: index(left), right: index(right) })
    }

    /// Quantiles of the step `ahead`, which is like this; `None` while asleep.
    pub(super) fn at(&self, ahead: usize, likeness: Likeness) -> Option<Quantiles> {
        let learned = self.learned.as_ref()?;
        let of = |(place, index): (usize, f32)| learned.memories[place].at(index);
        let right = of(likeness.right)?;
        if likeness.left.0 == likeness.right.0 {
            return Some(right);
        }
        Some(between((LAGS[likeness.left.0], &of(likeness.left)?), (LAGS[likeness.right.0], &right), ahead))
    }
}

impl Learned {
    fn new() -> Self {
        Self {
            frame: None,
            states: VecDeque::from([[0.0; STATE]]),
            weather: VecDeque::new(),
            memories: std::array::from_fn(|_| Memory::new()),
            taken: 0,
        }
    }

    fn awake(&self) -> bool {
        self.memories.iter().all(|memory| !memory.grid.is_empty())
    }

    fn observe(&mut self, skipped: u64, value: Option<f64>, known: Option<&Step>) {
        for _ in 0..skipped.min(FURTHEST as u64) {
            self.stay(None);
        }
        if let Some((value, known)) = value.zip(known) {
            let before = self.before();
            let target = self.frame.map(|frame| f64::from(frame.draw_in(value)));
            for (memory, lag) in self.memories.iter_mut().zip(LAGS) {
                if let Some(then) = self.states.get(lag - 1) {
                    memory.observe(value, &design(&known.vector, &before, then), target);
                }
            }
            self.taken = self.taken.wrapping_add(1);
            if self.taken.is_multiple_of(EVERY) {
                self.take_stock();
            }
        }
        self.stay(known);
        if let (Some(value), Some(frame), Some(state)) = (value, &self.frame, self.states.front_mut()) {
            let value = frame.draw_in(value);
            for (mean, pace) in state.iter_mut().zip(PACES) {
                *mean += pace * (value - *mean);
            }
        }
    }

    /// A step begins where the one before ended.
    fn stay(&mut self, known: Option<&Step>) {
        self.weather.push_front(known.map_or([0.0; WEATHER], |known| weather(&known.vector)));
        self.weather.truncate(LATELY);
        let state = self.states.front().copied().unwrap_or_default();
        self.states.push_front(state);
        self.states.truncate(FURTHEST);
    }

    /// The mean weather of the last steps.
    fn before(&self) -> [f32; WEATHER] {
        let mut mean = [0.0; WEATHER];
        for weather in &self.weather {
            for (slot, value) in mean.iter_mut().zip(weather) {
                *slot += value / self.weather.len() as f32;
            }
        }
        mean
    }

    fn take_stock(&mut self) {
        let mut values = self.memories[0].values.clone();
        if values.len() >= LEAST && (self.frame.is_none() || self.taken.is_multiple_of(EVERY * REFRAME)) {
            self.frame = sample::quantiles(&mut values).map(|all| Frame::of(&all, all[LEVELS.len() / 2]));
        }
        for memory in &mut self.memories {
            memory.take_stock();
        }
    }
}

/// Of what is known of a step, the weather.
fn weather(vector: &[f32; INPUTS]) -> [f32; WEATHER] {
    std::array::from_fn(|place| vector[place])
}

impl Memory {
    fn new() -> Self {
        Self {
            ridge: Ridge::new(),
            order: VecDeque::new(),
            indices: Vec::new(),
            values: Vec::new(),
            grid: Vec::new(),
        }
    }

    fn observe(&mut self, value: f64, design: &Design, target: Option<f64>) {
        if self.order.len() == KEPT
            && let Some(oldest) = self.order.pop_front()
        {
            let place = self.indices.partition_point(|other| *other < oldest);
            self.indices.remove(place);
            self.values.remove(place);
        }
        let index = self.ridge.predict(design) as f32;
        // Behind its equals, so that the oldest of them leaves first.
        let place = self.indices.partition_point(|other| *other <= index);
        self.order.push_back(index);
        self.indices.insert(place, index);
        self.values.insert(place, value);
        if let Some(target) = target {
            self.ridge.learn(design, target);
        }
    }

    fn take_stock(&mut self) {
        self.ridge.solve();
        let count = self.values.len();
        if count < NEEDED {
            return;
        }
        let room = (count - NEAREST) as f64;
        let found = PLACES.iter().filter_map(|share| {
            let from = (share * room).round() as usize;
            let mut near = [0.0; NEAREST];
            near.copy_from_slice(&self.values[from..from + NEAREST]);
            Some((self.indices[from + NEAREST / 2], sample::quantiles(&mut near)?))
        });
        self.grid = found.collect();
    }

    fn at(&self, index: f32) -> Option<Quantiles> {
        let right = self.grid.partition_point(|(place, _)| *place < index);
        let Some((above, high)) = self.grid.get(right) else {
            return self.grid.last().map(|(_, last)| *last);
        };
        let Some((below, low)) = right.checked_sub(1).and_then(|left| self.grid.get(left)) else {
            return Some(*high);
        };
        // `below` is less than the index and `above` is not: they differ.
        let share = f64::from((index - below) / (above - below));
        // Each in order, so their weighted mean is, too, whatever the rounding.
        Some(std::array::from_fn(|level| low[level] * (1.0 - share) + high[level] * share))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::inputs::Weather;
    use crate::rng::Rng;

    fn some_weather(rng: &mut Rng) -> Inputs {
        let rain = if rng.uniform() < 0.15 { 4.0 * rng.uniform() } else { 0.0 };
        Inputs {
            weather: Some(Weather {
                temperature: Some(12.0 + 8.0 * rng.normal()),
                precipitation: Some(rain),
                ..Weather::default()
            }),
            ..Inputs::default()
        }
    }

    /// Rain delays, temperature does nothing; the tail is heavy.
    fn value(rng: &mut Rng, inputs: &Inputs) -> f64 {
        let rain = inputs.weather.and_then(|weather| weather.precipitation).unwrap_or(0.0);
        let tail = -(1.0 - rng.uniform()).ln();
        20.0 + tail + 30.0 * rain.min(1.0) * (1.0 + tail)
    }

    fn taught() -> Analog {
        let mut rng = Rng::new(3);
        let mut model = Analog::new();
        for step in 0..1500 {
            let inputs = some_weather(&mut rng);
            model.observe(step, Some(value(&mut rng, &inputs)), &inputs);
        }
        model
    }

    /// Of the step `ahead` when it rains from now on.
    fn said(model: &Analog, ahead: usize, rain: f64) -> Option<Quantiles> {
        model.quantiles(ahead, &vec![with(rain); ahead + 1])
    }

    fn with(rain: f64) -> Inputs {
        let weather = Weather { temperature: Some(10.0), precipitation: Some(rain), ..Weather::default() };
        Inputs { weather: Some(weather), ..Inputs::default() }
    }

    #[test]
    fn a_storm_that_is_foreseen_moves_the_median_and_widens_the_band() {
        let model = taught();
        for ahead in [1, 3, 12, 48, 300] {
            let (dry, wet) = (said(&model, ahead, 0.0).unwrap(), said(&model, ahead, 3.0).unwrap());
            assert!((20.0..22.0).contains(&dry[2]) && dry[4] < 27.0, "{ahead}: {dry:?}");
            assert!(wet[2] > 50.0 && wet[4] - wet[0] > 8.0 * (dry[4] - dry[0]), "{ahead}: {wet:?}");
        }
    }

    #[test]
    fn the_near_future_is_like_the_present_and_the_far_one_like_its_circumstances() {
        let mut rng = Rng::new(8);
        let (mut model, mut level) = (Analog::new(), 0.0);
        for step in 0..2000 {
            level = 0.9 * level + rng.normal();
            model.observe(step, Some(100.0 + level), &with(0.0));
        }
        for step in 2000..2004 {
            model.observe(step, Some(106.0), &with(0.0));
        }
        let (near, far) = (said(&model, 1, 0.0).unwrap(), said(&model, 48, 0.0).unwrap());
        assert!((103.0..107.0).contains(&near[2]), "{near:?}");
        assert!((98.0..102.0).contains(&far[2]) && far[4] - far[0] > 1.5 * (near[4] - near[0]), "{far:?}");
    }

    #[test]
    fn sleeps_where_nothing_is_known_and_until_enough_was_seen() {
        let calendar = Inputs { calendar: Some((0.5, 0.5)), ..Inputs::default() };
        let model = taught();
        assert_eq!(model.quantiles(1, &[with(0.0), calendar]), None);
        assert_eq!(model.quantiles(2, &[with(0.0), with(0.0)]), None);
        assert_eq!(model.quantiles(0, &[with(0.0), with(0.0)]), None);
        let mut young = Analog::new();
        young.observe(0, Some(1.0), &calendar);
        young.observe(1, None, &with(0.0));
        assert!(young.learned.is_none(), "nothing is put away where nothing is known");
        let enough = (NEEDED + FURTHEST) as u64;
        for step in 2..=enough {
            young.observe(step, Some(1.0), &with(0.0));
            assert_eq!(said(&young, 1, 0.0), None, "{step}");
        }
        for step in 1 + enough..1 + enough + u64::from(EVERY) {
            young.observe(step, Some(1.0), &with(0.0));
        }
        assert_eq!(said(&young, 1, 0.0), Some([1.0; 5]));
    }

    #[test]
    fn what_it_keeps_is_bounded_and_the_oldest_leaves() {
        let mut model = taught();
        for step in 0..2 * KEPT + EVERY as usize {
            let rain = if step % 2 == 0 { 0.0 } else { 3.0 };
            let value = if step < KEPT { 1.0 } else { 7.0 };
            model.observe(2000 + step as u64, Some(value), &with(rain));
        }
        let learned = model.learned.as_ref().unwrap();
        for memory in &learned.memories {
            assert_eq!((memory.order.len(), memory.indices.len(), memory.values.len()), (KEPT, KEPT, KEPT));
            assert!(memory.indices.is_sorted());
        }
        assert_eq!((learned.states.len(), learned.weather.len()), (FURTHEST, LATELY));
        assert_eq!(said(&model, 1, 3.0), Some([7.0; 5]));
    }
}
