//! Values on their way to the target: array parameters in binary and rows in COPY's text format. Pure.

use bytes::{BufMut, Bytes, BytesMut};
use tokio_postgres::types::{IsNull, ToSql, Type, to_sql_checked};

use super::catalog::{TargetColumn, Transport};
use crate::change::Cell;
use crate::error::Error;

/// ndim, has-null flag, element type, length, lower bound.
const HEADER: usize = 20;

/// One column of many rows, as a one-dimensional array parameter, encoded as it grows.
#[derive(Debug)]
pub(super) struct Array {
    transport: Transport,
    len: u32,
    nulls: bool,
    encoded: BytesMut,
}

impl Array {
    pub(super) fn new(transport: Transport) -> Self {
        let mut encoded = BytesMut::with_capacity(HEADER + 64);
        encoded.put_bytes(0, HEADER);
        Self { transport, len: 0, nulls: false, encoded }
    }

    /// Bytes so far.
    pub(super) fn size(&self) -> usize {
        self.encoded.len()
    }

    /// The parameter's type.
    pub(super) fn array_type(&self) -> Type {
        self.transport.types().1
    }

    /// The next value, in PostgreSQL's text format; `None` is NULL. An error says what is wrong with it.
    pub(super) fn push(&mut self, value: Option<&[u8]>) -> Result<(), String> {
        self.len += 1;
        let Some(value) = value else {
            self.nulls = true;
            self.encoded.put_i32(-1);
            return Ok(());
        };
        let text = std::str::from_utf8(value).map_err(|_| "is not UTF-8".to_owned())?;
        let number = |_| format!("is not a number that fits: {text:?}");
        match self.transport {
            Transport::Text => {
                self.encoded.put_u32(value.len() as u32);
                self.encoded.put_slice(value);
            }
            Transport::Int8 => {
                self.encoded.put_u32(8);
                self.encoded.put_i64(text.parse().map_err(number)?);
            }
            Transport::Int4 => {
                self.encoded.put_u32(4);
                self.encoded.put_i32(text.parse().map_err(number)?);
            }
            Transport::Int2 => {
                self.encoded.put_u32(2);
                self.encoded.put_i16(text.parse().map_err(number)?);
            }
        }
        Ok(())
    }

    /// Counts, as `bigint`.
    pub(super) fn counts(counts: impl Iterator<Item = u64>) -> Self {
        let mut this = Self::new(Transport::Int8);
        for count in counts {
            this.len += 1;
            this.encoded.put_u32(8);
            this.encoded.put_u64(count);
        }
        this
    }

    /// Writes the header; nothing may be pushed afterwards.
    pub(super) fn finish(mut self) -> Self {
        let mut header = &mut self.encoded[..HEADER];
        header.put_u32(u32::from(self.len > 0));
        header.put_u32(u32::from(self.nulls));
        header.put_u32(self.transport.types().0.oid());
        header.put_u32(self.len);
        header.put_u32(1);
        if self.len == 0 {
            self.encoded.truncate(12);
        }
        self
    }
}

impl ToSql for Array {
    fn to_sql(
        &self,
        _: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        out.extend_from_slice(&self.encoded);
        Ok(IsNull::No)
    }

    fn accepts(ty: &Type) -> bool {
        matches!(*ty, Type::INT8_ARRAY | Type::INT4_ARRAY | Type::INT2_ARRAY | Type::TEXT_ARRAY)
    }

    to_sql_checked!();
}

/// Rows in COPY's text format, in chunks.
#[derive(Debug, Default)]
pub(super) struct CopyRows {
    chunks: Vec<Bytes>,
    open: BytesMut,
}

/// Bytes in one message to the server.
const CHUNK: usize = 256 << 10;

impl CopyRows {
    /// The next row; an error names the place of a cell that has no value.
    pub(super) fn push(&mut self, row: &[Cell]) -> Result<(), usize> {
        for (at, cell) in row.iter().enumerate() {
            if at > 0 {
                self.open.put_u8(b'\t');
            }
            match cell {
                Cell::Null => self.open.put_slice(b"\\N"),
                Cell::Text(text) => escape(text, &mut self.open),
                Cell::Unchanged => return Err(at),
            }
        }
        self.open.put_u8(b'\n');
        if self.open.len() >= CHUNK {
            self.chunks.push(self.open.split().freeze());
        }
        Ok(())
    }

    /// All of it.
    pub(super) fn finish(mut self) -> Vec<Bytes> {
        if !self.open.is_empty() {
            self.chunks.push(self.open.freeze());
        }
        self.chunks
    }
}

/// What COPY would read as something else: the escape, the separators, and carriage return (line ends must agree).
fn escape(text: &[u8], out: &mut BytesMut) {
    let mut from = 0;
    for (at, byte) in text.iter().enumerate() {
        let letter = match byte {
            b'\\' => b'\\',
            b'\t' => b't',
            b'\n' => b'n',
            b'\r' => b'r',
            _ => continue,
        };
        out.put_slice(&text[from..at]);
        out.put_slice(&[b'\\', letter]);
        from = at + 1;
    }
    out.put_slice(&text[from..]);
}

/// Empty arrays for these columns.
pub(super) fn arrays<'a>(columns: impl Iterator<Item = &'a TargetColumn>) -> Vec<Array> {
    columns.map(|column| Array::new(column.transport)).collect()
}

/// The value of a cell that must have one.
pub(super) fn value(cell: Option<&Cell>) -> Result<Option<&[u8]>, String> {
    match cell {
        Some(Cell::Null) => Ok(None),
        Some(Cell::Text(text)) => Ok(Some(text)),
        Some(Cell::Unchanged) | None => Err("was not sent and is not known".into()),
    }
}

/// A value that cannot be written.
pub(super) fn bad_value(table: &str, column: &str, lsn: crate::lsn::Lsn, why: &str) -> Error {
    Error::Protocol(format!("column {column} of {table} {why} in transaction {lsn}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copy_text_escapes_what_copy_reads_otherwise() {
        let mut rows = CopyRows::default();
        let text = |text: &'static str| Cell::Text(Bytes::from_static(text.as_bytes()));
        rows.push(&[text("a\tb\\c\nd\re"), Cell::Null, text(""), text("\\N")]).expect("known cells");
        assert_eq!(rows.finish().concat(), b"a\\tb\\\\c\\nd\\re\t\\N\t\t\\\\N\n");
        assert_eq!(CopyRows::default().push(&[Cell::Null, Cell::Unchanged]), Err(1));
    }

    #[test]
    fn arrays_are_what_the_server_reads() {
        let mut array = Array::new(Transport::Int4);
        array.push(Some(b"-5")).expect("a number");
        array.push(None).expect("null");
        assert!(array.push(Some(b"5000000000")).is_err());
        let mut array = Array::new(Transport::Int4);
        array.push(Some(b"-5")).expect("a number");
        array.push(None).expect("null");
        let mut out = BytesMut::new();
        array.finish().to_sql(&Type::INT4_ARRAY, &mut out).expect("encodes");
        let parsed = postgres_protocol::types::array_from_sql(&out).expect("an array");
        assert_eq!((parsed.element_type(), parsed.has_nulls()), (Type::INT4.oid(), true));
        let mut out = BytesMut::new();
        Array::new(Transport::Text).finish().to_sql(&Type::TEXT_ARRAY, &mut out).expect("encodes");
        assert_eq!(&out[..], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 25]);
    }
}
