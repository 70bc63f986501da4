//! Forecasters that are fed from the history before they go on with what is measured now.
//!
//! It is done beside the controller: a controller that starts may have requests to release and waits for nothing. Examples
//! that a replay completes are thrown away: the shared network has learned from them before.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use migration::units::Timestamp;
use predictor::{Ensemble, MAX_HORIZON, Settings};

use super::signals::BASELINE_STEPS;
use crate::clock;
use crate::history::replay::Replay;
use crate::history::{History, HistoryError, told};

/// Steps that are replayed at most: six hours of 10 s. What lies further back hardly moves a forecast, but for the shape of a day, for which
/// means are enough.
const STEPS: u64 = 2_160;

/// How to make forecasters of a resource.
pub struct Warmer {
    pub(super) settings: Settings,
    pub(super) step: Duration,
}

/// Forecasters that have seen what the history holds.
pub struct Warm {
    pub(super) served_by: String,
    pub(super) requests: Ensemble,
    pub(super) probes: BTreeMap<String, Ensemble>,
    pub(super) usual: VecDeque<(u64, f64)>,
    /// The newest step that they have seen, and when it was.
    pub(super) newest: (u64, Timestamp),
    /// Values of the request path that were replayed.
    pub(super) replayed: usize,
}

impl Warmer {
    /// Reads what was measured of `resource` while `primary` served and feeds it. Blocks: not for the threads of a runtime.
    pub fn warm(&self, history: &History, resource: &str, primary: &str) -> Result<Warm, HistoryError> {
        let step_ms = u64::try_from(self.step.as_millis()).unwrap_or(u64::MAX).max(1);
        let replay = history.reader()?.replay(resource, primary, step_ms, STEPS, clock::now())?;
        Ok(self.feed(primary, &replay))
    }

    /// Feeds a replay.
    pub fn feed(&self, primary: &str, replay: &Replay) -> Warm {
        let fed = |zone: &str, before: &[(u64, f64)], values: &[(u64, f64)]| {
            let mut forecaster = Ensemble::new(self.settings.clone());
            for (step, mean) in before {
                forecaster.recall(*step, *mean);
            }
            let told = replay.told.get(zone);
            for (step, value) in values {
                // What was foreseen then is not kept: what was told of those steps when they came stands for it.
                let known = told.map(|told| told::from(told, *step, MAX_HORIZON as u64)).unwrap_or_default();
                forecaster.observe_knowing(*step, Some(*value), &known);
                drop(forecaster.take_examples());
            }
            forecaster
        };
        let before = |zone: &str| replay.days.probes.get(zone).map_or(&[][..], Vec::as_slice);
        let probe =
            |(zone, values): &(String, Vec<(u64, f64)>)| (zone.clone(), fed(zone, before(zone), values));
        let recent = replay.usual.len().saturating_sub(BASELINE_STEPS);
        Warm {
            served_by: primary.to_owned(),
            requests: fed(primary, &replay.days.requests, &replay.requests),
            probes: replay.probes.iter().map(probe).collect(),
            usual: replay.usual[recent..].iter().copied().collect(),
            newest: (replay.newest, replay.at),
            replayed: replay.requests.len(),
        }
    }
}

impl Warm {
    /// How many values of the request path were replayed.
    pub fn replayed(&self) -> usize {
        self.replayed
    }

    /// There was nothing to replay.
    pub(super) fn is_empty(&self) -> bool {
        self.newest.0 == 0
    }
}

#[cfg(test)]
mod tests {
    use predictor::network::inputs::Weather;
    use predictor::{Forecaster as _, Inputs, Reason};

    use super::super::signals::{Measured, Signals};
    use super::*;

    const STEP: Duration = Duration::from_secs(10);
    const BEGIN: u64 = 1_900_000_000_000;

    fn at(place: u64) -> Timestamp {
        Timestamp(BEGIN + place * 10_000)
    }

    fn value(place: u64) -> f64 {
        20.0 + (place * 7_919 % 13) as f64 + if place > 120 { 30.0 } else { 0.0 }
    }

