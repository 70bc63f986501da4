//! Service workers: detached processes with pid files, so that they outlive this process and are found again.
//!
//! A worker is signalled only when pid, start time and boot all match: a recycled pid is never touched. Only the
//! worker itself is signalled, not what it started.

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::io::{Read, Seek, SeekFrom};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::PASSED_ON;
use super::identity::Identity;
use crate::config::model::ProcessDriver;
use crate::drivers::error::io;
use crate::drivers::{DriverError, UnreadyWorker, passed_on};

/// Environment variable by which a worker is recognised when its pid file is missing.
const MARK: &str = "GODWIT_WORKER";
/// Environment variable with the service's connection string: what stands in a command line everybody on the machine can read.
const DSN: &str = "DATABASE_URL";
/// A log longer than this is set aside when its worker starts again.
const LOG_BYTES: u64 = 16 << 20;
/// How much of a log an error quotes.
const TAIL_BYTES: u64 = 2048;
const TAIL_LINES: usize = 5;
/// Longest single try of a ready path.
const PROBE: Duration = Duration::from_secs(1);
/// First and longest pause between two looks at a worker.
const PAUSES: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(200));
/// First and longest pause before a worker that keeps dying is started again.
const RESTARTS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));

/// The workers of one placement.
#[derive(Debug)]
pub(super) struct Workers {
    settings: ProcessDriver,
    /// Children of this process, to be reaped; adopted ones are not among them.
    children: HashMap<usize, Child>,
    exits: HashMap<usize, String>,
    restarts: HashMap<usize, Restart>,
}

#[derive(Clone, Copy, Debug)]
struct Restart {
    pause: Duration,
    last: Instant,
}

impl Workers {
    pub(super) fn new(settings: ProcessDriver) -> Self {
        Self { settings, children: HashMap::new(), exits: HashMap::new(), restarts: HashMap::new() }
    }

    fn file(&self, index: usize, kind: &str) -> PathBuf {
        self.settings.directory.join(format!("worker-{index}.{kind}"))
    }

    fn mark(&self, index: usize) -> String {
        format!("{MARK}={}", self.file(index, "pid").display())
    }

    /// The process of this worker, if it runs.
    pub(super) fn running(&mut self, index: usize) -> Option<Identity> {
        if let Some(child) = self.children.get_mut(&index)
            && let Ok(Some(status)) = child.try_wait()
        {
            self.exits.insert(index, status.to_string());
            self.children.remove(&index);
        }
        Identity::read(&self.file(index, "pid")).filter(Identity::alive)
    }

    /// Numbers of the pid files that are there, highest first; a larger configuration may have left some.
    pub(super) fn known(&self) -> Result<Vec<usize>, DriverError> {
        let directory = &self.settings.directory;
        let listed = std::fs::read_dir(directory)
            .map_err(|source| io(format!("list {}", directory.display()), source))?;
        let mut known: Vec<usize> = listed
            .flatten()
            .filter_map(|entry| {
                let name = entry.file_name();
                name.to_str()?.strip_prefix("worker-")?.strip_suffix(".pid")?.parse().ok()
            })
            .collect();
        known.sort_unstable_by(|a, b| b.cmp(a));
        Ok(known)
    }

    /// Starts the worker unless it runs; true when it was started.
    pub(super) fn ensure(&mut self, index: usize) -> Result<bool, DriverError> {
        if self.running(index).is_some() {
            return Ok(false);
        }
        let listen = self.address(index)?;
        if let Err(error) = std::net::TcpListener::bind(listen) {
            // Ours without its pid file (we were killed in between), or somebody else's.
            if error.kind() == std::io::ErrorKind::AddrInUse
                && let Some(orphan) = Identity::find(&self.mark(index))?
            {
                tracing::warn!(worker = index, pid = orphan.pid, "adopted a worker that had no pid file");
                orphan.write(&self.file(index, "pid"))?;
                return Ok(false);
            }
            return Err(DriverError::NotOurs { what: listen.to_string(), why: error.to_string() });
        }
        self.start(index, listen)?;
        Ok(true)
    }

