//! Verifies the shadow against its primary while both are used: when somebody asks, one run at a time per resource.
//!
//! Where a run stands is kept in a file under the node's state, so that one that was stopped, or whose node was, goes on from
//! there. A migration ends it when it begins: nothing may read in the databases while requests are held. Once it soaks it is in nobody's way.

mod gone;
mod known;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use migration::units::Generation;
use replicator::status::Phase;
use replicator::verify::{self, Difference, Follower, Go, Happening, Options, Pace, Progress};
use replicator::{Error, Lsn};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::Denied;
use super::databases::{Databases, Purpose};
use super::drift::reseed_command;
use super::large_objects::LargeObjects;
use super::streams::Streams;
use super::view::ResourceView;
use crate::causes::chain;
use crate::clock;
use crate::lock::lock;
use crate::telemetry::metrics as telemetry;

pub use known::{Known, Numbers};

/// Differences that are listed; further ones are counted.
const LISTED: usize = 1_000;
/// So many tables are named among what stands in the way.
const NAMED: usize = 10;
/// What they are called where tables are named.
const LARGE_OBJECTS: &str = "large objects";
/// How often the file is written while a run goes on.
const SAVE_EVERY: Duration = Duration::from_secs(1);

/// What to verify, and how fast.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields, default)]
#[schema(as = VerificationRequest)]
pub struct Request {
    /// `schema.table` or `table` (of `public`); empty: all.
    pub tables: Vec<String>,
    /// Show the differing values too.
    pub values: bool,
    /// Rows per second; none: no bound.
    pub rows_per_second: Option<u64>,
    /// Share of the time in which statements may run, above 0 and at most 1; none: a half.
    pub share: Option<f64>,
    /// Go on where the last one was stopped, with what it asked for.
    pub resume: bool,
}

/// What becomes of a verification.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = VerificationStanding)]
pub enum Standing {
    /// There was none.
    #[default]
    None,
    /// It goes on.
    Running,
    /// Ended before its end; can be resumed.
    Stopped,
    /// Ended by an error; can be resumed.
    Failed,
    /// It has looked at everything.
    Done,
}

/// The last verification of a resource.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default)]
pub struct VerificationView {
    /// What became of it.
    pub state: Standing,
    /// Why it was stopped or failed; empty: it was not.
    pub why: String,
    /// Who asked.
    pub by: String,
    /// What was asked for.
    pub request: Request,
    /// The primary's zone.
    pub source: String,
    /// The shadow's zone.
    pub target: String,
    /// Generation of the stream between them.
    pub generation: u64,
    /// Began, Unix milliseconds.
    pub started_ms: u64,
    /// Ended, Unix milliseconds.
    pub ended_ms: Option<u64>,
    /// How far it is.
    #[schema(value_type = Object)]
    pub progress: Progress,
    /// The first 1,000 that were found.
    #[schema(value_type = Vec<Object>)]
    pub differences: Vec<Difference>,
    /// What is not compared, and what else is worth knowing.
    pub notes: Vec<String>,
}

impl VerificationView {
    /// It has looked at everything, and all is equal.
    pub fn equal(&self) -> bool {
        self.state == Standing::Done && self.progress.differences == 0
    }

    fn take(&mut self, happening: Happening) {
        match happening {
            Happening::Progress(progress) => self.progress = progress,
            Happening::Note(note) if !self.notes.contains(&note) => self.notes.push(note),
            // One that is resumed may find what was found before.
            Happening::Difference(found)
                if self.differences.len() < LISTED && !self.differences.contains(&found) =>
            {
                self.differences.push(found);
            }
            Happening::Note(_) | Happening::Difference(_) => {}
        }
    }

    fn end(&mut self, result: Result<Progress, Error>) {
        self.ended_ms = Some(clock::now().0);
        match result {
            Ok(progress) => (self.progress, self.state) = (progress, Standing::Done),
            Err(error) => (self.why, self.state) = (chain(error), Standing::Failed),
        }
    }
}

