//! Prepared statements of clients that share connections.
//!
//! A client names its statements as it likes and expects to find them for as long as its session lasts; the connection that it
//! has for this transaction may never have seen them. So each text gets a name of ours, the same for every client of the front that has
//! it read by the same settings (`READ_BY` of `names`: a time zone is in what became of its constants), and the client's messages are rewritten to it.
//! What was prepared while a transaction may have had others is not used when that is over. Where the connection lacks the statement, a Parse goes before the message that needs
//! it, and its answer is taken out again. Nothing is answered here: what a client asked for, the server has looked at.
//!
//! After an error the server skips everything up to the next Sync: what was skipped is undone here too. No further unit
//! begins while it is open whether something was prepared.

use std::collections::hash_map::RandomState;
use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::BuildHasher;
use std::sync::{Arc, Mutex, Weak};

use super::frame::HEADER;
use super::message::{self, read_text, write};
use super::oids::{FIRST_OWN, retyped};
use super::{names, traces};
use crate::lock::lock;

/// What every name of ours begins with.
pub const PREFIX: &str = "_godwit_";
/// An unnamed statement that is longer is not kept.
pub const UNNAMED: usize = 256 << 10;
/// A statement that nobody has: closing it is no error, and using it is one.
const NOBODY: &str = "_godwit_nobody";

/// A longer query is not looked through for what it takes away.
const DEALLOCATES: usize = 4 << 10;
/// Answered as DEALLOCATE is, in a transaction that has failed too, and takes nothing away.
const DEALLOCATED: &str = "PREPARE _godwit_gone AS SELECT 1; DEALLOCATE _godwit_gone";

/// A statement that clients have prepared: its text and the types of its parameters.
#[derive(Debug)]
pub struct Prepared {
    id: u64,
    name: String,
    /// A Parse message's body without the name. Those of one text that are read by different settings have it together.
    tail: Arc<Vec<u8>>,
    /// What it is read by.
    read_by: Arc<[u8]>,
    leaves: Leaves,
}

/// What running a text may leave in the session.
#[derive(Clone, Copy, Debug, Default)]
struct Leaves {
    /// Something that is to be looked for.
    traces: bool,
    /// A setting that is not found then, since its name is not known.
    hidden: bool,
    /// For the rest of its transaction at least, texts are read by other settings.
    rereads: bool,
    /// A setting may be what it was as the connection began, and not what its client's session began with.
    resets: bool,
}

impl Leaves {
    /// `whole`: there is no more of it.
    fn of(text: &[u8], whole: bool) -> Self {
        let hidden = !whole || !names::find(text, |_| {});
        Self {
            traces: !whole || traces::in_text(text),
            hidden,
            rereads: hidden || names::rereads(text),
            resets: !whole || traces::resets(text),
        }
    }
}

/// The statements of all clients of a front.
#[derive(Debug, Default)]
pub struct Registry {
    hasher: RandomState,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    next: u64,
    by_hash: HashMap<u64, Vec<Weak<Prepared>>>,
    tails: HashMap<u64, Weak<Vec<u8>>>,
    /// How many there were when those that nobody has any more were last thrown out.
    kept: usize,
}

impl Registry {
    /// The statement with this text and these types (a Parse message's body without the name), read by these settings.
    fn get(&self, tail: &[u8], read_by: &Arc<[u8]>) -> Arc<Prepared> {
        let (hash, of_tail) = (self.hasher.hash_one((tail, read_by)), self.hasher.hash_one(tail));
        let mut known = lock(&self.known);
        let same = known.by_hash.get(&hash).into_iter().flatten().filter_map(Weak::upgrade);
        let mut same = same.into_iter();
        if let Some(prepared) = same.find(|known| *known.tail == *tail && known.read_by == *read_by) {
            return prepared;
        }
        if known.by_hash.len() > 64 + 2 * known.kept {
            known.by_hash.retain(|_, those| {
                those.retain(|prepared| prepared.strong_count() > 0);
                !those.is_empty()
            });
            known.kept = known.by_hash.len();
            known.tails.retain(|_, tail| tail.strong_count() > 0);
        }
        let same = known.tails.get(&of_tail).and_then(Weak::upgrade).filter(|same| **same == *tail);
        let same = same.unwrap_or_else(|| Arc::new(tail.to_vec()));
        known.tails.insert(of_tail, Arc::downgrade(&same));
        known.next += 1;
        let text = read_text(tail).map_or(tail, |(text, _)| text);
        let prepared = Arc::new(Prepared {
            id: known.next,
            name: format!("{PREFIX}{}", known.next),
            tail: same,
            read_by: Arc::clone(read_by),
            leaves: Leaves::of(text, true),
        });
        known.by_hash.entry(hash).or_default().push(Arc::downgrade(&prepared));
        prepared
    }
}

