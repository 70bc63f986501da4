//! What the slots of a resource keep of the primary's WAL, and what is done about it: an alarm, then the slot is dropped before
//! the disk is full, then, if the policy says so, the shadow is seeded anew.
//!
//! What a move that was undone left on the shadow goes, too, and what the streams of lost primaries left.
//!
//! `judge`, `may` and `left_over` decide; `SlotGuard` acts. Never drops a slot while a cutover could still need it: that is aborted
//! first, and past its commit nothing is dropped until it soaks. A way back that is lost right after the commit is seeded anew.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use migration::cutover::{Event, Phase, State};
use migration::policy::{Policy, Reseed, SlotRules};
use migration::units::{ByteCount, Zone};
use replicator::changes::{self, Reader};
use replicator::fence;
use replicator::postgres::slot::{self, Lane, SlotInfo};
use replicator::status::{Phase as StreamPhase, StreamStatus};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::Denied;
use super::behind::{Behind, Kept};
use super::databases::{Databases, Purpose};
use super::effects::Hands;
use super::seeds;
use super::view::ChangeStreamView;
use crate::causes::chain;
use crate::clock;
use crate::lock::lock;
use crate::store::Journal;
use crate::telemetry::metrics as telemetry;

/// Pause before a seed that failed is tried again by itself.
const AGAIN: Duration = Duration::from_secs(10);
/// What is done about slots that no stream and no move will use.
const TIDYING: &str = "slots that no stream reads any more are being dropped";
/// What it only looks at: nothing is wrong, and nothing need wait for it.
const LOOKING: &str = "whether the shadow must be made anew is being looked at";
/// How long one look may take.
const PATIENCE: Duration = Duration::from_secs(5);

type Seen = BTreeMap<String, Place>;

/// A zone's database.
struct Place {
    found: Result<Look, String>,
    /// What the last look that it answered showed.
    slots: Vec<SlotInfo>,
}

/// What one look at a database brought.
#[derive(Clone, Debug, Default)]
struct Look {
    slots: Vec<SlotInfo>,
    /// Who reads changes through the front.
    readers: Vec<Reader>,
    /// What a slot that is being made waits for.
    held_up: Vec<String>,
}

/// Looks at the slots of every zone's database, again and again.
#[derive(Clone, Default)]
pub struct SlotWatch(Arc<Mutex<Seen>>);

impl SlotWatch {
    /// Looks at each of `zones` once every `pace` until `stop`.
    pub fn start(
        resource: &str,
        zones: Vec<String>,
        databases: &Arc<Databases>,
        pace: Duration,
        stop: &CancellationToken,
    ) -> Self {
        let this = Self::default();
        for zone in zones {
            let (resource, databases, seen) = (resource.to_owned(), databases.clone(), this.0.clone());
            tokio::spawn(stop.clone().run_until_cancelled_owned(async move {
                loop {
                    let found = look(&resource, &zone, &databases).await;
                    let retained = |look: &Look| look.slots.iter().map(|slot| slot.retained_bytes).max();
                    let most = found.as_ref().ok().map(|look| retained(look).unwrap_or_default());
                    telemetry::slot_retained(&resource, &zone, most);
                    note(&mut lock(&seen), &zone, found);
                    tokio::time::sleep(pace).await;
                }
            }));
        }
        this
    }

    fn of(&self, zone: &str) -> Option<Vec<SlotInfo>> {
        lock(&self.0).get(zone)?.found.as_ref().ok().map(|look| look.slots.clone())
    }

    /// What a zone's database keeps for one of these slots, the one that keeps most.
    fn kept(&self, zone: &str, names: &[String]) -> Option<Kept> {
        let seen = lock(&self.0);
        let place = seen.get(zone)?;
        let ours = place.slots.iter().filter(|slot| names.contains(&slot.name));
        let bytes = ours.map(|slot| slot.unconfirmed_bytes).max()?;
        Some(Kept { bytes, current: place.found.is_ok() })
    }

    fn readers(&self, zone: &str) -> Vec<Reader> {
        let seen = lock(&self.0);
        seen.get(zone)
            .and_then(|place| place.found.as_ref().ok())
            .map(|look| look.readers.clone())
            .unwrap_or_default()
    }

