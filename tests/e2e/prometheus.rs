//! What is written for Prometheus and Grafana: rules that promtool accepts and whose tests pass, names that exist, a page that lists
//! every metric, and a real Prometheus that scrapes a node.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use godwit::demo::zone::{Playground, RESOURCE};
use godwit::drivers::process::cluster;
use godwit_tests::postgres::free_port;

use crate::leader::{Leader, options};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// A program of Debian's package `prometheus`: of this system, or as `make setup` unpacked it.
fn program(name: &str) -> Result<PathBuf> {
    let unpacked = cluster::cache().into_iter().map(|cache| cache.join("prometheus/usr/bin"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = unpacked
        .chain(std::env::split_paths(&path))
        .map(|folder| folder.join(name))
        .find(|path| path.is_file());
    found.with_context(|| format!("{name} is not on this machine: run make setup"))
}

fn promtool(arguments: &[&str]) -> Result<()> {
    let output = Command::new(program("promtool")?)
        .args(arguments)
        .current_dir(root().join("config/prometheus"))
        .output()
        .context("promtool runs")?;
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    ensure!(
        output.status.success(),
        "promtool {arguments:?}:\n{}{}",
        said(&output.stdout),
        said(&output.stderr)
    );
    Ok(())
}

#[test]
fn promtool_accepts_the_rules_and_their_tests_pass() -> Result<()> {
    promtool(&["check", "config", "scrape.yml"])?;
    promtool(&["check", "rules", "rules.yml", "alerts.yml"])?;
    promtool(&["test", "rules", "alerts_test.yml"])
}

#[test]
fn every_alert_has_a_test() -> Result<()> {
    let read = |name: &str| std::fs::read_to_string(root().join("config/prometheus").join(name));
    let (alerts, tests) = (read("alerts.yml")?, read("alerts_test.yml")?);
    let names: Vec<&str> = alerts.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    ensure!(names.len() > 8, "{names:?}");
    let untested: Vec<_> = names
        .iter()
        .filter(|name| !tests.contains(&format!("alertname: {name}\n        exp_alerts")))
        .collect();
    ensure!(untested.is_empty(), "no test makes these fire: {untested:?}");
    Ok(())
}

/// One metric of `names.rs`: its name, and what stands above it.
struct Metric {
    name: String,
    about: String,
}

fn metrics() -> Result<Vec<Metric>> {
    let source = std::fs::read_to_string(root().join("proxy/src/telemetry/names.rs"))?;
    let (mut found, mut about) = (Vec::new(), Vec::new());
    for line in source.lines() {
        if let Some(text) = line.strip_prefix("/// ") {
            about.push(text.trim());
            continue;
        }
        let name = line.strip_prefix("pub const ").and_then(|rest| rest.split('"').nth(1));
        // A long name stands on the next line.
        let name = name.or_else(|| line.trim().strip_prefix('"')?.split('"').next());
        if let Some(name) = name.filter(|name| name.starts_with("godwit_")) {
            found.push(Metric { name: name.to_owned(), about: about.join(" ") });
        }
        if !line.starts_with("pub const") || line.ends_with(';') {
            about.clear();
        }
    }
    ensure!(found.len() > 30, "names.rs has more metrics than {}", found.len());
    Ok(found)
}

#[test]
fn rules_and_dashboards_name_metrics_that_exist() -> Result<()> {
    let mut known: BTreeSet<String> = metrics()?.into_iter().map(|metric| metric.name).collect();
    let histograms: Vec<String> = known
        .iter()
        .flat_map(|name| ["_bucket", "_sum", "_count"].map(|end| format!("{name}{end}")))
        .collect();
    known.extend(histograms);
    for file in
        ["prometheus/rules.yml", "prometheus/alerts.yml", "prometheus/alerts_test.yml", "grafana/godwit.json"]
    {
        let text = std::fs::read_to_string(root().join("config").join(file))?;
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let unknown: Vec<&str> =
            words.filter(|word| word.starts_with("godwit_") && !known.contains(*word)).collect();
        ensure!(unknown.is_empty(), "{file} names {unknown:?}");
    }
    Ok(())
}

#[test]
fn the_page_of_metrics_has_every_one() -> Result<()> {
    let mut page = String::from(
        "# Metrics\n\n`GET /metrics` of the admin listener, in Prometheus' text format. Histograms have buckets from 1 ms to 10 s. \
         Rules and alerts:\n[config/prometheus](../config/prometheus), a dashboard for Grafana: \
         [config/grafana](../config/grafana). This page is made from\n\
         [names.rs](../proxy/src/telemetry/names.rs): `UPDATE_DOCS=1 cargo nextest run the_page_of_metrics`.\n\n\
         | metric | what |\n|---|---|\n",
    );
    for Metric { name, about } in metrics()? {
        page.push_str(&format!("| `{name}` | {about} |\n"));
    }
    let path = root().join("docs/metrics.md");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, &page)?;
    }
    let there = std::fs::read_to_string(&path).unwrap_or_default();
    ensure!(
        there == page,
        "docs/metrics.md is not what names.rs says: run UPDATE_DOCS=1 cargo nextest run the_page_of_metrics"
    );
    Ok(())
}

