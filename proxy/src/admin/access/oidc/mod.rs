//! Callers with a token of an OpenID Connect issuer: a JWT in `Authorization: Bearer`, or shown once for a session.
//!
//! ```text
//! token ─ jws::parse ─ key of the issuer (keys) ─ signature (key) ─ claims::check ─ claims::grant ─→ Caller
//! ```
//!
//! `jws`, `key`, `cache` and `claims` are pure: bytes and `now` in, a verdict out. `keys` is the shell around them that
//! asks the issuer. A token is believed for nothing before its signature is: until then only `alg` and `kid` of its header
//! are read, and neither says more than which of the issuer's keys to try. Keys that a token brings along (`jwk`, `jku`, `x5c`) are
//! never looked at. Sources: RFC 7515, 7517, 7518, 7519, 8037, 8725 (what goes wrong with these), OpenID Connect Core and
//! Discovery 1.0.

mod cache;
mod claims;
pub mod jws;
mod key;
mod keys;

use std::sync::Arc;
use std::time::Duration;

use migration::units::Timestamp;

use super::caller::{Caller, Via};
use crate::clock;
use crate::config::model::OidcRules;
use crate::feeds::external::egress::Egress;
use crate::telemetry::metrics;
use keys::Keys;

/// Why a token gives nothing. The text is for whoever shows it; it holds nothing of the token but what its issuer signed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// It is not a JWT, or one with what is not understood here.
    #[error("the token cannot be read: {0}")]
    Malformed(&'static str),
    /// Its algorithm is not one of those that count.
    #[error("the token is signed with an algorithm that does not count here (node.admin.oidc.algorithms)")]
    Algorithm,
    /// The issuer has no such key.
    #[error("the token's key is not one of the issuer's")]
    KeyUnknown,
    /// The issuer had no such key a moment ago, and is not asked again yet.
    #[error("the token's key is not one of the issuer's that are known here: a new one is within seconds")]
    KeyUnseen,
    /// The key did not sign this.
    #[error("the token's signature is wrong")]
    Signature,
    /// Somebody else issued it.
    #[error("the token is of another issuer")]
    Issuer,
    /// It is for somebody else.
    #[error("the token is for another audience")]
    Audience,
    /// It was given to a client that does not count.
    #[error("the token was given to a client that does not count here (node.admin.oidc.clients)")]
    Client,
    /// Its time is over.
    #[error("the token has expired")]
    Expired,
    /// Its time has not come: `nbf` or `iat` lies ahead.
    #[error("the token is not valid yet")]
    Early,
    /// A claim is missing, or of another kind than it must be.
    #[error("the token's claim {0:?} is missing or cannot be read")]
    Claim(&'static str),
    /// Who shows it is known, and has no role here.
    #[error("{name} is in no group that has a role here (node.admin.oidc.roles)")]
    NoRole {
        /// Who.
        name: String,
    },
    /// Whether it is good cannot be told now: there are no keys, and the issuer does not give any.
    #[error("the issuer's keys are not to be had now: {0}")]
    Unavailable(String),
}

impl Rejected {
    /// As a metric label.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "malformed",
            Self::Algorithm => "algorithm",
            Self::KeyUnknown | Self::KeyUnseen => "key_unknown",
            Self::Signature => "signature",
            Self::Issuer => "issuer",
            Self::Audience => "audience",
            Self::Client => "client",
            Self::Expired => "expired",
            Self::Early => "early",
            Self::Claim(_) => "claim",
            Self::NoRole { .. } => "no_role",
            Self::Unavailable(_) => "unavailable",
        }
    }

    /// Whether it looks like somebody trying: nobody has such a token by honest means. With a key that the issuer has changed to just
    /// now everybody does.
    pub fn is_guess(&self) -> bool {
        matches!(self, Self::Malformed(_) | Self::Algorithm | Self::KeyUnknown | Self::Signature)
    }
}

/// A token that counts: who shows it, and until when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// Who.
    pub caller: Caller,
    /// When the token ends.
    pub ends: Timestamp,
}

/// The issuer whose tokens count.
pub struct Oidc {
    rules: OidcRules,
    keys: Arc<Keys>,
}

impl Oidc {
    /// Tokens count by these rules; the issuer is asked within `egress`, when the first token comes.
    pub fn new(rules: OidcRules, egress: Egress) -> Self {
        let keys = Arc::new(Keys::new(&rules, egress));
        Self { rules, keys }
    }

    /// Whether `token` is one for here rather than one of Godwit's own.
    pub fn knows(token: &str) -> bool {
        !token.starts_with("gdw_") && token.bytes().filter(|byte| *byte == b'.').count() == 2
    }

    /// Who shows `token`. May ask the issuer, for seconds at most. Cancel-safe: an inquiry goes on for the others.
    pub async fn shown(&self, token: &str) -> Result<Shown, Rejected> {
        let shown = self.check(token).await;
        metrics::oidc_token(shown.as_ref().map_or_else(Rejected::label, |_| "accepted"));
        shown
    }

    async fn check(&self, token: &str) -> Result<Shown, Rejected> {
        let jws = jws::parse(token)?;
        let algorithm = jws::Algorithm::from_name(&jws.header.alg)
            .filter(|algorithm| self.rules.algorithms.contains(algorithm))
            .ok_or(Rejected::Algorithm)?;
        let keys = self.keys.of(jws.header.kid.as_deref(), algorithm).await?;
        if !keys.iter().any(|key| key.verifies(algorithm, jws.signed, &jws.signature)) {
            return Err(Rejected::Signature);
        }
        let now = clock::now();
        let (subject, claims) = claims::check(&self.rules, &jws.payload, now)?;
        let (role, scope) = claims::grant(&self.rules, &claims)
            .ok_or_else(|| Rejected::NoRole { name: subject.name.clone() })?;
        let (person, id) = (subject.id.clone(), Some(subject.id));
        let caller = Caller { name: subject.name, person, id, role, scope, via: Via::Oidc };
        Ok(Shown { caller, ends: subject.ends })
    }
}

/// How long keys count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyTimes {
    /// After this they are asked for again, beside the requests.
    pub refresh: Duration,
    /// After this without an answer they count no more.
    pub keep: Duration,
    /// Between two inquiries, successful or not.
    pub pause: Duration,
}

#[cfg(test)]
pub(in crate::admin) mod tests;
