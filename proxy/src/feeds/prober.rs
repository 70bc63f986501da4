//! Runs the probes of every placement, step by step, and publishes what they found last.
//!
//! Each probe has a task of its own, so a black hole in one zone delays nobody's reading of another. A step that a
//! slow probe overran is skipped, not made up for. Each probe is counted once in the metrics, when it ends. Tasks end when their
//! placement is forgotten or the prober dropped.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use futures_util::future::join_all;
use replicator::postgres::Dsn;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use super::http_probe::HttpProbe;
use super::probe::{Course, Phase, Probe};
use super::sql_probe::{Beaten, SqlProbe};
use crate::fronts::pools::Reach;
use crate::telemetry::metrics as telemetry;

/// How soon a placement that did not answer is probed again, where steps are longer.
const AGAIN: Duration = Duration::from_secs(5);

/// A resource in one zone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PlacementKey {
    /// Name of the resource.
    pub resource: String,
    /// Name of the zone.
    pub zone: String,
}

impl PlacementKey {
    /// Of `resource` in `zone`.
    pub fn new(resource: impl Into<String>, zone: impl Into<String>) -> Self {
        Self { resource: resource.into(), zone: zone.into() }
    }
}

/// The newest probes of one placement; `None` before the first, or where there is nothing to probe.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Probes {
    /// Of its HTTP endpoints.
    pub http: Option<Probe>,
    /// How many of its endpoints' probes have failed in a row.
    pub http_failed: u32,
    /// Of its database.
    pub sql: Option<Probe>,
    /// How many attempts to ask its database have failed in a row.
    pub sql_failed: u32,
    /// The heartbeat written to its database; none where it does not serve.
    pub heartbeat: Option<Probe>,
}

/// The database that serves: heartbeats go there and nowhere else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Serving {
    /// The primary's placement.
    pub key: PlacementKey,
    /// What the journal says it serves at.
    pub generation: u64,
}

/// The newest probes of every placement.
#[derive(Debug)]
pub struct ProbeBoard {
    probes: watch::Sender<BTreeMap<PlacementKey, Probes>>,
    serving: ArcSwapOption<Serving>,
}

impl Default for ProbeBoard {
    fn default() -> Self {
        Self { probes: watch::Sender::new(BTreeMap::new()), serving: ArcSwapOption::empty() }
    }
}

impl ProbeBoard {
    /// The newest probes of `key`; empty when it is not probed.
    pub fn get(&self, key: &PlacementKey) -> Probes {
        self.probes.borrow().get(key).cloned().unwrap_or_default()
    }

    /// A receiver that sees every change. Do not hold its borrow across an await.
    pub fn subscribe(&self) -> watch::Receiver<BTreeMap<PlacementKey, Probes>> {
        self.probes.subscribe()
    }

    /// Who serves now; none, as at first: nobody is known to.
    pub fn serves(&self, serving: Option<Serving>) {
        self.serving.store(serving.map(Arc::new));
    }

    /// The generation at which `key` serves.
    fn generation(&self, key: &PlacementKey) -> Option<u64> {
        self.serving.load().as_ref().filter(|serving| serving.key == *key).map(|serving| serving.generation)
    }

    fn add(&self, key: &PlacementKey) {
        self.probes.send_modify(|all| {
            all.insert(key.clone(), Probes::default());
        });
    }

    /// Nothing when `key` has been forgotten meanwhile: an aborted task may still end its last turn.
    fn post(&self, key: &PlacementKey, change: impl FnOnce(&mut Probes)) {
        self.probes.send_if_modified(|all| all.get_mut(key).map(change).is_some());
    }

    fn remove(&self, key: &PlacementKey) {
        self.probes.send_if_modified(|all| all.remove(key).is_some());
    }
}

/// What to probe of one placement.
#[derive(Clone, Default)]
pub struct Target {
    /// HTTP endpoints as `host:port`. Workers of a small shadow may be down: the first that answers counts.
    pub http: Vec<String>,
    /// Path and query asked for.
    pub path: String,
    /// How the endpoints are spoken to.
    pub reach: Arc<Reach>,
    /// The database.
    pub sql: Option<Dsn>,
    /// Heartbeats are written to it while it serves.
    pub heartbeat: bool,
}

/// How often, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Between the starts of two probes.
    pub step: Duration,
    /// For one probe.
    pub timeout: Duration,
}

/// Owns the probe tasks. Must be made and used inside a tokio runtime.
pub struct Prober {
    board: Arc<ProbeBoard>,
    pace: Pace,
    tasks: HashMap<PlacementKey, JoinSet<()>>,
}

impl Prober {
    /// A prober with nothing to probe, publishing to `board`.
    pub fn new(board: Arc<ProbeBoard>, pace: Pace) -> Self {
        Self { board, pace, tasks: HashMap::new() }
    }

