//! Keeps the replication streams of one resource running: one per generation, from its primary to its shadow.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use migration::units::{Generation, Zone};
use replicator::postgres::slot;
use replicator::status::{Phase, StreamStatus};
use replicator::{Lsn, fence};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use replicator::preflight::Side;

use super::databases::{Databases, Purpose};
use super::effects::chain;
use super::preflight;
use crate::links::Links;

/// Near enough to the tip to call a stream up.
const NEAR_BYTES: u64 = 1 << 20;
/// How long the statements around a stream may take.
const STATEMENTS: Duration = Duration::from_secs(30);
/// How long a stream may take to end.
const END: Duration = Duration::from_secs(5);

struct Running {
    source: String,
    target: String,
    status: watch::Receiver<StreamStatus>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

/// The streams of one resource.
pub struct Streams {
    resource: String,
    databases: Arc<Databases>,
    links: Arc<Links>,
    running: Mutex<BTreeMap<u64, Running>>,
}

impl Streams {
    /// None runs.
    pub fn new(resource: &str, databases: Arc<Databases>, links: Arc<Links>) -> Self {
        Self { resource: resource.to_owned(), databases, links, running: Mutex::default() }
    }

    fn running(&self) -> MutexGuard<'_, BTreeMap<u64, Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the stream of `generation` if it does not run, and returns when it applies changes near the tip and the
    /// target is guarded.
    pub async fn run(&self, generation: Generation, source: &Zone, target: &Zone) -> Result<(), String> {
        let alive = self
            .running()
            .get(&generation.0)
            .map(|stream| (stream.status.clone(), stream.task.is_finished()));
        let mut status = match alive {
            Some((status, false)) => status,
            _ => {
                self.bounded(self.prepare(generation, source, target)).await?;
                self.start(generation, source, target)
            }
        };
        loop {
            let now = status.borrow_and_update().clone();
            match now.phase {
                Phase::Streaming if now.lag_bytes <= NEAR_BYTES => break,
                Phase::Failed { error, retrying: false } => return Err(error),
                Phase::Stopped => return Err("the stream was stopped".into()),
                _ => {}
            }
            if status.changed().await.is_err() {
                return Err("the stream ended".into());
            }
        }
        self.bounded(async {
            let client = self.databases.get(&target.0, Purpose::Control).await.map_err(chain)?;
            fence::guard(&client, &self.resource, generation.0).await.map_err(chain)
        })
        .await
    }

    async fn bounded<T>(&self, work: impl Future<Output = Result<T, String>>) -> Result<T, String> {
        match tokio::time::timeout(STATEMENTS, work).await {
            Ok(result) => result,
            Err(_) => {
                self.databases.forget_all().await;
                Err(format!("the databases did not answer within {} s", STATEMENTS.as_secs()))
            }
        }
    }

    /// Schema `godwit` on both sides, and for a way back the checkpoint it starts from.
    async fn prepare(&self, generation: Generation, source: &Zone, target: &Zone) -> Result<(), String> {
        let from = self.databases.get(&source.0, Purpose::Control).await.map_err(chain)?;
        let to = self.databases.get(&target.0, Purpose::Control).await.map_err(chain)?;
        if generation == Generation(1) {
            // Named before anything is changed.
            let mut blockers = preflight::blockers(&from, Side::Source, &source.0).await?;
            blockers.extend(preflight::blockers(&to, Side::Target, &target.0).await?);
            if !blockers.is_empty() {
                return Err(format!("not ready: {}", blockers.join("; ")));
            }
        }
        fence::install(&from, &self.resource, generation.0).await.map_err(chain)?;
        fence::install(&to, &self.resource, generation.0).await.map_err(chain)?;
        // The publication is made with the slot, and only then: a new one beside an old slot would hide that changes are missing.
        if generation.0 > 1 {
            let name = slot::slot_name(&self.resource, generation.0);
            let info = slot::slot_info(&from, &name).await.map_err(chain)?;
            let start = info.and_then(|info| info.confirmed_flush).ok_or_else(|| {
                format!("slot {name} is gone from {source}: the shadow in {target} must be made anew")
            })?;
            replicator::apply::seed_progress(&to, &name, start, generation.0).await.map_err(chain)?;
        }
        Ok(())
    }

