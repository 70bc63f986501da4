//! What is measured for one resource, step by step, and what watches it between the steps.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use migration::cutover::{Capacity, Phase, State};
use migration::policy::Policy;
use migration::units::{Generation, Zone};
use replicator::drift::Difference;
use replicator::postgres::blocks;
use replicator::preflight::Side;
use replicator::status::{CopyStage, Phase as StreamPhase};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::answering::IN_A_ROW;
use super::databases::{Databases, Purpose};
use super::effects::{Hands, ZoneDriver};
use super::live::Live;
use super::signals::{Measured, Mirrored, Signals};
use super::view::{CopyView, FactView, PathView, PhaseView, PlacementView, ResourceView};
use super::{drift, gone, preflight};
use crate::causes::chain;
use crate::clock;
use crate::config::model::Resource;
use crate::drivers::PlacementStatus;
use crate::feeds::external::board::FeedBoard;
use crate::feeds::prober::{PlacementKey, ProbeBoard, Probes, Serving};
use crate::feeds::{Phase as ProbePhase, Probe};
use crate::fronts::latencies::Latencies;
use crate::fronts::stopwatch::Segment;
use crate::lock::lock;

/// How often the databases are examined.
const EXAMINE: Duration = Duration::from_secs(10);
/// How soon schemas that differ are compared again; and how often it is looked whether they were changed, at most.
const AGAIN: Duration = Duration::from_secs(1);
/// How long what was mended in vain is left alone, at most.
const RESTS: Duration = Duration::from_hours(1);
/// How long schemas that were found alike need not be read again, as long as nothing tells that they changed.
const COMPARE: Duration = Duration::from_mins(1);
/// Of a schema that has just been brought up, until it is looked at again.
const FOLLOWED: &str = "the shadow is just following its primary's schema: try again in some seconds";
/// How long one examination may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// A probe older than this says nothing; where they come more seldom, one older than two of them.
const PROBE_AGE: Duration = Duration::from_secs(15);

/// What [`InVain::why`] begins with.
const IN_VAIN: &str = "the shadow's schema cannot follow its primary's: ";

/// What the shadow could not follow in.
struct InVain {
    since: Instant,
    /// As it stands among the problems.
    why: String,
    /// How long it is left alone.
    rest: Duration,
    /// What differed then: with something else it is tried at once.
    differences: Vec<Difference>,
}

impl InVain {
    /// `done`: it was, and is to be done again. That rests twice as long each time.
    fn new(before: Option<&Self>, now: Instant, why: &str, done: bool, differences: Vec<Difference>) -> Self {
        let why = format!("{IN_VAIN}{why}");
        let again = before.filter(|before| done && before.why == why);
        let rest = again.map_or(EXAMINE, |before| (before.rest * 2).min(RESTS));
        Self { since: now, why, rest, differences }
    }

    fn rested(&self, now: Instant, differences: &[Difference]) -> bool {
        now.saturating_duration_since(self.since) >= self.rest || differences != self.differences
    }
}

/// How often it is looked whether schemas were changed, where looking takes so long: no more than a hundredth of the time goes to that.
fn pace(took: Duration) -> Duration {
    (took * 100).clamp(AGAIN, EXAMINE)
}

/// How long a database is left alone that was examined in such a time: of thousands of tables that is seconds of the server's own, and what a
/// person mends is to be seen soon. One that did not answer has not worked for it.
fn rests(took: Duration, is_answered: bool) -> Duration {
    if is_answered { (took * 10).clamp(EXAMINE, COMPARE) } else { EXAMINE }
}

/// Results of what watches between the steps.
#[derive(Default)]
struct Watched {
    placements: BTreeMap<String, Result<PlacementStatus, String>>,
    /// By zone: when its driver was asked for that.
    looked: BTreeMap<String, Instant>,
    /// By zone: what stands in the way, or why that is unknown.
    blockers: BTreeMap<String, Result<Vec<String>, String>>,
    /// What stands in the way of a move: differences between the schemas of both zones, and what the shadow's server lacks.
    drift: Vec<String>,
    /// Differences that the shadow is just following in, and since when each is there.
    follows: Vec<(Instant, Difference)>,
    /// Whose schema counts.
    primary: String,
}

