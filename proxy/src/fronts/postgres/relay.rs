//! The relay: bytes between a client and its database, cut into messages only as far as needed to know where transactions end.
//!
//! While a session is idle it owns no buffer: both directions read into one that belongs to the thread, and what the other side
//! takes at once is never copied. What it does not take at once stops the reading, so a session never holds more than that buffer's
//! size in each direction.
//!
//! While transactions may not begin, one unit at a time goes through until the session stands between transactions; what the client
//! has sent beyond stays here, and what it sends then stays in its socket.
//!
//! Where clients share connections, a session stands between transactions whenever it has nothing under way, and its statements'
//! names are rewritten as they pass ([`Statements`]).

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use replicator::postgres::{Peek, Socket};
use tokio::io::ReadBuf;

use super::backend::{Parameter, Parameters, set};
use super::protocol::frame::{Framer, HEADER, Malformed, Piece};
use super::protocol::message::{self, ServerError, read_text};
use super::protocol::names;
use super::protocol::oids::Oids;
use super::protocol::statements::{Rewritten, Statements, TooLong, UNNAMED};
use super::protocol::tracker::{Sent, Status, Tracker};
use crate::fronts::now;
use crate::fronts::stopwatch::Outcome;

/// The thread's buffer.
const SCRATCH: usize = 64 << 10;
/// A client's message up to this size is awaited whole before any of it goes on.
const WHOLE: usize = 16 << 10;
/// The same for those of the server's messages that are looked into.
const LOOKED_INTO: usize = 1 << 20;
/// A client that shares connections: a statement with a name is awaited whole, up to this size.
const NAMED: usize = 1 << 20;
/// How much of what a held client sends is read, so that it is noticed when it leaves.
const AHEAD: usize = 8 << 10;
/// How long the end of a session may take.
const LINGER: Duration = Duration::from_secs(5);
/// How a unit ends that has no error, and one whose error is the server's.
const WORKED: Outcome = Outcome::Status(200);
const FAILED: Outcome = Outcome::Status(500);
/// A buffer that grew beyond this is given back once it is empty.
const KEPT: usize = 1 << 10;

thread_local! {
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH].into_boxed_slice());
}

/// What the relay needs somebody else for.
#[derive(Debug)]
pub(super) enum Event {
    /// It stands between transactions, and none may begin, or others may have its connection.
    Boundary,
    /// While parked: the client wants something.
    ClientWaits,
    /// The client said goodbye or is gone.
    ClientGone,
    /// The database is gone.
    BackendGone,
    /// A message that is none; true: the client's.
    Malformed(Malformed, bool),
    /// The client's statement cannot be shared.
    TooLong(TooLong),
}

/// Why the client's bytes do not go on.
enum Stop {
    Malformed(Malformed),
    TooLong(TooLong),
}

impl From<Malformed> for Stop {
    fn from(malformed: Malformed) -> Self {
        Self::Malformed(malformed)
    }
}

impl From<TooLong> for Stop {
    fn from(too_long: TooLong) -> Self {
        Self::TooLong(too_long)
    }
}

impl From<Stop> for Event {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::Malformed(malformed) => Self::Malformed(malformed, true),
            Stop::TooLong(too_long) => Self::TooLong(too_long),
        }
    }
}

/// A unit that was answered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Answered {
    /// When it was sent.
    pub(super) sent: Instant,
    /// From then to the first byte of the answer.
    pub(super) first_byte: Duration,
    /// From then to the last.
    pub(super) whole: Duration,
    /// Whether it ended with an error, and whose that is.
    pub(super) outcome: Outcome,
}

/// What the relay tells as it goes.
pub(super) trait Watch {
    /// Whether transactions may not begin; `reads`: of a session that only reads.
    fn closed(&self, reads: bool) -> bool;
    /// A unit was answered; only those that had the session for themselves.
    fn answered(&self, answered: Answered);
    /// A statement may set this custom setting.
    fn names(&self, name: &str);
    /// Whether others wait for a connection such as this one.
    fn wanted(&self) -> bool;
}

