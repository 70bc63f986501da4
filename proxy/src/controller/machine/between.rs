//! Between two steps, which may be minutes apart: who asks is told of now, and a move is judged by now.

use std::time::Duration;

use migration::world::{Freeze, Service};

use super::Machine;
use crate::clock;

/// How often it is looked, where the steps are further apart.
pub(super) const LOOK: Duration = Duration::from_secs(1);

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
    pub(super) fn facts(&self) -> (Option<Result<u64, String>>, Vec<String>, Service) {
        let mut blockers = self.measure.blockers(&self.hands, &self.state);
        // What nobody could account for later is not begun.
        blockers.extend(self.hands.audit.failing().map(|why| format!("the audit cannot be written: {why}")));
        self.verifications.look_after(&self.state.primary.0, &self.state.shadow.0);
        blockers.extend(self.verifications.blockers());
        blockers.extend(self.slots.unread(&self.state.primary.0));
        let service = self.measure.shadow_service(&self.hands, &self.state);
        (self.measure.lag(&self.hands, &self.state), blockers, service)
    }
}
