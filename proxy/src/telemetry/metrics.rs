//! Where numbers become metrics. Histograms are recorded as summaries' buckets by the exporter; see [`super::names`].

use std::time::Duration;

use metrics::{counter, gauge, histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use migration::cutover::{Outcome, Phase, State};
use migration::policy::{Policy, ReplicationMode};
use migration::report::DecisionReport;
use migration::units::Timestamp;
use replicator::error::Cause;
use replicator::status::{Phase as Stream, StreamStatus};

use super::names;
use crate::controller::behind::Behind;
use crate::controller::signals::Signals;
use crate::controller::verification::Known;
use crate::controller::view::{ChangeStreamView, ResourceView};
use crate::feeds::Probe;
use crate::feeds::external::Reason;
use crate::feeds::external::board::FeedBoard;

/// Buckets of request and hold durations, seconds.
const BUCKETS: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 10.0];

/// Installs the recorder of this process; the handle renders `/metrics`.
pub fn install() -> anyhow::Result<PrometheusHandle> {
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &BUCKETS)?
        .install_recorder()?;
    names::describe();
    begin();
    Ok(handle)
}

/// What a node counts from its start on: a counter that came with its first event would show no increase then.
fn begin() {
    for name in [names::AUDIT_LOST, names::REQUEST_SAMPLES_LOST, names::ACCESS_LINES_LOST] {
        counter!(name).increment(0);
    }
}

/// The same for a resource.
pub fn begin_resource(resource: &str) {
    let outcomes =
        [Outcome::Retired, Outcome::Superseded, Outcome::Aborted(String::new()), Outcome::TakenOver];
    for outcome in outcomes {
        counter!(names::MIGRATIONS, names::RESOURCE => resource.to_owned(), names::OUTCOME => outcome.name())
            .increment(0);
    }
    for cause in Cause::ALL {
        let label = cause.policy().label;
        counter!(names::STREAM_FAILURES, names::RESOURCE => resource.to_owned(), names::CAUSE => label)
            .increment(0);
    }
}

/// Whether this node leads, where several may.
pub fn leads(leads: bool) {
    gauge!(names::LEADS).set(f64::from(u8::from(leads)));
}

/// A closed gate opened again.
pub fn hold(resource: &str, held: Duration) {
    histogram!(names::GATE_CLOSED, names::RESOURCE => resource.to_owned()).record(held.as_secs_f64());
}

/// A phase of a migration ended.
pub fn step(phase: &'static str, spent: Duration) {
    histogram!(names::STEP_DURATION, names::STEP => phase).record(spent.as_secs_f64());
}

/// Where a migration stands, and what is wrong. A phase that ended goes back to 0.
pub fn standing(state: &State, problems: usize, now: Timestamp) {
    let resource = || state.resource.clone();
    for phase in Phase::ALL {
        let here = state.run.is_some() && state.phase == phase && phase != Phase::Soaking;
        let age = if here { now.since(state.since) } else { Duration::ZERO };
        gauge!(names::PHASE_AGE, names::RESOURCE => resource(), names::STEP => phase.name())
            .set(age.as_secs_f64());
    }
    gauge!(names::PROBLEMS, names::RESOURCE => resource()).set(problems as f64);
}

/// A migration ended.
pub fn migration_ended(resource: &str, outcome: &Outcome) {
    counter!(names::MIGRATIONS, names::RESOURCE => resource.to_owned(), names::OUTCOME => outcome.name())
        .increment(1);
}

/// How far a verification is, and what is known by all of them; NaN: nothing is.
pub fn verification(resource: &str, rows: Option<u64>, known: &Known) {
    let tell = |name: &'static str, value: Option<f64>| {
        gauge!(name, names::RESOURCE => resource.to_owned()).set(value.unwrap_or(f64::NAN));
    };
    tell(names::VERIFIED_ROWS, rows.map(|rows| rows as f64));
    tell(names::VERIFICATION_DIFFERENCES, known.differences.map(|found| found as f64));
    tell(names::VERIFIED_AT, known.verified_ms.map(|at| at as f64 / 1000.0));
}