impl Watched {
    fn differ(&mut self, copied: bool, drift: Vec<String>, follows: Vec<Difference>, now: Instant) {
        self.drift = if copied { drift } else { Vec::new() };
        let before = std::mem::take(&mut self.follows);
        let since = |difference: &Difference| {
            let is_it = |(_, other): &&(Instant, Difference)| {
                (&other.subject, &other.what) == (&difference.subject, &difference.what)
            };
            before.iter().find(is_it).map_or(now, |(since, _)| *since)
        };
        if copied {
            self.follows = follows.into_iter().map(|difference| (since(&difference), difference)).collect();
        }
    }

    /// What was seen before the shadow followed is told no more; whether that was all, the next look says, which comes at once.
    fn followed(&mut self) {
        if !self.drift.is_empty() {
            self.drift = vec![FOLLOWED.to_owned()];
        }
    }

    /// What stops a move of this resource, and what is in work and does not yet. `filling`: what is being done about what the shadow could not follow in,
    /// and so told instead.
    fn drift(&self, resource: &str, filling: Option<&String>, now: Instant) -> [Vec<String>; 2] {
        let is_late = |since: &Instant| now.saturating_duration_since(*since) >= drift::FOLLOWS;
        let [late, following] = [true, false].map(|late| {
            let these = self.follows.iter().filter(|(since, _)| is_late(since) == late);
            let these: Vec<Difference> = these.map(|(_, difference)| difference.clone()).collect();
            drift::named(resource, &these)
        });
        let drift = self.drift.iter().map(|why| filling.filter(|_| why.starts_with(IN_VAIN)).unwrap_or(why));
        [drift.cloned().chain(late).collect(), following]
    }
}

/// Measures one resource.
pub struct Measure {
    resource: Arc<Live>,
    latencies: Latencies,
    board: Arc<ProbeBoard>,
    feeds: FeedBoard,
    watched: Arc<Mutex<Watched>>,
    /// The databases are examined now.
    again: Arc<Notify>,
}

impl Measure {
    /// Measures nothing yet.
    pub fn new(resource: Arc<Live>, latencies: Latencies, board: Arc<ProbeBoard>, feeds: FeedBoard) -> Self {
        Self { resource, latencies, board, feeds, watched: Arc::default(), again: Arc::default() }
    }

    /// Starts what watches between the steps; ends with `stop`.
    pub fn watch(
        &self,
        drivers: &BTreeMap<String, ZoneDriver>,
        databases: &Arc<Databases>,
        stop: &CancellationToken,
    ) {
        for (zone, driver) in drivers {
            let (zone, driver, watched) = (zone.clone(), driver.does.clone(), self.watched.clone());
            tokio::spawn(stop.clone().run_until_cancelled_owned(async move {
                loop {
                    let asked = clock::monotonic();
                    let status = driver.status().await.map_err(chain);
                    {
                        let mut watched = lock(&watched);
                        watched.placements.insert(zone.clone(), status);
                        watched.looked.insert(zone.clone(), asked);
                    }
                    tokio::time::sleep(driver.pace()).await;
                }
            }));
        }
        let resource = self.resource.load();
        let with_database = resource.placements.values().filter(|placement| placement.has_database());
        for zone in with_database.map(|placement| placement.zone.clone()) {
            let (databases, watched) = (databases.clone(), self.watched.clone());
            let (live, again) = (self.resource.clone(), self.again.clone());
            tokio::spawn(stop.clone().run_until_cancelled_owned(async move {
                loop {
                    let mut begun = clock::monotonic();
                    let mut found = examine(&databases, &live.load(), &zone).await;
                    if found.is_err() {
                        // The connection that was kept may be to a server that has been restarted.
                        begun = clock::monotonic();
                        found = examine(&databases, &live.load(), &zone).await;
                    }
                    let rests = rests(begun.elapsed(), found.is_ok());
                    lock(&watched).blockers.insert(zone.clone(), found);
                    let _ = tokio::time::timeout(rests, again.notified()).await;
                }
            }));
        }
    }

