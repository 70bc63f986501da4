//! The forecaster of one series: experts and the shared network, weighed by Hedge, calibrated.
//!
//! ```text
//!            ┌► experts ──────────────┬──────────────► Hedge ──► calibration ──► quantiles
//!   value ───┤                        ├► network ──────┘ ▲            ▲
//!            └► what was forecast of it earlier ─────────┴────────────┘
//! ```
//! What is forecast is linear in what the experts say, so the weights are found at some distances ahead (nodes) and
//! interpolated between them; the experts themselves are asked for every step.

use std::collections::VecDeque;
use std::sync::{Arc, LazyLock};

use super::hedge::{Hedge, Tuning};
use super::panel::{ALL, ANALOG, EXPERTS, LEVEL, Panel, Present, Said, advised};
use super::{ENOUGH, Forecaster, Freshness, LAGS};
use crate::calibrate::{self, Asked, Calibrator, Pace};
use crate::event::{EventWatch, Events, Worse};
use crate::forecast::{Abstained, Forecast, LEVELS, Outlook, Quantiles, Reason, check_horizon};
use crate::network::features::{Frame, STATE, Sight};
use crate::network::inputs::Known;
use crate::network::weights::{Advice, Trunk};
use crate::network::{Example, FEATURES, INPUTS, Inputs, Weights};
use crate::quality::{Abstentions, Quality, Scores};
use crate::shift::Shift;
use crate::window::{Window, usable};

mod collect;
mod trust;

use collect::Collector;
use trust::Trust;

/// The network's part of the weight at first; the experts share the rest.
const NETWORK_PRIOR: f64 = 0.6;
/// The analogs' share once they wake; series of which nothing is ever known are weighed as if there were none.
const ANALOG_SHARE: f64 = 0.25;
/// The weight of the newest loss in what the network sees of an expert's losses.
const LOSS_PACE: f32 = 0.03;
/// A mean pinball loss times this is about a standard deviation.
const OFFSET_UNIT: f64 = 4.0;
/// Nodes where the network knows something of each step ahead.
const DENSE: [usize; 14] = [1, 2, 3, 4, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48];
/// The furthest step ahead that each bucket but the last answers for.
const UNTIL: [usize; 3] = [2, 8, 28];

/// Steps ahead at which bands are calibrated; those between are interpolated.
const STEPS: [usize; 10] = [1, 2, 4, 6, 9, 12, 18, 26, 36, 48];

/// How to forecast a series.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Steps after which the series repeats itself, such as those of a day; none: no season.
    pub period: Option<usize>,
    /// What counts as worse.
    pub worse: Worse,
    /// The shared network; none: experts only.
    pub network: Option<Arc<Weights>>,
    /// An example to learn from is made at every so many steps; 0: never.
    pub examples_every: usize,
    /// Of what is drawn for examples. Forecasts draw nothing.
    pub seed: u64,
    /// How the weights move.
    pub tuning: Tuning,
    /// How fast the bands are calibrated.
    pub pace: Pace,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            period: None,
            worse: Worse::default(),
            network: None,
            examples_every: 0,
            seed: 1,
            tuning: Tuning::default(),
            pace: Pace::default(),
        }
    }
}

/// The forecaster of one series.
pub struct Ensemble {
    settings: Settings,
    panel: Panel,
    window: Window,
    freshness: Freshness,
    hedges: [Hedge; LAGS.len()],
    calibrators: [Calibrator; STEPS.len()],
    calibrated: [VecDeque<Promise>; STEPS.len()],
    /// Recent losses, in units of their mean.
    losses: [[f32; EXPERTS]; LAGS.len()],
    issued: [VecDeque<Issued>; LAGS.len()],
    present: Option<Present>,
    nodes: Vec<Node>,
    watch: EventWatch,
    events: Option<Events>,
    scores: [Scores; LAGS.len()],
    abstentions: Abstentions,
    collector: Collector,
    seen_shift: Option<Shift>,
    /// In upward and in downward shifts.
    trust: [Trust; 2],
    never_negative: bool,
    sticky: f32,
    last: Option<f64>,
    since_change: u32,
}

