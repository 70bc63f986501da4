//! Mistakes that a cutover can make, each switched on alone: the model must catch every one.

use crate::system::Budget;

/// A mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Bug {
    /// The end marker's position is taken before writes are stopped.
    FinalPositionBeforeKill,
    /// `step` goes from drained to fenced without a fence.
    FenceSkipped,
    /// The shell starts the effects and writes the journal afterwards.
    JournalAfterEffect,
    /// The databases do not compare generations.
    GenerationUnchecked,
    /// A process that starts opens the database it is configured for, whatever the journal says.
    UnfenceWithoutJournal,
    /// `step` opens the gate before the pool is swapped.
    ReleaseBeforeSwap,
    /// `step` makes the slot of the way back after the swap.
    ReverseSlotAfterSwap,
    /// `step` undoes a run whose commit is in the journal.
    AbortAfterCommit,
    /// `step` takes a timeout for success.
    TimeoutAssumedDone,
    /// Undoing a run opens any fence of the next generation, also another run's: what `install.sql` did until this model
    /// found it.
    AnyRunUndoes,
    /// An aborted run drops the slot of the way back also when the next run has made it its own: found by this model.
    AnyRunDropsTheWayBack,
    /// A node that takes the lead undoes a run without making sure in its target that it is not committed there.
    NotForestalled,
    /// A node that does not lead any more may still fence.
    LeaseUnchecked,
    /// A node that takes the lead amid a run lets requests through before it has opened the database.
    LeadsWithAnOpenGate,
    /// What an effect outside a run answers counts for the run that has begun since: what the controller did until this
    /// model found it.
    AnswersWithoutRun,
}

impl Bug {
    /// The nine of the specification.
    pub const SEEDED: [Self; 9] = [
        Self::FinalPositionBeforeKill,
        Self::FenceSkipped,
        Self::JournalAfterEffect,
        Self::GenerationUnchecked,
        Self::UnfenceWithoutJournal,
        Self::ReleaseBeforeSwap,
        Self::ReverseSlotAfterSwap,
        Self::AbortAfterCommit,
        Self::TimeoutAssumedDone,
    ];
    /// Those of a node that takes the lead from another.
    pub const LEADING: [Self; 3] = [Self::NotForestalled, Self::LeaseUnchecked, Self::LeadsWithAnOpenGate];
    /// Those that this model found in Godwit itself.
    pub const FOUND: [Self; 3] = [Self::AnyRunUndoes, Self::AnyRunDropsTheWayBack, Self::AnswersWithoutRun];

    /// The smallest bound within which it shows.
    pub fn budget(self) -> Budget {
        let one = Budget { writes: 1, moves: 1, ..Budget::NOTHING };
        match self {
            Self::FenceSkipped => Budget { writes: 0, ..one },
            Self::JournalAfterEffect | Self::UnfenceWithoutJournal => Budget { writes: 0, crashes: 1, ..one },
            Self::GenerationUnchecked => Budget { crashes: 1, late: 1, ..one },
            Self::AnyRunUndoes => Budget { writes: 0, moves: 2, failures: 1, late: 1, ..one },
            Self::AnyRunDropsTheWayBack | Self::AnswersWithoutRun => Budget { moves: 2, ..one },
            Self::NotForestalled | Self::LeaseUnchecked | Self::LeadsWithAnOpenGate => {
                Budget { leads: 1, ..one }
            }
            _ => one,
        }
    }

    /// The property that it breaks.
    pub fn breaks(self) -> &'static str {
        match self {
            Self::FinalPositionBeforeKill | Self::TimeoutAssumedDone => "no acknowledged write is lost",
            Self::FenceSkipped
            | Self::JournalAfterEffect
            | Self::UnfenceWithoutJournal
            | Self::NotForestalled
            | Self::AnyRunUndoes => "one writer at a time",
            Self::GenerationUnchecked | Self::ReleaseBeforeSwap | Self::LeadsWithAnOpenGate => {
                "nobody who was let through is turned away"
            }
            Self::ReverseSlotAfterSwap | Self::AnyRunDropsTheWayBack => "every write can go the way back",
            Self::AbortAfterCommit => "no abort after the commit",
            Self::AnswersWithoutRun => "nothing is retired before both sides are equal",
            Self::LeaseUnchecked => "every run ends",
        }
    }

    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Self::FinalPositionBeforeKill => "final position before the kill",
            Self::FenceSkipped => "fence skipped",
            Self::JournalAfterEffect => "journal after effect",
            Self::GenerationUnchecked => "generation unchecked",
            Self::UnfenceWithoutJournal => "unfence without reading the journal",
            Self::ReleaseBeforeSwap => "release before swap",
            Self::ReverseSlotAfterSwap => "reverse slot after swap",
            Self::AbortAfterCommit => "abort after commit",
            Self::TimeoutAssumedDone => "timeout assumed done",
            Self::NotForestalled => "not forestalled",
            Self::LeaseUnchecked => "lease unchecked",
            Self::LeadsWithAnOpenGate => "leads with an open gate",
            Self::AnyRunUndoes => "any run undoes any fence",
            Self::AnyRunDropsTheWayBack => "any run drops the way back",
            Self::AnswersWithoutRun => "answers without a run count for the next",
        }
    }
}
