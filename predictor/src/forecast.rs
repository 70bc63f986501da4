//! What a model answers: ordered quantiles for each step ahead, or why there are none.

use std::fmt;

/// The levels every forecast gives.
pub const LEVELS: [f64; 5] = [0.05, 0.25, 0.5, 0.75, 0.95];

/// Values at [`LEVELS`], in the unit of the series, never falling.
pub type Quantiles = [f64; 5];

/// No forecast reaches further than this many steps.
pub const MAX_HORIZON: usize = 4096;

/// Quantiles for each of the next steps. Never empty; all finite; quantiles never cross.
#[derive(Clone, Debug, PartialEq)]
pub struct Forecast {
    /// One entry for each step ahead; the first is the next step.
    pub steps: Vec<Quantiles>,
    observed: usize,
}

impl Forecast {
    /// Checks and orders `steps` (crossing quantiles are rearranged: Chernozhukov et al. 2010). `observed` is how
    /// many values the model has seen.
    pub fn new(mut steps: Vec<Quantiles>, observed: usize) -> Result<Self, Abstained> {
        check_horizon(steps.len())?;
        if steps.iter().flatten().any(|value| !value.is_finite()) {
            return Err(Abstained::because("the model gave a quantile that is not finite"));
        }
        for quantiles in &mut steps {
            quantiles.sort_unstable_by(f64::total_cmp);
        }
        Ok(Self { steps, observed })
    }

    /// The same quantiles for each of `horizon` steps.
    pub fn flat(quantiles: Quantiles, horizon: usize, observed: usize) -> Result<Self, Abstained> {
        check_horizon(horizon)?;
        Self::new(vec![quantiles; horizon], observed)
    }

    /// How many values of the series the model had in view.
    pub fn observed(&self) -> usize {
        self.observed
    }

    /// The value at `level`, `step` steps after the next one (0 is the next step; past the end, the last one).
    /// Interpolated between [`LEVELS`]; outside them the outermost quantile.
    pub fn quantile(&self, step: usize, level: f64) -> f64 {
        let step = step.min(self.steps.len().saturating_sub(1));
        self.steps.get(step).map_or(0.0, |quantiles| interpolate(quantiles, level))
    }

    /// The median over all steps of the value at `level`: what a typical step of the horizon looks like.
    pub fn over_horizon(&self, level: f64) -> f64 {
        let mut values: Vec<f64> = self.steps.iter().map(|step| interpolate(step, level)).collect();
        crate::sample::median(&mut values).unwrap_or(0.0)
    }
}

fn interpolate(quantiles: &Quantiles, level: f64) -> f64 {
    let mut left = (LEVELS[0], quantiles[0]);
    if level.is_nan() || level <= left.0 {
        return left.1;
    }
    for right in LEVELS.into_iter().zip(*quantiles) {
        if level <= right.0 && right.0 > left.0 {
            return left.1 + (right.1 - left.1) * ((level - left.0) / (right.0 - left.0));
        }
        left = right;
    }
    left.1
}

/// Refuses horizons that no model answers.
pub(crate) fn check_horizon(horizon: usize) -> Result<(), Abstained> {
    match horizon {
        0 => Err(Abstained::because("a horizon of no steps was asked for")),
        1..=MAX_HORIZON => Ok(()),
        _ => Err(Abstained::because(format!(
            "a horizon of {horizon} steps is past the limit of {MAX_HORIZON}"
        ))),
    }
}

/// Why there is no forecast, as a word for metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Reason {
    /// Too few values have been seen.
    TooFew,
    /// The newest value is too old.
    Stale,
    /// What was asked, or what a model said, makes no forecast.
    Other,
}

impl Reason {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::TooFew, Self::Stale, Self::Other];

    /// Its metric label.
    pub fn label(self) -> &'static str {
        match self {
            Self::TooFew => "too_few",
            Self::Stale => "stale",
            Self::Other => "other",
        }
    }
}

/// There is no forecast, and this is why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct Abstained {
    /// In one word.
    pub reason: Reason,
    /// A lower-case phrase for the operator.
    pub why: String,
}

impl Abstained {
    /// Because of something else than the values there are.
    pub fn because(why: impl Into<String>) -> Self {
        Self::of(Reason::Other, why)
    }

    /// With this reason.
    pub fn of(reason: Reason, why: impl Into<String>) -> Self {
        Self { reason, why: why.into() }
    }
}

/// A forecast, or why there is none.
#[derive(Clone, Debug, PartialEq)]
pub enum Outlook {
    /// The model answers.
    Forecast(Forecast),
    /// The model knows too little to answer.
    Abstained(Abstained),
}

impl Outlook {
    /// The forecast, if there is one.
    pub fn forecast(&self) -> Option<&Forecast> {
        match self {
            Self::Forecast(forecast) => Some(forecast),
            Self::Abstained(_) => None,
        }
    }
}

impl From<Result<Forecast, Abstained>> for Outlook {
    fn from(result: Result<Forecast, Abstained>) -> Self {
        match result {
            Ok(forecast) => Self::Forecast(forecast),
            Err(abstained) => Self::Abstained(abstained),
        }
    }
}

impl fmt::Display for Outlook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Forecast(forecast) => {
                write!(f, "{} steps, p95 {:.3}", forecast.steps.len(), forecast.over_horizon(0.95))
            }
            Self::Abstained(abstained) => write!(f, "no forecast: {abstained}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_interpolated_and_held_at_the_ends() {
        let forecast = Forecast::new(vec![[1.0, 2.0, 3.0, 4.0, 5.0], [10.0; 5]], 9).unwrap();
        assert!((forecast.quantile(0, 0.85) - 4.5).abs() < 1e-9);
        assert!((forecast.quantile(0, 0.0) - 1.0).abs() < 1e-9);
        assert!((forecast.quantile(0, 1.0) - 5.0).abs() < 1e-9);
        assert!((forecast.quantile(7, 0.5) - 10.0).abs() < 1e-9);
        assert!((forecast.over_horizon(0.5) - 6.5).abs() < 1e-9);
        assert!((forecast.quantile(0, f64::NAN) - 1.0).abs() < 1e-9);
    }

    #[test]
    fn crossing_quantiles_are_rearranged_and_bad_ones_refused() {
        let forecast = Forecast::new(vec![[3.0, 2.0, 1.0, 5.0, 4.0]], 9).unwrap();
        assert!(forecast.steps[0].is_sorted());
        assert!(Forecast::new(vec![[1.0, 2.0, f64::NAN, 4.0, 5.0]], 9).is_err());
        assert!(Forecast::new(vec![], 9).is_err());
        assert!(Forecast::flat([0.0; 5], usize::MAX, 9).is_err());
    }
}
