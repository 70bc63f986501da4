use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use migration::units::Timestamp;

use super::chain::{self, Tip};
use super::checkpoint::Signer;
use super::folder::{self, Open};
use super::verify::{Findings, verify};
use super::writer::{QUEUE, Writer};
use super::{Audit, AuditError, Entry, Settings};
use crate::clock;

fn effect(name: &str) -> Entry {
    Entry::Effect {
        resource: "orders".into(),
        migration: None,
        effect: name.into(),
        spent_ms: 3,
        error: None,
    }
}

fn settings(directory: &Path, rotate: u64) -> Settings {
    Settings { directory: directory.to_owned(), node: "edge-1".into(), rotate }
}

/// Writes `count` records and ends the writer, which leaves a checkpoint of the last one.
async fn write(directory: &Path, count: usize, rotate: u64) {
    let checkpoints = || {
        let text = std::fs::read_to_string(directory.join(folder::CHECKPOINTS)).unwrap_or_default();
        text.lines().count()
    };
    let before = checkpoints();
    let audit = Audit::start(settings(directory, rotate)).expect("a thread");
    for index in 0..count {
        audit.write(effect(&format!("effect {index}"))).await.expect("written");
    }
    drop(audit);
    let closed = async {
        while checkpoints() == before {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), closed).await.expect("the writer leaves a last checkpoint");
}

fn failing(writer: &Writer) -> Option<String> {
    writer.failing.load().as_deref().cloned()
}

fn broken(directory: &Path) -> Option<String> {
    verify(directory, &[], None).expect("readable").broken
}

#[tokio::test]
async fn a_whole_audit_verifies_across_files_and_restarts() {
    let directory = tempfile::tempdir().expect("temporary directory");
    write(directory.path(), 4, 600).await;
    let before = verify(directory.path(), &[], None).expect("readable");
    assert!(before.files > 1, "it rotates");
    write(directory.path(), 4, 64 << 10).await;
    let Findings { records, first, last, checkpoints, keys, broken, .. } =
        verify(directory.path(), &[], None).expect("readable");
    // Each start leaves a record of its own; the second continues the first.
    assert_eq!((records, first, last, broken), (before.records + 5, Some(1), Some(before.records + 5), None));
    assert_eq!((checkpoints, keys.len()), (2, 1));
    assert!(
        verify(directory.path(), &[], Some("00"))
            .expect("readable")
            .broken
            .expect("a finding")
            .contains("another key")
    );
}

/// Whether a file of records and one of checkpoints are in order.
fn whole(records: &[u8], checkpoints: &[u8]) -> bool {
    let Some(records) = records.strip_suffix(b"\n") else { return false };
    let mut tip = None;
    let chained = records.split(|byte| *byte == b'\n').all(|line| chain::check(&mut tip, line).is_ok());
    let read = super::verify::read_checkpoints(checkpoints).expect("from memory");
    let agree = read.is_ok_and(|checkpoints| {
        checkpoints.iter().all(|checkpoint| {
            checkpoint.is_signed() && tip.as_ref().is_some_and(|tip| tip.hash == checkpoint.hash)
        })
    });
    chained && agree
}

#[tokio::test]
async fn any_changed_byte_is_found() {
    let directory = tempfile::tempdir().expect("temporary directory");
    write(directory.path(), 2, 64 << 10).await;
    let path = folder::files(directory.path()).expect("files")[0].clone();
    let records = std::fs::read(&path).expect("the file");
    let checkpoints = std::fs::read(directory.path().join(folder::CHECKPOINTS)).expect("the file");
    assert!(whole(&records, &checkpoints));
    for flip in [1, 0x20, 0x80] {
        for at in 0..records.len() {
            let mut changed = records.clone();
            changed[at] ^= flip;
            assert!(!whole(&changed, &checkpoints), "byte {at} ^ {flip} of the records");
        }
        // The newline behind a checkpoint is not part of it.
        for at in 0..checkpoints.len() - 1 {
            let mut changed = checkpoints.clone();
            changed[at] ^= flip;
            assert!(!whole(&records, &changed), "byte {at} ^ {flip} of the checkpoints");
        }
    }
    let mut changed = records.clone();
    changed[40] ^= 1;
    std::fs::write(&path, changed).expect("write");
    assert!(broken(directory.path()).expect("found").contains("line 1: it was changed"));
}

