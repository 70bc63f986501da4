//! `decide`: a frozen [`World`] and a [`Policy`] become a [`DecisionReport`].

use std::time::Duration;

use crate::cutover::Phase;
use crate::flip::{flips, shown};
use crate::policy::{Bound, ExtraGuard, GuardedFact, Mode, Policy};
use crate::report::{Awaited, DecisionReport, Guard, Verdict};
use crate::score::{RAW_LIMIT, Score, score};
use crate::units::Timestamp;
use crate::world::{Fact, Freeze, Maintenance, Service, Undone, World};

/// In which moves are counted.
pub const DAY: Duration = Duration::from_hours(24);

/// Since when the score clears what is needed: carry the answer to the next call through [`World::above_since`]. Once above,
/// it may fall by the policy's hysteresis before the time begins anew.
pub fn above_since(policy: &Policy, world: &World, now: Timestamp) -> Option<Timestamp> {
    let lower = score(&policy.weights, world).lower;
    match world.above_since {
        None => (lower > needed(policy)).then_some(now),
        since => since.filter(|_| lower > needed(policy) - policy.hysteresis),
    }
}

/// Whether the score stays above only by its latency term: where no request came there is nothing that says so still.
pub fn rests_on_latency(policy: &Policy, world: &World) -> bool {
    score(&policy.weights, world).others_lower() <= needed(policy) - policy.hysteresis
}

/// What the lower bound of the score must clear.
pub fn needed(policy: &Policy) -> f64 {
    policy.threshold + policy.disruption
}

/// The decision at `now`. Guards in order; the first that fails is the reason.
pub fn decide(policy: &Policy, world: &World, now: Timestamp) -> DecisionReport {
    let score = score(&policy.weights, world);
    let guards = guards(policy, world, &score, now);
    let (verdict, because) = match guards.iter().find(|guard| !guard.passed) {
        Some(guard) => (Verdict::Stay, format!("{}: {} (needs {})", guard.name, guard.value, guard.limit)),
        None => {
            let because =
                format!("the score's lower bound {:.2} has cleared {:.2}", score.lower, needed(policy));
            match policy.mode {
                Mode::Auto => (Verdict::Move { to: world.shadow.clone() }, because),
                Mode::Advise => (Verdict::Propose { to: world.shadow.clone() }, because),
                Mode::Observe => (Verdict::Stay, format!("{because}, but the policy only observes")),
            }
        }
    };
    let awaited = awaited(policy, world, &guards, now);
    let flips = flips(policy, world, &score, &guards, &verdict);
    DecisionReport { verdict, score, needed: needed(policy), guards, because, awaited, flips }
}

/// Names that others look for.
pub(crate) mod name {
    pub(crate) const LAG: &str = "replication lag";
    pub(crate) const DATABASES: &str = "databases ready";
    pub(crate) const SCORE: &str = "score";
    pub(crate) const SUSTAINED: &str = "sustained";
    pub(crate) const BETTER: &str = "shadow forecast better";
    pub(crate) const COOLDOWN: &str = "cooldown";
    pub(crate) const MOVES: &str = "moves in 24 h";
    pub(crate) const UNDONE: &str = "undone moves";
    pub(crate) const FROZEN: &str = "not frozen";
    pub(crate) const WINDOW: &str = "no freeze window";
}

fn guards(policy: &Policy, world: &World, score: &Score, now: Timestamp) -> Vec<Guard> {
    let mut guards = fixed(policy, world, score, now);
    guards.extend(policy.guards.iter().map(|guard| extra(guard, world)));
    guards
}

fn fixed(policy: &Policy, world: &World, score: &Score, now: Timestamp) -> Vec<Guard> {
    vec![
        idle(world),
        shadowing(world),
        databases(world),
        service(world),
        lag(policy, world),
        frozen(world, now),
        threshold(policy, score),
        sustain(policy, world, now),
        shadow_better(policy, world, score),
        maintenance(policy, world, now),
        cooldown(policy, world, now),
        moves(policy, world),
        undone(policy, world, now),
        window(world, now),
    ]
}

