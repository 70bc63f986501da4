//! The routes of [`super`].

use std::sync::Arc;

use axum::extract::rejection::JsonRejection;
use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::http::{HeaderMap, HeaderName, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;

use super::{AdminState, Problem};
use crate::controller::verification::{Request as VerifyRequest, VerificationView};
use crate::controller::view::{DecisionView, MigrationView, ReplicationView, ResourceView};
use crate::controller::{Command, ResourceHandle, doctor, zones};
use crate::store::{RunRow, StoreError};

/// Largest request body, bytes.
const BODY_LIMIT: usize = 64 << 10;
/// Who asks, for the history; the API knows no users yet.
const OPERATOR: HeaderName = HeaderName::from_static("x-godwit-operator");

type Answer<T> = Result<T, Problem>;

pub(super) fn router(state: AdminState) -> Router {
    let resource = Router::new()
        .route("/", get(resource))
        .route("/score", get(score))
        .route("/replication", get(replication))
        .route("/verification", get(verification).post(verify).delete(stop_verification))
        .route("/zones", get(choice))
        .route("/doctor", get(examination))
        .route("/migrations", get(migrations).post(migrate))
        .route("/migrations/{mid}", get(migration))
        .route("/migrations/{mid}/abort", post(abort));
    Router::new()
        .route("/api/v1/resources", get(resources))
        .nest("/api/v1/resources/{id}", resource)
        .route("/api/v1/zones", get(all_zones))
        .route("/api/v1/history", get(history))
        .route("/metrics", get(metrics))
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .fallback(|uri: Uri| async move { Problem::not_found("route", uri.path()) })
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .with_state(state)
}

fn find<'a>(state: &'a AdminState, id: &str) -> Answer<&'a ResourceHandle> {
    state.resources.get(id).ok_or_else(|| Problem::not_found("resource", id))
}

fn store(error: StoreError) -> Problem {
    let text = crate::controller::effects::chain(error);
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "store", text)
}

async fn resources(State(state): State<AdminState>) -> Json<Vec<Arc<ResourceView>>> {
    Json(state.resources.values().map(|handle| handle.view.load_full()).collect())
}

async fn resource(
    State(state): State<AdminState>,
    Path(id): Path<String>,
) -> Answer<Json<Arc<ResourceView>>> {
    Ok(Json(find(&state, &id)?.view.load_full()))
}

async fn score(State(state): State<AdminState>, Path(id): Path<String>) -> Answer<Json<DecisionView>> {
    let view = find(&state, &id)?.view.load_full();
    view.decision.clone().map(Json).ok_or_else(|| {
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "no-decision", "nothing was measured yet")
    })
}

async fn replication(
    State(state): State<AdminState>,
    Path(id): Path<String>,
) -> Answer<Json<ReplicationView>> {
    Ok(Json(find(&state, &id)?.view.load().replication.clone()))
}

async fn all_zones(State(state): State<AdminState>) -> Json<Vec<zones::ZoneView>> {
    Json(zones::zones(&state.config))
}

async fn choice(State(state): State<AdminState>, Path(id): Path<String>) -> Answer<Json<zones::ChoiceView>> {
    let view = find(&state, &id)?.view.load_full();
    let resource = state.config.resources.get(&id).ok_or_else(|| Problem::not_found("resource", &id))?;
    Ok(Json(zones::choice(&state.config, resource, &view)))
}

async fn examination(
    State(state): State<AdminState>,
    Path(id): Path<String>,
) -> Answer<Json<doctor::DoctorView>> {
    let view = find(&state, &id)?.view.load_full();
    let resource = state.config.resources.get(&id).ok_or_else(|| Problem::not_found("resource", &id))?;
    Ok(Json(doctor::examine(resource, &view.primary, &view.shadow).await))
}

#[derive(Deserialize)]
struct Page {
    #[serde(default = "default_limit")]
    limit: u32,
    resource: Option<String>,
}

fn default_limit() -> u32 {
    50
}

fn views(state: &AdminState, runs: Vec<RunRow>) -> Answer<Vec<MigrationView>> {
    runs.into_iter()
        .map(|run| {
            let timeline = state.journal.timeline(&run.id).map_err(store)?;
            Ok(MigrationView::of(run, &timeline))
        })
        .collect()
}

async fn migrations(
    State(state): State<AdminState>,
    Path(id): Path<String>,
    Query(page): Query<Page>,
) -> Answer<Json<Vec<MigrationView>>> {
    find(&state, &id)?;
    let runs = state.journal.runs(Some(&id), page.limit.min(1000)).map_err(store)?;
    views(&state, runs).map(Json)
}

async fn history(
    State(state): State<AdminState>,
    Query(page): Query<Page>,
) -> Answer<Json<Vec<MigrationView>>> {
    let runs = state.journal.runs(page.resource.as_deref(), page.limit.min(1000)).map_err(store)?;
    views(&state, runs).map(Json)
}