    fn measured(place: u64) -> Measured {
        let probes_ms = [("west".to_owned(), Ok(value(place) / 2.0))].into();
        Measured { request_p95_ms: Some(value(place)), probes_ms, ..Measured::default() }
    }

    fn observe(signals: &mut Signals, places: std::ops::Range<u64>) {
        for place in places {
            signals.observe("west", measured(place), false, at(place));
        }
    }

    /// What the history holds of `0..end`.
    fn replay(end: u64) -> Replay {
        let first = crate::history::replay::number(at(0), 10_000);
        let steps = |half: f64| (0..end).map(|place| (first + place, value(place) / half)).collect();
        Replay {
            newest: first + end - 1,
            at: at(end - 1),
            requests: steps(1.0),
            probes: vec![("west".into(), steps(2.0))],
            usual: steps(1.0),
            ..Replay::default()
        }
    }

    fn forecasts(signals: &Signals) -> (predictor::Outlook, [(usize, predictor::Quality); 4]) {
        (signals.requests().forecast(40), signals.requests().quality())
    }

    #[test]
    fn a_replayed_forecaster_goes_on_as_if_it_had_never_stopped() {
        let mut never_stopped = Signals::new(1, STEP, None);
        observe(&mut never_stopped, 0..300);
        let mut restarted = Signals::new(2, STEP, None);
        let warmer = restarted.warmer();
        // Five steps come while the history is read.
        observe(&mut restarted, 200..205);
        assert!(restarted.requests().forecast(1).forecast().is_none());
        restarted.adopt(warmer.feed("west", &replay(200)));
        assert!(restarted.requests().forecast(1).forecast().is_some());
        observe(&mut restarted, 205..300);
        assert_eq!(forecasts(&restarted), forecasts(&never_stopped));
        assert_eq!(restarted.replayed(), 200);
    }

    #[test]
    fn the_shape_of_a_day_is_there_after_a_restart() {
        // Every day it becomes slower until noon, and quicker after; the node ends at 9:00 of the fourth.
        let (day, now) = (8_640_u64, 3 * 8_640 + 3_240);
        let first = crate::history::replay::number(at(0), 10_000).next_multiple_of(day);
        let value = |step: u64| {
            let phase = (step % day) as f64 / day as f64;
            220.0 - 400.0 * (phase - 0.5).abs() + (step * 7_919 % 13) as f64 / 10.0
        };
        let mut kept = Replay {
            newest: first + now,
            at: Timestamp((first + now) * 10_000),
            requests: (now - 2_159..=now).map(|step| (first + step, value(first + step))).collect(),
            ..Replay::default()
        };
        let off_in_an_hour = |replay: &Replay| {
            let mut signals = Signals::new(1, STEP, None);
            let warmer = signals.warmer();
            signals.adopt(warmer.feed("west", replay));
            let outlook = signals.requests().forecast(360);
            let foreseen = outlook.forecast().expect("a forecast").quantile(359, 0.5);
            (foreseen - value(first + now + 360)).abs()
        };
        let without = off_in_an_hour(&kept);
        kept.days.requests =
            (15..now - 2_160).step_by(30).map(|step| (first + step, value(first + step))).collect();
        let with = off_in_an_hour(&kept);
        assert!(with < without * 0.8, "{with} {without}");
    }

    /// A storm now and then, which makes everything slow, and which is known beforehand.
    fn told(place: u64) -> Inputs {
        let gust = if place / 7 % 5 == 3 { 25.0 } else { 5.0 };
        Inputs { weather: Some(Weather { gust: Some(gust), ..Weather::default() }), ..Inputs::default() }
    }

    fn stormy(place: u64) -> Measured {
        let gust = told(place).weather.and_then(|weather| weather.gust).unwrap_or_default();
        let mut measured =
            Measured { request_p95_ms: Some(value(place) + gust * 4.0), ..Measured::default() };
        let foreseen = (place..=place + MAX_HORIZON as u64).map(told).collect();
        measured.fed.foreseen.insert("west".into(), foreseen);
        measured
    }

