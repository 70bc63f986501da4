//! Who sent a request: a token, a session, a client certificate, or nobody.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use migration::units::Timestamp;

use super::caller::{Caller, Via};
use super::session::{self, Sessions};
use crate::admin::{Peer, Problem};
use crate::clock;
use crate::config::model::ClientRule;
use crate::store::{Rejected, TokenView, Tokens};

/// The name of the caller where nobody has to prove it.
const OPERATOR: HeaderName = HeaderName::from_static("x-godwit-operator");
/// Wrong tokens of one address within [`WINDOW`], before it must wait.
const MOST_WRONG: u32 = 20;
const WINDOW: Duration = Duration::from_secs(60);
/// Addresses that are counted at once; beyond that nobody new is counted until a window ends.
const COUNTED: usize = 10_000;

/// What callers are known by.
pub struct Identities {
    tokens: Arc<Tokens>,
    sessions: Sessions,
    clients: Vec<ClientRule>,
    /// Callers prove who they are.
    required: bool,
    /// Cookies travel over TLS only.
    secure: bool,
    wrong: Mutex<HashMap<IpAddr, (Timestamp, u32)>>,
}

impl Identities {
    /// Knows the callers of `tokens` and those with a certificate that `clients` names.
    pub fn new(tokens: Arc<Tokens>, clients: Vec<ClientRule>, required: bool, secure: bool) -> Self {
        Self { tokens, sessions: Sessions::default(), clients, required, secure, wrong: Mutex::default() }
    }

    /// The tokens.
    pub(in crate::admin) fn tokens(&self) -> &Tokens {
        &self.tokens
    }

    /// Who sent this; 401 where that must be known and is not, 429 for an address that guesses.
    pub(super) fn caller(&self, headers: &HeaderMap, peer: Option<&Peer>) -> Result<Caller, Problem> {
        if let Some(value) = headers.get(header::AUTHORIZATION) {
            let Some(token) = bearer(value) else {
                return Err(unauthorized("Authorization must be: Bearer gdw_…"));
            };
            return Ok(self.token(token, peer)?.caller(Via::Token));
        }
        if let Some(rule) = peer.and_then(|peer| self.clients.iter().find(|rule| peer.is(&rule.name))) {
            let (name, role, scope) = (rule.name.clone(), rule.role, rule.scope.clone());
            return Ok(Caller { name, role, scope, via: Via::Certificate });
        }
        if session::shown(headers).is_some() {
            let now = clock::now();
            let view = match self.sessions.token(headers, now) {
                Some(id) => self.tokens.find(&id).map_err(Problem::from)?,
                None => None,
            };
            match view.filter(|view| view.check(now).is_ok()) {
                Some(view) => return Ok(view.caller(Via::Session)),
                None if self.required => return Err(unauthorized("the session is over: log in again")),
                None => {}
            }
        }
        if self.required {
            return Err(unauthorized(
                "show a token: Authorization: Bearer gdw_… (godwit token create makes one)",
            ));
        }
        Ok(Caller::open(headers.get(OPERATOR).and_then(|name| name.to_str().ok())))
    }

    /// Opens a session for a token; the cookie.
    pub(in crate::admin) fn log_in(
        &self,
        token: &str,
        peer: Option<&Peer>,
    ) -> Result<(Caller, HeaderValue), Problem> {
        let view = self.token(token, peer)?;
        let cookie = self.sessions.open(&view.id, self.secure, clock::now());
        Ok((view.caller(Via::Session), header_value(&cookie)?))
    }

    /// Ends the request's session; the cookie that takes its own away.
    pub(in crate::admin) fn log_out(&self, headers: &HeaderMap) -> Result<HeaderValue, Problem> {
        header_value(&self.sessions.close(headers, self.secure))
    }

    fn token(&self, token: &str, peer: Option<&Peer>) -> Result<TokenView, Problem> {
        let now = clock::now();
        let address = peer.map(|peer| peer.address.ip());
        if address.is_some_and(|address| self.guesses(address, now)) {
            let what = "too many wrong tokens from this address: wait a minute";
            return Err(Problem::new(StatusCode::TOO_MANY_REQUESTS, "guessing", what));
        }
        let found = self.tokens.authenticate(token, now).map_err(Problem::from)?;
        if let (Err(Rejected::Unknown), Some(address)) = (&found, address) {
            self.count_wrong(address, now);
        }
        found.map_err(|rejected| unauthorized(&rejected.to_string()))
    }

    fn guesses(&self, address: IpAddr, now: Timestamp) -> bool {
        let wrong = self.wrong.lock().unwrap_or_else(PoisonError::into_inner);
        wrong.get(&address).is_some_and(|(since, times)| now.since(*since) < WINDOW && *times >= MOST_WRONG)
    }

    fn count_wrong(&self, address: IpAddr, now: Timestamp) {
        let mut wrong = self.wrong.lock().unwrap_or_else(PoisonError::into_inner);
        if wrong.len() >= COUNTED {
            wrong.retain(|_, (since, _)| now.since(*since) < WINDOW);
            if wrong.len() >= COUNTED {
                return;
            }
        }
        let (since, times) = wrong.entry(address).or_insert((now, 0));
        if now.since(*since) >= WINDOW {
            (*since, *times) = (now, 0);
        }
        *times += 1;
    }
}

/// The token of an `Authorization` header (RFC 6750, section 2.1); the scheme in any case (RFC 9110, section 11.1).
fn bearer(value: &HeaderValue) -> Option<&str> {
    let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

fn unauthorized(what: &str) -> Problem {
    Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", what)
}

fn header_value(cookie: &str) -> Result<HeaderValue, Problem> {
    HeaderValue::from_str(cookie)
        .map_err(|error| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "cookie", error.to_string()))
}