async fn migration(
    State(state): State<AdminState>,
    Path((id, mid)): Path<(String, String)>,
) -> Answer<Json<MigrationView>> {
    find(&state, &id)?;
    let run = state.journal.run(&mid).map_err(store)?.filter(|run| run.resource == id);
    let run = run.ok_or_else(|| Problem::not_found("migration", &mid))?;
    Ok(Json(views(&state, vec![run])?.swap_remove(0)))
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct MigrateRequest {
    /// Target zone; default: the shadow's.
    to: Option<String>,
    /// Only say what would happen.
    #[serde(default)]
    dry_run: bool,
}

fn operator(headers: &HeaderMap) -> String {
    let named = headers.get(OPERATOR).and_then(|name| name.to_str().ok()).filter(|name| !name.is_empty());
    named.unwrap_or("api").chars().take(100).collect()
}

/// No body at all asks for the default; a wrong one is an error.
fn or_default<T: Default>(body: Result<Json<T>, JsonRejection>, headers: &HeaderMap) -> Answer<T> {
    match body {
        Ok(Json(request)) => Ok(request),
        Err(JsonRejection::MissingJsonContentType(_)) if !headers.contains_key(header::CONTENT_TYPE) => {
            Ok(T::default())
        }
        Err(rejection) => Err(Problem::new(StatusCode::BAD_REQUEST, "body", rejection.body_text())),
    }
}

async fn migrate(
    State(state): State<AdminState>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Result<Json<MigrateRequest>, JsonRejection>,
) -> Answer<Response> {
    let handle = find(&state, &id)?;
    let request: MigrateRequest = or_default(body, &headers)?;
    let dry_run = request.dry_run;
    let by = operator(&headers);
    let plan = handle
        .ask(|reply| Command::Migrate { to: request.to, by, dry_run, reply })
        .await
        .ok_or_else(|| Problem::new(StatusCode::SERVICE_UNAVAILABLE, "stopping", "godwit is stopping"))??;
    let Some(mid) = plan.id.clone() else { return Ok(Json(plan).into_response()) };
    let location = format!("/api/v1/resources/{id}/migrations/{mid}");
    Ok((StatusCode::ACCEPTED, [(header::LOCATION, location)], Json(plan)).into_response())
}

async fn abort(
    State(state): State<AdminState>,
    Path((id, mid)): Path<(String, String)>,
    headers: HeaderMap,
) -> Answer<StatusCode> {
    let handle = find(&state, &id)?;
    let by = operator(&headers);
    handle
        .ask(|reply| Command::Abort { id: mid, by, reply })
        .await
        .ok_or_else(|| Problem::new(StatusCode::SERVICE_UNAVAILABLE, "stopping", "godwit is stopping"))??;
    Ok(StatusCode::ACCEPTED)
}

async fn verification(
    State(state): State<AdminState>,
    Path(id): Path<String>,
) -> Answer<Json<VerificationView>> {
    Ok(Json(find(&state, &id)?.verifications.view()))
}

async fn verify(
    State(state): State<AdminState>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Result<Json<VerifyRequest>, JsonRejection>,
) -> Answer<(StatusCode, Json<VerificationView>)> {
    let handle = find(&state, &id)?;
    let request = or_default(body, &headers)?;
    let view = handle.verifications.start(request, operator(&headers), &handle.view.load())?;
    Ok((StatusCode::ACCEPTED, Json(view)))
}

async fn stop_verification(
    State(state): State<AdminState>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Answer<Json<VerificationView>> {
    let verifications = &find(&state, &id)?.verifications;
    if !verifications.stop(&format!("stopped by {}", operator(&headers))) {
        return Err(Problem::new(StatusCode::CONFLICT, "conflict", "no verification is under way"));
    }
    Ok(Json(verifications.view()))
}

async fn metrics(State(state): State<AdminState>) -> Response {
    match &state.metrics {
        Some(handle) => {
            let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4")];
            (kind, handle.render()).into_response()
        }
        None => Problem::new(StatusCode::NOT_FOUND, "no-metrics", "this process records no metrics")
            .into_response(),
    }
}

async fn ready(State(state): State<AdminState>, uri: Uri) -> Response {
    let mut text = String::new();
    let mut ready = true;
    for (name, handle) in state.resources.iter() {
        let view = handle.view.load();
        // The service is reachable as long as its gate is open; a shadow in trouble is a warning, not an outage.
        let open = view.gate.as_ref().is_none_or(|gate| !gate.closed);
        ready &= open;
        text.push_str(&format!("{} {name} {}\n", if open { "ok  " } else { "hold" }, view.phase));
        for problem in &view.problems {
            text.push_str(&format!("warn {name} {problem}\n"));
        }
    }
    let verbose = uri.query().is_some_and(|query| query.split('&').any(|key| key == "verbose"));
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let brief = if ready { "ok\n" } else { "holding\n" };
    (status, if verbose { text } else { brief.to_owned() }).into_response()
}
