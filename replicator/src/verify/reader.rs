//! Reads both databases: the source first, then, when the stream has brought all of that, the target.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{Mutex, watch};
use tokio_postgres::{Client, SimpleQueryRow};

use super::catalog::Table;
use super::range::{Key, Pair, Range, RowMark, Side, Sum};
use super::settle::{Answer, Ask};
use super::sql;
use super::walk::{Found, Read};
use crate::error::Error;
use crate::fence::{refused, rows};
use crate::lsn::Lsn;
use crate::status::{Phase, StreamStatus};

/// The stream between the two databases.
#[async_trait]
pub trait Follower: Send + Sync {
    /// Returns when the target has applied everything up to `position`.
    async fn applied(&self, position: Lsn) -> Result<(), Error>;

    /// How far the target is behind, bytes; `None`: the stream is not up.
    fn lag(&self) -> Option<u64>;
}

#[async_trait]
impl Follower for watch::Receiver<StreamStatus> {
    async fn applied(&self, position: Lsn) -> Result<(), Error> {
        let mut status = self.clone();
        loop {
            {
                let now = status.borrow_and_update();
                if now.applied_lsn >= position {
                    return Ok(());
                }
                if let Phase::Failed { error, retrying: false } = &now.phase {
                    return Err(Error::Unready(format!("the stream failed: {error}")));
                }
            }
            status.changed().await.map_err(|_| Error::Link("the stream ended".into()))?;
        }
    }

    fn lag(&self) -> Option<u64> {
        let now = self.borrow();
        (now.phase == Phase::Streaming).then_some(now.lag_bytes)
    }
}

/// How long a commit that the target may show is awaited on the source.
const QUIET: Duration = Duration::from_secs(2);
/// How long rows may be held on the source, waiting for their lock included.
const HOLD: Duration = Duration::from_secs(1);

/// Both databases, each with a session that this has for itself.
pub(super) struct Reader<'a> {
    source: Mutex<&'a Client>,
    target: Mutex<&'a Client>,
    follower: &'a dyn Follower,
    block: u64,
    segment: u64,
    may_hold: std::sync::atomic::AtomicBool,
}

impl<'a> Reader<'a> {
    /// Prepares the sessions.
    pub(super) async fn new(
        source: &'a Client,
        target: &'a Client,
        follower: &'a dyn Follower,
        statement_timeout: Duration,
    ) -> Result<Self, Error> {
        let settings = format!(
            "{};\nSET statement_timeout = {};\nSET idle_in_transaction_session_timeout = 0",
            sql::SESSION,
            statement_timeout.as_millis().max(1)
        );
        let prepare = async |client: &Client| {
            client.batch_execute(&settings).await.map_err(refused("cannot start the verification"))
        };
        tokio::try_join!(prepare(source), prepare(target))?;
        let wal = "SELECT setting FROM pg_settings WHERE name IN ('wal_block_size', 'wal_segment_size') ORDER BY name";
        let found = rows(source.simple_query(wal).await.map_err(refused("cannot read the WAL's sizes"))?);
        let number = |place: usize| found.get(place).and_then(|row| row.get(0)?.parse().ok());
        let (Some(block), Some(segment)) = (number(0), number(1)) else {
            return Err(Error::Protocol("the WAL's sizes are not known".into()));
        };
        Ok(Self {
            source: Mutex::new(source),
            target: Mutex::new(target),
            follower,
            block,
            segment,
            may_hold: true.into(),
        })
    }

    pub(super) fn follower(&self) -> &dyn Follower {
        self.follower
    }

