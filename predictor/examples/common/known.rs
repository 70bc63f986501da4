//! What the columns of a set say of the future, in the forecaster's words.

use predictor::Inputs;
use predictor::network::inputs::Weather;

use crate::data::{Series, Set};

/// What is known of each row. Weather and scheduled departures are taken as perfectly foreseen; requests are not known
/// beforehand and are left out.
pub(crate) fn known(set: &Set, series: &Series, weather: bool) -> Vec<Inputs> {
    let column = |name: &str| set.inputs.iter().position(|input| input == name);
    let at = |row: usize, name: &str| column(name).and_then(|place| series.inputs[row][place]);
    let has_weather = column("x_wind_speed").is_some();
    let loads: Vec<f64> = (0..series.test_from()).filter_map(|row| at(row, "x_flights")).collect();
    let usual = loads.iter().sum::<f64>() / loads.len().max(1) as f64;
    (0..series.values.len())
        .map(|row| Inputs {
            weather: (weather && has_weather).then(|| Weather {
                temperature: at(row, "x_temp").map(|fahrenheit| (fahrenheit - 32.0) / 1.8),
                dew_point: at(row, "x_dewp").map(|fahrenheit| (fahrenheit - 32.0) / 1.8),
                humidity: at(row, "x_humid"),
                wind: at(row, "x_wind_speed").map(|miles| miles * 0.447),
                gust: at(row, "x_wind_gust").map(|miles| miles * 0.447),
                precipitation: at(row, "x_precip").map(|inches| inches * 25.4),
                pressure: at(row, "x_pressure"),
                visibility: at(row, "x_visib").map(|miles| miles * 1.609),
            }),
            load: at(row, "x_flights").filter(|_| usual > 0.0).map(|flights| flights / usual),
            calendar: series.seconds.get(row).filter(|second| **second > 1_000_000_000).map(|second| {
                let seconds = *second as f64;
                (seconds / 86_400.0, seconds / 604_800.0)
            }),
            ..Inputs::default()
        })
        .collect()
}
