//! Puts the front into pingora: the server with its settings, and the service with one listener per address.
//!
//! How pingora 0.9.1 stops: SIGINT ends at once; SIGTERM stops accepting, lets kept-alive connections go, waits the *whole*
//! grace period (it sleeps, it does not look), then ends the runtimes; SIGQUIT hands sockets to a second process, where
//! Godwit becomes the next program itself (`upgrade`). Each service has its own runtime: make sockets and connections inside
//! it. A listener that cannot be bound is retried for 30 s and then panics its service, hence [`crate::fronts::sockets`].

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use async_trait::async_trait;
use pingora::apps::HttpServerOptions;
use pingora::listeners::ListenerConfig;
use pingora::protocols::http::v2::server::default_h2_options;
use pingora::protocols::l4::stream::L4BufferSettings;
use pingora::proxy::http_proxy;
use pingora::server::configuration::ServerConf;
use pingora::server::{RunArgs, Server, ShutdownSignal, ShutdownSignalWatch};
use pingora::services::listening::Service;
use tokio_util::sync::CancellationToken;

use crate::fronts::latencies::Recorder;
use crate::fronts::routes::Routes;

use super::HttpFront;
use super::doors::Doors;

/// The pingora service of the fronts.
pub type FrontService = Service<Doors>;

/// An HTTP/2 connection of a client without requests is closed after this.
const IDLE: Duration = Duration::from_mins(1);
/// Requests that a client may have under way on one HTTP/2 connection.
const STREAMS: u32 = 100;

/// How the server runs.
#[derive(Clone, Copy, Debug)]
pub struct ServerSettings {
    /// Threads per service.
    pub threads: usize,
    /// Connections to upstreams kept per thread.
    pub kept_connections: usize,
    /// How long requests may go on after SIGTERM; whole seconds.
    pub grace: Duration,
}

impl Default for ServerSettings {
    fn default() -> Self {
        Self { threads: 2, kept_connections: 512, grace: Duration::from_secs(2) }
    }
}

/// A listener that cannot be bound.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}")]
pub struct ListenError {
    /// Where.
    pub address: SocketAddr,
    pub(crate) source: std::io::Error,
}

/// Ends the server at once when the token is cancelled; no signal is looked at.
pub struct StopOn(pub CancellationToken);

#[async_trait]
impl ShutdownSignalWatch for StopOn {
    async fn recv(&self) -> ShutdownSignal {
        self.0.cancelled().await;
        ShutdownSignal::FastShutdown
    }
}

/// The same, but what its connections have begun may end, within the server's grace.
struct RunOutOn(CancellationToken);

#[async_trait]
impl ShutdownSignalWatch for RunOutOn {
    async fn recv(&self) -> ShutdownSignal {
        self.0.cancelled().await;
        ShutdownSignal::GracefulTerminate
    }
}

/// An empty server: add services to it, then `run` or `run_forever`.
pub fn server(settings: ServerSettings) -> Server {
    let conf = ServerConf {
        threads: settings.threads.max(1),
        upstream_keepalive_pool_size: settings.kept_connections,
        grace_period_seconds: Some(settings.grace.as_secs()),
        graceful_shutdown_timeout_seconds: Some(1),
        daemon: false,
        ..ServerConf::default()
    };
    let mut server = Server::new_with_opt_and_conf(None, conf);
    server.bootstrap();
    server
}

/// The service for every listener of `routes`.
pub fn service(server: &Server, routes: &Arc<Routes>, recorder: &Arc<Recorder>) -> FrontService {
    let front = HttpFront { routes: Arc::clone(routes), recorder: Arc::clone(recorder) };
    let mut proxy = http_proxy(&server.configuration, front);
    let mut options = HttpServerOptions::default();
    options.h2_idle_timeout = Some(IDLE);
    proxy.server_options = Some(options);
    let mut h2 = default_h2_options();
    h2.max_concurrent_streams(STREAMS);
    h2.max_header_list_size(u32::try_from(routes.largest_header()).unwrap_or(u32::MAX));
    proxy.h2_options = Some(h2);
    let mut service = Service::new("http fronts".to_owned(), Doors::new(Arc::clone(routes), proxy));
    service.set_connection_filter(routes.clients().clone());
    for address in routes.listeners() {
        // What is read ahead has a buffer only while it is there: `ahead`, `between`.
        let buffer = L4BufferSettings::default().read(0);
        service.add_listener(ListenerConfig::tcp(address.to_string()).l4_buffer(buffer));
    }
    service
}

/// A server in a thread of its own; dropping it ends the server.
pub struct Background {
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl Background {
    /// Runs `server` until dropped. Fails when the system gives no thread.
    pub fn run(server: Server) -> std::io::Result<Self> {
        let stop = CancellationToken::new();
        Self::begin(server, StopOn(stop.clone()), stop)
    }

    /// The same; once dropped, what its connections have begun may end, and the drop waits for the server's whole grace.
    pub fn run_out(server: Server) -> std::io::Result<Self> {
        let stop = CancellationToken::new();
        Self::begin(server, RunOutOn(stop.clone()), stop)
    }

    fn begin(
        server: Server,
        signal: impl ShutdownSignalWatch + Send + 'static,
        stop: CancellationToken,
    ) -> std::io::Result<Self> {
        let shutdown_signal = Box::new(signal);
        let thread = std::thread::Builder::new()
            .name("fronts".to_owned())
            .spawn(move || server.run(RunArgs { shutdown_signal }))?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            // A panic in there was reported there.
            let _ = thread.join();
        }
    }
}
