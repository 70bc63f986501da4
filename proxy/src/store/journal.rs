//! The journal: what the machine decided, before anything of it is done.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use migration::cutover::{Outcome, Phase, State};
use migration::policy::ReplicationMode;
use migration::units::{Generation, Timestamp, Zone};
use migration::world::Undone;
use rusqlite::{Connection, OptionalExtension, params};
use sha2::{Digest, Sha256};

use super::notes::RetirementRow;
use super::record;
use crate::audit::chain::hex;
use crate::controller::modes::ModeChange;
use crate::lock::lock;

/// The store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// SQLite refused.
    #[error("state database {path}")]
    Database {
        /// The file.
        path: PathBuf,
        /// Why.
        source: rusqlite::Error,
    },
    /// The directory cannot be made.
    #[error("state directory {path}")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is another user's, or may not be written.
    #[error(
        "state database {path} cannot be written: it belongs to user {owner}, and this process is of user {user}; {advice}"
    )]
    ReadOnly {
        /// The file.
        path: PathBuf,
        /// The number of the user whose it is.
        owner: u32,
        /// The number of this process' user.
        user: u32,
        /// What to do about it.
        advice: String,
    },
    /// Another process has it.
    #[error("state database {path} is in use: another godwit runs on this state directory")]
    Locked {
        /// The file.
        path: PathBuf,
    },
    /// A record cannot be trusted.
    #[error("journal record {sequence} of {resource} is damaged: {why}")]
    Damaged {
        /// Its number.
        sequence: i64,
        /// The resource.
        resource: String,
        /// What is wrong.
        why: String,
    },
    /// A state cannot be written down.
    #[error("journal record cannot be encoded")]
    Encode(#[source] serde_json::Error),
}

/// One record, for timelines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JournalRow {
    /// Number, ascending.
    pub sequence: i64,
    /// When.
    pub at: Timestamp,
    /// The phase entered or kept.
    pub phase: String,
    /// The event that led to it.
    pub event: String,
}

/// One migration of the history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunRow {
    /// Its id.
    pub id: String,
    /// The resource.
    pub resource: String,
    /// Old primary.
    pub from: String,
    /// New primary.
    pub to: String,
    /// `score`, the operator's name, or `failures: ` and what failed.
    pub trigger: String,
    /// The generation it committed or tried to.
    pub generation: u64,
    /// When it was accepted.
    pub started: Timestamp,
    /// When it ended.
    pub ended: Option<Timestamp>,
    /// `retired`, `superseded`, `aborted`; none while it runs.
    pub outcome: Option<String>,
    /// Why it was aborted, or ended without its old primary being retired or being one any more.
    pub reason: Option<String>,
    /// When it was committed.
    pub committed: Option<Timestamp>,
    /// How long the gate was closed, milliseconds.
    pub held_ms: Option<u64>,
    /// The end marker's position.
    pub fence: Option<u64>,
    /// Both sides were compared: equal or not.
    pub verified: Option<bool>,
    /// What was compared, in words.
    pub comparison: Option<String>,
    /// The decision that started it, JSON.
    pub decision: Option<String>,
}

/// The end of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended<'a> {
    /// Its id.
    pub run: &'a str,
    /// How.
    pub outcome: &'a Outcome,
    /// The old primary that is to be given back.
    pub retirement: Option<&'a RetirementRow>,
}

