//! How the endpoints of one placement are reached: protocol, TLS, weights, the limit, and where their names lead now.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use anyhow::{Context as _, Result};
use arc_swap::ArcSwap;
use crossbeam::utils::CachePadded;
use futures_util::future::join_all;
use pingora::protocols::tls::CaType;
use pingora::utils::tls::{WrappedX509, parse_x509};
use rustls::{ClientConfig, RootCertStore};

use super::looking_up::LookingUp;
use crate::causes::chain;
use crate::fronts::http::settings::Upstream;
use crate::tls::{self, Watched};

/// What names the PEM file.
const CA: &str = "upstream.tls.ca";

/// Of one placement.
#[derive(Default)]
pub struct Reach {
    /// HTTP/2 instead of HTTP/1.1.
    pub http2: bool,
    /// The name in the endpoints' certificates; none: in the clear.
    pub server_name: Option<String>,
    /// Requests at all endpoints together, those at endpoints that went included.
    limit: Option<usize>,
    /// How many there are; counted where there is a limit.
    requests: CachePadded<AtomicUsize>,
    /// Who vouches for them; none: this machine's authorities.
    trust: Option<Watched<Trust>>,
    /// What our own requests shake hands with in that case; made when first asked for.
    client: OnceLock<Arc<ClientConfig>>,
    /// By the order of the endpoints.
    weights: Vec<u32>,
    places: ArcSwap<Places>,
}

/// Made of a PEM file of authorities.
struct Trust {
    /// For requests.
    authorities: Arc<CaType>,
    /// For our own.
    client: Arc<ClientConfig>,
}

/// Where the endpoints are. Each is known by the address that it was first found at, wherever its name leads by now; one that
/// was not found by an address that leads [nowhere].
#[derive(Clone, Default)]
struct Places {
    /// All, in order.
    known: Vec<SocketAddr>,
    weights: HashMap<SocketAddr, u32>,
    names: Vec<(SocketAddr, String)>,
    /// Where a name leads that does not lead there any more.
    moved: HashMap<SocketAddr, SocketAddr>,
}

impl Places {
    /// By what the endpoint of this name is known.
    fn known_by(&self, name: &str) -> Option<SocketAddr> {
        self.names.iter().find(|(_, known)| known == name).map(|(first, _)| *first)
    }
}

impl Reach {
    /// As configured; `names` and `addresses` are the placement's endpoints, in order. Reads the PEM file.
    pub fn new(upstream: &Upstream, names: &[String], addresses: &[SocketAddr]) -> Result<Self> {
        let ca = upstream.tls.as_ref().and_then(|tls| tls.ca.as_ref());
        let trust = ca.cloned().map(|path| Watched::new(CA, vec![path.clone()], move || trust(&path)));
        let reach = Self {
            http2: upstream.http2,
            server_name: upstream.tls.as_ref().map(|tls| tls.name.clone()),
            trust: trust.transpose()?,
            limit: upstream.limit,
            requests: CachePadded::default(),
            client: OnceLock::new(),
            weights: upstream.weights.clone(),
            places: ArcSwap::default(),
        };
        reach.place(names, &addresses.iter().copied().map(Some).collect::<Vec<_>>());
        Ok(reach)
    }

    /// As [`Reach::new`]. Waits for what is looked up; a name that leads nowhere now may do so later.
    pub fn looked_up(upstream: &Upstream, looking: LookingUp) -> Result<Self> {
        let reach = Self::new(upstream, &[], &[])?;
        let (names, found) = looking.found();
        reach.place_found(&names, found);
        Ok(reach)
    }

    /// The placement's driver says that these are its endpoints.
    pub async fn learn(&self, names: &[String]) {
        let found = join_all(names.iter().map(|name| async move {
            leads_to(name, || self.places.load().known_by(name).map(|first| self.reached_at(first))).await
        }));
        self.place_found(names, found.await);
    }

