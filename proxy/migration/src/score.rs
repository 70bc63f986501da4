//! The Migration Score: `predictedLatencyIncrease·wL + costDifference·wC + (utilPrimary − utilShadow)·wU`.
//!
//! Every term is dimensionless and signed; positive speaks for moving. A term whose facts are unknown gives no points
//! and says why: it never argues for a move.

use crate::policy::Weights;
use crate::world::{Fact, World};

/// Largest size of one term's raw value: a baseline near zero must not make the score infinite.
pub const RAW_LIMIT: f64 = 10.0;

/// One term.
#[derive(Clone, Debug, PartialEq)]
pub struct Term {
    /// `latency`, `cost` or `utilization`.
    pub name: &'static str,
    /// Before weighting.
    pub raw: Fact<f64>,
    /// The policy's weight.
    pub weight: f64,
    /// `raw × weight`; 0 when unknown.
    pub points: f64,
    /// The same at the lower confidence bound.
    pub points_lower: f64,
    /// The numbers that went in.
    pub detail: String,
}

/// The score with its terms.
#[derive(Clone, Debug, PartialEq)]
pub struct Score {
    /// Latency, cost, utilisation.
    pub terms: [Term; 3],
    /// Sum of the points.
    pub total: f64,
    /// Sum at the lower confidence bound: what must clear the threshold.
    pub lower: f64,
}

impl Score {
    /// The lower sum without the latency term.
    pub fn others_lower(&self) -> f64 {
        let [_, others @ ..] = &self.terms;
        others.iter().map(|term| term.points_lower).sum()
    }
}

/// Computes the score of moving from the primary to the shadow.
pub fn score(weights: &Weights, world: &World) -> Score {
    let terms =
        [latency(weights.latency, world), cost(weights.cost, world), utilization(weights.utilization, world)];
    Score {
        total: terms.iter().map(|term| term.points).sum(),
        lower: terms.iter().map(|term| term.points_lower).sum(),
        terms,
    }
}

fn term(name: &'static str, weight: f64, raw: Fact<f64>, lower: Option<f64>, detail: String) -> Term {
    let clip = |value: f64| value.clamp(-RAW_LIMIT, RAW_LIMIT);
    let raw = raw.map(|value| clip(*value));
    let points = raw.value().map_or(0.0, |value| value * weight);
    let points_lower = lower.map_or(points, |value| clip(value) * weight);
    Term { name, raw, weight, points, points_lower, detail }
}

fn latency(weight: f64, world: &World) -> Term {
    let (baseline, outlook) = match (&world.baseline_ms, &world.latency) {
        (Fact::Known { value: baseline, .. }, Fact::Known { value: outlook, .. }) => (*baseline, outlook),
        (Fact::Unknown { why }, _) | (_, Fact::Unknown { why }) => {
            return term("latency", weight, Fact::unknown(why.clone()), None, String::new());
        }
    };
    let increase = |ms: f64| if baseline > 0.0 { (ms - baseline) / baseline } else { 0.0 };
    let detail = format!(
        "p95 forecast {:.1} ms (at least {:.1} ms), {} {baseline:.1} ms",
        outlook.median_ms,
        outlook.lower_ms,
        source(&world.baseline_ms)
    );
    let raw = world.latency.map(|outlook| increase(outlook.median_ms));
    term("latency", weight, raw, Some(increase(outlook.lower_ms)), detail)
}

fn source<T>(fact: &Fact<T>) -> &str {
    match fact {
        Fact::Known { source, .. } => source,
        Fact::Unknown { why } => why,
    }
}

fn cost(weight: f64, world: &World) -> Term {
    let (primary, shadow) = match (&world.primary_cost, &world.shadow_cost) {
        (Fact::Known { value: primary, .. }, Fact::Known { value: shadow, .. }) => (*primary, *shadow),
        (Fact::Unknown { why }, _) | (_, Fact::Unknown { why }) => {
            return term("cost", weight, Fact::unknown(why.clone()), None, String::new());
        }
    };
    let difference = if primary > 0.0 {
        (primary - shadow) / primary
    } else if shadow > 0.0 {
        // Any price is infinitely more than none.
        -RAW_LIMIT
    } else {
        0.0
    };
    let detail = format!("{primary:.2}/h in {}, {shadow:.2}/h in {}", world.primary, world.shadow);
    term("cost", weight, both(&world.primary_cost, &world.shadow_cost, difference), None, detail)
}

fn utilization(weight: f64, world: &World) -> Term {
    let (primary, shadow) = match (&world.primary_utilization, &world.shadow_utilization) {
        (Fact::Known { value: primary, .. }, Fact::Known { value: shadow, .. }) => (*primary, *shadow),
        (Fact::Unknown { why }, _) | (_, Fact::Unknown { why }) => {
            return term("utilization", weight, Fact::unknown(why.clone()), None, String::new());
        }
    };
    let detail =
        format!("{:.0}% in {}, {:.0}% in {}", primary * 100.0, world.primary, shadow * 100.0, world.shadow);
    let raw = both(&world.primary_utilization, &world.shadow_utilization, primary - shadow);
    term("utilization", weight, raw, None, detail)
}

/// `value`, made of two facts: as old as the older one, and from both.
fn both(a: &Fact<f64>, b: &Fact<f64>, value: f64) -> Fact<f64> {
    match (a, b) {
        (Fact::Known { age: one, source: a, .. }, Fact::Known { age: other, source: b, .. }) => {
            let source = if a == b { a.clone() } else { format!("{a}; {b}") };
            Fact::known(value, *one.max(other), source)
        }
        (Fact::Unknown { why }, _) | (_, Fact::Unknown { why }) => Fact::unknown(why.clone()),
    }
}
