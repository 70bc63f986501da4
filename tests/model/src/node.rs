//! A node: the production `step()` in the shell's order. Journal, then effects, then their answers as events, as in
//! `proxy/src/controller/machine.rs`; a gate and a pool as in `proxy/src/fronts`.

use migration::cutover::memory::{Found, Said, contradicts, told};
use migration::cutover::step::{Refused, outstanding};
use migration::cutover::{Capacity, Effect, Event, Limits, Phase, State, Trigger, step};
use migration::policy::{Policy, PolicyParts};
use migration::units::{Generation, Position, Timestamp, Zone};

use crate::bugs::Bug;
use crate::database::{Fence, GENERATIONS};

/// Every moment but the end of a deadline: time is not modelled, a deadline may pass whenever there is one.
const NOW: Timestamp = Timestamp(0);

/// The zone whose database serves in a generation.
pub fn primary_of(generation: u8) -> usize {
    usize::from(generation + 1) % 2
}

/// An effect under way, without what the model does not need.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Job {
    /// The stream of a generation runs and its target is guarded.
    Stream(u8),
    /// The guard of a stream's target alone: what is left of [`Job::Stream`] when its process has died.
    Guard(u8),
    /// A stream ends, its slot goes.
    EndStream(u8),
    /// The shadow gets the primary's capacity.
    ScaleUp,
    /// A zone gets a shadow's capacity.
    ScaleDown(usize),
    /// Every guard, once.
    CheckGuards,
    /// The slot of the way back.
    MakeReverseSlot(u8),
    /// A run's slot goes: generation, run.
    DropReverseSlot(u8, u8),
    /// The gate is closed already; this is its answer.
    GateClosed,
    /// No request is in flight.
    Drain,
    /// For the run that commits this generation.
    Fence(u8),
    /// The shadow applies up to here.
    AwaitMarker(u8),
    /// On the shadow of the run that commits the generation: generation, number.
    SetSequences(u8, u8),
    /// Nothing of the lost primary reaches the shadow any more, which has this generation.
    TakeOver(u8),
    /// The primary of this generation takes writes; whether it took over from a lost one.
    Lift(u8, bool),
    /// The same, to undo the run that would have committed the next.
    Undo(u8),
    /// The front's pool.
    SwapPool(u8),
    /// The gate is open already; this is its answer.
    GateOpened,
    /// Both sides, of this generation's stream.
    Compare(u8),
}

impl Job {
    fn of(effect: &Effect, state: &State, sequence: Option<u8>) -> Option<Self> {
        let number = |generation: &Generation| generation.0 as u8;
        let position = |position: &Position| position.0 as u8;
        Some(match effect {
            Effect::RunStream { generation, .. } => Self::Stream(number(generation)),
            Effect::EndStream { generation, .. } => Self::EndStream(number(generation)),
            Effect::Scale { capacity: Capacity::Full, .. } => Self::ScaleUp,
            Effect::Scale { capacity: Capacity::Shadow, zone } => {
                Self::ScaleDown(usize::from(&*zone.0 == "b"))
            }
            Effect::CheckGuards => Self::CheckGuards,
            Effect::TakeOver { generation, .. } => Self::TakeOver(number(generation)),
            Effect::MakeReverseSlot { generation, .. } => Self::MakeReverseSlot(number(generation)),
            Effect::DropReverseSlot { generation, run, .. } => {
                Self::DropReverseSlot(number(generation), run.parse().unwrap_or(0))
            }
            Effect::Fence { generation, .. } => Self::Fence(number(generation)),
            Effect::AwaitMarker { marker } => Self::AwaitMarker(position(marker)),
            Effect::SetSequences { .. } => {
                Self::SetSequences(state.run.as_ref()?.generation.0 as u8, sequence?)
            }
            Effect::LiftFence { generation, .. } if state.phase == Phase::Aborting => {
                Self::Undo(number(generation))
            }
            Effect::LiftFence { generation, .. } => {
                Self::Lift(number(generation), state.run.as_ref().is_some_and(|run| run.taken_over))
            }
            Effect::SwapPool { generation, .. } => Self::SwapPool(number(generation)),
            Effect::Compare => Self::Compare(state.generation.0 as u8),
            Effect::CloseGate
            | Effect::OpenGate
            | Effect::CloseRun { .. }
            | Effect::ProvisionShadow { .. } => {
                return None;
            }
        })
    }

