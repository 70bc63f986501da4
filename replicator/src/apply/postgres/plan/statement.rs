//! A statement that is ready to be sent.

use bytes::Bytes;

use crate::apply::postgres::encode::Array;
use crate::lsn::Lsn;

/// One statement with its data.
#[derive(Debug)]
pub(in crate::apply::postgres) struct Statement {
    pub(in crate::apply::postgres) sql: String,
    pub(in crate::apply::postgres) data: Data,
    pub(in crate::apply::postgres) rows: usize,
    /// It reads the whole table: hash joins pay.
    pub(in crate::apply::postgres) scans: bool,
    /// For messages: the table, the first row's key, its transaction.
    pub(in crate::apply::postgres) table: String,
    pub(in crate::apply::postgres) key: String,
    pub(in crate::apply::postgres) lsn: Lsn,
}

/// What goes with it.
#[derive(Debug)]
pub(in crate::apply::postgres) enum Data {
    None,
    /// An array per column.
    Arrays(Vec<Array>),
    /// Rows for COPY.
    Copy(Vec<Bytes>),
}