    /// A line for each slot that is being made and waits.
    fn held_up(&self) -> Vec<String> {
        let seen = lock(&self.0);
        let waiting = seen.iter().filter_map(|(zone, look)| Some((zone, look.found.as_ref().ok()?)));
        let line = |zone: &String, what: &String| {
            format!(
                "a slot in {zone} cannot be made before what has begun there is over: it waits for {what}"
            )
        };
        waiting.flat_map(|(zone, look)| look.held_up.iter().map(move |what| line(zone, what))).collect()
    }
}

fn note(seen: &mut Seen, zone: &str, found: Result<Look, String>) {
    let before = seen.remove(zone).map(|place| place.slots).unwrap_or_default();
    let slots = found.as_ref().map_or(before, |look| look.slots.clone());
    seen.insert(zone.to_owned(), Place { found, slots });
}

async fn look(resource: &str, zone: &str, databases: &Databases) -> Result<Look, String> {
    let look = async {
        let client = databases.get(zone, Purpose::Examine).await.map_err(chain)?;
        let slots = slot::slots_of(&client, resource).await.map_err(chain)?;
        let readers = changes::readers(&client, resource).await.map_err(chain)?;
        Ok(Look { slots, readers, held_up: slot::held_up(&client).await.map_err(chain)? })
    };
    let found = tokio::time::timeout(PATIENCE, look).await;
    if !matches!(found, Ok(Ok(_))) {
        databases.forget(zone, Purpose::Examine).await;
    }
    found.unwrap_or_else(|_| Err(format!("no answer within {PATIENCE:?}")))
}

/// How much a server's slots keep, against the policy.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Standing {
    Fine,
    /// Over the alarm's share.
    Alarm(String),
    /// Over the budget.
    Over(String),
    /// The server took its WAL away already.
    Lost(String),
}

fn judge(slots: &[SlotInfo], rules: &SlotRules, zone: &str) -> Standing {
    if let Some((lost, why)) = slots.iter().find_map(|slot| Some((slot, slot.lost()?))) {
        return Standing::Lost(format!("slot {} on {zone} is lost: {why}", lost.name));
    }
    let Some(most) = slots.iter().max_by_key(|slot| slot.retained_bytes) else { return Standing::Fine };
    let kept = ByteCount(most.retained_bytes);
    let (name, budget) = (&most.name, rules.budget);
    if kept > budget {
        Standing::Over(format!("slot {name} keeps {kept} of WAL on {zone}, over its budget of {budget}"))
    } else if kept >= rules.alarm_at() {
        Standing::Alarm(format!(
            "slot {name} keeps {kept} of WAL on {zone}, over {} of its budget of {budget}: unless the stream catches up, it \
             will be dropped",
            rules.alarm
        ))
    } else {
        Standing::Fine
    }
}

/// The slots among a zone's that an undone move made for its way back, once it has had time to drop them itself, or that a stream had which a takeover
/// ended without its source: but those of the stream that there is. Where there is to be no shadow (`wanted`), all that its stream had, which could not be
/// ended then.
fn left_over(slots: &[SlotInfo], zone: &Zone, state: &State, lasted: Duration, wanted: bool) -> Vec<String> {
    let unwanted = state.phase == Phase::Idle && !wanted && lasted >= AGAIN;
    if !unwanted && !is_over(state, lasted) {
        return Vec::new();
    }
    let ours = slots.iter().filter(|slot| slot::is_slot_of(&slot.name, &state.resource));
    let left = ours.filter(|slot| unwanted || *zone != state.primary || !is_of_stream(slot, state));
    left.map(|slot| slot.name.clone()).collect()
}

/// Whether a slot on the primary is of the stream that there is.
fn is_of_stream(slot: &SlotInfo, state: &State) -> bool {
    slot::generation_of(&slot.name, &state.resource) == Some(state.generation.0)
}

/// An undone move has had time to drop what it made: its phase has `lasted` so long. After a way back that was undone the soak before it goes on,
/// whose own time began long before.
fn is_over(state: &State, lasted: Duration) -> bool {
    let follows = state.phase == if state.run.is_some() { Phase::Soaking } else { Phase::Shadowing };
    follows && lasted >= AGAIN
}

