//! The data of each event: docs/events.md.

use migration::cutover::{Run, State};
use migration::units::Timestamp;
use serde::{Deserialize, Serialize};

use super::super::view::{DecisionView, ResourceView, StepView};
use super::Kind;

/// A step of a migration.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MigrationEvent {
    /// The resource.
    pub resource: String,
    /// The migration.
    pub id: String,
    /// Old primary.
    pub from: String,
    /// New primary.
    pub to: String,
    /// `score`, the operator's name, or `failures: ` and what failed.
    pub trigger: String,
    /// The generation it commits.
    pub generation: u64,
    /// When, Unix milliseconds.
    pub at_ms: u64,
    /// The phase it is in now.
    pub phase: String,
    /// The phase it left, if it left one.
    pub left: Option<StepView>,
    /// It has passed the point of no return.
    pub committed: bool,
    /// It can still be aborted.
    pub may_abort: bool,
    /// Requests are held.
    pub holds: bool,
    /// Both sides were compared and are equal.
    pub verified: bool,
    /// Why it is being undone.
    pub reason: Option<String>,
    /// `retired`, `superseded`, `aborted`, `taken_over`: it has ended, and its record is complete.
    pub outcome: Option<String>,
}

impl MigrationEvent {
    /// `run`, now that the resource stands as in `state`; `left`: the phase that it has left.
    pub fn of(state: &State, run: &Run, at: Timestamp, left: Option<StepView>) -> Self {
        Self {
            resource: state.resource.clone(),
            id: run.id.clone(),
            from: run.from.to_string(),
            to: run.to.to_string(),
            trigger: run.trigger.to_string(),
            generation: run.generation.0,
            at_ms: at.0,
            phase: state.phase.name().into(),
            left,
            committed: state.generation >= run.generation,
            may_abort: state.phase.may_abort(),
            holds: state.phase.holds(),
            verified: run.verified,
            reason: run.aborted.clone(),
            outcome: None,
        }
    }
}

/// What is wrong has changed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ProblemEvent {
    /// The resource.
    pub resource: String,
    /// When, Unix milliseconds.
    pub at_ms: u64,
    /// All that is wrong now.
    pub problems: Vec<String>,
    /// What was not, before.
    pub appeared: Vec<String>,
    /// What is not any more.
    pub gone: Vec<String>,
}

/// Events were not heard: read the state anew.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reset {
    /// `start`, `gap`, `slow`.
    pub why: String,
    /// In words.
    pub detail: String,
}

impl Reset {
    pub(super) fn start() -> Self {
        Self { why: "start".into(), detail: "from here on".into() }
    }

    pub(super) fn gap(asked: u64, oldest: u64, newest: u64) -> Self {
        Self {
            why: "gap".into(),
            detail: format!("events after {asked} were asked for; {oldest} to {newest} are kept"),
        }
    }

    pub(super) fn slow(place: u64, oldest: u64, newest: u64) -> Self {
        Self {
            why: "slow".into(),
            detail: format!(
                "events were read up to {place}, and only {oldest} to {newest} are kept: connect again"
            ),
        }
    }
}

#[derive(Serialize)]
struct Decided<'v> {
    resource: &'v str,
    #[serde(flatten)]
    decision: &'v DecisionView,
}

pub(super) fn json(data: &impl Serialize) -> String {
    // Numbers, texts and lists only: there is nothing in them that JSON lacks.
    serde_json::to_string(data).unwrap_or_else(|_| "null".into())
}

/// What differs, as events.
pub(super) fn changes(old: &ResourceView, new: &ResourceView, at: Timestamp) -> Vec<(Kind, String)> {
    let mut events = Vec::new();
    let without_decision = |view: &ResourceView| ResourceView { decision: None, ..view.clone() };
    let bare = without_decision(new);
    if bare != without_decision(old) {
        let mut value = serde_json::to_value(&bare).unwrap_or_default();
        if let Some(fields) = value.as_object_mut() {
            fields.remove("decision");
        }
        events.push((Kind::Resource, value.to_string()));
    }
    if let Some(decision) = new.decision.as_ref().filter(|_| new.decision != old.decision) {
        events.push((Kind::Decision, json(&Decided { resource: &new.name, decision })));
    }
    if new.problems != old.problems {
        let not_in = |some: &[String], others: &[String]| {
            some.iter().filter(|one| !others.contains(one)).cloned().collect()
        };
        let event = ProblemEvent {
            resource: new.name.clone(),
            at_ms: at.0,
            problems: new.problems.clone(),
            appeared: not_in(&new.problems, &old.problems),
            gone: not_in(&old.problems, &new.problems),
        };
        events.push((Kind::Problem, json(&event)));
    }
    events
}