/// What a connection has prepared of ours.
#[derive(Clone, Debug, Default)]
pub struct Has {
    statements: HashMap<u64, There>,
    now: u64,
    /// When it was last known what texts are read by.
    since: u64,
    /// The unnamed statement is that of the client who has it now.
    unnamed: bool,
    /// Somebody may have set there what is not found when it is looked for: it is to be reset before another has it.
    pub hides: bool,
}

/// A statement on a connection.
#[derive(Clone, Copy, Debug)]
struct There {
    /// When it was last needed.
    used: u64,
    /// When it was prepared; none: by which settings it was read is not known.
    prepared: Option<u64>,
}

impl Has {
    /// Another client has it from here on.
    pub fn lent(&mut self) {
        (self.unnamed, self.since) = (false, self.now);
    }

    /// By which settings it was read is not known of what was prepared since it was last known.
    fn doubt(&mut self) {
        for there in self.statements.values_mut() {
            there.prepared.take_if(|prepared| *prepared > self.since);
        }
    }

    /// Another connection, on which its client does anew what it did by SQL on this one: it may hide as much.
    #[must_use]
    pub fn elsewhere(&self) -> Self {
        Self { hides: self.hides, ..Self::default() }
    }

    /// It is prepared there.
    fn prepare(&mut self, id: u64) {
        self.now += 1;
        self.statements.insert(id, There { used: self.now, prepared: Some(self.now) });
    }

    /// Whether it is there and may be used.
    fn uses(&mut self, id: u64) -> bool {
        let there = self.statements.get_mut(&id).filter(|there| there.prepared.is_some());
        self.now += 1;
        there.map(|there| there.used = self.now).is_some()
    }

    fn oldest(&self) -> Option<u64> {
        self.statements.iter().min_by_key(|(_, there)| there.used).map(|(id, _)| *id)
    }
}

/// An answer that the server owes.
#[derive(Debug)]
enum Owed {
    /// ParseComplete. `ours`: nobody else waits for it.
    Parse { ours: bool, id: Option<u64>, client: Option<Box<[u8]>>, unnamed: bool },
    /// CloseComplete.
    Close { ours: bool, id: Option<u64>, client: Option<(Box<[u8]>, Arc<Prepared>)> },
    /// ReadyForQuery; `synced`: to a Sync.
    Ready { synced: bool },
    /// Nothing: see [`Sent::CopyEnd`](super::tracker::Sent::CopyEnd).
    CopyEnd { batch: bool },
}

/// A statement with a name is too long to be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a prepared statement is too long to be shared")]
pub struct TooLong;

/// Whether a message goes on as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rewritten {
    /// It does.
    Same,
    /// What goes on instead was written.
    Changed,
}

/// The statements of one client.
#[derive(Debug)]
pub struct Statements {
    registry: Arc<Registry>,
    /// How many a connection keeps.
    limit: usize,
    names: HashMap<Box<[u8]>, Arc<Prepared>>,
    /// Its Parse message of the unnamed statement.
    unnamed: Option<Vec<u8>>,
    unnamed_leaves: Leaves,
    /// What its texts are read by.
    read_by: Arc<[u8]>,
    /// Something was run that may have changed that.
    rereads: bool,
    /// So was something that may have reset what its connection was given for it.
    resets: bool,
    /// Of the connection that it has now.
    pub has: Has,
    owed: VecDeque<Owed>,
    /// Something was run whose traces must be looked for.
    pub touched: bool,
    /// It keeps its connection for what it has there: whatever may end that is looked for too.
    pub pinned: bool,
    /// What was prepared or taken away may yet fail or be skipped, or a setting is not the client's: no further unit may go on before the answer.
    pub unsettled: bool,
    /// Its next message is not the first of a unit.
    within: bool,
    /// Nor is the one that is rewritten: the server may skip it.
    skippable: bool,
}