#[tokio::test]
async fn records_taken_away_or_put_in_are_found() {
    let directory = tempfile::tempdir().expect("temporary directory");
    write(directory.path(), 5, 64 << 10).await;
    let path = folder::files(directory.path()).expect("files")[0].clone();
    let whole = std::fs::read_to_string(&path).expect("the file");
    let lines: Vec<&str> = whole.split_inclusive('\n').collect();
    let tried = |change: &dyn Fn(&mut Vec<&str>)| {
        let mut changed = lines.clone();
        change(&mut changed);
        std::fs::write(&path, changed.concat()).expect("write");
        broken(directory.path())
    };
    assert_eq!(tried(&|_| {}), None);
    assert!(
        tried(&|lines| {
            lines.remove(2);
        })
        .expect("found")
        .contains("line 3: record 4 stands where 3 should")
    );
    assert!(
        tried(&|lines| lines.insert(3, lines[2]))
            .expect("found")
            .contains("line 4: record 3 stands where 4 should")
    );
    assert!(tried(&|lines| lines.swap(1, 2)).is_some());
    let cut = tried(&|lines| lines.truncate(3)).expect("found");
    assert!(
        cut.starts_with("the end was cut off") && cut.ends_with("saw record 6, the last one here is 3"),
        "{cut}"
    );
    assert!(tried(&|lines| lines.truncate(0)).expect("found").starts_with("the end was cut off"));
}

#[tokio::test]
async fn a_chain_that_was_made_anew_does_not_bear_out_a_checkpoint() {
    let directory = tempfile::tempdir().expect("temporary directory");
    write(directory.path(), 3, 64 << 10).await;
    let path = folder::files(directory.path()).expect("files")[0].clone();
    let mut tip = Tip::default();
    let forged: String = (0..4)
        .map(|index| {
            chain::append(&mut tip, "edge-1", Timestamp(index), &effect("harmless")).expect("a line")
        })
        .collect();
    std::fs::write(&path, forged).expect("write");
    assert!(broken(directory.path()).expect("found").contains("the chain was rewritten"));
    // Whoever removes the checkpoints as well is found by one that was kept elsewhere.
    let signer = Signer::open(&directory.path().join("checkpoint.key"), "edge-1").expect("the key");
    let kept = signer.sign(&Tip { seq: 9, hash: "ab".repeat(32) }, Timestamp(0));
    std::fs::remove_file(directory.path().join(folder::CHECKPOINTS)).expect("remove");
    assert_eq!(broken(directory.path()), None);
    assert!(
        verify(directory.path(), std::slice::from_ref(&kept), None)
            .expect("readable")
            .broken
            .expect("found")
            .contains("cut off")
    );
    let log = format!(
        "2026-01-01T00:00:00Z INFO audit checkpoint={}\n",
        serde_json::to_string(&kept).expect("json")
    );
    assert_eq!(super::verify::read_checkpoints(log.as_bytes()).expect("readable"), Ok(vec![kept.clone()]));
    // As a node logs it that writes for programs, behind what journalctl puts before it.
    let log = logged(&serde_json::to_string(&kept).expect("json"));
    assert!(log.contains("\"checkpoint\":\"{"), "docs/audit.md looks for it by that: {log}");
    let log = format!("Jan 01 00:00:00 edge godwit[1]: {log}");
    assert_eq!(super::verify::read_checkpoints(log.as_bytes()).expect("readable"), Ok(vec![kept]));
    let other = "{\"timestamp\":\"x\",\"fields\":{\"message\":\"godwit runs\"}}\n";
    assert!(super::verify::read_checkpoints(other.as_bytes()).expect("readable").is_err());
}

