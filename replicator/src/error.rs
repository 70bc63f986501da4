//! What can go wrong, classified once.

/// A replicator failure.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database answered with an error.
    #[error("{context}")]
    Database {
        /// What was being done.
        context: String,
        /// The server's or the client's word.
        source: tokio_postgres::Error,
    },
    /// A socket failed.
    #[error("{context}")]
    Io {
        /// What was being done.
        context: String,
        /// Why.
        source: std::io::Error,
    },
    /// The server refused on the replication connection.
    #[error("{context}: {message} (SQLSTATE {sqlstate})")]
    Server {
        /// What was being done.
        context: String,
        /// Five characters.
        sqlstate: String,
        /// The server's message.
        message: String,
    },
    /// Bytes that do not follow the protocol.
    #[error("protocol violation: {0}")]
    Protocol(String),
    /// The link to the other zone closed or failed.
    #[error("link: {0}")]
    Link(String),
    /// The target holds something else than the source says: nothing was skipped.
    #[error("conflict on {table} at {lsn}: {what}")]
    Conflict {
        /// `schema.table`.
        table: String,
        /// End position of the source transaction.
        lsn: crate::lsn::Lsn,
        /// Key and what was found.
        what: String,
    },
    /// The generation or checkpoint in the database is not the one expected: another writer took over.
    #[error("fenced off: {0}")]
    Fenced(String),
    /// A state of the database that an operator must change.
    #[error("{0}")]
    Unready(String),
}

/// What to do about an [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// Passing: reconnect and resume.
    Retry,
    /// Needs a person; retrying does not help until then.
    Operator,
    /// This stream must not run again under this generation.
    Never,
}

impl Error {
    /// The one place that decides between retry, wait and stop.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Database { source, .. } => match source.code() {
                Some(code) => sqlstate_kind(code.code()),
                None => ErrorKind::Retry,
            },
            Self::Server { sqlstate, .. } => sqlstate_kind(sqlstate),
            Self::Io { .. } | Self::Link(_) | Self::Protocol(_) => ErrorKind::Retry,
            Self::Conflict { .. } | Self::Unready(_) => ErrorKind::Operator,
            Self::Fenced(_) => ErrorKind::Never,
        }
    }

    /// A short name for metrics and logs.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Database { .. } => "database",
            Self::Io { .. } => "io",
            Self::Server { .. } => "server",
            Self::Protocol(_) => "protocol",
            Self::Link(_) => "link",
            Self::Conflict { .. } => "conflict",
            Self::Fenced(_) => "fenced",
            Self::Unready(_) => "unready",
        }
    }

    /// `map_err` helper: names what was being done.
    pub fn database(context: impl Into<String>) -> impl FnOnce(tokio_postgres::Error) -> Self {
        let context = context.into();
        move |source| Self::Database { context, source }
    }

    /// `map_err` helper: names what was being done.
    pub fn io(context: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let context = context.into();
        move |source| Self::Io { context, source }
    }
}

/// Classes 08, 40, 53, 57 and 58 pass by themselves; 55006 is a slot or origin that an old session still holds, 55P03 a lock.
fn sqlstate_kind(sqlstate: &str) -> ErrorKind {
    match sqlstate {
        "55006" | "55P03" => ErrorKind::Retry,
        _ => match sqlstate.get(..2) {
            Some("08" | "40" | "53" | "57" | "58") => ErrorKind::Retry,
            _ => ErrorKind::Operator,
        },
    }
}
