//! Weighs experts by how well they did.
//!
//! Hedge (Freund & Schapire 1997) with fixed share (Herbster & Warmuth 1998), so that no expert is ever forgotten,
//! and sleeping experts (Freund, Schapire, Singer & Warmuth 1997), which may be silent without being punished. Each
//! level has weights of its own (Berrisch & Ziel 2021, "CRPS learning"), moved half by the pinball loss (Koenker &
//! Bassett 1978) at that level and half by its mean over the levels. Quantiles are averaged level by level (Vincent 1912).
//!
//! The loss is *delayed* (Joulani, György & Szepesvári 2013): whoever calls keeps what was forecast as it was, and
//! brings it when its value has come. One [`Hedge`] for each distance ahead.

use crate::forecast::{LEVELS, Quantiles};
use crate::sample;

/// How the weights move.
#[derive(Clone, Copy, Debug)]
pub struct Tuning {
    /// Learning rate, for a loss in units of the recent mean loss.
    pub rate: f64,
    /// Share of the weight that is given back to the prior at every scored step.
    pub share: f64,
    /// How much of a level's loss is its own; the rest is the mean over the levels.
    pub own: f64,
    /// Learning rate when a shift was seen, for a distance in units of the jump.
    pub shift_rate: f64,
}

impl Default for Tuning {
    fn default() -> Self {
        Self { rate: 0.2, share: 0.001, own: 0.5, shift_rate: 1.0 }
    }
}

/// The weight of the newest mean loss in the unit of loss.
const UNIT_PACE: f64 = 0.02;
/// One loss counts for at most this many units.
const WORST: f64 = 8.0;

/// The weights of experts for one distance ahead.
#[derive(Clone, Debug)]
pub struct Hedge {
    tuning: Tuning,
    prior: Vec<f64>,
    weights: Vec<Quantiles>,
    /// The recent mean loss: at each level, and over all.
    unit: Option<(Quantiles, f64)>,
}

impl Hedge {
    /// Starts from `prior`, one part for each expert.
    pub fn new(prior: &[f64], tuning: Tuning) -> Self {
        let total: f64 = prior.iter().sum();
        let prior: Vec<f64> = prior.iter().map(|part| part / total).collect();
        let weights = prior.iter().map(|part| [*part; LEVELS.len()]).collect();
        Self { tuning, prior, weights, unit: None }
    }

    /// Lets in one that had no part so far: it gets `share` of the whole, the others keep theirs of the rest.
    pub fn admit(&mut self, place: usize, share: f64) {
        for (at, (prior, weights)) in self.prior.iter_mut().zip(&mut self.weights).enumerate() {
            let keep = if at == place { 0.0 } else { 1.0 - share };
            let given = if at == place { share } else { 0.0 };
            *prior = *prior * keep + given;
            *weights = weights.map(|weight| weight * keep + given);
        }
    }

    /// The weight of each expert at each level; those that sleep have none, the others sum to one.
    pub fn weights(&self, awake: impl Fn(usize) -> bool) -> Vec<Quantiles> {
        let mut weights = self.weights.clone();
        let mut total = [0.0; LEVELS.len()];
        for (place, weight) in weights.iter_mut().enumerate() {
            if !awake(place) {
                *weight = [0.0; LEVELS.len()];
            }
            for level in 0..LEVELS.len() {
                total[level] += weight[level];
            }
        }
        for weight in &mut weights {
            for level in 0..LEVELS.len() {
                weight[level] /= total[level].max(f64::MIN_POSITIVE);
            }
        }
        weights
    }

    /// The recent mean loss of the experts, in the unit of the series.
    pub fn unit(&self) -> Option<f64> {
        self.unit.map(|(_, unit)| unit)
    }

    /// Moves the weights by what the experts had said of `value`. One that slept moves like the mean of the others.
    ///
    /// Answers with each expert's loss in units of the recent mean; nothing where that says nothing.
    pub fn learn(&mut self, said: &[Option<Quantiles>], value: f64) -> Option<Vec<Option<f64>>> {
        let losses: Vec<Option<(Quantiles, f64)>> =
            said.iter().map(|said| said.map(|said| losses(&said, value))).collect();
        let awake: Vec<&(Quantiles, f64)> = losses.iter().flatten().collect();
        let (best, worst) = awake
            .iter()
            .fold((f64::MAX, 0.0_f64), |(low, high), (_, loss)| (low.min(*loss), high.max(*loss)));
        if awake.is_empty() || worst - best <= worst * 1e-9 {
            // None awake, or all alike (a series that stands still): no evidence, and nothing that should be forgotten for it.
            return None;
        }
        let count = awake.len() as f64;
        let mean = awake.iter().map(|(_, loss)| loss).sum::<f64>() / count;
        let means: Quantiles =
            std::array::from_fn(|level| awake.iter().map(|(at, _)| at[level]).sum::<f64>() / count);
        let (units, unit) = self.unit.get_or_insert((means, mean));
        for (unit, mean) in units.iter_mut().chain([&mut *unit]).zip(means.into_iter().chain([mean])) {
            // A unit that has been exactly zero cannot grow by its own multiples.
            *unit = if *unit > 0.0 { *unit + UNIT_PACE * (mean.min(*unit * WORST) - *unit) } else { mean };
        }
        let (units, unit) = (*units, *unit);
        if unit <= 0.0 {
            return None;
        }
        let relative = |loss: f64, unit: f64| if unit > 0.0 { (loss / unit).min(WORST) } else { 0.0 };
        for level in 0..LEVELS.len() {
            let own = self.tuning.own;
            let cost = |(at, mean): &(Quantiles, f64)| {
                own * relative(at[level], units[level]) + (1.0 - own) * relative(*mean, unit)
            };
            self.move_level(level, &losses.iter().map(|loss| loss.as_ref().map(cost)).collect::<Vec<_>>());
        }
        Some(losses.iter().map(|loss| loss.as_ref().map(|(_, mean)| relative(*mean, unit))).collect())
    }

