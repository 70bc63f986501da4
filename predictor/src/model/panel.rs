//! The experts of one series, side by side.

use super::analog::Likeness;
use super::{Analog, Forecaster, LAGS, LevelShift, Persistence, Season, WindowQuantile};
use crate::forecast::Quantiles;
use crate::network::inputs::Known;
use crate::shift::Shift;

/// Spans of the window experts, in steps.
pub const SPANS: [usize; 6] = [6, 12, 24, 60, 120, 240];
/// How many experts the network advises on: windows, level shift, persistence, two of the season.
pub const EXPERTS: usize = SPANS.len() + 4;
/// The place of the level-shift expert.
pub(crate) const LEVEL: usize = SPANS.len();
/// The place of persistence.
pub(crate) const LAST: usize = LEVEL + 1;
/// The place of the first of the two season experts.
pub(crate) const SEASON: usize = LAST + 1;
/// The place of the analogs. The network, which serves every series, says nothing of them: what they know is this one's.
pub(crate) const ANALOG: usize = EXPERTS;
/// How many experts there are.
pub(crate) const ALL: usize = EXPERTS + 1;
/// Spans of the two season experts' differences, in steps.
const SEASON_SPANS: [usize; 2] = [24, 240];

/// What each expert says of one step ahead; `None` where it sleeps.
pub(crate) type Said = [Option<Quantiles>; ALL];

/// What those say that the network advises on.
pub(crate) fn advised(said: &Said) -> [Option<Quantiles>; EXPERTS] {
    std::array::from_fn(|place| said[place])
}

/// All experts, fed together.
#[derive(Clone, Debug)]
pub(crate) struct Panel {
    windows: [WindowQuantile; SPANS.len()],
    level: LevelShift,
    persistence: Persistence,
    seasons: Option<[Season; 2]>,
    analog: Analog,
}

/// What the experts say at present, as far as it is the same for all steps ahead, and what is known of those.
#[derive(Clone, Debug)]
pub(crate) struct Present {
    pub(crate) flat: [Option<Quantiles>; LAST],
    bands: Option<[Quantiles; LAGS.len()]>,
    /// What the analogs find each step ahead like, the next one first.
    likenesses: Vec<Option<Likeness>>,
}

impl Panel {
    /// Seasons repeat after `period` steps, if any do.
    pub(crate) fn new(period: Option<usize>) -> Self {
        Self {
            windows: SPANS.map(WindowQuantile::new),
            level: LevelShift::new(),
            persistence: Persistence::new(),
            seasons: period.map(|period| SEASON_SPANS.map(|span| Season::new(period, span))),
            analog: Analog::new(),
        }
    }

    /// `known` begins with `step`.
    pub(crate) fn observe(&mut self, step: u64, value: Option<f64>, known: &Known) {
        for window in &mut self.windows {
            window.observe(step, value);
        }
        self.level.observe(step, value);
        self.persistence.observe(step, value);
        for season in self.seasons.iter_mut().flatten() {
            season.observe(step, value);
        }
        self.analog.learn(step, value, known.now());
    }

    /// A value of long before what it observes: of its time of day alone there is something to learn.
    pub(crate) fn recall(&mut self, step: u64, value: f64) {
        for season in self.seasons.iter_mut().flatten() {
            season.observe(step, Some(value));
        }
    }

    /// `known` begins with the present step.
    pub(crate) fn present(&self, known: &Known) -> Present {
        let flat = std::array::from_fn(|place| match self.windows.get(place) {
            Some(window) => window.quantiles(),
            None => self.level.quantiles(),
        });
        let likenesses = (1..=known.later().len()).map(|ahead| self.analog.likeness(ahead, known)).collect();
        Present { flat, bands: self.persistence.bands(), likenesses }
    }

    /// What every expert says of the step `ahead`.
    pub(crate) fn at(&self, present: &Present, ahead: usize) -> Said {
        std::array::from_fn(|place| match place {
            0..=LEVEL => present.flat[place],
            LAST => present.bands.map(|bands| bands[self.persistence.band_of(ahead)]),
            ANALOG => self.analog.at(ahead, (*present.likenesses.get(ahead.checked_sub(1)?)?)?),
            _ => self.seasons.as_ref().and_then(|seasons| seasons[place - SEASON].quantiles(ahead)),
        })
    }

    pub(crate) fn has_analogs(&self) -> bool {
        self.analog.awake()
    }

    pub(crate) fn shift(&self) -> Option<Shift> {
        self.level.shift()
    }

    pub(crate) fn level_from(&self) -> u64 {
        self.level.level_from()
    }

    pub(crate) fn name(place: usize) -> &'static str {
        const NAMES: [&str; ALL] = [
            "window-6",
            "window-12",
            "window-24",
            "window-60",
            "window-120",
            "window-240",
            "level-shift",
            "persistence",
            "season-short",
            "season-long",
            "analog",
        ];
        NAMES.get(place).copied().unwrap_or("network")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_recalled_tells_of_the_time_of_day_only() {
        let (day, begin) = (8640, 3 * 8640);
        let value = |step: u64| if step % day < day / 2 { 20.0 } else { 40.0 };
        for recalled in [true, false] {
            let mut panel = Panel::new(Some(8640));
            for step in (0..begin).step_by(30).filter(|_| recalled) {
                panel.recall(step, value(step));
            }
            for step in begin..begin + 300 {
                panel.observe(step, Some(value(step)), &Known::of(&[]));
            }
            let said = panel.at(&panel.present(&Known::of(&[])), 5000);
            let season = said[SEASON].map(|quantiles| quantiles[2].round());
            assert_eq!(season, recalled.then_some(40.0));
            assert_eq!(said[LEVEL].map(|quantiles| quantiles[2]), Some(20.0), "nothing else has heard of it");
        }
    }
}
