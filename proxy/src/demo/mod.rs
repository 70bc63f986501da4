//! The playground: a small real service, a load generator that checks it, and a WAN between two zones.

pub mod check;
pub mod driver;
mod leftover;
pub mod load;
pub mod node;
pub mod orders;
pub mod relay;
pub mod run;
pub mod zone;
