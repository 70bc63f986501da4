//! One client's session, from its connection to its end: let in, relayed, held, carried to another database.

use std::sync::Arc;
use std::time::Duration;

use pingora::server::ShutdownWatch;
use replicator::postgres::Socket;
use tokio::sync::watch;

use self::ready::{Ready, again, prepare, prepare_here};
use self::shared::Share;
use super::backend::{Backend, Identity, NoBackend, Parameter};
use super::front::{Guest, PostgresFront, Registered};
use super::login::{Client, Greeted, NoClient};
use super::meters::Moved;
use super::pool::Shelf;
use super::protocol::frame::HEADER;
use super::protocol::message::{self, Fault};
use super::protocol::oids::retyped;
use super::protocol::scram::{self, Secret};
use super::protocol::startup::Startup;
use super::protocol::state::State;
use super::protocol::statements::Has;
use super::protocol::tracker::Status;
use super::rehearsal::knows_another_secret;
use super::relay::{Answered, Event, Relay, Watch};
use super::turnstile::{Held, Refused, Seat, Turn};
use super::verifiers::Unknown;
use crate::causes::chain;
use crate::clock;
use crate::config::model::PostgresAuth;

mod ready;
mod replica;
mod shared;

/// Connections beyond those of sessions: that ask for a cancel, or are told that there are too many.
const SPARE: usize = 64;

/// How long it rests between two tries to reach the new primary.
const REST: Duration = Duration::from_millis(50);

/// Serves one connection.
pub(super) async fn serve(front: Arc<PostgresFront>, socket: Box<dyn Socket>, shutdown: ShutdownWatch) {
    let (guest, count) = front.come();
    if count > front.settings.connections + SPARE {
        return;
    }
    let beginning = Box::pin(begin(&front, socket, count, guest));
    let begun = match tokio::time::timeout(front.settings.startup, beginning).await {
        Ok(Some(begun)) => begun,
        Ok(None) => return,
        Err(_) => {
            tracing::debug!(resource = %front.name, "a client took too long to log in");
            return;
        }
    };
    if begun.replicates {
        return Box::pin(replica::serve(front, begun, shutdown)).await;
    }
    let opened = match &front.pool {
        None => Box::pin(Session::open(&front, begun)).await,
        Some(pool) => Box::pin(Session::open_shared(&front, pool, begun)).await,
    };
    let Some(mut session) = opened else { return };
    let end = session.run(shutdown).await;
    Box::pin(session.end(end)).await;
}

/// A client that has proven itself.
struct Begun {
    client: Client,
    identity: Identity,
    /// It is to read changes.
    replicates: bool,
    guest: Guest,
}

async fn begin(
    front: &Arc<PostgresFront>,
    socket: Box<dyn Socket>,
    count: usize,
    mut guest: Guest,
) -> Option<Begun> {
    let mut replicates = false;
    let outcome = match Client::greet(socket, front.tls.as_ref()).await {
        Ok(Greeted::Cancel(pid, secret)) => {
            front.cancel(pid, secret).await;
            return None;
        }
        Ok(Greeted::Session(client, _)) if count > front.settings.connections => {
            Err(client.fault(Fault::fatal("53300", "sorry, too many clients already")))
        }
        Ok(Greeted::Session(client, startup)) => {
            replicates = startup.replicates();
            let_in(front, client, &startup).await
        }
        Err(no) => Err(no),
    };
    match outcome {
        Ok((client, identity)) => {
            guest.is(&identity);
            Some(Begun { client, identity, replicates, guest })
        }
        Err(NoClient::Fault(fault, client)) => {
            tracing::debug!(resource = %front.name, %fault, "a client was refused");
            if let Some(client) = client {
                client.refuse(&written(&fault)).await;
            }
            None
        }
        Err(NoClient::Gone(error)) => {
            tracing::debug!(resource = %front.name, %error, "a client left during its login");
            None
        }
    }
}

