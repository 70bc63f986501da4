//! What the loader says about PostgreSQL fronts.

use super::{BASE, POLICY, SECRET, load_all};
use crate::config::model::PostgresAuth;

/// `BASE` with this PostgreSQL front beside the other.
fn with_postgres(front: &str) -> String {
    BASE.replace("hosts: [orders.example] } }", &format!("hosts: [orders.example] }}, postgres: {front} }}"))
}

#[test]
fn postgres_fronts() {
    let all = "{ listen: 0.0.0.0:6432, database: shop, auth: { query: \"SELECT v($1)\" }, tls: { cert: a.pem, key: a.key, required: true }, \
               passwords: { clerk: { file: secret } }, connections: 5, startup: 3s, settings: [app.tenant] }";
    let config = load_all(&with_postgres(all), &[("careful.yaml", POLICY)]).expect("valid");
    let front = config.resources["orders"].postgres.clone().expect("a front");
    assert_eq!((front.database.as_str(), front.connections, front.startup.as_secs()), ("shop", 5, 3));
    assert_eq!(front.auth, PostgresAuth::Query(Some("SELECT v($1)".into())));
    assert_eq!(front.passwords["clerk"], SECRET);
    assert!(front.tls.as_ref().is_some_and(|tls| tls.required) && front.settings == ["app.tenant"]);
    assert!(!format!("{front:?}").contains(SECRET));
    let pool = |text: &str| {
        let front = with_postgres(&format!("{{ listen: 127.0.0.1:6432, pool: {text} }}"));
        let config = load_all(&front, &[("careful.yaml", POLICY)]).expect("valid");
        let pool = config.resources["orders"].postgres.as_ref()?.pool?;
        Some((pool.size, pool.wait.as_secs(), pool.idle.as_secs(), pool.statements))
    };
    assert_eq!(pool("{}"), Some((20, 30, 600, 200)));
    assert_eq!(pool("{ size: 5, wait: 1s, idle: 1m, statements: 10 }"), Some((5, 1, 60, 10)));
    assert!(front.pool.is_none());
    // Alone, without endpoints of a service; the database is called as in the placements.
    let alone = BASE
        .replace(
            "http: { listen: 127.0.0.1:8080, hosts: [orders.example] }",
            "postgres: { listen: 127.0.0.1:6432, auth: trust }",
        )
        .replace("        http: [\"127.0.0.1:8001\"]\n", "")
        .replace("        http: [\"127.0.0.1:8002\"]\n", "");
    let config = load_all(&alone, &[("careful.yaml", POLICY)]).expect("valid");
    let orders = &config.resources["orders"];
    let front = orders.postgres.as_ref().expect("a front");
    assert!(orders.http.is_none() && orders.has_front());
    assert_eq!((front.database.as_str(), &front.auth), ("orders", &PostgresAuth::Trust));

    let wrong = [
        "{ listen: 0.0.0.0:6432, auth: trust }",
        "{ listen: 127.0.0.1:8080, auth: { query: SELECT 1, file: f }, tls: { cert: a.pem }, connections: 0, startup: 0s }",
        "{ auth: md5, passwords: { clerk: hunter2 }, settings: [tenant, 7], pool: 5, pools: 5 }",
        "{ listen: 127.0.0.1:6432, auth: { query: SELECT 1 } }",
        "{ listen: 127.0.0.1:6432, pool: { size: 0, wait: 0s, idle: soon, statements: many, mode: transaction } }",
    ];
    let refused =
        |text: &&str| load_all(&with_postgres(text), &[("careful.yaml", POLICY)]).expect_err("refused");
    let mut problems: Vec<String> = wrong.iter().map(refused).collect();
    let without = with_postgres("{ listen: 127.0.0.1:6432 }")
        .lines()
        .filter(|line| !line.trim_start().starts_with("postgres: { dsn"))
        .fold(String::new(), |text, line| text + line + "\n");
    problems.push(load_all(&without, &[("careful.yaml", POLICY)]).expect_err("refused"));
    insta::assert_snapshot!(problems.join("\n\n"));
}
