//! The way to another zone: by pings and traces through routers of its own (network namespaces, where this process may make them),
//! and by the link of a running pair of nodes.

use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use godwit::controller::view::{FactView, GuardView, PathView, ResourceView};
use godwit::demo::zone::Playground;
use godwit::feeds::external::view::FeedView;

use crate::leader::{Leader, PATIENCE, PROGRAM, agent, options};

/// This machine, a router, a host behind it, and another router for the other way.
struct Net {
    prefix: String,
}

const SPACES: [&str; 4] = ["a", "r", "q", "b"];

impl Net {
    /// `None` where namespaces cannot be made: not root, or no iproute2.
    fn start() -> Result<Option<Self>> {
        let net = Self { prefix: format!("godwit-{}-", std::process::id()) };
        let made = Command::new("ip").args(["netns", "add", &net.space("a")]).output();
        if !made.is_ok_and(|output| output.status.success()) {
            return Ok(None);
        }
        for space in &SPACES[1..] {
            ip(&["netns", "add", &net.space(space)])?;
        }
        for space in SPACES {
            net.inside(space, &["ip", "link", "set", "dev", "lo", "up"])?;
        }
        for router in ["r", "q"] {
            net.inside(router, &["sysctl", "-q", "-w", "net.ipv4.ip_forward=1"])?;
        }
        let (a, r, q, b) = ("a", "r", "q", "b");
        for (left, right, at) in [(a, r, "10.77.1"), (r, b, "10.77.2"), (a, q, "10.77.3"), (q, b, "10.77.4")]
        {
            net.join(left, right, at)?;
        }
        net.by("10.77.1.2", "10.77.2.1")?;
        // The host has one address of its own, whichever router leads to it.
        net.inside("b", &["ip", "address", "add", "10.77.9.9/32", "dev", "lo"])?;
        net.inside("r", &["ip", "route", "add", "10.77.9.9", "via", "10.77.2.2"])?;
        net.inside("q", &["ip", "route", "add", "10.77.9.9", "via", "10.77.4.2"])?;
        Ok(Some(net))
    }

