//! Bytes captured from PostgreSQL 18 with `pg_logical_slot_peek_binary_changes`, and bytes that no server sends.

use proptest::prelude::*;

use super::*;
use crate::change::{Cell, Column, PgTimestamp, ReplicaIdentity, Transaction};
use crate::lsn::Lsn;

const RELATION_T: &str = "52000040057075626c69630074006400030169640000000017ffffffff00626f64790000000019ffffffff\
                          006d0000004001ffffffff";
const RELATION_F: &str = "520000400d7075626c696300660066000201610000000017ffffffff01620000000019ffffffff";
const BEGIN: &str = "4200000000017381400003040f2defb8f4000002f7";
const COMMIT: &str = "4300000000000173814000000000017383800003040f2defb8f4";

/// `CREATE TABLE t (id int PRIMARY KEY, body text, m mood)`, body never compressed;
/// `CREATE TABLE f (a int, b text)` with REPLICA IDENTITY FULL; the long body shortened to one byte.
const CAPTURED: [&str; 17] = [
    BEGIN,
    "59000040017075626c6963006d6f6f6400",
    RELATION_T,
    "49000040054e00037400000001316e740000000463616c6d",
    "55000040054b00037400000001316e6e4e000374000000013274000000017874\
     0000000463616c6d",
    "55000040054e000374000000013275740000000563726f7373",
    RELATION_F,
    "490000400d4e00027400000001377400000002c3a9",
    "550000400d4f00027400000001377400000002c3a94e0002740000000137740000000177",
    "440000400d4f0002740000000137740000000177",
    "44000040054b00037400000001326e6e",
    "59000040017075626c6963006d6f6f6400",
    RELATION_T,
    RELATION_F,
    "540000000203000040050000400d",
    "4d010000000001738140676f647769742e66656e6365000000000138",
    COMMIT,
];

fn hex(text: &str) -> Bytes {
    let digits: Vec<u8> =
        text.bytes().map(|digit| char::from(digit).to_digit(16).expect("hex") as u8).collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

fn decode_all(messages: &[&str]) -> Result<Vec<Transaction>, Error> {
    let mut decoder = Decoder::new();
    let mut found = Vec::new();
    let mut open: HashMap<u32, Vec<(u32, Change)>> = HashMap::default();
    for message in messages {
        match decoder.decode(hex(message))? {
            None | Some(Event::Origin { .. }) => {}
            Some(Event::Change { xid, sub, change }) => open.entry(xid).or_default().push((sub, change)),
            Some(Event::Abort { xid, sub }) if xid == sub => drop(open.remove(&xid)),
            Some(Event::Abort { xid, sub }) => open.entry(xid).or_default().retain(|(by, _)| *by != sub),
            Some(Event::Commit(header)) => {
                let changes = open.remove(&header.xid).unwrap_or_default();
                found.push(header.with(changes.into_iter().map(|(_, change)| change).collect()));
            }
        }
    }
    Ok(found)
}

fn text(value: &str) -> Cell {
    Cell::Text(Bytes::copy_from_slice(value.as_bytes()))
}

fn column(name: &str, key: bool, type_oid: u32) -> Column {
    Column { name: name.into(), key, type_oid, type_modifier: -1 }
}

#[test]
fn a_captured_transaction() {
    let t = Arc::new(Relation {
        id: 16389,
        schema: "public".into(),
        name: "t".into(),
        identity: ReplicaIdentity::Default,
        columns: vec![column("id", true, 23), column("body", false, 25), column("m", false, 16385)],
    });
    let f = Arc::new(Relation {
        id: 16397,
        schema: "public".into(),
        name: "f".into(),
        identity: ReplicaIdentity::Full,
        columns: vec![column("a", true, 23), column("b", true, 25)],
    });
    let expected = Transaction {
        xid: 759,
        commit_lsn: Lsn(0x0173_8140),
        end_lsn: Lsn(0x0173_8380),
        commit_time: PgTimestamp(0x0003_040f_2def_b8f4),
        origin: None,
        changes: vec![
            Change::Insert { relation: t.clone(), new: vec![text("1"), Cell::Null, text("calm")] },
            Change::Update {
                relation: t.clone(),
                old: Some(OldRow::Key(vec![text("1"), Cell::Null, Cell::Null])),
                new: vec![text("2"), text("x"), text("calm")],
            },
            Change::Update {
                relation: t.clone(),
                old: None,
                new: vec![text("2"), Cell::Unchanged, text("cross")],
            },
            Change::Insert { relation: f.clone(), new: vec![text("7"), text("é")] },
            Change::Update {
                relation: f.clone(),
                old: Some(OldRow::Full(vec![text("7"), text("é")])),
                new: vec![text("7"), text("w")],
            },
            Change::Delete { relation: f.clone(), old: OldRow::Full(vec![text("7"), text("w")]) },
            Change::Delete { relation: t.clone(), old: OldRow::Key(vec![text("2"), Cell::Null, Cell::Null]) },
            Change::Truncate { relations: vec![t, f], cascade: true, restart_identity: true },
            Change::Message { prefix: "godwit.fence".into(), content: Bytes::from_static(b"8") },
        ],
    };
    let found = decode_all(&CAPTURED).expect("valid");
    assert_eq!(found, [expected]);
    assert_eq!(found[0].marker(), Some(8));
}

#[test]
fn an_origin_and_a_message_outside_transactions() {
    let found = decode_all(&[
        "4d0000000000017383c06f74686572000000000178",
        "4200000000017384000003040f2df0a0b0000002f8",
        "4f00000000000000ab676f647769745f6f726465727300",
        RELATION_F,
        "490000400d4e000274000000013174000000016f",
        "4300000000000173840000000000017384480003040f2df0a0b0",
    ])
    .expect("valid");
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].origin.as_deref(), Some("godwit_orders"));
    assert_eq!(found[0].changes.len(), 1);
}

