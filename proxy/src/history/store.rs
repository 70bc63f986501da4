//! The file: schema, opening, writing.
//!
//! WAL with `synchronous = NORMAL`: a power cut may cost the last moments, never the file. Values lie ordered by series,
//! resolution and time, so that whatever reads one series reads neighbours.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Deserializer, Serializer, V2Serializer};
use migration::units::Timestamp;
use rusqlite::{Connection, ErrorCode, OptionalExtension, Transaction, params};

use super::tier::{Resolution, Retention};
use super::{Bucket, Entry, HistoryError, Step, series};

/// Marks the file as ours: `GdwH`.
const APPLICATION: i32 = 0x4764_7748;
/// The format of the file.
const VERSION: i32 = 1;

const SCHEMA: &str = "
BEGIN;
CREATE TABLE series (
  id INTEGER PRIMARY KEY,
  resource TEXT NOT NULL,
  name TEXT NOT NULL,
  zone TEXT NOT NULL,
  UNIQUE (resource, name, zone)
) STRICT;
-- low and high are NULL where there was one sample only.
CREATE TABLE value (
  series INTEGER NOT NULL,
  tier INTEGER NOT NULL,
  at_ms INTEGER NOT NULL,
  samples INTEGER NOT NULL,
  total REAL NOT NULL,
  low REAL,
  high REAL,
  PRIMARY KEY (series, tier, at_ms)
) STRICT, WITHOUT ROWID;
-- histogram: microseconds, HdrHistogram V2.
CREATE TABLE latency (
  series INTEGER NOT NULL,
  tier INTEGER NOT NULL,
  at_ms INTEGER NOT NULL,
  histogram BLOB NOT NULL,
  PRIMARY KEY (series, tier, at_ms)
) STRICT, WITHOUT ROWID;
-- The length of a resource's steps from a moment on.
CREATE TABLE pace (
  resource TEXT NOT NULL,
  from_ms INTEGER NOT NULL,
  step_ms INTEGER NOT NULL,
  PRIMARY KEY (resource, from_ms)
) STRICT, WITHOUT ROWID;
-- Up to where a resolution was made from the finer one.
CREATE TABLE rolled (tier INTEGER PRIMARY KEY, until_ms INTEGER NOT NULL) STRICT;
PRAGMA application_id = 1197766472;
PRAGMA user_version = 1;
COMMIT;
";

/// The open file.
pub(super) struct Store {
    pub(super) connection: Connection,
    pub(super) retention: Retention,
    /// Up to where each resolution was pruned last.
    pub(super) pruned: [Option<u64>; 3],
    ids: HashMap<(String, String, String), i64>,
    paces: HashMap<String, u64>,
}

/// Why a file cannot be used.
enum Unusable {
    Database(rusqlite::Error),
    Foreign(String),
}

impl From<rusqlite::Error> for Unusable {
    fn from(error: rusqlite::Error) -> Self {
        if damaged(&error) { Self::Foreign(error.to_string()) } else { Self::Database(error) }
    }
}

/// The file itself is wrong: trying again will not help.
pub(super) fn damaged(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt))
}

impl Store {
    /// Opens or creates `path`. A file that is damaged, foreign or of another version is moved aside, with a warning.
    pub(super) fn open(path: &Path, retention: Retention, now: Timestamp) -> Result<Self, HistoryError> {
        match prepare(path) {
            Ok(connection) => Ok(Self::on(connection, retention)),
            Err(Unusable::Database(source)) => Err(HistoryError::Database { path: path.to_owned(), source }),
            Err(Unusable::Foreign(why)) => Self::replace(path, &why, retention, now),
        }
    }

    /// Moves the file aside, because of `why`, and begins a new one. Nobody may have it open for writing.
    pub(super) fn replace(
        path: &Path,
        why: &str,
        retention: Retention,
        now: Timestamp,
    ) -> Result<Self, HistoryError> {
        let aside = move_aside(path, now).map_err(|source| HistoryError::NotAside {
            path: path.to_owned(),
            why: why.to_owned(),
            source,
        })?;
        tracing::warn!(
            path = %path.display(), moved_to = %aside.display(), %why,
            "this is no history that can be used: moved aside, and a new one begun"
        );
        match prepare(path) {
            Ok(connection) => Ok(Self::on(connection, retention)),
            Err(Unusable::Database(source)) => Err(HistoryError::Database { path: path.to_owned(), source }),
            // Another process made it in this moment.
            Err(Unusable::Foreign(_)) => Err(HistoryError::Database {
                path: path.to_owned(),
                source: rusqlite::Error::InvalidPath(path.to_owned()),
            }),
        }
    }

