//! Which rows changed since the last verification, as the stream saw them. Bounded: a table with too many is remembered as a
//! whole.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::catalog::KeyColumn;
use super::range::Key;
use crate::change::{Cell, Change, OldRow, Relation, ReplicaIdentity, Row};

/// What of a table changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changed {
    /// Names of the key's columns, in the order of each key.
    columns: Vec<String>,
    /// Keys; `None`: too many, or not known.
    keys: Option<BTreeSet<Key>>,
}

impl Changed {
    /// The changed keys in the order of this key; `None`: every row must be looked at.
    pub(super) fn keys_for(&self, wanted: &[KeyColumn]) -> Option<Vec<Key>> {
        let keys = self.keys.as_ref()?;
        let places: Vec<usize> = wanted
            .iter()
            .map(|column| self.columns.iter().position(|name| *name == column.name))
            .collect::<Option<_>>()?;
        if places.len() != self.columns.len() {
            return None;
        }
        Some(
            keys.iter()
                .map(|key| places.iter().filter_map(|place| key.get(*place).cloned()).collect())
                .collect(),
        )
    }

    fn merge(&mut self, other: Self) {
        match (&mut self.keys, other.keys) {
            (Some(keys), Some(more)) if self.columns == other.columns => keys.extend(more),
            (keys, _) => *keys = None,
        }
    }
}

/// Keys remembered of one table.
const MAX_KEYS: usize = 50_000;

#[derive(Debug, Default)]
struct Recorded {
    tables: BTreeMap<String, Changed>,
    /// Something was not seen.
    gap: bool,
}

/// Remembers what a stream changes. Cheap to clone: all clones are one. The default one remembers nothing.
#[derive(Clone, Debug, Default)]
pub struct Recorder(Option<Arc<Mutex<Recorded>>>);

/// Two are equal when they are the same one.
impl PartialEq for Recorder {
    fn eq(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            (None, None) => true,
            _ => false,
        }
    }
}

impl Eq for Recorder {}

impl Recorder {
    /// One that remembers.
    pub fn recording() -> Self {
        Self(Some(Arc::default()))
    }

    fn lock(&self) -> Option<std::sync::MutexGuard<'_, Recorded>> {
        Some(self.0.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Notes the changes of a transaction.
    pub fn note(&self, changes: &[Change]) {
        let Some(mut recorded) = self.lock() else { return };
        for change in changes {
            match change {
                Change::Insert { relation, new } => recorded.row(relation, new),
                Change::Update { relation, old, new } => {
                    if let Some(OldRow::Key(old) | OldRow::Full(old)) = old {
                        recorded.row(relation, old);
                    }
                    recorded.row(relation, new);
                }
                Change::Delete { relation, old: OldRow::Key(old) | OldRow::Full(old) } => {
                    recorded.row(relation, old);
                }
                Change::Truncate { relations, .. } => {
                    for relation in relations {
                        recorded.table(relation).keys = None;
                    }
                }
                Change::Message { .. } => {}
            }
        }
    }

    /// Something may have been missed.
    pub fn note_gap(&self) {
        if let Some(mut recorded) = self.lock() {
            recorded.gap = true;
        }
    }

    /// What changed until now, and starts anew; `None`: something was missed since the last time, so that anything may have.
    pub fn take(&self) -> Option<BTreeMap<String, Changed>> {
        let taken = std::mem::take(&mut *self.lock()?);
        (!taken.gap).then_some(taken.tables)
    }

    /// Puts back what was taken for a verification that came to nothing.
    pub fn put_back(&self, taken: Option<BTreeMap<String, Changed>>) {
        let Some(mut recorded) = self.lock() else { return };
        let Some(taken) = taken else {
            recorded.gap = true;
            return;
        };
        for (table, changed) in taken {
            match recorded.tables.entry(table) {
                std::collections::btree_map::Entry::Vacant(empty) => drop(empty.insert(changed)),
                std::collections::btree_map::Entry::Occupied(mut present) => present.get_mut().merge(changed),
            }
        }
    }
}

impl Recorded {
    fn table(&mut self, relation: &Relation) -> &mut Changed {
        let name = canonical(&relation.schema, &relation.name);
        self.tables.entry(name).or_insert_with(|| {
            let columns = relation.columns.iter().filter(|column| column.key);
            // With the whole row as its identity, the stream does not tell which columns are the key.
            let known = !matches!(relation.identity, ReplicaIdentity::Full | ReplicaIdentity::Nothing);
            Changed {
                columns: columns.map(|column| column.name.clone()).collect(),
                keys: known.then(BTreeSet::new),
            }
        })
    }

