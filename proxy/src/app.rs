//! The composition root: builds every part, names every task, wires every channel.
//!
//! Two runtimes. pingora has its own threads for the fronts, which only share snapshots, gates and recorders with the
//! rest. Everything else (controllers, streams, probes, admin, link) runs on one tokio runtime of this module.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use migration::cutover::{Capacity, State};
use migration::units::Zone;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admin::access::Identities;
use crate::admin::{self, AdminState};
use crate::audit::{self, Audit};
use crate::clock;
use crate::config::model::{Config, Driver, Resource};
use crate::controller::ResourceHandle;
use crate::controller::databases::Databases;
use crate::controller::effects::Hands;
use crate::controller::events::Events;
use crate::controller::freezes::Freezes;
use crate::controller::machine::{Machine, Memory};
use crate::controller::measure::Measure;
use crate::controller::slots::SlotWatch;
use crate::controller::streams::Streams;
use crate::controller::verification::Verifications;
use crate::drivers::Provisioning;
use crate::drivers::process::ProcessProvisioning;
use crate::feeds::external::board::FeedBoard;
use crate::feeds::external::runner;
use crate::feeds::learning::Learner;
use crate::feeds::prober::{Pace, PlacementKey, ProbeBoard, Prober, Target};
use crate::fronts::http::{ServerSettings, check_listeners, server, service};
use crate::fronts::latencies::Recorder;
use crate::fronts::pools::Pool;
use crate::fronts::postgres::{self, Active, PostgresFront};
use crate::fronts::routes::{ResourceFront, Routes, report};
use crate::history::{self, History};
use crate::links::Links;
use crate::notify;
use crate::store::{Journal, Tokens};
use crate::telemetry;

/// How often counters of the fronts reach the metrics.
const REPORT: Duration = Duration::from_millis(250);
/// How often the metrics' samples are sorted into buckets.
const UPKEEP: Duration = Duration::from_secs(5);
/// How long a probe may take.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
/// How often a front that does not listen yet is looked at.
const LOOK: Duration = Duration::from_millis(10);
/// How long what is left of the history may take to be written at the end.
const LAST_WRITE: Duration = Duration::from_secs(2);
/// How long the parts may take to end.
const SHUTDOWN: Duration = Duration::from_secs(8);

/// A resource that this node leads: what its controller starts from.
struct Led {
    resource: Arc<Resource>,
    state: State,
    front: Option<Arc<ResourceFront>>,
    postgres: Option<Arc<PostgresFront>>,
    endpoints: BTreeMap<String, Vec<SocketAddr>>,
}

