//! What a node leaves to the one that leads after it: what people decided and what moves there were. It lies in the databases, beside
//! the lease, since the state directory may be out of reach by then.

use std::collections::BTreeMap;

use migration::cutover::State;
use migration::units::Timestamp;
use rusqlite::types::{Value as Sql, ValueRef};
use rusqlite::{Connection, OptionalExtension as _, params, params_from_iter};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::journal::{Journal, StoreError};
use super::overlay::Overlay;
use crate::drivers::ledger::Made;

const VERSION: u32 = 1;
/// The table of what moves were worth.
const WORTH: &str = "ledger";

/// Why a run ended that another node had begun.
const LOST: &str = "the node that led was lost";
/// What it came to where it was committed: nobody compares both sides at its end marker any more.
const LOST_IN_SOAK: &str = "the node that led was lost before the old primary was retired";
/// The same of those that this node began, and the journal's newest state has no more.
const UNKNOWN: &str = "the program that ran meanwhile did not know it";
const UNKNOWN_IN_SOAK: &str = "the program that ran meanwhile did not know that the old primary soaked";

/// A table of the store.
struct Table {
    name: &'static str,
    /// What is left of it.
    rows: &'static str,
    /// The next node has these rows and no others.
    whole: bool,
}

const fn whole(name: &'static str, rows: &'static str) -> Table {
    Table { name, rows, whole: true }
}

const fn added(name: &'static str, rows: &'static str) -> Table {
    Table { name, rows, whole: false }
}

/// A decision of many kilobytes stays where it was made. However many runs there were since, that a primary was lost is not forgotten, nor
/// is what a policy's cooldown and limits count: a resource's newest move, and a day up to the last that it did.
const TABLES: [Table; 7] = [
    whole("freeze", "SELECT * FROM freeze"),
    whole("proposal", "SELECT * FROM proposal WHERE ended IS NULL"),
    whole(
        "approval",
        "SELECT * FROM approval WHERE proposal IN (SELECT id FROM proposal WHERE ended IS NULL)",
    ),
    whole("retirement", "SELECT * FROM retirement"),
    whole(
        "placed",
        // What another node said is newer than a journal of one's own, until that is led here.
        "SELECT resource, primary_zone, shadow_zone, generation FROM placed UNION ALL \
           SELECT resource, json_extract(state, '$.primary'), json_extract(state, '$.shadow'), json_extract(state, '$.generation') \
           FROM journal WHERE sequence IN (SELECT max(sequence) FROM journal GROUP BY resource) \
             AND resource NOT IN (SELECT resource FROM placed) \
           ORDER BY resource",
    ),
    added(
        "run",
        "SELECT id, resource, from_zone, to_zone, trigger, generation, started_ms, ended_ms, outcome, reason, committed_ms, held_ms, fence, \
           verified, comparison FROM run WHERE outcome IS NULL OR outcome = 'taken_over' \
           OR id IN (SELECT id FROM run ORDER BY started_ms DESC LIMIT 50) \
           OR (resource, committed_ms) IN (SELECT resource, max(committed_ms) FROM run GROUP BY resource) \
           OR id IN (SELECT id FROM (SELECT id, last, max(last) OVER (PARTITION BY resource) AS newest FROM (SELECT id, resource, \
             max(started_ms, coalesce(committed_ms, 0), coalesce(ended_ms, 0)) AS last FROM run)) WHERE last >= newest - 86400000)",
    ),
    added(WORTH, "SELECT * FROM ledger WHERE run IN (SELECT id FROM run ORDER BY started_ms DESC LIMIT 50)"),
];

type Row = BTreeMap<String, Value>;

/// Where another node had a resource last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlacedRow {
    /// Its primary's zone.
    pub primary: String,
    /// Its shadow's.
    pub shadow: String,
    /// Of which generation it was; 0: that node did not say.
    pub generation: u64,
}

/// What is left.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Legacy {
    version: u32,
    /// The higher, the newer, whoever left it.
    pub serial: u64,

    tables: BTreeMap<String, Vec<Row>>,
    /// What the API changed.
    pub overlay: Overlay,
    /// What drivers outside have made, by the names of their ledgers' directories.
    #[serde(default)]
    pub made: BTreeMap<String, Made>,
}

