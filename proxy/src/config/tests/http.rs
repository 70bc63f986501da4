//! `fronts.http` and `upstream`.

use std::path::Path;
use std::time::Duration;

use super::{BASE, POLICY, cases, load, load_all, with};
use crate::fronts::http::settings::{AtCutover, Limits, ListenerSettings, Settings, Timeouts, Upstream};

const FRONT: &str = "{ listen: 127.0.0.1:8080, hosts: [orders.example] }";

fn front(more: &str) -> String {
    BASE.replace(FRONT, &format!("{{ listen: 127.0.0.1:8080, hosts: [orders.example], {more} }}"))
}

#[test]
fn everything_is_read() {
    let config = load(BASE).expect("the base is valid");
    let plain = config.resources["orders"].http.clone().expect("a front");
    assert_eq!((plain.listener, plain.settings), (ListenerSettings::default(), Settings::default()));
    let text = front(
        "tls: { certificates: [{ cert: a.pem, key: a.key }, { cert: b.pem, key: b.key }], clients: { ca: c.pem, required: false }, http2: false }, \
         proxy_protocol: [10.0.0.0/8], trusted: [127.0.0.1], trace: make, \
         limits: { headers: 7, header_bytes: 2KiB, uri: 512B, body: 1MiB }, \
         timeouts: { connect: 1s, answer: 2s, keep: 3s, client: 4s }, normalize_paths: true, \
         streams: { at_cutover: close, deadline: 5s, jitter: 0s }, \
         routes: [{ name: chat, path: /chat, at_cutover: block, stream: true }], retries: { budget: 5% }, \
         health: { path: /up, every: 1s, timeout: 500ms, down_after: 1, up_after: 9 }, \
         ejection: { failures: 3, time: 1s, most: 10% }, access_log: { file: access.log, sample: 1% }",
    )
    .replace("http: [\"127.0.0.1:8001\"]", "http: [{ at: \"127.0.0.1:8001\", weight: 3 }]\n        upstream: { protocol: http2, limit: 9, tls: { ca: ca.pem, name: Orders.internal } }");
    let config = load(&text).expect("valid");
    let orders = &config.resources["orders"];
    let front = orders.http.clone().expect("a front");
    let tls = front.listener.tls.expect("TLS");
    assert_eq!(tls.certificates[1], (Path::new("b.pem").into(), Path::new("b.key").into()));
    assert!(!tls.http2 && !tls.clients.expect("clients").required);
    let settings = front.settings;
    assert_eq!((front.listener.proxy_protocol.len(), settings.trusted.len()), (1, 1));
    assert_eq!(
        settings.limits,
        Limits { headers: 7, header_bytes: 2048, uri_bytes: 512, body_bytes: Some(1 << 20) }
    );
    let seconds = Duration::from_secs;
    let timeouts = Timeouts { connect: seconds(1), answer: seconds(2), keep: seconds(3), client: seconds(4) };
    assert_eq!(settings.timeouts, timeouts);
    assert!(settings.normalize_paths && settings.identify);
    assert_eq!((settings.streams.at_cutover, settings.streams.deadline), (AtCutover::Close, seconds(5)));
    assert_eq!((settings.routes[0].at_cutover, settings.routes[0].stream), (Some(AtCutover::Block), true));
    assert!((settings.retries.budget.get() - 0.05).abs() < 1e-9);
    assert_eq!(settings.health.expect("checks").path.as_deref(), Some("/up"));
    assert_eq!(settings.ejection.expect("ejection").failures, 3);
    assert_eq!(settings.access_log.expect("a log").file.as_deref(), Some(Path::new("access.log")));
    let west = &orders.placements["west"].upstream;
    let way = west.tls.as_ref().expect("TLS");
    assert_eq!((way.ca.as_deref(), way.name.as_str()), (Some(Path::new("ca.pem")), "orders.internal"));
    assert_eq!((west.http2, west.limit, west.weights.as_slice()), (true, Some(9), &[3][..]));
    assert_eq!(orders.placements["east"].upstream, Upstream::default());
}

