//! Reports as snapshots, and what must hold of any decision.

use std::fmt::Write as _;

use proptest::prelude::*;

use super::*;
use crate::policy::PolicyParts;
use crate::units::ByteCount;
use crate::world::{Outlook, Path};

const NOW: Timestamp = Timestamp(100_000_000);

fn known<T>(value: T) -> Fact<T> {
    Fact::known(value, Duration::from_secs(3), "test")
}

fn outlook(median_ms: f64) -> Outlook {
    Outlook { lower_ms: median_ms * 0.9, median_ms, upper_ms: median_ms * 1.2 }
}

/// A move pays and nothing stands in its way.
fn world() -> World {
    World {
        baseline_ms: known(10.0),
        latency: known(outlook(18.0)),
        primary_probe: known(outlook(12.0)),
        shadow_probe: known(outlook(4.0)),
        primary_cost: known(2.0),
        shadow_cost: known(1.5),
        primary_utilization: known(0.7),
        shadow_utilization: known(0.3),
        shadow_path: Path { rtt_ms: known(22.0), loss: known(0.002), route_age_ms: known(3_600_000.0) },
        lag: known(ByteCount(4096)),
        shadow_service: Service::Answers,
        above_since: Some(Timestamp(NOW.0 - 200_000)),
        ..World::unknown("a", "b", "test")
    }
}

fn policy(change: impl FnOnce(&mut PolicyParts)) -> Policy {
    let mut parts = PolicyParts { mode: Mode::Auto, ..PolicyParts::default() };
    change(&mut parts);
    Policy::new(parts).expect("a valid policy")
}

fn show(report: &DecisionReport) -> String {
    let mut text = format!("{:?}: {}\n", report.verdict, report.because);
    for term in &report.score.terms {
        let raw = term.raw.value().map_or_else(|| "unknown".into(), |raw| format!("{raw:+.3}"));
        let (points, lower) = (term.points, term.points_lower);
        let _ = writeln!(
            text,
            "term {}: {raw} x {} = {points:+.3} (at least {lower:+.3})",
            term.name, term.weight
        );
    }
    for guard in &report.guards {
        let mark = if guard.passed { "ok" } else { "NO" };
        let _ = writeln!(text, "{mark} {}: {} (needs {})", guard.name, guard.value, guard.limit);
    }
    for awaited in &report.awaited {
        let at = awaited.at.map_or("?".into(), |at| format!("in {} s", at.since(NOW).as_secs()));
        let _ = writeln!(text, "awaits {}: {} {at}", awaited.guard, awaited.what);
    }
    for flip in &report.flips {
        let _ = writeln!(
            text,
            "flips {}: {} -> {} ({:.3}): {}",
            flip.of, flip.from, flip.to, flip.size, flip.then
        );
    }
    text
}

