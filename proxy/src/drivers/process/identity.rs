//! Which process a pid means: a pid alone is recycled, a pid with its start time and boot is not.

use std::path::Path;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use crate::drivers::DriverError;
use crate::drivers::error::io;
use crate::drivers::ledger::replace;

/// One process, for as long as the machine stays up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Identity {
    /// Its pid.
    pub pid: i32,
    /// Field 22 of `/proc/<pid>/stat`: ticks between boot and its start.
    pub started: u64,
    /// Boot that the ticks count from.
    pub boot: String,
}

/// The fields of `/proc/<pid>/stat` that matter here.
struct Stat {
    state: char,
    group: i32,
    threads: u64,
    started: u64,
}

impl Stat {
    /// Whether nothing of the process runs. The first thread of a killed process is a zombie while others still end,
    /// and with them the sockets of the process stay open.
    fn ended(&self) -> bool {
        matches!(self.state, 'Z' | 'X') && self.threads <= 1
    }
}

/// `None`: no such process, or a text that is none of `stat`'s.
fn stat(pid: i32) -> Option<Stat> {
    parse(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// The name in parentheses may hold anything, parentheses and spaces included: fields count from the last one.
fn parse(text: &str) -> Option<Stat> {
    let mut fields = text.get(text.rfind(')')? + 1..)?.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    let group = fields.nth(1)?.parse().ok()?;
    let threads = fields.nth(14)?.parse().ok()?;
    let started = fields.nth(1)?.parse().ok()?;
    Some(Stat { state, group, threads, started })
}

fn boot() -> Result<String, DriverError> {
    let path = "/proc/sys/kernel/random/boot_id";
    let text = std::fs::read_to_string(path).map_err(|source| io(format!("read {path}"), source))?;
    Ok(text.trim().to_owned())
}

impl Identity {
    /// The identity of a process that runs now.
    pub(super) fn of(pid: i32) -> Result<Option<Self>, DriverError> {
        let Some(stat) = stat(pid) else { return Ok(None) };
        Ok(Some(Self { pid, started: stat.started, boot: boot()? }))
    }

    /// Reads a pid file; `None` when there is none or it is torn.
    pub(super) fn read(path: &Path) -> Option<Self> {
        serde_json::from_str(&std::fs::read_to_string(path).ok()?).ok()
    }

    /// Writes a pid file.
    pub(super) fn write(&self, path: &Path) -> Result<(), DriverError> {
        let text = serde_json::to_string(self)
            .map_err(|error| io("encode a pid file".into(), std::io::Error::other(error)))?;
        replace(path, text.as_bytes())
    }

    /// Whether this very process runs; a zombie without threads does not.
    pub(super) fn alive(&self) -> bool {
        stat(self.pid).is_some_and(|stat| stat.started == self.started && !stat.ended())
            && boot().is_ok_and(|boot| boot == self.boot)
    }

    /// Signals this very process; false when it is gone. The descriptor is taken before the identity is checked, so a
    /// pid that is recycled in between is not hit.
    pub(super) fn signal(&self, signal: Signal) -> Result<bool, DriverError> {
        let Some(pid) = Pid::from_raw(self.pid) else { return Ok(false) };
        let gone = |error: rustix::io::Errno| error == rustix::io::Errno::SRCH;
        let failed = |error: rustix::io::Errno| io(format!("signal process {}", self.pid), error.into());
        let descriptor = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(descriptor) => descriptor,
            Err(error) if gone(error) => return Ok(false),
            Err(error) => return Err(failed(error)),
        };
        if !self.alive() {
            return Ok(false);
        }
        match pidfd_send_signal(&descriptor, signal) {
            Ok(()) => Ok(true),
            Err(error) if gone(error) => Ok(false),
            Err(error) => Err(failed(error)),
        }
    }

    /// The leader of a process group whose environment holds `variable` exactly (`NAME=value`).
    ///
    /// Finds a worker whose starter was killed before it could write the pid file.
    pub(super) fn find(variable: &str) -> Result<Option<Self>, DriverError> {
        let Ok(entries) = std::fs::read_dir("/proc") else { return Ok(None) };
        for entry in entries.flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
                continue;
            };
            let Ok(environment) = std::fs::read(entry.path().join("environ")) else { continue };
            let ours = environment.split(|byte| *byte == 0).any(|entry| entry == variable.as_bytes());
            if ours && stat(pid).is_some_and(|stat| stat.group == pid && !stat.ended()) {
                return Self::of(pid);
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn reads_stat_whatever_the_name_is() {
        let tail = "S 1 42 42 0 -1 4194304 98 0 0 0 0 0 0 0 20 0 1 0 102123 3133440 380";
        let stat = parse(&format!("7 (a) R (b 9) {tail}")).unwrap();
        assert_eq!((stat.state, stat.group, stat.threads, stat.started), ('S', 42, 1, 102_123));
        assert!(!stat.ended());
        let with_threads =
            |count: u32| tail.replacen('S', "Z", 1).replace(" 20 0 1 ", &format!(" 20 0 {count} "));
        assert!(parse(&format!("7 (a) {}", with_threads(1))).unwrap().ended());
        assert!(
            !parse(&format!("7 (a) {}", with_threads(2))).unwrap().ended(),
            "its other threads hold its sockets"
        );
        assert!(parse("7 (torn) S 1").is_none());
        assert!(parse("").is_none());
    }

    #[test]
    fn a_recycled_pid_is_not_the_process() {
        let me = Identity::of(std::process::id().cast_signed()).unwrap().unwrap();
        assert!(me.alive());
        let other = Identity { started: me.started + 1, ..me.clone() };
        assert!(!other.alive());
        assert!(!other.signal(Signal::KILL).unwrap(), "must not hit the process that has the pid now");
        let before = Identity { boot: "another".into(), ..me };
        assert!(!before.alive());
    }
}
