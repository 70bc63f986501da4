//! Are two databases equal?
//!
//! | | when | how |
//! |---|---|---|
//! | [`digest()`] | both stand still, at the end marker of a cutover | one digest per table, under snapshots |
//! | [`run()`] | live, while clients write and the stream follows | chunk by chunk, to the keys that really differ |
//!
//! Rows are hashed in the databases, as text under fixed session settings, so that versions 14 to 18 agree; hashes are summed, so
//! that rows may sit anywhere. Sums find loss and damage; they do not withstand somebody who forges rows on purpose.
//!
//! Live, the source is read first; its WAL position is taken; when the stream has applied that, the target is read. So the target
//! may be ahead of what was read of the source, never behind. A chunk that is equal is proven equal at that position. One
//! that is not is cut down to keys ([`Walk`]), and a key is read again until it is equal or is proven not to have moved
//! ([`Settle`], with the proof). `walk`, `settle` and `pace` do no I/O; `simulation` (a test) runs them against
//! every kind of movement.
//!
//! Large objects are no rows: [`crate::large_objects::differing`] compares them.
//!
//! What it cannot see: values equal as text but not otherwise; rows of unlogged tables and materialised views,
//! which the stream does not carry either.

mod catalog;
mod digest;
mod pace;
mod range;
mod reader;
mod report;
mod run;
mod settle;
#[cfg(test)]
mod simulation;
mod sql;
mod sweep;
mod walk;

pub use digest::{
    SnapshotDigest, TableBuckets, TableDigest, begin_snapshot, buckets, differences, digest, digest_snapshot,
};
pub use pace::Pace;
pub use range::{Key, Pair, Range, RowMark, Side, Sum};
pub use reader::Follower;
pub use report::{ColumnDifference, Difference, Happening, Kind, Progress};
pub use run::{Go, Options, run};
pub use settle::{Answer, Ask, Patience, Settle, Verdict};
pub use walk::{Found, Outcome, Read, ReadId, Stride, Walk};
