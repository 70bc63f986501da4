//! The present forecast of a resource's request path, and how far it could be trusted of late.

use predictor::{Forecaster as _, Outlook, Reason};
use serde::{Deserialize, Serialize};

use super::signals::Signals;
use migration::policy::Policy;
use migration::units::Timestamp;

/// What is foreseen, or why nothing is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ForecastView {
    /// When it was made, Unix milliseconds; 0: nothing was measured yet.
    pub at_ms: u64,
    /// The zone whose request path it is of.
    pub zone: String,
    /// The length of a step.
    pub step_ms: u64,
    /// The request path's p95 in each of the next steps; empty: it abstains.
    pub steps: Vec<FanView>,
    /// Why there is no forecast.
    pub abstained: Option<AbstainedView>,
    /// The same judged against what came.
    pub trust: TrustView,
    /// The HTTP probe by zone.
    pub probes: Vec<ProbeForecastView>,
}

/// One step ahead: quantiles in milliseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct FanView {
    /// How many steps ahead.
    pub ahead: usize,
    /// 5 %.
    pub p05_ms: f64,
    /// 25 %.
    pub p25_ms: f64,
    /// Median.
    pub p50_ms: f64,
    /// 75 %.
    pub p75_ms: f64,
    /// 95 %.
    pub p95_ms: f64,
}

/// Why there is no forecast.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct AbstainedView {
    /// `too_few`, `stale`, `other`.
    pub reason: String,
    /// In words.
    pub why: String,
}

/// What the forecasts of the last steps were worth.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TrustView {
    /// Steps that are judged, those replayed from the history included; at most 720.
    pub steps: usize,
    /// Of them without a forecast, by reason.
    pub abstained: Vec<AbstentionView>,
    /// By distance ahead.
    pub ahead: Vec<QualityView>,
    /// Steps of the history that the forecaster was fed when the node started.
    pub replayed: usize,
}

/// Steps without a forecast.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct AbstentionView {
    /// `too_few`, `stale`, `other`.
    pub reason: String,
    /// How many.
    pub steps: usize,
}

/// The forecasts of one distance ahead.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct QualityView {
    /// How many steps ahead.
    pub ahead: usize,
    /// Forecasts that were judged.
    pub scored: u64,
    /// Share of values inside the 90 % band; none: nothing was judged.
    pub coverage: Option<f64>,
    /// Mean pinball loss, milliseconds.
    pub loss_ms: f64,
    /// The same of repeating the last value.
    pub last_value_loss_ms: f64,
    /// The first by the second: above 1, forecasting costs more than it gives. None: the last value never missed.
    pub against_last_value: Option<f64>,
}

/// A zone's HTTP probe.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ProbeForecastView {
    /// The zone.
    pub zone: String,
    /// Median over the horizon; none: it abstains.
    pub median_ms: Option<f64>,
    /// Why it abstains.
    pub abstained: Option<AbstainedView>,
}

impl ForecastView {
    /// What the forecasters say at `at`.
    pub fn of(signals: &Signals, policy: &Policy, at: Timestamp) -> Self {
        let (steps, abstained) = match signals.requests().forecast(policy.horizon_steps()) {
            Outlook::Forecast(forecast) => (forecast.steps.iter().zip(1..).map(fan).collect(), None),
            Outlook::Abstained(abstained) => (Vec::new(), Some(AbstainedView::of(&abstained))),
        };
        let probe = |(zone, outlook): (&String, Outlook)| ProbeForecastView {
            zone: zone.clone(),
            median_ms: outlook.forecast().map(|forecast| forecast.over_horizon(0.5)),
            abstained: match &outlook {
                Outlook::Forecast(_) => None,
                Outlook::Abstained(abstained) => Some(AbstainedView::of(abstained)),
            },
        };
        Self {
            at_ms: at.0,
            zone: signals.served_by().to_owned(),
            step_ms: u64::try_from(policy.step.as_millis()).unwrap_or(u64::MAX),
            steps,
            abstained,
            trust: TrustView::of(signals),
            probes: signals.probe_outlooks(policy).map(probe).collect(),
        }
    }
}

fn fan((at, ahead): (&predictor::Quantiles, usize)) -> FanView {
    let [p05_ms, p25_ms, p50_ms, p75_ms, p95_ms] = *at;
    FanView { ahead, p05_ms, p25_ms, p50_ms, p75_ms, p95_ms }
}

impl AbstainedView {
    fn of(abstained: &predictor::Abstained) -> Self {
        Self { reason: abstained.reason.label().into(), why: abstained.why.clone() }
    }
}

impl TrustView {
    fn of(signals: &Signals) -> Self {
        let requests = signals.requests();
        let abstentions = requests.abstentions();
        let by_reason = |reason: Reason| AbstentionView {
            reason: reason.label().into(),
            steps: abstentions.of_late(reason),
        };
        let quality = |(ahead, quality): (usize, predictor::Quality)| QualityView {
            ahead,
            scored: quality.scored,
            coverage: (quality.scored > 0).then_some(quality.coverage),
            loss_ms: quality.loss,
            last_value_loss_ms: quality.last_value_loss,
            against_last_value: quality.against_last_value(),
        };
        Self {
            steps: abstentions.steps(),
            abstained: Reason::ALL.into_iter().map(by_reason).filter(|of| of.steps > 0).collect(),
            ahead: requests.quality().into_iter().map(quality).collect(),
            replayed: signals.replayed(),
        }
    }
}
