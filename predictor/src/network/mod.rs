//! The shared network: a small gated residual network over what the experts say.
//!
//! It weighs the experts' quantiles by the state of the series (softmax over those that are awake, level by level) and
//! adds an offset in units of the series' own scale, so one set of weights serves every series. Gated residual blocks
//! as in the Temporal Fusion Transformer (Lim et al. 2021). [`Weights`] computes a forecast in plain f32 arithmetic (some
//! microseconds; candle's per-call overhead is many times that); [`Trainer`] learns in candle. A test holds them equal.
//!
//! | part | what |
//! |---|---|
//! | [`features`] | what the network sees |
//! | [`inputs`] | what is known of the future: weather, load, maintenance, events, the calendar |
//! | [`weights`] | the weights, their file, the forward pass |
//! | `graph` | the same in candle, with gradients |
//! | [`trainer`] | learns from examples, rolls back when it got worse |

pub mod features;
mod graph;
pub mod inputs;
pub mod trainer;
pub mod weights;

pub use features::{Example, FEATURES, Target};
pub use inputs::{AHEAD, INPUTS, Inputs};
pub use trainer::{Trainer, TrainerSettings};
pub use weights::Weights;