    #[test]
    fn what_was_told_beforehand_is_replayed_too() {
        let mut never_stopped = Signals::new(1, STEP, None);
        let mut restarted = Signals::new(1, STEP, None);
        let mut untold = Signals::new(1, STEP, None);
        for place in 0..600 {
            never_stopped.observe("west", stormy(place), false, at(place));
        }
        let first = crate::history::replay::number(at(0), 10_000);
        let mut kept = replay(600);
        for (place, (_, value)) in kept.requests.iter_mut().enumerate() {
            *value = stormy(place as u64).request_p95_ms.expect("a value");
        }
        let warmer = untold.warmer();
        untold.adopt(warmer.feed("west", &kept));
        kept.told = [("west".into(), (0..600).map(|place| (first + place, told(place))).collect())].into();
        let warmer = restarted.warmer();
        restarted.adopt(warmer.feed("west", &kept));
        for signals in [&mut never_stopped, &mut restarted, &mut untold] {
            signals.observe("west", stormy(600), false, at(600));
        }
        let analogs = |signals: &Signals| -> f64 {
            let weights = signals.requests().weights(12);
            weights.iter().find(|(name, _)| *name == "analog").expect("that expert").1
        };
        let [kept_on, fed, cold] = [&never_stopped, &restarted, &untold].map(analogs);
        assert!(kept_on > 0.05 && (fed - kept_on).abs() < kept_on / 5.0, "{kept_on} {fed} {cold}");
        assert!(cold < kept_on / 2.0, "{kept_on} {fed} {cold}");
    }

    #[test]
    fn downtime_is_a_gap() {
        let mut signals = Signals::new(1, STEP, None);
        let warmer = signals.warmer();
        signals.adopt(warmer.feed("west", &replay(200)));
        signals.observe("west", Measured::default(), false, at(230));
        assert!(signals.requests().forecast(1).forecast().is_some());
        let mut signals = Signals::new(1, STEP, None);
        let warmer = signals.warmer();
        signals.adopt(warmer.feed("west", &replay(200)));
        signals.observe("west", Measured::default(), false, at(300));
        let predictor::Outlook::Abstained(abstained) = signals.requests().forecast(1) else {
            panic!("answered")
        };
        assert_eq!(abstained.reason, Reason::Stale, "{abstained}");
    }

    #[test]
    fn a_move_while_the_history_is_read_begins_a_new_series() {
        let mut signals = Signals::new(1, STEP, None);
        let warmer = signals.warmer();
        signals.observe("east", measured(200), false, at(200));
        signals.adopt(warmer.feed("west", &replay(200)));
        assert_eq!((signals.served_by(), signals.replayed()), ("east", 0));
        assert!(signals.requests().forecast(1).forecast().is_none());
    }

    #[test]
    fn nothing_kept_and_nothing_readable_start_cold() {
        for readable in [true, false] {
            let mut signals = Signals::new(1, STEP, None);
            let warmer = signals.warmer();
            observe(&mut signals, 0..20);
            if readable {
                signals.adopt(warmer.feed("west", &Replay::default()));
            } else {
                signals.start_cold();
            }
            let mut cold = Signals::new(1, STEP, None);
            observe(&mut cold, 0..20);
            assert_eq!(forecasts(&signals), forecasts(&cold));
        }
    }

    #[test]
    fn what_was_learned_before_is_not_learned_again() {
        let settings = Settings { examples_every: 1, ..Settings::default() };
        let warmer = Warmer { settings, step: STEP };
        let mut warm = warmer.feed("west", &replay(300));
        assert!(warm.requests.take_examples().is_empty());
        let mut fresh = Ensemble::new(warmer.settings.clone());
        for place in 0..300 {
            fresh.observe(place, Some(value(place)));
        }
        assert!(fresh.take_examples().len() > 200, "there were examples to throw away");
    }
}
