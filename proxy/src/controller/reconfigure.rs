//! Other settings while the resource is led: the shadow on or off, which commits wait, how many workers.

use std::time::{Duration, Instant};

use migration::cutover::{Capacity, Effect, Event, Phase, Run, State};
use migration::policy::{MirrorRules, Policy};
use migration::units::{Generation, Zone};
use tokio::sync::oneshot;

use super::machine::Machine;
use super::retirement::Aside;
use super::{Denied, Persist};
use crate::clock;
use crate::config::model::Resource;
use crate::drivers::SET_BY_ANOTHER;
use crate::lock::lock;
use crate::telemetry::metrics as telemetry;

/// Keys of the tasks that bring workers to their numbers.
const ADJUST: &str = "adjust";
pub(super) const ADJUST_SHADOW: &str = "adjust_shadow";
/// Between two times that a primary's driver is asked for the workers that it should have: at first, and at most.
const FILL: (Duration, Duration) = (Duration::from_secs(20), Duration::from_mins(5));
/// How long a shadow may have more workers than it should: they may be ending, and its driver is asked every few seconds.
const CROWDED: Duration = Duration::from_secs(20);

/// What is known of a shadow with too many workers.
#[derive(Debug, Default)]
pub(super) struct Crowded {
    /// Since when it has them, or since its driver was last asked for fewer.
    since: Option<Instant>,
    /// How many it had and was to have when that was asked, and whether it was done.
    asked: Option<(u32, u32, bool)>,
    /// How often scaling it has failed, and when that was seen.
    failed: Option<(u32, Instant)>,
}

impl Crowded {
    /// Whether its driver is to be asked for fewer now. One that does so and says the same afterwards has its reasons, and is left alone.
    fn is_due(&mut self, has: u32, most: u32, now: Instant) -> bool {
        if let Some((had, was_to_have, true)) = self.asked {
            if (had, was_to_have) == (has, most) {
                return false;
            }
            self.calm();
        }
        let due = now.duration_since(*self.since.get_or_insert(now)) >= CROWDED;
        if due {
            (self.since, self.asked) = (Some(now), Some((has, most, false)));
        }
        due
    }

    /// It has no more than it should; whether it had.
    fn calm(&mut self) -> bool {
        let (since, asked) = (self.since.take(), self.asked.take());
        since.is_some() || asked.is_some()
    }

    fn has_failed(&mut self, times: u32, now: Instant) {
        if times == 0 {
            self.failed = None;
        } else if self.failed.is_none_or(|(before, _)| before != times) {
            self.failed = Some((times, now));
        }
    }

    /// Whether what its driver said when it was asked then comes after what failed.
    fn is_after(&self, looked: Instant) -> bool {
        self.failed.is_none_or(|(_, failed)| looked >= failed)
    }

    fn is_done(&mut self) {
        if let Some((.., done)) = &mut self.asked {
            *done = true;
        }
    }
}

/// What is known of the workers of a primary that took over.
#[derive(Debug, Default)]
pub(super) struct Staff {
    /// Of the generation in which it did.
    generation: Option<Generation>,
    /// Its driver has given it all that it should have.
    is_whole: bool,
    /// When that was last asked for, beside the takeover, or last refused.
    asked: Option<Instant>,
    /// How often.
    times: u32,
    /// Something else decides how many there are.
    is_contested: bool,
}

impl Staff {
    pub(super) fn of(generation: Generation, is_whole: bool) -> Self {
        Self { generation: Some(generation), is_whole, ..Self::default() }
    }

    fn lacks(&self, generation: Generation) -> bool {
        self.generation == Some(generation) && !self.is_whole
    }

    /// Whether its driver is to be asked for the rest now.
    fn is_due(&mut self, now: Instant) -> bool {
        let doublings = self.times.saturating_sub(1).min(8);
        let pause = (FILL.0 * 2_u32.pow(doublings)).min(FILL.1);
        let over = self.asked.is_none_or(|asked| now.duration_since(asked) >= pause);
        let due = over && !self.is_whole && !self.is_contested;
        if due {
            (self.asked, self.times) = (Some(now), self.times.saturating_add(1));
        }
        due
    }

