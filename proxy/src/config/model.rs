//! The validated configuration: nothing here can hold an invalid value.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use migration::policy::Policy;
use migration::units::ByteCount;
use replicator::postgres::Dsn;
use replicator::spill::Spill;
use url::Url;

use crate::admin::access::oidc::KeyTimes;
use crate::admin::access::oidc::jws::Algorithm;
use crate::admin::access::{Role, Scope};
use crate::feeds::external::egress::Egress;
use crate::feeds::external::{Feed, Secret};
use crate::fronts::http::settings::{ListenerSettings, Settings, Upstream};
use crate::history::Retention;
use crate::traces;

/// Everything a node was told.
#[derive(Clone, Debug)]
pub struct Config {
    /// This process.
    pub node: Node,
    /// Places, by name.
    pub zones: BTreeMap<String, Zone>,
    /// How placements are provisioned, by name.
    pub drivers: BTreeMap<String, Driver>,
    /// Services, by name.
    pub resources: BTreeMap<String, Resource>,
    /// Facts from outside, by name.
    pub feeds: BTreeMap<String, Feed>,
}

/// This process.
#[derive(Clone, Debug)]
pub struct Node {
    /// Name, unique among the nodes; in the certificate of its link.
    pub name: String,
    /// The zone it runs in.
    pub zone: String,
    /// Directory of the embedded database.
    pub state: PathBuf,
    /// How long a lease is, where several nodes may lead the same resources; none: this one alone does.
    pub lease: Option<Duration>,
    /// Admin listener (API, metrics, probes).
    pub admin: Admin,
    /// Where the audit is.
    pub audit: AuditFiles,
    /// The link to nodes in other zones.
    pub link: Option<NodeLink>,
    /// Which hosts and networks feeds may ask.
    pub egress: Egress,
    /// Worker threads of the fronts.
    pub threads: usize,
    /// What the gates may hold.
    pub hold: HoldLimits,
    /// What open transactions of a stream's source may take up here, and where the rest goes.
    pub spill: Spill,
    /// How long what was measured is kept.
    pub history: Retention,
    /// Where traces go; none: nowhere.
    pub traces: Option<traces::Settings>,
}

/// The admin listener, and who may use it.
#[derive(Clone, Debug)]
pub struct Admin {
    /// TCP address.
    pub listen: SocketAddr,
    /// Names it answers to besides its addresses and `localhost`, lower-case.
    pub hosts: Vec<String>,
    /// Every caller proves who it is; false only on loopback.
    pub required: bool,
    /// Its certificate; none only on loopback.
    pub tls: Option<AdminTls>,
    /// What clients' certificates give.
    pub clients: Vec<ClientRule>,
    /// The issuer whose tokens count; none: only this node's own do.
    pub oidc: Option<OidcRules>,
}

/// Which tokens of an OpenID Connect issuer count, and what they give.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OidcRules {
    /// Its name, to the letter as its tokens have it.
    pub issuer: String,
    /// Its set of keys; none: where its discovery document says.
    pub keys: Option<Url>,
    /// PEM file of the authority that vouches for it; none: this machine's.
    pub authority: Option<PathBuf>,
    /// A token must be for one of these.
    pub audiences: Vec<String>,
    /// Clients whose tokens count; empty: all.
    pub clients: Vec<String>,
    /// Signatures that count.
    pub algorithms: Vec<Algorithm>,
    /// The claim with the groups.
    pub groups: String,
    /// The claim with a name that people know; none: the subject alone.
    pub name: Option<String>,
    /// How far the issuer's clock may be off.
    pub leeway: Duration,
    /// How long its keys count.
    pub times: KeyTimes,
    /// What its groups give.
    pub roles: Vec<GroupRule>,
}

/// What being in a group of the issuer gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupRule {
    /// The group.
    pub group: String,
    /// What it may do.
    pub role: Role,
    /// To which resources.
    pub scope: Scope,
}

