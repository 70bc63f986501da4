//! A session that shares connections: it has one for a transaction at a time.
//!
//! Between transactions it has none, and is *parked* as far as the turnstile is concerned: a cutover waits for transactions, not for
//! sessions. When its client wants something it takes its turn at the turnstile, a place in the pool, and a connection with its
//! profile. Afterwards, if something may have been left there, the server is asked what: settings and role become the client's profile
//! and go with it; anything else (a temporary table, LISTEN, a lock of the session, a PREPARE by SQL) keeps the client on the
//! connection for as long as it is there.

use std::sync::Arc;
use std::time::Duration;

use pingora::server::ShutdownWatch;
use tokio::sync::watch;

use super::super::backend::{Backend, Identity, Parameters};
use super::super::front::PostgresFront;
use super::super::pool::{Place, Pool, Shelf};
use super::super::protocol::message::Fault;
use super::super::protocol::names;
use super::super::protocol::state::State;
use super::super::protocol::statements::{Has, Statements};
use super::super::relay::{Event, Relay};
use super::super::turnstile::{Seat, Turn};
use super::{
    Begun, End, Eyes, Ready, Session, Unprepared, again, await_turn, leaving, of_client, prepare_here,
    refusal, welcome, written,
};
use crate::clock;

/// What a session needs to share connections.
pub(super) struct Share {
    shelf: Arc<Shelf>,
    /// What the startup packet set.
    base: Arc<State>,
    /// Not all of that can be asked for.
    unread: bool,
    /// What the client has set.
    profile: Arc<State>,
    /// What is set on the connection that it has.
    on: Arc<State>,
    /// While it has a connection, or the right to one.
    place: Option<Place>,
}

impl Session {
    /// Lets the client in; a connection is needed only if it is not known how the server greets one with such a startup packet.
    pub(super) async fn open_shared(front: &Arc<PostgresFront>, pool: &Pool, begun: Begun) -> Option<Self> {
        let Begun { mut client, identity, guest, .. } = begun;
        let (identity, base) = identity.shared();
        let shelf = pool.shelf(&identity.user, identity.options());
        let (unread, base) = (!learned(front, &base), Arc::new(base));
        let mut seat = front.turnstile.sit();
        let greeting = match shelf.greeting(front.active().generation, &base) {
            Some(greeting) => greeting,
            None => match greeting(front, &identity, &shelf, &base, &mut seat).await {
                Ok(greeting) => greeting,
                Err(refusal) => {
                    client.refuse(&refusal).await;
                    return None;
                }
            },
        };
        // Whether it needs a connection or not: it has proven itself by this, and a server takes what it asks for.
        front.roles.learn(&identity);
        let key = front.register_shared();
        if !welcome(&mut client, &greeting, key.key(), &mut Vec::new()).await {
            return None;
        }
        let mut statements = Statements::new(Arc::clone(&pool.registry), shelf.statements());
        statements.are_read_by(base.read_by());
        let shared = Some(Box::new(statements));
        let relay = Relay::new(client.socket, client.received, greeting, key.key().0, shared);
        let active = front.active();
        let eyes = Eyes::new(front, Arc::clone(&active.zone), Some(Arc::clone(&shelf)));
        let (profile, on) = (Arc::clone(&base), Arc::clone(&base));
        let share = Some(Share { shelf, base, unread, profile, on, place: None });
        let (front, generation) = (Arc::clone(front), active.generation);
        Some(Self { front, share, relay, identity, seat, key, eyes, generation, _guest: guest })
    }

