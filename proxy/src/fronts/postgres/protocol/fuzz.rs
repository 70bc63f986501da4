//! What must hold for any bytes from a client or a database: the bodies of the fuzz targets in `proxy/fuzz`, and a short run of
//! each over its seeds in the ordinary tests.
//!
//! Each function takes arbitrary bytes. It may return early; it must not panic, hang or take memory that the bytes do not pay for.

use std::sync::Arc;

use super::frame::{Framer, HEADER, Malformed, Piece};
use super::message::{self, ServerError};
use super::oids::{Catalogue, Oids};
use super::scram::{self, Keys, Secret, Verifier};
use super::startup::{self, Opening};
use super::state::State;
use super::statements::{Rewritten, Statements, TooLong};
use super::streaming::{self, Command, Passed, Sent};
use super::tracker::{Status, Tracker};
use super::{base64, names};

/// The first packet of a connection: what is read of it is all that it says, and comes back equal.
pub fn startup(data: &[u8]) {
    let Ok(opening) = startup::read(data) else { return };
    assert_eq!(startup::length(data), Ok(Some(data.len())));
    // A packet that is cut short is none.
    assert!(startup::read(&data[..data.len() - 1]).is_err());
    let mut again = Vec::new();
    match &opening {
        Opening::Ssl | Opening::Gss => return assert_eq!(data.len(), 8),
        Opening::Cancel { pid, secret } => message::cancel(&mut again, *pid, secret),
        Opening::Startup(startup) => {
            assert!(!startup.user().is_empty() && !startup.database().is_empty());
            let known = startup.parameters.iter().map(|(name, value)| (name.as_str(), value.as_str()));
            let unknown = startup.unknown.iter().map(|name| (name.as_str(), ""));
            message::startup(&mut again, known.chain(unknown));
            again[6..8].copy_from_slice(&startup.minor.to_be_bytes());
            assert!(again.len() <= data.len());
        }
    }
    assert_eq!(startup::read(&again).as_ref(), Ok(&opening));
}

/// A command of a replication connection, or what a stream of changes sends: messages, each behind its length in 16 bits. The first byte says which,
/// and where another primary's begin.
pub fn streaming(data: &[u8]) {
    let Some((kind, mut rest)) = data.split_first() else { return };
    if *kind == 0 {
        let Command::Start(start) = streaming::command(rest) else { return };
        let again = streaming::command(start.sql(start.from).as_bytes());
        assert_eq!(again, Command::Start(start.clone()), "{start:?}");
        let old = start.for_pgoutput_of(15);
        assert_eq!(old.publications(), start.publications());
        assert_eq!(old.for_pgoutput_of(15).publications(), start.publications());
        return;
    }
    let (ahead, end) = (1_u64 << 48, Some(u64::from(*kind)).filter(|end| end % 2 == 0));
    let mut passed = Passed::new(*kind < 200);
    while let Some((length, more)) = rest.split_first_chunk() {
        let (message, more) = more.split_at(more.len().min(u16::from_be_bytes(*length).into()));
        rest = more;
        let mut body = message.to_vec();
        let sent = passed.server(&mut body, ahead, end);
        match sent {
            Err(_) | Ok(Sent::Beyond | Sent::Unsure) => assert_eq!(body, message),
            Ok(Sent::Reached(position)) => assert_eq!(body[..9], shifted(message[0], position, ahead)),
            // What is truncated together may be fewer.
            Ok(Sent::Change) if message.get(25) == Some(&b'T') => assert!(body.len() <= message.len()),
            Ok(Sent::Change) => assert_eq!(body.len(), message.len()),
            Ok(Sent::Own) => assert!(*kind < 200),
        }
        let mut theirs = message.to_vec();
        if let Ok(Some(flushed)) = streaming::client(&mut theirs, ahead) {
            assert_eq!(theirs[9..17], flushed.saturating_sub(ahead).to_be_bytes());
        }
    }
}

