//! Tells the upstream who asked, over what, and which request it is.
//!
//! What a peer that is not trusted says of others is thrown away. Each header added costs more than the rest of the front
//! together (the proxy library's maps grow and are hashed anew), so there is no more than that: `Host` passes untouched, so no
//! `X-Forwarded-Host` is made of it; `X-Forwarded-Proto` is set where the client came over TLS; `Forwarded` (RFC 7239) is only
//! continued where a trusted proxy before us used it; a trace (W3C Trace Context, not sampled) and an id are made where the
//! operator wishes it. They are put into the client's own header, before the library copies it for the endpoint: that one has
//! room left, a copy never has.

use bytes::Bytes;
use http::header::{FORWARDED, HeaderMap, HeaderName, HeaderValue, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION};
use pingora::http::RequestHeader;
use pingora::{ErrorType, OrErr, Result};
use std::fmt::Write as _;
use std::net::IpAddr;

use super::cookies;
use crate::fronts::mirror::MARK;
use crate::traces::{Place, Traces};

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// What stays between a client and this front, and the library passes on over HTTP/2.
const OURS: [HeaderName; 2] = [PROXY_AUTHORIZATION, PROXY_AUTHENTICATE];
/// What only a trusted peer may say, besides those above.
const OF_PROXIES: [HeaderName; 6] = [
    FORWARDED,
    HeaderName::from_static("x-forwarded-host"),
    HeaderName::from_static("x-forwarded-port"),
    HeaderName::from_static("x-forwarded-client-cert"),
    HeaderName::from_static("x-forwarded-prefix"),
    HeaderName::from_static("x-real-ip"),
];
/// Its place in the list.
const CLIENT_CERT: &str = "X-Forwarded-Client-Cert";
/// A longer id is replaced.
const LONGEST_ID: usize = 128;

/// The other end of a client's connection.
#[derive(Clone, Copy)]
pub(super) struct Caller<'a> {
    /// Its address.
    pub(super) address: Option<IpAddr>,
    /// What it says of others is believed.
    pub(super) trusted: bool,
    /// It came over TLS.
    pub(super) secure: bool,
    /// SHA-256 of the certificate it showed; empty: none.
    pub(super) certificate: &'a [u8],
    /// A request without an id gets one, and one without a trace.
    pub(super) identify: bool,
    /// Where traces go.
    pub(super) traces: Option<&'a Traces>,
}

/// What a request is known by from now on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Identity {
    /// Its id; empty: it has none, and none is wished.
    pub(super) id: Bytes,
    /// Where it is in its trace, where it is told of.
    pub(super) place: Option<Place>,
}

/// Which of the headers that matter here a request has: one walk instead of many look-ups.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    of_proxies: bool,
    forwarded: bool,
    proto: bool,
    id: bool,
    trace: bool,
    cookies: bool,
    ours: bool,
    mark: bool,
}

impl Seen {
    fn of(headers: &HeaderMap) -> Self {
        let mut seen = Self::default();
        for name in headers.keys() {
            match name.as_str() {
                "traceparent" => seen.trace = true,
                "cookie" => seen.cookies = true,
                "proxy-authorization" | "proxy-authenticate" => seen.ours = true,
                "godwit-mirror" => seen.mark = true,
                "x-request-id" => seen.id = true,
                "x-forwarded-proto" => seen.proto = true,
                "forwarded" => (seen.forwarded, seen.of_proxies) = (true, true),
                other => {
                    seen.of_proxies |= other.starts_with("x-") && OF_PROXIES.iter().any(|name| name == other);
                }
            }
        }
        seen
    }
}

/// Adds what the upstream should know, and takes away what it should not; returns what the request is known by.
pub(super) fn add(request: &mut RequestHeader, caller: &Caller<'_>) -> Result<Identity> {
    let seen = Seen::of(&request.headers);
    if seen.of_proxies && !caller.trusted {
        for name in &OF_PROXIES {
            request.remove_header(name);
        }
    }
    if seen.ours {
        for name in &OURS {
            request.remove_header(name);
        }
    }
    if seen.mark && !caller.trusted {
        request.remove_header(&MARK);
    }
    if seen.cookies {
        cookies::pass_on(request)?;
    }
    let proto = if caller.secure { "https" } else { "http" };
    if let Some(client) = caller.address {
        let chain =
            append(request, caller.trusted.then_some(&X_FORWARDED_FOR), |text| write!(text, "{client}"));
        // A static name is not copied.
        request.insert_header("X-Forwarded-For", value(&chain)?)?;
        if seen.forwarded && caller.trusted {
            let chain = append(request, Some(&FORWARDED), |text| match client {
                IpAddr::V4(client) => write!(text, "for={client};proto={proto}"),
                IpAddr::V6(client) => write!(text, "for=\"[{client}]\";proto={proto}"),
            });
            request.insert_header("Forwarded", value(&chain)?)?;
        }
    }
    let believed = seen.proto && caller.trusted;
    if !believed && (caller.secure || seen.proto) {
        request.insert_header("X-Forwarded-Proto", HeaderValue::from_static(proto))?;
    }
    if !caller.certificate.is_empty() {
        let mut text = String::with_capacity(5 + 2 * caller.certificate.len());
        text.push_str("Hash=");
        for byte in caller.certificate {
            // Writing to a string does not fail.
            let _ = write!(text, "{byte:02x}");
        }
        request.insert_header(CLIENT_CERT, value(&text)?)?;
    }
    identify(request, seen, caller)
}

