//! End to end tests: real PostgreSQL, real sockets.

mod services;
mod source;
mod front;
mod fence;
mod preflight;
mod verify;
