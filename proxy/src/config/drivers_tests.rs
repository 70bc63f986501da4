//! What the loader says about outside drivers, zones to choose, what a worker costs, and the overlay.

use super::model::{Driver, Way};
use super::tests::{BASE, SECRET, load, load_changed};

const FLEET: &str = "\
drivers:
  fleet:
    exec:
      argv: [/opt/fleet, godwit]
      env: { TOKEN: { file: secret }, PLAIN: text }
      parameters: { size: 3, tags: [a, b] }
      deadline: 5m
  cloud:
    webhook: { url: \"https://p.example/x\", secret: { env: PGPASS }, ca: ca.pem, every: 1m, password: { file: secret } }
resources:
";

fn flexible() -> String {
    let east = "      east:\n        http: [\"127.0.0.1:8002\"]\n        postgres: { dsn: \"postgres://godwit@127.0.0.1:5433/orders\", password: { env: PGPASS } }\n";
    assert!(BASE.contains(east));
    BASE.replacen(east, "", 1).replacen("resources:\n", FLEET, 1).replacen(
        "    primary: west",
        "    location: flexible\n    driver: fleet\n    primary: west",
        1,
    )
}

#[test]
fn a_worker_costs_what_its_placement_says_or_else_its_zone() {
    let zones = "\n  west: { provider: own, location: [53.3, -6.2] }\n  east: {}\n";
    let priced = "\n  west: { cost: 0.40/h }\n  east: { cost: 0.30/h }\n";
    assert!(BASE.contains(zones));
    let main = BASE.replacen(zones, priced, 1);
    let costs = |main: &str| {
        let config = load(main).expect("valid");
        ["west", "east"].map(|zone| config.resources["orders"].placements[zone].cost_per_hour)
    };
    assert_eq!(costs(&main), [Some(0.4), Some(0.3)]);
    let own = "      east:\n        cost: 0.10/h\n";
    assert_eq!(costs(&main.replacen("      east:\n", own, 1)), [Some(0.4), Some(0.1)]);
    assert_eq!(costs(BASE), [None, None]);
}

#[test]
fn outside_drivers_and_a_zone_to_choose() {
    let config = load(&flexible()).expect("valid");
    let Driver::Outside(fleet) = &config.drivers["fleet"] else { panic!("an outside driver") };
    let Way::Exec(exec) = &fleet.way else { panic!("exec") };
    assert_eq!(exec.argv, ["/opt/fleet", "godwit"]);
    assert_eq!(exec.environment["TOKEN"].0, SECRET);
    assert_eq!(fleet.parameters, serde_json::json!({"size": 3, "tags": ["a", "b"]}));
    assert_eq!((fleet.deadline.as_secs(), fleet.every.as_secs()), (300, 15));
    let orders = &config.resources["orders"];
    assert_eq!(orders.flexible.as_ref().and_then(|flexible| flexible.driver.as_deref()), Some("fleet"));
    assert_eq!(orders.placements.len(), 1);

    // A placement that leaves to its driver where it is, with the primary's size.
    let two = flexible().replacen("    location: flexible\n    driver: fleet\n", "", 1).replacen(
        "    primary: west",
        "      east: { driver: cloud }\n    primary: west",
        1,
    );
    let config = load(&two).expect("valid");
    let east = &config.resources["orders"].placements["east"];
    assert!(east.provided.http && east.provided.postgres && east.capacity == 1 && east.http.is_empty());
}

#[test]
fn what_is_wrong_with_them() {
    let base = flexible();
    let report: Vec<String> = [
        ("argv: [/opt/fleet, godwit]", "argv: []"),
        ("TOKEN: { file: secret }", "TOKEN: { file: nowhere }"),
        ("deadline: 5m", "deadline: 5"),
        ("https://p.example/x", "ftp://p.example/x"),
        ("https://p.example/x", "https://user:pass@p.example/x"),
        ("https://p.example/x", "http://127.0.0.1/x"),
        ("secret: { env: PGPASS }", "secret: hunter2"),
        ("ca: ca.pem", "ca: nowhere.pem"),
        ("    exec:\n", "    exec: { argv: [x] }\n    webhook: 3\n    rest:\n"),
        ("  cloud:\n    webhook:", "  cloud:\n    kubernetes: { namespace: Shop }\n  hook:\n    webhook:"),
        ("    driver: fleet\n", ""),
        ("    driver: fleet\n", "    driver: fleeet\n"),
        ("    location: flexible\n", ""),
        ("        http: [\"127.0.0.1:8001\"]\n", "        driver: fleet\n"),
        ("policy: careful", "policy: thin"),
    ]
    .map(|(from, to)| {
        assert!(base.contains(from), "{from}");
        let read = load_changed(&base.replacen(from, to, 1), "{\"version\": 1}");
        let errors = read.map_or_else(|errors| errors, |_| "valid".into());
        format!("{to:?}\n{errors}\n")
    })
    .into();
    insta::assert_snapshot!(report.join("\n"));
}

const OVERLAY: &str = r#"{
  "version": 1,
  "changed": { "orders": {
    "shadow": { "by": "ann", "at_ms": 1, "value": { "enabled": false, "capacity": "30%" } },
    "replication": { "by": "ann", "at_ms": 2, "value": { "mode": "hybrid", "critical": ["public.payments"] } }
  } },
  "reserved": { "cart": { "by": "bob", "at_ms": 3, "value": {
    "location": "flexible", "driver": "cloud", "primary": "west",
    "fronts": { "http": { "listen": "127.0.0.1:8090" } },
    "placements": { "west": { "http": ["127.0.0.1:8003"], "capacity": 2 } }
  } } }
}"#;

#[test]
fn what_the_api_changed_is_read_like_the_file() {
    let config = load_changed(&flexible(), OVERLAY).expect("valid");
    let orders = &config.resources["orders"].policy;
    assert!(!orders.shadow_enabled && orders.critical == ["public.payments"]);
    assert_eq!(config.resources["cart"].placements["west"].capacity, 2);

    let report: Vec<String> = [
        ("\"version\": 1", "\"version\": 2"),
        ("\"enabled\": false", "\"enabled\": \"no\""),
        ("\"30%\"", "\"30\""),
        ("[\"public.payments\"]", "[]"),
        ("[\"public.payments\"]", "[\"payments\"]"),
        ("\"primary\": \"west\"", "\"primary\": \"south\""),
        ("127.0.0.1:8090", "127.0.0.1:8080"),
        ("\"cart\"", "\"orders\""),
        ("\"orders\": {", "\"gone\": {"),
        ("\"version\": 1,", "\"version\": 1"),
    ]
    .map(|(from, to)| {
        assert!(OVERLAY.contains(from), "{from}");
        let errors = load_changed(&flexible(), &OVERLAY.replacen(from, to, 1));
        format!("{to:?}\n{}\n", errors.map_or_else(|errors| errors, |_| "valid".into()))
    })
    .into();
    insta::assert_snapshot!(report.join("\n"));
}
