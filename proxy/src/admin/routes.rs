//! The routes of [`super`].

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{ConnectInfo, DefaultBodyLimit, Path, Query, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json, Router};
use serde::Deserialize;
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;

use super::access::guard::{self, Guard};
use super::access::{Caller, Permission, Routes, Scope};
use super::access_routes as access;
use super::{
    AdminState, BODY_LIMIT, Peer, Problem, assets, changes, events, feeds, history as past, lead, log,
    openapi, sent,
};
use crate::audit::read::{Wanted, newest};
use crate::controller::drift::{self, SchemaView, SyncRequest, TablesRequest};
use crate::controller::freezes::FreezeView;
use crate::controller::proposals::Person;
use crate::controller::taking_over::{self, Said};
use crate::controller::verification::{Request as VerifyRequest, VerificationView};
use crate::controller::view::{DecisionView, MigrationView, ReplicationView, ResourceView};
use crate::controller::{Command, Denied, Plan, ResourceHandle, doctor, zones};
use crate::store::{EVERY_RESOURCE, FreezeRow, RunRow};

pub(super) type Answer<T> = Result<T, Problem>;

pub(super) fn router(state: AdminState, calls: TaskTracker) -> Router {
    let (router, table) = routes().finish();
    let hosts = state.running.config().node.admin.hosts.clone().into();
    let (identities, audit) = (state.identities.clone(), state.audit.clone());
    let guard = Guard { table, hosts, identities, audit, calls, rate: Arc::default() };
    router
        .route_layer(from_fn_with_state(guard, guard::check))
        .fallback(|uri: Uri| async move { Problem::not_found("route", uri.path()) })
        .method_not_allowed_fallback(|method: Method, uri: Uri| async move {
            let what = format!("{} does not take {method}", uri.path());
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method", what)
        })
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .with_state(state)
}

