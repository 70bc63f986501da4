//! What the front remembers of one request while it passes.

use std::io;
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::StatusCode;
use http::header::{ACCEPT, CONTENT_TYPE, EXPECT, HeaderName, HeaderValue, UPGRADE};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::proxy::Session;
use pingora::{Error, ErrorSource, ErrorType, Result};

use crate::fronts::gate::Admission;
use crate::fronts::latencies::Sample;
use crate::fronts::now;
use crate::fronts::pools::Pick;
use crate::fronts::pools::connections::Connection;
use crate::fronts::pools::upgrading::Upgrading;
use crate::fronts::routes::ResourceFront;
use crate::fronts::stopwatch::{Outcome, Stopwatch};
use crate::fronts::streams::{Arrival, CERTAIN, Place, UNANSWERED};
use crate::telemetry::names;
use crate::traces;

use super::ending;
use super::error::Fault;
use super::forwarded::Identity;
use super::settings::AtCutover;
use super::websocket::Frames;

/// As many bytes of a body an endpoint of HTTP/2 has room for from the start (RFC 9113, section 6.9.2).
const WINDOW: u64 = 65_535;

/// One request and its response. Dropping it leaves the gate and ends the claim on an endpoint, whatever happened.
pub struct Exchange {
    pub(super) watch: Stopwatch,
    pub(super) front: Option<Arc<ResourceFront>>,
    /// Its client.
    pub(super) client: Option<SocketAddr>,
    /// The configured route.
    pub(super) route: Option<Arc<str>>,
    /// What becomes of it at a cutover, should it be a long stream.
    pub(super) at_cutover: AtCutover,
    /// Its route says that it is one.
    pub(super) is_stream: bool,
    /// It may be silent for long: it asks for a stream.
    pub(super) may_be_silent: bool,
    pub(super) admission: Option<Admission>,
    pub(super) pick: Option<Pick>,
    /// The zone of the endpoint it was last at, or that had none for it.
    pub(super) zone: Option<Arc<str>>,
    /// Endpoints that could not be used.
    pub(super) tried: Vec<SocketAddr>,
    /// Its connection, as the proxy library knows it.
    pub(super) descriptor: RawFd,
    /// Its connection, where it asks for an upgrade.
    pub(super) upgrading: Option<Arc<Upgrading>>,
    /// A kept connection, and how much its other end had taken before this request.
    pub(super) kept: Option<(Arc<Connection>, u64)>,
    /// How often it was sent, or tried to be.
    pub(super) attempts: u32,
    /// Its place among the long streams.
    pub(super) place: Option<Place>,
    /// What the endpoint sends, where that is WebSocket.
    pub(super) frames: Option<Frames>,
    /// Bytes of its body that were passed on, of this attempt.
    pub(super) body_bytes: u64,
    /// Its id, once it has one.
    pub(super) id: Bytes,
    /// Where it is in its trace, where it is told of.
    pub(super) traced: Option<Box<traces::Place>>,
    /// Why it failed, once that is known.
    pub(super) fault: Option<Fault>,
}

impl Exchange {
    /// The request's header was read.
    pub(super) fn start() -> Self {
        Self {
            watch: Stopwatch::start(now()),
            front: None,
            client: None,
            route: None,
            at_cutover: AtCutover::Finish,
            is_stream: false,
            may_be_silent: false,
            admission: None,
            pick: None,
            zone: None,
            tried: Vec::new(),
            descriptor: -1,
            upgrading: None,
            kept: None,
            attempts: 0,
            place: None,
            frames: None,
            body_bytes: 0,
            id: Bytes::new(),
            traced: None,
            fault: None,
        }
    }

    /// It is sent, or tried to be: once more begins with its first byte, counts once at the endpoints, and forgets why the time before came
    /// to nothing. One that was ended as a stream has to enter the gate anew.
    pub(super) fn again(&mut self) {
        self.attempts += 1;
        self.body_bytes = 0;
        self.fault = None;
        drop(self.leave_endpoint());
    }

    /// Notes what it is known by.
    pub(super) fn known_by(&mut self, identity: Identity) {
        self.id = identity.id;
        self.traced = identity.place.map(Box::new);
    }

