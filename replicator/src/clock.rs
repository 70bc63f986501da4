//! The only file of this crate that asks for the time.

use std::time::Instant;

/// Monotonic time, to measure spans and set deadlines. Stands still where tokio's clock is paused.
#[expect(clippy::disallowed_methods, reason = "the one place that asks")]
pub(crate) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// Wall time, only to be shown by the server.
#[expect(clippy::disallowed_methods, reason = "the one place that asks")]
pub(crate) fn wall() -> std::time::SystemTime {
    std::time::SystemTime::now()
}