/// What was forecast at one step for a later one, as it was then.
#[derive(Clone, Debug)]
struct Issued {
    step: u64,
    last: f64,
    /// The next are differences from this.
    centre: f64,
    /// All experts', and the network's after them.
    said: [Option<[f32; LEVELS.len()]>; ALL + 1],
    mixed: Quantiles,
}

/// The bands of one forecast, as issued, for one later step.
#[derive(Clone, Copy, Debug)]
struct Promise {
    step: u64,
    issued: Quantiles,
    asked: Asked,
}

/// What was made of the present moment.
struct Seen {
    frame: Frame,
    last: f64,
    features: Option<[f32; FEATURES]>,
    /// The network's logits of becoming worse.
    worse: Option<[f32; 2]>,
}

/// How to mix what the experts say, at one distance ahead.
#[derive(Clone, Debug)]
struct Node {
    ahead: usize,
    weights: [Quantiles; ALL],
    /// The network's offsets.
    offset: Quantiles,
    network: Option<Quantiles>,
}

impl Ensemble {
    /// A forecaster that has seen nothing.
    pub fn new(settings: Settings) -> Self {
        let mut prior = [(1.0 - NETWORK_PRIOR) / EXPERTS as f64; ALL + 1];
        prior[ANALOG] = 0.0;
        prior[ALL] = NETWORK_PRIOR;
        Self {
            panel: Panel::new(settings.period),
            window: Window::new(240),
            freshness: Freshness::default(),
            hedges: std::array::from_fn(|_| Hedge::new(&prior, settings.tuning)),
            calibrators: STEPS.map(|lag| Calibrator::new(settings.pace, lag)),
            calibrated: std::array::from_fn(|_| VecDeque::new()),
            losses: [[1.0; EXPERTS]; LAGS.len()],
            issued: std::array::from_fn(|_| VecDeque::new()),
            present: None,
            nodes: Vec::new(),
            watch: EventWatch::new(settings.worse),
            events: None,
            scores: std::array::from_fn(|_| Scores::default()),
            abstentions: Abstentions::default(),
            collector: Collector::new(settings.examples_every, settings.seed),
            seen_shift: None,
            trust: [Trust::default(), Trust::default()],
            never_negative: true,
            sticky: 0.0,
            last: None,
            since_change: 0,
            settings,
        }
    }

    /// Exchanges the shared network; forecasts already issued are scored as they were.
    pub fn set_network(&mut self, network: Arc<Weights>) {
        self.settings.network = Some(network);
    }

    /// Like [`Forecaster::observe`]; `known` is what is known of this step and those after it.
    pub fn observe_knowing(&mut self, step: u64, value: Option<f64>, known: &[Inputs]) {
        let value = usable(value);
        let Some(skipped) = self.freshness.advance(step, value.is_some()) else { return };
        self.window.push(step, value);
        if let Some(value) = value {
            self.never_negative &= value >= 0.0;
            self.score(step, value);
            let same = self.last.is_some_and(|last| last.total_cmp(&value).is_eq());
            self.sticky += 0.02 * (if same { 1.0 } else { 0.0 } - self.sticky);
            self.since_change = if same { self.since_change.saturating_add(1) } else { 0 };
            self.last = Some(value);
        }
        let known = &Known::of(known);
        let had_analogs = self.panel.has_analogs();
        self.panel.observe(step, value, known);
        if self.panel.has_analogs() && !had_analogs {
            for hedge in &mut self.hedges {
                hedge.admit(ANALOG, ANALOG_SHARE);
            }
        }
        let present = self.panel.present(known);
        let shift = self.panel.shift();
        let shifted = shift != self.seen_shift;
        self.watch.observe(step, skipped, value);
        if let Some(shift) = shift.filter(|_| shifted) {
            self.seen_shift = Some(shift);
            self.find_nodes(step, &present, known);
            self.follow(&present, shift);
            self.trust[usize::from(shift.to < shift.from)].begin(shift);
        }
        for trust in &mut self.trust {
            trust.observe(step, self.watch.now());
        }
        self.issue(step, &present, known);
        self.present = Some(present);
        self.collector.resolve(step, &self.window, self.settings.worse);
    }

