//! Facts from outside: what other services say about zones (cost, utilisation, weather, events, maintenance), and what is
//! measured of the way to them.
//!
//! A feed is a source × a way to decode × a map. Decoding and mapping are pure; sources are the thin shell.
//!
//! | module | what |
//! |---|---|
//! | [`fetch`] | sources: HTTP, a file, a command, databases, the way to other zones; webhooks come in by [`webhook`] |
//! | [`egress`] | which hosts and addresses may be asked |
//! | [`decode`] | bytes to JSON: JSON, RSS and Atom, iCalendar, a number |
//! | [`map`] | JSON to [findings](finding) by a jq program; [`preset`] has those of known services |
//! | [`places`] | the feed's names of zones |
//! | [`board`] | the newest of every feed; [`facts`] reads it for the decision, [`foreseen`] for the forecasters |
//! | [`runner`] | one task per feed; [`pace`] says when it runs next |
//! | [`trial`] | one run, stage by stage: `godwit feeds test` |
//!
//! What is too old is unknown and says so; it is never a number. No feed waits for the controller, nor the other way round.

pub mod board;
pub mod decode;
pub mod egress;
pub mod facts;
pub mod fetch;
pub mod finding;
pub mod foreseen;
pub mod map;
pub mod moment;
pub mod pace;
pub mod places;
pub mod preset;
pub mod runner;
pub mod trial;
pub mod view;
pub mod webhook;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use decode::{Decode, Decoded};
use finding::Finding;
use map::Program;
use migration::units::Timestamp;
use places::Places;

/// What a feed is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// The cost of one worker for an hour, in place of the configured one.
    Cost,
    /// How busy a zone is, in place of in-flight / capacity.
    Utilization,
    /// Weather, shown.
    Weather,
    /// Events and their numbers, shown.
    Events,
    /// Windows of maintenance: a guard.
    Maintenance,
    /// The way to a zone: facts for a policy's own guards.
    Path,
}

impl Use {
    /// Every use with its name in files.
    pub const ALL: [(&'static str, Self); 6] = [
        ("cost", Self::Cost),
        ("utilization", Self::Utilization),
        ("weather", Self::Weather),
        ("events", Self::Events),
        ("maintenance", Self::Maintenance),
        ("path", Self::Path),
    ];

    /// Its name in files.
    pub fn name(self) -> &'static str {
        Self::ALL.into_iter().find(|(_, one)| *one == self).map_or("events", |(name, _)| name)
    }
}

/// A secret; printed as `…`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

/// Where bytes come from.
#[derive(Clone, Debug)]
pub enum Source {
    /// `GET` over HTTP.
    Http(fetch::http::Request),
    /// A file; its age is that of its last change.
    File(PathBuf),
    /// The output of a command.
    Exec(Vec<String>),
    /// A query to the databases of a resource.
    Postgres(fetch::postgres::Databases),
    /// What others post, signed with this secret.
    Webhook(Secret),
    /// The way to other zones, measured here.
    Path(fetch::path::Measured),
}

impl Source {
    /// Its kind, for people.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Http(_) => "http",
            Self::File(_) => "file",
            Self::Exec(_) => "exec",
            Self::Postgres(_) => "postgres",
            Self::Webhook(_) => "webhook",
            Self::Path(measured) => measured.how.kind(),
        }
    }

    /// Where from, without secrets.
    pub fn place(&self) -> String {
        match self {
            Self::Http(request) => request.shown(),
            Self::File(path) => path.display().to_string(),
            Self::Exec(argv) => argv.first().cloned().unwrap_or_default(),
            Self::Postgres(asked) => {
                let zones: Vec<&str> = asked.databases.iter().map(|(zone, _)| zone.as_str()).collect();
                format!("databases in {}", zones.join(", "))
            }
            Self::Webhook(_) => "posted to this node".into(),
            Self::Path(measured) => measured.how.place(),
        }
    }
}

