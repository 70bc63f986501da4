//! The `process` driver: PostgreSQL clusters and service workers as processes of this machine.
//!
//! Everything it started outlives it: pid files and a ledger in its directory let the next process carry on. An
//! operation that has begun runs to its end even when the caller stops waiting for it.

use std::fs::File;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use replicator::postgres::{Dsn, quote_literal};
use rustix::fs::{FlockOperation, flock};
use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio_postgres::NoTls;
use tokio_postgres::error::SqlState;
use tokio_util::sync::CancellationToken;

use self::cluster::{Cluster, ClusterError};
use self::workers::Workers;
use super::error::io;
use super::ledger::{Action, Ledger};
use super::{
    DriverError, Endpoint, Operation, PlacementStatus, Plan, Provisioning, Wanted, to_the_end, within,
};
use crate::config::model::{ProcessCluster, ProcessDriver};
use crate::lock::lock;

mod access;
pub mod cluster;
mod identity;
mod logins;
mod settings;
mod workers;

/// Superuser of the clusters that [`Cluster::init`] makes.
const SUPERUSER: &str = "postgres";
const CONNECT: Duration = Duration::from_secs(1);
/// How long the database's server may take to let the superuser in, and then to do what is asked of it.
const PREPARES: Duration = Duration::from_secs(30);
/// How often an operation that waits for workers starts what died meanwhile.
const MEND: Duration = Duration::from_secs(2);
/// What workers and PostgreSQL get of this process' environment: what programs are found, read and written by.
const PASSED_ON: [&str; 7] = ["PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH"];

/// How long things may take.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// From the start of workers until all of them answer, at most: before the end of the operation it is told which do not.
    pub ready: Duration,
    /// The same where nobody waits for the operation any more, or others wait for their turn; and of what is only taken over.
    pub ready_for_nobody: Duration,
    /// Between SIGTERM and SIGKILL.
    pub stop: Duration,
    /// For another operation to end.
    pub turn: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            ready: Duration::MAX,
            ready_for_nobody: Duration::from_secs(30),
            stop: Duration::from_secs(10),
            turn: Duration::from_mins(2),
        }
    }
}

/// The `process` driver of one placement.
#[derive(Clone, Debug)]
pub struct ProcessProvisioning {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    settings: ProcessDriver,
    timeouts: Timeouts,
    workers: Arc<Mutex<Workers>>,
    /// Why everybody still gets into the database, as it was told last.
    still_open: std::sync::Mutex<Option<String>>,
    /// Each role that the configuration has a password for is there, and has one.
    have_passwords: AtomicBool,
    /// Operations that wait for their turn.
    waiting: AtomicUsize,
}

/// One of [`Shared::waiting`].
struct Waiting<'s>(&'s AtomicUsize);

impl<'s> Waiting<'s> {
    fn begin(count: &'s AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What becomes of an operation whose workers do not answer in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unready {
    /// It has failed.
    Fails,
    /// It is done with what there is.
    IsLeft,
}

/// What `supervise` mended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mended {
    /// Workers that were started again.
    pub workers: Vec<usize>,
    /// The database was started again.
    pub database: bool,
}

/// One operation at a time, in this process and among processes.
struct Turn {
    workers: OwnedMutexGuard<Workers>,
    /// Unlocks when closed.
    _lock: File,
}

impl ProcessProvisioning {
    /// A driver with the default [`Timeouts`]. Touches nothing yet.
    pub fn new(settings: ProcessDriver) -> Self {
        Self::with_timeouts(settings, Timeouts::default())
    }

    /// The same with other timeouts.
    pub fn with_timeouts(mut settings: ProcessDriver, timeouts: Timeouts) -> Self {
        if let Ok(absolute) = std::path::absolute(&settings.directory) {
            settings.directory = absolute;
        }
        let workers = Arc::new(Mutex::new(Workers::new(settings.clone())));
        Self {
            shared: Arc::new(Shared {
                settings,
                timeouts,
                workers,
                still_open: std::sync::Mutex::default(),
                have_passwords: AtomicBool::new(false),
                waiting: AtomicUsize::new(0),
            }),
        }
    }

    /// Starts what died since: workers (not awaited, and ever later while one keeps dying) and the database.
    ///
    /// Does nothing while an operation runs, and where nothing is provisioned.
    pub async fn supervise(&self) -> Result<Mended, DriverError> {
        let Some(mut turn) = self.shared.try_turn()? else { return Ok(Mended::default()) };
        let shared = self.shared.clone();
        to_the_end(async move { shared.mend(&mut turn.workers).await }).await
    }

