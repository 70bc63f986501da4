//! What feeds say of the steps to come, for the forecasters: the weather of a zone and its maintenance. Pure.
//!
//! What is not known is left out, never filled in: the network was trained with any of it missing.

use std::collections::BTreeMap;
use std::time::Duration;

use migration::units::Timestamp;
use predictor::Inputs;
use predictor::network::inputs::Weather;

use super::Use;
use super::board::FeedBoard;
use super::finding::{Finding, Value};

/// A forecast for a moment holds for so long.
const HOLDS: Duration = Duration::from_secs(3600);

impl FeedBoard {
    /// What is known of `zone` at `now` and at each of the `steps` after it; empty when no feed speaks of its future.
    pub fn foreseen(
        &self,
        resource: &str,
        zone: &str,
        now: Timestamp,
        step: Duration,
        steps: usize,
    ) -> Vec<Inputs> {
        let weather = self.forecasts(resource, zone, now);
        let (windows, unknown) = self.maintenance(resource, &[zone], now);
        let watched = unknown.is_none() && self.speaking(Use::Maintenance, resource, zone).next().is_some();
        if weather.is_empty() && !watched {
            return Vec::new();
        }
        (0..=steps)
            .map(|ahead| {
                let at = now.after(step.saturating_mul(u32::try_from(ahead).unwrap_or(u32::MAX)));
                let under_way = windows
                    .iter()
                    .any(|window| window.starts <= at && window.ends.is_none_or(|ends| at <= ends));
                Inputs {
                    weather: weather_at(&weather, at),
                    maintenance: watched.then_some(under_way),
                    ..Inputs::default()
                }
            })
            .collect()
    }

    /// Numbers that fresh feeds of weather give for moments, in one unit each.
    fn forecasts(&self, resource: &str, zone: &str, now: Timestamp) -> Forecasts {
        let mut found = Forecasts::new();
        for (feed, state) in self.speaking(Use::Weather, resource, zone) {
            if state.stale(feed, now).is_some() {
                continue;
            }
            for finding in &state.understood.findings {
                if let Finding::Value(value) = finding
                    && let Some(about) = value.about.filter(|_| value.zones.iter().any(|named| named == zone))
                    && let Some((name, number)) = in_one_unit(value)
                {
                    found.entry(name).or_default().insert(about, number);
                }
            }
        }
        found
    }
}

/// By what is measured, then by moment.
type Forecasts = BTreeMap<&'static str, BTreeMap<Timestamp, f64>>;

fn weather_at(found: &Forecasts, at: Timestamp) -> Option<Weather> {
    let newest = |name: &str| {
        let (about, number) = found.get(name)?.range(..=at).next_back()?;
        (at.since(*about) < HOLDS).then_some(*number)
    };
    let weather = Weather {
        temperature: newest("temperature"),
        dew_point: newest("dew_point"),
        humidity: newest("humidity"),
        wind: newest("wind"),
        gust: newest("gust"),
        precipitation: newest("precipitation"),
        pressure: newest("pressure"),
        visibility: newest("visibility"),
    };
    (weather != Weather::default()).then_some(weather)
}

