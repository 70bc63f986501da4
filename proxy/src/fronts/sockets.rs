//! Sockets that listen, kept over the process that serves them: an upgrade of the program takes them along (`upgrade`).
//!
//! A socket that nobody accepts from for a moment refuses nobody: connections wait in its queue in the kernel. So each is bound here
//! once, or inherited; who serves it gets a duplicate. They travel to the next program as `SCM_RIGHTS` messages (unix(7)) on a socket
//! that is its standard input, since a number in the environment could not be made a socket again without `unsafe`.
//! pingora binds by itself what it does not find in its table of inherited sockets: [`Kept`] fills that table before it looks.

use std::collections::BTreeMap;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd as _, IntoRawFd as _, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use pingora::server::{ListenFds, ShutdownWatch};
use pingora::services::Service;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::sync::watch;

use super::http::ListenError;
use crate::lock::lock;

/// Connections that wait to be accepted; the system bounds it (net.core.somaxconn).
const QUEUE: i32 = 65_535;
/// When a client that says nothing is asked whether it is there.
const ASK_AFTER: Duration = Duration::from_mins(1);
/// How often, and how many times, until it is given up.
const ASK: (Duration, u32) = (Duration::from_secs(10), 6);
/// Longest address with what separates it from the next, bytes.
const ADDRESS: usize = 64;
/// Sockets in a message: the buffer between two sockets has room for some two hundred messages only.
const TOGETHER: usize = 64;

/// Every socket of the node that listens for TCP connections.
pub struct Sockets {
    kept: Mutex<BTreeMap<SocketAddr, TcpListener>>,
    /// Whether connections are accepted no more.
    closing: watch::Sender<bool>,
    /// Services that accept, or are about to.
    accepting: watch::Sender<usize>,
}

impl Default for Sockets {
    fn default() -> Self {
        Self::of(BTreeMap::new())
    }
}

impl Sockets {
    fn of(kept: BTreeMap<SocketAddr, TcpListener>) -> Self {
        Self { kept: Mutex::new(kept), closing: watch::Sender::new(false), accepting: watch::Sender::new(0) }
    }

