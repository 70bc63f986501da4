//! `godwit history`: the migrations there were; `godwit history export`: what was measured, decided and forecast, as CSV or
//! JSON lines. Also the line of `explain` that says how far to trust the forecast.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Subcommand;
use indicatif::{ProgressBar, ProgressStyle};

use super::client::{Client, percent, resource_path};
use super::{Output, render, verbs};
use crate::admin::{HistoryView, RowView, moment};
use crate::clock;
use crate::controller::forecast::ForecastView;
use crate::controller::view::{MigrationView, ResourceView};
use crate::history::series::is_ms;

/// Rows asked for at once.
const PAGE: usize = 10_000;
/// So many symbolic links are followed, as the system does.
const LINKS: usize = 40;
/// Parts of the progress bar for one series.
const PARTS: u64 = 1_000;
/// A longer silence than this begins a series of its own, milliseconds: its empty rows would say nothing.
const SILENCE: u64 = 86_400_000;

#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct Arguments {
    /// Only of this resource.
    resource: Option<String>,
    /// At most so many.
    #[arg(long, default_value_t = 20)]
    limit: u32,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Write out what was measured, decided and forecast.
    Export(Export),
}

#[derive(Debug, clap::Args)]
struct Export {
    /// The resource.
    resource: String,
    /// Comma-separated values on a regular grid, gaps empty; this is the default.
    #[arg(long)]
    csv: bool,
    /// One JSON object a line.
    #[arg(long, conflicts_with = "csv")]
    json: bool,
    /// From: 2026-03-01T12:00:00Z, Unix milliseconds, or how long ago, such as 24h.
    #[arg(long, value_name = "TIME", default_value = "24h")]
    from: String,
    /// Until; default: now.
    #[arg(long, value_name = "TIME", default_value = "0s")]
    to: String,
    /// Only these, such as request_p95_ms,probe_answer_ms; default: all.
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    series: Vec<String>,
    /// Each step (fine), five minutes (medium), an hour (coarse); default: the finest that reaches back so far.
    #[arg(long, value_parser = ["fine", "medium", "coarse"])]
    resolution: Option<String>,
    /// Where to; a file is written whole or not at all. Default: standard output.
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
}

pub(super) fn run(client: &Client, arguments: &Arguments, output: Output) -> Result<ExitCode> {
    if let Some(Verb::Export(export)) = &arguments.verb {
        return self::export(client, export, output);
    }
    let filter =
        arguments.resource.as_ref().map(|name| format!("&resource={}", percent(name))).unwrap_or_default();
    let runs: Vec<MigrationView> =
        client.get(&format!("/api/v1/history?limit={}{filter}", arguments.limit))?;
    if let Some(name) = arguments.resource.as_ref().filter(|_| runs.is_empty()) {
        // One that is not configured any more may well have a history; one that never was is a slip.
        let _: ResourceView = client.get(&resource_path(name))?;
    }
    verbs::show(output, &runs, |runs| render::history(runs))?;
    Ok(ExitCode::SUCCESS)
}

fn export(client: &Client, export: &Export, output: Output) -> Result<ExitCode> {
    let json = export.json || (output == Output::Json && !export.csv);
    let Some(path) = &export.file else {
        let written = pages(client, export, json, &mut std::io::stdout().lock());
        return match written {
            // Whoever reads has enough.
            Err(error) if is_broken_pipe(&error) => Ok(ExitCode::SUCCESS),
            other => other.map(|_| ExitCode::SUCCESS),
        };
    };
    let rows = into(path, |file| pages(client, export, json, file))
        .with_context(|| format!("cannot export to {}", path.display()))?;
    eprintln!("{rows} rows in {}", path.display());
    Ok(ExitCode::SUCCESS)
}

/// Writes what `path` leads to: a file whole or not at all; a pipe or a device stays what it is.
fn into(path: &Path, write: impl FnOnce(&mut dyn Write) -> Result<usize>) -> Result<usize> {
    if std::fs::metadata(path).is_ok_and(|found| !found.is_file()) {
        let file = std::fs::OpenOptions::new().write(true).open(path)?;
        return write(&mut BufWriter::new(file));
    }
    let path = target(path)?;
    let partial = partial(&path);
    let whole = || {
        let mut file = BufWriter::new(std::fs::File::create(&partial)?);
        let rows = write(&mut file)?;
        file.into_inner()?.sync_all()?;
        std::fs::rename(&partial, &path)?;
        Ok(rows)
    };
    whole().inspect_err(|_| {
        // What is left of it is of no use.
        let _ = std::fs::remove_file(&partial);
    })
}