/// Open-Meteo's names and units as the forecasters take them; `None`: nothing that they know.
fn in_one_unit(value: &Value) -> Option<(&'static str, f64)> {
    let (name, number) = (value.name.as_deref()?, value.value);
    let unit = value.unit.as_deref();
    let speed = |unit: Option<&str>| match unit {
        Some("m/s" | "ms") => Some(number),
        None | Some("km/h" | "kmh") => Some(number / 3.6),
        Some("mp/h" | "mph") => Some(number * 0.447),
        Some("kn") => Some(number * 0.5144),
        Some(_) => None,
    };
    let degrees = |unit: Option<&str>| match unit {
        None | Some("°C") => Some(number),
        Some("°F") => Some((number - 32.0) / 1.8),
        Some(_) => None,
    };
    let plain = |known: &str| unit.is_none_or(|unit| unit == known).then_some(number);
    match name {
        "temperature_2m" => degrees(unit).map(|number| ("temperature", number)),
        "dew_point_2m" => degrees(unit).map(|number| ("dew_point", number)),
        "relative_humidity_2m" => plain("%").map(|number| ("humidity", number)),
        "wind_speed_10m" => speed(unit).map(|number| ("wind", number)),
        "wind_gusts_10m" => speed(unit).map(|number| ("gust", number)),
        "precipitation" => plain("mm").map(|number| ("precipitation", number)),
        "pressure_msl" => plain("hPa").map(|number| ("pressure", number)),
        "visibility" => plain("m").map(|number| ("visibility", number / 1000.0)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Event;
    use super::super::tests::feed;
    use super::super::{Feed, Understood};
    use super::*;

    const NOW: Timestamp = Timestamp(1_795_650_000_000);
    const MINUTE: Duration = Duration::from_secs(60);

    fn gusts(number: f64, about: Timestamp, unit: &str) -> Finding {
        Finding::Value(Value {
            zones: vec!["west".into()],
            name: Some("wind_gusts_10m".into()),
            value: number,
            unit: Some(unit.into()),
            about: Some(about),
            ..Value::default()
        })
    }

    fn board(weather: Vec<Finding>, works: Option<Vec<Finding>>) -> FeedBoard {
        let feeds = [("weather", Use::Weather), ("works", Use::Maintenance)]
            .into_iter()
            .filter(|(name, _)| *name == "weather" || works.is_some())
            .map(|(name, serves)| Feed { serves, ..feed(name) });
        let board = FeedBoard::new(feeds);
        for (name, findings) in [("weather", weather), ("works", works.unwrap_or_default())] {
            let understood = Understood { findings, ..Understood::default() };
            board.change(name, |state| state.succeeded(understood.clone(), 1, NOW));
        }
        board
    }

    #[test]
    fn each_step_has_the_weather_of_its_hour() {
        let hour = Timestamp(NOW.0 - 40 * 60_000);
        let found = vec![
            gusts(36.0, hour, "km/h"),
            gusts(20.0, hour.after(60 * MINUTE), "m/s"),
            gusts(1.0, hour.after(240 * MINUTE), "parsecs"),
        ];
        let steps = board(found, None).foreseen("orders", "west", NOW, 15 * MINUTE, 6);
        let gust: Vec<Option<f64>> =
            steps.iter().map(|step| step.weather.and_then(|weather| weather.gust)).collect();
        // 23:40 and 23:55 are in the hour of 23:00; 00:10 to 00:55 in the next; of 01:10 nothing is known.
        assert_eq!(gust[..2], [Some(10.0), Some(10.0)]);
        assert_eq!(gust[2..6], [Some(20.0); 4]);
        assert_eq!((gust[6], gust.len()), (None, 7));
        assert!(steps.iter().all(|step| step.maintenance.is_none()), "no calendar, so it is not known");
    }

    #[test]
    fn maintenance_is_known_where_a_calendar_is_fresh() {
        let window = Finding::Event(Event {
            zones: vec!["west".into()],
            starts: NOW.after(20 * MINUTE),
            ends: Some(NOW.after(40 * MINUTE)),
            ..Event::default()
        });
        let board = board(vec![], Some(vec![window]));
        let told = |zone, now| -> Vec<Option<bool>> {
            board.foreseen("orders", zone, now, 15 * MINUTE, 3).iter().map(|step| step.maintenance).collect()
        };
        assert_eq!(told("west", NOW), [Some(false), Some(false), Some(true), Some(false)]);
        assert_eq!(told("central", NOW), [Some(false); 4]);
        // Stale, or of a zone that nobody speaks of: nothing is known.
        assert_eq!(told("west", NOW.after(11 * MINUTE)), []);
        assert_eq!(told("north", NOW), []);
        // Nor where the calendar was not read as a whole.
        let understood = Understood { notes: vec!["line 7: odd".into()], ..Understood::default() };
        board.change("works", |state| state.succeeded(understood.clone(), 1, NOW));
        assert_eq!(told("west", NOW), []);
    }

    #[test]
    fn stale_weather_is_not_known() {
        let board = board(vec![gusts(1.0, NOW.after(11 * MINUTE), "m/s")], None);
        assert!(board.foreseen("orders", "west", NOW.after(11 * MINUTE), MINUTE, 2).is_empty());
        assert_eq!(board.foreseen("orders", "west", NOW.after(9 * MINUTE), MINUTE, 2).len(), 3);
    }
}
