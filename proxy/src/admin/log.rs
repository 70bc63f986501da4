//! Routes of what is logged.

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::http::StatusCode;
use serde::Deserialize;

use super::Problem;
use super::access::Caller;
use super::changes::wrong;
use super::routes::{Answer, everything};
use crate::telemetry::logging::{self, FilterError, LogView};

#[derive(Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct LogRequest {
    /// Directives `target=level`, or `level` for the rest, with commas between.
    filter: String,
}

impl From<FilterError> for Problem {
    fn from(error: FilterError) -> Self {
        let detail = error.to_string();
        match error {
            FilterError::Wrong(_) => {
                wrong("/filter", detail, "directives such as info,godwit::controller=debug")
            }
            FilterError::Missing => Self::new(StatusCode::SERVICE_UNAVAILABLE, "no-log", detail),
        }
    }
}

pub(super) async fn filter(caller: Caller) -> Answer<Json<LogView>> {
    everything(&caller, "the log of the node")?;
    Ok(Json(logging::filter()?))
}

pub(super) async fn set(
    caller: Caller,
    body: Result<Json<LogRequest>, JsonRejection>,
) -> Answer<Json<LogView>> {
    everything(&caller, "the log of the node")?;
    let Json(request) =
        body.map_err(|rejection| Problem::new(StatusCode::BAD_REQUEST, "body", rejection.body_text()))?;
    Ok(Json(logging::set(Some(&request.filter))?))
}

pub(super) async fn reset(caller: Caller) -> Answer<Json<LogView>> {
    everything(&caller, "the log of the node")?;
    Ok(Json(logging::set(None)?))
}
