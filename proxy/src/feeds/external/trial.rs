//! One run of a feed, stage by stage, for `godwit feeds test`.

use std::path::Path;
use std::sync::Arc;

use migration::units::{ByteCount, Timestamp};
use serde::Serialize;

use super::fetch::{self, Fetched, Reach, Validators};
use super::finding::Finding;
use super::map::shape;
use super::{Failure, Feed, Reason, Stage};

/// What came of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Trial {
    /// The feed.
    pub feed: String,
    /// The stages that were reached, in order.
    pub stages: Vec<StageReport>,
    /// Why it ended early; none: it did not.
    pub error: Option<TrialError>,
    /// What was understood.
    pub readings: Vec<Finding>,
    /// Readings about other places.
    pub elsewhere: usize,
    /// What was left out while decoding.
    pub notes: Vec<String>,
}

/// A stage that went well.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StageReport {
    /// `source`, `decode`, `map`.
    pub stage: &'static str,
    /// How it was done.
    pub how: String,
    /// What came out.
    pub result: String,
}

/// A stage that did not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TrialError {
    /// `source`, `decode`, `map`.
    pub stage: &'static str,
    /// For programs.
    pub reason: &'static str,
    /// For people.
    pub what: String,
}

/// Runs `feed` once; with a `fixture` its source is not asked.
pub async fn run(feed: &Arc<Feed>, reach: &Reach, fixture: Option<&Path>, now: Timestamp) -> Trial {
    let mut trial = Trial {
        feed: feed.name.clone(),
        stages: Vec::new(),
        error: None,
        readings: Vec::new(),
        elsewhere: 0,
        notes: Vec::new(),
    };
    if let Err(failure) = stages(feed, reach, fixture, now, &mut trial).await {
        trial.error = Some(TrialError {
            stage: failure.stage.name(),
            reason: failure.reason.label(),
            what: failure.what,
        });
    }
    trial
}

async fn stages(
    feed: &Arc<Feed>,
    reach: &Reach,
    fixture: Option<&Path>,
    now: Timestamp,
    trial: &mut Trial,
) -> Result<(), Failure> {
    let mut reached = |stage: Stage, how: String, result: String| {
        trial.stages.push(StageReport { stage: stage.name(), how, result });
    };
    let (how, fetched) = match fixture {
        Some(path) => (format!("fixture {}", path.display()), fetch::file(path, feed.max_bytes).await?),
        None => {
            let how = format!("{} {}", feed.source.kind(), feed.source.place());
            (how, fetch::fetch(feed, reach, &Validators::default()).await?)
        }
    };
    let Fetched::Bytes { bytes, validators, .. } = fetched else {
        return Err(Failure::source(
            Reason::Status,
            "it says \"unchanged\" although it was asked for the first time",
        ));
    };
    let validator = match (validators.etag, validators.last_modified) {
        (Some(etag), _) => format!(", etag {etag}"),
        (None, Some(date)) => format!(", last modified {date}"),
        (None, None) => String::new(),
    };
    reached(Stage::Source, how, format!("{}{validator}", ByteCount(bytes.len() as u64)));

    let thinker = feed.clone();
    let decoded = blocking(feed, Stage::Decode, move || thinker.decoded(&bytes, now)).await?;
    reached(Stage::Decode, feed.decode.name().into(), shape(&decoded.value));

    let thinker = feed.clone();
    let understood = blocking(feed, Stage::Map, move || thinker.mapped(decoded, now)).await?;
    let how = feed.preset.map_or_else(|| "jq program".into(), |preset| format!("preset {preset}"));
    let elsewhere = match understood.elsewhere {
        0 => String::new(),
        count => format!(", {count} about other places"),
    };
    reached(Stage::Map, how, format!("{} readings{elsewhere}", understood.findings.len()));
    trial.readings = understood.findings;
    trial.elsewhere = understood.elsewhere;
    trial.notes = understood.notes;
    Ok(())
}

/// On a thread of its own, for at most the feed's time.
async fn blocking<T: Send + 'static>(
    feed: &Feed,
    stage: Stage,
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    let fail = |reason, what| Failure { stage, reason, what, retry_after: None };
    match tokio::time::timeout(feed.timeout, tokio::task::spawn_blocking(work)).await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(_)) => Err(fail(
            Reason::Decode,
            "it broke down on these bytes: report this as a defect of Godwit".into(),
        )),
        Err(_) => {
            Err(fail(Reason::Timeout, format!("it takes longer than {} s", feed.timeout.as_secs_f64())))
        }
    }
}
