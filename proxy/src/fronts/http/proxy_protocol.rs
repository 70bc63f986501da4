//! The PROXY protocol, versions 1 and 2: who the client of the balancer in front of us is. Pure; as haproxy's
//! `doc/proxy-protocol.txt` says, but for Unix sockets and TLV extensions, which are passed over.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// The longest line of version 1.
const LONGEST_LINE: usize = 107;
/// The longest header of version 2 that is taken: addresses and some extensions.
const LONGEST_BLOCK: usize = 4096;

/// What the bytes so far are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Header {
    /// The beginning of one.
    Partial,
    /// One of this length; the client, unless the balancer speaks for itself.
    Whole(usize, Option<SocketAddr>),
    /// None, or a broken one.
    Wrong,
}

/// Reads the header that a connection begins with.
pub(super) fn parse(bytes: &[u8]) -> Header {
    let shared = bytes.len().min(SIGNATURE.len());
    if bytes[..shared] == SIGNATURE[..shared] {
        return if shared < SIGNATURE.len() { Header::Partial } else { block(bytes) };
    }
    let shared = bytes.len().min(6);
    if bytes[..shared] != b"PROXY "[..shared] {
        return Header::Wrong;
    }
    match bytes.windows(2).take(LONGEST_LINE).position(|end| end == b"\r\n") {
        Some(end) => match std::str::from_utf8(&bytes[..end]).map(line) {
            Ok(Ok(client)) => Header::Whole(end + 2, client),
            Ok(Err(Broken)) | Err(_) => Header::Wrong,
        },
        None if bytes.len() < LONGEST_LINE => Header::Partial,
        None => Header::Wrong,
    }
}

/// A line that is no header.
struct Broken;

/// `PROXY TCP4 192.0.2.1 198.51.100.1 1234 443`.
fn line(line: &str) -> Result<Option<SocketAddr>, Broken> {
    let words: Vec<_> = line.split(' ').skip(1).collect();
    if words.first() == Some(&"UNKNOWN") {
        return Ok(None);
    }
    let [family, from, to, from_port, to_port] = words[..] else { return Err(Broken) };
    let address = |text: &str| text.parse::<IpAddr>().map_err(|_| Broken);
    let port = |text: &str| text.parse::<u16>().map_err(|_| Broken);
    let (from, to, from_port, _) = (address(from)?, address(to)?, port(from_port)?, port(to_port)?);
    match family {
        "TCP4" if from.is_ipv4() && to.is_ipv4() => {}
        "TCP6" if from.is_ipv6() && to.is_ipv6() => {}
        _ => return Err(Broken),
    }
    Ok(Some(SocketAddr::new(from, from_port)))
}

fn block(bytes: &[u8]) -> Header {
    let Some([version, family, high, low]) = bytes.get(12..16).and_then(|four| four.first_chunk()) else {
        return Header::Partial;
    };
    let length = 16 + usize::from(u16::from_be_bytes([*high, *low]));
    let command = version & 0xf;
    if version >> 4 != 2 || command > 1 || length > LONGEST_BLOCK {
        return Header::Wrong;
    }
    let Some(block) = bytes.get(16..length) else { return Header::Partial };
    // The balancer's own connection, such as a health check.
    if command == 0 {
        return Header::Whole(length, None);
    }
    // The client's port is followed by the balancer's.
    let port = |at: usize| block.get(at..at + 4).map(|four| u16::from_be_bytes([four[0], four[1]]));
    let client = match family >> 4 {
        1 => block.first_chunk::<4>().zip(port(8)).map(|(ip, port)| (IpAddr::V4(Ipv4Addr::from(*ip)), port)),
        2 => {
            block.first_chunk::<16>().zip(port(32)).map(|(ip, port)| (IpAddr::V6(Ipv6Addr::from(*ip)), port))
        }
        _ => return Header::Whole(length, None),
    };
    match client {
        Some(client) => Header::Whole(length, Some(SocketAddr::from(client))),
        None => Header::Wrong,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v2(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let mut bytes = SIGNATURE.to_vec();
        bytes.extend([0x20 | command, family]);
        bytes.extend((body.len() as u16).to_be_bytes());
        bytes.extend(body);
        bytes
    }

    #[test]
    fn both_versions_are_read_whole() {
        let client = |text: &str| Some(text.parse().expect("an address"));
        let mut six = vec![0_u8; 36];
        (six[0], six[1], six[15]) = (0x20, 1, 9);
        six[32..34].copy_from_slice(&443_u16.to_be_bytes());
        let four = [192, 0, 2, 7, 198, 51, 100, 1, 0x30, 0x39, 1, 0xbb];
        let mut extended = four.to_vec();
        extended.extend([4, 0, 1, 0]);
        for (bytes, found) in [
            (b"PROXY TCP4 192.0.2.7 198.51.100.1 12345 443\r\n".to_vec(), client("192.0.2.7:12345")),
            (b"PROXY TCP6 2001::9 ::1 443 80\r\n".to_vec(), client("[2001::9]:443")),
            (b"PROXY UNKNOWN\r\n".to_vec(), None),
            (b"PROXY UNKNOWN what ever\r\n".to_vec(), None),
            (v2(1, 0x11, &four), client("192.0.2.7:12345")),
            (v2(1, 0x11, &extended), client("192.0.2.7:12345")),
            (v2(1, 0x21, &six), client("[2001::9]:443")),
            (v2(0, 0x00, &[]), None),
            (v2(1, 0x31, &[0; 216]), None),
        ] {
            let mut more = bytes.clone();
            more.extend(b"GET / HTTP/1.1\r\n");
            assert_eq!(parse(&more), Header::Whole(bytes.len(), found));
            for end in 0..bytes.len() {
                assert_eq!(parse(&bytes[..end]), Header::Partial, "{end} of {bytes:?}");
            }
        }
    }

    #[test]
    fn what_is_none_is_refused() {
        let long = format!("PROXY TCP4 192.0.2.7 198.51.100.1 12345 443{}\r\n", " ".repeat(80));
        for bytes in [
            b"GET / HTTP/1.1\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.7 198.51.100.1 12345\r\n".to_vec(),
            b"PROXY TCP4 ::1 ::1 1 2\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.7 198.51.100.1 99999 443\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.7 198.51.100.1 1 2 3\r\n".to_vec(),
            long.into_bytes(),
            v2(2, 0x11, &[0; 12]),
            v2(1, 0x11, &[0; 11]),
            v2(1, 0x11, &[0; 5000]),
        ] {
            assert_eq!(parse(&bytes), Header::Wrong, "{bytes:?}");
        }
    }
}
