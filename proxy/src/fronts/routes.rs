//! Routes: which resource a request is for, by listener and host. The request path reads a snapshot without a lock.

use std::borrow::Cow;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;

use super::gate::Gate;
use super::mirror::Mirror;
use super::pools::{ActivePool, Pool};
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
    /// Its gate; outlives every pool.
    pub gate: Arc<Gate>,
    /// Its active pool.
    pub pool: ActivePool,
    /// What of its reads the shadow is asked as well.
    pub mirror: Arc<Mirror>,
}

impl ResourceFront {
    /// An open front onto `pool`.
    pub fn new(name: impl Into<Arc<str>>, front: &HttpFront, hold: HoldLimits, pool: Pool) -> Arc<Self> {
        let name = name.into();
        Arc::new(Self {
            mirror: Mirror::new(Arc::clone(&name)),
            name,
            listen: front.listen,
            hosts: front.hosts.iter().map(|host| host.to_ascii_lowercase()).collect(),
            gate: Gate::new(hold),
            pool: ActivePool::new(pool),
        })
    }
}

/// Two fronts that cannot be told apart.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
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
}

/// The routes of this moment.
pub struct Routes {
    table: ArcSwap<Table>,
}

#[derive(Default)]
struct Table {
    listeners: Vec<Listener>,
}

struct Listener {
    address: SocketAddr,
    hosts: HashMap<String, Arc<ResourceFront>>,
    every: Option<Arc<ResourceFront>>,
}

impl Routes {
    /// Routes to these fronts.
    pub fn new(fronts: &[Arc<ResourceFront>]) -> Result<Arc<Self>, RouteError> {
        Ok(Arc::new(Self { table: ArcSwap::from_pointee(Table::new(fronts)?) }))
    }

    /// Replaces them. A listener that no service was built for is never connected to: new ones need a restart.
    pub fn publish(&self, fronts: &[Arc<ResourceFront>]) -> Result<(), RouteError> {
        self.table.store(Arc::new(Table::new(fronts)?));
        Ok(())
    }

    /// Where the fronts listen, each address once.
    pub fn listeners(&self) -> Vec<SocketAddr> {
        self.table.load().listeners.iter().map(|listener| listener.address).collect()
    }

    /// Sets the gauges that are read, not counted: requests held now.
    pub fn measure(&self) {
        for listener in &self.table.load().listeners {
            for front in listener.hosts.values().chain(&listener.every) {
                metrics::gauge!(names::HELD_REQUESTS, names::RESOURCE => front.name.to_string())
                    .set(front.gate.stats().held as f64);
            }
        }
    }

    /// The front for a host (with or without a port) on the listener a client connected to; `local` is asked for that
    /// only when there are several.
    pub fn find(
        &self,
        host: Option<&str>,
        local: impl FnOnce() -> Option<SocketAddr>,
    ) -> Option<Arc<ResourceFront>> {
        let table = self.table.load();
        let listener = match &table.listeners[..] {
            [only] => only,
            several => {
                let local = local()?;
                several
                    .iter()
                    .find(|listener| listener.address == local)
                    .or_else(|| several.iter().find(|listener| listener.covers(local)))?
            }
        };
        if listener.hosts.is_empty() {
            return listener.every.clone();
        }
        host.and_then(|host| listener.hosts.get(&*bare(host))).or(listener.every.as_ref()).cloned()
    }
}

impl Table {
    fn new(fronts: &[Arc<ResourceFront>]) -> Result<Self, RouteError> {
        let mut table = Self::default();
        for front in fronts {
            let listen = front.listen;
            let at = table.listeners.iter().position(|known| known.address == listen).unwrap_or_else(|| {
                table.listeners.push(Listener { address: listen, hosts: HashMap::new(), every: None });
                table.listeners.len() - 1
            });
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
        routes.measure();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const HOLD: HoldLimits = HoldLimits { requests: 1, bytes: 1, time: Duration::from_secs(1) };

    fn front(name: &str, listen: &str, hosts: &[&str]) -> Arc<ResourceFront> {
        let hosts = hosts.iter().map(ToString::to_string).collect();
        let front = HttpFront { listen: listen.parse().unwrap(), hosts };
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
}
