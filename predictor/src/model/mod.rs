//! The models: one a file, all behind [`Forecaster`].

mod hedge;
mod level_shift;
mod persistence;
mod window_quantile;

pub use hedge::{Hedge, Tuning};
pub use level_shift::LevelShift;
pub use persistence::Persistence;
pub use window_quantile::WindowQuantile;

use crate::forecast::{Abstained, Outlook};
use crate::shift::Shift;
use crate::window::Window;

/// A model of one series, fed one step at a time.
pub trait Forecaster: Send {
    /// Takes what step `step` brought; `None` and values that are not finite are gaps. Steps may be skipped (gaps);
    /// a step that is not later than the newest is ignored.
    fn observe(&mut self, step: u64, value: Option<f64>);

    /// Quantiles for each of the `horizon` steps after the newest one, or why not.
    fn forecast(&self, horizon: usize) -> Outlook;

    /// What the model is called where weights and scores are shown.
    fn name(&self) -> &'static str;

    /// The last jump of the level, if the model watches for one.
    fn shift(&self) -> Option<Shift> {
        None
    }
}

/// Values needed before any model answers.
pub const ENOUGH: usize = 6;
/// How old the newest value may be, in steps.
pub const STALE: usize = 60;
/// Spans of the default window experts, in steps.
pub const SPANS: [usize; 6] = [6, 12, 24, 60, 120, 240];

/// [`Hedge`] over quantiles of the last [`SPANS`] steps, persistence, and the level since the last shift.
///
/// None of these models draws luck: every `seed` gives the same answers. It is taken for models that will.
pub fn default_forecaster(seed: u64) -> Box<dyn Forecaster> {
    let _ = seed;
    let mut experts: Vec<Box<dyn Forecaster>> =
        vec![Box::new(LevelShift::new()), Box::new(Persistence::new())];
    for span in SPANS {
        experts.push(Box::new(WindowQuantile::new(span)));
    }
    Box::new(Hedge::new(experts, Tuning::default()))
}

/// Why a model that has only `window` to go by should not answer.
fn enough(window: &Window, needed: usize) -> Result<(), Abstained> {
    let observed = window.observed();
    if observed < needed {
        return Err(Abstained::because(format!("{observed} values observed, {needed} are needed")));
    }
    match window.age() {
        Some(age) if age > STALE => {
            Err(Abstained::because(format!("the newest value is {age} steps old, {STALE} are allowed")))
        }
        _ => Ok(()),
    }
}
