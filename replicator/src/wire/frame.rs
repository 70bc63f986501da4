//! The frames of a session, and how each is written.

use bytes::{BufMut, Bytes, BytesMut};

use super::codec::{Reader, Writer};
use super::{Agreed, PIECE, Speaks, Version};
use crate::change::{LargeHeader, PgTimestamp};
use crate::error::{Error, ErrorKind};
use crate::identity::SourceId;
use crate::lsn::Lsn;

/// What one stream is: who, from where, to where.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct StreamSpec {
    /// Resource name.
    pub resource: String,
    /// Generation: the stream flows from the primary of this generation to its shadow.
    pub generation: u64,
    /// Replication slot on the source; also the stream's name in `godwit.progress`.
    pub slot: String,
    /// Publication on the source.
    pub publication: String,
    /// Replication origin on the target.
    pub origin: String,
    /// Zone of the source.
    pub source_zone: String,
    /// Zone of the target.
    pub target_zone: String,
    /// Commits on the source may wait for this stream: what they wait for is made durable at once.
    pub synchronous: bool,
}

/// What the side that opened the link does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// It has the source: it sends.
    Push,
    /// It has the target: it receives.
    Pull,
}

/// First frame of a link, from the side that opened it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Hello {
    /// Which half the opening side runs.
    pub role: Role,
    /// The stream.
    pub spec: StreamSpec,
    /// What the opening side can do.
    pub speaks: Speaks,
}

/// Where the target stands; first frame of the receiver.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resume {
    /// Durably applied up to here; [`Lsn::ZERO`] when nothing was copied yet.
    pub applied: Lsn,
    /// False: the initial copy must be made first.
    pub copied: bool,
    /// Newest end marker applied.
    pub marker: Option<u64>,
    /// The tables were copied at different points; from here on the target is at one. [`Lsn::ZERO`]: it is already.
    pub settled: Lsn,
    /// So many [`Frame::Kept`] follow.
    pub kept: u32,
    /// The cluster that `applied` is a position of; none: not known yet.
    pub source: Option<SourceId>,
}

/// What a target holds of a table from a copy that broke.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KeptTable {
    /// Schema, unquoted.
    pub schema: String,
    /// Name, unquoted.
    pub name: String,
    /// Position of the snapshot that its rows are of.
    pub position: Lsn,
    /// The parts that are there, by the numbers of that snapshot's copy; none: all of them.
    pub parts: Option<Vec<u32>>,
    /// Rows there.
    pub rows: u64,
    /// Bytes that they came in.
    pub bytes: u64,
}

impl KeptTable {
    /// Whether it can stay: the slot still has every change since, the source is not a restored one that is behind it, and the
    /// table is whole or its other parts come from the same snapshot. Both sides of a stream decide by this.
    pub fn stays(&self, consistent_point: Lsn, snapshot: Lsn) -> bool {
        let within = self.position >= consistent_point && self.position <= snapshot;
        within && (self.parts.is_none() || self.position == snapshot)
    }
}

/// How a copy begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CopyStart {
    /// The slot's position: streaming goes on from here.
    pub consistent_point: Lsn,
    /// The position of the snapshot that is read now; later than the slot's where an earlier snapshot is gone.
    pub snapshot: Lsn,
    /// Tables in all.
    pub tables: u32,
    /// The planner's guess of rows in all.
    pub rows_estimate: u64,
    /// Size of the tables in all, on the source's disk.
    pub bytes_estimate: u64,
    /// Sessions that read; as many may write and build indexes.
    pub sessions: u32,
    /// What the target keeps of a copy that broke: whole tables,
    pub tables_kept: u32,
    /// rows,
    pub rows_kept: u64,
    /// and the bytes that they came in.
    pub bytes_kept: u64,
}