async fn let_in(
    front: &PostgresFront,
    client: Client,
    startup: &Startup,
) -> Result<(Client, Identity), NoClient> {
    let user = startup.user();
    if startup.replicates() && startup.get("replication") != Some("database") {
        return Err(client.fault(replica::physical("replication=true")));
    }
    let (client, keys) = if front.settings.auth == PostgresAuth::Trust {
        (client, None)
    } else {
        // The rest of its time is for the client, which is to hear of it.
        let asking = tokio::time::timeout(front.settings.startup / 2, front.verifier(user));
        let asked = asking.await.unwrap_or(Err(Unknown::NoAnswer));
        if let Err(error) = &asked {
            let error = chain(error);
            tracing::warn!(resource = %front.name, user, error, "a role's verifier is not known");
        }
        let verifier = match asked {
            Ok(verifier) => verifier,
            // No password is right for it.
            Err(Unknown::OtherKind) => None,
            Err(_) => {
                let fault = Fault::fatal("08001", "the role's verifier cannot be asked for now");
                return Err(client.fault(fault.hint("Try again in a moment.")));
            }
        };
        let doomed = verifier.is_none();
        let verifier = verifier.unwrap_or_else(|| scram::made_up(front.made_up.as_bytes(), user));
        match client.prove(&verifier, doomed).await {
            Ok((client, keys)) => (client, Some((verifier, keys))),
            Err(NoClient::Fault(mut fault, client)) => {
                if fault.sqlstate == "28P01" {
                    fault.message = format!("password authentication failed for user \"{user}\"");
                }
                return Err(NoClient::Fault(fault, client));
            }
            Err(gone) => return Err(gone),
        }
    };
    if startup.database() != front.settings.database {
        let message = format!("database \"{}\" does not exist", startup.database());
        return Err(client.fault(Fault::fatal("3D000", message)));
    }
    let secret = match (front.settings.passwords.get(user), keys) {
        (Some(password), _) => Secret::Password(password.as_bytes().to_vec()),
        (None, Some(keys)) => Secret::Keys(Box::new(keys)),
        (None, None) => Secret::None,
    };
    let parameters = startup.parameters.iter();
    let replicates = startup.replicates();
    let parameters = parameters.filter(|(name, _)| match name.as_str() {
        "user" | "database" => false,
        "replication" => replicates,
        _ => true,
    });
    let identity = Identity { user: user.to_owned(), parameters: parameters.cloned().collect(), secret };
    Ok((client, identity))
}

fn written(fault: &Fault) -> Vec<u8> {
    let mut out = Vec::new();
    fault.write(&mut out);
    out
}

/// How a session ends.
enum End {
    /// Its client left.
    Client,
    /// Its database did, and has told why.
    Told,
    /// We end it.
    Fault(Fault),
}

impl From<Refused> for End {
    fn from(refused: Refused) -> Self {
        let fault = Fault::fatal("57P03", "the database is being moved");
        Self::Fault(fault.detail(refused.to_string()).hint("Try again in a moment."))
    }
}

struct Session {
    front: Arc<PostgresFront>,
    /// It shares connections.
    share: Option<Share>,
    relay: Relay,
    identity: Identity,
    seat: Seat,
    key: Registered,
    eyes: Eyes,
    generation: u64,
    _guest: Guest,
}

/// What the relay sees of the front.
struct Eyes {
    front: Arc<PostgresFront>,
    zone: Arc<str>,
    statements: metrics::Histogram,
    /// The process ends: so does the session, between transactions.
    leaving: bool,
    /// What the client waited with is to be cancelled as soon as it was passed on.
    cancels: bool,
    /// Where its connections come from, if it shares them.
    shelf: Option<Arc<Shelf>>,
}

impl Eyes {
    fn new(front: &Arc<PostgresFront>, zone: Arc<str>, shelf: Option<Arc<Shelf>>) -> Self {
        let statements = front.meters.statements(&zone);
        Self { front: Arc::clone(front), statements, zone, leaving: false, cancels: false, shelf }
    }
}

