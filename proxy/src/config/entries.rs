//! What was written, key by key, each with where it stands: for `godwit config show` and `diff`.
//!
//! Secrets are not in these files, only where they are; values that may hold one all the same are left out. Of a file that is refused, for a
//! secret that somebody wrote into it or for a misspelt key, the keys are told, and what is wrong: that quotes values, but none with a password in
//! a URL or a connection string.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::hash::{BuildHasher as _, RandomState};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

use super::error::{ConfigErrors, Position, Report};
use super::load;
use super::overlay::OverlayText;
use super::raw::{self, Node, Value};
use super::secret;
use crate::audit::entry::{holds_password, is_no_open_dsn};

/// Shown instead of what may be a secret.
const HIDDEN: &str = "…";
/// Under these keys text may be a secret.
const SECRETIVE: [&str; 3] = ["headers", "env", "parameters"];
/// What points at a secret: `KEY: {file: PATH}` with one of these, or under one of those.
const SECRETS: [&str; 4] = ["password", "secret", "bearer", "dsn"];
const OF_SECRETS: [&str; 3] = ["headers", "env", "passwords"];

/// One key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = ConfigEntry)]
pub struct Entry {
    /// Dotted; keys of policy files begin with `policies.NAME.`.
    pub key: String,
    /// The same, part by part: names may have dots of their own. Only where the files are read.
    #[serde(skip)]
    pub parts: Vec<String>,
    /// As it is written, as JSON.
    pub value: serde_json::Value,
    /// `file:line:col`; of what the API changed also who and when.
    pub origin: String,
    /// What is not shown of it, or is in the file that it names, if that is a secret. Only where the files are read.
    #[serde(skip)]
    pub content: Option<Content>,
}

/// Tells whether a file has what it had, and nothing of what that is: keyed with what only this process knows, and not shown.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Content(u64);

impl Content {
    fn new(text: &impl std::hash::Hash) -> Self {
        static KEY: OnceLock<RandomState> = OnceLock::new();
        Self(KEY.get_or_init(RandomState::new).hash_one(text))
    }

    /// Of the secret in `path`; one that cannot be read is another one than any that can.
    fn of(path: &Path) -> Self {
        let text = load::text(path).map(|text| secret::in_file(&text).to_owned());
        Self::new(&text.ok())
    }
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HIDDEN)
    }
}

/// The text of the files, of `path`, of the policies beside it and of the overlay, and whether the secrets that they name are the same. Equal
/// texts have equal entries.
#[derive(Debug, PartialEq, Eq)]
pub struct Texts {
    /// Each file with what its keys begin with.
    files: Vec<(PathBuf, Vec<String>, Result<String, String>)>,
    overlay: Option<OverlayText>,
    /// Of each file with a secret, by its path.
    secrets: BTreeMap<PathBuf, Content>,
    /// Paths in the files begin here.
    folder: PathBuf,
}

impl Texts {
    /// As they are now; what cannot be read is a problem of [`Self::entries`].
    pub fn read(path: &Path, overlay: Option<OverlayText>) -> Self {
        let (policies, _) = load::policy_files_beside(path);
        let policies = policies.into_iter().map(|file| {
            let stem = file.file_stem().and_then(std::ffi::OsStr::to_str).unwrap_or_default().to_owned();
            (file, vec!["policies".to_owned(), stem])
        });
        let files = std::iter::once((path.to_owned(), Vec::new())).chain(policies);
        let read = |(file, prefix): (PathBuf, Vec<String>)| {
            let text = load::text(&file);
            (file, prefix, text)
        };
        let folder = path.parent().unwrap_or_else(|| Path::new("")).to_owned();
        let mut texts = Self { files: files.map(read).collect(), overlay, secrets: BTreeMap::new(), folder };
        let entries = texts.written().unwrap_or_default();
        let paths = entries.iter().filter_map(|entry| texts.secret(entry));
        texts.secrets = paths.map(|path| (Content::of(&path), path)).map(|(of, path)| (path, of)).collect();
        texts
    }

    /// Every key, in the order of the files. Only syntax is checked.
    pub fn entries(&self) -> Result<Vec<Entry>, ConfigErrors> {
        let mut found = self.written()?;
        for entry in &mut found {
            if let Some(path) = self.secret(entry) {
                entry.content = self.secrets.get(&path).copied();
            }
        }
        Ok(found)
    }

