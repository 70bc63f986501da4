//! Two clients that take turns on a connection, and a server that does as PostgreSQL does.

use std::collections::HashSet;

use proptest::prelude::*;

use super::super::frame::{Framer, Piece};
use super::*;

const DEALLOCATE_ALL: &str = "DEALLOCATE ALL";

/// What a server knows of statements: enough to tell right answers from wrong ones.
#[derive(Debug, Default)]
struct Server {
    named: HashMap<Vec<u8>, Vec<u8>>,
    unnamed: Option<Vec<u8>>,
    portal: Option<Vec<u8>>,
    /// How many it has prepared by a name.
    parsed: usize,
    skips: bool,
    /// An unnamed statement that is skipped leaves the one before: there nobody can tell whose, and an error is better than the wrong one.
    forgets: bool,
}

impl Server {
    /// As a client should see its own.
    fn own() -> Self {
        Self { forgets: true, ..Self::default() }
    }

    /// Its answers to these messages: type, and for a Bind the text of the statement that it found.
    fn take(&mut self, mut bytes: &[u8]) -> Vec<(u8, Vec<u8>)> {
        let mut answers = Vec::new();
        while let Ok(Piece::Whole(tag, count)) = Framer::default().next(bytes, 0) {
            let body = &bytes[HEADER..count];
            bytes = &bytes[count..];
            if self.skips && tag != b'S' {
                if self.forgets && (tag == b'P' && body[0] == 0 || tag == b'C' && body == b"S\0") {
                    self.unnamed = None;
                }
                continue;
            }
            let answer = match tag {
                b'P' => self.parse(body),
                b'B' => {
                    let (_, rest) = read_text(body).unwrap();
                    let (name, _) = read_text(rest).unwrap();
                    self.portal = self.find(name);
                    self.portal.clone().map(|text| (b'2', text))
                }
                b'E' => self.portal.clone().map(|text| {
                    if text == DEALLOCATE_ALL.as_bytes() {
                        self.named.clear();
                    }
                    (b'C', [&text[..], b"\0"].concat())
                }),
                b'D' => self.find(read_text(&body[1..]).unwrap().0).map(|text| (b't', text)),
                b'C' => {
                    let (name, _) = read_text(&body[1..]).unwrap();
                    if name.is_empty() {
                        self.unnamed = None;
                    } else {
                        self.named.remove(name);
                    }
                    Some((b'3', Vec::new()))
                }
                b'S' => {
                    (self.skips, self.portal) = (false, None);
                    Some((b'Z', b"I".to_vec()))
                }
                b'Q' => {
                    self.unnamed = None;
                    answers.push((b'C', body.to_vec()));
                    if body.starts_with(b"DISCARD ALL") {
                        self.named.clear();
                    }
                    Some((b'Z', b"I".to_vec()))
                }
                _ => None,
            };
            answers.push(answer.unwrap_or_else(|| {
                self.skips = true;
                (b'E', Vec::new())
            }));
        }
        assert!(bytes.is_empty(), "half a message");
        answers
    }

    fn parse(&mut self, body: &[u8]) -> Option<(u8, Vec<u8>)> {
        let (name, tail) = read_text(body).unwrap();
        let text = read_text(tail).unwrap().0.to_vec();
        if name.is_empty() {
            self.unnamed = None;
        }
        if text.starts_with(b"wrong") {
            return None;
        }
        if name.is_empty() {
            self.unnamed = Some(text);
        } else if self.named.contains_key(name) {
            return None;
        } else {
            self.named.insert(name.to_vec(), text);
            self.parsed += 1;
        }
        Some((b'1', Vec::new()))
    }

    fn find(&self, name: &[u8]) -> Option<Vec<u8>> {
        if name.is_empty() { self.unnamed.clone() } else { self.named.get(name).cloned() }
    }
}

/// A client, and what it would see had it a server of its own.
struct Client {
    statements: Statements,
    own: Server,
}

impl Client {
    fn new(registry: &Arc<Registry>, limit: usize) -> Self {
        let statements = Statements::new(Arc::clone(registry), limit);
        Self { statements, own: Server::own() }
    }

    /// Runs a unit on a shared connection: what its client sees of the answers.
    fn run(&mut self, server: &mut Server, has: &mut Has, unit: &[Vec<u8>]) -> Vec<(u8, Vec<u8>)> {
        self.pipeline(server, has, &[(unit.to_vec(), 0)])
    }

