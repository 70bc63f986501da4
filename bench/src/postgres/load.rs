//! Load by pgbench, and what it prints and logs.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{DATABASE, Protocol};
use crate::replication::Server;

/// What one run came to.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Outcome {
    pub(super) per_second: f64,
    pub(super) p50_us: f64,
    pub(super) p99_us: f64,
    pub(super) done: u64,
    pub(super) failed: u64,
    pub(super) cpu_us: f64,
}

pub(super) fn run(
    server: &Server,
    address: SocketAddr,
    protocol: Protocol,
    clients: usize,
    span: Duration,
) -> Result<Outcome> {
    let folder = tempfile::tempdir()?;
    let output = Command::new(server.cluster.bin.join("pgbench"))
        .args(["-h", &address.ip().to_string(), "-p", &address.port().to_string(), "-U", "postgres"])
        .args(["-n", "-S", "-M", protocol.name(), "-j", "1", "-c", &clients.to_string()])
        .args(["-T", &span.as_secs().to_string(), "-l", DATABASE])
        .current_dir(folder.path())
        .output()
        .context("pgbench cannot be run")?;
    let (text, told) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "pgbench failed: {text}{told}");
    let mut outcome = read(&text).with_context(|| format!("pgbench said what is not understood: {text}"))?;
    let mut took = Vec::new();
    for entry in std::fs::read_dir(folder.path())? {
        took.extend(microseconds(&std::fs::read_to_string(entry?.path())?));
    }
    (outcome.p50_us, outcome.p99_us) = quantiles(&mut took);
    Ok(outcome)
}

/// `number of transactions actually processed: N`, `number of failed transactions: N (…)`, `tps = X (…)`.
fn read(text: &str) -> Option<Outcome> {
    let after = |label: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(label))?;
        line.split([' ', '/']).find(|word| !word.is_empty())
    };
    Some(Outcome {
        per_second: after("tps =")?.parse().ok()?,
        done: after("number of transactions actually processed:")?.parse().ok()?,
        failed: after("number of failed transactions:")?.parse().ok()?,
        ..Outcome::default()
    })
}

/// Of a log with client, transaction, microseconds, … of each transaction.
fn microseconds(log: &str) -> impl Iterator<Item = u32> {
    log.lines().filter_map(|line| line.split(' ').nth(2)?.parse().ok())
}

fn quantiles(took: &mut [u32]) -> (f64, f64) {
    took.sort_unstable();
    let at = |percent: usize| {
        let last = took.len().saturating_sub(1);
        took.get(last * percent / 100).map_or(f64::NAN, |us| f64::from(*us))
    };
    (at(50), at(99))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_pgbench_prints() {
        let text = "pgbench (15.18)\ntransaction type: <builtin: select only>\nduration: 5 s\n\
            number of transactions actually processed: 61728\nnumber of failed transactions: 3 (0.005%)\n\
            latency average = 0.081 ms\ninitial connection time = 3.456 ms\ntps = 12345.678901 (without initial connection time)\n";
        let read_of = read(text).unwrap();
        let expected = Outcome { per_second: 12_345.678_901, done: 61_728, failed: 3, ..Outcome::default() };
        assert_eq!(read_of, expected);
        assert_eq!(read("nothing"), None);
        let mut took: Vec<u32> = microseconds("0 1 100 0 1 2\n0 2 300 0 1 2\nodd\n0 3 200 0 1 2\n").collect();
        let (p50, p99) = quantiles(&mut took);
        assert!((p50 - 200.0).abs() < 1e-9 && (p99 - 200.0).abs() < 1e-9);
    }
}
