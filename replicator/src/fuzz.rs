//! What must hold for any bytes from the other side: the bodies of the fuzz targets in `replicator/fuzz`, and a short run of each
//! over its seeds in the ordinary tests.
//!
//! Each function takes arbitrary bytes. It may return early, it must not panic, hang or take memory that the bytes do not pay
//! for; and whatever was read must come back equal when it is written and read again.

use bytes::{BufMut, Bytes, BytesMut};

use crate::change::Change;
use crate::pgoutput;
use crate::wire::compression::{Compressor, Decompressor};
use crate::wire::{self, Version, large, transaction};

/// The messages in `data`, each behind its length in 16 bits; the last one may be cut short.
fn messages(data: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = data;
    std::iter::from_fn(move || {
        let (length, behind) = rest.split_first_chunk::<2>()?;
        let (message, left) = behind.split_at(usize::from(u16::from_be_bytes(*length)).min(behind.len()));
        rest = left;
        Some(message)
    })
}

/// Messages of a replication connection, as PostgreSQL sends them.
pub fn pgoutput(data: &[u8]) {
    let mut decoder = pgoutput::Decoder::new();
    let mut changes = Vec::new();
    for message in messages(data) {
        match decoder.decode(Bytes::copy_from_slice(message)) {
            Ok(Some(pgoutput::Event::Change { change, .. })) => changes.push(change),
            Ok(_) => {}
            // After an error it is thrown away.
            Err(_) => break,
        }
    }
    // What PostgreSQL can say, the link can carry.
    again(&changes);
}

/// Messages of a link, as they arrive: header, checksum and all.
pub fn frames(data: &[u8]) {
    let mut decompressor = Decompressor::new().expect("zstd");
    for message in messages(data) {
        let Ok(decoded) = wire::decode_as(Some(&mut decompressor), Bytes::copy_from_slice(message)) else {
            break;
        };
        same(&decoded);
    }
}

/// Bodies of frames, each behind its version and kind: with the header and checksum that only a peer of ours would write.
pub fn bodies(data: &[u8]) {
    let mut decompressor = Decompressor::new().expect("zstd");
    for (sequence, message) in messages(data).enumerate() {
        let Some(([version, kind], body)) = message.split_first_chunk::<2>() else { continue };
        let framed = wire::framed(1 + version % 4, *kind, sequence as u64, body);
        let Ok(decoded) = wire::decode_as(Some(&mut decompressor), framed) else { continue };
        assert_eq!(decoded.sequence, sequence as u64);
        same(&decoded);
    }
}

/// A frame that was read comes back equal, plain and compressed.
fn same(decoded: &wire::Decoded) {
    let plain = wire::encode_as(decoded.version, None, decoded.sequence, &decoded.frame).expect("plain");
    assert!(plain.len() <= wire::MAX_FRAME, "{} bytes", plain.len());
    assert_eq!(&wire::decode_as(None, plain).expect("own frame"), decoded);
    if decoded.version < Version::V2 || decoded.frame.payload_len() == 0 {
        return;
    }
    let (mut compressor, mut decompressor) =
        (Compressor::new().expect("zstd"), Decompressor::new().expect("zstd"));
    let packed = wire::encode_as(decoded.version, Some(&mut compressor), decoded.sequence, &decoded.frame);
    let back = wire::decode_as(Some(&mut decompressor), packed.expect("compresses"));
    assert_eq!(&back.expect("own frame"), decoded);
}

/// Transactions of one session, as one side of the link encodes them.
pub fn transactions(data: &[u8]) {
    let mut decoder = transaction::Decoder::default();
    let (mut encoder, mut back) = (transaction::Encoder::default(), transaction::Decoder::default());
    for message in messages(data) {
        let Ok(found) = decoder.decode(Bytes::copy_from_slice(message)) else { break };
        let bytes = encoder.encode(&found).expect("small");
        assert_eq!(back.decode(bytes).expect("own bytes"), found);
    }
}

/// The pieces of one large transaction, cut anywhere.
pub fn large_pieces(data: &[u8]) {
    let (mut decoder, mut whole) = (large::Decoder::default(), large::Decoder::default());
    let (mut changes, mut at_once, mut joined) = (Vec::new(), Vec::new(), BytesMut::new());
    let mut right = true;
    for piece in messages(data) {
        joined.put_slice(piece);
        right = decoder.feed(Bytes::copy_from_slice(piece), &mut changes).is_ok();
        if !right {
            break;
        }
    }
    // Where it is cut makes no difference.
    assert_eq!(whole.feed(joined.freeze(), &mut at_once).is_ok(), right);
    if right {
        assert_eq!(changes, at_once);
        assert_eq!(decoder.finish().is_ok(), whole.finish().is_ok());
    }
    again(&changes);
}

/// Changes that were read come back equal through both codecs of the link.
fn again(changes: &[Change]) {
    let mut encoder = transaction::Encoder::default();
    let mut records = BytesMut::new();
    for change in changes {
        let mut record = |put: &dyn Fn(&mut BytesMut)| {
            let mut body = BytesMut::new();
            put(&mut body);
            large::put_record_header(&mut records, body.len());
            records.put_slice(&body);
        };
        encoder.describe(change, &mut record);
        record(&|out| transaction::put_change(out, change));
    }
    let (mut decoder, mut back) = (large::Decoder::default(), Vec::new());
    decoder.feed(records.freeze(), &mut back).expect("own records");
    decoder.finish().expect("whole");
    assert_eq!(back, changes);
}

#[cfg(test)]
mod tests;
