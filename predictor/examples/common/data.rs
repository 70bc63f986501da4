//! Reads a folder of gzipped CSV sets: `series_id,t,value[_ms][,cp][,x_…]`, a header first, gaps empty.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::Path;

use flate2::read::MultiGzDecoder;

/// One set: what it is called and its series.
pub(crate) struct Set {
    pub(crate) name: String,
    /// The values are milliseconds.
    pub(crate) milliseconds: bool,
    /// Names of the exogenous columns, `x_` first.
    pub(crate) inputs: Vec<String>,
    pub(crate) series: Vec<Series>,
}

/// One series on a regular grid: one entry a row.
#[derive(Default)]
pub(crate) struct Series {
    pub(crate) id: String,
    pub(crate) seconds: Vec<i64>,
    pub(crate) values: Vec<Option<f64>>,
    /// Rows that were labelled as the first of a new level.
    pub(crate) labels: Vec<usize>,
    /// The exogenous columns of each row.
    pub(crate) inputs: Vec<Vec<Option<f64>>>,
}

impl Series {
    /// The first row of the test part: the last three tenths are never trained or tuned on.
    pub(crate) fn test_from(&self) -> usize {
        self.values.len() * 7 / 10
    }

    /// Rows in one day; none where the series is shorter.
    pub(crate) fn day(&self) -> Option<usize> {
        let first = *self.seconds.first()?;
        let rows = self.seconds.iter().take_while(|second| **second < first + 86_400).count();
        (rows >= 4 && rows < self.seconds.len()).then_some(rows)
    }
}

/// Every `*.csv.gz` of `folder`, by name.
pub(crate) fn read_folder(folder: &Path) -> io::Result<Vec<Set>> {
    let mut paths: Vec<_> =
        std::fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?;
    paths.retain(|path| path.to_string_lossy().ends_with(".csv.gz"));
    paths.sort();
    if paths.is_empty() {
        return Err(io::Error::other(format!("{} holds no *.csv.gz", folder.display())));
    }
    paths.iter().map(|path| read_set(path)).collect()
}

fn read_set(path: &Path) -> io::Result<Set> {
    let wrong = |what: String| io::Error::other(format!("{}: {what}", path.display()));
    let mut lines = BufReader::new(MultiGzDecoder::new(File::open(path)?)).lines();
    let header = lines.next().ok_or_else(|| wrong("no header".into()))??;
    let columns: Vec<&str> = header.split(',').collect();
    if columns.len() < 3 || columns[0] != "series_id" || columns[1] != "t" || !columns[2].starts_with("value")
    {
        return Err(wrong(format!("the header is {header:?}, not series_id,t,value…")));
    }
    let label = columns.iter().position(|column| *column == "cp");
    let exogenous: Vec<usize> =
        (3..columns.len()).filter(|column| columns[*column].starts_with("x_")).collect();
    let mut series: Vec<Series> = Vec::new();
    for (row, line) in lines.enumerate() {
        let line = line?;
        let fields: Vec<&str> = line.split(',').collect();
        if fields.len() != columns.len() {
            return Err(wrong(format!("row {} has {} fields", row + 2, fields.len())));
        }
        if series.last().is_none_or(|last| last.id != fields[0]) {
            series.push(Series { id: fields[0].to_owned(), ..Series::default() });
        }
        let Some(into) = series.last_mut() else { continue };
        let second: f64 = fields[1].parse().map_err(|_| wrong(format!("row {}: no time", row + 2)))?;
        if label.is_some_and(|label| fields[label].parse::<f64>().is_ok_and(|value| value > 0.5)) {
            into.labels.push(into.values.len());
        }
        into.seconds.push(second as i64);
        into.values.push(fields[2].parse().ok());
        into.inputs.push(exogenous.iter().map(|column| fields[*column].parse().ok()).collect());
    }
    let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    Ok(Set {
        name: name.trim_end_matches(".csv.gz").to_owned(),
        milliseconds: columns[2] == "value_ms",
        inputs: exogenous.into_iter().map(|column| columns[column].to_owned()).collect(),
        series,
    })
}
