//! `decide`: a frozen [`World`] and a [`Policy`] become a [`DecisionReport`].

use std::time::Duration;

use crate::cutover::Phase;
use crate::policy::{Mode, Policy};
use crate::report::{DecisionReport, Guard, Verdict};
use crate::score::{Score, score};
use crate::units::Timestamp;
use crate::world::{Fact, World};

/// Since when the score clears what is needed: carry the answer to the next call through [`World::above_since`].
pub fn above_since(policy: &Policy, world: &World, now: Timestamp) -> Option<Timestamp> {
    let clears = score(&policy.weights, world).lower > needed(policy);
    clears.then(|| world.above_since.unwrap_or(now))
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
    DecisionReport { verdict, score, needed: needed(policy), guards, because }
}

fn guards(policy: &Policy, world: &World, score: &Score, now: Timestamp) -> Vec<Guard> {
    vec![
        idle(world),
        shadowing(world),
        databases(world),
        lag(policy, world),
        threshold(policy, score),
        sustain(policy, world, now),
        shadow_better(world),
        cooldown(policy, world, now),
        moves(policy, world),
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
        name: "databases ready",
        passed: world.blockers.is_empty(),
        value,
        limit: "no blocker".into(),
        binds_operator: true,
    }
}

fn lag(policy: &Policy, world: &World) -> Guard {
    let (passed, value) = match &world.lag {
        Fact::Known { value, .. } => (*value <= policy.max_lag, value.to_string()),
        Fact::Unknown { why } => (false, format!("unknown: {why}")),
    };
    Guard {
        name: "replication lag",
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
        name: "score",
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
        name: "sustained",
        passed: world.above_since.is_some() && above >= policy.sustain,
        value: format!("{:.1} s", above.as_secs_f64()),
        limit: format!("{:.1} s", policy.sustain.as_secs_f64()),
        binds_operator: false,
    }
}

fn shadow_better(world: &World) -> Guard {
    let (passed, value) = match (&world.primary_probe, &world.shadow_probe) {
        (Fact::Known { value: primary, .. }, Fact::Known { value: shadow, .. }) => (
            shadow.median_ms < primary.median_ms,
            format!(
                "probe forecast {:.1} ms in {}, {:.1} ms in {}",
                shadow.median_ms, world.shadow, primary.median_ms, world.primary
            ),
        ),
        // A primary whose probe fails is worse than any shadow that answers.
        (Fact::Unknown { why }, Fact::Known { value: shadow, .. }) => (
            true,
            format!("{:.1} ms in {}; {} unknown: {why}", shadow.median_ms, world.shadow, world.primary),
        ),
        (_, Fact::Unknown { why }) => (false, format!("{} unknown: {why}", world.shadow)),
    };
    Guard {
        name: "shadow forecast better",
        passed,
        value,
        limit: format!("lower in {}", world.shadow),
        binds_operator: false,
    }
}

fn cooldown(policy: &Policy, world: &World, now: Timestamp) -> Guard {
    let since = world.last_move.map(|last| now.since(last));
    Guard {
        name: "cooldown",
        passed: since.is_none_or(|since| since >= policy.cooldown),
        value: since.map_or_else(|| "never moved".into(), |since| format!("{:.0} s", since.as_secs_f64())),
        limit: format!("{:.0} s since the last move", policy.cooldown.as_secs_f64()),
        binds_operator: false,
    }
}

fn moves(policy: &Policy, world: &World) -> Guard {
    Guard {
        name: "moves in 24 h",
        passed: world.moves_last_day < policy.max_moves_per_day,
        value: world.moves_last_day.to_string(),
        limit: format!("fewer than {}", policy.max_moves_per_day),
        binds_operator: false,
    }
}
