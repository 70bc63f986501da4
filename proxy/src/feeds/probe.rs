//! What one probe found: each phase that was completed with the time it took, or the phase in which it failed, and why.
//!
//! A phase that was not completed has no time: what was cut off by the limit is a failure, never a long latency.

use std::fmt;
use std::time::{Duration, Instant};

use migration::units::Timestamp;

use super::{Reading, Unknown};
use crate::clock;

/// A part of a probe that is timed on its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// Looking up the name.
    Dns,
    /// Opening the connection; of a database's, all that comes before the first statement.
    Connect,
    /// The TLS handshake; not there where requests go in the clear.
    Tls,
    /// From the request to the head of the answer.
    FirstByte,
    /// Reading the answer to its end.
    Body,
    /// From the look-up to the last byte of the answer.
    Total,
    /// From the statement to its result.
    Query,
    /// From a write of one row to its commit's answer.
    Write,
}

impl Phase {
    /// As a metric label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Dns => "dns",
            Self::Connect => "connect",
            Self::Tls => "tls",
            Self::FirstByte => "first_byte",
            Self::Body => "body",
            Self::Total => "total",
            Self::Query => "query",
            Self::Write => "write",
        }
    }

    /// What had not happened when time was up.
    fn awaited(self) -> &'static str {
        match self {
            Self::Dns => "the name was not looked up",
            Self::Connect => "no connection",
            Self::Tls => "the TLS handshake was not done",
            Self::FirstByte | Self::Query => "no answer",
            Self::Write => "the heartbeat was not committed",
            Self::Body | Self::Total => "the answer was not whole",
        }
    }
}

/// Why a probe has no latency.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What it was doing.
    pub phase: Phase,
    /// A lower-case phrase for the operator.
    pub why: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

/// What one probe found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// How long the answer took, or why there was none.
    pub latency: Result<Duration, Failure>,
    /// The status of an answer that is none of success.
    pub status: Option<u16>,
    /// The phases that were completed, in their order.
    pub phases: Vec<(Phase, Duration)>,
    /// When it ended.
    pub at: Timestamp,
}

impl Probe {
    /// How long `phase` took, if the probe completed it.
    pub fn phase(&self, phase: Phase) -> Option<Duration> {
        self.phases.iter().find(|(done, _)| *done == phase).map(|(_, span)| *span)
    }

    /// As a reading of the feed `source`.
    pub fn reading(&self, source: &'static str) -> Reading<Duration> {
        let value = self.latency.clone().map_err(|failure| Unknown(failure.why));
        Reading { value, at: self.at, source }
    }

    /// As a reading of what the answer alone took, as over a connection that is there: that is what requests wait for, whose connections are
    /// kept. Another zone's round trip would count twice or three times otherwise.
    pub fn answer(&self, source: &'static str) -> Reading<Duration> {
        let alone = |first: Duration| first + self.phase(Phase::Body).unwrap_or_default();
        let Reading { value, at, source } = self.reading(source);
        Reading { value: value.map(|whole| self.phase(Phase::FirstByte).map_or(whole, alone)), at, source }
    }
}

/// A probe under way: which phase it is in, and what is behind it.
#[derive(Debug)]
pub(super) struct Course {
    phase: Phase,
    since: Instant,
    done: Vec<(Phase, Duration)>,
    status: Option<u16>,
}

impl Course {
    /// Begins with `phase`.
    pub(super) fn begin(phase: Phase) -> Self {
        Self { phase, since: clock::monotonic(), done: Vec::with_capacity(6), status: None }
    }

    /// The phase is completed and `next` begins. Returns how long it took.
    pub(super) fn then(&mut self, next: Phase) -> Duration {
        let took = self.end();
        self.phase = next;
        took
    }

    /// The last phase is completed. Returns how long it took.
    pub(super) fn end(&mut self) -> Duration {
        let now = clock::monotonic();
        let took = now.saturating_duration_since(self.since);
        self.since = now;
        self.done.push((self.phase, took));
        took
    }

    /// The last phase is completed, and with it all. Returns how long everything took.
    pub(super) fn whole(&mut self) -> Duration {
        self.end();
        let total = self.done.iter().map(|(_, took)| *took).sum();
        self.done.push((Phase::Total, total));
        total
    }

    /// The answer has this status, which is none of success.
    pub(super) fn declined(&mut self, status: u16) -> String {
        self.status = Some(status);
        format!("answered {status}")
    }

    /// The phase under way failed.
    pub(super) fn failed(&self, why: impl Into<String>) -> Failure {
        Failure { phase: self.phase, why: why.into() }
    }

    /// The limit passed in the phase under way.
    pub(super) fn too_late(&self, limit: Duration) -> Failure {
        self.failed(format!("{} within {} ms", self.phase.awaited(), limit.as_millis()))
    }

    /// It has ended.
    pub(super) fn found(self, latency: Result<Duration, Failure>) -> Probe {
        Probe { latency, status: self.status, phases: self.done, at: clock::now() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_requests_wait_for_is_the_answer_and_not_the_connection() {
        let ms = Duration::from_millis;
        let whole = |phases: &[(Phase, u64)]| Probe {
            latency: Ok(phases.iter().map(|(_, took)| ms(*took)).sum()),
            status: None,
            phases: phases.iter().map(|(phase, took)| (*phase, ms(*took))).collect(),
            at: Timestamp(7),
        };
        let answer = |probe: &Probe| probe.answer("probe").value;
        let afar = [
            (Phase::Dns, 5),
            (Phase::Connect, 30),
            (Phase::Tls, 30),
            (Phase::FirstByte, 31),
            (Phase::Body, 1),
        ];
        assert_eq!(answer(&whole(&afar)), Ok(ms(32)));
        assert_eq!(answer(&Probe { latency: Ok(ms(9)), ..whole(&[(Phase::Query, 9)]) }), Ok(ms(9)));
        let failed = Err(Failure { phase: Phase::Body, why: "it hung up".into() });
        assert_eq!(
            answer(&Probe { latency: failed, ..whole(&afar[..4]) }),
            Err(Unknown("it hung up".into()))
        );
    }

    #[test]
    fn a_failure_belongs_to_the_phase_that_was_under_way() {
        let mut course = Course::begin(Phase::Dns);
        course.then(Phase::Connect);
        course.then(Phase::Tls);
        let failure = course.too_late(Duration::from_millis(200));
        assert_eq!(failure.to_string(), "the TLS handshake was not done within 200 ms");
        let found = course.found(Err(failure));
        let done: Vec<&str> = found.phases.iter().map(|(phase, _)| phase.as_str()).collect();
        assert_eq!((done, found.phase(Phase::Tls)), (vec!["dns", "connect"], None));
        let reading = found.reading("HTTP probe");
        assert_eq!(reading.value.unwrap_err().0, "the TLS handshake was not done within 200 ms");
    }
}