/// One session's two directions.
pub(super) struct Relay {
    pub(super) client: Box<dyn Socket>,
    /// None: gone, or lent.
    pub(super) backend: Option<Box<dyn Peek>>,
    pub(super) tracker: Tracker,
    /// What the server says of itself, as the client was told.
    pub(super) parameters: Parameters,
    /// The client shares connections: its statements.
    pub(super) shared: Option<Box<Statements>>,
    /// Types and tables as the client knows them.
    pub(super) oids: Box<Oids>,
    /// By what the server says of itself, the session's transactions only read.
    pub(super) reads: bool,
    /// A unit was sent since it has this connection.
    used: bool,
    /// The unnamed statement: a whole Parse message; none for who shares connections.
    pub(super) unnamed: Option<Vec<u8>>,
    /// The server's own number of the session, and the one that the client knows.
    pub(super) pids: (u32, u32),
    /// The server said that it ends the session.
    pub(super) told: bool,
    /// Sent to the client, not taken.
    pub(super) to_client: Vec<u8>,
    /// What the server says of itself that the client does not know yet. It hears it with its next answer: drivers that wait for
    /// notifications do not all expect it there (JDBC breaks off).
    news: Vec<Parameter>,
    /// Read from the server, not passed on.
    pub(super) from_backend: Vec<u8>,
    from_client: Vec<u8>,
    to_backend: Vec<u8>,
    client_cut: Framer,
    backend_cut: Framer,
    /// The client's bytes must wait for the server or the turnstile.
    stalled: bool,
    /// What is left over is to be looked at again.
    look_client: bool,
    look_backend: bool,
    /// It was told that the client waits.
    waits: bool,
    client_flush: bool,
    backend_flush: bool,
    sent: Option<Instant>,
    first_byte: Option<Instant>,
    outcome: Outcome,
}

impl Relay {
    /// A session that is ready for its first query. `ahead`: what the client has sent already. `shared`: it shares connections,
    /// and has none yet.
    pub(super) fn new(
        client: Box<dyn Socket>,
        ahead: Vec<u8>,
        parameters: Parameters,
        pid: u32,
        shared: Option<Box<Statements>>,
    ) -> Self {
        let least = if shared.is_some() { WHOLE } else { 0 };
        let reads = only_reads(&parameters);
        Self {
            client,
            backend: None,
            tracker: Tracker::default(),
            parameters,
            shared,
            oids: Box::default(),
            reads,
            used: false,
            unnamed: None,
            pids: (pid, pid),
            told: false,
            to_client: Vec::new(),
            news: Vec::new(),
            from_backend: Vec::new(),
            from_client: ahead,
            to_backend: Vec::new(),
            client_cut: Framer::with_least(least),
            backend_cut: Framer::default(),
            stalled: false,
            look_client: true,
            look_backend: true,
            waits: false,
            client_flush: false,
            backend_flush: false,
            sent: None,
            first_byte: None,
            outcome: WORKED,
        }
    }

    /// Between transactions, with nothing half said in either direction.
    pub(super) fn at_boundary(&self) -> bool {
        self.tracker.at_boundary()
            && self.client_cut.between()
            && self.backend_cut.between()
            && self.to_backend.is_empty()
    }

    /// The client has sent something that was not passed on.
    pub(super) fn client_waits(&self) -> bool {
        !self.from_client.is_empty()
    }

    /// It has this connection from here on.
    pub(super) fn attach(&mut self, socket: Box<dyn Peek>, received: Vec<u8>) {
        self.backend = Some(socket);
        self.from_backend = received;
        self.used = false;
        self.tracker.moved();
    }

    /// The client shares connections, and needs this one no more: it stands between transactions and has left nothing here, as far
    /// as that can be told from what passed.
    pub(super) fn gives_back(&self) -> bool {
        let Some(shared) = &self.shared else { return false };
        (!shared.pinned || shared.touched) && self.at_boundary() && (self.stalled || !self.sendable())
    }

