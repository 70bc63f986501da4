//! The two ends of a session, as machines: `handle_*` takes what happened, `poll_*` gives what to do. No I/O, no clock.
//!
//! ```text
//! opener → Hello            acceptor → Welcome | Refuse
//! receiver → Resume, Kept*, Credit
//! sender → Source
//! sender → [CopyBegin (CopySchema | CopyTable CopyRows* CopyTableEnd)* CopyEnd]   receiver → Copied
//! sender → (Transaction | LargeBegin LargePiece* LargeEnd | Position)*           receiver → (Progress | Credit)*
//! both → Heartbeat, at least each second; either → Failed
//! ```
//! Order: frames are numbered, a gap ends the session. Duplicates: a transaction at or before the resume point is
//! dropped by the receiver. Memory: the sender sends no more bulk bytes than it has credit for, and a position when the one before is applied.

mod framing;
mod receiver;
mod sender;

use std::time::{Duration, Instant};

use crate::lsn::Lsn;
use crate::status::StreamStatus;
use crate::wire::Progress;

pub use framing::{Framing, HEARTBEAT, SILENCE};
pub use receiver::{Receiver, Work};
pub use sender::Sender;

/// Bulk bytes that may wait at the receiver.
pub const WINDOW: u64 = 16 << 20;

/// Origins of transactions that Godwit itself applied start so; a sender drops them, or they would go round for ever.
pub const OWN_ORIGIN_PREFIX: &str = "godwit_";

/// Whether Godwit itself wrote a transaction of this origin.
pub(crate) fn is_own(origin: Option<&str>) -> bool {
    origin.is_some_and(|origin| origin.starts_with(OWN_ORIGIN_PREFIX))
}

/// `oldest`: when the oldest change came that is not applied.
fn describe(
    status: &mut StreamStatus,
    source: Lsn,
    progress: &Progress,
    oldest: Option<Instant>,
    now: Instant,
) {
    // Before the source has said how far it is, what was known last is nearer to the truth than "caught up".
    if source > Lsn::ZERO {
        status.source_lsn = source.max(progress.applied);
        status.lag_bytes = status.source_lsn.bytes_since(progress.applied);
        status.lag = oldest.map_or(Duration::ZERO, |since| now.duration_since(since));
        status.heard = Some(now);
    }
    status.received_lsn = progress.received;
    status.applied_lsn = progress.applied;
    status.durable_lsn = progress.durable;
    status.applied_marker = progress.marker;
    status.rows_after_marker = progress.rows_after_marker;
    status.transactions = progress.transactions;
    status.changes = progress.changes;
}

#[cfg(test)]
mod tests;
