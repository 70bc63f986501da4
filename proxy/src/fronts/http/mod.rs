//! The HTTP front: one request, step by step.
//!
//! `new_ctx` starts the stopwatch, `request_filter` finds the resource and enters its gate, `upstream_peer` picks from the
//! pool that is active *then*, the filters mark segments, every error meets the table in [`error`], and `logging` runs once
//! whatever happened: it leaves the gate and records the sample.
//!
//! What is sent again, and what never: [`retries`]. How a connection gets here: [`entrance`]. What the upstream is told:
//! `forwarded`; once `request_filter` has passed, a request's header is as the endpoint gets it, and whoever needs another copy of
//! it takes it there. Long streams and what becomes of them: [`crate::fronts::streams`].

pub mod access_log;
mod ahead;
mod arrival;
mod between;
mod client;
mod cookies;
mod doors;
mod ending;
pub mod entrance;
pub mod error;
mod exchange;
mod forwarded;
mod limits;
mod peer;
mod proxy_protocol;
pub mod retries;
mod server;
pub mod settings;
mod websocket;

use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::StatusCode;
use pingora::http::ResponseHeader;
use pingora::protocols::Digest;
use pingora::proxy::{FailToProxy, ProxyHttp, ProxyWarnLogContext, Session};
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorType, Result, RetryType};

use error::Fault;
pub use exchange::Exchange;
pub use server::{Background, FrontService, ListenError, ServerSettings, StopOn, server, service};

use super::latencies::Recorder;
use super::now;
use super::pools::{NoPick, Pick};
use super::routes::{ResourceFront, Routes};
use super::stopwatch::{Outcome, Segment};

/// The HTTP front of all resources.
pub struct HttpFront {
    routes: Arc<Routes>,
    recorder: Arc<Recorder>,
}

#[async_trait]
impl ProxyHttp for HttpFront {
    /// Behind a pointer: the proxy library moves it along with its futures.
    type CTX = Box<Exchange>;

    fn new_ctx(&self) -> Box<Exchange> {
        Box::new(Exchange::start())
    }

    /// No modules: responses pass untouched.
    fn init_downstream_modules(&self, _: &mut pingora::modules::http::HttpModules) {}

    async fn request_filter(&self, session: &mut Session, exchange: &mut Box<Exchange>) -> Result<bool> {
        if self.routes.clients().leaving() {
            session.set_keepalive(None);
        }
        let Some(front) = self.find(session) else { return exchange.fail(Fault::UnknownHost) };
        front.retries.count();
        if let Err(fault) = arrival::examine(session, &front.settings) {
            exchange.front = Some(front);
            return exchange.fail(fault);
        }
        exchange.client = inet(session.client_addr());
        exchange.classify(session.req_header(), &front);
        match arrival::introduce(session, &front.settings, self.recorder.traces()) {
            Ok(identity) => exchange.known_by(identity),
            Err(error) => {
                exchange.front = Some(front);
                return Err(error);
            }
        }
        let entered = client::enter(&front.gate, session).await;
        exchange.front = Some(front);
        let admission = match entered {
            Ok(admission) => admission,
            Err(fault) => return exchange.fail(fault),
        };
        exchange.watch.held(admission.held.unwrap_or_default());
        exchange.admission = Some(admission);
        Ok(false)
    }

    async fn upstream_peer(
        &self,
        session: &mut Session,
        exchange: &mut Box<Exchange>,
    ) -> Result<Box<HttpPeer>> {
        exchange.again();
        if exchange.admission.is_none()
            && let Some(front) = exchange.front.clone()
        {
            exchange.admission = match client::enter(&front.gate, session).await {
                Ok(admission) => Some(admission),
                Err(fault) => return exchange.fail(fault),
            };
        }
        let now = now();
        exchange.watch.chosen(now);
        let Some(front) = &exchange.front else { return exchange.fail(Fault::Internal) };
        let pick = match front.pool.pick(&exchange.tried, now) {
            Ok(pick) => pick,
            Err(no) => {
                // It would have been sent there.
                exchange.zone = Some(Arc::clone(&front.pool.load().zone));
                return exchange.fail(match no {
                    NoPick::None => Fault::NoUpstream,
                    NoPick::Full => Fault::Full,
                });
            }
        };
        if pick.reach().http2 {
            arrival::name_a_host(session.req_header_mut())?;
        }
        let upgrades = !pick.reach().http2
            && exchange::asks_for_websocket(session.req_header())
            && session.downstream_session.is_body_empty();
        exchange.upgrading = upgrades.then(|| pick.upgrading());
        let (timeouts, upgrading) = (&front.settings.timeouts, exchange.upgrading.as_ref());
        let peer = peer::of(&pick, timeouts, exchange.at_cutover, exchange.may_be_silent, upgrading);
        exchange.pick = Some(pick);
        Ok(Box::new(peer))
    }

