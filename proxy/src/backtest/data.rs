//! Recorded history as text: a table `time,zone,latency_ms[,cost,utilization]`, or what `godwit history export` writes
//! (`series_id,t,value`).

use std::collections::BTreeMap;

use crate::history::series;

/// The longest step that a grid may have, in steps: a wrong unit of time must not fill the memory.
const LONGEST: u64 = 10_000_000;

/// One zone in one step.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cell {
    /// Mean latency, milliseconds.
    pub latency_ms: Option<f64>,
    /// Cost per hour.
    pub cost: Option<f64>,
    /// Utilisation, 0..=1.
    pub utilization: Option<f64>,
    /// Requests were answered from it; false: nobody said so.
    pub served: bool,
}

/// What is wrong with the data, with the line where there is one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DataError {
    /// A line.
    #[error("line {line}: {what}")]
    Line {
        /// Counted from 1.
        line: usize,
        /// What is wrong and what would be right.
        what: String,
    },
    /// All of it.
    #[error("{0}")]
    Whole(String),
}

/// The zones' series on one grid.
#[derive(Clone, Debug, PartialEq)]
pub struct History {
    /// The zones, by name.
    pub zones: Vec<String>,
    /// Start of the first step, Unix milliseconds.
    pub from_ms: u64,
    /// One step, milliseconds.
    pub step_ms: u64,
    /// By step, then by zone.
    pub steps: Vec<Vec<Cell>>,
}

#[derive(Clone, Copy)]
enum Kind {
    Latency,
    Cost,
    Utilization,
    /// Of requests that it answered.
    Answers,
}

/// Sums of what fell into one cell.
type Sums = [(f64, u32); 4];

/// Reads a file's text onto a grid of `step_ms`; what falls into one step becomes its mean.
///
/// # Errors
/// The first line that is wrong, or what the data lacks.
pub fn read(text: &str, step_ms: u64) -> Result<History, DataError> {
    let mut lines = text.lines().enumerate().map(|(at, line)| (at + 1, line.trim_end_matches('\r')));
    let head = lines.find(|(_, line)| !line.is_empty());
    let (_, head) = head.ok_or_else(|| DataError::Whole("the file is empty".into()))?;
    let columns: Vec<&str> = head.split(',').map(str::trim).collect();
    let mut samples = Samples::default();
    match columns[..] {
        ["time", "zone", "latency_ms", ..] => {
            for (line, text) in lines.filter(|(_, line)| !line.is_empty()) {
                samples.table(&columns, text).map_err(|what| DataError::Line { line, what })?;
            }
        }
        ["series_id", "t", "value" | "value_ms", ..] => {
            for (line, text) in lines.filter(|(_, line)| !line.is_empty()) {
                samples.export(text).map_err(|what| DataError::Line { line, what })?;
            }
        }
        _ => {
            let what = "the first line must be time,zone,latency_ms[,cost,utilization] or series_id,t,value";
            return Err(DataError::Line { line: 1, what: what.into() });
        }
    }
    samples.on_grid(step_ms.max(1))
}

#[derive(Default)]
struct Samples {
    /// Moment, zone, what, value.
    all: Vec<(u64, String, Kind, f64)>,
    /// Latencies with the opening of a connection in them, as an older program kept them: they count where there are no others.
    whole: Vec<(u64, String, Kind, f64)>,
}

impl Samples {
    fn table(&mut self, columns: &[&str], text: &str) -> Result<(), String> {
        let cells: Vec<&str> = text.split(',').map(str::trim).collect();
        if cells.len() != columns.len() {
            return Err(format!("{} values under {} columns", cells.len(), columns.len()));
        }
        let at = moment(cells[0], 1)?;
        for (column, cell) in columns.iter().zip(&cells).skip(2).filter(|(_, cell)| !cell.is_empty()) {
            let kind = match *column {
                "latency_ms" => Kind::Latency,
                "cost" => Kind::Cost,
                "utilization" | "utilisation" => Kind::Utilization,
                _ => continue,
            };
            self.all.push((at, cells[1].to_owned(), kind, number(cell)?));
        }
        Ok(())
    }

