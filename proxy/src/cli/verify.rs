//! `godwit verify`: starts a verification on the node, shows how far it is, and what differs.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};
use replicator::verify::Difference;

use super::client::{Client, resource_path};
use super::verbs::show;
use super::{Output, render};
use crate::controller::verification::{Request, Standing, VerificationView};

/// The exit code of a verification that found differences.
const DIFFERENT: u8 = 6;
/// How often the node is asked.
const ASK_EVERY: Duration = Duration::from_millis(200);

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The resource.
    resource: String,
    /// Only this table (`schema.table`, or `table` of schema public); may be given again.
    #[arg(long = "table", value_name = "TABLE")]
    tables: Vec<String>,
    /// Read at most so many rows per second.
    #[arg(long, value_name = "ROWS")]
    rate: Option<u64>,
    /// Share of the time in which statements may run, above 0 and at most 1; default: 0.5.
    #[arg(long)]
    share: Option<f64>,
    /// Show the values that differ, not only keys and columns.
    #[arg(long)]
    values: bool,
    /// Go on where the last one was stopped, with what it asked for.
    #[arg(long, conflicts_with_all = ["tables", "rate", "share", "values"])]
    resume: bool,
    /// Only start it; `--follow` shows it later.
    #[arg(long)]
    detach: bool,
    /// Start none: show the one that runs, or the last one.
    #[arg(long, conflicts_with_all = ["tables", "rate", "share", "values", "resume", "detach"])]
    follow: bool,
    /// Stop the one that runs; `--resume` goes on with it.
    #[arg(long, conflicts_with_all = ["tables", "rate", "share", "values", "resume", "detach", "follow"])]
    stop: bool,
}

pub(super) fn run(client: &Client, arguments: &Arguments, output: Output) -> Result<ExitCode> {
    let path = format!("{}/verification", resource_path(&arguments.resource));
    let asked = if arguments.follow {
        None
    } else if arguments.stop {
        Some(client.delete(&path))
    } else {
        let request = Request {
            tables: arguments.tables.clone(),
            values: arguments.values,
            rows_per_second: arguments.rate,
            share: arguments.share,
            resume: arguments.resume,
        };
        Some(client.post(&path, &serde_json::to_value(&request)?))
    };
    let begun: VerificationView = match asked {
        None => client.get(&path)?,
        Some(answer) => serde_json::from_slice(&answer?)?,
    };
    let ended = if arguments.detach || arguments.stop { begun } else { follow(client, &path, begun)? };
    show(output, &ended, |ended| render::verification(ended, &arguments.resource))?;
    Ok(match ended.state {
        Standing::Done if ended.equal() => ExitCode::SUCCESS,
        Standing::Running => ExitCode::SUCCESS,
        Standing::Stopped if arguments.stop => ExitCode::SUCCESS,
        _ if ended.progress.differences > 0 => ExitCode::from(DIFFERENT),
        _ => ExitCode::from(1),
    })
}

/// Shows the progress until the end; differences as they are found. Nothing of it where standard error is no terminal.
fn follow(client: &Client, path: &str, mut view: VerificationView) -> Result<VerificationView> {
    let bar = ProgressBar::new(view.progress.rows_estimate);
    bar.set_style(ProgressStyle::with_template(
        "{wide_bar} {percent:>3} %  {human_pos} of about {human_len} rows  {per_sec}  {eta} left  {msg}",
    )?);
    let mut shown = 0;
    loop {
        for difference in view.differences.iter().skip(shown) {
            bar.println(line(difference));
        }
        shown = view.differences.len();
        let progress = &view.progress;
        // The estimate is the planner's: the end is where it is.
        bar.set_length(progress.rows_estimate.max(progress.rows));
        bar.set_position(progress.rows);
        bar.set_message(progress.table.clone().unwrap_or_default());
        if view.state != Standing::Running {
            bar.finish_and_clear();
            return Ok(view);
        }
        std::thread::sleep(ASK_EVERY);
        view = client.get(path)?;
    }
}

/// `public.orders (id = 7): differs: total (1 → 2)`.
pub(super) fn line(difference: &Difference) -> String {
    let key: Vec<String> = difference.key.iter().map(|(name, value)| format!("{name} = {value}")).collect();
    let columns: Vec<String> = difference
        .columns
        .iter()
        .map(|column| match &column.values {
            Some((source, target)) => {
                let or_null =
                    |value: &Option<String>| value.as_ref().map_or("NULL".into(), |v| format!("{v:?}"));
                format!("{} ({} → {})", column.name, or_null(source), or_null(target))
            }
            None => column.name.clone(),
        })
        .collect();
    let mut text = difference.table.clone();
    if !key.is_empty() {
        text.push_str(&format!(" ({})", key.join(", ")));
    }
    text.push_str(&format!(": {}", difference.kind.words()));
    if !columns.is_empty() {
        text.push_str(&format!(": {}", columns.join(", ")));
    }
    text
}
