//! Mirrored reads: a share of what clients read is asked of the shadow as well, so that its caches and pools are warm before a
//! move, and so that it is known how it answers.
//!
//! Only GET and HEAD without a body, on paths that the policy names. A client's answer is already on its way when its read is
//! offered: what the queue does not take at once is dropped and counted, and nobody waits. Answers of the shadow are compared
//! (status, time) and thrown away; what both sides took for the same reads goes to the score. What a mirrored read carries:
//! [`Credentials`]. The shadow's database refuses writes.

mod ask;

pub(crate) use ask::MARK;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use http::{HeaderMap, HeaderValue, Method, Uri, header};
use migration::policy::{Credentials, MirrorRules};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::pools::Reach;
use super::pools::asking::Open;
use crate::lock::lock;
use crate::telemetry::names;

/// Reads that wait for their turn.
const QUEUE: usize = 256;
/// Longest header of a read that is mirrored, bytes.
const HEADERS: usize = 16 << 10;
/// Comparisons that are kept for the view, and for how long.
const KEPT: (usize, Duration) = (2_000, Duration::from_secs(300));
/// Reads of which a p95 is told, and a share of different answers.
const ENOUGH: usize = 20;
/// A share is counted in millionths.
const WHOLE: u64 = 1_000_000;

/// Headers that belong to one connection, or would make the answer depend on it.
const LEFT_OUT: [header::HeaderName; 11] = [
    header::CONNECTION,
    header::HeaderName::from_static("keep-alive"),
    header::HeaderName::from_static("proxy-connection"),
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::CONTENT_LENGTH,
    header::EXPECT,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
];
/// Headers that say who asks.
const SAYING_WHO: [header::HeaderName; 2] = [header::AUTHORIZATION, header::COOKIE];

/// Where reads are mirrored to, and which.
#[derive(Default)]
struct Aim {
    /// In millionths; 0: none.
    share: u64,
    rules: MirrorRules,
    zone: String,
    targets: Vec<SocketAddr>,
    reach: Arc<Reach>,
    /// Connections that wait for the next read, by where they lead.
    idle: Mutex<Vec<(SocketAddr, Open)>>,
}

/// A read that a client was answered.
#[derive(Debug)]
struct Read {
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    /// What the primary answered, and how long it took until the header was there.
    status: u16,
    took: Duration,
}

/// One read at both sides.
#[derive(Clone, Copy, Debug)]
struct Compared {
    at: Instant,
    primary: Duration,
    /// How long the shadow took, and whether its status was the same; none: it did not answer.
    shadow: Option<(Duration, bool)>,
    /// Told to the score.
    told: bool,
}

impl Compared {
    /// Both sides, where they answered the same: how long a failure takes says nothing of the service.
    fn pair(&self) -> Option<[Duration; 2]> {
        self.shadow.filter(|(_, same)| *same).map(|(shadow, _)| [self.primary, shadow])
    }
}

/// What the same reads took at both sides until the header of their answer was there, p95.
#[derive(Clone, Debug, PartialEq)]
pub struct Told {
    /// The zone that was asked as well.
    pub zone: String,
    /// At the primary.
    pub primary: Duration,
    /// At the shadow.
    pub shadow: Duration,
}

/// What mirrored reads said of late.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct MirrorView {
    /// The share of safe reads, 0 to 1; 0: none is mirrored now.
    pub share: f64,
    /// Reads answered by both sides within the last five minutes.
    pub compared: u64,
    /// Of these: with another status.
    pub different: u64,
    /// 95th percentile at the shadow until the header of the answer is there, milliseconds.
    pub shadow_p95_ms: Option<f64>,
    /// The same reads at the primary.
    pub primary_p95_ms: Option<f64>,
    /// Reads that the queue did not take, since the start.
    pub dropped_total: u64,
    /// Reads that the shadow did not answer, since the start.
    pub failed_total: u64,
}

