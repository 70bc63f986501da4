//! The only file of this crate that asks for the time.

use tokio::time::Instant;

/// Monotonic time, to measure spans and set deadlines.
#[expect(clippy::disallowed_methods, reason = "the one place that asks")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// Wall time, only to be shown by the server.
#[expect(clippy::disallowed_methods, reason = "the one place that asks")]
pub(crate) fn wall() -> std::time::SystemTime {
    std::time::SystemTime::now()
}
