//! The store through its front door: what is recorded is what is read.

use std::time::Duration;

use migration::units::Timestamp;
use rusqlite::{Connection, params};

use super::read::{Page, Place, Reader};
use super::store::{Store, decode, merged};
use super::*;
use crate::fronts::latencies::histogram;

const NOW: u64 = 1_900_000_000_000 - 1_900_000_000_000 % 3_600_000;
const PATIENCE: Duration = Duration::from_secs(20);

struct Kept {
    _folder: tempfile::TempDir,
    path: PathBuf,
    store: Store,
}

impl Kept {
    fn new(retention: Retention) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        let store = Store::open(&path, retention, Timestamp(NOW)).unwrap();
        Self { _folder: folder, path, store }
    }

    fn reader(&self) -> Reader {
        Reader::open(&self.path).unwrap()
    }

    fn put(&mut self, entries: &[Entry], now: u64) {
        self.store.write(entries, Timestamp(now)).unwrap();
    }

    fn all(&self, resolution: Resolution) -> Vec<(String, u64, u64, f64)> {
        let reader = self.reader();
        let place = Place { resolution, from: 0, to: u64::MAX >> 1, series: 0, at: 0 };
        let page = reader.page(reader.series("orders", &[]).unwrap(), place, 1_000_000).unwrap();
        rows(&page)
    }
}

fn rows(page: &Page) -> Vec<(String, u64, u64, f64)> {
    page.rows
        .iter()
        .map(|row| (page.series[row.series].name.clone(), row.at.0, row.samples, row.mean))
        .collect()
}

fn step(at: u64, values: &[(&str, f64)]) -> Entry {
    Entry::Step(Step {
        resource: "orders".into(),
        at: Timestamp(at),
        step: Duration::from_secs(10),
        values: values.iter().map(|(name, value)| Value::new(*name, "west", *value)).collect(),
    })
}

fn bucket(at: u64, micros: impl IntoIterator<Item = u64>) -> Bucket {
    let mut histogram = histogram();
    for value in micros {
        histogram.record(value).unwrap();
    }
    Bucket {
        resource: "orders".into(),
        zone: "west".into(),
        segment: "upstream",
        at: Timestamp(at),
        histogram,
    }
}

/// Some spread-out latencies that depend on the bucket.
fn micros(at: u64) -> impl Iterator<Item = u64> {
    (0..200_u64).map(move |place| 1_000 + (at / 10_000 * 7_919 + place * 104_729) % 90_000)
}

#[test]
fn what_was_recorded_is_read_after_reopening() {
    let folder = tempfile::tempdir().unwrap();
    let values = [("probe_ms", 12.5), ("lag_bytes", 3e9), ("lost", f64::NAN)];
    {
        let history = History::start(folder.path(), Retention::default()).unwrap();
        let Entry::Step(one) = step(NOW, &values) else { unreachable!() };
        history.record_step(one);
        history.record_feed("weather", -3.5, Timestamp(NOW + 1));
        history.record_buckets(vec![bucket(NOW, micros(1))]);
        // A restart within the same 10 s adds to what is there.
        history.record_buckets(vec![bucket(NOW + 3_000, micros(2))]);
        assert!(history.flush(PATIENCE));
        assert_eq!(history.problem(), None);
    }
    let history = History::start(folder.path(), Retention::default()).unwrap();
    let reader = history.reader().unwrap();
    let place = Place { resolution: Resolution::Fine, from: NOW, to: NOW + 2, series: 0, at: 0 };
    let page = reader.page(reader.series("orders", &[]).unwrap(), place, 10).unwrap();
    let expected = [("probe_ms", NOW, 12.5), ("lag_bytes", NOW, 3e9), ("feed_weather", NOW + 1, -3.5)];
    assert_eq!(rows(&page), expected.map(|(name, at, value)| (name.to_owned(), at, 1, value)));
    assert!(page.next.is_none());
    let only = reader.series("orders", &["probe_ms".into()]).unwrap();
    assert_eq!((only.len(), only[0].zone.as_str()), (1, "west"));
    assert_eq!(reader.step("orders").unwrap(), Some(Duration::from_secs(10)));
    let latencies = reader.latency("orders", (NOW, NOW + 10_000), 10_000).unwrap();
    let all = bucket(NOW, micros(1).chain(micros(2))).histogram;
    assert_eq!((latencies.len(), &latencies[0].histogram), (1, &all));
}

