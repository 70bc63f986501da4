//! `godwit check`: what is wrong with a configuration, or what was understood of it.

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use serde_json::{Value, json};

use crate::config::model::{Config, LinkTls, NodeLink, Placement, Resource};
use crate::config::overlay::OverlayText;
use crate::config::{self, ConfigErrors};
use crate::leading::changes;

/// How the answer is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Table,
    /// For programs, on standard output whatever the answer.
    Json,
}

/// Exit status of an invalid configuration.
const INVALID: u8 = 3;
/// Environment variable that is set where a node is to start here with the configuration: what is only warned of elsewhere makes it invalid. No option,
/// which an older program would refuse.
pub const STARTS: &str = "GODWIT_CHECK_STARTS";

/// Checks `path` and prints the answer: exit status 0, or 3 when the configuration is invalid.
///
/// In a table, problems go to standard error, where warnings go always.
pub fn run(path: &Path, format: Format) -> ExitCode {
    let loaded = loaded(path);
    let warnings = loaded.as_ref().map(unreadable).unwrap_or_default();
    for warning in &warnings {
        eprintln!("godwit: warning: {warning}");
    }
    if !warnings.is_empty() && std::env::var_os(STARTS).is_some() {
        return ExitCode::from(INVALID);
    }
    print(answer(path, &loaded, format), format)
}

/// Files without which a node would not start, and that cannot be read here. A configuration may be checked elsewhere than where they are.
fn unreadable(config: &Config) -> Vec<String> {
    let Some(NodeLink { tls: LinkTls { cert, key, ca }, .. }) = &config.node.link else { return Vec::new() };
    let files = [("cert", cert), ("key", key), ("ca", ca)].into_iter();
    let unreadable = files.filter_map(|(name, file)| {
        let error = fs::read(file).err()?;
        Some(format!("node.link.tls.{name}: cannot read {}: {error}", file.display()))
    });
    unreadable.collect()
}

/// As a node would start with it: with what the API changed, where that is, and this user may read it.
fn loaded(path: &Path) -> Result<Config, ConfigErrors> {
    let plain = config::load(path)?;
    match OverlayText::read(&plain.node.state) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(plain),
        _ => changes::load(path),
    }
}

/// Prints what is wrong with `path`, or with what the API changed of it.
pub fn invalid(path: &Path, errors: &ConfigErrors, format: Format) -> ExitCode {
    print(answer(path, &Err(errors.clone()), format), format)
}

fn print((text, status): (String, u8), format: Format) -> ExitCode {
    let written = if status != 0 && format == Format::Table {
        io::stderr().lock().write_all(text.as_bytes())
    } else {
        io::stdout().lock().write_all(text.as_bytes())
    };
    // A reader that went away (`godwit check | head`) changes nothing about the answer.
    let _ = written;
    ExitCode::from(status)
}

fn answer(path: &Path, loaded: &Result<Config, ConfigErrors>, format: Format) -> (String, u8) {
    let text = match (loaded, format) {
        (Ok(config), Format::Table) => summary(path, config),
        (Ok(config), Format::Json) => format!("{:#}\n", summary_json(path, config)),
        (Err(errors), Format::Table) => problems(path, errors),
        (Err(errors), Format::Json) => format!("{:#}\n", problems_json(path, errors)),
    };
    (text, if loaded.is_ok() { 0 } else { INVALID })
}

fn problems(path: &Path, errors: &ConfigErrors) -> String {
    let count = errors.problems().len();
    let noun = if count == 1 { "problem" } else { "problems" };
    format!("{errors}\n\n{} is not valid: {count} {noun}\n", path.display())
}

fn problems_json(path: &Path, errors: &ConfigErrors) -> Value {
    let problem = |problem: &config::Problem| {
        json!({
            "file": problem.file,
            "line": problem.line,
            "column": problem.column,
            "key": problem.key,
            "what": problem.what,
            "right": problem.right,
        })
    };
    json!({
        "file": path.display().to_string(),
        "valid": false,
        "problems": errors.problems().iter().map(problem).collect::<Vec<_>>(),
    })
}

