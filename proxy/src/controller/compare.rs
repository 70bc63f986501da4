//! Are both sides equal? Rows and row hashes per table.
//!
//! At a cutover both databases stand still at the end marker for a moment: a snapshot of each taken there is compared at
//! leisure after the release. After a restart those snapshots are gone, and live data is compared instead: a table
//! counts as equal when it was once.

use std::fmt;
use std::time::Duration;

use replicator::verify::{self, TableDigest};
use tokio_postgres::Client;

use super::effects::chain;

/// How often live data is looked at before a difference counts.
const TRIES: u32 = 10;

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Comparison {
    /// Tables on the source side.
    pub tables: usize,
    /// Rows on the source side.
    pub rows: u64,
    /// Combined hash of all tables' hashes.
    pub hash: u128,
    /// Every table that is not equal, in words.
    pub differences: Vec<String>,
}

impl Comparison {
    fn of(source: &[TableDigest], target: &[TableDigest]) -> Self {
        Self {
            tables: source.len(),
            rows: source.iter().map(|table| table.rows).sum(),
            hash: source.iter().fold(0, |sum, table| sum ^ table.hash),
            differences: verify::differences(source, target),
        }
    }

    /// No difference was found.
    pub fn equal(&self) -> bool {
        self.differences.is_empty()
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.equal() {
            write!(f, "{} tables, {} rows, hash {:032x} equal", self.tables, self.rows, self.hash)
        } else {
            write!(f, "{}", self.differences.join("; "))
        }
    }
}

/// Fixes what `client` sees.
pub async fn begin(client: &Client) -> Result<(), String> {
    verify::begin_snapshot(client).await.map_err(chain)
}

/// Compares two snapshots that [`begin`] fixed.
pub async fn snapshots(source: &Client, target: &Client) -> Result<Comparison, String> {
    let (source, target) = tokio::join!(verify::digest_snapshot(source), verify::digest_snapshot(target));
    Ok(Comparison::of(&source.map_err(chain)?, &target.map_err(chain)?))
}

/// Compares live data: reads the source, waits until the target has applied that much (`caught_up`), reads the target;
/// again while tables differ, since they may have moved in between.
pub async fn live<F>(
    source: &Client,
    target: &Client,
    caught_up: impl Fn() -> F,
) -> Result<Comparison, String>
where
    F: Future<Output = Result<(), String>>,
{
    let mut equal: Vec<String> = Vec::new();
    let mut last = Comparison::default();
    for _ in 0..TRIES {
        let from = verify::digest(source).await.map_err(chain)?;
        caught_up().await?;
        let to = verify::digest(target).await.map_err(chain)?;
        last = Comparison::of(&from, &to);
        for table in &from {
            if to.contains(table) && !equal.contains(&table.table) {
                equal.push(table.table.clone());
            }
        }
        last.differences.retain(|line| !equal.iter().any(|table| line.starts_with(&format!("{table}:"))));
        if last.equal() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(last)
}
