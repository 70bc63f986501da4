//! Looks at every state within a bound and reports.

use std::fmt::Write as _;

use stateright::{Checker, Expectation, HasDiscoveries, Model, Path};

use crate::bugs::Bug;
use crate::system::{Action, Budget, Cutover, System};

/// A bound by name.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// What it is about.
    pub name: &'static str,
    /// What may happen.
    pub budget: Budget,
    /// Coverage that this bound cannot have.
    pub unseen: &'static [&'static str],
}

const NOTHING: Budget = Budget::NOTHING;
/// Coverage that needs something late.
const LATE: &str = "a late effect is refused";

/// Coverage that needs a takeover.
const BACK: [&str; 2] =
    ["a lost primary is back and fenced", "a lost primary is back and open beside who took over"];
/// Coverage that needs a move.
const MOVED: [&str; 2] = ["a client that goes round the gate meets the fence", "a fence is undone"];

/// Bounds that are looked at in seconds.
pub const SMALL: [Scenario; 6] = [
    Scenario {
        name: "one move, each fault once",
        budget: Budget { writes: 1, moves: 1, crashes: 1, failures: 1, late: 1, aborts: 1, ..NOTHING },
        unseen: &BACK,
    },
    Scenario {
        name: "there and back, undisturbed",
        budget: Budget { writes: 1, moves: 2, ..NOTHING },
        unseen: &[LATE, BACK[0], BACK[1]],
    },
    Scenario {
        name: "another node leads, undisturbed",
        budget: Budget { writes: 1, moves: 1, leads: 1, ..NOTHING },
        unseen: &BACK,
    },
    Scenario {
        name: "a takeover",
        budget: Budget { writes: 2, losses: 1, takeovers: 1, crashes: 1, ..NOTHING },
        unseen: &MOVED,
    },
    Scenario {
        name: "a takeover, and a node with an old journal leads",
        budget: Budget { writes: 1, losses: 1, takeovers: 1, leads: 1, old_journal: true, ..NOTHING },
        unseen: &MOVED,
    },
    Scenario {
        name: "a takeover, and a node without a journal leads",
        budget: Budget { writes: 1, losses: 1, takeovers: 1, leads: 1, ..NOTHING },
        unseen: &MOVED,
    },
];

/// Bounds that are looked at in minutes.
pub const FULL: [Scenario; 11] = [
    SMALL[0],
    Scenario {
        name: "one move, more clients",
        budget: Budget { writes: 2, moves: 1, crashes: 1, failures: 1, late: 1, ..NOTHING },
        unseen: &BACK,
    },
    Scenario {
        name: "one move, more crashes",
        budget: Budget { writes: 1, moves: 1, crashes: 2, late: 2, ..NOTHING },
        unseen: &BACK,
    },
    Scenario {
        name: "there and back",
        budget: Budget { writes: 1, moves: 2, failures: 1, late: 1, ..NOTHING },
        unseen: &BACK,
    },
    Scenario {
        name: "there and back, more clients",
        budget: Budget { writes: 2, moves: 2, late: 1, ..NOTHING },
        unseen: &BACK,
    },
    Scenario {
        name: "another node leads",
        budget: Budget { writes: 1, moves: 1, crashes: 1, late: 1, leads: 1, ..NOTHING },
        unseen: &BACK,
    },
    Scenario {
        name: "a node left behind",
        budget: Budget { writes: 1, moves: 1, stale_moves: 1, ..NOTHING },
        unseen: &BACK,
    },
    SMALL[4],
    SMALL[5],
    Scenario {
        name: "a takeover, each fault once",
        budget: Budget { writes: 2, losses: 1, takeovers: 1, crashes: 1, failures: 1, late: 1, ..NOTHING },
        unseen: &MOVED,
    },
    Scenario {
        name: "a takeover amid a move",
        budget: Budget { writes: 1, moves: 1, losses: 1, takeovers: 1, crashes: 1, late: 1, ..NOTHING },
        unseen: &[],
    },
];

/// A property that does not hold, and the shortest way there.
#[derive(Clone, Debug)]
pub struct Broken {
    /// Which.
    pub property: &'static str,
    /// One line for each step.
    pub trace: Vec<String>,
}

/// What was found within a bound.
#[derive(Clone, Debug)]
pub struct Found {
    /// States that differ.
    pub states: usize,
    /// Longest way from the first state.
    pub depth: usize,
    /// All that does not hold.
    pub broken: Vec<Broken>,
    /// What should have been seen and was not.
    pub unseen: Vec<&'static str>,
}

