//! `step`: the only place that changes a [`State`].

use std::time::Duration;

use super::effect::{Capacity, Effect, Outcome};
use super::event::Event;
use super::invariants;
use super::state::{Limits, Phase, Run, Soak, State, Trigger};
use crate::units::{Timestamp, Zone};

/// Why an event changes nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Another migration is under way.
    #[error("migration {id} is under way ({phase})", phase = phase.name())]
    Running {
        /// Its id.
        id: String,
        /// Where it stands.
        phase: Phase,
    },
    /// There is no shadow that could take over.
    #[error("the shadow is not ready: the resource is {phase}", phase = phase.name())]
    NoShadow {
        /// Where the resource stands.
        phase: Phase,
    },
    /// The target is the primary already.
    #[error("zone {0} is the primary already")]
    AlreadyThere(Zone),
    /// The target has no shadow.
    #[error("zone {to} has no shadow; the shadow is in {shadow}")]
    WrongTarget {
        /// What was asked.
        to: Zone,
        /// What there is.
        shadow: Zone,
    },
    /// There is nothing to abort.
    #[error("no migration is under way")]
    NothingToAbort,
    /// The migration is committed: only forward.
    #[error("migration {id} is past its point of no return; migrate back instead")]
    PastCommit {
        /// Its id.
        id: String,
    },
    /// No old primary soaks.
    #[error("no old primary soaks: the resource is {phase}", phase = phase.name())]
    NotSoaking {
        /// Where the resource stands.
        phase: Phase,
    },
    /// A fact that is late, or is not awaited here.
    #[error("{event} is not awaited in phase {phase}", phase = phase.name())]
    NotAwaited {
        /// The phase.
        phase: Phase,
        /// The event.
        event: &'static str,
    },
}

/// Takes one event. The new state must be durable before any of the effects runs.
///
/// # Errors
/// [`Refused`]: the state stays as it is and nothing is done.
pub fn step(state: &State, event: Event, now: Timestamp) -> Result<(State, Vec<Effect>), Refused> {
    let name = event.name();
    let not_awaited = || Refused::NotAwaited { phase: state.phase, event: name };
    let next = match event {
        Event::Tick => Some(tick(state, now)),
        Event::Restarted => Some(restarted(state, now)),
        Event::ShadowEnabled => {
            (state.phase == Phase::Idle).then(|| enter(state.clone(), Phase::Preparing, now))
        }
        Event::ShadowDisabled => shadow_disabled(state, now)?,
        Event::StreamUp if state.phase == Phase::Preparing => {
            Some(enter(state.clone(), Phase::Shadowing, now))
        }
        Event::MigrateRequested { id, to, trigger, limits } => {
            Some(migrate_requested(state, id, to, trigger, limits, now)?)
        }
        Event::TakeOverRequested { id, trigger, limits } => Some(take_over(state, id, trigger, limits, now)?),
        Event::AbortRequested { by } => Some(abort_requested(state, &by, now)?),
        Event::SoakFor { time } => Some(soak_for(state, time, now)?),
        Event::HoldNearlyFull { why } => (state.phase.may_abort() && state.phase.holds())
            .then(|| abort(state, format!("the gate nearly holds all it may: {why}"), now)),
        Event::EffectFailed { effect, why } => effect_failed(state, effect, &why, now),
        Event::ShadowScaled
        | Event::GuardsPassed
        | Event::GuardsFailed { .. }
        | Event::ReverseSlotMade
        | Event::GateClosed
        | Event::DrainFinished
        | Event::FenceUp { .. }
        | Event::MarkerApplied
        | Event::SequencesSet => before_commit(state, event, now),
        Event::FenceLifted | Event::PoolSwapped | Event::GateOpened if state.phase == Phase::Aborting => {
            undo(state, &event, now)
        }
        Event::FenceLifted
        | Event::PoolSwapped
        | Event::GateOpened
        | Event::StreamUp
        | Event::TakenOver
        | Event::OldStreamGone
        | Event::Compared { .. }
        | Event::OldPrimaryRetired => after_commit(state, &event, now),
    };
    let (after, effects) = next.ok_or_else(not_awaited)?;
    if let Err(broken) = invariants::check_move(state, &after) {
        panic!("cutover invariant broken by {name}: {broken}");
    }
    Ok((after, effects))
}