#[test]
fn rolled_up_buckets_are_the_merged_histogram_and_the_mean_of_the_values() {
    let mut kept = Kept::new(Retention::default());
    let end = NOW + 2 * 3_600_000;
    let mut entries = Vec::new();
    for at in (NOW..end).step_by(10_000) {
        entries.push(step(at, &[("probe_ms", (at - NOW) as f64 / 10_000.0)]));
        entries.push(Entry::Buckets(vec![bucket(at, micros(at))]));
    }
    kept.put(&entries, end);
    // Nothing is rolled up before its bucket is over; both times the same comes out.
    kept.store.roll_up(Timestamp(NOW + 299_000)).unwrap();
    assert!(kept.all(Resolution::Medium).is_empty());
    for now in [end + 20_000, end + 30_000] {
        kept.store.roll_up(Timestamp(now)).unwrap();
        let medium = kept.all(Resolution::Medium);
        assert_eq!(medium.len(), 24);
        assert_eq!(medium[1], ("probe_ms".into(), NOW + 300_000, 30, 44.5));
        let coarse = kept.all(Resolution::Coarse);
        assert_eq!(coarse.len(), 2);
        assert_eq!(coarse[1], ("probe_ms".into(), NOW + 3_600_000, 360, 539.5));
    }
    let expected = bucket(NOW, (NOW..NOW + 3_600_000).step_by(10_000).flat_map(micros)).histogram;
    for tier in [Resolution::Medium, Resolution::Coarse] {
        let stored: Vec<Vec<u8>> = kept
            .store
            .connection
            .prepare("SELECT histogram FROM latency WHERE tier = ? AND at_ms < ? ORDER BY at_ms")
            .unwrap()
            .query_map(params![tier.number(), NOW + 3_600_000], |row| row.get(0))
            .unwrap()
            .collect::<Result<_, _>>()
            .unwrap();
        assert_eq!(stored.len(), (3_600_000 / tier.bucket_ms()) as usize);
        let parts: Vec<_> = stored.iter().filter_map(|bytes| decode(bytes)).collect();
        assert_eq!(merged(&parts), expected, "{tier:?}");
    }
    // An answer takes what is rolled up from there and the rest from the finer ones: the sum is the same.
    let late = end + 40_000;
    kept.put(&[Entry::Buckets(vec![bucket(late, [5])])], late);
    let answer = kept.reader().latency("orders", (NOW, late + 10_000), 3_600_000).unwrap();
    assert_eq!(answer.iter().map(|of| of.histogram.len()).collect::<Vec<_>>(), [72_000, 72_000, 1]);
    assert_eq!(answer[0].histogram, expected);
}

#[test]
fn what_comes_late_opens_its_bucket_again() {
    let mut kept = Kept::new(Retention::default());
    let after = NOW + 3_600_000 + 60_000;
    kept.put(&[step(NOW, &[("probe_ms", 10.0)])], NOW);
    kept.store.roll_up(Timestamp(after)).unwrap();
    assert_eq!(kept.all(Resolution::Coarse), [("probe_ms".into(), NOW, 1, 10.0)]);
    kept.put(&[step(NOW + 10_000, &[("probe_ms", 20.0)])], after);
    kept.store.roll_up(Timestamp(after)).unwrap();
    assert_eq!(kept.all(Resolution::Coarse), [("probe_ms".into(), NOW, 2, 15.0)]);
}

#[test]
fn each_resolution_is_kept_for_its_time() {
    let hours = |hours: u64| Duration::from_secs(hours * 3_600);
    let mut kept = Kept::new(Retention { fine: hours(1), medium: hours(24), coarse: hours(72) });
    let mut entries = Vec::new();
    for at in (NOW..NOW + 100 * 3_600_000).step_by(60_000) {
        entries.push(step(at, &[("probe_ms", 10.0)]));
        entries.push(Entry::Buckets(vec![bucket(at, [7])]));
    }
    let end = NOW + 100 * 3_600_000;
    kept.put(&entries, end);
    kept.store.roll_up(Timestamp(end + 20_000)).unwrap();
    for _ in 0..100 {
        kept.store.prune(Timestamp(end)).unwrap();
    }
    let count = |tier| kept.all(tier).len();
    assert_eq!(Resolution::ALL.map(count), [60, 24 * 12, 72]);
    assert_eq!(kept.all(Resolution::Fine)[0].1, end - 3_600_000);
    let histograms: Vec<i64> = Resolution::ALL
        .map(|tier| {
            let count = "SELECT count(*) FROM latency WHERE tier = ?";
            kept.store.connection.query_row(count, [tier.number()], |row| row.get(0)).unwrap()
        })
        .to_vec();
    assert_eq!(histograms, [60, 24 * 12, 72]);
    // A fine value that comes late must not make a bucket anew that has lost the others.
    let lost = NOW + 50 * 3_600_000;
    let rolled = |kept: &Kept| {
        [Resolution::Medium, Resolution::Coarse]
            .map(|tier| super::rollup::rolled(&kept.store.connection, tier).unwrap())
    };
    let until = rolled(&kept);
    kept.put(&[step(lost, &[("probe_ms", 99.0)])], end);
    assert_eq!(rolled(&kept), until, "nor any other, for nothing");
    kept.store.roll_up(Timestamp(end + 20_000)).unwrap();
    let coarse = kept.all(Resolution::Coarse);
    let there = coarse.iter().find(|row| row.1 == lost).unwrap();
    assert_eq!((there.2, there.3), (60, 10.0));
}