    /// It did not give them, and said why.
    fn is_refused(&mut self, generation: Generation, why: &str, now: Instant) {
        if self.lacks(generation) {
            self.asked = Some(now);
            self.is_contested |= why.contains(SET_BY_ANOTHER);
        }
    }

    fn is_filled_up(&mut self, generation: Generation) {
        self.is_whole |= self.generation == Some(generation);
    }
}

impl Machine {
    /// Reads are mirrored while there is a shadow that follows, and to as many workers as it has.
    pub(super) fn aim_mirror(&self, rules: &MirrorRules) {
        let Some(front) = &self.hands.front else { return };
        let capacity = match self.state.phase {
            Phase::Shadowing | Phase::Requested => Some(Capacity::Shadow),
            Phase::Warm | Phase::Armed => Some(Capacity::Full),
            _ => None,
        };
        let zone = &self.state.shadow;
        let targets = capacity.map(|capacity| self.hands.upstreams(zone, capacity)).unwrap_or_default();
        front.mirror.aim(&zone.0, rules, targets, self.hands.endpoints.reach(&zone.0));
    }

    /// Takes these settings, or says why not now. A migration under way goes on with what it began with, but for its soak. A shadow that
    /// was given back comes again only when a person says so: with `shadow`, or where none was wanted before.
    pub(super) fn reconfigure(
        &mut self,
        next: &Resource,
        shadow: bool,
        persist: Option<Persist>,
    ) -> Result<(), Denied> {
        let old = self.hands.settings();
        let (was, is) = (&old.policy, &next.policy);
        let (scaling, replication) = (is_scaled(&old, next), is_streamed(was, is));
        let ends = !is.shadow_enabled && self.state.phase != Phase::Idle;
        may_change(&self.state, &old, next, persist.is_some())?;
        if let Some(persist) = persist {
            persist.write().map_err(Denied::Journal)?;
        }
        self.hands.resource.replace(next);
        telemetry::guards_end(&self.state.resource, was, is);
        if ends {
            self.take(Event::ShadowDisabled);
        } else if is.shadow_enabled
            && self.state.phase == Phase::Idle
            && (shadow || !was.shadow_enabled || !self.given_up())
        {
            self.keep_a_shadow_again();
            self.take(Event::ShadowEnabled);
        }
        if replication && self.state.phase != Phase::Idle {
            self.renew_stream();
        }
        if scaling {
            let full = |resource: &Resource| {
                resource.placements.get(&*self.state.primary.0).map(|placement| placement.capacity)
            };
            if full(&old) != full(next) {
                self.bring(ADJUST, self.state.primary.clone(), Capacity::Full);
            }
            self.adjust_shadow();
        }
        self.soak_as_configured();
        if self.decision.is_some() {
            // What is shown goes by the settings of now.
            self.decide();
        }
        tracing::info!(resource = %next.name, scaling, replication, "settings changed");
        self.publish();
        Ok(())
    }

    /// An old primary soaks as long as the policy of now says, unless a person has ended that.
    pub(super) fn soak_as_configured(&mut self) {
        let (time, run) = (self.hands.policy().retire_after, self.state.run.as_ref());
        let other = |run: &Run| ![time, Duration::ZERO].contains(&run.limits.retire_after);
        if self.state.phase == Phase::Soaking && run.is_some_and(other) {
            self.take(Event::SoakFor { time });
        }
    }

    /// The stream's keeper begins anew with the policy of now; rows flow on.
    fn renew_stream(&mut self) {
        let (hands, generation) = (self.hands.clone(), self.state.generation);
        let run = Effect::RunStream {
            generation,
            source: self.state.primary.clone(),
            target: self.state.shadow.clone(),
        };
        let state = self.state.clone();
        let task = tokio::spawn(async move {
            hands.streams.end_keeper(generation).await;
            if let Err(why) = hands.perform(&run, &state).await {
                hands.report(None, Event::EffectFailed { effect: run.name(), why });
            }
        });
        self.replace_task("renew", task);
    }

    /// The shadow's workers come to the number of now.
    pub(super) fn adjust_shadow(&mut self) {
        if self.state.phase != Phase::Idle {
            self.crowded = Crowded::default();
            self.bring(ADJUST_SHADOW, self.state.shadow.clone(), Capacity::Shadow);
        }
    }

