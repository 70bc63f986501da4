//! A cursor over received bytes that never reads past their end.

use bytes::{Buf, Bytes};

use crate::error::Error;
use crate::lsn::Lsn;

/// Reads big-endian values from the front of a message; each read names itself in the error.
#[derive(Debug)]
pub(crate) struct Reader {
    message: &'static str,
    bytes: Bytes,
}

impl Reader {
    /// Reads `bytes`, called `message` in errors.
    pub(crate) fn new(message: &'static str, bytes: Bytes) -> Self {
        Self { message, bytes }
    }

    /// Bytes not read yet.
    pub(crate) fn remaining(&self) -> usize {
        self.bytes.len()
    }

    pub(crate) fn u8(&mut self, what: &str) -> Result<u8, Error> {
        self.need(1, what)?;
        Ok(self.bytes.get_u8())
    }

    pub(crate) fn u16(&mut self, what: &str) -> Result<u16, Error> {
        self.need(2, what)?;
        Ok(self.bytes.get_u16())
    }

    pub(crate) fn u32(&mut self, what: &str) -> Result<u32, Error> {
        self.need(4, what)?;
        Ok(self.bytes.get_u32())
    }

    pub(crate) fn i32(&mut self, what: &str) -> Result<i32, Error> {
        self.need(4, what)?;
        Ok(self.bytes.get_i32())
    }

    pub(crate) fn u64(&mut self, what: &str) -> Result<u64, Error> {
        self.need(8, what)?;
        Ok(self.bytes.get_u64())
    }

    pub(crate) fn i64(&mut self, what: &str) -> Result<i64, Error> {
        self.need(8, what)?;
        Ok(self.bytes.get_i64())
    }

    pub(crate) fn lsn(&mut self, what: &str) -> Result<Lsn, Error> {
        self.u64(what).map(Lsn)
    }

    /// The next `count` bytes, sharing the message's memory.
    pub(crate) fn take(&mut self, count: usize, what: &str) -> Result<Bytes, Error> {
        self.need(count, what)?;
        Ok(self.bytes.split_to(count))
    }

    /// A value behind its own 32-bit length.
    pub(crate) fn sized(&mut self, what: &str) -> Result<Bytes, Error> {
        let length = self.u32(what)?;
        self.take(length as usize, what)
    }

    /// UTF-8 text up to a zero byte.
    pub(crate) fn text(&mut self, what: &str) -> Result<String, Error> {
        let end = self.bytes.iter().position(|byte| *byte == 0).ok_or_else(|| self.short(what))?;
        let text = self.bytes.split_to(end);
        self.bytes.advance(1);
        match std::str::from_utf8(&text) {
            Ok(text) => Ok(text.to_owned()),
            Err(_) => Err(Error::Protocol(format!("{what} of a {} message is not UTF-8", self.message))),
        }
    }

    /// All that is left.
    pub(crate) fn rest(self) -> Bytes {
        self.bytes
    }

    /// Refuses bytes that nobody asked for.
    pub(crate) fn finish(self) -> Result<(), Error> {
        if self.bytes.is_empty() {
            return Ok(());
        }
        Err(Error::Protocol(format!("{} bytes left over in a {} message", self.bytes.len(), self.message)))
    }

    fn need(&self, count: usize, what: &str) -> Result<(), Error> {
        if self.bytes.len() < count { Err(self.short(what)) } else { Ok(()) }
    }

    fn short(&self, what: &str) -> Error {
        Error::Protocol(format!("a {} message is cut short at its {what}", self.message))
    }
}
