//! Godwit's decision and cutover core: pure functions. No I/O, no clock, no luck, no serialisation.
//!
//! - [`world`] holds every fact that a decision may use; [`policy`] what the operator wants;
//! - [`score`] computes the Migration Score, [`decide`] turns it into a decision with its [`report`], [`flip`] says
//!   what would change it;
//! - [`zones`] chooses where the shadow lives;
//! - [`cutover`] is the machine that carries a decision out; [`aftermath`] says whether requests fail since.
//!
//! Deliberately absent: tokio, serde, pingora, tracing. Whoever needs them wraps this crate.

pub mod aftermath;
pub mod cutover;
pub mod decide;
pub mod flip;
pub mod policy;
pub mod report;
pub mod score;
pub mod units;
pub mod world;
pub mod zones;
