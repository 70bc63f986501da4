//! A decision with everything that led to it: shown unchanged by the API, `explain` and the metrics.

use crate::score::Score;
use crate::units::{Timestamp, Zone};

/// What to do now.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// Move, now, by itself.
    Move {
        /// Where to.
        to: Zone,
    },
    /// Moving would pay, and a person must start it.
    Propose {
        /// Where to.
        to: Zone,
    },
    /// Stay.
    Stay,
}

/// One condition.
#[derive(Clone, Debug, PartialEq)]
pub struct Guard {
    /// Its name.
    pub name: &'static str,
    /// Whether it lets the move through; unknown facts do not.
    pub passed: bool,
    /// What was found.
    pub value: String,
    /// What is needed.
    pub limit: String,
    /// It also binds a move that an operator starts.
    pub binds_operator: bool,
}

/// A guard that time alone may let pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Awaited {
    /// The guard.
    pub guard: &'static str,
    /// What must happen.
    pub what: String,
    /// When, if nothing else changes; none: nobody can say.
    pub at: Option<Timestamp>,
}

/// The smallest change of one fact, all else equal, that changes the verdict.
#[derive(Clone, Debug, PartialEq)]
pub struct Flip {
    /// The term or guard.
    pub of: &'static str,
    /// The fact as it is.
    pub from: String,
    /// Where it would have to be.
    pub to: String,
    /// How large the change is, as a share of what is now; infinite where that is nothing.
    pub size: f64,
    /// What would follow.
    pub then: String,
}

/// The whole decision.
#[must_use]
#[derive(Clone, Debug, PartialEq)]
pub struct DecisionReport {
    /// What to do.
    pub verdict: Verdict,
    /// The score.
    pub score: Score,
    /// What the lower bound must clear.
    pub needed: f64,
    /// Every condition, in order.
    pub guards: Vec<Guard>,
    /// Why not now, or why now: one sentence.
    pub because: String,
    /// What is waited for, in the order of the guards.
    pub awaited: Vec<Awaited>,
    /// What would change the verdict, the smallest change first; empty: no single fact would.
    pub flips: Vec<Flip>,
}

impl DecisionReport {
    /// Conditions that stop a move which an operator starts, in words.
    pub fn operator_refusals(&self) -> Vec<String> {
        self.guards
            .iter()
            .filter(|guard| guard.binds_operator && !guard.passed)
            .map(|guard| format!("{}: {} (needs {})", guard.name, guard.value, guard.limit))
            .collect()
    }
}
