//! The first packet of a connection: what the client wants, before there are messages with type bytes.

/// The longest packet believed, as PostgreSQL has it (`MAX_STARTUP_PACKET_LENGTH`).
pub const LIMIT: usize = 10_000;
/// The longest secret of a cancel request (protocol 3.2).
const LONGEST_SECRET: usize = 256;
/// The newest minor version of protocol 3 that is spoken here.
pub const MINOR: u16 = 2;

const CANCEL: u32 = 80_877_102;
const SSL: u32 = 80_877_103;
const GSS: u32 = 80_877_104;

/// What a connection begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opening {
    /// May it be TLS? One byte is the answer.
    Ssl,
    /// May it be GSSAPI? One byte is the answer.
    Gss,
    /// End what this session does.
    Cancel {
        /// The session's process, as it was told.
        pid: u32,
        /// Its secret.
        secret: Vec<u8>,
    },
    /// A session.
    Startup(Startup),
}

/// What a session is to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Startup {
    /// The minor version asked for.
    pub minor: u16,
    /// Name and value, in the client's order, without those of the protocol's own.
    pub parameters: Vec<(String, String)>,
    /// Names of protocol extensions that are not known here.
    pub unknown: Vec<String>,
}

/// A packet that opens nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Its length is none.
    #[error("invalid length of startup packet")]
    Length,
    /// Its content is none.
    #[error("invalid startup packet layout")]
    Layout,
    /// Not protocol 3.
    #[error("unsupported frontend protocol {0}.{1}: server supports 3.0 to 3.{MINOR}")]
    Version(u16, u16),
    /// Text that is not UTF-8: names are compared, and what they are compared with is.
    #[error("startup parameters must be UTF-8")]
    Encoding,
    /// Nobody.
    #[error("no PostgreSQL user name specified in startup packet")]
    NoUser,
}

/// How long the packet at the beginning of `bytes` is; `None`: too little to tell.
pub fn length(bytes: &[u8]) -> Result<Option<usize>, Refused> {
    let Some(length) = bytes.first_chunk().map(|length| u32::from_be_bytes(*length) as usize) else {
        return Ok(None);
    };
    if (8..=LIMIT).contains(&length) { Ok(Some(length)) } else { Err(Refused::Length) }
}

/// Reads a whole packet, its length included.
pub fn read(packet: &[u8]) -> Result<Opening, Refused> {
    if length(packet)? != Some(packet.len()) {
        return Err(Refused::Length);
    }
    let (code, body) = packet[4..].split_first_chunk().ok_or(Refused::Length)?;
    match u32::from_be_bytes(*code) {
        SSL if body.is_empty() => Ok(Opening::Ssl),
        GSS if body.is_empty() => Ok(Opening::Gss),
        CANCEL => {
            let (pid, secret) = body.split_first_chunk().ok_or(Refused::Layout)?;
            if secret.len() < 4 || secret.len() > LONGEST_SECRET {
                return Err(Refused::Layout);
            }
            Ok(Opening::Cancel { pid: u32::from_be_bytes(*pid), secret: secret.to_vec() })
        }
        version if version >> 16 == 3 => parameters((version & 0xffff) as u16, body).map(Opening::Startup),
        version => Err(Refused::Version((version >> 16) as u16, (version & 0xffff) as u16)),
    }
}

fn parameters(minor: u16, body: &[u8]) -> Result<Startup, Refused> {
    let mut startup = Startup { minor, ..Startup::default() };
    let mut rest = body;
    loop {
        let (name, after) = text(rest)?;
        if name.is_empty() {
            // The list's end must be the packet's.
            return if after.is_empty() { checked(startup) } else { Err(Refused::Layout) };
        }
        let (value, after) = text(after)?;
        rest = after;
        if name.starts_with("_pq_.") {
            startup.unknown.push(name.to_owned());
        } else {
            startup.parameters.push((name.to_owned(), value.to_owned()));
        }
    }
}

fn checked(startup: Startup) -> Result<Startup, Refused> {
    if startup.get("user").is_none_or(str::is_empty) { Err(Refused::NoUser) } else { Ok(startup) }
}

/// What `options` of a startup packet set, in its order, if that is all that they do: `-c name=value`, `-cname=value` or `--name=value`, with a
/// backslash before a blank that is part of it.
pub fn options(options: &str) -> Option<Vec<(String, String)>> {
    let mut words = words(options).into_iter();
    let mut settings = Vec::new();
    while let Some(word) = words.next() {
        let pair = match (word.strip_prefix("--"), word.strip_prefix("-c")) {
            (None, Some("")) => words.next()?,
            (Some(pair), _) | (None, Some(pair)) => pair.to_owned(),
            (None, None) => return None,
        };
        let (name, value) = pair.split_once('=')?;
        let name = name.replace('-', "_");
        if name.is_empty() {
            return None;
        }
        settings.push((name, value.to_owned()));
    }
    Some(settings)
}

/// As `pg_split_opts` does.
fn words(options: &str) -> Vec<String> {
    let (mut words, mut word, mut begun) = (Vec::new(), String::new(), false);
    let mut characters = options.chars();
    while let Some(character) = characters.next() {
        if character.is_ascii_whitespace() || character == '\x0b' {
            if std::mem::take(&mut begun) {
                words.push(std::mem::take(&mut word));
            }
            continue;
        }
        begun = true;
        word.extend(if character == '\\' { characters.next() } else { Some(character) });
    }
    if begun {
        words.push(word);
    }
    words
}

