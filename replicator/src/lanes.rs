//! Two lanes in a database: which tables are critical, how their commits are made to wait, and how a table changes lanes.
//!
//! The critical publication is the truth: the main one holds every other user table that is replicated
//! ([`crate::postgres::slot::ensure_publication`] before the copy, [`crate::drift`] after it). A BEFORE STATEMENT trigger on each critical table, and on
//! what it may be written through, raises `synchronous_commit` to `on` for the transaction that writes it; the database's default is `local`. The trigger
//! does not fire for the applier (replica role).
//!
//! A table changes lanes in one transaction that holds its writers off ([`Handover`]): what was written before has been
//! applied by its old lane when the publications change, what is written after travels in the new one. `pgoutput` reads
//! publications as they were at each change, so that this is exact whatever the lanes still have to decode.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio_postgres::Client;

use crate::error::{Error, chain};
use crate::fence::{refused, rows};
use crate::lsn::Lsn;
use crate::postgres::quote_ident;
use crate::postgres::slot::{self, Lane};
use crate::preflight::{Finding, Severity};

/// Name of the trigger on critical tables.
const TRIGGER: &str = "godwit_critical";
/// How long a table may stay locked by others where nobody says: so long may its readers wait behind them.
const MOMENT: Duration = Duration::from_millis(400);
/// The same where no client reads or writes: autovacuum gives way after a second, and an applier when its transaction ends.
const UNHURRIED: Duration = Duration::from_secs(20);
/// The same where it is tried again all the time.
const GLIMPSE: Duration = Duration::from_millis(50);

/// Installs the trigger's function and what the database's default was before.
async fn install(client: &Client) -> Result<(), Error> {
    let context = "install what critical tables need";
    client.batch_execute(include_str!("lanes.sql")).await.map_err(refused(context))
}

/// A table, quoted.
fn quoted(schema: &str, table: &str) -> String {
    format!("{}.{}", quote_ident(schema), quote_ident(table))
}

/// What a list of critical tables means in this database.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Critical {
    /// Plain tables and leaf partitions, quoted: what the publication holds.
    pub leaves: BTreeSet<String>,
    /// The same, and whatever they are partitions or children of: what carries the trigger. It fires only of the table that a statement names.
    pub triggered: BTreeSet<String>,
    /// Names that stand for nothing here.
    pub missing: Vec<String>,
}

/// Looks the tables up; a partitioned table stands for all of its partitions.
pub async fn resolve(client: &Client, tables: &[String]) -> Result<Critical, Error> {
    let context = "look up the critical tables";
    let mut critical = Critical::default();
    let names: Vec<&str> = tables.iter().map(String::as_str).collect();
    let found = client
        .query(
            &format!(
                "WITH RECURSIVE named AS ( \
                   SELECT t.name, c.oid FROM unnest($1::text[]) t(name) \
                   LEFT JOIN (pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace) \
                     ON n.nspname || '.' || c.relname = t.name AND c.relkind IN ('r', 'p') \
                 ), tree AS ( \
                   SELECT name, oid FROM named \
                   UNION SELECT tree.name, i.inhrelid FROM tree JOIN pg_catalog.pg_inherits i ON i.inhparent = tree.oid \
                 ), above AS ( \
                   SELECT oid FROM tree \
                   UNION SELECT i.inhparent FROM above JOIN pg_catalog.pg_inherits i ON i.inhrelid = above.oid \
                 ), family AS ( \
                   SELECT name, oid, true AS critical FROM tree \
                   UNION ALL SELECT '', oid, false FROM above WHERE oid NOT IN (SELECT oid FROM tree WHERE oid IS NOT NULL) \
                 ) \
                 SELECT f.name, n.nspname::text, c.relname::text, f.critical AND coalesce({}, false) \
                 FROM family f LEFT JOIN (pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace) \
                   ON c.oid = f.oid ORDER BY 1, 2, 3",
                slot::USER_TABLES
            ),
            &[&names],
        )
        .await
        .map_err(Error::database(context))?;
    for row in &found {
        let (Some(schema), Some(table)) = (row.get::<_, Option<&str>>(1), row.get::<_, Option<&str>>(2))
        else {
            critical.missing.push(row.get(0));
            continue;
        };
        let name = quoted(schema, table);
        if row.get(3) {
            critical.leaves.insert(name.clone());
        }
        critical.triggered.insert(name);
    }
    Ok(critical)
}

