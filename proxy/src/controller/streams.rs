//! Keeps the replication streams of one resource running: one per generation, from its primary to its shadow, in one lane
//! or two.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use migration::policy::{KeptByExtensions, Policy, ReplicationMode};
use migration::units::{Generation, Zone};
use replicator::copy::CopyOptions;
use replicator::drift::{Filling, Numbered};
use replicator::error::Cause;
use replicator::postgres::slot::{self, Lane};
use replicator::status::{Phase, StreamStatus};
use replicator::{Lsn, extensions, fence, identity, lanes, reseed, synchronous};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use replicator::preflight::{Side, has_copy};

use super::databases::{Databases, Purpose};
use super::live::Live;
use super::modes::{Keeper, ModeState, Stage};
use super::preflight;
use crate::causes::chain;
use crate::links::Links;
use crate::lock::lock;
use crate::store::Journal;
use crate::telemetry::metrics as telemetry;

/// Near enough to the tip to call a stream up.
const NEAR_BYTES: u64 = 1 << 20;
/// How long the statements around a stream may take.
const STATEMENTS: Duration = Duration::from_secs(30);
/// How long a stream may take to end.
const END: Duration = Duration::from_secs(5);

/// One lane of a stream.
pub(super) struct Running {
    /// It was told that commits wait for it, or that none do.
    synchronous: bool,
    status: watch::Receiver<StreamStatus>,
    /// Its failures that are in the metrics.
    counted: BTreeMap<Cause, u64>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Running {
    pub(super) async fn end(mut self) -> StreamStatus {
        self.stop.cancel();
        if tokio::time::timeout(END, &mut self.task).await.is_err() {
            self.task.abort();
        }
        self.status.borrow().clone()
    }
}

impl Drop for Running {
    /// Nobody knows of it any more: it must not go on and fight with the next one for the target.
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// The stream of one generation.
struct Stream {
    source: Zone,
    target: Zone,
    lanes: BTreeMap<Lane, Running>,
    /// What sees to it that the right commits wait.
    keeper: Option<Keeper>,
}

impl Stream {
    fn new(source: &Zone, target: &Zone) -> Self {
        Self { source: source.clone(), target: target.clone(), lanes: BTreeMap::new(), keeper: None }
    }
}

/// The streams of one resource.
pub struct Streams {
    resource: String,
    live: Arc<Live>,
    databases: Arc<Databases>,
    links: Arc<Links>,
    journal: Arc<Journal>,
    running: Mutex<BTreeMap<u64, Stream>>,
    /// The generation whose stream was given up, and why.
    given_up: Mutex<Option<(u64, String)>>,
    /// How often the shadow was emptied to be seeded anew.
    emptied: AtomicU64,
    /// Tables of the shadow, each with its zone, that were to be copied anew, or were copied, since that was last asked for.
    pub(super) seeded: Mutex<Vec<(String, Numbered)>>,
    /// Held while a stream is made ready or taken down.
    turn: tokio::sync::Mutex<()>,
    /// Held while the shadow's schema is brought up.
    schema: tokio::sync::Mutex<()>,
    /// The shadow is to be emptied: whoever brings its schema up ends.
    pub(super) emptying: watch::Sender<bool>,
    /// The table that is being filled beside them.
    filling: watch::Sender<Option<Filling>>,
}

impl Streams {
    /// How often the shadow was emptied to be seeded anew.
    pub(super) fn emptied(&self) -> u64 {
        self.emptied.load(Ordering::Relaxed)
    }

    pub(super) fn note_emptied(&self) {
        self.emptied.fetch_add(1, Ordering::Relaxed);
    }

    /// None runs.
    pub fn new(live: Arc<Live>, databases: Arc<Databases>, links: Arc<Links>, journal: Arc<Journal>) -> Self {
        Self {
            resource: live.name.clone(),
            live,
            databases,
            links,
            journal,
            running: Mutex::default(),
            given_up: Mutex::default(),
            emptied: AtomicU64::new(0),
            seeded: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
            schema: tokio::sync::Mutex::default(),
            emptying: watch::Sender::default(),
            filling: watch::Sender::default(),
        }
    }

