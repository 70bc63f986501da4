//! Typed getters over the raw tree: each notes what is wrong and lets the reader go on.

use std::path::PathBuf;
use std::time::Duration;

use migration::units::{ByteCount, Ratio};

use super::error::{Position, Report, suggest};
use super::raw::{Node, Value};
use super::units::{self, WrongUnit};

/// A value, its dotted key and its position.
#[derive(Clone)]
pub(super) struct Item<'a> {
    node: &'a Node,
    /// Dotted key.
    pub(super) key: String,
    /// Where the key stands; for the elements of a list, where the value stands.
    pub(super) key_at: Position,
    report: &'a Report,
}

impl<'a> Item<'a> {
    /// The document.
    pub(super) fn root(node: &'a Node, report: &'a Report) -> Self {
        Self { node, key: String::new(), key_at: node.at, report }
    }

    /// Where the value stands.
    pub(super) fn at(&self) -> Position {
        if matches!(self.node.value, Value::Null | Value::Map(_)) { self.key_at } else { self.node.at }
    }

    /// The value as JSON, whatever it is.
    pub(super) fn json(&self) -> Option<serde_json::Value> {
        let json = self.node.json();
        if json.is_none() {
            self.wrong("cannot be written as JSON", "text as keys, and finite numbers");
        }
        json
    }

    pub(super) fn value(&self) -> &'a Value {
        &self.node.value
    }

    /// Notes a problem of this value.
    pub(super) fn wrong(&self, what: impl Into<String>, right: impl Into<String>) {
        self.report.note(self.at(), self.key.clone(), what, right);
    }

    fn wrong_kind<T>(&self, right: impl Into<String>) -> Option<T> {
        let kind = self.node.value.kind();
        self.wrong(if kind == "empty" { "is empty".to_owned() } else { format!("is {kind}") }, right);
        None
    }

    /// Notes a problem of the key, or of everything under it.
    pub(super) fn wrong_key(&self, what: impl Into<String>, right: impl Into<String>) {
        self.report.note(self.key_at, self.key.clone(), what, right);
    }

    /// Text that is not empty.
    pub(super) fn text(&self, right: &str) -> Option<&'a str> {
        match &self.node.value {
            Value::Text(text) if text.trim().is_empty() => {
                self.wrong("is empty", right);
                None
            }
            Value::Text(text) => Some(text),
            Value::Integer(_) | Value::Float(_) | Value::Bool(_) => {
                self.wrong_kind(format!("{right} (put it in quotes)"))
            }
            _ => self.wrong_kind(right),
        }
    }

    /// A name that is safe in labels, slots and file names.
    pub(super) fn name(&self) -> Option<&'a str> {
        let text = self.text("a name")?;
        check_name(text).map_err(|(what, right)| self.wrong(what, right)).ok().map(|()| text)
    }

    pub(super) fn boolean(&self) -> Option<bool> {
        match self.node.value {
            Value::Bool(value) => Some(value),
            _ => self.wrong_kind("true or false"),
        }
    }

    /// A plain number without a unit.
    pub(super) fn number(&self, right: &str) -> Option<f64> {
        match self.node.value {
            Value::Integer(value) => Some(value as f64),
            Value::Float(value) if value.is_finite() => Some(value),
            _ => self.wrong_kind(right),
        }
    }

    /// A whole number from `least` to `most`.
    pub(super) fn count(&self, least: u32, most: u32) -> Option<u32> {
        let right = || format!("a whole number from {least} to {most}");
        match self.node.value {
            Value::Integer(value) => match u32::try_from(value) {
                Ok(value) if (least..=most).contains(&value) => Some(value),
                _ => {
                    self.wrong(format!("{value} is out of range"), right());
                    None
                }
            },
            Value::Float(value) => {
                self.wrong(format!("{value} is not a whole number"), right());
                None
            }
            _ => self.wrong_kind(right()),
        }
    }

    fn quantity<T>(&self, parse: fn(&str) -> Result<T, WrongUnit>) -> Option<T> {
        let text = match &self.node.value {
            Value::Text(text) => text.clone(),
            // Parsed as well: the parser knows what the number lacks.
            Value::Integer(value) => value.to_string(),
            Value::Float(value) => value.to_string(),
            _ => return self.wrong_kind("a quantity with its unit, such as 500ms, 16MiB, 25% or 0.40/h"),
        };
        parse(&text).map_err(|wrong| self.wrong(wrong.what, wrong.right)).ok()
    }

    pub(super) fn duration(&self) -> Option<Duration> {
        self.quantity(units::duration)
    }

    pub(super) fn bytes(&self) -> Option<ByteCount> {
        self.quantity(units::bytes)
    }

    pub(super) fn ratio(&self) -> Option<Ratio> {
        self.quantity(units::ratio)
    }

    pub(super) fn cost_per_hour(&self) -> Option<f64> {
        self.quantity(units::cost_per_hour)
    }

    pub(super) fn path(&self, folder: &std::path::Path) -> Option<PathBuf> {
        self.text("a path").map(|text| folder.join(text))
    }

    /// A path of a URL, such as `/healthz`.
    pub(super) fn url_path(&self) -> Option<String> {
        let text = self.text("a path such as /healthz")?;
        if text.starts_with('/') && text.chars().all(|c| c.is_ascii_graphic() && c != '#') {
            return Some(text.to_owned());
        }
        self.wrong("is not the path of a URL", "a path that starts with a slash, such as /healthz");
        None
    }

    /// One of `choices`.
    pub(super) fn choice<T: Copy>(&self, choices: &[(&str, T)]) -> Option<T> {
        let names = || choices.iter().map(|(name, _)| *name);
        let text = self.text(&format!("one of {}", names().collect::<Vec<_>>().join(", ")))?;
        let found = choices.iter().find(|(name, _)| *name == text).map(|(_, value)| *value);
        if found.is_none() {
            self.wrong(format!("`{text}` is not a choice here"), suggest(text, names()));
        }
        found
    }

    /// The name of something that is defined elsewhere: `what` is `zone`, `driver`, `policy`.
    pub(super) fn reference<'n>(
        &self,
        what: &str,
        names: impl IntoIterator<Item = &'n str> + Clone,
    ) -> Option<&'a str> {
        let text = self.text(&format!("the name of a {what}"))?;
        if names.clone().into_iter().any(|name| name == text) {
            return Some(text);
        }
        self.wrong(format!("there is no {what} `{text}`"), suggest(text, names));
        None
    }

    /// The elements of a list.
    pub(super) fn list(&self, right: &str) -> Option<Vec<Item<'a>>> {
        let Value::List(nodes) = &self.node.value else {
            return self.wrong_kind(format!("a list of {right}"));
        };
        let item = |(i, node): (usize, &'a Node)| Item {
            node,
            key: format!("{}[{i}]", self.key),
            key_at: node.at,
            report: self.report,
        };
        Some(nodes.iter().enumerate().map(item).collect())
    }

    /// A mapping with fixed keys.
    pub(super) fn section(&self) -> Option<Section<'a>> {
        Some(Section {
            item: self.clone(),
            entries: self.entries("a mapping (key: value)")?,
            asked: Vec::new(),
        })
    }

    /// A mapping whose keys are names the operator chose.
    pub(super) fn named(&self, what: &str) -> Option<Vec<(&'a str, Item<'a>)>> {
        let entries = self.entries(&format!("a mapping from names to {what}"))?;
        for (name, item) in &entries {
            if let Err((what, right)) = check_name(name) {
                item.report.note(item.key_at, item.key.clone(), what, right);
            }
        }
        Some(entries)
    }

    /// Key and value of each entry; repeated keys and keys that are not text are noted and left out.
    fn entries(&self, right: &str) -> Option<Vec<(&'a str, Item<'a>)>> {
        let Value::Map(entries) = &self.node.value else {
            return self.wrong_kind(right);
        };
        let mut found: Vec<(&'a str, Item<'a>)> = Vec::with_capacity(entries.len());
        let mut seen = std::collections::HashMap::new();
        for (key, value) in entries {
            let Value::Text(name) = &key.value else {
                self.report.note(
                    key.at,
                    self.key.clone(),
                    format!("has a key that is {}", key.value.kind()),
                    "keys are text; put it in quotes",
                );
                continue;
            };
            let dotted = if self.key.is_empty() { name.clone() } else { format!("{}.{name}", self.key) };
            if let Some(first) = seen.insert(name.as_str(), key.at) {
                let what = format!("is given twice, first on line {}", first.line);
                self.report.note(key.at, dotted, what, "keep one of them");
                seen.insert(name.as_str(), first);
                continue;
            }
            let item = Item { node: value, key: dotted, key_at: key.at, report: self.report };
            found.push((name.as_str(), item));
        }
        Some(found)
    }
}

