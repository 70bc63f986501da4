//! What to do: commands to drivers. Each is idempotent and may run twice.

use crate::units::{Generation, Position, Zone};

/// How much of a placement is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Capacity {
    /// As much as the primary has.
    Full,
    /// The shadow's share.
    Shadow,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Committed, and the old primary is retired to a shadow.
    Retired,
    /// Committed; so was the next migration, before the old primary was retired.
    Superseded,
    /// Undone before the commit.
    Aborted(String),
    /// The primary was lost; the shadow took over.
    TakenOver,
}

impl Outcome {
    /// The name used in the history, the API and the metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Retired => "retired",
            Self::Superseded => "superseded",
            Self::Aborted(_) => "aborted",
            Self::TakenOver => "taken_over",
        }
    }
}

/// A command.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Database and workers of the shadow exist. No answer: the stream needs it and says when it is up.
    ProvisionShadow {
        /// Where.
        zone: Zone,
    },
    /// Nothing of the old stream reaches `zone` any more, and its sequences are ahead of its rows. Answer: `TakenOver`.
    TakeOver {
        /// Whose database takes over.
        zone: Zone,
        /// Whose is lost: fenced, if it can be reached after all.
        lost: Zone,
        /// The new generation.
        generation: Generation,
    },
    /// The stream of this generation runs from `source` to `target`, whose database is guarded. Answer: `StreamUp`.
    RunStream {
        /// Names slot and checkpoint.
        generation: Generation,
        /// Primary.
        source: Zone,
        /// Shadow.
        target: Zone,
    },
    /// The stream of this generation ends and its slot on `source` goes. Answer: `OldStreamGone`.
    EndStream {
        /// Names the slot.
        generation: Generation,
        /// Where the slot is.
        source: Zone,
    },
    /// Workers of a placement. Answer for `Full` before a cutover: `ShadowScaled`; for `Shadow` after one: `OldPrimaryRetired`.
    Scale {
        /// Where.
        zone: Zone,
        /// How many.
        capacity: Capacity,
    },
    /// Every guard, once, now. Answer: `GuardsPassed` or `GuardsFailed`.
    CheckGuards,
    /// The slot that the stream of `generation` will read from. Answer: `ReverseSlotMade`.
    MakeReverseSlot {
        /// The generation about to be committed.
        generation: Generation,
        /// The shadow.
        zone: Zone,
    },
    /// An aborted run's reverse slot goes, unless the next run has taken it over.
    DropReverseSlot {
        /// The aborted run.
        run: String,
        /// The generation that was not committed.
        generation: Generation,
        /// The shadow.
        zone: Zone,
    },
    /// Requests wait. Answer: `GateClosed`, then `DrainFinished` when none is in flight.
    CloseGate,
    /// The old primary takes no writes. Answer: `FenceUp`.
    Fence {
        /// Old primary.
        zone: Zone,
        /// The generation about to be committed.
        generation: Generation,
    },
    /// Answer: `MarkerApplied`.
    AwaitMarker {
        /// The end marker's position in the old primary's log.
        marker: Position,
    },
    /// Answer: `SequencesSet`.
    SetSequences {
        /// The shadow.
        zone: Zone,
    },
    /// A database takes writes under `generation`. Answer: `FenceLifted`.
    LiftFence {
        /// Which.
        zone: Zone,
        /// The generation it serves.
        generation: Generation,
    },
    /// The front's pool. Answer: `PoolSwapped`.
    SwapPool {
        /// The primary.
        zone: Zone,
        /// Its generation.
        generation: Generation,
    },
    /// Held requests go on. Answer: `GateOpened`.
    OpenGate,
    /// Rows and row hashes of both sides at one position. Answer: `Compared`.
    Compare,
    /// The history gets the run's end.
    CloseRun {
        /// Which.
        id: String,
        /// How.
        outcome: Outcome,
    },
}

impl Effect {
    /// The run that it closes, and how.
    pub fn ends(&self) -> Option<(&str, &Outcome)> {
        match self {
            Self::CloseRun { id, outcome } => Some((id, outcome)),
            _ => None,
        }
    }

    /// Whether it is done for the resource, whatever migration wants it. Every other effect is of the migration that wants it, and of no
    /// other one: two comparisons are not the same if two migrations want them.
    pub fn is_of_the_resource(&self) -> bool {
        matches!(self, Self::RunStream { .. })
    }

    /// The name used in failures, logs and metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Self::ProvisionShadow { .. } => "provision_shadow",
            Self::RunStream { .. } => "run_stream",
            Self::EndStream { .. } => "end_stream",
            Self::Scale { capacity: Capacity::Full, .. } => "scale_up",
            Self::Scale { capacity: Capacity::Shadow, .. } => "scale_down",
            Self::CheckGuards => "check_guards",
            Self::MakeReverseSlot { .. } => "make_reverse_slot",
            Self::TakeOver { .. } => "take_over",
            Self::DropReverseSlot { .. } => "drop_reverse_slot",
            Self::CloseGate => "close_gate",
            Self::Fence { .. } => "fence",
            Self::AwaitMarker { .. } => "await_marker",
            Self::SetSequences { .. } => "set_sequences",
            Self::LiftFence { .. } => "lift_fence",
            Self::SwapPool { .. } => "swap_pool",
            Self::OpenGate => "open_gate",
            Self::Compare => "compare",
            Self::CloseRun { .. } => "close_run",
        }
    }
}
