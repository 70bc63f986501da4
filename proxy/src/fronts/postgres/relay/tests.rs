//! The relay between two ends of a pipe.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::*;
use crate::fronts::postgres::protocol::oids::Catalogue;

#[derive(Default)]
struct Eyes {
    closed: AtomicBool,
    answered: Mutex<Vec<Outcome>>,
    names: Mutex<Vec<String>>,
    wanted: AtomicBool,
}

impl Watch for Eyes {
    fn closed(&self, _: bool) -> bool {
        self.closed.load(SeqCst)
    }

    fn answered(&self, answered: Answered) {
        self.answered.lock().unwrap().push(answered.outcome);
    }

    fn names(&self, name: &str) {
        self.names.lock().unwrap().push(name.to_owned());
    }

    fn wanted(&self) -> bool {
        self.wanted.load(SeqCst)
    }
}

fn session() -> (Relay, DuplexStream, DuplexStream) {
    with(None)
}

/// One that shares connections, and has one.
fn shared() -> (Relay, DuplexStream, DuplexStream) {
    with(Some(Box::new(Statements::new(Arc::default(), 10))))
}

fn with(shared: Option<Box<Statements>>) -> (Relay, DuplexStream, DuplexStream) {
    let (client, mine) = tokio::io::duplex(1 << 20);
    let (backend, theirs) = tokio::io::duplex(1 << 20);
    let mut relay = Relay::new(Box::new(mine), Vec::new(), Arc::default(), 7, shared);
    relay.attach(Box::new(theirs), Vec::new());
    (relay, client, backend)
}

/// Runs the relay until nothing moves any more, or it has something to tell.
async fn settle(relay: &mut Relay, eyes: &Eyes, parked: bool) -> Option<Event> {
    let mut run = std::pin::pin!(relay.run(eyes, parked));
    for _ in 0..3 {
        if let Poll::Ready(event) = futures_util::poll!(&mut run) {
            return Some(event);
        }
    }
    None
}

async fn heard(end: &mut DuplexStream) -> Vec<u8> {
    let mut bytes = vec![0; 1 << 20];
    match futures_util::poll!(std::pin::pin!(end.read(&mut bytes))) {
        Poll::Ready(count) => {
            bytes.truncate(count.unwrap());
            bytes
        }
        Poll::Pending => Vec::new(),
    }
}

const QUERY: &[u8] = b"Q\0\0\0\x0dSELECT 1\0";
const READY: &[u8] = b"Z\0\0\0\x05I";
const OPEN: &[u8] = b"Z\0\0\0\x05T";

#[tokio::test]
async fn bytes_pass_both_ways_however_they_come() {
    let (mut relay, mut client, mut backend) = session();
    let eyes = Eyes::default();
    for byte in QUERY {
        client.write_all(&[*byte]).await.unwrap();
        assert!(settle(&mut relay, &eyes, false).await.is_none());
    }
    assert_eq!(heard(&mut backend).await, QUERY);
    assert!(!relay.at_boundary());
    // A large row in pieces, then the end of the answer.
    let mut row = b"D\0\x01\x86\xa0".to_vec();
    row.resize(100_001, b'x');
    for part in row.chunks(33_333) {
        backend.write_all(part).await.unwrap();
        assert!(settle(&mut relay, &eyes, false).await.is_none());
    }
    backend.write_all(READY).await.unwrap();
    assert!(settle(&mut relay, &eyes, false).await.is_none());
    assert_eq!(heard(&mut client).await, [&row, READY].concat());
    assert!(relay.at_boundary());
    assert_eq!(*eyes.answered.lock().unwrap(), [WORKED]);
    let holds = relay.from_backend.capacity() + relay.from_client.capacity() + relay.to_client.capacity();
    assert!(holds <= 3 * KEPT, "an idle session holds {holds} bytes");
}

