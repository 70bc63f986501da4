//! Everything together: two databases, one or two nodes, clients, and what may go wrong, each within a budget.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use migration::cutover::Phase;
use migration::cutover::memory::{Found, knows_more};

use crate::bugs::Bug;
use crate::database::{Database, Fence, GENERATIONS};
use crate::node::{Heard, Job, Node, Stage, Task, primary_of, said};

/// How much may happen. Every combination within it is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Budget {
    /// Writes of clients, through a gate or round it.
    pub writes: u8,
    /// Migrations asked for, of the node that leads.
    pub moves: u8,
    /// Migrations asked for, of a node that was left behind in generation 1. It serves in any case.
    pub stale_moves: u8,
    /// Processes killed.
    pub crashes: u8,
    /// Effects that fail or lose their answer.
    pub failures: u8,
    /// Effects whose process is gone or gave up, and which are done all the same, at any later time.
    pub late: u8,
    /// Aborts that an operator asks for.
    pub aborts: u8,
    /// Nodes that take the lead from the one that has it, whether that is still there or not. They may move the service, too.
    pub leads: u8,
    /// Such a node has a journal of generation 1, of when it led before; else none.
    pub old_journal: bool,
    /// Primaries that are lost: they answer nobody of ours, for good or until they are back as they were.
    pub losses: u8,
    /// Takeovers that an operator asks for.
    pub takeovers: u8,
}

impl Budget {
    /// Nothing happens.
    pub const NOTHING: Self = Self {
        writes: 0,
        moves: 0,
        stale_moves: 0,
        crashes: 0,
        failures: 0,
        late: 0,
        aborts: 0,
        leads: 0,
        old_journal: false,
        losses: 0,
        takeovers: 0,
    };
}

/// What the model remembers beyond the system's own state, to judge it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Memory {
    /// Writes so far; each is acknowledged as soon as it is committed.
    pub writes: u8,
    /// Highest generation that a journal has committed.
    pub committed: u8,
    /// The node that committed it.
    pub by: usize,
    /// A generation was committed by two nodes.
    pub twice: bool,
    /// Highest number that a sequence gave.
    pub given: u8,
    /// A number was given again.
    pub reused: bool,
    /// A request that the leader's gate let through was turned away by a fence.
    pub turned_away: bool,
    /// A client's write that the slot of the way back cannot carry.
    pub one_way: bool,
    /// A journal went back from a commit.
    pub uncommitted: bool,
    /// The zone whose primary was lost, once a takeover is committed.
    pub lost: Option<usize>,
    /// It was guarded since.
    pub guarded: bool,
    /// Writes that the operator was told may be lost, one bit each: what the shadow did not have when the takeover was asked for, and what
    /// goes to the lost one afterwards but through the front of who leads.
    pub told: u16,
    /// A change was brought to a database that clients write to.
    pub mixed: bool,
    /// Coverage: a fence refused a client that goes round the gate.
    pub held_off: bool,
    /// Coverage: a database refused something of an old generation or run.
    pub refused_late: bool,
}

/// The whole state.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct System {
    /// Zones `a` and `b`.
    pub databases: [Database; 2],
    /// The node that leads; and one that was left behind, if the budget has one.
    pub nodes: Vec<Node>,
    /// The node that has the lease.
    pub leads: usize,
    /// What may still be done although nobody waits for it, with its run; sorted.
    pub late: Vec<(Job, u8)>,
    /// The zone whose database does not answer.
    pub down: Option<usize>,
    /// What is left to happen.
    pub budget: Budget,
    /// To judge it.
    pub memory: Memory,
}

