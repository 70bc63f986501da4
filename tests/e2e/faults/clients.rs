//! Clients that keep account: transactions on lists through the front, whose history the checker judges; and a client that
//! goes round the front to both databases all the time.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use godwit::demo::orders::schema;
use godwit::demo::zone::{SERVICE_ROLE, Zone};
use godwit_tests::history::{Fate, History, Op, Transaction, Verdict, check};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

/// Lists that are written at any time, and values until the next ones are.
const ACTIVE: u64 = 4;
const VALUES: u64 = 120;
/// Pause of a client between two transactions.
const PAUSE: Duration = Duration::from_millis(40);
/// A transaction without an answer after this is a fault of the front.
const TIMEOUT: Duration = Duration::from_secs(15);

/// What both kinds of clients need in the database; the shadow gets it with the copy.
pub(crate) async fn prepare(primary: &Client) -> Result<()> {
    schema::lists(primary, SERVICE_ROLE).await?;
    let bypass = format!(
        "CREATE TABLE bypass (id bigint PRIMARY KEY, zone text NOT NULL); GRANT SELECT, INSERT ON bypass TO {SERVICE_ROLE}"
    );
    primary.batch_execute(&bypass).await?;
    Ok(())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A transaction that was not committed for another reason than that others came first.
#[derive(Clone, Debug)]
pub(crate) struct Failed {
    /// What the client got.
    pub(crate) what: String,
    /// Nothing came at all.
    pub(crate) silent: bool,
    /// It was answered, and neither with what was asked nor with an error of the server.
    pub(crate) wrong: bool,
}

#[derive(Default)]
struct Kept {
    history: History,
    failed: Vec<Failed>,
    crowded: u64,
}

/// Clients that run transactions on lists, until stopped.
pub(crate) struct ListClients {
    began: Instant,
    kept: Arc<Mutex<Kept>>,
    committed: Arc<AtomicU64>,
    next: Arc<AtomicU64>,
    stop: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
}

impl ListClients {
    pub(crate) fn start(front: SocketAddr, clients: u64, seed: u64) -> Self {
        let this = Self {
            began: Instant::now(),
            kept: Arc::default(),
            committed: Arc::default(),
            next: Arc::new(AtomicU64::new(1)),
            stop: CancellationToken::new(),
            tasks: Vec::new(),
        };
        let tasks = (0..clients).map(|number| {
            let client = ListClient {
                http: HttpClient::builder(TokioExecutor::new()).build_http(),
                front,
                began: this.began,
                kept: this.kept.clone(),
                committed: this.committed.clone(),
                next: this.next.clone(),
                rng: SmallRng::seed_from_u64(seed.wrapping_mul(1_000).wrapping_add(number)),
            };
            tokio::spawn(client.run(this.stop.clone()))
        });
        Self { tasks: tasks.collect(), ..this }
    }

    pub(crate) fn committed(&self) -> u64 {
        self.committed.load(Ordering::Relaxed)
    }

    /// Failures since the last call.
    pub(crate) fn take_failures(&self) -> Vec<Failed> {
        std::mem::take(&mut lock(&self.kept).failed)
    }

    /// Ends the clients, reads every list in the primary's database, and judges the whole history.
    pub(crate) async fn judge(self, primary: &mut Client) -> Result<(Verdict, History)> {
        self.stop.cancel();
        for task in self.tasks {
            task.await?;
        }
        let mut history = std::mem::take(&mut lock(&self.kept).history);
        let began = micros(self.began);
        let transaction = primary.build_transaction().read_only(true).start().await?;
        let lists = self.next.load(Ordering::Relaxed) / VALUES + ACTIVE;
        let mut ops = Vec::new();
        for list in 0..=lists {
            let id = i64::try_from(list)?;
            let row = transaction.query_opt("SELECT elements FROM lists WHERE id = $1", &[&id]).await?;
            let seen = row.map_or(Ok(Vec::new()), |row| row.try_get::<_, Vec<i64>>(0))?;
            let seen = seen.into_iter().map(u64::try_from).collect::<Result<_, _>>()?;
            ops.push(Op::Read { list, seen: Some(seen) });
        }
        transaction.commit().await?;
        let ended = Some(micros(self.began));
        history.transactions.push(Transaction { began, ended, fate: Fate::Committed, ops });
        Ok((check(&history), history))
    }
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}

struct ListClient {
    http: HttpClient<HttpConnector, Full<Bytes>>,
    front: SocketAddr,
    began: Instant,
    kept: Arc<Mutex<Kept>>,
    committed: Arc<AtomicU64>,
    next: Arc<AtomicU64>,
    rng: SmallRng,
}

impl ListClient {
    async fn run(mut self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            let ops = self.plan();
            let began = micros(self.began);
            let answered = tokio::time::timeout(TIMEOUT, self.ask(&ops)).await;
            let ended = Some(micros(self.began));
            let silent = answered.is_err();
            let (fate, ops) = match answered.unwrap_or_else(|_| Err("no answer in time".into())) {
                Ok((200, body)) => match seen(&ops, &body) {
                    Some(ops) => (Fate::Committed, ops),
                    None => self.failed(Failed::answered(200, &body), Fate::Unknown, ops),
                },
                Ok((409, _)) => {
                    lock(&self.kept).crowded += 1;
                    (Fate::Aborted, ops)
                }
                // What says that nothing was done is taken at its word.
                Ok((503, body)) if nothing_done(&body) => {
                    self.failed(Failed::answered(503, &body), Fate::Aborted, ops)
                }
                Ok((status, body)) => self.failed(Failed::answered(status, &body), Fate::Unknown, ops),
                Err(what) => self.failed(Failed { what, silent, wrong: false }, Fate::Unknown, ops),
            };
            if fate == Fate::Committed {
                self.committed.fetch_add(1, Ordering::Relaxed);
            }
            let ended = if fate == Fate::Unknown { None } else { ended };
            lock(&self.kept).history.transactions.push(Transaction { began, ended, fate, ops });
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn failed(&self, failed: Failed, fate: Fate, ops: Vec<Op>) -> (Fate, Vec<Op>) {
        lock(&self.kept).failed.push(failed);
        (fate, ops)
    }

    fn plan(&mut self) -> Vec<Op> {
        let count = self.rng.random_range(1..=4);
        (0..count)
            .map(|_| {
                let first = self.next.load(Ordering::Relaxed) / VALUES;
                let list = first + self.rng.random_range(0..ACTIVE);
                if self.rng.random_bool(0.5) {
                    Op::Append { list, value: self.next.fetch_add(1, Ordering::Relaxed) }
                } else {
                    Op::Read { list, seen: None }
                }
            })
            .collect()
    }

    async fn ask(&self, ops: &[Op]) -> Result<(u16, Value), String> {
        let ops: Vec<Value> = ops
            .iter()
            .map(|op| match op {
                Op::Append { list, value } => json!(["append", list, value]),
                Op::Read { list, .. } => json!(["read", list]),
            })
            .collect();
        let request = http::Request::post(format!("http://{}/lists", self.front))
            .header("host", "orders.example")
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(json!({ "ops": ops }).to_string())))
            .map_err(|error| error.to_string())?;
        let broke = |error: &dyn std::fmt::Debug| format!("connection broke: {error:?}");
        let response = self.http.request(request).await.map_err(|error| broke(&error))?;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.map_err(|error| broke(&error))?.to_bytes();
        Ok((status, serde_json::from_slice(&body).unwrap_or_default()))
    }
}

