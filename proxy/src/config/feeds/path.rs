//! `ping`, `trace`, `link`: the way to other zones.

use super::Known;
use crate::config::error::suggest;
use crate::config::walk::Item;
use crate::feeds::external::Source;
use crate::feeds::external::fetch::path::{Host, How, Measured};

/// Where TCP is tried when ICMP is not allowed, unless told otherwise.
const PORT: u16 = 443;

pub(super) fn source(how: How) -> Source {
    Source::Path(Measured::new(how))
}

/// `{ZONE: HOST or HOST:PORT, …}`.
pub(super) fn hosts(item: &Item<'_>, known: &Known<'_>) -> Option<Vec<Host>> {
    let mut hosts = Vec::new();
    for (zone, item) in item.named("a host in it, such as edge-2.example or edge-2.example:443")? {
        if let Some(zones) = &known.zones
            && !zones.contains(&zone)
        {
            item.wrong_key(format!("there is no zone `{zone}`"), suggest(zone, zones.iter().copied()));
            return None;
        }
        let right = "a host, such as edge-2.example, edge-2.example:443 or [2001:db8::1]:443";
        let Some((name, port)) = split(item.text(right)?) else {
            item.wrong("is no host", right);
            return None;
        };
        // What cannot be asked anyhow is better said now; which address a name has is only known then.
        if let Err(why) = known.egress?.named(&name, name.parse().ok()) {
            item.wrong(why, "a host that node.egress allows");
            return None;
        }
        hosts.push(Host { zone: zone.to_owned(), name, port });
    }
    if hosts.is_empty() {
        item.wrong("names no zone", "{ZONE: HOST}");
        return None;
    }
    Some(hosts)
}

fn split(text: &str) -> Option<(String, u16)> {
    if let Ok(address) = text.parse::<std::net::IpAddr>() {
        return Some((address.to_string(), PORT));
    }
    let (name, port) = match text.rsplit_once(':') {
        Some((name, port)) => (name, port.parse().ok().filter(|port| *port > 0)?),
        None => (text, PORT),
    };
    let name = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    let known = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '.' | '-' | '_' | ':');
    (!name.is_empty() && name.chars().all(known)).then(|| (name.to_owned(), port))
}

/// `[ZONE, …]`: zones that this node has a link to.
pub(super) fn links(item: &Item<'_>, known: &Known<'_>) -> Option<Vec<String>> {
    let mut found = Vec::new();
    for item in item.list("zones that this node has a link to")? {
        let zone = match &known.zones {
            Some(zones) => item.reference("zone", zones.iter().copied())?,
            None => item.text("the name of a zone")?,
        };
        if let Some(about) = known.zones_read.get(zone)
            && (about.link.is_none() || about.node.is_none())
        {
            item.wrong(format!("no link goes to {zone}"), format!("zones.{zone}.link and zones.{zone}.node"));
            return None;
        }
        found.push(zone.to_owned());
    }
    if found.is_empty() {
        item.wrong("names no zone", "at least one");
        return None;
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::tests::{BASE, load};
    use crate::feeds::external::Use;

    #[test]
    fn hosts_may_have_a_port() {
        let of = |text| split(text).map(|(name, port)| format!("{name} {port}"));
        assert_eq!(of("edge-2.example").unwrap(), "edge-2.example 443");
        assert_eq!(of("edge-2.example:5432").unwrap(), "edge-2.example 5432");
        assert_eq!(of("[2001:db8::1]:80").unwrap(), "2001:db8::1 80");
        assert_eq!(of("2001:db8::1").unwrap(), "2001:db8::1 443");
        assert_eq!(of("10.0.0.1").unwrap(), "10.0.0.1 443");
        for wrong in ["", ":80", "host:0", "host:http", "https://host", "a b"] {
            assert_eq!(of(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn the_way_to_a_zone_is_measured_by_ping_trace_or_link() {
        let feed = |text: &str| load(&format!("{BASE}feeds:\n  it: {text}\n"));
        let read = feed("{ ping: { east: \"edge-2.example:8443\" } }").unwrap().feeds["it"].clone();
        assert_eq!(
            (read.serves, read.every, read.stale_after.as_secs()),
            (Use::Path, Duration::from_secs(5), 15)
        );
        assert_eq!((read.source.kind(), read.source.place().as_str()), ("ping", "edge-2.example"));
        assert_eq!(
            feed("{ trace: { east: 10.0.0.9 }, every: 5m }").unwrap().feeds["it"].every.as_secs(),
            300
        );
        for (text, said) in [
            ("{ ping: {} }", "feeds.it.ping  names no zone"),
            ("{ ping: { wets: a } }", "there is no zone `wets`  did you mean `west`?"),
            ("{ ping: { east: \"https://a\" } }", "feeds.it.ping.east  is no host"),
            ("{ ping: { east: a }, trace: { east: a } }", "has ping and trace  one of them"),
            ("{ ping: { east: a }, url: \"https://a.example\" }", "has url and ping  one of them"),
            ("{ link: [east] }", "no link goes to east  zones.east.link and zones.east.node"),
            ("{ link: [] }", "feeds.it.link  names no zone"),
        ] {
            let found = feed(text).err().unwrap_or_default();
            assert!(found.contains(said), "{text}: {found}");
        }
        let base = BASE.replace("zone: west\n", "zone: west\n  egress: { allow: [a.example, 10.0.0.9] }\n");
        assert_ne!(base, BASE);
        let within = |text: &str| load(&format!("{base}feeds:\n  it: {text}\n")).map(drop);
        for allowed in ["{ ping: { east: A.example } }", "{ trace: { east: 10.0.0.9 } }"] {
            assert_eq!(within(allowed), Ok(()), "{allowed}");
        }
        for refused in ["{ ping: { east: b.example } }", "{ trace: { east: b.example } }"] {
            let found = within(refused).unwrap_err();
            assert!(found.contains("b.example is not in node.egress.allow"), "{refused}: {found}");
        }
    }
}
