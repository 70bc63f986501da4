//! What every request passes before its handler.

use std::sync::Arc;

use axum::extract::{ConnectInfo, MatchedPath, RawPathParams, Request, State};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

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
    /// How often callers ask.
    pub(in crate::admin) rate: Arc<Rate>,
}

/// Lets a request through to its handler, with its [`Caller`], or answers why not.
pub(in crate::admin) async fn check(
    State(guard): State<Guard>,
    path: MatchedPath,
    params: RawPathParams,
    mut request: Request,
    next: Next,
) -> Response {
    match guard.admit(&path, &params, &request) {
        Ok(Some(caller)) => {
            request.extensions_mut().insert(caller.clone());
            if request.method().is_safe() {
                return next.run(request).await;
            }
            recorded::run(&guard.audit, &caller, request, next).await
        }
        Ok(None) => next.run(request).await,
        Err(problem) => {
            let status = problem.status;
            let mut response = problem.into_response();
            if status == StatusCode::TOO_MANY_REQUESTS.as_u16() {
                response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            }
            if status == StatusCode::UNAUTHORIZED.as_u16() {
                let scheme = HeaderValue::from_static("Bearer realm=\"godwit\"");
                response.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
            }
            response
        }
    }
}

impl Guard {
    fn admit(
        &self,
        path: &MatchedPath,
        params: &RawPathParams,
        request: &Request,
    ) -> Result<Option<Caller>, Problem> {
        origin::check(request.method(), request.uri(), request.headers(), &self.hosts)?;
        let needs = self.needs(path.as_str(), request)?;
        if needs == Permission::Public {
            return Ok(None);
        }
        let peer = request.extensions().get::<ConnectInfo<Peer>>().map(|ConnectInfo(peer)| peer);
        let caller = self.identities.caller(request.headers(), peer)?;
        let changes = !request.method().is_safe();
        if let Err(wait) = self.rate.take(&caller.name, changes, crate::clock::monotonic()) {
            let seconds = wait.as_secs() + 1;
            let what = format!("{} asks too often: again in {seconds} s", caller.name);
            return Err(Problem::new(StatusCode::TOO_MANY_REQUESTS, "rate", what));
        }
        if !caller.may(needs) {
            let role = needs.role().map_or("", Role::name);
            let what = format!("{} is {}; this needs the role {role}", caller.name, caller.role);
            if !request.method().is_safe() {
                recorded::refused(&self.audit, &caller, request, &what);
            }
            return Err(Problem::new(StatusCode::FORBIDDEN, "role", what));
        }
        let of_resource = path.as_str().starts_with("/api/v1/resources/{id}");
        if let Some((_, id)) = params.iter().find(|(name, _)| of_resource && *name == "id")
            && !caller.knows(id)
        {
            // As if it did not exist: names are not given away.
            return Err(Problem::not_found("resource", id));
        }
        Ok(Some(caller))
    }

    /// HEAD is answered where GET is.
    fn needs(&self, path: &str, request: &Request) -> Result<Permission, Problem> {
        let method = if request.method() == Method::HEAD { &Method::GET } else { request.method() };
        let found = self.table.get(path).and_then(|methods| methods.iter().find(|(by, _)| by == method));
        found.map(|(_, needs)| *needs).ok_or_else(|| {
            let what = format!("{} does not take {method}", request.uri().path());
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method", what)
        })
    }
}
