//! Sources: bytes from outside, bounded in time and size.

pub mod http;
pub mod path;
pub mod postgres;
mod process;
pub(crate) mod tls;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use migration::units::Timestamp;
use tokio::io::AsyncReadExt;

use super::egress::Egress;
use super::{Failure, Feed, Reason, Source};
use crate::causes::chain;
use crate::links::Links;

/// What sources may reach.
#[derive(Clone, Default)]
pub struct Reach {
    /// Which hosts and addresses.
    pub egress: Egress,
    /// This node's links to other zones; none: it has none.
    pub links: Option<Arc<Links>>,
}

impl From<Egress> for Reach {
    fn from(egress: Egress) -> Self {
        Self { egress, links: None }
    }
}

/// What the source said last time, so that it may answer "unchanged".
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Validators {
    /// `ETag` of the last answer.
    pub etag: Option<String>,
    /// `Last-Modified` of the last answer.
    pub last_modified: Option<String>,
}

/// What a source gave.
#[derive(Clone, Debug)]
pub enum Fetched {
    /// The same as last time.
    Unchanged,
    /// Bytes.
    Bytes {
        /// At most the feed's limit.
        bytes: Vec<u8>,
        /// When they were said; none: now.
        at: Option<Timestamp>,
        /// For the next time.
        validators: Validators,
    },
}

/// Asks the feed's source once. A webhook cannot be asked. Cancel-safe: dropping it ends the connection or the command.
pub async fn fetch(feed: &Feed, reach: &Reach, last: &Validators) -> Result<Fetched, Failure> {
    let limit = feed.max_bytes;
    let asked = async {
        match &feed.source {
            Source::Http(request) => http::get(request, &reach.egress, last, limit).await,
            Source::File(path) => file(path, limit).await,
            Source::Postgres(asked) => postgres::numbers(asked, feed.timeout).await,
            Source::Path(measured) => measured.run(reach).await,
            Source::Exec(argv) => process::output(argv, limit).await,
            Source::Webhook(_) => {
                Err(Failure::source(Reason::File, "it is posted to and cannot be asked; give a fixture"))
            }
        }
    };
    match tokio::time::timeout(feed.timeout, asked).await {
        Ok(fetched) => fetched,
        Err(_) => {
            Err(Failure::source(Reason::Timeout, format!("no answer within {}", seconds(feed.timeout))))
        }
    }
}

fn seconds(span: Duration) -> String {
    format!("{} s", span.as_secs_f64())
}

/// The whole file; one that is longer than `limit` is refused.
pub async fn file(path: &Path, limit: u64) -> Result<Fetched, Failure> {
    let failed = |error: std::io::Error| {
        Failure::source(Reason::File, format!("{} cannot be read: {error}", path.display()))
    };
    let file = tokio::fs::File::open(path).await.map_err(failed)?;
    let changed = file.metadata().await.and_then(|about| about.modified()).map_err(failed)?;
    let at = changed.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).await.map_err(failed)?;
    if bytes.len() as u64 > limit {
        return Err(too_large(limit));
    }
    let at = Timestamp(u64::try_from(at.as_millis()).unwrap_or(u64::MAX));
    Ok(Fetched::Bytes { bytes, at: Some(at), validators: Validators::default() })
}

fn too_large(limit: u64) -> Failure {
    let limit = migration::units::ByteCount(limit);
    Failure::source(Reason::TooLarge, format!("more than {limit}; raise max_bytes if that is right"))
}

fn broken(reason: Reason, place: &str, error: &dyn std::error::Error) -> Failure {
    Failure::source(reason, format!("{place}: {}", chain(error)))
}
