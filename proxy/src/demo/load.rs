//! A load generator for the order service that keeps account of every answer.
//!
//! Open loop: requests start on schedule, however slow the answers are, and latency counts from the scheduled moment. There
//! is no retry of any kind: an answer that is not a success counts as failed, a 503 during a move included.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use hdrhistogram::Histogram;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::lock::lock;

/// Requests under way at once; one more is a failure of its own kind, not a silent gap.
const MOST_IN_FLIGHT: u64 = 20_000;
/// Longest answer that is read.
const BODY_BYTES: usize = 64 * 1024;
/// How much of a body a failure keeps.
const KEPT_BODY_BYTES: usize = 1024;
/// Failures kept in full; all are counted.
const KEPT_FAILURES: usize = 10_000;
/// Span of the live percentiles.
const LIVE: Duration = Duration::from_secs(1);
/// Longest latency that the histogram tells apart, microseconds.
const LONGEST_US: u64 = 600_000_000;

/// What to send, and where.
#[derive(Clone, Debug)]
pub struct Options {
    /// The front.
    pub target: SocketAddr,
    /// `Host` header.
    pub host: String,
    /// Requests per second, reads and writes together.
    pub rate: f64,
    /// Share of writes, 0 to 1.
    pub writes: f64,
    /// Customers are numbered from 1 to this.
    pub customers: u32,
    /// A request without an answer after this has failed.
    pub timeout: Duration,
    /// Makes runs alike.
    pub seed: u64,
    /// Name of the run, part of every key: unique per database.
    pub run: String,
}

/// A write that the service acknowledged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acknowledged {
    /// Its key.
    pub key: String,
    /// The order number in the answer.
    pub order: i64,
    /// The customer who pays.
    pub customer: i64,
    /// Its amount in cents.
    pub cents: u64,
}

/// A request that did not succeed.
#[derive(Clone, Debug)]
pub struct Failure {
    /// When it was to start, since the start of the run.
    pub at: Duration,
    /// How long until it had failed.
    pub took: Duration,
    /// Method and path.
    pub request: String,
    /// Key of a write: it may have been committed nevertheless.
    pub key: Option<String>,
    /// Status of the answer; none: there was none.
    pub status: Option<u16>,
    /// Start of the body, or what went wrong instead.
    pub body: String,
}

/// How it goes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// Since the start.
    pub elapsed: Duration,
    /// Requests begun.
    pub sent: u64,
    /// Answers that were successes.
    pub succeeded: u64,
    /// Everything else that has ended.
    pub failed: u64,
    /// Begun and not ended.
    pub in_flight: u64,
    /// Writes acknowledged.
    pub acknowledged: u64,
    /// Successes that ended within the last second.
    pub last_second: u64,
    /// Their median; none without successes.
    pub p50: Option<Duration>,
    /// Their 99th percentile.
    pub p99: Option<Duration>,
    /// Longest success of the run.
    pub longest: Duration,
}

/// What the run was, at its end.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Name of the run.
    pub run: String,
    /// Final numbers.
    pub totals: Snapshot,
    /// Every acknowledged write.
    pub acknowledged: Vec<Acknowledged>,
    /// Failures, the first 10,000 of them; `totals.failed` counts all.
    pub failures: Vec<Failure>,
    /// Latency of successes, microseconds.
    pub latency: Histogram<u64>,
    /// Longest success, and when it was to start.
    pub longest: (Duration, Duration),
}

struct Accounts {
    sent: u64,
    succeeded: u64,
    failed: u64,
    acknowledged: Vec<Acknowledged>,
    failures: Vec<Failure>,
    latency: Histogram<u64>,
    /// End and latency in microseconds, oldest first.
    live: VecDeque<(Instant, u64)>,
    longest: (Duration, Duration),
}

struct Shared {
    options: Options,
    began: Instant,
    accounts: Mutex<Accounts>,
    idle: Mutex<Vec<SendRequest<Full<Bytes>>>>,
}

