//! `fronts.http` and how a placement's endpoints are spoken to.

use std::time::Duration;

use super::error::counted;
use super::listeners::Listeners;
use super::load::Surroundings;
use super::model::HttpFront;
use super::raw::Value;
use super::walk::{Item, Section};
use crate::feeds::external::egress::Network;
use crate::fronts::http::settings::{
    AccessLog, AtCutover, ClientCertificates, Ejection, HealthCheck, Limits, ListenerSettings, ListenerTls,
    Retries, Route, Settings, StreamRules, Timeouts, Upstream, UpstreamTls, bytes,
};

const AT_CUTOVER: [(&str, AtCutover); 3] =
    [("finish", AtCutover::Finish), ("close", AtCutover::Close), ("block", AtCutover::Block)];

/// What `name` says, or the default where it is left out; none: it is wrong.
fn or<'a, T>(
    section: &mut Section<'a>,
    name: &'static str,
    default: T,
    read: impl FnOnce(&Item<'a>) -> Option<T>,
) -> Option<T> {
    match section.optional(name) {
        Some(item) => read(&item),
        None => Some(default),
    }
}

fn span(item: &Item<'_>, least: Duration, right: &str) -> Option<Duration> {
    let span = item.duration()?;
    if span < least {
        item.wrong("is too short", right);
        return None;
    }
    Some(span)
}

fn milliseconds(item: &Item<'_>) -> Option<Duration> {
    span(item, Duration::from_millis(1), "at least 1ms")
}

fn all<'a, T>(item: &Item<'a>, right: &str, read: impl Fn(&Item<'a>) -> Option<T>) -> Option<Vec<T>> {
    let items = item.list(right)?;
    // Every element is read, so that each mistake is told.
    let read: Vec<Option<T>> = items.iter().map(read).collect();
    read.into_iter().collect()
}

/// `{listen, hosts, tls, …}`.
pub(super) fn front<'a>(
    resource: &str,
    item: &Item<'a>,
    around: &Surroundings<'_>,
    listeners: &mut Listeners<'a>,
) -> Option<HttpFront> {
    let mut section = item.section()?;
    let listen = section.required("listen", "listen: 0.0.0.0:8080");
    let hosts = section.optional("hosts");
    let listener = listener(&mut section, around);
    let settings = settings(&mut section, around);
    section.finish();
    let address = listen.as_ref().and_then(Item::address);
    let named = match &hosts {
        Some(item) => item.list("host names").map(|list| {
            let named: Vec<_> =
                list.into_iter().filter_map(|item| item.host().map(|host| (host, item))).collect();
            named
        }),
        None => Some(Vec::new()),
    }?;
    let (listen, address, listener) = (listen?, address?, listener?);
    listeners.add_front(&listen, address, resource, &named, &listener);
    let hosts = named.into_iter().map(|(host, _)| host).collect();
    Some(HttpFront { listen: address, hosts, listener, settings: settings? })
}

fn listener(section: &mut Section<'_>, around: &Surroundings<'_>) -> Option<ListenerSettings> {
    let tls = section.optional("tls").map(|item| tls(&item, around));
    let h2c = section.optional("h2c");
    let clear = or(section, "proxy_protocol", Vec::new(), networks);
    if let (Some(item), true) = (&h2c, tls.is_some()) {
        item.wrong_key(
            "is for clients in the clear, and this front has TLS",
            "leave it out: with TLS HTTP/2 is offered",
        );
    }
    Some(ListenerSettings {
        tls: tls.map_or(Some(None), |tls| tls.map(Some))?,
        h2c: h2c.map_or(Some(false), |item| item.boolean())?,
        proxy_protocol: clear?,
    })
}