    fn bring(&mut self, key: &'static str, zone: Zone, capacity: Capacity) {
        let (hands, state, tell) = (self.hands.clone(), self.state.clone(), self.asides.clone());
        let task = tokio::spawn(async move {
            match hands.adjust(&zone, capacity, &state).await {
                Ok(()) => {
                    if capacity == Capacity::Full {
                        lock(&hands.staff).is_filled_up(state.generation);
                    }
                    let _ = tell.send(Aside::Done(key));
                }
                Err(why) => {
                    tracing::warn!(resource = %state.resource, %zone, %why, "workers could not be adjusted");
                    if capacity == Capacity::Full {
                        lock(&hands.staff).is_refused(state.generation, &why, clock::monotonic());
                    }
                    hands.report(None, Event::EffectFailed { effect: key, why });
                }
            }
        });
        self.replace_task(key, task);
    }

    /// A primary that took over with fewer workers than it should have is given the rest: its driver may have refused, or this process
    /// may not have been there to ask. Ever more rarely while that fails, and once: what becomes of them then is left as it is, and so are
    /// they where something else sets their number.
    fn fill_up(&mut self) {
        if self.state.run.is_some() || self.is_running(ADJUST) {
            return;
        }
        let (zone, generation) = (self.state.primary.clone(), self.state.generation);
        let is_due = {
            let mut staff = lock(&self.hands.staff);
            if staff.generation != Some(generation) {
                // Another process led when it took over.
                let Some((asked, _)) = self.measure.asked_for(&zone).filter(|_| self.after_loss) else {
                    return;
                };
                *staff = Staff::of(generation, asked >= self.hands.workers(&zone, Capacity::Full));
            }
            staff.is_due(clock::monotonic())
        };
        if is_due {
            self.bring(ADJUST, zone, Capacity::Full);
        }
    }

    /// That a primary took over with too few workers, in words.
    pub(super) fn lacks_workers(&self) -> Option<String> {
        let primary = &self.state.primary;
        let staff = lock(&self.hands.staff);
        staff.lacks(self.state.generation).then(|| {
            let full = self.hands.workers(primary, Capacity::Full);
            let asked = if staff.is_contested {
                format!("{SET_BY_ANOTHER}, and its driver is not asked again for {full}")
            } else {
                format!("its driver is asked for {full}")
            };
            format!("{primary} took over with too few workers: {asked}")
        })
    }

    /// A shadow that keeps more workers than it should has fewer again: after an undone move its driver may have refused, or this process
    /// may not have been there to ask. A primary that was lost is left as it is.
    pub(super) fn thin_out(&mut self) {
        self.fill_up();
        let follows = self.state.phase == Phase::Shadowing && self.state.run.is_none() && !self.after_loss;
        let zone = self.state.shadow.clone();
        let times =
            [scale_down(&zone), ADJUST_SHADOW].into_iter().filter_map(|effect| self.failures.get(effect));
        let times = times.map(|(times, _)| times).sum();
        self.crowded.has_failed(times, clock::monotonic());
        let Some((asked, looked)) = self.measure.asked_for(&zone).filter(|_| follows) else {
            self.crowded.calm();
            return;
        };
        let most = self.hands.workers(&zone, Capacity::Shadow);
        if asked <= most {
            // With fewer than it should have, what failed may have been to give it more.
            let had_more = self.crowded.calm();
            if self.crowded.is_after(looked) {
                self.has_no_more(had_more || asked == most);
            }
        } else if !self.is_running(ADJUST_SHADOW) && self.crowded.is_due(asked, most, clock::monotonic()) {
            tracing::info!(resource = %self.state.resource, %zone, asked, most, "the shadow has too many workers");
            self.bring(ADJUST_SHADOW, zone, Capacity::Shadow);
        }
    }

    /// The shadow's driver has brought its workers to the number of now.
    pub(super) fn is_thinned_out(&mut self) {
        self.crowded.is_done();
        self.has_no_more(true);
    }

