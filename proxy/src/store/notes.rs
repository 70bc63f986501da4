//! What people decided (freezes, approvals) and what moves were worth (the ledger), beside the journal.

use migration::units::Timestamp;
use rusqlite::{Connection, params};

use super::journal::{Journal, StoreError};

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS freeze (
  scope TEXT NOT NULL,
  by_whom TEXT NOT NULL,
  why TEXT NOT NULL,
  at_ms INTEGER NOT NULL,
  until_ms INTEGER,
  PRIMARY KEY (scope, by_whom)
) STRICT;
CREATE TABLE IF NOT EXISTS proposal (
  id TEXT PRIMARY KEY,
  resource TEXT NOT NULL,
  to_zone TEXT NOT NULL,
  at_ms INTEGER NOT NULL,
  expires_ms INTEGER NOT NULL,
  decision TEXT NOT NULL,
  ended TEXT,
  ended_ms INTEGER,
  ended_by TEXT
) STRICT;
CREATE INDEX IF NOT EXISTS proposal_by_resource ON proposal (resource, at_ms);
CREATE TABLE IF NOT EXISTS approval (
  proposal TEXT NOT NULL,
  person TEXT NOT NULL,
  at_ms INTEGER NOT NULL,
  asked INTEGER NOT NULL,
  id TEXT,
  PRIMARY KEY (proposal, person)
) STRICT;
CREATE TABLE IF NOT EXISTS retirement (
  resource TEXT PRIMARY KEY,
  zone TEXT NOT NULL,
  run TEXT NOT NULL,
  done INTEGER NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS placed (
  resource TEXT PRIMARY KEY,
  primary_zone TEXT NOT NULL,
  shadow_zone TEXT NOT NULL,
  generation INTEGER NOT NULL DEFAULT 0
) STRICT;
-- One row: the number of what was left to the next leader last.
CREATE TABLE IF NOT EXISTS left_last (
  one INTEGER PRIMARY KEY CHECK (one = 1),
  serial INTEGER NOT NULL
) STRICT;
-- Of no table, the empty name: the whole shadow.
CREATE TABLE IF NOT EXISTS seeded (
  resource TEXT NOT NULL,
  of_table TEXT NOT NULL,
  at_ms INTEGER NOT NULL,
  PRIMARY KEY (resource, of_table)
) STRICT;
CREATE TABLE IF NOT EXISTS answered_to (
  who TEXT NOT NULL,
  key TEXT NOT NULL,
  request TEXT NOT NULL,
  status INTEGER NOT NULL,
  location TEXT,
  answer TEXT NOT NULL,
  at_ms INTEGER NOT NULL,
  PRIMARY KEY (who, key)
) STRICT;
-- What was posted to feeds last: when that was signed, and the last that was understood.
CREATE TABLE IF NOT EXISTS posted (
  feed TEXT PRIMARY KEY,
  signed_ms INTEGER NOT NULL,
  body BLOB,
  at_ms INTEGER
) STRICT;
-- Of an older program, in which a key was one caller's only. Its rows would have lived for a day.
DROP TABLE IF EXISTS answered;
CREATE TABLE IF NOT EXISTS ledger (
  run TEXT PRIMARY KEY,
  predicted_ms REAL,
  stay_ms REAL,
  baseline_ms REAL,
  predicted_cost REAL,
  stay_cost REAL,
  realised_ms REAL,
  never_moved_ms REAL,
  measured_from_ms INTEGER,
  measured_until_ms INTEGER,
  steps INTEGER NOT NULL DEFAULT 0
) STRICT;
";

/// A scope had one freeze once, whoever ordered it.
const ONE_OF_A_SCOPE: &str = "SELECT count(*) = 1 FROM pragma_table_info('freeze') WHERE pk > 0";

/// An earlier program did not keep of which generation a resource was.
const WITHOUT_GENERATION: &str =
    "SELECT count(*) = 0 FROM pragma_table_info('placed') WHERE name = 'generation'";

/// Nor what tells people apart who approve a move.
const WITHOUT_ID: &str = "SELECT count(*) = 0 FROM pragma_table_info('approval') WHERE name = 'id'";

/// The tables, also in a store that an earlier program made.
pub(super) fn prepare(connection: &mut Connection) -> rusqlite::Result<()> {
    connection.execute_batch(SCHEMA)?;
    if connection.query_row(ONE_OF_A_SCOPE, [], |row| row.get(0))? {
        let transaction = connection.transaction()?;
        transaction.execute_batch("ALTER TABLE freeze RENAME TO freeze_of_a_scope")?;
        transaction.execute_batch(SCHEMA)?;
        transaction.execute_batch(
            "INSERT INTO freeze SELECT scope, by_whom, why, at_ms, until_ms FROM freeze_of_a_scope;
             DROP TABLE freeze_of_a_scope;",
        )?;
        transaction.commit()?;
    }
    if connection.query_row(WITHOUT_GENERATION, [], |row| row.get(0))? {
        connection.execute_batch("ALTER TABLE placed ADD COLUMN generation INTEGER NOT NULL DEFAULT 0")?;
    }
    if connection.query_row(WITHOUT_ID, [], |row| row.get(0))? {
        connection.execute_batch("ALTER TABLE approval ADD COLUMN id TEXT")?;
    }
    Ok(())
}

/// The scope of a freeze of every resource.
pub const EVERY_RESOURCE: &str = "*";

/// A freeze that an operator ordered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FreezeRow {
    /// The resource, or [`EVERY_RESOURCE`].
    pub scope: String,
    /// Who.
    pub by: String,
    /// Why.
    pub why: String,
    /// When.
    pub at: Timestamp,
    /// Until when; none: until it is lifted.
    pub until: Option<Timestamp>,
}