fn shifted(kind: u8, position: u64, ahead: u64) -> [u8; 9] {
    // 0 is no position.
    let position = if position == 0 { 0 } else { position.saturating_add(ahead) };
    let mut head = [kind; 9];
    head[1..].copy_from_slice(&position.to_be_bytes());
    head
}

/// Messages as the relay cuts and reads them, from both sides: the first byte says how the rest is cut into reads.
pub fn messages(data: &[u8]) {
    let Some((cut, stream)) = data.split_first() else { return };
    let (at_once, failed) = cut_up(stream, stream.len().max(1));
    let (in_parts, failed_so) = cut_up(stream, usize::from(*cut) + 1);
    // Where a stream is cut into reads makes no difference.
    assert_eq!((&at_once, failed), (&in_parts, failed_so));
    let (mut tracker, mut state) = (Tracker::default(), State::default());
    for (number, (tag, body)) in at_once.iter().enumerate() {
        names::find(body, |name| assert!(names::is_custom(name)));
        let _ = message::read_text(body);
        let error = ServerError::read(body);
        assert!(error.message.len() <= 3 * body.len() && error.sqlstate.len() <= 3 * body.len());
        if let Some(row) = message::row(body) {
            assert!(row.iter().flatten().map(|value| value.len()).sum::<usize>() <= body.len());
            // A row that cannot be understood changes nothing.
            let before = state.clone();
            if state.take(body).is_err() {
                assert_eq!(state, before);
            }
        }
        // Who speaks is as arbitrary as the rest.
        if number % 2 == 0 {
            tracker.sent(*tag);
            assert!(!matches!(tag, b'Q' | b'F') || tracker.owes() && !tracker.at_boundary());
        } else {
            match tag {
                b'Z' => {
                    let status = body.first().and_then(|byte| Status::read(*byte)).unwrap_or_default();
                    assert_eq!(tracker.ready(status), !tracker.owes());
                    assert_eq!(tracker.status(), status);
                }
                b'G' | b'W' => {
                    tracker.copy_begins();
                    assert!((tracker.within_unit() || tracker.owes()) && !tracker.at_boundary());
                }
                b'E' => tracker.failed(),
                _ => {}
            }
        }
    }
    replayed(&state);
    shared(&at_once);
    numbered(&at_once);
}

/// The same messages with statements renamed: what goes on is whole messages, and nothing is forgotten that the server owes.
fn shared(messages: &[(u8, Vec<u8>)]) {
    let mut statements = Statements::new(Arc::default(), 3);
    for (number, (tag, body)) in messages.iter().enumerate() {
        if number % 3 == 2 {
            statements.heard(*tag, body);
            continue;
        }
        let (mut message, mut out) = (Vec::new(), Vec::new());
        message::write(&mut message, *tag, |out| out.extend(body));
        match statements.rewrite(&message, true, &mut out) {
            Ok(Rewritten::Same) => assert!(out.is_empty()),
            Ok(Rewritten::Changed) => {
                let (cut, failed) = cut_up(&out, out.len().max(1));
                assert!(failed.is_none() && !cut.is_empty());
                let written: usize = cut.iter().map(|(_, body)| HEADER + body.len()).sum();
                assert_eq!(written, out.len());
            }
            Err(TooLong) => unreachable!("it is whole"),
        }
        if matches!(tag, b'S' | b'Q' | b'F') {
            statements.unit(*tag);
        }
        if matches!(tag, b'c' | b'f') {
            statements.copy_ends(body.is_empty());
        }
    }
}