/// Names go into metric labels, slot names, certificates and file names.
fn check_name(name: &str) -> Result<(), (String, &'static str)> {
    const RIGHT: &str = "letters, digits, `-`, `_` and `.`, at most 40 of them, first a letter or digit";
    let safe = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() {
        Err(("is an empty name".into(), RIGHT))
    } else if name.len() > 40 {
        Err(("is too long for a name".into(), RIGHT))
    } else if !name.chars().all(safe) || !name.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        Err((format!("`{name}` is not a name"), RIGHT))
    } else {
        Ok(())
    }
}

/// A mapping with fixed keys: whoever reads it asks for each key, then calls [`Section::finish`].
pub(super) struct Section<'a> {
    /// The mapping itself.
    pub(super) item: Item<'a>,
    entries: Vec<(&'a str, Item<'a>)>,
    asked: Vec<&'static str>,
}

impl<'a> Section<'a> {
    /// The value of `name` if the key is there; an empty value is a problem.
    pub(super) fn optional(&mut self, name: &'static str) -> Option<Item<'a>> {
        self.asked.push(name);
        let item = self.entries.iter().find(|(key, _)| *key == name).map(|(_, item)| item)?;
        if matches!(item.node.value, Value::Null) {
            item.wrong("is empty", "give it a value or leave the key out");
            return None;
        }
        Some(item.clone())
    }

    /// Whether the key is there, with a value or without.
    pub(super) fn has(&self, name: &str) -> bool {
        self.entries.iter().any(|(key, _)| *key == name)
    }

    /// The value of `name`; `right` says what to add when it is missing.
    pub(super) fn required(&mut self, name: &'static str, right: &str) -> Option<Item<'a>> {
        if !self.has(name) {
            let key =
                if self.item.key.is_empty() { name.into() } else { format!("{}.{name}", self.item.key) };
            self.item.report.note(self.item.key_at, key, "is missing", format!("add {right}"));
        }
        self.optional(name)
    }

    /// A key that the design knows and this version does not: a problem whenever it is there.
    pub(super) fn unsupported(&mut self, name: &'static str, what: &str, right: &str) {
        self.asked.push(name);
        if let Some((_, item)) = self.entries.iter().find(|(key, _)| *key == name) {
            item.wrong_key(what, right);
        }
    }

    /// Notes every key that nobody asked for.
    pub(super) fn finish(self) {
        for (name, item) in &self.entries {
            if !self.asked.contains(name) {
                let right = suggest(name, self.asked.iter().copied());
                item.report.note(item.key_at, item.key.clone(), "is not a known key", right);
            }
        }
    }
}
