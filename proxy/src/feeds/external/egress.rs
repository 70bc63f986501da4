//! Which hosts a feed may ask, and at which addresses: pure checks.
//!
//! Without a list a feed may ask the host of its own URL. Whatever the host, its address must be public unless a network
//! of the list holds it: a name that somebody else controls must not lead to this machine, the private network, or the
//! cloud's metadata.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use url::{Host, Url};

use super::places::matches;

/// A network in CIDR notation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    prefix: u8,
}

impl Network {
    /// `10.0.0.0/8`, `fd00::/8`, `127.0.0.1`.
    pub fn parse(text: &str) -> Option<Self> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix.parse::<u8>().ok()?)),
            None => (text, None),
        };
        let address: IpAddr = address.trim_start_matches('[').trim_end_matches(']').parse().ok()?;
        let longest = if address.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.unwrap_or(longest);
        (prefix <= longest).then_some(Self { address, prefix })
    }

    /// Whether `address` is one of it.
    pub fn holds(&self, address: IpAddr) -> bool {
        let (net, one, length) = match (self.address, address) {
            (IpAddr::V4(net), IpAddr::V4(one)) => (u128::from(net.to_bits()), u128::from(one.to_bits()), 32),
            (IpAddr::V6(net), IpAddr::V6(one)) => (net.to_bits(), one.to_bits(), 128),
            _ => return false,
        };
        let shift = length - u32::from(self.prefix);
        net.checked_shr(shift).unwrap_or(0) == one.checked_shr(shift).unwrap_or(0)
    }
}

/// What may be asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Egress {
    /// Host names and patterns such as `*.example`, lower case; empty: the hosts of the configured URLs.
    pub hosts: Vec<String>,
    /// Networks that may be asked although they are not public.
    pub networks: Vec<Network>,
}

impl Egress {
    /// Whether `url` may be asked by a feed that is configured with `own`.
    pub fn host(&self, url: &Url, own: &Url) -> Result<(), String> {
        let host = url.host_str().unwrap_or_default();
        let literal = literal(url);
        if let Some(address) = literal {
            self.address(address)?;
        }
        if !self.hosts.is_empty() {
            return self.named(host, literal);
        }
        if url.host() == own.host() {
            return Ok(());
        }
        Err(format!(
            "{host} is not the host of the configured URL; name both in node.egress.allow to let it be asked"
        ))
    }

    /// Whether the list lets a configured `host` be asked, which is `literal` where it is an address; not yet whether that may be.
    pub fn named(&self, host: &str, literal: Option<IpAddr>) -> Result<(), String> {
        let allowed = self.hosts.is_empty()
            || self.hosts.iter().any(|pattern| matches(pattern, &host.to_ascii_lowercase()))
            || literal.is_some_and(|address| self.listed(address));
        if allowed { Ok(()) } else { Err(format!("{host} is not in node.egress.allow")) }
    }

    /// Whether a connection to `address` may be opened.
    pub fn address(&self, address: IpAddr) -> Result<(), String> {
        let address = address.to_canonical();
        match special(address) {
            Some(what) if !self.listed(address) => Err(format!(
                "{address} is {what}; put {address}, or a network that holds it, into node.egress.allow if that is meant"
            )),
            _ => Ok(()),
        }
    }

    fn listed(&self, address: IpAddr) -> bool {
        self.networks.iter().any(|network| network.holds(address.to_canonical()))
    }
}

/// The address in the URL, if it is one.
pub fn literal(url: &Url) -> Option<IpAddr> {
    match url.host()? {
        Host::Domain(_) => None,
        Host::Ipv4(address) => Some(address.into()),
        Host::Ipv6(address) => Some(address.into()),
    }
}

/// What keeps an address from being public.
fn special(address: IpAddr) -> Option<&'static str> {
    match address {
        IpAddr::V4(address) => special_v4(address),
        IpAddr::V6(address) => special_v6(address),
    }
}

fn special_v4(address: Ipv4Addr) -> Option<&'static str> {
    let [a, b, c, _] = address.octets();
    if address.is_loopback() {
        Some("this machine")
    } else if address.is_link_local() {
        Some("link-local, where clouds keep their metadata")
    } else if address.is_private() || (a == 100 && (64..128).contains(&b)) {
        Some("a private address")
    } else if a == 0 || a >= 224 || (a == 192 && b == 0 && c == 0) || (a == 198 && (b == 18 || b == 19)) {
        Some("not an address of a host on the Internet")
    } else {
        None
    }
}