    /// The file with a secret that an entry names.
    fn secret(&self, entry: &Entry) -> Option<PathBuf> {
        let [.., above, key, file] = entry.parts.as_slice() else { return None };
        let is_secret = SECRETS.contains(&key.as_str()) || OF_SECRETS.contains(&above.as_str());
        let path = entry.value.as_str().filter(|_| file == "file" && is_secret)?;
        Some(self.folder.join(path))
    }

    fn written(&self) -> Result<Vec<Entry>, ConfigErrors> {
        let mut found = Vec::new();
        let mut reports = Vec::new();
        for (file, prefix, text) in &self.files {
            let report = Report::new(file.display().to_string());
            match text {
                Ok(text) => {
                    if let Some(document) = raw::parse(text, &report) {
                        let place = |at: Position| format!("{}:{}:{}", file.display(), at.line, at.column);
                        flatten(&document, prefix, false, &place, &mut found);
                    }
                }
                Err(reason) => load::unreadable(&report, reason),
            }
            reports.push(report);
        }
        if let Some(overlay) = &self.overlay {
            let report = Report::new(overlay.path.display().to_string());
            if let Some(document) = raw::parse(&overlay.text, &report) {
                changes(&document, overlay, &mut found);
            }
            reports.push(report);
        }
        match ConfigErrors::gather(reports) {
            Some(errors) => Err(errors),
            None => Ok(found),
        }
    }
}

fn flatten(
    node: &Node,
    parts: &[String],
    secretive: bool,
    place: &dyn Fn(Position) -> String,
    found: &mut Vec<Entry>,
) {
    if let Value::Map(entries) = &node.value
        && !entries.is_empty()
    {
        for (name, value) in entries {
            let Value::Text(name) = &name.value else { continue };
            let below: Vec<String> = parts.iter().chain([name]).cloned().collect();
            // Among headers and the like it is the name of one.
            let named = parts.last().is_some_and(|above| OF_SECRETS.contains(&above.as_str()));
            let reference = matches!(name.as_str(), "file" | "env") && secretive && !named;
            let inside = (secretive || SECRETIVE.contains(&name.as_str())) && !reference;
            flatten(value, &below, inside, place, found);
        }
        return;
    }
    let written = node.json();
    let value = match &written {
        Some(value) if !(secretive && (value.is_string() || value.is_array()) || is_secret(parts, value)) => {
            shown(value)
        }
        _ => HIDDEN.into(),
    };
    let content =
        written.filter(|written| *written != value).map(|written| Content::new(&written.to_string()));
    found.push(Entry { key: parts.join("."), parts: parts.to_vec(), value, origin: place(node.at), content });
}

/// Whether this stands where only the place of a secret belongs.
fn is_secret(parts: &[String], value: &serde_json::Value) -> bool {
    let [above @ .., key] = parts else { return false };
    match value {
        serde_json::Value::Null | serde_json::Value::Object(_) => false,
        serde_json::Value::String(text) if key == "dsn" => is_no_open_dsn(text),
        // Something at the top may be called so, too.
        _ => SECRETS.contains(&key.as_str()) || above.len() > 2 && above.ends_with(&["passwords".to_owned()]),
    }
}

/// A query of a URL may hold a key, and a text a password.
fn shown(value: &serde_json::Value) -> serde_json::Value {
    match value {
        serde_json::Value::String(text) if holds_password(text) => HIDDEN.into(),
        serde_json::Value::String(text) if text.contains("://") && text.contains('?') => {
            let (before, _) = text.split_once('?').unwrap_or((text, ""));
            format!("{before}?{HIDDEN}").into()
        }
        serde_json::Value::Array(values) => values.iter().map(shown).collect(),
        other => other.clone(),
    }
}

