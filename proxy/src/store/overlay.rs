//! The overlay's file: written as a whole, atomically and durably, by one process. Its format: [`crate::config::overlay`].

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use migration::units::Timestamp;
use serde::{Deserialize, Serialize};

use crate::config::overlay::{FILE, OverlayText, VERSION};
use crate::lock::lock;

/// Under the state directory: what another node's API changed, and what does not fit the configuration here.
const FOREIGN: &str = "overlay.foreign.json";

/// What the API changed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Overlay {
    version: u32,
    /// Resources that it reserved.
    #[serde(default)]
    pub reserved: BTreeMap<String, Change>,
    /// Sections of resources, by resource and section.
    #[serde(default)]
    pub changed: BTreeMap<String, BTreeMap<String, Change>>,
}

/// One change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Change {
    /// Who.
    pub by: String,
    /// When, Unix milliseconds.
    pub at_ms: u64,
    /// What is in force instead.
    pub value: serde_json::Value,
}

impl Change {
    /// By somebody, now.
    pub fn new(by: &str, now: Timestamp, value: serde_json::Value) -> Self {
        Self { by: by.to_owned(), at_ms: now.0, value }
    }
}

impl Default for Overlay {
    fn default() -> Self {
        Self { version: VERSION, reserved: BTreeMap::new(), changed: BTreeMap::new() }
    }
}

impl Overlay {
    /// As the file has it.
    pub fn text(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).unwrap_or_default();
        text.push('\n');
        text
    }

    /// A section of a resource is changed, or no longer.
    pub fn set(&mut self, resource: &str, section: &str, change: Option<Change>) {
        let sections = self.changed.entry(resource.to_owned()).or_default();
        match change {
            Some(change) => drop(sections.insert(section.to_owned(), change)),
            None => drop(sections.remove(section)),
        }
        self.changed.retain(|_, sections| !sections.is_empty());
    }

    /// Nothing of a resource is left.
    pub fn forget(&mut self, resource: &str) {
        self.reserved.remove(resource);
        self.changed.remove(resource);
    }

    /// Resources that it says something of.
    pub fn resources(&self) -> BTreeSet<String> {
        self.reserved.keys().chain(self.changed.keys()).cloned().collect()
    }

    /// Says of a resource what another one says.
    pub fn take(&mut self, resource: &str, other: &Self) {
        self.forget(resource);
        let name = resource.to_owned();
        self.reserved.extend(other.reserved.get(resource).map(|change| (name.clone(), change.clone())));
        self.changed.extend(other.changed.get(resource).map(|sections| (name, sections.clone())));
    }

    /// What of it fits by `fits`, resource by resource, and what does not.
    pub fn parted(&self, fits: impl Fn(&Self) -> bool) -> (Self, Self) {
        let (mut taken, mut rest) = (Self::default(), Self::default());
        for resource in self.resources() {
            let mut more = taken.clone();
            more.take(&resource, self);
            if fits(&more) {
                taken = more;
            } else {
                rest.take(&resource, self);
            }
        }
        (taken, rest)
    }

    /// Resources of which both say not the same.
    fn differ<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = String> + use<'a> {
        let all = &self.resources() | &other.resources();
        all.into_iter().filter(|name| {
            (self.reserved.get(name), self.changed.get(name))
                != (other.reserved.get(name), other.changed.get(name))
        })
    }
}

/// The file and its content.
pub struct OverlayFile {
    path: PathBuf,
    content: Mutex<Overlay>,
    foreign: Mutex<Overlay>,
}

