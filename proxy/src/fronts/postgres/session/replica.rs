//! A replication connection: reads changes from the primary, wherever that is, by positions that only grow.
//!
//! What the old primary has from before a move is read there to its end, the fence's marker; then what the new one has begins. For the client both are
//! one stream. A client that comes later and has not read so far is given the rest of the old one's by a session of Godwit's own role: the
//! application may not connect there.

use crate::causes::chain;
use std::collections::VecDeque;

use replicator::Lsn;
use replicator::changes::{self, Before, Positions};
use replicator::postgres::Dsn;
use replicator::postgres::stream::postgres_now;

use super::super::backend::{DENIED, NoBackend, refused};
use super::super::protocol::streaming::{self, Command, Passed, Sent, Start};
use super::super::protocol::tracker::{Status, Tracker};
use super::super::protocol::{names, startup, traces};
use super::super::talk::{Message, Talk};
use super::{
    Arc, Backend, Begun, Client, Duration, End, Fault, Guest, HEADER, Identity, PostgresFront, REST, Secret,
    ShutdownWatch, State, Unprepared, again, await_turn, clock, connect, leaving, message, refusal, stuck,
    welcome, written,
};

/// The longest message: a row.
const LONGEST: usize = 1 << 30;
/// How often an old primary is asked how far it has come.
const ASK: Duration = Duration::from_millis(50);
/// How long a slot may stay in the hands of a session that is over, and when it is looked again.
const RELEASE: Duration = Duration::from_secs(10);
/// How long a server may say nothing in a stream that is over: as long as it waits itself for who reads.
const SILENCE: Duration = Duration::from_secs(60);

/// What Godwit's own role reads changes with, whatever the client has set.
const OWN: [(&str, &str); 2] = [("replication", "database"), ("application_name", "godwit-front")];

/// Physical replication is a server's, not a database's.
pub(super) fn physical(what: &str) -> Fault {
    Fault::fatal("0A000", format!("{what}: only logical replication passes through this front"))
        .hint("Connect to the server itself, or with replication=database.")
}

/// Serves one that has logged in.
pub(super) async fn serve(front: Arc<PostgresFront>, begun: Begun, shutdown: ShutdownWatch) {
    let Begun { mut client, identity, guest, .. } = begun;
    let mut seat = front.turnstile.sit();
    if let Err(End::Fault(fault)) = await_turn(&front, &mut seat).await {
        return client.refuse(&written(&fault)).await;
    }
    let connected = connect(&front, &identity).await;
    // A move waits for nobody who reads changes.
    drop(seat);
    let mut backend = match connected {
        Ok(backend) => backend,
        Err(error) => return client.refuse(&refusal(&front, error)).await,
    };
    let key = (backend.pid, &backend.secret[..]);
    if !welcome(&mut client, &backend.parameters, key, &mut backend.aside).await {
        return;
    }
    let whence = Whence { front, identity, set: State::default(), stuck: Vec::new() };
    let mut this = Replica { whence, client, shutdown, created: false, _guest: guest };
    let Err(end) = this.run(backend).await;
    if let End::Fault(fault) = end {
        tracing::debug!(resource = %this.whence.front.name, %fault, "a replication connection was ended");
        this.client.refuse(&written(&fault)).await;
    }
}

/// Where a client may read, and as whom.
struct Whence {
    front: Arc<PostgresFront>,
    identity: Identity,
    /// Settings and role: they go with it.
    set: State,
    /// What else it has, and cannot.
    stuck: Vec<String>,
}

struct Replica {
    whence: Whence,
    client: Client,
    shutdown: ShutdownWatch,
    /// It has made a slot: what that exported, or a temporary one, is this server session's.
    created: bool,
    _guest: Guest,
}

/// What is read now.
struct Now {
    backend: Backend,
    /// The client's positions are this server's and so much more.
    ahead: u64,
    passed: Passed,
    /// Where it ends, once there is another primary; and what comes after.
    next: Option<(Before, Box<Next>)>,
}

/// What is read next: from where, and as it numbers.
struct Next {
    backend: Backend,
    positions: Positions,
}

