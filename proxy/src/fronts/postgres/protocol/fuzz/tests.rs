//! The seeds of the fuzz targets, made by what the front itself writes, and a short run over them in every test run.

use std::collections::BTreeMap;
use std::path::PathBuf;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::fronts::postgres::protocol::message::Fault;
use crate::fronts::postgres::protocol::state;

/// Changed seeds that each target runs here; `make fuzz` looks further.
const ROUNDS: usize = 4_000;

type Target = (&'static str, fn(&[u8]));

const TARGETS: [Target; 4] =
    [("startup", startup), ("messages", messages), ("streaming", streaming), ("scram", scram)];

/// What a row of a session's state looks like.
fn row(values: [&str; 4]) -> Vec<u8> {
    let mut body = 4_u16.to_be_bytes().to_vec();
    for value in values {
        body.extend((value.len() as u32).to_be_bytes());
        body.extend(value.as_bytes());
    }
    body
}

fn written(write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::new();
    write(&mut out);
    out
}

fn exchange(first: &str, last: &str) -> Vec<u8> {
    [&(first.len() as u16).to_be_bytes(), first.as_bytes(), last.as_bytes()].concat()
}

/// A stream of changes: of a transaction, of one that is streamed before it ends, of Godwit's own table, and what a client keeps.
fn changes() -> Vec<u8> {
    let at = |position: u64| position.to_be_bytes();
    let own = [&[0, 0, 0, 9][..], b"godwit\0epoch\0d\0\0"].concat();
    let truncated = [0, 0, 0, 2, 0, 0, 0, 0, 9, 0, 0, 0, 8];
    let payloads: [&[&[u8]]; 14] = [
        &[b"B", &at(100), &[0; 12]],
        &[b"R", &own],
        &[b"I", &[0, 0, 0, 9], &[0; 8]],
        &[b"I", &[0, 0, 0, 8], &[0; 8]],
        &[b"T", &truncated],
        &[b"M", &[1], &at(100), b"godwit.fence\0", &[0; 4]],
        &[b"M", &[1], &at(100), b"mine\0", &[0; 4]],
        &[b"C", &[0], &at(100), &at(110), &[0; 8]],
        &[b"S", &[0, 0, 0, 7, 1]],
        &[b"R", &[0, 0, 0, 7], &own],
        &[b"T", &[0, 0, 0, 7], &truncated],
        &[b"E"],
        &[b"c", &[0, 0, 0, 7, 0], &at(120), &at(130), &[0; 8]],
        &[b"p", &[0], &at(140), &at(150), &[0; 12], b"gid\0"],
    ];
    let mut messages =
        vec![streaming::keepalive(90, 1, true).to_vec(), streaming::status(80, 1, true).to_vec()];
    for payload in payloads {
        messages.push([&[b'w'][..], &at(100), &at(105), &at(1), &payload.concat()].concat());
    }
    messages
        .into_iter()
        .flat_map(|message| [&(message.len() as u16).to_be_bytes()[..], &message].concat())
        .collect()
}

/// By target and name.
fn seeds() -> BTreeMap<(&'static str, &'static str), Vec<u8>> {
    let session = [("user", "ann"), ("database", "shop"), ("options", "-c a.b=c"), ("_pq_.x", "1")];
    let asked = |out: &mut Vec<u8>| {
        out.push(30);
        message::query(out, b"BEGIN; SET app.tenant = '7'; SELECT set_config('app.user', $1, false)");
        message::ready(out);
        state::ask(out, &["app.tenant".to_owned()], "ann", true);
        message::write(out, b'G', |_| {});
        message::write(out, b'd', |out| out.extend([b'x'; 100]));
        message::write(out, b'c', |_| {});
        Fault::fatal("57P01", "moved").detail("a table").write(out);
        message::ready(out);
        message::terminate(out);
    };
    let rows = |out: &mut Vec<u8>| {
        out.push(200);
        for values in [
            ["setting", "work_mem", "65536", ""],
            ["setting", "client_encoding", "LATIN1", ""],
            ["role", "clerk", "", ""],
            ["user", "bob", "", ""],
            ["parse", "s1", "SELECT $1, $2", "23,16400"],
            ["prepare", "p1", "PREPARE p1 AS SELECT 1", ""],
            ["channel", "odd \"one\"", "", ""],
            ["stuck", "a temporary object", "basket", ""],
        ] {
            message::write(out, b'D', |out| out.extend(row(values)));
        }
    };
    let proof = base64::encode(&[3; 32]);
    let (plain, bound) = (base64::encode(b"n,,"), base64::encode(b"p=tls-server-end-point,,here"));
    let salt = base64::encode(b"salt");
    let start = r#"START_REPLICATION SLOT "s" LOGICAL 0/1 ("proto_version" '4', streaming 'parallel', publication_names '"a",b')"#;
    let changes = |kind: u8| [&[kind][..], &changes()].concat();
    BTreeMap::from([
        (("streaming", "start"), [&[0][..], start.as_bytes()].concat()),
        (("streaming", "all"), changes(1)),
        (("streaming", "ended"), changes(110)),
        (("streaming", "other"), changes(202)),
        (("startup", "ssl"), vec![0, 0, 0, 8, 4, 210, 22, 47]),
        (("startup", "cancel"), written(|out| message::cancel(out, 7, b"abcd"))),
        (("startup", "session"), written(|out| message::startup(out, session.into_iter()))),
        (("messages", "asked"), written(asked)),
        (("messages", "rows"), written(rows)),
        (("scram", "plain"), exchange("n,,n=,r=abc", &format!("c={plain},r=abcfresh,p={proof}"))),
        (
            ("scram", "bound"),
            exchange("p=tls-server-end-point,,n=,r=abc", &format!("c={bound},r=abcfresh,p={proof}")),
        ),
        (("scram", "answer"), exchange(&format!("r=oursmore,s={salt},i=1"), &format!("v={proof}"))),
        (("scram", "verifier"), exchange(&format!("SCRAM-SHA-256$4096:{salt}${proof}:{proof}"), "")),
    ])
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds")
}

/// `UPDATE_SEEDS=1` writes them anew.
#[test]
fn the_seeds_are_what_the_front_writes() {
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
    const TELLING: [u8; 8] = [0, 1, 3, 4, 0x7f, 0x80, b'Z', 0xff];
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