/// Commits of a resource since a moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Commits {
    /// Their moments, the oldest first.
    pub recent: Vec<Timestamp>,
    /// The newest of all.
    pub last: Option<Timestamp>,
    /// What was begun after that and undone, since the moment.
    pub undone: Undone,
}

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS journal (
  sequence INTEGER PRIMARY KEY AUTOINCREMENT,
  at_ms INTEGER NOT NULL,
  resource TEXT NOT NULL,
  run TEXT,
  phase TEXT NOT NULL,
  event TEXT NOT NULL,
  state TEXT NOT NULL,
  checksum TEXT NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS journal_by_resource ON journal (resource, sequence);
CREATE INDEX IF NOT EXISTS journal_by_run ON journal (run, sequence) WHERE run IS NOT NULL;
CREATE TABLE IF NOT EXISTS run (
  id TEXT PRIMARY KEY,
  resource TEXT NOT NULL,
  from_zone TEXT NOT NULL,
  to_zone TEXT NOT NULL,
  trigger TEXT NOT NULL,
  generation INTEGER NOT NULL,
  started_ms INTEGER NOT NULL,
  ended_ms INTEGER,
  outcome TEXT,
  reason TEXT,
  committed_ms INTEGER,
  held_ms INTEGER,
  fence INTEGER,
  verified INTEGER,
  comparison TEXT,
  decision TEXT
) STRICT;
CREATE INDEX IF NOT EXISTS run_by_start ON run (started_ms);
CREATE TABLE IF NOT EXISTS mode (
  sequence INTEGER PRIMARY KEY AUTOINCREMENT,
  at_ms INTEGER NOT NULL,
  resource TEXT NOT NULL,
  mode TEXT NOT NULL,
  why TEXT NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS mode_by_resource ON mode (resource, sequence);
";

/// What to do after each record, for tests that kill the process right there; nothing unless set. It hears of the state, and whether
/// the record ended a run.
pub static AFTER_APPEND: std::sync::OnceLock<fn(&State, bool)> = std::sync::OnceLock::new();

/// The open store.
pub struct Journal {
    path: PathBuf,
    connection: Mutex<Connection>,
}

impl Journal {
    /// Opens or creates `godwit.db` in `directory`.
    pub fn open(directory: &Path) -> Result<Self, StoreError> {
        std::fs::create_dir_all(directory)
            .map_err(|source| StoreError::Directory { path: directory.to_owned(), source })?;
        let path = directory.join("godwit.db");
        let prepare = || -> rusqlite::Result<Connection> {
            let mut connection = Connection::open(&path)?;
            connection.busy_timeout(std::time::Duration::from_secs(5))?;
            connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
            connection.pragma_update(None, "journal_mode", "WAL")?;
            connection.pragma_update(None, "synchronous", "FULL")?;
            connection.execute_batch(SCHEMA)?;
            super::notes::prepare(&mut connection)?;
            Ok(connection)
        };
        match prepare() {
            Ok(connection) => Ok(Self { path, connection: Mutex::new(connection) }),
            Err(source) if source.sqlite_error_code() == Some(rusqlite::ErrorCode::DatabaseBusy) => {
                Err(StoreError::Locked { path })
            }
            Err(source) => Err(StoreError::Database { path, source }),
        }
    }

    pub(super) fn connection(&self) -> MutexGuard<'_, Connection> {
        lock(&self.connection)
    }

    pub(super) fn database(&self) -> impl FnOnce(rusqlite::Error) -> StoreError + '_ {
        |source| StoreError::Database { path: self.path.clone(), source }
    }

    /// Writes `state` and returns when it is on disk. A run's first record also opens its line in the history, its
    /// commit and verification complete it, and the record that ends runs closes them and notes what is to be given back: in the same
    /// transaction. No crash leaves a run that goes on for ever, or an old primary.
    pub fn append<'e>(
        &self,
        state: &State,
        event: &str,
        at: Timestamp,
        ended: impl IntoIterator<Item = Ended<'e>>,
    ) -> Result<(), StoreError> {
        let ended: Vec<_> = ended.into_iter().collect();
        let text = record::encode(state).map_err(StoreError::Encode)?;
        let write = || {
            let mut connection = self.connection();
            let transaction = connection.transaction()?;
            transaction
                .prepare_cached(
                    "INSERT INTO journal (at_ms, resource, run, phase, event, state, checksum) VALUES (?, ?, ?, ?, ?, ?, ?)",
                )?
                .execute(params![
                    at.0,
                    state.resource,
                    state.run.as_ref().map(|run| &run.id),
                    state.phase.name(),
                    event,
                    text,
                    checksum(&text)
                ])?;
            if let Some(run) = &state.run {
                let trigger = run.trigger.to_string();
                let committed = state.phase.past_commit().then_some(at.0);
                transaction
                    .prepare_cached(
                        "INSERT INTO run (id, resource, from_zone, to_zone, trigger, generation, started_ms, committed_ms)
                         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
                         ON CONFLICT (id) DO UPDATE SET committed_ms = coalesce(committed_ms, ?8),
                           fence = coalesce(?9, fence)",
                    )?
                    .execute(params![
                        run.id,
                        state.resource,
                        run.from.to_string(),
                        run.to.to_string(),
                        trigger,
                        run.generation.0,
                        run.started.0,
                        committed,
                        run.fence.map(|position| position.0)
                    ])?;
            }
            ended.iter().try_for_each(|ended| close(&transaction, ended, at))?;
            transaction.commit()
        };
        write().map_err(self.database())?;
        if let Some(hook) = AFTER_APPEND.get() {
            hook(state, !ended.is_empty());
        }
        Ok(())
    }

    /// The last state of a resource, if it has one.
    pub fn latest(&self, resource: &str) -> Result<Option<State>, StoreError> {
        let row = self
            .connection()
            .query_row(
                "SELECT sequence, state, checksum FROM journal WHERE resource = ? ORDER BY sequence DESC LIMIT 1",
                [resource],
                |row| Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?, row.get::<_, String>(2)?)),
            )
            .optional()
            .map_err(self.database())?;
        let Some((sequence, text, sum)) = row else { return Ok(None) };
        let damaged = |why: String| StoreError::Damaged { sequence, resource: resource.to_owned(), why };
        if checksum(&text) != sum {
            return Err(damaged("its checksum does not match".into()));
        }
        record::decode(&text).map(Some).map_err(damaged)
    }

    /// The last state of each resource that has a shadow by it, or a migration under way, by name.
    pub fn kept(&self) -> Result<Vec<State>, StoreError> {
        let names = || -> rusqlite::Result<Vec<String>> {
            let connection = self.connection();
            let sql = "SELECT resource FROM journal WHERE sequence IN (SELECT max(sequence) FROM journal GROUP BY resource) \
                       AND phase <> ? ORDER BY resource";
            let mut statement = connection.prepare_cached(sql)?;
            statement.query_map([Phase::Idle.name()], |row| row.get(0))?.collect()
        };
        let names = names().map_err(self.database())?;
        names.iter().filter_map(|name| self.latest(name).transpose()).collect()
    }

    /// Forgets where a resource stands, if it still stands there with no migration: the databases of its two zones are to be asked anew. False: it does
    /// not.
    pub fn forget(&self, state: &State) -> Result<bool, StoreError> {
        let stands = |now: &State| now.generation == state.generation && now.run.is_none();
        if !self.latest(&state.resource)?.as_ref().is_some_and(stands) {
            return Ok(false);
        }
        let write = || {
            let mut connection = self.connection();
            let transaction = connection.transaction()?;
            transaction.execute("DELETE FROM journal WHERE resource = ?", [&state.resource])?;
            // Of no generation: which of them serves is what is not known.
            transaction.execute(
                "INSERT OR REPLACE INTO placed (resource, primary_zone, shadow_zone, generation) VALUES (?, ?, ?, 0)",
                params![state.resource, &*state.primary.0, &*state.shadow.0],
            )?;
            transaction.commit()
        };
        write().map(|()| true).map_err(self.database())
    }

    /// The records of a run, oldest first.
    pub fn timeline(&self, run: &str) -> Result<Vec<JournalRow>, StoreError> {
        let read = || {
            let connection = self.connection();
            let mut statement = connection.prepare_cached(
                "SELECT sequence, at_ms, phase, event FROM journal WHERE run = ? ORDER BY sequence",
            )?;
            let rows = statement.query_map([run], |row| {
                Ok(JournalRow {
                    sequence: row.get(0)?,
                    at: Timestamp(row.get(1)?),
                    phase: row.get(2)?,
                    event: row.get(3)?,
                })
            })?;
            rows.collect::<rusqlite::Result<Vec<_>>>()
        };
        read().map_err(self.database())
    }

    /// How long the gate was closed for a run.
    pub fn note_hold(&self, id: &str, held_ms: u64) -> Result<(), StoreError> {
        self.execute("UPDATE run SET held_ms = ?2 WHERE id = ?1", params![id, held_ms])
    }

    /// What comparing both sides found.
    pub fn note_comparison(&self, id: &str, equal: bool, comparison: &str) -> Result<(), StoreError> {
        self.execute(
            "UPDATE run SET verified = ?2, comparison = ?3 WHERE id = ?1",
            params![id, equal, comparison],
        )
    }

    /// The decision that started a run.
    pub fn note_decision(&self, id: &str, decision: &str) -> Result<(), StoreError> {
        self.execute("UPDATE run SET decision = ?2 WHERE id = ?1", params![id, decision])
    }

    /// The replication mode changed.
    pub fn note_mode(&self, resource: &str, change: &ModeChange) -> Result<(), StoreError> {
        self.execute(
            "INSERT INTO mode (at_ms, resource, mode, why) VALUES (?, ?, ?, ?)",
            params![change.at.0, resource, change.mode.name(), change.why],
        )
    }

    /// The newest changes of the replication mode, oldest first.
    pub fn modes(&self, resource: &str, limit: u32) -> Result<Vec<ModeChange>, StoreError> {
        let read = || {
            let connection = self.connection();
            let mut statement = connection.prepare_cached(
                "SELECT at_ms, mode, why FROM mode WHERE resource = ? ORDER BY sequence DESC LIMIT ?",
            )?;
            let rows = statement.query_map(params![resource, limit], |row| {
                let mode = ReplicationMode::from_name(&row.get::<_, String>(1)?);
                Ok(ModeChange {
                    at: Timestamp(row.get(0)?),
                    mode: mode.unwrap_or(ReplicationMode::Async),
                    why: row.get(2)?,
                })
            })?;
            let mut changes = rows.collect::<rusqlite::Result<Vec<_>>>()?;
            changes.reverse();
            Ok(changes)
        };
        read().map_err(self.database())
    }

    fn execute(&self, sql: &str, values: impl rusqlite::Params) -> Result<(), StoreError> {
        self.connection().execute(sql, values).map(drop).map_err(self.database())
    }

    /// Runs, newest first, of one resource or of all.
    pub fn runs(&self, resource: Option<&str>, limit: u32) -> Result<Vec<RunRow>, StoreError> {
        self.read_runs("WHERE ?1 IS NULL OR resource = ?1", params![resource, limit])
    }

    /// The same of these resources.
    pub fn runs_of(&self, resources: &BTreeSet<String>, limit: u32) -> Result<Vec<RunRow>, StoreError> {
        let names = serde_json::to_string(resources).map_err(StoreError::Encode)?;
        self.read_runs("WHERE resource IN (SELECT value FROM json_each(?1))", params![names, limit])
    }

    /// One run.
    pub fn run(&self, id: &str) -> Result<Option<RunRow>, StoreError> {
        Ok(self.read_runs("WHERE id = ?1", params![id, 1])?.pop())
    }

    /// Whether this zone was the primary, and was lost when this generation was made, and was not seeded anew since.
    pub fn is_lost(&self, resource: &str, zone: &Zone, generation: Generation) -> Result<bool, StoreError> {
        self.connection()
            .query_row(
                "SELECT count(*) FROM run WHERE resource = ?1 AND from_zone = ?2 AND generation = ?3
                 AND outcome = 'taken_over' AND reason IS NULL",
                params![resource, &*zone.0, generation.0],
                |row| Ok(row.get::<_, u64>(0)? > 0),
            )
            .map_err(self.database())
    }

    /// The shadow of this generation was seeded anew: nothing of a lost primary is left in it.
    pub fn note_seeded(&self, resource: &str, generation: Generation) -> Result<(), StoreError> {
        self.connection()
            .execute(
                "UPDATE run SET reason = 'the old primary was seeded anew since'
                 WHERE resource = ?1 AND generation = ?2 AND outcome = 'taken_over'",
                params![resource, generation.0],
            )
            .map(drop)
            .map_err(self.database())
    }

    /// Commits of a resource since a moment, and the newest of all.
    pub fn commits_since(&self, resource: &str, since: Timestamp) -> Result<Commits, StoreError> {
        let read = || {
            let connection = self.connection();
            let mut select = connection.prepare_cached(
                "SELECT committed_ms FROM run WHERE resource = ?1 AND committed_ms >= ?2 ORDER BY committed_ms",
            )?;
            let recent = select.query_map(params![resource, since.0], |row| Ok(Timestamp(row.get(0)?)))?;
            let recent = recent.collect::<rusqlite::Result<_>>()?;
            connection.query_row(
                "SELECT max(committed_ms), count(*) FILTER (WHERE undone), max(ended_ms) FILTER (WHERE undone)
                 FROM (SELECT *, outcome = 'aborted' AND ended_ms >= ?2 AND started_ms >
                         (SELECT coalesce(max(committed_ms), 0) FROM run WHERE resource = ?1) AS undone
                       FROM run WHERE resource = ?1)",
                params![resource, since.0],
                |row| {
                    let moment = |at: usize| row.get::<_, Option<u64>>(at).map(|at| at.map(Timestamp));
                    let undone = Undone { count: row.get(1)?, last: moment(2)? };
                    Ok(Commits { recent, last: moment(0)?, undone })
                },
            )
        };
        read().map_err(self.database())
    }

    fn read_runs(&self, filter: &str, values: impl rusqlite::Params) -> Result<Vec<RunRow>, StoreError> {
        let read = || {
            let connection = self.connection();
            let mut statement = connection.prepare_cached(&format!(
                "SELECT id, resource, from_zone, to_zone, trigger, generation, started_ms, ended_ms, outcome, reason,
                 committed_ms, held_ms, fence, verified, comparison, decision FROM run {filter}
                 ORDER BY started_ms DESC, id DESC LIMIT ?2"
            ))?;
            let rows = statement.query_map(values, |row| {
                Ok(RunRow {
                    id: row.get(0)?,
                    resource: row.get(1)?,
                    from: row.get(2)?,
                    to: row.get(3)?,
                    trigger: row.get(4)?,
                    generation: row.get(5)?,
                    started: Timestamp(row.get(6)?),
                    ended: row.get::<_, Option<u64>>(7)?.map(Timestamp),
                    outcome: row.get(8)?,
                    reason: row.get(9)?,
                    committed: row.get::<_, Option<u64>>(10)?.map(Timestamp),
                    held_ms: row.get(11)?,
                    fence: row.get(12)?,
                    verified: row.get(13)?,
                    comparison: row.get(14)?,
                    decision: row.get(15)?,
                })
            })?;
            rows.collect::<rusqlite::Result<Vec<_>>>()
        };
        read().map_err(self.database())
    }
}

