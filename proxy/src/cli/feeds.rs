//! `godwit feeds list` asks a node; `godwit feeds test` runs a feed of a configuration once, without a node.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use migration::units::Timestamp;

use super::client::Client;
use super::render::table;
use super::verbs::show;
use super::{Output, check};
use crate::clock;
use crate::feeds::external::Source;
use crate::feeds::external::fetch::Reach;
use crate::feeds::external::fetch::path::How;
use crate::feeds::external::finding::{Event, Finding, Value};
use crate::feeds::external::moment::{shown, span};
use crate::feeds::external::trial::{self, Trial};
use crate::feeds::external::view::FeedView;
use crate::links::Links;

/// Readings shown in a table.
const SHOWN: usize = 40;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Feeds {
    /// Show every feed of a running node: what it says, how old that is, why it is unknown.
    List,
    /// Run one feed of a configuration once, stage by stage; nothing is kept. Asks no node.
    Test {
        /// The feed.
        name: String,
        /// Read this file instead of asking the feed's source.
        #[arg(long, value_name = "FILE")]
        fixture: Option<PathBuf>,
        /// The configuration.
        #[arg(short, long, value_name = "FILE", default_value = "/etc/godwit/godwit.yaml")]
        config: PathBuf,
    },
}

pub(super) fn run(client: &Client, command: &Feeds, output: Output) -> Result<ExitCode> {
    match command {
        Feeds::List => list(client, output),
        Feeds::Test { name, fixture, config } => test(name, fixture.as_deref(), config, output),
    }
}

fn list(client: &Client, output: Output) -> Result<ExitCode> {
    let feeds: Vec<FeedView> = client.get("/api/v1/feeds")?;
    show(output, &feeds, |feeds| {
        if feeds.is_empty() {
            return "no feed is configured (feeds: in godwit.yaml)\n".into();
        }
        listed(feeds, clock::now())
    })?;
    Ok(ExitCode::SUCCESS)
}

fn test(name: &str, fixture: Option<&Path>, config: &Path, output: Output) -> Result<ExitCode> {
    // Check says what is wrong with it.
    let Ok(read) = crate::config::load(config) else { return Ok(check::run(config, output)) };
    let Some(feed) = read.feeds.get(name) else {
        let known: Vec<&str> = read.feeds.keys().map(String::as_str).collect();
        let known = if known.is_empty() { "none".into() } else { known.join(", ") };
        bail!("{} has no feed {name:?}; it has: {known}", config.display());
    };
    let now = clock::now();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let measures_links = matches!(&feed.source, Source::Path(way) if matches!(way.how, How::Link(_)));
    let links = {
        let _inside = runtime.enter();
        measures_links.then(|| Links::new(&read)).transpose()?.map(Arc::new)
    };
    let reach = Reach { egress: read.node.egress.clone(), links };
    let trial = runtime.block_on(trial::run(&Arc::new(feed.clone()), &reach, fixture, now));
    // A program that never ends must not keep the command.
    runtime.shutdown_background();
    show(output, &trial, |trial| tried(trial, now))?;
    if let Some(error) = &trial.error {
        eprintln!("godwit: feed {name}: {}: {}", error.stage, error.what);
        return Ok(ExitCode::from(1));
    }
    Ok(ExitCode::SUCCESS)
}

fn tried(trial: &Trial, now: Timestamp) -> String {
    let rows: Vec<Vec<String>> = trial
        .stages
        .iter()
        .map(|stage| vec![stage.stage.to_owned(), stage.how.clone(), stage.result.clone()])
        .collect();
    let mut text = String::new();
    if !rows.is_empty() {
        text.push_str(&table(&["STAGE", "HOW", "RESULT"], &rows));
    }
    if !trial.readings.is_empty() {
        text.push('\n');
        text.push_str(&readings(&trial.readings, trial.readings.len(), now));
    }
    for note in &trial.notes {
        let _ = writeln!(text, "note: {note}");
    }
    text
}

