//! The composition root: builds every part, names every task, wires every channel.
//!
//! Two runtimes. pingora has its own threads for the fronts, which only share snapshots, gates and recorders with the
//! rest. Everything else (controllers, streams, probes, admin, link) runs on one tokio runtime of this module.

mod standing;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result};
use async_trait::async_trait;
use pingora::server::{RunArgs, ShutdownSignalWatch as _};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use standing::{Belongings, Lead};

use crate::admin::access::Identities;
use crate::admin::access::oidc::Oidc;
use crate::admin::{self, AdminState};
use crate::audit::{self, Audit};
use crate::clock;
use crate::config::model::{Config, Resource};
use crate::controller::events::Events;
use crate::controller::freezes::Freezes;
use crate::drivers::groups;
use crate::feeds::external::board::FeedBoard;
use crate::feeds::external::fetch::Reach;
use crate::feeds::external::runner;
use crate::feeds::learning::Learner;
use crate::fronts::http::{ServerSettings, server, service};
use crate::fronts::latencies::Recorder;
use crate::fronts::postgres;
use crate::fronts::routes::{Routes, report};
use crate::fronts::sockets::{Kept, Sockets};
use crate::history::{self, History};
use crate::leading::changes::Changes;
use crate::leading::comparison::Comparison;
use crate::leading::election::Election;
use crate::leading::fronts::Fronts;
use crate::leading::running::Running;
use crate::leading::successor::Inheritance;
use crate::leading::{self, Anew, Leading, Shared};
use crate::links::Links;
use crate::notify;
use crate::store::{Journal, OverlayFile, Tokens};
use crate::telemetry;
use crate::traces::{self, Traces};
use crate::upgrade::{self, Heard, Signals, Upgrade};

/// How often counters of the fronts reach the metrics.
const REPORT: Duration = Duration::from_millis(250);
/// How often the metrics' samples are sorted into buckets.
const UPKEEP: Duration = Duration::from_secs(5);
/// How often a front that does not listen yet is looked at.
const LOOK: Duration = Duration::from_millis(10);
/// How long what is left of the history, of traces, or of an access log may take to be written or sent at the end.
const LAST_WRITE: Duration = Duration::from_secs(2);
/// How long the parts may take to end.
const SHUTDOWN: Duration = Duration::from_secs(8);

