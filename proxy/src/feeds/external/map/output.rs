//! One output of a program as a finding, or what is wrong with it.

use jaq_json::Val;
use jaq_std::ValT as _;
use migration::units::Timestamp;

use super::super::finding::{Event, Finding, Value};
use super::super::moment;
use super::shape::cut;

const RIGHT: &str =
    "write a number, {value: 1.5, zone: \"…\"} or {event: \"maintenance\", title: \"…\", starts: …}";
/// Longest text kept.
const LONGEST: usize = 300;
/// Most zones of one finding.
const MAX_ZONES: usize = 200;
const VALUE_KEYS: [&str; 6] = ["value", "zone", "name", "unit", "at", "for"];
const EVENT_KEYS: [&str; 8] = ["event", "zone", "title", "starts", "ends", "under_way", "severity", "id"];

pub(super) fn finding(output: &Val) -> Result<Finding, String> {
    match output {
        Val::Num(_) => Ok(Finding::Value(Value { value: number("it", output)?, ..Value::default() })),
        Val::Obj(_) if has(output, "event") => event(output).map(Finding::Event),
        Val::Obj(_) if has(output, "value") => value(output).map(Finding::Value),
        Val::Obj(_) => Err(format!("it has neither `value` nor `event`: {}; {RIGHT}", shown(output))),
        Val::Arr(_) => Err(format!("it is a list in a list: {}; use `.[]` once more", shown(output))),
        other => Err(format!("it is {}; {RIGHT}", shown(other))),
    }
}

fn value(output: &Val) -> Result<Value, String> {
    only(output, &VALUE_KEYS)?;
    Ok(Value {
        zones: zones(output)?,
        name: text(output, "name")?,
        value: number("`value`", &get(output, "value"))?,
        unit: text(output, "unit")?,
        at: moment(output, "at")?,
        about: moment(output, "for")?,
    })
}

fn event(output: &Val) -> Result<Event, String> {
    only(output, &EVENT_KEYS)?;
    let missing = |key: &str| format!("`{key}` is missing: {}", shown(output));
    let (starts, ends) = (moment(output, "starts")?, moment(output, "ends")?);
    let starts = starts.ok_or_else(|| missing("starts"))?;
    if ends.is_some_and(|ends| ends < starts) {
        return Err(format!("it ends before it starts: {}", shown(output)));
    }
    Ok(Event {
        zones: zones(output)?,
        kind: text(output, "event")?.ok_or_else(|| missing("event"))?,
        title: text(output, "title")?.ok_or_else(|| missing("title"))?,
        starts,
        ends,
        under_way: flag(output, "under_way")?,
        severity: text(output, "severity")?,
        id: text(output, "id")?,
    })
}

/// An error as text; one that the program made itself in its own words.
pub(super) fn words(error: jaq_json::Error) -> String {
    let value = error.into_val();
    cut(&plain(&value).unwrap_or_else(|| value.to_string()), 300)
}

fn shown(value: &Val) -> String {
    cut(&value.to_string(), 120)
}

fn get(output: &Val, key: &str) -> Val {
    let Val::Obj(map) = output else { return Val::Null };
    map.get(&Val::from(key.to_owned())).cloned().unwrap_or_default()
}

fn has(output: &Val, key: &str) -> bool {
    matches!(output, Val::Obj(map) if map.contains_key(&Val::from(key.to_owned())))
}

/// A key that nobody reads is a mistake, not a wish.
fn only(output: &Val, known: &[&str]) -> Result<(), String> {
    let Val::Obj(map) = output else { return Ok(()) };
    for key in map.keys() {
        let name = plain(key).unwrap_or_else(|| key.to_string());
        if !known.contains(&name.as_str()) {
            return Err(format!("`{}` is not a known key; known here: {}", cut(&name, 40), known.join(", ")));
        }
    }
    Ok(())
}

fn plain(value: &Val) -> Option<String> {
    value.as_utf8_bytes().map(|bytes| String::from_utf8_lossy(bytes).into_owned())
}

fn number(what: &str, value: &Val) -> Result<f64, String> {
    let number = value.as_f64().ok_or_else(|| match plain(value) {
        Some(_) => format!("{what} is text, {}; use `tonumber`", shown(value)),
        None => format!("{what} is not a number but {}", shown(value)),
    })?;
    if number.is_finite() { Ok(number) } else { Err(format!("{what} is not a finite number but {number}")) }
}

fn text(output: &Val, key: &str) -> Result<Option<String>, String> {
    let value = get(output, key);
    match (&value, plain(&value)) {
        (Val::Null, _) => Ok(None),
        (_, Some(text)) => Ok(Some(cut(text.trim(), LONGEST)).filter(|text| !text.is_empty())),
        (Val::Num(_), None) => Ok(Some(value.to_string())),
        _ => Err(format!("`{key}` is not text but {}", shown(&value))),
    }
}

fn flag(output: &Val, key: &str) -> Result<bool, String> {
    match get(output, key) {
        Val::Null => Ok(false),
        Val::Bool(flag) => Ok(flag),
        other => Err(format!("`{key}` is neither true nor false but {}", shown(&other))),
    }
}

fn zones(output: &Val) -> Result<Vec<String>, String> {
    let value = get(output, "zone");
    let name = |value: &Val| {
        let name = plain(value).map(|name| cut(name.trim(), LONGEST));
        name.ok_or_else(|| format!("`zone` is not a name or a list of names but {}", shown(value)))
    };
    match &value {
        Val::Null => Ok(Vec::new()),
        Val::Arr(list) if list.len() > MAX_ZONES => {
            Err(format!("`zone` has {} names; at most {MAX_ZONES}", list.len()))
        }
        Val::Arr(list) => list.iter().filter(|name| !matches!(name, Val::Null)).map(name).collect(),
        other => name(other).map(|name| vec![name]),
    }
}

fn moment(output: &Val, key: &str) -> Result<Option<Timestamp>, String> {
    let value = get(output, key);
    let found = match (&value, value.as_f64(), plain(&value)) {
        (Val::Null, ..) => return Ok(None),
        (_, Some(seconds), _) => moment::of_seconds(seconds),
        (.., Some(text)) => moment::of_text(&text),
        _ => None,
    };
    found.map(Some).ok_or_else(|| {
        format!(
            "`{key}` is no moment: {}; seconds of the epoch, or text such as \"2026-11-25T23:40:00Z\"",
            shown(&value)
        )
    })
}