    /// Whoever holds it brings the shadow's schema up.
    pub(super) fn schema(&self) -> &tokio::sync::Mutex<()> {
        &self.schema
    }

    /// The table that is being filled beside them, and how far that is.
    pub fn filling(&self) -> &watch::Sender<Option<Filling>> {
        &self.filling
    }

    fn running(&self) -> MutexGuard<'_, BTreeMap<u64, Stream>> {
        lock(&self.running)
    }

    /// Why the stream of this generation was given up, if it was.
    pub fn given_up(&self, generation: Generation) -> Option<String> {
        let given_up = lock(&self.given_up);
        given_up.as_ref().filter(|(of, _)| *of == generation.0).map(|(_, why)| why.clone())
    }

    pub(super) fn refuse(&self, generation: Generation, why: String) {
        *lock(&self.given_up) = Some((generation.0, why));
    }

    pub(super) fn allow(&self) {
        *lock(&self.given_up) = None;
    }

    pub(super) async fn turn(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.turn.lock().await
    }

    /// The resource's name.
    pub(super) fn resource(&self) -> &str {
        &self.resource
    }

    /// The resource's policy now.
    pub(super) fn policy(&self) -> Policy {
        self.live.load().policy.clone()
    }

    /// Control connections.
    pub(super) fn databases(&self) -> &Databases {
        &self.databases
    }

    /// Where changes of the mode are written down.
    pub(super) fn journal(&self) -> &Journal {
        &self.journal
    }

    /// Starts the stream of `generation` if it does not run, and returns when every lane of it applies changes near the
    /// tip and the target is guarded.
    pub async fn run(
        self: &Arc<Self>,
        generation: Generation,
        source: &Zone,
        target: &Zone,
    ) -> Result<(), String> {
        // Nothing may wait for the old direction any more: its target is about to become what it waits for.
        self.end_keepers(|running| running != generation.0).await;
        {
            let _turn = self.turn().await;
            if let Some(why) = self.given_up(generation) {
                return Err(why);
            }
            // Before anything needs the target, which may be away: commits may be waiting for it since before this process began.
            self.keep(generation, source, target);
            if !self.alive(generation, Lane::Main) {
                self.bounded(self.prepare(generation, source, target)).await?;
                self.start(generation, Lane::Main, source, target);
            }
        }
        // Before the main lane is near: commits may be waiting for this one.
        self.bounded(self.open_critical(generation, source, target)).await?;
        self.near(generation, Lane::Main).await?;
        self.bounded(self.open_critical(generation, source, target)).await?;
        if self.alive(generation, Lane::Critical) {
            self.near(generation, Lane::Critical).await?;
        }
        self.bounded(async {
            let client = self.databases.get(&target.0, Purpose::Control).await.map_err(chain)?;
            fence::guard(&client, &self.resource, generation.0).await.map_err(chain)
        })
        .await?;
        self.follow(generation);
        Ok(())
    }

    async fn near(&self, generation: Generation, lane: Lane) -> Result<(), String> {
        let mut status = self.lane(generation, lane).ok_or("no stream runs")?;
        loop {
            let now = status.borrow_and_update().clone();
            match now.phase {
                Phase::Streaming if now.lag_bytes <= NEAR_BYTES => return Ok(()),
                Phase::Failed { error, retrying: false } => return Err(error),
                Phase::Stopped => return Err("the stream was stopped".into()),
                _ => {}
            }
            if status.changed().await.is_err() {
                return Err("the stream ended".into());
            }
        }
    }

