//! Bounded reading and writing of the few shapes that frames are made of.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::MAX_TEXT;
use crate::error::Error;
use crate::lsn::Lsn;

/// Reads from the front; every read checks what is left.
pub(super) struct Reader(Bytes);

impl Reader {
    pub(super) fn new(bytes: Bytes) -> Self {
        Self(bytes)
    }

    pub(super) fn take(&mut self, length: usize) -> Result<Bytes, Error> {
        if self.0.len() < length {
            return Err(Error::Protocol("frame ends early".into()));
        }
        Ok(self.0.split_to(length))
    }

    pub(super) fn rest(&mut self) -> Bytes {
        std::mem::take(&mut self.0)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn u8(&mut self) -> Result<u8, Error> {
        Ok(self.take(1)?[0])
    }

    pub(super) fn bool(&mut self) -> Result<bool, Error> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(Error::Protocol(format!("{other} is not a boolean"))),
        }
    }

    pub(super) fn u16(&mut self) -> Result<u16, Error> {
        Ok(self.take(2)?.get_u16())
    }

    pub(super) fn u32(&mut self) -> Result<u32, Error> {
        Ok(self.take(4)?.get_u32())
    }

    pub(super) fn u64(&mut self) -> Result<u64, Error> {
        Ok(self.take(8)?.get_u64())
    }

    pub(super) fn lsn(&mut self) -> Result<Lsn, Error> {
        self.u64().map(Lsn)
    }

    pub(super) fn optional_u64(&mut self) -> Result<Option<u64>, Error> {
        Ok(if self.bool()? { Some(self.u64()?) } else { None })
    }

    /// Bytes with a 32-bit length; bounded by what is left.
    pub(super) fn bytes(&mut self) -> Result<Bytes, Error> {
        let length = self.u32()? as usize;
        self.take(length)
    }

    pub(super) fn text(&mut self) -> Result<String, Error> {
        let length = self.u16()? as usize;
        if length > MAX_TEXT {
            return Err(Error::Protocol(format!("a text of {length} bytes")));
        }
        let bytes = self.take(length)?;
        String::from_utf8(bytes.to_vec()).map_err(|_| Error::Protocol("text is not UTF-8".into()))
    }

    /// A count of things that take at least one byte each: bounded by what is left.
    pub(super) fn count(&mut self) -> Result<usize, Error> {
        let count = self.u32()? as usize;
        if count > self.0.len() {
            return Err(Error::Protocol(format!("{count} items in {} bytes", self.0.len())));
        }
        Ok(count)
    }

    pub(super) fn finish(self) -> Result<(), Error> {
        if self.is_empty() {
            return Ok(());
        }
        Err(Error::Protocol(format!("{} bytes too many in a frame", self.0.len())))
    }
}

pub(super) trait Writer {
    fn put_bool(&mut self, value: bool);
    fn put_lsn(&mut self, lsn: Lsn);
    fn put_optional_u64(&mut self, value: Option<u64>);
    fn put_bytes_u32(&mut self, bytes: &[u8]);
    /// Cut at [`MAX_TEXT`], on a character border.
    fn put_text(&mut self, text: &str);
}

impl Writer for BytesMut {
    fn put_bool(&mut self, value: bool) {
        self.put_u8(u8::from(value));
    }

    fn put_lsn(&mut self, lsn: Lsn) {
        self.put_u64(lsn.0);
    }

    fn put_optional_u64(&mut self, value: Option<u64>) {
        self.put_bool(value.is_some());
        if let Some(value) = value {
            self.put_u64(value);
        }
    }

    fn put_bytes_u32(&mut self, bytes: &[u8]) {
        self.put_u32(bytes.len() as u32);
        self.put_slice(bytes);
    }

    fn put_text(&mut self, text: &str) {
        let end = text.floor_char_boundary(MAX_TEXT);
        self.put_u16(end as u16);
        self.put_slice(&text.as_bytes()[..end]);
    }
}