/// What the file has.
#[derive(Default, Serialize, Deserialize)]
struct Kept {
    #[serde(flatten)]
    view: VerificationView,
    /// None: an earlier program wrote it.
    known: Option<Known>,
    /// Later ones have higher numbers.
    #[serde(skip)]
    number: u64,
}

/// Where it is kept, across the process's end.
struct Shelf {
    file: PathBuf,
    /// Number of the newest that is there.
    newest: tokio::sync::Mutex<u64>,
}

/// The verifications of one resource.
pub struct Verifications {
    databases: Arc<Databases>,
    streams: Arc<Streams>,
    large_objects: Arc<LargeObjects>,
    shelf: Arc<Shelf>,
    view: watch::Sender<VerificationView>,
    known: Mutex<Known>,
    /// How often something was taken to be kept.
    taken: AtomicU64,
    task: Mutex<Option<JoinHandle<()>>>,
    /// When tables that differ were last looked for.
    looked: Mutex<Option<Instant>>,
    /// Held while they are.
    looking: tokio::sync::Mutex<()>,
}

impl Verifications {
    /// Knows what an earlier process left under `state`.
    pub fn new(
        state: &Path,
        databases: Arc<Databases>,
        streams: Arc<Streams>,
        large_objects: Arc<LargeObjects>,
    ) -> Self {
        let file = state.join(format!("verification-{}.json", streams.resource()));
        let Kept { mut view, known, .. } = match read(&file) {
            Ok(kept) => kept.unwrap_or_default(),
            Err(why) => {
                tracing::warn!(file = %file.display(), %why, "the last verification cannot be read: it is forgotten");
                Kept::default()
            }
        };
        let known = known.unwrap_or_else(|| {
            let mut known = Known { generation: view.generation, ..Known::default() };
            known.take(&view);
            known
        });
        if view.state == Standing::Running {
            view.state = Standing::Stopped;
            view.why = "godwit was stopped".into();
        }
        if view.ended_ms.or(known.differences).or(known.verified_ms).is_some() {
            telemetry::verification(streams.resource(), Some(view.progress.rows), &known);
        }
        Self {
            databases,
            streams,
            large_objects,
            shelf: Arc::new(Shelf { file, newest: tokio::sync::Mutex::new(0) }),
            view: watch::Sender::new(view),
            known: Mutex::new(known),
            taken: AtomicU64::new(0),
            task: Mutex::default(),
            looked: Mutex::default(),
            looking: tokio::sync::Mutex::default(),
        }
    }

    /// The last one, or the one that runs.
    pub fn view(&self) -> VerificationView {
        self.view.borrow().clone()
    }

    /// Starts one.
    pub fn start(
        self: &Arc<Self>,
        request: Request,
        by: String,
        resource: &ResourceView,
    ) -> Result<VerificationView, Denied> {
        let conflict = |why: String| Err(Denied::Conflict(why));
        if let Some(id) = resource.migration.as_ref().filter(|_| resource.soak.is_none()) {
            return conflict(format!(
                "migration {id} is under way ({}): verify when it soaks or has ended",
                resource.phase
            ));
        }
        if request.share.is_some_and(|share| !(share > 0.0 && share <= 1.0)) {
            return conflict("share must be above 0 and at most 1".into());
        }
        if request.rows_per_second == Some(0) {
            return conflict("rows_per_second must be above 0".into());
        }
        let generation = Generation(resource.generation);
        match self.streams.status(generation) {
            Some((.., status)) if status.phase == Phase::Streaming => {}
            _ => {
                return conflict(format!(
                    "the shadow in {} does not follow yet (stream: {}): verify when it does",
                    resource.shadow, resource.replication.state
                ));
            }
        }
        let mut task = lock(&self.task);
        if task.as_ref().is_some_and(|task| !task.is_finished()) {
            return conflict("a verification is under way".into());
        }
        let last = self.view();
        let mut view = VerificationView {
            state: Standing::Running,
            by,
            source: resource.primary.clone(),
            target: resource.shadow.clone(),
            generation: generation.0,
            started_ms: clock::now().0,
            ..VerificationView::default()
        };
        if request.resume {
            if !matches!(last.state, Standing::Stopped | Standing::Failed) {
                return conflict("there is no verification to resume: the last one was not stopped".into());
            }
            if last.generation != generation.0 {
                return conflict(format!(
                    "the primary has moved since the last verification ({} → {}): start a new one",
                    last.source, last.target
                ));
            }
            view.request = Request { resume: true, ..last.request };
            (view.progress, view.differences, view.notes) = (last.progress, last.differences, last.notes);
        } else {
            view.request = request;
            let mut known = lock(&self.known);
            known.found.clear();
            known.begun.clear();
        }
        self.view.send_replace(view.clone());
        *task = Some(tokio::spawn(self.clone().run(view.clone())));
        Ok(view)
    }

