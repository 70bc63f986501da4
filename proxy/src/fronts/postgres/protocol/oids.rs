//! Types and tables by number: what a client was told stays true in its session, wherever that is moved.
//!
//! A cluster numbers what is made in it (OID); the same type has another number elsewhere, and its number there may be another
//! type's. Clients learn numbers from the descriptions of rows and parameters and from the catalogue itself, and go by them for as
//! long as they are connected: a driver that knows 16390 as `hstore` reads whatever comes as 16390 so. After a move a session's
//! numbers are therefore exchanged as they pass, in place. What its client does not know yet passes as it is, so that a driver that
//! asks the catalogue what it is finds it; where the client knows that number as something else it gets one that nothing has.
//!
//! Exchanged: types and tables in RowDescription and ParameterDescription, types in Parse, and the types that arrays and composites
//! name in binary, in parameters and in results. Not exchanged: what queries return as values (of `pg_type`, say), what is written in
//! SQL, the insides of binary COPY, function numbers.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use super::message::{self, read_text};

/// The first number that a cluster gives by itself: what is below means the same everywhere.
pub const FIRST_OWN: u32 = 16_384;
/// How many numbers of each kind are kept for a client.
const MOST: usize = 1024;
/// How many statements' parameters are.
const STATEMENTS: usize = 1024;
/// How deep arrays and composites are followed into each other.
const DEEPEST: usize = 16;
/// `oid`, the type.
const OID: u32 = 26;

/// What can be numbered in a database.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Catalogue {
    types: Objects,
    relations: Objects,
    shapes: HashMap<u32, Shape>,
}

/// By number and by name: schema and name, with a zero between.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Objects {
    names: HashMap<u32, Arc<str>>,
    numbers: HashMap<Arc<str>, u32>,
}

impl Objects {
    fn add(&mut self, number: u32, name: Arc<str>) {
        self.names.insert(number, Arc::clone(&name));
        self.numbers.insert(name, number);
    }

    /// The number there of what has this one here.
    fn in_other(&self, number: u32, there: &Self) -> Option<u32> {
        there.numbers.get(self.names.get(&number)?).copied()
    }
}

/// What a value of a type is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Nothing that has a number of its own.
    Plain,
    /// Values of this type.
    Array(u32),
    /// Fields.
    Composite,
    /// What this type's are.
    Domain(u32),
}

impl Catalogue {
    /// What is asked for one: kind, number, schema, name, and the number of what it is made of.
    pub const QUERY: &str = "\
SELECT CASE WHEN t.typtype OPERATOR(pg_catalog.=) 'c' THEN 'composite' WHEN t.typtype OPERATOR(pg_catalog.=) 'd' THEN 'domain' \
 WHEN t.typcategory OPERATOR(pg_catalog.=) 'A' AND t.typelem OPERATOR(pg_catalog.<>) 0 THEN 'array' ELSE 'plain' END, \
 t.oid, n.nspname::pg_catalog.text, t.typname::pg_catalog.text, \
 CASE WHEN t.typtype OPERATOR(pg_catalog.=) 'd' THEN t.typbasetype ELSE t.typelem END \
 FROM pg_catalog.pg_type t JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) t.typnamespace \
 WHERE t.oid OPERATOR(pg_catalog.>=) 16384 AND NOT pg_catalog.starts_with(n.nspname::pg_catalog.text, 'pg_') \
UNION ALL SELECT 'relation', c.oid, n.nspname::pg_catalog.text, c.relname::pg_catalog.text, 0::pg_catalog.oid \
 FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace \
 WHERE c.oid OPERATOR(pg_catalog.>=) 16384 AND NOT pg_catalog.starts_with(n.nspname::pg_catalog.text, 'pg_') \
 AND c.relkind OPERATOR(pg_catalog.=) ANY (ARRAY['r', 'p', 'v', 'm', 'f']::pg_catalog.\"char\"[])";

    /// Takes one row of the answer.
    pub fn take(&mut self, kind: &str, number: u32, schema: &str, name: &str, of: u32) {
        let name = format!("{schema}\0{name}").into();
        if kind == "relation" {
            self.relations.add(number, name);
            return;
        }
        self.types.add(number, name);
        let shape = match kind {
            "array" => Shape::Array(of),
            "composite" => Shape::Composite,
            "domain" => Shape::Domain(of),
            _ => return,
        };
        self.shapes.insert(number, shape);
    }

