//! Drivers outside of the process, zones that are chosen, reservations, retirement: with clusters that are really made.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use godwit::admin::{Problem, SectionView};
use godwit::audit::verify::verify;
use godwit::cli::client::{Client, Refusal};
use godwit::controller::view::ResourceView;
use godwit::demo::node::Node;
use godwit::demo::zone::{
    DATABASE, GODWIT_ROLE, POLICY, Playground, RESOURCE, SERVICE_ROLE, Zone, free_ports,
};
use godwit::drivers::process::ProcessProvisioning;
use godwit::leading::changes::{Reloaded, Reservation};
use godwit::leading::comparison::ConfigView;
use http::Method;
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::leader::{PROGRAM, connect, load, options, until_answer};

const PATIENCE: Duration = Duration::from_secs(90);

/// A playground whose second zone is an `exec` driver's to make, with a script that writes down what it is asked.
struct Fleet {
    playground: Playground,
    config: PathBuf,
    home: PathBuf,
    database: u16,
    workers: Vec<u16>,
    admin: String,
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
    async fn new(policy: &str) -> Result<Self> {
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

    fn near(&self) -> &Zone {
        &self.playground.zones[0]
    }

    fn process(&self, place: &Path) -> godwit::config::model::ProcessDriver {
        let mut settings = self.near().driver.clone();
        settings.directory = place.join("driver");
        settings.listen = self.workers.iter().map(|port| ([127, 0, 0, 1], *port).into()).collect();
        if let Some(cluster) = &mut settings.cluster {
            cluster.data = place.join("data");
            cluster.listen = ([127, 0, 0, 1], self.database).into();
        }
        settings
    }

    fn log(&self) -> PathBuf {
        self.home.join("asked.jsonl")
    }

    /// Requests that the script was asked so far.
    fn asked(&self, verb: &str) -> Vec<Value> {
        let text = std::fs::read_to_string(self.log()).unwrap_or_default();
        let all = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        all.filter(|request| request["verb"] == verb).collect()
    }

    /// The numbers of workers that the script was asked for so far.
    fn scaled(&self) -> Vec<u64> {
        self.asked("scale").iter().filter_map(|request| request["capacity"].as_u64()).collect()
    }

    fn write(&self, policy: &str) -> Result<()> {
        let script = self.home.join("driver.sh");
        let bin = &self.near().driver.cluster.as_ref().context("a cluster")?.bin;
        let workers: Vec<String> =
            self.workers.iter().map(|port| format!(" --worker 127.0.0.1:{port}")).collect();
        let workers = workers.concat();
        // Written down, then refused or held while a file says so, then done.
        let text = format!(
            "#!/bin/sh\nread -r request\nprintf '%s\\n' \"$request\" >> {log}\n\
             case \"$request\" in *'\"verb\":\"scale\"'*) [ ! -e {broken} ] || exit 1;; esac\n\
             while [ -e {hold} ]; do sleep 0.05; done\n\
             printf '%s\\n' \"$request\" | {PROGRAM} demo-driver --home {home} --bin {bin} \
             --database 127.0.0.1:{database}{workers}\n",
            log = self.log().display(),
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

    fn text(&self, flexible: bool) -> String {
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

    fn resource(&self, name: &str, front: u16) -> String {
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

    fn client(&self) -> Client {
        Client::new(&self.admin)
    }

    fn start(&self) -> Result<Node> {
        Node::start(Path::new(PROGRAM), &self.config, &[])
    }

    /// Somebody is connected to the database that the driver made.
    async fn stranger(&self, role: &str) -> Result<Stranger> {
        let mut dsn = replicator::postgres::Dsn::default();
        dsn.host("127.0.0.1").port(self.database).user(role).dbname(DATABASE).application_name("report-job");
        let (client, connection) = dsn.connect(tokio_postgres::NoTls).await?;
        Ok(Stranger { client, connection: tokio::spawn(connection) })
    }

    async fn made(&self) -> Result<tokio_postgres::Client> {
        let mut dsn = replicator::postgres::Dsn::default();
        dsn.host("127.0.0.1").port(self.database).user(GODWIT_ROLE).dbname(DATABASE);
        Ok(replicator::postgres::connect_untouched(&dsn, "godwit-test").await?)
    }
}

struct Stranger {
    client: tokio_postgres::Client,
    connection: tokio::task::JoinHandle<Result<(), tokio_postgres::Error>>,
}

impl Stranger {
    async fn leave(self) -> Result<()> {
        drop(self.client);
        Ok(self.connection.await??)
    }
}

fn folder_of(path: &Path) -> PathBuf {
    path.parent().map(Path::to_owned).unwrap_or_default()
}

fn policy(extra: &str) -> String {
    let text = POLICY
        .replace("mode: auto", "mode: observe")
        .replace("retire: {after: 5s", "retire: {after: 100ms")
        .replace("step: 500ms", "step: 200ms");
    format!("{text}{extra}")
}

async fn until(
    node: &mut Node,
    client: &Client,
    resource: &str,
    what: &str,
    reached: impl Fn(&ResourceView) -> bool,
) -> Result<ResourceView> {
    until_answer(node, client, &format!("/api/v1/resources/{resource}"), what, reached).await
}

fn movable(view: &ResourceView) -> bool {
    let guards = view.decision.iter().flat_map(|decision| &decision.guards);
    view.phase == "shadowing"
        && view.decision.is_some()
        && guards.clone().all(|g| g.passed || !g.binds_operator)
}

async fn migrate(client: &Client, resource: &str, to: &str) -> Result<()> {
    client.send(&format!("/api/v1/resources/{resource}/migrations"), &json!({ "to": to })).await?;
    Ok(())
}

fn problem(error: &anyhow::Error) -> Result<&Problem> {
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

/// Where only the driver knows it: by its word to the node that led before.
#[tokio::test(flavor = "multi_thread")]
async fn a_zone_that_was_moved_to_is_known_to_the_next_leader() -> Result<()> {
    let fleet = Fleet::new(&policy("")).await?;
    let lease = |text: String| text.replace("threads: 2}", "threads: 2, lease: 3s}");
    std::fs::write(&fleet.config, lease(fleet.text(true)))?;
    let other = fleet.config.with_file_name("other.yaml");
    let admin = format!("127.0.0.1:{}", free_ports(1)?[0]);
    // By itself it would choose another zone.
    let text = fleet.text(true).replace("cost: 0.60/h", "cost: 0.01/h").replace(&fleet.admin, &admin);
    std::fs::write(
        &other,
        lease(text.replace("name: edge", "name: other").replace("/state", "/state-other")),
    )?;
    let client = fleet.client();
    let mut node = fleet.start()?;
    until(&mut node, &client, RESOURCE, "the shadow is ready", movable).await?;
    migrate(&client, RESOURCE, "far").await?;
    let moved = |view: &ResourceView| view.primary == "far" && movable(view);
    until(&mut node, &client, RESOURCE, "it is served from the chosen zone", moved).await?;
    let left = connect(fleet.near()).await?;
    godwit_tests::waiting::until("it is left to the next one", async || {
        let sql = "SELECT EXISTS (SELECT FROM godwit.leader WHERE legacy::jsonb #>> '{tables,placed,0,primary_zone}' = 'far')";
        Ok(left.query_one(sql, &[]).await?.get::<_, bool>(0))
    })
    .await?;
    node.signal(Signal::KILL)?;
    drop(node);
    let mut node = Node::start(Path::new(PROGRAM), &other, &[])?;
    let client = Client::new(&admin);
    until(&mut node, &client, RESOURCE, "the next one knows", moved).await?;
    let load = load(&fleet.playground, 50.0, "fleet");
    until(&mut node, &client, RESOURCE, "it serves", |_| load.snapshot().acknowledged > 20).await?;
    let outcome = load.stop().await;
    ensure!(outcome.totals.failed == 0, "{:#?}", outcome.failures);
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

#[tokio::test(flavor = "multi_thread")]
async fn a_resource_is_reserved_changed_and_dropped_by_the_api() -> Result<()> {
    let fleet = Fleet::new(&policy("")).await?;
    // The file's resource is another one, so that the reserved one can have the service to itself.
    let near = fleet.near();
    let ports = free_ports(4)?;
    let other = format!(
        "  other:\n    fronts: {{http: {{listen: \"127.0.0.1:{}\"}}}}\n    primary: {near}\n    policy: playground\n    \
         placements: {{{near}: {{http: [\"127.0.0.1:1\"]}}, far: {{http: [\"127.0.0.1:2\"]}}}}\n",
        ports[0],
        near = near.name
    );
    std::fs::write(&fleet.config, format!("{}{other}", fleet.text(false)))?;
    let client = fleet.client();
    let mut node = fleet.start()?;
    until(&mut node, &client, "other", "the node runs", |_| true).await?;

    let workers: Vec<String> = near.workers_from_leader.iter().map(ToString::to_string).collect();
    let spec = json!({
        "name": "cart", "location": "flexible", "driver": "fleet", "primary": near.name, "policy": "chosen",
        "fronts": { "http": { "listen": fleet.playground.front.to_string() },
                    "postgres": { "listen": format!("127.0.0.1:{}", ports[2]), "auth": "trust" } },
        "placements": { &near.name: {
            "http": workers, "capacity": 2,
            "postgres": { "dsn": format!("postgres://{GODWIT_ROLE}@{}/{DATABASE}", near.database),
                          "app_roles": [SERVICE_ROLE] } } },
    });
    refusals(&client, &spec).await?;

    let dry: Reservation =
        serde_json::from_slice(&client.send("/api/v1/resources?dry_run=true", &spec).await?)?;
    ensure!(dry.shadow == "far" && dry.steps.iter().any(|step| step.contains("make a cluster")), "{dry:#?}");
    ensure!(fleet.asked("provision").is_empty(), "a dry run made something");
    let key = [("idempotency-key", "cart-1")];
    let (body, headers) = client.call_with(Method::POST, "/api/v1/resources", Some(&spec), &key).await?;
    ensure!(
        headers["location"] == "/api/v1/resources/cart" && !headers.contains_key("idempotent-replayed"),
        "{headers:?}"
    );
    let (again, headers) = client.call_with(Method::POST, "/api/v1/resources", Some(&spec), &key).await?;
    ensure!(again == body && headers.contains_key("idempotent-replayed"), "{again:?}");
    let mut another = spec.clone();
    another["policy"] = "playground".into();
    let error =
        client.call_with(Method::POST, "/api/v1/resources", Some(&another), &key).await.expect_err("refused");
    ensure!(problem(&error)?.status == 409, "{error:#}");
    until(&mut node, &client, "cart", "the shadow is ready", movable).await?;
    let load = load(&fleet.playground, 50.0, "cart");
    until(&mut node, &client, "cart", "the new front answers", |_| load.snapshot().acknowledged > 10).await?;
    let outcome = load.stop().await;
    ensure!(outcome.totals.failed == 0, "{:#?}", outcome.failures);
    ensure!(count(&session(ports[2]).await?).await? > 0, "its database is reached through it");

    // Refused while somebody is connected to the shadow, which goes on.
    let stranger = fleet.stranger(GODWIT_ROLE).await?;
    let dropped = client.call_with(Method::DELETE, "/api/v1/resources/cart", None, &[]).await;
    let error = dropped.expect_err("refused");
    ensure!(problem(&error)?.status == 409 && problem(&error)?.detail.contains("report-job"), "{error:#}");
    let view: ResourceView = client.fetch("/api/v1/resources/cart").await?;
    ensure!(view.phase == "shadowing", "{view:#?}");
    let slots = "SELECT count(*) FROM pg_replication_slots WHERE active";
    let slots: i64 = connect(fleet.near()).await?.query_one(slots, &[]).await?.get(0);
    ensure!(slots > 0, "its stream has ended");
    stranger.leave().await?;

    changed(&fleet, &mut node, &client).await?;

    // What was reserved and changed is there after a restart.
    drop(node);
    let mut node = fleet.start()?;
    let view = until(&mut node, &client, "cart", "it serves after a restart", |view| view.decision.is_some())
        .await?;
    ensure!(view.phase == "idle", "the shadow was switched off: {view:#?}");
    let config: ConfigView = client.fetch("/api/v1/config").await?;
    let origin = |key: &str| config.entries.iter().find(|one| one.key == key).map(|one| one.origin.clone());
    let listen = origin("resources.cart.fronts.http.listen").context("the key")?;
    ensure!(listen.contains("overlay.json:"), "{listen}");
    let node_name = origin("node.name").context("the key")?;
    ensure!(node_name.contains("godwit.yaml:1:"), "{node_name}");

    // Clients that are connected may end what they have begun.
    let (idle, busy) = (session(ports[2]).await?, session(ports[2]).await?);
    busy.batch_execute("BEGIN; SELECT 1").await?;
    client.call_with(Method::DELETE, "/api/v1/resources/cart", None, &[]).await?;
    ensure!(count(&idle).await.is_err(), "a session went on");
    ensure!(count(&busy).await? > 0, "a transaction was cut off");
    busy.batch_execute("COMMIT").await?;
    ensure!(count(&busy).await.is_err(), "a session went on");
    let let_in = async { count(&session(ports[2]).await?).await };
    ensure!(let_in.await.is_err(), "a front of nobody lets somebody in");
    let error = client.fetch::<ResourceView>("/api/v1/resources/cart").await.expect_err("refused");
    ensure!(problem(&error)?.status == 404, "{error:#}");
    ensure!(fleet.made().await.is_err() && fleet.asked("deprovision").len() == 1, "the shadow still runs");
    // The listener was there when the node started again, so it stays; nobody is behind it.
    let answer = ask(fleet.playground.front).await?;
    ensure!(answer.starts_with("HTTP/1.1 404 "), "its front still serves: {answer}\n{}", node.tail(40));
    let error =
        client.call_with(Method::DELETE, "/api/v1/resources/other", None, &[]).await.expect_err("refused");
    ensure!(problem(&error)?.status == 409, "what is in the file is not dropped: {error:#}");

    // Once more, and dropped by the node that it joined: its listener closes.
    let mut spec = spec;
    spec["fronts"]["postgres"]["listen"] = format!("127.0.0.1:{}", ports[3]).into();
    client.send("/api/v1/resources", &spec).await?;
    until(&mut node, &client, "cart", "it is there again", |view| view.phase != "idle").await?;
    let session_again = session(ports[3]).await?;
    ensure!(count(&session_again).await? > 0, "its database is reached through it");
    client.call_with(Method::DELETE, "/api/v1/resources/cart", None, &[]).await?;
    ensure!(count(&session_again).await.is_err(), "a session went on");
    ensure!(tokio::net::TcpStream::connect(("127.0.0.1", ports[3])).await.is_err(), "it still listens");
    node.check()?;
    Ok(())
}

/// Nobody who drops a resource, or changes another one, waits for a driver.
#[tokio::test(flavor = "multi_thread")]
async fn a_resource_whose_driver_never_answers_is_dropped_all_the_same() -> Result<()> {
    let fleet = Fleet::new(&policy("")).await?;
    let hold = fleet.home.join("hold");
    std::fs::write(&hold, "")?;
    let script = format!(
        "#!/bin/sh\nread -r request\nprintf '%s\\n' \"$request\" >> {}\nwhile [ -e {} ]; do sleep 0.05; done\nexit 1\n",
        fleet.log().display(),
        hold.display()
    );
    std::fs::write(fleet.home.join("driver.sh"), script)?;
    let ports = free_ports(2)?;
    let near = &fleet.near().name;
    let resource = |port: u16, more: &Value| {
        let mut one = json!({
            "fronts": { "http": { "listen": format!("127.0.0.1:{port}") } }, "primary": near, "policy": "playground",
            "placements": { near: { "http": ["127.0.0.1:1", "127.0.0.1:3"] }, "far": { "http": ["127.0.0.1:2", "127.0.0.1:4"] } },
        });
        if let (Some(placement), Some(more)) = (one["placements"][near].as_object_mut(), more.as_object()) {
            placement.extend(more.clone());
        }
        one
    };
    let text = fleet.text(false).replace("deadline: 60s", "deadline: 10m");
    let other = resource(ports[0], &json!({})).to_string().replace("\":", "\": ");
    std::fs::write(&fleet.config, format!("{text}  other: {other}\n"))?;
    let client = fleet.client();
    let mut node = fleet.start()?;
    until(&mut node, &client, "other", "the node runs", |_| true).await?;
    let mut cart = resource(ports[1], &json!({ "driver": "fleet", "capacity": 1 }));
    cart["name"] = "cart".into();
    client.send("/api/v1/resources", &cart).await?;
    godwit_tests::waiting::until("its driver is asked", async || Ok(!fleet.asked("provision").is_empty()))
        .await?;
    client.call_with(Method::DELETE, "/api/v1/resources/cart", None, &[]).await?;
    let path = "/api/v1/resources/other/scaling";
    let (_, tag) = client.fetch_tagged::<Value>(path).await?;
    let _: SectionView = client.replace(path, &json!({ "capacity": { near: 1, "far": 1 } }), &tag).await?;
    node.check()
}

/// A client of the database itself, through the front at this port.
async fn session(port: u16) -> Result<tokio_postgres::Client> {
    let to = format!("host=127.0.0.1 port={port} user={SERVICE_ROLE} dbname={DATABASE}");
    let (client, connection) = tokio_postgres::connect(&to, tokio_postgres::NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

async fn count(client: &tokio_postgres::Client) -> Result<i64> {
    Ok(client.query_one("SELECT count(*) FROM orders", &[]).await?.get(0))
}

/// Each wrong request is answered with the place of what is wrong.
async fn refusals(client: &Client, spec: &Value) -> Result<()> {
    let path = "/api/v1/resources";
    let taken = std::net::TcpListener::bind("127.0.0.1:0")?;
    let edits: [(&str, Value, u16, &str); 7] = [
        ("/primary", "nowhere".into(), 422, "/primary"),
        ("/policy", "brave".into(), 422, "/policy"),
        ("/driver", "fleeet".into(), 422, "/driver"),
        ("/fronts/http/listen", ":80".into(), 422, "/fronts/http/listen"),
        ("/fronts/postgres/listen", taken.local_addr()?.to_string().into(), 422, "/fronts/postgres/listen"),
        ("/name", "other".into(), 409, ""),
        ("/name", 7.into(), 422, "/name"),
    ];
    for (pointer, value, status, place) in edits {
        let mut wrong = spec.clone();
        *wrong.pointer_mut(pointer).context("the key")? = value;
        let error = client.send(path, &wrong).await.expect_err("refused");
        let found = problem(&error)?;
        let places: Vec<&str> = found.errors.iter().map(|one| one.pointer.as_str()).collect();
        ensure!(
            found.status == status && (place.is_empty() || places.contains(&place)),
            "{pointer}: {found:#?}"
        );
    }
    let key = [("idempotency-key", "has a space")];
    let error = client.call_with(Method::POST, path, Some(spec), &key).await.expect_err("refused");
    ensure!(problem(&error)?.status == 422, "{error:#}");
    Ok(())
}

/// What a listener answers to a request.
async fn ask(listener: std::net::SocketAddr) -> Result<String> {
    let mut connection = tokio::net::TcpStream::connect(listener).await?;
    connection.write_all(b"GET /healthz HTTP/1.1\r\nHost: cart\r\nConnection: close\r\n\r\n").await?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await?;
    Ok(answer)
}

/// Sections are changed by who saw them last, at once and for good.
async fn changed(fleet: &Fleet, node: &mut Node, client: &Client) -> Result<()> {
    let path = "/api/v1/resources/cart/shadow";
    let (section, tag) = client.fetch_tagged::<SectionView>(path).await?;
    ensure!(section.value["enabled"] == true && section.origin == "policy chosen", "{section:#?}");
    let body = json!({ "enabled": false, "capacity": "50%" });
    let error = client.call_with(Method::PUT, path, Some(&body), &[]).await.expect_err("refused");
    ensure!(problem(&error)?.status == 428, "{error:#}");
    let error = client.replace::<Value>(path, &body, "\"0\"").await.expect_err("refused");
    ensure!(problem(&error)?.status == 412, "{error:#}");
    let wrong = json!({ "enabled": "yes", "capcity": "50%" });
    let error = client.replace::<Value>(path, &wrong, &tag).await.expect_err("refused");
    let found = problem(&error)?;
    let mut places: Vec<&str> = found.errors.iter().map(|one| one.pointer.as_str()).collect();
    places.sort_unstable();
    ensure!(found.status == 422 && places == ["/capcity", "/enabled"], "{found:#?}");

    // More workers while it is led.
    let (_, scaling) = client.fetch_tagged::<Value>("/api/v1/resources/cart/scaling").await?;
    let near = fleet.near().name.clone();
    let error = client
        .replace::<Value>("/api/v1/resources/cart/scaling", &json!({ "capacity": { &near: 9 } }), &scaling)
        .await
        .expect_err("refused");
    ensure!(problem(&error)?.errors[0].pointer == format!("/capacity/{near}"), "{error:#}");

    // What the driver could not do is a problem until it can.
    let broken = fleet.home.join("broken");
    std::fs::write(&broken, "")?;
    let fails =
        |view: &ResourceView| view.problems.iter().any(|problem| problem.starts_with("adjust_shadow failed"));
    let fewer = json!({ "capacity": { "far": 1 } });
    client.replace::<Value>("/api/v1/resources/cart/scaling", &fewer, &scaling).await?;
    until(node, client, "cart", "the driver fails", fails).await?;
    std::fs::remove_file(&broken)?;
    let (_, scaling) = client.fetch_tagged::<Value>("/api/v1/resources/cart/scaling").await?;
    let more = json!({ "capacity": { "far": 2 } });
    client.replace::<Value>("/api/v1/resources/cart/scaling", &more, &scaling).await?;
    until(node, client, "cart", "that is no problem any more", |view| !fails(view)).await?;

    let (_, replication) = client.fetch_tagged::<Value>("/api/v1/resources/cart/replication").await?;
    let mode = json!({ "mode": "sync", "fallback": { "after": "7s" } });
    let now: SectionView = client.replace("/api/v1/resources/cart/replication", &mode, &replication).await?;
    ensure!(now.value["mode"] == "sync" && now.value["fallback"]["after"] == "7s", "{now:#?}");
    until(node, client, "cart", "commits wait for the shadow", |view| {
        view.replication.mode.effective == "sync"
    })
    .await?;

    let now: SectionView = client.replace(path, &body, &tag).await?;
    ensure!(now.value["enabled"] == false && now.origin != "policy chosen", "{now:#?}");
    until(node, client, "cart", "no shadow is kept", |view| view.phase == "idle").await?;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let change = loop {
        let records: Vec<Value> = client.fetch("/api/v1/audit?limit=200").await?;
        let found = records.iter().find(|one| one["kind"] == "changed" && one["section"] == "shadow");
        if let Some(found) = found {
            break found.clone();
        }
        ensure!(tokio::time::Instant::now() < deadline, "no record: {records:#?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    ensure!(change["before"]["enabled"] == true && change["after"]["enabled"] == false, "{change:#?}");
    let audit = folder_of(&fleet.config).join("state/audit");
    ensure!(verify(&audit, &[], None)?.broken.is_none(), "the audit is not whole");
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