/// What of one can be read whichever version left it.
#[derive(Deserialize)]
struct Heading {
    version: u32,
    serial: u64,
}

/// Why one cannot be read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// A newer program left it.
    #[error("it is of version {0}, and this program reads {VERSION}")]
    Newer(u32),
    /// It is none.
    #[error("{0}")]
    Broken(String),
}

impl Legacy {
    /// The number of one, whether the rest can be read or not; none: that has none.
    pub fn serial_of(text: &str) -> Option<u64> {
        serde_json::from_str(text).ok().map(|heading: Heading| heading.serial)
    }

    /// The same, by this number.
    #[must_use]
    pub fn numbered(self, serial: u64) -> Self {
        Self { serial, ..self }
    }

    /// As it is left.
    #[must_use]
    pub fn text(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Whether nothing else differs than what moves were worth so far.
    pub fn differs_only_in_worth(&self, other: &Self) -> bool {
        let rest = |legacy: &Self| {
            let tables = legacy.tables.iter().filter(|(name, _)| *name != WORTH);
            tables.map(|(name, rows)| (name.clone(), rows.clone())).collect::<BTreeMap<_, _>>()
        };
        (&self.overlay, &self.made, rest(self)) == (&other.overlay, &other.made, rest(other))
    }

    /// Reads one.
    ///
    /// # Errors
    /// It is none, or of a newer program.
    pub fn read(text: &str) -> Result<Self, Unreadable> {
        let broken = |error: serde_json::Error| Unreadable::Broken(error.to_string());
        // First: what a newer one says besides may be of another shape.
        let Heading { version, .. } = serde_json::from_str(text).map_err(broken)?;
        if version > VERSION {
            return Err(Unreadable::Newer(version));
        }
        serde_json::from_str(text).map_err(broken)
    }
}

impl Journal {
    /// What this node would leave now.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub fn leaves(&self, overlay: Overlay, made: BTreeMap<String, Made>) -> Result<Legacy, StoreError> {
        let read = || {
            let connection = self.connection();
            let rows = |table: &Table| Ok((table.name.to_owned(), rows(&connection, table.rows)?));
            TABLES.iter().map(rows).collect::<rusqlite::Result<_>>()
        };
        Ok(Legacy { version: VERSION, serial: 0, tables: read().map_err(self.database())?, overlay, made })
    }

    /// What another node left is this one's from now on.
    ///
    /// # Errors
    /// [`StoreError::Database`]: nothing of it is.
    pub fn inherits(&self, legacy: &Legacy) -> Result<(), StoreError> {
        let write = || {
            let mut connection = self.connection();
            let transaction = connection.transaction()?;
            for table in &TABLES {
                let Some(rows) = legacy.tables.get(table.name) else { continue };
                if table.whole {
                    transaction.execute(&format!("DELETE FROM {}", table.name), [])?;
                }
                let known = columns(&transaction, table.name)?;
                rows.iter().try_for_each(|row| insert(&transaction, table.name, &known, row))?;
            }
            transaction.commit()
        };
        write().map_err(self.database())
    }