    /// The same of units that do not wait for each other; before each message of one so many answers have come.
    fn pipeline(
        &mut self,
        server: &mut Server,
        has: &mut Has,
        units: &[(Vec<Vec<u8>>, usize)],
    ) -> Vec<(u8, Vec<u8>)> {
        self.statements.take(std::mem::take(has));
        let (mut answers, mut seen) = (VecDeque::new(), Vec::new());
        for (unit, come) in units {
            if self.statements.unsettled {
                seen.extend(self.hear(answers.drain(..)));
            }
            let mut sent = Vec::new();
            for message in unit {
                let come = answers.len().min(*come);
                seen.extend(self.hear(answers.drain(..come)));
                let mut other = Vec::new();
                match self.statements.rewrite(message, true, &mut other).unwrap() {
                    Rewritten::Same => sent.extend(message),
                    Rewritten::Changed => sent.extend(other),
                }
                if matches!(message[0], b'S' | b'Q') {
                    self.statements.unit(message[0]);
                }
            }
            answers.extend(server.take(&sent));
        }
        seen.extend(self.hear(answers.drain(..)));
        *has = std::mem::take(&mut self.statements.has);
        assert!(self.statements.owed.is_empty(), "everything was answered");
        let thought: HashSet<_> =
            has.statements.keys().map(|id| format!("{PREFIX}{id}").into_bytes()).collect();
        assert_eq!(thought, server.named.keys().cloned().collect(), "what is thought to be there is");
        for prepared in
            lock(&self.statements.registry.known).by_hash.values().flatten().filter_map(Weak::upgrade)
        {
            let there = server.named.get(prepared.name.as_bytes());
            assert!(
                there.is_none_or(|text| prepared.tail.starts_with(text)),
                "{} is another statement",
                prepared.name
            );
        }
        seen
    }

    /// What its client sees of these answers.
    fn hear(&mut self, answers: impl Iterator<Item = (u8, Vec<u8>)>) -> Vec<(u8, Vec<u8>)> {
        answers.filter(|(tag, body)| !self.statements.heard(*tag, body)).collect()
    }
}

fn parse(name: &str, text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    message::parse(&mut out, name.as_bytes(), text.as_bytes(), &[23]);
    out
}

fn bind(name: &str) -> Vec<u8> {
    let mut out = Vec::new();
    message::bind(&mut out, "portal", name, &[b"value"]);
    out
}

fn describe(name: &str) -> Vec<u8> {
    let mut out = Vec::new();
    write(&mut out, b'D', |out| {
        out.push(b'S');
        message::text(out, name);
    });
    out
}

fn close(name: &str) -> Vec<u8> {
    let mut out = Vec::new();
    message::close_statement(&mut out, name);
    out
}

fn query(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    message::query(&mut out, text.as_bytes());
    out
}

fn execute() -> Vec<u8> {
    let mut out = Vec::new();
    write(&mut out, b'E', |out| out.extend(b"portal\0\0\0\0\0"));
    out
}

fn sync() -> Vec<u8> {
    let mut out = Vec::new();
    message::sync(&mut out);
    out
}

fn tags(answers: &[(u8, Vec<u8>)]) -> String {
    answers.iter().map(|(tag, _)| char::from(*tag)).collect()
}