#[test]
fn a_clock_that_is_ahead_for_a_while_does_not_empty_the_file() {
    let mut kept = Kept::new(Retention::default());
    let (hour, end) = (3_600_000, NOW + 24 * 3_600_000);
    let entries: Vec<Entry> = (NOW..end).step_by(60_000).map(|at| step(at, &[("probe_ms", 10.0)])).collect();
    kept.put(&entries, end);
    kept.store.roll_up(Timestamp(end + 20_000)).unwrap();
    let ahead = Timestamp(end + 500 * 24 * hour);
    kept.store.prune(ahead).unwrap();
    assert_eq!(Resolution::ALL.map(|tier| kept.all(tier).len()), [23 * 60, 23 * 12, 23]);
    kept.store.prune(Timestamp(end)).unwrap();
    assert_eq!(kept.all(Resolution::Fine).len(), 23 * 60, "nothing is too old");
    // What comes with an old time does not keep the rest from being forgotten.
    for _ in 0..24 {
        kept.put(&[step(NOW - 300 * hour, &[("probe_ms", 1.0)])], end);
        kept.store.prune(ahead).unwrap();
    }
    assert_eq!(kept.all(Resolution::Fine).len(), 0);
}

#[test]
fn pages_lose_and_repeat_nothing_while_more_is_written() {
    let mut kept = Kept::new(Retention::default());
    let names = ["a", "b", "c"];
    for place in 0..50 {
        let values = names.map(|name| (name, f64::from(place)));
        // Every series has gaps of its own.
        let there = &values[..=place as usize % 3];
        kept.put(&[step(NOW + place as u64 * 10_000, there)], NOW);
    }
    let all = kept.all(Resolution::Fine);
    for limit in [1, 7, 50, all.len(), all.len() + 1] {
        let mut walked = Vec::new();
        let mut place = Place { resolution: Resolution::Fine, from: 0, to: NOW + 500_000, series: 0, at: 0 };
        let mut more = 0;
        loop {
            let reader = kept.reader();
            let page = reader.page(reader.series("orders", &[]).unwrap(), place, limit).unwrap();
            assert!(page.rows.len() <= limit);
            walked.extend(rows(&page));
            // Past the end of what was asked for.
            more += 1;
            kept.put(&[step(NOW + 1_000_000 + more, &[("a", 1.0), ("d", 1.0)])], NOW);
            let Some(next) = page.next else { break };
            place = next.to_string().parse().unwrap();
        }
        assert_eq!(walked, all, "{limit} a page");
    }
    for wrong in
        ["", "fine.1.2.3", "fine.1.2.3.x", "fine.1.2.3.-4", "gold.1.2.3.4", "fine.1.2.3.99999999999999999999"]
    {
        assert!(wrong.parse::<Place>().is_err(), "{wrong}");
    }
}

#[test]
fn a_full_disk_costs_entries_and_nothing_else() {
    let mut kept = Kept::new(Retention::default());
    kept.put(&[step(NOW, &[("probe_ms", 1.0)])], NOW);
    let pages: i64 = kept.store.connection.query_row("PRAGMA page_count", [], |row| row.get(0)).unwrap();
    let limit = |kept: &Kept, pages: i64| {
        kept.store
            .connection
            .query_row(&format!("PRAGMA max_page_count = {pages}"), [], |row| row.get::<_, i64>(0))
            .unwrap();
    };
    limit(&kept, pages);
    let many: Vec<Entry> =
        (1..2000).map(|place| step(NOW + place, &[("probe_ms", 1.0), ("other", 2.0)])).collect();
    let error = kept.store.write(&many, Timestamp(NOW)).unwrap_err();
    assert_eq!(error.sqlite_error_code(), Some(rusqlite::ErrorCode::DiskFull));
    assert_eq!(kept.all(Resolution::Fine).len(), 1, "all or nothing");
    limit(&kept, 1 << 30);
    // The series that was rolled back is made again.
    kept.put(&many, NOW);
    assert_eq!(kept.all(Resolution::Fine).len(), 1 + 1999 * 2);
}