/// The overlay's entries under the keys that they change.
fn changes(document: &Node, overlay: &OverlayText, found: &mut Vec<Entry>) {
    let mut change = |node: &Node, prefix: &[&str]| {
        let by = match child(node, "by").map(|node| &node.value) {
            Some(Value::Text(by)) => by.as_str(),
            _ => "",
        };
        let since = match child(node, "at_ms").map(|node| &node.value) {
            Some(Value::Integer(ms)) => {
                i64::try_from(*ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok())
            }
            _ => None,
        };
        let since = since.map(|at| format!(", {at:.0}")).unwrap_or_default();
        let file = overlay.path.display();
        let place = |at: Position| format!("{file}:{}:{} ({by}{since})", at.line, at.column);
        if let Some(value) = child(node, "value") {
            let prefix: Vec<String> = prefix.iter().map(|part| (*part).to_owned()).collect();
            flatten(value, &prefix, false, &place, found);
        }
    };
    for (name, node) in child(document, "reserved").into_iter().flat_map(children) {
        change(node, &["resources", name]);
    }
    for (name, sections) in child(document, "changed").into_iter().flat_map(children) {
        for (section, node) in children(sections) {
            change(node, &["resources", name, section]);
        }
    }
}

fn children(node: &Node) -> impl Iterator<Item = (&str, &Node)> {
    let entries = match &node.value {
        Value::Map(entries) => entries.as_slice(),
        _ => &[],
    };
    entries.iter().filter_map(|(key, value)| match &key.value {
        Value::Text(name) => Some((name.as_str(), value)),
        _ => None,
    })
}

fn child<'n>(node: &'n Node, name: &str) -> Option<&'n Node> {
    children(node).find(|(key, _)| *key == name).map(|(_, value)| value)
}

/// What differs between two states of the files.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = ConfigDifference)]
pub struct Difference {
    /// The key.
    pub key: String,
    /// The same, part by part. Only where the files are read.
    #[serde(skip)]
    pub parts: Vec<String>,
    /// As it runs; none: the key is new.
    pub running: Option<serde_json::Value>,
    /// As it is written; none: the key is gone.
    pub written: Option<serde_json::Value>,
    /// Where it is written.
    pub origin: String,
    /// A reload applies it; else it needs a restart.
    pub live: bool,
    /// What is shown is the same, and the secret is another one: that in the file which it names, or what is not shown.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub secret: bool,
}

impl Difference {
    /// Without the value in a file that is refused: in the wrong place, or under a misspelt key, it may be a secret.
    #[must_use]
    pub fn refused(self) -> Self {
        Self { written: self.written.map(|_| HIDDEN.into()), ..self }
    }
}

/// Keys whose values differ, sorted.
pub fn diff(running: &[Entry], written: &[Entry]) -> Vec<Difference> {
    // Of a key that is there more than once the last counts.
    let by_key = |entries| -> BTreeMap<&[String], &Entry> {
        let entries: &[Entry] = entries;
        entries.iter().map(|entry| (&*entry.parts, entry)).collect()
    };
    let (running, written) = (by_key(running), by_key(written));
    let keys: BTreeSet<&[String]> = running.keys().chain(written.keys()).copied().collect();
    let named = |entries: &BTreeMap<&[String], _>| -> BTreeSet<[String; 2]> {
        entries.keys().filter_map(|parts| named_of(parts)).map(|named| named.map(str::to_owned)).collect()
    };
    // One that comes or goes does so at a restart.
    let stays = &named(&running) & &named(&written);
    keys.into_iter()
        .filter_map(|parts| {
            let (old, new) = (running.get(parts), written.get(parts));
            let alike = old.map(|entry| &entry.value) == new.map(|entry| &entry.value);
            let secret = alike && old.map(|entry| entry.content) != new.map(|entry| entry.content);
            let same = alike && !secret
                || (old.is_none() && only_holds(new, &running))
                || (new.is_none() && only_holds(old, &written));
            let stays =
                named_of(parts).is_none_or(|[of, name]| stays.contains(&[of.to_owned(), name.to_owned()]));
            (!same).then(|| Difference {
                key: parts.join("."),
                parts: parts.to_vec(),
                origin: new.or(old).map(|entry| entry.origin.clone()).unwrap_or_default(),
                running: old.map(|entry| entry.value.clone()),
                written: new.map(|entry| entry.value.clone()),
                live: is_live(parts) && stays,
                secret,
            })
        })
        .collect()
}

/// Whether this is an empty mapping of which `others` have keys: those are the difference.
fn only_holds(entry: Option<&&Entry>, others: &BTreeMap<&[String], &Entry>) -> bool {
    entry.is_some_and(|entry| {
        entry.value.as_object().is_some_and(serde_json::Map::is_empty)
            && others.keys().any(|parts| parts.starts_with(&entry.parts))
    })
}