/// What a state wants done and has not seen done. Entering a state, a restart and a failed effect all ask this.
pub fn outstanding(state: &State) -> Vec<Effect> {
    let stream = || Effect::RunStream {
        generation: state.generation,
        source: state.primary.clone(),
        target: state.shadow.clone(),
    };
    let Some(run) = &state.run else {
        return match state.phase {
            Phase::Preparing => vec![Effect::ProvisionShadow { zone: state.shadow.clone() }, stream()],
            Phase::Shadowing => vec![stream()],
            _ => Vec::new(),
        };
    };
    let reverse_slot = || Effect::MakeReverseSlot { generation: run.generation, zone: run.to.clone() };
    let lift = |zone: &Zone| Effect::LiftFence { zone: zone.clone(), generation: state.generation };
    let wanted: Vec<(bool, Effect)> = match state.phase {
        Phase::Idle | Phase::Preparing | Phase::Shadowing | Phase::Held => Vec::new(),
        Phase::Requested => vec![(true, Effect::Scale { zone: run.to.clone(), capacity: Capacity::Full })],
        Phase::Warm => vec![(!run.reverse_slot, reverse_slot()), (!run.guarded, Effect::CheckGuards)],
        Phase::Armed => vec![(true, Effect::CloseGate)],
        Phase::Drained => {
            vec![(true, Effect::Fence { zone: run.from.clone(), generation: run.generation })]
        }
        Phase::Fenced | Phase::CaughtUp | Phase::Sequenced => vec![
            (!run.caught_up, Effect::AwaitMarker { marker: run.fence.unwrap_or_default() }),
            (!run.sequenced, Effect::SetSequences { zone: run.to.clone() }),
            (!run.reverse_slot, reverse_slot()),
        ],
        Phase::Committed if run.taken_over && !run.sequenced => vec![(
            true,
            Effect::TakeOver { zone: run.to.clone(), lost: run.from.clone(), generation: run.generation },
        )],
        Phase::Committed => vec![
            (!run.opened, lift(&run.to)),
            (!run.swapped, Effect::SwapPool { zone: run.to.clone(), generation: run.generation }),
        ],
        Phase::Swapped => vec![(true, Effect::OpenGate)],
        Phase::Released | Phase::Watching => vec![(true, stream())],
        Phase::Soaking => vec![(true, stream()), (!run.verified, Effect::Compare)],
        Phase::Aborting => {
            let fenced = run.lift_fence && !run.opened;
            vec![(true, stream()), (fenced, lift(&run.from)), (!fenced, Effect::OpenGate)]
        }
    };
    wanted.into_iter().filter_map(|(open, effect)| open.then_some(effect)).collect()
}

type Next = Option<(State, Vec<Effect>)>;

fn enter(mut state: State, phase: Phase, now: Timestamp) -> (State, Vec<Effect>) {
    state.phase = phase;
    state.since = now;
    let effects = outstanding(&state);
    (state, effects)
}

fn edit(state: &State, change: impl FnOnce(&mut Run)) -> State {
    let mut state = state.clone();
    if let Some(run) = &mut state.run {
        change(run);
    }
    state
}

fn migrate_requested(
    state: &State,
    id: String,
    to: Zone,
    trigger: Trigger,
    limits: Limits,
    now: Timestamp,
) -> Result<(State, Vec<Effect>), Refused> {
    let soaking = match (&state.run, state.phase) {
        (Some(run), Phase::Soaking) => Some(Soak { run: run.clone(), since: state.since }),
        (Some(run), phase) => return Err(Refused::Running { id: run.id.clone(), phase }),
        (None, Phase::Shadowing) => None,
        (None, phase) => return Err(Refused::NoShadow { phase }),
    };
    if to == state.primary {
        return Err(Refused::AlreadyThere(to));
    }
    if to != state.shadow {
        return Err(Refused::WrongTarget { to, shadow: state.shadow.clone() });
    }
    let mut state = state.clone();
    state.run = Some(Run::begun(&state, id, trigger, limits, now));
    state.soaking = soaking;
    Ok(enter(state, Phase::Requested, now))
}

