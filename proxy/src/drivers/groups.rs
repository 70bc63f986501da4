//! Programs that run for this process, with what they started: they end when nobody waits for them any more, and before this process becomes
//! another program, which would not know them.

use std::collections::BTreeSet;
use std::io;
use std::sync::Mutex;
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitOptions, kill_process_group, waitpid};
use tokio::process::Child;

use crate::clock;
use crate::lock::lock;

/// How long those that were killed may take to go, and how often that is looked at.
const GONE: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_millis(5);

static GROUPS: Groups = Groups::new();

/// Those of this process.
pub(super) fn all() -> &'static Groups {
    &GROUPS
}

/// Kills them all, and none is started from then on.
pub fn end_all() {
    GROUPS.end_all();
}

pub(super) struct Groups(Mutex<Live>);

struct Live {
    ended: bool,
    /// By their leaders' pids.
    leaders: BTreeSet<i32>,
}

/// A program and what it started; killed when dropped.
pub(super) struct Group {
    leader: Option<i32>,
    among: &'static Groups,
}

impl Groups {
    const fn new() -> Self {
        Self(Mutex::new(Live { ended: false, leaders: BTreeSet::new() }))
    }

    /// Starts the leader of a group.
    pub(super) fn start(
        &'static self,
        spawn: impl FnOnce() -> io::Result<Child>,
    ) -> io::Result<(Child, Group)> {
        // Held until it is among them: nothing is started behind the back of who ends all.
        let mut live = lock(&self.0);
        if live.ended {
            return Err(io::Error::other("this process ends"));
        }
        let child = spawn()?;
        let leader = child.id().and_then(|id| i32::try_from(id).ok());
        live.leaders.extend(leader);
        Ok((child, Group { leader, among: self }))
    }

    fn end_all(&self) {
        let leaders = {
            let mut live = lock(&self.0);
            live.ended = true;
            std::mem::take(&mut live.leaders)
        };
        let mut leaders: Vec<Pid> = leaders.into_iter().filter_map(Pid::from_raw).collect();
        for leader in &leaders {
            kill(*leader);
        }
        // Nobody would reap them: the next program has the same children.
        let deadline = clock::monotonic() + GONE;
        loop {
            leaders.retain(|leader| matches!(waitpid(Some(*leader), WaitOptions::NOHANG), Ok(None)));
            if leaders.is_empty() || clock::monotonic() >= deadline {
                return;
            }
            std::thread::sleep(LOOK);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(leader) = self.leader
            && lock(&self.among.0).leaders.remove(&leader)
            && let Some(leader) = Pid::from_raw(leader)
        {
            kill(leader);
        }
    }
}

fn kill(leader: Pid) {
    // Nobody left to kill is no failure.
    let _ = kill_process_group(leader, Signal::KILL);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn all_are_gone_and_none_is_started_behind_them() {
        let groups: &'static Groups = Box::leak(Box::new(Groups::new()));
        let sleep = || tokio::process::Command::new("sleep").arg("600").process_group(0).spawn();
        let there = |pid: u32| std::path::Path::new(&format!("/proc/{pid}")).exists();
        let (mut first, dropped) = groups.start(sleep).unwrap();
        drop(dropped);
        assert!(!first.wait().await.unwrap().success());
        let (second, _group) = groups.start(sleep).unwrap();
        let pid = second.id().unwrap();
        assert!(there(pid));
        groups.end_all();
        assert!(!there(pid), "it runs, or is a zombie");
        assert!(groups.start(sleep).is_err());
    }
}
