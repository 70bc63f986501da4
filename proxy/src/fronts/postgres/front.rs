//! The front of one resource: where its sessions go, who may come, whom a cancel request means.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, Once};
use std::time::Duration;

use arc_swap::ArcSwap;
use pingora::server::ShutdownWatch;
use replicator::postgres::{Dsn, dial};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use tokio_postgres::Client;

use super::backend::Identity;
use super::login::{Tls, TlsError};
use super::meters::Meters;
use super::pool::Pool;
use super::protocol::message;
use super::protocol::oids::Catalogue;
use super::protocol::scram::Verifier;
use super::rehearsal::{Login, Roles};
use super::turnstile::Turnstile;
use super::verifiers::{self, Asked, Unknown};
use crate::config::model::{HoldLimits, PostgresAuth, PostgresFront as Settings, Resource};
use crate::fronts::latencies::Recorder;
use crate::fronts::pools::Stale;
use crate::lock::lock;

/// Names of custom settings that are kept beside those of the configuration.
const NAMES: usize = 256;
/// Of how many generations it is known how they number types and tables: for clients that share connections and say nothing for long.
const GENERATIONS: usize = 8;
/// How long passing a cancel request on may take.
const CANCEL: Duration = Duration::from_secs(5);

/// Where sessions go now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Active {
    /// The resource's generation.
    pub generation: u64,
    /// The zone that is primary in it.
    pub zone: Arc<str>,
}

/// The PostgreSQL front of a resource.
pub struct PostgresFront {
    /// The resource's name.
    pub name: Arc<str>,
    /// Its settings.
    pub settings: Settings,
    /// Holds sessions between transactions.
    pub turnstile: Arc<Turnstile>,
    pub(super) tls: Option<Tls>,
    pub(super) meters: Meters,
    pub(super) made_up: String,
    /// Clients share connections.
    pub(super) pool: Option<Pool>,
    pub(super) roles: Roles,
    places: BTreeMap<Arc<str>, Dsn>,
    active: ArcSwap<Active>,
    /// One writer at a time.
    writer: Mutex<()>,
    sessions: AtomicUsize,
    keys: Mutex<HashMap<Key, Slot>>,
    /// The last number of a session that is not a server's own.
    numbers: AtomicU32,
    custom: Mutex<BTreeSet<String>>,
    /// There were more of them than are kept.
    forgets: AtomicBool,
    numbered: Mutex<Numbered>,
    asked: Arc<Asked>,
    /// Whether sessions are to end.
    ends: watch::Sender<bool>,
    /// The end of the process reaches them, too.
    follows: Once,
}

/// What a client knows its session by: a number and a secret.
type Key = (u32, Box<[u8]>);

/// A session at a server.
#[derive(Clone, Debug)]
struct Target {
    zone: Arc<str>,
    pid: u32,
    secret: Box<[u8]>,
}

/// How types and tables are numbered.
#[derive(Debug, Default)]
struct Numbered {
    /// In the primaries of the last generations.
    generations: BTreeMap<u64, Arc<Catalogue>>,
    /// In the database that a move goes to.
    next: Option<(Arc<str>, Arc<Catalogue>)>,
}

/// Where the session of a key is now.
type Slot = Arc<Mutex<Whereabouts>>;

#[derive(Debug, Default)]
struct Whereabouts {
    /// None: nowhere, between two transactions.
    target: Option<Target>,
    /// It was asked to cancel what it does there.
    cancelled: bool,
    /// Its client waits with something to run, and whether it was asked to cancel that.
    waits: Option<bool>,
}

