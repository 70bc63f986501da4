use super::*;

fn known(median_ms: f64) -> Fact<Outlook> {
    Fact::known(Outlook { lower_ms: median_ms, median_ms, upper_ms: median_ms }, Duration::ZERO, "test")
}

/// Forecast of the request path, of both probes, and of mirrored reads at both sides.
fn world(latency: f64, probes: [Option<f64>; 2], mirrored: [Option<f64>; 2]) -> World {
    let fact = |value: Option<f64>| value.map_or_else(|| Fact::unknown("test"), known);
    World {
        latency: known(latency),
        primary_probe: fact(probes[0]),
        shadow_probe: fact(probes[1]),
        primary_mirrored: fact(mirrored[0]),
        shadow_mirrored: fact(mirrored[1]),
        ..World::unknown("a", "b", "test")
    }
}

#[test]
fn mirrored_reads_come_before_probes_unless_a_probe_fails() {
    let of = |probes, mirrored| world(20.0, probes, mirrored).side_by_side().of;
    let (both, none) = ([Some(5.0), Some(3.0)], [None, None]);
    assert_eq!(of(both, both), "mirrored reads");
    assert_eq!(of(both, none), "probe");
    assert_eq!(of(both, [Some(1.0), None]), "probe");
    assert_eq!(of([Some(5.0), None], both), "probe");
    assert_eq!(of([None, Some(3.0)], both), "probe");
}

#[test]
fn what_the_shadow_would_give() {
    let expected = |latency, probes: [f64; 2], mirrored: [Option<f64>; 2]| {
        let world = world(latency, probes.map(Some), mirrored);
        let (ms, by) = world.expected_from_shadow().expect("known");
        (ms.round(), by)
    };
    let none = [None, None];
    // Probes: the difference, and never less than the shadow's own.
    assert_eq!(expected(30.0, [12.0, 4.0], none), (22.0, "probe"));
    assert_eq!(expected(30.0, [40.0, 4.0], none), (4.0, "probe"));
    // A shadow whose network is near and whose database is slow: the probes see only the one.
    assert_eq!(expected(30.0, [12.0, 4.0], [Some(20.0), Some(50.0)]), (75.0, "mirrored reads"));
    // Reads that are heavier than the rest: the difference would promise 10 of 20 ms, the ratio does 17.
    assert_eq!(expected(20.0, [5.0, 4.0], [Some(60.0), Some(50.0)]), (17.0, "mirrored reads"));
    // Reads that are lighter than the rest: the ratio would promise 50 of 100 ms, the difference does 90.
    assert_eq!(expected(100.0, [5.0, 4.0], [Some(20.0), Some(10.0)]), (90.0, "mirrored reads"));
    assert!(world(30.0, [Some(12.0), None], [Some(20.0), Some(10.0)]).expected_from_shadow().is_none());
}