/// What may be done about a slot now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum May {
    Drop,
    /// The same, but what is lost is seeded anew later: the stream before has not ended.
    GiveUp,
    /// Not before the cutover under way is undone.
    Abort,
    Wait,
}

fn may(state: &State) -> May {
    match (&state.run, state.phase) {
        // Where the way back is lost, to seed the old primary anew is what can end a run that was released.
        (None, _) | (Some(_), Phase::Soaking | Phase::Released) => May::Drop,
        (Some(_), Phase::Watching) => May::GiveUp,
        (Some(_), phase) if phase != Phase::Aborting && phase.may_abort() => May::Abort,
        (Some(_), _) => May::Wait,
    }
}

/// Drops slots that keep too much, and orders new seeds.
pub(super) struct SlotGuard {
    watch: SlotWatch,
    alarm: Option<String>,
    failed: Option<String>,
    work: Option<(&'static str, oneshot::Receiver<Done>)>,
    /// It was looked, and the stream cannot go on.
    must: bool,
    /// When the phase that there is was entered.
    entered: Instant,
    /// When the shadow was last seeded anew, and when that was last tried in vain.
    seeded: Option<Instant>,
    tried: Option<Instant>,
    /// When what an undone move left was last seen to, and why it is still there.
    tidied: Option<Instant>,
    untidy: Option<String>,
}

impl SlotGuard {
    /// Knows when the shadow was last seeded anew.
    pub(super) fn new(watch: SlotWatch, journal: &Journal, resource: &str) -> Self {
        Self {
            watch,
            alarm: None,
            failed: None,
            work: None,
            must: false,
            entered: clock::monotonic(),
            seeded: seeds::of(journal, resource).remove(&None),
            tried: None,
            tidied: None,
            untidy: None,
        }
    }

    /// Another phase begins.
    pub(super) fn phase_begins(&mut self) {
        self.entered = clock::monotonic();
    }

    fn lasted(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.entered)
    }

    /// Looks at the primary's slots and does what has to be done. An event is for the machine: the run must be undone first.
    pub(super) fn step(&mut self, hands: &Arc<Hands>, state: &State, now: Instant) -> Option<Event> {
        self.settle(now);
        // Of what was then: a move may have begun since.
        let must = std::mem::take(&mut self.must);
        let policy = &hands.policy();
        let mut slots = self.watch.of(&state.primary.0)?;
        // What others keep goes with them: to give this stream up would be for nothing.
        slots.retain(|slot| is_of_stream(slot, state));
        let standing = judge(&slots, &policy.slot, &state.primary.0);
        let told = self.alarm.is_some();
        self.alarm = match &standing {
            Standing::Fine => None,
            Standing::Alarm(why) | Standing::Over(why) | Standing::Lost(why) => Some(why.clone()),
        };
        if let Some(why) = self.alarm.as_ref().filter(|_| !told) {
            tracing::warn!(resource = %state.resource, %why, "replication slot");
        }
        if self.work.is_some() {
            return None;
        }
        let why = match standing {
            Standing::Over(why) | Standing::Lost(why) => why,
            Standing::Fine | Standing::Alarm(_) => {
                let main = slot::slot_name(&state.resource, state.generation.0);
                if slots.iter().all(|slot| slot.name != main) && self.due(policy, state, now) {
                    self.begin(hands, state, if must { Work::Seed } else { Work::Look });
                } else {
                    self.tidy(hands, state, now);
                }
                return None;
            }
        };
        match may(state) {
            May::Wait => None,
            May::Abort => Some(Event::AbortRequested { by: format!("the slot guard: {why}") }),
            May::Drop | May::GiveUp => {
                tracing::error!(resource = %state.resource, %why, "the slot is dropped: the shadow must be seeded anew");
                self.begin(hands, state, Work::GiveUp(why));
                None
            }
        }
    }