impl PostgresFront {
    /// An open front onto the database of `active`. None of its files is read later than here but the one of verifiers.
    pub fn new(
        resource: &Resource,
        settings: &Settings,
        hold: HoldLimits,
        active: Active,
        recorder: &Arc<Recorder>,
    ) -> Result<Arc<Self>, TlsError> {
        let name: Arc<str> = resource.name.as_str().into();
        let placements = resource.placements.values();
        let places = placements.filter_map(|placement| {
            Some((Arc::from(placement.zone.as_str()), placement.postgres.as_ref()?.dsn.clone()))
        });
        // Where requests by HTTP are measured, they are what users wait for.
        let recorder = resource.http.is_none().then(|| Arc::clone(recorder));
        Ok(Arc::new(Self {
            meters: Meters::new(&name, recorder),
            tls: settings.tls.as_ref().map(Tls::new).transpose()?,
            settings: settings.clone(),
            turnstile: Turnstile::new(hold),
            made_up: crate::rng::secret(),
            pool: settings.pool.map(Pool::new),
            roles: Roles::default(),
            places: places.collect(),
            active: ArcSwap::from_pointee(active),
            writer: Mutex::default(),
            sessions: AtomicUsize::new(0),
            keys: Mutex::default(),
            numbers: AtomicU32::new(0),
            custom: Mutex::new(settings.settings.iter().map(|name| name.to_ascii_lowercase()).collect()),
            forgets: AtomicBool::new(false),
            numbered: Mutex::default(),
            asked: Arc::default(),
            ends: watch::Sender::new(false),
            follows: Once::new(),
            name,
        }))
    }

    /// Nobody is served here any more: sessions end, each when it has no transaction open.
    pub fn leave(&self) {
        self.ends.send_replace(true);
    }

    /// Tells a session when it is to end: the process does, as `process` says, or the front.
    pub(super) fn ends(self: &Arc<Self>, process: &ShutdownWatch) -> ShutdownWatch {
        self.follows.call_once(|| {
            let (front, mut process) = (Arc::downgrade(self), process.clone());
            tokio::spawn(async move {
                // What tells it is gone only with all sessions.
                let _ = process.wait_for(|ends| *ends).await;
                if let Some(front) = front.upgrade() {
                    front.leave();
                }
            });
        });
        let mut ends = self.ends.subscribe();
        if *ends.borrow() {
            ends.mark_changed();
        }
        ends
    }

    /// Where sessions go now.
    pub fn active(&self) -> Arc<Active> {
        self.active.load_full()
    }

    /// Sends sessions to the next generation from now on: those that begin, and those that are held.
    pub fn swap(&self, next: Active) -> Result<(), Stale> {
        let _writer = lock(&self.writer);
        let active = self.active();
        if active.generation >= next.generation {
            let (offered, active, zone) = (next.generation, active.generation, Arc::clone(&active.zone));
            return Err(Stale { offered, active, zone });
        }
        let numbered = &mut *lock(&self.numbered);
        if let Some((_, catalogue)) = numbered.next.take().filter(|(zone, _)| *zone == next.zone) {
            numbered.generations.insert(next.generation, catalogue);
        }
        while numbered.generations.len() > GENERATIONS {
            numbered.generations.pop_first();
        }
        self.active.store(Arc::new(next));
        if let Some(pool) = &self.pool {
            pool.clear();
        }
        Ok(())
    }

    /// Connections of clients, those included that have not logged in.
    pub fn sessions(&self) -> usize {
        self.sessions.load(SeqCst)
    }

    /// Clients that wait for a connection of the pool.
    pub fn pool_waits(&self) -> usize {
        self.pool.as_ref().map_or(0, |pool| pool.filled().waiting)
    }

    /// Sets the gauges that are read, not counted.
    pub fn measure(&self) {
        self.meters.measure(self.sessions(), &self.turnstile.stats());
        if let Some(pool) = &self.pool {
            self.meters.measure_pool(&pool.filled());
        }
    }

    pub(super) fn dsn(&self, zone: &str) -> Option<&Dsn> {
        self.places.get(zone)
    }

    /// Counts a connection in; how many there are with it.
    pub(super) fn come(self: &Arc<Self>) -> (Guest, usize) {
        let count = self.sessions.fetch_add(1, SeqCst) + 1;
        (Guest { front: Arc::clone(self), login: None }, count)
    }

    /// The verifier of a role; none: it has none, or there is no such role.
    pub(super) async fn verifier(&self, user: &str) -> Result<Option<Verifier>, Unknown> {
        let query = match &self.settings.auth {
            PostgresAuth::Trust => return Ok(None),
            PostgresAuth::File(path) => return verifiers::in_file(path, user).await,
            PostgresAuth::Query(query) => query.as_deref().unwrap_or(verifiers::QUERY),
        };
        let active = self.active();
        match self.dsn(&active.zone) {
            Some(dsn) => self.asked.get(&active.zone, dsn, query, user).await,
            None => Ok(None),
        }
    }

