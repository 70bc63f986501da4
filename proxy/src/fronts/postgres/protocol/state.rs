//! What a session has that a new one has not: asked of the server between two transactions, and said again to another.
//!
//! The server knows it exactly: settings with source `session`, the role, prepared statements, channels listened to. What it does
//! not list are custom settings, whose names must be known ([`super::names`]), and how often an advisory lock was taken, which is counted
//! ([`count_locks`]). What cannot be carried elsewhere is named in [`State::stuck`]: temporary objects, cursors WITH HOLD. Nobody
//! can ask for `currval`, a seed, or what a procedural language keeps; using those after a move is an error or begins anew.

use std::sync::Arc;

use super::frame::HEADER;
use super::oids::{Catalogue, FIRST_OWN, retyped};
use super::{message, names};

/// Name of the statement that asks; the client's unnamed one stays (a portal of its own it has none between transactions).
const OURS: &str = "_godwit_state";

/// Nothing of the session's `search_path` is looked at. `$1`: names of custom settings, `$2`: who logged in,
/// `$3`: what was asked before. A text of a prepared statement is asked for up to 1 MiB; the front's own are no longer where it counts. An extension's setting has a value in every session; as any other it is the session's where that has set it.
const ASK: &str = "\
WITH s AS MATERIALIZED (SELECT name, setting, source FROM pg_catalog.pg_settings) \
SELECT 'setting', s.name, s.setting, '' FROM s \
 WHERE s.source OPERATOR(pg_catalog.=) 'session' AND s.name OPERATOR(pg_catalog.<>) ALL \
 (ARRAY['transaction_isolation', 'transaction_read_only', 'transaction_deferrable', 'role', 'session_authorization']) \
 AND s.name OPERATOR(pg_catalog.<>) ALL ($3::pg_catalog.text[]) \
UNION ALL SELECT CASE WHEN n.is_long THEN 'stuck' ELSE 'setting' END, CASE WHEN n.is_long THEN 'a setting of more than 1 MiB' ELSE n.name END, \
 CASE WHEN n.is_long THEN n.name ELSE pg_catalog.current_setting(n.name, true) END, '' \
 FROM (SELECT name, pg_catalog.octet_length(pg_catalog.current_setting(name, true)) OPERATOR(pg_catalog.>) 1048576 AS is_long \
 FROM pg_catalog.unnest($1::pg_catalog.text[]) u(name)) n WHERE n.is_long IS NOT NULL \
 AND NOT EXISTS (SELECT FROM s WHERE pg_catalog.lower(s.name) OPERATOR(pg_catalog.=) pg_catalog.lower(n.name)) \
UNION ALL SELECT 'user', session_user::pg_catalog.text, '', '' \
 WHERE session_user::pg_catalog.text OPERATOR(pg_catalog.<>) $2::pg_catalog.text \
UNION ALL SELECT 'role', pg_catalog.current_setting('role'), '', '' \
 WHERE pg_catalog.current_setting('role') OPERATOR(pg_catalog.<>) 'none' \
UNION ALL SELECT CASE WHEN p.is_long THEN 'stuck' WHEN p.from_sql THEN 'prepare' ELSE 'parse' END, \
 CASE WHEN p.is_long THEN 'a prepared statement of more than 1 MiB' ELSE p.name END, \
 CASE WHEN p.is_long THEN p.name ELSE p.statement END, \
 pg_catalog.array_to_string(p.parameter_types::pg_catalog.oid[], ',') \
 FROM (SELECT name, statement, from_sql, parameter_types, pg_catalog.octet_length(statement) OPERATOR(pg_catalog.>) 1048576 \
 AND pg_catalog.left(name, 8) OPERATOR(pg_catalog.<>) '_godwit_' AS is_long FROM pg_catalog.pg_prepared_statements) p \
 WHERE p.name OPERATOR(pg_catalog.<>) '_godwit_state' \
UNION ALL SELECT 'channel', c, '', '' FROM pg_catalog.pg_listening_channels() c \
UNION ALL SELECT 'stuck', 'a temporary object', c.relname::pg_catalog.text, '' FROM pg_catalog.pg_class c \
 WHERE c.relnamespace OPERATOR(pg_catalog.=) pg_catalog.pg_my_temp_schema() \
 AND c.relkind OPERATOR(pg_catalog.=) ANY (ARRAY['r', 'p', 'v', 'S', 'm', 'f', 'c']::pg_catalog.\"char\"[]) \
UNION ALL SELECT 'stuck', 'a temporary object', f.proname::pg_catalog.text, '' FROM pg_catalog.pg_proc f \
 WHERE f.pronamespace OPERATOR(pg_catalog.=) pg_catalog.pg_my_temp_schema() \
UNION ALL SELECT 'stuck', 'a temporary object', t.typname::pg_catalog.text, '' FROM pg_catalog.pg_type t \
 WHERE t.typnamespace OPERATOR(pg_catalog.=) pg_catalog.pg_my_temp_schema() \
 AND t.typtype OPERATOR(pg_catalog.=) ANY (ARRAY['e', 'd', 'r']::pg_catalog.\"char\"[]) \
UNION ALL SELECT 'stuck', 'a cursor WITH HOLD', k.name, '' FROM pg_catalog.pg_cursors k WHERE k.is_holdable \
UNION ALL SELECT 'lock', CASE l.objsubid WHEN 1 \
 THEN ((l.classid::pg_catalog.int8 OPERATOR(pg_catalog.<<) 32) OPERATOR(pg_catalog.|) l.objid::pg_catalog.int8)::pg_catalog.text \
 ELSE pg_catalog.format('%s, %s', l.classid::pg_catalog.int4, l.objid::pg_catalog.int4) END, l.mode, '' FROM pg_catalog.pg_locks l \
 WHERE l.locktype OPERATOR(pg_catalog.=) 'advisory' AND l.pid OPERATOR(pg_catalog.=) pg_catalog.pg_backend_pid() AND l.granted";

