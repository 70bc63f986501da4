//! From transactions to statements. Pure.
//!
//! Rows of different tables do not depend on each other here (foreign keys and triggers sleep in replica role), and all
//! of a group becomes visible at once; so each table has a lane of its own, in which consecutive changes of one kind with
//! distinct keys become one statement. TRUNCATE waits for all lanes. In [`Order::Rows`] every change is a statement, in
//! the source's order: what is left when a batch meets a unique constraint or keys that are equal but spelled differently.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;

use super::catalog::Table;
use super::sql;
use crate::change::{Cell, Change, OldRow, Row, Transaction};
use crate::error::Error;
use crate::lsn::Lsn;

/// How much may be reordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// One lane per table, batches.
    Lanes,
    /// One statement per change.
    Rows,
}

/// One statement with its parameters: a text array per column.
#[derive(Debug)]
pub(super) struct Statement {
    pub(super) sql: String,
    pub(super) parameters: Vec<Vec<Option<Bytes>>>,
    /// For messages: the table, the first row's key, the transaction.
    pub(super) table: String,
    pub(super) key: String,
    pub(super) lsn: Lsn,
}

/// The shape of a change: equal kinds of one table can share a statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Insert,
    /// Columns to set; found by key.
    Update(Vec<usize>),
    /// Delete and insert again, keeping the columns that are not listed: for `GENERATED ALWAYS` identity columns, which
    /// no UPDATE can set.
    Replace(Vec<usize>),
    Delete,
    /// The same for one row, found by all its old values.
    FullUpdate(Vec<usize>),
    FullDelete,
}

struct Batch {
    table: Arc<Table>,
    kind: Kind,
    /// One row per change: the values that find it, then the values to write.
    rows: Vec<Vec<Option<Bytes>>>,
    keys: HashSet<Vec<Option<Bytes>>>,
    /// Takes no other row.
    alone: bool,
    key: String,
    lsn: Lsn,
}

/// Plans a group. `find` gives the target's table for a relation.
pub(super) fn plan(
    group: &[Transaction],
    order: Order,
    find: impl Fn(&crate::change::Relation) -> Option<Arc<Table>>,
) -> Result<Vec<Statement>, Error> {
    let mut planner = Planner { lanes: Vec::new(), done: Vec::new(), order };
    for transaction in group {
        for change in &transaction.changes {
            let lsn = transaction.end_lsn;
            let table = |relation: &crate::change::Relation| {
                find(relation).ok_or_else(|| {
                    Error::Protocol(format!("table {}.{} was not looked up", relation.schema, relation.name))
                })
            };
            match change {
                Change::Insert { relation, new } => planner.insert(table(relation)?, new, lsn)?,
                Change::Update { relation, old, new } => {
                    planner.update(table(relation)?, old.as_ref(), new, lsn)?;
                }
                Change::Delete { relation, old } => planner.delete(table(relation)?, old, lsn)?,
                Change::Truncate { relations, restart_identity, .. } => {
                    let tables =
                        relations.iter().map(|relation| table(relation)).collect::<Result<Vec<_>, _>>()?;
                    planner.close_all();
                    planner.done.push(Statement {
                        // The stream names every table that the source's CASCADE reached.
                        sql: sql::truncate(&tables, *restart_identity),
                        parameters: Vec::new(),
                        table: tables.first().map(|table| table.label.clone()).unwrap_or_default(),
                        key: "truncate".into(),
                        lsn,
                    });
                }
                Change::Message { .. } => {}
            }
        }
    }
    planner.close_all();
    Ok(planner.done)
}

struct Planner {
    /// Open batches, one per table.
    lanes: Vec<Batch>,
    done: Vec<Statement>,
    order: Order,
}

impl Planner {
    fn insert(&mut self, table: Arc<Table>, new: &Row, lsn: Lsn) -> Result<(), Error> {
        let row = all(&table, new, lsn)?;
        let key = pick(&table, new, &table.key, lsn)?;
        self.add(table, Kind::Insert, key, row, false, lsn);
        Ok(())
    }

    fn update(&mut self, table: Arc<Table>, old: Option<&OldRow>, new: &Row, lsn: Lsn) -> Result<(), Error> {
        let changed: Vec<usize> = (0..new.len()).filter(|at| !matches!(new[*at], Cell::Unchanged)).collect();
        let old_row = match old {
            Some(OldRow::Key(row) | OldRow::Full(row)) => Some(row),
            None => None,
        };
        if table.key.is_empty() {
            let Some(OldRow::Full(old)) = old else {
                return Err(no_identity(&table, lsn));
            };
            let mut row = all(&table, old, lsn)?;
            let key = row.clone();
            row.extend(pick(&table, new, &changed, lsn)?);
            self.add(table, Kind::FullUpdate(changed), key, row, true, lsn);
            return Ok(());
        }
        let key = pick(&table, old_row.unwrap_or(new), &table.key, lsn)?;
        let moved = old_row.is_some_and(|old| {
            table.key.iter().any(|at| !matches!(new[*at], Cell::Unchanged) && new[*at] != old[*at])
        });
        let set: Vec<usize> =
            if moved { changed } else { changed.into_iter().filter(|at| !table.key.contains(at)).collect() };
        let replace = set.iter().any(|at| table.columns[*at].always_identity);
        let mut row = key.clone();
        row.extend(pick(&table, new, &set, lsn)?);
        let kind = if replace { Kind::Replace(set) } else { Kind::Update(set) };
        self.add(table, kind, key, row, moved || replace, lsn);
        Ok(())
    }

