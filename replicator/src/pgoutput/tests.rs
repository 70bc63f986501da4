//! Bytes captured from PostgreSQL 18 with `pg_logical_slot_peek_binary_changes`, and bytes that no server sends.

use proptest::prelude::*;

use super::*;
use crate::change::{Cell, Column, PgTimestamp, ReplicaIdentity};

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
    for message in messages {
        found.extend(decoder.decode(hex(message))?);
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
        (vec!["530000000101"], "streamed"),
        (vec![&format!("{BEGIN}00")], "1 bytes left over in a begin message"),
        (vec!["59000040017075ff"], "cut short at its schema"),
        (vec!["5900004001ff00"], "not UTF-8"),
        (vec![BEGIN, "4300000000000000000100000000017383800003040f2defb8f4"], "committed at 0/1"),
    ] {
        let error = decode_all(&messages).expect_err(complaint).to_string();
        assert!(error.contains(complaint), "{messages:?} gave {error:?}, not {complaint:?}");
    }
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
        changed in prop::collection::vec((0..CAPTURED.len(), any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut messages: Vec<Vec<u8>> = CAPTURED.iter().map(|message| hex(message).to_vec()).collect();
        for (message, at, byte) in changed {
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