    /// The number of what this node left or inherited last; none: it never did, or by an earlier program.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub fn serial(&self) -> Result<Option<u64>, StoreError> {
        let found = self.connection().query_row("SELECT serial FROM left_last", [], |row| row.get(0));
        found.optional().map_err(self.database())
    }

    /// From now on it is this one.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub fn note_serial(&self, serial: u64) -> Result<(), StoreError> {
        let sql = "INSERT OR REPLACE INTO left_last (one, serial) VALUES (1, ?)";
        self.connection().execute(sql, [serial]).map(drop).map_err(self.database())
    }

    /// Ends the runs of a resource that are not this state's: the node that began them is gone. One that was committed without a fence took over
    /// from a lost primary. From now on the journal says where the resource is. Returns who asked for the move that made this state's generation,
    /// where that node was lost before it could leave more than that it began.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub fn end_others(&self, state: &State, now: Timestamp) -> Result<Option<String>, StoreError> {
        let made_it = self.end_runs(state, now, [LOST, LOST_IN_SOAK])?;
        let sql = "DELETE FROM placed WHERE resource = ?1";
        self.connection().execute(sql, [&state.resource]).map_err(self.database())?;
        Ok(made_it)
    }

    /// Ends the runs of a resource that this state, the journal's newest, does not have: an earlier program leaves out of it what it does not know.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub fn end_unknown(&self, state: &State, now: Timestamp) -> Result<(), StoreError> {
        self.end_runs(state, now, [UNKNOWN, UNKNOWN_IN_SOAK]).map(drop)
    }

    /// Returns who asked for the one that made this state's generation, which counts as a move from now on.
    fn end_runs(
        &self,
        state: &State,
        now: Timestamp,
        [lost, in_soak]: [&str; 2],
    ) -> Result<Option<String>, StoreError> {
        let own = state.run.as_ref().map(|run| run.id.as_str());
        let soaking = state.soaking.as_ref().map(|soak| soak.run.id.as_str());
        let sql = "UPDATE run SET ended_ms = ?4, outcome = CASE WHEN generation > ?2 THEN 'aborted' \
                     WHEN committed_ms IS NOT NULL AND fence IS NULL THEN 'taken_over' ELSE 'superseded' END, \
                     reason = CASE WHEN generation > ?2 THEN ?5 \
                     WHEN generation = ?2 AND (committed_ms IS NULL OR fence IS NOT NULL) THEN ?6 END, \
                     committed_ms = coalesce(committed_ms, CASE WHEN generation = ?2 THEN ?4 END) \
                   WHERE resource = ?1 AND outcome IS NULL AND id IS NOT ?3 AND id IS NOT ?7 \
                   RETURNING CASE WHEN generation = ?2 AND committed_ms = ?4 THEN trigger END";
        let values = params![state.resource, state.generation.0, own, now.0, lost, in_soak, soaking];
        let end = || {
            let connection = self.connection();
            let mut end = connection.prepare_cached(sql)?;
            let ended = end.query_map(values, |row| row.get(0))?;
            ended.collect::<rusqlite::Result<Vec<Option<String>>>>()
        };
        Ok(end().map_err(self.database())?.into_iter().flatten().next())
    }

    /// Why the move that left the shadow of this state has not retired it, if the node that led was lost before that.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub fn why_unretired(&self, state: &State) -> Result<Option<String>, StoreError> {
        let sql = "SELECT reason FROM run WHERE resource = ?1 AND generation = ?2 AND from_zone = ?3 AND to_zone = ?4 \
                     AND outcome = 'superseded' AND reason IS NOT NULL LIMIT 1";
        let State { resource, shadow, primary, generation, .. } = state;
        let values = params![resource, generation.0, &*shadow.0, &*primary.0];
        self.connection().query_row(sql, values, |row| row.get(0)).optional().map_err(self.database())
    }

    /// The shadow of this state was lost as a primary, which another node had known: that run is in the history, unless it is there.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub fn note_lost(&self, state: &State, now: Timestamp) -> Result<(), StoreError> {
        let sql = "INSERT INTO run (id, resource, from_zone, to_zone, trigger, generation, started_ms, ended_ms, outcome) \
                     SELECT ?1, ?2, ?3, ?4, 'unknown', ?5, ?6, ?6, 'taken_over' WHERE NOT EXISTS \
                     (SELECT 1 FROM run WHERE resource = ?2 AND generation = ?5 AND outcome = 'taken_over')";
        let State { resource, shadow, primary, generation, .. } = state;
        let values = params![crate::rng::id(), resource, &*shadow.0, &*primary.0, generation.0, now.0];
        self.connection().execute(sql, values).map(drop).map_err(self.database())
    }

    /// Where another node had the resource last, until this one leads it.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub fn placed(&self, resource: &str) -> Result<Option<PlacedRow>, StoreError> {
        let sql = "SELECT primary_zone, shadow_zone, generation FROM placed WHERE resource = ?1";
        let placed = |row: &rusqlite::Row<'_>| {
            Ok(PlacedRow { primary: row.get(0)?, shadow: row.get(1)?, generation: row.get(2)? })
        };
        let found = self.connection().query_row(sql, [resource], placed);
        found.optional().map_err(self.database())
    }
}

