use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;

use super::file::{BLOCK, Writer};
use super::open::LARGE_FROM;
use super::*;
use crate::change::{Cell, Change, Column, LargeHeader, Relation, ReplicaIdentity};
use crate::error::{Error, ErrorKind};
use crate::lsn::Lsn;
use crate::pgoutput::Event;
use crate::wire::{PIECE, large};

fn table(columns: usize) -> Arc<Relation> {
    let column = |at| Column { name: format!("c{at}"), key: at == 0, type_oid: 25, type_modifier: -1 };
    Arc::new(Relation {
        id: 7,
        schema: "public".into(),
        name: "t".into(),
        identity: ReplicaIdentity::Default,
        columns: (0..columns).map(column).collect(),
    })
}

fn insert(relation: &Arc<Relation>, length: usize, with: u8) -> Change {
    let new = vec![Cell::Text(Bytes::from(vec![with; length])); relation.columns.len()];
    Change::Insert { relation: Arc::clone(relation), new }
}

fn header(xid: u32) -> LargeHeader {
    LargeHeader { xid, commit_lsn: Lsn(9), end_lsn: Lsn(10), ..LargeHeader::default() }
}

async fn changes_of(committed: Option<Committed>) -> (bool, Vec<Change>) {
    match committed.expect("committed") {
        Committed::Whole(transaction) => (false, transaction.changes),
        Committed::Large(mut transaction) => {
            let (mut decoder, mut changes) = (large::Decoder::default(), Vec::new());
            while let Some(piece) = transaction.next_piece().await.expect("a good disk") {
                assert!(!piece.is_empty() && piece.len() <= PIECE);
                decoder.feed(piece, &mut changes).expect("own records");
            }
            decoder.finish().expect("whole");
            (true, changes)
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Insert { xid: u32, sub: u32, length: usize, columns: usize },
    Rollback { xid: u32, sub: u32 },
    Abort { xid: u32 },
    Commit { xid: u32 },
}

fn step() -> impl Strategy<Value = Step> {
    let xid = 1u32..5;
    // Tables change shape in the middle; now and then a value is larger than blocks and pieces.
    let length = prop_oneof![8 => 0usize..3_000, 1 => 100_000usize..600_000];
    prop_oneof![
        16 => (xid.clone(), 0u32..3, length, 1usize..3)
            .prop_map(|(xid, sub, length, columns)| Step::Insert { xid, sub: xid + sub * 10, length, columns }),
        2 => (xid.clone(), 1u32..3).prop_map(|(xid, sub)| Step::Rollback { xid, sub: xid + sub * 10 }),
        1 => xid.clone().prop_map(|xid| Step::Abort { xid }),
        2 => xid.prop_map(|xid| Step::Commit { xid }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn what_commits_is_what_was_not_taken_back(
        steps in prop::collection::vec(step(), 0..120),
        memory in prop_oneof![Just(0u64), Just(10_000), Just(500_000), Just(u64::MAX)],
    ) {
        let directory = tempfile::tempdir().expect("a directory");
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(async {
            let spill = Spill { directory: directory.path().join("spill"), memory };
            let mut open = OpenTransactions::new(spill);
            let mut model: BTreeMap<u32, Vec<(u32, Change)>> = BTreeMap::new();
            for (at, step) in steps.into_iter().enumerate() {
                let event = match step {
                    Step::Insert { xid, sub, length, columns } => {
                        let change = insert(&table(columns), length, at as u8);
                        model.entry(xid).or_default().push((sub, change.clone()));
                        Event::Change { xid, sub, change }
                    }
                    Step::Rollback { xid, sub } => {
                        // A subtransaction that was taken back does nothing more.
                        if let Some(changes) = model.get_mut(&xid) {
                            changes.retain(|(by, _)| *by != sub);
                        }
                        open.handle(Event::Abort { xid, sub }).await.expect("a good disk");
                        // What it did later would have an id of its own.
                        open.handle(Event::Abort { xid, sub: xid }).await.expect("a good disk");
                        model.remove(&xid);
                        continue;
                    }
                    Step::Abort { xid } => {
                        model.remove(&xid);
                        Event::Abort { xid, sub: xid }
                    }
                    Step::Commit { xid } => Event::Commit(header(xid)),
                };
                let end = if let Event::Commit(header) = &event { Some(header.xid) } else { None };
                let committed = open.handle(event).await.expect("a good disk");
                assert!(open.work().memory_bytes <= memory, "over the bound: {:?}", open.work());
                if let Some(xid) = end {
                    let wanted: Vec<Change> =
                        model.remove(&xid).unwrap_or_default().into_iter().map(|(_, change)| change).collect();
                    assert_eq!(changes_of(committed).await.1, wanted);
                }
                assert_eq!(open.work().transactions as usize, model.len());
            }
            for xid in model.keys().copied().collect::<Vec<_>>() {
                open.handle(Event::Abort { xid, sub: xid }).await.expect("a good disk");
            }
            assert_eq!(open.work(), crate::status::OpenWork::default());
        });
    }
}

#[tokio::test]
async fn savepoints_are_left_out_of_memory_and_disk_alike() {
    let directory = tempfile::tempdir().expect("a directory");
    for memory in [0, u64::MAX] {
        for length in [10, 30_000] {
            let mut open = OpenTransactions::new(Spill { directory: directory.path().into(), memory });
            let table = table(1);
            for at in 0..200u32 {
                let change = insert(&table, length, at as u8);
                open.handle(Event::Change { xid: 1, sub: 1 + at % 4, change }).await.expect("kept");
            }
            open.handle(Event::Abort { xid: 1, sub: 3 }).await.expect("kept");
            let (large, changes) =
                changes_of(open.handle(Event::Commit(header(1))).await.expect("kept")).await;
            let wanted: Vec<Change> =
                (0..200u32).filter(|at| at % 4 != 2).map(|at| insert(&table, length, at as u8)).collect();
            assert_eq!(changes, wanted);
            assert_eq!(large, memory == 0 || 200 * length as u64 > LARGE_FROM);
        }
    }
    assert_eq!(std::fs::read_dir(directory.path()).expect("there").count(), 0, "the files have no name");
}

#[tokio::test]
async fn what_an_applier_wrote_is_not_kept() {
    let mut open = OpenTransactions::new(Spill { memory: 0, directory: "/nonexistent/spill".into() });
    open.handle(Event::Origin { xid: 1, name: "godwit_shop".into() }).await.expect("noted");
    open.handle(Event::Change { xid: 1, sub: 1, change: insert(&table(1), 9, b'x') }).await.expect("dropped");
    let committed = open.handle(Event::Commit(header(1))).await.expect("nothing was written");
    assert_eq!(changes_of(committed).await, (false, Vec::new()));
}

#[tokio::test]
async fn a_full_disk_is_a_passing_error_that_names_the_directory() {
    let full = tokio::fs::OpenOptions::new().write(true).open("/dev/full").await.expect("Linux");
    let mut writer = Writer::on(full, Path::new("/state/spill"));
    let error = loop {
        // The write happens behind the call: the failure comes with a later one.
        if let Err(error) = writer.append(&vec![1; BLOCK]).await {
            break error;
        }
    };
    let text = crate::error::chain(&error);
    assert!(text.contains("/state/spill") && text.contains("No space left"), "{text}");
    assert_eq!(error.kind(), ErrorKind::Retry);
}

#[tokio::test]
async fn damage_on_the_disk_is_noticed() {
    use std::os::unix::fs::FileExt;
    for at in [0u64, 5, 8, 1_000, BLOCK as u64 + 20] {
        let file = tempfile::tempfile().expect("a file");
        let same = file.try_clone().expect("a second handle");
        let mut writer = Writer::on(tokio::fs::File::from_std(file), Path::new("/state/spill"));
        for with in [1, 2] {
            writer.append(&vec![with; BLOCK]).await.expect("written");
        }
        let mut reader = writer.read().await.expect("rewound");
        let mut byte = [0];
        same.read_exact_at(&mut byte, at).expect("there");
        same.write_all_at(&[byte[0] ^ 0x10], at).expect("damaged");
        let mut result = reader.next().await;
        if result.is_ok() {
            result = reader.next().await;
        }
        assert!(matches!(result, Err(Error::Io { .. })), "byte {at} was changed");
    }
}