fn text(bytes: &[u8]) -> Result<(&str, &[u8]), Refused> {
    let end = bytes.iter().position(|byte| *byte == 0).ok_or(Refused::Layout)?;
    let text = std::str::from_utf8(&bytes[..end]).map_err(|_| Refused::Encoding)?;
    Ok((text, &bytes[end + 1..]))
}

impl Startup {
    /// The last value of a parameter, as PostgreSQL takes it.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.parameters.iter().rev().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// Who.
    pub fn user(&self) -> &str {
        self.get("user").unwrap_or_default()
    }

    /// Which database; the user's name if it says none.
    pub fn database(&self) -> &str {
        self.get("database").filter(|name| !name.is_empty()).unwrap_or(self.user())
    }

    /// Whether it wants to be a replication connection.
    pub fn replicates(&self) -> bool {
        self.get("replication").is_some_and(|value| !matches!(value, "" | "false" | "off" | "no" | "0"))
    }

    /// Whether the client must be told what is spoken instead of what it asked for.
    pub fn negotiates(&self) -> bool {
        self.minor > MINOR || !self.unknown.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn packet(code: u32, body: &[u8]) -> Vec<u8> {
        let mut bytes = (body.len() as u32 + 8).to_be_bytes().to_vec();
        bytes.extend(code.to_be_bytes());
        bytes.extend(body);
        bytes
    }

    #[test]
    fn requests_are_told_apart() {
        assert_eq!(read(&packet(SSL, b"")), Ok(Opening::Ssl));
        assert_eq!(read(&packet(GSS, b"")), Ok(Opening::Gss));
        let cancel = read(&packet(CANCEL, b"\0\0\0\x07abcd"));
        assert_eq!(cancel, Ok(Opening::Cancel { pid: 7, secret: b"abcd".to_vec() }));
        assert_eq!(read(&packet(CANCEL, b"\0\0\0\x07abc")), Err(Refused::Layout));
        assert_eq!(read(&packet(CANCEL, &[0; 261])), Err(Refused::Layout));
        assert_eq!(read(&packet(2 << 16, b"user")), Err(Refused::Version(2, 0)));
    }

    #[test]
    fn parameters_are_read() {
        let body = b"user\0ann\0options\0-c a=b\0_pq_.x\x001\0database\0shop\0application_name\0psql\0\0";
        let Ok(Opening::Startup(startup)) = read(&packet(3 << 16 | 2, body)) else { panic!() };
        assert_eq!((startup.user(), startup.database(), startup.minor), ("ann", "shop", 2));
        assert_eq!(startup.unknown, ["_pq_.x"]);
        assert_eq!(startup.parameters.len(), 4);
        assert!(startup.negotiates() && !startup.replicates());
        let Ok(Opening::Startup(startup)) = read(&packet(3 << 16, b"user\0ann\0replication\0database\0\0"))
        else {
            panic!()
        };
        assert!(startup.replicates() && !startup.negotiates());
        assert_eq!(startup.database(), "ann");
    }

    #[test]
    fn what_is_no_startup_is_refused() {
        for (body, refused) in [
            (&b"user\0ann\0"[..], Refused::Layout),
            (b"user\0ann\0\0x", Refused::Layout),
            (b"user\0ann", Refused::Layout),
            (b"\0", Refused::NoUser),
            (b"user\0\0\0", Refused::NoUser),
            (b"user\0\xff\0\0", Refused::Encoding),
            (b"", Refused::Layout),
        ] {
            assert_eq!(read(&packet(3 << 16, body)), Err(refused), "{body:?}");
        }
        assert_eq!(length(b"\0\0"), Ok(None));
        assert_eq!(length(b"\0\0\0\x07"), Err(Refused::Length));
        assert_eq!(length(b"GET / HTTP/1.1"), Err(Refused::Length));
    }

    #[test]
    fn options_are_settings_where_they_are_nothing_else() {
        let of = |text: &str| {
            let settings = options(text)?.into_iter().map(|(name, value)| format!("{name}={value}"));
            Some(settings.collect::<Vec<_>>())
        };
        for (text, settings) in [
            ("", &[][..]),
            ("-c search_path=tenant_17", &["search_path=tenant_17"]),
            (
                " -cwork_mem=1MB\t--statement-timeout=5s  -c a.b=",
                &["work_mem=1MB", "statement_timeout=5s", "a.b="],
            ),
            ("-c search_path=a,\\ b\\\\ --x=-c=1", &["search_path=a, b\\", "x=-c=1"]),
        ] {
            assert_eq!(of(text).unwrap(), settings, "{text}");
        }
        for text in ["-e", "-c", "-c geqo", "--geqo", "-c=1", "x", "-c a=1 -S 64", "-c \\"] {
            assert_eq!(of(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_options_are_read_or_left(text in ".*") {
            let _ = options(&text);
        }

        #[test]
        fn any_bytes_are_read_or_refused(body in prop::collection::vec(any::<u8>(), 0..200), code: u32) {
            let _ = read(&body);
            let _ = read(&packet(code, &body));
            let _ = read(&packet(3 << 16, &body));
        }
    }
}
