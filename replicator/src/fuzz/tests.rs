//! The seeds of the fuzz targets, made from the same bytes as the golden ones, and a short run over them in every test run.

use std::collections::BTreeMap;
use std::path::PathBuf;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::wire::tests::{every_frame, frames_of_version_3, sample};

/// Changed seeds that each target runs here; `make fuzz` looks further.
const ROUNDS: usize = 4_000;

type Target = (&'static str, fn(&[u8]));

const TARGETS: [Target; 5] = [
    ("pgoutput", pgoutput),
    ("frames", frames),
    ("bodies", bodies),
    ("transactions", transactions),
    ("large_pieces", large_pieces),
];

/// Messages behind their lengths.
fn joined<M: AsRef<[u8]>>(messages: impl IntoIterator<Item = M>) -> Vec<u8> {
    let mut out = Vec::new();
    for message in messages {
        let message = message.as_ref();
        out.extend_from_slice(&u16::try_from(message.len()).expect("short").to_be_bytes());
        out.extend_from_slice(message);
    }
    out
}

/// By target and name.
fn seeds() -> BTreeMap<(&'static str, String), Vec<u8>> {
    let mut all = BTreeMap::new();
    for (name, messages) in crate::pgoutput::tests::streams() {
        all.insert(("pgoutput", name.to_owned()), joined(messages));
    }
    for version in [Version::V1, Version::V2, Version::V3] {
        let newer = (version >= Version::V3).then(frames_of_version_3);
        let encoded: Vec<Bytes> = every_frame()
            .into_iter()
            .chain(newer.into_iter().flatten())
            .map(|frame| wire::encode_as(version, None, 0, &frame).expect("plain"))
            .collect();
        let number = version.number();
        all.insert(("frames", format!("version-{number}")), joined(&encoded));
        let bodies = encoded.iter().map(|frame| {
            // `bodies` takes one more than this for the version, by four.
            [&[number - 1, frame[5]], &frame[wire::HEADER..]].concat()
        });
        all.insert(("bodies", format!("version-{number}")), joined(bodies));
    }
    let mut compressor = Compressor::new().expect("zstd");
    let packed = [b'a', b'b', b'a'].map(|letter| {
        let frame = wire::Frame::CopyRows { part: 1, rows: 2, data: vec![letter; 3_000].into() };
        wire::encode_as(Version::V3, Some(&mut compressor), 0, &frame).expect("compresses")
    });
    all.insert(("frames", "compressed".into()), joined(&packed));
    let packed = packed.iter().map(|frame| [&[2, frame[5]], &frame[wire::HEADER..]].concat());
    all.insert(("bodies", "compressed".into()), joined(packed));
    let mut encoder = transaction::Encoder::default();
    let both = [(); 2].map(|()| encoder.encode(&sample()).expect("small"));
    all.insert(("transactions", "twice".into()), joined(&both));
    let mut encoder = transaction::Encoder::default();
    let mut records = BytesMut::new();
    for change in &sample().changes {
        let mut record = |put: &dyn Fn(&mut BytesMut)| {
            let mut body = BytesMut::new();
            put(&mut body);
            large::put_record_header(&mut records, body.len());
            records.put_slice(&body);
        };
        encoder.describe(change, &mut record);
        record(&|out| transaction::put_change(out, change));
    }
    all.insert(("large_pieces", "in-two".into()), joined(records.chunks(records.len() / 2 + 1)));
    all.insert(("large_pieces", "in-bytes".into()), joined(records.chunks(1)));
    all
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds")
}

/// `UPDATE_SEEDS=1` writes them anew.
#[test]
fn the_seeds_are_what_this_version_writes() {
    for ((target, name), bytes) in seeds() {
        let path = folder().join(target).join(name);
        if std::env::var_os("UPDATE_SEEDS").is_some() {
            std::fs::create_dir_all(folder().join(target)).expect("folder");
            std::fs::write(&path, &bytes).expect("seed");
        }
        let there = std::fs::read(&path);
        assert_eq!(there.ok().as_ref(), Some(&bytes), "{} (UPDATE_SEEDS=1 writes it)", path.display());
    }
}

/// One to four small changes somewhere.
fn change(bytes: &mut Vec<u8>, rng: &mut SmallRng) {
    const TELLING: [u8; 8] = [0, 1, 2, 0x40, 0x7f, 0x80, 0xfe, 0xff];
    for _ in 0..rng.random_range(1..=4) {
        if bytes.is_empty() {
            return bytes.push(rng.random());
        }
        let at = rng.random_range(0..bytes.len());
        match rng.random_range(0..5) {
            0 => bytes[at] ^= 1 << rng.random_range(0..8),
            1 => bytes[at] = TELLING[rng.random_range(0..TELLING.len())],
            2 => drop(bytes.splice(at..at, [rng.random()])),
            3 => drop(bytes.drain(at..(at + rng.random_range(1..6)).min(bytes.len()))),
            _ => {
                let (from, length) = (rng.random_range(0..bytes.len()), rng.random_range(1..64));
                let copied = bytes[from..(from + length).min(bytes.len())].to_vec();
                drop(bytes.splice(at..at, copied));
            }
        }
    }
}

#[test]
fn seeds_and_what_little_changes_make_of_them() {
    let seed = std::env::var("FUZZ_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(7);
    println!("FUZZ_SEED={seed}");
    let mut rng = SmallRng::seed_from_u64(seed);
    let seeds = seeds();
    for (target, run) in TARGETS {
        let own: Vec<&Vec<u8>> =
            seeds.iter().filter(|((of, _), _)| *of == target).map(|(_, bytes)| bytes).collect();
        assert!(!own.is_empty(), "{target} has no seed");
        for bytes in &own {
            run(bytes);
        }
        for _ in 0..ROUNDS {
            let mut bytes = own[rng.random_range(0..own.len())].clone();
            change(&mut bytes, &mut rng);
            let result = std::panic::catch_unwind(|| run(&bytes));
            assert!(result.is_ok(), "{target} fails on {bytes:02x?}");
        }
    }
}

/// Inputs that once failed, by target; they never fail again.
#[test]
fn what_failed_once_does_not_fail_again() {
    for (target, run) in TARGETS {
        let Ok(found) = std::fs::read_dir(folder().with_file_name("found").join(target)) else { continue };
        for file in found {
            let path = file.expect("listed").path();
            println!("{}", path.display());
            run(&std::fs::read(path).expect("readable"));
        }
    }
}