#[test]
fn refusals_say_what_is_wrong() {
    let insert = "490000400d4e00027400000001377400000002c3a9";
    for (messages, complaint) in [
        (vec![""], "empty"),
        (vec!["7a"], "unknown pgoutput message 'z'"),
        (vec![BEGIN, BEGIN], "inside another"),
        (vec![COMMIT], "outside a transaction"),
        (vec![RELATION_F, insert], "a change outside a transaction"),
        (vec![BEGIN, insert], "relation 16397 was never described"),
        (vec![BEGIN, RELATION_F, "490000400d4e0001740000000137"], "1 values for public.f, which has 2"),
        (vec![BEGIN, RELATION_F, "490000400d4e0001740000"], "cut short at its value"),
        // Lengths far beyond the bytes: refused, nothing allocated for them.
        (vec![BEGIN, RELATION_F, "490000400d4effff74ffffffff"], "cut short at its value"),
        (vec!["54ffffffff00"], "cut short at its relation"),
        (vec![BEGIN, RELATION_F, "490000400d4e000162000000013777"], "binary"),
        (vec!["530000000700"], "7 goes on that never began"),
        (vec!["45"], "a block ends that never began"),
        (vec![START_7, START_7], "inside another"),
        (vec![BEGIN, START_7], "inside another"),
        (vec![START_7, COMMIT], "outside a transaction"),
        (vec![START_7, COMMIT_7], "inside another"),
        (vec![START_7, "410000000700000007"], "inside another"),
        (vec![COMMIT_7], "7 is committed that never began"),
        (vec![START_7, "4900000007"], "cut short at its relation"),
        (vec![&format!("{BEGIN}00")], "1 bytes left over in a begin message"),
        (vec!["59000040017075ff"], "cut short at its schema"),
        (vec!["5900004001ff00"], "not UTF-8"),
        (vec![BEGIN, "4300000000000000000100000000017383800003040f2defb8f4"], "committed at 0/1"),
    ] {
        let error = decode_all(&messages).expect_err(complaint).to_string();
        assert!(error.contains(complaint), "{messages:?} gave {error:?}, not {complaint:?}");
    }
}

const START_7: &str = "530000000701";
const COMMIT_7: &str = "630000000700000000000173814000000000017383800003040f2defb8f4";

/// `message` as it comes inside a block: with the id of its (sub)transaction after the tag.
fn by(sub: u32, message: &str) -> String {
    format!("{}{sub:08x}{}", &message[..2], &message[2..])
}

