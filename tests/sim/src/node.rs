//! The leader's process: the production `step()` in the shell's order. Journal, then effects, then their answers as events, as in
//! `proxy/src/controller/machine.rs`; a gate and a pool as in `proxy/src/fronts`.

use std::collections::BTreeMap;
use std::time::Duration;

use migration::cutover::{Effect, Event, Limits, State, Trigger, Unwritten};
use migration::units::Zone;

use crate::stream::Stream;

/// How far an effect is.
#[derive(Clone, Debug)]
pub enum Stage {
    /// On its way.
    Sent,
    /// Done; these answers are on their way.
    Done(Vec<Event>),
    /// It failed; so is that.
    Failed(String),
}

/// An effect under way, wanted by a state.
#[derive(Clone, Debug)]
pub struct Task {
    /// What.
    pub effect: Effect,
    /// The state that wanted it.
    pub state: State,
    /// How far.
    pub stage: Stage,
    /// A gate's closing has answered: now it drains.
    pub draining: bool,
}

impl Task {
    /// The run that it is for.
    pub fn run(&self) -> Option<&str> {
        self.state.run.as_ref().map(|run| run.id.as_str())
    }
}

/// One process.
#[derive(Debug)]
pub struct Node {
    /// What it believes.
    pub state: State,
    /// Requests wait.
    pub gate_closed: bool,
    /// Those that wait.
    pub held: Vec<u64>,
    /// Requests inside, and the zone each went to.
    pub in_flight: Vec<(usize, u64)>,
    /// Generation and zone of the front's pool.
    pub pool: (u64, usize),
    /// Effects under way.
    pub tasks: Vec<Task>,
    /// By generation.
    pub streams: BTreeMap<u64, Stream>,
    /// What the last fence told: its generation, and the old primary's sequence.
    pub fenced: Option<(u64, u64)>,
    /// Facts that the journal could not take.
    pub unwritten: Unwritten,
}

/// Zones `a` and `b` are databases 0 and 1.
pub fn index(zone: &Zone) -> usize {
    usize::from(&*zone.0 == "b")
}

/// Short, so that runs are.
pub fn limits() -> Limits {
    Limits {
        scale: Duration::from_secs(10),
        arm: Duration::from_secs(8),
        drain: Duration::from_secs(3),
        hold: Duration::from_secs(6),
        watch: Duration::from_millis(200),
        retire_after: Duration::from_secs(1),
        require_verified: true,
    }
}

/// A migration to the shadow.
pub fn request(state: &State, number: u32) -> Event {
    Event::MigrateRequested {
        id: format!("m{number}"),
        to: state.shadow.clone(),
        trigger: Trigger::Score,
        limits: limits(),
    }
}

impl Node {
    /// Starts from the journal: closed where a database may be fenced.
    pub fn start(state: State) -> Self {
        Self {
            gate_closed: state.starts_closed(),
            held: Vec::new(),
            in_flight: Vec::new(),
            pool: (state.generation.0, index(&state.primary)),
            tasks: Vec::new(),
            streams: BTreeMap::new(),
            fenced: None,
            unwritten: Unwritten::default(),
            state,
        }
    }

    /// Opens or closes at once, in the order in which the machine wants it.
    pub fn turn_gate(&mut self, effect: &Effect) {
        match effect {
            Effect::CloseGate => self.gate_closed = true,
            Effect::OpenGate => {
                self.gate_closed = false;
                let zone = self.pool.1;
                self.in_flight.extend(self.held.drain(..).map(|id| (zone, id)));
            }
            _ => {}
        }
    }

    /// Puts an effect on its way, unless the same one is: of the same run, but for streams.
    pub fn begin(&mut self, effect: Effect) {
        self.turn_gate(&effect);
        let task = Task { effect, state: self.state.clone(), stage: Stage::Sent, draining: false };
        let same = |other: &Task| {
            other.effect == task.effect && (task.effect.is_of_the_resource() || other.run() == task.run())
        };
        if matches!(task.effect, Effect::CloseRun { .. }) || self.tasks.iter().any(same) {
            return;
        }
        self.tasks.push(task);
    }

    /// An abort gives up everything but a fence, which goes on in the server, and the stream. Gives what may still be done.
    pub fn cancel(&mut self) -> Vec<Task> {
        let (stay, gone) = std::mem::take(&mut self.tasks)
            .into_iter()
            .partition(|task| matches!(task.effect, Effect::Fence { .. } | Effect::RunStream { .. }));
        self.tasks = stay;
        gone.into_iter().filter(|task| matches!(task.stage, Stage::Sent)).collect()
    }

    /// What the journal could not take, as the shell keeps it.
    pub fn journal_failed(&mut self, event: Event) {
        if self.unwritten.failed(self.state.phase, event) {
            self.turn_gate(&Effect::OpenGate);
        }
    }
}
