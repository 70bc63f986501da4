//! The actor: takes events and commands, steps the machine, writes the journal, starts effects.

mod approving;
mod between;
mod planned;
mod shown;
pub(crate) mod taking_back;
mod tasks;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use migration::aftermath::Aftermath;
use migration::cutover::{
    Effect, Event, Limits, Outcome, Phase, Refused, Run, State, Trigger, Unwritten, step,
};
use migration::decide::decide;
use migration::report::{DecisionReport, Verdict};
use migration::units::{Timestamp, Zone};
use migration::world::Freeze;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use self::taking_back::TakenBack;
use self::tasks::Tasks;
use super::audited;
use super::effects::{Hands, Report};
use super::forecast::ForecastView;
use super::freezes::Freezes;
use super::ledger::{self, Worth};
use super::measure::Measure;
use super::proposals::Proposals;
use super::reconfigure::Crowded;
use super::retirement::{Aside, Retiring};
use super::sequences;
use super::signals::{Moves, Signals};
use super::slots::{SlotGuard, SlotWatch};
use super::verification::Verifications;
use super::view::{DecisionView, ResourceView, StepView};
use super::warm::Warm;
use super::{Command, Denied, Plan, ResourceHandle, recording};
use crate::audit::Entry;
use crate::causes::chain;
use crate::clock::{self, Steady};
use crate::feeds::learning::Learner;
use crate::history::{History, HistoryError};
use crate::lock::lock;
use crate::store::{Ended, LedgerRow};
use crate::telemetry::metrics as telemetry;

/// How often deadlines and the gate are looked at while a migration runs.
const TICK: Duration = Duration::from_millis(20);
/// Share of the gate's capacity above which a cutover gives up.
const HOLD_ALARM: f64 = 0.7;
/// First and longest pause before a failed effect is tried again.
const RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(10));

/// What forecasters learn with, and what is kept.
pub struct Memory {
    /// Of what is drawn for examples.
    pub seed: u64,
    /// The network that forecasters share; none: the shipped one stays as it is.
    pub learner: Option<Learner>,
    /// Where each step is kept.
    pub history: History,
    /// What operators froze.
    pub freezes: Arc<Freezes>,
}

/// One resource's controller.
pub struct Machine {
    pub(super) hands: Arc<Hands>,
    pub(super) state: State,
    signals: Signals,
    pub(super) measure: Measure,
    slots: SlotGuard,
    verifications: Arc<Verifications>,
    reports: mpsc::UnboundedReceiver<Report>,
    commands: mpsc::Receiver<Command>,
    view: Arc<ArcSwap<ResourceView>>,
    forecast: Arc<ArcSwap<ForecastView>>,
    history: History,
    running: Tasks,
    /// Consecutive failures by effect name.
    pub(super) failures: HashMap<&'static str, (u32, String)>,
    pub(super) decision: Option<(DecisionReport, u64)>,
    /// The phase it was made in, and what was frozen then.
    judged: (Phase, Vec<Freeze>),
    /// The decision that the audit has last.
    audited: Option<audited::Gist>,
    freezes: Arc<Freezes>,
    proposals: Proposals,
    /// What the newest decision expects of a move.
    expected: LedgerRow,
    worth: Option<Worth>,
    aftermath: Aftermath,
    taken_back: Option<TakenBack>,
    /// Why the last move should be taken back, where it is not.
    regret: Option<String>,
    stood: shown::Stood,
    moves: Moves,
    /// The shadow is a primary that was lost.
    pub(super) after_loss: bool,
    /// The shadow has too many workers.
    pub(super) crowded: Crowded,

    gate_closed_at: Option<Instant>,
    held: between::Held,
    last_step: Instant,
    /// Counts the steps.
    pub(super) paced: Steady,
    journal_fails: Option<String>,
    unwritten: Unwritten,
    pub(super) retiring: Retiring,
    pub(super) asides: mpsc::UnboundedSender<Aside>,
    said_aside: mpsc::UnboundedReceiver<Aside>,
}