/// The section and the name of what can come and go.
fn named_of(parts: &[String]) -> Option<[&str; 2]> {
    match parts {
        [of, name, ..] if of == "resources" || of == "zones" => Some([of, name]),
        _ => None,
    }
}

/// Whether a change of this key can be applied while the node runs.
fn is_live(parts: &[String]) -> bool {
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    match parts.as_slice() {
        ["policies", _, "score", "step"] | ["policies", _, "name"] => false,
        ["policies", _, ..]
        | ["resources", _, "policy"]
        | ["resources", _, "shadow" | "replication" | "scaling", ..]
        | ["resources", _, "placements", _, "capacity" | "cost"]
        | ["zones", _, "cost"] => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(key: &str) -> Vec<String> {
        key.split('.').map(str::to_owned).collect()
    }

    #[test]
    fn every_key_has_its_place_and_no_secret() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("godwit.yaml");
        std::fs::create_dir(folder.path().join("policies")).unwrap();
        std::fs::write(folder.path().join("policies/careful.yaml"), "score: { threshold: 0.5 }\n").unwrap();
        let text = "node: { name: edge }\nfeeds:\n  a: { url: \"https://x.example/?key=hunter2\", \
                    headers: { x-key: hunter2, y-key: { file: secret } } }\n";
        std::fs::write(&path, text).unwrap();
        let overlay = OverlayText {
            path: "overlay.json".into(),
            text: r#"{"version": 1, "changed": {"orders": {"shadow": {"by": "ann", "at_ms": 0, "value":
                {"enabled": false}}}}, "reserved": {"cart": {"by": "bob", "at_ms": 0, "value": {"primary": "x"}}}}"#
                .into(),
        };
        let entries = Texts::read(&path, Some(overlay)).entries().unwrap();
        let folder = folder.path().display().to_string();
        let lines: Vec<String> = entries
            .iter()
            .map(|entry| format!("{} = {}  {}", entry.key, entry.value, entry.origin.replace(&folder, "")))
            .collect();
        insta::assert_snapshot!(lines.join("\n"));
    }

    #[test]
    fn differences_say_whether_a_reload_applies_them() {
        let entry = |key: &str, value: i64| Entry {
            key: key.into(),
            parts: parts(key),
            value: value.into(),
            origin: "f:1:1".into(),
            content: None,
        };
        let running = [
            entry("node.threads", 2),
            entry("policies.p.score.threshold", 1),
            entry("resources.gone.policy", 1),
            entry("resources.here.policy", 1),
            entry("same", 1),
        ];
        let written = [
            entry("node.threads", 4),
            entry("policies.p.score.threshold", 2),
            entry("resources.comes.policy", 1),
            entry("resources.here.policy", 2),
            entry("same", 1),
            entry("new", 1),
        ];
        let found: Vec<String> = diff(&running, &written)
            .into_iter()
            .map(|one| format!("{} {:?} -> {:?} live {}", one.key, one.running, one.written, one.live))
            .collect();
        insta::assert_snapshot!(found.join("\n"), @r"
        new None -> Some(Number(1)) live false
        node.threads Some(Number(2)) -> Some(Number(4)) live false
        policies.p.score.threshold Some(Number(1)) -> Some(Number(2)) live true
        resources.comes.policy None -> Some(Number(1)) live false
        resources.gone.policy Some(Number(1)) -> None live false
        resources.here.policy Some(Number(1)) -> Some(Number(2)) live true
        ");
        let live = |key: &str| is_live(&parts(key));
        assert!(!live("policies.p.score.step") && !live("resources.orders.fronts.http.listen"));
        assert!(live("resources.orders.placements.eu-west.capacity"));
    }

    #[test]
    fn another_secret_in_the_same_file_is_a_difference_that_does_not_say_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("godwit.yaml");
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        let text = "resources: { shop: { placements: { near: { postgres: { password: { file: pg } } } },\n  \
                    fronts: { http: { access_log: { file: log } } } } }\n\
                    feeds: { a: { headers: { x-key: { file: key } } }, b: { file: figures }, c: { bearer: { env: HOME } } }\n";
        write("godwit.yaml", text);
        for name in ["pg", "key", "log", "figures"] {
            write(name, "hunter2\n");
        }
        let first = Texts::read(&path, None);
        let found = || {
            let found = diff(&first.entries().unwrap(), &Texts::read(&path, None).entries().unwrap());
            let told = format!("{found:?}{first:?}");
            assert!(!told.contains("hunter2") && !told.contains("hunter3"), "{told}");
            found.into_iter().map(|one| (one.key, one.secret, one.live)).collect::<Vec<_>>()
        };
        write("pg", "hunter2");
        assert_eq!((found(), first == Texts::read(&path, None)), (vec![], true));
        write("log", "more");
        write("figures", "more");
        assert_eq!(
            (found(), first == Texts::read(&path, None)),
            (vec![], true),
            "these are read while it runs"
        );
        write("pg", "hunter3\n");
        std::fs::remove_file(folder.path().join("key")).unwrap();
        let expected =
            ["feeds.a.headers.x-key.file", "resources.shop.placements.near.postgres.password.file"];
        assert_eq!(found(), expected.map(|key| (key.to_owned(), true, false)));
        assert!(first != Texts::read(&path, None));
    }

    #[test]
    fn what_stands_where_no_secret_belongs_is_not_shown() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("godwit.yaml");
        let text = "feeds:
  secret: { url: 'https://u:hunter2@x.example/', headers: { env: hunter2, file: hunter2 } }
  b: { bearer: 1234567, secret: [hunter2] }
