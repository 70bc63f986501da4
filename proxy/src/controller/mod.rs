//! The loop of one resource: world → decide → step → journal → effects. Sole owner of its migration state.
//!
//! ```text
//!        measurements ──► signals ──► World ──► decide() ──► report (API, explain, metrics)
//!                                                  │ go
//!   API, CLI ──► Command ──────────────────────────┤
//!   effects' answers ──► Report ──► cutover::step ─┴─► journal (fsync) ──► effects
//! ```
//!
//! The request path never waits for anything here: it sees a gate that closes and opens and a pool that is swapped.

pub mod answering;
mod audited;
pub mod behind;
pub mod compare;
pub mod databases;
pub mod doctor;
mod draining;
pub mod drift;
pub mod effects;
pub mod events;
pub mod extensions;
mod fed;
mod fencing;
pub mod forecast;
pub mod freezes;
mod gone;
pub mod large_objects;
pub mod ledger;
pub mod live;
pub mod machine;
pub mod measure;
mod mirrored;
pub mod modes;
pub mod parameters;
mod preflight;
pub mod proposals;
mod reconfigure;
mod recording;
mod retirement;
mod same_reads;
mod seeding;
mod seeds;
mod sequences;
pub mod signals;
pub mod slots;
pub mod streams;
pub mod taking_over;
pub mod unlogged;
pub mod verification;
pub mod view;
pub mod warm;
mod warm_up;
mod without_database;
pub mod zones;

use std::sync::Arc;

use arc_swap::ArcSwap;
use migration::cutover::{Phase, Run, State};
use tokio::sync::{mpsc, oneshot};

use view::ResourceView;

use crate::audit::chain::moment;
use crate::config::model::Resource;

/// What a person asks for.
#[derive(Debug)]
pub enum Command {
    /// Start a migration.
    Migrate {
        /// Where to; none: to the shadow.
        to: Option<String>,
        /// Who asks.
        by: proposals::Person,
        /// Only say what would happen.
        dry_run: bool,
        /// The answer.
        reply: oneshot::Sender<Result<Plan, Denied>>,
    },
    /// Empty the shadow and copy again.
    Reseed {
        /// Who asks.
        by: String,
        /// The answer: it has begun.
        reply: oneshot::Sender<Result<(), Denied>>,
    },
    /// Other settings; what of them cannot change while it is led is as it was.
    Reconfigure {
        /// All of them.
        settings: Box<Resource>,
        /// A person said just now whether there is to be a shadow.
        shadow: bool,
        /// Writes them down, once it is clear that they can be taken; none: they are.
        persist: Option<Persist>,
        /// The answer: they are in force.
        reply: oneshot::Sender<Result<(), Denied>>,
    },
    /// The resource is to be led no more: its shadow is deprovisioned.
    Leave {
        /// The answer: nothing of it runs any more.
        reply: oneshot::Sender<Result<(), Denied>>,
    },
    /// Start the migration that the score proposed.
    Approve {
        /// The proposal; none: the open one.
        id: Option<String>,
        /// Who approves.
        by: proposals::Person,
        /// The answer.
        reply: oneshot::Sender<Result<Plan, Denied>>,
    },
    /// The primary is lost: its shadow takes over.
    TakeOver {
        /// What would be done; every guard of it has passed.
        plan: Box<Plan>,
        /// Who asks.
        by: String,
        /// The answer.
        reply: oneshot::Sender<Result<Plan, Denied>>,
    },
    /// The old primary soaks no longer.
    Retire {
        /// Id of the migration that it soaks after.
        id: String,
        /// Who asks.
        by: String,
        /// The answer.
        reply: oneshot::Sender<Result<(), Denied>>,
    },
    /// Undo the migration under way.
    Abort {
        /// Its id.
        id: String,
        /// Who asks.
        by: String,
        /// The answer.
        reply: oneshot::Sender<Result<(), Denied>>,
    },
}

/// Writes something down.
pub struct Persist(Box<dyn FnOnce() -> Result<(), String> + Send>);

impl Persist {
    /// By calling this.
    pub fn new(write: impl FnOnce() -> Result<(), String> + Send + 'static) -> Self {
        Self(Box::new(write))
    }

    /// Writes it, durably.
    pub fn write(self) -> Result<(), String> {
        (self.0)()
    }
}

impl std::fmt::Debug for Persist {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Persist")
    }
}

/// A move that waits for more people.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
pub struct ApprovalView {
    /// The proposal's id.
    pub proposal: String,
    /// Who wants it so far.
    pub approved_by: Vec<String>,
    /// How many must.
    pub needed: u32,
}

/// What a migration would do, or is about to.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
pub struct Plan {
    /// The migration's id; none: a dry run.
    pub id: Option<String>,
    /// Nothing begins yet: more people must approve it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approval: Option<ApprovalView>,
    /// Old primary.
    pub from: String,
    /// New primary.
    pub to: String,
    /// The steps, in order.
    pub steps: Vec<String>,
    /// Every condition.
    pub guards: Vec<view::GuardView>,
}

/// Why a command is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// Another migration is under way.
    #[error("migration {id} is under way ({phase})")]
    Running {
        /// Its id.
        id: String,
        /// Where it stands.
        phase: &'static str,
    },
    /// An old primary soaks, and this is not done meanwhile.
    #[error("migration {id} soaks until {until}: godwit retire {resource} ends that")]
    Soaking {
        /// Its id.
        id: String,
        /// The resource.
        resource: String,
        /// Until when.
        until: String,
    },
    /// A guard does not let it through.
    #[error("{}", .0.join("; "))]
    Guards(Vec<String>),
    /// The request makes no sense now.
    #[error("{0}")]
    Conflict(String),
    /// There is no such migration.
    #[error("no migration {0}")]
    NoSuchMigration(String),
    /// There is no such proposal.
    #[error("no proposal {0}")]
    NoSuchProposal(String),
    /// It was tried and did not work out.
    #[error("{0}")]
    Failed(String),
    /// It could not be written down.
    #[error("the journal cannot be written: {0}")]
    Journal(String),
}

impl Denied {
    /// Not while `run` is the run of `state`.
    fn under_way(state: &State, run: &Run) -> Self {
        let id = run.id.clone();
        match state.deadline().filter(|_| state.phase == Phase::Soaking) {
            Some(until) => Self::Soaking { id, resource: state.resource.clone(), until: moment(until) },
            None => Self::Running { id, phase: state.phase.name() },
        }
    }
}

/// The way to a resource's controller.
#[derive(Clone)]
pub struct ResourceHandle {
    /// Commands.
    pub commands: mpsc::Sender<Command>,
    /// The newest view.
    pub view: Arc<ArcSwap<ResourceView>>,
    /// The newest forecast.
    pub forecast: Arc<ArcSwap<forecast::ForecastView>>,
    /// Its settings now.
    pub live: Arc<live::Live>,
    /// Its verifications.
    pub verifications: Arc<verification::Verifications>,
    /// Its streams.
    pub streams: Arc<streams::Streams>,
}

impl ResourceHandle {
    /// Asks and awaits the answer; `None` when the controller is gone.
    pub async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.ok()?;
        answer.await.ok()
    }
}
