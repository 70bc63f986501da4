//! One table's changes, brought down to what each row comes to in the end.
//!
//! A row goes by the text of its key: as long as the key does not change the source sends it as it is stored, and a
//! change of spelling alone (`1.0` to `1.00`) comes as a change of key. Within what is collected: insert + update =
//! insert; insert + delete = nothing; update + update = update; update + delete = delete; delete + insert = both, deletions
//! first. A change of key is a deletion and an insertion, if the whole row is known. What the source could not have
//! done (a second insertion of a key, say, or the deletion of another row than the one of that key) closes the lane, so that the database judges it.
//!
//! Without a key (`REPLICA IDENTITY FULL`) equal rows are the same to everyone: what counts is how many more or fewer of
//! each there are.

use std::borrow::Cow;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use super::statement::{Data, Statement};
use super::{Kind, Put, cells, filled};
use crate::apply::postgres::catalog::Table;
use crate::apply::postgres::encode::{Array, CopyRows, arrays, bad_value, value};
use crate::apply::postgres::sql;
use crate::change::{Cell, OldRow, ReplicaIdentity, Row};
use crate::error::Error;
use crate::hash::HashMap;
use crate::lsn::Lsn;
use bytes::{BufMut, Bytes, BytesMut};

/// From so many rows on COPY is quicker than INSERT, in spite of its extra round trip.
const COPY_FROM: usize = 32;

/// Parameters of one statement stay below this, bytes.
const STATEMENT_BYTES: usize = 16 << 20;

/// What a row came to.
#[derive(Debug)]
enum State<'a> {
    /// Not there before.
    Insert(Cow<'a, Row>),
    /// There before and after.
    Update(Cow<'a, Row>),
    /// There before only.
    Delete,
    /// There before; another one of the same key after.
    Replace(Cow<'a, Row>),
    /// Came and went.
    Nothing,
    /// Without a key: so many more (or fewer).
    Times(i64),
}

#[derive(Debug)]
struct Held<'a> {
    /// Has the key's values.
    key: Cow<'a, Row>,
    state: State<'a>,
    lsn: Lsn,
}

/// A table's open changes.
#[derive(Debug)]
pub(super) struct Lane<'a> {
    table: Arc<Table>,
    held: Vec<Held<'a>>,
    places: HashMap<Bytes, usize>,
    /// An update that must be written as one, after everything else.
    last: Option<(Kind, Vec<Bound<'a>>, Lsn)>,
}

/// A value of a statement with its column.
type Bound<'a> = (usize, Cow<'a, Cell>);

impl<'a> Lane<'a> {
    pub(super) fn new(table: Arc<Table>) -> Self {
        Self { table, held: Vec::new(), places: HashMap::default(), last: None }
    }

    pub(super) fn table(&self) -> &Arc<Table> {
        &self.table
    }

    fn is_empty(&self) -> bool {
        self.held.is_empty() && self.last.is_none()
    }

    pub(super) fn insert(&mut self, new: &'a Row, lsn: Lsn) -> Result<Put, Error> {
        if self.last.is_some() {
            return Ok(Put::CloseFirst);
        }
        self.add(Cow::Borrowed(new), lsn)
    }

    fn add(&mut self, new: Cow<'a, Row>, lsn: Lsn) -> Result<Put, Error> {
        if self.table.key.is_empty() {
            if self.table.relation.identity == ReplicaIdentity::Full {
                self.count(new, 1, lsn);
            } else {
                self.held.push(Held { key: new.clone(), state: State::Insert(new), lsn });
            }
            return Ok(Put::Done);
        }
        match self.places.entry(key(&self.table, &new, lsn)?) {
            Entry::Vacant(place) => {
                place.insert(self.held.len());
                self.held.push(Held { key: new.clone(), state: State::Insert(new), lsn });
            }
            Entry::Occupied(place) => {
                let held = &mut self.held[*place.get()];
                held.state = match held.state {
                    State::Delete => State::Replace(new),
                    State::Nothing => State::Insert(new),
                    _ => return Ok(Put::CloseFirst),
                };
                held.lsn = lsn;
            }
        }
        Ok(Put::Done)
    }