/// What symbolic links lead to, be it there or not.
fn target(path: &Path) -> std::io::Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..LINKS {
        let Ok(next) = std::fs::read_link(&path) else { return Ok(path) };
        path = path.parent().unwrap_or(Path::new("")).join(next);
    }
    Err(std::io::Error::other("too many symbolic links"))
}

fn partial(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".partial");
    name.into()
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == ErrorKind::BrokenPipe)
}

/// Page after page; how many rows there were.
fn pages(client: &Client, export: &Export, json: bool, to: &mut dyn Write) -> Result<usize> {
    let now = clock::now();
    let time = |name: &str, text: &str| match moment(text, now) {
        Ok(at) => Ok(at.0),
        Err(why) => bail!("--{name} {text}: {why}"),
    };
    let (from, until) = (time("from", &export.from)?, time("to", &export.to)?);
    let plain = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    if let Some(name) = export.series.iter().find(|name| !name.chars().all(plain)) {
        bail!("--series {name}: no series is called so");
    }
    let mut asked = format!("limit={PAGE}");
    if !export.series.is_empty() {
        let _ = write!(asked, "&series={}", export.series.join(","));
    }
    let path = format!("{}/history?{asked}", resource_path(&export.resource));
    let resolution = export.resolution.as_ref().map(|name| format!("&resolution={name}")).unwrap_or_default();
    let mut next = format!("{path}&from={from}&to={until}{resolution}");
    let bar = ProgressBar::new(0);
    bar.set_style(ProgressStyle::with_template("{wide_bar} {percent:>3} %  {msg} rows  {eta} left")?);
    let (mut sheet, mut rows) = (None, 0);
    loop {
        let page: HistoryView = client.get(&next)?;
        if json {
            for row in &page.rows {
                writeln!(to, "{}", line(&page, row))?;
            }
        } else {
            sheet.get_or_insert_with(|| Sheet::new(&page, export.series.is_empty())).write(&page, to)?;
        }
        rows += page.rows.len();
        bar.set_length(page.series.len() as u64 * PARTS);
        if let Some(last) = page.rows.last() {
            let share = (last.at_ms - page.from_ms) * PARTS / (page.to_ms - page.from_ms).max(1);
            bar.set_position(last.series as u64 * PARTS + share);
            bar.set_message(rows.to_string());
        }
        let Some(cursor) = page.cursor else { break };
        next = format!("{path}&cursor={cursor}");
    }
    to.flush()?;
    bar.finish_and_clear();
    Ok(rows)
}

fn line(page: &HistoryView, row: &RowView) -> serde_json::Value {
    let of = &page.series[row.series];
    serde_json::json!({
        "series": of.name, "zone": of.zone, "at_ms": row.at_ms, "samples": row.samples,
        "mean": row.mean, "low": row.low, "high": row.high,
    })
}

/// CSV as `make bench-forecast` reads it: `series_id,t,value_ms` (`value` where not all are milliseconds), `t` in seconds, one
/// row a step, empty where nothing was measured.
struct Sheet {
    step_ms: u64,
    head: bool,
    /// Several steps lie behind a row: their number and bounds are written too.
    bounds: bool,
    ms: bool,
    /// The series that is written: its name, its part, and the moment of its last row.
    at: Option<(String, u32, u64)>,
}

impl Sheet {
    fn new(first: &HistoryView, all: bool) -> Self {
        let ms = !all && first.series.iter().all(|series| is_ms(&series.name));
        let bounds = first.resolution != "fine";
        Self { step_ms: first.step_ms.max(1), head: true, bounds, ms, at: None }
    }

    fn write(&mut self, page: &HistoryView, to: &mut dyn Write) -> std::io::Result<()> {
        if std::mem::take(&mut self.head) {
            let more = if self.bounds { ",samples,low,high" } else { "" };
            writeln!(to, "series_id,t,{}{more}", if self.ms { "value_ms" } else { "value" })?;
        }
        for row in &page.rows {
            let of = &page.series[row.series];
            let name = if of.zone.is_empty() { of.name.clone() } else { format!("{}/{}", of.name, of.zone) };
            let (id, part) = self.fill(&name, row.at_ms, to)?;
            let more = if self.bounds {
                format!(",{},{},{}", row.samples, row.low, row.high)
            } else {
                String::new()
            };
            writeln!(to, "{},{},{}{more}", cell(&id), seconds(row.at_ms), row.mean)?;
            self.at = Some((name, part, row.at_ms));
        }
        Ok(())
    }

