//! Carries out a verification: table by table, in name order, within its pace.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::sync::watch;
use tokio_postgres::Client;

use super::catalog::{self, Catalog, Table, Way};
use super::pace::Pace;
use super::range::{Key, Range};
use super::reader::{Follower, Reader, gone, too_slow};
use super::report::{ColumnDifference, Difference, Happening, Kind, Progress};
use super::settle::Patience;
use super::sweep;
use super::walk::{Found, Outcome, Read, ReadId, Stride, Walk};
use crate::error::Error;

/// What to verify, and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// Only these tables (`schema.table`, as [`Difference::table`]); `None`: all.
    pub tables: Option<Vec<String>>,
    /// Report the differing values too.
    pub values: bool,
    /// How fast.
    pub pace: Pace,
    /// Rest while the target is further behind, bytes.
    pub max_lag: u64,
    /// Bound of each statement.
    pub statement_timeout: Duration,
    /// How keys are settled.
    pub patience: Patience,
    /// Differing rows of one table after which the rest of it is left alone.
    pub max_differences: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            tables: None,
            values: false,
            pace: Pace::default(),
            max_lag: 16 << 20,
            statement_timeout: Duration::from_secs(60),
            patience: Patience::default(),
            max_differences: 1_000,
        }
    }
}

/// Whether to go on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Go {
    /// Go.
    #[default]
    Run,
    /// Rest between two readings until told otherwise.
    Pause,
}

/// What slows a verification down.
#[derive(Clone)]
pub(super) struct Brakes<'a> {
    options: &'a Options,
    follower: &'a dyn Follower,
    go: watch::Receiver<Go>,
}

impl Brakes<'_> {
    pub(super) fn pace(&self) -> &Pace {
        &self.options.pace
    }

    /// Rests for what is owed, while paused, and while the target is too far behind.
    async fn rest(&self, owed: Duration) -> Result<(), Error> {
        tokio::time::sleep(owed).await;
        let mut go = self.go.clone();
        go.wait_for(|go| *go == Go::Run)
            .await
            .map_err(|_| Error::Link("the verification was ended".into()))?;
        // No lag known: the stream is down, and the next reading waits for it.
        while self.follower.lag().is_some_and(|lag| lag > self.options.max_lag) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }
}

/// A table so small is summed together with others.
const SMALL_ROWS: u64 = 2_000;
/// Tables and rows of one such statement.
const TOGETHER: (usize, u64) = (60, 40_000);
/// Chunks that may be too slow in a row.
const MAX_TOO_SLOW: u32 = 12;

/// Compares two databases between which a stream runs, and tells what is found as it is found. Returns the end's progress.
///
/// `resume`: where an earlier run stood; by default it begins. Each client is one's own: its session settings are changed. An error of
/// `happening` ends it. Dropping the future is safe; a statement under way ends by its timeout.
pub async fn run(
    source: &Client,
    target: &Client,
    follower: &dyn Follower,
    options: &Options,
    resume: Progress,
    go: watch::Receiver<Go>,
    happening: &mut (dyn FnMut(Happening) -> Result<(), Error> + Send),
) -> Result<Progress, Error> {
    let reader = Reader::new(source, target, follower, options.statement_timeout).await?;
    let brakes = Brakes { options, follower, go };
    brakes.rest(Duration::ZERO).await?;
    let (here, there) = tokio::try_join!(catalog::describe(source), catalog::describe(target))?;
    let mut catalog = catalog::pair(here, there);
    if let Some(only) = &options.tables {
        restrict(&mut catalog, only)?;
    }
    let fresh = resume == Progress::default();
    let progress = Progress {
        tables: catalog.tables.len() as u64,
        rows_estimate: catalog.tables.iter().map(|table| table.rows).sum(),
        ..resume
    };
    let mut run = Run { reader: &reader, brakes, options, progress, happening };
    if fresh {
        run.shapes(&catalog)?;
        if options.tables.is_none() {
            run.sequences(source, target).await?;
        }
        run.tell()?;
    }
    let tables = std::mem::take(&mut catalog.tables);
    run.all(&tables).await?;
    run.progress.table = None;
    run.progress.after = None;
    run.progress.tables_done = run.progress.tables;
    run.tell()?;
    Ok(run.progress)
}

