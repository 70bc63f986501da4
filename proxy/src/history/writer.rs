//! The thread that writes. Whatever goes wrong is said once, counted, and tried again; nobody waits for it.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use rusqlite::ErrorCode;

use super::store::{Store, damaged};
use super::tier::Retention;
use super::{Entry, HistoryError};
use crate::causes::chain;
use crate::clock;
use crate::telemetry::metrics as telemetry;

/// Entries of one transaction, at most.
const BATCH: usize = 512;
/// Between two looks at what is over and what is too old.
const TEND: Duration = Duration::from_secs(10);
/// Between two deletions of what is too old.
const PRUNE: Duration = Duration::from_mins(5);
/// Between two attempts to open the file.
const REOPEN: Duration = Duration::from_secs(10);

/// What the thread works with.
pub(super) struct Writer {
    path: Arc<Path>,
    retention: Retention,
    problem: Arc<ArcSwapOption<String>>,
    store: Option<Store>,
    opened: Instant,
    tended: Option<Instant>,
    pruned: Option<Instant>,
}

impl Writer {
    /// Opens the file, or will try again.
    pub(super) fn new(path: Arc<Path>, retention: Retention, problem: Arc<ArcSwapOption<String>>) -> Self {
        let now = clock::monotonic();
        let mut writer =
            Self { path, retention, problem, store: None, opened: now, tended: None, pruned: None };
        writer.open();
        writer
    }

