//! The access log: one JSON line per request, sampled; errors always.
//!
//! Lines go through a bounded queue to a thread that writes them: a slow disk loses lines (and counts them), never slows
//! requests. The file is opened again when it was moved away, as logrotate does.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use http::Version;
use http::header::HOST;
use pingora::proxy::Session;
use serde::Serialize;

use super::error::Fault;
use super::exchange::Exchange;
use super::settings::AccessLog;
use super::{entrance, inet};
use crate::fronts::latencies::Sample;
use crate::fronts::now;
use crate::fronts::stopwatch::Segment;
use crate::telemetry::names;

/// Lines that wait for the thread.
const QUEUE: usize = 4096;
/// How often what was written is handed to the system, and the file is looked at.
const FLUSH: Duration = Duration::from_millis(500);

/// What is written of one request.
#[derive(Debug, Serialize)]
pub(super) struct Line<'a> {
    /// Milliseconds since 1970.
    pub(super) time: u64,
    pub(super) resource: Option<&'a str>,
    pub(super) zone: Option<&'a str>,
    pub(super) upstream: Option<String>,
    pub(super) client: Option<IpAddr>,
    pub(super) method: &'a str,
    pub(super) host: Option<&'a str>,
    pub(super) target: String,
    pub(super) protocol: &'a str,
    /// None: the client got no status.
    pub(super) status: Option<u16>,
    /// Why it failed.
    pub(super) fault: Option<&'a str>,
    pub(super) request_bytes: usize,
    pub(super) response_bytes: usize,
    pub(super) id: Option<&'a str>,
    pub(super) attempts: u32,
    pub(super) held_ms: f64,
    pub(super) total_ms: f64,
    /// Where the time went, of a request that was answered whole.
    pub(super) connect_ms: Option<f64>,
    pub(super) first_byte_ms: Option<f64>,
    pub(super) body_ms: Option<f64>,
}

/// What the access log says of a request.
pub(super) fn line<'a>(
    session: &'a Session,
    exchange: &'a Exchange,
    sample: &'a Sample,
    at: Option<SocketAddr>,
) -> Line<'a> {
    let request = session.req_header();
    let ms = |span: Duration| (span.as_secs_f64() * 1e6).round() / 1e3;
    let segment = |segment| sample.segments.as_ref().map(|segments| ms(segments.get(segment)));
    let host = request.headers.get(HOST).and_then(|host| host.to_str().ok());
    Line {
        time: crate::clock::now().0,
        resource: sample.resource.as_deref(),
        zone: sample.zone.as_deref(),
        upstream: at.map(|at| at.to_string()),
        client: entrance::ip(inet(session.client_addr())),
        method: request.method.as_str(),
        host: host.or_else(|| request.uri.host()),
        target: String::from_utf8_lossy(request.raw_path()).into_owned(),
        protocol: match request.version {
            Version::HTTP_2 => "HTTP/2",
            Version::HTTP_10 => "HTTP/1.0",
            _ => "HTTP/1.1",
        },
        status: session.response_written().map(|header| header.status.as_u16()),
        fault: exchange.fault.map(Fault::label),
        request_bytes: session.body_bytes_read(),
        response_bytes: session.body_bytes_sent(),
        id: std::str::from_utf8(&exchange.id).ok().filter(|id| !id.is_empty()),
        attempts: exchange.attempts,
        held_ms: ms(exchange.watch.hold()),
        total_ms: ms(exchange.watch.total(now())),
        connect_ms: segment(Segment::Connect),
        first_byte_ms: segment(Segment::FirstByte),
        body_ms: segment(Segment::Body),
    }
}

/// Where lines are left.
pub struct Access {
    /// Of 2^64.
    threshold: u64,
    queue: Option<SyncSender<Vec<u8>>>,
    lost: AtomicU64,
}

impl Access {
    /// Opens the file and starts the thread; without a file lines go to the log of this process.
    pub fn open(settings: &AccessLog) -> io::Result<Self> {
        let queue = match &settings.file {
            Some(path) => {
                let (queue, lines) = sync_channel(QUEUE);
                let mut file = LogFile::open(path)?;
                std::thread::Builder::new().name("access log".into()).spawn(move || file.write(&lines))?;
                Some(queue)
            }
            None => None,
        };
        let threshold = (settings.sample.get() * u64::MAX as f64) as u64;
        Ok(Self { threshold, queue, lost: AtomicU64::new(0) })
    }

