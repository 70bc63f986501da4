//! Routes that change what the node leads: reservations, sections of resources, the configuration's files.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use migration::units::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::access::Caller;
use super::lead::standby;
use super::routes::{Answer, as_json, everything, find, query};
use super::{AdminState, Problem};
use crate::audit::chain::hex;
use crate::clock;
use crate::config::model::Resource;
use crate::controller::parameters;
use crate::leading::changes::{ChangeError, Changes, Reloaded, Wrong};
use crate::store::AnsweredRow;

/// Names a request, so that its second coming does nothing new.
const KEY: &str = "idempotency-key";
/// Longest key.
const KEY_LONGEST: usize = 200;
/// How long an answer is kept under its key.
const KEPT: std::time::Duration = std::time::Duration::from_hours(24);

/// A section of a resource: what is in force, and who says so.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SectionView {
    /// What is in force.
    #[serde(flatten)]
    pub value: Value,
    /// `policy NAME`, `configuration`, or who changed it by the API.
    pub origin: String,
    /// When it was changed, Unix milliseconds; none: it was not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changed_ms: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Dry {
    #[serde(default)]
    dry_run: bool,
}

impl From<ChangeError> for Problem {
    fn from(error: ChangeError) -> Self {
        let detail = error.to_string();
        match error {
            ChangeError::Invalid(errors) => {
                let words = |one: &Wrong| format!("{}: {}: {}", one.pointer, one.detail, one.right);
                let detail = errors.iter().map(words).collect::<Vec<_>>().join("; ");
                Self {
                    errors: errors.into(),
                    ..Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", detail)
                }
            }
            ChangeError::Files(_) => Self::new(StatusCode::CONFLICT, "configuration", detail),
            ChangeError::Unknown(name) => Self::not_found("resource", &name),
            ChangeError::Conflict(_) => Self::new(StatusCode::CONFLICT, "conflict", detail),
            ChangeError::Denied(denied) => denied.into(),
            ChangeError::Overlay(_) => Self::new(StatusCode::SERVICE_UNAVAILABLE, "overlay", detail),
            ChangeError::Failed(_) => Self::new(StatusCode::BAD_GATEWAY, "failed", detail),
        }
    }
}

fn changes(state: &AdminState) -> Answer<&Arc<Changes>> {
    state.changes.as_ref().ok_or_else(|| {
        let what = "this process leads nothing that could be changed";
        standby(state, None)
            .unwrap_or_else(|| Problem::new(StatusCode::SERVICE_UNAVAILABLE, "no-changes", what))
    })
}

pub(super) fn wrong(pointer: &str, detail: impl Into<String>, right: &str) -> Problem {
    let one = Wrong { pointer: pointer.into(), detail: detail.into(), right: right.into() };
    ChangeError::Invalid(vec![one]).into()
}

fn body(bytes: &Bytes) -> Answer<Value> {
    let value: Value = serde_json::from_slice(bytes)
        .map_err(|error| Problem::new(StatusCode::BAD_REQUEST, "body", format!("not JSON: {error}")))?;
    if value.is_object() { Ok(value) } else { Err(wrong("", "is not an object", "an object")) }
}

pub(super) async fn reserve(
    State(state): State<AdminState>,
    dry: Result<Query<Dry>, QueryRejection>,
    caller: Caller,
    headers: HeaderMap,
    bytes: Bytes,
) -> Answer<Response> {
    everything(&caller, "a reservation")?;
    let Query(Dry { dry_run }) = dry.map_err(query)?;
    let key = key(&headers)?;
    let changes = changes(&state)?;
    let _turn = state.answers.lock().await;
    let digest = digest(&bytes, dry_run);
    let since = Timestamp(clock::now().0.saturating_sub(KEPT.as_millis() as u64));
    if let Some(key) = &key
        && let Some(kept) = state.journal.answered(&caller.person, key, since).map_err(Problem::from)?
    {
        if kept.request != digest {
            let what = "this Idempotency-Key was used for another request";
            return Err(Problem::new(StatusCode::CONFLICT, "idempotency-key", what));
        }
        return Ok(again(kept));
    }
    let mut spec = body(&bytes)?;
    let name = spec.as_object_mut().and_then(|spec| spec.remove("name"));
    let Some(Value::String(name)) = name else {
        return Err(wrong("/name", "is missing, or is not text", "the resource's name"));
    };
    let reservation = changes.reserve(&name, &spec, &caller.name, dry_run).await?;
    if dry_run {
        return Ok(Json(reservation).into_response());
    }
    let location = location(&name);
    let answer = serde_json::to_string(&reservation).map_err(|error| Problem::no_answer(&error))?;
    let row = AnsweredRow {
        key: key.clone().unwrap_or_default(),
        who: caller.person,
        request: digest,
        status: StatusCode::CREATED.as_u16(),
        location: Some(location),
        answer,
        at: clock::now(),
    };
    if key.is_some()
        && let Err(error) = state.journal.answer(&row, since)
    {
        tracing::warn!(%error, "an answer is not kept under its key");
    }
    let mut response = again(row);
    response.headers_mut().remove("idempotent-replayed");
    Ok(response)
}

