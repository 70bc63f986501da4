//! What comes after the rows: indexes and constraints, by several sessions at once.
//!
//! Each statement has its record in `godwit.copied_statements`, in its own transaction: a copy that breaks here goes on with what is missing.
//! Those that are quick share one, and a round trip. First keys and indexes, the biggest table's first, each table's keys before its other indexes;
//! then everything else in the dump's order, foreign keys without a look at the rows; then that look, several at a time.
//! Where tables are of different snapshots, foreign keys and materialised views wait until the stream has brought all to
//! one point ([`super::window`]).

use std::collections::{HashMap, HashSet, VecDeque};

use tokio::task::JoinSet;
use tokio_postgres::Client;
use tokio_postgres::types::PgLsn;

use super::session::has_code;
use super::{AS_IT_IS, PostgresTarget, not_open, open};
use crate::error::Error;
use crate::postgres::connection::settings_sql;
use crate::postgres::{Dsn, quote_literal};
use crate::schema::statements::{Kind, Statement, statements};
use crate::{copy, schema, statistics};

/// Memory for one session's index: a quarter of what the server caches with, at most 1 GB, never less than it is set to.
const MEMORY: &str = "SELECT pg_catalog.set_config('maintenance_work_mem', greatest( \
    (SELECT setting::bigint FROM pg_catalog.pg_settings WHERE name = 'maintenance_work_mem'), \
    least(1048576, (SELECT setting::bigint * 8 / 4 FROM pg_catalog.pg_settings WHERE name = 'shared_buffers')))::text \
    || 'kB', false)";

/// A table of up to so many bytes is small: its indexes take less time than a round trip.
const SMALL: i64 = 1 << 20;

/// Statements that share a transaction, where each is quick.
const TOGETHER: usize = 100;

/// What sessions of one copy need to take part in it.
#[derive(Clone, Debug)]
pub(super) struct Work {
    pub(super) dsn: Dsn,
    pub(super) application: String,
    pub(super) stream: String,
    pub(super) attempt: i64,
}

impl Work {
    pub(super) async fn connect(&self) -> Result<Client, Error> {
        let (client, _) = open(&self.dsn, &self.application).await?;
        // The checkpoint's commit makes everything durable with it: it comes later in the WAL.
        client
            .batch_execute("SET synchronous_commit = off")
            .await
            .map_err(Error::database("prepare a copy session"))?;
        Ok(client)
    }

    /// A session for the rows.
    pub(super) async fn writer(&self) -> Result<copy::Writer, Error> {
        let settings = format!("{}; SET synchronous_commit = off", settings_sql(&AS_IT_IS, false));
        copy::Writer::open(&self.dsn, &self.application, &settings).await
    }

    /// The first statement of a transaction that commits only while this is the newest copy of the stream.
    pub(super) fn takes_part(&self) -> String {
        format!("SELECT godwit.take_part({}, {})", quote_literal(&self.stream), self.attempt)
    }

    /// Statements and their records, in one transaction and one round trip.
    async fn run(&self, client: &Client, statements: &[String]) -> Result<(), Error> {
        let notes: Vec<String> = statements.iter().map(|sql| self.noted(0, sql, true)).collect();
        let all = self.transaction(&[statements, &[Self::note(&notes)]].concat());
        client.batch_execute(&all).await.map_err(|error| {
            let first = statements.first().map_or("", String::as_str);
            let line = first.lines().map(str::trim).collect::<Vec<_>>().join(" ");
            let line: String = line.chars().take(200).collect();
            taken_over(Error::database(format!("load the schema, at: {line}"))(error))
        })
    }

