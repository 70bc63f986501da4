//! One task per feed: asks, understands, posts on the board, waits. Posts of webhooks come in through [`receive`], which keeps them for
//! [`recall`]: nobody posts once more because this program was restarted.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::join_all;
use migration::units::Timestamp;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::board::{FeedBoard, FeedState};
use super::fetch::{Fetched, Reach, Validators, fetch};
use super::{Failure, Feed, Reason, Source, Stage, Understood, pace, webhook};
use crate::causes::chain;
use crate::clock;
use crate::store::{Journal, PostedRow, StoreError};
use crate::telemetry::metrics as telemetry;

/// Starts the task of every feed that is asked; they end with `stop`. Must be called inside a runtime.
pub fn start(board: &FeedBoard, reach: &Arc<Reach>, stop: &CancellationToken, tasks: &TaskTracker) {
    for (feed, _) in board.all().filter(|(feed, _)| !is_webhook(feed)) {
        let task = run(board.clone(), feed.clone(), reach.clone(), crate::rng::seed());
        tasks.spawn(stop.clone().run_until_cancelled_owned(task));
    }
}

async fn run(board: FeedBoard, feed: Arc<Feed>, reach: Arc<Reach>, seed: u64) {
    let mut luck = SmallRng::seed_from_u64(seed);
    let mut last = Last::default();
    loop {
        let outcome = turn(&feed, &reach, &last).await;
        let now = clock::now();
        let (failures, retry_after, stuck) = match outcome {
            Turn::Understood { understood, at, said } => {
                let at = at.unwrap_or(now).min(now);
                let length = said.bytes.len() as u64;
                board.change(&feed.name, |state| state.succeeded(understood.clone(), length, at));
                last = said.kept();
                (0, None, None)
            }
            Turn::Failed { failure, stuck } => {
                let failures = failed(&board, &feed, &failure, now);
                (failures, failure.retry_after, stuck)
            }
        };
        let pause = pace::pause(feed.every, failures, retry_after, luck.random());
        let next = stuck.is_none().then(|| now.after(pause));
        board.change(&feed.name, |state| FeedState { next, ..state.clone() });
        // Never two at once: a program that cannot be stopped keeps its feed until it ends.
        if let Some(stuck) = stuck {
            let _ = stuck.await;
        }
        tokio::time::sleep(pause).await;
    }
}

/// Notes a failure everywhere; gives back how many there were in a row.
fn failed(board: &FeedBoard, feed: &Feed, failure: &Failure, now: Timestamp) -> u32 {
    telemetry::feed_failed(&feed.name, failure.reason);
    board.change(&feed.name, |state| state.failed(failure.clone(), now));
    let failures = board.get(&feed.name).map_or(1, |(_, state)| state.failures);
    // Once when it begins; the API shows the newest.
    if failures == 1 {
        tracing::warn!(feed = %feed.name, stage = failure.stage.name(), why = %failure.what, "a feed fails");
    } else {
        tracing::debug!(feed = %feed.name, failures, why = %failure.what, "a feed still fails");
    }
    failures
}

type Thinking = JoinHandle<Result<Understood, Failure>>;

/// What a source said, and by what it will know that this has not changed.
#[derive(Clone, Default)]
struct Last {
    validators: Validators,
    bytes: Bytes,
}

impl Last {
    /// A source that cannot say "unchanged" says it all once more.
    fn kept(self) -> Self {
        if self.validators == Validators::default() { Self::default() } else { self }
    }
}

enum Turn {
    Understood { understood: Understood, at: Option<Timestamp>, said: Last },
    Failed { failure: Failure, stuck: Option<Thinking> },
}

async fn turn(feed: &Arc<Feed>, reach: &Reach, last: &Last) -> Turn {
    let (said, at) = match fetch(feed, reach, &last.validators).await {
        Ok(Fetched::Bytes { bytes, at, validators }) => (Last { validators, bytes: bytes.into() }, at),
        // Understood once more: what the same bytes say of today is not what they said then.
        Ok(Fetched::Unchanged) => (last.clone(), None),
        Err(failure) => return Turn::Failed { failure, stuck: None },
    };
    match understand(feed, said.bytes.clone(), clock::now()).await {
        Ok(understood) => Turn::Understood { understood, at, said },
        Err((failure, stuck)) => Turn::Failed { failure, stuck },
    }
}