    /// Ends the one that runs; `false`: none does.
    pub fn stop(&self, why: &str) -> bool {
        let ended = self.end(why);
        if ended.is_some() {
            drop(tokio::spawn(save(self.shelf.clone(), self.tell())));
        }
        ended.unwrap_or_default()
    }

    /// None: there is no task to end; else whether it was amid its work.
    fn end(&self, why: &str) -> Option<bool> {
        let mut task = lock(&self.task);
        let task = task.take().filter(|task| !task.is_finished())?;
        task.abort();
        let mut stopped = false;
        self.view.send_modify(|view| {
            stopped = view.state == Standing::Running;
            if stopped {
                (view.state, view.why) = (Standing::Stopped, why.to_owned());
                view.ended_ms = Some(clock::now().0);
            }
        });
        Some(stopped)
    }

    /// There is this shadow now, or none: what was known of another one, or before it was seeded anew, is not known of it.
    pub(super) fn stands(&self, generation: Option<Generation>) {
        let (generation, emptied) = (generation.map_or(0, |generation| generation.0), self.streams.emptied());
        if lock(&self.known).is_of(generation, emptied) {
            return;
        }
        let ended = self.end("the shadow that it looked at is no more");
        let mut known = lock(&self.known);
        let before = known.clone();
        *known = before.of_another(generation, emptied);
        telemetry::verification(self.streams.resource(), None, &known);
        if ended.is_some()
            || before.differences.or(before.verified_ms).is_some()
            || before.differing != known.differing
        {
            drop(tokio::spawn(save(self.shelf.clone(), self.kept(self.view(), &known))));
        }
    }

    /// Tables whose rows were found to differ: whoever is moved to the other zone meets others there. `large objects` are among them.
    pub fn differing(&self) -> BTreeSet<String> {
        let seeded = std::mem::take(&mut *lock(&self.streams.seeded));
        let mut known = lock(&self.known);
        if known.seeded(&seeded) {
            drop(tokio::spawn(save(self.shelf.clone(), self.kept(self.view(), &known))));
        }
        known.differing.clone()
    }

    /// The same as it stands in the way of a move: the first few of them.
    pub(super) fn blockers(&self) -> Vec<String> {
        let (resource, found) = (self.streams.resource(), self.differing());
        let line = |table: &String| format!("{table}: {DIFFER} (mend: {})", mend(resource, table));
        let mut lines: Vec<String> = found.iter().take(NAMED).map(line).collect();
        if found.len() > NAMED {
            lines.push(format!("{} more tables: {DIFFER}: godwit doctor {resource}", found.len() - NAMED));
        }
        lines
    }

    /// `known` is locked, so that what is taken later is newer.
    fn kept(&self, view: VerificationView, known: &Known) -> Kept {
        let number = self.taken.fetch_add(1, Ordering::Relaxed) + 1;
        Kept { view, known: Some(known.clone()), number }
    }

    /// Brings the metrics up; what is to be kept.
    fn tell(&self) -> Kept {
        let view = self.view();
        let mut known = lock(&self.known);
        known.take(&view);
        telemetry::verification(self.streams.resource(), Some(view.progress.rows), &known);
        self.kept(view, &known)
    }

