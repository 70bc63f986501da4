//! Drivers outside of the process, zones that are chosen, retirement: with clusters that are really made.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use godwit::admin::{Problem, SectionView};
use godwit::cli::client::{Client, Refusal};
use godwit::controller::view::ResourceView;
use godwit::demo::node::Node;
use godwit::demo::zone::{
    DATABASE, GODWIT_ROLE, POLICY, Playground, RESOURCE, SERVICE_ROLE, Zone, free_ports,
};
use godwit::drivers::process::ProcessProvisioning;
use godwit::leading::changes::Reloaded;
use godwit::leading::comparison::ConfigView;
use http::Method;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::leader::{PROGRAM, connect, load, options, until_answer};

pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

/// A playground whose second zone is an `exec` driver's to make, with a script that writes down what it is asked.
pub(crate) struct Fleet {
    pub(crate) playground: Playground,
    pub(crate) config: PathBuf,
    pub(crate) home: PathBuf,
    pub(crate) database: u16,
    pub(crate) workers: Vec<u16>,
    pub(crate) admin: String,
}

/// Ends what the driver made, whatever the test says.
impl Drop for Fleet {
    fn drop(&mut self) {
        let folders = std::fs::read_dir(&self.home).into_iter().flatten().flatten();
        for place in folders.map(|entry| entry.path()).filter(|path| path.join("driver").exists()) {
            if let Err(error) = ProcessProvisioning::new(self.process(&place)).kill() {
                eprintln!("not stopped: {error}");
            }
        }
    }
}

impl Fleet {
    pub(crate) async fn new(policy: &str) -> Result<Self> {
        let mut options = options(false)?;
        options.settings[0]
            .push_str("max_connections = 177\nstatement_timeout = 61s\ntimezone = 'Asia/Tokyo'\ndatestyle = 'SQL, DMY'\n");
        let playground = Playground::start(&options).await?;
        let ports = free_ports(4)?;
        let home = playground.directory.join("fleet");
        std::fs::create_dir_all(&home)?;
        let config = playground.directory.join("fleet.d/godwit.yaml");
        let fleet = Self {
            home,
            database: ports[0],
            workers: ports[1..3].to_vec(),
            admin: format!("127.0.0.1:{}", ports[3]),
            config,
            playground,
        };
        fleet.write(policy)?;
        Ok(fleet)
    }

    pub(crate) fn near(&self) -> &Zone {
        &self.playground.zones[0]
    }

    pub(crate) fn process(&self, place: &Path) -> godwit::config::model::ProcessDriver {
        let mut settings = self.near().driver.clone();
        settings.directory = place.join("driver");
        settings.listen = self.workers.iter().map(|port| ([127, 0, 0, 1], *port).into()).collect();
        if let Some(cluster) = &mut settings.cluster {
            cluster.data = place.join("data");
            cluster.listen = ([127, 0, 0, 1], self.database).into();
        }
        settings
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.home.join("asked.jsonl")
    }

    /// Of the scripts that were asked to provision, the process ids.
    pub(crate) fn provisions(&self) -> PathBuf {
        self.home.join("provisions")
    }

    /// Requests that the script was asked so far.
    pub(crate) fn asked(&self, verb: &str) -> Vec<Value> {
        let text = std::fs::read_to_string(self.log()).unwrap_or_default();
        let all = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        all.filter(|request| request["verb"] == verb).collect()
    }

    /// The numbers of workers that the script was asked for so far.
    pub(crate) fn scaled(&self) -> Vec<u64> {
        self.asked("scale").iter().filter_map(|request| request["capacity"].as_u64()).collect()
    }

