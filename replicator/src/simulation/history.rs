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

/// The rows of a snapshot at `point`, in COPY text format.
pub(super) fn copy_rows(history: &[Transaction], point: Lsn) -> Vec<u8> {
    let mut rows = Vec::new();
    for transaction in history.iter().filter(|transaction| transaction.end_lsn <= point) {
        rows.extend_from_slice(transaction.xid.to_string().as_bytes());
        rows.resize(rows.len() + transaction.xid as usize * 7919 % 2000, b'c');
        rows.push(b'\n');
    }
    rows
}

/// The whole copy, cut anywhere.
pub(super) fn copy_frames(rng: &mut SmallRng, history: &[Transaction], point: Lsn) -> VecDeque<Frame> {
    let schema = |post| Frame::CopySchema { post, last: true, piece: Bytes::from_static(b"SELECT 1") };
    let table = CopyTable {
        schema: "public".into(),
        name: "t".into(),
        columns: vec!["line".into()],
        binary: false,
        of: 1,
    };
    let estimate = history.len() as u64;
    let mut frames = VecDeque::from([
        Frame::CopyBegin(CopyStart {
            consistent_point: point,
            snapshot: point,
            tables: 1,
            rows_estimate: estimate,
            bytes_estimate: estimate * 1000,
            sessions: 1,
            ..CopyStart::default()
        }),
        schema(false),
        Frame::CopyTable { part: 0, table },
    ]);
    let mut rows = Bytes::from(copy_rows(history, point));
    let mut total = 0;
    while !rows.is_empty() {
        let data = rows.split_to(rng.random_range(1..=rows.len().min(PIECE / 4)));
        let ended = data.iter().filter(|byte| **byte == b'\n').count() as u32;
        total += u64::from(ended);
        frames.push_back(Frame::CopyRows { part: 0, rows: ended, data });
    }
    frames.extend([Frame::CopyTableEnd { part: 0, rows: total, last: true }, schema(true), Frame::CopyEnd]);
    frames
}
