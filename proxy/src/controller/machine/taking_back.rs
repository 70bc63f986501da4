//! A move after which requests fail is taken back, and then nothing moves until a person has looked.

use migration::aftermath::Answers;
use migration::cutover::{Phase, State, Trigger, step};
use migration::decide::pause_ends;
use migration::policy::Mode;
use migration::units::{Generation, Timestamp, Zone};

use super::Machine;
use crate::causes::chain;
use crate::store::FreezeRow;

/// In whose name the freeze is.
const BY: &str = "godwit";

/// A move that took another one back, or shall.
pub(super) struct TakenBack {
    id: String,
    /// The generation that it makes.
    generation: Generation,
    why: String,
    frozen: bool,
}

impl TakenBack {
    /// Of a process that begins in this state. The freeze follows the commit's record before anything else does: only where that is the last
    /// one it may be missing, and whoever lifted it later has looked.
    pub(super) fn found(state: &State) -> Option<Self> {
        let run = state.run.as_ref().filter(|_| state.phase.past_commit())?;
        let Trigger::Failures(why) = &run.trigger else { return None };
        let (id, generation) = (run.id.clone(), run.generation);
        Some(Self { id, generation, why: why.clone(), frozen: state.phase > Phase::Committed })
    }
}

/// Of a resource whose last move, which led to this state, took the one before back.
pub(crate) fn freeze(state: &State, why: &str, now: Timestamp) -> FreezeRow {
    FreezeRow {
        scope: state.resource.clone(),
        by: BY.into(),
        why: format!("the move to {} was taken back: {why}", state.shadow),
        at: now,
        until: None,
    }
}

/// What a person types for it.
fn command(resource: &str, to: &Zone) -> String {
    format!("godwit migrate {resource} --to {to}")
}

impl Machine {
    /// What was answered in the step that ends `at`, as steps are counted; `moving`: not all of it as the primary would.
    pub(super) fn see_aftermath(&mut self, answers: Answers, moving: bool, at: Timestamp) {
        if !moving {
            self.aftermath.observe(self.state.generation, answers, at);
        }
    }

    /// Stops every move once one was taken back: whatever asked for it would ask again.
    pub(super) fn freeze_after_taking_back(&mut self, now: Timestamp) {
        let Some(taken) = &mut self.taken_back else { return };
        if self.state.generation < taken.generation
            && self.state.run.as_ref().is_none_or(|run| run.id != taken.id)
        {
            // It was given up: the next move of this generation is another one.
            self.taken_back = None;
            return;
        }
        if taken.frozen || taken.generation != self.state.generation {
            return;
        }
        match self.freezes.order(freeze(&self.state, &taken.why, now)) {
            Ok(()) => taken.frozen = true,
            Err(error) => tracing::warn!(error = chain(error), "a freeze cannot be stored"),
        }
    }

    /// Takes the last move back if requests fail since; where that cannot be, it is a problem.
    pub(super) fn take_back(&mut self, now: Timestamp) {
        self.regret = None;
        let policy = self.hands.policy();
        let waits = self.state.run.is_none() || self.state.phase == Phase::Soaking;
        let itself = self.taken_back.as_ref().is_some_and(|taken| taken.generation == self.state.generation);
        let worse = self.aftermath.worse(policy.take_back, self.paced.now());
        let Some(worse) = worse.filter(|_| waits && !itself) else { return };
        let (here, there) = (self.state.primary.clone(), self.state.shadow.clone());
        let why = worse.to_string();
        if policy.mode != Mode::Auto {
            let command = command(&self.state.resource, &there);
            self.regret = Some(format!("{why}: {command} takes it back"));
            return;
        }
        if let Some(ends) = pause_ends(&policy, self.moves.undone).filter(|ends| now < *ends) {
            let seconds = ends.since(now).as_secs();
            self.regret = Some(format!(
                "{why}; that it be taken back to {there} was undone, and is tried again in {seconds} s"
            ));
            return;
        }
        let (id, event) = self.request(there.clone(), Trigger::Failures(why.clone()));
        let moment = self.moment();
        let next = step(&self.state, event.clone(), moment);
        if let Err(denied) = self.may_begin(next) {
            self.regret = Some(format!("{why}; it cannot be taken back to {there}: {denied}"));
            return;
        }
        tracing::warn!(resource = %self.state.resource, from = %here, to = %there, why, "the move is taken back");
        let generation = self.state.generation.next();
        self.taken_back = Some(TakenBack { id: id.clone(), generation, why, frozen: false });
        self.take(event);
        if self.state.run.as_ref().is_some_and(|run| run.id == id) {
            self.note_decision(&id);
        }
    }
}

#[cfg(test)]
mod tests {
    use migration::cutover::{Event, Limits};
    use migration::policy::{Policy, PolicyParts};

    use super::*;

    #[test]
    fn a_process_that_begins_after_the_commit_knows_that_a_move_was_taken_back() {
        let now = Timestamp(1);
        let limits = Limits::of(&Policy::new(PolicyParts::default()).expect("defaults"));
        let requested = |trigger: Trigger| {
            let state = State::first("orders", "a".into(), "b".into(), now);
            let (state, _) = step(&state, Event::ShadowEnabled, now).expect("shadow");
            let (state, _) = step(&state, Event::StreamUp, now).expect("up");
            let event = Event::MigrateRequested { id: "m".into(), to: "b".into(), trigger, limits };
            step(&state, event, now).expect("requested").0
        };
        let mut state = requested(Trigger::Failures("5% failed".into()));
        assert!(TakenBack::found(&state).is_none(), "it may still be undone");
        for (phase, frozen) in [(Phase::Committed, false), (Phase::Swapped, true), (Phase::Soaking, true)] {
            state.phase = phase;
            let found = TakenBack::found(&state).expect("it was taken back");
            assert_eq!((&*found.id, &*found.why, found.generation), ("m", "5% failed", Generation(2)));
            assert_eq!(found.frozen, frozen, "{phase:?}");
        }
        let mut other = requested(Trigger::Score);
        other.phase = Phase::Committed;
        assert!(TakenBack::found(&other).is_none(), "nothing failed");
    }

    #[test]
    fn the_way_back_can_be_typed_as_it_is_said() {
        let command = command("shop", &"west".into());
        assert!(crate::cli::parses(&command), "{command}");
    }
}
