//! What a record says.

use replicator::postgres::Dsn;
use serde::{Deserialize, Serialize};

use crate::admin::access::{Caller, Role, Via};

/// Who did it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Who {
    /// Name of the token or certificate; of an open listener: what the caller says.
    pub name: String,
    /// Which one: the token's id, the certificate's name, the issuer's subject; none: nobody proved who asks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// With which role.
    pub role: Role,
    /// How that is known.
    pub via: Via,
    /// From which address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
}

impl Who {
    /// The caller, at this address.
    pub fn of(caller: &Caller, from: Option<String>) -> Self {
        let (name, id) = (caller.name.clone(), caller.id.clone());
        Self { name, id, role: caller.role, via: caller.via, from }
    }
}

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Entry {
    /// The audit begins, or goes on after a start.
    Opened {
        /// Bytes of an unfinished record that a crash left and that were cut off.
        cut_bytes: u64,
    },
    /// Records were lost while the disk did not take them.
    Lost {
        /// How many.
        records: u64,
    },
    /// A call that changes something is about to be carried out.
    Call {
        /// Names the call in its outcome.
        call: String,
        /// The caller.
        who: Who,
        /// Its method.
        method: String,
        /// Its path.
        path: String,
        /// What it asks for behind that, by name, secrets left out; null where it asks for nothing.
        #[serde(default, skip_serializing_if = "serde_json::Value::is_null")]
        query: serde_json::Value,
        /// The resource that it is about: of its path as it was understood, or the one that it reserves.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        resource: Option<String>,
        /// The body, secrets left out; null without one.
        body: serde_json::Value,
    },
    /// What became of a call.
    Outcome {
        /// The call.
        call: String,
        /// Its caller.
        who: Who,
        /// The resource that it is about.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        resource: Option<String>,
        /// The answer's status.
        status: u16,
        /// What the answer says: the problem's detail, or the new state of what was changed.
        #[serde(default, skip_serializing_if = "serde_json::Value::is_null")]
        answer: serde_json::Value,
    },
    /// A call that the caller has no right to.
    Refused {
        /// The caller.
        who: Who,
        /// Its method.
        method: String,
        /// Its path.
        path: String,
        /// The resource that it is about.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        resource: Option<String>,
        /// Why.
        why: String,
    },
    /// A resource's decision became another one.
    Decision {
        /// The resource.
        resource: String,
        /// `move`, `propose`, `stay`.
        verdict: String,
        /// One sentence.
        because: String,
        /// The score.
        score: f64,
        /// Its lower bound.
        lower: f64,
        /// What that must clear.
        needed: f64,
        /// Names of the guards that fail.
        guards: Vec<String>,
    },
    /// A section of a resource's settings was changed.
    Changed {
        /// The resource.
        resource: String,
        /// Who.
        by: String,
        /// `shadow`, `replication` or `scaling`; `placements`, where the files have its shadow in another zone.
        section: String,
        /// As it was.
        before: serde_json::Value,
        /// As it is.
        after: serde_json::Value,
    },
    /// The shadow's schema was brought up to its primary's, as the policy says.
    Schema {
        /// The resource.
        resource: String,
        /// The shadow's zone.
        zone: String,
        /// What was done, one line each.
        done: Vec<String>,
    },
    /// A resource's machine entered a phase.
    Step {
        /// The resource.
        resource: String,
        /// The migration; none: outside one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        migration: Option<String>,
        /// Who or what asked for the migration.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        trigger: Option<String>,
        /// The event that led there.
        event: String,
        /// The phase it left.
        before: String,
        /// The phase it entered.
        after: String,
        /// The generation that serves.
        generation: u64,
        /// The zone that serves.
        primary: String,
    },
    /// An effect was carried out, or failed.
    Effect {
        /// The resource.
        resource: String,
        /// The migration; none: outside one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        migration: Option<String>,
        /// Its name.
        effect: String,
        /// How long it took, milliseconds.
        spent_ms: u64,
        /// Why it failed; none: it did not.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        error: Option<String>,
    },
}

