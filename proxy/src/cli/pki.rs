//! `godwit pki init`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, ensure};
use serde_json::json;

use super::Output;
use crate::pki::Holder;

/// Makes what is missing and prints the files that were made.
pub(super) fn init(
    directory: &Path,
    nodes: &[String],
    resources: &[String],
    output: Output,
) -> Result<ExitCode> {
    let named = zones_of(nodes)?;
    let holders: Vec<Holder<'_>> =
        named.iter().map(|(node, zones)| Holder { node, zones, resources }).collect();
    let made = crate::pki::make(directory, &holders)?;
    for holder in &holders {
        let path = directory.join(format!("{}.pem", holder.node));
        if !made.contains(&path) {
            eprintln!(
                "{} is kept as it is, with the zones and the resources that it was made for: remove it with its key to have another",
                path.display()
            );
        }
    }
    super::out(text(&made, output))?;
    Ok(ExitCode::SUCCESS)
}

/// The files, one a line, or as an array.
fn text(made: &[PathBuf], output: Output) -> String {
    let paths: Vec<String> = made.iter().map(|path| path.display().to_string()).collect();
    match output {
        Output::Table => paths.iter().fold(String::new(), |text, path| text + path + "\n"),
        Output::Json => format!("{:#}\n", json!(paths)),
    }
}

/// The zones of each node: named as `NODE`, or once for each zone as `NODE@ZONE`.
fn zones_of(nodes: &[String]) -> Result<BTreeMap<&str, Vec<&str>>> {
    let mut named: BTreeMap<&str, Vec<Option<&str>>> = BTreeMap::new();
    for text in nodes {
        let (node, zone) = text.split_once('@').map_or((&**text, None), |(node, zone)| (node, Some(zone)));
        let zones = named.entry(node).or_default();
        if !zones.contains(&zone) {
            zones.push(zone);
        }
    }
    for (node, zones) in &named {
        ensure!(
            zones.len() == 1 || !zones.contains(&None),
            "{node} is named with a zone and without one, which is for every zone: one of the two"
        );
    }
    Ok(named.into_iter().map(|(node, zones)| (node, zones.into_iter().flatten().collect())).collect())
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject as _;

    use super::*;

    #[test]
    fn a_node_that_is_named_for_several_zones_has_one_certificate_for_all_of_them() {
        let directory = tempfile::tempdir().expect("a directory");
        let named = ["node-c@a", "node-b@b", "node-c@c", "node-c@a"].map(str::to_owned);
        init(directory.path(), &named, &["orders".to_owned()], Output::Table).expect("made");
        let certificate = CertificateDer::from_pem_file(directory.path().join("node-c.pem")).expect("there");
        let text = String::from_utf8_lossy(&certificate);
        let uris = ["godwit:zone/a", "godwit:zone/c", "godwit:resource/orders"];
        assert_eq!(uris.map(|uri| text.matches(uri).count()), [1, 1, 1]);
        assert!(!text.contains("godwit:zone/b"));
        let mixed = ["node-d", "node-d@a"].map(str::to_owned);
        let refused = init(directory.path(), &mixed, &[], Output::Table).expect_err("refused").to_string();
        assert!(refused.contains("node-d is named with a zone and without one"), "{refused}");
    }

    #[test]
    fn the_files_are_lines_for_people_and_an_array_for_programs() {
        let made = ["pki/ca.pem", "pki/ca.key"].map(PathBuf::from);
        assert_eq!(text(&made, Output::Table), "pki/ca.pem\npki/ca.key\n");
        let read: Vec<String> = serde_json::from_str(&text(&made, Output::Json)).expect("JSON");
        assert_eq!(read, ["pki/ca.pem", "pki/ca.key"]);
        // All were there already.
        assert_eq!((text(&[], Output::Table), text(&[], Output::Json)), (String::new(), "[]\n".to_owned()));
    }
}
