//! A user-space WAN: TCP and UDP relays that add a one-way delay in each direction and can be cut.
//!
//! TCP: bytes keep their order; a cut stalls them, as lost packets would, and they arrive after the repair. UDP: datagrams
//! keep their order per client; a cut loses them, and so does chance where the path has a loss. One way alone can be cut, too. The delay
//! of a byte is fixed when it enters. Not imitated: bandwidth, loss on TCP, and the round trip of a TCP handshake (the kernel accepts at
//! once; the far end is dialled one delay later).

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::lock::lock;

/// One read from a TCP socket.
const CHUNK: usize = 16 * 1024;
/// Chunks on their way in one direction of a connection; a full path pushes back (TCP) or drops (UDP).
const IN_TRANSIT: usize = 4096;
/// A UDP client that has been silent for so long is forgotten.
const UDP_IDLE: Duration = Duration::from_mins(1);
/// UDP clients of one relay.
const UDP_CLIENTS: usize = 1024;

/// A direction, as whoever connects sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From whoever connects.
    Forth,
    /// The answers.
    Back,
}

/// What a path is like at the moment; several relays may share one.
#[derive(Debug)]
pub struct Path {
    delay_us: AtomicU64,
    loss: Mutex<Loss>,
    /// Forth, back.
    cut: watch::Sender<[bool; 2]>,
    reset: watch::Sender<u64>,
}

/// Which datagrams get lost.
#[derive(Debug)]
struct Loss {
    chance: f64,
    luck: SmallRng,
    lost: u64,
}

impl Path {
    /// A path with this one-way delay.
    pub fn new(delay: Duration) -> Arc<Self> {
        let path = Self {
            delay_us: AtomicU64::new(0),
            loss: Mutex::new(Loss { chance: 0.0, luck: SmallRng::seed_from_u64(0), lost: 0 }),
            cut: watch::Sender::new([false; 2]),
            reset: watch::Sender::new(0),
        };
        path.set_delay(delay);
        Arc::new(path)
    }

    /// One-way delay of what enters from now on.
    pub fn set_delay(&self, delay: Duration) {
        let micros = u64::try_from(delay.as_micros()).unwrap_or(u64::MAX);
        self.delay_us.store(micros, Ordering::Relaxed);
    }

    /// Loses this share of the datagrams that enter from now on (0 to 1), the same ones for the same seed.
    pub fn set_loss(&self, chance: f64, seed: u64) {
        let mut loss = lock(&self.loss);
        (loss.chance, loss.luck) = (chance.clamp(0.0, 1.0), SmallRng::seed_from_u64(seed));
    }

    /// Datagrams lost by chance so far.
    pub fn lost(&self) -> u64 {
        lock(&self.loss).lost
    }

    /// Whether a datagram on this way goes lost: by a cut, or by chance.
    fn loses(&self, way: Way) -> bool {
        if self.cut.borrow()[way as usize] {
            return true;
        }
        let mut loss = lock(&self.loss);
        let chance = loss.chance;
        let lost = chance > 0.0 && loss.luck.random_bool(chance);
        loss.lost += u64::from(lost);
        lost
    }

    /// One-way delay.
    pub fn delay(&self) -> Duration {
        Duration::from_micros(self.delay_us.load(Ordering::Relaxed))
    }

    /// Nothing arrives any more, in either direction.
    pub fn cut(&self) {
        self.cut.send_replace([true; 2]);
    }

    /// Nothing arrives any more in one direction: what the other side says still does.
    pub fn cut_one_way(&self, way: Way) {
        self.cut.send_modify(|cut| cut[way as usize] = true);
    }

    /// Things arrive again.
    pub fn restore(&self) {
        self.cut.send_replace([false; 2]);
    }

    /// Whether it is cut, be it in one direction.
    pub fn is_cut(&self) -> bool {
        self.cut.borrow().contains(&true)
    }

    /// Closes every TCP connection that exists now.
    pub fn reset_connections(&self) {
        self.reset.send_modify(|count| *count += 1);
    }

    fn arrival(&self) -> Instant {
        crate::clock::tick() + self.delay()
    }

    /// Returns when it is whole in this direction.
    async fn whole(&self, way: Way) {
        // The sender lives as long as `self`.
        let _ = self.cut.subscribe().wait_for(|cut| !cut[way as usize]).await;
    }
}

/// A running relay; stops when dropped.
#[derive(Debug)]
pub struct Relay {
    listen: SocketAddr,
    bytes: Arc<AtomicU64>,
    stop: CancellationToken,
}

