//! ICMP echo as bytes (RFC 792, RFC 4443), and the socket it goes through. Parsing is pure and takes whatever comes.
//!
//! All requests of one run have the same checksum: routers that spread load choose by it, so that a trace sees one way and
//! not a mixture (Augustin et al. 2006, "Avoiding traceroute anomalies with Paris traceroute").

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;

/// Length of a request: header, cookie, and what keeps the checksum.
const LENGTH: usize = 8 + 8 + 2;

/// What one echo is known by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Echo {
    /// Of the process; a socket without privileges has its own.
    pub(super) identifier: u16,
    /// Of the request.
    pub(super) sequence: u16,
    /// Of the run: nobody else's answers have it.
    pub(super) cookie: u64,
}

/// What came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// The host itself.
    Reply {
        /// Of the request.
        sequence: u16,
        /// Of the run.
        cookie: u64,
    },
    /// A router on the way, about a request that went no further: its lifetime was over, or there is no way on.
    Gone {
        /// Of the request.
        identifier: u16,
        /// Of the request.
        sequence: u16,
        /// The lifetime was over.
        exceeded: bool,
    },
}

/// The request for `to`.
pub(super) fn request(to: IpAddr, echo: Echo) -> [u8; LENGTH] {
    let mut bytes = [0; LENGTH];
    bytes[0] = if to.is_ipv4() { 8 } else { 128 };
    bytes[4..6].copy_from_slice(&echo.identifier.to_be_bytes());
    bytes[6..8].copy_from_slice(&echo.sequence.to_be_bytes());
    bytes[8..16].copy_from_slice(&echo.cookie.to_be_bytes());
    bytes[16..18].copy_from_slice(&(!echo.sequence).to_be_bytes());
    if to.is_ipv4() {
        let sum = checksum(&bytes);
        bytes[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    bytes
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 =
        bytes.chunks(2).map(|two| u32::from(two[0]) << 8 | u32::from(*two.get(1).unwrap_or(&0))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// What `bytes` say, if they are about an echo. `header`: they begin with the packet's IP header.
pub(super) fn answer(of: IpAddr, header: bool, bytes: &[u8]) -> Option<Answer> {
    if of.is_ipv4() {
        let bytes = if header { after_header(bytes)? } else { bytes };
        match bytes.first()? {
            0 => reply(bytes),
            kind @ (3 | 11) => gone(after_header(bytes.get(8..)?)?, 8, *kind == 11),
            _ => None,
        }
    } else {
        match bytes.first()? {
            129 => reply(bytes),
            // 40: the header of the request that went no further.
            kind @ (1 | 3) => gone(bytes.get(8 + 40..)?, 128, *kind == 3),
            _ => None,
        }
    }
}

fn after_header(packet: &[u8]) -> Option<&[u8]> {
    let length = usize::from(packet.first()? & 0x0f) * 4;
    packet.get(length.max(20)..)
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn reply(bytes: &[u8]) -> Option<Answer> {
    let cookie = u64::from_be_bytes(bytes.get(8..16)?.try_into().ok()?);
    Some(Answer::Reply { sequence: word(bytes, 6)?, cookie })
}

fn gone(request: &[u8], kind: u8, exceeded: bool) -> Option<Answer> {
    (*request.first()? == kind).then_some(())?;
    Some(Answer::Gone { identifier: word(request, 4)?, sequence: word(request, 6)?, exceeded })
}

/// A socket for echoes.
pub(super) struct Icmp {
    pub(super) socket: UdpSocket,
    /// What it receives begins with the IP header.
    pub(super) header: bool,
}

impl Icmp {
    /// For `to`: without privileges where the system lets this process's group ping, else raw.
    pub(super) fn open(to: IpAddr) -> io::Result<Self> {
        Self::of(to, Type::DGRAM).or_else(|_| Self::of(to, Type::RAW))
    }

    /// For `to`, raw: this one hears what routers say, too.
    pub(super) fn raw(to: IpAddr) -> io::Result<Self> {
        Self::of(to, Type::RAW)
    }

    fn of(to: IpAddr, kind: Type) -> io::Result<Self> {
        let (domain, protocol, any): (_, _, SocketAddr) = match to {
            IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4, (Ipv4Addr::UNSPECIFIED, 0).into()),
            IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6, (Ipv6Addr::UNSPECIFIED, 0).into()),
        };
        let socket = Socket::new(domain, kind, Some(protocol))?;
        socket.set_nonblocking(true)?;
        socket.bind(&any.into())?;
        Ok(Self { socket: UdpSocket::from_std(socket.into())?, header: kind == Type::RAW && to.is_ipv4() })
    }
}

/// What would let this process use ICMP.
pub(super) const ALLOW: &str =
    "give it CAP_NET_RAW (setcap cap_net_raw+ep, or AmbientCapabilities=CAP_NET_RAW of systemd)";
/// The same where echoes are enough.
pub(super) const ALLOW_PING: &str = "give it CAP_NET_RAW (setcap cap_net_raw+ep, or AmbientCapabilities=CAP_NET_RAW of \
     systemd), or put its group into net.ipv4.ping_group_range";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
    const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

    fn echo(sequence: u16) -> Echo {
        Echo { identifier: 7, sequence, cookie: 0x0123_4567_89ab_cdef }
    }

    fn ip(inner: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; 20];
        packet[0] = 0x45;
        packet.extend_from_slice(inner);
        packet
    }

    #[test]
    fn requests_are_well_formed_and_share_a_checksum() {
        let first = request(V4, echo(1));
        assert_eq!(checksum(&first), 0, "the sum over a whole message is nothing");
        for sequence in [0, 1, 2, 999, u16::MAX] {
            assert_eq!(request(V4, echo(sequence))[2..4], first[2..4]);
        }
    }

    #[test]
    fn replies_and_what_routers_say_are_told_apart() {
        for (of, reply, exceeded) in [(V4, 0, 11), (V6, 129, 3)] {
            let sent = request(of, echo(5));
            let mut back = sent;
            back[0] = reply;
            let expected = Some(Answer::Reply { sequence: 5, cookie: echo(5).cookie });
            assert_eq!(answer(of, false, &back), expected);
            let quoted =
                if of.is_ipv4() { ip(&sent[..8]) } else { [vec![0; 40], sent[..8].to_vec()].concat() };
            let router = [vec![exceeded, 0, 0, 0, 0, 0, 0, 0], quoted].concat();
            let expected = Some(Answer::Gone { identifier: 7, sequence: 5, exceeded: true });
            assert_eq!(answer(of, false, &router), expected);
            // Our own request, as loopback shows it to raw sockets, is no answer.
            assert_eq!(answer(of, false, &sent), None);
        }
        let mut back = request(V4, echo(5));
        back[0] = 0;
        assert!(answer(V4, true, &ip(&back)).is_some());
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken(bytes in prop::collection::vec(any::<u8>(), 0..80), six in any::<bool>(), header in any::<bool>()) {
            let _ = answer(if six { V6 } else { V4 }, header, &bytes);
        }
    }
}
