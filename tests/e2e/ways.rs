//! The way to another zone, measured through routers of its own: network namespaces, where this process may make them.

use std::process::{Command, Output};

use crate::leader::PROGRAM;
use anyhow::{Context, Result, ensure};

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
