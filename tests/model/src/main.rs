//! `make model`: every state within the full bounds, and every seeded bug with how it is caught.

use std::process::ExitCode;

use godwit_model::bugs::Bug;
use godwit_model::run::{FULL, Found, SMALL, catch, explore};

fn main() -> ExitCode {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let full = !std::env::args().any(|argument| argument == "--small");
    let mut good = true;
    let mut states = 0;
    for scenario in if full { &FULL[..] } else { &SMALL[..] } {
        let Found { states: seen, depth, broken, unseen } = explore(scenario.budget, threads);
        states += seen;
        println!("{}: {seen} states, {depth} steps deep, all of {:?}", scenario.name, scenario.budget);
        for broken in &broken {
            println!("  BROKEN: {}\n    {}", broken.property, broken.trace.join("\n    "));
        }
        let unseen: Vec<_> = unseen.iter().filter(|seen| !scenario.unseen.contains(seen)).collect();
        for property in &unseen {
            println!("  NEVER SEEN: {property}");
        }
        good &= broken.is_empty() && unseen.is_empty();
    }
    println!("{states} states in all\n");
    for bug in Bug::SEEDED.into_iter().chain(Bug::LEADING).chain(Bug::TAKING_OVER).chain(Bug::FOUND) {
        match catch(bug) {
            Some(broken) => {
                println!("caught: {} breaks \"{}\"", bug.name(), broken.property);
                for (number, line) in broken.trace.iter().enumerate() {
                    println!("  {:>2}. {line}", number + 1);
                }
            }
            None => {
                println!("NOT CAUGHT: {}", bug.name());
                good = false;
            }
        }
    }
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