fn readings(findings: &[Finding], total: usize, now: Timestamp) -> String {
    let rows: Vec<Vec<String>> = findings.iter().take(SHOWN).map(|finding| row(finding, now)).collect();
    let mut text = table(&["ZONE", "WHAT", "VALUE", "WHEN"], &rows);
    if total > rows.len() {
        let _ = writeln!(text, "and {} more", total - rows.len());
    }
    text
}

fn row(finding: &Finding, now: Timestamp) -> Vec<String> {
    let zones = if finding.zones().is_empty() { "-".to_owned() } else { finding.zones().join(", ") };
    match finding {
        Finding::Value(value) => vec![zones, name(value), number(value), when(value, now)],
        Finding::Event(event) => vec![zones, event.kind.clone(), event.title.clone(), window(event)],
    }
}

fn name(value: &Value) -> String {
    value.name.clone().unwrap_or_else(|| "value".into())
}

fn number(value: &Value) -> String {
    format!("{}{}", value.value, value.unit.as_deref().unwrap_or_default())
}

fn when(value: &Value, now: Timestamp) -> String {
    match (value.about, value.at) {
        (Some(about), _) => format!("for {}", shown(about)),
        (None, Some(at)) => format!("{} ago", span(now.since(at))),
        (None, None) => "now".into(),
    }
}

fn window(event: &Event) -> String {
    match event.ends {
        Some(ends) => format!("{} – {}", shown(event.starts), shown(ends)),
        None => format!("{} – ?", shown(event.starts)),
    }
}

fn listed(feeds: &[FeedView], now: Timestamp) -> String {
    let time = |ms: u64| span(Duration::from_millis(ms));
    let rows: Vec<Vec<String>> = feeds
        .iter()
        .map(|feed| {
            let says = match (feed.readings.as_slice(), feed.readings_total) {
                ([], _) => "-".to_owned(),
                ([Finding::Value(value)], 1) => format!("{} {}", name(value), number(value)),
                (_, total) => format!("{total} readings"),
            };
            vec![
                feed.name.clone(),
                feed.serves.clone(),
                feed.zones.join(", "),
                feed.state.clone(),
                feed.age_ms.map_or_else(|| "-".into(), time),
                feed.next_ms.map_or_else(|| "-".into(), |at| time(at.saturating_sub(now.0))),
                says,
                format!("{} {}", feed.source, feed.place),
            ]
        })
        .collect();
    let mut text = table(&["FEED", "USE", "ZONES", "STATE", "AGE", "NEXT", "SAYS", "SOURCE"], &rows);
    for feed in feeds.iter().filter(|feed| !feed.why.is_empty()) {
        let _ = writeln!(text, "{}: {}", feed.name, feed.why);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::feeds::external::trial::StageReport;

    #[test]
    fn a_trial_shows_stages_then_readings() {
        let now = Timestamp(1_795_650_000_000);
        let stage =
            |stage, how: &str, result: &str| StageReport { stage, how: how.into(), result: result.into() };
        let value = Value {
            zones: vec!["eu-west".into()],
            value: 0.5,
            unit: Some("/h".into()),
            at: Some(Timestamp(now.0 - 90_000)),
            ..Value::default()
        };
        let event = Event {
            zones: vec!["eu-west".into(), "eu-central".into()],
            kind: "maintenance".into(),
            title: "Replacing routers".into(),
            starts: now,
            ..Event::default()
        };
        let trial = Trial {
            feed: "prices".into(),
            stages: vec![
                stage("source", "fixture x.json", "120B"),
                stage("decode", "json", "{price: number}"),
            ],
            error: None,
            readings: vec![Finding::Value(value), Finding::Event(event)],
            elsewhere: 0,
            notes: vec!["event left out".into()],
        };
        insta::assert_snapshot!(tried(&trial, now));
    }
}