    fn place_found(&self, names: &[String], found: Vec<io::Result<Option<SocketAddr>>>) {
        let addresses: Vec<_> = names
            .iter()
            .zip(found)
            .map(|(name, found)| {
                let why = match found {
                    Ok(Some(address)) => return Some(address),
                    Ok(None) => "it has no address".to_owned(),
                    Err(error) => chain(error),
                };
                tracing::error!(%name, why, "an endpoint is not found: it is looked up until it is");
                None
            })
            .collect();
        self.place(names, &addresses);
    }

    /// From now on these are the endpoints. One whose name is known already stays what it was.
    pub(in crate::fronts) fn place(&self, names: &[String], addresses: &[Option<SocketAddr>]) {
        self.places.rcu(|before| {
            let mut next = Places { moved: before.moved.clone(), ..Places::default() };
            let mut unused = (0..)
                .map(nowhere)
                .filter(|address| !before.known.contains(address) && !before.moved.contains_key(address));
            // What each is known by already, or is itself.
            let own: Vec<_> =
                names.iter().map(|name| before.known_by(name).or_else(|| name.parse().ok())).collect();
            for (name, address) in names.iter().zip(addresses) {
                // An address by which another is known, wherever that is now, would make one of both.
                let anothers = |address: &SocketAddr| {
                    before.moved.contains_key(address)
                        || next.known.contains(address)
                        || names.iter().zip(&own).any(|(other, own)| other != name && *own == Some(*address))
                };
                let free = address.filter(|address| !anothers(address));
                let twice =
                    names.iter().zip(&next.known).find(|(other, _)| *other == name).map(|(_, first)| *first);
                let known = twice.or_else(|| before.known_by(name));
                let first = known.or(free).or_else(|| unused.next()).unwrap_or(nowhere(0));
                if let Some(address) = *address {
                    next.moved.remove(&first);
                    if address != first {
                        next.moved.insert(first, address);
                    }
                }
                if name.parse::<SocketAddr>().is_err() {
                    next.names.push((first, name.clone()));
                }
                next.known.push(first);
            }
            next.weights = next.known.iter().copied().zip(self.weights.iter().copied()).collect();
            next
        });
    }

    /// Names that have led nowhere so far.
    pub fn not_found(&self) -> Vec<String> {
        let places = self.places.load();
        let lost = |first: &SocketAddr| first.ip().is_multicast() && !places.moved.contains_key(first);
        places.names.iter().filter(|(first, _)| lost(first)).map(|(_, name)| name.clone()).collect()
    }

    /// The endpoints, in order.
    pub fn endpoints(&self) -> Vec<SocketAddr> {
        self.places.load().known.clone()
    }

    /// Looks whether the file of authorities has changed.
    pub fn look(&self) {
        if let Some(trust) = &self.trust {
            trust.look();
        }
    }

    /// Who vouches for the endpoints; none: this machine's authorities.
    pub fn authorities(&self) -> Option<Arc<CaType>> {
        self.trust.as_ref().map(|trust| trust.current().authorities.clone())
    }

    /// TLS of a client that trusts whom the requests trust.
    pub(in crate::fronts) fn client(&self) -> Result<Arc<ClientConfig>> {
        if let Some(trust) = &self.trust {
            return Ok(trust.current().client.clone());
        }
        if let Some(client) = self.client.get() {
            return Ok(client.clone());
        }
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        let client = client(roots)?;
        Ok(self.client.get_or_init(|| client).clone())
    }

    /// Counts one more request; false: the placement has as many as it may. Counted only where it fits, so that those who ask at the same
    /// moment do not keep each other out.
    pub(super) fn enter(&self) -> bool {
        let Some(limit) = self.limit else { return true };
        self.requests.fetch_update(Relaxed, Relaxed, |now| (now < limit).then_some(now + 1)).is_ok()
    }

    /// A request that was counted is done.
    pub(super) fn leave(&self) {
        if self.limit.is_some() {
            self.requests.fetch_sub(1, Relaxed);
        }
    }