    /// Whether a request is logged; an error always is.
    pub(super) fn wants(&self, error: bool) -> bool {
        error || self.threshold == u64::MAX || crate::rng::quick() < self.threshold
    }

    /// Leaves a line; never waits.
    pub(super) fn leave(&self, line: &Line<'_>) {
        let Ok(mut text) = serde_json::to_vec(line) else { return };
        match &self.queue {
            Some(queue) => {
                text.push(b'\n');
                if queue.try_send(text).is_err() {
                    self.lost.fetch_add(1, Relaxed);
                }
            }
            None => tracing::info!(target: "godwit::access", "{}", String::from_utf8_lossy(&text)),
        }
    }

    /// Counts what was lost since the last time.
    pub fn measure(&self) {
        let lost = self.lost.swap(0, Relaxed);
        if lost > 0 {
            metrics::counter!(names::ACCESS_LINES_LOST).increment(lost);
        }
    }
}

struct LogFile {
    path: PathBuf,
    file: BufWriter<File>,
    failed: bool,
}

impl LogFile {
    fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), file: append(path)?, failed: false })
    }

    /// Until nobody can leave a line any more.
    fn write(&mut self, lines: &Receiver<Vec<u8>>) {
        loop {
            let written = match lines.recv_timeout(FLUSH) {
                Ok(line) => self.file.write_all(&line),
                Err(RecvTimeoutError::Timeout) => self.file.flush().and_then(|()| self.follow()),
                Err(RecvTimeoutError::Disconnected) => {
                    // Nobody is left to tell.
                    let _ = self.file.flush();
                    return;
                }
            };
            match written {
                Ok(()) => self.failed = false,
                Err(error) if !self.failed => {
                    tracing::warn!(path = %self.path.display(), %error, "the access log cannot be written");
                    self.failed = true;
                }
                Err(_) => {}
            }
        }
    }

    /// Opens the file again if another is there under its name, or none.
    fn follow(&mut self) -> io::Result<()> {
        let own = self.file.get_ref().metadata()?;
        let there = std::fs::metadata(&self.path).ok();
        if there.is_none_or(|there| (there.dev(), there.ino()) != (own.dev(), own.ino())) {
            self.file = append(&self.path)?;
        }
        Ok(())
    }
}

fn append(path: &Path) -> io::Result<BufWriter<File>> {
    File::options().append(true).create(true).open(path).map(BufWriter::new)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use migration::units::Ratio;

    use super::*;

    fn line(status: u16) -> Line<'static> {
        Line {
            time: 1,
            resource: Some("orders"),
            zone: None,
            upstream: None,
            client: None,
            method: "GET",
            host: None,
            target: "/\"\n".into(),
            protocol: "HTTP/1.1",
            status: Some(status),
            fault: None,
            request_bytes: 0,
            response_bytes: 0,
            id: None,
            attempts: 1,
            held_ms: 0.0,
            total_ms: 0.25,
            connect_ms: None,
            first_byte_ms: None,
            body_ms: None,
        }
    }

    fn read(path: &Path, lines: usize) -> Vec<serde_json::Value> {
        for _ in 0..1000 {
            let text = std::fs::read_to_string(path).unwrap_or_default();
            if text.lines().count() >= lines {
                return text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("{} did not get {lines} lines", path.display());
    }

    #[test]
    fn lines_reach_the_file_also_after_it_was_moved() {
        let folder = tempfile::tempdir().unwrap();
        let (path, moved) = (folder.path().join("access"), folder.path().join("access.1"));
        let settings = AccessLog { file: Some(path.clone()), sample: Ratio::new(1.0).unwrap() };
        let access = Access::open(&settings).unwrap();
        access.leave(&line(200));
        let lines = read(&path, 1);
        assert_eq!((&lines[0]["status"], &lines[0]["target"]), (&200.into(), &"/\"\n".into()));
        std::fs::rename(&path, &moved).unwrap();
        for _ in 0..1000 {
            if path.exists() {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        access.leave(&line(503));
        assert_eq!(read(&path, 1)[0]["status"], 503);
        assert_eq!(read(&moved, 1).len(), 1);
    }

    #[test]
    fn a_share_is_logged_and_every_error() {
        let of =
            |sample| Access::open(&AccessLog { file: None, sample: Ratio::new(sample).unwrap() }).unwrap();
        let logged = (0..10_000).filter(|_| of(0.1).wants(false)).count();
        assert!((700..1300).contains(&logged), "{logged}");
        assert!(of(0.0).wants(true) && !of(0.0).wants(false) && of(1.0).wants(false));
    }
}
