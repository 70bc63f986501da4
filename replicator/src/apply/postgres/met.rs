//! The tables that changes are of, as the stream describes them.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use crate::change::{Change, Relation};
use crate::drift::gone::Described;

/// Every description, once.
#[derive(Clone, Debug, Default)]
pub(super) struct Met {
    /// Many changes in a row are of one table.
    last: Option<Arc<Relation>>,
    all: HashSet<Arc<Relation>>,
}

impl Met {
    /// Of these changes.
    pub(super) fn of<'c>(changes: impl IntoIterator<Item = &'c Change>) -> Self {
        let mut met = Self::default();
        met.meet(changes);
        met
    }

    /// Of these, too.
    pub(super) fn meet<'c>(&mut self, changes: impl IntoIterator<Item = &'c Change>) {
        for relation in changes.into_iter().flat_map(Change::relations) {
            if self.last.as_ref().is_none_or(|last| !Arc::ptr_eq(last, relation)) {
                self.last = Some(Arc::clone(relation));
                self.all.insert(Arc::clone(relation));
            }
        }
    }

    /// By the tables' numbers on the source.
    pub(super) fn described(&self) -> BTreeMap<u32, Described> {
        let mut described = BTreeMap::new();
        for relation in &self.all {
            let table = described.entry(relation.id).or_insert_with(|| Described {
                schema: relation.schema.clone(),
                name: relation.name.clone(),
                columns: Vec::new(),
            });
            table.columns.push(relation.columns.iter().map(|column| column.name.clone()).collect());
        }
        described
    }
}
