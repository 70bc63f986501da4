//! The API of a node with many resources, and the dashboard's first paint: how long an operator waits.
//!
//! The node is a process of its own with resources whose endpoints and databases do not answer: what costs time in the API is
//! how many there are and how much has been kept of them. With `--hours` every resource has that much history, in the finest
//! resolution, made here and written by the history's own writer before the node starts.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use godwit::cli::client::Client;
use godwit::clock;
use godwit::demo::node::Node;
use godwit::demo::zone::free_ports;
use godwit::history::{Bucket, History, Retention, Step, Value};
use hdrhistogram::Histogram;
use migration::units::Timestamp;

/// How long the node may take to start.
const PATIENCE: Duration = Duration::from_mins(2);
/// One step of a controller, one bucket of latencies.
const STEP: Duration = Duration::from_secs(10);
/// What is wanted of the API: 99 of 100 answers.
const GOAL: Duration = Duration::from_millis(20);

/// How much of what.
#[derive(Args)]
pub(crate) struct Plan {
    /// Resources of the node.
    #[arg(long, default_value_t = 1000)]
    resources: usize,
    /// Hours of history of each, in steps of 10 s.
    #[arg(long, default_value_t = 0)]
    hours: u64,
    /// Requests of each kind.
    #[arg(long, default_value_t = 500)]
    requests: usize,
    /// Clients that ask at the same time, each with a connection per request.
    #[arg(long, default_value_t = 2)]
    clients: usize,
    /// The dashboard's first paint instead, in Chromium, so many times.
    #[arg(long)]
    page: Option<usize>,
    /// The program under test; default: `godwit` beside this one.
    #[arg(long)]
    program: Option<PathBuf>,
}

pub(crate) fn run(plan: &Plan) -> Result<()> {
    let program = crate::program_under_test(plan.program.as_deref())?;
    let home = tempfile::Builder::new().prefix("godwit-bench-").tempdir()?;
    if plan.hours > 0 {
        remember(&home.path().join("state"), plan)?;
    }
    let (config, admin) = write_config(home.path(), plan.resources)?;
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
        let mut node = Node::start(&program, &config, &[])?;
        let client = Arc::new(Client::new(&admin));
        until_up(&client, &mut node, plan.resources).await?;
        match plan.page {
            Some(times) => paint(&admin, plan, times).await,
            None => ask(&client, plan).await,
        }
    })
}

fn name(number: usize) -> String {
    format!("service-{number:04}")
}

/// Resources on one listener, told apart by host; nothing answers behind them.
fn write_config(home: &Path, resources: usize) -> Result<(PathBuf, String)> {
    let ports = free_ports(3)?;
    let [admin, front, nowhere] = ports[..] else { bail!("three ports") };
    let mut text = format!(
        "node: {{ name: n, zone: near, state: {}, admin: {{ listen: \"127.0.0.1:{admin}\" }} }}\n\
         zones: {{ near: {{ location: [50.11, 8.68] }}, far: {{ location: [53.35, -6.26] }} }}\nresources:\n",
        home.join("state").display()
    );
    for number in 0..resources {
        let name = name(number);
        let at = |zone: &str| {
            let database = format!("postgres://x@127.0.0.1:{nowhere}/{name}-{zone}");
            format!("{{ http: [\"127.0.0.1:{nowhere}\"], postgres: {{ dsn: \"{database}\" }} }}")
        };
        text += &format!(
            "  {name}:\n    fronts: {{ http: {{ listen: \"127.0.0.1:{front}\", hosts: [{name}.example] }} }}\n    \
             primary: near\n    policy: p\n    placements: {{ near: {}, far: {} }}\n",
            at("near"),
            at("far")
        );
    }
    std::fs::create_dir_all(home.join("policies"))?;
    std::fs::write(home.join("policies/p.yaml"), "mode: observe\n")?;
    let config = home.join("godwit.yaml");
    std::fs::write(&config, text)?;
    Ok((config, format!("127.0.0.1:{admin}")))
}

