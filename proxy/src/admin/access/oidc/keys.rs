//! Asks the issuer for its keys: the shell around [`Cache`].
//!
//! One inquiry at a time, within [`TIME`] and [`LIMIT`], and only where `node.egress` lets it. Who waits for it does so together; whoever
//! hangs up does not end it for the others. The discovery document must be the issuer's own (OpenID Connect Discovery, section 4.3).

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::Deserialize;
use tokio::sync::OwnedMutexGuard;
use url::Url;

use super::cache::{Cache, Plan};
use super::jws::Algorithm;
use super::key::{Key, KeySet};
use super::{KeyTimes, Rejected};
use crate::clock;
use crate::config::model::OidcRules;
use crate::feeds::external::egress::Egress;
use crate::feeds::external::fetch::http::{self, Request};
use crate::feeds::external::fetch::{Fetched, Validators};
use crate::lock::lock;
use crate::telemetry::metrics;

/// How long an inquiry may take, both of its questions together.
const TIME: Duration = Duration::from_secs(5);
/// Longest answer, bytes.
const LIMIT: u64 = 256 << 10;

/// The issuer's keys.
pub(super) struct Keys {
    issuer: String,
    /// Where they are; none: the issuer says it.
    place: Option<Url>,
    authority: Option<PathBuf>,
    egress: Egress,
    times: KeyTimes,
    cache: Mutex<Cache>,
    /// Held during an inquiry.
    turn: Arc<tokio::sync::Mutex<()>>,
}

impl Keys {
    pub(super) fn new(rules: &OidcRules, egress: Egress) -> Self {
        Self {
            issuer: rules.issuer.clone(),
            place: rules.keys.clone(),
            authority: rules.authority.clone(),
            egress,
            times: rules.times,
            cache: Mutex::default(),
            turn: Arc::default(),
        }
    }

    /// The keys that may have signed a token with this header.
    pub(super) async fn of(
        self: &Arc<Self>,
        kid: Option<&str>,
        algorithm: Algorithm,
    ) -> Result<Vec<Key>, Rejected> {
        let mut asked = false;
        loop {
            match self.plan(kid, algorithm, asked) {
                Plan::Use(keys, stale) => {
                    // Beside the request, unless somebody is at it.
                    if stale && let Ok(turn) = self.turn.clone().try_lock_owned() {
                        drop(self.inquiry(turn));
                    }
                    return Ok(keys);
                }
                Plan::Refuse(rejected) if asked || self.turn.try_lock().is_ok() => return Err(rejected),
                Plan::Ask | Plan::Refuse(_) => {
                    let turn = self.turn.clone().lock_owned().await;
                    // Who waited here finds what the one before was told.
                    if self.plan(kid, algorithm, false) == Plan::Ask {
                        let _ = self.inquiry(turn).await;
                    }
                    asked = true;
                }
            }
        }
    }

    fn plan(&self, kid: Option<&str>, algorithm: Algorithm, asked: bool) -> Plan {
        let cache = lock(&self.cache);
        cache.plan(kid, algorithm, self.times, clock::monotonic(), asked)
    }

    /// Asks in a task of its own, which gives the turn back.
    fn inquiry(self: &Arc<Self>, turn: OwnedMutexGuard<()>) -> tokio::task::JoinHandle<()> {
        lock(&self.cache).asks(clock::monotonic());
        let keys = self.clone();
        tokio::spawn(async move {
            let answer = match tokio::time::timeout(TIME, keys.ask()).await {
                Ok(answer) => answer,
                Err(_) => Err(format!("no answer within {} s", TIME.as_secs())),
            };
            metrics::oidc_keys(answer.is_ok(), clock::now());
            match &answer {
                Ok(set) => {
                    tracing::debug!(issuer = %keys.issuer, keys = set.len(), "the issuer's keys were read");
                }
                Err(why) => {
                    tracing::warn!(issuer = %keys.issuer, %why, "the issuer's keys could not be read");
                }
            }
            let mut cache = lock(&keys.cache);
            cache.answered(answer, clock::monotonic());
            drop((cache, turn));
        })
    }

    async fn ask(&self) -> Result<KeySet, String> {
        let place = match &self.place {
            Some(place) => place.clone(),
            None => self.discovered().await?,
        };
        KeySet::parse(&self.get(place).await?)
    }

    /// Where the issuer says that its keys are.
    async fn discovered(&self) -> Result<Url, String> {
        #[derive(Deserialize)]
        struct Provider {
            issuer: String,
            jwks_uri: String,
        }
        let asked = discovery(&self.issuer)?;
        let bytes = self.get(asked.clone()).await?;
        let provider: Provider = serde_json::from_slice(&bytes)
            .map_err(|error| format!("{asked} is no description of an issuer: {error}"))?;
        if provider.issuer != self.issuer {
            return Err(format!("{asked} is of the issuer {:?}, not of {:?}", provider.issuer, self.issuer));
        }
        let place = Url::parse(&provider.jwks_uri)
            .map_err(|error| format!("{asked} has a jwks_uri that is no URL: {error}"))?;
        // Within what the issuer's own URL may ask: otherwise `keys` must be configured, or egress allow both.
        self.egress.host(&place, &asked)?;
        if !matches!(place.scheme(), "http" | "https")
            || (asked.scheme() == "https" && place.scheme() != "https")
        {
            return Err(format!("{asked} has a jwks_uri without TLS"));
        }
        Ok(place)
    }

    async fn get(&self, url: Url) -> Result<Vec<u8>, String> {
        let request = Request { url, headers: Vec::new(), authority: self.authority.clone() };
        match http::get(&request, &self.egress, &Validators::default(), LIMIT).await {
            Ok(Fetched::Bytes { bytes, .. }) => Ok(bytes),
            Ok(Fetched::Unchanged) => Err(format!("{}: unchanged since never", request.shown())),
            Err(failure) => Err(format!("{}: {}", request.shown(), failure.what)),
        }
    }
}

/// Where an issuer describes itself (OpenID Connect Discovery, section 4.1).
pub(super) fn discovery(issuer: &str) -> Result<Url, String> {
    let text = format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'));
    Url::parse(&text).map_err(|error| format!("{issuer:?} is no URL: {error}"))
}
