use std::pin::pin;
use std::sync::Mutex;

use tokio::sync::mpsc;

use super::*;
use crate::apply::Target;
use crate::apply::memory::{MemoryTarget, Store};
use crate::change::{Change, LargeHeader, MARKER_PREFIX, PgTimestamp, Transaction};
use crate::link::LinkRecv;
use crate::lsn::Lsn;
use crate::pgoutput::Event;
use crate::session::{Sender, Work};
use crate::spill::{Committed, LargeTransaction, OpenTransactions};
use crate::status::{CopyStage, Phase};
use crate::wire::Resume;

fn transaction(end: u64, marker: bool) -> Transaction {
    let change = if marker {
        Change::Message { prefix: MARKER_PREFIX.into(), content: bytes::Bytes::from_static(b"2") }
    } else {
        Change::Truncate { relations: Vec::new(), cascade: false, restart_identity: false }
    };
    Transaction {
        xid: end as u32,
        commit_lsn: Lsn(end - 1),
        end_lsn: Lsn(end),
        commit_time: PgTimestamp(0),
        origin: None,
        changes: vec![change],
    }
}

/// The transaction as it comes back from the disk.
async fn spilled(transaction: &Transaction, spill: &Spill) -> Result<Box<LargeTransaction>, Error> {
    let mut open = OpenTransactions::new(spill.clone());
    let Transaction { xid, commit_lsn, end_lsn, commit_time, origin, changes } = transaction.clone();
    for change in changes {
        open.handle(Event::Change { xid, sub: xid, change }).await?;
    }
    let header = LargeHeader { xid, commit_lsn, end_lsn, commit_time, origin };
    match open.handle(Event::Commit(header)).await? {
        Some(Committed::Large(large)) => Ok(large),
        _ => panic!("it was on the disk"),
    }
}

