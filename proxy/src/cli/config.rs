//! What a running node was configured with, where from, and how that differs from the files by now.

use std::process::ExitCode;

use anyhow::{Result, anyhow};
use clap::Subcommand;

use super::check::Format;
use super::client::Client;
use super::verbs::{self, REFUSED};
use crate::config::entries::{Difference, Entry};
use crate::leading::changes::Reloaded;
use crate::leading::comparison::ConfigView;

/// The exit code of an invalid configuration.
const INVALID: u8 = 3;

#[derive(Debug, Subcommand)]
pub(super) enum Config {
    /// Show every key that is written somewhere; secrets are only named.
    Show {
        /// Also the file, line and column of each; of what the API changed also who and when.
        #[arg(long)]
        origin: bool,
        /// Only keys that begin with this, such as resources.orders.
        prefix: Option<String>,
    },
    /// Show what differs between the files and the node that runs, and what a reload would apply.
    Diff,
    /// Read the files anew; a wrong file changes nothing.
    Reload,
}

pub(super) fn run(client: &Client, command: &Config, output: Format) -> Result<ExitCode> {
    match command {
        Config::Show { origin, prefix } => show(client, *origin, prefix.as_deref(), output),
        Config::Diff => diff(client, output),
        Config::Reload => reload(client, output),
    }
}

fn show(client: &Client, origin: bool, prefix: Option<&str>, output: Format) -> Result<ExitCode> {
    let mut view: ConfigView = client.get("/api/v1/config")?;
    view.entries.retain(|entry| prefix.is_none_or(|prefix| entry.key.starts_with(prefix)));
    verbs::show(output, &view.entries, |entries| {
        let width = entries.iter().map(|entry| entry.key.len()).max().unwrap_or(0);
        let line = |entry: &Entry| {
            let place = if origin { format!("  # {}", entry.origin) } else { String::new() };
            format!("{:width$}  {}{place}\n", entry.key, entry.value)
        };
        entries.iter().map(line).collect()
    })?;
    Ok(ExitCode::SUCCESS)
}

fn diff(client: &Client, output: Format) -> Result<ExitCode> {
    let view: ConfigView = client.get("/api/v1/config")?;
    if let Some(why) = view.unreadable.as_ref().or(view.invalid.as_ref()) {
        super::tell(&anyhow!("{why}"), output);
        return Ok(ExitCode::from(INVALID));
    }
    verbs::show(output, &view.differences, |differences| compared(differences))?;
    Ok(ExitCode::SUCCESS)
}

fn compared(differences: &[Difference]) -> String {
    let mut said = String::new();
    if differences.is_empty() {
        said += "the node runs with what the files say\n";
    }
    for one in differences {
        let text = |value: &Option<serde_json::Value>| {
            value.as_ref().map_or("(not there)".into(), ToString::to_string)
        };
        let how = effect(&one.key, one.live);
        if one.secret {
            // What else is not shown need be no secret: the query of a URL, say.
            let what = if one.key.rsplit('.').next() == Some("file") {
                "has another secret"
            } else {
                "is another one, in what is not shown"
            };
            said += &format!("{}  {} {what}  # {how}; {}\n", one.key, text(&one.written), one.origin);
            continue;
        }
        said += &format!(
            "{}  {} -> {}  # {how}; {}\n",
            one.key,
            text(&one.running),
            text(&one.written),
            one.origin
        );
    }
    said
}

/// What becomes of a key that is written otherwise by now.
fn effect(key: &str, live: bool) -> &'static str {
    // Names may have dots, those of zones in `placements` stand in the middle.
    match key.strip_prefix("resources.") {
        _ if live => "a reload applies it",
        Some(of) if of.ends_with(".primary") => {
            "only where nothing is known of the resource yet: godwit migrate moves it"
        }
        _ => "needs a restart",
    }
}

fn reload(client: &Client, output: Format) -> Result<ExitCode> {
    let body = match client.post("/api/v1/config/reload", &serde_json::json!({})) {
        Err(error)
            if super::problem(&error).is_some_and(|problem| problem.kind.ends_with("#configuration")) =>
        {
            super::tell(&error, output);
            return Ok(ExitCode::from(INVALID));
        }
        other => other?,
    };
    let done: Reloaded = serde_json::from_slice(&body)?;
    verbs::show(output, &done, reloaded)?;
    Ok(if done.refused.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(REFUSED) })
}

fn reloaded(done: &Reloaded) -> String {
    let mut text = String::new();
    for key in &done.applied {
        text += &format!("applied: {key}\n");
    }
    for key in &done.needs_restart {
        text += &format!("{}: {key}\n", effect(key, false));
    }
    for key in &done.refused {
        text += &format!("not now: {key}\n");
    }
    if text.is_empty() {
        text += "nothing has changed\n";
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_another_secret_is_called_one() {
        let of = |key: &str, value: &str| Difference {
            key: key.to_owned(),
            parts: Vec::new(),
            running: Some(value.into()),
            written: Some(value.into()),
            origin: "godwit.yaml:1:1".to_owned(),
            live: false,
            secret: true,
        };
        let text = compared(&[of("feeds.a.bearer.file", "key"), of("feeds.a.url", "https://x.example/?…")]);
        let lines: Vec<&str> = text.lines().collect();
        let rest = "# needs a restart; godwit.yaml:1:1";
        assert_eq!(lines[0], format!("feeds.a.bearer.file  \"key\" has another secret  {rest}"));
        assert_eq!(
            lines[1],
            format!("feeds.a.url  \"https://x.example/?…\" is another one, in what is not shown  {rest}")
        );
        assert_eq!(lines.len(), 2);
    }
}