    /// What the client has sent is enough to go on.
    fn sendable(&self) -> bool {
        let mut cut = self.client_cut;
        let enough = self.from_client.len() >= AHEAD;
        enough || !matches!(cut.next(&self.from_client, self.awaited(&self.from_client)), Ok(Piece::Short))
    }

    /// Up to what size a message that begins so is awaited whole.
    fn awaited(&self, bytes: &[u8]) -> usize {
        match bytes.first() {
            // A longer one begins with as much of it as is looked at.
            Some(b'Q' | b'P') if bytes.len() < HEADER + names::LOOK => usize::MAX,
            Some(b'P') if self.shared.is_some() => NAMED,
            Some(b'B') if self.oids.reads_binds() => NAMED,
            Some(b'P') => UNNAMED,
            _ => WHOLE,
        }
    }

    /// Moves bytes until there is an event. Nothing is lost when it is dropped in between. `parked`: nothing of the client's
    /// goes on, and of the server's only what may come at any time.
    pub(super) async fn run(&mut self, watch: &impl Watch, parked: bool) -> Event {
        (self.look_client, self.look_backend) = (true, true);
        self.waits &= parked;
        std::future::poll_fn(|cx| BUFFER.with_borrow_mut(|scratch| self.poll(cx, watch, parked, scratch)))
            .await
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        watch: &impl Watch,
        parked: bool,
        scratch: &mut [u8],
    ) -> Poll<Event> {
        loop {
            let mut moved = false;
            match self.poll_backend(cx, watch, parked, scratch) {
                Ok(more) => moved |= more,
                Err(event) => return Poll::Ready(event),
            }
            match self.poll_client(cx, watch, parked, scratch) {
                Ok(more) => moved |= more,
                Err(event) => return Poll::Ready(event),
            }
            if !parked && (watch.closed(self.reads) && self.at_boundary() || self.gives_back()) {
                return Poll::Ready(Event::Boundary);
            }
            if !moved {
                return Poll::Pending;
            }
        }
    }

    /// From the server to the client. Whether anything moved.
    fn poll_backend(
        &mut self,
        cx: &mut Context<'_>,
        watch: &impl Watch,
        parked: bool,
        scratch: &mut [u8],
    ) -> Result<bool, Event> {
        flush(&mut *self.client, &mut self.to_client, &mut self.client_flush, cx)
            .map_err(|_| Event::ClientGone)?;
        let Some(backend) = self.backend.as_mut().filter(|_| self.to_client.is_empty()) else {
            return Ok(false);
        };
        let read = read(backend, scratch, cx).map_err(|_| Event::BackendGone)?;
        if read == 0 && !std::mem::take(&mut self.look_backend) {
            return Ok(false);
        }
        let mut tail = std::mem::take(&mut self.from_backend);
        let joined = join(&mut tail, &scratch[..read]);
        let bytes = if joined { &mut tail[..] } else { &mut scratch[..read] };
        let (count, left) =
            self.incoming(bytes, watch, parked).map_err(|malformed| Event::Malformed(malformed, false))?;
        if !parked {
            send(&mut self.client, &mut self.to_client, &mut self.client_flush, &bytes[..count], cx)
                .map_err(|_| Event::ClientGone)?;
        }
        if joined {
            tail.truncate(left);
        }
        keep(&mut tail, joined, &scratch[..left.min(read)], count);
        self.from_backend = tail;
        Ok(read > 0 || count > 0)
    }

