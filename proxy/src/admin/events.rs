//! `GET /api/v1/events`: docs/events.md.

use std::convert::Infallible;
use std::time::Duration;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::Deserialize;

use super::access::{Caller, Scope, Via};
use super::routes::query;
use super::{AdminState, Problem, lead};
use crate::clock;
use crate::controller::events::Message;

/// An event of its own after so long without one: the listener, and whoever is in between, sees that the connection lives.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// How long a client waits before it connects again.
const RETRY: Duration = Duration::from_secs(2);
/// How long a stream lasts where callers prove who they are: who comes back does so anew, and one that may not any more is out.
const LIFE: Duration = Duration::from_secs(300);
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

#[derive(Deserialize)]
pub(super) struct Filter {
    resource: Option<String>,
}

pub(super) async fn stream(
    State(state): State<AdminState>,
    filter: Result<Query<Filter>, QueryRejection>,
    caller: Caller,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let Query(filter) = filter.map_err(query)?;
    if let Some(standby) = lead::standby(&state, Some(&caller)) {
        return Err(standby);
    }
    let exists = |name: &str| state.running.resources().contains_key(name) && caller.knows(name);
    if let Some(name) = filter.resource.as_ref().filter(|name| !exists(name)) {
        return Err(Problem::not_found("resource", name));
    }
    let only = match (filter.resource, caller.scope) {
        (Some(name), _) => Some([name].into()),
        (None, Scope::Resources(names)) => Some(names),
        (None, Scope::All) => None,
    };
    let last = match headers.get(LAST_EVENT_ID) {
        None => None,
        Some(id) => Some(id.to_str().ok().and_then(|id| id.parse().ok()).ok_or_else(|| {
            Problem::new(StatusCode::BAD_REQUEST, "last-event-id", "Last-Event-ID is the number of an event")
        })?),
    };
    let listener = state.events.listen(only, last).ok_or_else(|| {
        Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "listeners",
            "as many listen to the events as may: close one, or ask again later",
        )
    })?;
    let first = Event::default().retry(RETRY).comment("godwit");
    let ends = (caller.via != Via::Open).then(|| clock::tick() + LIFE);
    let events = stream::unfold((listener, Some(first)), move |(mut listener, first)| async move {
        let event = match (first, ends) {
            (Some(first), _) => first,
            (None, None) => event(listener.next().await?),
            (None, Some(ends)) => event(tokio::time::timeout_at(ends, listener.next()).await.ok()??),
        };
        Some((Ok::<_, Infallible>(event), (listener, None)))
    });
    let mut response = Sse::new(events).keep_alive(alive()).into_response();
    // Not to be kept, nor to be gathered up, by a proxy in between.
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
        .headers_mut()
        .insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    Ok(response)
}

/// Scripts in a browser do not see comments, nor events without data.
fn alive() -> KeepAlive {
    KeepAlive::new().interval(HEARTBEAT).event(Event::default().event("alive").data("{}"))
}

fn event(message: Message) -> Event {
    match message {
        Message::Event(event) => {
            Event::default().id(event.id.to_string()).event(event.kind.name()).data(&event.data)
        }
        Message::Reset(id, reset) => {
            let data = serde_json::to_string(&reset).unwrap_or_default();
            Event::default().id(id.to_string()).event("reset").data(data)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt as _;

    #[tokio::test(start_paused = true)]
    async fn a_listener_hears_that_the_connection_lives() {
        let silent = stream::pending::<Result<Event, Infallible>>();
        let mut body = Sse::new(silent).keep_alive(alive()).into_response().into_body();
        let told = body.frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(told, "event: alive\ndata: {}\n\n");
    }
}