/// A person who wants a proposed move.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApprovalRow {
    /// Who, as it is shown.
    pub person: String,
    /// What tells them apart; none: an earlier program kept only the name.
    pub id: Option<String>,
    /// When.
    pub at: Timestamp,
    /// It was this person who asked for the move, not the score.
    pub asked: bool,
}

/// A move that the score, or a person, proposed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProposalRow {
    /// Its id.
    pub id: String,
    /// The resource.
    pub resource: String,
    /// Where to.
    pub to: String,
    /// When.
    pub at: Timestamp,
    /// Until when it can be approved.
    pub expires: Timestamp,
    /// The decision that led to it, JSON.
    pub decision: String,
    /// `approved`, `expired` or `withdrawn`; none: open.
    pub ended: Option<String>,
}

/// An old primary that is given back after its soak.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetirementRow {
    /// The resource.
    pub resource: String,
    /// Its zone.
    pub zone: String,
    /// The migration that left it.
    pub run: String,
    /// It was given back.
    pub done: bool,
}

/// A request that was answered, by its idempotency key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnsweredRow {
    /// The key, with the route it was for.
    pub key: String,
    /// Who asked.
    pub who: String,
    /// Digest of the body.
    pub request: String,
    /// The answer's status.
    pub status: u16,
    /// Its Location.
    pub location: Option<String>,
    /// Its body.
    pub answer: String,
    /// When.
    pub at: Timestamp,
}

/// What was posted to a feed last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PostedRow {
    /// The feed.
    pub feed: String,
    /// When the last post that was accepted was signed.
    pub signed: Timestamp,
    /// The last that was understood, and when it came. To be kept, none: what there was before.
    pub said: Option<(Vec<u8>, Timestamp)>,
}