    pub(super) fn weight(&self, address: SocketAddr) -> u32 {
        self.places.load().weights.get(&address).copied().unwrap_or(1)
    }

    /// Whether any endpoint has a name.
    pub fn has_names(&self) -> bool {
        !self.places.load().names.is_empty()
    }

    /// Where the endpoint that is known by `address` is now.
    pub fn reached_at(&self, address: SocketAddr) -> SocketAddr {
        self.places.load().moved.get(&address).copied().unwrap_or(address)
    }

    /// Asks for every name again, also those not found so far. One that leads to where it is reached now keeps that address, whatever the order of the
    /// answer; one that leads nowhere keeps it too. Returns the first failure.
    pub async fn resolve(&self) -> Result<()> {
        let places = self.places.load_full();
        // At once: one without an answer keeps nobody else where it was.
        let resolved = join_all(places.names.iter().map(|(first, name)| self.follow(*first, name))).await;
        resolved.into_iter().collect::<Result<()>>().context("names of endpoints stay as they were")
    }

    async fn follow(&self, first: SocketAddr, name: &str) -> Result<()> {
        let next = leads_to(name, || Some(self.reached_at(first))).await;
        let next = next.with_context(|| format!("cannot resolve {name}"))?;
        let now = self.reached_at(first);
        if let Some(next) = next.filter(|next| *next != now) {
            tracing::info!(%name, from = %now, to = %next, "an endpoint has moved");
            self.places.rcu(|places| {
                let mut places = Places::clone(places);
                places.moved.insert(first, next);
                places
            });
        }
        Ok(())
    }
}

fn trust(path: &Path) -> Result<Trust> {
    // Whether each is an authority at all is found out here and not at the first connection.
    let client = client(tls::authorities(path, CA)?)?;
    let found = tls::certificates(path, CA)?;
    let wrapped: Vec<_> =
        found.iter().map(|certificate| WrappedX509::new(certificate.to_vec(), parse_x509)).collect();
    Ok(Trust { authorities: Arc::from(wrapped), client })
}

fn client(roots: RootCertStore) -> Result<Arc<ClientConfig>> {
    let builder =
        ClientConfig::builder_with_provider(tls::provider()).with_safe_default_protocol_versions()?;
    Ok(Arc::new(builder.with_root_certificates(roots).with_no_client_auth()))
}

/// Where a name leads: where it is reached `now` while it still leads there as well.
async fn leads_to(name: &str, now: impl FnOnce() -> Option<SocketAddr>) -> io::Result<Option<SocketAddr>> {
    let found: Vec<_> = tokio::net::lookup_host(name).await?.collect();
    Ok(now().filter(|now| found.contains(now)).or(found.first().copied()))
}