    /// Writes the steps without a value before the row at `at_ms`; what the row's series is called.
    fn fill(&self, name: &str, at_ms: u64, to: &mut dyn Write) -> std::io::Result<(String, u32)> {
        let called = |part: u32| if part == 0 { name.to_owned() } else { format!("{name}#{}", part + 1) };
        let Some((_, part, last)) = self.at.as_ref().filter(|(of, ..)| of == name) else {
            return Ok((called(0), 0));
        };
        let passed = at_ms.saturating_sub(*last);
        if passed > SILENCE.max(2 * self.step_ms) {
            return Ok((called(part + 1), part + 1));
        }
        let steps = (passed + self.step_ms / 2) / self.step_ms;
        let more = if self.bounds { ",,," } else { "" };
        for step in 1..steps {
            writeln!(to, "{},{},{more}", cell(&called(*part)), seconds(last + step * self.step_ms))?;
        }
        Ok((called(*part), *part))
    }
}

/// A name as one cell of one line, whatever a feed calls its numbers.
fn cell(name: &str) -> Cow<'_, str> {
    if !name.contains(|c: char| c == ',' || c == '"' || c.is_control()) {
        return name.into();
    }
    format!("\"{}\"", name.replace(char::is_control, " ").replace('"', "\"\"")).into()
}

/// `1732579200.25`.
fn seconds(ms: u64) -> String {
    if ms.is_multiple_of(1000) { (ms / 1000).to_string() } else { format!("{}.{:03}", ms / 1000, ms % 1000) }
}