/// What a move was expected to bring and what it brought; milliseconds of the request path's p95, cost per hour.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LedgerRow {
    /// Expected from the new zone when the move began.
    pub predicted_ms: Option<f64>,
    /// Forecast then for staying.
    pub stay_ms: Option<f64>,
    /// What was usual then.
    pub baseline_ms: Option<f64>,
    /// Cost of the new zone.
    pub predicted_cost: Option<f64>,
    /// Cost of the old one.
    pub stay_cost: Option<f64>,
    /// Mean over the steps measured since.
    pub realised_ms: Option<f64>,
    /// Estimate over the same steps of never having moved: what was realised, and what the probes say is the difference.
    pub never_moved_ms: Option<f64>,
    /// When measuring began.
    pub measured_from: Option<Timestamp>,
    /// The last step measured.
    pub measured_until: Option<Timestamp>,
    /// Steps measured.
    pub steps: u32,
}

impl Journal {
    /// A freeze begins, or that of the same scope and person is replaced.
    pub fn freeze(&self, row: &FreezeRow) -> Result<(), StoreError> {
        self.note(
            "INSERT INTO freeze (scope, by_whom, why, at_ms, until_ms) VALUES (?, ?, ?, ?, ?)
             ON CONFLICT (scope, by_whom) DO UPDATE SET why = excluded.why, at_ms = excluded.at_ms, until_ms = excluded.until_ms",
            params![row.scope, row.by, row.why, row.at.0, row.until.map(|at| at.0)],
        )
        .map(drop)
    }

    /// A scope's freezes end; false: there was none.
    pub fn unfreeze(&self, scope: &str) -> Result<bool, StoreError> {
        Ok(self.note("DELETE FROM freeze WHERE scope = ?", [scope])? > 0)
    }

    /// Every freeze that has not been lifted, also those that are over.
    pub fn freezes(&self) -> Result<Vec<FreezeRow>, StoreError> {
        let read = || {
            let connection = self.connection();
            let mut statement = connection.prepare_cached(
                "SELECT scope, by_whom, why, at_ms, until_ms FROM freeze ORDER BY scope, by_whom",
            )?;
            let rows = statement.query_map([], |row| {
                Ok(FreezeRow {
                    scope: row.get(0)?,
                    by: row.get(1)?,
                    why: row.get(2)?,
                    at: Timestamp(row.get(3)?),
                    until: row.get::<_, Option<u64>>(4)?.map(Timestamp),
                })
            })?;
            rows.collect::<rusqlite::Result<Vec<_>>>()
        };
        read().map_err(self.database())
    }

    /// A proposal is made.
    pub fn propose(&self, row: &ProposalRow) -> Result<(), StoreError> {
        self.note(
            "INSERT INTO proposal (id, resource, to_zone, at_ms, expires_ms, decision) VALUES (?, ?, ?, ?, ?, ?)",
            params![row.id, row.resource, row.to, row.at.0, row.expires.0, row.decision],
        )
        .map(drop)
    }

    /// A person wants a proposed move; once more changes nothing.
    pub fn approve_proposal(&self, id: &str, approval: &ApprovalRow) -> Result<(), StoreError> {
        self.note(
            "INSERT OR IGNORE INTO approval (proposal, person, at_ms, asked, id) VALUES (?, ?, ?, ?, ?)",
            params![id, approval.person, approval.at.0, approval.asked, approval.id],
        )
        .map(drop)
    }

    /// Who wants a proposed move, in the order in which they said so.
    pub fn approvals(&self, id: &str) -> Result<Vec<ApprovalRow>, StoreError> {
        let read = || {
            let connection = self.connection();
            let mut statement = connection.prepare_cached(
                "SELECT person, at_ms, asked, id FROM approval WHERE proposal = ? ORDER BY at_ms, rowid",
            )?;
            let rows = statement.query_map(params![id], |row| {
                Ok(ApprovalRow {
                    person: row.get(0)?,
                    id: row.get(3)?,
                    at: Timestamp(row.get(1)?),
                    asked: row.get(2)?,
                })
            })?;
            rows.collect::<rusqlite::Result<Vec<_>>>()
        };
        read().map_err(self.database())
    }