    /// A connection of Godwit's own to the database of this zone, where sessions are.
    pub(super) async fn control(&self, active: &Active) -> Result<Arc<Client>, Unknown> {
        let dsn = self.dsn(&active.zone).ok_or(Unknown::NoAnswer)?;
        self.asked.client(&active.zone, dsn).await
    }

    /// Before a move to `zone`: asks the databases there and here how they number types and tables, so that clients can go on with
    /// the numbers that they know.
    pub async fn learn_numbers(
        &self,
        zone: &str,
        here: &Client,
        there: &Client,
    ) -> Result<(), tokio_postgres::Error> {
        let generation = self.active().generation;
        let (here, ()) = tokio::try_join!(catalogue(here), self.learn_numbers_there(zone, there))?;
        lock(&self.numbered).generations.insert(generation, Arc::new(here));
        Ok(())
    }

    /// The same where nothing can be asked here: what was known of here stays so.
    pub async fn learn_numbers_there(&self, zone: &str, there: &Client) -> Result<(), tokio_postgres::Error> {
        let there = catalogue(there).await?;
        lock(&self.numbered).next = Some((zone.into(), Arc::new(there)));
        Ok(())
    }

    /// How the primary of this generation numbers them, if that is known.
    pub(super) fn catalogue(&self, generation: u64) -> Option<Arc<Catalogue>> {
        lock(&self.numbered).generations.get(&generation).cloned()
    }

    /// How the database of this zone does, where sessions are or get ready for.
    pub(super) fn catalogue_in(&self, zone: &str) -> Option<Arc<Catalogue>> {
        let numbered = lock(&self.numbered);
        let active = self.active();
        if *active.zone == *zone {
            return numbered.generations.get(&active.generation).cloned();
        }
        numbered.next.as_ref().filter(|(next, _)| **next == *zone).map(|(_, catalogue)| Arc::clone(catalogue))
    }

    /// Names of custom settings that a session may have.
    pub(super) fn custom(&self) -> Vec<String> {
        lock(&self.custom).iter().cloned().collect()
    }

    /// A statement sets this custom setting. What the function that it is set in hides must be configured.
    pub(super) fn learn(&self, name: &str) {
        let mut custom = lock(&self.custom);
        if custom.contains(name) {
            return;
        }
        if custom.len() < NAMES + self.settings.settings.len() {
            custom.insert(name.to_owned());
        } else if !self.forgets.swap(true, SeqCst) {
            tracing::warn!(
                resource = %self.name, name, kept = custom.len(),
                "a custom setting does not go with its session: too many others were set; those that must are named in settings"
            );
        }
    }

    /// Whether sessions may have custom settings whose names are not among [`Self::custom`].
    pub(super) fn forgets(&self) -> bool {
        self.forgets.load(SeqCst)
    }

    /// A session's key, as its client is told; it means that server session until it is moved or dropped.
    pub(super) fn register(self: &Arc<Self>, zone: &Arc<str>, pid: u32, secret: &[u8]) -> Registered {
        let registered = self.registered((pid, secret.into()));
        registered.moved(zone, pid, secret);
        registered
    }

    /// A key of our own for a session that shares connections; it means none of the server's yet.
    pub(super) fn register_shared(self: &Arc<Self>) -> Registered {
        // Numbers of processes are positive, and so are these.
        let number = self.numbers.fetch_add(1, SeqCst) % (u32::MAX / 2) + 1;
        let secret = crate::rng::seed().to_be_bytes()[..4].into();
        self.registered((number, secret))
    }

    fn registered(self: &Arc<Self>, key: Key) -> Registered {
        let slot = Slot::default();
        lock(&self.keys).insert(key.clone(), Arc::clone(&slot));
        Registered { front: Arc::clone(self), key, slot }
    }

    /// Process numbers of its clients' sessions in this zone.
    pub fn processes(&self, zone: &str) -> Vec<i32> {
        let keys = lock(&self.keys);
        let process = |slot: &Slot| {
            let whereabouts = lock(slot);
            let target = whereabouts.target.as_ref().filter(|target| &*target.zone == zone)?;
            i32::try_from(target.pid).ok()
        };
        keys.values().filter_map(process).collect()
    }

