//! What every request passes before its handler.

use std::sync::Arc;

use axum::extract::rejection::RawPathParamsRejection;
use axum::extract::{ConnectInfo, MatchedPath, RawPathParams, Request, State};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tokio_util::task::TaskTracker;

use super::caller::{Caller, Permission};
use super::rate::Rate;
use super::{Identities, Role, origin, recorded, table};
use crate::admin::{Peer, Problem};
use crate::audit::Audit;

/// What the guard needs to know.
#[derive(Clone)]
pub(in crate::admin) struct Guard {
    /// What each route needs.
    pub(in crate::admin) table: Arc<table::Table>,
    /// Names of this listener.
    pub(in crate::admin) hosts: Arc<[String]>,
    /// Who is who.
    pub(in crate::admin) identities: Arc<Identities>,
    /// Where calls are written down.
    pub(in crate::admin) audit: Audit,
    /// Calls that are being carried out.
    pub(in crate::admin) calls: TaskTracker,
    /// How often callers ask.
    pub(in crate::admin) rate: Arc<Rate>,
}

/// Lets a request through to its handler, with its [`Caller`], or answers why not.
pub(in crate::admin) async fn check(
    State(guard): State<Guard>,
    path: MatchedPath,
    params: Result<RawPathParams, RawPathParamsRejection>,
    mut request: Request,
    next: Next,
) -> Response {
    let params = match params {
        Ok(params) => params,
        Err(rejection) => {
            return Problem::new(rejection.status(), "path", rejection.body_text()).into_response();
        }
    };
    let resource = resource(&path, &params);
    // Of the request only its parts are held while the issuer is asked: a body cannot be shared.
    let admitted = match guard.needs(&path, &request) {
        Err(problem) => Err(problem),
        Ok(Permission::Public) => Ok(None),
        Ok(needs) => {
            let peer = request.extensions().get::<ConnectInfo<Peer>>().map(|ConnectInfo(peer)| peer);
            let caller = guard.identities.caller(request.headers(), peer).await;
            caller.and_then(|caller| guard.admit(caller, needs, resource, &request)).map(Some)
        }
    };
    match admitted {
        Ok(Some(caller)) => {
            request.extensions_mut().insert(caller.clone());
            if request.method().is_safe() {
                return next.run(request).await;
            }
            let resource = resource.map(str::to_owned);
            recorded::run(&guard.audit, &guard.calls, &caller, resource, request, next).await
        }
        Ok(None) => next.run(request).await,
        Err(problem) => {
            let status = problem.status;
            let challenge = (status == StatusCode::UNAUTHORIZED.as_u16())
                .then(|| challenge(request.headers().contains_key(header::AUTHORIZATION), &problem.detail));
            let mut response = problem.into_response();
            let wait = match status {
                429 => Some(HeaderValue::from_static("1")),
                // The issuer is asked again after that, or the disk.
                503 => Some(HeaderValue::from_static("10")),
                _ => None,
            };
            let headers = response.headers_mut();
            headers.extend(wait.map(|wait| (header::RETRY_AFTER, wait)));
            headers.extend(challenge.map(|challenge| (header::WWW_AUTHENTICATE, challenge)));
            response
        }
    }
}

/// The resource that the path names, whichever way its letters are written there.
fn resource<'a>(path: &MatchedPath, params: &'a RawPathParams) -> Option<&'a str> {
    let of_resource = path.as_str().starts_with("/api/v1/resources/{id}");
    params.iter().find(|(name, _)| of_resource && *name == "id").map(|(_, id)| id)
}

/// What to show, and what was wrong with what was shown (RFC 6750, section 3; its characters).
fn challenge(shown: bool, what: &str) -> HeaderValue {
    const PLAIN: &str = "Bearer realm=\"godwit\"";
    let what: String = what.chars().filter(|c| matches!(c, ' '..='~') && !matches!(c, '"' | '\\')).collect();
    let text = if shown {
        format!("{PLAIN}, error=\"invalid_token\", error_description=\"{what}\"")
    } else {
        PLAIN.to_owned()
    };
    HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static(PLAIN))
}

impl Guard {
    /// What the route needs, of a request that comes from where it may.
    fn needs(&self, path: &MatchedPath, request: &Request) -> Result<Permission, Problem> {
        origin::check(request.method(), request.uri(), request.headers(), &self.hosts)?;
        // HEAD is answered where GET is.
        let method = if request.method() == Method::HEAD { &Method::GET } else { request.method() };
        let found =
            self.table.get(path.as_str()).and_then(|methods| methods.iter().find(|(by, _)| by == method));
        found.map(|(_, needs)| *needs).ok_or_else(|| {
            let what = format!("{} does not take {method}", request.uri().path());
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method", what)
        })
    }

    fn admit(
        &self,
        caller: Caller,
        needs: Permission,
        resource: Option<&str>,
        request: &Request,
    ) -> Result<Caller, Problem> {
        let changes = !request.method().is_safe();
        let refused =
            |what: &str| recorded::refused(&self.audit, &caller, resource.map(str::to_owned), request, what);
        if let Err(wait) = self.rate.take(&caller.person, changes, crate::clock::monotonic()) {
            let seconds = wait.as_secs() + 1;
            let what = format!("{} asks too often: again in {seconds} s", caller.name);
            return Err(Problem::new(StatusCode::TOO_MANY_REQUESTS, "rate", what));
        }
        if !caller.may(needs) {
            let role = needs.role().map_or("", Role::name);
            let what = format!("{} is {}; this needs the role {role}", caller.name, caller.role);
            if changes {
                refused(&what);
            }
            return Err(Problem::new(StatusCode::FORBIDDEN, "role", what));
        }
        if let Some(id) = resource
            && !caller.knows(id)
        {
            if changes {
                refused(&format!("{} is let in for other resources", caller.name));
            }
            // As if it did not exist: names are not given away.
            return Err(Problem::not_found("resource", id));
        }
        Ok(caller)
    }
}