/// How far the target is; sent by the receiver whenever it moves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Everything received up to here.
    pub received: Lsn,
    /// Everything up to here that concerns the target is committed there.
    pub applied: Lsn,
    /// The checkpoint on the target's disk: what may be reported to the source.
    pub durable: Lsn,
    /// Newest end marker applied.
    pub marker: Option<u64>,
    /// Row changes applied after that marker.
    pub rows_after_marker: u64,
    /// Transactions applied in this session.
    pub transactions: u64,
    /// Row changes applied in this session.
    pub changes: u64,
}

/// A table whose rows follow.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CopyTable {
    /// Schema, unquoted.
    pub schema: String,
    /// Name, unquoted.
    pub name: String,
    /// Columns in the order of the rows; generated ones are absent.
    pub columns: Vec<String>,
    /// Rows come in COPY's binary format, as text otherwise.
    pub binary: bool,
    /// How many parts the table has.
    pub of: u32,
}

/// Everything that travels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// Opens a session.
    Hello(Hello),
    /// The other side takes part, and this is how both go on.
    Welcome(Agreed),
    /// The other side does not, and why.
    Refuse {
        /// For a person.
        reason: String,
    },
    /// Where the target stands.
    Resume(Resume),
    /// Which cluster everything that follows comes from; first frame of the sender, since version 3.
    Source(SourceId),
    /// Alive; from the sender with the newest position of the source.
    Heartbeat {
        /// [`Lsn::ZERO`] when not known.
        source: Lsn,
    },
    /// A piece of an encoded transaction (see [`super::transaction`]).
    Transaction {
        /// It is complete with this piece.
        last: bool,
        /// At most [`PIECE`] bytes.
        piece: Bytes,
    },
    /// Whole small transactions, each behind its length (32 bits); since version 4.
    Transactions {
        /// At most [`PIECE`] bytes.
        batch: Bytes,
    },
    /// A transaction that does not travel whole: pieces follow.
    LargeBegin(LargeHeader),
    /// A piece of its records (see [`super::large`]).
    LargePiece {
        /// At most [`PIECE`] bytes.
        piece: Bytes,
    },
    /// That was the transaction: it is committed.
    LargeEnd,
    /// Nothing for the target happened between the last transaction and here. Told twice: the source waits until it is durable.
    Position {
        /// Up to where.
        lsn: Lsn,
    },
    /// How far the target is.
    Progress(Progress),
    /// Bulk bytes that the sender may send in this session, counted from its start.
    Credit {
        /// Only ever grows.
        granted: u64,
    },
    /// What the target holds of one table; behind [`Frame::Resume`].
    Kept(KeptTable),
    /// The initial copy starts.
    CopyBegin(CopyStart),
    /// A piece of the schema as SQL.
    CopySchema {
        /// Indexes and constraints, to be made after the rows.
        post: bool,
        /// This part is complete.
        last: bool,
        /// At most [`PIECE`] bytes.
        piece: Bytes,
    },
    /// Rows of this table, or of a part of it, follow; those of others may come between.
    CopyTable {
        /// Names this part in the frames that follow.
        part: u32,
        /// The table.
        table: CopyTable,
    },
    /// Rows in COPY's format; pieces may end anywhere.
    CopyRows {
        /// What they are part of.
        part: u32,
        /// How many rows end in it.
        rows: u32,
        /// At most [`PIECE`] bytes.
        data: Bytes,
    },
    /// That was the part.
    CopyTableEnd {
        /// Which one.
        part: u32,
        /// Rows that it had.
        rows: u64,
        /// Its table is complete with it.
        last: bool,
    },
    /// That was the copy.
    CopyEnd,
    /// The copy is committed on the target, with its checkpoint.
    Copied,
    /// The side that says so ends the session.
    Failed {
        /// What the other side should do about it.
        kind: ErrorKind,
        /// For a person.
        reason: String,
    },
}

