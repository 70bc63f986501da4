//! The program replaced under its clients: no request fails, nothing that was acknowledged is lost, and the node goes on leading.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use godwit::cli::client::Client;
use godwit::demo::node::Node;
use godwit::demo::zone::Playground;

use rustix::process::Signal;

use crate::leader::{Leader, PATIENCE, PROGRAM, load, options};

/// The program under a name of its own, so that it can be replaced.
struct Installed {
    path: PathBuf,
    _directory: tempfile::TempDir,
}

impl Installed {
    fn new() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("godwit");
        std::fs::copy(PROGRAM, &path)?;
        Ok(Self { path, _directory: directory })
    }

    /// As a package manager does it: the new file takes the old one's name.
    fn replace(&self, with: &Path) -> Result<()> {
        let new = self.path.with_extension("new");
        std::fs::copy(with, &new)?;
        Ok(std::fs::rename(&new, &self.path)?)
    }

    fn leader<'a>(&self, playground: &'a Playground) -> Result<Leader<'a>> {
        let node = Node::start(&self.path, &playground.config, &[])?;
        Ok(Leader { node, client: Client::new(&playground.admin.to_string()), playground })
    }
}

/// Which file a process executes.
fn executes(pid: u32) -> Result<PathBuf> {
    Ok(std::fs::read_link(format!("/proc/{pid}/exe"))?)
}

/// Waits until the log says `what` so many times.
async fn logged(leader: &mut Leader<'_>, what: &str, times: usize) -> Result<()> {
    let seen = async {
        loop {
            leader.node.check()?;
            if leader.node.tail(10_000).matches(what).count() >= times {
                return anyhow::Ok(());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let seen = tokio::time::timeout(PATIENCE, seen).await;
    seen.with_context(|| format!("waited in vain: {what:?} in the log; {}", leader.node.tail(30)))?
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_fails_while_the_program_is_replaced() -> Result<()> {
    let playground = Playground::start(&options(false)?).await?;
    let installed = Installed::new()?;
    let mut leader = installed.leader(&playground)?;
    leader.ready().await?;
    let pid = leader.node.pid();
    let load = load(&playground, 200.0, "upgrade");
    for turn in 1..=3 {
        let before = load.snapshot().succeeded;
        installed.replace(Path::new(PROGRAM))?;
        ensure!(executes(pid)?.ends_with("godwit (deleted)"), "{:?}", executes(pid)?);
        leader.node.signal(Signal::QUIT)?;
        logged(&mut leader, "the sockets of the program before are taken over", turn).await?;
        leader.ready().await?;
        ensure!(executes(pid)? == installed.path, "the new file is executed: {:?}", executes(pid)?);
        let served = async {
            while load.snapshot().succeeded < before + 200 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, served).await.with_context(|| leader.node.tail(30))?;
    }
    let outcome = load.stop().await;
    println!("{} requests over three upgrades, longest {:?}", outcome.totals.sent, outcome.totals.longest);
    ensure!(outcome.failures.is_empty(), "{:#?}\n{}", outcome.failures, leader.node.tail(40));
    // What it leads it still leads: a move works as before.
    let run = leader.migrate("eu-central").await?;
    leader.until("it moved", |view| view.primary == "eu-central").await?;
    ensure!(leader.migration(&run).await?.committed_ms.is_some(), "it is committed");
    leader.audit().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_would_not_start_replaces_nothing() -> Result<()> {
    let playground = Playground::start(&options(false)?).await?;
    let installed = Installed::new()?;
    let mut leader = installed.leader(&playground)?;
    leader.ready().await?;
    let load = load(&playground, 50.0, "refused");
    let (broken, text) =
        (installed.path.with_extension("broken"), "#!/bin/sh\necho not for this machine >&2\nexit 1\n");
    std::fs::write(&broken, text)?;
    std::fs::set_permissions(&broken, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    installed.replace(&broken)?;
    leader.node.signal(Signal::QUIT)?;
    logged(&mut leader, "does not accept the configuration: not for this machine", 1).await?;
    // Nor does one whose configuration was broken meanwhile.
    installed.replace(Path::new(PROGRAM))?;
    let text = std::fs::read_to_string(&playground.config)?;
    std::fs::write(&playground.config, format!("{text}\nnothing_known: 1\n"))?;
    leader.node.signal(Signal::QUIT)?;
    logged(&mut leader, "nothing_known", 1).await?;
    let before = load.snapshot().succeeded;
    let served = async {
        while load.snapshot().succeeded < before + 50 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, served).await.with_context(|| leader.node.tail(30))?;
    let outcome = load.stop().await;
    ensure!(outcome.failures.is_empty(), "{:#?}", outcome.failures);
    Ok(())
}