    /// `probe_answer_ms/eu-west,1700000000,12.5`; after a long silence the name goes on with `#2`.
    fn export(&mut self, text: &str) -> Result<(), String> {
        let lacks = || "three values are needed: series_id,t,value".to_owned();
        let (series, rest) = first(text).ok_or_else(lacks)?;
        let mut cells = rest.split(',');
        let (Some(at), Some(value)) = (cells.next(), cells.next()) else { return Err(lacks()) };
        // What belongs to the node (`feed_prices.eu-west`) is of no zone.
        let Some((name, zone)) = series.split_once('/') else { return Ok(()) };
        let kind = match name {
            // Of a zone that did not serve only the probe is known.
            series::PROBE | series::PROBE_WHOLE => Kind::Latency,
            series::COST => Kind::Cost,
            series::UTILIZATION => Kind::Utilization,
            series::REQUEST_P95 => Kind::Answers,
            _ => return Ok(()),
        };
        let zone = zone.split('#').next().unwrap_or(zone);
        if !value.is_empty() {
            let into = if name == series::PROBE_WHOLE { &mut self.whole } else { &mut self.all };
            into.push((moment(at, 1000)?, zone.to_owned(), kind, number(value)?));
        }
        Ok(())
    }

    fn on_grid(mut self, step_ms: u64) -> Result<History, DataError> {
        if !self.all.iter().any(|(_, _, kind, _)| matches!(kind, Kind::Latency)) {
            self.all.append(&mut self.whole);
        }
        let first = self.all.iter().map(|(at, ..)| *at).min();
        let last = self.all.iter().map(|(at, ..)| *at).max();
        let (Some(first), Some(last)) = (first, last) else {
            return Err(DataError::Whole("the file has no value".into()));
        };
        let from_ms = first / step_ms * step_ms;
        let count = (last - from_ms) / step_ms + 1;
        if count > LONGEST {
            let what = format!("the values span {count} steps of {step_ms} ms: is the unit of time right?");
            return Err(DataError::Whole(what));
        }
        let mut zones: BTreeMap<&str, usize> =
            self.all.iter().map(|(_, zone, ..)| (zone.as_str(), 0)).collect();
        for (place, index) in zones.values_mut().enumerate() {
            *index = place;
        }
        let mut sums: Vec<Vec<Sums>> = vec![vec![Sums::default(); zones.len()]; count as usize];
        for (at, zone, kind, value) in &self.all {
            let (sum, number) =
                &mut sums[((at - from_ms) / step_ms) as usize][zones[zone.as_str()]][*kind as usize];
            (*sum, *number) = (*sum + value, *number + 1);
        }
        let mean = |(sum, number): (f64, u32)| (number > 0).then(|| sum / f64::from(number));
        let cell = |[latency, cost, utilization, answers]: Sums| Cell {
            latency_ms: mean(latency),
            cost: mean(cost),
            utilization: mean(utilization),
            served: mean(answers).is_some(),
        };
        let mut steps: Vec<Vec<Cell>> =
            sums.into_iter().map(|step| step.into_iter().map(cell).collect()).collect();
        hold_prices(&mut steps);
        let zones = zones.into_keys().map(str::to_owned).collect();
        Ok(History { zones, from_ms, step_ms, steps })
    }
}

/// The first value of a line, which may be in quotes, and what follows behind its comma.
fn first(text: &str) -> Option<(String, &str)> {
    let Some(mut rest) = text.strip_prefix('"') else {
        return text.split_once(',').map(|(first, rest)| (first.to_owned(), rest));
    };
    let mut first = String::new();
    loop {
        let (part, behind) = rest.split_once('"')?;
        first.push_str(part);
        let Some(more) = behind.strip_prefix('"') else { return Some((first, behind.strip_prefix(',')?)) };
        first.push('"');
        rest = more;
    }
}

/// A price holds until the next one is known.
fn hold_prices(steps: &mut [Vec<Cell>]) {
    let mut last: Vec<Option<f64>> = vec![None; steps.first().map_or(0, Vec::len)];
    for step in steps {
        for (cell, last) in step.iter_mut().zip(&mut last) {
            cell.cost = cell.cost.or(*last);
            *last = cell.cost;
        }
    }
}

