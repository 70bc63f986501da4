//! Do the shifts of this series last?
//!
//! Some series jump and stay; others have storms that pass. A new shift is followed as far as those before it lasted;
//! the first ones are believed.

use crate::shift::Shift;

/// A shift has lasted when the level is nearer to it than to the one before after this many steps.
const AFTER: u64 = 24;
/// How much of the past is forgotten with each judged shift.
const FORGET: f64 = 0.05;

/// How many shifts that lasted the belief in the first ones is worth.
const BELIEF: f64 = 2.0;

/// How often shifts lasted.
#[derive(Clone, Debug, Default)]
pub(super) struct Trust {
    open: Option<Shift>,
    lasted: f64,
    passed: f64,
}

impl Trust {
    /// A shift was seen; one still open ends with it.
    pub(super) fn begin(&mut self, shift: Shift) {
        if let Some(open) = self.open.replace(shift) {
            self.judge(open, shift.to);
        }
    }

    /// Judges the open shift once it is old enough. `level` is the median of the last steps.
    pub(super) fn observe(&mut self, step: u64, level: Option<f64>) {
        if let (Some(open), Some(level)) = (self.open, level)
            && step.saturating_sub(open.detected) >= AFTER
        {
            self.open = None;
            self.judge(open, level);
        }
    }

    fn judge(&mut self, shift: Shift, level: f64) {
        self.lasted *= 1.0 - FORGET;
        self.passed *= 1.0 - FORGET;
        if (level - shift.to).abs() <= (level - shift.from).abs() {
            self.lasted += 1.0;
        } else {
            self.passed += 1.0;
        }
    }

    /// The share that lasted; one where none has been judged.
    pub(super) fn share(&self) -> f64 {
        (self.lasted + BELIEF) / (self.lasted + self.passed + BELIEF)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn jump(detected: u64, from: f64, to: f64) -> Shift {
        Shift { onset: detected, detected, from, to }
    }

    #[test]
    fn storms_that_pass_lose_trust_and_steps_that_stay_keep_it() {
        let mut storms = Trust::default();
        let mut stairs = Trust::default();
        assert!((storms.share() - 1.0).abs() < 1e-9);
        for count in 0..10_u32 {
            let at = u64::from(count) * 100;
            storms.begin(jump(at, 10.0, 50.0));
            storms.begin(jump(at + 5, 50.0, 10.0));
            storms.observe(at + 40, Some(10.0));
            let height = f64::from(count) * 10.0;
            stairs.begin(jump(at, height, height + 10.0));
            stairs.observe(at + 40, Some(height + 10.0));
        }
        // Of each storm the rise passes and the fall lasts.
        assert!((0.45..0.7).contains(&storms.share()), "{}", storms.share());
        assert!((stairs.share() - 1.0).abs() < 1e-9);
    }
}