    /// Waits until the client has something to run, and for a connection to run it on.
    pub(super) async fn attend(
        &mut self,
        turns: &mut watch::Receiver<Turn>,
        shutdown: &mut ShutdownWatch,
    ) -> Result<(), End> {
        self.client_wants(shutdown).await?;
        self.key.waits();
        let turn = turns.borrow_and_update().clone();
        let goes_back = self.goes_back(&turn).is_some();
        let Some(share) = &mut self.share else { return Ok(()) };
        let (shelf, profile) = (Arc::clone(&share.shelf), Arc::clone(&share.profile));
        let mut ready = Ready::default();
        if turn.holds(self.relay.reads)
            && !goes_back
            && let Some(zone) = turn.next
            && let Some(place) = shelf.free()
        {
            share.place = Some(place);
            ready = self.get_ready(zone, &profile);
        }
        let mut left = shelf.wait();
        loop {
            let mut goes_back = |session: &Self, turn: &Turn| {
                if session.goes_back(turn).is_some() {
                    ready = Ready::default();
                }
            };
            let held = self.wait(turns, &mut goes_back).await?;
            self.was_held(held);
            let has_one = self.share.as_ref().is_some_and(|share| share.place.is_some());
            if has_one {
                break;
            }
            match self.queue(&shelf, turns, &mut left).await? {
                Some(place) => {
                    if let Some(share) = &mut self.share {
                        share.place = Some(place);
                    }
                    break;
                }
                // None may begin any more: it has not begun.
                None => self.seat.park(),
            }
        }
        let (backend, has) = match ready.made(&self.front.active()).await {
            Some(backend) => {
                shelf.make_room().await;
                (backend, Has::default())
            }
            None => match obtain(&self.front, &self.identity, &shelf, &profile).await {
                Ok(obtained) => obtained,
                Err(Unprepared::Lost(what)) => return Err(End::Fault(unset(&what))),
                Err(error) => return Err(error.end(&self.front)),
            },
        };
        if let (Some(share), Some(shared)) = (&mut self.share, &mut self.relay.shared)
            && !Arc::ptr_eq(&share.on, &profile)
        {
            shared.are_read_by(profile.read_by());
            share.on = profile;
        }
        self.place(backend, has)?;
        self.eyes.cancels = self.key.goes_on();
        Ok(())
    }

    /// Until the client has sent something.
    async fn client_wants(&mut self, shutdown: &mut ShutdownWatch) -> Result<(), End> {
        loop {
            if self.eyes.leaving {
                return Err(leaving());
            }
            tokio::select! {
                event = self.relay.run(&self.eyes, true) => match event {
                    Event::ClientWaits => return Ok(()),
                    event => {
                        if let Some(end) = of_client(event) {
                            return Err(end);
                        }
                    }
                },
                changed = shutdown.changed() => self.eyes.leaving = changed.is_err() || *shutdown.borrow(),
            }
        }
    }

    /// See [`place`].
    async fn queue(
        &mut self,
        shelf: &Arc<Shelf>,
        turns: &mut watch::Receiver<Turn>,
        left: &mut Duration,
    ) -> Result<Option<Place>, End> {
        let mut place = std::pin::pin!(place(shelf, turns, self.relay.reads, left));
        loop {
            tokio::select! {
                place = &mut place => return place,
                event = self.relay.run(&self.eyes, true) => {
                    if let Some(end) = of_client(event) {
                        return Err(end);
                    }
                }
            }
        }
    }

    /// It stands between two transactions, with a connection.
    pub(super) async fn between(
        &mut self,
        turns: &mut watch::Receiver<Turn>,
        shutdown: &mut ShutdownWatch,
    ) -> Result<(), End> {
        if self.touched() {
            let state = self.ask().await?;
            self.keep(state);
        }
        let pinned = self.relay.shared.as_ref().is_some_and(|shared| shared.pinned);
        if pinned {
            self.restore().await?;
            return self.stand(turns).await;
        }
        self.give_back();
        self.attend(turns, shutdown).await
    }

    /// Something was run that may have left a trace.
    pub(super) fn touched(&self) -> bool {
        self.relay.shared.as_ref().is_some_and(|shared| shared.touched)
    }

    /// What the session has goes with its client, or keeps it here.
    fn keep(&mut self, mut state: State) {
        let profile = state.take_profile();
        let pinned = !state.is_empty();
        let (Some(share), Some(shared)) = (&mut self.share, &mut self.relay.shared) else { return };
        shared.has.hides |= share.unread || self.front.forgets();
        if profile != *share.on {
            share.profile = Arc::new(over(&share.base, profile.clone()));
            share.on = Arc::new(profile);
            shared.are_read_by(share.on.read_by());
        }
        shared.asked();
        shared.pinned = pinned;
        if let Some(place) = &mut share.place {
            place.pin(pinned);
        }
    }

