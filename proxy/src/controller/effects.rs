//! Carries out effects. Each may run twice; each reports what happened as events of the run it was started for.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use migration::cutover::{Capacity, Effect, Event, Phase, Run, State};
use migration::policy::Policy;
use migration::units::{Generation, Zone};
use replicator::beside::Sides;
use replicator::lead::{self, Candidate};
use replicator::{Lsn, changes, fence};
use tokio::sync::{Mutex, mpsc, watch};
use tokio_postgres::Client;

use super::compare::{self, Comparison};
use super::databases::{Databases, Purpose};
use super::drift::Pair;
use super::events::Events;
use super::extensions::ExtensionRows;
use super::fencing::Fenced;
use super::large_objects::LargeObjects;
use super::live::Live;
use super::mirrored;
use super::reconfigure::Staff;
use super::streams::Streams;
use super::unlogged::UnloggedRows;
use crate::audit::Audit;
use crate::causes::chain;
use crate::clock::{self, Steady};
use crate::config::model::{Placement, Resource};
use crate::drivers::{Endpoint, Operation, Plan, Provisioning, Wanted};
use crate::feeds::external::Secret;
use crate::fronts::pools::{Pool, Reach};
use crate::fronts::postgres::{Active, PostgresFront};
use crate::fronts::routes::ResourceFront;
use crate::lock::lock;
use crate::store::Journal;

/// An event with the run whose effect reports it: a late answer of an ended run must not count for the next one.
#[derive(Clone, Debug)]
pub struct Report {
    /// The run; none: the resource itself.
    pub run: Option<String>,
    /// A stream outlives the run in which it was begun: what it says is of its generation.
    pub stream: Option<Generation>,
    /// What happened.
    pub event: Event,
}

/// What the effects of one resource work with.
pub struct Hands {
    /// The resource.
    pub resource: Arc<Live>,
    /// Its HTTP front, if it has one.
    pub front: Option<Arc<ResourceFront>>,
    /// Its PostgreSQL front, if it has one.
    pub postgres: Option<Arc<PostgresFront>>,
    /// Control connections.
    pub databases: Arc<Databases>,
    /// Streams between the placements.
    pub streams: Arc<Streams>,
    /// What is carried beside them.
    pub large_objects: Arc<LargeObjects>,
    pub(super) unlogged: UnloggedRows,
    pub(super) extensions: Arc<ExtensionRows>,
    /// By zone.
    pub drivers: BTreeMap<String, ZoneDriver>,
    /// Endpoints by zone, resolved.
    pub endpoints: Endpoints,
    /// History.
    pub journal: Arc<Journal>,
    /// Where what is done is written down.
    pub audit: Audit,
    /// Who listens hears of changes here.
    pub events: Arc<Events>,
    /// This node, where several may lead.
    pub(super) me: Option<Candidate>,
    /// Has it begin anew, and says why.
    pub(super) begins_anew: Box<dyn Fn(String) + Send + Sync>,
    reports: mpsc::UnboundedSender<Report>,
    /// By zone: why what is there is not its driver's yet.
    pub(crate) unadopted: std::sync::Mutex<BTreeMap<String, Failure>>,
    pub(super) staff: std::sync::Mutex<Staff>,
    /// What the last fence told so far: the sequences to set.
    pub(super) fenced: watch::Sender<Fenced>,
    /// When the gate began to close for the run under way.
    pub(super) held_since: std::sync::Mutex<Option<Instant>>,
    /// Of the migration under way: its deadlines pass whatever the wall clock does.
    pub(super) steady: std::sync::Mutex<Steady>,
    /// Held while a fence goes up, so that undoing it never overtakes it.
    pub(super) fencing: Mutex<()>,
    /// Who was still inside when half of the time for a drain had passed.
    pub(super) undrained: std::sync::Mutex<Option<String>>,
    /// The run, and the stamp of the old primary's schema when it was found to be the shadow's.
    pub(super) compared: Mutex<Option<(String, String)>>,
    /// Snapshot of the new primary at the end marker.
    marker_snapshot: Mutex<Option<(Generation, Arc<Client>)>>,
    /// The generation that was committed, and what there is of its end marker.
    comparison: Mutex<Option<(Generation, AtMarker)>>,
}