    /// Notes why it fails.
    pub(super) fn fail<T>(&mut self, fault: Fault) -> Result<T> {
        self.fault = Some(fault);
        // Never retried by the proxy library.
        Error::e_explain(ErrorType::HTTPStatus(fault.status()), fault.label())
    }

    /// The endpoint it is at could not be used: leaves it, and avoids it from now on.
    pub(super) fn give_up_endpoint(&mut self) -> Option<Pick> {
        let pick = self.leave_endpoint()?;
        self.tried.push(pick.address());
        Some(pick)
    }

    fn leave_endpoint(&mut self) -> Option<Pick> {
        // Before its claim on the endpoint: with more streams there than requests, those that are not would be ended.
        self.is_no_stream();
        let pick = self.pick.take()?;
        self.zone = Some(Arc::clone(pick.zone()));
        Some(pick)
    }

    /// Whether it is a long stream that was ended because its resource moved.
    pub(super) fn was_ended(&self) -> bool {
        self.place.as_ref().is_some_and(Place::was_ended)
    }

    /// Whether the endpoint has seen nothing of it: it had closed the kept connection, and until then its kernel had taken nothing.
    pub(super) fn is_untouched(&self, error: &Error) -> bool {
        let untaken = |(connection, before): &(Arc<Connection>, u64)| {
            !connection.was_ended() && connection.taken() == Some(*before)
        };
        closed_by_endpoint(error) && self.kept.as_ref().is_some_and(untaken)
    }

    /// Whether the time of an answer ran out although the endpoint had all that its client has sent, and waits for the rest of the body. One
    /// that does not read is another matter (a write that takes too long), and so is one that does not say `100` to who asks for it.
    pub(super) fn waits_for_client(&self, session: &Session, error: &Error) -> bool {
        let Some(pick) = &self.pick else { return false };
        // There the time does not begin anew with each piece that is written, and a piece may wait until the endpoint makes room for it.
        let taken = !pick.reach().http2 || self.body_bytes <= WINDOW;
        let asked = self.body_bytes > 0
            || session.response_written().is_some()
            || !session.req_header().headers.contains_key(EXPECT);
        *error.etype() == ErrorType::ReadTimedout
            && error.esource() == &ErrorSource::Upstream
            && !self.watch.is_body_sent()
            && taken
            && asked
    }

    pub(super) fn has_other_endpoint(&self) -> bool {
        let here = self.pick.as_ref().map(Pick::address);
        let avoid: Vec<_> = self.tried.iter().copied().chain(here).collect();
        self.front.as_ref().is_some_and(|front| front.pool.has_other_than(&avoid))
    }

    /// Takes a repeat from the budget.
    pub(super) fn may_repeat(&self) -> bool {
        let Some(front) = &self.front else { return false };
        let allowed = front.retries.take(now());
        let name = if allowed { names::RETRIES } else { names::RETRIES_REFUSED };
        metrics::counter!(name, names::RESOURCE => front.name.to_string()).increment(1);
        allowed
    }

    /// What its route and its header say of it.
    pub(super) fn classify(&mut self, request: &RequestHeader, front: &ResourceFront) {
        self.at_cutover = front.settings.streams.at_cutover;
        if !front.settings.routes.is_empty()
            && let Some((route, name)) = front.route(request.uri.path())
        {
            self.at_cutover = route.at_cutover.unwrap_or(self.at_cutover);
            self.is_stream = route.stream;
            self.route = Some(Arc::clone(name));
        }
        self.may_be_silent = self.is_stream
            || asks_for_websocket(request)
            || begins(request, &ACCEPT, b"text/event-stream")
            || begins(request, &CONTENT_TYPE, b"application/grpc");
    }

    /// It is being sent: one whose route or client says that it is a stream may be answered late, and a drain must not wait for that. It may
    /// still be answered at once with something else, and a short write is waited for.
    pub(super) fn is_sent(&mut self, request: &RequestHeader) {
        let asked = request.method.is_safe()
            && (asks_for_websocket(request) || begins(request, &ACCEPT, b"text/event-stream"));
        if self.is_stream || asked {
            let now = now();
            self.stream(now + UNANSWERED, now);
        }
    }

    /// It is a long stream, for certain from then on.
    fn stream(&mut self, certain: Instant, now: Instant) {
        let Some((front, pick)) = self.front.as_ref().zip(self.pick.as_ref()) else { return };
        let connection = pick.endpoint().connections().get(self.descriptor);
        let arrival = Arrival {
            generation: pick.generation(),
            at_cutover: self.at_cutover,
            client: self.client,
            certain,
            admission: self.admission.take(),
            streaming: pick.streams(connection),
        };
        self.place = Some(front.streams.begin(arrival, now));
    }