    fn on(connection: Connection, retention: Retention) -> Self {
        Self { connection, retention, pruned: [None; 3], ids: HashMap::new(), paces: HashMap::new() }
    }

    /// Writes all or nothing. `now` is for what comes late.
    pub(super) fn write(&mut self, entries: &[Entry], now: Timestamp) -> rusqlite::Result<()> {
        let Self { connection, ids, paces, retention, .. } = self;
        let transaction = connection.transaction()?;
        // A bucket that has lost some of its fine values stays as it was made: what comes so late has nothing made again.
        let whole = retention.oldest(Resolution::Fine, now).saturating_add(Resolution::Medium.bucket_ms());
        let mut writing = Writing { transaction: &transaction, ids, paces, whole, earliest: u64::MAX };
        let mut write = || {
            for entry in entries {
                match entry {
                    Entry::Step(step) => writing.step(step)?,
                    Entry::Buckets(buckets) => {
                        for bucket in buckets {
                            writing.bucket(bucket)?;
                        }
                    }
                    Entry::Feed { name, value, at } => {
                        writing.value(("", &series::feed(name), ""), *at, *value)?;
                    }
                    Entry::Barrier(_) => {}
                }
            }
            super::rollup::reopen(&transaction, writing.earliest)
        };
        let written = write().and_then(|()| transaction.commit());
        if written.is_err() {
            // What was rolled back is not there.
            self.ids.clear();
            self.paces.clear();
        }
        written
    }
}

/// One transaction of the writer.
struct Writing<'a> {
    transaction: &'a Transaction<'a>,
    ids: &'a mut HashMap<(String, String, String), i64>,
    paces: &'a mut HashMap<String, u64>,
    /// From when on buckets can be made again.
    whole: u64,
    /// The earliest moment written of which one can.
    earliest: u64,
}

impl Writing<'_> {
    fn step(&mut self, step: &Step) -> rusqlite::Result<()> {
        let step_ms = u64::try_from(step.step.as_millis()).unwrap_or(u64::MAX);
        self.pace(&step.resource, step.at, step_ms)?;
        for value in &step.values {
            self.value((&step.resource, &value.series, &value.zone), step.at, value.value)?;
        }
        Ok(())
    }

    fn pace(&mut self, resource: &str, at: Timestamp, step_ms: u64) -> rusqlite::Result<()> {
        if self.paces.get(resource) == Some(&step_ms) {
            return Ok(());
        }
        let last: Option<u64> = self
            .transaction
            .prepare_cached("SELECT step_ms FROM pace WHERE resource = ? ORDER BY from_ms DESC LIMIT 1")?
            .query_row([resource], |row| row.get(0))
            .optional()?;
        if last != Some(step_ms) {
            self.transaction
                .prepare_cached("INSERT OR REPLACE INTO pace (resource, from_ms, step_ms) VALUES (?, ?, ?)")?
                .execute(params![resource, at.0, step_ms])?;
        }
        self.paces.insert(resource.to_owned(), step_ms);
        Ok(())
    }

    fn value(&mut self, of: (&str, &str, &str), at: Timestamp, value: f64) -> rusqlite::Result<()> {
        if !value.is_finite() {
            return Ok(());
        }
        let id = self.id(of)?;
        self.wrote(at.0);
        self.transaction
            .prepare_cached(
                "INSERT OR REPLACE INTO value (series, tier, at_ms, samples, total) VALUES (?, 0, ?, 1, ?)",
            )?
            .execute(params![id, at.0, value])
            .map(drop)
    }

    /// A bucket that is there already, of before a restart, grows.
    fn bucket(&mut self, bucket: &Bucket) -> rusqlite::Result<()> {
        let id = self.id((&bucket.resource, &series::segment(bucket.segment), &bucket.zone))?;
        let at_ms = Resolution::Fine.begin(bucket.at.0);
        self.wrote(at_ms);
        let there: Option<Vec<u8>> = self
            .transaction
            .prepare_cached("SELECT histogram FROM latency WHERE series = ? AND tier = 0 AND at_ms = ?")?
            .query_row(params![id, at_ms], |row| row.get(0))
            .optional()?;
        let bytes = match there.as_deref().and_then(decode) {
            Some(before) => encode(&merged([&before, &bucket.histogram])),
            None => encode(&bucket.histogram),
        };
        put_histogram(self.transaction, id, Resolution::Fine, at_ms, &bytes)
    }

    fn wrote(&mut self, at_ms: u64) {
        if at_ms >= self.whole {
            self.earliest = self.earliest.min(at_ms);
        }
    }

    fn id(&mut self, of: (&str, &str, &str)) -> rusqlite::Result<i64> {
        let key = (of.0.to_owned(), of.1.to_owned(), of.2.to_owned());
        if let Some(id) = self.ids.get(&key) {
            return Ok(*id);
        }
        let values = params![of.0, of.1, of.2];
        let find = "SELECT id FROM series WHERE resource = ? AND name = ? AND zone = ?";
        let found = self.transaction.prepare_cached(find)?.query_row(values, |row| row.get(0)).optional()?;
        let id = match found {
            Some(id) => id,
            None => {
                let add = "INSERT INTO series (resource, name, zone) VALUES (?, ?, ?)";
                self.transaction.prepare_cached(add)?.insert(values)?
            }
        };
        self.ids.insert(key, id);
        Ok(id)
    }
}