/// What was read to its end; the client has not said yet that it keeps all of it.
struct Prior {
    backend: Backend,
    before: Before,
}

/// A question to the server, by what is in the rows of its answer.
enum Asked {
    /// A position, in this column.
    Position(usize),
    /// The tables of publications.
    Tables,
    Other,
}

/// What happens to a stream.
enum Event {
    Client(Message),
    Server(Message),
    Prior(Option<Message>),
    Turn,
    Tick,
}

impl Replica {
    async fn run(&mut self, mut backend: Backend) -> Result<std::convert::Infallible, End> {
        // What is yet to be answered.
        let mut asked: VecDeque<Asked> = VecDeque::new();
        let mut tracker = Tracker::default();
        // Something was run that may have left something.
        let mut touched = false;
        loop {
            tokio::select! {
                message = message_of(self.client.talk()) => {
                    let (tag, body) = message.map_err(|_| End::Client)?;
                    if tag == b'X' {
                        return Err(End::Client);
                    }
                    if asked.is_empty() && backend.generation != self.whence.front.active().generation {
                        if self.created {
                            return Err(End::Fault(moved("It had made a replication slot on the server that was primary.")));
                        }
                        if !tracker.at_boundary() {
                            return Err(End::Fault(moved("It was in a transaction, which was not committed.")));
                        }
                        backend = self.whence.connected().await?;
                    }
                    let command = match tag {
                        b'Q' => {
                            names::find(&body, |name| self.whence.front.learn(name));
                            touched |= traces::in_text(&body);
                            streaming::command(body.strip_suffix(b"\0").unwrap_or(&body))
                        }
                        _ => Command::Other,
                    };
                    match command {
                        Command::Physical(what) => {
                            let mut out = written(&Fault { severity: message::Severity::Error, ..physical(what) });
                            message::ready(&mut out);
                            self.client.talk().send(&out).await.map_err(|_| End::Client)?;
                            continue;
                        }
                        // The answers would come by another connection than the stream.
                        Command::Start(_) if !asked.is_empty() => {
                            return Err(End::Fault(Fault::fatal(
                                "0A000",
                                "START_REPLICATION before the answer to what was sent earlier",
                            )));
                        }
                        Command::Start(start) => {
                            // It ends what a slot has exported anyway.
                            if tracker.at_boundary() && std::mem::take(&mut touched) {
                                self.whence.ask(&mut backend).await?;
                            }
                            backend = Box::pin(self.stream(&start, backend)).await?;
                            continue;
                        }
                        Command::IdentifySystem => asked.push_back(Asked::Position(2)),
                        Command::CreateSlot => {
                            self.created = true;
                            asked.push_back(Asked::Position(1));
                        }
                        Command::Tables => asked.push_back(Asked::Tables),
                        // These end with a ReadyForQuery, each.
                        Command::Other if matches!(tag, b'Q' | b'F' | b'S') => asked.push_back(Asked::Other),
                        Command::Other => {}
                    }
                    tracker.sent(tag);
                    send(backend.talk(), tag, &body).await.map_err(|_| lost())?;
                }
                message = message_of(backend.talk()) => {
                    let (tag, mut body) = message.map_err(|_| lost())?;
                    match (tag, asked.front()) {
                        // Of a command that only the server understood: its positions would pass as they are.
                        (b'W', _) => return Err(not_understood(&streaming::Malformed("a stream that was not asked for"))),
                        (b'Z', _) => {
                            asked.pop_front();
                            tracker.ready(body.first().and_then(|byte| Status::read(*byte)).unwrap_or_default());
                        }
                        (b'C', _) => touched |= self.whence.may_leave(&body),
                        (b'G', _) => tracker.copy_begins(),
                        (b'E', _) => tracker.failed(),
                        // A publication of all tables has Godwit's, which a subscriber has not.
                        (b'D', Some(Asked::Tables)) if is_own(&body) => continue,
                        (b'D', Some(Asked::Position(column))) => {
                            let ahead = self.whence.positions().await?.ahead;
                            body = shifted(&body, *column, ahead).unwrap_or(body);
                        }
                        _ => {}
                    }
                    send(self.client.talk(), tag, &body).await.map_err(|_| End::Client)?;
                    // The next command would end what a slot has exported, and it cannot follow anyway.
                    if touched && tracker.at_boundary() && !self.created {
                        touched = false;
                        self.whence.ask(&mut backend).await?;
                    }
                }
                changed = self.shutdown.changed() => {
                    if changed.is_err() || *self.shutdown.borrow() {
                        return Err(leaving());
                    }
                }
            }
        }
    }

