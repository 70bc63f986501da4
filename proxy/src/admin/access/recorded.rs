//! Calls that change something: in the audit before they are carried out, and again with what became of them.

use std::panic::AssertUnwindSafe;

use axum::body::{Body, Bytes, HttpBody as _, to_bytes};
use axum::extract::{ConnectInfo, Query, Request};
use axum::http::{StatusCode, Uri};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt as _;
use serde_json::Value;
use tokio_util::task::TaskTracker;

use super::Caller;
use crate::admin::{BODY_LIMIT, Peer, Problem};
use crate::audit::entry::without_secrets;
use crate::audit::{Audit, AuditError, Entry, Who};

/// Where resources are reserved.
const RESOURCES: &str = "/api/v1/resources";
/// Largest answer that is recorded, bytes.
const ANSWER: usize = 4 << 10;

/// Runs a call between its two records; 503 where the first cannot be written in time. From the first on it is one of `calls`, which goes on to
/// its end although the caller has gone: a change is not left half done. `resource` is the one that its path names, as the guard read it.
pub(super) async fn run(
    audit: &Audit,
    calls: &TaskTracker,
    caller: &Caller,
    resource: Option<String>,
    request: Request,
    next: Next,
) -> Response {
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
    let (who, path, body) = (who(caller, &request), request.uri().path().to_owned(), content(&body));
    // What is reserved has its name in the body.
    let reserved = || body["name"].as_str().filter(|_| path == RESOURCES).map(str::to_owned);
    let resource = resource.or_else(reserved);
    let entry = Entry::Call {
        call: call.clone(),
        who: who.clone(),
        method: request.method().to_string(),
        path,
        query: asked(request.uri()),
        resource: resource.clone(),
        body,
    };
    let outcome = |status, answer| Entry::Outcome { call, who, resource, status, answer };
    let done = calls.spawn(carried_out(audit.clone(), entry, outcome, request, next));
    // It can only have been dropped with the runtime.
    done.await.unwrap_or_else(|error| Problem::no_answer(&error).into_response())
}

async fn carried_out(
    audit: Audit,
    entry: Entry,
    outcome: impl FnOnce(u16, Value) -> Entry,
    request: Request,
    next: Next,
) -> Response {
    if let Err(error) = audit.write(entry).await {
        let status = StatusCode::SERVICE_UNAVAILABLE;
        if error == AuditError::Late {
            // Where the call is there in the end, it says that nothing came of it.
            audit.note(outcome(status.as_u16(), error.to_string().into()));
        }
        return Problem::new(status, "audit", error.to_string()).into_response();
    }
    // A panic was reported where it came from.
    let response = AssertUnwindSafe(next.run(request)).catch_unwind().await;
    let response = response.unwrap_or_else(|_| Problem::no_answer(&"it ended in the middle").into_response());
    let status = response.status().as_u16();
    let (response, answer) = copied(response).await;
    audit.note(outcome(status, answer));
    response
}