impl Watch for Eyes {
    fn closed(&self, reads: bool) -> bool {
        self.leaving || self.front.turnstile.holds(reads)
    }

    fn answered(&self, answered: Answered) {
        self.front.meters.answered(&self.zone, &self.statements, answered);
    }

    fn names(&self, name: &str) {
        self.front.learn(name);
    }

    fn wanted(&self) -> bool {
        self.shelf.as_ref().is_some_and(|shelf| shelf.wanted())
    }
}

impl Session {
    /// Gives the client a session of the database.
    async fn open(front: &Arc<PostgresFront>, begun: Begun) -> Option<Self> {
        let Begun { mut client, identity, guest, .. } = begun;
        let mut seat = front.turnstile.sit();
        if let Err(End::Fault(fault)) = await_turn(front, &mut seat).await {
            client.refuse(&written(&fault)).await;
            return None;
        }
        let mut backend = match connect(front, &identity).await {
            Ok(backend) => backend,
            Err(error) => {
                client.refuse(&refusal(front, error)).await;
                return None;
            }
        };
        let key = (backend.pid, &backend.secret[..]);
        if !welcome(&mut client, &backend.parameters, key, &mut backend.aside).await {
            return None;
        }
        let key = front.register(&backend.zone, backend.pid, &backend.secret);
        let eyes = Eyes::new(front, backend.zone, None);
        let mut relay = Relay::new(client.socket, client.received, backend.parameters, backend.pid, None);
        relay.attach(backend.socket, backend.received);
        let (front, generation) = (Arc::clone(front), backend.generation);
        Some(Self { front, share: None, relay, identity, seat, key, eyes, generation, _guest: guest })
    }

    /// Relays until it ends.
    async fn run(&mut self, mut shutdown: ShutdownWatch) -> End {
        let mut turns = self.front.turnstile.turns();
        if self.share.is_some()
            && let Err(end) = Box::pin(self.attend(&mut turns, &mut shutdown)).await
        {
            return end;
        }
        loop {
            let event = tokio::select! {
                event = self.relay.run(&self.eyes, false) => event,
                _ = turns.changed() => {
                    // Not borrowed any longer: whoever turns it holds the turnstile's lock meanwhile.
                    let turn = turns.borrow_and_update().clone();
                    if turn.ending && !self.relay.at_boundary() {
                        return Box::pin(self.too_long()).await;
                    }
                    if turn.but_reads && self.relay.reads {
                        self.seat.only_reads();
                    }
                    continue;
                }
                changed = shutdown.changed(), if !self.eyes.leaving => {
                    self.eyes.leaving = changed.is_err() || *shutdown.borrow();
                    continue;
                }
                // The relay is polled before that: what the client has sent is under way by then.
                () = tokio::task::yield_now(), if self.eyes.cancels => {
                    self.eyes.cancels = false;
                    self.key.cancel();
                    continue;
                }
            };
            if matches!(event, Event::Boundary) {
                self.eyes.cancels = false;
            }
            match event {
                Event::Boundary if self.eyes.leaving => return leaving(),
                Event::Boundary => {
                    let outcome = if self.share.is_some() {
                        Box::pin(self.between(&mut turns, &mut shutdown)).await
                    } else {
                        Box::pin(self.stand(&mut turns)).await
                    };
                    if let Err(end) = outcome {
                        return end;
                    }
                }
                Event::BackendGone if self.relay.told => return End::Told,
                Event::BackendGone => return End::Fault(self.lost()),
                Event::Malformed(malformed, false) => {
                    return End::Fault(Fault::fatal("08P01", format!("the database sent {malformed}")));
                }
                event => {
                    if let Some(end) = of_client(event) {
                        return end;
                    }
                }
            }
        }
    }

