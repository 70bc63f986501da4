//! Nodes that may lead the same resources.

use std::time::Duration;

use super::{BASE, load};

fn node(more: &str) -> String {
    BASE.replacen("name: edge-1", &format!("name: edge-1\n  {more}"), 1)
}

#[test]
fn a_lease_is_as_long_as_others_wait() {
    assert_eq!(load(BASE).expect("the base is valid").node.lease, None);
    for (text, expected) in [("lease: 3s", 3), ("lease: 5m", 300)] {
        let config = load(&node(text)).expect(text);
        assert_eq!(config.node.lease, Some(Duration::from_secs(expected)));
    }
    for (text, expected) in [
        ("lease: 2s", "between 3s and 5m"),
        ("lease: 6m", "between 3s and 5m"),
        ("lease: yes", "node.lease"),
        ("lease: { length: 10s }", "node.lease"),
    ] {
        let errors = load(&node(text)).expect_err(text);
        assert!(errors.contains(expected), "{errors}");
    }
}

#[test]
fn a_lease_needs_a_database() {
    let text = node("lease: 10s");
    let without = text.lines().filter(|line| !line.contains("postgres:")).collect::<Vec<_>>().join("\n");
    let errors = load(&without).expect_err("nowhere to keep it");
    assert!(errors.contains("node.lease") && errors.contains("there is none"), "{errors}");
}

#[test]
fn a_zone_names_who_may_lead_in_a_nodes_stead() {
    let zone = |text: &str| BASE.replacen("east: {}", &format!("east: {text}"), 1);
    let config = load(&zone("{ node: edge-2, standbys: [edge-3, edge-4] }")).expect("valid");
    let nodes: Vec<_> = config.zones["east"].nodes().cloned().collect();
    assert_eq!(nodes, ["edge-2", "edge-3", "edge-4"]);
    for text in ["{ standbys: edge-3 }", "{ standbys: [\"edge 3\"] }"] {
        let errors = load(&zone(text)).expect_err(text);
        assert!(errors.contains("zones.east.standbys"), "{errors}");
    }
}