#[test]
fn a_full_queue_drops_and_never_waits() {
    let (queue, _entries) = sync_channel(2);
    let history = History {
        queue,
        path: Path::new("nowhere").into(),
        retention: Retention::default(),
        problem: Arc::default(),
    };
    for place in 0..5 {
        history.record_feed("x", 1.0, Timestamp(place));
    }
    assert!(!history.flush(Duration::from_millis(20)));
}

#[test]
fn a_damaged_foreign_or_newer_file_is_moved_aside() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(FILE);
    let spoilt: [(&str, &dyn Fn()); 3] = [
        ("noise", &|| std::fs::write(&path, [b'x'; 10_000]).unwrap()),
        ("foreign", &|| {
            let other = Connection::open(&path).unwrap();
            other.execute_batch("CREATE TABLE theirs (a); PRAGMA user_version = 1").unwrap();
        }),
        ("newer", &|| {
            drop(Store::open(&path, Retention::default(), Timestamp(0)).unwrap());
            Connection::open(&path).unwrap().execute_batch("PRAGMA user_version = 99").unwrap();
        }),
    ];
    for (count, (what, spoil)) in spoilt.into_iter().enumerate() {
        let _ = std::fs::remove_file(&path);
        spoil();
        let mut store = Store::open(&path, Retention::default(), Timestamp(count as u64)).unwrap();
        store.write(&[step(NOW, &[("probe_ms", 1.0)])], Timestamp(NOW)).unwrap();
        let aside = folder.path().join(format!("{FILE}.aside-{count}"));
        assert!(aside.exists(), "{what}: kept for whoever misses it");
        drop(store);
        let store = Store::open(&path, Retention::default(), Timestamp(77)).unwrap();
        let rows: i64 =
            store.connection.query_row("SELECT count(*) FROM value", [], |row| row.get(0)).unwrap();
        assert_eq!(rows, 1, "{what}: the new one is an own one");
    }
}

#[test]
fn a_file_that_is_damaged_while_it_is_used_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(FILE);
    let mut store = Store::open(&path, Retention::default(), Timestamp(0)).unwrap();
    store.write(&[step(NOW, &[("a", 1.0)])], Timestamp(NOW)).unwrap();
    // The header stays, what follows is noise: only a query finds out.
    store.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    drop(store);
    let mut bytes = std::fs::read(&path).unwrap();
    for byte in &mut bytes[4096..] {
        *byte = 0xa5;
    }
    std::fs::write(&path, bytes).unwrap();
    let history = History::start(folder.path(), Retention::default()).unwrap();
    history.record_feed("b", 1.0, Timestamp(NOW));
    assert!(history.flush(PATIENCE));
    history.record_feed("c", 1.0, Timestamp(NOW + 1));
    assert!(history.flush(PATIENCE));
    assert_eq!(history.problem(), None);
    let kept = history.reader().unwrap().series("orders", &[]).unwrap();
    assert!(kept.iter().any(|series| series.name == "feed_c"), "{kept:?}");
    let aside = std::fs::read_dir(folder.path()).unwrap().flatten();
    assert!(aside.filter(|entry| entry.file_name().to_string_lossy().contains(".aside-")).count() > 0);
}