/// A sender that plays `history` from where the target stands until all of it is applied.
async fn play(link: Box<dyn Link>, history: &[Transaction], spill: &Spill) -> Result<(), Error> {
    let mut joined = Joined::new(link);
    let Frame::Resume(resume) = joined.hear(OPENING).await? else { panic!("a resume comes first") };
    let mut machine = Sender::new(joined.framing, resume);
    let mut receiver: Box<dyn LinkRecv> = joined.receiver;
    let mut rest = history.iter().filter(|t| t.end_lsn > resume.applied);
    let mut pieces: Option<Box<LargeTransaction>> = None;
    let end = history.last().map(|t| t.end_lsn).unwrap_or_default();
    while machine.progress().applied < end {
        let now = crate::clock::now();
        match &mut pieces {
            _ if !machine.wants_more() => {}
            Some(large) => match large.next_piece().await? {
                Some(piece) => machine.handle_large_piece(piece, now),
                None => {
                    machine.handle_large_end(now);
                    pieces = None;
                }
            },
            None => match rest.next() {
                Some(transaction) if transaction.end_lsn.0 % 70 == 0 => {
                    let large = spilled(transaction, spill).await?;
                    pieces = machine.handle_large(large.header(), now).then_some(large);
                }
                Some(transaction) => machine.handle_transaction(transaction, now)?,
                None => {}
            },
        }
        while let Some(message) = machine.poll_message() {
            joined.sender.send(message).await?;
        }
        let message = tokio::time::timeout(Duration::from_millis(1), receiver.recv()).await;
        if let Ok(message) = message {
            machine.handle_message(message?.ok_or_else(transport::closed)?, crate::clock::now())?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn over_links_that_are_cut_each_transaction_lands_once() {
    let history: Vec<_> = (1..=400).map(|n| transaction(n * 10, n == 385)).collect();
    let store = std::sync::Arc::new(Mutex::new(Store { copied: true, ..Store::default() }));
    let status = watch::Sender::new(StreamStatus::default());
    let directory = tempfile::tempdir().expect("a directory");
    let spill = Spill { directory: directory.path().into(), memory: 0 };
    for attempt in 0u64.. {
        assert!(attempt < 200, "never finished");
        let delay = Duration::from_micros(attempt % 3 * 700);
        let (near, far, cut) = memory::pair(memory::Options { delay });
        let target = Box::new(MemoryTarget::new(std::sync::Arc::clone(&store)));
        if attempt % 4 == 1 {
            store.lock().expect("not poisoned").lose_replies = 1;
        }
        let cancel = CancellationToken::new();
        let scissors = async {
            tokio::time::sleep(Duration::from_millis(5 + attempt * 3)).await;
            cut.cut();
            std::future::pending::<()>().await;
        };
        let finished = tokio::select! {
            played = play(Box::new(near), &history, &spill) => played.is_ok(),
            _ = async { receive::run(target, false, Joined::new(Box::new(far)), &status, &cancel).await } => false,
            () = scissors => false,
        };
        if finished {
            break;
        }
    }
    let store = store.lock().expect("not poisoned");
    assert_eq!(store.applied, history);
    assert_eq!(store.marker, Some(2));
}

#[tokio::test(start_paused = true)]
async fn a_target_that_has_to_finish_a_copy_first_is_waited_for() {
    let history: Vec<_> = (1..=3).map(|n| transaction(n * 10, false)).collect();
    let left = ("public".to_owned(), "late".to_owned());
    let store = Store {
        copied: true,
        checkpoint: Lsn(5),
        late: [(left, Lsn(5))].into(),
        late_takes: OPENING * 4,
        ..Store::default()
    };
    let store = std::sync::Arc::new(Mutex::new(store));
    let target = Box::new(MemoryTarget::new(std::sync::Arc::clone(&store)));
    let (near, far, _cut) = memory::pair(memory::Options::default());
    let (status, cancel) = (watch::Sender::new(StreamStatus::default()), CancellationToken::new());
    let spill = Spill::default();
    let mut receiving = pin!(receive::run(target, false, Joined::new(Box::new(far)), &status, &cancel));
    let mut played = pin!(play(Box::new(near), &history, &spill));
    let mut seen = status.subscribe();
    let mut told = false;
    loop {
        tokio::select! {
            played = &mut played => break played.expect("it waits"),
            received = &mut receiving => panic!("the target's half ended: {received:?}"),
            _ = seen.changed() => {
                let phase = &seen.borrow_and_update().phase;
                told |= matches!(phase, Phase::Copying { stage: CopyStage::Finishing, .. });
            }
        }
    }
    assert!(told, "what takes so long is said");
    assert_eq!(store.lock().expect("not poisoned").applied, history);
}

#[tokio::test(start_paused = true)]
async fn a_source_says_what_its_target_takes_so_long_for() {
    let (near, far, _cut) = memory::pair(memory::Options::default());
    let (mut source, mut target) = (Joined::new(Box::new(near)), Joined::new(Box::new(far)));
    let status = watch::Sender::new(StreamStatus::default());
    let answers = async {
        target.meanwhile(tokio::time::sleep(OPENING * 2)).await?;
        assert!(matches!(status.borrow().phase, Phase::Copying { stage: CopyStage::Finishing, .. }));
        target.say(&Frame::Resume(Resume { copied: true, ..Resume::default() })).await
    };
    let (resumed, answered) = tokio::join!(send::resume(&mut source, &status), answers);
    answered.expect("the link is there");
    assert!(resumed.expect("it was waited for").0.copied);
}

/// It takes longer to give the database up than the other side is silent for.
#[tokio::test(start_paused = true)]
async fn both_sides_learn_that_the_source_database_does_not_answer() {
    let database = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = database.local_addr().expect("bound").port();
    let dsn: Dsn = format!("postgres://nobody@127.0.0.1:{port}/shop").parse().expect("a DSN");
    let (spill, copy) = (Spill::default(), CopyOptions::default());
    let source = send::Source { dsn: &dsn, bin: None, spill: &spill, copy: &copy };
    let store = Store { copied: true, checkpoint: Lsn(10), ..Store::default() };
    let target = Box::new(MemoryTarget::new(std::sync::Arc::new(Mutex::new(store))));
    let (near, far, _cut) = memory::pair(memory::Options::default());
    let (near, far) = (Joined::new(Box::new(near)), Joined::new(Box::new(far)));
    let (status, cancel) = (watch::Sender::new(StreamStatus::default()), CancellationToken::new());
    let spec = spec();
    let (sent, received) = tokio::join!(
        send::run(source, &spec, near, &status, &cancel),
        receive::run(target, false, far, &status, &cancel),
    );
    let (sent, received) = (sent.expect_err("no database"), received.expect_err("no database"));
    let why = format!("connect to 127.0.0.1:{port}/shop: no answer within 10s");
    assert!(chain(&sent).contains(&why), "{}", chain(&sent));
    assert!(chain(&received).contains(&why), "{}", chain(&received));
    assert_eq!(sent.cause(), Cause::Network);
}

fn spec() -> StreamSpec {
    StreamSpec {
        resource: "r".into(),
        generation: 1,
        slot: "godwit_r_g1".into(),
        publication: "godwit_r".into(),
        origin: "godwit_r".into(),
        source_zone: "a".into(),
        target_zone: "b".into(),
        synchronous: false,
    }
}

#[tokio::test]
async fn both_sides_with_the_same_half_are_refused() {
    let end = LocalEnd::Target { dsn: Dsn::default() };
    let peer = LocalPeer::new(end.clone(), memory::Options::default());
    let link = peer.dial().await.expect("memory");
    let status = watch::Sender::new(StreamStatus::default());
    let result = start(&end, &spec(), link, &status, &CancellationToken::new()).await;
    assert!(matches!(result, Err(Error::Unready(why)) if why.contains("same half")));
}

#[tokio::test]
async fn a_stream_with_names_of_another_resource_is_refused_before_anybody_is_asked() {
    let end = LocalEnd::Target { dsn: Dsn::default() };
    let changes: [fn(&mut StreamSpec); 4] = [
        |spec| spec.slot = "godwit_orders_g1".into(),
        |spec| spec.slot = "godwit_r_g2".into(),
        |spec| spec.publication = "godwit_orders".into(),
        |spec| spec.origin = "godwit_r.critical".into(),
    ];
    for change in changes {
        let mut spec = spec();
        change(&mut spec);
        let (near, far, _cut) = memory::pair(memory::Options::default());
        let status = watch::Sender::new(StreamStatus::default());
        let stop = CancellationToken::new();
        let answering = serve_link(Box::new(far), |_, _| panic!("asked for {spec:?}"));
        let (dialed, answered) = tokio::join!(start(&end, &spec, Box::new(near), &status, &stop), answering);
        assert!(matches!(dialed, Err(Error::Unready(why)) if why.contains("no lane of r")), "{spec:?}");
        assert!(answered.is_err(), "{spec:?}");
    }
}

/// Where nobody can be reached until a person has done something.
#[derive(Default)]
struct Unready(Mutex<Vec<std::time::Instant>>);

#[async_trait]
impl Dial for Unready {
    async fn dial(&self) -> Result<Box<dyn Link>, Error> {
        self.0.lock().expect("not poisoned").push(crate::clock::now());
        Err(Error::Unready("the target lacks a column".into()))
    }
}

#[tokio::test(start_paused = true)]
async fn what_waits_for_a_person_is_tried_again_soon_and_then_seldom() {
    let (dial, end) = (Unready::default(), LocalEnd::Target { dsn: Dsn::default() });
    let (status, cancel) = (watch::Sender::new(StreamStatus::default()), CancellationToken::new());
    let (spec, within) = (spec(), Duration::from_secs(20));
    let kept = tokio::time::timeout(within, maintain(&dial, &spec, &end, &status, &cancel)).await;
    assert!(kept.is_err(), "it goes on: {kept:?}");
    let tried = dial.0.into_inner().expect("not poisoned");
    let pauses = tried.windows(2).map(|two| (two[1] - two[0]).as_millis()).collect::<Vec<_>>();
    assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
    let failures = status.borrow().failures.clone();
    let counted = std::collections::BTreeMap::from([(crate::error::Cause::Unready, 4)]);
    assert_eq!(failures, counted, "at 0, 6.3, 11.3 and 16.3 s: what is mended soon is one failure");
}

/// A server that shuts down asks for the same position until it is durable.
#[tokio::test(start_paused = true)]
async fn a_position_that_is_told_twice_is_made_durable_at_once() {
    let store = Store { copied: true, checkpoint: Lsn(10), ..Store::default() };
    let mut target = Box::new(MemoryTarget::new(std::sync::Arc::new(Mutex::new(store))));
    let resume = target.resume().await.expect("memory");
    let (done, mut finished) = mpsc::unbounded_channel();
    let (work, todo) = mpsc::unbounded_channel();
    let running = tokio::spawn(receive::Applier::new(target, false, resume, done).run(todo));
    let mut told = async |positions: &[u64]| {
        for lsn in positions {
            work.send(Work::Position(Lsn(*lsn))).expect("it runs");
        }
        let Some(receive::Done::Applied(progress)) = finished.recv().await else { panic!("it applies") };
        (progress.applied, progress.durable)
    };
    assert_eq!(told(&[100]).await, (Lsn(100), Lsn(10)));
    assert_eq!(told(&[100]).await, (Lsn(100), Lsn(100)));
    assert_eq!(told(&[200, 200]).await, (Lsn(200), Lsn(200)), "together");
    drop(work);
    running.await.expect("no panic").expect("nothing fails");
}

#[tokio::test(start_paused = true)]
async fn a_large_transaction_may_pause_after_commits_that_are_not_flushed() {
    let directory = tempfile::tempdir().expect("a directory");
    let spill = Spill { directory: directory.path().into(), memory: 0 };
    let (small, large) = (transaction(10, false), transaction(70, false));
    let mut pieces = spilled(&large, &spill).await.expect("a file");
    let header = pieces.header().clone();
    let mut first = pieces.next_piece().await.expect("a file").expect("a change");
    let second = first.split_off(first.len() / 2);

    let store = std::sync::Arc::new(Mutex::new(Store { copied: true, ..Store::default() }));
    let mut target = Box::new(MemoryTarget::new(std::sync::Arc::clone(&store)));
    let resume = target.resume().await.expect("memory");
    let (done, mut finished) = mpsc::unbounded_channel();
    let (work, todo) = mpsc::unbounded_channel();
    let running = tokio::spawn(receive::Applier::new(target, false, resume, done).run(todo));
    let send = |next: Work| work.send(next).expect("it runs");
    send(Work::Transaction { transaction: small.clone(), bytes: 1 });
    send(Work::LargeBegin(header));
    send(Work::LargePiece(first));
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(
        store.lock().expect("not poisoned").durable(),
        Lsn(10),
        "what came before does not wait for it"
    );
    send(Work::LargePiece(second));
    send(Work::LargeEnd);
    drop(work);
    running.await.expect("no panic").expect("nothing fails");

    let mut told = Vec::new();
    while let Some(done) = finished.recv().await {
        if let receive::Done::Applied(progress) = done {
            told.push((progress.applied, progress.durable));
        }
    }
    assert_eq!(told, [(Lsn(10), Lsn(0)), (Lsn(10), Lsn(10)), (Lsn(70), Lsn(70))]);
    assert_eq!(store.lock().expect("not poisoned").applied, [small, large]);
}
