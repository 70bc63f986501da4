//! What a step leaves in the history.

use std::time::Duration;

use migration::report::DecisionReport;
use migration::units::Timestamp;
use predictor::{Forecaster as _, LEVELS, Outlook};

use super::signals::Signals;
use crate::history::{Step, Value, series, told};

/// Values of the step that `signals` took last, with the decision that followed. `of`: the resource, and the length of its steps.
pub(super) fn step(
    of: (&str, Duration),
    signals: &Signals,
    report: &DecisionReport,
    (primary, shadow): (&str, &str),
    at: Timestamp,
) -> Step {
    let mut values = Vec::with_capacity(48);
    let mut keep = |name: &str, zone: &str, value: Option<f64>| {
        values.extend(value.map(|value| Value::new(name, zone, value)));
    };
    let measured = signals.measured();
    keep(series::REQUEST_P95, primary, signals.request());
    for (zone, probe) in &measured.probes_ms {
        keep(series::PROBE, zone, probe.as_ref().ok().copied());
    }
    keep(series::HEARTBEAT, primary, measured.heartbeat_ms);
    if let Some(mirrored) = &measured.mirrored {
        keep(series::MIRRORED, primary, Some(mirrored.primary_ms));
        keep(series::MIRRORED, &mirrored.shadow, Some(mirrored.shadow_ms));
    }
    // Of these two what decided: a replay decides by it again.
    for zone in [primary, shadow] {
        let busy = signals.utilization(zone, primary, Duration::ZERO);
        keep(series::UTILIZATION, zone, busy.value().copied());
    }
    for zone in measured.cost.keys() {
        keep(series::COST, zone, signals.cost(zone, Duration::ZERO).value().copied());
    }
    for (zone, foreseen) in &measured.fed.foreseen {
        // The first is this step's own.
        for (name, number) in foreseen.first().into_iter().flat_map(told::numbers) {
            keep(&series::told(name), zone, Some(number));
        }
    }
    let lag = measured.lag.as_ref().and_then(|lag| lag.as_ref().ok());
    keep(series::LAG, shadow, lag.map(|bytes| *bytes as f64));
    keep(series::SCORE, primary, Some(report.score.total));
    keep(series::SCORE_LOWER, primary, Some(report.score.lower));
    keep(series::SCORE_NEEDED, primary, Some(report.needed));
    for term in &report.score.terms {
        // A term that is not known gives no points: that is no measurement.
        let points = term.raw.value().map(|_| term.points);
        keep(&series::term(term.name), primary, points);
    }
    let furthest = predictor::model::LAGS[predictor::model::LAGS.len() - 1];
    if let Outlook::Forecast(forecast) = signals.requests().forecast(furthest) {
        for ahead in predictor::model::LAGS {
            for (level, value) in LEVELS.into_iter().zip(forecast.steps[ahead - 1]) {
                keep(&series::forecast(level, ahead), primary, Some(value));
            }
        }
    }
    Step { resource: of.0.to_owned(), at, step: of.1, values }
}

#[cfg(test)]
mod tests {
    use migration::cutover::{Phase, State};
    use migration::decide::decide;
    use migration::policy::{Policy, PolicyParts};
    use migration::world::Fact;

    use super::super::signals::{Measured, Moves};
    use super::*;

    #[test]
    fn what_decided_is_kept() {
        let policy = Policy::new(PolicyParts::default()).expect("valid");
        let mut state = State::first("orders", "west".into(), "east".into(), Timestamp(0));
        state.phase = Phase::Shadowing;
        let mut measured = Measured {
            cost: [("west".to_owned(), Some(1.6)), ("east".to_owned(), Some(1.2))].into(),
            utilization: [("west".to_owned(), Ok(0.25)), ("east".to_owned(), Ok(0.0))].into(),
            ..Measured::default()
        };
        let said = |value| Fact::known(value, Duration::from_secs(3), "feed opencost");
        measured.fed.cost.insert("west".into(), said(0.5));
        measured.fed.cost.insert("east".into(), Fact::unknown("feed opencost is 2 h old"));
        measured.fed.utilization.insert("east".into(), said(0.75));
        let mut signals = Signals::new(1, policy.step, None);
        signals.observe("west", measured, false, Timestamp(1));
        let world =
            signals.world(&policy, &state, Moves::default(), Vec::new(), Duration::ZERO, Timestamp(1));
        let report = decide(&policy, &world, Timestamp(1));
        let step = step(("orders", policy.step), &signals, &report, ("west", "east"), Timestamp(1));
        let kept = |series: &str, zone: &str| {
            let mut of = step.values.iter().filter(|value| value.series == series && value.zone == zone);
            of.next().map(|value| value.value)
        };
        assert_eq!([kept(series::COST, "west"), kept(series::COST, "east")], [Some(0.5), None]);
        assert_eq!(kept(series::UTILIZATION, "west"), Some(0.25));
        assert_eq!(kept(series::UTILIZATION, "east"), Some(0.75));
    }
}