#[test]
fn a_statement_follows_its_client() {
    let registry = Arc::new(Registry::default());
    let mut clients = [Client::new(&registry, 100), Client::new(&registry, 100)];
    let mut connections = [(Server::default(), Has::default()), (Server::default(), Has::default())];
    let mut run = |client: usize, connection: usize, unit: &[Vec<u8>]| {
        let (server, has) = &mut connections[connection];
        clients[client].run(server, has, unit)
    };
    assert_eq!(tags(&run(0, 0, &[parse("s", "SELECT 1"), sync()])), "1Z");
    assert_eq!(tags(&run(1, 0, &[parse("s", "SELECT 2"), sync()])), "1Z", "the same name, another statement");
    for connection in [0, 1] {
        for (client, text) in [(0, "SELECT 1"), (1, "SELECT 2")] {
            let answers = run(client, connection, &[bind("s"), describe("s"), sync()]);
            assert_eq!(tags(&answers), "2tZ");
            assert_eq!(answers[0].1, text.as_bytes());
        }
    }
    // One closes its own; the other's is the same text now, and stays.
    assert_eq!(tags(&run(1, 0, &[close("s"), parse("s", "SELECT 1"), sync()])), "31Z");
    assert_eq!(tags(&run(1, 1, &[close("s"), sync(), bind("s"), sync()])), "3ZEZ");
    assert_eq!(run(0, 0, &[bind("s"), sync()])[0].1, b"SELECT 1");
    // The unnamed one belongs to one client at a time.
    assert_eq!(tags(&run(0, 0, &[parse("", "SELECT 3"), sync()])), "1Z");
    assert_eq!(tags(&run(1, 0, &[bind(""), sync()])), "EZ");
    assert_eq!(run(0, 1, &[bind(""), sync()])[0], (b'2', b"SELECT 3".to_vec()));
    // DISCARD ALL takes the client's own, and the connection's.
    assert_eq!(tags(&run(0, 0, &[query("DISCARD ALL")])), "CZ");
    assert_eq!(tags(&run(0, 0, &[bind("s"), sync()])), "EZ");
    assert!(clients[0].statements.touched);
}

/// A time zone is in what became of a constant: one that has another must not get that.
#[test]
fn a_text_that_is_read_by_other_settings_is_another_statement() {
    let registry = Arc::new(Registry::default());
    let mut clients = [Client::new(&registry, 10), Client::new(&registry, 10), Client::new(&registry, 10)];
    let (mut server, mut has) = (Server::default(), Has::default());
    let (utc, tokyo): (Arc<[u8]>, Arc<[u8]>) = (b"UTC"[..].into(), b"Tokyo"[..].into());
    for (client, settings) in clients.iter_mut().zip([&utc, &tokyo, &utc]) {
        client.statements.are_read_by(Arc::clone(settings));
        assert_eq!(tags(&client.run(&mut server, &mut has, &[parse("s", "SELECT 1"), sync()])), "1Z");
    }
    let mut binds = |client: usize, has: &mut Has| {
        let statements = &mut clients[client].statements;
        statements.take(std::mem::take(has));
        let mut out = Vec::new();
        statements.rewrite(&bind("s"), true, &mut out).unwrap();
        while statements.owed.pop_front().is_some() {}
        *has = std::mem::take(&mut statements.has);
        let (tag, (_, rest)) = (out[0], read_text(&out[HEADER..]).unwrap());
        (char::from(tag), read_text(rest).unwrap().0.to_vec())
    };
    for (client, name) in [(0, "_godwit_1"), (1, "_godwit_2"), (2, "_godwit_1"), (1, "_godwit_2")] {
        assert_eq!(binds(client, &mut has), ('B', name.as_bytes().to_vec()), "{client}: nothing is prepared");
    }
    // One that sets another has its own prepared by that.
    clients[2].statements.are_read_by(tokyo);
    assert_eq!(clients[2].statements.known(b"s").unwrap().name, "_godwit_2");
    clients[0].statements.are_read_by(b"Rome"[..].into());
    assert_eq!(clients[0].run(&mut server, &mut has, &[bind("s"), sync()])[0].1, b"SELECT 1");
    assert_eq!(server.named.len(), 3);
}

/// `SET LOCAL`, or a function that sets it.
#[test]
fn what_was_prepared_while_something_else_was_set_is_prepared_again() {
    for (runs, reported, anew) in [
        ("SET LOCAL search_path = x", "", 1),
        ("SET LOCAL app.tenant = 7", "", 0),
        ("SELECT f()", "TimeZone\0UTC\0", 1),
        ("SELECT f()", "application_name\0x\0", 0),
        ("UPDATE users SET role = 'x'", "", 0),
    ] {
        let mut client = Client::new(&Arc::default(), 10);
        let (mut server, mut has) = (Server::default(), Has::default());
        client.run(&mut server, &mut has, &[parse("before", "SELECT 1"), sync()]);
        let within = [query(runs), parse("within", "SELECT 2"), bind("within"), bind("before"), sync()];
        client.run(&mut server, &mut has, &within);
        assert_eq!(server.parsed, 2, "{runs}: within its transaction it is what it is");
        client.statements.heard(b'S', reported.as_bytes());
        client.statements.has = std::mem::take(&mut has);
        if client.statements.touched {
            client.statements.asked();
        }
        has = std::mem::take(&mut client.statements.has);
        for _ in 0..2 {
            let answers = client.run(&mut server, &mut has, &[bind("within"), bind("before"), sync()]);
            assert_eq!(tags(&answers), "22Z");
            assert_eq!(server.parsed, 2 + anew, "{runs} {reported}");
        }
    }
}

