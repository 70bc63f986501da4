//! The way to other zones, measured here: pings, traces, and what the replication link's transport knows.
//!
//! What was measured goes on as JSON by zone, like what other services say: its age, its staleness, its place on the board
//! and in the history are those of any feed. A zone that cannot be measured is left out, and so is unknown.
//!
//! | module | what |
//! |---|---|
//! | `icmp` | echoes as bytes, and their socket |
//! | `ping` | round trip and loss; by TCP where ICMP is not allowed |
//! | `trace` | the routers on the way, and when they changed |
//! | `link` | round trip and loss of the QUIC link |

mod icmp;
mod link;
mod ping;
mod trace;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};

use migration::units::Timestamp;
use serde_json::{Map, Value, json};
use tokio::task::JoinSet;

use super::{Fetched, Reach, Validators};
use crate::causes::chain;
use crate::clock;
use crate::feeds::external::egress::Egress;
use crate::feeds::external::{Failure, Reason};
use crate::lock::lock;

/// A host in a zone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// The zone.
    pub zone: String,
    /// Name or address.
    pub name: String,
    /// For TCP, where ICMP is not allowed.
    pub port: u16,
}

/// How the way is measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum How {
    /// Echoes to hosts.
    Ping(Vec<Host>),
    /// The routers on the way to hosts.
    Trace(Vec<Host>),
    /// Links of this node to zones.
    Link(Vec<String>),
}

impl How {
    /// The key in files.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Ping(_) => "ping",
            Self::Trace(_) => "trace",
            Self::Link(_) => "link",
        }
    }

    /// Where to.
    pub fn place(&self) -> String {
        match self {
            Self::Ping(hosts) | Self::Trace(hosts) => {
                hosts.iter().map(|host| host.name.as_str()).collect::<Vec<_>>().join(", ")
            }
            Self::Link(zones) => format!("to {}", zones.join(", ")),
        }
    }
}

/// A way that is measured again and again.
#[derive(Clone, Debug)]
pub struct Measured {
    /// How.
    pub how: How,
    memory: Arc<Mutex<Memory>>,
}

/// What earlier runs found, by zone.
#[derive(Debug, Default)]
struct Memory {
    lost: BTreeMap<String, ping::Lately>,
    /// With the address that they lead to: those of a host are several services, with a way each.
    ways: BTreeMap<String, (IpAddr, trace::Known)>,
    links: BTreeMap<String, link::Seen>,
}

impl Memory {
    /// Takes a way to `to` as it was seen. The way to another address than before is another one from the beginning.
    fn way(&mut self, zone: &str, to: IpAddr, way: trace::Way, now: Timestamp) -> &trace::Known {
        match self.ways.get_mut(zone) {
            Some((before, known)) if *before == to => known.see(way, now),
            _ => drop(self.ways.insert(zone.to_owned(), (to, trace::Known::first(way, now)))),
        }
        &self.ways[zone].1
    }
}

impl Measured {
    /// Nothing is measured yet.
    pub fn new(how: How) -> Self {
        Self { how, memory: Arc::default() }
    }

    /// Measures every zone once.
    pub(super) async fn run(&self, reach: &Reach) -> Result<Fetched, Failure> {
        let results = match &self.how {
            How::Ping(hosts) => self.pings(hosts, &reach.egress).await,
            How::Trace(hosts) => self.traces(hosts, &reach.egress).await,
            How::Link(zones) => self.links(zones, reach).await,
        };
        let (mut found, mut failed) = (Map::new(), Vec::new());
        for (zone, result) in results {
            match result {
                Ok(value) => drop(found.insert(zone, value)),
                Err((reason, why)) => failed.push((reason, format!("{zone}: {why}"))),
            }
        }
        if found.is_empty() {
            let reason = failed.first().map_or(Reason::Connect, |(reason, _)| *reason);
            let why: Vec<String> = failed.into_iter().map(|(_, why)| why).collect();
            return Err(Failure::source(reason, why.join("; ")));
        }
        let bytes = Value::Object(found).to_string().into_bytes();
        Ok(Fetched::Bytes { bytes, at: None, validators: Validators::default() })
    }

    async fn pings(&self, hosts: &[Host], egress: &Egress) -> Vec<(String, Outcome)> {
        let runs = each(hosts, egress, &BTreeMap::new(), |to, port| async move {
            ping::run(to, port).await.map_err(|error| (Reason::Connect, chain(&error)))
        })
        .await;
        let remembered = |(zone, run): (String, Result<ping::Run, Why>)| {
            let value = run.map(|run| {
                let loss = self.remember(|memory| {
                    let lately = memory.lost.entry(zone.clone()).or_default();
                    lately.share(run.sent.into(), run.lost.into())
                });
                let why = run.tcp.then(|| {
                    format!(
                        "ICMP is not allowed to Godwit, so TCP connections are timed: {}",
                        icmp::ALLOW_PING
                    )
                });
                json!({ "rtt_ms": run.rtt.map(ms), "loss": loss, "tcp": run.tcp, "why": why })
            });
            (zone, value)
        };
        runs.into_iter().map(remembered).collect()
    }