/// One step of the system. The number is the node's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// A migration to the shadow is asked for.
    Migrate(usize),
    /// An operator asks to abort.
    Abort(usize),
    /// The present phase's deadline passes.
    DeadlinePasses(usize),
    /// A guard fails.
    GuardFails(usize, Task),
    /// An effect is done (or the next half of it).
    Done(usize, Task),
    /// Its answer arrives.
    Answered(usize, Task),
    /// It fails, or its answer is lost.
    Failed(usize, Task),
    /// The process dies.
    Crash(usize),
    /// A process starts from the journal.
    Restart(usize),
    /// A node takes the lease.
    TakesTheLead(usize),
    /// The node that has just taken it asks the database of a zone what it remembers.
    Asks(usize, usize),
    /// A node sees that another leads, and ends.
    StepsDown(usize),
    /// The primary that a node had not heard answers.
    Hears(usize),
    /// An operator says that the primary is lost.
    TakeOver(usize),
    /// The database of a zone is lost.
    Lost(usize),
    /// It is back, as it was.
    Back(usize),
    /// The journal is written late: only with a bug.
    JournalWritten(usize),
    /// Something that nobody waits for is done after all.
    DoneLate(Job, u8),
    /// The stream of a generation applies one transaction.
    Applied(u8),
    /// The gate lets a request through.
    LetThrough(usize),
    /// That request writes.
    Writes(usize),
    /// A client goes round the gate to the database of a zone.
    GoesRound(usize),
}

/// What became of a try to do something.
enum Tried {
    Waits,
    Stage(Stage),
    Refused,
}

/// The system with its bounds and, to try the model itself, one mistake.
pub struct Cutover {
    /// What may happen.
    pub budget: Budget,
    /// The mistake.
    pub bug: Option<Bug>,
    /// States from which a run is known to end.
    pub(crate) ends: Mutex<HashSet<u64>>,
}

impl Cutover {
    /// Within `budget`, with or without a mistake.
    pub fn new(budget: Budget, bug: Option<Bug>) -> Self {
        Self { budget, bug, ends: Mutex::default() }
    }

    /// One resource that serves from `a` and has a shadow in `b`.
    pub fn first(&self) -> System {
        let mut primary = Database::new(Fence::Open);
        primary.slots[1] = Some(0);
        let mut shadow = Database::new(Fence::Guarded);
        shadow.progress[1] = Some(0);
        let mut nodes = vec![Node::new(1)];
        if self.budget.stale_moves > 0 {
            nodes.push(Node::new(9));
        }
        if self.budget.leads > 0 {
            nodes.push(Node { known: self.budget.old_journal, ..Node::standing_by(9) });
        }
        System {
            databases: [primary, shadow],
            nodes,
            leads: 0,
            late: Vec::new(),
            down: None,
            budget: self.budget,
            memory: Memory { committed: 1, ..Memory::default() },
        }
    }

    /// What can happen next.
    pub fn possible(&self, system: &System, actions: &mut Vec<Action>) {
        let budget = &system.budget;
        for (at, node) in system.nodes.iter().enumerate() {
            let leading = self.budget.leads > 0;
            let Some(state) = &node.memory else {
                if leading && at == 1 {
                    actions.extend([Action::TakesTheLead(at), Action::Asks(at, 0), Action::Asks(at, 1)]);
                } else if !leading || system.leads == at {
                    actions.push(Action::Restart(at));
                }
                continue;
            };
            if leading && system.leads != at {
                actions.push(Action::StepsDown(at));
            }
            if node.unheard.is_some() {
                actions.push(Action::Hears(at));
            }
            if budget.takeovers > 0 && (!leading || system.leads == at) {
                actions.push(Action::TakeOver(at));
            }
            for task in &node.tasks {
                match task.stage {
                    Stage::Done(_) => actions.push(Action::Answered(at, *task)),
                    Stage::Sent | Stage::Half(_) => actions.push(Action::Done(at, *task)),
                }
                if task.job == Job::CheckGuards {
                    actions.push(Action::GuardFails(at, *task));
                }
                if budget.failures > 0 && task.job.fails() {
                    actions.push(Action::Failed(at, *task));
                }
            }
            actions.extend([Action::DeadlinePasses(at), Action::JournalWritten(at)]);
            let moves = if at == 0 || leading { budget.moves } else { budget.stale_moves };
            // Its guards refuse it where no shadow follows.
            let follows = system.memory.lost.is_none();
            if moves > 0 && follows && matches!(state.phase, Phase::Shadowing | Phase::Soaking) {
                actions.push(Action::Migrate(at));
            }
            if budget.aborts > 0 && state.phase.may_abort() {
                actions.push(Action::Abort(at));
            }
            if budget.crashes > 0 {
                actions.push(Action::Crash(at));
            }
            if budget.writes > 0 && !node.gate_closed && node.in_flight.is_none() {
                actions.push(Action::LetThrough(at));
            }
            if node.in_flight.is_some() {
                actions.push(Action::Writes(at));
            }
        }
        actions.extend(match system.down {
            Some(zone) => Some(Action::Back(zone)),
            None => (budget.losses > 0).then(|| Action::Lost(primary_of(system.memory.committed))),
        });
        actions.extend((1..GENERATIONS as u8).map(Action::Applied));
        actions.extend(system.late.iter().map(|(job, run)| Action::DoneLate(*job, *run)));
        if budget.writes > 0 {
            actions.extend([Action::GoesRound(0), Action::GoesRound(1)]);
        }
    }