    pub(super) fn side(&self, side: Side) -> &Mutex<&'a Client> {
        match side {
            Side::Source => &self.source,
            Side::Target => &self.target,
        }
    }

    /// Carries out a reading of `table`; also tells how long the slower side took.
    pub(super) async fn read(&self, table: &Table, read: &Read) -> Result<(Found, Duration), Error> {
        let context = format!("cannot verify {}", table.name);
        match read {
            Read::Boundary { after, rows } => {
                let sql = sql::boundary(table, after.as_ref(), *rows);
                let keys = ask(*self.source.lock().await, &sql, &context).await?;
                Ok((Found::Boundary(keys.first().map(|row| key(row, 0, table))), Duration::ZERO))
            }
            Read::Split { range, side, rows } => {
                let sql = sql::split(table, range, *rows);
                let keys = ask(*self.side(*side).lock().await, &sql, &context).await?;
                Ok((Found::Split(keys.iter().map(|row| key(row, 0, table)).collect()), Duration::ZERO))
            }
            Read::Sums(ranges) => {
                let pairs: Vec<(&Table, &Range)> = ranges.iter().map(|range| (table, range)).collect();
                match self.sums(&pairs).await {
                    Ok((sums, took)) => Ok((Found::Sums(sums), took)),
                    Err(error) if too_slow(&error) => Ok((Found::TooSlow, Duration::ZERO)),
                    Err(error) => Err(error),
                }
            }
            Read::Rows(range) => {
                let sql = sql::list_rows(table, range);
                let (source, target) = self.both(&sql, &context).await?;
                let marks = |rows: &[SimpleQueryRow]| marks(rows, table);
                Ok((Found::Rows { source: marks(&source)?, target: marks(&target)? }, Duration::ZERO))
            }
            Read::Keys(ask) => Ok((Found::Keys(self.keys(table, ask, &context).await?), Duration::ZERO)),
        }
    }

    /// The same on both sides, the target at least as far as the source was.
    async fn both(
        &self,
        sql: &str,
        context: &str,
    ) -> Result<(Vec<SimpleQueryRow>, Vec<SimpleQueryRow>), Error> {
        let (source, position) = {
            let client = self.source.lock().await;
            let found = ask(*client, sql, context).await?;
            (found, self.position(*client).await?)
        };
        self.follower.applied(position).await?;
        Ok((source, ask(*self.target.lock().await, sql, context).await?))
    }

    /// Sums of ranges of any tables.
    pub(super) async fn sums(
        &self,
        ranges: &[(&Table, &Range)],
    ) -> Result<(Vec<(Sum, Sum)>, Duration), Error> {
        let sql = sql::sums(ranges);
        let context = match ranges {
            [(table, _), ..] => format!("cannot verify {}", table.name),
            [] => return Ok((Vec::new(), Duration::ZERO)),
        };
        let (source, position, here) = {
            let client = self.source.lock().await;
            let began = crate::clock::now();
            let found = ask(*client, &sql, &context).await?;
            (found, self.position(*client).await?, began.elapsed())
        };
        self.follower.applied(position).await?;
        let client = self.target.lock().await;
        let began = crate::clock::now();
        let target = ask(*client, &sql, &context).await?;
        let took = began.elapsed().max(here);
        let (source, target) = (numbered(&source, ranges.len())?, numbered(&target, ranges.len())?);
        Ok((source.into_iter().zip(target).collect(), took))
    }

    /// A position that covers every commit visible until now. Awaiting it never waits for WAL that nobody writes: right
    /// after a page's end the insert position is past the header of a page that does not exist yet.
    pub(super) async fn position(&self, client: &Client) -> Result<Lsn, Error> {
        let context = "cannot read the WAL position";
        let found = ask(client, "SELECT pg_current_wal_insert_lsn()", context).await?;
        let text = found.first().and_then(|row| row.get(0)).unwrap_or_default();
        let position: Lsn = text.parse().map_err(|error| Error::Protocol(format!("{context}: {error}")))?;
        Ok(end_of_page(position, self.block, self.segment))
    }

    async fn keys(&self, table: &Table, wanted: &Ask, context: &str) -> Result<Answer, Error> {
        use std::sync::atomic::Ordering;
        let decisive = self.quiet().await?;
        let hold = wanted.hold && self.may_hold.load(Ordering::Relaxed);
        let count = wanted.keys.len();
        if hold {
            match self.held(table, &wanted.keys, context).await {
                Ok(pairs) => return Ok(Answer { pairs, decisive, held: true }),
                Err(error) if error.sqlstate() == Some(INSUFFICIENT_PRIVILEGE) => {
                    self.may_hold.store(false, Ordering::Relaxed);
                }
                // The lock or the stream did not come in time: read without.
                Err(error)
                    if matches!(error.sqlstate(), Some(LOCK_NOT_AVAILABLE | QUERY_CANCELED | DEADLOCK)) => {}
                Err(Error::Unready(_)) => {}
                Err(error) => return Err(error),
            }
        }
        let (source, target) = self.both(&sql::keys(table, &wanted.keys, false), context).await?;
        Ok(Answer { pairs: pairs(&source, &target, count)?, decisive, held: false })
    }

    /// Reads the target while the source's rows cannot change.
    async fn held(&self, table: &Table, keys: &[Key], context: &str) -> Result<Vec<Pair>, Error> {
        let client = self.source.lock().await;
        let begin = format!("BEGIN; SET LOCAL lock_timeout = {}", HOLD.as_millis() / 2);
        client.batch_execute(&begin).await.map_err(refused(context))?;
        let read = async {
            let source = ask(*client, &sql::keys(table, keys, true), context).await?;
            let position = self.position(*client).await?;
            self.follower.applied(position).await?;
            let target = ask(*self.target.lock().await, &sql::keys(table, keys, false), context).await?;
            pairs(&source, &target, keys.len())
        };
        let found = tokio::time::timeout(HOLD, read).await;
        client.batch_execute("ROLLBACK").await.map_err(refused(context))?;
        found.unwrap_or_else(|_| Err(Error::Unready("the target did not follow in time".into())))
    }

    /// Waits until every transaction that runs now, and might have been sent already, is visible or gone: the stream carries
    /// a commit as soon as it is in the log, and the source shows it a moment later, or much later when it waits for a
    /// synchronous standby. False: that could not be made sure.
    ///
    /// A snapshot lists what runs below the newest transaction that has *ended*: whatever began after that runs unlisted. So one of our
    /// own is begun and ended first.
    ///
    /// A transaction that still runs after [`QUIET`] without waiting for a standby has not written its commit: between the
    /// log and visibility there is nothing to wait for.
    async fn quiet(&self) -> Result<bool, Error> {
        let context = "cannot read the running transactions";
        let running = "SELECT pg_snapshot_xip(pg_current_snapshot())";
        let client = self.source.lock().await;
        let ids = |rows: &[SimpleQueryRow]| -> Vec<u64> {
            rows.iter().filter_map(|row| row.get(0)?.parse().ok()).collect()
        };
        ask(*client, "SELECT pg_current_xact_id()", context).await?;
        let mut left = ids(&ask(*client, running, context).await?);
        let deadline = crate::clock::now() + QUIET;
        while !left.is_empty() && crate::clock::now() < deadline {
            tokio::time::sleep(Duration::from_millis(5)).await;
            let now = ids(&ask(*client, running, context).await?);
            left.retain(|id| now.contains(id));
        }
        if left.is_empty() {
            return Ok(true);
        }
        let ids: Vec<String> = left.iter().map(|id| (id & 0xFFFF_FFFF).to_string()).collect();
        let waiting = format!(
            "SELECT count(*) FROM pg_stat_activity WHERE backend_xid::text IN ('{}')
             AND (wait_event = 'SyncRep' OR state IS NULL)",
            ids.join("', '")
        );
        let found = ask(*client, &waiting, context).await?;
        Ok(found.first().and_then(|row| row.get(0)) == Some("0"))
    }

    /// Hash and text of each column of a row on both sides, and the key as the source writes it: equal keys may have
    /// different texts (1.0 and 1.00).
    pub(super) async fn columns(
        &self,
        table: &Table,
        key: &Key,
        values: bool,
    ) -> Result<(Key, [Cells; 2]), Error> {
        let sql = sql::columns(table, key, values);
        let context = format!("cannot compare a row of {}", table.name);
        let width = table.key.len().max(1);
        let read = async |side: Side| {
            let found = ask(*self.side(side).lock().await, &sql, &context).await?;
            let Some(row) = found.first() else { return Ok::<_, Error>((None, Cells::new())) };
            let text = |place: usize| row.get(width + place).map(str::to_owned);
            let cells = (0..table.columns.len()).map(|place| (text(2 * place), text(2 * place + 1)));
            Ok((Some(self::key(row, 0, table)), cells.collect()))
        };
        let ((named, source), (_, target)) = tokio::try_join!(read(Side::Source), read(Side::Target))?;
        Ok((named.unwrap_or_else(|| key.clone()), [source, target]))
    }
}