    /// A proposal is over: `approved`, `expired` or `withdrawn`.
    pub fn end_proposal(
        &self,
        id: &str,
        ended: &str,
        by: Option<&str>,
        at: Timestamp,
    ) -> Result<(), StoreError> {
        self.note(
            "UPDATE proposal SET ended = ?2, ended_by = ?3, ended_ms = ?4 WHERE id = ?1 AND ended IS NULL",
            params![id, ended, by, at.0],
        )
        .map(drop)
    }

    /// The proposal of that id, or without one the newest of the resource.
    pub fn proposal(&self, resource: &str, id: Option<&str>) -> Result<Option<ProposalRow>, StoreError> {
        let read = || {
            let connection = self.connection();
            let mut statement = connection.prepare_cached(
                "SELECT id, resource, to_zone, at_ms, expires_ms, decision, ended FROM proposal
                 WHERE resource = ?1 AND (?2 IS NULL OR id = ?2) ORDER BY at_ms DESC LIMIT 1",
            )?;
            let mut rows = statement.query_map(params![resource, id], |row| {
                Ok(ProposalRow {
                    id: row.get(0)?,
                    resource: row.get(1)?,
                    to: row.get(2)?,
                    at: Timestamp(row.get(3)?),
                    expires: Timestamp(row.get(4)?),
                    decision: row.get(5)?,
                    ended: row.get(6)?,
                })
            })?;
            rows.next().transpose()
        };
        read().map_err(self.database())
    }

