//! What clients see of a cutover: twenty of them, there and back, over a WAN of 20 ms each way, under load.
//!
//! Two figures for each: how long the gate was closed (from the journal), and the longest any of a set of probing clients
//! waited for an answer while it happened. The databases run with fsync on.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use godwit::cli::client::Client;
use godwit::clock;
use godwit::controller::view::{MigrationView, ResourceView};
use godwit::demo::load::{Load, Options as LoadOptions};
use godwit::demo::node::Node;
use godwit::demo::orders::schema::Seed;
use godwit::demo::zone::{Options as ZoneOptions, POLICY, Playground, RESOURCE};
use godwit::drivers::process::cluster::installed;
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// How long one step may take before the run gives up.
const PATIENCE: Duration = Duration::from_secs(60);
/// Probing clients: each asks again as soon as it has an answer.
const PROBES: u32 = 8;
/// Pause of a probing client between answer and next question.
const PROBE_PAUSE: Duration = Duration::from_millis(2);

/// How the cutovers are run.
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// How many.
    #[arg(long, default_value_t = 20)]
    rounds: u32,
    /// One-way delay between the zones, milliseconds.
    #[arg(long, default_value_t = 20)]
    wan_ms: u64,
    /// Requests per second of the load.
    #[arg(long, default_value_t = 200.0)]
    rate: f64,
    /// The program under test; default: `godwit` beside this one.
    #[arg(long)]
    program: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self { rounds: 20, wan_ms: 20, rate: 200.0, program: None }
    }
}

type Waits = Arc<Mutex<Vec<(Instant, Duration)>>>;

struct Round {
    direction: String,
    closed_ms: u64,
    waited: Duration,
    usual: Duration,
    /// Milliseconds in each phase under the hold.
    phases: Vec<(String, u64)>,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(measure(options))
}

async fn measure(options: &Options) -> Result<()> {
    let program = crate::program_under_test(options.program.as_deref())?;
    let near = installed(15).context("PostgreSQL 15 is not on this machine: run make setup")?;
    let (far, far_major) = installed(18).map_or((near.clone(), 15), |bin| (bin, 18));
    let mut zones = ZoneOptions::new(program.clone(), [near, far]);
    zones.settings = [String::new(), String::new()];
    zones.workers = 4;
    zones.agent = true;
    zones.wan = Duration::from_millis(options.wan_ms);
    zones.policy =
        POLICY.replace("mode: auto", "mode: observe").replace("retire: {after: 5s", "retire: {after: 500ms");
    let playground = Playground::start(&zones).await?;
    let agent = playground.agent_config.as_ref().context("the agent's configuration")?;
    let mut nodes = [Node::start(&program, &playground.config, &[])?, Node::start(&program, agent, &[])?];
    let client = Client::new(&playground.admin.to_string());
    ready(&client, &mut nodes).await?;

    let load = Load::start(LoadOptions {
        target: playground.front,
        host: "orders.example".into(),
        rate: options.rate,
        writes: 0.4,
        customers: Seed::default().customers,
        timeout: Duration::from_secs(10),
        seed: 1,
        run: "bench".into(),
    });
    let (waits, stop) = (Waits::default(), CancellationToken::new());
    let mut probes = JoinSet::new();
    for number in 1..=PROBES {
        let (waits, front) = (waits.clone(), playground.front);
        probes
            .spawn(stop.clone().run_until_cancelled_owned(async move { probe(front, number, &waits).await }));
    }
    let mut rounds = Vec::new();
    // What was asked before the first round is what is usual.
    tokio::time::sleep(Duration::from_millis(500)).await;
    for number in 0..options.rounds {
        let view = ready(&client, &mut nodes).await?;
        let began = clock::monotonic();
        let usual = longest(&waits, began.checked_sub(Duration::from_millis(500)), Some(began), 0.5)?;
        let id = migrate(&client, &view.shadow).await?;
        let run = finished(&client, &mut nodes, &id).await?;
        ensure!(run.committed_ms.is_some(), "cutover {number} was rolled back: {:?}", run.reason);
        while let Some(ended) = probes.try_join_next() {
            if let Some(answered) = ended? {
                answered.context("a probing client failed")?;
            }
        }
        rounds.push(Round {
            direction: format!("{} → {}", run.from, run.to),
            closed_ms: run.held_ms.unwrap_or_default(),
            waited: longest(&waits, Some(began), None, 1.0)?,
            usual,
            phases: under_hold(&run),
        });
    }
    stop.cancel();
    let outcome = load.stop().await;
    report(options, far_major, &rounds, outcome.totals.sent, outcome.totals.failed)
}