    /// An undone move drops the slots of its way back, unless the shadow could not be reached then, or this process ended. Of a takeover, those of the
    /// lost primary are there when that is back.
    fn tidy(&mut self, hands: &Arc<Hands>, state: &State, now: Instant) {
        let mut left = Vec::new();
        let wanted = hands.policy().shadow_enabled;
        for zone in [&state.primary, &state.shadow] {
            let slots = self.watch.of(&zone.0).unwrap_or_default();
            let slots = left_over(&slots, zone, state, self.lasted(now), wanted);
            if !slots.is_empty() {
                left.push((zone.clone(), slots));
            }
        }
        if left.is_empty() {
            if self.watch.of(&state.shadow.0).is_some() {
                self.untidy = None;
            }
        } else if self.tidied.is_none_or(|at| now.duration_since(at) >= AGAIN) {
            self.tidied = Some(now);
            for (zone, slots) in &left {
                tracing::warn!(resource = %state.resource, %zone, slots = slots.join(", "), TIDYING);
            }
            self.begin(hands, state, Work::Tidy(left));
        }
    }

    /// It was looked, and nothing of an undone move's way back is left at the shadow.
    pub(super) fn is_tidy(&self, state: &State, now: Instant) -> bool {
        let (slots, lasted) = (self.watch.of(&state.shadow.0), self.lasted(now));
        is_over(state, lasted)
            && slots.is_some_and(|slots| left_over(&slots, &state.shadow, state, lasted, true).is_empty())
    }

    fn due(&self, policy: &Policy, state: &State, now: Instant) -> bool {
        policy.slot.reseed == Reseed::Auto
            && may(state) == May::Drop
            && state.phase != Phase::Idle
            && self.seeded.is_none_or(|at| now.duration_since(at) >= policy.cooldown)
            && self.tried.is_none_or(|at| now.duration_since(at) >= AGAIN)
    }

    /// An operator orders a new seed.
    pub(super) fn reseed(&mut self, hands: &Arc<Hands>, state: &State, by: &str) -> Result<(), Denied> {
        if let Some(run) = state.run.as_ref().filter(|_| may(state) != May::Drop) {
            return Err(Denied::Running { id: run.id.clone(), phase: state.phase.name() });
        }
        if state.phase == Phase::Idle {
            return Err(Denied::Conflict("the resource has no shadow".into()));
        }
        if !hands.resource.load().has_database() {
            return Err(Denied::Conflict("the resource has no database: there is nothing to seed".into()));
        }
        self.free()?;
        tracing::warn!(resource = %state.resource, shadow = %state.shadow, by, "the shadow is seeded anew");
        self.begin(hands, state, Work::Seed);
        Ok(())
    }

    /// Nothing may move while the shadow is being emptied.
    pub(super) fn free(&mut self) -> Result<(), Denied> {
        match self.busy() {
            Some(what) => Err(Denied::Conflict(format!("{what}: wait until that is done"))),
            None => Ok(()),
        }
    }

