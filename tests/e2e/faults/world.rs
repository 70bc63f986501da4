//! Two zones, a leader that can be stopped after each record, and clients that keep account: what the rows of the failure
//! table share.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use godwit::cli::client::Client;
use godwit::controller::view::{MigrationView, ResourceView};
use godwit::demo::load::{Failure, Load};
use godwit::demo::node::Node;
use godwit::demo::zone::{Options, Playground, RESOURCE, Zone};
use godwit_tests::postgres::wal_position;
use godwit_tests::waiting::until;
use replicator::lsn::Lsn;
use replicator::verify;
use rustix::process::Signal;
use serde_json::json;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::clients::{Bypass, ListClients, is_plain_failure, prepare};
use crate::leader::{Leader, PATIENCE, agent, connect, load};

/// How often files and views are looked at.
const LOOK: Duration = Duration::from_millis(10);
/// A gate that is held longer than this did not keep to the policy's 2 s.
pub(crate) const LONGEST_HOLD: Duration = Duration::from_secs(15);

/// Where a migration stands when something happens to it.
#[derive(Clone, Debug)]
pub(crate) struct Scene {
    pub(crate) id: String,
    pub(crate) from: String,
    pub(crate) to: String,
    pub(crate) generation: u64,
    pub(crate) phase: &'static str,
}

impl Scene {
    /// The point of no return is in the journal.
    pub(crate) fn past_commit(&self) -> bool {
        ["committed", "swapped", "released", "watching", "soaking"].contains(&self.phase)
    }
}

pub(crate) struct World<'a> {
    pub(crate) playground: &'a Playground,
    pub(crate) leader: Leader<'a>,
    pub(crate) agent: Option<Node>,
    pub(crate) lists: ListClients,
    pub(crate) load: Load,
    bypass: Bypass,
    /// Failures of the load that were looked at.
    looked_at: u64,
    /// The leader was stopped for longer than clients wait: they may have had no answer.
    pub(crate) unheard: bool,
}

fn stops(playground: &Playground) -> PathBuf {
    playground.directory.join("stops")
}

/// What [`World::clock`] writes.
fn clock(playground: &Playground) -> PathBuf {
    playground.directory.join("clock")
}

fn start(playground: &Playground) -> Result<Leader<'_>> {
    let (stops, clock) = (stops(playground), clock(playground));
    std::fs::create_dir_all(&stops)?;
    let text = |path: &PathBuf| path.display().to_string();
    Leader::start(playground, &[("GODWIT_TEST_STOPS", &text(&stops)), ("GODWIT_TEST_CLOCK", &text(&clock))])
}

impl<'a> World<'a> {
    pub(crate) async fn start(playground: &'a Playground, rate: f64, seed: u64) -> Result<Self> {
        prepare(&connect(&playground.zones[0]).await?).await?;
        let agent = agent(playground)?;
        let mut leader = start(playground)?;
        leader.ready().await?;
        Ok(Self {
            playground,
            leader,
            agent,
            lists: ListClients::start(playground.front, 2, seed),
            load: load(playground, rate, "faults"),
            bypass: Bypass::start(&playground.zones),
            looked_at: 0,
            unheard: false,
        })
    }

