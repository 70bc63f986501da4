//! The whole machine: every phase × event as a snapshot, and random walks under the invariants.

use std::fmt::Write as _;
use std::time::Duration;

use proptest::prelude::*;

use super::effect::{Capacity, Effect, Outcome};
use super::event::Event;
use super::state::{Limits, Phase, Run, State, Trigger};
use super::step::step;
use crate::units::{Position, Timestamp, Zone};

const START: Timestamp = Timestamp(1_000_000);

fn limits() -> Limits {
    Limits {
        scale: Duration::from_secs(60),
        arm: Duration::from_secs(30),
        drain: Duration::from_secs(5),
        hold: Duration::from_millis(500),
        watch: Duration::from_secs(1),
        retire_after: Duration::from_secs(60),
        require_verified: true,
    }
}

fn migrate(id: &str, to: &str) -> Event {
    Event::MigrateRequested { id: id.into(), to: to.into(), trigger: Trigger::Score, limits: limits() }
}

fn take_over(id: &str) -> Event {
    Event::TakeOverRequested { id: id.into(), trigger: Trigger::Operator("ann".into()), limits: limits() }
}

fn every_event() -> Vec<Event> {
    vec![
        Event::ShadowEnabled,
        Event::ShadowDisabled,
        Event::StreamUp,
        migrate("m2", "b"),
        migrate("m2", "a"),
        migrate("m2", "c"),
        take_over("m2"),
        Event::TakenOver,
        Event::ShadowScaled,
        Event::GuardsPassed,
        Event::GuardsFailed { why: "lag".into() },
        Event::ReverseSlotMade,
        Event::GateClosed,
        Event::DrainFinished,
        Event::HoldNearlyFull { why: "70%".into() },
        Event::FenceUp { marker: Position(42) },
        Event::MarkerApplied,
        Event::SequencesSet,
        Event::FenceLifted,
        Event::PoolSwapped,
        Event::GateOpened,
        Event::OldStreamGone,
        Event::Compared { equal: true },
        Event::Compared { equal: false },
        Event::SoakFor { time: Duration::ZERO },
        Event::OldPrimaryRetired,
        Event::EffectFailed { effect: "fence", why: "lock timeout".into() },
        Event::EffectFailed { effect: "lift_fence", why: "gone".into() },
        Event::AbortRequested { by: "ann".into() },
        Event::Tick,
        Event::Restarted,
    ]
}

/// What follows on the request for a move: the fence is up with the sixth, and it is committed with the last.
fn to_the_commit() -> [Event; 9] {
    [
        Event::ShadowScaled,
        Event::ReverseSlotMade,
        Event::GuardsPassed,
        Event::GateClosed,
        Event::DrainFinished,
        Event::FenceUp { marker: Position(7) },
        Event::MarkerApplied,
        Event::SequencesSet,
        Event::ReverseSlotMade,
    ]
}

/// The straight road, one event after the other; the state after each.
fn road() -> Vec<State> {
    let first = State::first("orders", "a".into(), "b".into(), START);
    let begin = [Event::ShadowEnabled, Event::StreamUp, migrate("m1", "b")];
    let end = [
        Event::FenceLifted,
        Event::PoolSwapped,
        Event::GateOpened,
        Event::StreamUp,
        Event::OldStreamGone,
        Event::Compared { equal: true },
    ];
    let mut states = vec![first];
    for event in begin.into_iter().chain(to_the_commit()).chain(end) {
        let (next, _) = step(states.last().expect("not empty"), event, START).expect("the straight road");
        states.push(next);
    }
    states
}

fn representatives() -> Vec<State> {
    let road = road();
    let mut states: Vec<State> = Phase::ALL
        .into_iter()
        .filter_map(|phase| road.iter().find(|state| state.phase == phase).cloned())
        .collect();
    let abort_from = |phase| {
        let state = road.iter().find(|state| state.phase == phase).expect("on the road");
        step(state, Event::AbortRequested { by: "ann".into() }, START).expect("may abort").0
    };
    states.push(abort_from(Phase::Warm));
    states.push(abort_from(Phase::Fenced));
    states.push(way_back(&[Event::ShadowScaled, Event::GuardsFailed { why: "lag".into() }]).0);
    let shadowing = road.iter().find(|state| state.phase == Phase::Shadowing).expect("on the road");
    states.extend(taken_over(shadowing));
    states
}

