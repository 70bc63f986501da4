//! Tells the upstream who asked: `X-Forwarded-For`, and `Forwarded` (RFC 7239) where a proxy before us used it.
//!
//! Each header added costs an allocation or two in the proxy library's maps, so there is no more than that: all our
//! listeners speak plain HTTP, and an `X-Forwarded-Proto` of a proxy before us passes untouched.

use http::header::{FORWARDED, HeaderName, HeaderValue};
use pingora::http::RequestHeader;
use pingora::{ErrorType, OrErr, Result};
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Adds the client to the chain. Our own listeners speak plain HTTP.
pub(super) fn add(request: &mut RequestHeader, client: Option<SocketAddr>) -> Result<()> {
    let Some(client) = client.map(|address| address.ip().to_canonical()) else { return Ok(()) };
    let chain = append(request, &X_FORWARDED_FOR, |text| write!(text, "{client}"));
    // A static name is not copied.
    request.insert_header("X-Forwarded-For", value(&chain)?)?;
    if request.headers.contains_key(FORWARDED) {
        let chain = append(request, &FORWARDED, |text| match client {
            IpAddr::V4(client) => write!(text, "for={client};proto=http"),
            IpAddr::V6(client) => write!(text, "for=\"[{client}]\";proto=http"),
        });
        request.insert_header("Forwarded", value(&chain)?)?;
    }
    Ok(())
}

fn value(text: &str) -> Result<HeaderValue> {
    HeaderValue::from_str(text).or_err(ErrorType::InvalidHTTPHeader, "forwarded header")
}

/// All values of a header joined, and one more.
fn append(
    request: &RequestHeader,
    name: &HeaderName,
    last: impl FnOnce(&mut String) -> std::fmt::Result,
) -> String {
    let mut chain = String::with_capacity(48);
    for value in request.headers.get_all(name).iter().filter_map(|value| value.to_str().ok()) {
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

    #[test]
    fn extends_the_chains_that_are_there() {
        let mut request = RequestHeader::build("GET", b"/", None).unwrap();
        add(&mut request, Some("[::ffff:10.0.0.9]:5".parse().unwrap())).unwrap();
        assert_eq!(request.headers["x-forwarded-for"], "10.0.0.9");
        assert!(!request.headers.contains_key("forwarded"));
        request.insert_header("x-forwarded-proto", "https").unwrap();
        request.append_header("x-forwarded-for", "192.0.2.1").unwrap();
        request.insert_header("forwarded", "for=10.0.0.9").unwrap();
        add(&mut request, Some("[2001:db8::1]:5".parse().unwrap())).unwrap();
        assert_eq!(request.headers["x-forwarded-for"], "10.0.0.9, 192.0.2.1, 2001:db8::1");
        assert_eq!(request.headers["x-forwarded-proto"], "https");
        assert_eq!(request.headers["forwarded"], "for=10.0.0.9, for=\"[2001:db8::1]\";proto=http");
    }
}