/// PHP's PDO and psqlODBC take statements of the protocol away by SQL, which the server would refuse.
#[test]
fn what_sql_takes_away_is_taken_from_the_client() {
    let registry = Arc::new(Registry::default());
    let (mut statements, mut out) = (Statements::new(registry, 10), Vec::new());
    for name in ["pdo_stmt_00000001", "_PLAN0x55", "odd \"one\"", "all"] {
        statements.rewrite(&parse(name, "SELECT 1"), true, &mut out).unwrap();
    }
    let mut asked = |text: &str| {
        let mut out = Vec::new();
        let rewritten = statements.rewrite(&query(text), true, &mut out).unwrap();
        (rewritten == Rewritten::Changed).then(|| read_text(&out[HEADER..]).unwrap().0.to_vec())
    };
    let gone = DEALLOCATED.as_bytes();
    for left in [
        "DEALLOCATE other",
        "DEALLOCATE ALL",
        "deallocate pdo_stmt_00000001 now",
        "SELECT deallocate",
        "SELECT 'x'; DEALLOCATE pdo_stmt_00000001",
        "/* no */ DEALLOCATE pdo_stmt_00000001",
        "DEALLOCATEpdo_stmt_00000001",
        "DEALLOCATE \"PDO_stmt_00000001\"",
    ] {
        assert_eq!(asked(left), None, "{left}");
    }
    assert_eq!(asked("DEALLOCATE pdo_stmt_00000001").as_deref(), Some(gone));
    assert_eq!(asked("DEALLOCATE pdo_stmt_00000001"), None, "it is gone");
    let within = asked("SAVEPOINT s;DEALLOCATE \"_PLAN0x55\";RELEASE s").unwrap();
    assert_eq!(within, [&b"SAVEPOINT s;"[..], gone, b";RELEASE s"].concat());
    assert_eq!(asked("deallocate prepare \"odd \"\"one\"\"\" ").as_deref(), Some(gone));
    assert_eq!(asked("DEALLOCATE \"all\"").as_deref(), Some(gone));
}

#[test]
fn a_text_is_kept_once_whatever_it_is_read_by() {
    let registry = Registry::default();
    let of = |text: &[u8], tenant: u8| registry.get(text, &Arc::from([tenant]));
    let (one, two, other) = (of(b"SELECT 1\0\0\0", 1), of(b"SELECT 1\0\0\0", 2), of(b"SELECT 2\0\0\0", 1));
    assert_ne!(one.id, two.id);
    assert!(Arc::ptr_eq(&one.tail, &two.tail) && *one.tail != *other.tail);
    // Of those that nobody has any more nothing is kept.
    for number in 0..200_u8 {
        drop(of(&[b'x', number, 0, 0, 0], 1));
    }
    let known = lock(&registry.known);
    assert!(known.by_hash.len() < 80 && known.tails.len() < 80);
    assert!(known.tails.values().any(|tail| tail.ptr_eq(&Arc::downgrade(&one.tail))));
}

#[test]
fn nothing_goes_on_behind_a_reset_before_its_answer() {
    let (mut statements, mut out) = (Statements::new(Arc::default(), 10), Vec::new());
    let mut sent = |statements: &mut Statements, messages: &[Vec<u8>]| {
        for message in messages {
            statements.rewrite(message, true, &mut out).unwrap();
        }
    };
    sent(&mut statements, &[query("SELECT 1")]);
    statements.unit(b'Q');
    assert!(!statements.unsettled);
    sent(&mut statements, &[query("RESET ALL")]);
    statements.unit(b'Q');
    assert!(statements.unsettled);
    statements.heard(b'Z', b"I");
    assert!(statements.unsettled, "of what was sent before");
    statements.heard(b'Z', b"I");
    assert!(!statements.unsettled);
    // By a Bind, while an answer is still to come.
    sent(&mut statements, &[query("SELECT 1")]);
    statements.unit(b'Q');
    sent(&mut statements, &[parse("", "SET TimeZone TO DEFAULT"), bind(""), execute()]);
    for (tag, body) in [(b'Z', &b"I"[..]), (b'1', b""), (b'2', b"")] {
        statements.heard(tag, body);
        assert!(statements.unsettled);
    }
    sent(&mut statements, &[sync()]);
    statements.unit(b'S');
    assert!(statements.unsettled);
    statements.heard(b'Z', b"I");
    assert!(!statements.unsettled);
}

