//! The access log: one JSON line per request, sampled; errors always.
//!
//! Lines go through a bounded queue to a thread that writes them: a slow disk loses lines (and counts them), never slows
//! requests. The file is opened again when it was moved away, as logrotate does.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use http::Version;
use http::header::HOST;
use pingora::proxy::Session;
use serde::Serialize;

use super::error::Fault;
use super::exchange::Exchange;
use super::settings::AccessLog;
use super::{ending, entrance, inet};
use crate::fronts::latencies::Sample;
use crate::fronts::now;
use crate::fronts::stopwatch::Segment;
use crate::telemetry::names;
use crate::traces::{Fact, Place, Span};

/// Lines that wait for the thread.
const QUEUE: usize = 4096;
/// How often what was written is handed to the system, and the file is looked at.
const FLUSH: Duration = Duration::from_millis(500);
/// How often it is looked whether a full queue has room again.
const FULL: Duration = Duration::from_millis(5);

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
    /// The configured route; none: the request is of none.
    pub(super) route: Option<&'a str>,
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
        route: exchange.route.as_deref(),
        status: ending::response(session).map(|header| header.status.as_u16()),
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

impl Line<'_> {
    /// The same for whoever follows traces.
    pub(super) fn span(self, place: Place) -> Span {
        let text = |name, value: Option<&str>| Some((name, Fact::Text(value?.to_owned())));
        let measure = |name, value: Option<f64>| Some((name, Fact::Measure(value?)));
        let bytes = |name, bytes: usize| Some((name, Fact::Count(i64::try_from(bytes).unwrap_or(i64::MAX))));
        let (path, query) = self.target.split_once('?').unwrap_or((&self.target, ""));
        let facts = [
            text("http.request.method", Some(self.method)),
            text("url.path", Some(path)),
            text("url.query", Some(query).filter(|query| !query.is_empty())),
            text("server.address", self.host),
            text("network.protocol.version", self.protocol.split_once('/').map(|(_, version)| version)),
            text("http.route", self.route),
            text("error.type", self.fault),
            text("godwit.resource", self.resource),
            text("godwit.zone", self.zone),
            text("godwit.upstream", self.upstream.as_deref()),
            self.client.map(|client| ("client.address", Fact::Text(client.to_string()))),
            self.status.map(|status| ("http.response.status_code", Fact::Count(status.into()))),
            bytes("http.request.body.size", self.request_bytes),
            bytes("http.response.body.size", self.response_bytes),
            Some(("godwit.attempts", Fact::Count(self.attempts.into()))),
            measure("godwit.held_ms", Some(self.held_ms)),
            measure("godwit.connect_ms", self.connect_ms),
            measure("godwit.first_byte_ms", self.first_byte_ms),
            measure("godwit.body_ms", self.body_ms),
        ];
        let failed = match (self.fault, self.status) {
            (Some(fault), _) => Some(fault.to_owned()),
            (None, Some(status @ 500..)) => Some(format!("status {status}")),
            (None, None) => Some("no answer".into()),
            (None, Some(_)) => None,
        };
        let ended = Duration::from_millis(self.time);
        let name = match self.route {
            Some(route) => format!("{} {route}", self.method),
            None => self.method.to_owned(),
        };
        Span {
            place,
            name: name.into(),
            serves: true,
            began: ended.saturating_sub(Duration::from_secs_f64(self.total_ms / 1e3)),
            ended,
            facts: facts.into_iter().flatten().collect(),
            failed,
        }
    }
}

/// Where lines are left.
pub struct Access {
    /// Of 2^64.
    threshold: u64,
    queue: Option<SyncSender<Left>>,
    lost: Arc<AtomicU64>,
}

/// What is left for the thread.
enum Left {
    Line(Vec<u8>),
    /// Everything before it is to be handed to the system now; whoever waits for that is told.
    All(SyncSender<()>),
}

impl Access {
    /// Starts the thread that opens the file, now or as soon as that can be; without a file lines go to the log of this process.
    pub fn open(settings: &AccessLog) -> io::Result<Self> {
        let lost = Arc::new(AtomicU64::new(0));
        let queue = match &settings.file {
            Some(path) => {
                let (queue, lines) = sync_channel(QUEUE);
                let mut file = LogFile::open(path, lost.clone());
                std::thread::Builder::new().name("access log".into()).spawn(move || file.write(&lines))?;
                Some(queue)
            }
            None => None,
        };
        let threshold = (settings.sample.get() * u64::MAX as f64) as u64;
        Ok(Self { threshold, queue, lost })
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
                if queue.try_send(Left::Line(text)).is_err() {
                    self.lost.fetch_add(1, Relaxed);
                }
            }
            None => tracing::info!(target: "godwit::access", "{}", String::from_utf8_lossy(&text)),
        }
    }

    /// Waits until what was left is written, for so long at most: what this process keeps goes with it.
    pub fn write_out(&self, patience: Duration) {
        let Some(queue) = &self.queue else { return };
        let (told, written) = sync_channel(1);
        let deadline = now() + patience;
        // While the queue is full the thread writes.
        while let Err(TrySendError::Full(_)) = queue.try_send(Left::All(told.clone())) {
            if now() >= deadline {
                return;
            }
            std::thread::sleep(FULL);
        }
        let _ = written.recv_timeout(deadline.saturating_duration_since(now()));
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
    /// None: it could not be opened so far, which keeps nobody from being served.
    file: Option<BufWriter<File>>,
    failed: bool,
    lost: Arc<AtomicU64>,
}

