//! What clients connect to.
//!
//! One HTTP request: `http/` starts a [`stopwatch`], finds the front in [`routes`], enters its [`gate`] (where it waits,
//! body unread, while a cutover holds), then asks its [`pools`] for an endpoint, and leaves its sample in [`latencies`].
//! Long responses are kept in [`streams`]; [`health`] asks endpoints how they are. A client of the database comes to `postgres/`, whose
//! sessions are held between transactions and carried to the other side. Nothing here waits for the controller, and nothing here
//! decides when to hold or swap.

use std::sync::LazyLock;
use std::time::Instant;

pub mod clients;
pub mod gate;
pub mod health;
pub mod http;
pub mod latencies;
pub mod mirror;
pub mod pools;
pub mod postgres;
pub mod routes;
pub mod sockets;
pub mod stopwatch;
pub mod streams;

/// Monotonic time; the only place in the fronts that asks for it.
fn now() -> Instant {
    crate::clock::monotonic()
}

/// Into how many shards counters and queues that all threads touch are split; a power of two.
fn shards() -> usize {
    static SHARDS: LazyLock<usize> = LazyLock::new(|| {
        let threads = std::thread::available_parallelism().map_or(4, std::num::NonZero::get);
        (threads * 2).next_power_of_two().min(64)
    });
    *SHARDS
}

/// The shard of this thread.
fn shard() -> usize {
    gate::thread_number() & (shards() - 1)
}
