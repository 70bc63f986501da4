use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::change::{
    Cell, Change, Column, LargeHeader, OldRow, PgTimestamp, Relation, ReplicaIdentity, Transaction,
};
use crate::error::ErrorKind;
use crate::identity::SourceId;
use crate::lsn::Lsn;

fn spec() -> StreamSpec {
    StreamSpec {
        resource: "orders".into(),
        generation: 7,
        slot: "godwit_orders_g7".into(),
        publication: "godwit_orders".into(),
        origin: "godwit_orders".into(),
        source_zone: "a".into(),
        target_zone: "b".into(),
        synchronous: false,
    }
}

const SOURCE: SourceId = SourceId { system: 7_712_259_040_289_284_019, timeline: 3 };

pub(crate) fn every_frame() -> Vec<Frame> {
    let piece = Bytes::from_static(b"piece");
    vec![
        Frame::Hello(Hello {
            role: Role::Pull,
            spec: spec(),
            speaks: Speaks { oldest: 1, newest: 2, zstd: true },
        }),
        Frame::Welcome(Agreed { version: Version::V2, zstd: true }),
        Frame::Refuse { reason: "no".into() },
        Frame::Resume(Resume { applied: Lsn(9), copied: true, marker: Some(8), ..Resume::default() }),
        Frame::Heartbeat { source: Lsn(1) },
        Frame::Transaction { last: true, piece: piece.clone() },
        Frame::Position { lsn: Lsn(2) },
        Frame::Progress(Progress { applied: Lsn(3), marker: None, changes: 4, ..Progress::default() }),
        Frame::Credit { granted: 5 },
        Frame::CopyBegin(CopyStart {
            consistent_point: Lsn(6),
            snapshot: Lsn(6),
            tables: 2,
            rows_estimate: 100,
            bytes_estimate: 900,
            sessions: 1,
            ..CopyStart::default()
        }),
        Frame::CopySchema { post: false, last: true, piece: piece.clone() },
        Frame::CopyTable {
            part: 7,
            table: CopyTable {
                schema: "public".into(),
                name: "t".into(),
                columns: vec!["a".into(), "b".into()],
                binary: true,
                of: 1,
            },
        },
        Frame::CopyRows { part: 7, rows: 2, data: piece },
        Frame::CopyTableEnd { part: 7, rows: 2, last: true },
        Frame::CopyEnd,
        Frame::Copied,
        Frame::Failed { kind: ErrorKind::Never, reason: "fenced".into() },
        Frame::LargeBegin(LargeHeader {
            xid: 700,
            commit_lsn: Lsn(0x10),
            end_lsn: Lsn(0x20),
            commit_time: PgTimestamp(-5),
            origin: Some("elsewhere".into()),
        }),
        Frame::LargePiece { piece: Bytes::from_static(b"record") },
        Frame::LargeEnd,
    ]
}

/// What only the third version carries.
pub(crate) fn frames_of_version_3() -> Vec<Frame> {
    let kept = |parts| KeptTable {
        schema: "public".into(),
        name: "t".into(),
        position: Lsn(5),
        parts,
        rows: 10,
        bytes: 300,
    };
    vec![
        Frame::Resume(Resume { settled: Lsn(12), kept: 2, ..Resume::default() }),
        Frame::Resume(Resume { applied: Lsn(9), copied: true, source: Some(SOURCE), ..Resume::default() }),
        Frame::Source(SOURCE),
        Frame::Kept(kept(None)),
        Frame::Kept(kept(Some(vec![0, 3]))),
        Frame::CopyBegin(CopyStart {
            consistent_point: Lsn(6),
            snapshot: Lsn(9),
            tables: 2,
            rows_estimate: 100,
            bytes_estimate: 900,
            sessions: 4,
            tables_kept: 1,
            rows_kept: 10,
            bytes_kept: 300,
        }),
    ]
}

/// What came with the fourth.
fn frames_of_version_4() -> Vec<Frame> {
    vec![Frame::Transactions { batch: Bytes::from_static(b"\0\0\0\x02ab\0\0\0\x01c") }]
}

#[test]
pub(crate) fn every_frame_comes_back() {
    let newer = [frames_of_version_3(), frames_of_version_4()].concat();
    for (number, frame) in every_frame().into_iter().chain(newer).enumerate() {
        let (sequence, back) = decode(encode(number as u64, &frame)).expect("own frame");
        assert_eq!((sequence, back), (number as u64, frame));
    }
}

