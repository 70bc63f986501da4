//! Effects out: what Godwit does to the world.
//!
//! A capacity driver provisions one placement: a resource in one zone. Every operation that changes something carries an
//! id: the controller sends it again after a crash or a lost reply, and the second time must do nothing. It also carries
//! a deadline, and [`Provisioning::plan`] says what an operation would do without doing it.
//!
//! | driver | what it is |
//! |---|---|
//! | [`process`] | clusters and workers as processes of this machine |
//! | [`exec`] | a program of the operator's, JSON in and out (docs/drivers.md) |
//! | [`webhook`] | a service of the operator's, signed JSON over HTTP (docs/drivers.md) |
//! | `kubernetes` | scale of workloads and of `CloudNativePG` clusters; behind the feature of that name |
//!
//! Never here: when to do it, and whether it is safe for the data. That is the controller's.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

pub mod contract;
mod error;
pub mod exec;
pub mod groups;
#[cfg(feature = "kubernetes")]
pub mod kubernetes;
pub mod ledger;
pub mod outside;
pub mod process;
pub mod webhook;

pub use error::{DriverError, DriverErrorKind, SET_BY_ANOTHER, UnreadyWorker};
pub use ledger::Action;

/// How long an operation may take unless it says otherwise.
pub const DEADLINE: Duration = Duration::from_mins(10);

/// What a program gets of this process' environment, whose secrets are not for it.
const PASSED_ON: [&str; 4] = ["PATH", "HOME", "LANG", "TZ"];

/// Those of these variables that there are.
fn passed_on(names: &[&'static str]) -> impl Iterator<Item = (&'static str, std::ffi::OsString)> {
    names.iter().filter_map(|name| Some((*name, std::env::var_os(name)?)))
}

/// What a placement has at the moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlacementStatus {
    /// Workers that answered their ready path just now.
    pub ready: u32,
    /// Workers that were asked for last.
    pub capacity: u32,
    /// The database accepts connections; true when it is not this driver's to run.
    pub database: bool,
}

/// Where a placement can be reached, where the driver decides that.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Endpoints of the service, `host:port`, one for each worker at full capacity.
    #[serde(default)]
    pub http: Vec<String>,
    /// Connection string of the database, without a password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dsn: Option<String>,
}

/// An operation as its caller names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// The same for every attempt at the same thing, and for nothing else.
    pub id: String,
    /// From now; then the caller is told that it is late.
    pub deadline: Duration,
}

impl Operation {
    /// With the usual deadline.
    pub fn new(id: impl Into<String>) -> Self {
        Self { id: id.into(), deadline: DEADLINE }
    }
}

impl From<&str> for Operation {
    fn from(id: &str) -> Self {
        Self::new(id)
    }
}

/// What a placement shall have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Workers.
    pub capacity: u32,
    /// Settings of the primary's PostgreSQL that a database made for this placement must have, by name.
    pub settings: BTreeMap<String, String>,
}

impl From<u32> for Wanted {
    fn from(capacity: u32) -> Self {
        Self { capacity, settings: BTreeMap::new() }
    }
}

/// What an operation would do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// In order, in words.
    pub steps: Vec<String>,
}

/// Provisions one placement. Calls are serialised; each is safe to repeat.
#[async_trait]
pub trait Provisioning: Send + Sync {
    /// A dry run: what `action` would do. Changes nothing.
    async fn plan(&self, action: Action, wanted: &Wanted) -> Result<Plan, DriverError>;

    /// Database up, `wanted.capacity` workers up and ready.
    async fn provision(&self, operation: &Operation, wanted: &Wanted)
    -> Result<PlacementStatus, DriverError>;

    /// The service is served from here already: from now on the placement is this driver's. Nothing is made smaller; what is not Godwit's to start is
    /// left as it is.
    async fn adopt(&self, operation: &Operation, capacity: u32) -> Result<PlacementStatus, DriverError>;

    /// Returns when exactly `capacity` workers are ready; extra ones have ended gracefully.
    async fn scale(&self, operation: &Operation, capacity: u32) -> Result<PlacementStatus, DriverError>;

    /// What there is; mends what died since, without waiting for it.
    async fn status(&self) -> Result<PlacementStatus, DriverError>;

    /// Where the placement can be reached; empty: where the configuration says.
    async fn endpoint(&self) -> Result<Endpoint, DriverError>;

    /// Whether there is anything to end: provisioned by this driver, and not deprovisioned since. By its ledger; asks nobody.
    fn provisioned(&self) -> Result<bool, DriverError>;

    /// Stops workers and database. What becomes of the data is the driver's; `process` keeps it on disk.
    async fn deprovision(&self, operation: &Operation) -> Result<(), DriverError>;

    /// How often [`Self::status`] may be asked.
    fn pace(&self) -> Duration {
        Duration::from_secs(2)
    }

    /// What an earlier process was told by [`Self::endpoint`]; asks nobody.
    fn known_endpoint(&self) -> Option<Endpoint> {
        None
    }
}

/// Bounds an operation by its deadline. What runs as a task of its own goes on; its caller is told that it is late.
pub(crate) async fn within<T>(
    operation: &Operation,
    work: impl Future<Output = Result<T, DriverError>>,
) -> Result<T, DriverError> {
    match tokio::time::timeout(operation.deadline, work).await {
        Ok(result) => result,
        Err(_) => Err(DriverError::Late { operation: operation.id.clone(), deadline: operation.deadline }),
    }
}

/// Runs `work` as a task: it ends even when the caller goes away.
pub(crate) async fn to_the_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, DriverError>> + Send + 'static,
) -> Result<T, DriverError> {
    match tokio::spawn(work).await {
        Ok(result) => result,
        Err(join) => Err(error::io("finish the operation".into(), std::io::Error::other(join))),
    }
}
