//! Load by wrk and h2load, and what they print.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::Speaks;
use super::peers::Peer;
use crate::front::median;

/// What one run came to.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Outcome {
    pub(super) per_second: f64,
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
    pub(super) answered: u64,
    pub(super) failed: u64,
    pub(super) cpu_us: f64,
    pub(super) memory_mib: f64,
}

pub(super) fn run(peer: &Peer, speaks: Speaks, connections: usize, span: Duration) -> Result<Outcome> {
    match speaks {
        Speaks::Http1 => wrk(&format!("http://{}/1k", peer.clear), connections, span),
        Speaks::Tls => wrk(&format!("https://{}/1k", peer.secure), connections, span),
        Speaks::Http2 => h2load(&format!("https://{}/1k", peer.secure), connections, span),
    }
}

fn output(command: &mut Command, name: &str) -> Result<String> {
    let output =
        command.output().with_context(|| format!("{name} cannot be run: scripts/setup.sh bench-http"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "{name} failed: {text}{}", String::from_utf8_lossy(&output.stderr));
    Ok(text)
}

fn wrk(url: &str, connections: usize, span: Duration) -> Result<Outcome> {
    let mut command = Command::new("wrk");
    command.args(["-t1", "--latency", "-H", "Host: bench.example"]);
    command.args([format!("-c{connections}"), format!("-d{}s", span.as_secs()), url.to_owned()]);
    let text = output(&mut command, "wrk")?;
    read_wrk(&text).with_context(|| format!("wrk said what is not understood: {text}"))
}

/// `Latency Distribution`, `N requests in`, `Socket errors`, `Non-2xx`, `Requests/sec`.
fn read_wrk(text: &str) -> Option<Outcome> {
    let word = |line: &str, at: usize| line.split_whitespace().nth(at).map(str::to_owned);
    let line = |has: &str| text.lines().find(|line| line.contains(has));
    let quantile = |name: &str| {
        let found = text.lines().find(|line| line.trim_start().starts_with(name))?;
        milliseconds(&word(found, 1)?)
    };
    let answered = word(line(" requests in ")?, 0)?.parse().ok()?;
    let broken = line("Socket errors:")
        .map_or(0, |line| line.split([' ', ',']).filter_map(|word| word.parse::<u64>().ok()).sum());
    let refused = line("Non-2xx").and_then(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).unwrap_or(0);
    Some(Outcome {
        per_second: word(line("Requests/sec:")?, 1)?.parse().ok()?,
        p50_ms: quantile("50%")?,
        p99_ms: quantile("99%")?,
        answered,
        failed: broken + refused,
        ..Outcome::default()
    })
}

/// `623.00us`, `1.25ms`, `2.00s`.
fn milliseconds(text: &str) -> Option<f64> {
    let (number, factor) = if let Some(number) = text.strip_suffix("us") {
        (number, 1e-3)
    } else if let Some(number) = text.strip_suffix("ms") {
        (number, 1.0)
    } else {
        (text.strip_suffix('s')?, 1e3)
    };
    number.parse::<f64>().ok().map(|number| number * factor)
}

fn h2load(url: &str, connections: usize, span: Duration) -> Result<Outcome> {
    let log = tempfile::NamedTempFile::new()?;
    let mut command = Command::new("h2load");
    // Its own `:authority`: with a `host` beside it that differs the request is malformed (RFC 9113, 8.3.1).
    command.args(["-t1", "-m10", "--header", ":authority: bench.example"]);
    command.arg(format!("--log-file={}", log.path().display()));
    command.args([format!("-c{connections}"), format!("-D{}", span.as_secs()), url.to_owned()]);
    let text = output(&mut command, "h2load")?;
    let mut outcome =
        read_h2load(&text).with_context(|| format!("h2load said what is not understood: {text}"))?;
    (outcome.p50_ms, outcome.p99_ms) = quantiles(&std::fs::read_to_string(log.path())?);
    Ok(outcome)
}

/// `finished in 5.00s, 12345.60 req/s, …`, `requests: … 61728 succeeded, 0 failed, 0 errored, 0 timeout`.
fn read_h2load(text: &str) -> Option<Outcome> {
    let finished = text.lines().find(|line| line.starts_with("finished in "))?;
    let per_second = finished.split(", ").find_map(|part| part.strip_suffix(" req/s"))?.parse().ok()?;
    let requests = text.lines().find(|line| line.starts_with("requests: "))?;
    let count = |name: &str| {
        requests["requests: ".len()..]
            .split(", ")
            .find_map(|part| part.strip_suffix(name)?.trim().parse::<u64>().ok())
    };
    Some(Outcome {
        per_second,
        answered: count(" succeeded")?,
        // What is errored is counted as failed too.
        failed: count(" failed")? + count(" timeout").unwrap_or(0),
        ..Outcome::default()
    })
}

/// Of a log with start, status and microseconds of each request.
fn quantiles(log: &str) -> (f64, f64) {
    let mut took: Vec<f64> = log
        .lines()
        .filter_map(|line| line.split_whitespace().nth(2)?.parse::<f64>().ok())
        .map(|us| us / 1e3)
        .collect();
    let p50 = median(&mut took);
    let last = took.len().saturating_sub(1);
    (p50, took.get(last * 99 / 100).copied().unwrap_or(f64::NAN))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_wrk_prints() {
        let text = "Running 5s test @ http://127.0.0.1:1/\n  1 threads and 32 connections\n  Thread Stats   Avg      Stdev     Max   +/- Stdev\n\
            \x20   Latency     1.11ms    1.00ms  20.00ms   90.00%\n    Req/Sec    30.00k     1.00k   31.00k    70.00%\n  Latency Distribution\n\
            \x20    50%  623.00us\n     75%    1.00ms\n     90%    2.00ms\n     99%    4.50ms\n  150000 requests in 5.00s, 40.00MB read\n\
            \x20 Socket errors: connect 0, read 2, write 1, timeout 0\n  Non-2xx or 3xx responses: 4\nRequests/sec:  30000.50\nTransfer/sec:      8.00MB\n";
        let read = read_wrk(text).unwrap();
        assert_eq!(
            read,
            Outcome {
                per_second: 30000.5,
                p50_ms: 0.623,
                p99_ms: 4.5,
                answered: 150_000,
                failed: 7,
                ..Outcome::default()
            }
        );
        assert_eq!(read_wrk("nothing"), None);
    }

    #[test]
    fn what_h2load_prints() {
        let text = "starting benchmark...\n\nfinished in 5.00s, 12345.60 req/s, 13.00MB/s\n\
            requests: 61740 total, 61800 started, 61740 done, 61728 succeeded, 12 failed, 12 errored, 0 timeout\n";
        let read = read_h2load(text).unwrap();
        assert_eq!((read.per_second, read.answered, read.failed), (12345.6, 61728, 12));
        let (p50, p99) = quantiles("1\t200\t1000\n2\t200\t3000\n3\t200\t2000\n");
        assert!((p50 - 2.0).abs() < 1e-9 && (p99 - 2.0).abs() < 1e-9);
    }
}
