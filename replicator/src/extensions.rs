//! What extensions keep for their users: rows of tables that belong to the extension and not to the service, and so are not replicated
//! (`pg_extension_config_dump`). PostgreSQL's own dumps have them.
//!
//! Most of it is only read (PostGIS's `spatial_ref_sys`): the shadow has what the primary has. What an extension *acts* on by itself
//! (jobs of `pg_cron`, partition sets of `pg_partman`) the shadow must not have, or it would act there as well: it is parked beside, and put
//! in place when the shadow becomes the primary. Logs of what was done stay where it was done.
//!
//! Source: PostgreSQL documentation, "Extension Configuration Tables"; `pg_cron` and `pg_partman`, their installation scripts.

use std::collections::{HashMap, HashSet};

use tokio_postgres::{Client, SimpleQueryMessage};

use crate::beside::{Sides, answers, insert};
use crate::error::Error;
use crate::fence::{literal, refused, sql_generation};
use crate::postgres::connection::settings_sql;
use crate::postgres::{quote_ident, quote_literal};
use crate::preflight::{Finding, Severity};

/// Extensions that act by themselves, and on what: tables and sequences.
const ACTS: [(&str, &str); 4] = [
    ("pg_cron", "job"),
    ("pg_cron", "jobid_seq"),
    ("pg_partman", "part_config"),
    ("pg_partman", "part_config_sub"),
];
/// What extensions note of their own doings.
const LOGS: [(&str, &str); 5] = [
    ("pg_cron", "job_run_details"),
    ("pg_cron", "runid_seq"),
    ("pgagent", "pga_jobagent"),
    ("pgagent", "pga_joblog"),
    ("pgagent", "pga_jobsteplog"),
];
/// Columns that tell of a server itself: what stands there for "this one".
const OWN: [(&str, &str, &str, &str); 3] = [
    ("pg_cron", "job", "nodename", "pg_catalog.current_setting('cron.host', true)"),
    ("pg_cron", "job", "nodeport", "pg_catalog.current_setting('port')::int"),
    ("pg_cron", "job", "database", "pg_catalog.current_database()::text"),
];
/// Rows of one table that are carried at most: they are read under a hold.
const ROWS: usize = 10_000;
/// How long mirrored reads may keep one of the shadow's.
const PATIENCE: &str = "5s";

/// A table or sequence of an extension, as one server has it.
struct Known {
    extension: String,
    /// Quoted where SQL needs it.
    schema: String,
    name: String,
    /// With its schema, quoted where SQL needs it.
    sql_name: String,
    sequence: bool,
    /// Which rows are the users': SQL from WHERE on, or nothing.
    condition: String,
    /// Those that are not generated.
    columns: Vec<String>,
    /// Godwit's role may read it.
    readable: bool,
    /// And write it.
    allowed: bool,
    /// Row security hides rows from Godwit's role.
    hidden: bool,
    /// It never held a row.
    empty: bool,
    /// Godwit's role acts for its owner, and so the fence is on it, too.
    ours: bool,
}

impl Known {
    fn is_of(&self, list: &[(&str, &str)]) -> bool {
        list.contains(&(&self.extension, &self.name))
    }

    /// What stands in a column for the server itself.
    fn own(&self, column: &str) -> Option<&'static str> {
        let is_it = |(extension, table, name, _): &&(&str, &str, &str, &str)| {
            (*extension, *table, *name) == (&*self.extension, &*self.name, column)
        };
        OWN.iter().find(is_it).map(|(.., own)| *own)
    }

    fn read_sql(&self) -> String {
        if self.sequence {
            return format!("SELECT last_value, is_called FROM {}", self.sql_name);
        }
        let column = |column: &String| match self.own(column) {
            Some(own) => format!("nullif({}, {own})", quote_ident(column)),
            None => quote_ident(column),
        };
        let columns: Vec<_> = self.columns.iter().map(column).collect();
        format!("SELECT {} FROM ONLY {} {}\n", columns.join(", "), self.sql_name, self.condition)
    }

    fn delete_sql(&self) -> String {
        format!("DELETE FROM ONLY {} {};\n", self.sql_name, self.condition)
    }

    /// Where its table is not the role's, triggers of the extension are to fire: by one `pg_cron` hears of a change.
    fn role_sql(&self) -> &'static str {
        if self.ours {
            "SET LOCAL session_replication_role = replica;\n"
        } else {
            "SET LOCAL session_replication_role = origin;\n"
        }
    }
}

