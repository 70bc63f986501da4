//! From the request path to those who read latencies: samples go through bounded lock-free queues, one per few threads,
//! and whoever collects sorts them into histograms and metrics.
//!
//! Why queues and not `hdrhistogram::sync` recorders: those need one recorder per thread *and* series, and a `refresh`
//! that waits until every one of them has recorded again, that is, forever on a thread that got no request. A queue costs
//! one uncontended push per request and knows nothing of who reads. When it is full the sample is counted as lost; the
//! request path never waits.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crossbeam::queue::ArrayQueue;
use crossbeam::utils::CachePadded;
use hdrhistogram::Histogram;
use migration::aftermath::Answers;

use crate::lock::lock;
use crate::telemetry::names;
use crate::traces::Traces;

use super::stopwatch::{Outcome, Segment, Segments};

/// Samples a queue holds between two collections.
const QUEUE: usize = 8192;
/// Significant digits of the histograms.
const DIGITS: u8 = 3;
/// The label of a request that reached no resource or no zone.
const NONE: &str = "none";
/// The label of a request to no configured route.
const OTHER: &str = "other";

/// What is kept of one finished request.
#[derive(Clone, Debug)]
pub struct Sample {
    /// The resource; none: no front serves the host.
    pub resource: Option<Arc<str>>,
    /// The zone of the pool it was sent to, or for which there was no endpoint; none: it did not come so far.
    pub zone: Option<Arc<str>>,
    /// The configured route; none: another.
    pub route: Option<Arc<str>>,
    /// How it ended.
    pub outcome: Outcome,
    /// How long the gate held it; none: not at all.
    pub held: Option<Duration>,
    /// Its segments, if a response came back and was sent whole.
    pub segments: Option<Segments>,
}