#[test]
fn mistakes_are_named() {
    let wrong: Vec<String> = [
        "tls: { certificates: [] }",
        "tls: { certificates: [{ cert: a.pem }] }",
        "tls: { certificates: [{ cert: a.pem, key: a.key }] }, h2c: true",
        "proxy_protocol: [everybody]",
        "trace: yes",
        "limits: { headers: 0, header_bytes: 1B, uri: 2MiB, body: 5 }",
        "timeouts: { connect: 0s, client: 100ms, anser: 1s }",
        "streams: { at_cutover: wait }",
        "routes: [{ name: a, path: a }]",
        "routes: [{ name: a, path: /a }, { name: b, path: /a }]",
        "retries: { budget: 0.2 }",
        "health: { every: 1ms, down_after: 0 }",
        "ejection: { most: 200% }",
        "access_log: {}",
    ]
    .into_iter()
    .map(|more| format!("{{ listen: 127.0.0.1:8080, hosts: [orders.example], {more} }}"))
    .collect();
    let wrong: Vec<(&str, &str)> = wrong.iter().map(|text| (FRONT, text.as_str())).collect();
    let endpoints = "http: [\"127.0.0.1:8001\"]";
    let ways = [
        (endpoints, "http: [{ at: \"127.0.0.1:8001\", weight: 0 }]"),
        (
            endpoints,
            "http: [\"127.0.0.1:8001\"]\n        upstream: { protocol: http3, limit: 0, tls: { ca: system } }",
        ),
    ];
    insta::assert_snapshot!(format!("{}\n{}", cases(&wrong), cases(&ways)));
}

#[test]
fn fronts_on_one_listener_agree() {
    let two = "policy: careful\n  stock:\n    fronts: { http: { listen: 127.0.0.1:8080, hosts: [stock.example], h2c: true } }\n    \
        placements: { west: { http: [\"127.0.0.1:8003\"] }, east: { http: [\"127.0.0.1:8004\"] } }\n    primary: west\n";
    insta::assert_snapshot!(with(&[("policy: careful\n", two)]), @"godwit.yaml:20:31  resources.stock.fronts.http.listen  127.0.0.1:8080 is shared with the front of orders (line 9), which has another tls, h2c or proxy_protocol  the same in both, certificates apart");
}

/// What is passed on to one's own front comes back to it until no socket is left.
#[test]
fn a_front_passes_on_to_no_front_of_the_node() {
    let refused = |main: &str| load_all(main, &[("careful.yaml", POLICY)]).expect_err(main);
    let circle = "what it passes on would come back to it";
    let own = BASE.replace("127.0.0.1:8001", "127.0.0.1:8080");
    let says = refused(&own);
    assert!(says.starts_with("godwit.yaml:12:"), "{says}");
    assert!(says.contains("is the front of orders, which listens on 127.0.0.1:8080 (line 9)"), "{says}");
    for (listen, endpoint) in [
        ("0.0.0.0:8080", "127.0.0.1:8080"),
        ("0.0.0.0:8080", "localhost:8080"),
        ("127.0.0.1:8080", "localhost:8080"),
        ("127.0.0.1:8080", "0.0.0.0:8080"),
        ("\"[::]:8080\"", "127.0.0.1:8080"),
        ("\"[::]:8080\"", "[::1]:8080"),
    ] {
        let main = BASE.replace("127.0.0.1:8080", listen).replace("127.0.0.1:8001", endpoint);
        assert!(refused(&main).contains(circle), "{listen} {endpoint}");
    }
    for (listen, endpoint) in [
        ("0.0.0.0:8080", "10.0.0.7:8080"),
        ("127.0.0.1:8080", "127.0.0.2:8080"),
        ("127.0.0.1:8080", "orders.internal:8080"),
        ("0.0.0.0:8080", "[::1]:8080"),
    ] {
        let main = BASE.replace("127.0.0.1:8080", listen).replace("127.0.0.1:8001", endpoint);
        load_all(&main, &[("careful.yaml", POLICY)]).expect(endpoint);
    }
    let postgres = BASE
        .replace("fronts: { ", "fronts: { postgres: { listen: 0.0.0.0:5433 }, ")
        .replace("127.0.0.1:5433/orders", "localhost:5433/orders");
    let says = refused(&postgres);
    assert!(says.contains("is the PostgreSQL front of orders") && says.contains(circle), "{says}");
}

/// One service in both placements is one whose database moves; without a database nothing does.
#[test]
fn the_same_endpoints_in_both_placements_need_a_database() {
    let same = BASE.replace("127.0.0.1:8002", "127.0.0.1:8001");
    load_all(&same, &[("careful.yaml", POLICY)]).expect("its database moves");
    let without: Vec<&str> = same.lines().filter(|line| !line.contains("dsn")).collect();
    let says = load_all(&without.join("\n"), &[("careful.yaml", POLICY)]).expect_err("nothing moves");
    assert!(says.contains("has the same endpoints as the placement in west, and no database"), "{says}");
}