    /// Examines the databases now, whatever rests: somebody was refused who may have mended what stood in the way.
    pub(super) fn look_again(&self) {
        self.again.notify_waiters();
    }

    /// Compares the schemas of both zones, the primary's first, and has the shadow's follow as the policy says; ends with `stop`.
    pub fn compare_schemas(
        &self,
        hands: &Hands,
        primary: &str,
        view: Arc<ArcSwap<ResourceView>>,
        stop: &CancellationToken,
    ) {
        primary.clone_into(&mut lock(&self.watched).primary);
        let (databases, front) = (hands.databases.clone(), hands.postgres.clone());
        let (streams, audit) = (hands.streams.clone(), hands.audit.clone());
        let (watched, resource) = (self.watched.clone(), self.resource.clone());
        tokio::spawn(stop.clone().run_until_cancelled_owned(async move {
            // What both were like when they were found alike, and when that was.
            let mut alike = None;
            // What the shadow's server lacks, when that was looked at, and whether there was a copy.
            let mut lacks: Option<(Instant, bool, Vec<String>)> = None;
            let mut seeded = drift::Seeded::known(streams.journal(), &resource.name);
            // Tables that are published and have lost their keys.
            let mut keyless = Vec::new();
            // What could not be followed, and how long that rests.
            let mut in_vain: Option<InVain> = None;
            loop {
                let primary = lock(&watched).primary.clone();
                let Some(other) = resource.load().other(&primary).cloned() else { return };
                let zones = [&*primary, &*other.zone];
                if streams.filling().borrow().is_some() {
                    tokio::time::sleep(AGAIN).await;
                    continue;
                }
                let generation = Generation(view.load().generation);
                let passed = gone::pass_over(&resource.name, generation, &databases, &streams, &audit).await;
                if let Err(why) = passed {
                    tracing::debug!(
                        resource = resource.name,
                        why,
                        "tables that are gone may keep the stream"
                    );
                }
                let looked = crate::clock::monotonic();
                let stamps = drift::stamps(&databases, zones).await;
                let now = crate::clock::monotonic();
                let often = pace(now.saturating_duration_since(looked));
                if let (Some((seen, when)), Some(stamps)) = (&alike, &stamps)
                    && seen == stamps
                    && now.saturating_duration_since(*when) < COMPARE
                {
                    tokio::time::sleep(often).await;
                    continue;
                }
                // What is seen while it is copied is not what there is afterwards.
                let copied = drift::copied(&view.load());
                let again = lacks.as_ref().is_none_or(|(when, was_copied, lacks)| {
                    let every = if lacks.is_empty() { COMPARE } else { EXAMINE };
                    *was_copied != copied || now.saturating_duration_since(*when) >= every
                });
                if again {
                    lacks = Some((
                        now,
                        copied,
                        drift::lacks(&databases, zones, &resource.load().policy, front.as_deref()).await,
                    ));
                }
                if drift::stands_in_the_way(&view.load()).is_none() {
                    let spared =
                        drift::spare(&resource.load(), &databases, zones, &mut keyless, &streams, &audit)
                            .await;
                    if let Err(why) = spared {
                        tracing::debug!(
                            resource = resource.load().name,
                            why,
                            "tables without keys may be published"
                        );
                    }
                }
                let mut differences = drift::differences(&databases, zones).await;
                if differences.is_err() {
                    // The connection that was kept may be to a server that has been restarted.
                    differences = drift::differences(&databases, zones).await;
                }
                let mut follows = Vec::new();
                let mut found = match &differences {
                    Ok(differences)
                        if in_vain.is_none() && drift::are_followed(&resource.load().policy, differences) =>
                    {
                        follows.clone_from(differences);
                        follows.retain(|difference| difference.stops);
                        Vec::new()
                    }
                    Ok(differences) => drift::named(&resource.load().name, differences),
                    Err(error) => vec![format!("the schemas cannot be compared: {error}")],
                };
                let differences = differences.unwrap_or_default();
                if differences.is_empty() {
                    in_vain = None;
                }
                found.extend(in_vain.iter().map(|in_vain| in_vain.why.clone()));
                found.extend(lacks.iter().flat_map(|(.., lacks)| lacks.iter().cloned()));
                // It may be over in a moment.
                found.extend(drift::leases(&databases, zones, &resource.name).await);
                let is_alike = found.is_empty() && follows.is_empty() && keyless.is_empty();
                alike = stamps.filter(|_| is_alike).map(|stamps| (stamps, now));
                let pause = if is_alike { often } else { AGAIN };
                lock(&watched).differ(copied, found, follows, now);
                let rested = in_vain.as_ref().is_none_or(|in_vain| in_vain.rested(now, &differences));
                if rested && !differences.is_empty() {
                    let followed = drift::follow(
                        &resource.load(),
                        &view.load(),
                        &differences,
                        &mut seeded,
                        &streams,
                        &audit,
                    )
                    .await;
                    let why = match followed {
                        Ok(drift::Followed::Nothing) => None,
                        Ok(drift::Followed::Some) => {
                            in_vain = None;
                            lock(&watched).followed();
                            continue;
                        }
                        Ok(drift::Followed::InVain(why)) => Some((why, true)),
                        Err(error) => Some((error.to_string(), false)),
                    };
                    in_vain =
                        why.map(|(why, done)| InVain::new(in_vain.as_ref(), now, &why, done, differences));
                }
                tokio::time::sleep(pause).await;
            }
        }));
    }

