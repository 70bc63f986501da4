//! Godwit: moves a live service and its PostgreSQL between zones without stopping it.

pub mod admin;
pub mod app;
pub mod audit;
pub mod backtest;
pub mod causes;
pub mod cli;
pub mod clock;
pub mod config;
pub mod controller;
pub mod demo;
pub mod drivers;
pub mod feeds;
pub mod fronts;
pub mod history;
pub mod leading;
pub mod links;
mod lock;
pub mod notify;
pub mod pki;
pub mod rng;
pub mod store;
pub mod telemetry;
pub mod tls;
pub mod traces;
pub mod upgrade;

use replicator::lsn;
