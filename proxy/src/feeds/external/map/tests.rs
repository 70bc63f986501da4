use proptest::prelude::*;
use serde_json::json;

use super::*;

const NOW: Timestamp = Timestamp(1_795_650_000_000);

fn run(program: &str, input: &Json) -> Result<Vec<Finding>, MapError> {
    Program::new(program).unwrap_or_else(|error| panic!("{program}: {error}")).run(input, &[], NOW)
}

#[test]
fn readings_in_every_writing() {
    let found = run(
        r#"1.5, {value: .a, zone: "west", name: "gusts", unit: "km/h", at: ($now - 60), for: "2026-11-26T00:00Z"},
           [{event: "outage", title: "  dark\nhere ", starts: "2026-11-25T23:00:00Z", zone: ["IE", null, "DE"], id: 7}]"#,
        &json!({"a": 61}),
    );
    insta::assert_json_snapshot!(found.unwrap());
}

#[test]
fn an_empty_list_says_that_there_is_nothing() {
    assert_eq!(run("[.events[]]", &json!({"events": []})), Ok(vec![]));
}

#[test]
fn wrong_outputs_say_what_would_be_right() {
    let input = json!({"status": "ok", "data": {"result": [{"metric": {}, "value": [1, "2"]}]}, "none": []});
    let report: Vec<String> = [
        ".none[]",
        "empty",
        ".status",
        "null",
        "{price: 1}",
        "[[1]]",
        "{value: \"1\"}",
        "{value: null}",
        "{value: 1, zon: \"x\"}",
        "{value: 1, zone: 5}",
        "{value: 1, at: \"soon\"}",
        "{value: (1/0)}",
        "{value: nan}",
        "{event: \"outage\", title: \"x\"}",
        "{event: \"outage\", starts: 1}",
        "{event: \"outage\", title: \"x\", starts: 20, ends: 10}",
        ".status[]",
        "error(\"the service is down\")",
        "range(20000)",
        "[range(20000)]",
    ]
    .into_iter()
    .map(|program| match run(program, &input) {
        Ok(found) => format!("{program}: {} readings\n", found.len()),
        Err(error) => format!("{program}: {error}\n"),
    })
    .collect();
    insta::assert_snapshot!(report.concat());
}

#[test]
fn programs_that_do_not_compile_say_where() {
    let report: Vec<String> = [
        ".a |",
        "{value: }",
        "[.a\n| .b",
        ".a | nosuch",
        "$nowhere",
        "\"abc",
        "now",
        "env",
        "halt",
        "$ENV",
        "input",
        "import \"x\" as x; 1",
        ".",
    ]
    .into_iter()
    .map(|program| match Program::new(program) {
        Ok(_) => format!("{program:?} compiles\n"),
        Err(error) => format!("{program:?}: {error}\n"),
    })
    .collect();
    insta::assert_snapshot!(report.concat());
}

#[test]
fn zones_are_at_hand() {
    let place = |zone: &str, at| Place {
        zone: zone.into(),
        names: vec![],
        provider: Some("aws".into()),
        region: None,
        country: Some("IE".into()),
        location: at,
    };
    let zones = [place("west", Some((53.3, -6.3))), place("lab", None)];
    let program =
        Program::new("[$zones[] | select(.location) | {zone: .name, value: .location[0], name: .country}]");
    let found = program.unwrap().run(&json!(null), &zones, NOW).unwrap();
    assert_eq!(
        serde_json::to_value(found).unwrap(),
        json!([{"value": {"zones": ["west"], "name": "IE", "value": 53.3}}])
    );
}

fn any_json() -> impl Strategy<Value = Json> {
    let leaf = prop_oneof![
        Just(Json::Null),
        any::<bool>().prop_map(Json::from),
        any::<i64>().prop_map(Json::from),
        any::<f64>().prop_map(Json::from),
        ".{0,12}".prop_map(Json::from),
    ];
    let keys = prop::sample::select(vec![
        "status",
        "data",
        "result",
        "resultType",
        "metric",
        "value",
        "code",
        "events",
        "properties",
        "timeline",
        "scheduled_maintenances",
        "components",
        "success",
        "annotations",
        "hourly",
        "time",
        "entries",
        "end",
    ]);
    leaf.prop_recursive(5, 64, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Json::from),
            prop::collection::hash_map(keys.clone().prop_map(str::to_owned), inner, 0..6)
                .prop_map(|map| map.into_iter().collect()),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn presets_answer_any_json(input in any_json()) {
        for preset in &super::super::preset::PRESETS {
            let _ = Program::new(preset.map).unwrap().run(&input, &[], NOW);
        }
        let _ = shape(&input);
    }
}

proptest! {
    #[test]
    fn any_text_compiles_or_says_where(text in ".{0,60}") {
        if let Err(error) = Program::new(&text) {
            prop_assert!(error.line >= 1 && error.column >= 1 && !error.what.is_empty());
        }
    }
}