    /// One step: what was measured but for [`Self::lag`] and [`Self::blockers`], and whether a cutover disturbed it.
    pub fn step(&mut self, hands: &Hands, state: &State) -> (Measured, bool) {
        let primary = state.primary.to_string();
        let (histogram, answers) = self.latencies.take_of(&self.resource.name, &primary, Segment::Upstream);
        let request_p95_ms =
            (!histogram.is_empty()).then(|| histogram.value_at_quantile(0.95) as f64 / 1000.0);
        let mut measured = Measured { request_p95_ms, answers, ..Measured::default() };
        let settings = self.resource.load();
        let oldest = oldest_probe(settings.policy.step);
        // Its clients speak to the database: so does the probe that is compared with them.
        measured.probed_by_sql = settings.http.is_none();
        for (zone, placement) in &settings.placements {
            let probes = self.board.get(&PlacementKey::new(&self.resource.name, zone));
            let (probe, failed, source) = if measured.probed_by_sql {
                (&probes.sql, probes.sql_failed, "SQL probe")
            } else {
                (&probes.http, probes.http_failed, "HTTP probe")
            };
            if let Some(probe) = probe {
                let (answer, now) = (probe.answer(source), crate::clock::now());
                let value = answer.fresh(now, oldest);
                let ms = value.map(|took| took.as_secs_f64() * 1000.0).map_err(|why| why.0);
                measured.probes_ms.insert(zone.clone(), ms);
                if failed >= IN_A_ROW && answer.age(now) <= oldest {
                    measured.probes_fail.insert(zone.clone());
                }
            }
            if let (Some(beat), true) = (&probes.heartbeat, *zone == primary) {
                let reading = beat.reading("heartbeat");
                let took = reading.fresh(crate::clock::now(), oldest).ok();
                measured.heartbeat_ms = took.map(|took| took.as_secs_f64() * 1000.0);
            }
            measured.cost.insert(
                zone.clone(),
                placement.cost_per_hour.map(|cost| cost * f64::from(placement.capacity)),
            );
        }
        self.utilization(hands, state, &mut measured);
        mirrored(hands, &mut measured);
        measured.fed = super::fed::read(&self.feeds, &settings, &measured.cost, crate::clock::now());
        lock(&self.watched).primary = primary;
        (measured, state.phase.holds())
    }

    /// Bytes that the shadow is behind, or why that is unknown; none: no stream runs. What has no database is never behind.
    pub fn lag(&self, hands: &Hands, state: &State) -> Option<Result<u64, String>> {
        if !self.resource.load().has_database() {
            return Some(Ok(0));
        }
        hands.streams.status(state.generation).map(|(.., status)| match status.phase {
            StreamPhase::Streaming => Ok(status.lag_bytes),
            StreamPhase::Failed { error, .. } => Err(error),
            other => Err(not_up(&other)),
        })
    }