    /// The name under which its failure is reported.
    pub fn effect(self) -> &'static str {
        match self {
            Self::Stream(_) | Self::Guard(_) => "run_stream",
            Self::EndStream(_) => "end_stream",
            Self::ScaleUp => "scale_up",
            Self::ScaleDown(_) => "scale_down",
            Self::CheckGuards => "check_guards",
            Self::MakeReverseSlot(_) => "make_reverse_slot",
            Self::DropReverseSlot(..) => "drop_reverse_slot",
            Self::GateClosed | Self::Drain => "close_gate",
            Self::Fence(_) => "fence",
            Self::AwaitMarker(_) => "await_marker",
            Self::SetSequences(..) => "set_sequences",
            Self::TakeOver(_) => "take_over",
            Self::Lift(..) | Self::Undo(_) => "lift_fence",
            Self::SwapPool(_) => "swap_pool",
            Self::GateOpened => "open_gate",
            Self::Compare(_) => "compare",
        }
    }

    /// What a database may still do with it after the process that sent it is gone or has given up.
    pub fn left_behind(self) -> Option<Self> {
        match self {
            Self::Stream(generation) => Some(Self::Guard(generation)),
            Self::Guard(_)
            | Self::EndStream(_)
            | Self::MakeReverseSlot(_)
            | Self::DropReverseSlot(..)
            | Self::Fence(_)
            | Self::SetSequences(..)
            | Self::TakeOver(_)
            | Self::Lift(..)
            | Self::Undo(_) => Some(self),
            _ => None,
        }
    }

    /// The databases that it needs.
    pub fn needs(self) -> [bool; 2] {
        let at = |zone: usize| [zone == 0, zone == 1];
        match self {
            Self::Stream(_) | Self::Compare(_) => [true; 2],
            Self::Guard(generation) => at(1 - primary_of(generation)),
            Self::Fence(generation) => at(primary_of(generation - 1)),
            Self::EndStream(generation)
            | Self::MakeReverseSlot(generation)
            | Self::DropReverseSlot(generation, _)
            | Self::SetSequences(generation, _)
            | Self::TakeOver(generation)
            | Self::Lift(generation, _)
            | Self::Undo(generation) => at(primary_of(generation)),
            _ => [false; 2],
        }
    }

    /// It can fail or lose its answer.
    pub fn fails(self) -> bool {
        self.left_behind().is_some() || matches!(self, Self::ScaleUp | Self::AwaitMarker(_))
    }
}

/// How far a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// On its way.
    Sent,
    /// Half done: only where a bug takes two steps for one.
    Half(u8),
    /// Done; its answer is on its way. For a fence: the position behind the marker.
    Done(u8),
}

/// A job of one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Task {
    /// What.
    pub job: Job,
    /// The run for which; 0: the resource itself.
    pub run: u8,
    /// How far.
    pub stage: Stage,
}

fn limits() -> Limits {
    Limits::of(&Policy::new(PolicyParts::default()).expect("the default is valid"))
}

/// What asking a database came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Heard {
    /// It does not answer.
    Nothing,
    /// What it remembers.
    Said {
        /// Newest generation that it heard of.
        epoch: u8,
        /// Its triggers.
        fence: Fence,
        /// It has a finished copy of this generation's primary.
        copy: bool,
        /// It took over from a lost one.
        took_over: bool,
    },
}

/// One node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Node {
    /// The last durable state.
    pub journal: State,
    /// What the process believes; none: it is down.
    pub memory: Option<State>,
    /// Requests wait.
    pub gate_closed: bool,
    /// Generation of the front's pool.
    pub pool: u8,
    /// A request that was let through, and the zone it went to.
    pub in_flight: Option<usize>,
    /// Streams that run in this process, by generation.
    pub streams: [bool; GENERATIONS],
    /// Effects under way, sorted.
    pub tasks: Vec<Task>,
    /// What the last fence told of the old primary's sequence.
    pub sequence: Option<u8>,
    /// Number of its next run.
    pub next_run: u8,
    /// An old primary was retired, or scaled down, before both sides were found equal.
    pub unverified: bool,
    /// Both sides were found equal since the last commit.
    pub verified: bool,
    /// What the databases told it, one after the other, since it has the lease.
    pub seen: [Option<Heard>; 2],
    /// The generation of what the shadow said, from which it goes on: the primary was not heard yet.
    pub unheard: Option<Generation>,
    /// It has led before: its journal knows something.
    pub known: bool,
}

