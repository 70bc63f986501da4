//! What the default forecaster promises on series whose truth is known.

use predictor::backtest::walk_forward;
use predictor::{Forecaster, default_forecaster};

/// Seeded noise: uniform numbers in 0..1 (splitmix64).
struct Noise(u64);

impl Noise {
    fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Latency-like: a floor, an exponential tail, now and then a spike.
    fn latency(&mut self, level: f64) -> f64 {
        let tail = -(1.0 - self.uniform()).ln() * 0.2 * level;
        let spike = if self.uniform() < 0.02 { 5.0 * level } else { 0.0 };
        level + tail + spike
    }
}

/// Of how many jumps to a level that stays `level` of the forecast is nearer to the new one, `after` steps into it. Counts
/// rises and falls.
fn followed(level: f64, steps: u64) -> [(usize, usize); 2] {
    let mut counts = [(0, 0); 2];
    for seed in 0..40 {
        let mut noise = Noise(seed);
        for (before, after) in [(20.0, 160.0), (2.0, 5.0), (100.0, 40.0)] {
            let mut model = default_forecaster(seed);
            for step in 0..60 {
                model.observe(step, Some(noise.latency(before)));
            }
            for step in 60..60 + steps {
                model.observe(step, Some(noise.latency(after)));
            }
            let outlook = model.forecast(120);
            let seen = outlook.forecast().expect("a forecast").over_horizon(level);
            let count = &mut counts[usize::from(after < before)];
            count.0 += usize::from((seen - after).abs() < (seen - before).abs());
            count.1 += 1;
        }
    }
    counts
}

#[test]
fn a_jump_that_stays_is_followed_within_eight_steps() {
    let [rises, falls] = followed(0.5, 8);
    println!("rises {rises:?} falls {falls:?}");
    // Real jumps often pass: a hard 120 of 120 costs a fifth of the loss on measured series.
    assert!(rises.0 * 100 >= rises.1 * 97, "{rises:?}");
    assert!(falls.0 * 100 >= falls.1 * 80, "{falls:?}");
    let [rises, _] = followed(0.95, 8);
    assert_eq!(rises.0, rises.1);
    let [rises, falls] = followed(0.5, 16);
    println!("rises {rises:?} falls {falls:?}");
    assert!(rises.0 == rises.1 && falls.0 * 100 >= falls.1 * 90, "{rises:?} {falls:?}");
}

#[test]
fn the_band_covers_as_promised_when_calm_and_nearly_so_across_jumps() {
    let mut noise = Noise(7);
    let calm: Vec<Option<f64>> = (0..3000).map(|_| Some(noise.latency(30.0))).collect();
    let jumping: Vec<Option<f64>> = (0..3000)
        .map(|step| {
            let level = if step / 150 % 2 == 0 { 30.0 } else { 120.0 };
            (step % 17 != 0).then(|| noise.latency(level))
        })
        .collect();
    // Jumps come every 150 steps and cannot be foreseen: of the forecasts 48 steps ahead a third span one. Their
    // feedback comes late, so the band makes up for only part of them; without it coverage would be 0.9 * 0.68.
    let calm = (calm, [0.87, 0.87, 0.87]);
    let jumping = (jumping, [0.87, 0.84, 0.67]);
    for (series, least) in [calm, jumping] {
        let reports = walk_forward(&mut default_forecaster(1), &series, &[1, 8, 48], 200);
        for ((report, distance), least) in reports.iter().zip([1, 8, 48]).zip(least) {
            println!("at {distance}: coverage {:.3} skill {:.3}", report.coverage(), report.skill());
            assert!((least..0.93).contains(&report.coverage()), "at {distance}: {}", report.coverage());
            assert_eq!(report.abstained, 0);
        }
    }
}

#[test]
fn noise_around_a_level_is_forecast_better_than_by_persistence() {
    let mut noise = Noise(11);
    let series: Vec<Option<f64>> = (0..1500).map(|_| Some(noise.latency(30.0))).collect();
    for report in walk_forward(&mut default_forecaster(1), &series, &[1, 16, 48], 100) {
        assert!(report.skill() > 0.15, "{report:?}");
    }
}

#[test]
fn a_forecast_does_not_change_when_the_future_does() {
    let mut noise = Noise(3);
    let shared: Vec<f64> = (0..300).map(|_| noise.latency(30.0)).collect();
    let forecast = |model: &dyn Forecaster| model.forecast(60);
    let mut model = default_forecaster(1);
    for (step, value) in shared.iter().enumerate() {
        model.observe(step as u64, Some(*value));
    }
    let alone = forecast(&model);
    let mut replayed = default_forecaster(1);
    for (step, value) in shared.iter().enumerate() {
        replayed.observe(step as u64, Some(*value));
        // Asking must not teach.
        let _ = forecast(&replayed);
    }
    assert_eq!(alone, forecast(&replayed));
}
