//! End to end tests: real PostgreSQL, real sockets.

#![allow(clippy::disallowed_methods, reason = "tests wait by the real clock")]

mod cutover;
mod fence;
mod front;
mod leader;
mod preflight;
mod refusals;
mod services;
mod source;
mod stream;
mod verification;
mod verify;
