//! A two-zone playground in a temporary directory: a live service in the first zone, an empty database in the second, a
//! WAN between them, and the configuration files of the nodes. Everything is stopped and removed on drop.
//!
//! Nodes are not started here. Where a node reaches the second zone, it goes through a relay: workers, database, link.

use std::collections::HashSet;
use std::fmt::Write;
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixListener};
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use replicator::grants::{Needs, grants};
use replicator::postgres::Dsn;

use super::leftover;
use super::orders::schema::{self, Seed};
use super::relay::{Path, Relay};
use crate::config::model::{ProcessCluster, ProcessDriver, Trusted};
use crate::drivers::process::ProcessProvisioning;
use crate::drivers::process::cluster::{Cluster, ClusterError};
use crate::drivers::{DriverError, Provisioning};
use crate::lock::lock;
use crate::pki::{self, Holder, PkiError};

/// Database of the service.
pub const DATABASE: &str = "orders";
/// Role of the service: neither superuser nor owner of anything.
pub const SERVICE_ROLE: &str = "orders_app";
/// Role that owns the service's tables and its database; nobody logs in as it.
pub const OWNER_ROLE: &str = "orders_owner";
/// Role of Godwit: what [`replicator::grants`] gives it, and not superuser.
pub const GODWIT_ROLE: &str = "godwit";
/// Who made the clusters: what an administrator does, and nothing of Godwit's.
pub const SUPERUSER: &str = "postgres";
/// The resource's name.
pub const RESOURCE: &str = "orders";
/// Node in the first zone.
pub const LEADER: &str = "leader";
/// Node in the second zone.
pub const AGENT: &str = "agent";

/// Quick enough to watch: seconds where a real policy has minutes.
pub const POLICY: &str = "\
name: playground
mode: auto
score:
  weights: {latency: 1.0, cost: 0.3, utilization: 0.2}
  threshold: 0.25
  sustain: 3s
  horizon: 10s
  step: 500ms
  confidence: 0.8
  disruption: 0.05
limits: {cooldown: 12s, retry_after: 5s, max_moves_per_day: 1000, max_lag: 16MiB, max_hold: 2s, drain_timeout: 5s, on_drain_timeout: abort}
shadow: {enabled: true, capacity: 50%}
replication: {mode: async}
retire: {after: 5s, require_verified: true}
";

/// What the playground is like.
#[derive(Clone, Debug)]
pub struct Options {
    /// Names of the two zones; the first has the service.
    pub zones: [String; 2],
    /// Directory of PostgreSQL's programs in each.
    pub bins: [PathBuf; 2],
    /// Extra lines for postgresql.conf in each.
    pub settings: [String; 2],
    /// Workers at full capacity.
    pub workers: u32,
    /// A `godwit` program: the workers run its `demo-orders`.
    pub program: PathBuf,
    /// Rows to begin with.
    pub seed: Seed,
    /// A node in the second zone; without one the leader reaches that database itself.
    pub agent: bool,
    /// A PostgreSQL front beside the HTTP front.
    pub postgres_front: bool,
    /// One-way delay between the leader and the workers of the first zone.
    pub near: Duration,
    /// One-way delay between the zones.
    pub wan: Duration,
    /// Text of the policy file; its name must be `playground`.
    pub policy: String,
}

impl Options {
    /// The usual playground, without an agent and with no delay but a millisecond between the zones.
    pub fn new(program: PathBuf, bins: [PathBuf; 2]) -> Self {
        let unsafe_but_quick = "fsync = off\n".to_owned();
        Self {
            zones: ["eu-west".into(), "eu-central".into()],
            bins,
            settings: [unsafe_but_quick.clone(), unsafe_but_quick],
            workers: 2,
            program,
            seed: Seed::default(),
            agent: false,
            postgres_front: false,
            near: Duration::ZERO,
            wan: Duration::from_millis(1),
            policy: POLICY.into(),
        }
    }
}

