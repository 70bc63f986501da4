//! The configuration: read → spanned `raw` tree → validated [`model`]; every problem at once.
//!
//! One serde pass stops at its first type error, so serde only builds a tree in which every key and value knows
//! its position (`raw`). Typed getters then walk that tree (`walk`), note each problem (`error`) and go on;
//! a [`Config`](model::Config) exists only when nothing was noted.
//!
//! Never here: text substitution, secrets in messages, a guess about what a bare number means.

mod admin;
pub mod catalogue;
pub mod cron;
mod database;
mod drivers;
mod egress;
pub mod entries;
mod error;
mod feeds;
pub mod freeze;
mod http;
mod listeners;
mod load;
pub mod model;
mod node;
mod oidc;
pub mod overlay;
mod policy;
mod postgres_front;
mod raw;
mod resources;
mod secret;
pub mod units;
mod validate;
mod walk;

pub(crate) use database::same as same_database;
pub(crate) use error::suggest;
pub use error::{ConfigErrors, Problem};
pub use load::{load, load_policy, load_with};

#[cfg(test)]
mod drivers_tests;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod samples;
#[cfg(test)]
mod tests;