    /// However it came to that: what failed on the way is no problem any more.
    fn has_no_more(&mut self, adjusted: bool) {
        let effect = scale_down(&self.state.shadow);
        self.is_no_problem(effect);
        if adjusted {
            self.is_no_problem(ADJUST_SHADOW);
        }
    }

    /// Ends the shadow and deprovisions it; only where the service is in the zone that it was reserved for.
    pub(super) fn leave(&mut self, reply: oneshot::Sender<Result<(), Denied>>) {
        let settings = self.hands.settings();
        let refusal = if let Some(run) = &self.state.run {
            Some(Denied::under_way(&self.state, run))
        } else if *self.state.primary.0 != *settings.primary {
            Some(Denied::Conflict(format!(
                "{} is served in {}, whose database Godwit made: migrate it back to {} first",
                settings.name, self.state.primary, settings.primary
            )))
        } else {
            None
        };
        if let Some(denied) = refusal {
            let _ = reply.send(Err(denied));
            return;
        }
        self.end_for(reply);
    }
}

/// By this name an effect fails that gives a shadow its share of workers.
fn scale_down(zone: &Zone) -> &'static str {
    Effect::Scale { zone: zone.clone(), capacity: Capacity::Shadow }.name()
}

fn is_scaled(was: &Resource, is: &Resource) -> bool {
    let capacity = |resource: &Resource| -> Vec<u32> {
        resource.placements.values().map(|placement| placement.capacity).collect()
    };
    capacity(was) != capacity(is) || was.policy.shadow_capacity != is.policy.shadow_capacity
}

/// Its stream's keeper must begin anew.
fn is_streamed(was: &Policy, is: &Policy) -> bool {
    let of = |policy: &Policy| (policy.replication, policy.fallback_after, policy.fallback_back);
    of(was) != of(is) || was.critical != is.critical
}