/// Runs a node until SIGTERM or SIGINT, or until SIGQUIT makes it the next program; `file` is where its configuration is from.
pub fn run(config: Config, file: &Path) -> Result<()> {
    let config = Arc::new(config);
    let runtime = tokio::runtime::Builder::new_multi_thread().thread_name("godwit").enable_all().build()?;
    let (mut heard, mut terminate, mut hang_up) = {
        let _inside = runtime.enter();
        // Before anything else: what is signalled to a program that does not hear it ends that.
        (Heard::begin()?, signal(SignalKind::terminate())?, signal(SignalKind::hangup())?)
    };
    let journal = Arc::new(Journal::open(&config.node.state)?);
    let freezes = Arc::new(Freezes::open(journal.clone())?);
    let metrics = telemetry::metrics::install()?;
    let upkeep = metrics.clone();
    telemetry::metrics::config_reloaded(true);
    let traces = config.node.traces.as_ref().map(|settings| {
        Traces::start(settings, &config.node.name, &config.node.zone, runtime.handle()).map(Arc::new)
    });
    let traces = traces.transpose()?;
    let recorder = Recorder::with(traces.clone());
    let sockets = Arc::new(upgrade::sockets().context("the sockets of the program before are lost")?);
    let upgrade = Arc::new(Upgrade::new(file.to_owned()).context("this program has no file")?);
    let history = History::start(&config.node.state, config.node.history).context("cannot start a thread")?;
    let stop = CancellationToken::new();
    let tasks = TaskTracker::new();
    let anew = Arc::new(Anew::default());
    let links = {
        let _inside = runtime.enter();
        Arc::new(Links::new(&config)?)
    };
    let audit = Audit::start(audit::Settings {
        directory: config.node.audit.directory.clone(),
        node: config.node.name.clone(),
        rotate: config.node.audit.rotate.0,
    })?;
    let events = Arc::new(Events::new(clock::now(), stop.clone()));
    let feeds = FeedBoard::new(config.feeds.values().cloned());
    runtime.block_on(runner::recall(&feeds, &journal, clock::now()))?;
    let state = AdminState {
        running: Running::new(config.clone()),
        journal: journal.clone(),
        identities: identities(&config)?,
        audit: audit.clone(),
        events: events.clone(),
        history: history.clone(),
        freezes: freezes.clone(),
        metrics: Some(metrics),
        feeds: feeds.clone(),
        changes: None,
        standing: None,
        answers: Arc::default(),
        sent: Arc::default(),
    };
    // A node that stands by does its zone's half of a stream, too.
    {
        let _inside = runtime.enter();
        links.listen(&config, &tasks, &stop)?;
    }
    let overlay = Arc::new(OverlayFile::open(&config.node.state)?);
    let comparison = Arc::new(Comparison::new(file.to_owned(), overlay.clone()));
    let leaves = Inheritance {
        comparison: comparison.clone(),
        journal: journal.clone(),
        sockets: sockets.clone(),
        link: config.node.link.as_ref().map(|link| link.listen),
        node: config.node.lease.is_some().then(|| leading::holder::name(&config)),
    };
    let belongings = Belongings {
        file: file.to_owned(),
        state: config.node.state.clone(),
        journal: journal.clone(),
        freezes: freezes.clone(),
        overlay: overlay.clone(),
        comparison: comparison.clone(),
        changed: Arc::default(),
        settled: Arc::default(),
    };
    let leaving = CancellationToken::new();
    let mut lead = None;

    // Ended at the last moment, it is ended.
    let mut told_to_end = false;
    let mut terminated = || {
        let told = async { tokio::time::timeout(Duration::ZERO, terminate.recv()).await.is_ok() };
        told_to_end = told_to_end || runtime.block_on(told);
        told_to_end
    };
    let mut holder = None;
    if let Some(mut election) = Election::of(&config)? {
        let heard = (&mut heard, &*upgrade, &mut hang_up);
        let standing = standing::until_it_leads(&mut election, &belongings, state.clone(), &sockets, heard);
        if !runtime.block_on(standing)? {
            if upgrade.begun() && !terminated() {
                // Its zone's half of a stream ends with a word to the other one.
                stop.cancel();
                tasks.close();
                runtime.block_on(ended(&tasks, &history, &audit));
                if !terminated() {
                    return succeeded(&upgrade, &sockets);
                }
            }
            if upgrade.begun() {
                // No next program has what it was about to take.
                runtime.block_on(election.resign());
            }
            tracing::info!("godwit ends");
            runtime.block_on(written_down(&audit));
            return Ok(());
        }
        if belongings.are_others() {
            runtime.block_on(written_down(&audit));
            let error = upgrade.execute(upgrade::nothing_handed_over()?);
            return Err(error).context("the program cannot be executed anew");
        }
        holder = Some(election.me.clone());
        lead =
            Some(Lead::keep(election, belongings.clone(), anew.clone(), leaving.clone(), runtime.handle()));
    }

    let begun = leading::lead_all(&config, &journal)?;
    freezes.reload()?;
    belongings.settled.store(true, Ordering::Release);
    if let Err(error) = leading::taken_out::warn(&config, &journal) {
        tracing::warn!(%error, "which resources are in the configuration no more cannot be read");
    }
    let led = begun.into_iter().map(|begun| begun.build(&config, &recorder)).collect::<Result<Vec<_>>>()?;
    let fronts: Vec<_> = led.iter().filter_map(|led| led.front.clone()).collect();
    let routes = Routes::new(&fronts)?;
    let postgres: Vec<_> = led.iter().filter_map(|led| led.postgres.clone()).collect();
    let addresses = postgres.iter().map(|front| front.settings.listen).chain(routes.listeners());
    sockets.only(addresses.chain([config.node.admin.listen]));
    // Bound here rather than on pingora's threads: what is taken is said at once.
    for (address, key) in config.resources.values().flat_map(Resource::listens) {
        sockets.listener(address).with_context(|| key)?;
    }
    let learner = Learner::start(&config.node.state, crate::rng::seed())?;

    let (running, changes) = runtime.block_on(async {
        let listener = admin::Listener::kept(&sockets, &config.node.admin, &stop)?;
        let collected =
            history::collect::collect(history.clone(), recorder.reader(), feeds.clone(), stop.clone());
        tasks.spawn(collected);
        let reach = Reach { egress: config.node.egress.clone(), links: Some(links.clone()) };
        runner::start(&feeds, &Arc::new(reach), &stop, &tasks);
        let leading = Arc::new(Leading::new(Shared {
            recorder: recorder.clone(),
            links: links.clone(),
            learner,
            audit: audit.clone(),
            events: events.clone(),
            history: history.clone(),
            freezes: freezes.clone(),
            feeds: feeds.clone(),
            journal: journal.clone(),
            config: config.clone(),
            holder,
            anew: anew.clone(),
            stop: stop.clone(),
            tasks: tasks.clone(),
        }));
        let running = state.running.clone();
        for led in led {
            let name = led.name().to_owned();
            running.joins(&name, leading.start(led));
        }
        let joining = Fronts::new(
            routes.clone(),
            fronts.clone(),
            postgres.clone(),
            config.node.threads,
            sockets.clone(),
        );
        let changes = Changes::new(file.to_owned(), overlay, running.clone(), leading, joining, comparison);
        let changes = Arc::new(changes);
        tasks.spawn(stop.clone().run_until_cancelled_owned(hang_ups(hang_up, changes.clone())));
        tasks.spawn(stop.clone().run_until_cancelled_owned(measure_fronts(changes.clone())));
        let state = AdminState { changes: Some(changes.clone()), ..state };
        if let Some(traces) = &traces {
            let told = traces::migrations::follow(state.events.clone(), journal.clone(), traces.clone());
            tasks.spawn(stop.clone().run_until_cancelled_owned(told));
        }
        tasks.spawn(admin::serve(listener, state, stop.clone()));

        let (routes, recorder) = (routes.clone(), recorder.clone());
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
        anyhow::Ok((running, changes))
    })?;
    let node = Arc::new(Settling {
        running,
        changes: changes.clone(),
        stop: stop.clone(),
        tasks: tasks.clone(),
        history: history.clone(),
        audit: audit.clone(),
        runtime: runtime.handle().clone(),
        leaves,
    });
    let signals = Signals::new(&upgrade, &sockets, node, heard, &anew, leaving);
    tracing::info!(node = %config.node.name, zone = %config.node.zone, admin = %config.node.admin.listen, "godwit runs");

    let listeners = config.resources.values().flat_map(Resource::listens).map(|(address, _)| address);
    let listeners = listeners.collect();
    runtime.spawn(stop.clone().run_until_cancelled_owned(ready(listeners)));
    if fronts.is_empty() && postgres.is_empty() {
        runtime.block_on(signals.recv());
    } else {
        let mut server = server(ServerSettings { threads: config.node.threads, ..ServerSettings::default() });
        if !fronts.is_empty() {
            let fronts = service(&server, &routes, &recorder);
            server.add_service(Kept::new(fronts, routes.listeners(), &sockets));
        }
        for front in &postgres {
            let service = postgres::service(front);
            server.add_service(Kept::new(service, vec![front.settings.listen], &sockets));
        }
        // Returns after SIGTERM or SIGINT, when the requests in flight have ended or their grace is over, and for an upgrade.
        server.run(RunArgs { shutdown_signal: Box::new(signals) });
    }
    if anew.why().is_some() {
        // Whoever leads by now has drivers of its own do something else.
        groups::end_all();
    }
    changes.write_out(LAST_WRITE);
    if anew.why().is_some() {
        stop.cancel();
        tasks.close();
        runtime.block_on(ended(&tasks, &history, &audit));
        if let Some(traces) = &traces {
            traces.end(LAST_WRITE);
        }
        let error = upgrade.execute(upgrade::nothing_handed_over()?);
        return Err(error).context("the program cannot be executed anew");
    }
    if upgrade.begun() && !terminated() {
        if let Some(traces) = &traces {
            traces.end(LAST_WRITE);
        }
        groups::end_all();
        if !terminated() {
            return succeeded(&upgrade, &sockets);
        }
    }
    tracing::info!("godwit ends");
    notify::tell(notify::State::Stopping);
    stop.cancel();
    tasks.close();
    runtime.block_on(ended(&tasks, &history, &audit));
    drop(lead);
    if let Some(traces) = traces {
        traces.end(LAST_WRITE);
    }
    // The service manager kills nobody but this process: what it has started for others is to outlive it.
    groups::end_all();
    runtime.shutdown_timeout(Duration::from_secs(1));
    Ok(())
}