    async fn traces(&self, hosts: &[Host], egress: &Egress) -> Vec<(String, Outcome)> {
        let before = self.remember(|memory| {
            memory.ways.iter().map(|(zone, (to, _))| (zone.clone(), *to)).collect::<BTreeMap<_, _>>()
        });
        let runs = each(hosts, egress, &before, |to, _| async move {
            trace::run(to).await.map(|way| (to, way)).map_err(|error| {
                let allow =
                    if ping::not_allowed(&error) { format!("; {}", icmp::ALLOW) } else { String::new() };
                (Reason::Connect, format!("the way to {to} cannot be traced: {}{allow}", chain(&error)))
            })
        })
        .await;
        let now = clock::now();
        let remembered = |(zone, run): (String, Result<(IpAddr, trace::Way), Why>)| {
            let value = run.and_then(|(to, way)| {
                if way.hops.is_empty() {
                    return Err((Reason::Timeout, "no router on the way answers".into()));
                }
                Ok(self.remember(|memory| described(memory.way(&zone, to, way, now), now)))
            });
            (zone, value)
        };
        runs.into_iter().map(remembered).collect()
    }

    async fn links(&self, zones: &[String], reach: &Reach) -> Vec<(String, Outcome)> {
        let mut found = Vec::with_capacity(zones.len());
        for zone in zones {
            let outcome = match link::read(zone, reach).await {
                Ok(open) => {
                    let (rtt, loss) =
                        self.remember(|memory| memory.links.entry(zone.clone()).or_default().take(&open));
                    Ok(json!({ "rtt_ms": rtt.map(ms), "loss": loss }))
                }
                Err(why) => Err((Reason::Connect, why)),
            };
            found.push((zone.clone(), outcome));
        }
        found
    }

    fn remember<T>(&self, change: impl FnOnce(&mut Memory) -> T) -> T {
        change(&mut lock(&self.memory))
    }
}

/// Why a zone was not measured.
type Why = (Reason, String);
type Outcome = Result<Value, Why>;

/// Runs `measure` on the first address of each host that may be asked, or on that of its zone in `before` while it is one of them, all at once;
/// in the order of `hosts`.
async fn each<T: Send + 'static, F: Future<Output = Result<T, Why>> + Send + 'static>(
    hosts: &[Host],
    egress: &Egress,
    before: &BTreeMap<String, IpAddr>,
    measure: impl Fn(IpAddr, u16) -> F + Clone + Send + 'static,
) -> Vec<(String, Result<T, Why>)> {
    let mut tasks = JoinSet::new();
    for (place, host) in hosts.iter().cloned().enumerate() {
        let (egress, measure) = (egress.clone(), measure.clone());
        let before = before.get(&host.zone).copied();
        tasks.spawn(async move {
            let result = match address(&host, &egress, before).await {
                Ok(to) => measure(to, host.port).await,
                Err(why) => Err(why),
            };
            (place, host.zone, result)
        });
    }
    let mut done: Vec<_> = tasks.join_all().await;
    done.sort_by_key(|(place, ..)| *place);
    done.into_iter().map(|(_, zone, result)| (zone, result)).collect()
}

async fn address(host: &Host, egress: &Egress, before: Option<IpAddr>) -> Result<IpAddr, Why> {
    egress.named(&host.name, host.name.parse().ok()).map_err(|why| (Reason::Egress, why))?;
    let found = tokio::net::lookup_host((host.name.as_str(), host.port))
        .await
        .map_err(|error| (Reason::Connect, format!("cannot look up {}: {}", host.name, chain(&error))))?;
    let (mut allowed, mut refused) = (Vec::new(), None);
    for address in found.map(|found| found.ip()) {
        match egress.address(address) {
            Ok(()) => allowed.push(address),
            Err(why) => refused = Some(why),
        }
    }
    chosen(&allowed, before).ok_or_else(|| match refused {
        Some(why) => (Reason::Egress, format!("{}: {why}", host.name)),
        None => (Reason::Connect, format!("{} has no address", host.name)),
    })
}

/// Servers give a host's addresses in another order each time.
fn chosen(addresses: &[IpAddr], before: Option<IpAddr>) -> Option<IpAddr> {
    before.filter(|before| addresses.contains(before)).or_else(|| addresses.first().copied())
}

fn described(known: &trace::Known, now: Timestamp) -> Value {
    let shown = |hop: Option<IpAddr>| hop.map_or_else(|| "silence".to_owned(), |hop| hop.to_string());
    let change =
        known.change().map(|(hop, old, new)| format!("hop {hop}: {}, before {}", shown(new), shown(old)));
    json!({
        "hops": known.way.hops.len(),
        "way": known.way.hops.iter().map(|hop| hop.map(|hop| hop.to_string())).collect::<Vec<_>>(),
        "reached": known.way.reached,
        "age_s": now.since(known.since).as_secs_f64(),
        "since": known.since.0 as f64 / 1000.0,
        "change": change,
    })
}

fn ms(span: std::time::Duration) -> f64 {
    // Whole microseconds: more would be noise.
    span.as_micros() as f64 / 1000.0
}

#[cfg(test)]
mod tests;