    /// What is being done that a move would have to wait for.
    pub(super) fn busy(&mut self) -> Option<&'static str> {
        self.settle(clock::monotonic());
        self.work.as_ref().map(|(what, _)| *what).filter(|what| *what != LOOKING)
    }

    fn begin(&mut self, hands: &Arc<Hands>, state: &State, work: Work) {
        let (done, answer) = oneshot::channel();
        self.work = Some((work.name(), answer));
        let (hands, state) = (hands.clone(), state.clone());
        tokio::spawn(async move {
            let outcome = work.perform(&hands, &state).await;
            // The guard only goes away with the controller.
            let _ = done.send(outcome);
        });
    }

    fn settle(&mut self, now: Instant) {
        let Some((what, answer)) = &mut self.work else { return };
        match answer.try_recv() {
            Err(oneshot::error::TryRecvError::Empty) => return,
            Ok(answer) if *what == TIDYING => {
                self.untidy = answer.err().map(|why| format!("{TIDYING}: {why}"));
            }
            Ok(Ok(Some(true))) if *what == LOOKING => self.must = true,
            Ok(Ok(seeded)) => {
                self.failed = None;
                if seeded == Some(true) {
                    self.seeded = Some(now);
                } else if seeded == Some(false) {
                    // Looked at, and not for Godwit to do: an operator finds it free meanwhile.
                    self.tried = Some(now);
                }
            }
            Ok(Err(why)) => {
                tracing::error!(%why, what, "failed");
                self.failed = Some(format!("{what}: {why}"));
                self.tried = Some(now);
            }
            Err(oneshot::error::TryRecvError::Closed) => self.failed = Some(format!("{what}: it broke off")),
        }
        self.work = None;
    }

    /// Who reads the service's changes through the front, and how far each is.
    pub(super) fn readers(&self, primary: &str) -> Vec<ChangeStreamView> {
        self.watch.readers(primary).into_iter().map(ChangeStreamView::of).collect()
    }

    /// How far the shadow is behind in these lanes, of which `status` tells.
    pub(super) fn behind(&self, state: &State, lanes: &[Lane], status: Option<&StreamStatus>) -> Behind {
        let names: Vec<_> =
            lanes.iter().map(|lane| lane.slot_name(&state.resource, state.generation.0)).collect();
        let kept = self.watch.kept(&state.primary.0, &names);
        Behind::of(status, kept, clock::monotonic(), clock::now())
    }

    /// Why no move is made while readers of changes have not come up to the last one, if it is so.
    pub(super) fn unread(&self, primary: &str) -> Option<String> {
        let readers = self.watch.readers(primary).into_iter();
        let unread: Vec<_> = readers.filter(|reader| !reader.passed).map(|reader| reader.slot).collect();
        changes::unread(&unread)
    }

    /// In words for an operator.
    pub(super) fn problems(&self, hands: &Hands, state: &State) -> Vec<String> {
        let generation = state.generation;
        let unread = self.unread(&state.primary.0).map(|what| format!("not migratable: {what}"));
        let given_up = hands.streams.given_up(generation);
        let seeding = self.work.as_ref().filter(|(what, _)| *what != LOOKING);
        let seeding = seeding.map(|(what, _)| format!("{what} …"));
        // One that is under way, or over, makes good what failed of an earlier one.
        let phase = hands.streams.status(generation).map(|(.., status)| status.phase);
        let is_seeded = matches!(phase, Some(StreamPhase::Copying { .. } | StreamPhase::Streaming));
        let failed =
            self.failed.clone().filter(|failed| !(is_seeded && failed.starts_with(Work::Seed.name())));
        let untidy = self.untidy.clone();
        let own = [self.alarm.clone(), given_up, failed, untidy, seeding, unread].into_iter().flatten();
        own.chain(self.watch.held_up()).collect()
    }
}

/// Whether the shadow was seeded, or must be; none: that was not the question.
type Done = Result<Option<bool>, String>;

/// What runs beside the controller.
enum Work {
    /// Drop the slots, with the reason.
    GiveUp(String),
    /// Drop slots that are left over, by zone.
    Tidy(Vec<(Zone, Vec<String>)>),
    /// Seed the shadow anew.
    Seed,
    /// Look whether it must be: the stream cannot go on, and the source is the right one.
    Look,
}

impl Work {
    fn name(&self) -> &'static str {
        match self {
            Self::GiveUp(_) => "the slot is being dropped",
            Self::Tidy(_) => TIDYING,
            Self::Seed => "the shadow is being seeded anew",
            Self::Look => LOOKING,
        }
    }

    async fn perform(&self, hands: &Hands, state: &State) -> Done {
        let (streams, generation) = (&hands.streams, state.generation);
        match self {
            Self::GiveUp(why) => {
                let (resource, shadow) = (&state.resource, &state.shadow);
                let why = format!(
                    "{why}; it was dropped: the shadow in {shadow} must be seeded anew (godwit reseed {resource})"
                );
                return streams.give_up(generation, &state.primary, why).await.map(|()| None);
            }
            Self::Tidy(left) => {
                let mut done = Ok(None);
                for (zone, slots) in left {
                    let dropping = async {
                        let client = hands.control(zone).await?;
                        let holder = hands.holder();
                        let dropped =
                            fence::drop_left_over(&client, &state.resource, generation.0, holder, slots);
                        dropped.await.map_err(chain)
                    };
                    done = done.and(streams.bounded(dropping).await.map(|()| None));
                }
                return done;
            }
            // What a lost primary has, and nobody else, is for a person to give up.
            Self::Look => {
                let lost = hands.journal.is_lost(&state.resource, &state.shadow, generation);
                let must = !lost.map_err(chain)?
                    && streams.cannot_go_on(generation, &state.primary, &state.shadow).await?;
                return Ok(Some(must));
            }
            Self::Seed => {}
        }
        let again = |why| format!("{why}; once that is mended: godwit reseed {}", state.resource);
        streams.reseed(generation, &state.primary, &state.shadow).await.map_err(again)?;
        if let Err(error) = hands.journal.note_seeded(&state.resource, generation) {
            tracing::warn!(error = chain(error), "that the shadow was seeded anew is not in the history");
        }
        seeds::note(&hands.journal, &state.resource, None);
        hands.report(None, Event::StreamUp);
        Ok(Some(true))
    }
}

