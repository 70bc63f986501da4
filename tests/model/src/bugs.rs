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
    /// Who takes over does not raise the generation of its database.
    GenerationNotRaised,
    /// A lost primary that is back is not guarded.
    LostNotGuarded,
    /// A node that takes the lead goes on from its own journal, whatever the databases say.
    OldJournalBelieved,
    /// A takeover does not end the stream of the lost primary.
    OldStreamGoesOn,
    /// A takeover does not put sequences ahead.
    SequencesNotAhead,
    /// A database does not say that it took over: what [`judge`](migration::cutover::memory::judge) did not ask before.
    TookOverUnsaid,
    /// `step` takes a way back for the end of the soak before it, also where it is undone: what it did once.
    SoakForgotten,
    /// Sequences are set wherever the order arrives, however late: what the replicator did.
    SequencesSetLate,
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
    /// Those of a takeover.
    pub const TAKING_OVER: [Self; 6] = [
        Self::GenerationNotRaised,
        Self::LostNotGuarded,
        Self::OldJournalBelieved,
        Self::OldStreamGoesOn,
        Self::SequencesNotAhead,
        Self::TookOverUnsaid,
    ];
    /// Those that were in Godwit itself; this model found all but the last two.
    pub const FOUND: [Self; 5] = [
        Self::AnyRunUndoes,
        Self::AnyRunDropsTheWayBack,
        Self::AnswersWithoutRun,
        Self::SoakForgotten,
        Self::SequencesSetLate,
    ];

    /// The smallest bound within which it shows.
    pub fn budget(self) -> Budget {
        let one = Budget { writes: 1, moves: 1, ..Budget::NOTHING };
        match self {
            Self::FenceSkipped => Budget { writes: 0, ..one },
            Self::JournalAfterEffect | Self::UnfenceWithoutJournal => Budget { writes: 0, crashes: 1, ..one },
            Self::GenerationUnchecked => Budget { crashes: 1, late: 1, ..one },
            Self::AnyRunUndoes => Budget { writes: 0, moves: 2, failures: 1, late: 1, ..one },
            Self::SequencesSetLate => Budget { writes: 2, moves: 2, late: 1, ..one },
            Self::AnyRunDropsTheWayBack | Self::AnswersWithoutRun => Budget { moves: 2, ..one },
            Self::SoakForgotten => Budget { writes: 0, moves: 2, ..one },
            Self::NotForestalled | Self::LeaseUnchecked | Self::LeadsWithAnOpenGate => {
                Budget { leads: 1, ..one }
            }
            Self::LostNotGuarded => Budget { writes: 0, moves: 0, losses: 1, takeovers: 1, ..one },
            Self::OldStreamGoesOn | Self::SequencesNotAhead => {
                Budget { writes: 2, moves: 0, losses: 1, takeovers: 1, ..one }
            }
            Self::GenerationNotRaised | Self::OldJournalBelieved => {
                Budget { writes: 0, moves: 0, losses: 1, takeovers: 1, leads: 1, old_journal: true, ..one }
            }
            Self::TookOverUnsaid => Budget { writes: 0, moves: 0, losses: 1, takeovers: 1, leads: 1, ..one },
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
            | Self::GenerationNotRaised
            | Self::OldJournalBelieved
            | Self::AnyRunUndoes => "one writer at a time",
            Self::GenerationUnchecked | Self::ReleaseBeforeSwap | Self::LeadsWithAnOpenGate => {
                "nobody who was let through is turned away"
            }
            Self::ReverseSlotAfterSwap | Self::AnyRunDropsTheWayBack => "every write can go the way back",
            Self::AbortAfterCommit => "no abort after the commit",
            Self::AnswersWithoutRun | Self::SoakForgotten => "nothing is retired before both sides are equal",
            Self::OldStreamGoesOn => "nothing reaches a database that clients write to",
            Self::SequencesNotAhead | Self::SequencesSetLate => "no number of a sequence is given twice",
            Self::LeaseUnchecked | Self::LostNotGuarded | Self::TookOverUnsaid => "every run ends",
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
            Self::GenerationNotRaised => "generation not raised by a takeover",
            Self::LostNotGuarded => "lost primary not guarded",
            Self::OldJournalBelieved => "old journal believed",
            Self::OldStreamGoesOn => "old stream goes on after a takeover",
            Self::SequencesNotAhead => "sequences not put ahead",
            Self::TookOverUnsaid => "took over, and does not say so",
            Self::AnyRunUndoes => "any run undoes any fence",
            Self::AnyRunDropsTheWayBack => "any run drops the way back",
            Self::AnswersWithoutRun => "answers without a run count for the next",
            Self::SoakForgotten => "soak forgotten by a way back that is undone",
            Self::SequencesSetLate => "sequences set late",
        }
    }
}
