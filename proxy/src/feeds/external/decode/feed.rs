//! RSS and Atom by `feed-rs`, as JSON.

use std::io::BufReader;

use feed_rs::model::{Entry, Text};
use quick_xml::encoding::DecodingReader;
use quick_xml::events::Event;
use quick_xml::{Error, Reader};
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

/// How deep elements are nested, at the most, as the reader inside `feed-rs` sees them.
fn depth(bytes: &[u8]) -> usize {
    // Set up as there, the buffer's size included: it decides from where on a declared encoding counts.
    let mut reader = Reader::from_reader(DecodingReader::new(BufReader::new(bytes)));
    let config = reader.config_mut();
    config.expand_empty_elements = true;
    config.trim_markup_names_in_closing_tags = true;
    let (mut event, mut depth, mut deepest) = (Vec::new(), 0_usize, 0);
    loop {
        event.clear();
        match reader.read_event_into(&mut event) {
            Ok(Event::Decl(declared)) => {
                if let Some(encoding) = declared.encoder() {
                    reader.get_mut().set_encoding(encoding);
                }
            }
            Ok(Event::Start(_)) => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            Ok(Event::End(_)) => depth = depth.saturating_sub(1),
            // What is ill-formed is skipped: who goes on reading behind it must not find more than was counted.
            Ok(Event::Eof) => return deepest,
            Ok(_) | Err(Error::IllFormed(_)) => {}
            Err(_) => return deepest,
        }
    }
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
        assert_eq!(depth(b"<a><b></c><d"), 2);
        assert_eq!(depth(b"<a x='/>'><b y=\"/>\"></b></a>"), 2);
        assert_eq!(depth("<a>".repeat(5000).as_bytes()), 5000);
    }
    #[test]
    fn quotes_and_encodings_hide_nothing() {
        assert_eq!(depth(b"<?x ' ?><a><b></b></a>"), 2);
        assert_eq!(depth(b"<!DOCTYPE a [<!-- ' -->]><a><b></b></a>"), 2);
        assert_eq!(depth(b"<!DOCTYPE a [<!ENTITY b \"<c><d>\">]><a>'<b>\"</b></a>"), 2);
        let wide: Vec<u8> = "<a></a>".encode_utf16().flat_map(u16::to_le_bytes).collect();
        assert_eq!(depth(&[&[0xff, 0xfe], &wide[..]].concat()), 1);
    }

    #[test]
    fn the_reader_is_that_of_the_library() {
        let lock = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.lock");
        let lock = std::fs::read_to_string(lock).unwrap();
        let reader_of = |name: &str| {
            let package =
                lock.split("[[package]]").find(|text| text.contains(&format!("\nname = \"{name}\"\n")));
            package.and_then(|text| text.lines().find(|line| line.contains("\"quick-xml"))).unwrap()
        };
        assert_eq!(reader_of("godwit"), reader_of("feed-rs"));
    }
}