pub(super) type Failure = String;

/// How long the release waits for sessions of the database that are still getting ready.
const READY: Duration = Duration::from_secs(1);
/// How long everything about a placement may take that is not its driver's: a database is warmed up for minutes.
const PREPARED: Duration = Duration::from_mins(10);

/// What there is of both sides as they were at the end marker.
enum AtMarker {
    /// The old primary's and the new one's.
    Snapshots(Arc<Client>, Arc<Client>),
    /// How those compared, and the tables that only live data can tell.
    Found(Comparison, BTreeSet<String>),
}

impl Hands {
    /// Nothing is done yet.
    #[allow(clippy::too_many_arguments)]
    pub fn new(
        resource: Arc<Live>,
        front: Option<Arc<ResourceFront>>,
        postgres: Option<Arc<PostgresFront>>,
        databases: Arc<Databases>,
        streams: Arc<Streams>,
        drivers: BTreeMap<String, ZoneDriver>,
        endpoints: Endpoints,
        large_objects: Arc<LargeObjects>,
        journal: Arc<Journal>,
        audit: Audit,
        events: Arc<Events>,
        me: Option<Candidate>,
        begins_anew: Box<dyn Fn(String) + Send + Sync>,
        reports: mpsc::UnboundedSender<Report>,
    ) -> Self {
        Self {
            unlogged: UnloggedRows::new(resource.clone(), databases.clone()),
            extensions: Arc::new(ExtensionRows::new(resource.clone(), databases.clone())),
            resource,
            front,
            postgres,
            databases,
            streams,
            drivers,
            endpoints,
            large_objects,
            journal,
            audit,
            events,
            me,
            begins_anew,
            reports,
            unadopted: std::sync::Mutex::default(),
            staff: std::sync::Mutex::default(),
            fenced: watch::Sender::default(),
            held_since: std::sync::Mutex::default(),
            fencing: Mutex::default(),
            undrained: std::sync::Mutex::default(),
            steady: std::sync::Mutex::new(Steady::begin()),
            compared: Mutex::default(),
            marker_snapshot: Mutex::default(),
            comparison: Mutex::default(),
        }
    }

    /// By what the databases know this node, where several may lead.
    pub(super) fn holder(&self) -> Option<&str> {
        self.me.as_ref().map(|me| &*me.id)
    }

    /// The policy now.
    pub fn policy(&self) -> Policy {
        self.resource.load().policy.clone()
    }

    /// The settings now.
    pub fn settings(&self) -> Arc<Resource> {
        self.resource.load()
    }

    /// The gates close and open here, at once and in the order in which the machine wants it: a task that was cancelled a
    /// moment too late must not close what the next one has opened. PostgreSQL's closes when HTTP has drained.
    pub fn turn_gate(&self, effect: &Effect) {
        match effect {
            Effect::CloseGate | Effect::TakeOver { .. } => {
                *lock(&self.held_since) = Some(clock::monotonic());
                if let Some(front) = &self.front {
                    front.gate.close();
                }
                if let Some(front) = &self.postgres {
                    front.turnstile.arm();
                }
            }
            Effect::OpenGate => self.open_gates(),
            _ => {}
        }
    }

    /// PostgreSQL first: what comes by HTTP may need it. Who waits is let go in the policy's ramp.
    pub fn open_gates(&self) {
        let ramp = self.policy().release;
        if let Some(front) = &self.postgres {
            front.turnstile.open_in_ramp(ramp);
        }
        if let Some(front) = &self.front {
            front.gate.open_in_ramp(ramp);
        }
    }

    /// Whether anybody is held.
    pub fn gates_closed(&self) -> bool {
        self.front.as_ref().is_some_and(|front| front.gate.is_closed())
            || self.postgres.as_ref().is_some_and(|front| front.turnstile.is_closed())
    }