impl Statements {
    /// A client that has none yet. A connection keeps `limit` of all clients' statements.
    pub fn new(registry: Arc<Registry>, limit: usize) -> Self {
        Self {
            registry,
            limit: limit.max(1),
            names: HashMap::new(),
            unnamed: None,
            unnamed_leaves: Leaves::default(),
            read_by: Arc::default(),
            rereads: false,
            resets: false,
            has: Has::default(),
            owed: VecDeque::new(),
            touched: false,
            pinned: false,
            unsettled: false,
            within: false,
            skippable: false,
        }
    }

    /// It has a connection, with this on it.
    pub fn take(&mut self, has: Has) {
        self.has = has;
        self.has.lent();
        (self.rereads, self.resets) = (false, false);
    }

    /// What is set on its connection from here on, as far as texts are read by it.
    pub fn are_read_by(&mut self, settings: Arc<[u8]>) {
        self.read_by = settings;
    }

    /// After what it ran that may have left something, it is known again what is set on its connection.
    pub fn asked(&mut self) {
        if std::mem::take(&mut self.rereads) {
            self.has.doubt();
        }
        self.has.since = self.has.now;
        (self.touched, self.resets) = (false, false);
    }

    /// Settings may not be its own: what it has is to be asked for before its next unit.
    pub fn is_reset(&self) -> bool {
        self.resets && self.touched
    }

    /// The client's message goes on: `bytes` from its type byte on, the whole of it or at least its names. `whole`: nothing of it is
    /// still to come.
    pub fn rewrite(&mut self, bytes: &[u8], whole: bool, out: &mut Vec<u8>) -> Result<Rewritten, TooLong> {
        let body = &bytes[HEADER.min(bytes.len())..];
        self.skippable = std::mem::replace(&mut self.within, true);
        match bytes.first() {
            Some(b'P') => self.parse(bytes, whole, out),
            Some(b'B') => {
                let Some((_, rest)) = read_text(body) else { return Ok(Rewritten::Same) };
                let at = bytes.len() - rest.len();
                Ok(self.refer(bytes, at, out))
            }
            Some(b'D') if body.first() == Some(&b'S') => Ok(self.refer(bytes, HEADER + 1, out)),
            Some(b'C') => Ok(self.close(body, out)),
            Some(b'Q') => {
                let text = read_text(body).map_or(body, |(text, _)| text);
                self.runs(Leaves::of(text, whole));
                (self.has.unnamed, self.unnamed) = (false, None);
                let Some(instead) = whole.then(|| self.deallocated(text)).flatten() else {
                    return Ok(Rewritten::Same);
                };
                message::query(out, instead.as_bytes());
                Ok(Rewritten::Changed)
            }
            Some(b'F') => {
                self.runs(Leaves { traces: true, hidden: true, rereads: true, resets: true });
                Ok(Rewritten::Same)
            }
            _ => Ok(Rewritten::Same),
        }
    }

    /// The client goes on in a database where types have other numbers: `there` says which.
    pub fn moved(&mut self, there: impl Fn(u32) -> u32) {
        for prepared in self.names.values_mut() {
            let mut own = false;
            let mut body = [b"\0", &prepared.tail[..]].concat();
            let _ = retyped(&mut body, |oid| {
                own |= oid >= FIRST_OWN;
                there(oid)
            });
            if own {
                *prepared = self.registry.get(&body[1..], &self.read_by);
            }
        }
        if let Some(parse) = &mut self.unnamed {
            let _ = retyped(&mut parse[HEADER..], there);
        }
    }

    /// The client's message of this type completed a unit.
    pub fn unit(&mut self, tag: u8) {
        self.owed.push_back(Owed::Ready { synced: tag == b'S' });
        self.within = false;
    }

    /// The client's message ended a copy that the server has not asked for yet: see [`super::tracker::Sent::CopyEnd`].
    pub fn copy_ends(&mut self, batch: bool) {
        self.owed.push_back(Owed::CopyEnd { batch });
    }

