//! Reads: pages of values, quantiles, what a forecaster replays. A connection of its own, which never writes.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use hdrhistogram::Histogram;
use migration::units::Timestamp;
use rusqlite::{Connection, OpenFlags, OptionalExtension, params};

use super::replay::{DAYS_MS, Pace, Replay, Samples, fits_from, number, numbered};
use super::store::decode;
use super::tier::{Resolution, Retention};
use super::{HistoryError, rollup, series, spikes, told};
use crate::fronts::latencies::histogram;

/// A series.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Series {
    /// Its number in the file.
    pub id: i64,
    /// Its name.
    pub name: String,
    /// The zone it is about; empty: none.
    pub zone: String,
}

/// Where a walk through the values stands. As text it is a cursor of the API: opaque to those who pass it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// What is walked through.
    pub resolution: Resolution,
    /// From, Unix milliseconds.
    pub from: u64,
    /// Until, not included.
    pub to: u64,
    /// The series of the last row.
    pub series: i64,
    /// Its moment.
    pub at: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}.{}.{}", self.resolution.name(), self.from, self.to, self.series, self.at)
    }
}

impl FromStr for Place {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let parts: Vec<&str> = text.split('.').collect();
        let [resolution, from, to, series, at] = parts.as_slice() else { return Err(()) };
        // Within what SQLite's integers hold.
        let moment = |text: &str| text.parse::<u64>().ok().filter(|at| i64::try_from(*at).is_ok()).ok_or(());
        Ok(Self {
            resolution: Resolution::from_name(resolution).ok_or(())?,
            from: moment(from)?,
            to: moment(to)?,
            series: series.parse().map_err(drop)?,
            at: moment(at)?,
        })
    }
}

/// One row of a series.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Which series: its place in [`Page::series`].
    pub series: usize,
    /// When; of medium and coarse rows: when the bucket began.
    pub at: Timestamp,
    /// How many steps it stands for.
    pub samples: u64,
    /// Their mean.
    pub mean: f64,
    /// The least of them.
    pub low: f64,
    /// The greatest of them.
    pub high: f64,
}

/// Some rows, and where the next begin.
#[derive(Clone, Debug, PartialEq)]
pub struct Page {
    /// Every series that is walked through.
    pub series: Vec<Series>,
    /// By series, then by time.
    pub rows: Vec<Row>,
    /// Where to go on; none: that was all.
    pub next: Option<Place>,
}

/// Latencies of one bucket of an answer.
#[derive(Clone, Debug)]
pub struct Latency {
    /// When it began, Unix milliseconds.
    pub at_ms: u64,
    /// The zone that served.
    pub zone: String,
    /// The segment's label.
    pub segment: String,
    /// Microseconds.
    pub histogram: Histogram<u64>,
}

/// Opened for one question and those that belong to it.
pub struct Reader {
    connection: Connection,
    path: PathBuf,
}

impl Reader {
    pub(super) fn open(path: &Path) -> Result<Self, HistoryError> {
        let open = || {
            let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
            connection.busy_timeout(Duration::from_secs(5))?;
            Ok(connection)
        };
        let connection = open().map_err(|source| HistoryError::Database { path: path.to_owned(), source })?;
        Ok(Self { connection, path: path.to_owned() })
    }