/// What is wrong with this list of critical tables in this database.
pub async fn findings(client: &Client, tables: &[String]) -> Result<Vec<Finding>, Error> {
    let critical = resolve(client, tables).await?;
    let mut found: Vec<Finding> = critical
        .missing
        .iter()
        .map(|name| Finding {
            severity: Severity::Blocker,
            subject: name.clone(),
            problem: "is a critical table of the policy (replication.critical), and there is no such table"
                .into(),
            remedy: Some("CREATE TABLE …, or take it off the policy's list".into()),
        })
        .collect();
    found.extend(room(client).await?);
    if critical.leaves.is_empty() {
        return Ok(found);
    }
    let leaves: Vec<&str> = critical.leaves.iter().map(String::as_str).collect();
    let across = client
        .query(
            "SELECT DISTINCT conrelid::regclass::text, confrelid::regclass::text FROM pg_catalog.pg_constraint \
             WHERE contype = 'f' AND conrelid <> confrelid \
               AND (conrelid = ANY ($1::text[]::regclass[])) <> (confrelid = ANY ($1::text[]::regclass[])) ORDER BY 1, 2",
            &[&leaves],
        )
        .await
        .map_err(Error::database("look for foreign keys between the lanes"))?;
    found.extend(across.iter().map(|row| {
        let (from, to): (&str, &str) = (row.get(0), row.get(1));
        Finding {
            severity: Severity::Warning,
            subject: from.to_owned(),
            problem: format!(
                "its foreign key to {to} goes from one lane to the other: the shadow may briefly have one without the \
                 other, and a TRUNCATE of both empties them there row by row, each at its lane's time"
            ),
            remedy: Some("call both critical, or neither".into()),
        }
    }));
    Ok(found)
}

/// Two lanes need two slots and two walsenders, and at a cutover two more for the way back.
async fn room(client: &Client) -> Result<Vec<Finding>, Error> {
    let context = "count the slots";
    let sql = "SELECT s.name, s.setting::bigint - u.others, s.setting FROM pg_settings s JOIN (VALUES \
         ('max_replication_slots', (SELECT count(*) FROM pg_replication_slots WHERE slot_name !~ '^godwit_')), \
         ('max_wal_senders', (SELECT count(*) FROM pg_stat_replication WHERE application_name !~ '^godwit_')) \
       ) u(name, others) USING (name) WHERE s.setting::bigint - u.others < 4 ORDER BY 1";
    let short = rows(client.simple_query(sql).await.map_err(refused(context))?);
    Ok(short
        .iter()
        .map(|row| {
            let text = |at: usize| row.get(at).unwrap_or_default();
            let size: i64 = text(2).parse().unwrap_or_default();
            let free: i64 = text(1).parse().unwrap_or_default();
            Finding {
                severity: if free < 2 { Severity::Blocker } else { Severity::Warning },
                subject: text(0).to_owned(),
                problem: format!(
                    "leaves Godwit {} of {size}; two lanes need 2, and 2 more at a cutover",
                    free.max(0)
                ),
                remedy: Some(format!(
                    "ALTER SYSTEM SET {} = {}; then restart the server",
                    text(0),
                    size + 4 - free
                )),
            }
        })
        .collect())
}

/// The tables that the critical publication holds, quoted; none: there is no such publication.
pub async fn members(client: &Client, resource: &str) -> Result<Option<BTreeSet<String>>, Error> {
    held(client, &Lane::Critical.publication_name(resource)).await
}

/// The same of any publication.
async fn held(client: &Client, name: &str) -> Result<Option<BTreeSet<String>>, Error> {
    let answer = client
        .query(
            "SELECT n.nspname::text, c.relname::text FROM pg_catalog.pg_publication p \
             LEFT JOIN (pg_catalog.pg_publication_rel r JOIN pg_catalog.pg_class c ON c.oid = r.prrelid \
               JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace) ON r.prpubid = p.oid \
             WHERE p.pubname = $1",
            &[&name],
        )
        .await
        .map_err(Error::database(format!("read publication {name}")))?;
    if answer.is_empty() {
        return Ok(None);
    }
    let table = |row: &tokio_postgres::Row| {
        Some(quoted(row.get::<_, Option<&str>>(0)?, row.get::<_, Option<&str>>(1)?))
    };
    Ok(Some(answer.iter().filter_map(table).collect()))
}