/// Every route, with what it needs.
pub(super) fn routes() -> Routes {
    use Permission::{Administer, Operate, Public, Read};
    Routes::default()
        .get("/api/v1/resources", Read, resources)
        .post("/api/v1/resources", Administer, changes::reserve)
        .get("/api/v1/resources/{id}", Read, resource)
        .delete("/api/v1/resources/{id}", Administer, changes::release)
        .get("/api/v1/resources/{id}/shadow", Read, changes::shadow)
        .put("/api/v1/resources/{id}/shadow", Operate, changes::put_shadow)
        .delete("/api/v1/resources/{id}/shadow", Operate, changes::reset_shadow)
        .get("/api/v1/resources/{id}/scaling", Read, changes::scaling)
        .put("/api/v1/resources/{id}/scaling", Operate, changes::put_scaling)
        .delete("/api/v1/resources/{id}/scaling", Operate, changes::reset_scaling)
        .get("/api/v1/resources/{id}/score", Read, score)
        .get("/api/v1/resources/{id}/forecast", Read, past::forecast)
        .get("/api/v1/resources/{id}/latency", Read, past::latency)
        .get("/api/v1/resources/{id}/history", Read, past::series)
        .get("/api/v1/resources/{id}/replication", Read, replication)
        .get("/api/v1/resources/{id}/replication/parameters", Read, changes::replication)
        .put("/api/v1/resources/{id}/replication", Operate, changes::put_replication)
        .delete("/api/v1/resources/{id}/replication", Operate, changes::reset_replication)
        .get("/api/v1/resources/{id}/verification", Read, verification)
        .post("/api/v1/resources/{id}/verification", Operate, verify)
        .delete("/api/v1/resources/{id}/verification", Operate, stop_verification)
        .get("/api/v1/resources/{id}/zones", Read, choice)
        .get("/api/v1/resources/{id}/doctor", Read, examination)
        .post("/api/v1/resources/{id}/reseed", Operate, reseed)
        .post("/api/v1/resources/{id}/reseed/tables", Operate, reseed_tables)
        .get("/api/v1/resources/{id}/schema", Read, schema)
        .post("/api/v1/resources/{id}/schema/sync", Operate, sync_schema)
        .get("/api/v1/resources/{id}/migrations", Read, migrations)
        .post("/api/v1/resources/{id}/migrations", Operate, migrate)
        .post("/api/v1/resources/{id}/takeover", Operate, take_over)
        .get("/api/v1/resources/{id}/migrations/{mid}", Read, migration)
        .post("/api/v1/resources/{id}/migrations/{mid}/abort", Operate, abort)
        .post("/api/v1/resources/{id}/migrations/{mid}/retire", Operate, retire)
        .post("/api/v1/resources/{id}/proposals/{pid}/approve", Operate, approve)
        .post("/api/v1/resources/{id}/freeze", Operate, freeze)
        .delete("/api/v1/resources/{id}/freeze", Operate, unfreeze)
        .get("/api/v1/freezes", Read, freezes)
        .post("/api/v1/freezes", Operate, freeze_all)
        .delete("/api/v1/freezes", Operate, unfreeze_all)
        .get("/api/v1/zones", Read, all_zones)
        .get("/api/v1/feeds", Read, feeds::all)
        .get("/api/v1/feeds/{name}", Read, feeds::one)
        // Its signature says who posts.
        .post("/api/v1/feeds/{name}", Public, feeds::post)
        .get("/api/v1/history", Read, history)
        .get("/api/v1/config", Operate, changes::config)
        .post("/api/v1/config/reload", Administer, changes::reload)
        .get("/api/v1/lead", Read, lead::who)
        .post("/api/v1/lead", Administer, lead::lead)
        .get("/api/v1/log", Operate, log::filter)
        .put("/api/v1/log", Administer, log::set)
        .delete("/api/v1/log", Administer, log::reset)
        .get("/api/v1/audit", Administer, audit)
        .get("/api/v1/events", Read, events::stream)
        .get("/api/v1/openapi.json", Read, openapi::served)
        .get("/", Public, assets::index)
        .get("/dashboard/{*path}", Public, assets::asset)
        .get("/metrics", Read, metrics)
        .get("/livez", Public, async || "ok\n")
        .get("/readyz", Public, ready)
        .get("/api/v1/whoami", Read, access::whoami)
        .post("/api/v1/session", Public, access::log_in)
        .delete("/api/v1/session", Public, access::log_out)
        .get("/api/v1/tokens", Administer, access::tokens)
        .post("/api/v1/tokens", Administer, access::create_token)
        .delete("/api/v1/tokens/{id}", Administer, access::revoke_token)
}

pub(super) fn find(state: &AdminState, id: &str) -> Answer<ResourceHandle> {
    let found = state.running.resources().get(id).cloned();
    found.ok_or_else(|| lead::standby(state, None).unwrap_or_else(|| Problem::not_found("resource", id)))
}

/// What is done with databases needs some.
fn has_database(handle: &ResourceHandle, nothing: &str) -> Answer<()> {
    if handle.live.load().has_database() {
        return Ok(());
    }
    Err(Denied::Conflict(format!("the resource has no database: there is {nothing}")).into())
}

/// What is of the whole node is not for those who are let in for some resources.
pub(super) fn everything(caller: &Caller, what: &str) -> Answer<()> {
    if caller.scope == Scope::All {
        return Ok(());
    }
    let what = format!("{what} needs a token for all resources");
    Err(Problem::new(StatusCode::FORBIDDEN, "scope", what))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ResourcePage {
    #[serde(default = "resources_limit")]
    limit: u32,
    /// Only those whose names sort behind this one.
    after: Option<String>,
}

async fn resources(
    State(state): State<AdminState>,
    page: Result<Query<ResourcePage>, QueryRejection>,
    caller: Caller,
) -> Answer<Response> {
    let Query(page) = page.map_err(query)?;
    lead::leads(&state, &caller)?;
    let resources = state.running.resources();
    let limit = page.limit.clamp(1, RESOURCES_MOST) as usize;
    let (page, more) = sent::page(&resources, page.after.as_deref(), limit, |name| caller.knows(name));
    // Names need no escaping: they are letters, digits, `-`, `_` and `.`.
    let next = page
        .last()
        .filter(|_| more)
        .map(|(last, _)| format!("</api/v1/resources?limit={limit}&after={last}>; rel=\"next\""));
    let views = page.into_iter().map(|(name, handle)| (name, handle.view.load_full())).collect();
    let json = state.sent.resources(views, &resources).map_err(|error| Problem::no_answer(&error))?;
    let mut response = as_json(json);
    if let Some(next) = next.and_then(|next| HeaderValue::from_str(&next).ok()) {
        response.headers_mut().insert(header::LINK, next);
    }
    Ok(response)
}

/// An answer that is encoded already.
pub(super) fn as_json(json: Bytes) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], json).into_response()
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

