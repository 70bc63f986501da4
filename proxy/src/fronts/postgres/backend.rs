//! A session's connection to its database: made, logged in, asked for the session's state, brought to one.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use replicator::postgres::{Dialed, Dsn, Peek, dial};
use tokio::io::{AsyncRead, AsyncReadExt as _, ReadBuf};
use tokio_postgres::config::ChannelBinding;

use super::protocol::frame::{Framer, HEADER, Piece};
use super::protocol::message::{self, ServerError};
use super::protocol::oids::Catalogue;
use super::protocol::scram::{self, Failed, Secret};
use super::protocol::state::{self, State, Step};
use super::talk::{LONGEST, Message, Talk};
use crate::clock;

/// How long connecting and logging in may take.
const CONNECT: Duration = Duration::from_secs(10);
/// How long a state may take to be read or said again.
const STATE: Duration = Duration::from_secs(10);
/// The longest row of a state: a text of 1 MiB may take more bytes in the client's encoding.
const ROW: usize = 4 << 20;
/// `query_canceled`.
const CANCELED: &str = "57014";
/// `insufficient_privilege`.
pub(super) const DENIED: &str = "42501";
/// `admin_shutdown` and `crash_shutdown`: by one of them, as a warning, a server says that it ends at once.
const ENDS: [&str; 2] = ["57P01", "57P02"];

/// As whom a session logs in.
#[derive(Clone, Debug)]
pub(super) struct Identity {
    pub(super) user: String,
    /// What the client's startup packet says besides user and database.
    pub(super) parameters: Vec<(String, String)>,
    pub(super) secret: Secret,
}

impl Identity {
    /// For a client that shares connections: what those are made with, and what is set on each of them for this client.
    pub(super) fn shared(self) -> (Self, State) {
        let only_at_start = |name: &str| name == "options" || name.starts_with("_pq_.");
        let (parameters, settings): (Vec<_>, Vec<_>) =
            self.parameters.into_iter().partition(|(name, _)| only_at_start(name));
        let mut settings: Vec<_> =
            settings.into_iter().map(|(name, value)| (name.into_bytes(), value.into_bytes())).collect();
        settings.sort();
        let identity = Self { user: self.user, parameters, secret: self.secret };
        (identity, State { settings, ..State::default() })
    }

    /// It reads changes.
    pub(super) fn replicates(&self) -> bool {
        self.parameters.iter().any(|(name, _)| name == "replication")
    }

    /// `options` of its startup packet.
    pub(super) fn options(&self) -> Option<&str> {
        self.parameters.iter().rev().find(|(name, _)| name == "options").map(|(_, value)| value.as_str())
    }
}

/// A name and what it is set to.
pub(super) type Parameter = (Box<[u8]>, Box<[u8]>);
/// What a server says of itself.
pub(super) type Parameters = Arc<Vec<Parameter>>;

