//! Who sent a request: a token (of this node or of the issuer), a session, a client certificate, or nobody.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use migration::units::Timestamp;

use super::caller::{Caller, Via};
use super::oidc::{self, Oidc};
use super::session::{self, Sessions, Stands};
use crate::admin::{Peer, Problem};
use crate::clock;
use crate::config::model::ClientRule;
use crate::lock::lock;
use crate::store::{Rejected, TokenView, Tokens};

/// The name of the caller where nobody has to prove it.
const OPERATOR: HeaderName = HeaderName::from_static("x-godwit-operator");
/// Wrong tokens of one address within [`WINDOW`], before more of them get 429. Right ones go on counting: others may have that address, too.
const MOST_WRONG: u32 = 20;
/// And before its tokens of the issuer are not looked at any more: each costs checking a signature.
const MOST_CHECKED: u32 = 1000;
const WINDOW: Duration = Duration::from_secs(60);
/// Addresses that are counted at once; beyond that nobody new is counted until a window ends.
const COUNTED: usize = 10_000;

/// What callers are known by.
pub struct Identities {
    tokens: Arc<Tokens>,
    sessions: Sessions,
    oidc: Option<Oidc>,
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
        let (sessions, wrong) = (Sessions::default(), Mutex::default());
        Self { tokens, sessions, oidc: None, clients, required, secure, wrong }
    }

    /// Knows the callers of an issuer as well.
    #[must_use]
    pub fn with_oidc(mut self, oidc: Option<Oidc>) -> Self {
        self.oidc = oidc;
        self
    }

    /// The tokens.
    pub(in crate::admin) fn tokens(&self) -> &Tokens {
        &self.tokens
    }

    /// Who sent this; 401 where that must be known and is not, 429 for a wrong token of an address that guesses. May ask the issuer for its keys.
    pub(in crate::admin) async fn caller(
        &self,
        headers: &HeaderMap,
        peer: Option<&Peer>,
    ) -> Result<Caller, Problem> {
        if let Some(value) = headers.get(header::AUTHORIZATION) {
            let Some(token) = bearer(value) else {
                return Err(unauthorized("Authorization must be: Bearer TOKEN"));
            };
            return Ok(self.token(token, peer).await?.caller(Via::Token));
        }
        if let Some(rule) = peer.and_then(|peer| self.clients.iter().find(|rule| peer.is(&rule.name))) {
            let (name, role, scope) = (rule.name.clone(), rule.role, rule.scope.clone());
            let (person, id) = (name.clone(), Some(name.clone()));
            return Ok(Caller { name, person, id, role, scope, via: Via::Certificate });
        }
        if session::shown(headers).is_some() {
            match self.session(headers)? {
                Some(caller) => return Ok(caller),
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

    /// Who the request's session is of, while that counts.
    fn session(&self, headers: &HeaderMap) -> Result<Option<Caller>, Problem> {
        let now = clock::now();
        Ok(match self.sessions.stands_for(headers, now) {
            Some(Stands::Token(id)) => {
                let view = self.tokens.find(&id).map_err(Problem::from)?;
                view.filter(|view| view.check(now).is_ok()).map(|view| view.caller(Via::Session))
            }
            Some(Stands::Caller(caller)) => Some(caller),
            None => None,
        })
    }

    /// Opens a session for a token; the cookie.
    pub(in crate::admin) async fn log_in(
        &self,
        token: &str,
        peer: Option<&Peer>,
    ) -> Result<(Caller, HeaderValue), Problem> {
        let known = self.token(token, peer).await?;
        let caller = known.caller(Via::Session);
        let (stands, ends) = match known {
            Known::Own(view) => (Stands::Token(view.id), None),
            // What the issuer says counts as long as its token does: the session ends with it.
            Known::Issued(shown) => (Stands::Caller(caller.clone()), Some(shown.ends)),
        };
        let cookie = self.sessions.open(stands, ends, self.secure, clock::now());
        Ok((caller, header_value(&cookie)?))
    }

    /// Ends the request's session; the cookie that takes its own away.
    pub(in crate::admin) fn log_out(&self, headers: &HeaderMap) -> Result<HeaderValue, Problem> {
        header_value(&self.sessions.close(headers, self.secure))
    }

    async fn token(&self, token: &str, peer: Option<&Peer>) -> Result<Known, Problem> {
        let now = clock::now();
        let address = peer.map(|peer| peer.address.ip());
        let wrong = address.map_or(0, |address| self.wrong(address, now));
        let (guess, problem) = match &self.oidc {
            Some(_) if Oidc::knows(token) && wrong >= MOST_CHECKED => return Err(guessing()),
            Some(oidc) if Oidc::knows(token) => match oidc.shown(token).await {
                Ok(shown) => return Ok(Known::Issued(shown)),
                Err(rejected) => (rejected.is_guess(), refused(&rejected)),
            },
            _ => match self.tokens.authenticate(token, now).map_err(Problem::from)? {
                Ok(view) => return Ok(Known::Own(view)),
                Err(rejected) => (rejected == Rejected::Unknown, unauthorized(&rejected.to_string())),
            },
        };
        if let Some(address) = address.filter(|_| guess) {
            self.count_wrong(address, now);
        }
        Err(if guess && wrong >= MOST_WRONG { guessing() } else { problem })
    }

    /// Wrong tokens of this address within the window.
    fn wrong(&self, address: IpAddr, now: Timestamp) -> u32 {
        let wrong = lock(&self.wrong);
        wrong.get(&address).filter(|(since, _)| now.since(*since) < WINDOW).map_or(0, |(_, times)| *times)
    }

    fn count_wrong(&self, address: IpAddr, now: Timestamp) {
        let mut wrong = lock(&self.wrong);
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
        *times = times.saturating_add(1);
    }
}

/// The token of an `Authorization` header (RFC 6750, section 2.1); the scheme in any case (RFC 9110, section 11.1).
fn bearer(value: &HeaderValue) -> Option<&str> {
    let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// A token that counts.
enum Known {
    /// Of this node.
    Own(TokenView),
    /// Of the issuer.
    Issued(oidc::Shown),
}

impl Known {
    /// Who shows it: as it is, or by a session.
    fn caller(&self, via: Via) -> Caller {
        match self {
            Self::Own(view) => view.caller(via),
            Self::Issued(shown) if via == Via::Session => Caller { via, ..shown.caller.clone() },
            Self::Issued(shown) => shown.caller.clone(),
        }
    }
}

fn refused(rejected: &oidc::Rejected) -> Problem {
    let what = rejected.to_string();
    match rejected {
        oidc::Rejected::NoRole { .. } => Problem::new(StatusCode::FORBIDDEN, "role", what),
        oidc::Rejected::Unavailable(_) => Problem::new(StatusCode::SERVICE_UNAVAILABLE, "issuer", what),
        _ => unauthorized(&what),
    }
}

fn guessing() -> Problem {
    let what = "too many wrong tokens from this address: wait a minute";
    Problem::new(StatusCode::TOO_MANY_REQUESTS, "guessing", what)
}

fn unauthorized(what: &str) -> Problem {
    Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", what)
}

fn header_value(cookie: &str) -> Result<HeaderValue, Problem> {
    HeaderValue::from_str(cookie)
        .map_err(|error| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "cookie", error.to_string()))
}
