//! What the simulated source commits and what its copy looks like.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use rand::Rng;
use rand::rngs::SmallRng;

use crate::change::{
    Cell, Change, Column, LargeHeader, MARKER_PREFIX, PgTimestamp, Relation, ReplicaIdentity, Transaction,
};
use crate::lsn::Lsn;
use crate::wire::transaction::{Encoder, put_change};
use crate::wire::{CopyStart, CopyTable, Frame, PIECE, large};

fn table(id: u32) -> Arc<Relation> {
    let column = |name: &str, key| Column { name: name.into(), key, type_oid: 25, type_modifier: -1 };
    Arc::new(Relation {
        id,
        schema: "public".into(),
        name: format!("t{id}"),
        identity: ReplicaIdentity::Default,
        columns: vec![column("id", true), column("body", false)],
    })
}

/// The `number`th transaction, after `end`.
pub(super) fn transaction(rng: &mut SmallRng, number: u32, end: Lsn) -> Transaction {
    let commit_lsn = Lsn(end.0 + rng.random_range(8..5_000));
    let rows = if rng.random_bool(0.02) { 2_500 } else { rng.random_range(1..4) };
    let mut changes: Vec<_> = (0..rows)
        .map(|row| {
            let relation = table(rng.random_range(1..4));
            let id = Cell::Text(Bytes::from(format!("{number}-{row}")));
            let body = match rng.random_range(0..40) {
                0 => Cell::Null,
                1 if rows == 1 => Cell::Text(Bytes::from(vec![b'x'; rng.random_range(0..3 * PIECE)])),
                length => Cell::Text(Bytes::from(vec![b'y'; length])),
            };
            Change::Insert { relation, new: vec![id, body] }
        })
        .collect();
    if rng.random_bool(0.02) {
        changes.push(Change::Message { prefix: MARKER_PREFIX.into(), content: number.to_string().into() });
    }
    Transaction {
        xid: number,
        commit_lsn,
        end_lsn: Lsn(commit_lsn.0 + 8),
        commit_time: PgTimestamp(i64::from(number)),
        origin: rng.random_bool(0.1).then(|| "godwit_simulated".to_owned()),
        changes,
    }
}

/// What is told of it first when it travels in pieces.
pub(super) fn header(transaction: &Transaction) -> LargeHeader {
    LargeHeader {
        xid: transaction.xid,
        commit_lsn: transaction.commit_lsn,
        end_lsn: transaction.end_lsn,
        commit_time: transaction.commit_time,
        origin: transaction.origin.clone(),
    }
}

/// Its records, cut anywhere.
pub(super) fn pieces(rng: &mut SmallRng, transaction: &Transaction) -> VecDeque<Bytes> {
    let (mut encoder, mut records) = (Encoder::default(), BytesMut::new());
    let mut record = |write: &dyn Fn(&mut BytesMut)| {
        let mut body = BytesMut::new();
        write(&mut body);
        large::put_record_header(&mut records, body.len());
        records.extend_from_slice(&body);
    };
    for change in &transaction.changes {
        encoder.describe(change, |describe| record(describe));
        record(&|out| put_change(out, change));
    }
    let (mut records, mut pieces) = (records.freeze(), VecDeque::new());
    while !records.is_empty() {
        let longest = rng.random_range(1..=PIECE);
        pieces.push_back(records.split_to(longest.min(records.len())));
    }
    pieces
}

/// A table's name, and of how many parts it is read.
type Table = (&'static str, u32);

/// The tables that [`transaction`] writes to.
pub(super) const TABLES: [Table; 3] = [("t1", 1), ("t2", 2), ("t3", 3)];

/// Every part, numbered by place: its table, and which of the table's parts it is.
pub(super) fn parts() -> Vec<(Table, u32)> {
    TABLES.iter().flat_map(|table| (0..table.1).map(|nth| (*table, nth))).collect()
}

/// A table's rows in a snapshot at `position`, in COPY text format: of one of its parts.
///
/// A row's part is not the same under every snapshot, as a row that is updated moves to another block.
pub(super) fn copy_rows(history: &[Transaction], position: Lsn, (name, of): Table, nth: u32) -> Vec<u8> {
    let mut rows = Vec::new();
    for transaction in history.iter().filter(|transaction| transaction.commit_lsn < position) {
        for change in &transaction.changes {
            let Change::Insert { relation, new } = change else { continue };
            let (true, Some(Cell::Text(id))) = (relation.name == name, new.first()) else { continue };
            let place = id.iter().map(|byte| u64::from(*byte)).sum::<u64>() + position.0;
            if place % u64::from(of) == u64::from(nth) {
                rows.extend_from_slice(id);
                rows.push(b'\n');
            }
        }
    }
    rows
}

/// What is missing of a copy, cut anywhere, up to two parts at the same time.
pub(super) fn copy_frames(
    rng: &mut SmallRng,
    history: &[Transaction],
    start: CopyStart,
    missing: &[u32],
) -> VecDeque<Frame> {
    let schema = |post| Frame::CopySchema { post, last: true, piece: Bytes::from_static(b"SELECT 1") };
    let mut frames = VecDeque::from([Frame::CopyBegin(start), schema(false)]);
    let parts = parts();
    let mut waiting: VecDeque<VecDeque<Frame>> = missing
        .iter()
        .map(|number| part_frames(rng, history, start.snapshot, *number, parts[*number as usize]))
        .collect();
    while !waiting.is_empty() {
        let at = rng.random_range(0..waiting.len().min(2));
        frames.extend(waiting[at].pop_front());
        if waiting[at].is_empty() {
            waiting.remove(at);
        }
    }
    frames.extend([schema(true), Frame::CopyEnd]);
    frames
}

fn part_frames(
    rng: &mut SmallRng,
    history: &[Transaction],
    position: Lsn,
    part: u32,
    (table, nth): (Table, u32),
) -> VecDeque<Frame> {
    let described = CopyTable {
        schema: "public".into(),
        name: table.0.into(),
        columns: vec!["id".into()],
        binary: false,
        of: table.1,
    };
    let mut frames = VecDeque::from([Frame::CopyTable { part, table: described }]);
    let mut left = Bytes::from(copy_rows(history, position, table, nth));
    let mut total = 0;
    while !left.is_empty() {
        let longest = if rng.random_bool(0.5) { 40 } else { PIECE / 4 };
        let data = left.split_to(rng.random_range(1..=left.len().min(longest)));
        let rows = data.iter().filter(|byte| **byte == b'\n').count() as u32;
        total += u64::from(rows);
        frames.push_back(Frame::CopyRows { part, rows, data });
    }
    frames.push_back(Frame::CopyTableEnd { part, rows: total, last: nth + 1 == table.1 });
    frames
}
