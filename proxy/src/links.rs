//! Where the halves of a stream run: both here over a memory link, or one on a node of the other zone over QUIC.

mod certificates;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use migration::policy::Policy;
use replicator::Error;
use replicator::copy::{CopyOptions, Snapshots};
use replicator::link::quic::{Connector, Listener};
use replicator::link::{Peer, memory};
use replicator::pump::{self, Answer, LocalEnd, LocalPeer, StreamSpec};
use replicator::spill::Spill;
use replicator::status::StreamStatus;
use replicator::wire::{Hello, Role};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::certificates::{Renewal, Written};
use crate::causes::chain;
use crate::config::model::{Config, Database, Zone};
use crate::controller::databases::Databases;
use crate::lock::lock;

/// The links of this node.
pub struct Links {
    /// Nodes of other zones, by zone.
    peers: BTreeMap<String, Arc<Connector>>,
    /// When the files of the certificates had been written, from before they were read.
    written: Written,
    spill: Spill,
    /// Of initial copies.
    snapshots: Snapshots,
}

impl Links {
    /// Opens no connection yet. Needs a tokio runtime.
    pub fn new(config: &Config) -> Result<Self> {
        let written = config.node.link.as_ref().map(certificates::written).unwrap_or_default();
        let mut peers = BTreeMap::new();
        for (zone, settings) in &config.zones {
            let (Some(address), Some(node), Some(own)) = (&settings.link, &settings.node, &config.node.link)
            else {
                continue;
            };
            if *zone != config.node.zone {
                let connector = Connector::new(&certificates::read(own)?, address, node)
                    .with_context(|| format!("link to zone {zone}"))?;
                peers.insert(zone.clone(), Arc::new(connector));
            }
        }
        Ok(Self { peers, written, spill: config.node.spill.clone(), snapshots: Snapshots::default() })
    }

    /// What opens links to the node of `zone`, if there is one.
    pub fn connector(&self, zone: &str) -> Option<&Arc<Connector>> {
        self.peers.get(zone)
    }

    /// How an initial copy is made by this policy.
    pub fn copying(&self, policy: &Policy) -> CopyOptions {
        copying(policy, &self.snapshots)
    }

    /// Keeps a stream running until told to stop; an error means it must not run again under its generation.
    pub async fn run(
        &self,
        databases: &Databases,
        spec: &StreamSpec,
        copy: &CopyOptions,
        publish: &watch::Sender<StreamStatus>,
        stop: &CancellationToken,
    ) -> Result<(), Error> {
        let source = || {
            let database = databases.settings(&spec.source_zone)?;
            Ok::<_, Error>(source_end(&database, self.spill.clone(), copy.clone()))
        };
        let target = || databases.settings(&spec.target_zone).map(|database| target_end(&database));
        match (self.peers.get(&spec.source_zone), self.peers.get(&spec.target_zone)) {
            (None, Some(peer)) => pump::maintain(&**peer, spec, &source()?, publish, stop).await,
            (Some(peer), None) => pump::maintain(&**peer, spec, &target()?, publish, stop).await,
            (None, None) => {
                let peer = LocalPeer::new(target()?, memory::Options::default());
                pump::maintain(&*peer, spec, &source()?, publish, stop).await
            }
            (Some(_), Some(_)) => Err(Error::Unready(format!(
                "neither {} nor {} is this node's own zone: a stream needs one end here",
                spec.source_zone, spec.target_zone
            ))),
        }
    }

    /// Answers nodes of other zones: applies what they push, streams what they pull. Binds at once.
    pub fn listen(&self, config: &Config, tasks: &TaskTracker, stop: &CancellationToken) -> Result<()> {
        let Some(link) = &config.node.link else { return Ok(()) };
        let names: Vec<String> = config.zones.values().flat_map(Zone::nodes).cloned().collect();
        let identity = certificates::read(link)?;
        identity.shown_as(&config.node.name).context("node.link.tls does not fit this node")?;
        let listener = Listener::bind(&identity, link.listen, &names)
            .with_context(|| format!("cannot listen on {} (node.link.listen)", link.listen))?;
        let renewal = Renewal {
            link: link.clone(),
            node: config.node.name.clone(),
            connectors: self.peers.values().cloned().collect(),
            listener: listener.clone(),
            seen: self.written,
        };
        tasks.spawn(stop.clone().run_until_cancelled_owned(renewal.run()));
        let local = Arc::new(Local::new(config, &self.snapshots));
        let (tasks, stop) = (tasks.clone(), stop.clone());
        tasks.clone().spawn(async move {
            while let Some(incoming) =
                tokio::select! { incoming = listener.accept() => incoming, () = stop.cancelled() => None }
            {
                let local = local.clone();
                tasks.spawn(stop.clone().run_until_cancelled_owned(async move {
                    match incoming.finish().await {
                        Ok(Some(link)) => {
                            let served =
                                pump::serve_link(Box::new(link), |hello, peer| local.answer(hello, peer))
                                    .await;
                            if let Err(error) = served {
                                tracing::warn!(error = chain(error), "stream of another node ended");
                            }
                        }
                        // Only the way was measured.
                        Ok(None) => {}
                        Err(error) => tracing::warn!(error = chain(error), "link refused"),
                    }
                }));
            }
            listener.close();
        });
        Ok(())
    }
}

