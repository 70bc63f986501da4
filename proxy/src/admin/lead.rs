//! Routes of who leads.

use axum::Json;
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

use super::access::Caller;
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

fn view(state: &AdminState) -> LeadView {
    let why = state.standing.as_ref().map(|standing| standing.says());
    LeadView { leads: why.is_none(), why }
}

pub(super) async fn who(State(state): State<AdminState>) -> Json<LeadView> {
    Json(view(&state))
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
    let mut view = view(&state);
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

/// What a node answers that leads nothing.
pub(super) fn standby(state: &AdminState) -> Option<Problem> {
    let standing = state.standing.as_ref()?;
    let detail = format!("this node stands by: {}", standing.says());
    Some(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "standby", detail))
}

/// What is decided and kept where the lead is: a node that stands by refuses it.
pub(super) fn leads(state: &AdminState) -> Answer<()> {
    standby(state).map_or(Ok(()), Err)
}
