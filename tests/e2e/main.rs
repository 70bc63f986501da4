//! End to end tests: real PostgreSQL, real sockets.

#![allow(clippy::disallowed_methods, reason = "tests wait by the real clock")]

mod advise;
mod apply;
mod backlog;
mod clients;
mod copying;
mod cutover;
mod demo;
mod doctor;
mod drivers;
mod events;
mod faults;
mod feeds;
mod fence;
mod front;
mod heartbeat;
mod history;
mod identity;
mod kills;
mod large;
mod leader;
mod link;
mod lost_state;
mod manager;
mod mirrored;
mod modes;
mod network;
mod postgres_front;
mod preflight;
mod programs;
mod prometheus;
mod refusals;
mod schema;
mod services;
mod slots;
mod source;
mod standby;
mod stream;
mod tls;
mod types;
mod upgrade;
mod verification;
mod verify;
mod verifying;
mod ways;