    pub(super) async fn bounded<T>(
        &self,
        work: impl Future<Output = Result<T, String>>,
    ) -> Result<T, String> {
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
        let name = slot::slot_name(&self.resource, generation.0);
        // Where there is a copy, a stream does more good than none: what stands in the way of a move is told, and keeps it.
        let is_copied = matches!(copied(&to, &name).await, Ok(Some(true)));
        let (is_at, epoch) = (
            fence::state(&from, &self.resource).await.map_err(chain)?,
            fence::state(&to, &self.resource).await.map_err(chain)?,
        );
        let is_primary =
            is_at.as_ref().is_some_and(|epoch| epoch.generation >= generation.0 && !epoch.fenced);
        // Never ours: the shadow's placement is another one than the last move left.
        let is_new = epoch.is_none() && is_primary;
        if (generation == Generation(1) || is_new) && !is_copied {
            // Named before anything is changed.
            let policy = self.policy();
            super::drift::identified(&policy, &self.resource, &from).await?;
            let mut blockers = preflight::blockers(&from, Side::Source, &policy, &source.0).await?;
            blockers.extend(preflight::blockers(&to, Side::Target, &policy, &target.0).await?);
            let lacking = replicator::preflight::superusers(&from, &to).await.map_err(chain)?;
            blockers.extend(preflight::worded(lacking, &target.0));
            if !blockers.is_empty() {
                let first = preflight::first(blockers, &self.resource);
                return Err(format!("not ready: {}", first.join("; ")));
            }
            if policy.extensions == KeptByExtensions::Carry && !has_copy(&to).await.map_err(chain)? {
                extensions::seed(&from, &to).await.map_err(chain)?;
            }
        }
        fence::install(&to, &self.resource, generation.0).await.map_err(chain)?;
        if generation.0 > 1 && is_new {
            reseed::awaits_copy(&to, &name, generation.0).await.map_err(chain)?;
        }
        let found = identity::of(&from).await.map_err(chain)?;
        let known = identity::of_checkpoint(&to, &name).await.map_err(chain)?;
        if let (Some(known), Some(found)) = (known, found) {
            known.expect(found, &name).map_err(chain)?;
        }
        let is_behind = epoch.is_some_and(|epoch| epoch.generation < generation.0);
        if is_behind && is_at.is_none() && copied(&to, &name).await?.is_none() {
            // Nothing may say of it that it is open, nor of the target that it is none: the target may be the only one that has anything.
            return Err(never_opened(source, generation, target));
        }
        fence::install(&from, &self.resource, generation.0).await.map_err(chain)?;
        // An applier's commits must not wait for the stream that goes the other way.
        for slot in synchronous::left_over(&to, &self.resource, None).await.map_err(chain)? {
            synchronous::leave(&to, &slot).await.map_err(chain)?;
        }
        // The publication is made with the slot, and only then: a new one beside an old slot would hide that changes are missing.
        let copied = copied(&to, &name).await?;
        // "Not copied" says that the shadow waits for a new copy, whatever generation it is.
        if generation.0 > 1 && copied != Some(false) {
            let info = slot::slot_info(&from, &name).await.map_err(chain)?;
            let why = match info.and_then(|info| info.confirmed_flush) {
                None => without_slot(&name, source),
                Some(start) if self.begins_at(generation, start, [&from, &to], copied).await? => {
                    return replicator::apply::seed_progress(&to, &name, start, generation.0, found)
                        .await
                        .map_err(chain);
                }
                // Whether the slot still has what comes next is for the stream to see.
                Some(_) if copied.is_some() => return Ok(()),
                Some(_) => without_checkpoint(&name, target),
            };
            if is_primary && is_behind {
                // A primary that was lost, or restored as it was before the move: nobody may take it for one. What was never ours is not touched, nor
                // what may be the primary, where the source was never opened as one.
                fence::guard(&to, &self.resource, generation.0).await.map_err(chain)?;
            }
            return Err(made_anew(&why, target));
        }
        if copied == Some(true) {
            return Ok(());
        }
        // A slot that is there says that the stream begins, and nobody would go on with that: an older version made one.
        if reseed::broke_off(&to, &self.resource, &name).await.map_err(chain)? {
            slot::drop_slot(&from, &name).await.map_err(chain)?;
            return Err(super::seeding::half_emptied(&self.resource));
        }
        // Whatever was known of the rows of another shadow is not known of this one.
        self.note_emptied();
        // The copy is of everything, in one lane.
        let critical = Lane::Critical.slot_name(&self.resource, generation.0);
        slot::drop_slot(&from, &critical).await.map_err(chain)?;
        // It makes no copy of its own that would.
        identity::forgive(&from, &critical).await.map_err(chain)?;
        lanes::publish(&from, &self.resource, &[]).await.map_err(chain)
    }