/// Runs a node until SIGTERM, SIGINT or SIGQUIT.
pub fn run(config: Config) -> Result<()> {
    let config = Arc::new(config);
    let journal = Arc::new(Journal::open(&config.node.state)?);
    let freezes = Arc::new(Freezes::open(journal.clone())?);
    let metrics = telemetry::metrics::install()?;
    let upkeep = metrics.clone();
    let recorder = Recorder::new();
    let led = config
        .resources
        .values()
        .filter(|resource| resource.has_front())
        .map(|resource| lead(&config, resource, &journal, &recorder))
        .collect::<Result<Vec<_>>>()?;
    let fronts: Vec<_> = led.iter().filter_map(|led| led.front.clone()).collect();
    let routes = Routes::new(&fronts)?;
    check_listeners(&routes)?;
    let postgres: Vec<_> = led.iter().filter_map(|led| led.postgres.clone()).collect();
    postgres.iter().try_for_each(|front| postgres::check_listener(front))?;

    let runtime = tokio::runtime::Builder::new_multi_thread().thread_name("godwit").enable_all().build()?;
    let history = History::start(&config.node.state, config.node.history).context("cannot start a thread")?;
    let learner = Learner::start(&config.node.state, crate::rng::seed())?;
    let stop = CancellationToken::new();
    let tasks = TaskTracker::new();
    let links = {
        let _inside = runtime.enter();
        Arc::new(Links::new(&config)?)
    };
    let identities = identities(&config)?;
    let audit = Audit::start(audit::Settings {
        directory: config.node.audit.directory.clone(),
        node: config.node.name.clone(),
        rotate: config.node.audit.rotate.0,
    })?;
    runtime.block_on(async {
        let listener = admin::Listener::bind(&config.node.admin, &stop).await?;
        let events = Arc::new(Events::new(clock::now(), stop.clone()));
        let feeds = FeedBoard::new(config.feeds.values().cloned());
        let collected =
            history::collect::collect(history.clone(), recorder.reader(), feeds.clone(), stop.clone());
        tasks.spawn(collected);
        runner::start(&feeds, &Arc::new(config.node.egress.clone()), &stop, &tasks);
        let shared = Shared {
            recorder: recorder.clone(),
            links: links.clone(),
            learner,
            audit: audit.clone(),
            events: events.clone(),
            history: history.clone(),
            freezes: freezes.clone(),
            feeds: feeds.clone(),
        };
        let handles = start(&config, led, &journal, &shared, &stop, &tasks);
        let state = AdminState {
            config: config.clone(),
            resources: Arc::new(handles),
            journal: journal.clone(),
            identities,
            audit,
            events,
            history: history.clone(),
            freezes,
            metrics: Some(metrics),
            feeds,
        };
        tasks.spawn(admin::serve(listener, state, stop.clone()));
        links.listen(&config, &tasks, &stop)?;
        let (routes, recorder) = (routes.clone(), recorder.clone());
        let counted = postgres.clone();
        tasks.spawn(stop.clone().run_until_cancelled_owned(async move {
            loop {
                for front in &counted {
                    front.measure();
                }
                tokio::time::sleep(REPORT).await;
            }
        }));
        tasks.spawn(stop.clone().run_until_cancelled_owned(async move {
            report(&routes, &recorder, REPORT).await;
        }));
        // Samples wait in memory until they are sorted into buckets: not only when somebody scrapes.
        tasks.spawn(stop.clone().run_until_cancelled_owned(async move {
            loop {
                tokio::time::sleep(UPKEEP).await;
                upkeep.run_upkeep();
            }
        }));
        anyhow::Ok(())
    })?;
    tracing::info!(node = %config.node.name, zone = %config.node.zone, admin = %config.node.admin.listen, "godwit runs");

    let listeners = config.resources.values().flat_map(|resource| {
        let http = resource.http.as_ref().map(|front| front.listen);
        http.into_iter().chain(resource.postgres.as_ref().map(|front| front.listen))
    });
    let listeners = listeners.collect();
    runtime.spawn(stop.clone().run_until_cancelled_owned(ready(listeners)));
    if fronts.is_empty() && postgres.is_empty() {
        runtime.block_on(terminated())?;
    } else {
        let mut server = server(ServerSettings { threads: config.node.threads, ..ServerSettings::default() });
        if !fronts.is_empty() {
            let fronts = service(&server, &routes, &recorder);
            server.add_service(fronts);
        }
        for front in &postgres {
            server.add_service(postgres::service(front));
        }
        // Returns after SIGTERM, SIGINT or SIGQUIT, when the requests in flight have ended or their grace is over.
        server.run(pingora::server::RunArgs::default());
    }
    tracing::info!("godwit ends");
    notify::tell(notify::State::Stopping);
    stop.cancel();
    tasks.close();
    runtime.block_on(async {
        if tokio::time::timeout(SHUTDOWN, tasks.wait()).await.is_err() {
            tracing::warn!("some tasks did not end in time");
        }
    });
    if !history.flush(LAST_WRITE) {
        tracing::warn!("the last moments are not in the history");
    }
    runtime.shutdown_timeout(Duration::from_secs(1));
    Ok(())
}

