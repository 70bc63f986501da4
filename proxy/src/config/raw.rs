//! YAML as a tree in which every key and every value knows its position.
//!
//! `serde-saphyr` reads the text (anchors, merges and all); serde only builds this tree. No `Debug` on purpose:
//! a value may be a secret.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::options::DuplicateKeyPolicy;
use serde_saphyr::{Location, RenderOptions, SnippetMode, Spanned, UserMessageFormatter};

use super::error::{Position, Report};

/// Deepest nesting that is read; the real files need six.
const MAX_DEPTH: usize = 32;
/// Most values in one file; more is an alias bomb, not a configuration.
const MAX_NODES: usize = 100_000;

/// A value and where it stands.
pub(super) struct Node {
    pub(super) value: Value,
    pub(super) at: Position,
}

/// What YAML knows.
pub(super) enum Value {
    Null,
    Bool(bool),
    Integer(i128),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    Map(Vec<(Node, Node)>),
}

impl Value {
    /// The kind, for messages.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Null => "empty",
            Self::Bool(_) => "true or false",
            Self::Integer(_) | Self::Float(_) => "a number",
            Self::Text(_) => "text",
            Self::List(_) => "a list",
            Self::Map(_) => "a mapping",
        }
    }
}

impl Node {
    /// As JSON; `None`: it holds a key that is no text, or a number that JSON does not have.
    pub(super) fn json(&self) -> Option<serde_json::Value> {
        use serde_json::Value as Json;
        Some(match &self.value {
            Value::Null => Json::Null,
            Value::Bool(value) => Json::Bool(*value),
            Value::Integer(value) => Json::Number(serde_json::Number::from_i128(*value)?),
            Value::Float(value) => Json::Number(serde_json::Number::from_f64(*value)?),
            Value::Text(text) => Json::String(text.clone()),
            Value::List(nodes) => Json::Array(nodes.iter().map(Self::json).collect::<Option<_>>()?),
            Value::Map(entries) => Json::Object(
                entries
                    .iter()
                    .map(|(key, value)| match &key.value {
                        Value::Text(name) => Some((name.clone(), value.json()?)),
                        _ => None,
                    })
                    .collect::<Option<_>>()?,
            ),
        })
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Spanned { value, referenced, defined } = Spanned::<Value>::deserialize(deserializer)?;
        // An alias is wrong where its anchor stands.
        let at = if defined == Location::UNKNOWN { referenced } else { defined };
        Ok(Self { value, at: position(at) })
    }
}

fn position(at: Location) -> Position {
    Position { line: at.line().max(1), column: at.column().max(1) }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Any)
    }
}

struct Any;

impl<'de> Visitor<'de> for Any {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Integer(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Integer(value.into()))
    }

    fn visit_i128<E>(self, value: i128) -> Result<Value, E> {
        Ok(Value::Integer(value))
    }

    fn visit_u128<E>(self, value: u128) -> Result<Value, E> {
        Ok(i128::try_from(value).map_or(Value::Float(value as f64), Value::Integer))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::Text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut nodes = Vec::new();
        while let Some(node) = list.next_element()? {
            nodes.push(node);
        }
        Ok(Value::List(nodes))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Value::Map(entries))
    }
}

/// Reads one document; a syntax error becomes a problem of `report`.
pub(super) fn parse(text: &str, report: &Report) -> Option<Node> {
    let mut options = serde_saphyr::Options::default();
    options.budget = serde_saphyr::budget! { max_depth: MAX_DEPTH, max_nodes: MAX_NODES };
    // Repeated keys come through, so that all of them can be reported.
    options.duplicate_keys = DuplicateKeyPolicy::PassThrough;
    options.strict_booleans = true;
    // A snippet would print the neighbourhood, which may hold a secret.
    options.with_snippet = false;
    match serde_saphyr::from_str_with_options(text, options) {
        Ok(node) => Some(node),
        Err(error) => {
            let at = error.location().map_or(Position::START, position);
            let mut render = RenderOptions::new(&UserMessageFormatter);
            render.snippets = SnippetMode::Off;
            let message = error.render_with_options(render);
            let what = format!("is not readable YAML: {}", one_line(&message));
            report.note(at, "", what, "mend the syntax; nothing else in this file was checked");
            None
        }
    }
}

/// The parser's words without its own rendering of the position.
fn one_line(message: &str) -> String {
    let line = message.lines().next().unwrap_or_default();
    let line = line.strip_prefix("error: ").unwrap_or(line);
    let line = line.split(" at line ").next().unwrap_or(line);
    line.trim_end_matches([':', '.', ' ']).to_owned()
}
