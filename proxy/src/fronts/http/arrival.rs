//! A request's header as it arrives: whether it may pass, what is said to the proxy library of its connection, and what the
//! endpoint is told of its client.

use bytes::Bytes;
use http::Version;
use http::header::{CONNECTION, CONTENT_LENGTH, HOST, HeaderValue, TRANSFER_ENCODING};
use http::uri::Authority;
use pingora::http::RequestHeader;
use pingora::protocols::http::v1::server::HttpSession;
use pingora::proxy::Session;

use super::error::Fault;
use super::forwarded::Identity;
use super::settings::Settings;
use super::{entrance, forwarded, inet, limits};
use crate::traces::Traces;

/// Whether a request may pass, and what is said to the proxy library of its connection.
pub(super) fn examine(session: &mut Session, settings: &Settings) -> Result<(), Fault> {
    let http1 = session.as_http1().map(HttpSession::get_headers_raw_bytes);
    let request = session.req_header();
    limits::check(request, http1.as_ref().map(Bytes::len), &settings.limits)?;
    // Two that say the same may pass by the RFC, but not on to a reader who takes the first or the last.
    let mut lengths = request.headers.get_all(CONTENT_LENGTH).iter();
    if let Some(length) = lengths.next()
        && (lengths.next().is_some()
            || length.is_empty()
            || !length.as_bytes().iter().all(u8::is_ascii_digit))
    {
        return Err(Fault::BadRequest);
    }
    if http1.is_none() && request.headers.contains_key(TRANSFER_ENCODING) {
        return Err(Fault::BadRequest);
    }
    // Most need not be copied to be read.
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-');
    let names_none = |host: &HeaderValue| {
        !host.as_bytes().iter().all(is_plain) && Authority::try_from(host.as_bytes()).is_err()
    };
    if request.headers.get_all(HOST).iter().any(names_none) {
        return Err(Fault::BadRequest);
    }
    if let Some(raw) = &http1 {
        // The library obeys the first and drops the second, as RFC 9112 allows; nobody means well by sending both.
        if request.headers.contains_key(TRANSFER_ENCODING) && names_length(raw) {
            return Err(Fault::BadRequest);
        }
        if request.version == Version::HTTP_11 && !request.headers.contains_key(HOST) {
            return Err(Fault::BadRequest);
        }
        // The library takes out what is named there: what the front says itself must stay.
        let mut named = request
            .headers
            .get_all(CONNECTION)
            .iter()
            .flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
        if named.any(|name| forwarded::is_told(name.trim_ascii())) {
            return Err(Fault::BadRequest);
        }
    }
    let made = settings.normalize_paths.then(|| limits::normalize(request.raw_path()).into_owned());
    if let Some(made) = made.filter(|made| made != request.raw_path()) {
        session.req_header_mut().set_raw_path(&made).map_err(|_| Fault::BadRequest)?;
    }
    if http1.is_some() {
        // Requests that follow on the heels of this one are kept for their turn.
        session.set_pipelining_enabled(true);
    }
    let client = settings.timeouts.client;
    session.set_write_timeout(Some(client));
    if http1.is_some() {
        session.set_read_timeout(Some(client));
        if session.get_keepalive().is_some() {
            // The library would wait for the next request for ever.
            session.set_keepalive(Some(client.as_secs()));
        }
    }
    Ok(())
}

/// Gives a request that names no host one: HTTP/1.0 needs none, an endpoint of HTTP/2 does.
pub(super) fn name_a_host(request: &mut RequestHeader) -> pingora::Result<()> {
    let is_named =
        request.uri.authority().is_some() || request.headers.get(HOST).is_some_and(|host| !host.is_empty());
    if is_named { Ok(()) } else { request.insert_header(HOST, HeaderValue::from_static("localhost")) }
}

/// Tells the upstream who asks; returns what the request is known by.
pub(super) fn introduce(
    session: &mut Session,
    settings: &Settings,
    traces: Option<&Traces>,
) -> pingora::Result<Identity> {
    let address = entrance::ip(inet(session.client_addr()));
    let trusted =
        address.is_some_and(|address| settings.trusted.iter().any(|network| network.holds(address)));
    let tls = session.digest().and_then(|digest| digest.ssl_digest.clone());
    let certificate = tls.as_ref().map_or(&[][..], |tls| &tls.cert_digest);
    let caller = forwarded::Caller {
        address,
        trusted,
        secure: tls.is_some(),
        certificate,
        identify: settings.identify,
        traces,
    };
    forwarded::add(session.req_header_mut(), &caller)
}

/// Whether a raw header has a `Content-Length`.
fn names_length(raw: &[u8]) -> bool {
    let name = CONTENT_LENGTH.as_str().as_bytes();
    raw.split(|byte| *byte == b'\n')
        .any(|line| line.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::Duration;

    use tokio::io::{AsyncWriteExt as _, duplex};

    use super::*;
    use crate::fronts::http::settings::Timeouts;

    /// Whether a connection is kept after `request`, and for how many seconds.
    async fn kept(request: &str, client: Duration) -> Option<u64> {
        let (mut sender, own) = duplex(4096);
        sender.write_all(request.as_bytes()).await.unwrap();
        let mut session = Session::new_h1(Box::new(own));
        assert!(session.downstream_session.read_request().await.unwrap());
        let timeouts = Timeouts { client, ..Timeouts::default() };
        examine(&mut session, &Settings { timeouts, ..Settings::default() }).unwrap();
        session.get_keepalive()
    }

    #[test]
    fn a_host_may_be_whatever_names_one() {
        for host in ["a", "a:", "a:80", "[::1]:80", "a_b.example", "10.0.0.1:8080", "a.b.", "*.a", "a~b"] {
            assert!(Authority::try_from(host.as_bytes()).is_ok(), "{host}");
        }
        for none in ["a b", "a/b", "a\\b", "a?b", "ä", "[::1", "a:b:c"] {
            assert!(Authority::try_from(none.as_bytes()).is_err(), "{none}");
        }
    }

    #[tokio::test]
    async fn the_next_request_is_waited_for_as_long_as_configured() {
        let default = Timeouts::default().client;
        for client in [default, Duration::from_secs(3)] {
            let kept = async |request| kept(request, client).await;
            assert_eq!(kept("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await, Some(client.as_secs()));
            assert_eq!(kept("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await, None);
            assert_eq!(kept("GET / HTTP/1.0\r\n\r\n").await, None);
            assert_eq!(
                kept("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").await,
                Some(client.as_secs())
            );
        }
    }
}
