//! Resources that the API reserves and drops, and their shadows on and off.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Subcommand;
use serde_json::{Value, json};

use super::check::Format;
use super::client::{Client, resource_path};
use super::verbs::{done, show};
use crate::leading::changes::Reservation;

#[derive(Debug, Subcommand)]
pub(super) enum Shadow {
    /// Keep a shadow: it is provisioned, copied and followed.
    Enable {
        /// The resource.
        resource: String,
        /// Its capacity, such as 25%; default: as it was.
        #[arg(long, value_name = "SHARE")]
        capacity: Option<String>,
    },
    /// Keep none: its stream ends, its workers and data stay.
    Disable {
        /// The resource.
        resource: String,
    },
    /// Show whether there is one, where, and who says so.
    Show {
        /// The resource.
        resource: String,
    },
}

#[derive(Debug, clap::Args)]
pub(super) struct Reserve {
    /// JSON of the resource: its name, and what resources.NAME would be in godwit.yaml (docs/reservations.md).
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Only say where its shadow would be and what its driver would do.
    #[arg(long)]
    dry_run: bool,
}

pub(super) fn reserve(client: &Client, arguments: &Reserve, output: Format) -> Result<ExitCode> {
    let spec = read(&arguments.file)?;
    let query = if arguments.dry_run { "?dry_run=true" } else { "" };
    let body = client.post(&format!("/api/v1/resources{query}"), &spec)?;
    let made: Reservation = serde_json::from_slice(&body)?;
    show(output, &made, |made| made_text(made, arguments.dry_run))?;
    Ok(ExitCode::SUCCESS)
}

fn made_text(made: &Reservation, dry_run: bool) -> String {
    let Reservation { resource, primary, shadow, capacity, candidates, steps } = made;
    let verb = if dry_run { "would be" } else { "is" };
    let mut text =
        format!("{resource}: served in {primary}; its shadow {verb} in {shadow} with {capacity} workers\n");
    for one in candidates {
        text += &format!("  {:12} {:8} {:.3}  {}\n", one.zone, one.verdict, one.burden, one.why.join("; "));
    }
    for step in steps {
        text += &format!("  would: {step}\n");
    }
    text
}

fn read(file: &Path) -> Result<Value> {
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is not JSON", file.display()))
}

pub(super) fn release(client: &Client, resource: &str, output: Format) -> Result<ExitCode> {
    client.delete(&resource_path(resource))?;
    let text = format!("{resource} is dropped; the database of its primary is as it was");
    done(output, &json!({ "resource": resource }), &text)
}

pub(super) fn shadow(client: &Client, command: &Shadow, output: Format) -> Result<ExitCode> {
    let (resource, enabled, capacity) = match command {
        Shadow::Enable { resource, capacity } => (resource, Some(true), capacity.clone()),
        Shadow::Disable { resource } => (resource, Some(false), None),
        Shadow::Show { resource } => (resource, None, None),
    };
    let path = format!("{}/shadow", resource_path(resource));
    let (mut now, tag) = client.get_tagged::<Value>(&path)?;
    if let Some(enabled) = enabled {
        let Some(section) = now.as_object_mut() else { bail!("{path}: unexpected answer") };
        section.insert("enabled".into(), enabled.into());
        if let Some(capacity) = capacity {
            section.insert("capacity".into(), capacity.into());
        }
        now = client.put(&path, &now, &tag)?;
    }
    let text = |key: &str| now.get(key).and_then(Value::as_str).unwrap_or_default();
    let on = now.get("enabled").and_then(Value::as_bool).unwrap_or(false);
    let what = if on { "is kept" } else { "is not kept" };
    let (zone, capacity, origin) = (text("zone"), text("capacity"), text("origin"));
    done(output, &now, &format!("{resource}: a shadow in {zone} {what}, at {capacity} ({origin})"))
}