impl Frame {
    /// The number on the wire.
    pub fn kind(&self) -> u8 {
        match self {
            Self::Hello(_) => 1,
            Self::Welcome(_) => 2,
            Self::Refuse { .. } => 3,
            Self::Resume(_) => 4,
            Self::Heartbeat { .. } => 5,
            Self::Transaction { .. } => 6,
            Self::Position { .. } => 7,
            Self::Progress(_) => 8,
            Self::Credit { .. } => 9,
            Self::CopyBegin(_) => 33,
            Self::Kept(_) => 37,
            Self::CopySchema { .. } => 11,
            Self::CopyTable { .. } => 34,
            Self::CopyRows { .. } => 35,
            Self::CopyTableEnd { .. } => 36,
            Self::CopyEnd => 15,
            Self::Copied => 16,
            Self::Failed { .. } => 17,
            Self::Source(_) => 18,
            Self::LargeBegin(_) => 30,
            Self::LargePiece { .. } => 31,
            Self::LargeEnd => 32,
            Self::Transactions { .. } => 38,
        }
    }

    /// Bulk bytes in it: what credit counts.
    pub fn payload_len(&self) -> usize {
        match self {
            Self::Transaction { piece, .. } | Self::CopySchema { piece, .. } | Self::LargePiece { piece } => {
                piece.len()
            }
            Self::CopyRows { data, .. } => data.len(),
            Self::Transactions { batch } => batch.len(),
            _ => 0,
        }
    }

    pub(super) fn write(&self, version: Version, out: &mut BytesMut) {
        match self {
            Self::Hello(Hello { role, spec, speaks }) => {
                out.put_u8(u8::from(*role == Role::Pull) | u8::from(spec.synchronous) << 1);
                out.put_u64(spec.generation);
                let names = [&spec.resource, &spec.slot, &spec.publication, &spec.origin];
                for name in names.into_iter().chain([&spec.source_zone, &spec.target_zone]) {
                    out.put_text(name);
                }
                if version >= Version::V2 {
                    out.put_u8(speaks.oldest);
                    out.put_u8(speaks.newest);
                    out.put_bool(speaks.zstd);
                }
            }
            Self::Welcome(agreed) => {
                if version >= Version::V2 {
                    out.put_u8(agreed.version.number());
                    out.put_bool(agreed.zstd);
                }
            }
            Self::CopyEnd | Self::Copied | Self::LargeEnd => {}
            Self::LargeBegin(header) => {
                out.put_u32(header.xid);
                out.put_lsn(header.commit_lsn);
                out.put_lsn(header.end_lsn);
                out.put_i64(header.commit_time.0);
                out.put_text(header.origin.as_deref().unwrap_or_default());
            }
            Self::LargePiece { piece } => out.put_slice(piece),
            Self::Transactions { batch } => out.put_slice(batch),
            Self::Refuse { reason } => out.put_text(reason),
            Self::Resume(Resume { applied, copied, marker, settled, kept, source }) => {
                out.put_lsn(*applied);
                out.put_bool(*copied);
                out.put_optional_u64(*marker);
                if version >= Version::V3 {
                    out.put_lsn(*settled);
                    out.put_u32(*kept);
                    out.put_bool(source.is_some());
                    if let Some(id) = source {
                        write_source(*id, out);
                    }
                }
            }
            Self::Kept(table) => write_kept(table, out),
            Self::Source(id) => write_source(*id, out),
            Self::Heartbeat { source: lsn } | Self::Position { lsn } => out.put_lsn(*lsn),
            Self::Transaction { last, piece } => {
                out.put_bool(*last);
                out.put_slice(piece);
            }
            Self::Progress(progress) => {
                out.put_lsn(progress.received);
                out.put_lsn(progress.applied);
                out.put_lsn(progress.durable);
                out.put_optional_u64(progress.marker);
                out.put_u64(progress.rows_after_marker);
                out.put_u64(progress.transactions);
                out.put_u64(progress.changes);
            }
            Self::Credit { granted } => out.put_u64(*granted),
            Self::CopyBegin(start) => write_start(start, version, out),
            Self::CopySchema { post, last, piece } => {
                out.put_bool(*post);
                out.put_bool(*last);
                out.put_slice(piece);
            }
            Self::CopyTable { part, table: CopyTable { schema, name, columns, binary, of } } => {
                out.put_u32(*part);
                out.put_bool(*binary);
                out.put_text(schema);
                out.put_text(name);
                out.put_u32(columns.len() as u32);
                for column in columns {
                    out.put_text(column);
                }
                if version >= Version::V3 {
                    out.put_u32(*of);
                }
            }
            Self::CopyRows { part, rows, data } => {
                out.put_u32(*part);
                out.put_u32(*rows);
                out.put_slice(data);
            }
            Self::CopyTableEnd { part, rows, last } => {
                out.put_u32(*part);
                out.put_u64(*rows);
                out.put_bool(*last);
            }
            Self::Failed { kind, reason } => {
                out.put_u8(match kind {
                    ErrorKind::Retry => 0,
                    ErrorKind::Operator => 1,
                    ErrorKind::Never => 2,
                });
                out.put_text(reason);
            }
        }
    }