    /// What is known of a move's worth, as a whole.
    pub fn write_ledger(&self, run: &str, row: &LedgerRow) -> Result<(), StoreError> {
        self.note(
            "INSERT OR REPLACE INTO ledger (run, predicted_ms, stay_ms, baseline_ms, predicted_cost, stay_cost, realised_ms,
               never_moved_ms, measured_from_ms, measured_until_ms, steps) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            params![
                run,
                row.predicted_ms,
                row.stay_ms,
                row.baseline_ms,
                row.predicted_cost,
                row.stay_cost,
                row.realised_ms,
                row.never_moved_ms,
                row.measured_from.map(|at| at.0),
                row.measured_until.map(|at| at.0),
                row.steps
            ],
        )
        .map(drop)
    }

    /// What is known of a move's worth.
    pub fn ledger(&self, run: &str) -> Result<Option<LedgerRow>, StoreError> {
        let read = || {
            let connection = self.connection();
            let mut statement = connection.prepare_cached(
                "SELECT predicted_ms, stay_ms, baseline_ms, predicted_cost, stay_cost, realised_ms, never_moved_ms,
                   measured_from_ms, measured_until_ms, steps FROM ledger WHERE run = ?",
            )?;
            let mut rows = statement.query_map([run], |row| {
                Ok(LedgerRow {
                    predicted_ms: row.get(0)?,
                    stay_ms: row.get(1)?,
                    baseline_ms: row.get(2)?,
                    predicted_cost: row.get(3)?,
                    stay_cost: row.get(4)?,
                    realised_ms: row.get(5)?,
                    never_moved_ms: row.get(6)?,
                    measured_from: row.get::<_, Option<u64>>(7)?.map(Timestamp),
                    measured_until: row.get::<_, Option<u64>>(8)?.map(Timestamp),
                    steps: row.get(9)?,
                })
            })?;
            rows.next().transpose()
        };
        read().map_err(self.database())
    }

    /// An old primary is to be given back, or was.
    pub fn retire(&self, row: &RetirementRow) -> Result<(), StoreError> {
        retire(&self.connection(), row).map_err(self.database())
    }

    /// The retirement of a resource's old primary.
    pub fn retirement(&self, resource: &str) -> Result<Option<RetirementRow>, StoreError> {
        let read = || {
            let connection = self.connection();
            let mut statement = connection
                .prepare_cached("SELECT resource, zone, run, done FROM retirement WHERE resource = ?")?;
            let mut rows = statement.query_map([resource], |row| {
                Ok(RetirementRow {
                    resource: row.get(0)?,
                    zone: row.get(1)?,
                    run: row.get(2)?,
                    done: row.get(3)?,
                })
            })?;
            rows.next().transpose()
        };
        read().map_err(self.database())
    }

    /// A shadow is wanted again.
    pub fn forget_retirement(&self, resource: &str) -> Result<(), StoreError> {
        self.note("DELETE FROM retirement WHERE resource = ?", [resource]).map(drop)
    }

    /// The shadow, or a table of it, was seeded anew.
    pub fn note_seed(&self, resource: &str, table: Option<&str>, at: Timestamp) -> Result<(), StoreError> {
        self.note(
            "INSERT OR REPLACE INTO seeded (resource, of_table, at_ms) VALUES (?, ?, ?)",
            params![resource, table.unwrap_or_default(), at.0],
        )
        .map(drop)
    }

    /// When the shadow and tables of it were last seeded anew.
    pub fn seeds(&self, resource: &str) -> Result<Vec<(Option<String>, Timestamp)>, StoreError> {
        let read = || {
            let connection = self.connection();
            let mut statement =
                connection.prepare_cached("SELECT of_table, at_ms FROM seeded WHERE resource = ?")?;
            let rows = statement.query_map([resource], |row| {
                let table = row.get::<_, String>(0)?;
                Ok((Some(table).filter(|table| !table.is_empty()), Timestamp(row.get(1)?)))
            })?;
            rows.collect::<rusqlite::Result<Vec<_>>>()
        };
        read().map_err(self.database())
    }

    /// Keeps an answer, and forgets those from before `until`.
    pub fn answer(&self, row: &AnsweredRow, until: Timestamp) -> Result<(), StoreError> {
        self.note("DELETE FROM answered_to WHERE at_ms < ?", [until.0])?;
        self.note(
            "INSERT OR REPLACE INTO answered_to (key, who, request, status, location, answer, at_ms)
             VALUES (?, ?, ?, ?, ?, ?, ?)",
            params![row.key, row.who, row.request, row.status, row.location, row.answer, row.at.0],
        )
        .map(drop)
    }

    /// The resource at this path is gone: what was answered of it is not answered again.
    pub fn forget_answers(&self, location: &str) -> Result<(), StoreError> {
        self.note("DELETE FROM answered_to WHERE location = ?", [location]).map(drop)
    }

    /// The answer that was given to this caller under this key, not before `since`.
    pub fn answered(
        &self,
        who: &str,
        key: &str,
        since: Timestamp,
    ) -> Result<Option<AnsweredRow>, StoreError> {
        let read = || {
            let connection = self.connection();
            let mut statement = connection.prepare_cached(
                "SELECT key, who, request, status, location, answer, at_ms FROM answered_to
                 WHERE key = ? AND who = ? AND at_ms >= ?",
            )?;
            let mut rows = statement.query_map(params![key, who, since.0], |row| {
                Ok(AnsweredRow {
                    key: row.get(0)?,
                    who: row.get(1)?,
                    request: row.get(2)?,
                    status: row.get(3)?,
                    location: row.get(4)?,
                    answer: row.get(5)?,
                    at: Timestamp(row.get(6)?),
                })
            })?;
            rows.next().transpose()
        };
        read().map_err(self.database())
    }

    /// A feed was posted to.
    pub fn keep_post(&self, row: &PostedRow) -> Result<(), StoreError> {
        let (body, at) = row.said.as_ref().map(|(body, at)| (body, at.0)).unzip();
        self.note(
            "INSERT INTO posted (feed, signed_ms, body, at_ms) VALUES (?, ?, ?, ?)
             ON CONFLICT (feed) DO UPDATE SET signed_ms = excluded.signed_ms, body = coalesce(excluded.body, body),
               at_ms = coalesce(excluded.at_ms, at_ms)",
            params![row.feed, row.signed.0, body, at],
        )
        .map(drop)
    }

    /// What was posted to feeds last.
    pub fn posts(&self) -> Result<Vec<PostedRow>, StoreError> {
        let read = || {
            let connection = self.connection();
            let mut statement = connection.prepare("SELECT feed, signed_ms, body, at_ms FROM posted")?;
            let rows = statement.query_map([], |row| {
                let (body, at) = (row.get::<_, Option<Vec<u8>>>(2)?, row.get::<_, Option<u64>>(3)?);
                let said = body.zip(at.map(Timestamp));
                Ok(PostedRow { feed: row.get(0)?, signed: Timestamp(row.get(1)?), said })
            })?;
            rows.collect::<rusqlite::Result<Vec<_>>>()
        };
        read().map_err(self.database())
    }

    fn note(&self, sql: &str, values: impl rusqlite::Params) -> Result<usize, StoreError> {
        self.connection().execute(sql, values).map_err(self.database())
    }
}