#[test]
fn reports() {
    let extra = ExtraGuard { fact: GuardedFact::LagBytes, bound: Bound::Below(1024.0), binds_operator: true };
    let agree =
        ExtraGuard { fact: GuardedFact::MirroredDifferent, bound: Bound::Below(0.01), binds_operator: false };
    let window =
        |until| Freeze { by: "window".into(), why: "working hours".into(), until, binds_operator: false };
    let freeze = Freeze { by: "ann".into(), why: "release".into(), until: None, binds_operator: true };
    let plain = policy(|_| {});
    let cases = vec![
        ("a move", plain.clone(), world()),
        ("a proposal", policy(|parts| parts.mode = Mode::Advise), world()),
        ("observed", policy(|parts| parts.mode = Mode::Observe), world()),
        (
            "the score is too low",
            plain.clone(),
            World { latency: known(outlook(11.0)), above_since: None, ..world() },
        ),
        ("not long enough", plain.clone(), World { above_since: Some(Timestamp(NOW.0 - 60_000)), ..world() }),
        ("just moved", plain.clone(), World { last_move: Some(Timestamp(NOW.0 - 600_000)), ..world() }),
        (
            "undone twice",
            plain.clone(),
            World { undone: Undone { count: 2, last: Some(Timestamp(NOW.0 - 30_000)) }, ..world() },
        ),
        (
            "frozen twice",
            plain.clone(),
            World { freezes: vec![window(Some(NOW.after(Duration::from_secs(90)))), freeze], ..world() },
        ),
        ("an extra guard", policy(|parts| parts.guards = vec![extra]), world()),
        (
            "mirrored reads say that the shadow is no better",
            plain.clone(),
            World { primary_mirrored: known(outlook(9.0)), shadow_mirrored: known(outlook(11.0)), ..world() },
        ),
        (
            "mirrored reads say that it is, and are answered otherwise",
            policy(|parts| parts.guards = vec![agree]),
            World {
                primary_probe: known(outlook(3.0)),
                primary_mirrored: known(outlook(11.0)),
                shadow_mirrored: known(outlook(9.0)),
                mirrored_different: known(0.07),
                ..world()
            },
        ),
        (
            "mirrored before the shadow's probe failed",
            plain.clone(),
            World {
                shadow_probe: Fact::unknown("probe fails"),
                primary_mirrored: known(outlook(11.0)),
                shadow_mirrored: known(outlook(9.0)),
                ..world()
            },
        ),
        (
            "the shadow's service does not answer",
            policy(|parts| parts.mode = Mode::Observe),
            World { shadow_service: Service::Silent("10.0.0.9:80: connection refused".into()), ..world() },
        ),
        (
            "nothing is known of the shadow",
            plain,
            World {
                shadow_probe: Fact::unknown("probe fails"),
                lag: Fact::unknown("no stream"),
                shadow_service: Service::Unjudged("it was not probed".into()),
                ..world()
            },
        ),
    ];
    let mut text = String::new();
    for (what, policy, world) in cases {
        let _ = writeln!(text, "## {what}\n{}", show(&decide(&policy, &world, NOW)));
    }
    insta::assert_snapshot!(text);
}

#[test]
fn a_primary_that_costs_nothing_is_not_left_for_one_that_does() {
    let policy = policy(|_| {});
    let raw = |primary, shadow| {
        let world = World { primary_cost: known(primary), shadow_cost: known(shadow), ..world() };
        let [_, cost, _] = score(&policy.weights, &world).terms;
        (cost.raw.value().copied(), decide(&policy, &world, NOW).verdict != Verdict::Stay)
    };
    assert_eq!(raw(0.0, 0.01), (Some(-10.0), false));
    assert_eq!(raw(0.0, 0.0), (Some(0.0), true));
}

/// The service has become slow by itself, and the other zone is hardly any nearer.
fn slow_by_itself() -> World {
    World {
        baseline_ms: known(40.0),
        latency: known(outlook(60.0)),
        primary_probe: known(outlook(2.01)),
        shadow_probe: known(outlook(2.0)),
        primary_cost: Fact::unknown("test"),
        primary_utilization: Fact::unknown("test"),
        ..world()
    }
}

#[test]
fn what_would_be_as_slow_in_the_other_zone_stays() {
    let policy = policy(|_| {});
    let better = |world: &World| {
        let report = decide(&policy, world, NOW);
        let guard = report.guards.iter().find(|guard| guard.name == name::BETTER).expect("there is one");
        let others = report.guards.iter().all(|guard| guard.passed || guard.name == name::BETTER);
        assert!(others, "{}", show(&report));
        assert_eq!(report.verdict != Verdict::Stay, guard.passed);
        (
            guard.passed,
            guard.value.clone(),
            report.flips.iter().map(|flip| flip.to.clone()).collect::<Vec<_>>(),
        )
    };
    let alike = slow_by_itself();
    let said = "probe forecast 2.0 ms in b, 2.0 ms in a; 60.0 ms here and 60.0 ms expected there: worth 0.00";
    assert_eq!(better(&alike), (false, said.to_owned(), vec![]), "no median is low enough");
    // 55 of 60 ms are worth 0.09; of 57.15 ms, 0.05.
    let nearer = World { primary_probe: known(outlook(7.0)), ..alike.clone() };
    assert!(better(&nearer).0);
    let barely = World { shadow_probe: known(outlook(5.0)), ..nearer.clone() };
    let (passed, value, flips) = better(&barely);
    assert!(!passed && value.ends_with("60.0 ms here and 58.0 ms expected there: worth 0.03"), "{value}");
    assert_eq!(flips, ["4.1 ms"]);
    // A zone that is cheaper is moved to for its price.
    let cheaper = World { primary_cost: known(9.0), ..alike.clone() };
    let mut parts = (*policy).clone();
    parts.weights.cost = 1.0;
    let by_cost = Policy::new(parts).expect("valid");
    assert_ne!(decide(&by_cost, &cheaper, NOW).verdict, Verdict::Stay);
    // A price that does not carry the score is none.
    assert_eq!(decide(&by_cost, &World { shadow_cost: known(8.9), ..cheaper }, NOW).verdict, Verdict::Stay);
}