    fn address(&self, index: usize) -> Result<SocketAddr, DriverError> {
        self.settings.listen.get(index).copied().ok_or(DriverError::Capacity {
            asked: u32::try_from(index + 1).unwrap_or(u32::MAX),
            most: u32::try_from(self.settings.listen.len()).unwrap_or(u32::MAX),
        })
    }

    fn start(&mut self, index: usize, listen: SocketAddr) -> Result<(), DriverError> {
        let fill = |argument: &String| {
            argument.replace("{listen}", &listen.to_string()).replace("{dsn}", &self.settings.service_dsn)
        };
        let mut argv = self.settings.argv.iter().map(fill);
        let Some(program) = argv.next() else {
            return Err(io(
                "start a worker without a program".into(),
                std::io::ErrorKind::InvalidInput.into(),
            ));
        };
        let path = self.file(index, "log");
        let log = open_log(&path).map_err(|source| io(format!("open {}", path.display()), source))?;
        let error = log.try_clone().map_err(|source| io(format!("open {}", path.display()), source))?;
        let dsn = Some(&self.settings.service_dsn).filter(|dsn| !dsn.is_empty());
        let child = Command::new(&program)
            .args(argv)
            .env_clear()
            .envs(passed_on(&PASSED_ON))
            .envs(dsn.map(|dsn| (DSN, dsn)))
            .envs(self.settings.environment.iter().map(|(name, value)| (name, &value.0)))
            .env(MARK, self.file(index, "pid"))
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(error)
            // Its own group: neither Ctrl-C on our terminal nor our death ends it.
            .process_group(0)
            .spawn()
            .map_err(|source| io(format!("start worker {index}: {program}"), source))?;
        let pid = child.id().cast_signed();
        self.exits.remove(&index);
        self.children.insert(index, child);
        // Not reaped yet, so it is there, if only as a zombie.
        let identity = Identity::of(pid)?
            .ok_or_else(|| io(format!("read /proc/{pid}/stat"), std::io::ErrorKind::NotFound.into()))?;
        identity.write(&self.file(index, "pid"))?;
        tracing::info!(worker = index, %listen, pid, "worker started");
        Ok(())
    }

    /// Starts the workers below `capacity` that died, each after a pause that doubles while it keeps dying.
    pub(super) fn mend(&mut self, capacity: usize) -> Result<Vec<usize>, DriverError> {
        let mut started = Vec::new();
        for index in 0..capacity {
            if self.running(index).is_some() {
                if self.restarts.get(&index).is_some_and(|restart| restart.last.elapsed() > RESTARTS.1) {
                    self.restarts.remove(&index);
                }
                continue;
            }
            let now = crate::clock::tick();
            let before = self.restarts.get(&index).copied();
            if before.is_some_and(|restart| now < restart.last + restart.pause) {
                continue;
            }
            let pause = before.map_or(RESTARTS.0, |restart| (restart.pause * 2).min(RESTARTS.1));
            self.restarts.insert(index, Restart { pause, last: now });
            if self.ensure(index)? {
                let exit = self.exits.get(&index).map_or("unknown", String::as_str);
                tracing::warn!(worker = index, exit, "a worker had died and was started again");
                started.push(index);
            }
        }
        Ok(started)
    }