/// Where the audit's records go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditFiles {
    /// The folder.
    pub directory: PathBuf,
    /// A file is followed by the next once it is longer.
    pub rotate: ByteCount,
}

/// PEM files of the admin listener.
#[derive(Clone, Debug)]
pub struct AdminTls {
    /// Certificate chain.
    pub cert: PathBuf,
    /// Private key.
    pub key: PathBuf,
    /// The authority that signs clients; none: clients show no certificate.
    pub client_ca: Option<PathBuf>,
}

/// What a client's certificate gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientRule {
    /// A DNS name of the certificate.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// To which resources.
    pub scope: Scope,
}

/// The QUIC listener for nodes of other zones.
#[derive(Clone, Debug)]
pub struct NodeLink {
    /// UDP address.
    pub listen: SocketAddr,
    /// Certificates for mTLS.
    pub tls: LinkTls,
    /// Only nodes whose certificates say for which zones and resources they are.
    pub scoped: bool,
}

/// PEM files of the link.
#[derive(Clone, Debug)]
pub struct LinkTls {
    /// This node's certificate chain.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The authority that signs every node.
    pub ca: PathBuf,
}

/// Bounds of a gate, per resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HoldLimits {
    /// Requests held at once.
    pub requests: usize,
    /// Bytes of request headers held at once.
    pub bytes: usize,
    /// Longest time one request is held before it gets 503.
    pub time: Duration,
}

/// A place.
#[derive(Clone, Debug)]
pub struct Zone {
    /// Cloud or owner.
    pub provider: Option<String>,
    /// The provider's name of it.
    pub region: Option<String>,
    /// ISO 3166-1 alpha-2.
    pub country: Option<String>,
    /// Who balances the electricity there.
    pub grid: Option<String>,
    /// Where it is.
    pub location: Option<migration::zones::Location>,
    /// Cost of one worker for an hour, where no placement says; in the operator's currency.
    pub cost_per_hour: Option<f64>,
    /// Address of the link of the node there, `host:port`; none: this node reaches the zone's database itself.
    pub link: Option<String>,
    /// Name of that node, checked against its certificate.
    pub node: Option<String>,
    /// Names of others that may lead in its stead (`node.lease`).
    pub standbys: Vec<String>,
}

impl Zone {
    /// Every node that speaks for this zone.
    pub fn nodes(&self) -> impl Iterator<Item = &String> {
        self.node.iter().chain(&self.standbys)
    }
}

/// A named service.
#[derive(Clone, Debug)]
pub struct Resource {
    /// Its name.
    pub name: String,
    /// What clients connect to by HTTP; a node that only serves the link has no front.
    pub http: Option<HttpFront>,
    /// What clients of the database connect to.
    pub postgres: Option<PostgresFront>,
    /// By zone.
    pub placements: BTreeMap<String, Placement>,
    /// Godwit chooses the shadow's zone; none: the two placements say it.
    pub flexible: Option<Flexible>,
    /// The primary at first start; afterwards the journal knows.
    pub primary: String,
    /// When to move.
    pub policy: Policy,
    /// When not to: the policy's freeze windows.
    pub freeze: Vec<super::freeze::FreezeWindow>,
}

impl Resource {
    /// Whether clients connect to it here: this node leads it then.
    pub fn has_front(&self) -> bool {
        self.http.is_some() || self.postgres.is_some()
    }

    /// Whether it has a database of its own, which moves with it.
    pub fn has_database(&self) -> bool {
        self.placements.values().any(Placement::has_database)
    }

    /// Whether a lease of who leads can be kept in databases of it that are known from the start.
    pub fn could_keep_a_lease(&self) -> bool {
        self.has_front() && self.placements.values().any(|placement| placement.postgres.is_some())
    }