/// A run under way; stops sending when dropped.
pub struct Load {
    shared: Arc<Shared>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// One request to be sent.
struct Planned {
    method: Method,
    path: String,
    body: Bytes,
    expect: Expect,
}

/// What a successful answer says.
enum Expect {
    /// The order of this key, with its number.
    Placed { key: String, customer: i64, cents: u64 },
    /// The order that was acknowledged before.
    Order(Acknowledged),
    /// A customer.
    Customer(i64),
}

impl Load {
    /// Begins to send.
    pub fn start(options: Options) -> Self {
        let accounts = Accounts {
            sent: 0,
            succeeded: 0,
            failed: 0,
            acknowledged: Vec::new(),
            failures: Vec::new(),
            latency: histogram(),
            live: VecDeque::new(),
            longest: (Duration::ZERO, Duration::ZERO),
        };
        let shared = Arc::new(Shared {
            options,
            began: crate::clock::tick(),
            accounts: Mutex::new(accounts),
            idle: Mutex::default(),
        });
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let sending = send_on_schedule(shared.clone(), stop.clone(), tasks.clone());
        tasks.spawn(sending);
        Self { shared, stop, tasks }
    }

    /// How it goes.
    pub fn snapshot(&self) -> Snapshot {
        self.shared.snapshot()
    }

    /// Failures so far, the first 10,000 of them.
    pub fn failures(&self) -> Vec<Failure> {
        self.shared.accounts().failures.clone()
    }

    /// Stops sending, waits for every answer (bounded by the request timeout), and reports.
    pub async fn stop(self) -> Outcome {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        let totals = self.shared.snapshot();
        let mut accounts = self.shared.accounts();
        Outcome {
            run: self.shared.options.run.clone(),
            totals,
            acknowledged: std::mem::take(&mut accounts.acknowledged),
            failures: std::mem::take(&mut accounts.failures),
            latency: accounts.latency.clone(),
            longest: accounts.longest,
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LONGEST_US, 3).expect("constant bounds that the crate accepts")
}

async fn send_on_schedule(shared: Arc<Shared>, stop: CancellationToken, tasks: TaskTracker) {
    let mut rng = SmallRng::seed_from_u64(shared.options.seed);
    let rate = shared.options.rate;
    if rate.is_nan() || rate <= 0.0 {
        return;
    }
    for number in 0_u64.. {
        let due = shared.began + Duration::from_secs_f64(number as f64 / rate);
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep_until(due) => {}
        }
        let planned = shared.plan(number, &mut rng);
        let overloaded = {
            let mut accounts = shared.accounts();
            accounts.sent += 1;
            accounts.sent - accounts.succeeded - accounts.failed > MOST_IN_FLIGHT
        };
        if overloaded {
            shared.fail(&planned, due, None, format!("not sent: {MOST_IN_FLIGHT} requests are under way"));
            continue;
        }
        let token: TaskTrackerToken = tasks.token();
        let shared = shared.clone();
        tokio::spawn(async move {
            shared.request(planned, due).await;
            drop(token);
        });
    }
}

impl Shared {
    fn accounts(&self) -> MutexGuard<'_, Accounts> {
        lock(&self.accounts)
    }

    fn plan(&self, number: u64, rng: &mut SmallRng) -> Planned {
        let customer = rng.random_range(1..=i64::from(self.options.customers.max(1)));
        if rng.random_bool(self.options.writes.clamp(0.0, 1.0)) {
            let key = format!("{}-{number}", self.options.run);
            let cents = rng.random_range(1..=20_000_u64);
            let amount = format!("{}.{:02}", cents / 100, cents % 100);
            let body = json!({"key": key, "customer": customer, "amount": amount}).to_string();
            let expect = Expect::Placed { key, customer, cents };
            return Planned { method: Method::POST, path: "/orders".into(), body: body.into(), expect };
        }
        let accounts = self.accounts();
        let (path, expect) = if accounts.acknowledged.is_empty() || rng.random_bool(0.5) {
            (format!("/customers/{customer}"), Expect::Customer(customer))
        } else {
            // Read what was acknowledged, the newest included: it must be there from then on.
            let order = accounts.acknowledged[rng.random_range(0..accounts.acknowledged.len())].clone();
            (format!("/orders/{}", order.order), Expect::Order(order))
        };
        Planned { method: Method::GET, path, body: Bytes::new(), expect }
    }