impl OverlayFile {
    /// That of a state directory.
    pub fn open(state: &Path) -> std::io::Result<Self> {
        let path = state.join(FILE);
        let content = read(OverlayText::read(state)?)?;
        let foreign = read(OverlayText::read_file(path.with_file_name(FOREIGN))?)?;
        Ok(Self { path, content: Mutex::new(content), foreign: Mutex::new(foreign) })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it says.
    pub fn content(&self) -> Overlay {
        lock(&self.content).clone()
    }

    /// What of another node's does not fit here.
    pub fn foreign(&self) -> Overlay {
        lock(&self.foreign).clone()
    }

    /// What it says together with that: for the next leader, which it may fit.
    pub fn left(&self) -> Overlay {
        let (mut left, foreign) = (self.content(), self.foreign());
        foreign.resources().iter().for_each(|resource| left.take(resource, &foreign));
        left
    }

    /// Keeps what does not fit here.
    pub fn keep_foreign(&self, foreign: Overlay) -> std::io::Result<()> {
        let mut kept = lock(&self.foreign);
        if *kept != foreign {
            store(&self.path.with_file_name(FOREIGN), &foreign)?;
            *kept = foreign;
        }
        Ok(())
    }

    /// What the file would say, for the configuration's readers.
    pub fn as_text(&self, overlay: &Overlay) -> OverlayText {
        OverlayText { path: self.path.clone(), text: overlay.text() }
    }

    /// Replaces it. When this returns, it outlives a crash of the machine. Of what it changes, nobody else's word counts any more.
    pub fn write(&self, overlay: Overlay) -> std::io::Result<()> {
        let mut content = lock(&self.content);
        let mut foreign = self.foreign();
        content.differ(&overlay).for_each(|resource| foreign.forget(&resource));
        self.keep_foreign(foreign)?;
        store(&self.path, &overlay)?;
        *content = overlay;
        Ok(())
    }
}

fn read(found: Option<OverlayText>) -> std::io::Result<Overlay> {
    let Some(found) = found else { return Ok(Overlay::default()) };
    serde_json::from_str(&found.text).map_err(|error| {
        let what = format!("{} is not readable: {error}", found.path.display());
        std::io::Error::new(std::io::ErrorKind::InvalidData, what)
    })
}

fn store(path: &Path, overlay: &Overlay) -> std::io::Result<()> {
    let new = path.with_extension("json.new");
    let mut file =
        std::fs::OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&new)?;
    file.write_all(overlay.text().as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&new, path)?;
    if let Some(folder) = path.parent() {
        std::fs::File::open(folder)?.sync_all()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_changed_outlives_the_process() {
        let directory = tempfile::tempdir().unwrap();
        let file = OverlayFile::open(directory.path()).unwrap();
        assert_eq!(file.content(), Overlay::default());
        let mut overlay = Overlay::default();
        let value = serde_json::json!({"enabled": false});
        overlay.set("orders", "shadow", Some(Change::new("ann", Timestamp(5), value)));
        overlay.reserved.insert("cart".into(), Change::new("bob", Timestamp(6), serde_json::json!({})));
        file.write(overlay.clone()).unwrap();
        let again = OverlayFile::open(directory.path()).unwrap();
        assert_eq!(again.content(), overlay);
        overlay.set("orders", "shadow", None);
        overlay.forget("cart");
        assert_eq!(overlay, Overlay::default());
        std::fs::write(again.path(), "{").unwrap();
        assert!(OverlayFile::open(directory.path()).is_err());
    }

    fn overlay(names: &[&str], by: &str) -> Overlay {
        let mut made = Overlay::default();
        for name in names {
            let value = serde_json::json!({"policy": by});
            made.reserved.insert((*name).into(), Change::new(by, Timestamp(5), value));
        }
        made
    }

    #[test]
    fn what_does_not_fit_here_is_left_to_the_next_node() {
        let directory = tempfile::tempdir().unwrap();
        let file = OverlayFile::open(directory.path()).unwrap();
        let mut whole = overlay(&["cart", "shop", "till"], "ann");
        let value = serde_json::json!({"enabled": false});
        whole.set("cart", "shadow", Some(Change::new("ann", Timestamp(5), value)));
        let fits = |overlay: &Overlay| !overlay.reserved.contains_key("cart");
        let (fitting, foreign) = whole.parted(fits);
        assert_eq!((&fitting, foreign.resources().len()), (&overlay(&["shop", "till"], "ann"), 1));
        file.write(fitting.clone()).unwrap();
        file.keep_foreign(foreign).unwrap();
        let again = OverlayFile::open(directory.path()).unwrap();
        assert_eq!((again.content(), again.left()), (fitting, whole.clone()));
        // What the API changes of others is another thing; of the same resource it is what counts.
        again.write(overlay(&["shop"], "bob")).unwrap();
        let mut left = whole.clone();
        left.forget("till");
        left.take("shop", &overlay(&["shop"], "bob"));
        assert_eq!(again.left(), left);
        again.write(overlay(&["cart"], "bob")).unwrap();
        for file in [again, OverlayFile::open(directory.path()).unwrap()] {
            assert_eq!(file.left(), overlay(&["cart"], "bob"));
        }
    }
}