/// Asks for the client's own limit, and lifts it for the rest of the unit.
const LIFT: &str = "\
SELECT CASE WHEN s.source OPERATOR(pg_catalog.=) 'session' THEN 'setting' ELSE 'lifted' END, s.name, s.setting, \
 pg_catalog.set_config(s.name, '0', true) FROM pg_catalog.pg_settings s WHERE s.name OPERATOR(pg_catalog.=) 'statement_timeout'";

/// What that asks for, as an array.
const BEFORE: &str = "{statement_timeout}";

/// A prepared statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    /// Its name, in the client's encoding.
    pub name: Vec<u8>,
    /// Its text; with `PREPARE name AS` before it if it was made so.
    pub text: Vec<u8>,
    /// Types of its parameters.
    pub types: Vec<u32>,
    /// Made by PREPARE, not by a Parse message.
    pub from_sql: bool,
}

/// An advisory lock of a session (<https://www.postgresql.org/docs/current/functions-admin.html#FUNCTIONS-ADVISORY-LOCKS>).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lock {
    /// Its key as an argument: `7`, or `1, 2`.
    key: String,
    shared: bool,
    /// How often it was taken, and has to be given back to be free; known once it was counted.
    times: u32,
}

impl Lock {
    /// None if it is not one of a kind that is known.
    fn read(key: &[u8], mode: &[u8]) -> Option<Self> {
        let key = std::str::from_utf8(key).ok()?;
        let numbers: Vec<&str> = key.split(", ").collect();
        let whole = match numbers[..] {
            [one] => one.parse::<i64>().is_ok(),
            [one, other] => one.parse::<i32>().is_ok() && other.parse::<i32>().is_ok(),
            _ => false,
        };
        let shared = match mode {
            b"ExclusiveLock" => false,
            b"ShareLock" => true,
            _ => return None,
        };
        whole.then(|| Self { key: key.to_owned(), shared, times: 1 })
    }

