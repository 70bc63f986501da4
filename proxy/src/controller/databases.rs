//! Control connections: one per zone and purpose, kept open so that a hold never waits for a handshake.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use replicator::Error;
use replicator::beside::Sides;
use replicator::postgres::{connect_unhurried, connect_unseen};
use tokio::sync::Mutex;
use tokio_postgres::Client;

use super::live::Live;
use crate::causes::chain;
use crate::clock;
use crate::config::model::Database;

/// What a connection is for; each has its own, so that one long statement does not hold up the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Purpose {
    /// Short statements.
    Control,
    /// Whether the database is ready for a move.
    Examine,
    /// Only the fence: whoever undoes one ends this session first.
    Fence,
    /// The snapshot at the end marker.
    Snapshot,
    /// Which commits wait for the shadow.
    Mode,
    /// A verification of live data.
    Verify,
    /// What the schema is.
    Schema,
    /// What makes a shadow ready for its first clients.
    WarmUp,
    /// What is carried beside the stream.
    LargeObjects,
}

impl Purpose {
    /// What the server shows in `pg_stat_activity`.
    pub fn application_name(self) -> &'static str {
        match self {
            Self::Control => "godwit-control",
            Self::Examine => "godwit-examine",
            Self::Fence => "godwit-fence",
            Self::Snapshot => "godwit-snapshot",
            Self::Mode => "godwit-mode",
            Self::Verify => "godwit-verify",
            Self::Schema => "godwit-schema",
            Self::WarmUp => "godwit-warm-up",
            Self::LargeObjects => "godwit-large-objects",
        }
    }

    /// Ends other sessions of Godwit that serve this, and waits until they are gone.
    pub(crate) async fn end_sessions(self, client: &Client) -> Result<(), String> {
        let name = self.application_name();
        let deadline = clock::monotonic() + Duration::from_secs(5);
        loop {
            let left: i64 = client
                .query_one(
                    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                     WHERE application_name = $1 AND datname = current_database() AND pid <> pg_backend_pid()",
                    &[&name],
                )
                .await
                .map_err(|error| format!("cannot end the sessions of {name}: {error}"))?
                .get(0);
            if left == 0 {
                return Ok(());
            }
            if clock::monotonic() > deadline {
                return Err(format!("{left} sessions of {name} do not end"));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// The databases of one resource.
pub struct Databases {
    live: Arc<Live>,
    open: Mutex<BTreeMap<(String, Purpose), Arc<Client>>>,
}

impl Databases {
    /// Connects to none yet.
    pub fn new(live: Arc<Live>) -> Self {
        Self { live, open: Mutex::default() }
    }

    /// The settings of a zone's database.
    pub fn settings(&self, zone: &str) -> Result<Database, Error> {
        let resource = self.live.load();
        let placement = resource.placements.get(zone);
        placement.and_then(|placement| placement.postgres.clone()).ok_or_else(|| {
            let provided = placement.is_some_and(|placement| placement.provided.postgres);
            Error::Unready(if provided {
                format!("the driver has not said yet where the database in {zone} is")
            } else {
                format!("zone {zone} has no database in the configuration")
            })
        })
    }

    /// The open connection, or a new one.
    pub async fn get(&self, zone: &str, purpose: Purpose) -> Result<Arc<Client>, Error> {
        let settings = self.settings(zone)?;
        let key = (zone.to_owned(), purpose);
        if let Some(client) = self.open.lock().await.get(&key)
            && !client.is_closed()
        {
            return Ok(client.clone());
        }
        // Not under the lock: a zone that does not answer must not hold up the others.
        let (dsn, name) = (&settings.dsn, purpose.application_name());
        let client = if purpose == Purpose::Schema {
            // It also reads what sessions begin with.
            connect_unhurried(dsn, name).await?
        } else {
            connect_unseen(dsn, name).await?
        };
        let client = Arc::new(client);
        self.open.lock().await.insert(key, client.clone());
        Ok(client)
    }

    /// The open connections to two zones, or new ones.
    pub async fn both(&self, [one, other]: [&str; 2], purpose: Purpose) -> Result<[Arc<Client>; 2], Error> {
        let (one, other) = tokio::try_join!(self.get(one, purpose), self.get(other, purpose))?;
        Ok([one, other])
    }

    /// Does something beside the stream of a generation: from the first zone's database to the second's, the shadow's.
    pub(super) async fn beside<T>(
        &self,
        zones: [&str; 2],
        generation: u64,
        purpose: Purpose,
        what: impl AsyncFnOnce(Sides<'_>) -> Result<T, Error>,
    ) -> Result<T, String> {
        let [source, shadow] = self.both(zones, purpose).await.map_err(chain)?;
        let live = self.live.load();
        let sides = Sides { source: &source, shadow: &shadow, resource: &live.name, generation };
        what(sides).await.map_err(chain)
    }

    /// Forgets a connection, so that the next `get` makes a new one.
    pub async fn forget(&self, zone: &str, purpose: Purpose) {
        self.open.lock().await.remove(&(zone.to_owned(), purpose));
    }

    /// Forgets the connections to a zone's database: it is another one now.
    pub async fn forget_zone(&self, zone: &str) {
        self.open.lock().await.retain(|(of, _), _| of != zone);
    }

    /// Forgets every connection.
    pub async fn forget_all(&self) {
        self.open.lock().await.clear();
    }

    /// Gives back a connection that was taken, as it was.
    pub async fn keep(&self, zone: &str, purpose: Purpose, client: Arc<Client>) {
        self.open.lock().await.insert((zone.to_owned(), purpose), client);
    }

    /// Takes a connection for oneself.
    pub async fn take(&self, zone: &str, purpose: Purpose) -> Result<Arc<Client>, Error> {
        let client = self.get(zone, purpose).await?;
        self.forget(zone, purpose).await;
        Ok(client)
    }
}