#[test]
fn what_would_make_the_price_carry_a_move_is_told_where_the_latency_does_not() {
    let by_cost = policy(|parts| parts.weights.cost = 1.0);
    let dear = World {
        latency: known(Outlook { lower_ms: 41.0, median_ms: 42.0, upper_ms: 50.0 }),
        primary_cost: known(2.0),
        shadow_cost: known(1.5),
        ..slow_by_itself()
    };
    let report = decide(&by_cost, &dear, NOW);
    let failed: Vec<_> = report.guards.iter().filter(|guard| !guard.passed).map(|guard| guard.name).collect();
    assert_eq!(failed, [name::SCORE, name::BETTER]);
    // 0.25 of the 0.30 that it has to clear alone: what the latency adds makes no move of it.
    let told: Vec<_> = report.flips.iter().map(|flip| (flip.of, &*flip.from, &*flip.to)).collect();
    assert_eq!(told, [("cost", "1.500/h", "1.400/h")]);
    let moves = |cost| decide(&by_cost, &World { shadow_cost: known(cost), ..dear.clone() }, NOW).verdict;
    assert_eq!((moves(1.401), moves(1.399) == Verdict::Stay), (Verdict::Stay, false));
    // Where the shadow is not nearer at all, the price alone changes nothing.
    let farther = World { shadow_probe: known(outlook(2.02)), ..dear };
    assert!(decide(&by_cost, &farther, NOW).flips.is_empty());
}

#[test]
fn a_primary_of_which_nothing_is_known_is_not_left_for_that() {
    let blind = World { primary_probe: Fact::unknown("it was not probed yet"), ..world() };
    assert!(!moves_in(&blind));
    assert!(moves_in(&World { primary_fails: true, ..blind.clone() }));
    let neither = World { primary_fails: true, shadow_probe: Fact::unknown("it fails"), ..blind };
    assert!(!moves_in(&neither));
}

#[test]
fn pauses_after_undone_moves_grow_up_to_the_cooldown() {
    let policy = policy(|parts| parts.cooldown = Duration::from_mins(10));
    let pause = |count| {
        let undone = Undone { count, last: Some(NOW) };
        pause_ends(&policy, undone).expect("one was undone").since(NOW).as_secs()
    };
    assert_eq!([1, 2, 3, 4, 5, 40].map(pause), [60, 120, 240, 480, 600, 600]);
    assert_eq!(pause_ends(&policy, Undone::default()), None);
    let ends = |ago| {
        let undone = Undone { count: 1, last: Some(Timestamp(NOW.0 - ago)) };
        decide(&policy, &World { undone, ..world() }, NOW).verdict
    };
    assert_eq!(ends(59_999), Verdict::Stay);
    assert_ne!(ends(60_000), Verdict::Stay);
}

#[test]
fn once_above_it_may_dip_by_the_hysteresis() {
    let policy = policy(|parts| parts.hysteresis = 0.1);
    let scored = |lower: f64| {
        let world = World {
            latency: known(Outlook { lower_ms: 10.0 + lower * 10.0, median_ms: 30.0, upper_ms: 40.0 }),
            primary_cost: Fact::unknown("test"),
            primary_utilization: Fact::unknown("test"),
            ..world()
        };
        assert!((score(&policy.weights, &world).lower - lower).abs() < 1e-9);
        world
    };
    let since = |lower: f64, before: Option<u64>| {
        let world = World { above_since: before.map(Timestamp), ..scored(lower) };
        above_since(&policy, &world, NOW).map(|at| at.0)
    };
    // What must be cleared is 0.3.
    assert_eq!(since(0.29, None), None);
    assert_eq!(since(0.31, None), Some(NOW.0));
    assert_eq!(since(0.25, Some(5)), Some(5));
    assert_eq!(since(0.19, Some(5)), None);
    // Within the band it is not above: no move, but the time goes on.
    let dipped = World { above_since: Some(Timestamp(0)), ..scored(0.25) };
    assert_eq!(decide(&policy, &dipped, NOW).verdict, Verdict::Stay);
}