    /// Passes a cancel request on to where its session is now. A wrong one is ignored, as the protocol has it.
    pub(super) async fn cancel(&self, pid: u32, secret: Vec<u8>) {
        let key = (pid, secret.into_boxed_slice());
        let Some(slot) = lock(&self.keys).get(&key).cloned() else { return };
        let target = {
            let mut whereabouts = lock(&slot);
            if let Some(asked) = &mut whereabouts.waits {
                *asked = true;
                return;
            }
            whereabouts.cancelled = whereabouts.target.is_some();
            whereabouts.target.clone()
        };
        if let Some(target) = target {
            self.pass_cancel(target).await;
        }
    }

    async fn pass_cancel(&self, target: Target) {
        let Some(dsn) = self.dsn(&target.zone) else { return };
        let passing = async {
            let mut socket = dial(dsn).await.map_err(std::io::Error::other)?.socket;
            let mut out = Vec::new();
            message::cancel(&mut out, target.pid, &target.secret);
            socket.write_all(&out).await?;
            socket.flush().await?;
            // The server closes it when it has sent the signal.
            socket.read(&mut [0]).await
        };
        match tokio::time::timeout(CANCEL, passing).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::debug!(resource = %self.name, %error, "cancel request not passed on"),
            Err(_) => tracing::debug!(resource = %self.name, "cancel request not passed on in time"),
        }
    }
}

async fn catalogue(client: &Client) -> Result<Catalogue, tokio_postgres::Error> {
    let mut catalogue = Catalogue::default();
    for row in client.query(Catalogue::QUERY, &[]).await? {
        let text = |place| row.try_get::<_, &str>(place);
        catalogue.take(text(0)?, row.try_get(1)?, text(2)?, text(3)?, row.try_get(4)?);
    }
    Ok(catalogue)
}

/// A counted connection; dropping it counts it out.
pub(super) struct Guest {
    front: Arc<PostgresFront>,
    login: Option<Login>,
}

impl Guest {
    /// Its client has proven to be this one.
    pub(super) fn is(&mut self, identity: &Identity) {
        self.login = Some(self.front.roles.comes(identity));
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.front.sessions.fetch_sub(1, SeqCst);
        if let Some(login) = &self.login {
            self.front.roles.leaves(login);
        }
    }
}

/// See [`PostgresFront::register`].
pub(super) struct Registered {
    front: Arc<PostgresFront>,
    key: Key,
    slot: Slot,
}

impl Registered {
    /// What the client is told.
    pub(super) fn key(&self) -> (u32, &[u8]) {
        (self.key.0, &self.key.1)
    }

    /// The session is another one of the server's now.
    pub(super) fn moved(&self, zone: &Arc<str>, pid: u32, secret: &[u8]) {
        let target = Some(Target { zone: Arc::clone(zone), pid, secret: secret.into() });
        let mut whereabouts = lock(&self.slot);
        (whereabouts.target, whereabouts.cancelled) = (target, false);
    }

    /// The client waits with something to run: who asks to cancel means that.
    pub(super) fn waits(&self) {
        lock(&self.slot).waits.get_or_insert(false);
    }

    /// The client waits no more. Whether somebody asked to cancel what it waited with.
    pub(super) fn goes_on(&self) -> bool {
        lock(&self.slot).waits.take() == Some(true)
    }

    /// Cancels what the session does there.
    pub(super) fn cancel(&self) {
        let mut whereabouts = lock(&self.slot);
        let Some(target) = whereabouts.target.clone() else { return };
        whereabouts.cancelled = true;
        let front = Arc::clone(&self.front);
        tokio::spawn(async move { front.pass_cancel(target).await });
    }

    /// The session is none of the server's any more. The secret of the one that it was, unless somebody asked to cancel what it did:
    /// the next one there might meet what was meant for it.
    pub(super) fn left(&self) -> Option<Box<[u8]>> {
        let was = std::mem::take(&mut *lock(&self.slot));
        was.target.filter(|_| !was.cancelled).map(|target| target.secret)
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        lock(&self.front.keys).remove(&self.key);
    }
}