    /// Those that the program before left on `from`, to its end.
    pub fn inherited(from: OwnedFd) -> io::Result<Self> {
        let wrong = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
        let mut kept = BTreeMap::new();
        let mut text = vec![0; ADDRESS * TOGETHER];
        loop {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(TOGETHER))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut parts = [IoSliceMut::new(&mut text)];
            let message = recvmsg(from.as_fd(), &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)?;
            if message.bytes == 0 {
                return Ok(Self::of(kept));
            }
            if message.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
                return Err(wrong("a message about inherited sockets is cut"));
            }
            let sockets = control.drain().filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(sockets) => Some(sockets),
                _ => None,
            });
            let sockets: Vec<OwnedFd> = sockets.flatten().collect();
            let addresses = std::str::from_utf8(&text[..message.bytes]).unwrap_or_default().lines();
            let addresses: Result<Vec<SocketAddr>, _> = addresses.map(str::parse).collect();
            let addresses = addresses.map_err(|_| wrong("an inherited socket has no address"))?;
            if addresses.len() != sockets.len() {
                return Err(wrong("a message has not as many sockets as addresses"));
            }
            let sockets: Vec<_> = sockets.into_iter().map(TcpListener::from).collect();
            // The program before may have been without.
            sockets.iter().try_for_each(finds_who_has_gone)?;
            kept.extend(addresses.into_iter().zip(sockets));
        }
    }

    /// Puts all of them where the next program finds them.
    pub fn handed_over(&self) -> io::Result<OwnedFd> {
        let (from, to) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let kept = lock(&self.kept);
        let all: Vec<_> = kept.iter().collect();
        for some in all.chunks(TOGETHER) {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(TOGETHER))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            let sockets: Vec<_> = some.iter().map(|(_, socket)| socket.as_fd()).collect();
            if !control.push(SendAncillaryMessage::ScmRights(&sockets)) {
                return Err(io::Error::other("there is no room for sockets in their message"));
            }
            let addresses: Vec<String> = some.iter().map(|(address, _)| address.to_string()).collect();
            let addresses = addresses.join("\n");
            sendmsg(&from, &[IoSlice::new(addresses.as_bytes())], &mut control, SendFlags::DONTWAIT)?;
        }
        Ok(to)
    }

    /// A socket that listens on `address`: the one that is there, or else a new one that is kept from now on.
    pub fn listener(&self, address: SocketAddr) -> Result<TcpListener, ListenError> {
        let mut kept = lock(&self.kept);
        let listener = match kept.get(&address) {
            Some(socket) => socket.try_clone(),
            None => bound(address).and_then(|socket| {
                let duplicate = socket.try_clone()?;
                // Whoever asks for any port gets another each time.
                if address.port() != 0 {
                    kept.insert(address, socket);
                }
                Ok(duplicate)
            }),
        };
        listener.map_err(|source| ListenError { address, source })
    }

    /// Whether the next program, which listens on `wanted`, gets a socket on `address`: it inherits it, or nobody else has it. What shares its port
    /// with a socket that closes for it can only be seen then.
    pub fn may_listen(&self, address: SocketAddr, wanted: &[SocketAddr]) -> Result<(), ListenError> {
        let kept = lock(&self.kept);
        let mut held = kept.keys().copied();
        let closes = |held: SocketAddr| held.port() == address.port() && !wanted.contains(&held);
        if held.any(|held| held == address || closes(held)) {
            return Ok(());
        }
        at_address(address).map(drop).map_err(|source| ListenError { address, source })
    }

    /// Closes what nobody serves any more: the rest is for `addresses`.
    pub fn only(&self, addresses: impl IntoIterator<Item = SocketAddr>) {
        let wanted: std::collections::BTreeSet<SocketAddr> = addresses.into_iter().collect();
        lock(&self.kept).retain(|address, _| wanted.contains(address));
    }

    /// The socket of this address is not needed any more.
    pub fn forget(&self, address: SocketAddr) {
        lock(&self.kept).remove(&address);
    }

    /// From now on connections wait in the kernel, and those that are here end with the request they have. Returns when nobody
    /// accepts any more.
    pub async fn close(&self) {
        self.closing.send_replace(true);
        // Its sender is here.
        let _ = self.accepting.subscribe().wait_for(|services| *services == 0).await;
    }
}

