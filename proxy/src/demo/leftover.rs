//! Playgrounds whose process was killed: their nodes, databases and workers run on, and nobody would end them.

use std::fs::{DirEntry, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What a playground's directory begins with.
pub(super) const PREFIX: &str = "godwit-playground-";
/// A file in it that is locked for as long as its process lives.
const HELD: &str = "held";

/// Tells others that this playground is somebody's, until the file is dropped or the process ends, however it does.
pub(super) fn hold(directory: &Path) -> io::Result<File> {
    // Locked before it has its name: nobody finds it free.
    let file = tempfile::NamedTempFile::new_in(directory)?;
    file.as_file().lock()?;
    Ok(file.persist(directory.join(HELD))?)
}

/// A playground that is nobody's any more.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Leftover {
    directory: PathBuf,
    processes: Vec<u32>,
}

impl Leftover {
    /// Those in this directory that are this user's. Anybody may make what looks like one: its name goes into a command to be
    /// typed, and what is opened in it must be a file.
    pub(super) fn find(parent: &Path) -> Vec<Self> {
        let Ok(entries) = std::fs::read_dir(parent) else { return Vec::new() };
        let named = |entry: &DirEntry| {
            let name = entry.file_name();
            let rest = name.as_bytes().strip_prefix(PREFIX.as_bytes());
            rest.is_some_and(|rest| rest.iter().all(u8::is_ascii_alphanumeric))
        };
        let me = rustix::process::geteuid().as_raw();
        let mine = |path: &Path| path.symlink_metadata().ok().filter(|found| found.uid() == me);
        let nobodys = |directory: &PathBuf| {
            let held = directory.join(HELD);
            mine(directory).is_some_and(|found| found.is_dir())
                && mine(&held).is_some_and(|found| found.is_file())
                && File::open(held).is_ok_and(|file| file.try_lock().is_ok())
        };
        let left = entries.flatten().filter(named).map(|entry| entry.path()).filter(nobodys);
        left.map(|directory| Self { processes: processes(&directory), directory }).collect()
    }

    /// What it is, and the way to be rid of it.
    pub(super) fn said(&self) -> String {
        let directory = self.directory.display();
        let remove = format!("rm -rf {directory}");
        if self.processes.is_empty() {
            return format!("{directory} is left of a demo that was killed; to remove it: {remove}");
        }
        let processes: Vec<_> = self.processes.iter().map(u32::to_string).collect();
        format!(
            "{directory} is left of a demo that was killed, and what it started runs; to end and remove it: kill -INT {}; sleep 5; {remove}",
            processes.join(" ")
        )
    }
}

/// Nodes and databases name it as an argument, workers in the variable that they are found again by.
fn processes(directory: &Path) -> Vec<u32> {
    let inside = [directory.as_os_str().as_bytes(), b"/"].concat();
    let names = |process: &Path, file: &str, before: &[u8]| {
        let text = std::fs::read(process.join(file)).unwrap_or_default();
        text.split(|byte| *byte == 0)
            .filter_map(|entry| entry.strip_prefix(before))
            .any(|entry| entry.starts_with(&inside))
    };
    let mut found: Vec<u32> = std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter(|process| {
            names(&process.path(), "cmdline", b"") || names(&process.path(), "environ", b"GODWIT_WORKER=")
        })
        .filter_map(|process| process.file_name().to_str()?.parse().ok())
        .collect();
    found.sort_unstable();
    found
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_playground_is_left_over_when_nobody_holds_it() {
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join(format!("{PREFIX}x"));
        std::fs::create_dir(&directory).unwrap();
        std::fs::create_dir(parent.path().join("another")).unwrap();
        // Made by somebody else, to have it opened for ever or its name typed.
        for (name, make) in [("y", "mkfifo"), ("z;date", "touch")] {
            let directory = parent.path().join(format!("{PREFIX}{name}"));
            std::fs::create_dir(&directory).unwrap();
            assert!(Command::new(make).arg(directory.join(HELD)).status().unwrap().success());
        }
        assert_eq!(Leftover::find(parent.path()), [], "it is being made");
        let held = hold(&directory).unwrap();
        assert_eq!(Leftover::find(parent.path()), [], "somebody holds it");
        drop(held);
        let nothing_runs = Leftover { directory: directory.clone(), processes: Vec::new() };
        assert_eq!(Leftover::find(parent.path()), [nothing_runs]);

        // A shell waits for its input: one that names a file in it, one that is marked as a worker, one that is neither.
        let named = directory.join("godwit.yaml");
        let of_a_worker = directory.join("zones/west/driver/worker-0.pid");
        let start = |argument: &Path, mark: &Path| {
            let command = ["-c", "read line"].map(Path::new);
            let mut shell = Command::new("sh");
            shell
                .args(command)
                .arg(argument)
                .env("GODWIT_WORKER", mark)
                .stdin(Stdio::piped())
                .spawn()
                .unwrap()
        };
        let elsewhere = parent.path();
        let mut started =
            [start(&named, elsewhere), start(elsewhere, &of_a_worker), start(elsewhere, elsewhere)];
        let found = Leftover::find(parent.path());
        for child in &mut started {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        let [one] = &*found else { panic!("{found:?}") };
        let [node, worker, other] = started.map(|child| child.id());
        assert!(one.processes.contains(&node) && one.processes.contains(&worker), "{one:?}");
        assert!(!one.processes.contains(&other), "{one:?}");
        assert!(one.said().ends_with(&format!("rm -rf {}", directory.display())), "{}", one.said());
    }
}
