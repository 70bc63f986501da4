//! The small bounds in seconds; `make model` has the full ones.

use godwit_model::bugs::Bug;
use godwit_model::run::{SMALL, catch, explore};

#[test]
fn every_state_within_the_small_bounds_is_as_it_must_be() {
    for scenario in SMALL {
        let found = explore(scenario.budget, 2);
        assert!(found.broken.is_empty(), "{}: {:#?}", scenario.name, found.broken);
        let known: Vec<&str> =
            found.unseen.into_iter().filter(|seen| !scenario.unseen.contains(seen)).collect();
        assert!(known.is_empty(), "{}: never seen: {known:?}", scenario.name);
        assert!(found.states > 1000, "{}: only {} states", scenario.name, found.states);
    }
}

#[test]
fn every_mistake_is_caught_by_the_property_it_breaks() {
    for bug in Bug::SEEDED.into_iter().chain(Bug::LEADING).chain(Bug::TAKING_OVER).chain(Bug::FOUND) {
        let broken = catch(bug).unwrap_or_else(|| panic!("not caught: {}", bug.name()));
        assert!(!broken.trace.is_empty());
    }
}