    /// Passes a stream on until its client ends it. Gives back the connection that it came by last.
    async fn stream(&mut self, start: &Start, mut backend: Backend) -> Result<Backend, End> {
        let control =
            self.whence.front.control(&self.whence.front.active()).await.map_err(|error| unknown(&error))?;
        let known =
            changes::register(&control, &self.whence.front.name, &start.slot, &start.publications()).await;
        let known = known.map_err(|error| unknown(&error))?;
        let positions = changes::positions(&control, &self.whence.front.name).await;
        let positions = positions.map_err(|error| unknown(&error))?;
        if backend.generation != self.whence.front.active().generation {
            return Err(End::Fault(moved("It was as the stream began.")));
        }
        let pgoutput = known.as_ref().is_some_and(|known| known.plugin == "pgoutput");
        let before = positions.before.clone().filter(|_| known.is_some());
        // What it has not read of what was written before the last move.
        let mut rest = None;
        if let (Some(known), Some(before)) = (&known, &before)
            && !known.passed
        {
            if start.from < before.end_for_clients() && !known.anew {
                rest = Some((before.clone(), self.whence.rest(before, start, pgoutput).await?));
            } else {
                self.whence.settle(before.clone(), start.slot.clone());
            }
        }
        let now = if let Some((before, (rest, both))) = rest {
            send(self.client.talk(), b'W', &both).await.map_err(|_| End::Client)?;
            let ahead = before.ahead;
            let next = Some((before, Box::new(Next { backend, positions })));
            Now { backend: rest, ahead, passed: Passed::new(pgoutput), next }
        } else {
            let from = start.from.saturating_sub(positions.ahead);
            let from = before.map_or(from, |before| from.max(before.start.0));
            match began(&mut backend, start, from, pgoutput).await {
                Ok(both) => send(self.client.talk(), b'W', &both).await.map_err(|_| End::Client)?,
                Err(NoBackend::Refused(_, mut whole)) => {
                    message::ready(&mut whole);
                    self.client.talk().send(&whole).await.map_err(|_| End::Client)?;
                    return Ok(backend);
                }
                Err(_) => return Err(lost()),
            }
            Now { backend, ahead: positions.ahead, passed: Passed::new(pgoutput), next: None }
        };
        self.pass(start, pgoutput, now).await
    }