    /// Until the last [`super::History`] is gone.
    pub(super) fn run(mut self, entries: &Receiver<Entry>) {
        loop {
            match entries.recv_timeout(TEND) {
                Ok(first) => {
                    let mut batch = vec![first];
                    batch.extend(entries.try_iter().take(BATCH - 1));
                    self.write(&batch);
                    for entry in batch {
                        if let Entry::Barrier(done) = entry {
                            // Nobody may be waiting any more.
                            let _ = done.send(());
                        }
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            self.tend();
        }
    }

    fn open(&mut self) {
        self.opened = clock::monotonic();
        match Store::open(&self.path, self.retention, clock::now()) {
            Ok(store) => self.store = Some(store),
            Err(error) => self.failed(&error),
        }
    }

    fn write(&mut self, batch: &[Entry]) {
        if self.store.is_none() && self.opened.elapsed() >= REOPEN {
            self.open();
        }
        let count = batch.iter().filter(|entry| !matches!(entry, Entry::Barrier(_))).count() as u64;
        if count == 0 {
            return;
        }
        let Some(store) = &mut self.store else {
            telemetry::history_dropped("error", count);
            return;
        };
        match store.write(batch, clock::now()) {
            Ok(()) => self.works(),
            Err(error) => {
                telemetry::history_dropped(cause(&error), count);
                self.broke(error);
            }
        }
    }

    /// Rolls up what is over, forgets what is too old.
    fn tend(&mut self) {
        if self.tended.is_some_and(|at| at.elapsed() < TEND) {
            return;
        }
        self.tended = Some(clock::monotonic());
        let Some(store) = &mut self.store else { return };
        let now = clock::now();
        let mut tended = store.roll_up(now);
        if tended.is_ok() && self.pruned.is_none_or(|at| at.elapsed() >= PRUNE) {
            self.pruned = Some(clock::monotonic());
            tended = store.prune(now);
        }
        if let Err(error) = tended {
            self.broke(error);
        }
        if let Ok(metadata) = std::fs::metadata(&self.path) {
            telemetry::history_size(metadata.len());
        }
    }

    fn broke(&mut self, source: rusqlite::Error) {
        let spoilt = damaged(&source).then(|| source.to_string());
        // These pass by themselves.
        let passes =
            matches!(source.sqlite_error_code(), Some(ErrorCode::DiskFull | ErrorCode::DatabaseBusy));
        self.failed(&HistoryError::Database { path: self.path.to_path_buf(), source });
        if passes {
            return;
        }
        self.store = None;
        self.opened = clock::monotonic();
        if let Some(why) = spoilt {
            match Store::replace(&self.path, &why, self.retention, clock::now()) {
                Ok(store) => self.store = Some(store),
                Err(error) => self.failed(&error),
            }
        }
    }

    fn failed(&self, error: &HistoryError) {
        let why = chain(error);
        if self.problem.load().is_none() {
            tracing::warn!(path = %self.path.display(), %why, "the history cannot be written: what is measured now is not kept");
        }
        self.problem.store(Some(Arc::new(format!("the history cannot be written: {why}"))));
    }

    fn works(&self) {
        if self.problem.swap(None).is_some() {
            tracing::info!(path = %self.path.display(), "the history is written again");
        }
    }
}

/// Why entries are lost, as a metric's label.
fn cause(error: &rusqlite::Error) -> &'static str {
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => "full",
        _ => "error",
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use migration::units::Timestamp;

    use super::super::{Step, Value};
    use super::*;

    fn step(at: u64) -> Entry {
        let values = (0..500).map(|place| Value::new(format!("series_{place}"), "west", 1.0)).collect();
        Entry::Step(Step { resource: "orders".into(), at: Timestamp(at), step: TEND, values })
    }

    #[test]
    fn a_full_disk_is_said_and_forgotten_when_there_is_space_again() {
        let folder = tempfile::tempdir().unwrap();
        let path: PathBuf = folder.path().join("history.db");
        let problem = Arc::new(ArcSwapOption::empty());
        let mut writer = Writer::new(path.into(), Retention::default(), problem.clone());
        let limit = |writer: &Writer, pages: u32| {
            let pragma = format!("PRAGMA max_page_count = {pages}");
            let store = writer.store.as_ref().unwrap();
            store.connection.query_row(&pragma, [], |row| row.get::<_, u32>(0)).unwrap();
        };
        writer.write(&[step(1)]);
        assert!(problem.load().is_none());
        limit(&writer, 1);
        writer.write(&(2..200).map(step).collect::<Vec<_>>());
        let said = problem.load_full().unwrap();
        assert!(said.contains("cannot be written") && said.contains("full"), "{said}");
        limit(&writer, 1 << 30);
        writer.write(&[step(300)]);
        assert!(problem.load().is_none());
        let rows = "SELECT count(DISTINCT at_ms) FROM value";
        let store = writer.store.as_ref().unwrap();
        assert_eq!(store.connection.query_row(rows, [], |row| row.get::<_, i64>(0)).unwrap(), 2);
    }

    #[test]
    fn after_an_error_that_does_not_pass_the_file_is_opened_again() {
        let folder = tempfile::tempdir().unwrap();
        let problem = Arc::new(ArcSwapOption::empty());
        let path = folder.path().join("history.db");
        let mut writer = Writer::new(path.into(), Retention::default(), problem.clone());
        writer.write(&[step(1)]);
        writer.store.as_ref().unwrap().connection.execute_batch("PRAGMA query_only = 1").unwrap();
        writer.write(&[step(2)]);
        assert!(problem.load().is_some());
        writer.opened -= REOPEN;
        writer.write(&[step(3)]);
        assert!(problem.load().is_none());
    }

    #[test]
    fn a_place_where_nothing_can_be_written_keeps_nobody_from_working() {
        let folder = tempfile::tempdir().unwrap();
        let problem = Arc::new(ArcSwapOption::empty());
        let path = folder.path().join("missing").join("history.db");
        let mut writer = Writer::new(path.clone().into(), Retention::default(), problem.clone());
        writer.write(&[step(1)]);
        writer.tend();
        assert!(problem.load().is_some());
        std::fs::create_dir(folder.path().join("missing")).unwrap();
        writer.opened -= REOPEN;
        writer.write(&[step(2)]);
        assert!(problem.load().is_none() && path.exists());
    }
}
