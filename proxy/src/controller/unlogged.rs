//! Unlogged tables of a database that is about to move: what the policy wants of them is done right before the hold, and under it once more where
//! their rows are to be the same.

use std::sync::{Arc, Mutex};

use migration::policy::{Policy, UnloggedTables};
use replicator::beside::Sides;
use replicator::unlogged::{self, Table, Unlogged};

use super::databases::{Databases, Purpose};
use super::live::Live;
use crate::clock;
use crate::lock::lock;

/// As the replicator knows it.
pub(super) fn wanted(tables: UnloggedTables) -> Unlogged {
    match tables {
        UnloggedTables::Refuse => Unlogged::Refused,
        UnloggedTables::Empty => Unlogged::Emptied,
        UnloggedTables::Carry => Unlogged::Carried,
    }
}

/// What is done with them, in a plan's words.
pub(super) fn words(policy: &Policy) -> &'static str {
    match policy.unlogged {
        UnloggedTables::Refuse => "",
        UnloggedTables::Empty => ", empty its unlogged tables",
        UnloggedTables::Carry => ", bring its unlogged tables up, and once more under the hold",
    }
}

/// Carries those of one resource, or empties them.
pub struct UnloggedRows {
    live: Arc<Live>,
    databases: Arc<Databases>,
    /// The stream's generation, and what is to be carried under the hold.
    left: Mutex<Option<(u64, Vec<Table>)>>,
}

impl UnloggedRows {
    /// None is known yet.
    pub fn new(live: Arc<Live>, databases: Arc<Databases>) -> Self {
        Self { live, databases, left: Mutex::default() }
    }

    /// Right before the hold, when both schemas are the same: the shadow's are emptied, or have what the primary's have at this
    /// moment. Fails where that takes longer than a hold may, since it is done once more then.
    pub async fn prepare(&self, zones: [&str; 2], generation: u64) -> Result<(), String> {
        *lock(&self.left) = None;
        let (wanted, hold) = {
            let live = self.live.load();
            (live.policy.unlogged, live.policy.max_hold)
        };
        if wanted == UnloggedTables::Refuse {
            return Ok(());
        }
        let rows = wanted == UnloggedTables::Carry;
        let tables = self
            .databases
            .beside(zones, generation, Purpose::Control, async |sides| unlogged::tables(sides, rows).await)
            .await?;
        if !rows {
            return self
                .databases
                .beside(zones, generation, Purpose::Control, async |sides| {
                    unlogged::empty(sides, &tables).await
                })
                .await;
        }
        let began = clock::monotonic();
        self.databases
            .beside(zones, generation, Purpose::Control, async |sides| unlogged::carry(sides, &tables).await)
            .await?;
        let took = clock::monotonic().saturating_duration_since(began);
        if took > hold / 2 {
            return Err(format!(
                "to carry the rows of unlogged tables takes {} ms, more than half of limits.max_hold ({} ms)",
                took.as_millis(),
                hold.as_millis()
            ));
        }
        *lock(&self.left) = Some((generation, tables));
        Ok(())
    }

    /// Under the hold, when nobody writes any more.
    pub async fn settle(&self, zones: [&str; 2], generation: u64) -> Result<(), String> {
        let left = lock(&self.left).take().filter(|(of, tables)| *of == generation && !tables.is_empty());
        let Some((_, tables)) = left else { return Ok(()) };
        let carry = async |sides: Sides<'_>| unlogged::carry(sides, &tables).await;
        let rows = self.databases.beside(zones, generation, Purpose::Control, carry).await?;
        tracing::debug!(resource = %self.live.load().name, rows, "unlogged tables are carried");
        Ok(())
    }
}