fn idle(world: &World) -> Guard {
    // A soaking migration is committed: the next one may follow it.
    let passed = world.running.is_none() || world.phase == Phase::Soaking;
    let value =
        world.running.as_ref().map_or_else(|| "none".into(), |id| format!("{id} ({})", world.phase.name()));
    Guard { name: "no migration under way", passed, value, limit: "none".into(), binds_operator: true }
}

fn shadowing(world: &World) -> Guard {
    // While a migration runs, the guard before this one speaks.
    let passed = !matches!(world.phase, Phase::Idle | Phase::Preparing);
    let value = world.phase.name().to_owned();
    Guard { name: "shadow follows", passed, value, limit: "shadowing".into(), binds_operator: true }
}

fn databases(world: &World) -> Guard {
    let value = if world.blockers.is_empty() { "ready".into() } else { world.blockers.join("; ") };
    Guard {
        name: name::DATABASES,
        passed: world.blockers.is_empty(),
        value,
        limit: "no blocker".into(),
        binds_operator: true,
    }
}

/// What is not known keeps nobody where he is: it is asked once more before anybody is held.
fn service(world: &World) -> Guard {
    let (passed, value) = match &world.shadow_service {
        Service::Answers => (true, "it does".into()),
        Service::Silent(why) => (false, why.clone()),
        Service::Unjudged(why) => (true, format!("not known: {why}")),
    };
    let limit = format!("an answer of the service in {}", world.shadow);
    Guard { name: "service answers", passed, value, limit, binds_operator: true }
}

fn lag(policy: &Policy, world: &World) -> Guard {
    let (passed, value) = match &world.lag {
        Fact::Known { value, .. } => (*value <= policy.max_lag, value.to_string()),
        Fact::Unknown { why } => (false, format!("unknown: {why}")),
    };
    Guard {
        name: name::LAG,
        passed,
        value,
        limit: format!("at most {}", policy.max_lag),
        binds_operator: true,
    }
}

fn threshold(policy: &Policy, score: &Score) -> Guard {
    let unknown: Vec<&str> = score.terms.iter().filter_map(|term| term.raw.why_unknown()).collect();
    let mut value = format!("lower bound {:.2}, score {:.2}", score.lower, score.total);
    if !unknown.is_empty() {
        value = format!("{value}; unknown: {}", unknown.join("; "));
    }
    Guard {
        name: name::SCORE,
        passed: score.lower > needed(policy),
        value,
        limit: format!(
            "above {:.2} (threshold {} + disruption {})",
            needed(policy),
            policy.threshold,
            policy.disruption
        ),
        binds_operator: false,
    }
}

fn sustain(policy: &Policy, world: &World, now: Timestamp) -> Guard {
    let above = world.above_since.map_or(Duration::ZERO, |since| now.since(since));
    Guard {
        name: name::SUSTAINED,
        passed: world.above_since.is_some() && above >= policy.sustain,
        value: format!("{:.1} s", above.as_secs_f64()),
        limit: format!("{:.1} s", policy.sustain.as_secs_f64()),
        binds_operator: false,
    }
}

/// Whether the score clears what is needed by its latency term alone, or would not without it.
pub(crate) fn carried_by_latency(policy: &Policy, score: &Score) -> bool {
    score.others_lower() <= needed(policy)
}

/// What a move is expected to bring of latency: in points of the score, as the latency term counts them.
pub(crate) struct Gain {
    /// Forecast of the request path where it is, milliseconds.
    here_ms: f64,
    /// Expected of it from the shadow.
    there_ms: f64,
    /// What the latency term would give, were the shadow what it compares with.
    points: f64,
}