/// With the tag of its parameters, for who is about to change them.
async fn replication(State(state): State<AdminState>, Path(id): Path<String>) -> Answer<Response> {
    let view: ReplicationView = find(&state, &id)?.view.load().replication.clone();
    changes::with_tag(&state, &id, "replication", view)
}

async fn all_zones(State(state): State<AdminState>, caller: Caller) -> Json<Vec<zones::ZoneView>> {
    let mut zones = zones::zones(&state.running.config());
    for zone in &mut zones {
        zone.resources.retain(|name| caller.knows(name));
    }
    Json(zones)
}

async fn choice(State(state): State<AdminState>, Path(id): Path<String>) -> Answer<Json<zones::ChoiceView>> {
    let handle = find(&state, &id)?;
    let (view, resource) = (handle.view.load_full(), &handle.live.load());
    let (name, retention) = (id.clone(), state.history.retention());
    let placements: Vec<String> = resource.placements.keys().cloned().collect();
    let now = crate::clock::now();
    let spikes = past::read(&state.history, move |reader| {
        placements
            .into_iter()
            .map(|zone| {
                let rate = reader.spikes_per_day(&name, &zone, retention, now)?;
                Ok((zone, rate))
            })
            .collect()
    })
    .await
    .map_err(|problem| problem.detail);
    let now = crate::clock::now();
    Ok(Json(zones::choice(&state.running.config(), resource, &view, &spikes, &state.feeds, now)))
}

async fn examination(
    State(state): State<AdminState>,
    Path(id): Path<String>,
) -> Answer<Json<doctor::DoctorView>> {
    let handle = find(&state, &id)?;
    let (view, resource) = (handle.view.load_full(), &handle.live.load());
    let zones = [&*view.primary, &*view.shadow];
    let configured = state.running.config().resources.keys().cloned().collect();
    let differing = handle.verifications.differing();
    Ok(Json(Box::pin(doctor::examine(resource, zones, &view.replication, differing, &configured)).await))
}

#[derive(Deserialize)]
struct Page {
    #[serde(default = "default_limit")]
    limit: u32,
    resource: Option<String>,
}

/// What stands after the question mark is wrong.
pub(super) fn query(rejection: QueryRejection) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "query", rejection.body_text())
}

fn default_limit() -> u32 {
    50
}

/// Resources of a page at most: what a node answers within milliseconds.
const RESOURCES_MOST: u32 = 250;

fn resources_limit() -> u32 {
    100
}

fn views(state: &AdminState, runs: Vec<RunRow>) -> Answer<Vec<MigrationView>> {
    let views = runs.into_iter().map(|run| MigrationView::read(run, &state.journal));
    views.collect::<Result<_, _>>().map_err(Problem::from)
}

async fn migrations(
    State(state): State<AdminState>,
    Path(id): Path<String>,
    page: Result<Query<Page>, QueryRejection>,
) -> Answer<Json<Vec<MigrationView>>> {
    find(&state, &id)?;
    let Query(page) = page.map_err(query)?;
    let runs = state.journal.runs(Some(&id), page.limit.min(1000)).map_err(Problem::from)?;
    views(&state, runs).map(Json)
}