async fn known(client: &Client) -> Result<Vec<Known>, Error> {
    let sql = "SELECT e.extname::text, pg_catalog.quote_ident(n.nspname), c.relname::text, pg_catalog.format('%I.%I', n.nspname, c.relname), c.relkind = 'S', coalesce(t.condition, ''), \
             ARRAY(SELECT a.attname::text FROM pg_catalog.pg_attribute a \
                   WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '' ORDER BY a.attnum), \
             pg_catalog.has_schema_privilege(n.oid, 'USAGE') AND CASE c.relkind \
               WHEN 'S' THEN pg_catalog.has_sequence_privilege(c.oid, 'SELECT') ELSE pg_catalog.has_table_privilege(c.oid, 'SELECT') END, \
             CASE c.relkind WHEN 'S' THEN pg_catalog.has_sequence_privilege(c.oid, 'UPDATE') \
               ELSE pg_catalog.has_table_privilege(c.oid, 'INSERT') AND pg_catalog.has_table_privilege(c.oid, 'DELETE') END, \
             c.relrowsecurity AND NOT (r.rolsuper OR r.rolbypassrls OR pg_catalog.pg_has_role(c.relowner, 'USAGE') AND NOT c.relforcerowsecurity), \
             c.relkind = 'r' AND pg_catalog.pg_relation_size(c.oid) = 0, pg_catalog.pg_has_role(c.relowner, 'USAGE') \
         FROM pg_catalog.pg_extension e, unnest(e.extconfig, e.extcondition) WITH ORDINALITY AS t(id, condition, place), \
           pg_catalog.pg_class c, pg_catalog.pg_namespace n, pg_catalog.pg_roles r \
         WHERE c.oid = t.id AND c.relkind IN ('r', 'S') AND n.oid = c.relnamespace AND r.rolname = current_user ORDER BY e.oid, t.place";
    let found = client.query_typed(sql, &[]).await.map_err(refused("list what extensions keep"))?;
    let relation = |row: &tokio_postgres::Row| Known {
        extension: row.get(0),
        schema: row.get(1),
        name: row.get(2),
        sql_name: row.get(3),
        sequence: row.get(4),
        condition: row.get(5),
        columns: row.get(6),
        readable: row.get(7),
        allowed: row.get(7) && row.get(8),
        hidden: row.get(9),
        empty: row.get(10),
        ours: row.get(11),
    };
    Ok(found.iter().map(relation).filter(|known| !known.is_of(&LOGS)).collect())
}

/// A table or sequence that can be carried.
#[derive(Clone, Debug)]
struct Kept {
    acts: bool,
    read: String,
    delete: Option<String>,
    /// On the shadow.
    name: String,
    role: &'static str,
    columns: Vec<String>,
    own: Vec<Option<&'static str>>,
}

/// What extensions keep that both sides have and Godwit's role may carry.
#[derive(Clone, Debug, Default)]
pub struct All(Vec<Kept>);

/// What was read of it: SQL for the shadow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rows {
    /// What it has as well.
    shared: String,
    /// What it is to act on as the primary.
    acted: String,
}

/// What of the source's there is to carry. What the role may not is told by [`findings`].
///
/// # Errors
/// [`Error::Database`].
pub async fn all(source: &Client, target: &Client) -> Result<All, Error> {
    let (here, there) = tokio::try_join!(known(source), known(target))?;
    let there: HashMap<_, _> = there.iter().map(|known| ((&*known.extension, &*known.name), known)).collect();
    let kept = |known: &Known| {
        let other = there.get(&(&*known.extension, &*known.name))?;
        let usable = [known, other].iter().all(|side| side.allowed && !side.hidden);
        let alike = known.columns.iter().all(|column| other.columns.contains(column));
        (usable && alike && known.sequence == other.sequence).then(|| Kept {
            acts: known.is_of(&ACTS),
            read: known.read_sql(),
            delete: (!other.sequence).then(|| other.delete_sql()),
            name: other.sql_name.clone(),
            role: other.role_sql(),
            columns: known.columns.iter().map(|column| quote_ident(column)).collect(),
            own: known.columns.iter().map(|column| known.own(column)).collect(),
        })
    };
    Ok(All(here.iter().filter_map(kept).collect()))
}

