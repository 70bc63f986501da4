//! The PostgreSQL front between real clients and real clusters.

#![allow(clippy::unwrap_used)]

mod bench;
mod cutover;
mod debezium;
mod drivers;
mod moves;
mod oids;
mod pooled;
mod protocol;
mod rehearsal;
mod rounds;
pub(crate) mod suite;
mod tls;
mod verifiers;

use std::collections::BTreeMap;
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use godwit::config::model::{
    Database, HoldLimits, Placement, PostgresAuth, PostgresFront as Settings, Provided, Resource,
};
use godwit::fronts::http::settings::Upstream;
use godwit::fronts::http::{Background, ServerSettings, server};
use godwit::fronts::latencies::{Latencies, Recorder};
use godwit::fronts::postgres::{Active, PostgresFront, service};
use godwit_tests::postgres::{SUPERUSER, TestCluster, free_port, other_major};
use migration::policy::{Policy, PolicyParts};
use replicator::postgres::Dsn;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_postgres::{AsyncMessage, Client, Config, NoTls};

const DEADLINE: Duration = Duration::from_secs(30);
const DATABASE: &str = "shop";
const PASSWORD: &str = "correct horse";
const HOLD: HoldLimits = HoldLimits { requests: 1000, bytes: 64 << 20, time: Duration::from_secs(30) };
/// Everybody but the superuser proves who he is.
const HBA: &str = "local all all trust\nhost all postgres all trust\nhost all all all scram-sha-256\n";
const SCHEMA: &str = "CREATE TABLE item (id bigint PRIMARY KEY, note text); GRANT ALL ON item TO app; \
    CREATE TYPE mood AS ENUM ('glad', 'sad')";

/// A front, served in this process.
struct Served {
    front: Arc<PostgresFront>,
    latencies: Latencies,
    _recorder: Arc<Recorder>,
    _server: Background,
}

/// The settings that most tests have; everybody proves who he is.
fn settings(database: &str) -> anyhow::Result<Settings> {
    Ok(Settings {
        listen: SocketAddr::from(([127, 0, 0, 1], free_port()?)),
        database: database.into(),
        auth: PostgresAuth::Query(None),
        tls: None,
        passwords: BTreeMap::new(),
        connections: 100,
        startup: Duration::from_secs(10),
        settings: Vec::new(),
        pool: None,
    })
}

impl Served {
    /// A front onto the first of these zones.
    async fn start(settings: &Settings, hold: HoldLimits, zones: &[(&str, Dsn)]) -> Self {
        let placement = |(zone, dsn): &(&str, Dsn)| Placement {
            zone: (*zone).into(),
            http: Vec::new(),
            upstream: Upstream::default(),
            probe: "/".into(),
            postgres: Some(Database { dsn: dsn.clone(), bin: None, app_roles: Vec::new(), heartbeat: false }),
            capacity: 1,
            cost_per_hour: None,
            driver: None,
            provided: Provided::default(),
        };
        let primary = zones[0].0;
        let resource = Resource {
            name: "shop".into(),
            http: None,
            postgres: Some(settings.clone()),
            placements: zones.iter().map(|zone| (zone.0.into(), placement(zone))).collect(),
            flexible: None,
            primary: primary.into(),
            policy: Policy::new(PolicyParts::default()).unwrap(),
            freeze: Vec::new(),
        };
        let recorder = Recorder::new();
        let active = Active { generation: 0, zone: primary.into() };
        let front = PostgresFront::new(&resource, settings, hold, active, &recorder).unwrap();
        let mut server = server(ServerSettings::default());
        server.add_service(service(&front));
        let server = Background::run(server).unwrap();
        let address = settings.listen;
        until("the front listens", async || TcpStream::connect(address).await.is_ok()).await;
        until("who looked has left", async || front.sessions() == 0).await;
        Self { front, latencies: recorder.reader(), _recorder: recorder, _server: server }
    }
}

/// Two clusters with the same roles, and a front onto the first.
struct Setup {
    clusters: [TestCluster; 2],
    served: Served,
}

impl std::ops::Deref for Setup {
    type Target = Served;

    fn deref(&self) -> &Served {
        &self.served
    }
}