    /// Whether a way back begins at `start`, where its slot is: the target is as the move has left it, and what clients have written since has not
    /// been read from the slot. Anything else is a shadow that was restored, or a slot that was made again.
    async fn begins_at(
        &self,
        generation: Generation,
        start: Lsn,
        [from, to]: [&Client; 2],
        copied: Option<bool>,
    ) -> Result<bool, String> {
        let epoch = fence::state(to, &self.resource).await.map_err(chain)?;
        if !epoch.is_some_and(|epoch| epoch.is_left_by(generation.0)) {
            return Ok(false);
        }
        let opened = fence::opened(from, &self.resource, generation.0).await.map_err(chain)?;
        // An older version, which did not note it, may have been replaced between the move and its first look at the slot.
        Ok(opened.map_or(copied.is_none(), |opened| start <= opened))
    }

    /// Starts the lane of the critical tables where the policy or the database has one, once there is a copy.
    async fn open_critical(
        &self,
        generation: Generation,
        source: &Zone,
        target: &Zone,
    ) -> Result<(), String> {
        if self.alive(generation, Lane::Critical) {
            return Ok(());
        }
        let from = self.databases.get(&source.0, Purpose::Control).await.map_err(chain)?;
        let to = self.databases.get(&target.0, Purpose::Control).await.map_err(chain)?;
        let name = Lane::Critical.slot_name(&self.resource, generation.0);
        let there = slot::slot_info(&from, &name).await.map_err(chain)?;
        let members = lanes::members(&from, &self.resource).await.map_err(chain)?;
        let is_empty = members.is_none_or(|members| members.is_empty());
        let start = match &there {
            None if !is_empty => {
                return Err(made_anew(&without_slot(&name, source), target));
            }
            None if self.policy().replication != ReplicationMode::Hybrid => return Ok(()),
            _ if copied(&to, &slot::slot_name(&self.resource, generation.0)).await? != Some(true) => {
                return Ok(());
            }
            None => {
                // Holds nothing yet: the keeper hands the tables over.
                lanes::open_publication(&from, &self.resource).await.map_err(chain)?;
                slot::create_slot(&from, &name).await.map_err(chain)?
            }
            Some(info) => info.confirmed_flush.ok_or_else(|| format!("slot {name} has no position"))?,
        };
        let known = copied(&to, &name).await?;
        // A lane that holds nothing begins wherever its slot is, also where it was closed before.
        if is_empty || self.begins_at(generation, start, [&from, &to], known).await? {
            let found = identity::of(&from).await.map_err(chain)?;
            replicator::apply::seed_progress(&to, &name, start, generation.0, found).await.map_err(chain)?;
        } else if known.is_none() {
            return Err(made_anew(&without_checkpoint(&name, target), target));
        }
        self.start(generation, Lane::Critical, source, target);
        Ok(())
    }