/// Ends a run in the history.
fn close(connection: &Connection, ended: &Ended<'_>, at: Timestamp) -> rusqlite::Result<()> {
    let reason = match ended.outcome {
        Outcome::Retired | Outcome::Superseded | Outcome::TakenOver => None,
        Outcome::Aborted(why) => Some(why.as_str()),
    };
    connection
        .prepare_cached(
            "UPDATE run SET outcome = ?2, reason = ?3, ended_ms = ?4 WHERE id = ?1 AND outcome IS NULL",
        )?
        .execute(params![ended.run, ended.outcome.name(), reason, at.0])?;
    ended.retirement.map_or(Ok(()), |row| super::notes::retire(connection, row))
}

fn checksum(text: &str) -> String {
    hex(&Sha256::digest(text.as_bytes()))
}

#[cfg(test)]
mod tests {
    use migration::cutover::{Event, Limits, Phase, Trigger, step};
    use migration::policy::{Policy, PolicyParts};

    use super::*;

    fn walk(journal: &Journal) -> State {
        let policy = Policy::new(PolicyParts::default()).expect("the default is valid");
        let mut state = State::first("orders", "a".into(), "b".into(), Timestamp(1));
        let events = [
            Event::ShadowEnabled,
            Event::StreamUp,
            Event::MigrateRequested {
                id: "m1".into(),
                to: "b".into(),
                trigger: Trigger::Operator("ann".into()),
                limits: Limits::of(&policy),
            },
            Event::ShadowScaled,
        ];
        for (index, event) in events.into_iter().enumerate() {
            let name = event.name();
            let at = Timestamp(10 + index as u64);
            state = step(&state, event, at).expect("the straight road").0;
            journal.append(&state, name, at, None).expect("append");
        }
        state
    }