    /// The system after `action`; none: it changes nothing or is not possible.
    pub fn after(&self, last: &System, action: Action) -> Option<System> {
        let mut system = last.clone();
        let mut left = Vec::new();
        let bug = self.bug;
        let possible = match action {
            Action::Migrate(at) => {
                let budget = &mut system.budget;
                let own = at == 0 || self.budget.leads > 0;
                let moves = if own { &mut budget.moves } else { &mut budget.stale_moves };
                *moves -= 1;
                system.nodes[at].migrate(bug, &mut left)
            }
            Action::Abort(at) => {
                system.budget.aborts -= 1;
                let event = migration::cutover::Event::AbortRequested { by: String::new() };
                system.nodes[at].take(event, bug, &mut left);
                true
            }
            Action::DeadlinePasses(at) => system.nodes[at].deadline(bug, &mut left),
            Action::GuardFails(at, task) => {
                let task = Task { stage: Stage::Done(0), ..system.nodes[at].remove(task) };
                system.nodes[at].answer(task, false, bug, &mut left);
                true
            }
            Action::Done(at, task) => self.work(&mut system, at, task, &mut left),
            Action::Answered(at, task) => {
                system.nodes[at].answer(task, true, bug, &mut left);
                true
            }
            Action::Failed(at, task) => {
                system.budget.failures -= 1;
                system.nodes[at].failed(task, bug, &mut left);
                true
            }
            Action::Crash(at) => {
                system.budget.crashes -= 1;
                system.nodes[at].crash(&mut left);
                true
            }
            Action::Lost(zone) => {
                system.budget.losses -= 1;
                system.down = Some(zone);
                true
            }
            Action::Back(_) => system.down.take().is_some(),
            Action::TakeOver(at) => self.take_over(&mut system, at, &mut left),
            Action::Hears(at) => {
                let node = &mut system.nodes[at];
                let primary = usize::from(&*node.journal.primary.0 == "b");
                let there = system.down != Some(primary);
                // Its journal is forgotten, and it begins anew.
                if there && node.hears(system.databases[primary].remembers()) {
                    node.crash(&mut left);
                    node.known = false;
                }
                there
            }
            Action::Restart(at) => {
                if bug == Some(Bug::UnfenceWithoutJournal) {
                    let configured = &mut system.databases[0];
                    let _ = configured.open(configured.epoch, None, bug);
                }
                system.nodes[at].restart(bug, &mut left);
                true
            }
            Action::TakesTheLead(at) => {
                // Who lost the lease after its takeover was committed, and before its target knew of it, is refused by that target, which asks for
                // the lease: that is not modelled (docs/model.md).
                let begun = system
                    .memory
                    .lost
                    .is_some_and(|lost| system.databases[1 - lost].epoch < system.memory.committed);
                let free = system.budget.leads > 0 && !begun;
                if free {
                    system.budget.leads -= 1;
                    system.leads = at;
                }
                free
            }
            Action::Asks(at, zone) => system.leads == at && self.asks(&mut system, at, zone, &mut left),
            Action::StepsDown(at) => {
                system.nodes[at].crash(&mut left);
                true
            }
            Action::JournalWritten(at) => system.nodes[at].persist(),
            Action::DoneLate(job, _) if system.misses(job) || system.fences_who_took_over(job) => false,
            Action::DoneLate(job, run) => {
                system.budget.late -= 1;
                system.late.retain(|other| *other != (job, run));
                if let Tried::Refused = self.try_job(&mut system, None, Task { job, run, stage: Stage::Sent })
                {
                    system.memory.refused_late = true;
                }
                true
            }
            Action::Applied(generation) => {
                let runs = system.nodes.iter().any(|node| node.streams[usize::from(generation)]);
                let source_zone = primary_of(generation);
                let [a, b] = &mut system.databases;
                let (source, target) = if source_zone == 0 { (a, b) } else { (b, a) };
                let changes = |database: &Database| database.rows;
                let before = changes(target);
                let applied = system.down.is_none() && runs && target.apply(generation, source);
                let changed = applied && changes(target) != before;
                // Nobody is sent to a lost one.
                let lost = system.memory.lost == Some(1 - source_zone);
                system.memory.mixed |= changed && !lost && target.is_open();
                applied
            }
            Action::LetThrough(at) => {
                let node = &mut system.nodes[at];
                let zone = primary_of(node.pool);
                node.in_flight = Some(zone);
                system.down != Some(zone)
            }
            Action::Writes(at) => match system.nodes[at].in_flight.take() {
                // Nobody answers it.
                Some(zone) if system.down == Some(zone) => true,
                Some(zone) => {
                    let led =
                        (self.budget.leads == 0 || system.leads == at) && !system.nodes[at].takes_over();
                    let turned_away = system.budget.writes > 0 && !Self::write(&mut system, zone, led);
                    // Who does not lead any more has to turn its clients away, and so has the late one of two that both move a service.
                    let alone = system.nodes.len() == 1;
                    let leads = alone || self.budget.leads > 0 && system.leads == at;
                    // Who goes by the shadow serves from a primary that may be fenced, until it is heard.
                    system.memory.turned_away |= turned_away && leads && system.nodes[at].unheard.is_none();
                    true
                }
                None => false,
            },
            Action::GoesRound(zone) => {
                let written = Self::write(&mut system, zone, false);
                let fenced = matches!(system.databases[zone].fence, Fence::Closed { .. });
                system.memory.held_off |= fenced;
                written || fenced
            }
        };
        if !possible {
            return None;
        }
        system.late.append(&mut left);
        system.late.sort_unstable();
        system.late.dedup();
        if system.budget.late == 0 {
            system.late.clear();
        }
        remember(last, &mut system);
        (system != *last).then_some(system)
    }