    /// Where its fronts listen, each with its key.
    pub fn listens(&self) -> Vec<(SocketAddr, String)> {
        let http = self.http.as_ref().map(|front| (front.listen, "http"));
        let postgres = self.postgres.as_ref().map(|front| (front.listen, "postgres"));
        let key = |(address, kind)| (address, format!("resources.{}.fronts.{kind}.listen", self.name));
        http.into_iter().chain(postgres).map(key).collect()
    }

    /// The placement that is not `primary`: two placements are what this version moves between.
    pub fn other(&self, zone: &str) -> Option<&Placement> {
        self.placements.values().find(|placement| placement.zone != zone)
    }
}

/// How the zone of a shadow is chosen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flexible {
    /// Provisions it wherever that is; none: only where a placement names a driver, or is complete.
    pub driver: Option<String>,
}

/// An HTTP front.
#[derive(Clone, Debug)]
pub struct HttpFront {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Host names served; empty: every host on this listener.
    pub hosts: Vec<String>,
    /// What it has in common with other fronts there.
    pub listener: ListenerSettings,
    /// Everything else.
    pub settings: Settings,
}

impl HttpFront {
    /// In the clear, with every default.
    pub fn plain(listen: SocketAddr, hosts: &[&str]) -> Self {
        let hosts = hosts.iter().map(ToString::to_string).collect();
        Self { listen, hosts, listener: ListenerSettings::default(), settings: Settings::default() }
    }
}

/// A PostgreSQL front.
#[derive(Clone)]
pub struct PostgresFront {
    /// Where it listens.
    pub listen: SocketAddr,
    /// The database as clients name it; which one that is in a zone says the placement.
    pub database: String,
    /// How clients prove who they are.
    pub auth: PostgresAuth,
    /// Its certificate; none: no TLS.
    pub tls: Option<FrontTls>,
    /// Passwords of roles at the databases, where they are not what clients prove; `Debug` leaves them out.
    pub passwords: BTreeMap<String, String>,
    /// Sessions at once.
    pub connections: usize,
    /// How long a client may take to log in.
    pub startup: Duration,
    /// Names of custom settings that sessions have and that functions of the database set.
    pub settings: Vec<String>,
    /// How clients share connections; none: each has its own.
    pub pool: Option<PostgresPool>,
}

/// Connections to the database that clients share, each for a transaction at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PostgresPool {
    /// Connections for each role.
    pub size: usize,
    /// How long a client may wait for one.
    pub wait: Duration,
    /// One that nobody took for so long is closed.
    pub idle: Duration,
    /// Prepared statements that are kept on each.
    pub statements: usize,
}

impl Default for PostgresPool {
    fn default() -> Self {
        Self { size: 20, wait: Duration::from_secs(30), idle: Duration::from_mins(10), statements: 200 }
    }
}

impl fmt::Debug for PostgresFront {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresFront")
            .field("listen", &self.listen)
            .field("database", &self.database)
            .field("auth", &self.auth)
            .field("tls", &self.tls)
            .field("connections", &self.connections)
            .field("startup", &self.startup)
            .field("settings", &self.settings)
            .field("pool", &self.pool)
            .finish_non_exhaustive()
    }
}

/// Where the verifiers are that clients prove themselves by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PostgresAuth {
    /// Asked of the primary with this query, `$1` is the role; none: of `pg_authid`.
    Query(Option<String>),
    /// In this file.
    File(PathBuf),
    /// Nowhere: whoever comes is who he says; only on loopback.
    Trust,
}

/// PEM files of a front.
#[derive(Clone, Debug)]
pub struct FrontTls {
    /// Certificate chain.
    pub cert: PathBuf,
    /// Private key.
    pub key: PathBuf,
    /// Clients without TLS are refused.
    pub required: bool,
}

