//! Services whose level jumps and stays, as a zone that has become slow does: public sets hold few of them.

use predictor::rng::Rng;

use crate::data::{Series, Set};

/// Series and steps in each.
const SERIES: usize = 160;
const STEPS: usize = 600;

/// A set of simulated services, from a seed.
pub(crate) fn services(seed: u64) -> Set {
    let mut rng = Rng::new(seed);
    let series = (0..SERIES)
        .map(|place| {
            // The train part is the first seven tenths of a series; simulated ones are trained on whole.
            let mut values = service(&mut rng);
            values.resize(STEPS * 10 / 7 + 1, None);
            Series { id: format!("simulated-{place}"), values, ..Series::default() }
        })
        .collect();
    Set { name: "simulated".into(), milliseconds: true, inputs: Vec::new(), series }
}

fn service(rng: &mut Rng) -> Vec<Option<f64>> {
    let between = |rng: &mut Rng, low: f64, high: f64| low * (high / low).powf(rng.uniform());
    let usual = between(rng, 1.0, 400.0);
    let (tail, spikes) = (between(rng, 0.02, 0.5), rng.uniform() * 0.03);
    let stays = between(rng, 100.0, 1000.0);
    let gaps = if rng.uniform() < 0.2 { 0.06 } else { 0.0 };
    let mut level = usual;
    (0..STEPS)
        .map(|_| {
            if rng.uniform() < 1.0 / stays {
                // From the usual level anywhere, from elsewhere often back.
                let back = (level - usual).abs() > 1e-9 && rng.uniform() < 0.5;
                level = if back { usual } else { usual * between(rng, 0.2, 10.0) };
            }
            let noise = -(1.0 - rng.uniform()).ln() * tail * level;
            let spike = if rng.uniform() < spikes { (1.0 + 5.0 * rng.uniform()) * level } else { 0.0 };
            (rng.uniform() >= gaps).then_some(level + noise + spike)
        })
        .collect()
}
