//! Sees to it that the right commits wait for the shadow: one keeper for each running stream.
//!
//! It drives the machine of [`replicator::synchronous`] until the stream ends, from before the stream is up: what an earlier process left waiting is let
//! go, whether the shadow can be reached or not. Meanwhile, once the shadow follows, it brings the database in line with the policy (which tables are
//! critical, what the default of `synchronous_commit` is); before that is done commits do not begin to wait. It ends by letting commits go on without
//! the shadow: whoever ends a stream must not leave them waiting.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use migration::policy::ReplicationMode;
use migration::units::{Generation, Timestamp, Zone};
use replicator::lanes::{self, Handover};
use replicator::postgres::slot::Lane;
use replicator::status::Phase;
use replicator::synchronous::machine::{Action, Facts, Machine, Settings, State};
use replicator::synchronous::{self, Armed, Observation};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use super::databases::Purpose;
use super::preflight;
use super::streams::{Streams, waited_for};
use crate::causes::chain;
use crate::clock;
use crate::lock::lock;

/// How often the primary is looked at.
const LOOK: Duration = Duration::from_millis(250);
/// How long one look may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long joining or leaving may take.
const CHANGE: Duration = Duration::from_secs(10);
/// How long writers of a table may be held off while it changes lanes, once its lock is there.
const HANDOVER: Duration = Duration::from_secs(2);
/// How long such a table may stay locked by others.
const LOCK: Duration = Duration::from_millis(400);
/// How often triggers of critical tables are looked for, which somebody may switch off.
const TRIGGERS: Duration = Duration::from_secs(10);
/// How often it is looked whether commits wait for a lane that is not the mode's.
const LEFT_OVER: Duration = Duration::from_secs(10);
/// Pause before the database is brought in line again.
const AGAIN: Duration = Duration::from_secs(3);
/// Caught up: at most so many bytes and so much time behind.
const CAUGHT_UP: (u64, Duration) = (1 << 20, Duration::from_millis(500));
/// Why commits do not wait before the stream is up.
const NOT_YET: &str = "the shadow does not follow yet";
/// Changes of the mode that are kept for the view.
const KEPT: usize = 10;

/// A change of the effective mode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModeChange {
    /// When.
    pub at: Timestamp,
    /// The mode from then on.
    pub mode: ReplicationMode,
    /// Why.
    pub why: String,
}

/// Which commits wait, and why not more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModeState {
    /// The policy's.
    pub wanted: ReplicationMode,
    /// The one in effect.
    pub effective: ReplicationMode,
    /// Since when; none: this process has not seen it begin.
    pub since: Option<Timestamp>,
    /// Why it is not the policy's, commits wait for a shadow that does not follow, or the database is not in line with it; empty: none of them.
    pub why: String,
    /// Sessions whose commits wait now.
    pub waiting: u32,
    /// What the policy's critical tables lack, with what mends it.
    pub problems: Vec<String>,
    /// The newest changes, oldest first.
    pub changes: Vec<ModeChange>,
}

impl ModeState {
    /// Before the stream is up.
    pub(super) fn not_yet(wanted: ReplicationMode) -> Self {
        let why = match wanted {
            ReplicationMode::Async => String::new(),
            _ => NOT_YET.into(),
        };
        Self {
            wanted,
            effective: ReplicationMode::Async,
            since: None,
            why,
            waiting: 0,
            problems: Vec::new(),
            changes: Vec::new(),
        }
    }

    /// What an operator should know of it, beside what critical tables lack; `streams`: a stream runs.
    pub(super) fn problem(&self, streams: bool) -> Option<String> {
        if self.effective == self.wanted {
            return (!self.why.is_empty()).then(|| format!("replication mode: {}", self.why));
        }
        let (wanted, why) = (self.wanted.name(), &self.why);
        let told =
            || format!("commits do not wait for the shadow, as {wanted} replication would have it: {why}");
        streams.then(told)
    }
}

