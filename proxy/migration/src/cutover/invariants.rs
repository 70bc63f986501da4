//! What must hold of every state, and of every move between two: checked by [`super::step()`], by the journal when it
//! reads, and by the model checker.

use super::state::{Phase, Run, Soak, State};

/// What is wrong with `state`, if anything.
pub fn check(state: &State) -> Result<(), String> {
    let broken = |what: &str| Err(format!("{} in phase {}: {what}", state.resource, state.phase.name()));
    if state.primary == state.shadow {
        return broken("primary and shadow are the same zone");
    }
    if let Some(soak) = &state.soaking
        && !may_go_on(soak, state)
    {
        return broken("the soak before does not fit the migration");
    }
    let Some(run) = &state.run else {
        return if state.phase <= Phase::Shadowing { Ok(()) } else { broken("no migration is recorded") };
    };
    if state.phase <= Phase::Shadowing {
        return broken("a migration is recorded although none is under way");
    }
    let committed = state.phase.past_commit();
    let (primary, shadow) = if committed { (&run.to, &run.from) } else { (&run.from, &run.to) };
    if (&state.primary, &state.shadow) != (primary, shadow) {
        return broken("primary and shadow do not fit the migration");
    }
    let expected = if committed { state.generation } else { state.generation.next() };
    if run.generation != expected {
        return broken("the migration's generation does not fit the resource's");
    }
    if state.phase == Phase::Aborting {
        return if run.aborted.is_some() { Ok(()) } else { broken("the reason of the abort is missing") };
    }
    if run.taken_over && !matches!(state.phase, Phase::Committed | Phase::Swapped) {
        return broken("a shadow that takes over is opened, and then nothing is under way");
    }
    match missing_fact(state.phase, run) {
        Some(fact) => broken(&format!("{fact} must hold here")),
        None => Ok(()),
    }
}

/// Whether it is of the move that the migration under way goes back on, and that one may still be undone.
fn may_go_on(Soak { run, .. }: &Soak, state: &State) -> bool {
    (state.phase.may_abort() || state.phase == Phase::Aborting)
        && (&run.to, &run.from, run.generation) == (&state.primary, &state.shadow, state.generation)
        && !run.taken_over
        && missing_fact(Phase::Soaking, run).is_none()
}

/// The first fact that `phase` rests on and `run` lacks.
fn missing_fact(phase: Phase, run: &Run) -> Option<&'static str> {
    // Of a primary that is lost nothing was asked.
    let asked = |holds: bool| holds || run.taken_over;
    let needs = [
        (Phase::Armed, asked(run.guarded), "guards passed"),
        (Phase::Armed, run.held_since.is_some(), "the hold's start"),
        (Phase::Fenced, asked(run.fence.is_some()), "the fence's marker"),
        (Phase::CaughtUp, asked(run.caught_up), "the marker applied"),
        (Phase::Sequenced, asked(run.sequenced), "the sequences set"),
        (Phase::Committed, asked(run.reverse_slot), "the reverse slot"),
        (Phase::Swapped, run.sequenced, "the sequences set"),
        (Phase::Swapped, run.opened, "the new primary open"),
        (Phase::Swapped, run.swapped, "the pool swapped"),
        (Phase::Watching, run.reversed, "the reverse stream"),
    ];
    needs.into_iter().find(|(from, holds, _)| phase >= *from && !holds).map(|(_, _, fact)| fact)
}

/// What is wrong with going from `before` to `after`, if anything.
pub fn check_move(before: &State, after: &State) -> Result<(), String> {
    let broken = |what: &str| {
        Err(format!("{}: {} → {}: {what}", before.resource, before.phase.name(), after.phase.name()))
    };
    check(after)?;
    if before.resource != after.resource {
        return broken("the resource changed");
    }
    if after.generation == before.generation {
        return if after.primary == before.primary {
            Ok(())
        } else {
            broken("the primary changed without a commit")
        };
    }
    let taken_over = after.run.as_ref().is_some_and(|run| run.taken_over);
    // What may still be undone is undone first.
    let from = if taken_over {
        before.phase >= Phase::Shadowing && !before.phase.may_abort()
    } else {
        before.phase.may_abort()
    };
    let commit = from && after.phase == Phase::Committed;
    if commit && after.generation == before.generation.next() && after.primary == before.shadow {
        Ok(())
    } else {
        broken("the generation moves only at a commit or where a shadow takes over, by one")
    }
}