/// Where the old primary soaks, the way back is asked for, and then these events come: the state, and all effects on the way.
fn way_back(events: &[Event]) -> (State, Vec<Effect>) {
    let soaking = road().into_iter().find(|state| state.phase == Phase::Soaking).expect("on the road");
    let mut all = (soaking, Vec::new());
    for event in std::iter::once(&migrate("m2", "a")).chain(events) {
        let now = START.after(Duration::from_millis(400));
        let (next, effects) = step(&all.0, event.clone(), now).expect("the road back");
        all.0 = next;
        all.1.extend(effects);
    }
    all
}

/// From there on the road of a shadow that takes over: the state after each event.
fn taken_over(from: &State) -> Vec<State> {
    let mut states: Vec<State> = Vec::new();
    let events = [take_over("m9"), Event::TakenOver, Event::PoolSwapped, Event::FenceLifted];
    for event in events {
        let (next, _) = step(states.last().unwrap_or(from), event, START).expect("the road of a loss");
        states.push(next);
    }
    states
}

fn describe(result: &Result<(State, Vec<Effect>), super::step::Refused>) -> String {
    match result {
        Ok((after, effects)) => {
            let names: Vec<&str> = effects.iter().map(Effect::name).collect();
            format!("{} [{}]", after.phase.name(), names.join(", "))
        }
        Err(refused) => format!("refused: {refused}"),
    }
}

#[test]
fn every_phase_is_on_the_road_or_its_abort() {
    let states = representatives();
    for phase in Phase::ALL {
        assert!(states.iter().any(|state| state.phase == phase), "no example of {}", phase.name());
    }
}

#[test]
fn every_state_and_event() {
    let mut table = String::new();
    for state in representatives() {
        let run = |is: fn(&Run) -> bool| state.run.as_ref().is_some_and(is);
        let more = match (run(|run| run.lift_fence), run(|run| run.taken_over), run(|run| run.sequenced)) {
            _ if state.soaking.is_some() => " (a way back)",
            (true, ..) => " (fenced)",
            (_, true, false) => " (taken over, the old stream not ended)",
            (_, true, true) => " (taken over)",
            _ => "",
        };
        let _ = writeln!(table, "{}{more}", state.phase.name());
        for event in every_event() {
            let mut name = event.name().to_owned();
            match &event {
                Event::MigrateRequested { to, .. } => name = format!("{name} to {to}"),
                Event::EffectFailed { effect, .. } => name = format!("{name} {effect}"),
                Event::Compared { equal } => name = format!("{name} {equal}"),
                _ => {}
            }
            let _ = writeln!(table, "  {name:<26} {}", describe(&step(&state, event, START)));
        }
        let late = START.after(Duration::from_secs(3600));
        let _ =
            writeln!(table, "  {:<26} {}", "Tick, an hour late", describe(&step(&state, Event::Tick, late)));
    }
    insta::assert_snapshot!(table);
}

#[test]
fn the_road_swaps_the_roles_once() {
    let road = road();
    let end = road.last().expect("not empty");
    assert_eq!((end.generation.0, &end.primary, &end.shadow), (2, &Zone::from("b"), &Zone::from("a")));
    let late = START.after(Duration::from_secs(61));
    let (_, effects) = step(end, Event::Tick, late).expect("a tick");
    assert_eq!(effects.iter().map(Effect::name).collect::<Vec<_>>(), ["scale_down"]);
    let (after, effects) = step(end, Event::OldPrimaryRetired, late).expect("retired");
    assert_eq!(after.phase, Phase::Shadowing);
    assert!(after.run.is_none());
    assert!(matches!(effects.first(), Some(Effect::CloseRun { .. })));
}