    async fn run(self: Arc<Self>, begun: VerificationView) {
        let work = async {
            let result = self.compare(&begun).await;
            self.change(&begun, |view| view.end(result));
        };
        tokio::select! {
            () = work => {}
            never = self.keep_saving() => match never {},
        }
        lock(&self.known).done(&self.view());
        let kept = self.tell();
        let view = &kept.view;
        let (resource, differences, why) =
            (self.streams.resource(), view.progress.differences, view.why.as_str());
        match view.state {
            Standing::Done if differences > 0 => {
                tracing::warn!(resource, differences, "verification: the shadow differs from its primary");
            }
            Standing::Done => tracing::info!(resource, rows = view.progress.rows, "verification: equal"),
            _ => tracing::warn!(resource, why, "verification failed"),
        }
        save(self.shelf.clone(), kept).await;
    }

    /// Changes the view, if it still is of the verification that `begun` describes.
    fn change(&self, begun: &VerificationView, change: impl FnOnce(&mut VerificationView)) {
        self.view.send_if_modified(|view| {
            let ours = view.state == Standing::Running && view.started_ms == begun.started_ms;
            if ours {
                change(view);
            }
            ours
        });
    }

    /// Goes on from where `begun` stands.
    async fn compare(&self, begun: &VerificationView) -> Result<Progress, Error> {
        let (source, target) = tokio::try_join!(
            self.databases.take(&begun.source, Purpose::Verify),
            self.databases.take(&begun.target, Purpose::Verify)
        )?;
        let zones = [&*begun.source, &*begun.target];
        let look = async || {
            let seen = self.look_at_all(zones, [&source, &target]).await;
            seen.map_err(|error| Error::Unready(chain(error)))
        };
        let seen = look().await?;
        if begun.progress == Progress::default() {
            lock(&self.known).begin(&seen);
        }
        let follower = Streaming { streams: self.streams.clone(), generation: Generation(begun.generation) };
        let request = &begun.request;
        let pace = Pace::default();
        let options = Options {
            tables: (!request.tables.is_empty()).then(|| request.tables.clone()),
            values: request.values,
            pace: Pace {
                rows_per_second: request.rows_per_second,
                duty: request.share.unwrap_or(pace.duty),
                ..pace
            },
            ..Options::default()
        };
        let (_go_on, go) = watch::channel(Go::Run);
        let mut happening = |happening| {
            if let Happening::Difference(found) = &happening {
                let mut known = lock(&self.known);
                if known.generation == begun.generation {
                    known.differs(found, seen.numbers(&found.table));
                }
            }
            self.change(begun, |view| view.take(happening));
            Ok(())
        };
        let resume = begun.progress.clone();
        let mut progress =
            verify::run(&source, &target, &follower, &options, resume, go, &mut happening).await?;
        if options.tables.is_none() {
            let duty = options.pace.duty;
            let differing = self.large_objects.differing([&source, &target], zones, begun.generation, duty);
            for (number, kind) in differing.await.map_err(Error::Unready)? {
                progress.differences += 1;
                let key = vec![("oid".into(), number.to_string())];
                happening(Happening::Difference(Difference {
                    table: LARGE_OBJECTS.into(),
                    key,
                    kind,
                    columns: Vec::new(),
                }))?;
            }
        }
        let seen = look().await?;
        lock(&self.known).end(&seen);
        Ok(progress)
    }