/// A resource is led no more, whose last view this is: what was measured of it is not true for ever.
pub fn resource_ends<'a>(resource: &str, zones: impl Iterator<Item = &'a String>, view: &ResourceView) {
    let nothing = |name: &'static str, labels: &[(&'static str, &str)]| {
        let labels = labels.iter().map(|(label, value)| (*label, (*value).to_owned()));
        let labels: Vec<_> = std::iter::once((names::RESOURCE, resource.to_owned())).chain(labels).collect();
        gauge!(name, &labels).set(f64::NAN);
    };
    for name in [
        names::HELD_REQUESTS,
        names::STREAMS,
        names::POSTGRES_SESSIONS,
        names::POSTGRES_HELD,
        names::POSTGRES_POOL_WAITING,
        names::THRESHOLD,
        names::PROBLEMS,
    ] {
        nothing(name, &[]);
    }
    no_replication(resource);
    verification(resource, None, &Known::default());
    change_streams(resource, &view.change_streams, &[]);
    for state in ["used", "idle", "pinned"] {
        nothing(names::POSTGRES_POOL_CONNECTIONS, &[(names::STATE, state)]);
    }
    for mode in MODES {
        nothing(names::REPLICATION_MODE, &[(names::MODE, mode.name())]);
    }
    for phase in Phase::ALL {
        nothing(names::PHASE_AGE, &[(names::STEP, phase.name())]);
    }
    for zone in zones {
        slot_retained(resource, zone, None);
        forecasts_end(resource, zone);
    }
    let Some(decision) = &view.decision else { return };
    for term in decision.terms.iter().map(|term| term.name.as_str()).chain(["total", "lower_bound"]) {
        nothing(names::SCORE, &[(names::TERM, term)]);
    }
    for guard in &decision.guards {
        nothing(names::GUARD, &[(names::GUARD_NAME, &guard.name)]);
    }
}

/// The newest decision and the forecast behind it; once a step.
pub fn decision(resource: &str, report: &DecisionReport, signals: &Signals, policy: &Policy) {
    for term in &report.score.terms {
        gauge!(names::SCORE, names::RESOURCE => resource.to_owned(), names::TERM => term.name)
            .set(term.points);
    }
    gauge!(names::SCORE, names::RESOURCE => resource.to_owned(), names::TERM => "total")
        .set(report.score.total);
    gauge!(names::SCORE, names::RESOURCE => resource.to_owned(), names::TERM => "lower_bound")
        .set(report.score.lower);
    gauge!(names::THRESHOLD, names::RESOURCE => resource.to_owned()).set(report.needed);
    for guard in &report.guards {
        // Two guards of one fact are a band: it has to be within both.
        let passed = report.guards.iter().filter(|same| same.name == guard.name).all(|same| same.passed);
        gauge!(names::GUARD, names::RESOURCE => resource.to_owned(), names::GUARD_NAME => guard.name)
            .set(f64::from(u8::from(passed)));
    }
    quality(resource, signals);
    let forecast = signals.request_forecast(policy);
    let last = policy.horizon_steps().saturating_sub(1);
    fan(resource, signals.served_by(), |first, level| {
        let forecast = forecast.as_ref()?;
        Some(forecast.quantile(if first { 0 } else { last }, level) / 1000.0)
    });
}

/// Another policy: of a guard that it does not have nothing passes or fails any more.
pub fn guards_end(resource: &str, before: &Policy, now: &Policy) {
    let kept = |fact| now.guards.iter().any(|guard| guard.fact == fact);
    for gone in before.guards.iter().filter(|guard| !kept(guard.fact)) {
        gauge!(names::GUARD, names::RESOURCE => resource.to_owned(), names::GUARD_NAME => gone.fact.name())
            .set(f64::NAN);
    }
}