    /// Its transaction was open for longer than a move waits.
    async fn too_long(&mut self) -> End {
        let fault = |sqlstate| Fault::fatal(sqlstate, "terminating connection: the database is being moved");
        let tracker = &self.relay.tracker;
        if tracker.owes() || tracker.within_unit() {
            let detail = "The transaction was open for longer than a move waits; what was sent last may have been committed or not.";
            return End::Fault(fault("57P01").detail(detail));
        }
        let open = tracker.status() == Status::Open;
        let serializes = match self.lend().filter(|_| open) {
            Some(mut backend) => backend.serializes().await,
            None => false,
        };
        End::Fault(
            fault(if serializes { "40001" } else { "57P01" })
                .detail("The transaction was open for longer than a move waits; it was not committed.")
                .hint("Connect again and repeat the transaction."),
        )
    }

    /// Stands between transactions while none may begin; afterwards it is on the database that is primary then.
    async fn stand(&mut self, turns: &mut watch::Receiver<Turn>) -> Result<(), End> {
        let turn = turns.borrow_and_update().clone();
        if !turn.holds(self.relay.reads) {
            return Ok(());
        }
        let front = Arc::clone(&self.front);
        let generation = self.generation;
        let mut state = tokio::select! {
            state = self.ask() => state?,
            // Only a takeover does not wait for the answer: the lost primary may have none.
            _ = turns.wait_for(|turn| !turn.closed && front.active().generation != generation) => {
                return Err(End::Fault(self.lost()));
            }
        };
        if state.stuck.is_empty() && !state.locks.is_empty() {
            self.count_locks(&mut state).await?;
        }
        let state = Arc::new(state);
        let next = turn.next.clone().filter(|_| state.stuck.is_empty() && self.goes_back(&turn).is_none());
        let mut ready = next.map_or_else(Ready::default, |zone| self.get_ready(zone, &state));
        let mut claim = state.is_claimed().then(|| self.seat.claim());
        self.seat.park();
        let mut goes_back = |session: &Self, turn: &Turn| {
            if let Some(zone) = session.goes_back(turn) {
                let claims = claim.is_some() && session.relay.may_have_lost_its_backend();
                ready = if claims { session.get_ready(zone, &state) } else { Ready::default() };
            }
            if let Some(claim) = &mut claim {
                claim.hear();
            }
        };
        let held = self.wait(turns, &mut goes_back).await?;
        let outcome = self.resume(&state, &mut ready).await;
        self.eyes.cancels = self.key.goes_on();
        self.was_held(held);
        outcome
    }

    /// Begins to make a connection to the next primary, with this state.
    fn get_ready(&self, zone: Arc<str>, state: &Arc<State>) -> Ready {
        let guard = self.seat.prepare();
        let (front, identity, state) = (Arc::clone(&self.front), self.identity.clone(), Arc::clone(state));
        // The generation is known when it is sworn in.
        Ready::begin(Arc::clone(&zone), async move {
            let made = prepare(&front, &identity, 0, &zone, &state).await;
            drop(guard);
            made
        })
    }

    /// Its client waited, or did not.
    fn was_held(&self, held: Option<Held>) {
        if let Some(held) = held {
            self.front.meters.held(crate::fronts::now().saturating_duration_since(held.since));
        }
    }

    /// What the session has, as its server knows it.
    async fn ask(&mut self) -> Result<State, End> {
        let custom = self.front.custom();
        let Some(mut backend) = self.lend() else { return Err(End::Fault(self.lost())) };
        let asked = backend.state(&custom, &self.identity.user).await;
        self.take_back(backend);
        let mut state = match asked {
            Ok(state) => state,
            // The session is there, but what it has is not known.
            Err(NoBackend::Refused(error, _)) if !error.fatal => State {
                stuck: vec![format!("what it has cannot be read: {}", error.message)],
                ..State::default()
            },
            Err(error) => {
                tracing::debug!(resource = %self.front.name, error = %error, "a session ended as it was asked what it has");
                return Err(End::Fault(self.lost()));
            }
        };
        if self.share.is_some() {
            // Those of the protocol are the front's: it prepares them where they are needed.
            state.statements.retain(|statement| statement.from_sql);
        } else {
            state.unnamed.clone_from(&self.relay.unnamed);
        }
        if state.has_own_types() {
            state.catalogue = self.front.catalogue(self.generation);
        }
        Ok(state)
    }