/// lib/pq prepares the unnamed statement in a unit of its own, after which others have the connection.
#[test]
fn what_may_leave_a_trace_is_told_when_it_runs() {
    let registry = Arc::new(Registry::default());
    let mut client = Client::new(&registry, 10);
    let (mut server, mut has) = (Server::default(), Has::default());
    let mut leaves = |units: &[&[Vec<u8>]]| {
        client.statements.touched = false;
        for unit in units {
            client.run(&mut server, &mut has, unit);
        }
        client.statements.touched
    };
    for name in ["", "s"] {
        let locks = parse(name, "SELECT pg_advisory_lock($1)");
        assert!(!leaves(&[&[locks.clone(), describe(name), sync()]]), "nothing has run");
        assert!(leaves(&[&[bind(name), sync()]]));
        assert!(leaves(&[&[bind(name), sync()]]), "each time");
        assert!(!leaves(&[&[close(name), parse(name, "SELECT 1"), bind(name), sync()]]));
    }
    // Of what comes in pieces the end is not seen.
    let (mut statements, mut out) = (Statements::new(registry, 10), Vec::new());
    for message in [query("SELECT 1"), parse("", "SELECT 1"), bind("")] {
        statements.touched = false;
        statements.rewrite(&message, message[0] == b'B', &mut out).unwrap();
        assert_eq!(statements.touched, message[0] != b'P');
    }
}

/// What is set under a name that is not known is not found when it is looked for.
#[test]
fn what_may_be_hidden_is_told_of_the_connection_that_it_runs_on() {
    let registry = Arc::new(Registry::default());
    let mut client = Client::new(&registry, 10);
    let mut hides = |unit: &[Vec<u8>]| {
        let (mut server, mut has) = (Server::default(), Has::default());
        client.run(&mut server, &mut has, unit);
        has.hides
    };
    assert!(!hides(&[query("SET app.tenant = '7'")]));
    assert!(hides(&[query("SET /* whose */ app.tenant = '7'")]));
    for name in ["", "s"] {
        assert!(!hides(&[parse(name, "SELECT set_config($1, '7', false)"), sync()]), "nothing has run");
        assert!(hides(&[bind(name), sync()]), "on another connection");
        assert!(!hides(&[
            close(name),
            parse(name, "SELECT set_config('app.tenant', $1, false)"),
            bind(name),
            sync()
        ]));
    }
}

#[test]
fn what_the_server_skipped_was_not_done() {
    let registry = Arc::new(Registry::default());
    let mut client = Client::new(&registry, 100);
    let (mut server, mut has) = (Server::default(), Has::default());
    let mut run = |unit: &[Vec<u8>]| client.run(&mut server, &mut has, unit);
    assert_eq!(tags(&run(&[parse("a", "SELECT 1"), sync()])), "1Z");
    let unit = [parse("b", "wrong"), close("a"), parse("c", "SELECT 3"), parse("a", "SELECT 4"), sync()];
    assert_eq!(tags(&run(&unit)), "EZ");
    assert_eq!(run(&[bind("a"), sync()])[0].1, b"SELECT 1", "it was not closed");
    assert_eq!(tags(&run(&[bind("b"), sync(), bind("c"), sync()])), "EZEZ");
    assert_eq!(tags(&run(&[parse("a", "SELECT 5"), sync()])), "EZ", "the name is taken");
    // One that cannot be prepared again tells its client so.
    server.named.clear();
    has = Has::default();
    client.statements.names.insert(b"bad"[..].into(), registry.get(b"wrong\0\0\0", &Arc::default()));
    assert_eq!(tags(&client.run(&mut server, &mut has, &[bind("bad"), sync()])), "EZ");
}