/// A forecast's quantiles, seconds, of its first step and of its last; NaN where there is none.
fn fan(resource: &str, zone: &str, quantile: impl Fn(bool, f64) -> Option<f64>) {
    for (label, first) in [("first", true), ("last", false)] {
        for level in predictor::LEVELS {
            gauge!(
                names::FORECAST,
                names::RESOURCE => resource.to_owned(),
                names::ZONE => zone.to_owned(),
                names::QUANTILE => level.to_string(),
                names::STEP => label
            )
            .set(quantile(first, level).unwrap_or(f64::NAN));
        }
    }
}

/// The service is another zone's by now: nothing is forecast of this one any more, and what was is not true for ever.
pub fn forecasts_end(resource: &str, zone: &str) {
    let labels = |name: &'static str, value: String| {
        [(names::RESOURCE, resource.to_owned()), (names::ZONE, zone.to_owned()), (name, value)]
    };
    fan(resource, zone, |_, _| None);
    for ahead in predictor::LAGS {
        for name in [names::FORECAST_COVERAGE, names::FORECAST_LOSS] {
            gauge!(name, &labels(names::STEP, ahead.to_string())).set(f64::NAN);
        }
    }
    for horizon in predictor::event::EVENT_HORIZONS {
        gauge!(names::FORECAST_WORSE, &labels(names::STEP, horizon.to_string())).set(f64::NAN);
    }
    for reason in predictor::Reason::ALL {
        gauge!(names::FORECAST_ABSTAINED, &labels(names::REASON, reason.label().to_owned())).set(f64::NAN);
    }
}

/// How good the forecasts were of late, and what is foreseen of the level; NaN where nothing is.
fn quality(resource: &str, signals: &Signals) {
    let labels = |step: usize| {
        [
            (names::RESOURCE, resource.to_owned()),
            (names::ZONE, signals.served_by().to_owned()),
            (names::STEP, step.to_string()),
        ]
    };
    let requests = signals.requests();
    for (ahead, quality) in requests.quality() {
        let coverage = if quality.scored > 0 { quality.coverage } else { f64::NAN };
        gauge!(names::FORECAST_COVERAGE, &labels(ahead)).set(coverage);
        gauge!(names::FORECAST_LOSS, &labels(ahead)).set(quality.against_last_value().unwrap_or(f64::NAN));
    }
    let worse = requests.events().map(|events| events.worse);
    for (place, horizon) in predictor::event::EVENT_HORIZONS.into_iter().enumerate() {
        let probability = worse.map_or(f64::NAN, |worse| worse[place]);
        gauge!(names::FORECAST_WORSE, &labels(horizon)).set(probability);
    }
    let abstentions = requests.abstentions();
    for reason in predictor::Reason::ALL {
        let labels = [
            (names::RESOURCE, resource.to_owned()),
            (names::ZONE, signals.served_by().to_owned()),
            (names::REASON, reason.label().to_owned()),
        ];
        // A zone that serves again has a new forecaster, and its counter goes on.
        counter!(names::FORECAST_ABSTENTIONS, &labels)
            .increment(u64::from(abstentions.newest() == Some(reason)));
        let share = abstentions.of_late(reason) as f64 / abstentions.steps().max(1) as f64;
        gauge!(names::FORECAST_ABSTAINED, &labels).set(share);
    }
}

/// Entries that the history could not keep.
pub fn history_dropped(cause: &'static str, entries: u64) {
    counter!(names::HISTORY_DROPPED, names::CAUSE => cause).increment(entries);
}

/// How large the history's file is.
pub fn history_size(bytes: u64) {
    gauge!(names::HISTORY_BYTES).set(bytes as f64);
}

/// The network that is trained here, against the shipped one.
pub fn training(against_shipped: Option<f64>, rollbacks: u32) {
    if let Some(ratio) = against_shipped {
        gauge!(names::TRAINING_LOSS).set(ratio);
    }
    counter!(names::TRAINING_ROLLBACKS).absolute(u64::from(rollbacks));
}