    pub(crate) fn zone(&self, name: &str) -> &'a Zone {
        self.leader.zone(name)
    }

    pub(crate) fn path_far(&self) -> &'a godwit::demo::relay::Path {
        &self.playground.zones[1].path
    }

    /// The next migration stands still after the record of this phase.
    pub(crate) fn arm(&self, phase: &str) -> Result<()> {
        Ok(std::fs::write(stops(self.playground).join(phase), "")?)
    }

    /// The migration that stands still there.
    pub(crate) async fn reached(&mut self, phase: &str) -> Result<String> {
        let file = stops(self.playground).join(format!("{phase}.reached"));
        let deadline = Instant::now() + PATIENCE;
        loop {
            let id = std::fs::read_to_string(&file).unwrap_or_default();
            if !id.is_empty() {
                return Ok(id);
            }
            self.leader.node.check()?;
            ensure!(
                Instant::now() < deadline,
                "phase {phase} was not reached:\n{}\n{:#?}",
                self.leader.node.tail(30),
                self.leader.view().await
            );
            sleep(LOOK).await;
        }
    }

    /// It goes on, and nothing else stands still.
    pub(crate) fn release(&self) -> Result<()> {
        for entry in std::fs::read_dir(stops(self.playground))? {
            std::fs::remove_file(entry?.path())?;
        }
        Ok(())
    }

    /// Asks for a migration to the shadow and returns when it stands still after the record of `phase`. To get to an abort
    /// an operator asks for it under the fence.
    pub(crate) async fn stand_in(&mut self, phase: &'static str) -> Result<Scene> {
        let view = self.leader.ready().await?;
        if phase == "aborting" {
            self.arm("fenced")?;
        }
        self.arm(phase)?;
        // Who stands still with the first record has not answered yet.
        let asking = self.ask("migrations", json!({ "to": view.shadow }));
        if phase != "requested" {
            asking.await??;
        }
        if phase == "aborting" {
            let id = self.reached("fenced").await?;
            let abort = format!("migrations/{id}/abort");
            drop(self.ask(&abort, json!({})));
            // Noted right before it is carried out, it is taken as soon as the controller goes on, before anything that this begins can answer.
            let is_it = |record: &serde_json::Value| {
                record["path"].as_str().is_some_and(|path| path.ends_with(&abort))
            };
            let heard = async || {
                let newest: Vec<serde_json::Value> =
                    self.leader.client.fetch("/api/v1/audit?limit=20").await?;
                Ok(newest.iter().any(is_it))
            };
            until("the node has heard that it is to abort", heard).await?;
            std::fs::remove_file(stops(self.playground).join("fenced.reached"))?;
        }
        let id = self.reached(phase).await?;
        Ok(Scene { id, from: view.primary, to: view.shadow, generation: view.generation, phase })
    }

    /// Sends a request without waiting for its answer.
    fn ask(&self, what: &str, body: serde_json::Value) -> JoinHandle<Result<()>> {
        let (admin, path) =
            (self.playground.admin.to_string(), format!("/api/v1/resources/{RESOURCE}/{what}"));
        tokio::spawn(async move { Client::new(&admin).send(&path, &body).await.map(drop) })
    }

    /// Asks for a migration to the shadow.
    pub(crate) async fn begin(&mut self) -> Result<Scene> {
        let view = self.leader.ready().await?;
        let id = self.leader.migrate(&view.shadow).await?;
        Ok(Scene { id, from: view.primary, to: view.shadow, generation: view.generation, phase: "" })
    }

    /// The leader's process is gone; another begins.
    pub(crate) fn restart_leader(&mut self) -> Result<()> {
        self.release()?;
        let deadline = std::time::Instant::now() + PATIENCE;
        while self.leader.node.ended()?.is_none() {
            ensure!(std::time::Instant::now() < deadline, "godwit does not end");
            std::thread::sleep(LOOK);
        }
        self.leader = start(self.playground)?;
        Ok(())
    }

    pub(crate) fn signal_leader(&self, signal: Signal) -> Result<()> {
        self.leader.node.signal(signal)
    }

    /// The leader's wall clock is off by so much from now on.
    pub(crate) async fn clock(&self, skew_ms: i64) -> Result<()> {
        let (file, new) = (clock(self.playground), clock(self.playground).with_extension("new"));
        std::fs::write(&new, skew_ms.to_string())?;
        std::fs::rename(new, file)?;
        // The process looks every 2 ms.
        sleep(Duration::from_millis(50)).await;
        Ok(())
    }

    /// The run's end.
    pub(crate) async fn ended(&mut self, scene: &Scene) -> Result<MigrationView> {
        let deadline = Instant::now() + PATIENCE;
        let mut last = None;
        loop {
            self.leader.node.check()?;
            if let Ok(run) = self.leader.migration(&scene.id).await {
                if run.ended() {
                    return Ok(run);
                }
                last = Some(run.state);
            }
            if Instant::now() > deadline {
                let view = self.leader.view().await.ok();
                // Of requests that fail there are many.
                let log = self.leader.node.tail(usize::MAX);
                let of_the_run: Vec<&str> =
                    log.lines().filter(|line| !line.contains("request failed")).collect();
                let log = of_the_run[of_the_run.len().saturating_sub(60)..].join("\n");
                bail!("the run does not end, it is {last:?}: {view:#?}\n{log}");
            }
            sleep(LOOK).await;
        }
    }

    /// It serves, the shadow is ready for the next move, and whoever serves is whom the run's end says.
    /// `asleep`: for so long the leader could not do anything.
    pub(crate) async fn recovered(
        &mut self,
        scene: &Scene,
        run: &MigrationView,
        asleep: Duration,
    ) -> Result<ResourceView> {
        let view = self.leader.ready().await?;
        let wanted = if run.state == "aborted" { &scene.from } else { &scene.to };
        ensure!(view.primary == *wanted, "{run:#?}\n{view:#?}");
        let committed = run.committed_ms.is_some();
        ensure!(committed == (run.state != "aborted"), "{run:#?}");
        ensure!(!scene.past_commit() || committed, "undone after its commit: {run:#?}");
        let held = Duration::from_millis(run.held_ms.unwrap_or_default());
        ensure!(held < LONGEST_HOLD + asleep, "held for {held:?}: {run:#?}");
        // A far node that died a moment ago is not missed yet: the stream is followed up to a position of now.
        let now = wal_position(&connect(self.zone(&view.primary)).await?).await?;
        let follows = |view: &ResourceView| {
            view.phase == "shadowing"
                && view.replication.applied_lsn.parse::<Lsn>().is_ok_and(|applied| applied >= now)
        };
        let view = self.leader.until("the shadow follows", follows).await?;
        let (orders, lists) = (self.load.snapshot().acknowledged, self.lists.committed());
        let deadline = Instant::now() + PATIENCE;
        while self.load.snapshot().acknowledged < orders + 5 || self.lists.committed() < lists + 5 {
            ensure!(Instant::now() < deadline, "it does not serve: {:#?}", self.load.failures().last());
            sleep(LOOK).await;
        }
        Ok(view)
    }

    /// Failures that clients saw since the last look; a request that got no answer at all is a fault in any
    /// case but one (`unheard`, for this look), and one that got a wrong answer always.
    pub(crate) fn failures(&mut self) -> Result<Vec<String>> {
        let lists = self.lists.take_failures();
        let unheard = std::mem::take(&mut self.unheard);
        if let Some(silent) = lists.iter().find(|failed| failed.silent && !unheard) {
            bail!("a client got no answer: {silent:?}");
        }
        if let Some(wrong) = lists.iter().find(|failed| failed.wrong) {
            bail!("a client was answered wrongly: {wrong:?}");
        }
        let total = self.load.snapshot().failed;
        let kept = self.load.failures();
        let new = usize::try_from(total - self.looked_at)?;
        let new = &kept[kept.len().saturating_sub(new)..];
        if let Some(silent) = new.iter().find(|failure| failure.body == "no answer in time" && !unheard) {
            bail!("a client got no answer: {silent:?}");
        }
        let wrong = |failure: &&Failure| failure.status.is_some_and(|status| !is_plain_failure(status));
        if let Some(wrong) = new.iter().find(wrong) {
            bail!("a client was answered wrongly: {wrong:?}");
        }
        self.looked_at = total;
        let orders = new.iter().map(|failure| format!("{:?} {}", failure.status, failure.body));
        Ok(orders.chain(lists.into_iter().map(|failed| failed.what)).collect())
    }

    /// Makes the shadow's schema like the primary's.
    pub(crate) async fn sync_schema(&self) -> Result<()> {
        self.leader.client.send(&format!("/api/v1/resources/{RESOURCE}/schema/sync"), &json!({})).await?;
        Ok(())
    }

    /// The final account: nothing acknowledged is lost, doubled or altered, whoever wrote it; the history of the lists is
    /// strictly serializable; both sides are equal; the audit is whole.
    pub(crate) async fn settle(mut self) -> Result<String> {
        let view = self.leader.ready().await?;
        let primary = self.zone(&view.primary);
        let outcome = self.load.stop().await;
        let mut client = connect(primary).await?;
        let (verdict, history) = self.lists.judge(&mut client).await?;
        if !verdict.accepts() {
            let file = std::env::temp_dir().join(format!("godwit-history-{}.txt", std::process::id()));
            std::fs::write(&file, format!("{history:#?}"))?;
            bail!("{verdict}\nthe history is in {}\n{}", file.display(), self.leader.node.tail(60));
        }
        let (round, refused) = self.bypass.judge(&client).await?;
        let report = outcome.check(&client).await?;
        ensure!(report.clean() && report.acknowledged > 0, "{report}: {report:?}");
        let other = connect(self.leader.zone(&view.shadow)).await?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (one, two) = (verify::digest(&client).await?, verify::digest(&other).await?);
            let differences = verify::differences(&one, &two);
            if differences.is_empty() {
                break;
            }
            ensure!(
                Instant::now() < deadline,
                "both sides stay different: {differences:?}\n{}",
                self.leader.node.tail(40)
            );
            sleep(Duration::from_millis(100)).await;
        }
        // One side takes writes, and only one.
        let mut open = Vec::new();
        for zone in &self.playground.zones {
            let sql = "SELECT fenced FROM godwit.epoch WHERE resource = $1";
            let row = connect(zone).await?.query_one(sql, &[&RESOURCE]).await.context("the epoch row")?;
            if !row.get::<_, bool>(0) {
                open.push(zone.name.clone());
            }
        }
        ensure!(open == [view.primary.clone()], "open are {open:?}, the primary is {}", view.primary);
        self.leader.audit().await?;
        Ok(format!("{report}; lists: {verdict}; round the proxy: {round} written, {refused} refused"))
    }
}

/// The playground of a row: quick to copy, quick to start.
pub(crate) fn options(agent: bool) -> Result<Options> {
    let mut options = crate::leader::options(agent)?;
    options.seed = godwit::demo::orders::schema::Seed { customers: 500, orders: 500 };
    options.settings.iter_mut().for_each(|settings| settings.push_str("max_prepared_transactions = 5\n"));
    options.policy = options
        .policy
        .replace("replication: {mode: async}", "replication: {mode: async, slot: {reseed: auto}}")
        .replace("cooldown: 12s", "cooldown: 1s");
    Ok(options)
}