/// Npgsql resets a connection in front of the next command, in the same write.
#[test]
fn what_is_prepared_behind_a_reset_is_there() {
    let registry = Arc::new(Registry::default());
    let mut clients = [Client::new(&registry, 10), Client::new(&registry, 10)];
    let (mut server, mut has) = (Server::default(), Has::default());
    let unit = [parse("p", "SELECT 1"), bind("p"), sync()];
    let reset = [(vec![query("DISCARD ALL")], 0), (unit.to_vec(), 0)];
    for client in &mut clients {
        assert_eq!(tags(&client.pipeline(&mut server, &mut has, &reset)), "CZ12Z");
        assert_eq!(tags(&client.run(&mut server, &mut has, &[bind("p"), sync()])), "2Z");
        // The name was taken, and is prepared anew as something else.
        let anew = [(vec![query("DISCARD ALL")], 0), (vec![parse("p", "SELECT 2"), bind("p"), sync()], 0)];
        assert_eq!(tags(&client.pipeline(&mut server, &mut has, &anew)), "CZ12Z");
        assert_eq!(client.run(&mut server, &mut has, &[bind("p"), sync()])[0].1, b"SELECT 2");
    }
    // In one unit the front cannot tell; nobody else's statement becomes another by that.
    let all = [parse("", DEALLOCATE_ALL), bind(""), execute(), parse("p", "SELECT 3"), sync()];
    assert_eq!(tags(&clients[0].run(&mut server, &mut has, &all)), "12C1Z");
    assert_eq!(clients[1].run(&mut server, &mut has, &[bind("p"), sync()])[0].1, b"SELECT 2");
}

#[test]
fn a_copy_from_the_client_answers_no_sync_before_its_end() {
    let mut statements = Statements::new(Arc::default(), 3);
    let mut out = Vec::new();
    let mut say = |statements: &mut Statements, message: &[u8]| {
        out.clear();
        statements.rewrite(message, true, &mut out).unwrap();
        if matches!(message[0], b'S' | b'Q') {
            statements.unit(message[0]);
        }
    };
    // By Execute: the Sync behind it is not answered, the one after the data is.
    for message in [parse("", "COPY t FROM STDIN"), bind(""), sync()] {
        say(&mut statements, &message);
    }
    assert!(!statements.heard(b'1', b"") && !statements.heard(b'G', b""));
    say(&mut statements, &sync());
    assert!(!statements.heard(b'Z', b"I") && statements.owed.is_empty());
    // By a simple query it is one unit.
    say(&mut statements, &query("COPY t FROM STDIN"));
    assert!(!statements.heard(b'G', b"") && !statements.heard(b'Z', b"I"));
    assert!(statements.owed.is_empty());
}

#[test]
fn a_copy_that_is_sent_before_it_is_asked_for_answers_what_follows_it() {
    let mut statements = Statements::new(Arc::default(), 3);
    let say = |statements: &mut Statements, messages: &[Vec<u8>]| {
        for message in messages {
            statements.rewrite(message, true, &mut Vec::new()).unwrap();
            if matches!(message[0], b'S' | b'Q') {
                statements.unit(message[0]);
            }
        }
    };
    say(&mut statements, &[query("COPY t FROM STDIN")]);
    statements.copy_ends(false);
    say(&mut statements, &[parse("s", "SELECT 1"), sync()]);
    assert!(!statements.heard(b'G', b"") && !statements.heard(b'Z', b"I"));
    assert_eq!(statements.owed.len(), 2, "the statement and its Sync");
    assert!(!statements.heard(b'1', b"") && !statements.heard(b'Z', b"I") && statements.owed.is_empty());
    assert!(statements.names.contains_key(&b"s"[..]));
    // It copies nothing.
    say(&mut statements, &[query("SELECT 1")]);
    statements.copy_ends(false);
    say(&mut statements, &[query("SELECT 1")]);
    assert!(!statements.heard(b'Z', b"I") && statements.owed.len() == 1 && !statements.heard(b'Z', b"I"));
    // By Execute.
    say(&mut statements, &[parse("", "COPY t FROM STDIN"), bind(""), sync()]);
    statements.copy_ends(false);
    say(&mut statements, &[sync()]);
    assert!(!statements.heard(b'1', b"") && !statements.heard(b'G', b""));
    assert!(statements.owed.len() == 1 && !statements.heard(b'Z', b"I") && statements.owed.is_empty());
}