/// `{certificates: [{cert, key}], clients, http2}`.
fn tls(item: &Item<'_>, around: &Surroundings<'_>) -> Option<ListenerTls> {
    let mut section = item.section()?;
    let certificates =
        section.required("certificates", "certificates: [{cert: FILE, key: FILE}]").and_then(|item| {
            let pairs = all(&item, "{cert: FILE, key: FILE}", |item| {
                let mut section = item.section()?;
                let mut file = |name: &'static str| {
                    section
                        .required(name, &format!("{name}: FILE (PEM)"))
                        .and_then(|item| item.path(around.folder))
                };
                let pair = (file("cert"), file("key"));
                section.finish();
                Some((pair.0?, pair.1?))
            })?;
            if pairs.is_empty() {
                item.wrong("names no certificate", "at least one: [{cert: FILE, key: FILE}]");
                return None;
            }
            Some(pairs)
        });
    let clients = section.optional("clients").map(|item| {
        let mut section = item.section()?;
        let ca = section.required("ca", "ca: FILE (PEM)").and_then(|item| item.path(around.folder));
        let required = or(&mut section, "required", true, Item::boolean);
        section.finish();
        Some(ClientCertificates { ca: ca?, required: required? })
    });
    let http2 = or(&mut section, "http2", true, Item::boolean);
    section.finish();
    Some(ListenerTls {
        certificates: certificates?,
        clients: clients.map_or(Some(None), |clients| clients.map(Some))?,
        http2: http2?,
    })
}

fn networks(item: &Item<'_>) -> Option<Vec<Network>> {
    const RIGHT: &str = "an address or a network, such as 10.0.0.0/8";
    all(item, "addresses and networks", |item| {
        let text = item.text(RIGHT)?;
        let network = Network::parse(text);
        if network.is_none() {
            item.wrong(format!("`{text}` is not a network"), RIGHT);
        }
        network
    })
}

fn settings(section: &mut Section<'_>, around: &Surroundings<'_>) -> Option<Settings> {
    let trusted = or(section, "trusted", Vec::new(), networks);
    let identify = or(section, "trace", false, |item| item.choice(&[("pass", false), ("make", true)]));
    let limits = or(section, "limits", Limits::default(), limits);
    let timeouts = or(section, "timeouts", Timeouts::default(), timeouts);
    let normalize_paths = or(section, "normalize_paths", false, Item::boolean);
    let streams = or(section, "streams", StreamRules::default(), streams);
    let routes = or(section, "routes", Vec::new(), routes);
    let retries = or(section, "retries", Retries::default(), |item| {
        let mut section = item.section()?;
        let budget = or(&mut section, "budget", Retries::default().budget, Item::ratio);
        section.finish();
        Some(Retries { budget: budget? })
    });
    let health = section.optional("health").map(|item| health(&item));
    let ejection = section.optional("ejection").map(|item| ejection(&item));
    let access_log = section.optional("access_log").map(|item| access_log(&item, around));
    Some(Settings {
        trusted: trusted?,
        identify: identify?,
        limits: limits?,
        timeouts: timeouts?,
        normalize_paths: normalize_paths?,
        streams: streams?,
        routes: routes?,
        retries: retries?,
        health: health.map_or(Some(None), |health| health.map(Some))?,
        ejection: ejection.map_or(Some(None), |ejection| ejection.map(Some))?,
        access_log: access_log.map_or(Some(None), |log| log.map(Some))?,
    })
}

/// `{headers, header_bytes, uri, body}`.
fn limits(item: &Item<'_>) -> Option<Limits> {
    let mut section = item.section()?;
    let default = Limits::default();
    let headers =
        or(&mut section, "headers", default.headers, |item| item.count(1, 256).map(|count| count as usize));
    let amount = |least: u64, most: u64, right: &'static str| {
        move |item: &Item<'_>| {
            let count = item.bytes()?;
            if !(least..=most).contains(&count.0) {
                item.wrong(format!("{count} is out of range"), right);
                return None;
            }
            Some(bytes(count))
        }
    };
    let header_bytes =
        or(&mut section, "header_bytes", default.header_bytes, amount(1 << 10, 1 << 20, "from 1KiB to 1MiB"));
    let uri_bytes = or(&mut section, "uri", default.uri_bytes, amount(256, 1 << 20, "from 256B to 1MiB"));
    let body_bytes = or(&mut section, "body", None, |item| item.bytes().map(|bytes| Some(bytes.0)));
    section.finish();
    Some(Limits {
        headers: headers?,
        header_bytes: header_bytes?,
        uri_bytes: uri_bytes?,
        body_bytes: body_bytes?,
    })
}

