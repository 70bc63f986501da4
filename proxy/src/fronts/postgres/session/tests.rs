//! Who is let in, by a front without a database.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use migration::policy::{Policy, PolicyParts};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::super::front::Active;
use super::*;
use crate::config::model::{Database, HoldLimits, Placement, PostgresFront as Settings, Provided, Resource};
use crate::fronts::http::settings::Upstream;
use crate::fronts::latencies::Recorder;

/// A front onto a database at this port.
pub(super) fn front(auth: PostgresAuth, startup: Duration, port: u16) -> Arc<PostgresFront> {
    let settings = Settings {
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        database: "shop".into(),
        auth,
        tls: None,
        passwords: BTreeMap::new(),
        connections: 10,
        startup,
        settings: Vec::new(),
        pool: None,
    };
    let dsn = format!("postgres://godwit@127.0.0.1:{port}/shop").parse().unwrap();
    let placement = Placement {
        zone: "a".into(),
        http: Vec::new(),
        upstream: Upstream::default(),
        probe: "/".into(),
        postgres: Some(Database { dsn, bin: None, app_roles: Vec::new(), heartbeat: false }),
        capacity: 1,
        cost_per_hour: None,
        driver: None,
        provided: Provided::default(),
    };
    let resource = Resource {
        name: "shop".into(),
        http: None,
        postgres: Some(settings.clone()),
        placements: [("a".into(), placement)].into(),
        flexible: None,
        primary: "a".into(),
        policy: Policy::new(PolicyParts::default()).unwrap(),
        freeze: Vec::new(),
    };
    let hold = HoldLimits { requests: 10, bytes: 1 << 20, time: Duration::from_secs(30) };
    let active = Active { generation: 0, zone: "a".into() };
    PostgresFront::new(&resource, &settings, hold, active, &Recorder::new()).unwrap()
}

/// What a client is told that wants in.
async fn told(front: &Arc<PostgresFront>) -> String {
    let (mut client, theirs) = tokio::io::duplex(1 << 16);
    let mut out = Vec::new();
    message::startup(&mut out, [("user", "app"), ("database", "shop")].into_iter());
    client.write_all(&out).await.unwrap();
    let (_ends, shutdown) = watch::channel(false);
    let mut said = Vec::new();
    let (read, ()) =
        tokio::join!(client.read_to_end(&mut said), serve(Arc::clone(front), Box::new(theirs), shutdown));
    read.unwrap();
    String::from_utf8_lossy(&said).into_owned()
}

#[tokio::test]
async fn who_cannot_be_asked_about_is_not_told_of_a_wrong_password() {
    let startup = Duration::from_secs(10);
    let nobody = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
    let folder = tempfile::tempdir().unwrap();
    for auth in [PostgresAuth::Query(None), PostgresAuth::File(folder.path().join("nothing"))] {
        let said = told(&front(auth, startup, nobody)).await;
        assert!(said.contains("C08001") && !said.contains("SCRAM"), "{said}");
    }
}

#[tokio::test]
async fn where_nobody_could_say_it_is_not_known_who_is_let_in() {
    let nobody = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
    let front = front(PostgresAuth::Trust, Duration::from_secs(10), nobody);
    front.roles.learn(&Identity { user: "app".into(), parameters: Vec::new(), secret: Secret::None });
    for _ in 0..2 {
        let found = front.rehearse("a", Duration::from_secs(10)).await;
        assert_eq!(found, ["1 of 1 roles could not be tried at a"]);
    }
}

#[tokio::test]
async fn who_logs_in_at_a_database_that_says_nothing_is_told_before_its_time_is_over() {
    // Connections to it are made, and nobody takes them.
    let silent = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = silent.local_addr().unwrap().port();
    let said = told(&front(PostgresAuth::Query(None), Duration::from_millis(200), port)).await;
    assert!(said.contains("C08001"), "{said}");
}

#[tokio::test]
async fn who_reads_changes_and_comes_during_a_move_is_let_in_after_it() {
    let nobody = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
    let front = front(PostgresAuth::Trust, Duration::from_secs(10), nobody);
    front.turnstile.arm();
    assert!(front.turnstile.close_if_armed(None, false));
    let (mut client, theirs) = tokio::io::duplex(1 << 16);
    let mut out = Vec::new();
    let parameters = [("user", "cdc"), ("database", "shop"), ("replication", "database")];
    message::startup(&mut out, parameters.into_iter());
    client.write_all(&out).await.unwrap();
    let (_ends, shutdown) = watch::channel(false);
    let mut serving = std::pin::pin!(serve(Arc::clone(&front), Box::new(theirs), shutdown));
    while front.turnstile.stats().held == 0 {
        assert!(futures_util::poll!(serving.as_mut()).is_pending(), "it is not let in");
        tokio::task::yield_now().await;
    }
    front.turnstile.open();
    let mut said = Vec::new();
    let (read, ()) = tokio::join!(client.read_to_end(&mut said), serving);
    read.unwrap();
    assert!(String::from_utf8_lossy(&said).contains("C08001"), "then it is connected");
    assert_eq!(front.turnstile.stats().running, 0);
}