fn special_v6(address: Ipv6Addr) -> Option<&'static str> {
    let first = address.segments()[0];
    let embedded = match address.segments() {
        // NAT64 and 6to4 carry an address of version 4.
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0x2002, high, low, ..] => {
            Some(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)))
        }
        _ => None,
    };
    if let Some(what) = embedded.and_then(special_v4) {
        return Some(what);
    }
    if address.is_loopback() {
        Some("this machine")
    } else if address.segments()[..3] == [0x64, 0xff9b, 1] {
        // RFC 8215: where in it the address of version 4 stands, only the network knows.
        Some("an address that this network translates")
    } else if first & 0xffc0 == 0xfe80 {
        Some("link-local")
    } else if first & 0xfe00 == 0xfc00 {
        Some("a private address")
    } else if address.is_unspecified() || address.is_multicast() || first == 0 {
        Some("not an address of a host on the Internet")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        Url::parse(text).unwrap()
    }

    #[test]
    fn without_a_list_only_the_own_host_is_asked() {
        let egress = Egress::default();
        let own = url("https://status.example/api");
        assert_eq!(egress.host(&url("https://status.example:8443/other"), &own), Ok(()));
        let why = egress.host(&url("https://evil.example/"), &own).unwrap_err();
        assert!(why.starts_with("evil.example is not the host of the configured URL"), "{why}");
    }

    #[test]
    fn a_list_replaces_the_configured_hosts() {
        let egress = Egress { hosts: vec!["*.example".into()], networks: vec![] };
        let own = url("https://status.example/");
        assert_eq!(egress.host(&url("https://cdn.example/"), &own), Ok(()));
        let why = egress.host(&url("https://example.org/"), &own).unwrap_err();
        assert_eq!(why, "example.org is not in node.egress.allow");
    }

    #[test]
    fn addresses_that_are_not_public_need_a_network_of_the_list() {
        let egress = Egress { hosts: vec![], networks: vec![Network::parse("10.1.0.0/16").unwrap()] };
        for refused in [
            "127.0.0.1",
            "169.254.169.254",
            "10.2.0.1",
            "192.168.1.1",
            "172.16.0.1",
            "100.100.100.200",
            "0.0.0.0",
            "224.0.0.1",
            "::1",
            "fe80::1",
            "fd00:ec2::254",
            "::ffff:127.0.0.1",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b:1:a9fe:a9:fe00::",
            "2002:7f00:1::",
            "::",
            "ff02::1",
        ] {
            assert!(egress.address(refused.parse().unwrap()).is_err(), "{refused}");
        }
        for allowed in ["10.1.2.3", "::ffff:10.1.2.3", "93.184.215.14", "2606:4700::1111"] {
            assert_eq!(egress.address(allowed.parse().unwrap()), Ok(()), "{allowed}");
        }
        let why = egress.address("169.254.169.254".parse().unwrap()).unwrap_err();
        assert!(why.contains("metadata") && why.contains("node.egress.allow"), "{why}");
    }

    #[test]
    fn a_list_of_hosts_is_for_names_and_addresses_alike() {
        let networks = vec![Network::parse("10.1.0.0/16").unwrap()];
        let egress = Egress { hosts: vec!["*.example".into()], networks: networks.clone() };
        let named = |host: &str| egress.named(host, host.parse().ok());
        assert_eq!(named("Edge-2.example"), Ok(()));
        assert_eq!(named("10.1.0.9"), Ok(()));
        for refused in ["edge-2.example.org", "93.184.215.14"] {
            assert_eq!(named(refused), Err(format!("{refused} is not in node.egress.allow")));
        }
        assert_eq!(Egress { hosts: vec![], networks }.named("edge-2.example.org", None), Ok(()));
    }

    #[test]
    fn disguised_addresses_are_seen_through() {
        // The URL standard reads all of these as 127.0.0.1.
        for text in ["http://127.1/", "http://0x7f000001/", "http://2130706433/", "http://017700000001/"] {
            assert!(Egress::default().host(&url(text), &url(text)).is_err(), "{text}");
        }
    }

    #[test]
    fn networks() {
        assert_eq!(Network::parse("10.0.0.0/33"), None);
        assert_eq!(Network::parse("example"), None);
        let all = Network::parse("0.0.0.0/0").unwrap();
        assert!(all.holds("1.2.3.4".parse().unwrap()) && !all.holds("::1".parse().unwrap()));
        let one = Network::parse("127.0.0.1").unwrap();
        assert!(one.holds("127.0.0.1".parse().unwrap()) && !one.holds("127.0.0.2".parse().unwrap()));
        assert!(Network::parse("fd00::/8").unwrap().holds("fdab::1".parse().unwrap()));
    }
}