    #[test]
    fn a_reopened_journal_has_the_last_state_and_the_runs() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let state = {
            let journal = Journal::open(directory.path()).expect("open");
            walk(&journal)
        };
        let journal = Journal::open(directory.path()).expect("open again");
        assert_eq!(journal.latest("orders").expect("read").as_ref(), Some(&state));
        for trigger in [Trigger::Score, Trigger::Failures("9 of 9".into())] {
            let mut state = state.clone();
            state.run.as_mut().expect("a run").trigger = trigger;
            assert_eq!(record::decode(&record::encode(&state).expect("text")), Ok(state));
        }
        assert_eq!(journal.latest("other").expect("read"), None);
        let phases: Vec<String> =
            journal.timeline("m1").expect("read").into_iter().map(|row| row.phase).collect();
        assert_eq!(phases, [Phase::Requested.name(), Phase::Warm.name()]);
        let row =
            RetirementRow { resource: "orders".into(), zone: "a".into(), run: "m1".into(), done: false };
        let outcome = Outcome::Aborted("tested".into());
        let ended = Ended { run: "m1", outcome: &outcome, retirement: Some(&row) };
        let state = State { run: None, ..journal.latest("orders").expect("read").expect("a state") };
        journal.append(&state, "GateOpened", Timestamp(99), Some(ended)).expect("written");
        let run = journal.run("m1").expect("read").expect("the run");
        assert_eq!((run.trigger.as_str(), run.outcome.as_deref()), ("ann", Some("aborted")));
        assert_eq!((run.reason.as_deref(), run.ended), (Some("tested"), Some(Timestamp(99))));
        assert_eq!(journal.retirement("orders").expect("read"), Some(row));
        let since = |at| journal.commits_since("orders", Timestamp(at)).expect("read");
        let undone = Undone { count: 1, last: Some(Timestamp(99)) };
        assert_eq!(since(0), Commits { undone, ..Commits::default() });
        assert_eq!(since(100), Commits::default(), "long ago");
        let commit = "INSERT INTO run (id, resource, from_zone, to_zone, trigger, generation, started_ms, committed_ms)
            SELECT ?1, resource, from_zone, to_zone, trigger, generation, started_ms, ?1 FROM run WHERE id = 'm1'";
        for at in [300, 100, 200] {
            journal.connection().execute(commit, [at]).expect("written");
        }
        let recent = [200, 300].map(Timestamp).to_vec();
        assert_eq!(since(101), Commits { recent, last: Some(Timestamp(300)), undone: Undone::default() });
    }

    #[test]
    fn a_way_back_and_the_soak_before_it_are_in_one_record_and_end_with_one() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let journal = Journal::open(directory.path()).expect("open");
        let mut state = walk(&journal);
        let limits = state.run.as_ref().expect("a run").limits;
        let at = Timestamp(20);
        let back =
            Event::MigrateRequested { id: "m2".into(), to: "a".into(), trigger: Trigger::Score, limits };
        let events = [
            Event::ReverseSlotMade,
            Event::GuardsPassed,
            Event::GateClosed,
            Event::DrainFinished,
            Event::FenceUp { marker: migration::units::Position(7) },
            Event::MarkerApplied,
            Event::SequencesSet,
            Event::ReverseSlotMade,
            Event::FenceLifted,
            Event::PoolSwapped,
            Event::GateOpened,
            Event::StreamUp,
            Event::OldStreamGone,
            back,
        ];
        for event in events {
            let name = event.name();
            state = step(&state, event, at).expect("there, and back").0;
            journal.append(&state, name, at, None).expect("append");
        }
        assert!(state.soaking.is_some());
        assert_eq!(journal.latest("orders").expect("read").as_ref(), Some(&state));
        let outcome = |id| journal.run(id).expect("read").expect("the run").outcome;
        assert_eq!(["m1", "m2"].map(outcome), [None, None]);
        // It is undone, and the shadow takes over.
        let ends = [("m1", Outcome::Superseded), ("m2", Outcome::Aborted(String::new()))];
        let ended = ends.iter().map(|(run, outcome)| Ended { run, outcome, retirement: None });
        journal.append(&state, "TakeOverRequested", at, ended).expect("append");
        assert_eq!(["m1", "m2"].map(outcome), ["superseded", "aborted"].map(|name| Some(name.into())));
    }

    #[test]
    fn a_damaged_record_is_named_not_trusted() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let journal = Journal::open(directory.path()).expect("open");
        walk(&journal);
        journal
            .connection()
            .execute(
                "UPDATE journal SET state = replace(state, '\"primary\":\"a\"', '\"primary\":\"b\"')",
                [],
            )
            .expect("tamper");
        assert!(matches!(journal.latest("orders"), Err(StoreError::Damaged { .. })));
    }

    #[test]
    fn where_the_databases_are_is_known_when_who_serves_is_forgotten() {
        let directory = tempfile::tempdir().unwrap();
        let journal = Journal::open(directory.path()).unwrap();
        let now = Timestamp(10);
        let state = State {
            generation: Generation(2),
            ..State::first("orders", Zone::from("far"), Zone::from("near"), now)
        };
        journal.append(&state, "Adopted", now, None).unwrap();
        assert!(journal.forget(&state).unwrap());
        assert_eq!(journal.latest("orders").unwrap(), None);
        let placed = journal.placed("orders").unwrap().unwrap();
        assert_eq!((&*placed.primary, &*placed.shadow, placed.generation), ("far", "near", 0));
        assert!(!journal.forget(&state).unwrap());
    }

    #[test]
    fn two_processes_cannot_share_it() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let first = Journal::open(directory.path()).expect("open");
        walk(&first);
        let second = Connection::open(directory.path().join("godwit.db")).expect("a second connection");
        let refused = second.query_row("SELECT count(*) FROM journal", [], |row| row.get::<_, i64>(0));
        assert!(refused.is_err(), "the exclusive lock must keep others out");
    }
}
