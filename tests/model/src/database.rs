//! A database as the cutover sees it: rows, a log, slots, checkpoints, and the epoch row that checks generations. It does what
//! `replicator/src/fence/install.sql` and the applier do, each call in one transaction.

use crate::bugs::Bug;
use crate::node::Heard;

/// Highest generation that fits.
pub const GENERATIONS: usize = 6;

/// How many numbers a sequence skips when its shadow takes over: more than are drawn here.
const SKIPPED: u8 = 8;

/// What the triggers let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fence {
    /// Every client may write.
    Open,
    /// A shadow: only the applier writes.
    Guarded,
    /// An old primary: nobody but the applier of the way back writes.
    Closed {
        /// Position of the end marker.
        marker: u8,
        /// The run that closed it.
        run: u8,
    },
}

/// One transaction of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Record {
    /// A client's write, by number.
    Write(u8),
    /// The same, brought by an applier: its origin keeps it from being sent back.
    Applied(u8),
    /// An end marker.
    Marker,
}

/// The database of one zone.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Database {
    /// Newest generation it heard of.
    pub epoch: u8,
    /// Its triggers.
    pub fence: Fence,
    /// Runs whose fence was undone, one bit each: what they send late is refused.
    pub undone: u16,
    /// Writes that it holds, one bit each.
    pub rows: u16,
    /// Everything committed, in order; a position is an index.
    pub log: Vec<Record>,
    /// Where the slot of each generation begins to read.
    pub slots: [Option<u8>; GENERATIONS],
    /// The run to which the slot of the way back belongs.
    pub claimed: u8,
    /// How far each generation's stream is applied here: a position of the source.
    pub progress: [Option<u8>; GENERATIONS],
    /// The last number that its sequence gave.
    pub sequence: u8,
    /// The generation as of which it took over from a lost primary; 0: it did not.
    pub took_over: u8,
}

/// A call is refused: its generation or its run is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stale;

fn bit(number: u8) -> u16 {
    1 << (number % 16)
}

impl Database {
    /// Generation 1, empty.
    pub fn new(fence: Fence) -> Self {
        Self {
            epoch: 1,
            fence,
            undone: 0,
            rows: 0,
            log: Vec::new(),
            slots: [None; GENERATIONS],
            claimed: 0,
            progress: [None; GENERATIONS],
            sequence: 0,
            took_over: 0,
        }
    }

    /// Clients may write.
    pub fn is_open(&self) -> bool {
        self.fence == Fence::Open
    }

    /// A client's write, if the triggers let it through.
    pub fn write(&mut self, number: u8) -> bool {
        if self.is_open() {
            self.rows |= bit(number);
            self.log.push(Record::Write(number));
            self.sequence += 1;
        }
        self.is_open()
    }

    /// Whether it holds a write.
    pub fn holds(&self, number: u8) -> bool {
        self.rows & bit(number) != 0
    }

    /// `godwit.close_fence`, unless another node has the lease: the trigger and the end marker in one transaction.
    pub fn close(&mut self, generation: u8, run: u8, leads: bool, bug: Option<Bug>) -> Result<u8, Stale> {
        if !leads && bug != Some(Bug::LeaseUnchecked) {
            return Err(Stale);
        }

        if let Fence::Closed { marker, run: closer } = self.fence
            && self.epoch == generation
            && (closer == run || bug == Some(Bug::AnyRunUndoes))
        {
            return Ok(marker);
        }
        let over = self.epoch > generation || (self.epoch == generation && !self.is_open());
        let undone = self.has_undone(run) && bug != Some(Bug::AnyRunUndoes);
        if (over || undone) && bug != Some(Bug::GenerationUnchecked) {
            return Err(Stale);
        }
        let marker = self.mark();
        self.shut(generation, run, marker);
        Ok(marker)
    }

    /// The end marker alone; returns the position behind it.
    pub fn mark(&mut self) -> u8 {
        self.log.push(Record::Marker);
        self.log.len() as u8
    }

    /// The triggers alone.
    pub fn shut(&mut self, generation: u8, run: u8, marker: u8) {
        self.epoch = generation;
        self.fence = Fence::Closed { marker, run };
    }

    /// `godwit.guard_fence`.
    pub fn guard(&mut self, generation: u8, bug: Option<Bug>) -> Result<(), Stale> {
        if self.epoch > generation && bug != Some(Bug::GenerationUnchecked) {
            return Err(Stale);
        }
        self.epoch = generation;
        self.fence = Fence::Guarded;
        Ok(())
    }

