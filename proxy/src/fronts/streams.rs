//! Long streams (WebSocket, server-sent events, gRPC streams): what becomes of them when their resource moves.
//!
//! A stream is not a request in flight: it may last for days, and a drain must not wait for it, nor for its beginning. Once a request
//! or its response is known to be one, it leaves the gate (unless its rule is *block*) and is kept here. After a swap, streams of an older generation are
//! ended: soon and spread over the jitter (*close*), or at the deadline (*finish*, *block*). Ending one is ending its
//! connection to the endpoint, and all that share it; what their clients then get, the front decides.
//!
//! Nothing here asks for the time or sleeps: whoever reports looks now and then ([`Streams::look`]).

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::gate::{Admission, Gate};
use super::http::settings::{AtCutover, StreamRules};
use super::pools::Streaming;
use crate::lock::lock;

/// The streams of one resource.
pub struct Streams {
    rules: StreamRules,
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    next: u64,
    streams: HashMap<u64, Kept>,
}

struct Kept {
    generation: u64,
    at_cutover: AtCutover,
    client: Option<SocketAddr>,
    /// From then on it counts as a stream.
    certain: Instant,
    admission: Option<Admission>,
    streaming: Streaming,
    end_at: Option<Instant>,
    ended: Arc<AtomicBool>,
}

/// A request that is a stream, or may turn out to be one.
pub struct Arrival {
    /// Of its pool.
    pub generation: u64,
    /// What becomes of it.
    pub at_cutover: AtCutover,
    /// Its client: all that the same one has open are on one connection of it.
    pub client: Option<SocketAddr>,
    /// From then on it counts as a stream.
    pub certain: Instant,
    /// Its right to be inside, which it loses once it counts as a stream.
    pub admission: Option<Admission>,
    /// Its claim on a connection.
    pub streaming: Streaming,
}

/// Those that count as streams at a moment.
#[derive(Debug, Default)]
pub struct Certain {
    /// Their clients, that is the connections of clients that they are on.
    pub clients: HashSet<SocketAddr>,
    /// How many are inside the gate all the same (*block*).
    pub inside: u64,
}

/// A stream's place; dropping it says that it ended.
pub struct Place {
    streams: Arc<Streams>,
    id: u64,
    ended: Arc<AtomicBool>,
}

impl Streams {
    /// None yet.
    pub fn new(rules: StreamRules) -> Arc<Self> {
        Arc::new(Self { rules, open: Mutex::default() })
    }

    /// Keeps one; at once out of the gate where it is certain `now`.
    pub fn begin(self: &Arc<Self>, arrival: Arrival, now: Instant) -> Place {
        let ended = Arc::new(AtomicBool::new(false));
        let Arrival { generation, at_cutover, client, certain, admission, streaming } = arrival;
        let mut kept = Kept {
            generation,
            at_cutover,
            client,
            certain,
            admission,
            streaming,
            end_at: None,
            ended: ended.clone(),
        };
        let left = kept.leave(now);
        let mut open = self.open();
        let id = open.next;
        open.next += 1;
        open.streams.insert(id, kept);
        drop((open, left));
        Place { streams: Arc::clone(self), id, ended }
    }

    /// Lets those go out of the gate that count as streams by now.
    pub fn leave(&self, now: Instant) {
        let mut open = self.open();
        let left: Vec<_> = open.streams.values_mut().filter_map(|kept| kept.leave(now)).collect();
        // The gate's waiters are told outside of the lock.
        drop((open, left));
    }

