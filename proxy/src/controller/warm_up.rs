//! The shadow's database is made ready for its first clients, before anybody is held.

use std::time::Duration;

use migration::cutover::State;
use migration::policy::{Caches, MaterializedViews, OnDrainTimeout, Policy};
use migration::units::Zone;
use replicator::{caches, drift, fence, statistics, views};
use tokio_postgres::Client;

use super::databases::Purpose;
use super::draining::longest;
use super::effects::{Failure, Hands};
use crate::causes::chain;
use crate::clock;
use crate::lock::lock;

/// How long caches are filled at most.
const CACHES: Duration = Duration::from_mins(5);
/// What is left of the step's time for everything after them.
const REST: Duration = Duration::from_secs(30);
/// How long what stands in the fence's way is awaited at most, and how often it is looked at.
const WAY: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(100);
/// What a block holds of the servers that people run, in KiB; only told.
const BLOCK: i64 = 8;

/// What is done, in a plan's words.
pub(super) fn words(policy: &Policy) -> String {
    let mut steps = Vec::new();
    if policy.materialized_views == MaterializedViews::Refresh {
        steps.push("refresh its materialized views");
    }
    steps.push("ANALYZE its database");
    if policy.caches == Caches::Fill {
        steps.push("fill its caches");
    }
    steps.join(", ")
}

impl Hands {
    /// Until no transaction is open that a hold would wait for in vain. What began shortly before may end in time; it is the drain's.
    pub(super) async fn clear_way(&self, primary: &Zone) -> Result<(), Failure> {
        let client = self.control(primary).await?;
        let policy = self.policy();
        let patience = policy.drain_timeout.min(WAY);
        let deadline = clock::monotonic() + patience;
        loop {
            // Those of its own clients the front waits for, or ends.
            let ours = self.postgres.as_ref().map(|front| front.processes(&primary.0)).unwrap_or_default();
            let awaited = policy.on_drain_timeout == OnDrainTimeout::Abort;
            let found = fence::in_the_way(&client, longest(&policy), &ours, awaited).await.map_err(chain)?;
            if found.is_empty() {
                return Ok(());
            }
            if clock::monotonic() > deadline {
                return Err(format!(
                    "{primary} cannot be fenced, and nobody was held for it: {}",
                    found.join("; ")
                ));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    pub(super) async fn warm_up(&self, zone: &Zone, state: &State) -> Result<(), Failure> {
        let client = self.databases.take(&zone.0, Purpose::WarmUp).await.map_err(chain)?;
        let primary = self.control(&state.primary).await?;
        let policy = self.policy();
        // Under the hold only what comes since then is left.
        self.large_objects.carry([&state.primary.0, &zone.0], state.generation.0).await?;
        if policy.materialized_views == MaterializedViews::Refresh {
            self.refresh_views(&client, zone, state).await?;
        }
        // The planner must not meet them with the statistics of an empty table.
        for error in
            statistics::renew(&client).await.map_err(|error| format!("in {zone}: {}", chain(error)))?
        {
            tracing::warn!(resource = %self.resource.name, %zone, error = chain(error), "a table is without new statistics");
        }
        if policy.caches == Caches::Fill {
            // The last, so that nothing takes them again. A cold cache is slow and not wrong: it ends no migration.
            let within = self.left(state).map_or(CACHES, |left| CACHES.min(left));
            let resource = &self.resource.name;
            match caches::fill(&primary, &client, within).await {
                Ok(Some(filled)) => {
                    let [mib, left_mib] = [filled.blocks, filled.left].map(|blocks| blocks * BLOCK / 1024);
                    tracing::info!(%resource, %zone, mib, left_mib, "caches are filled");
                }
                Ok(None) => {
                    tracing::info!(%resource, %zone, "caches are left: the database has no pg_prewarm");
                }
                Err(error) => tracing::warn!(%resource, %zone, why = chain(error), "caches are not filled"),
            }
        }
        Ok(())
    }

    /// Of the step's time, but for what comes after what takes long; none: it has no end.
    fn left(&self, state: &State) -> Option<Duration> {
        Some(state.deadline()?.since(lock(&self.steady).now()).saturating_sub(REST))
    }

    /// The shadow's materialized views show what the primary has now, or more.
    async fn refresh_views(&self, shadow: &Client, zone: &Zone, state: &State) -> Result<(), Failure> {
        let told = |error: replicator::Error| format!("in {zone}: {}", chain(error));
        let primary = self.databases.take(&state.primary.0, Purpose::WarmUp).await.map_err(chain)?;
        let filled = views::filled(&primary).await.map_err(told)?;
        if filled.is_empty() {
            return Ok(());
        }
        let comes_up = async {
            // An idle primary has something to bring then, too.
            drift::mark(&primary).await.map_err(chain)?;
            self.streams.caught_up(state.generation, &primary).await
        };
        let came_up = match self.left(state) {
            Some(left) => tokio::time::timeout(left, comes_up)
                .await
                .unwrap_or_else(|_| Err(format!("it has not within {} s", left.as_secs()))),
            None => comes_up.await,
        };
        let from = &state.primary;
        came_up.map_err(|why| {
            format!("in {zone}: materialized views wait for what {from} had when the move began: {why}")
        })?;
        let views = views::refresh(shadow, &filled).await.map_err(told)?;
        if views > 0 {
            tracing::info!(resource = %self.resource.name, %zone, views, "materialized views are refreshed");
        }
        Ok(())
    }
}