    fn start(&self, generation: Generation, lane: Lane, source: &Zone, target: &Zone) {
        // One that takes over from another knows no less of how far the shadow is.
        let before = self.lane(generation, lane).map(|status| status.borrow().clone()).unwrap_or_default();
        let StreamStatus { lag_bytes, lag, heard, .. } = before;
        let (publish, status) =
            watch::channel(StreamStatus { lag_bytes, lag, heard, ..StreamStatus::default() });
        let stop = CancellationToken::new();
        let spec = replicator::pump::StreamSpec {
            resource: self.resource.clone(),
            generation: generation.0,
            slot: lane.slot_name(&self.resource, generation.0),
            publication: lane.publication_name(&self.resource),
            origin: lane.origin_name(&self.resource),
            source_zone: source.to_string(),
            target_zone: target.to_string(),
            synchronous: self.waits(lane),
        };
        let synchronous = spec.synchronous;
        let (databases, links, stopped) = (self.databases.clone(), self.links.clone(), stop.clone());
        let copy = self.copying();
        let task = tokio::spawn(async move {
            if let Err(error) = links.run(&databases, &spec, &copy, &publish, &stopped).await {
                let why = chain(error);
                tracing::error!(resource = %spec.resource, stream = %spec.slot, %why, "stream ended: a person must look");
                publish.send_modify(|status| status.phase = Phase::Failed { error: why, retrying: false });
            }
        });
        let mut running = self.running();
        let stream = running.entry(generation.0).or_insert_with(|| Stream::new(source, target));
        if let Some(old) =
            stream.lanes.insert(lane, Running { synchronous, status, counted: BTreeMap::new(), stop, task })
        {
            old.stop.cancel();
        }
    }

    /// How its next copy is made.
    fn copying(&self) -> CopyOptions {
        self.links.copying(&self.policy())
    }

    /// Whether commits are to wait for this lane.
    fn waits(&self, lane: Lane) -> bool {
        waited_for(self.policy().replication) == Some(lane)
    }

    /// It runs, and as the policy of now has it: one that was begun under another is begun anew, which takes it over.
    fn alive(&self, generation: Generation, lane: Lane) -> bool {
        let waits = self.waits(lane);
        let running = self.running();
        let lane = running.get(&generation.0).and_then(|stream| stream.lanes.get(&lane));
        lane.is_some_and(|lane| !lane.task.is_finished() && lane.synchronous == waits)
    }

    /// What one lane says of itself.
    pub(super) fn lane(&self, generation: Generation, lane: Lane) -> Option<watch::Receiver<StreamStatus>> {
        Some(self.running().get(&generation.0)?.lanes.get(&lane)?.status.clone())
    }

    /// Sees to it that no commit waits for what is away; commits may begin to wait for this stream once it is told to [`Self::follow`].
    fn keep(self: &Arc<Self>, generation: Generation, source: &Zone, target: &Zone) {
        let mut running = self.running();
        let stream = running.entry(generation.0).or_insert_with(|| Stream::new(source, target));
        self.keeper_of(generation, stream);
    }

    /// The stream is up.
    fn follow(self: &Arc<Self>, generation: Generation) {
        if let Some(stream) = self.running().get_mut(&generation.0) {
            self.keeper_of(generation, stream).follow();
        }
    }