/// A Prometheus of the test's own; ends with it.
struct Prometheus {
    child: Child,
    port: u16,
    _directory: tempfile::TempDir,
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Prometheus {
    /// With the shipped configuration, but quicker and for the node at `target`.
    fn start(target: &str) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        for name in ["scrape.yml", "rules.yml", "alerts.yml"] {
            let text = std::fs::read_to_string(root().join("config/prometheus").join(name))?;
            let text = text.replace("127.0.0.1:9900", target).replace("_interval: 10s", "_interval: 200ms");
            std::fs::write(directory.path().join(name), text)?;
        }
        let port = free_port()?;
        let child = Command::new(program("prometheus")?)
            .arg(format!("--config.file={}", directory.path().join("scrape.yml").display()))
            .arg(format!("--storage.tsdb.path={}", directory.path().join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Self { child, port, _directory: directory })
    }

    /// Waits until a query has an answer.
    async fn until(&self, query: &str) -> Result<serde_json::Value> {
        let client = godwit::cli::client::Client::new(&format!("127.0.0.1:{}", self.port));
        let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
        let mut last = None;
        while tokio::time::Instant::now() < deadline {
            let path = format!("/api/v1/query?query={query}");
            match client.fetch::<serde_json::Value>(&path).await {
                Ok(answer) => {
                    let found = &answer["data"]["result"];
                    if found.as_array().is_some_and(|found| !found.is_empty()) {
                        return Ok(found.clone());
                    }
                    last = Some(answer.to_string());
                }
                Err(error) => last = Some(format!("{error:#}")),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        bail!("{query} has no answer: {last:?}")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_prometheus_scrapes_a_node_and_its_alert_fires() -> Result<()> {
    let playground = Playground::start(&options(false)?).await?;
    let mut leader = Leader::start(&playground, &[])?;
    let prometheus = Prometheus::start(&playground.admin.to_string())?;
    leader.ready().await?;
    prometheus.until("up%7Bjob%3D%22godwit%22%7D%20%3D%3D%201").await?;
    let threshold = prometheus.until("godwit_migration_threshold").await?;
    ensure!(threshold[0]["metric"]["resource"] == RESOURCE, "{threshold}");
    prometheus.until("godwit:score_above_threshold").await?;

    // A migration that is undone raises the alert of the shipped rules. The counter must be seen before and after.
    let view = leader.view().await?;
    for _ in 0..2 {
        let id = leader.migrate(&view.shadow).await?;
        let abort = format!("/api/v1/resources/{RESOURCE}/migrations/{id}/abort");
        leader.client.send(&abort, &serde_json::json!({})).await?;
        leader.ready().await?;
        prometheus.until("godwit_migrations_total%7Boutcome%3D%22aborted%22%7D").await?;
    }
    let fired = prometheus
        .until("ALERTS%7Balertname%3D%22GodwitMigrationAborted%22%2Calertstate%3D%22firing%22%7D")
        .await?;
    ensure!(fired[0]["metric"]["resource"] == RESOURCE, "{fired}");
    Ok(())
}