    /// Sets the sequence of the primary of `generation`, which is the shadow of the one before until then, for the newest run only:
    /// `replicator::beside::Shadow`.
    pub fn set_sequence(
        &mut self,
        generation: u8,
        run: u8,
        number: u8,
        bug: Option<Bug>,
    ) -> Result<(), Stale> {
        let follows = self.epoch + 1 == generation && !self.is_open() && self.claimed == run;
        if !follows && bug != Some(Bug::SequencesSetLate) {
            return Err(Stale);
        }
        self.sequence = number;
        Ok(())
    }

    /// What a shadow does that takes over: `guard_fence`, no checkpoint of the old stream, no slot of a way back, and its sequence ahead of
    /// its rows and of what may have been drawn since.
    pub fn take_over(&mut self, generation: u8, bug: Option<Bug>) -> Result<(), Stale> {
        self.guard(generation, bug)?;
        if bug != Some(Bug::OldStreamGoesOn) {
            self.progress[..usize::from(generation)].fill(None);
        }
        self.slots[usize::from(generation)] = None;
        if bug != Some(Bug::SequencesNotAhead) {
            self.sequence = self.sequence.max(self.rows.count_ones() as u8) + SKIPPED;
        }
        Ok(())
    }

    /// What a node that begins to lead is told.
    pub fn remembers(&self) -> Heard {
        Heard::Said {
            epoch: self.epoch,
            fence: self.fence,
            copy: self.progress[usize::from(self.epoch)].is_some(),
            took_over: self.is_open() && self.took_over == self.epoch,
        }
    }

    /// `godwit.forestall`: the run never opens this one; false: it is at that generation.
    pub fn forestall(&mut self, generation: u8, run: u8) -> bool {
        if self.epoch >= generation {
            return false;
        }
        self.undone |= bit(run);
        true
    }

    /// What this run sends late is refused.
    pub fn has_undone(&self, run: u8) -> bool {
        self.undone & bit(run) != 0
    }

    /// `godwit.open_fence` after the commit of `run`.
    pub fn open_committed(&mut self, generation: u8, run: u8, bug: Option<Bug>) -> Result<(), Stale> {
        if self.has_undone(run) && bug != Some(Bug::NotForestalled) {
            return Err(Stale);
        }
        self.open(generation, None, bug)
    }

    /// `godwit.open_fence`: after a commit, or to undo what `undo` closed for the generation after `generation`.
    pub fn open(&mut self, generation: u8, undo: Option<u8>, bug: Option<Bug>) -> Result<(), Stale> {
        let undoes = match (self.fence, undo) {
            (Fence::Closed { run, .. }, Some(undo)) => run == undo || bug == Some(Bug::AnyRunUndoes),
            (Fence::Open, _) => false,
            // What stood here before: any fence of the next generation was taken for the one to undo.
            _ => bug == Some(Bug::AnyRunUndoes),
        } && self.epoch == generation + 1;
        if self.epoch > generation && !undoes && bug != Some(Bug::GenerationUnchecked) {
            return Err(Stale);
        }
        if let Some(run) = undo {
            self.undone |= bit(run);
        }
        self.epoch = generation;
        self.fence = Fence::Open;
        Ok(())
    }

    /// `godwit.claim_way_back`.
    pub fn claim(&mut self, run: u8) {
        self.claimed = self.claimed.max(run);
    }

    /// `godwit.claim_way_back`, then the slot of a generation's stream where there is none: it reads what is committed from
    /// now on.
    pub fn make_slot(&mut self, generation: u8, run: u8) {
        self.claim(run);
        let here = self.log.len() as u8;
        self.slots[usize::from(generation)].get_or_insert(here);
    }

    /// `godwit.drop_way_back`.
    pub fn drop_slot(&mut self, generation: u8, run: u8, bug: Option<Bug>) {
        if self.claimed == run || bug == Some(Bug::AnyRunDropsTheWayBack) {
            self.slots[usize::from(generation)] = None;
        }
    }

    /// The stream of `generation` applies the next transaction of `source` here, together with its checkpoint.
    pub fn apply(&mut self, generation: u8, source: &Self) -> bool {
        let Some(at) = self.progress[usize::from(generation)] else { return false };
        let Some(record) = source.log.get(usize::from(at)) else { return false };
        if source.slots[usize::from(generation)].is_none() {
            return false;
        }
        if let Record::Write(number) = record {
            self.rows |= bit(*number);
            self.log.push(Record::Applied(*number));
        }
        self.progress[usize::from(generation)] = Some(at + 1);
        true
    }
}