async fn cluster(major: u32, extra: &str) -> TestCluster {
    let cluster = TestCluster::start_with(major, extra).unwrap();
    std::fs::write(cluster.cluster.data.join("pg_hba.conf"), HBA).unwrap();
    let client = cluster.connect("postgres").await.unwrap();
    let sql = "SELECT pg_reload_conf(); CREATE ROLE app LOGIN; CREATE ROLE clerk; GRANT clerk TO app";
    client.batch_execute(sql).await.unwrap();
    cluster.create_database_of_superuser(DATABASE, SCHEMA).await.unwrap();
    // The reload is done when the file's lines are the ones in force.
    until("the hba file is read", async || cluster.config_as("app", DATABASE).connect(NoTls).await.is_err())
        .await;
    cluster
}

/// The same password with the same salt: what a copy of the roles gives.
async fn same_verifier(clusters: &[TestCluster; 2], role: &str) {
    let [one, other] = clusters;
    let (one, other) = (one.connect("postgres").await.unwrap(), other.connect("postgres").await.unwrap());
    one.batch_execute(&format!("ALTER ROLE {role} PASSWORD '{PASSWORD}'")).await.unwrap();
    let row = one.query_one("SELECT rolpassword FROM pg_authid WHERE rolname = $1", &[&role]).await.unwrap();
    let verifier: String = row.get(0);
    other.batch_execute(&format!("ALTER ROLE {role} PASSWORD '{verifier}'")).await.unwrap();
}

impl Setup {
    async fn start() -> Self {
        Self::with(HOLD, |_| {}, "").await
    }

    async fn with(hold: HoldLimits, change: impl FnOnce(&mut Settings), extra: &str) -> Self {
        let clusters = [cluster(15, extra).await, cluster(other_major(), extra).await];
        same_verifier(&clusters, "app").await;
        let mut settings = settings(DATABASE).unwrap();
        change(&mut settings);
        let [a, b] = &clusters;
        let zones = [("a", a.config_as(SUPERUSER, DATABASE)), ("b", b.config_as(SUPERUSER, DATABASE))];
        let served = Served::start(&settings, hold, &zones).await;
        Self { clusters, served }
    }

    fn config(&self) -> Config {
        let mut config = Config::new();
        let listen = self.front.settings.listen;
        config
            .host(listen.ip().to_string())
            .port(listen.port())
            .user("app")
            .password(PASSWORD)
            .dbname(DATABASE);
        config
    }

    async fn connect(&self) -> Client {
        self.session().await.client
    }

    async fn session(&self) -> Session {
        Session::start(&self.config()).await
    }

    /// Holds everybody, as a cutover does, ready for the other side.
    async fn hold(&self) {
        let next = if &*self.front.active().zone == "a" { "b" } else { "a" };
        let [here, there] = if next == "b" { [0, 1] } else { [1, 0] }.map(|at| &self.clusters[at]);
        let (here, there) = (here.connect(DATABASE).await.unwrap(), there.connect(DATABASE).await.unwrap());
        self.front.learn_numbers(next, &here, &there).await.unwrap();
        self.front.turnstile.arm();
        assert!(self.front.turnstile.close_if_armed(Some(next.into()), false));
        tokio::time::timeout(DEADLINE, self.front.turnstile.drained()).await.expect("drained");
    }

    /// Ends the sessions of clients on the active side, as the fence does.
    async fn fence(&self) {
        let client = self.here().connect(DATABASE).await.unwrap();
        let theirs = "FROM pg_stat_activity WHERE usename = 'app' AND pid <> pg_backend_pid()";
        let pids = client.query(&format!("SELECT pid {theirs}"), &[]).await.unwrap();
        let sql = format!("SELECT count(pg_terminate_backend(pid)) {theirs}");
        until("sessions have ended", async || {
            client.query_one(&sql, &[]).await.unwrap().get::<_, i64>(0) == 0
        })
        .await;
        // A session is not listed any more before its process, and with it the connection, is gone.
        let gone = |pid: i32| !std::path::Path::new(&format!("/proc/{pid}")).exists();
        until("their processes are gone", async || pids.iter().all(|row| gone(row.get(0)))).await;
    }