fn summary(path: &Path, config: &Config) -> String {
    let node = &config.node;
    let mut rows = vec![vec![
        "node".to_owned(),
        node.name.clone(),
        format!("in {}", node.zone),
        format!("admin {}", node.admin.listen),
        node.link.as_ref().map_or("no link".into(), |link| format!("link {}", link.listen)),
        format!(
            "holds {} requests, {}, {:?}",
            node.hold.requests,
            migration::units::ByteCount(node.hold.bytes as u64),
            node.hold.time
        ),
    ]];
    for (name, zone) in &config.zones {
        let of = [zone.provider.as_deref(), zone.region.as_deref()];
        rows.push(vec![
            "zone".into(),
            name.clone(),
            of.into_iter().flatten().collect::<Vec<_>>().join(" "),
            zone.location.map_or("no location".into(), |at| format!("{}, {}", at.latitude(), at.longitude())),
            zone.link.as_ref().map_or("no link".into(), |link| format!("link {link}")),
        ]);
    }
    for (name, driver) in &config.drivers {
        rows.push(vec!["driver".into(), name.clone(), driver.kind().into()]);
    }
    for resource in config.resources.values() {
        rows.push(vec![
            "resource".into(),
            resource.name.clone(),
            front(resource),
            format!("policy {} ({})", resource.policy.name, mode(resource)),
        ]);
        for placement in resource.placements.values() {
            let primary = placement.zone == resource.primary;
            rows.push(vec![
                if primary { "  primary".into() } else { "  shadow".into() },
                placement.zone.clone(),
                placement.http.join(" "),
                format!("capacity {}", placement.capacity),
                database(placement).unwrap_or_else(|| "no database".into()),
                placement.driver.as_ref().map_or("no driver".into(), |driver| format!("driver {driver}")),
            ]);
        }
    }
    format!("{} is valid\n\n{}", path.display(), table(&rows))
}

fn front(resource: &Resource) -> String {
    let http = resource.http.as_ref().map(|front| {
        let hosts = if front.hosts.is_empty() { "every host".to_owned() } else { front.hosts.join(" ") };
        format!("http {}, {hosts}", front.listen)
    });
    let postgres =
        resource.postgres.as_ref().map(|front| format!("postgres {}, {}", front.listen, front.database));
    let fronts: Vec<String> = http.into_iter().chain(postgres).collect();
    if fronts.is_empty() { "no front".into() } else { fronts.join("; ") }
}

fn mode(resource: &Resource) -> &'static str {
    match resource.policy.mode {
        migration::policy::Mode::Observe => "observe",
        migration::policy::Mode::Advise => "advise",
        migration::policy::Mode::Auto => "auto",
    }
}

/// `orders at 10.0.1.20:5432`; never a password.
fn database(placement: &Placement) -> Option<String> {
    let dsn = &placement.postgres.as_ref()?.dsn;
    let host = match dsn.get_hosts().first()? {
        tokio_postgres::config::Host::Tcp(host) => host.clone(),
        tokio_postgres::config::Host::Unix(path) => path.display().to_string(),
    };
    let port = dsn.get_ports().first().copied().unwrap_or(5432);
    Some(format!("{} at {host}:{port}", dsn.get_dbname().unwrap_or_default()))
}

