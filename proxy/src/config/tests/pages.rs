//! Files that stand whole on the pages of the documentation, for somebody to type off.

use std::path::Path;

use super::super::model::Config;

/// The files of a page: what stands between fences, from `node` to `resources`.
fn files(page: &str) -> Vec<Config> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(page);
    let text = std::fs::read_to_string(path).expect("the page");
    let fences = text.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next());
    let whole = |text: &&str| {
        ["node:", "zones:", "resources:"].iter().all(|key| keys(text).any(|it| it.starts_with(key)))
    };
    fences.filter(whole).map(read).collect()
}

fn keys(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter(|line| !line.starts_with([' ', '#']))
}

fn read(text: &str) -> Config {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("godwit.password"), "hunter2\n").expect("written");
    let path = folder.path().join("godwit.yaml");
    std::fs::write(&path, text).expect("written");
    super::super::load(&path).unwrap_or_else(|errors| panic!("{errors}\n{text}"))
}

#[test]
fn the_first_steps_have_a_file_that_is_valid() {
    let files = files("first-steps.md");
    let [config] = files.as_slice() else { panic!("one file: {files:?}") };
    assert!(config.resources["shop"].has_front() && config.resources["shop"].has_database());
}

#[test]
fn of_two_nodes_one_leads_and_each_knows_the_other() {
    let files = files("link.md");
    let [leader, far] = files.as_slice() else { panic!("two files: {files:?}") };
    assert!(leader.resources["shop"].has_front() && !far.resources["shop"].has_front());
    for (one, other) in [(leader, far), (far, leader)] {
        let named: Vec<&String> = one.zones[&other.node.zone].nodes().collect();
        assert_eq!(named, [&other.node.name]);
        // As `godwit pki init` calls them.
        let tls = &one.node.link.as_ref().expect("a link").tls;
        let called =
            [&tls.cert, &tls.key, &tls.ca].map(|path| path.file_name().and_then(|name| name.to_str()));
        let name = &one.node.name;
        assert_eq!(called, [Some(&*format!("{name}.pem")), Some(&*format!("{name}.key")), Some("ca.pem")]);
        let address = one.zones[&other.node.zone].link.as_ref();
        assert_eq!(address.is_some(), one.node.name == leader.node.name, "the leader dials");
    }
}
