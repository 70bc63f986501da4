//! What becomes of an old primary after its soak: kept as the shadow, or given back. And the end of a shadow whose resource is dropped.
//!
//! Giving it back is refused unless it is Godwit's to end (its driver made it), both sides were compared and are equal, and
//! nobody is connected to it. Until then it stays the shadow, and the reason is among the problems. What was decided is
//! written down first: after a restart it goes on. A shadow is looked at first, and loses its stream only when it may be ended.

use std::time::Duration;

use migration::cutover::{Capacity, Effect, Event, Outcome, Phase, Run, State};
use migration::policy::AfterRetire;
use migration::units::Generation;
use replicator::changes;
use tokio::sync::oneshot;
use tokio_postgres::Client;

use super::Denied;
use super::databases::Purpose;
use super::effects::Hands;
use super::machine::Machine;
use super::reconfigure::ADJUST_SHADOW;
use crate::causes::chain;
use crate::drivers::Operation;
use crate::store::{Journal, RetirementRow, StoreError};

/// The task that looks whether the shadow may be ended, or ends it.
const END: &str = "end_shadow";
/// Between two attempts: at first, and at most. Each may take the shadow's workers away for a moment.
const AGAIN: (Duration, Duration) = (Duration::from_secs(5), Duration::from_mins(5));
/// How long sessions of workers that ended may take to go.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two looks at who is connected.
const LOOK: Duration = Duration::from_millis(50);

/// What tasks beside the machine's effects found out.
#[derive(Debug)]
pub(super) enum Aside {
    /// The shadow of this generation may be ended, or why not.
    MayEnd(Generation, Result<(), String>),
    /// It was, or was not.
    Ended(Result<(), String>),
    /// An effect of this name was carried out.
    Done(&'static str),
}

/// A retirement under way.
#[derive(Debug, Default)]
pub(super) struct Retiring {
    /// What is to be given back; none: nothing.
    pub(super) row: Option<RetirementRow>,
    last: Option<std::time::Instant>,
    /// How often it was tried in vain.
    failed: u32,
    /// Why it was not, the last time.
    problem: Option<String>,
    /// Why the old primary of this generation's move is not given back: another node led then, and was lost.
    kept: Option<(Generation, String)>,
    /// Who drops the resource, and waits for the end of its shadow.
    leaving: Option<oneshot::Sender<Result<(), Denied>>>,
}

impl Retiring {
    /// Between the last attempt and the next one.
    fn pause(&self) -> Duration {
        (AGAIN.0 * 2_u32.saturating_pow(self.failed.saturating_sub(1))).min(AGAIN.1)
    }

    fn has_failed(&mut self, why: String) {
        self.failed = self.failed.saturating_add(1);
        self.problem = Some(why);
    }
}

impl Machine {
    /// What is given back when these migrations end so: the old primary of one that retires it, if the policy says it and both sides
    /// were equal. Or why it is kept after all.
    pub(super) fn gives_back(&self, ends: &[(&str, &Outcome)]) -> Result<Option<RetirementRow>, String> {
        let retires = |run: &&Run| ends.contains(&(&*run.id, &Outcome::Retired));
        let Some(run) = self.state.run.as_ref().filter(retires).filter(|_| self.gives_back_at_all()) else {
            return Ok(None);
        };
        if !run.verified {
            return Err(format!(
                "{} is kept: the comparison after {} did not find both sides equal",
                run.from, run.id
            ));
        }
        Ok(Some(RetirementRow {
            resource: self.state.resource.clone(),
            zone: run.from.to_string(),
            run: run.id.clone(),
            done: false,
        }))
    }

    fn gives_back_at_all(&self) -> bool {
        self.hands.policy().after_retire == AfterRetire::Deprovision
    }

    /// The journal knows what is given back, if a migration ended so.
    pub(super) fn retire(&mut self, gives_back: Result<Option<RetirementRow>, String>) {
        match gives_back {
            Ok(None) => {}
            Ok(row) => self.retiring = Retiring { row, ..Retiring::default() },
            Err(why) => {
                tracing::warn!(resource = %self.state.resource, %why, "old primary not given back");
                self.retiring.problem = Some(why);
            }
        }
    }

    /// The next attempt, when it is time for one.
    pub(super) fn retire_step(&mut self) {
        if self.state.run.is_some() || !self.is_due() {
            return;
        }
        if !self.gives_back_at_all() {
            // The policy says otherwise by now.
            return self.forget_retirement_or_warn();
        }
        let now = crate::clock::monotonic();
        let pause = self.retiring.pause();
        let soon = self.retiring.last.is_some_and(|last| now.duration_since(last) < pause);
        // What is under way ends by itself: another attempt in its place would never let it say what it found.
        if soon || self.is_running(END) {
            return;
        }
        self.examine_end();
    }