    /// From the client to the server. Whether anything moved.
    fn poll_client(
        &mut self,
        cx: &mut Context<'_>,
        watch: &impl Watch,
        parked: bool,
        scratch: &mut [u8],
    ) -> Result<bool, Event> {
        if let Some(backend) = &mut self.backend
            && flush(backend, &mut self.to_backend, &mut self.backend_flush, cx).is_err()
        {
            // What it said before it went is read first.
            self.to_backend = Vec::new();
            self.backend_flush = false;
        }
        if !self.to_backend.is_empty() || self.stalled && self.from_client.len() >= AHEAD && !self.look_client
        {
            return Ok(false);
        }
        let room = if self.stalled || parked { AHEAD } else { scratch.len() };
        let read = read(&mut *self.client, &mut scratch[..room], cx).map_err(|_| Event::ClientGone)?;
        if read == 0 && !std::mem::take(&mut self.look_client) {
            return Ok(false);
        }
        let mut tail = std::mem::take(&mut self.from_client);
        let joined = join(&mut tail, &scratch[..read]);
        let bytes = if joined { &mut tail[..] } else { &mut scratch[..read] };
        let mut instead = Vec::new();
        let (count, goodbye) = self.outgoing(bytes, watch, parked, &mut instead)?;
        let onward = if instead.is_empty() { &bytes[..count] } else { &instead[..] };
        let asked = !onward.is_empty();
        if let Some(backend) = &mut self.backend
            && send(backend, &mut self.to_backend, &mut self.backend_flush, onward, cx).is_err()
        {
            self.to_backend = Vec::new();
        }
        keep(&mut tail, joined, &scratch[..read], count);
        self.from_client = tail;
        if asked && self.backend_cut.between() {
            for (name, value) in self.news.drain(..) {
                message::parameter(&mut self.to_client, &name, &value);
            }
        }
        if goodbye {
            return Err(Event::ClientGone);
        }
        let waits = parked && !self.from_client.is_empty() && (self.shared.is_none() || self.sendable());
        if waits && !std::mem::replace(&mut self.waits, true) {
            return Err(Event::ClientWaits);
        }
        Ok(read > 0 || count > 0)
    }

    /// Follows the server's messages in `bytes`: how many of the bytes are looked through, and how many there are without what
    /// the client must not see, which is taken out. Parked, what the client may see is put into `to_client`, and the rest is the
    /// end of a server that is taken away.
    fn incoming(
        &mut self,
        bytes: &mut [u8],
        watch: &impl Watch,
        parked: bool,
    ) -> Result<(usize, usize), Malformed> {
        if self.sent.is_some() {
            self.first_byte.get_or_insert_with(now);
        }
        let (mut at, mut end) = (0, bytes.len());
        loop {
            let rest = &mut bytes[at..end];
            let whole = match rest.first() {
                Some(b'C' | b'Z' | b'S' | b'A' | b'E' | b'N' | b'G' | b'W' | b'T' | b't') => LOOKED_INTO,
                Some(b'D') if self.oids.reads_rows() => LOOKED_INTO,
                _ => 0,
            };
            match self.backend_cut.next(rest, whole)? {
                Piece::Short => return Ok((at, end)),
                Piece::Rest(count) | Piece::Begun(_, count) => at += count,
                Piece::Whole(tag, count) => {
                    if let Some(shared) = &mut self.shared
                        && shared.heard(tag, &rest[HEADER..count])
                    {
                        rest.copy_within(count.., 0);
                        end -= count;
                        continue;
                    }
                    self.heard(tag, &mut rest[HEADER..count], watch);
                    if parked && matches!(tag, b'A' | b'N' | b'S') {
                        self.to_client.extend_from_slice(&rest[..count]);
                    }
                    at += count;
                }
            }
        }
    }

    /// One of the server's messages.
    fn heard(&mut self, tag: u8, body: &mut [u8], watch: &impl Watch) {
        match tag {
            b'Z' => {
                let status = body.first().and_then(|byte| Status::read(*byte)).unwrap_or_default();
                // What waits may go on.
                self.look_client = true;
                self.oids.ready();
                if self.tracker.ready(status) {
                    self.measure(watch);
                }
            }
            b'E' => {
                self.tracker.failed();
                let error = ServerError::read(body);
                self.outcome = if error.is_of_server() { FAILED } else { Outcome::Refused };
                self.told |= error.fatal;
            }
            b'G' | b'W' => {
                self.tracker.copy_begins();
                self.oids.copy_begins();
                // The client sets the pace from here on.
                self.sent = None;
                self.look_client = true;
            }
            b'S' => {
                if let Some((name, rest)) = read_text(body)
                    && let Some((value, _)) = read_text(rest)
                {
                    self.news.retain(|(known, _)| **known != *name);
                    set(Arc::make_mut(&mut self.parameters), name, value);
                    self.reads = only_reads(&self.parameters);
                }
            }
            b'A' => self.rename(body),
            _ => {}
        }
        self.oids.heard(tag, body);
    }