/// What this node's zone has to offer to others.
struct Local {
    zone: String,
    /// The nodes of each zone that has any.
    nodes: BTreeMap<String, Vec<String>>,
    /// By resource: its database here, and how it is copied from there.
    databases: HashMap<String, (Database, CopyOptions)>,
    spill: Spill,
    /// The newest session of each stream: a peer that dials again has lost the older one.
    sessions: Mutex<HashMap<String, CancellationToken>>,
}

impl Local {
    fn new(config: &Config, snapshots: &Snapshots) -> Self {
        let databases = config
            .resources
            .values()
            .filter_map(|resource| {
                let placement = resource.placements.get(&config.node.zone)?;
                let database = placement.postgres.clone()?;
                Some((resource.name.clone(), (database, copying(&resource.policy, snapshots))))
            })
            .collect();
        let nodes = |(zone, settings): (&String, &Zone)| (zone.clone(), settings.nodes().cloned().collect());

        Self {
            zone: config.node.zone.clone(),
            nodes: config.zones.iter().map(nodes).collect(),
            databases,
            spill: config.node.spill.clone(),
            sessions: Mutex::default(),
        }
    }

    fn answer(&self, hello: &Hello, peer: Option<&Peer>) -> Result<Answer, String> {
        let spec = &hello.spec;
        if let Some(peer) = peer {
            let theirs = if hello.role == Role::Push { &spec.source_zone } else { &spec.target_zone };
            let nodes = self.nodes.get(theirs).map_or(&[][..], Vec::as_slice);
            if nodes.is_empty() {
                return Err(format!("zone {theirs} has no node here (zones.{theirs}.node)"));
            }
            if !nodes.iter().any(|node| node.eq_ignore_ascii_case(&peer.name)) {
                return Err(format!("the node of {theirs} is {}, not {}", nodes.join(" or "), peer.name));
            }
        }
        let (database, copy) = self
            .databases
            .get(&spec.resource)
            .ok_or_else(|| {
                let (resource, zone) = (&spec.resource, &self.zone);
                format!(
                    "resource {resource} has no database in {zone} here: this node knows what its own files said when it started \
                     (resources.{resource}.placements.{zone}.postgres), not what another reserved"
                )
            })?;
        let (end, zone) = match hello.role {
            Role::Push => (target_end(database), &spec.target_zone),
            Role::Pull => (source_end(database, self.spill.clone(), copy.clone()), &spec.source_zone),
        };
        if *zone != self.zone {
            return Err(format!("this node is in {}, not in {zone}", self.zone));
        }
        let cancel = CancellationToken::new();
        let older = lock(&self.sessions).insert(spec.slot.clone(), cancel.clone());
        if let Some(older) = older {
            older.cancel();
        }
        Ok(Answer { end, status: watch::Sender::new(StreamStatus::default()), cancel })
    }
}

fn copying(policy: &Policy, snapshots: &Snapshots) -> CopyOptions {
    CopyOptions {
        sessions: policy.copy_sessions,
        bytes_per_second: policy.copy_rate.map(|rate| rate.0),
        snapshots: snapshots.clone(),
    }
}

fn source_end(database: &Database, spill: Spill, copy: CopyOptions) -> LocalEnd {
    LocalEnd::Source { dsn: database.dsn.clone(), bin: database.bin.clone(), spill, copy }
}

fn target_end(database: &Database) -> LocalEnd {
    LocalEnd::Target { dsn: database.dsn.clone() }
}

#[cfg(test)]
mod tests;
