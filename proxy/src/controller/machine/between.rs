//! Between two steps, which may be minutes apart: who asks is told of now, and a move is judged by now.

use std::time::Duration;

use migration::cutover::State;
use migration::units::Zone;
use migration::world::{Freeze, Service};

use super::Machine;
use crate::causes::chain;
use crate::clock;
use crate::controller::signals::Measured;

/// How often it is looked, where the steps are further apart.
pub(super) const LOOK: Duration = Duration::from_secs(1);

/// Whether requests waited at any moment of a step. Most cutovers begin and end within one.
#[derive(Debug, Default)]
pub(super) struct Held(bool);

impl Held {
    /// What comes next.
    pub(super) fn see(&mut self, state: &State) {
        self.0 |= state.starts_closed();
    }

    /// Of the step that ends now; the next one begins in `state`.
    pub(super) fn ends(&mut self, state: &State) -> bool {
        self.see(state);
        std::mem::replace(&mut self.0, state.starts_closed())
    }
}

impl Machine {
    /// The view is of now; under a hold only what happens counts.
    pub(super) fn look(&mut self) {
        if !self.state.phase.holds() {
            self.judge_anew();
            self.publish();
        }
    }

    /// Decides anew where the phase, the lag, what is frozen or what stands in the way is not what the last decision was made of. Only a step
    /// moves.
    pub(super) fn judge_anew(&mut self) {
        let (lag, blockers, service) = self.facts();
        let changed = self.signals.correct(lag, blockers, service, &self.hands.policy());
        let judged = (self.state.phase, self.frozen());
        if self.decision.is_some() && (changed || self.judged != judged) {
            self.decide();
        }
    }

    /// What is frozen now.
    pub(super) fn frozen(&self) -> Vec<Freeze> {
        self.freezes.at(&self.state.resource, &self.hands.settings().freeze, clock::now())
    }

    /// Bytes that the shadow is behind, or why that is unknown; everything that stands in the way of a move; and the shadow's service.
    pub(super) fn facts(&mut self) -> (Option<Result<u64, String>>, Vec<String>, Service) {
        let mut blockers = self.measure.blockers(&self.hands, &self.state);
        // What nobody could account for later is not begun.
        blockers.extend(self.hands.audit.failing().map(|why| format!("the audit cannot be written: {why}")));
        self.verifications.look_after(&self.state.primary.0, &self.state.shadow.0);
        blockers.extend(self.verifications.blockers());
        blockers.extend(self.slots.unread(&self.state.primary.0));
        blockers.extend(self.slots.busy().map(str::to_owned));
        let service = self.measure.shadow_service(&self.hands, &self.state);
        (self.measure.lag(&self.hands, &self.state), blockers, service)
    }

    /// A step after a move goes into its ledger entry.
    pub(super) fn measure_worth(&mut self, measured: &Measured, moving: bool) {
        let Some(worth) = self.worth.as_mut().filter(|worth| worth.generation == self.state.generation)
        else {
            return;
        };
        let open = !self.hands.gates_closed();
        let (true, Some(realised_ms)) = (open && !moving, measured.request_p95_ms) else { return };
        let probe = |zone: &Zone| measured.probes_ms.get(&*zone.0).and_then(|probe| probe.clone().ok());
        let difference_ms =
            probe(&self.state.shadow).zip(probe(&self.state.primary)).map(|(old, new)| old - new);
        if let Err(error) = worth.measure(&self.hands.journal, realised_ms, difference_ms, clock::now()) {
            tracing::warn!(error = chain(error), "the ledger cannot be written");
        }
    }
}

#[cfg(test)]
mod tests {
    use migration::cutover::Phase;
    use migration::units::Timestamp;

    use super::*;

    #[test]
    fn a_step_in_which_a_whole_cutover_lies_is_one_of_a_cutover() {
        let mut held = Held::default();
        let of = |phase| State { phase, ..State::first("orders", "a".into(), "b".into(), Timestamp(1)) };
        held.see(&of(Phase::Armed));
        assert!(!held.ends(&of(Phase::Armed)), "nobody waits yet");
        for phase in [Phase::Held, Phase::Committed, Phase::Swapped, Phase::Released, Phase::Watching] {
            held.see(&of(phase));
        }
        assert!(held.ends(&of(Phase::Watching)));
        assert!(!held.ends(&of(Phase::Watching)), "the next one is as any other");
        // One that begins under a hold is of it whenever that ends.
        assert!(held.ends(&of(Phase::Held)));
        held.see(&of(Phase::Released));
        assert!(held.ends(&of(Phase::Released)));
    }
}
