//! What the front tells of itself: metrics, and samples for the score where the resource has no HTTP front.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::pool::Filled;
use super::relay::Answered;
use super::turnstile::Stats;
use crate::fronts::latencies::{Recorder, Sample};
use crate::fronts::stopwatch::Stopwatch;
use crate::lock::lock;
use crate::telemetry::names;

/// How a session came out of a hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moved {
    /// On another database, with all it had.
    Carried,
    /// Where it was.
    Kept,
    /// It ended: something could not be carried.
    Ended,
}

impl Moved {
    fn label(self) -> &'static str {
        match self {
            Self::Carried => "carried",
            Self::Kept => "kept",
            Self::Ended => "ended",
        }
    }
}

pub(super) struct Meters {
    name: Arc<str>,
    /// None: another front's requests are what counts.
    recorder: Option<Arc<Recorder>>,
    statements: Mutex<BTreeMap<Arc<str>, metrics::Histogram>>,
}

impl Meters {
    pub(super) fn new(name: &Arc<str>, recorder: Option<Arc<Recorder>>) -> Self {
        Self { name: Arc::clone(name), recorder, statements: Mutex::default() }
    }

    /// The connections that clients share.
    pub(super) fn measure_pool(&self, pool: &Filled) {
        let set = |name: &'static str, state: &'static str, count: usize| {
            metrics::gauge!(name, names::RESOURCE => self.name.to_string(), names::STATE => state)
                .set(count as f64);
        };
        set(names::POSTGRES_POOL_CONNECTIONS, "used", pool.used);
        set(names::POSTGRES_POOL_CONNECTIONS, "idle", pool.idle);
        set(names::POSTGRES_POOL_CONNECTIONS, "pinned", pool.pinned);
        metrics::gauge!(names::POSTGRES_POOL_WAITING, names::RESOURCE => self.name.to_string())
            .set(pool.waiting as f64);
    }

    pub(super) fn measure(&self, sessions: usize, stats: &Stats) {
        let resource = || self.name.to_string();
        metrics::gauge!(names::POSTGRES_SESSIONS, names::RESOURCE => resource()).set(sessions as f64);
        metrics::gauge!(names::POSTGRES_HELD, names::RESOURCE => resource()).set(stats.held as f64);
    }

    /// Where the statements of a zone are counted.
    pub(super) fn statements(&self, zone: &Arc<str>) -> metrics::Histogram {
        let mut statements = lock(&self.statements);
        let made = || {
            metrics::histogram!(names::POSTGRES_STATEMENT_DURATION, names::RESOURCE => self.name.to_string(),
                names::ZONE => zone.to_string())
        };
        statements.entry(Arc::clone(zone)).or_insert_with(made).clone()
    }

    /// A unit of a session in this zone was answered.
    pub(super) fn answered(&self, zone: &Arc<str>, statements: &metrics::Histogram, answered: Answered) {
        statements.record(answered.whole.as_secs_f64());
        let Some(recorder) = &self.recorder else { return };
        let mut watch = Stopwatch::start(answered.sent);
        watch.chosen(answered.sent);
        watch.connected(answered.sent);
        watch.body_sent(answered.sent);
        watch.answered(answered.sent + answered.first_byte);
        recorder.record(Sample {
            resource: Some(Arc::clone(&self.name)),
            zone: Some(Arc::clone(zone)),
            route: None,
            outcome: answered.outcome,
            held: None,
            segments: watch.finish(answered.sent + answered.whole),
        });
    }

    pub(super) fn connected(&self, zone: &str, worked: bool) {
        let outcome = if worked { "connected" } else { "failed" };
        metrics::counter!(names::POSTGRES_CONNECTS, names::RESOURCE => self.name.to_string(),
            names::ZONE => zone.to_owned(), names::OUTCOME => outcome)
        .increment(1);
    }

    pub(super) fn moved(&self, moved: Moved) {
        metrics::counter!(names::POSTGRES_MOVED, names::RESOURCE => self.name.to_string(),
            names::OUTCOME => moved.label())
        .increment(1);
    }

    /// A client waited this long.
    pub(super) fn held(&self, held: Duration) {
        metrics::histogram!(names::HOLD_DURATION, names::RESOURCE => self.name.to_string())
            .record(held.as_secs_f64());
    }
}