    fn parse(&mut self, bytes: &[u8], whole: bool, out: &mut Vec<u8>) -> Result<Rewritten, TooLong> {
        let Some((name, tail)) = read_text(&bytes[HEADER..]) else { return Ok(Rewritten::Same) };
        if name.is_empty() {
            self.unnamed = (whole && bytes.len() <= UNNAMED).then(|| bytes.to_vec());
            let text = read_text(tail).map_or(tail, |(text, _)| text);
            self.unnamed_leaves = Leaves::of(text, whole);
            self.parse_unnamed(false);
            return Ok(Rewritten::Same);
        }
        if !whole {
            return Err(TooLong);
        }
        self.unsettled = true;
        if let Some(known) = self.known(name) {
            // The server says what it says to a name that is taken.
            self.need(&known, out);
            self.owed.push_back(Owed::Parse { ours: false, id: None, client: None, unnamed: false });
            write_parse(out, &known.name, tail);
            // Unless the name was taken away meanwhile: then it is everybody's.
            self.drop_from_connection(known.id, out);
            return Ok(Rewritten::Changed);
        }
        let prepared = self.registry.get(tail, &self.read_by);
        if self.has.statements.contains_key(&prepared.id) {
            // The client is to hear what the server says of this text now.
            self.drop_from_connection(prepared.id, out);
        }
        self.make_room(out);
        self.owed.push_back(Owed::Parse {
            ours: false,
            id: Some(prepared.id),
            client: Some(name.into()),
            unnamed: false,
        });
        self.has.prepare(prepared.id);
        write_parse(out, &prepared.name, tail);
        self.names.insert(name.into(), prepared);
        Ok(Rewritten::Changed)
    }

    fn runs(&mut self, leaves: Leaves) {
        self.touched |= leaves.traces;
        self.has.hides |= leaves.hidden;
        self.rereads |= leaves.rereads;
        self.resets |= leaves.resets;
        self.unsettled |= leaves.resets;
    }

    /// The client's statement of this name, as its texts are read now.
    fn known(&mut self, name: &[u8]) -> Option<Arc<Prepared>> {
        let prepared = self.names.get_mut(name)?;
        if prepared.read_by != self.read_by {
            *prepared = self.registry.get(&prepared.tail, &self.read_by);
        }
        Some(Arc::clone(prepared))
    }

    fn parse_unnamed(&mut self, ours: bool) {
        self.has.unnamed = true;
        // Skipped, it leaves another client's.
        self.unsettled |= self.skippable;
        self.owed.push_back(Owed::Parse { ours, id: None, client: None, unnamed: true });
    }

    /// A message that names a statement at `at`.
    fn refer(&mut self, bytes: &[u8], at: usize, out: &mut Vec<u8>) -> Rewritten {
        let Some((name, rest)) = bytes.get(at..).and_then(read_text) else { return Rewritten::Same };
        // It may come long after its Parse, which has run nothing.
        let binds = bytes.first() == Some(&b'B');
        if name.is_empty() && binds {
            self.runs(self.unnamed_leaves);
        }
        if name.is_empty() && self.has.unnamed {
            return Rewritten::Same;
        }
        if name.is_empty() {
            let Some(parse) = &self.unnamed else {
                // What is there is another client's.
                renamed(out, bytes, at, NOBODY, rest);
                return Rewritten::Changed;
            };
            out.extend(parse);
            self.parse_unnamed(true);
            out.extend(bytes);
            return Rewritten::Changed;
        }
        // One that SQL made, or none.
        let Some(prepared) = self.known(name) else { return Rewritten::Same };
        if binds {
            self.runs(prepared.leaves);
        }
        self.need(&prepared, out);
        renamed(out, bytes, at, &prepared.name, rest);
        Rewritten::Changed
    }

    fn close(&mut self, body: &[u8], out: &mut Vec<u8>) -> Rewritten {
        let name = body.strip_prefix(b"S").and_then(read_text).map(|(name, _)| name);
        let Some((name, prepared)) = name.and_then(|name| self.names.remove_entry(name)) else {
            if name == Some(b"".as_slice()) {
                (self.has.unnamed, self.unnamed) = (false, None);
            }
            self.owed.push_back(Owed::Close { ours: false, id: None, client: None });
            return Rewritten::Same;
        };
        self.unsettled |= self.skippable;
        // Others may have the same one: the server closes what nobody has, and says so.
        self.owed.push_back(Owed::Close { ours: false, id: None, client: Some((name, prepared)) });
        message::close_statement(out, NOBODY.as_bytes());
        Rewritten::Changed
    }