/// `{connect, answer, keep, client}`.
fn timeouts(item: &Item<'_>) -> Option<Timeouts> {
    let mut section = item.section()?;
    let default = Timeouts::default();
    let connect = or(&mut section, "connect", default.connect, milliseconds);
    let answer = or(&mut section, "answer", default.answer, milliseconds);
    let keep = or(&mut section, "keep", default.keep, milliseconds);
    let client =
        or(&mut section, "client", default.client, |item| span(item, Duration::from_secs(1), "at least 1s"));
    section.finish();
    Some(Timeouts { connect: connect?, answer: answer?, keep: keep?, client: client? })
}

/// `{at_cutover, deadline, jitter}`.
fn streams(item: &Item<'_>) -> Option<StreamRules> {
    let mut section = item.section()?;
    let default = StreamRules::default();
    let at_cutover = or(&mut section, "at_cutover", default.at_cutover, |item| item.choice(&AT_CUTOVER));
    let deadline = or(&mut section, "deadline", default.deadline, Item::duration);
    let jitter = or(&mut section, "jitter", default.jitter, Item::duration);
    section.finish();
    Some(StreamRules { at_cutover: at_cutover?, deadline: deadline?, jitter: jitter? })
}

/// `[{name, path, at_cutover, stream}]`.
fn routes(item: &Item<'_>) -> Option<Vec<Route>> {
    let routes = all(item, "{name: NAME, path: /PATH}", |item| {
        let mut section = item.section()?;
        let name = section.required("name", "name: NAME, its label in metrics").and_then(|item| item.name());
        let path = section.required("path", "path: /PATH").and_then(|item| item.url_path());
        let at_cutover = or(&mut section, "at_cutover", None, |item| item.choice(&AT_CUTOVER).map(Some));
        let stream = or(&mut section, "stream", false, Item::boolean);
        section.finish();
        Some(Route { name: name?.to_owned(), path: path?, at_cutover: at_cutover?, stream: stream? })
    })?;
    for (at, route) in routes.iter().enumerate() {
        if let Some(first) =
            routes[..at].iter().find(|first| first.path == route.path || first.name == route.name)
        {
            let what = format!("`{}` and `{}` have the same path or name", first.name, route.name);
            item.wrong_key(what, "a path and a name of its own for each route");
            return None;
        }
    }
    const MOST: usize = 64;
    if routes.len() > MOST {
        item.wrong_key(
            format!("has {}", counted(routes.len(), "route")),
            format!("at most {MOST}: each is a label"),
        );
        return None;
    }
    Some(routes)
}

/// `{path | tcp, every, timeout, down_after, up_after}`.
fn health(item: &Item<'_>) -> Option<HealthCheck> {
    let mut section = item.section()?;
    let default = HealthCheck::default();
    let path = or(&mut section, "path", None, |item| item.url_path().map(Some));
    let every = or(&mut section, "every", default.every, |item| {
        span(item, Duration::from_millis(100), "at least 100ms")
    });
    let timeout = or(&mut section, "timeout", default.timeout, milliseconds);
    let down_after = or(&mut section, "down_after", default.down_after, |item| item.count(1, 100));
    let up_after = or(&mut section, "up_after", default.up_after, |item| item.count(1, 100));
    section.finish();
    Some(HealthCheck {
        path: path?,
        every: every?,
        timeout: timeout?,
        down_after: down_after?,
        up_after: up_after?,
    })
}

