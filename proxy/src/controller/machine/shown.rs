//! What the API, the metrics and the events are told of a resource.

use std::sync::Arc;
use std::time::{Duration, Instant};

use migration::cutover::{Outcome, Phase, Run, State};
use migration::units::Timestamp;
use replicator::Lsn;
use replicator::postgres::slot::Lane;
use replicator::status::{Phase as StreamPhase, StreamStatus};

use super::Machine;
use crate::clock;
use crate::controller::events::MigrationEvent;
use crate::controller::forecast::ForecastView;
use crate::controller::view::{
    DecisionView, GateView, ModeView, ReplicationView, ResourceView, SessionsView, SoakView, StepView,
};
use crate::telemetry::metrics as telemetry;

/// A stream that is up and applies nothing for so long, while something is to be applied, is a problem.
const STANDS: Duration = Duration::from_mins(5);

/// Up to where the stream had applied, and since when that is so.
#[derive(Debug, Default)]
pub(super) struct Stood(Option<(Lsn, Instant)>);

impl Stood {
    /// Where it stands, if it has done so for long.
    fn long(&mut self, status: &StreamStatus, now: Instant) -> Option<Lsn> {
        let (at, is_up) = (status.applied_lsn, status.phase == StreamPhase::Streaming);
        if !is_up || self.0.is_none_or(|(before, _)| before != at) {
            self.0 = Some((at, now));
        }
        let (_, since) = self.0?;
        let waits = status.lag >= STANDS && now.saturating_duration_since(since) >= STANDS;
        waits.then_some(at)
    }
}

/// The phases of migrations that are over where `next` follows, and how long each lasted. A soak that a way back interrupts is not:
/// it goes on where that is undone, and ends with its run, once.
pub(super) fn over(before: &State, next: &State, now: Timestamp) -> Vec<(Phase, Duration)> {
    let interrupted = next.soaking.is_some() && before.soaking.is_none();
    let left = before.run.as_ref().filter(|_| before.phase != next.phase && !interrupted);
    let goes_on = |run: &Run| {
        let there = next.run.iter().chain(next.soaking.iter().map(|soak| &soak.run));
        there.into_iter().any(|other| other.id == run.id)
    };
    let soaked = before.soaking.as_ref().filter(|soak| !goes_on(&soak.run));
    let left = left.map(|_| (before.phase, now.since(before.since)));
    let soaked = soaked.map(|soak| (Phase::Soaking, now.since(soak.since)));
    left.into_iter().chain(soaked).collect()
}

impl Machine {
    pub(super) fn publish_forecast(&self) {
        let view = ForecastView::of(&self.signals, &self.hands.policy(), clock::now());
        self.forecast.store(Arc::new(view));
    }

    /// What failed works again.
    pub(in crate::controller) fn is_no_problem(&mut self, effect: &str) {
        if self.failures.remove(effect).is_some() {
            self.publish();
        }
    }

    /// Who listens hears of each phase of a migration, and that it was verified.
    pub(super) fn tell_step(&self, before: &State, left: &StepView, now: Timestamp) {
        let moved = self.state.phase != before.phase;
        let same = |run: &Run| before.run.as_ref().is_some_and(|old| old.id == run.id);
        if let Some(run) = &self.state.run {
            let verified = run.verified && before.run.as_ref().is_some_and(|old| !old.verified);
            if moved || verified || !same(run) {
                // The phase before the first one is the resource's, not the migration's.
                let left = Some(left.clone()).filter(|_| moved && same(run));
                self.hands.events.migration(&MigrationEvent::of(&self.state, run, now, left));
            }
        }
    }

    /// And how those that have ended did. A soak that the way back interrupted lasted until then.
    pub(super) fn tell_ends(
        &self,
        before: &State,
        ends: &[(&str, &Outcome)],
        left: &StepView,
        now: Timestamp,
    ) {
        let soaked = |since: Timestamp| StepView {
            phase: Phase::Soaking.name().into(),
            started_ms: since.0,
            ended_ms: Some(now.0),
        };
        let run = before.run.iter().map(|run| (run, left.clone()));
        let soak = before.soaking.iter().map(|soak| (&soak.run, soaked(soak.since)));
        for (run, left) in run.chain(soak) {
            let Some((_, outcome)) = ends.iter().find(|(id, _)| *id == run.id) else { continue };
            telemetry::migration_ended(&self.state.resource, outcome);
            let event = MigrationEvent::of(&self.state, run, now, Some(left));
            self.hands.events.migration(&MigrationEvent { outcome: Some(outcome.name().into()), ..event });
        }
    }

