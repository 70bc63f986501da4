//! What the tree must look like: the crate graph, pure modules, file sizes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Normal dependencies of every workspace crate, by name.
fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline", "--manifest-path"])
        .arg(root().join("Cargo.toml"))
        .output()
        .expect("cargo metadata runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let text = |value: &serde_json::Value| value.as_str().expect("text").to_owned();
    metadata["packages"]
        .as_array()
        .expect("packages")
        .iter()
        .map(|package| {
            let normal = package["dependencies"].as_array().expect("dependencies").iter();
            let normal = normal.filter(|dependency| dependency["kind"].is_null());
            (text(&package["name"]), normal.map(|dependency| text(&dependency["name"])).collect())
        })
        .collect()
}

#[test]
fn three_leaves_and_one_root() {
    const PRODUCT: [&str; 4] = ["migration", "replicator", "predictor", "godwit"];
    let graph = dependencies();
    let product = |name: &str| -> Vec<&str> {
        PRODUCT.into_iter().filter(|dependency| graph[name].contains(*dependency)).collect()
    };
    for leaf in ["migration", "replicator", "predictor"] {
        assert_eq!(product(leaf), [""; 0], "{leaf} must know no other product crate");
    }
    assert_eq!(product("godwit"), ["migration", "replicator", "predictor"]);
    for (name, dependencies) in &graph {
        for unpublished in ["godwit-tests", "godwit-bench"] {
            assert!(!dependencies.contains(unpublished), "{name} depends on {unpublished}");
        }
    }
}

#[test]
fn pure_crates_stay_pure() {
    let graph = dependencies();
    let only = |name: &str, allowed: &[&str]| {
        let allowed: BTreeSet<String> = allowed.iter().map(|&dependency| dependency.to_owned()).collect();
        let more: Vec<_> = graph[name].difference(&allowed).collect();
        assert!(more.is_empty(), "{name} depends on {more:?}");
    };
    only("migration", &["thiserror"]);
    only("predictor", &["candle-core", "safetensors", "thiserror"]);
    for module in ["pgoutput", "wire", "session"] {
        for file in sources(&root().join("replicator/src").join(module)) {
            let text = std::fs::read_to_string(&file).expect("source file");
            let code = text.split("#[cfg(test)]").next().unwrap_or_default();
            for banned in ["tokio::", "tokio_postgres", "std::net", "quinn", "Instant::now"] {
                assert!(!code.contains(banned), "{} uses {banned}", file.display());
            }
        }
    }
}

/// The fuzz targets build these files without the rest of their crate.
#[test]
fn the_fuzzed_protocol_needs_no_more_than_its_targets_have() {
    let targets = std::fs::read_to_string(root().join("proxy/fuzz/targets/lib.rs")).expect("source file");
    let files = sources(&root().join("proxy/src/fronts/postgres/protocol"));
    for file in files.iter().filter(|file| !file.ends_with("tests.rs")) {
        let text = std::fs::read_to_string(file).expect("source file");
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        assert!(!code.contains("replicator::"), "{}: the targets have no replicator", file.display());
        for used in code.split("crate::").skip(1) {
            let module: String = used.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            let there = targets.contains(&format!("mod {module};"));
            assert!(there, "{}: proxy/fuzz/targets/lib.rs has no {module}", file.display());
        }
    }
}

#[test]
fn no_file_is_too_long() {
    for folder in ["proxy", "replicator", "predictor", "bench", "tests"] {
        for file in sources(&root().join(folder)) {
            let lines = std::fs::read_to_string(&file).expect("source file").lines().count();
            assert!(lines <= 800, "{} has {lines} lines: split it", file.display());
        }
    }
}

fn sources(path: &Path) -> Vec<PathBuf> {
    if path.is_file() {
        return Vec::from([path.to_owned()]);
    }
    let with_suffix = path.with_extension("rs");
    let mut files: Vec<PathBuf> = with_suffix.is_file().then_some(with_suffix).into_iter().collect();
    let Ok(entries) = std::fs::read_dir(path) else { return files };
    for entry in entries {
        let entry = entry.expect("directory entry").path();
        if entry.is_dir() && entry.file_name().is_some_and(|name| name != "target") {
            files.extend(sources(&entry));
        } else if entry.extension().is_some_and(|extension| extension == "rs") {
            files.push(entry);
        }
    }
    files.sort();
    files.dedup();
    files
}
#[test]
fn a_loss_is_not_forgiven_because_it_did_not_happen_again() {
    let forgiven = |said: &str| {
        let report = tempfile::NamedTempFile::new().expect("a file");
        let text = format!(
            "<testsuites><testsuite><testcase name=\"a\" classname=\"e2e\"><flakyFailure message=\"Error\">\
             <system-err>{said}</system-err></flakyFailure></testcase></testsuite></testsuites>"
        );
        std::fs::write(report.path(), text).expect("written");
        let script = Command::new(root().join("scripts/check-flaky.py")).arg(report.path()).output();
        script.expect("python3 runs").status.code()
    };
    let slow = "Error: disks\n\nCaused by:\n    0: heal\n    1: waited in vain: it serves\n    2: deadline has elapsed";
    assert_eq!(forgiven(slow), Some(0));
    // What a log says below is not why.
    assert_eq!(forgiven(&format!("{slow}\nStack backtrace:\n   0: lost\n")), Some(0));
    assert_eq!(
        forgiven(
            "Error: slots\n\nCaused by:\n    0: waited in vain: the slot is lost\n    1: deadline has elapsed"
        ),
        Some(0)
    );
    for broken in [
        "Error: kills\n\nCaused by:\n    public.t: 3 acknowledged rows are lost",
        "thread 'a' (7) panicked at a.rs:1:5:\norder 3 was acknowledged and is gone",
        "Error: 10 committed, 0 unknown; 4 appends, 6 reads: 1 anomalies\n  Lost [1]: x",
        "Error: open are [\"eu-west\", \"eu-central\"], the primary is eu-west",
        "Error: disks\n\nCaused by:\n    0: settle\n    1: both sides stay different: [\"orders\"]",
        "Error: public.orders differs: 3 and 4",
        "Error: undone after its commit",
        "Error: order-3 is not there once",
        "Error: public.orders: 2 rows that nobody wrote",
        "Error: another number of rows",
        "Error: order 7 is not on the primary any more",
        "Error: order-9 was forwarded although its client had left",
        "Error: the shadow in eu-west was written to",
        "Error: anew\n\nCaused by:\n    0: waited in vain: both have the same rows\n    1: deadline has elapsed",
    ] {
        assert_eq!(forgiven(broken), Some(1), "{broken}");
    }
}

/// `make test` runs no doc tests: one would never run.
#[test]
fn no_code_stands_in_docs() {
    let crates = ["proxy/src", "proxy/migration/src", "replicator/src", "predictor/src", "bench/src"];
    for file in crates.iter().flat_map(|folder| sources(&root().join(folder))) {
        let text = std::fs::read_to_string(&file).expect("readable");
        let docs = text
            .lines()
            .map(str::trim_start)
            .filter(|line| line.starts_with("///") || line.starts_with("//!"));
        let fences = docs.filter_map(|line| line[3..].trim_start().strip_prefix("```"));
        for opens in fences.step_by(2) {
            assert!(opens == "text", "{}: a block of {opens:?}, which is not tested", file.display());
        }
    }
}
