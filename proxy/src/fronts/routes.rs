//! Routes: which resource a request is for, by listener and host. The request path reads a snapshot without a lock.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;

use super::clients::Clients;
use super::gate::Gate;
use super::http::access_log::Access;
use super::http::entrance::Entrance;
use super::http::retries::Budget;
use super::http::settings::{ListenerSettings, Route, Settings};
use super::mirror::Mirror;
use super::pools::{ActivePool, Pool, Reach};
use super::streams::Streams;
use crate::config::model::{HoldLimits, HttpFront};
use crate::telemetry::names;

/// The front of one resource: everything a request needs to know of it.
pub struct ResourceFront {
    /// The resource's name.
    pub name: Arc<str>,
    /// Where clients connect to.
    pub listen: SocketAddr,
    /// Host names served, lower case; empty: every host on the listener.
    pub hosts: Vec<String>,
    /// What it has in common with other fronts on the listener.
    pub listener: ListenerSettings,
    /// What the operator said.
    pub settings: Settings,
    /// Its gate; outlives every pool.
    pub gate: Arc<Gate>,
    /// Its active pool.
    pub pool: ActivePool,
    /// What of its reads the shadow is asked as well.
    pub mirror: Arc<Mirror>,
    /// Its long streams.
    pub streams: Arc<Streams>,
    /// Its repeats.
    pub retries: Budget,
    /// Its access log.
    pub access: Option<Access>,
    /// The longest path first.
    routes: Vec<Named>,
}

/// A route whose name is shared.
struct Named {
    route: Route,
    name: Arc<str>,
}

impl ResourceFront {
    /// An open front onto `pool`; every placement is reached by default.
    pub fn new(name: impl Into<Arc<str>>, front: &HttpFront, hold: HoldLimits, pool: Pool) -> Arc<Self> {
        Arc::new(Self::of(name.into(), front, hold, ActivePool::new(pool), None))
    }

    /// An open front whose placements are reached as `reaches` says. Opens the access log.
    pub fn reaching(
        name: impl Into<Arc<str>>,
        front: &HttpFront,
        hold: HoldLimits,
        pool: Pool,
        reaches: HashMap<Arc<str>, Arc<Reach>>,
    ) -> std::io::Result<Arc<Self>> {
        let access = front.settings.access_log.as_ref().map(Access::open).transpose()?;
        Ok(Arc::new(Self::of(name.into(), front, hold, ActivePool::reaching(pool, reaches), access)))
    }

    fn of(
        name: Arc<str>,
        front: &HttpFront,
        hold: HoldLimits,
        pool: ActivePool,
        access: Option<Access>,
    ) -> Self {
        let named = |route: &Route| Named { name: route.name.as_str().into(), route: route.clone() };
        let mut routes: Vec<_> = front.settings.routes.iter().map(named).collect();
        routes.sort_by_key(|named| std::cmp::Reverse(named.route.path.len()));
        Self {
            mirror: Mirror::new(Arc::clone(&name)),
            name,
            listen: front.listen,
            hosts: front.hosts.iter().map(|host| host.to_ascii_lowercase()).collect(),
            listener: front.listener.clone(),
            gate: Gate::new(hold),
            pool,
            streams: Streams::new(front.settings.streams),
            retries: Budget::new(&front.settings.retries, super::now()),
            settings: front.settings.clone(),
            access,
            routes,
        }
    }

    /// The route of a path, if it has one: that with the longest path of whole segments.
    pub fn route(&self, path: &str) -> Option<(&Route, &Arc<str>)> {
        let fits = |named: &&Named| {
            let prefix = named.route.path.as_str();
            path.strip_prefix(prefix)
                .is_some_and(|rest| prefix.ends_with('/') || rest.is_empty() || rest.starts_with(['/', '?']))
        };
        self.routes.iter().find(fits).map(|named| (&named.route, &named.name))
    }

    /// What must be looked at now and then: streams whose time has come, connections that are not needed any more.
    fn look(&self) {
        self.streams.look(self.pool.load().generation, super::now(), super::health::luck);
        self.pool.end_retired();
        for (_, reach) in self.pool.reaches() {
            reach.look();
        }
        if let Some(access) = &self.access {
            access.measure();
        }
    }
}