/// Whether an answer that is not the one asked for says so by its status: only what a server could not do, whoever is to blame.
pub(crate) fn is_plain_failure(status: u16) -> bool {
    (500..=599).contains(&status)
}

impl Failed {
    fn answered(status: u16, body: &Value) -> Self {
        Self { what: format!("{status} {body}"), silent: false, wrong: !is_plain_failure(status) }
    }
}

/// The front's own refusals, and the service's.
fn nothing_done(body: &Value) -> bool {
    let detail = body["detail"].as_str().unwrap_or_default();
    ["not processed", "held as may be", "nothing was committed"].iter().any(|what| detail.contains(what))
}

/// The operations with what they saw; none: the answer is not of this question.
fn seen(ops: &[Op], body: &Value) -> Option<Vec<Op>> {
    let answers = body["ops"].as_array().filter(|answers| answers.len() == ops.len())?;
    ops.iter()
        .zip(answers)
        .map(|(op, answer)| match op {
            Op::Append { list, value } => (*answer == json!(["append", list, value])).then(|| op.clone()),
            Op::Read { list, .. } => {
                if answer[1].as_u64() != Some(*list) {
                    return None;
                }
                let seen: Option<Vec<u64>> = answer[2].as_array()?.iter().map(Value::as_u64).collect();
                Some(Op::Read { list: *list, seen: Some(seen?) })
            }
        })
        .collect()
}