drivers: { fleet: { exec: { argv: [load, 'postgres://u:hunter2@h/db', --quick] } } }
resources:
  passwords:
    policy: p
    fronts: { postgres: { passwords: { clerk: hunter2, file: hunter2, other: { file: pg } } } }
    placements:
      near: { postgres: { dsn: 'postgres://u@h/db', password: hunter2 } }
      far: { postgres: { dsn: 'postgres://u:hunter2@h/db' } }
      dsn: { postgres: { dsn: 'host=h user=u password = hunter2 dbname=db' } }
";
        let entries = |text: &str| {
            std::fs::write(&path, text).unwrap();
            Texts::read(&path, None).entries().unwrap()
        };
        let found = entries(text);
        let lines: Vec<String> = found.iter().map(|one| format!("{} = {}", one.key, one.value)).collect();
        insta::assert_snapshot!(lines.join("\n"));
        assert!(!format!("{found:?}").contains("hunter2"));
        let changed = diff(
            &found,
            &entries(&text.replace("--quick", "--slow").replace("env: hunter2", "env: hunter3")),
        );
        let changed: Vec<_> = changed.iter().map(|one| (one.key.as_str(), one.secret)).collect();
        assert_eq!(changed, [("drivers.fleet.exec.argv", false), ("feeds.secret.headers.env", true)]);
    }

    #[test]
    fn names_may_have_dots_and_an_empty_mapping_is_no_difference_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("godwit.yaml");
        std::fs::create_dir(folder.path().join("policies")).unwrap();
        let entries = |text: &str, step: u32, overlay: &str| {
            let policy = format!("score: {{ step: {step}s, threshold: {step} }}\n");
            std::fs::write(folder.path().join("policies/p.v2.yaml"), policy).unwrap();
            std::fs::write(&path, text).unwrap();
            let overlay = OverlayText { path: "overlay.json".into(), text: overlay.into() };
            Texts::read(&path, Some(overlay)).entries().unwrap()
        };
        let running = entries(
            "zones: { far: {}, gone: { cost: 1/h } }\nresources: { shop.eu: { policy: p, primary: near } }\n",
            1,
            "{}",
        );
        let written = entries(
            "zones: { far: { cost: 2/h } }\nresources: { shop.eu: { policy: q, primary: far } }\n",
            2,
            r#"{"changed": {"shop.eu": {"scaling": {"by": "ann", "at_ms": 0, "value": {"capacity": {"far": 2}}}}}}"#,
        );
        let found: Vec<String> =
            diff(&running, &written).iter().map(|one| format!("{} live {}", one.key, one.live)).collect();
        insta::assert_snapshot!(found.join("\n"), @r"
        policies.p.v2.score.step live false
        policies.p.v2.score.threshold live true
        resources.shop.eu.policy live true
        resources.shop.eu.primary live false
        resources.shop.eu.scaling.capacity.far live true
        zones.far.cost live true
        zones.gone.cost live false
        ");
    }
}