    async fn connected_to_upstream(
        &self,
        session: &mut Session,
        reused: bool,
        _: &HttpPeer,
        descriptor: RawFd,
        _: Option<&Digest>,
        exchange: &mut Box<Exchange>,
    ) -> Result<()> {
        exchange.watch.connected(now());
        if session.downstream_session.is_body_empty() {
            // Towards HTTP/2 the library passes on no end of what there is none of.
            exchange.watch.body_sent(now());
        }
        exchange.descriptor = descriptor;
        if let Some(upgrading) = &exchange.upgrading {
            exchange.descriptor = upgrading.descriptor();
            upgrading.connected();
        }
        exchange.kept = None;
        exchange.is_sent(session.req_header());
        let Some(pick) = &exchange.pick else { return Ok(()) };
        if !reused {
            pick.connected();
        } else if !pick.reach().http2 && !session.req_header().method.is_safe() {
            // Should the connection turn out to be dead, the kernel will say whether the endpoint has seen the request.
            let connection = pick.endpoint().connections().get(descriptor);
            exchange.kept =
                connection.and_then(|connection| connection.taken().map(|taken| (connection, taken)));
        }
        Ok(())
    }

    async fn request_body_filter(
        &self,
        _: &mut Session,
        body: &mut Option<Bytes>,
        end: bool,
        exchange: &mut Box<Exchange>,
    ) -> Result<()> {
        if let Some(piece) = body {
            exchange.body_bytes += piece.len() as u64;
            let most = exchange.front.as_ref().and_then(|front| front.settings.limits.body_bytes);
            if most.is_some_and(|most| exchange.body_bytes > most) {
                return exchange.fail(Fault::BodyTooLarge);
            }
        }
        if end {
            exchange.watch.body_sent(now());
            if let Some(upgrading) = &exchange.upgrading {
                upgrading.body_ended();
            }
        }
        Ok(())
    }