/// Columns as wide as their longest cell; empty cells at the end leave no trailing blanks.
fn table(rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = Vec::new();
    for row in rows {
        for (i, cell) in row.iter().enumerate() {
            let width = cell.chars().count();
            match widths.get_mut(i) {
                Some(widest) => *widest = width.max(*widest),
                None => widths.push(width),
            }
        }
    }
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

fn summary_json(path: &Path, config: &Config) -> Value {
    let node = &config.node;
    let zone = |(name, zone): (&String, &config::model::Zone)| {
        json!({
            "name": name,
            "provider": zone.provider,
            "region": zone.region,
            "country": zone.country,
            "grid": zone.grid,
            "location": zone.location.map(|at| [at.latitude(), at.longitude()]),
            "cost_per_hour": zone.cost_per_hour,
            "link": zone.link,
                        "node": zone.node,
            "standbys": zone.standbys,
        })
    };
    let placement = |placement: &Placement| {
        json!({
            "zone": placement.zone,
            "http": placement.http,
            "database": database(placement),
            "capacity": placement.capacity,
            "cost_per_hour": placement.cost_per_hour,
            "driver": placement.driver,
        })
    };
    let resource = |resource: &Resource| {
        json!({
            "name": resource.name,
            "http": resource.http.as_ref().map(|front| json!({
                "listen": front.listen.to_string(),
                "hosts": front.hosts,
            })),
            "postgres": resource.postgres.as_ref().map(|front| json!({
                "listen": front.listen.to_string(),
                "database": front.database,
            })),
            "primary": resource.primary,
            "policy": { "name": resource.policy.name, "mode": mode(resource) },
            "placements": resource.placements.values().map(placement).collect::<Vec<_>>(),
        })
    };
    json!({
        "file": path.display().to_string(),
        "valid": true,
        "node": {
            "name": node.name,
            "zone": node.zone,
            "state": node.state.display().to_string(),
            "admin": node.admin.listen.to_string(),
            "link": node.link.as_ref().map(|link| link.listen.to_string()),
            "threads": node.threads,
            "hold": {
                "requests": node.hold.requests,
                "bytes": node.hold.bytes,
                "time_ms": u64::try_from(node.hold.time.as_millis()).unwrap_or(u64::MAX),
            },
        },
        "zones": config.zones.iter().map(zone).collect::<Vec<_>>(),
        "drivers": config.drivers.keys().collect::<Vec<_>>(),
        "resources": config.resources.values().map(resource).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALID: &str = r#"
node: { name: edge-1, zone: here, threads: 2 }
zones: { here: { provider: own, region: lab, location: [50.11, 8.68] }, there: {} }
resources:
  orders:
    fronts: { http: { listen: 127.0.0.1:8080 } }
    placements:
      here:
        http: ["127.0.0.1:8001"]
        postgres: { dsn: "postgres://godwit@127.0.0.1/orders", password: { file: password } }
        capacity: 4
        cost: 0.40/h
      there: { http: ["127.0.0.1:8002"], postgres: { dsn: "postgres://godwit@127.0.0.1:5433/orders" } }
    primary: here
"#;

    /// What `check` prints for `yaml`, with the folder's name taken out.
    fn printed(yaml: &str, format: Format) -> (String, u8) {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("password"), "hunter2\n").expect("written");
        let path = folder.path().join("godwit.yaml");
        fs::write(&path, yaml).expect("written");
        let (text, status) = answer(&path, &loaded(&path), format);
        assert!(!text.contains("hunter2"), "{text}");
        (text.replace(&format!("{}/", folder.path().display()), ""), status)
    }

    #[test]
    fn a_valid_file_is_summed_up() {
        let (text, status) = printed(VALID, Format::Table);
        assert_eq!(status, 0, "{text}");
        insta::assert_snapshot!(text);
        let (text, status) = printed(VALID, Format::Json);
        assert_eq!(status, 0);
        insta::assert_snapshot!(text);
    }

    #[test]
    fn certificates_of_the_link_that_are_not_there_are_named() {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("password"), "hunter2\n").expect("written");
        fs::write(folder.path().join("a.key"), "any text").expect("written");
        let link =
            "threads: 2, link: { listen: 127.0.0.1:9443, tls: { cert: a.pem, key: a.key, ca: ca.pem } }";
        let path = folder.path().join("godwit.yaml");
        fs::write(&path, VALID.replace("threads: 2", link)).expect("written");
        let warned = unreadable(&loaded(&path).expect("valid")).join("\n");
        let named = ["tls.cert: cannot read ", "a.pem: No such file", "tls.ca: cannot read ", "tls.key"];
        assert_eq!(named.map(|text| warned.contains(text)), [true, true, true, false], "{warned}");
    }

    #[test]
    fn problems_are_counted_and_the_status_is_3() {
        let yaml = VALID.replace("0.40/h", "0.40").replace("primary: here", "primary: nowhere");
        let (text, status) = printed(&yaml, Format::Table);
        assert_eq!(status, 3);
        insta::assert_snapshot!(text);
        let (text, status) = printed(&yaml, Format::Json);
        assert_eq!(status, 3);
        insta::assert_snapshot!(text);
    }

    #[test]
    fn a_missing_file_is_a_problem() {
        let path = Path::new("/nonexistent/godwit.yaml");
        let (text, status) = answer(path, &loaded(path), Format::Table);
        assert_eq!(status, 3);
        insta::assert_snapshot!(text);
    }

    #[test]
    fn what_the_api_changed_must_fit() {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("password"), "hunter2\n").expect("written");
        let path = folder.path().join("godwit.yaml");
        let state = folder.path().join("kept");
        fs::create_dir(&state).expect("made");
        fs::write(&path, VALID.replace("threads: 2", "threads: 2, state: kept")).expect("written");
        let capacity = r#"{"by": "ann", "at_ms": 1, "value": {"capacity": {"gone": 2}}}"#;
        let text = format!(r#"{{"version": 1, "changed": {{"orders": {{"scaling": {capacity}}}}}}}"#);
        fs::write(state.join("overlay.json"), text).expect("written");
        let (text, status) = answer(&path, &loaded(&path), Format::Table);
        assert!(status == 3 && text.contains("overlay.json") && text.contains("gone"), "{text}");
    }
}
