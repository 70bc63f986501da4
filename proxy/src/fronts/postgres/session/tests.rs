//! A front without a database.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use migration::policy::{Policy, PolicyParts};

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