async fn history(
    State(state): State<AdminState>,
    page: Result<Query<Page>, QueryRejection>,
    caller: Caller,
) -> Answer<Json<Vec<MigrationView>>> {
    let Query(page) = page.map_err(query)?;
    lead::leads(&state, &caller)?;
    let (journal, limit) = (&state.journal, page.limit.min(1000));
    let runs = match (&page.resource, &caller.scope) {
        (Some(name), _) if !caller.knows(name) => Ok(Vec::new()),
        (None, Scope::Resources(names)) => journal.runs_of(names, limit),
        (name, _) => journal.runs(name.as_deref(), limit),
    };
    views(&state, runs.map_err(Problem::from)?).map(Json)
}

async fn migration(
    State(state): State<AdminState>,
    Path((id, mid)): Path<(String, String)>,
) -> Answer<Json<MigrationView>> {
    find(&state, &id)?;
    let run = state.journal.run(&mid).map_err(Problem::from)?.filter(|run| run.resource == id);
    let run = run.ok_or_else(|| Problem::not_found("migration", &mid))?;
    Ok(Json(views(&state, vec![run])?.swap_remove(0)))
}

#[derive(Default, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct MigrateRequest {
    /// Target zone; default: the shadow's.
    to: Option<String>,
    /// Only say what would happen.
    #[serde(default)]
    dry_run: bool,
}

#[derive(Default, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct TakeOverRequest {
    /// What the primary committed and the shadow has not may be lost.
    #[serde(default)]
    accept_loss: bool,
    /// Although the primary's database answers.
    #[serde(default)]
    primary_answers: bool,
    /// Although tables of the shadow are still being filled, and lack rows.
    #[serde(default)]
    incomplete: bool,
    /// Only say what would happen.
    #[serde(default)]
    dry_run: bool,
}

/// What the controller says to a command.
async fn told<T>(
    handle: &ResourceHandle,
    command: impl FnOnce(oneshot::Sender<Result<T, Denied>>) -> Command,
) -> Answer<T> {
    let stopping = || Problem::new(StatusCode::SERVICE_UNAVAILABLE, "stopping", "godwit is stopping");
    Ok(handle.ask(command).await.ok_or_else(stopping)??)
}

/// The same of a command to the resource of this id that is done later.
async fn accepted(
    state: &AdminState,
    id: &str,
    command: impl FnOnce(oneshot::Sender<Result<(), Denied>>) -> Command,
) -> Answer<StatusCode> {
    told(&find(state, id)?, command).await?;
    Ok(StatusCode::ACCEPTED)
}

/// No body at all asks for the default; a wrong one is an error.
pub(super) fn or_default<T: Default>(body: Result<Json<T>, JsonRejection>, headers: &HeaderMap) -> Answer<T> {
    match body {
        Ok(Json(request)) => Ok(request),
        Err(JsonRejection::MissingJsonContentType(_)) if !headers.contains_key(header::CONTENT_TYPE) => {
            Ok(T::default())
        }
        Err(rejection) => Err(Problem::new(StatusCode::BAD_REQUEST, "body", rejection.body_text())),
    }
}

async fn approve(
    State(state): State<AdminState>,
    Path((id, pid)): Path<(String, String)>,
    caller: Caller,
) -> Answer<Response> {
    let handle = find(&state, &id)?;
    let by = Person { name: caller.name, id: caller.person };
    let plan = told(&handle, |reply| Command::Approve { id: Some(pid), by, reply }).await?;
    Ok(begun(&id, plan))
}

/// With where it can be followed, once it has begun; a plan that only says what would be is no more than asked for.
fn begun(id: &str, plan: Plan) -> Response {
    let status =
        if plan.id.is_some() || plan.approval.is_some() { StatusCode::ACCEPTED } else { StatusCode::OK };
    let place = plan.id.as_ref().map(|mid| format!("/api/v1/resources/{id}/migrations/{mid}"));
    let place = place.map(|place| [(header::LOCATION, place)]);
    (status, place, Json(plan)).into_response()
}

#[derive(Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct FreezeRequest {
    /// Why nothing may move.
    why: String,
    /// For how long; none: until it is lifted.
    for_ms: Option<u64>,
}

