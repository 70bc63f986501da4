//! The journal's disk. A record is there once it was synced; a crash takes any end of what was not, and may leave a torn one,
//! which is not read. That SQLite's write-ahead log keeps this contract is tested where the journal is
//! (`proxy/src/store/torn.rs`).

use migration::cutover::{State, invariants};
use rand::Rng;
use rand::rngs::SmallRng;

/// No space is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// One file.
#[derive(Debug)]
pub struct Disk {
    synced: Vec<State>,
    unsynced: Vec<State>,
    /// Nothing can be written.
    pub full: bool,
}

impl Disk {
    /// With a first record.
    pub fn new(first: State) -> Self {
        Self { synced: vec![first], unsynced: Vec::new(), full: false }
    }

    /// Hands a record to the operating system.
    ///
    /// # Errors
    /// The disk is full.
    pub fn append(&mut self, state: &State) -> Result<(), Full> {
        if self.full {
            return Err(Full);
        }
        self.unsynced.push(state.clone());
        Ok(())
    }

    /// Returns when everything is on the disk.
    pub fn sync(&mut self) {
        self.synced.append(&mut self.unsynced);
    }

    /// The machine stops. Of what was not synced a beginning is kept, perhaps none of it; the record after it may be torn.
    pub fn crash(&mut self, rng: &mut SmallRng) {
        let kept = rng.random_range(0..=self.unsynced.len());
        self.synced.extend(self.unsynced.drain(..).take(kept));
    }

    /// The last whole record.
    pub fn recover(&self) -> State {
        let state = self.synced.last().expect("the first record is synced").clone();
        assert_eq!(invariants::check(&state), Ok(()), "the journal holds a state that cannot be");
        state
    }

    /// The last record that no crash can take.
    pub fn durable(&self) -> &State {
        self.synced.last().expect("the first record is synced")
    }
}