/// The stream to the shadow, and how far that is behind.
pub fn replication(resource: &str, behind: &Behind, status: Option<&StreamStatus>) {
    let bytes = behind.bytes.map_or(f64::NAN, |bytes| bytes as f64);
    gauge!(names::LAG_BYTES, names::RESOURCE => resource.to_owned()).set(bytes);
    let seconds = behind.time.map_or(f64::NAN, |time| time.as_secs_f64());
    gauge!(names::LAG_SECONDS, names::RESOURCE => resource.to_owned()).set(seconds);
    let up = status.is_some_and(|status| matches!(status.phase, Stream::Streaming | Stream::Copying { .. }));
    gauge!(names::REPLICATION_UP, names::RESOURCE => resource.to_owned()).set(f64::from(u8::from(up)));
    let open = status.map(|status| &status.open);
    open_bytes(resource, open.map(|open| [open.memory_bytes, open.disk_bytes].map(|bytes| bytes as f64)));
}

fn open_bytes(resource: &str, bytes: Option<[f64; 2]>) {
    for (place, bytes) in ["memory", "disk"].into_iter().zip(bytes.unwrap_or([f64::NAN; 2])) {
        gauge!(names::OPEN_BYTES, names::RESOURCE => resource.to_owned(), names::PLACE => place).set(bytes);
    }
}

/// There is no shadow: nothing is behind, and nothing is to be up.
pub fn no_replication(resource: &str) {
    for name in [names::LAG_BYTES, names::LAG_SECONDS, names::REPLICATION_UP] {
        gauge!(name, names::RESOURCE => resource.to_owned()).set(f64::NAN);
    }
    open_bytes(resource, None);
}

/// So often more has a stream broken.
pub fn stream_failures(resource: &str, cause: Cause, more: u64) {
    counter!(names::STREAM_FAILURES, names::RESOURCE => resource.to_owned(), names::CAUSE => cause.policy().label)
        .increment(more);
}

/// WAL that the slots of a resource keep in a zone; none: that is not known now.
pub fn slot_retained(resource: &str, zone: &str, bytes: Option<u64>) {
    gauge!(names::SLOT_RETAINED, names::RESOURCE => resource.to_owned(), names::ZONE => zone.to_owned())
        .set(bytes.map_or(f64::NAN, |bytes| bytes as f64));
}

/// Readers of changes, as they were and as they are.
pub fn change_streams(resource: &str, before: &[ChangeStreamView], now: &[ChangeStreamView]) {
    let tell = |slot: &str, behind: f64, active: f64| {
        gauge!(names::CHANGE_STREAM_BEHIND, names::RESOURCE => resource.to_owned(), names::SLOT => slot.to_owned())
            .set(behind);
        gauge!(names::CHANGE_STREAM_ACTIVE, names::RESOURCE => resource.to_owned(), names::SLOT => slot.to_owned())
            .set(active);
    };
    for gone in before.iter().filter(|gone| now.iter().all(|stream| stream.slot != gone.slot)) {
        tell(&gone.slot, f64::NAN, f64::NAN);
    }
    for stream in now {
        tell(&stream.slot, stream.behind_bytes as f64, f64::from(u8::from(stream.active)));
    }
}

const MODES: [ReplicationMode; 3] = [ReplicationMode::Async, ReplicationMode::Sync, ReplicationMode::Hybrid];

/// The replication mode in effect.
pub fn replication_mode(resource: &str, effective: ReplicationMode) {
    for mode in MODES {
        gauge!(names::REPLICATION_MODE, names::RESOURCE => resource.to_owned(), names::MODE => mode.name())
            .set(if mode == effective { 1.0 } else { 0.0 });
    }
}

