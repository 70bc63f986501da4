//! The chain of hashes: one line of JSON per record, in which the SHA-256 of everything before `,"hash"` stands last.
//!
//! ```text
//! {"seq":7,"at":"2026-01-05T08:00:00.000Z","node":"edge-1","prev":"<hash of 6>","kind":"step",…,"hash":"<hash of this>"}
//! ```
//!
//! The hash is over the bytes as they stand in the file, not over a reading of them: no two spellings of one record have the same
//! hash. `prev` is among those bytes, which makes it a chain.

use migration::units::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::Entry;

/// What stands before the first record.
pub const GENESIS: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// Where a chain is: the last record's number and hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tip {
    /// Number of the last record; 0: there is none yet.
    pub seq: u64,
    /// Its hash, 64 hexadecimal digits.
    pub hash: String,
}

impl Default for Tip {
    fn default() -> Self {
        Self { seq: 0, hash: GENESIS.to_owned() }
    }
}

#[derive(Serialize)]
struct Line<'a> {
    seq: u64,
    at: String,
    node: &'a str,
    prev: &'a str,
    #[serde(flatten)]
    entry: &'a Entry,
}

/// The parts of a line that the chain is about.
#[derive(Deserialize)]
struct Links {
    seq: u64,
    at: String,
    prev: String,
    hash: String,
}

/// The next record as a line, with its newline; the tip moves on to it.
pub fn append(tip: &mut Tip, node: &str, at: Timestamp, entry: &Entry) -> Result<String, serde_json::Error> {
    let seq = tip.seq + 1;
    let mut line = serde_json::to_string(&Line { seq, at: moment(at), node, prev: &tip.hash, entry })?;
    // The closing brace comes after the hash.
    line.pop();
    let hash = hex(&Sha256::digest(line.as_bytes()));
    line.push_str(&format!("{MARK}{hash}\"}}\n"));
    *tip = Tip { seq, hash };
    Ok(line)
}

const MARK: &str = ",\"hash\":\"";
/// From [`MARK`] to the end of the line.
const TAIL: usize = MARK.len() + 64 + 2;

/// What is wrong with a line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// It is not a record.
    #[error("it is not a record of the audit: {0}")]
    Form(String),
    /// Its bytes are not those that were hashed.
    #[error("it was changed: its hash is not that of its bytes")]
    Hash,
    /// Its number does not follow.
    #[error("record {found} stands where {expected} should: records are missing or were put in")]
    Number {
        /// The one that should stand here.
        expected: u64,
        /// The one that does.
        found: u64,
    },
    /// It does not continue the record before it.
    #[error("it does not follow the record before it: one of them was replaced")]
    Link,
}

/// Checks one line, without its newline, against the record before it; `before` is none for the first line that is looked at, which may
/// then be any record. Moves `before` on, and returns the record's time.
pub fn check(before: &mut Option<Tip>, line: &[u8]) -> Result<String, Broken> {
    let form = |what: &str| Broken::Form(what.to_owned());
    let split = line.len().checked_sub(TAIL).ok_or_else(|| form("it is too short"))?;
    let (bytes, tail) = line.split_at(split);
    let hash = tail.strip_prefix(MARK.as_bytes()).and_then(|rest| rest.strip_suffix(b"\"}"));
    let hash = hash.ok_or_else(|| form("it does not end with a hash"))?;
    if hex(&Sha256::digest(bytes)).as_bytes() != hash {
        return Err(Broken::Hash);
    }
    let links: Links = serde_json::from_slice(line).map_err(|error| Broken::Form(error.to_string()))?;
    if let Some(before) = before {
        if links.seq != before.seq + 1 {
            return Err(Broken::Number { expected: before.seq + 1, found: links.seq });
        }
        if links.prev != before.hash {
            return Err(Broken::Link);
        }
    } else if links.seq == 1 && links.prev != GENESIS {
        return Err(Broken::Link);
    }
    *before = Some(Tip { seq: links.seq, hash: links.hash });
    Ok(links.at)
}

/// Wall time as RFC 3339 with milliseconds, UTC.
pub fn moment(at: Timestamp) -> String {
    let at = i64::try_from(at.0).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    at.map_or_else(|| "?".to_owned(), |at| format!("{at:.3}"))
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        use std::fmt::Write as _;
        let _ = write!(text, "{byte:02x}");
        text
    })
}
