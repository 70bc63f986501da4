//! The models: one a file, all behind [`Forecaster`].

mod analog;
mod ensemble;
mod freshness;
mod hedge;
mod level_shift;
mod panel;
mod persistence;
mod ridge;
mod season;
mod window_quantile;

pub use analog::Analog;
pub use ensemble::{Ensemble, Settings};
pub use hedge::{Hedge, Tuning};
pub use level_shift::LevelShift;
pub use panel::{EXPERTS, SPANS};
pub use persistence::Persistence;
pub use season::Season;
pub use window_quantile::WindowQuantile;

pub(crate) use freshness::Freshness;

use std::sync::{Arc, OnceLock};

use crate::forecast::Outlook;
use crate::network::Weights;
use crate::shift::Shift;

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
/// Steps ahead at which forecasts are scored and learned from.
pub const LAGS: [usize; 4] = [1, 4, 16, 48];

/// An [`Ensemble`] of all experts with the shipped network. No forecast draws luck: `seed` is of what it learns from.
pub fn default_forecaster(seed: u64) -> Ensemble {
    Ensemble::new(Settings { network: shipped(), seed, ..Settings::default() })
}

/// The shipped network, read once.
pub fn shipped() -> Option<Arc<Weights>> {
    static SHIPPED: OnceLock<Option<Arc<Weights>>> = OnceLock::new();
    SHIPPED.get_or_init(|| Weights::shipped().ok().map(Arc::new)).clone()
}