/// Changing any of these bytes breaks every deployed node: make a new version instead.
fn golden(version: Version) -> String {
    use std::fmt::Write;
    let mut text = String::new();
    let newer = (version >= Version::V3).then(frames_of_version_3);
    let newest = (version >= Version::V4).then(frames_of_version_4);
    for frame in
        every_frame().into_iter().chain(newer.into_iter().flatten()).chain(newest.into_iter().flatten())
    {
        let name = format!("{frame:?}");
        let name = name.split([' ', '(']).next().unwrap_or_default();
        write!(text, "{name}: ").expect("string");
        for byte in encode_as(version, None, 3, &frame).expect("plain") {
            write!(text, "{byte:02x}").expect("string");
        }
        text.push('\n');
    }
    let bytes = transaction::Encoder::default().encode(&sample()).expect("small");
    text.push_str("body of a transaction: ");
    for byte in &bytes {
        write!(text, "{byte:02x}").expect("string");
    }
    text
}

#[test]
fn golden_bytes_of_version_1() {
    insta::assert_snapshot!(golden(Version::V1));
}

#[test]
fn golden_bytes_of_version_2() {
    insta::assert_snapshot!(golden(Version::V2));
}

#[test]
fn golden_bytes_of_version_3() {
    insta::assert_snapshot!(golden(Version::V3));
}

#[test]
fn golden_bytes_of_version_4() {
    insta::assert_snapshot!(golden(Version::V4));
}

/// docs/link.md has each frame with its kind, and each version.
#[test]
fn the_page_of_the_link_is_complete() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/link.md");
    let page = std::fs::read_to_string(page).expect("the page");
    let (mut frames, mut versions) = (Vec::new(), Vec::new());
    for line in page.lines() {
        let columns: Vec<&str> = line.trim_matches(['|', ' ']).split(" | ").collect();
        let numbers: Vec<u8> = columns[0].split([',', ';']).flat_map(numbers).collect();
        match columns[..] {
            [_, names, _, _] => {
                frames.extend(numbers.into_iter().zip(names.split([',', ';']).map(str::trim)));
            }
            [_, _] => versions.extend(numbers),
            _ => {}
        }
    }
    for frame in [every_frame(), frames_of_version_3(), frames_of_version_4()].concat() {
        let name = format!("{frame:?}");
        let name = name.split([' ', '(']).next().unwrap_or_default();
        assert!(
            frames.contains(&(frame.kind(), name)),
            "{name} is not there as {}: {frames:?}",
            frame.kind()
        );
    }
    assert_eq!(versions, (Version::OLDEST.number()..=Version::NEWEST.number()).collect::<Vec<_>>());
}

/// `7`, or `7–9`.
fn numbers(text: &str) -> impl Iterator<Item = u8> + use<> {
    let (first, last) = text.split_once('–').unwrap_or((text, text));
    let bounds = first.trim().parse().ok().zip(last.trim().parse().ok());
    bounds.into_iter().flat_map(|(first, last): (u8, u8)| first..=last)
}

#[test]
fn a_table_stays_only_where_the_slot_has_what_came_since() {
    let kept = |position, parts| KeptTable {
        schema: "s".into(),
        name: "t".into(),
        position: Lsn(position),
        parts,
        rows: 0,
        bytes: 0,
    };
    let (slot, snapshot) = (Lsn(100), Lsn(300));
    assert!(kept(100, None).stays(slot, snapshot), "of the slot's own snapshot");
    assert!(kept(200, None).stays(slot, snapshot), "of one in between");
    assert!(!kept(99, None).stays(slot, snapshot), "of a slot that is gone");
    assert!(!kept(301, None).stays(slot, snapshot), "of a source that was ahead of this one");
    assert!(kept(300, Some(vec![1])).stays(slot, snapshot), "the snapshot is still there");
    assert!(!kept(200, Some(vec![1])).stays(slot, snapshot), "two snapshots in one table");
}

#[test]
fn the_first_version_is_still_read() {
    for frame in every_frame() {
        let bytes = encode_as(Version::V1, None, 9, &frame).expect("plain");
        let decoded = decode_as(None, bytes).expect("own frame");
        assert_eq!((decoded.version, decoded.sequence), (Version::V1, 9));
        match (frame, decoded.frame) {
            (Frame::Hello(new), Frame::Hello(old)) => {
                assert_eq!(old, Hello { speaks: Speaks::FIRST, ..new });
            }
            (Frame::Welcome(_), old) => {
                assert_eq!(old, Frame::Welcome(Agreed { version: Version::V1, zstd: false }));
            }
            (frame, old) => assert_eq!(frame, old),
        }
    }
}