    /// The number there of the type that has this one here; none: there is none of its name, or none was here.
    pub fn type_in(&self, number: u32, there: &Self) -> Option<u32> {
        if number < FIRST_OWN { Some(number) } else { self.types.in_other(number, &there.types) }
    }

    /// Never a domain.
    fn shape(&self, mut number: u32) -> Shape {
        for _ in 0..DEEPEST {
            match self.shapes.get(&number) {
                Some(Shape::Domain(base)) => number = *base,
                Some(shape) => return *shape,
                None => break,
            }
        }
        Shape::Plain
    }
}

/// Numbers of one kind that a client knows.
#[derive(Debug, Default)]
struct Known {
    /// The server's, by the client's; 0: it is not there any more.
    servers: BTreeMap<u32, u32>,
    /// The client's, by the server's.
    clients: BTreeMap<u32, u32>,
}

impl Known {
    /// The server names one: what the client is told.
    fn heard(&mut self, number: u32) -> u32 {
        if number < FIRST_OWN {
            return number;
        }
        if let Some(client) = self.clients.get(&number) {
            return *client;
        }
        let taken = self.servers.contains_key(&number);
        let told = if taken { self.unused() } else { number };
        if taken || self.servers.len() < MOST {
            self.pair(told, number);
        }
        told
    }

    /// The client names one: what the server is told.
    fn said(&mut self, number: u32) -> u32 {
        if number < FIRST_OWN {
            return number;
        }
        if let Some(server) = self.servers.get(&number) {
            return *server;
        }
        self.learn(number);
        number
    }

    /// What the client knows one of the server's by.
    fn client(&self, number: u32) -> u32 {
        self.clients.get(&number).copied().unwrap_or(number)
    }

    /// The client has seen one of the server's.
    fn learn(&mut self, number: u32) {
        if self.servers.len() < MOST
            && !self.servers.contains_key(&number)
            && !self.clients.contains_key(&number)
        {
            self.pair(number, number);
        }
    }

    fn pair(&mut self, client: u32, server: u32) {
        self.servers.insert(client, server);
        self.clients.insert(server, client);
    }

    /// One that nothing has: no cluster has come so far.
    fn unused(&self) -> u32 {
        (FIRST_OWN..u32::MAX).rev().find(|number| !self.servers.contains_key(number)).unwrap_or(u32::MAX)
    }

    fn moved(&mut self, here: &Objects, there: &Objects) {
        self.clients.clear();
        for (client, server) in &mut self.servers {
            *server = here.in_other(*server, there).unwrap_or(0);
            if *server != 0 {
                self.clients.insert(*server, *client);
            }
        }
    }
}

/// A column's place, and its type as the server numbers it.
type Column = (usize, u32);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Described {
    Statement(Box<[u8]>),
    Portal(Box<[u8]>),
}

#[derive(Debug)]
struct Execution {
    portal: Box<[u8]>,
    /// Of its rows those columns in which numbers may be.
    columns: Vec<Column>,
}

/// Which way a value goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum To {
    Server,
    Client,
}

/// What one session's client knows.
#[derive(Debug, Default)]
pub struct Oids {
    types: Known,
    relations: Known,
    /// Of the database that it was moved to; none: it is where it began.
    here: Option<Arc<Catalogue>>,
    /// Types of parameters, as the server numbers them; of statements that have one of the database's own.
    statements: HashMap<Box<[u8]>, Vec<u32>>,
    /// The same of their results.
    results: HashMap<Box<[u8]>, Vec<Column>>,
    /// The same of portals, those columns only that come in binary; since the move.
    portals: HashMap<Box<[u8]>, Vec<Column>>,
    /// What is being described, and how many units are answered before.
    described: VecDeque<(usize, Described)>,
    /// Portals that are executed, and how many units are answered before; since the move.
    executed: VecDeque<(usize, Execution)>,
    /// Columns of the rows that come now which hold numbers, and whether in binary.
    columns: Vec<(usize, bool)>,
}

