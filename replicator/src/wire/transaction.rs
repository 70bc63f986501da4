//! A source transaction as bytes. A table is described once per session, the first time it is used or when it changed,
//! so [`Encoder`] and [`Decoder`] remember; both start empty with each session.

use std::sync::Arc;

use super::codec::{Reader, Writer};
use crate::change::{Cell, Change, Column, OldRow, PgTimestamp, Relation, ReplicaIdentity, Row, Transaction};
use crate::error::Error;
use crate::hash::HashMap;
use bytes::{BufMut, Bytes, BytesMut};

/// Largest encoded transaction that is carried whole, bytes; larger ones go as [`super::large`].
pub const MAX_TRANSACTION: usize = 64 << 20;

/// Tables that one session may describe.
const MAX_RELATIONS: usize = 1 << 20;

const RELATION: u8 = b'R';
const INSERT: u8 = b'I';
const UPDATE: u8 = b'U';
const DELETE: u8 = b'D';
const TRUNCATE: u8 = b'T';
const MESSAGE: u8 = b'M';

/// The sending side.
#[derive(Debug, Default)]
pub struct Encoder {
    known: HashMap<u32, Arc<Relation>>,
}

impl Encoder {
    /// The whole transaction as bytes, with the tables that the other side does not know yet.
    pub fn encode(&mut self, transaction: &Transaction) -> Result<Bytes, Error> {
        let mut out = BytesMut::with_capacity(256);
        self.append(&mut out, transaction)?;
        Ok(out.freeze())
    }

    /// The same behind what is in `out` already. After an error `out` is worth nothing.
    pub fn append(&mut self, out: &mut BytesMut, transaction: &Transaction) -> Result<(), Error> {
        let start = out.len();
        out.put_u32(transaction.xid);
        out.put_lsn(transaction.commit_lsn);
        out.put_lsn(transaction.end_lsn);
        out.put_i64(transaction.commit_time.0);
        out.put_text(transaction.origin.as_deref().unwrap_or_default());
        for change in &transaction.changes {
            self.change(out, change);
            if out.len() - start > MAX_TRANSACTION {
                return Err(Error::Protocol(format!(
                    "transaction {} at {} is larger than {MAX_TRANSACTION} bytes and was not cut into pieces",
                    transaction.xid, transaction.end_lsn
                )));
            }
        }
        Ok(())
    }

    fn change(&mut self, out: &mut BytesMut, change: &Change) {
        self.describe(change, |put| put(out));
        put_change(out, change);
    }

    /// Describes the tables of a change that the other side does not know yet: `description` gets a writer for each.
    pub(crate) fn describe(&mut self, change: &Change, mut description: impl FnMut(&dyn Fn(&mut BytesMut))) {
        for relation in change.relations() {
            if let Some(known) = self.known.get(&relation.id)
                && (Arc::ptr_eq(known, relation) || known == relation)
            {
                continue;
            }
            self.known.insert(relation.id, Arc::clone(relation));
            description(&|out| put_relation(out, relation));
        }
    }
}

fn put_relation(out: &mut BytesMut, relation: &Relation) {
    out.put_u8(RELATION);
    out.put_u32(relation.id);
    out.put_text(&relation.schema);
    out.put_text(&relation.name);
    out.put_u8(match relation.identity {
        ReplicaIdentity::Default => b'd',
        ReplicaIdentity::Nothing => b'n',
        ReplicaIdentity::Full => b'f',
        ReplicaIdentity::Index => b'i',
    });
    out.put_u32(relation.columns.len() as u32);
    for column in &relation.columns {
        out.put_text(&column.name);
        out.put_bool(column.key);
        out.put_u32(column.type_oid);
        out.put_i32(column.type_modifier);
    }
}

/// A change whose tables are known to the other side.
pub(crate) fn put_change(out: &mut BytesMut, change: &Change) {
    match change {
        Change::Insert { relation, new } => {
            out.put_u8(INSERT);
            out.put_u32(relation.id);
            put_row(out, new);
        }
        Change::Update { relation, old, new } => {
            out.put_u8(UPDATE);
            out.put_u32(relation.id);
            put_old(out, old.as_ref());
            put_row(out, new);
        }
        Change::Delete { relation, old } => {
            out.put_u8(DELETE);
            out.put_u32(relation.id);
            put_old(out, Some(old));
        }
        Change::Truncate { relations, cascade, restart_identity } => {
            out.put_u8(TRUNCATE);
            out.put_bool(*cascade);
            out.put_bool(*restart_identity);
            out.put_u32(relations.len() as u32);
            for relation in relations {
                out.put_u32(relation.id);
            }
        }
        Change::Message { prefix, content } => {
            out.put_u8(MESSAGE);
            out.put_text(prefix);
            out.put_bytes_u32(content);
        }
    }
}

fn put_old(out: &mut BytesMut, old: Option<&OldRow>) {
    match old {
        None => out.put_u8(b'-'),
        Some(OldRow::Key(row)) => {
            out.put_u8(b'K');
            put_row(out, row);
        }
        Some(OldRow::Full(row)) => {
            out.put_u8(b'F');
            put_row(out, row);
        }
    }
}

