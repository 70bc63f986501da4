//! What would change a verdict: for each fact the smallest change, all else equal. Solved, not searched; what is proposed here is
//! tried by the tests against [`decide`](crate::decide::decide) itself.

use crate::decide::{Gain, carried_by_latency, guarded, is_faster, name, needed};
use crate::policy::{Bound, Mode, Policy};
use crate::report::{Flip, Guard, Verdict};
use crate::score::{RAW_LIMIT, Score};
use crate::world::{Fact, World};

/// Steps over a border, as a share: a bound must be cleared, not met.
const OVER: f64 = 1e-9;

/// The changes of single facts that change the verdict, smallest first. Where several guards fail, no single one does, but where what a move
/// brings of latency is too little: another term that carries the score makes up for both. `sustained` follows the score and counts with it.
pub(crate) fn flips(
    policy: &Policy,
    world: &World,
    score: &Score,
    guards: &[Guard],
    verdict: &Verdict,
) -> Vec<Flip> {
    if policy.mode == Mode::Observe {
        return Vec::new();
    }
    let moves = *verdict != Verdict::Stay;
    let failed = |guard: &&Guard| !guard.passed;
    let score_fails = guards.iter().any(|guard| guard.name == name::SCORE && !guard.passed);
    let counted = guards.iter().filter(failed).filter(|guard| !score_fails || guard.name != name::SUSTAINED);
    let counted: Vec<_> = counted.collect();
    let mut flips = match counted[..] {
        [] if moves => every_way_out(policy, world, score),
        [guard] => ways_in(policy, world, score, guard),
        [guard, other] if (guard.name, other.name) == (name::SCORE, name::BETTER) && is_faster(world) => {
            let mut flips = ways_in(policy, world, score, guard);
            flips.retain(|flip| flip.of != "latency");
            flips
        }
        _ => Vec::new(),
    };
    flips.sort_by(|one, other| one.size.total_cmp(&other.size));
    flips
}

fn flip(of: &'static str, unit: &str, from: f64, to: f64, then: String) -> Flip {
    let size = if from == 0.0 { f64::INFINITY } else { ((to - from) / from).abs() };
    Flip { of, from: shown(from, unit), to: shown(to, unit), size, then }
}

/// A number with its unit, as precise as [`finest`].
pub(crate) fn shown(value: f64, unit: &str) -> String {
    match unit {
        "%" => format!("{:.2}%", value * 100.0),
        "/h" => format!("{value:.3}/h"),
        "bytes" => format!("{value:.0} bytes"),
        _ => format!("{value:.1} {unit}"),
    }
}

/// The smallest difference that is shown.
fn finest(unit: &str) -> f64 {
    match unit {
        "%" => 0.0001,
        "/h" => 0.001,
        "bytes" => 1.0,
        _ => 0.1,
    }
}

/// The number nearest to the border that can be shown and is on the side that is wanted.
fn beside(bound: Bound, pass: bool, unit: &str) -> f64 {
    let (Bound::Below(limit) | Bound::Above(limit)) = bound;
    let steps = limit / finest(unit);
    // A limit that can be shown is a whole number but for what floats leave.
    let exact = (steps - steps.round()).abs() < 1e-6;
    let (floor, ceil) = if exact { (steps.round(), steps.round()) } else { (steps.floor(), steps.ceil()) };
    let steps = match (bound, pass) {
        (Bound::Below(_), true) => ceil - 1.0,
        (Bound::Above(_), true) => floor + 1.0,
        (Bound::Below(_), false) => ceil,
        (Bound::Above(_), false) => floor,
    };
    steps * finest(unit)
}

/// One failed guard: what would let it pass.
fn ways_in(policy: &Policy, world: &World, score: &Score, guard: &Guard) -> Vec<Flip> {
    let then = match policy.mode {
        Mode::Auto => "a move".to_owned(),
        _ => "a proposal".to_owned(),
    };
    match guard.name {
        name::SCORE => {
            let then = format!("{then}, once that has lasted {:.0} s", policy.sustain.as_secs_f64());
            let missing = needed(policy) - score.lower;
            by_score(world, score, [missing, missing.max(by_others(policy, world, score))], &then)
        }
        name::LAG => by_lag(world, policy.max_lag.0 as f64, &then),
        name::BETTER => match better(policy, world, score) {
            Some((shadow, border)) => vec![flip(name::BETTER, "ms", shadow, border * (1.0 - OVER), then)],
            None => Vec::new(),
        },
        name::DATABASES => vec![Flip {
            of: name::DATABASES,
            from: guard.value.clone(),
            to: "no blocker".into(),
            size: f64::INFINITY,
            then,
        }],
        of => by_extra(policy, world, of, true, &then),
    }
}