fn order(
    state: &AdminState,
    scope: &str,
    caller: &Caller,
    body: Result<Json<FreezeRequest>, JsonRejection>,
) -> Answer<Json<Vec<FreezeView>>> {
    let Json(request) =
        body.map_err(|rejection| Problem::new(StatusCode::BAD_REQUEST, "body", rejection.body_text()))?;
    if request.why.trim().is_empty() {
        return Err(changes::wrong("/why", "is empty", "a reason: everybody who asks will read it"));
    }
    if request.for_ms == Some(0) {
        return Err(changes::wrong("/for_ms", "is 0: it would be over at once", "longer, or left out"));
    }
    let now = crate::clock::now();
    let until = request.for_ms.map(|ms| now.after(std::time::Duration::from_millis(ms)));
    let row =
        FreezeRow { scope: scope.to_owned(), by: caller.name.clone(), why: request.why, at: now, until };
    state.freezes.order(row).map_err(Problem::from)?;
    Ok(Json(shown(state, caller)))
}

/// Those of resources that the caller may know of.
fn shown(state: &AdminState, caller: &Caller) -> Vec<FreezeView> {
    let mut freezes = state.freezes.views(crate::clock::now());
    freezes.retain(|freeze| freeze.resource.as_ref().is_none_or(|name| caller.knows(name)));
    freezes
}

fn lift(state: &AdminState, resource: Option<&str>, caller: &Caller) -> Answer<Json<Vec<FreezeView>>> {
    let lifted = state.freezes.lift(resource).map_err(Problem::from)?;
    if lifted.is_empty() {
        let what = resource.map_or("nothing is frozen as a whole".into(), |id| {
            format!("{id} is not frozen by itself: godwit freezes lists what is, GET /api/v1/freezes as well")
        });
        return Err(Problem::new(StatusCode::CONFLICT, "conflict", what));
    }
    for FreezeRow { scope, by, why, .. } in lifted {
        tracing::info!(scope, by, why, lifted_by = caller.name, "a freeze is lifted");
    }
    Ok(Json(shown(state, caller)))
}

async fn freezes(State(state): State<AdminState>, caller: Caller) -> Answer<Json<Vec<FreezeView>>> {
    lead::leads(&state, &caller)?;
    Ok(Json(shown(&state, &caller)))
}

async fn freeze(
    State(state): State<AdminState>,
    Path(id): Path<String>,
    caller: Caller,
    body: Result<Json<FreezeRequest>, JsonRejection>,
) -> Answer<Json<Vec<FreezeView>>> {
    find(&state, &id)?;
    order(&state, &id, &caller, body)
}

async fn unfreeze(
    State(state): State<AdminState>,
    Path(id): Path<String>,
    caller: Caller,
) -> Answer<Json<Vec<FreezeView>>> {
    find(&state, &id)?;
    lift(&state, Some(&id), &caller)
}

async fn freeze_all(
    State(state): State<AdminState>,
    caller: Caller,
    body: Result<Json<FreezeRequest>, JsonRejection>,
) -> Answer<Json<Vec<FreezeView>>> {
    everything(&caller, "a freeze of everything")?;
    lead::leads(&state, &caller)?;
    order(&state, EVERY_RESOURCE, &caller, body)
}

async fn unfreeze_all(State(state): State<AdminState>, caller: Caller) -> Answer<Json<Vec<FreezeView>>> {
    everything(&caller, "a freeze of everything")?;
    lead::leads(&state, &caller)?;
    lift(&state, None, &caller)
}

async fn migrate(
    State(state): State<AdminState>,
    Path(id): Path<String>,
    caller: Caller,
    headers: HeaderMap,
    body: Result<Json<MigrateRequest>, JsonRejection>,
) -> Answer<Response> {
    let handle = find(&state, &id)?;
    let request: MigrateRequest = or_default(body, &headers)?;
    let dry_run = request.dry_run;
    let by = Person { name: caller.name, id: caller.person };
    let plan = told(&handle, |reply| Command::Migrate { to: request.to, by, dry_run, reply }).await?;
    Ok(begun(&id, plan))
}