/// However little of it comes at first.
#[tokio::test]
async fn the_beginning_of_a_statement_is_looked_at() {
    let query = |length: usize| {
        let mut out = Vec::new();
        message::query(&mut out, format!("SELECT '{}'; SET app.x = 1", "x".repeat(length)).as_bytes());
        out
    };
    let longer = |length: usize| {
        let text = format!("SET app.y = '{}'", "x".repeat(length));
        let (mut asked, mut prepared) = (Vec::new(), Vec::new());
        message::query(&mut asked, text.as_bytes());
        message::parse(&mut prepared, b"", text.as_bytes(), &[]);
        [asked, prepared]
    };
    let [asked, prepared] = longer(300 << 10);
    for (sent, name) in
        [(query(20 << 10), "app.x"), (query(60 << 10), "app.x"), (asked, "app.y"), (prepared, "app.y")]
    {
        let (mut relay, mut client, mut backend) = session();
        let eyes = Eyes::default();
        let mut passed = Vec::new();
        for part in [&sent[..10], &sent[10..]] {
            client.write_all(part).await.unwrap();
            assert!(settle(&mut relay, &eyes, false).await.is_none());
            assert!(settle(&mut relay, &eyes, false).await.is_none());
            passed.extend(heard(&mut backend).await);
        }
        assert!(passed == sent, "{} of {} bytes", passed.len(), sent.len());
        assert_eq!(*eyes.names.lock().unwrap(), [name]);
    }
}

/// Applications run into errors by design: an insert that is there already, a lock that is not waited for.
#[tokio::test]
async fn whose_an_error_is_can_be_told() {
    let (mut relay, mut client, mut backend) = session();
    let eyes = Eyes::default();
    let own = ["23505", "55P03", "40001", "42P01", "57014"];
    let servers = ["57P01", "53300", "08006", "58030", "XX000"];
    for sqlstate in own.into_iter().chain(servers) {
        client.write_all(QUERY).await.unwrap();
        settle(&mut relay, &eyes, false).await;
        let mut answer = Vec::new();
        message::write(&mut answer, b'E', |out| {
            out.extend(format!("SERROR\0C{sqlstate}\0Mno\0\0").as_bytes());
        });
        backend.write_all(&[answer, READY.to_vec()].concat()).await.unwrap();
        settle(&mut relay, &eyes, false).await;
    }
    let answered = eyes.answered.lock().unwrap();
    assert_eq!(answered[..own.len()], [Outcome::Refused; 5]);
    assert_eq!(answered[own.len()..], [FAILED; 5]);
    assert_eq!((Outcome::Refused.label(), FAILED.label()), ("4xx", "5xx"));
}

#[tokio::test]
async fn while_closed_a_transaction_goes_on_unit_by_unit_and_no_other_begins() {
    let (mut relay, mut client, mut backend) = session();
    let eyes = Eyes::default();
    client.write_all(QUERY).await.unwrap();
    settle(&mut relay, &eyes, false).await;
    eyes.closed.store(true, SeqCst);
    // Three units at once: the second and third are sent only when the one before is answered within a transaction.
    client.write_all(&[QUERY, QUERY].concat()).await.unwrap();
    assert!(settle(&mut relay, &eyes, false).await.is_none());
    assert_eq!(heard(&mut backend).await, QUERY);
    backend.write_all(OPEN).await.unwrap();
    assert!(settle(&mut relay, &eyes, false).await.is_none());
    assert_eq!(heard(&mut backend).await, QUERY);
    backend.write_all(READY).await.unwrap();
    assert!(matches!(settle(&mut relay, &eyes, false).await, Some(Event::Boundary)));
    assert!(heard(&mut backend).await.is_empty());
    assert!(relay.client_waits());
    assert_eq!(heard(&mut client).await, [OPEN, READY].concat());
    // Parked: notifications pass, what ends the server's session does not.
    backend.write_all(b"A\0\0\0\x0b\0\0\0\x07n\0\0E\0\0\0\x0fVFATAL\0C1\0\0").await.unwrap();
    assert!(matches!(settle(&mut relay, &eyes, true).await, Some(Event::ClientWaits)));
    drop(backend);
    assert!(matches!(settle(&mut relay, &eyes, true).await, Some(Event::BackendGone)));
    settle(&mut relay, &eyes, true).await;
    assert_eq!(heard(&mut client).await, b"A\0\0\0\x0b\0\0\0\x07n\0\0");
    // Elsewhere it goes on, and is called as before.
    let (mut backend, theirs) = tokio::io::duplex(1 << 20);
    relay.forget_backend();
    relay.backend = Some(Box::new(theirs));
    relay.pids.0 = 9;
    eyes.closed.store(false, SeqCst);
    backend.write_all(b"A\0\0\0\x0b\0\0\0\x09n\0\0").await.unwrap();
    assert!(settle(&mut relay, &eyes, false).await.is_none());
    assert_eq!(heard(&mut backend).await, QUERY);
    assert_eq!(heard(&mut client).await, b"A\0\0\0\x0b\0\0\0\x07n\0\0");
}

