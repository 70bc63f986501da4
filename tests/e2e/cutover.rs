//! The whole road: real nodes, databases, workers and clients; twenty cutovers, and a kill -9 at every journal record.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use godwit::cli::client::{Client, Refusal};
use godwit::controller::view::{MigrationView, ResourceView};
use godwit::demo::load::{Load, Options as LoadOptions, Outcome};
use godwit::demo::node::Node;
use godwit::demo::orders::schema::Seed;
use godwit::demo::zone::{GODWIT_ROLE, Options, POLICY, Playground, RESOURCE, Zone};
use godwit_tests::postgres::{bin_directory, other_major};
use replicator::verify;
use serde_json::json;

const PROGRAM: &str = env!("CARGO_BIN_EXE_godwit-under-test");
const PATIENCE: Duration = Duration::from_secs(60);
const SEED: Seed = Seed { customers: 500, orders: 2_000 };

fn options(agent: bool) -> Result<Options> {
    let bins =
        [bin_directory(15).context("PostgreSQL 15")?, bin_directory(other_major()).context("PostgreSQL")?];
    let mut options = Options::new(PROGRAM.into(), bins);
    options.agent = agent;
    options.seed = SEED;
    // Moves only when told to, and is ready for the next one at once.
    options.policy = POLICY
        .replace("mode: auto", "mode: observe")
        .replace("retire: {after: 10s", "retire: {after: 100ms")
        .replace("step: 500ms", "step: 200ms");
    Ok(options)
}

fn load(playground: &Playground, rate: f64, run: &str) -> Load {
    Load::start(LoadOptions {
        target: playground.front,
        host: "orders.example".into(),
        rate,
        writes: 0.4,
        customers: SEED.customers,
        timeout: Duration::from_secs(10),
        seed: 7,
        run: run.into(),
    })
}

struct Leader<'a> {
    node: Node,
    client: Client,
    playground: &'a Playground,
}

impl<'a> Leader<'a> {
    fn start(playground: &'a Playground, environment: &[(&str, &str)]) -> Result<Self> {
        let node = Node::start(Path::new(PROGRAM), &playground.config, environment)?;
        Ok(Self { node, client: Client::new(&playground.admin.to_string()), playground })
    }

    async fn view(&self) -> Result<ResourceView> {
        self.client.fetch(&format!("/api/v1/resources/{RESOURCE}")).await
    }

