//! `godwit demo`: a storm comes, the service moves by itself, the storm passes, it comes back. Every claim is checked.

mod end;
mod proof;
mod screen;

use std::convert::Infallible;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use replicator::Lsn;

use super::leftover::Leftover;
use super::load::{Load, Options as LoadOptions};
use super::node::Node;
use super::orders::schema::Seed;
use super::zone::{Options as ZoneOptions, Playground, RESOURCE, Zone};
use crate::cli::client::Client;
use crate::clock;
use crate::controller::view::{MigrationView, ResourceView};
use crate::drivers::process::cluster::installed;

use end::End;
use screen::Screen;

/// Quiet seconds before the storm: what is usual must be known.
const CALM: Duration = Duration::from_secs(12);
/// How long one stage may take before the demo gives up.
const STAGE: Duration = Duration::from_secs(60);

/// What the demo can be told.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Requests per second.
    #[arg(long, default_value_t = 200.0)]
    rate: f64,
    /// One-way delay between the zones, milliseconds.
    #[arg(long, default_value_t = 20, value_name = "MS")]
    wan_ms: u64,
    /// One-way delay that the storm adds in the first zone, milliseconds.
    #[arg(long, default_value_t = 60, value_name = "MS")]
    storm_ms: u64,
    /// Workers of the order service at full capacity.
    #[arg(long, default_value_t = 4)]
    workers: u32,
    /// Replicate inside one process instead of over QUIC to a second node.
    #[arg(long)]
    single_node: bool,
    /// After the story keep everything running, under load, until Ctrl-C.
    #[arg(long)]
    stay: bool,
    /// No storm and no story: the two zones under load, moving only when told to, until Ctrl-C.
    #[arg(long, conflicts_with = "stay")]
    calm: bool,
}

