//! A bad network in user space: a UDP relay that loses, repeats, delays, reorders, slows down and swallows datagrams, each
//! direction by its own settings, which may change at any time. Luck is seeded.

#![allow(clippy::disallowed_methods, reason = "datagrams are late by the real clock")]

use std::collections::hash_map::Entry;
use std::collections::{BinaryHeap, HashMap};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// What happens to datagrams of one direction.
#[derive(Clone, Copy, Debug, Default)]
pub struct Weather {
    /// One-way delay.
    pub delay: Duration,
    /// Chance of loss, 0 to 1.
    pub loss: f64,
    /// Chance to arrive twice.
    pub duplicate: f64,
    /// Chance to be held back by [`Self::held_back`], so that later ones overtake it.
    pub reorder: f64,
    /// How long a reordered datagram is held back.
    pub held_back: Duration,
    /// Bytes per second; `None`: as fast as the machine. What waits longer than 100 ms for its turn is dropped.
    pub bandwidth: Option<u64>,
    /// Everything disappears.
    pub black_hole: bool,
}

impl Weather {
    /// Only a delay.
    pub fn delay(delay: Duration) -> Self {
        Self { delay, ..Self::default() }
    }
}

/// What a full queue of a slow line holds.
const QUEUE: Duration = Duration::from_millis(100);

#[derive(Debug)]
struct Direction {
    weather: Mutex<Weather>,
    carried: AtomicU64,
    dropped: AtomicU64,
}

impl Direction {
    fn new(weather: Weather) -> Self {
        Self { weather: Mutex::new(weather), carried: AtomicU64::new(0), dropped: AtomicU64::new(0) }
    }
}

/// A running relay; stops when dropped.
#[derive(Debug)]
pub struct Network {
    listen: SocketAddr,
    forth: Arc<Direction>,
    back: Arc<Direction>,
    stop: CancellationToken,
}

impl Network {
    /// Relays datagrams to `upstream` and the answers back, both ways under `weather`.
    pub async fn start(upstream: SocketAddr, weather: Weather, seed: u64) -> Result<Self> {
        let socket = Arc::new(bind().await?);
        let (forth, back) = (Arc::new(Direction::new(weather)), Arc::new(Direction::new(weather)));
        let this = Self {
            listen: socket.local_addr()?,
            forth: forth.clone(),
            back: back.clone(),
            stop: CancellationToken::new(),
        };
        let stop = this.stop.clone();
        tokio::spawn(this.stop.clone().run_until_cancelled_owned(async move {
            let mut flows: HashMap<SocketAddr, Lane> = HashMap::new();
            let mut buffer = vec![0; 64 << 10];
            loop {
                // An error is the echo of an earlier datagram: UDP knows no more.
                let Ok((length, client)) = socket.recv_from(&mut buffer).await else { continue };
                if let Entry::Vacant(flow) = flows.entry(client) {
                    let Ok(far) = bind().await else { continue };
                    let (far, near) = (Arc::new(far), socket.clone());
                    let lane = Lane::start(far.clone(), upstream, forth.clone(), seed, &stop);
                    let mut answers = Lane::start(near, client, back.clone(), seed ^ 1, &stop);
                    tokio::spawn(stop.clone().run_until_cancelled_owned(async move {
                        let mut buffer = vec![0; 64 << 10];
                        loop {
                            if let Ok(length) = far.recv(&mut buffer).await {
                                answers.enter(&buffer[..length]);
                            }
                        }
                    }));
                    flow.insert(lane);
                }
                if let Some(lane) = flows.get_mut(&client) {
                    lane.enter(&buffer[..length]);
                }
            }
        }));
        Ok(this)
    }

    /// Where the dialling side connects.
    pub fn listen(&self) -> SocketAddr {
        self.listen
    }