#[test]
fn what_would_flip_an_extra_guard_is_on_the_right_side_as_it_is_shown() {
    use GuardedFact::{LagBytes, MirroredDifferent, ShadowCost, ShadowRttMs};
    // The world has a lag of 4096, costs of 1.5, 22 ms, and 7 % of answers that differ.
    for (fact, bound, to) in [
        (MirroredDifferent, Bound::Below(0.01), "0.99%"),
        (MirroredDifferent, Bound::Below(0.010_05), "1.00%"),
        (MirroredDifferent, Bound::Above(0.29), "29.01%"),
        (MirroredDifferent, Bound::Below(0.57), "57.00%"),
        (MirroredDifferent, Bound::Above(0.000_55), "0.05%"),
        (ShadowCost, Bound::Below(0.4), "0.399/h"),
        (ShadowCost, Bound::Above(1.7), "1.701/h"),
        (LagBytes, Bound::Below(1024.0), "1023 bytes"),
        (LagBytes, Bound::Below(8192.0), "8192 bytes"),
        (ShadowRttMs, Bound::Below(20.0), "19.9 ms"),
        (ShadowRttMs, Bound::Above(21.05), "21.0 ms"),
    ] {
        let guards = vec![ExtraGuard { fact, bound, binds_operator: false }];
        let world = World { mirrored_different: known(0.07), ..world() };
        let report = decide(&policy(|parts| parts.guards = guards), &world, NOW);
        let flip = report.flips.iter().find(|flip| flip.of == fact.name()).expect("one of the guard");
        assert_eq!(flip.to, to, "{bound:?}");
        let number: f64 = to.trim_end_matches(|c: char| !c.is_ascii_digit()).parse().expect("a number");
        let number = if fact == MirroredDifferent { number / 100.0 } else { number };
        assert_eq!(bound.admits(number), report.verdict == Verdict::Stay, "{bound:?}: {to}");
    }
}

fn maybe(range: std::ops::Range<f64>) -> impl Strategy<Value = Fact<f64>> {
    prop_oneof![4 => range.prop_map(known), 1 => Just(Fact::unknown("not measured"))]
}

fn maybe_outlook(range: std::ops::Range<f64>) -> impl Strategy<Value = Fact<Outlook>> {
    maybe(range).prop_map(|fact| fact.map(|median| outlook(*median)))
}

fn maybe_cost() -> impl Strategy<Value = Fact<f64>> {
    prop_oneof![4 => maybe(0.1..5.0), 1 => Just(known(0.0))]
}

prop_compose! {
    fn any_world()(
        baseline_ms in maybe(1.0..50.0),
        latency in maybe_outlook(1.0..100.0),
        primary_probe in maybe_outlook(1.0..100.0),
        shadow_probe in maybe_outlook(1.0..100.0),
        mirrored in (maybe_outlook(1.0..100.0), maybe_outlook(1.0..100.0)),
        costs in (maybe_cost(), maybe_cost()),
        use_ in (maybe(0.0..1.0), maybe(0.0..1.0)),
        lag in maybe(0.0..4e7),
        above in proptest::option::of(0_u64..400_000),
        last in proptest::option::of(0_u64..10_000_000),
        moves in 0_u32..3,
    ) -> World {
        World {
            baseline_ms, latency, primary_probe, shadow_probe,
            primary_mirrored: mirrored.0, shadow_mirrored: mirrored.1,
            primary_cost: costs.0, shadow_cost: costs.1,
            primary_utilization: use_.0, shadow_utilization: use_.1,
            lag: lag.map(|bytes| ByteCount(*bytes as u64)),
            above_since: above.map(|ago| Timestamp(NOW.0 - ago)),
            last_move: last.map(|ago| Timestamp(NOW.0 - ago)),
            moves_last_day: moves,
            ..world()
        }
    }
}

