//! What Godwit says of itself: metrics and logs.

pub mod logging;
pub mod metrics;
pub mod names;