/// The resource in one zone.
#[derive(Clone, Debug)]
pub struct Placement {
    /// Its zone.
    pub zone: String,
    /// HTTP endpoints as this node reaches them, `host:port`; with a driver, worker i answers at endpoint i. Empty: the
    /// driver has not said yet where they are.
    pub http: Vec<String>,
    /// How they are spoken to.
    pub upstream: Upstream,
    /// Path of the HTTP probe.
    pub probe: String,
    /// Its database.
    pub postgres: Option<Database>,
    /// Workers at full capacity.
    pub capacity: u32,
    /// Cost of one worker for an hour, in the operator's currency: its own, or its zone's.
    pub cost_per_hour: Option<f64>,
    /// Name of its driver.
    pub driver: Option<String>,
    /// What the driver decides, and the configuration does not say.
    pub provided: Provided,
}

/// What of a placement its driver decides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Provided {
    /// The endpoints of the service.
    pub http: bool,
    /// The database.
    pub postgres: bool,
}

impl Placement {
    /// Whether it has a database, known from the start or by its driver.
    pub fn has_database(&self) -> bool {
        self.postgres.is_some() || self.provided.postgres
    }
}

impl Provided {
    /// The driver decides something.
    pub fn any(self) -> bool {
        self.http || self.postgres
    }
}

/// A database of a placement.
#[derive(Clone, Debug)]
pub struct Database {
    /// How to reach it, password and TLS included.
    pub dsn: Dsn,
    /// Directory with `pg_dump` for the first copy of the schema; none: found on PATH.
    pub bin: Option<PathBuf>,
    /// Roles that applications use: the fence takes CONNECT from them and ends their sessions. Empty: all but Godwit's own.
    pub app_roles: Vec<String>,
    /// While it serves, a row of Godwit's own is written to it at each step, to see what a commit takes.
    pub heartbeat: bool,
}

/// A way of provisioning.
#[derive(Clone, Debug)]
pub enum Driver {
    /// Processes of this machine.
    Process(ProcessDriver),
    /// Something outside of this process that speaks the contract of docs/drivers.md.
    Outside(OutsideDriver),
    /// Workloads of a Kubernetes cluster; only in builds with that feature.
    Kubernetes(KubernetesDriver),
}

impl Driver {
    /// The most workers it has addresses for; none: it makes its own.
    pub fn most(&self) -> Option<usize> {
        match self {
            Self::Process(process) => Some(process.listen.len()),
            Self::Outside(_) | Self::Kubernetes(_) => None,
        }
    }

    /// What the files call it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Process(_) => "process",
            Self::Outside(OutsideDriver { way: Way::Exec(_), .. }) => "exec",
            Self::Outside(OutsideDriver { way: Way::Webhook(_), .. }) => "webhook",
            Self::Kubernetes(_) => "kubernetes",
        }
    }

    /// It may serve many placements, and decide where they are.
    pub fn provides(&self) -> bool {
        !matches!(self, Self::Process(_))
    }

    /// Password of the databases that it makes; none: that of the primary.
    pub fn password(&self) -> Option<&Secret> {
        match self {
            Self::Process(_) => None,
            Self::Outside(outside) => outside.password.as_ref(),
            Self::Kubernetes(kubernetes) => kubernetes.password.as_ref(),
        }
    }
}

/// A driver outside of this process.
#[derive(Clone, Debug)]
pub struct OutsideDriver {
    /// How it is asked.
    pub way: Way,
    /// Passed on with each request.
    pub parameters: serde_json::Value,
    /// How often its status is asked for.
    pub every: Duration,
    /// How long an operation may take.
    pub deadline: Duration,
    /// Password of the databases that it makes; none: that of the primary.
    pub password: Option<Secret>,
}

/// How an outside driver is asked.
#[derive(Clone, Debug)]
pub enum Way {
    /// A program.
    Exec(ExecDriver),
    /// A service.
    Webhook(WebhookDriver),
}

/// The `exec` driver's settings.
#[derive(Clone, Debug)]
pub struct ExecDriver {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Environment variables beside the few that are passed on.
    pub environment: BTreeMap<String, Secret>,
}