impl Machine {
    /// A controller that starts from `state`, and the way to it.
    #[allow(clippy::too_many_arguments)]
    pub fn new(
        hands: Arc<Hands>,
        state: State,
        measure: Measure,
        slots: SlotWatch,
        verifications: Arc<Verifications>,
        reports: mpsc::UnboundedReceiver<Report>,
        memory: Memory,
    ) -> (Self, ResourceHandle) {
        let (sender, commands) = mpsc::channel(16);
        let view = Arc::new(ArcSwap::from_pointee(ResourceView::default()));
        let forecast = Arc::new(ArcSwap::from_pointee(ForecastView::default()));
        let handle = ResourceHandle {
            commands: sender,
            view: view.clone(),
            forecast: forecast.clone(),
            live: hands.resource.clone(),
            verifications: verifications.clone(),
            streams: hands.streams.clone(),
        };
        telemetry::begin_resource(&hands.resource.name);
        let Memory { seed, learner, history, freezes } = memory;
        let proposals = Proposals::open(&hands.resource.name, hands.journal.clone());
        let worth = Worth::of_last_move(&hands.journal, &state);
        let taken_back = TakenBack::found(&state);
        let retiring = Self::retiring_from(&hands.journal, &state);
        let slots = SlotGuard::new(slots, &hands.journal, &hands.resource.name);
        let (asides, said_aside) = mpsc::unbounded_channel();
        let signals = Signals::new(seed, hands.policy().step, learner);
        let mut machine = Self {
            hands,
            state,
            signals,
            measure,
            slots,
            verifications,
            reports,
            commands,
            view,
            forecast,
            history,
            running: Tasks::default(),
            failures: HashMap::new(),
            decision: None,
            judged: (Phase::Idle, Vec::new()),
            audited: None,
            freezes,
            proposals,
            expected: LedgerRow::default(),
            worth,
            aftermath: Aftermath::default(),
            taken_back,
            regret: None,
            stood: shown::Stood::default(),
            moves: Moves::default(),
            after_loss: false,
            crowded: Crowded::default(),
            gate_closed_at: None,
            held: between::Held::default(),
            last_step: clock::monotonic(),
            paced: Steady::begin(),
            journal_fails: None,
            unwritten: Unwritten::default(),
            retiring,
            asides,
            said_aside,
        };
        machine.publish();
        (machine, handle)
    }

    /// What the stream does not carry follows beside it until cancelled: the schema, large objects, sequences, what extensions keep.
    pub fn follow_beside(&self, stop: &CancellationToken) {
        if !self.hands.settings().has_database() {
            return;
        }
        self.measure.compare_schemas(&self.hands, &self.state.primary.0, self.view.clone(), stop);
        self.hands.large_objects.watch(self.view.clone(), stop);
        self.hands.extensions.follow(self.view.clone(), stop);
        sequences::follow(self.hands.databases.clone(), self.view.clone(), stop);
    }