    /// Whether the row that came by the key of `old` is not `old`: the key is the target's own then, and the source's rows are not told apart by it any more.
    fn has_another(&self, old: &OldRow, lsn: Lsn) -> Result<bool, Error> {
        let OldRow::Full(old) = old else { return Ok(false) };
        if self.table.key.is_empty() {
            return Ok(false);
        }
        let Some(at) = self.places.get(&key(&self.table, old, lsn)?) else { return Ok(false) };
        let (State::Insert(row) | State::Update(row) | State::Replace(row)) = &self.held[*at].state else {
            return Ok(false);
        };
        Ok(row.iter().zip(old).any(|(held, old)| *held != Cell::Unchanged && held != old))
    }

    pub(super) fn delete(&mut self, old: &'a OldRow, lsn: Lsn) -> Result<Put, Error> {
        if self.last.is_some() || self.has_another(old, lsn)? {
            return Ok(Put::CloseFirst);
        }
        self.remove(old, lsn)
    }

    fn remove(&mut self, old: &'a OldRow, lsn: Lsn) -> Result<Put, Error> {
        if self.table.key.is_empty() {
            let OldRow::Full(row) = old else { return Err(no_identity(&self.table, lsn)) };
            self.count(Cow::Borrowed(row), -1, lsn);
            return Ok(Put::Done);
        }
        let row = cells(old);
        match self.places.entry(key(&self.table, row, lsn)?) {
            Entry::Vacant(place) => {
                place.insert(self.held.len());
                self.held.push(Held { key: Cow::Borrowed(row), state: State::Delete, lsn });
            }
            Entry::Occupied(place) => {
                let held = &mut self.held[*place.get()];
                held.state = match held.state {
                    State::Insert(_) => State::Nothing,
                    State::Update(_) | State::Replace(_) => State::Delete,
                    _ => return Ok(Put::CloseFirst),
                };
                held.lsn = lsn;
            }
        }
        Ok(Put::Done)
    }

    pub(super) fn update(&mut self, old: Option<&'a OldRow>, new: &'a Row, lsn: Lsn) -> Result<Put, Error> {
        let is_another = old.map(|old| self.has_another(old, lsn)).transpose()?;
        if self.last.is_some() || is_another == Some(true) {
            return Ok(Put::CloseFirst);
        }
        let new = match old.and_then(|old| filled(new, old, &self.table.key)) {
            Some(row) => Cow::Owned(row),
            None => Cow::Borrowed(new),
        };
        let Some(old) = old else {
            if self.table.key.is_empty() {
                return Err(no_identity(&self.table, lsn));
            }
            return self.change(new.clone(), new, lsn);
        };
        let moved = self.table.key.is_empty() || self.table.key.iter().any(|at| new[*at] != cells(old)[*at]);
        if moved { self.shift(old, new, lsn) } else { self.change(Cow::Borrowed(cells(old)), new, lsn) }
    }

    /// An update that keeps the key.
    fn change(&mut self, row: Cow<'a, Row>, new: Cow<'a, Row>, lsn: Lsn) -> Result<Put, Error> {
        match self.places.entry(key(&self.table, &row, lsn)?) {
            Entry::Vacant(place) => {
                place.insert(self.held.len());
                self.held.push(Held { key: row, state: State::Update(new), lsn });
            }
            Entry::Occupied(place) => {
                let held = &mut self.held[*place.get()];
                match &mut held.state {
                    State::Insert(row) | State::Update(row) | State::Replace(row) => merge(row, new),
                    _ => return Ok(Put::CloseFirst),
                }
                held.lsn = lsn;
            }
        }
        Ok(Put::Done)
    }

