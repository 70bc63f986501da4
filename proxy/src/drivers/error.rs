//! Why a driver did not do what it was asked to, and the one table of what to do about it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::process;

/// So a driver's error says that somebody else decides about workers.
pub const SET_BY_ANOTHER: &str = "something else set the replicas";

/// What to do about a [`DriverError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DriverErrorKind {
    /// The request is wrong, or the thing is not ours: not again at once. A person has to put it right.
    Refused,
    /// Another operation holds the placement: try again.
    Busy,
    /// It did not come up in time: try again, and look at the log.
    NotReady,
    /// A program, file or socket failed: try again, tell the operator.
    Failed,
}

impl DriverErrorKind {
    /// The kinds with their names in the contract of drivers outside.
    pub const ALL: [(&'static str, Self); 4] = [
        ("refused", Self::Refused),
        ("busy", Self::Busy),
        ("not_ready", Self::NotReady),
        ("failed", Self::Failed),
    ];
}

/// A driver did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// An operation id is empty, too long, or was used for something else before.
    #[error("operation {operation:?} {why}")]
    Operation {
        /// The id.
        operation: String,
        /// What is wrong with it.
        why: String,
    },
    /// More workers than the driver has addresses for.
    #[error("asked for {asked} workers, and the driver has addresses for {most} (service.listen)")]
    Capacity {
        /// Asked for.
        asked: u32,
        /// Configured.
        most: u32,
    },
    /// A directory or a port is somebody else's.
    #[error("{what} is not this driver's: {why}")]
    NotOurs {
        /// Path or address.
        what: String,
        /// How that shows.
        why: String,
    },
    /// The service's connection string cannot be read.
    #[error("the service's connection string (service.dsn)")]
    ServiceDsn(#[source] replicator::postgres::DsnError),
    /// Nothing has been provisioned here yet.
    #[error("nothing is provisioned in {directory}")]
    NotProvisioned {
        /// The driver's directory.
        directory: PathBuf,
    },
    /// Another operation runs.
    #[error("another operation has held {directory} for {waited:?}")]
    Busy {
        /// The driver's directory.
        directory: PathBuf,
        /// How long this one waited.
        waited: Duration,
    },
    /// Workers did not answer in time.
    #[error("{}", unready(.workers))]
    NotReady {
        /// Each worker that did not.
        workers: Vec<UnreadyWorker>,
    },
    /// The configuration comes as the superuser, and has no password for it.
    #[error(
        "service.dsn or postgres.dsn comes as the superuser and without a password, so that everybody on this machine can: give it a password, or \
         better a role of its own"
    )]
    SuperuserWithoutPassword,
    /// With the passwords that there are somebody would not get in any more who does so by his name.
    #[error("with a password {role} would not get in: {why}")]
    ShutsOut {
        /// Who.
        role: String,
        /// Why.
        why: String,
    },
    /// The deadline passed.
    #[error("operation {operation} was not done within {deadline:?}")]
    Late {
        /// Its id.
        operation: String,
        /// How long it was given.
        deadline: Duration,
    },
    /// What a driver outside this process says, or how it failed to say anything.
    #[error("{what}")]
    Outside {
        /// What to do about it.
        kind: DriverErrorKind,
        /// Why, with the name of the program or service.
        what: String,
    },
    /// The database failed.
    #[error("database cluster")]
    Cluster(#[from] process::cluster::ClusterError),
    /// A statement on a fresh cluster failed.
    #[error("cannot prepare the database {database}")]
    Database {
        /// Its name.
        database: String,
        /// Why.
        source: tokio_postgres::Error,
    },
    /// A file or a process call failed.
    #[error("cannot {doing}")]
    Io {
        /// What was tried, with the path or address.
        doing: String,
        /// Why.
        source: std::io::Error,
    },
}

impl DriverError {
    /// What to do about it: the one table.
    pub fn kind(&self) -> DriverErrorKind {
        match self {
            Self::Operation { .. }
            | Self::Capacity { .. }
            | Self::NotOurs { .. }
            | Self::ServiceDsn(_)
            | Self::NotProvisioned { .. }
            | Self::Cluster(process::cluster::ClusterError::NotOurs { .. }) => DriverErrorKind::Refused,
            Self::Busy { .. } => DriverErrorKind::Busy,
            Self::NotReady { .. } | Self::Late { .. } => DriverErrorKind::NotReady,
            Self::Outside { kind, .. } => *kind,
            Self::SuperuserWithoutPassword
            | Self::ShutsOut { .. }
            | Self::Cluster(_)
            | Self::Database { .. }
            | Self::Io { .. } => DriverErrorKind::Failed,
        }
    }
}

/// A worker that did not become ready.
#[derive(Clone, Debug)]
pub struct UnreadyWorker {
    /// Its number, from 0.
    pub index: usize,
    /// Where it should listen.
    pub listen: SocketAddr,
    /// What was seen instead.
    pub why: String,
    /// The last lines of its log.
    pub log: String,
}

fn unready(workers: &[UnreadyWorker]) -> String {
    let each = workers.iter().map(|worker| {
        let log = if worker.log.is_empty() { "nothing" } else { worker.log.as_str() };
        format!("worker {} at {} {}; its log ends with: {log}", worker.index, worker.listen, worker.why)
    });
    each.collect::<Vec<_>>().join("; ")
}

pub(super) fn io(doing: String, source: std::io::Error) -> DriverError {
    DriverError::Io { doing, source }
}
