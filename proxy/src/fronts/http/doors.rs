//! The application behind all listeners: brings a connection in, and has the proxy library answer its requests.
//!
//! HTTP/2 is left to the library as a whole. Connections of HTTP/1.1 go from request to request here, as they would in there, but
//! for what they cost while they have none: see [`super::between`]. For the same reason they do not stay in the library's task, which
//! has room for a TLS handshake of its own.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::BytesMut;
use pingora::apps::{HttpPersistentSettings, HttpServerApp, ReusedHttpStream, ServerApp};
use pingora::protocols::http::ServerSession;
use pingora::protocols::{ALPN, Stream};
use pingora::proxy::HttpProxy;
use pingora::server::ShutdownWatch;
use tokio_util::sync::CancellationToken;

use super::between::{Between, FIRST, first_bytes};
use super::entrance::Entrance;
use super::{HttpFront, inet};
use crate::fronts::routes::Routes;

/// How long a client may take until it speaks HTTP.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a client that was accepted may take until it asks, when the program is replaced.
const LAST: Duration = Duration::from_secs(1);
/// How often it is looked whether all have.
const LOOK: Duration = Duration::from_millis(5);

/// Where connections come in.
pub struct Doors {
    routes: Arc<Routes>,
    proxy: Arc<HttpProxy<HttpFront>>,
    /// Who waits for a request waits no longer.
    closing: CancellationToken,
}

/// A request that the proxy library answers.
type Answering<'a> = Pin<Box<dyn Future<Output = Option<ReusedHttpStream>> + Send + 'a>>;

impl Doors {
    pub(super) fn new(routes: Arc<Routes>, proxy: HttpProxy<HttpFront>) -> Self {
        Self { routes, proxy: Arc::new(proxy), closing: CancellationToken::new() }
    }

    /// A connection from its beginning to its end. Its future stays small: what is large is behind pointers.
    async fn serve(&self, stream: Stream, shutdown: &ShutdownWatch) {
        let _connected = self.routes.clients().connection();
        let entrance = {
            let digest = stream.get_socket_digest();
            self.routes.entrance(|| inet(digest.as_ref()?.local_addr()))
        };
        let stream = match entrance {
            Some(entrance) if !entrance.is_plain() => Box::pin(admit(entrance, stream)).await,
            _ => Some(stream),
        };
        let Some(stream) = stream else { return };
        if matches!(stream.selected_alpn_proto(), Some(ALPN::H2)) {
            self.proxy.process_new(stream, shutdown).await;
        } else {
            self.requests(stream, shutdown).await;
        }
    }

    /// One request of HTTP/1.1 after the other.
    async fn requests(&self, mut stream: Stream, shutdown: &ShutdownWatch) {
        let Some(begun) = first_bytes(&mut stream, Some(FIRST), &self.closing).await else { return };
        let mut answered = self.first(stream, begun, shutdown).await;
        while let Some(reused) = answered {
            let (mut stream, kept) = reused.consume();
            let begun = match kept.as_ref().map_or(Between::Begun, Between::of) {
                Between::Idle(limit) => match first_bytes(&mut stream, limit, &self.closing).await {
                    Some(bytes) => Some(bytes),
                    None => return,
                },
                Between::Begun => None,
            };
            answered = self.next(stream, kept, begun, shutdown).await;
        }
    }

    /// Says of a new connection what the proxy library would.
    fn first<'a>(&'a self, stream: Stream, begun: BytesMut, shutdown: &'a ShutdownWatch) -> Answering<'a> {
        let mut session = ServerSession::new_http1(stream);
        session.set_keepalive((!*shutdown.borrow()).then_some(FIRST.as_secs()));
        session.set_pipelined_prefix(begun);
        self.proxy.process_new_http(session, shutdown)
    }

    fn next<'a>(
        &'a self,
        stream: Stream,
        kept: Option<HttpPersistentSettings>,
        begun: Option<BytesMut>,
        shutdown: &'a ShutdownWatch,
    ) -> Answering<'a> {
        let mut session = ServerSession::new_http1(stream);
        if let Some(kept) = kept {
            kept.apply_to_session(&mut session);
        }
        if let Some(begun) = begun {
            session.set_pipelined_prefix(begun);
        }
        self.proxy.process_new_http(session, shutdown)
    }
}

async fn admit(entrance: Arc<Entrance>, stream: Stream) -> Option<Stream> {
    tokio::time::timeout(PATIENCE, entrance.admit(stream)).await.ok()?
}

#[async_trait]
impl ServerApp for Doors {
    async fn process_new(self: &Arc<Self>, stream: Stream, shutdown: &ShutdownWatch) -> Option<Stream> {
        let (doors, shutdown) = (Arc::clone(self), shutdown.clone());
        tokio::spawn(async move { doors.serve(stream, &shutdown).await });
        None
    }

    /// Nobody is accepted any more.
    async fn cleanup(&self) {
        // Whoever was accepted a moment ago is about to ask: the library would close what has not asked yet.
        if self.routes.clients().leaving() {
            let answered = async {
                while self.routes.busy() > 0 {
                    tokio::time::sleep(LOOK).await;
                }
            };
            let _ = tokio::time::timeout(LAST, answered).await;
        }
        self.closing.cancel();
        self.proxy.http_cleanup().await;
    }
}
