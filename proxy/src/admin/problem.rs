//! Errors as problem details (RFC 9457).

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

use crate::causes::chain;
use crate::controller::Denied;
use crate::leading::changes::Wrong;
use crate::store::StoreError;

/// A problem document.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Problem {
    /// `about:blank#…`: a word for programs.
    #[serde(rename = "type")]
    pub kind: String,
    /// The status' meaning.
    pub title: Box<str>,
    /// The status.
    pub status: u16,
    /// What is wrong here.
    pub detail: String,
    /// The migration in the way, if that is the problem.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub migration: Option<Box<str>>,
    /// The parameter of the query that is wrong, if that is the problem.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parameter: Option<Box<str>>,
    /// Everything that is wrong with the body, each with its place.
    #[serde(default, skip_serializing_if = "<[Wrong]>::is_empty")]
    pub errors: Box<[Wrong]>,
}

impl Problem {
    /// What was asked for is there, and no answer can be made of it: 500.
    pub(super) fn no_answer(error: &impl std::fmt::Display) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "answer", error.to_string())
    }

    /// With this status and word.
    pub fn new(status: StatusCode, kind: &str, detail: impl Into<String>) -> Self {
        Self {
            kind: format!("about:blank#{kind}"),
            title: status.canonical_reason().unwrap_or("error").into(),
            status: status.as_u16(),
            detail: detail.into(),
            migration: None,
            parameter: None,
            errors: Box::default(),
        }
    }

    /// There is no such thing.
    pub fn not_found(what: &str, name: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not-found", format!("there is no {what} {name:?}"))
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "store", chain(error))
    }
}

impl From<Denied> for Problem {
    fn from(denied: Denied) -> Self {
        let detail = denied.to_string();
        match denied {
            Denied::Running { id, .. } | Denied::Soaking { id, .. } => Self {
                migration: Some(id.into()),
                ..Self::new(StatusCode::CONFLICT, "migration-running", detail)
            },
            Denied::Guards(_) => Self::new(StatusCode::CONFLICT, "guard", detail),
            Denied::Conflict(_) => Self::new(StatusCode::CONFLICT, "conflict", detail),
            Denied::NoSuchMigration(_) | Denied::NoSuchProposal(_) => {
                Self::new(StatusCode::NOT_FOUND, "not-found", detail)
            }
            Denied::Failed(_) => Self::new(StatusCode::BAD_GATEWAY, "driver", detail),
            Denied::Journal(_) => Self::new(StatusCode::SERVICE_UNAVAILABLE, "journal", detail),
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(self)).into_response();
        response
            .headers_mut()
            .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        response
    }
}
