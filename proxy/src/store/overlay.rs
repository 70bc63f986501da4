//! The overlay's file: written as a whole, atomically and durably, by one process. Its format: [`crate::config::overlay`].

use std::collections::BTreeMap;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use migration::units::Timestamp;
use serde::{Deserialize, Serialize};

use crate::config::overlay::{FILE, OverlayText, VERSION};
use crate::lock::lock;

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
}

/// The file and its content.
pub struct OverlayFile {
    path: PathBuf,
    content: Mutex<Overlay>,
}

impl OverlayFile {
    /// That of a state directory.
    pub fn open(state: &Path) -> std::io::Result<Self> {
        let content = match OverlayText::read(state)? {
            Some(found) => serde_json::from_str(&found.text).map_err(|error| {
                let what = format!("{} is not readable: {error}", found.path.display());
                std::io::Error::new(std::io::ErrorKind::InvalidData, what)
            })?,
            None => Overlay::default(),
        };
        Ok(Self { path: state.join(FILE), content: Mutex::new(content) })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it says.
    pub fn content(&self) -> Overlay {
        lock(&self.content).clone()
    }

    /// What the file would say, for the configuration's readers.
    pub fn as_text(&self, overlay: &Overlay) -> OverlayText {
        OverlayText { path: self.path.clone(), text: overlay.text() }
    }

    /// Replaces it. When this returns, it outlives a crash of the machine.
    pub fn write(&self, overlay: Overlay) -> std::io::Result<()> {
        let mut content = lock(&self.content);
        let new = self.path.with_extension("json.new");
        let mut file =
            std::fs::OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&new)?;
        file.write_all(overlay.text().as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&new, &self.path)?;
        if let Some(folder) = self.path.parent() {
            std::fs::File::open(folder)?.sync_all()?;
        }
        *content = overlay;
        Ok(())
    }
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
}