/// Runs the demo; success only if every line of its proof holds.
pub fn run(options: &Options) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let proven = runtime.block_on(story(options))?;
    Ok(if proven { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

/// Until it is done, or somebody ends it before.
async fn or_interrupted<T>(end: &mut End, work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::select! {
        biased;
        done = work => done,
        () = end.heard() => bail!("interrupted"),
    }
}

struct Stage<'a> {
    client: &'a Client,
    nodes: &'a mut [Node],
    screen: &'a mut Screen,
    load: Option<Load>,
}

impl Stage<'_> {
    /// Fails when a node has ended, and when nobody looks any more.
    fn check(&mut self) -> Result<()> {
        self.screen.check()?;
        self.nodes.iter_mut().try_for_each(Node::check)
    }

    /// Shows how it goes until `reached` holds.
    async fn until(&mut self, what: &str, reached: impl Fn(&ResourceView) -> bool) -> Result<ResourceView> {
        let deadline = clock::monotonic() + STAGE;
        let mut last = None;
        loop {
            self.check()?;
            // A node that is still starting does not answer yet.
            if let Ok(view) =
                self.client.fetch::<ResourceView>(&format!("/api/v1/resources/{RESOURCE}")).await
            {
                self.screen.show(&view, self.load.as_ref().map(Load::snapshot).as_ref());
                if reached(&view) {
                    return Ok(view);
                }
                last = Some(view);
            }
            if clock::monotonic() > deadline {
                let state = last.map_or("the node did not answer".into(), |view| {
                    format!(
                        "it is {} with {} as primary; {}; {}",
                        view.phase,
                        view.primary,
                        view.decision.map_or_else(String::new, |decision| decision.because),
                        view.problems.join("; ")
                    )
                });
                let log = self.nodes.first().map_or_else(String::new, |node| node.tail(15));
                bail!("{what} did not happen within {} s: {state}\n{log}", STAGE.as_secs());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Shows how it goes until somebody ends it, which ends it well at any moment: in the middle of a look at the node too.
    async fn stay(&mut self, end: &mut End) -> Result<()> {
        tokio::select! {
            biased;
            () = end.heard() => Ok(()),
            failed = self.watch() => failed.map(|never| match never {}),
        }
    }

    /// Shows how it goes as long as the nodes run.
    async fn watch(&mut self) -> Result<Infallible> {
        loop {
            self.check()?;
            if let Ok(view) = self.client.fetch(&format!("/api/v1/resources/{RESOURCE}")).await {
                self.screen.show(&view, self.load.as_ref().map(Load::snapshot).as_ref());
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    async fn migrations(&self) -> Result<Vec<MigrationView>> {
        self.client.fetch(&format!("/api/v1/resources/{RESOURCE}/migrations")).await
    }
}

async fn story(options: &Options) -> Result<bool> {
    let began = clock::monotonic();
    let program = std::env::current_exe().context("cannot find this program")?;
    let Some(near) = installed(15) else { bail!("PostgreSQL 15 is not on this machine: run make setup") };
    let (far, far_major) = match installed(18) {
        Some(bin) => (bin, 18),
        None => (near.clone(), 15),
    };
    // From here on: what nobody hears would end the demo, and leave what it has started.
    let mut end = End::begin()?;
    let mut screen = Screen::new(began);
    for left in Leftover::find(&std::env::temp_dir()) {
        screen.say(&left.said());
    }
    screen.say(&format!(
        "two zones on loopback, {} ms apart each way: eu-west with PostgreSQL 15, eu-central with PostgreSQL {far_major}{}",
        options.wan_ms,
        if far_major == 15 { " (18 is not on this machine)" } else { "" }
    ));
    let mut zones = ZoneOptions::new(program.clone(), [near, far]);
    zones.settings = [String::new(), String::new()];
    zones.workers = options.workers;
    zones.seed = Seed::default();
    zones.agent = !options.single_node;
    zones.near = Duration::from_millis(1);
    zones.wan = Duration::from_millis(options.wan_ms);
    if options.calm {
        zones.policy = zones.policy.replace("mode: auto", "mode: observe");
    }
    let playground = or_interrupted(&mut end, async { Ok(Playground::start(&zones).await?) }).await?;
    screen.say(&format!(
        "the order service runs in {} with {} workers",
        playground.zones[0].name, options.workers
    ));

    let mut nodes = Vec::new();
    if let Some(config) = &playground.agent_config {
        nodes.push(Node::start(&program, config, &[])?);
    }
    nodes.insert(0, Node::start(&program, &playground.config, &[])?);
    let proven = scenes(options, &playground, &mut nodes, &mut screen, &mut end).await;
    drop(nodes);
    drop(playground);
    screen.say(&format!("everything stopped and removed, {:.0} s in all", began.elapsed().as_secs_f64()));
    proven
}

async fn scenes(
    options: &Options,
    playground: &Playground,
    nodes: &mut [Node],
    screen: &mut Screen,
    end: &mut End,
) -> Result<bool> {
    let client = Client::new(&playground.admin.to_string());
    let [near, far] = &playground.zones;
    let mut stage = Stage { client: &client, nodes, screen, load: None };
    let proven = or_interrupted(end, acts(&mut stage, options, playground, [near, far])).await?;
    if options.stay || options.calm {
        // Whoever stays is ended by the same signal, and well: nothing else may wait for it.
        stage.stay(end).await?;
    }
    Ok(proven)
}

/// What happens by itself; true if all that was claimed holds.
async fn acts(
    stage: &mut Stage<'_>,
    options: &Options,
    playground: &Playground,
    [near, far]: [&Zone; 2],
) -> Result<bool> {
    stage.screen.say(&format!("dashboard: http://{}/", playground.admin));
    stage.until("the first copy", |view| view.phase == "shadowing").await?;
    stage.screen.say(&format!("{} follows {}: schema, rows and stream are there", far.name, near.name));

    stage.load = Some(start_load(options, playground, "demo"));
    stage.screen.say(&format!("load: {} requests/s, readers and writers", options.rate));
    if options.calm {
        stage.screen.say("nothing moves by itself; Ctrl-C ends and removes everything");
        return Ok(true);
    }
    let calm = clock::monotonic() + CALM;
    stage.until("the calm", |_| clock::monotonic() >= calm).await?;

    near.path.set_delay(Duration::from_millis(options.storm_ms));
    stage.screen.say(&format!("STORM in {}: {} ms more each way", near.name, options.storm_ms));
    let storm = clock::monotonic();
    stage
        .until("the move away from the storm", |view| view.primary == far.name && view.phase != "committed")
        .await?;
    stage.screen.say(&format!("{} serves, {:.1} s after the storm began", far.name, since(storm)));
    stage
        .until("the retirement of the old primary", |view| {
            view.primary == far.name && view.phase == "shadowing"
        })
        .await?;
    stage.screen.say(&format!("{} is compared, equal, and retired to a shadow", near.name));

    near.path.set_delay(Duration::from_millis(1));
    stage.screen.say(&format!("the storm in {} has passed", near.name));
    let passed = clock::monotonic();
    stage.until("the move back", |view| view.primary == near.name && view.phase != "committed").await?;
    stage.screen.say(&format!("{} serves again, {:.1} s after the storm passed", near.name, since(passed)));
    stage
        .until("the second retirement", |view| view.primary == near.name && view.phase == "shadowing")
        .await?;

    let migrations = stage.migrations().await?;
    let Some(load) = stage.load.take() else { bail!("the load is gone") };
    let outcome = load.stop().await;
    // Not until it lags by nothing: heartbeats go on, and what is looked at just after each is always one behind.
    let written = proof::position(near).await?;
    stage
        .until("the stream's end", |view| {
            view.replication.applied_lsn.parse::<Lsn>().is_ok_and(|applied| applied >= written)
        })
        .await?;
    let proven = proof::print(playground, &outcome, &migrations, stage.screen).await?;
    if options.stay {
        stage.load = Some(start_load(options, playground, "stay"));
        stage.screen.say("the load goes on; Ctrl-C ends and removes everything");
    }
    Ok(proven)
}

fn start_load(options: &Options, playground: &Playground, run: &str) -> Load {
    Load::start(LoadOptions {
        target: playground.front,
        host: "orders.example".into(),
        rate: options.rate,
        writes: 0.4,
        customers: Seed::default().customers,
        timeout: Duration::from_secs(10),
        seed: 1,
        run: run.into(),
    })
}

fn since(began: Instant) -> f64 {
    began.elapsed().as_secs_f64()
}