    /// Changes what happens towards the upstream.
    pub fn forth(&self, change: impl FnOnce(&mut Weather)) {
        change(&mut self.forth.weather.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Changes what happens on the way back.
    pub fn back(&self, change: impl FnOnce(&mut Weather)) {
        change(&mut self.back.weather.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Changes both ways.
    pub fn both(&self, change: impl Fn(&mut Weather)) {
        self.forth(&change);
        self.back(&change);
    }

    /// Bytes delivered, and datagrams dropped on purpose, both ways together.
    pub fn carried(&self) -> (u64, u64) {
        let sum = |pick: fn(&Direction) -> &AtomicU64| {
            pick(&self.forth).load(Ordering::Relaxed) + pick(&self.back).load(Ordering::Relaxed)
        };
        (sum(|direction| &direction.carried), sum(|direction| &direction.dropped))
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn bind() -> Result<UdpSocket> {
    let socket = UdpSocket::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await?;
    // The relay itself must not lose anything.
    rustix::net::sockopt::set_socket_recv_buffer_size(&socket, 4 << 20)?;
    rustix::net::sockopt::set_socket_send_buffer_size(&socket, 4 << 20)?;
    Ok(socket)
}

/// One direction of one client.
struct Lane {
    direction: Arc<Direction>,
    rng: SmallRng,
    /// When a slow line has sent all that was put on it.
    free: Instant,
    count: u64,
    leave: mpsc::UnboundedSender<Due>,
}

impl Lane {
    fn start(
        socket: Arc<UdpSocket>,
        to: SocketAddr,
        direction: Arc<Direction>,
        seed: u64,
        stop: &CancellationToken,
    ) -> Self {
        let (leave, arriving) = mpsc::unbounded_channel();
        tokio::spawn(stop.clone().run_until_cancelled_owned(deliver(
            socket,
            to,
            direction.clone(),
            arriving,
        )));
        Self { direction, rng: SmallRng::seed_from_u64(seed), free: Instant::now(), count: 0, leave }
    }

    fn enter(&mut self, datagram: &[u8]) {
        let weather = *self.direction.weather.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if weather.black_hole || self.rng.random_bool(weather.loss) {
            self.direction.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let mut start = now;
        if let Some(bandwidth) = weather.bandwidth {
            self.free = self.free.max(now);
            if self.free.duration_since(now) > QUEUE {
                self.direction.dropped.fetch_add(1, Ordering::Relaxed);
                return;
            }
            self.free += Duration::from_secs_f64(datagram.len() as f64 / bandwidth as f64);
            start = self.free;
        }
        let copies = 1 + u32::from(self.rng.random_bool(weather.duplicate));
        for _ in 0..copies {
            let mut at = start + weather.delay;
            if self.rng.random_bool(weather.reorder) {
                at += weather.held_back;
            }
            self.count += 1;
            let _ = self.leave.send(Due { at, count: self.count, datagram: datagram.into() });
        }
    }
}

struct Due {
    at: Instant,
    count: u64,
    datagram: Box<[u8]>,
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    /// The earliest is the greatest.
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (other.at, other.count).cmp(&(self.at, self.count))
    }
}

async fn deliver(
    socket: Arc<UdpSocket>,
    to: SocketAddr,
    direction: Arc<Direction>,
    mut arriving: mpsc::UnboundedReceiver<Due>,
) {
    let mut waiting: BinaryHeap<Due> = BinaryHeap::new();
    loop {
        let now = Instant::now();
        while waiting.peek().is_some_and(|due| due.at <= now) {
            let Some(Due { datagram, .. }) = waiting.pop() else { break };
            // In flight when the line went dead: lost.
            let dead = direction.weather.lock().unwrap_or_else(PoisonError::into_inner).black_hole;
            if !dead && socket.send_to(&datagram, to).await.is_ok() {
                direction.carried.fetch_add(datagram.len() as u64, Ordering::Relaxed);
            }
        }
        let next = waiting.peek().map(|due| due.at);
        let sleep = async {
            match next {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            due = arriving.recv() => {
                let Some(due) = due else { return };
                waiting.push(due);
                while let Ok(due) = arriving.try_recv() {
                    waiting.push(due);
                }
            }
            () = sleep => {}
        }
    }
}