impl All {
    /// Nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Reads it in one message.
    ///
    /// # Errors
    /// [`Error::Database`]; [`Error::Unready`] where there are too many rows.
    pub async fn read(&self, source: &Client) -> Result<Rows, Error> {
        if self.is_empty() {
            return Ok(Rows::default());
        }
        let mut sql = settings_sql(&[("row_security", "off"), ("transaction_timeout", "0")], true);
        for kept in &self.0 {
            sql.push_str(&format!(";\n{}", kept.read));
        }
        let answer = source.simple_query(&sql).await.map_err(refused("read what extensions keep"))?;
        self.rows(&answer)?
            .ok_or_else(|| Error::Protocol("what extensions keep is not what was asked for".into()))
    }

    fn rows(&self, answer: &[SimpleQueryMessage]) -> Result<Option<Rows>, Error> {
        let mut answers = answers(answer);
        let (mut shared, mut acted) = (String::new(), self.still_sql());
        answers.next();
        for kept in &self.0 {
            let Some(rows) = answers.next() else { return Ok(None) };
            if rows.len() > ROWS {
                return Err(Error::Unready(format!(
                    "{} holds {} rows for its extension's users, and at most {ROWS} of a table are carried",
                    kept.name,
                    rows.len()
                )));
            }
            let sql = if kept.acts { &mut acted } else { &mut shared };
            let Some(delete) = &kept.delete else {
                let Some([Some(last), Some(called)]) = rows.first().map(Vec::as_slice) else {
                    return Ok(None);
                };
                sql.push_str(&format!(
                    "SELECT pg_catalog.setval({}::pg_catalog.regclass, {}, {});\n",
                    quote_literal(&kept.name),
                    literal(last),
                    *called == "t"
                ));
                continue;
            };
            if kept.acts {
                sql.push_str(kept.role);
            } else {
                sql.push_str(delete);
            }
            let null = |at: usize| kept.own.get(at).copied().flatten();
            if insert(&kept.name, &kept.columns, null, &rows, sql).is_none() {
                return Ok(None);
            }
        }
        Ok(Some(Rows { shared, acted }))
    }

    /// What leaves nothing to act on, in the order in which nothing refers to what goes.
    fn still_sql(&self) -> String {
        let mut sql = String::new();
        for kept in self.0.iter().rev().filter(|kept| kept.acts) {
            sql.extend(kept.delete.iter().flat_map(|delete| [kept.role, delete.as_str()]));
        }
        sql
    }

    /// Gives the shadow what the primary has; what would act there is parked.
    ///
    /// # Errors
    /// [`Error::Fenced`] where the database is another generation's by now; [`Error::Database`].
    pub async fn follow(&self, sides: Sides<'_>, rows: &Rows) -> Result<(), Error> {
        if self.is_empty() {
            return Ok(());
        }
        let park = format!(
            "INSERT INTO godwit.parked VALUES ({}, {}, {}) ON CONFLICT (resource) DO UPDATE \
             SET generation = excluded.generation, statements = excluded.statements;\n",
            literal(sides.resource),
            sql_generation(sides.generation)?,
            literal(&rows.acted)
        );
        let sql = format!("{}{park}{}{}", sides.guard_sql()?, shared_sql(&rows.shared), self.still_sql());
        sides.shadow.batch_execute(&sql).await.map_err(refused("write what extensions keep"))
    }

    /// Gives the shadow everything, that it may be the primary. `before`: what it was given of it already.
    ///
    /// # Errors
    /// Those of [`All::follow`].
    pub async fn settle(&self, sides: Sides<'_>, rows: &Rows, before: &Rows) -> Result<(), Error> {
        let changed = if rows.shared == before.shared { String::new() } else { shared_sql(&rows.shared) };
        if changed.is_empty() && rows.acted.is_empty() {
            return Ok(());
        }
        let sql = format!("{}{changed}{}", sides.guard_sql()?, rows.acted);
        sides.shadow.batch_execute(&sql).await.map_err(refused("write what extensions keep"))
    }
}