impl LogFile {
    fn open(path: &Path, lost: Arc<AtomicU64>) -> Self {
        let mut file = Self { path: path.to_owned(), file: None, failed: false, lost };
        let opened = file.follow();
        file.noted(opened);
        file
    }

    /// Until nobody can leave a line any more.
    fn write(&mut self, left: &Receiver<Left>) {
        let mut due = now() + FLUSH;
        loop {
            let mut written = match left.recv_timeout(due.saturating_duration_since(now())) {
                Ok(Left::Line(line)) => self.append(&line),
                Ok(Left::All(told)) => {
                    let written = self.flush();
                    let _ = told.try_send(());
                    written
                }
                Err(RecvTimeoutError::Timeout) => Ok(()),
                Err(RecvTimeoutError::Disconnected) => {
                    // Nobody is left to tell.
                    let _ = self.flush();
                    return;
                }
            };
            // Where lines come all the time there is never a pause.
            if now() >= due {
                written = written.and(self.flush()).and_then(|()| self.follow());
                due = now() + FLUSH;
            }
            // Between two looks nothing tells whether it could be opened by now.
            if written.is_err() || self.file.is_some() {
                self.noted(written);
            }
        }
    }

    fn noted(&mut self, written: io::Result<()>) {
        match written {
            Ok(()) => self.failed = false,
            Err(error) if !self.failed => {
                tracing::error!(path = %self.path.display(), %error, "the access log cannot be written");
                self.failed = true;
            }
            Err(_) => {}
        }
    }

    fn append(&mut self, line: &[u8]) -> io::Result<()> {
        let Some(file) = &mut self.file else {
            self.lost.fetch_add(1, Relaxed);
            return Ok(());
        };
        let written = file.write_all(line);
        if written.is_err() {
            self.lost.fetch_add(1, Relaxed);
        }
        written
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.as_mut().map_or(Ok(()), BufWriter::flush)
    }

    /// Opens the file again if another is there under its name, or none.
    fn follow(&mut self) -> io::Result<()> {
        if let Some(file) = &self.file {
            let own = file.get_ref().metadata()?;
            let there = std::fs::metadata(&self.path).ok();
            if there.is_some_and(|there| (there.dev(), there.ino()) == (own.dev(), own.ino())) {
                return Ok(());
            }
        }
        let another = append(&self.path)?;
        if let Some(mut file) = self.file.replace(another)
            && file.flush().is_err()
        {
            let lines = file.buffer().iter().filter(|byte| **byte == b'\n').count();
            self.lost.fetch_add(lines as u64, Relaxed);
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

    #[test]
    fn lines_that_a_full_disk_refuses_are_counted() {
        let lost = Arc::new(AtomicU64::new(0));
        let mut file = LogFile::open(Path::new("/dev/full"), Arc::clone(&lost));
        let line = [&[b'x'; 1023][..], b"\n"].concat();
        let refused = (0..20).filter(|_| file.append(&line).is_err()).count();
        assert!(refused > 0 && lost.load(Relaxed) == refused as u64, "{refused}");
        // What was taken so far goes with the file.
        let directory = tempfile::tempdir().unwrap();
        file.path = directory.path().join("access.log");
        file.follow().unwrap();
        assert_eq!(lost.load(Relaxed), 20);
    }

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
            route: None,
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

    #[test]
    fn a_span_says_what_the_line_says() {
        let place = Place { trace: [1; 16], span: [2; 8], parent: None };
        let made = |line: Line<'_>| line.span(place);
        let span = made(Line { time: 1_000, target: "/pay?card=1".into(), route: Some("pay"), ..line(200) });
        assert_eq!((&*span.name, span.failed.as_deref()), ("GET pay", None));
        assert_eq!((span.began, span.ended), (Duration::from_micros(999_750), Duration::from_secs(1)));
        for fact in [
            ("url.path", Fact::Text("/pay".into())),
            ("url.query", Fact::Text("card=1".into())),
            ("http.response.status_code", Fact::Count(200)),
            ("godwit.resource", Fact::Text("orders".into())),
        ] {
            assert!(span.facts.contains(&fact), "{fact:?}");
        }
        assert_eq!(made(line(503)).failed.as_deref(), Some("status 503"));
        assert_eq!(
            made(Line { fault: Some("no-upstream"), ..line(502) }).failed.as_deref(),
            Some("no-upstream")
        );
        assert!(made(Line { status: None, ..line(0) }).failed.is_some(), "it got no answer");
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
        // Lines go on coming, as those of a service in use.
        for _ in 0..1000 {
            if path.exists() {
                break;
            }
            access.leave(&line(200));
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(path.exists(), "it is not written to where it was");
        access.leave(&line(503));
        access.write_out(Duration::from_secs(30));
        let text = std::fs::read_to_string(&path).unwrap();
        let last: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        assert_eq!(last["status"], 503);
    }

    #[test]
    fn a_file_that_cannot_be_opened_keeps_nobody_from_being_served() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("later/access");
        let settings = AccessLog { file: Some(path.clone()), sample: Ratio::new(1.0).unwrap() };
        let access = Access::open(&settings).unwrap();
        access.leave(&line(200));
        access.write_out(Duration::from_secs(30));
        assert_eq!(access.lost.load(Relaxed), 1);
        std::fs::create_dir(folder.path().join("later")).unwrap();
        for _ in 0..1000 {
            if path.exists() {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        access.leave(&line(503));
        assert_eq!(read(&path, 1)[0]["status"], 503);
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
