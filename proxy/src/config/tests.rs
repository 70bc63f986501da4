//! What the loader says about whole files.

mod http;
mod lease;
mod links;
mod oidc;
mod pages;
mod postgres_front;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use migration::policy::{Mode, ReplicationMode};
use proptest::prelude::*;

use super::load::{Surroundings, read_all};
use super::model::{Config, Driver, Trusted};
use super::overlay::OverlayText;
use crate::history::Retention;

pub(super) const SECRET: &str = "hunter2";

pub(super) const BASE: &str = "\
node:
  name: edge-1
  zone: west
zones:
  west: { provider: own, location: [53.3, -6.2] }
  east: {}
resources:
  orders:
    fronts: { http: { listen: 127.0.0.1:8080, hosts: [orders.example] } }
    placements:
      west:
        http: [\"127.0.0.1:8001\"]
        postgres: { dsn: \"postgres://godwit@127.0.0.1/orders\", password: { file: secret } }
      east:
        http: [\"127.0.0.1:8002\"]
        postgres: { dsn: \"postgres://godwit@127.0.0.1:5433/orders\", password: { env: PGPASS } }
    primary: west
    policy: careful
";

const POLICY: &str = "mode: auto\nscore: { threshold: 0.5 }\n";

/// Loads files that exist only here: `godwit.yaml` and the policies.
fn load_all(main: &str, policies: &[(&str, &str)]) -> Result<Config, String> {
    load_with(main, policies, None)
}

/// As [`load`], with what the API changed.
pub(super) fn load_changed(main: &str, overlay: &str) -> Result<Config, String> {
    let thin = ("thin.yaml", "shadow: { capacity: 10% }\n");
    load_with(main, &[("careful.yaml", POLICY), thin], Some(overlay))
}

fn load_with(main: &str, policies: &[(&str, &str)], overlay: Option<&str>) -> Result<Config, String> {
    let mut files = BTreeMap::from([
        (PathBuf::from("godwit.yaml"), main.to_owned()),
        (PathBuf::from("secret"), format!("{SECRET}\n")),
        (PathBuf::from("empty"), "\n".to_owned()),
        (PathBuf::from("ca.pem"), "any text".to_owned()),
    ]);
    let mut names = Vec::new();
    for (name, text) in policies {
        let path = Path::new("policies").join(name);
        names.push(path.clone());
        files.insert(path, (*text).to_owned());
    }
    let around = Surroundings {
        folder: Path::new(""),
        variable: &|name| match name {
            "PGPASS" => Some(SECRET.to_owned()),
            "BLANK" => Some(String::new()),
            "LONG" => Some("0123456789abcdef".to_owned()),
            _ => None,
        },
        read: &|path| files.get(path).cloned().ok_or_else(|| io::ErrorKind::NotFound.into()),
    };
    let overlay = overlay.map(|text| OverlayText { path: "overlay.json".into(), text: text.to_owned() });
    let loaded = read_all(Path::new("godwit.yaml"), &names, None, &around, overlay.as_ref());
    let text = format!("{loaded:?}");
    assert!(!text.contains(SECRET), "a secret is printed: {text}");
    loaded.map_err(|errors| {
        let mut positions: Vec<_> = errors.problems().iter().map(|p| (p.line, p.column)).collect();
        if policies.is_empty() {
            positions.sort_unstable();
            let reported: Vec<_> = errors.problems().iter().map(|p| (p.line, p.column)).collect();
            assert_eq!(reported, positions);
        }
        errors.to_string()
    })
}

pub(super) fn load(main: &str) -> Result<Config, String> {
    load_all(main, &[("careful.yaml", POLICY)])
}

/// The problems of `BASE` after each `(from, to)` replacement.
#[track_caller]
fn with(edits: &[(&str, &str)]) -> String {
    let mut text = BASE.to_owned();
    for (from, to) in edits {
        assert!(text.contains(from), "{from} is not in the base");
        text = text.replacen(from, to, 1);
    }
    match load(&text) {
        Ok(_) => "valid".into(),
        Err(errors) => errors,
    }
}

/// Each case alone, one after the other.
fn cases(cases: &[(&str, &str)]) -> String {
    cases.iter().map(|case| format!("{:?}\n{}\n", case.1, with(&[*case]))).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_base_is_understood() {
    let config = load(BASE).expect("the base is valid");
    assert_eq!(config.node.name, "edge-1");
    assert_eq!(config.node.state, Path::new("/var/lib/godwit"));
    assert_eq!(config.node.admin.listen.to_string(), "127.0.0.1:9900");
    assert_eq!(config.node.hold.requests, 10_000);
    assert_eq!(config.node.spill.memory, 64 << 20);
    assert_eq!(config.node.spill.directory, config.node.state.join("spill"));
    assert_eq!(config.node.hold.bytes, 16 << 20);
    let days = |days: u64| Duration::from_hours(24 * days);
    assert_eq!(config.node.history, Retention { fine: days(1), medium: days(14), coarse: days(400) });
    let longer = load(&BASE.replacen("name: edge-1", "name: edge-1\n  history: { fine: 30d }", 1));
    let kept = longer.expect("valid").node.history;
    assert_eq!(kept.medium, days(30), "what is left out is never shorter than what is finer");
    assert_eq!(config.node.hold.time, Duration::from_secs(10));
    let orders = &config.resources["orders"];
    assert_eq!(orders.policy.name, "careful");
    assert_eq!(orders.policy.mode, Mode::Auto);
    assert_eq!(orders.placements["west"].capacity, 1);
    assert_eq!(orders.placements["west"].probe, "/healthz");
    for placement in orders.placements.values() {
        let dsn = &placement.postgres.as_ref().expect("a database").dsn;
        assert_eq!(dsn.get_password(), Some(SECRET.as_bytes()));
    }
}

#[test]
fn five_mistakes_are_reported_at_once() {
    let report = with(&[
        ("name: edge-1", "name: edge-1\n  hold: { time: 10 }"),
        ("zone: west\n", "zone: wset\n"),
        ("provider: own", "provder: own"),
        ("policy: careful", "policy: carefull"),
        ("primary: west", "primary: north"),
    ]);
    insta::assert_snapshot!(report);
    assert_eq!(report.lines().count(), 5);
}

#[test]
fn problems_of_policies_come_after_those_of_the_main_file() {
    let main = BASE.replace("primary: west", "primry: west").replace("careful", "hasty");
    let hasty =
        "name: hasty\nmode: always\nscore:\n  threshold: 0\n  sustain: 3\nlimits: { max_hodl: 500ms }\n";
    insta::assert_snapshot!(
        load_all(&main, &[("careful.yaml", "modus: auto\n"), ("hasty.yaml", hasty)]).expect_err("refused")
    );
}

#[test]
fn syntax_errors_have_a_position() {
    let texts = [
        "node: { name: a\nzones: {}\n",
        "node:\n  name: a\n bad\n",
        "node: [a, b\n",
        "node: \"open\n",
        "node:\n\tname: a\n",
        "node: *nowhere\n",
        "a: 1\n---\nb: 2\n",
        "password: \"hunter3\n",
        "",
        "just text",
        "- a\n- b\n",
        "? [a, b]\n: 1\n3: x\n",
        "a: .nan\n",
    ];
    let report: Vec<String> = texts
        .map(|text| {
            let errors = load(text).expect_err("refused");
            assert!(!errors.contains("hunter3"), "{errors}");
            format!("{text:?}\n{errors}\n")
        })
        .into();
    insta::assert_snapshot!(report.join("\n"));
}

#[test]
fn unknown_and_repeated_keys() {
    insta::assert_snapshot!(cases(&[
        ("primary: west", "primry: west\n    primary: west"),
        ("primary: west", "primary: west\n    primary: east"),
        ("primary: west", "favourite: west\n    primary: west"),
        ("node:", "nodes: {}\nnode:"),
        ("  east: {}", "  east: {}\n  east: {}\n  east: {}"),
        ("  east: {}", "  east:"),
        ("    placements:", "    placements:\n      placements: {}"),
    ]));
}

#[test]
fn missing_keys() {
    insta::assert_snapshot!(cases(&[
        ("  name: edge-1\n", ""),
        ("  zone: west\n", ""),
        ("    primary: west\n", ""),
        ("dsn: \"postgres://godwit@127.0.0.1/orders\", ", ""),
        ("        http: [\"127.0.0.1:8001\"]\n", ""),
        ("listen: 127.0.0.1:8080, ", ""),
    ]));
    insta::assert_snapshot!(load("node: {}\n").expect_err("refused"));
}

#[test]
fn wrong_types() {
    insta::assert_snapshot!(cases(&[
        ("name: edge-1", "name: 17"),
        ("name: edge-1", "name: [edge-1]"),
        ("name: edge-1", "name: edge 1"),
        ("name: edge-1", "name: edge-1\n  threads: many"),
        ("name: edge-1", "name: edge-1\n  threads: 0"),
        ("name: edge-1", "name: edge-1\n  threads: 1.5"),
        ("name: edge-1", "name: edge-1\n  hold: 10s"),
        ("name: edge-1", "name: edge-1\n  hold: { requests: 0, bytes: 16, time: 10ms }"),
        ("name: edge-1", "name: edge-1\n  spill: 64MiB"),
        ("name: edge-1", "name: edge-1\n  spill: { memory: 64, directory: 3 }"),
        ("name: edge-1", "name: edge-1\n  spill: { memory: 64KiB, dir: x }"),
        ("name: edge-1", "name: edge-1\n  history: { fine: 10m, medium: 24, coarse: 20y, raw: 1d }"),
        ("name: edge-1", "name: edge-1\n  history: { fine: 20d, medium: 14d, coarse: 13d }"),
        ("[53.3, -6.2]", "[53.3]"),
        ("[53.3, -6.2]", "[153.3, -181]"),
        ("[53.3, -6.2]", "Dublin"),
        ("[\"127.0.0.1:8001\"]", "127.0.0.1:8001"),
        ("[\"127.0.0.1:8001\"]", "[]"),
        ("[\"127.0.0.1:8001\"]", "[\"http://127.0.0.1:8001\", \"x\", \"[::1]:80\", \"a:0\"]"),
        ("[\"127.0.0.1:8001\"]", "[\"127.0.0.1:8001\"]\n        probe: healthz"),
        ("[\"127.0.0.1:8001\"]", "[\"127.0.0.1:8001\"]\n        cost: 0.40"),
        ("[\"127.0.0.1:8001\"]", "[\"127.0.0.1:8001\"]\n        capacity: 0"),
        ("[orders.example]", "[\"*.example\", \"a:80\", \"http://b\", \"ü\"]"),
    ]));
}

#[test]
fn dangling_references() {
    insta::assert_snapshot!(cases(&[
        ("zone: west", "zone: wast"),
        ("      east:\n", "      eats:\n"),
        ("primary: west", "primary: wst"),
        ("policy: careful", "policy: brave"),
        ("primary: west", "primary: west\n    location: flexible"),
        ("        http: [\"127.0.0.1:8002\"]", "        http: [\"127.0.0.1:8002\"]\n        driver: kube"),
    ]));
}

#[test]
fn a_broken_part_does_not_make_references_to_it_dangle() {
    insta::assert_snapshot!(cases(&[
        ("zones:\n  west: { provider: own, location: [53.3, -6.2] }\n  east: {}", "zones: 3"),
        ("provider: own", "provider: 3"),
    ]));
    insta::assert_snapshot!(load_all(BASE, &[("careful.yaml", "mode: never\n")]).expect_err("refused"));
}

#[test]
fn listeners_and_hosts() {
    insta::assert_snapshot!(cases(&[
        ("127.0.0.1:8080", "127.0.0.1:9900"),
        ("127.0.0.1:8080", "0.0.0.0:9900"),
        ("127.0.0.1:8080", "8080"),
        ("127.0.0.1:8080", "\":8080\""),
        ("127.0.0.1:8080", "localhost:8080"),
        ("127.0.0.1:8080", "127.0.0.1"),
        ("[orders.example]", "[orders.example, Orders.Example]"),
        ("name: edge-1", "name: edge-1\n  admin: { listen: 0.0.0.0:9900 }"),
        ("name: edge-1", "name: edge-1\n  admin: { listen: 127.0.0.1:9900, tls: {} }"),
    ]));
    let second = |front: &str| {
        let at = BASE.find("  orders:\n").expect("the resource");
        let copy = BASE[at..]
            .replace("  orders:\n", "  billing:\n")
            .replace("/orders\"", "/billing\"")
            .replace("listen: 127.0.0.1:8080, hosts: [orders.example]", front);
        load(&format!("{BASE}{copy}")).map_or_else(|errors| errors, |_| "valid".into())
    };
    let report: Vec<String> = [
        "listen: 127.0.0.1:8080, hosts: [billing.example]",
        "listen: 127.0.0.1:8080, hosts: [ORDERS.example]",
        "listen: 127.0.0.1:8080",
        "listen: 0.0.0.0:8080, hosts: [billing.example]",
        "listen: \"[::]:8080\"",
        "listen: 127.0.0.1:8081",
    ]
    .map(|front| format!("{front}\n{}\n", second(front)))
    .into();
    insta::assert_snapshot!(report.join("\n"));
}

#[test]
fn databases_and_secrets() {
    let dsn = "postgres://godwit@127.0.0.1/orders";
    insta::assert_snapshot!(cases(&[
        (dsn, "postgres://godwit:hunter2@127.0.0.1/orders"),
        (dsn, "host=127.0.0.1 user=godwit dbname=orders password=hunter2"),
        (dsn, "postgres://127.0.0.1"),
        (dsn, "postgres://godwit@127.0.0.1,127.0.0.2/orders"),
        (dsn, "postgres://godwit@127.0.0.1/orders?sslmode=require"),
        (dsn, "postgres://godwit@127.0.0.1/orders?hunter2=1"),
        (dsn, "host=/tmp user=godwit dbname=orders"),
        (dsn, "postgres://other@127.0.0.1:5433/orders"),
        ("{ file: secret }", "hunter2"),
        ("{ file: secret }", "{ file: nowhere }"),
        ("{ file: secret }", "{ file: empty }"),
        ("{ file: secret }", "{ env: UNSET }"),
        ("{ file: secret }", "{ env: BLANK }"),
        ("{ file: secret }", "{ env: PGPASS, file: secret }"),
        ("{ file: secret }", "{ evn: PGPASS }"),
        ("{ file: secret }", "{}"),
        ("password: { file: secret }", "app_roles: orders, heartbeat: 10s"),
    ]));
    let (password, tls) = ("password: { file: secret }", "password: { file: secret }, tls: ");
    let with_tls = |tls_text: &str| cases(&[(password, &format!("{tls}{tls_text}"))]);
    let sections = [
        "{ ca: ca.pem }",
        "{ ca: system, cert: ca.pem, key: ca.pem }",
        "{ mode: require }",
        "{ mode: disable }",
        "{}",
        "{ mode: allow, ca: system }",
        "{ mode: verify_full, ca: system }",
        "{ mode: prefer, ca: system }",
        "{ mode: verify-ca, ca: system }",
        "{ ca: nowhere.pem }",
        "{ ca: system, cert: ca.pem }",
        "{ mode: prefer, cert: ca.pem, key: ca.pem }",
        "{ sslmode: require }",
        "on",
    ];
    let sections: Vec<String> = sections.iter().map(|section| with_tls(section)).collect();
    let strings = cases(&[
        (dsn, "postgres://godwit@db.example/orders?sslmode=verify-full&sslrootcert=ca.pem"),
        (dsn, "postgres://godwit@db.example/orders?sslmode=verify-full"),
        (dsn, "postgres://godwit@db.example/orders?sslmode=allow"),
        (dsn, "postgres://godwit@db.example/orders?sslmode=verify-full&sslrootcert=nowhere.pem"),
        (dsn, "postgres://godwit@db.example/orders?sslmode=require&sslcert=ca.pem"),
    ]);
    insta::assert_snapshot!("tls_to_a_database", format!("{}\n{strings}", sections.join("\n")));
    let both = with(&[
        (dsn, "postgres://godwit@db.example/orders?sslmode=require"),
        (password, "password: { file: secret }, tls: { ca: system }"),
    ]);
    insta::assert_snapshot!("tls_said_twice", both);
    let without = BASE.replace(
        "        postgres: { dsn: \"postgres://godwit@127.0.0.1:5433/orders\", password: { env: PGPASS } }\n",
        "",
    );
    insta::assert_snapshot!(load(&without).expect_err("refused"));
}

#[test]
fn mistakes_of_a_policy_are_named() {
    let policy = "\
score: { confidence: 1.5, horizon: 5s }
limits: { on_drain_timeout: kill, reads_during_hold: maybe, release: { first: 0, every: 2s } }
shadow: { capacity: 0% }
";
    insta::assert_snapshot!(load_all(BASE, &[("careful.yaml", policy)]).expect_err("refused"));
    let harmless =
        "limits: { freeze: [] }\nshadow: { zones: { allow: [], deny: [] } }\nreplication: { critical: [] }\n";
    assert!(load_all(BASE, &[("careful.yaml", harmless)]).is_ok());
}

#[test]
fn slot_rules() {
    let text = "replication: { slot: { budget: 64MiB, alarm: 80%, reseed: auto } }\n";
    let config = load_all(BASE, &[("careful.yaml", text)]).expect("valid");
    let policy = &config.resources["orders"].policy;
    assert_eq!((policy.slot.budget.0, policy.slot.alarm_at().0), (64 << 20, 53_687_091));
    assert_eq!(policy.slot.reseed, migration::policy::Reseed::Auto);
    let wrong = "replication: { slot: { budget: 8, alarm: 0%, reseed: perhaps } }\n";
    let small = "replication: { slot: { budget: 1MiB } }\n";
    let refused = [wrong, small].map(|text| load_all(BASE, &[("careful.yaml", text)]).expect_err("refused"));
    insta::assert_snapshot!(refused.join("\n"));
}

#[test]
fn freeze_windows_and_extra_guards() {
    let text = "\
score: { hysteresis: 0.1 }
limits:
  freeze:
    - { from: \"0 8 * * MON-FRI\", for: 2h, zone: Europe/Berlin, why: everybody works }
    - { from: \"0 0 24 12 *\", for: 3d, why: holidays }
  guards:
    - { fact: lag_bytes, below: 1MiB, operators: true }
    - { fact: shadow_utilization, below: 60% }
  proposal_expires: 10m
";
    let config = load_all(BASE, &[("careful.yaml", text)]).expect("valid");
    let orders = &config.resources["orders"];
    assert_eq!(orders.freeze.len(), 2);
    assert_eq!(orders.policy.guards.len(), 2);
    assert!(orders.policy.guards[0].binds_operator && !orders.policy.guards[1].binds_operator);
    assert_eq!(orders.policy.proposal_expires, Duration::from_secs(600));

    let wrong = "\
score: { hysteresis: 0.4 }
limits:
  freeze: [ { from: \"0 25 * * *\", for: 9d, zone: Europe/Berlyn }, Fri ]
  guards: [ { fact: lag, below: 1MiB }, { fact: lag_bytes, below: 5 }, { fact: latency_ms } ]
";
    insta::assert_snapshot!(load_all(BASE, &[("careful.yaml", wrong)]).expect_err("refused"));
}

#[test]
fn replication_modes() {
    let text = "replication: { mode: hybrid, critical: [public.payments, shop.Orders], fallback: { after: 3s, back: 1m, to: async } }\n";
    let config = load_all(BASE, &[("careful.yaml", text)]).expect("valid");
    let policy = &config.resources["orders"].policy;
    assert_eq!(policy.replication, ReplicationMode::Hybrid);
    assert_eq!(policy.critical, ["public.payments", "shop.Orders"]);
    assert_eq!((policy.fallback_after.as_secs(), policy.fallback_back.as_secs()), (3, 60));
    let wrong = [
        "replication: { mode: hybird, critical: [payments, public.a, public.a, 7], fallback: { after: 5, to: sync, wait: 1s } }\n",
        "replication: { mode: hybrid }\n",
        "replication: { mode: sync, critical: [public.payments], fallback: { after: 500ms } }\n",
    ];
    let problems: Vec<String> =
        wrong.iter().map(|text| load_all(BASE, &[("careful.yaml", text)]).expect_err("refused")).collect();
    insta::assert_snapshot!(problems.join("\n\n"));
}

#[test]
fn how_a_copy_is_made() {
    let text = "replication: { copy: { sessions: 2, rate: 50MiB } }\n";
    let config = load_all(BASE, &[("careful.yaml", text)]).expect("valid");
    let policy = &config.resources["orders"].policy;
    assert_eq!((policy.copy_sessions, policy.copy_rate.map(|rate| rate.0)), (2, Some(50 << 20)));
    let plain = load_all(BASE, &[("careful.yaml", "mode: observe\n")]).expect("valid");
    let policy = &plain.resources["orders"].policy;
    assert_eq!((policy.copy_sessions, policy.copy_rate), (4, None));
    let wrong = [
        "replication: { copy: { sessions: 0, rate: 50 } }\n",
        "replication: { copy: { sessions: 33, rates: 1MiB } }\n",
        "replication: { copy: { rate: 1KiB } }\n",
    ];
    let problems: Vec<String> =
        wrong.iter().map(|text| load_all(BASE, &[("careful.yaml", text)]).expect_err("refused")).collect();
    insta::assert_snapshot!(problems.join("\n\n"));
}

#[test]
fn policies() {
    let same = [("careful.yaml", POLICY), ("z.yaml", "mode: auto\nname: careful\n")];
    insta::assert_snapshot!(load_all(BASE, &same).expect_err("refused"));
    let long = [("careful.yaml", "limits: { max_hold: 30s }\n")];
    insta::assert_snapshot!(load_all(BASE, &long).expect_err("refused"));
    let config = load_all(&BASE.replace("    policy: careful\n", ""), &[]).expect("the default policy");
    assert_eq!(config.resources["orders"].policy.mode, Mode::Observe);
}

const DRIVERS: &str = "\
drivers:
  local:
    process:
      directory: state/west
      service:
        argv: [orders, --listen, \"{listen}\", \"{dsn}\"]
        listen: [127.0.0.1:8001]
        dsn: postgres://app@127.0.0.1/orders
      cluster: { bin: /usr/bin, data: state/data, listen: 127.0.0.1:5432 }
resources:
";

#[test]
fn drivers() {
    let driven = BASE
        .replace("resources:\n", DRIVERS)
        .replace("http: [\"127.0.0.1:8001\"]\n", "http: [\"127.0.0.1:8001\"]\n        driver: local\n");
    let config = load(&driven).expect("a driver is valid");
    let Driver::Process(process) = &config.drivers["local"] else { panic!("a process driver") };
    assert_eq!(process.ready, "/healthz");
    let trusted = |text: &str| {
        let config = load(text).expect("valid");
        let Driver::Process(process) = &config.drivers["local"] else { panic!("a process driver") };
        process.cluster.clone().expect("a cluster").trusted
    };
    let roles = |names: &[&str]| Trusted::Roles(names.iter().map(|&name| name.to_owned()).collect());
    assert_eq!(trusted(&driven), roles(&["app"]), "Godwit's role has a password");
    assert_eq!(trusted(&driven.replace(", password: { file: secret }", "")), roles(&["app", "godwit"]));
    assert_eq!(trusted(&driven.replace(":5432 }", ":5432, auth: trust }")), Trusted::All);
    let front = "fronts: { postgres: { listen: 127.0.0.1:6432, auth: trust }, http";
    assert_eq!(trusted(&driven.replace("fronts: { http", front)), Trusted::All);
    let of_file = driven.replace("fronts: { http", &front.replace("trust", "{ file: secret }"));
    let Driver::Process(process) = &load(&of_file).expect("valid").drivers["local"] else {
        panic!("a process driver")
    };
    let cluster = process.cluster.as_ref().expect("a cluster");
    assert_eq!((&cluster.trusted, cluster.verifiers.len()), (&roles(&["app"]), 1));
    assert_eq!(config.resources["orders"].placements["west"].driver.as_deref(), Some("local"));

    let report: Vec<String> = [
        ("directory: state/west", "folder: state/west"),
        ("\"{listen}\", ", ""),
        ("        dsn: postgres://app@127.0.0.1/orders\n", ""),
        ("dsn: postgres://app@127.0.0.1/orders", "dsn: postgres://app:hunter2@127.0.0.1/orders"),
        ("dsn: postgres://app@127.0.0.1/orders", "dsn: { env: UNSET }"),
        ("argv: [orders, --listen, \"{listen}\", \"{dsn}\"]", "argv: orders"),
        ("[127.0.0.1:8001]\n", "[127.0.0.1:8001, 127.0.0.1:8001]\n"),
        ("[127.0.0.1:8001]\n", "[127.0.0.1:0]\n"),
        ("listen: 127.0.0.1:5432", "listen: 127.0.0.1:8080"),
        ("    process:", "    kube: {}\n    process:"),
        ("driver: local", "driver: local\n        capacity: 2"),
        ("driver: local", "driver: loacl"),
        ("[\"127.0.0.1:8002\"]", "[\"127.0.0.1:8002\"]\n        driver: local"),
    ]
    .map(|(from, to)| {
        assert!(driven.contains(from), "{from}");
        let errors = load(&driven.replacen(from, to, 1)).map_or_else(|errors| errors, |_| "valid".into());
        format!("{to:?}\n{errors}\n")
    })
    .into();
    insta::assert_snapshot!(report.join("\n"));

    let secret = driven.replace("dsn: postgres://app@127.0.0.1/orders", "dsn: { file: secret }");
    let config = load(&secret).expect("a secret dsn is valid");
    let Driver::Process(process) = &config.drivers["local"] else { panic!("a process driver") };
    assert_eq!(process.service_dsn, SECRET);
}

#[test]
fn placements_and_names() {
    let third = "      north:\n        http: [\"127.0.0.1:8003\"]\n    primary: west";
    insta::assert_snapshot!(with(&[("  east: {}", "  east: {}\n  north: {}"), ("    primary: west", third)]));
    let at = BASE.find("  orders:\n").expect("the resource");
    let copy = BASE[at..].replace("  orders:\n", "  Orders:\n").replace(":8080", ":8081");
    insta::assert_snapshot!(load(&format!("{BASE}{copy}")).expect_err("refused"));
    insta::assert_snapshot!(cases(&[
        ("  orders:\n", "  or ders:\n"),
        ("  orders:\n", "  a-name-that-is-so-long-that-no-slot-could-hold-it:\n"),
        ("  orders:\n", "  17:\n"),
        ("  orders:\n", "  \"two\\nlines\":\n"),
    ]));
}

#[test]
fn anchors_and_merges_keep_their_positions() {
    let edits = [
        (
            "        http: [\"127.0.0.1:8001\"]\n",
            "        <<: &shared { probe: /ok, cost: 3 }\n        http: [\"127.0.0.1:8001\"]\n",
        ),
        ("        http: [\"127.0.0.1:8002\"]\n", "        <<: *shared\n        http: [\"127.0.0.1:8002\"]\n"),
    ];
    insta::assert_snapshot!(with(&edits));
    let right = [(edits[0].0, &*edits[0].1.replace("cost: 3", "cost: 3/h")), edits[1]];
    assert_eq!(with(&right), "valid");
}

#[test]
fn the_shipped_files_are_valid() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/godwit.yaml");
    let config = super::load(&path).unwrap_or_else(|errors| panic!("{errors}"));
    let orders = &config.resources["orders"];
    assert_eq!(orders.policy.name, "latency-first");
    assert_eq!(orders.policy.mode, Mode::Auto);
    // Each of the others, in its place.
    let text = std::fs::read_to_string(&path).expect("readable");
    for name in ["cost-first", "watch"] {
        let folder = tempfile::tempdir().expect("a folder");
        for part in ["policies", "secrets"] {
            std::fs::create_dir(folder.path().join(part)).expect("a folder");
            for entry in std::fs::read_dir(path.with_file_name(part)).expect("shipped") {
                let from = entry.expect("an entry").path();
                let to = folder.path().join(part).join(from.file_name().expect("a name"));
                std::fs::copy(&from, to).expect("copied");
            }
        }
        let other = folder.path().join("godwit.yaml");
        // Of the first resource: the other one's shadow is chosen, and needs a larger share than these give.
        std::fs::write(&other, text.replacen("policy: latency-first", &format!("policy: {name}"), 1))
            .expect("written");
        let config = super::load(&other).unwrap_or_else(|errors| panic!("{errors}"));
        assert_eq!(config.resources["orders"].policy.name, name);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn arbitrary_text_never_panics(text in ".*", policy in "(?s).{0,200}") {
        let _ = load_all(&text, &[("careful.yaml", &policy)]);
    }

    #[test]
    fn yaml_like_text_never_panics(text in "[a-z:\\-\\[\\]{}\\n \"'&*!|>?#%@,0-9<.]{0,200}") {
        let _ = load_all(&text, &[("careful.yaml", &text)]);
    }

    #[test]
    fn a_damaged_file_never_panics_and_never_prints_its_secret(
        from in 0..BASE.len(),
        length in 0_usize..40,
        with in "[a-z:\\-\\[\\]{}\\n \"&*!|>?%,0-9]{0,8}",
    ) {
        let mut text = BASE.to_owned();
        text.replace_range(from..(from + length).min(BASE.len()), &with);
        let _ = load(&text);
    }

    #[test]
    fn deep_nesting_is_refused(depth in 1_usize..5000) {
        for open in ["[", "{a: "] {
            prop_assert!(load(&open.repeat(depth)).is_err());
        }
        let block: Vec<String> = (0..depth.min(400)).map(|i| format!("{}a:", " ".repeat(i))).collect();
        prop_assert!(load(&block.join("\n")).is_err());
    }
}

#[test]
fn zones_take_from_the_catalogue_what_they_leave_out() {
    let zones = "
  west: { provider: aws, region: eu-west-1, cost: 0.25/h }
  east: { provider: aws, region: eu-central-1, grid: own, country: \"NO\", location: [1.5, -2] }
  north: { provider: aws, region: of-tomorrow }
";
    let main = BASE.replace("\n  west: { provider: own, location: [53.3, -6.2] }\n  east: {}\n", zones);
    let config = load_all(&main, &[("careful.yaml", POLICY)]).expect("valid");
    let of = |name: &str| {
        let zone = &config.zones[name];
        let location = zone.location.map(|at| (at.latitude(), at.longitude()));
        (zone.country.as_deref(), zone.grid.as_deref(), location, zone.cost_per_hour)
    };
    assert_eq!(of("west"), (Some("IE"), Some("SEM"), Some((53.35, -6.26)), Some(0.25)));
    assert_eq!(of("east"), (Some("NO"), Some("own"), Some((1.5, -2.0)), None));
    assert_eq!(of("north"), (None, None, None, None));
}

#[test]
fn the_choice_of_zones_is_read_and_checked() {
    let policy = "\
shadow:
  zones: { allow: [aws/*], deny: [west], residency: [DE, IE], min_distance_km: 250, same_grid: true }
  choose: { distance: 1, history: 0, cost: 2 }
";
    let config = load_all(BASE, &[("careful.yaml", policy)]).expect("valid");
    let rules = &config.resources["orders"].policy.zones;
    assert_eq!((&*rules.allow, &*rules.deny), (&["aws/*".to_owned()][..], &["west".to_owned()][..]));
    assert_eq!((&*rules.residency, rules.same_grid), (&["DE".to_owned(), "IE".to_owned()][..], true));
    assert_eq!((rules.weights.distance, rules.weights.history, rules.weights.cost), (1.0, 0.0, 2.0));
    let wrong = "\
shadow:
  zones: { allow: all, residency: [Germany], min_distance_km: -1, same_grid: perhaps, moon: 1 }
  choose: { distance: 0, history: 0, cost: 0 }
";
    let main = BASE.replace("east: {}", "east: { country: no, grid: [], cost: 3 }");
    insta::assert_snapshot!(load_all(&main, &[("careful.yaml", wrong)]).expect_err("refused"));
}

const FEEDS: &str = "
feeds:
  prices: { preset: opencost, url: http://opencost.example:9003, bearer: { file: secret }, zones: { west: [dub-1, \"dub-2*\"], east: fra-1 } }
  busy: { preset: prometheus, url: https://metrics.example, query: 'max by (zone) (busy{job=\"x\"})', use: utilization }
  weather: { preset: open-meteo, zone: west }
  own: { exec: [/bin/price, --json], map: '{value: .price, zone: .where}', use: cost, every: 30s, resource: orders }
  hook: { webhook: { secret: { file: ca.pem.secret } }, decode: number, zone: east, use: utilization, stale_after: 5m }
";

#[test]
fn feeds_are_read() {
    let text = format!("{BASE}{FEEDS}").replace("{ file: ca.pem.secret }", "{ env: LONG }");
    let config = load(&text).unwrap();
    let shown: Vec<String> = config
        .feeds
        .values()
        .map(|feed| {
            let zones: Vec<String> =
                feed.places.all().iter().map(|place| format!("{} {:?}", place.zone, place.names)).collect();
            format!(
                "{} {} {} {} {} every {:?} stale after {:?} {}",
                feed.name,
                feed.serves.name(),
                feed.decode.name(),
                match &feed.source {
                    crate::feeds::external::Source::Http(request) => request.url.to_string(),
                    other => other.place(),
                },
                zones.join(" "),
                feed.every,
                feed.stale_after,
                feed.max_bytes
            )
        })
        .collect();
    insta::assert_snapshot!(shown.join("\n"));
}

#[test]
fn wrong_feeds_are_reported_with_what_would_be_right() {
    let feed = |text: &str| match load(&format!("{BASE}feeds:\n  it: {text}\n")) {
        Ok(_) => format!("{text}\nvalid\n"),
        Err(errors) => format!("{text}\n{errors}\n"),
    };
    let report: Vec<String> = [
        "{}",
        "{ preset: opencots, url: https://x.example }",
        "{ preset: statuspage }",
        "{ preset: statuspage, url: status.example }",
        "{ preset: statuspage, url: \"ftp://status.example\" }",
        "{ preset: statuspage, url: \"https://user:hunter3@status.example\" }",
        "{ preset: statuspage, url: \"http://127.0.0.1:9090\" }",
        "{ preset: statuspage, url: \"http://169.254.169.254/latest\" }",
        "{ preset: statuspage, url: https://x.example, file: x.json }",
        "{ preset: statuspage, url: https://x.example, zone: wets }",
        "{ preset: statuspage, url: https://x.example, zone: west, zones: [east] }",
        "{ preset: statuspage, url: https://x.example, zones: { wets: a } }",
        "{ preset: statuspage, url: https://x.example, zones: [] }",
        "{ preset: statuspage, url: https://x.example, resource: order }",
        "{ preset: statuspage, url: https://x.example, query: x }",
        "{ preset: statuspage, url: https://x.example, every: 10 }",
        "{ preset: statuspage, url: https://x.example, every: 10ms }",
        "{ preset: statuspage, url: https://x.example, every: 1m, stale_after: 30s }",
        "{ preset: statuspage, url: https://x.example, max_bytes: 1GiB, timeout: 1h }",
        "{ preset: statuspage, url: https://x.example, headers: { \"a b\": x, ok: { env: NONE } } }",
        "{ preset: statuspage, url: https://x.example, bearer: token }",
        "{ preset: statuspage, url: https://x.example, ca: none.pem }",
        "{ preset: prometheus, url: https://x.example }",
        "{ preset: open-meteo, zone: east }",
        "{ url: https://x.example, use: costs, every: 1m, map: '.a |' }",
        "{ url: https://x.example, use: cost, every: 1m }",
        "{ file: x.json, map: '.', use: cost, every: 1m, headers: { a: b }, decode: xml }",
        "{ exec: [], map: '.', use: cost, every: 1m }",
        "{ webhook: { secret: { file: secret } }, map: '.', use: cost, stale_after: 1m, every: 1m }",
        "{ webhook: {}, map: '.', use: cost }",
        "{ postgres: {}, use: utilization, every: 1m }",
        "{ postgres: { query: 5 }, resource: orders, use: utilization, every: 1m }",
        "{ postgres: {}, resource: orders, use: utilization, every: 1m }",
        "{ preset: statuspage, url: https://x.example, evry: 1m }",
    ]
    .into_iter()
    .map(feed)
    .collect();
    insta::assert_snapshot!(report.join("\n"));
}

#[test]
fn egress_is_read_and_checked() {
    let base = |egress: &str, url: &str| {
        let node = BASE.replace("  zone: west\n", &format!("  zone: west\n  egress: {egress}\n"));
        format!("{node}feeds:\n  it: {{ preset: statuspage, url: \"{url}\" }}\n")
    };
    let text =
        base("{ allow: [127.0.0.0/8, \"*.example\", fd00::/8, Status.Other] }", "http://127.0.0.1:9090");
    let egress = load(&text).unwrap().node.egress;
    assert_eq!((egress.hosts, egress.networks.len()), (vec!["*.example".into(), "status.other".into()], 2));
    let report: Vec<String> = [
        ("{ allow: [] }", "https://x.example"),
        ("{ allow: [\"https://x.example\", \"x.*.example\", \"10.0.0.0/33\", 5] }", "https://x.example"),
        ("{ allow: [y.example] }", "https://x.example"),
        ("{}", "https://x.example"),
        ("{ allow: [x.example], deny: [] }", "https://x.example"),
    ]
    .into_iter()
    .map(|(egress, url)| match load(&base(egress, url)) {
        Ok(_) => format!("{egress}\nvalid\n"),
        Err(errors) => format!("{egress}\n{errors}\n"),
    })
    .collect();
    insta::assert_snapshot!(report.join("\n"));
}
