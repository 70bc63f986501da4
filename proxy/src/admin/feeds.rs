//! Feeds: what they say, and what others post to them.

use axum::Json;
use axum::body::{Body, to_bytes};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use serde_json::{Value, json};

use super::access::Caller;
use super::{AdminState, Problem};
use crate::clock;
use crate::feeds::external::runner::{PostRefused, receive};
use crate::feeds::external::view::{self, FeedView};
use crate::feeds::external::webhook;
use crate::feeds::external::{Feed, Source};

/// Feeds about a resource that the caller may not know are not there for it.
fn knows(caller: &Caller, feed: &Feed) -> bool {
    feed.resource.as_deref().is_none_or(|resource| caller.knows(resource))
}

pub(super) async fn all(State(state): State<AdminState>, caller: Caller) -> Json<Vec<FeedView>> {
    let now = clock::now();
    let known = state.feeds.all().filter(|(feed, _)| knows(&caller, feed));
    Json(known.map(|(feed, newest)| view::one(feed, &newest, now)).collect())
}

pub(super) async fn one(
    State(state): State<AdminState>,
    Path(name): Path<String>,
    caller: Caller,
) -> Result<Json<FeedView>, Problem> {
    let found = state.feeds.get(&name).filter(|(feed, _)| knows(&caller, feed));
    let (feed, newest) = found.ok_or_else(|| Problem::not_found("feed", &name))?;
    Ok(Json(view::one(feed, &newest, clock::now())))
}

pub(super) async fn post(
    State(state): State<AdminState>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<(StatusCode, Json<Value>), Problem> {
    let takes = |feed: &Feed| matches!(feed.source, Source::Webhook(_)).then_some(feed.max_bytes);
    let limit = state.feeds.get(&name).and_then(|(feed, _)| takes(feed));
    let limit = limit.ok_or_else(|| refused(PostRefused::NoWebhook(name.clone())))?;
    // No more is read than the feed takes.
    let body = to_bytes(body, usize::try_from(limit).unwrap_or(usize::MAX))
        .await
        .map_err(|_| refused(PostRefused::TooLarge(limit)))?;
    let signature = headers.get(webhook::HEADER).and_then(|value| value.to_str().ok());
    let (feeds, journal) = (&state.feeds, &state.journal);
    let readings = receive(feeds, journal, &name, signature, &body, clock::now()).await.map_err(refused)?;
    Ok((StatusCode::ACCEPTED, Json(json!({ "readings": readings }))))
}

fn refused(refused: PostRefused) -> Problem {
    let (status, kind) = match &refused {
        PostRefused::NoWebhook(_) => (StatusCode::NOT_FOUND, "not-found"),
        PostRefused::Signature(_) => (StatusCode::FORBIDDEN, "signature"),
        PostRefused::TooLarge(_) => (StatusCode::PAYLOAD_TOO_LARGE, "too-large"),
        PostRefused::NotKept(_) => (StatusCode::SERVICE_UNAVAILABLE, "not-kept"),
        PostRefused::NotUnderstood(_) => (StatusCode::UNPROCESSABLE_ENTITY, "not-understood"),
    };
    Problem::new(status, kind, refused.to_string())
}