    pub(super) fn read(kind: u8, version: Version, reader: &mut Reader) -> Result<Self, Error> {
        Ok(match kind {
            1 => {
                let flags = reader.u8()?;
                if flags > 3 {
                    return Err(Error::Protocol(format!("unknown flags {flags} in a hello")));
                }
                let role = if flags & 1 == 1 { Role::Pull } else { Role::Push };
                let generation = reader.u64()?;
                let spec = StreamSpec {
                    generation,
                    resource: reader.text()?,
                    slot: reader.text()?,
                    publication: reader.text()?,
                    origin: reader.text()?,
                    source_zone: reader.text()?,
                    target_zone: reader.text()?,
                    synchronous: flags & 2 == 2,
                };
                let speaks = if version >= Version::V2 {
                    Speaks { oldest: reader.u8()?, newest: reader.u8()?, zstd: reader.bool()? }
                } else {
                    Speaks::FIRST
                };
                Self::Hello(Hello { role, spec, speaks })
            }
            2 if version >= Version::V2 => {
                let version = Version::from_number(reader.u8()?)?;
                Self::Welcome(Agreed { version, zstd: reader.bool()? })
            }
            2 => Self::Welcome(Agreed { version, zstd: false }),
            3 => Self::Refuse { reason: reader.text()? },
            4 => Self::Resume(Resume {
                applied: reader.lsn()?,
                copied: reader.bool()?,
                marker: reader.optional_u64()?,
                settled: if version >= Version::V3 { reader.lsn()? } else { Lsn::ZERO },
                kept: if version >= Version::V3 { reader.u32()? } else { 0 },
                source: if version >= Version::V3 && reader.bool()? {
                    Some(read_source(reader)?)
                } else {
                    None
                },
            }),
            18 if version >= Version::V3 => Self::Source(read_source(reader)?),
            37 if version >= Version::V3 => Self::Kept(read_kept(reader)?),
            5 => Self::Heartbeat { source: reader.lsn()? },
            6 => Self::Transaction { last: reader.bool()?, piece: piece(reader)? },
            7 => Self::Position { lsn: reader.lsn()? },
            8 => Self::Progress(Progress {
                received: reader.lsn()?,
                applied: reader.lsn()?,
                durable: reader.lsn()?,
                marker: reader.optional_u64()?,
                rows_after_marker: reader.u64()?,
                transactions: reader.u64()?,
                changes: reader.u64()?,
            }),
            9 => Self::Credit { granted: reader.u64()? },
            33 => Self::CopyBegin(read_start(version, reader)?),
            11 => Self::CopySchema { post: reader.bool()?, last: reader.bool()?, piece: piece(reader)? },
            34 => {
                let (part, binary) = (reader.u32()?, reader.bool()?);
                let (schema, name) = (reader.text()?, reader.text()?);
                let columns = (0..reader.count()?).map(|_| reader.text()).collect::<Result<_, _>>()?;
                let of = if version >= Version::V3 { reader.u32()? } else { 1 };
                Self::CopyTable { part, table: CopyTable { schema, name, columns, binary, of } }
            }
            35 => Self::CopyRows { part: reader.u32()?, rows: reader.u32()?, data: piece(reader)? },
            36 => Self::CopyTableEnd { part: reader.u32()?, rows: reader.u64()?, last: reader.bool()? },
            15 => Self::CopyEnd,
            16 => Self::Copied,
            17 => {
                let kind = match reader.u8()? {
                    0 => ErrorKind::Retry,
                    1 => ErrorKind::Operator,
                    2 => ErrorKind::Never,
                    other => return Err(Error::Protocol(format!("{other} is not a kind of failure"))),
                };
                Self::Failed { kind, reason: reader.text()? }
            }
            30 => Self::LargeBegin(LargeHeader {
                xid: reader.u32()?,
                commit_lsn: reader.lsn()?,
                end_lsn: reader.lsn()?,
                commit_time: PgTimestamp(reader.u64()?.cast_signed()),
                origin: Some(reader.text()?).filter(|name| !name.is_empty()),
            }),
            31 => Self::LargePiece { piece: piece(reader)? },
            32 => Self::LargeEnd,
            38 if version >= Version::V4 => Self::Transactions { batch: piece(reader)? },
            other => return Err(Error::Protocol(format!("frame kind {other} is not known"))),
        })
    }
}

