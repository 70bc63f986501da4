//! Messages that the front writes itself, and the few that it reads.

/// A message with this type byte whose body `body` writes.
pub fn write(out: &mut Vec<u8>, tag: u8, body: impl FnOnce(&mut Vec<u8>)) {
    out.push(tag);
    let at = out.len();
    out.extend([0; 4]);
    body(out);
    let length = (out.len() - at) as u32;
    out[at..at + 4].copy_from_slice(&length.to_be_bytes());
}

/// Text with its final zero; a zero inside ends it early.
pub fn text(out: &mut Vec<u8>, text: impl AsRef<[u8]>) {
    out.extend(text.as_ref().iter().take_while(|byte| **byte != 0));
    out.push(0);
}

/// The text at the beginning of `bytes`, and what follows its final zero.
pub fn read_text(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().position(|byte| *byte == 0)?;
    Some((&bytes[..end], &bytes[end + 1..]))
}

/// How bad an error is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// The statement failed.
    Error,
    /// The session ends.
    Fatal,
}

/// An error that a client is told.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message} (SQLSTATE {sqlstate})")]
pub struct Fault {
    /// How bad.
    pub severity: Severity,
    /// SQLSTATE.
    pub sqlstate: &'static str,
    /// One phrase.
    pub message: String,
    /// More of it; may be empty.
    pub detail: String,
    /// What the client can do; may be empty.
    pub hint: String,
}

impl Fault {
    /// One that ends the session.
    pub fn fatal(sqlstate: &'static str, message: impl Into<String>) -> Self {
        let (detail, hint) = (String::new(), String::new());
        Self { severity: Severity::Fatal, sqlstate, message: message.into(), detail, hint }
    }

    /// The same with more of it.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = detail.into();
        self
    }

    /// The same with what can be done.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }

    /// ErrorResponse.
    pub fn write(&self, out: &mut Vec<u8>) {
        let severity = if self.severity == Severity::Fatal { "FATAL" } else { "ERROR" };
        write(out, b'E', |out| {
            let fields = [
                (b'S', severity),
                (b'V', severity),
                (b'C', self.sqlstate),
                (b'M', self.message.as_str()),
                (b'D', self.detail.as_str()),
                (b'H', self.hint.as_str()),
            ];
            for (field, value) in fields.into_iter().filter(|(_, value)| !value.is_empty()) {
                out.push(field);
                text(out, value);
            }
            out.push(0);
        });
    }
}

/// A server's error, as far as it is looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerError {
    /// SQLSTATE.
    pub sqlstate: String,
    /// What it says.
    pub message: String,
    /// It ends the session.
    pub fatal: bool,
    /// The server's function that says so.
    pub routine: String,
}

impl ServerError {
    /// Whether the server or the connection is to blame, not the statement. A cancel, or the client's own limit, is the client's.
    pub fn is_of_server(&self) -> bool {
        let class = self.sqlstate.get(..2).unwrap_or_default();
        matches!(class, "08" | "53" | "57" | "58" | "XX") && self.sqlstate != "57014"
    }

    /// Reads an ErrorResponse's body; what is not there stays empty.
    pub fn read(mut body: &[u8]) -> Self {
        let mut error = Self::default();
        while let [field, rest @ ..] = body {
            // The list ends with a field of type zero, where no text follows.
            let Some((value, after)) = read_text(rest) else { break };
            let value = || String::from_utf8_lossy(value).into_owned();
            match field {
                b'C' => error.sqlstate = value(),
                b'M' => error.message = value(),
                b'R' => error.routine = value(),
                b'V' => error.fatal = matches!(value().as_str(), "FATAL" | "PANIC"),
                _ => {}
            }
            body = after;
        }
        error
    }
}

/// AuthenticationOk and the other requests: a code and what follows it.
pub fn authentication(out: &mut Vec<u8>, code: u32, data: &[u8]) {
    write(out, b'R', |out| {
        out.extend(code.to_be_bytes());
        out.extend(data);
    });
}

/// NegotiateProtocolVersion: the newest minor version spoken, and what of the startup packet is not known.
pub fn negotiate(out: &mut Vec<u8>, minor: u16, unknown: &[String]) {
    write(out, b'v', |out| {
        out.extend((3_u32 << 16 | u32::from(minor)).to_be_bytes());
        out.extend((unknown.len() as u32).to_be_bytes());
        for name in unknown {
            text(out, name);
        }
    });
}

/// ParameterStatus.
pub fn parameter(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    write(out, b'S', |out| {
        text(out, name);
        text(out, value);
    });
}

/// BackendKeyData.
pub fn key(out: &mut Vec<u8>, pid: u32, secret: &[u8]) {
    write(out, b'K', |out| {
        out.extend(pid.to_be_bytes());
        out.extend(secret);
    });
}

/// ReadyForQuery, not in a transaction.
pub fn ready(out: &mut Vec<u8>) {
    write(out, b'Z', |out| out.push(b'I'));
}

/// A simple query.
pub fn query(out: &mut Vec<u8>, sql: &[u8]) {
    write(out, b'Q', |out| text(out, sql));
}