/// The stream that a keeper belongs to.
#[derive(Clone, Debug)]
pub(super) struct Stage {
    pub(super) generation: Generation,
    pub(super) source: Zone,
}

/// A running keeper.
pub(super) struct Keeper {
    state: Arc<Mutex<ModeState>>,
    /// The shadow follows.
    follows: Arc<Notify>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Keeper {
    pub(super) fn start(streams: Arc<Streams>, stage: Stage) -> Self {
        let stop = CancellationToken::new();
        let mut state = ModeState::not_yet(streams.policy().replication);
        match streams.journal().modes(streams.resource(), KEPT as u32) {
            Ok(changes) => state.changes = changes,
            Err(error) => tracing::warn!(error = chain(error), "earlier changes of the mode cannot be read"),
        }
        let state = Arc::new(Mutex::new(state));
        let (follows, lacks) = (Arc::new(Notify::new()), Mutex::new(Some(NOT_YET.to_owned())));
        let work = Work {
            streams,
            stage,
            state: state.clone(),
            follows: follows.clone(),
            lacks,
            stop: stop.clone(),
        };
        Self { state, follows, stop, task: tokio::spawn(work.run()) }
    }

    /// The stream is up: from now on commits may come to wait for it.
    pub(super) fn follow(&self) {
        self.follows.notify_one();
    }

    pub(super) fn state(&self) -> ModeState {
        lock(&self.state).clone()
    }

    /// Commits do not wait any more when this returns, if the primary can be reached; its guards see to it otherwise.
    pub(super) async fn end(mut self) {
        self.stop.cancel();
        if tokio::time::timeout(CHANGE, &mut self.task).await.is_err() {
            self.task.abort();
        }
    }
}

impl Drop for Keeper {
    /// Nobody knows of it any more: it must not go on looking for a primary that may be lost.
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

struct Work {
    streams: Arc<Streams>,
    stage: Stage,
    state: Arc<Mutex<ModeState>>,
    follows: Arc<Notify>,
    /// Why commits cannot begin to wait: the database is not in line with the policy.
    lacks: Mutex<Option<String>>,
    stop: CancellationToken,
}

impl Work {
    async fn run(self) {
        if let Some(lane) = waited_for(self.streams.policy().replication) {
            let beside = async {
                self.place().await;
                tokio::join!(self.keep_let_go(), self.keep_triggers());
            };
            let beside = async {
                self.stop.run_until_cancelled(beside).await;
                // What commits wait for is let go first.
                std::future::pending::<()>().await;
            };
            tokio::select! {
                () = self.drive(lane) => {}
                () = beside => {}
            }
        } else {
            let placed = async {
                self.place().await;
                self.explain(String::new());
                self.keep_let_go().await;
            };
            self.stop.run_until_cancelled(placed).await;
        }
    }

    /// Brings the database in line with the policy.
    async fn place(&self) {
        for follows in [false, true] {
            if follows {
                // What the first steps failed by at first is over.
                *lock(&self.lacks) = Some(NOT_YET.to_owned());
                self.explain(ModeState::not_yet(self.streams.policy().replication).why);
                tokio::select! {
                    () = self.follows.notified() => {}
                    () = self.keep_let_go() => {}
                }
            }
            loop {
                let done = if follows { self.align().await } else { self.let_go().await };
                let Err(why) = done else { break };
                tracing::warn!(resource = self.streams.resource(), %why, "the replication mode is not in place yet");
                *lock(&self.lacks) = Some(why.clone());
                self.explain(why);
                tokio::time::sleep(AGAIN).await;
            }
        }
        *lock(&self.lacks) = None;
    }

    async fn primary(&self) -> Result<Arc<Client>, String> {
        let databases = self.streams.databases();
        databases.get(&self.stage.source.0, Purpose::Mode).await.map_err(chain)
    }

    fn slot(&self, lane: Lane) -> String {
        lane.slot_name(self.streams.resource(), self.stage.generation.0)
    }