    /// A client that keeps its connection may have reset there what its startup packet set: it goes back to that.
    async fn restore(&mut self) -> Result<(), End> {
        let Some(share) = &self.share else { return Ok(()) };
        if Arc::ptr_eq(&share.profile, &share.on) {
            return Ok(());
        }
        let profile = Arc::clone(&share.profile);
        let custom = self.front.custom();
        let is_known = |name: &[u8]| {
            !name.contains(&b'.') || custom.iter().any(|known| name.eq_ignore_ascii_case(known.as_bytes()))
        };
        let there = |name: &[u8]| share.on.settings.iter().any(|(known, _)| known.eq_ignore_ascii_case(name));
        // Who it is now is not among what is set there.
        let lacks = |name: &[u8]| is_known(name) && !there(name) && !names::is_who(name);
        let reset = profile.settings.iter().filter(|(name, _)| lacks(name));
        let reset = State { settings: reset.cloned().collect(), ..State::default() };
        if !reset.is_empty() {
            let Some(mut backend) = self.lend() else { return Err(End::Fault(self.lost())) };
            let restored = backend.replay(&reset, None).await;
            self.take_back(backend);
            match restored {
                Ok(lost) if lost.is_empty() => {}
                Ok(lost) => return Err(End::Fault(unset(&lost))),
                Err(error) => {
                    tracing::debug!(resource = %self.front.name, %error, "a session ended as it was given back what it began with");
                    return Err(End::Fault(self.lost()));
                }
            }
        }
        if let (Some(share), Some(shared)) = (&mut self.share, &mut self.relay.shared) {
            shared.are_read_by(profile.read_by());
            share.on = profile;
        }
        Ok(())
    }

    /// Others may have the connection.
    pub(super) fn give_back(&mut self) {
        let left = self.key.left();
        let backend = self.lend();
        if let (Some(share), Some(shared)) = (&mut self.share, &mut self.relay.shared) {
            let has = std::mem::take(&mut shared.has);
            if let (Some(secret), Some(backend)) = (left, backend)
                && backend.received.is_empty()
                && !self.relay.tracker.is_unsure()
            {
                let backend = Backend { secret: secret.into(), ..backend };
                let turn = self.front.turnstile.turn_number();
                share.shelf.lay(backend, has, Arc::clone(&share.on), turn);
            }
            share.place = None;
        }
        self.seat.park();
    }
}

/// Until there is a place; none: no transaction may begin any more. `left`: how long its client may wait for one, without the time in which
/// none may begin.
async fn place(
    shelf: &Arc<Shelf>,
    turns: &mut watch::Receiver<Turn>,
    reads: bool,
    left: &mut Duration,
) -> Result<Option<Place>, End> {
    if let Some(place) = shelf.free() {
        return Ok(Some(place));
    }
    let deadline = clock::tick() + *left;
    let mut place = std::pin::pin!(shelf.place());
    loop {
        tokio::select! {
            place = &mut place => return Ok(place),
            changed = turns.changed() => {
                if changed.is_err() {
                    return Err(End::Client);
                }
                if turns.borrow_and_update().holds(reads) {
                    *left = deadline.saturating_duration_since(clock::tick());
                    return Ok(None);
                }
            }
            () = tokio::time::sleep_until(deadline) => return Err(End::Fault(too_many())),
        }
    }
}

/// What a server says of itself to a session with this profile, from a connection that lies there afterwards; or what the client is
/// told instead.
async fn greeting(
    front: &PostgresFront,
    identity: &Identity,
    shelf: &Arc<Shelf>,
    profile: &Arc<State>,
    seat: &mut Seat,
) -> Result<Parameters, Vec<u8>> {
    let (mut turns, mut left) = (front.turnstile.turns(), shelf.wait());
    let _place = loop {
        let waited = match await_turn(front, seat).await {
            Ok(()) => place(shelf, &mut turns, false, &mut left).await,
            Err(end) => Err(end),
        };
        match waited {
            Ok(Some(place)) => break place,
            // None may begin any more: it has not begun.
            Ok(None) => seat.park(),
            Err(End::Fault(fault)) => return Err(written(&fault)),
            Err(_) => return Err(Vec::new()),
        }
    };
    let made = match lying(front, shelf, profile).await {
        Ok(None) => prepare_here(front, identity, profile).await.map(|backend| (backend, Has::default())),
        Ok(Some(lying)) => Ok(lying),
        Err(error) => Err(error),
    };
    let (backend, has) = made.map_err(|error| match error {
        Unprepared::None(error) => refusal(front, error),
        Unprepared::Lost(what) => written(&unset(&what)),
    })?;
    let greeting = Arc::clone(&backend.parameters);
    shelf.greets(backend.generation, profile, &greeting);
    shelf.lay(backend, has, Arc::clone(profile), front.turnstile.turn_number());
    seat.park();
    Ok(greeting)
}

/// A connection with this profile: one that lies there, or a new one.
async fn obtain(
    front: &PostgresFront,
    identity: &Identity,
    shelf: &Shelf,
    profile: &Arc<State>,
) -> Result<(Backend, Has), Unprepared> {
    if let Some(lying) = lying(front, shelf, profile).await? {
        return Ok(lying);
    }
    Ok((again(front, identity, profile).await?, Has::default()))
}