async fn ready(client: &Client, nodes: &mut [Node]) -> Result<ResourceView> {
    let deadline = clock::monotonic() + PATIENCE;
    loop {
        for node in nodes.iter_mut() {
            node.check()?;
        }
        if let Ok(view) = client.fetch::<ResourceView>(&format!("/api/v1/resources/{RESOURCE}")).await {
            let mut guards = view.decision.iter().flat_map(|decision| &decision.guards);
            if view.phase == "shadowing"
                && view.decision.is_some()
                && guards.all(|g| g.passed || !g.binds_operator)
            {
                return Ok(view);
            }
        }
        if clock::monotonic() > deadline {
            bail!("the shadow was not ready in time:\n{}", nodes[0].tail(20));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn migrate(client: &Client, to: &str) -> Result<String> {
    let answer =
        client.send(&format!("/api/v1/resources/{RESOURCE}/migrations"), &json!({ "to": to })).await?;
    let plan: serde_json::Value = serde_json::from_slice(&answer)?;
    Ok(plan["id"].as_str().context("the migration's id")?.to_owned())
}

async fn finished(client: &Client, nodes: &mut [Node], id: &str) -> Result<MigrationView> {
    let deadline = clock::monotonic() + PATIENCE;
    loop {
        for node in nodes.iter_mut() {
            node.check()?;
        }
        let run: MigrationView =
            client.fetch(&format!("/api/v1/resources/{RESOURCE}/migrations/{id}")).await?;
        if run.ended() {
            return Ok(run);
        }
        if clock::monotonic() > deadline {
            bail!("migration {id} did not end in time: {run:#?}\n{}", nodes[0].tail(20));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// One keep-alive client that reads a customer over and over, and notes each wait.
async fn probe(front: std::net::SocketAddr, customer: u32, waits: &Waits) -> Result<()> {
    let stream = TcpStream::connect(front).await?;
    stream.set_nodelay(true)?;
    let mut stream = BufReader::new(stream);
    let request = format!("GET /customers/{customer} HTTP/1.1\r\nhost: orders.example\r\n\r\n");
    loop {
        let asked = clock::monotonic();
        stream.get_mut().write_all(request.as_bytes()).await?;
        let status = answer(&mut stream).await?;
        ensure!(status == 200, "the answer was {status} after {} ms", asked.elapsed().as_millis());
        waits.lock().unwrap_or_else(PoisonError::into_inner).push((asked, asked.elapsed()));
        tokio::time::sleep(PROBE_PAUSE).await;
    }
}

/// Reads one response with a content length; returns its status.
async fn answer(stream: &mut BufReader<TcpStream>) -> Result<u16> {
    let mut line = String::new();
    stream.read_line(&mut line).await?;
    let status = line.split(' ').nth(1).and_then(|code| code.parse().ok()).context("no status line")?;
    let mut length = 0;
    loop {
        line.clear();
        stream.read_line(&mut line).await?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().context("content-length")?;
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    Ok(status)
}

/// A quantile of the waits of requests that were sent in this span.
fn longest(waits: &Waits, from: Option<Instant>, until: Option<Instant>, quantile: f64) -> Result<Duration> {
    let waits = waits.lock().unwrap_or_else(PoisonError::into_inner);
    let mut within: Vec<Duration> = waits
        .iter()
        .filter(|(at, _)| from.is_none_or(|from| *at >= from) && until.is_none_or(|until| *at < until))
        .map(|(_, waited)| *waited)
        .collect();
    within.sort_unstable();
    let last = within.len().saturating_sub(1) as f64;
    within.get((last * quantile).round() as usize).copied().context("no probing client has asked")
}

/// The phases in which the gate is closed.
fn under_hold(run: &MigrationView) -> Vec<(String, u64)> {
    const HELD: [&str; 8] =
        ["armed", "held", "drained", "fenced", "caught_up", "sequenced", "committed", "swapped"];
    run.steps
        .iter()
        .filter(|step| HELD.contains(&step.phase.as_str()))
        .map(|step| {
            (step.phase.clone(), step.ended_ms.unwrap_or(step.started_ms).saturating_sub(step.started_ms))
        })
        .collect()
}

fn report(options: &Options, far_major: u32, rounds: &[Round], sent: u64, failed: u64) -> Result<()> {
    println!(
        "cutover: {} cutovers, {} ms each way, {} requests/s, PostgreSQL 15 and {far_major}, QUIC between two nodes",
        rounds.len(),
        options.wan_ms,
        options.rate
    );
    for round in rounds {
        let phases: Vec<String> = round.phases.iter().map(|(phase, ms)| format!("{phase} {ms}")).collect();
        println!(
            "  {:<24} gate closed {:>4} ms, longest wait {:>4} ms (usual {:>3} ms): {}",
            round.direction,
            round.closed_ms,
            round.waited.as_millis(),
            round.usual.as_millis(),
            phases.join(", ")
        );
    }
    let quantiles = |mut values: Vec<u64>| {
        values.sort_unstable();
        let at = |q: f64| {
            values.get(((values.len().saturating_sub(1)) as f64 * q).ceil() as usize).copied().unwrap_or(0)
        };
        format!("p50 {} ms, p99 {} ms, max {} ms", at(0.5), at(0.99), at(1.0))
    };
    println!("  gate closed:           {}", quantiles(rounds.iter().map(|r| r.closed_ms).collect()));
    println!(
        "  longest client wait:   {}",
        quantiles(rounds.iter().map(|r| r.waited.as_millis() as u64).collect())
    );
    println!("  requests: {sent} sent, {failed} failed");
    ensure!(failed == 0, "{failed} requests failed");
    Ok(())
}