#[test]
fn a_replay_is_what_the_present_primary_served_since_the_last_move() {
    let mut kept = Kept::new(Retention::default());
    let put = |kept: &mut Kept, place: u64, zone: &str, request: Option<f64>| {
        let mut values = vec![Value::new(series::PROBE, "west", place as f64)];
        values.extend(request.map(|value| Value::new(series::REQUEST_P95, zone, value)));
        if place < 20 {
            values.push(Value::new(series::told("gust"), "west", place as f64));
        }
        let at = Timestamp(NOW + place * 10_003);
        let step = Step { resource: "orders".into(), at, step: Duration::from_secs(10), values };
        kept.put(&[Entry::Step(step)], NOW);
    };
    for place in 0..30 {
        put(
            &mut kept,
            place,
            if (10..20).contains(&place) { "east" } else { "west" },
            (place != 25).then_some(1.0),
        );
    }
    let now = Timestamp(NOW + 30 * 10_003);
    // Of a clock that was ahead.
    let ahead = step(now.0 + 86_400_000, &[(series::PROBE, 7.0), (series::REQUEST_P95, 7.0)]);
    kept.put(&[ahead], now.0);
    let read = |step_ms, steps| kept.reader().replay("orders", "west", step_ms, steps, now).unwrap();
    let replay = read(10_000, 100);
    assert_eq!(replay.at, Timestamp(NOW + 29 * 10_003));
    let steps: Vec<u64> = replay.requests.iter().map(|(step, _)| replay.newest - step).collect();
    assert_eq!(steps, [9, 8, 7, 6, 5, 3, 2, 1, 0], "since the move back, with its gap");
    assert_eq!(replay.usual.len(), 29);
    assert_eq!((replay.probes.len(), replay.probes[0].1.len()), (1, 30));
    let told: Vec<_> =
        replay.told["west"].iter().map(|(step, it)| (replay.newest - step, it.weather)).collect();
    assert_eq!((told.len(), told[0].0, told[19].0), (20, 29, 10));
    assert_eq!(told[7].1.and_then(|weather| weather.gust), Some(7.0));
    assert!(read(10_000, 4).told.is_empty(), "nothing was told of these");
    assert_eq!(read(10_000, 4).requests.len(), 4, "only the newest");
    assert_eq!(read(20_000, 100).probes[0].1.len(), 15, "two steps make one");
    assert_eq!(read(15_000, 100), replay::Replay::default(), "the length does not fit");
    assert_eq!(kept.reader().replay("other", "west", 10_000, 9, now).unwrap(), replay::Replay::default());
}

#[test]
fn a_replay_has_the_means_of_the_days_before_its_steps() {
    let mut kept = Kept::new(Retention { fine: Duration::from_hours(200), ..Retention::default() });
    let minutes = 5 * 1_440;
    let place = |step: u64| if step == 3 * 1_440 { "east" } else { "west" };
    let entries: Vec<Entry> = (0..minutes)
        .map(|minute| {
            let probe = Value::new(series::PROBE, "west", minute as f64);
            let request = Value::new(series::REQUEST_P95, place(minute), minute as f64);
            let (at, step) = (Timestamp(NOW + minute * 60_000), Duration::from_mins(1));
            Entry::Step(Step { resource: "orders".into(), at, step, values: vec![probe, request] })
        })
        .collect();
    let end = NOW + minutes * 60_000;
    kept.put(&entries, end);
    kept.store.roll_up(Timestamp(end + 20_000)).unwrap();
    let replay = kept.reader().replay("orders", "west", 60_000, 1_440, Timestamp(end)).unwrap();
    let (before, fine) = (&replay.days.probes["west"], &replay.probes[0].1);
    assert!(fine.len() > 1_400 && before.last().unwrap().0 < fine[0].0, "{:?} {:?}", before.last(), fine[0]);
    assert!((570..=576).contains(&before.len()), "two of three days: {}", before.len());
    assert!(before.windows(2).all(|pair| pair[0].0 + 5 == pair[1].0));
    // A value says in which minute it was.
    let shift = fine[0].0 as f64 - fine[0].1;
    assert!(before.iter().all(|(step, mean)| (*step as f64 - mean - shift).abs() < 3.0));
    let requests = &replay.days.requests;
    assert!((285..=288).contains(&requests.len()), "{}: since the other zone served", requests.len());
}

#[test]
fn spikes_are_counted_from_the_five_minute_means() {
    let mut kept = Kept::new(Retention::default());
    let end = NOW + 2 * 86_400_000;
    let storm = |at: u64| (at - NOW) % 86_400_000 / 300_000 == 200;
    let entries: Vec<Entry> = (NOW..end)
        .step_by(60_000)
        .map(|at| step(at, &[(series::PROBE, if storm(at) { 90.0 } else { 20.0 })]))
        .collect();
    kept.put(&entries, end);
    kept.store.roll_up(Timestamp(end + 20_000)).unwrap();
    let rate =
        |zone| kept.reader().spikes_per_day("orders", zone, Retention::default(), Timestamp(end)).unwrap();
    assert!((rate("west").unwrap() - 1.02).abs() < 0.01);
    assert!(rate("east").is_err());
}