fn write_kept(table: &KeptTable, out: &mut BytesMut) {
    out.put_text(&table.schema);
    out.put_text(&table.name);
    out.put_lsn(table.position);
    out.put_u64(table.rows);
    out.put_u64(table.bytes);
    out.put_bool(table.parts.is_some());
    let parts = table.parts.as_deref().unwrap_or_default();
    out.put_u32(parts.len() as u32);
    for part in parts {
        out.put_u32(*part);
    }
}

fn read_kept(reader: &mut Reader) -> Result<KeptTable, Error> {
    let (schema, name, position) = (reader.text()?, reader.text()?, reader.lsn()?);
    let (rows, bytes, partly) = (reader.u64()?, reader.u64()?, reader.bool()?);
    let parts = (0..reader.count()?).map(|_| reader.u32()).collect::<Result<Vec<_>, _>>()?;
    Ok(KeptTable { schema, name, position, parts: partly.then_some(parts), rows, bytes })
}

fn write_start(start: &CopyStart, version: Version, out: &mut BytesMut) {
    out.put_lsn(start.consistent_point);
    out.put_u32(start.tables);
    out.put_u64(start.rows_estimate);
    out.put_u64(start.bytes_estimate);
    if version >= Version::V3 {
        out.put_lsn(start.snapshot);
        out.put_u32(start.sessions);
        out.put_u32(start.tables_kept);
        out.put_u64(start.rows_kept);
        out.put_u64(start.bytes_kept);
    }
}

fn read_start(version: Version, reader: &mut Reader) -> Result<CopyStart, Error> {
    let consistent_point = reader.lsn()?;
    let mut start = CopyStart {
        consistent_point,
        snapshot: consistent_point,
        tables: reader.u32()?,
        rows_estimate: reader.u64()?,
        bytes_estimate: reader.u64()?,
        sessions: 1,
        ..CopyStart::default()
    };
    if version >= Version::V3 {
        start.snapshot = reader.lsn()?;
        start.sessions = reader.u32()?;
        start.tables_kept = reader.u32()?;
        start.rows_kept = reader.u64()?;
        start.bytes_kept = reader.u64()?;
    }
    Ok(start)
}

fn write_source(id: SourceId, out: &mut BytesMut) {
    out.put_u64(id.system);
    out.put_u32(id.timeline);
}

fn read_source(reader: &mut Reader) -> Result<SourceId, Error> {
    Ok(SourceId { system: reader.u64()?, timeline: reader.u32()? })
}

fn piece(reader: &mut Reader) -> Result<Bytes, Error> {
    let piece = reader.rest();
    if piece.len() > PIECE {
        return Err(Error::Protocol(format!("a piece of {} bytes", piece.len())));
    }
    Ok(piece)
}
