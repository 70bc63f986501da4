//! What passes in a replication connection: its commands, and the positions in a stream of changes.
//!
//! Clients see a server's positions shifted by a constant, so that they go on growing when another server takes over. Formats: PostgreSQL's "Streaming
//! Replication Protocol" and "Logical Replication Message Formats".

use std::collections::BTreeSet;

use crate::lsn::Lsn;

/// What a client asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Command {
    /// IDENTIFY_SYSTEM.
    IdentifySystem,
    /// CREATE_REPLICATION_SLOT … LOGICAL.
    CreateSlot,
    /// What publications have, as a subscription asks for it: schema, table, ….
    Tables,
    /// START_REPLICATION SLOT … LOGICAL.
    Start(Start),
    /// Of physical replication, by its name.
    Physical(&'static str),
    /// SQL, and everything else.
    Other,
}

/// START_REPLICATION SLOT … LOGICAL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start {
    /// The slot's name.
    pub slot: String,
    /// From where; 0: from where it was left.
    pub from: u64,
    /// Options of the output plugin, as they were written: with their parentheses, or nothing.
    pub options: String,
}

impl Start {
    /// The command, from another position.
    pub fn sql(&self, from: u64) -> String {
        let slot = self.slot.replace('"', "\"\"");
        format!("START_REPLICATION SLOT \"{slot}\" LOGICAL {} {}", Lsn(from), self.options)
    }

    /// The publications that it names, as pgoutput reads them.
    pub fn publications(&self) -> Vec<String> {
        let options = options(&self.options).unwrap_or_default();
        let named = options.into_iter().find(|(name, _)| name == "publication_names");
        named.and_then(|(_, value)| value).map(|list| names(&list)).unwrap_or_default()
    }

    /// The same for pgoutput of a server of this major version: a client asks for what the server that it was connected to knows. What only makes
    /// it quicker is left out, and nothing it does not expect is sent for it.
    #[must_use]
    pub fn for_pgoutput_of(&self, major: u32) -> Self {
        let Some(mut options) = options(&self.options) else { return self.clone() };
        let newest = match major {
            ..14 => 1,
            14 => 2,
            15 => 3,
            16.. => 4,
        };
        options.retain_mut(|(name, value)| match (name.as_str(), value.as_deref()) {
            ("proto_version", Some(version)) => {
                let version = version.parse().map_or(newest, |version: u32| version.min(newest));
                *value = Some(version.to_string());
                true
            }
            ("streaming", Some("parallel")) | ("origin", Some("any")) => major >= 16,
            _ => true,
        });
        let written = options.iter().map(|(name, value)| {
            let name = name.replace('"', "\"\"");
            let value = value.as_ref().map(|value| format!(" '{}'", value.replace('\'', "''")));
            format!("\"{name}\"{}", value.unwrap_or_default())
        });
        let options = written.collect::<Vec<_>>().join(", ");
        Self { options: format!("({options})"), ..self.clone() }
    }
}

/// Reads a simple query without its last NUL.
pub fn command(text: &[u8]) -> Command {
    let Ok(text) = std::str::from_utf8(text) else { return Command::Other };
    let mut words = Words(text);
    let Some(Word::Name(first)) = words.next() else { return Command::Other };
    let tables = ["pg_publication_tables", "pg_get_publication_tables"];
    match first.to_ascii_uppercase().as_str() {
        "IDENTIFY_SYSTEM" => Command::IdentifySystem,
        "BASE_BACKUP" => Command::Physical("BASE_BACKUP"),
        "TIMELINE_HISTORY" => Command::Physical("TIMELINE_HISTORY"),
        "READ_REPLICATION_SLOT" => Command::Physical("READ_REPLICATION_SLOT"),
        "CREATE_REPLICATION_SLOT" => {
            let physical =
                words.any(|word| matches!(word, Word::Name(name) if name.eq_ignore_ascii_case("PHYSICAL")));
            if physical {
                Command::Physical("CREATE_REPLICATION_SLOT … PHYSICAL")
            } else {
                Command::CreateSlot
            }
        }
        "START_REPLICATION" => start(&mut words).unwrap_or(Command::Other),
        "SELECT" if tables.iter().any(|tables| text.contains(tables)) => Command::Tables,
        _ => Command::Other,
    }
}

