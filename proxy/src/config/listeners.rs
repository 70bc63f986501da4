//! Addresses: their syntax, and what listens where on this machine.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use super::walk::Item;
use crate::fronts::http::settings::ListenerSettings;

impl Item<'_> {
    /// An address to listen on: an IP address and a port.
    pub(super) fn address(&self) -> Option<SocketAddr> {
        let text = self.text("an address such as 127.0.0.1:8080")?;
        if let Ok(address) = text.parse() {
            return Some(address);
        }
        let right = if let Some(port) = text.strip_prefix(':').filter(|port| port.parse::<u16>().is_ok()) {
            format!("write 0.0.0.0:{port} (every address) or 127.0.0.1:{port} (this machine)")
        } else if let Some(port) = text.strip_prefix("localhost:") {
            format!("write 127.0.0.1:{port}")
        } else if text.parse::<IpAddr>().is_ok() {
            "add a port, such as 127.0.0.1:8080 or [::1]:8080".to_owned()
        } else {
            "an IP address and a port, such as 127.0.0.1:8080".to_owned()
        };
        self.wrong(format!("`{text}` is not an address to listen on"), right);
        None
    }

    /// An address to connect to: `host:port`.
    pub(super) fn endpoint(&self) -> Option<String> {
        let text = self.text("host:port")?;
        let parts = text.rsplit_once(':').filter(|(host, port)| {
            let bracketed = host.starts_with('[') && host.ends_with(']');
            let host = host.trim_start_matches('[').trim_end_matches(']');
            let named = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
            let right_host = if bracketed {
                host.parse::<std::net::Ipv6Addr>().is_ok()
            } else {
                !host.is_empty() && host.chars().all(named)
            };
            right_host && port.parse::<u16>().is_ok_and(|port| port > 0)
        });
        if parts.is_some() {
            return Some(text.to_owned());
        }
        let right = if text.contains("://") {
            "host:port without a scheme, such as 10.0.1.10:8000"
        } else {
            "host:port, such as 10.0.1.10:8000"
        };
        self.wrong(format!("`{text}` is not an endpoint"), right);
        None
    }

    /// A host name of a front, lower-case.
    pub(super) fn host(&self) -> Option<String> {
        let text = self.text("a host name such as orders.example")?;
        let named = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
        let right = if text.contains('*') {
            "a whole host name (patterns are not in this version)"
        } else if text.contains("://") || text.contains(':') {
            "a host name without scheme and port, such as orders.example"
        } else if text.chars().all(named) {
            return Some(text.to_ascii_lowercase());
        } else {
            "a host name such as orders.example"
        };
        self.wrong(format!("`{text}` is not a host name"), right);
        None
    }
}

/// One TCP listener of this machine.
struct Listener<'a> {
    item: Item<'a>,
    address: SocketAddr,
    what: String,
    /// Fronts may share a listener when their hosts differ and this is the same, certificates apart.
    front: Option<ListenerSettings>,
}

/// A host that a front serves; `None`: every host of the listener.
struct Served<'a> {
    item: Item<'a>,
    address: SocketAddr,
    host: Option<String>,
    resource: String,
}

/// Where requests or sessions of a resource are passed on to.
struct Upstream<'a> {
    item: Item<'a>,
    host: String,
    port: u16,
}

/// Every TCP listener that the configuration opens on this machine.
#[derive(Default)]
pub(super) struct Listeners<'a> {
    all: Vec<Listener<'a>>,
    served: Vec<Served<'a>>,
    upstreams: Vec<Upstream<'a>>,
    /// Which of the listeners are PostgreSQL fronts.
    passing_on: Vec<usize>,
}

impl<'a> Listeners<'a> {
    pub(super) fn add(&mut self, item: &Item<'a>, address: SocketAddr, what: impl Into<String>) {
        self.all.push(Listener { item: item.clone(), address, what: what.into(), front: None });
    }