    pub(crate) fn write(&self, policy: &str) -> Result<()> {
        let script = self.home.join("driver.sh");
        let bin = &self.near().driver.cluster.as_ref().context("a cluster")?.bin;
        let workers: Vec<String> =
            self.workers.iter().map(|port| format!(" --worker 127.0.0.1:{port}")).collect();
        let workers = workers.concat();
        // Written down, then refused or held while a file says so, then done.
        let text = format!(
            "#!/bin/sh\nread -r request\nprintf '%s\\n' \"$request\" >> {log}\n\
             case \"$request\" in *'\"verb\":\"provision\"'*) echo $$ >> {provisions};; esac\n\
             case \"$request\" in *'\"verb\":\"scale\"'*) [ ! -e {broken} ] || exit 1;; esac\n\
             while [ -e {hold} ]; do sleep 0.05; done\n\
             printf '%s\\n' \"$request\" | {PROGRAM} demo-driver --home {home} --bin {bin} \
             --database 127.0.0.1:{database}{workers}\n",
            log = self.log().display(),
            provisions = self.provisions().display(),
            hold = self.home.join("hold").display(),
            broken = self.home.join("broken").display(),
            home = self.home.display(),
            bin = bin.display(),
            database = self.database,
        );
        std::fs::write(&script, text)?;
        std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        let folder = self.config.parent().context("a folder")?;
        std::fs::create_dir_all(folder.join("policies"))?;
        std::fs::write(folder.join("policies/playground.yaml"), policy)?;
        std::fs::write(
            folder.join("policies/chosen.yaml"),
            policy.replace("name: playground", "name: chosen"),
        )?;
        std::fs::write(&self.config, self.text(true))?;
        Ok(())
    }

    pub(crate) fn text(&self, flexible: bool) -> String {
        let near = self.near();
        let resource =
            if flexible { self.resource(RESOURCE, self.playground.front.port()) } else { String::new() };
        format!(
            "node: {{name: edge, zone: {near}, state: {state}, admin: {{listen: \"{admin}\"}}, threads: 2}}\n\
             zones:\n  {near}: {{country: IE, grid: west, location: [53.34, -6.26], cost: 0.40/h}}\n  \
             close: {{country: IE, grid: west, location: [53.40, -6.30], cost: 0.10/h}}\n  \
             far: {{country: DE, grid: central, location: [50.11, 8.68], cost: 0.30/h}}\n  \
             farther: {{country: PL, grid: east, location: [52.23, 21.01], cost: 0.60/h}}\n\
             drivers:\n  fleet:\n    exec:\n      argv: [\"{script}\"]\n      every: 500ms\n      deadline: 60s\n      \
             parameters: {{size: small}}\nresources:\n{resource}",
            near = near.name,
            state = folder_of(&self.config).join("state").display(),
            admin = self.admin,
            script = self.home.join("driver.sh").display(),
        )
    }

    pub(crate) fn resource(&self, name: &str, front: u16) -> String {
        let near = self.near();
        let workers: Vec<String> =
            near.workers_from_leader.iter().map(|address| format!("\"{address}\"")).collect();
        format!(
            "  {name}:\n    location: flexible\n    driver: fleet\n    fronts: {{http: {{listen: \"127.0.0.1:{front}\"}}}}\n    \
             primary: {zone}\n    policy: playground\n    placements:\n      {zone}:\n        http: [{workers}]\n        \
             postgres: {{dsn: \"postgres://{GODWIT_ROLE}@{database}/{DATABASE}\", bin: \"{bin}\", \
             app_roles: [{SERVICE_ROLE}]}}\n        capacity: {count}\n",
            zone = near.name,
            workers = workers.join(", "),
            database = near.database,
            bin = near
                .driver
                .cluster
                .as_ref()
                .map(|cluster| cluster.bin.display().to_string())
                .unwrap_or_default(),
            count = near.workers.len(),
        )
    }

    pub(crate) fn client(&self) -> Client {
        Client::new(&self.admin)
    }

    pub(crate) fn start(&self) -> Result<Node> {
        Node::start(Path::new(PROGRAM), &self.config, &[])
    }

    /// Somebody is connected to the database that the driver made.
    pub(crate) async fn stranger(&self, role: &str) -> Result<Stranger> {
        let mut dsn = replicator::postgres::Dsn::default();
        dsn.host("127.0.0.1").port(self.database).user(role).dbname(DATABASE).application_name("report-job");
        let (client, connection) = dsn.connect(tokio_postgres::NoTls).await?;
        Ok(Stranger { client, connection: tokio::spawn(connection) })
    }

    pub(crate) async fn made(&self) -> Result<tokio_postgres::Client> {
        let mut dsn = replicator::postgres::Dsn::default();
        dsn.host("127.0.0.1").port(self.database).user(GODWIT_ROLE).dbname(DATABASE);
        Ok(replicator::postgres::connect_untouched(&dsn, "godwit-test").await?)
    }
}

pub(crate) struct Stranger {
    client: tokio_postgres::Client,
    connection: tokio::task::JoinHandle<Result<(), tokio_postgres::Error>>,
}

