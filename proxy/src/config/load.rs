//! Reading the files: `godwit.yaml` and `policies/*.yaml` beside it.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use migration::policy::Policy;

use super::error::{ConfigErrors, Position, Report};
use super::freeze::FreezeWindow;
use super::model::Config;
use super::overlay::OverlayText;
use super::{policy, raw, secret, validate};

/// A file longer than this is not a configuration.
const MAX_BYTES: u64 = 1 << 20;

/// What the configuration refers to outside its own text.
pub(super) struct Surroundings<'s> {
    /// Relative paths start here.
    pub(super) folder: &'s Path,
    /// Value of an environment variable.
    pub(super) variable: &'s dyn Fn(&str) -> Option<String>,
    /// Text of a file.
    pub(super) read: &'s dyn Fn(&Path) -> io::Result<String>,
}

/// Reads and checks `path` and the policies beside it; paths in it are relative to its folder.
///
/// Returns every problem at once. Reads secrets, and nothing over the network.
pub fn load(path: &Path) -> Result<Config, ConfigErrors> {
    let folder = path.parent().unwrap_or_else(|| Path::new(""));
    let around = Surroundings { folder, variable: &|name| std::env::var(name).ok(), read: &read_file };
    let (policy_files, listing) = policy_files(&folder.join("policies"));
    read_all(path, &policy_files, listing, &around, None)
}

/// As [`load`], with what the API changed.
pub fn load_with(path: &Path, overlay: Option<&OverlayText>) -> Result<Config, ConfigErrors> {
    let folder = path.parent().unwrap_or_else(|| Path::new(""));
    let around = Surroundings { folder, variable: &|name| std::env::var(name).ok(), read: &read_file };
    let (policy_files, listing) = policy_files(&folder.join("policies"));
    read_all(path, &policy_files, listing, &around, overlay)
}

/// Reads and checks one policy file by itself, with its freeze windows.
pub fn load_policy(path: &Path) -> Result<(Policy, Vec<FreezeWindow>), ConfigErrors> {
    let around = Surroundings { folder: Path::new(""), variable: &|_| None, read: &read_file };
    let report = Report::new(path.display().to_string());
    let stem = path.file_stem().and_then(OsStr::to_str).unwrap_or_default();
    let read = text_of(path, &around, &report).map(|text| policy::read(stem, &text, &report));
    match (ConfigErrors::gather(vec![report]), read.and_then(|read| Some((read.policy?, read.freeze)))) {
        (None, Some(read)) => Ok(read),
        (Some(errors), _) => Err(errors),
        (None, None) => Err(not_understood(path)),
    }
}

/// Every part that is not understood notes why; should one not, the file is refused all the same.
fn not_understood(path: &Path) -> ConfigErrors {
    let report = Report::new(path.display().to_string());
    report.note(Position::START, "", "was not understood", "report this as a defect of Godwit");
    ConfigErrors::of(report)
}

/// As [`load_with`]; the listing of the policies' folder is given, and a problem with it.
pub(super) fn read_all(
    path: &Path,
    policy_files: &[PathBuf],
    listing: Option<Report>,
    around: &Surroundings<'_>,
    overlay: Option<&OverlayText>,
) -> Result<Config, ConfigErrors> {
    let changed = Report::new(overlay.map_or_else(String::new, |overlay| overlay.path.display().to_string()));
    let main = Report::new(path.display().to_string());
    let mut reports = Vec::new();
    let mut policies: Vec<policy::ReadPolicy> = Vec::new();
    for file in policy_files {
        let report = Report::new(file.display().to_string());
        let stem = file.file_stem().and_then(OsStr::to_str).unwrap_or_default();
        if let Some(text) = text_of(file, around, &report) {
            let read = policy::read(stem, &text, &report);
            if policies.iter().any(|earlier| earlier.name == read.name) {
                let what = format!("`{}` is the name of an earlier policy file, too", read.name);
                report.note(read.at, "name", what, "a name of its own");
            }
            policies.push(read);
        }
        reports.push(report);
    }
    let config = match overlay.map(|overlay| raw::parse(&overlay.text, &changed)) {
        None => text_of(path, around, &main)
            .and_then(|text| validate::read(&text, &policies, around, &main, None)),
        Some(Some(document)) => text_of(path, around, &main)
            .and_then(|text| validate::read(&text, &policies, around, &main, Some((&document, &changed)))),
        Some(None) => None,
    };
    reports.insert(0, main);
    reports.push(changed);
    reports.extend(listing);
    match (ConfigErrors::gather(reports), config) {
        (None, Some(config)) => Ok(config),
        (Some(errors), _) => Err(errors),
        (None, None) => Err(not_understood(path)),
    }
}

fn text_of(path: &Path, around: &Surroundings<'_>, report: &Report) -> Option<String> {
    match (around.read)(path) {
        Ok(text) => Some(text),
        Err(error) => {
            unreadable(report, &secret::reason(&error));
            None
        }
    }
}

/// The report's file cannot be read.
pub(super) fn unreadable(report: &Report, reason: &str) {
    let what = format!("cannot be read: {reason}");
    report.note(Position::START, "", what, "a readable file of UTF-8 text, at most 1MiB");
}

fn read_file(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    std::fs::File::open(path)?.take(MAX_BYTES + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_BYTES {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "longer than 1MiB"));
    }
    Ok(text)
}

/// The policies beside a configuration.
pub(super) fn policy_files_beside(path: &Path) -> (Vec<PathBuf>, Option<Report>) {
    let folder = path.parent().unwrap_or_else(|| Path::new(""));
    policy_files(&folder.join("policies"))
}

/// The text of a file, or why it cannot be read.
pub(super) fn text(path: &Path) -> Result<String, String> {
    read_file(path).map_err(|error| secret::reason(&error))
}

/// `*.yaml` and `*.yml` of the folder, by name; no folder is no policies.
fn policy_files(folder: &Path) -> (Vec<PathBuf>, Option<Report>) {
    let list = || -> io::Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            let yaml = path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml");
            if yaml && path.is_file() {
                files.push(path);
            }
        }
        files.sort();
        Ok(files)
    };
    match list() {
        Ok(files) => (files, None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => (Vec::new(), None),
        Err(error) => {
            let report = Report::new(folder.display().to_string());
            let what = format!("cannot be listed: {}", secret::reason(&error));
            report.note(Position::START, "", what, "a readable folder");
            (Vec::new(), Some(report))
        }
    }
}
