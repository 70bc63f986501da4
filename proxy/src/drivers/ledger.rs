//! What a driver remembers on disk: that the directory is its own, the capacity asked for, the operations done.
//!
//! One JSON file, replaced atomically. Operations are forgotten oldest first, after [`REMEMBERED`] others.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::error::io;
use super::{DriverError, Endpoint};

/// Operations that are remembered.
pub const REMEMBERED: usize = 1000;
/// Longest operation id, bytes.
const LONGEST: usize = 200;
/// Format of the file; another one is refused.
const VERSION: u32 = 1;
const FILE: &str = "godwit-driver.json";

/// What an operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Database and workers up.
    Provision,
    /// Workers to a number.
    Scale,
    /// Everything stopped.
    Deprovision,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Done {
    id: String,
    action: Action,
    capacity: u32,
}

/// A driver of the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Maker {
    /// Its name.
    pub name: String,
    /// What it is: `exec`, `webhook` or `kubernetes`.
    pub kind: String,
}

impl std::fmt::Display for Maker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} driver {}", self.kind, self.name)
    }
}

/// The file's content.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Ledger {
    version: u32,
    /// Workers asked for; none: not provisioned, or deprovisioned.
    pub capacity: Option<u32>,
    /// Where the placement can be reached, as the driver said last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<Endpoint>,
    /// Whose work that is; none: nothing is left of it, or who wrote the file did not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver: Option<Maker>,
    done: Vec<Done>,
}

impl Ledger {
    /// A ledger for a directory that has none.
    pub fn new() -> Self {
        Self { version: VERSION, capacity: None, endpoint: None, driver: None, done: Vec::new() }
    }

    /// Reads the directory's ledger; `None` when there is none.
    pub fn read(directory: &Path) -> Result<Option<Self>, DriverError> {
        let path = directory.join(FILE);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(io(format!("read {}", path.display()), source)),
        };
        let foreign = |why: String| DriverError::NotOurs { what: path.display().to_string(), why };
        let ledger: Self = serde_json::from_str(&text).map_err(|error| foreign(error.to_string()))?;
        if ledger.version != VERSION {
            return Err(foreign(format!("its version is {}, this driver writes {VERSION}", ledger.version)));
        }
        Ok(Some(ledger))
    }

    /// Whether the directory's ledger says that something is provisioned.
    pub fn provisioned(directory: &Path) -> Result<bool, DriverError> {
        Ok(Self::read(directory)?.is_some_and(|ledger| ledger.capacity.is_some()))
    }

    /// Replaces the directory's ledger.
    pub fn write(&self, directory: &Path) -> Result<(), DriverError> {
        let text = serde_json::to_string_pretty(self)
            .map_err(|error| io("encode the ledger".into(), std::io::Error::other(error)))?;
        replace(&directory.join(FILE), text.as_bytes())
    }

    /// Refuses a driver that is not the one whose work this directory's ledger tells of.
    pub fn check_maker(&self, directory: &Path, maker: Option<&Maker>) -> Result<(), DriverError> {
        match (&self.driver, maker) {
            (Some(made), Some(maker)) if made != maker => Err(DriverError::NotOurs {
                what: directory.join(FILE).display().to_string(),
                why: format!(
                    "the {made} made or took over what is there: name that one again, or remove this file if the {maker} is to take it over"
                ),
            }),
            _ => Ok(()),
        }
    }

    /// Whether this operation has been done; an id that did something else before is refused.
    pub fn did(&self, id: &str, action: Action, capacity: u32) -> Result<bool, DriverError> {
        let wrong = |why: String| Err(DriverError::Operation { operation: id.to_owned(), why });
        if id.is_empty() || id.len() > LONGEST {
            return wrong(format!("must have 1 to {LONGEST} bytes"));
        }
        match self.done.iter().find(|done| done.id == id) {
            None => Ok(false),
            Some(done) if done.action == action && done.capacity == capacity => Ok(true),
            Some(done) => wrong(format!(
                "was {:?} of {} workers before and cannot be {action:?} of {capacity} now",
                done.action, done.capacity
            )),
        }
    }

    /// Whether something was provisioned here at some time.
    pub fn has_provisioned(&self) -> bool {
        self.capacity.is_some() || self.done.iter().any(|done| done.action == Action::Provision)
    }

    /// Remembers that it has been done.
    pub fn note(&mut self, id: &str, action: Action, capacity: u32) {
        self.done.push(Done { id: id.to_owned(), action, capacity });
        let extra = self.done.len().saturating_sub(REMEMBERED);
        self.done.drain(..extra);
    }
}

impl Action {
    /// The verb of the contract of drivers outside.
    pub fn verb(self) -> &'static str {
        match self {
            Self::Provision => "provision",
            Self::Scale => "scale",
            Self::Deprovision => "deprovision",
        }
    }
}

/// What a ledger says of its placement: for the ledger of another node, which has none of the operations.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Made {
    /// As [`Ledger::capacity`].
    pub capacity: Option<u32>,
    /// As [`Ledger::endpoint`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<Endpoint>,
    /// As [`Ledger::driver`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver: Option<Maker>,
}

