//! Playgrounds whose process was killed: their nodes, databases and workers run on, and nobody would end them.

use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
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
    /// Those in this directory that this user may read.
    pub(super) fn find(parent: &Path) -> Vec<Self> {
        let Ok(entries) = std::fs::read_dir(parent) else { return Vec::new() };
        let playgrounds =
            entries.flatten().filter(|entry| entry.file_name().as_bytes().starts_with(PREFIX.as_bytes()));
        let nobodys =
            |directory: &PathBuf| File::open(directory.join(HELD)).is_ok_and(|file| file.try_lock().is_ok());
        let left = playgrounds.map(|entry| entry.path()).filter(nobodys);
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