    /// It is no stream (yet) after all: back inside, unless it was ended, or has left the gate and that is closed.
    fn comes_back(&mut self) {
        let Some((place, front)) = self.place.as_ref().zip(self.front.as_ref()) else { return };
        self.admission = place.come_back(&front.gate);
        if self.admission.is_some() {
            self.place = None;
        }
    }

    /// It goes to another endpoint, or once more to this one.
    fn is_no_stream(&mut self) {
        self.comes_back();
        self.place = None;
    }

    /// The endpoint answered: what that says of it, and whether this is a long stream.
    pub(super) fn answered(&mut self, response: &ResponseHeader) {
        let now = now();
        self.watch.answered(now);
        let Some((front, pick)) = self.front.as_ref().zip(self.pick.as_ref()) else { return };
        let status = response.status;
        let well = !matches!(status.as_u16(), 502..=504);
        pick.answered(self.watch.waiting(now), well, front.settings.ejection.as_ref(), now);
        self.comes_back();
        let upgraded = status == StatusCode::SWITCHING_PROTOCOLS;
        let kind = response.headers.get(CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
        let certain =
            if upgraded || self.is_stream && status.is_success() || kind.starts_with(b"text/event-stream") {
                now
            } else if kind.starts_with(b"application/grpc") {
                now + CERTAIN
            } else {
                return;
            };
        if self.place.is_none() {
            self.stream(certain, now);
        }
        self.frames = upgraded.then(Frames::default);
    }

    /// Leaves the gate and the endpoint, and returns what is kept of it.
    pub(super) fn finish(&mut self, session: &Session, error: Option<&Error>) -> Sample {
        drop(self.admission.take());
        // Before its claim on the endpoint: with more streams there than requests, those that are not would be ended.
        let streamed = self.place.take().is_some();
        let zone = self.pick.take().map(|pick| Arc::clone(pick.zone())).or_else(|| self.zone.take());
        let status = ending::response(session).map(|header| header.status.as_u16());
        let outcome = match (error, self.fault, status) {
            (None, _, Some(status)) | (_, Some(Fault::Moved), Some(status)) => Outcome::Status(status),
            (_, Some(Fault::ClientLeft), _) | (_, None, None) => Outcome::Cancelled,
            (_, Some(fault), Some(status)) if fault.status() != status => match fault {
                Fault::ClientStalled => Outcome::Cancelled,
                _ => Outcome::Aborted,
            },
            (_, _, Some(status)) => Outcome::Status(status),
            (_, Some(fault), None) => Outcome::Status(fault.status()),
        };
        // How long a stream lasted says nothing of how long anybody waited.
        let whole = error.is_none() && !streamed;
        Sample {
            resource: self.front.as_ref().map(|front| Arc::clone(&front.name)),
            zone,
            route: self.route.take(),
            outcome,
            held: Some(self.watch.hold()).filter(|held| !held.is_zero()),
            segments: whole.then(|| self.watch.finish(now())).flatten(),
        }
    }
}

/// Whether it asks for the only upgrade that is passed on.
pub(super) fn asks_for_websocket(request: &RequestHeader) -> bool {
    request.headers.get(UPGRADE).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

/// Whether a field of its header begins so.
fn begins(request: &RequestHeader, name: &HeaderName, with: &[u8]) -> bool {
    request.headers.get(name).is_some_and(|value| value.as_bytes().starts_with(with))
}

/// Whether a connection broke because the endpoint had closed it in order, which acknowledges what it had been sent until then. Anything
/// else says nothing of that: an endpoint's kernel waits before it acknowledges, and a reset, or a silence, may come after the whole
/// request was read.
fn closed_by_endpoint(error: &Error) -> bool {
    match error.root_cause().downcast_ref::<io::Error>() {
        // While writing; while reading through TLS.
        Some(error) => matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::UnexpectedEof),
        None => *error.root_etype() == ErrorType::ConnectionClosed,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::model::{HoldLimits, HttpFront};
    use crate::fronts::pools::Pool;

    const HOLD: HoldLimits = HoldLimits { requests: 9, bytes: 9, time: Duration::from_secs(9) };

    /// A request that has entered the gate and is at its endpoint.
    fn at_endpoint(is_stream: bool) -> (Exchange, Arc<ResourceFront>) {
        let listen = SocketAddr::from(([127, 0, 0, 1], 1));
        let front =
            ResourceFront::new("a", &HttpFront::plain(listen, &[]), HOLD, Pool::new(0, "z", &[listen]));
        let mut exchange = Exchange::start();
        exchange.is_stream = is_stream;
        exchange.admission = front.gate.try_enter();
        exchange.pick = front.pool.pick(&[], now()).ok();
        exchange.front = Some(Arc::clone(&front));
        (exchange, front)
    }

    fn request(method: &str, fields: &[(&'static str, &str)]) -> RequestHeader {
        let mut request = RequestHeader::build(method, b"/", None).unwrap();
        for (name, value) in fields {
            request.insert_header(*name, *value).unwrap();
        }
        request
    }

    #[test]
    fn a_stream_by_its_route_is_outside_until_something_else_is_answered() {
        for (closes, inside) in [(false, 1), (true, 0)] {
            let (mut exchange, front) = at_endpoint(true);
            exchange.is_sent(&request("POST", &[]));
            assert_eq!((front.gate.stats().in_flight, front.streams.count()), (1, 1), "a short write, say");
            front.streams.leave(now() + UNANSWERED);
            assert_eq!((front.gate.stats().in_flight, front.streams.count()), (0, 1));
            if closes {
                front.gate.close();
            }
            exchange.answered(&ResponseHeader::build(404, None).unwrap());
            let streams = usize::from(closes);
            assert_eq!((front.gate.stats().in_flight, front.streams.count()), (inside, streams));
        }
    }

    #[test]
    fn only_websocket_and_events_are_asked_for_as_streams() {
        for (method, fields, streams) in [
            ("GET", &[("upgrade", "WebSocket")][..], 1),
            ("GET", &[("accept", "text/event-stream")], 1),
            ("GET", &[("upgrade", "h2c")], 0),
            ("POST", &[("accept", "text/event-stream")], 0),
        ] {
            let (mut exchange, front) = at_endpoint(false);
            let request = request(method, fields);
            exchange.classify(&request, &front);
            exchange.is_sent(&request);
            assert_eq!(front.streams.count(), streams, "{method} {fields:?}");
            assert_eq!(exchange.may_be_silent, fields[0].1 != "h2c", "{method} {fields:?}");
        }
    }

    /// There are never more streams at an endpoint than requests.
    #[test]
    fn who_gives_an_endpoint_up_is_no_stream_there() {
        let (mut exchange, front) = at_endpoint(true);
        exchange.is_sent(&request("GET", &[]));
        let pick = exchange.give_up_endpoint().unwrap();
        assert_eq!((pick.endpoint().in_flight(), pick.endpoint().streams()), (1, 0));
        assert_eq!(front.gate.stats().in_flight, 1, "it is inside again");
    }

    #[test]
    fn who_is_sent_again_is_at_no_endpoint_meanwhile() {
        let (mut exchange, front) = at_endpoint(true);
        exchange.is_sent(&request("GET", &[]));
        exchange.again();
        let pool = front.pool.load();
        let endpoint = &pool.endpoints()[0];
        assert_eq!((endpoint.in_flight(), endpoint.streams(), front.gate.stats().in_flight), (0, 0, 1));
        assert_eq!(exchange.zone.as_deref(), Some("z"));
    }

    #[test]
    fn only_an_end_in_order_says_what_was_taken() {
        let writing = |kind: io::ErrorKind| {
            let error = Error::because(ErrorType::WriteError, "while writing body", io::Error::from(kind));
            closed_by_endpoint(&error.into_up().more_context("sending"))
        };
        assert!(writing(io::ErrorKind::BrokenPipe) && writing(io::ErrorKind::UnexpectedEof));
        assert!(!writing(io::ErrorKind::ConnectionReset) && !writing(io::ErrorKind::TimedOut));
        assert!(closed_by_endpoint(&Error::explain(ErrorType::ConnectionClosed, "while reading")));
        assert!(!closed_by_endpoint(&Error::explain(ErrorType::WriteTimedout, "while writing")));
    }
}