impl Relay {
    /// Relays TCP connections at `listen` to `upstream`.
    pub async fn tcp(listen: SocketAddr, upstream: SocketAddr, path: Arc<Path>) -> std::io::Result<Self> {
        let listener = TcpListener::bind(listen).await?;
        let relay = Self::new(listener.local_addr()?);
        let (stop, bytes) = (relay.stop.clone(), relay.bytes.clone());
        tokio::spawn(relay.stop.clone().run_until_cancelled_owned(async move {
            loop {
                match listener.accept().await {
                    Ok((client, _)) => {
                        let relayed = connection(client, upstream, path.clone(), bytes.clone());
                        tokio::spawn(stop.clone().run_until_cancelled_owned(relayed));
                    }
                    Err(error) => {
                        // Out of descriptors, or a client that left early.
                        tracing::warn!(%error, "relay cannot accept");
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                }
            }
        }));
        Ok(relay)
    }

    /// Relays datagrams at `listen` to `upstream`; answers go back to the client they belong to.
    pub async fn udp(listen: SocketAddr, upstream: SocketAddr, path: Arc<Path>) -> std::io::Result<Self> {
        let socket = Arc::new(UdpSocket::bind(listen).await?);
        let relay = Self::new(socket.local_addr()?);
        let (stop, bytes) = (relay.stop.clone(), relay.bytes.clone());
        tokio::spawn(relay.stop.clone().run_until_cancelled_owned(async move {
            datagrams(socket, upstream, path, bytes, stop).await;
        }));
        Ok(relay)
    }

    fn new(listen: SocketAddr) -> Self {
        Self { listen, bytes: Arc::default(), stop: CancellationToken::new() }
    }

    /// Where clients connect.
    pub fn listen(&self) -> SocketAddr {
        self.listen
    }

    /// Bytes carried, both directions together.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn connection(client: TcpStream, upstream: SocketAddr, path: Arc<Path>, bytes: Arc<AtomicU64>) {
    let mut reset = path.reset.subscribe();
    let relayed = async {
        tokio::time::sleep_until(path.arrival()).await;
        path.whole(Way::Forth).await;
        let Ok(server) = TcpStream::connect(upstream).await else { return };
        let _ = (client.set_nodelay(true), server.set_nodelay(true));
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = server.into_split();
        tokio::join!(
            one_way(from_client, to_server, &path, Way::Forth, &bytes),
            one_way(from_server, to_client, &path, Way::Back, &bytes),
        );
    };
    tokio::select! {
        () = relayed => {}
        _ = reset.changed() => {}
    }
}

/// Carries one direction to its end: the end of the stream arrives late, too.
async fn one_way(
    mut from: impl tokio::io::AsyncRead + Unpin,
    mut to: impl tokio::io::AsyncWrite + Unpin,
    path: &Path,
    way: Way,
    bytes: &AtomicU64,
) {
    let (enter, mut leave) = mpsc::channel::<(Instant, Bytes)>(IN_TRANSIT);
    let read = async move {
        let mut buffer = vec![0; CHUNK];
        loop {
            let length = from.read(&mut buffer).await.unwrap_or(0);
            let chunk = (path.arrival(), Bytes::copy_from_slice(&buffer[..length]));
            if enter.send(chunk).await.is_err() || length == 0 {
                return;
            }
        }
    };
    let write = async move {
        while let Some((arrival, chunk)) = leave.recv().await {
            tokio::time::sleep_until(arrival).await;
            path.whole(way).await;
            if chunk.is_empty() {
                break;
            }
            if to.write_all(&chunk).await.is_err() {
                // Dropping `leave` ends the reader at its next chunk.
                return;
            }
            bytes.fetch_add(chunk.len() as u64, Ordering::Relaxed);
        }
        let _ = to.shutdown().await;
    };
    tokio::join!(read, write);
}

type Datagrams = mpsc::Sender<(Instant, Bytes)>;

async fn datagrams(
    socket: Arc<UdpSocket>,
    upstream: SocketAddr,
    path: Arc<Path>,
    bytes: Arc<AtomicU64>,
    stop: CancellationToken,
) {
    let mut clients: HashMap<SocketAddr, Datagrams> = HashMap::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        // An error is an ICMP answer to an earlier datagram: UDP knows no more.
        let Ok((length, client)) = socket.recv_from(&mut buffer).await else { continue };
        if path.loses(Way::Forth) {
            continue;
        }
        let known = clients.get(&client).filter(|known| !known.is_closed()).cloned();
        let enter = if let Some(known) = known {
            known
        } else {
            clients.retain(|_, known| !known.is_closed());
            if clients.len() >= UDP_CLIENTS {
                continue;
            }
            let Ok(far) = dial(upstream).await else { continue };
            let (enter, leave) = mpsc::channel(IN_TRANSIT);
            let flow = Flow { client, near: socket.clone(), far, path: path.clone(), bytes: bytes.clone() };
            tokio::spawn(stop.clone().run_until_cancelled_owned(flow.run(leave)));
            clients.insert(client, enter.clone());
            enter
        };
        // A full path drops, as a router would.
        let _ = enter.try_send((path.arrival(), Bytes::copy_from_slice(&buffer[..length])));
    }
}