    /// Waits until every worker below `capacity` answers: who runs and does not when the time is over, with what was seen instead. That one
    /// has ended is an error at once.
    pub(super) async fn await_ready(
        &mut self,
        capacity: usize,
        within: Duration,
    ) -> Result<Vec<(usize, String)>, DriverError> {
        let deadline = crate::clock::tick() + within;
        let mut waiting: Vec<usize> = (0..capacity).collect();
        let mut pause = PAUSES.0;
        loop {
            let answers = self.probe(&waiting).await;
            let (mut still, mut ended) = (Vec::new(), Vec::new());
            for (index, answer) in waiting.into_iter().zip(answers) {
                // Looked at after the answer: another process may answer on the address of a worker that failed to bind.
                let runs = self.running(index).is_some();
                match answer {
                    Ok(()) if runs => {}
                    Err(why) if runs => still.push((index, why)),
                    _ => {
                        let exit = self.exits.get(&index).map_or("unknown exit status", String::as_str);
                        ended.push(self.unready(index, format!("ended ({exit})")));
                    }
                }
            }
            if !ended.is_empty() {
                return Err(DriverError::NotReady { workers: ended });
            }
            if still.is_empty() || crate::clock::tick() >= deadline {
                return Ok(still);
            }
            waiting = still.into_iter().map(|(index, _)| index).collect();
            tokio::time::sleep(pause.min(deadline.saturating_duration_since(crate::clock::tick()))).await;
            pause = (pause * 2).min(PAUSES.1);
        }
    }

    /// That these have not answered for so long.
    pub(super) fn not_ready(&self, late: Vec<(usize, String)>, waited: Duration) -> DriverError {
        let late = late.into_iter();
        let workers = late.map(|(index, why)| self.unready(index, format!("{why} for {waited:?}"))).collect();
        DriverError::NotReady { workers }
    }

    fn unready(&self, index: usize, why: String) -> UnreadyWorker {
        let listen = self.settings.listen.get(index).copied().unwrap_or_else(|| ([0, 0, 0, 0], 0).into());
        UnreadyWorker { index, listen, why, log: tail(&self.file(index, "log")) }
    }

    /// Asks each of these workers' ready path once, all at the same time.
    async fn probe(&self, indices: &[usize]) -> Vec<Result<(), String>> {
        let probes = indices.iter().map(|index| {
            let listen = self.settings.listen.get(*index).copied();
            let ready = self.settings.ready.clone();
            async move {
                let Some(listen) = listen else { return Err("has no address".to_owned()) };
                let failed = "did not answer".to_owned();
                tokio::time::timeout(PROBE, probe(listen, &ready)).await.unwrap_or(Err(failed))
            }
        });
        futures_util::future::join_all(probes).await
    }

    /// How many workers below `capacity` run and answer.
    pub(super) async fn ready(&mut self, capacity: usize) -> u32 {
        let running: Vec<usize> = (0..capacity).filter(|index| self.running(*index).is_some()).collect();
        let answers = self.probe(&running).await;
        u32::try_from(answers.iter().filter(|answer| answer.is_ok()).count()).unwrap_or(u32::MAX)
    }

    /// Ends the workers from `keep` upwards: SIGTERM, and SIGKILL after `within`.
    pub(super) async fn stop_above(&mut self, keep: usize, within: Duration) -> Result<(), DriverError> {
        let mut ending = Vec::new();
        for index in self.known()? {
            if index < keep {
                continue;
            }
            match self.running(index) {
                Some(identity) if identity.signal(Signal::TERM)? => ending.push((index, identity)),
                _ => self.forget(index)?,
            }
        }
        let deadline = crate::clock::tick() + within;
        self.await_gone(&mut ending, deadline).await?;
        for (index, identity) in &ending {
            tracing::warn!(worker = index, pid = identity.pid, "killed: it had not ended after {within:?}");
            identity.signal(Signal::KILL)?;
        }
        self.await_gone(&mut ending, crate::clock::tick() + within).await?;
        match ending.first() {
            None => Ok(()),
            Some((index, identity)) => Err(io(
                format!("end worker {index}, process {}: it survives SIGKILL", identity.pid),
                std::io::ErrorKind::TimedOut.into(),
            )),
        }
    }

    async fn await_gone(
        &mut self,
        ending: &mut Vec<(usize, Identity)>,
        deadline: Instant,
    ) -> Result<(), DriverError> {
        let mut pause = PAUSES.0;
        loop {
            let mut gone = Vec::new();
            ending.retain(|(index, _)| {
                let runs = self.running(*index).is_some();
                if !runs {
                    gone.push(*index);
                }
                runs
            });
            for index in gone {
                self.forget(index)?;
            }
            if ending.is_empty() || crate::clock::tick() >= deadline {
                return Ok(());
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSES.1);
        }
    }