/// The playground could not be built.
#[derive(Debug, thiserror::Error)]
pub enum PlaygroundError {
    /// A placement could not be provisioned.
    #[error("cannot provision {zone}")]
    Driver {
        /// Its zone.
        zone: String,
        /// Why.
        source: DriverError,
    },
    /// A cluster could not be made.
    #[error("cannot make the cluster of {zone}")]
    Cluster {
        /// Its zone.
        zone: String,
        /// Why.
        source: ClusterError,
    },
    /// Tables and rows could not be made.
    #[error("cannot fill the database")]
    Database(#[from] tokio_postgres::Error),
    /// Certificates could not be made.
    #[error("cannot make the certificates")]
    Certificates(#[from] PkiError),
    /// A file or socket failed.
    #[error("cannot {doing}")]
    Io {
        /// What was tried.
        doing: String,
        /// Why.
        source: std::io::Error,
    },
}

/// One zone of the playground.
#[derive(Debug)]
pub struct Zone {
    /// Its name.
    pub name: String,
    /// Its cluster, to be killed and started by tests.
    pub cluster: Cluster,
    /// The database itself.
    pub database: SocketAddr,
    /// The database as the leader reaches it.
    pub database_from_leader: SocketAddr,
    /// Workers themselves.
    pub workers: Vec<SocketAddr>,
    /// Workers as the leader reaches them.
    pub workers_from_leader: Vec<SocketAddr>,
    /// Delay between the leader and the workers of the first zone, or between the zones.
    pub path: Arc<Path>,
    /// The zone's driver, as the leader's configuration describes it.
    pub driver: ProcessDriver,
    provisioning: ProcessProvisioning,
}

impl Zone {
    /// Connection parameters of the service's database for this role, past the relays.
    pub fn dsn(&self, role: &str) -> Dsn {
        dsn(&self.cluster, role)
    }
}

/// Two zones, running.
#[derive(Debug)]
pub struct Playground {
    /// Where everything is.
    pub directory: PathBuf,
    /// `godwit.yaml` of the leader.
    pub config: PathBuf,
    /// `godwit.yaml` of the agent.
    pub agent_config: Option<PathBuf>,
    /// HTTP front of the leader.
    pub front: SocketAddr,
    /// PostgreSQL front of the leader.
    pub postgres_front: Option<SocketAddr>,
    /// Admin listener of the leader.
    pub admin: SocketAddr,
    /// Admin listener of the agent.
    pub agent_admin: Option<SocketAddr>,
    /// The zones, the primary first.
    pub zones: [Zone; 2],
    _relays: Vec<Relay>,
    /// Until the directory is removed.
    _held: Option<File>,
}

/// Removes what was built so far when a later step fails.
struct Remains {
    directory: PathBuf,
    drivers: Vec<ProcessProvisioning>,
    held: Option<File>,
}

impl Drop for Remains {
    fn drop(&mut self) {
        for driver in &self.drivers {
            if let Err(error) = driver.kill() {
                tracing::warn!(%error, "a part of the playground was not stopped");
            }
        }
        if let Err(error) = std::fs::remove_dir_all(&self.directory) {
            tracing::warn!(%error, directory = %self.directory.display(), "the playground was not removed");
        }
    }
}

impl Drop for Playground {
    fn drop(&mut self) {
        drop(Remains {
            directory: std::mem::take(&mut self.directory),
            drivers: self.zones.iter().map(|zone| zone.provisioning.clone()).collect(),
            held: None,
        });
    }
}

impl Playground {
    /// Builds both zones: returns when the service answers in the first one.
    pub async fn start(options: &Options) -> Result<Self, PlaygroundError> {
        let mut remains = Remains { directory: temporary()?, drivers: Vec::new(), held: None };
        let directory = remains.directory.clone();
        remains.held = Some(leftover::hold(&directory).map_err(io("hold the temporary directory"))?);
        let count = options.workers as usize;
        let mut ports = free_ports(10 + 4 * count)?.into_iter();
        let mut next = || SocketAddr::from((Ipv4Addr::LOCALHOST, ports.next().unwrap_or_default()));
        let (front, admin, agent_admin) = (next(), next(), next());
        let (leader_link, agent_link) = (next(), next());
        let postgres_front = Some(next()).filter(|_| options.postgres_front);
        let paths = [Path::new(options.near), Path::new(options.wan)];

        let mut relays = Vec::new();
        let mut zones = Vec::with_capacity(2);
        for (index, path) in paths.iter().enumerate() {
            let database = next();
            let workers: Vec<SocketAddr> = (0..count).map(|_| next()).collect();
            let mut workers_from_leader = Vec::with_capacity(count);
            for worker in &workers {
                let relay =
                    Relay::tcp(next(), *worker, path.clone()).await.map_err(io("relay to a worker"))?;
                workers_from_leader.push(relay.listen());
                relays.push(relay);
            }
            let mut database_from_leader = database;
            if index == 1 {
                let relay = Relay::tcp(next(), database, path.clone()).await;
                let relay = relay.map_err(io("relay to the database"))?;
                database_from_leader = relay.listen();
                relays.push(relay);
            }
            let name = options.zones[index].clone();
            let home = directory.join("zones").join(&name);
            let driver = ProcessDriver {
                directory: home.join("driver"),
                argv: [
                    &options.program.display().to_string(),
                    "demo-orders",
                    "--listen",
                    "{listen}",
                    "--dsn",
                    "{dsn}",
                ]
                .map(str::to_owned)
                .to_vec(),
                listen: workers.clone(),
                service_dsn: url(SERVICE_ROLE, database),
                environment: std::collections::BTreeMap::new(),
                ready: "/healthz".into(),
                cluster: Some(ProcessCluster {
                    bin: options.bins[index].clone(),
                    data: home.join("data"),
                    listen: database,
                    trusted: Trusted::All,
                    logins: Vec::new(),
                    verifiers: Vec::new(),
                }),
            };
            let cluster = Cluster {
                bin: options.bins[index].clone(),
                data: home.join("data"),
                host: database.ip().to_string(),
                port: database.port(),
            };
            let provisioning = ProcessProvisioning::new(driver.clone());
            remains.drivers.push(provisioning.clone());
            let path = path.clone();
            zones.push(Zone {
                name,
                cluster,
                database,
                database_from_leader,
                workers,
                workers_from_leader,
                path,
                driver,
                provisioning,
            });
        }
        let zones: [Zone; 2] = match zones.try_into() {
            Ok(zones) => zones,
            Err(_) => return Err(io("make two zones")(std::io::ErrorKind::Other.into())),
        };
        let [near, far] = &zones;
        tokio::try_join!(
            provision(near, &options.settings[0], options.workers),
            provision(far, &options.settings[1], 0)
        )?;
        fill(near, options.seed).await?;

        let mut link_from_leader = None;
        if options.agent {
            let resources = [RESOURCE.to_owned()];
            let names = [near, far].map(|zone| zone.name.as_str());
            let [leader, agent] = [(LEADER, &names[..1]), (AGENT, &names[1..])].map(|(node, zones)| Holder {
                node,
                zones,
                resources: &resources,
            });
            pki::make(&directory.join("pki"), &[leader, agent])?;
            let relay =
                Relay::udp(next(), agent_link, far.path.clone()).await.map_err(io("relay the link"))?;
            link_from_leader = Some(relay.listen());
            relays.push(relay);
        }
        let files = Files { directory: &directory, options, zones: &zones };
        let (config, agent_config) = files.write(
            (front, postgres_front),
            admin,
            link_from_leader,
            leader_link,
            agent_link,
            agent_admin,
        )?;

        // From here on the playground itself removes everything.
        remains.drivers.clear();
        let held = remains.held.take();
        std::mem::forget(remains);
        Ok(Self {
            directory,
            config,
            agent_config,
            front,
            postgres_front,
            admin,
            agent_admin: options.agent.then_some(agent_admin),
            zones,
            _relays: relays,
            _held: held,
        })
    }
}

async fn provision(zone: &Zone, settings: &str, workers: u32) -> Result<(), PlaygroundError> {
    let (cluster, settings) = (zone.cluster.clone(), settings.to_owned());
    let made = tokio::task::spawn_blocking(move || cluster.init(&settings)).await;
    made.map_err(|join| io("run initdb")(std::io::Error::other(join)))?
        .map_err(|source| PlaygroundError::Cluster { zone: zone.name.clone(), source })?;
    let provisioned = zone.provisioning.provision(&"playground".into(), &workers.into()).await;
    provisioned.map_err(|source| PlaygroundError::Driver { zone: zone.name.clone(), source })?;
    Ok(govern(&zone.cluster).await?)
}

/// Of the service's database there for this role, which needs a password if it is the superuser.
fn dsn(cluster: &Cluster, role: &str) -> Dsn {
    let mut dsn = Dsn::default();
    dsn.host(&cluster.host).port(cluster.port).user(role).dbname(DATABASE);
    if role == SUPERUSER
        && let Some(password) = cluster.superuser_password()
    {
        dsn.password(password);
    }
    dsn
}

/// Gives Godwit's role what it needs in the service's database there, and no more. Needs the database to exist.
pub(super) async fn govern(cluster: &Cluster) -> Result<(), tokio_postgres::Error> {
    let (administrator, connection) = dsn(cluster, SUPERUSER).connect(tokio_postgres::NoTls).await?;
    let connection = tokio::spawn(connection);
    for grant in grants(&needs()) {
        administrator.batch_execute(&grant.sql).await?;
    }
    drop(administrator);
    // Ends with the client; a late error of a connection that is no longer needed says nothing.
    let _ = connection.await;
    Ok(())
}

/// What Godwit's role needs here; the policy may be any.
pub fn needs() -> Needs {
    Needs {
        role: GODWIT_ROLE.into(),
        database: DATABASE.into(),
        owner: OWNER_ROLE.into(),
        app_roles: vec![SERVICE_ROLE.into()],
        synchronous: true,
        row_security: false,
        caches: true,
        verifiers: false,
        extensions: false,
    }
}

async fn fill(zone: &Zone, seed: Seed) -> Result<(), PlaygroundError> {
    let (client, connection) = zone.dsn(SUPERUSER).connect(tokio_postgres::NoTls).await?;
    let connection = tokio::spawn(connection);
    client.batch_execute(&format!("SET ROLE {OWNER_ROLE}")).await?;
    schema::create(&client).await?;
    schema::seed(&client, seed).await?;
    schema::grant(&client, SERVICE_ROLE).await?;
    drop(client);
    let _ = connection.await;
    Ok(())
}

fn io(doing: &'static str) -> impl Fn(std::io::Error) -> PlaygroundError {
    move |source| PlaygroundError::Io { doing: doing.into(), source }
}

/// A new directory that the database's user can walk into.
fn temporary() -> Result<PathBuf, PlaygroundError> {
    let failed = io("make a temporary directory");
    let directory = tempfile::Builder::new().prefix(leftover::PREFIX).tempdir().map_err(&failed)?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(directory.path(), mode).map_err(&failed)?;
    Ok(directory.keep())
}

/// Ports of 127.0.0.1 that nobody uses, TCP or UDP, below the range from which outgoing connections take theirs: such a
/// port stays free until its worker starts. None is bound to find out: a process that is forked just then would hold it
/// until it becomes another program.
pub fn free_ports(count: usize) -> Result<Vec<u16>, PlaygroundError> {
    use std::hash::{BuildHasher, Hasher};
    let outgoing = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let lowest_outgoing =
        outgoing.split_whitespace().next().and_then(|port| port.parse().ok()).unwrap_or(32_768_u16);
    let (first, end) = if lowest_outgoing > 12_000 { (10_000, lowest_outgoing) } else { (10_000, 60_000) };
    // Where to begin differs between processes, so that two of them rarely look at the same ports.
    let luck = std::collections::hash_map::RandomState::new().build_hasher().finish();
    let span = u64::from(end - first);
    let mut candidates = (0..span)
        .map(|step| first + u16::try_from((luck % span + step) % span).unwrap_or_default())
        .filter_map(|port| Some((port, claim(port)?)));
    let mut claimed = Vec::with_capacity(count);
    while claimed.len() < count {
        let more: Vec<_> = candidates.by_ref().take(count - claimed.len()).collect();
        if more.is_empty() {
            return Err(io("find free ports")(std::io::ErrorKind::AddrNotAvailable.into()));
        }
        // Looked up once they are claimed: nobody who asks here takes one in between.
        let used = used_ports().map_err(io("find free ports"))?;
        claimed.extend(more.into_iter().filter(|(port, _)| !used.contains(port)));
    }
    let (ports, claims): (Vec<_>, Vec<_>) = claimed.into_iter().unzip();
    lock(&CLAIMS).extend(claims);
    Ok(ports)
}

/// Ports of this machine that a socket is bound to, as the kernel lists them (proc(5), `/proc/net/tcp`).
fn used_ports() -> std::io::Result<HashSet<u16>> {
    let listed = std::fs::read_to_string("/proc/net/tcp")?;
    // A machine may have no IPv6.
    let others = ["tcp6", "udp", "udp6"].map(|table| std::fs::read_to_string(format!("/proc/net/{table}")));
    let port = |line: &str| {
        let (_, port) = line.split_whitespace().nth(1)?.rsplit_once(':')?;
        u16::from_str_radix(port, 16).ok()
    };
    let tables = others.into_iter().flatten().chain([listed]).collect::<Vec<_>>();
    Ok(tables.iter().flat_map(|table| table.lines().skip(1).filter_map(port)).collect())
}
/// Ports that this process was given; other playgrounds leave them alone until it ends.
static CLAIMS: std::sync::Mutex<Vec<UnixListener>> = std::sync::Mutex::new(Vec::new());

/// Claims a port among all processes of this machine that use this function: an abstract socket name, gone with the process.
fn claim(port: u16) -> Option<UnixListener> {
    let name = UnixAddr::from_abstract_name(format!("godwit-playground-port-{port}")).ok()?;
    UnixListener::bind_addr(&name).ok()
}

fn url(role: &str, database: SocketAddr) -> String {
    format!("postgres://{role}@{database}/{DATABASE}")
}

struct Files<'p> {
    directory: &'p FilePath,
    options: &'p Options,
    zones: &'p [Zone; 2],
}

impl Files<'_> {
    fn write(
        &self,
        fronts: (SocketAddr, Option<SocketAddr>),
        admin: SocketAddr,
        link_from_leader: Option<SocketAddr>,
        leader_link: SocketAddr,
        agent_link: SocketAddr,
        agent_admin: SocketAddr,
    ) -> Result<(PathBuf, Option<PathBuf>), PlaygroundError> {
        let config = self.directory.join("godwit.yaml");
        let link = link_from_leader.map(|_| leader_link);
        let mut text = self.node(LEADER, 0, admin, link);
        text.push_str(&self.zone_list(link_from_leader));
        text.push_str(&self.drivers());
        text.push_str(&self.resource(fronts));
        save(&config, &text)?;
        save(&self.directory.join("policies/playground.yaml"), &self.options.policy)?;
        if link_from_leader.is_none() {
            return Ok((config, None));
        }
        let agent = self.directory.join("agent/godwit.yaml");
        let mut text = self.node(AGENT, 1, agent_admin, Some(agent_link));
        text.push_str(&self.zone_list(None));
        let far = &self.zones[1];
        let _ = write!(
            text,
            "resources:\n  {RESOURCE}:\n    primary: {}\n    placements:\n      {}: {{{}, capacity: {}}}\n",
            self.zones[0].name,
            far.name,
            self.postgres(1, far.database),
            self.options.workers,
        );
        save(&agent, &text)?;
        Ok((config, Some(agent)))
    }