    /// The one that it has, or a new one.
    fn keeper_of<'a>(self: &Arc<Self>, generation: Generation, stream: &'a mut Stream) -> &'a Keeper {
        let stage = Stage { generation, source: stream.source.clone() };
        stream.keeper.get_or_insert_with(|| Keeper::start(self.clone(), stage))
    }

    /// What keeps commits waiting for this generation's stream ends; the next `run` starts another one.
    pub(super) async fn end_keeper(&self, generation: Generation) {
        self.end_keepers(|of| of == generation.0).await;
    }

    async fn end_keepers(&self, which: impl Fn(u64) -> bool) {
        for keeper in self.keepers_taken(which) {
            keeper.end().await;
        }
    }

    /// Whoever takes them ends them.
    pub(super) fn keepers_taken(&self, which: impl Fn(u64) -> bool) -> Vec<Keeper> {
        self.running()
            .iter_mut()
            .filter(|(generation, _)| which(**generation))
            .filter_map(|(_, stream)| stream.keeper.take())
            .collect()
    }

    /// What a stream says of itself, all lanes together, with its source and target.
    pub fn status(&self, generation: Generation) -> Option<(String, String, StreamStatus)> {
        let running = self.running();
        let stream = running.get(&generation.0)?;
        let lanes = stream.lanes.values().map(|lane| lane.status.borrow().clone());
        let together = lanes.reduce(together)?;
        Some((stream.source.to_string(), stream.target.to_string(), together))
    }

    /// Puts the failures that have come since the last time into the metrics.
    pub fn count_failures(&self) {
        for lane in self.running().values_mut().flat_map(|stream| stream.lanes.values_mut()) {
            for (cause, count) in &lane.status.borrow().failures {
                let counted = lane.counted.entry(*cause).or_default();
                if count > counted {
                    telemetry::stream_failures(&self.resource, *cause, count - *counted);
                    *counted = *count;
                }
            }
        }
    }

    /// Which commits wait, and what each lane says of itself.
    pub fn mode(&self, generation: Generation) -> (ModeState, Vec<(Lane, StreamStatus)>) {
        let running = self.running();
        let stream = running.get(&generation.0);
        let mode = stream.and_then(|stream| stream.keeper.as_ref()).map(Keeper::state);
        let lanes = stream.map(|stream| {
            stream.lanes.iter().map(|(lane, running)| (*lane, running.status.borrow().clone())).collect()
        });
        (mode.unwrap_or_else(|| ModeState::not_yet(self.policy().replication)), lanes.unwrap_or_default())
    }

    /// Returns when the target has applied everything up to `position`, in every lane. An end marker is durable then.
    pub async fn applied(&self, generation: Generation, position: Lsn) -> Result<(), String> {
        self.reached(generation, |status| status.applied_lsn >= position).await
    }

    async fn reached(
        &self,
        generation: Generation,
        there: impl Fn(&StreamStatus) -> bool,
    ) -> Result<(), String> {
        let lanes: Vec<_> = self
            .running()
            .get(&generation.0)
            .map(|stream| stream.lanes.values().map(|lane| lane.status.clone()).collect())
            .unwrap_or_default();
        if lanes.is_empty() {
            return Err("no stream runs".into());
        }
        for mut status in lanes {
            loop {
                let now = status.borrow_and_update().clone();
                if there(&now) {
                    break;
                }
                if let Phase::Failed { error, retrying: false } = now.phase {
                    return Err(error);
                }
                status.changed().await.map_err(|_| "the stream ended")?;
            }
        }
        Ok(())
    }

    /// Returns when the target has applied all that the source has committed until now.
    pub async fn caught_up(&self, generation: Generation, source: &Client) -> Result<(), String> {
        let row = source.query_one("SELECT pg_current_wal_lsn()::text", &[]).await.map_err(chain)?;
        let position: Lsn = row.get::<_, &str>(0).parse().map_err(chain)?;
        // A server that died has taken back what was not durable, and its sessions have ended.
        self.reached(generation, |status| status.applied_lsn >= position && status.phase == Phase::Streaming)
            .await
    }

    /// Makes the publications and slots of the stream that `generation` will start in `zone`, if they are not there; also one that the server
    /// has taken the WAL of, which no stream can read.
    pub async fn make_slots(&self, generation: Generation, client: &Client) -> Result<(), String> {
        let wanted: &[Lane] = match self.policy().replication {
            ReplicationMode::Hybrid => &[Lane::Main, Lane::Critical],
            _ => &[Lane::Main],
        };
        let mut missing = Vec::new();
        for lane in wanted {
            let name = lane.slot_name(&self.resource, generation.0);
            match slot::slot_info(client, &name).await.map_err(chain)? {
                Some(info) if info.wal_status != "lost" => continue,
                Some(_) => slot::drop_slot(client, &name).await.map_err(chain)?,
                None => {}
            }
            missing.push(name);
        }
        if missing.len() == wanted.len() {
            // Publications must be older than anything a slot will decode.
            lanes::publish(client, &self.resource, &self.policy().critical).await.map_err(chain)?;
        }
        for name in missing {
            slot::create_slot(client, &name).await.map_err(chain)?;
        }
        Ok(())
    }

    /// Drops the slots of a way back that an aborted run made, unless a later run has taken them over.
    pub async fn drop_way_back(
        &self,
        generation: Generation,
        run: &str,
        client: &Client,
    ) -> Result<(), String> {
        let slots = [Lane::Critical, Lane::Main].map(|lane| lane.slot_name(&self.resource, generation.0));
        let dropped = fence::drop_way_back(client, &self.resource, generation.0, run, &slots).await;
        dropped.map(drop).map_err(chain)
    }

    /// The lanes that run of this generation, which are nobody's then.
    pub(super) fn taken(&self, generation: Generation) -> Vec<Running> {
        let taken = self.running().remove(&generation.0);
        taken.map(|stream| stream.lanes.into_values().collect()).unwrap_or_default()
    }

    /// Drops the slots of a stream that does not run.
    pub(super) async fn drop_slots(&self, generation: Generation, client: &Client) -> Result<(), String> {
        for lane in [Lane::Critical, Lane::Main] {
            let name = lane.slot_name(&self.resource, generation.0);
            slot::drop_slot(client, &name).await.map_err(chain)?;
        }
        Ok(())
    }

    /// Ends a stream and drops its slots; returns how many rows came after its end marker.
    pub async fn end(&self, generation: Generation, source: &Zone) -> Result<u64, String> {
        self.end_keepers(|running| running == generation.0).await;
        let client = self.databases.get(&source.0, Purpose::Control).await.map_err(chain)?;
        for lane in [Lane::Main, Lane::Critical] {
            let name = lane.slot_name(&self.resource, generation.0);
            synchronous::leave(&client, &name).await.map_err(chain)?;
        }
        // Only now: where the source cannot be asked, this comes again, and counts what came after the marker.
        let mut stray = 0;
        for lane in self.taken(generation) {
            stray += lane.end().await.rows_after_marker;
        }
        self.drop_slots(generation, &client).await?;
        Ok(stray)
    }

    /// Ends the lane of critical tables, which has handed all of them over.
    pub(super) async fn close_critical(&self, generation: Generation, client: &Client) -> Result<(), String> {
        let lane =
            self.running().get_mut(&generation.0).and_then(|stream| stream.lanes.remove(&Lane::Critical));
        if let Some(lane) = lane {
            lane.end().await;
        }
        let name = Lane::Critical.slot_name(&self.resource, generation.0);
        synchronous::leave(client, &name).await.map_err(chain)?;
        slot::drop_slot(client, &name).await.map_err(chain)?;
        lanes::close(client, &self.resource).await.map_err(chain)
    }

    /// Ends all streams of this process; slots and checkpoints stay. Commits wait for none of them afterwards.
    pub async fn stop(&self) {
        self.end_keepers(|_| true).await;
        let all = std::mem::take(&mut *self.running());
        let lanes: Vec<Running> = all.into_values().flat_map(|stream| stream.lanes.into_values()).collect();
        for lane in &lanes {
            lane.stop.cancel();
        }
        for lane in lanes {
            lane.end().await;
        }
    }
}