/// Makes the publications where no slot reads them: before a copy, and before the slots of a way back are made. Without
/// critical tables there is one.
pub async fn publish(client: &Client, resource: &str, tables: &[String]) -> Result<(), Error> {
    let critical = resolve(client, tables).await?;
    let members = match tables {
        [] => members(client, resource).await?.unwrap_or_default(),
        _ => open_publication(client, resource).await?,
    };
    slot::ensure_publication(client, &Lane::Main.publication_name(resource)).await?;
    let sql = Change::between(&members, &critical.leaves).sql(resource);
    let Triggers { put, take } = triggers(client, &critical.triggered).await?;
    one_by_one(client, &put, &lock_timeout(UNHURRIED)).await?;
    if !sql.is_empty() {
        client.batch_execute(&sql.join("; ")).await.map_err(refused("publish the critical tables"))?;
    }
    if tables.is_empty() {
        return close(client, resource).await;
    }
    taken(client, &take, &lock_timeout(MOMENT)).await;
    Ok(())
}

/// Creates the critical publication, empty, if it is not there; gives what it holds.
pub async fn open_publication(client: &Client, resource: &str) -> Result<BTreeSet<String>, Error> {
    install(client).await?;
    if let Some(members) = members(client, resource).await? {
        return Ok(members);
    }
    let name = Lane::Critical.publication_name(resource);
    client
        .batch_execute(&format!("CREATE PUBLICATION {}", quote_ident(&name)))
        .await
        .map_err(Error::database(format!("create publication {name}")))?;
    Ok(BTreeSet::new())
}

/// Which tables go from one publication to the other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Change {
    to_critical: Vec<String>,
    to_main: Vec<String>,
}

impl Change {
    fn between(now: &BTreeSet<String>, wanted: &BTreeSet<String>) -> Self {
        Self {
            to_critical: wanted.difference(now).cloned().collect(),
            to_main: now.difference(wanted).cloned().collect(),
        }
    }

    fn is_empty(&self) -> bool {
        self.to_critical.is_empty() && self.to_main.is_empty()
    }

    fn sql(&self, resource: &str) -> Vec<String> {
        let main = quote_ident(&Lane::Main.publication_name(resource));
        let critical = quote_ident(&Lane::Critical.publication_name(resource));
        let only = |tables: &[String]| {
            tables.iter().map(|table| format!("ONLY {table}")).collect::<Vec<_>>().join(", ")
        };
        let mut sql = Vec::new();
        for (tables, from, to) in [(&self.to_critical, &main, &critical), (&self.to_main, &critical, &main)] {
            if !tables.is_empty() {
                sql.push(format!("ALTER PUBLICATION {from} DROP TABLE {}", only(tables)));
                sql.push(format!("ALTER PUBLICATION {to} ADD TABLE {}", only(tables)));
            }
        }
        sql
    }
}

/// What puts the trigger on exactly these tables.
struct Triggers {
    /// Also where somebody has switched it off.
    put: Vec<String>,
    take: Vec<String>,
}

async fn triggers(client: &Client, tables: &BTreeSet<String>) -> Result<Triggers, Error> {
    let carrying = client
        .query(
            "SELECT n.nspname::text, c.relname::text, t.tgenabled = 'O' FROM pg_catalog.pg_trigger t \
             JOIN pg_catalog.pg_class c ON c.oid = t.tgrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
             WHERE t.tgname = $1",
            &[&TRIGGER],
        )
        .await
        .map_err(Error::database("look for the triggers of critical tables"))?;
    let carrying: BTreeMap<String, bool> =
        carrying.iter().map(|row| (quoted(row.get(0), row.get(1)), row.get(2))).collect();
    let put = tables.iter().filter(|table| carrying.get(*table) != Some(&true)).map(|table| {
        format!(
            "CREATE OR REPLACE TRIGGER {TRIGGER} BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON {table} \
             FOR EACH STATEMENT EXECUTE FUNCTION godwit.wait_for_shadow()"
        )
    });
    let take = carrying.keys().filter(|table| !tables.contains(*table));
    let take = take.map(|table| format!("DROP TRIGGER {TRIGGER} ON {table}"));
    Ok(Triggers { put: put.collect(), take: take.collect() })
}

