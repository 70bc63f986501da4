//! What can go wrong, classified once: [`Error::cause`] names the cause, [`Cause::policy`] is the one table of what to do about it.

use std::error::Error as StdError;

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
    /// A socket or a file failed.
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
    /// The source is not the one that the target's checkpoint belongs to: nothing was taken from it.
    #[error(
        "the source of {stream} is not the one that the shadow was seeded from: {what}; re-seed the shadow"
    )]
    AnotherSource {
        /// The stream's slot.
        stream: String,
        /// What differs.
        what: String,
    },
    /// The generation or checkpoint in the database is not the one expected: another writer took over.
    #[error("fenced off: {0}")]
    Fenced(String),
    /// A state of the database that an operator must change.
    #[error("{0}")]
    Unready(String),
}

/// An error with its sources, on one line.
pub(crate) fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        // The message is in the server's language.
        if let Some(said) = cause.downcast_ref::<tokio_postgres::error::DbError>() {
            text.push_str(&format!(" (SQLSTATE {})", said.code().code()));
        }
        source = cause.source();
    }
    text
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

/// Why something failed, as far as it matters for what to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Cause {
    /// A socket broke, or nobody answered.
    Network,
    /// The disk of this node or of the server is full, or fails.
    Disk,
    /// The server starts, stops or ended the session.
    Shutdown,
    /// No connection, memory or worker is free.
    Capacity,
    /// All slots, origins or walsenders that are configured are in use.
    Limits,
    /// Somebody else still holds the slot, the origin or the database.
    InUse,
    /// A lock was not to be had in time.
    Locked,
    /// Transactions met: deadlock or serialization.
    Collision,
    /// A statement was cancelled or ran out of time.
    Cancelled,
    /// A plan is older than the table.
    StalePlan,
    /// The slot's WAL has been removed.
    WalRemoved,
    /// The replication slot is not there.
    SlotGone,
    /// The publication is not there.
    PublicationGone,
    /// Another object is not there, or looks different.
    SchemaMismatch,
    /// User, password or authentication method.
    Credentials,
    /// TLS: certificates, names, or none where it is demanded.
    Tls,
    /// A right is missing.
    Permission,
    /// The server only reads.
    ReadOnly,
    /// The database does not exist (any more).
    DatabaseGone,
    /// A setting of the server, `wal_level` above all.
    Settings,
    /// A value or a constraint refuses.
    Data,
    /// Bytes that make no sense.
    Protocol,
    /// The link to the other zone.
    Link,
    /// See [`Error::Conflict`].
    Conflict,
    /// See [`Error::AnotherSource`].
    AnotherSource,
    /// See [`Error::Fenced`].
    Fenced,
    /// See [`Error::Unready`].
    Unready,
    /// Anything else that a server says.
    Other,
}

/// What to do about a cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Retry or not.
    pub kind: ErrorKind,
    /// Metric label; only ever one of these.
    pub label: &'static str,
    /// For a person.
    pub advice: &'static str,
}

impl Cause {
    /// Every cause.
    pub const ALL: [Self; 28] = [
        Self::Network,
        Self::Disk,
        Self::Shutdown,
        Self::Capacity,
        Self::Limits,
        Self::InUse,
        Self::Locked,
        Self::Collision,
        Self::Cancelled,
        Self::StalePlan,
        Self::WalRemoved,
        Self::SlotGone,
        Self::PublicationGone,
        Self::SchemaMismatch,
        Self::Credentials,
        Self::Tls,
        Self::Permission,
        Self::ReadOnly,
        Self::DatabaseGone,
        Self::Settings,
        Self::Data,
        Self::Protocol,
        Self::Link,
        Self::Conflict,
        Self::AnotherSource,
        Self::Fenced,
        Self::Unready,
        Self::Other,
    ];

