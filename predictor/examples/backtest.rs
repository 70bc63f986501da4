//! Walks the default forecaster over CSV on standard input: `series_id,t,value[,…]`, a header first, gaps empty.
//!
//! `zcat series.csv.gz | cargo run -p predictor --example backtest`

use std::collections::BTreeMap;
use std::io::BufRead;

use predictor::backtest::{Report, walk_forward};
use predictor::default_forecaster;

fn main() -> std::io::Result<()> {
    let mut series: BTreeMap<String, Vec<Option<f64>>> = BTreeMap::new();
    for line in std::io::stdin().lock().lines().skip(1) {
        let line = line?;
        let mut fields = line.split(',');
        if let (Some(id), Some(_), Some(value)) = (fields.next(), fields.next(), fields.next()) {
            series.entry(id.to_owned()).or_default().push(value.parse().ok());
        }
    }
    let distances = [1, 4, 16, 48];
    let mut totals = [Report::default(); 4];
    let mut skills = [const { Vec::new() }; 4];
    for values in series.values() {
        let reports = walk_forward(&mut default_forecaster(1), values, &distances, 60);
        for ((total, skills), report) in totals.iter_mut().zip(&mut skills).zip(&reports) {
            total.merge(report);
            if report.scored > 0 {
                skills.push(report.skill());
            }
        }
    }
    println!("ahead  scored   coverage  above-p95  saved-of-persistence  median-series  saved-of-naive");
    for ((total, skills), ahead) in totals.iter().zip(&mut skills).zip(distances) {
        let of_naive = 1.0 - total.loss / total.naive;
        let above = total.above as f64 / total.scored.max(1) as f64;
        println!(
            "{ahead:>5}  {:>7}  {:>8.3}  {above:>9.3}  {:>20.3}  {:>13.3}  {of_naive:>14.3}",
            total.scored,
            total.coverage(),
            total.skill(),
            predictor::sample::median(skills).unwrap_or(0.0),
        );
    }
    Ok(())
}
