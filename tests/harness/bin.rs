//! The `godwit` binary, built where the tests find it, with one switch: `GODWIT_TEST_KILL_AFTER=n` makes the process
//! kill itself, as by `kill -9`, right after the n-th journal record of a migration in its life.

use std::sync::atomic::{AtomicU32, Ordering};

use godwit::store::AFTER_APPEND;
use migration::cutover::State;

static RECORDS: AtomicU32 = AtomicU32::new(0);

fn kill_after(state: &State) {
    let Some(limit) = std::env::var("GODWIT_TEST_KILL_AFTER").ok().and_then(|text| text.parse::<u32>().ok())
    else {
        return;
    };
    if state.run.is_some() && RECORDS.fetch_add(1, Ordering::SeqCst) + 1 == limit {
        let me = rustix::process::getpid();
        let _ = rustix::process::kill_process(me, rustix::process::Signal::KILL);
    }
}

fn main() -> std::process::ExitCode {
    if AFTER_APPEND.set(kill_after).is_err() {
        eprintln!("the journal's hook was set before");
    }
    godwit::cli::main()
}