impl Oids {
    /// The session goes on in a database with another catalogue.
    pub fn moved(&mut self, from: &Catalogue, to: &Arc<Catalogue>) {
        self.types.moved(&from.types, &to.types);
        self.relations.moved(&from.relations, &to.relations);
        let results = self.results.values_mut().flatten().map(|(_, of)| of);
        for number in self.statements.values_mut().flatten().chain(results) {
            *number = from.type_in(*number, to).unwrap_or(0);
        }
        self.described.clear();
        self.executed.clear();
        self.portals.clear();
        self.columns.clear();
        self.here = Some(Arc::clone(to));
    }

    /// The client knows types by numbers that only a cluster has given them.
    pub fn knows_types(&self) -> bool {
        !self.types.servers.is_empty()
    }

    /// Rows are read for the numbers in them.
    pub fn reads_rows(&self) -> bool {
        let under_way =
            |(before, execution): &(usize, Execution)| *before == 0 && !execution.columns.is_empty();
        !self.columns.is_empty() || self.executed.front().is_some_and(under_way)
    }

    /// Parameters of statements are looked into.
    pub fn reads_binds(&self) -> bool {
        self.here.is_some() && !(self.statements.is_empty() && self.results.is_empty())
    }

    /// The server's message, whole: its body. What it is cut wrongly into is left as it is.
    pub fn heard(&mut self, tag: u8, body: &mut [u8]) {
        match tag {
            b'T' => {
                self.columns.clear();
                let _ = self.row_description(body);
            }
            b'D' if self.reads_rows() => {
                let _ = self.row(body);
                let _ = self.result(body);
            }
            b't' => {
                let _ = self.parameter_description(body);
            }
            b'n' => drop(self.answered()),
            b'C' | b's' | b'I' | b'E' => {
                self.columns.clear();
                self.executed.pop_front_if(|(before, _)| *before == 0);
            }
            b'Z' => self.columns.clear(),
            _ => {}
        }
    }

    /// A unit is answered.
    pub fn ready(&mut self) {
        nearer(&mut self.described);
        nearer(&mut self.executed);
    }

    /// A COPY from the client begins: what was sent behind it is not answered.
    pub fn copy_begins(&mut self) {
        self.described.clear();
        self.executed.clear();
    }

    /// The client's message, whole: its body. `owed`: how many units are not answered before its own.
    pub fn said(&mut self, tag: u8, body: &mut [u8], owed: usize) {
        match tag {
            b'P' => {
                let _ = self.parse(body);
            }
            b'D' => {
                let Some((kind, Some((name, _)))) =
                    body.split_first().map(|(kind, rest)| (kind, read_text(rest)))
                else {
                    return;
                };
                let described = if *kind == b'S' { Described::Statement } else { Described::Portal };
                self.described.push_back((owed, described(name.into())));
            }
            b'B' if self.here.is_some() => {
                let _ = self.bind(body);
            }
            b'E' if self.here.is_some() => {
                let Some((name, _)) = read_text(body) else { return };
                let columns = self.portals.get(name).cloned().unwrap_or_default();
                self.executed.push_back((owed, Execution { portal: name.into(), columns }));
            }
            _ => {}
        }
    }

    /// A message of the client's that is too long to be looked into, as far as it is here: what it replaces is not known any more.
    pub fn passes(&mut self, tag: u8, body: &[u8]) {
        match (tag, read_text(body).map(|(name, _)| name)) {
            (b'P', Some(name)) => {
                self.statements.remove(name);
                self.results.remove(name);
            }
            (b'B', Some(name)) => drop(self.portals.remove(name)),
            // Not even its name.
            (b'P' | b'B', None) => {
                self.statements.clear();
                self.results.clear();
                self.portals.clear();
            }
            _ => {}
        }
    }

    fn row_description(&mut self, body: &mut [u8]) -> Option<()> {
        let described = self.answered();
        let count = u16::from_be_bytes(*body.first_chunk()?);
        let mut rest = &mut body[2..];
        let (mut own, mut binary) = (Vec::new(), Vec::new());
        for column in 0..count {
            let column = usize::from(column);
            let end = rest.iter().position(|byte| *byte == 0)? + 1;
            // Table, number of the column in it, type, size, modifier, format.
            let (field, after) = rest.split_at_mut(end).1.split_at_mut_checked(18)?;
            exchange(&mut field[..4], |table| self.relations.heard(table))?;
            let is_binary = field[17] == 1;
            exchange(&mut field[6..10], |of| {
                if of == OID && self.columns.len() < DEEPEST {
                    self.columns.push((column, is_binary));
                }
                if of >= FIRST_OWN {
                    own.push((column, of));
                    binary.extend(is_binary.then_some((column, of)));
                }
                self.types.heard(of)
            })?;
            rest = after;
        }
        match described {
            Some(Described::Statement(name)) => {
                self.columns.clear();
                keep(&mut self.results, &name, own);
            }
            Some(Described::Portal(name)) => {
                if let Some((0, execution)) = self.executed.front_mut()
                    && execution.portal == name
                {
                    execution.columns = binary;
                }
            }
            // A simple query's.
            None => {}
        }
        Some(())
    }