fn run_of(state: &State) -> u8 {
    state.run.as_ref().and_then(|run| run.id.parse().ok()).unwrap_or(0)
}

/// Two states that differ only in moments and in words are one.
fn timeless(mut state: State) -> State {
    state.since = NOW;
    let soaking = state.soaking.as_mut().map(|soak| {
        soak.since = NOW;
        &mut soak.run
    });
    for run in state.run.iter_mut().chain(soaking) {
        run.started = NOW;
        run.held_since = run.held_since.map(|_| NOW);
        run.aborted = run.aborted.as_ref().map(|_| String::new());
    }
    state
}

impl Heard {
    fn said(self, zone: &str) -> Option<Said> {
        let Self::Said { epoch, fence, copy, took_over } = self else { return None };
        let run = match fence {
            Fence::Closed { run, .. } => Some(run.to_string()),
            _ => None,
        };
        let (zone, generation) = (Zone::from(zone), Generation(u64::from(epoch)));
        Some(Said { zone, generation, fenced: fence != Fence::Open, run, copy, took_over })
    }
}

/// What those of two that answer say.
pub fn said([a, b]: [Heard; 2]) -> Vec<Said> {
    [("a", a), ("b", b)].into_iter().filter_map(|(at, one)| one.said(at)).collect()
}

impl Node {
    /// Serves from zone `a` in generation 1, with a shadow in `b`; its runs are numbered from `first_run`.
    pub fn new(first_run: u8) -> Self {
        let mut state = State::first("r", Zone::from("a"), Zone::from("b"), NOW);
        for event in [Event::ShadowEnabled, Event::StreamUp] {
            state = step(&state, event, NOW).expect("the road to a shadow").0;
        }
        let mut streams = [false; GENERATIONS];
        streams[1] = true;
        Self {
            journal: state.clone(),
            memory: Some(state),
            gate_closed: false,
            pool: 1,
            in_flight: None,
            streams,
            tasks: Vec::new(),
            sequence: None,
            next_run: first_run,
            unverified: false,
            verified: false,
            seen: [None; 2],
            unheard: None,
            known: true,
        }
    }

    /// Knows nothing, and is down; its runs are numbered from `first_run`.
    pub fn standing_by(first_run: u8) -> Self {
        let mut node = Self::new(first_run);
        node.crash(&mut Vec::new());
        node.known = false;
        node
    }

    /// Its journal, if it has led before.
    pub fn known(&self) -> Option<&State> {
        self.known.then_some(&self.journal)
    }

    /// What follows from what both databases told, and from the journal; none: it has not asked both.
    pub fn told(&mut self, bug: Option<Bug>) -> Option<Result<Option<Found>, String>> {
        let [Some(a), Some(b)] = self.seen else { return None };
        self.seen = [None; 2];
        let alone = a == Heard::Nothing || b == Heard::Nothing;
        let mut said = said([a, b]);
        for one in &mut said {
            one.copy &= alone;
        }
        if bug == Some(Bug::OldJournalBelieved) && self.known {
            return Some(Ok(None));
        }
        Some(told(&Zone::from("a"), self.known(), true, &said))
    }

    /// Its primary answers at last: whether that one contradicts what the shadow said. Not where a run has begun since.
    pub fn hears(&mut self, heard: Heard) -> bool {
        let same = self.unheard.take() == Some(self.journal.generation) && self.journal.run.is_none();
        let said = heard.said(&self.journal.primary.0);
        same && said.is_some_and(|said| contradicts(&self.journal, &said).is_some())
    }

    /// Goes on from what a shadow alone told.
    pub fn follows(
        &mut self,
        shadow: &Zone,
        generation: Generation,
        bug: Option<Bug>,
        left: &mut Vec<(Job, u8)>,
    ) {
        let primary = Zone::from(if &*shadow.0 == "a" { "b" } else { "a" });
        let mut state = State::first("r", primary, shadow.clone(), NOW);
        (state.generation, state.phase) = (generation, Phase::Shadowing);
        self.journal = timeless(state);
        self.known = true;
        self.restart(bug, left);
        self.unheard = Some(generation);
    }

