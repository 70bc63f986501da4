//! The ledger: what each move was expected to bring, what it brought, and what staying would have brought.
//!
//! Expected is what the decision knew when the move began. Realised is the mean of the request path's p95 over the steps
//! after the gate opened. What staying would have brought nobody can measure; the estimate adds to each realised step what the
//! probes of the same step say is the difference between the zones.

use migration::cutover::State;
use migration::units::{Generation, Timestamp};
use migration::world::World;
use serde::{Deserialize, Serialize};

use crate::causes::chain;
use crate::store::{Journal, LedgerRow, StoreError};

/// How long after a move its worth is measured.
const MEASURED: std::time::Duration = std::time::Duration::from_hours(24);
/// How often it is written down meanwhile.
const WRITTEN_EVERY: std::time::Duration = std::time::Duration::from_secs(10);

/// A ledger entry, as the API shows it; latencies are of the request path's p95.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct LedgerView {
    /// Expected from the new zone when the move began, milliseconds.
    pub predicted_ms: Option<f64>,
    /// Forecast then for staying, milliseconds.
    pub stay_ms: Option<f64>,
    /// What was usual then, milliseconds.
    pub baseline_ms: Option<f64>,
    /// Cost of the new zone, per hour.
    pub predicted_cost: Option<f64>,
    /// Cost of the old one, per hour.
    pub stay_cost: Option<f64>,
    /// Mean over the steps measured since, milliseconds.
    pub realised_ms: Option<f64>,
    /// Estimate over the same steps of never having moved, milliseconds.
    pub never_moved_ms: Option<f64>,
    /// How long the gate was closed.
    pub held_ms: Option<u64>,
    /// When measuring began, Unix milliseconds.
    pub measured_from_ms: Option<u64>,
    /// The last step measured.
    pub measured_until_ms: Option<u64>,
    /// Steps measured.
    pub steps: u32,
}

impl LedgerView {
    /// From the store's line.
    pub fn of(row: &LedgerRow, held_ms: Option<u64>) -> Self {
        Self {
            predicted_ms: row.predicted_ms,
            stay_ms: row.stay_ms,
            baseline_ms: row.baseline_ms,
            predicted_cost: row.predicted_cost,
            stay_cost: row.stay_cost,
            realised_ms: row.realised_ms,
            never_moved_ms: row.never_moved_ms,
            held_ms,
            measured_from_ms: row.measured_from.map(|at| at.0),
            measured_until_ms: row.measured_until.map(|at| at.0),
            steps: row.steps,
        }
    }
}

/// The worth of the last move, while it is measured.
pub struct Worth {
    /// The generation that the move committed.
    pub generation: Generation,
    run: String,
    row: LedgerRow,
    written: Timestamp,
}

impl Worth {
    /// The newest committed move of the resource, as far as it has been measured; none: it never moved.
    pub fn of_last_move(journal: &Journal, state: &State) -> Option<Self> {
        let read = || {
            let runs = journal.runs(Some(&state.resource), 100)?;
            let Some(run) = runs.into_iter().find(|run| run.committed.is_some()) else { return Ok(None) };
            let row = journal.ledger(&run.id)?.unwrap_or_default();
            let generation = Generation(run.generation);
            Ok::<_, StoreError>(Some(Self { generation, run: run.id, row, written: Timestamp(0) }))
        };
        read().unwrap_or_else(|error| {
            tracing::warn!(error = chain(error), "the ledger cannot be read");
            None
        })
    }

    /// One step after the move, see [`measure`].
    pub fn measure(
        &mut self,
        journal: &Journal,
        realised_ms: f64,
        difference_ms: Option<f64>,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        if self.row.measured_from.is_some_and(|from| now.since(from) > MEASURED) {
            return Ok(());
        }
        measure(&mut self.row, realised_ms, difference_ms, now);
        if now.since(self.written) >= WRITTEN_EVERY {
            self.written = now;
            journal.write_ledger(&self.run, &self.row)?;
        }
        Ok(())
    }
}

/// What the decision expects of a move, when it begins.
pub fn expected(world: &World) -> LedgerRow {
    LedgerRow {
        predicted_ms: world.expected_from_shadow().map(|(there, _)| there),
        stay_ms: world.latency.value().map(|outlook| outlook.median_ms),
        baseline_ms: world.baseline_ms.value().copied(),
        predicted_cost: world.shadow_cost.value().copied(),
        stay_cost: world.primary_cost.value().copied(),
        ..LedgerRow::default()
    }
}

/// One step after the move: the request path, and what the probes say of staying, as the old zone's less the new one's.
pub fn measure(row: &mut LedgerRow, realised_ms: f64, difference_ms: Option<f64>, now: Timestamp) {
    let mean = |mean: Option<f64>, value: f64, count: u32| {
        let before = mean.unwrap_or(0.0);
        Some(before + (value - before) / f64::from(count))
    };
    row.steps += 1;
    row.realised_ms = mean(row.realised_ms, realised_ms, row.steps);
    // A step without both probes says nothing of staying: it counts as equal, which never speaks for the move.
    let stayed = (realised_ms + difference_ms.unwrap_or(0.0)).max(0.0);
    row.never_moved_ms = mean(row.never_moved_ms, stayed, row.steps);
    row.measured_from.get_or_insert(now);
    row.measured_until = Some(now);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_grow_step_by_step() {
        let mut row = LedgerRow { predicted_ms: Some(10.0), ..LedgerRow::default() };
        for (at, realised, difference) in [(1, 10.0, Some(6.0)), (2, 14.0, None), (3, 12.0, Some(-3.0))] {
            measure(&mut row, realised, difference, Timestamp(at));
        }
        assert_eq!((row.realised_ms, row.steps), (Some(12.0), 3));
        // 16, 14 and 9.
        assert!((row.never_moved_ms.expect("measured") - 13.0).abs() < 1e-9);
        assert_eq!((row.measured_from, row.measured_until), (Some(Timestamp(1)), Some(Timestamp(3))));
    }
}