impl Gain {
    /// None: what the shadow would give is not known.
    pub(crate) fn of(policy: &Policy, world: &World) -> Option<Self> {
        let here_ms = world.latency.value()?.median_ms;
        let (there_ms, _) = world.expected_from_shadow()?;
        let raw = (here_ms - there_ms) / there_ms.max(f64::MIN_POSITIVE);
        Some(Self { here_ms, there_ms, points: raw.min(RAW_LIMIT) * policy.weights.latency })
    }

    /// It is worth a move.
    pub(crate) fn pays(&self, policy: &Policy) -> bool {
        self.points > policy.disruption
    }

    /// What must be expected from the shadow for less than that, milliseconds.
    pub(crate) fn there_that_pays(&self, policy: &Policy) -> f64 {
        self.here_ms / (1.0 + policy.disruption / policy.weights.latency)
    }
}

/// Whether the shadow is forecast to be faster, whatever that is worth. A primary whose probe fails is worse than any shadow that answers;
/// one of which nothing is known need not be.
pub(crate) fn is_faster(world: &World) -> bool {
    let both = world.side_by_side();
    let Some(shadow) = both.shadow.value() else { return false };
    both.primary.value().map_or(world.primary_fails, |primary| shadow.median_ms < primary.median_ms)
}

/// A service that has become slow by itself is as slow in the other zone: its latency term is high, and a move brings nothing. So where that term
/// carries the score, what it would be against the shadow must be worth more than a move costs.
fn shadow_better(policy: &Policy, world: &World, score: &Score) -> Guard {
    let both = world.side_by_side();
    let mut passed = is_faster(world);
    let mut value = match (both.primary, both.shadow) {
        (Fact::Known { value: primary, .. }, Fact::Known { value: shadow, .. }) => format!(
            "{} forecast {:.1} ms in {}, {:.1} ms in {}",
            both.of, shadow.median_ms, world.shadow, primary.median_ms, world.primary
        ),
        (Fact::Unknown { why }, Fact::Known { value: shadow, .. }) => {
            format!("{:.1} ms in {}; {} unknown: {why}", shadow.median_ms, world.shadow, world.primary)
        }
        (_, Fact::Unknown { why }) => format!("{} unknown: {why}", world.shadow),
    };
    let mut limit = format!("lower in {}", world.shadow);
    if let Some(gain) = Gain::of(policy, world).filter(|_| carried_by_latency(policy, score)) {
        passed &= gain.pays(policy);
        value = format!(
            "{value}; {:.1} ms here and {:.1} ms expected there: worth {:.2}",
            gain.here_ms, gain.there_ms, gain.points
        );
        limit = format!("{limit}, worth more than {} (disruption)", policy.disruption);
    }
    Guard { name: name::BETTER, passed, value, limit, binds_operator: false }
}

/// No move into a zone that is being worked on within the horizon. A calendar that cannot be read does not keep the
/// service where it is: the guard says so and passes.
fn maintenance(policy: &Policy, world: &World, now: Timestamp) -> Guard {
    let ahead = |window: &&Maintenance| window.starts <= now.after(policy.horizon);
    let of_shadow = world.maintenance.iter().filter(|window| window.zone == world.shadow);
    let blocking: Vec<String> = of_shadow.filter(ahead).map(|window| in_words(window, now)).collect();
    let passed = blocking.is_empty();
    let mut words = if passed { vec![format!("none known in {}", world.shadow)] } else { blocking };
    // What awaits the primary argues for a move; people should see it beside the other.
    let of_primary = world.maintenance.iter().find(|window| window.zone == world.primary);
    words.extend(of_primary.map(|window| format!("{} (serves now)", in_words(window, now))));
    words.extend(world.maintenance_unknown.iter().map(|why| format!("there may be more: {why}")));
    Guard {
        name: "no maintenance ahead",
        passed,
        value: words.join("; "),
        limit: format!("none in {} within {}", world.shadow, span(policy.horizon)),
        binds_operator: false,
    }
}