/// RFC 3339, or a number of milliseconds (`unit` 1) or seconds (`unit` 1000, with decimals if need be) since 1970.
fn moment(text: &str, unit: u64) -> Result<u64, String> {
    let decimal = |text: &str| {
        let (seconds, part) = text.split_once('.')?;
        let digits = !part.is_empty() && part.len() <= 9 && part.bytes().all(|byte| byte.is_ascii_digit());
        let millis: u64 = format!("{part:0<3}").get(..3)?.parse().ok()?;
        let seconds: u64 = seconds.parse().ok()?;
        digits.then(|| seconds.checked_mul(1_000)?.checked_add(millis)).flatten()
    };
    if let Some(at) = Some(text).filter(|_| unit == 1_000).and_then(decimal) {
        return Ok(at);
    }
    if let Ok(number) = text.parse::<u64>() {
        return number.checked_mul(unit).ok_or_else(|| format!("`{text}` is too large a time"));
    }
    let parsed: Result<jiff::Timestamp, _> = text.parse();
    let at = parsed.ok().and_then(|at| u64::try_from(at.as_millisecond()).ok());
    at.ok_or_else(|| format!("`{text}` is no time: RFC 3339 or Unix milliseconds"))
}

fn number(text: &str) -> Result<f64, String> {
    let number = text.parse::<f64>().ok().filter(|number| number.is_finite() && *number >= 0.0);
    number.ok_or_else(|| format!("`{text}` is no number of at least 0"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_give_the_same_grid() {
        let table =
            "time,zone,latency_ms,cost\n1970-01-01T00:00:10Z,a,4,1.5\n10000,b,6,\n12000,a,8,\n30000,b,7,2\n";
        let export = "series_id,t,value\nprobe_ms/a,10,4\nprobe_ms/a,12,8\ncost_per_hour/a,10,1.5\nprobe_ms/b,10,6\n\
                      probe_ms/b#2,30,7\ncost_per_hour/b,30,2\nlag_bytes/b,10,77\nprobe_ms/b,20,\n\
                      feed_x.a,10,3\n\"feed_x.a.gusts, \"\"10 m\"\"/s\",10,3\n";
        let history = read(table, 10_000).expect("valid");
        assert_eq!(read(export, 10_000).expect("valid"), history);
        // Of an older program, with connections opened: beside newer ones they count for nothing.
        let newer = export.replace("probe_ms/", "probe_answer_ms/");
        assert_eq!(read(&newer, 10_000).expect("valid"), history);
        assert_eq!(read(&format!("{newer}probe_ms/a,10,400\n"), 10_000).expect("valid"), history);
        assert_eq!(
            (history.zones.as_slice(), history.from_ms),
            (&["a".to_owned(), "b".to_owned()][..], 10_000)
        );
        let latencies: Vec<Vec<Option<f64>>> =
            history.steps.iter().map(|step| step.iter().map(|cell| cell.latency_ms).collect()).collect();
        assert_eq!(latencies, [[Some(6.0), Some(6.0)], [None, None], [None, Some(7.0)]]);
        assert_eq!(history.steps[2][0].cost, Some(1.5));
    }

    #[test]
    fn an_export_has_seconds_with_decimals() {
        assert_eq!(moment("1795670136.897", 1_000), Ok(1_795_670_136_897));
        assert_eq!(moment("1795670136.5", 1_000), Ok(1_795_670_136_500));
        assert!(moment("1795670136.5", 1).is_err() && moment("17.x", 1_000).is_err());
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        let wrong = |text: &str| read(text, 10_000).expect_err(text).to_string();
        assert_eq!(wrong(""), "the file is empty");
        assert!(wrong("zone,time\n").starts_with("line 1: the first line must be"));
        assert_eq!(wrong("time,zone,latency_ms\n1,a,2\n5,a\n"), "line 3: 2 values under 3 columns");
        assert_eq!(wrong("time,zone,latency_ms\n1,a,-2\n"), "line 2: `-2` is no number of at least 0");
        assert!(wrong("time,zone,latency_ms\nnoon,a,2\n").contains("`noon` is no time"));
        assert_eq!(wrong("time,zone,latency_ms\n1,a,\n"), "the file has no value");
        for cut in ["probe_ms/a,10", "\"feed_x,10,3", "\"feed_x\"10,3"] {
            let what = wrong(&format!("series_id,t,value\n{cut}\n"));
            assert_eq!(what, "line 2: three values are needed: series_id,t,value");
        }
        assert!(
            wrong("time,zone,latency_ms\n1,a,1\n1700000000000,a,1\n").contains("is the unit of time right?")
        );
    }
}
