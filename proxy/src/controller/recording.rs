//! What a step leaves in the history.

use migration::report::DecisionReport;
use migration::units::Timestamp;
use predictor::{Forecaster as _, LEVELS, Outlook};

use super::signals::Signals;
use crate::config::model::Resource;
use crate::history::{Step, Value, series, told};

/// Values of the step that `signals` took last, with the decision that followed.
pub(super) fn step(
    resource: &Resource,
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
    for (zone, utilization) in &measured.utilization {
        keep(series::UTILIZATION, zone, utilization.as_ref().ok().copied());
    }
    for (zone, cost) in &measured.cost {
        keep(series::COST, zone, *cost);
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
    Step { resource: resource.name.clone(), at, step: resource.policy.step, values }
}