/// Why these settings must wait for the migration under way, if they must. Of a person who changes a section all of it waits.
fn may_change(state: &State, was: &Resource, is: &Resource, section: bool) -> Result<(), Denied> {
    let Some(run) = &state.run else { return Ok(()) };
    let scaling = is_scaled(was, is);
    let (was, is) = (&was.policy, &is.policy);
    // What a move carries over was seen to before it began, or is in some step of it.
    let of = |policy: &Policy| (policy.unlogged, policy.extensions, policy.keyless, policy.schema);
    let carried = state.phase != Phase::Soaking && of(was) != of(is);
    let waits = scaling || is_streamed(was, is) || !is.shadow_enabled || carried || section && was != is;
    if waits { Err(Denied::under_way(state, run)) } else { Ok(()) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use migration::cutover::{Limits, Trigger, step};
    use migration::policy::{KeptByExtensions, PolicyParts, SlotRules, UnloggedTables};
    use migration::units::{ByteCount, Timestamp};

    use super::*;

    #[test]
    fn a_migration_goes_on_with_the_replication_that_it_began_with() {
        let was = crate::config::samples::orders();
        let now = Timestamp(1);
        let mut state = State::first("orders", "near".into(), "far".into(), now);
        let changed = |change: &dyn Fn(&mut PolicyParts)| {
            let mut parts = (*was.policy).clone();
            change(&mut parts);
            let is = Resource { policy: Policy::new(parts).unwrap(), ..was.clone() };
            assert!(is.policy != was.policy);
            is
        };
        let carried = [
            changed(&|parts| parts.unlogged = UnloggedTables::Carry),
            changed(&|parts| parts.extensions = KeptByExtensions::Leave),
        ];
        let others = [
            changed(&|parts| parts.slot = SlotRules { budget: ByteCount(1 << 30), ..parts.slot }),
            changed(&|parts| parts.copy_sessions += 1),
        ];
        let refused = |state: &State, is: &Resource, section| may_change(state, &was, is, section).is_err();
        let all = || carried.iter().chain(&others);
        assert!(all().all(|is| !refused(&state, is, true)), "nothing is under way");
        let request = Event::MigrateRequested {
            id: "m".into(),
            to: "far".into(),
            trigger: Trigger::Score,
            limits: Limits::of(&was.policy),
        };
        for event in [Event::ShadowEnabled, Event::StreamUp, request] {
            (state, _) = step(&state, event, now).unwrap();
        }
        assert_eq!(state.phase, Phase::Requested);
        for is in all() {
            assert!(matches!(may_change(&state, &was, is, true), Err(Denied::Running { .. })));
        }
        assert!(!refused(&state, &was, true), "nothing differs");
        assert!(carried.iter().all(|is| refused(&state, is, false)));
        assert!(others.iter().all(|is| !refused(&state, is, false)), "the files are another matter");
        state.phase = Phase::Soaking;
        assert!(all().all(|is| refused(&state, is, true) && !refused(&state, is, false)));
    }

    #[test]
    fn a_driver_that_keeps_a_number_of_its_own_is_asked_once() {
        let mut crowded = Crowded::default();
        let begin = clock::monotonic();
        let at = |times: u32| begin + CROWDED * times;
        assert!(!crowded.is_due(5, 2, begin), "they may be ending");
        assert!(crowded.is_due(5, 2, at(1)));
        assert!(!crowded.is_due(5, 2, at(1)), "it was asked just now");
        assert!(crowded.is_due(5, 2, at(2)), "that was refused");
        crowded.is_done();
        assert!(!crowded.is_due(5, 2, at(9)), "it says the same whatever it did");
        for (has, most, since) in [(4, 2, 10), (4, 1, 12)] {
            assert!(!crowded.is_due(has, most, at(since)), "they may be ending");
            assert!(crowded.is_due(has, most, at(since + 1)), "it is another number");
            crowded.is_done();
        }
    }

    #[test]
    fn who_took_over_is_given_the_rest_of_its_workers_once() {
        let (mut staff, begin) = (Staff::default(), clock::monotonic());
        let [generation, other] = [7, 8].map(Generation);
        assert!(!staff.lacks(generation), "nobody took over");
        staff = Staff::of(generation, true);
        assert!(!staff.lacks(generation) && !staff.is_due(begin), "it has them");
        staff = Staff::of(generation, false);
        assert!(staff.lacks(generation) && !staff.lacks(other));
        assert!(staff.is_due(begin));
        staff.is_filled_up(other);
        assert!(!staff.is_due(begin), "it was asked just now");
        assert!(staff.is_due(begin + FILL.0), "that was refused");
        staff.is_filled_up(generation);
        assert!(!staff.lacks(generation) && !staff.is_due(begin + 2 * FILL.1));
    }

    #[test]
    fn a_driver_that_cannot_give_the_rest_is_asked_ever_more_rarely() {
        let generation = Generation(7);
        let mut staff = Staff::of(generation, false);
        let mut now = clock::monotonic();
        for pause in [0, 20, 40, 80, 160, 300, 300] {
            let pause = Duration::from_secs(pause);
            if !pause.is_zero() {
                assert!(!staff.is_due(now + pause / 2), "{pause:?}");
            }
            now += pause;
            assert!(staff.is_due(now), "{pause:?}");
            // The pause begins when that is known.
            now += Duration::from_secs(100);
            staff.is_refused(generation, "no room", now);
        }
        let why = format!("the driver far: {SET_BY_ANOTHER} to 2 while scale wants 3: an autoscaler?");
        staff.is_refused(Generation(8), &why, now);
        assert!(!staff.is_contested, "of another generation");
        staff.is_refused(generation, &why, now);
        assert!(staff.lacks(generation) && !staff.is_due(now + 2 * FILL.1), "that is the other's to say");
    }

    #[test]
    fn what_a_driver_said_before_something_failed_does_not_mend_it() {
        let mut crowded = Crowded::default();
        let begin = clock::monotonic();
        let at = |seconds: u64| begin + Duration::from_secs(seconds);
        assert!(crowded.is_after(at(1)), "nothing has failed");
        for (times, seen) in [(1, 5), (1, 6), (2, 8)] {
            crowded.has_failed(times, at(seen));
        }
        assert!(!crowded.is_after(at(7)) && crowded.is_after(at(8)));
        crowded.calm();
        assert!(!crowded.is_after(at(7)));
        crowded.has_failed(0, at(9));
        assert!(crowded.is_after(at(1)));
    }
}