    fn node(&self, name: &str, zone: usize, admin: SocketAddr, link: Option<SocketAddr>) -> String {
        let state = quoted(&self.directory.join("state").join(name));
        let mut text = format!(
            "node:\n  name: {name}\n  zone: {}\n  state: {state}\n  admin: {{listen: \"{admin}\"}}\n  threads: 2\n  \
             hold: {{requests: 10000, bytes: 16MiB, time: 10s}}\n",
            self.zones[zone].name
        );
        if let Some(link) = link {
            let pki = self.directory.join("pki");
            let _ = writeln!(
                text,
                "  link: {{listen: \"{link}\", scoped: true, tls: {{cert: {}, key: {}, ca: {}}}}}",
                quoted(&pki.join(format!("{name}.pem"))),
                quoted(&pki.join(format!("{name}.key"))),
                quoted(&pki.join("ca.pem")),
            );
        }
        text
    }

    /// The second zone has a link when the reader of this file reaches a node there.
    fn zone_list(&self, link: Option<SocketAddr>) -> String {
        let [near, far] = &self.zones;
        let mut text = format!(
            "zones:\n  {}: {{provider: playground, region: west, country: IE, grid: west, location: [53.34, -6.26], node: {LEADER}}}\n",
            near.name
        );
        let link = link.map(|link| format!(", link: \"{link}\"")).unwrap_or_default();
        let node = if self.options.agent { format!(", node: {AGENT}") } else { String::new() };
        let _ = writeln!(
            text,
            "  {}: {{provider: playground, region: central, country: DE, grid: central, location: [50.11, 8.68]{link}{node}}}",
            far.name
        );
        text
    }