#[test]
fn a_connection_keeps_so_many() {
    let registry = Arc::new(Registry::default());
    let mut client = Client::new(&registry, 3);
    let (mut server, mut has) = (Server::default(), Has::default());
    for number in 0..10 {
        let name = format!("s{number}");
        let answers =
            client.run(&mut server, &mut has, &[parse(&name, &name), bind(&name), bind("s0"), sync()]);
        assert_eq!(tags(&answers), "122Z");
        assert!(server.named.len() <= 3 && has.statements.len() <= 3);
    }
    for number in 0..10 {
        let name = format!("s{number}");
        assert_eq!(client.run(&mut server, &mut has, &[bind(&name), sync()])[0].1, name.as_bytes());
    }
    // Nobody's statements are forgotten.
    drop(client);
    for number in 0..200 {
        registry.get(format!("{number}\0\0\0").as_bytes(), &Arc::default());
    }
    assert!(registry.known.lock().unwrap().by_hash.len() <= 66);
}

#[test]
fn a_long_message_is_renamed_by_its_beginning() {
    let registry = Arc::new(Registry::default());
    let mut client = Client::new(&registry, 3);
    let mut out = Vec::new();
    client.statements.rewrite(&parse("s", "SELECT 1"), true, &mut out).unwrap();
    let mut long = Vec::new();
    message::bind(&mut long, "", "s", &[&vec![b'x'; 50_000]]);
    let mut begun = Vec::new();
    client.statements.rewrite(&long[..20_000], false, &mut begun).unwrap();
    begun.extend(&long[20_000..]);
    let Ok(Piece::Whole(b'B', count)) = Framer::default().next(&begun, 0) else { panic!("no message") };
    assert_eq!(count, begun.len());
    assert!(begun[HEADER + 1..].starts_with(b"_godwit_1\0"));
    let too_long = client.statements.rewrite(&parse("t", "SELECT 2")[..10], false, &mut out);
    assert_eq!(too_long, Err(TooLong));
}

fn message_of() -> impl Strategy<Value = Vec<u8>> {
    let name = prop::sample::select(vec!["", "a", "b", "c"]);
    let text = prop::sample::select(vec!["SELECT 1", "SELECT 2", "SELECT 3", "wrong"]);
    prop_oneof![
        4 => (name.clone(), text).prop_map(|(name, text)| parse(name, text)),
        4 => name.clone().prop_map(bind),
        1 => name.clone().prop_map(describe),
        2 => name.prop_map(close),
    ]
}

fn unit() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let batch = prop::collection::vec(message_of(), 0..6).prop_map(|mut unit| {
        unit.push(sync());
        unit
    });
    // What is used behind it in its unit has a name that the client has closed before.
    let behind = prop_oneof![
        3 => Just(bind("d")),
        1 => prop::sample::select(vec!["a", "d"]).prop_map(close),
        1 => Just(bind("nobody")),
    ];
    let text = prop::sample::select(vec!["SELECT 1", "SELECT 4", "wrong"]);
    let takes_all = (text, prop::collection::vec(behind, 0..4)).prop_map(|(text, behind)| {
        let before = [close("d"), parse("", DEALLOCATE_ALL), bind(""), execute(), parse("d", text)];
        before.into_iter().chain(behind).chain([sync()]).collect()
    });
    prop_oneof![
        12 => batch,
        1 => Just(vec![query("SELECT 1")]),
        1 => Just(vec![query("DISCARD ALL")]),
        1 => takes_all,
    ]
}

proptest! {
    /// Whoever has which connection when, and however far answers are behind: each client sees what it would see alone with a server.
    #[test]
    fn each_sees_what_it_would_see_alone(
        turns in prop::collection::vec(
            (0..3_usize, 0..2_usize, prop::collection::vec((unit(), 0..3_usize), 1..5)),
            1..20,
        ),
        limit in 1..6_usize,
    ) {
        let registry = Arc::new(Registry::default());
        let mut clients: Vec<Client> = (0..3).map(|_| Client::new(&registry, limit)).collect();
        let mut connections = [(Server::default(), Has::default()), (Server::default(), Has::default())];
        for (client, connection, units) in turns {
            let client = &mut clients[client];
            let expected: Vec<_> = units.iter().flat_map(|(unit, _)| client.own.take(&unit.concat())).collect();
            let (server, has) = &mut connections[connection];
            let seen = client.pipeline(server, has, &units);
            prop_assert_eq!(seen, expected);
            let names: HashSet<_> = client.statements.names.keys().map(|name| name.to_vec()).collect();
            let own: HashSet<_> = client.own.named.keys().cloned().collect();
            prop_assert_eq!(names, own);
        }
    }
}