/// The lane that commits wait for in this mode.
pub(super) fn waited_for(mode: ReplicationMode) -> Option<Lane> {
    match mode {
        ReplicationMode::Async => None,
        ReplicationMode::Sync => Some(Lane::Main),
        ReplicationMode::Hybrid => Some(Lane::Critical),
    }
}

/// A shadow is as far as its last lane, and as well as its worst.
fn together(one: StreamStatus, other: StreamStatus) -> StreamStatus {
    let rank = |phase: &Phase| match phase {
        Phase::Streaming => 0,
        Phase::Connecting => 1,
        Phase::Copying { .. } => 2,
        Phase::Stopped => 3,
        Phase::Failed { .. } => 4,
    };
    let mut both = one;
    if rank(&other.phase) > rank(&both.phase) {
        both.phase = other.phase;
    }
    both.source_lsn = both.source_lsn.max(other.source_lsn);
    both.received_lsn = both.received_lsn.min(other.received_lsn);
    both.applied_lsn = both.applied_lsn.min(other.applied_lsn);
    both.lag_bytes = both.lag_bytes.max(other.lag_bytes);
    both.lag = both.lag.max(other.lag);
    both.heard = both.heard.min(other.heard);
    both.applied_marker = both.applied_marker.min(other.applied_marker);
    both.rows_after_marker += other.rows_after_marker;
    for (cause, count) in other.failures {
        *both.failures.entry(cause).or_default() += count;
    }
    both.transactions += other.transactions;
    both.changes += other.changes;
    both
}