/// Fronts that cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum RouteError {
    /// The same host twice on one listener.
    #[error("{first} and {second} both serve {host} on {listen}")]
    SameHost {
        /// The listener.
        listen: SocketAddr,
        /// The host.
        host: String,
        /// One resource.
        first: Arc<str>,
        /// The other.
        second: Arc<str>,
    },
    /// Two fronts for every host on one listener.
    #[error("{first} and {second} both serve every host on {listen}")]
    EveryHost {
        /// The listener.
        listen: SocketAddr,
        /// One resource.
        first: Arc<str>,
        /// The other.
        second: Arc<str>,
    },
    /// A listener's certificates cannot be used.
    #[error("cannot serve TLS on {listen}: {why:#}")]
    Tls {
        /// The listener.
        listen: SocketAddr,
        /// Why.
        why: anyhow::Error,
    },
}

/// The routes of this moment.
pub struct Routes {
    table: ArcSwap<Table>,
    clients: Arc<Clients>,
}

#[derive(Default)]
struct Table {
    listeners: Vec<Listener>,
}

struct Listener {
    address: SocketAddr,
    /// What the entrance was made of.
    settings: ListenerSettings,
    entrance: Arc<Entrance>,
    hosts: HashMap<String, Arc<ResourceFront>>,
    every: Option<Arc<ResourceFront>>,
}

impl Routes {
    /// Routes to these fronts.
    pub fn new(fronts: &[Arc<ResourceFront>]) -> Result<Arc<Self>, RouteError> {
        let table = ArcSwap::from_pointee(Table::new(fronts, &[], |settings, _| Entrance::new(settings))?);
        Ok(Arc::new(Self { table, clients: Arc::default() }))
    }

    /// Who is connected to the listeners.
    pub fn clients(&self) -> &Arc<Clients> {
        &self.clients
    }

    /// Whether requests of any front are held.
    pub fn holds(&self) -> bool {
        self.table.load().fronts().any(|front| front.gate.is_closed() || front.gate.stats().held > 0)
    }

    /// Connections that have a request, or may have one soon. One that has a long stream is none, whatever else is on it; the requests
    /// that are inside, on whichever connections, are the least.
    pub fn busy(&self) -> usize {
        let (now, table) = (super::now(), self.table.load());
        // A front with several names is there once for each.
        let fronts: BTreeMap<&str, _> = table.fronts().map(|front| (&*front.name, front)).collect();
        let (mut clients, mut inside) = (HashSet::new(), 0);
        for front in fronts.values() {
            let streams = front.streams.certain(now);
            inside += front.gate.stats().in_flight.saturating_sub(streams.inside);
            clients.extend(streams.clients);
        }
        let inside = usize::try_from(inside).unwrap_or(usize::MAX);
        self.clients.connected().saturating_sub(clients.len()).max(inside)
    }

    /// Replaces them. A listener that no service was built for is never connected to: new ones need a restart. One whose last
    /// front is gone stays, with nobody behind it: what still comes there must not come to another's.
    pub fn publish(&self, fronts: &[Arc<ResourceFront>]) -> Result<(), RouteError> {
        self.replace(fronts, |settings, _| Entrance::new(settings))
    }

    /// As [`Self::publish`], where fronts have left and these stay. Certificates that do not fit at this moment keep nobody from
    /// leaving: handshakes are done with those from before until they fit.
    pub fn keep(&self, fronts: &[Arc<ResourceFront>]) -> Result<(), RouteError> {
        self.replace(fronts, |settings, before| match before {
            Some(before) => Entrance::after(settings, before),
            None => Entrance::new(settings),
        })
    }

    fn replace(
        &self,
        fronts: &[Arc<ResourceFront>],
        make: impl Fn(&ListenerSettings, Option<&Entrance>) -> anyhow::Result<Entrance>,
    ) -> Result<(), RouteError> {
        let before = self.table.load();
        let mut table = Table::new(fronts, &before.listeners, make)?;
        for known in &before.listeners {
            if table.listeners.iter().all(|listener| listener.address != known.address) {
                let (settings, entrance) = (known.settings.clone(), known.entrance.clone());
                let address = known.address;
                table.listeners.push(Listener {
                    address,
                    settings,
                    entrance,
                    hosts: HashMap::new(),
                    every: None,
                });
            }
        }
        self.table.store(Arc::new(table));
        Ok(())
    }

