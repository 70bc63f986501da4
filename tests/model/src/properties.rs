//! What must hold of every state that can be reached.

use stateright::{Model, Property};

use crate::database::Database;
use crate::node::primary_of;
use crate::system::{Action, Cutover, Memory, System};

impl Model for Cutover {
    type State = System;
    type Action = Action;

    fn init_states(&self) -> Vec<System> {
        vec![self.first()]
    }

    fn actions(&self, state: &System, actions: &mut Vec<Action>) {
        self.possible(state, actions);
    }

    fn next_state(&self, last: &System, action: Action) -> Option<System> {
        self.after(last, action)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::<Self>::always("no acknowledged write is lost", |model, system| {
                let Memory { writes, told, lost, .. } = system.memory;
                let holds = |database: &Database| {
                    (0..writes).all(|number| database.holds(number) || told & 1 << number != 0)
                };
                // What a lost primary has is what was told.
                if let Some(lost) = lost
                    && system.databases[1 - lost].is_open()
                {
                    return holds(&system.databases[1 - lost]);
                }
                // Where a node may have committed what another forestalls, it counts who takes writes.
                if model.budget.leads > 0 {
                    let mut open = system.databases.iter().filter(|database| database.is_open());
                    return open.all(holds) && system.databases.iter().any(holds);
                }
                holds(&system.databases[primary_of(system.memory.committed)])
            }),
            // A lost primary that is back is open until it is seen; but who leads does not serve from it.
            Property::<Self>::always("one writer at a time", |_, system| {
                let both = system.databases[0].is_open() && system.databases[1].is_open();
                let Memory { lost, guarded, .. } = system.memory;
                let leader = &system.nodes[system.leads];
                let serves =
                    |zone| leader.memory.is_some() && !leader.gate_closed && primary_of(leader.pool) == zone;
                let there = |zone| system.down != Some(zone);
                !both || !guarded && lost.is_some_and(|lost| !(serves(lost) && there(lost)))
            }),
            Property::<Self>::always("nothing reaches a database that clients write to", |_, system| {
                !system.memory.mixed
            }),
            Property::<Self>::always("no abort after the commit", |_, system| !system.memory.uncommitted),
            Property::<Self>::always("a generation is committed once", |model, system| {
                !system.memory.twice || model.budget.leads > 0
            }),
            Property::<Self>::always("nobody who was let through is turned away", |_, system| {
                !system.memory.turned_away
            }),
            Property::<Self>::always("every write can go the way back", |model, system| {
                // Of two that both move a service, the one that gives up takes the slot of the same generation with it.
                !system.memory.one_way || model.budget.stale_moves > 0
            }),
            Property::<Self>::always("no number of a sequence is given twice", |_, system| {
                !system.memory.reused
            }),
            Property::<Self>::always("nothing is retired before both sides are equal", |_, system| {
                system.nodes.iter().all(|node| !node.unverified)
            }),
        ];
        // With a mistake switched on, safety is what it must break. Of two nodes that both move a service one has to give
        // up, perhaps until a person comes.
        let ends = self.bug.is_some_and(|bug| bug.breaks() == "every run ends");
        if self.bug.is_none() && self.budget.stale_moves == 0 || ends {
            properties.push(Property::<Self>::always("every run ends", Self::ends));
        }
        // Coverage: a model in which none of this happens proves nothing.
        properties.extend([
            Property::<Self>::sometimes("a client that goes round the gate meets the fence", |_, system| {
                system.memory.held_off
            }),
            Property::<Self>::sometimes("a late effect is refused", |_, system| system.memory.refused_late),
            Property::<Self>::sometimes("a fence is undone", |_, system| system.databases[0].undone != 0),
            Property::<Self>::sometimes("a service moves and the old primary is retired", |_, system| {
                let state = &system.nodes[0].journal;
                state.generation.0 > 1 && state.run.is_none()
            }),
            Property::<Self>::sometimes("a lost primary is back and fenced", |_, system| {
                system.memory.guarded && system.down.is_none()
            }),
            Property::<Self>::sometimes(
                "a lost primary is back and open beside who took over",
                |_, system| system.memory.lost.is_some() && system.databases.iter().all(Database::is_open),
            ),
        ]);
        properties
    }
}
