//! Calls that change something: in the audit before they are carried out, and again with what became of them.

use axum::body::{Body, Bytes, HttpBody as _, to_bytes};
use axum::extract::{ConnectInfo, Request};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde_json::Value;

use super::Caller;
use crate::admin::{BODY_LIMIT, Peer, Problem};
use crate::audit::entry::without_secrets;
use crate::audit::{Audit, Entry, Who};

/// Largest answer that is recorded, bytes.
const ANSWER: usize = 4 << 10;

/// Runs a call between its two records; 503 where the first cannot be written.
pub(super) async fn run(audit: &Audit, caller: &Caller, request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    let body = match to_bytes(body, BODY_LIMIT).await {
        Ok(body) => body,
        Err(error) => {
            let what = format!("the body cannot be read: {error}; it may have {BODY_LIMIT} bytes");
            return Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "body", what).into_response();
        }
    };
    let request = Request::from_parts(parts, Body::from(body.clone()));
    let call = crate::rng::id();
    let entry = Entry::Call {
        call: call.clone(),
        who: who(caller, &request),
        method: request.method().to_string(),
        path: request.uri().path().to_owned(),
        body: content(&body),
    };
    if let Err(error) = audit.write(entry).await {
        return Problem::new(StatusCode::SERVICE_UNAVAILABLE, "audit", error.to_string()).into_response();
    }
    let response = next.run(request).await;
    let status = response.status().as_u16();
    let (response, answer) = copied(response).await;
    audit.note(Entry::Outcome { call, status, answer });
    response
}

/// A call that the caller has no right to.
pub(super) fn refused(audit: &Audit, caller: &Caller, request: &Request, why: &str) {
    audit.note(Entry::Refused {
        who: who(caller, request),
        method: request.method().to_string(),
        path: request.uri().path().to_owned(),
        why: why.to_owned(),
    });
}

fn who(caller: &Caller, request: &Request) -> Who {
    let peer = request.extensions().get::<ConnectInfo<Peer>>();
    Who::of(caller, peer.map(|ConnectInfo(peer)| peer.address.ip().to_string()))
}

/// The answer, and what the audit keeps of it. One whose length is not known, or too much, goes through unread.
async fn copied(response: Response) -> (Response, Value) {
    let short = response.body().size_hint().exact().is_some_and(|length| length <= ANSWER as u64);
    if !short {
        return (response, Value::Null);
    }
    let (parts, body) = response.into_parts();
    match to_bytes(body, ANSWER).await {
        Ok(bytes) => {
            let answer = content(&bytes);
            (Response::from_parts(parts, Body::from(bytes)), answer)
        }
        Err(error) => {
            let problem = Problem::no_answer(&error);
            (problem.into_response(), Value::Null)
        }
    }
}

/// A body as it is recorded: JSON without secrets; of anything else only its length.
fn content(body: &Bytes) -> Value {
    if body.is_empty() {
        return Value::Null;
    }
    match serde_json::from_slice(body) {
        Ok(value) => without_secrets(value),
        Err(_) => serde_json::json!({ "bytes": body.len() }),
    }
}