/// Resource and zone.
type Key = (Arc<str>, Arc<str>);
/// Resource, zone and route, where each may be missing, and how it ended.
type MeterKey = (Option<Arc<str>>, Option<Arc<str>>, Option<Arc<str>>, &'static str);
/// What a reader has of one resource in one zone.
struct Series {
    segments: [Histogram<u64>; 6],
    answers: Answers,
}

/// Where the request path leaves samples.
pub struct Recorder {
    traces: Option<Arc<Traces>>,
    lanes: Box<[CachePadded<ArrayQueue<Sample>>]>,
    lost: AtomicU64,
    collector: Mutex<Collector>,
}

#[derive(Default)]
struct Collector {
    readers: Vec<std::sync::Weak<Mutex<HashMap<Key, Series>>>>,
    meters: HashMap<MeterKey, Meters>,
    lost: u64,
}

/// Metric handles of one resource in one zone, of one route and outcome.
struct Meters {
    segments: [metrics::Histogram; 6],
    hold: metrics::Histogram,
    requests: metrics::Counter,
}

/// One reader's view: what was recorded since it last took it.
pub struct Latencies {
    recorder: Arc<Recorder>,
    series: Arc<Mutex<HashMap<Key, Series>>>,
}

impl Recorder {
    /// Empty.
    pub fn new() -> Arc<Self> {
        Self::with(None)
    }

    /// Empty; what is to be told of requests one by one goes to `traces`.
    pub fn with(traces: Option<Arc<Traces>>) -> Arc<Self> {
        Arc::new(Self {
            traces,
            lanes: (0..super::shards()).map(|_| CachePadded::new(ArrayQueue::new(QUEUE))).collect(),
            lost: AtomicU64::new(0),
            collector: Mutex::default(),
        })
    }

    /// Leaves a sample; never waits, and counts it as lost when nobody collects.
    pub fn record(&self, sample: Sample) {
        if self.lanes[super::shard()].push(sample).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Where requests are told one by one.
    pub fn traces(&self) -> Option<&Traces> {
        self.traces.as_deref()
    }

    /// A new reader, from now on.
    pub fn reader(self: &Arc<Self>) -> Latencies {
        let series = Arc::default();
        lock(&self.collector).readers.push(Arc::downgrade(&series));
        Latencies { recorder: Arc::clone(self), series }
    }

    /// Sorts what was left since the last time into the readers' histograms and the metrics.
    pub fn collect(&self) {
        let mut collector = lock(&self.collector);
        let readers: Vec<_> = collector.readers.iter().filter_map(std::sync::Weak::upgrade).collect();
        collector.readers.retain(|reader| reader.strong_count() > 0);
        for lane in &self.lanes {
            // No more than it held when we came: a busy lane must not keep us here.
            for _ in 0..lane.len() {
                let Some(sample) = lane.pop() else { break };
                for reader in &readers {
                    sort(&mut lock(reader), &sample);
                }
                collector.measure(&sample);
            }
        }
        let lost = self.lost.load(Ordering::Relaxed);
        metrics::counter!(names::REQUEST_SAMPLES_LOST).increment(lost - collector.lost);
        collector.lost = lost;
    }
}

/// What a resource's requests took in one zone.
pub struct Taken {
    /// The resource.
    pub resource: Arc<str>,
    /// The zone that served.
    pub zone: Arc<str>,
    /// Microseconds, in the order of [`Segment::ALL`].
    pub segments: [Histogram<u64>; 6],
}

impl Latencies {
    /// Everything since this reader last took it, of requests that got a whole response.
    pub fn take_all(&self) -> Vec<Taken> {
        self.recorder.collect();
        let all = std::mem::take(&mut *lock(&self.series));
        let measured = all.into_iter().filter(|(_, series)| !series.segments[0].is_empty());
        measured
            .map(|((resource, zone), series)| Taken { resource, zone, segments: series.segments })
            .collect()
    }

    /// Since this reader last took from `resource`: microseconds of `segment` of the requests that got a whole response in `zone`, and
    /// how many came to an end there; those whose client left are none. What is left of other zones goes: it would be news when one
    /// of them serves again.
    pub fn take_of(&self, resource: &str, zone: &str, segment: Segment) -> (Histogram<u64>, Answers) {
        self.recorder.collect();
        let mut taken = (histogram(), Answers::default());
        lock(&self.series).retain(|(of, at), series| {
            if &**of == resource && &**at == zone {
                taken = (
                    std::mem::replace(&mut series.segments[segment as usize], histogram()),
                    std::mem::take(&mut series.answers),
                );
            }
            &**of != resource
        });
        taken
    }

    /// Microseconds of `segment` since this reader last took it, of requests that got a whole response.
    pub fn take(&self, resource: &str, zone: &str, segment: Segment) -> Histogram<u64> {
        self.recorder.collect();
        let mut series = lock(&self.series);
        let of = series.iter_mut().find(|((of, at), _)| &**of == resource && &**at == zone);
        of.map_or_else(histogram, |(_, series)| {
            std::mem::replace(&mut series.segments[segment as usize], histogram())
        })
    }
}

impl Collector {
    fn measure(&mut self, sample: &Sample) {
        let key =
            (sample.resource.clone(), sample.zone.clone(), sample.route.clone(), sample.outcome.label());
        let meters = self.meters.entry(key).or_insert_with_key(Meters::new);
        meters.requests.increment(1);
        if let Some(held) = sample.held {
            meters.hold.record(held.as_secs_f64());
        }
        if let Some(segments) = &sample.segments {
            for segment in Segment::ALL {
                meters.segments[segment as usize].record(segments.get(segment).as_secs_f64());
            }
        }
    }
}

impl Meters {
    fn new((resource, zone, route, code): &MeterKey) -> Self {
        let text = |name: &Option<Arc<str>>, none: &str| name.as_deref().unwrap_or(none).to_owned();
        let (resource, zone, route, code) =
            (text(resource, NONE), text(zone, NONE), text(route, OTHER), *code);
        let segments = Segment::ALL.map(|segment| {
            metrics::histogram!(names::REQUEST_DURATION, names::RESOURCE => resource.clone(),
                names::ZONE => zone.clone(), names::ROUTE => route.clone(), names::CODE => code,
                names::SEGMENT => segment.label())
        });
        Self {
            segments,
            hold: metrics::histogram!(names::HOLD_DURATION, names::RESOURCE => resource.clone()),
            requests: metrics::counter!(names::REQUESTS, names::RESOURCE => resource, names::ZONE => zone,
                names::ROUTE => route, names::CODE => code),
        }
    }
}

fn sort(series: &mut HashMap<Key, Series>, sample: &Sample) {
    let (Some(resource), Some(zone)) = (&sample.resource, &sample.zone) else { return };
    let series = series.entry((Arc::clone(resource), Arc::clone(zone))).or_insert_with(|| Series {
        segments: std::array::from_fn(|_| histogram()),
        answers: Answers::default(),
    });
    match sample.outcome {
        Outcome::Cancelled => {}
        Outcome::Status(status) => series.answers.count(status >= 500),
        Outcome::Refused | Outcome::Aborted => series.answers.count(true),
    }
    let Some(segments) = &sample.segments else { return };
    for segment in Segment::ALL {
        let micros = u64::try_from(segments.get(segment).as_micros()).unwrap_or(u64::MAX);
        // It grows to hold any value, so this does not fail; `saturating_record` would clamp instead of growing.
        let _ = series.segments[segment as usize].record(micros);
    }
}

/// Grows to any value; the digits are within what the crate takes.
pub(crate) fn histogram() -> Histogram<u64> {
    match Histogram::new(DIGITS) {
        Ok(histogram) => histogram,
        Err(error) => unreachable!("{DIGITS} digits are allowed: {error}"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::stopwatch::Stopwatch;
    use super::*;

    fn sample(first_byte: Duration) -> Sample {
        let start = super::super::now();
        let mut watch = Stopwatch::start(start);
        watch.chosen(start);
        watch.connected(start);
        watch.body_sent(start);
        watch.answered(start + first_byte);
        Sample {
            resource: Some("orders".into()),
            zone: Some("a".into()),
            route: None,
            outcome: Outcome::Status(200),
            held: None,
            segments: watch.finish(start + first_byte),
        }
    }

    #[test]
    fn each_reader_takes_for_itself() {
        let recorder = Recorder::new();
        let (one, two) = (recorder.reader(), recorder.reader());
        recorder.record(sample(Duration::from_millis(10)));
        recorder.record(Sample { segments: None, outcome: Outcome::Cancelled, ..sample(Duration::ZERO) });
        let taken = one.take("orders", "a", Segment::Upstream);
        assert_eq!(taken.len(), 1);
        assert!(taken.max().abs_diff(10_000) < 20);
        assert_eq!(one.take("orders", "a", Segment::Upstream).len(), 0);
        assert_eq!(one.take("orders", "b", Segment::Upstream).len(), 0);
        let bad = |outcome| Sample { segments: None, outcome, ..sample(Duration::ZERO) };
        for outcome in [
            Outcome::Status(502),
            Outcome::Status(404),
            Outcome::Refused,
            Outcome::Aborted,
            Outcome::Cancelled,
        ] {
            recorder.record(bad(outcome));
        }
        let answers = |reader: &Latencies| reader.take_of("orders", "a", Segment::Upstream).1;
        assert_eq!(answers(&one), Answers { all: 5, failed: 3 });
        assert_eq!(answers(&one), Answers::default());
        recorder.record(sample(Duration::from_millis(20)));
        assert_eq!(two.take("orders", "a", Segment::FirstByte).len(), 2);
        assert_eq!(one.take("orders", "a", Segment::FirstByte).len(), 1);
        assert_eq!(answers(&two), Answers { all: 6, failed: 3 });
    }

    #[test]
    fn what_a_zone_left_is_not_new_when_it_serves_again() {
        let recorder = Recorder::new();
        let reader = recorder.reader();
        let of = |zone: &str| reader.take_of("orders", zone, Segment::Upstream);
        recorder.record(sample(Duration::from_millis(300)));
        recorder.record(Sample { resource: Some("shop".into()), ..sample(Duration::from_millis(300)) });
        assert_eq!(of("b").0.len(), 0);
        recorder.record(sample(Duration::from_millis(10)));
        let (histogram, answers) = of("a");
        assert!(
            histogram.value_at_quantile(0.95).abs_diff(10_000) < 20,
            "{}",
            histogram.value_at_quantile(0.95)
        );
        assert_eq!(answers, Answers { all: 1, failed: 0 });
        assert_eq!(reader.take("shop", "a", Segment::Upstream).len(), 1, "another resource's stay");
    }

    #[test]
    fn a_full_queue_loses_samples_and_says_so() {
        let recorder = Recorder::new();
        for _ in 0..=QUEUE {
            recorder.record(sample(Duration::ZERO));
        }
        assert_eq!(recorder.lost.load(Ordering::Relaxed), 1);
        recorder.collect();
        assert_eq!(lock(&recorder.collector).lost, 1);
    }
}