    /// Nobody waits any more for a lane that is not the mode's. Needs the primary only, and changes nothing else there.
    async fn let_go(&self) -> Result<(), String> {
        let client = self.primary().await?;
        let waited = waited_for(self.streams.policy().replication).map(|lane| self.slot(lane));
        let resource = self.streams.resource();
        for slot in synchronous::left_over(&client, resource, waited.as_deref()).await.map_err(chain)? {
            synchronous::leave(&client, &slot).await.map_err(chain)?;
            tracing::info!(resource, slot, "commits do not wait for it any more");
        }
        Ok(())
    }

    /// A standby that took the primary's place may have the setting of another day, which no guard watches. Never ends.
    async fn keep_let_go(&self) {
        let mut ticks = interval(LEFT_OVER);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.tick().await;
        loop {
            ticks.tick().await;
            // That it cannot be reached is told by who looks at it.
            if self.primary().await.is_err() {
                continue;
            }
            let why = self.let_go().await.err().unwrap_or_default();
            if !why.is_empty() {
                tracing::warn!(resource = self.streams.resource(), %why, "commits may wait for a lane that is not the mode's");
            }
            if waited_for(self.streams.policy().replication).is_none() {
                self.explain(why);
            }
        }
    }

    /// Tables in their lanes, and the database's default.
    async fn align(&self) -> Result<(), String> {
        let policy = self.streams.policy();
        let resource = self.streams.resource();
        self.let_go().await?;
        let client = self.primary().await?;
        let hybrid = policy.replication == ReplicationMode::Hybrid;
        if hybrid || lanes::members(&client, resource).await.map_err(chain)?.is_some() {
            self.hand_over().await?;
        }
        let problems = preflight::critical(&client, &policy, &self.stage.source.0).await?;
        for problem in &problems {
            tracing::warn!(resource, %problem, "critical table");
        }
        self.edit(|state| state.problems = problems);
        if hybrid {
            return lanes::commit_locally(&client).await.map_err(chain);
        }
        let lane = self.streams.lane(self.stage.generation, Lane::Critical);
        // One that was ended may not have been closed.
        if lane.is_some() || lanes::members(&client, resource).await.map_err(chain)?.is_some() {
            self.streams.close_critical(self.stage.generation, &client).await?;
        }
        lanes::commit_as_before(&client).await.map_err(chain)
    }

    async fn hand_over(&self) -> Result<(), String> {
        let (resource, policy) = (self.streams.resource(), self.streams.policy());
        // A connection of its own: whatever happens to this future, the transaction ends with it.
        let databases = self.streams.databases();
        let client = databases.take(&self.stage.source.0, Purpose::Mode).await.map_err(chain)?;
        let begun = Handover::begin(&client, resource, &policy.critical, LOCK).await.map_err(chain)?;
        let Some(handover) = begun else { return Ok(()) };
        let applied = self.streams.applied(self.stage.generation, handover.position);
        match tokio::time::timeout(HANDOVER, applied).await {
            Ok(Ok(())) => {
                handover.finish().await.map_err(chain)?;
                tracing::info!(resource, critical = ?policy.critical, "tables are in their lanes");
                Ok(())
            }
            Ok(Err(why)) => {
                handover.abandon().await.map_err(chain)?;
                Err(why)
            }
            Err(_) => {
                handover.abandon().await.map_err(chain)?;
                Err(format!("the shadow was not caught up within {HANDOVER:?}: tables stay in their lanes"))
            }
        }
    }

    /// Without its trigger a critical table's commits do not wait. Never ends.
    async fn keep_triggers(&self) {
        let (resource, policy) = (self.streams.resource(), self.streams.policy());
        if policy.replication != ReplicationMode::Hybrid {
            return std::future::pending().await;
        }
        let mut ticks = interval(TRIGGERS);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            // That it cannot be reached is told by who looks at it.
            let Ok(client) = self.primary().await else { continue };
            match lanes::arm(&client, &policy.critical, LOCK).await.map_err(chain) {
                Ok(0) => {}
                Ok(tables) => {
                    let told = "the triggers of critical tables were gone or switched off, whose commits did not wait; they are put again";
                    tracing::warn!(resource, tables, "{told}");
                }
                Err(why) => {
                    tracing::warn!(resource, %why, "the triggers of critical tables are not known to be there");
                }
            }
        }
    }

