//! One request of Godwit's own to an endpoint, on a connection of its own and spoken as clients' requests are: with the
//! placement's protocol and TLS. For health checks and probes.

use std::sync::Arc;

use bytes::Bytes;
use http::Response;
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::Reach;

/// Why there is no answer.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// A connection on which one request can be sent.
pub struct Greeted {
    http2: bool,
    stream: Way,
}

enum Way {
    Clear(TcpStream),
    Secure(Box<TlsStream<TcpStream>>),
}

/// What was answered, and the connection that its body comes from: it ends with this.
pub struct Answer {
    /// Its header, and the body to be read.
    pub response: Response<Incoming>,
    _connection: JoinSet<hyper::Result<()>>,
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
    /// Asks for a path and query, from the slash. Cancel-safe: dropping the future closes the connection.
    pub async fn get(self, path: &str, host: &str, agent: &'static str) -> Result<Answer, Failure> {
        match self.stream {
            Way::Clear(stream) => get(TokioIo::new(stream), self.http2, path, host, agent).await,
            Way::Secure(stream) => get(TokioIo::new(*stream), self.http2, path, host, agent).await,
        }
    }
}

async fn get<S>(stream: S, http2: bool, path: &str, host: &str, agent: &str) -> Result<Answer, Failure>
where
    S: hyper::rt::Read + hyper::rt::Write + Send + Unpin + 'static,
{
    let request = http::Request::get(if http2 { format!("http://{host}{path}") } else { path.to_owned() })
        .header(http::header::USER_AGENT, agent);
    // The connection ends with the answer: a set aborts what it holds when it is dropped.
    let mut connection = JoinSet::new();
    let response = if http2 {
        let (mut sender, driven) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await?;
        connection.spawn(driven);
        sender.send_request(request.body(Empty::<Bytes>::new())?).await?
    } else {
        let request = request.header(http::header::HOST, host).header(http::header::CONNECTION, "close");
        let (mut sender, driven) = hyper::client::conn::http1::handshake(stream).await?;
        connection.spawn(driven);
        sender.send_request(request.body(Empty::<Bytes>::new())?).await?
    };
    Ok(Answer { response, _connection: connection })
}