    /// A migration begins, and wants the shadow with all of its workers. What was asked of the driver before is done before: it is
    /// asked for nothing else from here on.
    pub(super) fn do_not_end(&mut self, run: &Run, phase: Phase) {
        self.abort_task(END);
        self.abort_task(ADJUST_SHADOW);
        if let Some(reply) = self.retiring.leaving.take() {
            let _ = reply.send(Err(Denied::Running { id: run.id.clone(), phase: phase.name() }));
        }
    }

    /// Whether the shadow is an old primary that is to be given back, and was not yet.
    fn is_due(&self) -> bool {
        self.retiring.row.as_ref().is_some_and(|row| !row.done && *row.zone == *self.state.shadow.0)
    }

    /// Ends the shadow, since its resource is dropped: nothing is asked of a driver that it does not have.
    pub(super) fn end_for(&mut self, reply: oneshot::Sender<Result<(), Denied>>) {
        self.retiring.leaving = Some(reply);
        if self.hands.drivers.contains_key(&*self.state.shadow.0) {
            self.examine_end();
        } else {
            self.end_if(self.state.generation, Ok(()));
        }
    }

    /// Looks whether the shadow may be ended.
    fn examine_end(&mut self) {
        self.retiring.last = Some(crate::clock::monotonic());
        let (hands, state, tell) = (self.hands.clone(), self.state.clone(), self.asides.clone());
        let task = tokio::spawn(async move {
            let checked = hands.may_end(&state).await;
            // The controller only goes away when the process does.
            let _ = tell.send(Aside::MayEnd(state.generation, checked));
        });
        self.replace_task(END, task);
    }

    /// The shadow may be ended or may not: its stream ends and its placement, or both stay.
    fn end_if(&mut self, generation: Generation, checked: Result<(), String>) {
        // Who has gone away meanwhile drops nothing.
        self.retiring.leaving.take_if(|reply| reply.is_closed());
        if let Err(why) = checked {
            return self.not_ended(&why);
        }
        if self.state.run.is_some() || self.state.generation != generation {
            return;
        }
        if self.retiring.leaving.is_none() && !(self.is_due() && self.gives_back_at_all()) {
            // It stays after all, and its workers were ended to see who else is there.
            return self.adjust_shadow();
        }
        if self.state.phase != Phase::Idle {
            self.take(Event::ShadowDisabled);
        }
        if self.state.phase != Phase::Idle {
            let why = self.journal_problem();
            if let Some(reply) = self.retiring.leaving.take() {
                let _ = reply.send(Err(Denied::Journal(why)));
            }
            return;
        }
        let (hands, state, tell) = (self.hands.clone(), self.state.clone(), self.asides.clone());
        let task = tokio::spawn(async move {
            let _ = tell.send(Aside::Ended(hands.end_shadow(&state).await));
        });
        self.replace_task(END, task);
    }

    fn not_ended(&mut self, why: &str) {
        let zone = &self.state.shadow;
        if let Some(reply) = self.retiring.leaving.take() {
            let _ = reply.send(Err(Denied::Conflict(format!("{zone} is not deprovisioned: {why}"))));
        } else if self.retiring.row.is_some() {
            self.retiring.has_failed(format!("{zone} is kept: {why}"));
            self.publish();
        }
    }

    /// Takes what a task found out.
    pub(super) fn aside(&mut self, aside: Aside) {
        match aside {
            Aside::MayEnd(generation, checked) => self.end_if(generation, checked),
            Aside::Ended(done) => self.ended(done),
            Aside::Done(ADJUST_SHADOW) => self.is_thinned_out(),
            Aside::Done(effect) => self.is_no_problem(effect),
        }
    }

    /// A retirement that an earlier process began goes on, unless the service has moved again since.
    pub(super) fn retiring_from(journal: &Journal, state: &State) -> Retiring {
        let read = || {
            let Some(row) = journal.retirement(&state.resource)? else { return Ok(None) };
            let goes_on =
                row.done || journal.run(&row.run)?.is_some_and(|run| run.generation == state.generation.0);
            Ok::<_, StoreError>(goes_on.then_some(row))
        };
        let kept = || {
            let why = journal.why_unretired(state)?;
            Ok::<_, StoreError>(why.map(|why| (state.generation, format!("{} is kept: {why}", state.shadow))))
        };
        match read().and_then(|row| Ok((row, kept()?))) {
            Ok((row, kept)) => Retiring { row, kept, ..Retiring::default() },
            Err(error) => Retiring { problem: Some(chain(error)), ..Retiring::default() },
        }
    }

    /// The old primary was given back, or is about to be: no shadow is wanted until somebody says so.
    pub(super) fn given_up(&self) -> bool {
        self.retiring.row.as_ref().is_some_and(|row| row.done || self.gives_back_at_all())
    }