/// `{failures, time, most}`.
fn ejection(item: &Item<'_>) -> Option<Ejection> {
    let mut section = item.section()?;
    let default = Ejection::default();
    let failures = or(&mut section, "failures", default.failures, |item| item.count(1, 1000));
    let time = or(&mut section, "time", default.time, milliseconds);
    let most = or(&mut section, "most", default.most, Item::ratio);
    section.finish();
    Some(Ejection { failures: failures?, time: time?, most: most? })
}

/// `{file, sample}`.
fn access_log(item: &Item<'_>, around: &Surroundings<'_>) -> Option<AccessLog> {
    let mut section = item.section()?;
    let file = or(&mut section, "file", None, |item| item.path(around.folder).map(Some));
    let sample =
        section.required("sample", "sample: 1%, the share of requests that is logged; errors always are");
    section.finish();
    Some(AccessLog { file: file?, sample: sample?.ratio()? })
}

/// `{protocol, tls, limit}` of a placement; the weights come with the endpoints.
pub(super) fn upstream(item: &Item<'_>, around: &Surroundings<'_>) -> Option<Upstream> {
    let mut section = item.section()?;
    let http2 = or(&mut section, "protocol", false, |item| item.choice(&[("http1", false), ("http2", true)]));
    let tls = section.optional("tls").map(|item| {
        let mut section = item.section()?;
        let ca = section.required("ca", "ca: system, or a PEM file").and_then(|item| {
            if item.text("system, or a PEM file")? == "system" {
                Some(None)
            } else {
                item.path(around.folder).map(Some)
            }
        });
        let name = section
            .required("name", "name: the name in the endpoints' certificates")
            .and_then(|item| item.host());
        section.finish();
        Some(UpstreamTls { ca: ca?, name: name? })
    });
    let limit =
        or(&mut section, "limit", None, |item| item.count(1, 1_000_000).map(|limit| Some(limit as usize)));
    section.finish();
    Some(Upstream {
        http2: http2?,
        tls: tls.map_or(Some(None), |tls| tls.map(Some))?,
        limit: limit?,
        weights: Vec::new(),
    })
}

/// Endpoints and their weights: `HOST:PORT` or `{at: HOST:PORT, weight: 2}`.
pub(super) fn endpoints<'a>(
    item: &Item<'a>,
    needed: bool,
    listeners: &mut Listeners<'a>,
) -> Option<(Vec<String>, Vec<u32>)> {
    let list = item.list("endpoints, such as [\"10.0.1.10:8000\"]")?;
    if list.is_empty() && needed {
        item.wrong("has no endpoint", "at least one, such as [\"10.0.1.10:8000\"]");
        return None;
    }
    let (mut endpoints, mut weights): (Vec<String>, Vec<u32>) = (Vec::new(), Vec::new());
    for item in &list {
        let (at, weight) = match item.value() {
            Value::Map(_) => {
                let Some(mut section) = item.section() else { continue };
                let at = section.required("at", "at: HOST:PORT").and_then(|item| item.endpoint());
                let weight = or(&mut section, "weight", 1, |item| item.count(1, 1000));
                section.finish();
                (at, weight)
            }
            _ => (item.endpoint(), Some(1)),
        };
        let (Some(at), Some(weight)) = (at, weight) else { continue };
        if let Some((host, port)) = at.rsplit_once(':')
            && let Ok(port) = port.parse()
        {
            listeners.passes_on_to(item, host, port);
        }
        if endpoints.contains(&at) {
            item.wrong(format!("`{at}` is listed twice"), "each endpoint once");
        }
        endpoints.push(at);
        weights.push(weight);
    }
    if weights.iter().all(|weight| *weight == 1) {
        weights.clear();
    }
    (endpoints.len() == list.len()).then_some((endpoints, weights))
}