/// No guard failed: what would make one fail.
fn every_way_out(policy: &Policy, world: &World, score: &Score) -> Vec<Flip> {
    let then = "no move".to_owned();
    let missing = needed(policy) - score.lower;
    let others = missing.max(by_others(policy, world, score));
    let mut flips = by_score(world, score, [missing, others], &then);
    flips.extend(by_lag(world, policy.max_lag.0 as f64 + 1.0, &then));
    if let Some((shadow, border)) = better(policy, world, score) {
        flips.push(flip(name::BETTER, "ms", shadow, border, then.clone()));
    }
    for guard in &policy.guards {
        flips.extend(by_extra(policy, world, guard.fact.name(), false, &then));
    }
    flips
}

/// What the other terms lack to clear what is needed by themselves, as they must where the latency is no gain.
fn by_others(policy: &Policy, world: &World, score: &Score) -> f64 {
    let pays = Gain::of(policy, world).is_none_or(|gain| gain.pays(policy));
    if pays { f64::NEG_INFINITY } else { needed(policy) - score.others_lower() }
}

/// Median forecast of the shadow, and below which it is forecast better.
fn better(policy: &Policy, world: &World, score: &Score) -> Option<(f64, f64)> {
    let both = world.side_by_side();
    let (primary, shadow) = (both.primary.value()?.median_ms, both.shadow.value()?.median_ms);
    let border = match Gain::of(policy, world).filter(|_| carried_by_latency(policy, score)) {
        Some(gain) => primary.min(world.shadow_median_for(gain.there_that_pays(policy))?),
        None => primary,
    };
    Some((shadow, border))
}

/// Each term by itself makes up for `missing` points, the latency's for the first; below zero: takes that many away.
fn by_score(world: &World, score: &Score, missing: [f64; 2], then: &str) -> Vec<Flip> {
    let mut flips = Vec::new();
    for term in &score.terms {
        let missing = missing[usize::from(term.name != "latency")];
        if term.weight <= 0.0 || term.raw.value().is_none() {
            continue;
        }
        let raw = (term.points_lower + missing + OVER * missing.signum()) / term.weight;
        if !(-RAW_LIMIT..=RAW_LIMIT).contains(&raw) || term.points_lower.abs() >= RAW_LIMIT * term.weight {
            continue;
        }
        let known = |fact: &Fact<f64>| fact.value().copied();
        let found = match term.name {
            "latency" => (|| {
                let (baseline, outlook) = (known(&world.baseline_ms)?, world.latency.value()?);
                let to = baseline * (1.0 + raw);
                let fits = baseline > 0.0 && to >= 0.0;
                fits.then(|| flip("latency", "ms", outlook.lower_ms, to, then.into()))
            })(),
            "cost" => (|| {
                let (primary, shadow) = (known(&world.primary_cost)?, known(&world.shadow_cost)?);
                let to = primary * (1.0 - raw);
                let fits = primary > 0.0 && to >= 0.0;
                fits.then(|| flip("cost", "/h", shadow, to, then.into()))
            })(),
            _ => (|| {
                let (primary, shadow) =
                    (known(&world.primary_utilization)?, known(&world.shadow_utilization)?);
                let to = shadow + raw;
                (0.0..=1.0).contains(&to).then(|| flip("utilization", "%", primary, to, then.into()))
            })(),
        };
        flips.extend(found);
    }
    flips
}

fn by_lag(world: &World, to: f64, then: &str) -> Vec<Flip> {
    let lag = world.lag.value().map(|lag| lag.0 as f64);
    lag.map(|from| flip(name::LAG, "bytes", from, to, then.into())).into_iter().collect()
}

/// The guards on the fact `of`: to the first number that is on the other side of the border.
fn by_extra(policy: &Policy, world: &World, of: &'static str, pass: bool, then: &str) -> Vec<Flip> {
    let guards = policy.guards.iter().filter(|guard| guard.fact.name() == of);
    guards
        .filter_map(|guard| {
            let from = *guarded(guard.fact, world).value()?;
            let unit = guard.fact.unit();
            let to = beside(guard.bound, pass, unit);
            (guard.bound.admits(from) != pass).then(|| flip(of, unit, from, to, then.into()))
        })
        .collect()
}