    fn ended(&mut self, done: Result<(), String>) {
        if let Some(reply) = self.retiring.leaving.take() {
            // Whoever has this name next has nothing to do with it.
            let done = done.map_err(Denied::Failed);
            if done.is_err() && self.hands.policy().shadow_enabled {
                // It stays, with its shadow.
                self.take(Event::ShadowEnabled);
            }
            let _ = reply.send(done.and_then(|()| self.forget_retirement().map_err(Denied::Journal)));
            return;
        }
        let Some(row) = self.retiring.row.as_mut() else { return };
        let over = RetirementRow { done: true, ..row.clone() };
        match done.and_then(|()| self.hands.journal.retire(&over).map_err(chain)) {
            Ok(()) => {
                tracing::info!(resource = %self.state.resource, zone = %self.state.shadow, "old primary given back");
                *row = over;
                self.retiring.problem = None;
            }
            Err(why) => self.retiring.has_failed(why),
        }
        self.publish();
    }

    /// A person wants a shadow after the old one was given back.
    pub(super) fn keep_a_shadow_again(&mut self) {
        self.abort_task(END);
        self.retiring.leaving = None;
        self.forget_retirement_or_warn();
    }

    fn forget_retirement(&mut self) -> Result<(), String> {
        let leaving = self.retiring.leaving.take();
        self.retiring = Retiring { leaving, ..Retiring::default() };
        self.hands.journal.forget_retirement(&self.state.resource).map_err(chain)
    }

    fn forget_retirement_or_warn(&mut self) {
        if let Err(why) = self.forget_retirement() {
            tracing::warn!(resource = %self.state.resource, %why, "the retirement is not forgotten");
        }
    }

    /// What is wrong with it, in words.
    pub(super) fn retirement_problem(&self) -> Option<String> {
        let kept = self.retiring.kept.as_ref().filter(|(of, _)| *of == self.state.generation);
        let kept = kept.filter(|_| self.gives_back_at_all()).map(|(_, why)| why);
        self.retiring.problem.as_ref().or(kept).cloned()
    }
}

impl Hands {
    /// Whether the shadow's placement may be ended now; in words why not.
    async fn may_end(&self, state: &State) -> Result<(), String> {
        let zone = &state.shadow;
        let Some(driver) = self.drivers.get(&*zone.0) else {
            return Err("no driver of Godwit's made it".into());
        };
        if let Some(front) = &self.front
            && *front.pool.load().zone == *zone.0
        {
            return Err("the front's pool is still there".into());
        }
        if !driver.does.provisioned().map_err(chain)? {
            // It has ended already.
            return Ok(());
        }
        if self.journal.is_lost(&state.resource, zone, state.generation).map_err(chain)? {
            let resource = &state.resource;
            return Err(format!(
                "it was lost as a primary, and has what nobody else has until godwit reseed {resource} empties it of that"
            ));
        }
        if !self.resource.load().has_database() {
            return Ok(());
        }
        if self.databases.settings(&zone.0).is_err() {
            // Its driver is still making it: nobody knows where it is.
            return Ok(());
        }
        // What is not known of either side is no reason to end anything.
        let zones = [&*state.primary.0, &*zone.0];
        let [primary, old] = self.databases.both(zones, Purpose::Control).await.map_err(chain)?;
        let unread = changes::settle(&primary, &old, &state.resource).await.map_err(chain)?;
        if !unread.is_empty() {
            return Err(format!("replication slot {} is not read up to the move", unread.join(", ")));
        }
        // Whose role is not the service's is none of its workers: they need not end for that to be seen.
        let settings = self.databases.settings(&zone.0).map_err(chain)?;
        let own = settings.dsn.get_user().unwrap_or_default();
        if !settings.app_roles.is_empty() {
            let found = strangers(&old, own, &settings.app_roles).await?;
            if !found.is_empty() {
                return Err(connected(&found));
            }
        }
        self.is_still_the_shadow(zone, state).await?;
        // Its own workers are connected, too: who is left when they have ended is somebody else.
        let scale = async |workers: u32| {
            let id = format!("quiesce-{}-{zone}-{workers}-{}", state.resource, crate::rng::id());
            driver.does.scale(&Operation { id, deadline: driver.deadline }, workers).await.map_err(chain)
        };
        let alone = match scale(0).await {
            Ok(_) => alone(&old, own).await,
            Err(why) => Err(why),
        };
        if alone.is_err()
            && let Err(why) = scale(self.workers(zone, Capacity::Shadow)).await
        {
            tracing::warn!(%zone, why, "workers were ended and not started again");
        }
        alone
    }