impl Entry {
    /// Its kind, as in the record.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Opened { .. } => "opened",
            Self::Lost { .. } => "lost",
            Self::Call { .. } => "call",
            Self::Outcome { .. } => "outcome",
            Self::Refused { .. } => "refused",
            Self::Decision { .. } => "decision",
            Self::Changed { .. } => "changed",
            Self::Schema { .. } => "schema",
            Self::Step { .. } => "step",
            Self::Effect { .. } => "effect",
        }
    }
}

/// Of a record that is too long: entries of a list, and bytes of a text, that are kept. As JSON a byte may become six.
const KEPT_ENTRIES: usize = 100;
const KEPT_BYTES: usize = 1 << 10;

impl Entry {
    /// The same with what is too long in it cut, and how much is missing.
    pub fn shortened(&self) -> Result<Self, serde_json::Error> {
        serde_json::from_value(shortened(serde_json::to_value(self)?))
    }
}

fn shortened(value: serde_json::Value) -> serde_json::Value {
    use serde_json::Value;
    match value {
        Value::String(text) if text.len() > KEPT_BYTES => {
            let kept = &text[..text.floor_char_boundary(KEPT_BYTES)];
            format!("{kept}… ({} bytes more)", text.len() - kept.len()).into()
        }
        Value::Array(values) => {
            let more = values.len().saturating_sub(KEPT_ENTRIES);
            let kept = values.into_iter().take(KEPT_ENTRIES).map(shortened);
            kept.chain((more > 0).then(|| format!("… ({more} more)").into())).collect()
        }
        Value::Object(map) => map.into_iter().map(|(key, value)| (key, shortened(value))).collect(),
        other => other,
    }
}

/// Keys whose values are secrets.
const SECRETS: [&str; 5] = ["token", "password", "secret", "key", "authorization"];
const HIDDEN: &str = "(not recorded)";

/// The same without the values of keys that name secrets, and without texts that hold a password.
pub fn without_secrets(value: serde_json::Value) -> serde_json::Value {
    use serde_json::Value;
    match value {
        Value::Object(map) => Value::Object(
            map.into_iter()
                .map(|(key, value)| {
                    let name = key.to_ascii_lowercase();
                    let secret = SECRETS.iter().any(|word| name.contains(word));
                    let dsn = name.contains("dsn") && value.as_str().is_some_and(is_no_open_dsn);
                    let hidden = dsn || secret && !value.is_null() && !is_reference(&value);
                    let value = if hidden { HIDDEN.into() } else { without_secrets(value) };
                    (key, value)
                })
                .collect(),
        ),
        Value::Array(values) => Value::Array(values.into_iter().map(without_secrets).collect()),
        Value::String(text) if holds_password(&text) => HIDDEN.into(),
        other => other,
    }
}

/// Whether it is anything else than a connection string without a password: in one that cannot be read, one may stand anywhere.
pub(crate) fn is_no_open_dsn(text: &str) -> bool {
    !text.parse::<Dsn>().is_ok_and(|dsn| dsn.get_password().is_none())
}

/// Whether a password stands in it as in a URL (`://user:…@`) or a connection string (`password=…`).
pub(crate) fn holds_password(text: &str) -> bool {
    let in_url = |rest: &str| {
        let place = rest.split(char::is_whitespace).next().unwrap_or_default();
        place.rsplit_once('@').is_some_and(|(user, _)| user.contains(':'))
    };
    let lower = text.to_ascii_lowercase();
    text.split("://").skip(1).any(in_url)
        || lower.split("password").skip(1).any(|rest| rest.trim_start().starts_with('='))
}

/// `{file: PATH}` or `{env: NAME}`: where a secret is, which says what the node was asked to use.
fn is_reference(value: &serde_json::Value) -> bool {
    let map = value.as_object().filter(|map| map.len() == 1);
    map.is_some_and(|map| {
        map.iter().all(|(key, value)| matches!(key.as_str(), "file" | "env") && value.is_string())
    })
}