/// A token of the issuer was shown.
pub fn oidc_token(outcome: &'static str) {
    counter!(names::OIDC_TOKENS, names::OUTCOME => outcome).increment(1);
}

/// The issuer was asked for its keys.
pub fn oidc_keys(read: bool, now: Timestamp) {
    counter!(names::OIDC_INQUIRIES, names::OUTCOME => if read { "read" } else { "failed" }).increment(1);
    if read {
        gauge!(names::OIDC_KEYS_AT).set(now.0 as f64 / 1000.0);
    }
}

/// Whether the configuration could be read.
pub fn config_reloaded(successful: bool) {
    gauge!(names::CONFIG_RELOADED).set(if successful { 1.0 } else { 0.0 });
}

/// A probe that has ended.
pub fn probe(zone: &str, kind: &'static str, found: &Probe) {
    for (phase, took) in &found.phases {
        histogram!(names::PROBE, names::ZONE => zone.to_owned(), names::PROBE_KIND => kind,
            names::PHASE => phase.as_str())
        .record(took.as_secs_f64());
    }
    if let Err(failure) = &found.latency {
        counter!(names::PROBE_FAILURES, names::ZONE => zone.to_owned(), names::PROBE_KIND => kind,
            names::PHASE => failure.phase.as_str())
        .increment(1);
    }
}

/// A run of a feed failed, or a post was refused.
pub fn feed_failed(feed: &str, reason: Reason) {
    counter!(names::FEED_FAILURES, names::FEED => feed.to_owned(), names::REASON => reason.label())
        .increment(1);
}

