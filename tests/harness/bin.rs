//! The `godwit` binary, built where the tests find it, with switches for faults:
//!
//! - `GODWIT_TEST_KILL_AFTER=n`: the process kills itself, as by `kill -9`, right after the n-th journal record of a migration
//!   in its life;
//! - `GODWIT_TEST_STOPS=directory`: a migration whose record of a phase was written stands still, before any effect of that
//!   phase begins, if the directory has a file of the phase's name: that is renamed to `phase.reached`, with the migration's
//!   id in it, and the process goes on when it is gone;
//! - `GODWIT_TEST_CLOCK=file`: the wall clock is off by so many milliseconds as the file says.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use godwit::store::AFTER_APPEND;
use migration::cutover::State;

/// How often files are looked at.
const LOOK: Duration = Duration::from_millis(2);

static RECORDS: AtomicU32 = AtomicU32::new(0);

fn after_append(state: &State, ends: bool) {
    if state.run.is_none() && !ends {
        return;
    }
    let limit = std::env::var("GODWIT_TEST_KILL_AFTER").ok().and_then(|text| text.parse::<u32>().ok());
    if limit.is_some_and(|limit| RECORDS.fetch_add(1, Ordering::SeqCst) + 1 == limit) {
        let me = rustix::process::getpid();
        let _ = rustix::process::kill_process(me, rustix::process::Signal::KILL);
    }
    if let Some(directory) = std::env::var_os("GODWIT_TEST_STOPS").map(PathBuf::from) {
        let (asked, reached) =
            (directory.join(state.phase.name()), directory.join(format!("{}.reached", state.phase.name())));
        if std::fs::rename(asked, &reached).is_ok() {
            let id = state.run.as_ref().map(|run| run.id.as_str()).unwrap_or_default();
            let _ = std::fs::write(&reached, id);
            // Only the controller stands still: the runtime's other tasks get another thread.
            tokio::task::block_in_place(|| {
                while reached.exists() {
                    std::thread::sleep(LOOK);
                }
            });
        }
    }
}

fn follow_clock() {
    let Some(file) = std::env::var_os("GODWIT_TEST_CLOCK") else { return };
    std::thread::spawn(move || {
        loop {
            let text = std::fs::read_to_string(&file).unwrap_or_default();
            let skew = text.trim().parse().unwrap_or(0);
            godwit::clock::SKEW_MS.store(skew, Ordering::Relaxed);
            std::thread::sleep(LOOK);
        }
    });
}

fn main() -> std::process::ExitCode {
    if AFTER_APPEND.set(after_append).is_err() {
        eprintln!("the journal's hook was set before");
    }
    follow_clock();
    godwit::cli::main()
}