    /// What the description is of that has come.
    fn answered(&mut self) -> Option<Described> {
        self.described.pop_front_if(|(before, _)| *before == 0).map(|(_, described)| described)
    }

    /// Exchanges the numbers inside of a row's values in binary.
    fn result(&self, body: &mut [u8]) -> Option<()> {
        let here = self.here.as_ref()?;
        let (0, Execution { columns, .. }) = self.executed.front()? else { return None };
        let (count, mut rest) = body.split_first_chunk_mut()?;
        for place in 0..usize::from(u16::from_be_bytes(*count)) {
            let (value, after) = sized(rest)?;
            if let Some((_, of)) = columns.iter().find(|(column, _)| *column == place) {
                let _ = self.value(value, here.shape(*of), here, To::Client, DEEPEST);
            }
            rest = after;
        }
        Some(())
    }

    /// Numbers that a query returns are learned, so that they stay true, too.
    fn row(&mut self, body: &[u8]) -> Option<()> {
        let values = message::row(body)?;
        for (column, binary) in &self.columns {
            let value = values.get(*column).copied().flatten();
            let number = value.and_then(|value| match value.first_chunk() {
                Some(number) if *binary => Some(u32::from_be_bytes(*number)),
                _ if *binary => None,
                _ => std::str::from_utf8(value).ok()?.parse().ok(),
            });
            if let Some(number) = number.filter(|number| *number >= FIRST_OWN) {
                self.types.learn(number);
                self.relations.learn(number);
            }
        }
        Some(())
    }

    fn parameter_description(&mut self, body: &mut [u8]) -> Option<()> {
        let mut types = Vec::new();
        each(body, |server| {
            types.push(server);
            self.types.heard(server)
        })?;
        // Its results come next.
        let Some((0, Described::Statement(name))) = self.described.front() else { return None };
        keep(&mut self.statements, name, own(types));
        Some(())
    }

    fn parse(&mut self, body: &mut [u8]) -> Option<()> {
        let mut types = Vec::new();
        retyped(body, |said| {
            let server = self.types.said(said);
            types.push(server);
            server
        })?;
        let (name, _) = read_text(body)?;
        keep(&mut self.statements, name, own(types));
        // What they are now, only a description tells.
        keep(&mut self.results, name, Vec::new());
        Some(())
    }

    fn bind(&mut self, body: &mut [u8]) -> Option<()> {
        let here = self.here.clone()?;
        let (portal, rest) = read_text(body)?;
        let (name, rest) = read_text(rest)?;
        let (portal, name): (Box<[u8]>, Box<[u8]>) = (portal.into(), name.into());
        let types = self.statements.get(&name).map_or(&[][..], Vec::as_slice);
        let at = body.len() - rest.len();
        let (formats, rest) = Formats::read(&mut body[at..])?;
        let (count, mut rest) = rest.split_first_chunk_mut()?;
        for place in 0..usize::from(u16::from_be_bytes(*count)) {
            let (value, after) = sized(rest)?;
            if let Some(of) = types.get(place)
                && formats.are_binary(place)
            {
                let _ = self.value(value, here.shape(*of), &here, To::Server, DEEPEST);
            }
            rest = after;
        }
        let (formats, _) = Formats::read(rest)?;
        let results = self.results.get(&name).map_or(&[][..], Vec::as_slice);
        let binary = results.iter().filter(|(place, _)| formats.are_binary(*place)).copied().collect();
        keep(&mut self.portals, &portal, binary);
        Some(())
    }