    fn measure(&mut self, watch: &impl Watch) {
        let (sent, first_byte) = (self.sent.take(), self.first_byte.take());
        let outcome = std::mem::replace(&mut self.outcome, WORKED);
        if let (Some(sent), Some(first_byte)) = (sent, first_byte) {
            let since = |moment: Instant| moment.saturating_duration_since(sent);
            watch.answered(Answered { sent, first_byte: since(first_byte), whole: since(now()), outcome });
        }
    }

    /// Follows the client's messages in `bytes`: how many of the bytes go on, and whether it says goodbye. Where one of them goes on
    /// otherwise than it came, `instead` has all that goes on.
    fn outgoing(
        &mut self,
        bytes: &mut [u8],
        watch: &impl Watch,
        parked: bool,
        instead: &mut Vec<u8>,
    ) -> Result<(usize, bool), Stop> {
        let (mut at, mut copied, mut other) = (0, 0, Vec::new());
        self.stalled = false;
        let goodbye = loop {
            let rest = &mut bytes[at..];
            if rest.is_empty() {
                break false;
            }
            if self.client_cut.between() && (parked || !self.may_begin(watch)) {
                self.stalled = true;
                // One that leaves needs no turn.
                break rest.first() == Some(&b'X') && !self.tracker.owes();
            }
            let (tag, count, whole) = match self.client_cut.next(rest, self.awaited(rest))? {
                Piece::Short => break false,
                Piece::Rest(count) => {
                    at += count;
                    continue;
                }
                Piece::Whole(tag, count) => (tag, count, true),
                Piece::Begun(tag, count) => (tag, count, false),
            };
            let body = &mut rest[HEADER..count];
            if whole {
                self.oids.said(tag, body, self.tracker.owed());
            } else {
                self.oids.passes(tag, body);
            }
            let message = &bytes[at..at + count];
            if let Some(shared) = &mut self.shared {
                let rewritten = shared.rewrite(message, whole, &mut other)?;
                if rewritten == Rewritten::Changed {
                    instead.extend(&bytes[copied..at]);
                    instead.append(&mut other);
                    copied = at + count;
                }
            }
            at += count;
            if self.said(tag, &message[HEADER..], whole.then_some(message), watch) {
                if self.shared.is_some() {
                    // The connection goes on without this client.
                    at -= count;
                }
                break true;
            }
        };
        if copied > 0 {
            instead.extend(&bytes[copied..at]);
        }
        Ok((at, goodbye))
    }

    /// Whether the client's next message may go on.
    fn may_begin(&self, watch: &impl Watch) -> bool {
        if self.tracker.within_unit() {
            return true;
        }
        if self.tracker.owes() && self.shared.as_ref().is_some_and(|shared| shared.unsettled) {
            return false;
        }
        if self.at_boundary() && self.shared.as_ref().is_some_and(|shared| shared.is_reset()) {
            return false;
        }
        if !watch.closed(self.reads) {
            let pinned = self.shared.as_ref().is_none_or(|shared| shared.pinned);
            // Who shares takes turns.
            return pinned || !self.used || !self.at_boundary() || !watch.wanted();
        }
        // A transaction goes on, unit by unit: each may be its last.
        !self.tracker.owes() && self.tracker.status() != Status::Idle
    }

