//! One `pgoutput` message, parsed and bounded.

use bytes::{Buf, Bytes};

use super::reader::Reader;
use crate::change::{Cell, Column, PgTimestamp, Relation, ReplicaIdentity, Row};
use crate::error::Error;
use crate::lsn::Lsn;

/// A message as it stands on the wire; relations are still numbers.
#[derive(Debug)]
pub(super) enum Message {
    Begin {
        final_lsn: Lsn,
        commit_time: PgTimestamp,
        xid: u32,
    },
    Commit(CommitRecord),
    /// Changes of an unfinished transaction follow, each with the id of its (sub)transaction.
    StreamStart {
        xid: u32,
        first: bool,
    },
    StreamStop,
    StreamCommit {
        xid: u32,
        commit: CommitRecord,
    },
    /// `sub` is `xid` when the whole transaction is gone.
    StreamAbort {
        xid: u32,
        sub: u32,
    },
    Origin {
        name: String,
    },
    Relation(Relation),
    Type,
    Insert {
        relation: u32,
        new: Row,
    },
    Update {
        relation: u32,
        old: Option<OldTuple>,
        new: Row,
    },
    Delete {
        relation: u32,
        old: OldTuple,
    },
    Truncate {
        relations: Vec<u32>,
        cascade: bool,
        restart_identity: bool,
    },
    Logical {
        transactional: bool,
        prefix: String,
        content: Bytes,
    },
}

/// What a commit says.
#[derive(Debug)]
pub(super) struct CommitRecord {
    pub(super) commit_lsn: Lsn,
    pub(super) end_lsn: Lsn,
    pub(super) commit_time: PgTimestamp,
}

/// The old values that an update or delete brings.
#[derive(Debug)]
pub(super) enum OldTuple {
    Key(Row),
    Full(Row),
}

const CASCADE: u8 = 1;
const RESTART_IDENTITY: u8 = 2;
const TRANSACTIONAL: u8 = 1;
const PART_OF_KEY: u8 = 1;

impl Message {
    /// Between StreamStart and StreamStop (`streamed`) a change carries the id of its (sub)transaction, which comes second.
    pub(super) fn parse(mut bytes: Bytes, streamed: bool) -> Result<(Self, Option<u32>), Error> {
        if bytes.is_empty() {
            return Err(Error::Protocol("an empty pgoutput message".into()));
        }
        let tag = bytes.get_u8();
        let parse: fn(&mut Reader) -> Result<Self, Error> = match tag {
            b'B' => begin,
            b'C' => commit,
            b'O' => origin,
            b'R' => relation,
            b'Y' => kind,
            b'I' => insert,
            b'U' => update,
            b'D' => delete,
            b'T' => truncate,
            b'M' => logical,
            b'S' => stream_start,
            b'E' => |_| Ok(Message::StreamStop),
            b'c' => stream_commit,
            b'A' => stream_abort,
            _ => {
                return Err(Error::Protocol(format!("unknown pgoutput message {:?}", char::from(tag))));
            }
        };
        let mut reader = Reader::new(name(tag), bytes);
        let with_id = streamed && matches!(tag, b'R' | b'Y' | b'I' | b'U' | b'D' | b'T' | b'M');
        let xid = with_id.then(|| reader.u32("transaction id")).transpose()?;
        let message = parse(&mut reader)?;
        reader.finish()?;
        Ok((message, xid))
    }
}

fn name(tag: u8) -> &'static str {
    match tag {
        b'B' => "begin",
        b'C' => "commit",
        b'O' => "origin",
        b'R' => "relation",
        b'Y' => "type",
        b'I' => "insert",
        b'U' => "update",
        b'D' => "delete",
        b'T' => "truncate",
        b'S' => "stream start",
        b'E' => "stream stop",
        b'c' => "stream commit",
        b'A' => "stream abort",
        _ => "logical",
    }
}

fn begin(reader: &mut Reader) -> Result<Message, Error> {
    Ok(Message::Begin {
        final_lsn: reader.lsn("commit position")?,
        commit_time: PgTimestamp(reader.i64("commit time")?),
        xid: reader.u32("transaction id")?,
    })
}

fn commit(reader: &mut Reader) -> Result<Message, Error> {
    Ok(Message::Commit(committed(reader)?))
}

fn stream_start(reader: &mut Reader) -> Result<Message, Error> {
    Ok(Message::StreamStart { xid: reader.u32("transaction id")?, first: reader.u8("first flag")? != 0 })
}

fn stream_commit(reader: &mut Reader) -> Result<Message, Error> {
    Ok(Message::StreamCommit { xid: reader.u32("transaction id")?, commit: committed(reader)? })
}

fn stream_abort(reader: &mut Reader) -> Result<Message, Error> {
    Ok(Message::StreamAbort { xid: reader.u32("transaction id")?, sub: reader.u32("subtransaction id")? })
}