/// The mirror of one resource's front.
pub struct Mirror {
    resource: Arc<str>,
    aim: ArcSwap<Aim>,
    turn: AtomicU64,
    queue: mpsc::Sender<Read>,
    waiting: Mutex<Option<mpsc::Receiver<Read>>>,
    compared: Mutex<VecDeque<Compared>>,
    dropped: AtomicU64,
    failed: AtomicU64,
}

impl Mirror {
    /// Mirrors nothing yet.
    pub fn new(resource: Arc<str>) -> Arc<Self> {
        let (queue, waiting) = mpsc::channel(QUEUE);
        Arc::new(Self {
            resource,
            aim: ArcSwap::default(),
            turn: AtomicU64::new(0),
            queue,
            waiting: Mutex::new(Some(waiting)),
            compared: Mutex::default(),
            dropped: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        })
    }

    /// From now on reads are mirrored to these endpoints of `zone`, as `reach` says; without endpoints none is.
    pub fn aim(&self, zone: &str, rules: &MirrorRules, targets: Vec<SocketAddr>, reach: Arc<Reach>) {
        let share = if targets.is_empty() { 0 } else { (rules.share.get() * WHOLE as f64).round() as u64 };
        let now = self.aim.load();
        let same = Arc::ptr_eq(&now.reach, &reach) || targets.is_empty();
        if same && now.share == share && now.zone == zone && now.targets == targets && now.rules == *rules {
            return;
        }
        if now.zone != zone {
            // What was measured there says nothing of the other.
            self.compared().clear();
        }
        let (rules, zone) = (rules.clone(), zone.to_owned());
        self.aim.store(Arc::new(Aim { share, rules, zone, targets, reach, idle: Mutex::default() }));
    }

    /// Whether any read is mirrored now: one load, for the request path.
    pub fn is_on(&self) -> bool {
        self.aim.load().share > 0
    }