/// Whether the endpoint is told this by the front: a client that names it in `Connection` would have it taken out again.
pub(super) fn is_told(name: &[u8]) -> bool {
    let is = |known: &HeaderName| known.as_str().as_bytes().eq_ignore_ascii_case(name);
    [X_REQUEST_ID, TRACEPARENT].iter().chain(&OF_PROXIES).any(is)
}

fn identify(request: &mut RequestHeader, seen: Seen, caller: &Caller<'_>) -> Result<Identity> {
    let known = |name: &HeaderName| request.headers.get(name).map(HeaderValue::as_bytes);
    let trace = known(&TRACEPARENT).filter(|trace| seen.trace && is_trace(trace));
    let place = caller.traces.and_then(|traces| traces.place(trace, caller.trusted));
    let of_trace = trace.map(|trace| Bytes::copy_from_slice(&trace[3..35]));
    let id =
        known(&X_REQUEST_ID).filter(|id| seen.id && caller.trusted && (1..=LONGEST_ID).contains(&id.len()));
    let id = id.map(Bytes::copy_from_slice);
    if seen.trace && of_trace.is_none() {
        request.remove_header(&TRACEPARENT);
        request.remove_header("tracestate");
    }
    if seen.id && id.is_none() {
        request.remove_header(&X_REQUEST_ID);
    }
    let of_trace = match &place {
        Some(place) => Some(enter(request, place, true)?),
        None => of_trace,
    };
    if !caller.identify {
        return Ok(Identity { id: id.or(of_trace).unwrap_or_default(), place });
    }
    let new = match of_trace {
        Some(trace) => trace,
        None => enter(request, &Place::first(), false)?,
    };
    if let Some(id) = id {
        return Ok(Identity { id, place });
    }
    request.insert_header("X-Request-Id", shared(new.clone())?)?;
    Ok(Identity { id: new, place })
}

/// `00-<32 hexadecimal digits>-<16>-<2>`, or what a later version puts after that; not all zeros (W3C Trace Context).
fn is_trace(value: &[u8]) -> bool {
    let hex = |part: &[u8]| part.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let part = |from: usize, to: usize| value.get(from..to).is_some_and(hex);
    let dashes = [2, 35, 52].iter().all(|at| value.get(*at) == Some(&b'-'));
    let whole = match value.len() {
        55 => true,
        56.. => !value.starts_with(b"00") && value[55] == b'-',
        _ => false,
    };
    whole
        && dashes
        && part(0, 2)
        && part(3, 35)
        && part(36, 52)
        && part(53, 55)
        && !value.starts_with(b"ff")
        && value[3..35].iter().any(|byte| *byte != b'0')
        && value[36..52].iter().any(|byte| *byte != b'0')
}

/// From here on the request is at this place; returns its trace.
fn enter(request: &mut RequestHeader, place: &Place, sampled: bool) -> Result<Bytes> {
    let header = place.header(sampled);
    request.insert_header("Traceparent", shared(header.clone())?)?;
    Ok(header.slice(3..35))
}

fn value(text: &str) -> Result<HeaderValue> {
    HeaderValue::from_str(text).or_err(ErrorType::InvalidHTTPHeader, "forwarded header")
}

fn shared(bytes: Bytes) -> Result<HeaderValue> {
    HeaderValue::from_maybe_shared(bytes).or_err(ErrorType::InvalidHTTPHeader, "id of a request")
}