/// This process becomes the next program, which has the sockets; comes back only where it cannot.
fn succeeded(upgrade: &Upgrade, sockets: &Sockets) -> Result<()> {
    let sockets = sockets.handed_over().context("the sockets cannot be handed over")?;
    Err(upgrade.execute(sockets)).context("the next program cannot be executed")
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

/// Reads the configuration anew at each SIGHUP.
async fn hang_ups(mut signals: Signal, changes: Arc<Changes>) {
    while signals.recv().await.is_some() {
        // It says in the log what came of it.
        let _ = changes.reload().await;
    }
}

async fn measure_fronts(changes: Arc<Changes>) {
    loop {
        tokio::time::sleep(REPORT).await;
        changes.measure();
    }
}

/// Who may use the admin listener.
fn identities(config: &Config) -> Result<Arc<Identities>> {
    let admin = &config.node.admin;
    let tokens = Arc::new(Tokens::open_to_read(&config.node.state)?);
    if let Err(error) = tokens.writable() {
        // A node that does not start is worse than a token that cannot be taken back.
        tracing::error!(%error, "tokens can neither be made nor taken back");
    }
    let secure = admin.tls.is_some();
    let oidc = admin.oidc.clone().map(|rules| Oidc::new(rules, config.node.egress.clone()));
    let identities = Identities::new(tokens, admin.clients.clone(), admin.required, secure);
    Ok(Arc::new(identities.with_oidc(oidc)))
}

/// Waits for the parts of the node, which were told to end, and for the history and the audit to be written.
async fn ended(tasks: &TaskTracker, history: &History, audit: &Audit) {
    if tokio::time::timeout(SHUTDOWN, tasks.wait()).await.is_err() {
        tracing::warn!("some tasks did not end in time");
    }
    if !history.flush(LAST_WRITE) {
        tracing::warn!("the last moments are not in the history");
    }
    written_down(audit).await;
}

async fn written_down(audit: &Audit) {
    if !audit.flush(LAST_WRITE).await {
        tracing::warn!("the last records are not in the audit");
    }
}

/// What an upgrade asks of the node.
struct Settling {
    running: Arc<Running>,
    changes: Arc<Changes>,
    stop: CancellationToken,
    tasks: TaskTracker,
    history: History,
    audit: Audit,
    /// Where the parts run; signals come on another.
    runtime: tokio::runtime::Handle,
    /// What the next program starts with.
    leaves: Inheritance,
}

#[async_trait]
impl upgrade::Node for Settling {
    fn refuses(&self) -> Option<String> {
        let moves = |phase: &str| !matches!(phase, "idle" | "preparing" | "shadowing" | "soaking");
        let moved = self.running.resources().iter().find_map(|(name, handle)| {
            let view = handle.view.load();
            moves(&view.phase).then(|| format!("{name} is being moved ({}): when it soaks", view.phase))
        });
        moved.or_else(|| self.changes.holds().then(|| "requests are held".to_owned()))
    }

    async fn accepts(&self) -> Result<(), String> {
        let leaves = self.leaves.clone();
        let looked = self.runtime.spawn_blocking(move || leaves.suffices().map_err(|why| format!("{why:#}")));
        looked.await.map_err(|error| error.to_string())?
    }

    fn announce(&self, leave: bool) {
        self.changes.announce(leave);
    }

    async fn settle(&self) {
        self.stop.cancel();
        self.tasks.close();
        let (tasks, history, audit) = (self.tasks.clone(), self.history.clone(), self.audit.clone());
        // A panic in there was reported there.
        let _ = self.runtime.spawn(async move { ended(&tasks, &history, &audit).await }).await;
    }

    fn in_flight(&self) -> usize {
        self.changes.busy()
    }

    fn end_sessions(&self) {
        self.changes.end_sessions();
    }

    fn sessions(&self) -> usize {
        self.changes.sessions()
    }
}