/// How old every feed is; called before each scrape.
pub fn feed_ages(board: &FeedBoard, now: Timestamp) {
    for (feed, state) in board.all() {
        if let Some(age) = state.age(now) {
            gauge!(names::FEED_AGE, names::FEED => feed.name.clone()).set(age.as_secs_f64());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use migration::cutover::Limits;
    use migration::decide::decide;
    use migration::policy::{Bound, ExtraGuard, GuardedFact, PolicyParts};
    use migration::world::{Fact, World};

    use super::*;
    use crate::controller::signals::Measured;
    use crate::controller::view::DecisionView;

    /// Gauges by name and labels.
    fn gauges(tell: impl FnOnce()) -> BTreeMap<String, f64> {
        let recorder = PrometheusBuilder::new().build_recorder();
        metrics::with_local_recorder(&recorder, tell);
        let shown = recorder.handle().render();
        let lines = shown.lines().filter(|line| !line.starts_with('#'));
        let number =
            |line: &str| Some((line.rsplit_once(' ')?.0.to_owned(), line.rsplit_once(' ')?.1.parse().ok()?));
        lines.filter_map(number).collect()
    }

    fn guarded(guards: &[(GuardedFact, Bound)]) -> Policy {
        let guard = |(fact, bound): &(GuardedFact, Bound)| ExtraGuard {
            fact: *fact,
            bound: *bound,
            binds_operator: false,
        };
        let guards = guards.iter().map(guard).collect();
        Policy::new(PolicyParts { guards, ..PolicyParts::default() }).expect("valid")
    }

    #[test]
    fn a_band_passes_where_both_of_its_guards_do_and_a_guard_that_is_gone_does_neither() {
        let band =
            [(GuardedFact::ShadowCost, Bound::Below(2.0)), (GuardedFact::ShadowCost, Bound::Above(1.0))];
        let before = guarded(&[band[0], band[1], (GuardedFact::ShadowLoss, Bound::Below(0.1))]);
        let passes = |cost: f64, policy: &Policy| {
            let mut world = World::unknown("west", "east", "test");
            world.shadow_cost = Fact::known(cost, Duration::ZERO, "test");
            let report = decide(policy, &world, Timestamp(1));
            let signals = Signals::new(1, policy.step, None);
            gauges(|| {
                decision("orders", &report, &signals, policy);
                guards_end("orders", &before, policy);
            })
        };
        let line =
            |fact: &str| format!("godwit_migration_guard_passed{{resource=\"orders\",guard=\"{fact}\"}}");
        for (cost, expected) in [(0.5, 0.0), (1.5, 1.0), (2.5, 0.0)] {
            let found = passes(cost, &before);
            assert!((found[&line("shadow_cost")] - expected).abs() < 1e-9, "{cost}");
            assert!(found[&line("shadow_loss")].abs() < 1e-9, "it is not known");
        }
        let found = passes(1.5, &guarded(&band[..1]));
        assert!(found[&line("shadow_loss")].is_nan() && !found[&line("shadow_cost")].is_nan());
    }

    #[test]
    fn of_a_resource_that_is_gone_nothing_is_a_number() {
        let policy = guarded(&[(GuardedFact::ShadowCost, Bound::Below(2.0))]);
        let report = decide(&policy, &World::unknown("west", "east", "test"), Timestamp(1));
        let mut signals = Signals::new(1, policy.step, None);
        signals.observe("west", Measured::default(), false, Timestamp(10_000));
        let stream = ChangeStreamView { slot: "cdc".into(), ..ChangeStreamView::default() };
        let view = ResourceView {
            decision: Some(DecisionView::of(&report, 1)),
            change_streams: vec![stream],
            ..ResourceView::default()
        };
        let state = State::first("orders", "west".into(), "east".into(), Timestamp(1));
        let lead = || {
            decision("orders", &report, &signals, &policy);
            replication("orders", &Behind::default(), Some(&StreamStatus::default()));
            replication_mode("orders", ReplicationMode::Async);
            change_streams("orders", &[], &view.change_streams);
            slot_retained("orders", "west", Some(7));
            verification("orders", Some(5), &Known { differences: Some(2), ..Known::default() });
            standing(&state, 1, Timestamp(2));
            for name in [names::HELD_REQUESTS, names::POSTGRES_SESSIONS] {
                gauge!(name, names::RESOURCE => "orders").set(3.0);
            }
        };
        let finite = |found: BTreeMap<String, f64>| found.values().filter(|value| value.is_finite()).count();
        assert!(finite(gauges(lead)) > 20);
        let ended = gauges(|| {
            lead();
            resource_ends("orders", ["west".to_owned(), "east".to_owned()].iter(), &view);
        });
        let left: Vec<_> = ended.iter().filter(|(_, value)| value.is_finite()).collect();
        let counted = |name: &&(&String, &f64)| name.0.starts_with(names::FORECAST_ABSTENTIONS);
        assert!(left.iter().all(|left| counted(&left)), "{left:?}");
    }

    #[test]
    fn steps_without_a_forecast_are_counted_on_where_a_zone_serves_again() {
        let policy = guarded(&[]);
        let report = decide(&policy, &World::unknown("west", "east", "test"), Timestamp(1));
        let mut signals = Signals::new(1, policy.step, None);
        let found = gauges(|| {
            let zones = [["west"; 5].as_slice(), &["east"; 2], &["west"; 3]].concat();
            for (step, zone) in (1..).zip(zones) {
                let measured = Measured { request_p95_ms: Some(20.0), ..Measured::default() };
                signals.observe(zone, measured, false, Timestamp(step * 10_000));
                decision("orders", &report, &signals, &policy);
            }
        });
        let counted = |zone: &str, reason: &str| {
            found[&format!(
                "godwit_forecast_abstentions_total{{resource=\"orders\",zone=\"{zone}\",reason=\"{reason}\"}}"
            )]
        };
        let all = [("west", "too_few", 8.0), ("east", "too_few", 2.0), ("west", "stale", 0.0)];
        assert!(
            all.iter().all(|(zone, reason, count)| (counted(zone, reason) - count).abs() < 1e-9),
            "{found:?}"
        );
    }

    #[test]
    fn what_is_not_foreseen_any_more_is_no_number() {
        let policy = guarded(&[]);
        let report = decide(&policy, &World::unknown("west", "east", "test"), Timestamp(1));
        let mut signals = Signals::new(1, policy.step, None);
        let mut at = 0;
        let mut told = |steps: u64, request_p95_ms: Option<f64>| {
            for step in 0..steps {
                at += 10_000;
                let request_p95_ms = request_p95_ms.map(|ms| ms + (step % 5) as f64);
                signals.observe(
                    "west",
                    Measured { request_p95_ms, ..Measured::default() },
                    false,
                    Timestamp(at),
                );
            }
            gauges(|| decision("orders", &report, &signals, &policy))
        };
        let of =
            |name: &str, step: u32| format!("{name}{{resource=\"orders\",zone=\"west\",step=\"{step}\"}}");
        let judged = [of("godwit_forecast_coverage_ratio", 4), of("godwit_forecast_loss_ratio", 4)];
        let worse = of("godwit_forecast_worse_probability", 12);
        let first = told(1, Some(20.0));
        assert!(judged.iter().chain([&worse]).all(|name| first[name].is_nan()), "{first:?}");
        let known = told(200, Some(20.0));
        assert!(judged.iter().chain([&worse]).all(|name| known[name].is_finite()), "{known:?}");
        let silent = told(70, None);
        assert!(silent[&worse].is_nan(), "{silent:?}");
    }

    #[test]
    fn a_stream_that_is_gone_keeps_nothing_open() {
        let mut status = StreamStatus::default();
        (status.open.memory_bytes, status.open.disk_bytes) = (7, 9);
        let behind = Behind::default();
        let ended: [fn(&Behind); 2] =
            [|behind| replication("orders", behind, None), |_| no_replication("orders")];
        for ended in ended {
            let found = gauges(|| {
                replication("orders", &behind, Some(&status));
                ended(&behind);
            });
            for place in ["memory", "disk"] {
                let line = format!("godwit_replication_open_bytes{{resource=\"orders\",place=\"{place}\"}}");
                assert!(found[&line].is_nan(), "{found:?}");
            }
        }
    }

    #[test]
    fn a_phase_may_last_as_long_as_the_machine_gives_it_before_its_alert_fires() {
        let alerts = include_str!("../../../config/prometheus/alerts.yml");
        let fires_after = |step: &str| {
            let (_, rest) = alerts.split_once(&format!("{{step=\"{step}\"}} > ")).expect(step);
            Duration::from_secs(rest.lines().next().and_then(|seconds| seconds.parse().ok()).expect(step))
        };
        let limits = Limits::of(&guarded(&[]));
        assert!(fires_after(Phase::Warm.name()) > limits.arm, "{limits:?}");
        // A placement's driver has its own time beside.
        assert!(fires_after(Phase::Requested.name()) > limits.scale + crate::drivers::DEADLINE, "{limits:?}");
    }

    #[test]
    fn counters_of_alerts_are_there_before_their_first_event() {
        let recorder = PrometheusBuilder::new().build_recorder();
        metrics::with_local_recorder(&recorder, || {
            begin();
            begin_resource("orders");
        });
        let shown = recorder.handle().render();
        let alerts = include_str!("../../../config/prometheus/alerts.yml");
        let counters: Vec<&str> = alerts
            .split("increase(")
            .skip(1)
            .map(|rest| rest.split(['{', '[']).next().unwrap_or_default())
            .collect();
        assert!(counters.len() > 2, "{counters:?}");
        for name in counters {
            let zero = |line: &str| line.starts_with(name) && line.ends_with(" 0");
            assert!(shown.lines().any(zero), "{name} is not there: {shown}");
        }
        for outcome in ["retired", "superseded", "aborted", "taken_over"] {
            let line = format!("godwit_migrations_total{{resource=\"orders\",outcome=\"{outcome}\"}} 0");
            assert!(shown.contains(&line), "{shown}");
        }
    }
}
