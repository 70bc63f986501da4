//! The HTTP front: one request, step by step.
//!
//! `new_ctx` starts the stopwatch, `request_filter` finds the resource and enters its gate, `upstream_peer` picks from the
//! pool that is active *then*, the filters mark segments, every error meets the table in [`error`], and `logging` runs once
//! whatever happened: it leaves the gate and records the sample.
//!
//! What is sent again, and what never: a request that found no connection goes to another endpoint (nothing was sent). A
//! *safe* method (GET, HEAD, OPTIONS, TRACE) whose connection broke before any answer goes once more to another; another
//! idempotent method only if the connection was a kept one that had died meanwhile. Everything else, POST above all, is
//! sent at most once.

mod client;
pub mod error;
mod exchange;
mod forwarded;
mod server;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::Digest;
use pingora::proxy::{FailToProxy, ProxyHttp, ProxyWarnLogContext, Session};
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, Result};

use error::Fault;
pub use exchange::Exchange;
pub use server::{
    Background, FrontService, ListenError, ServerSettings, StopOn, check_listeners, server, service,
};

use super::latencies::Recorder;
use super::now;
use super::routes::{ResourceFront, Routes};
use super::stopwatch::{Outcome, Segment};

/// How long a connection to an endpoint may take.
const CONNECT: Duration = Duration::from_secs(2);
/// How long an unused connection to an endpoint is kept.
const KEEP: Duration = Duration::from_mins(1);
/// How much of a refused request's body is read so that the client gets to see the reply, and for how long.
const LINGER: (usize, Duration) = (1 << 20, Duration::from_millis(500));

/// The HTTP front of all resources.
pub struct HttpFront {
    routes: Arc<Routes>,
    recorder: Arc<Recorder>,
}

#[async_trait]
impl ProxyHttp for HttpFront {
    type CTX = Exchange;

    fn new_ctx(&self) -> Exchange {
        Exchange::start()
    }

    /// No modules: responses pass untouched.
    fn init_downstream_modules(&self, _: &mut pingora::modules::http::HttpModules) {}

