//! CPU per proxied request, Godwit's front against a bare pingora proxy.
//!
//! Both are children of this process with the same settings, and get the same load in turns, so that whatever else the
//! machine does falls on both alike. What counts is the CPU time the kernel charged the child (utime + stime), not time on
//! the wall: the load generator shares the machine.

mod load;

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use async_trait::async_trait;
use clap::{Args, ValueEnum};
use godwit::config::model::{HoldLimits, HttpFront};
use godwit::fronts::http::settings::ListenerTls;
use godwit::fronts::http::{ServerSettings, server, service};
use godwit::fronts::latencies::Recorder;
use godwit::fronts::pools::Pool;
use godwit::fronts::routes::{ResourceFront, Routes, report};
use pingora::listeners::tls::TlsSettings;
use pingora::prelude::HttpPeer;
use pingora::proxy::{ProxyHttp, Session, http_proxy_service};
use pingora::server::ShutdownWatch;
use pingora::services::background::{BackgroundService, background_service};

/// The kernel counts CPU time in hundredths of a second towards user space (`USER_HZ`).
pub(crate) const TICK: Duration = Duration::from_millis(10);
/// The goal: Godwit's CPU over bare CPU.
const GOAL: f64 = 1.10;

/// How much of what.
#[derive(Args)]
pub(crate) struct Plan {
    /// Kept-alive connections.
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// Requests per round.
    #[arg(long, default_value_t = 40_000)]
    requests: usize,
    /// Rounds for each proxy; one more, first, warms up and does not count.
    #[arg(long, default_value_t = 7)]
    rounds: usize,
}

/// The two proxies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// Godwit's front.
    Godwit,
    /// Nothing but `upstream_peer`.
    Bare,
}

impl Default for Plan {
    fn default() -> Self {
        Self { connections: 64, requests: 40_000, rounds: 7 }
    }
}

/// Runs the comparison and prints it.
pub(crate) fn run(plan: &Plan) -> Result<()> {
    if cfg!(debug_assertions) {
        println!("built without optimisation: the ratio says little; use --release");
    }
    let runtime = tokio::runtime::Runtime::new()?;
    let upstream = runtime.block_on(load::upstream())?;
    let proxies = [Kind::Bare, Kind::Godwit]
        .map(|kind| Proxy::start(kind, upstream))
        .into_iter()
        .collect::<Result<Vec<_>>>()?;
    for proxy in &proxies {
        runtime.block_on(load::until_listening(proxy.address))?;
    }
    let mut costs = vec![Vec::new(); proxies.len()];
    for round in 0..=plan.rounds {
        // Who comes first changes every round.
        for turn in 0..proxies.len() {
            let at = (round + turn) % proxies.len();
            let proxy = &proxies[at];
            let before = proxy.cpu()?;
            runtime.block_on(load::requests(proxy.address, plan.connections, plan.requests))?;
            let cost = proxy.cpu()?.saturating_sub(before).as_secs_f64() * 1e6 / plan.requests as f64;
            if round > 0 {
                println!("round {round}  {:6}  {cost:7.2} us CPU per request", proxy.name());
                costs[at].push(cost);
            }
        }
    }
    // Where the machine's own speed changes midway, the medians are of different machines; a round's two are not.
    let mut pairs: Vec<f64> = costs[0].iter().zip(&costs[1]).map(|(bare, godwit)| godwit / bare).collect();
    let [bare, godwit] = [0, 1].map(|at: usize| median(&mut costs[at]));
    println!("median   bare    {bare:7.2} us");
    println!("median   godwit  {godwit:7.2} us");
    let ratio = godwit / bare;
    println!("ratio    {ratio:.3}  (goal {GOAL:.2}: {})", if ratio <= GOAL { "met" } else { "not met" });
    println!("rounds   {:.3}  (median of each round's ratio)", median(&mut pairs));
    Ok(())
}

/// Serves as one of the proxies until killed.
pub(crate) fn proxy(kind: Kind, listen: SocketAddr, upstream: SocketAddr) -> Result<()> {
    let mut server = server(ServerSettings::default());
    match kind {
        Kind::Bare => {
            let mut bare = http_proxy_service(&server.configuration, Bare(upstream));
            bare.add_tcp(&listen.to_string());
            server.add_service(bare);
        }
        Kind::Godwit => {
            let hold = HoldLimits { requests: 1000, bytes: 64 << 20, time: Duration::from_secs(5) };
            let pool = Pool::new(1, "bench", &[upstream]);
            let front =
                ResourceFront::new("bench", &HttpFront::plain(listen, &["bench.example"]), hold, pool);
            let routes = Routes::new(&[front])?;
            let recorder = Recorder::new();
            let fronts = service(&server, &routes, &recorder);
            server.add_service(fronts);
            // As it runs in production, reader included.
            let reporting = Reporting { routes, reader: recorder.reader(), recorder };
            server.add_service(background_service("report", reporting));
        }
    }
    server.run_forever()
}

