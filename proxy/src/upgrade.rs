//! The program replaced under the node's clients: SIGQUIT has the process execute the file that it was started from, anew.
//!
//! ```text
//! SIGQUIT → no migration under way, and the new program accepts the configuration ─ otherwise: refused, nothing happens
//!         → controllers, streams, admin, history end; requests go on being served, they need none of these
//!         → sockets: accepted from no more; connections wait in the kernel ([`Sockets`])
//!         → the requests in flight end, within [`DRAIN`]
//!         → execve(2): same process, same sockets; the journal's lock goes with the old program
//! ```
//!
//! One process at a time has the state directory: there is never a second leader, and nothing to agree upon between two
//! ([ADR 19](../../docs/adr/0019-the-program-executes-its-successor.md)).

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use pingora::server::{ShutdownSignal, ShutdownSignalWatch};
use tokio::signal::unix::{SignalKind, signal};

use crate::fronts::sockets::Sockets;

/// How long the requests in flight may take to end; what comes meanwhile waits as long.
const DRAIN: Duration = Duration::from_secs(10);
/// How often they are looked at.
const LOOK: Duration = Duration::from_millis(5);
/// Names the process whose standard input has the sockets: its children are not meant.
const INHERITED: &str = "GODWIT_SOCKETS";

/// The sockets of the program before, if this process had one; otherwise none yet.
pub fn sockets() -> io::Result<Sockets> {
    let meant = std::env::var(INHERITED).is_ok_and(|pid| pid == std::process::id().to_string());
    if !meant {
        return Ok(Sockets::default());
    }
    let sockets = Sockets::inherited(io::stdin().as_fd().try_clone_to_owned()?)?;
    tracing::info!("the sockets of the program before are taken over");
    Ok(sockets)
}

/// What a node does about an upgrade.
#[async_trait]
pub trait Node: Send + Sync {
    /// Why it cannot be now.
    fn refuses(&self) -> Option<String>;
    /// Ends everything that requests do not need.
    async fn settle(&self);
    /// Requests in flight, and connections whose first has not come yet.
    fn in_flight(&self) -> usize;
}

/// The program that is to be executed next, and whether it is.
pub struct Upgrade {
    program: PathBuf,
    arguments: Vec<OsString>,
    configuration: PathBuf,
    begun: AtomicBool,
}

impl Upgrade {
    /// To the file of this program, where that lies now: another one may lie there later.
    pub fn new(configuration: PathBuf) -> io::Result<Self> {
        Ok(Self {
            program: std::env::current_exe()?,
            arguments: std::env::args_os().skip(1).collect(),
            configuration,
            begun: AtomicBool::new(false),
        })
    }

    /// Whether the process ends for the next program.
    pub fn begun(&self) -> bool {
        self.begun.load(Ordering::Acquire)
    }

    /// Becomes the next program; returns only why that failed.
    pub fn execute(&self, sockets: OwnedFd) -> io::Error {
        Command::new(&self.program)
            .args(&self.arguments)
            .env(INHERITED, std::process::id().to_string())
            .stdin(Stdio::from(sockets))
            .exec()
    }

    /// Whether the next program would start with this configuration; its own words if not.
    async fn accepts(&self) -> Result<(), String> {
        let asked = tokio::process::Command::new(&self.program)
            .arg("check")
            .arg(&self.configuration)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await;
        let answer = asked.map_err(|error| format!("{} does not start: {error}", self.program.display()))?;
        if answer.status.success() {
            return Ok(());
        }
        let said =
            String::from_utf8_lossy(if answer.stderr.is_empty() { &answer.stdout } else { &answer.stderr });
        Err(format!("{} does not accept the configuration: {}", self.program.display(), said.trim()))
    }
}

/// SIGTERM and SIGINT end the node, SIGQUIT upgrades it.
pub struct Signals {
    /// What is executed.
    pub upgrade: Arc<Upgrade>,
    /// What is kept.
    pub sockets: Arc<Sockets>,
    /// What it is done to.
    pub node: Arc<dyn Node>,
}

impl Signals {
    /// Everything up to the moment when nothing is in flight; false: it was refused.
    async fn upgrade(&self) -> bool {
        let accepted = match self.node.refuses() {
            Some(why) => Err(why),
            None => self.upgrade.accepts().await,
        };
        if let Err(why) = accepted {
            tracing::warn!(%why, "the program is not replaced now");
            return false;
        }
        tracing::info!(program = %self.upgrade.program.display(), "the program is replaced");
        self.node.settle().await;
        self.sockets.close();
        let ended = async {
            while self.node.in_flight() > 0 {
                tokio::time::sleep(LOOK).await;
            }
        };
        if tokio::time::timeout(DRAIN, ended).await.is_err() {
            tracing::warn!(
                requests = self.node.in_flight(),
                "requests are cut off: they did not end in time"
            );
        }
        self.upgrade.begun.store(true, Ordering::Release);
        true
    }
}

#[async_trait]
impl ShutdownSignalWatch for Signals {
    async fn recv(&self) -> ShutdownSignal {
        let kinds = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::quit()];
        let [Ok(mut terminate), Ok(mut interrupt), Ok(mut quit)] = kinds.map(signal) else {
            // Without them it could not be ended at all.
            tracing::error!("signals cannot be heard");
            return ShutdownSignal::FastShutdown;
        };
        loop {
            tokio::select! {
                _ = terminate.recv() => return ShutdownSignal::GracefulTerminate,
                _ = interrupt.recv() => return ShutdownSignal::FastShutdown,
                _ = quit.recv() => {}
            }
            tokio::select! {
                _ = terminate.recv() => return ShutdownSignal::GracefulTerminate,
                _ = interrupt.recv() => return ShutdownSignal::FastShutdown,
                replaced = self.upgrade() => {
                    if replaced {
                        // Nothing is left that a grace would be for.
                        return ShutdownSignal::FastShutdown;
                    }
                }
            }
        }
    }
}