    /// As [`Self::leave`], and ends those whose time has come. `generation` is that
    /// of the active pool; `luck` spreads the ends, each from 0 to 1.
    pub fn look(&self, generation: u64, now: Instant, mut luck: impl FnMut() -> f64) {
        let mut left = Vec::new();
        let mut due = HashMap::new();
        let mut open = self.open();
        for kept in open.streams.values_mut() {
            left.extend(kept.leave(now));
            if kept.generation >= generation {
                continue;
            }
            let end_at = *kept.end_at.get_or_insert_with(|| {
                now + match kept.at_cutover {
                    AtCutover::Close => self.rules.jitter.mul_f64(luck()),
                    AtCutover::Finish | AtCutover::Block => self.rules.deadline,
                }
            });
            if end_at <= now && !kept.ended.swap(true, SeqCst) {
                due.extend(
                    kept.streaming.connection().map(|shared| (Arc::as_ptr(shared), Arc::clone(shared))),
                );
            }
        }
        // With a stream of HTTP/2 end those that share its connection: each is told so before any of them can see that end.
        if !due.is_empty() {
            let ends = |kept: &&Kept| {
                kept.streaming.connection().is_some_and(|shared| due.contains_key(&Arc::as_ptr(shared)))
            };
            open.streams.values().filter(ends).for_each(|kept| kept.ended.store(true, SeqCst));
        }
        for connection in due.into_values() {
            connection.end();
        }
        // The gate's waiters are told outside of the lock.
        drop((open, left));
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.open().streams.len()
    }

    /// Those that count as streams `now`.
    pub fn certain(&self, now: Instant) -> Certain {
        let mut certain = Certain::default();
        for kept in self.open().streams.values().filter(|kept| kept.certain <= now) {
            certain.clients.extend(kept.client);
            certain.inside += u64::from(kept.admission.is_some());
        }
        certain
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        lock(&self.open)
    }
}

impl Kept {
    fn leave(&mut self, now: Instant) -> Option<Admission> {
        let leaves = self.at_cutover != AtCutover::Block && self.certain <= now;
        if leaves { self.admission.take() } else { None }
    }
}

impl Place {
    /// Its right to be inside: what it still has of that, or a new one while the gate is open; none if it was ended, or is of an older
    /// generation, whose end stays as it is.
    pub fn come_back(&self, gate: &Arc<Gate>) -> Option<Admission> {
        if self.was_ended() {
            return None;
        }
        let (kept, is_old) = {
            let mut open = self.streams.open();
            let kept = open.streams.get_mut(&self.id)?;
            (kept.admission.take(), kept.end_at.is_some())
        };
        kept.or_else(|| if is_old { None } else { gate.try_enter() })
    }

    /// Whether it was ended from here.
    pub fn was_ended(&self) -> bool {
        self.ended.load(SeqCst)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let kept = self.streams.open().streams.remove(&self.id);
        drop(kept);
    }
}

/// How long until a gRPC call counts as a stream after its response's header: one with a single answer sends that together with the header.
pub const CERTAIN: Duration = Duration::from_millis(250);

