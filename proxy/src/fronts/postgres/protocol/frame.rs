//! Framing: where a message ends and the next begins, without looking into it.
//!
//! A message is a type byte, a length that counts itself, and that many bytes. A large one passes in pieces and is never held
//! whole; a small one is awaited, so that a peer that sends half a message has sent nothing.

/// Type byte and length.
pub const HEADER: usize = 5;
/// The largest message believed: PostgreSQL itself cannot build one of more than 1 GiB, its header apart.
pub const LIMIT: usize = (1 << 30) + (1 << 16);

/// What stands at the beginning of some bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece {
    /// So many bytes belong to the message before.
    Rest(usize),
    /// A whole message of so many bytes, header included.
    Whole(u8, usize),
    /// So many bytes of a large message; more follow.
    Begun(u8, usize),
    /// Not enough to tell.
    Short,
}

/// A length that no message has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a message {:?} of {length} bytes", char::from(*tag))]
pub struct Malformed {
    /// Its type byte.
    pub tag: u8,
    /// What it says of its length.
    pub length: u32,
}

/// Cuts one direction of a connection.
#[derive(Clone, Copy, Debug, Default)]
pub struct Framer {
    rest: usize,
    least: usize,
}

impl Framer {
    /// One that awaits so many bytes of a large message before it begins.
    pub fn with_least(least: usize) -> Self {
        Self { rest: 0, least }
    }

    /// What the next bytes are. The caller takes what it is told from `bytes` before it asks again; [`Piece::Short`] takes
    /// nothing. A message of up to `whole` bytes is awaited until it is there.
    pub fn next(&mut self, bytes: &[u8], whole: usize) -> Result<Piece, Malformed> {
        if self.rest > 0 {
            let here = self.rest.min(bytes.len());
            self.rest -= here;
            return Ok(if here == 0 { Piece::Short } else { Piece::Rest(here) });
        }
        let Some(&[tag, a, b, c, d]) = bytes.first_chunk() else { return Ok(Piece::Short) };
        let length = u32::from_be_bytes([a, b, c, d]);
        let total = length as usize + 1;
        if length < 4 || total > LIMIT {
            return Err(Malformed { tag, length });
        }
        if bytes.len() >= total {
            return Ok(Piece::Whole(tag, total));
        }
        if total <= whole.max(HEADER) || bytes.len() < self.least {
            return Ok(Piece::Short);
        }
        self.rest = total - bytes.len();
        Ok(Piece::Begun(tag, bytes.len()))
    }

    /// Whether the last message has passed whole.
    pub fn between(&self) -> bool {
        self.rest == 0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(tag: u8, body: &[u8]) -> Vec<u8> {
        let mut bytes = vec![tag];
        bytes.extend((body.len() as u32 + 4).to_be_bytes());
        bytes.extend(body);
        bytes
    }

    #[test]
    fn small_messages_are_awaited_and_large_ones_pass() {
        let mut framer = Framer::default();
        let small = message(b'Q', b"select 1\0");
        assert_eq!(framer.next(&small[..4], 64), Ok(Piece::Short));
        assert_eq!(framer.next(&small[..10], 64), Ok(Piece::Short));
        assert_eq!(framer.next(&small, 64), Ok(Piece::Whole(b'Q', small.len())));
        let large = message(b'd', &[0; 100]);
        assert_eq!(framer.next(&large[..60], 64), Ok(Piece::Begun(b'd', 60)));
        assert!(!framer.between());
        assert_eq!(framer.next(&[], 64), Ok(Piece::Short));
        assert_eq!(framer.next(&large[60..], 64), Ok(Piece::Rest(45)));
        assert!(framer.between());
        let mut patient = Framer::with_least(80);
        assert_eq!(patient.next(&large[..79], 64), Ok(Piece::Short));
        assert_eq!(patient.next(&large[..80], 64), Ok(Piece::Begun(b'd', 80)));
        assert_eq!(patient.next(&large[80..], 64), Ok(Piece::Rest(25)));
    }

    #[test]
    fn impossible_lengths_are_refused() {
        for length in [0_u32, 3, 0x7fff_ffff, u32::MAX] {
            let mut bytes = vec![b'Q'];
            bytes.extend(length.to_be_bytes());
            assert_eq!(Framer::default().next(&bytes, 64), Err(Malformed { tag: b'Q', length }));
        }
    }

    proptest! {
        /// However a stream is cut into reads, the same bytes pass in the same messages.
        #[test]
        fn any_cut_gives_the_same_messages(
            bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 1..8),
            cuts in prop::collection::vec(1..50_usize, 1..40),
        ) {
            let stream: Vec<u8> = bodies.iter().flat_map(|body| message(b'x', body)).collect();
            let (mut framer, mut buffer, mut passed, mut begun) = (Framer::default(), Vec::new(), 0, 0);
            let (mut at, mut cuts) = (0, cuts.iter().cycle());
            while at < stream.len() {
                let end = stream.len().min(at + cuts.next().expect("cycle"));
                buffer.extend(&stream[at..end]);
                at = end;
                loop {
                    let count = match framer.next(&buffer, 64).expect("valid") {
                        Piece::Short => break,
                        Piece::Rest(count) => count,
                        Piece::Whole(tag, count) | Piece::Begun(tag, count) => {
                            prop_assert_eq!(tag, b'x');
                            begun += 1;
                            count
                        }
                    };
                    buffer.drain(..count);
                    passed += count;
                }
            }
            prop_assert_eq!((passed, begun, framer.between()), (stream.len(), bodies.len(), true));
        }

        #[test]
        fn any_bytes_are_cut_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let (mut framer, mut at) = (Framer::default(), 0);
            while let Ok(piece) = framer.next(&bytes[at..], 64) {
                match piece {
                    Piece::Short => break,
                    Piece::Rest(count) | Piece::Whole(_, count) | Piece::Begun(_, count) => {
                        prop_assert!(count > 0 && at + count <= bytes.len());
                        at += count;
                    }
                }
            }
        }
    }
}