impl Stranger {
    pub(crate) async fn leave(self) -> Result<()> {
        drop(self.client);
        Ok(self.connection.await??)
    }
}

pub(crate) fn folder_of(path: &Path) -> PathBuf {
    path.parent().map(Path::to_owned).unwrap_or_default()
}

pub(crate) fn policy(extra: &str) -> String {
    let text = POLICY
        .replace("mode: auto", "mode: observe")
        .replace("retire: {after: 5s", "retire: {after: 100ms")
        .replace("step: 500ms", "step: 200ms");
    format!("{text}{extra}")
}

pub(crate) async fn until(
    node: &mut Node,
    client: &Client,
    resource: &str,
    what: &str,
    reached: impl Fn(&ResourceView) -> bool,
) -> Result<ResourceView> {
    until_answer(node, client, &format!("/api/v1/resources/{resource}"), what, reached).await
}

pub(crate) fn movable(view: &ResourceView) -> bool {
    view.phase == "shadowing" && is_let(view)
}

/// The guards let an operator move it.
fn is_let(view: &ResourceView) -> bool {
    let mut guards = view.decision.iter().flat_map(|decision| &decision.guards);
    view.decision.is_some() && guards.all(|guard| guard.passed || !guard.binds_operator)
}

async fn migrate(client: &Client, resource: &str, to: &str) -> Result<()> {
    client.send(&format!("/api/v1/resources/{resource}/migrations"), &json!({ "to": to })).await?;
    Ok(())
}