/// Whose old primary, its shadow, soaks after a move.
#[cfg(test)]
pub(super) fn soaking(state: State) -> State {
    use migration::cutover::{Limits, Run};
    use migration::policy::{Policy, PolicyParts};
    let limits = Limits::of(&Policy::new(PolicyParts::default()).expect("defaults"));
    let at = state.since;
    let state = state.undoing("m1", limits, "x", at);
    let run = state.run.clone().map(|run| Run {
        from: state.shadow.clone(),
        to: state.primary.clone(),
        generation: state.generation,
        held_since: Some(at),
        fence: Some(migration::units::Position(1)),
        guarded: true,
        reverse_slot: true,
        caught_up: true,
        sequenced: true,
        opened: true,
        swapped: true,
        reversed: true,
        aborted: None,
        lift_fence: false,
        ..run
    });
    State { phase: Phase::Soaking, run, ..state }
}

#[cfg(test)]
mod tests {
    use migration::units::{Ratio, Timestamp};

    use super::*;

    const MIB: u64 = 1 << 20;

    fn slot(name: &str, kept: u64, status: &str) -> SlotInfo {
        SlotInfo {
            name: name.into(),
            active: false,
            confirmed_flush: None,
            restart: None,
            retained_bytes: kept,
            unconfirmed_bytes: kept,
            wal_status: status.into(),
            invalidated: None,
        }
    }

