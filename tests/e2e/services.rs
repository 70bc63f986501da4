//! The process driver, the order service, the load generator and the playground, with real processes and databases.

#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use godwit::config::model::{ProcessCluster, ProcessDriver, Trusted};
use godwit::demo::load::{self, Load};
use godwit::demo::orders;
use godwit::demo::orders::schema::{self, Seed};
use godwit::demo::zone::{self, Playground};
use godwit::drivers::process::cluster::installed;
use godwit::drivers::process::{ProcessProvisioning, Timeouts};
use godwit::drivers::{DriverErrorKind, Operation, PlacementStatus, Provisioning};
use godwit_tests::postgres::{TestCluster, other_major};
use godwit_tests::waiting::until;
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_postgres::Client;

mod access;

const PROGRAM: &str = env!("CARGO_BIN_EXE_godwit-under-test");
/// Set in the process that provisions and is killed; see [`provision_and_wait`].
const DIRECTORY: &str = "GODWIT_TEST_PROVISION";

fn directory() -> Result<tempfile::TempDir> {
    let directory = tempfile::Builder::new().prefix("godwit-services-").tempdir()?;
    std::fs::set_permissions(directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    Ok(directory)
}

fn settings(home: &Path, workers: usize, ports: &[u16]) -> Result<ProcessDriver> {
    let listen = |port: &u16| SocketAddr::from(([127, 0, 0, 1], *port));
    let database = listen(&ports[workers]);
    Ok(ProcessDriver {
        directory: home.join("driver"),
        argv: [PROGRAM, "demo-orders", "--listen", "{listen}", "--dsn", "{dsn}"].map(str::to_owned).to_vec(),
        listen: ports[..workers].iter().map(listen).collect(),
        service_dsn: format!("postgres://orders_app@{database}/orders"),
        environment: std::collections::BTreeMap::new(),
        ready: "/readyz".into(),
        cluster: Some(ProcessCluster {
            bin: installed(15).context("PostgreSQL 15")?,
            data: home.join("data"),
            listen: database,
            trusted: Trusted::Roles(["orders_app".to_owned()].into()),
            logins: Vec::new(),
            verifiers: Vec::new(),
        }),
    })
}

fn without_cluster(home: &Path, argv: &[&str], listen: SocketAddr) -> ProcessDriver {
    ProcessDriver {
        directory: home.join("driver"),
        argv: argv.iter().map(ToString::to_string).collect(),
        listen: vec![listen],
        service_dsn: String::new(),
        environment: std::collections::BTreeMap::new(),
        ready: "/healthz".into(),
        cluster: None,
    }
}

fn pid(settings: &ProcessDriver, worker: usize) -> Option<u64> {
    let file = settings.directory.join(format!("worker-{worker}.pid"));
    let text = std::fs::read_to_string(file).ok()?;
    serde_json::from_str::<Value>(&text).ok()?["pid"].as_u64()
}

fn pids(settings: &ProcessDriver) -> Vec<Option<u64>> {
    (0..settings.listen.len()).map(|worker| pid(settings, worker)).collect()
}

/// Gone, or a zombie that nobody has reaped.
fn gone(pid: u64) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .ok()
        .and_then(|stat| {
            let fields: Vec<&str> = stat.rsplit(')').next()?.split_whitespace().collect();
            // A zombie whose other threads still end holds its sockets.
            Some(fields[0] == "Z" && fields[17] == "1")
        })
        .unwrap_or(true)
}

fn signal(name: &str, pid: u64) -> Result<()> {
    let status = std::process::Command::new("kill").args([name, &pid.to_string()]).status()?;
    ensure!(status.success(), "kill {name} {pid}");
    Ok(())
}

/// Kills what a failed test leaves.
struct Cleanup(ProcessProvisioning);