/// Nothing but the score and the probes stand in the way.
fn eager_world() -> impl Strategy<Value = World> {
    (any_world(), 0.0..1.6e7).prop_map(|(world, lag)| World {
        lag: known(ByteCount(lag as u64)),
        above_since: Some(Timestamp(0)),
        last_move: None,
        moves_last_day: 0,
        ..world
    })
}

#[test]
fn moves_are_awaited_until_enough_of_them_are_a_day_old() {
    let hours = |hours: u64| Timestamp(hours * 3_600_000);
    let (commits, limited) = ([1, 2, 3].map(hours), policy(|parts| parts.max_moves_per_day = 2));
    let world = World { moves_last_day: 3, moves_ease: moves_ease(&limited, &commits), ..world() };
    let awaited = decide(&limited, &world, hours(4)).awaited;
    let at = awaited.iter().find(|awaited| awaited.guard == name::MOVES).and_then(|awaited| awaited.at);
    assert_eq!(at, Some(hours(26)), "the oldest alone leaves two");
    assert_eq!(moves_ease(&limited, &commits[1..]), Some(hours(26)));
    assert_eq!(moves_ease(&limited, &commits[2..]), None);
}

fn moves_in(world: &World) -> bool {
    decide(&policy(|_| {}), world, NOW).verdict != Verdict::Stay
}

proptest! {
    #![proptest_config(ProptestConfig { max_global_rejects: 100_000, ..ProptestConfig::default() })]

    /// What speaks more for moving never turns a move into staying.
    #[test]
    fn more_reason_never_stops_a_move(world in eager_world(), more in 1.0_f64..3.0) {
        prop_assume!(moves_in(&world));
        // In the primary's zone: what is slow wherever it runs is no reason.
        let by = world.latency.value().map_or(0.0, |now| now.median_ms * (more - 1.0));
        let slowed = |fact: &Fact<Outlook>| fact.map(|now| outlook(now.median_ms + by));
        let higher = World {
            latency: slowed(&world.latency),
            primary_probe: slowed(&world.primary_probe),
            primary_mirrored: slowed(&world.primary_mirrored),
            ..world.clone()
        };
        prop_assert!(moves_in(&higher), "a higher latency");
        let cheaper = World { shadow_cost: world.shadow_cost.map(|cost| cost / more), ..world.clone() };
        prop_assert!(moves_in(&cheaper), "a cheaper shadow");
        let idler = World { shadow_utilization: world.shadow_utilization.map(|use_| use_ / more), ..world.clone() };
        prop_assert!(moves_in(&idler), "an idler shadow");
        let nearer = World { lag: world.lag.map(|lag| ByteCount((lag.0 as f64 / more) as u64)), ..world.clone() };
        prop_assert!(moves_in(&nearer), "less lag");
        let sped = |fact: &Fact<Outlook>| fact.map(|now| outlook(now.median_ms / more));
        let faster = World { shadow_probe: sped(&world.shadow_probe), shadow_mirrored: sped(&world.shadow_mirrored), ..world };
        prop_assert!(moves_in(&faster), "a faster shadow");
    }

    /// What speaks against moving never makes a move of staying.
    #[test]
    fn a_price_that_speaks_against_it_never_starts_a_move(world in eager_world(), more in 1.0_f64..3.0) {
        prop_assume!(!moves_in(&world));
        let dearer = World { shadow_cost: world.shadow_cost.map(|cost| cost * more + more), ..world.clone() };
        prop_assert!(!moves_in(&dearer), "a dearer shadow");
        let cheaper = World { primary_cost: world.primary_cost.map(|cost| cost / more), ..world.clone() };
        prop_assert!(!moves_in(&cheaper), "a cheaper primary");
        let free = World { primary_cost: world.primary_cost.map(|_| 0.0), ..world };
        prop_assert!(!moves_in(&free), "a primary that costs nothing");
    }

    /// A term of which something is unknown gives no points; an unknown that a guard needs stops the move.
    #[test]
    fn what_is_unknown_never_argues_for_a_move(world in any_world()) {
        let report = decide(&policy(|_| {}), &world, NOW);
        for term in &report.score.terms {
            if term.raw.value().is_none() {
                prop_assert!(term.points == 0.0 && term.points_lower == 0.0);
            }
        }
        let blind = World { latency: Fact::unknown("x"), shadow_cost: Fact::unknown("x"), primary_utilization: Fact::unknown("x"), ..world.clone() };
        prop_assert!(!moves_in(&blind), "nothing is known that speaks for it");
        let lagging = World { lag: Fact::unknown("x"), ..world.clone() };
        let unprobed = World { shadow_probe: Fact::unknown("x"), ..world };
        prop_assert!(!moves_in(&lagging) && !moves_in(&unprobed));
    }

    /// Carried out, a flip changes the verdict; a tenth less does not.
    #[test]
    fn flips_are_true_and_tight(world in eager_world()) {
        let policy = policy(|_| {});
        let report = decide(&policy, &world, NOW);
        let before = report.verdict != Verdict::Stay;
        for flip in report.flips {
            let exact = |share: f64| edit(&world, &policy, flip.of, before, share);
            prop_assert_ne!(moves_in(&exact(1.0 + 1e-6)), before, "{:?}", flip);
            prop_assert_eq!(moves_in(&exact(0.9)), before, "{:?}", flip);
        }
    }
}