/// The primary is lost: committed at once, without it. Whatever was under way ends with that, but what can still be undone, which is
/// undone first: it holds clients for a moment only.
fn take_over(
    state: &State,
    id: String,
    trigger: Trigger,
    limits: Limits,
    now: Timestamp,
) -> Result<(State, Vec<Effect>), Refused> {
    let ended = match (&state.run, state.phase) {
        (None, Phase::Shadowing) => None,
        (None, phase) => return Err(Refused::NoShadow { phase }),
        (Some(run), Phase::Aborting) => {
            Some((run, Outcome::Aborted(run.aborted.clone().unwrap_or_default())))
        }
        (Some(run), phase) if phase.past_commit() && !run.taken_over => Some((run, Outcome::Superseded)),
        (Some(run), phase) => return Err(Refused::Running { id: run.id.clone(), phase }),
    };
    let close = ended.map(|(run, outcome)| close(run, outcome));
    let mut next = state.clone();
    let run = Run { held_since: Some(now), taken_over: true, ..Run::begun(state, id, trigger, limits, now) };
    next.run = Some(run);
    let (next, mut effects) = commit(next, now);
    effects.splice(0..0, close);
    Ok((next, effects))
}

fn shadow_disabled(state: &State, now: Timestamp) -> Result<Next, Refused> {
    match (&state.run, state.phase) {
        (Some(run), phase) => Err(Refused::Running { id: run.id.clone(), phase }),
        (None, Phase::Idle) => Ok(None),
        (None, _) => {
            let (next, _) = enter(state.clone(), Phase::Idle, now);
            let end = Effect::EndStream { generation: state.generation, source: state.primary.clone() };
            Ok(Some((next, vec![end])))
        }
    }
}

fn abort_requested(state: &State, by: &str, now: Timestamp) -> Result<(State, Vec<Effect>), Refused> {
    match &state.run {
        None => Err(Refused::NothingToAbort),
        Some(run) if state.phase.past_commit() => Err(Refused::PastCommit { id: run.id.clone() }),
        Some(run) if state.phase == Phase::Aborting => {
            Err(Refused::Running { id: run.id.clone(), phase: Phase::Aborting })
        }
        Some(_) => Ok(abort(state, format!("asked by {by}"), now)),
    }
}

fn soak_for(state: &State, time: Duration, now: Timestamp) -> Result<(State, Vec<Effect>), Refused> {
    if state.phase != Phase::Soaking {
        return Err(Refused::NotSoaking { phase: state.phase });
    }
    let next = edit(state, |run| run.limits.retire_after = time);
    let effects = due(&next, now).into_iter().collect();
    Ok((next, effects))
}

fn abort(state: &State, why: String, now: Timestamp) -> (State, Vec<Effect>) {
    // Drained is journaled before the fence begins: from there on a fence may stand.
    let fenced = state.phase >= Phase::Drained;
    let next = edit(state, |run| {
        run.aborted = Some(why);
        run.lift_fence = fenced;
        run.opened = false;
    });
    enter(next, Phase::Aborting, now)
}

fn before_commit(state: &State, event: Event, now: Timestamp) -> Next {
    let run = state.run.as_ref()?;
    let hold_began = |state: State| edit(&state, |run| run.held_since = Some(now));
    match (state.phase, event) {
        (Phase::Requested, Event::ShadowScaled) => Some(enter(state.clone(), Phase::Warm, now)),
        (Phase::Warm, Event::GuardsFailed { why }) => {
            Some(abort(state, format!("a guard failed: {why}"), now))
        }
        (Phase::Warm, Event::GuardsPassed) if !run.guarded => {
            Some(arm_when_ready(edit(state, |run| run.guarded = true), hold_began, now))
        }
        (Phase::Warm, Event::ReverseSlotMade) if !run.reverse_slot => {
            Some(arm_when_ready(edit(state, |run| run.reverse_slot = true), hold_began, now))
        }
        (Phase::Armed, Event::GateClosed) => Some(enter(state.clone(), Phase::Held, now)),
        (Phase::Held, Event::DrainFinished) => Some(enter(state.clone(), Phase::Drained, now)),
        (Phase::Drained, Event::FenceUp { marker }) => {
            // The slot was made before the hold; it is confirmed again while the marker travels.
            let fenced = edit(state, |run| {
                run.fence = Some(marker);
                run.reverse_slot = false;
            });
            Some(enter(fenced, Phase::Fenced, now))
        }
        (Phase::Fenced, Event::MarkerApplied) => Some(settle(edit(state, |run| run.caught_up = true), now)),
        (Phase::Fenced | Phase::CaughtUp, Event::SequencesSet) if !run.sequenced => {
            Some(settle(edit(state, |run| run.sequenced = true), now))
        }
        (Phase::Fenced | Phase::CaughtUp | Phase::Sequenced, Event::ReverseSlotMade) if !run.reverse_slot => {
            Some(settle(edit(state, |run| run.reverse_slot = true), now))
        }
        _ => None,
    }
}

