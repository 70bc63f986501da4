//! What happened: past facts, reported to the machine.

use std::time::Duration;

use super::state::{Limits, Trigger};
use crate::units::{Position, Zone};

/// A fact.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// The policy wants a shadow.
    ShadowEnabled,
    /// The policy wants none.
    ShadowDisabled,
    /// The stream of the present generation applies changes near the tip.
    StreamUp,
    /// A migration was asked for.
    MigrateRequested {
        /// Its id.
        id: String,
        /// Where to.
        to: Zone,
        /// Who asked.
        trigger: Trigger,
        /// How long it may take.
        limits: Limits,
    },
    /// A person says that the primary is lost: the shadow takes over with what it has.
    TakeOverRequested {
        /// Id of the migration that this is.
        id: String,
        /// Who asked.
        trigger: Trigger,
        /// Of the migration.
        limits: Limits,
    },
    /// Nothing of the lost primary reaches the shadow any more, and its sequences are ahead of its rows.
    TakenOver,
    /// The shadow has the primary's capacity.
    ShadowScaled,
    /// Every guard passed.
    GuardsPassed,
    /// A guard failed.
    GuardsFailed {
        /// All that failed, in words.
        why: String,
    },
    /// The slot of the reverse stream exists on the shadow.
    ReverseSlotMade,
    /// The gate is closed.
    GateClosed,
    /// No request is in flight.
    DrainFinished,
    /// The gate holds too much.
    HoldNearlyFull {
        /// Held and limit, in words.
        why: String,
    },
    /// The old primary takes no writes; everything before `marker` is in its log.
    FenceUp {
        /// Position of the end marker.
        marker: Position,
    },
    /// The shadow has applied everything up to the marker.
    MarkerApplied,
    /// The shadow's sequences are those of the fenced primary.
    SequencesSet,
    /// A database takes writes again: the new primary's after the commit, the old one's in an abort.
    FenceLifted,
    /// The front's pool is the primary's.
    PoolSwapped,
    /// The gate is open.
    GateOpened,
    /// The old stream and its slot are gone.
    OldStreamGone,
    /// Both sides were compared at one position.
    Compared {
        /// Equal.
        equal: bool,
    },
    /// The old primary shall soak so long, counted from when it began to.
    SoakFor {
        /// How long; zero: no longer.
        time: Duration,
    },
    /// The old primary is scaled down to a shadow.
    OldPrimaryRetired,
    /// An effect did not work.
    EffectFailed {
        /// Which.
        effect: &'static str,
        /// Why.
        why: String,
    },
    /// A person wants to stop the migration.
    AbortRequested {
        /// Who.
        by: String,
    },
    /// Time passed.
    Tick,
    /// The process started with this state from its journal.
    Restarted,
}

impl Event {
    /// The name used in refusals and tables.
    pub fn name(&self) -> &'static str {
        match self {
            Self::ShadowEnabled => "ShadowEnabled",
            Self::ShadowDisabled => "ShadowDisabled",
            Self::StreamUp => "StreamUp",
            Self::MigrateRequested { .. } => "MigrateRequested",
            Self::TakeOverRequested { .. } => "TakeOverRequested",
            Self::TakenOver => "TakenOver",
            Self::ShadowScaled => "ShadowScaled",
            Self::GuardsPassed => "GuardsPassed",
            Self::GuardsFailed { .. } => "GuardsFailed",
            Self::ReverseSlotMade => "ReverseSlotMade",
            Self::GateClosed => "GateClosed",
            Self::DrainFinished => "DrainFinished",
            Self::HoldNearlyFull { .. } => "HoldNearlyFull",
            Self::FenceUp { .. } => "FenceUp",
            Self::MarkerApplied => "MarkerApplied",
            Self::SequencesSet => "SequencesSet",
            Self::FenceLifted => "FenceLifted",
            Self::PoolSwapped => "PoolSwapped",
            Self::GateOpened => "GateOpened",
            Self::OldStreamGone => "OldStreamGone",
            Self::Compared { .. } => "Compared",
            Self::SoakFor { .. } => "SoakFor",
            Self::OldPrimaryRetired => "OldPrimaryRetired",
            Self::EffectFailed { .. } => "EffectFailed",
            Self::AbortRequested { .. } => "AbortRequested",
            Self::Tick => "Tick",
            Self::Restarted => "Restarted",
        }
    }
}