/// Runs each in a transaction of its own: who writes through a parent has a lock of that when it waits for one of the partition.
async fn one_by_one(client: &Client, statements: &[String], patience: &str) -> Result<(), Error> {
    for sql in statements {
        let context = "put the triggers of critical tables in order";
        client.batch_execute(&format!("{patience}; {sql}")).await.map_err(refused(context))?;
    }
    Ok(())
}

/// Takes triggers away that nothing needs; whether all are gone. Where one stays, for now, commits wait that need not.
async fn taken(client: &Client, take: &[String], patience: &str) -> bool {
    let mut all = true;
    for sql in take {
        if let Err(error) = one_by_one(client, std::slice::from_ref(sql), patience).await {
            all = false;
            let error = chain(&error);
            tracing::warn!(sql, %error, "the trigger of a table that is not critical stays for now");
        }
    }
    all
}

/// Puts the trigger where it is missing or switched off; on how many tables. One that stays locked for longer than `patience` is an error (55P03),
/// which tells how many lacked it; the others have it by then. Takes it away where it was left on a table that is not critical.
pub async fn arm(client: &Client, tables: &[String], patience: Duration) -> Result<usize, Error> {
    let critical = resolve(client, tables).await?;
    let Triggers { put, take } = triggers(client, &critical.triggered).await?;
    // The others must not go without for the sake of one.
    let mut failed = None;
    for sql in &put {
        let done = client.batch_execute(&format!("{}; {sql}", lock_timeout(patience))).await;
        failed = failed.or(done.err());
    }
    taken(client, &take, &lock_timeout(patience.min(GLIMPSE))).await;
    let context = format!("put the triggers of critical tables, which {} lacked", put.len());
    failed.map_or(Ok(put.len()), |error| Err(refused(&context)(error)))
}

fn lock_timeout(patience: Duration) -> String {
    format!("SET LOCAL lock_timeout = {}", patience.as_millis().clamp(1, i32::MAX as u128))
}

/// Tables on their way from one lane to the other: their writers wait until this is finished or dropped.
///
/// Dropping it without [`Handover::finish`] leaves a transaction open on its connection: drop that as well.
pub struct Handover<'a> {
    client: &'a Client,
    sql: Vec<String>,
    /// What takes triggers away that nothing needs any more.
    take: Vec<String>,
    patience: String,
    /// Both lanes must have been applied up to here before [`Handover::finish`].
    pub position: Lsn,
}

impl<'a> Handover<'a> {
    /// Holds off the writers of the tables that must change lanes; none: no table must.
    ///
    /// The client is in a transaction afterwards. A table that stays locked for longer than `patience` is an error (55P03).
    pub async fn begin(
        client: &'a Client,
        resource: &str,
        tables: &[String],
        patience: Duration,
    ) -> Result<Option<Self>, Error> {
        let context = "hand tables over to their lanes";
        let critical = resolve(client, tables).await?;
        let members = open_publication(client, resource).await?;
        // What neither lane carries is not published here: its rows from before would be missing (`crate::drift` fills it).
        let main = held(client, &Lane::Main.publication_name(resource)).await?.unwrap_or_default();
        let carried = |table: &&String| members.contains(*table) || main.contains(*table);
        let wanted = critical.leaves.iter().filter(carried).cloned().collect();
        let change = Change::between(&members, &wanted);
        let patience = lock_timeout(patience);
        let Triggers { put, take } = triggers(client, &critical.triggered).await?;
        // Before any table is locked. A trigger that comes too early, or stays, makes a commit wait that need not.
        one_by_one(client, &put, &patience).await?;
        if change.is_empty() {
            taken(client, &take, &patience).await;
            return Ok(None);
        }
        let sql = change.sql(resource);
        let moved: Vec<String> =
            change.to_critical.iter().chain(&change.to_main).map(|table| format!("ONLY {table}")).collect();
        let begin = format!("BEGIN; {patience}; LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE", moved.join(", "));
        let locked = async {
            client.batch_execute(&begin).await.map_err(refused(context))?;
            let answer = client.simple_query("SELECT pg_catalog.pg_current_wal_insert_lsn()").await;
            let answer = rows(answer.map_err(refused(context))?);
            let position = answer.first().and_then(|row| row.get(0)).and_then(|text| text.parse().ok());
            position.ok_or_else(|| Error::Protocol(format!("{context}: no position")))
        };
        match locked.await {
            Ok(position) => Ok(Some(Self { client, sql, take, patience, position })),
            Err(error) => {
                client.batch_execute("ROLLBACK").await.map_err(refused(context))?;
                Err(error)
            }
        }
    }