/// Two transactions in blocks, a savepoint of one taken back, the other taken back whole, and two that come whole.
fn in_blocks() -> Vec<String> {
    let insert = |sub: u32, a: char| by(sub, &format!("490000400d4e000274000000013{a}74000000017a"));
    vec![
        START_7.to_owned(),
        by(7, RELATION_F),
        insert(7, '1'),
        insert(8, '2'),
        insert(9, '3'),
        "45".to_owned(),
        "530000000b01".to_owned(),
        "4f00000000000000ab676f647769745f6f726465727300".to_owned(),
        by(11, RELATION_F),
        insert(11, '4'),
        "45".to_owned(),
        // A finished one between the blocks, with a table of its own.
        BEGIN.to_owned(),
        RELATION_T.to_owned(),
        "49000040054e00037400000001316e740000000463616c6d".to_owned(),
        COMMIT.to_owned(),
        "410000000700000008".to_owned(),
        "530000000700".to_owned(),
        insert(10, '5'),
        by(7, "4d010000000001738140676f647769742e66656e6365000000000138"),
        "45".to_owned(),
        "410000000b0000000b".to_owned(),
        COMMIT_7.to_owned(),
        // What transaction 7 described holds from its commit on.
        BEGIN.to_owned(),
        "490000400d4e00027400000001377400000002c3a9".to_owned(),
        COMMIT.to_owned(),
    ]
}

/// Whole streams of messages, by name: seeds of the fuzz target.
pub(crate) fn streams() -> [(&'static str, Vec<Bytes>); 2] {
    let blocks = in_blocks();
    [
        ("captured", CAPTURED.map(hex).to_vec()),
        ("in-blocks", blocks.iter().map(|message| hex(message)).collect()),
    ]
}

#[test]
fn blocks_of_unfinished_transactions_interleave_and_savepoints_are_taken_back() {
    let messages = in_blocks();
    let messages: Vec<&str> = messages.iter().map(String::as_str).collect();
    let found = decode_all(&messages).expect("valid");
    let xids: Vec<u32> = found.iter().map(|transaction| transaction.xid).collect();
    assert_eq!(xids, [759, 7, 759], "in the order of their commits");
    let firsts: Vec<String> = found[1]
        .changes
        .iter()
        .map(|change| match change {
            Change::Insert { new, .. } => format!("{:?}", new[0]),
            other => format!("{other:?}"),
        })
        .collect();
    assert_eq!(firsts[..3], ["Text(b\"1\")", "Text(b\"3\")", "Text(b\"5\")"]);
    assert_eq!(found[1].marker(), Some(8));
    assert_eq!((found[1].commit_lsn, found[1].end_lsn), (Lsn(0x0173_8140), Lsn(0x0173_8380)));
}

#[test]
fn a_table_altered_by_an_unfinished_transaction_is_new_only_to_it() {
    let mut decoder = Decoder::new();
    let wider = "520000400d7075626c696300660066000301610000000017ffffffff01620000000019ffffffff00630000000019ffffffff";
    let narrow = "490000400d4e00027400000001377400000002c3a9";
    let wide = "490000400d4e00037400000001377400000002c3a96e";
    for message in
        [BEGIN, RELATION_F, COMMIT, START_7, &by(7, wider), &by(7, wide), "45", BEGIN, narrow, COMMIT]
    {
        decoder.decode(hex(message)).expect(message);
    }
    // Taken back, its description goes too.
    let mut taken_back = decoder;
    taken_back.decode(hex("410000000700000007")).expect("abort");
    taken_back.decode(hex(BEGIN)).expect("begin");
    taken_back.decode(hex(narrow)).expect("the table is as it was");
}

#[test]
fn every_cut_of_a_captured_message_is_refused() {
    for message in CAPTURED {
        let whole = hex(message);
        for end in 0..whole.len() {
            // In the middle of a transaction, so that only the cut can be at fault.
            let mut decoder = Decoder::new();
            for message in [BEGIN, RELATION_T, RELATION_F] {
                decoder.decode(hex(message)).expect("valid");
            }
            assert!(decoder.decode(whole.slice(..end)).is_err(), "{message} cut at {end}");
        }
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..80), 0..8)) {
        let mut decoder = Decoder::new();
        for message in messages {
            let _ = decoder.decode(message.into());
        }
    }

    #[test]
    fn captured_bytes_with_some_changed_never_panic(
        changed in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut messages: Vec<Vec<u8>> = CAPTURED.iter().map(|message| hex(message).to_vec()).collect();
        messages.extend(in_blocks().iter().map(|message| hex(message).to_vec()));
        for (message, at, byte) in changed {
            let message = message.index(messages.len());
            let message = &mut messages[message];
            let at = at.index(message.len());
            message[at] = byte;
        }
        let mut decoder = Decoder::new();
        for message in messages {
            let _ = decoder.decode(message.into());
        }
    }
}
