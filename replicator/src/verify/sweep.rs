//! A whole table in one snapshot per side, in buckets: for tables without a key, and for keys that the sides sort differently.
//!
//! Pages are read in short statements inside one transaction, so that it can be slowed down and ended; its snapshot holds back
//! vacuum for as long as it takes. Rows of buckets that differ are listed, and their keys settled as anywhere.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio_postgres::Client;

use super::catalog::Table;
use super::range::{Key, RowMark, Side, Sum};
use super::reader::{Reader, ask, by_bucket, marks};
use super::run::Brakes;
use super::sql;
use crate::error::Error;
use crate::fence::refused;

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
/// Buckets listed at once.
const LISTED: usize = 256;

pub(super) async fn sweep(reader: &Reader<'_>, table: &Table, brakes: &Brakes<'_>) -> Result<Swept, Error> {
    let context = format!("cannot verify {}", table.name);
    let count = (table.rows / BUCKET_ROWS).clamp(1, MAX_BUCKETS) as u32;
    let (source, position) = {
        let client = reader.side(Side::Source).lock().await;
        let sums = in_snapshot(*client, table, count, brakes, &context, async |client| {
            reader.position(client).await
        });
        sums.await?
    };
    reader.follower().applied(position).await?;
    let (target, ()) = {
        let client = reader.side(Side::Target).lock().await;
        in_snapshot(*client, table, count, brakes, &context, async |_| Ok(())).await?
    };
    let rows = source.values().map(|sum| sum.rows).sum();
    let numbers: BTreeSet<u32> = source.keys().chain(target.keys()).copied().collect();
    let differ: Vec<u32> =
        numbers.into_iter().filter(|number| source.get(number) != target.get(number)).collect();
    let mut keys = BTreeSet::new();
    for some in differ.chunks(LISTED) {
        let (here, there) = reader.both(&sql::list_buckets(table, count, some), &context).await?;
        let (here, there) = (marks(&here, table)?, marks(&there, table)?);
        keys.extend(different(&here, &there));
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

async fn in_snapshot<T>(
    client: &Client,
    table: &Table,
    count: u32,
    brakes: &Brakes<'_>,
    context: &str,
    then: impl AsyncFnOnce(&Client) -> Result<T, Error>,
) -> Result<(BTreeMap<u32, Sum>, T), Error> {
    let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SELECT 1 FROM pg_class LIMIT 1";
    client.batch_execute(begin).await.map_err(refused(context))?;
    let read = async {
        // The position first: the snapshot is older.
        let then = then(client).await?;
        Ok((pages(client, table, count, brakes, context).await?, then))
    };
    let result = read.await;
    client.batch_execute("ROLLBACK").await.map_err(refused(context))?;
    result
}

async fn pages(
    client: &Client,
    table: &Table,
    count: u32,
    brakes: &Brakes<'_>,
    context: &str,
) -> Result<BTreeMap<u32, Sum>, Error> {
    let mut sums: BTreeMap<u32, Sum> = BTreeMap::new();
    let mut from = 0;
    let mut step = 64;
    loop {
        // The last statement has no end: the table may have grown.
        let until = (from + step < table.pages).then_some(from + step);
        let began = crate::clock::now();
        let found = by_bucket(&ask(client, &sql::buckets(table, count, from, until), context).await?)?;
        let took = began.elapsed();
        let rows: u64 = found.iter().map(|(_, sum)| sum.rows).sum();
        for (number, sum) in found {
            let total = sums.entry(number).or_default();
            *total = total.plus(sum);
        }
        let Some(until) = until else { return Ok(sums) };
        from = until;
        let ratio = brakes.pace().statement.as_secs_f64() / took.max(Duration::from_millis(1)).as_secs_f64();
        step = ((step as f64 * ratio.clamp(0.25, 2.0)) as u64).clamp(8, 16_384);
        // Inside a transaction: shorter rests, no pause.
        tokio::time::sleep(brakes.pace().rest(rows, took)).await;
    }
}