    /// Goes on from what the databases told: a run is to be undone.
    pub fn goes_on(
        &mut self,
        primary: &Zone,
        generation: Generation,
        run: Option<&str>,
        bug: Option<Bug>,
        left: &mut Vec<(Job, u8)>,
    ) {
        let shadow = Zone::from(if &*primary.0 == "a" { "b" } else { "a" });
        let mut state = State::first("r", primary.clone(), shadow, NOW);
        state.generation = generation;
        match run {
            Some(run) => {
                let policy = Policy::new(PolicyParts::default()).expect("the default is valid");
                state = state.undoing(run, Limits::of(&policy), "", NOW);
            }
            // The road to a shadow is not of interest here.
            None => {
                state = step(&state, Event::ShadowEnabled, NOW).expect("idle").0;
            }
        }
        self.journal = timeless(state);
        self.known = true;
        self.restart(bug, left);
    }

    /// The run under way; 0: none.
    pub fn run(&self) -> u8 {
        self.memory.as_ref().map_or(0, run_of)
    }

    /// A takeover is under way, and has not cut off yet what was let through before.
    pub fn takes_over(&self) -> bool {
        let run = self.memory.as_ref().and_then(|state| state.run.as_ref());
        run.is_some_and(|run| run.taken_over && !run.sequenced)
    }

    /// A migration to the shadow is asked for.
    pub fn migrate(&mut self, bug: Option<Bug>, left: &mut Vec<(Job, u8)>) -> bool {
        let Some(state) = &self.memory else { return false };
        let event = Event::MigrateRequested {
            id: self.next_run.to_string(),
            to: state.shadow.clone(),
            trigger: Trigger::Score,
            limits: limits(),
        };
        self.begins(event, bug, left)
    }

    /// An operator says that the primary is lost.
    pub fn take_over(&mut self, bug: Option<Bug>, left: &mut Vec<(Job, u8)>) -> bool {
        let event = Event::TakeOverRequested {
            id: self.next_run.to_string(),
            trigger: Trigger::Operator(String::new()),
            limits: limits(),
        };
        self.begins(event, bug, left)
    }

    /// A run that is asked for, if the state allows it.
    fn begins(&mut self, event: Event, bug: Option<Bug>, left: &mut Vec<(Job, u8)>) -> bool {
        let Some(state) = &self.memory else { return false };
        if step(state, event.clone(), NOW).is_err() {
            return false;
        }
        self.next_run += 1;
        self.take(event, bug, left);
        true
    }

    /// A deadline has passed.
    pub fn deadline(&mut self, bug: Option<Bug>, left: &mut Vec<(Job, u8)>) -> bool {
        let Some(state) = &self.memory else { return false };
        let fenced = matches!(state.phase, Phase::Fenced | Phase::CaughtUp | Phase::Sequenced);
        if bug == Some(Bug::TimeoutAssumedDone) && fenced {
            for event in [Event::MarkerApplied, Event::SequencesSet, Event::ReverseSlotMade] {
                self.take(event, bug, left);
            }
            return true;
        }
        if bug == Some(Bug::AbortAfterCommit) && matches!(state.phase, Phase::Committed | Phase::Swapped) {
            let mut undone = state.clone();
            undone.phase = Phase::Aborting;
            undone.generation = Generation(state.generation.0 - 1);
            std::mem::swap(&mut undone.primary, &mut undone.shadow);
            if let Some(run) = &mut undone.run {
                (run.aborted, run.lift_fence, run.opened) = (Some(String::new()), true, false);
            }
            let effects = outstanding(&undone);
            self.adopt(undone, &effects, bug, left);
            return true;
        }
        let Some(at) = state.deadline() else { return false };
        match step(state, Event::Tick, at) {
            Ok((next, effects)) if next != *state || !effects.is_empty() => {
                self.adopt(next, &effects, bug, left);
                true
            }
            _ => false,
        }
    }

