//! The demo, as `make demo` plays it: the story ends, and every line of its proof holds.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::process::Command;

/// Four stages of a minute each at most, and what lies between them.
const PATIENCE: Duration = Duration::from_mins(6);

#[tokio::test]
async fn the_demo_moves_there_and_back_and_proves_it() -> Result<()> {
    // Fewer requests than it usually sends: other tests run beside it.
    let playing = Command::new(env!("CARGO_BIN_EXE_godwit-under-test"))
        .args(["demo", "--rate", "50"])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(PATIENCE, playing).await.context("the demo did not end")??;
    let (out, told) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success() && out.contains("all of it holds"), "{out}\n{told}");
    ensure!(!out.contains("FAIL"), "{out}");
    Ok(())
}