/// Hash and shown text of each column; empty: no such row.
pub(super) type Cells = Vec<(Option<String>, Option<String>)>;

pub(super) async fn ask(client: &Client, sql: &str, context: &str) -> Result<Vec<SimpleQueryRow>, Error> {
    Ok(rows(client.simple_query(sql).await.map_err(refused(context))?))
}

const INSUFFICIENT_PRIVILEGE: &str = "42501";
const LOCK_NOT_AVAILABLE: &str = "55P03";
const QUERY_CANCELED: &str = "57014";
const DEADLOCK: &str = "40P01";
const UNDEFINED_TABLE: &str = "42P01";
const UNDEFINED_COLUMN: &str = "42703";

/// The statement was cancelled by its timeout.
pub(super) fn too_slow(error: &Error) -> bool {
    error.sqlstate() == Some(QUERY_CANCELED)
}

/// The table, or a column of it, is not there (any more).
pub(super) fn gone(error: &Error) -> bool {
    matches!(error.sqlstate(), Some(UNDEFINED_TABLE | UNDEFINED_COLUMN))
}

fn end_of_page(position: Lsn, block: u64, segment: u64) -> Lsn {
    /// Page headers: at a segment's start, and elsewhere.
    const HEADERS: (u64, u64) = (40, 24);
    let within = position.0 % block.max(1);
    let header = if position.0 % segment.max(1) == within { HEADERS.0 } else { HEADERS.1 };
    if within == header { Lsn(position.0 - within) } else { position }
}