/// What a checkpoint is in the log off a terminal.
fn logged(line: &str) -> String {
    struct Sent(std::sync::mpsc::Sender<String>);
    impl std::io::Write for Sent {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.send(String::from_utf8_lossy(bytes).into_owned()).map_err(std::io::Error::other)?;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let (sender, lines) = std::sync::mpsc::channel();
    let subscriber = tracing_subscriber::fmt().json().with_writer(move || Sent(sender.clone())).finish();
    tracing::subscriber::with_default(subscriber, || tracing::info!(checkpoint = %line, "audit"));
    lines.try_iter().collect()
}

#[test]
fn what_a_crash_left_unfinished_is_cut_off_and_what_is_wrong_is_not_continued() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let mut open = Open::newest(directory.path(), None).expect("open");
    let mut tip = open.tip.clone();
    let lines: String =
        (0..2).map(|_| chain::append(&mut tip, "n", Timestamp(0), &effect("x")).expect("a line")).collect();
    open.append(&lines, tip.clone()).expect("append");
    let path = folder::files(directory.path()).expect("files")[0].clone();
    std::fs::write(&path, format!("{lines}{{\"seq\":3,\"at\"")).expect("write");
    let open = Open::newest(directory.path(), None).expect("open");
    assert_eq!((open.tip, open.cut), (tip, 13));
    assert_eq!(std::fs::read_to_string(&path).expect("the file"), lines);
    std::fs::write(&path, lines.replacen("edge", "egde", 1).replacen('x', "y", 1)).expect("write");
    assert!(Open::newest(directory.path(), None).err().expect("refused").to_string().contains("line 1"));
}

#[tokio::test]
async fn a_checkpoint_that_a_crash_left_unfinished_makes_way_for_the_next() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let path = directory.path().join(folder::CHECKPOINTS);
    // Longer than what is read of it at once.
    std::fs::write(&path, format!("{{\"node\":\"{}", "e".repeat(9000))).expect("write");
    assert_eq!(broken(directory.path()), None, "unfinished, as a crash leaves it");
    std::fs::remove_file(&path).expect("remove");
    write(directory.path(), 2, 64 << 10).await;
    let whole = std::fs::read_to_string(&path).expect("the file");
    for torn in ["{\"node\":\"edge-1\",\"se", &whole[..whole.len() / 2], &"e".repeat(9000)] {
        std::fs::write(&path, format!("{whole}{torn}")).expect("write");
        assert_eq!(broken(directory.path()), None, "{torn}");
        Open::newest(directory.path(), None).expect("open").add_checkpoint(&whole).expect("added");
        assert_eq!(std::fs::read_to_string(&path).expect("the file"), format!("{whole}{whole}"));
        // In the middle it is none.
        std::fs::write(&path, format!("{torn}\n{whole}")).expect("write");
        assert!(broken(directory.path()).expect("found").contains("line 1 is not a checkpoint"), "{torn}");
    }
}

#[tokio::test]
async fn a_key_is_there_as_a_whole_and_one_that_is_none_is_named() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let key = directory.path().join("checkpoint.key");
    std::fs::write(&key, "").expect("write");
    write(directory.path(), 1, 64 << 10).await;
    assert_eq!(broken(directory.path()), None);
    assert!(!key.with_extension("key.new").exists());
    let made = std::fs::read(&key).expect("the key");
    assert!(Signer::open(&key, "edge-1").is_ok() && std::fs::read(&key).expect("the key") == made);
    std::fs::write(&key, "none").expect("write");
    let audit = Audit::start(settings(directory.path(), 64 << 10)).expect("a thread");
    let why = audit.failing().expect("it fails");
    assert!(why.starts_with(&key.display().to_string()), "{why}");
}