/// How far the forecast could be trusted of late, on one line.
pub(super) fn trust(view: &ForecastView) -> String {
    let mut text = format!("forecast of the request path in {}: ", view.zone);
    if let Some(abstained) = &view.abstained {
        let _ = write!(text, "none now ({}); ", abstained.why);
    }
    let judged: Vec<_> = view.trust.ahead.iter().filter(|of| of.scored > 0).collect();
    if judged.is_empty() {
        text.push_str("not judged yet");
    } else {
        let each = |of: &dyn Fn(&crate::controller::forecast::QualityView) -> String| {
            judged.iter().map(|quality| of(quality)).collect::<Vec<_>>().join(" / ")
        };
        let covered = each(&|of| of.coverage.map_or("-".into(), |share| format!("{:.0}", share * 100.0)));
        let loss = each(&|of| of.against_last_value.map_or("-".into(), |ratio| format!("{ratio:.2}")));
        let ahead = each(&|of| of.ahead.to_string());
        let _ =
            write!(text, "90 % band held {covered} %, loss {loss} of the last value's, {ahead} steps ahead");
    }
    let abstained: Vec<String> =
        view.trust.abstained.iter().map(|of| format!("{} {}", of.steps, of.reason)).collect();
    let of_late = if abstained.is_empty() { "none".to_owned() } else { abstained.join(", ") };
    let _ = writeln!(text, "; without a forecast {of_late} of the last {} steps", view.trust.steps);
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::SeriesView;
    use crate::controller::forecast::{AbstainedView, AbstentionView, QualityView};

    fn page(rows: &[(usize, u64, f64)]) -> HistoryView {
        let series = |name: &str, zone: &str| SeriesView { name: name.into(), zone: zone.into() };
        HistoryView {
            resource: "orders".into(),
            resolution: "fine".into(),
            step_ms: 1000,
            from_ms: 0,
            to_ms: 1_000_000,
            series: vec![
                series("probe_ms", "west"),
                series("feed_wind", ""),
                series("feed_wind.west.gusts, \"10 m\"", ""),
            ],
            rows: rows
                .iter()
                .map(|(series, at_ms, mean)| RowView {
                    series: *series,
                    at_ms: *at_ms,
                    samples: 1,
                    mean: *mean,
                    low: *mean,
                    high: *mean,
                })
                .collect(),
            cursor: None,
        }
    }

    #[test]
    fn a_sheet_is_a_regular_grid_across_pages() {
        let first = page(&[(0, 1_000, 1.5), (0, 2_010, 2.0)]);
        let mut sheet = Sheet::new(&first, true);
        let mut text = Vec::new();
        sheet.write(&first, &mut text).unwrap();
        // Two steps are missing over the edge of the page; then more than a day.
        sheet
            .write(
                &page(&[(0, 5_010, 3.0), (0, 95_000_000, 4.0), (1, 2_000, -1.0), (2, 2_000, 9.0)]),
                &mut text,
            )
            .unwrap();
        let expected = "series_id,t,value\nprobe_ms/west,1,1.5\nprobe_ms/west,2.010,2\nprobe_ms/west,3.010,\n\
            probe_ms/west,4.010,\nprobe_ms/west,5.010,3\nprobe_ms/west#2,95000,4\nfeed_wind,2,-1\n\
            \"feed_wind.west.gusts, \"\"10 m\"\"\",2,9\n";
        let text = String::from_utf8(text).unwrap();
        assert_eq!(text, expected);
        let replayed = crate::backtest::data::read(&text, 1_000).unwrap();
        assert_eq!(replayed.zones, ["west"]);
        let mut hours = page(&[(0, 0, 1.0), (0, 2_000, 2.0)]);
        (hours.resolution, hours.series) = ("coarse".into(), hours.series[..1].to_vec());
        let mut text = Vec::new();
        Sheet::new(&hours, false).write(&hours, &mut text).unwrap();
        let expected = "series_id,t,value_ms,samples,low,high\nprobe_ms/west,0,1,1,1,1\nprobe_ms/west,1,,,,\n\
            probe_ms/west,2,2,1,2,2\n";
        assert_eq!(String::from_utf8(text).unwrap(), expected);
    }

    #[test]
    fn an_export_replaces_files_whole_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let rows = |to: &mut dyn Write| {
            to.write_all(b"rows\n")?;
            to.flush()?;
            Ok(1)
        };
        std::fs::write(at("file"), "old").unwrap();
        std::os::unix::fs::symlink("file", at("link")).unwrap();
        std::os::unix::fs::symlink("link", at("second")).unwrap();
        std::os::unix::fs::symlink("new", at("ahead")).unwrap();
        assert!(into(&at("second"), |_| bail!("no node")).is_err());
        assert_eq!(std::fs::read_to_string(at("file")).unwrap(), "old");
        for (path, leads_to) in [("second", "file"), ("ahead", "new")] {
            assert_eq!(into(&at(path), rows).unwrap(), 1);
            assert!(at(path).is_symlink() && !at(leads_to).is_symlink(), "{path}");
            assert_eq!(std::fs::read_to_string(at(leads_to)).unwrap(), "rows\n");
        }
        std::os::unix::fs::symlink("round", at("round")).unwrap();
        assert!(into(&at("round"), rows).is_err());

        let pipe = at("pipe");
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        let reader = {
            let pipe = pipe.clone();
            std::thread::spawn(move || std::fs::read_to_string(pipe).unwrap())
        };
        assert_eq!(into(&pipe, rows).unwrap(), 1);
        assert_eq!(reader.join().unwrap(), "rows\n");
        assert!(!std::fs::symlink_metadata(&pipe).unwrap().is_file(), "it stays a pipe");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 7, "nothing is left");
    }

    #[test]
    fn trust_fits_on_one_line() {
        let quality = |ahead, coverage, ratio| QualityView {
            ahead,
            scored: 9,
            coverage: Some(coverage),
            against_last_value: ratio,
            ..QualityView::default()
        };
        let mut view = ForecastView { zone: "west".into(), ..ForecastView::default() };
        view.trust.steps = 20;
        view.abstained =
            Some(AbstainedView { reason: "too_few".into(), why: "2 values observed, 6 are needed".into() });
        assert_eq!(
            trust(&view),
            "forecast of the request path in west: none now (2 values observed, 6 are needed); not judged yet; \
             without a forecast none of the last 20 steps\n"
        );
        view.abstained = None;
        view.trust.ahead = vec![quality(1, 0.912, Some(0.84)), quality(4, 0.88, None)];
        view.trust.abstained = vec![AbstentionView { reason: "stale".into(), steps: 3 }];
        assert_eq!(
            trust(&view),
            "forecast of the request path in west: 90 % band held 91 / 88 %, loss 0.84 / - of the last value's, \
             1 / 4 steps ahead; without a forecast 3 stale of the last 20 steps\n"
        );
    }
}