fn put_row(out: &mut BytesMut, row: &Row) {
    out.put_u32(row.len() as u32);
    for cell in row {
        match cell {
            Cell::Null => out.put_u8(b'n'),
            Cell::Unchanged => out.put_u8(b'u'),
            Cell::Text(text) => {
                out.put_u8(b't');
                out.put_bytes_u32(text);
            }
        }
    }
}

/// The receiving side.
#[derive(Debug, Default)]
pub struct Decoder {
    known: HashMap<u32, Arc<Relation>>,
}

impl Decoder {
    /// Reads what [`Encoder::encode`] wrote.
    pub fn decode(&mut self, bytes: Bytes) -> Result<Transaction, Error> {
        let mut reader = Reader::new(bytes);
        let mut transaction = Transaction {
            xid: reader.u32()?,
            commit_lsn: reader.lsn()?,
            end_lsn: reader.lsn()?,
            commit_time: PgTimestamp(reader.u64()?.cast_signed()),
            origin: Some(reader.text()?).filter(|name| !name.is_empty()),
            changes: Vec::new(),
        };
        while !reader.is_empty() {
            transaction.changes.extend(self.item(&mut reader)?);
        }
        Ok(transaction)
    }

    /// Reads a table's description or a change.
    pub(super) fn item(&mut self, reader: &mut Reader) -> Result<Option<Change>, Error> {
        match reader.u8()? {
            RELATION => self.relation(reader).map(|()| None),
            tag => self.change(tag, reader).map(Some),
        }
    }

    fn relation(&mut self, reader: &mut Reader) -> Result<(), Error> {
        let (id, schema, name) = (reader.u32()?, reader.text()?, reader.text()?);
        let identity = match reader.u8()? {
            b'd' => ReplicaIdentity::Default,
            b'n' => ReplicaIdentity::Nothing,
            b'f' => ReplicaIdentity::Full,
            b'i' => ReplicaIdentity::Index,
            other => return Err(Error::Protocol(format!("{other} is not a replica identity"))),
        };
        let columns = (0..reader.count()?)
            .map(|_| {
                Ok(Column {
                    name: reader.text()?,
                    key: reader.bool()?,
                    type_oid: reader.u32()?,
                    type_modifier: reader.u32()?.cast_signed(),
                })
            })
            .collect::<Result<_, Error>>()?;
        if self.known.len() >= MAX_RELATIONS {
            return Err(Error::Protocol("too many tables in one session".into()));
        }
        self.known.insert(id, Arc::new(Relation { id, schema, name, identity, columns }));
        Ok(())
    }

    fn known(&self, reader: &mut Reader) -> Result<Arc<Relation>, Error> {
        let id = reader.u32()?;
        self.known.get(&id).cloned().ok_or_else(|| Error::Protocol(format!("table {id} was not described")))
    }

    fn change(&self, tag: u8, reader: &mut Reader) -> Result<Change, Error> {
        Ok(match tag {
            INSERT => {
                let relation = self.known(reader)?;
                Change::Insert { new: row(reader, &relation)?, relation }
            }
            UPDATE => {
                let relation = self.known(reader)?;
                let old = old(reader, &relation)?;
                Change::Update { old, new: row(reader, &relation)?, relation }
            }
            DELETE => {
                let relation = self.known(reader)?;
                let old = old(reader, &relation)?
                    .ok_or_else(|| Error::Protocol("a delete without its old row".into()))?;
                Change::Delete { relation, old }
            }
            TRUNCATE => {
                let (cascade, restart_identity) = (reader.bool()?, reader.bool()?);
                let relations = (0..reader.count()?).map(|_| self.known(reader)).collect::<Result<_, _>>()?;
                Change::Truncate { relations, cascade, restart_identity }
            }
            MESSAGE => Change::Message { prefix: reader.text()?, content: reader.bytes()? },
            other => return Err(Error::Protocol(format!("{other} is not a change"))),
        })
    }
}

fn old(reader: &mut Reader, relation: &Relation) -> Result<Option<OldRow>, Error> {
    Ok(match reader.u8()? {
        b'-' => None,
        b'K' => Some(OldRow::Key(row(reader, relation)?)),
        b'F' => Some(OldRow::Full(row(reader, relation)?)),
        other => return Err(Error::Protocol(format!("{other} is not an old row"))),
    })
}

fn row(reader: &mut Reader, relation: &Relation) -> Result<Row, Error> {
    let count = reader.count()?;
    if count != relation.columns.len() {
        return Err(Error::Protocol(format!(
            "a row of {count} values for the {} columns of {}.{}",
            relation.columns.len(),
            relation.schema,
            relation.name
        )));
    }
    (0..count)
        .map(|_| {
            Ok(match reader.u8()? {
                b'n' => Cell::Null,
                b'u' => Cell::Unchanged,
                b't' => Cell::Text(reader.bytes()?),
                other => return Err(Error::Protocol(format!("{other} is not a value"))),
            })
        })
        .collect()
}