#[tokio::test]
async fn a_record_that_is_too_long_is_shortened_and_nothing_behind_it_is_lost() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let line = |at: u32| format!("ALTER TABLE t{at} REPLICA IDENTITY USING INDEX \"{}\"", "ä".repeat(500));
    let schema = |lines: u32, more: Option<String>| Entry::Schema {
        resource: "orders".into(),
        zone: "here".into(),
        done: (0..lines).map(line).chain(more).collect(),
    };
    {
        let audit = Audit::start(settings(directory.path(), 64 << 20)).expect("a thread");
        audit.write(schema(2000, None)).await.expect("written");
        audit.write(schema(1, Some("\u{1}".repeat(2 << 20)))).await.expect("written");
        audit.write(effect("behind it")).await.expect("written");
    }
    let open = Open::newest(directory.path(), None).expect("open");
    assert_eq!((open.cut, open.tip.seq), (0, 4));
    assert_eq!(broken(directory.path()), None);
    let path = folder::files(directory.path()).expect("files")[0].clone();
    let text = std::fs::read_to_string(&path).expect("the file");
    let records: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).expect("a record")).collect();
    let done = records[1]["done"].as_array().expect("a list");
    assert_eq!((done.len(), &done[100]), (101, &"… (1900 more)".into()));
    assert!(done[0].as_str().expect("text").starts_with("ALTER TABLE t0 "));
    assert!(done[0].as_str().expect("text").ends_with(" bytes more)"), "{}", done[0]);
    assert_eq!((&records[3]["effect"], records[3]["seq"].as_u64()), (&"behind it".into(), Some(4)));

    // One that an older program left is not cut off together with what came after it.
    let mut tip = Tip::default();
    let mut lines = String::new();
    for entry in [schema(2000, None), effect("behind it")] {
        lines.push_str(&chain::append(&mut tip, "n", Timestamp(0), &entry).expect("a line"));
    }
    std::fs::write(&path, &lines).expect("write");
    let refused = Open::newest(directory.path(), None).err().expect("refused").to_string();
    assert!(refused.ends_with("line 1: it is longer than a record"), "{refused}");
    assert!(std::fs::read_to_string(&path).expect("the file") == lines, "it is as it was");
}

#[tokio::test]
async fn while_the_disk_takes_nothing_calls_are_refused_and_the_rest_is_kept() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let folder_path = directory.path().join("audit");
    std::fs::write(&folder_path, "in the way").expect("write");
    let audit = Audit::start(settings(&folder_path, 64 << 10)).expect("a thread");
    assert!(audit.failing().is_some());
    audit.note(effect("kept"));
    let refused = audit.write(effect("refused")).await.expect_err("refused").to_string();
    assert!(refused.starts_with("the audit cannot be written, so nothing is changed: "), "{refused}");
    std::fs::remove_file(&folder_path).expect("remove");
    audit.write(effect("written")).await.expect("written");
    assert_eq!(audit.failing(), None);
    let path = folder::files(&folder_path).expect("files")[0].clone();
    let text = std::fs::read_to_string(path).expect("the file");
    let effects: Vec<String> = text
        .lines()
        .filter_map(|line| {
            serde_json::from_str::<serde_json::Value>(line).ok()?["effect"].as_str().map(str::to_owned)
        })
        .collect();
    assert_eq!(effects, ["kept", "written"]);
    assert_eq!(broken(&folder_path), None);
}

/// Every record of the folder's first file.
fn records(directory: &Path) -> Vec<serde_json::Value> {
    let path = folder::files(directory).expect("files")[0].clone();
    let text = std::fs::read_to_string(path).expect("the file");
    text.lines().map(|line| serde_json::from_str(line).expect("a record")).collect()
}

#[tokio::test]
async fn records_that_a_disk_that_hangs_leaves_no_room_for_are_said_to_be_lost() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let (audit, mut writer, messages) = Audit::with_writer(settings(directory.path(), 64 << 20));
    writer.catch_up().expect("written");
    for index in 0..=QUEUE {
        audit.note(effect(&format!("effect {index}")));
    }
    std::thread::spawn(move || writer.run(&messages));
    assert!(audit.flush(Duration::from_secs(60)).await);
    let records = records(directory.path());
    assert_eq!((&records[0]["kind"], &records[1]["kind"]), (&"opened".into(), &"lost".into()));
    assert_eq!((&records[1]["records"], records.len()), (&1.into(), 2 + QUEUE));
    assert_eq!(records[QUEUE + 1]["effect"], format!("effect {}", QUEUE - 1));
    assert_eq!(broken(directory.path()), None);
}