#[tokio::test]
async fn a_goodbye_passes_even_while_closed_and_the_unnamed_statement_is_kept() {
    let (mut relay, mut client, mut backend) = session();
    let eyes = Eyes::default();
    let parse = b"P\0\0\0\x15\0SET app.x = 1\0\0\0";
    let named = b"P\0\0\0\x0a\x61\0x\0\0\0";
    let sync = b"S\0\0\0\x04";
    client.write_all(&[&parse[..], named, sync].concat()).await.unwrap();
    settle(&mut relay, &eyes, false).await;
    assert_eq!(relay.unnamed.as_deref(), Some(&parse[..]));
    assert_eq!(*eyes.names.lock().unwrap(), ["app.x"]);
    backend.write_all(READY).await.unwrap();
    eyes.closed.store(true, SeqCst);
    assert!(matches!(settle(&mut relay, &eyes, false).await, Some(Event::Boundary)));
    client.write_all(b"X\0\0\0\x04").await.unwrap();
    assert!(matches!(settle(&mut relay, &eyes, true).await, Some(Event::ClientGone)));
    let (mut relay, mut client, _backend) = session();
    client.write_all(b"Q\0\0\0\0").await.unwrap();
    let event = settle(&mut relay, &Eyes::default(), false).await;
    assert!(matches!(event, Some(Event::Malformed(_, true))));
}

#[tokio::test]
async fn who_shares_gives_its_connection_back_between_transactions() {
    let (mut relay, mut client, mut backend) = shared();
    let eyes = Eyes::default();
    // Half a message is no reason to have one.
    client.write_all(&QUERY[..5]).await.unwrap();
    assert!(matches!(settle(&mut relay, &eyes, false).await, Some(Event::Boundary)));
    assert!(settle(&mut relay, &eyes, true).await.is_none());
    client.write_all(&QUERY[5..]).await.unwrap();
    assert!(matches!(settle(&mut relay, &eyes, true).await, Some(Event::ClientWaits)));
    assert!(settle(&mut relay, &eyes, false).await.is_none());
    assert_eq!(heard(&mut backend).await, QUERY);
    backend.write_all(OPEN).await.unwrap();
    assert!(settle(&mut relay, &eyes, false).await.is_none(), "a transaction is open");
    client.write_all(QUERY).await.unwrap();
    assert!(settle(&mut relay, &eyes, false).await.is_none());
    backend.write_all(READY).await.unwrap();
    assert!(matches!(settle(&mut relay, &eyes, false).await, Some(Event::Boundary)));
    assert_eq!(heard(&mut client).await, [OPEN, READY].concat());
    // What it leaves must be looked for.
    client.write_all(b"Q\0\0\0\x0aSET x\0").await.unwrap();
    assert!(settle(&mut relay, &eyes, false).await.is_none());
    backend.write_all(b"C\0\0\0\x08SET\0").await.unwrap();
    backend.write_all(READY).await.unwrap();
    assert!(matches!(settle(&mut relay, &eyes, false).await, Some(Event::Boundary)));
    assert!(relay.shared.as_ref().unwrap().touched);
    // A goodbye is not the connection's end.
    assert!(!heard(&mut backend).await.is_empty());
    client.write_all(b"X\0\0\0\x04").await.unwrap();
    assert!(matches!(settle(&mut relay, &eyes, false).await, Some(Event::ClientGone)));
    assert!(heard(&mut backend).await.is_empty());
}

#[tokio::test]
async fn who_shares_takes_turns() {
    let (mut relay, mut client, mut backend) = shared();
    let eyes = Eyes::default();
    eyes.wanted.store(true, SeqCst);
    client.write_all(QUERY).await.unwrap();
    assert!(settle(&mut relay, &eyes, false).await.is_none());
    assert_eq!(heard(&mut backend).await, QUERY);
    backend.write_all(READY).await.unwrap();
    client.write_all(QUERY).await.unwrap();
    assert!(matches!(settle(&mut relay, &eyes, false).await, Some(Event::Boundary)), "another waits");
    assert!(heard(&mut backend).await.is_empty());
    assert!(matches!(settle(&mut relay, &eyes, true).await, Some(Event::ClientWaits)));
    // Each time it has one it runs something.
    let (theirs, mut other) = tokio::io::duplex(1 << 20);
    relay.attach(Box::new(theirs), Vec::new());
    assert!(settle(&mut relay, &eyes, false).await.is_none());
    assert_eq!(heard(&mut other).await, QUERY);
}