    fn drivers(&self) -> String {
        let mut text = "drivers:\n".to_owned();
        for zone in self.zones {
            let driver = &zone.driver;
            let argv: Vec<String> = driver.argv.iter().map(|argument| quoted(argument.as_ref())).collect();
            let _ = write!(
                text,
                "  {}:\n    process:\n      directory: {}\n      service:\n        argv: [{}]\n        listen: [{}]\n        \
                 dsn: \"{}\"\n        ready: {}\n",
                zone.name,
                quoted(&driver.directory),
                argv.join(", "),
                addresses(&zone.workers),
                driver.service_dsn,
                driver.ready,
            );
            if let Some(cluster) = &driver.cluster {
                let _ = writeln!(
                    text,
                    "      cluster: {{auth: trust, bin: {}, data: {}, listen: \"{}\"}}",
                    quoted(&cluster.bin),
                    quoted(&cluster.data),
                    cluster.listen
                );
            }
        }
        text
    }

    fn resource(&self, (front, postgres): (SocketAddr, Option<SocketAddr>)) -> String {
        let postgres = postgres.map(|listen| format!(", postgres: {{listen: \"{listen}\", auth: trust}}"));
        let postgres = postgres.unwrap_or_default();
        let mut text = format!(
            "resources:\n  {RESOURCE}:\n    fronts: {{http: {{listen: \"{front}\"}}{postgres}}}\n    primary: {}\n    \
             policy: playground\n    placements:\n",
            self.zones[0].name
        );
        for (index, (zone, cost)) in self.zones.iter().zip(["0.40/h", "0.32/h"]).enumerate() {
            let _ = write!(
                text,
                "      {}:\n        http: [{}]\n        probe: /healthz\n        {}\n        capacity: {}\n        \
                 cost: {cost}\n        driver: {}\n",
                zone.name,
                addresses(&zone.workers_from_leader),
                self.postgres(index, zone.database_from_leader),
                self.options.workers,
                zone.name,
            );
        }
        text
    }

