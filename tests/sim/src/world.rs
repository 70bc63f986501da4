//! Everything together: a leader, two databases, a link, clients through the gate and round it, and trouble, all by one seed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use migration::cutover::{Effect, Event, Phase, State, step};
use migration::units::{Timestamp, Zone};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use replicator::Lsn;

use crate::database::{Database, Fence, Refused};
use crate::disk::Disk;
use crate::effects::{Hands, Tried};
use crate::node::{Node, Stage, Task, index, request};
use crate::stream::Stream;

/// Deliberate mistakes: each must be found, or the properties prove nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mistake {
    /// The journal is written and not synced.
    NotSynced,
    /// Effects begin before their state is written.
    EffectsFirst,
    /// The end marker's position is taken from before the fence.
    EarlyMarker,
    /// A process that starts opens its gate whatever the journal says, and its pool is the first one's.
    StartsOpen,
    /// What a stream answers counts only for the run in which it was begun: what the controller did until this simulation
    /// found it.
    StreamsOfRuns,
    /// The commit of an end marker at the next primary does not wait for the disk.
    MarkerUnflushed,
}

/// How often what happened.
pub type Tally = BTreeMap<&'static str, u64>;

/// One seed's world.
pub struct World {
    rng: SmallRng,
    mistake: Option<Mistake>,
    /// What happened.
    pub tally: Tally,
    began: Instant,
    now_ms: u64,
    disk: Disk,
    node: Option<Node>,
    databases: [Database; 2],
    /// Something gets through between the zones.
    linked: bool,
    /// What a database may still do although nobody waits for it.
    late: Vec<Task>,
    /// Writes of requests whose process died.
    orphans: Vec<(usize, u64)>,
    runs: u32,
    next_write: u64,
    acknowledged: BTreeSet<u64>,
    given: BTreeSet<u64>,
    /// Highest generation that was ever durable.
    committed: u64,
    /// Chances of trouble in ten thousand, and what may still be asked for.
    trouble: u32,
    moves: u32,
    turned_away: Option<String>,
}

fn zone(at: usize) -> Zone {
    Zone::from(["a", "b"][at])
}