    /// What the databases say may change between the two, and before the next step: then it asks again.
    fn asks(&self, system: &mut System, at: usize, zone: usize, left: &mut Vec<(Job, u8)>) -> bool {
        let node = &mut system.nodes[at];
        if node.seen[zone].is_some() {
            return false;
        }
        let answers = system.down != Some(zone);
        node.seen[zone] = Some(if answers { system.databases[zone].remembers() } else { Heard::Nothing });
        let heard = node.seen.map(|heard| heard.unwrap_or(Heard::Nothing));
        let Some(told) = node.told(self.bug) else { return true };
        let (known, bug) = (node.known(), self.bug);
        match told {
            Ok(None) => node.restart(bug, left),
            Ok(Some(Found::Nothing)) if known.is_some() => node.restart(bug, left),
            // It does not start, and is started again.
            Err(_) | Ok(Some(Found::Nothing)) => {}
            Ok(Some(Found::Open { zone, generation })) => {
                if known.is_some_and(|known| knows_more(known, &zone, generation, &said(heard))) {
                    node.restart(bug, left);
                } else {
                    node.goes_on(&zone, generation, None, bug, left);
                }
            }
            Ok(Some(Found::Unfinished { from, to, generation, run })) => {
                let target = &mut system.databases[usize::from(&*to.0 == "b")];
                let number = run.parse().unwrap_or(0);
                let own = known.and_then(|known| known.run.as_ref()).is_some_and(|known| known.id == run);
                if own && !target.has_undone(number) {
                    node.restart(bug, left);
                } else if bug == Some(Bug::NotForestalled)
                    || target.forestall(generation.next().0 as u8, number)
                {
                    node.goes_on(&from, generation, Some(&run), bug, left);
                }
            }
            Ok(Some(Found::Shadow { zone, generation })) => {
                if known.is_some_and(|known| known.generation == generation && known.phase != Phase::Idle) {
                    node.restart(bug, left);
                } else {
                    node.follows(&zone, generation, bug, left);
                }
            }
        }
        true
    }

