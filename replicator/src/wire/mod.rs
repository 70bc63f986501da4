//! The link protocol: versioned frames with a sequence number and a checksum. Pure: bytes in, values out.
//!
//! ```text
//! 0      4        5     6           14        18      22
//! "GWLK" version  kind  sequence    length    crc32   body …     (integers big-endian)
//! ```
//! The highest bit of the kind says that the body is compressed: its plain length (32 bits), then zstd.
//! The checksum covers the header before it and the body. Every length read from the other side is bounded before it
//! is used; arbitrary bytes give an [`Error`], never a panic.

mod codec;
pub mod compression;
mod frame;
pub mod large;
pub mod transaction;
mod version;

use bytes::{BufMut, Bytes, BytesMut};

pub use frame::{CopyStart, CopyTable, Frame, Hello, KeptTable, Progress, Resume, Role, StreamSpec};
pub use version::{Agreed, Speaks, Version};

use crate::error::Error;
use codec::Reader;
use compression::{Compressor, Decompressor};

const MAGIC: [u8; 4] = *b"GWLK";

/// Header bytes before the body.
pub const HEADER: usize = 22;

/// Longest frame, header included: what a receiver must be ready to buffer.
pub const MAX_FRAME: usize = 1 << 20;

/// Bulk data (transactions, schema, rows) is cut into pieces of at most this many bytes.
pub const PIECE: usize = 128 << 10;

/// Longest text in a frame (names, reasons), bytes.
pub const MAX_TEXT: usize = 16 << 10;

/// In the kind: the body is compressed.
const COMPRESSED: u8 = 0x80;

/// One frame as it goes on the wire in the newest version, not compressed. Text longer than [`MAX_TEXT`] is cut; pieces must
/// not exceed [`PIECE`].
pub fn encode(sequence: u64, frame: &Frame) -> Bytes {
    encode_plain(Version::NEWEST, sequence, frame).freeze()
}

/// The same in a session's version, compressed where that pays.
pub fn encode_as(
    version: Version,
    compressor: Option<&mut Compressor>,
    sequence: u64,
    frame: &Frame,
) -> Result<Bytes, Error> {
    let mut out = encode_plain(version, sequence, frame);
    let bulk = frame.payload_len() > 0;
    if let Some(compressor) = compressor.filter(|_| bulk) {
        let body = out.split_off(HEADER);
        if compressor.compress(&body, &mut out)? {
            out[5] |= COMPRESSED;
            seal(&mut out);
        } else {
            out.unsplit(body);
        }
    }
    Ok(out.freeze())
}

fn encode_plain(version: Version, sequence: u64, frame: &Frame) -> BytesMut {
    let mut out = BytesMut::with_capacity(HEADER + 128 + frame.payload_len());
    out.put_slice(&MAGIC);
    out.put_u8(version.number());
    out.put_u8(frame.kind());
    out.put_u64(sequence);
    out.put_slice(&[0; 8]);
    frame.write(version, &mut out);
    seal(&mut out);
    out
}

/// A frame of any content with its right length and checksum.
#[cfg(any(test, fuzzing))]
pub(crate) fn framed(version: u8, kind: u8, sequence: u64, body: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(HEADER + body.len());
    out.put_slice(&MAGIC);
    out.put_u8(version);
    out.put_u8(kind);
    out.put_u64(sequence);
    out.put_slice(&[0; 8]);
    out.put_slice(body);
    seal(&mut out);
    out.freeze()
}

/// Puts length and checksum in.
fn seal(frame: &mut BytesMut) {
    let length = (frame.len() - HEADER) as u32;
    frame[14..18].copy_from_slice(&length.to_be_bytes());
    let crc = checksum(frame);
    frame[18..22].copy_from_slice(&crc.to_be_bytes());
}

/// A frame as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decoded {
    /// The version it is written in.
    pub version: Version,
    /// Its number in the session.
    pub sequence: u64,
    /// What it says.
    pub frame: Frame,
}

/// Reads one whole frame that is not compressed.
pub fn decode(bytes: Bytes) -> Result<(u64, Frame), Error> {
    decode_as(None, bytes).map(|decoded| (decoded.sequence, decoded.frame))
}

/// Reads one whole frame; without a decompressor a compressed one is an error.
pub fn decode_as(decompressor: Option<&mut Decompressor>, bytes: Bytes) -> Result<Decoded, Error> {
    if bytes.len() < HEADER || bytes.len() > MAX_FRAME {
        return Err(Error::Protocol(format!("a frame of {} bytes", bytes.len())));
    }
    let mut reader = Reader::new(bytes.clone());
    if reader.take(4)? != MAGIC[..] {
        return Err(Error::Protocol("not a link frame".into()));
    }
    let version = Version::from_number(reader.u8()?)?;
    let kind = reader.u8()?;
    let sequence = reader.u64()?;
    let length = reader.u32()? as usize;
    let crc = reader.u32()?;
    if length != bytes.len() - HEADER {
        return Err(Error::Protocol("frame length does not match".into()));
    }
    if crc != checksum(&bytes) {
        return Err(Error::Protocol("frame checksum does not match".into()));
    }
    let compressed = kind & COMPRESSED != 0 && version >= Version::V2;
    if compressed {
        let decompressor = decompressor
            .ok_or_else(|| Error::Protocol("a compressed frame in a session without compression".into()))?;
        let plain = reader.u32()? as usize;
        reader = Reader::new(decompressor.decompress(plain, &reader.rest())?);
    }
    let frame = Frame::read(if compressed { kind & !COMPRESSED } else { kind }, version, &mut reader)?;
    reader.finish()?;
    Ok(Decoded { version, sequence, frame })
}

fn checksum(frame: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&frame[..18]);
    hasher.update(&frame[HEADER..]);
    hasher.finalize()
}

#[cfg(test)]
pub(crate) mod tests;