/// The same messages with their types' numbers followed: nothing is exchanged before a move, and nothing cut otherwise after it.
fn numbered(messages: &[(u8, Vec<u8>)]) {
    let pass = |oids: &mut Oids| {
        let mut same = true;
        for (number, (tag, body)) in messages.iter().enumerate() {
            let mut passed = body.clone();
            match number % 3 {
                0 => oids.said(*tag, &mut passed, number % 2),
                1 => oids.heard(*tag, &mut passed),
                _ => oids.passes(*tag, &passed),
            }
            if *tag == b'Z' {
                oids.ready();
            }
            same &= passed == *body;
        }
        same
    };
    let mut oids = Oids::default();
    assert!(pass(&mut oids));
    let mut there = Catalogue::default();
    for (kind, number, of) in
        [("array", 0x4141, 0x6161), ("composite", 0x6161, 0), ("domain", 0x4142, 0x4141)]
    {
        there.take(kind, number, "public", kind, of);
    }
    let there = Arc::new(there);
    oids.moved(&there, &there);
    pass(&mut oids);
}

/// The messages of a stream that comes in reads of so many bytes, and whether one was none.
fn cut_up(stream: &[u8], read: usize) -> (Vec<(u8, Vec<u8>)>, Option<Malformed>) {
    const WHOLE: usize = 64;
    let (mut framer, mut found, mut buffer): (_, Vec<(u8, Vec<u8>)>, _) =
        (Framer::default(), Vec::new(), Vec::new());
    for bytes in stream.chunks(read) {
        buffer.extend_from_slice(bytes);
        loop {
            let count = match framer.next(&buffer, WHOLE) {
                Err(malformed) => return (found, Some(malformed)),
                Ok(Piece::Short) => break,
                Ok(Piece::Rest(count)) => {
                    if let Some((_, body)) = found.last_mut() {
                        body.extend_from_slice(&buffer[..count]);
                    }
                    count
                }
                Ok(Piece::Whole(tag, count) | Piece::Begun(tag, count)) => {
                    found.push((tag, buffer[HEADER..count].to_vec()));
                    count
                }
            };
            assert!(count > 0);
            buffer.drain(..count);
        }
    }
    // A short one that is not here whole has not come; a large one has begun, however much of it is here.
    if !framer.between() || !buffer.is_empty() {
        let begun = !framer.between();
        if begun {
            found.pop();
        }
    }
    (found, None)
}

/// What is said again is whole messages, and each step has its answer.
fn replayed(state: &State) {
    let mut out = Vec::new();
    let steps = state.replay(&mut out, None).len();
    let (messages, malformed) = cut_up(&out, out.len().max(1));
    assert_eq!(malformed, None);
    assert_eq!(messages.iter().filter(|(tag, _)| matches!(tag, b'S' | b'Q')).count(), steps);
}

/// Two SASL messages, the first behind its length in 16 bits, to both sides of the exchange: who does not know the keys gets nowhere.
pub fn scram(data: &[u8]) {
    let Some((length, rest)) = data.split_first_chunk::<2>() else { return };
    let (first, last) = rest.split_at(usize::from(u16::from_be_bytes(*length)).min(rest.len()));
    let verifier =
        Verifier { iterations: 1, salt: b"salt".to_vec(), stored_key: [7; 32], server_key: [9; 32] };
    for (plus, end_point) in [(false, None), (false, Some(&b"here"[..])), (true, Some(&b"here"[..]))] {
        if let Ok(server) = scram::Server::begin(&verifier, false, first, plus, end_point, "fresh") {
            assert!(server.answer().contains("fresh,s="));
            assert!(server.finish(last).is_err(), "nobody knows what hashes to this");
        }
    }
    let keys = Keys { client_key: [1; 32], server_key: [2; 32] };
    let secret = Secret::Keys(Box::new((verifier, keys)));
    let mut client = scram::Client::new(&secret, Some(b"here"), true, "ours".into());
    if let Ok(proof) = client.last(first) {
        assert!(proof.contains("r=ours"));
        assert!(client.finish(last).is_err(), "a server that cannot know the key");
    }
    let text = String::from_utf8_lossy(first);
    if let Ok(read) = text.parse::<Verifier>() {
        assert!(read.iterations > 0 && !read.salt.is_empty());
    }
    if let Some(bytes) = base64::decode(&text) {
        assert_eq!(base64::decode(&base64::encode(&bytes)), Some(bytes));
    }
}

#[cfg(test)]
mod tests;