    /// A client writes, through the front of who leads (`led`) or not; the answer is the acknowledgement.
    fn write(system: &mut System, zone: usize, led: bool) -> bool {
        let database = &mut system.databases[zone];
        let memory = &mut system.memory;
        if !database.write(memory.writes) {
            return false;
        }
        memory.writes += 1;
        system.budget.writes -= 1;
        if memory.lost == Some(zone) {
            // Numbers that it gives from now on are of another history.
            memory.told |= u16::from(!led) << (memory.writes - 1);
            return true;
        }
        memory.reused |= database.sequence <= memory.given;
        memory.given = memory.given.max(database.sequence);
        if memory.committed > 1 && zone == primary_of(memory.committed) {
            let here = (database.log.len() - 1) as u8;
            let slot = database.slots[usize::from(memory.committed)];
            memory.one_way |= memory.lost.is_none() && slot.is_none_or(|from| from > here);
        }
        true
    }

    fn work(&self, system: &mut System, at: usize, task: Task, left: &mut Vec<(Job, u8)>) -> bool {
        match self.try_job(system, Some(at), task) {
            Tried::Waits => false,
            Tried::Stage(stage) => {
                let node = &mut system.nodes[at];
                let task = node.remove(task);
                if let Job::TakeOver(generation) = task.job {
                    // Of the lost one it is tried, and nobody waits for that.
                    left.push((Job::Guard(generation), 0));
                }
                node.tasks.push(Task { stage, ..task });
                node.tasks.sort_unstable();
                true
            }
            Tried::Refused => {
                // It is known not to have been done: nothing of it comes late.
                let task = Task { stage: Stage::Done(0), ..system.nodes[at].remove(task) };
                system.nodes[at].failed(task, self.bug, left);
                system.memory.refused_late = true;
                true
            }
        }
    }