fn wrong(what: &str) -> Error {
    Error::Protocol(format!("{what} that cannot be read"))
}

fn key(row: &SimpleQueryRow, from: usize, table: &Table) -> Key {
    let columns = table.key.len().max(1);
    (from..from + columns).map(|place| row.get(place).unwrap_or_default().to_owned()).collect()
}

fn hash(text: Option<&str>) -> Option<u128> {
    u128::from_str_radix(text?, 16).ok()
}

/// Numeric sums of signed halves, reduced modulo 2^64.
fn sum(row: &SimpleQueryRow, from: usize) -> Option<Sum> {
    let half = |place: usize| Some(row.get(place)?.parse::<i128>().ok()? as u64);
    let rows = row.get(from)?.parse().ok()?;
    Some(Sum { rows, hash: u128::from(half(from + 1)?) << 64 | u128::from(half(from + 2)?) })
}

fn numbered(rows: &[SimpleQueryRow], count: usize) -> Result<Vec<Sum>, Error> {
    let mut sums = vec![None; count];
    for row in rows {
        let place = row.get(0).and_then(|text| text.parse::<usize>().ok());
        let slot = place.and_then(|place| sums.get_mut(place)).ok_or_else(|| wrong("a sum"))?;
        *slot = sum(row, 1);
    }
    sums.into_iter().collect::<Option<_>>().ok_or_else(|| wrong("a sum"))
}

/// Sums by bucket.
pub(super) fn by_bucket(rows: &[SimpleQueryRow]) -> Result<Vec<(u32, Sum)>, Error> {
    let one = |row: &SimpleQueryRow| Some((row.get(0)?.parse().ok()?, sum(row, 1)?));
    rows.iter().map(one).collect::<Option<_>>().ok_or_else(|| wrong("a bucket"))
}

/// Rows as listed: hash, version, key.
fn marks(rows: &[SimpleQueryRow], table: &Table) -> Result<BTreeMap<Key, RowMark>, Error> {
    let mut marks = BTreeMap::new();
    add_marks(&mut marks, rows, table)?;
    Ok(marks)
}

/// The same, to those that were listed before.
pub(super) fn add_marks(
    marks: &mut BTreeMap<Key, RowMark>,
    rows: &[SimpleQueryRow],
    table: &Table,
) -> Result<(), Error> {
    for row in rows {
        let mark = mark(row, 0)?;
        let key = key(row, 2, table);
        let mark = match marks.remove(&key) {
            Some(other) => other.with(mark),
            None => mark,
        };
        marks.insert(key, mark);
    }
    Ok(())
}

fn mark(row: &SimpleQueryRow, from: usize) -> Result<RowMark, Error> {
    let hash = hash(row.get(from)).ok_or_else(|| wrong("a hash"))?;
    Ok(RowMark { hash, version: row.get(from + 1).unwrap_or_default().to_owned() })
}

fn by_number(rows: &[SimpleQueryRow], count: usize) -> Result<Vec<Option<RowMark>>, Error> {
    // Versions in one order, whatever order the rows came in.
    let mut found: Vec<Vec<RowMark>> = vec![Vec::new(); count];
    for row in rows {
        let place = row.get(0).and_then(|text| text.parse::<usize>().ok());
        let slot = place.and_then(|place| found.get_mut(place)).ok_or_else(|| wrong("a key"))?;
        slot.push(mark(row, 1)?);
    }
    let join = |mut marks: Vec<RowMark>| {
        marks.sort_by(|a, b| a.version.cmp(&b.version));
        marks.into_iter().reduce(RowMark::with)
    };
    Ok(found.into_iter().map(join).collect())
}

fn pairs(source: &[SimpleQueryRow], target: &[SimpleQueryRow], count: usize) -> Result<Vec<Pair>, Error> {
    let (source, target) = (by_number(source, count)?, by_number(target, count)?);
    Ok(source.into_iter().zip(target).map(|(source, target)| Pair { source, target }).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_past_a_header_means_the_end_of_the_page_before() {
        let (block, segment) = (8192, 16 << 20);
        let end = |position: u64| end_of_page(Lsn(position), block, segment).0;
        let (page, file) = (5 * segment + 3 * block, 5 * segment);
        assert_eq!(end(page + 24), page);
        assert_eq!(end(file + 40), file);
        // Sixteen bytes of a record are on this page.
        assert_eq!(end(page + 40), page + 40);
        assert_eq!(end(page), page);
        assert_eq!(end(page + 4096), page + 4096);
    }
}
