//! `GET` over HTTP/1.1, plain or TLS: one connection per request, to an address that [`Egress`] lets through.
//!
//! The address that was checked is the one that is connected to. A redirect is followed only to where the feed itself
//! may ask, never from TLS to plain text, and without the feed's headers when the host changes.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response, StatusCode, header};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use migration::units::Timestamp;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use url::Url;

use super::{Fetched, Validators, broken, tls, too_large};
use crate::feeds::external::egress::{Egress, literal};
use crate::feeds::external::{Failure, Reason, Secret, moment};

/// Most redirects in a row.
const REDIRECTS: usize = 3;
/// Longest validator that is sent back.
const VALIDATOR: usize = 512;

/// What to ask for.
#[derive(Clone, Debug)]
pub struct Request {
    /// `http` or `https`, with a host.
    pub url: Url,
    /// Headers beside Godwit's own.
    pub headers: Vec<(HeaderName, Secret)>,
    /// PEM file of the authority that vouches for the server; none: this machine's.
    pub authority: Option<PathBuf>,
}

impl Request {
    /// The URL for people: a query may hold a key, so its values are left out when they are long.
    pub fn shown(&self) -> String {
        let mut url = self.url.clone();
        let _ = url.set_password(None);
        url.set_query(None);
        let more = if self.url.query().is_some() { "?…" } else { "" };
        format!("{url}{more}")
    }
}

/// Asks once, following redirects.
pub async fn get(
    request: &Request,
    egress: &Egress,
    last: &Validators,
    limit: u64,
) -> Result<Fetched, Failure> {
    let mut url = request.url.clone();
    for _ in 0..=REDIRECTS {
        egress.host(&url, &request.url).map_err(|why| {
            let reason = if url == request.url { Reason::Egress } else { Reason::Redirect };
            let what = if url == request.url { why } else { format!("a redirect is not followed: {why}") };
            Failure::source(reason, what)
        })?;
        // Ends with this request: a set aborts what it holds when it is dropped.
        let mut connections = JoinSet::new();
        let response = ask(&url, request, egress, last, &mut connections).await?;
        let status = response.status();
        if status == StatusCode::NOT_MODIFIED && *last != Validators::default() {
            return Ok(Fetched::Unchanged);
        }
        if status == StatusCode::OK {
            return body(response, &url, limit).await;
        }
        match redirect(&url, &response) {
            Some(next) => url = next?,
            None => return Err(refused(&response)),
        }
    }
    Err(Failure::source(Reason::Redirect, format!("more than {REDIRECTS} redirects")))
}

async fn ask(
    url: &Url,
    request: &Request,
    egress: &Egress,
    last: &Validators,
    connections: &mut JoinSet<()>,
) -> Result<Response<Incoming>, Failure> {
    let host = url.host_str().unwrap_or_default().to_owned();
    let stream = connect(url, &host, egress).await?;
    let same_origin = url.origin() == request.url.origin();
    let message =
        message(url, request, last, same_origin).map_err(|error| broken(Reason::Connect, &host, &error))?;
    if url.scheme() == "https" {
        let client =
            tls::client(request.authority.as_deref()).map_err(|why| Failure::source(Reason::Tls, why))?;
        let name = rustls_pki_types::ServerName::try_from(host.trim_matches(['[', ']']).to_owned())
            .map_err(|error| broken(Reason::Tls, &host, &error))?;
        let stream = TlsConnector::from(client)
            .connect(name, stream)
            .await
            .map_err(|error| broken(Reason::Tls, &host, &error))?;
        send(stream, message, &host, connections).await
    } else {
        send(stream, message, &host, connections).await
    }
}

fn message(
    url: &Url,
    request: &Request,
    last: &Validators,
    same_origin: bool,
) -> Result<http::Request<Empty<Bytes>>, http::Error> {
    let query = url.query().map_or_else(String::new, |query| format!("?{query}"));
    let authority = match url.port() {
        Some(port) => format!("{}:{port}", url.host_str().unwrap_or_default()),
        None => url.host_str().unwrap_or_default().to_owned(),
    };
    let mut message = http::Request::get(format!("{}{query}", url.path()))
        .header(header::HOST, authority)
        .header(header::USER_AGENT, concat!("godwit/", env!("CARGO_PKG_VERSION")))
        .header(header::ACCEPT, "*/*")
        .header(header::CONNECTION, "close");
    if same_origin {
        for (name, value) in &request.headers {
            message = message.header(name, secret(value)?);
        }
        for (name, value) in
            [(header::IF_NONE_MATCH, &last.etag), (header::IF_MODIFIED_SINCE, &last.last_modified)]
        {
            if let Some(value) = value {
                message = message.header(name, value);
            }
        }
    }
    message.body(Empty::new())
}

fn secret(value: &Secret) -> Result<HeaderValue, http::Error> {
    let mut value = HeaderValue::from_str(&value.0)?;
    value.set_sensitive(true);
    Ok(value)
}