/// The `webhook` driver's settings.
#[derive(Clone, Debug)]
pub struct WebhookDriver {
    /// Where requests are posted.
    pub url: url::Url,
    /// Signs them.
    pub secret: Secret,
    /// PEM file of the authority that vouches for the service; none: this machine's.
    pub authority: Option<PathBuf>,
}

/// The `kubernetes` driver's settings.
#[derive(Clone, Debug)]
pub struct KubernetesDriver {
    /// Its file; none: the service account of the pod this runs in.
    pub kubeconfig: Option<PathBuf>,
    /// A context of the file; none: its current one.
    pub context: Option<String>,
    /// Where the objects are.
    pub namespace: String,
    /// What runs the workers.
    pub workload: Option<Workload>,
    /// A cluster of CloudNativePG; none: the database is not this driver's to run.
    pub cluster: Option<String>,
    /// Instances that the cluster gets when it is provisioned; none: as many as it has.
    pub instances: Option<u32>,
    /// Endpoints of the workers, where the placement gives none.
    pub http: Vec<String>,
    /// How often its status is asked for.
    pub every: Duration,
    /// How long an operation may take.
    pub deadline: Duration,
    /// Password of the databases that it makes; none: that of the primary.
    pub password: Option<Secret>,
}

/// An object with the scale subresource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// `deployment` or `statefulset`.
    pub kind: WorkloadKind,
    /// Its name.
    pub name: String,
}

/// Kinds of [`Workload`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkloadKind {
    /// apps/v1 Deployment.
    Deployment,
    /// apps/v1 StatefulSet.
    StatefulSet,
}

/// The `process` driver's settings.
#[derive(Clone)]
pub struct ProcessDriver {
    /// Where pid files and logs go.
    pub directory: PathBuf,
    /// The service's command; `{listen}` and `{dsn}` are filled in.
    pub argv: Vec<String>,
    /// Where worker i listens; as many as the placement's capacity.
    pub listen: Vec<SocketAddr>,
    /// What the service connects to, text for `{dsn}` and the workers' `DATABASE_URL`; may hold a password, so `Debug` leaves it out.
    pub service_dsn: String,
    /// Environment variables of the workers beside the few that are passed on.
    pub environment: BTreeMap<String, Secret>,
    /// Path that answers 200 when a worker is ready.
    pub ready: String,
    /// A cluster to start (and create when missing).
    pub cluster: Option<ProcessCluster>,
}

impl fmt::Debug for ProcessDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProcessDriver")
            .field("directory", &self.directory)
            .field("argv", &self.argv)
            .field("listen", &self.listen)
            .field("ready", &self.ready)
            .field("cluster", &self.cluster)
            .finish_non_exhaustive()
    }
}

/// A PostgreSQL cluster run by the `process` driver.
#[derive(Clone, Debug)]
pub struct ProcessCluster {
    /// Directory with `initdb` and `pg_ctl`.
    pub bin: PathBuf,
    /// Data directory.
    pub data: PathBuf,
    /// Where it listens.
    pub listen: SocketAddr,
    /// Who needs no password there.
    pub trusted: Trusted,
    /// How Godwit itself logs in there.
    pub logins: Vec<Dsn>,
    /// Files of the verifiers that clients of a front come with.
    pub verifiers: Vec<PathBuf>,
}

/// Who comes from this machine into a cluster of the `process` driver without a password. Its superuser never does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trusted {
    /// These roles: those that the configuration has no password for.
    Roles(BTreeSet<String>),
    /// Every role.
    All,
}

impl Trusted {
    /// Whether this role is among them.
    pub fn has(&self, role: &str) -> bool {
        match self {
            Self::Roles(roles) => roles.contains(role),
            Self::All => true,
        }
    }

    /// This role, too.
    pub fn add(&mut self, role: &str) {
        if let Self::Roles(roles) = self {
            roles.insert(role.to_owned());
        }
    }
}