/// A socket at this address on which nobody is heard yet.
fn at_address(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

fn bound(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = at_address(address)?;
    socket.listen(QUEUE)?;
    socket.set_nonblocking(true)?;
    let socket = socket.into();
    finds_who_has_gone(&socket)?;
    Ok(socket)
}

/// Has the kernel ask clients that say nothing whether they are there: what is accepted on a socket does as that one does (tcp(7)).
fn finds_who_has_gone(socket: &TcpListener) -> io::Result<()> {
    let asks = TcpKeepalive::new().with_time(ASK_AFTER).with_interval(ASK.0).with_retries(ASK.1);
    SockRef::from(socket).set_tcp_keepalive(&asks)
}

/// A service of pingora on sockets that are kept: it stops accepting when they close, before the server ends.
pub struct Kept<S> {
    service: S,
    addresses: Vec<SocketAddr>,
    sockets: Arc<Sockets>,
    accepts: Option<Accepts>,
}

/// A service accepts, until this is dropped.
struct Accepts(Arc<Sockets>);

impl Drop for Accepts {
    fn drop(&mut self) {
        self.0.accepting.send_modify(|services| *services -= 1);
    }
}

impl<S> Kept<S> {
    /// `service`, which listens on these addresses.
    pub fn new(service: S, addresses: Vec<SocketAddr>, sockets: &Arc<Sockets>) -> Self {
        sockets.accepting.send_modify(|services| *services += 1);
        let accepts = Some(Accepts(Arc::clone(sockets)));
        Self { service, addresses, sockets: Arc::clone(sockets), accepts }
    }
}

#[async_trait]
impl<S: Service> Service for Kept<S> {
    async fn start_service(
        &mut self,
        fds: Option<ListenFds>,
        mut shutdown: ShutdownWatch,
        listeners_per_fd: usize,
    ) {
        let _accepts = self.accepts.take();
        for address in &self.addresses {
            match self.sockets.listener(*address) {
                Ok(listener) => {
                    if let Some(fds) = &fds {
                        fds.lock().add(address.to_string(), OwnedFd::from(listener).into_raw_fd());
                    }
                }
                // pingora tries by itself, and says what it met.
                Err(error) => tracing::error!(%error, "a front has no socket"),
            }
        }
        let (end, ends) = watch::channel(false);
        let mut closing = self.sockets.closing.subscribe();
        let told = async {
            tokio::select! {
                _ = shutdown.wait_for(|ends| *ends) => {}
                _ = closing.wait_for(|closes| *closes) => {}
            }
            end.send_replace(true);
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = self.service.start_service(fds, ends, listeners_per_fd) => {}
            () = told => {}
        }
    }

    fn name(&self) -> &str {
        self.service.name()
    }

    fn threads(&self) -> Option<usize> {
        self.service.threads()
    }

    fn listen_addresses(&self) -> Option<Vec<String>> {
        self.service.listen_addresses()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpStream;

    use super::*;

    fn free() -> SocketAddr {
        TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("its address")
    }

    #[test]
    fn who_connects_while_nobody_accepts_is_served_by_the_next_one() {
        let (one, other) = (free(), free());
        let sockets = Sockets::default();
        let first = sockets.listener(one).expect("bound");
        sockets.listener(other).expect("bound");
        assert!(TcpListener::bind(one).is_err(), "it is taken");
        drop(first);
        let mut client = TcpStream::connect(one).expect("the socket listens on");
        client.write_all(b"hello").expect("sent");
        let next = Sockets::inherited(sockets.handed_over().expect("handed over")).expect("inherited");
        drop(sockets);
        let listener = next.listener(one).expect("inherited");
        listener.set_nonblocking(false).expect("set");
        let (mut server, _) = listener.accept().expect("who waited");
        let mut said = [0; 5];
        server.read_exact(&mut said).expect("read");
        assert_eq!(&said, b"hello");
        next.only([one]);
        assert!(TcpListener::bind(other).is_ok(), "what nobody serves is closed");
    }

    #[test]
    fn an_address_that_another_program_has_is_known_before() {
        let (kept, new) = (free(), free());
        let sockets = Sockets::default();
        let _served = sockets.listener(kept).expect("bound");
        let any = SocketAddr::new([0, 0, 0, 0].into(), kept.port());
        for (address, wanted) in [(kept, vec![kept]), (new, vec![kept, new]), (any, vec![any])] {
            sockets.may_listen(address, &wanted).expect("it may");
        }
        assert!(sockets.may_listen(any, &[kept, any]).is_err(), "both at once");
        let _other = TcpListener::bind(new).expect("bound");
        assert!(sockets.may_listen(new, &[kept, new]).is_err(), "another program's");
    }

    #[test]
    fn several_hundred_sockets_are_handed_over() {
        let sockets = Sockets::default();
        let addresses: Vec<SocketAddr> = (1..=400)
            .map(|port| {
                format!("[2001:db8:1111:2222:3333:4444:5555:6666]:{port}").parse().expect("an address")
            })
            .collect();
        let socket = TcpListener::bind("127.0.0.1:0").expect("a port");
        for address in &addresses {
            sockets.kept.lock().expect("the lock").insert(*address, socket.try_clone().expect("a duplicate"));
        }
        let next = Sockets::inherited(sockets.handed_over().expect("handed over")).expect("inherited");
        let kept = next.kept.lock().expect("the lock");
        assert!(kept.keys().eq(addresses.iter()));
        let here = socket.local_addr().expect("its address");
        assert!(kept.values().all(|socket| socket.local_addr().expect("its address") == here));
    }

    #[test]
    fn what_is_no_socket_that_was_handed_over_is_refused() {
        let (from, to) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .expect("a pair");
        rustix::io::write(&from, b"127.0.0.1:1").expect("sent");
        drop(from);
        let error = Sockets::inherited(to).err().expect("a message without a socket");
        assert_eq!(error.to_string(), "a message has not as many sockets as addresses");
        let null = std::fs::File::open("/dev/null").expect("opened");
        assert!(Sockets::inherited(null.into()).is_err());
        let none = Sockets::default().handed_over().expect("handed over");
        assert!(Sockets::inherited(none).expect("nothing").kept.lock().expect("the lock").is_empty());
    }
}