/// A connection that is ready for a query.
pub(super) struct Backend {
    pub(super) socket: Box<dyn Peek>,
    /// Read and not looked at.
    pub(super) received: Vec<u8>,
    pub(super) pid: u32,
    pub(super) secret: Vec<u8>,
    pub(super) parameters: Parameters,
    /// Whole messages that the client should see: notices, notifications.
    pub(super) aside: Vec<u8>,
    pub(super) generation: u64,
    pub(super) zone: Arc<str>,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoBackend {
    #[error("the database cannot be reached")]
    Unreachable(#[source] replicator::Error),
    #[error("the database does not answer")]
    Lost(#[source] io::Error),
    /// With its ErrorResponse, whole.
    #[error("the database refuses: {} ({})", .0.message, .0.sqlstate)]
    Refused(ServerError, Vec<u8>),
    #[error("cannot log in at the database")]
    Login(#[from] Failed),
    #[error("cannot log in at the database: it asks for authentication method {0}, which is not supported")]
    Method(u32),
    #[error("unexpected message {:?} of the database", char::from(*.0))]
    Unexpected(u8),
    #[error("the database took too long")]
    TimedOut,
}

impl NoBackend {
    /// Whether there may be one a moment later.
    pub(super) fn passes(&self) -> bool {
        match self {
            Self::Unreachable(_) => true,
            // What is longer than it may be is so each time.
            Self::Lost(error) => error.kind() != io::ErrorKind::InvalidData,
            _ => false,
        }
    }
}

impl Backend {
    /// One whose server a test is, at the other end.
    #[cfg(test)]
    pub(super) fn by_hand(zone: &str) -> (Self, tokio::io::DuplexStream) {
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        (Self::over(Box::new(ours), zone), theirs)
    }

    #[cfg(test)]
    fn over(socket: Box<dyn Peek>, zone: &str) -> Self {
        Self {
            socket,
            received: Vec::new(),
            pid: 1,
            secret: Vec::new(),
            parameters: Arc::default(),
            aside: Vec::new(),
            generation: 0,
            zone: zone.into(),
        }
    }

    /// Connects and logs in.
    pub(super) async fn open(
        dsn: &Dsn,
        identity: &Identity,
        generation: u64,
        zone: &Arc<str>,
    ) -> Result<Self, NoBackend> {
        let opening = async {
            let Dialed { socket, end_point } = dial(dsn).await.map_err(NoBackend::Unreachable)?;
            let mut this = Self {
                socket,
                received: Vec::new(),
                pid: 0,
                secret: Vec::new(),
                parameters: Arc::default(),
                aside: Vec::new(),
                generation,
                zone: Arc::clone(zone),
            };
            this.log_in(dsn, identity, end_point.as_deref()).await?;
            Ok(this)
        };
        tokio::time::timeout(CONNECT, opening).await.unwrap_or(Err(NoBackend::TimedOut))
    }

    async fn log_in(
        &mut self,
        dsn: &Dsn,
        identity: &Identity,
        end_point: Option<&[u8]>,
    ) -> Result<(), NoBackend> {
        let database = dsn.get_dbname().or(dsn.get_user()).unwrap_or_default();
        let mut out = Vec::new();
        let own = [("user", identity.user.as_str()), ("database", database)];
        let theirs = identity.parameters.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        message::startup(&mut out, own.into_iter().chain(theirs));
        self.talk().send(&out).await.map_err(NoBackend::Lost)?;
        let mut exchange: Option<scram::Client<'_>> = None;
        let (binding, mut bound) = (dsn.get_channel_binding(), false);
        let end_point = end_point.filter(|_| binding != ChannelBinding::Disable);
        loop {
            let (tag, body) = self.talk().message(LONGEST).await.map_err(NoBackend::Lost)?;
            match tag {
                b'R' => {
                    let (method, data) = body.split_first_chunk().ok_or(NoBackend::Unexpected(tag))?;
                    let method = u32::from_be_bytes(*method);
                    if exchange.is_some() && !matches!(method, 11 | 12) {
                        return Err(Failed::Impostor.into());
                    }
                    // Whatever else it is content with would not show that it is the one at the other end of the TLS.
                    if binding == ChannelBinding::Require && !bound && method != 10 {
                        return Err(Failed::Unbound.into());
                    }
                    let answer = match (method, &mut exchange) {
                        (0, _) => continue,
                        (3, None) => match &identity.secret {
                            Secret::Password(password) => [password.as_slice(), b"\0"].concat(),
                            _ => return Err(NoBackend::Method(3)),
                        },
                        (10, None) => {
                            let (client, plus) = choose(&identity.secret, data, end_point);
                            if binding == ChannelBinding::Require && !plus {
                                return Err(Failed::Unbound.into());
                            }
                            bound = plus;
                            let first = client.first();
                            exchange = Some(client);
                            let mut answer =
                                if plus { scram::PLUS } else { scram::PLAIN }.as_bytes().to_vec();
                            answer.push(0);
                            answer.extend((first.len() as u32).to_be_bytes());
                            answer.extend(first.as_bytes());
                            answer
                        }
                        (11, Some(client)) => client.last(data)?.into_bytes(),
                        (12, Some(client)) => {
                            client.finish(data)?;
                            exchange = None;
                            continue;
                        }
                        (method, _) => return Err(NoBackend::Method(method)),
                    };
                    let mut out = Vec::new();
                    message::write(&mut out, b'p', |out| out.extend(answer));
                    self.talk().send(&out).await.map_err(NoBackend::Lost)?;
                }
                b'K' => {
                    let (pid, secret) = body.split_first_chunk().ok_or(NoBackend::Unexpected(tag))?;
                    (self.pid, self.secret) = (u32::from_be_bytes(*pid), secret.to_vec());
                }
                b'Z' => return Ok(()),
                b'E' => return Err(refused(&body)),
                _ => self.note((tag, body)).map_err(NoBackend::Unexpected)?,
            }
        }
    }

    /// Asks what the session has.
    pub(super) async fn state(&mut self, custom: &[String], user: &str) -> Result<State, NoBackend> {
        self.ask(custom, |question, custom, lift| state::ask(question, custom, user, lift)).await
    }

    /// The same of a replication connection.
    pub(super) async fn state_simply(&mut self, custom: &[String], user: &str) -> Result<State, NoBackend> {
        self.ask(custom, |question, custom, lift| state::ask_simply(question, custom, user, lift)).await
    }

    /// `write` writes the question: for these custom settings, and whether it may take longer than the client's own limit.
    async fn ask(
        &mut self,
        custom: &[String],
        write: impl Fn(&mut Vec<u8>, &[String], bool),
    ) -> Result<State, NoBackend> {
        let deadline = clock::tick() + STATE;
        let (mut custom, mut lift) = (custom.to_vec(), false);
        let rows = loop {
            let mut question = Vec::new();
            write(&mut question, &custom, lift);
            match self.rows(&question).await {
                // The client's own limit, or what it sent to cancel the statement before.
                Err(NoBackend::Refused(error, _))
                    if error.sqlstate == CANCELED && clock::tick() < deadline =>
                {
                    lift = true;
                }
                // One of them is a setting of an extension that this role may not look at; which, it says in any language.
                Err(NoBackend::Refused(error, _)) if error.sqlstate == DENIED && !custom.is_empty() => {
                    let said = error.message.to_ascii_lowercase();
                    let named = custom.iter().enumerate().filter(|(_, name)| said.contains(&***name));
                    match named.max_by_key(|(_, name)| name.len()) {
                        Some((at, _)) => drop(custom.remove(at)),
                        None => custom.clear(),
                    }
                }
                rows => break rows?,
            }
        };
        found(&rows)
    }

    /// Counts how often the locks of its state were taken. After an error it is not known which of them it still has.
    pub(super) async fn count_locks(&mut self, state: &mut State) -> Result<(), NoBackend> {
        let mut question = Vec::new();
        state::count_locks(&mut question, &state.locks);
        let rows = self.rows(&question).await?;
        state.take_counts(&rows).map_err(|_| NoBackend::Unexpected(b'D'))
    }

    /// The rows that answer a question, up to its ReadyForQuery.
    async fn rows(&mut self, question: &[u8]) -> Result<Vec<Vec<u8>>, NoBackend> {
        let asking = async {
            self.talk().send(question).await.map_err(NoBackend::Lost)?;
            let (mut rows, mut failure, mut is_answered) = (Vec::new(), None, false);
            loop {
                let (tag, body) = self.talk().message(ROW).await.map_err(NoBackend::Lost)?;
                match tag {
                    b'1' | b'2' | b'3' | b'C' | b'T' => is_answered = true,
                    b'D' => rows.push(body),
                    b'E' => (failure, is_answered) = (Some(refused(&body)), true),
                    // After a copy that failed, one may come for a Sync that was thought to be ignored: no question has that alone for its answer.
                    b'Z' if !is_answered => {}
                    b'Z' => return failure.map_or(Ok(rows), Err),
                    _ => self.note((tag, body)).map_err(NoBackend::Unexpected)?,
                }
            }
        };
        tokio::time::timeout(STATE, asking).await.unwrap_or(Err(NoBackend::TimedOut))
    }

    /// Whether the transaction that is open sees one snapshot all along: its client knows how to begin it again.
    pub(super) async fn serializes(&mut self) -> bool {
        let mut question = Vec::new();
        state::ask_isolation(&mut question);
        let asking = async {
            self.talk().send(&question).await?;
            let mut serializes = false;
            loop {
                let (tag, body) = self.talk().message(LONGEST).await?;
                match tag {
                    b'D' => {
                        let level = message::row(&body).and_then(|row| row.first().copied().flatten());
                        serializes = matches!(level, Some(b"serializable" | b"repeatable read"));
                    }
                    b'Z' => return io::Result::Ok(serializes),
                    _ => {}
                }
            }
        };
        matches!(tokio::time::timeout(Duration::from_millis(100), asking).await, Ok(Ok(true)))
    }

    /// Brings a fresh one to a state; what could not be carried, and why.
    pub(super) async fn replay(
        &mut self,
        state: &State,
        there: Option<&Catalogue>,
    ) -> Result<Vec<String>, NoBackend> {
        let mut out = Vec::new();
        let steps = state.replay(&mut out, there).into();
        self.say(out, steps).await
    }

    /// Brings a fresh replication connection to settings and a role; what could not be carried, and why.
    pub(super) async fn replay_simply(&mut self, state: &State) -> Result<Vec<String>, NoBackend> {
        let mut out = Vec::new();
        let steps = state.replay_simply(&mut out).into();
        self.say(out, steps).await
    }

    /// Brings one that another client has had to a state; what could not be carried, and why. An error says nothing of the state: the
    /// connection could not be rid of what the other client had, whose limits count until then.
    pub(super) async fn become_of(&mut self, state: &State) -> Result<Vec<String>, NoBackend> {
        let mut out = Vec::new();
        let mut steps = VecDeque::from([State::reset(&mut out)]);
        // A profile has no statements.
        steps.extend(state.replay(&mut out, None));
        self.say(out, steps).await
    }

    /// Sends what a state is said again with; each step ends with a ReadyForQuery.
    async fn say(&mut self, out: Vec<u8>, mut steps: VecDeque<Step>) -> Result<Vec<String>, NoBackend> {
        let replaying = async {
            let mut lost = Vec::new();
            self.talk().send(&out).await.map_err(NoBackend::Lost)?;
            while let Some(step) = steps.front() {
                let (tag, body) = self.talk().message(LONGEST).await.map_err(NoBackend::Lost)?;
                match tag {
                    b'E' => {
                        let error = ServerError::read(&body);
                        if error.fatal || *step == Step::Reset {
                            return Err(refused(&body));
                        }
                        if *step != Step::Unnamed {
                            lost.push(format!("{step}: {}", error.message));
                        }
                    }
                    b'Z' => drop(steps.pop_front()),
                    b'D' => {
                        if let Step::Lock(_) = step
                            && message::row(&body).is_none_or(|row| row[..] != [Some(&b"t"[..])])
                        {
                            lost.push(format!("{step}: another session has it"));
                        }
                    }
                    b'1' | b'2' | b'C' | b'T' => {}
                    _ => self.note((tag, body)).map_err(NoBackend::Unexpected)?,
                }
            }
            Ok(lost)
        };
        tokio::time::timeout(STATE, replaying).await.unwrap_or(Err(NoBackend::TimedOut))
    }

    /// Whether it still answers.
    pub(super) async fn answers(&mut self) -> bool {
        let mut out = Vec::new();
        message::sync(&mut out);
        let asking = async {
            self.talk().send(&out).await?;
            loop {
                let (tag, body) = self.talk().message(LONGEST).await?;
                match tag {
                    b'Z' => return io::Result::Ok(()),
                    b'E' => return Err(io::ErrorKind::ConnectionReset.into()),
                    _ => self.note((tag, body)).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?,
                }
            }
        };
        matches!(tokio::time::timeout(STATE, asking).await, Ok(Ok(())))
    }

    /// Itself, if nothing is known of its end yet; of one that rested, to the system. What it has said meanwhile is kept.
    pub(super) async fn living(mut self, rested: bool) -> Option<Self> {
        self.lives(rested).await.then_some(self)
    }

    async fn lives(&mut self, rested: bool) -> bool {
        loop {
            let mut read = [0; 512];
            let mut into = ReadBuf::new(&mut read);
            let said = poll_fn(|cx| match Pin::new(&mut self.socket).poll_read(cx, &mut into) {
                // It is told in a moment.
                Poll::Pending if rested && self.socket.holds_input() => Poll::Pending,
                Poll::Pending => Poll::Ready(None),
                Poll::Ready(said) => Poll::Ready(Some(said)),
            });
            match said.await {
                None => return self.says_nothing(),
                Some(Ok(())) if !into.filled().is_empty() && self.received.len() < LONGEST => {
                    self.received.extend_from_slice(into.filled());
                }
                Some(_) => return false,
            }
        }
    }

    /// Whether all that it has said may be said at any time, and is not that it ends: an answer would be another client's.
    fn says_nothing(&self) -> bool {
        let mut rest = &self.received[..];
        while let Some(tag) = rest.first() {
            if !matches!(tag, b'S' | b'N' | b'A') {
                return false;
            }
            match Framer::default().next(rest, LONGEST) {
                Ok(Piece::Whole(b'N', count))
                    if ENDS.contains(&&*ServerError::read(&rest[HEADER..count]).sqlstate) =>
                {
                    return false;
                }
                Ok(Piece::Whole(_, count)) => rest = &rest[count..],
                Ok(Piece::Short) => return true,
                _ => return false,
            }
        }
        true
    }

    /// Says goodbye and waits until it is gone, at most a second: another one takes its place at the server.
    pub(super) async fn end(mut self) {
        let ended = async {
            self.say_goodbye().await?;
            while self.socket.read(&mut [0; 512]).await? > 0 {}
            Ok::<_, io::Error>(())
        };
        let _ = tokio::time::timeout(Duration::from_secs(1), ended).await;
    }

    /// Says goodbye; nobody waits for more.
    pub(super) async fn close(mut self) {
        // It ends with its socket anyway.
        let _ = tokio::time::timeout(Duration::from_secs(1), self.say_goodbye()).await;
    }

    async fn say_goodbye(&mut self) -> io::Result<()> {
        let mut out = Vec::new();
        message::terminate(&mut out);
        self.talk().send(&out).await
    }

    /// A message that may come at any time; its type if this is none.
    fn note(&mut self, (tag, body): Message) -> Result<(), u8> {
        match tag {
            b'S' => {
                let pair = message::read_text(&body).and_then(|(name, rest)| {
                    let (value, _) = message::read_text(rest)?;
                    Some((name, value))
                });
                let (name, value) = pair.ok_or(tag)?;
                set(Arc::make_mut(&mut self.parameters), name, value);
            }
            b'N' | b'A' => message::write(&mut self.aside, tag, |out| out.extend(&body)),
            _ => return Err(tag),
        }
        Ok(())
    }

    pub(super) fn talk(&mut self) -> Talk<'_> {
        Talk { socket: &mut *self.socket, received: &mut self.received }
    }
}

/// What these rows say that a session has.
fn found(rows: &[Vec<u8>]) -> Result<State, NoBackend> {
    let mut found = State::default();
    for row in rows {
        found.take(row).map_err(|_| NoBackend::Unexpected(b'D'))?;
    }
    Ok(found)
}

/// Sets one among them.
pub(super) fn set(parameters: &mut Vec<Parameter>, name: &[u8], value: &[u8]) {
    match parameters.iter_mut().find(|(known, _)| **known == *name) {
        Some((_, known)) => *known = value.into(),
        None => parameters.push((name.into(), value.into())),
    }
}

/// An ErrorResponse.
pub(super) fn refused(body: &[u8]) -> NoBackend {
    let mut whole = Vec::new();
    message::write(&mut whole, b'E', |out| out.extend(body));
    NoBackend::Refused(ServerError::read(body), whole)
}

/// The best of what the database offers; whether it is the one with channel binding.
fn choose<'s>(secret: &'s Secret, offered: &[u8], end_point: Option<&[u8]>) -> (scram::Client<'s>, bool) {
    let plus = offered.split(|byte| *byte == 0).any(|name| name == scram::PLUS.as_bytes());
    let bound = end_point.filter(|_| plus);
    (scram::Client::new(secret, bound, end_point.is_some(), crate::rng::secret()), bound.is_some())
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn what_one_client_left_is_not_told_the_next() {
        let (mut backend, mut server) = Backend::by_hand("a");
        let mut answer = Vec::new();
        message::write(&mut answer, b'E', |out| out.extend(b"SERROR\0C57014\0Mcanceling statement\0\0"));
        message::ready(&mut answer);
        server.write_all(&answer).await.unwrap();
        let became = backend.become_of(&State::default()).await;
        let Err(NoBackend::Refused(error, _)) = became else { panic!("{became:?}") };
        assert_eq!(error.sqlstate, CANCELED);
    }

    #[tokio::test]
    async fn a_question_that_was_canceled_is_asked_again_without_the_limit() {
        let (mut backend, mut server) = Backend::by_hand("a");
        let mut canceled = Vec::new();
        message::write(&mut canceled, b'E', |out| out.extend(b"SERROR\0C57014\0Mcanceling statement\0\0"));
        // Nobody asked for the first of them.
        let mut told = Vec::new();
        message::ready(&mut told);
        message::write(&mut told, b'1', |_| {});
        message::write(&mut told, b'D', |out| {
            out.extend(b"\0\x04\0\0\0\x07channel\0\0\0\x04news\0\0\0\0\0\0\0\0");
        });
        let answering = async {
            let mut asked = Vec::new();
            for mut answer in [canceled, told] {
                let mut question = Vec::new();
                while !question.ends_with(b"S\0\0\0\x04") {
                    assert!(server.read_buf(&mut question).await.unwrap() > 0);
                }
                asked.push(question.windows(10).any(|part| part == b"set_config"));
                message::ready(&mut answer);
                server.write_all(&answer).await.unwrap();
            }
            asked
        };
        let (state, lifted) = tokio::join!(backend.state(&[], "ann"), answering);
        assert_eq!(state.unwrap().channels, [b"news"]);
        assert_eq!(lifted, [false, true]);
    }

    #[tokio::test]
    async fn a_row_of_a_state_may_be_longer_than_other_messages() {
        let (mut backend, mut server) = Backend::by_hand("a");
        let text = vec![b'x'; 3 << 20];
        let mut told = Vec::new();
        message::write(&mut told, b'D', |out| {
            out.extend(b"\0\x04\0\0\0\x05parse\0\0\0\x01s");
            out.extend((text.len() as u32).to_be_bytes());
            out.extend(&text);
            out.extend([0; 4]);
        });
        message::write(&mut told, b'C', |_| {});
        message::ready(&mut told);
        let (state, written) = tokio::join!(backend.state(&[], "ann"), server.write_all(&told));
        written.unwrap();
        assert_eq!(state.unwrap().statements[0].text.len(), text.len());
    }

    #[tokio::test]
    async fn a_question_is_asked_again_without_the_name_that_may_not_be_looked_at() {
        let (mut backend, mut server) = Backend::by_hand("a");
        let mut answering = async |end: &[u8]| {
            let mut asked = Vec::new();
            for denied in [Some("cron.host"), Some("other"), None] {
                let mut question = Vec::new();
                while !question.ends_with(end) {
                    assert!(server.read_buf(&mut question).await.unwrap() > 0);
                }
                let question = String::from_utf8_lossy(&question).into_owned();
                let names = ["cron.host", "cron.hosts", "app.tenant"];
                asked.push(names.map(|name| question.contains(&format!("\"{name}\""))));
                let mut answer = Vec::new();
                message::write(&mut answer, b'1', |_| {});
                if let Some(name) = denied {
                    let body = format!(
                        "SFEHLER\0VERROR\0C42501\0Mkeine Berechtigung f\u{fc}r \u{bb}{name}\u{ab}\0\0"
                    );
                    message::write(&mut answer, b'E', |out| out.extend(body.as_bytes()));
                }
                message::ready(&mut answer);
                server.write_all(&answer).await.unwrap();
            }
            asked
        };
        let names = ["app.tenant", "cron.host", "cron.hosts"].map(str::to_owned);
        let (state, asked) = tokio::join!(backend.state(&names, "ann"), answering(b"S\0\0\0\x04"));
        assert!(state.unwrap().is_empty());
        assert_eq!(asked, [[true; 3], [false, true, true], [false; 3]]);
        // A replication connection, too.
        let (state, asked) = tokio::join!(backend.state_simply(&names, "ann"), answering(b"granted\0"));
        assert!(state.unwrap().is_empty());
        assert_eq!(asked, [[true; 3], [false, true, true], [false; 3]]);
    }

    #[tokio::test]
    async fn one_that_has_ended_or_says_what_nobody_asked_does_not_live() {
        let notice = |sqlstate: &str| {
            let mut out = Vec::new();
            let body = format!("SWARNING\0C{sqlstate}\0Mterminating connection\0\0");
            message::write(&mut out, b'N', |out| out.extend(body.as_bytes()));
            out
        };
        let mut said = Vec::new();
        message::parameter(&mut said, b"TimeZone", b"UTC");
        said.extend(notice("01000"));
        let mut row = said.clone();
        message::write(&mut row, b'D', |out| out.extend([0, 0]));
        let cases = [
            (said.clone(), false, true),
            ([&said[..], b"N\0"].concat(), false, true),
            (said, true, false),
            (notice("57P02"), false, false),
            (notice("57P02"), true, false),
            (vec![b'N'; 1 << 10], false, false),
            (row, false, false),
            (Vec::new(), false, true),
            (Vec::new(), true, false),
        ];
        for (bytes, ends, lives) in cases {
            let (backend, mut server) = Backend::by_hand("a");
            server.write_all(&bytes).await.unwrap();
            let server = (!ends).then_some(server);
            let living = backend.living(true).await;
            assert_eq!(living.is_some(), lives, "{bytes:?} {ends}");
            assert!(living.is_none_or(|backend| backend.received == bytes));
            drop(server);
        }
    }

    #[tokio::test]
    async fn of_one_that_rested_the_system_is_asked_whether_it_has_ended() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let ours = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        drop(listener.accept().await.unwrap());
        // The runtime has one thread, which has not been told yet.
        let backend = Backend::over(Box::new(ours), "a").living(false).await.unwrap();
        assert!(backend.living(true).await.is_none());
    }

    /// Logs in at a server that says this.
    async fn log_in(
        parameters: &str,
        secret: Secret,
        end_point: bool,
        says: &[&[u8]],
    ) -> Result<(), NoBackend> {
        let (mut backend, mut server) = Backend::by_hand("a");
        for said in says {
            server.write_all(said).await.unwrap();
        }
        let dsn: Dsn = format!("postgres://u@h/d{parameters}").parse().unwrap();
        let identity = Identity { user: "ann".into(), parameters: Vec::new(), secret };
        let end_point = Some(&b"hash"[..]).filter(|_| end_point);
        tokio::time::timeout(CONNECT, backend.log_in(&dsn, &identity, end_point)).await.unwrap()
    }

    #[tokio::test]
    async fn a_login_takes_no_less_than_its_placement_demands() {
        const OK: &[u8] = b"R\0\0\0\x08\0\0\0\0";
        const CLEAR: &[u8] = b"R\0\0\0\x08\0\0\0\x03";
        const PLAIN: &[u8] = b"R\0\0\0\x17\0\0\0\x0aSCRAM-SHA-256\0\0";
        const BOTH: &[u8] = b"R\0\0\0\x2a\0\0\0\x0aSCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0";
        const READY: &[u8] = b"Z\0\0\0\x05I";
        let secret = || Secret::Password(b"secret".to_vec());
        for says in [&[OK, READY][..], &[CLEAR, OK, READY]] {
            log_in("", secret(), true, says).await.unwrap();
            let refused = log_in("?channel_binding=require", secret(), true, says).await;
            assert!(matches!(refused, Err(NoBackend::Login(Failed::Unbound))), "{refused:?}");
        }
        for (says, end_point) in [(PLAIN, true), (BOTH, false)] {
            let refused = log_in("?channel_binding=require", secret(), end_point, &[says]).await;
            assert!(matches!(refused, Err(NoBackend::Login(Failed::Unbound))), "{refused:?}");
        }
        for demand in ["", "?channel_binding=require"] {
            for way_out in [OK, CLEAR, BOTH] {
                let refused = log_in(demand, secret(), true, &[BOTH, way_out, OK, READY]).await;
                assert!(matches!(refused, Err(NoBackend::Login(Failed::Impostor))), "{refused:?}");
            }
        }
    }
}