    /// How often it took each of its advisory locks.
    async fn count_locks(&mut self, state: &mut State) -> Result<(), End> {
        let Some(mut backend) = self.lend() else { return Err(End::Fault(self.lost())) };
        let counted = backend.count_locks(state).await;
        self.take_back(backend);
        counted.map_err(|error| {
            tracing::debug!(resource = %self.front.name, error = %error, "a session ended as its locks were counted");
            End::Fault(stuck(&[format!("its advisory locks cannot be counted: {error}")]))
        })
    }

    /// Where sessions are told to get ready for, if that is where they have been.
    fn goes_back(&self, turn: &Turn) -> Option<Arc<str>> {
        turn.next.clone().filter(|zone| turn.closed && *zone == self.front.active().zone)
    }

    /// Until transactions may begin. Whether the client waited.
    async fn wait(
        &mut self,
        turns: &mut watch::Receiver<Turn>,
        at_turns: &mut (impl FnMut(&Self, &Turn) + Send),
    ) -> Result<Option<Held>, End> {
        let reads = self.relay.reads;
        let holds = turns.borrow_and_update().holds(reads);
        if !holds && self.seat.resume(reads) {
            return Ok(None);
        }
        let mut held = None;
        if self.relay.client_waits() {
            held = Some(self.seat.hold()?);
            self.key.waits();
        }
        let longest = self.front.turnstile.longest();
        let mut deadline = clock::tick() + longest;
        loop {
            let open = !turns.borrow_and_update().holds(reads);
            let in_turn = held.is_some() || !self.front.turnstile.ramps();
            if open && in_turn && self.seat.resume(reads) {
                return Ok(held);
            }
            tokio::select! {
                changed = turns.changed() => {
                    if changed.is_err() {
                        return Err(End::Client);
                    }
                    let turn = turns.borrow_and_update().clone();
                    at_turns(self, &turn);
                }
                event = self.relay.run(&self.eyes, true) => match event {
                    Event::ClientWaits if held.is_none() => {
                        held = Some(self.seat.hold()?);
                        self.key.waits();
                        deadline = clock::tick() + longest;
                    }
                    // The fence ends the old primary's sessions: what it had is known, nobody is told.
                    Event::BackendGone | Event::Malformed(_, false) => self.relay.forget_backend(),
                    event => {
                        if let Some(end) = of_client(event) {
                            return Err(end);
                        }
                    }
                },
                () = tokio::time::sleep_until(deadline), if held.is_some() => {
                    if self.seat.resume_at_once(reads) {
                        return Ok(held);
                    }
                    return Err(self.seat.refuse().into());
                }
            }
        }
    }

    /// Goes on where the primary is now.
    async fn resume(&mut self, state: &State, ready: &mut Ready) -> Result<(), End> {
        let active = self.front.active();
        if self.generation == active.generation
            && let Some(mut backend) = self.lend()
            && backend.answers().await
        {
            self.take_back(backend);
            self.front.meters.moved(Moved::Kept);
            return Ok(());
        }
        self.relay.forget_backend();
        if !state.stuck.is_empty() {
            self.front.meters.moved(Moved::Ended);
            return Err(End::Fault(stuck(&state.stuck)));
        }
        let backend = match ready.made(&active).await {
            Some(backend) => backend,
            None => match again(&self.front, &self.identity, state).await {
                Ok(backend) => backend,
                Err(error) => {
                    self.front.meters.moved(Moved::Ended);
                    return Err(error.end(&self.front));
                }
            },
        };
        let has = self.relay.shared.as_ref().map_or_else(Has::default, |shared| shared.has.elsewhere());
        let placed = self.place(backend, has);
        self.front.meters.moved(if placed.is_ok() { Moved::Carried } else { Moved::Ended });
        placed
    }