    /// Sends everybody to the other side.
    async fn swap(&self) {
        let active = self.front.active();
        let zone = if &*active.zone == "a" { "b" } else { "a" };
        self.front.swap(Active { generation: active.generation + 1, zone: zone.into() }).unwrap();
        tokio::time::timeout(DEADLINE, self.front.turnstile.prepared()).await.expect("prepared");
        self.front.turnstile.open();
    }

    async fn cutover(&self) {
        self.hold().await;
        self.fence().await;
        self.swap().await;
    }

    fn here(&self) -> &TestCluster {
        &self.clusters[usize::from(&*self.front.active().zone == "b")]
    }

    fn psql(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.clusters[0].cluster.bin.join("psql"));
        let listen = self.front.settings.listen;
        command
            .args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1"])
            .arg(format!(
                "host={} port={} user=app dbname={DATABASE} sslmode=prefer",
                listen.ip(),
                listen.port()
            ))
            .args(arguments)
            .env("PGPASSWORD", PASSWORD)
            .env_remove("PGOPTIONS");
        command
    }
}

/// A client with what it was told besides.
struct Session {
    client: Client,
    aside: mpsc::UnboundedReceiver<AsyncMessage>,
    /// Why its connection ended.
    ended: tokio::task::JoinHandle<Option<tokio_postgres::Error>>,
}

impl Session {
    async fn start(config: &Config) -> Self {
        let (client, mut connection) = config.connect(NoTls).await.unwrap();
        let (told, aside) = mpsc::unbounded_channel();
        let ended = tokio::spawn(async move {
            loop {
                match std::future::poll_fn(|cx| connection.poll_message(cx)).await {
                    Some(Ok(message)) => drop(told.send(message)),
                    Some(Err(error)) => return Some(error),
                    None => return None,
                }
            }
        });
        Self { client, aside, ended }
    }

    async fn notification(&mut self) -> (String, String, i32) {
        loop {
            let message = tokio::time::timeout(DEADLINE, self.aside.recv()).await.expect("a notification");
            if let AsyncMessage::Notification(told) = message.unwrap() {
                return (told.channel().into(), told.payload().into(), told.process_id());
            }
        }
    }

    async fn error(self) -> (String, String) {
        let error =
            tokio::time::timeout(DEADLINE, self.ended).await.expect("the end").unwrap().expect("an error");
        let error = error.as_db_error().expect("told by the server").clone();
        (error.code().code().into(), error.detail().unwrap_or_default().into())
    }
}

/// A `psql` that reads commands from us for as long as it lives.
struct Psql {
    child: Child,
    output: Arc<Mutex<String>>,
}

impl Psql {
    fn start(setup: &Setup) -> Self {
        let mut child = setup
            .psql(&[])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let output = Arc::new(Mutex::new(String::new()));
        let streams: [Box<dyn std::io::Read + Send>; 2] =
            [Box::new(child.stdout.take().unwrap()), Box::new(child.stderr.take().unwrap())];
        for mut stream in streams {
            let output = Arc::clone(&output);
            std::thread::spawn(move || {
                let mut bytes = [0; 4096];
                while let Ok(count @ 1..) = stream.read(&mut bytes) {
                    output.lock().unwrap().push_str(&String::from_utf8_lossy(&bytes[..count]));
                }
            });
        }
        Self { child, output }
    }

    fn say(&mut self, text: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{text}").unwrap();
    }

    async fn until(&self, text: &str) {
        let seen = || self.output.lock().unwrap().clone();
        let wait = until_quiet(async || seen().contains(text));
        assert!(wait.await, "psql never said {text:?}: {}", seen());
    }
}

impl Drop for Psql {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn until_quiet(mut fact: impl AsyncFnMut() -> bool) -> bool {
    let wait = async {
        while !fact().await {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(DEADLINE, wait).await.is_ok()
}

async fn until(what: &str, fact: impl AsyncFnMut() -> bool) {
    assert!(until_quiet(fact).await, "waited too long until {what}");
}

fn sqlstate(error: &tokio_postgres::Error) -> &str {
    error.code().unwrap_or_else(|| panic!("no SQLSTATE: {error}")).code()
}

async fn port(client: &Client) -> i32 {
    client.query_one("SELECT inet_server_port()", &[]).await.unwrap().get(0)
}

/// A file in the cluster's directory, which goes with it.
fn file(setup: &Setup, name: &str) -> PathBuf {
    setup.clusters[0].directory().join(name)
}