/// Writes a histogram in place of the one that is there.
pub(super) fn put_histogram(
    connection: &Connection,
    series: i64,
    tier: Resolution,
    at_ms: u64,
    bytes: &[u8],
) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "INSERT OR REPLACE INTO latency (series, tier, at_ms, histogram) VALUES (?, ?, ?, ?)",
        )?
        .execute(params![series, tier.number(), at_ms, bytes])
        .map(drop)
}

/// HdrHistogram V2.
pub(super) fn encode(histogram: &Histogram<u64>) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Err(error) = V2Serializer::new().serialize(histogram, &mut bytes) {
        // Only of a count above i64::MAX.
        tracing::warn!(%error, "a histogram cannot be kept");
        bytes.clear();
    }
    bytes
}

/// None where the bytes are no histogram.
pub(super) fn decode(bytes: &[u8]) -> Option<Histogram<u64>> {
    Deserializer::new().deserialize(&mut &bytes[..]).ok()
}

/// All of them in one.
pub(super) fn merged<'a>(all: impl IntoIterator<Item = &'a Histogram<u64>>) -> Histogram<u64> {
    let mut sum = crate::fronts::latencies::histogram();
    for histogram in all {
        // The sum grows to hold any value.
        let _ = sum.add(histogram);
    }
    sum
}

fn prepare(path: &Path) -> Result<Connection, Unusable> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(std::time::Duration::from_secs(5))?;
    let number = |name: &str| connection.pragma_query_value(None, name, |row| row.get::<_, i32>(0));
    let tables: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    let (application, version) = (number("application_id")?, number("user_version")?);
    if tables > 0 && application != APPLICATION {
        return Err(Unusable::Foreign("it belongs to another program".into()));
    }
    if tables > 0 && version != VERSION {
        return Err(Unusable::Foreign(format!("its format is {version}, not {VERSION}")));
    }
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    if tables == 0 {
        connection.execute_batch(SCHEMA)?;
    }
    Ok(connection)
}

fn move_aside(path: &Path, now: Timestamp) -> std::io::Result<PathBuf> {
    let suffixed = |path: &Path, suffix: &str| {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        PathBuf::from(name)
    };
    let aside = suffixed(path, &format!(".aside-{}", now.0));
    std::fs::rename(path, &aside)?;
    for suffix in ["-wal", "-shm"] {
        match std::fs::rename(suffixed(path, suffix), suffixed(&aside, suffix)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(aside)
}