    async fn request_filter(&self, session: &mut Session, exchange: &mut Exchange) -> Result<bool> {
        let Some(front) = self.find(session) else { return exchange.fail(Fault::UnknownHost) };
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

    async fn upstream_peer(&self, _: &mut Session, exchange: &mut Exchange) -> Result<Box<HttpPeer>> {
        let now = now();
        exchange.watch.chosen(now);
        let pick = exchange.front.as_ref().and_then(|front| front.pool.pick(&exchange.tried, now));
        let Some(pick) = pick else { return exchange.fail(Fault::NoUpstream) };
        let mut peer = HttpPeer::new(pick.address(), false, String::new());
        peer.group_key = pick.generation;
        peer.options.connection_timeout = Some(CONNECT);
        peer.options.idle_timeout = Some(KEEP);
        exchange.pick = Some(pick);
        Ok(Box::new(peer))
    }

    async fn connected_to_upstream(
        &self,
        _: &mut Session,
        reused: bool,
        _: &HttpPeer,
        _: std::os::unix::io::RawFd,
        _: Option<&Digest>,
        exchange: &mut Exchange,
    ) -> Result<()> {
        exchange.watch.connected(now());
        if let Some(pick) = exchange.pick.as_ref().filter(|_| !reused) {
            pick.connected();
        }
        Ok(())
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        request: &mut RequestHeader,
        _: &mut Exchange,
    ) -> Result<()> {
        forwarded::add(request, inet(session.client_addr()))
    }

    async fn request_body_filter(
        &self,
        _: &mut Session,
        _: &mut Option<Bytes>,
        end: bool,
        exchange: &mut Exchange,
    ) -> Result<()> {
        if end {
            exchange.watch.body_sent(now());
        }
        Ok(())
    }

    async fn upstream_response_filter(
        &self,
        _: &mut Session,
        response: &mut ResponseHeader,
        exchange: &mut Exchange,
    ) -> Result<()> {
        if !response.status.is_informational() || response.status.as_u16() == 101 {
            exchange.watch.answered(now());
        }
        Ok(())
    }

    fn fail_to_connect(
        &self,
        _: &mut Session,
        _: &HttpPeer,
        exchange: &mut Exchange,
        mut error: Box<Error>,
    ) -> Box<Error> {
        let now = now();
        exchange.watch.connection_ended(now);
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
        exchange: &mut Exchange,
        client_reused: bool,
    ) -> Box<Error> {
        error.retry.decide_reuse(client_reused);
        let method = &session.req_header().method;
        let repeatable = session.response_written().is_none() && !session.retry_buffer_truncated();
        let again = match Fault::of(&error) {
            Fault::BadAnswer if !repeatable => false,
            Fault::BadAnswer if method.is_safe() => {
                client_reused || exchange.tried.is_empty() && exchange.has_other_endpoint()
            }
            Fault::BadAnswer => method.is_idempotent() && error.retry(),
            _ => false,
        };
        if again && !client_reused {
            exchange.give_up_endpoint();
        }
        error.set_retry(again);
        error
    }

    async fn fail_to_proxy(
        &self,
        session: &mut Session,
        error: &Error,
        exchange: &mut Exchange,
    ) -> FailToProxy {
        let fault = *exchange.fault.get_or_insert_with(|| Fault::of(error));
        if fault.is_ours() {
            let resource = exchange.front.as_ref().map(|front| &*front.name);
            tracing::warn!(fault = fault.label(), resource, %error, "request failed");
        }
        let Some(reply) = fault.reply() else {
            return FailToProxy { error_code: 0, can_reuse_downstream: false };
        };
        let sent = reply.send(session).await;
        // It is done: nobody who drains needs to wait for what the client is still sending.
        exchange.admission = None;
        if sent.is_ok() {
            linger(session).await;
        }
        FailToProxy { error_code: reply.status, can_reuse_downstream: false }
    }

    async fn logging(&self, session: &mut Session, error: Option<&Error>, exchange: &mut Exchange) {
        let front = exchange.front.as_ref().filter(|front| front.mirror.is_on()).cloned();
        let sample = exchange.finish(session, error);
        if let (Some(front), Some(segments), Outcome::Status(status)) =
            (front, &sample.segments, sample.outcome)
        {
            let (request, took) = (session.req_header(), segments.get(Segment::Upstream));
            front.mirror.offer(&request.method, &request.uri, &request.headers, status, took);
        }
        self.recorder.record(sample);
    }

    fn suppress_error_log(&self, _: &Session, _: &Exchange, _: &Error) -> bool {
        true
    }

    fn suppress_proxy_warn_log(&self, _: &Session, _: &Exchange, _: &Error, _: ProxyWarnLogContext) -> bool {
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

impl Exchange {
    fn has_other_endpoint(&self) -> bool {
        let here = self.pick.as_ref().map(super::pools::Pick::address);
        let avoid: Vec<_> = self.tried.iter().copied().chain(here).collect();
        self.front.as_ref().is_some_and(|front| front.pool.has_other_than(&avoid))
    }
}

fn inet(address: Option<&pingora::protocols::l4::socket::SocketAddr>) -> Option<SocketAddr> {
    address.and_then(|address| address.as_inet()).copied()
}

/// Reads what the client is still sending, within bounds: closing on unread bytes would reset the connection, and the
/// client might lose the reply.
async fn linger(session: &mut Session) {
    let (mut left, time) = LINGER;
    let read = async {
        while left > 0 && !session.downstream_session.is_body_done() {
            match session.downstream_session.read_request_body().await {
                Ok(Some(bytes)) => left = left.saturating_sub(bytes.len().max(1)),
                Ok(None) | Err(_) => return,
            }
        }
    };
    // A client that is still sending after that is on its own.
    let _ = tokio::time::timeout(time, read).await;
}