    /// One event through the machine, in the shell's order.
    pub fn take(&mut self, event: Event, bug: Option<Bug>, left: &mut Vec<(Job, u8)>) {
        let Some(state) = &self.memory else { return };
        let stepped: Result<(State, Vec<Effect>), Refused> = step(state, event, NOW);
        let Ok((mut next, mut effects)) = stepped else { return };
        if bug == Some(Bug::SoakForgotten) {
            next.soaking = None;
        }
        let entered = |phase| next.phase == phase && state.phase != phase;
        if bug == Some(Bug::ReleaseBeforeSwap) && entered(Phase::Committed) {
            effects.push(Effect::OpenGate);
        }
        if bug == Some(Bug::ReverseSlotAfterSwap) && entered(Phase::Released) {
            let make = Effect::MakeReverseSlot { generation: next.generation, zone: next.primary.clone() };
            effects.insert(0, make);
        }
        self.adopt(next, &effects, bug, left);
    }

    fn adopt(&mut self, next: State, effects: &[Effect], bug: Option<Bug>, left: &mut Vec<(Job, u8)>) {
        let next = timeless(next);
        let before = self.memory.replace(next.clone());
        let begins = run_of(&next) != before.as_ref().map_or(0, run_of);
        let before = before.map(|state| state.phase);
        // Durable before any of it is done.
        if bug != Some(Bug::JournalAfterEffect) {
            self.journal = next.clone();
        }
        if next.phase == Phase::Aborting && before != Some(Phase::Aborting) {
            self.cancel(left);
        }
        // What a move leaves to be done may be done while the next one begins; a takeover does not wait for what needs the lost one.
        if begins && next.run.as_ref().is_some_and(|run| run.taken_over) {
            self.cancel(left);
            self.tasks.retain(|task| !matches!(task.job, Job::Stream(_)));
        }
        match (next.phase, &next.run) {
            (Phase::Committed, _) => self.verified = false,
            (Phase::Soaking, Some(run)) => self.verified = run.verified,
            _ => {}
        }
        for effect in effects {
            self.start(effect, &next);
        }
        self.tasks.sort_unstable();
    }

    /// The journal catches up, where a bug let it fall behind.
    pub fn persist(&mut self) -> bool {
        let Some(state) = &self.memory else { return false };
        let behind = self.journal != *state;
        if behind {
            self.journal = state.clone();
        }
        behind
    }

    /// All but a fence, which goes on in the server, and the stream. What was sent may still be done once.
    fn cancel(&mut self, left: &mut Vec<(Job, u8)>) {
        self.tasks.retain(|task| {
            let stays = matches!(task.job, Job::Fence(_) | Job::Stream(_));
            if !stays && task.stage == Stage::Sent {
                left.extend(task.job.left_behind().map(|job| (job, task.run)));
            }
            stays
        });
    }

    fn start(&mut self, effect: &Effect, state: &State) {
        if let Effect::Scale { zone, capacity: Capacity::Shadow } = effect {
            let left_by_a_commit = *zone == state.shadow && state.generation.0 > 1;
            self.unverified |= left_by_a_commit && !self.verified;
        }
        match effect {
            // The gate is opened and closed at once, in the order in which the machine says so.
            Effect::CloseGate => {
                self.gate_closed = true;
                self.push(Job::GateClosed, state, Stage::Done(0));
                self.push(Job::Drain, state, Stage::Sent);
            }
            Effect::OpenGate => {
                self.gate_closed = false;
                self.push(Job::GateOpened, state, Stage::Done(0));
            }
            Effect::CloseRun { outcome: migration::cutover::Outcome::Retired, .. } => {}
            _ => {
                let Some(job) = Job::of(effect, state, self.sequence) else { return };
                // Who was let through before the takeover is cut off by it.
                self.gate_closed |= matches!(job, Job::TakeOver(_));
                if let Job::SwapPool(generation) = job {
                    self.pool = self.pool.max(generation);
                }
                // What touches no database is done at once: when exactly makes no difference to anybody else.
                let own =
                    matches!(job, Job::ScaleUp | Job::ScaleDown(_) | Job::CheckGuards | Job::SwapPool(_));
                self.push(job, state, if own { Stage::Done(0) } else { Stage::Sent });
            }
        }
    }