async fn until_up(client: &Client, node: &mut Node, resources: usize) -> Result<()> {
    let deadline = clock::monotonic() + PATIENCE;
    loop {
        node.check()?;
        let listed = client.fetch_all::<serde_json::Value>("/api/v1/resources?limit=250").await;
        if listed.as_ref().is_ok_and(|listed| listed.len() == resources) {
            return Ok(());
        }
        ensure!(clock::monotonic() < deadline, "it does not list {resources} resources: {:?}", listed.err());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn ask(client: &Arc<Client>, plan: &Plan) -> Result<()> {
    println!("{} resources, {} h of history, {} clients", plan.resources, plan.hours, plan.clients);
    println!("| route | p50 ms | p99 ms | longest ms | KiB |\n|---|---|---|---|---|");
    let one = "/api/v1/resources/{id}";
    let of_one = ["", "/score", "/replication", "/scaling", "/shadow", "/migrations", "/latency", "/history"];
    let mut paths: Vec<String> = of_one.iter().map(|rest| format!("{one}{rest}")).collect();
    paths.extend(
        [
            "/api/v1/resources",
            "/api/v1/resources?limit=250",
            "/api/v1/history",
            "/api/v1/audit",
            "/api/v1/zones",
            "/api/v1/config",
            "/metrics",
        ]
        .map(str::to_owned),
    );
    let mut worst = (Duration::ZERO, String::new());
    for path in paths {
        let (mut took, bytes) = ask_one(client, plan, &path).await?;
        took.sort_unstable();
        let at = |share: usize| took[(took.len() - 1) * share / 100];
        let ms = |span: Duration| span.as_secs_f64() * 1e3;
        println!(
            "| `{path}` | {:.2} | {:.2} | {:.2} | {} |",
            ms(at(50)),
            ms(at(99)),
            ms(at(100)),
            bytes.div_ceil(1024)
        );
        // For scrapers, not for people.
        if at(99) > worst.0 && path != "/metrics" {
            worst = (at(99), path);
        }
    }
    let met = if worst.0 <= GOAL { "met" } else { "not met" };
    println!("worst p99 {:?} of {} (goal {GOAL:?}: {met})", worst.0, worst.1);
    Ok(())
}

/// Asks for `path`, each time of another resource; how long each took, and how long the last answer was.
async fn ask_one(client: &Arc<Client>, plan: &Plan, path: &str) -> Result<(Vec<Duration>, usize)> {
    let mut asking = tokio::task::JoinSet::new();
    for number in 0..plan.clients {
        let (client, path) = (Arc::clone(client), path.to_owned());
        let (times, resources) = (plan.requests.div_ceil(plan.clients), plan.resources);
        asking.spawn(async move {
            let (mut took, mut bytes) = (Vec::with_capacity(times), 0);
            for turn in 0..times {
                let path = path.replace("{id}", &name((turn * 7919 + number * 31) % resources));
                let asked = clock::monotonic();
                let (body, _) = client.call_with(http::Method::GET, &path, None, &[]).await?;
                took.push(asked.elapsed());
                bytes = body.len();
            }
            anyhow::Ok((took, bytes))
        });
    }
    let (mut all, mut bytes) = (Vec::new(), 0);
    while let Some(done) = asking.join_next().await {
        let (took, last) = done??;
        all.extend(took);
        bytes = last;
    }
    Ok((all, bytes))
}

/// Chromium opens the dashboard; the script prints what it saw.
async fn paint(admin: &str, plan: &Plan, times: usize) -> Result<()> {
    println!("{} resources, {} h of history", plan.resources, plan.hours);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/browser/paint.mjs");
    let status = tokio::process::Command::new("node")
        .arg(&script)
        .args([format!("http://{admin}/"), name(plan.resources / 2), times.to_string()])
        .status()
        .await
        .context("node (scripts/setup.sh browser)")?;
    ensure!(status.success(), "{} failed", script.display());
    Ok(())
}

/// Writes a past: latencies that follow the time of day, a score, what it was forecast to be.
fn remember(state: &Path, plan: &Plan) -> Result<()> {
    std::fs::create_dir_all(state)?;
    let history = History::start(state, Retention::default())?;
    let steps = plan.hours * 3600 / STEP.as_secs();
    let began = clock::now().0.saturating_sub(steps * 10_000) / 10_000 * 10_000;
    let mut waiting = 0;
    let pause = Duration::from_mins(5);
    for step in 0..steps {
        let at = Timestamp(began + step * 10_000);
        let wave = (step as f64 / 8640.0 * std::f64::consts::TAU).sin();
        for number in 0..plan.resources {
            let level = 30.0 + 10.0 * wave + (number % 17) as f64 + (step * 31 % 13) as f64 * 0.3;
            let mut values = vec![
                Value::new("request_p95_ms", "near", level),
                Value::new("probe_answer_ms", "near", level * 0.1),
                Value::new("probe_answer_ms", "far", level * 0.2),
                Value::new("utilization", "near", 0.5 + 0.3 * wave),
                Value::new("lag_bytes", "far", 4096.0),
                Value::new("score", "near", 0.1 * wave),
                Value::new("score_lower", "near", 0.1 * wave - 0.05),
                Value::new("score_needed", "near", 0.3),
            ];
            for quantile in ["p05", "p50", "p95"] {
                values.push(Value::new(format!("forecast_{quantile}_ms_16"), "near", level));
            }
            history.record_step(Step { resource: name(number), at, step: STEP, values });
            let mut histogram = Histogram::new_with_bounds(1, 60_000_000, 3)?;
            for request in 0..20 {
                histogram.record((level * 1000.0) as u64 + request * 500)?;
            }
            let bucket =
                Bucket { resource: name(number), zone: "near".into(), segment: "upstream", at, histogram };
            history.record_buckets(vec![bucket]);
            // Its queue is bounded and never waits: here nothing may be dropped.
            waiting += 2;
            if waiting >= 2_000 {
                ensure!(history.flush(pause), "the history is not written");
                waiting = 0;
            }
        }
    }
    ensure!(history.flush(pause), "the history is not written");
    Ok(())
}