    #[test]
    fn why_a_slot_is_lost_is_told_as_the_server_says_it() {
        let rules = SlotRules {
            budget: ByteCount(1),
            alarm: Ratio::new(0.5).expect("a share"),
            reseed: Reseed::Manual,
        };
        let judged = |reason: Option<&str>| {
            let invalidated = reason.map(str::to_owned);
            match judge(&[SlotInfo { invalidated, ..slot("s", 0, "lost") }], &rules, "far") {
                Standing::Lost(why) => why,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(judged(None), "slot s on far is lost: its WAL is over max_slot_wal_keep_size");
        assert!(judged(Some("idle_timeout")).contains("idle_replication_slot_timeout"));
        assert!(judged(Some("wal_level_insufficient")).ends_with("wal_level_insufficient"));
    }

    #[test]
    fn a_restart_does_not_make_the_next_seed_come_sooner() {
        use migration::policy::PolicyParts;
        let directory = tempfile::tempdir().expect("temporary directory");
        let journal = Journal::open(directory.path()).expect("open");
        let slot = SlotRules { reseed: Reseed::Auto, ..PolicyParts::default().slot };
        let policy = Policy::new(PolicyParts { slot, ..PolicyParts::default() }).expect("a policy");
        let mut state = State::first("orders", "a".into(), "b".into(), Timestamp(1));
        state.phase = Phase::Shadowing;
        let restarted = |journal: &Journal| SlotGuard::new(SlotWatch::default(), journal, "orders");
        let begun = clock::monotonic();
        for (resource, table) in [("other", None), ("orders", Some("public.items"))] {
            seeds::note(&journal, resource, table);
        }
        assert!(restarted(&journal).due(&policy, &state, begun), "another was seeded");
        seeds::note(&journal, "orders", None);
        let guard = restarted(&journal);
        let ends = clock::monotonic() + policy.cooldown;
        assert!(!guard.due(&policy, &state, begun));
        assert!(guard.due(&policy, &state, ends));
        // As a clock has it that was set back since.
        let ahead = clock::now().after(policy.cooldown * 10);
        journal.note_seed("orders", None, ahead).expect("write");
        let guard = restarted(&journal);
        assert!(!guard.due(&policy, &state, begun));
        assert!(guard.due(&policy, &state, clock::monotonic() + policy.cooldown));
    }

    #[test]
    fn a_look_at_the_shadow_stops_no_move() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let journal = Journal::open(directory.path()).expect("open");
        let mut guard = SlotGuard::new(SlotWatch::default(), &journal, "orders");
        let (done, answer) = oneshot::channel();
        guard.work = Some((Work::Look.name(), answer));
        assert!(guard.free().is_ok() && guard.busy().is_none(), "it looks");
        done.send(Ok(Some(true))).expect("the guard");
        assert!(guard.free().is_ok() && guard.must && guard.work.is_none());
        assert!(guard.seeded.is_none(), "nothing was seeded yet");
        let (done, answer) = oneshot::channel();
        guard.work = Some((Work::Seed.name(), answer));
        assert_eq!(
            guard.busy(),
            Some("the shadow is being seeded anew"),
            "it stands in the way, and says so"
        );
        let Err(Denied::Conflict(why)) = guard.free() else { panic!("it seeds") };
        assert!(why.starts_with("the shadow is being seeded anew: "), "{why}");
        done.send(Ok(Some(true))).expect("the guard");
        assert!(guard.free().is_ok() && guard.seeded.is_some());
    }

    #[test]
    fn the_slot_that_keeps_most_decides() {
        let rules = SlotRules {
            budget: ByteCount(100 * MIB),
            alarm: Ratio::new(0.5).expect("a share"),
            reseed: Reseed::Manual,
        };
        let judged = |slots: &[SlotInfo]| judge(slots, &rules, "eu-west");
        let main = |kept| slot("godwit_orders_g1", kept, "reserved");
        assert_eq!(judged(&[]), Standing::Fine);
        assert_eq!(judged(&[main(50 * MIB - 1)]), Standing::Fine);
        assert!(matches!(judged(&[main(50 * MIB)]), Standing::Alarm(_)));
        let critical = slot("godwit_orders_g1_critical", 101 * MIB, "extended");
        let Standing::Over(why) = judged(&[main(MIB), critical]) else { panic!("over its budget") };
        assert_eq!(
            why,
            "slot godwit_orders_g1_critical keeps 101MiB of WAL on eu-west, over its budget of 100MiB"
        );
        assert!(matches!(judged(&[main(MIB), slot("godwit_orders_g1", 0, "lost")]), Standing::Lost(_)));
    }

    #[test]
    fn what_is_left_over_is_of_no_stream_that_there_is() {
        let slots = [
            slot("godwit_orders_g1", 0, "reserved"),
            slot("godwit_orders_g2", 0, "reserved"),
            slot("godwit_orders_g2_critical", 0, "lost"),
            slot("godwit_orders_g3", 0, "reserved"),
            slot("godwit_other_g4", 0, "reserved"),
            slot("readers", 0, "reserved"),
        ];
        let mut state = State::first("orders", "a".into(), "b".into(), Timestamp(1_000));
        state.generation = migration::units::Generation(2);
        let (here, there) = (state.primary.clone(), state.shadow.clone());
        let left =
            |zone: &Zone, state: &State, lasted, wanted| left_over(&slots, zone, state, lasted, wanted);
        let all = ["godwit_orders_g1", "godwit_orders_g2", "godwit_orders_g2_critical", "godwit_orders_g3"];
        assert!(left(&there, &state, AGAIN, true).is_empty(), "the shadow is about to begin");
        assert!(left(&here, &state, AGAIN / 2, false).is_empty(), "it may be about to end");
        for zone in [&here, &there] {
            assert_eq!(left(zone, &state, AGAIN, false), all, "there is to be no shadow");
        }
        state.phase = Phase::Shadowing;
        assert!(left(&there, &state, AGAIN / 2, true).is_empty(), "it may be about to drop them");
        assert_eq!(left(&there, &state, AGAIN, true), all, "no stream begins there");
        assert_eq!(left(&here, &state, AGAIN, true), ["godwit_orders_g1", "godwit_orders_g3"]);
        // Of a way back, too, after which an old primary soaks on; not while one is under way.
        let limits = migration::cutover::Limits::of(
            &Policy::new(migration::policy::PolicyParts::default()).expect("defaults"),
        );
        let mut state = state.undoing("m1", limits, "x", Timestamp(1_000));
        assert!(left(&there, &state, AGAIN, true).is_empty());
        state.phase = Phase::Soaking;
        assert_eq!(left(&there, &state, AGAIN, true), all);
    }

    #[test]
    fn a_way_back_that_was_undone_has_time_to_drop_its_slots_although_the_soak_is_old() {
        use migration::cutover::Soak;
        let directory = tempfile::tempdir().expect("temporary directory");
        let journal = Journal::open(directory.path()).expect("open");
        let soaking = soaking(State::first("orders", "a".into(), "b".into(), Timestamp(1)));
        let run = soaking.run.clone().expect("a run");
        let mut state = soaking.undoing("m2", run.limits, "x", Timestamp(86_400_000));
        state.soaking = Some(Soak { run, since: Timestamp(1) });
        for event in [Event::FenceLifted, Event::GateOpened] {
            (state, _) =
                migration::cutover::step(&state, event, Timestamp(86_400_000)).expect("it is undone");
        }
        assert_eq!((state.phase, state.since), (Phase::Soaking, Timestamp(2)));
        let mut guard = SlotGuard::new(SlotWatch::default(), &journal, "orders");
        guard.phase_begins();
        let look = |slots: Vec<SlotInfo>| Ok(Look { slots, ..Look::default() });
        note(&mut lock(&guard.watch.0), "b", look(Vec::new()));
        assert!(!guard.is_tidy(&state, guard.entered), "it is only now being dropped");
        let later = guard.entered + AGAIN;
        assert!(guard.is_tidy(&state, later));
        note(&mut lock(&guard.watch.0), "b", look(vec![slot("godwit_orders_g2", 0, "reserved")]));
        assert!(!guard.is_tidy(&state, later));
    }

    #[test]
    fn a_stream_is_given_up_for_its_own_slots_alone() {
        let mut state = State::first("orders", "a".into(), "b".into(), Timestamp(1_000));
        state.generation = migration::units::Generation(3);
        let of = |name: &str| is_of_stream(&slot(name, 0, "lost"), &state);
        assert!(of("godwit_orders_g3") && of("godwit_orders_g3_critical"));
        assert!(!["godwit_orders_g1", "godwit_orders_g1_critical", "godwit_orders_g33"].into_iter().any(of));
    }

    #[test]
    fn no_slot_is_dropped_under_a_cutover() {
        use migration::cutover::{Limits, Trigger, step};
        let now = Timestamp(1);
        let state = State::first("orders", "a".into(), "b".into(), now);
        assert_eq!(may(&state), May::Drop);
        let policy = Policy::new(migration::policy::PolicyParts::default()).expect("defaults");
        let (state, _) = step(&state, Event::ShadowEnabled, now).expect("shadow");
        let (state, _) = step(&state, Event::StreamUp, now).expect("up");
        let request = Event::MigrateRequested {
            id: "m".into(),
            to: "b".into(),
            trigger: Trigger::Score,
            limits: Limits::of(&policy),
        };
        let (mut state, _) = step(&state, request, now).expect("requested");
        for (phase, allowed) in [
            (Phase::Requested, May::Abort),
            (Phase::Armed, May::Abort),
            (Phase::Sequenced, May::Abort),
            (Phase::Aborting, May::Wait),
            (Phase::Committed, May::Wait),
            (Phase::Released, May::Drop),
            (Phase::Watching, May::GiveUp),
            (Phase::Soaking, May::Drop),
        ] {
            state.phase = phase;
            assert_eq!(may(&state), allowed, "{phase:?}");
        }
    }
}