    /// What stands in the way of a move in the databases.
    pub fn blockers(&self, hands: &Hands, state: &State) -> Vec<String> {
        let watched = lock(&self.watched);
        let mut blockers = Vec::new();
        for (zone, found) in &watched.blockers {
            match found {
                Ok(found) => blockers.extend(found.iter().cloned()),
                Err(why) => blockers.push(format!("the database in {zone} cannot be examined: {why}")),
            }
        }
        let shadow = &*state.shadow.0;
        if let Some(why) = lock(&hands.unadopted).get(shadow)
            // Its driver would refuse to scale it.
            && hands.drivers.get(shadow).is_some_and(|driver| !matches!(driver.does.provisioned(), Ok(true)))
        {
            blockers.push(unadopted(shadow, why));
        }
        if seeded(hands, state) {
            let filling = drift::filling(&hands.streams);
            let [stops, _] = watched.drift(&self.resource.name, filling.as_ref(), crate::clock::monotonic());
            blockers.extend(stops);
            blockers.extend(hands.large_objects.problems(state.generation.0).0);
        }
        blockers
    }

    fn utilization(&self, hands: &Hands, state: &State, measured: &mut Measured) {
        let Some(front) = &hands.front else { return };
        let in_flight = front.gate.stats().in_flight as f64;
        for zone in [&state.primary, &state.shadow] {
            let workers = lock(&self.watched).placements.get(&*zone.0).map_or_else(
                || Ok(hands.workers(zone, Capacity::Full)),
                |status| status.clone().map(|status| status.ready),
            );
            let load = if *zone == state.primary { in_flight } else { 0.0 };
            let value = match workers {
                Ok(0) => Err(format!("no worker answers in {zone}")),
                Ok(workers) => Ok((load / f64::from(workers)).min(1.0)),
                Err(why) => Err(why),
            };
            measured.utilization.insert(zone.to_string(), value);
        }
    }

    /// Workers that the driver of this zone was asked for last, as it says; none: there is none, or it does not say.
    pub(super) fn asked_for(&self, zone: &Zone) -> Option<(u32, Instant)> {
        let watched = lock(&self.watched);
        let status = watched.placements.get(&*zone.0)?.as_ref().ok()?;
        Some((status.capacity, *watched.looked.get(&*zone.0)?))
    }

    /// Tells the probes who serves, if anybody does.
    pub fn told(&self, state: &State) {
        let key = PlacementKey::new(&self.resource.name, &*state.primary.0);
        let serving = Serving { key, generation: state.generation.0 };
        self.board.serves(Some(serving).filter(|_| !state.phase.holds()));
    }

    pub(super) fn probes(&self, zone: &Zone) -> Probes {
        self.board.get(&PlacementKey::new(&self.resource.name, &*zone.0))
    }

    /// The age up to which a probe counts.
    pub(super) fn oldest(&self) -> Duration {
        oldest_probe(self.resource.load().policy.step)
    }

    /// What is wrong now, in words that say what it means for the service.
    pub fn problems(&self, hands: &Hands, state: &State) -> Vec<String> {
        let watched = lock(&self.watched);
        let mut problems = Vec::new();
        let filling = drift::filling(&hands.streams);
        for (zone, status) in &watched.placements {
            if let Err(why) = status {
                problems.push(format!("driver of {zone}: {why}"));
            }
        }
        for (zone, why) in &*lock(&hands.unadopted) {
            problems.push(unadopted(zone, why));
        }
        for (zone, found) in &watched.blockers {
            match found {
                Ok(found) => problems.extend(found.iter().map(|what| format!("not migratable: {what}"))),
                Err(why) if *zone == *state.shadow.0 => {
                    problems.push(format!(
                        "the shadow in {zone} cannot be reached ({why}): the service stays in {}",
                        state.primary
                    ));
                }
                Err(why) => problems.push(format!("the database in {zone} cannot be examined: {why}")),
            }
        }
        if seeded(hands, state) {
            let (stops, progress) = hands.large_objects.problems(state.generation.0);
            let [differ, follows] =
                watched.drift(&self.resource.name, filling.as_ref(), crate::clock::monotonic());
            let stops = differ.into_iter().chain(stops);
            problems.extend(stops.map(|what| format!("not migratable: {what}")));
            problems.extend(follows.into_iter().map(|what| format!("the shadow is just following: {what}")));
            problems.extend(progress);
        }
        problems.extend(filling);
        if hands.front.is_some() {
            // A shadow that its driver keeps without workers has nothing to answer with.
            let runs = |zone: &Zone| match watched.placements.get(&*zone.0) {
                Some(status) => status.as_ref().is_ok_and(|status| status.capacity > 0),
                None => !hands.drivers.contains_key(&*zone.0),
            };
            problems.extend(self.silence(hands, state, runs));
        }
        problems
    }

