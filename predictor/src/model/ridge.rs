//! Ridge regression whose past fades.
//!
//! Least squares drawn to zero (Hoerl & Kennard 1970), the moments weighted exponentially, so that old values count for
//! less and less. The draw to zero does not fade: directions in which nothing has moved for long stay at rest (recursive
//! least squares with forgetting would be carried away there: "windup", Åström & Wittenmark 1995, ch. 11).

use crate::network::inputs::WEATHER;
use crate::network::{INPUTS, Inputs};

/// Numbers that a value is explained by; the last is a constant.
pub(super) const WIDE: usize = INPUTS + WEATHER + STATE + MOVED + 1;
/// Numbers that say where the series is.
pub(super) const STATE: usize = 4;
/// Of them, what the time of day does to them.
const MOVED: usize = 2;
/// What of the past is left at each value: half of it after 350 of them.
const FADE: f64 = 0.998;
/// What a value is explained by.
pub(super) type Design = [f64; WIDE];
/// How hard coefficients are drawn to zero, in values.
const DRAW: f64 = 4.0;

/// What is known beforehand of a value says of it, as far as that is linear.
#[derive(Clone, Debug)]
pub(super) struct Ridge {
    /// The lower triangle is used.
    gram: [[f64; WIDE]; WIDE],
    moment: [f64; WIDE],
    coefficients: [f64; WIDE],
}

impl Ridge {
    pub(super) fn new() -> Self {
        Self { gram: [[0.0; WIDE]; WIDE], moment: [0.0; WIDE], coefficients: [0.0; WIDE] }
    }

    /// What is expected. Always finite: what it is told is bounded, and so is what was learned.
    pub(super) fn predict(&self, design: &Design) -> f64 {
        design.iter().zip(&self.coefficients).map(|(value, factor)| value * factor).sum()
    }

    /// Takes what came; counts from the next [`solve`](Self::solve) on. `value` is of a handful of units.
    pub(super) fn learn(&mut self, design: &Design, value: f64) {
        for (place, row) in self.gram.iter_mut().enumerate() {
            for (slot, other) in row.iter_mut().zip(&design[..=place]) {
                *slot = FADE * *slot + design[place] * other;
            }
            self.moment[place] = FADE * self.moment[place] + design[place] * value;
        }
    }

    /// Finds the coefficients (Cholesky).
    pub(super) fn solve(&mut self) {
        let mut root = [[0.0; WIDE]; WIDE];
        let mut solved = self.moment;
        for row in 0..WIDE {
            for column in 0..=row {
                let known: f64 = (0..column).map(|at| root[row][at] * root[column][at]).sum();
                let rest = self.gram[row][column] - known;
                root[row][column] = if row == column {
                    // At least what is drawn by, but for rounding.
                    (rest + DRAW).max(DRAW * 0.5).sqrt()
                } else {
                    rest / root[column][column]
                };
            }
            let known: f64 = (0..row).map(|at| root[row][at] * solved[at]).sum();
            solved[row] = (solved[row] - known) / root[row][row];
        }
        for row in (0..WIDE).rev() {
            let known: f64 = (row + 1..WIDE).map(|at| root[at][row] * solved[at]).sum();
            solved[row] = (solved[row] - known) / root[row][row];
        }
        if solved.iter().all(|value| value.is_finite()) {
            self.coefficients = solved;
        }
    }
}

/// What explains a step: what is known of it, the weather of the time before it, and where the series was when it was foreseen.
pub(super) fn design(inputs: &[f32; INPUTS], before: &[f32; WEATHER], state: &[f32; STATE]) -> Design {
    let mut design = [1.0; WIDE];
    // What was lately says little of a step on the other side of a night.
    let [sin, cos] = Inputs::DAY.map(|place| inputs[place] * state[1]);
    for (slot, value) in design.iter_mut().zip(inputs.iter().chain(before).chain(state).chain(&[sin, cos])) {
        *slot = f64::from(*value);
    }
    design
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::inputs::Weather;
    use crate::rng::Rng;

    fn weather(rng: &mut Rng) -> Design {
        let (wind, visibility) = (Some(rng.uniform() * 9.0), Some(rng.uniform() * 16.0));
        let weather = Some(Weather { wind, visibility, ..Weather::default() });
        design(&Inputs { weather, ..Inputs::default() }.vector(), &[0.0; WEATHER], &[0.0; STATE])
    }

    fn truth(design: &Design) -> f64 {
        0.5 * design[3] + design[7] - 0.3
    }

    #[test]
    fn finds_what_each_input_does_and_follows_when_that_changes() {
        let mut rng = Rng::new(1);
        let mut ridge = Ridge::new();
        for sign in [1.0, -1.0] {
            for _ in 0..6000 {
                let inputs = weather(&mut rng);
                ridge.learn(&inputs, sign * truth(&inputs) + 0.2 * rng.normal());
            }
            ridge.solve();
            let inputs = weather(&mut rng);
            let miss = ridge.predict(&inputs) - sign * truth(&inputs);
            assert!(miss.abs() < 0.05, "{miss}");
        }
    }

    #[test]
    fn an_input_that_stands_still_for_long_carries_nothing_away() {
        let mut rng = Rng::new(2);
        let mut ridge = Ridge::new();
        let still = Inputs { load: Some(1e300), maintenance: Some(true), ..Inputs::default() };
        let still = design(&still.vector(), &[5.0; WEATHER], &[9.0; STATE]);
        for _ in 0..100_000 {
            ridge.learn(&still, rng.normal());
        }
        ridge.solve();
        assert!(ridge.predict(&still).abs() < 0.3, "{}", ridge.predict(&still));
        assert!(ridge.predict(&weather(&mut rng)).abs() < 1.0);
    }
}