    /// A client was answered: mirrors its read if it is one to mirror. It `took` that long until the header of the answer was there. Never
    /// waits.
    pub fn offer(&self, method: &Method, uri: &Uri, headers: &HeaderMap, status: u16, took: Duration) {
        let aim = self.aim.load();
        if !mirrored(&aim.rules, method, uri, headers) || !self.its_turn(aim.share) {
            return;
        }
        let named = headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
        let named: Vec<&str> = named.flat_map(|value| value.split(',')).map(str::trim).collect();
        let mut kept = HeaderMap::with_capacity(headers.len());
        for (name, value) in headers {
            let who = SAYING_WHO.contains(name) && aim.rules.credentials != Credentials::Send;
            let connections = named.iter().any(|named| named.eq_ignore_ascii_case(name.as_str()));
            if !LEFT_OUT.contains(name) && !who && !connections {
                kept.append(name.clone(), value.clone());
            }
        }
        // HTTP/2 says it beside the headers.
        let host = uri.authority().and_then(|host| HeaderValue::from_str(host.as_str()).ok());
        if let Some(host) = host.filter(|_| !kept.contains_key(header::HOST)) {
            kept.insert(header::HOST, host);
        }
        let read = Read { method: method.clone(), uri: uri.clone(), headers: kept, status, took };
        if self.queue.try_send(read).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            self.count("dropped");
        }
    }

    /// Every `1 / share`-th read, evenly.
    fn its_turn(&self, share: u64) -> bool {
        let before = self.turn.fetch_add(share, Ordering::Relaxed);
        before % WHOLE + share >= WHOLE
    }

    fn count(&self, outcome: &'static str) {
        metrics::counter!(names::MIRRORED, names::RESOURCE => self.resource.to_string(), names::OUTCOME => outcome)
            .increment(1);
    }

    fn note(&self, read: &Read, status: u16, took: Duration, zone: &str) {
        let same = status == read.status;
        self.count(if same { "same" } else { "different" });
        metrics::histogram!(
            names::MIRRORED_DURATION, names::RESOURCE => self.resource.to_string(), names::ZONE => zone.to_owned()
        )
        .record(took.as_secs_f64());
        self.keep(zone, read.took, Some((took, same)));
    }

    fn failed(&self, read: &Read, zone: &str) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        self.count("failed");
        self.keep(zone, read.took, None);
    }

    /// `zone` is the one that was asked.
    fn keep(&self, zone: &str, primary: Duration, shadow: Option<(Duration, bool)>) {
        let at = crate::clock::monotonic();
        let mut compared = self.compared();
        if self.aim.load().zone != zone {
            return;
        }
        compared.push_back(Compared { at, primary, shadow, told: false });
        while compared.len() > KEPT.0 {
            compared.pop_front();
        }
    }

    fn compared(&self) -> MutexGuard<'_, VecDeque<Compared>> {
        lock(&self.compared)
    }

    /// Those of late.
    fn recent(&self) -> MutexGuard<'_, VecDeque<Compared>> {
        let now = crate::clock::monotonic();
        let mut compared = self.compared();
        while compared.front().is_some_and(|oldest| now.duration_since(oldest.at) > KEPT.1) {
            compared.pop_front();
        }
        compared
    }

    /// What reads took at both sides since it was last told; none: they are too few, and count with those to come.
    pub fn tell(&self) -> Option<Told> {
        let mut compared = self.recent();
        let zone = self.aim.load().zone.clone();
        let new = || compared.iter().filter(|one| !one.told).filter_map(Compared::pair);
        let count = new().count();
        let told = (count >= ENOUGH).then(|| Told {
            zone,
            primary: p95(new().map(|[primary, _]| primary)).unwrap_or_default(),
            shadow: p95(new().map(|[_, shadow]| shadow)).unwrap_or_default(),
        })?;
        compared.iter_mut().for_each(|one| one.told = true);
        Some(told)
    }

    /// The share of reads of late that the shadow answered with another status, or not at all; none: they are too few.
    pub fn different(&self) -> Option<f64> {
        let compared = self.recent();
        let other = compared.iter().filter(|one| one.pair().is_none()).count();
        (compared.len() >= ENOUGH).then(|| other as f64 / compared.len() as f64)
    }

    /// What it says now.
    pub fn view(&self) -> MirrorView {
        let compared = self.recent();
        let answered = || compared.iter().filter_map(|one| Some((one.primary, one.shadow?)));
        let ms = |took: Duration| took.as_secs_f64() * 1000.0;
        MirrorView {
            share: self.aim.load().share as f64 / WHOLE as f64,
            compared: answered().count() as u64,
            different: answered().filter(|(_, (_, same))| !same).count() as u64,
            shadow_p95_ms: p95(answered().map(|(_, (shadow, _))| shadow)).map(ms),
            primary_p95_ms: p95(answered().map(|(primary, _)| primary)).map(ms),
            dropped_total: self.dropped.load(Ordering::Relaxed),
            failed_total: self.failed.load(Ordering::Relaxed),
        }
    }
}

fn p95(of: impl Iterator<Item = Duration>) -> Option<Duration> {
    let mut all: Vec<Duration> = of.collect();
    all.sort_unstable();
    let at = (all.len() * 95).div_ceil(100).saturating_sub(1);
    all.get(at).copied()
}

/// A read that changes nothing, on a path that may be asked, by somebody whose answer may be asked for.
fn mirrored(rules: &MirrorRules, method: &Method, uri: &Uri, headers: &HeaderMap) -> bool {
    let read = matches!(*method, Method::GET | Method::HEAD);
    let bodyless = !headers.contains_key(header::TRANSFER_ENCODING)
        && headers.get(header::CONTENT_LENGTH).is_none_or(|length| length.as_bytes() == b"0")
        && !headers.contains_key(header::UPGRADE);
    let allowed =
        rules.paths.is_empty() || rules.paths.iter().any(|path| uri.path().starts_with(path.as_str()));
    let who =
        rules.credentials == Credentials::Skip && SAYING_WHO.iter().any(|name| headers.contains_key(name));
    let size: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    read && bodyless && allowed && !who && size <= HEADERS
}

#[cfg(test)]
mod tests;
