//! The program replaced under the node's clients: SIGQUIT has the process execute the file that it was started from, anew.
//!
//! ```text
//! SIGQUIT → no migration under way, and the new program would start with the configuration, what the API changed of it, and the journal
//!           ─ otherwise: refused, nothing happens
//!         → answers say `Connection: close`, for as long as connections are kept, at most [`FAREWELL`]
//!         → controllers, streams, admin, history end; requests go on being served, they need none of these
//!         → sockets: accepted from no more; connections wait in the kernel ([`Sockets`]), HTTP/2 is told GOAWAY
//!         → the requests in flight end, within [`DRAIN`], and sessions of PostgreSQL with the transaction that they have open, within [`SESSIONS`]
//!         → execve(2): same process, same sockets; the journal's lock goes with the old program
//! ```
//!
//! A node that stands by serves nobody: of all that, the new program need only accept the configuration.
//!
//! One process at a time has the state directory: there is never a second leader, and nothing to agree upon between two
//! ([ADR 19](../../docs/adr/0019-the-program-executes-its-successor.md)).

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use pingora::server::{ShutdownSignal, ShutdownSignalWatch};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use crate::cli::check;
use crate::fronts::sockets::Sockets;
use crate::leading::Anew;

/// How long clients that keep a connection have for a request whose answer tells them to make another. Who says nothing for so long
/// is about to send a request as seldom as at the end of any keep-alive.
const FAREWELL: Duration = Duration::from_secs(2);
/// How long the requests in flight may take to end; what comes meanwhile waits as long.
const DRAIN: Duration = Duration::from_secs(10);
/// How long transactions that are open may take to end; everybody else waits meanwhile.
const SESSIONS: Duration = Duration::from_secs(2);
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

/// For a process that begins anew, with no socket of its own.
pub fn nothing_handed_over() -> io::Result<OwnedFd> {
    Sockets::default().handed_over()
}

/// What a node does about an upgrade.
#[async_trait]
pub trait Node: Send + Sync {
    /// Why it cannot be now.
    fn refuses(&self) -> Option<String>;
    /// Whether the next program would lead what this one does; in words why not.
    async fn accepts(&self) -> Result<(), String>;
    /// Has answers say that the connection closes, or no more.
    fn announce(&self, leave: bool);
    /// Ends everything that requests do not need.
    async fn settle(&self);
    /// Requests in flight, and connections whose first has not come yet.
    fn in_flight(&self) -> usize;
    /// Has sessions end, each when it has no transaction open.
    fn end_sessions(&self);
    /// Sessions that are there.
    fn sessions(&self) -> usize;
}

/// The program that is to be executed next, and whether it is.
pub struct Upgrade {
    program: PathBuf,
    arguments: Vec<OsString>,
    configuration: PathBuf,
    begun: AtomicBool,
}