    /// Passes on what it reads now and then what comes next. The connection that it gives back is one of the client's own role: of one that reads the
    /// rest with Godwit's nothing is asked but changes.
    async fn pass(&mut self, start: &Start, pgoutput: bool, mut now: Now) -> Result<Backend, End> {
        let mut prior: Option<Prior> = None;
        let mut unsure: Option<Vec<u8>> = None;
        let mut kept = start.from;
        let mut turns = self.whence.front.turnstile.turns();
        // What was turned before it was looked counts, too.
        turns.mark_changed();
        let mut tick = tokio::time::interval(ASK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        // One side has ended it: what the client says then is for the connection that it goes on by. Until when the server is to say more.
        let mut over = None;
        loop {
            let event = tokio::select! {
                biased;
                _ = self.shutdown.changed() => return Err(leaving()),
                message = message_of(self.client.talk()), if over.is_none() => {
                    Event::Client(message.map_err(|_| End::Client)?)
                }
                changed = turns.changed() => changed.map(|()| Event::Turn).map_err(|_| leaving())?,
                message = of_prior(&mut prior) => Event::Prior(message.ok()),
                message = message_of(now.backend.talk()) => Event::Server(message.map_err(|_| lost())?),
                () = passed(over) => return Err(lost()),
                _ = tick.tick(), if now.next.is_some() => Event::Tick,
            };
            if over.is_some() && matches!(event, Event::Server(_)) {
                over = Some(clock::tick() + SILENCE);
            }
            // Before it is passed on: what was read now may be of after the end.
            if now.next.is_none() && now.backend.generation != self.whence.front.active().generation {
                now.next = Some(self.whence.next(&Arc::clone(&now.backend.zone), now.ahead).await?);
            }
            match event {
                Event::Client((b'd', body)) => {
                    let mut theirs = body.clone();
                    let flushed = streaming::client(&mut theirs, now.ahead)
                        .map_err(|malformed| not_understood(&malformed))?;
                    kept = kept.max(flushed.unwrap_or(0));
                    if let Some(old) = &mut prior
                        && flushed.is_some()
                    {
                        if kept < old.before.end_for_clients() {
                            let _ =
                                status(&mut old.backend, kept.saturating_sub(old.before.ahead), false).await;
                            let start = old.before.start.0;
                            status(&mut now.backend, start, false).await.map_err(|_| lost())?;
                            continue;
                        }
                        if let Some(old) = prior.take() {
                            old.backend.close().await;
                            self.whence.settle(old.before, start.slot.clone());
                        }
                    }
                    send(now.backend.talk(), b'd', &theirs).await.map_err(|_| lost())?;
                }
                Event::Client((b'X', _)) => return Err(End::Client),
                Event::Client((b'c', body)) => {
                    over = Some(clock::tick() + SILENCE);
                    send(now.backend.talk(), b'c', &body).await.map_err(|_| lost())?;
                }
                // A server refuses it, too.
                Event::Client(_) => {
                    return Err(not_understood(&streaming::Malformed("neither CopyData nor CopyDone")));
                }
                Event::Server((b'd', body)) => {
                    let end = now.next.as_ref().map(|(before, _)| before.end.0);
                    let first = unsure.take_if(|unsure| streaming::begins_with(unsure, &body));
                    let mut ended = false;
                    for mut body in first.into_iter().chain([body]) {
                        let sent = now.passed.server(&mut body, now.ahead, end);
                        match sent.map_err(|malformed| not_understood(&malformed))? {
                            Sent::Unsure => unsure = Some(body),
                            Sent::Beyond => ended = true,
                            Sent::Own => {}
                            Sent::Reached(upto) if end.is_some_and(|end| upto >= end) => ended = true,
                            Sent::Reached(_) | Sent::Change => {
                                send(self.client.talk(), b'd', &body).await.map_err(|_| End::Client)?;
                            }
                        }
                        if ended {
                            break;
                        }
                    }
                    if ended
                        && over.is_none()
                        && let Some((before, next)) = now.next.take()
                    {
                        let Next { mut backend, positions } = *next;
                        let begun = began(&mut backend, start, before.start.0, pgoutput).await;
                        begun.map_err(|error| match error {
                            NoBackend::Refused(error, _) => {
                                End::Fault(moved(&format!("The new primary refuses: {}", error.message)))
                            }
                            _ => lost(),
                        })?;
                        // A client that has everything says so.
                        let keepalive = streaming::keepalive(before.end_for_clients(), postgres_now(), true);
                        send(self.client.talk(), b'd', &keepalive).await.map_err(|_| End::Client)?;
                        tracing::info!(
                            resource = %self.whence.front.name, slot = start.slot, zone = %backend.zone, end = %before.end,
                            start = %before.start, "a change stream goes on at the new primary"
                        );
                        let next = Now {
                            backend,
                            ahead: positions.ahead,
                            passed: Passed::new(pgoutput),
                            next: None,
                        };
                        unsure = None;
                        let old = std::mem::replace(&mut now, next);
                        prior = Some(Prior { backend: old.backend, before });
                    }
                }
                Event::Server((tag, body)) => {
                    send(self.client.talk(), tag, &body).await.map_err(|_| End::Client)?;
                    if tag == b'E' {
                        over = Some(clock::tick() + SILENCE);
                    }
                    if tag == b'Z' {
                        let Some((_, next)) = now.next else { return Ok(now.backend) };
                        now.backend.close().await;
                        return Ok(next.backend);
                    }
                }
                Event::Prior(Some((b'd', body))) => {
                    if let Some(old) = &mut prior
                        && body.first() == Some(&b'k')
                    {
                        let upto = kept.min(old.before.end_for_clients()).saturating_sub(old.before.ahead);
                        let _ = status(&mut old.backend, upto, false).await;
                    }
                }
                // What its client keeps of it is asked for again when that comes back.
                Event::Prior(None) => prior = None,
                Event::Prior(_) | Event::Turn => {}
                Event::Tick => {
                    let upto = kept.saturating_sub(now.ahead);
                    status(&mut now.backend, upto, true).await.map_err(|_| lost())?;
                }
            }
        }
    }
}

impl Whence {
    /// A connection to where the primary is now, with what the client has set.
    async fn connected(&self) -> Result<Backend, End> {
        if !self.stuck.is_empty() {
            return Err(End::Fault(stuck(&self.stuck)));
        }
        let made = again(&self.front, &self.identity, &State::default()).await;
        let mut backend = made.map_err(|error| error.end(&self.front))?;
        if self.set.is_empty() {
            return Ok(backend);
        }
        match backend.replay_simply(&self.set).await {
            Ok(lost) if lost.is_empty() => Ok(backend),
            Ok(lost) => Err(Unprepared::Lost(lost).end(&self.front)),
            Err(error) => Err(Unprepared::None(error).end(&self.front)),
        }
    }