#[test]
fn bulk_is_compressed_where_both_agreed() {
    let frame = Frame::CopyRows { part: 0, rows: 0, data: vec![b'a'; PIECE].into() };
    let (mut compressor, mut decompressor) =
        (Compressor::new().expect("zstd"), Decompressor::new().expect("zstd"));
    for sequence in 0..3 {
        let bytes = encode_as(Version::V2, Some(&mut compressor), sequence, &frame).expect("compresses");
        assert!(bytes.len() < PIECE / 100);
        assert!(decode(bytes.clone()).is_err(), "nobody agreed");
        let decoded = decode_as(Some(&mut decompressor), bytes).expect("own frame");
        assert_eq!((decoded.sequence, decoded.frame), (sequence, frame.clone()));
    }
    let small = Frame::Position { lsn: Lsn(77) };
    let bytes = encode_as(Version::NEWEST, Some(&mut compressor), 3, &small).expect("plain");
    assert_eq!(bytes, encode(3, &small));
}

#[test]
fn damage_is_noticed() {
    let good = encode(1, &Frame::Position { lsn: Lsn(77) });
    for at in 0..good.len() {
        let mut bad = good.to_vec();
        bad[at] ^= 0x40;
        assert!(decode(bad.into()).is_err(), "byte {at} was changed");
    }
    assert!(decode(good.slice(..good.len() - 1)).is_err());
}

fn relation(id: u32, name: &str) -> Arc<Relation> {
    let column = |name: &str, key| Column { name: name.into(), key, type_oid: 25, type_modifier: -1 };
    Arc::new(Relation {
        id,
        schema: "public".into(),
        name: name.into(),
        identity: ReplicaIdentity::Default,
        columns: vec![column("id", true), column("body", false)],
    })
}

pub(crate) fn sample() -> Transaction {
    let table = relation(16_384, "t");
    let text = |text: &'static str| Cell::Text(Bytes::from_static(text.as_bytes()));
    Transaction {
        xid: 700,
        commit_lsn: Lsn(0x10),
        end_lsn: Lsn(0x20),
        commit_time: PgTimestamp(-5),
        origin: Some("elsewhere".into()),
        changes: vec![
            Change::Insert { relation: table.clone(), new: vec![text("1"), Cell::Null] },
            Change::Update {
                relation: table.clone(),
                old: Some(OldRow::Key(vec![text("1"), Cell::Null])),
                new: vec![text("2"), Cell::Unchanged],
            },
            Change::Delete { relation: table.clone(), old: OldRow::Full(vec![text("2"), text("x")]) },
            Change::Truncate {
                relations: vec![table, relation(2, "u")],
                cascade: true,
                restart_identity: false,
            },
            Change::Message { prefix: "p".into(), content: Bytes::from_static(b"c") },
        ],
    }
}

#[test]
fn a_transaction_comes_back_and_tables_are_described_once() {
    let (mut encoder, mut decoder) = (transaction::Encoder::default(), transaction::Decoder::default());
    let first = encoder.encode(&sample()).expect("small");
    let second = encoder.encode(&sample()).expect("small");
    assert!(second.len() < first.len());
    assert_eq!(decoder.decode(first).expect("own bytes"), sample());
    assert_eq!(decoder.decode(second.clone()).expect("own bytes"), sample());
    assert!(transaction::Decoder::default().decode(second).is_err(), "undescribed table");
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), kind in 0u8..40) {
        let _ = decode(Bytes::from(bytes.clone()));
        let _ = transaction::Decoder::default().decode(Bytes::from(bytes.clone()));
        // Past the checksum too.
        let mut reader = Reader::new(Bytes::from(bytes));
        let _ = Frame::read(kind, Version::NEWEST, &mut reader);
    }

    #[test]
    fn a_damaged_transaction_never_panics(at in 0usize..200, with in any::<u8>()) {
        let mut bytes = transaction::Encoder::default().encode(&sample()).expect("small").to_vec();
        let at = at % bytes.len();
        bytes[at] = with;
        let _ = transaction::Decoder::default().decode(bytes.into());
    }
}
