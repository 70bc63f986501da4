//! The snapshot of a copy, kept over the sessions that carry it: a link that breaks or a target that restarts does not
//! cost what was copied.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use tokio::sync::OwnedMutexGuard;
use tokio_postgres::Client;

use super::{Part, TableToCopy, columns, cut, snapshot_sql, tables};
use crate::error::Error;
use crate::lsn::Lsn;
use crate::postgres::slot::USER_TABLES;
use crate::postgres::stream::ExportedSlot;
use crate::postgres::{Dsn, connect};

/// So long a snapshot waits for the next session. It holds back VACUUM, and DDL on the tables, at the source.
pub const HOLD: Duration = Duration::from_mins(10);

/// How long an older session may take to give the snapshot back.
const TAKE_OVER: Duration = Duration::from_secs(5);

/// An open transaction at the source whose snapshot others import.
pub struct Held {
    /// What keeps the tables as they are. While it stands the snapshot can be imported.
    pub(crate) locks: Locks,
    /// Its name.
    pub snapshot: String,
    /// Shows what was committed before this position, and nothing else.
    pub position: Lsn,
    /// Every table there was.
    pub tables: Vec<TableToCopy>,
    /// What is read under it, numbered by place.
    pub parts: Vec<Part>,
}

impl std::fmt::Debug for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Held")
            .field("snapshot", &self.snapshot)
            .field("position", &self.position)
            .finish_non_exhaustive()
    }
}

impl Held {
    /// Takes the snapshot over from the slot that made it, and cuts the tables that `wanted` says.
    ///
    /// Locks all tables (ACCESS SHARE) for as long as it lives: parts are ranges of blocks, and what rewrites a table moves
    /// its rows to others; what was copied before stays what it is. A table that was rewritten before the lock is an error that passes, and so is one whose columns the snapshot shows
    /// otherwise than the server has them: rows are read by the columns of now.
    pub async fn open(
        dsn: &Dsn,
        name: &str,
        exported: ExportedSlot,
        wanted: impl Fn(&TableToCopy) -> bool,
    ) -> Result<Self, Error> {
        let client = connect(dsn, name).await?;
        client
            .batch_execute(&snapshot_sql(&exported.snapshot))
            .await
            .map_err(Error::database(format!("use snapshot {}", exported.snapshot)))?;
        let position = exported.consistent_point;
        let all = tables(&client).await?;
        let before = columns(&client).await?;
        let to_copy: Vec<TableToCopy> = all.iter().filter(|table| wanted(table)).cloned().collect();
        if !all.is_empty() {
            let names: Vec<String> = all.iter().map(|table| format!("ONLY {}", table.sql_name())).collect();
            let lock = format!("LOCK TABLE {} IN ACCESS SHARE MODE", names.join(", "));
            client.batch_execute(&lock).await.map_err(Error::database("lock the tables to copy"))?;
        }
        let rewritten = client
            .query_opt(
                &format!(
                    "SELECT n.nspname || '.' || c.relname FROM pg_catalog.pg_class c \
                     JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
                     WHERE {USER_TABLES} AND c.relfilenode <> pg_catalog.pg_relation_filenode(c.oid) LIMIT 1"
                ),
                &[],
            )
            .await
            .map_err(Error::database("look for rewritten tables"))?;
        if let Some(row) = rewritten {
            return Err(Error::Link(format!(
                "table {} was rewritten while the copy began: it begins again",
                row.get::<_, &str>(0)
            )));
        }
        let columns = columns(&connect(dsn, name).await?).await?;
        let key = |table: &TableToCopy| (table.schema.clone(), table.name.clone());
        if let Some(table) = to_copy.iter().find(|table| before.get(&key(table)) != columns.get(&key(table)))
        {
            return Err(Error::Link(format!(
                "the columns of table {} changed while the copy began: it begins again",
                table.sql_name()
            )));
        }
        let row = client
            .query_one("SELECT pg_catalog.pg_export_snapshot()", &[])
            .await
            .map_err(Error::database("keep the snapshot"))?;
        drop(exported);
        Ok(Self {
            locks: Locks(Arc::new(client)),
            snapshot: row.get(0),
            position,
            tables: all,
            parts: cut(to_copy),
        })
    }
}

/// The session that has all tables locked.
#[derive(Clone, Debug)]
pub(crate) struct Locks(Arc<Client>);

impl Locks {
    /// Whether it was not ended meanwhile.
    pub(crate) async fn stand(&self) -> bool {
        self.0.batch_execute("SELECT 1").await.is_ok()
    }
}

/// A snapshot, and when it was last used.
type Place = tokio::sync::Mutex<Option<(Held, Instant)>>;

/// The snapshots of this process's copies, by slot. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Snapshots(Arc<Mutex<HashMap<String, Arc<Place>>>>);

impl Snapshots {
    /// The place of a slot's snapshot, for one session at a time; waits a little for an older one to let go.
    pub async fn lease(&self, slot: &str) -> Result<Lease, Error> {
        let place = Arc::clone(
            self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(slot.to_owned()).or_default(),
        );
        let guard = tokio::time::timeout(TAKE_OVER, Arc::clone(&place).lock_owned())
            .await
            .map_err(|_| Error::Link(format!("another session still makes the copy of {slot}")))?;
        Ok(Lease { place: Arc::downgrade(&place), guard })
    }

    /// Gives up a slot's snapshot; a session that uses it has it to its end.
    pub fn release(&self, slot: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(slot);
    }
}

/// A session's hold on a slot's snapshot; when it is dropped, what is in it waits [`HOLD`] for the next one.
#[derive(Debug)]
pub struct Lease {
    place: Weak<Place>,
    guard: OwnedMutexGuard<Option<(Held, Instant)>>,
}

impl Lease {
    /// What is there.
    pub fn held(&self) -> Option<&Held> {
        self.guard.as_ref().map(|(held, _)| held)
    }

    /// Puts a snapshot there, or ends the one that is.
    pub fn set(&mut self, held: Option<Held>) {
        *self.guard = held.map(|held| (held, crate::clock::now()));
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let Some((_, used)) = self.guard.as_mut() else { return };
        *used = crate::clock::now();
        let (place, Ok(runtime)) = (self.place.clone(), tokio::runtime::Handle::try_current()) else {
            return;
        };
        runtime.spawn(async move {
            tokio::time::sleep(HOLD).await;
            let Some(place) = place.upgrade() else { return };
            // In use, or used since: whoever did has a task like this.
            let Ok(mut place) = place.try_lock() else { return };
            if place.as_ref().is_some_and(|(_, used)| used.elapsed() >= HOLD) {
                tracing::info!("the snapshot of a copy that broke is given up");
                *place = None;
            }
        });
    }
}