#[test]
fn a_shadow_takes_over_from_wherever_nothing_can_be_undone_any_more() {
    for state in representatives() {
        let asked = step(&state, take_over("m9"), START);
        let already = state.run.as_ref().is_some_and(|run| run.taken_over);
        let may = state.phase >= Phase::Shadowing && !state.phase.may_abort() && !already;
        assert_eq!(asked.is_ok(), may, "{}", state.phase.name());
        let Ok((next, effects)) = asked else { continue };
        assert_eq!((&next.primary, &next.shadow), (&state.shadow, &state.primary));
        assert_eq!(next.generation, state.generation.next());
        let names: Vec<&str> = effects.iter().map(Effect::name).collect();
        let runs = state.run.iter().chain(state.soaking.as_ref().map(|soak| &soak.run));
        let closes: Vec<&str> = runs.map(|_| "close_run").chain(["take_over"]).collect();
        assert_eq!(names, closes, "{}", state.phase.name());
        assert!(next.starts_closed(), "nobody is served until it is open");
        let opened = taken_over(&state).pop().expect("not empty");
        let (end, effects) = step(&opened, Event::GateOpened, START).expect("it is over");
        assert_eq!((end.phase, end.run), (Phase::Shadowing, None));
        assert!(matches!(&effects[0], Effect::CloseRun { outcome: Outcome::TakenOver, .. }));
    }
}

#[test]
fn a_soak_that_is_cut_short_ends_once_both_sides_are_equal() {
    let soaking = road().into_iter().find(|state| state.phase == Phase::Soaking).expect("on the road");
    let end = Event::SoakFor { time: Duration::ZERO };
    let (short, effects) = step(&soaking, end.clone(), START).expect("soaks");
    assert_eq!((short.phase, effects), (Phase::Soaking, Vec::new()), "nobody has compared them");
    let (equal, _) = step(&short, Event::Compared { equal: true }, START).expect("awaited");
    let (_, effects) = step(&equal, Event::Tick, START).expect("time passes");
    let retires = |effects: &[Effect]| matches!(effects, [Effect::Scale { capacity: Capacity::Shadow, .. }]);
    assert!(retires(&effects), "{effects:?}");
    // Or at once, where they were found equal before; and longer than it was to.
    let (equal, _) = step(&soaking, Event::Compared { equal: true }, START).expect("awaited");
    assert!(retires(&step(&equal, end, START).expect("soaks").1));
    let (long, _) = step(&equal, Event::SoakFor { time: Duration::from_secs(7200) }, START).expect("soaks");
    let late = START.after(Duration::from_secs(3600));
    assert_eq!(step(&long, Event::Tick, late).expect("time passes").1, Vec::new());
}

/// The runs that these effects close.
fn closed(effects: &[Effect]) -> Vec<(&str, &'static str)> {
    effects.iter().filter_map(Effect::ends).map(|(run, outcome)| (run, outcome.name())).collect()
}

#[test]
fn a_way_back_that_is_undone_leaves_the_old_primary_as_it_soaked() {
    let soaking = road().into_iter().find(|state| state.phase == Phase::Soaking).expect("on the road");
    let refused = [Event::ShadowScaled, Event::GuardsFailed { why: "lag".into() }, Event::GateOpened];
    let undone = [Event::AbortRequested { by: "ann".into() }, Event::FenceLifted, Event::GateOpened];
    let fenced = [&to_the_commit()[..6], &undone].concat();
    for events in [&refused[..], &fenced] {
        let (state, effects) = way_back(events);
        let since = soaking.since.after(Duration::from_millis(1));
        let again = State { since, ..soaking.clone() };
        assert_eq!(state, again, "the same run, for as long, and told from the soak before it");
        assert_eq!(closed(&effects), [("m2", "aborted")]);
        let names: Vec<&str> = effects.iter().map(Effect::name).collect();
        assert!(!names.contains(&"scale_down"), "{names:?}");
        assert!(names.ends_with(&["run_stream", "compare", "drop_reverse_slot"]), "{names:?}");
    }
}