    /// Carries out `effect`, wanted by `state`, within its patience. Cancelling it is safe; a fence goes on in the server until
    /// whoever undoes it ends its session there.
    pub async fn perform(&self, effect: &Effect, state: &State) -> Result<(), Failure> {
        let patience = match effect {
            Effect::ProvisionShadow { zone } | Effect::Scale { zone, .. } => Some(self.time_to_scale(zone)),
            other => patience(other),
        };
        let Some(patience) = patience else { return self.carry_out(effect, state).await };
        if let Ok(result) = tokio::time::timeout(patience, self.carry_out(effect, state)).await {
            return result;
        }
        // Whatever connection it waited on may be dead without saying so.
        self.databases.forget_all().await;
        Err(format!("not done within {} s", patience.as_secs()))
    }

    /// How long it may take until a placement has its workers, and its database is ready for them.
    pub(super) fn time_to_scale(&self, zone: &Zone) -> Duration {
        PREPARED + self.driver(zone).map_or(Duration::ZERO, |driver| driver.deadline)
    }

    async fn carry_out(&self, effect: &Effect, state: &State) -> Result<(), Failure> {
        if let Some(done) = self.without_database(effect, state) {
            return done;
        }
        let run = state.run.as_ref();
        let say = |event| self.report(run.map(|run| run.id.clone()), event);
        match effect {
            Effect::ProvisionShadow { zone } => self.provision(zone, state).await,
            Effect::RunStream { generation, source, target } => {
                if state.phase == Phase::Released {
                    // The old primary still is what it was at the marker: the last chance to look at it.
                    self.start_comparison(state, source, target).await;
                }
                self.streams.run(*generation, source, target).await?;
                self.report_stream(*generation, Event::StreamUp);
                self.clear_fence(source).await;
                Ok(())
            }
            Effect::EndStream { generation, source } => {
                let stray = self.streams.end(*generation, source).await?;
                if stray > 0 {
                    tracing::error!(
                        resource = %self.resource.name, zone = %source, rows = stray,
                        "rows were written to the old primary after its fence: a client goes round it"
                    );
                }
                say(Event::OldStreamGone);
                Ok(())
            }
            Effect::Scale { zone, capacity } => {
                self.scale(zone, *capacity, state).await?;
                match capacity {
                    Capacity::Full => say(Event::ShadowScaled),
                    // What an aborted run leaves behind retires nothing: by now the next run may soak.
                    Capacity::Shadow if run.is_some() => say(Event::OldPrimaryRetired),
                    Capacity::Shadow => {}
                }
                Ok(())
            }
            // The controller answers it from the world it holds.
            Effect::CheckGuards | Effect::CloseRun { .. } => Ok(()),
            Effect::MakeReverseSlot { generation, zone } => {
                let run = run.ok_or("no migration is under way")?;
                if state.phase == Phase::Warm {
                    self.compare_schemas(run, state.generation).await?;
                }
                self.make_reverse_slot(*generation, zone, run).await?;
                if state.phase == Phase::Warm {
                    // The last thing before anybody waits.
                    let zones = [&*run.from.0, &*run.to.0];
                    self.large_objects.catch_up(zones, state.generation.0).await?;
                    self.unlogged.prepare(zones, state.generation.0).await?;
                    self.extensions.prepare(zones, state.generation.0).await?;
                    let carry = async |sides: Sides<'_>| changes::carry(sides, zones[0]).await;
                    self.databases.beside(zones, state.generation.0, Purpose::Control, carry).await?;
                    loop {
                        self.prepare_fence(run, state.generation).await?;
                        self.clear_way(&run.from).await?;
                        // What was waited for may have been DDL.
                        if self.is_as_compared(run).await? {
                            break;
                        }
                        self.compare_schemas(run, state.generation).await?;
                    }
                }
                say(Event::ReverseSlotMade);
                Ok(())
            }
            Effect::TakeOver { zone, lost, generation } => {
                self.take_over(zone, lost, *generation, state).await?;
                say(Event::TakenOver);
                Ok(())
            }
            Effect::DropReverseSlot { run, generation, zone } => {
                let client = self.control(zone).await?;
                self.streams.drop_way_back(*generation, run, &client).await
            }
            Effect::CloseGate => {
                say(Event::GateClosed);
                self.drain(&state.primary, run.map(|run| &run.to)).await?;
                say(Event::DrainFinished);
                Ok(())
            }
            Effect::Fence { zone, generation } => {
                let run = run.ok_or("no migration is under way")?;
                self.fence(zone, *generation, run, |marker| say(Event::FenceUp { marker })).await
            }
            Effect::AwaitMarker { marker } => {
                self.streams.applied(state.generation, Lsn(marker.0)).await?;
                say(Event::MarkerApplied);
                Ok(())
            }
            Effect::SetSequences { zone } => {
                self.set_sequences(zone, state).await?;
                say(Event::SequencesSet);
                Ok(())
            }
            Effect::LiftFence { zone, generation } => {
                self.lift_fence(zone, *generation, state).await?;
                say(Event::FenceLifted);
                Ok(())
            }
            Effect::SwapPool { zone, generation } => {
                self.swap_pool(zone, *generation)?;
                self.sessions_are_ready().await;
                say(Event::PoolSwapped);
                Ok(())
            }
            Effect::OpenGate => {
                say(Event::GateOpened);
                self.clear_fence(&state.primary).await;
                Ok(())
            }
            Effect::Compare => {
                let equal = self.compare(state).await?;
                say(Event::Compared { equal });
                if equal { Ok(()) } else { Err("both sides differ".into()) }
            }
        }
    }