impl Drop for Cleanup {
    fn drop(&mut self) {
        if let Err(error) = self.0.kill() {
            eprintln!("not cleaned up: {error}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_provisions_scales_mends_and_ends_what_is_its_own() -> Result<()> {
    let home = directory()?;
    let settings = settings(home.path(), 3, &zone::free_ports(4)?)?;
    let driver = ProcessProvisioning::new(settings.clone());
    let _cleanup = Cleanup(driver.clone());
    let error = driver.scale(&"early".into(), 1).await.unwrap_err();
    assert_eq!(error.kind(), DriverErrorKind::Refused, "{error}");
    assert!(driver.deprovision(&"early".into()).await.is_err());

    let one = PlacementStatus { ready: 1, capacity: 1, database: true };
    assert_eq!(driver.provision(&"op-1".into(), &1.into()).await?, one);
    let first = pids(&settings);
    assert_eq!(driver.provision(&"op-1".into(), &1.into()).await?, one);
    assert_eq!(pids(&settings), first, "the same operation does its work once");
    assert_eq!(driver.scale(&"op-1".into(), 1).await.unwrap_err().kind(), DriverErrorKind::Refused);
    assert_eq!(driver.scale(&"op-x".into(), 4).await.unwrap_err().kind(), DriverErrorKind::Refused);

    let three = PlacementStatus { ready: 3, capacity: 3, database: true };
    assert_eq!(driver.scale(&"op-2".into(), 3).await?, three);
    let all = pids(&settings);
    assert_eq!(all[0], first[0]);
    assert!(all.iter().all(Option::is_some));

    // A new driver on the same directory: the workers are found, not started again.
    let driver = ProcessProvisioning::new(settings.clone());
    assert_eq!(driver.status().await?, three);
    assert_eq!(driver.scale(&"op-2".into(), 3).await?, three);
    assert_eq!(pids(&settings), all);

    // One dies: its successor answers soon, the others are left alone.
    let victim = all[1].context("pid")?;
    signal("-KILL", victim)?;
    until("the worker is gone", async || Ok(gone(victim))).await?;
    until("status mends it", async || Ok(driver.status().await? == three)).await?;
    let mended = pids(&settings);
    assert_ne!(mended[1], all[1]);
    assert_eq!((mended[0], mended[2]), (all[0], all[2]));

    // A worker whose pid file was never written is recognised by its mark.
    std::fs::remove_file(settings.directory.join("worker-2.pid"))?;
    assert_eq!(driver.status().await?, three);
    assert_eq!(pids(&settings), mended);

    // A pid file that means a process which is not ours: recycled. It must survive.
    let mut stranger = tokio::process::Command::new("sleep").arg("600").kill_on_drop(true).spawn()?;
    let recycled = json!({"pid": stranger.id(), "started": 1, "boot": "x"}).to_string();
    std::fs::write(settings.directory.join("worker-7.pid"), recycled)?;
    assert_eq!(driver.scale(&"op-3".into(), 1).await?, one);
    assert_eq!(pids(&settings), [mended[0], None, None]);
    for old in [mended[1], mended[2]].into_iter().flatten() {
        assert!(gone(old));
    }

    driver.deprovision(&"op-4".into()).await?;
    driver.deprovision(&"op-4".into()).await?;
    assert_eq!(driver.status().await?, PlacementStatus { ready: 0, capacity: 0, database: false });
    assert!(gone(mended[0].context("pid")?));
    assert!(stranger.try_wait()?.is_none(), "a process that is not ours was ended");

    // Provisioned again: the data is still there.
    assert_eq!(driver.provision(&"op-5".into(), &1.into()).await?, one);
    driver.deprovision(&"op-6".into()).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_database_is_started_again() -> Result<()> {
    let home = directory()?;
    let settings = settings(home.path(), 1, &zone::free_ports(2)?)?;
    let driver = ProcessProvisioning::new(settings.clone());
    let _cleanup = Cleanup(driver.clone());
    driver.provision(&"op-1".into(), &1.into()).await?;
    let postmaster = std::fs::read_to_string(home.path().join("data/postmaster.pid"))?;
    let postmaster = postmaster.lines().next().context("pid")?.trim().parse()?;
    signal("-KILL", postmaster)?;
    until("the database is gone", async || Ok(gone(postmaster))).await?;
    // The start is refused while an orphaned backend still holds the shared memory: then it is tried again.
    until("status mends the database", async || {
        let status = driver.status().await;
        Ok(status.is_ok_and(|status| status == PlacementStatus { ready: 1, capacity: 1, database: true }))
    })
    .await?;
    driver.deprovision(&"op-2".into()).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operation_that_waits_for_a_worker_mends_and_lets_others_have_their_turn() -> Result<()> {
    let home = directory()?;
    let mut settings = settings(home.path(), 1, &zone::free_ports(2)?)?;
    settings.argv = ["sleep", "600"].map(str::to_owned).to_vec();
    let gives_way = Timeouts { ready_for_nobody: Duration::ZERO, ..Timeouts::default() };
    let driver = ProcessProvisioning::with_timeouts(settings.clone(), gives_way);
    let _cleanup = Cleanup(driver.clone());
    let waits = driver.clone();
    let waits = tokio::spawn(async move { waits.provision(&"op-1".into(), &1.into()).await });
    until("its worker runs", async || Ok(pid(&settings, 0).is_some())).await?;
    let postmaster = std::fs::read_to_string(home.path().join("data/postmaster.pid"))?;
    let postmaster = postmaster.lines().next().context("pid")?.trim().parse()?;
    signal("-KILL", postmaster)?;
    until("the database is gone", async || Ok(gone(postmaster))).await?;
    until("it is started again", async || access::gets_in(&settings, "orders_app", None).await).await?;
    assert!(!waits.is_finished());
    let none = PlacementStatus { ready: 0, capacity: 0, database: true };
    assert_eq!(driver.scale(&"op-2".into(), 0).await?, none);
    assert_eq!(waits.await?.unwrap_err().kind(), DriverErrorKind::NotReady);
    // What is only taken over is so with what there is.
    assert_eq!(driver.adopt(&"op-3".into(), 1).await?, PlacementStatus { capacity: 1, ..none });
    driver.deprovision(&"op-4".into()).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_say_which_worker_and_why() -> Result<()> {
    let home = directory()?;
    let listen: SocketAddr = ([127, 0, 0, 1], zone::free_ports(1)?[0]).into();
    let quick = Timeouts { ready: Duration::from_millis(600), ..Timeouts::default() };

    let ends = without_cluster(home.path(), &["sh", "-c", "echo no luck at {listen}; exit 3"], listen);
    let error = ProcessProvisioning::new(ends).provision(&"op".into(), &1.into()).await.unwrap_err();
    assert_eq!(error.kind(), DriverErrorKind::NotReady);
    let said = error.to_string();
    assert!(said.contains("worker 0 at 127.0.0.1:") && said.contains("exit status: 3"), "{said}");
    assert!(said.contains(&format!("no luck at {listen}")), "{said}");

    let home = directory()?;
    let mute = without_cluster(home.path(), &["sleep", "600"], listen);
    let driver = ProcessProvisioning::with_timeouts(mute.clone(), quick);
    let _cleanup = Cleanup(driver.clone());
    let said = driver.provision(&"op".into(), &1.into()).await.unwrap_err().to_string();
    assert!(said.contains("refused the connection") && said.contains("600ms"), "{said}");
    // A failed operation may be tried again under its id, and clearing up works.
    assert!(driver.provision(&"op".into(), &1.into()).await.is_err());
    // Whatever else ends the wait: who is not ready is told before the operation's time is over.
    let short = Operation { id: "short".into(), deadline: Duration::from_secs(2) };
    let said = ProcessProvisioning::new(mute.clone()).provision(&short, &1.into()).await;
    let said = said.unwrap_err().to_string();
    assert!(said.contains("refused the connection") && said.contains("1s"), "{said}");
    driver.deprovision(&"end".into()).await?;
    assert_eq!(pid(&mute, 0), None);

    // One has ended while another one may still become ready: that is told at once.
    let home = directory()?;
    let ports = zone::free_ports(2)?;
    let script = format!("case {{listen}} in *:{}) exit 3;; esac; exec sleep 600", ports[1]);
    let mut both = without_cluster(home.path(), &["sh", "-c", &script], listen);
    both.listen = ports.iter().map(|port| ([127, 0, 0, 1], *port).into()).collect();
    let driver = ProcessProvisioning::new(both);
    let _cleanup_both = Cleanup(driver.clone());
    let said = driver.provision(&"op".into(), &2.into()).await.unwrap_err().to_string();
    assert!(said.contains("worker 1 at") && said.contains("exit status: 3"), "{said}");
    driver.deprovision(&"end".into()).await?;

    // Somebody else's port, and somebody else's directory.
    let home = directory()?;
    let _taken = TcpListener::bind(listen).await?;
    let serves = [PROGRAM, "demo-orders", "--listen", "{listen}", "--dsn", "host=127.0.0.1"];
    let error = ProcessProvisioning::new(without_cluster(home.path(), &serves, listen))
        .provision(&"op".into(), &1.into())
        .await;
    assert_eq!(error.unwrap_err().kind(), DriverErrorKind::Refused);
    let home = directory()?;
    std::fs::create_dir(home.path().join("driver"))?;
    std::fs::write(home.path().join("driver/precious"), "data")?;
    let error = ProcessProvisioning::new(without_cluster(home.path(), &serves, listen))
        .provision(&"op".into(), &1.into())
        .await;
    assert_eq!(error.unwrap_err().kind(), DriverErrorKind::Refused);

    let home = directory()?;
    std::fs::create_dir(home.path().join("data"))?;
    std::fs::write(home.path().join("data/PG_VERSION"), "15")?;
    let error = ProcessProvisioning::new(settings(home.path(), 1, &zone::free_ports(2)?)?)
        .provision(&"op".into(), &1.into())
        .await;
    assert_eq!(error.unwrap_err().kind(), DriverErrorKind::Refused);
    assert!(home.path().join("data/PG_VERSION").exists());
    Ok(())
}

/// Not a test by itself: run by [`workers_outlive_a_kill_9`] as a process of its own, which it kills.
#[tokio::test(flavor = "multi_thread")]
async fn provision_and_wait() -> Result<()> {
    let Some(home) = std::env::var_os(DIRECTORY).map(PathBuf::from) else { return Ok(()) };
    let ports: Vec<u16> = serde_json::from_str(&std::fs::read_to_string(home.join("ports"))?)?;
    ProcessProvisioning::new(settings(&home, 2, &ports)?).provision(&"before".into(), &2.into()).await?;
    std::fs::write(home.join("provisioned"), "")?;
    std::future::pending().await
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_outlive_a_kill_9() -> Result<()> {
    let home = directory()?;
    let ports = zone::free_ports(3)?;
    std::fs::write(home.path().join("ports"), serde_json::to_string(&ports)?)?;
    let settings = settings(home.path(), 2, &ports)?;
    let driver = ProcessProvisioning::new(settings.clone());
    let _cleanup = Cleanup(driver.clone());
    let mut starter = tokio::process::Command::new(std::env::current_exe()?)
        .args(["services::provision_and_wait", "--exact", "--nocapture"])
        .env(DIRECTORY, home.path())
        .kill_on_drop(true)
        .spawn()?;
    until("provisioned", async || {
        if let Some(status) = starter.try_wait()? {
            bail!("the starter ended: {status}");
        }
        Ok(home.path().join("provisioned").exists())
    })
    .await?;
    let before = pids(&settings);
    starter.kill().await?;

    let two = PlacementStatus { ready: 2, capacity: 2, database: true };
    assert_eq!(driver.provision(&"before".into(), &2.into()).await?, two);
    assert_eq!(driver.scale(&"after".into(), 2).await?, two);
    assert_eq!(pids(&settings), before, "adopted, not started again");
    driver.deprovision(&"end".into()).await?;
    for old in before.into_iter().flatten() {
        assert!(gone(old));
    }
    Ok(())
}

/// The service in this process, on a database with the schema and a few rows.
struct Service {
    cluster: TestCluster,
    admin: Client,
    address: SocketAddr,
    http: HttpClient<HttpConnector, Full<Bytes>>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
}

impl Service {
    async fn start() -> Result<Self> {
        let cluster = TestCluster::start(15)?;
        let admin = cluster.create_database_of_superuser("orders", "CREATE ROLE orders_app LOGIN").await?;
        schema::create(&admin).await?;
        schema::seed(&admin, Seed { customers: 50, orders: 200 }).await?;
        schema::grant(&admin, "orders_app").await?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let ended = async move { drop(stopped.await) };
        tokio::spawn(orders::serve(listener, cluster.config_as("orders_app", "orders"), 4, ended));
        let http = HttpClient::builder(TokioExecutor::new()).build_http();
        Ok(Self { cluster, admin, address, http, stop: Some(stop) })
    }

    async fn post(&self, key: &str, customer: i64, amount: &str) -> Result<(u16, Value)> {
        post(&self.http, self.address, key, customer, amount).await
    }

    async fn get(&self, path: &str) -> Result<(u16, Value)> {
        let uri = format!("http://{}{path}", self.address).parse()?;
        answer(self.http.get(uri).await?).await
    }

    async fn terminate(&self) -> Result<u64> {
        let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'orders_app'";
        Ok(self.admin.execute(sql, &[]).await?)
    }

    async fn waiting_for_a_lock(&self) -> Result<bool> {
        let sql = "SELECT 1 FROM pg_stat_activity WHERE usename = 'orders_app' AND wait_event_type = 'Lock'";
        Ok(self.admin.query_opt(sql, &[]).await?.is_some())
    }

    async fn count(&self, key: &str) -> Result<i64> {
        Ok(self.admin.query_one("SELECT count(*) FROM orders WHERE key = $1", &[&key]).await?.get(0))
    }
}

async fn post(
    http: &HttpClient<HttpConnector, Full<Bytes>>,
    address: SocketAddr,
    key: &str,
    customer: i64,
    amount: &str,
) -> Result<(u16, Value)> {
    let body = json!({"key": key, "customer": customer, "amount": amount}).to_string();
    let request = http::Request::post(format!("http://{address}/orders"))
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(body)))?;
    answer(http.request(request).await?).await
}

async fn answer(response: http::Response<hyper::body::Incoming>) -> Result<(u16, Value)> {
    let status = response.status().as_u16();
    let body = response.into_body().collect().await?.to_bytes();
    Ok((status, serde_json::from_slice(&body).unwrap_or_default()))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_is_placed_once_per_key() -> Result<()> {
    let service = Service::start().await?;
    let (status, placed) = service.post("k1", 7, "12.30").await?;
    assert_eq!(status, 201, "{placed}");
    let (status, again) = service.post("k1", 7, "12.3").await?;
    assert_eq!((status, &again), (200, &placed));
    let (status, taken) = service.post("k1", 8, "12.30").await?;
    assert_eq!((status, taken["error"].as_str()), (409, Some("key-taken")));
    assert_eq!(service.post("k2", 9999, "1.00").await?.0, 404);
    assert_eq!(service.post("k2", 1, "0").await?.0, 422);
    assert_eq!(service.count("k2").await?, 0);

    let (status, order) = service.get(&format!("/orders/{}", placed["id"])).await?;
    assert_eq!(status, 200);
    assert_eq!((&order["amount"], &order["payment"]), (&json!("12.30"), &placed["payment"]));
    let (status, customer) = service.get("/customers/7").await?;
    assert_eq!((status, &customer["orders"]), (200, &json!(5)));
    assert_eq!(service.get("/orders/99999").await?.0, 404);
    assert_eq!(service.get("/customers/99999").await?.0, 404);
    assert_eq!(service.get("/healthz").await?.0, 200);
    assert_eq!(service.get("/readyz").await?.0, 200);

    // The same key from many clients at once: one order.
    let racing = futures_join((0..12).map(|_| service.post("race", 3, "5.00"))).await?;
    let new = racing.iter().filter(|(status, _)| *status == 201).count();
    assert_eq!(new, 1, "{racing:?}");
    assert!(racing.iter().all(|(_, body)| body["id"] == racing[0].1["id"]));
    Ok(())
}

/// Polls all of them together.
async fn futures_join<T, F: Future<Output = Result<T>>>(futures: impl Iterator<Item = F>) -> Result<Vec<T>> {
    let mut futures: Vec<_> = futures.map(Box::pin).collect();
    let mut done: Vec<Option<T>> = futures.iter().map(|_| None).collect();
    std::future::poll_fn(|context| {
        for (future, slot) in futures.iter_mut().zip(&mut done) {
            if slot.is_none()
                && let std::task::Poll::Ready(result) = future.as_mut().poll(context)
            {
                match result {
                    Ok(value) => *slot = Some(value),
                    Err(error) => return std::task::Poll::Ready(Err(error)),
                }
            }
        }
        if done.iter().all(Option::is_some) {
            std::task::Poll::Ready(Ok(()))
        } else {
            std::task::Poll::Pending
        }
    })
    .await?;
    Ok(done.into_iter().flatten().collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn terminated_backends_are_replaced_and_a_sent_commit_is_never_repeated() -> Result<()> {
    let service = Service::start().await?;
    // Idle connections that are terminated: nobody notices.
    futures_join((0..4).map(|i| {
        let service = &service;
        async move { service.post(&format!("warm-{i}"), 1, "1.00").await }
    }))
    .await?;
    assert!(service.terminate().await? > 0);
    assert_eq!(service.post("after", 1, "1.00").await?.0, 201);
    assert!(service.terminate().await? > 0);
    assert_eq!(service.get("/customers/1").await?.0, 200);

    // In the middle of the transaction: tried once more, placed once.
    let mut holder = service.cluster.connect("orders").await?;
    let lock = holder.transaction().await?;
    lock.execute("SELECT 1 FROM customers WHERE id = 2 FOR UPDATE", &[]).await?;
    let placed = service.post("middle", 2, "2.00");
    let meddle = async {
        until("blocked before commit", async || service.waiting_for_a_lock().await).await?;
        ensure!(service.terminate().await? > 0);
        until("blocked again", async || service.waiting_for_a_lock().await).await?;
        lock.rollback().await?;
        Ok(())
    };
    let (placed, meddled) = tokio::join!(placed, meddle);
    meddled?;
    let (status, body) = placed?;
    assert_eq!(status, 201, "{body}");
    assert_eq!(service.count("middle").await?, 1);

    // Within COMMIT: the outcome is unknown, and said to be.
    service
        .admin
        .batch_execute(
            "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS
                 'BEGIN PERFORM pg_advisory_xact_lock_shared(42); RETURN NULL; END';
             CREATE CONSTRAINT TRIGGER wait AFTER INSERT ON orders DEFERRABLE INITIALLY DEFERRED
                 FOR EACH ROW EXECUTE FUNCTION wait();",
        )
        .await?;
    holder.execute("SELECT pg_advisory_lock(42)", &[]).await?;
    let placed = service.post("commit", 3, "3.00");
    let meddle = async {
        until("blocked in commit", async || service.waiting_for_a_lock().await).await?;
        ensure!(service.terminate().await? > 0);
        Ok(())
    };
    let (placed, meddled) = tokio::join!(placed, meddle);
    meddled?;
    let (status, body) = placed?;
    assert_eq!((status, body["error"].as_str()), (503, Some("outcome-unknown")), "{body}");
    assert!(!service.waiting_for_a_lock().await?, "tried again behind the client's back");
    holder.execute("SELECT pg_advisory_unlock(42)", &[]).await?;
    assert_eq!(service.count("commit").await?, 0);
    // The client asks again with the same key.
    assert_eq!(service.post("commit", 3, "3.00").await?.0, 201);

    // A fenced database: refused with its code, nothing committed.
    service
        .admin
        .batch_execute(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
                 'BEGIN RAISE EXCEPTION SQLSTATE ''25006''; END';
             CREATE TRIGGER refuse BEFORE INSERT ON payments FOR EACH STATEMENT EXECUTE FUNCTION refuse();",
        )
        .await?;
    let (status, body) = service.post("fenced", 3, "3.00").await?;
    assert_eq!((status, body["error"].as_str()), (503, Some("not-placed")), "{body}");
    assert!(body["detail"].as_str().is_some_and(|detail| detail.contains("25006")), "{body}");
    assert_eq!(service.count("fenced").await?, 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_finishes_its_requests_when_it_is_scaled_away() -> Result<()> {
    let home = directory()?;
    let settings = settings(home.path(), 1, &zone::free_ports(2)?)?;
    let driver = ProcessProvisioning::new(settings.clone());
    let _cleanup = Cleanup(driver.clone());
    driver.provision(&"up".into(), &1.into()).await?;
    let database = settings.cluster.as_ref().context("cluster")?.listen;
    let password = access::cluster_of(&settings)?.superuser_password().context("a password")?;
    let connect = async || -> Result<Client> {
        let dsn = format!("postgres://postgres:{password}@{database}/orders");
        let (client, connection) = tokio_postgres::connect(&dsn, tokio_postgres::NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    };
    let (admin, mut holder) = (connect().await?, connect().await?);
    schema::create(&admin).await?;
    schema::seed(&admin, Seed { customers: 3, orders: 3 }).await?;
    schema::grant(&admin, "orders_app").await?;
    let lock = holder.transaction().await?;
    lock.execute("SELECT 1 FROM customers WHERE id = 2 FOR UPDATE", &[]).await?;
    let http = HttpClient::builder(TokioExecutor::new()).build_http();
    let placed = post(&http, settings.listen[0], "last", 2, "2.00");
    let scaled = async {
        until("the request is in the database", async || {
            let sql =
                "SELECT 1 FROM pg_stat_activity WHERE usename = 'orders_app' AND wait_event_type = 'Lock'";
            Ok(admin.query_opt(sql, &[]).await?.is_some())
        })
        .await?;
        let release = async {
            // Not before the worker has closed its listener: it was told to end.
            until("the worker refuses new connections", async || {
                Ok(tokio::net::TcpStream::connect(settings.listen[0]).await.is_err())
            })
            .await?;
            lock.rollback().await?;
            anyhow::Ok(())
        };
        let last = "down".into();
        let (down, released) = tokio::join!(driver.scale(&last, 0), release);
        released?;
        anyhow::Ok(down?)
    };
    let (placed, scaled) = tokio::join!(placed, scaled);
    assert_eq!(scaled?.ready, 0);
    assert_eq!(placed?.0, 201);
    driver.deprovision(&"end".into()).await?;
    Ok(())
}

fn load(target: SocketAddr, run: &str) -> load::Options {
    load::Options {
        target,
        host: "orders.example".into(),
        rate: 150.0,
        writes: 0.5,
        customers: 50,
        timeout: Duration::from_secs(20),
        seed: 7,
        run: run.into(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_load_generator_finds_what_was_lost_or_doubled() -> Result<()> {
    let mut service = Service::start().await?;
    let running = Load::start(load(service.address, "first"));
    until("some load", async || Ok(running.snapshot().acknowledged >= 60)).await?;
    let live = running.snapshot();
    assert!(live.p50.is_some() && live.p50 <= live.p99 && live.last_second > 0, "{live:?}");
    let outcome = running.stop().await;
    assert_eq!(outcome.totals.failed, 0, "{:?}", outcome.failures);
    assert_eq!(outcome.totals.in_flight, 0);
    assert_eq!(outcome.totals.sent, outcome.totals.succeeded);
    assert_eq!(outcome.latency.len(), outcome.totals.succeeded);
    let report = outcome.check(&service.admin).await?;
    assert!(report.clean(), "{report}\n{report:?}");
    assert!(report.acknowledged >= 60);

    // Now the database is spoiled, one way after the other; each is found, and named.
    let admin = &service.admin;
    admin.batch_execute("ALTER TABLE orders DROP CONSTRAINT orders_key_key").await?;
    let [lost, doubled, altered, unpaid, ..] = outcome.acknowledged.as_slice() else {
        bail!("too few writes")
    };
    admin.execute("DELETE FROM payments WHERE order_id = $1", &[&lost.order]).await?;
    admin.execute("DELETE FROM orders WHERE id = $1", &[&lost.order]).await?;
    let copy = "INSERT INTO orders (key, customer_id, amount) SELECT key, customer_id, amount FROM orders WHERE id = $1";
    admin.execute(copy, &[&doubled.order]).await?;
    admin.execute("UPDATE orders SET amount = amount + 1 WHERE id = $1", &[&altered.order]).await?;
    admin.execute("DELETE FROM payments WHERE order_id = $1", &[&unpaid.order]).await?;
    admin.execute("SELECT setval('orders_id_seq', 5)", &[]).await?;
    admin.batch_execute("ALTER TABLE payments DROP CONSTRAINT payments_order_id_fkey").await?;
    admin.execute("INSERT INTO payments (order_id, amount) VALUES (888888, 1)", &[]).await?;
    let report = outcome.check(admin).await?;
    assert_eq!(report.missing, [lost.key.as_str()]);
    assert_eq!(report.duplicated, [doubled.key.as_str()]);
    assert_eq!(report.altered, [altered.key.as_str()]);
    assert!(report.wrongly_paid.contains(&unpaid.order), "{report:?}");
    assert_eq!(report.payments_without_order.len(), 1);
    assert!(report.unbalanced.contains(&lost.customer), "{report:?}");
    assert_eq!(report.sequences_behind, ["orders"]);
    assert!(!report.clean());

    // A service that goes away: every failure is in the accounts, none is retried.
    let running = Load::start(load(service.address, "second"));
    until("some load", async || Ok(running.snapshot().succeeded > 0)).await?;
    service.stop.take();
    until("failures", async || Ok(running.snapshot().failed >= 10)).await?;
    let outcome = running.stop().await;
    assert_eq!(outcome.totals.sent, outcome.totals.succeeded + outcome.totals.failed);
    assert_eq!(outcome.failures.len() as u64, outcome.totals.failed);
    assert!(outcome.failures.iter().any(|failure| failure.status.is_none() && failure.key.is_some()));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_playground_serves_through_its_relays_and_leaves_nothing() -> Result<()> {
    let bins = [installed(15), installed(other_major())].map(Option::unwrap_or_default);
    let mut options = zone::Options::new(PROGRAM.into(), bins);
    options.agent = true;
    options.seed = Seed { customers: 50, orders: 100 };
    options.near = Duration::from_millis(2);
    let playground = Playground::start(&options).await?;
    let [near, far] = &playground.zones;
    let running = Load::start(load(near.workers_from_leader[0], "relayed"));
    until("some load", async || Ok(running.snapshot().acknowledged >= 20)).await?;
    let outcome = running.stop().await;
    assert_eq!(outcome.totals.failed, 0, "{:?}", outcome.failures);
    assert!(outcome.latency.min() >= 3_000, "two ways of 2 ms each, less the histogram's rounding");

    let connect = async |config: replicator::postgres::Dsn| -> Result<Client> {
        let (client, connection) = config.connect(tokio_postgres::NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    };
    let report = outcome.check(&connect(near.dsn("postgres")).await?).await?;
    assert!(report.clean(), "{report}");
    // The other database is there, through the relay, and empty.
    let mut relayed = replicator::postgres::Dsn::default();
    relayed.host("127.0.0.1").port(far.database_from_leader.port()).user("orders_app").dbname("orders");
    let empty = connect(relayed).await?;
    let tables = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'";
    assert_eq!(empty.query_one(tables, &[]).await?.get::<_, i64>(0), 0);

    for file in
        ["godwit.yaml", "policies/playground.yaml", "agent/godwit.yaml", "pki/ca.pem", "pki/agent.key"]
    {
        assert!(playground.directory.join(file).exists(), "{file}");
    }
    let worker = pid(&near.driver, 0).context("a worker")?;
    let directory = playground.directory.clone();
    drop(playground);
    assert!(gone(worker));
    assert!(!directory.exists());
    Ok(())
}