fn rows(connection: &Connection, sql: &str) -> rusqlite::Result<Vec<Row>> {
    let mut statement = connection.prepare_cached(sql)?;
    let names: Vec<String> = statement.column_names().map(str::to_owned).collect();
    let found = statement.query_map([], |row| {
        let value = |(at, name): (usize, &String)| {
            let value = match row.get_ref(at)? {
                ValueRef::Integer(number) => Value::from(number),
                ValueRef::Real(number) => Value::from(number),
                ValueRef::Text(text) => Value::from(String::from_utf8_lossy(text)),
                ValueRef::Null | ValueRef::Blob(_) => Value::Null,
            };
            Ok((name.clone(), value))
        };
        names.iter().enumerate().map(value).collect()
    })?;
    found.collect()
}

/// The columns of a table.
fn columns(connection: &Connection, table: &str) -> rusqlite::Result<Vec<String>> {
    let statement = connection.prepare(&format!("SELECT * FROM {table} LIMIT 0"))?;
    let names = statement.column_names().map(str::to_owned).collect();
    Ok(names)
}

/// What a newer program knows besides is left out.
fn insert(connection: &Connection, table: &str, known: &[String], row: &Row) -> rusqlite::Result<()> {
    let columns: Vec<&str> =
        known.iter().map(String::as_str).filter(|name| row.contains_key(*name)).collect();
    let values = columns.iter().map(|name| match &row[*name] {
        Value::Number(number) => match number.as_i64() {
            Some(number) => Sql::Integer(number),
            None => number.as_f64().map_or(Sql::Null, Sql::Real),
        },
        Value::String(text) => Sql::Text(text.clone()),
        _ => Sql::Null,
    });
    let updates =
        columns.iter().map(|name| format!("{name} = excluded.{name}")).collect::<Vec<_>>().join(", ");
    let sql = format!(
        "INSERT INTO {table} ({}) VALUES ({}) ON CONFLICT DO UPDATE SET {updates}",
        columns.join(", "),
        vec!["?"; columns.len()].join(", ")
    );
    connection.prepare_cached(&sql)?.execute(params_from_iter(values)).map(drop)
}

#[cfg(test)]
mod tests {
    use migration::cutover::{Event, Limits, Outcome, Soak, Trigger, step};
    use migration::policy::{Policy, PolicyParts};
    use migration::units::{Generation, Zone};

    use super::*;
    use crate::store::journal::Ended;
    use crate::store::{Change, EVERY_RESOURCE, FreezeRow, RetirementRow};

    fn begun(journal: &Journal, id: &str) -> State {
        let now = Timestamp(10);
        let mut state = State::first("orders", Zone::from("near"), Zone::from("far"), now);
        let limits = Limits::of(&Policy::new(PolicyParts::default()).unwrap());
        let asked = Event::MigrateRequested {
            id: id.into(),
            to: "far".into(),
            trigger: Trigger::Operator("ann".into()),
            limits,
        };
        for event in [Event::ShadowEnabled, Event::StreamUp, asked] {
            state = step(&state, event, now).unwrap().0;
            journal.append(&state, "Tested", now, None).unwrap();
        }
        state
    }

    fn freeze(scope: &str) -> FreezeRow {
        FreezeRow {
            scope: scope.into(),
            by: "ann".into(),
            why: "a sale".into(),
            at: Timestamp(5),
            until: None,
        }
    }