    pub(in crate::controller) fn publish(&mut self) {
        self.measure.told(&self.state);
        let resource = self.hands.settings();
        let stream = self.hands.streams.status(self.state.generation);
        let (mode, lanes) = self.hands.streams.mode(self.state.generation);
        let status = stream.as_ref().map(|(.., status)| status);
        let behind = self.slots.behind(&self.state, &[Lane::Main, Lane::Critical], status);
        let lanes: Vec<_> = lanes
            .into_iter()
            .map(|(lane, status)| {
                let behind = self.slots.behind(&self.state, &[lane], Some(&status));
                (lane, status, behind)
            })
            .collect();
        let mut problems = self.measure.problems(&self.hands, &self.state);
        problems.extend(self.failures.iter().map(|(effect, (times, why))| {
            format!("{effect} failed {times} times: {why}; the service stays in {}", self.state.primary)
        }));
        if let Some((_, target, StreamStatus { phase: StreamPhase::Failed { error, .. }, .. })) = &stream {
            problems.push(format!("the stream to {target} stands still: {error}"));
        }
        if let Some((_, target, status)) = &stream
            && let Some(at) = self.stood.long(status, clock::monotonic())
        {
            problems.push(format!(
                "the stream to {target} has stood at {at} for more than {} minutes while changes wait",
                STANDS.as_secs() / 60
            ));
        }
        if self.after_loss && stream.is_none() {
            let (resource, primary, lost) = (&self.state.resource, &self.state.primary, &self.state.shadow);
            problems.push(format!(
                "{lost} was lost and {primary} took over: there is no shadow. godwit reseed {resource} makes {lost} one again, and \
                 empties it of what only it has"
            ));
        }
        problems.extend(self.lacks_workers());
        problems
            .extend(self.verifications.blockers().into_iter().map(|what| format!("not migratable: {what}")));
        problems.extend(self.slots.problems(&self.hands, &self.state));
        problems.extend(mode.problems.iter().map(|what| format!("replication mode: {what}")));
        problems.extend(mode.problem(stream.is_some()));
        problems.extend(
            self.hands
                .audit
                .failing()
                .map(|why| format!("the audit cannot be written, changes are refused: {why}")),
        );
        problems.extend(self.journal_fails.iter().map(|why| format!("the journal cannot be written: {why}")));
        problems.extend(self.history.problem());
        problems.extend(self.retirement_problem());
        problems.extend(self.regret.clone());
        let view = ResourceView {
            name: resource.name.clone(),
            primary: self.state.primary.to_string(),
            shadow: self.state.shadow.to_string(),
            phase: self.state.phase.name().to_owned(),
            since_ms: self.state.since.0,
            generation: self.state.generation.0,
            policy: resource.policy.name.clone(),
            mode: format!("{:?}", resource.policy.mode).to_lowercase(),
            migration: self.state.run.as_ref().map(|run| run.id.clone()),
            soak: SoakView::of(&self.state),
            gate: self.hands.front.as_ref().map(|front| {
                let stats = front.gate.stats();
                GateView {
                    closed: front.gate.is_closed(),
                    held: stats.held,
                    in_flight: stats.in_flight,
                    refused_total: stats.refused_total,
                }
            }),
            postgres: self.hands.postgres.as_ref().map(|front| {
                let stats = front.turnstile.stats();
                SessionsView {
                    closed: front.turnstile.is_closed(),
                    connections: front.sessions(),
                    running: stats.running,
                    held: stats.held,
                    refused_total: stats.refused_total,
                }
            }),
            placements: self.measure.placements(
                &self.state,
                &self.signals,
                &resource.policy,
                self.last_step.elapsed(),
            ),
            replication: (match &stream {
                Some((source, target, status)) => ReplicationView::of(source, target, status),
                None => {
                    let state = if resource.has_database() { "stopped" } else { "none" };
                    let (source, target) = (self.state.primary.to_string(), self.state.shadow.to_string());
                    ReplicationView { state: state.into(), source, target, ..ReplicationView::default() }
                }
            })
            .with_behind(&behind)
            .with_large_objects(self.hands.large_objects.view(self.state.generation.0))
            .with_mode(ModeView::of(&mode, resource.policy.fallback_after), &lanes),
            change_streams: self.slots.readers(&self.state.primary.0),
            mirror: self.hands.front.as_ref().map(|front| front.mirror.view()).unwrap_or_default(),
            decision: self.decision.as_ref().map(|(report, at)| DecisionView::of(report, *at)),
            proposal: self.proposals.view(),
            problems,
        };
        self.aim_mirror(&resource.policy.mirror);
        if resource.has_database() {
            if self.state.phase == Phase::Idle {
                telemetry::no_replication(&resource.name);
            } else {
                telemetry::replication(&resource.name, &behind, stream.as_ref().map(|(.., status)| status));
            }
            self.hands.streams.count_failures();
            self.verifications.stands((self.state.phase != Phase::Idle).then_some(self.state.generation));
        }
        telemetry::change_streams(&resource.name, &self.view.load().change_streams, &view.change_streams);
        telemetry::replication_mode(&resource.name, mode.effective);
        telemetry::standing(&self.state, view.problems.len(), clock::now());
        let view = Arc::new(view);
        let before = self.view.swap(view.clone());
        self.hands.events.view(&before, &view, clock::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_soak_that_a_way_back_interrupted_lasts_once() {
        use migration::cutover::{Event, Trigger, step};
        let state = State::first("orders", "a".into(), "b".into(), Timestamp(1_000));
        let soaking = crate::controller::slots::soaking(state.clone());
        let limits = soaking.run.as_ref().expect("a run").limits;
        let request =
            Event::MigrateRequested { id: "m2".into(), to: "b".into(), trigger: Trigger::Score, limits };
        let (back, _) = step(&soaking, request, Timestamp(3_000)).expect("a way back");
        assert_eq!(over(&soaking, &back, Timestamp(3_000)), []);
        let abort = Event::AbortRequested { by: "anna".into() };
        let (undoing, _) = step(&back, abort, Timestamp(4_000)).expect("it is being undone");
        let seconds = Duration::from_secs;
        assert_eq!(over(&back, &undoing, Timestamp(4_000)), [(Phase::Requested, seconds(1))]);
        let (again, _) = step(&undoing, Event::GateOpened, Timestamp(5_000)).expect("undone");
        assert_eq!(again.phase, Phase::Soaking);
        assert_eq!(over(&undoing, &again, Timestamp(5_000)), [(Phase::Aborting, seconds(1))]);
        let (retired, _) = step(&again, Event::OldPrimaryRetired, Timestamp(9_001)).expect("retired");
        assert_eq!(over(&again, &retired, Timestamp(9_001)), [(Phase::Soaking, seconds(8))]);
        // A way back that is committed ends it as well.
        let mut sequenced = State { phase: Phase::Sequenced, ..back.clone() };
        sequenced.since = Timestamp(6_000);
        let committed = State { phase: Phase::Committed, soaking: None, ..sequenced.clone() };
        let both = [(Phase::Sequenced, seconds(1)), (Phase::Soaking, seconds(6))];
        assert_eq!(over(&sequenced, &committed, Timestamp(7_000)), both);
        assert_eq!(over(&state, &State { phase: Phase::Requested, ..state.clone() }, Timestamp(1)), []);
    }

    #[test]
    fn a_stream_that_is_up_and_stands_is_told() {
        let (mut stood, began) = (Stood::default(), clock::monotonic());
        let status = |lsn, lag| StreamStatus {
            phase: StreamPhase::Streaming,
            applied_lsn: Lsn(lsn),
            lag,
            ..StreamStatus::default()
        };
        assert_eq!(stood.long(&status(7, STANDS), began), None, "it is seen for the first time");
        assert_eq!(stood.long(&status(7, Duration::ZERO), began + STANDS), None, "nothing is to be applied");
        assert_eq!(stood.long(&status(7, STANDS), began + STANDS), Some(Lsn(7)));
        let down = StreamPhase::Failed { error: "cut".into(), retrying: true };
        let down = StreamStatus { phase: down, ..status(7, STANDS) };
        assert_eq!(stood.long(&down, began + STANDS), None, "that is told otherwise");
        assert_eq!(stood.long(&status(7, STANDS), began + STANDS), None, "it has just come up");
        assert_eq!(stood.long(&status(8, STANDS), began + 2 * STANDS), None, "it goes on, if slowly");
    }
}