async fn take_over(
    State(state): State<AdminState>,
    Path(id): Path<String>,
    caller: Caller,
    headers: HeaderMap,
    body: Result<Json<TakeOverRequest>, JsonRejection>,
) -> Answer<Response> {
    let handle = find(&state, &id)?;
    let TakeOverRequest { accept_loss, primary_answers, incomplete, dry_run } = or_default(body, &headers)?;
    if !handle.live.load().has_database() {
        let view = handle.view.load();
        return Err(Denied::Conflict(format!(
            "the resource has no database: nothing can be lost, and godwit migrate {id} --to {} moves it, also where {} does not answer",
            view.shadow, view.primary
        ))
        .into());
    }
    let said = Said { accept_loss, primary_answers, incomplete };
    let plan = taking_over::plan(&handle.streams, &handle.view.load_full(), said).await;
    if dry_run {
        return Ok(begun(&id, plan));
    }
    if let Some(refused) = taking_over::refused(&plan) {
        return Err(refused.into());
    }
    let by = caller.name;
    let plan = told(&handle, |reply| Command::TakeOver { plan: Box::new(plan), by, reply }).await?;
    Ok(begun(&id, plan))
}

async fn schema(State(state): State<AdminState>, Path(id): Path<String>) -> Answer<Json<SchemaView>> {
    let handle = find(&state, &id)?;
    has_database(&handle, "no schema to compare")?;
    let (view, resource) = (handle.view.load_full(), &handle.live.load());
    Ok(Json(drift::diff(resource, &view, &handle.streams).await?))
}

async fn sync_schema(
    State(state): State<AdminState>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Result<Json<SyncRequest>, JsonRejection>,
) -> Answer<Json<SchemaView>> {
    let handle = find(&state, &id)?;
    has_database(&handle, "no schema to follow")?;
    let (view, resource, streams) = (handle.view.load_full(), handle.live.load(), handle.streams.clone());
    Ok(Json(drift::sync(resource, view, streams, or_default(body, &headers)?).await?))
}

async fn reseed_tables(
    State(state): State<AdminState>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Result<Json<TablesRequest>, JsonRejection>,
) -> Answer<Json<SchemaView>> {
    let handle = find(&state, &id)?;
    has_database(&handle, "nothing to seed")?;
    let (view, resource, streams) = (handle.view.load_full(), handle.live.load(), handle.streams.clone());
    Ok(Json(drift::seed_anew(resource, view, streams, or_default(body, &headers)?).await?))
}

async fn reseed(
    State(state): State<AdminState>,
    Path(id): Path<String>,
    caller: Caller,
) -> Answer<StatusCode> {
    accepted(&state, &id, |reply| Command::Reseed { by: caller.name, reply }).await
}

async fn abort(
    State(state): State<AdminState>,
    Path((id, mid)): Path<(String, String)>,
    caller: Caller,
) -> Answer<StatusCode> {
    accepted(&state, &id, |reply| Command::Abort { id: mid, by: caller.name, reply }).await
}

async fn retire(
    State(state): State<AdminState>,
    Path((id, mid)): Path<(String, String)>,
    caller: Caller,
) -> Answer<StatusCode> {
    accepted(&state, &id, |reply| Command::Retire { id: mid, by: caller.name, reply }).await
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
    caller: Caller,
    headers: HeaderMap,
    body: Result<Json<VerifyRequest>, JsonRejection>,
) -> Answer<(StatusCode, Json<VerificationView>)> {
    let handle = find(&state, &id)?;
    has_database(&handle, "nothing to compare")?;
    let request = or_default(body, &headers)?;
    let view = handle.verifications.start(request, caller.name, &handle.view.load())?;
    Ok((StatusCode::ACCEPTED, Json(view)))
}

