//! What must hold of every state that can be reached.

use stateright::{Model, Property};

use crate::bugs::Bug;
use crate::database::Database;
use crate::node::primary_of;
use crate::system::{Action, Cutover, System};

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
                let holds =
                    |database: &Database| (0..system.memory.writes).all(|number| database.holds(number));
                // Where a node may have committed what another forestalls, it counts who takes writes.
                if model.budget.leads > 0 {
                    let mut open = system.databases.iter().filter(|database| database.is_open());
                    return open.all(holds) && system.databases.iter().any(holds);
                }
                holds(&system.databases[primary_of(system.memory.committed)])
            }),
            Property::<Self>::always("one writer at a time", |_, system| {
                !(system.databases[0].is_open() && system.databases[1].is_open())
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
        let leading = self.bug == Some(Bug::LeaseUnchecked);
        if self.bug.is_none() && self.budget.stale_moves == 0 || leading {
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
        ]);
        properties
    }
}