/// The world with the fact of a flip moved by `share` of the way to its border; what that is follows from the definitions, not
/// from [`crate::flip`].
fn edit(world: &World, policy: &Policy, of: &str, moves: bool, share: f64) -> World {
    let score = score(&policy.weights, world);
    let mut missing = needed(policy) - score.lower;
    let gain = world.latency.value().zip(world.expected_from_shadow());
    let pays = gain.is_none_or(|(here, (there, _))| here.median_ms > there * (1.0 + policy.disruption));
    if of != "latency" && !pays {
        // The latency must not have to carry the score.
        missing = missing.max(needed(policy) - score.others_lower());
    }
    let missing = missing * share;
    let mut edited = world.clone();
    // Once it clears, it is assumed to have lasted.
    if !moves {
        edited.above_since = Some(Timestamp(0));
    }
    let number = |fact: &Fact<f64>| *fact.value().expect("a flip needs it");
    match of {
        "latency" => {
            let by = missing / policy.weights.latency * number(&world.baseline_ms);
            edited.latency = world.latency.map(|now| Outlook { lower_ms: now.lower_ms + by, ..*now });
        }
        "cost" => {
            let by = missing / policy.weights.cost * number(&world.primary_cost);
            edited.shadow_cost = world.shadow_cost.map(|cost| cost - by);
        }
        "utilization" => {
            let by = missing / policy.weights.utilization;
            edited.primary_utilization = world.primary_utilization.map(|now| now + by);
        }
        name::LAG => {
            edited.lag = world.lag.map(|lag| {
                let border = policy.max_lag.0 as f64 + f64::from(u8::from(moves));
                ByteCount((lag.0 as f64 + (border - lag.0 as f64) * share).round() as u64)
            });
        }
        name::BETTER => {
            let both = world.side_by_side();
            let before = both.shadow.value().expect("known").median_ms;
            let with = |median_ms: f64| {
                let fact = both.shadow.map(|now| Outlook { median_ms, ..*now });
                let (of_probe, now) = (both.of == "probe", edited.clone());
                if of_probe {
                    World { shadow_probe: fact, ..now }
                } else {
                    World { shadow_mirrored: fact, ..now }
                }
            };
            // Halved until it is found: at `low` there is a move, at `high` none.
            let (mut low, mut high) =
                if moves { (before, both.primary.value().expect("known").median_ms) } else { (0.0, before) };
            for _ in 0..60 {
                let middle = f64::midpoint(low, high);
                if moves_in(&with(middle)) { low = middle } else { high = middle }
            }
            edited = with(before + (low - before) * share);
        }
        other => panic!("unexpected flip {other}"),
    }
    edited
}