    fn try_job(&self, system: &mut System, at: Option<usize>, task: Task) -> Tried {
        let bug = self.bug;
        if system.misses(task.job) {
            return Tried::Waits;
        }
        let node = at.map(|at| &mut system.nodes[at]);
        let (databases, holder) = (&mut system.databases, system.leads);
        let done = Tried::Stage(Stage::Done(0));
        let by = |result: Result<(), crate::database::Stale>| match result {
            Ok(()) => Tried::Stage(Stage::Done(0)),
            Err(_) => Tried::Refused,
        };
        match task.job {
            Job::Stream(generation) => {
                let (source, target) = (primary_of(generation), 1 - primary_of(generation));
                let index = usize::from(generation);
                if generation > 1 {
                    let Some(start) = databases[source].slots[index] else {
                        // A primary that was lost and is back: nobody may take it for one.
                        if databases[target].epoch < generation && bug != Some(Bug::LostNotGuarded) {
                            let _ = databases[target].guard(generation, bug);
                        }
                        return Tried::Refused;
                    };
                    databases[target].progress[index].get_or_insert(start);
                }
                if let Some(node) = node {
                    node.streams[index] = true;
                }
                by(databases[target].guard(generation, bug))
            }
            Job::Guard(generation) => by(databases[1 - primary_of(generation)].guard(generation, bug)),
            Job::EndStream(generation) => {
                if let Some(node) = node {
                    node.streams[usize::from(generation)] = false;
                }
                databases[primary_of(generation)].slots[usize::from(generation)] = None;
                done
            }
            Job::MakeReverseSlot(generation) => {
                let early = node
                    .is_some_and(|node| node.memory.as_ref().is_some_and(|state| state.phase.may_abort()));
                let database = &mut databases[primary_of(generation)];
                if bug == Some(Bug::ReverseSlotAfterSwap) && early {
                    database.claim(task.run);
                } else {
                    database.make_slot(generation, task.run);
                }
                done
            }
            Job::DropReverseSlot(generation, run) => {
                databases[primary_of(generation)].drop_slot(generation, run, bug);
                done
            }
            Job::Drain => {
                let closing = |node: &Node| node.tasks.iter().any(|task| task.job == Job::GateClosed);
                match node {
                    Some(node) if node.in_flight.is_none() && !closing(node) => done,
                    _ => Tried::Waits,
                }
            }
            Job::Fence(generation) => self.fence(databases, node, holder, generation, task),
            Job::AwaitMarker(position) => {
                let Some(node) = node else { return Tried::Waits };
                let generation = node.memory.as_ref().map_or(0, |state| state.generation.0 as u8);
                if !node.streams[usize::from(generation)] {
                    return Tried::Refused;
                }
                let applied = databases[1 - primary_of(generation)].progress[usize::from(generation)];
                if applied >= Some(position) { done } else { Tried::Waits }
            }
            Job::SetSequences(generation, number) => {
                by(databases[primary_of(generation)].set_sequence(generation, task.run, number, bug))
            }
            Job::TakeOver(generation) => {
                if let Some(node) = node {
                    // Its streams end, and so does what was let through.
                    node.streams[..usize::from(generation)].fill(bug == Some(Bug::OldStreamGoesOn));
                    node.in_flight = None;
                }
                by(databases[primary_of(generation)].take_over(generation, bug))
            }
            Job::Lift(generation, took_over) => {
                let database = &mut databases[primary_of(generation)];
                let before = database.epoch;
                let opened = database.open_committed(generation, task.run, bug);
                if took_over && opened.is_ok() {
                    database.took_over = if bug == Some(Bug::TookOverUnsaid) { 0 } else { generation };
                    if bug == Some(Bug::GenerationNotRaised) {
                        (database.epoch, database.took_over) = (before.min(generation - 1), 0);
                    }
                }
                by(opened)
            }
            Job::Undo(generation) => {
                let fencing = |node: &Node| {
                    node.tasks.iter().any(|task| {
                        matches!(task.job, Job::Fence(_)) && !matches!(task.stage, Stage::Done(_))
                    })
                };
                if node.is_some_and(|node| fencing(node)) {
                    return Tried::Waits;
                }
                by(databases[primary_of(generation)].open(generation, Some(task.run), bug))
            }
            Job::Compare(generation) => {
                let (source, target) = (primary_of(generation), 1 - primary_of(generation));
                let applied = databases[target].progress[usize::from(generation)];
                if applied == Some(databases[source].log.len() as u8) {
                    Tried::Stage(Stage::Done(u8::from(databases[0].rows == databases[1].rows)))
                } else {
                    Tried::Waits
                }
            }
            Job::ScaleUp
            | Job::ScaleDown(_)
            | Job::CheckGuards
            | Job::SwapPool(_)
            | Job::GateClosed
            | Job::GateOpened => done,
        }
    }

    fn fence(
        &self,
        databases: &mut [Database; 2],
        node: Option<&mut Node>,
        holder: usize,
        generation: u8,
        task: Task,
    ) -> Tried {
        let old = &mut databases[primary_of(generation - 1)];
        // Runs from 9 on are the second node's.
        let leads = self.budget.leads == 0 || holder == usize::from(task.run >= 9);
        let position = match (self.bug, task.stage) {
            (Some(Bug::FenceSkipped), _) => old.log.len() as u8,
            (Some(Bug::FinalPositionBeforeKill), Stage::Sent) => {
                return Tried::Stage(Stage::Half(old.mark()));
            }
            (_, Stage::Half(position)) => {
                old.shut(generation, task.run, position);
                position
            }
            (bug, _) => match old.close(generation, task.run, leads, bug) {
                Ok(position) => position,
                Err(_) => return Tried::Refused,
            },
        };
        if let Some(node) = node {
            node.sequence = Some(old.sequence);
        }
        Tried::Stage(Stage::Done(position))
    }