/// Names a request, but for its caller and its key.
fn digest(body: &[u8], dry_run: bool) -> String {
    hex(&Sha256::digest(body)) + if dry_run { " dry_run" } else { "" }
}

fn location(name: &str) -> String {
    format!("/api/v1/resources/{name}")
}

fn key(headers: &HeaderMap) -> Answer<Option<String>> {
    let Some(value) = headers.get(KEY) else { return Ok(None) };
    let text = value.to_str().ok().map(str::trim).filter(|text| {
        !text.is_empty() && text.len() <= KEY_LONGEST && text.bytes().all(|byte| byte.is_ascii_graphic())
    });
    match text {
        Some(text) => Ok(Some(text.to_owned())),
        None => {
            let what = format!("Idempotency-Key has 1 to {KEY_LONGEST} visible letters");
            Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "idempotency-key", what))
        }
    }
}

fn again(row: AnsweredRow) -> Response {
    let status = StatusCode::from_u16(row.status).unwrap_or(StatusCode::OK);
    let mut response = (status, row.answer).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert("idempotent-replayed", HeaderValue::from_static("true"));
    if let Some(location) = row.location.and_then(|location| HeaderValue::from_str(&location).ok()) {
        headers.insert(header::LOCATION, location);
    }
    response
}

pub(super) async fn release(
    State(state): State<AdminState>,
    Path(id): Path<String>,
    caller: Caller,
) -> Answer<StatusCode> {
    everything(&caller, "the end of a reservation")?;
    let changes = changes(&state)?;
    let _turn = state.answers.lock().await;
    changes.release(&id).await?;
    if let Err(error) = state.journal.forget_answers(&location(&id)) {
        tracing::warn!(%error, resource = id, "its reservation is still answered under its key");
    }
    Ok(StatusCode::NO_CONTENT)
}

fn view(state: &AdminState, id: &str, section: &str) -> Answer<(SectionView, String)> {
    let handle = find(state, id)?;
    let settings = handle.live.load();
    let mut value = parameters::of(&settings, section);
    let tag = parameters::tag(&value);
    if let (Some(value), true) = (value.as_object_mut(), section == "shadow") {
        value.insert("zone".into(), handle.view.load().shadow.clone().into());
    }
    let changed = state.changes.as_ref().and_then(|changes| changes.changed(id, section));
    let origin = match &changed {
        Some(change) => change.by.clone(),
        None if section == "scaling" => "configuration".to_owned(),
        None => format!("policy {}", settings.policy.name),
    };
    Ok((SectionView { value, origin, changed_ms: changed.map(|change| change.at_ms) }, tag))
}

fn tagged<T: Serialize>(body: T, tag: &str) -> Answer<Response> {
    let mut response = Json(body).into_response();
    let tag = HeaderValue::from_str(tag)
        .map_err(|error| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "tag", error.to_string()))?;
    response.headers_mut().insert(header::ETAG, tag);
    Ok(response)
}

/// The tag of a section, for answers that show more than it.
pub(super) fn with_tag<T: Serialize>(
    state: &AdminState,
    id: &str,
    section: &str,
    body: T,
) -> Answer<Response> {
    let (_, tag) = view(state, id, section)?;
    tagged(body, &tag)
}

