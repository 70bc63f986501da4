//! Requests of Godwit's own to an endpoint, on connections of their own and spoken as clients' requests are: with the
//! placement's protocol and TLS. For health checks, probes and mirrored reads.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONNECTION, HOST, USER_AGENT};
use http::{HeaderValue, Request, Response, Uri};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::Reach;

/// Why there is no answer.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// A connection on which the endpoint has said nothing but, where it speaks TLS, who it is.
pub struct Greeted {
    http2: bool,
    stream: Way,
}

enum Way {
    Clear(TcpStream),
    Secure(Box<TlsStream<TcpStream>>),
}

/// A connection on which requests can be sent, one after the other. It ends with this.
pub struct Open {
    sender: Sender,
    secure: bool,
    /// A set aborts what it holds when it is dropped.
    _driven: JoinSet<hyper::Result<()>>,
}

enum Sender {
    One(http1::SendRequest<Empty<Bytes>>),
    Two(http2::SendRequest<Empty<Bytes>>),
}

/// What was answered, and the connection that its body comes from: it ends with this.
pub struct Answer {
    /// Its header, and the body to be read.
    pub response: Response<Incoming>,
    _connection: Open,
}

impl Reach {
    /// Shakes hands as requests do, where that is asked for.
    pub async fn greet(&self, stream: TcpStream) -> Result<Greeted, Failure> {
        let stream = match &self.server_name {
            None => Way::Clear(stream),
            Some(name) => {
                let mut config = rustls::ClientConfig::clone(&*self.client()?);
                config.alpn_protocols = vec![if self.http2 { b"h2".to_vec() } else { b"http/1.1".to_vec() }];
                let name = ServerName::try_from(name.clone())?;
                Way::Secure(Box::new(TlsConnector::from(Arc::new(config)).connect(name, stream).await?))
            }
        };
        Ok(Greeted { http2: self.http2, stream })
    }
}

impl Greeted {
    /// The connection, ready for requests.
    pub async fn open(self) -> Result<Open, Failure> {
        match self.stream {
            Way::Clear(stream) => open(TokioIo::new(stream), self.http2, false).await,
            Way::Secure(stream) => open(TokioIo::new(*stream), self.http2, true).await,
        }
    }

    /// Asks for a path and query, from the slash. Cancel-safe: dropping the future closes the connection.
    pub async fn get(self, path: &str, host: &str, agent: &'static str) -> Result<Answer, Failure> {
        let request = Request::get(path).header(USER_AGENT, agent).header(HOST, host);
        // HTTP/2 does without it.
        let request = if self.http2 { request } else { request.header(CONNECTION, "close") };
        let mut open = self.open().await?;
        let response = open.ask(request.body(Empty::new())?).await?;
        Ok(Answer { response, _connection: open })
    }
}

async fn open<S>(stream: S, http2: bool, secure: bool) -> Result<Open, Failure>
where
    S: hyper::rt::Read + hyper::rt::Write + Send + Unpin + 'static,
{
    let mut driven = JoinSet::new();
    let sender = if http2 {
        let (sender, connection) = http2::handshake(TokioExecutor::new(), stream).await?;
        driven.spawn(connection);
        Sender::Two(sender)
    } else {
        let (sender, connection) = http1::handshake(stream).await?;
        driven.spawn(connection);
        Sender::One(sender)
    };
    Ok(Open { sender, secure, _driven: driven })
}

impl Open {
    /// Whether it has ended; one that has not may do so at any moment.
    pub fn has_ended(&self) -> bool {
        match &self.sender {
            Sender::One(sender) => sender.is_closed(),
            Sender::Two(sender) => sender.is_closed(),
        }
    }

    /// Sends a request, whose target begins with the slash and which says its `Host`. What was asked before must have been read
    /// to its end.
    pub async fn ask(&mut self, mut request: Request<Empty<Bytes>>) -> Result<Response<Incoming>, Failure> {
        match &mut self.sender {
            Sender::One(sender) => {
                sender.ready().await?;
                Ok(sender.send_request(request).await?)
            }
            Sender::Two(sender) => {
                let host =
                    request.headers_mut().remove(HOST).unwrap_or(HeaderValue::from_static("localhost"));
                let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
                let scheme = if self.secure { "https" } else { "http" };
                let uri = Uri::builder().scheme(scheme).authority(host.as_bytes()).path_and_query(path);
                *request.uri_mut() = uri.build()?;
                sender.ready().await?;
                Ok(sender.send_request(request).await?)
            }
        }
    }
}
