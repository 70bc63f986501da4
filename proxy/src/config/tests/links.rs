//! Ways to other nodes.

use std::path::Path;

use super::{BASE, cases, load};

const AGENT: &str = "\
node:
  name: edge-2
  zone: east
  link: { listen: 0.0.0.0:9443, tls: { cert: a.crt, key: a.key, ca: ca.crt } }
zones: { west: {}, east: {} }
resources:
  orders:
    placements:
      east: { postgres: { dsn: \"postgres://godwit@127.0.0.1/orders\" } }
";

#[test]
fn links_and_nodes_without_fronts() {
    let config = load(AGENT).expect("a node that only serves the link is valid");
    assert!(config.resources["orders"].http.is_none());
    assert_eq!(config.resources["orders"].primary, "east");
    let link = config.node.link.expect("a link");
    assert_eq!(link.tls.ca, Path::new("ca.crt"));

    let report: Vec<String> = [
        ("zone: east", "zone: west"),
        ("  link: { listen: 0.0.0.0:9443, tls: { cert: a.crt, key: a.key, ca: ca.crt } }\n", ""),
        (", ca: ca.crt", ""),
        (", tls: { cert: a.crt, key: a.key, ca: ca.crt }", ""),
    ]
    .map(|(from, to)| {
        let errors = load(&AGENT.replacen(from, to, 1)).map_or_else(|errors| errors, |_| "valid".into());
        format!("{from:?} -> {to:?}\n{errors}\n")
    })
    .into();
    insta::assert_snapshot!(report.join("\n"));
    insta::assert_snapshot!(cases(&[
        ("  east: {}", "  east: { link: \"edge-2:9443\" }"),
        ("  east: {}", "  east: { link: \"edge-2:9443\", node: edge-2 }"),
        ("  east: {}", "  east: { link: edge-2, node: edge-2 }"),
    ]));
    // The node of a third zone leads: one end of the stream is to be its own.
    let own = "zone: north\n  link: { listen: 0.0.0.0:9443, tls: { cert: a.crt, key: a.key, ca: ca.crt } }\n";
    let third = BASE.replacen("zone: west\n", own, 1).replacen(
        "  east: {}",
        "  east: { link: \"e:1\", node: e }\n  north: {}",
        1,
    );
    let linked = third.replacen("location: [53.3, -6.2] }", "link: \"w:1\", node: w }", 1);
    assert_ne!(linked, third);
    assert!(load(&third).is_ok(), "it reaches the database in west itself");
    let refused = load(&linked).expect_err("it would have no end of the stream");
    for said in ["resources.orders ", "between east and west", "leave out zones.east.link, or that of west"] {
        assert!(refused.contains(said), "{said}: {refused}");
    }
}