macro_rules! section {
    ($get:ident, $put:ident, $reset:ident, $name:literal) => {
        pub(super) async fn $get(
            State(state): State<AdminState>,
            Path(id): Path<String>,
        ) -> Answer<Response> {
            let (view, tag) = view(&state, &id, $name)?;
            tagged(view, &tag)
        }

        pub(super) async fn $put(
            State(state): State<AdminState>,
            Path(id): Path<String>,
            caller: Caller,
            headers: HeaderMap,
            bytes: Bytes,
        ) -> Answer<Response> {
            put(&state, &id, $name, &caller, &headers, Some(&bytes)).await
        }

        pub(super) async fn $reset(
            State(state): State<AdminState>,
            Path(id): Path<String>,
            caller: Caller,
            headers: HeaderMap,
        ) -> Answer<Response> {
            put(&state, &id, $name, &caller, &headers, None).await
        }
    };
}

section!(shadow, put_shadow, reset_shadow, "shadow");
section!(replication, put_replication, reset_replication, "replication");
section!(scaling, put_scaling, reset_scaling, "scaling");

async fn put(
    state: &AdminState,
    id: &str,
    section: &'static str,
    caller: &Caller,
    headers: &HeaderMap,
    bytes: Option<&Bytes>,
) -> Answer<Response> {
    let handle = find(state, id)?;
    let expected = headers.get(header::IF_MATCH).and_then(|value| value.to_str().ok()).ok_or_else(|| {
        let what = "If-Match is missing: the ETag of what you saw, so that nobody's change is lost";
        Problem::new(StatusCode::PRECONDITION_REQUIRED, "if-match", what)
    })?;
    let value = match bytes {
        Some(bytes) => Some(accepted(section, body(bytes)?, &handle.view.load().shadow)?),
        None => None,
    };
    let matches = |settings: &Resource| {
        let tag = parameters::tag(&parameters::of(settings, section));
        let same = expected.trim() == "*" || expected.split(',').any(|one| one.trim() == tag);
        if same { Ok(()) } else { Err(ChangeError::Conflict(STALE.to_owned())) }
    };
    let done = changes(state)?.set(id, section, value.as_ref(), &caller.name, matches).await;
    match done {
        Ok(_) => {}
        Err(ChangeError::Conflict(what)) if what == STALE => {
            return Err(Problem::new(StatusCode::PRECONDITION_FAILED, "if-match", what));
        }
        Err(error) => return Err(error.into()),
    }
    let (view, tag) = view(state, id, section)?;
    tagged(view, &tag)
}

const STALE: &str = "it was changed since you saw it: read it again";

/// The body without what only says where the shadow is.
fn accepted(section: &str, mut value: Value, shadow: &str) -> Answer<Value> {
    let Some(body) = value.as_object_mut() else { return Ok(value) };
    // As they are shown.
    body.remove("origin");
    body.remove("changed_ms");
    if section != "shadow" {
        return Ok(value);
    }
    match body.remove("zone") {
        None => Ok(value),
        Some(zone) if zone == json!(shadow) => Ok(value),
        Some(zone) => Err(wrong(
            "/zone",
            format!("is {zone}, and the shadow is in {shadow}"),
            "the zone of the shadow: it moves by a migration, or by reserving the resource anew",
        )),
    }
}

pub(super) async fn config(State(state): State<AdminState>, caller: Caller) -> Answer<Response> {
    everything(&caller, "the configuration")?;
    let changes = Arc::clone(changes(&state)?);
    // Reads the files.
    let json = tokio::task::spawn_blocking(move || state.sent.config(changes.config()));
    let json = json.await.map_err(|error| Problem::no_answer(&error))?;
    Ok(as_json(json.map_err(|error| Problem::no_answer(&error))?))
}

pub(super) async fn reload(State(state): State<AdminState>, caller: Caller) -> Answer<Json<Reloaded>> {
    everything(&caller, "reading the configuration anew")?;
    if let Some(mut standby) = standby(&state, Some(&caller)) {
        standby.detail += "; it reads its files when it leads";
        return Err(standby);
    }
    Ok(Json(changes(&state)?.reload().await?))
}