#[test]
fn a_way_back_supersedes_with_its_commit() {
    let there = to_the_commit();
    let (state, effects) = way_back(&there);
    assert_eq!((state.phase, closed(&effects)), (Phase::Committed, vec![("m1", "superseded")]));
    assert_eq!(closed(&way_back(&there[..8]).1), [], "it may still be undone");
}

#[test]
fn an_abort_before_the_fence_touches_no_database() {
    for state in road().into_iter().filter(|state| state.phase.may_abort()) {
        let (undone, effects) =
            step(&state, Event::AbortRequested { by: "ann".into() }, START).expect("may abort");
        let lifts = effects.iter().any(|effect| matches!(effect, Effect::LiftFence { .. }));
        assert_eq!(lifts, state.phase >= Phase::Drained, "in {}", state.phase.name());
        assert_eq!(undone.primary, state.primary);
        assert_eq!(undone.starts_closed(), lifts);
    }
}

/// A hold that waited long for who was inside has little left for the phases after that.
#[test]
fn a_hold_that_is_over_names_the_whole_of_it() {
    let after = |ms| START.after(Duration::from_millis(ms));
    let armed = road().into_iter().find(|state| state.phase == Phase::Armed).expect("on the road");
    let why = |state: &State, at| {
        let (next, _) = step(state, Event::Tick, at).expect("time passes");
        assert_eq!(next.phase, Phase::Aborting);
        next.run.and_then(|run| run.aborted).expect("a reason")
    };
    let (held, _) = step(&armed, Event::GateClosed, after(1)).expect("closed");
    assert_eq!(why(&held, after(501)), "phase held was not over after 500 ms");
    let (drained, _) = step(&held, Event::DrainFinished, after(480)).expect("drained");
    assert_eq!(
        why(&drained, after(528)),
        "held for 528 ms, over max_hold of 500 ms, in phase drained (480 ms of it before that phase)"
    );
}

/// What the outside world looks like if every effect is carried out at once, to check who may write.
#[derive(Default)]
struct Outside {
    fenced: Vec<Zone>,
    gate_closed: bool,
}

fn apply(outside: &mut Outside, effect: &Effect) {
    match effect {
        Effect::Fence { zone, .. } => outside.fenced.push(zone.clone()),
        Effect::LiftFence { zone, .. } => outside.fenced.retain(|fenced| fenced != zone),
        Effect::RunStream { target, .. } if !outside.fenced.contains(target) => {
            outside.fenced.push(target.clone());
        }
        // No client comes to it any more.
        Effect::TakeOver { lost, .. } => {
            outside.gate_closed = true;
            outside.fenced.push(lost.clone());
        }
        Effect::CloseGate => outside.gate_closed = true,
        Effect::OpenGate => outside.gate_closed = false,
        _ => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// Any order of events, with restarts anywhere: `step` checks the invariants itself; here also that never two
    /// databases take writes while clients are let through, and that the one that does is the primary.
    #[test]
    fn random_walks_keep_one_writer(choices in proptest::collection::vec((0_usize..30, 0_u64..400), 1..120)) {
        let mut state = State::first("orders", "a".into(), "b".into(), START);
        let mut outside = Outside::default();
        let mut now = START;
        for (choice, wait) in choices {
            now = now.after(Duration::from_millis(wait));
            let mut event = every_event().swap_remove(choice);
            if let Event::MigrateRequested { to, .. } = &mut event {
                *to = state.shadow.clone();
            }
            if event == Event::Restarted {
                outside.gate_closed = state.starts_closed();
            }
            // A fact may only be reported when its effect could have been carried out.
            if let Ok((after, effects)) = step(&state, event, now) {
                prop_assert!(after.generation >= state.generation);
                for effect in &effects {
                    apply(&mut outside, effect);
                }
                state = after;
            }
            if !outside.gate_closed && state.phase > Phase::Preparing {
                prop_assert!(outside.fenced.contains(&state.shadow), "shadow takes writes in {:?}", state.phase);
                prop_assert!(!outside.fenced.contains(&state.primary), "primary is fenced in {:?}", state.phase);
            }
        }
    }
}
