//! A leader node under test: the program as a process, its playground, and a client of its API.

use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use godwit::audit::verify::{Findings, verify};
use godwit::cli::client::{Client, Refusal};
use godwit::controller::view::{MigrationView, ResourceView};
use godwit::demo::load::{Load, Options as LoadOptions};
use godwit::demo::node::Node;
use godwit::demo::orders::schema::Seed;
use godwit::demo::zone::{GODWIT_ROLE, Options, POLICY, Playground, RESOURCE, SUPERUSER, Zone};
use godwit_tests::postgres::{bin_directory, other_major};
pub(crate) use godwit_tests::waiting::PATIENCE;
use godwit_tests::waiting::PAUSE;
use serde::de::DeserializeOwned;
use serde_json::json;

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_godwit-under-test");
pub(crate) const SEED: Seed = Seed { customers: 500, orders: 2_000 };

pub(crate) fn options(agent: bool) -> Result<Options> {
    let bins =
        [bin_directory(15).context("PostgreSQL 15")?, bin_directory(other_major()).context("PostgreSQL")?];
    let mut options = Options::new(PROGRAM.into(), bins);
    options.agent = agent;
    options.seed = SEED;
    // Moves only when told to, and is ready for the next one at once.
    options.policy = POLICY
        .replace("mode: auto", "mode: observe")
        .replace("retire: {after: 5s", "retire: {after: 100ms")
        .replace("step: 500ms", "step: 200ms");
    Ok(options)
}

pub(crate) fn load(playground: &Playground, rate: f64, run: &str) -> Load {
    Load::start(LoadOptions {
        target: playground.front,
        host: "orders.example".into(),
        rate,
        writes: 0.4,
        customers: SEED.customers,
        // Longer than anything is held: what the node says then is heard.
        timeout: Duration::from_secs(12),
        seed: 7,
        run: run.into(),
    })
}

/// The playground's configuration with `more` said of its HTTP listener.
pub(crate) fn listening(playground: &Playground, more: &str) -> Result<String> {
    behind(playground, &format!("listen: \"{}\"", playground.front), &format!(", {more}"))
}

/// The playground's configuration with the line `more` said of its node.
pub(crate) fn of_node(playground: &Playground, more: &str) -> Result<String> {
    behind(playground, "\n  threads: 2\n", &format!("  {more}\n"))
}

fn behind(playground: &Playground, place: &str, more: &str) -> Result<String> {
    let config = std::fs::read_to_string(&playground.config)?;
    let changed = config.replacen(place, &format!("{place}{more}"), 1);
    ensure!(changed != config, "the playground's configuration has no {place:?}:\n{config}");
    Ok(changed)
}

