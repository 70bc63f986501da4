//! Which step is the newest, and how old the newest value.

use super::STALE;
use crate::forecast::{Abstained, Reason};

/// The clock of one model: steps only go forward.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Freshness {
    newest: Option<u64>,
    valued: Option<u64>,
}

impl Freshness {
    /// Goes to `step` and says how many steps were skipped; `None` when it is not later than the newest.
    pub(crate) fn advance(&mut self, step: u64, has_value: bool) -> Option<u64> {
        let skipped = match self.newest {
            Some(newest) if step <= newest => return None,
            Some(newest) => step - newest - 1,
            None => 0,
        };
        self.newest = Some(step);
        if has_value {
            self.valued = Some(step);
        }
        Some(skipped)
    }

    /// Whether no step came yet.
    pub(crate) fn is_new(&self) -> bool {
        self.newest.is_none()
    }

    /// How many steps ago the newest value came.
    pub(crate) fn age(&self) -> Option<usize> {
        Some(usize::try_from(self.newest? - self.valued?).unwrap_or(usize::MAX))
    }

    /// Why a model that has `observed` values to go by should not answer.
    pub(crate) fn check(&self, observed: usize, needed: usize) -> Result<(), Abstained> {
        let Some(age) = self.age() else {
            return Err(Abstained::of(Reason::TooFew, format!("0 values observed, {needed} are needed")));
        };
        if age > STALE {
            return Err(Abstained::of(
                Reason::Stale,
                format!("the newest value is {age} steps old, {STALE} are allowed"),
            ));
        }
        if observed < needed {
            return Err(Abstained::of(
                Reason::TooFew,
                format!("{observed} values observed, {needed} are needed"),
            ));
        }
        Ok(())
    }
}
