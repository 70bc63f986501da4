//! The last values of a series, on a fixed step, gaps explicit.

use std::collections::VecDeque;

/// Values are held within this: so nothing computed from them can overflow.
const LARGEST: f64 = 1e12;

/// What a model may use of a raw value: `None` when it is missing or not finite; else held within ±1e12.
pub fn usable(value: Option<f64>) -> Option<f64> {
    value.filter(|value| value.is_finite()).map(|value| value.clamp(-LARGEST, LARGEST))
}

/// The last `capacity` steps. A step that nobody reported is a gap, like one reported without a value.
#[derive(Clone, Debug)]
pub struct Window {
    capacity: usize,
    steps: VecDeque<Option<f64>>,
    newest: Option<u64>,
    observed: usize,
}

impl Window {
    /// An empty window of `capacity` steps (at least one).
    pub fn new(capacity: usize) -> Self {
        let capacity = capacity.max(1);
        Self { capacity, steps: VecDeque::with_capacity(capacity), newest: None, observed: 0 }
    }

    /// Takes the value of `step`; steps that were skipped become gaps.
    ///
    /// False, and nothing changes, when `step` is not later than the newest.
    pub fn push(&mut self, step: u64, value: Option<f64>) -> bool {
        let skipped = match self.newest {
            Some(newest) if step <= newest => return false,
            Some(newest) => step - newest - 1,
            None => 0,
        };
        for _ in 0..skipped.min(self.capacity as u64) {
            self.append(None);
        }
        self.append(usable(value));
        self.newest = Some(step);
        true
    }

    fn append(&mut self, value: Option<f64>) {
        if self.steps.len() == self.capacity && self.steps.pop_front().flatten().is_some() {
            self.observed -= 1;
        }
        self.observed += usize::from(value.is_some());
        self.steps.push_back(value);
    }

    /// The newest step heard of, with a value or without.
    pub fn newest(&self) -> Option<u64> {
        self.newest
    }

    /// How many steps of the window have a value.
    pub fn observed(&self) -> usize {
        self.observed
    }

    /// How many steps ago the newest value was; `None` when the window holds none.
    pub fn age(&self) -> Option<usize> {
        self.steps.iter().rev().position(Option::is_some)
    }

    /// The values among the last `steps` steps, newest first.
    pub fn last(&self, steps: usize) -> impl Iterator<Item = f64> + '_ {
        self.steps.iter().rev().take(steps).filter_map(|value| *value)
    }

    /// The values of step `from` and later, newest first.
    pub fn since(&self, from: u64) -> impl Iterator<Item = f64> + '_ {
        let steps = self
            .newest
            .and_then(|newest| newest.checked_sub(from))
            .map_or(0, |span| usize::try_from(span).unwrap_or(usize::MAX).saturating_add(1));
        self.last(steps)
    }

    /// The value of the step `ago` before the newest; `None` for a gap or outside the window.
    pub fn ago(&self, ago: usize) -> Option<f64> {
        let place = self.steps.len().checked_sub(1)?.checked_sub(ago)?;
        self.steps.get(place).copied().flatten()
    }

    /// Forgets every value; the newest step stays known.
    pub fn clear(&mut self) {
        self.steps.clear();
        self.observed = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn skipped_steps_are_gaps() {
        let mut window = Window::new(4);
        assert!(window.push(10, Some(1.0)));
        assert!(window.push(12, Some(3.0)));
        assert_eq!(window.observed(), 2);
        assert_eq!((window.ago(0), window.ago(1), window.ago(2)), (Some(3.0), None, Some(1.0)));
        assert_eq!(window.since(11).collect::<Vec<_>>(), [3.0]);
        assert_eq!(window.since(13).count(), 0);
    }

    #[test]
    fn old_steps_are_refused_and_far_ones_empty_the_window() {
        let mut window = Window::new(4);
        assert!(window.push(5, Some(1.0)));
        assert!(!window.push(5, Some(2.0)) && !window.push(4, Some(2.0)));
        assert!(window.push(u64::MAX, None));
        assert_eq!((window.observed(), window.age()), (0, None));
    }

    #[test]
    fn what_is_not_finite_is_missing() {
        let mut window = Window::new(4);
        for (step, value) in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, f64::MAX].into_iter().enumerate() {
            window.push(step as u64, Some(value));
        }
        assert_eq!(window.last(4).collect::<Vec<_>>(), [LARGEST]);
        assert_eq!(window.age(), Some(0));
    }
}
