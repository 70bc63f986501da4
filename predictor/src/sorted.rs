//! A sliding window that is kept in order, so that its quantiles cost nothing to read.

use std::collections::VecDeque;

use crate::forecast::{LEVELS, Quantiles};
use crate::sample;

/// The values among the last `span` steps, in order of time and in order of size.
#[derive(Clone, Debug)]
pub struct SortedWindow {
    span: usize,
    /// A gap is not a number.
    steps: VecDeque<f64>,
    sorted: Vec<f64>,
}

impl SortedWindow {
    /// An empty window of `span` steps (at least one).
    pub fn new(span: usize) -> Self {
        Self { span: span.max(1), steps: VecDeque::new(), sorted: Vec::new() }
    }

    /// Takes the next step; the oldest leaves. `value` must be [usable](crate::window::usable).
    pub fn push(&mut self, value: Option<f64>) {
        if self.steps.len() == self.span
            && let Some(oldest) = self.steps.pop_front()
            && !oldest.is_nan()
        {
            let place = self.sorted.partition_point(|other| other.total_cmp(&oldest).is_lt());
            self.sorted.remove(place);
        }
        self.steps.push_back(value.unwrap_or(f64::NAN));
        if let Some(value) = value {
            let place = self.sorted.partition_point(|other| other.total_cmp(&value).is_lt());
            self.sorted.insert(place, value);
        }
    }

    /// Takes `count` steps without a value.
    pub fn skip(&mut self, count: u64) {
        if count >= self.span as u64 {
            self.clear();
        }
        for _ in 0..count.min(self.span as u64) {
            self.push(None);
        }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.steps.clear();
        self.sorted.clear();
    }

    /// The values, smallest first.
    pub fn sorted(&self) -> &[f64] {
        &self.sorted
    }

    /// How many values there are.
    pub fn len(&self) -> usize {
        self.sorted.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.sorted.is_empty()
    }

    /// Quantiles at [`LEVELS`]; `None` when empty.
    pub fn quantiles(&self) -> Option<Quantiles> {
        let mut out = [0.0; LEVELS.len()];
        for (slot, level) in out.iter_mut().zip(LEVELS) {
            *slot = sample::quantile(&self.sorted, level)?;
        }
        Some(out)
    }

    /// The median; `None` when empty.
    pub fn median(&self) -> Option<f64> {
        sample::quantile(&self.sorted, 0.5)
    }

    /// Median and robust standard deviation, like [`sample::centre_and_scale`].
    pub fn centre_and_scale(&self) -> Option<(f64, f64)> {
        let centre = self.median()?;
        // Deviations grow outwards from the centre on both sides: merge them up to the middle.
        let split = self.sorted.partition_point(|value| *value < centre);
        let mut below = self.sorted[..split].iter().rev().map(|value| centre - value).peekable();
        let mut above = self.sorted[split..].iter().map(|value| value - centre).peekable();
        let last = self.sorted.len() - 1;
        let (mut left, mut right) = (0.0, 0.0);
        for place in 0..=last.div_ceil(2) {
            let next = match (below.peek(), above.peek()) {
                (Some(low), Some(high)) if low < high => below.next(),
                (Some(_), None) => below.next(),
                _ => above.next(),
            };
            left = right;
            right = next.unwrap_or(right);
            if place == last / 2 && last.is_multiple_of(2) {
                left = right;
                break;
            }
        }
        Some((centre, f64::midpoint(left, right) * sample::MAD_TO_SIGMA))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn agrees_with_sorting_anew(
            values in prop::collection::vec(prop_oneof![3 => (-50..50_i32).prop_map(|v| Some(f64::from(v))), 1 => Just(None)], 1..80),
            span in 1_usize..30,
        ) {
            let mut window = SortedWindow::new(span);
            for value in &values {
                window.push(*value);
            }
            let mut kept: Vec<f64> = values.iter().rev().take(span).filter_map(|value| *value).collect();
            prop_assert_eq!(window.quantiles(), sample::quantiles(&mut kept));
            let expected = sample::centre_and_scale(&mut kept);
            match (window.centre_and_scale(), expected) {
                (Some(ours), Some(theirs)) => {
                    prop_assert!((ours.0 - theirs.0).abs() < 1e-9 && (ours.1 - theirs.1).abs() < 1e-9, "{:?} {:?}", ours, theirs);
                }
                (ours, theirs) => prop_assert_eq!(ours, theirs),
            }
        }
    }

    #[test]
    fn a_long_gap_empties_it() {
        let mut window = SortedWindow::new(4);
        window.push(Some(1.0));
        window.skip(u64::MAX);
        assert!(window.is_empty());
    }
}