    /// A call of one of the functions for it, by the part of the name between `pg_` and its mode.
    fn call(&self, function: &str) -> String {
        let shared = if self.shared { "_shared" } else { "" };
        format!("pg_catalog.pg_{function}{shared}({})", self.key)
    }
}

/// What a session has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// Settings by name.
    pub settings: Vec<(Vec<u8>, Vec<u8>)>,
    /// SET SESSION AUTHORIZATION.
    pub user: Option<Vec<u8>>,
    /// SET ROLE.
    pub role: Option<Vec<u8>>,
    /// Prepared statements with a name.
    pub statements: Vec<Statement>,
    /// LISTEN.
    pub channels: Vec<Vec<u8>>,
    /// Advisory locks.
    pub locks: Vec<Lock>,
    /// The unnamed statement, as the client sent it (a whole Parse message).
    pub unnamed: Option<Vec<u8>>,
    /// What keeps it where it is: a phrase each.
    pub stuck: Vec<String>,
    /// By which catalogue the types of its statements are numbered, if that is known.
    pub catalogue: Option<Arc<Catalogue>>,
}

/// Writes the question; its answer ends with a ReadyForQuery. `lift`: it may take longer than `statement_timeout`.
pub fn ask(out: &mut Vec<u8>, custom: &[String], user: &str, lift: bool) {
    if lift {
        one(out, LIFT, &[]);
    }
    let known = if lift { BEFORE } else { "{}" };
    one(out, ASK, &[array(custom).as_bytes(), user.as_bytes(), known.as_bytes()]);
    message::sync(out);
}

/// Writes the question as a simple query: a replication connection takes no others.
pub fn ask_simply(out: &mut Vec<u8>, custom: &[String], user: &str, lift: bool) {
    let (before, known) = if lift { ([LIFT, "; "].concat(), BEFORE) } else { (String::new(), "{}") };
    let names = array(custom);
    let values = [("1", names.as_str()), ("2", user), ("3", known)];
    let mut parts = ASK.split('$');
    let mut sql = [before.as_str(), parts.next().unwrap_or_default()].concat().into_bytes();
    for part in parts {
        for (number, value) in values {
            if let Some(rest) = part.strip_prefix(number) {
                literal(&mut sql, value.as_bytes());
                sql.extend(rest.as_bytes());
            }
        }
    }
    message::query(out, &sql);
}

fn array(names: &[String]) -> String {
    let names: Vec<String> = names.iter().map(|name| format!("\"{name}\"")).collect();
    format!("{{{}}}", names.join(","))
}

/// A string in SQL, whatever `standard_conforming_strings` is.
fn literal(sql: &mut Vec<u8>, text: &[u8]) {
    sql.extend(b" E'");
    for byte in text {
        if matches!(byte, b'\'' | b'\\') {
            sql.push(*byte);
        }
        sql.push(*byte);
    }
    sql.push(b'\'');
}

/// Writes the question how often each of these locks was taken; its answer has a row of no meaning and then one for each of them, and
/// ends with a ReadyForQuery.
///
/// The server tells of no such number, but each unlock says whether there was something to unlock. So all are given back and taken
/// again, while a lock of the transaction with the same key keeps others from getting it in between. The last unlock of each leaves a
/// warning in the server's log ("you don't own a lock").
pub fn count_locks(out: &mut Vec<u8>, locks: &[Lock]) {
    let kept: Vec<String> = locks.iter().map(|lock| lock.call("advisory_xact_lock")).collect();
    // The client sees no warning, and its limit is not for this: what was given back must be taken again.
    let kept = format!(
        "SELECT pg_catalog.set_config('client_min_messages', 'error', true), \
         pg_catalog.set_config('statement_timeout', '0', true), {}",
        kept.join(", ")
    );
    one(out, &kept, &[]);
    for lock in locks {
        let (unlock, again) = (lock.call("advisory_unlock"), lock.call("advisory_lock"));
        let counted = format!(
            "WITH RECURSIVE freed(n, one) AS (SELECT 0, true UNION ALL SELECT n OPERATOR(pg_catalog.+) 1, {unlock} FROM freed WHERE one), \
             counted(n) AS MATERIALIZED (SELECT pg_catalog.max(n) FILTER (WHERE one) FROM freed) \
             SELECT n, (SELECT pg_catalog.count({again}) FROM pg_catalog.generate_series(1, n)) FROM counted"
        );
        one(out, &counted, &[]);
    }
    message::sync(out);
}

