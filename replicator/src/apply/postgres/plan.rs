//! From changes to statements. Pure.
//!
//! Rows of different tables do not depend on each other here (foreign keys and triggers sleep in replica role), and all
//! of a group becomes visible at once; so each table has a [`lane`] of its own, which keeps what its changes come to in the
//! end: one deletion, update or insertion per key. TRUNCATE waits for all lanes, and so does a table that something
//! watches. In [`Order::Rows`] every change is written by itself, in the source's order: what is left when a batch meets a
//! unique constraint, and the way to name the row of a conflict.

mod lane;
mod statement;

use std::sync::Arc;

use super::catalog::{Table, Tables};
use super::sql;
use crate::change::{Cell, Change, OldRow, Relation, Row};
use crate::error::Error;
use crate::hash::HashMap;
use crate::lsn::Lsn;
use lane::Lane;

pub(super) use statement::{Data, Statement};

/// How much may be reordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// What each key comes to, in batches.
    Net,
    /// One change after the other.
    Rows,
}

/// A change and the end of its transaction.
pub(super) type Item<'a> = (Lsn, &'a Change);

/// The shape of a statement.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    Insert,
    /// Many rows by COPY.
    Copy,
    /// Columns to set; found by key.
    Update(Vec<usize>),
    /// The same with `GENERATED ALWAYS` identity columns, which no UPDATE can set: a row whose number is another one is deleted and
    /// inserted again, keeping the columns that are not listed.
    Replace(Vec<usize>),
    Delete,
    /// One row, found by all its old values.
    FullUpdate(Vec<usize>),
    /// As many of each row as is given in the last parameter, found by all their values.
    FullDelete,
}

/// Plans these changes.
pub(super) fn plan(items: &[Item<'_>], order: Order, tables: &Tables) -> Result<Vec<Statement>, Error> {
    let mut planner = Planner { lanes: Vec::new(), at: HashMap::default(), done: Vec::new(), order };
    let find = |relation: &Arc<Relation>| {
        tables.find(relation).ok_or_else(|| {
            Error::Protocol(format!("table {}.{} was not looked up", relation.schema, relation.name))
        })
    };
    for (lsn, change) in items {
        match change {
            Change::Insert { relation, new } => {
                planner.row(find(relation)?, *lsn, |lane| lane.insert(new, *lsn))?;
            }
            Change::Update { relation, old, new } => {
                planner.row(find(relation)?, *lsn, |lane| lane.update(old.as_ref(), new, *lsn))?;
            }
            Change::Delete { relation, old } => {
                planner.row(find(relation)?, *lsn, |lane| lane.delete(old, *lsn))?;
            }
            Change::Truncate { relations, .. } => {
                let tables = relations
                    .iter()
                    .map(|relation| find(relation).cloned())
                    .collect::<Result<Vec<_>, _>>()?;
                planner.truncate(&tables, *lsn)?;
            }
            Change::Message { .. } => {}
        }
    }
    planner.close_all()?;
    Ok(planner.done)
}

struct Planner<'a> {
    /// Open lanes, in the order of their first change.
    lanes: Vec<Lane<'a>>,
    /// By the source's OID.
    at: HashMap<u32, usize>,
    done: Vec<Statement>,
    order: Order,
}

impl<'a> Planner<'a> {
    /// Puts a change of a row into its table's lane; `put` says no when the lane must be written out first.
    fn row(
        &mut self,
        table: &Arc<Table>,
        lsn: Lsn,
        mut put: impl FnMut(&mut Lane<'a>) -> Result<Put, Error>,
    ) -> Result<(), Error> {
        let alone = self.order == Order::Rows || table.watched;
        if alone {
            self.close_all()?;
        }
        let at = self.lane(table)?;
        let lane = &mut self.lanes[at];
        match put(lane)? {
            Put::Done => {}
            Put::CloseFirst => {
                lane.close(&mut self.done)?;
                if put(lane)? != Put::Done {
                    return Err(Error::Protocol(format!(
                        "a change of {} in transaction {lsn} fits nowhere",
                        table.label
                    )));
                }
            }
        }
        if alone { self.close_all() } else { Ok(()) }
    }

    fn lane(&mut self, table: &Arc<Table>) -> Result<usize, Error> {
        if let Some(at) = self.at.get(&table.relation.id).copied() {
            // The table was altered in between.
            if !Arc::ptr_eq(self.lanes[at].table(), table) {
                self.lanes[at].close(&mut self.done)?;
                self.lanes[at] = Lane::new(Arc::clone(table));
            }
            return Ok(at);
        }
        self.lanes.push(Lane::new(Arc::clone(table)));
        self.at.insert(table.relation.id, self.lanes.len() - 1);
        Ok(self.lanes.len() - 1)
    }

    fn truncate(&mut self, tables: &[Arc<Table>], lsn: Lsn) -> Result<(), Error> {
        self.close_all()?;
        if let Some(first) = tables.first() {
            self.done.push(Statement {
                sql: sql::truncate(tables),
                data: Data::None,
                rows: 0,
                scans: false,
                table: first.label.clone(),
                key: "truncate".into(),
                lsn,
            });
        }
        Ok(())
    }

    fn close_all(&mut self) -> Result<(), Error> {
        for lane in &mut self.lanes {
            lane.close(&mut self.done)?;
        }
        Ok(())
    }
}

/// Whether a lane took a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Put {
    Done,
    /// It cannot be joined with what is there: write that first.
    CloseFirst,
}

fn cells(old: &OldRow) -> &Row {
    let (OldRow::Key(row) | OldRow::Full(row)) = old;
    row
}

/// `new` with what was not sent taken from `old`, where `old` has it. `None`: nothing to fill in.
fn filled(new: &Row, old: &OldRow, key: &[usize]) -> Option<Row> {
    let known = |at: usize| matches!(old, OldRow::Full(_)) || key.contains(&at);
    let from = cells(old);
    let fills = |at: usize| new[at] == Cell::Unchanged && known(at) && from.get(at).is_some();
    (0..new.len()).any(fills).then(|| {
        (0..new.len()).map(|at| if fills(at) { from[at].clone() } else { new[at].clone() }).collect()
    })
}

#[cfg(test)]
mod tests;