    /// A value of before the first step that is observed: what is usual at its time of day is learned from it, and nothing else. Steps
    /// between two of them are no gaps.
    pub fn recall(&mut self, step: u64, value: f64) {
        if self.freshness.is_new()
            && let Some(value) = usable(Some(value))
        {
            self.panel.recall(step, value);
        }
    }

    /// Each expert's name and its weight on the median of the step `ahead`, the network's last.
    pub fn weights(&self, ahead: usize) -> Vec<(&'static str, f64)> {
        let weights = self.hedges[bucket_of(ahead)].weights(|_| true);
        weights.iter().enumerate().map(|(place, at)| (Panel::name(place), at[LEVELS.len() / 2])).collect()
    }

    /// How many steps ago the newest value came; `None` before there was one.
    pub fn age(&self) -> Option<usize> {
        self.freshness.age()
    }

    /// What is foreseen of the level; `None` before there is one, or where it is too old.
    pub fn events(&self) -> Option<Events> {
        self.check().ok().and(self.events)
    }

    /// How good the forecasts were of late, for each of [`LAGS`] steps ahead.
    pub fn quality(&self) -> [(usize, Quality); LAGS.len()] {
        std::array::from_fn(|place| (LAGS[place], self.scores[place].quality()))
    }

    /// Steps at which there was no forecast, by reason.
    pub fn abstentions(&self) -> &Abstentions {
        &self.abstentions
    }

    /// Examples that have been completed since this was last asked.
    pub fn take_examples(&mut self) -> Vec<Example> {
        self.collector.take()
    }

    fn check(&self) -> Result<(), Abstained> {
        self.freshness.check(self.window.observed(), ENOUGH)
    }

    /// Scores what was forecast of `step`, now that its value is here.
    fn score(&mut self, step: u64, value: f64) {
        for (place, lag) in STEPS.into_iter().enumerate() {
            let Some(at) = step.checked_sub(lag as u64) else { continue };
            while let Some(then) = self.calibrated[place].pop_front_if(|then| then.step <= at) {
                if then.step == at {
                    self.calibrators[place].learn(&then.issued, then.asked, value);
                } else {
                    self.calibrators[place].give_up(then.asked);
                }
            }
        }
        let level_from = self.seen_shift.map_or(0, |shift| shift.onset);
        for (place, lag) in LAGS.into_iter().enumerate() {
            let issued = &mut self.issued[place];
            let Some(at) = step.checked_sub(lag as u64) else { continue };
            while issued.front().is_some_and(|issued| issued.step < at) {
                issued.pop_front();
            }
            let Some(then) = issued.front().filter(|issued| issued.step == at) else { continue };
            self.scores[place].learn(&then.mixed, then.last, value);
            if then.step < level_from {
                continue;
            }
            let said = then.said.map(|said| said.map(|said| said.map(f64::from)));
            let Some(losses) = self.hedges[place].learn(&said, value - then.centre) else { continue };
            for (slot, loss) in self.losses[place].iter_mut().zip(losses) {
                if let Some(loss) = loss {
                    *slot += LOSS_PACE * (loss as f32 - *slot);
                }
            }
        }
    }

    /// Lets the weights follow a shift: all experts, the network too, are judged by what they say now.
    fn follow(&mut self, present: &Present, shift: Shift) {
        let trust = self.trust[usize::from(shift.to < shift.from)].share();
        for (place, lag) in LAGS.into_iter().enumerate() {
            let network = self.nodes.iter().find(|node| node.ahead == lag).and_then(|node| node.network);
            let said: Vec<Option<Quantiles>> =
                self.panel.at(present, lag).into_iter().chain([network]).collect();
            self.hedges[place].follow_shift(&said, shift.from, shift.to, trust);
        }
    }

