//! `godwit audit`: reading it, and checking that it is whole.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Subcommand;
use serde_json::Value;

use super::Output;
use super::client::{Client, percent};
use super::render;
use super::verbs::show;
use crate::audit::verify::{Findings, read_checkpoints, verify};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List the newest records of a running node.
    List {
        /// Only about this resource.
        resource: Option<String>,
        /// Only calls of this caller, by name or id.
        #[arg(long, value_name = "WHO")]
        who: Option<String>,
        /// At most so many.
        #[arg(long, default_value_t = 20)]
        limit: u32,
        /// Only records before this number.
        #[arg(long, value_name = "NUMBER")]
        before: Option<u64>,
    },
    /// Check that no record was changed, removed or put in, and that every checkpoint is still reached. Asks no node.
    Verify {
        /// The folder of the records.
        #[arg(default_value = "/var/lib/godwit/audit", value_name = "DIRECTORY")]
        directory: PathBuf,
        /// Checkpoints that were kept elsewhere, such as lines of the log; may be repeated.
        #[arg(long = "checkpoints", value_name = "FILE")]
        checkpoints: Vec<PathBuf>,
        /// The public key that must have signed them, hexadecimal.
        #[arg(long, value_name = "KEY")]
        key: Option<String>,
    },
}

pub(super) fn run(client: &Client, command: Command, output: Output) -> Result<ExitCode> {
    match command {
        Command::List { resource, who, limit, before } => {
            let mut path = format!("/api/v1/audit?limit={limit}");
            let mut add = |name: &str, value: Option<String>| {
                if let Some(value) = value {
                    path.push_str(&format!("&{name}={}", percent(&value)));
                }
            };
            add("resource", resource);
            add("who", who);
            add("before", before.map(|number| number.to_string()));
            let records: Vec<Value> = client.get(&path)?;
            show(output, &records, |records| list(records))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Verify { directory, checkpoints, key } => {
            let mut others = Vec::new();
            for path in checkpoints {
                let unreadable = || format!("cannot read {}", path.display());
                let file = std::fs::File::open(&path).with_context(unreadable)?;
                match read_checkpoints(file).with_context(unreadable)? {
                    Ok(found) if found.is_empty() => bail!("{} has no checkpoint", path.display()),
                    Ok(found) => others.extend(found),
                    Err(why) => bail!("{}: {why}", path.display()),
                }
            }
            let key = key.map(|key| key.to_ascii_lowercase());
            let findings = verify(&directory, &others, key.as_deref())
                .with_context(|| format!("cannot read the audit in {}", directory.display()))?;
            if findings.files == 0 && findings.broken.is_none() {
                bail!("{} has no audit", directory.display());
            }
            show(output, &findings, summary)?;
            Ok(if findings.broken.is_none() { ExitCode::SUCCESS } else { ExitCode::from(1) })
        }
    }
}

/// One line per record: when, who, what.
fn list(records: &[Value]) -> String {
    let rows: Vec<Vec<String>> = records
        .iter()
        .map(|record| {
            let text = |key: &str| record[key].as_str().unwrap_or_default().to_owned();
            let who = [&record["who"]["name"], &record["by"], &record["trigger"]]
                .into_iter()
                .find_map(Value::as_str);
            let what = match record["kind"].as_str().unwrap_or_default() {
                "call" | "refused" => {
                    format!("{} {}{} {}", text("method"), text("path"), asked(&record["query"]), text("why"))
                }
                "outcome" => format!(
                    "{} {}",
                    record["status"],
                    record["answer"]["detail"].as_str().unwrap_or_default()
                ),
                "decision" => format!("{}: {}: {}", text("resource"), text("verdict"), text("because")),
                "changed" => format!(
                    "{}: {}: {} → {}",
                    text("resource"),
                    text("section"),
                    record["before"],
                    record["after"]
                ),
                "schema" => {
                    let done: Vec<_> =
                        record["done"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
                    format!("{}: {}", text("resource"), done.join("; "))
                }
                "step" => format!(
                    "{}: {} → {} ({})",
                    text("resource"),
                    text("before"),
                    text("after"),
                    text("event")
                ),
                "effect" => {
                    format!(
                        "{}: {} {} ms {}",
                        text("resource"),
                        text("effect"),
                        record["spent_ms"],
                        text("error")
                    )
                }
                _ => String::new(),
            };
            vec![
                record["seq"].to_string(),
                text("at"),
                text("kind"),
                who.unwrap_or_default().to_owned(),
                what.trim_end().to_owned(),
            ]
        })
        .collect();
    render::table(&["NUMBER", "AT", "KIND", "WHO", "WHAT"], &rows)
}

/// What a call asked for behind its path.
fn asked(query: &Value) -> String {
    let pairs = query.as_object().into_iter().flatten();
    let pairs: Vec<_> = pairs
        .map(|(key, value)| {
            format!("{key}={}", value.as_str().map_or_else(|| value.to_string(), str::to_owned))
        })
        .collect();
    if pairs.is_empty() { String::new() } else { format!("?{}", pairs.join("&")) }
}

fn summary(findings: &Findings) -> String {
    let Findings { records, files, first, last, last_at, checkpoints, keys, broken } = findings;
    let mut text = match (first, last, last_at) {
        (Some(first), Some(last), Some(at)) => {
            format!("{records} records in {files} files are in order: {first} to {last}, the last of {at}\n")
        }
        _ => "no record is in order\n".to_owned(),
    };
    if *checkpoints > 0 {
        text.push_str(&format!("{checkpoints} checkpoints agree, signed by {}\n", keys.join(", ")));
    }
    if let Some(first) = first.filter(|first| *first > 1) {
        text.push_str(&format!("records before {first} were taken away\n"));
    }
    match broken {
        Some(what) => text.push_str(&format!("BROKEN: {what}\n")),
        None => text.push_str("the audit is whole\n"),
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_was_changed_and_by_whom_is_listed() {
        let changed = json!({ "kind": "changed", "resource": "orders", "by": "ann", "section": "shadow",
            "before": { "enabled": true }, "after": { "enabled": false } });
        let schema =
            json!({ "kind": "schema", "resource": "orders", "done": ["CREATE TABLE a ()", "GRANT"] });
        let listed = list(&[changed, schema]);
        for part in [
            "ann",
            r#"orders: shadow: {"enabled":true} → {"enabled":false}"#,
            "orders: CREATE TABLE a (); GRANT",
        ] {
            assert!(listed.contains(part), "{listed}");
        }
    }

    #[test]
    fn a_call_is_listed_with_what_it_asked_for() {
        let call = |query: Value| {
            list(&[
                json!({ "seq": 7, "at": "then", "kind": "call", "who": { "name": "ann" }, "method": "POST",
                "path": "/api/v1/resources", "query": query }),
            ])
        };
        assert!(call(json!({ "dry_run": "true" })).contains("POST /api/v1/resources?dry_run=true\n"));
        assert!(call(Value::Null).contains("POST /api/v1/resources\n"), "{}", call(Value::Null));
    }
}