    async fn drive(&self, lane: Lane) {
        let policy = self.streams.policy();
        let settings = Settings { after: policy.fallback_after, back: policy.fallback_back };
        let slot = self.slot(lane);
        let mut machine = Machine::new(settings);
        let mut armed: Option<Armed> = None;
        let mut ticks = interval(LOOK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = self.stop.cancelled() => break,
                _ = ticks.tick() => {}
            }
            // In this order: a guard that has ended by then has left its reason where the look finds it.
            let guarded = armed.as_ref().is_some_and(Armed::guarded);
            let seen = self.look(&slot).await;
            let mut action = machine.handle(&self.facts(lane, seen.as_ref(), guarded), clock::monotonic());
            while let Some(next) = action {
                action = self.perform(next, &slot, &mut machine, &mut armed).await;
            }
            self.show(&machine, seen.as_ref());
        }
        if machine.may_wait() {
            match self.leave(&slot).await {
                Ok(()) => self.changed(ReplicationMode::Async, "the stream ends"),
                Err(why) => tracing::error!(
                    resource = self.streams.resource(), %why,
                    "commits may still wait for a shadow that is gone, until the guard in the database lets them go"
                ),
            }
        }
    }

    async fn look(&self, slot: &str) -> Option<Observation> {
        let look = async {
            let client = self.primary().await?;
            synchronous::observe(&client, slot).await.map_err(chain)
        };
        match tokio::time::timeout(PATIENCE, look).await {
            Ok(Ok(seen)) => Some(seen),
            failed => {
                tracing::debug!(?failed, "the primary cannot be looked at");
                self.streams.databases().forget(&self.stage.source.0, Purpose::Mode).await;
                None
            }
        }
    }

    fn facts(&self, lane: Lane, seen: Option<&Observation>, guarded: bool) -> Facts {
        let status = self.streams.lane(self.stage.generation, lane).map(|status| status.borrow().clone());
        let streaming = status.as_ref().is_some_and(|status| status.phase == Phase::Streaming)
            && seen.is_none_or(|seen| seen.state.is_some());
        Facts {
            streaming,
            caught_up: streaming
                && seen.is_some()
                && lock(&self.lacks).is_none()
                && status.is_some_and(|status| status.lag_bytes <= CAUGHT_UP.0 && status.lag <= CAUGHT_UP.1),
            named: seen.map(|seen| seen.named),
            guarded: seen.map(|_| guarded),
            fell_back: seen.and_then(|seen| seen.fell_back.clone()),
        }
    }

    async fn perform(
        &self,
        action: Action,
        slot: &str,
        machine: &mut Machine,
        armed: &mut Option<Armed>,
    ) -> Option<Action> {
        let again = *machine.state() == State::Joining && armed.is_some();
        match action {
            Action::Join => {
                let joined = self.join(slot).await;
                let result = joined.map(|guards| *armed = Some(guards));
                if let Err(why) = &result {
                    tracing::warn!(resource = self.streams.resource(), %why, "commits cannot wait for the shadow");
                }
                let next = machine.handle_joined(result, clock::monotonic());
                if next.is_none() && !again {
                    let mode = self.streams.policy().replication;
                    let inherited = lock(&self.state).effective == mode;
                    let why = if inherited { "the stream is up again" } else { "the shadow has caught up" };
                    self.changed(mode, why);
                }
                next
            }
            Action::Leave => {
                let why = match machine.state() {
                    State::Leaving { why, .. } => why.clone(),
                    _ => String::new(),
                };
                let result = self.leave(slot).await;
                match &result {
                    Ok(()) => self.changed(ReplicationMode::Async, &why),
                    Err(failure) => tracing::error!(
                        resource = self.streams.resource(), %why, %failure,
                        "commits may still wait for the shadow, until the guard in the database lets them go"
                    ),
                }
                *armed = None;
                machine.handle_left(result, clock::monotonic());
                None
            }
        }
    }

