//! What a running node was configured with, where from, and how that differs from the files by now.

use std::process::ExitCode;

use anyhow::Result;
use clap::Subcommand;

use super::check::Format;
use super::client::Client;
use crate::leading::changes::Reloaded;
use crate::leading::comparison::ConfigView;

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
    if output == Format::Json {
        println!("{}", serde_json::to_string_pretty(&view.entries)?);
        return Ok(ExitCode::SUCCESS);
    }
    let width = view.entries.iter().map(|entry| entry.key.len()).max().unwrap_or(0);
    for entry in &view.entries {
        let place = if origin { format!("  # {}", entry.origin) } else { String::new() };
        println!("{:width$}  {}{place}", entry.key, entry.value);
    }
    Ok(ExitCode::SUCCESS)
}

fn diff(client: &Client, output: Format) -> Result<ExitCode> {
    let view: ConfigView = client.get("/api/v1/config")?;
    if output == Format::Json {
        println!("{}", serde_json::to_string_pretty(&view.differences)?);
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(why) = &view.unreadable {
        eprintln!("godwit: {why}");
        return Ok(ExitCode::from(3));
    }
    if view.differences.is_empty() {
        println!("the node runs with what the files say");
    }
    for one in &view.differences {
        let text = |value: &Option<serde_json::Value>| {
            value.as_ref().map_or("(not there)".into(), ToString::to_string)
        };
        let how = if one.live { "a reload applies it" } else { "needs a restart" };
        println!("{}  {} -> {}  # {how}; {}", one.key, text(&one.running), text(&one.written), one.origin);
    }
    Ok(ExitCode::SUCCESS)
}

fn reload(client: &Client, output: Format) -> Result<ExitCode> {
    let body = client.post("/api/v1/config/reload", &serde_json::json!({}))?;
    let done: Reloaded = serde_json::from_slice(&body)?;
    if output == Format::Json {
        println!("{}", serde_json::to_string_pretty(&done)?);
        return Ok(ExitCode::SUCCESS);
    }
    for (what, keys) in
        [("applied", &done.applied), ("needs a restart", &done.needs_restart), ("not now", &done.refused)]
    {
        for key in keys {
            println!("{what}: {key}");
        }
    }
    if done == (Reloaded { applied: vec![], needs_restart: vec![], refused: vec![] }) {
        println!("nothing has changed");
    }
    Ok(if done.refused.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(4) })
}