    /// Changes the publications and lets the writers go on. Where a trigger that is not needed any more cannot be taken away the tables have
    /// changed lanes all the same, and [`arm`] and the next [`Handover::begin`] try again.
    pub async fn finish(self) -> Result<(), Error> {
        let sql = format!("{}; COMMIT", self.sql.join("; "));
        let result = self.client.batch_execute(&sql).await;
        if result.is_err() {
            self.client.batch_execute("ROLLBACK").await.map_err(refused("give a handover up"))?;
        }
        result.map_err(refused("hand tables over to their lanes"))?;
        taken(self.client, &self.take, &self.patience).await;
        Ok(())
    }

    /// Leaves everything as it was.
    pub async fn abandon(self) -> Result<(), Error> {
        self.client.batch_execute("ROLLBACK").await.map_err(refused("give a handover up"))
    }
}

/// Removes the critical publication, which must be empty, and the triggers: the resource has one lane again. Where a table is locked by others
/// its trigger stays, and so does the publication: it can be closed again.
pub async fn close(client: &Client, resource: &str) -> Result<(), Error> {
    let name = Lane::Critical.publication_name(resource);
    let take = triggers(client, &BTreeSet::new()).await?.take;
    if !taken(client, &take, &lock_timeout(MOMENT)).await {
        return Ok(());
    }
    let drop = format!("DROP PUBLICATION IF EXISTS {}", quote_ident(&name));
    client.batch_execute(&drop).await.map_err(refused("close the critical lane"))
}

/// Makes `synchronous_commit = local` the default of new sessions in this database, and remembers what it was.
pub async fn commit_locally(client: &Client) -> Result<(), Error> {
    install(client).await?;
    client
        .batch_execute("SELECT godwit.commit_locally()")
        .await
        .map_err(refused("set the database's default of synchronous_commit"))
}

/// Puts the database's own default back.
pub async fn commit_as_before(client: &Client) -> Result<(), Error> {
    let installed = client.simple_query("SELECT pg_catalog.to_regclass('godwit.database_default')").await;
    let context = "restore the database's default of synchronous_commit";
    if rows(installed.map_err(refused(context))?).first().and_then(|row| row.get(0)).is_none() {
        return Ok(());
    }
    client.batch_execute("SELECT godwit.commit_as_before()").await.map_err(refused(context))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(tables: &[&str]) -> BTreeSet<String> {
        tables.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_change_names_only_what_moves() {
        let change =
            Change::between(&set(&["\"a\".\"x\"", "\"a\".\"y\""]), &set(&["\"a\".\"y\"", "\"a\".\"z\""]));
        assert_eq!(
            change.sql("orders"),
            [
                "ALTER PUBLICATION \"godwit_orders\" DROP TABLE ONLY \"a\".\"z\"",
                "ALTER PUBLICATION \"godwit_orders.critical\" ADD TABLE ONLY \"a\".\"z\"",
                "ALTER PUBLICATION \"godwit_orders.critical\" DROP TABLE ONLY \"a\".\"x\"",
                "ALTER PUBLICATION \"godwit_orders\" ADD TABLE ONLY \"a\".\"x\"",
            ]
        );
        assert!(Change::between(&set(&["a"]), &set(&["a"])).is_empty());
    }
}
