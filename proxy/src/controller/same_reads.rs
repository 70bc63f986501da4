//! Reads that both zones were asked, and what they will take in each: what tells best how the service would be over there, for it is the
//! service itself that answers.
//!
//! A forecaster for each side, of the p95 of the same reads. Both begin anew when one of the zones becomes another; a series that brings
//! nothing for a while abstains by itself, and what is compared then is the probes.

use predictor::{Ensemble, Inputs, Settings};

/// What the same reads took in both zones, p95.
#[derive(Clone, Debug, PartialEq)]
pub struct Mirrored {
    /// The zone that was asked as well.
    pub shadow: String,
    /// At the primary, milliseconds.
    pub primary_ms: f64,
    /// At the shadow, milliseconds.
    pub shadow_ms: f64,
}

/// The series of one pair of zones.
pub(super) struct SameReads {
    primary: String,
    shadow: String,
    /// At the primary, and at the shadow.
    sides: Box<[Ensemble; 2]>,
}

impl SameReads {
    /// Takes what a step brought. Nothing is kept until there is something, and nothing of other zones.
    pub(super) fn take<'a>(
        slot: &mut Option<Self>,
        settings: &Settings,
        step: u64,
        primary: &str,
        mirrored: Option<&Mirrored>,
        foreseen: impl Fn(&str) -> &'a [Inputs],
    ) {
        let other = |reads: &mut Self| {
            reads.primary != primary || mirrored.is_some_and(|mirrored| mirrored.shadow != reads.shadow)
        };
        drop(slot.take_if(other));
        if let (None, Some(mirrored)) = (&*slot, mirrored) {
            let sides = Box::new([Ensemble::new(settings.clone()), Ensemble::new(settings.clone())]);
            *slot = Some(Self { primary: primary.to_owned(), shadow: mirrored.shadow.clone(), sides });
        }
        let Some(reads) = slot else { return };
        let values = mirrored.map(|mirrored| [mirrored.primary_ms, mirrored.shadow_ms]);
        let zones = [reads.primary.as_str(), reads.shadow.as_str()];
        for (at, (side, zone)) in reads.sides.iter_mut().zip(zones).enumerate() {
            side.observe_knowing(step, values.map(|values| values[at]), foreseen(zone));
        }
    }

    /// The forecasters at the primary and at the shadow, if they are of these zones.
    pub(super) fn between(&self, primary: &str, shadow: &str) -> Option<&[Ensemble; 2]> {
        (self.primary == primary && self.shadow == shadow).then_some(&*self.sides)
    }

    /// Both of them.
    pub(super) fn sides_mut(&mut self) -> &mut [Ensemble; 2] {
        &mut self.sides
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use migration::cutover::{Phase, State};
    use migration::policy::{Policy, PolicyParts};
    use migration::units::{Generation, Timestamp};
    use migration::world::World;

    use super::super::signals::{Measured, Moves, Signals};
    use super::*;

    const STEP: Duration = Duration::from_secs(10);

    fn state(primary: &str, shadow: &str) -> State {
        let mut state = State::first("orders", primary.into(), shadow.into(), Timestamp(0));
        state.phase = Phase::Shadowing;
        state.generation = Generation(1);
        state
    }

    fn measured(mirrored: Option<(&str, f64, f64)>) -> Measured {
        Measured {
            request_p95_ms: Some(30.0),
            probes_ms: [("west".to_owned(), Ok(10.0)), ("east".to_owned(), Ok(4.0))].into(),
            mirrored: mirrored.map(|(shadow, primary_ms, shadow_ms)| Mirrored {
                shadow: shadow.to_owned(),
                primary_ms,
                shadow_ms,
            }),
            ..Measured::default()
        }
    }

    fn world(signals: &mut Signals, state: &State) -> World {
        let policy = Policy::new(PolicyParts::default()).expect("valid");
        signals.world(&policy, state, Moves::default(), Vec::new(), Duration::ZERO, Timestamp(1))
    }

    fn observe(signals: &mut Signals, primary: &str, step: &Measured, moving: bool, times: u64) {
        for _ in 0..times {
            signals.observe(primary, step.clone(), moving, Timestamp(0));
        }
    }

    #[test]
    fn they_take_the_probes_place_when_there_are_enough() {
        let (mut signals, state) = (Signals::new(1, STEP, None), state("west", "east"));
        observe(&mut signals, "west", &measured(None), false, 20);
        let by_probes = world(&mut signals, &state);
        assert_eq!(by_probes.side_by_side().of, "probe");
        assert_eq!(by_probes.expected_from_shadow().map(|(ms, _)| ms.round()), Some(24.0));
        // The probes say that it is quicker there, the reads that it is not.
        observe(&mut signals, "west", &measured(Some(("east", 20.0, 50.0))), false, 20);
        let by_reads = world(&mut signals, &state);
        assert_eq!(by_reads.side_by_side().of, "mirrored reads");
        let (there, by) = by_reads.expected_from_shadow().expect("known");
        assert!(there > 55.0 && by == "mirrored reads", "{there} by {by}");
        assert_eq!(by_reads.baseline_ms.value(), Some(&30.0), "what is usual is less");
    }

    #[test]
    fn a_cutover_a_move_and_another_shadow_begin_anew() {
        let (mut signals, there) = (Signals::new(1, STEP, None), state("west", "east"));
        let reads = measured(Some(("east", 20.0, 50.0)));
        observe(&mut signals, "west", &reads, true, 20);
        assert!(world(&mut signals, &there).shadow_mirrored.value().is_none(), "a cutover disturbs them");
        observe(&mut signals, "west", &reads, false, 20);
        assert!(world(&mut signals, &there).shadow_mirrored.value().is_some());
        assert!(world(&mut signals, &state("west", "north")).shadow_mirrored.value().is_none());
        observe(&mut signals, "east", &measured(None), false, 1);
        assert!(world(&mut signals, &state("east", "west")).primary_mirrored.value().is_none());
        observe(&mut signals, "west", &reads, false, 1);
        assert!(world(&mut signals, &there).shadow_mirrored.value().is_none(), "one value is no forecast");
    }

    #[test]
    fn what_brings_nothing_for_long_is_no_evidence() {
        let (mut signals, state) = (Signals::new(1, STEP, None), state("west", "east"));
        observe(&mut signals, "west", &measured(Some(("east", 20.0, 50.0))), false, 20);
        observe(&mut signals, "west", &measured(None), false, 5);
        assert_eq!(world(&mut signals, &state).side_by_side().of, "mirrored reads");
        observe(&mut signals, "west", &measured(None), false, 60);
        assert_eq!(world(&mut signals, &state).side_by_side().of, "probe");
    }
}