    /// Waits for a state of the resource; the error says what it was instead, with the end of the log.
    async fn until(&mut self, what: &str, reached: impl Fn(&ResourceView) -> bool) -> Result<ResourceView> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        let mut last = None;
        loop {
            self.node.check()?;
            if let Ok(view) = self.view().await {
                if reached(&view) {
                    return Ok(view);
                }
                last = Some(view);
            }
            if tokio::time::Instant::now() > deadline {
                bail!("waited in vain: {what}; last seen {last:#?}\n{}", self.node.tail(30));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Ready for a migration: it follows, and the guards that bind an operator pass.
    async fn ready(&mut self) -> Result<ResourceView> {
        self.until("the shadow is ready", |view| {
            let guards = view.decision.iter().flat_map(|decision| &decision.guards);
            view.phase == "shadowing"
                && view.decision.is_some()
                && guards.clone().all(|g| g.passed || !g.binds_operator)
        })
        .await
    }

    async fn migrate(&self, to: &str) -> Result<String> {
        let body = self
            .client
            .send(&format!("/api/v1/resources/{RESOURCE}/migrations"), &json!({ "to": to }))
            .await?;
        let plan: serde_json::Value = serde_json::from_slice(&body)?;
        Ok(plan["id"].as_str().context("the migration's id")?.to_owned())
    }

    async fn migration(&self, id: &str) -> Result<MigrationView> {
        self.client.fetch(&format!("/api/v1/resources/{RESOURCE}/migrations/{id}")).await
    }

    fn zone(&self, name: &str) -> &'a Zone {
        let [one, other] = &self.playground.zones;
        if one.name == name { one } else { other }
    }
}

async fn connect(zone: &Zone) -> Result<tokio_postgres::Client> {
    Ok(replicator::postgres::connect(&zone.dsn(GODWIT_ROLE), "godwit-test").await?)
}

/// Every acknowledged write is in the primary once, whole.
async fn check_writes(primary: &Zone, outcome: &Outcome) -> Result<()> {
    let report = outcome.check(&connect(primary).await?).await?;
    ensure!(report.acknowledged > 0, "the load wrote nothing");
    ensure!(report.clean(), "{report}: {report:?}");
    Ok(())
}

/// Both databases hold the same rows once the stream has caught up.
async fn check_equal(leader: &mut Leader<'_>) -> Result<()> {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let [one, other] = &leader.playground.zones;
    let (one, other) = (connect(one).await?, connect(other).await?);
    loop {
        let differences = verify::differences(&verify::digest(&one).await?, &verify::digest(&other).await?);
        if differences.is_empty() {
            return Ok(());
        }
        ensure!(
            tokio::time::Instant::now() < deadline,
            "both sides stay different: {differences:?}\n{}",
            leader.node.tail(30)
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn nodes_agent(playground: &Playground) -> Result<Option<Node>> {
    playground.agent_config.as_ref().map(|config| Node::start(Path::new(PROGRAM), config, &[])).transpose()
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_cutovers_lose_nothing() -> Result<()> {
    let playground = Playground::start(&Options { wan: Duration::from_millis(5), ..options(true)? }).await?;
    let _agent = nodes_agent(&playground)?;
    let mut leader = Leader::start(&playground, &[])?;
    leader.ready().await?;
    let load = load(&playground, 200.0, "twenty");
    for round in 0..20 {
        let view = leader.ready().await?;
        let id = leader.migrate(&view.shadow).await?;
        let (from, to) = (view.primary, view.shadow);
        leader
            .until(&format!("cutover {round} ({id})"), |view| view.primary == to && view.phase == "shadowing")
            .await?;
        let run = leader.migration(&id).await?;
        ensure!(
            run.state == "retired" && run.verified == Some(true),
            "cutover {round}, {from} → {to}: {run:#?}"
        );
        let failed = load.snapshot().failed;
        ensure!(failed == 0, "after cutover {round}: {:#?}\n{}", load.failures(), leader.node.tail(40));
    }
    let outcome = load.stop().await;
    ensure!(outcome.totals.failed == 0, "{:#?}", outcome.failures);
    ensure!(outcome.totals.sent > 1_000, "the load sent only {}", outcome.totals.sent);
    let view = leader.ready().await?;
    check_writes(leader.zone(&view.primary), &outcome).await?;
    check_equal(&mut leader).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_after_any_journal_record_loses_nothing() -> Result<()> {
    let playground = Playground::start(&options(false)?).await?;
    let mut killed_in = Vec::new();
    for record in 1_u32.. {
        ensure!(record < 40, "a cutover writes fewer records than that");
        let limit = record.to_string();
        let mut leader = Leader::start(&playground, &[("GODWIT_TEST_KILL_AFTER", &limit)])?;
        let view = leader.ready().await?;
        let load = load(&playground, 100.0, &format!("kill{record}"));
        leader.until("the load runs", |_| load.snapshot().acknowledged > 20).await?;
        leader.migrate(&view.shadow).await.or_else(|error| {
            // Killed before it could answer.
            if error.downcast_ref::<Refusal>().is_some() { Err(error) } else { Ok(String::new()) }
        })?;
        let died = died_or_finished(&mut leader, &view.shadow).await?;
        if died {
            drop(leader);
            leader = Leader::start(&playground, &[])?;
        }
        let view = leader.ready().await?;
        let served = load.snapshot().acknowledged;
        leader.until("the service recovers", |_| load.snapshot().acknowledged > served + 20).await?;
        let outcome = load.stop().await;
        check_writes(leader.zone(&view.primary), &outcome)
            .await
            .with_context(|| format!("killed after record {record}"))?;
        check_equal(&mut leader).await.with_context(|| format!("killed after record {record}"))?;
        if !died {
            break;
        }
        let runs: Vec<MigrationView> = leader.client.fetch("/api/v1/history?limit=1").await?;
        let run = runs.first().context("the killed migration is in the history")?;
        ensure!(run.ended(), "{run:#?}");
        killed_in.push((record, run.state.clone(), run.steps.len()));
    }
    ensure!(killed_in.len() >= 12, "too few records: {killed_in:?}");
    ensure!(killed_in.iter().any(|(_, state, _)| state == "aborted"), "{killed_in:?}");
    ensure!(killed_in.iter().any(|(_, state, _)| state == "retired"), "{killed_in:?}");
    Ok(())
}

/// True when the node killed itself; false when the migration ended first.
async fn died_or_finished(leader: &mut Leader<'_>, to: &str) -> Result<bool> {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        if leader.node.ended()?.is_some() {
            return Ok(true);
        }
        if let Ok(view) = leader.view().await
            && view.primary == to
            && view.phase == "shadowing"
        {
            return Ok(false);
        }
        ensure!(
            tokio::time::Instant::now() < deadline,
            "neither killed nor finished:\n{}",
            leader.node.tail(30)
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
