//! End to end tests: real PostgreSQL, real sockets.

mod cutover;
mod fence;
mod front;
mod preflight;
mod services;
mod source;
mod verify;
mod stream;