/// None: the server says what is wrong with it.
fn start(words: &mut Words<'_>) -> Option<Command> {
    let physical = Some(Command::Physical("START_REPLICATION … PHYSICAL"));
    let is =
        |word: &Word, keyword: &str| matches!(word, Word::Name(name) if name.eq_ignore_ascii_case(keyword));
    let mut word = words.next()?;
    let mut slot = None;
    if is(&word, "SLOT") {
        slot = match words.next()? {
            Word::Name(name) | Word::Quoted(name) => Some(name),
            _ => return None,
        };
        word = words.next()?;
    }
    if !is(&word, "LOGICAL") {
        return physical;
    }
    let Word::Name(from) = words.next()? else { return None };
    let options = words.0.trim_start().trim_end_matches(|c: char| c == ';' || c.is_whitespace()).to_owned();
    Some(Command::Start(Start { slot: slot?, from: from.parse::<Lsn>().ok()?.0, options }))
}

/// A token of a replication command.
#[derive(Debug)]
enum Word {
    /// A keyword, a name, a number or a position.
    Name(String),
    /// In double quotes.
    Quoted(String),
    /// In single quotes.
    Text(String),
    Sign,
}

struct Words<'t>(&'t str);

impl Iterator for Words<'_> {
    type Item = Word;

    fn next(&mut self) -> Option<Word> {
        self.0 = self.0.trim_start();
        let first = self.0.chars().next()?;
        if matches!(first, '\'' | '"') {
            let mut text = String::new();
            let mut rest = &self.0[1..];
            loop {
                let (part, after) = rest.split_once(first)?;
                text.push_str(part);
                rest = after;
                match rest.strip_prefix(first) {
                    Some(more) => {
                        text.push(first);
                        rest = more;
                    }
                    None => break,
                }
            }
            self.0 = rest;
            return Some(if first == '"' { Word::Quoted(text) } else { Word::Text(text) });
        }
        let of_name = |c: char| c.is_alphanumeric() || matches!(c, '_' | '/' | '$');
        let length = self.0.find(|c| !of_name(c)).unwrap_or(self.0.len());
        if length == 0 {
            self.0 = &self.0[first.len_utf8()..];
            return Some(Word::Sign);
        }
        let (name, rest) = self.0.split_at(length);
        self.0 = rest;
        Some(Word::Name(name.to_owned()))
    }
}

/// Options with their values; none: they are not written as they should be.
fn options(text: &str) -> Option<Vec<(String, Option<String>)>> {
    let mut words = Words(text).peekable();
    let mut options = Vec::new();
    if !matches!(words.next()?, Word::Sign) {
        return None;
    }
    loop {
        let name = match words.next()? {
            Word::Name(name) => name.to_ascii_lowercase(),
            Word::Quoted(name) => name,
            _ => return None,
        };
        let value = words.next_if(|word| matches!(word, Word::Text(_)));
        options.push((
            name,
            value.map(|value| if let Word::Text(value) = value { value } else { String::new() }),
        ));
        if !matches!(words.next()?, Word::Sign) {
            return None;
        }
        if words.peek().is_none() {
            return Some(options);
        }
    }
}

/// The items of a list of identifiers.
fn names(list: &str) -> Vec<String> {
    let words = Words(list);
    let name = |word| match word {
        Word::Name(name) => Some(name.to_lowercase()),
        Word::Quoted(name) => Some(name),
        _ => None,
    };
    words.filter_map(name).collect()
}

/// A message that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub &'static str);

/// What a message of the server is.
#[derive(Debug, PartialEq, Eq)]
pub enum Sent {
    /// A change, or something about one.
    Change,
    /// Everything up to here, as the server numbers it, was sent.
    Reached(u64),
    /// A change of Godwit's own tables, a word of its own: not for clients. It was changed in the message nevertheless.
    Own,
    /// Of a transaction that was committed after the end: nothing of it was changed in the message.
    Beyond,
    /// The begin of a streamed part that does not say where it is (its transaction came by replication itself): nothing of it was changed. To be
    /// looked at again once [`begins_with`] the next change says it.
    Unsure,
}