    fn database(&self) -> impl FnOnce(rusqlite::Error) -> HistoryError + '_ {
        |source| HistoryError::Database { path: self.path.clone(), source }
    }

    /// The series of values of `resource`, those of the node (feeds) included, by number. `names`: only these; empty: all.
    pub fn series(&self, resource: &str, names: &[String]) -> Result<Vec<Series>, HistoryError> {
        let mut all =
            self.find(resource, "name NOT LIKE 'segment\\_%' ESCAPE '\\'").map_err(self.database())?;
        all.retain(|series| names.is_empty() || names.contains(&series.name));
        Ok(all)
    }

    fn find(&self, resource: &str, filter: &str) -> rusqlite::Result<Vec<Series>> {
        let mut select = self.connection.prepare_cached(&format!(
            "SELECT id, name, zone FROM series WHERE resource IN (?, '') AND {filter} ORDER BY id"
        ))?;
        let rows = select.query_map([resource], |row| {
            Ok(Series { id: row.get(0)?, name: row.get(1)?, zone: row.get(2)? })
        })?;
        rows.collect()
    }

    /// At most `limit` rows of `series` after `place`.
    pub fn page(&self, series: Vec<Series>, place: Place, limit: usize) -> Result<Page, HistoryError> {
        let read = || {
            let mut rows = Vec::new();
            let mut select = self.connection.prepare_cached(
                "SELECT at_ms, samples, total, low, high FROM value
                 WHERE series = ? AND tier = ? AND at_ms >= ? AND at_ms < ? ORDER BY at_ms LIMIT ?",
            )?;
            for (index, of) in series.iter().enumerate().filter(|(_, of)| of.id >= place.series) {
                let from = if of.id == place.series { place.from.max(place.at + 1) } else { place.from };
                // One more than asked for, to know whether there is a next page.
                let left = limit as u64 + 1 - rows.len() as u64;
                let values = params![of.id, place.resolution.number(), from, place.to, left];
                let found = select.query_map(values, |row| {
                    let (samples, total): (u64, f64) = (row.get(1)?, row.get(2)?);
                    let mean = total / samples.max(1) as f64;
                    let or_mean = |value: Option<f64>| value.unwrap_or(mean);
                    Ok(Row {
                        series: index,
                        at: Timestamp(row.get(0)?),
                        samples,
                        mean,
                        low: or_mean(row.get(3)?),
                        high: or_mean(row.get(4)?),
                    })
                })?;
                for row in found {
                    rows.push(row?);
                }
                if rows.len() > limit {
                    break;
                }
            }
            Ok(rows)
        };
        let mut rows: Vec<Row> = read().map_err(self.database())?;
        let more = rows.len() > limit;
        rows.truncate(limit);
        let last = rows.last().filter(|_| more);
        let next = last.map(|row| Place { series: series[row.series].id, at: row.at.0, ..place });
        Ok(Page { series, rows, next })
    }

    /// The request path's latencies from `from` to `to` in buckets of `step_ms`, by zone and segment. Buckets of a finer
    /// resolution are merged; what has not been rolled up yet is taken from where it is.
    pub fn latency(
        &self,
        resource: &str,
        (from, to): (u64, u64),
        step_ms: u64,
    ) -> Result<Vec<Latency>, HistoryError> {
        let tiers = Resolution::ALL.into_iter().rev().filter(|tier| step_ms.is_multiple_of(tier.bucket_ms()));
        let read = || {
            // From the coarsest that divides a step to the finest: each from where the one before ends.
            let mut pieces = Vec::new();
            let mut begin = from;
            for tier in tiers {
                let end = match tier {
                    Resolution::Fine => to,
                    _ => rollup::rolled(&self.connection, tier)?.unwrap_or(0).min(to),
                };
                if begin < end {
                    pieces.push((tier, begin, end));
                    begin = end;
                }
            }
            let mut select = self.connection.prepare_cached(
                "SELECT at_ms, histogram FROM latency
                 WHERE series = ? AND tier = ? AND at_ms >= ? AND at_ms < ? ORDER BY at_ms",
            )?;
            let mut all = Vec::new();
            for of in self.find(resource, "name LIKE 'segment\\_%' ESCAPE '\\'")? {
                let mut steps: BTreeMap<u64, Histogram<u64>> = BTreeMap::new();
                for (tier, from, to) in &pieces {
                    let mut rows = select.query(params![of.id, tier.number(), from, to])?;
                    while let Some(row) = rows.next()? {
                        let at: u64 = row.get(0)?;
                        let Some(part) = row.get_ref(1)?.as_blob().ok().and_then(decode) else { continue };
                        // The sum grows to hold any value.
                        let _ = steps.entry(at - at % step_ms).or_insert_with(histogram).add(&part);
                    }
                }
                let segment = of.name.trim_start_matches(&series::segment("")).to_owned();
                all.extend(steps.into_iter().map(|(at_ms, histogram)| Latency {
                    at_ms,
                    zone: of.zone.clone(),
                    segment: segment.clone(),
                    histogram,
                }));
            }
            Ok(all)
        };
        read().map_err(self.database())
    }

    /// The length of a resource's steps now; none: it has recorded nothing yet.
    pub fn step(&self, resource: &str) -> Result<Option<Duration>, HistoryError> {
        let paces = self.paces(resource).map_err(self.database())?;
        Ok(paces.last().map(|pace| Duration::from_millis(pace.step_ms)))
    }

    fn paces(&self, resource: &str) -> rusqlite::Result<Vec<Pace>> {
        let mut select = self
            .connection
            .prepare_cached("SELECT from_ms, step_ms FROM pace WHERE resource = ? ORDER BY from_ms")?;
        let rows = select
            .query_map([resource], |row| Ok(Pace { from: Timestamp(row.get(0)?), step_ms: row.get(1)? }))?;
        rows.collect()
    }

    /// The newest `steps` steps of what the forecasters of `resource` are fed, for steps of `step_ms` now. Of the request
    /// path only what `primary` served since it last became the primary. Empty: the stored steps do not fit, or there are none.
    pub fn replay(
        &self,
        resource: &str,
        primary: &str,
        step_ms: u64,
        steps: u64,
        now: Timestamp,
    ) -> Result<Replay, HistoryError> {
        let read = || {
            let paces = self.paces(resource)?;
            let Some(fits) = fits_from(&paces, step_ms) else { return Ok(Replay::default()) };
            let shorter = paces.iter().any(|pace| pace.from >= fits && pace.step_ms != step_ms);
            let of = |name: &str| -> rusqlite::Result<Vec<Series>> {
                Ok(self.find(resource, "1")?.into_iter().filter(|series| series.name == name).collect())
            };
            let (requests, probes) = (of(series::REQUEST_P95)?, of(series::PROBE)?);
            let mut end = None;
            for series in requests.iter().chain(&probes) {
                end = end.max(self.newest(series.id, now)?);
            }
            let Some(end) = end.filter(|end| *end >= fits) else { return Ok(Replay::default()) };
            let from = Timestamp(end.0.saturating_sub(steps.saturating_mul(step_ms))).max(fits);
            let anchor = (number(end, step_ms), end);
            let mut replay = Replay { newest: anchor.0, at: end, ..Replay::default() };
            let days = Timestamp(end.0.saturating_sub(DAYS_MS)).max(fits);
            let (mut here, mut here_before) = (Samples::new(), Samples::new());
            let mut elsewhere = None;
            let mut usual = Samples::new();
            for series in requests {
                let samples = self.samples(series.id, (from, now))?;
                let before = self.means(series.id, (days, from))?;
                usual.extend(&samples);
                if series.zone == primary {
                    (here, here_before) = (samples, before);
                } else {
                    elsewhere = elsewhere.max(before.iter().chain(&samples).next_back().map(|(at, _)| *at));
                }
            }
            for samples in [&mut here, &mut here_before] {
                samples.retain(|(at, _)| elsewhere.is_none_or(|other| *at > other));
            }
            // These are numbered by when they were.
            replay.days.requests = numbered(&here_before, anchor, step_ms, true);
            replay.requests = numbered(&here, anchor, step_ms, shorter);
            usual.sort_by_key(|(at, _)| *at);
            replay.usual = numbered(&usual, anchor, step_ms, shorter);
            for series in probes {
                let samples = self.samples(series.id, (from, now))?;
                if !samples.is_empty() {
                    let before = self.means(series.id, (days, from))?;
                    replay.days.probes.insert(series.zone.clone(), numbered(&before, anchor, step_ms, true));
                    replay.probes.push((series.zone, numbered(&samples, anchor, step_ms, shorter)));
                }
            }
            for name in told::names() {
                for series in of(&series::told(name))? {
                    let samples = self.samples(series.id, (from, now))?;
                    let steps = numbered(&samples, anchor, step_ms, shorter);
                    let zone = replay.told.entry(series.zone).or_default();
                    for (step, number) in steps {
                        told::add(zone.entry(step).or_default(), name, number);
                    }
                }
            }
            replay.told.retain(|_, told| !told.is_empty());
            Ok(replay)
        };
        read().map_err(self.database())
    }

    /// Of those up to `now`.
    fn newest(&self, series: i64, now: Timestamp) -> rusqlite::Result<Option<Timestamp>> {
        let select = "SELECT max(at_ms) FROM value WHERE series = ? AND tier = 0 AND at_ms <= ?";
        let newest: Option<u64> =
            self.connection.prepare_cached(select)?.query_row(params![series, now.0], |row| row.get(0))?;
        Ok(newest.map(Timestamp))
    }

    fn samples(&self, series: i64, (from, to): (Timestamp, Timestamp)) -> rusqlite::Result<Samples> {
        let mut select = self.connection.prepare_cached(
            "SELECT at_ms, total FROM value WHERE series = ? AND tier = 0 AND at_ms >= ? AND at_ms <= ? ORDER BY at_ms",
        )?;
        let values = params![series, from.0, to.0];
        let rows = select.query_map(values, |row| Ok((Timestamp(row.get(0)?), row.get(1)?)))?;
        rows.collect()
    }

    /// The means of the medium resolution that lie within this time, each in its middle.
    fn means(&self, series: i64, (from, to): (Timestamp, Timestamp)) -> rusqlite::Result<Samples> {
        let tier = Resolution::Medium;
        let mut select = self.connection.prepare_cached(
            "SELECT at_ms, total / samples FROM value WHERE series = ? AND tier = ? AND at_ms >= ? AND at_ms <= ? ORDER BY at_ms",
        )?;
        let last = to.0.saturating_sub(tier.bucket_ms());
        let rows = select.query_map(params![series, tier.number(), from.0, last], |row| {
            Ok((Timestamp(row.get::<_, u64>(0)? + tier.bucket_ms() / 2), row.get(1)?))
        })?;
        rows.collect()
    }

    /// Latency spikes a day of the HTTP probe in `zone`, as [`spikes`] defines them; or why there is no rate.
    pub fn spikes_per_day(
        &self,
        resource: &str,
        zone: &str,
        retention: Retention,
        now: Timestamp,
    ) -> Result<Result<f64, String>, HistoryError> {
        let read = || {
            let find = "SELECT id FROM series WHERE resource = ? AND name = ? AND zone = ?";
            let id: Option<i64> = self
                .connection
                .prepare_cached(find)?
                .query_row(params![resource, series::PROBE, zone], |row| row.get(0))
                .optional()?;
            let Some(id) = id else { return Ok(None) };
            let mut select = self.connection.prepare_cached(
                "SELECT at_ms, total / samples FROM value WHERE series = ? AND tier = ? AND at_ms >= ? ORDER BY at_ms",
            )?;
            let tier = Resolution::Medium;
            let values = params![id, tier.number(), retention.oldest(tier, now)];
            let rows = select.query_map(values, |row| Ok((row.get(0)?, row.get(1)?)))?;
            rows.collect::<rusqlite::Result<Vec<(u64, f64)>>>().map(Some)
        };
        let Some(values) = read().map_err(self.database())? else {
            return Ok(Err("it has not been probed yet".into()));
        };
        let rate = spikes::per_day(values, Resolution::Medium.bucket_ms());
        Ok(rate.map_err(|days| format!("{:.1} h of probes are kept, 6 h are needed", days * 24.0)))
    }
}