    /// Goes on with this connection.
    fn place(&mut self, backend: Backend, has: Has) -> Result<(), End> {
        if self.generation != backend.generation {
            self.renumber(backend.generation)?;
            self.generation = backend.generation;
        }
        self.key.moved(&backend.zone, backend.pid, &backend.secret);
        if self.eyes.zone != backend.zone {
            self.eyes.zone = Arc::clone(&backend.zone);
            self.eyes.statements = self.front.meters.statements(&backend.zone);
        }
        self.relay.pids.0 = backend.pid;
        if let Some(shared) = &mut self.relay.shared {
            shared.take(has);
        }
        self.relay.attach(backend.socket, backend.received);
        self.relay.adopt(backend.parameters);
        self.relay.tell(backend.aside);
        Ok(())
    }

    /// The client's numbers of types and tables mean those of another primary from here on.
    fn renumber(&mut self, generation: u64) -> Result<(), End> {
        let (from, to) = (self.front.catalogue(self.generation), self.front.catalogue(generation));
        if (from.is_none() || to.is_none()) && self.relay.oids.knows_types() {
            return Err(End::Fault(stuck(&["the numbers of types that its client knows".into()])));
        }
        // Of tables alone it is told other numbers.
        let (from, to) = (from.unwrap_or_default(), to.unwrap_or_default());
        self.relay.oids.moved(&from, &to);
        let there = |oid| from.type_in(oid, &to).unwrap_or(0);
        if let Some(parse) = self.relay.unnamed.as_mut().and_then(|parse| parse.get_mut(HEADER..)) {
            let _ = retyped(parse, there);
        }
        if let Some(shared) = &mut self.relay.shared {
            shared.moved(there);
        }
        Ok(())
    }

    /// The connection, to be asked something between two transactions.
    fn lend(&mut self) -> Option<Backend> {
        Some(Backend {
            socket: self.relay.backend.take()?,
            received: std::mem::take(&mut self.relay.from_backend),
            pid: self.relay.pids.0,
            secret: Vec::new(),
            parameters: Arc::clone(&self.relay.parameters),
            aside: Vec::new(),
            generation: self.generation,
            zone: Arc::clone(&self.eyes.zone),
        })
    }

    fn take_back(&mut self, backend: Backend) {
        self.relay.backend = Some(backend.socket);
        self.relay.from_backend = backend.received;
        self.relay.adopt(backend.parameters);
        self.relay.tell(backend.aside);
    }

    /// What a client is told whose database went without a word.
    fn lost(&self) -> Fault {
        let tracker = &self.relay.tracker;
        if tracker.owes() || tracker.within_unit() {
            return Fault::fatal("08007", "the connection to the database was lost before it answered")
                .detail("What was sent last may have been committed or not; it was not sent again.")
                .hint("Look whether it is there before you repeat it.");
        }
        let fault = Fault::fatal("08006", "the connection to the database was lost");
        if tracker.status() == Status::Idle {
            return fault;
        }
        fault.detail("The transaction was not committed.")
    }

    async fn end(mut self, end: End) {
        match end {
            End::Client if self.relay.gives_back() && !self.touched() => self.give_back(),
            End::Client => self.relay.hang_up().await,
            End::Told => self.relay.finish().await,
            End::Fault(fault) => {
                tracing::debug!(resource = %self.front.name, %fault, "a session was ended");
                self.relay.forget_backend();
                self.relay.say(&written(&fault));
                self.relay.finish().await;
            }
        }
    }
}

/// Why a session cannot go on elsewhere.
enum Unprepared {
    None(NoBackend),
    /// What could not be carried.
    Lost(Vec<String>),
}

impl Unprepared {
    fn end(self, front: &PostgresFront) -> End {
        End::Fault(match self {
            Self::Lost(what) => stuck(&what),
            Self::None(error) => unreachable_fault(front, &error),
        })
    }
}