#[tokio::test]
async fn what_follows_a_reset_waits_until_it_is_known_what_was_reset() {
    for pinned in [false, true] {
        let (mut relay, mut client, mut backend) = shared();
        relay.shared.as_mut().unwrap().pinned = pinned;
        let eyes = Eyes::default();
        let query = |text: &str| {
            let mut out = Vec::new();
            message::query(&mut out, text.as_bytes());
            out
        };
        let (reset, next) = (query("RESET ALL"), query("SELECT 1"));
        client.write_all(&[&reset[..], &next].concat()).await.unwrap();
        assert!(settle(&mut relay, &eyes, false).await.is_none());
        assert_eq!(heard(&mut backend).await, reset, "no more than that");
        backend.write_all(b"C\0\0\0\x0aRESET\0Z\0\0\0\x05I").await.unwrap();
        assert!(matches!(settle(&mut relay, &eyes, false).await, Some(Event::Boundary)));
        assert!(heard(&mut backend).await.is_empty());
        relay.shared.as_mut().unwrap().asked();
        settle(&mut relay, &eyes, false).await;
        assert_eq!(heard(&mut backend).await, next);
    }
}

fn parse(name: &str) -> Vec<u8> {
    let mut out = Vec::new();
    message::parse(&mut out, name.as_bytes(), b"SELECT 1", &[]);
    out
}

fn bind(name: &str) -> Vec<u8> {
    let mut out = Vec::new();
    message::bind(&mut out, "", name, &[]);
    out
}

/// What a connection has is known only when the server has said so; nothing else waits.
#[tokio::test]
async fn who_shares_and_prepares_is_answered_before_its_next_unit() {
    let (mut relay, mut client, mut backend) = shared();
    let eyes = Eyes::default();
    let sync = b"S\0\0\0\x04".to_vec();
    let unit = |name: &str| [parse(name), bind(name), sync.clone()].concat();
    let (prepares, runs) = (unit("_godwit_1"), [bind("_godwit_1"), sync.clone()].concat());
    client.write_all(&[unit(""), unit(""), unit("mine"), bind("mine"), sync.clone()].concat()).await.unwrap();
    assert!(settle(&mut relay, &eyes, false).await.is_none());
    assert_eq!(heard(&mut backend).await, [unit(""), unit(""), prepares].concat());
    client.write_all(&[bind("mine"), sync.clone()].concat()).await.unwrap();
    for _ in 0..3 {
        assert!(settle(&mut relay, &eyes, false).await.is_none());
        assert!(heard(&mut backend).await.is_empty());
        backend.write_all(&[b"1\0\0\0\x04", b"2\0\0\0\x04", READY].concat()).await.unwrap();
    }
    assert!(settle(&mut relay, &eyes, false).await.is_none());
    assert_eq!(heard(&mut backend).await, [runs.clone(), runs].concat());
}

#[tokio::test]
async fn what_was_put_between_is_taken_out_however_it_comes() {
    let (mut relay, mut client, mut backend) = shared();
    let eyes = Eyes::default();
    let sync = b"S\0\0\0\x04".to_vec();
    client.write_all(&[parse("mine"), sync.clone()].concat()).await.unwrap();
    assert!(settle(&mut relay, &eyes, false).await.is_none());
    assert_eq!(heard(&mut backend).await, [parse("_godwit_1"), sync.clone()].concat());
    backend.write_all(&[b"1\0\0\0\x04", READY].concat()).await.unwrap();
    assert!(matches!(settle(&mut relay, &eyes, false).await, Some(Event::Boundary)));
    assert_eq!(heard(&mut client).await, [b"1\0\0\0\x04", READY].concat());
    // Another connection knows nothing of it.
    let (theirs, mut other) = tokio::io::duplex(1 << 20);
    relay.shared.as_mut().unwrap().has = crate::fronts::postgres::protocol::statements::Has::default();
    relay.attach(Box::new(theirs), Vec::new());
    client.write_all(&[bind("mine"), sync.clone()].concat()).await.unwrap();
    assert!(settle(&mut relay, &eyes, false).await.is_none());
    assert_eq!(heard(&mut other).await, [parse("_godwit_1"), bind("_godwit_1"), sync].concat());
    let answer = [b"1\0\0\0\x04", b"2\0\0\0\x04", READY].concat();
    for byte in &answer[..answer.len() - 1] {
        other.write_all(&[*byte]).await.unwrap();
        assert!(settle(&mut relay, &eyes, false).await.is_none());
    }
    other.write_all(&answer[answer.len() - 1..]).await.unwrap();
    assert!(matches!(settle(&mut relay, &eyes, false).await, Some(Event::Boundary)));
    assert_eq!(heard(&mut client).await, answer[5..]);
}