    fn forget(&mut self, index: usize) -> Result<(), DriverError> {
        self.restarts.remove(&index);
        let path = self.file(index, "pid");
        match std::fs::remove_file(&path) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                Err(io(format!("remove {}", path.display()), source))
            }
            _ => Ok(()),
        }
    }

    /// SIGKILL to every worker, at once and without waiting; for a playground that is being removed.
    pub(super) fn kill_all(&mut self) -> Result<(), DriverError> {
        for index in self.known()? {
            if let Some(identity) = self.running(index) {
                identity.signal(Signal::KILL)?;
            }
            if let Some(mut child) = self.children.remove(&index) {
                let failed = |source| io(format!("end worker {index}"), source);
                child.kill().map_err(failed)?;
                child.wait().map_err(failed)?;
            }
            self.forget(index)?;
        }
        Ok(())
    }
}

/// One GET on a connection of its own.
async fn probe(listen: SocketAddr, path: &str) -> Result<(), String> {
    let stream = tokio::net::TcpStream::connect(listen)
        .await
        .map_err(|error| format!("refused the connection ({error})"))?;
    let broken = |error: hyper::Error| format!("broke the connection ({error})");
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(stream)).await.map_err(broken)?;
    let request = http::Request::get(path)
        .header(http::header::HOST, listen.to_string())
        .header(http::header::CONNECTION, "close")
        .body(http_body_util::Empty::<bytes::Bytes>::new())
        .map_err(|error| format!("cannot be asked for {path} ({error})"))?;
    let _connection = AbortOnDropHandle::new(tokio::spawn(connection));
    match sender.send_request(request).await.map_err(broken)?.status() {
        http::StatusCode::OK => Ok(()),
        other => Err(format!("answered {} on {path}", other.as_u16())),
    }
}

fn open_log(path: &Path) -> std::io::Result<std::fs::File> {
    if std::fs::metadata(path).is_ok_and(|metadata| metadata.len() > LOG_BYTES) {
        std::fs::rename(path, path.with_extension("log.1"))?;
    }
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

/// The last lines of a log, joined by `|`.
fn tail(path: &Path) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = std::fs::File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join(" | ")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::feeds::external::Secret;

    #[test]
    fn a_worker_gets_what_is_for_it() {
        let home = tempfile::tempdir().unwrap();
        let written = home.path().join("environment");
        let script = "env > \"$0.new\"; mv \"$0.new\" \"$0\"; exec sleep 600";
        let argv = ["/bin/sh", "-c", script, &written.display().to_string()].map(str::to_owned).to_vec();
        let mut workers = Workers::new(ProcessDriver {
            directory: home.path().to_owned(),
            argv,
            listen: Vec::new(),
            service_dsn: "postgres://shop:pw@127.0.0.1/shop".into(),
            environment: [("TOKEN".to_owned(), Secret("s3cret".into()))].into(),
            ready: "/healthz".into(),
            cluster: None,
        });
        workers.start(0, ([127, 0, 0, 1], 1).into()).unwrap();
        while !written.exists() {
            std::thread::sleep(PAUSES.0);
        }
        workers.kill_all().unwrap();
        let text = std::fs::read_to_string(&written).unwrap();
        for line in ["DATABASE_URL=postgres://shop:pw@127.0.0.1/shop", "TOKEN=s3cret"] {
            assert!(text.lines().any(|one| one == line), "{text}");
        }
        // What is set for this process only.
        assert!(std::env::var_os("CARGO_MANIFEST_DIR").is_some());
        assert!(!text.contains("CARGO_MANIFEST_DIR"), "{text}");
    }

    #[test]
    fn quotes_the_last_lines_only() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        assert_eq!(tail(&path), "");
        let text = (0..500).map(|i| format!("line {i}\n")).collect::<Vec<_>>().join("\n");
        std::fs::write(&path, text).unwrap();
        assert_eq!(tail(&path), "line 495 | line 496 | line 497 | line 498 | line 499");
    }
}