    /// The table.
    pub fn policy(self) -> Policy {
        use ErrorKind::{Never, Operator, Retry};
        let (kind, label, advice) = match self {
            Self::Network => {
                (Retry, "network", "wait; if it lasts, check that the server is up and reachable")
            }
            Self::Disk => {
                (Retry, "disk", "make room on the disk, or replace it; the stream goes on by itself")
            }
            Self::Shutdown => (Retry, "shutdown", "wait until the server is up again"),
            Self::Capacity => {
                (Retry, "capacity", "if it lasts, raise max_connections or memory on the server")
            }
            Self::Limits => (
                Operator,
                "limits",
                "raise max_replication_slots or max_wal_senders, or drop slots nobody uses",
            ),
            Self::InUse => {
                (Retry, "in_use", "wait: an older session lets go when the server notices its end")
            }
            Self::Locked => {
                (Retry, "locked", "wait; if it lasts, look for long transactions in pg_stat_activity")
            }
            Self::Collision => (Retry, "collision", "nothing: it is tried again"),
            Self::Cancelled => (Retry, "cancelled", "if it lasts, raise the timeout or find who cancels"),
            Self::StalePlan => (Retry, "stale_plan", "nothing: the next session plans anew"),
            Self::WalRemoved => (
                Operator,
                "wal_removed",
                "seed the target anew, and raise max_slot_wal_keep_size on the source, or idle_replication_slot_timeout",
            ),
            Self::SlotGone => {
                (Operator, "slot_gone", "seed the target anew: without its slot changes are missing")
            }
            Self::PublicationGone => (
                Operator,
                "publication_gone",
                "seed the target anew: what was written without the publication is missing",
            ),
            Self::SchemaMismatch => (
                Operator,
                "schema",
                "make the tables of both sides alike; the stream goes on where it stopped",
            ),
            Self::Credentials => (Operator, "credentials", "correct user and password, or pg_hba.conf"),
            Self::Tls => (
                Operator,
                "tls",
                "correct sslmode and certificates (sslrootcert, sslcert, sslkey), or the server's",
            ),
            Self::Permission => (Operator, "permission", "grant what `godwit doctor` names"),
            Self::ReadOnly => (Operator, "read_only", "name the primary: a standby takes no writes"),
            Self::DatabaseGone => (Operator, "database_gone", "correct the database's name, or make it"),
            Self::Settings => (
                Operator,
                "settings",
                "set what the message names (wal_level = logical) and restart the server",
            ),
            Self::Data => {
                (Operator, "data", "compare the row on both sides; the stream goes on where it stopped")
            }
            Self::Protocol => (
                Retry,
                "protocol",
                "if it lasts, report it: one side says what the other does not understand",
            ),
            Self::Link => (Retry, "link", "wait; if it lasts, check the other node and the path to it"),
            Self::Conflict => (
                Operator,
                "conflict",
                "find who else writes the target; mend the row, or seed its table anew (godwit reseed RESOURCE --table TABLE)",
            ),
            Self::AnotherSource => (
                Operator,
                "another_source",
                "correct the configuration if it names the wrong database; otherwise `godwit reseed RESOURCE`",
            ),
            Self::Fenced => (Never, "fenced", "nothing: another node has taken over"),
            Self::Unready => (Operator, "unready", "do what the message says"),
            Self::Other => (Operator, "other", "read the server's message and log"),
        };
        Policy { kind, label, advice }
    }
}

impl Error {
    /// Why it failed.
    pub fn cause(&self) -> Cause {
        match self {
            Self::Database { source, .. } => match source.as_db_error() {
                Some(error) => of_server(error.code().code(), error.message()),
                None => of_client(source),
            },
            Self::Server { sqlstate, message, .. } => of_server(sqlstate, message),
            Self::Io { source, .. } => of_io(source),
            Self::Link(_) => Cause::Link,
            Self::Protocol(_) => Cause::Protocol,
            Self::Conflict { .. } => Cause::Conflict,
            Self::AnotherSource { .. } => Cause::AnotherSource,
            Self::Unready(_) => Cause::Unready,
            Self::Fenced(_) => Cause::Fenced,
        }
    }

    /// What the server said, if it was one.
    pub(crate) fn sqlstate(&self) -> Option<&str> {
        match self {
            Self::Database { source, .. } => source.code().map(tokio_postgres::error::SqlState::code),
            Self::Server { sqlstate, .. } => Some(sqlstate),
            _ => None,
        }
    }