    /// One of the client's messages, with its bytes if it is here whole. Whether it is goodbye.
    fn said(&mut self, tag: u8, body: &[u8], whole: Option<&[u8]>, watch: &impl Watch) -> bool {
        match tag {
            b'P' => {
                if let Some((b"", rest)) = read_text(body) {
                    let kept = whole.filter(|whole| whole.len() <= UNNAMED && self.shared.is_none());
                    self.unnamed = kept.map(<[u8]>::to_vec);
                    names::find(rest, |name| watch.names(name));
                } else if let Some((_, rest)) = read_text(body) {
                    names::find(rest, |name| watch.names(name));
                }
            }
            b'Q' => {
                self.unnamed = None;
                names::find(body, |name| watch.names(name));
            }
            b'C' if body == b"S\0" => self.unnamed = None,
            _ => {}
        }
        let alone = !self.tracker.owes();
        let sent = self.tracker.sent(tag);
        self.used |= sent == Sent::Unit;
        match (&mut self.shared, sent) {
            (Some(shared), Sent::Unit) => shared.unit(tag),
            (Some(shared), Sent::CopyEnd { batch }) => shared.copy_ends(batch),
            _ => {}
        }
        match sent {
            Sent::Unit if alone => {
                self.sent = Some(now());
                self.first_byte = None;
                self.outcome = WORKED;
            }
            // Units that share the session are not measured.
            Sent::Unit => self.sent = None,
            Sent::Part | Sent::CopyEnd { .. } => {}
            Sent::Goodbye => return true,
        }
        false
    }

    /// Whole messages of the server that the client is to get besides.
    pub(super) fn tell(&mut self, mut messages: Vec<u8>) {
        let mut at = 0;
        // They were cut before: what cannot be cut again is not there.
        while let Ok(Piece::Whole(tag, count)) = Framer::default().next(&messages[at..], 0) {
            if tag == b'A' {
                self.rename(&mut messages[at + HEADER..at + count]);
            }
            at += count;
        }
        self.to_client.extend_from_slice(&messages[..at]);
    }

    /// A message of our own, if the client can tell it from what it is in the middle of.
    pub(super) fn say(&mut self, message: &[u8]) {
        if self.backend_cut.between() {
            self.to_client.extend_from_slice(message);
        }
    }

    /// What a server says of itself, as far as the client was told otherwise.
    pub(super) fn adopt(&mut self, parameters: Parameters) {
        if self.parameters == parameters {
            return;
        }
        for (name, value) in parameters.iter() {
            if !self.parameters.iter().any(|known| known.0 == *name && known.1 == *value) {
                set(&mut self.news, name, value);
            }
        }
        self.parameters = parameters;
        self.reads = only_reads(&self.parameters);
    }

    /// There is no connection to the server, or it has something to say, be it its end.
    pub(super) fn may_have_lost_its_backend(&self) -> bool {
        self.backend.as_ref().is_none_or(|backend| backend.holds_input())
    }

    /// The connection to the server is over, and what it may have said is of no interest.
    pub(super) fn forget_backend(&mut self) {
        self.backend = None;
        self.from_backend = Vec::new();
        self.to_backend = Vec::new();
        self.backend_flush = false;
        self.told = false;
        self.outcome = WORKED;
    }

    /// A client that listens to itself knows itself by the number that it was given.
    fn rename(&self, notification: &mut [u8]) {
        let (real, told) = self.pids;
        if real != told
            && let Some(pid) = notification.first_chunk_mut()
            && u32::from_be_bytes(*pid) == real
        {
            *pid = told.to_be_bytes();
        }
    }

    /// Sends the client what is left for it; gives up when it does not take it.
    pub(super) async fn finish(&mut self) {
        use tokio::io::AsyncWriteExt;
        let left = std::mem::take(&mut self.to_client);
        let sending = async {
            self.client.write_all(&left).await?;
            self.client.shutdown().await
        };
        // It is gone, or it does not read: the session is over either way.
        let _ = tokio::time::timeout(LINGER, sending).await;
    }

