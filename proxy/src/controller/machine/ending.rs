//! How a migration ends: in the history with the very record that ends it, then for those who listen.

use migration::cutover::{Effect, Outcome, Run, State};
use migration::units::Timestamp;

use super::{Machine, MigrationEvent, StepView, chain, telemetry};
use crate::store::{Ended, RetirementRow};

/// A run that ended, and what becomes of its old primary.
pub(super) struct End {
    run: Run,
    outcome: Outcome,
    gives_back: Result<Option<RetirementRow>, String>,
}

/// How the run ends, if this effect ends it.
pub(super) fn of(effect: &Effect) -> Option<&Outcome> {
    match effect {
        Effect::CloseRun { outcome, .. } => Some(outcome),
        _ => None,
    }
}

impl Machine {
    /// Writes `next` to the journal; with it the end of the present run, if `outcome` says that it ends.
    pub(super) fn write(
        &self,
        next: &State,
        event: &str,
        now: Timestamp,
        outcome: Option<&Outcome>,
    ) -> Result<Option<End>, String> {
        let journal = &self.hands.journal;
        let Some((run, outcome)) = self.state.run.as_ref().zip(outcome) else {
            return journal.append(next, event, now).map(|()| None).map_err(chain);
        };
        let gives_back = self.gives_back(run, outcome);
        let ended = Ended {
            run: run.id.clone(),
            outcome: outcome.clone(),
            retirement: gives_back.clone().unwrap_or_default(),
        };
        journal.append_end(next, event, now, &ended).map_err(chain)?;
        Ok(Some(End { run: run.clone(), outcome: outcome.clone(), gives_back }))
    }

    /// Tells the end, which is written.
    pub(super) fn end(&mut self, end: End, left: StepView, now: Timestamp) {
        telemetry::migration_ended(&self.state.resource, &end.outcome);
        self.retire(end.gives_back);
        let event = MigrationEvent::of(&self.state, &end.run, now, Some(left));
        self.hands.events.migration(&MigrationEvent { outcome: Some(end.outcome.name().into()), ..event });
    }
}
