//! A primary whose probe fails.

use migration::cutover::Phase;
use migration::decide::decide;
use migration::policy::{Mode, PolicyParts};
use migration::report::{DecisionReport, Verdict};

use super::*;

/// A primary in the west that is the nearer one, and whose service has become slow by itself.
struct Slow {
    signals: Signals,
    state: State,
    policy: Policy,
    step: u64,
}

impl Slow {
    fn new() -> Self {
        let policy = Policy::new(PolicyParts { mode: Mode::Auto, ..PolicyParts::default() }).expect("valid");
        let mut state = State::first("orders", "west".into(), "east".into(), Timestamp(0));
        state.phase = Phase::Shadowing;
        let mut slow = Self { signals: Signals::new(1, policy.step, None), state, policy, step: 0 };
        for step in 0..200 {
            let report = slow.step(if step < 100 { 40.0 } else { 80.0 }, Ok(20.0), false);
            assert_eq!(report.verdict, Verdict::Stay, "{step}");
        }
        slow
    }

    fn step(&mut self, p95: f64, primary: Result<f64, &str>, fails: bool) -> DecisionReport {
        self.step += 1;
        let now = Timestamp(self.step * 10_000);
        let measured = Measured {
            request_p95_ms: Some(p95),
            probes_ms: [("west".to_owned(), primary.map_err(str::to_owned)), ("east".to_owned(), Ok(60.0))]
                .into(),
            probes_fail: fails.then(|| "west".to_owned()).into_iter().collect(),
            lag: Some(Ok(0)),
            shadow_service: Some(Service::Answers),
            ..Measured::default()
        };
        self.signals.observe("west", measured, false, now);
        let (moves, age) = (Moves::default(), Duration::ZERO);
        let world = self.signals.world(&self.policy, &self.state, moves, Vec::new(), age, now);
        decide(&self.policy, &world, now)
    }
}

#[test]
fn one_that_fails_once_is_not_left_for_a_slower_zone() {
    let mut slow = Slow::new();
    let report = slow.step(80.0, Err("timeout"), false);
    assert_eq!(report.verdict, Verdict::Stay);
    let failed: Vec<_> = report.guards.iter().filter(|guard| !guard.passed).collect();
    assert!(failed.len() == 1 && failed[0].value.contains("in east, 20.0 ms in west"), "{failed:#?}");
    // Twice in a row it is no chance.
    let report = slow.step(80.0, Err("timeout"), true);
    assert_eq!(report.verdict, Verdict::Move { to: "east".into() }, "{report:#?}");
}

#[test]
fn one_of_which_nothing_is_known_any_more_is_not_left_either() {
    let mut slow = Slow::new();
    for _ in 0..70 {
        let report = slow.step(80.0, Err("the newest HTTP probe reading is 60000 ms old"), false);
        assert_eq!(report.verdict, Verdict::Stay);
    }
    let report = slow.step(80.0, Err("the newest HTTP probe reading is 60000 ms old"), false);
    let better = report.guards.iter().find(|guard| !guard.passed).expect("one");
    assert!(better.value.contains("west unknown: the HTTP probe of west fails: the newest"), "{better:#?}");
}