/// Writes one statement that is ours, without an end.
fn one(out: &mut Vec<u8>, sql: &str, values: &[&[u8]]) {
    // One that was canceled is still there.
    message::close_statement(out, OURS);
    message::parse(out, OURS.as_bytes(), sql.as_bytes(), &[]);
    message::bind(out, "", OURS, values);
    message::execute(out, "");
    message::close_statement(out, OURS);
}

/// Writes the question how isolated the transaction is that is open; its answer ends with a ReadyForQuery.
pub fn ask_isolation(out: &mut Vec<u8>) {
    one(out, "SELECT pg_catalog.current_setting('transaction_isolation')", &[]);
    message::sync(out);
}

/// A row of an answer that is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the server describes the session in an unknown way")]
pub struct Unreadable;

impl State {
    /// It has what another session might get, or miss, meanwhile.
    pub fn is_claimed(&self) -> bool {
        !self.locks.is_empty() || !self.channels.is_empty()
    }

    /// Takes one DataRow of the answer.
    pub fn take(&mut self, row: &[u8]) -> Result<(), Unreadable> {
        let values = message::row(row).ok_or(Unreadable)?;
        let [Some(kind), Some(name), second, third] = values[..] else { return Err(Unreadable) };
        let (second, third) = (second.unwrap_or_default(), third.unwrap_or_default());
        let name = || name.to_vec();
        match kind {
            b"setting" => self.settings.push((name(), second.to_vec())),
            b"user" => self.user = Some(name()),
            b"role" => self.role = Some(name()),
            b"lifted" => {}
            b"channel" => self.channels.push(name()),
            b"lock" => self.locks.push(Lock::read(&name(), second).ok_or(Unreadable)?),
            b"parse" | b"prepare" => self.statements.push(Statement {
                name: name(),
                text: second.to_vec(),
                types: types(third).ok_or(Unreadable)?,
                from_sql: kind == b"prepare",
            }),
            b"stuck" => {
                let what = String::from_utf8_lossy(values[1].unwrap_or_default()).into_owned();
                let which = String::from_utf8_lossy(second);
                self.stuck.push(if which.is_empty() { what } else { format!("{what} ({which})") });
            }
            _ => return Err(Unreadable),
        }
        Ok(())
    }

    /// Takes the rows of what [`count_locks`] asked.
    pub fn take_counts(&mut self, rows: &[Vec<u8>]) -> Result<(), Unreadable> {
        let (_, rows) =
            rows.split_first().filter(|(_, rows)| rows.len() == self.locks.len()).ok_or(Unreadable)?;
        for (lock, row) in self.locks.iter_mut().zip(rows) {
            let times = message::row(row)
                .and_then(|row| std::str::from_utf8(row.first().copied()??).ok()?.parse().ok());
            lock.times = times.ok_or(Unreadable)?;
        }
        Ok(())
    }

    /// Whether a statement has a parameter of a type that the cluster numbered itself.
    pub fn has_own_types(&self) -> bool {
        let types = self.statements.iter().flat_map(|statement| &statement.types);
        // The unnamed one is not looked into: most sessions have none.
        types.into_iter().any(|oid| *oid >= FIRST_OWN) || self.unnamed.is_some()
    }