async fn dial(upstream: SocketAddr) -> std::io::Result<UdpSocket> {
    let any: SocketAddr = if upstream.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0; 16], 0).into() };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(upstream).await?;
    Ok(socket)
}

/// One UDP client and its own socket to the far end.
struct Flow {
    client: SocketAddr,
    near: Arc<UdpSocket>,
    far: UdpSocket,
    path: Arc<Path>,
    bytes: Arc<AtomicU64>,
}

impl Flow {
    async fn run(self, out: mpsc::Receiver<(Instant, Bytes)>) {
        let this = &self;
        let (enter, back) = mpsc::channel(IN_TRANSIT);
        let heard = watch::Sender::new(crate::clock::tick());
        let listen = async {
            let mut buffer = vec![0; 64 * 1024];
            loop {
                let Ok(length) = self.far.recv(&mut buffer).await else { continue };
                if !self.path.loses(Way::Back) {
                    heard.send_replace(crate::clock::tick());
                    let _ = enter.try_send((self.path.arrival(), Bytes::copy_from_slice(&buffer[..length])));
                }
            }
        };
        let forth =
            this.carry(out, Way::Forth, &heard, |datagram| async move { this.far.send(&datagram).await });
        let back = this.carry(back, Way::Back, &heard, |datagram| async move {
            this.near.send_to(&datagram, this.client).await
        });
        let idle = async {
            loop {
                let end = *heard.borrow() + UDP_IDLE;
                if crate::clock::tick() >= end {
                    return;
                }
                tokio::time::sleep_until(end).await;
            }
        };
        tokio::select! {
            () = listen => {}
            () = forth => {}
            () = back => {}
            () = idle => {}
        }
    }

