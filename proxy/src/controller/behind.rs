//! How far a shadow is behind, as far as that is known: also while no stream says so.

use std::time::{Duration, Instant};

use migration::units::Timestamp;
use replicator::status::{CopyStage, Phase, StreamStatus};

use super::view::ReplicationView;

/// What the primary keeps for a stream that has not confirmed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kept {
    /// How much.
    pub bytes: u64,
    /// It was looked at just now; if not, it may be more by now.
    pub current: bool,
}

/// How far a shadow is behind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Behind {
    /// WAL that it has not applied; none: not known.
    pub bytes: Option<u64>,
    /// It may be more: the primary does not answer.
    pub at_least: bool,
    /// For how long it is not known to have caught up; none: never since this process started.
    pub time: Option<Duration>,
    /// When the stream last said how far it is, if that is over.
    pub heard: Option<Timestamp>,
}

impl Behind {
    /// What the stream says, or, while it is down, what the primary shows and how long ago it was up.
    pub fn of(status: Option<&StreamStatus>, kept: Option<Kept>, now: Instant, wall: Timestamp) -> Self {
        if let Some(status) = status
            && !matches!(status.phase, Phase::Copying { stage: CopyStage::Finishing, .. })
            && matches!(status.phase, Phase::Streaming | Phase::Copying { .. })
        {
            return Self { bytes: Some(status.lag_bytes), time: Some(status.lag), ..Self::default() };
        }
        let last = status.and_then(|status| Some((status.heard?, status)));
        let silent = last.map(|(heard, _)| now.saturating_duration_since(heard));
        let spoken = last.map(|(_, status)| Kept { bytes: status.lag_bytes, current: false });
        // What the shadow has applied but not confirmed is counted here as well.
        let kept = match kept {
            Some(Kept { current: true, .. }) => kept,
            _ => kept.into_iter().chain(spoken).max_by_key(|kept| kept.bytes),
        };
        Self {
            bytes: kept.map(|kept| kept.bytes),
            at_least: kept.is_some_and(|kept| !kept.current),
            time: last.zip(silent).map(|((_, status), silent)| silent + status.lag),
            heard: silent.map(|silent| Timestamp(wall.0.saturating_sub(silent.as_millis() as u64))),
        }
    }

    /// In words.
    pub fn text(&self) -> String {
        let bytes = match self.bytes {
            Some(bytes) if self.at_least => format!("at least {bytes} bytes"),
            Some(bytes) => format!("{bytes} bytes"),
            None => "an unknown number of bytes".into(),
        };
        let time =
            self.time.map_or_else(|| "an unknown time".into(), |time| format!("{} ms", time.as_millis()));
        let heard =
            self.heard.and_then(|at| jiff::Timestamp::from_millisecond(i64::try_from(at.0).ok()?).ok());
        let heard = heard.map_or_else(String::new, |at| format!(", last heard of at {at:.0}"));
        format!("{bytes} / {time} behind{heard}")
    }
}

impl ReplicationView {
    /// How far the shadow is behind.
    pub fn behind(&self) -> Behind {
        Behind {
            bytes: self.lag_bytes,
            at_least: self.lag_at_least,
            time: self.lag_ms.map(Duration::from_millis),
            heard: self.heard_ms.map(Timestamp),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WALL: Timestamp = Timestamp(1_796_000_140_000);

    fn failed(heard: Option<Instant>) -> StreamStatus {
        StreamStatus {
            phase: Phase::Failed { error: "connection refused".into(), retrying: true },
            lag_bytes: 12_328,
            lag: Duration::from_millis(100),
            heard,
            ..StreamStatus::default()
        }
    }

    #[test]
    fn a_stream_that_is_down_falls_behind() {
        let began = crate::clock::monotonic();
        let now = began + Duration::from_secs(30);
        let status = failed(Some(began));
        let seen = Behind::of(Some(&status), Some(Kept { bytes: 99_032, current: true }), now, WALL);
        assert_eq!((seen.bytes, seen.at_least), (Some(99_032), false));
        assert_eq!(seen.time, Some(Duration::from_millis(30_100)));
        assert_eq!(seen.text(), "99032 bytes / 30100 ms behind, last heard of at 2026-11-30T00:55:10Z");
        let lost = Behind::of(Some(&status), Some(Kept { bytes: 99_032, current: false }), now, WALL);
        assert_eq!((lost.bytes, lost.at_least), (Some(99_032), true));
        let never_seen = Behind::of(Some(&status), None, now, WALL);
        assert_eq!((never_seen.bytes, never_seen.at_least), (Some(12_328), true));
    }

    #[test]
    fn what_was_never_heard_of_is_unknown() {
        let now = crate::clock::monotonic();
        // The stream has said nothing yet.
        let finishing = Phase::Copying {
            stage: CopyStage::Finishing,
            tables_done: 0,
            tables: 0,
            rows: 0,
            bytes: 0,
            rows_estimate: 0,
            bytes_estimate: 0,
            remaining: None,
        };
        let finishing = StreamStatus { phase: finishing, ..failed(None) };
        for status in [None, Some(failed(None)), Some(StreamStatus::default()), Some(finishing)] {
            let unknown = Behind::of(status.as_ref(), None, now, WALL);
            assert_eq!(unknown, Behind::default(), "{status:?}");
            assert_eq!(unknown.text(), "an unknown number of bytes / an unknown time behind");
        }
        let streams = StreamStatus { phase: Phase::Streaming, ..failed(None) };
        let known = Behind::of(Some(&streams), Some(Kept { bytes: 99_032, current: true }), now, WALL);
        assert_eq!(known.text(), "12328 bytes / 100 ms behind");
    }
}
