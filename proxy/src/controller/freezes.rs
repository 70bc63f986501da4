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

    /// Orders one, in place of an earlier one of the same scope and by the same; those of others stay. It is stored before it counts.
    pub fn order(&self, row: FreezeRow) -> Result<(), StoreError> {
        let mut ordered = self.ordered();
        self.journal.freeze(&row)?;
        ordered.retain(|other| (&other.scope, &other.by) != (&row.scope, &row.by));
        ordered.push(row);
        Ok(())
    }

    /// Lifts those of a scope, whoever ordered them; which.
    pub fn lift(&self, resource: Option<&str>) -> Result<Vec<FreezeRow>, StoreError> {
        let scope = resource.unwrap_or(EVERY_RESOURCE);
        let mut ordered = self.ordered();
        self.journal.unfreeze(scope)?;
        Ok(ordered.extract_if(.., |row| row.scope == scope).collect())
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
        assert_eq!(freezes.lift(None).expect("stored"), [row(EVERY_RESOURCE, None)]);
        assert_eq!((count("orders", 50), count("other", 50)), (1, 0));
        assert_eq!(freezes.lift(None).expect("nothing there"), []);
    }

    #[test]
    fn a_freeze_does_not_end_that_of_another_one() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let journal = Arc::new(Journal::open(directory.path()).expect("open"));
        let freezes = Freezes::open(journal).expect("open");
        let order = |by: &str, until: Option<u64>| {
            let row = FreezeRow {
                scope: "orders".into(),
                by: by.into(),
                why: "tested".into(),
                at: Timestamp(1),
                until: until.map(Timestamp),
            };
            freezes.order(row).expect("stored");
        };
        let by = |now| {
            let mut by: Vec<_> =
                freezes.at("orders", &[], Timestamp(now)).into_iter().map(|freeze| freeze.by).collect();
            by.sort();
            by
        };
        order("godwit", None);
        order("ann", Some(100));
        assert_eq!(
            (by(50), by(200)),
            (vec!["ann".to_owned(), "godwit".to_owned()], vec!["godwit".to_owned()])
        );
        // One's own is another one from then on.
        order("ann", Some(150));
        assert_eq!((by(120).len(), by(150).len()), (2, 1));
        freezes.reload().expect("read");
        assert_eq!((by(120).len(), by(150).len()), (2, 1), "the store has them, too");
        assert_eq!(freezes.lift(Some("orders")).expect("stored").len(), 2);
        assert_eq!(by(120).len(), 0);
    }
}
