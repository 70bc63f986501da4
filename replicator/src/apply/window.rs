//! Tables that were copied at a later point than the stream goes on from: what they have already is skipped.
//!
//! Where a table's writers are kept away while the position is read, and a snapshot taken, that shows what they committed before it. And
//! a snapshot that a slot exports shows exactly the transactions whose commit record lies before its position. So of a table
//! with position P, changes of transactions that committed before P are in its rows, and the others are not: as
//! PostgreSQL's own table synchronisation does it. Once the stream has passed every P, the tables are at one point.

use std::borrow::Cow;
use std::collections::HashMap;

use crate::change::{Change, Relation, Transaction};
use crate::lsn::Lsn;

/// The tables' positions.
#[derive(Clone, Debug, Default)]
pub(crate) struct Window {
    positions: HashMap<(String, String), Position>,
    /// Of those whose number at the source is known: a stream calls a table what it was called at that point.
    known: HashMap<u32, Lsn>,
}

/// What the snapshot shows that a table was read under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Position {
    pub(crate) at: Lsn,
    /// The table's number at the source; none: its name tells.
    pub(crate) table: Option<u32>,
}

impl From<Lsn> for Position {
    fn from(at: Lsn) -> Self {
        Self { at, table: None }
    }
}

impl Window {
    /// Of tables by schema and name, and the position of the snapshot that each was read under.
    pub(crate) fn new<P: Into<Position>>(positions: impl IntoIterator<Item = ((String, String), P)>) -> Self {
        let positions: HashMap<_, Position> =
            positions.into_iter().map(|(name, position)| (name, position.into())).collect();
        // One that was filled under two names has all of the later one.
        let mut known: HashMap<u32, Lsn> = HashMap::new();
        for position in positions.values() {
            if let Some(table) = position.table {
                let latest = known.entry(table).or_default();
                *latest = (*latest).max(position.at);
            }
        }
        Self { positions, known }
    }

    /// From where on the tables are at one point; [`Lsn::ZERO`]: they are.
    pub(crate) fn settled(&self) -> Lsn {
        self.positions.values().map(|position| position.at).max().unwrap_or_default()
    }

    pub(crate) fn is_open(&self) -> bool {
        !self.positions.is_empty()
    }

    /// Whether a table has the changes of a transaction that committed there.
    pub(crate) fn skips(&self, relation: &Relation, commit: Lsn) -> bool {
        let by_name = || {
            let position = self.positions.get(&(relation.schema.clone(), relation.name.clone()))?;
            position.table.is_none().then_some(position.at)
        };
        self.known.get(&relation.id).copied().or_else(by_name).is_some_and(|position| commit < position)
    }

    /// The changes of a transaction that the tables do not have yet.
    pub(crate) fn filter(&self, changes: &[Change], commit: Lsn) -> Vec<Change> {
        changes.iter().filter_map(|change| self.change(change, commit)).collect()
    }

    fn change(&self, change: &Change, commit: Lsn) -> Option<Change> {
        if let Change::Truncate { relations, cascade, restart_identity } = change {
            let left: Vec<_> =
                relations.iter().filter(|relation| !self.skips(relation, commit)).cloned().collect();
            return (!left.is_empty()).then_some(Change::Truncate {
                relations: left,
                cascade: *cascade,
                restart_identity: *restart_identity,
            });
        }
        let skipped = change.relations().iter().any(|relation| self.skips(relation, commit));
        (!skipped).then(|| change.clone())
    }

    /// The same of whole transactions.
    pub(crate) fn filter_all<'g>(&self, group: &'g [Transaction]) -> Cow<'g, [Transaction]> {
        if !self.is_open() {
            return Cow::Borrowed(group);
        }
        group
            .iter()
            .map(|transaction| Transaction {
                xid: transaction.xid,
                commit_lsn: transaction.commit_lsn,
                end_lsn: transaction.end_lsn,
                commit_time: transaction.commit_time,
                origin: transaction.origin.clone(),
                changes: self.filter(&transaction.changes, transaction.commit_lsn),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::change::{Cell, OldRow, ReplicaIdentity};

    fn relation(name: &str) -> Arc<Relation> {
        table(1, name)
    }

    fn table(id: u32, name: &str) -> Arc<Relation> {
        Arc::new(Relation {
            id,
            schema: "public".into(),
            name: name.into(),
            identity: ReplicaIdentity::Default,
            columns: Vec::new(),
        })
    }

    fn window() -> Window {
        Window::new([(("public".to_owned(), "late".to_owned()), Lsn(100))])
    }

    #[test]
    fn what_a_later_snapshot_shows_is_skipped_and_nothing_else() {
        let window = window();
        let changes = [
            Change::Insert { relation: relation("late"), new: vec![Cell::Null] },
            Change::Delete { relation: relation("early"), old: OldRow::Key(vec![Cell::Null]) },
            Change::Message { prefix: "p".into(), content: bytes::Bytes::new() },
        ];
        assert_eq!(window.filter(&changes, Lsn(99)), changes[1..]);
        assert_eq!(window.filter(&changes, Lsn(100)), changes, "its commit is not in the snapshot");
        assert_eq!(window.settled(), Lsn(100));
        assert_eq!(Window::default().settled(), Lsn::ZERO);
    }

    #[test]
    fn a_table_is_known_by_its_number_whatever_it_was_called() {
        let position = Position { at: Lsn(100), table: Some(7) };
        let window = Window::new([(("public".to_owned(), "orders".to_owned()), position)]);
        let skipped = |id, name| window.skips(&table(id, name), Lsn(99));
        assert!(skipped(7, "orders"));
        assert!(skipped(7, "its_former_name"), "its rows have that");
        assert!(!skipped(6, "orders"), "another table, which had the name before");
        assert_eq!(window.settled(), Lsn(100));
    }

    #[test]
    fn a_truncation_does_not_reach_rows_that_came_later() {
        let truncate = |names: &[&str], cascade| Change::Truncate {
            relations: names.iter().map(|name| relation(name)).collect(),
            cascade,
            restart_identity: true,
        };
        let both = [truncate(&["early", "late"], true)];
        assert_eq!(window().filter(&both, Lsn(50)), [truncate(&["early"], true)]);
        assert_eq!(window().filter(&both, Lsn(100)), both);
        assert_eq!(window().filter(&[truncate(&["late"], false)], Lsn(50)), []);
    }
}