#[tokio::test]
async fn a_disk_that_does_not_answer_is_not_waited_for() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let audit = Audit::start(settings(directory.path(), 64 << 20)).expect("a thread");
    let later = || clock::monotonic() + Duration::from_mins(1);
    let hangs = directory.path().join("hangs");
    std::fs::write(&hangs, "").expect("write");
    tokio::time::pause();
    assert_eq!(audit.write(effect("late")).await, Err(AuditError::Late));
    tokio::time::resume();
    let why = loop {
        if let Some(why) = audit.failing_at(later()) {
            break why;
        }
        std::thread::yield_now();
    };
    assert_eq!(why.as_str(), "the disk does not answer");
    std::fs::remove_file(&hangs).expect("remove");
    audit.write(effect("written")).await.expect("written");
    let records = records(directory.path());
    assert_eq!((records.len(), &records[1]["effect"]), (3, &"late".into()));
    assert_eq!(broken(directory.path()), None);
}

#[tokio::test]
async fn what_was_noted_right_before_the_end_is_there_with_a_checkpoint() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let audit = Audit::start(settings(directory.path(), 64 << 20)).expect("a thread");
    for index in 0..600 {
        audit.note(effect(&format!("effect {index}")));
    }
    assert!(audit.flush(Duration::from_secs(60)).await);
    assert_eq!(records(directory.path()).len(), 601);
    let checkpoints = std::fs::read_to_string(directory.path().join(folder::CHECKPOINTS)).expect("the file");
    let last: serde_json::Value =
        serde_json::from_str(checkpoints.lines().last().expect("one")).expect("a checkpoint");
    assert_eq!(last["seq"], 601);
    // Where the disk takes none, it says so.
    let taken = directory.path().join("taken");
    std::fs::write(&taken, "in the way").expect("write");
    let audit = Audit::start(settings(&taken, 64 << 20)).expect("a thread");
    audit.note(effect("kept"));
    assert!(!audit.flush(Duration::from_secs(60)).await);
}

#[tokio::test]
async fn a_full_disk_takes_records_again_when_it_has_taken_one() {
    let directory = tempfile::tempdir().expect("temporary directory");
    write(directory.path(), 1, 64 << 10).await;
    let path = folder::files(directory.path()).expect("files")[0].clone();
    let unfinished =
        OpenOptions::new().append(true).open(&path).and_then(|mut file| file.write_all(b"{\"se"));
    unfinished.expect("write");
    let full = directory.path().join("full");
    std::fs::write(&full, "").expect("write");
    let mut writer = Writer::new(settings(directory.path(), 64 << 10));
    for _ in 0..3 {
        let why = writer.catch_up().expect_err("it is full");
        assert_eq!(failing(&writer), Some(why), "nothing was written");
    }
    std::fs::remove_file(&full).expect("remove");
    writer.catch_up().expect("written");
    assert_eq!(failing(&writer), None);
    // Full once more, with nothing that waits.
    std::fs::write(&full, "").expect("write");
    writer.append(&[(&effect("refused"), Timestamp(0))]).expect_err("it is full");
    writer.catch_up().expect_err("it is full");
    assert!(failing(&writer).is_some());
    std::fs::remove_file(&full).expect("remove");
    writer.catch_up().expect("written");
    assert_eq!(broken(directory.path()), None);
    let text = std::fs::read_to_string(&path).expect("the file");
    let opened: Vec<u64> = text
        .lines()
        .filter_map(|line| {
            serde_json::from_str::<serde_json::Value>(line).expect("a record")["cut_bytes"].as_u64()
        })
        .collect();
    assert_eq!(opened, [0, 4, 0]);
}