    /// Puts away what is forecast now, to be scored later.
    fn issue(&mut self, step: u64, present: &Present, known: &Known) {
        self.events = None;
        let Some(sight) = self.find_nodes(step, present, known) else {
            let reason = self.check().err().map_or(Reason::TooFew, |abstained| abstained.reason);
            self.abstentions.note(Some(reason));
            return;
        };
        self.abstentions.note(None);
        self.events = self.watch.issue(step, sight.worse);
        for (place, lag) in LAGS.into_iter().enumerate() {
            let Some(node) = self.nodes.iter().find(|node| node.ahead == lag) else { continue };
            let said = self.panel.at(present, node.ahead);
            let mixed = self.finish(&node.mix(&said), lag);
            let mut kept = [None; ALL + 1];
            for (slot, said) in kept.iter_mut().zip(said.into_iter().chain([node.network])) {
                *slot = said.map(|said: Quantiles| said.map(|value| (value - sight.frame.centre) as f32));
            }
            let issued = Issued { step, last: sight.last, centre: sight.frame.centre, said: kept, mixed };
            self.issued[place].push_back(issued);
        }
        for (place, ahead) in STEPS.into_iter().enumerate() {
            let issued = self.finish(&self.mixed(present, ahead), ahead);
            let asked = self.calibrators[place].issue();
            self.calibrated[place].push_back(Promise { step, issued, asked });
        }
        let Some(features) = sight.features.filter(|_| self.collector.wants(step)) else { return };
        let now = self.watch.now();
        let at = self.collector.draw().map(|ahead| {
            let bucket = bucket_of(ahead);
            collect::Moment {
                ahead,
                said: advised(&self.panel.at(present, ahead)),
                losses: self.losses[bucket],
                unit: self.hedges[bucket].unit().unwrap_or(sight.frame.scale),
                reach: self.reach(bucket, sight.frame),
            }
        });
        self.collector.begin(step, sight.frame, &features, now, known, at);
    }

    /// Finds the weights at every node; `None`, and no nodes, where there is too little to go by.
    fn find_nodes(&mut self, step: u64, present: &Present, known: &Known) -> Option<Seen> {
        self.nodes.clear();
        self.check().ok()?;
        let last = self.last?;
        let next = self.panel.at(present, 1);
        let centre = next[LEVEL].or(next[2]).map_or(last, |said| said[2]);
        let spread = next[5].unwrap_or([last; LEVELS.len()]);
        let frame = Frame::of(&spread, centre);
        let network = self.settings.network.clone();
        let features = (network.is_some() || self.collector.wants(step))
            .then(|| self.features(step, frame, &next, known));
        let trunk = network.as_ref().zip(features.as_ref()).map(|(network, seen)| network.trunk(seen));
        let dense = trunk.is_some() && known.later().iter().any(|step| step.tells);
        let distances: &[usize] = if dense { &DENSE } else { &LAGS };
        for ahead in distances {
            let said = self.panel.at(present, *ahead);
            let advice = network
                .as_ref()
                .zip(trunk.as_ref())
                .map(|(network, trunk)| self.advice(network, trunk, *ahead, &said, known));
            self.nodes.push(self.node(*ahead, frame, &said, advice.as_ref()));
        }
        Some(Seen { frame, last, features, worse: trunk.map(|trunk| trunk.worse) })
    }

    fn advice(&self, network: &Weights, trunk: &Trunk, ahead: usize, said: &Said, known: &Known) -> Advice {
        let inputs = known.ahead(ahead);
        network.advise(trunk, ahead, &inputs, &self.losses[bucket_of(ahead)], |place| said[place].is_some())
    }