    /// Where the fronts listen, each address once.
    pub fn listeners(&self) -> Vec<SocketAddr> {
        self.table.load().listeners.iter().map(|listener| listener.address).collect()
    }

    /// The largest header that any front takes, bytes.
    pub fn largest_header(&self) -> usize {
        let table = self.table.load();
        table.fronts().map(|front| front.settings.limits.header_bytes).max().unwrap_or_default()
    }

    /// Sets the gauges that are read, not counted, and looks at what changes with time: streams, connections, certificates.
    pub fn look(&self) {
        for listener in &self.table.load().listeners {
            listener.entrance.look();
            for front in listener.hosts.values().chain(&listener.every) {
                front.look();
                metrics::gauge!(names::HELD_REQUESTS, names::RESOURCE => front.name.to_string())
                    .set(front.gate.stats().held as f64);
                metrics::gauge!(names::STREAMS, names::RESOURCE => front.name.to_string())
                    .set(front.streams.count() as f64);
            }
        }
    }

    /// What a connection goes through before its first request, by the address it came to.
    pub fn entrance(&self, local: impl FnOnce() -> Option<SocketAddr>) -> Option<Arc<Entrance>> {
        let table = self.table.load();
        table.listener(local).map(|listener| listener.entrance.clone())
    }

    /// The front for a host (with or without a port) on the listener a client connected to; `local` is asked for that
    /// only when there are several.
    pub fn find(
        &self,
        host: Option<&str>,
        local: impl FnOnce() -> Option<SocketAddr>,
    ) -> Option<Arc<ResourceFront>> {
        let table = self.table.load();
        let listener = table.listener(local)?;
        if listener.hosts.is_empty() {
            return listener.every.clone();
        }
        host.and_then(|host| listener.hosts.get(&*bare(host))).or(listener.every.as_ref()).cloned()
    }
}

impl Table {
    /// Each once for every name that it has.
    fn fronts(&self) -> impl Iterator<Item = &Arc<ResourceFront>> {
        self.listeners.iter().flat_map(|listener| listener.hosts.values().chain(&listener.every))
    }

    fn listener(&self, local: impl FnOnce() -> Option<SocketAddr>) -> Option<&Listener> {
        match &self.listeners[..] {
            [only] => Some(only),
            several => {
                let local = local()?;
                let exact = several.iter().find(|listener| listener.address == local);
                exact.or_else(|| several.iter().find(|listener| listener.covers(local)))
            }
        }
    }

    /// A listener of `before` keeps its entrance where that would be the same; others are made.
    fn new(
        fronts: &[Arc<ResourceFront>],
        before: &[Listener],
        make: impl Fn(&ListenerSettings, Option<&Entrance>) -> anyhow::Result<Entrance>,
    ) -> Result<Self, RouteError> {
        let mut table = Self::default();
        for front in fronts {
            let listen = front.listen;
            let at = match table.listeners.iter().position(|known| known.address == listen) {
                Some(at) => at,
                None => {
                    let settings = shared(fronts.iter().filter(|front| front.listen == listen));
                    let known = before.iter().find(|known| known.address == listen);
                    let entrance = match known.filter(|known| known.settings == settings) {
                        Some(same) => same.entrance.clone(),
                        None => make(&settings, known.map(|known| &*known.entrance))
                            .map_err(|why| RouteError::Tls { listen, why })?
                            .into(),
                    };
                    let (address, hosts, every) = (listen, HashMap::new(), None);
                    table.listeners.push(Listener { address, settings, entrance, hosts, every });
                    table.listeners.len() - 1
                }
            };
            let listener = &mut table.listeners[at];
            let second = Arc::clone(&front.name);
            if front.hosts.is_empty()
                && let Some(other) = listener.every.replace(Arc::clone(front))
            {
                return Err(RouteError::EveryHost { listen, first: Arc::clone(&other.name), second });
            }
            for host in &front.hosts {
                if let Some(other) = listener.hosts.insert(host.clone(), Arc::clone(front)) {
                    let (host, first) = (host.clone(), Arc::clone(&other.name));
                    return Err(RouteError::SameHost { listen, host, first, second });
                }
            }
        }
        Ok(table)
    }
}