    /// Ends the stream to a shadow that [`Self::may_end`], and its placement.
    async fn end_shadow(&self, state: &State) -> Result<(), String> {
        let end = Effect::EndStream { generation: state.generation, source: state.primary.clone() };
        self.perform(&end, state).await?;
        let zone = &state.shadow;
        let Some(driver) = self.drivers.get(&*zone.0) else { return Ok(()) };
        self.is_still_the_shadow(zone, state).await?;
        let id = format!("deprovision-{}-{zone}-g{}-{}", state.resource, state.generation.0, state.since.0);
        let operation = Operation { id, deadline: driver.deadline };
        match driver.does.deprovision(&operation).await {
            // Nothing was ever made there.
            Err(crate::drivers::DriverError::NotProvisioned { .. }) => Ok(()),
            done => done.map_err(|error| format!("{zone} is not deprovisioned: {}", chain(error))),
        }?;
        self.databases.forget_zone(&zone.0).await;
        Ok(())
    }
}

/// Waits until nobody but Godwit is connected to this database, for a moment; in words who still is.
async fn alone(client: &Client, own: &str) -> Result<(), String> {
    let mut found = Vec::new();
    let looked = async {
        loop {
            found = strangers(client, own, &[]).await?;
            if found.is_empty() {
                return Ok::<_, String>(());
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    match tokio::time::timeout(PATIENCE, looked).await {
        Ok(done) => done,
        Err(_) if found.is_empty() => Err("its database does not say who is connected to it".to_owned()),
        Err(_) => Err(connected(&found)),
    }
}

fn connected(strangers: &[String]) -> String {
    format!("still connected to its database: {}", strangers.join(", "))
}

/// Sessions that are not Godwit's own, nor of these roles.
async fn strangers(client: &Client, own: &str, but: &[String]) -> Result<Vec<String>, String> {
    let rows = client
        .query(
            "SELECT DISTINCT coalesce(nullif(application_name, ''), usename::text, '?') || ' from ' ||
                    coalesce(client_addr::text, 'the machine itself')
               FROM pg_stat_activity
              WHERE datname = current_database() AND backend_type = 'client backend'
                AND NOT (usename = $1 AND application_name LIKE 'godwit%') AND usename <> ALL ($2)
              ORDER BY 1 LIMIT 5",
            &[&own, &but],
        )
        .await
        .map_err(|error| format!("its database does not say who is connected to it: {error}"))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

#[cfg(test)]
mod tests {
    use migration::cutover::{Limits, Trigger, step};
    use migration::policy::{Policy, PolicyParts};
    use migration::units::Timestamp;

    use super::*;
    use crate::store::Ended;

    #[test]
    fn what_cannot_be_given_back_is_tried_ever_more_rarely() {
        let mut retiring = Retiring::default();
        let mut pauses = Vec::new();
        for _ in 0..9 {
            retiring.has_failed("near is not deprovisioned: not today".into());
            pauses.push(retiring.pause().as_secs());
        }
        assert_eq!(pauses, [5, 10, 20, 40, 80, 160, 300, 300, 300]);
    }

    #[test]
    fn what_was_to_be_given_back_is_not_after_a_further_move() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let journal = Journal::open(directory.path()).expect("open");
        let policy = Policy::new(PolicyParts::default()).expect("the default is valid");
        let now = Timestamp(1);
        let mut state = State::first("orders", "a".into(), "b".into(), now);
        let request = Event::MigrateRequested {
            id: "m1".into(),
            to: "b".into(),
            trigger: Trigger::Operator("ann".into()),
            limits: Limits::of(&policy),
        };
        for event in [Event::ShadowEnabled, Event::StreamUp, request] {
            state = step(&state, event, now).expect("the straight road").0;
            journal.append(&state, "a step", now, None).expect("append");
        }
        let row =
            RetirementRow { resource: "orders".into(), zone: "a".into(), run: "m1".into(), done: false };
        let ended = Ended { run: "m1", outcome: &Outcome::Retired, retirement: Some(&row) };
        let moved = State {
            generation: Generation(2),
            primary: "b".into(),
            shadow: "a".into(),
            phase: Phase::Shadowing,
            run: None,
            ..state
        };
        journal.append(&moved, "OldPrimaryRetired", now, Some(ended)).expect("append");
        assert_eq!(Machine::retiring_from(&journal, &moved).row.as_ref(), Some(&row));
        // There and back: the same zone is the shadow, as another old primary.
        let later = State { generation: Generation(4), ..moved.clone() };
        assert_eq!(Machine::retiring_from(&journal, &later).row, None);
        // What is gone stays gone until somebody says otherwise.
        let done = RetirementRow { done: true, ..row };
        journal.retire(&done).expect("written");
        assert_eq!(Machine::retiring_from(&journal, &moved).row, Some(done));
    }
}
