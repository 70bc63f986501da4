//! What comes after the rows: indexes and constraints, by several sessions at once.
//!
//! Each statement is a transaction of its own, with its record in `godwit.copied_statements`: a copy that breaks here goes
//! on with what is missing. First keys and indexes, the biggest table's first, each table's keys before its other indexes;
//! then everything else in the dump's order, foreign keys without a look at the rows; then that look, several at a time.
//! Where tables are of different snapshots, foreign keys and materialised views wait until the stream has brought all to
//! one point ([`super::window`]).

use std::collections::{HashMap, HashSet, VecDeque};

use tokio::task::JoinSet;
use tokio_postgres::Client;
use tokio_postgres::types::PgLsn;

use super::{PostgresTarget, not_open, open};
use crate::error::Error;
use crate::postgres::Dsn;
use crate::schema::statements::{Kind, Statement, statements};
use crate::{copy, schema};

/// Memory for one session's index: a quarter of what the server caches with, at most 1 GB, never less than it is set to.
const MEMORY: &str = "SELECT pg_catalog.set_config('maintenance_work_mem', greatest( \
    (SELECT setting::bigint FROM pg_catalog.pg_settings WHERE name = 'maintenance_work_mem'), \
    least(1048576, (SELECT setting::bigint * 8 / 4 FROM pg_catalog.pg_settings WHERE name = 'shared_buffers')))::text \
    || 'kB', false)";

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
        let client = open(&self.dsn, &self.application).await?;
        // The checkpoint's commit makes everything durable with it: it comes later in the WAL.
        client
            .batch_execute("SET synchronous_commit = off")
            .await
            .map_err(Error::database("prepare a copy session"))?;
        Ok(client)
    }

    /// Begins a transaction that commits only while this is the newest copy of the stream.
    pub(super) async fn begin(&self, client: &Client) -> Result<(), Error> {
        let failed = || Error::database("take part in the copy");
        client.batch_execute("BEGIN").await.map_err(failed())?;
        let note = "SELECT FROM godwit.copying WHERE stream = $1 AND attempt = $2 FOR SHARE";
        match client.query_opt(note, &[&self.stream, &self.attempt]).await.map_err(failed())? {
            Some(_) => Ok(()),
            None => Err(Error::Link("a newer copy has begun".into())),
        }
    }

    /// One statement and its record.
    async fn run(&self, client: &Client, sql: &str) -> Result<(), Error> {
        let failed = || {
            let line = sql.lines().map(str::trim).collect::<Vec<_>>().join(" ");
            Error::database(format!("load the schema, at: {}", line.chars().take(200).collect::<String>()))
        };
        self.begin(client).await?;
        client.batch_execute(sql).await.map_err(failed())?;
        self.note(client, 0, sql, true).await?;
        client.batch_execute("COMMIT").await.map_err(failed())
    }

    async fn note(&self, client: &Client, place: i64, sql: &str, done: bool) -> Result<(), Error> {
        let insert =
            "INSERT INTO godwit.copied_statements (stream, place, statement, done) VALUES ($1, $2, $3, $4)";
        client
            .execute(insert, &[&self.stream, &place, &sql, &done])
            .await
            .map_err(Error::database("note a statement of the schema"))?;
        Ok(())
    }
}

/// A statement for whoever is free.
#[derive(Clone, Debug)]
struct Job {
    table: String,
    sql: String,
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

