//! What each effect does to databases and streams, as `proxy/src/controller/effects.rs` does it.

use migration::cutover::{Capacity, Effect, Event, Phase, State};
use migration::units::Position;
use rand::rngs::SmallRng;
use replicator::Lsn;

use crate::database::{Database, Refused};
use crate::node::{Node, Task, index};
use crate::stream::Stream;

/// What became of a try.
#[derive(Clone, Debug)]
pub enum Tried {
    /// Not yet.
    Waits,
    /// Done, with its answers.
    Done(Vec<Event>),
    /// Not done.
    Failed(String),
}

impl Tried {
    fn of(done: Result<(), Refused>, answer: Option<Event>) -> Self {
        match done {
            Ok(()) => Self::Done(answer.into_iter().collect()),
            Err(why) => Self::Failed(format!("{why:?}")),
        }
    }
}

/// What an effect works with.
pub struct Hands<'a> {
    /// Zones `a` and `b`.
    pub databases: &'a mut [Database; 2],
    /// Of the marker and of what it lands between.
    pub rng: &'a mut SmallRng,
    /// A mistake: the end marker's position is taken from before the fence.
    pub early_marker: bool,
}

impl Hands<'_> {
    /// Tries a task of the living process.
    pub fn perform(&mut self, node: &mut Node, task: &Task) -> Tried {
        let run = task.state.run.as_ref();
        match &task.effect {
            Effect::RunStream { generation, source, target } => {
                self.run_stream(node, generation.0, index(source), index(target))
            }
            Effect::TakeOver { .. } => Tried::Failed("nobody asks for it here".into()),
            Effect::EndStream { generation, source } => {
                node.streams.remove(&generation.0);
                let source = &mut self.databases[index(source)];
                if !source.up {
                    return Tried::Failed("down".into());
                }
                source.slots.remove(&generation.0);
                Tried::Done(vec![Event::OldStreamGone])
            }
            Effect::Scale { capacity: Capacity::Full, .. } => Tried::Done(vec![Event::ShadowScaled]),
            Effect::Scale { capacity: Capacity::Shadow, .. } => {
                Tried::Done(run.map(|_| Event::OldPrimaryRetired).into_iter().collect())
            }
            Effect::CheckGuards => Tried::Done(vec![Event::GuardsPassed]),
            Effect::CloseGate if node.in_flight.is_empty() => Tried::Done(vec![Event::DrainFinished]),
            Effect::CloseGate => Tried::Waits,
            Effect::AwaitMarker { marker } => match node.streams.get(&task.state.generation.0) {
                None => Tried::Failed("no stream runs".into()),
                Some(stream) if stream.told.applied >= Lsn(marker.0) => {
                    Tried::Done(vec![Event::MarkerApplied])
                }
                Some(_) => Tried::Waits,
            },
            Effect::SetSequences { zone } => match (node.fenced, run) {
                (Some((generation, sequence)), Some(run)) if generation == run.generation.0 => {
                    let set = self.databases[index(zone)].set_sequence(sequence);
                    Tried::of(set, Some(Event::SequencesSet))
                }
                _ => Tried::Failed("the fence's sequences are not known to this process".into()),
            },
            Effect::LiftFence { .. } if task.state.phase == Phase::Aborting => {
                // A fence that still goes up must be over first.
                let fencing = node.tasks.iter().any(|task| {
                    matches!(task.effect, Effect::Fence { .. })
                        && matches!(task.stage, crate::node::Stage::Sent)
                });
                if fencing { Tried::Waits } else { self.late(task) }
            }
            Effect::SwapPool { zone, generation } => {
                if node.pool.0 < generation.0 {
                    node.pool = (generation.0, index(zone));
                }
                Tried::Done(vec![Event::PoolSwapped])
            }
            Effect::OpenGate => Tried::Done(vec![Event::GateOpened]),
            Effect::Compare => self.compare(node, &task.state),
            Effect::Fence { zone, generation } => {
                let done = self.late(task);
                if matches!(done, Tried::Done(_)) {
                    node.fenced = Some((generation.0, self.databases[index(zone)].sequence));
                }
                done
            }
            Effect::ProvisionShadow { .. } | Effect::CloseRun { .. } => Tried::Done(Vec::new()),
            Effect::MakeReverseSlot { .. } | Effect::DropReverseSlot { .. } | Effect::LiftFence { .. } => {
                self.late(task)
            }
        }
    }

    /// What a database does with it, whether or not the process that sent it lives.
    pub fn late(&mut self, task: &Task) -> Tried {
        let run = task.state.run.as_ref();
        let id = task.run().unwrap_or_default().to_owned();
        match &task.effect {
            Effect::RunStream { generation, target, .. } => {
                Tried::of(self.databases[index(target)].guard(generation.0), None)
            }
            Effect::MakeReverseSlot { generation, zone } => {
                let begun = run.map_or(0, |run| run.started.0);
                let made = self.databases[index(zone)].make_slot(generation.0, &id, begun);
                Tried::of(made, Some(Event::ReverseSlotMade))
            }
            Effect::DropReverseSlot { run, generation, zone } => {
                Tried::of(self.databases[index(zone)].drop_way_back(generation.0, run), None)
            }
            Effect::Fence { zone, generation } => {
                let database = &mut self.databases[index(zone)];
                let before = database.log.iter().rev().nth(1).map_or(Lsn(1), |last| last.end_lsn);
                match database.close(generation.0, &id, self.rng) {
                    Ok(marker) => {
                        let marker = if self.early_marker { before } else { marker };
                        Tried::Done(vec![Event::FenceUp { marker: Position(marker.0) }])
                    }
                    Err(why) => Tried::Failed(format!("{why:?}")),
                }
            }
            Effect::LiftFence { zone, generation } => {
                let undo = (task.state.phase == Phase::Aborting).then_some(id.as_str());
                let opened = self.databases[index(zone)].open(generation.0, undo);
                Tried::of(opened, Some(Event::FenceLifted))
            }
            _ => Tried::Done(Vec::new()),
        }
    }

    fn run_stream(&mut self, node: &mut Node, generation: u64, source: usize, target: usize) -> Tried {
        if !self.databases[source].up || !self.databases[target].up {
            return Tried::Failed("down".into());
        }
        let Some(slot) = self.databases[source].slots.get(&generation) else {
            return Tried::Failed("the slot is gone".into());
        };
        let start = slot.confirmed;
        self.databases[target].seed_progress(generation, start);
        let stream = node.streams.entry(generation).or_insert_with(|| Stream::new(generation));
        if !stream.streaming() {
            return Tried::Waits;
        }
        Tried::of(self.databases[target].guard(generation), Some(Event::StreamUp))
    }

    /// At one position: everything is applied, and nothing new is there.
    fn compare(&self, node: &Node, state: &State) -> Tried {
        let Some(stream) = node.streams.get(&state.generation.0) else {
            return Tried::Failed("no stream runs".into());
        };
        let (source, target) =
            (&self.databases[index(&state.primary)], &self.databases[index(&state.shadow)]);
        if !source.up || !target.up {
            return Tried::Failed("down".into());
        }
        let all = source.log.last().is_none_or(|last| last.end_lsn <= stream.told.applied);
        // A target that crashed has ended its sessions, and what was told of it may be more than is left.
        if !all || !stream.whole() {
            return Tried::Waits;
        }
        Tried::Done(vec![Event::Compared { equal: source.rows == target.rows }])
    }
}
