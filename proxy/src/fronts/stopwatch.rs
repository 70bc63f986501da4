//! The stopwatch: what users wait for, split into segments that events define.
//!
//! ```text
//!  header read   gate left   endpoint chosen   connected   body sent   header back   response sent
//!       |--- held ----|             |-- connect ---|- client -|-first byte-|--- body ------|
//! ```
//! [`Segment::Upstream`] is all of it without *held* and *client*: our own hold and a client that is slow to send must
//! never argue for a migration. A request that never got a response header has no segments, only an outcome; one whose
//! client left is `cancelled`, once.
//!
//! Pure: it is told the time.

use std::time::{Duration, Instant};

/// A part of the time a request takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Segment {
    /// The client sends its body.
    Client,
    /// The gate holds it.
    Held,
    /// A connection to an upstream is made or taken from those kept alive; all tries.
    Connect,
    /// From the body sent to the response header read.
    FirstByte,
    /// From the response header read to the response sent.
    Body,
    /// All of it without `Held` and `Client`.
    Upstream,
}

impl Segment {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Client, Self::Held, Self::Connect, Self::FirstByte, Self::Body, Self::Upstream];

    /// Its metric label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Held => "held",
            Self::Connect => "connect",
            Self::FirstByte => "first_byte",
            Self::Body => "body",
            Self::Upstream => "upstream",
        }
    }
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// A response with this status was sent whole.
    Status(u16),
    /// A database refused the statement: an error of 4xx that may be the move's doing (a table that is missing there, say).
    Refused,
    /// The client left before.
    Cancelled,
    /// The response was cut short by us or the upstream.
    Aborted,
}

impl Outcome {
    /// Its metric label: the class of the status, or what happened instead.
    pub fn label(self) -> &'static str {
        match self {
            Self::Status(100..=199) => "1xx",
            Self::Status(200..=299) => "2xx",
            Self::Status(300..=399) => "3xx",
            Self::Status(400..=499) | Self::Refused => "4xx",
            Self::Status(_) => "5xx",
            Self::Cancelled => "cancelled",
            Self::Aborted => "aborted",
        }
    }
}

/// Durations by segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segments([Duration; 6]);

impl Segments {
    /// One of them.
    pub fn get(&self, segment: Segment) -> Duration {
        self.0[segment as usize]
    }
}

/// Collects the events of one request.
#[derive(Debug)]
pub struct Stopwatch {
    started: Instant,
    held: Duration,
    chosen: Option<Instant>,
    connect: Duration,
    connected: Option<Instant>,
    body_sent: Option<Instant>,
    answered: Option<Instant>,
}

impl Stopwatch {
    /// The request's header was read.
    pub fn start(now: Instant) -> Self {
        Self {
            started: now,
            held: Duration::ZERO,
            chosen: None,
            connect: Duration::ZERO,
            connected: None,
            body_sent: None,
            answered: None,
        }
    }

    /// The gate held it this long.
    pub fn held(&mut self, held: Duration) {
        self.held = held;
    }

    /// An endpoint was chosen; again, if the one before could not be used.
    pub fn chosen(&mut self, now: Instant) {
        self.chosen = Some(now);
        self.connected = None;
        self.body_sent = None;
    }

    /// It is connected to an upstream.
    pub fn connected(&mut self, now: Instant) {
        self.connected = Some(now);
        self.connection_ended(now);
    }

    /// A try to connect ended.
    pub fn connection_ended(&mut self, now: Instant) {
        if let Some(chosen) = self.chosen.take() {
            self.connect += now.saturating_duration_since(chosen);
        }
    }

    /// The last piece of the request's body was handed to the upstream.
    pub fn body_sent(&mut self, now: Instant) {
        self.body_sent.get_or_insert(now);
    }

    /// Whether the last piece of the request's body was handed to the upstream.
    pub fn is_body_sent(&self) -> bool {
        self.body_sent.is_some()
    }

    /// The response's header came back.
    pub fn answered(&mut self, now: Instant) {
        self.answered.get_or_insert(now);
    }

    /// How long the endpoint has been asked for an answer: since the body was sent, or since it was connected.
    pub fn waiting(&self, now: Instant) -> Duration {
        let since = self.body_sent.or(self.connected).unwrap_or(now);
        now.saturating_duration_since(since)
    }

    /// How long it has been here.
    pub fn total(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.started)
    }

    /// How long it was held.
    pub fn hold(&self) -> Duration {
        self.held
    }

    /// The segments of a request whose response was sent; none if no response came back.
    pub fn finish(&self, now: Instant) -> Option<Segments> {
        let (connected, answered) = (self.connected?, self.answered?);
        // An upstream may answer before the whole body arrived: the client's time ends there.
        let sent = self.body_sent.unwrap_or(answered).min(answered);
        let client = sent.saturating_duration_since(connected);
        let total = now.saturating_duration_since(self.started);
        Some(Segments([
            client,
            self.held,
            self.connect,
            answered.saturating_duration_since(sent),
            now.saturating_duration_since(answered),
            total.saturating_sub(self.held).saturating_sub(client),
        ]))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn at(start: Instant, ms: u64) -> Instant {
        start + Duration::from_millis(ms)
    }

    fn ms(segments: Segments) -> Vec<u128> {
        Segment::ALL.map(|segment| segments.get(segment).as_millis()).to_vec()
    }

    #[test]
    fn held_and_client_time_stay_out_of_upstream() {
        let start = super::super::now();
        let mut watch = Stopwatch::start(start);
        watch.held(Duration::from_millis(100));
        watch.chosen(at(start, 101));
        watch.connection_ended(at(start, 103));
        watch.chosen(at(start, 104));
        watch.connected(at(start, 107));
        watch.body_sent(at(start, 127));
        watch.answered(at(start, 140));
        // client 20, held 100, connect 2 + 3, first byte 13, body 10, upstream 150 - 100 - 20
        assert_eq!(ms(watch.finish(at(start, 150)).unwrap()), [20, 100, 5, 13, 10, 30]);
    }

    #[test]
    fn an_answer_before_the_body_ends_the_clients_time() {
        let start = super::super::now();
        let mut watch = Stopwatch::start(start);
        watch.chosen(start);
        watch.connected(at(start, 1));
        watch.answered(at(start, 11));
        watch.body_sent(at(start, 50));
        assert_eq!(ms(watch.finish(at(start, 60)).unwrap()), [10, 0, 1, 0, 49, 50]);
        let mut watch = Stopwatch::start(start);
        watch.chosen(start);
        watch.connected(at(start, 1));
        assert!(watch.finish(at(start, 60)).is_none());
    }
}