/// All values of a header joined, and one more.
fn append(
    request: &RequestHeader,
    name: Option<&HeaderName>,
    last: impl FnOnce(&mut String) -> std::fmt::Result,
) -> String {
    let mut chain = String::with_capacity(48);
    let before = name.into_iter().flat_map(|name| request.headers.get_all(name).iter());
    for value in before.filter_map(|value| value.to_str().ok()) {
        chain.push_str(value);
        chain.push_str(", ");
    }
    // Writing to a string does not fail.
    let _ = last(&mut chain);
    chain
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn caller(address: &str, trusted: bool, secure: bool) -> Caller<'static> {
        Caller {
            address: address.parse().ok(),
            trusted,
            secure,
            certificate: &[],
            identify: true,
            traces: None,
        }
    }

    fn request(headers: &[(&'static str, &str)]) -> RequestHeader {
        let mut request = RequestHeader::build("GET", b"/", None).unwrap();
        for (name, value) in headers {
            request.append_header(*name, *value).unwrap();
        }
        request
    }

    #[test]
    fn a_trusted_peer_is_continued() {
        let mut request = request(&[
            ("x-forwarded-for", "192.0.2.1"),
            ("x-forwarded-for", "10.0.0.9"),
            ("x-forwarded-proto", "https"),
            ("forwarded", "for=10.0.0.9"),
            ("x-real-ip", "192.0.2.1"),
            ("x-request-id", "mine"),
            ("traceparent", TRACE),
            ("tracestate", "a=b"),
        ]);
        let id = add(&mut request, &caller("2001:db8::1", true, false)).unwrap().id;
        assert_eq!(id, "mine");
        for (name, value) in [
            ("x-forwarded-for", "192.0.2.1, 10.0.0.9, 2001:db8::1"),
            ("x-forwarded-proto", "https"),
            ("forwarded", "for=10.0.0.9, for=\"[2001:db8::1]\";proto=http"),
            ("x-real-ip", "192.0.2.1"),
            ("x-request-id", "mine"),
            ("traceparent", TRACE),
            ("tracestate", "a=b"),
        ] {
            assert_eq!(request.headers[name], value, "{name}");
        }
    }

    #[test]
    fn what_a_stranger_says_of_others_is_thrown_away() {
        let mut request = request(&[
            ("x-forwarded-for", "192.0.2.1"),
            ("x-forwarded-proto", "http"),
            ("x-forwarded-host", "evil.example"),
            ("forwarded", "for=10.0.0.9"),
            ("x-real-ip", "192.0.2.1"),
            ("x-forwarded-client-cert", "Hash=00"),
            ("godwit-mirror", "1"),
            ("proxy-authorization", "Basic eA=="),
            ("x-request-id", "theirs"),
            ("traceparent", TRACE),
        ]);
        let id = add(&mut request, &Caller { certificate: &[0xab, 1], ..caller("10.0.0.9", false, true) })
            .unwrap()
            .id;
        assert_eq!(id, TRACE[3..35]);
        for (name, value) in [
            ("x-forwarded-for", "10.0.0.9"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-client-cert", "Hash=ab01"),
            ("x-request-id", &TRACE[3..35]),
            ("traceparent", TRACE),
        ] {
            assert_eq!(request.headers.get_all(name).iter().collect::<Vec<_>>(), [value], "{name}");
        }
        for name in ["forwarded", "x-forwarded-host", "x-real-ip", "godwit-mirror", "proxy-authorization"] {
            assert!(!request.headers.contains_key(name), "{name}");
        }
    }

    #[test]
    fn a_request_without_a_trace_gets_one() {
        for broken in [
            None,
            Some(""),
            Some("00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01"),
            Some("00-1-2-3"),
        ] {
            let headers: Vec<_> = broken
                .into_iter()
                .flat_map(|trace| [("traceparent", trace), ("tracestate", "a=b")])
                .collect();
            let mut request = request(&headers);
            let id = add(&mut request, &caller("10.0.0.9", false, false)).unwrap().id;
            let trace = request.headers["traceparent"].as_bytes();
            assert!(is_trace(trace), "{broken:?}");
            assert_eq!((&trace[3..35], request.headers["x-request-id"].as_bytes()), (&id[..], &id[..]));
            assert!(!request.headers.contains_key("tracestate"));
            let mut request = self::request(&headers);
            let silent = Caller { identify: false, ..caller("10.0.0.9", false, false) };
            assert_eq!(add(&mut request, &silent).unwrap(), Identity::default());
            assert_eq!(request.headers.len(), 1, "no more than X-Forwarded-For: {:?}", request.headers);
        }
        assert!(is_trace(format!("01{}-more", &TRACE[2..]).as_bytes()));
        for wrong in
            [&TRACE[..54], &format!("{TRACE}-more"), &format!("ff{}", &TRACE[2..]), &TRACE.to_uppercase()]
        {
            assert!(!is_trace(wrong.as_bytes()), "{wrong}");
        }
    }

    #[cfg(feature = "otlp")]
    #[tokio::test(flavor = "multi_thread")]
    async fn who_is_told_of_stands_between_its_client_and_the_endpoint() {
        let settings = crate::traces::Settings {
            endpoint: "http://127.0.0.1:9/v1/traces".parse().unwrap(),
            headers: Vec::new(),
            sample: migration::units::Ratio::new(1.0).unwrap(),
        };
        let runtime = tokio::runtime::Handle::current();
        let traces = Traces::start(&settings, "n", "z", &runtime).unwrap();
        let traced = Caller { traces: Some(&traces), identify: false, ..caller("192.0.2.7", true, false) };
        let mut known = request(&[("traceparent", TRACE), ("tracestate", "a=b")]);
        let identity = add(&mut known, &traced).unwrap();
        let place = identity.place.unwrap();
        assert_eq!(known.headers["traceparent"].as_bytes(), place.header(true));
        assert_eq!(&identity.id, &TRACE[3..35], "the id of the client's trace");
        assert_ne!(&place.header(true)[36..52], &TRACE.as_bytes()[36..52]);
        assert_eq!(known.headers["tracestate"], "a=b");
        let mut fresh = request(&[]);
        let identity = add(&mut fresh, &traced).unwrap();
        assert_eq!(fresh.headers["traceparent"].as_bytes(), identity.place.unwrap().header(true));
        tokio::task::spawn_blocking(move || traces.end(std::time::Duration::from_secs(5))).await.unwrap();
    }
}