    /// Both placements as shown, so long after the last step ended.
    pub fn placements(
        &self,
        state: &State,
        signals: &Signals,
        policy: &Policy,
        since: Duration,
    ) -> Vec<PlacementView> {
        let resource = self.resource.load();
        let oldest = oldest_probe(resource.policy.step);
        let watched = lock(&self.watched);
        [(&state.primary, "primary"), (&state.shadow, "shadow")]
            .into_iter()
            .map(|(zone, role)| {
                let probes = self.board.get(&PlacementKey::new(&self.resource.name, &*zone.0));
                let (http_probe, http_phases) = shown(probes.http.as_ref(), "HTTP probe", oldest);
                let (sql_probe, sql_phases) = shown(probes.sql.as_ref(), "SQL probe", oldest);
                let status = watched.placements.get(&*zone.0).and_then(|status| status.as_ref().ok());
                let placement = resource.placements.get(&*zone.0);
                let full = placement.map_or(1, |placement| placement.capacity);
                // What is left on the board from before a move is no heartbeat of a primary.
                let beat = probes.heartbeat.as_ref().filter(|_| role == "primary");
                let (heartbeat, _) = shown(beat, "heartbeat", oldest);
                PlacementView {
                    zone: zone.to_string(),
                    role: role.into(),
                    capacity_full: full,
                    capacity_shadow: policy.shadow_capacity.of(full).min(full),
                    cost_per_hour: placement.and_then(|placement| placement.cost_per_hour),
                    cost: FactView::of(&signals.cost(&zone.0, since).map(|all| all / f64::from(full.max(1)))),
                    ready: status.map(|status| status.ready),
                    capacity: status.map(|status| status.capacity),
                    http_probe,
                    http_phases,
                    sql_probe,
                    sql_phases,
                    heartbeat,
                    path: signals.measured().fed.paths.get(&*zone.0).map(PathView::of),
                    forecast_ms: signals.probe_forecast(&zone.0, policy),
                }
            })
            .collect()
    }
}

fn unadopted(zone: &str, why: &str) -> String {
    format!("what runs in {zone} is not its driver's yet: {why}")
}

/// The age up to which a probe counts.
fn oldest_probe(step: Duration) -> Duration {
    PROBE_AGE.max(step * 2)
}

/// A probe as shown: its latency or why there is none, and the phases that it completed. What is too old is unknown.
fn shown(
    probe: Option<&Probe>,
    source: &'static str,
    oldest: Duration,
) -> (Option<Result<u64, String>>, Vec<PhaseView>) {
    let Some(probe) = probe else { return (None, Vec::new()) };
    let micros = |took: Duration| u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
    let now = crate::clock::now();
    let reading = probe.reading(source);
    let latency = reading.fresh(now, oldest).map(|took| micros(*took)).map_err(|why| why.0);
    let phases = if reading.age(now) > oldest { &[][..] } else { &probe.phases };
    let shown =
        |(phase, took): &(_, _)| PhaseView { phase: ProbePhase::as_str(*phase).into(), us: micros(*took) };
    (Some(latency), phases.iter().map(shown).collect())
}

/// What the shadow took for reads that clients were answered by the primary.
fn mirrored(hands: &Hands, measured: &mut Measured) {
    let Some(front) = &hands.front else { return };
    let ms = |took: Duration| took.as_secs_f64() * 1000.0;
    let told = front.mirror.tell();
    measured.mirrored = told.map(|told| Mirrored {
        primary_ms: ms(told.primary),
        shadow_ms: ms(told.shadow),
        shadow: told.zone,
    });
    measured.mirrored_different = front.mirror.different();
}