    /// Ends everything at once, without grace, without waiting for other operations: for a playground being removed.
    pub fn kill(&self) -> Result<(), DriverError> {
        let settings = &self.shared.settings;
        if Ledger::read(&settings.directory)?.is_some() {
            // An operation in this process may hold the other `Workers`; the files say the same.
            match self.shared.workers.try_lock() {
                Ok(mut workers) => workers.kill_all()?,
                Err(_) => Workers::new(settings.clone()).kill_all()?,
            }
        }
        match &settings.cluster {
            Some(settings) => Ok(cluster_of(settings).stop("immediate")?),
            None => Ok(()),
        }
    }

    async fn scale_to(
        &self,
        operation: &Operation,
        action: Action,
        wanted: &Wanted,
        unready: Unready,
    ) -> Result<PlacementStatus, DriverError> {
        let shared = self.shared.clone();
        let (id, wanted) = (operation.id.clone(), wanted.clone());
        let capacity = wanted.capacity;
        let (began, deadline) = (crate::clock::tick(), operation.deadline);
        let nobody_waits = CancellationToken::new();
        let _waits = nobody_waits.clone().drop_guard();
        let work = to_the_end(async move {
            let most = u32::try_from(shared.settings.listen.len()).unwrap_or(u32::MAX);
            if capacity > most {
                return Err(DriverError::Capacity { asked: capacity, most });
            }
            if action == Action::Provision {
                shared.claim()?;
            } else if Ledger::read(&shared.settings.directory)?.is_none() {
                return Err(shared.not_provisioned());
            }
            let mut turn = shared.turn().await?;
            let mut ledger = match (Ledger::read(&shared.settings.directory)?, action) {
                (Some(ledger), Action::Provision) => ledger,
                (Some(ledger), _) if ledger.capacity.is_some() => ledger,
                (None, Action::Provision) => Ledger::new(),
                _ => return Err(shared.not_provisioned()),
            };
            if ledger.did(&id, action, capacity)? {
                tracing::debug!(operation = id, "done before");
                return Ok(shared.observe(&ledger, &mut turn.workers).await);
            }
            if let (Action::Provision, Some(settings)) = (action, &shared.settings.cluster) {
                if ledger.capacity.is_some() {
                    cluster_of(settings).check_there()?;
                } else {
                    check_free(settings).await?;
                }
                start_cluster(settings, settings::lines(&wanted.settings)).await?;
                match shared.prepare_database(settings).await {
                    // It goes on as it was; the next look at it warns.
                    Err(DriverError::ShutsOut { .. }) => {}
                    done => done?,
                }
            }
            // First what is wanted, then the work: a process that takes over after a crash finishes it.
            ledger.capacity = Some(capacity);
            ledger.write(&shared.settings.directory)?;
            let count = capacity as usize;
            for index in 0..count {
                turn.workers.ensure(index)?;
            }
            let left = (deadline / 10 * 9).saturating_sub(began.elapsed());
            let mut ready = shared.timeouts.ready.min(Duration::from_secs(left.as_secs()));
            if unready == Unready::IsLeft {
                ready = ready.min(shared.timeouts.ready_for_nobody);
            }
            match shared.await_ready(&mut turn.workers, count, ready, &nobody_waits).await {
                Err(error @ DriverError::NotReady { .. }) if unready == Unready::IsLeft => {
                    let why = crate::causes::chain(error);
                    tracing::warn!(operation = id, why, "taken over, with workers that do not answer");
                    return Ok(shared.observe(&ledger, &mut turn.workers).await);
                }
                ready => ready?,
            }
            turn.workers.stop_above(count, shared.timeouts.stop).await?;
            ledger.note(&id, action, capacity);
            ledger.write(&shared.settings.directory)?;
            Ok(shared.observe(&ledger, &mut turn.workers).await)
        });
        within(operation, work).await
    }
}

#[async_trait]
impl Provisioning for ProcessProvisioning {
    async fn plan(&self, action: Action, wanted: &Wanted) -> Result<Plan, DriverError> {
        let ledger = Ledger::read(&self.shared.settings.directory)?;
        Ok(Plan { steps: settings::steps(&self.shared.settings, ledger.as_ref(), action, wanted) })
    }