    /// The same; where one of them fails, one by one up to that. `lenient`: what the server does not understand yet is passed over. Gives those that
    /// are done.
    async fn run_each(
        &self,
        client: &Client,
        statements: Vec<String>,
        lenient: bool,
    ) -> Result<Vec<String>, Error> {
        let back = async || client.batch_execute("ROLLBACK").await.map_err(Error::database("go back"));
        if statements.len() > 1 {
            match self.run(client, &statements).await {
                Ok(()) => return Ok(statements),
                Err(error) if error.sqlstate().is_some() => back().await?,
                Err(error) => return Err(error),
            }
        }
        let mut done = Vec::new();
        for statement in statements {
            match self.run(client, std::slice::from_ref(&statement)).await {
                Ok(()) => done.push(statement),
                Err(error) if lenient && error.sqlstate().is_some_and(|state| state.starts_with("42")) => {
                    tracing::info!(statement, %error, "tried again with what comes later");
                    back().await?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    /// Notes these lines; none is no error.
    async fn note_all(&self, client: &Client, notes: &[String]) -> Result<(), Error> {
        for notes in notes.chunks(TOGETHER) {
            let sql = self.transaction(&[Self::note(notes)]);
            client
                .batch_execute(&sql)
                .await
                .map_err(|error| taken_over(Error::database("note statements")(error)))?;
        }
        Ok(())
    }

    fn transaction(&self, statements: &[String]) -> String {
        // A line of its own: a statement may end in a comment.
        format!("BEGIN; {};\n{}\n;\nCOMMIT", self.takes_part(), statements.join("\n;\n"))
    }

    fn note(notes: &[String]) -> String {
        let into = "INSERT INTO godwit.copied_statements (stream, place, statement, done) VALUES";
        format!("{into} {}", notes.join(", "))
    }

    fn noted(&self, place: i64, sql: &str, done: bool) -> String {
        format!("({}, {place}, {}, {done})", quote_literal(&self.stream), quote_literal(sql))
    }
}

/// Of a transaction that took part: whether another copy has begun since.
pub(super) fn taken_over(error: Error) -> Error {
    match error.sqlstate() {
        Some("ZG003") => Error::Link("a newer copy has begun".into()),
        _ => error,
    }
}

/// Statements for whoever is free: of one table, or all those of some small ones.
#[derive(Clone, Debug)]
struct Job {
    table: String,
    statements: Vec<String>,
}

/// The jobs of a table: some before the others.
#[derive(Debug, Default)]
struct Table {
    keys: VecDeque<Job>,
    indexes: VecDeque<Job>,
    running: usize,
    /// Keys run alone.
    alone: bool,
}

/// Hands out jobs: tables in order, of a table its keys one after the other, then its indexes side by side.
#[derive(Debug, Default)]
struct Schedule {
    order: Vec<String>,
    tables: HashMap<String, Table>,
}

impl Schedule {
    /// Of jobs with the size of their table and whether they are a key: the biggest table's first, of each its keys before the others. Small tables'
    /// go together, as a table of their own.
    fn of(mut jobs: Vec<(i64, bool, Job)>) -> Self {
        jobs.sort_by(|a, b| {
            b.0.cmp(&a.0).then_with(|| a.2.table.cmp(&b.2.table)).then_with(|| b.1.cmp(&a.1))
        });
        let (mut schedule, mut small) =
            (Self::default(), Job { table: String::new(), statements: Vec::new() });
        let mut last = String::new();
        for (size, key, job) in jobs {
            if size > SMALL {
                schedule.add(job, key);
                continue;
            }
            if small.statements.len() >= TOGETHER && job.table != last {
                schedule.add(
                    std::mem::replace(&mut small, Job { table: job.table.clone(), statements: Vec::new() }),
                    false,
                );
            } else if small.statements.is_empty() {
                small.table.clone_from(&job.table);
            }
            small.statements.extend(job.statements);
            last = job.table;
        }
        if !small.statements.is_empty() {
            schedule.add(small, false);
        }
        schedule
    }

    fn add(&mut self, job: Job, key: bool) {
        if !self.tables.contains_key(&job.table) {
            self.order.push(job.table.clone());
        }
        let table = self.tables.entry(job.table.clone()).or_default();
        if key { table.keys.push_back(job) } else { table.indexes.push_back(job) }
    }

    fn next(&mut self) -> Option<Job> {
        self.order.iter().find_map(|name| {
            let table = self.tables.get_mut(name)?;
            if table.alone {
                return None;
            }
            if let Some(job) = table.keys.pop_front() {
                if table.running > 0 {
                    table.keys.push_front(job);
                    return None;
                }
                (table.running, table.alone) = (1, true);
                return Some(job);
            }
            let job = table.indexes.pop_front()?;
            table.running += 1;
            Some(job)
        })
    }

    fn done(&mut self, table: &str) {
        if let Some(table) = self.tables.get_mut(table) {
            table.running = table.running.saturating_sub(1);
            table.alone = false;
        }
    }
}

impl PostgresTarget {
    /// Every row is there: makes what comes after them.
    pub(super) async fn load_after(&mut self, sql: &str) -> Result<(), Error> {
        let newest = self.end_rows().await?;
        let copying = self.copying()?;
        let (start, attempt) = (copying.start, copying.attempt);
        let work = self.work(attempt);
        let client = &self.session.as_ref().ok_or_else(not_open)?.client;
        let sql = schema::for_target(sql, schema::server_version(client).await?);
        let there = Finished::read(client, &work).await?;
        let mut finish = Finish::new(work, &sql, there);
        finish.connect(start.sessions.clamp(1, copy::MOST_SESSIONS) as usize).await?;
        finish.indexes().await?;
        finish.others(newest > start.consistent_point).await?;
        finish.validate().await
    }

    /// What had to wait until the tables are at one point.
    pub(super) async fn run_late(&self) -> Result<(), Error> {
        let client = &self.session.as_ref().ok_or_else(not_open)?.client;
        let failed = || Error::database("finish a copy that broke");
        let slot = &self.spec.slot;
        let late = "SELECT place, statement FROM godwit.copied_statements WHERE stream = $1 AND NOT done ORDER BY place";
        for row in client.query(late, &[slot]).await.map_err(failed())? {
            let (place, sql): (i64, &str) = (row.get(0), row.get(1));
            tracing::info!(stream = slot, statement = sql, "finishes what the copy left; may take long");
            client.batch_execute("BEGIN").await.map_err(failed())?;
            match client.batch_execute(sql).await {
                // The schema's sync was here first, or a person.
                Err(error) if has_code(&error, &["42710"]) => {
                    client.batch_execute("ROLLBACK; BEGIN").await.map_err(failed())?;
                }
                ran => ran.map_err(Error::database(format!("finish a copy that broke, at: {sql}")))?,
            }
            let done = "DELETE FROM godwit.copied_statements WHERE stream = $1 AND place = $2 AND NOT done";
            client.execute(done, &[slot, &place]).await.map_err(failed())?;
            client.batch_execute("COMMIT").await.map_err(failed())?;
        }
        // Meanwhile another table may have got a position.
        let parts = "DELETE FROM godwit.copied_parts WHERE stream = $1 AND position <= $2";
        client.execute(parts, &[slot, &PgLsn::from(self.expected.0)]).await.map_err(failed())?;
        Ok(())
    }
}

/// What the target's catalog and its records say before the work.
struct Finished {
    /// Statements that are done, or noted for later.
    noted: HashSet<String>,
    /// Tables by quoted name: their size, and whether they are partitioned.
    tables: HashMap<String, (i64, bool)>,
    superuser: bool,
}

impl Finished {
    async fn read(client: &Client, work: &Work) -> Result<Self, Error> {
        let failed = || Error::database("look at what is finished of a copy");
        let noted = "SELECT statement FROM godwit.copied_statements WHERE stream = $1";
        let rows = client.query(noted, &[&work.stream]).await.map_err(failed())?;
        // Quoted as the dump quotes: always.
        let tables = "SELECT '\"' || replace(n.nspname, '\"', '\"\"') || '\".\"' || replace(c.relname, '\"', '\"\"') || '\"', \
             coalesce(pg_catalog.pg_table_size(c.oid), 0), c.relkind = 'p' \
             FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
             WHERE c.relkind IN ('r', 'p') AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'godwit')";
        let tables = client.query(tables, &[]).await.map_err(failed())?;
        let superuser = "SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user";
        Ok(Self {
            superuser: client.query_one(superuser, &[]).await.map_err(failed())?.get(0),
            noted: rows.iter().map(|row| row.get(0)).collect(),
            tables: tables.iter().map(|row| (row.get(0), (row.get(1), row.get(2)))).collect(),
        })
    }
}

/// The stream need not wait for statistics. What goes wrong is the planner's loss only, and autovacuum makes it good.
pub(super) async fn analyze(work: Work) {
    let analyzed = async { statistics::renew(&work.connect().await?).await };
    let without = analyzed.await.unwrap_or_else(|error| vec![error]);
    for error in without {
        tracing::warn!(stream = work.stream, %error, "copied tables have no statistics yet");
    }
}

fn is_of_event_trigger(sql: &str) -> bool {
    ["CREATE ", "ALTER ", "COMMENT ON "]
        .iter()
        .any(|word| sql.strip_prefix(word).is_some_and(|rest| rest.starts_with("EVENT TRIGGER ")))
}

struct Finish {
    work: Work,
    there: Finished,
    statements: Vec<Statement>,
    sessions: Vec<Client>,
    /// Foreign keys whose rows nobody has looked at, each with its table's size and that it is a key: one at a time on a table, or the lock is its
    /// own rival.
    unchecked: Vec<(i64, bool, Job)>,
}

impl Finish {
    fn new(work: Work, sql: &str, there: Finished) -> Self {
        let mut statements = statements(sql);
        // Only a superuser may make event triggers: what the target lacks is told (`preflight::compare`).
        statements.retain(|statement| there.superuser || !is_of_event_trigger(&statement.sql));
        Self { work, there, statements, sessions: Vec::new(), unchecked: Vec::new() }
    }

    fn is_noted(&self, sql: &str) -> bool {
        self.there.noted.contains(sql)
    }

    async fn connect(&mut self, most: usize) -> Result<(), Error> {
        let settings: Vec<&str> = self
            .statements
            .iter()
            .filter(|statement| statement.kind == Kind::Setting)
            .map(|statement| &*statement.sql)
            .collect();
        let settings = settings.join(";");
        while self.sessions.len() < most {
            let client = self.work.connect().await?;
            client.batch_execute(MEMORY).await.map_err(Error::database("prepare a copy session"))?;
            client.batch_execute(&settings).await.map_err(Error::database("prepare a copy session"))?;
            self.sessions.push(client);
        }
        Ok(())
    }

    /// Keys and indexes of tables that are there. One that the server does not understand yet (it needs what comes later in the
    /// dump) is left to [`Self::others`].
    async fn indexes(&mut self) -> Result<(), Error> {
        let mut jobs: Vec<(i64, bool, Job)> = Vec::new();
        for statement in &self.statements {
            let (table, key) = match &statement.kind {
                Kind::Constraint(table) => (table, true),
                Kind::Index(table) => (table, false),
                _ => continue,
            };
            if let Some((size, _)) = self.there.tables.get(table)
                && !self.is_noted(&statement.sql)
            {
                jobs.push((
                    *size,
                    key,
                    Job { table: table.clone(), statements: vec![statement.sql.clone()] },
                ));
            }
        }
        self.run(Schedule::of(jobs), true).await
    }

    /// Everything else, in the dump's order; of foreign keys and materialised views a note where they must wait.
    async fn others(&mut self, late: bool) -> Result<(), Error> {
        let client = self.sessions.first().ok_or_else(not_open)?;
        let (mut quick, mut later) = (Vec::new(), Vec::new());
        let mut put_off = Vec::new();
        for (place, statement) in (0..).zip(&self.statements) {
            let sql = &statement.sql;
            match &statement.kind {
                Kind::Setting => {}
                Kind::ForeignKey { .. } | Kind::Refresh if late => {
                    if let Kind::ForeignKey { table, name, .. } = &statement.kind {
                        put_off.push(format!("COMMENT ON CONSTRAINT {name} ON {table} IS "));
                    }
                    if !self.is_noted(sql) {
                        later.push(self.work.noted(place, sql, false));
                    }
                }
                Kind::ForeignKey { table, name, .. } if self.can_wait(table, sql) => {
                    let unchecked = format!("{sql} NOT VALID");
                    if !self.is_noted(&unchecked) {
                        quick.push(unchecked);
                    }
                    let check = format!("ALTER TABLE {table} VALIDATE CONSTRAINT {name}");
                    if !self.is_noted(&check) {
                        let size = self.there.tables.get(table).map_or(0, |(size, _)| *size);
                        self.unchecked.push((
                            size,
                            true,
                            Job { table: table.clone(), statements: vec![check] },
                        ));
                    }
                }
                _ if self.is_noted(sql) => {}
                Kind::Other if put_off.iter().any(|of_key| sql.starts_with(of_key)) => {
                    later.push(self.work.noted(place, sql, false));
                }
                Kind::Other => quick.push(sql.clone()),
                _ => {
                    self.work.run_each(client, std::mem::take(&mut quick), false).await?;
                    self.work.run_each(client, vec![sql.clone()], false).await?;
                }
            }
            if quick.len() >= TOGETHER {
                self.work.run_each(client, std::mem::take(&mut quick), false).await?;
            }
        }
        self.work.run_each(client, quick, false).await?;
        self.work.note_all(client, &later).await
    }

    /// Whether a foreign key can be added without a look at the rows: not on partitioned tables before 18.
    fn can_wait(&self, table: &str, sql: &str) -> bool {
        let plain = self.there.tables.get(table).is_some_and(|(_, partitioned)| !partitioned);
        plain && !sql.contains("NOT VALID") && !sql.contains("NOT ENFORCED")
    }

    async fn validate(&mut self) -> Result<(), Error> {
        let unchecked = std::mem::take(&mut self.unchecked);
        self.run(Schedule::of(unchecked), false).await
    }

    async fn run(&mut self, mut schedule: Schedule, lenient: bool) -> Result<(), Error> {
        let mut running = JoinSet::new();
        loop {
            while !self.sessions.is_empty()
                && let Some(job) = schedule.next()
                && let Some(client) = self.sessions.pop()
            {
                let work = self.work.clone();
                running.spawn(async move {
                    let done = work.run_each(&client, job.statements, lenient).await;
                    (client, job.table, done)
                });
            }
            let Some(ended) = running.join_next().await else { return Ok(()) };
            let (client, table, done) = ended
                .map_err(|error| Error::Link(format!("a session that builds indexes ended: {error}")))?;
            self.there.noted.extend(done?);
            schedule.done(&table);
            self.sessions.push(client);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(table: &str, sql: &str) -> Job {
        Job { table: table.into(), statements: vec![sql.into()] }
    }

    #[test]
    fn keys_come_alone_and_first_and_indexes_side_by_side() {
        let mut schedule = Schedule::default();
        schedule.add(job("big", "index 1"), false);
        schedule.add(job("big", "key 1"), true);
        schedule.add(job("big", "key 2"), true);
        schedule.add(job("big", "index 2"), false);
        schedule.add(job("small", "key 3"), true);
        let next = |schedule: &mut Schedule| schedule.next().map(|job| job.statements.join("; "));
        assert_eq!(next(&mut schedule).as_deref(), Some("key 1"));
        assert_eq!(next(&mut schedule).as_deref(), Some("key 3"), "another table's meanwhile");
        assert_eq!(next(&mut schedule), None);
        schedule.done("big");
        assert_eq!(next(&mut schedule).as_deref(), Some("key 2"));
        assert_eq!(next(&mut schedule), None);
        schedule.done("big");
        assert_eq!(next(&mut schedule).as_deref(), Some("index 1"));
        assert_eq!(next(&mut schedule).as_deref(), Some("index 2"));
        assert_eq!(next(&mut schedule), None);
    }

    #[test]
    fn small_tables_go_together_and_each_is_whole() {
        let small = |table: usize| {
            ["key", "index"].map(|what| {
                (SMALL, what == "key", job(&format!("t{table:03}"), &format!("{what} {table:03}")))
            })
        };
        let mut jobs = vec![(SMALL + 1, true, job("big", "key")), (SMALL + 1, false, job("big", "index"))];
        jobs.extend((0..60).flat_map(small));
        let mut schedule = Schedule::of(jobs);
        let first = schedule.next().expect("the big one's key");
        assert_eq!(first.statements, ["key"]);
        let all: Vec<Job> = std::iter::from_fn(|| schedule.next()).collect();
        assert_eq!(
            all.iter().map(|job| job.statements.len()).collect::<Vec<_>>(),
            [TOGETHER, 120 - TOGETHER]
        );
        for job in all {
            assert!(
                job.statements.chunks(2).all(|two| two[0].starts_with("key") && two[1][5..] == two[0][3..]),
                "{job:?}"
            );
        }
        schedule.done("big");
        assert_eq!(schedule.next().map(|job| job.statements), Some(vec!["index".into()]));
    }
}