    /// Starts probing `key`, in place of what was probed under that key before.
    pub fn watch(&mut self, key: PlacementKey, target: Target) {
        self.forget(&key);
        self.board.add(&key);
        let mut tasks = JoinSet::new();
        let Pace { step, timeout } = self.pace;
        let step = step.max(Duration::from_millis(1));
        if !target.http.is_empty() {
            let (board, key) = (self.board.clone(), key.clone());
            let mut turn = Endpoints::new(target.http, &target.path, &target.reach, timeout);
            tasks.spawn(async move {
                let mut ticks = ticks(step);
                let mut failed = 0_u32;
                loop {
                    let pause = if failed > 0 { AGAIN } else { Duration::MAX };
                    let _ = tokio::time::timeout(pause, ticks.tick()).await;
                    let probe = turn.run().await;
                    telemetry::probe(&key.zone, "http", &probe);
                    failed = if probe.latency.is_ok() { 0 } else { failed.saturating_add(1) };
                    board.post(&key, |probes| (probes.http, probes.http_failed) = (Some(probe), failed));
                }
            });
        }
        if let Some(config) = target.sql {
            let (board, key) = (self.board.clone(), key.clone());
            let mut sql = SqlProbe::new(config, timeout);
            tasks.spawn(async move {
                let mut ticks = ticks(step);
                loop {
                    ticks.tick().await;
                    let probe = sql.run().await;
                    telemetry::probe(&key.zone, "sql", &probe);
                    let failed = sql.failures();
                    board.post(&key, |probes| (probes.sql, probes.sql_failed) = (Some(probe), failed));
                    let beaten = match board.generation(&key).filter(|_| target.heartbeat) {
                        Some(generation) => sql.beat(&key.resource, generation).await,
                        None => None,
                    };
                    if let Some(Beaten { probe, refused: false }) = &beaten {
                        telemetry::probe(&key.zone, "heartbeat", probe);
                    }
                    board.post(&key, |probes| probes.heartbeat = beaten.map(|beaten| beaten.probe));
                }
            });
        }
        self.tasks.insert(key, tasks);
    }

    /// Stops probing `key` and takes its probes off the board.
    pub fn forget(&mut self, key: &PlacementKey) {
        self.tasks.remove(key);
        self.board.remove(key);
    }

    /// What is being probed.
    pub fn watched(&self) -> impl Iterator<Item = &PlacementKey> {
        self.tasks.keys()
    }
}

/// The service of `target`, probed once; none: it has no endpoint.
pub async fn probe_once(target: Target, timeout: Duration) -> Option<Probe> {
    if target.http.is_empty() {
        return None;
    }
    Some(Endpoints::new(target.http, &target.path, &target.reach, timeout).run().await)
}

fn ticks(step: Duration) -> tokio::time::Interval {
    let mut ticks = tokio::time::interval(step);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    ticks
}

/// The endpoints of one placement: the one that answered last is asked first.
struct Endpoints {
    probes: Vec<HttpProbe>,
    first: usize,
}

impl Endpoints {
    fn new(endpoints: Vec<String>, path: &str, reach: &Arc<Reach>, timeout: Duration) -> Self {
        let probes = endpoints
            .into_iter()
            .map(|endpoint| HttpProbe { endpoint, path: path.to_owned(), reach: Arc::clone(reach), timeout })
            .collect();
        Self { probes, first: 0 }
    }