    /// What happens next when nothing goes wrong any more and everybody gets a turn: the first of these that changes
    /// anything.
    fn calmly(&self, system: &System) -> Option<System> {
        let mut actions = Vec::new();
        self.possible(system, &mut actions);
        let turn = |action: &Action| match action {
            Action::Restart(_) | Action::StepsDown(_) | Action::Asks(..) | Action::Hears(_) => 0,
            Action::JournalWritten(_) => 1,
            Action::Answered(..) => 2,
            Action::Done(..) => 3,
            Action::Writes(_) => 4,
            Action::Applied(_) => 5,
            Action::DeadlinePasses(_) => 6,
            _ => 7,
        };
        actions.retain(|action| turn(action) < 7);
        actions.sort_by_key(turn);
        actions.into_iter().find_map(|action| self.after(system, action))
    }

    /// Nothing is under way, the leader's gate is open and so is the database behind it, and its stream runs.
    fn at_rest(&self, system: &System) -> bool {
        let several = self.budget.leads > 0;
        let leader = &system.nodes[if several { system.leads } else { system.memory.by }];

        // Who took over has no shadow until it is seeded anew; the lost one is fenced, if it is back.
        let lost = system.memory.lost.filter(|lost| *lost != primary_of(leader.pool));
        let alone = lost.is_some_and(|lost| system.down == Some(lost) || !system.databases[lost].is_open());
        let idle = leader.memory.as_ref().is_some_and(|state| state.run.is_none());
        let serves = system.databases[primary_of(leader.pool)].is_open();
        let streams = alone || leader.streams[usize::from(leader.pool)];
        let newest = several || leader.pool == system.memory.committed;
        idle && !leader.gate_closed && serves && streams && newest
    }

    /// Whether every run ends from here on, once nothing goes wrong any more and everybody gets a turn.
    pub fn ends(&self, system: &System) -> bool {
        /// Far above the longest road from any state.
        const LONGEST: usize = 200;
        let mut road = Vec::new();
        let mut now = system.clone();
        // What comes late is not waited for.
        now.late.clear();
        loop {
            let print = fingerprint(&now);
            let known = self.ends.lock().unwrap_or_else(PoisonError::into_inner).contains(&print);
            if known {
                break;
            }
            if road.contains(&print) || road.len() > LONGEST {
                // It asks again and again, and does not know whom to serve from.
                if road.len() <= LONGEST && self.waits_for_what_is_down(&now) {
                    now.down = None;
                    continue;
                }
                return false;
            }
            road.push(print);
            if self.is_left_to_a_person(&now) {
                break;
            }
            match self.calmly(&now) {
                Some(next) => now = next,
                // It ends without the lost one, and when that is back.
                None if self.at_rest(&now) => match now.down.take() {
                    Some(_) => {}
                    None => break,
                },
                None if self.waits_for_what_is_down(&now) => now.down = None,
                None => return false,
            }
        }
        self.ends.lock().unwrap_or_else(PoisonError::into_inner).extend(road);
        true
    }
}

fn fingerprint(system: &System) -> u64 {
    use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
    BuildHasherDefault::<DefaultHasher>::default().hash_one(system)
}

/// Notes what the properties need to know of the past.
fn remember(last: &System, system: &mut System) {
    for (at, (before, node)) in last.nodes.iter().zip(&system.nodes).enumerate() {
        let (old, new) = (before.journal.generation.0 as u8, node.journal.generation.0 as u8);
        let memory = &mut system.memory;
        memory.uncommitted |= new < old;
        if new > old {
            let run = node.journal.run.as_ref().filter(|run| run.taken_over);
            let lost = run.map(|run| usize::from(&*run.from.0 == "b"));
            // Another node may have committed the same one, and be gone.
            if new > memory.committed || lost.is_some() {
                memory.lost = lost;
            }
            memory.twice |= new <= memory.committed;
            if new > memory.committed {
                (memory.committed, memory.by) = (new, at);
            }
        }
    }
    let lost = system.memory.lost.map(|lost| &system.databases[lost]);
    system.memory.guarded |=
        lost.is_some_and(|lost| lost.fence == Fence::Guarded && lost.epoch == system.memory.committed);
}