/// Writes straight to both databases as the service's own role, whatever Godwit is doing.
pub(crate) struct Bypass {
    acknowledged: Arc<Mutex<BTreeSet<i64>>>,
    refused: Arc<AtomicU64>,
    stop: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
}

impl Bypass {
    pub(crate) fn start(zones: &[Zone; 2]) -> Self {
        let this = Self {
            acknowledged: Arc::default(),
            refused: Arc::default(),
            stop: CancellationToken::new(),
            tasks: Vec::new(),
        };
        let next = Arc::new(AtomicU64::new(1));
        let tasks = zones.iter().map(|zone| {
            let (dsn, name) = (zone.dsn(SERVICE_ROLE), zone.name.clone());
            let (acknowledged, refused) = (this.acknowledged.clone(), this.refused.clone());
            let (next, stop) = (next.clone(), this.stop.clone());
            tokio::spawn(stop.run_until_cancelled_owned(async move {
                loop {
                    tokio::time::sleep(PAUSE).await;
                    let connecting = replicator::postgres::connect(&dsn, "round-the-proxy");
                    let Ok(Ok(client)) = tokio::time::timeout(Duration::from_secs(5), connecting).await
                    else {
                        refused.fetch_add(1, Ordering::Relaxed);
                        continue;
                    };
                    while !client.is_closed() {
                        let id = i64::try_from(next.fetch_add(1, Ordering::Relaxed)).unwrap_or_default();
                        let sql = "INSERT INTO bypass VALUES ($1, $2)";
                        match client.execute(sql, &[&id, &name]).await {
                            Ok(_) => drop(lock(&acknowledged).insert(id)),
                            Err(_) => drop(refused.fetch_add(1, Ordering::Relaxed)),
                        }
                        tokio::time::sleep(PAUSE).await;
                    }
                }
            }))
        });
        let tasks = tasks.map(|task| tokio::spawn(async move { drop(task.await) })).collect();
        Self { tasks, ..this }
    }

    /// Every write that was acknowledged, on whichever side, must be in the primary.
    pub(crate) async fn judge(self, primary: &Client) -> Result<(usize, u64)> {
        self.stop.cancel();
        for task in self.tasks {
            task.await?;
        }
        let rows = primary.query("SELECT id FROM bypass", &[]).await?;
        let there: BTreeSet<i64> = rows.iter().map(|row| row.get(0)).collect();
        let acknowledged = std::mem::take(&mut *lock(&self.acknowledged));
        let lost: Vec<_> = acknowledged.difference(&there).take(10).collect();
        ensure!(
            lost.is_empty(),
            "writes round the proxy were acknowledged and are gone from the primary: {lost:?} …"
        );
        let refused = self.refused.load(Ordering::Relaxed);
        ensure!(!acknowledged.is_empty(), "no write went round the proxy");
        Ok((acknowledged.len(), refused))
    }
}

/// A connection on which a request was sent whose answer nobody reads.
pub(crate) async fn send_order(front: SocketAddr, key: &str) -> Result<tokio::net::TcpStream> {
    use tokio::io::AsyncWriteExt;
    let body = json!({"key": key, "customer": 1, "amount": "1.00"}).to_string();
    let mut stream = tokio::net::TcpStream::connect(front).await.context("the front")?;
    let head = format!(
        "POST /orders HTTP/1.1\r\nhost: orders.example\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    Ok(stream)
}
