//! Presets on samples of what their services answer.

use super::places::Place;
use super::preset::Preset;
use super::*;

const NOW: Timestamp = Timestamp(1_795_650_000_000);

fn place(zone: &str, names: &[&str], location: (f64, f64)) -> Place {
    Place {
        zone: zone.into(),
        names: names.iter().map(|name| (*name).to_owned()).collect(),
        provider: None,
        region: None,
        country: None,
        location: Some(location),
    }
}

/// A feed of cost in two zones, to be changed.
pub(super) fn feed(name: &str) -> Feed {
    Feed {
        name: name.into(),
        preset: None,
        source: Source::File("nowhere".into()),
        decode: Decode::Json,
        map: Program::new(".").unwrap(),
        serves: Use::Cost,
        places: Places::Named(vec![
            place(
                "west",
                &["eu-west", "eu-west-1", "ie", "*dub1*", "acme-dub-*", "europe-west1"],
                (53.3, -6.3),
            ),
            place(
                "central",
                &["eu-central", "eu-central-1", "de", "*fra1*", "acme-fra-*", "europe-west3"],
                (50.1, 8.7),
            ),
        ]),
        resource: None,
        every: Duration::from_secs(60),
        stale_after: Duration::from_secs(600),
        timeout: Duration::from_secs(10),
        max_bytes: 1 << 20,
    }
}

fn of(preset: &str) -> Feed {
    let preset = Preset::named(preset).unwrap_or_else(|| panic!("no preset {preset}"));
    Feed {
        preset: Some(preset.name),
        decode: preset.decode,
        map: Program::new(preset.map).unwrap_or_else(|error| panic!("{}: {error}", preset.name)),
        serves: preset.serves.unwrap_or(Use::Utilization),
        max_bytes: preset.max_bytes,
        ..feed(preset.name)
    }
}

fn golden(name: &str) -> Vec<u8> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/feeds").join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn every_preset_understands_its_sample() {
    for (preset, sample) in [
        ("opencost", "opencost-allocation.json"),
        ("prometheus", "prometheus-vector.json"),
        ("gdelt-timeline", "gdelt-timeline.json"),
        ("cloudflare-radar-outages", "cloudflare-radar-outages.json"),
        ("statuspage", "statuspage-scheduled-maintenances.json"),
        ("statuspage", "statuspage-none.json"),
        ("gcp-incidents", "gcp-incidents.json"),
        ("rss", "rss-status.xml"),
        ("rss", "atom-incidents.xml"),
        ("ical", "maintnote.ics"),
    ] {
        let understood = of(preset).understand(&golden(sample), NOW);
        let understood = understood.unwrap_or_else(|failure| panic!("{preset} on {sample}: {failure}"));
        let shown = serde_json::json!({
            "readings": understood.findings, "elsewhere": understood.elsewhere, "notes": understood.notes,
        });
        insta::assert_json_snapshot!(format!("{preset}_{}", sample.split('.').next().unwrap()), shown);
    }
}

#[test]
fn every_preset_has_a_sample() {
    let tested = include_str!("tests.rs");
    for preset in &preset::PRESETS {
        assert!(tested.contains(&format!("(\"{}\"", preset.name)), "{} is not tested", preset.name);
    }
}

#[test]
fn a_forecast_of_the_weather_is_about_each_zone_and_hour() {
    let weather = of("open-meteo");
    let found = weather.understand(&golden("open-meteo.json"), NOW).unwrap().findings;
    assert_eq!(found.len(), 2 * (8 * 48 - 1), "two places, eight series, one hour without visibility");
    let gusts: Vec<&finding::Value> = found
        .iter()
        .filter_map(|finding| match finding {
            Finding::Value(value) if value.name.as_deref() == Some("wind_gusts_10m") => Some(value),
            _ => None,
        })
        .collect();
    assert_eq!(gusts[0].zones, ["west"]);
    assert_eq!((gusts[0].value, gusts[0].unit.as_deref()), (61.0, Some("km/h")));
    assert_eq!(gusts[48].zones, ["central"]);
    assert!(gusts.iter().all(|value| value.about.is_some()));
    // One place answers with an object instead of a list.
    let Places::Named(mut places) = weather.places.clone() else { panic!("several") };
    let one = Feed { places: Places::One(places.swap_remove(0)), ..weather.clone() };
    assert_eq!(one.understand(&golden("open-meteo-one.json"), NOW).unwrap().findings.len(), 8 * 48 - 1);
    let why = weather.understand(&golden("open-meteo-one.json"), NOW).unwrap_err();
    assert_eq!(why.what, "the program failed: 1 places answered for 2 zones");
}

#[test]
fn errors_of_the_services_are_shown_as_such() {
    let report: Vec<String> = [
        ("opencost", "opencost-error.json"),
        ("prometheus", "prometheus-error.json"),
        ("prometheus", "prometheus-empty.json"),
        ("prometheus", "prometheus-nan.json"),
        ("open-meteo", "open-meteo-error.json"),
        ("cloudflare-radar-outages", "cloudflare-radar-error.json"),
        ("statuspage", "prometheus-vector.json"),
        ("gdelt-timeline", "statuspage-none.json"),
        ("rss", "statuspage-none.json"),
        ("ical", "rss-status.xml"),
    ]
    .into_iter()
    .map(|(preset, sample)| match of(preset).understand(&golden(sample), NOW) {
        Ok(understood) => format!("{preset} on {sample}: {understood:?}\n"),
        Err(failure) => format!("{preset} on {sample}: {failure}\n"),
    })
    .collect();
    insta::assert_snapshot!(report.concat());
}

#[test]
fn what_is_odd_about_another_place_leaves_the_feed_alone() {
    let feed = feed("prices");
    let read = |zone: &str| {
        let odd = format!(r#"{{"zone": "{zone}", "value": -1, "unit": "/h"}}"#);
        feed.understand(format!(r#"[{{"zone": "west", "value": 0.5}}, {odd}]"#).as_bytes(), NOW)
    };
    let understood = read("us-east").unwrap();
    assert_eq!((understood.findings.len(), understood.elsewhere), (1, 1));
    assert_eq!(read("central").unwrap_err().what, "-1 is negative");
}
