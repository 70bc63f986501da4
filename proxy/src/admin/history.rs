//! What was: latencies, series, the present forecast.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use migration::units::Timestamp;
use serde::{Deserialize, Serialize};

use super::routes::{Answer, find, query};
use super::{AdminState, Problem};
use crate::causes::chain;
use crate::clock;
use crate::config::units;
use crate::controller::forecast::ForecastView;
use crate::history::read::{Latency, Place, Reader};
use crate::history::series::is_known;
use crate::history::{History, HistoryError, Resolution, Retention};

/// Buckets of one answer of latencies, at most.
const MOST_STEPS: u64 = 2_000;
/// Buckets that a step is chosen for where none is asked for.
const USUAL_STEPS: u64 = 360;
/// Steps to choose from, seconds.
const STEPS: [u64; 8] = [10, 30, 60, 300, 900, 3_600, 21_600, 86_400];
/// Rows of one page, at most, and where nothing is said.
const ROWS: (usize, usize) = (10_000, 1_000);

/// Latencies of a resource.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct LatencyView {
    /// The resource.
    pub resource: String,
    /// From, Unix milliseconds; the beginning of a bucket.
    pub from_ms: u64,
    /// Until.
    pub to_ms: u64,
    /// The width of a bucket.
    pub step_ms: u64,
    /// By time, zone and segment; buckets without a request are left out.
    pub points: Vec<LatencyPoint>,
}

/// One bucket, zone and segment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct LatencyPoint {
    /// When the bucket began, Unix milliseconds.
    pub at_ms: u64,
    /// The zone that served.
    pub zone: String,
    /// `client`, `held`, `connect`, `first_byte`, `body`, `upstream`.
    pub segment: String,
    /// Requests.
    pub count: u64,
    /// Mean.
    pub mean_ms: f64,
    /// Median.
    pub p50_ms: f64,
    /// 90 %.
    pub p90_ms: f64,
    /// 95 %.
    pub p95_ms: f64,
    /// 99 %.
    pub p99_ms: f64,
    /// The longest.
    pub max_ms: f64,
}

/// A page of series.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct HistoryView {
    /// The resource.
    pub resource: String,
    /// `fine`, `medium`, `coarse`.
    pub resolution: String,
    /// The distance of two rows: of fine ones the length of a step now.
    pub step_ms: u64,
    /// From, Unix milliseconds.
    pub from_ms: u64,
    /// Until, not included.
    pub to_ms: u64,
    /// Every series asked for, also those without a row on this page.
    pub series: Vec<SeriesView>,
    /// By series, then by time.
    pub rows: Vec<RowView>,
    /// Gives the next page; none: this is the last.
    pub cursor: Option<String>,
}

/// A series.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SeriesView {
    /// Its name, with its unit.
    pub name: String,
    /// The zone it is about; empty: none.
    pub zone: String,
}

/// A row.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct RowView {
    /// Place in `series`.
    pub series: usize,
    /// When, or when the bucket began, Unix milliseconds.
    pub at_ms: u64,
    /// Steps it stands for.
    pub samples: u64,
    /// Their mean.
    pub mean: f64,
    /// The least.
    pub low: f64,
    /// The greatest.
    pub high: f64,
}

/// What stands after the question mark.
pub(super) type Parameters = Result<Query<BTreeMap<String, String>>, QueryRejection>;

/// Checked one by one; what is wrong is named.
struct Asked(BTreeMap<String, String>);