    fn node(&self, ahead: usize, frame: Frame, said: &Said, advice: Option<&Advice>) -> Node {
        let bucket = bucket_of(ahead);
        let own = self.hedges[bucket].weights(|place| match said.get(place) {
            Some(said) => said.is_some(),
            None => advice.is_some(),
        });
        let mut node = Node {
            ahead,
            weights: std::array::from_fn(|place| own[place]),
            offset: [0.0; LEVELS.len()],
            network: None,
        };
        if let Some(advice) = advice {
            let mut network = advice.offsets.map(|offset| f64::from(offset) * self.reach(bucket, frame));
            for level in 0..LEVELS.len() {
                node.offset[level] = network[level] * own[ALL][level];
                for place in 0..EXPERTS {
                    let share = f64::from(advice.shares[place][level]);
                    network[level] += share * said[place].map_or(0.0, |said| said[level]);
                    node.weights[place][level] += share * own[ALL][level];
                }
            }
            network.sort_unstable_by(f64::total_cmp);
            node.network = Some(network);
        }
        node
    }

    /// What an offset of the network is in units of: about the error of the best expert of late.
    fn reach(&self, bucket: usize, frame: Frame) -> f64 {
        let least = self.losses[bucket].iter().copied().fold(f32::MAX, f32::min);
        self.hedges[bucket].unit().map_or(frame.scale, |unit| unit * f64::from(least) * OFFSET_UNIT)
    }

    fn features(&self, step: u64, frame: Frame, next: &Said, known: &Known) -> [f32; FEATURES] {
        let width = |said: Option<Quantiles>| said.map_or(frame.scale, |at| (at[4] - at[0]) / 3.29);
        let ratio =
            |part: f64, whole: f64| ((part + 1e-3 * frame.scale) / (whole + 1e-3 * frame.scale)).ln() as f32;
        let unit = |place: usize| self.hedges[place].unit().unwrap_or(frame.scale * 0.2);
        let shift = self.seen_shift.map_or(0.0, |shift| {
            let fade = (-((step - shift.detected) as f64) / 24.0).exp();
            f64::from(frame.draw_in(frame.centre + shift.to - shift.from)) * fade
        });
        let middle = |place: usize| next[place].map_or(frame.centre, |said| said[2]);
        let gaps = 60.0 - self.window.last(60).count() as f32;
        let state: [f32; STATE] = [
            ((frame.scale / (frame.centre.abs() + 1e-9)).ln() / 4.0) as f32,
            self.sticky,
            (self.since_change as f32).ln_1p() / 4.0,
            ((step.saturating_sub(self.panel.level_from())) as f32).ln_1p() / 5.0,
            ratio(width(next[2]), width(next[5])),
            ratio(width(next[0]), width(next[5])),
            gaps / 60.0,
            shift as f32,
            (self.window.observed() as f32).ln_1p() / 5.0,
            ratio(unit(3), unit(0)),
            ratio(unit(0), frame.scale),
            frame.draw_in(frame.centre + middle(0) - middle(3)),
            self.trust[0].share() as f32,
            self.trust[1].share() as f32,
        ];
        let mut recent = (0..64).map(|ago| self.window.ago(ago));
        Sight {
            frame,
            recent: &mut recent,
            said: &advised(next),
            losses: &self.losses,
            state,
            inputs: known.now().map_or([0.0; INPUTS], |step| step.vector),
        }
        .features()
    }

    /// `mixed` of the step `ahead`, calibrated.
    fn finish(&self, mixed: &Quantiles, ahead: usize) -> Quantiles {
        let right = STEPS.iter().position(|step| *step >= ahead).unwrap_or(STEPS.len() - 1);
        let left = right.saturating_sub(usize::from(STEPS[right] > ahead));
        let shift = between(
            (STEPS[left], &self.calibrators[left].shift()),
            (STEPS[right], &self.calibrators[right].shift()),
            ahead,
        );
        let mut quantiles = calibrate::adjust(mixed, &shift);
        if self.never_negative {
            quantiles = quantiles.map(|value| value.max(0.0));
        }
        quantiles
    }