fn arm_when_ready(
    state: State,
    hold_began: impl FnOnce(State) -> State,
    now: Timestamp,
) -> (State, Vec<Effect>) {
    let ready = state.run.as_ref().is_some_and(|run| run.guarded && run.reverse_slot);
    if ready { enter(hold_began(state), Phase::Armed, now) } else { (state, Vec::new()) }
}

/// From here on the run's target is the primary, and no old one soaks any more.
fn commit(mut state: State, now: Timestamp) -> (State, Vec<Effect>) {
    if let Some(run) = &state.run {
        state.generation = run.generation;
        (state.primary, state.shadow) = (run.to.clone(), run.from.clone());
    }
    let superseded = state.soaking.take().map(|soak| close(&soak.run, Outcome::Superseded));
    let (state, mut effects) = enter(state, Phase::Committed, now);
    effects.splice(0..0, superseded);
    (state, effects)
}

fn close(run: &Run, outcome: Outcome) -> Effect {
    Effect::CloseRun { id: run.id.clone(), outcome }
}

/// Goes as far as the facts under the fence allow: to the commit when all three are there.
fn settle(mut state: State, now: Timestamp) -> (State, Vec<Effect>) {
    let Some(run) = &state.run else { return (state, Vec::new()) };
    let reached = match (run.caught_up, run.sequenced, run.reverse_slot) {
        (true, true, true) => Phase::Committed,
        (true, true, false) => Phase::Sequenced,
        (true, false, _) => Phase::CaughtUp,
        (false, ..) => Phase::Fenced,
    };
    if reached == Phase::Committed {
        return commit(state, now);
    }
    if reached != state.phase {
        state.phase = reached;
        state.since = now;
    }
    (state, Vec::new())
}

fn after_commit(state: &State, event: &Event, now: Timestamp) -> Next {
    let run = state.run.as_ref()?;
    let swap_when_ready = |state: State| {
        let ready = state.run.as_ref().is_some_and(|run| run.opened && run.swapped);
        if ready { enter(state, Phase::Swapped, now) } else { (state, Vec::new()) }
    };
    match (state.phase, event) {
        (Phase::Committed, Event::TakenOver) if run.taken_over && !run.sequenced => {
            let next = edit(state, |run| run.sequenced = true);
            let effects = outstanding(&next);
            Some((next, effects))
        }
        (Phase::Committed, Event::FenceLifted) if run.sequenced && !run.opened => {
            Some(swap_when_ready(edit(state, |run| run.opened = true)))
        }
        (Phase::Committed, Event::PoolSwapped) if run.sequenced && !run.swapped => {
            Some(swap_when_ready(edit(state, |run| run.swapped = true)))
        }
        // Nothing follows yet: the old primary, should it come back, has what nobody else has, and is seeded anew when a person says so.
        (Phase::Swapped, Event::GateOpened) if run.taken_over => {
            Some(back_to_shadowing(state.clone(), close(run, Outcome::TakenOver), now))
        }
        (Phase::Swapped, Event::GateOpened) => Some(enter(state.clone(), Phase::Released, now)),
        (Phase::Released, Event::StreamUp) => {
            let mut next = edit(state, |run| run.reversed = true);
            (next.phase, next.since) = (Phase::Watching, now);
            Some((next, Vec::new()))
        }
        (Phase::Watching, Event::OldStreamGone) => Some(enter(state.clone(), Phase::Soaking, now)),
        (Phase::Soaking, Event::Compared { equal: true }) if !run.verified => {
            Some((edit(state, |run| run.verified = true), Vec::new()))
        }
        (Phase::Soaking, Event::Compared { equal: false }) => {
            Some((edit(state, |run| run.verified = false), vec![Effect::Compare]))
        }
        (Phase::Soaking, Event::OldPrimaryRetired) => {
            Some(back_to_shadowing(state.clone(), close(run, Outcome::Retired), now))
        }
        _ => None,
    }
}