pub(super) fn retire(connection: &Connection, row: &RetirementRow) -> rusqlite::Result<()> {
    connection
        .prepare_cached("INSERT OR REPLACE INTO retirement (resource, zone, run, done) VALUES (?, ?, ?, ?)")?
        .execute(params![row.resource, row.zone, row.run, row.done])
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_its_callers_own() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let journal = Journal::open(directory.path()).expect("open");
        let row = |who: &str, answer: &str| AnsweredRow {
            key: "k1".into(),
            who: who.into(),
            request: "digest".into(),
            status: 201,
            location: None,
            answer: answer.into(),
            at: Timestamp(5),
        };
        for (who, answer) in [("ann", "first"), ("bob", "his"), ("ann", "hers")] {
            journal.answer(&row(who, answer), Timestamp(0)).expect("write");
        }
        for (who, answer) in [("ann", "hers"), ("bob", "his")] {
            assert_eq!(journal.answered(who, "k1", Timestamp(5)).expect("read"), Some(row(who, answer)));
            assert_eq!(journal.answered(who, "k1", Timestamp(6)).expect("read"), None, "its time is over");
        }
        journal
            .answer(&AnsweredRow { key: "k2".into(), ..row("ann", "later") }, Timestamp(6))
            .expect("write");
        assert_eq!(journal.answered("bob", "k1", Timestamp(0)).expect("read"), None, "it is forgotten");
    }

    #[test]
    fn an_answer_goes_with_what_it_tells_of() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let journal = Journal::open(directory.path()).expect("open");
        for name in ["cart", "cart2"] {
            let row = AnsweredRow {
                key: name.into(),
                who: "ann".into(),
                request: "digest".into(),
                status: 201,
                location: Some(format!("/api/v1/resources/{name}")),
                answer: String::new(),
                at: Timestamp(5),
            };
            journal.answer(&row, Timestamp(0)).expect("write");
        }
        journal.forget_answers("/api/v1/resources/cart").expect("write");
        let kept = |key| journal.answered("ann", key, Timestamp(0)).expect("read").is_some();
        assert_eq!((kept("cart"), kept("cart2")), (false, true));
    }

    #[test]
    fn freezes_proposals_and_the_ledger_outlive_the_process() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let freeze = FreezeRow {
            scope: "orders".into(),
            by: "ann".into(),
            why: "release".into(),
            at: Timestamp(5),
            until: Some(Timestamp(9)),
        };
        let proposal = ProposalRow {
            id: "p1".into(),
            resource: "orders".into(),
            to: "b".into(),
            at: Timestamp(7),
            expires: Timestamp(70),
            decision: "{}".into(),
            ended: None,
        };
        let worth = LedgerRow { predicted_ms: Some(4.5), steps: 3, ..LedgerRow::default() };
        {
            let journal = Journal::open(directory.path()).expect("open");
            journal.freeze(&FreezeRow { why: "earlier".into(), ..freeze.clone() }).expect("write");
            journal.freeze(&freeze).expect("replace");
            journal.propose(&proposal).expect("write");
            for (person, at) in [("bob", 8), ("ann", 9), ("bob", 10)] {
                let (at, asked) = (Timestamp(at), person == "bob");
                let approval = ApprovalRow { person: person.into(), id: Some(person.into()), at, asked };
                journal.approve_proposal("p1", &approval).expect("write");
            }
            journal.write_ledger("m1", &worth).expect("write");
        }
        let journal = Journal::open(directory.path()).expect("open again");
        assert_eq!(journal.freezes().expect("read"), [freeze]);
        assert_eq!(journal.proposal("orders", None).expect("read"), Some(proposal.clone()));
        assert_eq!(journal.proposal("other", Some("p1")).expect("read"), None);
        let people = journal.approvals("p1").expect("read");
        let people: Vec<_> = people.iter().map(|row| (row.person.as_str(), row.at.0, row.asked)).collect();
        assert_eq!(people, [("bob", 8, true), ("ann", 9, false)]);
        journal.end_proposal("p1", "approved", Some("bob"), Timestamp(8)).expect("write");
        journal.end_proposal("p1", "expired", None, Timestamp(9)).expect("too late");
        let ended = journal.proposal("orders", Some("p1")).expect("read").expect("there");
        assert_eq!(ended.ended.as_deref(), Some("approved"));
        assert_eq!(journal.ledger("m1").expect("read"), Some(worth));
        assert!(journal.unfreeze("orders").expect("write"));
        assert!(!journal.unfreeze("orders").expect("write"));
    }

    #[test]
    fn approvals_that_an_earlier_program_kept_by_name_alone_are_read() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let old = "DROP TABLE approval;
            CREATE TABLE approval (proposal TEXT NOT NULL, person TEXT NOT NULL, at_ms INTEGER NOT NULL, asked INTEGER NOT NULL,
              PRIMARY KEY (proposal, person)) STRICT;
            INSERT INTO approval VALUES ('p1', 'ann', 5, 1)";
        {
            let journal = Journal::open(directory.path()).expect("open");
            journal.connection().execute_batch(old).expect("as it was");
        }
        let row = |person: &str, id: Option<&str>, at, asked| ApprovalRow {
            person: person.into(),
            id: id.map(str::to_owned),
            at: Timestamp(at),
            asked,
        };
        for _ in 0..2 {
            let journal = Journal::open(directory.path()).expect("open again");
            journal.approve_proposal("p1", &row("bob", Some("s-2"), 6, false)).expect("write");
            let rows = journal.approvals("p1").expect("read");
            assert_eq!(rows, [row("ann", None, 5, true), row("bob", Some("s-2"), 6, false)]);
        }
    }

    #[test]
    fn a_store_whose_scopes_had_one_freeze_each_keeps_them_and_takes_more() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let old = "DROP TABLE freeze;
            CREATE TABLE freeze (scope TEXT PRIMARY KEY, by_whom TEXT NOT NULL, why TEXT NOT NULL, at_ms INTEGER NOT NULL,
              until_ms INTEGER) STRICT;
            INSERT INTO freeze VALUES ('orders', 'godwit', 'it was taken back', 5, NULL)";
        {
            let journal = Journal::open(directory.path()).expect("open");
            journal.connection().execute_batch(old).expect("as it was");
        }
        let freeze = FreezeRow {
            scope: "orders".into(),
            by: "ann".into(),
            why: "release".into(),
            at: Timestamp(6),
            until: Some(Timestamp(9)),
        };
        for _ in 0..2 {
            let journal = Journal::open(directory.path()).expect("open again");
            journal.freeze(&freeze).expect("write");
            let by: Vec<_> =
                journal.freezes().expect("read").into_iter().map(|row| (row.by, row.until)).collect();
            assert_eq!(by, [("ann".to_owned(), freeze.until), ("godwit".to_owned(), None)]);
        }
    }
}
