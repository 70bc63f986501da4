//! End to end tests: real PostgreSQL, real sockets.

mod fence;
mod preflight;
mod verify;
