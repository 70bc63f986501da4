//! What a value looks like, in a few words: for the operator whose program yields nothing.

use serde_json::Value;

/// Keys shown of one object.
const KEYS: usize = 8;
/// Levels shown.
const LEVELS: usize = 3;

/// `{status: text, data: {result: list of 3 × {metric, value}}}`.
pub fn shape(value: &Value) -> String {
    cut(&level(value, LEVELS), 400)
}

fn level(value: &Value, levels: usize) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Bool(_) => "true or false".into(),
        Value::Number(_) => "number".into(),
        Value::String(_) => "text".into(),
        Value::Array(list) => match list.first() {
            None => "an empty list".into(),
            Some(_) if levels == 0 => format!("list of {}", list.len()),
            Some(first) => format!("list of {} × {}", list.len(), level(first, levels - 1)),
        },
        Value::Object(map) if map.is_empty() => "an empty object".into(),
        Value::Object(map) => {
            let key = |(key, value): (&String, &Value)| {
                let key = cut(key, 40);
                if levels == 0 { key } else { format!("{key}: {}", level(value, levels - 1)) }
            };
            let mut keys: Vec<String> = map.iter().take(KEYS).map(key).collect();
            if map.len() > KEYS {
                keys.push(format!("{} more", map.len() - KEYS));
            }
            format!("{{{}}}", keys.join(", "))
        }
    }
}

/// At most `most` characters of one line.
pub(super) fn cut(text: &str, most: usize) -> String {
    let mut short: String = text.chars().take(most).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}