    #[test]
    fn what_one_node_leaves_the_next_one_has() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (one, other) = (Journal::open(one.path()).unwrap(), Journal::open(other.path()).unwrap());
        let mut state = begun(&one, "m1");
        one.freeze(&freeze("orders")).unwrap();
        let retirement =
            RetirementRow { resource: "cart".into(), zone: "near".into(), run: "m0".into(), done: true };
        super::super::notes::retire(&one.connection(), &retirement).unwrap();
        // What the other one knew is older.
        begun(&other, "m0");
        other.freeze(&freeze(EVERY_RESOURCE)).unwrap();
        let mut overlay = Overlay::default();
        overlay.set(
            "orders",
            "shadow",
            Some(Change::new("ann", Timestamp(5), serde_json::json!({"enabled": false}))),
        );
        let left = serde_json::to_string(&one.leaves(overlay.clone(), BTreeMap::new()).unwrap()).unwrap();
        let legacy = Legacy::read(&left).unwrap();
        assert_eq!(legacy.overlay, overlay);
        for _ in 0..2 {
            other.inherits(&legacy).unwrap();
        }
        assert_eq!(other.freezes().unwrap(), vec![freeze("orders")]);
        let ids = |journal: &Journal| {
            let mut runs = journal.runs(Some("orders"), 10).unwrap();
            runs.sort_by(|a, b| a.id.cmp(&b.id));
            runs.into_iter().map(|run| (run.id, run.outcome)).collect::<Vec<_>>()
        };
        assert_eq!(ids(&other), vec![("m0".into(), None), ("m1".into(), None)]);
        assert_eq!(other.serial().unwrap(), None);
        for serial in [7, 8] {
            other.note_serial(serial).unwrap();
            assert_eq!(other.serial().unwrap(), Some(serial));
        }
        let again = other.leaves(overlay, BTreeMap::new()).unwrap();
        assert_eq!(again.tables["retirement"], legacy.tables["retirement"]);
        let placed = PlacedRow { primary: "near".into(), shadow: "far".into(), generation: 1 };
        assert_eq!(other.placed("orders").unwrap(), Some(placed));
        assert_eq!(other.placed("cart").unwrap(), None);
        // It goes on from where the first one was committed.
        (state.generation, state.run) = (state.generation.next(), None);
        other.end_others(&state, Timestamp(20)).unwrap();
        assert_eq!(other.placed("orders").unwrap(), None, "its own journal says that now");
        let superseded = Some("superseded".to_owned());
        assert_eq!(ids(&other), vec![("m0".into(), superseded.clone()), ("m1".into(), superseded)]);
    }

    #[test]
    fn a_soak_goes_on_while_the_way_back_is_under_way() {
        let directory = tempfile::tempdir().unwrap();
        let journal = Journal::open(directory.path()).unwrap();
        begun(&journal, "m0");
        let before = begun(&journal, "m1");
        let state = begun(&journal, "m2");
        let soaking = before.run.map(|run| Soak { run, since: Timestamp(1) });
        journal.end_others(&State { soaking, ..state }, Timestamp(20)).unwrap();
        let open = |id: &str| journal.run(id).unwrap().unwrap().outcome.is_none();
        assert_eq!(["m0", "m1", "m2"].map(open), [false, true, true]);
    }

    /// Its next state, and all after that, are without it.
    #[test]
    fn a_soak_that_an_earlier_program_left_out_of_the_state_ends() {
        let directory = tempfile::tempdir().unwrap();
        let journal = Journal::open(directory.path()).unwrap();
        begun(&journal, "m1");
        journal.connection().execute("UPDATE run SET committed_ms = 11, fence = 5", []).unwrap();
        let begun = begun(&journal, "m2");
        let state = State { generation: Generation(2), soaking: None, ..begun };
        journal.end_unknown(&state, Timestamp(20)).unwrap();
        let run = |id: &str| journal.run(id).unwrap().unwrap();
        let (soaked, under_way) = (run("m1"), run("m2"));
        assert_eq!(soaked.outcome.as_deref(), Some("superseded"));
        assert_eq!(soaked.reason.as_deref(), Some(UNKNOWN_IN_SOAK));
        assert_eq!(under_way.outcome, None, "it is the state's own");
    }

    /// Committed and not retired, or not in the journal of the next leader as that; undone; and one of before.
    #[test]
    fn that_an_old_primary_was_not_retired_is_known_to_the_next_leader() {
        let directory = tempfile::tempdir().unwrap();
        let journal = Journal::open(directory.path()).unwrap();
        let state = begun(&journal, "m1");
        let moved = State {
            generation: Generation(2),
            primary: state.shadow.clone(),
            shadow: state.primary.clone(),
            run: None,
            ..state.clone()
        };
        let back = State { generation: Generation(3), run: None, ..state.clone() };
        for (set, ends_as, why, counts) in [
            ("committed_ms = 11, fence = 5", &moved, Some(LOST_IN_SOAK), Some(11)),
            ("committed_ms = NULL, fence = NULL", &moved, Some(LOST_IN_SOAK), Some(20)),
            ("committed_ms = 11, fence = NULL", &moved, None, Some(11)),
            ("committed_ms = NULL, fence = 5", &State { run: None, ..state.clone() }, None, None),
            ("committed_ms = 11, fence = 5", &back, None, Some(11)),
        ] {
            let again = format!("UPDATE run SET outcome = NULL, reason = NULL, ended_ms = NULL, {set}");
            journal.connection().execute(&again, []).unwrap();
            let asked = journal.end_others(ends_as, Timestamp(20)).unwrap();
            assert_eq!(asked.as_deref(), (counts == Some(20)).then_some("ann"), "{set}, {ends_as:?}");
            let counted = journal.commits_since("orders", Timestamp(0)).unwrap().last;
            assert_eq!(counted, counts.map(Timestamp), "it is a move like others: {set}, {ends_as:?}");
            assert_eq!(journal.why_unretired(ends_as).unwrap().as_deref(), why, "{set}, {ends_as:?}");
            let run = journal.run("m1").unwrap().unwrap();
            assert_eq!(run.reason.as_deref() == Some(LOST_IN_SOAK), why.is_some(), "{run:?}");
        }
    }

    #[test]
    fn where_a_resource_was_last_is_left_on_until_it_is_led() {
        let at = |resource: &str, primary: &str, shadow: &str| {
            State::first(resource, Zone::from(primary), Zone::from(shadow), Timestamp(1))
        };
        let written = |states: &[State]| {
            let directory = tempfile::tempdir().unwrap();
            let journal = Journal::open(directory.path()).unwrap();
            for state in states {
                journal.append(state, "Tested", Timestamp(1), None).unwrap();
            }
            (directory, journal)
        };
        let leaves = |journal: &Journal| journal.leaves(Overlay::default(), BTreeMap::new()).unwrap();
        let moved = State { generation: Generation(2), ..at("orders", "far", "near") };
        let (_one, one) = written(&[at("cart", "near", "far"), moved.clone()]);
        let legacy = leaves(&one);
        let rows = |legacy: &Legacy| legacy.tables["placed"].clone();
        assert_eq!(rows(&legacy).len(), 2);
        // It knew one of them before, and knows a third.
        let web = at("web", "near", "far");
        let (_other, other) = written(&[at("orders", "near", "far"), web.clone()]);
        other.inherits(&legacy).unwrap();
        let left = rows(&leaves(&other));
        assert_eq!(left[..2], rows(&legacy), "the next one would go back");
        assert_eq!(left.len(), 3);
        let further = State { generation: Generation(3), ..at("orders", "near", "far") };
        other.append(&further, "Tested", Timestamp(2), None).unwrap();
        other.end_others(&further, Timestamp(2)).unwrap();
        let (_third, third) = written(&[at("cart", "far", "near"), further.clone(), web]);
        assert_eq!(rows(&leaves(&other))[1..], rows(&leaves(&third))[1..]);
        assert_eq!(rows(&leaves(&other))[0], rows(&legacy)[0]);
    }

    /// A shadow takes over; how far the node came with it.
    fn taken_over(journal: &Journal, id: &str, ends: bool) -> State {
        let now = Timestamp(20);
        let mut state = State::first("orders", Zone::from("near"), Zone::from("far"), now);
        let limits = Limits::of(&Policy::new(PolicyParts::default()).unwrap());
        let trigger = Trigger::Operator("ann".into());
        let asked = Event::TakeOverRequested { id: id.into(), trigger, limits };
        for event in [Event::ShadowEnabled, Event::StreamUp, asked] {
            state = step(&state, event, now).unwrap().0;
        }
        journal.append(&state, "Tested", now, None).unwrap();
        for event in [Event::TakenOver, Event::PoolSwapped, Event::FenceLifted, Event::GateOpened] {
            state = step(&state, event, now).unwrap().0;
        }
        if ends {
            let ended = Ended { run: id, outcome: &Outcome::TakenOver, retirement: None };
            journal.append(&state, "Tested", now, Some(ended)).unwrap();
        }
        state
    }

    #[test]
    fn that_a_primary_was_lost_goes_with_the_lead() {
        for ends in [true, false] {
            let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            let (one, other) = (Journal::open(one.path()).unwrap(), Journal::open(other.path()).unwrap());
            let state = taken_over(&one, "m1", ends);
            for number in 0..60 {
                let row = format!(
                    "INSERT INTO run (id, resource, from_zone, to_zone, trigger, generation, started_ms, ended_ms, outcome) \
                     VALUES ('c{number}', 'cart', 'a', 'b', 'score', 9, {}, 99, 'aborted')",
                    30 + number
                );
                one.connection().execute(&row, []).unwrap();
            }
            other.inherits(&one.leaves(Overlay::default(), BTreeMap::new()).unwrap()).unwrap();
            other.end_others(&state, Timestamp(100)).unwrap();
            let lost = |zone: &str| other.is_lost("orders", &Zone::from(zone), state.generation).unwrap();
            assert!(lost("near") && !lost("far"), "{ends}: {:?}", other.run("m1").unwrap());
            // Both of them know of it, and of one.
            let third = tempfile::tempdir().unwrap();
            let third = Journal::open(third.path()).unwrap();
            for journal in [&other, &third] {
                journal.note_lost(&state, Timestamp(101)).unwrap();
                let runs = journal.runs(Some("orders"), 10).unwrap();
                let known = journal.is_lost("orders", &Zone::from("near"), state.generation).unwrap();
                assert!(known && runs.len() == 1, "{runs:?}");
                journal.note_seeded("orders", state.generation).unwrap();
                journal.note_lost(&state, Timestamp(102)).unwrap();
                assert!(!journal.is_lost("orders", &Zone::from("near"), state.generation).unwrap());
            }
        }
    }

    #[test]
    fn what_limits_of_a_policy_count_goes_with_the_lead() {
        const HOUR: u64 = 3_600_000;
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (one, other) = (Journal::open(one.path()).unwrap(), Journal::open(other.path()).unwrap());
        let write = |id: &str, resource: &str, started: u64, committed: Option<u64>, outcome: &str| {
            let sql = "INSERT INTO run (id, resource, from_zone, to_zone, trigger, generation, started_ms, ended_ms, outcome, committed_ms) \
                       VALUES (?1, ?2, 'a', 'b', 'score', 9, ?3, ?3 + 9, ?5, ?4)";
            one.connection().execute(sql, params![id, resource, started, committed, outcome]).unwrap();
        };
        let now = 100 * HOUR;
        write("o1", "orders", now - 23 * HOUR, Some(now - 23 * HOUR + 5), "retired");
        write("o2", "orders", now - 9 * HOUR, Some(now - 9 * HOUR + 5), "retired");
        write("o3", "orders", now - 8 * HOUR, None, "aborted");
        write("w1", "web", now - 60 * HOUR, Some(now - 60 * HOUR + 5), "retired");
        write("w2", "web", now - 5 * HOUR, None, "aborted");
        for number in 0..60 {
            write(&format!("c{number}"), "cart", now - HOUR + number, None, "aborted");
        }
        other.inherits(&one.leaves(Overlay::default(), BTreeMap::new()).unwrap()).unwrap();
        for resource in ["orders", "web", "cart"] {
            let [known, left] = [&one, &other]
                .map(|journal| journal.commits_since(resource, Timestamp(now - 24 * HOUR)).unwrap());
            assert_eq!((known.recent, known.last), (left.recent, left.last), "{resource}");
            assert_eq!(known.undone, left.undone, "{resource}");
        }
        assert_eq!(other.commits_since("orders", Timestamp(now - 24 * HOUR)).unwrap().recent.len(), 2);
    }

    #[test]
    fn what_a_newer_program_left_is_not_guessed_at() {
        assert!(Legacy::read("{").is_err());
        for newer in
            [r#"{"version": 2, "serial": 3, "tables": {}, "overlay": {}}"#, r#"{"version": 2, "serial": 3}"#]
        {
            assert_eq!(Legacy::read(newer).unwrap_err(), Unreadable::Newer(2));
            assert_eq!(Legacy::serial_of(newer), Some(3));
        }
        let directory = tempfile::tempdir().unwrap();
        let journal = Journal::open(directory.path()).unwrap();
        let row = r#"{"scope": "orders", "by_whom": "ann", "why": "x", "at_ms": 1, "until_ms": null, "colour": "red"}"#;
        let text = format!(
            r#"{{"version": 1, "serial": 3, "tables": {{"freeze": [{row}], "shoes": [{row}]}}, "overlay": {{"version": 1}}}}"#
        );
        journal.inherits(&Legacy::read(&text).unwrap()).unwrap();
        assert_eq!(journal.freezes().unwrap().len(), 1);
    }
}
