//! The output of a command. It gets a bare environment: no secret of this process.

use std::process::Stdio;

use tokio::io::AsyncReadExt;
use tokio::process::{ChildStderr, Command};
use tokio::task::JoinSet;

use super::{Fetched, Validators, too_large};
use crate::feeds::external::{Failure, Reason};

/// What a command gets of this process' environment.
const PASSED_ON: [&str; 4] = ["PATH", "HOME", "LANG", "TZ"];
/// How much of its complaint is shown.
const COMPLAINT: usize = 300;

/// Runs `argv` and takes its standard output. Dropped before its end, it kills the command.
pub(super) async fn output(argv: &[String], limit: u64) -> Result<Fetched, Failure> {
    let failed = |what: String| Failure::source(Reason::Exec, what);
    let (program, arguments) = argv.split_first().ok_or_else(|| failed("there is no command".to_owned()))?;
    let variable = |name: &'static str| std::env::var_os(name).map(move |value| (name, value));
    let mut child = Command::new(program)
        .args(arguments)
        .env_clear()
        .envs(PASSED_ON.into_iter().filter_map(variable))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // What it starts ends with it: a shell's children hold its pipes.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| failed(format!("{program} cannot be started: {error}")))?;
    let group = Group(child.id());
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let mut complaints = JoinSet::new();
    complaints.spawn(complaint(stderr));
    let mut bytes = Vec::new();
    if let Some(pipe) = stdout {
        let mut bounded = pipe.take(limit + 1);
        bounded.read_to_end(&mut bytes).await.map_err(|error| failed(format!("{program}: {error}")))?;
    }
    if bytes.len() as u64 > limit {
        return Err(too_large(limit));
    }
    let status = child.wait().await.map_err(|error| failed(format!("{program}: {error}")))?;
    drop(group);
    if !status.success() {
        let said = complaints.join_next().await.and_then(Result::ok).unwrap_or_default();
        let said = String::from_utf8_lossy(&said);
        let said = said.trim().lines().last().map_or_else(String::new, |line| format!(": {line}"));
        return Err(failed(format!("{program} ended with {status}{said}")));
    }
    Ok(Fetched::Bytes { bytes, at: None, validators: Validators::default() })
}

/// The end of what it says on standard error; all of it is read, or it would stand still.
async fn complaint(pipe: Option<ChildStderr>) -> Vec<u8> {
    let (mut said, mut buffer) = (Vec::new(), [0; 1024]);
    let Some(mut pipe) = pipe else { return said };
    while let Ok(count @ 1..) = pipe.read(&mut buffer).await {
        said.extend_from_slice(&buffer[..count]);
        said.drain(..said.len().saturating_sub(COMPLAINT));
    }
    said
}

/// The command and what it started; killed when dropped.
struct Group(Option<u32>);

impl Drop for Group {
    fn drop(&mut self) {
        let leader = self.0.and_then(|id| i32::try_from(id).ok()).and_then(rustix::process::Pid::from_raw);
        if let Some(leader) = leader {
            // Nobody left to kill is no failure.
            let _ = rustix::process::kill_process_group(leader, rustix::process::Signal::KILL);
        }
    }
}
