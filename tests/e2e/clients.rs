//! HTTP clients that are not ours (`tests/clients`), over twenty cutovers of real nodes: no request fails, and streams end as the
//! policies of their routes say.
//!
//! Three services move at the same time: the order service with its database (curl, httpx), one with long answers over HTTP/1.1
//! (WebSocket, events, downloads), and one that speaks gRPC.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, ensure};
use godwit::controller::view::{MigrationView, ResourceView};
use godwit::demo::zone::{
    GODWIT_ROLE, OWNER_ROLE, Playground, RESOURCE, SERVICE_ROLE, SUPERUSER, Zone, free_ports,
};
use replicator::grants::{Needs, grants};
use serde_json::json;

use crate::leader::{Leader, PATIENCE, connect, listening, options};
use crate::programs::Program;

const CUTOVERS: u64 = 20;
/// Rounds of each client before each cutover.
const ROUNDS: u64 = 3;
/// What moves besides the order service.
const STREAMS: &str = "streams";
const CALLS: &str = "calls";

/// A program of `tests/clients`.
fn own(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("clients").join(file)
}

/// One zone's endpoint of a service, killed when dropped.
struct Endpoint {
    address: SocketAddr,
    child: Child,
    _output: BufReader<ChildStdout>,
}

impl Endpoint {
    fn start(venv: &Path, file: &str, zone: &str) -> Result<Self> {
        let mut child = Command::new(venv.join("bin/python3"))
            .arg("-B")
            .arg(own(file))
            .arg(zone)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut output = BufReader::new(child.stdout.take().context("its output")?);
        let mut port = String::new();
        output.read_line(&mut port)?;
        let port: u16 = port.trim().parse().with_context(|| format!("{file} says no port but {port:?}"))?;
        Ok(Self { address: SocketAddr::from(([127, 0, 0, 1], port)), child, _output: output })
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A service besides the playground's own: a front, two endpoints, and a database that they do not use.
struct Service {
    name: &'static str,
    front: SocketAddr,
    endpoints: [Endpoint; 2],
}

impl Service {
    async fn start(
        name: &'static str,
        file: &str,
        front: u16,
        venv: &Path,
        playground: &Playground,
    ) -> Result<Self> {
        for zone in &playground.zones {
            database(zone, name).await?;
        }
        let [one, other] = &playground.zones;
        let endpoints = [Endpoint::start(venv, file, &one.name)?, Endpoint::start(venv, file, &other.name)?];
        Ok(Self { name, front: SocketAddr::from(([127, 0, 0, 1], front)), endpoints })
    }

    /// Its part of the configuration; `front` and `placement` are what is special.
    fn config(&self, playground: &Playground, front: &str, placement: &str) -> String {
        let placements = playground.zones.iter().zip(&self.endpoints).map(|(zone, endpoint)| {
            let (host, port) = (zone.database_from_leader.ip(), zone.database_from_leader.port());
            let bin = json!(zone.cluster.bin);
            format!(
                "      {}: {{http: [\"{}\"], capacity: 1, probe: /healthz{placement}, postgres: {{dsn: \"postgres://{GODWIT_ROLE}@{host}:{port}/{}\", \
                 bin: {bin}, app_roles: [{SERVICE_ROLE}]}}}}\n",
                zone.name, endpoint.address, self.name
            )
        });
        format!(
            "  {}:\n    fronts: {{http: {{listen: \"{}\", {front}}}}}\n    primary: {}\n    policy: playground\n    placements:\n{}",
            self.name,
            self.front,
            playground.zones[0].name,
            placements.collect::<String>()
        )
    }
}

/// A database with one table, for a service that has nothing to move but its clients.
async fn database(zone: &Zone, name: &str) -> Result<()> {
    let mut dsn = zone.dsn(SUPERUSER);
    let administrator = replicator::postgres::connect(&dsn, "godwit-test").await?;
    administrator.batch_execute(&format!("CREATE DATABASE {name} OWNER {OWNER_ROLE}")).await?;
    dsn.dbname(name);
    let administrator = replicator::postgres::connect(&dsn, "godwit-test").await?;
    let needs = Needs {
        role: GODWIT_ROLE.into(),
        database: name.into(),
        owner: OWNER_ROLE.into(),
        app_roles: vec![SERVICE_ROLE.into()],
        synchronous: false,
        row_security: false,
        caches: false,
        verifiers: false,
        extensions: false,
    };
    for grant in grants(&needs) {
        administrator.batch_execute(&grant.sql).await?;
    }
    Ok(())
}

/// Waits for a state of one of the services.
async fn until(
    leader: &Leader<'_>,
    service: &str,
    what: &str,
    reached: impl Fn(&ResourceView) -> bool,
) -> Result<ResourceView> {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let view: ResourceView = leader.client.fetch(&format!("/api/v1/resources/{service}")).await?;
        if reached(&view) {
            return Ok(view);
        }
        ensure!(
            tokio::time::Instant::now() < deadline,
            "waited in vain for {service}: {what}\n{view:#?}\n{}",
            leader.node.tail(30)
        );
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

/// Moves a service to its other zone, whole.
async fn cutover(leader: &Leader<'_>, service: &str) -> Result<()> {
    let view = until(leader, service, "it is ready to move", |view| {
        let mut guards = view.decision.iter().flat_map(|decision| &decision.guards);
        view.phase == "shadowing"
            && view.decision.is_some()
            && guards.all(|guard| guard.passed || !guard.binds_operator)
    })
    .await?;
    let path = format!("/api/v1/resources/{service}/migrations");
    let body = leader.client.send(&path, &json!({ "to": view.shadow })).await?;
    let plan: serde_json::Value = serde_json::from_slice(&body)?;
    let id = plan["id"].as_str().context("the migration's id")?;
    until(leader, service, "it has moved", |now| now.primary == view.shadow && now.phase == "shadowing")
        .await?;
    let run: MigrationView = leader.client.fetch(&format!("{path}/{id}")).await?;
    ensure!(run.state == "retired" && run.verified == Some(true), "{run:#?}");
    Ok(())
}

/// Waits until each client has done what `enough` says of it; none may have given up.
async fn clients(
    what: &str,
    clients: &mut [Program],
    enough: impl Fn(usize, &Program) -> bool,
) -> Result<()> {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        for client in &mut *clients {
            client.check()?;
        }
        let lacks = clients.iter().enumerate().find(|(at, client)| !enough(*at, client));
        let Some((_, client)) = lacks else { return Ok(()) };
        ensure!(tokio::time::Instant::now() < deadline, "waited in vain: {what}, {}", client.name);
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

/// The policy of each client's streams: closed after a swap, some time later, or it has none.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ends {
    AfterEachSwap,
    AtADeadline,
    Never,
}

/// All of them, playing, in the order of what becomes of their streams.
fn start(
    venv: &Path,
    orders: SocketAddr,
    streams: SocketAddr,
    calls: SocketAddr,
) -> Result<Vec<(Program, Ends)>> {
    let python = |file: &str, arguments: &[&str]| {
        let mut command = Command::new(venv.join("bin/python3"));
        command.arg("-B").arg(own(file)).args(arguments);
        command
    };
    let (orders, streams, calls) = (format!("http://{orders}"), streams.to_string(), calls.to_string());
    let mut curl = Command::new(own("curl.sh"));
    curl.args([&*orders, "curl"]);
    let all = [
        ("curl", curl, Ends::Never),
        ("httpx", python("httpx_client.py", &[&orders, "httpx"]), Ends::Never),
        ("events", python("events_client.py", &[&format!("http://{streams}")]), Ends::AfterEachSwap),
        ("websocket", python("websocket_client.py", &[&format!("ws://{streams}/live")]), Ends::AfterEachSwap),
        (
            "long websocket",
            python("websocket_client.py", &[&format!("ws://{streams}/long")]),
            Ends::AtADeadline,
        ),
        ("grpc", python("grpc_client.py", &[&calls]), Ends::AfterEachSwap),
    ];
    all.into_iter().map(|(name, mut command, ends)| Ok((Program::start(name, &mut command)?, ends))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_do_not_notice_twenty_cutovers() -> Result<()> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/http-clients.sh");
    let fetched = Command::new(script).stderr(Stdio::inherit()).output()?;
    ensure!(fetched.status.success(), "the clients cannot be had");
    let venv = PathBuf::from(String::from_utf8(fetched.stdout)?.trim());

    let playground = Playground::start(&options(false)?).await?;
    let [one, two] = free_ports(2)?[..] else { anyhow::bail!("no two ports are free") };
    let streams = Service::start(STREAMS, "streams_endpoint.py", one, &venv, &playground).await?;
    let calls = Service::start(CALLS, "grpc_endpoint.py", two, &venv, &playground).await?;
    let rules = "streams: {at_cutover: close, deadline: 1s, jitter: 100ms}, routes: [{name: waited-for, path: %, at_cutover: block, stream: true}";
    let long = ", {name: long, path: /long, at_cutover: finish}]";
    let all = [
        listening(&playground, "h2c: true")?,
        streams.config(&playground, &(rules.replace('%', "/export") + long), ""),
        calls.config(
            &playground,
            &format!("h2c: true, {}]", rules.replace('%', "/godwit.test.Echo/Count")),
            ", upstream: {protocol: http2}",
        ),
    ];
    std::fs::write(&playground.config, all.concat())?;

    let mut leader = Leader::start(&playground, &[])?;
    leader.ready().await?;
    let services = [RESOURCE, STREAMS, CALLS];
    for service in services {
        until(&leader, service, "it is there", |view| view.phase == "shadowing").await?;
    }
    let (mut playing, ends): (Vec<_>, Vec<_>) =
        start(&venv, playground.front, streams.front, calls.front)?.into_iter().unzip();
    for round in 1..=CUTOVERS {
        let before: Vec<u64> = playing.iter().map(Program::rounds).collect();
        clients("rounds", &mut playing, |at, client| client.rounds() >= before[at] + ROUNDS).await?;
        let [orders, streams, calls] = services.map(|service| cutover(&leader, service));
        tokio::try_join!(orders, streams, calls).with_context(|| format!("cutover {round}"))?;
        let closed = |at: usize, client: &Program| ends[at] != Ends::AfterEachSwap || client.ended() >= round;
        clients("its stream is ended", &mut playing, closed).await?;
    }
    let mut orders = 0;
    for (client, ends) in playing.into_iter().zip(ends) {
        let (name, ended) = (client.name, client.ended());
        let rounds = client.finish()?;
        println!("{name:<15} {rounds:>5} rounds, 0 failed, {ended:>2} streams ended, {CUTOVERS} cutovers");
        match ends {
            Ends::Never => orders += 2 * rounds,
            Ends::AfterEachSwap => ensure!(ended == CUTOVERS, "{name}: {ended} streams were ended"),
            Ends::AtADeadline => {
                ensure!((1..=CUTOVERS).contains(&ended), "{name}: {ended} streams were ended");
            }
        }
    }
    let view = until(&leader, RESOURCE, "it is there", |view| view.phase == "shadowing").await?;
    let primary = connect(leader.zone(&view.primary)).await?;
    let sql = "SELECT count(*) FROM orders WHERE key LIKE 'curl-%' OR key LIKE 'httpx-%'";
    let found: i64 = primary.query_one(sql, &[]).await?.get(0);
    ensure!(u64::try_from(found)? == orders, "{orders} orders were placed, {found} are there");
    Ok(())
}
