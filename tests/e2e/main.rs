//! End to end tests: real PostgreSQL, real sockets.

mod stream;
