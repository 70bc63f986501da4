//! What an operator can say of HTTP fronts and of placements' upstreams, validated. Types and their defaults; nothing reads
//! files here.

use std::path::PathBuf;
use std::time::Duration;

use migration::units::{ByteCount, Ratio};

use crate::feeds::external::egress::Network;

/// Of one listener. Fronts that share it have the same, but for their certificates, which add up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListenerSettings {
    /// TLS; none: in the clear.
    pub tls: Option<ListenerTls>,
    /// Clients in the clear may speak HTTP/2 at once (prior knowledge).
    pub h2c: bool,
    /// Peers that begin each connection with a PROXY header, version 1 or 2; nobody else may.
    pub proxy_protocol: Vec<Network>,
}

/// TLS of a listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerTls {
    /// PEM files, certificate chain and key; chosen by the name a client asks for, else the first.
    pub certificates: Vec<(PathBuf, PathBuf)>,
    /// Who vouches for clients; none: they show no certificate.
    pub clients: Option<ClientCertificates>,
    /// Whether HTTP/2 is offered.
    pub http2: bool,
}

/// Certificates of clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificates {
    /// PEM file of the authorities.
    pub ca: PathBuf,
    /// A client without one is refused in the handshake.
    pub required: bool,
}

/// Of one front.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Settings {
    /// Peers whose `Forwarded` and `X-Forwarded-*` are believed and passed on.
    pub trusted: Vec<Network>,
    /// Requests without an id or a trace get one.
    pub identify: bool,
    /// What a request may be.
    pub limits: Limits,
    /// How long each part may take.
    pub timeouts: Timeouts,
    /// Paths are decoded, joined and freed of dots before they are passed on.
    pub normalize_paths: bool,
    /// What becomes of long streams at a cutover.
    pub streams: StreamRules,
    /// Exceptions by path; the longest that fits counts.
    pub routes: Vec<Route>,
    /// Repeating requests.
    pub retries: Retries,
    /// Asking endpoints how they are; none: nobody asks.
    pub health: Option<HealthCheck>,
    /// Leaving out endpoints that fail requests; none: only those that take no connection.
    pub ejection: Option<Ejection>,
    /// One line per request; none: no log.
    pub access_log: Option<AccessLog>,
}

/// What a request may be; over it 431, 414 or 413.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Header lines.
    pub headers: usize,
    /// All of the header's bytes, request line included.
    pub header_bytes: usize,
    /// Bytes of the request target.
    pub uri_bytes: usize,
    /// Bytes of the body; none: any.
    pub body_bytes: Option<u64>,
}

impl Default for Limits {
    fn default() -> Self {
        Self { headers: 100, header_bytes: 64 << 10, uri_bytes: 8 << 10, body_bytes: None }
    }
}

/// How long each part may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// A connection to an endpoint, TLS included.
    pub connect: Duration,
    /// Silence of an endpoint that owes an answer or the rest of one; streams may be silent longer.
    pub answer: Duration,
    /// An unused connection to an endpoint is kept.
    pub keep: Duration,
    /// A client between requests, and its silence in the middle of one; whole seconds.
    pub client: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(2),
            answer: Duration::from_mins(1),
            keep: Duration::from_mins(1),
            client: Duration::from_mins(1),
        }
    }
}

/// What becomes of a long stream when its resource moves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum AtCutover {
    /// It goes on at the old side until the deadline.
    #[default]
    Finish,
    /// It is ended soon after the swap, so that the client comes again.
    Close,
    /// The drain waits for it, as for any request.
    Block,
}

/// Rules for long streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamRules {
    /// Where no route says otherwise.
    pub at_cutover: AtCutover,
    /// How long after the swap a stream may go on at the old side.
    pub deadline: Duration,
    /// Closing is spread over this long.
    pub jitter: Duration,
}

impl Default for StreamRules {
    fn default() -> Self {
        Self {
            at_cutover: AtCutover::Finish,
            deadline: Duration::from_mins(10),
            jitter: Duration::from_secs(5),
        }
    }
}

/// An exception for some paths.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Its name in metrics.
    pub name: String,
    /// Paths that begin so, in whole segments.
    pub path: String,
    /// What becomes of its streams.
    pub at_cutover: Option<AtCutover>,
    /// Every response counts as a long stream from its first byte.
    pub stream: bool,
}

/// Repeating requests that failed without harm.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Retries {
    /// At most this share of requests is repeated; a few are always allowed.
    pub budget: Ratio,
}

impl Default for Retries {
    fn default() -> Self {
        Self { budget: Ratio::new(0.2).unwrap_or_default() }
    }
}

/// Asking an endpoint how it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// What is asked; none: whether it takes a connection.
    pub path: Option<String>,
    /// How often, each endpoint at its own moment.
    pub every: Duration,
    /// For one answer.
    pub timeout: Duration,
    /// Failures in a row that take it out.
    pub down_after: u32,
    /// Answers in a row that bring it back.
    pub up_after: u32,
}

impl Default for HealthCheck {
    fn default() -> Self {
        Self {
            path: None,
            every: Duration::from_secs(5),
            timeout: Duration::from_secs(2),
            down_after: 3,
            up_after: 2,
        }
    }
}

/// Leaving out an endpoint whose requests fail: no answer, or 502, 503 or 504.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ejection {
    /// Failures in a row that take it out.
    pub failures: u32,
    /// For how long the first time; longer each further time.
    pub time: Duration,
    /// At most this share of the endpoints is out.
    pub most: Ratio,
}

impl Default for Ejection {
    fn default() -> Self {
        Self { failures: 5, time: Duration::from_secs(10), most: Ratio::new(0.5).unwrap_or_default() }
    }
}

/// One JSON line per request.
#[derive(Clone, Debug, PartialEq)]
pub struct AccessLog {
    /// The file; none: the log of this process.
    pub file: Option<PathBuf>,
    /// Which share of requests; errors always.
    pub sample: Ratio,
}

/// How a placement's endpoints are spoken to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Upstream {
    /// HTTP/2 instead of HTTP/1.1.
    pub http2: bool,
    /// TLS; none: in the clear.
    pub tls: Option<UpstreamTls>,
    /// Requests at all endpoints together; over it 503. None: any number.
    pub limit: Option<usize>,
    /// How much of the load each endpoint gets, in the order of the endpoints; missing: 1.
    pub weights: Vec<u32>,
}

/// TLS towards a placement's endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamTls {
    /// PEM file of who vouches for them; none: this machine's authorities.
    pub ca: Option<PathBuf>,
    /// The name in their certificates, also asked for.
    pub name: String,
}

/// Bytes as a number that memory can hold.
pub fn bytes(count: ByteCount) -> usize {
    usize::try_from(count.0).unwrap_or(usize::MAX)
}