/// Shifts the positions in a stream.
#[derive(Debug)]
pub struct Passed {
    pgoutput: bool,
    /// Between Begin and Commit.
    within: bool,
    /// Between Stream Start and Stream Stop.
    streamed: bool,
    /// Transactions of which parts were streamed before the end.
    begun: BTreeSet<u32>,
    /// Godwit's own tables, by the server's numbers. A publication of all tables has them.
    own: BTreeSet<u32>,
}

impl Passed {
    /// Of a stream whose changes are written by pgoutput, or by another plugin: positions in what that writes stay as they are.
    pub fn new(pgoutput: bool) -> Self {
        Self { pgoutput, within: false, streamed: false, begun: BTreeSet::new(), own: BTreeSet::new() }
    }

    /// Shifts the positions in what a CopyData message of the server has, in place. `end`: what was committed later is not passed on.
    pub fn server(&mut self, body: &mut Vec<u8>, ahead: u64, end: Option<u64>) -> Result<Sent, Malformed> {
        match body.first() {
            Some(b'k') => {
                let reached = position(body, 1)?;
                shift(body, 1, ahead)?;
                Ok(Sent::Reached(reached))
            }
            Some(b'w') => {
                let start = position(body, 1)?;
                let (_, payload) =
                    body.split_at_mut_checked(HEADER).ok_or(Malformed("a change without a header"))?;
                // What begins where the marker ends is of after it.
                let after = |position: u64| end.is_some_and(|end| position >= end);
                if self.pgoutput {
                    let unsure = payload.first() == Some(&b'S') && start == 0 && end.is_some();
                    if unsure && !self.begun.contains(&number(payload, 1)?) {
                        return Ok(Sent::Unsure);
                    }
                    let own = self.is_own(payload)?;
                    if self.payload(payload, start, ahead, after)? {
                        return Ok(Sent::Beyond);
                    }
                    if own || self.without_own(body)? {
                        return Ok(Sent::Own);
                    }
                } else if after(start) {
                    return Ok(Sent::Beyond);
                }
                shift(body, 1, ahead)?;
                shift(body, 9, ahead)?;
                Ok(Sent::Change)
            }
            _ => Err(Malformed("neither a change nor a keepalive")),
        }
    }

    /// Whether a message is about a table of Godwit's own, or a word of its own.
    fn is_own(&mut self, payload: &[u8]) -> Result<bool, Malformed> {
        // Its transaction comes first, in a streamed one.
        let at = if self.streamed { 5 } else { 1 };
        let text = |at: usize| payload.get(at..).unwrap_or_default();
        Ok(match payload.first() {
            Some(b'R') => {
                let table = number(payload, at)?;
                let own = text(at + 4).starts_with(OWN_SCHEMA);
                if own {
                    self.own.insert(table)
                } else {
                    self.own.remove(&table)
                };
                own
            }
            Some(b'I' | b'U' | b'D') => self.own.contains(&number(payload, at)?),
            Some(b'M') => text(at + 9).starts_with(OWN_WORDS),
            _ => false,
        })
    }

    /// Takes Godwit's own tables out of what is truncated together. True: nothing else is.
    fn without_own(&self, body: &mut Vec<u8>) -> Result<bool, Malformed> {
        if self.own.is_empty() || body.get(HEADER) != Some(&b'T') {
            return Ok(false);
        }
        let counted = HEADER + if self.streamed { 5 } else { 1 };
        let tables = body.get(counted + 5..).ok_or(SHORT)?.as_chunks::<4>().0;
        let others: Vec<[u8; 4]> =
            tables.iter().filter(|table| !self.own.contains(&u32::from_be_bytes(**table))).copied().collect();
        let count = u32::try_from(others.len()).map_err(|_| Malformed("too many tables"))?;
        body.truncate(counted + 5);
        body.extend(others.as_flattened());
        body[counted..counted + 4].copy_from_slice(&count.to_be_bytes());
        Ok(count == 0)
    }