impl Made {
    /// By the ledgers of all directories in this one, by their names. One that cannot be read is its driver's to complain of.
    pub fn all(directory: &Path) -> BTreeMap<String, Self> {
        let made = |entry: std::fs::DirEntry| {
            let ledger = Ledger::read(&entry.path()).ok().flatten()?;
            let Ledger { capacity, endpoint, driver, .. } = ledger;
            let made = Self { capacity, endpoint, driver };
            Some((entry.file_name().into_string().ok()?, made))
        };
        std::fs::read_dir(directory).into_iter().flatten().flatten().filter_map(made).collect()
    }

    /// The ledger of a directory says so, too.
    pub fn keep(mut self, directory: &Path) -> Result<(), DriverError> {
        let ledger = Ledger::read(directory)?;
        if let (Some(ledger), Some(_), None) = (&ledger, self.capacity, &self.driver) {
            // An earlier program did not say.
            self.driver.clone_from(&ledger.driver);
        }
        let known = ledger.as_ref().map(|ledger| (ledger.capacity, &ledger.endpoint, &ledger.driver));
        if known == Some((self.capacity, &self.endpoint, &self.driver)) {
            return Ok(());
        }
        std::fs::create_dir_all(directory)
            .map_err(|source| io(format!("create {}", directory.display()), source))?;
        let Self { capacity, endpoint, driver } = self;
        Ledger { capacity, endpoint, driver, ..ledger.unwrap_or_default() }.write(directory)
    }
}

impl Default for Ledger {
    fn default() -> Self {
        Self::new()
    }
}

/// Writes `bytes` to a new file beside `path`, syncs it and renames it over `path`.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<(), DriverError> {
    let new = PathBuf::from(format!("{}.new", path.display()));
    let write = || {
        let mut file = std::fs::File::create(&new)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&new, path)
    };
    write().map_err(|source| io(format!("write {}", path.display()), source))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn remembers_operations_and_refuses_another_use() {
        let directory = tempfile::tempdir().unwrap();
        assert!(Ledger::read(directory.path()).unwrap().is_none());
        let mut ledger = Ledger::new();
        assert!(!ledger.did("m1", Action::Scale, 3).unwrap());
        ledger.note("m1", Action::Scale, 3);
        ledger.capacity = Some(3);
        ledger.write(directory.path()).unwrap();

        let again = Ledger::read(directory.path()).unwrap().unwrap();
        assert_eq!(again.capacity, Some(3));
        assert!(again.did("m1", Action::Scale, 3).unwrap());
        let error = again.did("m1", Action::Scale, 4).unwrap_err().to_string();
        assert_eq!(error, "operation \"m1\" was Scale of 3 workers before and cannot be Scale of 4 now");
        assert!(again.did("", Action::Scale, 3).is_err());
    }

    #[test]
    fn whose_work_it_is_goes_along_to_another_node() {
        let [here, there] = [(), ()].map(|()| tempfile::tempdir().unwrap());
        let maker = Maker { name: "fleet".into(), kind: "exec".into() };
        let mut ledger = Ledger { capacity: Some(1), driver: Some(maker.clone()), ..Ledger::new() };
        std::fs::create_dir(here.path().join("orders@b")).unwrap();
        ledger.write(&here.path().join("orders@b")).unwrap();
        let made = Made::all(here.path())["orders@b"].clone();
        made.clone().keep(there.path()).unwrap();
        let kept = || Ledger::read(there.path()).unwrap().unwrap();
        assert_eq!(kept().driver, Some(maker.clone()));
        // By an earlier program.
        Made { driver: None, capacity: Some(2), ..made.clone() }.keep(there.path()).unwrap();
        assert_eq!((kept().driver, kept().capacity), (Some(maker.clone()), Some(2)));
        Made { driver: None, capacity: None, ..made }.keep(there.path()).unwrap();
        assert_eq!(kept().driver, None, "nothing is left of it");

        let other = Maker { name: "cloud".into(), kind: "webhook".into() };
        assert!(ledger.check_maker(here.path(), Some(&maker)).is_ok());
        let error = ledger.check_maker(here.path(), Some(&other)).unwrap_err().to_string();
        assert!(
            error.contains("the exec driver fleet made") && error.contains("the webhook driver cloud"),
            "{error}"
        );
        ledger.driver = None;
        assert!(ledger.check_maker(here.path(), Some(&other)).is_ok(), "who wrote it did not say");
    }

    #[test]
    fn forgets_the_oldest_only() {
        let mut ledger = Ledger::new();
        for i in 0..=REMEMBERED {
            ledger.note(&i.to_string(), Action::Scale, 1);
        }
        assert!(!ledger.did("0", Action::Scale, 1).unwrap());
        assert!(ledger.did("1", Action::Scale, 1).unwrap());
    }

    #[test]
    fn refuses_a_file_it_did_not_write() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join(FILE), "{\"version\": 9}").unwrap();
        let error = Ledger::read(directory.path()).unwrap_err();
        assert_eq!(error.kind(), crate::drivers::DriverErrorKind::Refused);
    }
}
