//! What a provider's maintenance, and the way to the shadow, do to a decision.

use super::*;
use crate::policy::PolicyParts;
use crate::report::Verdict;
use crate::world::{Outlook, Path};

const NOW: Timestamp = Timestamp(1_800_000_000_000);
const MINUTE: Duration = Duration::from_secs(60);

/// Everything speaks for moving from west to east.
fn world() -> World {
    let outlook =
        |ms: f64| Fact::known(Outlook { lower_ms: ms, median_ms: ms, upper_ms: ms }, MINUTE, "probe");
    World {
        baseline_ms: Fact::known(10.0, MINUTE, "usual"),
        latency: outlook(30.0),
        primary_probe: outlook(20.0),
        shadow_probe: outlook(5.0),
        primary_cost: Fact::known(2.0, MINUTE, "feed prices"),
        shadow_cost: Fact::known(1.0, Duration::ZERO, "configuration"),
        primary_utilization: Fact::known(0.5, MINUTE, "in-flight / capacity"),
        shadow_utilization: Fact::known(0.0, MINUTE, "in-flight / capacity"),
        shadow_path: Path::unknown("no feed"),
        lag: Fact::known(crate::units::ByteCount(0), MINUTE, "stream"),
        above_since: Some(Timestamp(0)),
        ..World::unknown("west", "east", "test")
    }
}

fn policy() -> Policy {
    Policy::new(PolicyParts { mode: Mode::Auto, horizon: 30 * MINUTE, ..PolicyParts::default() }).unwrap()
}

fn window(zone: &str, minutes: i64, ends: Option<i64>) -> Maintenance {
    let at = |minutes: i64| Timestamp(NOW.0.saturating_add_signed(minutes * 60_000));
    Maintenance {
        zone: zone.into(),
        title: "routers".into(),
        starts: at(minutes),
        ends: ends.map(at),
        source: "feed works".into(),
    }
}

fn guard(world: &World) -> (DecisionReport, Guard) {
    let report = decide(&policy(), world, NOW);
    let guard = report.guards.iter().find(|guard| guard.name == "no maintenance ahead").unwrap().clone();
    (report, guard)
}

#[test]
fn maintenance_of_the_target_within_the_horizon_stops_a_move() {
    let (report, found) = guard(&world());
    assert!(matches!(report.verdict, Verdict::Move { .. }), "{report:#?}");
    assert_eq!((found.passed, found.value.as_str()), (true, "none known in east"));

    for (window, words) in [
        (window("east", 20, Some(80)), "maintenance of east begins in 20 min: routers"),
        (window("east", -20, Some(180)), "maintenance of east ends in 3 h: routers"),
        (window("east", -20, None), "maintenance of east is under way: routers"),
    ] {
        let (report, found) = guard(&World { maintenance: vec![window], ..world() });
        assert_eq!(report.verdict, Verdict::Stay);
        assert_eq!(
            report.because,
            format!("no maintenance ahead: {words} (needs none in east within 30 min)")
        );
        assert!(!found.passed && !found.binds_operator);
    }
}

#[test]
fn maintenance_that_is_far_or_of_the_primary_is_only_shown() {
    let maintenance = vec![window("west", 5, None), window("east", 31, None)];
    let (report, found) = guard(&World { maintenance, ..world() });
    assert!(matches!(report.verdict, Verdict::Move { .. }));
    assert_eq!(found.value, "none known in east; maintenance of west begins in 5 min: routers (serves now)");
}

#[test]
fn a_calendar_that_cannot_be_read_says_so_and_stops_nothing() {
    let (report, found) = guard(&World { maintenance_unknown: Some("feed works is old".into()), ..world() });
    assert!(matches!(report.verdict, Verdict::Move { .. }));
    assert_eq!(found.value, "none known in east; there may be more: feed works is old");
}

#[test]
fn a_term_of_two_facts_names_both_and_is_as_old_as_the_older() {
    let score = score(&policy().weights, &world());
    assert_eq!(score.terms[1].raw, Fact::known(0.5, MINUTE, "feed prices; configuration"));
    assert_eq!(score.terms[2].raw, Fact::known(0.5, MINUTE, "in-flight / capacity"));
    let unknown = World { shadow_cost: Fact::unknown("feed prices is old"), ..world() };
    let term = &crate::score::score(&policy().weights, &unknown).terms[1];
    assert_eq!(term.raw.why_unknown(), Some("feed prices is old"));
    assert!(term.points.abs() < f64::EPSILON && term.points_lower.abs() < f64::EPSILON);
}

#[test]
fn a_policy_may_keep_off_a_way_that_loses_packets_or_has_just_changed() {
    let guards = vec![
        ExtraGuard { fact: GuardedFact::ShadowLoss, bound: Bound::Below(0.02), binds_operator: false },
        ExtraGuard {
            fact: GuardedFact::ShadowRouteAge,
            bound: Bound::Above(600_000.0),
            binds_operator: false,
        },
        ExtraGuard { fact: GuardedFact::ShadowRttMs, bound: Bound::Below(80.0), binds_operator: false },
    ];
    let parts = PolicyParts { mode: Mode::Auto, horizon: 30 * MINUTE, guards, ..PolicyParts::default() };
    let policy = Policy::new(parts).unwrap();
    let known = |value: f64| Fact::known(value, MINUTE, "feed links");
    let good = Path { rtt_ms: known(22.0), loss: known(0.001), route_age_ms: known(3_600_000.0) };
    let because = |path: Path| decide(&policy, &World { shadow_path: path, ..world() }, NOW);
    assert!(matches!(because(good.clone()).verdict, Verdict::Move { .. }));
    for (path, why) in [
        (Path { loss: known(0.05), ..good.clone() }, "shadow_loss: 5.00% (needs below 2.00%)"),
        (
            Path { route_age_ms: known(90_000.0), ..good.clone() },
            "shadow_route_age_ms: 90000.0 ms (needs above 600000.0 ms)",
        ),
        (Path { rtt_ms: known(200.0), ..good.clone() }, "shadow_rtt_ms: 200.0 ms (needs below 80.0 ms)"),
        (
            Path { loss: Fact::unknown("the newest of feed links is 20 s old, 15 s are allowed"), ..good },
            "shadow_loss: unknown: the newest of feed links is 20 s old, 15 s are allowed (needs below 2.00%)",
        ),
    ] {
        let report = because(path);
        assert_eq!((report.verdict, report.because.as_str()), (Verdict::Stay, why));
    }
}
