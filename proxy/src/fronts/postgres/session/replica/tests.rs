//! A client that reads changes, between two pipes.

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::super::super::front::Active;
use super::super::super::login::Greeted;
use super::super::tests::front;
use super::*;
use crate::config::model::PostgresAuth;

const QUERY: &[u8] = b"Q\0\0\0\x18SELECT session_user\0";
const DONE: &[u8] = b"c\0\0\0\x04";
const READY: &[u8] = b"Z\0\0\0\x05I";

async fn replica() -> (Replica, DuplexStream, tokio::sync::watch::Sender<bool>) {
    let front = front(PostgresAuth::Trust, Duration::from_secs(10), 1);
    let (mut client, theirs) = tokio::io::duplex(1 << 16);
    let mut out = Vec::new();
    message::startup(&mut out, [("user", "cdc"), ("replication", "database")].into_iter());
    client.write_all(&out).await.unwrap();
    let Ok(Greeted::Session(greeted, _)) = Client::greet(Box::new(theirs), None).await else {
        panic!("not greeted");
    };
    let (ends, shutdown) = tokio::sync::watch::channel(false);
    let (guest, _) = front.come();
    let identity = Identity { user: "cdc".into(), parameters: Vec::new(), secret: Secret::None };
    let whence = Whence { front, identity, set: State::default(), stuck: Vec::new() };
    (Replica { whence, client: greeted, shutdown, created: false, _guest: guest }, client, ends)
}

fn start() -> Start {
    Start { slot: "warehouse".into(), from: 0, options: String::new() }
}

/// It reads the rest of what the old primary has.
fn rest(old: Backend, new: Backend) -> Now {
    let before = Before { zone: "old".into(), ahead: 0, end: Lsn(100), start: Lsn(10) };
    let positions = Positions { ahead: 0, before: Some(before.clone()) };
    let next = Some((before, Box::new(Next { backend: new, positions })));
    Now { backend: old, ahead: 0, passed: Passed::new(false), next }
}

#[tokio::test]
async fn a_connection_of_godwits_role_is_sent_nothing_but_the_stream_and_is_not_given_back() {
    let (mut replica, mut client, _ends) = replica().await;
    let ((old, mut server), (new, mut other)) = (Backend::by_hand("old"), Backend::by_hand("new"));
    // Both at once: the second is for whoever answers when the stream is over.
    client.write_all(&[DONE, QUERY].concat()).await.unwrap();
    let start = start();
    let passing = async {
        let passed = replica.pass(&start, false, rest(old, new)).await;
        passed.ok().map(|backend| Arc::clone(&backend.zone))
    };
    let answering = async {
        let mut heard = Vec::new();
        while !heard.windows(DONE.len()).any(|part| part == DONE) {
            assert!(server.read_buf(&mut heard).await.unwrap() > 0);
        }
        server.write_all(&[DONE, READY].concat()).await.unwrap();
        server.read_to_end(&mut heard).await.unwrap();
        heard
    };
    let (zone, heard) = tokio::join!(passing, answering);
    assert_eq!(zone.as_deref(), Some("new"));
    assert!(!heard.windows(6).any(|part| part == b"SELECT"), "{heard:?}");
    let mut told = vec![0; 64];
    let count = client.read(&mut told).await.unwrap();
    assert_eq!(told[..count], [DONE, READY].concat());
    // The query is still to be asked.
    let (tag, _) = message_of(replica.client.talk()).await.unwrap();
    assert_eq!(tag, b'Q');
    let mut asked = Vec::new();
    assert_eq!(other.read_to_end(&mut asked).await.unwrap(), 0, "{asked:?}");
}

