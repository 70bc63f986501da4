use std::collections::HashSet;
use std::io;

use super::*;

fn server(sqlstate: &str, message: &str) -> Error {
    Error::Server { context: "stream".into(), sqlstate: sqlstate.into(), message: message.into() }
}

/// What servers of 14 to 18 say, word for word.
const SAID: [(&str, &str, Cause, ErrorKind); 35] = [
    ("55006", "replication slot \"s\" is active for PID 1", Cause::InUse, ErrorKind::Retry),
    ("55006", "replication origin with ID 1 is already active for PID 2", Cause::InUse, ErrorKind::Retry),
    ("57P01", "terminating connection due to administrator command", Cause::Shutdown, ErrorKind::Retry),
    (
        "57P02",
        "terminating connection because of crash of another server process",
        Cause::Shutdown,
        ErrorKind::Retry,
    ),
    ("57P03", "the database system is starting up", Cause::Shutdown, ErrorKind::Retry),
    ("57P04", "database \"d\" does not exist", Cause::DatabaseGone, ErrorKind::Operator),
    ("57014", "canceling statement due to statement timeout", Cause::Cancelled, ErrorKind::Retry),
    ("53300", "sorry, too many clients already", Cause::Capacity, ErrorKind::Retry),
    (
        "53300",
        "number of requested standby connections exceeds \"max_wal_senders\" (currently 1)",
        Cause::Limits,
        ErrorKind::Operator,
    ),
    ("53400", "all replication slots are in use", Cause::Limits, ErrorKind::Operator),
    ("53100", "could not extend file \"base/1\": No space left on device", Cause::Disk, ErrorKind::Retry),
    ("53200", "out of memory", Cause::Capacity, ErrorKind::Retry),
    ("58030", "could not read file: Input/output error", Cause::Disk, ErrorKind::Retry),
    ("40001", "could not serialize access due to concurrent update", Cause::Collision, ErrorKind::Retry),
    ("40P01", "deadlock detected", Cause::Collision, ErrorKind::Retry),
    ("55P03", "canceling statement due to lock timeout", Cause::Locked, ErrorKind::Retry),
    ("08006", "connection failure", Cause::Network, ErrorKind::Retry),
    ("08P01", "protocol violation", Cause::Network, ErrorKind::Retry),
    (
        "58P01",
        "requested WAL segment 000000010000000000000003 has already been removed",
        Cause::WalRemoved,
        ErrorKind::Operator,
    ),
    (
        "55000",
        "can no longer get changes from replication slot \"s\": This slot has been invalidated because it exceeded the \
         maximum reserved size.",
        Cause::WalRemoved,
        ErrorKind::Operator,
    ),
    ("55000", "cannot read from logical replication slot \"s\"", Cause::WalRemoved, ErrorKind::Operator),
    ("55000", "can no longer access replication slot \"s\"", Cause::WalRemoved, ErrorKind::Operator),
    ("55000", "logical decoding requires \"wal_level\" >= \"logical\"", Cause::Settings, ErrorKind::Operator),
    ("42704", "replication slot \"s\" does not exist", Cause::SlotGone, ErrorKind::Operator),
    ("42704", "publication \"p\" does not exist", Cause::PublicationGone, ErrorKind::Operator),
    ("42704", "type \"mood\" does not exist", Cause::SchemaMismatch, ErrorKind::Operator),
    ("42P01", "relation \"t\" does not exist", Cause::SchemaMismatch, ErrorKind::Operator),
    ("28P01", "password authentication failed for user \"u\"", Cause::Credentials, ErrorKind::Operator),
    ("28000", "no pg_hba.conf entry for host", Cause::Credentials, ErrorKind::Operator),
    ("42501", "permission denied for table t", Cause::Permission, ErrorKind::Operator),
    ("25006", "cannot execute INSERT in a read-only transaction", Cause::ReadOnly, ErrorKind::Operator),
    ("0A000", "cached plan must not change result type", Cause::StalePlan, ErrorKind::Retry),
    ("23505", "duplicate key value violates unique constraint", Cause::Data, ErrorKind::Operator),
    ("XX001", "could not read block 1", Cause::Other, ErrorKind::Operator),
    ("", "", Cause::Other, ErrorKind::Operator),
];

#[test]
fn what_servers_say_is_classified() {
    for (sqlstate, message, cause, kind) in SAID {
        let error = server(sqlstate, message);
        assert_eq!((error.cause(), error.kind()), (cause, kind), "{sqlstate} {message}");
    }
}

#[test]
fn each_cause_has_a_label_of_its_own_and_advice() {
    let labels: HashSet<&str> = Cause::ALL.iter().map(|cause| cause.policy().label).collect();
    assert_eq!(labels.len(), Cause::ALL.len());
    assert_eq!(Cause::ALL.iter().collect::<HashSet<_>>().len(), Cause::ALL.len());
    for cause in Cause::ALL {
        let policy = cause.policy();
        assert!(policy.label.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{}", policy.label);
        assert!(!policy.advice.is_empty());
    }
}

#[test]
fn sockets_files_and_certificates_are_told_apart() {
    let cause = |error: io::Error| Error::io("do it")(error).cause();
    assert_eq!(cause(io::ErrorKind::ConnectionReset.into()), Cause::Network);
    assert_eq!(cause(io::ErrorKind::TimedOut.into()), Cause::Network);
    assert_eq!(cause(io::ErrorKind::StorageFull.into()), Cause::Disk);
    assert_eq!(cause(io::ErrorKind::PermissionDenied.into()), Cause::Unready);
    assert_eq!(cause(io::ErrorKind::NotFound.into()), Cause::Network, "a socket whose server is away");
    let unknown = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
    assert_eq!(cause(io::Error::new(io::ErrorKind::InvalidData, unknown)), Cause::Tls);
    let broken = rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType);
    assert_eq!(cause(io::Error::new(io::ErrorKind::InvalidData, broken)), Cause::Network);
}

#[test]
fn our_own_words_are_classified() {
    for (error, kind) in [
        (Error::Link("cut".into()), ErrorKind::Retry),
        (Error::Protocol("x".into()), ErrorKind::Retry),
        (Error::Unready("x".into()), ErrorKind::Operator),
        (Error::Fenced("x".into()), ErrorKind::Never),
        (
            Error::Conflict { table: "t".into(), lsn: crate::lsn::Lsn(1), what: "x".into() },
            ErrorKind::Operator,
        ),
    ] {
        assert_eq!(error.kind(), kind, "{error}");
    }
}

/// docs/source.md has each label of the table, and no other: whoever an alert sends there finds it.
#[test]
fn the_page_of_the_source_has_every_cause() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/source.md");
    let page = std::fs::read_to_string(page).expect("the page");
    let table = page.lines().skip_while(|line| !line.starts_with("| cause |")).skip(2);
    let rows = table.take_while(|line| line.starts_with('|'));
    let named: Vec<&str> = rows
        .filter_map(|row| row.split('|').nth(1))
        .flat_map(|cell| cell.split('`').skip(1).step_by(2))
        .collect();
    let labels = Cause::ALL.map(|cause| cause.policy().label);
    assert_eq!(named.iter().collect::<HashSet<_>>(), labels.iter().collect(), "{page}");
    assert_eq!(named.len(), labels.len(), "each once: {named:?}");
}
