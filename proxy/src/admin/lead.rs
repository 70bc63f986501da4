//! Routes of who leads.

use axum::Json;
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

use super::access::{Caller, Scope};
use super::routes::{Answer, everything, or_default};
use super::{AdminState, Problem};

/// Whether this node leads its resources.
#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct LeadView {
    /// It does; otherwise it stands by.
    pub leads: bool,
    /// Why it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

#[derive(Default, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct LeadRequest {
    /// Although no database answers that clients could write to: for a takeover.
    #[serde(default)]
    without_primary: bool,
}

/// Why this node does not lead, if so. It names resources, zones and what their databases said: to others than those who may read everything only
/// who leads is told.
fn why(state: &AdminState, caller: Option<&Caller>) -> Option<String> {
    let standing = state.standing.as_ref()?;
    let all = caller.is_some_and(|caller| caller.scope == Scope::All);
    Some(if all { standing.says() } else { standing.says_to_anybody() })
}

fn view(state: &AdminState, caller: &Caller) -> LeadView {
    let why = why(state, Some(caller));
    LeadView { leads: why.is_none(), why }
}

pub(super) async fn who(State(state): State<AdminState>, caller: Caller) -> Json<LeadView> {
    Json(view(&state, &caller))
}

pub(super) async fn lead(
    State(state): State<AdminState>,
    caller: Caller,
    headers: HeaderMap,
    body: Result<Json<LeadRequest>, JsonRejection>,
) -> Answer<Response> {
    everything(&caller, "who leads")?;
    let LeadRequest { without_primary } = or_default(body, &headers)?;
    let Some(standing) = &state.standing else {
        return Err(Problem::new(StatusCode::CONFLICT, "leads", "this node leads already"));
    };
    let mut view = view(&state, &caller);
    if without_primary {
        standing.lead_without_primary();
        let told = |why: String| {
            format!(
                "it was told to lead all the same, and will in a moment unless another node does (it said: {why})"
            )
        };
        view.why = view.why.map(told);
    }
    Ok((StatusCode::ACCEPTED, Json(view)).into_response())
}

/// What a node answers that leads nothing; to nobody in particular: as to anybody.
pub(super) fn standby(state: &AdminState, caller: Option<&Caller>) -> Option<Problem> {
    let detail = format!("this node stands by: {}", why(state, caller)?);
    Some(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "standby", detail))
}

/// What is decided and kept where the lead is: a node that stands by refuses it.
pub(super) fn leads(state: &AdminState, caller: &Caller) -> Answer<()> {
    standby(state, Some(caller)).map_or(Ok(()), Err)
}