    async fn provision(
        &self,
        operation: &Operation,
        wanted: &Wanted,
    ) -> Result<PlacementStatus, DriverError> {
        self.scale_to(operation, Action::Provision, wanted, Unready::Fails).await
    }

    /// Its processes run on without this one; what died meanwhile is started again.
    async fn adopt(&self, operation: &Operation, capacity: u32) -> Result<PlacementStatus, DriverError> {
        self.scale_to(operation, Action::Provision, &capacity.into(), Unready::IsLeft).await
    }

    async fn scale(&self, operation: &Operation, capacity: u32) -> Result<PlacementStatus, DriverError> {
        self.scale_to(operation, Action::Scale, &capacity.into(), Unready::Fails).await
    }

    /// The configuration says it.
    async fn endpoint(&self) -> Result<Endpoint, DriverError> {
        Ok(Endpoint::default())
    }

    async fn status(&self) -> Result<PlacementStatus, DriverError> {
        let shared = self.shared.clone();
        let turn = shared.try_turn()?;
        to_the_end(async move {
            let ledger = Ledger::read(&shared.settings.directory)?.unwrap_or_default();
            let Some(mut turn) = turn else {
                // An operation runs: look on, mend nothing.
                let mut onlooker = Workers::new(shared.settings.clone());
                return Ok(shared.observe(&ledger, &mut onlooker).await);
            };
            shared.mend(&mut turn.workers).await?;
            Ok(shared.observe(&ledger, &mut turn.workers).await)
        })
        .await
    }

    fn provisioned(&self) -> Result<bool, DriverError> {
        Ledger::provisioned(&self.shared.settings.directory)
    }

    async fn deprovision(&self, operation: &Operation) -> Result<(), DriverError> {
        let shared = self.shared.clone();
        let id = operation.id.clone();
        let work = to_the_end(async move {
            let directory = &shared.settings.directory;
            if Ledger::read(directory)?.is_none() {
                return Err(shared.not_provisioned());
            }
            let mut turn = shared.turn().await?;
            let mut ledger = Ledger::read(directory)?.ok_or_else(|| shared.not_provisioned())?;
            if ledger.did(&id, Action::Deprovision, 0)? {
                return Ok(());
            }
            let cluster = shared.settings.cluster.as_ref().map(cluster_of);
            if let Some(cluster) = &cluster {
                cluster.check_ours()?;
            }
            ledger.capacity = None;
            ledger.write(directory)?;
            turn.workers.stop_above(0, shared.timeouts.stop).await?;
            if let Some(cluster) = cluster {
                blocking(move || cluster.stop("fast")).await?;
            }
            ledger.note(&id, Action::Deprovision, 0);
            ledger.write(directory)
        });
        within(operation, work).await
    }
}

impl Shared {
    fn not_provisioned(&self) -> DriverError {
        DriverError::NotProvisioned { directory: self.settings.directory.clone() }
    }

    /// Makes the directory ours; one with somebody else's files is refused.
    fn claim(&self) -> Result<(), DriverError> {
        let directory = &self.settings.directory;
        let failed = |doing: &str| {
            let doing = format!("{doing} {}", directory.display());
            move |source| io(doing, source)
        };
        std::fs::create_dir_all(directory).map_err(failed("create"))?;
        if Ledger::read(directory)?.is_some() {
            return Ok(());
        }
        for entry in std::fs::read_dir(directory).map_err(failed("list"))? {
            let name = entry.map_err(failed("list"))?.file_name();
            if name != "lock" {
                return Err(DriverError::NotOurs {
                    what: directory.display().to_string(),
                    why: format!("it holds {} and no ledger", name.display()),
                });
            }
        }
        Ledger::new().write(directory)
    }

    fn try_turn(&self) -> Result<Option<Turn>, DriverError> {
        let Ok(workers) = self.workers.clone().try_lock_owned() else { return Ok(None) };
        if !self.settings.directory.exists() {
            return Ok(None);
        }
        Ok(try_lock(&self.settings.directory)?.map(|lock| Turn { workers, _lock: lock }))
    }