    fn space(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    fn inside(&self, space: &str, command: &[&str]) -> Result<Output> {
        let space = self.space(space);
        run("ip", &[&["netns", "exec", &space], command].concat())
    }

    /// `left` has `.1`, `right` has `.2`.
    fn join(&self, left: &str, right: &str, network: &str) -> Result<()> {
        let (near, far) = (format!("to-{right}"), format!("to-{left}"));
        let (in_left, in_right) = (self.space(left), self.space(right));
        ip(&[
            "link", "add", &near, "netns", &in_left, "type", "veth", "peer", "name", &far, "netns", &in_right,
        ])?;
        for (space, device, host) in [(left, &near, 1), (right, &far, 2)] {
            self.inside(space, &["ip", "address", "add", &format!("{network}.{host}/24"), "dev", device])?;
            self.inside(space, &["ip", "link", "set", "dev", device, "up"])?;
        }
        Ok(())
    }

    /// Leads the way there over `to`, and the way back over `back`.
    fn by(&self, to: &str, back: &str) -> Result<()> {
        self.inside("a", &["ip", "route", "replace", "10.77.9.9", "via", to])?;
        self.inside("b", &["ip", "route", "replace", "default", "via", back])?;
        Ok(())
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for space in SPACES {
            let _ = ip(&["netns", "del", &self.space(space)]);
        }
    }
}

fn ip(arguments: &[&str]) -> Result<Output> {
    run("ip", arguments)
}

fn run(program: &str, arguments: &[&str]) -> Result<Output> {
    let output = Command::new(program).args(arguments).output().with_context(|| program.to_owned())?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {}: {said}", arguments.join(" "));
    Ok(output)
}

#[test]
fn a_trace_sees_the_routers_and_a_ping_the_host_behind_them() -> Result<()> {
    let Some(net) = Net::start()? else {
        eprintln!("left out: network namespaces cannot be made here (root and iproute2 are needed)");
        return Ok(());
    };
    let folder = tempfile::tempdir()?;
    let config = folder.path().join("godwit.yaml");
    let text = r#"
node: {name: edge-1, zone: west, egress: {allow: [10.77.0.0/16]}}
zones: {west: {}, east: {}}
resources:
  orders:
    fronts: {http: {listen: "127.0.0.1:0"}}
    placements: {west: {http: ["127.0.0.1:1"]}, east: {http: ["127.0.0.1:2"]}}
    primary: west
feeds:
  routes: {trace: {east: 10.77.9.9}}
  echoes: {ping: {east: 10.77.9.9}}
"#;
    std::fs::write(&config, text)?;
    let config = config.display().to_string();
    let tried = |feed: &str| -> Result<serde_json::Value> {
        let command = [PROGRAM, "feeds", "test", feed, "-c", &config, "-o", "json"];
        Ok(serde_json::from_slice(&net.inside("a", &command)?.stdout)?)
    };
    let number = |trial: &serde_json::Value, name: &str| {
        let readings = trial["readings"].as_array().cloned().unwrap_or_default();
        readings.iter().find_map(|reading| {
            (reading["value"]["name"] == name).then(|| reading["value"]["value"].as_f64()).flatten()
        })
    };
    let trial = tried("routes")?;
    ensure!(number(&trial, "hops") == Some(2.0), "{trial:#}");
    let trial = tried("echoes")?;
    ensure!(number(&trial, "loss") == Some(0.0) && number(&trial, "rtt").is_some(), "{trial:#}");
    // The other router leads nowhere.
    net.by("10.77.3.2", "10.77.4.1")?;
    net.inside("q", &["ip", "route", "replace", "blackhole", "10.77.9.9"])?;
    let trial = tried("echoes")?;
    ensure!(number(&trial, "loss") == Some(1.0), "nothing comes back: {trial:#}");
    ensure!(number(&trial, "rtt").is_none(), "what is not known is not said: {trial:#}");
    Ok(())
}

/// What the feed says of the far zone, and what a guard makes of it.
fn way<'v>(view: &'v ResourceView, zone: &str) -> Option<(&'v PathView, &'v GuardView)> {
    let path = view.placements.iter().find(|placement| placement.zone == zone)?.path.as_ref()?;
    let guard = view.decision.as_ref()?.guards.iter().find(|guard| guard.name == "shadow_rtt_ms")?;
    Some((path, guard))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_link_is_a_fact_with_its_age_until_it_is_cut() -> Result<()> {
    let mut options = options(true)?;
    ensure!(options.policy.contains("limits: {"), "the playground's policy has changed");
    let guard = "limits: {guards: [{fact: shadow_rtt_ms, below: 5s, operators: true}], ";
    options.policy = options.policy.replacen("limits: {", guard, 1);
    options.wan = Duration::from_millis(10);
    let playground = Playground::start(&options).await?;
    let far = &playground.zones[1];
    let text = std::fs::read_to_string(&playground.config)?;
    let feed = format!("\nfeeds: {{links: {{link: [{}], every: 1s, stale_after: 4s}}}}\n", far.name);
    std::fs::write(&playground.config, text + &feed)?;
    let _agent = agent(&playground)?;
    let mut leader = Leader::start(&playground, &[])?;
    leader.ready().await?;

    let known = |view: &ResourceView, least_ms: f64| {
        way(view, &far.name).is_some_and(|(path, guard)| {
            let fresh = |fact: &FactView| {
                fact.source == "feed links"
                    && fact.value.is_some()
                    && fact.age_ms.is_some_and(|age| age <= 4000)
            };
            fresh(&path.rtt_ms)
                && fresh(&path.loss)
                && path.rtt_ms.value.is_some_and(|rtt| (least_ms..10_000.0).contains(&rtt))
                && guard.passed
        })
    };
    // There and back over the relay of the link.
    let view = leader.until("the link is measured", |view| known(view, 20.0)).await?;
    let (path, _) = way(&view, &far.name).context("just seen")?;
    ensure!(path.loss.value.is_some_and(|loss| (0.0..0.5).contains(&loss)), "{path:#?}");
    ensure!(path.route_age_ms.source.starts_with("unknown: "), "no trace is configured: {path:#?}");
    far.path.set_delay(Duration::from_millis(60));
    leader.until("it has become longer", |view| known(view, 100.0)).await?;
    let shown = Command::new(PROGRAM).args(["--admin", &playground.admin.to_string(), "status"]).output()?;
    let shown = String::from_utf8(shown.stdout)?;
    ensure!(shown.contains(&format!("way to {}: round trip ", far.name)), "{shown}");

    far.path.cut();
    // QUIC holds on to the link for six seconds and tells what it last knew: that is no measurement.
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let links: FeedView = leader.client.fetch("/api/v1/feeds/links").await?;
        let why = links.last_error.map(|error| error.what).unwrap_or_default();
        if why.contains("nothing came over the open link for 3 s") {
            break;
        }
        ensure!(tokio::time::Instant::now() < deadline, "a silent link is believed: {why:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let unknown = |view: &ResourceView| {
        way(view, &far.name).is_some_and(|(path, guard)| {
            [&path.rtt_ms, &path.loss].iter().all(|f| f.value.is_none()) && !guard.passed
        })
    };
    let view = leader.until("a link that is cut is unknown", unknown).await?;
    let (path, guard) = way(&view, &far.name).context("just seen")?;
    ensure!(path.rtt_ms.source.starts_with("unknown: the newest of feed links is "), "{path:#?}");
    ensure!(path.rtt_ms.age_ms.is_none() && path.loss.age_ms.is_none(), "{path:#?}");
    ensure!(guard.value.starts_with("unknown: the newest of feed links is "), "{guard:#?}");
    let links: FeedView = leader.client.fetch("/api/v1/feeds/links").await?;
    ensure!(links.state == "stale" && links.last_error.is_some(), "{links:#?}");
    let refused = leader.ask_to_migrate(&far.name).await;
    ensure!(refused.is_err(), "a move to where nobody knows the way");

    far.path.restore();
    leader.until("it is known again", |view| known(view, 100.0)).await?;
    Ok(())
}