async fn stop_verification(
    State(state): State<AdminState>,
    Path(id): Path<String>,
    caller: Caller,
) -> Answer<Json<VerificationView>> {
    let verifications = find(&state, &id)?.verifications;
    if !verifications.stop(&format!("stopped by {}", caller.name)) {
        return Err(Problem::new(StatusCode::CONFLICT, "conflict", "no verification is under way"));
    }
    Ok(Json(verifications.view()))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AuditPage {
    #[serde(default = "default_limit")]
    limit: u32,
    /// Only records before this number.
    before: Option<u64>,
    resource: Option<String>,
    who: Option<String>,
}

async fn audit(
    State(state): State<AdminState>,
    page: Result<Query<AuditPage>, QueryRejection>,
    caller: Caller,
) -> Answer<Json<Vec<serde_json::Value>>> {
    let Query(page) = page.map_err(query)?;
    everything(&caller, "the audit of the node")?;
    let directory = state.audit.directory().to_owned();
    let wanted = Wanted {
        limit: page.limit.clamp(1, 1000) as usize,
        before: page.before.unwrap_or(u64::MAX),
        resource: page.resource,
        who: page.who,
    };
    let found = tokio::task::spawn_blocking(move || newest(&directory, &wanted)).await;
    let found =
        found.map_err(|error| error.to_string()).and_then(|found| found.map_err(|error| error.to_string()));
    found.map(Json).map_err(|why| Problem::new(StatusCode::SERVICE_UNAVAILABLE, "audit", why))
}

async fn metrics(State(state): State<AdminState>, caller: Caller) -> Response {
    if let Err(problem) = everything(&caller, "the metrics of the node") {
        return problem.into_response();
    }
    let Some(handle) = state.metrics else {
        let what = "this process records no metrics";
        return Problem::new(StatusCode::NOT_FOUND, "no-metrics", what).into_response();
    };
    state.audit.measure();
    crate::telemetry::metrics::feed_ages(&state.feeds, crate::clock::now());
    // Of a thousand resources it is megabytes: too long for a thread that others wait for.
    match tokio::task::spawn_blocking(move || handle.render()).await {
        Ok(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response(),
        Err(error) => Problem::no_answer(&error).into_response(),
    }
}

/// Says to anybody whether it is ready; what it is ready with, to those who may read that.
async fn ready(
    State(state): State<AdminState>,
    peer: Option<Extension<ConnectInfo<Peer>>>,
    headers: HeaderMap,
    uri: Uri,
) -> Response {
    let verbose = uri.query().is_some_and(|query| query.split('&').any(|key| key == "verbose"));
    let caller = if verbose {
        let peer = peer.map(|Extension(ConnectInfo(peer))| peer);
        state.identities.caller(&headers, peer.as_ref()).await.ok()
    } else {
        None
    };
    if let Some(standby) = lead::standby(&state, caller.as_ref()) {
        return (StatusCode::SERVICE_UNAVAILABLE, format!("{}\n", standby.detail)).into_response();
    }
    let resources = state.running.resources();
    let views = resources.iter().map(|(name, handle)| (name.as_str(), handle.view.load_full()));
    let leads = uri.query().is_some_and(|query| query.split('&').any(|key| key == "leads"));
    let (ready, text) = readiness(views, caller.as_ref(), leads);
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let brief = if ready { "ok\n" } else { "holding\n" };
    (status, text.unwrap_or_else(|| brief.to_owned())).into_response()
}

/// Whether all of these serve, or may hold requests where only the lead is asked for, and a line for each that the caller may read; none: nobody
/// proves who asks.
fn readiness<'a>(
    views: impl Iterator<Item = (&'a str, Arc<ResourceView>)>,
    caller: Option<&Caller>,
    leads: bool,
) -> (bool, Option<String>) {
    let (mut ready, mut text) = (true, String::new());
    for (name, view) in views {
        // The service is reachable as long as its gate is open; a shadow in trouble is a warning, not an outage.
        let open = view.gate.as_ref().is_none_or(|gate| !gate.closed);
        ready &= open || leads;
        if !caller.is_some_and(|caller| caller.knows(name)) {
            continue;
        }
        text.push_str(&format!("{} {name} {}\n", if open { "ok  " } else { "hold" }, view.phase));
        for problem in &view.problems {
            text.push_str(&format!("warn {name} {problem}\n"));
        }
    }
    (ready, caller.map(|_| text))
}

#[cfg(test)]
mod tests;