#[tokio::test]
async fn a_file_that_has_no_record_yet_goes_on_although_the_one_before_it_was_taken_away() {
    let directory = tempfile::tempdir().expect("temporary directory");
    write(directory.path(), 2, 64 << 10).await;
    let mut writer = Writer::new(settings(directory.path(), 1));
    writer.catch_up().expect("written");
    let full = directory.path().join("full");
    std::fs::write(&full, "").expect("write");
    writer.append(&[(&effect("refused"), Timestamp(0))]).expect_err("it is full");
    let files = folder::files(directory.path()).expect("files");
    let (last, archived) = (files.last().expect("one"), tempfile::tempdir().expect("temporary directory"));
    for file in &files[..files.len() - 1] {
        std::fs::rename(file, archived.path().join(file.file_name().expect("a name"))).expect("moved");
    }
    // The writer knows what comes before it; a program that starts does not.
    let refused = Open::newest(directory.path(), None).err().expect("refused").to_string();
    assert!(refused.starts_with(&format!("{}: record 4, which", last.display())), "{refused}");
    std::fs::remove_file(&full).expect("remove");
    writer.catch_up().expect("written");
    assert_eq!((records(directory.path())[0]["seq"].as_u64(), broken(directory.path())), (Some(5), None));

    // There may be a checkpoint of it.
    std::fs::write(last, "").expect("write");
    let signer = Signer::open(&directory.path().join("checkpoint.key"), "edge-1").expect("the key");
    let tip = Tip { seq: 4, hash: "ab".repeat(32) };
    let checkpoint = serde_json::to_string(&signer.sign(&tip, Timestamp(0))).expect("json");
    std::fs::write(directory.path().join(folder::CHECKPOINTS), format!("{checkpoint}\n")).expect("write");
    assert_eq!(Open::newest(directory.path(), None).expect("open").tip, tip);

    // Of a disk that was replaced the chain goes on as well.
    let replaced = tempfile::tempdir().expect("temporary directory");
    Open::newest(replaced.path(), Some(tip)).expect("open");
    let files = folder::files(replaced.path()).expect("files");
    assert!(files[0].ends_with("audit-00000000000000000005.jsonl"), "{files:?}");
}

#[test]
fn secrets_are_left_out() {
    let body = serde_json::json!({ "name": "ci", "token": "gdw_x", "list": [{ "dbPassword": "y", "n": 1 }], "key": null,
        "password": { "file": "/etc/shadow" }, "secret": { "env": "HOME" }, "tokens": { "file": "a", "b": "c" }, "keys": { "file": ["z"] } });
    assert_eq!(
        super::entry::without_secrets(body).to_string(),
        r#"{"key":null,"keys":"(not recorded)","list":[{"dbPassword":"(not recorded)","n":1}],"name":"ci","password":{"file":"/etc/shadow"},"secret":{"env":"HOME"},"token":"(not recorded)","tokens":"(not recorded)"}"#
    );
    let recorded = |key: &str, text: &str| {
        super::entry::without_secrets(serde_json::json!({ "postgres": { key: text } }))["postgres"][key]
            == text
    };
    for secret in [
        "postgres://godwit:y@10.0.1.20/orders",
        "postgres://godwit@10.0.1.20/orders?password=y",
        "host=10.0.1.20 user=godwit password = y dbname=orders",
        "host=10.0.1.20 user=godwit PASSWORD=y",
        "postgres://godwit:y/z@10.0.1.20/orders",
        "see postgres://godwit:@10.0.1.20/orders or postgres://godwit:y@10.0.1.20/orders",
    ] {
        assert!(!recorded("dsn", secret) && !recorded("note", secret), "{secret}");
    }
    let unreadable = "postgres//godwit:y@10.0.1.20/orders";
    assert!(!recorded("service_dsn", unreadable), "a password may stand anywhere in it");
    for open in ["postgres://godwit@10.0.1.20:5432/orders", "host=10.0.1.20 user=godwit dbname=orders"] {
        assert!(recorded("dsn", open) && recorded("note", open), "{open}");
    }
    assert!(recorded("note", "the password is in http://10.0.0.1:80/ask?x=1, says ann@example.com"));
}