    fn postgres(&self, index: usize, database: SocketAddr) -> String {
        format!(
            "postgres: {{dsn: \"{}\", bin: {}, app_roles: [{SERVICE_ROLE}]}}",
            url(GODWIT_ROLE, database),
            quoted(&self.options.bins[index])
        )
    }
}

fn addresses(addresses: &[SocketAddr]) -> String {
    addresses.iter().map(|address| format!("\"{address}\"")).collect::<Vec<_>>().join(", ")
}

/// A YAML double-quoted scalar: JSON's is one.
fn quoted(path: &FilePath) -> String {
    serde_json::Value::String(path.display().to_string()).to_string()
}

fn save(path: &FilePath, text: &str) -> Result<(), PlaygroundError> {
    let failed = |source| PlaygroundError::Io { doing: format!("write {}", path.display()), source };
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(failed)?;
    }
    std::fs::write(path, text).map_err(failed)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn ports_differ_and_are_below_the_outgoing_ones() {
        let mut ports = free_ports(40).unwrap();
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), 40);
    }

    #[test]
    fn a_port_that_somebody_listens_at_is_used() {
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let used = used_ports().unwrap();
        assert!(
            [tcp.local_addr(), udp.local_addr()]
                .into_iter()
                .all(|address| used.contains(&address.unwrap().port()))
        );
    }
}