    /// Whether a command that the server names so may have left something in the session, or ended what it had.
    fn may_leave(&self, body: &[u8]) -> bool {
        let (tag, _) = message::read_text(body).unwrap_or_default();
        // Those of replication (`IDENTIFY_SYSTEM`) leave nothing.
        !tag.contains(&b'_') && traces::in_tag(tag, !self.set.is_empty() || !self.stuck.is_empty())
    }

    /// Asks what the session has.
    async fn ask(&mut self, backend: &mut Backend) -> Result<(), End> {
        let asked = backend.state_simply(&self.front.custom(), &self.identity.user).await;
        let mut state = match asked {
            Ok(state) => state,
            Err(NoBackend::Refused(error, _)) if !error.fatal => State {
                stuck: vec![format!("what it has cannot be read: {}", error.message)],
                ..State::default()
            },
            Err(_) => return Err(lost()),
        };
        self.set = state.take_profile();
        self.stuck = std::mem::take(&mut state.stuck);
        if !state.is_empty() {
            self.stuck.push("what it listens to, has prepared or has locked".into());
        }
        Ok(())
    }

    /// How the primary of now numbers.
    async fn positions(&self) -> Result<Positions, End> {
        let client = self.front.control(&self.front.active()).await.map_err(|error| unknown(&error))?;
        changes::positions(&client, &self.front.name).await.map_err(|error| unknown(&error))
    }

    /// There is another primary: where what is read now ends, and what comes then.
    async fn next(&self, zone: &str, ahead: u64) -> Result<(Before, Box<Next>), End> {
        let backend = self.connected().await?;
        let positions = self.positions().await?;
        match &positions.before {
            Some(before) if before.zone == zone && before.ahead == ahead => {
                Ok((before.clone(), Box::new(Next { backend, positions })))
            }
            _ => Err(End::Fault(moved("It is not known where what it reads ends."))),
        }
    }

