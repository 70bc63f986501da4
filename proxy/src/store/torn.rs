//! What a journal is when the machine stopped while it was written: the last record whose `append` returned, or the one that
//! was being written, whole; never less, never half of one.

use std::path::Path;

use migration::cutover::{Event, Limits, Phase, State, Trigger, step};
use migration::policy::{Policy, PolicyParts};
use migration::units::{Position, Timestamp};

use super::Journal;

/// The states of a whole migration.
fn road() -> Vec<State> {
    let policy = Policy::new(PolicyParts::default()).expect("the default is valid");
    let mut states = vec![State::first("orders", "a".into(), "b".into(), Timestamp(1))];
    let events = [
        Event::ShadowEnabled,
        Event::StreamUp,
        Event::MigrateRequested {
            id: "m1".into(),
            to: "b".into(),
            trigger: Trigger::Score,
            limits: Limits::of(&policy),
        },
        Event::ShadowScaled,
        Event::GuardsPassed,
        Event::ReverseSlotMade,
        Event::GateClosed,
        Event::DrainFinished,
        Event::FenceUp { marker: Position(77) },
        Event::MarkerApplied,
        Event::SequencesSet,
        Event::ReverseSlotMade,
    ];
    for (at, event) in events.into_iter().enumerate() {
        let last = states.last().expect("the first");
        states.push(step(last, event, Timestamp(10 + at as u64)).expect("the straight road").0);
    }
    states
}

fn copy(from: &Path, to: &Path) {
    for name in ["godwit.db", "godwit.db-wal"] {
        std::fs::copy(from.join(name), to.join(name)).expect("copy");
    }
}

fn log_length(directory: &Path) -> u64 {
    std::fs::metadata(directory.join("godwit.db-wal")).expect("the log").len()
}

/// What is read of `snapshot` when only `kept` bytes of the log had reached the disk and the rest is `filler`, or not there.
fn after_a_crash(snapshot: &Path, kept: u64, filler: Option<u8>) -> Option<State> {
    let directory = tempfile::tempdir().expect("a directory");
    copy(snapshot, directory.path());
    let log = directory.path().join("godwit.db-wal");
    let mut bytes = std::fs::read(&log).expect("the log");
    let kept = usize::try_from(kept).expect("small");
    match filler {
        None => bytes.truncate(kept),
        Some(byte) => bytes[kept..].fill(byte),
    }
    std::fs::write(&log, bytes).expect("write");
    let journal = Journal::open(directory.path()).expect("a torn log is no reason not to start");
    journal.latest("orders").expect("readable")
}

#[test]
fn a_torn_end_costs_at_most_the_record_that_was_being_written() {
    let directory = tempfile::tempdir().expect("a directory");
    let snapshots = tempfile::tempdir().expect("a directory");
    let journal = Journal::open(directory.path()).expect("open");
    let states = road();
    assert_eq!(states.last().map(|state| state.phase), Some(Phase::Committed));
    let mut lengths = Vec::new();
    for (at, state) in states.iter().enumerate() {
        journal.append(state, "test", Timestamp(at as u64), None).expect("append");
        lengths.push(log_length(directory.path()));
        let snapshot = snapshots.path().join(at.to_string());
        std::fs::create_dir(&snapshot).expect("create");
        copy(directory.path(), &snapshot);
    }
    let mut lost = 0;
    for at in 1..states.len() {
        let snapshot = snapshots.path().join(at.to_string());
        let (before, after) = (lengths[at - 1], lengths[at]);
        assert!(after > before, "record {at} reached the log only later");
        let cuts = (0..4).map(|part| before + (after - before) * part / 4).chain([after - 1]);
        for cut in cuts {
            for filler in [None, Some(0), Some(0xA5)] {
                let found = after_a_crash(&snapshot, cut, filler);
                let kept = found.as_ref() == Some(&states[at - 1]);
                assert!(kept || found.as_ref() == Some(&states[at]), "record {at}, cut at {cut}: {found:?}");
                lost += u32::from(kept);
            }
        }
        assert_eq!(after_a_crash(&snapshot, before, None).as_ref(), Some(&states[at - 1]));
        assert_eq!(
            after_a_crash(&snapshot, after, None).as_ref(),
            Some(&states[at]),
            "an append that returned"
        );
    }
    assert!(lost > 50, "hardly any cut hit a record: {lost}");
}
