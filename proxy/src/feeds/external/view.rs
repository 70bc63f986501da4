//! Feeds as the API shows them.

use migration::units::Timestamp;
use serde::{Deserialize, Serialize};

use super::board::FeedState;
use super::finding::Finding;
use super::{Feed, Source};

/// Most readings shown of one feed.
const SHOWN: usize = 200;

/// A feed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct FeedView {
    /// Its name.
    pub name: String,
    /// `http`, `file`, `exec`, `postgres` or `webhook`.
    pub source: String,
    /// Where it is asked.
    pub place: String,
    /// The preset it was made from.
    pub preset: Option<String>,
    /// `cost`, `utilization`, `weather`, `events` or `maintenance`.
    #[serde(rename = "use")]
    pub serves: String,
    /// The zones it speaks of.
    pub zones: Vec<String>,
    /// The only resource it is about; none: all.
    pub resource: Option<String>,
    /// `waiting`: it has said nothing yet; `fresh`; `failing`: what it said last still counts; `stale`: that is unknown now.
    pub state: String,
    /// Why it is not fresh; empty: it is.
    pub why: String,
    /// How old what it said last is.
    pub age_ms: Option<u64>,
    /// How old that may be.
    pub stale_after_ms: u64,
    /// How often it is asked; none: it is posted to.
    pub every_ms: Option<u64>,
    /// When it is asked next, Unix milliseconds.
    pub next_ms: Option<u64>,
    /// Length of what it said last.
    pub bytes: u64,
    /// The last failure, if nothing succeeded since.
    pub last_error: Option<ErrorView>,
    /// How many readings there are.
    pub readings_total: usize,
    /// The first of them.
    #[schema(value_type = Vec<Object>)]
    pub readings: Vec<Finding>,
    /// Readings about other places.
    pub elsewhere: usize,
    /// What was left out while decoding.
    pub notes: Vec<String>,
}

/// A failure.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ErrorView {
    /// `source`, `decode` or `map`.
    pub stage: String,
    /// For programs, such as `timeout`.
    pub reason: String,
    /// For people.
    pub what: String,
    /// When, Unix milliseconds.
    pub at_ms: u64,
    /// How many there were in a row.
    pub in_a_row: u32,
}

/// One feed.
pub fn one(feed: &Feed, state: &FeedState, now: Timestamp) -> FeedView {
    let millis = |span: std::time::Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
    let stale = state.stale(feed, now);
    let (word, why) = match (stale, &state.failure, state.at) {
        (Some(why), _, None) => ("waiting", why),
        (Some(why), ..) => ("stale", why),
        (None, Some((failure, _)), _) => ("failing", failure.to_string()),
        (None, None, _) => ("fresh", String::new()),
    };
    FeedView {
        name: feed.name.clone(),
        source: feed.source.kind().into(),
        place: feed.source.place(),
        preset: feed.preset.map(Into::into),
        serves: feed.serves.name().into(),
        zones: feed.places.all().iter().map(|place| place.zone.clone()).collect(),
        resource: feed.resource.clone(),
        state: word.into(),
        why,
        age_ms: state.age(now).map(millis),
        stale_after_ms: millis(feed.stale_after),
        every_ms: (!matches!(feed.source, Source::Webhook(_))).then(|| millis(feed.every)),
        next_ms: state.next.map(|at| at.0),
        bytes: state.bytes,
        last_error: state.failure.as_ref().map(|(failure, at)| ErrorView {
            stage: failure.stage.name().into(),
            reason: failure.reason.label().into(),
            what: failure.what.clone(),
            at_ms: at.0,
            in_a_row: state.failures,
        }),
        readings_total: state.understood.findings.len(),
        readings: state.understood.findings.iter().take(SHOWN).cloned().collect(),
        elsewhere: state.understood.elsewhere,
        notes: state.understood.notes.clone(),
    }
}