    async fn join(&self, slot: &str) -> Result<Armed, String> {
        let join = async {
            let client = self.primary().await?;
            let databases = self.streams.databases();
            let dsn = &databases.settings(&self.stage.source.0).map_err(chain)?.dsn;
            let after = self.streams.policy().fallback_after;
            Armed::join(&client, dsn, slot, after).await.map_err(chain)
        };
        let joined = tokio::time::timeout(CHANGE, join).await;
        joined.unwrap_or_else(|_| Err(format!("the primary did not answer within {CHANGE:?}")))
    }

    async fn leave(&self, slot: &str) -> Result<(), String> {
        let leave = async {
            let client = self.primary().await?;
            synchronous::leave(&client, slot).await.map_err(chain)
        };
        match tokio::time::timeout(CHANGE / 2, leave).await {
            Ok(left) => left,
            Err(_) => {
                self.streams.databases().forget(&self.stage.source.0, Purpose::Mode).await;
                Err(format!("the primary did not answer within {:?}", CHANGE / 2))
            }
        }
    }

    fn edit(&self, change: impl FnOnce(&mut ModeState)) {
        change(&mut lock(&self.state));
    }

    fn explain(&self, why: String) {
        self.edit(|state| state.why = why);
    }

    fn show(&self, machine: &Machine, seen: Option<&Observation>) {
        let lacks = lock(&self.lacks).clone();
        let failed = lacks.clone().filter(|lacks| lacks != NOT_YET);
        let why = match machine.state() {
            State::Synchronous { .. } => failed.unwrap_or_default(),
            State::Following { why: Some(why), .. } if failed.is_none() => why.clone(),
            State::Following { .. } | State::Joining => {
                lacks.unwrap_or_else(|| "the shadow is catching up".into())
            }
            State::Inherited { .. } => {
                failed.unwrap_or_else(|| "commits wait for a stream that is not up yet".into())
            }
            State::Leaving { why, .. } => format!("falling back: {why}"),
        };
        self.edit(|state| {
            if matches!(machine.state(), State::Inherited { .. }) {
                // This process has not seen it begin.
                state.effective = state.wanted;
            }
            state.why = why;
            state.waiting = seen.map_or(0, |seen| seen.waiting);
        });
    }

    /// The effective mode changed: everybody who asks is told, and the history.
    fn changed(&self, mode: ReplicationMode, why: &str) {
        let (resource, wanted) = (self.streams.resource(), self.streams.policy().replication);
        if mode == wanted {
            tracing::info!(resource, mode = mode.name(), why, "replication mode");
        } else {
            tracing::warn!(resource, mode = mode.name(), wanted = wanted.name(), why, "replication mode");
        }
        let change = ModeChange { at: clock::now(), mode, why: why.to_owned() };
        if let Err(error) = self.streams.journal().note_mode(resource, &change) {
            tracing::error!(error = chain(error), "the change of the mode is not in the history");
        }
        self.edit(|state| {
            state.effective = mode;
            state.since = Some(change.at);
            state.changes.push(change);
            let surplus = state.changes.len().saturating_sub(KEPT);
            state.changes.drain(..surplus);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_mode_lacks_is_told_in_each_of_them() {
        let mut state = ModeState::not_yet(ReplicationMode::Async);
        assert_eq!(state.problem(true), None);
        // Commits may be waiting for a lane that cannot be let go.
        state.why = "permission denied".into();
        assert_eq!(state.problem(false).as_deref(), Some("replication mode: permission denied"));
        let mut state = ModeState::not_yet(ReplicationMode::Sync);
        assert_eq!(state.problem(false), None, "there is nothing to wait for");
        let told = "commits do not wait for the shadow, as sync replication would have it: the shadow does not follow yet";
        assert_eq!(state.problem(true).as_deref(), Some(told));
        state.effective = ReplicationMode::Sync;
        assert!(state.problem(true).is_some(), "commits wait for what is not up");
    }
}