/// Why a stream that did not fail says not how far its shadow is.
fn not_up(phase: &StreamPhase) -> String {
    let does = match phase {
        StreamPhase::Copying { stage: CopyStage::Settling, .. } => {
            "it brings the shadow's tables to one point".to_owned()
        }
        StreamPhase::Copying { .. } => {
            let line = CopyView::of(phase).map(|copy| copy.line()).unwrap_or_default();
            format!("the shadow is being copied ({line})")
        }
        StreamPhase::Stopped => "it was stopped".to_owned(),
        _ => "it is connecting".to_owned(),
    };
    format!("the stream is not up: {does}")
}

/// There is a copy whose schema can be compared.
fn seeded(hands: &Hands, state: &State) -> bool {
    hands.streams.status(state.generation).is_some_and(|(.., status)| {
        matches!(status.phase, StreamPhase::Streaming | StreamPhase::Failed { .. })
            && state.phase >= Phase::Shadowing
    })
}

async fn examine(databases: &Databases, resource: &Resource, zone: &str) -> Result<Vec<String>, String> {
    let client = databases.get(zone, Purpose::Examine).await.map_err(chain)?;
    let blockers = async {
        // Either side may be the source of the next move: both must fulfil what a source must.
        let found = preflight::blockers(&client, Side::Source, &resource.policy, zone).await?;
        let verifiers = preflight::verifiers(&client, resource, zone).await;
        let dumps = preflight::dumps(&client, resource, zone).await;
        let first = preflight::worded(verifiers.into_iter().chain(dumps).collect(), zone);
        Ok(preflight::first(first.into_iter().chain(found).collect(), &resource.name))
    };
    let found = match tokio::time::timeout(PATIENCE, blockers).await {
        Ok(found) => found,
        Err(_) => Err(format!("no answer within {} s{}", PATIENCE.as_secs(), blocked(databases, zone).await)),
    };
    if found.is_err() {
        databases.forget(zone, Purpose::Examine).await;
    }
    found
}