    fn row(&mut self, relation: &Relation, row: &Row) {
        let key: Option<Key> = relation
            .columns
            .iter()
            .zip(row)
            .filter(|(column, _)| column.key)
            .map(|(_, cell)| match cell {
                Cell::Text(text) => String::from_utf8(text.to_vec()).ok(),
                Cell::Null | Cell::Unchanged => None,
            })
            .collect();
        let changed = self.table(relation);
        let Some(keys) = &mut changed.keys else { return };
        match key.filter(|key| !key.is_empty() && key.len() == changed.columns.len()) {
            Some(key) if keys.len() < MAX_KEYS => drop(keys.insert(key)),
            _ => changed.keys = None,
        }
    }
}

/// A table's name that does not depend on which names the server quotes.
pub(super) fn canonical(schema: &str, name: &str) -> String {
    format!("{}.{}", crate::postgres::quote_ident(schema), crate::postgres::quote_ident(name))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::change::Column;

    fn relation(identity: ReplicaIdentity) -> Arc<Relation> {
        let column = |name: &str, key| Column { name: name.into(), key, type_oid: 25, type_modifier: -1 };
        Arc::new(Relation {
            id: 1,
            schema: "public".into(),
            name: "Orders".into(),
            identity,
            columns: vec![column("b", true), column("v", false), column("a", true)],
        })
    }

    fn row(values: [&str; 3]) -> Row {
        values.iter().map(|value| Cell::Text(Bytes::copy_from_slice(value.as_bytes()))).collect()
    }

    fn key_column(name: &str) -> KeyColumn {
        KeyColumn {
            name: name.into(),
            quoted: name.into(),
            kind: "text".into(),
            equals_in: "pg_catalog".into(),
            plain: true,
            collation: None,
        }
    }

    #[test]
    fn old_and_new_keys_are_remembered_in_the_order_that_is_asked_for() {
        let recorder = Recorder::recording();
        let relation = relation(ReplicaIdentity::Default);
        let old = Some(OldRow::Key(vec![Cell::Text("1".into()), Cell::Null, Cell::Text("2".into())]));
        recorder.note(&[
            Change::Insert { relation: relation.clone(), new: row(["8", "x", "9"]) },
            Change::Update { relation, old, new: row(["3", "x", "4"]) },
        ]);
        let taken = recorder.take().expect("no gap");
        let changed = &taken["\"public\".\"Orders\""];
        let keys = changed.keys_for(&[key_column("a"), key_column("b")]).expect("known");
        let expected: Vec<Key> =
            [["2", "1"], ["4", "3"], ["9", "8"]].map(|key| key.map(str::to_owned).to_vec()).to_vec();
        assert_eq!(keys, expected);
        assert_eq!(changed.keys_for(&[key_column("a")]), None, "another key");
        assert_eq!(recorder.take(), Some(BTreeMap::new()));
        recorder.put_back(Some(taken));
        assert_eq!(recorder.take().map(|tables| tables.len()), Some(1));
        recorder.put_back(None);
        assert_eq!(recorder.take(), None, "unknown stays unknown until the next full verification");
    }

    #[test]
    fn what_cannot_be_remembered_is_the_whole_table() {
        let all = |change: &dyn Fn(Arc<Relation>) -> Change, identity| {
            let recorder = Recorder::recording();
            recorder.note(&[change(relation(identity))]);
            let taken = recorder.take().expect("no gap");
            taken.values().all(|changed| changed.keys.is_none())
        };
        let insert = |relation| Change::Insert { relation, new: row(["1", "x", "2"]) };
        assert!(!all(&insert, ReplicaIdentity::Default));
        assert!(all(&insert, ReplicaIdentity::Full));
        assert!(all(
            &|relation| Change::Truncate {
                relations: vec![relation],
                cascade: false,
                restart_identity: false
            },
            ReplicaIdentity::Default
        ));
        let recorder = Recorder::recording();
        let relation = relation(ReplicaIdentity::Default);
        for number in 0..=MAX_KEYS {
            let number = number.to_string();
            recorder.note(&[Change::Insert { relation: relation.clone(), new: row([&number, "x", "1"]) }]);
        }
        assert!(recorder.take().expect("no gap").values().all(|changed| changed.keys.is_none()));
        let off = Recorder::default();
        off.note(&[Change::Insert { relation, new: row(["1", "x", "2"]) }]);
        assert_eq!(off.take(), None, "one that does not record knows nothing");
    }
}