/// What fronts share: as the first says, with the certificates of all.
fn shared<'f>(mut fronts: impl Iterator<Item = &'f Arc<ResourceFront>>) -> ListenerSettings {
    let mut settings = fronts.next().map(|first| first.listener.clone()).unwrap_or_default();
    if let Some(tls) = &mut settings.tls {
        for pair in fronts.filter_map(|front| front.listener.tls.as_ref()).flat_map(|tls| &tls.certificates) {
            if !tls.certificates.contains(pair) {
                tls.certificates.push(pair.clone());
            }
        }
    }
    settings
}

impl Listener {
    /// A wildcard address covers every address of its family on its port; IPv6 also IPv4.
    fn covers(&self, local: SocketAddr) -> bool {
        self.address.ip().is_unspecified()
            && self.address.port() == local.port()
            && (self.address.is_ipv6() || local.is_ipv4())
    }
}

/// The host without port and final dot, lower case.
fn bare(host: &str) -> Cow<'_, str> {
    let name = match host.rfind(':') {
        Some(colon) if !host[colon..].contains(']') => &host[..colon],
        _ => host,
    };
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
        Cow::Owned(name.to_ascii_lowercase())
    } else {
        Cow::Borrowed(name)
    }
}

/// Collects samples and sets gauges at every tick, for ever.
pub async fn report(routes: &Routes, recorder: &super::latencies::Recorder, every: Duration) {
    let mut ticks = tokio::time::interval(every);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        recorder.collect();
        routes.look();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use pingora::listeners::ConnectionFilter as _;

    use super::*;
    use crate::fronts::http::settings::{AtCutover, ListenerTls};
    use crate::fronts::streams::{Arrival, UNANSWERED};

    const HOLD: HoldLimits = HoldLimits { requests: 1, bytes: 1, time: Duration::from_secs(1) };

    fn front(name: &str, listen: &str, hosts: &[&str]) -> Arc<ResourceFront> {
        let front = HttpFront::plain(listen.parse().unwrap(), hosts);
        ResourceFront::new(name, &front, HOLD, Pool::new(0, "z", &[]))
    }

    fn name(routes: &Routes, host: Option<&str>, local: &str) -> Option<String> {
        routes.find(host, || local.parse().ok()).map(|front| front.name.to_string())
    }

    #[test]
    fn by_host_then_every() {
        let routes = Routes::new(&[
            front("orders", "127.0.0.1:80", &["Orders.example", "[::1]"]),
            front("rest", "127.0.0.1:80", &[]),
        ])
        .unwrap();
        for host in ["orders.example", "ORDERS.example:8080", "orders.example.", "[::1]:80", "[::1]"] {
            assert_eq!(name(&routes, Some(host), "").as_deref(), Some("orders"), "{host}");
        }
        assert_eq!(name(&routes, Some("other.example"), "").as_deref(), Some("rest"));
        assert_eq!(name(&routes, None, "").as_deref(), Some("rest"));
        routes.publish(&[front("orders", "127.0.0.1:80", &["orders.example"])]).unwrap();
        assert_eq!(name(&routes, Some("other.example"), ""), None);
        assert_eq!(name(&routes, None, ""), None);
    }

    #[test]
    fn the_longest_path_of_whole_segments() {
        let route = |name: &str, path: &str| Route {
            name: name.into(),
            path: path.into(),
            at_cutover: None,
            stream: false,
        };
        let mut plain = HttpFront::plain("127.0.0.1:80".parse().unwrap(), &[]);
        plain.settings.routes =
            vec![route("api", "/api"), route("events", "/api/events"), route("files", "/files/")];
        let front = ResourceFront::new("a", &plain, HOLD, Pool::new(0, "z", &[]));
        for (path, name) in [
            ("/api", Some("api")),
            ("/api?x", Some("api")),
            ("/api/orders", Some("api")),
            ("/api/events/7", Some("events")),
            ("/apis", None),
            ("/files/x", Some("files")),
            ("/files", None),
            ("/", None),
        ] {
            assert_eq!(front.route(path).map(|(_, name)| &**name), name, "{path}");
        }
    }

    #[test]
    fn by_listener() {
        let routes = Routes::new(&[
            front("one", "127.0.0.1:80", &[]),
            front("two", "0.0.0.0:80", &[]),
            front("three", "[::]:81", &[]),
        ])
        .unwrap();
        assert_eq!(name(&routes, None, "127.0.0.1:80").as_deref(), Some("one"));
        assert_eq!(name(&routes, None, "10.0.0.1:80").as_deref(), Some("two"));
        assert_eq!(name(&routes, None, "10.0.0.1:81").as_deref(), Some("three"));
        assert_eq!(name(&routes, None, "10.0.0.1:82"), None);
        assert_eq!(routes.listeners().len(), 3);
    }

    #[test]
    fn refuses_what_cannot_be_told_apart() {
        let twice = Routes::new(&[
            front("a", "127.0.0.1:80", &["x.example"]),
            front("b", "127.0.0.1:80", &["X.example"]),
        ]);
        assert_eq!(twice.err().unwrap().to_string(), "a and b both serve x.example on 127.0.0.1:80");
        let every = Routes::new(&[front("a", "127.0.0.1:80", &[]), front("b", "127.0.0.1:80", &[])]);
        assert_eq!(every.err().unwrap().to_string(), "a and b both serve every host on 127.0.0.1:80");
    }

    /// A client of HTTP/2 has as many streams open as there are connections.
    #[tokio::test]
    async fn streams_hide_no_request_of_another_client() {
        let listen = "127.0.0.1:80".parse().unwrap();
        let plain = HttpFront::plain(listen, &["a.example", "b.example"]);
        let front = ResourceFront::new("a", &plain, HOLD, Pool::new(0, "z", &[listen]));
        let routes = Routes::new(std::slice::from_ref(&front)).unwrap();
        let (clients, now) = (routes.clients(), super::super::now());
        let begin = |client: u16, at_cutover, certain| {
            let pick = front.pool.pick(&[], now).unwrap();
            let arrival = Arrival {
                generation: 0,
                at_cutover,
                client: Some(([127, 0, 0, 1], client).into()),
                certain,
                admission: front.gate.try_enter(),
                streaming: pick.streams(None),
            };
            (front.streams.begin(arrival, now), pick)
        };
        for _ in 0..3 {
            clients.should_accept(None).await;
        }
        let rules = [AtCutover::Finish, AtCutover::Close, AtCutover::Block];
        let _streams = rules.map(|at_cutover| begin(1, at_cutover, now));
        assert_eq!(routes.busy(), 2, "two have none");
        let post = begin(2, AtCutover::Finish, now + UNANSWERED * 10_000);
        assert_eq!(routes.busy(), 2, "it may be a stream, and is none yet");
        for _ in 0..2 {
            drop(clients.connection());
        }
        assert_eq!(routes.busy(), 1, "one on the connection of the streams");
        drop(post);
        assert_eq!(routes.busy(), 0);
    }

    #[test]
    fn certificates_that_do_not_fit_now_keep_nobody_from_leaving_or_joining() {
        let folder = tempfile::tempdir().unwrap();
        crate::pki::make(folder.path(), &["a.example", "b.example"]).unwrap();
        let pair = |name: &str| ["pem", "key"].map(|end| folder.path().join(format!("{name}.{end}")));
        let secure = |name: &str, certificate: &str| {
            let mut front = HttpFront::plain("127.0.0.1:443".parse().unwrap(), &[name]);
            let certificates = vec![pair(certificate).into()];
            front.listener.tls = Some(ListenerTls { certificates, clients: None, http2: false });
            ResourceFront::new(name, &front, HOLD, Pool::new(0, "z", &[]))
        };
        let (one, two, three) = (
            secure("a.example", "a.example"),
            secure("b.example", "b.example"),
            secure("c.example", "b.example"),
        );
        let routes = Routes::new(&[one.clone(), two.clone()]).unwrap();
        let [_, key] = pair("b.example");
        std::fs::write(&key, "").unwrap();
        let before = routes.entrance(|| None).unwrap();
        routes.publish(&[one, two.clone(), three.clone()]).unwrap();
        assert!(Arc::ptr_eq(&before, &routes.entrance(|| None).unwrap()), "nothing new is needed");
        routes.keep(&[two.clone(), three]).unwrap();
        assert_eq!(name(&routes, Some("a.example"), ""), None);
        assert_eq!(name(&routes, Some("c.example"), "").as_deref(), Some("c.example"));
        assert!(routes.publish(&[two, secure("d.example", "a.example")]).is_err(), "a new one must fit");
    }
}