fn made_anew(why: &str, target: &Zone) -> String {
    format!("{why}: the shadow in {target} must be made anew")
}

fn never_opened(source: &Zone, generation: Generation, target: &Zone) -> String {
    format!(
        "the database in {source} was never the primary of generation {generation} (was it made anew?), and what is in {target} may be nowhere \
         else: see docs/operations.md, \"A lost state directory\""
    )
}

fn without_slot(slot: &str, source: &Zone) -> String {
    format!("slot {slot} is gone from {source}")
}

fn without_checkpoint(slot: &str, target: &Zone) -> String {
    format!(
        "the database in {target} has no checkpoint of slot {slot}, and is not as the move left it (was it restored?)"
    )
}

/// Whether the target holds a copy that the stream `name` goes on from; none: it knows nothing of the stream.
pub(crate) async fn copied(target: &Client, name: &str) -> Result<Option<bool>, String> {
    let row = target.query_opt("SELECT copied FROM godwit.progress WHERE stream = $1", &[&name]).await;
    let row = row.map_err(|error| format!("cannot read the checkpoint of {name}: {error}"))?;
    Ok(row.map(|row| row.get(0)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use migration::policy::PolicyParts;

    use super::*;
    use crate::config::model::Resource;
    use crate::config::{self, samples};

    fn streams(folder: &std::path::Path) -> (Streams, Arc<Live>, Resource) {
        let mut config = config::load(&samples::write(folder, samples::ORDERS)).unwrap();
        // Reserved since.
        let orders = config.resources.remove("orders").unwrap();
        let links = Arc::new(Links::new(&config).unwrap());
        let live = Live::new(orders.clone());
        let journal = Arc::new(Journal::open(folder).unwrap());
        let databases = Arc::new(Databases::new(live.clone()));
        (Streams::new(live.clone(), databases, links, journal), live, orders)
    }

    #[tokio::test]
    async fn nothing_keeps_on_looking_for_a_primary_that_is_lost() {
        let folder = tempfile::tempdir().unwrap();
        let (streams, live, orders) = streams(folder.path());
        let parts = PolicyParts { replication: ReplicationMode::Sync, ..(*orders.policy).clone() };
        live.replace(&Resource { policy: Policy::new(parts).unwrap(), ..orders });
        let streams = Arc::new(streams);
        streams.keep(Generation(1), &Zone("a".into()), &Zone("b".into()));
        streams.abandon(Generation(1)).await;
        let ended = async {
            // Whoever goes on holds it.
            while Arc::strong_count(&streams) > 1 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), ended).await.unwrap();
    }

    #[test]
    fn a_copy_is_made_by_the_policy_of_when_it_begins() {
        let folder = tempfile::tempdir().unwrap();
        let (streams, live, orders) = streams(folder.path());
        for (sessions, rate) in [(7, Some(5 << 20)), (2, None)] {
            let parts = PolicyParts {
                copy_sessions: sessions,
                copy_rate: rate.map(migration::units::ByteCount),
                ..(*orders.policy).clone()
            };
            live.replace(&Resource { policy: Policy::new(parts).unwrap(), ..orders.clone() });
            let options = streams.copying();
            assert_eq!((options.sessions, options.bytes_per_second), (sessions, rate));
        }
    }
}
