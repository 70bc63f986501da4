//! Rows that COPY sends, taken out of the receive buffer many at a time.
//!
//! Sources: PostgreSQL documentation, 55.2.6 "COPY Operations", and the file formats of COPY.

use bytes::{Buf, Bytes, BytesMut};

use super::connection::{Connection, HEADER, server_error, unexpected};
use crate::error::Error;

/// A message up to this length is taken whole: the end of the binary format is recognised by its own.
const SHORT: usize = 64;

/// What COPY's binary format begins with: signature, flags and the length of an extension, none of which PostgreSQL sets.
pub(super) const SIGNATURE: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";

/// How far the rows of a copy have come.
#[derive(Debug, Default)]
pub(crate) struct Rows {
    binary: bool,
    /// Rows that have begun.
    pub(crate) count: u32,
    /// Bytes that are missing of the row under way.
    left: usize,
}

impl Rows {
    /// Of a copy in this format that begins.
    pub(crate) fn new(binary: bool) -> Self {
        Self { binary, ..Self::default() }
    }

    /// Takes note of a message's content, as much of it as is there.
    fn begin(&mut self, content: &[u8]) {
        // The server sends every row for itself, and the end of the binary format too.
        self.count += u32::from(!(self.binary && is_end(content)));
    }
}

/// The end mark, alone or (no row at all) right behind the header.
fn is_end(content: &[u8]) -> bool {
    content.strip_prefix(SIGNATURE).unwrap_or(content) == [0xff; 2]
}

impl Connection {
    /// Runs the command that makes the server send rows.
    pub(crate) async fn copy_out(&mut self, sql: &str, context: &str) -> Result<(), Error> {
        self.begin_copy(sql, b'H', context).await
    }

    /// Moves what is here of the rows to `out`, which holds less than `enough` bytes and then at most as many; true when the
    /// last one is through.
    pub(crate) fn take_rows(
        &mut self,
        rows: &mut Rows,
        out: &mut BytesMut,
        enough: usize,
        context: &str,
    ) -> Result<bool, Error> {
        let mut at = 0;
        let over = loop {
            let here = &self.received[at..];
            let take = rows.left.min(here.len()).min(enough - out.len());
            out.extend_from_slice(&here[..take]);
            (at, rows.left) = (at + take, rows.left - take);
            if rows.left > 0 || out.len() >= enough {
                break false;
            }
            let Some((tag, length)) = Self::header(&self.received[at..])? else { break false };
            let (content, here) = (length - 4, &self.received[at + HEADER..]);
            if here.len() < content && (content <= SHORT || tag != b'd') {
                break false;
            }
            match tag {
                b'd' => {
                    rows.begin(&here[..content.min(here.len())]);
                    rows.left = content;
                    at += HEADER;
                }
                b'c' => break true,
                b'E' => return Err(server_error(context, here[..content].to_vec().into())),
                b'N' | b'S' => at += HEADER + content,
                tag => return Err(unexpected(tag, context)),
            }
        };
        self.received.advance(at);
        Ok(over)
    }

    /// The whole messages with rows that are here, if there are any before something else comes.
    pub(crate) fn take_copied(&mut self) -> Result<Option<Bytes>, Error> {
        let mut at = 0;
        while let Some((b'd', length)) = Self::header(&self.received[at..])?
            && self.received.len() - at > length
        {
            at += length + 1;
        }
        Ok((at > 0).then(|| self.received.split_to(at).freeze()))
    }

    /// Takes what follows the last row.
    pub(crate) async fn end_of_copy(&mut self, context: &str) -> Result<(), Error> {
        loop {
            let frame = self.frame(context).await?;
            match frame.tag {
                b'Z' => return Ok(()),
                b'E' => return Err(server_error(context, frame.body)),
                b'c' | b'C' | b'N' | b'S' => {}
                tag => return Err(unexpected(tag, context)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(tag: u8, content: &[u8]) -> Vec<u8> {
        let length = u32::try_from(content.len() + 4).expect("short").to_be_bytes();
        [&[tag], &length[..], content].concat()
    }

    /// The rows of what a server sends, `step` bytes of it at a time.
    fn take(sent: &[u8], binary: bool, step: usize, enough: usize) -> Result<(u32, Vec<u8>, bool), Error> {
        let (client, _server) = tokio::io::duplex(1);
        let mut connection = Connection::over(Box::new(client));
        let (mut rows, mut all, mut over) = (Rows::new(binary), Vec::new(), false);
        for bit in sent.chunks(step) {
            connection.received.extend_from_slice(bit);
            loop {
                let mut out = BytesMut::new();
                over |= connection.take_rows(&mut rows, &mut out, enough, "copy t")?;
                assert!(out.len() <= enough, "{}", out.len());
                all.extend_from_slice(&out);
                if out.len() < enough {
                    break;
                }
            }
        }
        Ok((rows.count, all, over))
    }

    #[test]
    fn rows_come_whole_however_the_bytes_are_cut() {
        let long = vec![b'x'; 300];
        let first = [SIGNATURE, b"one"].concat();
        let contents: [&[u8]; 4] = [&first, b"two", &long, b"\xff\xff"];
        let mut sent: Vec<u8> = contents.iter().flat_map(|content| message(b'd', content)).collect();
        sent.extend(message(b'N', b"SNOTICE\0\0"));
        sent.extend(message(b'c', b""));
        for step in [1, 2, 3, 7, 64, 65, 1000] {
            let (count, all, over) = take(&sent, true, step, usize::MAX / 2).expect("valid");
            assert_eq!((count, over), (3, true), "{step} at a time");
            assert_eq!(all, contents.concat(), "{step} at a time");
        }
        let (count, all, over) = take(&sent, true, 5, 10).expect("valid");
        assert_eq!((count, over, all), (3, true, contents.concat()));
    }

    #[test]
    fn only_the_binary_format_has_an_end_mark() {
        let empty = [SIGNATURE, b"\xff\xff"].concat();
        let sent = [message(b'd', &empty), message(b'c', b"")].concat();
        assert_eq!(take(&sent, true, 4, 1000).expect("valid"), (0, empty.clone(), true));
        let text = [message(b'd', b"\xff\xff"), message(b'c', b"")].concat();
        assert_eq!(take(&text, false, 4, 1000).expect("valid"), (1, vec![0xff; 2], true));
    }

    #[test]
    fn what_a_server_must_not_send_is_an_error() {
        let error = take(&message(b'E', b"C57014\0Mcanceled\0\0"), true, 3, 1000).expect_err("an error");
        assert!(matches!(&error, Error::Server { sqlstate, .. } if sqlstate == "57014"), "{error}");
        for nonsense in [&b"d\0\0\0\x03"[..], b"d\xff\xff\xff\xff", b"x\0\0\0\x04"] {
            let error = take(nonsense, true, 1, 1000).expect_err("nonsense");
            assert!(matches!(error, Error::Protocol(_)), "{error}");
        }
    }
}