    /// Whether there is nothing to say again.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// What texts are read by in a session with this state: the same bytes where it is the same.
    pub fn read_by(&self) -> Arc<[u8]> {
        let settings = self.settings.iter().filter(|(name, _)| names::is_read_by(name));
        let mut settings: Vec<_> =
            settings.map(|(name, value)| (name.to_ascii_lowercase(), &value[..])).collect();
        settings.sort();
        let mut out = Vec::new();
        for (name, value) in &settings {
            out.extend([name.as_slice(), b"=", *value, b"\0"].concat());
        }
        for (name, value) in [("user", &self.user), ("role", &self.role)] {
            if let Some(value) = value {
                out.extend([name.as_bytes(), b"=", value, b"\0"].concat());
            }
        }
        out.into()
    }

    /// Takes what another client of the same connection can be rid of or given: settings, session user and role. What is left keeps
    /// the client on its connection.
    #[must_use]
    pub fn take_profile(&mut self) -> Self {
        let mut settings = std::mem::take(&mut self.settings);
        // Where a custom setting was once set, the server cannot unset it: it is empty from then on.
        settings.retain(|(name, value)| !(value.is_empty() && name.contains(&b'.')));
        settings.sort();
        Self { settings, user: self.user.take(), role: self.role.take(), ..Self::default() }
    }

    /// Writes what brings a session that has been another client's to the state of a fresh one; an error there says that it could not.
    pub fn reset(out: &mut Vec<u8>) -> Step {
        message::query(out, b"RESET SESSION AUTHORIZATION; RESET ROLE; RESET ALL");
        Step::Reset
    }

    /// Writes what brings a fresh replication connection to these settings, session user and role, by simple queries.
    pub fn replay_simply(&self, out: &mut Vec<u8>) -> Vec<Step> {
        let (encoding, others): (Vec<_>, Vec<_>) =
            self.settings.iter().partition(|(name, _)| name == b"client_encoding");
        let pairs = |those: Vec<&'_ (Vec<u8>, Vec<u8>)>| -> Vec<(Vec<u8>, Vec<u8>)> {
            those.into_iter().cloned().collect()
        };
        let who = [("session_authorization", &self.user), ("role", &self.role)];
        let who = who.into_iter().filter_map(|(name, who)| Some((name.as_bytes().to_vec(), who.clone()?)));
        let groups =
            [(pairs(encoding), Step::Settings), (pairs(others), Step::Settings), (who.collect(), Step::Role)];
        let mut steps = Vec::new();
        for (settings, step) in groups {
            let mut sql = Vec::new();
            for (name, value) in &settings {
                sql.extend(if sql.is_empty() { &b"SELECT"[..] } else { b"," });
                sql.extend(b" pg_catalog.set_config(");
                literal(&mut sql, name);
                sql.push(b',');
                literal(&mut sql, value);
                // What is set may be long, and is not to come back.
                sql.extend(b", false) IS NULL");
            }
            if !sql.is_empty() {
                message::query(out, &sql);
                steps.push(step);
            }
        }
        steps
    }

    /// Writes what brings a fresh session to this state, and what each ReadyForQuery of the answer is for; an error there says
    /// that this could not be carried. The last step may fail: the client's next use of it is an error then, as it was before.
    /// `there`: how types are numbered where it is said, if that is known.
    pub fn replay(&self, out: &mut Vec<u8>, there: Option<&Catalogue>) -> Vec<Step> {
        let mut steps = Vec::new();
        // Of a type whose number is not known the server finds it as it did the first time.
        let number = |oid: u32| match (&self.catalogue, there) {
            _ if oid < FIRST_OWN => oid,
            (Some(here), Some(there)) => here.type_in(oid, there).unwrap_or(0),
            _ => 0,
        };
        // What is sent is in the client's encoding; it counts from here on.
        let (encoding, others): (Vec<_>, Vec<_>) =
            self.settings.iter().partition(|(name, _)| name == b"client_encoding");
        // Its limit is for its own statements, not for these.
        let (limit, others): (Vec<_>, Vec<_>) =
            others.into_iter().partition(|(name, _)| name == b"statement_timeout");
        let settings = |out: &mut Vec<u8>, steps: &mut Vec<Step>, group: &[&(Vec<u8>, Vec<u8>)]| {
            if !group.is_empty() {
                set(out, group.iter().map(|(name, value)| (&name[..], &value[..])));
                steps.push(Step::Settings);
            }
        };
        settings(out, &mut steps, &encoding);
        settings(out, &mut steps, &others);
        let user = self.user.iter().map(|user| (&b"session_authorization"[..], &user[..]));
        let role = self.role.iter().map(|role| (&b"role"[..], &role[..]));
        if self.user.is_some() || self.role.is_some() {
            set(out, user.chain(role));
            steps.push(Step::Role);
        }
        for statement in &self.statements {
            if statement.from_sql {
                // The text is all that the client sent with the PREPARE. As a statement of its own the server refuses it if
                // it is more than that: nothing is done twice.
                message::parse(out, b"", &statement.text, &[]);
                message::bind(out, "", "", &[]);
                message::execute(out, "");
                message::sync(out);
            } else {
                let types: Vec<u32> = statement.types.iter().map(|oid| number(*oid)).collect();
                message::parse(out, &statement.name, &statement.text, &types);
                message::sync(out);
            }
            steps.push(Step::Statement(String::from_utf8_lossy(&statement.name).into_owned()));
        }
        for lock in &self.locks {
            // Nobody is waited for: that another session has it is an answer.
            let sql = format!(
                "SELECT pg_catalog.bool_and({}) FROM pg_catalog.generate_series(1, {})",
                lock.call("try_advisory_lock"),
                lock.times
            );
            message::parse(out, b"", sql.as_bytes(), &[]);
            message::bind(out, "", "", &[]);
            message::execute(out, "");
            message::sync(out);
            steps.push(Step::Lock(lock.key.clone()));
        }
        for channel in &self.channels {
            let mut sql = b"LISTEN \"".to_vec();
            for byte in channel {
                sql.push(*byte);
                if *byte == b'"' {
                    sql.push(b'"');
                }
            }
            sql.push(b'"');
            message::query(out, &sql);
            steps.push(Step::Channel(String::from_utf8_lossy(channel).into_owned()));
        }
        settings(out, &mut steps, &limit);
        if let Some(parse) = &self.unnamed {
            let at = out.len() + HEADER;
            out.extend(parse);
            // A message of ours: it was whole when it came.
            let _ = out.get_mut(at..).and_then(|body| retyped(body, number));
            message::sync(out);
            steps.push(Step::Unnamed);
        }
        steps
    }
}

