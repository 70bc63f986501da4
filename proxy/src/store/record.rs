//! The machine's state as JSON text in the journal. A version number leads; an unknown one is refused.

use std::time::Duration;

use migration::cutover::{Limits, Phase, Run, Soak, State, Trigger, invariants};
use migration::units::{Generation, Position, Timestamp};
use serde::{Deserialize, Serialize};

const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
struct StateRecord {
    version: u32,
    resource: String,
    generation: u64,
    primary: String,
    shadow: String,
    phase: String,
    since_ms: u64,
    run: Option<RunRecord>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    soaking: Option<SoakRecord>,
}

#[derive(Serialize, Deserialize)]
struct SoakRecord {
    run: RunRecord,
    since_ms: u64,
}

#[derive(Serialize, Deserialize)]
struct RunRecord {
    id: String,
    from: String,
    to: String,
    generation: u64,
    /// With `failures` absent: the score asked.
    operator: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    failures: Option<String>,
    started_ms: u64,
    limits: LimitsRecord,
    held_since_ms: Option<u64>,
    fence: Option<u64>,
    guarded: bool,
    reverse_slot: bool,
    caught_up: bool,
    sequenced: bool,
    opened: bool,
    swapped: bool,
    reversed: bool,
    verified: bool,
    aborted: Option<String>,
    lift_fence: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    taken_over: bool,
}

#[derive(Serialize, Deserialize)]
struct LimitsRecord {
    scale_ms: u64,
    arm_ms: u64,
    drain_ms: u64,
    hold_ms: u64,
    watch_ms: u64,
    retire_after_ms: u64,
    require_verified: bool,
}

impl RunRecord {
    fn of(run: &Run) -> Self {
        let ms = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        Self {
            id: run.id.clone(),
            from: run.from.to_string(),
            to: run.to.to_string(),
            generation: run.generation.0,
            operator: match &run.trigger {
                Trigger::Operator(name) => Some(name.clone()),
                Trigger::Score | Trigger::Failures(_) => None,
            },
            failures: match &run.trigger {
                Trigger::Failures(what) => Some(what.clone()),
                Trigger::Score | Trigger::Operator(_) => None,
            },
            started_ms: run.started.0,
            limits: LimitsRecord {
                scale_ms: ms(run.limits.scale),
                arm_ms: ms(run.limits.arm),
                drain_ms: ms(run.limits.drain),
                hold_ms: ms(run.limits.hold),
                watch_ms: ms(run.limits.watch),
                retire_after_ms: ms(run.limits.retire_after),
                require_verified: run.limits.require_verified,
            },
            held_since_ms: run.held_since.map(|at| at.0),
            fence: run.fence.map(|position| position.0),
            guarded: run.guarded,
            reverse_slot: run.reverse_slot,
            caught_up: run.caught_up,
            sequenced: run.sequenced,
            opened: run.opened,
            swapped: run.swapped,
            reversed: run.reversed,
            verified: run.verified,
            aborted: run.aborted.clone(),
            lift_fence: run.lift_fence,
            taken_over: run.taken_over,
        }
    }

    fn run(self) -> Run {
        let ms = Duration::from_millis;
        Run {
            id: self.id,
            from: self.from.as_str().into(),
            to: self.to.as_str().into(),
            generation: Generation(self.generation),
            trigger: match (self.operator, self.failures) {
                (Some(name), _) => Trigger::Operator(name),
                (None, Some(what)) => Trigger::Failures(what),
                (None, None) => Trigger::Score,
            },
            started: Timestamp(self.started_ms),
            limits: Limits {
                scale: ms(self.limits.scale_ms),
                arm: ms(self.limits.arm_ms),
                drain: ms(self.limits.drain_ms),
                hold: ms(self.limits.hold_ms),
                watch: ms(self.limits.watch_ms),
                retire_after: ms(self.limits.retire_after_ms),
                require_verified: self.limits.require_verified,
            },
            held_since: self.held_since_ms.map(Timestamp),
            fence: self.fence.map(Position),
            guarded: self.guarded,
            reverse_slot: self.reverse_slot,
            caught_up: self.caught_up,
            sequenced: self.sequenced,
            opened: self.opened,
            swapped: self.swapped,
            reversed: self.reversed,
            verified: self.verified,
            aborted: self.aborted,
            lift_fence: self.lift_fence,
            taken_over: self.taken_over,
        }
    }
}

/// The state as journal text.
pub(super) fn encode(state: &State) -> Result<String, serde_json::Error> {
    serde_json::to_string(&StateRecord {
        version: VERSION,
        resource: state.resource.clone(),
        generation: state.generation.0,
        primary: state.primary.to_string(),
        shadow: state.shadow.to_string(),
        phase: state.phase.name().to_owned(),
        since_ms: state.since.0,
        run: state.run.as_ref().map(RunRecord::of),
        soaking: state
            .soaking
            .as_ref()
            .map(|soak| SoakRecord { run: RunRecord::of(&soak.run), since_ms: soak.since.0 }),
    })
}

/// The state of a journal text, with its invariants checked.
pub(super) fn decode(text: &str) -> Result<State, String> {
    let record: StateRecord = serde_json::from_str(text).map_err(|error| error.to_string())?;
    if record.version != VERSION {
        return Err(format!("record version {} is not {VERSION}: written by another godwit", record.version));
    }
    let phase = Phase::from_name(&record.phase).ok_or_else(|| format!("unknown phase {:?}", record.phase))?;
    let state = State {
        resource: record.resource,
        generation: Generation(record.generation),
        primary: record.primary.as_str().into(),
        shadow: record.shadow.as_str().into(),
        phase,
        since: Timestamp(record.since_ms),
        run: record.run.map(RunRecord::run),
        soaking: record.soaking.map(|soak| Soak { run: soak.run.run(), since: Timestamp(soak.since_ms) }),
    };
    invariants::check(&state)?;
    Ok(state)
}
