//! What a resource is now: the configuration, with what the API changed and what its drivers said of where it is.
//!
//! One snapshot that is replaced as a whole. Who needs several facts that belong together loads it once.

use std::sync::Arc;

use arc_swap::ArcSwap;
use replicator::postgres::{Dsn, Tls};
use tokio::sync::watch;

use crate::config::model::{Database, Placement, Resource};
use crate::drivers::Endpoint;
use crate::feeds::external::Secret;

/// A resource's settings of this moment.
pub struct Live {
    /// The resource's name, which never changes.
    pub name: String,
    settings: ArcSwap<Resource>,
    changes: watch::Sender<u64>,
}

impl Live {
    /// As the configuration has it.
    pub fn new(resource: Resource) -> Arc<Self> {
        Arc::new(Self {
            name: resource.name.clone(),
            settings: ArcSwap::from_pointee(resource),
            changes: watch::Sender::default(),
        })
    }

    /// The settings now.
    pub fn load(&self) -> Arc<Resource> {
        self.settings.load_full()
    }

    /// Puts others in their place; what drivers said of placements that leave it to them stays.
    pub fn replace(&self, resource: &Resource) {
        self.settings.rcu(|old| {
            let mut next = resource.clone();
            for (zone, placement) in &mut next.placements {
                if let Some(known) = old.placements.get(zone) {
                    keep(placement, known);
                }
            }
            next
        });
        self.changes.send_modify(|count| *count += 1);
    }

    /// Told of each change.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// What the driver of the placement in `zone` says of where it is; only what the configuration leaves to it counts.
    /// False: nothing is new.
    pub fn learn(&self, zone: &str, endpoint: &Endpoint, password: Option<&Secret>) -> Result<bool, String> {
        let before = self.load();
        let placement =
            before.placements.get(zone).ok_or_else(|| format!("there is no placement in {zone}"))?;
        let mut learned = placement.clone();
        if learned.provided.http && !endpoint.http.is_empty() {
            learned.http.clone_from(&endpoint.http);
        }
        if let (true, Some(text)) = (learned.provided.postgres, &endpoint.dsn) {
            let primary = before.placements.values().find_map(|other| {
                other.postgres.as_ref().filter(|_| other.zone != zone && !other.provided.postgres)
            });
            learned.postgres = Some(database(text, primary, password)?);
        }
        let same_database = match (&learned.postgres, &placement.postgres) {
            (Some(new), Some(old)) => new.dsn == old.dsn,
            (new, old) => new.is_some() == old.is_some(),
        };
        if learned.http == placement.http && same_database {
            return Ok(false);
        }
        self.settings.rcu(|old| {
            let mut next = Resource::clone(old);
            next.placements.insert(zone.to_owned(), learned.clone());
            next
        });
        self.changes.send_modify(|count| *count += 1);
        Ok(true)
    }
}

fn keep(placement: &mut Placement, known: &Placement) {
    if placement.provided.http && placement.http.is_empty() {
        placement.http.clone_from(&known.http);
    }
    if placement.provided.postgres && placement.postgres.is_none() {
        placement.postgres.clone_from(&known.postgres);
    }
}

/// The driver's database: what its connection string leaves out is as in the primary's placement.
fn database(text: &str, primary: Option<&Database>, password: Option<&Secret>) -> Result<Database, String> {
    let mut dsn: Dsn = text.parse().map_err(|_| "the driver's dsn is not a connection string".to_owned())?;
    let inherited = primary.and_then(|database| database.dsn.get_password());
    match (password, inherited) {
        (Some(password), _) => {
            dsn.password(&password.0);
        }
        (None, Some(password)) => {
            dsn.password(password);
        }
        (None, None) => {}
    }
    if dsn.tls == Tls::default()
        && let Some(primary) = primary
    {
        dsn.tls = primary.dsn.tls.clone();
    }
    Ok(Database {
        dsn,
        bin: primary.and_then(|database| database.bin.clone()),
        app_roles: primary.map(|database| database.app_roles.clone()).unwrap_or_default(),
        heartbeat: primary.is_none_or(|database| database.heartbeat),
    })
}