/// A part of a replay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Another client's settings and role are gone.
    Reset,
    /// Settings.
    Settings,
    /// Session user and role.
    Role,
    /// A prepared statement.
    Statement(String),
    /// An advisory lock; its row says whether the session has it.
    Lock(String),
    /// A channel.
    Channel(String),
    /// The unnamed statement.
    Unnamed,
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Reset => write!(f, "the end of another client's settings"),
            Self::Settings => write!(f, "its settings"),
            Self::Role => write!(f, "its role"),
            Self::Statement(name) => write!(f, "the prepared statement {name:?}"),
            Self::Lock(key) => write!(f, "the advisory lock {key}"),
            Self::Channel(name) => write!(f, "LISTEN {name:?}"),
            Self::Unnamed => write!(f, "the unnamed statement"),
        }
    }
}

fn set<'a>(out: &mut Vec<u8>, settings: impl Iterator<Item = (&'a [u8], &'a [u8])>) {
    message::parse(out, b"", b"SELECT pg_catalog.set_config($1, $2, false) IS NULL", &[25, 25]);
    for (name, value) in settings {
        message::bind(out, "", "", &[name, value]);
        message::execute(out, "");
    }
    message::sync(out);
}

fn types(text: &[u8]) -> Option<Vec<u32>> {
    let text = std::str::from_utf8(text).ok()?;
    text.split(',').filter(|oid| !oid.is_empty()).map(|oid| oid.parse().ok()).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::fronts::postgres::protocol::frame::{Framer, Piece};

    fn row(values: [&str; 4]) -> Vec<u8> {
        let mut body = 4_u16.to_be_bytes().to_vec();
        for value in values {
            body.extend((value.len() as u32).to_be_bytes());
            body.extend(value.as_bytes());
        }
        body
    }

    fn tags(bytes: &[u8]) -> String {
        let (mut framer, mut at, mut tags) = (Framer::default(), 0, String::new());
        while let Ok(Piece::Whole(tag, count)) = framer.next(&bytes[at..], 0) {
            tags.push(char::from(tag));
            at += count;
        }
        assert_eq!(at, bytes.len());
        tags
    }

    #[test]
    fn a_state_is_said_again_in_an_order_that_works() {
        let mut state = State::default();
        assert!(state.is_empty());
        for values in [
            ["setting", "work_mem", "65536", ""],
            ["setting", "client_encoding", "LATIN1", ""],
            ["setting", "statement_timeout", "200", ""],
            ["role", "clerk", "", ""],
            ["parse", "s1", "SELECT $1, $2", "23,16400"],
            ["prepare", "p1", "PREPARE p1 AS SELECT 1", ""],
            ["lock", "-7", "ExclusiveLock", ""],
            ["lock", "1, -2", "ShareLock", ""],
            ["channel", "odd \"one\"", "", ""],
        ] {
            state.take(&row(values)).unwrap();
        }
        state.unnamed = Some(b"P\0\0\0\x08\0\0\0\0".to_vec());
        let mut out = Vec::new();
        let steps = state.replay(&mut out, None);
        assert_eq!(tags(&out), "PBESPBESPBESPSPBESPBESPBESQPBESPS");
        let steps: Vec<String> = steps.iter().map(ToString::to_string).collect();
        assert_eq!(
            steps,
            [
                "its settings",
                "its settings",
                "its role",
                "the prepared statement \"s1\"",
                "the prepared statement \"p1\"",
                "the advisory lock -7",
                "the advisory lock 1, -2",
                "LISTEN \"odd \\\"one\\\"\"",
                "its settings",
                "the unnamed statement"
            ]
        );
        let has = |part: &[u8]| out.windows(part.len()).any(|found| found == part);
        assert!(has(b"bool_and(pg_catalog.pg_try_advisory_lock_shared(1, -2)) FROM pg_catalog.generate_series(1, 1)\0"));
        assert!(has(b"LISTEN \"odd \"\"one\"\"\"\0"));
        assert!(has(b"SELECT $1, $2\0\0\x02\0\0\0\x17\0\0\0\0"), "the cluster's own type is left open");
    }

    #[test]
    fn a_replication_connection_is_asked_and_told_by_simple_queries() {
        let mut out = Vec::new();
        ask_simply(&mut out, &[], "ann", true);
        let sql = String::from_utf8_lossy(&out);
        assert!(sql.contains("'statement_timeout'; WITH s AS"), "{sql}");
        assert!(sql.contains("<>) ALL ( E'{statement_timeout}'::"), "{sql}");
        out.clear();
        ask_simply(&mut out, &["app.x$2".to_owned()], "o'neill", false);
        assert_eq!(tags(&out), "Q");
        let sql = String::from_utf8_lossy(&out);
        assert!(sql.contains("unnest( E'{\"app.x$2\"}'::") && sql.contains(" E'o''neill'::"), "{sql}");
        let mut state = State::default();
        for values in [
            ["setting", "work_mem", "65536", ""],
            ["setting", "search_path", "\"a\\b\", 'c'", ""],
            ["setting", "client_encoding", "LATIN1", ""],
            ["role", "clerk", "", ""],
        ] {
            state.take(&row(values)).unwrap();
        }
        out.clear();
        assert_eq!(state.replay_simply(&mut out), [Step::Settings, Step::Settings, Step::Role]);
        let mut queries = Vec::new();
        for sql in [
            "SELECT pg_catalog.set_config( E'client_encoding', E'LATIN1', false) IS NULL",
            "SELECT pg_catalog.set_config( E'work_mem', E'65536', false) IS NULL, \
             pg_catalog.set_config( E'search_path', E'\"a\\\\b\", ''c''', false) IS NULL",
            "SELECT pg_catalog.set_config( E'role', E'clerk', false) IS NULL",
        ] {
            message::query(&mut queries, sql.as_bytes());
        }
        assert_eq!(String::from_utf8_lossy(&out), String::from_utf8_lossy(&queries));
    }

    #[test]
    fn texts_are_read_alike_where_what_they_are_read_by_is_the_same() {
        let of = |settings: &[(&str, &str)]| {
            let settings =
                settings.iter().map(|(name, value)| (name.as_bytes().into(), value.as_bytes().into()));
            State { settings: settings.collect(), ..State::default() }
        };
        assert!(of(&[("work_mem", "1"), ("app.tenant", "7")]).read_by().is_empty());
        let tokyo = of(&[("DateStyle", "ISO"), ("TimeZone", "Asia/Tokyo")]);
        let same = of(&[("application_name", "x"), ("datestyle", "ISO"), ("timezone", "Asia/Tokyo")]);
        assert_eq!(tokyo.read_by(), same.read_by());
        assert_ne!(tokyo.read_by(), of(&[("DateStyle", "ISO"), ("TimeZone", "UTC")]).read_by());
        let (user, role) = (Some(b"ann".to_vec()), Some(b"ann".to_vec()));
        let (user, role) = (State { user, ..State::default() }, State { role, ..State::default() });
        assert_ne!(user.read_by(), role.read_by());
    }

    #[test]
    fn what_cannot_be_carried_is_named() {
        let mut state = State::default();
        state.take(&row(["stuck", "a temporary object", "basket", ""])).unwrap();
        state.take(&row(["stuck", "a cursor WITH HOLD", "kept", ""])).unwrap();
        assert_eq!(state.stuck, ["a temporary object (basket)", "a cursor WITH HOLD (kept)"]);
        assert_eq!(state.take(&row(["other", "", "", ""])), Err(Unreadable));
        assert_eq!(state.take(&row(["parse", "", "", "x"])), Err(Unreadable));
        assert_eq!(state.take(b"\0\x01\0\0"), Err(Unreadable));
        for (key, mode) in [
            ("7); DROP", "ShareLock"),
            ("1, 2, 3", "ShareLock"),
            ("3000000000, 1", "ShareLock"),
            ("7", "RowShareLock"),
        ] {
            assert_eq!(state.take(&row(["lock", key, mode, ""])), Err(Unreadable), "{key} {mode}");
        }
    }

    #[test]
    fn locks_are_counted_in_one_unit() {
        let mut state = State::default();
        state.take(&row(["lock", "7", "ExclusiveLock", ""])).unwrap();
        state.take(&row(["lock", "1, 2", "ShareLock", ""])).unwrap();
        let mut out = Vec::new();
        count_locks(&mut out, &state.locks);
        assert_eq!(tags(&out), "CPBECCPBECCPBECS");
        let counts = |counts: &[&str]| counts.iter().map(|n| row([n, "", "", ""])).collect::<Vec<_>>();
        assert_eq!(state.take_counts(&counts(&["error", "3", "1"])), Ok(()));
        assert_eq!(state.locks.iter().map(|lock| lock.times).collect::<Vec<_>>(), [3, 1]);
        for rows in [&["error", "3"][..], &[], &["error", "3", "x"]] {
            assert_eq!(state.take_counts(&counts(rows)), Err(Unreadable));
        }
    }

    #[test]
    fn the_question_is_one_unit_and_leaves_nothing() {
        let mut out = Vec::new();
        ask(&mut out, &["app.tenant".to_owned()], "ann", false);
        assert_eq!(tags(&out), "CPBECS");
        out.clear();
        ask(&mut out, &["app.tenant".to_owned()], "ann", true);
        assert_eq!(tags(&out), "CPBECCPBECS");
    }
}
