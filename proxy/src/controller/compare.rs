//! Are both sides equal? Rows and row hashes per table.
//!
//! At a cutover both databases stand still at the end marker for a moment: a snapshot of each taken there is compared at
//! leisure after the release. After a restart those snapshots are gone, and live data is compared instead, by buckets of row
//! hashes: a bucket counts as equal when it was once, however busy its table is.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use replicator::drift;
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
    /// Tables that are not equal while the target's schema is still to follow in them, in words: what they are shows when it has.
    pub undecided: Vec<String>,
    /// Tables that the source has no more.
    pub gone: BTreeSet<String>,
}

impl Comparison {
    fn of(source: &[TableDigest], target: &[TableDigest]) -> Self {
        Self {
            tables: source.len(),
            rows: source.iter().map(|table| table.rows).sum(),
            hash: source.iter().fold(0, |sum, table| sum ^ table.hash),
            differences: verify::differences(source, target),
            ..Self::default()
        }
    }

    /// No difference was found, and nothing is undecided.
    pub fn equal(&self) -> bool {
        self.differences.is_empty() && self.undecided.is_empty()
    }

    /// This, and what was found of other tables.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        self.tables += other.tables;
        self.rows += other.rows;
        self.hash ^= other.hash;
        self.differences.extend(other.differences);
        self.undecided.extend(other.undecided);
        self.gone.extend(other.gone);
        self
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let found: Vec<&str> = self.differences.iter().chain(&self.undecided).map(String::as_str).collect();
        if found.is_empty() {
            write!(f, "{} tables, {} rows, hash {:032x} equal", self.tables, self.rows, self.hash)?;
        } else {
            write!(f, "{}", found.join("; "))?;
        }
        if !self.gone.is_empty() {
            let gone: Vec<&str> = self.gone.iter().map(String::as_str).collect();
            write!(f, " (left out, since they are gone: {})", gone.join(", "))?;
        }
        Ok(())
    }
}

/// Fixes what `client` sees.
pub async fn begin(client: &Client) -> Result<(), String> {
    verify::begin_snapshot(client).await.map_err(chain)
}

/// Compares two snapshots that [`begin`] fixed, and names the tables that one of them cannot tell any more, since they were dropped, emptied or
/// renamed after it: those are left to [`live`].
pub async fn snapshots(source: &Client, target: &Client) -> Result<(Comparison, BTreeSet<String>), String> {
    let (source, target) = tokio::join!(verify::digest_snapshot(source), verify::digest_snapshot(target));
    let (mut source, mut target) = (source.map_err(chain)?, target.map_err(chain)?);
    let lost = &source.lost | &target.lost;
    for side in [&mut source.tables, &mut target.tables] {
        side.retain(|digest| !lost.contains(&digest.table));
    }
    Ok((Comparison::of(&source.tables, &target.tables), lost))
}

/// Compares live data, of all tables or `only` some: reads the source, waits until the target has applied that much (`caught_up`), reads the
/// target; again while buckets differ, since rows may have moved in between. Before it is looked for the last time, `follows` says in which
/// tables and types the target's schema is still to follow the source's, and in what.
pub async fn live<F, D>(
    [source, target]: [&Client; 2],
    only: Option<&BTreeSet<String>>,
    caught_up: impl Fn() -> F,
    follows: impl Fn() -> D,
) -> Result<Comparison, String>
where
    F: Future<Output = Result<(), String>>,
    D: Future<Output = Result<BTreeMap<String, String>, String>>,
{
    let mut looks = Looks::default();
    let mut following = BTreeMap::new();
    for look in 1..=TRIES {
        let open = looks.open_tables();
        let these = open.as_ref().or(only);
        if look == TRIES {
            // Before the look: whatever it has followed in until then is seen by that.
            following = with_tables(source, follows().await?).await?;
        }
        let from = verify::buckets(source, these).await.map_err(chain)?;
        caught_up().await?;
        let to = verify::buckets(target, these).await.map_err(chain)?;
        looks.take(&from, &to);
        if looks.open.is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let mut found = looks.comparison(&following);
    // What nobody has any more is not seen at all.
    let seen = |table: &&String| !looks.seen.contains_key(*table) && !looks.open.contains_key(*table);
    found.gone.extend(only.into_iter().flatten().filter(seen).cloned());
    Ok(found)
}

/// Where a type is still to follow, the tables with columns of it are.
async fn with_tables(
    source: &Client,
    mut following: BTreeMap<String, String>,
) -> Result<BTreeMap<String, String>, String> {
    let subjects: Vec<&str> = following.keys().map(String::as_str).collect();
    let tables = drift::tables_of(source, &subjects).await.map_err(chain)?;
    for (table, of) in tables {
        if let Some(why) = following.get(&of).map(|why| format!("{of}: {why}")) {
            following.entry(table).or_insert(why);
        }
    }
    Ok(following)
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
    /// The target does not have it.
    Missing,
    /// The source does not have it.
    Extra,
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
                None => Open::Missing,
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
            self.open.insert(other.table.clone(), Open::Extra);
        }
    }

    fn comparison(&self, following: &BTreeMap<String, String>) -> Comparison {
        let mut found = Comparison {
            tables: self.seen.len(),
            rows: self.seen.values().map(|(rows, _)| rows).sum(),
            hash: self.seen.values().fold(0, |sum, (_, hash)| sum ^ hash),
            ..Comparison::default()
        };
        for (table, open) in &self.open {
            let what = match open {
                Open::Buckets(buckets) => {
                    format!("{} of 4096 buckets of rows were equal in none of {TRIES} looks", buckets.len())
                }
                Open::Missing => "missing on the target".into(),
                Open::Extra => "only on the target".into(),
            };
            match (open, following.get(table)) {
                (Open::Extra, Some(_)) => {
                    found.gone.insert(table.clone());
                }
                (_, Some(why)) => {
                    found.undecided.push(format!("{table}: {what}, and the schema is to follow: {why}"));
                }
                (_, None) => found.differences.push(format!("{table}: {what}")),
            }
        }
        found
    }
}
