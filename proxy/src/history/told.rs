//! What forecasters were told of a step beforehand, as numbers: kept under names, and read back. Pure.

use std::collections::BTreeMap;

use predictor::Inputs;
use predictor::network::inputs::Weather;

/// What was told of each step.
pub type Told = BTreeMap<u64, Inputs>;

/// Where a number of the weather stands.
type Place = fn(&mut Weather) -> &mut Option<f64>;

/// The names, and where each number stands.
const WEATHER: [(&str, Place); 8] = [
    ("temperature", |weather| &mut weather.temperature),
    ("dew_point", |weather| &mut weather.dew_point),
    ("humidity", |weather| &mut weather.humidity),
    ("wind", |weather| &mut weather.wind),
    ("gust", |weather| &mut weather.gust),
    ("precipitation", |weather| &mut weather.precipitation),
    ("pressure", |weather| &mut weather.pressure),
    ("visibility", |weather| &mut weather.visibility),
];
const MAINTENANCE: &str = "maintenance";

/// Every name.
pub fn names() -> impl Iterator<Item = &'static str> {
    WEATHER.iter().map(|(name, _)| *name).chain([MAINTENANCE])
}

/// What is known of a step, by name; maintenance is 0 or 1.
pub fn numbers(inputs: &Inputs) -> impl Iterator<Item = (&'static str, f64)> {
    let mut weather = inputs.weather.unwrap_or_default();
    let numbers = WEATHER.map(|(name, place)| (name, *place(&mut weather)));
    let maintenance = inputs.maintenance.map(|announced| if announced { 1.0 } else { 0.0 });
    let known = |(name, number): (&'static str, Option<f64>)| Some((name, number?));
    numbers.into_iter().chain([(MAINTENANCE, maintenance)]).filter_map(known)
}

/// Adds one of the [`numbers`] to what is known of its step. One of no such name is passed over.
pub fn add(inputs: &mut Inputs, name: &str, number: f64) {
    if name == MAINTENANCE {
        inputs.maintenance = Some(number > 0.5);
    } else if let Some((_, place)) = WEATHER.iter().find(|(known, _)| *known == name) {
        *place(inputs.weather.get_or_insert_default()) = Some(number);
    }
}

/// What was known of `step` and the `ahead` steps after it; shorter where nothing is known of the last ones.
pub fn from(told: &Told, step: u64, ahead: u64) -> Vec<Inputs> {
    let Some((last, _)) = told.range(step..=step.saturating_add(ahead)).next_back() else {
        return Vec::new();
    };
    (step..=*last).map(|at| told.get(&at).copied().unwrap_or_default()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_told_is_read_back() {
        let weather = Weather { gust: Some(14.0), visibility: Some(0.2), ..Weather::default() };
        for inputs in [
            Inputs::default(),
            Inputs { weather: Some(weather), ..Inputs::default() },
            Inputs { maintenance: Some(false), ..Inputs::default() },
            Inputs { maintenance: Some(true), weather: Some(weather), ..Inputs::default() },
        ] {
            let mut back = Inputs::default();
            for (name, number) in numbers(&inputs) {
                assert!(names().any(|known| known == name), "{name}");
                add(&mut back, name, number);
            }
            assert_eq!(back, inputs);
        }
    }

    #[test]
    fn a_step_sees_those_after_it() {
        let windy = Inputs { maintenance: Some(true), ..Inputs::default() };
        let told: Told = [(3, windy), (5, windy), (9, windy)].into();
        assert_eq!(from(&told, 3, 4), [windy, Inputs::default(), windy]);
        assert_eq!(from(&told, 4, 1), [Inputs::default(), windy]);
        assert!(from(&told, 6, 2).is_empty() && from(&told, 10, 48).is_empty());
    }
}