impl World {
    /// One resource that serves from `a` and has a shadow in `b`.
    #[expect(clippy::disallowed_methods, reason = "only differences to this moment count")]
    pub fn new(seed: u64, mistake: Option<Mistake>) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut state = State::first("r", zone(0), zone(1), Timestamp(0));
        for event in [Event::ShadowEnabled, Event::StreamUp] {
            state = step(&state, event, Timestamp(0)).expect("the road to a shadow").0;
        }
        let mut databases = [Database::new("a", Fence::Open), Database::new("b", Fence::Guarded)];
        let start = databases[0].end;
        databases[0].make_slot(1, "", 0).expect("up");
        databases[1].seed_progress(1, start);
        let mut world = Self {
            mistake,
            tally: Tally::new(),
            began: Instant::now(),
            now_ms: 1_000,
            disk: Disk::new(state.clone()),
            node: None,
            databases,
            linked: true,
            late: Vec::new(),
            orphans: Vec::new(),
            runs: 0,
            next_write: 0,
            acknowledged: BTreeSet::new(),
            given: BTreeSet::new(),
            committed: 1,
            // From none to so much that hardly a move gets through.
            trouble: (1 << rng.random_range(0..8)) - 1,
            moves: rng.random_range(2..12),
            turned_away: None,
            rng,
        };
        world.start_node();
        world
    }

    fn instant(&self) -> Instant {
        self.began + Duration::from_millis(self.now_ms)
    }

    fn count(&mut self, what: &'static str) {
        *self.tally.entry(what).or_default() += 1;
    }

    fn start_node(&mut self) {
        let state = self.disk.recover();
        let mut node = Node::start(state);
        if self.mistake == Some(Mistake::StartsOpen) {
            node.gate_closed = false;
        }
        self.node = Some(node);
        self.take(Event::Restarted);
    }

    /// One event through the machine, in the shell's order. The process may die on the way.
    fn take(&mut self, event: Event) {
        let Some(node) = &mut self.node else { return };
        if node.unwritten.forbids(&event) {
            self.count("what a reopened gate had told");
            return;
        }
        let Ok((next, effects)) = step(&node.state, event.clone(), Timestamp(self.now_ms)) else { return };
        let first = self.mistake == Some(Mistake::EffectsFirst);
        if first {
            let before = std::mem::replace(&mut node.state, next.clone());
            for effect in effects.iter().cloned() {
                node.begin(effect);
            }
            node.state = before;
        }
        if next != node.state {
            if self.disk.append(&next).is_err() {
                node.journal_failed(event);
                self.count("journal full");
                return;
            }
            if self.rng.random_range(0..10_000) < self.trouble {
                self.kill_node("killed while the journal was written");
                return;
            }
            if self.mistake != Some(Mistake::NotSynced) {
                self.disk.sync();
            }
            if self.rng.random_range(0..10_000) < self.trouble {
                self.kill_node("killed between journal and effects");
                return;
            }
        }
        let Some(node) = &mut self.node else { return };
        let phase = std::mem::replace(&mut node.state, next).phase;
        if node.state.phase == Phase::Aborting && phase != Phase::Aborting {
            let cancelled = node.cancel();
            self.late.extend(cancelled);
        }
        if !first {
            for effect in effects {
                node.begin(effect);
            }
        }
        let (now, committed) = (node.state.phase, node.state.generation.0);
        if now != phase {
            match now {
                Phase::Committed => self.count("committed"),
                Phase::Aborting => self.count("aborted"),
                _ => {}
            }
        }
        self.committed = self.committed.max(committed);
    }

    fn kill_node(&mut self, how: &'static str) {
        let Some(mut node) = self.node.take() else { return };
        self.count(how);
        self.disk.crash(&mut self.rng);
        let sent = node.tasks.into_iter().filter(|task| matches!(task.stage, Stage::Sent));
        for task in sent {
            if self.rng.random_bool(0.5) {
                self.late.push(task);
            }
        }
        self.orphans.append(&mut node.in_flight);
    }

    /// One thing happens. The error is a broken promise.
    ///
    /// # Errors
    /// What does not hold.
    pub fn step(&mut self) -> Result<(), String> {
        if self.rng.random_range(0..10_000) < self.trouble * 2 {
            self.trouble_happens();
        }
        match self.rng.random_range(0..100) {
            0..6 => self.request(),
            6..13 => self.in_flight(),
            13..16 => self.round_the_gate(),
            16..40 => self.task(),
            40..76 => self.stream()?,
            76..84 => self.time_passes(),
            84..86 => {
                let at = self.rng.random_range(0..2);
                self.databases[at].end.0 += self.rng.random_range(1..3_000);
            }
            86..90 => self.mend(),
            90..92 => self.ask(),
            92..95 => self.late(),
            _ => {
                if let Some((zone, id)) = self.orphans.pop() {
                    // It writes if it can; nobody hears of it.
                    let _ = self.write(zone, id);
                }
            }
        }
        self.check()
    }

    fn trouble_happens(&mut self) {
        // Few steps lie between a marker and what makes it durable by chance.
        let crashes = self.mistake == Some(Mistake::MarkerUnflushed);
        match if crashes { 1 } else { self.rng.random_range(0..10) } {
            0 => self.kill_node("killed"),
            1 | 2 => {
                let at = self.rng.random_range(0..2);
                if self.databases[at].up {
                    let lost = self.rng.random_range(0..=self.databases[at].unflushed());
                    self.databases[at].crash(lost);
                    let streams = self.node.iter_mut().flat_map(|node| node.streams.values_mut());
                    streams.filter(|stream| stream.is_from_a() == (at == 1)).for_each(Stream::target_crashed);
                    self.count(if lost > 0 {
                        "database crashed, without its last commits"
                    } else {
                        "database crashed"
                    });
                }
            }
            3 => {
                self.linked = false;
                self.count("link cut");
            }
            4 => {
                self.disk.full = true;
                self.count("disk full");
            }
            kind => {
                let (forth, told) = (self.rng.random_bool(0.5), self.rng.random_bool(0.5));
                let Some(node) = &mut self.node else { return };
                for stream in node.streams.values_mut() {
                    match kind {
                        5 => stream.lose_source(told),
                        6 => stream.lose_target(),
                        7 => stream.swallow(forth),
                        _ => stream.lose_message(forth),
                    }
                }
                self.count("session hurt");
            }
        }
    }

    /// What is broken does not stay so.
    fn mend(&mut self) {
        match self.rng.random_range(0..4) {
            0 if self.node.is_none() => self.start_node(),
            1 => self.databases.iter_mut().for_each(|database| database.up = true),
            2 => self.linked = true,
            3 => self.disk.full = false,
            _ => {}
        }
    }

    /// A migration, or an operator's abort.
    fn ask(&mut self) {
        let abort = self.rng.random_range(0..1_000) < self.trouble;
        let Some(node) = &self.node else { return };
        let phase = node.state.phase;
        if abort && phase.may_abort() {
            self.take(Event::AbortRequested { by: "somebody".into() });
        } else if self.moves > 0 && matches!(phase, Phase::Shadowing | Phase::Soaking) {
            self.moves -= 1;
            self.runs += 1;
            let event = request(&node.state, self.runs);
            self.take(event);
        }
    }

    fn request(&mut self) {
        self.next_write += 1;
        let id = self.next_write;
        let Some(node) = &mut self.node else { return };
        if node.gate_closed {
            node.held.push(id);
        } else {
            node.in_flight.push((node.pool.1, id));
        }
    }

    fn in_flight(&mut self) {
        let Some(node) = &mut self.node else { return };
        if node.in_flight.is_empty() {
            return;
        }
        let at = self.rng.random_range(0..node.in_flight.len());
        let (zone, id) = node.in_flight.swap_remove(at);
        match self.write(zone, id) {
            Ok(()) => drop(self.acknowledged.insert(id)),
            Err(Refused::Down) => self.count("requests that met a crashed database"),
            Err(why) => {
                self.turned_away = Some(format!("request {id} was let through and turned away: {why:?}"));
            }
        }
    }

    fn write(&mut self, zone: usize, id: u64) -> Result<(), Refused> {
        let number = self.databases[zone].write(id, &mut self.rng)?;
        if !self.given.insert(number) {
            self.turned_away = Some(format!("number {number} was given twice"));
        }
        Ok(())
    }

    fn round_the_gate(&mut self) {
        let zone = self.rng.random_range(0..2);
        self.next_write += 1;
        let id = self.next_write;
        match self.write(zone, id) {
            Ok(()) => drop(self.acknowledged.insert(id)),
            Err(Refused::Stale) if matches!(self.databases[zone].fence, Fence::Closed { .. }) => {
                self.count("held off by a fence");
            }
            Err(_) => {}
        }
    }

    /// An effect is done, or its answer arrives.
    fn task(&mut self) {
        let Some(node) = &mut self.node else { return };
        if node.tasks.is_empty() {
            return;
        }
        let at = self.rng.random_range(0..node.tasks.len());
        // The gate's answer that it is closed comes before that of the drain.
        if node.tasks[at].effect == Effect::CloseGate && !node.tasks[at].draining {
            node.tasks[at].draining = true;
            let task = node.tasks[at].clone();
            return self.answer(&task, vec![Event::GateClosed]);
        }
        let task = node.tasks[at].clone();
        match task.stage.clone() {
            Stage::Done(events) => {
                node.tasks.swap_remove(at);
                self.answer(&task, events);
            }
            Stage::Failed(why) => {
                node.tasks.swap_remove(at);
                let failed = Event::EffectFailed { effect: task.effect.name(), why };
                self.answer(&task, vec![failed]);
            }
            Stage::Sent => {
                let lost = self.rng.random_range(0..10_000) < self.trouble * 3;
                let unreached = lost && self.rng.random_bool(0.5);
                let stage = if unreached {
                    Stage::Failed("it did not get there".into())
                } else {
                    let early_marker = self.mistake == Some(Mistake::EarlyMarker);
                    let mut hands =
                        Hands { databases: &mut self.databases, rng: &mut self.rng, early_marker };
                    match hands.perform(node, &task) {
                        Tried::Waits => return,
                        // Done all the same.
                        Tried::Done(_) if lost => Stage::Failed("its answer was lost".into()),
                        Tried::Done(events) => Stage::Done(events),
                        Tried::Failed(why) => Stage::Failed(why),
                    }
                };
                node.tasks[at].stage = stage;
                if lost {
                    if unreached && self.rng.random_bool(0.5) {
                        self.late.push(task);
                    }
                    self.count("effects that failed or lost their answer");
                }
            }
        }
    }

    /// Answers of an ended run count for nothing; those of a stream are of its generation, whatever run it began in.
    fn answer(&mut self, task: &Task, events: Vec<Event>) {
        for event in events {
            let Some(node) = &self.node else { return };
            let current = node.state.run.as_ref().map(|run| run.id.as_str());
            let counts = match &task.effect {
                Effect::RunStream { generation, .. } if self.mistake != Some(Mistake::StreamsOfRuns) => {
                    *generation == node.state.generation
                }
                _ => task.run().is_none() || task.run() == current,
            };
            if !counts {
                return;
            }
            self.take(event);
        }
    }

    fn stream(&mut self) -> Result<(), String> {
        let now = self.instant();
        let Some(node) = &mut self.node else { return Ok(()) };
        let count = node.streams.len();
        if count == 0 {
            return Ok(());
        }
        let at = self.rng.random_range(0..count);
        let Some(stream) = node.streams.values_mut().nth(at) else { return Ok(()) };
        let [a, b] = &mut self.databases;
        let (source, target) = if stream.is_from_a() { (a, b) } else { (b, a) };
        if self.linked {
            stream.connect(target, now, &mut self.rng);
        }
        let marker_waits = self.mistake != Some(Mistake::MarkerUnflushed);
        stream.advance(source, target, self.linked, marker_waits, now, &mut self.rng)
    }

    fn time_passes(&mut self) {
        let most = if self.rng.random_bool(0.03) { 900 } else { 30 };
        self.now_ms += self.rng.random_range(1..most);
        for database in &mut self.databases {
            if self.rng.random_bool(0.2) {
                database.flush();
            }
        }
        let now = self.instant();
        let Some(node) = &mut self.node else { return };
        for stream in node.streams.values_mut() {
            stream.tick(now);
        }
        for event in node.unwritten.take() {
            self.take(event);
        }
        if self.node.as_ref().is_some_and(|node| node.state.run.is_some()) {
            self.take(Event::Tick);
        }
    }

    /// Something that nobody waits for is done all the same, or never.
    fn late(&mut self) {
        if self.late.is_empty() {
            return;
        }
        let at = self.rng.random_range(0..self.late.len());
        let task = self.late.swap_remove(at);
        let mut hands = Hands { databases: &mut self.databases, rng: &mut self.rng, early_marker: false };
        match hands.late(&task) {
            Tried::Failed(_) => self.count("late effects refused"),
            Tried::Done(_) | Tried::Waits => self.count("late effects done"),
        }
    }

    /// What must hold at every moment.
    fn check(&self) -> Result<(), String> {
        let [a, b] = &self.databases;
        if a.is_open() && b.is_open() {
            return Err("both databases take writes".into());
        }
        if let Some(why) = &self.turned_away {
            return Err(why.clone());
        }
        if let Some(id) = a.doubled.or(b.doubled) {
            return Err(format!("row {id} was written twice"));
        }
        let durable = self.disk.durable().generation.0;
        if durable < self.committed && self.mistake != Some(Mistake::NotSynced) {
            return Err(format!("generation {} was committed, the journal has {durable}", self.committed));
        }
        if self.mistake == Some(Mistake::NotSynced) && self.node.is_none() && durable < self.committed {
            return Err(format!("generation {} was committed, the journal has {durable}", self.committed));
        }
        Ok(())
    }

    fn at_rest(&self) -> bool {
        let Some(node) = &self.node else { return false };
        let primary = index(&node.state.primary);
        let streaming = node.streams.get(&node.state.generation.0);
        let applied = streaming.map_or(Lsn::ZERO, |stream| stream.told.applied);
        node.state.run.is_none()
            && node.state.phase == Phase::Shadowing
            && !node.gate_closed
            && node.held.is_empty()
            && node.in_flight.is_empty()
            && node.pool == (node.state.generation.0, primary)
            && self.databases[primary].is_open()
            && self.databases[1 - primary].fence == Fence::Guarded
            && self.databases[primary].log.last().is_none_or(|last| last.end_lsn <= applied)
    }

    /// No trouble any more: every run ends, and nothing is missing.
    ///
    /// # Errors
    /// What does not hold.
    pub fn settle(&mut self) -> Result<(), String> {
        self.trouble = 0;
        self.moves = 0;
        self.late.clear();
        self.orphans.clear();
        self.linked = true;
        self.disk.full = false;
        self.databases.iter_mut().for_each(|database| database.up = true);
        if self.node.is_none() {
            self.start_node();
        }
        for _ in 0..60_000 {
            match self.rng.random_range(0..10) {
                0 => self.in_flight(),
                1..4 => self.task(),
                4..9 => self.stream()?,
                _ => self.time_passes(),
            }
            self.check()?;
            if self.at_rest() {
                return self.account();
            }
        }
        let node = self.node.as_ref().map(|node| (&node.state, node.gate_closed, &node.tasks));
        Err(format!(
            "it does not come to rest: {node:#?}, {:?}",
            self.databases.each_ref().map(|database| (database.epoch, &database.fence, &database.slots))
        ))
    }

    fn account(&self) -> Result<(), String> {
        let Some(node) = &self.node else { return Err("no process".into()) };
        let primary = &self.databases[index(&node.state.primary)];
        let shadow = &self.databases[index(&node.state.shadow)];
        if let Some(lost) = self.acknowledged.iter().find(|id| !primary.rows.contains(id)) {
            return Err(format!("write {lost} was acknowledged and is lost"));
        }
        if primary.rows != shadow.rows {
            return Err("both sides differ".into());
        }
        Ok(())
    }
}

/// One seed, from its beginning to rest.
///
/// # Errors
/// What did not hold.
pub fn run(seed: u64, mistake: Option<Mistake>) -> Result<Tally, String> {
    let mut world = World::new(seed, mistake);
    for _ in 0..6_000 {
        world.step()?;
    }
    world.settle()?;
    *world.tally.entry("writes acknowledged").or_default() += world.acknowledged.len() as u64;
    Ok(world.tally)
}