    fn delete(&mut self, table: Arc<Table>, old: &OldRow, lsn: Lsn) -> Result<(), Error> {
        let (OldRow::Key(row) | OldRow::Full(row)) = old;
        if table.key.is_empty() {
            if matches!(old, OldRow::Key(_)) {
                return Err(no_identity(&table, lsn));
            }
            let row = all(&table, row, lsn)?;
            self.add(table, Kind::FullDelete, row.clone(), row, true, lsn);
            return Ok(());
        }
        let key = pick(&table, row, &table.key, lsn)?;
        self.add(table, Kind::Delete, key.clone(), key, false, lsn);
        Ok(())
    }

    fn add(
        &mut self,
        table: Arc<Table>,
        kind: Kind,
        key: Vec<Option<Bytes>>,
        row: Vec<Option<Bytes>>,
        alone: bool,
        lsn: Lsn,
    ) {
        if let Some(at) = self.lanes.iter().position(|lane| Arc::ptr_eq(&lane.table, &table)) {
            let lane = &mut self.lanes[at];
            let fits = !alone && !lane.alone && lane.kind == kind && !row.is_empty();
            if fits && (key.is_empty() || lane.keys.insert(key.clone())) {
                lane.rows.push(row);
                return;
            }
            let batch = self.lanes.remove(at);
            self.done.push(batch.statement());
        }
        let batch = Batch {
            key: describe(&table, &kind, &key),
            keys: HashSet::from([key]),
            table,
            kind,
            rows: vec![row],
            alone,
            lsn,
        };
        match self.order {
            Order::Lanes => self.lanes.push(batch),
            Order::Rows => self.done.push(batch.statement()),
        }
    }

    fn close_all(&mut self) {
        self.done.extend(self.lanes.drain(..).map(Batch::statement));
    }
}

impl Batch {
    fn statement(self) -> Statement {
        let width = self.rows.first().map_or(0, Vec::len);
        let mut parameters: Vec<Vec<Option<Bytes>>> =
            (0..width).map(|_| Vec::with_capacity(self.rows.len())).collect();
        for row in self.rows {
            for (column, value) in parameters.iter_mut().zip(row) {
                column.push(value);
            }
        }
        Statement {
            sql: sql::statement(&self.table, &self.kind),
            parameters,
            table: self.table.label.clone(),
            key: self.key,
            lsn: self.lsn,
        }
    }
}

fn all(table: &Table, row: &Row, lsn: Lsn) -> Result<Vec<Option<Bytes>>, Error> {
    let every: Vec<usize> = (0..table.columns.len()).collect();
    pick(table, row, &every, lsn)
}

fn pick(table: &Table, row: &Row, columns: &[usize], lsn: Lsn) -> Result<Vec<Option<Bytes>>, Error> {
    columns
        .iter()
        .map(|at| match row.get(*at) {
            Some(Cell::Null) => Ok(None),
            Some(Cell::Text(text)) => Ok(Some(text.clone())),
            Some(Cell::Unchanged) | None => Err(Error::Protocol(format!(
                "column {at} of {} has no value in transaction {lsn}",
                table.label
            ))),
        })
        .collect()
}

fn no_identity(table: &Table, lsn: Lsn) -> Error {
    Error::Conflict {
        table: table.label.clone(),
        lsn,
        what: "the row cannot be told from others: no replica identity".into(),
    }
}

/// `(id)=(5)`, as PostgreSQL writes keys; long values are cut.
fn describe(table: &Table, kind: &Kind, key: &[Option<Bytes>]) -> String {
    let full = matches!(kind, Kind::FullDelete | Kind::FullUpdate(_));
    let names: Vec<&str> = if full {
        table.relation.columns.iter().map(|column| column.name.as_str()).collect()
    } else {
        table.key.iter().map(|at| table.relation.columns[*at].name.as_str()).collect()
    };
    let values: Vec<String> = key
        .iter()
        .map(|value| match value {
            None => "null".into(),
            Some(text) => String::from_utf8_lossy(&text[..text.len().min(64)]).into_owned(),
        })
        .collect();
    format!("({})=({})", names.join(", "), values.join(", "))
}

#[cfg(test)]
mod tests;