/// How `bug` shows, in as few steps as possible; none: what it should break holds.
pub fn catch(bug: Bug) -> Option<Broken> {
    // One thread goes breadth first, so that the first way found is a shortest one.
    let found = search(Cutover::new(bug.budget(), Some(bug)), 1, Some(bug.breaks()));
    found.broken.into_iter().find(|broken| broken.property == bug.breaks())
}

/// Looks at every state within `budget`, or until a property that must hold breaks.
pub fn explore(budget: Budget, threads: usize) -> Found {
    search(Cutover::new(budget, None), threads, None)
}

fn search(model: Cutover, threads: usize, until: Option<&'static str>) -> Found {
    let properties = model.properties();
    let names = |expectation: Expectation| {
        properties
            .iter()
            .filter(move |property| property.expectation == expectation)
            .map(|property| property.name)
            .collect::<Vec<_>>()
    };
    let must_hold = names(Expectation::Always);
    let finish = HasDiscoveries::AnyOf(match until {
        Some(property) => [property].into_iter().collect(),
        None => must_hold.iter().copied().collect(),
    });
    let checker = model.checker().threads(threads).finish_when(finish).spawn_bfs().join();
    let discoveries = checker.discoveries();
    let broken = must_hold
        .into_iter()
        .filter_map(|property| Some(Broken { property, trace: trace(discoveries.get(property)?) }))
        .collect();
    let unseen = names(Expectation::Sometimes)
        .into_iter()
        .filter(|property| !discoveries.contains_key(property))
        .collect();
    Found { states: checker.unique_state_count(), depth: checker.max_depth(), broken, unseen }
}

fn trace(path: &Path<System, Action>) -> Vec<String> {
    let steps = path.clone().into_vec();
    let mut lines = Vec::new();
    for pair in steps.windows(2) {
        let [(before, Some(action)), (after, _)] = pair else { continue };
        lines.push(line(*action, before, after));
    }
    lines
}

/// A step in words, with where the node stands afterwards.
fn line(action: Action, before: &System, after: &System) -> String {
    let zone = |at: usize| ["a", "b"][at];
    let node = |at: usize| if after.nodes.len() > 1 { format!("node {}: ", at + 1) } else { String::new() };
    let mut text = match action {
        Action::Migrate(at) => format!("{}a migration is asked for", node(at)),
        Action::Abort(at) => format!("{}an operator aborts", node(at)),
        Action::DeadlinePasses(at) => format!("{}the deadline passes", node(at)),
        Action::GuardFails(at, _) => format!("{}a guard fails", node(at)),
        Action::Done(at, task) => format!("{}{:?} is done", node(at), task.job),
        Action::Answered(at, task) => format!("{}{:?} is answered", node(at), task.job),
        Action::Failed(at, task) => format!("{}{:?} fails, or its answer is lost", node(at), task.job),
        Action::Crash(at) => format!("{}the process dies", node(at)),
        Action::Restart(at) => format!("{}a process starts", node(at)),
        Action::TakesTheLead(at) => format!("{}takes the lead", node(at)),
        Action::Asks(at, of) => format!("{}asks {} what it remembers", node(at), zone(of)),
        Action::StepsDown(at) => format!("{}sees that another leads", node(at)),
        Action::Hears(at) => format!("{}its primary answers", node(at)),
        Action::TakeOver(at) => format!("{}an operator orders the takeover", node(at)),
        Action::Lost(zone_at) => format!("{} is lost", zone(zone_at)),
        Action::Back(zone_at) => format!("{} is back", zone(zone_at)),
        Action::JournalWritten(at) => format!("{}the journal is written", node(at)),
        Action::DoneLate(job, run) => format!("{job:?} of run {run} is done late"),
        Action::Applied(generation) => format!("stream {generation} applies a transaction"),
        Action::LetThrough(at) => format!("{}the gate lets a request through", node(at)),
        Action::Writes(at) => format!("{}the request writes", node(at)),
        Action::GoesRound(at) => format!("a client goes round the gate to {}", zone(at)),
    };
    for (at, (old, new)) in before.nodes.iter().zip(&after.nodes).enumerate() {
        if old.journal.phase != new.journal.phase {
            let _ = write!(text, " → {}{}", node(at), new.journal.phase.name());
        }
    }
    text
}