/// A configured feed.
#[derive(Clone, Debug)]
pub struct Feed {
    /// Its name.
    pub name: String,
    /// The preset it was made from.
    pub preset: Option<&'static str>,
    /// Where bytes come from.
    pub source: Source,
    /// How they are read.
    pub decode: Decode,
    /// What they mean.
    pub map: Program,
    /// What it is for.
    pub serves: Use,
    /// The zones it speaks of.
    pub places: Places,
    /// The only resource it is about; none: all.
    pub resource: Option<String>,
    /// How often it is asked; webhooks are not.
    pub every: Duration,
    /// How old what it says may be.
    pub stale_after: Duration,
    /// How long one run may take.
    pub timeout: Duration,
    /// Longest answer, bytes.
    pub max_bytes: u64,
}

/// A part of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Getting the bytes.
    Source,
    /// Reading them.
    Decode,
    /// Making sense of them.
    Map,
}

impl Stage {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Decode => "decode",
            Self::Map => "map",
        }
    }
}

/// Why a run failed, as a metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// The host or its address is not allowed.
    Egress,
    /// No connection, or a broken one.
    Connect,
    /// TLS failed.
    Tls,
    /// It took too long.
    Timeout,
    /// An answer other than 200.
    Status,
    /// A redirect that is not followed.
    Redirect,
    /// More bytes than allowed.
    TooLarge,
    /// The file cannot be read.
    File,
    /// The command failed.
    Exec,
    /// No database answers.
    Database,
    /// A post without a right signature.
    Signature,
    /// The bytes cannot be read.
    Decode,
    /// The program failed, or gave no reading.
    Map,
}

impl Reason {
    /// The label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Egress => "egress",
            Self::Connect => "connect",
            Self::Tls => "tls",
            Self::Timeout => "timeout",
            Self::Status => "status",
            Self::Redirect => "redirect",
            Self::TooLarge => "too_large",
            Self::File => "file",
            Self::Exec => "exec",
            Self::Database => "database",
            Self::Signature => "signature",
            Self::Decode => "decode",
            Self::Map => "map",
        }
    }
}

/// Why a run failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {what}", .stage.name())]
pub struct Failure {
    /// Where.
    pub stage: Stage,
    /// As a label.
    pub reason: Reason,
    /// For people: what is wrong, and what would be right where that is known.
    pub what: String,
    /// The service asks to be left alone for so long.
    pub retry_after: Option<Duration>,
}

impl Failure {
    /// Of the source.
    pub fn source(reason: Reason, what: impl Into<String>) -> Self {
        Self { stage: Stage::Source, reason, what: what.into(), retry_after: None }
    }
}

/// What bytes say.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Understood {
    /// The findings, with configured zones.
    pub findings: Vec<Finding>,
    /// How many were about other places.
    pub elsewhere: usize,
    /// What was left out while decoding.
    pub notes: Vec<String>,
}

impl Feed {
    /// Reads `bytes`: pure. May take long: call it where waiting harms nobody.
    pub fn decoded(&self, bytes: &[u8], now: Timestamp) -> Result<Decoded, Failure> {
        decode::decode(self.decode, bytes, now).map_err(|error| Failure {
            stage: Stage::Decode,
            reason: Reason::Decode,
            what: error.to_string(),
            retry_after: None,
        })
    }

    /// Makes sense of what was read: pure. May take long, too.
    pub fn mapped(&self, decoded: Decoded, now: Timestamp) -> Result<Understood, Failure> {
        let fail = |what| Failure { stage: Stage::Map, reason: Reason::Map, what, retry_after: None };
        let findings =
            self.map.run(&decoded.value, self.places.all(), now).map_err(|error| fail(error.to_string()))?;
        // What is said of other places need not fit.
        let (findings, elsewhere) = self.places.assign(findings);
        for finding in &findings {
            facts::fits(self, finding).map_err(fail)?;
        }
        Ok(Understood { findings, elsewhere, notes: decoded.notes })
    }

    /// Both.
    pub fn understand(&self, bytes: &[u8], now: Timestamp) -> Result<Understood, Failure> {
        self.mapped(self.decoded(bytes, now)?, now)
    }
}

#[cfg(test)]
mod tests;