    /// An update of a key, or of a row without one.
    fn shift(&mut self, old: &'a OldRow, new: Cow<'a, Row>, lsn: Lsn) -> Result<Put, Error> {
        if !self.table.key.is_empty() {
            // Checked first, so that nothing is half done.
            let free = |at: &usize| matches!(self.held[*at].state, State::Delete | State::Nothing);
            if self.places.get(&key(&self.table, &new, lsn)?).is_some_and(|at| !free(at)) {
                return Ok(Put::CloseFirst);
            }
        } else if matches!(old, OldRow::Key(_)) {
            return Err(no_identity(&self.table, lsn));
        }
        let mut whole = new;
        if whole.contains(&Cell::Unchanged)
            && let Some(at) = self.places.get(&key(&self.table, cells(old), lsn)?)
            && let State::Insert(row) | State::Replace(row) = &self.held[*at].state
        {
            let mut known = row.clone();
            merge(&mut known, whole);
            whole = known;
        }
        if self.table.others.is_empty() && !self.table.watched && !whole.contains(&Cell::Unchanged) {
            return Ok(match self.remove(old, lsn)? {
                Put::Done => self.add(whole, lsn)?,
                Put::CloseFirst => Put::CloseFirst,
            });
        }
        if !self.is_empty() {
            return Ok(Put::CloseFirst);
        }
        self.last = Some(self.in_place(old, &whole, lsn));
        Ok(Put::Done)
    }

    /// One UPDATE for a change of key whose row is not known whole.
    fn in_place(&self, old: &'a OldRow, new: &Row, lsn: Lsn) -> (Kind, Vec<Bound<'a>>, Lsn) {
        // What no UPDATE can set is left out where it is seen to stay.
        let stays = |at: usize| {
            let before = matches!(old, OldRow::Full(_)).then(|| cells(old).get(at)).flatten();
            self.table.columns[at].always_identity && before == Some(&new[at])
        };
        let set: Vec<usize> =
            (0..new.len()).filter(|at| new[*at] != Cell::Unchanged && !stays(*at)).collect();
        let by: Vec<usize> =
            if self.table.key.is_empty() { (0..new.len()).collect() } else { self.table.key.clone() };
        let mut bound: Vec<Bound<'a>> = by.iter().map(|at| (*at, Cow::Borrowed(&cells(old)[*at]))).collect();
        bound.extend(set.iter().map(|at| (*at, Cow::Owned(new[*at].clone()))));
        let kind = if self.table.key.is_empty() { Kind::FullUpdate(set) } else { self.setting(set) };
        (kind, bound, lsn)
    }

    /// Of rows that are found by key.
    fn setting(&self, set: Vec<usize>) -> Kind {
        let always = set.iter().any(|at| self.table.columns[*at].always_identity);
        if always { Kind::Replace(set) } else { Kind::Update(set) }
    }

    fn count(&mut self, row: Cow<'a, Row>, by: i64, lsn: Lsn) {
        let every = 0..row.len();
        match self.places.entry(joined(&row, every)) {
            Entry::Vacant(place) => {
                place.insert(self.held.len());
                self.held.push(Held { key: row, state: State::Times(by), lsn });
            }
            Entry::Occupied(place) => {
                let held = &mut self.held[*place.get()];
                if let State::Times(times) = &mut held.state {
                    *times += by;
                }
                held.lsn = lsn;
            }
        }
    }

    /// Writes everything as statements: deletions, updates, insertions.
    pub(super) fn close(&mut self, done: &mut Vec<Statement>) -> Result<(), Error> {
        let held = std::mem::take(&mut self.held);
        self.places.clear();
        if !held.is_empty() {
            self.deletions(&held, done)?;
            self.updates(&held, done)?;
            self.insertions(&held, done)?;
        }
        if let Some((kind, bound, lsn)) = self.last.take() {
            let row = bound.iter().map(|(at, cell)| (*at, &**cell)).collect::<Vec<_>>();
            let columns: Vec<usize> = bound.iter().map(|(at, _)| *at).collect();
            let mut batch = Batch::new(&self.table, kind, columns);
            batch.push(row.iter().map(|(_, cell)| Some(*cell)), None, lsn, done)?;
            batch.finish(done);
        }
        Ok(())
    }