/// Serves as one of the proxies with one worker, in the clear and over TLS, until killed; certificates are in `folder`.
pub(crate) fn http_proxy(
    godwit: bool,
    clear: SocketAddr,
    secure: SocketAddr,
    upstream: SocketAddr,
    folder: &std::path::Path,
) -> Result<()> {
    let mut server = server(ServerSettings { threads: 1, ..ServerSettings::default() });
    let pair = (folder.join("bench.example.pem"), folder.join("bench.example.key"));
    if godwit {
        let hold = HoldLimits { requests: 1000, bytes: 64 << 20, time: Duration::from_secs(5) };
        let front = |name: &str, listen: SocketAddr, tls: Option<ListenerTls>| {
            let mut front = HttpFront::plain(listen, &["bench.example"]);
            front.listener.tls = tls;
            ResourceFront::new(name, &front, hold, Pool::new(1, "bench", &[upstream]))
        };
        let tls = ListenerTls { certificates: vec![pair], clients: None, http2: true };
        let routes = Routes::new(&[front("clear", clear, None), front("secure", secure, Some(tls))])?;
        let recorder = Recorder::new();
        let fronts = service(&server, &routes, &recorder);
        server.add_service(fronts);
        let reporting = Reporting { routes, reader: recorder.reader(), recorder };
        server.add_service(background_service("report", reporting));
    } else {
        let mut bare = http_proxy_service(&server.configuration, Bare(upstream));
        bare.add_tcp(&clear.to_string());
        let text = |path: &std::path::Path| path.display().to_string();
        let mut tls = TlsSettings::intermediate(&text(&pair.0), &text(&pair.1))
            .map_err(|error| anyhow::anyhow!("{error}"))?;
        tls.enable_h2();
        bare.add_tls_with_settings(&secure.to_string(), None, tls);
        server.add_service(bare);
    }
    server.run_forever()
}

/// A proxy that does nothing else.
struct Bare(SocketAddr);

#[async_trait]
impl ProxyHttp for Bare {
    type CTX = ();

    fn new_ctx(&self) {}

    async fn upstream_peer(&self, _: &mut Session, (): &mut ()) -> pingora::Result<Box<HttpPeer>> {
        Ok(Box::new(HttpPeer::new(self.0, false, String::new())))
    }
}

struct Reporting {
    routes: Arc<Routes>,
    recorder: Arc<Recorder>,
    reader: godwit::fronts::latencies::Latencies,
}

#[async_trait]
impl BackgroundService for Reporting {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        let _reader = &self.reader;
        tokio::select! {
            () = report(&self.routes, &self.recorder, Duration::from_millis(250)) => {}
            _ = shutdown.changed() => {}
        }
    }
}

/// A child process; killed when dropped.
struct Proxy {
    kind: Kind,
    address: SocketAddr,
    child: Child,
}

impl Proxy {
    fn start(kind: Kind, upstream: SocketAddr) -> Result<Self> {
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let child = Command::new(std::env::current_exe()?)
            .args(["proxy", name(kind), &address.to_string(), &upstream.to_string()])
            .spawn()
            .context("start a proxy")?;
        Ok(Self { kind, address, child })
    }

    fn name(&self) -> &'static str {
        name(self.kind)
    }

    /// User and system time so far.
    fn cpu(&self) -> Result<Duration> {
        let path = format!("/proc/{}/stat", self.child.id());
        let stat = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        cpu_ticks(&stat).map(|ticks| TICK * ticks).with_context(|| format!("{path} has no CPU times"))
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn name(kind: Kind) -> &'static str {
    match kind {
        Kind::Bare => "bare",
        Kind::Godwit => "godwit",
    }
}

/// utime + stime, fields 14 and 15; the name in field 2 may hold anything, parentheses too.
pub(crate) fn cpu_ticks(stat: &str) -> Option<u32> {
    let after_name = stat.rsplit_once(')')?.1;
    let mut times = after_name.split_whitespace().skip(11).map(str::parse::<u32>);
    Some(times.next()?.ok()? + times.next()?.ok()?)
}

pub(crate) fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        count if count % 2 == 1 => values[count / 2],
        count => f64::midpoint(values[count / 2 - 1], values[count / 2]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_cpu_times_past_any_name() {
        let stat = "12 (a) b (c) S 1 12 12 0 -1 4194304 100 0 0 0 70 30 0 0 20 0";
        assert_eq!(cpu_ticks(stat), Some(100));
        assert_eq!(cpu_ticks("nonsense"), None);
    }

    #[test]
    fn the_median_of_few() {
        assert!((median(&mut [3.0, 1.0, 2.0]) - 2.0).abs() < f64::EPSILON);
        assert!((median(&mut [4.0, 1.0]) - 2.5).abs() < f64::EPSILON);
    }
}