    /// Exchanges the numbers inside of a value in binary; `shape` is what it is to the server.
    fn value(&self, value: &mut [u8], shape: Shape, here: &Catalogue, to: To, deep: usize) -> Option<()> {
        let deep = deep.checked_sub(1)?;
        match shape {
            Shape::Array(element) => {
                // Dimensions, flags, the elements' type; each dimension's size and first place.
                let (dimensions, rest) = value.split_first_chunk_mut()?;
                let dimensions = usize::try_from(i32::from_be_bytes(*dimensions)).ok()?;
                exchange(rest.get_mut(4..8)?, |was| match to {
                    _ if was < FIRST_OWN => was,
                    To::Server => element,
                    To::Client => self.types.client(was),
                })?;
                let shape = here.shape(element);
                if shape == Shape::Plain {
                    return Some(());
                }
                let mut rest = rest.get_mut(8 + dimensions.checked_mul(8)?..)?;
                while !rest.is_empty() {
                    let (one, after) = sized(rest)?;
                    let _ = self.value(one, shape, here, to, deep);
                    rest = after;
                }
            }
            Shape::Composite => {
                let mut rest = value.get_mut(4..)?;
                while !rest.is_empty() {
                    let (of, after) = rest.split_at_mut_checked(4)?;
                    let mut server = 0;
                    exchange(of, |was| match to {
                        To::Server => {
                            server = self.types.servers.get(&was).copied().unwrap_or(was);
                            server
                        }
                        To::Client => {
                            server = was;
                            self.types.client(was)
                        }
                    })?;
                    let (one, after) = sized(after)?;
                    let _ = self.value(one, here.shape(server), here, to, deep);
                    rest = after;
                }
            }
            Shape::Plain | Shape::Domain(_) => {}
        }
        Some(())
    }
}

/// Formats of values, as a Bind message has them.
struct Formats(Vec<bool>);

impl Formats {
    /// And what follows them.
    fn read(bytes: &mut [u8]) -> Option<(Self, &mut [u8])> {
        let (count, rest) = bytes.split_first_chunk_mut()?;
        let (formats, rest) = rest.split_at_mut_checked(2 * usize::from(u16::from_be_bytes(*count)))?;
        Some((Self(formats.as_chunks().0.iter().map(|format: &[u8; 2]| *format == [0, 1]).collect()), rest))
    }

    /// One is every value's; none is text.
    fn are_binary(&self, place: usize) -> bool {
        let place = if self.0.len() == 1 { 0 } else { place };
        self.0.get(place).is_some_and(|binary| *binary)
    }
}

/// A value behind its length, and what follows it; NULL is an empty one.
fn sized(bytes: &mut [u8]) -> Option<(&mut [u8], &mut [u8])> {
    let (length, after) = bytes.split_first_chunk_mut()?;
    after.split_at_mut_checked(usize::try_from(i32::from_be_bytes(*length)).unwrap_or(0))
}

/// Types of which one is the database's own; otherwise none.
fn own(types: Vec<u32>) -> Vec<u32> {
    if types.iter().all(|number| *number < FIRST_OWN) { Vec::new() } else { types }
}

/// Keeps what a name stands for now; of nothing there is nothing to keep.
fn keep<T>(kept: &mut HashMap<Box<[u8]>, Vec<T>>, name: &[u8], now: Vec<T>) {
    if now.is_empty() {
        if !kept.is_empty() {
            kept.remove(name);
        }
    } else if kept.len() < STATEMENTS || kept.contains_key(name) {
        kept.insert(name.into(), now);
    }
}

/// A unit is answered: its own are over, the others one nearer.
fn nearer<T>(queue: &mut VecDeque<(usize, T)>) {
    queue.retain_mut(|(before, _)| {
        let later = *before > 0;
        *before = before.saturating_sub(1);
        later
    });
}

/// Puts another number in the place of one.
fn exchange(place: &mut [u8], other: impl FnOnce(u32) -> u32) -> Option<()> {
    let place = place.first_chunk_mut()?;
    *place = other(u32::from_be_bytes(*place)).to_be_bytes();
    Some(())
}

/// Replaces the types in a Parse message's body: `there` says by what.
pub fn retyped(parse: &mut [u8], there: impl FnMut(u32) -> u32) -> Option<()> {
    let (_, rest) = read_text(parse)?;
    let (_, rest) = read_text(rest)?;
    let at = parse.len() - rest.len();
    each(&mut parse[at..], there)
}

