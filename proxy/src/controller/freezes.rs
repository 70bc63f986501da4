//! Freezes: those that operators ordered, kept in the store, and the windows of the policies, resolved at a moment.

use std::sync::{Arc, Mutex, MutexGuard};

use migration::units::Timestamp;
use migration::world::Freeze;
use serde::{Deserialize, Serialize};

use crate::config::freeze::FreezeWindow;
use crate::lock::lock;
use crate::store::{EVERY_RESOURCE, FreezeRow, Journal, StoreError};

/// A freeze, as the API shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct FreezeView {
    /// The resource; none: every resource.
    pub resource: Option<String>,
    /// Who ordered it.
    pub by: String,
    /// Why.
    pub why: String,
    /// When, Unix milliseconds.
    pub at_ms: u64,
    /// Until when; none: until it is lifted.
    pub until_ms: Option<u64>,
}

/// All freezes of this node.
pub struct Freezes {
    journal: Arc<Journal>,
    ordered: Mutex<Vec<FreezeRow>>,
}

impl Freezes {
    /// With what the store has.
    pub fn open(journal: Arc<Journal>) -> Result<Self, StoreError> {
        let ordered = Mutex::new(journal.freezes()?);
        Ok(Self { journal, ordered })
    }

    /// Reads the store again, which had them from somewhere else.
    pub fn reload(&self) -> Result<(), StoreError> {
        *self.ordered() = self.journal.freezes()?;
        Ok(())
    }

    fn ordered(&self) -> MutexGuard<'_, Vec<FreezeRow>> {
        lock(&self.ordered)
    }

    /// What stops moves of `resource` at `now`.
    pub fn at(&self, resource: &str, windows: &[FreezeWindow], now: Timestamp) -> Vec<Freeze> {
        let applies = |row: &&FreezeRow| row.scope == resource || row.scope == EVERY_RESOURCE;
        let ordered: Vec<Freeze> = self
            .ordered()
            .iter()
            .filter(applies)
            .filter(|row| row.until.is_none_or(|until| now < until))
            .map(|row| Freeze {
                by: row.by.clone(),
                why: row.why.clone(),
                until: row.until,
                binds_operator: true,
            })
            .collect();
        ordered.into_iter().chain(windows.iter().filter_map(|window| window.at(now))).collect()
    }

    /// Orders one, in place of an earlier one of the same scope. It is stored before it counts.
    pub fn order(&self, row: FreezeRow) -> Result<(), StoreError> {
        let mut ordered = self.ordered();
        self.journal.freeze(&row)?;
        ordered.retain(|other| other.scope != row.scope);
        ordered.push(row);
        Ok(())
    }

    /// Lifts one; false: there is none.
    pub fn lift(&self, resource: Option<&str>) -> Result<bool, StoreError> {
        let scope = resource.unwrap_or(EVERY_RESOURCE);
        let mut ordered = self.ordered();
        let was = self.journal.unfreeze(scope)?;
        ordered.retain(|other| other.scope != scope);
        Ok(was)
    }

    /// Those in effect at `now`.
    pub fn views(&self, now: Timestamp) -> Vec<FreezeView> {
        let in_effect = |row: &&FreezeRow| row.until.is_none_or(|until| now < until);
        self.ordered()
            .iter()
            .filter(in_effect)
            .map(|row| FreezeView {
                resource: (row.scope != EVERY_RESOURCE).then(|| row.scope.clone()),
                by: row.by.clone(),
                why: row.why.clone(),
                at_ms: row.at.0,
                until_ms: row.until.map(|at| at.0),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ordered_freeze_lasts_until_it_is_over_or_lifted_and_outlives_the_process() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let row = |scope: &str, until: Option<u64>| FreezeRow {
            scope: scope.into(),
            by: "ann".into(),
            why: "release".into(),
            at: Timestamp(1),
            until: until.map(Timestamp),
        };
        {
            let journal = Arc::new(Journal::open(directory.path()).expect("open"));
            let freezes = Freezes::open(journal).expect("open");
            freezes.order(row("orders", Some(100))).expect("stored");
            freezes.order(row(EVERY_RESOURCE, None)).expect("stored");
        }
        let journal = Arc::new(Journal::open(directory.path()).expect("open again"));
        let freezes = Freezes::open(journal).expect("open");
        let count = |resource: &str, now| freezes.at(resource, &[], Timestamp(now)).len();
        assert_eq!((count("orders", 50), count("orders", 100), count("other", 50)), (2, 1, 1));
        assert!(freezes.lift(None).expect("stored"));
        assert_eq!((count("orders", 50), count("other", 50)), (1, 0));
        assert!(!freezes.lift(None).expect("nothing there"));
    }
}