    fn deletions(&self, held: &[Held<'a>], done: &mut Vec<Statement>) -> Result<(), Error> {
        let table = &self.table;
        let full = table.key.is_empty();
        let columns = if full { (0..table.columns.len()).collect() } else { table.key.clone() };
        let kind = if full { Kind::FullDelete } else { Kind::Delete };
        let mut batch = Batch::new(table, kind, columns.clone());
        for held in held {
            let times = match held.state {
                State::Delete | State::Replace(_) => None,
                State::Times(times) if times < 0 => Some(times.unsigned_abs()),
                _ => continue,
            };
            batch.push(columns.iter().map(|at| held.key.get(*at)), times, held.lsn, done)?;
        }
        batch.finish(done);
        Ok(())
    }

    fn updates(&self, held: &[Held<'a>], done: &mut Vec<Statement>) -> Result<(), Error> {
        let table = &self.table;
        // By which columns they set, in the order of their appearance.
        let mut batches: Vec<(Vec<usize>, Batch<'_>)> = Vec::new();
        for held in held {
            let State::Update(row) = &held.state else { continue };
            let sets = |at: &usize| row[*at] != Cell::Unchanged && !table.key.contains(at);
            let known =
                batches.iter().position(|(set, _)| (0..row.len()).filter(sets).eq(set.iter().copied()));
            let at = known.unwrap_or_else(|| {
                let set: Vec<usize> = (0..row.len()).filter(sets).collect();
                let kind = self.setting(set.clone());
                let columns = [&table.key, &set[..]].concat();
                batches.push((set, Batch::new(table, kind, columns)));
                batches.len() - 1
            });
            let (set, batch) = &mut batches[at];
            let key = table.key.iter().map(|at| held.key.get(*at));
            batch.push(key.chain(set.iter().map(|at| row.get(*at))), None, held.lsn, done)?;
        }
        for (_, batch) in batches {
            batch.finish(done);
        }
        Ok(())
    }

    fn insertions(&self, held: &[Held<'a>], done: &mut Vec<Statement>) -> Result<(), Error> {
        let rows = held.iter().flat_map(|held| {
            let (row, times) = match &held.state {
                State::Insert(row) | State::Replace(row) => (row, 1),
                State::Times(times) => (&held.key, usize::try_from(*times).unwrap_or(0)),
                _ => (&held.key, 0),
            };
            std::iter::repeat_n((&**row, held.lsn), times)
        });
        let table = &self.table;
        let count = rows.clone().count();
        let columns: Vec<usize> = (0..table.columns.len()).collect();
        if columns.is_empty() {
            for (_, lsn) in rows {
                let mut batch = Batch::new(table, Kind::Insert, Vec::new());
                batch.push(std::iter::empty(), None, lsn, done)?;
                batch.finish(done);
            }
            return Ok(());
        }
        if count < COPY_FROM {
            let mut batch = Batch::new(table, Kind::Insert, columns);
            for (row, lsn) in rows {
                batch.push(row.iter().map(Some), None, lsn, done)?;
            }
            batch.finish(done);
            return Ok(());
        }
        let (mut copy, mut first) = (CopyRows::default(), None);
        for (row, lsn) in rows {
            first.get_or_insert((row, lsn));
            copy.push(row).map_err(|at| {
                bad_value(
                    &table.label,
                    &table.relation.columns[at].name,
                    lsn,
                    "was not sent and is not known",
                )
            })?;
        }
        if let Some((row, lsn)) = first {
            done.push(Statement {
                sql: sql::statement(table, &Kind::Copy),
                data: Data::Copy(copy.finish()),
                rows: count,
                scans: false,
                table: table.label.clone(),
                key: describe(table, table.key.iter().map(|at| (*at, row.get(*at)))),
                lsn,
            });
        }
        Ok(())
    }
}

/// A statement that grows.
struct Batch<'t> {
    table: &'t Table,
    kind: Kind,
    columns: Vec<usize>,
    arrays: Vec<Array>,
    times: Vec<u64>,
    rows: usize,
    first: Option<(String, Lsn)>,
}

impl<'t> Batch<'t> {
    fn new(table: &'t Table, kind: Kind, columns: Vec<usize>) -> Self {
        let arrays = arrays(columns.iter().map(|at| &table.columns[*at]));
        Self { table, kind, columns, arrays, times: Vec::new(), rows: 0, first: None }
    }

    fn push<'c>(
        &mut self,
        row: impl Iterator<Item = Option<&'c Cell>> + Clone,
        times: Option<u64>,
        lsn: Lsn,
        done: &mut Vec<Statement>,
    ) -> Result<(), Error> {
        if self.first.is_none() {
            let keys = match self.kind {
                Kind::FullDelete | Kind::FullUpdate(_) => self.table.columns.len(),
                Kind::Insert => 0,
                _ => self.table.key.len(),
            };
            let named: Vec<_> = self.columns.iter().copied().zip(row.clone()).collect();
            let key = if self.kind == Kind::Insert {
                describe(self.table, named.iter().filter(|(at, _)| self.table.key.contains(at)).copied())
            } else {
                describe(self.table, named[..keys].iter().copied())
            };
            self.first = Some((key, lsn));
        }
        for ((array, at), cell) in self.arrays.iter_mut().zip(&self.columns).zip(row) {
            value(cell).and_then(|value| array.push(value)).map_err(|why| {
                bad_value(&self.table.label, &self.table.relation.columns[*at].name, lsn, &why)
            })?;
        }
        self.times.extend(times);
        self.rows += 1;
        if self.arrays.iter().map(Array::size).sum::<usize>() >= STATEMENT_BYTES {
            let next = Self::new(self.table, self.kind.clone(), self.columns.clone());
            std::mem::replace(self, next).finish(done);
        }
        Ok(())
    }

    fn finish(self, done: &mut Vec<Statement>) {
        let Some((key, lsn)) = self.first else { return };
        let mut arrays: Vec<Array> = self.arrays.into_iter().map(Array::finish).collect();
        if self.kind == Kind::FullDelete {
            arrays.push(Array::counts(self.times.into_iter()).finish());
        }
        done.push(Statement {
            sql: sql::statement(self.table, &self.kind),
            data: Data::Arrays(arrays),
            rows: self.rows,
            scans: matches!(self.kind, Kind::FullDelete),
            table: self.table.label.clone(),
            key,
            lsn,
        });
    }
}

/// Puts what `new` sets over `row`.
fn merge<'a>(row: &mut Cow<'a, Row>, new: Cow<'a, Row>) {
    if new.contains(&Cell::Unchanged) {
        let row = row.to_mut();
        for (cell, new) in row.iter_mut().zip(new.iter()) {
            if *new != Cell::Unchanged {
                *cell = new.clone();
            }
        }
    } else {
        *row = new;
    }
}

/// The key as bytes.
fn key(table: &Table, row: &Row, lsn: Lsn) -> Result<Bytes, Error> {
    for at in &table.key {
        let column = &table.relation.columns[*at].name;
        match value(row.get(*at)) {
            Ok(Some(_)) => {}
            // It was NOT NULL when the table was looked up: the next session finds another key, or none. Of this one many rows may be.
            Ok(None) => {
                let what = format!("column {column} of the key is NULL");
                return Err(Error::Conflict { table: table.label.clone(), lsn, what });
            }
            Err(why) => return Err(bad_value(&table.label, column, lsn, &why)),
        }
    }
    if let [at] = table.key[..]
        && let Cell::Text(text) = &row[at]
    {
        return Ok(text.clone());
    }
    Ok(joined(row, table.key.iter().copied()))
}

fn joined(row: &Row, columns: impl Iterator<Item = usize>) -> Bytes {
    let mut out = BytesMut::new();
    for at in columns {
        match &row[at] {
            Cell::Null => out.put_u8(b'n'),
            Cell::Unchanged => out.put_u8(b'u'),
            Cell::Text(text) => {
                out.put_u8(b't');
                out.put_u32(text.len() as u32);
                out.put_slice(text);
            }
        }
    }
    out.freeze()
}

fn no_identity(table: &Table, lsn: Lsn) -> Error {
    Error::Conflict {
        table: table.label.clone(),
        lsn,
        what: "the row cannot be told from others: no replica identity without generated columns".into(),
    }
}

/// `(id)=(5)`, as PostgreSQL writes keys; long values are cut.
fn describe<'c>(table: &Table, key: impl Iterator<Item = (usize, Option<&'c Cell>)>) -> String {
    let (mut names, mut values) = (Vec::new(), Vec::new());
    for (at, cell) in key {
        names.push(table.relation.columns[at].name.as_str());
        values.push(match cell {
            Some(Cell::Text(text)) => String::from_utf8_lossy(&text[..text.len().min(64)]).into_owned(),
            _ => "null".into(),
        });
    }
    format!("({})=({})", names.join(", "), values.join(", "))
}