impl Asked {
    fn new(parameters: Parameters, known: &[&str]) -> Answer<Self> {
        let Query(asked) = parameters.map_err(query)?;
        match asked.keys().find(|name| !known.contains(&name.as_str())) {
            Some(name) => Err(wrong(name, format!("is unknown; known are {}", known.join(", ")))),
            None => Ok(Self(asked)),
        }
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    fn moment(&self, name: &str, now: Timestamp) -> Answer<Option<Timestamp>> {
        self.get(name).map(|text| moment(text, now).map_err(|why| wrong(name, why))).transpose()
    }

    fn range(&self, now: Timestamp, usual: Duration) -> Answer<(u64, u64)> {
        let to = self.moment("to", now)?.unwrap_or(now);
        let from = self.moment("from", now)?.unwrap_or(Timestamp(to.0.saturating_sub(millis(usual))));
        if from >= to {
            return Err(wrong("from", "is not before the end (to)"));
        }
        Ok((from.0, to.0))
    }
}

fn wrong(parameter: &str, why: impl std::fmt::Display) -> Problem {
    let detail = format!("parameter {parameter} {why}");
    Problem {
        parameter: Some(parameter.into()),
        ..Problem::new(StatusCode::BAD_REQUEST, "parameter", detail)
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// `2026-03-01T12:00:00Z`, Unix milliseconds, or how long ago: `24h`. The error says what would be right.
pub fn moment(text: &str, now: Timestamp) -> Result<Timestamp, String> {
    let at = if let Ok(at) = text.parse::<u64>() {
        Some(at)
    } else if let Ok(at) = text.parse::<jiff::Timestamp>() {
        u64::try_from(at.as_millisecond()).ok()
    } else {
        units::duration(text).ok().map(|ago| now.0.saturating_sub(millis(ago)))
    };
    // Within what SQLite's integers hold.
    at.filter(|at| i64::try_from(*at).is_ok()).map(Timestamp).ok_or_else(|| {
        "is no moment: write 2026-03-01T12:00:00Z, Unix milliseconds, or how long ago, such as 24h".into()
    })
}

fn history(error: HistoryError) -> Problem {
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "history", chain(error))
}

/// Reads on a thread where that may block.
pub(super) async fn read<T: Send + 'static>(
    history_of: &History,
    what: impl FnOnce(&Reader) -> Result<T, HistoryError> + Send + 'static,
) -> Answer<T> {
    let from = history_of.clone();
    let answer = tokio::task::spawn_blocking(move || what(&from.reader()?)).await;
    let stopping = |_| Problem::new(StatusCode::SERVICE_UNAVAILABLE, "stopping", "godwit is stopping");
    answer.map_err(stopping)?.map_err(history)
}

pub(super) async fn forecast(
    State(state): State<AdminState>,
    Path(id): Path<String>,
) -> Answer<Json<Arc<ForecastView>>> {
    Ok(Json(find(&state, &id)?.forecast.load_full()))
}

pub(super) async fn latency(
    State(state): State<AdminState>,
    Path(id): Path<String>,
    parameters: Parameters,
) -> Answer<Json<LatencyView>> {
    find(&state, &id)?;
    let asked = Asked::new(parameters, &["from", "to", "step"])?;
    let now = clock::now();
    let (from, to) = asked.range(now, Duration::from_hours(1))?;
    let step_ms = match asked.get("step") {
        Some(text) => {
            let step = units::duration(text).map_err(|why| wrong("step", format!("is wrong: {why}")))?;
            let step = millis(step);
            if step == 0 || !step.is_multiple_of(Resolution::Fine.bucket_ms()) {
                return Err(wrong("step", "must be a multiple of 10s"));
            }
            is_kept(state.history.retention(), step, Timestamp(from), now)?;
            step
        }
        None => usual_step(state.history.retention(), (from, to), now),
    };
    if (to - from) / step_ms > MOST_STEPS {
        return Err(wrong(
            "step",
            format!("makes more than {MOST_STEPS} buckets: ask for longer ones, or less"),
        ));
    }
    let from = from - from % step_ms;
    let resource = id.clone();
    let found = read(&state.history, move |reader| reader.latency(&resource, (from, to), step_ms)).await?;
    let mut points: Vec<LatencyPoint> = found.into_iter().map(point).collect();
    points.sort_by(|a, b| (a.at_ms, &a.zone, &a.segment).cmp(&(b.at_ms, &b.zone, &b.segment)));
    Ok(Json(LatencyView { resource: id, from_ms: from, to_ms: to, step_ms, points }))
}

/// Of what is kept that long such a step can be made: no bucket would look as if there had been no request.
fn is_kept(retention: Retention, step: u64, from: Timestamp, now: Timestamp) -> Answer<()> {
    let finest = retention.finest(from, now);
    if step.is_multiple_of(finest.bucket_ms()) {
        return Ok(());
    }
    let bucket = if finest == Resolution::Medium { "5m" } else { "1h" };
    Err(wrong(
        "step",
        format!("must be a multiple of {bucket}: nothing finer is kept as long as from asks for"),
    ))
}

/// About as many buckets as a picture has room for, and not finer than what is kept that long.
fn usual_step(retention: Retention, (from, to): (u64, u64), now: Timestamp) -> u64 {
    let least = retention.finest(Timestamp(from), now).bucket_ms();
    let fits = |step: &u64| *step >= least && (to - from) / step <= USUAL_STEPS;
    let steps = STEPS.map(|seconds| seconds * 1000);
    let day = steps[steps.len() - 1];
    steps.into_iter().find(fits).unwrap_or_else(|| ((to - from) / USUAL_STEPS / day + 1) * day)
}

fn point(latency: Latency) -> LatencyPoint {
    let histogram = latency.histogram;
    let ms = |quantile: f64| histogram.value_at_quantile(quantile) as f64 / 1000.0;
    LatencyPoint {
        at_ms: latency.at_ms,
        zone: latency.zone,
        segment: latency.segment,
        count: histogram.len(),
        mean_ms: histogram.mean() / 1000.0,
        p50_ms: ms(0.5),
        p90_ms: ms(0.9),
        p95_ms: ms(0.95),
        p99_ms: ms(0.99),
        max_ms: histogram.max() as f64 / 1000.0,
    }
}

pub(super) async fn series(
    State(state): State<AdminState>,
    Path(id): Path<String>,
    parameters: Parameters,
) -> Answer<Json<HistoryView>> {
    find(&state, &id)?;
    let asked = Asked::new(parameters, &["series", "resolution", "from", "to", "limit", "cursor"])?;
    let place = place(&asked, &state.history)?;
    let limit = match asked.get("limit") {
        None => ROWS.1,
        Some(text) => text
            .parse()
            .ok()
            .filter(|limit| (1..=ROWS.0).contains(limit))
            .ok_or_else(|| wrong("limit", format!("must be a whole number from 1 to {}", ROWS.0)))?,
    };
    let names: Vec<String> =
        asked.get("series").map(|names| names.split(',').map(str::to_owned).collect()).unwrap_or_default();
    let (resource, wanted) = (id.clone(), names.clone());
    let (all, step, page) = read(&state.history, move |reader| {
        let all = reader.series(&resource, &[])?;
        let chosen =
            all.iter().filter(|of| wanted.is_empty() || wanted.contains(&of.name)).cloned().collect();
        Ok((all, reader.step(&resource)?, reader.page(chosen, place, limit)?))
    })
    .await?;
    // One that has no value yet is empty, not wrong.
    let kept = |name: &String| is_known(name) || all.iter().any(|of| of.name == *name);
    if let Some(name) = names.iter().find(|name| !kept(name)) {
        let mut known: Vec<&str> = all.iter().map(|of| of.name.as_str()).collect();
        known.sort_unstable();
        known.dedup();
        let known = if known.is_empty() { "none yet".to_owned() } else { known.join(", ") };
        return Err(wrong("series", format!("names {name:?}, of which nothing is kept; there are: {known}")));
    }
    let step = if place.resolution == Resolution::Fine { step } else { Some(place.resolution.bucket()) };
    Ok(Json(HistoryView {
        resource: id,
        resolution: place.resolution.name().into(),
        step_ms: millis(step.unwrap_or_default()),
        from_ms: place.from,
        to_ms: place.to,
        series: page.series.into_iter().map(|of| SeriesView { name: of.name, zone: of.zone }).collect(),
        rows: page
            .rows
            .into_iter()
            .map(|row| RowView {
                series: row.series,
                at_ms: row.at.0,
                samples: row.samples,
                mean: row.mean,
                low: row.low,
                high: row.high,
            })
            .collect(),
        cursor: page.next.map(|next| next.to_string()),
    }))
}

/// Where to begin: where a cursor says, or at the beginning of what is asked for.
fn place(asked: &Asked, history: &History) -> Answer<Place> {
    if let Some(cursor) = asked.get("cursor") {
        if let Some(name) = ["from", "to", "resolution"].into_iter().find(|name| asked.get(name).is_some()) {
            return Err(wrong(name, "is in the cursor: leave it out"));
        }
        return cursor.parse().map_err(|()| wrong("cursor", "is none that an answer of this route gave"));
    }
    let now = clock::now();
    let (from, to) = asked.range(now, Duration::from_hours(24))?;
    let resolution = match asked.get("resolution") {
        None => history.retention().finest(Timestamp(from), now),
        Some(name) => Resolution::from_name(name)
            .ok_or_else(|| wrong("resolution", "must be fine, medium or coarse"))?,
    };
    Ok(Place { resolution, from, to, series: 0, at: 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_that_is_not_kept_so_long_is_refused() {
        let (now, day) = (Timestamp(500 * 86_400_000), 86_400_000);
        let asked = |seconds: u64, days: u64| {
            let from = Timestamp(now.0 - days * day);
            is_kept(Retention::default(), seconds * 1000, from, now).map_err(|problem| problem.detail)
        };
        for (seconds, days) in [(10, 0), (10, 1), (300, 2), (3_600, 400)] {
            assert_eq!(asked(seconds, days), Ok(()));
        }
        let why = "parameter step must be a multiple of 5m: nothing finer is kept as long as from asks for";
        for (seconds, days) in [(10, 2), (310, 14)] {
            assert_eq!(asked(seconds, days), Err(why.to_owned()));
        }
        assert!(asked(300, 15).is_err_and(|why| why.contains("a multiple of 1h")));
    }

    #[test]
    fn moments_are_read_in_three_ways() {
        let now = Timestamp(1_900_000_000_000);
        assert_eq!(moment("1800000000000", now), Ok(Timestamp(1_800_000_000_000)));
        assert_eq!(moment("2026-03-01T12:00:00Z", now), Ok(Timestamp(1_772_366_400_000)));
        assert_eq!(moment("24h", now), Ok(Timestamp(1_900_000_000_000 - 86_400_000)));
        for text in ["yesterday", "", "-5", "99999999999999999999", "1900-01-01T00:00:00Z"] {
            assert!(moment(text, now).is_err(), "{text}");
        }
    }
}
