//! The routes about callers themselves: who am I, log in and out, tokens.

use std::collections::BTreeSet;

use axum::extract::rejection::JsonRejection;
use axum::extract::{ConnectInfo, Path, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};

use super::access::{Caller, Role, Scope, Via};
use super::{AdminState, Peer, Problem};
use crate::clock;
use crate::store::{Issued, NewToken, TokenView};

type Answer<T> = Result<T, Problem>;

/// Who the caller is.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub(super) struct WhoView {
    /// Its name.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// To which resources; none: to all.
    pub resources: Option<BTreeSet<String>>,
    /// How that is known: `open`, `token`, `session`, `certificate`, `oidc`.
    pub via: Via,
}

impl From<Caller> for WhoView {
    fn from(caller: Caller) -> Self {
        let resources = match caller.scope {
            Scope::All => None,
            Scope::Resources(names) => Some(names),
        };
        Self { name: caller.name, role: caller.role, resources, via: caller.via }
    }
}

pub(super) async fn whoami(caller: Caller) -> Json<WhoView> {
    Json(caller.into())
}

#[derive(Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct LogIn {
    token: String,
}

pub(super) async fn log_in(
    State(state): State<AdminState>,
    peer: Option<Extension<ConnectInfo<Peer>>>,
    body: Result<Json<LogIn>, JsonRejection>,
) -> Answer<Response> {
    let Json(LogIn { token }) = body.map_err(rejected)?;
    let peer = peer.map(|Extension(ConnectInfo(peer))| peer);
    let (caller, cookie) = state.identities.log_in(token.trim(), peer.as_ref()).await?;
    Ok(([(header::SET_COOKIE, cookie), (header::CACHE_CONTROL, NO_STORE)], Json(WhoView::from(caller)))
        .into_response())
}

pub(super) async fn log_out(State(state): State<AdminState>, headers: HeaderMap) -> Answer<Response> {
    let cookie = state.identities.log_out(&headers)?;
    Ok((StatusCode::NO_CONTENT, [(header::SET_COOKIE, cookie)]).into_response())
}

pub(super) async fn tokens(State(state): State<AdminState>, caller: Caller) -> Answer<Json<Vec<TokenView>>> {
    let mut tokens = state.identities.tokens().list().map_err(Problem::from)?;
    tokens.retain(|token| covers(&caller, token.resources.as_ref()));
    Ok(Json(tokens))
}

pub(super) async fn create_token(
    State(state): State<AdminState>,
    caller: Caller,
    body: Result<Json<NewToken>, JsonRejection>,
) -> Answer<Response> {
    let Json(new) = body.map_err(rejected)?;
    // First: what is wrong with names would tell which resources there are.
    within(&new, &caller)?;
    check(&new, &state)?;
    let issued: Issued =
        state.identities.tokens().create(new, &caller.name, clock::now()).map_err(Problem::from)?;
    Ok((StatusCode::CREATED, [(header::CACHE_CONTROL, NO_STORE)], Json(issued)).into_response())
}

pub(super) async fn revoke_token(
    State(state): State<AdminState>,
    Path(id): Path<String>,
    caller: Caller,
) -> Answer<StatusCode> {
    let tokens = state.identities.tokens();
    let found = tokens.find(&id).map_err(Problem::from)?;
    if !found.is_some_and(|token| covers(&caller, token.resources.as_ref())) {
        return Err(Problem::not_found("token", &id));
    }
    // False: it was before.
    tokens.revoke(&id, &caller.name, clock::now()).map_err(Problem::from)?;
    Ok(StatusCode::NO_CONTENT)
}

const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");

fn check(new: &NewToken, state: &AdminState) -> Answer<()> {
    let wrong = |what: String| Err(Problem::new(StatusCode::BAD_REQUEST, "token", what));
    if let Err(what) = new.check() {
        return wrong(what);
    }
    let Some(names) = &new.resources else { return Ok(()) };
    if names.is_empty() {
        return wrong("resources must name one at least; leave it out for all".to_owned());
    }
    match names.iter().find(|name| !state.running.config().resources.contains_key(*name)) {
        Some(name) => wrong(format!("there is no resource {name:?}")),
        None => Ok(()),
    }
}

/// Whether what a token is for is all within what the caller is let in for.
fn covers(caller: &Caller, resources: Option<&BTreeSet<String>>) -> bool {
    match &caller.scope {
        Scope::All => true,
        Scope::Resources(own) => resources.is_some_and(|names| names.is_subset(own)),
    }
}

/// Nobody gives away more than they have.
fn within(new: &NewToken, caller: &Caller) -> Answer<()> {
    let Scope::Resources(own) = &caller.scope else { return Ok(()) };
    if covers(caller, new.resources.as_ref()) {
        return Ok(());
    }
    let what = format!(
        "{} may make tokens only for {}",
        caller.name,
        own.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
    );
    Err(Problem::new(StatusCode::FORBIDDEN, "scope", what))
}

fn rejected(rejection: JsonRejection) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "body", rejection.body_text())
}