    fn push(&mut self, job: Job, state: &State, stage: Stage) {
        // A stream belongs to the resource, whatever run it is begun in.
        let run = if matches!(job, Job::Stream(_)) { 0 } else { run_of(state) };
        if !self.tasks.iter().any(|task| task.job == job && task.run == run) {
            self.tasks.push(Task { job, run, stage });
        }
    }

    /// The answer of a job that is done.
    pub fn answer(&mut self, task: Task, guards_pass: bool, bug: Option<Bug>, left: &mut Vec<(Job, u8)>) {
        self.tasks.retain(|other| *other != task);
        let Stage::Done(told) = task.stage else { return };
        let event = match task.job {
            Job::Stream(_) => Event::StreamUp,
            Job::EndStream(_) => Event::OldStreamGone,
            Job::ScaleUp => Event::ShadowScaled,
            Job::ScaleDown(_) if task.run == 0 && bug != Some(Bug::AnswersWithoutRun) => return,
            Job::ScaleDown(_) => Event::OldPrimaryRetired,
            Job::CheckGuards if guards_pass => Event::GuardsPassed,
            Job::CheckGuards => Event::GuardsFailed { why: String::new() },
            Job::MakeReverseSlot(_) => Event::ReverseSlotMade,
            Job::GateClosed => Event::GateClosed,
            Job::Drain => Event::DrainFinished,
            Job::Fence(_) => Event::FenceUp { marker: Position(u64::from(told)) },
            Job::AwaitMarker(_) => Event::MarkerApplied,
            Job::SetSequences(..) => Event::SequencesSet,
            Job::TakeOver(_) => Event::TakenOver,
            Job::Lift(..) | Job::Undo(_) => Event::FenceLifted,
            Job::SwapPool(_) => Event::PoolSwapped,
            Job::GateOpened => Event::GateOpened,
            Job::Compare(_) => Event::Compared { equal: told == 1 },
            Job::Guard(_) | Job::DropReverseSlot(..) => return,
        };
        self.report(task, event, bug, left);
    }

    /// A job has failed: or only its answer is lost, and it may still be done.
    pub fn failed(&mut self, task: Task, bug: Option<Bug>, left: &mut Vec<(Job, u8)>) {
        self.tasks.retain(|other| *other != task);
        if task.stage == Stage::Sent {
            left.extend(task.job.left_behind().map(|job| (job, task.run)));
        }
        let failed = Event::EffectFailed { effect: task.job.effect(), why: String::new() };
        self.report(task, failed, bug, left);
    }

    /// What belongs to the resource counts for any run, a stream for its generation; what belongs to a run only for it.
    fn report(&mut self, task: Task, event: Event, bug: Option<Bug>, left: &mut Vec<(Job, u8)>) {
        let generation = self.memory.as_ref().map(|state| state.generation.0);
        let over = matches!(task.job, Job::Stream(of) if Some(u64::from(of)) != generation);
        if over || (task.run != 0 && task.run != self.run()) {
            return;
        }
        if let (Event::OldPrimaryRetired, Some(state)) = (&event, &self.memory)
            && let (Phase::Soaking, Some(run)) = (state.phase, &state.run)
        {
            self.unverified |= run.limits.require_verified && !run.verified;
        }
        self.take(event, bug, left);
    }

    /// The process dies; what it had sent may still be done.
    pub fn crash(&mut self, left: &mut Vec<(Job, u8)>) {
        for task in std::mem::take(&mut self.tasks) {
            if task.stage == Stage::Sent {
                left.extend(task.job.left_behind().map(|job| (job, task.run)));
            }
        }
        self.memory = None;
        self.in_flight = None;
        self.streams = [false; GENERATIONS];
        (self.sequence, self.unheard) = (None, None);
        (self.gate_closed, self.pool) = (true, 0);
    }

    /// A process starts from the journal.
    pub fn restart(&mut self, bug: Option<Bug>, left: &mut Vec<(Job, u8)>) {
        let state = self.journal.clone();
        self.gate_closed = state.starts_closed() && bug != Some(Bug::LeadsWithAnOpenGate);
        self.pool = state.generation.0 as u8;
        self.memory = Some(state);
        self.take(Event::Restarted, bug, left);
    }
}

impl Node {
    /// Takes a task off the list.
    pub fn remove(&mut self, task: Task) -> Task {
        self.tasks.retain(|other| *other != task);
        task
    }
}