    fn done(&mut self, job: &Job) {
        if let Some(table) = self.tables.get_mut(&job.table) {
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
            client.batch_execute("BEGIN").await.map_err(failed())?;
            let context = format!("finish a copy that broke, at: {sql}");
            client.batch_execute(sql).await.map_err(Error::database(context))?;
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
        Ok(Self {
            noted: rows.iter().map(|row| row.get(0)).collect(),
            tables: tables.iter().map(|row| (row.get(0), (row.get(1), row.get(2)))).collect(),
        })
    }
}

/// Statistics of every table that was copied, the biggest first: the stream need not wait for them. What goes wrong is the planner's loss
/// only, and autovacuum makes it good.
pub(super) async fn analyze(work: Work) {
    if let Err(error) = analyze_each(&work).await {
        tracing::warn!(stream = work.stream, %error, "copied tables have no statistics yet");
    }
}

/// A table that cannot be analyzed (an index's expression may fail) does not keep the others from it.
async fn analyze_each(work: &Work) -> Result<(), Error> {
    let client = work.connect().await?;
    let mut tables = copy::tables(&client).await?;
    tables.sort_by_key(|table| std::cmp::Reverse(table.bytes));
    for table in tables {
        let name = table.sql_name();
        let analyzed = client.batch_execute(&format!("ANALYZE {name}")).await;
        if let Err(error) = analyzed.map_err(Error::database(format!("analyze {name}"))) {
            if client.is_closed() {
                return Err(error);
            }
            tracing::warn!(stream = work.stream, %error, "a copied table has no statistics yet");
        }
    }
    Ok(())
}

struct Finish {
    work: Work,
    there: Finished,
    statements: Vec<Statement>,
    sessions: Vec<Client>,
    /// Foreign keys whose rows nobody has looked at.
    unchecked: Vec<Job>,
}

impl Finish {
    fn new(work: Work, sql: &str, there: Finished) -> Self {
        Self { work, there, statements: statements(sql), sessions: Vec::new(), unchecked: Vec::new() }
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
                jobs.push((*size, key, Job { table: table.clone(), sql: statement.sql.clone() }));
            }
        }
        jobs.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.2.table.cmp(&b.2.table)));
        let mut schedule = Schedule::default();
        for (_, key, job) in jobs {
            schedule.add(job, key);
        }
        self.run(schedule, true).await
    }

    /// Everything else, in the dump's order; of foreign keys and materialised views a note where they must wait.
    async fn others(&mut self, late: bool) -> Result<(), Error> {
        let Some(client) = self.sessions.first() else { return Err(not_open()) };
        for (place, statement) in (0..).zip(&self.statements) {
            let sql = &statement.sql;
            match &statement.kind {
                Kind::Setting => {}
                Kind::ForeignKey { .. } | Kind::Refresh if late => {
                    if !self.is_noted(sql) {
                        self.work.begin(client).await?;
                        self.work.note(client, place, sql, false).await?;
                        client.batch_execute("COMMIT").await.map_err(Error::database("note a statement"))?;
                    }
                }
                Kind::ForeignKey { table, name } if self.can_wait(table, sql) => {
                    let quick = format!("{sql} NOT VALID");
                    if !self.is_noted(&quick) {
                        self.work.run(client, &quick).await?;
                    }
                    let check = format!("ALTER TABLE {table} VALIDATE CONSTRAINT {name}");
                    if !self.is_noted(&check) {
                        self.unchecked.push(Job { table: table.clone(), sql: check });
                    }
                }
                _ if self.is_noted(sql) => {}
                _ => self.work.run(client, sql).await?,
            }
        }
        Ok(())
    }

    /// Whether a foreign key can be added without a look at the rows: not on partitioned tables before 18.
    fn can_wait(&self, table: &str, sql: &str) -> bool {
        let plain = self.there.tables.get(table).is_some_and(|(_, partitioned)| !partitioned);
        plain && !sql.contains("NOT VALID") && !sql.contains("NOT ENFORCED")
    }

    async fn validate(&mut self) -> Result<(), Error> {
        let mut schedule = Schedule::default();
        for job in std::mem::take(&mut self.unchecked) {
            // One at a time on a table: the lock is its own rival.
            schedule.add(job, true);
        }
        self.run(schedule, false).await
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
                    let done = work.run(&client, &job.sql).await;
                    (client, job, done)
                });
            }
            let Some(ended) = running.join_next().await else { return Ok(()) };
            let (client, job, done) = ended
                .map_err(|error| Error::Link(format!("a session that builds indexes ended: {error}")))?;
            match done {
                Ok(()) => {
                    self.there.noted.insert(job.sql.clone());
                }
                Err(error) if lenient && error.sqlstate().is_some_and(|state| state.starts_with("42")) => {
                    tracing::info!(statement = job.sql, %error, "tried again with what comes later");
                    client.batch_execute("ROLLBACK").await.map_err(Error::database("go back"))?;
                }
                Err(error) => return Err(error),
            }
            schedule.done(&job);
            self.sessions.push(client);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(table: &str, sql: &str) -> Job {
        Job { table: table.into(), sql: sql.into() }
    }

    #[test]
    fn keys_come_alone_and_first_and_indexes_side_by_side() {
        let mut schedule = Schedule::default();
        schedule.add(job("big", "index 1"), false);
        schedule.add(job("big", "key 1"), true);
        schedule.add(job("big", "key 2"), true);
        schedule.add(job("big", "index 2"), false);
        schedule.add(job("small", "key 3"), true);
        let next = |schedule: &mut Schedule| schedule.next().map(|job| job.sql);
        assert_eq!(next(&mut schedule).as_deref(), Some("key 1"));
        assert_eq!(next(&mut schedule).as_deref(), Some("key 3"), "another table's meanwhile");
        assert_eq!(next(&mut schedule), None);
        schedule.done(&job("big", "key 1"));
        assert_eq!(next(&mut schedule).as_deref(), Some("key 2"));
        assert_eq!(next(&mut schedule), None);
        schedule.done(&job("big", "key 2"));
        assert_eq!(next(&mut schedule).as_deref(), Some("index 1"));
        assert_eq!(next(&mut schedule).as_deref(), Some("index 2"));
        assert_eq!(next(&mut schedule), None);
    }
}
