//! Bytes to JSON: pure functions that bound what they read and say where it went wrong.
//!
//! | kind | what the map gets |
//! |---|---|
//! | `json` | the document |
//! | `feed` | RSS and Atom: `{title, updated, entries: [{id, title, summary, content, link, published, updated, categories}]}` |
//! | `calendar` | iCalendar: `{name, events: [{uid, summary, description, location, status, starts, ends, categories, properties}]}` |
//! | `number` | the number that the text is |

mod calendar;
mod feed;

use migration::units::Timestamp;
use serde_json::Value;

/// How bytes are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decode {
    /// JSON.
    Json,
    /// RSS or Atom.
    Feed,
    /// iCalendar (RFC 5545).
    Calendar,
    /// Text that is one number.
    Number,
}

impl Decode {
    /// Every kind with its name in files.
    pub const ALL: [(&'static str, Self); 4] =
        [("json", Self::Json), ("feed", Self::Feed), ("calendar", Self::Calendar), ("number", Self::Number)];

    /// Its name in files.
    pub fn name(self) -> &'static str {
        Self::ALL.into_iter().find(|(_, kind)| *kind == self).map_or("json", |(name, _)| name)
    }
}

/// What was read.
#[derive(Clone, Debug, PartialEq)]
pub struct Decoded {
    /// For the map.
    pub value: Value,
    /// What was left out and why, a line each.
    pub notes: Vec<String>,
}

/// Why bytes could not be read: a lower-case phrase that says where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct DecodeError(pub String);

/// Reads `bytes`. `now` is what recurring events are expanded around.
pub fn decode(kind: Decode, bytes: &[u8], now: Timestamp) -> Result<Decoded, DecodeError> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err(DecodeError("is empty".into()));
    }
    let whole = |value| Decoded { value, notes: Vec::new() };
    match kind {
        Decode::Json => serde_json::from_slice(bytes).map(whole).map_err(|error| not_json(bytes, &error)),
        Decode::Feed => feed::read(bytes).map(whole),
        Decode::Calendar => calendar::read(text(bytes)?, now),
        Decode::Number => number(text(bytes)?).map(whole),
    }
}

fn text(bytes: &[u8]) -> Result<&str, DecodeError> {
    std::str::from_utf8(bytes)
        .map_err(|error| DecodeError(format!("is not UTF-8 text (byte {})", error.valid_up_to())))
}

fn not_json(bytes: &[u8], error: &serde_json::Error) -> DecodeError {
    let text = error.to_string();
    let what = text.split(" at line ").next().unwrap_or_default();
    let looks = if bytes.trim_ascii_start().starts_with(b"<") { "; it looks like HTML or XML" } else { "" };
    DecodeError(format!("is not JSON: {what} (line {}, column {}){looks}", error.line(), error.column()))
}

fn number(text: &str) -> Result<Value, DecodeError> {
    let text = text.trim();
    let found = text.parse::<f64>().ok().and_then(serde_json::Number::from_f64);
    found.map(Value::Number).ok_or_else(|| {
        DecodeError(format!("is not one finite number: {:?}", text.chars().take(40).collect::<String>()))
    })
}

#[cfg(test)]
mod tests;
