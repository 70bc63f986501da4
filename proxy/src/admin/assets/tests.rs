use std::path::Path as FilePath;

use super::*;

/// Bytes that a page may weigh, compressed: all that the browser fetches.
const WEIGHT: usize = 60_000;

fn folder() -> &'static FilePath {
    FilePath::new(concat!(env!("CARGO_MANIFEST_DIR"), "/dashboard"))
}

fn text(path: &str) -> &'static str {
    std::str::from_utf8(&ASSETS[path].plain).unwrap()
}

fn on_disk(below: &FilePath, found: &mut Vec<String>) {
    for entry in std::fs::read_dir(below).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            on_disk(&path, found);
        } else {
            found.push(path.strip_prefix(folder()).unwrap().to_str().unwrap().to_owned());
        }
    }
}

#[test]
fn every_file_of_the_folder_is_served_but_what_makes_them() {
    let mut found = Vec::new();
    on_disk(folder(), &mut found);
    found.retain(|path| !["md", "sh", "mjs"].contains(&extension(path)));
    found.sort();
    let held: Vec<&str> = FILES.iter().map(|(path, _)| *path).collect();
    assert_eq!(held, found);
}

#[test]
fn a_page_is_light() {
    let loaded = ASSETS.iter().filter(|(path, _)| !path.contains("LICENSE") && !LATER.contains(path));
    let all: usize = loaded.map(|(_, asset)| asset.gzip.len()).sum();
    eprintln!("{all} bytes of {WEIGHT}");
    assert!(all <= WEIGHT, "{all} bytes");
}

#[test]
fn every_module_can_be_joined_and_none_is_forgotten() {
    let mut tops: BTreeMap<String, &str> = BTreeMap::new();
    let joined = text(ENTRY);
    for (path, _) in FILES.iter().filter(|(path, _)| part_of_entry(path)) {
        let module = text_of(path).unwrap();
        for line in module.lines() {
            if let Some(import) = line.strip_prefix("import ") {
                let (what, from) = import.split_once(" from '").unwrap_or_else(|| panic!("{path}: {line}"));
                assert!(!what.contains(" as "), "{path}: {line}");
                let from = join::resolve(path, from.strip_suffix("';").unwrap());
                assert!(text_of(&from).is_some(), "{path} imports {from}");
            }
            if let Some(exported) = line.strip_prefix("export ") {
                assert!(
                    ["const ", "function ", "async function ", "class "]
                        .iter()
                        .any(|word| exported.starts_with(word)),
                    "{path}: {line}"
                );
            }
            for name in declared(line) {
                if let Some(other) = tops.insert(name.to_owned(), path) {
                    panic!("{name} is declared in {other} and in {path}");
                }
            }
        }
        let last =
            join::lean(module).lines().last().map(|line| line.trim_start_matches("export ").to_owned());
        assert!(joined.contains(&last.unwrap()), "nothing imports {path}");
    }
    // A name that is the browser's own would be another one in every module.
    for name in ["Map", "Set", "Event", "Text", "Range", "name", "location"] {
        assert_eq!(tops.get(name), None, "{name} is the browser's");
    }
}

#[test]
fn what_is_loaded_later_shares_what_is_there() {
    let joined = text(ENTRY);
    let exports = joined.lines().last().unwrap();
    for path in LATER {
        let served = text(path);
        let first = served.lines().next().unwrap();
        let names =
            first.strip_prefix("import {").and_then(|rest| rest.strip_suffix("} from '/dashboard/app.js';"));
        for name in names.unwrap_or_else(|| panic!("{path}: {first}")).split(',') {
            assert!(exports.contains(name), "{path} takes {name}, which {ENTRY} does not give: {exports}");
        }
        assert!(!served.contains("from '../ui.js'"), "{path} would have its own copy");
        assert!(joined.contains(&format!("import('/dashboard/{path}')")), "nobody asks for {path}");
    }
}

/// The names that a line at the top of a module declares.
fn declared(line: &str) -> Vec<&str> {
    let line = line.strip_prefix("export ").unwrap_or(line);
    let line = line.strip_prefix("async ").unwrap_or(line);
    let words = ["const ", "let ", "function ", "class "];
    let Some(rest) = words.iter().find_map(|word| line.strip_prefix(word)) else { return Vec::new() };
    match rest.strip_prefix('[') {
        Some(several) => several.split(']').next().unwrap_or_default().split(',').map(str::trim).collect(),
        None => rest.split(['=', '(', ' ']).take(1).collect(),
    }
}

#[test]
fn vendored_modules_are_asked_for_at_once() {
    let index = text("index.html");
    for path in ASSETS.keys().filter(|path| path.starts_with("vendor/") && extension(path) == "js") {
        assert!(
            index.contains(&format!("<link rel=\"modulepreload\" href=\"/dashboard/{path}\">")),
            "{path}"
        );
    }
}

#[test]
fn nothing_in_the_page_needs_inline_code() {
    let index = text("index.html");
    for inline in ["<style", " style=", "onclick=", "javascript:"] {
        assert!(!index.contains(inline), "{inline}");
    }
    assert_eq!(index.matches("<script").count(), index.matches("src=\"/dashboard/").count());
}

#[test]
fn what_is_known_is_not_sent_again_and_what_is_sent_is_compressed_where_it_may_be() {
    let get = |pairs: &[(HeaderName, &str)]| {
        let headers: HeaderMap =
            pairs.iter().map(|(name, value)| (name.clone(), HeaderValue::from_str(value).unwrap())).collect();
        answer("app.js", &headers)
    };
    let plain = get(&[]);
    assert_eq!(plain.status(), StatusCode::OK);
    assert_eq!(plain.headers().get(header::CONTENT_ENCODING), None);
    assert_eq!(plain.headers()[header::CONTENT_SECURITY_POLICY], POLICY);
    assert_eq!(plain.headers()[header::X_CONTENT_TYPE_OPTIONS], "nosniff");
    let tag = plain.headers()[header::ETAG].to_str().unwrap();
    let again = get(&[(header::IF_NONE_MATCH, &format!("\"other\", W/{tag}"))]);
    assert_eq!(again.status(), StatusCode::NOT_MODIFIED);
    assert_eq!(get(&[(header::IF_NONE_MATCH, "\"other\"")]).status(), StatusCode::OK);
    let zipped = get(&[(header::ACCEPT_ENCODING, "deflate, gzip;q=0.5")]);
    assert_eq!(zipped.headers()[header::CONTENT_ENCODING], "gzip");
    let refused = get(&[(header::ACCEPT_ENCODING, "gzip;q=0, br")]);
    assert_eq!(refused.headers().get(header::CONTENT_ENCODING), None);
    assert_eq!(answer("../Cargo.toml", &HeaderMap::new()).status(), StatusCode::NOT_FOUND);
}
