//! The machine that moves one resource, as a pure function: [`step()`].
//!
//! ```text
//! Idle → Preparing → Shadowing → Requested → Warm → Armed → Held → Drained → Fenced → CaughtUp → Sequenced
//!                        ↑                                                                           │
//!                        │◄── Aborting ◄──── any of Requested … Sequenced                    COMMITTED (point of no return)
//!                        │                                                                           ↓
//!                        └──────────────────────────── Soaking ← Watching ← Released ← Swapped ◄─────┘
//! ```
//!
//! | phase | who serves | source (old primary) | shadow | on timeout |
//! |---|---|---|---|---|
//! | Idle | primary | open | absent | waits |
//! | Preparing | primary | open | being copied | retried for ever, the service is not touched |
//! | Shadowing | primary | open | guarded, applying | waits |
//! | Requested | primary | open | scaling up | abort |
//! | Warm | primary | open | full capacity; reverse slot and guards | abort |
//! | Armed | primary | open | ready | abort |
//! | Held | nobody: requests wait | open, draining | ready | abort |
//! | Drained | nobody | being fenced | ready | abort |
//! | Fenced | nobody | fenced | applying up to the marker | abort |
//! | CaughtUp | nobody | fenced | equal, sequences being set | abort |
//! | Sequenced | nobody | fenced | equal, reverse slot confirmed | abort |
//! | Committed | nobody | fenced | being opened | forward, retried |
//! | Swapped | nobody | fenced | open, in the pool | forward, retried |
//! | Released | new primary | fenced | – | forward, retried |
//! | Watching | new primary | guarded, reverse stream on | – | forward |
//! | Soaking | new primary | guarded, reverse stream on | – | waits for verification |
//! | Aborting | nobody until the gate opens | being opened | – | retried for ever |
//!
//! A way back may be asked for in Soaking. Where it is undone, Soaking goes on as it was, and not Shadowing: at full capacity, until the
//! same moment. With its commit the move before is superseded.
//!
//! Where the primary is lost and a person says so ([`Event::TakeOverRequested`]), a run begins at Committed, from Shadowing, Aborting or
//! a phase after a commit: the shadow is cut off from the old stream, then opened, and with the gate the run is over. Nothing is asked of the old primary.
//!
//! Every state is durable: the journal holds it, fsynced, before any effect of it runs. The facts inside a state that
//! only this process knows (a pool swapped, a gate closed) are learnt again after a restart: see [`Event::Restarted`].

pub mod effect;
pub mod event;
pub mod invariants;
pub mod memory;
pub mod state;
pub mod step;
#[cfg(test)]
mod tests;
pub mod unwritten;

pub use effect::{Capacity, Effect, Outcome};
pub use event::Event;
pub use state::{Limits, Phase, Run, Soak, State, Trigger};
pub use step::{Refused, step};
pub use unwritten::Unwritten;