    async fn keep_saving(&self) -> std::convert::Infallible {
        let mut news = self.view.subscribe();
        loop {
            drop(news.borrow_and_update());
            save(self.shelf.clone(), self.tell()).await;
            tokio::time::sleep(SAVE_EVERY).await;
            if news.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

/// What is told of a table whose rows were found to differ.
pub(super) const DIFFER: &str = "godwit verify found rows that differ";

/// What mends that.
pub(super) fn mend(resource: &str, table: &str) -> String {
    if table == LARGE_OBJECTS {
        return format!("godwit reseed {resource}, or godwit verify {resource} where they are equal by now");
    }
    format!("{}, or godwit verify {resource} where they are equal by now", reseed_command(resource, table))
}

/// The stream of one generation, in all its lanes.
struct Streaming {
    streams: Arc<Streams>,
    generation: Generation,
}

#[async_trait]
impl Follower for Streaming {
    async fn applied(&self, position: Lsn) -> Result<(), Error> {
        self.streams.applied(self.generation, position).await.map_err(Error::Unready)
    }

    fn lag(&self) -> Option<u64> {
        let (.., status) = self.streams.status(self.generation)?;
        (status.phase == Phase::Streaming).then_some(status.lag_bytes)
    }
}

fn read(file: &Path) -> Result<Option<Kept>, String> {
    match std::fs::read(file) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(chain),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.to_string()),
    }
}

/// Replaces the file, unless a newer one is there; a verification whose state cannot be kept goes on all the same.
async fn save(shelf: Arc<Shelf>, kept: Kept) {
    let mut newest = shelf.newest.lock().await;
    if kept.number <= *newest {
        return;
    }
    *newest = kept.number;
    let file = &shelf.file;
    let partial = file.with_extension("partial");
    let written = match serde_json::to_vec(&kept) {
        Ok(bytes) => async {
            tokio::fs::write(&partial, bytes).await?;
            tokio::fs::rename(&partial, file).await
        }
        .await
        .map_err(chain),
        Err(error) => Err(chain(error)),
    };
    if let Err(why) = written {
        tracing::warn!(file = %file.display(), %why, "where the verification stands cannot be kept");
    }
}

#[cfg(test)]
mod tests {
    use metrics_exporter_prometheus::PrometheusBuilder;

    use super::*;

    pub(super) fn view(state: Standing, tables: &[&str], differences: u64) -> VerificationView {
        VerificationView {
            state,
            request: Request {
                tables: tables.iter().map(|&table| table.to_owned()).collect(),
                ..Request::default()
            },
            generation: 3,
            ended_ms: (state != Standing::Running).then_some(9_000),
            progress: Progress { differences, rows: 5, ..Progress::default() },
            ..VerificationView::default()
        }
    }

    #[tokio::test]
    async fn it_outlives_the_process_and_is_of_one_shadow() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("verification-orders.json");
        let known = Known {
            generation: 3,
            emptied: 1,
            differences: Some(2),
            verified_ms: Some(7),
            ..Known::default()
        };
        let shelf = Arc::new(Shelf { file: file.clone(), newest: tokio::sync::Mutex::new(0) });
        let kept = Kept { view: view(Standing::Done, &["clean"], 0), known: Some(known), number: 2 };
        save(shelf.clone(), kept).await;
        // What was taken before comes late.
        save(shelf, Kept { number: 1, ..Kept::default() }).await;
        let kept = read(&file).expect("readable").expect("there");
        assert_eq!(kept.view, view(Standing::Done, &["clean"], 0));
        let known = kept.known.expect("kept");
        assert_eq!((known.differences, known.verified_ms), (Some(2), Some(7)));
        assert!(known.is_of(3, 0) && !known.is_of(3, 1) && !known.is_of(4, 0));
        let of_before = serde_json::to_vec(&kept.view).expect("written");
        std::fs::write(&file, of_before).expect("written");
        let kept = read(&file).expect("readable").expect("there");
        assert!(kept.known.is_none() && kept.view == view(Standing::Done, &["clean"], 0));
    }

    #[test]
    fn what_is_not_known_is_no_number() {
        let shown = |rows, known: &Known| {
            let recorder = PrometheusBuilder::new().build_recorder();
            metrics::with_local_recorder(&recorder, || telemetry::verification("orders", rows, known));
            recorder.handle().render()
        };
        let nothing = shown(None, &Known::default());
        let all = ["rows", "differences", "completed_timestamp_seconds"];
        for name in all {
            let line = format!("godwit_verification_{name}{{resource=\"orders\"}} NaN");
            assert!(nothing.contains(&line), "{nothing}");
        }
        let known = Known { differences: Some(2), verified_ms: Some(7_000), ..Known::default() };
        let told = shown(Some(5), &known);
        for (name, value) in all.into_iter().zip([5, 2, 7]) {
            let line = format!("godwit_verification_{name}{{resource=\"orders\"}} {value}");
            assert!(told.contains(&line), "{told}");
        }
    }
}