    /// A front; `hosts` with the items they were read from, empty for every host.
    pub(super) fn add_front(
        &mut self,
        item: &Item<'a>,
        address: SocketAddr,
        resource: &str,
        hosts: &[(String, Item<'a>)],
        settings: &ListenerSettings,
    ) {
        let what = format!("the front of {resource}");
        let mut settings = settings.clone();
        if let Some(tls) = &mut settings.tls {
            tls.certificates.clear();
        }
        self.all.push(Listener { item: item.clone(), address, what, front: Some(settings) });
        let mut serve = |item: &Item<'a>, host: Option<&str>| {
            self.served.push(Served {
                item: item.clone(),
                address,
                host: host.map(str::to_owned),
                resource: resource.to_owned(),
            });
        };
        if hosts.is_empty() {
            serve(item, None);
        }
        for (host, item) in hosts {
            serve(item, Some(host));
        }
    }

    /// The PostgreSQL front of a resource.
    pub(super) fn add_postgres(&mut self, item: &Item<'a>, address: SocketAddr, resource: &str) {
        self.add(item, address, format!("the PostgreSQL front of {resource}"));
        self.passing_on.push(self.all.len() - 1);
    }

    /// Somewhere that clients are passed on to.
    pub(super) fn passes_on_to(&mut self, item: &Item<'a>, host: &str, port: u16) {
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        self.upstreams.push(Upstream { item: item.clone(), host, port });
    }

    /// Notes places that are fronts of this node: what is passed on there comes back, again and again.
    fn check_circles(&self) {
        let passes_on = |(at, listener): &(usize, &Listener<'a>)| {
            listener.front.is_some() || self.passing_on.contains(at)
        };
        for upstream in &self.upstreams {
            let mut fronts = self.all.iter().enumerate().filter(passes_on);
            if let Some((_, front)) =
                fronts.find(|(_, front)| answers(front.address, &upstream.host, upstream.port))
            {
                let (address, what, line) = (front.address, &front.what, front.item.at().line);
                upstream.item.wrong(
                    format!("is {what}, which listens on {address} (line {line}): what it passes on would come back to it"),
                    "where the service or its database itself listens",
                );
            }
        }
    }

    /// Notes listeners that exclude each other and hosts that are served twice.
    pub(super) fn check(&self) {
        self.check_circles();
        let mut in_order: Vec<&Listener<'a>> = self.all.iter().collect();
        in_order.sort_by_key(|listener| listener.item.at());
        for (i, later) in in_order.iter().enumerate() {
            let shared = |earlier: &&&Listener<'a>| {
                earlier.front.is_some() && later.front.is_some() && earlier.address == later.address
            };
            if let Some(first) = in_order[..i].iter().find(shared)
                && first.front != later.front
            {
                let what = format!(
                    "{} is shared with {} (line {}), which has another tls, h2c or proxy_protocol",
                    later.address,
                    first.what,
                    first.item.at().line
                );
                later.item.wrong(what, "the same in both, certificates apart");
            }
            let clash = in_order[..i]
                .iter()
                .find(|earlier| !shared(earlier) && overlap(earlier.address, later.address));
            if let Some(earlier) = clash {
                let line = earlier.item.at().line;
                let what = format!(
                    "{} overlaps with {} for {} (line {line})",
                    later.address, earlier.address, earlier.what
                );
                later.item.wrong(what, "another port or another address");
            }
        }
        let mut served: Vec<&Served<'a>> = self.served.iter().collect();
        served.sort_by_key(|served| served.item.at());
        let mut by_listener: BTreeMap<SocketAddr, Vec<&Served<'a>>> = BTreeMap::new();
        for later in served {
            let earlier = by_listener.entry(later.address).or_default();
            if let Some(first) = earlier.iter().find(|first| first.host == later.host) {
                let line = first.item.at().line;
                let whose = if first.resource == later.resource { "this front" } else { &first.resource };
                let (what, right) = match &later.host {
                    Some(host) => (
                        format!("`{host}` on {} is served by {whose} already (line {line})", later.address),
                        "every host of a listener once",
                    ),
                    None => (
                        format!("every host on {} is served by {whose} already (line {line})", later.address),
                        "another address, or hosts: [NAME] for each front",
                    ),
                };
                later.item.wrong(what, right);
            }
            earlier.push(later);
        }
    }
}

/// Whether what listens on `address` answers who connects to this host and port, as far as the text tells.
fn answers(address: SocketAddr, host: &str, port: u16) -> bool {
    if port != address.port() {
        return false;
    }
    let listens = address.ip().to_canonical();
    if host.eq_ignore_ascii_case("localhost") {
        return listens.is_unspecified() || listens.is_loopback();
    }
    host.parse::<IpAddr>().is_ok_and(|ip| {
        let ip = ip.to_canonical();
        // Who connects to the unspecified address comes to this machine.
        let here = ip.is_loopback() || ip.is_unspecified();
        // What listens on [::] is reached over IPv4 as well.
        let both = listens.is_ipv6() || ip.is_ipv4();
        ip == listens
            || here && listens.is_unspecified() && both
            || ip.is_unspecified() && listens.is_loopback()
    })
}

/// Whether the second of two TCP listeners could not be opened. Port 0 is a free one each time.
fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    a.port() == b.port()
        && a.port() != 0
        && (a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified())
}
