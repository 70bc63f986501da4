//! `make bench-decide`: score and decision, report included, for ten thousand resources on one core.

use std::hint::black_box;
use std::time::{Duration, Instant};

use migration::decide::{above_since, decide};
use migration::policy::{Mode, Policy, PolicyParts};
use migration::units::{ByteCount, Timestamp};
use migration::world::{Fact, Outlook, Path, World};

const RESOURCES: u64 = 10_000;
const ROUNDS: usize = 21;

/// A small generator: every resource is different, every run of this bench the same.
fn luck(state: &mut u64) -> f64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*state >> 11) as f64 / (1_u64 << 53) as f64
}

fn world(state: &mut u64) -> World {
    let known = |value: f64| Fact::known(value, Duration::from_secs(2), "measured");
    let outlook = |ms: f64| {
        let value = Outlook { lower_ms: ms * 0.8, median_ms: ms, upper_ms: ms * 1.3 };
        Fact::known(value, Duration::from_secs(2), "forecast")
    };
    World {
        baseline_ms: known(5.0 + 20.0 * luck(state)),
        latency: outlook(5.0 + 60.0 * luck(state)),
        primary_probe: outlook(2.0 + 20.0 * luck(state)),
        shadow_probe: outlook(2.0 + 20.0 * luck(state)),
        primary_mirrored: outlook(5.0 + 60.0 * luck(state)),
        shadow_mirrored: outlook(5.0 + 60.0 * luck(state)),
        mirrored_different: known(0.01 * luck(state)),
        primary_cost: known(1.0 + luck(state)),
        shadow_cost: known(1.0 + luck(state)),
        primary_utilization: known(luck(state)),
        shadow_utilization: known(luck(state)),
        shadow_path: Path {
            rtt_ms: known(luck(state)),
            loss: known(luck(state)),
            route_age_ms: known(luck(state)),
        },
        lag: Fact::known(ByteCount((luck(state) * 3e7) as u64), Duration::ZERO, "stream"),
        above_since: Some(Timestamp(1)),
        ..World::unknown("eu-west", "eu-central", "bench")
    }
}

#[expect(clippy::disallowed_methods, reason = "a benchmark measures time")]
fn main() {
    let policy = Policy::new(PolicyParts { mode: Mode::Auto, ..PolicyParts::default() }).expect("valid");
    let mut state = 1;
    let worlds: Vec<World> = (0..RESOURCES).map(|_| world(&mut state)).collect();
    let now = Timestamp(10_000_000);
    let mut took: Vec<Duration> = (0..ROUNDS)
        .map(|_| {
            let started = Instant::now();
            for world in &worlds {
                let _ = black_box(above_since(&policy, black_box(world), now));
                let _ = black_box(decide(&policy, black_box(world), now));
            }
            started.elapsed()
        })
        .collect();
    took.sort_unstable();
    let ms = |at: usize| took[at].as_secs_f64() * 1000.0;
    println!(
        "{RESOURCES} resources, score + decision + report: median {:.1} ms a round (fastest {:.1}, slowest {:.1}) of {ROUNDS}",
        ms(ROUNDS / 2),
        ms(0),
        ms(ROUNDS - 1)
    );
}
