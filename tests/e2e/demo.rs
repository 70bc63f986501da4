//! The demo, as `make demo` plays it: the story ends, and every line of its proof holds; and however it is ended, it leaves nothing.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use godwit_tests::waiting::until;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

const PROGRAM: &str = env!("CARGO_BIN_EXE_godwit-under-test");

/// Four stages of a minute each at most, and what lies between them.
const PATIENCE: Duration = Duration::from_mins(6);

#[tokio::test]
async fn the_demo_moves_there_and_back_and_proves_it() -> Result<()> {
    // Fewer requests than it usually sends: other tests run beside it.
    let playing =
        Command::new(PROGRAM).args(["demo", "--rate", "50"]).stdin(Stdio::null()).kill_on_drop(true).output();
    let output = tokio::time::timeout(PATIENCE, playing).await.context("the demo did not end")??;
    let (out, told) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success() && out.contains("all of it holds"), "{out}\n{told}");
    ensure!(!out.contains("FAIL"), "{out}");
    Ok(())
}

#[tokio::test]
async fn a_demo_whose_terminal_is_closed_leaves_nothing() -> Result<()> {
    let home = tempfile::tempdir()?;
    // The database's user walks into it.
    std::fs::set_permissions(home.path(), std::fs::Permissions::from_mode(0o755))?;
    // `nohup make test` ignores the signal, and with it all that is started there.
    let mut demo = Command::new("env")
        .args(["--default-signal=HUP", PROGRAM, "demo", "--calm", "--rate", "50"])
        .env("TMPDIR", home.path())
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let group = demo.id().and_then(|id| Pid::from_raw(id.cast_signed())).context("the demo has ended")?;
    let mut lines = BufReader::new(demo.stdout.take().context("its output")?).lines();
    let runs = async {
        while let Some(line) = lines.next_line().await? {
            if line.contains("nothing moves by itself") {
                return Ok(());
            }
        }
        bail!("the demo ended before")
    };
    tokio::time::timeout(PATIENCE, runs).await.context("the demo did not begin")??;
    let started = of(home.path())?;
    ensure!(started.len() >= 5, "two nodes, two databases, workers: {started:?}");

    kill_process_group(group, Signal::HUP)?;
    let rest = async {
        while lines.next_line().await?.is_some() {}
        Ok::<_, anyhow::Error>(demo.wait().await?)
    };
    let ended = tokio::time::timeout(PATIENCE, rest).await.context("the demo did not end")??;
    ensure!(ended.success(), "{ended}");
    until("that nothing of it runs", async || Ok(of(home.path())?.is_empty())).await?;
    let left: Vec<_> = std::fs::read_dir(home.path())?.collect::<Result<_, _>>()?;
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}

/// Processes that name this folder, as an argument or in their environment.
fn of(folder: &Path) -> Result<Vec<i32>> {
    let folder = folder.to_str().context("a folder's name")?;
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let named = |file: &str| {
            let text = std::fs::read(entry.path().join(file)).unwrap_or_default();
            String::from_utf8_lossy(&text).contains(folder)
        };
        if named("cmdline") || named("environ") {
            found.push(pid);
        }
    }
    Ok(found)
}