/// JDBC breaks off where it waits for notifications and is told of anything else.
#[tokio::test]
async fn what_another_server_says_of_itself_comes_with_the_next_answer() {
    let (mut relay, mut client, mut backend) = session();
    let eyes = Eyes::default();
    let said = |name: &[u8], value: &[u8]| (Box::from(name), Box::from(value));
    relay.adopt(Arc::new(vec![said(b"a", b"1"), said(b"b", b"2")]));
    assert!(settle(&mut relay, &eyes, false).await.is_none());
    assert!(heard(&mut client).await.is_empty());
    // What is told at once is not told again as it was before.
    let newer = b"S\0\0\0\x08a\x003\0";
    backend.write_all(newer).await.unwrap();
    assert!(settle(&mut relay, &eyes, false).await.is_none());
    assert_eq!(heard(&mut client).await, newer);
    client.write_all(QUERY).await.unwrap();
    assert!(settle(&mut relay, &eyes, false).await.is_none());
    backend.write_all(READY).await.unwrap();
    assert!(settle(&mut relay, &eyes, false).await.is_none());
    assert_eq!(heard(&mut client).await, [b"S\0\0\0\x08b\x002\0".as_slice(), READY].concat());
    client.write_all(QUERY).await.unwrap();
    backend.write_all(READY).await.unwrap();
    assert!(settle(&mut relay, &eyes, false).await.is_none());
    assert_eq!(heard(&mut client).await, READY);
}

/// A server's blocks of 8 KiB end anywhere.
#[tokio::test]
async fn after_a_move_rows_are_read_by_their_own_description_wherever_reads_end() {
    let catalogue = |colors: u32| {
        let mut catalogue = Catalogue::default();
        catalogue.take("array", colors, "public", "_color", colors + 1);
        catalogue.take("plain", colors + 1, "public", "color", 0);
        Arc::new(catalogue)
    };
    let (old, new) = (catalogue(16400), catalogue(16500));
    let message = |tag: u8, body: &[u8]| {
        let mut out = Vec::new();
        message::write(&mut out, tag, |out| out.extend(body));
        out
    };
    let described = |of: u32| {
        message(b'T', &[b"\0\x01a\0\0\0\0\0\0\0", &of.to_be_bytes()[..], &[0xff; 6], &[0, 1]].concat())
    };
    let row = |of: u32| {
        let array = [&[0, 0, 0, 0, 0, 0, 0, 0], &of.to_be_bytes()[..]].concat();
        message(b'D', &[b"\0\x01\0\0\0\x0c", &array[..]].concat())
    };
    let run = |of: u32| [described(of), row(of + 1), message(b'C', b"SELECT 1\0")].concat();
    let (mut relay, mut client, mut backend) = session();
    let eyes = Eyes::default();
    // The client learns both types where it begins.
    client.write_all(QUERY).await.unwrap();
    settle(&mut relay, &eyes, false).await;
    backend.write_all(&[described(16400), described(16401), READY.to_vec()].concat()).await.unwrap();
    settle(&mut relay, &eyes, false).await;
    heard(&mut client).await;
    relay.oids.moved(&old, &new);
    let portal = |name: &[u8]| {
        [message(b'D', &[b"P", name].concat()), message(b'E', &[name, &[0; 4]].concat())].concat()
    };
    let batch = [portal(b"plain\0"), portal(b"colors\0"), message(b'S', b"")].concat();
    let answers = [run(23), run(16500), READY.to_vec()].concat();
    for cut in 1..answers.len() {
        client.write_all(&batch).await.unwrap();
        settle(&mut relay, &eyes, false).await;
        for part in [&answers[..cut], &answers[cut..]] {
            backend.write_all(part).await.unwrap();
            settle(&mut relay, &eyes, false).await;
        }
        let told = [run(23), run(16400), READY.to_vec()].concat();
        assert_eq!(heard(&mut client).await, told, "cut at {cut}");
    }
}