pub(crate) fn problem(error: &anyhow::Error) -> Result<&Problem> {
    Ok(&error.downcast_ref::<Refusal>().with_context(|| format!("no problem document: {error:#}"))?.0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chosen_zone_is_provisioned_once_moved_to_and_back() -> Result<()> {
    let fleet = Fleet::new(&policy("")).await?;
    let client = fleet.client();
    // Killed while the driver works: the next process asks under the same id, and it is done once.
    let hold = fleet.home.join("hold");
    std::fs::write(&hold, "")?;
    let mut node = fleet.start()?;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while fleet.asked("provision").is_empty() {
        node.check()?;
        ensure!(tokio::time::Instant::now() < deadline, "the driver was never asked\n{}", node.tail(40));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    node.signal(Signal::KILL)?;
    drop(node);
    std::fs::remove_file(&hold)?;
    let mut node = fleet.start()?;
    let view = until(&mut node, &client, RESOURCE, "the shadow is ready", movable).await?;
    ensure!(view.shadow == "far", "near is too near and farther costs more: {view:#?}");
    let asked = fleet.asked("provision");
    ensure!(asked.len() >= 2, "{asked:#?}");
    ensure!(asked.iter().all(|one| one["operation"] == asked[0]["operation"]), "{asked:#?}");
    ensure!(
        asked[0]["capacity"] == 1 && asked[0]["full"] == 2 && asked[0]["parameters"]["size"] == "small",
        "{asked:#?}"
    );
    ensure!(asked[0]["database"]["role"] == GODWIT_ROLE, "{asked:#?}");
    // The new cluster has the settings of the primary that matter.
    let made = fleet.made().await?;
    for (name, value) in [
        ("max_connections", "177"),
        ("statement_timeout", "61s"),
        ("timezone", "Asia/Tokyo"),
        ("datestyle", "SQL, DMY"),
    ] {
        let found: String = made.query_one(&format!("SHOW {name}"), &[]).await?.get(0);
        ensure!(found == value, "{name} is {found}");
    }

    let load = load(&fleet.playground, 50.0, "fleet");
    migrate(&client, RESOURCE, "far").await?;
    let moved = |to: &'static str| move |view: &ResourceView| view.primary == to && movable(view);
    until(&mut node, &client, RESOURCE, "it is served from the chosen zone", moved("far")).await?;
    let scaled = fleet.asked("scale");
    ensure!(scaled.iter().any(|one| one["capacity"] == 2), "scaled up before the move: {scaled:#?}");

    // A restart finds the chosen zone and where it is, without being told again.
    let outcome = load.stop().await;
    ensure!(outcome.totals.failed == 0 && outcome.totals.acknowledged > 20, "{:#?}", outcome.failures);
    drop(node);
    let mut node = fleet.start()?;
    until(&mut node, &client, RESOURCE, "it serves after a restart", moved("far")).await?;
    let load = crate::leader::load(&fleet.playground, 50.0, "fleet2");
    migrate(&client, RESOURCE, &fleet.near().name).await?;
    let near = fleet.near().name.clone();
    until(&mut node, &client, RESOURCE, "it is back", |view| view.primary == near && movable(view)).await?;
    let outcome = load.stop().await;
    ensure!(outcome.totals.failed == 0 && outcome.totals.acknowledged > 20, "{:#?}", outcome.failures);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_program_has_none_of_the_drivers_programs_beside_its_own() -> Result<()> {
    let fleet = Fleet::new(&policy("")).await?;
    let client = fleet.client();
    let hold = fleet.home.join("hold");
    std::fs::write(&hold, "")?;
    let mut node = fleet.start()?;
    let provisions = || -> Vec<PathBuf> {
        let text = std::fs::read_to_string(fleet.provisions()).unwrap_or_default();
        text.lines().map(|pid| Path::new("/proc").join(pid)).collect()
    };
    let deadline = tokio::time::Instant::now() + PATIENCE;
    for asked in [1, 2] {
        while provisions().len() < asked {
            node.check()?;
            ensure!(tokio::time::Instant::now() < deadline, "asked {asked} times\n{}", node.tail(40));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        if asked == 1 {
            ensure!(provisions()[0].exists(), "it is held");
            node.signal(Signal::QUIT)?;
        }
    }
    let provisions = provisions();
    ensure!(!provisions[0].exists(), "the one before goes on, or is a zombie\n{}", node.tail(40));
    ensure!(provisions[1].exists(), "it is held");
    std::fs::remove_file(&hold)?;
    until(&mut node, &client, RESOURCE, "the shadow is ready", movable).await?;
    let asked = fleet.asked("provision");
    ensure!(asked.iter().all(|one| one["operation"] == asked[0]["operation"]), "{asked:#?}");
    Ok(())
}

/// A second node beside the fleet's, with a lease for both. By itself it would choose another zone.
fn other(fleet: &Fleet) -> Result<(PathBuf, Client)> {
    let lease = |text: String| text.replace("threads: 2}", "threads: 2, lease: 3s}");
    std::fs::write(&fleet.config, lease(fleet.text(true)))?;
    let other = fleet.config.with_file_name("other.yaml");
    let admin = format!("127.0.0.1:{}", free_ports(1)?[0]);
    let text = fleet.text(true).replace("cost: 0.60/h", "cost: 0.01/h").replace(&fleet.admin, &admin);
    std::fs::write(
        &other,
        lease(text.replace("name: edge", "name: other").replace("/state", "/state-other")),
    )?;
    Ok((other, Client::new(&admin)))
}

/// Waits until the first database has what the next leader is to know: its legacy contains this, by `@>`.
async fn left(fleet: &Fleet, known: &Value) -> Result<()> {
    let database = connect(fleet.near()).await?;
    godwit_tests::waiting::until("it is left to the next one", async || {
        let sql =
            "SELECT EXISTS (SELECT FROM godwit.leader WHERE legacy::jsonb -> 'tables' @> $1::text::jsonb)";
        Ok(database.query_one(sql, &[&known.to_string()]).await?.get::<_, bool>(0))
    })
    .await
}

/// Where only the driver knows it: by its word to the node that led before.
#[tokio::test(flavor = "multi_thread")]
async fn a_zone_that_was_moved_to_is_known_to_the_next_leader() -> Result<()> {
    let fleet = Fleet::new(&policy("")).await?;
    let (other, next) = other(&fleet)?;
    let client = fleet.client();
    let mut node = fleet.start()?;
    until(&mut node, &client, RESOURCE, "the shadow is ready", movable).await?;
    migrate(&client, RESOURCE, "far").await?;
    let moved = |view: &ResourceView| view.primary == "far" && movable(view);
    until(&mut node, &client, RESOURCE, "it is served from the chosen zone", moved).await?;
    left(&fleet, &json!({ "placed": [{ "primary_zone": "far" }] })).await?;
    node.signal(Signal::KILL)?;
    drop(node);
    let mut node = Node::start(Path::new(PROGRAM), &other, &[])?;
    until(&mut node, &next, RESOURCE, "the next one knows", moved).await?;
    let load = load(&fleet.playground, 50.0, "fleet");
    until(&mut node, &next, RESOURCE, "it serves", |_| load.snapshot().acknowledged > 20).await?;
    let outcome = load.stop().await;
    ensure!(outcome.totals.failed == 0, "{:#?}", outcome.failures);
    Ok(())
}

/// Nobody compares both sides at its end marker any more: that it is not given back is said.
#[tokio::test(flavor = "multi_thread")]
async fn an_old_primary_is_kept_where_the_leader_was_lost_in_its_soak() -> Result<()> {
    let gives = policy("").replace("retire: {after: 100ms", "retire: {then: deprovision, after: 1h");
    let fleet = Fleet::new(&gives).await?;
    let (other, next) = other(&fleet)?;
    let client = fleet.client();
    let near = fleet.near().name.clone();
    let mut node = fleet.start()?;
    until(&mut node, &client, RESOURCE, "the shadow is ready", movable).await?;
    migrate(&client, RESOURCE, "far").await?;
    let soaks = |view: &ResourceView| view.primary == "far" && view.phase == "soaking";
    let view = until(&mut node, &client, RESOURCE, "it soaks", soaks).await?;
    let id = view.migration.context("a migration")?;
    left(&fleet, &json!({ "placed": [{ "primary_zone": "far" }], "run": [{ "id": id }] })).await?;
    node.signal(Signal::KILL)?;
    drop(node);
    let why = "the node that led was lost before the old primary was retired";
    let kept = format!("{near} is kept: {why}");
    // It says so after a restart, too.
    for _ in 0..2 {
        let mut node = Node::start(Path::new(PROGRAM), &other, &[])?;
        let says = |view: &ResourceView| view.primary == "far" && view.problems.contains(&kept);
        until(&mut node, &next, RESOURCE, "it says what is kept", says).await?;
        let run: Value = next.fetch(&format!("/api/v1/resources/{RESOURCE}/migrations/{id}")).await?;
        ensure!((&run["state"], &run["reason"]) == (&json!("superseded"), &json!(why)), "{run:#}");
    }
    Ok(())
}

/// What a soak that was superseded still wanted of the driver is not asked of the zone that is the primary again.
#[tokio::test(flavor = "multi_thread")]
async fn a_zone_that_is_moved_back_to_is_not_scaled_down_any_more() -> Result<()> {
    let fleet = Fleet::new(&policy("")).await?;
    let client = fleet.client();
    let near = fleet.near().name.clone();
    let mut node = fleet.start()?;
    until(&mut node, &client, RESOURCE, "the shadow is ready", movable).await?;
    migrate(&client, RESOURCE, "far").await?;
    until(&mut node, &client, RESOURCE, "it has moved", |view| view.primary == "far" && movable(view))
        .await?;

    let broken = fleet.home.join("broken");
    std::fs::write(&broken, "")?;
    migrate(&client, RESOURCE, &near).await?;
    // The next attempt is some seconds away.
    until(&mut node, &client, RESOURCE, "it cannot be scaled down", |view| {
        view.problems.iter().any(|problem| problem.starts_with("scale_down failed 6 times"))
    })
    .await?;
    std::fs::remove_file(&broken)?;
    let before = fleet.asked("scale").len();
    migrate(&client, RESOURCE, "far").await?;
    until(&mut node, &client, RESOURCE, "it has moved back", |view| {
        view.primary == "far" && view.phase == "shadowing"
    })
    .await?;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while tokio::time::Instant::now() < deadline {
        let asked = fleet.asked("scale").split_off(before);
        ensure!(asked.iter().all(|one| one["capacity"] == 2), "scaled down although it serves: {asked:#?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

/// The driver refuses to scale down after an undone move, once: nobody would ask it again.
#[tokio::test(flavor = "multi_thread")]
async fn the_shadow_of_an_undone_move_does_not_keep_its_workers() -> Result<()> {
    let fleet = Fleet::new(&policy("")).await?;
    let client = fleet.client();
    let mut node = fleet.start()?;
    until(&mut node, &client, RESOURCE, "the shadow is ready", movable).await?;
    let (hold, broken) = (fleet.home.join("hold"), fleet.home.join("broken"));
    std::fs::write(&hold, "")?;
    migrate(&client, RESOURCE, "far").await?;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !fleet.scaled().ends_with(&[2]) {
        node.check()?;
        ensure!(tokio::time::Instant::now() < deadline, "not scaled up\n{}", node.tail(40));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // What is asked from here on fails, and the guards stop the move.
    std::fs::write(&broken, "")?;
    let freeze = format!("/api/v1/resources/{RESOURCE}/freeze");
    client.send(&freeze, &json!({ "why": "a release" })).await?;
    std::fs::remove_file(&hold)?;
    until(&mut node, &client, RESOURCE, "it is undone, and the driver refuses", |view| {
        view.phase == "shadowing"
            && view.problems.iter().any(|problem| problem.starts_with("scale_down failed"))
    })
    .await?;
    std::fs::remove_file(&broken)?;
    let view = until(&mut node, &client, RESOURCE, "the shadow has its share of workers", |view| {
        let shadow = view.placements.iter().find(|placement| placement.zone == "far");
        shadow.is_some_and(|shadow| shadow.capacity == Some(1))
            && !view.problems.iter().any(|problem| problem.starts_with("scale_down failed"))
    })
    .await?;
    ensure!(view.phase == "shadowing" && fleet.scaled().ends_with(&[2, 1, 1]), "{:?}", fleet.scaled());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_primary_is_given_back_only_when_nobody_uses_it() -> Result<()> {
    let fleet = Fleet::new(&policy("").replace("retire: {", "retire: {then: deprovision, ")).await?;
    let client = fleet.client();
    let mut node = fleet.start()?;
    until(&mut node, &client, RESOURCE, "the shadow is ready", movable).await?;
    migrate(&client, RESOURCE, "far").await?;
    // The first zone has no driver here: it is kept.
    until(&mut node, &client, RESOURCE, "it is served from the chosen zone", |view| {
        view.primary == "far"
            && movable(view)
            && view.problems.iter().any(|problem| problem.contains("no driver"))
    })
    .await?;
    ensure!(fleet.asked("deprovision").is_empty(), "nothing of the driver's may end");

    // A stranger's session keeps the driver's zone from being ended.
    let near = fleet.near().name.clone();
    migrate(&client, RESOURCE, &near).await?;
    let view = until(&mut node, &client, RESOURCE, "it is back", |view| view.primary == near).await?;
    ensure!(!view.problems.iter().any(|problem| problem.contains("no driver")), "{:#?}", view.problems);
    let stranger = fleet.stranger(GODWIT_ROLE).await?;
    until(&mut node, &client, RESOURCE, "the stranger is named", |view| {
        view.problems.iter().any(|problem| problem.contains("report-job"))
    })
    .await?;
    ensure!(fleet.asked("deprovision").is_empty(), "it was ended under a client");
    let ended = fleet.scaled().contains(&0);
    ensure!(!ended, "workers were ended for one who is none of them: {:?}", fleet.scaled());
    stranger.leave().await?;
    until(&mut node, &client, RESOURCE, "no shadow is kept", |view| view.phase == "idle").await?;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while fleet.made().await.is_ok() {
        ensure!(tokio::time::Instant::now() < deadline, "the cluster still runs\n{}", node.tail(40));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    ensure!(fleet.asked("deprovision").len() == 1, "{:#?}", fleet.asked("deprovision"));
    // The slot is gone, so the primary's disk keeps nothing for a shadow that is not there.
    let primary = connect(fleet.near()).await?;
    let slots: i64 = primary.query_one("SELECT count(*) FROM pg_replication_slots", &[]).await?.get(0);
    ensure!(slots == 0, "{slots} slots");

    // It stays that way after a restart.
    drop(node);
    let mut node = fleet.start()?;
    let view = until(&mut node, &client, RESOURCE, "it serves", |view| view.decision.is_some()).await?;
    ensure!(view.phase == "idle" && view.primary == near, "{view:#?}");
    // And after a reload that has nothing to do with it, until a person says otherwise.
    let made = fleet.asked("provision").len();
    let other = policy("").replace("retire: {after: 100ms", "retire: {then: deprovision, after: 200ms");
    std::fs::write(folder_of(&fleet.config).join("policies/playground.yaml"), other)?;
    let done: Reloaded = serde_json::from_slice(&client.send("/api/v1/config/reload", &json!({})).await?)?;
    ensure!(done.refused.is_empty() && done.applied.iter().any(|key| key.contains("retire")), "{done:#?}");
    let view: ResourceView = client.fetch(&format!("/api/v1/resources/{RESOURCE}")).await?;
    ensure!(view.phase == "idle" && fleet.asked("provision").len() == made, "{view:#?}");
    let shadow = format!("/api/v1/resources/{RESOURCE}/shadow");
    let (_, tag) = client.fetch_tagged::<Value>(&shadow).await?;
    let wanted = json!({ "enabled": true, "capacity": "50%" });
    let _: SectionView = client.replace(&shadow, &wanted, &tag).await?;
    until(&mut node, &client, RESOURCE, "a shadow is made again", |view| view.phase != "idle").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_ends_what_waits_to_be_given_back() -> Result<()> {
    let gives = policy("").replace("retire: {", "retire: {then: deprovision, ");
    // It soaks long enough for somebody to be there.
    let fleet = Fleet::new(&gives.replace("after: 100ms", "after: 3s")).await?;
    let (client, near) = (fleet.client(), fleet.near().name.clone());
    let mut node = fleet.start()?;
    until(&mut node, &client, RESOURCE, "the shadow is ready", movable).await?;
    let kept = |view: &ResourceView| view.problems.iter().any(|problem| problem.contains("no driver"));
    migrate(&client, RESOURCE, "far").await?;
    until(&mut node, &client, RESOURCE, "near is kept", |view| kept(view) && movable(view)).await?;
    migrate(&client, RESOURCE, &near).await?;
    until(&mut node, &client, RESOURCE, "it is back", |view| view.primary == near && view.phase == "soaking")
        .await?;
    // Who has the service's role is told from its workers when these have ended; then they are started again.
    let stranger = fleet.stranger(SERVICE_ROLE).await?;
    until(&mut node, &client, RESOURCE, "the stranger is named", |view| {
        view.problems.iter().any(|problem| problem.contains("report-job")) && movable(view)
    })
    .await?;
    ensure!(fleet.scaled().ends_with(&[0, 1]), "{:?}", fleet.scaled());

    // A move begins in the middle of that: its workers stay.
    let hold = fleet.home.join("hold");
    std::fs::write(&hold, "")?;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !fleet.scaled().ends_with(&[0]) {
        node.check()?;
        ensure!(tokio::time::Instant::now() < deadline, "not tried again\n{}", node.tail(40));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    migrate(&client, RESOURCE, "far").await?;
    std::fs::remove_file(&hold)?;
    let moved = |view: &ResourceView| view.primary == "far" && kept(view);
    until(&mut node, &client, RESOURCE, "it is served from the chosen zone", moved).await?;
    ensure!(fleet.scaled().ends_with(&[0, 2]), "{:?}", fleet.scaled());
    ensure!(fleet.asked("deprovision").is_empty(), "it was ended under a move");
    drop(stranger);

    // What is read anew says that it is kept.
    std::fs::write(folder_of(&fleet.config).join("policies/playground.yaml"), policy(""))?;
    client.send("/api/v1/config/reload", &json!({})).await?;
    until(&mut node, &client, RESOURCE, "nothing waits any more", |view| !kept(view)).await?;
    Ok(())
}

/// Its workers are there for the next try, and it soaks until it was to.
#[tokio::test(flavor = "multi_thread")]
async fn an_old_primary_soaks_on_where_the_way_back_is_undone() -> Result<()> {
    let fleet = Fleet::new(&policy("").replace("retire: {after: 100ms", "retire: {after: 1h")).await?;
    let (client, near) = (fleet.client(), fleet.near().name.clone());
    let mut node = fleet.start()?;
    until(&mut node, &client, RESOURCE, "the shadow is ready", movable).await?;
    // The old primary is to be the one whose workers the script has.
    migrate(&client, RESOURCE, "far").await?;
    let soaks = |zone: &str| {
        let zone = zone.to_owned();
        move |view: &ResourceView| view.primary == zone && view.phase == "soaking" && is_let(view)
    };
    until(&mut node, &client, RESOURCE, "it soaks", soaks("far")).await?;
    migrate(&client, RESOURCE, &near).await?;
    let view = until(&mut node, &client, RESOURCE, "the other soaks", soaks(&near)).await?;
    let (run, until_ms) = (view.migration.context("a migration")?, view.soak.context("a soak")?.until_ms);
    let asked = fleet.scaled().len();

    let hold = fleet.home.join("hold");
    std::fs::write(&hold, "")?;
    migrate(&client, RESOURCE, "far").await?;
    let view = until(&mut node, &client, RESOURCE, "it scales up", |view| view.phase == "requested").await?;
    let back = view.migration.context("a migration")?;
    let migration = async |id: &str| -> Result<Value> {
        client.fetch(&format!("/api/v1/resources/{RESOURCE}/migrations/{id}")).await
    };
    ensure!(migration(&run).await?["state"] == "soaking", "{:#}", migration(&run).await?);
    // The guards stop it.
    let freeze = format!("/api/v1/resources/{RESOURCE}/freeze");
    client.send(&freeze, &json!({ "why": "a release" })).await?;
    std::fs::remove_file(&hold)?;
    let goes_on = |view: &ResourceView| {
        // It is told from the soak before.
        let soak = view.soak.as_ref().is_some_and(|soak| soak.until_ms == until_ms + 1);
        soak && view.migration.as_deref() == Some(&*run)
    };
    until(&mut node, &client, RESOURCE, "the soak goes on", goes_on).await?;
    ensure!(migration(&back).await?["state"] == "aborted", "{:#}", migration(&back).await?);
    let run = migration(&run).await?;
    ensure!((&run["state"], &run["ended_ms"]) == (&json!("soaking"), &Value::Null), "{run:#}");
    // Fewer would have been asked for by then.
    let seen = fleet.asked("status").len();
    let looked = async || Ok(fleet.asked("status").len() >= seen + 2);
    godwit_tests::waiting::until("the driver is asked how it is", looked).await?;
    let asked = fleet.scaled().split_off(asked);
    ensure!(asked.iter().all(|workers| *workers == 2), "scaled down: {asked:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_applies_what_it_can_and_a_wrong_file_changes_nothing() -> Result<()> {
    let playground = Playground::start(&options(false)?).await?;
    let mut leader = crate::leader::Leader::start(&playground, &[])?;
    leader.ready().await?;
    let policy_file = folder_of(&playground.config).join("policies/playground.yaml");
    let before = std::fs::read_to_string(&policy_file)?;
    ensure!(before.contains("mode: observe"), "{before}");
    std::fs::write(&policy_file, before.replace("mode: observe", "mode: advise"))?;
    leader.node.signal(Signal::HUP)?;
    leader.until("the policy is another one", |view| view.mode == "advise").await?;

    std::fs::write(&policy_file, before.replace("mode: observe", "mode: brave"))?;
    let error = leader.client.send("/api/v1/config/reload", &json!({})).await.expect_err("refused");
    ensure!(problem(&error)?.detail.contains("playground.yaml:"), "{error:#}");
    let metrics = metric(&leader.client, "godwit_config_last_reload_successful").await?;
    ensure!(metrics == "0", "{metrics}");
    ensure!(leader.view().await?.mode == "advise", "a wrong file changed something");

    std::fs::write(&policy_file, &before)?;
    let text = std::fs::read_to_string(&playground.config)?;
    std::fs::write(&playground.config, text.replace("threads: 2", "threads: 3"))?;
    let config: ConfigView = leader.client.fetch("/api/v1/config").await?;
    let keys: Vec<(&str, bool)> = config.differences.iter().map(|one| (one.key.as_str(), one.live)).collect();
    ensure!(keys == [("node.threads", false), ("policies.playground.mode", true)], "{keys:?}");
    // A section that is changed brings nothing else of the files into force.
    let scaling = format!("/api/v1/resources/{}/scaling", godwit::demo::zone::RESOURCE);
    let (section, tag) = leader.client.fetch_tagged::<Value>(&scaling).await?;
    leader.client.replace::<Value>(&scaling, &section, &tag).await?;
    ensure!(leader.view().await?.mode == "advise", "the policy was read anew");
    let config: ConfigView = leader.client.fetch("/api/v1/config").await?;
    let differs = |key: &str| config.differences.iter().any(|one| one.key == key);
    ensure!(differs("policies.playground.mode"), "{:#?}", config.differences);
    let done: Reloaded =
        serde_json::from_slice(&leader.client.send("/api/v1/config/reload", &json!({})).await?)?;
    ensure!(
        done.applied == ["policies.playground.mode"] && done.needs_restart == ["node.threads"],
        "{done:#?}"
    );
    ensure!(metric(&leader.client, "godwit_config_last_reload_successful").await? == "1", "still wrong");
    leader.until("the policy is the old one", |view| view.mode == "observe").await?;
    Ok(())
}

async fn metric(client: &Client, name: &str) -> Result<String> {
    let (body, _) = client.call_with(Method::GET, "/metrics", None, &[]).await?;
    let text = String::from_utf8_lossy(&body).into_owned();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ').map(str::to_owned));
    line.with_context(|| format!("{name} is not there"))
}