    /// Who listens there hears what the first one says; who is late gets ready afterwards.
    pub(super) async fn sessions_are_ready(&self) {
        if let Some(front) = &self.postgres {
            let _ = tokio::time::timeout(READY, front.turnstile.prepared()).await;
        }
    }

    /// Tells the controller.
    pub fn report(&self, run: Option<String>, event: Event) {
        // The controller only goes away when the process does.
        let _ = self.reports.send(Report { run, stream: None, event });
    }

    /// Tells the controller what became of a stream.
    pub fn report_stream(&self, generation: Generation, event: Event) {
        let _ = self.reports.send(Report { run: None, stream: Some(generation), event });
    }

    pub(super) async fn control(&self, zone: &Zone) -> Result<Arc<Client>, Failure> {
        self.databases.get(&zone.0, Purpose::Control).await.map_err(chain)
    }

    pub(super) fn driver(&self, zone: &Zone) -> Option<&ZoneDriver> {
        self.drivers.get(&*zone.0)
    }

    /// Workers that a placement has at this capacity.
    pub fn workers(&self, zone: &Zone, capacity: Capacity) -> u32 {
        let resource = self.resource.load();
        let full = resource.placements.get(&*zone.0).map_or(1, |placement| placement.capacity);
        match capacity {
            Capacity::Full => full,
            Capacity::Shadow => resource.policy.shadow_capacity.of(full).min(full),
        }
    }

    async fn provision(&self, zone: &Zone, state: &State) -> Result<(), Failure> {
        let Some(driver) = self.driver(zone) else { return Ok(()) };
        let capacity = self.workers(zone, Capacity::Shadow);
        let operation = driver.operation("provision", zone, capacity, state);
        let wanted = Wanted { capacity, settings: self.mirrored(zone, &state.primary).await? };
        driver.does.provision(&operation, &wanted).await.map_err(chain)?;
        self.locate(zone, driver, driver.does.known_endpoint()).await
    }

    /// What a database made in `zone` must have of the primary's configuration.
    async fn mirrored(&self, zone: &Zone, primary: &Zone) -> Result<BTreeMap<String, String>, Failure> {
        let has =
            |zone: &Zone| self.resource.load().placements.get(&*zone.0).is_some_and(Placement::has_database);
        if !has(zone) || !has(primary) {
            return Ok(BTreeMap::new());
        }
        let settings = self.databases.settings(&primary.0).map_err(chain)?;
        let client = replicator::postgres::connect_untouched(&settings.dsn, "godwit-settings").await;
        mirrored::settings(&client.map_err(chain)?).await
    }

