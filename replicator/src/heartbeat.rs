//! One row, written and committed on the primary: how long does a write take there?
//!
//! The row is Godwit's own (`godwit.heartbeat`), which no publication carries, no copy takes along and no comparison looks at. Whether
//! it may be written is for the database to say, in the statement that writes: it holds the epoch row meanwhile, so a fence
//! either comes before, and nothing is written, or waits for this commit. Where the fence is being closed or opened the
//! heartbeat waits for nobody: it is left out.
//!
//! Never installs anything, never waits for another zone (whatever replication mode: the connection of [`crate::postgres::connect`]
//! commits locally), never lifts a read-only setting.

use std::fmt;
use std::time::Duration;

use tokio_postgres::{Client, SimpleQueryMessage};

use crate::error::Error;
use crate::fence::{self, literal, refused, sql_generation};

/// Nobody holds the row but a heartbeat that has not ended: a second one gives up after this.
const LOCK_TIMEOUT: Duration = Duration::from_millis(250);

/// What became of a heartbeat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Beat {
    /// Written and committed.
    Written,
    /// Nothing was written.
    Refused(Refusal),
}

/// Why nothing was written. Shown, it is a lower-case phrase for the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// There is no such resource in this database, or Godwit has not been there since it knows heartbeats.
    NotInstalled,
    /// The database is fenced.
    Fenced {
        /// Of its epoch row.
        generation: u64,
    },
    /// Who asks is of an older generation than the database.
    Older {
        /// Of its epoch row.
        generation: u64,
    },
    /// It takes no writes: a standby, or set so.
    ReadOnly,
    /// The fence is being closed or opened.
    Busy,
    /// The heartbeat before this one has not ended.
    Waiting,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotInstalled => f.write_str("Godwit has prepared no stream in this database yet"),
            Self::Fenced { generation } => write!(f, "the database is fenced: generation {generation}"),
            Self::Older { generation } => {
                write!(f, "the database is at generation {generation} already: another node leads")
            }
            Self::ReadOnly => f.write_str("the database is read-only"),
            Self::Busy => f.write_str("the fence is being closed or opened"),
            Self::Waiting => f.write_str("the heartbeat before has not ended"),
        }
    }
}

/// Writes the row of `resource` for a node at `generation`. One round trip, and one commit where nothing forbids it; a second
/// round trip to say what forbids it.
///
/// `client` must come from [`crate::postgres::connect`] or `connect_apart`, and be [`prepare`]d.
///
/// Not cancel-safe in one respect: the server goes on when the future is dropped. The next heartbeat then is
/// [`Refusal::Waiting`] until it has ended, so they never pile up.
pub async fn beat(client: &Client, resource: &str, generation: u64) -> Result<Beat, Error> {
    let context = "cannot write the heartbeat";
    let sql = format!(
        "WITH allowed AS MATERIALIZED (\
           SELECT e.resource FROM godwit.epoch e \
           WHERE e.resource = {resource} AND e.generation <= {generation} AND NOT e.fenced FOR SHARE SKIP LOCKED) \
         INSERT INTO godwit.heartbeat AS h (resource, generation, beats, at) \
         SELECT a.resource, {generation}, 1, pg_catalog.clock_timestamp() FROM allowed a \
         ON CONFLICT (resource) DO UPDATE \
         SET generation = EXCLUDED.generation, beats = h.beats + 1, at = EXCLUDED.at",
        resource = literal(resource),
        generation = sql_generation(generation)?,
    );
    let refusal = match client.simple_query(&sql).await {
        Ok(messages)
            if messages.iter().any(|message| matches!(message, SimpleQueryMessage::CommandComplete(1))) =>
        {
            return Ok(Beat::Written);
        }
        Ok(_) => reason(client, resource, generation).await?,
        Err(error) => match error.code().map(tokio_postgres::error::SqlState::code) {
            // No such table or schema.
            Some("42P01" | "3F000") => Refusal::NotInstalled,
            // Read-only transaction, and the same in a standby's words.
            Some("25006") => Refusal::ReadOnly,
            Some("55P03") => Refusal::Waiting,
            _ => return Err(refused(context)(error)),
        },
    };
    Ok(Beat::Refused(refusal))
}

/// Makes a new connection's heartbeats give up where one before has not ended. One round trip.
pub async fn prepare(client: &Client) -> Result<(), Error> {
    let sql = format!("SET lock_timeout = {}", LOCK_TIMEOUT.as_millis());
    client.batch_execute(&sql).await.map_err(refused("cannot prepare the session"))
}

async fn reason(client: &Client, resource: &str, mine: u64) -> Result<Refusal, Error> {
    Ok(match fence::state(client, resource).await? {
        None => Refusal::NotInstalled,
        Some(epoch) if epoch.fenced => Refusal::Fenced { generation: epoch.generation },
        Some(epoch) if epoch.generation > mine => Refusal::Older { generation: epoch.generation },
        Some(_) => Refusal::Busy,
    })
}