    /// The rest of what was written before the last move, from the database that was primary.
    async fn rest(&self, before: &Before, start: &Start, pgoutput: bool) -> Result<(Backend, Vec<u8>), End> {
        let zone: Arc<str> = before.zone.as_str().into();
        let dsn = self
            .front
            .dsn(&zone)
            .ok_or_else(|| moved("The zone that was primary is no longer configured."))
            .map_err(End::Fault)?;
        let unreadable = |why: &str| {
            let detail =
                format!("What was written before the move is in {zone}, and cannot be read there: {why}.");
            End::Fault(moved(&detail))
        };
        let mut identity = own(dsn, &self.identity);
        let opened = loop {
            match Backend::open(dsn, &identity, 0, &zone).await {
                Err(NoBackend::Refused(error, _))
                    if error.sqlstate == DENIED && leave_out(&mut identity, &error.message) => {}
                opened => break opened,
            }
        };
        let mut backend = opened.map_err(|error| unreadable(&chain(error)))?;
        let set = State { settings: self.set.settings.clone(), ..State::default() };
        match backend.replay_simply(&set).await {
            Ok(lost) if lost.is_empty() => {}
            Ok(lost) => return Err(unreadable(&lost.join("; "))),
            Err(error) => return Err(unreadable(&chain(error))),
        }
        let from = start.from.saturating_sub(before.ahead);
        let deadline = clock::tick() + RELEASE;
        loop {
            match began(&mut backend, start, from, pgoutput).await {
                Ok(both) => return Ok((backend, both)),
                // The session that read it before is not over yet.
                Err(NoBackend::Refused(error, _))
                    if error.sqlstate == "55006" && clock::tick() < deadline =>
                {
                    tokio::time::sleep(REST).await;
                }
                Err(NoBackend::Refused(error, _)) => return Err(unreadable(&error.message)),
                Err(_) => return Err(lost()),
            }
        }
    }