/// How long until a request that asks for a stream, or whose route has streams, counts as one after it was sent, unless it is answered with
/// something else by then. Of a hold this is a small part; and who leaves so early comes back.
pub const UNANSWERED: Duration = Duration::from_millis(50);

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::fd::AsRawFd as _;

    use tokio::io::AsyncReadExt as _;

    use super::super::now;
    use super::super::pools::connections::Connection;
    use super::super::pools::{ActivePool, Pick, Pool};
    use super::*;
    use crate::config::model::HoldLimits;

    const HOLD: HoldLimits = HoldLimits { requests: 9, bytes: 9, time: Duration::from_secs(9) };
    const RULES: StreamRules = StreamRules {
        at_cutover: AtCutover::Finish,
        deadline: Duration::from_secs(60),
        jitter: Duration::from_secs(10),
    };

    struct World {
        gate: Arc<Gate>,
        pool: ActivePool,
        streams: Arc<Streams>,
        start: Instant,
    }

    impl World {
        fn new() -> Self {
            Self::at("127.0.0.1:1".parse().unwrap())
        }

        fn at(address: std::net::SocketAddr) -> Self {
            let pool = ActivePool::new(Pool::new(1, "a", &[address]));
            Self { gate: Gate::new(HOLD), pool, streams: Streams::new(RULES), start: now() }
        }

        fn begin(&self, at_cutover: AtCutover, certain: Duration) -> (Place, Pick) {
            self.begin_on(None, at_cutover, certain)
        }

        fn begin_on(
            &self,
            connection: Option<Arc<Connection>>,
            at_cutover: AtCutover,
            certain: Duration,
        ) -> (Place, Pick) {
            let pick = self.pool.pick(&[], self.start).unwrap();
            let arrival = Arrival {
                generation: pick.generation(),
                at_cutover,
                client: None,
                certain: self.start + certain,
                admission: self.gate.try_enter(),
                streaming: pick.streams(connection),
            };
            (self.streams.begin(arrival, self.start), pick)
        }

        fn look(&self, generation: u64, after: u64) {
            self.streams.look(generation, self.start + Duration::from_secs(after), || 0.5);
        }
    }

    #[test]
    fn what_is_certain_leaves_the_gate_unless_it_blocks() {
        let world = World::new();
        let inside = || world.gate.stats().in_flight;
        let _certain = world.begin(AtCutover::Finish, Duration::ZERO);
        assert_eq!(inside(), 0);
        let maybe = world.begin(AtCutover::Close, Duration::from_secs(1));
        let block = world.begin(AtCutover::Block, Duration::ZERO);
        assert_eq!(inside(), 2);
        world.look(1, 1);
        assert_eq!(inside(), 1);
        drop(block);
        assert_eq!((inside(), world.streams.count()), (0, 2));
        assert_eq!(maybe.1.endpoint().streams(), 2);
        drop(maybe);
        assert_eq!(world.pool.load().endpoints()[0].streams(), 1);
        let (place, _pick) = world.begin(AtCutover::Close, Duration::from_secs(3));
        let back = place.come_back(&world.gate);
        world.look(1, 3);
        assert!(back.is_some());
        assert_eq!(inside(), 1, "it came back before it left");
        drop(back);
        assert!(place.come_back(&world.gate).is_some(), "through the open gate");
        world.gate.close();
        assert!(place.come_back(&world.gate).is_none());
    }

    #[test]
    fn only_those_of_an_older_generation_are_ended_each_in_its_time() {
        let world = World::new();
        let close = world.begin(AtCutover::Close, Duration::ZERO).0;
        let finish = world.begin(AtCutover::Finish, Duration::ZERO).0;
        world.look(1, 100);
        assert!(!close.was_ended() && !finish.was_ended());
        let ended = |generation, after| {
            world.look(generation, after);
            (close.was_ended(), finish.was_ended())
        };
        assert_eq!(ended(2, 200), (false, false));
        assert_eq!(ended(2, 204), (false, false));
        assert_eq!(ended(2, 205), (true, false));
        assert_eq!(ended(2, 259), (true, false));
        assert_eq!(ended(2, 260), (true, true));
    }

    /// As those of HTTP/2 do, each of which has a time of its own.
    #[tokio::test]
    async fn those_on_one_connection_are_told_together() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let world = World::at(address);
        let dialer = world.pool.pick(&[], world.start).unwrap().dialer();
        let connect = async || {
            let stream = dialer.connect(&address.into()).await.unwrap();
            let known = world.pool.load().endpoints()[0].connections().get(stream.as_raw_fd());
            assert!(known.is_some());
            (stream, known)
        };
        let (mut shared, other) = (connect().await, connect().await);
        let begin = |on: &Option<_>, at_cutover| world.begin_on(on.clone(), at_cutover, Duration::ZERO).0;
        let places = [
            begin(&shared.1, AtCutover::Close),
            begin(&shared.1, AtCutover::Finish),
            begin(&other.1, AtCutover::Finish),
        ];
        let ended = || places.each_ref().map(Place::was_ended);
        world.look(2, 0);
        assert_eq!(ended(), [false; 3]);
        world.look(2, 5);
        assert_eq!(ended(), [true, true, false]);
        assert_eq!(shared.0.read(&mut [0]).await.unwrap(), 0, "it has ended");
    }
}
