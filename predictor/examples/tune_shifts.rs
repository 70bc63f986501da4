#[path = "common/data.rs"] mod data;
#[path = "bench_forecast/events.rs"] mod events;
use predictor::shift::Sensitivity;
fn main() {
    let sets = data::read_folder(std::path::Path::new(&std::env::args().nth(1).unwrap())).unwrap();
    let set = sets.iter().find(|s| s.name == "atlas_rtt").unwrap();
    let mut all = vec![];
    for clip in [2.5, 3.0, 4.0, 6.0] { for allowance in [1.0, 1.5, 2.0] { for alarm in [2.0, 3.0, 4.0, 5.0, 6.0, 8.0] { for median in [2.5] { for floor in [0.003, 0.005, 0.01] {
        let s = Sensitivity { clip, allowance, alarm, median, floor };
        let mut sh = events::Shifts::default();
        for series in &set.series { sh.judge(series, 0, series.test_from(), s); }
        let mut d = sh.delays.clone();
        let m = predictor::sample::median(&mut d).unwrap_or(0.0);
        let mean = sh.delays.iter().sum::<f64>() / sh.delays.len().max(1) as f64;
        all.push((sh.f1(), format!("{s:?} f1 {:.3} p {:.3} r {:.3} delay {m} mean {mean:.1} n {}", sh.f1(), sh.precision(), sh.recall(), sh.found+sh.missed)));
    }}}}}
    all.retain(|a: &(f64,String)| a.1.contains("delay 3") || a.1.contains("delay 2")|| a.1.contains("delay 4"));
    all.sort_by(|a, b| b.0.total_cmp(&a.0));
    for a in &all[..12] { println!("{}", a.1); }
    for a in all.iter().filter(|a| a.1.contains("clip: 4.0, allowance: 1.25, alarm: 10.0, median: 2.5, floor: 0.05 }")) { println!("{}", a.1); }
}
