//! From fine to medium to coarse, and away with what is older than its time.
//!
//! A bucket is made once it is over and what belongs to it has been written; each is made whole from the finer ones, so
//! making it again changes nothing. What comes late opens its bucket again.

use hdrhistogram::Histogram;
use migration::units::Timestamp;
use rusqlite::{Connection, OptionalExtension, params};

use super::store::{Store, decode, encode, merged, put_histogram};
use super::tier::Resolution;

/// How long after its end a bucket is made: the last 10 s histogram of it must have been written.
const GRACE_MS: u64 = 15_000;

/// How much a resolution is shortened at once; it is done every few minutes.
const AT_ONCE_MS: u64 = 3_600_000;

impl Store {
    /// Makes every bucket that is over.
    pub(super) fn roll_up(&mut self, now: Timestamp) -> rusqlite::Result<()> {
        let mut over = now.0.saturating_sub(GRACE_MS);
        for (fine, coarse) in
            [(Resolution::Fine, Resolution::Medium), (Resolution::Medium, Resolution::Coarse)]
        {
            let until = coarse.begin(over);
            let transaction = self.connection.transaction()?;
            let from = match rolled(&transaction, coarse)? {
                Some(from) => Some(from),
                None => oldest(&transaction, fine)?.map(|at| coarse.begin(at)),
            };
            if let Some(from) = from.filter(|from| *from < until) {
                values(&transaction, (fine, coarse), from, until)?;
                histograms(&transaction, (fine, coarse), from, until)?;
                transaction
                    .prepare_cached("INSERT OR REPLACE INTO rolled (tier, until_ms) VALUES (?, ?)")?
                    .execute(params![coarse.number(), until])?;
            }
            // The next one is made of what there is of this one.
            over = from.map_or(0, |from| from.max(until));
            transaction.commit()?;
        }
        Ok(())
    }

    /// Forgets what is older than its time, and no more than so much of it at once: a clock that is ahead for a while must not
    /// empty the file.
    pub(super) fn prune(&mut self, now: Timestamp) -> rusqlite::Result<()> {
        let transaction = self.connection.transaction()?;
        for (tier, pruned) in Resolution::ALL.into_iter().zip(&mut self.pruned) {
            let Some(first) = oldest(&transaction, tier)? else { continue };
            let reached = pruned.unwrap_or(0).max(first).saturating_add(AT_ONCE_MS);
            let oldest = self.retention.oldest(tier, now).min(reached);
            *pruned = Some(oldest);
            for table in ["value", "latency"] {
                let delete = format!(
                    "DELETE FROM {table} WHERE series IN (SELECT id FROM series) AND tier = ? AND at_ms < ?"
                );
                transaction.prepare_cached(&delete)?.execute(params![tier.number(), oldest])?;
            }
        }
        transaction.commit()
    }
}

/// Something of `at_ms` was written: what was made of that time is made again.
pub(super) fn reopen(connection: &Connection, at_ms: u64) -> rusqlite::Result<()> {
    for tier in [Resolution::Medium, Resolution::Coarse] {
        connection
            .prepare_cached("UPDATE rolled SET until_ms = ?2 WHERE tier = ?1 AND until_ms > ?2")?
            .execute(params![tier.number(), i64::try_from(tier.begin(at_ms)).unwrap_or(i64::MAX)])?;
    }
    Ok(())
}

/// Up to where `tier` was made.
pub(super) fn rolled(connection: &Connection, tier: Resolution) -> rusqlite::Result<Option<u64>> {
    connection
        .prepare_cached("SELECT until_ms FROM rolled WHERE tier = ?")?
        .query_row([tier.number()], |row| row.get(0))
        .optional()
}

fn oldest(connection: &Connection, tier: Resolution) -> rusqlite::Result<Option<u64>> {
    let of = |table: &str| {
        let select = format!(
            "SELECT min((SELECT min(at_ms) FROM {table} WHERE {table}.series = series.id AND tier = ?)) FROM series"
        );
        connection.query_row(&select, [tier.number()], |row| row.get::<_, Option<u64>>(0))
    };
    Ok([of("value")?, of("latency")?].into_iter().flatten().min())
}

fn values(
    connection: &Connection,
    (fine, coarse): (Resolution, Resolution),
    from: u64,
    until: u64,
) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "INSERT OR REPLACE INTO value (series, tier, at_ms, samples, total, low, high)
             SELECT v.series, ?1, v.at_ms / ?2 * ?2, sum(v.samples), sum(v.total),
               min(coalesce(v.low, v.total)), max(coalesce(v.high, v.total))
             FROM series CROSS JOIN value AS v ON v.series = series.id
             WHERE v.tier = ?3 AND v.at_ms >= ?4 AND v.at_ms < ?5
             GROUP BY v.series, v.at_ms / ?2",
        )?
        .execute(params![coarse.number(), coarse.bucket_ms(), fine.number(), from, until])
        .map(drop)
}

fn histograms(
    connection: &Connection,
    (fine, coarse): (Resolution, Resolution),
    from: u64,
    until: u64,
) -> rusqlite::Result<()> {
    let mut select = connection.prepare_cached(
        "SELECT l.series, l.at_ms / ?2 * ?2, l.histogram
         FROM series CROSS JOIN latency AS l ON l.series = series.id
         WHERE l.tier = ?1 AND l.at_ms >= ?3 AND l.at_ms < ?4 ORDER BY l.series, l.at_ms",
    )?;
    let mut rows = select.query(params![fine.number(), coarse.bucket_ms(), from, until])?;
    let mut open: Option<(i64, u64, Histogram<u64>)> = None;
    let put = |open: Option<(i64, u64, Histogram<u64>)>| match open {
        Some((series, at, sum)) => put_histogram(connection, series, coarse, at, &encode(&sum)),
        None => Ok(()),
    };
    while let Some(row) = rows.next()? {
        let (series, at): (i64, u64) = (row.get(0)?, row.get(1)?);
        // What is no histogram counts for nothing.
        let Some(part) = row.get_ref(2)?.as_blob().ok().and_then(decode) else { continue };
        match &mut open {
            Some((of, begun, sum)) if (*of, *begun) == (series, at) => {
                let _ = sum.add(&part);
            }
            _ => put(open.replace((series, at, merged([&part]))))?,
        }
    }
    put(open)
}
