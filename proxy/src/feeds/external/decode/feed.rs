//! RSS and Atom by `feed-rs`, as JSON.

use feed_rs::model::{Entry, Text};
use serde_json::{Value, json};

use super::DecodeError;

/// Deepest nesting of elements that is read; `feed-rs` follows some of it by recursion.
const MAX_DEPTH: usize = 64;
/// Most entries; the newest come first.
const MAX_ENTRIES: usize = 2_000;

pub(super) fn read(bytes: &[u8]) -> Result<Value, DecodeError> {
    if depth(bytes) > MAX_DEPTH {
        return Err(DecodeError(format!("has elements nested more than {MAX_DEPTH} deep")));
    }
    // No time and no luck of its own: ids come from links and titles.
    let parser = feed_rs::parser::Builder::new()
        .sanitize_content(false)
        .id_generator(|links, title, _| {
            let link = links.first().map(|link| link.href.clone());
            link.or_else(|| title.as_ref().map(|title| title.content.clone())).unwrap_or_default()
        })
        .build();
    let feed =
        parser.parse(bytes).map_err(|error| DecodeError(format!("is neither RSS nor Atom: {error}")))?;
    let entries: Vec<Value> = feed.entries.iter().take(MAX_ENTRIES).map(entry).collect();
    Ok(json!({
        "title": feed.title.map(|text| text.content),
        "updated": feed.updated.map(|at| at.timestamp()),
        "entries": entries,
    }))
}

fn entry(entry: &Entry) -> Value {
    let text = |text: &Option<Text>| text.as_ref().map(|text| text.content.clone());
    json!({
        "id": entry.id,
        "title": text(&entry.title),
        "summary": text(&entry.summary),
        "content": entry.content.as_ref().and_then(|content| content.body.clone()),
        "link": entry.links.first().map(|link| link.href.clone()),
        "published": entry.published.map(|at| at.timestamp()),
        "updated": entry.updated.map(|at| at.timestamp()),
        "categories": entry.categories.iter().map(|category| category.term.clone()).collect::<Vec<_>>(),
    })
}

/// How deep elements are nested, at the most; counts too much rather than too little.
fn depth(bytes: &[u8]) -> usize {
    let (mut rest, mut depth, mut deepest) = (bytes, 0_usize, 0);
    while let Some(at) = rest.iter().position(|byte| *byte == b'<') {
        rest = &rest[at + 1..];
        let end = |mark: &[u8]| rest.windows(mark.len()).position(|window| window == mark);
        let skipped = if rest.starts_with(b"!--") {
            end(b"-->")
        } else if rest.starts_with(b"![CDATA[") {
            end(b"]]>")
        } else {
            let tag = end_of_tag(rest);
            let inside = &rest[..tag.unwrap_or(rest.len())];
            if inside.starts_with(b"/") {
                depth = depth.saturating_sub(1);
            } else if !inside.starts_with(b"?") && !inside.starts_with(b"!") && !inside.ends_with(b"/") {
                depth += 1;
                deepest = deepest.max(depth);
            }
            tag
        };
        rest = &rest[skipped.unwrap_or(rest.len())..];
    }
    deepest
}

/// Where the tag ends that `rest` is inside of: at a `>` that is not in quotes.
fn end_of_tag(rest: &[u8]) -> Option<usize> {
    let mut quote = None;
    rest.iter().position(|byte| match quote {
        Some(open) => {
            if *byte == open {
                quote = None;
            }
            false
        }
        None => {
            if matches!(byte, b'"' | b'\'') {
                quote = Some(*byte);
            }
            *byte == b'>'
        }
    })
}

#[cfg(test)]
mod tests {
    use super::depth;

    #[test]
    fn depth_is_that_of_the_elements() {
        assert_eq!(
            depth(b"<?xml?><!DOCTYPE x><a><b/><c><!-- <d><e> --><![CDATA[<f><g>]]></c><h>1 > 0</h></a>"),
            2
        );
        assert_eq!(depth(b"<a><b><c></c></b><b></b></a>"), 3);
        assert_eq!(depth(b"<a"), 1);
        assert_eq!(depth(b"<a x='/>'><b y=\"/>\"></b></a>"), 2);
        assert_eq!(depth("<a>".repeat(5000).as_bytes()), 5000);
    }
}