    async fn carry<F: Future<Output = std::io::Result<usize>>>(
        &self,
        mut datagrams: mpsc::Receiver<(Instant, Bytes)>,
        way: Way,
        heard: &watch::Sender<Instant>,
        send: impl Fn(Bytes) -> F,
    ) {
        while let Some((arrival, datagram)) = datagrams.recv().await {
            tokio::time::sleep_until(arrival).await;
            heard.send_replace(crate::clock::tick());
            // Cut while it was under way: lost.
            if !self.path.loses(way)
                && let Ok(length) = send(datagram).await
            {
                self.bytes.fetch_add(length as u64, Ordering::Relaxed);
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn any() -> SocketAddr {
        ([127, 0, 0, 1], 0).into()
    }

    /// Sends back what comes.
    async fn echo() -> SocketAddr {
        let listener = TcpListener::bind(any()).await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut read, mut write) = stream.split();
                    let _ = tokio::io::copy(&mut read, &mut write).await;
                    let _ = write.shutdown().await;
                });
            }
        });
        address
    }

    async fn soon<T>(work: impl Future<Output = T>) -> T {
        tokio::time::timeout(Duration::from_secs(20), work).await.expect("in time")
    }

    #[tokio::test]
    async fn tcp_keeps_every_byte_in_order_while_the_delay_changes() {
        let path = Path::new(Duration::from_millis(5));
        let relay = Relay::tcp(any(), echo().await, path.clone()).await.unwrap();
        let mut stream = TcpStream::connect(relay.listen()).await.unwrap();
        let sent: Vec<u8> = (0..1_000_000_u32).map(|i| (i % 251) as u8).collect();
        let expected = sent.clone();
        let (mut read, mut write) = stream.split();
        let storm = async {
            for piece in sent.chunks(50_000) {
                path.set_delay(Duration::from_millis(u64::from(piece[7]) % 20));
                write.write_all(piece).await.unwrap();
            }
            write.shutdown().await.unwrap();
        };
        let mut received = Vec::new();
        let (result, ()) = soon(async { tokio::join!(read.read_to_end(&mut received), storm) }).await;
        result.unwrap();
        assert!(received == expected, "{} bytes came back, altered", received.len());
        assert_eq!(relay.bytes(), 2_000_000);
    }

    #[tokio::test]
    async fn tcp_is_never_faster_than_the_delay() {
        let delay = Duration::from_millis(30);
        let relay = Relay::tcp(any(), echo().await, Path::new(delay)).await.unwrap();
        let mut stream = TcpStream::connect(relay.listen()).await.unwrap();
        for _ in 0..3 {
            let began = crate::clock::tick();
            stream.write_all(b"ping").await.unwrap();
            let mut answer = [0; 4];
            soon(stream.read_exact(&mut answer)).await.unwrap();
            assert!(began.elapsed() >= 2 * delay, "came back after {:?}", began.elapsed());
        }
    }

    #[tokio::test]
    async fn a_cut_stalls_tcp_and_loses_datagrams() {
        let path = Path::new(Duration::ZERO);
        let relay = Relay::tcp(any(), echo().await, path.clone()).await.unwrap();
        let mut stream = TcpStream::connect(relay.listen()).await.unwrap();
        path.cut();
        stream.write_all(b"held").await.unwrap();
        let mut answer = [0; 4];
        let early = tokio::time::timeout(Duration::from_millis(100), stream.read_exact(&mut answer)).await;
        assert!(early.is_err(), "nothing passes a cut");
        path.restore();
        soon(stream.read_exact(&mut answer)).await.unwrap();
        assert_eq!(&answer, b"held");
        // What is said arrives, the answer does not.
        path.cut_one_way(Way::Back);
        let carried = relay.bytes();
        stream.write_all(b"once").await.unwrap();
        soon(async {
            while relay.bytes() < carried + 4 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await;
        let early = tokio::time::timeout(Duration::from_millis(50), stream.read_exact(&mut answer)).await;
        assert!(early.is_err() && path.is_cut(), "nothing comes back");
        path.restore();
        soon(stream.read_exact(&mut answer)).await.unwrap();
        assert_eq!(&answer, b"once");
        path.reset_connections();
        let ended = soon(stream.read(&mut answer)).await;
        assert!(matches!(ended, Ok(0) | Err(_)));
    }

    #[tokio::test]
    async fn udp_goes_forth_and_back_per_client_in_order() {
        let far = UdpSocket::bind(any()).await.unwrap();
        let far_address = far.local_addr().unwrap();
        tokio::spawn(async move {
            let mut buffer = [0; 2048];
            while let Ok((length, from)) = far.recv_from(&mut buffer).await {
                far.send_to(&buffer[..length], from).await.unwrap();
            }
        });
        let path = Path::new(Duration::from_millis(10));
        let relay = Relay::udp(any(), far_address, path.clone()).await.unwrap();
        let clients = [UdpSocket::bind(any()).await.unwrap(), UdpSocket::bind(any()).await.unwrap()];
        let began = crate::clock::tick();
        for number in 0..50_u8 {
            for (who, client) in clients.iter().enumerate() {
                client.send_to(&[who as u8, number], relay.listen()).await.unwrap();
            }
        }
        for (who, client) in clients.iter().enumerate() {
            for number in 0..50_u8 {
                let mut buffer = [0; 2048];
                let length = soon(client.recv(&mut buffer)).await.unwrap();
                assert_eq!(&buffer[..length], [who as u8, number]);
            }
        }
        assert!(began.elapsed() >= Duration::from_millis(20));

        path.cut();
        clients[0].send_to(b"lost", relay.listen()).await.unwrap();
        tokio::time::timeout(Duration::from_millis(60), clients[0].recv(&mut [0; 16])).await.unwrap_err();
        path.restore();
        clients[0].send_to(b"after", relay.listen()).await.unwrap();
        let mut buffer = [0; 16];
        let length = soon(clients[0].recv(&mut buffer)).await.unwrap();
        assert_eq!(&buffer[..length], b"after");

        // By chance too, both ways: what arrives and what was lost is all that was sent.
        path.set_loss(1.0, 7);
        for _ in 0..5 {
            clients[0].send_to(b"gone", relay.listen()).await.unwrap();
        }
        let counted = async {
            while path.lost() < 5 {
                tokio::task::yield_now().await;
            }
        };
        soon(counted).await;
        path.set_loss(0.0, 7);
        clients[0].send_to(b"whole", relay.listen()).await.unwrap();
        let length = soon(clients[0].recv(&mut buffer)).await.unwrap();
        assert_eq!(&buffer[..length], b"whole");
    }
}