    /// The first success, else the failure of the endpoint that was asked first. The others are asked together, for many may be silent at once.
    async fn run(&mut self) -> Probe {
        let count = self.probes.len();
        let Some(first) = self.probes.get(self.first) else {
            let course = Course::begin(Phase::Dns);
            let nothing = course.failed("there is no endpoint to probe");
            return course.found(Err(nothing));
        };
        let found = first.run().await;
        if found.latency.is_ok() {
            return found;
        }
        let others = (1..count).map(|offset| (self.first + offset) % count);
        let asked = join_all(others.map(async |place| (place, self.probes[place].run().await))).await;
        match asked.into_iter().find(|(_, probe)| probe.latency.is_ok()) {
            Some((place, probe)) => {
                self.first = place;
                probe
            }
            None => found,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::http_probe::tests::{OK, server};
    use super::super::sql_probe::tests::{listen, serve};
    use super::*;
    use tokio::sync::mpsc::UnboundedReceiver;

    const PACE: Pace = Pace { step: Duration::from_millis(20), timeout: Duration::from_millis(300) };

    async fn until(
        board: &ProbeBoard,
        fact: impl Fn(&BTreeMap<PlacementKey, Probes>) -> bool,
    ) -> BTreeMap<PlacementKey, Probes> {
        let mut changes = board.subscribe();
        let wait = tokio::time::timeout(Duration::from_secs(10), changes.wait_for(|all| fact(all)));
        wait.await.expect("in time").expect("the board lives").clone()
    }

    #[tokio::test]
    async fn every_placement_is_probed_whatever_the_others_do() {
        let (up, _up) = server(Some(OK), Duration::ZERO).await;
        let (hole, _hole) = server(None, Duration::ZERO).await;
        let board = Arc::new(ProbeBoard::default());
        let mut prober = Prober::new(board.clone(), PACE);
        let (near, far) = (PlacementKey::new("orders", "near"), PlacementKey::new("orders", "far"));
        let target = |address: std::net::SocketAddr| Target {
            http: vec!["127.0.0.1:1".into(), address.to_string()],
            path: "/".into(),
            ..Target::default()
        };
        prober.watch(near.clone(), target(up));
        prober.watch(far.clone(), target(hole));
        let seen = until(&board, |all| {
            let done = |key| all.get(key).is_some_and(|probes: &Probes| probes.http.is_some());
            done(&near) && done(&far)
        })
        .await;
        // A worker that is down does not hide the one that answers.
        assert!(seen[&near].http.as_ref().unwrap().latency.is_ok());
        assert!(seen[&far].http.as_ref().unwrap().latency.is_err());

        prober.forget(&far);
        assert_eq!(board.get(&far), Probes::default());
        assert_eq!(prober.watched().collect::<Vec<_>>(), [&near]);
        let before = board.get(&near).http.unwrap().at;
        until(&board, |all| all[&near].http.as_ref().unwrap().at > before).await;
    }

    #[tokio::test]
    async fn a_refusing_database_is_on_the_board_with_its_reason() {
        let board = Arc::new(ProbeBoard::default());
        let mut prober = Prober::new(board.clone(), PACE);
        let key = PlacementKey::new("orders", "near");
        let mut config = tokio_postgres::Config::new();
        config.host("127.0.0.1").port(1).user("godwit");
        prober.watch(key.clone(), Target { sql: Some(config.into()), ..Target::default() });
        let seen = until(&board, |all| all.get(&key).is_some_and(|probes| probes.sql.is_some())).await;
        let failure = seen[&key].sql.as_ref().unwrap().latency.clone().unwrap_err();
        assert!(failure.why.contains("refused"), "{failure}");
        assert_eq!(seen[&key].http, None);
    }

    // What is written from here on, until this many questions have been asked.
    async fn written(heard: &mut UnboundedReceiver<String>, questions: usize) -> Vec<String> {
        while heard.try_recv().is_ok() {}
        let (mut writes, mut seen) = (Vec::new(), 0);
        while seen < questions {
            let next = tokio::time::timeout(Duration::from_secs(20), heard.recv());
            let query = next.await.expect("it goes on asking").expect("the server lives");
            seen += usize::from(query == "select 1");
            writes.extend(Some(query).filter(|query| query.starts_with("WITH")));
        }
        writes
    }

    #[tokio::test]
    async fn heartbeats_go_to_who_serves_while_somebody_does() {
        let (listener, dsn) = listen().await;
        let (said, mut heard) = tokio::sync::mpsc::unbounded_channel();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let answer = |query: &str| {
                let _ = said.send(query.to_owned());
                Some(if query.starts_with("WITH") { "INSERT 0 1" } else { "SELECT 1" })
            };
            let _ = serve(&mut stream, answer).await;
        });
        let board = Arc::new(ProbeBoard::default());
        let patient = Pace { timeout: Duration::from_secs(10), ..PACE };
        let mut prober = Prober::new(board.clone(), patient);
        let key = PlacementKey::new("orders", "near");
        prober.watch(key.clone(), Target { sql: Some(dsn), heartbeat: true, ..Target::default() });
        assert_eq!(written(&mut heard, 3).await, Vec::<String>::new(), "nobody is known to serve");
        let serves = |zone: &str| {
            let key = PlacementKey::new("orders", zone);
            board.serves(Some(Serving { key, generation: 7 }));
        };
        serves("near");
        let beaten = until(&board, |all| {
            let beat = all[&key].heartbeat.as_ref();
            beat.is_some_and(|beat| beat.latency.is_ok() && beat.phase(Phase::Write).is_some())
        });
        beaten.await;
        let writes = written(&mut heard, 3).await;
        assert!(writes.iter().any(|sql| sql.contains("'orders'") && sql.contains("<= 7")), "{writes:?}");
        serves("far");
        until(&board, |all| all[&key].heartbeat.is_none()).await;
        assert_eq!(written(&mut heard, 3).await, Vec::<String>::new(), "it serves no more");
    }
}