/// Who holds what the examination waits for, as what is said of it ends; empty: that is not known.
async fn blocked(databases: &Databases, zone: &str) -> String {
    let look = async {
        let client = databases.get(zone, Purpose::Control).await.ok()?;
        blocks(&client, Purpose::Examine.application_name()).await.ok()?
    };
    let found = tokio::time::timeout(AGAIN, look).await.ok().flatten();
    found.map(|who| format!(": it waits for a lock of {who}")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use migration::policy::{KeylessTables, PolicyParts, SchemaFollows};
    use replicator::drift::Mend;

    use super::*;

    #[test]
    fn what_answers_late_is_left_alone_and_what_does_not_is_asked_again() {
        let seconds = Duration::from_secs;
        assert_eq!(rests(seconds(2), true), seconds(20));
        assert_eq!([rests(Duration::ZERO, true), rests(seconds(20), false)], [EXAMINE; 2]);
        assert_eq!(rests(seconds(9), true), COMPARE, "what was mended is seen within a minute");
    }

    #[test]
    fn what_is_done_in_vain_rests_longer_each_time() {
        let now = crate::clock::monotonic();
        let again =
            |before: Option<&InVain>, why: &str, done| InVain::new(before, now, why, done, Vec::new());
        let first = again(None, "a", true);
        let second = again(Some(&first), "a", true);
        assert_eq!([first.rest, second.rest], [EXAMINE, EXAMINE * 2]);
        assert_eq!((1..20).fold(first, |before, _| again(Some(&before), "a", true)).rest, RESTS);
        assert_eq!(again(Some(&second), "b", true).rest, EXAMINE, "something else");
        assert_eq!(again(Some(&second), "a", false).rest, EXAMINE, "what fails may succeed any time");
        assert!(!second.rested(now + EXAMINE, &[]) && second.rested(now + EXAMINE * 2, &[]));
    }

    #[test]
    fn each_difference_has_its_own_time_to_be_followed_in() {
        let added = |table: &str| Difference::new(table, "table added".into(), Mend::Table(table.into()));
        let begin = crate::clock::monotonic();
        let mut watched = Watched::default();
        // Jobs that make and drop a table each second.
        for second in 0..30 {
            let now = begin + AGAIN * second;
            let job = added(&format!("s.job_{second}"));
            watched.differ(true, Vec::new(), vec![added("s.lasts"), job], now);
            let [stops, follows] = watched.drift("orders", None, now);
            let lasts = "s.lasts: table added".to_owned();
            let late = AGAIN * second >= drift::FOLLOWS;
            assert_eq!((stops.contains(&lasts), follows.contains(&lasts)), (late, !late), "{second}");
            assert_eq!((stops.len(), follows.len()), (usize::from(late), 2 - usize::from(late)), "{second}");
        }
    }

    /// A table without a key that was just made gets its identity within a moment, where the policy has it so.
    #[test]
    fn a_table_that_is_to_be_identified_is_followed() {
        let made = || Difference::new("s.new", "table added".into(), Mend::Table("s.new".into()));
        let unkeyed =
            || Difference::new("s.log", "nothing tells its rows apart".into(), Mend::Identity(None));
        let followed = |schema, keyless| {
            let parts = PolicyParts { schema, keyless, ..PolicyParts::default() };
            drift::are_followed(&Policy::new(parts).expect("a policy"), &[made(), unkeyed()])
        };
        assert!(followed(SchemaFollows::All, KeylessTables::Identify));
        assert!(followed(SchemaFollows::Additions, KeylessTables::Identify));
        assert!(!followed(SchemaFollows::All, KeylessTables::default()), "nobody gives it one");
        assert!(!followed(SchemaFollows::Manual, KeylessTables::Identify));
    }

    #[test]
    fn what_was_mended_is_not_told_until_the_next_look() {
        let now = crate::clock::monotonic();
        let mut watched = Watched::default();
        watched.followed();
        assert_eq!(
            watched.drift("orders", None, now),
            [vec![], Vec::<String>::new()],
            "nothing stood in the way"
        );
        watched.differ(true, vec!["s.t: table added".into()], Vec::new(), now);
        watched.followed();
        assert_eq!(watched.drift("orders", None, now)[0], [FOLLOWED]);
        watched.differ(true, Vec::new(), Vec::new(), now);
        assert!(watched.drift("orders", None, now)[0].is_empty());
    }

    #[test]
    fn what_failed_before_is_not_told_while_a_table_is_filled() {
        let now = crate::clock::monotonic();
        let vain = InVain::new(
            None,
            now,
            "fill table s.t: canceling statement due to lock timeout",
            false,
            Vec::new(),
        );
        let mut watched = Watched::default();
        watched.differ(true, vec!["s.t: table added".into(), vain.why.clone()], Vec::new(), now);
        let told = |filling: Option<&str>| {
            let [stops, _] = watched.drift("orders", filling.map(str::to_owned).as_ref(), now);
            stops[1].clone()
        };
        assert_eq!(told(None), vain.why);
        let filling = "table s.t is being copied to the shadow: 78 % of 200 MiB";
        assert_eq!(told(Some(filling)), filling, "it stops a move all the same");
    }

    #[test]
    fn a_stream_that_is_not_up_is_told_in_words() {
        let settling = StreamPhase::Copying {
            stage: CopyStage::Settling,
            tables_done: 0,
            tables: 0,
            rows: 0,
            bytes: 0,
            rows_estimate: 0,
            bytes_estimate: 0,
            remaining: None,
        };
        let told = [StreamPhase::Connecting, StreamPhase::Stopped, settling].map(|phase| not_up(&phase));
        let words = ["it is connecting", "it was stopped", "it brings the shadow's tables to one point"];
        assert_eq!(told, words.map(|words| format!("the stream is not up: {words}")));
    }

    #[test]
    fn looking_takes_no_more_than_a_hundredth() {
        let pace = |millis| pace(Duration::from_millis(millis));
        assert_eq!([pace(1), pace(30), pace(500)], [AGAIN, Duration::from_secs(3), EXAMINE]);
    }
}
