//! Forecasts one latency series, step by step, as quantiles. No clock, no network, no luck, no I/O.
//!
//! Time is a step number that the caller counts; a step without a value is a gap, never a zero. What cannot be
//! forecast is answered with [`Abstained`] and the reason. Equal inputs give equal outputs, bit for bit.
//!
//! | module | what |
//! |---|---|
//! | [`window`] | the last values of a series, on a fixed step, gaps explicit |
//! | [`sample`] | order statistics of a handful of values |
//! | [`forecast`] | what a model answers: ordered quantiles for each step ahead, or why not |
//! | [`model`] | the [`Forecaster`] trait and its models, one a file; [`model::Hedge`] weighs the others |
//! | [`shift`] | when the level of a series has jumped |
//! | [`calibrate`] | moves the bands until they cover as often as they promise |
//! | [`backtest`] | walk-forward evaluation against persistence |
//!
//! Onsets are hard to foresee and persistence is easy: these models follow a jump within some steps of it; they
//! do not announce it.

pub mod backtest;
pub mod calibrate;
pub mod event;
pub mod forecast;
pub mod model;
pub mod network;
pub mod quality;
pub mod rng;
pub mod sample;
pub mod shift;
pub mod sorted;
pub mod window;

pub use event::{Events, Worse};
pub use forecast::{Abstained, Forecast, LEVELS, MAX_HORIZON, Outlook, Quantiles, Reason};
pub use model::{Ensemble, Forecaster, LAGS, Settings, default_forecaster};
pub use network::{Inputs, Trainer, TrainerSettings, Weights};
pub use quality::{Abstentions, Quality};
pub use shift::Shift;
