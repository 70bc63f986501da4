//! A transaction that is never whole in memory: a sequence of records, cut into pieces anywhere.
//!
//! ```text
//! 0       4
//! length  a table's description or a change, as in a small transaction (see [`super::transaction`])
//! ```
//! Descriptions count within this one transaction. Pure: bytes in, values out.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::codec::Reader;
use super::{PIECE, transaction};
use crate::change::Change;
use crate::error::Error;

/// Longest record: a change that PostgreSQL could build (1 GiB), with room for our own counts.
pub const MAX_RECORD: usize = (1 << 30) + (16 << 20);

/// Bytes before a record.
pub const RECORD_HEADER: usize = 4;

/// Writes the length that stands before a record.
pub(crate) fn put_record_header(out: &mut BytesMut, length: usize) {
    out.put_u32(length as u32);
}

/// Writes the records of one transaction.
#[derive(Debug, Default)]
pub struct Encoder {
    tables: transaction::Encoder,
    out: BytesMut,
}

impl Encoder {
    /// The next change, after the tables that it needs.
    pub fn push(&mut self, change: &Change) {
        let Self { tables, out } = self;
        tables.describe(change, |put| put_record(out, put));
        put_record(out, |out| transaction::put_change(out, change));
    }

    /// A full piece: [`PIECE`] bytes.
    pub fn poll_piece(&mut self) -> Option<Bytes> {
        (self.out.len() >= PIECE).then(|| self.out.split_to(PIECE).freeze())
    }

    /// The last piece, after all full ones.
    pub fn finish(self) -> Option<Bytes> {
        (!self.out.is_empty()).then(|| self.out.freeze())
    }
}

fn put_record(out: &mut BytesMut, put: impl Fn(&mut BytesMut)) {
    let start = out.len();
    put_record_header(out, 0);
    put(out);
    let length = (out.len() - start - RECORD_HEADER) as u32;
    out[start..start + RECORD_HEADER].copy_from_slice(&length.to_be_bytes());
}

/// Puts the records of one transaction together again; holds no more than the record that is still arriving.
#[derive(Debug, Default)]
pub struct Decoder {
    tables: transaction::Decoder,
    rest: BytesMut,
}

impl Decoder {
    /// The changes that end in this piece, in order.
    pub fn feed(&mut self, mut piece: Bytes, changes: &mut Vec<Change>) -> Result<(), Error> {
        if !self.rest.is_empty() {
            // Just as much as completes the record that is there in part.
            while !piece.is_empty() {
                let wanted = match record_length(&self.rest)? {
                    Some(length) => (RECORD_HEADER + length).saturating_sub(self.rest.len()),
                    None => RECORD_HEADER - self.rest.len(),
                };
                self.rest.extend_from_slice(&piece.split_to(wanted.min(piece.len())));
                let whole = record_length(&self.rest)?.map(|length| RECORD_HEADER + length);
                if whole == Some(self.rest.len()) {
                    let mut record = std::mem::take(&mut self.rest).freeze();
                    record.advance(RECORD_HEADER);
                    changes.extend(self.record(record)?);
                    break;
                }
            }
        }
        while let Some(length) = record_length(&piece)?.filter(|length| RECORD_HEADER + length <= piece.len())
        {
            piece.advance(RECORD_HEADER);
            let record = piece.split_to(length);
            changes.extend(self.record(record)?);
        }
        self.rest.extend_from_slice(&piece);
        Ok(())
    }

    /// To be called when all pieces were fed.
    pub fn finish(self) -> Result<(), Error> {
        if self.rest.is_empty() {
            return Ok(());
        }
        Err(Error::Protocol(format!("a transaction ends {} bytes into a record", self.rest.len())))
    }

    fn record(&mut self, record: Bytes) -> Result<Option<Change>, Error> {
        let mut reader = Reader::new(record);
        let item = self.tables.item(&mut reader)?;
        reader.finish()?;
        Ok(item)
    }
}

fn record_length(bytes: &[u8]) -> Result<Option<usize>, Error> {
    let Some(length) = bytes.first_chunk::<RECORD_HEADER>() else { return Ok(None) };
    let length = u32::from_be_bytes(*length) as usize;
    if length > MAX_RECORD {
        return Err(Error::Protocol(format!("a record of {length} bytes")));
    }
    Ok(Some(length))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(length: usize) -> Change {
        Change::Message { prefix: "p".into(), content: vec![b'c'; length].into() }
    }

    fn records(lengths: &[usize]) -> Bytes {
        let mut encoder = Encoder::default();
        for length in lengths {
            encoder.push(&message(*length));
        }
        encoder.finish().unwrap_or_default()
    }

    proptest! {
        #[test]
        fn cut_anywhere_the_same_changes_come_out(
            lengths in prop::collection::vec(0usize..400, 0..20),
            cuts in prop::collection::vec(1usize..300, 1..20),
        ) {
            let (mut rest, mut decoder, mut found) = (records(&lengths), Decoder::default(), Vec::new());
            for cut in cuts.iter().cycle() {
                if rest.is_empty() { break }
                decoder.feed(rest.split_to((*cut).min(rest.len())), &mut found).expect("own records");
            }
            decoder.finish().expect("whole");
            prop_assert_eq!(found, lengths.iter().map(|length| message(*length)).collect::<Vec<_>>());
        }

        #[test]
        fn arbitrary_bytes_never_panic(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 0..8)) {
            let (mut decoder, mut found) = (Decoder::default(), Vec::new());
            for piece in pieces {
                if decoder.feed(piece.into(), &mut found).is_err() { break }
            }
        }
    }

    #[test]
    fn an_end_inside_a_record_is_refused() {
        let whole = records(&[9]);
        for end in 1..whole.len() {
            let mut decoder = Decoder::default();
            decoder.feed(whole.slice(..end), &mut Vec::new()).expect("so far right");
            assert!(decoder.finish().is_err(), "cut at {end}");
        }
        let mut decoder = Decoder::default();
        assert!(
            decoder.feed(Bytes::from_static(b"\xff\xff\xff\xff"), &mut Vec::new()).is_err(),
            "far too long"
        );
    }
}
