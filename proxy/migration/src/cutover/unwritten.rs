//! What the journal could not take: tried again at each tick, for nobody tells it a second time.

use crate::cutover::{Event, Phase};

/// Facts that wait for the journal, in the order in which they happened.
#[derive(Clone, Debug, Default)]
pub struct Unwritten(Vec<Event>);

impl Unwritten {
    /// The journal could not take `event` in this phase. Where time presses, the run is to be undone instead; what was only asked for is
    /// for who asked to ask again.
    ///
    /// `true` where the gate has to open: no fence can stand yet, and clients must not wait for a disk.
    #[must_use]
    pub fn failed(&mut self, phase: Phase, event: Event) -> bool {
        if (Phase::Armed..=Phase::Sequenced).contains(&phase) {
            let by = format!("godwit, since the journal could not take {}", event.name());
            self.0 = vec![Event::AbortRequested { by }];
        } else if !matches!(
            event,
            Event::MigrateRequested { .. }
                | Event::TakeOverRequested { .. }
                | Event::AbortRequested { .. }
                | Event::SoakFor { .. }
                | Event::Tick
        ) {
            self.0.push(event);
        }
        matches!(phase, Phase::Armed | Phase::Held)
    }

    /// Whether `event` must not be taken any more: the gate was opened again, so what its closing found out is not so, and a fence would
    /// meet clients. The journal may take such an event although it could not take that the run is undone.
    pub fn forbids(&self, event: &Event) -> bool {
        let undone = self.0.iter().any(|event| matches!(event, Event::AbortRequested { .. }));
        undone && matches!(event, Event::GateClosed | Event::DrainFinished)
    }

    /// What is to be tried again.
    pub fn take(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_whose_gate_opened_for_want_of_a_journal_goes_no_further() {
        let mut unwritten = Unwritten::default();
        assert!(!unwritten.forbids(&Event::DrainFinished), "nothing failed");
        assert!(unwritten.failed(Phase::Held, Event::AbortRequested { by: "somebody".into() }));
        assert!(unwritten.forbids(&Event::DrainFinished) && unwritten.forbids(&Event::GateClosed));
        let by = "godwit, since the journal could not take AbortRequested".into();
        assert!(!unwritten.forbids(&Event::AbortRequested { by }));
        assert!(matches!(&unwritten.take()[..], [Event::AbortRequested { .. }]));
        assert!(unwritten.take().is_empty());
    }

    #[test]
    fn a_fence_keeps_the_gate_closed_and_a_fact_is_kept() {
        let mut unwritten = Unwritten::default();
        assert!(!unwritten.failed(Phase::Fenced, Event::MarkerApplied));
        assert!(matches!(&unwritten.take()[..], [Event::AbortRequested { .. }]), "time presses");
        assert!(!unwritten.failed(Phase::Committed, Event::FenceLifted));
        assert!(!unwritten.failed(Phase::Committed, Event::Tick));
        assert!(matches!(&unwritten.take()[..], [Event::FenceLifted]), "only what happened");
    }
}