fn restrict(catalog: &mut Catalog, only: &[String]) -> Result<(), Error> {
    // `orders` means `public.orders`.
    let wanted: Vec<String> = only
        .iter()
        .map(|name| if name.contains('.') { name.clone() } else { format!("public.{name}") })
        .collect();
    let known = |name: &String| {
        catalog.tables.iter().any(|table| table.name == *name)
            || catalog.only_source.contains(name)
            || catalog.only_target.contains(name)
    };
    if let Some(unknown) = wanted.iter().find(|name| !known(name)) {
        return Err(Error::Unready(format!("there is no table {unknown} whose rows are replicated")));
    }
    catalog.tables.retain(|table| wanted.contains(&table.name));
    catalog.only_source.retain(|name| wanted.contains(name));
    catalog.only_target.retain(|name| wanted.contains(name));
    catalog.columns.retain(|(name, ..)| wanted.contains(name));
    catalog.notes.clear();
    Ok(())
}

struct Run<'a> {
    reader: &'a Reader<'a>,
    brakes: Brakes<'a>,
    options: &'a Options,
    progress: Progress,
    happening: &'a mut (dyn FnMut(Happening) -> Result<(), Error> + Send),
}

impl Run<'_> {
    fn tell(&mut self) -> Result<(), Error> {
        (self.happening)(Happening::Progress(self.progress.clone()))
    }

    fn differs(&mut self, difference: Difference) -> Result<(), Error> {
        self.progress.differences += 1;
        (self.happening)(Happening::Difference(difference))
    }

    fn whole(&mut self, table: &str, kind: Kind, columns: Vec<String>) -> Result<(), Error> {
        let columns = columns.into_iter().map(|name| ColumnDifference { name, values: None }).collect();
        self.differs(Difference { table: table.to_owned(), key: Vec::new(), kind, columns })
    }

    /// Tables and columns that one side lacks.
    fn shapes(&mut self, catalog: &Catalog) -> Result<(), Error> {
        for note in &catalog.notes {
            (self.happening)(Happening::Note(note.clone()))?;
        }
        for name in &catalog.only_source {
            self.whole(name, Kind::TableMissing, Vec::new())?;
        }
        for name in &catalog.only_target {
            self.whole(name, Kind::TableExtra, Vec::new())?;
        }
        for (name, source, target) in &catalog.columns {
            let source = source.iter().map(|column| format!("{column} (source only)"));
            let target = target.iter().map(|column| format!("{column} (target only)"));
            self.whole(name, Kind::ColumnsMissing, source.chain(target).collect())?;
        }
        Ok(())
    }

    /// Sequences do not travel with the stream: a cutover sets the target's to the source's. So the target must have each of
    /// them, and a value beyond the source's is worth knowing: somebody took numbers there.
    async fn sequences(&mut self, source: &Client, target: &Client) -> Result<(), Error> {
        let installed = "SELECT to_regprocedure('godwit.sequence_states()') IS NOT NULL";
        for client in [source, target] {
            let found = super::reader::ask(client, installed, "cannot look for schema godwit").await?;
            if found.first().and_then(|row| row.get(0)) != Some("t") {
                return (self.happening)(Happening::Note(
                    "sequences are not compared: schema godwit is not installed on both sides".into(),
                ));
            }
        }
        let (here, there) = tokio::try_join!(crate::sequences::read(source), crate::sequences::read(target))?;
        let mut there: BTreeMap<_, _> =
            there.into_iter().map(|state| ((state.schema.clone(), state.name.clone()), state)).collect();
        for state in here {
            let name = format!("{}.{}", state.schema, state.name);
            match there.remove(&(state.schema.clone(), state.name.clone())) {
                None => self.whole(&name, Kind::SequenceMissing, Vec::new())?,
                Some(other) if other.last_value > state.last_value => {
                    (self.happening)(Happening::Note(format!(
                        "sequence {name} is at {} on the target and at {} on the source: a cutover sets it back",
                        other.last_value, state.last_value
                    )))?;
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    async fn all(&mut self, tables: &[Table]) -> Result<(), Error> {
        let start = match self.progress.table.clone() {
            Some(table) => tables.partition_point(|other| other.name < table),
            None => 0,
        };
        let mut after = self.progress.after.take();
        if tables.get(start).map(|table| &table.name) != self.progress.table.as_ref() {
            // The table under way is gone.
            after = None;
        }
        let mut next = start;
        while let Some(table) = tables.get(next) {
            self.progress.tables_done = next as u64;
            self.progress.table = Some(table.name.clone());
            self.progress.after.clone_from(&after);
            self.tell()?;
            let small = if after.is_none() { small_tables(&tables[next..]) } else { 0 };
            let dirty = match small {
                0 | 1 => vec![table],
                _ => self.together(&tables[next..next + small]).await?,
            };
            for table in dirty {
                self.one(table, after.take()).await?;
            }
            next += small.max(1);
        }
        Ok(())
    }

    /// Sums small tables in one statement; returns those to look at by themselves.
    async fn together<'t>(&mut self, tables: &'t [Table]) -> Result<Vec<&'t Table>, Error> {
        let range = Range::default();
        let pairs: Vec<(&Table, &Range)> = tables.iter().map(|table| (table, &range)).collect();
        let (sums, took) = match self.reader.sums(&pairs).await {
            Ok(found) => found,
            // One of them is gone or larger than was thought.
            Err(error) if gone(&error) || too_slow(&error) => return Ok(tables.iter().collect()),
            Err(error) => return Err(error),
        };
        let mut dirty = Vec::new();
        let mut rows = 0;
        for (table, (source, target)) in tables.iter().zip(sums) {
            if source == target {
                rows += source.rows;
            } else {
                dirty.push(table);
            }
        }
        self.progress.rows += rows;
        self.brakes.rest(self.options.pace.rest(rows, took)).await?;
        Ok(dirty)
    }

    /// One table; one that is dropped meanwhile is no error.
    async fn one(&mut self, table: &Table, after: Option<Key>) -> Result<(), Error> {
        let before = self.progress.differences;
        let result = match table.way {
            Way::Ordered => self.walk(table, Walk::new(self.stride(), after)).await,
            Way::Buckets | Way::Multiset => match sweep::sweep(self.reader, table, &self.brakes).await {
                Ok(swept) => {
                    self.progress.rows += swept.rows;
                    let mut stride = self.stride();
                    if table.way == Way::Multiset {
                        stride.patience = stride.patience.of_several();
                    }
                    self.walk(table, Walk::of_keys(stride, swept.keys)).await
                }
                Err(error) => Err(error),
            },
        };
        match result {
            Err(error) if gone(&error) => {
                self.progress.differences = before;
                self.vanished(table).await
            }
            other => other,
        }
    }

    /// A table or a column of it was dropped during the run: on both sides, or on one?
    async fn vanished(&mut self, table: &Table) -> Result<(), Error> {
        use super::range::Side;
        let has = async |side: Side| {
            let client = self.reader.side(side).lock().await;
            let sql = format!("SELECT to_regclass({}) IS NOT NULL", crate::fence::literal(&table.name));
            let found = super::reader::ask(*client, &sql, "cannot look for a table").await?;
            Ok::<_, Error>(found.first().and_then(|row| row.get(0)) == Some("t"))
        };
        match (has(Side::Source).await?, has(Side::Target).await?) {
            (false, false) => (self.happening)(Happening::Note(format!("{} was dropped", table.name))),
            (true, false) => self.whole(&table.name, Kind::TableMissing, Vec::new()),
            (false, true) => self.whole(&table.name, Kind::TableExtra, Vec::new()),
            (true, true) => self.whole(&table.name, Kind::ColumnsMissing, Vec::new()),
        }
    }

    fn stride(&self) -> Stride {
        let mut stride = Stride { patience: self.options.patience, ..Stride::default() };
        if let Some(rate) = self.options.pace.rows_per_second {
            stride.chunk = stride.chunk.min((rate / 2).max(1));
        }
        stride
    }

    /// Reads what the walk wants until it is done.
    async fn walk(&mut self, table: &Table, mut walk: Walk) -> Result<(), Error> {
        let reader = self.reader;
        let values = self.options.values;
        // All readings go through here: one that is not polled may hold a connection that another waits for.
        let mut reading: FuturesUnordered<BoxFuture<'_, Result<Step, Error>>> = FuturesUnordered::new();
        let (mut found_here, mut unreported) = (0_u64, 0_u64);
        let mut slow = 0;
        // Rests do not hold up the readings that are under way: their time would be taken for the databases'.
        let brakes = self.brakes.clone();
        let mut owed = Duration::ZERO;
        let mut resting: Option<BoxFuture<'_, Result<(), Error>>> = None;
        let mut reported: BTreeSet<Key> = BTreeSet::new();
        loop {
            if resting.is_none() && !owed.is_zero() {
                resting = Some(Box::pin(brakes.rest(std::mem::take(&mut owed))));
            }
            while resting.is_none()
                && let Some((id, read)) = walk.poll()
            {
                reading.push(Box::pin(read_walk(reader, table, id, read)));
            }
            let step = tokio::select! {
                biased;
                Some(step) = reading.next() => step?,
                Some(rested) = rest(&mut resting) => {
                    rested?;
                    resting = None;
                    continue;
                }
                else => return Ok(()),
            };
            let (id, found, took, summed) = match step {
                Step::Read { id, found, took, summed } => (id, found, took, summed),
                Step::Report { key, kind, columns } => {
                    unreported -= 1;
                    if !reported.insert(key.clone()) {
                        continue;
                    }
                    self.report(table, key, kind, columns)?;
                    found_here += 1;
                    if found_here < self.options.max_differences {
                        continue;
                    }
                    return (self.happening)(Happening::Note(format!(
                        "{}: {found_here} rows differ; the rest of the table was left alone",
                        table.name
                    )));
                }
            };
            slow = if found == Found::TooSlow { slow + 1 } else { 0 };
            if slow > MAX_TOO_SLOW {
                return Err(Error::Unready(format!(
                    "{}: even few rows take longer than the statement timeout of {} s",
                    table.name,
                    self.options.statement_timeout.as_secs()
                )));
            }
            let mut rows = 0;
            for outcome in walk.handle(id, found) {
                match outcome {
                    Outcome::Rows(counted) => rows += counted,
                    Outcome::Settled(key, verdict) => {
                        if let Some(kind) = Kind::of(verdict) {
                            unreported += 1;
                            reading.push(Box::pin(describe(reader, table, key, kind, values)));
                        }
                    }
                }
            }
            if rows > 0 {
                self.progress.rows += rows;
                walk.set_chunk_rows(self.options.pace.next_rows(rows, took));
            }
            // What lies before a key that is still to be reported is not done.
            if summed && unreported == 0 {
                self.progress.after = walk.done_until().cloned();
                self.tell()?;
            }
            if summed {
                // A pause or a lag is looked at even where nothing is owed.
                owed += self.options.pace.rest(rows, took).max(Duration::from_micros(1));
            }
        }
    }

    fn report(
        &mut self,
        table: &Table,
        key: Key,
        kind: Kind,
        columns: Vec<ColumnDifference>,
    ) -> Result<(), Error> {
        let names: Vec<String> = match table.way {
            Way::Multiset => vec!["row hash".into()],
            _ => table.key.iter().map(|column| column.name.clone()).collect(),
        };
        let key = names.into_iter().zip(key).collect();
        self.differs(Difference { table: table.name.clone(), key, kind, columns })
    }
}

/// Something that a walk awaited.
enum Step {
    Read { id: ReadId, found: Found, took: Duration, summed: bool },
    Report { key: Key, kind: Kind, columns: Vec<ColumnDifference> },
}

async fn read_walk(reader: &Reader<'_>, table: &Table, id: ReadId, read: Read) -> Result<Step, Error> {
    if let Read::Keys(ask) = &read {
        // What moved needs a moment; what moves all the time is not worth a hot loop.
        let pause = 5_u64.saturating_mul(1 << ask.round.min(5));
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }
    let (found, took) = reader.read(table, &read).await?;
    Ok(Step::Read { id, found, took, summed: matches!(read, Read::Sums(_)) })
}

/// Ends with the rest; `None`: there is none.
async fn rest(resting: &mut Option<BoxFuture<'_, Result<(), Error>>>) -> Option<Result<(), Error>> {
    Some(resting.as_mut()?.await)
}

/// Which columns of a row differ.
async fn describe(
    reader: &Reader<'_>,
    table: &Table,
    mut key: Key,
    kind: Kind,
    values: bool,
) -> Result<Step, Error> {
    let mut columns = Vec::new();
    if kind == Kind::Changed {
        let (named, [source, target]) = reader.columns(table, &key, values).await?;
        key = named;
        for (column, (here, there)) in table.columns.iter().zip(source.into_iter().zip(target)) {
            if here.0 != there.0 {
                let values = values.then_some((here.1, there.1));
                columns.push(ColumnDifference { name: column.name.clone(), values });
            }
        }
    }
    Ok(Step::Report { key, kind, columns })
}

/// How many of the next tables are summed in one statement.
fn small_tables(tables: &[Table]) -> usize {
    let mut rows = 0;
    tables
        .iter()
        .take(TOGETHER.0)
        .take_while(|table| {
            rows += table.rows;
            // Without a key a small table is summed all the same; its rows are settled by itself.
            table.rows <= SMALL_ROWS && rows <= TOGETHER.1 && !table.large
        })
        .count()
}