    /// The text of a query which the client takes statements away by that it has by the protocol (`DEALLOCATE name`, as PHP's PDO and psqlODBC
    /// do): the server has them by other names, and would refuse it, in the middle of a transaction. None: there is nothing of the kind, or it
    /// cannot be told since there are strings or comments.
    fn deallocated(&mut self, text: &[u8]) -> Option<String> {
        if self.names.is_empty() || text.len() > DEALLOCATES {
            return None;
        }
        let text = std::str::from_utf8(text).ok()?;
        let lower = text.to_ascii_lowercase();
        if !["deallocate", "discard"].iter().any(|word| lower.contains(word)) {
            return None;
        }
        // What it takes away may be prepared anew behind it.
        self.unsettled = true;
        if text.contains(['\'', '$']) || text.contains("--") || text.contains("/*") {
            return None;
        }
        let mut quoted = false;
        let parts = text.split(|c| {
            quoted ^= c == '"';
            c == ';' && !quoted
        });
        let mut known = false;
        let parts: Vec<&str> = parts
            .map(|part| {
                let own = named_by_deallocate(part)
                    .is_some_and(|name| self.names.remove(name.as_bytes()).is_some());
                known |= own;
                if own { DEALLOCATED } else { part }
            })
            .collect();
        known.then(|| parts.join(";"))
    }

    /// The connection has this one when the next message comes to it.
    fn need(&mut self, prepared: &Prepared, out: &mut Vec<u8>) {
        if self.has.uses(prepared.id) {
            return;
        }
        self.unsettled = true;
        if self.has.statements.contains_key(&prepared.id) {
            self.drop_from_connection(prepared.id, out);
        }
        self.make_room(out);
        let id = Some(prepared.id);
        self.owed.push_back(Owed::Parse { ours: true, id, client: None, unnamed: false });
        write_parse(out, &prepared.name, &prepared.tail);
        self.has.prepare(prepared.id);
    }

    fn make_room(&mut self, out: &mut Vec<u8>) {
        while self.has.statements.len() >= self.limit {
            let Some(id) = self.has.oldest() else { return };
            self.drop_from_connection(id, out);
        }
    }

    fn drop_from_connection(&mut self, id: u64, out: &mut Vec<u8>) {
        self.has.statements.remove(&id);
        self.owed.push_back(Owed::Close { ours: true, id: Some(id), client: None });
        message::close_statement(out, format!("{PREFIX}{id}").as_bytes());
    }

    /// The server's message of this type. Whether the client must not see it.
    pub fn heard(&mut self, tag: u8, body: &[u8]) -> bool {
        match tag {
            b'1' | b'3' => {
                let ours = match self.owed.front() {
                    Some(Owed::Parse { ours, .. }) if tag == b'1' => *ours,
                    Some(Owed::Close { ours, .. }) if tag == b'3' => *ours,
                    _ => return false,
                };
                self.owed.pop_front();
                return ours;
            }
            b'C' => self.done(body),
            // Whatever has set it, also where no text tells.
            b'S' if read_text(body).is_some_and(|(name, _)| names::is_read_by(name)) => {
                (self.touched, self.rereads) = (true, true);
            }
            b'G' | b'W' => self.copy_begins(),
            b'Z' => self.ready(),
            _ => {}
        }
        false
    }

    /// CommandComplete.
    fn done(&mut self, body: &[u8]) {
        let tag = read_text(body).map_or(body, |(tag, _)| tag);
        self.touched |= traces::in_tag(tag, self.pinned);
        if matches!(tag, b"DISCARD ALL" | b"DEALLOCATE ALL") {
            self.all_gone();
        }
    }

    /// The server has no named statement any more; what was sent behind that is done afterwards.
    fn all_gone(&mut self) {
        let (mut ids, mut names) = (HashSet::new(), HashSet::new());
        for owed in &mut self.owed {
            match owed {
                Owed::Parse { id, client, .. } => {
                    ids.extend(*id);
                    names.extend(client.clone());
                }
                Owed::Close { id, client, .. } => {
                    id.take_if(|id| !ids.contains(id));
                    client.take_if(|(name, _)| !names.contains(name));
                }
                Owed::Ready { .. } | Owed::CopyEnd { .. } => {}
            }
        }
        self.has.statements.retain(|id, _| ids.contains(id));
        self.names.retain(|name, _| names.contains(name));
    }

