//! What is known of a step beforehand. What is not known is left out; the network was trained with any of it missing.

use crate::forecast::MAX_HORIZON;

/// Numbers in a vector of inputs: the values, then which groups are known.
pub const INPUTS: usize = WEATHER + 3 + CALENDAR + GROUPS;
/// What the network is told of a step ahead: its inputs, and the mean of those of the four steps before it.
pub const AHEAD: usize = 2 * INPUTS;
/// Steps before that count as lately.
pub(crate) const LATELY: usize = 4;
/// Of them, the weather's: the first.
pub(crate) const WEATHER: usize = 8;
const CALENDAR: usize = 4;
const GROUPS: usize = 5;

/// Weather at one step, in the units of a station report.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Weather {
    /// Degrees Celsius.
    pub temperature: Option<f64>,
    /// Degrees Celsius.
    pub dew_point: Option<f64>,
    /// Percent.
    pub humidity: Option<f64>,
    /// Metres per second.
    pub wind: Option<f64>,
    /// Metres per second.
    pub gust: Option<f64>,
    /// Millimetres in the hour.
    pub precipitation: Option<f64>,
    /// Hectopascal at sea level.
    pub pressure: Option<f64>,
    /// Kilometres.
    pub visibility: Option<f64>,
}

/// What is known of one step.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Inputs {
    /// The weather there.
    pub weather: Option<Weather>,
    /// The load, in multiples of what is usual.
    pub load: Option<f64>,
    /// Whether maintenance is announced.
    pub maintenance: Option<bool>,
    /// Whether an event that draws people is announced.
    pub event: Option<bool>,
    /// The time of day and of the week, each as a share of the whole.
    pub calendar: Option<(f64, f64)>,
}

impl Inputs {
    /// Whether anything is known that only the future's own step can tell.
    pub fn tells(&self) -> bool {
        self.weather.is_some() || self.load.is_some() || self.maintenance.is_some() || self.event.is_some()
    }

    /// As the network takes it.
    pub fn vector(&self) -> [f32; INPUTS] {
        let mut out = [0.0; INPUTS];
        let masks = WEATHER + 3 + CALENDAR;
        if let Some(weather) = &self.weather {
            // Centred and scaled by what is usual in temperate climates; skewed ones by their logarithm.
            let known = [
                weather.temperature.map(|v| (v - 12.0) / 10.0),
                weather.dew_point.map(|v| (v - 6.0) / 10.0),
                weather.humidity.map(|v| (v - 60.0) / 20.0),
                weather.wind.map(|v| (v - 4.5) / 3.0),
                weather.gust.map(|v| (v - 6.0) / 4.0),
                weather.precipitation.map(|v| (1.0 + v.max(0.0) * 4.0).ln()),
                weather.pressure.map(|v| (v - 1016.0) / 8.0),
                weather.visibility.map(|v| (16.0 - v.clamp(0.0, 16.0)) / 8.0),
            ];
            for (slot, value) in out.iter_mut().zip(known) {
                *slot = bounded(value.unwrap_or(0.0));
            }
            out[masks] = 1.0;
        }
        let flag = |known: bool| if known { 1.0 } else { 0.0 };
        if let Some(load) = self.load {
            out[WEATHER] = bounded(load.max(0.0).ln_1p() - std::f64::consts::LN_2);
            out[masks + 1] = 1.0;
        }
        if let Some(maintenance) = self.maintenance {
            out[WEATHER + 1] = flag(maintenance);
            out[masks + 2] = 1.0;
        }
        if let Some(event) = self.event {
            out[WEATHER + 2] = flag(event);
            out[masks + 3] = 1.0;
        }
        if let Some((day, week)) = self.calendar {
            for (place, share) in [day, week].into_iter().enumerate() {
                let (sin, cos) = (share.rem_euclid(1.0) * std::f64::consts::TAU).sin_cos();
                out[WEATHER + 3 + place * 2] = bounded(sin);
                out[WEATHER + 4 + place * 2] = bounded(cos);
            }
            out[masks + 4] = 1.0;
        }
        out
    }

    /// The places of the time of day in [`vector`](Self::vector).
    pub(crate) const DAY: [usize; 2] = [WEATHER + 3, WEATHER + 4];

    /// The places of each group's values and its mask in [`vector`](Self::vector), for feature dropout.
    pub(crate) fn groups() -> [(std::ops::Range<usize>, usize); GROUPS] {
        let masks = WEATHER + 3 + CALENDAR;
        [
            (0..WEATHER, masks),
            (WEATHER..WEATHER + 1, masks + 1),
            (WEATHER + 1..WEATHER + 2, masks + 2),
            (WEATHER + 2..WEATHER + 3, masks + 3),
            (WEATHER + 3..WEATHER + 3 + CALENDAR, masks + 4),
        ]
    }
}

/// What is known of the present step and of those after it, each as the network takes it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Known(Vec<Step>);

/// What is known of one step.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub(crate) vector: [f32; INPUTS],
    /// Whether [`Inputs::tells`].
    pub(crate) tells: bool,
}

impl Known {
    /// `known` begins with the present step.
    pub(crate) fn of(known: &[Inputs]) -> Self {
        let steps = known.iter().take(MAX_HORIZON + 1);
        Self(steps.map(|inputs| Step { vector: inputs.vector(), tells: inputs.tells() }).collect())
    }

    /// Of the present step, if anything is said of it.
    pub(crate) fn now(&self) -> Option<&Step> {
        self.0.first()
    }

    /// Of the steps after it, the next one first.
    pub(crate) fn later(&self) -> &[Step] {
        self.0.get(1..).unwrap_or_default()
    }

    /// What the network is told of the step `ahead` and of the time before it.
    pub(crate) fn ahead(&self, ahead: usize) -> [f32; AHEAD] {
        let mut out = [0.0; AHEAD];
        let Some(at) = self.0.get(ahead) else { return out };
        out[..INPUTS].copy_from_slice(&at.vector);
        out[INPUTS..].copy_from_slice(&self.before(ahead));
        out
    }

    /// The mean of the steps that come lately before the step `ahead`; zeros where that is not known.
    pub(crate) fn before(&self, ahead: usize) -> [f32; INPUTS] {
        let mut mean = [0.0; INPUTS];
        let before = self.0.get(ahead.saturating_sub(LATELY)..ahead).unwrap_or_default();
        for step in before {
            for (slot, value) in mean.iter_mut().zip(step.vector) {
                *slot += value / before.len() as f32;
            }
        }
        mean
    }
}

fn bounded(value: f64) -> f32 {
    if value.is_finite() { value.clamp(-5.0, 5.0) as f32 } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_is_masked_and_what_is_wild_is_bounded() {
        assert!(Inputs::default().vector().iter().all(|value| *value == 0.0));
        let weather = Weather { wind: Some(f64::NAN), gust: Some(1e9), ..Weather::default() };
        let inputs =
            Inputs { weather: Some(weather), calendar: Some((f64::INFINITY, 0.25)), ..Inputs::default() };
        assert!(inputs.vector().iter().all(|value| value.is_finite() && value.abs() <= 5.0));
        assert!(inputs.tells());
    }
}