    /// Learns from the driver where the placement is, where that is left to it and not `known`.
    pub async fn locate(
        &self,
        zone: &Zone,
        driver: &ZoneDriver,
        known: Option<Endpoint>,
    ) -> Result<(), Failure> {
        let resource = self.resource.load();
        let Some(placement) = resource.placements.get(&*zone.0).filter(|it| it.provided.any()) else {
            return Ok(());
        };
        let endpoint = match known {
            Some(endpoint) => endpoint,
            None => driver.does.endpoint().await.map_err(chain)?,
        };
        let lacks = |what: &str| Err(format!("the driver of {zone} does not say where the {what} is"));
        if placement.provided.http && endpoint.http.is_empty() && self.front.is_some() {
            return lacks("service");
        }
        if placement.provided.postgres && endpoint.dsn.is_none() {
            return lacks("database");
        }
        self.learn(zone, &endpoint, driver.password.as_ref()).await
    }

    /// Requests go to where the primary's driver says that it is.
    pub async fn find_primary(&self, zone: &Zone, generation: Generation) -> Result<(), Failure> {
        let Some(driver) = self.driver(zone) else { return Ok(()) };
        // What was known before may be so no more.
        self.locate(zone, driver, None).await?;
        let Some(front) = &self.front else { return Ok(()) };
        let (pool, upstreams) = (front.pool.load(), self.upstreams(zone, Capacity::Full));
        // After a move it is another one's pool.
        if pool.generation != generation.0 || pool.upstreams() == upstreams {
            return Ok(());
        }
        front.pool.set_upstreams(generation.0, &upstreams).map(drop).map_err(chain)
    }

    /// What the driver says of where the placement is counts from now on.
    pub async fn learn(
        &self,
        zone: &Zone,
        endpoint: &Endpoint,
        password: Option<&Secret>,
    ) -> Result<(), Failure> {
        if self.resource.learn(&zone.0, endpoint, password)? {
            tracing::info!(resource = %self.resource.name, %zone, http = ?endpoint.http, "the driver says where it is");
            self.endpoints.learn(&self.resource.load(), &zone.0).await;
            self.databases.forget_zone(&zone.0).await;
        }
        Ok(())
    }

    /// Brings workers of a placement to the number of now: the primary's are at full capacity. Nobody is sent to a worker that is about to
    /// end.
    pub(super) async fn adjust(&self, zone: &Zone, capacity: Capacity, state: &State) -> Result<(), Failure> {
        let Some(driver) = self.driver(zone) else { return Ok(()) };
        let workers = self.workers(zone, capacity);
        let upstreams = self.upstreams(zone, capacity);
        if capacity == Capacity::Shadow {
            self.is_still_the_shadow(zone, state).await?;
        }
        let front = self.front.as_ref().filter(|_| capacity == Capacity::Full);
        let fewer = front.is_some_and(|front| upstreams.len() < front.pool.load().upstreams().len());
        if let Some(front) = front.filter(|_| fewer) {
            let gone = front.pool.set_upstreams(state.generation.0, &upstreams).map_err(chain)?;
            for endpoint in gone {
                endpoint.idle().await;
            }
        }
        let id = format!("adjust-{}-{zone}-{workers}-{}", state.resource, crate::rng::id());
        driver.does.scale(&Operation { id, deadline: driver.deadline }, workers).await.map_err(chain)?;
        if let Some(front) = front.filter(|_| !fewer) {
            front.pool.set_upstreams(state.generation.0, &upstreams).map_err(chain)?;
        }
        Ok(())
    }

    /// What bringing `zone` to this capacity would do.
    pub async fn plan(
        &self,
        action: crate::drivers::Action,
        zone: &Zone,
        capacity: u32,
    ) -> Result<Plan, Failure> {
        match self.driver(zone) {
            Some(driver) => driver.does.plan(action, &capacity.into()).await.map_err(chain),
            None => Ok(Plan::default()),
        }
    }