/// Tells the service manager once every front takes connections: pingora opens them on its own threads.
async fn ready(listeners: Vec<SocketAddr>) {
    for listener in listeners {
        let ip = match listener.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            ip => ip,
        };
        while tokio::net::TcpStream::connect((ip, listener.port())).await.is_err() {
            tokio::time::sleep(LOOK).await;
        }
    }
    notify::tell(notify::State::Ready);
}

/// Who may use the admin listener.
fn identities(config: &Config) -> Result<Arc<Identities>> {
    let admin = &config.node.admin;
    let tokens = Arc::new(Tokens::open(&config.node.state)?);
    let secure = admin.tls.is_some();
    Ok(Arc::new(Identities::new(tokens, admin.clients.clone(), admin.required, secure)))
}

async fn terminated() -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

/// Reads where the resource stands and builds its front for that: closed where a database may be fenced.
fn lead(config: &Config, resource: &Resource, journal: &Journal, recorder: &Arc<Recorder>) -> Result<Led> {
    let name = &resource.name;
    let Some(other) = resource.other(&resource.primary) else {
        bail!(
            "resource {name}: this version moves between two placements; there is only {}",
            resource.primary
        );
    };
    let state = match journal.latest(name)? {
        Some(state) => state,
        None => {
            let (primary, shadow) = (resource.primary.as_str().into(), other.zone.as_str().into());
            let first = State::first(name, primary, shadow, clock::now());
            journal.append(&first, "FirstStart", clock::now())?;
            first
        }
    };
    for zone in [&state.primary, &state.shadow] {
        if !resource.placements.contains_key(&*zone.0) {
            bail!(
                "resource {name}: the journal says that {zone} is one of its zones, and the configuration has no placement there"
            );
        }
    }
    let mut endpoints = BTreeMap::new();
    for (zone, placement) in &resource.placements {
        endpoints.insert(
            zone.clone(),
            resolve(&placement.http).with_context(|| format!("resource {name}, zone {zone}"))?,
        );
    }
    let front = resource.http.as_ref().map(|http| {
        let upstreams = endpoints.get(&*state.primary.0).map_or(&[][..], Vec::as_slice);
        let pool = Pool::new(state.generation.0, &*state.primary.0, upstreams);
        let front = ResourceFront::new(name.as_str(), http, config.node.hold, pool);
        if state.starts_closed() {
            tracing::warn!(resource = %name, phase = state.phase.name(), "starting with the gate closed: a cutover was under way");
            front.gate.close();
        }
        front
    });
    let postgres = resource.postgres.as_ref().map(|settings| {
        let active = Active { generation: state.generation.0, zone: state.primary.0.clone() };
        let front = PostgresFront::new(resource, settings, config.node.hold, active, recorder)
            .with_context(|| format!("resource {name}, the PostgreSQL front"))?;
        if state.starts_closed() {
            front.turnstile.close();
        }
        anyhow::Ok(front)
    });
    Ok(Led { resource: Arc::new(resource.clone()), state, front, postgres: postgres.transpose()?, endpoints })
}

fn resolve(endpoints: &[String]) -> Result<Vec<SocketAddr>> {
    endpoints
        .iter()
        .map(|endpoint| {
            let mut found =
                endpoint.to_socket_addrs().with_context(|| format!("cannot resolve endpoint {endpoint}"))?;
            found.next().with_context(|| format!("endpoint {endpoint} has no address"))
        })
        .collect()
}

/// What every resource's controller uses.
struct Shared {
    recorder: Arc<Recorder>,
    links: Arc<Links>,
    learner: Learner,
    audit: Audit,
    events: Arc<Events>,
    history: History,
    freezes: Arc<Freezes>,
    feeds: FeedBoard,
}