    async fn turn(&self) -> Result<Turn, DriverError> {
        let _waiting = Waiting::begin(&self.waiting);
        let began = crate::clock::tick();
        let busy =
            |_| DriverError::Busy { directory: self.settings.directory.clone(), waited: self.timeouts.turn };
        let workers = tokio::time::timeout(self.timeouts.turn, self.workers.clone().lock_owned())
            .await
            .map_err(busy)?;
        let left = self.timeouts.turn.saturating_sub(began.elapsed());
        let lock = async {
            loop {
                if let Some(lock) = try_lock(&self.settings.directory)? {
                    return Ok::<_, DriverError>(lock);
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let lock = tokio::time::timeout(left, lock).await.map_err(busy)??;
        Ok(Turn { workers, _lock: lock })
    }

    /// Until all of these workers answer; what dies meanwhile is started again. Says which do not.
    async fn await_ready(
        &self,
        workers: &mut Workers,
        count: usize,
        within: Duration,
        nobody_waits: &CancellationToken,
    ) -> Result<(), DriverError> {
        let began = crate::clock::tick();
        let mut told = None;
        loop {
            let left = within.saturating_sub(began.elapsed());
            let late = workers.await_ready(count, left.min(MEND)).await?;
            if late.is_empty() {
                return Ok(());
            }
            let waited = began.elapsed();
            if waited >= within {
                return Err(workers.not_ready(late, within));
            }
            let gives_way = nobody_waits.is_cancelled() || self.waiting.load(Ordering::Relaxed) > 0;
            if gives_way && waited >= self.timeouts.ready_for_nobody {
                return Err(workers.not_ready(late, Duration::from_secs(waited.as_secs())));
            }
            let why = self.mend(workers).await.err().map(crate::causes::chain);
            if why.is_some() && why != told {
                tracing::warn!(why, "what died meanwhile is not there again");
                told = why;
            }
        }
    }

    async fn observe(&self, ledger: &Ledger, workers: &mut Workers) -> PlacementStatus {
        let capacity = ledger.capacity.unwrap_or(0);
        let database = match &self.settings.cluster {
            Some(cluster) => connects(cluster.listen).await,
            None => true,
        };
        PlacementStatus { ready: workers.ready(capacity as usize).await, capacity, database }
    }

    async fn mend(&self, workers: &mut Workers) -> Result<Mended, DriverError> {
        let ledger = Ledger::read(&self.settings.directory)?;
        let Some(capacity) = ledger.and_then(|ledger| ledger.capacity) else {
            return Ok(Mended::default());
        };
        let database = match &self.settings.cluster {
            Some(settings) if !connects(settings.listen).await => {
                tracing::warn!(listen = %settings.listen, "the database does not accept connections: starting it");
                let cluster = cluster_of(settings);
                blocking(move || cluster.check_there().and_then(|()| cluster.start())).await?;
                true
            }
            _ => false,
        };
        let mended = workers.mend(capacity as usize)?;
        if let Some(settings) = &self.settings.cluster {
            let why = self.restrict(settings).await.err().map(crate::causes::chain);
            let mut told = lock(&self.still_open);
            if *told != why {
                if let Some(why) = &why {
                    tracing::warn!(listen = %settings.listen, why, "who gets into the database without a password is as it was");
                }
                *told = why;
            }
        }
        Ok(Mended { workers: mended, database })
    }

    /// How the service logs in; none: the driver does not know.
    fn service(&self) -> Result<Option<Dsn>, DriverError> {
        match self.settings.service_dsn.as_str() {
            "" => Ok(None),
            dsn => dsn.parse().map(Some).map_err(DriverError::ServiceDsn),
        }
    }

    /// Nobody comes in without a password but whom the configuration trusts: of a cluster that an earlier version made, and where
    /// somebody else is trusted by now.
    async fn restrict(&self, settings: &ProcessCluster) -> Result<(), DriverError> {
        let cluster = cluster_of(settings);
        if cluster.superuser_password().is_some() {
            let have_passwords = self.have_passwords.load(Ordering::Relaxed);
            if have_passwords && cluster.is_restricted(&settings.trusted)? {
                return Ok(());
            }
        } else if cluster.is_open()? {
            let service = self.service()?;
            let as_superuser = access::of_superuser(settings.logins.iter().chain(&service));
            if as_superuser.iter().any(|login| login.get_password().is_none()) {
                // It serves: nobody is shut out who is known to come.
                return Err(DriverError::SuperuserWithoutPassword);
            }
        } else {
            return Ok(());
        }
        // Who is to be asked for a password has one first.
        self.prepare_database(settings).await
    }

    /// The database and the role that the service's connection string names, empty and without rights of its own:
    /// the first copy brings tables and grants. Roles that the configuration has a password for get it; the superuser gets one where it
    /// has none, and from then on everybody needs one.
    async fn prepare_database(&self, settings: &ProcessCluster) -> Result<(), DriverError> {
        let service = self.service()?;
        let cluster = cluster_of(settings);
        let known = cluster.superuser_password();
        let as_superuser = access::of_superuser(settings.logins.iter().chain(&service));
        let shut_out = as_superuser.iter().any(|login| login.get_password().is_none());
        let given = as_superuser.iter().find_map(|login| login.get_password());
        let given = given.map(|password| String::from_utf8_lossy(password).into_owned());
        let made = match (&known, given) {
            (Some(known), Some(given)) if *known != given => Some(given),
            (None, given) if !shut_out && cluster.is_open()? => {
                Some(given.unwrap_or_else(crate::rng::secret))
            }
            _ => None,
        };
        let before = cluster.lets_in()?;
        let trusted = settings.trusted.clone();
        let mut given_to = logins::with_passwords(settings).peekable();
        let gives = known.is_some() && (given_to.peek().is_some() || !settings.verifiers.is_empty());
        if service.is_none() && made.is_none() && !gives {
            self.have_passwords.store(true, Ordering::Relaxed);
            return blocking(move || cluster.restrict(&trusted)).await;
        }
        let database = service.as_ref().and_then(|dsn| dsn.get_dbname()).unwrap_or(SUPERUSER).to_owned();
        let failed = |source| DriverError::Database { database: database.clone(), source };
        let mut administrator = tokio_postgres::Config::new();
        administrator
            .host(settings.listen.ip().to_string())
            .port(settings.listen.port())
            .user(SUPERUSER)
            .dbname(SUPERUSER)
            .connect_timeout(Duration::from_secs(10))
            .application_name("godwit");
        if let Some(password) = &known {
            administrator.password(password);
        }
        // Of a server that is stopped the kernel still accepts connections.
        let late = |_: tokio::time::error::Elapsed| {
            io("prepare the database".into(), std::io::ErrorKind::TimedOut.into())
        };
        let connects = tokio::time::timeout(PREPARES, administrator.connect(NoTls));
        let mut connected = connects.await.map_err(late)?;
        if let (Err(error), Some(given)) = (&connected, &made)
            && error.code() == Some(&SqlState::INVALID_PASSWORD)
        {
            // It may have that one already: a person gave it, or a crash came before it was written down.
            let connects = administrator.password(given).connect(NoTls);
            connected = tokio::time::timeout(PREPARES, connects).await.map_err(late)?;
        }
        let (client, connection) = connected.map_err(failed)?;
        let connection = tokio::spawn(connection);
        let make = async {
            // Whatever the primary's settings say: it is what they are asked for by.
            client.batch_execute("SET password_encryption = 'scram-sha-256'").await?;
            // The other side may be away, whom commits wait for.
            client.batch_execute("SET synchronous_commit = local; SET lock_timeout = '5s'").await?;
            let mut are_there = true;
            for login in given_to {
                are_there &= logins::give_password(&client, login).await?;
            }
            if let Some(service) = &service {
                logins::make_service(&client, service).await?;
            }
            let shut_out = logins::shut_out(&client, settings, service.as_ref(), &before).await?;
            // Whoever has it is asked for it already, or nobody is shut out.
            let made = made.filter(|_| known.is_some() || shut_out.is_none());
            if let Some(password) = &made {
                client
                    .batch_execute(&format!("ALTER ROLE {SUPERUSER} PASSWORD {}", quote_literal(password)))
                    .await?;
            }
            Ok::<_, tokio_postgres::Error>((are_there, made, shut_out))
        };
        // Cut off, it is done again: a superuser's password that is not known yet closes nothing.
        let done = tokio::time::timeout(PREPARES, make).await;
        drop(client);
        // Ends with the client; a late error of a connection that is no longer needed says nothing.
        if done.is_ok() {
            let _ = connection.await;
        }
        let (are_there, made, shut_out) = done.map_err(late)?.map_err(failed)?;
        self.have_passwords.store(are_there, Ordering::Relaxed);
        let closes = shut_out.is_none();
        blocking(move || {
            if let Some(password) = made {
                cluster.keep_superuser_password(&password)?;
            }
            if closes { cluster.restrict(&trusted) } else { Ok(()) }
        })
        .await?;
        shut_out.map_or(Ok(()), |(role, why)| Err(DriverError::ShutsOut { role, why }))
    }
}

/// The cluster that these settings are about.
pub(crate) fn cluster_of(settings: &ProcessCluster) -> Cluster {
    Cluster {
        bin: settings.bin.clone(),
        data: settings.data.clone(),
        host: settings.listen.ip().to_string(),
        port: settings.listen.port(),
    }
}

/// Refuses where another database answers in the place of this cluster: one that is made beside it would be started there as soon as
/// that one is away.
async fn check_free(settings: &ProcessCluster) -> Result<(), DriverError> {
    if !connects(settings.listen).await {
        return Ok(());
    }
    let cluster = cluster_of(settings);
    let runs = tokio::task::spawn_blocking(move || cluster.running()).await;
    if runs.map_err(|join| io("run a database program".into(), std::io::Error::other(join)))?? {
        return Ok(());
    }
    let why = format!("something answers there, and it is no cluster in {}", settings.data.display());
    Err(DriverError::NotOurs { what: settings.listen.to_string(), why })
}

/// Makes it with these lines of configuration where there is none yet: nobody gets into that before it is restricted.
async fn start_cluster(settings: &ProcessCluster, lines: String) -> Result<(), DriverError> {
    let (cluster, trusted) = (cluster_of(settings), settings.trusted.clone());
    blocking(move || {
        let is_new = !cluster.exists();
        cluster.init(&lines)?;
        if is_new {
            cluster.restrict(&trusted)?;
        }
        cluster.start()
    })
    .await
}

async fn blocking(
    work: impl FnOnce() -> Result<(), ClusterError> + Send + 'static,
) -> Result<(), DriverError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => Ok(done?),
        Err(join) => Err(io("run a database program".into(), std::io::Error::other(join))),
    }
}

async fn connects(address: SocketAddr) -> bool {
    matches!(tokio::time::timeout(CONNECT, tokio::net::TcpStream::connect(address)).await, Ok(Ok(_)))
}

/// The directory's lock among processes; `None` when another one has it.
fn try_lock(directory: &Path) -> Result<Option<File>, DriverError> {
    let path = directory.join("lock");
    let failed = |source| io(format!("lock {}", path.display()), source);
    let file = File::options().create(true).append(true).open(&path).map_err(failed)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(failed(error.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::model::Trusted;

    /// One without programs, whose database is to listen there.
    fn driver(home: &Path, listen: SocketAddr) -> ProcessProvisioning {
        ProcessProvisioning::new(ProcessDriver {
            directory: home.join("driver"),
            argv: Vec::new(),
            listen: vec![listen],
            service_dsn: String::new(),
            environment: std::collections::BTreeMap::new(),
            ready: "/healthz".into(),
            cluster: Some(ProcessCluster {
                bin: home.join("bin"),
                data: home.join("volume/data"),
                listen,
                trusted: Trusted::All,
                logins: Vec::new(),
                verifiers: Vec::new(),
            }),
        })
    }

    #[tokio::test]
    async fn none_is_made_where_another_database_answers() {
        let home = tempfile::tempdir().unwrap();
        let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let driver = driver(home.path(), other.local_addr().unwrap());
        for _ in 0..2 {
            let refused = driver.adopt(&"adopt".into(), 0).await.unwrap_err();
            assert_eq!(refused.kind(), crate::drivers::DriverErrorKind::Refused, "{refused}");
        }
        assert!(!home.path().join("volume").exists(), "initdb was tried");
        assert!(!driver.provisioned().unwrap());
    }

    #[tokio::test]
    async fn a_cluster_whose_data_is_gone_is_not_made_anew() {
        let home = tempfile::tempdir().unwrap();
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let data = home.path().join("volume/data");
        let driver = driver(home.path(), closed);
        driver.shared.claim().unwrap();
        let mut ledger = Ledger::new();
        ledger.capacity = Some(0);
        ledger.write(&driver.shared.settings.directory).unwrap();
        for mounted in [false, true] {
            if mounted {
                // The place of the volume, without it.
                std::fs::create_dir_all(&data).unwrap();
            }
            let looked = driver.status().await.unwrap_err().to_string();
            let asked = driver.provision(&"again".into(), &0.into()).await.unwrap_err();
            assert!(crate::causes::chain(&asked).contains("mount its data again"), "{asked}");
            assert_eq!(looked, asked.to_string());
            assert_eq!(data.exists(), mounted);
        }
        assert!(!home.path().join("volume/data.half-made").exists(), "initdb was tried");
        driver.deprovision(&"end".into()).await.unwrap();
        assert_eq!(driver.status().await.unwrap().capacity, 0);
    }
}