/// One that lies there, lives, and is brought to this profile if it had another. If there is none, there is room for one.
async fn lying(
    front: &PostgresFront,
    shelf: &Shelf,
    profile: &Arc<State>,
) -> Result<Option<(Backend, Has)>, Unprepared> {
    let turn = front.turnstile.turn_number();
    while let Some(mut lying) = shelf.take(front.active().generation, profile) {
        let rested = lying.rested();
        let Some(mut backend) = lying.backend.living(rested).await else { continue };
        // A fence may have come between that its socket does not tell of yet.
        if lying.turn != turn && !backend.answers().await {
            continue;
        }
        if lying.profile != *profile || lying.has.hides {
            match backend.become_of(profile).await {
                Ok(lost) if lost.is_empty() => lying.has.hides = false,
                Ok(lost) => {
                    backend.close().await;
                    return Err(Unprepared::Lost(lost));
                }
                Err(error) => {
                    tracing::debug!(resource = %front.name, %error, "a shared connection could not be set up for another client");
                    continue;
                }
            }
        }
        return Ok(Some((backend, lying.has)));
    }
    shelf.make_room().await;
    Ok(None)
}

/// Custom settings of a startup packet are asked for from here on; false: there is one whose name is not.
fn learned(front: &PostgresFront, base: &State) -> bool {
    let mut all = true;
    for (name, _) in base.settings.iter().filter(|(name, _)| name.contains(&b'.')) {
        match std::str::from_utf8(name).ok().filter(|name| names::is_custom(name)) {
            Some(name) => front.learn(&name.to_ascii_lowercase()),
            None => all = false,
        }
    }
    all
}

/// What a client has set, over what its startup packet did.
fn over(base: &State, mut set: State) -> State {
    for (name, value) in &base.settings {
        if !set.settings.iter().any(|(known, _)| known.eq_ignore_ascii_case(name)) {
            set.settings.push((name.clone(), value.clone()));
        }
    }
    set.settings.sort();
    set
}

fn too_many() -> Fault {
    Fault::fatal("53300", "no connection to the database became free in time")
        .hint("Raise the pool's size, or keep transactions short.")
}

fn unset(what: &[String]) -> Fault {
    Fault::fatal("57P01", "terminating connection: what this session has set cannot be set again")
        .detail(format!("{}.", what.join("; ")))
        .hint("Connect again.")
}

#[cfg(test)]
mod tests {
    use super::super::super::turnstile::Turnstile;
    use super::super::tests::front;
    use super::*;
    use crate::config::model::{HoldLimits, PostgresAuth, PostgresPool};

    #[test]
    fn custom_settings_of_a_startup_packet_are_asked_for() {
        let front = front(PostgresAuth::Trust, Duration::from_secs(10), 1);
        let base = |names: &[&str]| State {
            settings: names.iter().map(|name| (name.as_bytes().to_vec(), b"7".to_vec())).collect(),
            ..State::default()
        };
        assert!(learned(&front, &base(&["search_path", "App.Tenant"])));
        assert_eq!(front.custom(), ["app.tenant"]);
        assert!(!learned(&front, &base(&["app.tenant", "app.\"x"])), "it cannot be asked for");
        assert_eq!(front.custom(), ["app.tenant"]);
    }

    /// The clock stands still but for what is awaited.
    #[tokio::test(start_paused = true)]
    async fn a_client_waits_so_long_for_a_connection_and_not_for_its_turn() {
        let wait = Duration::from_secs(1);
        let pool = Pool::new(PostgresPool { size: 1, wait, ..PostgresPool::default() });
        let shelf = pool.shelf("ann", None);
        let limits = HoldLimits { requests: 1, bytes: 1, time: wait };
        let turnstile = Turnstile::new(limits);
        let (mut turns, mut left) = (turnstile.turns(), wait);
        let taken = shelf.free();
        let closing = async {
            tokio::time::sleep(Duration::from_millis(400)).await;
            turnstile.close();
        };
        let (waited, ()) = tokio::join!(place(&shelf, &mut turns, false, &mut left), closing);
        assert!(matches!(waited, Ok(None)) && left == Duration::from_millis(600), "{left:?}");
        tokio::time::sleep(Duration::from_mins(1)).await;
        turnstile.open();
        turns.borrow_and_update();
        let begun = clock::tick();
        let waited = place(&shelf, &mut turns, false, &mut left).await;
        assert!(matches!(waited, Err(End::Fault(fault)) if fault.sqlstate == "53300"));
        assert_eq!(clock::tick() - begun, Duration::from_millis(600));
        drop(taken);
        assert!(matches!(place(&shelf, &mut turns, false, &mut left).await, Ok(Some(_))));
    }
}