fn start(
    config: &Config,
    led: Vec<Led>,
    journal: &Arc<Journal>,
    shared: &Shared,
    stop: &CancellationToken,
    tasks: &TaskTracker,
) -> BTreeMap<String, ResourceHandle> {
    let mut handles = BTreeMap::new();
    for Led { resource, state, front, postgres, endpoints } in led {
        let databases = Arc::new(Databases::new(&resource));
        let streams = Arc::new(Streams::new(
            &resource.name,
            resource.policy.clone(),
            databases.clone(),
            shared.links.clone(),
            journal.clone(),
        ));
        let verifications =
            Arc::new(Verifications::new(&config.node.state, databases.clone(), streams.clone()));
        let drivers = drivers(config, &resource);
        let board = probe(&resource, stop, tasks);
        let measure = Measure::new(resource.clone(), shared.recorder.reader(), board, shared.feeds.clone());
        measure.watch(&drivers, &databases, stop);
        measure.compare_schemas(&databases, &state.primary.0, stop);
        let zones = resource.placements.values().filter(|placement| placement.postgres.is_some());
        let zones = zones.map(|placement| placement.zone.clone()).collect();
        let slots = SlotWatch::start(&resource.name, zones, &databases, resource.policy.step, stop);
        let (reports, answers) = tokio::sync::mpsc::unbounded_channel();
        let hands = Arc::new(Hands::new(
            resource.clone(),
            front,
            postgres,
            databases,
            streams.clone(),
            drivers,
            endpoints,
            journal.clone(),
            shared.audit.clone(),
            shared.events.clone(),
            reports,
        ));
        adopt_primary(&hands, &state.primary, tasks);
        let (machine, handle) = Machine::new(
            hands,
            state,
            measure,
            slots,
            verifications.clone(),
            answers,
            Memory {
                seed: crate::rng::seed(),
                learner: Some(shared.learner.clone()),
                history: shared.history.clone(),
                freezes: shared.freezes.clone(),
            },
        );
        let stopped = stop.clone();
        tasks.spawn(async move {
            machine.run(stopped).await;
            verifications.stop("godwit was stopped");
            streams.stop().await;
        });
        handles.insert(resource.name.clone(), handle);
    }
    handles
}

fn drivers(config: &Config, resource: &Resource) -> BTreeMap<String, Arc<dyn Provisioning>> {
    let driver = |name: &String| {
        config.drivers.get(name).map(|Driver::Process(settings)| {
            Arc::new(ProcessProvisioning::new(settings.clone())) as Arc<dyn Provisioning>
        })
    };
    resource
        .placements
        .iter()
        .filter_map(|(zone, placement)| Some((zone.clone(), placement.driver.as_ref().and_then(driver)?)))
        .collect()
}

fn probe(resource: &Resource, stop: &CancellationToken, tasks: &TaskTracker) -> Arc<ProbeBoard> {
    let board = Arc::new(ProbeBoard::default());
    let mut prober = Prober::new(board.clone(), Pace { step: resource.policy.step, timeout: PROBE_TIMEOUT });
    for (zone, placement) in &resource.placements {
        let target = Target {
            http: placement.http.clone(),
            path: placement.probe.clone(),
            sql: placement.postgres.as_ref().map(|database| database.dsn.clone()),
        };
        prober.watch(PlacementKey::new(&resource.name, zone), target);
    }
    let stop = stop.clone();
    tasks.spawn(async move {
        stop.cancelled().await;
        drop(prober);
    });
    board
}

/// The primary's own processes run on without us; what died meanwhile is started again.
fn adopt_primary(hands: &Arc<Hands>, primary: &Zone, tasks: &TaskTracker) {
    let Some(driver) = hands.drivers.get(&*primary.0).cloned() else { return };
    let workers = hands.workers(primary, Capacity::Full);
    let (zone, name) = (primary.clone(), hands.resource.name.clone());
    tasks.spawn(async move {
        let operation = format!("adopt-{}", crate::rng::id());
        match driver.provision(&operation, workers).await {
            Ok(status) => tracing::info!(resource = %name, %zone, ready = status.ready, "primary adopted"),
            Err(error) => {
                let why = crate::controller::effects::chain(error);
                tracing::error!(resource = %name, %zone, %why, "the primary's driver failed");
            }
        }
    });
}