/// Decodes and maps on a thread of its own, for at most the feed's time.
pub(super) async fn understand(
    feed: &Arc<Feed>,
    bytes: Bytes,
    now: Timestamp,
) -> Result<Understood, (Failure, Option<Thinking>)> {
    let thinker = feed.clone();
    let mut thinking = tokio::task::spawn_blocking(move || thinker.understand(&bytes, now));
    let fail = |stage, reason, what| Failure { stage, reason, what, retry_after: None };
    match tokio::time::timeout(feed.timeout, &mut thinking).await {
        Ok(Ok(outcome)) => outcome.map_err(|failure| (failure, None)),
        Ok(Err(_)) => {
            let what = "the reader broke down on these bytes: report this as a defect of Godwit";
            Err((fail(Stage::Decode, Reason::Decode, what.into()), None))
        }
        Err(_) => {
            let what = format!("the program takes longer than {} s", feed.timeout.as_secs_f64());
            Err((fail(Stage::Map, Reason::Timeout, what), Some(thinking)))
        }
    }
}

/// Why a post was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PostRefused {
    /// There is no such feed, or it is not posted to.
    #[error("feed {0:?} is not posted to: it has no `webhook` in the configuration")]
    NoWebhook(String),
    /// The signature is missing or wrong.
    #[error("{0}")]
    Signature(String),
    /// More than the feed's `max_bytes`.
    #[error("the body has more than {0} bytes (max_bytes of the feed)")]
    TooLarge(u64),
    /// It says nothing that is understood.
    #[error("{0}")]
    NotUnderstood(Failure),
    /// It counts, and will not after a restart.
    #[error("it counts until this node ends, and cannot be kept: {0}")]
    NotKept(String),
}

/// What was posted before this program began stands again, as old as it is; and nothing of it can be posted again.
pub async fn recall(board: &FeedBoard, journal: &Journal, now: Timestamp) -> Result<(), StoreError> {
    let one = async |PostedRow { feed: name, signed, said }| {
        let Some((feed, _)) = board.get(&name).filter(|(feed, _)| is_webhook(feed)) else { return };
        // A clock that was wrong then must not refuse posts for as long as it was.
        let signed = Some(signed.min(now.after(webhook::SKEW)));
        board.change(&name, |state| FeedState { signed, ..state.clone() });
        let Some((body, at)) = said else { return };
        let length = body.len() as u64;
        // What its program says of now is said of when it was posted.
        match understand(feed, body.into(), at.min(now)).await {
            Ok(understood) => {
                let heard = clock::monotonic().checked_sub(now.since(at));
                board.change(&name, |state| {
                    let stands = state.succeeded(understood.clone(), length, at);
                    FeedState { heard, ..stands }
                });
            }
            Err((failure, _)) => drop(failed(board, feed, &failure, now)),
        }
    };
    join_all(journal.posts()?.into_iter().map(one)).await;
    Ok(())
}

fn is_webhook(feed: &Feed) -> bool {
    matches!(feed.source, Source::Webhook(_))
}

/// Takes a post for `name` and keeps it in `journal`. Gives back how many readings it had.
pub async fn receive(
    board: &FeedBoard,
    journal: &Journal,
    name: &str,
    signature: Option<&str>,
    body: &[u8],
    now: Timestamp,
) -> Result<usize, PostRefused> {
    let no_webhook = || PostRefused::NoWebhook(name.to_owned());
    let _turn = board.turn(name).await.ok_or_else(no_webhook)?;
    let (feed, state) = board.get(name).ok_or_else(no_webhook)?;
    let Source::Webhook(secret) = &feed.source else { return Err(no_webhook()) };
    if body.len() as u64 > feed.max_bytes {
        return Err(PostRefused::TooLarge(feed.max_bytes));
    }
    // A wrong signature leaves no trace on the board: strangers must not be able to write there.
    let signed = webhook::verify(secret, signature, body, state.signed, now).map_err(|why| {
        telemetry::feed_failed(name, Reason::Signature);
        PostRefused::Signature(why)
    })?;
    let understood =
        understand(feed, Bytes::copy_from_slice(body), now).await.map_err(|(failure, _)| failure);
    match &understood {
        Ok(understood) => board.change(name, |state| FeedState {
            signed: Some(signed),
            ..state.succeeded(understood.clone(), body.len() as u64, now)
        }),
        Err(failure) => {
            failed(board, feed, failure, now);
            board.change(name, |state| FeedState { signed: Some(signed), ..state.clone() });
        }
    }
    let said = understood.is_ok().then(|| (body.to_vec(), now));
    let kept = journal.keep_post(&PostedRow { feed: name.to_owned(), signed, said });
    let understood = understood.map_err(PostRefused::NotUnderstood)?;
    kept.map_err(|error| PostRefused::NotKept(chain(&error)))?;
    Ok(understood.findings.len())
}

#[cfg(test)]
mod tests;
