//! What the default forecaster promises on series whose truth is known.

use predictor::backtest::walk_forward;
use predictor::network::inputs::Weather;
use predictor::{Ensemble, Forecaster, Inputs, LEVELS, Quantiles, default_forecaster, sample};

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

/// Rain of an hour or two, now and then; the day's temperature, which does nothing.
fn weather(rain: f64, step: usize) -> Inputs {
    let temperature = 12.0 + 8.0 * ((step % 24) as f64 / 24.0 * std::f64::consts::TAU).sin();
    let weather = Weather { temperature: Some(temperature), precipitation: Some(rain), ..Weather::default() };
    Inputs { weather: Some(weather), ..Inputs::default() }
}

/// Weather, and a series that is three times as slow in rain.
fn rained_on(noise: &mut Noise, steps: usize) -> (Vec<Inputs>, Vec<f64>) {
    let mut rain = 0.0;
    (0..steps)
        .map(|step| {
            rain = match (rain > 0.0, noise.uniform()) {
                (true, luck) if luck < 0.6 => rain,
                (false, luck) if luck < 0.06 => 2.0 + noise.uniform(),
                _ => 0.0,
            };
            (weather(rain, step), noise.latency(if rain > 0.0 { 60.0 } else { 20.0 }))
        })
        .unzip()
}

/// A forecaster that has seen `values`, knowing `ahead` steps beyond each.
fn taught(known: &[Inputs], values: &[f64], ahead: usize) -> Ensemble {
    let mut model = default_forecaster(1);
    for (step, value) in values.iter().enumerate() {
        let until = known.len().min(step + ahead + 1);
        model.observe_knowing(step as u64, Some(*value), &known[step..until]);
    }
    model
}

fn forecast(model: &Ensemble, horizon: usize) -> Vec<Quantiles> {
    model.forecast(horizon).forecast().expect("a forecast").steps.clone()
}

#[test]
fn weather_that_is_foreseen_is_in_the_forecast_of_its_step() {
    let mut noise = Noise(5);
    let (mut known, mut values) = rained_on(&mut noise, 1000);
    // It ends dry, and what comes is rain from the ninth step to the twelfth.
    for step in 1000..1060 {
        known.push(weather(if (1009..1013).contains(&step) { 2.5 } else { 0.0 }, step));
    }
    for (known, value) in known[980..1000].iter_mut().zip(&mut values[980..]) {
        (*known, *value) = (weather(0.0, 0), noise.latency(20.0));
    }
    let steps = forecast(&taught(&known, &values, 48), 48);
    for (ahead, quantiles) in steps.iter().enumerate() {
        let range = if (9..13).contains(&ahead) { 50.0..90.0 } else { 18.0..32.0 };
        assert!(range.contains(&quantiles[2]), "{} ahead: {quantiles:?}", ahead + 1);
    }
}

#[test]
fn knowing_the_weather_lowers_the_loss_where_it_matters_and_costs_nothing_where_it_does_not() {
    let mut noise = Noise(6);
    let (known, values) = rained_on(&mut noise, 1400);
    let deaf: Vec<f64> = (0..values.len()).map(|_| noise.latency(30.0)).collect();
    let loss = |values: &[f64], known: &[Inputs]| {
        let mut model = default_forecaster(1);
        let mut sum = 0.0;
        for (step, value) in values.iter().enumerate() {
            let until = known.len().min(step + 13);
            model.observe_knowing(step as u64, Some(*value), &known[step.min(until)..until]);
            if step >= 700 && step + 12 < values.len() {
                let steps = forecast(&model, 12);
                sum +=
                    (0..12).map(|ahead| sample::loss(&steps[ahead], values[step + 1 + ahead])).sum::<f64>();
            }
        }
        sum
    };
    let (seeing, blind) = (loss(&values, &known), loss(&values, &[]));
    assert!(seeing < 0.75 * blind, "{}", seeing / blind);
    let (seeing, blind) = (loss(&deaf, &known), loss(&deaf, &[]));
    assert!(seeing < 1.02 * blind, "{}", seeing / blind);
}

/// Feeds foretell only so far, and leave holes: where the analogs sleep, their weight is the others'.
#[test]
fn steps_of_which_nothing_is_known_are_forecast_like_those_beside_them() {
    let mut noise = Noise(7);
    let (mut known, values) = rained_on(&mut noise, 1000);
    for step in 1000..1021 {
        known.push(if step % 3 == 0 { Inputs::default() } else { weather(0.0, step) });
    }
    let model = taught(&known, &values, 48);
    let weights = model.weights(12);
    let analog = weights.iter().find(|(name, _)| *name == "analog").expect("it has a weight").1;
    assert!(analog > 0.3, "{weights:?}");
    for (ahead, quantiles) in forecast(&model, 200).iter().enumerate() {
        assert!((18.0..45.0).contains(&quantiles[LEVELS.len() / 2]), "{} ahead: {quantiles:?}", ahead + 1);
        assert!(quantiles[0] > 10.0, "{} ahead: {quantiles:?}", ahead + 1);
    }
}