/// How a session ends by what became of its client.
fn of_client(event: Event) -> Option<End> {
    match event {
        Event::ClientGone => Some(End::Client),
        Event::Malformed(malformed, true) => {
            Some(End::Fault(Fault::fatal("08P01", format!("invalid message: {malformed}"))))
        }
        Event::TooLong(too_long) => Some(End::Fault(
            Fault::fatal("54000", too_long.to_string())
                .hint("Send it without a name, or connect past the pool."),
        )),
        _ => None,
    }
}

/// The process ends.
fn leaving() -> End {
    End::Fault(Fault::fatal("57P01", "terminating connection due to administrator command"))
}

/// Lets a client in: what the server says of itself, the session's key, and that it may ask. Whether the client is still there.
async fn welcome(
    client: &mut Client,
    parameters: &[Parameter],
    key: (u32, &[u8]),
    aside: &mut Vec<u8>,
) -> bool {
    let mut out = Vec::new();
    message::authentication(&mut out, 0, &[]);
    for (name, value) in parameters {
        message::parameter(&mut out, name, value);
    }
    message::key(&mut out, key.0, key.1);
    out.append(aside);
    message::ready(&mut out);
    client.talk().send(&out).await.is_ok()
}

/// What a client is told that gets no session of the database.
fn refusal(front: &PostgresFront, error: NoBackend) -> Vec<u8> {
    match error {
        NoBackend::Refused(_, error) => error,
        error => written(&unreachable_fault(front, &error)),
    }
}

async fn connect(front: &PostgresFront, identity: &Identity) -> Result<Backend, NoBackend> {
    let active = front.active();
    open(front, identity, active.generation, &active.zone, true).await
}

/// `fresh`: the client has proven itself just now.
async fn open(
    front: &PostgresFront,
    identity: &Identity,
    generation: u64,
    zone: &Arc<str>,
    fresh: bool,
) -> Result<Backend, NoBackend> {
    let Some(dsn) = front.dsn(zone) else {
        return Err(NoBackend::Lost(std::io::ErrorKind::NotFound.into()));
    };
    let mut opened = Backend::open(dsn, identity, generation, zone).await;
    match &opened {
        Ok(_) if fresh => front.roles.learn(identity),
        Ok(_) => front.roles.learn_again(identity),
        // The password was changed since it logged in: a server would let it stay.
        Err(error) if knows_another_secret(error) => {
            if let Some(newest) = front.roles.newest(identity) {
                opened = Backend::open(dsn, &newest, generation, zone).await;
            }
        }
        Err(_) => {}
    }
    front.meters.connected(zone, opened.is_ok());
    opened
}

/// Until the turnstile lets a new session through.
async fn await_turn(front: &PostgresFront, seat: &mut Seat) -> Result<(), End> {
    if seat.resume(false) {
        return Ok(());
    }
    let _held = seat.hold()?;
    let mut turns = front.turnstile.turns();
    let waiting = async {
        loop {
            let open = !turns.borrow_and_update().closed;
            if open && seat.resume(false) || turns.changed().await.is_err() {
                return;
            }
        }
    };
    match tokio::time::timeout(front.turnstile.longest(), waiting).await {
        Ok(()) => Ok(()),
        Err(_) if seat.resume_at_once(false) => Ok(()),
        Err(_) => Err(seat.refuse().into()),
    }
}

fn stuck(what: &[String]) -> Fault {
    Fault::fatal("57P01", "terminating connection: the database was moved and this session cannot follow")
        .detail(format!("What it has and cannot be carried: {}.", what.join("; ")))
        .hint("Connect again.")
}

fn unreachable_fault(front: &PostgresFront, error: &NoBackend) -> Fault {
    let sqlstate = match error {
        NoBackend::Login(_) | NoBackend::Method(_) => "28000",
        NoBackend::Unexpected(_) => "08P01",
        _ => "08001",
    };
    let text = chain(error);
    tracing::warn!(resource = %front.name, error = text, "no connection to the database for a client");
    Fault::fatal(sqlstate, "the database cannot be reached for this session").detail(match sqlstate {
        "28000" => "The front could not log in there; its log says why.",
        _ => "The front could not connect to it; its log says why.",
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