impl Upgrade {
    /// To the file of this program, by the name that it was started by: another one may have that later.
    pub fn new(configuration: PathBuf) -> io::Result<Self> {
        Ok(Self {
            program: program()?,
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
            // It asks no node, and that of a file that is gone would be no word about the configuration.
            .env_remove("GODWIT_TOKEN_FILE")
            .env(check::STARTS, "1")
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

/// What this program was started by, symbolic links included: they may lead elsewhere later.
fn program() -> io::Result<PathBuf> {
    let file = |path: &Path| std::fs::metadata(path).map(|data| (data.dev(), data.ino()));
    let running = std::env::current_exe()?;
    let named = std::path::absolute(OsStr::from_bytes(rustix::param::linux_execfn().to_bytes()))?;
    Ok(if file(&named).is_ok_and(|named| file(&running).is_ok_and(|running| running == named)) {
        named
    } else {
        running
    })
}

/// SIGTERM and SIGINT end the node, SIGQUIT upgrades it.
pub struct Signals {
    upgrade: Arc<Upgrade>,
    sockets: Arc<Sockets>,
    node: Arc<dyn Node>,
    anew: Arc<Anew>,
    leaving: CancellationToken,
    heard: Mutex<Heard>,
}

/// What was signalled, from when this was made: what nobody hears would end the process.
pub struct Heard {
    terminate: Signal,
    interrupt: Signal,
    quit: Signal,
    /// SIGQUIT has come, and nothing has followed from it yet.
    asked: bool,
}

impl Heard {
    /// From now on. Within a runtime.
    pub fn begin() -> io::Result<Self> {
        let [terminate, interrupt, quit] =
            [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::quit()].map(signal);
        Ok(Self { terminate: terminate?, interrupt: interrupt?, quit: quit?, asked: false })
    }

    /// Waits until a process that serves nobody is to end: for the next program ([`Upgrade::begun`]) at SIGQUIT, where that accepts the configuration.
    pub async fn end(&mut self, upgrade: &Upgrade) {
        let Self { terminate, interrupt, quit, asked } = self;
        let replaced = async {
            loop {
                quit.recv().await;
                // Should this node lead before the answer is there, it is replaced as one that does.
                *asked = true;
                match upgrade.accepts().await {
                    Ok(()) => return,
                    Err(why) => tracing::warn!(%why, "the program is not replaced now"),
                }
                *asked = false;
            }
        };
        let signal = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
            () = replaced => {
                tracing::info!(program = %upgrade.program.display(), "the program is replaced");
                upgrade.begun.store(true, Ordering::Release);
                return;
            }
        };
        tracing::info!(signal, "godwit is told to end");
    }
}

impl Signals {
    /// Does what was `heard` already, and what will be.
    pub fn new(
        upgrade: &Arc<Upgrade>,
        sockets: &Arc<Sockets>,
        node: Arc<dyn Node>,
        heard: Heard,
        anew: &Arc<Anew>,
        leaving: CancellationToken,
    ) -> Self {
        let heard = Mutex::new(heard);
        let (upgrade, sockets, anew) = (Arc::clone(upgrade), Arc::clone(sockets), Arc::clone(anew));
        Self { upgrade, sockets, node, anew, leaving, heard }
    }

    /// The node ends. Whoever connects is refused at once, and another node may lead while the last requests end, unless a move is under way.
    fn leave(&self) -> ShutdownSignal {
        tracing::info!(signal = "SIGTERM", "godwit is told to end: requests in flight have their grace");
        self.sockets.only([]);
        if self.node.refuses().is_none() {
            self.leaving.cancel();
        }
        ShutdownSignal::GracefulTerminate
    }

    /// Waits until nothing is in flight.
    async fn idle(&self) {
        while self.node.in_flight() > 0 {
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Everything before the node ends for it; the error says why it cannot be now.
    async fn prepare(&self) -> Result<(), String> {
        if let Some(why) = self.node.refuses() {
            return Err(why);
        }
        self.upgrade.accepts().await?;
        self.node.accepts().await?;
        self.node.announce(true);
        // Whoever is left has heard it, or has said nothing for so long.
        let _ = tokio::time::timeout(FAREWELL, self.idle()).await;
        // A move may have begun meanwhile.
        self.node.refuses().map_or(Ok(()), |why| {
            self.node.announce(false);
            Err(why)
        })
    }

    /// Everything up to the moment when nothing is in flight; false: it was refused.
    async fn upgrade(&self) -> bool {
        if let Err(why) = self.prepare().await {
            tracing::warn!(%why, "the program is not replaced now");
            return false;
        }
        tracing::info!(program = %self.upgrade.program.display(), "the program is replaced");
        self.node.settle().await;
        let ended = async {
            self.sockets.close().await;
            self.node.end_sessions();
            let sessions = async {
                while self.node.sessions() > 0 {
                    tokio::time::sleep(LOOK).await;
                }
            };
            let _ = tokio::join!(self.idle(), tokio::time::timeout(SESSIONS, sessions));
        };
        let _ = tokio::time::timeout(DRAIN, ended).await;
        let (requests, sessions) = (self.node.in_flight(), self.node.sessions());
        if requests + sessions > 0 {
            tracing::warn!(requests, sessions, "what did not end in time is cut off");
        }
        self.upgrade.begun.store(true, Ordering::Release);
        true
    }
}

fn interrupted() -> ShutdownSignal {
    tracing::info!(signal = "SIGINT", "godwit is told to end at once");
    ShutdownSignal::FastShutdown
}

#[async_trait]
impl ShutdownSignalWatch for Signals {
    async fn recv(&self) -> ShutdownSignal {
        let mut heard = self.heard.lock().await;
        let Heard { terminate, interrupt, quit, asked } = &mut *heard;
        loop {
            if !std::mem::take(asked) {
                tokio::select! {
                    _ = terminate.recv() => return self.leave(),
                    _ = interrupt.recv() => return interrupted(),
                    // Whoever is connected here had better be somewhere else.
                    () = self.anew.begun() => return ShutdownSignal::FastShutdown,
                    _ = quit.recv() => {}
                }
            }
            tokio::select! {
                _ = terminate.recv() => return self.leave(),
                _ = interrupt.recv() => return interrupted(),
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::sync::atomic::AtomicU32;

    use super::*;

    /// A node in the middle of a move; how often it was asked.
    #[derive(Default)]
    struct Moving(AtomicU32);

    #[async_trait]
    impl Node for Moving {
        fn refuses(&self) -> Option<String> {
            self.0.fetch_add(1, Ordering::Relaxed);
            Some("orders is being moved".into())
        }

        async fn accepts(&self) -> Result<(), String> {
            Ok(())
        }

        fn announce(&self, _: bool) {}

        async fn settle(&self) {}

        fn in_flight(&self) -> usize {
            0
        }

        fn end_sessions(&self) {}

        fn sessions(&self) -> usize {
            0
        }
    }

    #[tokio::test]
    async fn who_leads_while_the_next_program_looks_at_the_configuration_is_still_to_be_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("godwit");
        std::fs::write(&program, "#!/bin/sh\nexec sleep 60\n").unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let upgrade = Arc::new(Upgrade { program, ..Upgrade::new("godwit.yaml".into()).unwrap() });
        let mut heard = Heard::begin().unwrap();
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::QUIT).unwrap();
        let leads = tokio::time::timeout(Duration::from_secs(1), heard.end(&upgrade)).await;
        assert!(leads.is_err() && heard.asked, "it has not answered yet");

        let node = Arc::new(Moving::default());
        let (sockets, anew) = (Arc::new(Sockets::default()), Arc::new(Anew::default()));
        let signals = Signals::new(&upgrade, &sockets, node.clone(), heard, &anew, CancellationToken::new());
        let ended = tokio::time::timeout(Duration::from_millis(100), signals.recv()).await;
        assert!(ended.is_err(), "refused");
        assert_eq!(node.0.load(Ordering::Relaxed), 1, "once");
    }
}