    pub(super) async fn scale(&self, zone: &Zone, capacity: Capacity, state: &State) -> Result<(), Failure> {
        let workers = self.workers(zone, capacity);
        if let Some(driver) = self.driver(zone) {
            if capacity == Capacity::Shadow {
                self.is_still_the_shadow(zone, state).await?;
            }
            let operation = driver.operation("scale", zone, workers, state);
            driver.does.scale(&operation, workers).await.map_err(chain)?;
        }
        if capacity == Capacity::Full && state.phase == Phase::Requested {
            self.answers(zone).await?;
            if self.resource.load().has_database() {
                self.warm_up(zone, state).await?;
                // That may have taken minutes.
                self.answers(zone).await?;
            }
        }
        Ok(())
    }

    /// Where several nodes may lead: by what the zone's own database knows, nobody else has moved the service there, or may. A node that
    /// was cut off from the databases and not from a driver takes no worker from a service that it does not lead any more.
    pub(super) async fn is_still_the_shadow(&self, zone: &Zone, state: &State) -> Result<(), Failure> {
        let Some(me) = self.me.as_ref().filter(|_| self.databases.settings(&zone.0).is_ok()) else {
            return Ok(());
        };
        let looked = async {
            let client = self.control(zone).await?;
            lead::look(&client, &state.resource).await.map_err(chain)
        };
        let lease = looked.await.map_err(|why| format!("nobody knows who leads {zone}: {why}"))?;
        match lease.another_leads(state.generation.0, me) {
            None => Ok(()),
            Some(why) => Err(format!("{zone} is not this node's shadow any more: {why}")),
        }
    }

    /// The shadow takes over with the schema it has: what was changed on the old primary until the fence is up must be there.
    async fn compare_schemas(&self, run: &Run, generation: Generation) -> Result<(), Failure> {
        let zones = [&*run.from.0, &*run.to.0];
        let pair = Pair { primary: zones[0], shadow: zones[1], generation };
        let resource = self.resource.load();
        let stamp =
            super::drift::followed(&resource, pair, &self.databases, &self.streams, &self.audit).await?;
        let mut lacks =
            super::drift::lacks(&self.databases, zones, &self.policy(), self.postgres.as_deref()).await;
        lacks.extend(super::drift::leases(&self.databases, zones, &resource.name).await);
        if !lacks.is_empty() {
            return Err(lacks.join("; "));
        }
        if let Some(front) = &self.postgres {
            let (here, there) = (self.control(&run.from).await?, self.control(&run.to).await?);
            front.learn_numbers(&run.to.0, &here, &there).await.map_err(chain)?;
        }
        *self.compared.lock().await = Some((run.id.clone(), stamp));
        Ok(())
    }

    /// Nothing that the schema's stamp tells of was changed since it was compared.
    async fn is_as_compared(&self, run: &Run) -> Result<bool, Failure> {
        let stamp = fence::schema_stamp(&*self.control(&run.from).await?).await.map_err(chain)?;
        Ok(*self.compared.lock().await == Some((run.id.clone(), stamp)))
    }

    async fn make_reverse_slot(&self, generation: Generation, zone: &Zone, run: &Run) -> Result<(), Failure> {
        let client = self.control(zone).await?;
        let (name, claims) = (&self.resource.name, (&*run.id, run.started.0));
        let claimed = fence::claim_way_back(&client, name, generation.0, claims, self.holder()).await;
        claimed.map_err(chain)?;
        self.streams.make_slots(generation, &client).await?;
        // Under the hold no handshake may be needed: the connections of the fence and the snapshot are made now.
        if let Some(source) = self.resource.load().other(&zone.0) {
            self.databases.get(&source.zone, Purpose::Fence).await.map_err(chain)?;
        }
        self.databases.get(&zone.0, Purpose::Snapshot).await.map_err(chain)?;
        Ok(())
    }

    fn swap_pool(&self, zone: &Zone, generation: Generation) -> Result<(), Failure> {
        if let Some(front) = &self.postgres
            && front.active().generation < generation.0
        {
            let next = Active { generation: generation.0, zone: zone.0.clone() };
            front.swap(next).map_err(|stale| stale.to_string())?;
        }
        let Some(front) = &self.front else { return Ok(()) };
        if front.pool.load().generation >= generation.0 {
            return Ok(());
        }
        let upstreams = self.upstreams(zone, Capacity::Full);
        front
            .pool
            .swap(Pool::new(generation.0, &*zone.0, &upstreams))
            .map(drop)
            .map_err(|stale| stale.to_string())
    }