/// `maintenance of eu-central begins in 20 min: TITLE`.
fn in_words(window: &Maintenance, now: Timestamp) -> String {
    let Maintenance { zone, title, starts, ends, .. } = window;
    if *starts > now {
        return format!("maintenance of {zone} begins in {}: {title}", span(starts.since(now)));
    }
    match ends {
        Some(ends) => format!("maintenance of {zone} ends in {}: {title}", span(ends.since(now))),
        None => format!("maintenance of {zone} is under way: {title}"),
    }
}

/// `45 s`, `20 min`, `3 h`, `2 d`.
fn span(span: Duration) -> String {
    let seconds = span.as_secs();
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        7200..=172_799 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

fn cooldown(policy: &Policy, world: &World, now: Timestamp) -> Guard {
    let since = world.last_move.map(|last| now.since(last));
    Guard {
        name: name::COOLDOWN,
        passed: since.is_none_or(|since| since >= policy.cooldown),
        value: since.map_or_else(|| "never moved".into(), |since| format!("{:.0} s", since.as_secs_f64())),
        limit: format!("{:.0} s since the last move", policy.cooldown.as_secs_f64()),
        binds_operator: false,
    }
}

fn moves(policy: &Policy, world: &World) -> Guard {
    Guard {
        name: name::MOVES,
        passed: world.moves_last_day < policy.max_moves_per_day,
        value: world.moves_last_day.to_string(),
        limit: format!("fewer than {}", policy.max_moves_per_day),
        binds_operator: false,
    }
}

/// When there are fewer moves in 24 h than the policy allows, given those of the last 24 h, the oldest first. None: there are.
#[must_use]
pub fn moves_ease(policy: &Policy, last_day: &[Timestamp]) -> Option<Timestamp> {
    let more = last_day.len().checked_sub(policy.max_moves_per_day as usize)?;
    Some(last_day.get(more)?.after(DAY))
}

/// Until when nothing is begun again by itself, since moves were undone: what was in the way may be so still, and each try may hold
/// clients. `limits.retry_after` after the first, twice as long after each further one, never longer than the cooldown. None: none was.
#[must_use]
pub fn pause_ends(policy: &Policy, undone: Undone) -> Option<Timestamp> {
    let pause = policy.retry_after.saturating_mul(1 << undone.count.saturating_sub(1).min(16));
    Some(undone.last?.after(pause.min(policy.cooldown)))
}

fn undone(policy: &Policy, world: &World, now: Timestamp) -> Guard {
    let ends = pause_ends(policy, world.undone);
    let (value, limit) = match world.undone.last.zip(ends) {
        None => ("none".into(), "none lately".into()),
        Some((last, ends)) => (
            format!("{}, the last {} ago", world.undone.count, span(now.since(last))),
            format!("{} after the last", span(ends.since(last))),
        ),
    };
    let passed = ends.is_none_or(|ends| now >= ends);
    Guard { name: name::UNDONE, passed, value, limit, binds_operator: false }
}

fn describe(freezes: &[&Freeze], now: Timestamp) -> String {
    if freezes.is_empty() {
        return "none".into();
    }
    let one = |freeze: &&Freeze| {
        let left = freeze.until.map_or_else(
            || "until it is lifted".into(),
            |until| format!("for {:.0} s more", until.since(now).as_secs_f64()),
        );
        format!("frozen by {} {left}: {}", freeze.by, freeze.why)
    };
    freezes.iter().map(one).collect::<Vec<_>>().join("; ")
}

fn freezes(world: &World, of_operators: bool) -> Vec<&Freeze> {
    world.freezes.iter().filter(|freeze| freeze.binds_operator == of_operators).collect()
}

fn frozen(world: &World, now: Timestamp) -> Guard {
    let freezes = freezes(world, true);
    Guard {
        name: name::FROZEN,
        passed: freezes.is_empty(),
        value: describe(&freezes, now),
        limit: "no freeze by an operator (godwit unfreeze)".into(),
        binds_operator: true,
    }
}

fn window(world: &World, now: Timestamp) -> Guard {
    let freezes = freezes(world, false);
    Guard {
        name: name::WINDOW,
        passed: freezes.is_empty(),
        value: describe(&freezes, now),
        limit: "outside limits.freeze".into(),
        binds_operator: false,
    }
}

/// The fact of an extra guard as a number.
#[must_use]
pub fn guarded(fact: GuardedFact, world: &World) -> Fact<f64> {
    match fact {
        GuardedFact::LagBytes => world.lag.map(|lag| lag.0 as f64),
        GuardedFact::LatencyMs => world.latency.map(|outlook| outlook.median_ms),
        GuardedFact::PrimaryProbeMs => world.primary_probe.map(|outlook| outlook.median_ms),
        GuardedFact::ShadowProbeMs => world.shadow_probe.map(|outlook| outlook.median_ms),
        GuardedFact::MirroredDifferent => world.mirrored_different.clone(),
        GuardedFact::PrimaryUtilization => world.primary_utilization.clone(),
        GuardedFact::ShadowUtilization => world.shadow_utilization.clone(),
        GuardedFact::PrimaryCost => world.primary_cost.clone(),
        GuardedFact::ShadowCost => world.shadow_cost.clone(),
        GuardedFact::ShadowRttMs => world.shadow_path.rtt_ms.clone(),
        GuardedFact::ShadowLoss => world.shadow_path.loss.clone(),
        GuardedFact::ShadowRouteAge => world.shadow_path.route_age_ms.clone(),
    }
}

fn extra(guard: &ExtraGuard, world: &World) -> Guard {
    let fact = guarded(guard.fact, world);
    let unit = guard.fact.unit();
    Guard {
        name: guard.fact.name(),
        passed: fact.value().is_some_and(|value| guard.bound.admits(*value)),
        value: match &fact {
            Fact::Known { value, .. } => shown(*value, unit),
            Fact::Unknown { why } => format!("unknown: {why}"),
        },
        limit: match guard.bound {
            Bound::Below(limit) => format!("below {}", shown(limit, unit)),
            Bound::Above(limit) => format!("above {}", shown(limit, unit)),
        },
        binds_operator: guard.binds_operator,
    }
}

/// Which of the failed guards time alone may let pass, and when.
fn awaited(policy: &Policy, world: &World, guards: &[Guard], now: Timestamp) -> Vec<Awaited> {
    let latest = |of_operators| {
        let until: Option<Vec<Timestamp>> =
            freezes(world, of_operators).iter().map(|freeze| freeze.until).collect();
        until.and_then(|until| until.into_iter().max())
    };
    let await_one = |guard: &Guard| {
        let (what, at) = match guard.name {
            name::SUSTAINED => (
                "the score stays above what it must clear",
                world.above_since.map(|since| since.after(policy.sustain)),
            ),
            name::COOLDOWN => ("the cooldown ends", world.last_move.map(|last| last.after(policy.cooldown))),
            name::MOVES => ("enough of the moves are a day old", world.moves_ease),
            name::UNDONE => ("the pause after undone moves ends", pause_ends(policy, world.undone)),
            name::FROZEN => ("the freeze ends", latest(true)),
            name::WINDOW => ("the freeze window ends", latest(false)),
            name::LAG => ("the shadow catches up", None),
            _ => return None,
        };
        let at = at.filter(|at| *at > now);
        Some(Awaited { guard: guard.name, what: what.into(), at })
    };
    guards.iter().filter(|guard| !guard.passed).filter_map(await_one).collect()
}

#[cfg(test)]
#[path = "decide/maintenance.rs"]
mod maintenance_tests;
#[cfg(test)]
mod tests;
