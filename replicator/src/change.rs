//! What one source transaction did: the unit that travels and is applied whole.

use std::sync::Arc;

use bytes::Bytes;

use crate::lsn::Lsn;

/// Microseconds since 2000-01-01T00:00:00Z, as PostgreSQL counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PgTimestamp(pub i64);

/// Which old values the source sends for an update or delete.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReplicaIdentity {
    /// The primary key (`d`).
    Default,
    /// Nothing: updates and deletes cannot be replicated (`n`).
    Nothing,
    /// The whole old row (`f`).
    Full,
    /// A chosen unique index (`i`).
    Index,
}

/// One column of a relation, as the stream describes it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Column {
    /// Column name, unquoted.
    pub name: String,
    /// Part of the replica identity key.
    pub key: bool,
    /// Type OID on the source; user-defined OIDs mean nothing on another cluster.
    pub type_oid: u32,
    /// `atttypmod`, -1 when there is none.
    pub type_modifier: i32,
}

/// A table as the source last described it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Relation {
    /// OID on the source.
    pub id: u32,
    /// Schema name, unquoted.
    pub schema: String,
    /// Table name, unquoted.
    pub name: String,
    /// What old values come with updates and deletes.
    pub identity: ReplicaIdentity,
    /// Columns in stream order; generated columns are absent.
    pub columns: Vec<Column>,
}

/// One value of a row.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Cell {
    /// SQL NULL.
    Null,
    /// A TOASTed value that the update did not touch and the stream did not send.
    Unchanged,
    /// The value in PostgreSQL's text output format.
    Text(Bytes),
}

/// Cells in the order of [`Relation::columns`].
pub type Row = Vec<Cell>;

/// The old row of an update or delete.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum OldRow {
    /// Key columns only; the others are [`Cell::Null`].
    Key(Row),
    /// The whole row (`REPLICA IDENTITY FULL`).
    Full(Row),
}

/// One change, in commit order.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Change {
    /// A row was inserted.
    Insert {
        /// The table.
        relation: Arc<Relation>,
        /// The new row.
        new: Row,
    },
    /// A row was updated.
    Update {
        /// The table.
        relation: Arc<Relation>,
        /// Present when the key changed or the identity is FULL.
        old: Option<OldRow>,
        /// The new row; may hold [`Cell::Unchanged`].
        new: Row,
    },
    /// A row was deleted.
    Delete {
        /// The table.
        relation: Arc<Relation>,
        /// The old key or row.
        old: OldRow,
    },
    /// Tables were truncated together.
    Truncate {
        /// The tables.
        relations: Vec<Arc<Relation>>,
        /// `CASCADE`.
        cascade: bool,
        /// `RESTART IDENTITY`.
        restart_identity: bool,
    },
    /// `pg_logical_emit_message` inside the transaction.
    Message {
        /// Who it is for; Godwit's own is [`MARKER_PREFIX`].
        prefix: String,
        /// Content, opaque.
        content: Bytes,
    },
}

/// Prefix of the end marker that the fence emits; its content is the generation in decimal.
pub const MARKER_PREFIX: &str = "godwit.fence";

/// A committed source transaction.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Transaction {
    /// Source transaction id.
    pub xid: u32,
    /// Position of the commit record.
    pub commit_lsn: Lsn,
    /// Position just past the commit record: what is acknowledged once applied.
    pub end_lsn: Lsn,
    /// When it was committed, by the source's clock.
    pub commit_time: PgTimestamp,
    /// Replication origin: set when another applier, not a client, wrote it.
    pub origin: Option<String>,
    /// Changes in order.
    pub changes: Vec<Change>,
}

/// What is known of a large transaction before its changes: they come in parts, and only once it has committed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct LargeHeader {
    /// Source transaction id.
    pub xid: u32,
    /// Position of the commit record.
    pub commit_lsn: Lsn,
    /// Position just past the commit record: what is acknowledged once applied.
    pub end_lsn: Lsn,
    /// When it was committed, by the source's clock.
    pub commit_time: PgTimestamp,
    /// Replication origin: set when another applier, not a client, wrote it.
    pub origin: Option<String>,
}

impl LargeHeader {
    /// The transaction with these changes.
    pub fn with(self, changes: Vec<Change>) -> Transaction {
        Transaction {
            xid: self.xid,
            commit_lsn: self.commit_lsn,
            end_lsn: self.end_lsn,
            commit_time: self.commit_time,
            origin: self.origin,
            changes,
        }
    }
}

impl Change {
    /// The tables that it concerns.
    pub fn relations(&self) -> &[Arc<Relation>] {
        match self {
            Self::Insert { relation, .. } | Self::Update { relation, .. } | Self::Delete { relation, .. } => {
                std::slice::from_ref(relation)
            }
            Self::Truncate { relations, .. } => relations,
            Self::Message { .. } => &[],
        }
    }

    /// The generation of the end marker, if the change is one.
    pub fn marker(&self) -> Option<u64> {
        match self {
            Self::Message { prefix, content } if prefix == MARKER_PREFIX => {
                std::str::from_utf8(content).ok()?.parse().ok()
            }
            _ => None,
        }
    }
}

impl Transaction {
    /// The generation of the end marker in this transaction, if it carries one.
    pub fn marker(&self) -> Option<u64> {
        self.changes.iter().find_map(Change::marker)
    }

    /// True when a client's row changes are in it (messages alone do not count).
    pub fn changes_rows(&self) -> bool {
        self.changes.iter().any(|change| !matches!(change, Change::Message { .. }))
    }
}
