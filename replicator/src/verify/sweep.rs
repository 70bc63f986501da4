//! A whole table in one snapshot per side, in buckets: for tables without a key, and for keys that the sides sort differently.
//!
//! Pages are read in short statements inside one transaction, so that it can be slowed down and ended; its snapshot holds back
//! vacuum for as long as it takes. Rows of buckets that differ are listed, and their keys settled as anywhere.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio_postgres::{Client, SimpleQueryRow};

use super::catalog::Table;
use super::range::{Key, RowMark, Side, Sum};
use super::reader::{Reader, add_marks, ask, by_bucket, too_slow};
use super::run::Brakes;
use super::sql;
use crate::error::Error;
use crate::fence::{literal, refused};
use crate::lsn::Lsn;

/// What a sweep found.
pub(super) struct Swept {
    /// Rows of the source.
    pub(super) rows: u64,
    /// Keys to settle.
    pub(super) keys: BTreeSet<Key>,
}

/// Rows of a bucket that is listed.
const BUCKET_ROWS: u64 = 1_000;
const MAX_BUCKETS: u64 = 65_536;
/// Buckets listed at once: each time the whole table is read.
const LISTED: usize = 256;

/// What is read of the pages.
#[derive(Clone, Copy)]
enum What<'a> {
    /// Sums of the buckets.
    Sums,
    /// Every row of these buckets.
    Rows(&'a [u32]),
}

/// What they have.
#[derive(Default)]
struct Seen {
    sums: BTreeMap<u32, Sum>,
    marks: BTreeMap<Key, RowMark>,
}

impl Seen {
    /// Takes what was read of some pages; how many rows that was.
    fn take(&mut self, rows: &[SimpleQueryRow], what: What<'_>, table: &Table) -> Result<u64, Error> {
        if let What::Rows(_) = what {
            add_marks(&mut self.marks, rows, table)?;
            return Ok(rows.len() as u64);
        }
        let found = by_bucket(rows)?;
        let counted = found.iter().map(|(_, sum)| sum.rows).sum();
        for (number, sum) in found {
            let total = self.sums.entry(number).or_default();
            *total = total.plus(sum);
        }
        Ok(counted)
    }
}

/// A sweep of one table.
struct Sweep<'a, 'c> {
    reader: &'a Reader<'c>,
    table: &'a Table,
    brakes: &'a Brakes<'a>,
    /// Buckets.
    count: u32,
    context: String,
}

pub(super) async fn sweep(reader: &Reader<'_>, table: &Table, brakes: &Brakes<'_>) -> Result<Swept, Error> {
    let context = format!("cannot verify {}", table.name);
    let count = (table.rows / BUCKET_ROWS).clamp(1, MAX_BUCKETS) as u32;
    let sweep = Sweep { reader, table, brakes, count, context };
    let (source, target) = sweep.both(What::Sums).await?;
    let (source, target) = (source.sums, target.sums);
    let rows = source.values().map(|sum| sum.rows).sum();
    let numbers: BTreeSet<u32> = source.keys().chain(target.keys()).copied().collect();
    let differ: Vec<u32> =
        numbers.into_iter().filter(|number| source.get(number) != target.get(number)).collect();
    let mut keys = BTreeSet::new();
    for some in differ.chunks(LISTED) {
        let (here, there) = sweep.both(What::Rows(some)).await?;
        keys.extend(different(&here.marks, &there.marks));
    }
    Ok(Swept { rows, keys })
}

fn different(here: &BTreeMap<Key, RowMark>, there: &BTreeMap<Key, RowMark>) -> Vec<Key> {
    let hash = |row: Option<&RowMark>| row.map(|row| row.hash);
    here.keys()
        .chain(there.keys().filter(|key| !here.contains_key(*key)))
        .filter(|key| hash(here.get(*key)) != hash(there.get(*key)))
        .cloned()
        .collect()
}

impl Sweep<'_, '_> {
    /// The source, and the target when it has all of that.
    async fn both(&self, what: What<'_>) -> Result<(Seen, Seen), Error> {
        let (source, position) = {
            let client = self.reader.side(Side::Source).lock().await;
            self.in_snapshot(*client, what, async |client| self.reader.position(client).await).await?
        };
        self.reader.follower().applied(position).await?;
        let client = self.reader.side(Side::Target).lock().await;
        let (target, _) = self.in_snapshot(*client, what, async |_| Ok(Lsn::ZERO)).await?;
        Ok((source, target))
    }

    async fn in_snapshot(
        &self,
        client: &Client,
        what: What<'_>,
        position: impl AsyncFnOnce(&Client) -> Result<Lsn, Error>,
    ) -> Result<(Seen, Lsn), Error> {
        // What takes too long is asked again of fewer pages, in the same snapshot.
        let begin =
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SELECT 1 FROM pg_class LIMIT 1; SAVEPOINT page";
        client.batch_execute(begin).await.map_err(refused(&self.context))?;
        let read = async {
            // The position first: the snapshot is older.
            let position = position(client).await?;
            Ok((self.pages(client, what).await?, position))
        };
        let result = read.await;
        client.batch_execute("ROLLBACK").await.map_err(refused(&self.context))?;
        result
    }

    async fn pages(&self, client: &Client, what: What<'_>) -> Result<Seen, Error> {
        let Self { table, brakes, count, context, .. } = self;
        let mut seen = Seen::default();
        let (mut from, mut step, mut end) = (0, 64, table.pages);
        loop {
            // The last statement has no end: the table may have grown.
            let until = (from + step < end).then_some(from + step);
            let sql = match what {
                What::Sums => sql::buckets(table, *count, from, until),
                What::Rows(wanted) => sql::list_buckets(table, *count, wanted, from, until),
            };
            let began = crate::clock::now();
            let found = match ask(client, &sql, context).await {
                Err(error) if too_slow(&error) && step > 1 => {
                    client.batch_execute("ROLLBACK TO SAVEPOINT page").await.map_err(refused(context))?;
                    if until.is_none() {
                        end = end.max(self.counted(client).await?);
                    }
                    step = (step / 4).max(1);
                    continue;
                }
                found => found?,
            };
            let took = began.elapsed();
            let rows = seen.take(&found, what, table)?;
            let Some(until) = until else { return Ok(seen) };
            from = until;
            let ratio =
                brakes.pace().statement.as_secs_f64() / took.max(Duration::from_millis(1)).as_secs_f64();
            step = ((step as f64 * ratio.clamp(0.25, 2.0)) as u64).clamp(1, 16_384);
            // Inside a transaction: shorter rests, no pause.
            tokio::time::sleep(brakes.pace().rest(rows, took)).await;
        }
    }

    /// Pages of the table by now.
    async fn counted(&self, client: &Client) -> Result<u64, Error> {
        let name = literal(&self.table.name);
        let sql =
            format!("SELECT pg_relation_size({name}::regclass) / current_setting('block_size')::bigint");
        let found = ask(client, &sql, &self.context).await?;
        Ok(found.first().and_then(|row| row.get(0)?.parse().ok()).unwrap_or_default())
    }
}