/// The shadow's tables change whatever the extension would have to say to it.
fn shared_sql(statements: &str) -> String {
    let settings =
        [("session_replication_role", "replica"), ("transaction_timeout", "0"), ("lock_timeout", PATIENCE)];
    format!("{};\n{statements}", settings_sql(&settings, true))
}

/// Before the first copy, since rows may need it (a column that is generated in a coordinate system of one's own): what is not acted on.
///
/// # Errors
/// [`Error::Unready`] where the target's extensions have something of their own to act on, which a shadow has not; [`Error::Database`].
pub async fn seed(source: &Client, target: &Client) -> Result<(), Error> {
    for known in known(target).await?.iter().filter(|known| known.is_of(&ACTS) && !known.sequence) {
        if let Some((rows @ 1.., _)) = digest(known, target).await? {
            let (name, extension) = (&known.sql_name, &known.extension);
            return Err(Error::Unready(format!(
                "the target's {name} has {rows} rows that extension {extension} acts on: a shadow has none (the primary's come with a move); DELETE FROM {name} there"
            )));
        }
    }
    let all = all(source, target).await?;
    let rows = all.read(source).await?;
    if rows.shared.is_empty() {
        return Ok(());
    }
    target.batch_execute(&shared_sql(&rows.shared)).await.map_err(refused("write what extensions keep"))
}

/// Where a shadow takes over without its primary: puts in place what was parked for this generation.
///
/// # Errors
/// [`Error::Database`].
pub async fn unpark(client: &Client, resource: &str, generation: u64) -> Result<(), Error> {
    let sql = "SELECT statements FROM godwit.parked WHERE resource = $1 AND generation = $2";
    let failed = || refused("put in place what extensions act on");
    let row = client.query_opt(sql, &[&resource, &sql_generation(generation)?]).await.map_err(failed())?;
    let Some(statements) = row.map(|row| row.get::<_, String>(0)).filter(|sql| !sql.is_empty()) else {
        return Ok(());
    };
    client.batch_execute(&statements).await.map_err(failed())
}

/// What keeps it from being carried; where it is to be left, what is not the same on both sides.
///
/// # Errors
/// [`Error::Database`].
pub async fn findings(source: &Client, target: &Client, carried: bool) -> Result<Vec<Finding>, Error> {
    let sql = "SELECT pg_catalog.quote_ident(current_user), pg_catalog.current_setting('cron.database_name', true), pg_catalog.current_database()::text";
    let row = source.query_one(sql, &[]).await.map_err(refused("cannot read what extensions keep"))?;
    let (role, scheduled, database): (String, Option<String>, String) = (row.get(0), row.get(1), row.get(2));
    let (here, there) = tokio::try_join!(known(source), known(target))?;
    let mut found = Vec::new();
    if let Some(elsewhere) = scheduled.filter(|scheduled| *scheduled != database) {
        found.push(Finding {
            severity: Severity::Warning,
            subject: "pg_cron".into(),
            problem: format!("keeps its jobs in database {elsewhere} of the source's server, which does not move: those for this database stay there"),
            remedy: Some("cron.database_name = this database, and its jobs scheduled there; or schedule them on the target as well".into()),
        });
    }
    // Extensions that have something to carry, and may be carried so far.
    let mut used = HashSet::new();
    let (tables, sequences): (Vec<_>, Vec<_>) = here.iter().partition(|known| !known.sequence);
    for known in tables.into_iter().chain(sequences).filter(|known| !known.empty) {
        let other =
            there.iter().find(|other| (&other.extension, &other.name) == (&known.extension, &known.name));
        // Before there is that extension, that is what there is to say.
        let Some(other) = other else { continue };
        let told = if !carried {
            unlike(known, other, source, target).await?
        } else if known.sequence {
            // It counts for rows of a table, and that says the same.
            if used.contains(&*known.extension) { lacking(known, other, &role, None) } else { None }
        } else {
            let rows = digest(known, source).await?.map(|(rows, _)| rows);
            let told = if rows == Some(0) { None } else { lacking(known, other, &role, rows) };
            if told.is_none() && rows != Some(0) {
                used.insert(&*known.extension);
            }
            told
        };
        found.extend(told.map(|(problem, remedy)| {
            let severity = if carried { Severity::Blocker } else { Severity::Warning };
            Finding { severity, subject: known.sql_name.clone(), problem, remedy: Some(remedy) }
        }));
    }
    Ok(found)
}