    async fn request(&self, planned: Planned, due: Instant) {
        let answered = tokio::time::timeout(self.options.timeout, self.ask(&planned)).await;
        let (status, body) = match answered {
            Ok(Ok(answer)) => answer,
            Ok(Err(why)) => return self.fail(&planned, due, None, why),
            Err(_) => return self.fail(&planned, due, None, "no answer in time".into()),
        };
        match planned.expect.judge(status, &body) {
            Ok(written) => self.succeed(written, due),
            Err(why) => {
                let end = body.len().min(KEPT_BODY_BYTES);
                let text = String::from_utf8_lossy(&body[..end]);
                self.fail(&planned, due, Some(status), format!("{why}{text}"));
            }
        }
    }

    /// One try on one connection.
    async fn ask(&self, planned: &Planned) -> Result<(StatusCode, Bytes), String> {
        let mut sender = self.connection().await?;
        let request = Request::builder()
            .method(planned.method.clone())
            .uri(&planned.path)
            .header(http::header::HOST, &self.options.host)
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(Full::new(planned.body.clone()))
            .map_err(|error| error.to_string())?;
        let broken = |error: hyper::Error| format!("connection broke: {error}");
        let response = sender.send_request(request).await.map_err(broken)?;
        let status = response.status();
        let body = Limited::new(response.into_body(), BODY_BYTES).collect().await;
        let body = body.map_err(|error| format!("answer {} broke off: {error}", status.as_u16()))?.to_bytes();
        if !sender.is_closed() {
            lock(&self.idle).push(sender);
        }
        Ok((status, body))
    }

    /// An idle connection that is still open, else a new one.
    async fn connection(&self) -> Result<SendRequest<Full<Bytes>>, String> {
        loop {
            let idle = lock(&self.idle).pop();
            let Some(mut sender) = idle else { break };
            if sender.ready().await.is_ok() {
                return Ok(sender);
            }
        }
        let connect = |error: std::io::Error| format!("cannot connect: {error}");
        let stream = TcpStream::connect(self.options.target).await.map_err(connect)?;
        stream.set_nodelay(true).map_err(connect)?;
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (sender, connection) = handshake.map_err(|error| format!("cannot connect: {error}"))?;
        tokio::spawn(async move {
            // Its error reaches the request that meets it.
            let _ = connection.await;
        });
        Ok(sender)
    }

    fn succeed(&self, written: Option<Acknowledged>, due: Instant) {
        let now = crate::clock::tick();
        let took = now.saturating_duration_since(due);
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let mut accounts = self.accounts();
        accounts.succeeded += 1;
        accounts.acknowledged.extend(written);
        accounts.latency.saturating_record(micros.max(1));
        accounts.live.push_back((now, micros));
        accounts.forget(now);
        if took > accounts.longest.0 {
            accounts.longest = (took, due - self.began);
        }
    }

    fn fail(&self, planned: &Planned, due: Instant, status: Option<StatusCode>, body: String) {
        let key = match &planned.expect {
            Expect::Placed { key, .. } => Some(key.clone()),
            Expect::Order(_) | Expect::Customer(_) => None,
        };
        let failure = Failure {
            at: due - self.began,
            took: crate::clock::tick().saturating_duration_since(due),
            request: format!("{} {}", planned.method, planned.path),
            key,
            status: status.map(|status| status.as_u16()),
            body,
        };
        let mut accounts = self.accounts();
        accounts.failed += 1;
        if accounts.failures.len() < KEPT_FAILURES {
            accounts.failures.push(failure);
        }
    }