    /// Runs until cancelled.
    pub async fn run(mut self, stop: CancellationToken) {
        let policy = self.hands.policy();
        let mut steps = tokio::time::interval(policy.step);
        steps.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut looks = tokio::time::interval(between::LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        if self.hands.gates_closed() {
            self.gate_closed_at = Some(clock::monotonic());
        }
        let mut warming = Some(self.warm());
        self.read_moves();
        self.freeze_after_taking_back(clock::now());
        self.take(Event::Restarted);
        self.soak_as_configured();
        if self.state.phase != Phase::Idle && self.state.run.is_none() && !policy.shadow_enabled {
            // Switched off while this process was not there to see it.
            self.take(Event::ShadowDisabled);
        } else if self.state.phase == Phase::Idle && policy.shadow_enabled && !self.given_up() {
            self.take(Event::ShadowEnabled);
        }
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(report) = self.reports.recv() => self.answer(report),
                Some(aside) = self.said_aside.recv() => self.aside(aside),
                Some(command) = self.commands.recv() => self.command(command),
                warm = warmed(&mut warming) => self.adopt_warm(warm),
                _ = ticks.tick() => self.tick(),
                _ = looks.tick(), if policy.step > between::LOOK => self.look(),
                _ = steps.tick() => self.step(),
            }
        }
        self.running.abort(|_| true);
    }

    /// Feeds forecasters from the history, on a thread where that may block.
    fn warm(&mut self) -> JoinHandle<Result<Warm, HistoryError>> {
        let (history, warmer) = (self.history.clone(), self.signals.warmer());
        let (resource, primary) = (self.state.resource.clone(), self.state.primary.to_string());
        tokio::task::spawn_blocking(move || {
            let began = clock::monotonic();
            let warm = warmer.warm(&history, &resource, &primary)?;
            let spent_ms = began.elapsed().as_millis();
            tracing::info!(%resource, steps = warm.replayed(), spent_ms, "forecasters fed from the history");
            Ok(warm)
        })
    }

    fn adopt_warm(&mut self, warm: Result<Warm, String>) {
        match warm {
            Ok(warm) => {
                self.signals.adopt(warm);
                self.publish_forecast();
            }
            Err(why) => {
                tracing::warn!(resource = %self.state.resource, %why, "the history cannot be read: forecasters begin anew");
                self.signals.start_cold();
            }
        }
    }

    fn answer(&mut self, report: Report) {
        let current = self.state.run.as_ref().map(|run| &run.id);
        // What belongs to the resource counts for any run, a stream's for its generation; what belongs to a run only for it.
        let over = report.run.is_some() && report.run.as_ref() != current;
        if over || report.stream.is_some_and(|generation| generation != self.state.generation) {
            tracing::debug!(event = report.event.name(), "answer of an ended migration ignored");
            return;
        }
        match &report.event {
            Event::GateClosed => self.gate_closed_at = Some(clock::monotonic()),
            Event::GateOpened => self.note_hold(),
            Event::StreamUp => self.is_no_problem("run_stream"),
            Event::Compared { equal: true } => self.is_no_problem("compare"),
            Event::EffectFailed { effect, why } => {
                let entry = self.failures.entry(effect).or_default();
                *entry = (entry.0 + 1, why.clone());
            }
            _ => {}
        }
        self.take(report.event);
    }

    fn note_hold(&mut self) {
        let (Some(closed), Some(run)) = (self.gate_closed_at.take(), &self.state.run) else { return };
        let held = closed.elapsed();
        telemetry::hold(&self.state.resource, held);
        if let Err(error) = self.hands.journal.note_hold(&run.id, held.as_millis() as u64) {
            tracing::warn!(error = chain(error), "hold not written to the history");
        }
    }

    /// Wall time; while a migration is under way it does not jump.
    fn moment(&mut self) -> Timestamp {
        let mut steady = lock(&self.hands.steady);
        if self.state.run.is_none() {
            *steady = Steady::begin();
        }
        steady.now()
    }

    fn tick(&mut self) {
        for event in self.unwritten.take() {
            self.take(event);
        }
        if self.state.run.is_none() {
            return;
        }
        if let Some(front) = self.hands.front.as_ref().filter(|_| self.state.phase.holds()) {
            let (stats, limits) = (front.gate.stats(), front.gate.limits());
            let share = |used: usize, limit: usize| used as f64 / limit.max(1) as f64;
            let worst = share(stats.held, limits.requests).max(share(stats.held_bytes, limits.bytes));
            if worst > HOLD_ALARM {
                let why = format!("{} requests, {} bytes of headers", stats.held, stats.held_bytes);
                self.take(Event::HoldNearlyFull { why });
            }
        }
        if let Some(front) = self.hands.postgres.as_ref().filter(|_| self.state.phase.holds()) {
            let (stats, limits) = (front.turnstile.stats(), front.turnstile.limits());
            if stats.held as f64 > HOLD_ALARM * limits.requests.max(1) as f64 {
                self.take(Event::HoldNearlyFull { why: format!("{} sessions", stats.held) });
            }
        }
        self.take(Event::Tick);
    }

    /// One event through the machine. The new state is durable before any effect of it starts.
    pub(super) fn take(&mut self, event: Event) {
        let name = event.name();
        if self.unwritten.forbids(&event) {
            return tracing::debug!(event = name, "the gate was opened again meanwhile");
        }
        // A migration has a clock of its own, also one that ends the soak of the last one.
        let begins = matches!(event, Event::MigrateRequested { .. } | Event::TakeOverRequested { .. });
        let steady = Steady::begin();
        // One moment for the state and its record: a phase ends when the next begins.
        let now = if begins { steady.now() } else { self.moment() };
        let phase = self.state.phase;
        match step(&self.state, event.clone(), now) {
            Ok((next, effects)) => {
                let ends: Vec<_> = effects.iter().filter_map(Effect::ends).collect();
                if let Err(why) = self.adopt(next, name, now, &ends) {
                    self.journal_failed(&why, event);
                    return;
                }
                if begins {
                    *lock(&self.hands.steady) = steady;
                }
                for effect in effects {
                    self.start(effect);
                }
                if phase != self.state.phase {
                    self.soak_as_configured();
                }
            }
            Err(refused @ Refused::NotAwaited { .. }) => tracing::debug!(%refused, "event changes nothing"),
            Err(refused) => tracing::info!(%refused, "event refused"),
        }
    }

    /// `next`, which ends these runs.
    fn adopt(
        &mut self,
        mut next: State,
        event: &str,
        now: Timestamp,
        ends: &[(&str, &Outcome)],
    ) -> Result<(), String> {
        if next == self.state {
            return Ok(());
        }
        // Nobody else asked for it. Also later in the hold: what it waited for then is what the rest has not.
        if (Phase::Held..=Phase::Sequenced).contains(&self.state.phase)
            && (next.phase, event) == (Phase::Aborting, "Tick")
            && let Some(why) = next.run.as_mut().and_then(|run| run.aborted.as_mut())
            && let Some(inside) = lock(&self.hands.undrained).take()
        {
            let waited = if self.state.phase == Phase::Held { "" } else { "it waited first, since " };
            *why = format!("{why}: {waited}{inside}");
        }
        let gives_back = self.gives_back(ends);
        let retirement = gives_back.as_ref().ok().and_then(Option::as_ref);
        let ended = ends.iter().map(|(run, outcome)| Ended { run, outcome, retirement });
        self.hands.journal.append(&next, event, now, ended).map_err(chain)?;
        self.journal_fails = None;
        if next.phase != self.state.phase {
            self.hands.audit.note(audited::step(&self.state, &next, event));
        }
        let same = |run: &&Run| self.state.run.as_ref().is_some_and(|before| before.id == run.id);
        // None begins with a soak: that one goes on.
        if let Some(run) = next.run.as_ref().filter(|run| !same(run) && next.phase != Phase::Soaking) {
            // What waits to be tried again would act in this run as its own one wanted it, and nobody would hear its answer.
            self.running.abort(|key| tasks::is_outdated(key, &run.id));
            // Nothing else may read in the databases while requests are held.
            self.verifications.stop(&format!("migration {} began", run.id));
            self.do_not_end(run, next.phase);
        }
        if next.generation != self.state.generation {
            // It would start the lanes of a stream that is over, and end what keeps commits waiting for the next one.
            self.running.abort(|key| key.starts_with("RunStream"));
        }
        if next.phase != self.state.phase {
            let spent = now.since(self.state.since);
            tracing::info!(
                resource = %next.resource, from = self.state.phase.name(), to = next.phase.name(), event,
                spent_ms = spent.as_millis(), "phase"
            );
            for (phase, spent) in shown::over(&self.state, &next, now) {
                telemetry::step(phase.name(), spent);
            }
            self.failures.clear();
            self.slots.phase_begins();
            if next.phase == Phase::Aborting {
                let why = next.run.as_ref().and_then(|run| run.aborted.as_deref()).unwrap_or_default();
                tracing::warn!(resource = %next.resource, why, "migration aborted: the old primary stays");
                self.cancel_all_but_streams();
            }
            if next.phase == Phase::Committed {
                // What an earlier move would give back is something else from here on.
                self.retiring = Retiring::default();
                // Of a proposal that began this one nothing is open any more.
                self.proposals.withdraw(now);
                self.read_moves();
                self.worth = Worth::of_last_move(&self.hands.journal, &next);
            }
        }
        self.held.see(&next);
        let before = std::mem::replace(&mut self.state, next);
        if self.state.phase == Phase::Committed {
            self.freeze_after_taking_back(now);
        }
        let left =
            StepView { phase: before.phase.name().into(), started_ms: before.since.0, ended_ms: Some(now.0) };
        self.tell_step(&before, &left, now);
        self.publish();
        self.retire(gives_back);
        self.tell_ends(&before, ends, &left, now);
        Ok(())
    }

    /// The journal cannot be written: nothing new is done. A gate that closed before any fence opens again at once. What
    /// happened is not told again: it is tried once more, or, where time presses, the run is undone.
    fn journal_failed(&mut self, why: &str, event: Event) {
        let opens = self.unwritten.failed(self.state.phase, event);
        if self.journal_fails.is_none() {
            tracing::error!(resource = %self.state.resource, %why, "the journal cannot be written: migrations stand still");
        }
        self.journal_fails = Some(why.to_owned());
        if opens {
            self.hands.open_gates();
        }
        self.publish();
    }

    fn cancel_all_but_streams(&mut self) {
        // They belong to the resource. Who lifts the fence ends in the server what goes on there, and waits for nothing here meanwhile.
        self.running.abort(|key| !key.starts_with("RunStream"));
    }

    fn start(&mut self, effect: Effect) {
        match effect {
            Effect::CheckGuards => return self.check_guards(),
            // Written with the record that it belongs to.
            Effect::CloseRun { .. } => return,
            _ => self.hands.turn_gate(&effect),
        }
        if let Effect::TakeOver { .. } = effect {
            // From here on clients wait.
            self.gate_closed_at.get_or_insert_with(clock::monotonic);
        }
        let key = tasks::key(&effect, self.state.run.as_ref().map(|run| run.id.as_str()));
        if self.running.has(&key) {
            return;
        }
        if effect == Effect::Compare {
            // That of a run that was superseded meanwhile: the sessions it has are needed now.
            self.running.abort(|key| key.starts_with("Compare"));
        }
        let name = effect.name();
        let pause = match self.failures.get(name) {
            Some((times, _)) => (RETRY.0 * 2_u32.saturating_pow(times.saturating_sub(1))).min(RETRY.1),
            None => Duration::ZERO,
        };
        let (hands, state, tell) = (self.hands.clone(), self.state.clone(), self.asides.clone());
        self.running.begin(key, |over| async move {
            tokio::time::sleep(pause).await;
            let started = clock::monotonic();
            let outcome = hands.perform(&effect, &state).await;
            let spent_ms = started.elapsed().as_millis();
            hands.audit.note(Entry::Effect {
                resource: state.resource.clone(),
                migration: state.run.as_ref().map(|run| run.id.clone()),
                effect: name.to_owned(),
                spent_ms: u64::try_from(spent_ms).unwrap_or(u64::MAX),
                error: outcome.as_ref().err().cloned(),
            });
            over.say();
            match outcome {
                Ok(()) => {
                    tracing::debug!(effect = name, spent_ms, "effect done");
                    // Of these two what they begin tells.
                    if !matches!(effect, Effect::RunStream { .. } | Effect::Compare) {
                        let _ = tell.send(Aside::Done(name));
                    }
                }
                Err(why) => {
                    tracing::warn!(resource = %state.resource, effect = name, %why, "effect failed");
                    let failed = Event::EffectFailed { effect: name, why };
                    match effect {
                        Effect::RunStream { generation, .. } => hands.report_stream(generation, failed),
                        _ => hands.report(state.run.map(|run| run.id), failed),
                    }
                }
            }
        });
    }

    fn check_guards(&mut self) {
        self.judge_anew();
        let refusals = match &self.decision {
            // The migration under way is this one.
            Some((report, _)) => report
                .guards
                .iter()
                .filter(|guard| {
                    guard.binds_operator && !guard.passed && guard.name != "no migration under way"
                })
                .map(|guard| format!("{}: {} (needs {})", guard.name, guard.value, guard.limit))
                .collect(),
            None => vec!["nothing is known yet".to_owned()],
        };
        let run = self.state.run.as_ref().map(|run| run.id.clone());
        let event = if refusals.is_empty() {
            Event::GuardsPassed
        } else {
            Event::GuardsFailed { why: refusals.join("; ") }
        };
        self.hands.report(run, event);
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Migrate { to, by, dry_run, reply } => {
                let answer = if dry_run {
                    self.decide();
                    self.judge_anew();
                    self.migrate(to.as_deref(), &by.name, true)
                } else {
                    self.ask(to.as_deref(), &by)
                };
                let _ = reply.send(answer);
            }
            Command::Reseed { by, reply } => {
                let _ = reply.send(self.slots.reseed(&self.hands, &self.state, &by));
                self.publish();
            }
            Command::Reconfigure { settings, shadow, persist, reply } => {
                let _ = reply.send(self.reconfigure(&settings, shadow, persist));
            }
            Command::Leave { reply } => self.leave(reply),
            Command::Approve { id, by, reply } => {
                let _ = reply.send(self.approve(id.as_deref(), &by));
            }
            Command::TakeOver { plan, by, reply } => {
                let _ = reply.send(self.take_over(*plan, &by));
            }
            Command::Abort { id, by, reply } => {
                let _ = reply.send(self.told(&id, Event::AbortRequested { by }));
            }
            Command::Retire { id, by, reply } => {
                let told = self.told(&id, Event::SoakFor { time: Duration::ZERO });
                if told.is_ok() {
                    tracing::info!(resource = %self.state.resource, by, "the old primary's soak is ended");
                }
                let _ = reply.send(told);
            }
        }
    }

    fn migrate(&mut self, to: Option<&str>, by: &str, dry_run: bool) -> Result<Plan, Denied> {
        let to: Zone = to.map_or_else(|| self.state.shadow.clone(), Zone::from);
        let (id, event) = self.request(to.clone(), Trigger::Operator(by.to_owned()));
        let now = self.moment();
        let next = step(&self.state, event.clone(), now);
        let mut plan = self.plan(&to);
        if !dry_run {
            self.may_begin(next)?;
            self.begin(event, &id)?;
            self.note_decision(&id);
            plan.id = Some(id);
        } else if let Err(refused @ (Refused::AlreadyThere(_) | Refused::WrongTarget { .. })) = next {
            return Err(denied(&refused));
        }
        Ok(plan)
    }

    fn take_over(&mut self, mut plan: Plan, by: &str) -> Result<Plan, Denied> {
        self.slots.free()?;
        let (id, limits) = (crate::rng::id(), Limits::of(&self.hands.policy()));
        let trigger = Trigger::Operator(by.to_owned());
        let event = Event::TakeOverRequested { id: id.clone(), trigger, limits };
        let now = self.moment();
        let (next, _) = step(&self.state, event.clone(), now).map_err(|refused| denied(&refused))?;
        // It was examined before it came here.
        if (&*next.primary.0, &*next.shadow.0) != (plan.to.as_str(), plan.from.as_str()) {
            return Err(Denied::Conflict(format!("{} is the primary by now", self.state.primary)));
        }
        self.begin(event, &id)?;
        plan.id = Some(id);
        Ok(plan)
    }

    /// Takes what begins the run of this id.
    fn begin(&mut self, event: Event, id: &str) -> Result<(), Denied> {
        self.take(event);
        if self.state.run.as_ref().is_none_or(|run| run.id != id) {
            return Err(Denied::Journal(self.journal_problem()));
        }
        Ok(())
    }

    fn request(&self, to: Zone, trigger: Trigger) -> (String, Event) {
        let id = crate::rng::id();
        let scale = self.hands.time_to_scale(&to);
        let limits = Limits { scale, ..Limits::of(&self.hands.policy()) };
        (id.clone(), Event::MigrateRequested { id, to, trigger, limits })
    }

    fn note_decision(&self, id: &str) {
        let Some((report, at)) = &self.decision else { return };
        let noted = serde_json::to_string(&DecisionView::of(report, *at))
            .map_err(chain)
            .and_then(|text| self.hands.journal.note_decision(id, &text).map_err(chain));
        if let Err(why) = noted {
            tracing::warn!(%why, id, "the decision is not in the history");
        }
        if let Err(error) = self.hands.journal.write_ledger(id, &self.expected) {
            tracing::warn!(error = chain(error), id, "what the move should bring is not in the ledger");
        }
    }

    /// What a person says of this migration.
    fn told(&mut self, id: &str, event: Event) -> Result<(), Denied> {
        if self.state.run.as_ref().is_none_or(|run| run.id != id) {
            return Err(Denied::NoSuchMigration(id.to_owned()));
        }
        let now = self.moment();
        step(&self.state, event.clone(), now).map_err(|refused| denied(&refused))?;
        self.take(event);
        match &self.journal_fails {
            Some(why) => Err(Denied::Journal(why.clone())),
            None => Ok(()),
        }
    }

    /// One step of the seed's loop: measure, score, decide, and move when that pays.
    fn step(&mut self) {
        let (mut measured, moving) = self.measure.step(&self.hands, &self.state);
        let (lag, blockers, service) = self.facts();
        (measured.lag, measured.blockers, measured.shadow_service) = (lag, blockers, Some(service));
        self.last_step = clock::monotonic();
        let (now, at) = (clock::now(), self.paced.now());
        // What fails since the release counts at once: steps may be long.
        self.see_aftermath(measured.answers, moving, at);
        let moving = self.held.ends(&self.state);
        self.measure_worth(&measured, moving);
        self.freeze_after_taking_back(now);
        self.read_moves();
        let served = self.signals.served_by().to_owned();
        self.signals.observe(&self.state.primary.0, measured, moving, at);
        if !served.is_empty() && served != self.signals.served_by() {
            telemetry::forecasts_end(&self.state.resource, &served);
        }
        self.decide();
        self.publish_forecast();
        if let Some(event) = self.slots.step(&self.hands, &self.state, self.last_step) {
            self.take(event);
        }
        if self.slots.is_tidy(&self.state, self.last_step) {
            self.is_no_problem("drop_reverse_slot");
        }
        self.retire_step();
        self.thin_out();
        let Some((report, at)) = self.decision.clone() else { return };
        let gist = audited::gist(&report);
        if self.audited.as_ref() != Some(&gist) {
            self.hands.audit.note(audited::decision(&self.state.resource, &report));
            self.audited = Some(gist);
        }
        let zones = (&*self.state.primary.0, &*self.state.shadow.0);
        let of = (&*self.state.resource, self.hands.policy().step);
        self.history.record_step(recording::step(of, &self.signals, &report, zones, now));
        telemetry::decision(&self.state.resource, &report, &self.signals, &self.hands.policy());
        self.proposals.follow(&report, self.hands.policy().proposal_expires, now);
        self.take_back(now);
        if let Verdict::Move { to } = &report.verdict
            && self.slots.free().is_ok()
        {
            let (id, event) = self.request(to.clone(), Trigger::Score);
            tracing::info!(resource = %self.state.resource, %to, because = %report.because, "the score asks for a move");
            self.take(event);
            if self.state.run.as_ref().is_some_and(|run| run.id == id) {
                self.decision = Some((report, at));
                self.note_decision(&id);
            }
        }
        self.publish();
    }

    pub(super) fn decide(&mut self) {
        let now = clock::now();
        let policy = &self.hands.policy();
        let age = self.last_step.elapsed();
        let freezes = self.frozen();
        self.judged = (self.state.phase, freezes.clone());
        let world = self.signals.world(policy, &self.state, self.moves.clone(), freezes, age, now);
        self.expected = ledger::expected(&world);
        self.decision = Some((decide(policy, &world, now), now.0));
    }

    fn read_moves(&mut self) {
        let day = migration::decide::DAY.as_millis() as u64;
        let day_ago = Timestamp(clock::now().0.saturating_sub(day));
        match self.hands.journal.commits_since(&self.state.resource, day_ago) {
            Ok(commits) => {
                self.moves = Moves { last: commits.last, last_day: commits.recent, undone: commits.undone };
            }
            Err(error) => tracing::warn!(error = chain(error), "the history cannot be read"),
        }
        let State { resource, shadow, generation, .. } = &self.state;
        self.after_loss = self.hands.journal.is_lost(resource, shadow, *generation).unwrap_or_default();
    }

    /// A task beside the machine's effects; one of the same name before it is done with.
    pub(super) fn replace_task(&mut self, name: &str, task: JoinHandle<()>) {
        self.running.replace(name, task);
    }

    /// Ends such a task.
    pub(super) fn abort_task(&self, name: &str) {
        self.running.abort(|key| key == name);
    }

    /// Whether the task of this name has not ended yet.
    pub(super) fn is_running(&self, name: &str) -> bool {
        self.running.has(name)
    }

    /// Why the journal was not written.
    pub(super) fn journal_problem(&self) -> String {
        self.journal_fails.clone().unwrap_or_else(|| "it was not written".to_owned())
    }
}

/// The forecasters fed from the history, once; then never again.
async fn warmed(warming: &mut Option<JoinHandle<Result<Warm, HistoryError>>>) -> Result<Warm, String> {
    let Some(task) = warming else { return std::future::pending().await };
    let ended = task.await;
    *warming = None;
    ended.map_err(chain)?.map_err(chain)
}

fn denied(refused: &Refused) -> Denied {
    match refused {
        Refused::Running { id, phase } => Denied::Running { id: id.clone(), phase: phase.name() },
        other => Denied::Conflict(other.to_string()),
    }
}
