//! The server itself and the two proxies, as processes of ours with one thread each.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use async_trait::async_trait;
use godwit::config::model::{
    Database, HoldLimits, Placement, PostgresAuth, PostgresFront as Settings, PostgresPool, Provided,
    Resource,
};
use godwit::drivers::process::cluster::DropTo;
use godwit::fronts::http::settings::Upstream;
use godwit::fronts::http::{ServerSettings, server};
use godwit::fronts::latencies::{Latencies, Recorder};
use godwit::fronts::postgres::{Active, PostgresFront, service};
use migration::policy::{Policy, PolicyParts};
use pingora::server::ShutdownWatch;
use pingora::services::background::{BackgroundService, background_service};

use super::DATABASE;
use crate::http::peers::{Running, free, until_listening};
use crate::replication::Server;

/// Sessions at once that each of them lets in.
const MOST: usize = 900;

/// What clients connect to.
pub(super) struct Peer {
    pub(super) name: &'static str,
    pub(super) address: SocketAddr,
    /// It lets clients that share connections have prepared statements.
    pub(super) prepares: bool,
    /// None: the server itself.
    child: Option<Running>,
}

impl Peer {
    pub(super) fn is_proxy(&self) -> bool {
        self.child.is_some()
    }

    /// User and system time of the proxy so far.
    pub(super) fn cpu(&self) -> Result<Duration> {
        self.child.as_ref().map_or(Ok(Duration::ZERO), Running::cpu)
    }

    /// What the proxy has in memory.
    pub(super) fn memory_mib(&self) -> Result<f64> {
        self.child.as_ref().map_or(Ok(0.0), Running::memory_mib)
    }
}

/// `pool`: clients of both share so many connections; none: each has its own.
pub(super) fn start(folder: &Path, upstream: &Server, pool: Option<usize>) -> Result<[Peer; 3]> {
    let direct = SocketAddr::new(upstream.cluster.host.parse()?, upstream.cluster.port);
    let (bouncer, godwit) = (free()?, free()?);
    let prepares = !old_pgbouncer();
    let bouncing = pgbouncer(folder, bouncer, direct, pool, prepares)?;
    let fronting = Running::start(
        Command::new(std::env::current_exe()?)
            .arg("postgres-front")
            .args([godwit, direct].map(|address| address.to_string()))
            .args(pool.map(|size| format!("--pool={size}"))),
    )?;
    for (name, address) in [("pgbouncer", bouncer), ("godwit", godwit)] {
        until_listening(address).with_context(|| format!("{name} does not listen"))?;
    }
    Ok([
        Peer { name: "direct", address: direct, prepares: true, child: None },
        Peer { name: "pgbouncer", address: bouncer, prepares, child: Some(bouncing) },
        Peer { name: "godwit", address: godwit, prepares: true, child: Some(fronting) },
    ])
}

fn pgbouncer(
    folder: &Path,
    listen: SocketAddr,
    upstream: SocketAddr,
    pool: Option<usize>,
    prepares: bool,
) -> Result<Running> {
    let (mode, size) = pool.map_or(("session", MOST), |size| ("transaction", size));
    let prepares = if prepares { "max_prepared_statements = 200\n" } else { "" };
    let own = folder.join("pgbouncer");
    std::fs::create_dir_all(&own)?;
    let at = own.display();
    let config = format!(
        "[databases]\n{DATABASE} = host={} port={}\n[pgbouncer]\nlisten_addr = {}\nlisten_port = {}\nunix_socket_dir =\n\
         auth_type = trust\nauth_file = {at}/users.txt\npool_mode = {mode}\nserver_reset_query =\n\
         max_client_conn = {MOST}\ndefault_pool_size = {size}\nlog_connections = 0\nlog_disconnections = 0\n\
         ignore_startup_parameters = extra_float_digits\n{prepares}",
        upstream.ip(),
        upstream.port(),
        listen.ip(),
        listen.port(),
    );
    let path = own.join("pgbouncer.ini");
    std::fs::write(&path, config)?;
    std::fs::write(own.join("users.txt"), "\"postgres\" \"\"\n")?;
    let mut command = Command::new(pgbouncer_program());
    command.arg("-q").arg(&path);
    // It refuses to run as root.
    if let Some(user) = DropTo::find()? {
        for path in [folder, &own] {
            std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        }
        user.own(&own)?;
        user.apply(&mut command);
    }
    Running::start(&mut command)
}

/// Before 1.21, as Debian 12 has it; also where its version cannot be read.
fn old_pgbouncer() -> bool {
    let said = Command::new(pgbouncer_program()).arg("--version").output();
    let said = said.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let version = said.split_whitespace().nth(1).unwrap_or_default();
    let mut parts = version.split('.').map_while(|part| part.parse::<u32>().ok());
    (parts.next(), parts.next()) < (Some(1), Some(21))
}

fn pgbouncer_program() -> &'static str {
    let found =
        ["/usr/sbin/pgbouncer", "/usr/bin/pgbouncer"].into_iter().find(|path| Path::new(path).exists());
    found.unwrap_or("pgbouncer")
}

/// Serves as the front, with one thread, until killed.
pub(crate) fn front(listen: SocketAddr, upstream: SocketAddr, pool: Option<usize>) -> Result<()> {
    let pool =
        pool.map(|size| PostgresPool { size, wait: Duration::from_mins(2), ..PostgresPool::default() });
    let settings = Settings {
        listen,
        database: DATABASE.into(),
        auth: PostgresAuth::Trust,
        tls: None,
        passwords: BTreeMap::new(),
        connections: MOST,
        startup: Duration::from_secs(10),
        settings: Vec::new(),
        pool,
    };
    let mut dsn = replicator::postgres::Dsn::default();
    dsn.host(upstream.ip().to_string()).port(upstream.port()).user("postgres").dbname(DATABASE);
    let placement = Placement {
        zone: "here".into(),
        http: Vec::new(),
        upstream: Upstream::default(),
        probe: "/".into(),
        postgres: Some(Database { dsn, bin: None, app_roles: Vec::new(), heartbeat: false }),
        capacity: 1,
        cost_per_hour: None,
        driver: None,
        provided: Provided::default(),
    };
    let resource = Resource {
        name: DATABASE.into(),
        http: None,
        postgres: Some(settings.clone()),
        placements: BTreeMap::from([("here".into(), placement)]),
        flexible: None,
        primary: "here".into(),
        policy: Policy::new(PolicyParts::default()).map_err(|problems| anyhow::anyhow!("{problems:?}"))?,
        freeze: Vec::new(),
    };
    let hold = HoldLimits { requests: 1000, bytes: 64 << 20, time: Duration::from_secs(5) };
    let recorder = Recorder::new();
    let active = Active { generation: 0, zone: "here".into() };
    let front = PostgresFront::new(&resource, &settings, hold, active, &recorder)?;
    let mut server = server(ServerSettings { threads: 1, ..ServerSettings::default() });
    server.add_service(service(&front));
    // As it runs in production: what it measures is collected.
    let reporting = Reporting { reader: recorder.reader(), recorder };
    server.add_service(background_service("report", reporting));
    server.run_forever()
}

struct Reporting {
    recorder: Arc<Recorder>,
    reader: Latencies,
}

#[async_trait]
impl BackgroundService for Reporting {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        let _reader = &self.reader;
        let mut ticks = tokio::time::interval(Duration::from_millis(250));
        loop {
            tokio::select! {
                _ = ticks.tick() => self.recorder.collect(),
                _ = shutdown.changed() => return,
            }
        }
    }
}