    /// As [`super::tracker::Tracker::copy_begins`]: Syncs sent before the copy's end are never answered.
    fn copy_begins(&mut self) {
        let end = self.owed.iter().position(|owed| matches!(owed, Owed::CopyEnd { .. }));
        if let Some(end) = end {
            self.owed.remove(end);
        }
        if matches!(self.owed.front(), Some(Owed::Ready { synced: false })) {
            return;
        }
        let mut left = end.unwrap_or(self.owed.len());
        self.owed.retain(|owed| {
            let within = left > 0;
            left = left.saturating_sub(1);
            !within || !matches!(owed, Owed::Ready { synced: true })
        });
    }

    /// ReadyForQuery: what was not answered until now was skipped.
    fn ready(&mut self) {
        let end =
            self.owed.iter().position(|owed| matches!(owed, Owed::Ready { .. })).unwrap_or(self.owed.len());
        let another =
            end > 0 && self.owed.range(end..).any(|owed| matches!(owed, Owed::Parse { unnamed: true, .. }));
        for skipped in self.owed.drain(..end).rev() {
            match skipped {
                Owed::Parse { ours, id, client, unnamed } => {
                    if let Some(id) = id {
                        self.has.statements.remove(&id);
                    }
                    if let Some(name) = client {
                        self.names.remove(&name);
                    }
                    let unnamed = unnamed && !another;
                    self.has.unnamed &= !unnamed;
                    if unnamed && !ours {
                        // It failed, and the one before it is gone, or it was skipped: which, is not known.
                        self.unnamed = None;
                    }
                }
                Owed::Close { id, client, .. } => {
                    if let Some(id) = id {
                        self.has.statements.insert(id, There { used: 0, prepared: None });
                    }
                    self.names.extend(client);
                }
                Owed::Ready { .. } | Owed::CopyEnd { .. } => {}
            }
        }
        self.owed.pop_front();
        while let Some(Owed::CopyEnd { batch: false }) = self.owed.front() {
            self.owed.pop_front();
        }
        // A reset is owed with the end of its unit.
        self.unsettled &= self.within || !self.owed.is_empty();
    }
}

/// The name in `DEALLOCATE [PREPARE] name`; none: it is another statement, or takes all away.
fn named_by_deallocate(statement: &str) -> Option<String> {
    let after = |text: &str, word: &str| {
        let (begin, rest) = text.split_at_checked(word.len())?;
        let ends = rest.starts_with(|c: char| c.is_ascii_whitespace() || c == '"');
        (begin.eq_ignore_ascii_case(word) && ends).then(|| rest.trim_ascii().to_owned())
    };
    let rest = after(statement.trim_ascii(), "deallocate")?;
    let name = after(&rest, "prepare").unwrap_or(rest);
    if let Some(quoted) = name.strip_prefix('"') {
        let inner = quoted.strip_suffix('"')?;
        return (!inner.replace("\"\"", "").contains('"')).then(|| inner.replace("\"\"", "\""));
    }
    let plain = name.chars().all(|c| c.is_alphanumeric() || c == '_');
    (plain && !name.is_empty() && !name.eq_ignore_ascii_case("all")).then(|| name.to_lowercase())
}

fn write_parse(out: &mut Vec<u8>, name: &str, tail: &[u8]) {
    write(out, b'P', |out| {
        message::text(out, name);
        out.extend(tail);
    });
}

/// The message with another name at `at`; `rest` is what follows its name. More of it may still be to come.
fn renamed(out: &mut Vec<u8>, bytes: &[u8], at: usize, name: &str, rest: &[u8]) {
    let shorter = bytes.len() - at - rest.len();
    let length = bytes.get(1..HEADER).and_then(|length| length.try_into().ok()).map_or(0, u32::from_be_bytes);
    let length = length as usize + name.len() + 1 - shorter;
    out.push(bytes[0]);
    out.extend((length as u32).to_be_bytes());
    out.extend(&bytes[HEADER..at]);
    message::text(out, name);
    out.extend(rest);
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
