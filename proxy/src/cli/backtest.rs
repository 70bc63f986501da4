//! `godwit backtest`: what a policy would have done on recorded history.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow};
use indicatif::{ProgressBar, ProgressStyle};

use super::Output;
use super::verbs::show;
use crate::backtest::{self, Report, Way, data};
use crate::config;

/// The exit code of a policy that is wrong.
const INVALID: u8 = 3;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The policy file.
    #[arg(short, long, value_name = "FILE")]
    policy: PathBuf,
    /// Recorded history: CSV `time,zone,latency_ms[,cost,utilization]`, or what `godwit history export` writes.
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// The primary at the beginning; default: the first zone by name.
    #[arg(long, value_name = "ZONE")]
    primary: Option<String>,
    /// The other zone; needed where the data has more than two.
    #[arg(long, value_name = "ZONE")]
    shadow: Option<String>,
    /// Seed of the forecaster: equal seeds give equal reports.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

pub(super) fn run(arguments: &Arguments, output: Output) -> Result<ExitCode> {
    let (policy, windows) = match config::load_policy(&arguments.policy) {
        Ok(read) => read,
        Err(errors) => {
            eprintln!("{errors}");
            return Ok(ExitCode::from(INVALID));
        }
    };
    let shown = arguments.data.display();
    let text = std::fs::read_to_string(&arguments.data).with_context(|| format!("cannot read {shown}"))?;
    let step_ms = u64::try_from(policy.step.as_millis())?;
    let history = data::read(&text, step_ms).with_context(|| shown.to_string())?;
    let zones = backtest::choose(&history, arguments.primary.as_deref(), arguments.shadow.as_deref())
        .map_err(|why| anyhow!("{shown}: {why}"))?;
    // Drawn on a terminal only.
    let bar = ProgressBar::new(history.steps.len() as u64);
    bar.set_style(ProgressStyle::with_template(
        "{wide_bar} {percent:>3} %  {human_pos} of {human_len} steps  {eta} left",
    )?);
    let report = backtest::replay(&policy, &windows, &history, zones, arguments.seed, |step| {
        bar.set_position(step as u64);
    });
    bar.finish_and_clear();
    show(output, &report, table)?;
    Ok(ExitCode::SUCCESS)
}

fn table(report: &Report) -> String {
    let mut text = format!(
        "policy {} on {} steps ({} counted) from {} to {}, {} → {}, seed {}\n\n",
        report.policy,
        report.steps,
        report.counted,
        super::render::moment(report.span_ms[0]),
        super::render::moment(report.span_ms[1]),
        report.zones[0],
        report.zones[1],
        report.seed
    );
    let ms = |value: Option<f64>| value.map_or("-".into(), |ms| format!("{ms:.2} ms"));
    let way = |name: &str, way: &Way| {
        let cost = way.cost.map_or("-".into(), |cost| format!("{cost:.3}/h"));
        vec![name.to_owned(), ms(way.latency_ms), cost, way.moves.to_string()]
    };
    let ways = [
        way("this policy", &report.with_policy),
        way("never moved", &report.never_moved),
        way("best in hindsight", &report.best),
    ];
    text.push_str(&super::render::table(&["", "LATENCY", "COST", "MOVES"], &ways));
    let _ = match (report.regret_never_ms, report.regret_best_ms) {
        (Some(never), Some(best)) => writeln!(
            text,
            "\nregret against never moving {never:+.2} ms, against the best {best:+.2} ms; {} flaps",
            report.flaps
        ),
        _ => writeln!(text, "\nno step has a latency of both zones: nothing can be compared"),
    };
    let mut kept_by: Vec<_> = report.kept_by.iter().collect();
    kept_by.sort_by_key(|(_, steps)| std::cmp::Reverse(**steps));
    if !kept_by.is_empty() {
        let kept_by: Vec<String> = kept_by.iter().map(|(guard, steps)| format!("{guard} {steps}")).collect();
        let _ = writeln!(text, "steps by the first guard that failed: {}", kept_by.join(", "));
    }
    if !report.never_known.is_empty() {
        let facts = report.never_known.join(", ");
        let _ = writeln!(text, "the data never says {facts}: such a guard fails in every step");
    }
    if report.moves.is_empty() {
        return text;
    }
    let rows: Vec<Vec<String>> = report
        .moves
        .iter()
        .map(|done| {
            vec![
                super::render::moment(done.at_ms),
                format!("{} → {}", done.from, done.to),
                format!("{:.2}", done.score_lower),
                ms(done.realised_ms),
                ms(done.never_moved_ms),
            ]
        })
        .collect();
    text.push('\n');
    text.push_str(&super::render::table(&["AT", "MOVE", "SCORE", "REALISED", "HAD IT STAYED"], &rows));
    text
}
