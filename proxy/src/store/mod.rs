//! The embedded database under `node.state`: journal of the cutover machine and history of its runs.
//!
//! SQLite in WAL mode with `synchronous = FULL`: a record that [`Journal::append`] returned from survives a power cut.
//! One process at a time: the database is locked exclusively. Tokens of the API are in a file of their own ([`Tokens`]).

mod journal;
mod legacy;
mod notes;
mod overlay;
mod record;
mod tokens;
#[cfg(test)]
mod torn;

pub use journal::{AFTER_APPEND, Commits, Ended, Journal, JournalRow, RunRow, StoreError};
pub use legacy::{Legacy, PlacedRow, Unreadable};
pub use notes::{
    AnsweredRow, ApprovalRow, EVERY_RESOURCE, FreezeRow, LedgerRow, PostedRow, ProposalRow, RetirementRow,
};
pub use overlay::{Change, Overlay, OverlayFile};
pub use tokens::{Issued, NewToken, Rejected, TokenView, Tokens};
