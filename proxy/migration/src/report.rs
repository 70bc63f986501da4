//! A decision with everything that led to it: shown unchanged by the API, `explain` and the metrics.

use crate::score::Score;
use crate::units::Zone;

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