    /// True: it is of after the end, and as it was.
    fn payload(
        &mut self,
        payload: &mut [u8],
        start: u64,
        ahead: u64,
        after: impl Fn(u64) -> bool,
    ) -> Result<bool, Malformed> {
        let Some(kind) = payload.first() else { return Err(Malformed("an empty change")) };
        let positions: &[usize] = match kind {
            b'B' => &[1],
            b'b' => &[1, 9],
            b'C' | b'P' | b'K' | b'r' | b'p' => &[2, 10],
            b'c' => &[6, 14],
            // Only where transactions are applied in parallel.
            b'A' if payload.len() > 9 => &[9],
            // Its transaction comes first, in a streamed one.
            b'M' if self.streamed => &[6],
            b'M' => &[2],
            _ => &[],
        };
        let beyond = match kind {
            b'B' | b'b' => after(position(payload, 1)?),
            b'K' | b'r' => after(position(payload, 10)?),
            b'M' if !self.within && !self.streamed => after(position(payload, 2)?),
            b'S' => !self.begun.contains(&number(payload, 1)?) && after(start),
            _ => false,
        };
        if beyond {
            return Ok(true);
        }
        for at in positions {
            position(payload, *at)?;
        }
        match kind {
            b'B' | b'b' => self.within = true,
            b'C' | b'P' => self.within = false,
            b'S' => {
                self.streamed = true;
                self.begun.insert(number(payload, 1)?);
            }
            b'E' => self.streamed = false,
            b'c' => drop(self.begun.remove(&number(payload, 1)?)),
            b'p' => drop(self.begun.remove(&number(payload, 26)?)),
            b'A' => drop(self.begun.remove(&number(payload, 5)?)),
            _ => {}
        }
        for at in positions {
            shift(payload, *at, ahead)?;
        }
        Ok(false)
    }
}

/// What did not say where it is is where the next change is. False: that is no change.
pub fn begins_with(unsure: &mut [u8], next: &[u8]) -> bool {
    let Some(start) = position(next, 1).ok().filter(|_| next.first() == Some(&b'w')) else { return false };
    set(unsure, 1, start.max(1)).is_ok()
}

/// Shifts the positions in what a CopyData message of the client has back to the server's, in place. Up to where it keeps all, as it numbers; none: it is another message.
pub fn client(body: &mut [u8], ahead: u64) -> Result<Option<u64>, Malformed> {
    if body.first() != Some(&b'r') {
        return Ok(None);
    }
    let flushed = position(body, 9)?;
    for at in [1, 9, 17] {
        let theirs = position(body, at)?;
        set(body, at, theirs.saturating_sub(ahead))?;
    }
    Ok(Some(flushed))
}

/// A client's word that it keeps everything up to here; `clock`: microseconds since 2000.
pub fn status(position: u64, clock: i64, reply: bool) -> [u8; 34] {
    let mut body = [0; 34];
    body[0] = b'r';
    for at in [1, 9, 17] {
        body[at..at + 8].copy_from_slice(&position.to_be_bytes());
    }
    body[25..33].copy_from_slice(&clock.to_be_bytes());
    body[33] = reply.into();
    body
}

/// A server's word that everything up to here was sent.
pub fn keepalive(position: u64, clock: i64, reply: bool) -> [u8; 18] {
    let mut body = [0; 18];
    body[0] = b'k';
    body[1..9].copy_from_slice(&position.to_be_bytes());
    body[9..17].copy_from_slice(&clock.to_be_bytes());
    body[17] = reply.into();
    body
}

/// A change's positions and clock come before what the plugin wrote.
const HEADER: usize = 25;
/// How the schema of Godwit's own tables is told.
const OWN_SCHEMA: &[u8] = b"godwit\0";
/// What the prefixes of its own messages begin with.
const OWN_WORDS: &[u8] = b"godwit.";
const SHORT: Malformed = Malformed("a message that is too short");