/// Waits until a node answers so at `path`; the error has the last answer and the end of the node's log.
pub(crate) async fn until_answer<T: DeserializeOwned + Debug>(
    node: &mut Node,
    client: &Client,
    path: &str,
    what: &str,
    reached: impl Fn(&T) -> bool,
) -> Result<T> {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        node.check()?;
        let answer: Result<T> = client.fetch(path).await;
        if answer.as_ref().is_ok_and(&reached) {
            return answer;
        }
        if tokio::time::Instant::now() > deadline {
            bail!("waited in vain: {what}; last answered at {path}: {answer:#?}\n{}", node.tail(30));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

pub(crate) struct Leader<'a> {
    pub(crate) node: Node,
    pub(crate) client: Client,
    pub(crate) playground: &'a Playground,
}

impl<'a> Leader<'a> {
    pub(crate) fn start(playground: &'a Playground, environment: &[(&str, &str)]) -> Result<Self> {
        let node = Node::start(Path::new(PROGRAM), &playground.config, environment)?;
        Ok(Self { node, client: Client::new(&playground.admin.to_string()), playground })
    }

    /// One whose migrations stand still at the phases that the directory has files of; see `GODWIT_TEST_STOPS`.
    pub(crate) fn that_stops(playground: &'a Playground) -> Result<(Self, PathBuf)> {
        let stops = playground.directory.join("stops");
        std::fs::create_dir_all(&stops)?;
        let leader = Self::start(playground, &[("GODWIT_TEST_STOPS", &stops.to_string_lossy())])?;
        Ok((leader, stops))
    }

    pub(crate) async fn view(&self) -> Result<ResourceView> {
        self.client.fetch(&format!("/api/v1/resources/{RESOURCE}")).await
    }

    /// Waits for a state of the resource.
    pub(crate) async fn until(
        &mut self,
        what: &str,
        reached: impl Fn(&ResourceView) -> bool,
    ) -> Result<ResourceView> {
        self.until_answer("", what, reached).await
    }

    /// Waits until the node answers so what is asked of the resource: `latency`, for example, or nothing for the resource itself.
    pub(crate) async fn until_answer<T: DeserializeOwned + Debug>(
        &mut self,
        about: &str,
        what: &str,
        reached: impl Fn(&T) -> bool,
    ) -> Result<T> {
        let path = format!("/api/v1/resources/{RESOURCE}/{about}");
        until_answer(&mut self.node, &self.client, path.trim_end_matches('/'), what, reached).await
    }

    /// Ready for a migration: it follows, and the guards that bind an operator pass.
    pub(crate) async fn ready(&mut self) -> Result<ResourceView> {
        self.until("the shadow is ready", |view| {
            let guards = view.decision.iter().flat_map(|decision| &decision.guards);
            view.phase == "shadowing"
                && view.decision.is_some()
                && guards.clone().all(|g| g.passed || !g.binds_operator)
        })
        .await
    }

    /// What was told to have been followed may be known so only in a moment: what stands in the way for that is waited for.
    pub(crate) async fn migrate(&self, to: &str) -> Result<String> {
        let mut asked = self.ask_to_migrate(to).await;
        let again = async {
            while asked.as_ref().is_err_and(|error| error.to_string().contains("databases ready: ")) {
                tokio::time::sleep(PAUSE).await;
                asked = self.ask_to_migrate(to).await;
            }
        };
        let _ = tokio::time::timeout(PATIENCE / 6, again).await;
        asked
    }

    /// The same once, whatever is answered.
    pub(crate) async fn ask_to_migrate(&self, to: &str) -> Result<String> {
        let body = self
            .client
            .send(&format!("/api/v1/resources/{RESOURCE}/migrations"), &json!({ "to": to }))
            .await?;
        let plan: serde_json::Value = serde_json::from_slice(&body)?;
        Ok(plan["id"].as_str().context("the migration's id")?.to_owned())
    }

    /// The same of a node that may be killed before it can answer.
    pub(crate) async fn migrate_or_die(&self, to: &str) -> Result<()> {
        match self.ask_to_migrate(to).await {
            Err(error) if error.downcast_ref::<Refusal>().is_some() => Err(error),
            _ => Ok(()),
        }
    }

    pub(crate) async fn migration(&self, id: &str) -> Result<MigrationView> {
        self.client.fetch(&format!("/api/v1/resources/{RESOURCE}/migrations/{id}")).await
    }

    /// Reads the node's audit again: it must be whole. All its records, oldest first.
    pub(crate) async fn audit(&self) -> Result<Vec<serde_json::Value>> {
        Ok(self.audited().await?.0)
    }

    /// The same, and what was found.
    pub(crate) async fn audited(&self) -> Result<(Vec<serde_json::Value>, Findings)> {
        let newest: Vec<serde_json::Value> = self.client.fetch("/api/v1/audit?limit=1000").await?;
        let opened = newest.first().context("no record")?;
        ensure!(opened["node"].is_string(), "{opened}");
        let directory =
            self.playground.config.with_file_name("state").join(opened["node"].as_str().unwrap_or_default());
        let findings = verify(&directory.join("audit"), &[], None)?;
        ensure!(findings.broken.is_none() && findings.records > 0, "{findings:?}");
        Ok((newest.into_iter().rev().collect(), findings))
    }

    pub(crate) fn zone(&self, name: &str) -> &'a Zone {
        let [one, other] = &self.playground.zones;
        if one.name == name { one } else { other }
    }
}

pub(crate) async fn connect(zone: &Zone) -> Result<tokio_postgres::Client> {
    Ok(replicator::postgres::connect(&zone.dsn(GODWIT_ROLE), "godwit-test").await?)
}

pub(crate) async fn superuser(zone: &Zone) -> Result<tokio_postgres::Client> {
    Ok(replicator::postgres::connect(&zone.dsn(SUPERUSER), "test").await?)
}

/// The node of the second zone, if the playground has one.
pub(crate) fn agent(playground: &Playground) -> Result<Option<Node>> {
    playground.agent_config.as_ref().map(|config| Node::start(Path::new(PROGRAM), config, &[])).transpose()
}