    fn move_level(&mut self, level: usize, costs: &[Option<f64>]) {
        let (mut before, mut after) = (0.0, 0.0);
        for (weight, cost) in self.weights.iter_mut().zip(costs) {
            if let Some(cost) = cost {
                before += weight[level];
                weight[level] *= (-self.tuning.rate * cost).exp();
                after += weight[level];
            }
        }
        let scale = if after > 0.0 { before / after } else { 0.0 };
        for (weight, cost) in self.weights.iter_mut().zip(costs) {
            if cost.is_some() {
                weight[level] *= scale;
            }
        }
        self.give_back(level, self.tuning.share);
    }

    /// Makes the weights of a level sum to one again, `share` of them like the prior.
    fn give_back(&mut self, level: usize, share: f64) {
        let total: f64 = self.weights.iter().map(|weight| weight[level]).sum();
        for (weight, prior) in self.weights.iter_mut().zip(&self.prior) {
            let own = if total > 0.0 { weight[level] / total } else { *prior };
            weight[level] = own * (1.0 - share) + prior * share;
        }
    }

    /// The level has jumped: what was put away says nothing about the new one. Judges each expert by how far it is from
    /// the new level at present, in units of the jump. `trust`, from 0 to 1, is how far the shift is believed.
    pub fn follow_shift(&mut self, said: &[Option<Quantiles>], from: f64, to: f64, trust: f64) {
        let jump = (to - from).abs().max(f64::MIN_POSITIVE);
        for (weight, said) in self.weights.iter_mut().zip(said) {
            let off = said.map_or(1.0, |said| sample::loss(&said, to) / jump).min(1.0);
            for at in weight.iter_mut() {
                *at *= (-self.tuning.shift_rate * trust * off).exp();
            }
        }
        for level in 0..LEVELS.len() {
            self.give_back(level, 0.0);
        }
    }
}

fn losses(said: &Quantiles, value: f64) -> (Quantiles, f64) {
    let at: Quantiles = std::array::from_fn(|level| sample::pinball(LEVELS[level], said[level], value));
    (at, at.iter().sum::<f64>() / LEVELS.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weight_goes_to_the_expert_that_is_right_level_by_level() {
        let mut hedge = Hedge::new(&[1.0, 1.0, 1.0], Tuning::default());
        // The first is right about the upper half, the second about the lower, the third sleeps.
        for step in 0..400 {
            let value = f64::from(step * 7919 % 101);
            let said = [Some([40.0, 40.0, 50.0, 75.0, 95.0]), Some([5.0, 25.0, 50.0, 60.0, 60.0]), None];
            hedge.learn(&said, value);
        }
        let weights = hedge.weights(|place| place < 2);
        assert!(weights[0][4] > 0.8 && weights[1][0] > 0.8, "{weights:?}");
        assert!(hedge.weights[2][0] > 0.2, "sleeping must cost nothing: {:?}", hedge.weights);
    }

    #[test]
    fn one_that_is_let_in_gets_its_share_and_the_others_keep_theirs_of_the_rest() {
        let mut hedge = Hedge::new(&[3.0, 0.0, 1.0], Tuning::default());
        hedge.admit(1, 0.2);
        for (found, wanted) in hedge.weights(|_| true).iter().zip([0.6, 0.2, 0.2]) {
            assert!(found.iter().all(|weight| (weight - wanted).abs() < 1e-12), "{found:?}, not {wanted}");
        }
        // For good: what is given back to the prior is given to it, too.
        for step in 0..2_000 {
            hedge.learn(&[Some([1.0; 5]), Some([f64::from(step % 7) * 50.0; 5]), Some([1.0; 5])], 1.0);
        }
        assert!(hedge.weights(|_| true)[1].iter().all(|weight| *weight > 0.0), "{:?}", hedge.weights);
    }

    #[test]
    fn a_shift_moves_the_weight_to_those_who_are_there() {
        let mut hedge = Hedge::new(&[1.0, 1.0], Tuning::default());
        hedge.follow_shift(&[Some([10.0; 5]), Some([80.0; 5])], 10.0, 80.0, 1.0);
        let weights = hedge.weights(|_| true);
        assert!(weights[1][2] > 0.6, "{weights:?}");
    }
}
