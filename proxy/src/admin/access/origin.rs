//! Where a request says it comes from: what keeps a page of another site from using a browser on this machine.
//!
//! A page of another site can have its own name resolve to this listener (DNS rebinding): its requests then carry that name
//! as `Host`, so only addresses, `localhost` and configured names are answered. Without that trick, its requests carry their
//! `Origin` (Fetch standard, section 3.2), which must be this listener.

use std::net::IpAddr;

use axum::http::{HeaderMap, Method, StatusCode, Uri, header};

use crate::admin::Problem;

/// Refuses what comes from elsewhere. `hosts`: names of this listener besides its addresses.
pub(super) fn check(
    method: &Method,
    uri: &Uri,
    headers: &HeaderMap,
    hosts: &[String],
) -> Result<(), Problem> {
    let refuse = |what: String| Err(Problem::new(StatusCode::FORBIDDEN, "origin", what));
    let host = uri.authority().map(axum::http::uri::Authority::as_str);
    let mut named = headers.get_all(header::HOST).iter();
    let (first, second) = (named.next(), named.next());
    let (Some(host), None) = (host.or_else(|| first?.to_str().ok()), second) else {
        return Err(Problem::new(StatusCode::BAD_REQUEST, "host", "the request must have one Host"));
    };
    if !answers_to(host, hosts) {
        return refuse(format!(
            "this listener is not {host:?}: use its address, or add the name to node.admin.hosts"
        ));
    }
    if let Some(origin) = headers.get(header::ORIGIN) {
        let same = origin.to_str().ok().and_then(|origin| origin.split_once("://")).is_some_and(
            |(scheme, authority)| matches!(scheme, "http" | "https") && authority.eq_ignore_ascii_case(host),
        );
        if !same {
            return refuse(format!("requests of {origin:?} are not answered here"));
        }
    }
    // Browsers that know no Origin on this request still say this (Fetch Metadata).
    let elsewhere = headers
        .get("sec-fetch-site")
        .is_some_and(|site| !matches!(site.as_bytes(), b"same-origin" | b"none"));
    if elsewhere && !method.is_safe() {
        return refuse("requests of another site change nothing here".to_owned());
    }
    Ok(())
}

fn answers_to(host: &str, hosts: &[String]) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split_once(']').map_or(rest, |(address, _)| address),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    name.parse::<IpAddr>().is_ok()
        || name.eq_ignore_ascii_case("localhost")
        || hosts.iter().any(|known| name.eq_ignore_ascii_case(known))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(method: &Method, headers: &[(&str, &str)]) -> Result<(), u16> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            let name: axum::http::HeaderName = name.parse().expect("a header's name");
            map.insert(name, value.parse().expect("a header's value"));
        }
        let hosts = ["godwit.example".to_owned()];
        check(method, &Uri::from_static("/api/v1/resources"), &map, &hosts).map_err(|problem| problem.status)
    }

    #[test]
    fn only_names_of_this_listener_are_answered() {
        for host in
            ["127.0.0.1:9900", "[::1]:9900", "localhost", "LOCALHOST:1", "godwit.example:443", "10.0.0.1"]
        {
            assert_eq!(ask(&Method::GET, &[("host", host)]), Ok(()), "{host}");
        }
        for host in
            ["evil.example", "godwit.example.evil.example", "localhost.evil.example", "127.0.0.1.nip.io"]
        {
            assert_eq!(ask(&Method::GET, &[("host", host)]), Err(403), "{host}");
        }
        assert_eq!(ask(&Method::GET, &[]), Err(400));
    }

    #[test]
    fn another_site_is_refused() {
        let host = ("host", "127.0.0.1:9900");
        assert_eq!(ask(&Method::POST, &[host, ("origin", "http://127.0.0.1:9900")]), Ok(()));
        for origin in
            ["http://evil.example", "null", "http://127.0.0.1:80", "http://127.0.0.1:9900.evil.example"]
        {
            assert_eq!(ask(&Method::POST, &[host, ("origin", origin)]), Err(403), "{origin}");
        }
        assert_eq!(ask(&Method::POST, &[host, ("sec-fetch-site", "cross-site")]), Err(403));
        assert_eq!(ask(&Method::GET, &[host, ("sec-fetch-site", "cross-site")]), Ok(()));
        assert_eq!(ask(&Method::POST, &[host, ("sec-fetch-site", "same-origin")]), Ok(()));
    }
}
