//! What the API changed: resources it reserved, and sections of others' policies, in one JSON file of the state directory.
//!
//! Read like the configuration itself, with the same readers, so that what is wrong in it is named as `file:line:col`, too.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::model::{Driver, Resource};
use super::policy;
use super::walk::Item;

/// The file's name, in the state directory.
pub const FILE: &str = "overlay.json";
/// Its format.
pub const VERSION: u32 = 1;
/// The sections that can be changed.
pub const SECTIONS: [&str; 3] = ["shadow", "replication", "scaling"];

/// The file and what it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OverlayText {
    /// Where it is.
    pub path: PathBuf,
    /// JSON.
    pub text: String,
}

impl OverlayText {
    /// That of a state directory; none: nothing was ever changed there.
    pub fn read(state: &Path) -> std::io::Result<Option<Self>> {
        Self::read_file(state.join(FILE))
    }

    /// A file of that kind, if it is there.
    pub fn read_file(path: PathBuf) -> std::io::Result<Option<Self>> {
        match std::fs::read_to_string(&path) {
            Ok(text) => Ok(Some(Self { path, text })),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// The parts of the file.
#[derive(Default)]
pub(super) struct Parts<'a> {
    /// Resources that the API reserved, as in `resources`.
    pub(super) reserved: Vec<(&'a str, Item<'a>)>,
    /// Changed sections of other resources, by name.
    pub(super) changed: BTreeMap<&'a str, Sections<'a>>,
}

/// Changed sections of one resource.
#[derive(Default)]
pub(super) struct Sections<'a> {
    shadow: Option<Item<'a>>,
    replication: Option<Item<'a>>,
    scaling: Option<Item<'a>>,
}

/// `{version, reserved: {NAME: {by, at_ms, value}}, changed: {NAME: {SECTION: {by, at_ms, value}}}}`.
pub(super) fn read<'a>(root: &Item<'a>) -> Option<Parts<'a>> {
    let mut section = root.section()?;
    let version = section.required("version", "version: 1").and_then(|item| item.count(0, u32::MAX));
    if version.is_some_and(|version| version != VERSION) {
        root.wrong("is of another version", format!("version {VERSION}, as this godwit writes it"));
        return None;
    }
    let mut parts = Parts::default();
    if let Some(item) = section.optional("reserved") {
        for (name, entry) in item.named("reserved resources")? {
            if let Some(value) = value(&entry) {
                parts.reserved.push((name, value));
            }
        }
    }
    if let Some(item) = section.optional("changed") {
        for (name, item) in item.named("changed resources")? {
            let Some(mut section) = item.section() else { continue };
            let sections = Sections {
                shadow: section.optional("shadow").and_then(|entry| value(&entry)),
                replication: section.optional("replication").and_then(|entry| value(&entry)),
                scaling: section.optional("scaling").and_then(|entry| value(&entry)),
            };
            section.finish();
            parts.changed.insert(name, sections);
        }
    }
    section.finish();
    Some(parts)
}

/// The value of `{by, at_ms, value}`.
fn value<'a>(entry: &Item<'a>) -> Option<Item<'a>> {
    let mut section = entry.section()?;
    section.optional("by");
    section.optional("at_ms");
    let value = section.required("value", "value: {…}");
    section.finish();
    value
}

impl Sections<'_> {
    /// The resource with these changes; `None`: something is wrong with them, and noted.
    pub(super) fn apply(
        &self,
        mut resource: Resource,
        drivers: &BTreeMap<String, Driver>,
    ) -> Option<Resource> {
        if self.shadow.is_some() || self.replication.is_some() {
            resource.policy =
                policy::changed(&resource.policy, self.shadow.as_ref(), self.replication.as_ref())?;
        }
        if let Some(item) = &self.scaling {
            scaling(item, &mut resource, drivers)?;
        }
        Some(resource)
    }
}

/// `{capacity: {ZONE: WORKERS}}`.
fn scaling(item: &Item<'_>, resource: &mut Resource, drivers: &BTreeMap<String, Driver>) -> Option<()> {
    let mut section = item.section()?;
    let capacity = section.required("capacity", "capacity: {ZONE: WORKERS}");
    section.finish();
    let mut right = Some(());
    for (zone, item) in capacity?.named("workers at full capacity")? {
        let Some(workers) = item.count(1, 100_000) else {
            right = None;
            continue;
        };
        let Some(placement) = resource.placements.get_mut(zone) else {
            item.wrong_key("is not a zone with a placement of this resource", "one of its placements");
            right = None;
            continue;
        };
        let driver = placement.driver.as_ref().and_then(|name| drivers.get(name));
        let most = driver.and_then(Driver::most).or((driver.is_none()).then_some(placement.http.len()));
        if let Some(most) = most.filter(|most| (*most as u64) < u64::from(workers)) {
            item.wrong(
                format!("is more than the {most} workers that have addresses"),
                format!("at most {most}"),
            );
            right = None;
            continue;
        }
        placement.capacity = workers;
    }
    right
}
