//! Takes the request path's latencies every 10 s of wall time and hands them over as histograms, with what feeds said meanwhile.

use std::collections::BTreeMap;
use std::time::Duration;

use migration::units::Timestamp;
use tokio_util::sync::CancellationToken;

use super::{Bucket, History, Resolution};
use crate::clock;
use crate::feeds::external::board::FeedBoard;
use crate::fronts::latencies::Latencies;
use crate::fronts::stopwatch::Segment;

/// Until cancelled; what the last, unfinished bucket holds is handed over too.
pub async fn collect(history: History, latencies: Latencies, feeds: FeedBoard, stop: CancellationToken) {
    let mut said = BTreeMap::new();
    loop {
        let began = Timestamp(Resolution::Fine.begin(clock::now().0));
        let end = began.0 + Resolution::Fine.bucket_ms();
        let left = Duration::from_millis(end.saturating_sub(clock::now().0));
        let ended = stop.run_until_cancelled(tokio::time::sleep(left)).await.is_none();
        let buckets = buckets(&latencies, began);
        if !buckets.is_empty() {
            history.record_buckets(buckets);
        }
        for (series, value, at) in feeds.said(&mut said, clock::now()) {
            history.record_feed(&series, value, at);
        }
        if ended {
            return;
        }
    }
}

fn buckets(latencies: &Latencies, at: Timestamp) -> Vec<Bucket> {
    let mut buckets = Vec::new();
    for taken in latencies.take_all() {
        for (segment, histogram) in Segment::ALL.into_iter().zip(taken.segments) {
            buckets.push(Bucket {
                resource: taken.resource.to_string(),
                zone: taken.zone.to_string(),
                segment: segment.label(),
                at,
                histogram,
            });
        }
    }
    buckets
}