    fn snapshot(&self) -> Snapshot {
        let now = crate::clock::tick();
        let mut accounts = self.accounts();
        accounts.forget(now);
        let mut live: Vec<u64> = accounts.live.iter().map(|(_, micros)| *micros).collect();
        live.sort_unstable();
        let rank = |share: f64| {
            let last = live.len().checked_sub(1)?;
            let at = (live.len() as f64 * share).ceil() as usize;
            Some(Duration::from_micros(live[at.saturating_sub(1).min(last)]))
        };
        Snapshot {
            elapsed: now - self.began,
            sent: accounts.sent,
            succeeded: accounts.succeeded,
            failed: accounts.failed,
            in_flight: accounts.sent - accounts.succeeded - accounts.failed,
            acknowledged: accounts.acknowledged.len() as u64,
            last_second: live.len() as u64,
            p50: rank(0.5),
            p99: rank(0.99),
            longest: accounts.longest.0,
        }
    }
}

impl Accounts {
    fn forget(&mut self, now: Instant) {
        while self.live.front().is_some_and(|(ended, _)| now.saturating_duration_since(*ended) > LIVE) {
            self.live.pop_front();
        }
    }
}

impl Expect {
    /// The acknowledged write, or why this is no success.
    fn judge(&self, status: StatusCode, body: &[u8]) -> Result<Option<Acknowledged>, String> {
        let good = match self {
            Self::Placed { .. } => status == StatusCode::CREATED || status == StatusCode::OK,
            Self::Order(_) | Self::Customer(_) => status == StatusCode::OK,
        };
        if !good {
            return Err(String::new());
        }
        let answer: Value = serde_json::from_slice(body)
            .map_err(|error| format!("not the answer of the service ({error}): "))?;
        let number = |name: &str| answer.get(name).and_then(Value::as_i64);
        let text = |name: &str| answer.get(name).and_then(Value::as_str);
        match self {
            Self::Placed { key, customer, cents } => match (number("id"), text("key")) {
                (Some(order), Some(answered)) if answered == key => {
                    let (key, customer, cents) = (key.clone(), *customer, *cents);
                    Ok(Some(Acknowledged { key, order, customer, cents }))
                }
                _ => Err(format!("not the answer to {key}: ")),
            },
            Self::Order(order) if text("key") == Some(&order.key) && number("id") == Some(order.order) => {
                Ok(None)
            }
            Self::Order(order) => Err(format!("not order {} of key {}: ", order.order, order.key)),
            Self::Customer(id) if number("id") == Some(*id) => Ok(None),
            Self::Customer(id) => Err(format!("not customer {id}: ")),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn placed() -> Expect {
        Expect::Placed { key: "r-1".into(), customer: 4, cents: 1234 }
    }

    #[test]
    fn only_the_right_answer_is_a_success() {
        let right = br#"{"id": 7, "key": "r-1", "payment": 9}"#;
        let acknowledged = placed().judge(StatusCode::CREATED, right).unwrap().unwrap();
        assert_eq!((acknowledged.order, acknowledged.cents), (7, 1234));
        assert!(placed().judge(StatusCode::SERVICE_UNAVAILABLE, right).is_err());
        assert!(placed().judge(StatusCode::OK, br#"{"id": 7, "key": "r-2"}"#).is_err());
        assert!(placed().judge(StatusCode::OK, b"<html>").is_err());
        let read = Expect::Order(acknowledged);
        assert!(read.judge(StatusCode::NOT_FOUND, b"{}").is_err(), "an acknowledged order that is gone");
        assert!(read.judge(StatusCode::OK, br#"{"id": 7, "key": "other"}"#).is_err());
        assert!(read.judge(StatusCode::OK, right).unwrap().is_none());
    }
}