fn committed(reader: &mut Reader) -> Result<CommitRecord, Error> {
    let flags = reader.u8("flags")?;
    if flags != 0 {
        return Err(Error::Protocol(format!("a commit with unknown flags {flags:#04x}")));
    }
    Ok(CommitRecord {
        commit_lsn: reader.lsn("commit position")?,
        end_lsn: reader.lsn("end position")?,
        commit_time: PgTimestamp(reader.i64("commit time")?),
    })
}

fn origin(reader: &mut Reader) -> Result<Message, Error> {
    reader.lsn("position at the origin")?;
    Ok(Message::Origin { name: reader.text("name")? })
}

fn relation(reader: &mut Reader) -> Result<Message, Error> {
    let id = reader.u32("oid")?;
    let schema = match reader.text("schema")? {
        // The protocol leaves pg_catalog out.
        schema if schema.is_empty() => "pg_catalog".to_owned(),
        schema => schema,
    };
    let name = reader.text("name")?;
    let identity = match reader.u8("replica identity")? {
        b'd' => ReplicaIdentity::Default,
        b'n' => ReplicaIdentity::Nothing,
        b'f' => ReplicaIdentity::Full,
        b'i' => ReplicaIdentity::Index,
        other => {
            return Err(Error::Protocol(format!("unknown replica identity {:?}", char::from(other))));
        }
    };
    let count = usize::from(reader.u16("column count")?);
    let mut columns = Vec::with_capacity(count.min(reader.remaining()));
    for _ in 0..count {
        columns.push(Column {
            key: reader.u8("column flags")? & PART_OF_KEY != 0,
            name: reader.text("column name")?,
            type_oid: reader.u32("column type")?,
            type_modifier: reader.i32("column type modifier")?,
        });
    }
    Ok(Message::Relation(Relation { id, schema, name, identity, columns }))
}

fn kind(reader: &mut Reader) -> Result<Message, Error> {
    reader.u32("oid")?;
    reader.text("schema")?;
    reader.text("name")?;
    Ok(Message::Type)
}

fn insert(reader: &mut Reader) -> Result<Message, Error> {
    let relation = reader.u32("relation")?;
    match reader.u8("tuple kind")? {
        b'N' => Ok(Message::Insert { relation, new: tuple(reader)? }),
        other => Err(unexpected_tuple("insert", other)),
    }
}

fn update(reader: &mut Reader) -> Result<Message, Error> {
    let relation = reader.u32("relation")?;
    let mut kind = reader.u8("tuple kind")?;
    let old = match kind {
        b'K' => Some(OldTuple::Key(tuple(reader)?)),
        b'O' => Some(OldTuple::Full(tuple(reader)?)),
        _ => None,
    };
    if old.is_some() {
        kind = reader.u8("tuple kind")?;
    }
    match kind {
        b'N' => Ok(Message::Update { relation, old, new: tuple(reader)? }),
        other => Err(unexpected_tuple("update", other)),
    }
}

fn delete(reader: &mut Reader) -> Result<Message, Error> {
    let relation = reader.u32("relation")?;
    let old = match reader.u8("tuple kind")? {
        b'K' => OldTuple::Key(tuple(reader)?),
        b'O' => OldTuple::Full(tuple(reader)?),
        other => return Err(unexpected_tuple("delete", other)),
    };
    Ok(Message::Delete { relation, old })
}

fn truncate(reader: &mut Reader) -> Result<Message, Error> {
    let count = reader.u32("relation count")? as usize;
    let options = reader.u8("options")?;
    let mut relations = Vec::with_capacity(count.min(reader.remaining() / 4));
    for _ in 0..count {
        relations.push(reader.u32("relation")?);
    }
    Ok(Message::Truncate {
        relations,
        cascade: options & CASCADE != 0,
        restart_identity: options & RESTART_IDENTITY != 0,
    })
}

fn logical(reader: &mut Reader) -> Result<Message, Error> {
    let flags = reader.u8("flags")?;
    reader.lsn("position")?;
    Ok(Message::Logical {
        transactional: flags & TRANSACTIONAL != 0,
        prefix: reader.text("prefix")?,
        content: reader.sized("content")?,
    })
}

fn tuple(reader: &mut Reader) -> Result<Row, Error> {
    let count = usize::from(reader.u16("column count")?);
    let mut row = Vec::with_capacity(count.min(reader.remaining()));
    for _ in 0..count {
        row.push(match reader.u8("value kind")? {
            b'n' => Cell::Null,
            b'u' => Cell::Unchanged,
            b't' => Cell::Text(reader.sized("value")?),
            b'b' => return Err(Error::Protocol("a binary value, which was not asked for".into())),
            other => {
                return Err(Error::Protocol(format!("unknown value kind {:?}", char::from(other))));
            }
        });
    }
    Ok(row)
}

fn unexpected_tuple(message: &str, kind: u8) -> Error {
    Error::Protocol(format!("unexpected tuple kind {:?} in {message}", char::from(kind)))
}