    /// Sends the server what is left for it, and waits until it has ended.
    pub(super) async fn hang_up(&mut self) {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let Some(mut backend) = self.backend.take() else { return };
        let owes = self.tracker.owes();
        let left = std::mem::take(&mut self.to_backend);
        let ending = async {
            backend.write_all(&left).await?;
            backend.shutdown().await?;
            // What it still does must not be cut short by a reset.
            let mut rest = [0; 4096];
            while owes && backend.read(&mut rest).await? > 0 {}
            std::io::Result::Ok(())
        };
        let _ = tokio::time::timeout(LINGER, ending).await;
    }
}

/// A server tells of this setting from version 14 on; where it does not, a session may always write.
fn only_reads(parameters: &[Parameter]) -> bool {
    parameters.iter().any(|(name, value)| **name == *b"default_transaction_read_only" && **value == *b"on")
}

/// What a direction has left over in front of what was read now; whether it had any.
fn join(tail: &mut Vec<u8>, fresh: &[u8]) -> bool {
    let joined = !tail.is_empty();
    if joined {
        tail.extend_from_slice(fresh);
    }
    joined
}

/// Keeps what was not looked through.
fn keep(tail: &mut Vec<u8>, joined: bool, fresh: &[u8], count: usize) {
    if joined {
        tail.drain(..count);
    } else {
        tail.extend_from_slice(&fresh[count..]);
    }
    if tail.is_empty() && tail.capacity() > KEPT {
        *tail = Vec::new();
    }
}

/// Bytes read; none: not now.
fn read(socket: &mut (dyn Socket + '_), into: &mut [u8], cx: &mut Context<'_>) -> io::Result<usize> {
    let mut read = ReadBuf::new(into);
    match Pin::new(socket).poll_read(cx, &mut read) {
        Poll::Ready(Ok(())) if read.filled().is_empty() => Err(io::ErrorKind::UnexpectedEof.into()),
        Poll::Ready(Ok(())) => Ok(read.filled().len()),
        Poll::Ready(Err(error)) => Err(error),
        Poll::Pending => Ok(0),
    }
}

/// Sends what it takes at once, and keeps the rest in `pending`.
fn send(
    socket: &mut (dyn Socket + '_),
    pending: &mut Vec<u8>,
    unflushed: &mut bool,
    bytes: &[u8],
    cx: &mut Context<'_>,
) -> io::Result<()> {
    if bytes.is_empty() {
        return Ok(());
    }
    let mut at = 0;
    while pending.is_empty() && at < bytes.len() {
        match Pin::new(&mut *socket).poll_write(cx, &bytes[at..]) {
            Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
            Poll::Ready(Ok(count)) => at += count,
            Poll::Ready(Err(error)) => return Err(error),
            Poll::Pending => break,
        }
    }
    pending.extend_from_slice(&bytes[at..]);
    *unflushed = true;
    flush(socket, pending, unflushed, cx)
}

/// Sends what is left, as far as it is taken.
fn flush(
    socket: &mut (dyn Socket + '_),
    pending: &mut Vec<u8>,
    unflushed: &mut bool,
    cx: &mut Context<'_>,
) -> io::Result<()> {
    let mut at = 0;
    let mut outcome = Ok(());
    while at < pending.len() {
        match Pin::new(&mut *socket).poll_write(cx, &pending[at..]) {
            Poll::Ready(Ok(0)) => outcome = Err(io::ErrorKind::WriteZero.into()),
            Poll::Ready(Ok(count)) => {
                at += count;
                *unflushed = true;
                continue;
            }
            Poll::Ready(Err(error)) => outcome = Err(error),
            Poll::Pending => {}
        }
        break;
    }
    keep(pending, true, &[], at);
    outcome?;
    // TLS keeps what its socket did not take.
    if *unflushed && pending.is_empty() {
        match Pin::new(socket).poll_flush(cx) {
            Poll::Ready(flushed) => {
                *unflushed = false;
                flushed?;
            }
            Poll::Pending => {}
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