/// Looks the host up and connects to the addresses that may be asked, and to no other.
pub(crate) async fn connect(url: &Url, host: &str, egress: &Egress) -> Result<TcpStream, Failure> {
    let port = url.port_or_known_default().unwrap_or(443);
    let found: Vec<SocketAddr> = match literal(url) {
        Some(address) => vec![SocketAddr::new(address, port)],
        None => tokio::net::lookup_host((host, port))
            .await
            .map_err(|error| broken(Reason::Connect, &format!("cannot look up {host}"), &error))?
            .collect(),
    };
    let (mut allowed, mut refused) = (Vec::new(), None);
    for address in found {
        match egress.address(address.ip()) {
            Ok(()) => allowed.push(address),
            Err(why) => refused = Some(why),
        }
    }
    if allowed.is_empty() {
        return Err(match refused {
            Some(why) => Failure::source(Reason::Egress, format!("{host}: {why}")),
            None => Failure::source(Reason::Connect, format!("{host} has no address")),
        });
    }
    let stream = TcpStream::connect(allowed.as_slice()).await;
    stream.map_err(|error| broken(Reason::Connect, &format!("{host}:{port}"), &error))
}

async fn send<S>(
    stream: S,
    message: http::Request<Empty<Bytes>>,
    host: &str,
    connections: &mut JoinSet<()>,
) -> Result<Response<Incoming>, Failure>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let failed = |error: hyper::Error| broken(Reason::Connect, host, &error);
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
    connections.spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a feed's connection ended");
        }
    });
    sender.send_request(message).await.map_err(failed)
}

async fn body(response: Response<Incoming>, url: &Url, limit: u64) -> Result<Fetched, Failure> {
    let header = |name: HeaderName| {
        let value = response.headers().get(name)?.to_str().ok()?;
        (value.len() <= VALIDATOR).then(|| value.to_owned())
    };
    let encoding = header(header::CONTENT_ENCODING).filter(|encoding| encoding != "identity");
    if let Some(encoding) = encoding {
        let what = format!("the answer is compressed ({encoding}) although nobody asked for that");
        return Err(Failure::source(Reason::Status, what));
    }
    let validators = Validators { etag: header(header::ETAG), last_modified: header(header::LAST_MODIFIED) };
    let mut body = response.into_body();
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame =
            frame.map_err(|error| broken(Reason::Connect, url.host_str().unwrap_or_default(), &error))?;
        if let Some(data) = frame.data_ref() {
            if (bytes.len() + data.len()) as u64 > limit {
                return Err(too_large(limit));
            }
            bytes.extend_from_slice(data);
        }
    }
    Ok(Fetched::Bytes { bytes, at: None, validators })
}

/// Where a redirect leads; `None`: it is none.
fn redirect(from: &Url, response: &Response<Incoming>) -> Option<Result<Url, Failure>> {
    let follows = matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308);
    let location = response.headers().get(header::LOCATION).filter(|_| follows)?;
    let refused = |what: String| Err(Failure::source(Reason::Redirect, what));
    let Some(next) = location.to_str().ok().and_then(|location| from.join(location).ok()) else {
        return Some(refused("a redirect leads to no URL".into()));
    };
    let scheme = next.scheme();
    if !matches!(scheme, "http" | "https") || (from.scheme() == "https" && scheme == "http") {
        return Some(refused(format!("a redirect from {} to {scheme} is not followed", from.scheme())));
    }
    Some(Ok(next))
}

fn refused(response: &Response<Incoming>) -> Failure {
    let status = response.status();
    let hint = match status.as_u16() {
        401 | 403 => "; give a right `bearer` or `headers`",
        404 => "; look at the path of the URL",
        _ => "",
    };
    let mut failure = Failure::source(Reason::Status, format!("answered {}{hint}", status.as_u16()));
    let asked = response.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok());
    failure.retry_after = asked.and_then(|text| retry_after(text, crate::clock::now()));
    failure
}

/// Seconds, or a date.
pub(crate) fn retry_after(text: &str, now: Timestamp) -> Option<Duration> {
    match text.trim().parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => moment::of_text(text).map(|at| at.since(now)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_in_both_writings() {
        let now = Timestamp(1_795_650_000_000);
        assert_eq!(retry_after("120", now), Some(Duration::from_secs(120)));
        assert_eq!(retry_after("Wed, 25 Nov 2026 23:41:00 GMT", now), Some(Duration::from_secs(60)));
        assert_eq!(retry_after("Wed, 25 Nov 2026 23:00:00 GMT", now), Some(Duration::ZERO));
        assert_eq!(retry_after("later", now), None);
    }

    #[test]
    fn neither_query_nor_password_is_shown() {
        let url = Url::parse("https://user:pass@metrics.example/api?key=secret").unwrap();
        let request = Request { url, headers: vec![], authority: None };
        assert_eq!(request.shown(), "https://user@metrics.example/api?…");
    }
}