/// A call that the caller has no right to.
pub(super) fn refused(
    audit: &Audit,
    caller: &Caller,
    resource: Option<String>,
    request: &Request,
    why: &str,
) {
    audit.note(Entry::Refused {
        who: who(caller, request),
        method: request.method().to_string(),
        path: request.uri().path().to_owned(),
        resource,
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

/// A query as it is recorded: names and values without secrets; of one that cannot be read only its length.
fn asked(uri: &Uri) -> Value {
    let Some(query) = uri.query() else { return Value::Null };
    let Ok(Query(pairs)) = Query::<Vec<(String, String)>>::try_from_uri(uri) else {
        return serde_json::json!({ "bytes": query.len() });
    };
    let mut asked = serde_json::Map::new();
    for (name, value) in pairs {
        let before = asked.remove(&name);
        let value = match before {
            None => value.into(),
            Some(Value::Array(values)) => values.into_iter().chain([value.into()]).collect(),
            Some(other) => Value::Array(vec![other, value.into()]),
        };
        asked.insert(name, value);
    }
    without_secrets(Value::Object(asked))
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use axum::Router;
    use axum::middleware::from_fn;
    use axum::routing::post;
    use tokio::sync::Notify;
    use tower::ServiceExt as _;

    use super::*;
    use crate::audit::Settings;
    use crate::audit::read::{Wanted, newest};

    /// The kinds of the audit's records, and the last one's status, once there are `count`.
    async fn records(directory: &std::path::Path, count: usize) -> (Vec<String>, Value) {
        let wanted = Wanted { limit: 10, before: u64::MAX, resource: None, who: None };
        loop {
            let records = newest(directory, &wanted).expect("records");
            if records.len() >= count {
                let kinds = records.iter().rev().map(|record| record["kind"].to_string()).collect();
                return (kinds, records[0]["status"].clone());
            }
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_call_that_the_disk_does_not_take_in_time_is_never_carried_out() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let settings = Settings { directory: directory.path().to_owned(), node: "n".into(), rotate: 1 << 20 };
        let audit = Audit::start(settings).expect("a thread");
        let recorded = {
            let audit = audit.clone();
            move |request: Request, next: Next| {
                let audit = audit.clone();
                async move { run(&audit, &TaskTracker::new(), &Caller::open(None), None, request, next).await }
            }
        };
        let done = Arc::new(AtomicBool::new(false));
        let handler = {
            let done = done.clone();
            async move || done.store(true, Ordering::Release)
        };
        let router = Router::new().route("/change", post(handler)).layer(from_fn(recorded));
        let hangs = directory.path().join("hangs");
        std::fs::write(&hangs, "").expect("write");
        tokio::time::pause();
        let request = Request::post("/change").body(Body::empty()).expect("a request");
        let answer = router.oneshot(request).await.expect("infallible");
        assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
        std::fs::remove_file(&hangs).expect("remove");
        let (kinds, status) = records(directory.path(), 3).await;
        assert_eq!(
            (kinds, status),
            (["opened", "call", "outcome"].map(|kind| format!("\"{kind}\"")).into(), 503.into())
        );
        assert!(!done.load(Ordering::Acquire));
    }

    #[test]
    fn what_is_asked_for_behind_the_path_is_recorded_without_secrets() {
        for (uri, recorded) in [
            ("/a", "null"),
            ("/a?dry_run=true&x", r#"{"dry_run":"true","x":""}"#),
            ("/a?y=1&y=%32&y=3&token=gdw_x", r#"{"token":"(not recorded)","y":["1","2","3"]}"#),
        ] {
            assert_eq!(asked(&uri.parse().expect("a URI")).to_string(), recorded, "{uri}");
        }
    }

    #[tokio::test]
    async fn a_call_is_carried_out_although_its_caller_has_gone() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let settings = Settings { directory: directory.path().to_owned(), node: "n".into(), rotate: 1 << 20 };
        let audit = Audit::start(settings).expect("a thread");
        let (begun, goes_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (calls, done) = (TaskTracker::new(), Arc::new(AtomicBool::new(false)));
        let handler = {
            let (begun, goes_on, done) = (begun.clone(), goes_on.clone(), done.clone());
            async move || {
                begun.notify_one();
                goes_on.notified().await;
                done.store(true, Ordering::Release);
            }
        };
        let recorded = {
            let calls = calls.clone();
            move |request: Request, next: Next| {
                let (audit, calls) = (audit.clone(), calls.clone());
                async move { run(&audit, &calls, &Caller::open(None), None, request, next).await }
            }
        };
        let router = Router::new()
            .route("/change", post(handler))
            .route("/panic", post(async || -> StatusCode { panic!("in the middle") }))
            .layer(from_fn(recorded));
        let request = |path| Request::post(path).body(Body::empty()).expect("a request");
        {
            let asked = router.clone().oneshot(request("/change"));
            tokio::select! {
                _ = asked => panic!("it waits"),
                () = begun.notified() => {}
            }
        }
        assert!(!done.load(Ordering::Acquire));
        goes_on.notify_one();
        let (kinds, status) = records(directory.path(), 3).await;
        assert_eq!(kinds, ["\"opened\"", "\"call\"", "\"outcome\""]);
        assert!(done.load(Ordering::Acquire) && status == 200);

        let answer = router.oneshot(request("/panic")).await.expect("infallible");
        assert_eq!(answer.status(), StatusCode::INTERNAL_SERVER_ERROR);
        let (kinds, status) = records(directory.path(), 5).await;
        assert_eq!((kinds[4].as_str(), status), ("\"outcome\"", 500.into()));
        calls.close();
        calls.wait().await;
    }
}