    /// What experts and network say of the step `ahead`, weighed; not yet calibrated.
    fn mixed(&self, present: &Present, ahead: usize) -> Quantiles {
        let said = self.panel.at(present, ahead);
        let right = self.nodes.iter().position(|node| node.ahead >= ahead).unwrap_or(self.nodes.len() - 1);
        let left = right.saturating_sub(usize::from(self.nodes[right].ahead > ahead));
        let (left, right) = (&self.nodes[left], &self.nodes[right]);
        if left.ahead == right.ahead {
            return right.mix(&said);
        }
        between((left.ahead, &left.mix(&said)), (right.ahead, &right.mix(&said)), ahead)
    }

    fn answer(&self, horizon: usize) -> Result<Forecast, Abstained> {
        check_horizon(horizon)?;
        self.check()?;
        let none = || Abstained::because("every expert abstains");
        let present = self.present.as_ref().ok_or_else(none)?;
        if self.nodes.is_empty() || present.flat.iter().all(Option::is_none) {
            return Err(none());
        }
        let steps = (1..=horizon).map(|ahead| self.finish(&self.mixed(present, ahead), ahead)).collect();
        Forecast::new(steps, self.window.observed())
    }
}

/// Interpolates by the logarithm of the distance; beyond the outermost, that one.
pub(super) fn between(left: (usize, &Quantiles), right: (usize, &Quantiles), ahead: usize) -> Quantiles {
    if ahead >= right.0 || left.0 >= right.0 {
        return *right.1;
    }
    if ahead <= left.0 {
        return *left.1;
    }
    let (at, from, to) = (log(ahead), log(left.0), log(right.0));
    let share = (at - from) / (to - from);
    std::array::from_fn(|level| left.1[level] + (right.1[level] - left.1[level]) * share)
}

/// The natural logarithm of a number of steps; those asked for all the time are looked up.
fn log(steps: usize) -> f64 {
    static LOGS: LazyLock<[f64; 64]> = LazyLock::new(|| std::array::from_fn(|steps| (steps as f64).ln()));
    LOGS.get(steps).copied().unwrap_or_else(|| (steps as f64).ln())
}

impl Node {
    /// What the experts say, weighed; not yet calibrated.
    fn mix(&self, said: &Said) -> Quantiles {
        let (mut sum, mut asleep) = ([0.0; LEVELS.len()], [0.0; LEVELS.len()]);
        for (said, weights) in said.iter().zip(&self.weights) {
            let Some(said) = said else {
                for level in 0..LEVELS.len() {
                    asleep[level] += weights[level];
                }
                continue;
            };
            for level in 0..LEVELS.len() {
                sum[level] += weights[level] * said[level];
            }
        }
        for level in 0..LEVELS.len() {
            if asleep[level] > 0.0 {
                sum[level] = shared_out(said, level, sum[level], asleep[level]);
            }
            sum[level] += self.offset[level];
        }
        sum.sort_unstable_by(f64::total_cmp);
        sum
    }
}

/// The weighted sum of those that answer, where one that was weighed too sleeps at this step: they share out its weight.
fn shared_out(said: &Said, level: usize, sum: f64, asleep: f64) -> f64 {
    if asleep < 0.999 {
        return sum / (1.0 - asleep);
    }
    let (total, count) =
        said.iter().flatten().fold((0.0, 0.0), |(total, count), said| (total + said[level], count + 1.0));
    if count > 0.0 { total / count } else { sum }
}

/// Which of [`LAGS`] is nearest to the step `ahead`.
fn bucket_of(ahead: usize) -> usize {
    UNTIL.iter().position(|until| ahead <= *until).unwrap_or(UNTIL.len())
}

impl Forecaster for Ensemble {
    fn observe(&mut self, step: u64, value: Option<f64>) {
        self.observe_knowing(step, value, &[]);
    }

    fn forecast(&self, horizon: usize) -> Outlook {
        self.answer(horizon).into()
    }

    fn name(&self) -> &'static str {
        "ensemble"
    }

    fn shift(&self) -> Option<Shift> {
        self.seen_shift
    }
}