    /// The endpoints of a placement at this capacity.
    pub fn upstreams(&self, zone: &Zone, capacity: Capacity) -> Vec<SocketAddr> {
        let all = self.endpoints.of(&zone.0);
        let workers =
            if self.driver(zone).is_some() { self.workers(zone, capacity) as usize } else { all.len() };
        all[..workers.min(all.len())].to_vec()
    }

    /// Verification is worth much, but not a longer hold or a failed cutover: a failure here is only logged.
    pub(super) async fn take_marker_snapshot(&self, zone: &Zone, generation: Generation) {
        let taken = async {
            let client = self.databases.take(&zone.0, Purpose::Snapshot).await.map_err(chain)?;
            compare::begin(&client).await?;
            Ok::<_, Failure>(client)
        };
        match taken.await {
            Ok(client) => *self.marker_snapshot.lock().await = Some((generation, client)),
            Err(why) => {
                tracing::warn!(%zone, %why, "no snapshot at the end marker: verification will look at live data");
            }
        }
    }

    /// What was to be compared is so no more: a snapshot keeps VACUUM from all that died since.
    pub(super) async fn give_snapshots_up(&self) {
        *self.marker_snapshot.lock().await = None;
        *self.comparison.lock().await = None;
    }

    async fn start_comparison(&self, state: &State, primary: &Zone, old: &Zone) {
        let Some((generation, new)) = self.marker_snapshot.lock().await.take() else { return };
        if generation != state.generation {
            return;
        }
        match self.databases.take(&old.0, Purpose::Snapshot).await.map_err(chain) {
            Ok(client) => match compare::begin(&client).await {
                Ok(()) => {
                    *self.comparison.lock().await = Some((generation, AtMarker::Snapshots(client, new)));
                }
                Err(why) => {
                    tracing::warn!(zone = %old, %why, "no snapshot of the old primary at the end marker");
                }
            },
            Err(why) => {
                tracing::warn!(zone = %old, %why, primary = %primary, "old primary cannot be compared");
            }
        }
    }

    async fn compare(&self, state: &State) -> Result<bool, Failure> {
        let Some(run) = &state.run else { return Ok(false) };
        let kept =
            self.comparison.lock().await.take().filter(|(generation, _)| *generation == state.generation);
        let found = match kept {
            Some((_, AtMarker::Snapshots(old, new))) => Some(compare::snapshots(&old, &new).await?),
            Some((_, AtMarker::Found(found, lost))) => Some((found, lost)),
            None => None,
        };
        let (comparison, at) = match found {
            Some((found, lost)) if lost.is_empty() => (found, "at the end marker"),
            Some((found, lost)) => {
                // Where these cannot be told yet, nothing else is looked at again.
                let at_marker = AtMarker::Found(found.clone(), lost.clone());
                *self.comparison.lock().await = Some((state.generation, at_marker));
                (found.and(self.live(run, state, Some(&lost)).await?), "at the end marker")
            }
            None => (self.live(run, state, None).await?, "on live data"),
        };
        if comparison.differences.is_empty() && !comparison.undecided.is_empty() {
            // It is looked again.
            return Err(format!("not all tables can be compared yet: {comparison}"));
        }
        let text = format!("{comparison} {at}");
        self.journal.note_comparison(&run.id, comparison.equal(), &text).map_err(chain)?;
        if comparison.equal() {
            tracing::info!(resource = %self.resource.name, run = %run.id, %text, "both sides are equal");
        } else {
            tracing::error!(resource = %self.resource.name, run = %run.id, %text, "both sides differ");
        }
        Ok(comparison.equal())
    }