#[tokio::test]
async fn what_is_no_part_of_a_stream_is_refused() {
    let (mut replica, mut client, _ends) = replica().await;
    let ((old, mut server), (new, _other)) = (Backend::by_hand("old"), Backend::by_hand("new"));
    client.write_all(QUERY).await.unwrap();
    let passed = replica.pass(&start(), false, rest(old, new)).await;
    assert!(matches!(passed, Err(End::Fault(fault)) if fault.sqlstate == "08P01"));
    let mut heard = Vec::new();
    server.read_to_end(&mut heard).await.unwrap();
    assert!(!heard.windows(6).any(|part| part == b"SELECT"), "{heard:?}");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_never_ends_a_stream_is_not_waited_for() {
    let (mut replica, mut client, _ends) = replica().await;
    let ((old, mut server), (new, _other)) = (Backend::by_hand("old"), Backend::by_hand("new"));
    client.write_all(DONE).await.unwrap();
    // It hears of the end and says nothing more; nobody listens any more.
    drop(client);
    let passed = replica.pass(&start(), false, rest(old, new)).await;
    assert!(matches!(passed, Err(End::Fault(fault)) if fault.sqlstate == "08006"));
    let mut heard = Vec::new();
    server.read_to_end(&mut heard).await.unwrap();
    assert!(heard.windows(DONE.len()).any(|part| part == DONE), "{heard:?}");
}

#[tokio::test]
async fn a_stream_does_not_begin_behind_an_open_question() {
    let (mut replica, mut client, _ends) = replica().await;
    let (here, _server) = Backend::by_hand("a");
    let mut begin = Vec::new();
    message::query(&mut begin, start().sql(0).as_bytes());
    client.write_all(&[QUERY, &begin].concat()).await.unwrap();
    let Err(ended) = replica.run(here).await;
    assert!(matches!(ended, End::Fault(fault) if fault.sqlstate == "0A000"));
}

/// Its client sends a query, and is told this in answer.
async fn answered(client: &mut DuplexStream, server: &mut DuplexStream, answer: &[u8]) {
    client.write_all(QUERY).await.unwrap();
    let mut heard = vec![0; QUERY.len()];
    server.read_exact(&mut heard).await.unwrap();
    assert_eq!(heard, QUERY);
    server.write_all(answer).await.unwrap();
    let mut told = vec![0; answer.len()];
    client.read_exact(&mut told).await.unwrap();
    assert_eq!(told, answer);
}

#[tokio::test]
async fn a_transaction_does_not_go_on_at_another_primary() {
    let (mut replica, mut client, _ends) = replica().await;
    let front = Arc::clone(&replica.whence.front);
    let (here, mut server) = Backend::by_hand("a");
    let playing = async {
        answered(&mut client, &mut server, b"C\0\0\0\x0aBEGIN\0Z\0\0\0\x05T").await;
        front.swap(Active { generation: 1, zone: "a".into() }).unwrap();
        client.write_all(QUERY).await.unwrap();
    };
    let (Err(ended), ()) = tokio::join!(replica.run(here), playing);
    let End::Fault(fault) = ended else { panic!("not told") };
    assert_eq!(fault.sqlstate, "57P01");
    assert_eq!(fault.detail, "It was in a transaction, which was not committed.");
}

/// A subscriber sets what it reads by once it has made its slot.
#[tokio::test]
async fn what_a_reader_has_set_since_it_made_a_slot_is_asked_for_before_its_stream() {
    let (mut replica, mut client, _ends) = replica().await;
    replica.created = true;
    let (here, mut server) = Backend::by_hand("a");
    let playing = async {
        answered(&mut client, &mut server, b"C\0\0\0\x08SET\0Z\0\0\0\x05I").await;
        let mut start = Vec::new();
        message::query(&mut start, b"START_REPLICATION SLOT warehouse LOGICAL 0/0");
        client.write_all(&start).await.unwrap();
        let mut asked = Vec::new();
        while !asked.ends_with(b"granted\0") {
            assert!(server.read_buf(&mut asked).await.unwrap() > 0);
        }
        drop(server);
    };
    let (Err(ended), ()) = tokio::join!(replica.run(here), playing);
    let End::Fault(fault) = ended else { panic!("not told") };
    assert_eq!(fault.sqlstate, "08006");
}

#[tokio::test]
async fn what_a_reader_has_set_is_known_when_it_moves() {
    let (mut replica, mut client, _ends) = replica().await;
    let (here, mut server) = Backend::by_hand("a");
    let playing = async {
        answered(&mut client, &mut server, b"C\0\0\0\x0dSELECT 1\0Z\0\0\0\x05I").await;
        answered(&mut client, &mut server, b"C\0\0\0\x14IDENTIFY_SYSTEM\0Z\0\0\0\x05I").await;
        answered(&mut client, &mut server, b"C\0\0\0\x08SET\0Z\0\0\0\x05I").await;
        let mut asked = Vec::new();
        while !asked.ends_with(b"granted\0") {
            assert!(server.read_buf(&mut asked).await.unwrap() > 0);
        }
        let mut row = b"\0\x04\0\0\0\x07setting\0\0\0\x09DateStyle\0\0\0\x03SQL\0\0\0\0".to_vec();
        row = [b"D".to_vec(), (row.len() as u32 + 4).to_be_bytes().to_vec(), row].concat();
        server
            .write_all(&[b"T\0\0\0\x06\0\0", &row[..], b"C\0\0\0\x0dSELECT 1\0", READY].concat())
            .await
            .unwrap();
        answered(&mut client, &mut server, READY).await;
        drop(client);
    };
    let (Err(ended), ()) = tokio::join!(replica.run(here), playing);
    assert!(matches!(ended, End::Client));
    assert_eq!(replica.whence.set.settings, [(b"DateStyle".to_vec(), b"SQL".to_vec())]);
    assert!(replica.whence.stuck.is_empty());
}

#[test]
fn the_rest_is_read_with_what_the_startup_packet_sets() {
    let dsn: Dsn = "postgres://godwit:secret@h/shop".parse().unwrap();
    let identity = |parameters: &[(&str, &str)]| Identity {
        user: "cdc".into(),
        parameters: parameters.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect(),
        secret: Secret::None,
    };
    let with = |identity: &Identity| -> Vec<String> {
        identity.parameters.iter().map(|(name, value)| format!("{name}={value}")).collect()
    };
    let mut own_role = own(
        &dsn,
        &identity(&[
            ("replication", "database"),
            ("application_name", "cdc"),
            ("TimeZone", "UTC"),
            ("options", "-c datestyle=ISO -c Role=clerk --extra-float-digits=3 -c log_statement=all"),
            ("_pq_.command_tag", "x"),
            ("datestyle", "German"),
        ]),
    );
    let own_first = ["replication=database", "application_name=godwit-front"];
    assert_eq!(own_role.user, "godwit");
    let set =
        ["datestyle=ISO", "extra_float_digits=3", "log_statement=all", "TimeZone=UTC", "datestyle=German"];
    assert_eq!(with(&own_role), [&own_first[..], &set[..]].concat());
    // What only a superuser may set.
    assert!(leave_out(&mut own_role, "keine Berechtigung, um Parameter \u{bb}Log_Statement\u{ab} zu setzen"));
    assert_eq!(own_role.parameters.len(), 6);
    assert!(!leave_out(&mut own_role, "permission denied to start WAL sender for replication"));
    // Options that do something else are sent as they are.
    let other = own(&dsn, &identity(&[("options", "-S 64")]));
    assert_eq!(with(&other), [&own_first[..], &["options=-S 64"]].concat());
}
