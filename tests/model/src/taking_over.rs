//! What a takeover adds to the system: an operator who orders it, a database that does not answer.

use crate::database::Fence;
use crate::node::{Heard, Job, primary_of};
use crate::system::{Cutover, System};

impl Cutover {
    /// Where the primary does not answer and the shadow has a whole copy, as the plan wants it.
    pub(crate) fn take_over(&self, system: &mut System, at: usize, left: &mut Vec<(Job, u8)>) -> bool {
        let Some(state) = &system.nodes[at].memory else { return false };
        let (primary, shadow) = (usize::from(&*state.primary.0 == "b"), usize::from(&*state.shadow.0 == "b"));
        let generation = state.generation.0 as u8;
        let database = &system.databases[shadow];
        let closed = matches!(database.fence, Fence::Closed { .. }) && database.epoch == generation;
        let whole = database.progress[usize::from(generation)].is_some() || closed;
        if system.down != Some(primary) || !whole {
            return false;
        }
        let missing = (0..system.memory.writes).filter(|number| !database.holds(*number));
        let told = missing.fold(0, |bits, number| bits | 1 << number);
        let began = system.nodes[at].take_over(self.bug, left);
        if began {
            system.budget.takeovers -= 1;
            system.memory.told |= told;
        }
        began
    }

    /// Nobody has said that what is down is lost, or nobody has heard it who leads now.
    pub(crate) fn waits_for_what_is_down(&self, system: &System) -> bool {
        let leader = &system.nodes[if self.budget.leads > 0 { system.leads } else { system.memory.by }];
        system.down.is_some_and(|down| {
            system.memory.lost != Some(down) || &*leader.journal.primary.0 == ["a", "b"][down]
        })
    }

    /// A takeover was under way, and a node that takes the lead does not find who serves (docs/operations.md).
    pub(crate) fn is_left_to_a_person(&self, system: &System) -> bool {
        let mut node = system.nodes[system.leads].clone();
        let under_way = system.memory.lost.is_some_and(|lost| {
            let shadow = &system.databases[1 - lost];
            shadow.fence == Fence::Guarded && shadow.epoch == system.memory.committed
        });
        if self.budget.leads == 0 || system.leads == 0 || node.memory.is_some() || !under_way {
            return false;
        }
        node.seen = [0, 1].map(|zone| {
            let answers = system.down != Some(zone);
            Some(if answers { system.databases[zone].remembers() } else { Heard::Nothing })
        });
        matches!(node.told(self.bug), Some(Err(_)))
    }
}

impl System {
    /// A takeover that is done once more, late, when the database is open already. The database refuses that (`takes_over` of
    /// `godwit.guard_fence`), which is not modelled (docs/model.md).
    pub(crate) fn fences_who_took_over(&self, job: Job) -> bool {
        let Job::TakeOver(generation) = job else { return false };
        let database = &self.databases[primary_of(generation)];
        database.is_open() && database.epoch == generation
    }

    /// A database that this needs does not answer.
    pub(crate) fn misses(&self, job: Job) -> bool {
        self.down.is_some_and(|down| job.needs()[down])
    }
}