    async fn upstream_response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        exchange: &mut Box<Exchange>,
    ) -> Result<()> {
        let upgraded = response.status == StatusCode::SWITCHING_PROTOCOLS;
        if !response.status.is_informational() || upgraded {
            exchange.answered(response);
        }
        if upgraded {
            // Either side may be silent for as long as it likes: who has gone is found by the kernel.
            session.set_read_timeout(None);
        }
        cookies::take_from_answer(response)?;
        if (exchange.place.is_some() || self.routes.clients().leaving()) && !upgraded {
            // The library closes what a cutover ends, and an upgrade. A client that is told so does not send its next request into that.
            session.set_keepalive(None);
        }
        Ok(())
    }

    fn upstream_response_body_filter(
        &self,
        _: &mut Session,
        body: &mut Option<Bytes>,
        end: bool,
        exchange: &mut Box<Exchange>,
    ) -> Result<Option<Duration>> {
        if let Some(frames) = &mut exchange.frames {
            if let Some(piece) = body {
                frames.pass(piece);
            }
            let closes = end && frames.may_close();
            if closes && exchange.was_ended() {
                *body = Some(websocket::RESTART);
            }
        }
        Ok(None)
    }

    fn fail_to_connect(
        &self,
        _: &mut Session,
        _: &HttpPeer,
        exchange: &mut Box<Exchange>,
        mut error: Box<Error>,
    ) -> Box<Error> {
        let now = now();
        exchange.watch.connection_ended(now);
        // Nothing was sent, whatever the library calls it: a certificate that is not the endpoint's, no free descriptor.
        exchange.fault = Some(match error.etype() {
            ErrorType::ConnectTimedout => Fault::TimedOut,
            _ => Fault::Unreachable,
        });
        if let Some(pick) = exchange.give_up_endpoint() {
            pick.refused(now);
        }
        error.set_retry(exchange.has_other_endpoint());
        error
    }

    fn error_while_proxy(
        &self,
        _: &HttpPeer,
        session: &mut Session,
        mut error: Box<Error>,
        exchange: &mut Box<Exchange>,
        client_reused: bool,
    ) -> Box<Error> {
        let (fault, ended) = (Fault::of(&error), exchange.was_ended());
        let stalled = exchange.waits_for_client(session, &error);
        if stalled {
            exchange.fault = Some(Fault::ClientStalled);
        }
        let breaks = matches!(fault, Fault::BadAnswer | Fault::TimedOut) && !ended && !stalled;
        if breaks
            && let Some((front, pick)) = exchange.front.as_ref().zip(exchange.pick.as_ref())
            && let Some(rules) = &front.settings.ejection
            // One that was kept may have ended by itself; it keeps nobody waiting by itself.
            && (!client_reused || fault == Fault::TimedOut)
        {
            pick.failed(rules, now());
        }
        // HTTP/2 says so itself where it has refused a request unseen.
        let http2 = exchange.pick.as_ref().is_some_and(|pick| pick.reach().http2);
        let refused = http2
            && matches!(error.retry, RetryType::Decided(true))
            && !matches!(error.etype(), ErrorType::InvalidH2);
        error.retry.decide_reuse(client_reused);
        let unanswered = session.response_written().is_none();
        let untouched = fault == Fault::BadAnswer && (refused || unanswered && exchange.is_untouched(&error));
        let broken = retries::Broken {
            method: &session.req_header().method,
            reused: client_reused,
            refused: error.retry(),
            untouched,
            repeatable: unanswered && !session.retry_buffer_truncated(),
            moved: !exchange.tried.is_empty(),
            elsewhere: exchange.has_other_endpoint(),
        };
        let again = fault == Fault::BadAnswer
            && if ended {
                // The end was ours: it says nothing of how the endpoints do, so the budget is left to what does, and nothing of what they
                // have done, on a kept connection either.
                broken.repeatable && broken.method.is_safe()
            } else {
                broken.again() && exchange.may_repeat()
            };
        if !again && untouched && exchange.fault.is_none() {
            exchange.fault = Some(Fault::NotSent);
        }
        if again && ended {
            // The new side may be where the old one was.
            exchange.tried.clear();
        } else if again && !client_reused {
            exchange.give_up_endpoint();
        }
        error.set_retry(again);
        error
    }

    async fn fail_to_proxy(
        &self,
        session: &mut Session,
        error: &Error,
        exchange: &mut Box<Exchange>,
    ) -> FailToProxy {
        if exchange.was_ended() {
            exchange.fault = Some(Fault::Moved);
            if ending::response(session).is_some() {
                let close = exchange.frames.as_ref().is_some_and(websocket::Frames::may_close);
                ending::end_stream(session, close).await;
                return FailToProxy { error_code: 0, can_reuse_downstream: false };
            }
        }
        let fault = *exchange.fault.get_or_insert_with(|| Fault::of(error));
        if fault.is_ours() {
            let resource = exchange.front.as_ref().map(|front| &*front.name);
            let id = std::str::from_utf8(&exchange.id).unwrap_or_default();
            tracing::warn!(fault = fault.label(), resource, id, %error, "request failed");
        }
        let Some(reply) = fault.reply() else {
            return FailToProxy { error_code: 0, can_reuse_downstream: false };
        };
        let sent = reply.send(session).await;
        // It is done: nobody who drains needs to wait for what the client is still sending.
        exchange.admission = None;
        if sent.is_ok() {
            ending::linger(session).await;
        }
        FailToProxy { error_code: reply.status, can_reuse_downstream: false }
    }

    async fn logging(&self, session: &mut Session, error: Option<&Error>, exchange: &mut Box<Exchange>) {
        let at = exchange.pick.as_ref().map(Pick::reached_at);
        let sample = exchange.finish(session, error);
        if let Some(front) = exchange.front.take() {
            if let (true, Some(segments), Outcome::Status(status)) =
                (front.mirror.is_on(), &sample.segments, sample.outcome)
            {
                let request = session.req_header();
                // What follows the header takes as long as the client does to read it, which says nothing of a zone.
                let took = segments.get(Segment::Connect) + segments.get(Segment::FirstByte);
                front.mirror.offer(&request.method, &request.uri, &request.headers, status, took);
            }
            if let (Some(place), Some(traces)) = (exchange.traced.take(), self.recorder.traces()) {
                traces.send(access_log::line(session, exchange, &sample, at).span(*place));
            }
            if let Some(access) = &front.access {
                let bad = !matches!(sample.outcome, Outcome::Status(status) if status < 500);
                if access.wants(bad) {
                    access.leave(&access_log::line(session, exchange, &sample, at));
                }
            }
        }
        self.recorder.record(sample);
    }

    fn suppress_error_log(&self, _: &Session, _: &Box<Exchange>, _: &Error) -> bool {
        true
    }

    fn suppress_proxy_warn_log(
        &self,
        _: &Session,
        _: &Box<Exchange>,
        _: &Error,
        _: ProxyWarnLogContext,
    ) -> bool {
        true
    }
}

impl HttpFront {
    fn find(&self, session: &Session) -> Option<Arc<ResourceFront>> {
        let request = session.req_header();
        let host = request
            .uri
            .authority()
            .map(http::uri::Authority::as_str)
            .or_else(|| request.headers.get(http::header::HOST).and_then(|host| host.to_str().ok()));
        self.routes.find(host, || inet(session.server_addr()))
    }
}

fn inet(address: Option<&pingora::protocols::l4::socket::SocketAddr>) -> Option<SocketAddr> {
    address.and_then(|address| address.as_inet()).copied()
}
