//! The link protocol: versioned frames with a sequence number and a checksum. Pure: bytes in, values out.
//!
//! ```text
//! 0      4        5     6           14        18      22
//! "GWLK" version  kind  sequence    length    crc32   body …     (integers big-endian)
//! ```
//! The checksum covers the header before it and the body. Every length read from the other side is bounded before it
//! is used; arbitrary bytes give an [`Error`], never a panic.

mod codec;
mod frame;
pub mod large;
pub mod transaction;

use bytes::{BufMut, Bytes, BytesMut};

pub use frame::{CopyTable, Frame, Hello, Progress, Resume, Role, StreamSpec};

use crate::error::Error;
use codec::Reader;

/// Protocol versions.
/// - 1: first.
pub const VERSION: u8 = 1;

const MAGIC: [u8; 4] = *b"GWLK";

/// Header bytes before the body.
pub const HEADER: usize = 22;

/// Longest frame, header included: what a receiver must be ready to buffer.
pub const MAX_FRAME: usize = 1 << 20;

/// Bulk data (transactions, schema, rows) is cut into pieces of at most this many bytes.
pub const PIECE: usize = 128 << 10;

/// Longest text in a frame (names, reasons), bytes.
pub const MAX_TEXT: usize = 16 << 10;

/// One frame as it goes on the wire. Text longer than [`MAX_TEXT`] is cut; pieces must not exceed [`PIECE`].
pub fn encode(sequence: u64, frame: &Frame) -> Bytes {
    let mut out = BytesMut::with_capacity(HEADER + 128 + frame.payload_len());
    out.put_slice(&MAGIC);
    out.put_u8(VERSION);
    out.put_u8(frame.kind());
    out.put_u64(sequence);
    out.put_slice(&[0; 8]);
    frame.write(&mut out);
    let length = (out.len() - HEADER) as u32;
    out[14..18].copy_from_slice(&length.to_be_bytes());
    let crc = checksum(&out);
    out[18..22].copy_from_slice(&crc.to_be_bytes());
    out.freeze()
}

/// Reads one whole frame and its sequence number.
pub fn decode(bytes: Bytes) -> Result<(u64, Frame), Error> {
    if bytes.len() < HEADER || bytes.len() > MAX_FRAME {
        return Err(Error::Protocol(format!("a frame of {} bytes", bytes.len())));
    }
    let mut reader = Reader::new(bytes.clone());
    if reader.take(4)? != MAGIC[..] {
        return Err(Error::Protocol("not a link frame".into()));
    }
    let version = reader.u8()?;
    if version != VERSION {
        return Err(Error::Protocol(format!("link protocol version {version}; this side speaks {VERSION}")));
    }
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
    let frame = Frame::read(kind, &mut reader)?;
    reader.finish()?;
    Ok((sequence, frame))
}

fn checksum(frame: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&frame[..18]);
    hasher.update(&frame[HEADER..]);
    hasher.finalize()
}

#[cfg(test)]
mod tests;
