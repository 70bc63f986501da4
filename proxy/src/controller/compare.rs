//! Are both sides equal? Rows and row hashes per table.
//!
//! At a cutover both databases stand still at the end marker for a moment: a snapshot of each taken there is compared at
//! leisure after the release. After a restart those snapshots are gone, and live data is compared instead, by buckets of row
//! hashes: a bucket counts as equal when it was once, however busy its table is.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use replicator::verify::{self, TableBuckets, TableDigest};
use tokio_postgres::Client;

use crate::causes::chain;

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
/// again while buckets differ, since rows may have moved in between.
pub async fn live<F>(
    source: &Client,
    target: &Client,
    caught_up: impl Fn() -> F,
) -> Result<Comparison, String>
where
    F: Future<Output = Result<(), String>>,
{
    let mut looks = Looks::default();
    for _ in 0..TRIES {
        let only = looks.open_tables();
        let from = verify::buckets(source, only.as_ref()).await.map_err(chain)?;
        caught_up().await?;
        let to = verify::buckets(target, only.as_ref()).await.map_err(chain)?;
        looks.take(&from, &to);
        if looks.open.is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(looks.comparison())
}

/// What looks at live data have found so far.
#[derive(Default)]
struct Looks {
    /// Rows and hash of each table of the source, as last seen.
    seen: BTreeMap<String, (u64, u128)>,
    /// Tables that are not equal yet, and why.
    open: BTreeMap<String, Open>,
}

enum Open {
    /// These buckets differed in every look.
    Buckets(BTreeSet<u16>),
    /// In words.
    OneSide(&'static str),
}

impl Looks {
    /// The tables to look at next; none: all of them.
    fn open_tables(&self) -> Option<BTreeSet<String>> {
        (!self.open.is_empty()).then(|| self.open.keys().cloned().collect())
    }

    /// Takes in one look at both sides.
    fn take(&mut self, source: &[TableBuckets], target: &[TableBuckets]) {
        let before = std::mem::take(&mut self.open);
        for one in source {
            self.seen.insert(one.table.clone(), (one.rows(), one.hash()));
            let open = match target.iter().find(|other| other.table == one.table) {
                None => Open::OneSide("missing on the target"),
                Some(other) => {
                    let mut buckets = one.differing(other);
                    if let Some(Open::Buckets(differed)) = before.get(&one.table) {
                        buckets.retain(|bucket| differed.contains(bucket));
                    }
                    if buckets.is_empty() {
                        continue;
                    }
                    Open::Buckets(buckets)
                }
            };
            self.open.insert(one.table.clone(), open);
        }
        for other in target.iter().filter(|other| source.iter().all(|one| one.table != other.table)) {
            self.open.insert(other.table.clone(), Open::OneSide("only on the target"));
        }
    }

    fn comparison(&self) -> Comparison {
        let line = |(table, open): (&String, &Open)| match open {
            Open::Buckets(buckets) => {
                format!(
                    "{table}: {} of 4096 buckets of rows were equal in none of {TRIES} looks",
                    buckets.len()
                )
            }
            Open::OneSide(why) => format!("{table}: {why}"),
        };
        Comparison {
            tables: self.seen.len(),
            rows: self.seen.values().map(|(rows, _)| rows).sum(),
            hash: self.seen.values().fold(0, |sum, (_, hash)| sum ^ hash),
            differences: self.open.iter().map(line).collect(),
        }
    }
}