/// Parse, with the types of the first parameters; 0 is unspecified.
pub fn parse(out: &mut Vec<u8>, name: &[u8], sql: &[u8], types: &[u32]) {
    write(out, b'P', |out| {
        text(out, name);
        text(out, sql);
        out.extend((types.len() as u16).to_be_bytes());
        for oid in types {
            out.extend(oid.to_be_bytes());
        }
    });
}

/// Bind with parameters as text, results as text.
pub fn bind(out: &mut Vec<u8>, portal: &str, statement: &str, values: &[&[u8]]) {
    write(out, b'B', |out| {
        text(out, portal);
        text(out, statement);
        out.extend(0_u16.to_be_bytes());
        out.extend((values.len() as u16).to_be_bytes());
        for value in values {
            out.extend((value.len() as u32).to_be_bytes());
            out.extend(*value);
        }
        out.extend(0_u16.to_be_bytes());
    });
}

/// Execute, all rows.
pub fn execute(out: &mut Vec<u8>, portal: &str) {
    write(out, b'E', |out| {
        text(out, portal);
        out.extend(0_u32.to_be_bytes());
    });
}

/// Close a prepared statement.
pub fn close_statement(out: &mut Vec<u8>, name: impl AsRef<[u8]>) {
    write(out, b'C', |out| {
        out.push(b'S');
        text(out, name);
    });
}

/// Sync.
pub fn sync(out: &mut Vec<u8>) {
    write(out, b'S', |_| {});
}

/// Terminate.
pub fn terminate(out: &mut Vec<u8>) {
    write(out, b'X', |_| {});
}

/// The startup packet of protocol 3.0 with these parameters.
pub fn startup<'a>(out: &mut Vec<u8>, parameters: impl Iterator<Item = (&'a str, &'a str)>) {
    let at = out.len();
    out.extend([0; 4]);
    out.extend((3_u32 << 16).to_be_bytes());
    for (name, value) in parameters {
        text(out, name);
        text(out, value);
    }
    out.push(0);
    let length = (out.len() - at) as u32;
    out[at..at + 4].copy_from_slice(&length.to_be_bytes());
}

/// CancelRequest.
pub fn cancel(out: &mut Vec<u8>, pid: u32, secret: &[u8]) {
    out.extend((12 + secret.len() as u32).to_be_bytes());
    out.extend(80_877_102_u32.to_be_bytes());
    out.extend(pid.to_be_bytes());
    out.extend(secret);
}

/// The values of a DataRow's body; none: they do not fit into it.
pub fn row(body: &[u8]) -> Option<Vec<Option<&[u8]>>> {
    let (count, mut rest) = body.split_first_chunk()?;
    let mut values = Vec::new();
    for _ in 0..u16::from_be_bytes(*count) {
        let (length, after) = rest.split_first_chunk()?;
        match usize::try_from(i32::from_be_bytes(*length)) {
            Ok(length) => {
                values.push(Some(after.get(..length)?));
                rest = &after[length..];
            }
            Err(_) => {
                values.push(None);
                rest = after;
            }
        }
    }
    Some(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_has_what_it_was_given() {
        let mut out = Vec::new();
        Fault::fatal("57P01", "moved").detail("a temporary table").write(&mut out);
        assert_eq!(&out[..5], [b'E', 0, 0, 0, (out.len() - 1) as u8]);
        let read = ServerError::read(&out[5..]);
        assert_eq!(
            read,
            ServerError {
                sqlstate: "57P01".into(),
                message: "moved".into(),
                fatal: true,
                ..ServerError::default()
            }
        );
        assert!(out.windows(19).any(|part| part == b"Da temporary table\0"));
        assert!(!out.windows(2).any(|part| part == b"H\0"));
        assert_eq!(ServerError::read(b"C42"), ServerError::default());
    }

    #[test]
    fn messages_are_as_the_protocol_has_them() {
        let written = |write: fn(&mut Vec<u8>)| {
            let mut out = Vec::new();
            write(&mut out);
            out
        };
        assert_eq!(written(ready), b"Z\0\0\0\x05I");
        assert_eq!(written(sync), b"S\0\0\0\x04");
        assert_eq!(written(|out| query(out, b"a\0b")), b"Q\0\0\0\x06a\0");
        assert_eq!(written(|out| parse(out, b"", b"x", &[23])), b"P\0\0\0\x0d\0x\0\0\x01\0\0\0\x17");
        assert_eq!(written(|out| cancel(out, 1, b"abcd")), b"\0\0\0\x10\x04\xd2\x16\x2e\0\0\0\x01abcd");
        assert_eq!(
            written(|out| startup(out, [("user", "a")].into_iter())),
            b"\0\0\0\x10\0\x03\0\0user\0a\0\0"
        );
        assert_eq!(written(|out| negotiate(out, 2, &["_pq_.x".to_owned()])).len(), 20);
    }

    #[test]
    fn rows_are_read_or_refused() {
        let body = b"\0\x02\0\0\0\x01a\xff\xff\xff\xff";
        assert_eq!(row(body), Some(vec![Some(&b"a"[..]), None]));
        for end in 0..body.len() {
            assert_eq!(row(&body[..end]), None);
        }
    }
}
