//! Godwit's cutover and its streams, simulated by seed (docs/simulation.md): the production `step()` and the production sessions
//! of the replicator, among processes, disks, links and databases that fail at any moment.
//!
//! - [`disk`] the journal's disk, which loses what was not synced and tears its end;
//! - [`database`] what PostgreSQL and `install.sql` do, with a log of transactions;
//! - [`stream`] a sender and a receiver of the replicator over a link that loses, cuts and swallows;
//! - [`node`] what the controller does with `step()`, in its order, and its gate;
//! - [`effects`] what each effect does;
//! - [`world`] everything together, by a seed, and what must hold.

pub mod database;
pub mod disk;
pub mod effects;
pub mod node;
pub mod stream;
pub mod world;