/// Rows of users, as far as they can be read: how many at most one more than are carried, and their digest.
async fn digest(known: &Known, client: &Client) -> Result<Option<(usize, String)>, Error> {
    if known.hidden || !known.readable {
        return Ok(None);
    }
    let sql = format!(
        "{}; SELECT count(*), coalesce(md5(string_agg(h, '' ORDER BY h)), '') FROM \
         (SELECT md5(k::text) AS h FROM ({}LIMIT {}) k) k",
        settings_sql(&[("row_security", "off")], true),
        known.read_sql(),
        ROWS + 1
    );
    let answer = client.simple_query(&sql).await.map_err(refused("cannot read what extensions keep"))?;
    let told = crate::fence::rows(answer);
    let told = told.first().and_then(|row| Some((row.get(0)?.parse().ok()?, row.get(1)?.to_owned())));
    told.map(Some).ok_or_else(|| Error::Protocol("what extensions keep cannot be read".into()))
}

/// Why something, or so many `rows` as far as they can be read, cannot be carried, and what mends it.
fn lacking(known: &Known, other: &Known, role: &str, rows: Option<usize>) -> Option<(String, String)> {
    let Known { extension, sequence, sql_name: name, schema, .. } = known;
    if !(known.allowed && other.allowed) {
        let (rights, kind) =
            if *sequence { ("SELECT, UPDATE", "SEQUENCE ") } else { ("SELECT, INSERT, DELETE", "") };
        return Some((
            format!(
                "extension {extension} keeps something for its users here, and role {role} may not carry it: a move would lose it"
            ),
            format!(
                "GRANT USAGE ON SCHEMA {schema} TO {role}; GRANT {rights} ON {kind}{name} TO {role}, on both sides (godwit grants --extensions)"
            ),
        ));
    }
    if known.hidden || other.hidden {
        return Some((
            format!(
                "row security hides from role {role} what extension {extension} keeps here for its users: a move would lose it"
            ),
            format!("ALTER ROLE {role} BYPASSRLS, on both sides"),
        ));
    }
    if let Some(column) = known.columns.iter().find(|column| !other.columns.contains(column)) {
        return Some((
            format!(
                "the target's has no column {}: what extension {extension} keeps here cannot be carried",
                quote_ident(column)
            ),
            format!("ALTER EXTENSION {} UPDATE on the target", quote_ident(extension)),
        ));
    }
    rows.filter(|rows| *rows > ROWS).map(|_| {
        (
            format!("holds more than {ROWS} rows of extension {extension}'s users, too many to be carried under a hold"),
            "replication: {extensions: leave} in the policy, and carry them yourself".to_owned(),
        )
    })
}

async fn unlike(
    known: &Known,
    other: &Known,
    source: &Client,
    target: &Client,
) -> Result<Option<(String, String)>, Error> {
    if known.sequence {
        return Ok(None);
    }
    let (extension, name) = (&known.extension, &known.sql_name);
    let (here, there) = (digest(known, source).await?, digest(other, target).await?);
    if let (Some(here), Some(there)) = (&here, &there)
        && (here == there && here.0 <= ROWS || here.0 == 0)
    {
        return Ok(None);
    }
    Ok(Some(match here {
        None => (
            format!(
                "what extension {extension} keeps here for its users is left by a move, and Godwit's role may not read whether it is the same on both sides"
            ),
            format!("GRANT SELECT, INSERT, DELETE ON {name} TO Godwit's role, on both sides"),
        ),
        Some((rows, _)) => (
            format!(
                "{} rows that extension {extension} keeps for its users are left by a move, and the target has others",
                if rows > ROWS { format!("more than {ROWS}") } else { rows.to_string() }
            ),
            format!(
                "COPY (SELECT * FROM {name} {}) TO STDOUT on the source, COPY {name} FROM STDIN on the target",
                known.condition
            ),
        ),
    }))
}