fn undo(state: &State, event: &Event, now: Timestamp) -> Next {
    let run = state.run.as_ref()?;
    let fenced = run.lift_fence && !run.opened;
    match event {
        Event::FenceLifted if fenced => {
            let next = edit(state, |run| run.opened = true);
            let effects =
                outstanding(&next).into_iter().filter(|effect| *effect == Effect::OpenGate).collect();
            Some((next, effects))
        }
        Event::GateOpened if !fenced => {
            let why = run.aborted.clone().unwrap_or_default();
            let close = close(run, Outcome::Aborted(why));
            let drop_slot = Effect::DropReverseSlot {
                run: run.id.clone(),
                generation: run.generation,
                zone: run.to.clone(),
            };
            let scale = Effect::Scale { zone: run.to.clone(), capacity: Capacity::Shadow };
            let mut state = state.clone();
            let Some(soak) = state.soaking.take() else {
                let (next, mut effects) = back_to_shadowing(state, close, now);
                effects.extend([drop_slot, scale]);
                return Some((next, effects));
            };
            // The old primary of the move before was not to be scaled down yet.
            state.run = Some(soak.run);
            let (mut next, mut effects) = enter(state, Phase::Soaking, now);
            // Not the same moment: what a driver was asked for in the soak before is done, and is to be asked for anew.
            next.since = soak.since.after(Duration::from_millis(1)).min(now);
            effects.insert(0, close);
            effects.push(drop_slot);
            Some((next, effects))
        }
        _ => None,
    }
}

fn back_to_shadowing(mut state: State, close: Effect, now: Timestamp) -> (State, Vec<Effect>) {
    state.run = None;
    let (state, mut effects) = enter(state, Phase::Shadowing, now);
    effects.insert(0, close);
    (state, effects)
}

fn effect_failed(state: &State, effect: &'static str, why: &str, now: Timestamp) -> Next {
    if state.phase.may_abort() && outstanding_here(state, effect) {
        return Some(abort(state, format!("{effect}: {why}"), now));
    }
    let again: Vec<Effect> =
        wanted_again(state, now).into_iter().filter(|wanted| wanted.name() == effect).collect();
    (!again.is_empty()).then(|| (state.clone(), again))
}

/// A drain that fails is not in `outstanding`: closing the gate is what it belongs to.
fn outstanding_here(state: &State, effect: &str) -> bool {
    (state.phase == Phase::Held && effect == Effect::CloseGate.name())
        || outstanding(state).iter().any(|wanted| wanted.name() == effect)
}

fn wanted_again(state: &State, now: Timestamp) -> Vec<Effect> {
    let mut wanted = outstanding(state);
    wanted.extend(due(state, now));
    wanted
}

/// What the passing of a deadline asks for, after the commit.
fn due(state: &State, now: Timestamp) -> Option<Effect> {
    let run = state.run.as_ref()?;
    if state.deadline().is_none_or(|deadline| now < deadline) {
        return None;
    }
    match state.phase {
        Phase::Watching => {
            let old = crate::units::Generation(state.generation.0 - 1);
            Some(Effect::EndStream { generation: old, source: run.from.clone() })
        }
        Phase::Soaking if run.verified || !run.limits.require_verified => {
            Some(Effect::Scale { zone: run.from.clone(), capacity: Capacity::Shadow })
        }
        _ => None,
    }
}

fn tick(state: &State, now: Timestamp) -> (State, Vec<Effect>) {
    if state.phase.may_abort() && state.deadline().is_some_and(|deadline| now >= deadline) {
        return abort(state, overdue(state, now), now);
    }
    (state.clone(), due(state, now).into_iter().collect())
}

/// What took too long: a phase, or the whole hold, of which the present phase is only the last part.
fn overdue(state: &State, now: Timestamp) -> String {
    let phase = state.phase.name();
    match state.run.as_ref().and_then(|run| Some((run.held_since?, run.limits.hold))) {
        Some((held, limit)) if state.phase > Phase::Held => {
            let (spent, before) = (now.since(held).as_millis(), state.since.since(held).as_millis());
            let limit = limit.as_millis();
            format!(
                "held for {spent} ms, over max_hold of {limit} ms, in phase {phase} ({before} ms of it before that phase)"
            )
        }
        _ => format!("phase {phase} was not over after {} ms", now.since(state.since).as_millis()),
    }
}

fn restarted(state: &State, now: Timestamp) -> (State, Vec<Effect>) {
    if state.phase.may_abort() {
        return abort(state, format!("godwit restarted in phase {}", state.phase.name()), now);
    }
    // A wall clock that went back must not make a deadline an hour longer.
    let mut state = state.clone();
    state.since = state.since.min(now);
    let effects = outstanding(&state);
    (state, effects)
}