/// Replaces each number of a list behind its length: `other` says by what.
fn each(list: &mut [u8], mut other: impl FnMut(u32) -> u32) -> Option<()> {
    let (count, numbers) = list.split_first_chunk_mut()?;
    let count = usize::from(u16::from_be_bytes(*count));
    for number in numbers.as_chunks_mut().0.iter_mut().take(count) {
        *number = other(u32::from_be_bytes(*number)).to_be_bytes();
    }
    Some(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::super::message;
    use super::*;

    /// Types and a table of each name, numbered as they are told.
    fn catalogue(named: &[(&str, u32)]) -> Arc<Catalogue> {
        let mut catalogue = Catalogue::default();
        for (name, number) in named {
            catalogue.take("plain", *number, "public", name, 0);
            catalogue.take("relation", number + 1000, "public", name, 0);
        }
        Arc::new(catalogue)
    }

    /// A row of one column of this type and table.
    fn described(oids: &mut Oids, of: u32, table: u32) -> (u32, u32) {
        let mut body = b"\0\x01column\0".to_vec();
        body.extend(table.to_be_bytes());
        body.extend([0, 1]);
        body.extend(of.to_be_bytes());
        body.extend([0; 8]);
        oids.heard(b'T', &mut body);
        oids.heard(b'C', b"SELECT 1\0".to_vec().as_mut());
        let number = |at: usize| u32::from_be_bytes(*body[at..].first_chunk().unwrap());
        (number(15), number(9))
    }

    /// The types of a Parse message as the server gets them.
    fn parsed(oids: &mut Oids, name: &str, types: &[u32]) -> Vec<u32> {
        let mut out = Vec::new();
        message::parse(&mut out, name.as_bytes(), b"SELECT $1", types);
        oids.said(b'P', &mut out[5..], 0);
        let at = out.len() - 4 * types.len();
        out[at..].as_chunks().0.iter().map(|number| u32::from_be_bytes(*number)).collect()
    }

    #[test]
    fn a_client_keeps_the_numbers_that_it_was_told() {
        let (a, b) = (
            catalogue(&[("color", 16400), ("size", 16410)]),
            catalogue(&[("size", 16390), ("color", 16395)]),
        );
        let mut oids = Oids::default();
        assert_eq!(described(&mut oids, 16400, 17400), (16400, 17400));
        assert_eq!(parsed(&mut oids, "", &[23, 16410]), [23, 16410]);
        for _ in 0..2 {
            oids.moved(&a, &b);
            assert_eq!(described(&mut oids, 16395, 17395), (16400, 17400));
            assert_eq!(described(&mut oids, 25, 1259), (25, 1259));
            assert_eq!(described(&mut oids, 16390, 0), (16410, 0), "the client has said so itself");
            assert_eq!(parsed(&mut oids, "", &[16410, 16400, 0, 23]), [16390, 16395, 0, 23]);
            oids.moved(&b, &a);
            assert_eq!(described(&mut oids, 16400, 17400), (16400, 17400));
            assert_eq!(parsed(&mut oids, "", &[16410]), [16410]);
        }
    }

    #[test]
    fn a_number_that_the_client_knows_as_something_else_is_never_told() {
        let (a, b) = (
            catalogue(&[("color", 16400), ("size", 16410)]),
            catalogue(&[("size", 16400), ("color", 16410)]),
        );
        let mut oids = Oids::default();
        assert_eq!(described(&mut oids, 16400, 0).0, 16400);
        oids.moved(&a, &b);
        let (size, _) = described(&mut oids, 16400, 0);
        assert!(size > 4_000_000_000, "{size} is no cluster's");
        assert_eq!(described(&mut oids, 16400, 0).0, size);
        assert_eq!(parsed(&mut oids, "", &[size, 16400]), [16400, 16410]);
        // Back where it came from each is still what the client was told.
        oids.moved(&b, &a);
        assert_eq!(described(&mut oids, 16400, 0).0, 16400);
        assert_eq!(described(&mut oids, 16410, 0).0, size);
    }

    #[test]
    fn what_is_not_there_any_more_is_left_to_the_server() {
        let (a, b) = (catalogue(&[("color", 16400)]), catalogue(&[("size", 16400)]));
        let mut oids = Oids::default();
        described(&mut oids, 16400, 0);
        oids.moved(&a, &b);
        assert_eq!(parsed(&mut oids, "", &[16400]), [0]);
        assert_ne!(described(&mut oids, 16400, 0).0, 16400);
    }

    #[test]
    fn numbers_in_rows_are_learned_from_either_format() {
        let (a, b) = (
            catalogue(&[("color", 16400), ("size", 16410)]),
            catalogue(&[("color", 16500), ("size", 16510)]),
        );
        for binary in [false, true] {
            let mut oids = Oids::default();
            let mut body =
                b"\0\x02a\0\0\0\0\0\0\0\0\0\0\x19\0\0\0\0\0\0\0\0b\0\0\0\0\0\0\0\0\0\0\x1a\0\0\0\0\0\0\0"
                    .to_vec();
            body.push(u8::from(binary));
            oids.heard(b'T', &mut body);
            assert!(oids.reads_rows());
            let row =
                |number: &[u8]| [b"\0\x02\xff\xff\xff\xff\0\0\0", &[number.len() as u8][..], number].concat();
            for (text, number) in [("16400", 16400_u32), ("16410", 16410)] {
                let (text, number) = (text.as_bytes(), number.to_be_bytes());
                oids.heard(b'D', &mut row(if binary { &number } else { text }));
            }
            oids.heard(b'C', &mut b"SELECT 2\0".to_vec());
            assert!(!oids.reads_rows());
            oids.moved(&a, &b);
            assert_eq!(described(&mut oids, 16500, 0).0, 16400);
            assert_eq!(described(&mut oids, 16510, 0).0, 16410);
        }
    }

    #[test]
    fn parameters_belong_to_the_statement_that_was_asked_for() {
        let mut oids = Oids::default();
        let ask = |oids: &mut Oids, name: &str, owed| {
            oids.said(b'D', format!("S{name}\0").into_bytes().as_mut(), owed);
        };
        let answer = |oids: &mut Oids, of: u32| {
            oids.heard(b't', &mut [&[0, 1], &of.to_be_bytes()[..]].concat());
            oids.heard(b'n', &mut []);
        };
        // Two in a unit, of which the second fails, and one in the next, sent before either is answered.
        ask(&mut oids, "one", 0);
        ask(&mut oids, "two", 0);
        ask(&mut oids, "three", 1);
        answer(&mut oids, 16400);
        oids.ready();
        answer(&mut oids, 16401);
        oids.ready();
        answer(&mut oids, 16402);
        let known = |name: &str| oids.statements.get(name.as_bytes()).map(Vec::as_slice);
        assert_eq!(
            (known("one"), known("two"), known("three")),
            (Some(&[16400][..]), None, Some(&[16401][..]))
        );
        // Prepared anew, with nothing of the database's own.
        parsed(&mut oids, "one", &[23]);
        assert!(!oids.statements.contains_key(&b"one"[..]));
    }

    #[test]
    fn a_client_that_learns_everything_is_not_remembered_for_ever() {
        let mut oids = Oids::default();
        for number in 0..5000 {
            assert_eq!(described(&mut oids, FIRST_OWN + number, 0).0, FIRST_OWN + number);
        }
        assert_eq!(oids.types.servers.len(), MOST);
    }

    proptest! {
        /// Before a move nothing is changed, whatever passes; after it nothing panics.
        #[test]
        fn any_bodies_pass(
            bodies in prop::collection::vec((any::<bool>(), prop::sample::select(b"TDtCZPDBE".to_vec()),
                prop::collection::vec(prop::sample::select(vec![0_u8, 0, 0, 0, 1, 2, 26, 64, 65, b'S', 255]), 0..60)), 1..20),
        ) {
            let mut oids = Oids::default();
            let pass = |oids: &mut Oids| {
                let before = bodies.clone();
                let mut after = bodies.clone();
                for (ours, tag, body) in &mut after {
                    if *ours { oids.said(*tag, body, 0) } else { oids.heard(*tag, body) }
                }
                before == after
            };
            prop_assert!(pass(&mut oids));
            let mut there = Catalogue::default();
            for (kind, number, of) in [("array", 16384, 16448), ("composite", 16448, 0), ("domain", 16449, 16384)] {
                there.take(kind, number, "public", kind, of);
            }
            let there = Arc::new(there);
            oids.moved(&there, &there);
            pass(&mut oids);
        }
    }
}