    /// The client keeps all of what was written before the move: its slot there is to go.
    fn settle(&self, before: Before, slot: String) {
        let generation = self.front.active().generation;
        let mut turns = self.front.turnstile.turns();
        let front = Arc::downgrade(&self.front);
        tokio::spawn(async move {
            // A further move does the same first.
            while let Some(front) = front.upgrade().filter(|front| front.active().generation == generation) {
                let Err(why) = settled(&front, &before, &slot).await else { return };
                tracing::warn!(
                    resource = %front.name, slot, zone = before.zone, why,
                    "the slot of a change stream stays at the old primary for now"
                );
                drop(front);
                let _ = tokio::time::timeout(RELEASE, turns.changed()).await;
            }
        });
    }
}

async fn settled(front: &PostgresFront, before: &Before, slot: &str) -> Result<(), String> {
    let dsn = front.dsn(&before.zone).ok_or("the zone is no longer configured")?;
    let old = replicator::postgres::connect(dsn, "godwit-front").await.map_err(chain)?;
    let deadline = clock::tick() + RELEASE;
    loop {
        let primary = front.control(&front.active()).await.map_err(chain)?;
        // Whoever has just read it may not be gone.
        changes::advance(&old, slot, before.end).await.map_err(chain)?;
        let unread = changes::settle(&primary, &old, &front.name).await.map_err(chain)?;
        if !unread.iter().any(|unread| unread == slot) {
            return Ok(());
        }
        if clock::tick() > deadline {
            return Err("somebody reads it".into());
        }
        tokio::time::sleep(REST).await;
    }
}

/// Godwit's own role, to read changes, with what the client's startup packet sets: values are written by that.
fn own(dsn: &Dsn, client: &Identity) -> Identity {
    let secret = dsn.get_password().map_or(Secret::None, |password| Secret::Password(password.to_vec()));
    let mut parameters: Vec<_> = OWN.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    // As at a server, what comes later counts.
    let set = client.options().and_then(startup::options);
    if set.is_none() {
        parameters.extend(client.options().map(|options| ("options".to_owned(), options.to_owned())));
    }
    let others = client.parameters.iter().filter(|(name, _)| name != "options").cloned();
    let set = set.into_iter().flatten().chain(others);
    parameters.extend(set.filter(|(name, _)| {
        let own = OWN.iter().any(|(own, _)| name.eq_ignore_ascii_case(own));
        !own && !names::is_who(name.as_bytes()) && !name.starts_with("_pq_.")
    }));
    Identity { user: dsn.get_user().unwrap_or_default().to_owned(), parameters, secret }
}

/// Without the setting that the server says Godwit's role may not set; false: it says so of none.
fn leave_out(identity: &mut Identity, said: &str) -> bool {
    let said = said.to_ascii_lowercase();
    let theirs = identity.parameters.iter().enumerate().skip(OWN.len());
    let named = theirs.filter(|(_, (name, _))| said.contains(&name.to_ascii_lowercase()));
    let at = named.max_by_key(|(_, (name, _))| name.len()).map(|(at, _)| at);
    at.map(|at| identity.parameters.remove(at)).is_some()
}

/// What a prior one says; for ever, if there is none.
async fn of_prior(prior: &mut Option<Prior>) -> std::io::Result<Message> {
    match prior {
        Some(prior) => message_of(prior.backend.talk()).await,
        None => std::future::pending().await,
    }
}

/// Returns when that is over; never, if there is no end.
async fn passed(end: Option<tokio::time::Instant>) {
    match end {
        Some(end) => tokio::time::sleep_until(end).await,
        None => std::future::pending().await,
    }
}

/// Has a stream begin; what its CopyBothResponse says.
async fn began(
    backend: &mut Backend,
    start: &Start,
    from: u64,
    pgoutput: bool,
) -> Result<Vec<u8>, NoBackend> {
    let version = backend.parameters.iter().find(|(name, _)| **name == *b"server_version");
    let major = version.and_then(|(_, version)| {
        let digits = version.iter().take_while(|byte| byte.is_ascii_digit());
        digits.map(|digit| u32::from(digit - b'0')).reduce(|number, digit| number.wrapping_mul(10) + digit)
    });
    let command = match major.filter(|_| pgoutput) {
        Some(major) => start.for_pgoutput_of(major).sql(from),
        None => start.sql(from),
    };
    let mut out = Vec::new();
    message::query(&mut out, command.as_bytes());
    backend.talk().send(&out).await.map_err(NoBackend::Lost)?;
    let mut failure = NoBackend::Unexpected(b'Z');
    loop {
        let (tag, body) = message_of(backend.talk()).await.map_err(NoBackend::Lost)?;
        match tag {
            b'W' => return Ok(body),
            b'E' => failure = refused(&body),
            b'Z' => return Err(failure),
            _ => {}
        }
    }
}

async fn status(backend: &mut Backend, position: u64, reply: bool) -> std::io::Result<()> {
    let body = streaming::status(position, postgres_now(), reply);
    send(backend.talk(), b'd', &body).await
}

async fn message_of(mut talk: Talk<'_>) -> std::io::Result<Message> {
    talk.message(LONGEST).await
}

async fn send(mut talk: Talk<'_>, tag: u8, body: &[u8]) -> std::io::Result<()> {
    let mut out = Vec::with_capacity(HEADER + body.len());
    message::write(&mut out, tag, |out| out.extend(body));
    talk.send(&out).await
}

/// Whether a DataRow is of a table of Godwit's own, whose schema comes first.
fn is_own(body: &[u8]) -> bool {
    message::row(body).is_some_and(|row| row.first() == Some(&Some(&b"godwit"[..])))
}

/// A DataRow with the position in one of its columns shifted; none: there is none.
fn shifted(body: &[u8], column: usize, ahead: u64) -> Option<Vec<u8>> {
    let mut row = message::row(body)?;
    let position: Lsn = std::str::from_utf8((*row.get(column)?)?).ok()?.parse().ok()?;
    let position = Lsn(position.0 + ahead).to_string();
    row[column] = Some(position.as_bytes());
    let mut out = u16::try_from(row.len()).ok()?.to_be_bytes().to_vec();
    for value in row {
        let length = value.map_or(Ok(-1), |value| i32::try_from(value.len())).ok()?;
        out.extend(length.to_be_bytes());
        out.extend(value.unwrap_or_default());
    }
    Some(out)
}

fn moved(detail: &str) -> Fault {
    Fault::fatal("57P01", "terminating connection: the database was moved")
        .detail(detail)
        .hint("Connect again.")
}

fn lost() -> End {
    End::Fault(Fault::fatal("08006", "the connection to the database was lost"))
}

fn not_understood(malformed: &streaming::Malformed) -> End {
    End::Fault(Fault::fatal(
        "08P01",
        format!("a message of the change stream is not understood: {malformed}"),
    ))
}

fn unknown(error: &dyn std::error::Error) -> End {
    let fault = Fault::fatal("08001", "it cannot be found out how the database numbers changes");
    End::Fault(fault.detail(chain(error)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