fn position(body: &[u8], at: usize) -> Result<u64, Malformed> {
    let bytes = body.get(at..).and_then(<[u8]>::first_chunk).ok_or(SHORT)?;
    Ok(u64::from_be_bytes(*bytes))
}

fn number(body: &[u8], at: usize) -> Result<u32, Malformed> {
    let bytes = body.get(at..).and_then(<[u8]>::first_chunk).ok_or(SHORT)?;
    Ok(u32::from_be_bytes(*bytes))
}

fn set(body: &mut [u8], at: usize, position: u64) -> Result<(), Malformed> {
    let bytes = body.get_mut(at..at + 8).ok_or(SHORT)?;
    bytes.copy_from_slice(&position.to_be_bytes());
    Ok(())
}

/// 0 is no position.
fn shift(body: &mut [u8], at: usize, ahead: u64) -> Result<(), Malformed> {
    match position(body, at)? {
        0 => Ok(()),
        there => set(body, at, there.saturating_add(ahead)),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const OPTIONS: &str = r#"("proto_version" '4', streaming 'parallel', origin 'any', publication_names '"out""box", Plain', binary)"#;

    fn start(slot: &str, from: u64, options: &str) -> Command {
        Command::Start(Start { slot: slot.into(), from, options: options.into() })
    }

    #[test]
    fn commands_are_told_apart() {
        let cases: [(&str, Command); 15] = [
            ("IDENTIFY_SYSTEM", Command::IdentifySystem),
            (" identify_system ;", Command::IdentifySystem),
            ("CREATE_REPLICATION_SLOT \"s\" LOGICAL pgoutput (SNAPSHOT 'export')", Command::CreateSlot),
            ("CREATE_REPLICATION_SLOT s TEMPORARY LOGICAL test_decoding", Command::CreateSlot),
            ("CREATE_REPLICATION_SLOT s PHYSICAL", Command::Physical("CREATE_REPLICATION_SLOT … PHYSICAL")),
            ("START_REPLICATION SLOT \"a\"\"b\" LOGICAL 16/B374D848", start("a\"b", 0x16_B374_D848, "")),
            (
                "start_replication slot s logical 0/0 (a 'x)''(', \"b\" 'y');",
                start("s", 0, "(a 'x)''(', \"b\" 'y')"),
            ),
            ("START_REPLICATION SLOT s PHYSICAL 0/0", Command::Physical("START_REPLICATION … PHYSICAL")),
            ("START_REPLICATION 0/0 TIMELINE 1", Command::Physical("START_REPLICATION … PHYSICAL")),
            ("BASE_BACKUP (LABEL 'x')", Command::Physical("BASE_BACKUP")),
            ("START_REPLICATION SLOT s LOGICAL nowhere", Command::Other),
            ("START_REPLICATION SLOT \"s", Command::Other),
            ("SELECT DISTINCT t.schemaname FROM pg_catalog.pg_publication_tables t", Command::Tables),
            ("SELECT 1", Command::Other),
            ("", Command::Other),
        ];
        for (text, wanted) in cases {
            assert_eq!(command(text.as_bytes()), wanted, "{text}");
        }
        assert_eq!(command(b"START_REPLICATION \xff"), Command::Other);
    }

    #[test]
    fn options_are_what_a_server_knows() {
        let start = Start { slot: "a\"b".into(), from: 7, options: OPTIONS.into() };
        assert_eq!(start.publications(), ["out\"box", "plain"]);
        let old = start.for_pgoutput_of(15).sql(0x1_0000_00AB);
        let wanted = r#"START_REPLICATION SLOT "a""b" LOGICAL 1/AB ("proto_version" '3', "publication_names" '"out""box", Plain', "binary")"#;
        assert_eq!(old, wanted);
        let new = start.for_pgoutput_of(18);
        assert_eq!(options(&new.options), options(OPTIONS));
        assert_eq!(start.for_pgoutput_of(14).sql(0).matches("\"proto_version\" '2'").count(), 1);
        for odd in ["", "(", "()", "(a 'x'", "a 'x')", "('x')", "(proto_version 'x')"] {
            let odd = Start { options: odd.into(), ..start.clone() };
            assert!(odd.publications().is_empty());
            assert!(odd.for_pgoutput_of(15).sql(0).starts_with("START_REPLICATION SLOT "));
        }
    }

    /// A change with its header.
    fn change(start: u64, payload: &[&[u8]]) -> Vec<u8> {
        let mut body = vec![b'w'];
        body.extend(start.to_be_bytes());
        body.extend((start + 5).to_be_bytes());
        body.extend([0; 8]);
        body.extend(payload.concat());
        body
    }

    fn at(position: u64) -> [u8; 8] {
        position.to_be_bytes()
    }

    /// Each message of pgoutput that has positions, before and after they are shifted by 1000.
    fn messages(ahead: u64) -> Vec<Vec<u8>> {
        let [one, two] = [at(100 + ahead), at(110 + ahead)];
        let payloads: [&[&[u8]]; 14] = [
            &[b"B", &one, &[0; 12]],
            &[b"I", &[9; 20]],
            &[b"M", &[1], &one, b"prefix"],
            &[b"C", &[0], &one, &two, &[0; 8]],
            &[b"b", &one, &two, &[0; 12], b"gid\0"],
            &[b"P", &[0], &one, &two, &[0; 12], b"gid\0"],
            &[b"K", &[0], &one, &two, &[0; 12], b"gid\0"],
            &[b"r", &[0], &one, &two, &[0; 20], b"gid\0"],
            &[b"S", &[0, 0, 0, 7, 1]],
            &[b"M", &[0, 0, 0, 7, 1], &one, b"prefix"],
            &[b"E"],
            &[b"c", &[0, 0, 0, 7, 0], &one, &two, &[0; 8]],
            &[b"A", &[0, 0, 0, 8, 0, 0, 0, 8], &one, &[0; 8]],
            &[b"p", &[0], &one, &two, &[0; 12], b"gid\0"],
        ];
        payloads.iter().map(|payload| change(50 + ahead, payload)).collect()
    }

    #[test]
    fn positions_of_changes_are_shifted() {
        let mut passed = Passed::new(true);
        for (mut message, wanted) in messages(0).into_iter().zip(messages(1000)) {
            assert_eq!(passed.server(&mut message, 1000, Some(200)), Ok(Sent::Change));
            assert_eq!(message, wanted);
        }
        let mut keepalive = keepalive(7, 1, true).to_vec();
        assert_eq!(passed.server(&mut keepalive, 1000, None), Ok(Sent::Reached(7)));
        assert_eq!(keepalive, super::keepalive(1007, 1, true));
        let mut zero = change(0, &[b"I", &[0; 8]]);
        zero[9..17].copy_from_slice(&[0; 8]);
        let same = zero.clone();
        assert_eq!(passed.server(&mut zero, 1000, None), Ok(Sent::Change));
        assert_eq!(zero, same, "0 is no position");
    }

    #[test]
    fn what_is_of_after_the_end_is_not_passed_on() {
        let beyond = |message: &[u8], pgoutput: bool, end: u64| {
            let mut body = message.to_vec();
            let sent = Passed::new(pgoutput).server(&mut body, 1000, Some(end)).unwrap();
            assert_eq!(sent == Sent::Beyond, body == message);
            sent == Sent::Beyond
        };
        let begin = change(50, &[b"B", &at(100), &[0; 12]]);
        assert!(beyond(&begin, true, 100) && !beyond(&begin, true, 101));
        let streamed = change(50, &[b"S", &[0, 0, 0, 7, 1]]);
        assert!(beyond(&streamed, true, 50) && !beyond(&streamed, true, 51));
        let other = change(50, &[b"COMMIT 7"]);
        assert!(beyond(&other, false, 50) && !beyond(&other, false, 51));
        // What has begun before is passed on whole.
        let mut passed = Passed::new(true);
        passed.server(&mut streamed.clone(), 0, Some(51)).unwrap();
        let mut later = change(60, &[b"S", &[0, 0, 0, 7, 0]]);
        assert_eq!(passed.server(&mut later, 0, Some(51)), Ok(Sent::Change));
        // One that does not say where it is waits for the next.
        let mut silent = change(0, &[b"S", &[0, 0, 0, 8, 1]]);
        assert_eq!(passed.server(&mut silent, 0, Some(51)), Ok(Sent::Unsure));
        assert!(!begins_with(&mut silent, &keepalive(60, 0, false)));
        let mut near = silent.clone();
        assert!(begins_with(&mut near, &streamed) && begins_with(&mut silent, &later));
        assert_eq!(passed.server(&mut silent, 0, Some(51)), Ok(Sent::Beyond));
        assert_eq!(passed.server(&mut near, 0, Some(51)), Ok(Sent::Change));
    }

    /// Table 9 is Godwit's.
    fn own_relation(transaction: &[u8]) -> Vec<u8> {
        change(50, &[b"R", transaction, &[0, 0, 0, 9], b"godwit\0epoch\0d", &[0, 0]])
    }

    #[test]
    fn what_is_godwits_own_is_kept_back() {
        let table = |number: u8| [0, 0, 0, number];
        for transaction in [&[][..], &[0, 0, 0, 7]] {
            let mut passed = Passed::new(true);
            let mut sent =
                |mut message: Vec<u8>| passed.server(&mut message, 0, None).map(|sent| (sent, message));
            if !transaction.is_empty() {
                assert_eq!(sent(change(50, &[b"S", transaction, &[1]])).unwrap().0, Sent::Change);
            }
            let of = |kind: &[u8], rest: &[u8]| change(50, &[kind, transaction, rest]);
            assert_eq!(sent(of(b"I", &table(9))).unwrap().0, Sent::Change, "no such table yet");
            assert_eq!(sent(own_relation(transaction)).unwrap().0, Sent::Own);
            for kind in [b"I", b"U", b"D"] {
                assert_eq!(sent(of(kind, &table(9))).unwrap().0, Sent::Own);
                assert_eq!(sent(of(kind, &table(8))).unwrap().0, Sent::Change);
            }
            let both = [&[0, 0, 0, 2, 1][..], &table(9), &table(8)].concat();
            let other = of(b"T", &[&[0, 0, 0, 1, 1][..], &table(8)].concat());
            assert_eq!(sent(of(b"T", &both)), Ok((Sent::Change, other)));
            assert_eq!(sent(of(b"T", &[&[0, 0, 0, 1, 1][..], &table(9)].concat())).unwrap().0, Sent::Own);
            let word = |prefix: &[u8]| of(b"M", &[&[1][..], &at(100), prefix].concat());
            assert_eq!(sent(word(b"godwit.fence\0")).unwrap().0, Sent::Own);
            assert_eq!(sent(word(b"godwits\0")).unwrap().0, Sent::Change);
            // The number may be another table's one day.
            assert_eq!(
                sent(of(b"R", &[&table(9)[..], b"public\0t\0d\0\0"].concat())).unwrap().0,
                Sent::Change
            );
            assert_eq!(sent(of(b"I", &table(9))).unwrap().0, Sent::Change);
        }
    }

    #[test]
    fn what_clients_keep_is_shifted_back() {
        let mut body = status(1007, 3, true);
        assert_eq!(client(&mut body, 1000), Ok(Some(1007)));
        assert_eq!(body, status(7, 3, true));
        assert_eq!(client(&mut body, 1000), Ok(Some(7)));
        assert_eq!(body, status(0, 3, true));
        assert_eq!(client(&mut [b'h', 1], 1000), Ok(None));
    }

    #[test]
    fn what_is_cut_short_is_refused() {
        let own = [own_relation(&[]), change(50, &[b"T", &[0, 0, 0, 1, 0, 0, 0, 0, 9]])];
        for message in messages(0).into_iter().chain(own) {
            for length in 0..message.len() {
                let mut cut = message[..length].to_vec();
                let before = cut.clone();
                if Passed::new(true).server(&mut cut, 1000, None).is_err() {
                    assert_eq!(cut, before, "it is as it was");
                }
            }
        }
        for length in 1..25 {
            assert!(client(&mut status(1, 2, false)[..length], 0).is_err());
        }
    }
}