    fn start(&self, generation: Generation, source: &Zone, target: &Zone) -> watch::Receiver<StreamStatus> {
        let (publish, status) = watch::channel(StreamStatus::default());
        let stop = CancellationToken::new();
        let spec = replicator::pump::StreamSpec {
            resource: self.resource.clone(),
            generation: generation.0,
            slot: slot::slot_name(&self.resource, generation.0),
            publication: slot::publication_name(&self.resource),
            origin: slot::origin_name(&self.resource),
            source_zone: source.to_string(),
            target_zone: target.to_string(),
        };
        let (databases, links, stopped) = (self.databases.clone(), self.links.clone(), stop.clone());
        let task = tokio::spawn(async move {
            if let Err(error) = links.run(&databases, &spec, &publish, &stopped).await {
                let why = chain(error);
                tracing::error!(resource = %spec.resource, stream = %spec.slot, %why, "stream ended: a person must look");
                publish.send_modify(|status| status.phase = Phase::Failed { error: why, retrying: false });
            }
        });
        let stream = Running {
            source: source.to_string(),
            target: target.to_string(),
            status: status.clone(),
            stop,
            task,
        };
        if let Some(old) = self.running().insert(generation.0, stream) {
            old.stop.cancel();
        }
        status
    }

    /// What a stream says of itself, with its source and target.
    pub fn status(&self, generation: Generation) -> Option<(String, String, StreamStatus)> {
        let running = self.running();
        let stream = running.get(&generation.0)?;
        Some((stream.source.clone(), stream.target.clone(), stream.status.borrow().clone()))
    }

    /// Returns when the target has applied everything up to `position`.
    pub async fn applied(&self, generation: Generation, position: Lsn) -> Result<(), String> {
        let status = self.running().get(&generation.0).map(|stream| stream.status.clone());
        let mut status = status.ok_or("no stream runs")?;
        loop {
            let now = status.borrow_and_update().clone();
            if now.applied_lsn >= position {
                return Ok(());
            }
            if let Phase::Failed { error, retrying: false } = now.phase {
                return Err(error);
            }
            status.changed().await.map_err(|_| "the stream ended")?;
        }
    }

    /// Returns when the target has applied all that the source has committed until now.
    pub async fn caught_up(&self, generation: Generation, source: &Client) -> Result<(), String> {
        let row = source.query_one("SELECT pg_current_wal_lsn()::text", &[]).await.map_err(chain)?;
        let position: Lsn = row.get::<_, &str>(0).parse().map_err(chain)?;
        self.applied(generation, position).await
    }

    /// Ends a stream and drops its slot; returns how many rows came after its end marker.
    pub async fn end(&self, generation: Generation, source: &Zone) -> Result<u64, String> {
        let ended = self.running().remove(&generation.0);
        let mut stray = 0;
        if let Some(stream) = ended {
            stream.stop.cancel();
            let mut task = stream.task;
            if tokio::time::timeout(END, &mut task).await.is_err() {
                task.abort();
            }
            stray = stream.status.borrow().rows_after_marker;
        }
        let client = self.databases.get(&source.0, Purpose::Control).await.map_err(chain)?;
        slot::drop_slot(&client, &slot::slot_name(&self.resource, generation.0)).await.map_err(chain)?;
        Ok(stray)
    }

    /// Ends all streams of this process; slots and checkpoints stay.
    pub async fn stop(&self) {
        let all = std::mem::take(&mut *self.running());
        for stream in all.values() {
            stream.stop.cancel();
        }
        for (_, stream) in all {
            let mut task = stream.task;
            if tokio::time::timeout(END, &mut task).await.is_err() {
                task.abort();
            }
        }
    }
}