    /// Compares what both databases have now, of all tables and large objects or `only` these tables.
    async fn live(
        &self,
        run: &Run,
        state: &State,
        only: Option<&BTreeSet<String>>,
    ) -> Result<Comparison, Failure> {
        // Sessions of their own: a digest runs in a transaction, into which nobody else's statements may fall.
        let old = self.databases.take(&run.from.0, Purpose::Snapshot).await.map_err(chain)?;
        let new = self.databases.take(&run.to.0, Purpose::Snapshot).await.map_err(chain)?;
        let (zones, generation) = ([&*run.to.0, &*run.from.0], state.generation);
        let caught_up = || self.streams.caught_up(generation, &new);
        let follows = || super::drift::follows(&self.databases, &self.streams, zones);
        let mut found = compare::live([&new, &old], only, caught_up, follows).await?;
        if only.is_none() {
            let objects = self.large_objects.differing([&new, &old], zones, generation.0, 1.0).await?;
            let lines =
                objects.iter().map(|(number, kind)| format!("large object {number}: {}", kind.words()));
            found.differences.extend(lines);
        }
        Ok(found)
    }
}

/// How long an effect may take before it counts as failed; none: it waits for the world, and the machine has deadlines.
fn patience(effect: &Effect) -> Option<Duration> {
    match effect {
        Effect::RunStream { .. }
        | Effect::AwaitMarker { .. }
        | Effect::CloseGate
        | Effect::Compare
        | Effect::CheckGuards
        | Effect::CloseRun { .. } => None,
        Effect::ProvisionShadow { .. } | Effect::Scale { .. } => Some(PREPARED),
        Effect::TakeOver { .. } => Some(Duration::from_mins(3)),
        // Shorter than what the machine gives it, so that it is said what was in the way; and enough to read both schemas, where there are many
        // tables, and to follow. Nobody waits for it.
        Effect::MakeReverseSlot { .. } => Some(Duration::from_secs(150)),
        Effect::EndStream { .. }
        | Effect::DropReverseSlot { .. }
        | Effect::Fence { .. }
        | Effect::SetSequences { .. }
        | Effect::LiftFence { .. }
        | Effect::SwapPool { .. }
        | Effect::OpenGate => Some(Duration::from_secs(15)),
    }
}

/// The driver of a placement.
#[derive(Clone)]
pub struct ZoneDriver {
    /// Does it.
    pub does: Arc<dyn Provisioning>,
    /// How long one of its operations may take.
    pub deadline: Duration,
    /// Password of the databases that it makes; none: that of the primary.
    pub password: Option<Secret>,
}

impl ZoneDriver {
    /// The operation that the machine wants in `state`: the same after a crash or a lost reply, and another one each time the
    /// machine comes there anew.
    pub(super) fn operation(&self, what: &str, zone: &Zone, capacity: u32, state: &State) -> Operation {
        let State { resource, generation, phase, since, .. } = state;
        let id =
            format!("{what}-{resource}-{zone}-{capacity}-g{}-{}-{}", generation.0, phase.name(), since.0);
        Operation { id, deadline: self.deadline }
    }
}

/// Endpoints by zone, as the front reaches them.
#[derive(Default)]
pub struct Endpoints(BTreeMap<String, Arc<Reach>>);

impl Endpoints {
    /// Those of the configuration, and of drivers that know theirs.
    pub fn new(reaches: BTreeMap<String, Arc<Reach>>) -> Self {
        Self(reaches)
    }

    fn of(&self, zone: &str) -> Vec<SocketAddr> {
        self.0.get(zone).map(|reach| reach.endpoints()).unwrap_or_default()
    }

    /// How those of the placement in `zone` are reached.
    pub(super) fn reach(&self, zone: &str) -> Arc<Reach> {
        self.0.get(zone).cloned().unwrap_or_default()
    }

    /// The same, if any has a name.
    pub(super) fn named(&self, zone: &str) -> Option<&Arc<Reach>> {
        self.0.get(zone).filter(|reach| reach.has_names())
    }

    /// The endpoints of the placement in `zone` are those that it has now.
    async fn learn(&self, resource: &Resource, zone: &str) {
        if let Some((reach, placement)) = self.0.get(zone).zip(resource.placements.get(zone)) {
            reach.learn(&placement.http).await;
        }
    }
}