    /// Retry, wait or stop.
    pub fn kind(&self) -> ErrorKind {
        self.cause().policy().kind
    }

    /// A short name for metrics and logs.
    pub fn label(&self) -> &'static str {
        self.cause().policy().label
    }

    /// What a person can do.
    pub fn advice(&self) -> &'static str {
        self.cause().policy().advice
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

/// By SQLSTATE; where one stands for several things, by the English message too.
///
/// Source: PostgreSQL documentation, appendix A "PostgreSQL Error Codes".
fn of_server(sqlstate: &str, message: &str) -> Cause {
    match sqlstate {
        "0A000" if message.contains("cached plan") => Cause::StalePlan,
        "25006" => Cause::ReadOnly,
        "3D000" | "57P04" => Cause::DatabaseGone,
        "3F000" => Cause::SchemaMismatch,
        "42501" => Cause::Permission,
        "42704" if message.contains("replication slot") => Cause::SlotGone,
        "42704" if message.contains("publication") => Cause::PublicationGone,
        "53100" => Cause::Disk,
        "53400" => Cause::Limits,
        "53300" if message.contains("wal_sender") || message.contains("standby connections") => Cause::Limits,
        // An invalidated slot, in the words of each version.
        "55000"
            if message.contains("replication slot")
                && ["can no longer", "cannot read", "invalidated"]
                    .iter()
                    .any(|word| message.contains(word)) =>
        {
            Cause::WalRemoved
        }
        "55000" => Cause::Settings,
        "55006" => Cause::InUse,
        "55P03" => Cause::Locked,
        "57014" | "25P03" | "25P04" => Cause::Cancelled,
        "58P01" if message.contains("WAL segment") => Cause::WalRemoved,
        _ => match sqlstate.get(..2) {
            Some("08") => Cause::Network,
            Some("22" | "23") => Cause::Data,
            Some("28") => Cause::Credentials,
            Some("40") => Cause::Collision,
            Some("42") => Cause::SchemaMismatch,
            Some("53") => Cause::Capacity,
            Some("57") => Cause::Shutdown,
            Some("58") => Cause::Disk,
            _ => Cause::Other,
        },
    }
}

/// What the client library says by itself. It does not tell its kinds apart but by their words.
fn of_client(error: &tokio_postgres::Error) -> Cause {
    match error.to_string().as_str() {
        // Either a handshake that failed, or the server's word that it has no TLS.
        "error performing TLS handshake" if error.source().is_none_or(is_word) => Cause::Tls,
        "authentication error" | "invalid configuration" => Cause::Credentials,
        "unexpected message from server" | "error parsing response from server" => Cause::Protocol,
        _ => of_chain(error),
    }
}

/// Not a socket's failure.
fn is_word(error: &(dyn StdError + 'static)) -> bool {
    error.downcast_ref::<std::io::Error>().is_none()
}

fn of_chain(error: &(dyn StdError + 'static)) -> Cause {
    let mut next = error.source();
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            return of_io(io);
        }
        next = error.source();
    }
    Cause::Network
}

fn of_io(error: &std::io::Error) -> Cause {
    use std::io::ErrorKind as Io;
    if let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        return of_tls(tls);
    }
    match error.kind() {
        Io::StorageFull
        | Io::QuotaExceeded
        | Io::ReadOnlyFilesystem
        | Io::FileTooLarge
        | Io::NotADirectory
        | Io::AlreadyExists
        | Io::InvalidData => Cause::Disk,
        Io::PermissionDenied => Cause::Unready,
        _ => Cause::Network,
    }
}

/// A connection that broke off is no question of certificates.
fn of_tls(error: &rustls::Error) -> Cause {
    match error {
        rustls::Error::InvalidCertificate(_)
        | rustls::Error::NoCertificatesPresented
        | rustls::Error::UnsupportedNameType
        | rustls::Error::PeerIncompatible(_)
        | rustls::Error::NoApplicationProtocol
        | rustls::Error::General(_)
        | rustls::Error::AlertReceived(_) => Cause::Tls,
        _ => Cause::Network,
    }
}

#[cfg(test)]
mod tests;
