//! Where one WebSocket message frame ends and the next begins, so that a close frame can be put between two. Pure; RFC 6455.

use bytes::Bytes;

/// A close frame with code 1012, "service restart": the client should come again.
pub(super) const RESTART: Bytes = Bytes::from_static(&[0x88, 2, 0x03, 0xF4]);

/// Follows the frames of one direction.
#[derive(Debug, Default)]
pub(super) struct Frames {
    header: [u8; 14],
    /// Bytes of the header so far.
    read: usize,
    /// Bytes of the payload to come.
    payload: u64,
    closed: bool,
}

impl Frames {
    /// These bytes passed.
    pub(super) fn pass(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.payload > 0 {
                let skipped = self.payload.min(bytes.len() as u64);
                self.payload -= skipped;
                bytes = &bytes[skipped as usize..];
                continue;
            }
            self.header[self.read] = bytes[0];
            self.read += 1;
            bytes = &bytes[1..];
            if let Some(payload) = self.whole() {
                self.closed |= self.header[0] & 0xf == 8;
                self.payload = payload;
                self.read = 0;
            }
        }
    }

    /// Whether a close frame may follow: between two frames, and none was sent.
    pub(super) fn may_close(&self) -> bool {
        self.read == 0 && self.payload == 0 && !self.closed
    }

    /// The length of the payload, once the header is whole.
    fn whole(&self) -> Option<u64> {
        if self.read < 2 {
            return None;
        }
        let mask = if self.header[1] & 0x80 == 0 { 0 } else { 4 };
        let (length, payload) = match self.header[1] & 0x7f {
            126 => (4, u64::from(u16::from_be_bytes([self.header[2], self.header[3]]))),
            127 => {
                let mut bytes = [0; 8];
                bytes.copy_from_slice(&self.header[2..10]);
                (10, u64::from_be_bytes(bytes))
            }
            short => (2, u64::from(short)),
        };
        (self.read == length + mask).then_some(payload)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(first: u8, length: usize, masked: bool) -> Vec<u8> {
        let mask = if masked { 0x80 } else { 0 };
        let mut bytes = vec![first];
        match length {
            0..126 => bytes.push(mask + length as u8),
            126..65536 => {
                bytes.push(mask + 126);
                bytes.extend((length as u16).to_be_bytes());
            }
            _ => {
                bytes.push(mask + 127);
                bytes.extend((length as u64).to_be_bytes());
            }
        }
        bytes.resize(bytes.len() + if masked { 4 } else { 0 } + length, 0x88);
        bytes
    }

    #[test]
    fn a_frame_ends_where_its_length_says_however_it_is_cut() {
        for (length, masked) in
            [(0, false), (5, false), (125, true), (126, false), (70_000, true), (65_535, false)]
        {
            let bytes = frame(0x81, length, masked);
            for piece in [1, 3, 4096] {
                let mut frames = Frames::default();
                assert!(frames.may_close());
                let mut passed = 0;
                for chunk in bytes.chunks(piece) {
                    frames.pass(chunk);
                    passed += chunk.len();
                    assert_eq!(frames.may_close(), passed == bytes.len(), "{length} in {piece}: {passed}");
                }
                frames.pass(&frame(0x02, 300, false));
                assert!(frames.may_close());
            }
        }
    }

    #[test]
    fn nothing_follows_a_close_frame() {
        let mut frames = Frames::default();
        frames.pass(&RESTART);
        assert!(!frames.may_close());
    }
}
