//! Whether a move made requests fail: what was answered since it, against what was answered before.
//!
//! Shares of few requests say little, so bounds of them are compared: the least share that fails now against the greatest that may have failed
//! before, both at 99 % (E. B. Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", JASA 22, 1927).

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use crate::policy::TakeBack;
use crate::units::{Generation, Timestamp};

/// How much of the time before a move counts, back from the last step of the old primary; that one counts however long it was.
const BEFORE: Duration = Duration::from_secs(300);
/// How much of the time since it, back from the last step.
const SINCE: Duration = Duration::from_secs(60);
/// Fewer failures than these are nobody's fault.
const FEWEST: u64 = 5;
/// Quantile of the normal distribution, 99 % two-sided.
const Z: f64 = 2.576;

/// Requests that came to an end, and those of them that failed: a status of 5xx, an answer cut short, an error of the database.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Answers {
    /// All.
    pub all: u64,
    /// Of them.
    pub failed: u64,
}

/// A move after which more fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Worse {
    /// In the minutes before it.
    pub before: Answers,
    /// In the last minute since.
    pub since: Answers,
}

/// What was answered lately, and before the last move.
#[derive(Clone, Debug, Default)]
pub struct Aftermath {
    generation: Option<Generation>,
    recent: VecDeque<(Timestamp, Answers)>,
    /// When the last move was first seen, and what was answered before it.
    moved: Option<(Timestamp, Answers)>,
}

impl Aftermath {
    /// What was answered in the step that ends `now`, by a clock that does not jump, in which nobody was held. `generation`: of the primary.
    pub fn observe(&mut self, generation: Generation, answers: Answers, now: Timestamp) {
        if self.generation.is_some_and(|known| known != generation) {
            self.moved = Some((now, self.lately(BEFORE)));
            self.recent.clear();
        }
        self.generation = Some(generation);
        self.recent.push_back((now, answers));
        while self.recent.front().is_some_and(|(at, _)| now.since(*at) > BEFORE) {
            self.recent.pop_front();
        }
    }

    /// Whether more fails since the last move than before; none: no, nobody can tell, or it is too long ago.
    pub fn worse(&self, rules: TakeBack, now: Timestamp) -> Option<Worse> {
        let (_, before) = self.moved.filter(|(at, _)| now.since(*at) < rules.within)?;
        let since = self.lately(SINCE);
        let more = since.bounds().0 > before.bounds().1 + rules.failures.get();
        (more && since.failed >= FEWEST).then_some(Worse { before, since })
    }

    /// At least the last step, which may be longer than `span`.
    fn lately(&self, span: Duration) -> Answers {
        let Some((newest, _)) = self.recent.back() else { return Answers::default() };
        let recent = self.recent.iter().filter(|(at, _)| newest.since(*at) <= span);
        recent.fold(Answers::default(), |sum, (_, answers)| Answers {
            all: sum.all + answers.all,
            failed: sum.failed + answers.failed,
        })
    }
}

impl Answers {
    /// One more.
    pub fn count(&mut self, failed: bool) {
        self.all += 1;
        self.failed += u64::from(failed);
    }

    /// The least and the greatest share that may fail.
    #[allow(clippy::cast_precision_loss)] // Counts of requests.
    fn bounds(self) -> (f64, f64) {
        if self.all == 0 {
            return (0.0, 1.0);
        }
        let (n, share) = (self.all as f64, self.failed as f64 / self.all as f64);
        let middle = share + Z * Z / (2.0 * n);
        let around = Z * (share * (1.0 - share) / n + Z * Z / (4.0 * n * n)).sqrt();
        let whole = 1.0 + Z * Z / n;
        ((middle - around) / whole, (middle + around) / whole)
    }
}

impl fmt::Display for Worse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        #[allow(clippy::cast_precision_loss)]
        let percent = |it: Answers| if it.all == 0 { 0.0 } else { it.failed as f64 * 100.0 / it.all as f64 };
        let (since, before) = (self.since, self.before);
        write!(
            f,
            "{:.1} % of {} requests failed since the move, {:.1} % of {} before",
            percent(since),
            since.all,
            percent(before),
            before.all
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Ratio;

    const STEP: u64 = 10_000;

    fn rules() -> TakeBack {
        TakeBack { failures: Ratio::new(0.1).expect("a ratio"), within: Duration::from_secs(300) }
    }

    /// What it comes to after these steps of the old primary and those of the new one.
    fn after(before: &[(u64, u64)], since: &[(u64, u64)]) -> Option<Worse> {
        after_steps_of(STEP, before, since)
    }

    fn after_steps_of(step: u64, before: &[(u64, u64)], since: &[(u64, u64)]) -> Option<Worse> {
        let mut aftermath = Aftermath::default();
        let mut now = Timestamp(1);
        for (generation, steps) in [(1, before), (2, since)] {
            for (all, failed) in steps {
                now = Timestamp(now.0 + step);
                aftermath.observe(Generation(generation), Answers { all: *all, failed: *failed }, now);
            }
        }
        aftermath.worse(rules(), now)
    }

    #[test]
    fn a_service_that_fails_after_a_move_and_did_not_before_is_worse() {
        let well = [(100, 0); 10];
        let worse = after(&well, &[(8, 8)]).expect("eight of eight");
        assert_eq!(worse.to_string(), "100.0 % of 8 requests failed since the move, 0.0 % of 1000 before");
        assert!(after(&well, &[(100, 25)]).is_some());
        assert!(after(&well, &[(100, 0), (100, 0), (100, 90)]).is_some(), "it began later");
        assert!(after(&[(100, 30); 10], &[(100, 95)]).is_some(), "and worse than it was");
    }

    #[test]
    fn what_may_be_chance_or_was_so_before_is_not() {
        let well = [(100, 0); 10];
        for (before, since) in [
            (&well[..], &[(4, 4)][..]),
            (&well, &[(100, 12)]),
            (&well, &[]),
            (&well, &[(0, 0)]),
            (&[(100, 30); 10], &[(100, 40)]),
            (&[], &[(100, 100)]),
            (&[(0, 0)], &[(100, 100)]),
            (&[(3, 0)], &[(3, 3)]),
        ] {
            assert_eq!(after(before, since), None, "{before:?} {since:?}");
        }
    }

    #[test]
    fn steps_longer_than_what_counts_count_as_a_whole() {
        for step in [120_000, 300_000, 600_000] {
            let worse = after_steps_of(step, &[(100, 0); 3], &[(100, 100)]);
            assert!(worse.is_some_and(|worse| worse.before.all >= 100), "{step}: {worse:?}");
            assert_eq!(after_steps_of(step, &[(100, 100); 3], &[(100, 100)]), None, "{step}");
        }
    }

    #[test]
    fn only_the_last_minute_counts_and_only_soon_after_the_move() {
        let well = [(100, 0); 10];
        let mut recovers = vec![(100, 100); 2];
        assert!(after(&well, &recovers).is_some());
        recovers.extend([(100, 0); 7]);
        assert_eq!(after(&well, &recovers), None);
        let mut late = vec![(100, 0); 30];
        late.push((100, 100));
        assert_eq!(after(&well, &late), None, "whatever that is, the move is not the reason");
    }
}
