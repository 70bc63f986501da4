//! Sessions of the dashboard: a token is shown once, a cookie stands for it since.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use axum::http::{HeaderMap, header};
use migration::units::Timestamp;
use sha2::{Digest, Sha256};

use super::caller::Caller;
use crate::lock::lock;

/// How long a session lasts.
const LIFE: Duration = Duration::from_secs(12 * 3600);
/// Most sessions at a time; a new one ends the oldest.
const MOST: usize = 1000;
/// The cookie that stands for a token.
pub(crate) const COOKIE: &str = "godwit_session";

type Key = [u8; 32];

/// The open sessions: hashes of cookies, in memory only. A restart ends them all.
#[derive(Default)]
pub(super) struct Sessions(Mutex<HashMap<Key, Session>>);

struct Session {
    stands: Stands,
    ends: Timestamp,
}

/// What a session stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Stands {
    /// The token of this id: revoked with it.
    Token(String),
    /// Who the issuer said it is.
    Caller(Caller),
}

impl Sessions {
    /// Opens a session, until `ends` at the latest; its cookie, as the header's value.
    pub(super) fn open(
        &self,
        stands: Stands,
        ends: Option<Timestamp>,
        secure: bool,
        now: Timestamp,
    ) -> String {
        let secret = crate::rng::secret();
        let ends = ends.map_or(now.after(LIFE), |ends| ends.min(now.after(LIFE)));
        let mut sessions = lock(&self.0);
        sessions.retain(|_, session| session.ends > now);
        if sessions.len() >= MOST
            && let Some(oldest) = sessions.iter().min_by_key(|(_, session)| session.ends).map(|(key, _)| *key)
        {
            sessions.remove(&oldest);
        }
        sessions.insert(key(&secret), Session { stands, ends });
        cookie(&secret, ends.since(now), secure)
    }

    /// What the request's cookie stands for.
    pub(super) fn stands_for(&self, headers: &HeaderMap, now: Timestamp) -> Option<Stands> {
        let secret = shown(headers)?;
        let sessions = lock(&self.0);
        let session = sessions.get(&key(secret)).filter(|session| session.ends > now)?;
        Some(session.stands.clone())
    }

    /// Ends the request's session; the cookie that takes its own away.
    pub(super) fn close(&self, headers: &HeaderMap, secure: bool) -> String {
        if let Some(secret) = shown(headers) {
            lock(&self.0).remove(&key(secret));
        }
        cookie("", Duration::ZERO, secure)
    }
}

/// Whether the request shows a cookie of ours, good or not.
pub(super) fn shown(headers: &HeaderMap) -> Option<&str> {
    headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'))
        .find_map(|pair| pair.trim().strip_prefix(COOKIE)?.strip_prefix('='))
}

fn cookie(value: &str, life: Duration, secure: bool) -> String {
    let secure = if secure { "; Secure" } else { "" };
    format!("{COOKIE}={value}; Path=/; Max-Age={}; HttpOnly; SameSite=Strict{secure}", life.as_secs())
}

fn key(secret: &str) -> Key {
    Sha256::digest(secret.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(cookie: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        let pair = cookie.split(';').next().expect("a pair");
        headers.insert(header::COOKIE, format!("other=1; {pair}").parse().expect("a header"));
        headers
    }

    fn token(id: &str) -> Stands {
        Stands::Token(id.to_owned())
    }

    #[test]
    fn a_session_stands_for_its_token_until_it_ends() {
        let sessions = Sessions::default();
        let cookie = sessions.open(token("t1"), None, true, Timestamp(0));
        assert!(cookie.ends_with("; HttpOnly; SameSite=Strict; Secure"), "{cookie}");
        let headers = with(&cookie);
        assert_eq!(sessions.stands_for(&headers, Timestamp(1)), Some(token("t1")));
        assert_eq!(sessions.stands_for(&headers, Timestamp(12 * 3_600_000)), None);
        assert_eq!(sessions.stands_for(&with("godwit_session=guess"), Timestamp(1)), None);
        assert!(sessions.close(&headers, false).contains("Max-Age=0"));
        assert_eq!(sessions.stands_for(&headers, Timestamp(1)), None);
    }

    #[test]
    fn a_session_of_the_issuer_ends_with_its_token() {
        let sessions = Sessions::default();
        let stands = Stands::Caller(Caller::open(Some("ann")));
        let cookie = sessions.open(stands.clone(), Some(Timestamp(60_500)), true, Timestamp(500));
        assert!(cookie.contains("; Max-Age=60;"), "{cookie}");
        let headers = with(&cookie);
        assert_eq!(sessions.stands_for(&headers, Timestamp(60_499)), Some(stands.clone()));
        assert_eq!(sessions.stands_for(&headers, Timestamp(60_500)), None);
        let cookie = sessions.open(stands, Some(Timestamp(u64::MAX / 2)), true, Timestamp(0));
        assert!(cookie.contains("; Max-Age=43200;"), "never longer than any session: {cookie}");
    }

    #[test]
    fn there_are_never_too_many() {
        let sessions = Sessions::default();
        let first = sessions.open(token("first"), None, false, Timestamp(0));
        for _ in 0..MOST {
            sessions.open(token("t"), None, false, Timestamp(1));
        }
        assert_eq!(sessions.stands_for(&with(&first), Timestamp(2)), None);
        assert_eq!(sessions.0.lock().expect("the lock").len(), MOST);
    }
}
