use std::collections::BTreeSet;

use super::*;

fn paths(document: &OpenApi) -> serde_json::Map<String, serde_json::Value> {
    let value = serde_json::to_value(document).expect("JSON");
    value["paths"].as_object().expect("an object").clone()
}

#[test]
fn every_route_is_described_and_nothing_else() {
    let (_, table) = routes::routes().finish();
    let routed: BTreeSet<(String, String)> = table
        .iter()
        .flat_map(|(path, methods)| {
            methods.iter().map(|(method, _)| (path.replace("{*", "{"), method.as_str().to_lowercase()))
        })
        .collect();
    let described: BTreeSet<(String, String)> = paths(&document())
        .iter()
        .flat_map(|(path, item)| {
            item.as_object()
                .expect("an object")
                .keys()
                .map(|method| (path.clone(), method.clone()))
                .collect::<Vec<_>>()
        })
        .collect();
    assert_eq!(described, routed);
}

#[test]
fn every_operation_says_what_it_needs_and_has_a_name_of_its_own() {
    let mut names = BTreeSet::new();
    for (path, item) in paths(&document()) {
        for (method, operation) in item.as_object().expect("an object") {
            let name = operation["operationId"].as_str().expect("a name").to_owned();
            assert!(names.insert(name), "{method} {path}");
            assert_eq!(operation["x-role"].is_string(), operation["security"].is_array(), "{method} {path}");
        }
    }
}

#[test]
fn every_reference_leads_somewhere() {
    fn walk(value: &serde_json::Value, found: &mut BTreeSet<String>) {
        match value {
            serde_json::Value::Object(object) => {
                for (key, value) in object {
                    if let ("$ref", Some(to)) = (key.as_str(), value.as_str()) {
                        found.insert(to.to_owned());
                    }
                    walk(value, found);
                }
            }
            serde_json::Value::Array(list) => list.iter().for_each(|value| walk(value, found)),
            _ => {}
        }
    }
    let value = serde_json::to_value(document()).expect("JSON");
    let mut found = BTreeSet::new();
    walk(&value, &mut found);
    assert!(found.len() > 30, "{found:?}");
    for to in found {
        assert!(value.pointer(to.trim_start_matches('#')).is_some(), "{to}");
    }
}

/// `UPDATE_DOCS=1 cargo nextest run the_description_is_committed` writes it.
#[test]
fn the_description_is_committed() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/openapi.json");
    let wanted = format!("{}\n", document().to_pretty_json().expect("JSON"));
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(path, &wanted).expect("written");
    }
    let there = std::fs::read_to_string(path).unwrap_or_default();
    assert!(there == wanted, "docs/openapi.json is not what is served: UPDATE_DOCS=1 writes it");
}