/// What an endpoint is known by that was not found. Nobody listens on a group's address: to connect there fails at once.
fn nowhere(nth: u16) -> SocketAddr {
    let [high, low] = nth.to_be_bytes();
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(239, 255, high, low)), 1)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_name_is_followed() {
        let upstream = Upstream { weights: vec![3, 1], ..Upstream::default() };
        let (old, fixed) = ("192.0.2.1:80".parse().unwrap(), "192.0.2.2:80".parse().unwrap());
        let names = ["localhost:80".to_owned(), "192.0.2.2:80".to_owned()];
        let reach = Reach::new(&upstream, &names, &[old, fixed]).unwrap();
        assert!(reach.has_names());
        assert_eq!((reach.weight(old), reach.weight(fixed)), (3, 1));
        assert_eq!(reach.reached_at(old), old);
        reach.resolve().await.unwrap();
        assert!(reach.reached_at(old).ip().is_loopback());
        assert_eq!(reach.reached_at(fixed), fixed);
        let now = reach.reached_at(old);
        reach.resolve().await.unwrap();
        assert_eq!(reach.reached_at(old), now);
    }
    #[tokio::test]
    async fn a_name_that_a_driver_gave_is_followed() {
        let reach = Reach::new(&Upstream { weights: vec![3], ..Upstream::default() }, &[], &[]).unwrap();
        let old = "192.0.2.1:80".parse().unwrap();
        let given = ["localhost:80".to_owned()];
        reach.place(&given, &[Some(old)]);
        assert_eq!((reach.endpoints(), reach.weight(old)), (vec![old], 3));
        reach.resolve().await.unwrap();
        let now = reach.reached_at(old);
        assert!(now.ip().is_loopback());
        // Told again it is the same endpoint: requests in flight and what is known of it are by that address.
        reach.learn(&["192.0.2.2:80".to_owned(), given[0].clone()]).await;
        assert_eq!(reach.endpoints(), ["192.0.2.2:80".parse().unwrap(), old]);
        assert_eq!(reach.reached_at(old), now);
    }
    #[test]
    fn an_address_that_another_has_left_is_no_double() {
        let [x, y] = ["192.0.2.1:80", "192.0.2.2:80"].map(|address| address.parse().unwrap());
        for reversed in [false, true] {
            let reach = Reach::new(&Upstream::default(), &["a:80".to_owned()], &[x]).unwrap();
            let mut now = [("a:80".to_owned(), Some(y)), ("b:80".to_owned(), Some(x))];
            if reversed {
                now.reverse();
            }
            let (names, addresses): (Vec<_>, Vec<_>) = now.into_iter().unzip();
            reach.place(&names, &addresses);
            let known = reach.endpoints();
            assert!(known.contains(&x) && known[0] != known[1], "{known:?}");
            let reached: Vec<_> = known.iter().map(|first| Some(reach.reached_at(*first))).collect();
            assert_eq!(reached, addresses);
            reach.place(&names, &[Some(x), Some(y)]);
            assert_eq!(reach.endpoints(), known, "each stays what it was");
            assert_eq!((reach.reached_at(known[0]), reach.reached_at(known[1])), (x, y));
        }
        let both = ["a:80", "b:80"].map(str::to_owned);
        let reach = Reach::new(&Upstream::default(), &both, &[x, x]).unwrap();
        let [a, b] = reach.endpoints().try_into().unwrap();
        assert!(a != b && reach.reached_at(b) == x);
        reach.place(&["a:80", "a:80"].map(str::to_owned), &[Some(x), Some(x)]);
        assert_eq!(reach.endpoints(), [a, a], "a name is one endpoint");
    }
    #[tokio::test]
    async fn a_name_that_leads_nowhere_is_looked_up_until_it_leads_somewhere() {
        let names =
            ["nowhere.invalid:80".to_owned(), "192.0.2.2:80".to_owned(), "never.invalid:80".to_owned()];
        let reach = Reach::looked_up(
            &Upstream { weights: vec![3, 1, 2], ..Upstream::default() },
            LookingUp::begin(&names),
        )
        .unwrap();
        let [lost, fixed, never] = reach.endpoints().try_into().unwrap();
        assert_eq!(fixed, "192.0.2.2:80".parse().unwrap());
        assert!(
            lost != never && (reach.weight(lost), reach.weight(never)) == (3, 2),
            "each is one of its own"
        );
        assert_eq!(reach.not_found(), ["nowhere.invalid:80", "never.invalid:80"]);
        let refused = tokio::net::TcpStream::connect(reach.reached_at(lost)).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::NetworkUnreachable);
        assert!(reach.resolve().await.is_err());
        // Its zone has its names again.
        reach.places.rcu(|places| {
            let mut places = Places::clone(places);
            places.names[0].1 = "localhost:80".into();
            places
        });
        assert!(reach.resolve().await.is_err());
        assert!(reach.reached_at(lost).ip().is_loopback());
        assert_eq!((reach.endpoints()[0], reach.not_found()), (lost, vec!["never.invalid:80".to_owned()]));
        let other = ["other.invalid:80".to_owned(), names[2].clone()];
        reach.learn(&other).await;
        assert_eq!(reach.endpoints()[1], never);
        assert!(![lost, never].contains(&reach.endpoints()[0]), "what moved is known by that address");
    }
}
