//! Is this database ready to move? Every finding says what is wrong and the SQL or setting that mends it.
//!
//! Reads only. Both sides need what a sender needs (the reverse stream starts on the target) and the right to set
//! `session_replication_role` (the reverse stream ends on the source).

mod compare;
mod paths;

pub use compare::{compare, compare_for, superusers};

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use crate::drift::{DEFAULT_PRIVILEGES, PUBLICATIONS};
use crate::error::Error;
use crate::fence::{refused, rows};
use crate::grants;
use crate::postgres::slot::{KEYLESS_OF_T, PASSING, TELLING_INDEX_OF_T};
use crate::unlogged::{MOST, Unlogged};

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// No migration until it is mended.
    Blocker,
    /// A migration works, with a consequence that somebody should know.
    Warning,
}

/// One thing that is not as it should be. The order of the fields is that in which findings are sorted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// Table, role, setting or other object.
    pub subject: String,
    /// What is wrong with it.
    pub problem: String,
    /// SQL or setting that mends it.
    pub remedy: Option<String>,
}

/// Which part the database plays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// Where the stream starts.
    Source,
    /// Where it is applied.
    Target,
}

/// How many locks a server has room for, about: SQL of a number (lock.c of PostgreSQL, `NLOCKENTS`).
pub(crate) const LOCKS: &str = "(current_setting('max_locks_per_transaction')::bigint * (SELECT sum(setting::bigint) + 1 FROM pg_settings \
    WHERE name IN ('max_connections', 'max_prepared_transactions', 'max_worker_processes', 'max_wal_senders', \
                   'autovacuum_max_workers')))";

/// How many relations of the database a dump of its schema locks at the same time: SQL of a number.
const RELATIONS: &str = "(SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
    WHERE c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f') AND c.relpersistence <> 't' \
      AND n.nspname <> ALL ('{pg_catalog,information_schema,pg_toast,godwit}'))";

/// Connections that one resource takes at a server at most: seven to ten as long as it follows, some more in a move or for a copy.
const CONNECTIONS: u32 = 16;

/// Everything wrong with one database; blockers first. Empty when it is ready.
pub async fn check(client: &Client, side: Side) -> Result<Vec<Finding>, Error> {
    check_for(client, side, Allowed { unlogged: Unlogged::Refused, keyless: false }).await
}

/// Which tables are no reason to stay, since something is done about them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowed {
    /// What a move does with unlogged ones.
    pub unlogged: Unlogged,
    /// Those without a key are given a replica identity ([`crate::drift::identify`]).
    pub keyless: bool,
}

/// The same where these tables are no reason to stay.
pub async fn check_for(client: &Client, side: Side, allowed: Allowed) -> Result<Vec<Finding>, Error> {
    let mut found = findings(client, &filled(include_str!("common.sql"))).await?;
    found.extend(libraries(client).await?);
    found.extend(parameters(client).await?);
    found.extend(match side {
        Side::Source => {
            let sql = filled(include_str!("source.sql"))
                .replace("{{unlogged}}", allowed.unlogged.name())
                .replace("{{keyless_are}}", if allowed.keyless { "identified" } else { "refused" })
                .replace("{{most}}", &MOST.to_string());
            let mut copying = is_copied_to(client).await?;
            loop {
                let found = findings(client, &sql.replace("{{copying}}", &copying.to_string())).await?;
                // A copy may have begun or ended in between.
                let now = is_copied_to(client).await?;
                if now == copying {
                    break found;
                }
                copying = now;
            }
        }
        Side::Target => {
            let copied = copied(client).await?;
            let functions: Vec<&str> = grants::FUNCTIONS.iter().map(|(name, _)| *name).collect();
            let sql = include_str!("target.sql")
                .replace("{{copied}}", &copied.to_string())
                .replace("{{functions}}", &format!("{{{}}}", functions.join(",")));
            findings(client, &sql).await?
        }
    });
    found.sort();
    Ok(found)
}

/// What the slots of a server may keep back of its WAL, and those that have lost theirs. Nothing of it forbids a move.
pub async fn retention(client: &Client) -> Result<Vec<Finding>, Error> {
    findings(client, include_str!("retention.sql")).await
}

/// A query with what several have in common.
fn filled(sql: &str) -> String {
    sql.replace("{{locks}}", LOCKS)
        .replace("{{connections}}", &CONNECTIONS.to_string())
        .replace("{{relations}}", RELATIONS)
        .replace("{{defaults}}", DEFAULT_PRIVILEGES)
        .replace("{{objects}}", include_str!("objects.sql"))
        .replace("{{owned}}", include_str!("owned.sql"))
        .replace("{{event_triggers}}", include_str!("event_triggers.sql"))
        .replace("{{publications}}", PUBLICATIONS)
        .replace("{{passing}}", PASSING)
        .replace("{{keyless}}", KEYLESS_OF_T)
        .replace("{{telling_index}}", TELLING_INDEX_OF_T)
}

async fn findings(client: &Client, sql: &str) -> Result<Vec<Finding>, Error> {
    let answer = client.simple_query(sql).await.map_err(refused("cannot check the database"))?;
    rows(answer)
        .iter()
        .map(|row| {
            Some(Finding {
                severity: if row.get(0)? == "blocker" { Severity::Blocker } else { Severity::Warning },
                subject: row.get(1)?.to_owned(),
                problem: row.get(2)?.to_owned(),
                remedy: row.get(3).map(str::to_owned),
            })
        })
        .collect::<Option<_>>()
        .ok_or_else(|| Error::Protocol("a finding cannot be read".into()))
}

/// Whether a session that begins now can load what the server's functions are in. Only one that has not loaded it yet finds that out.
async fn libraries(client: &Client) -> Result<Option<Finding>, Error> {
    match client.batch_execute("DO 'BEGIN END'").await {
        Ok(()) => Ok(None),
        Err(error) => match error.as_db_error() {
            Some(said) => Ok(unloaded(said.message())),
            None => Err(refused("cannot check the database")(error)),
        },
    }
}

/// What it means that a server says this. Other reasons than a file of its own are no concern of this.
fn unloaded(said: &str) -> Option<Finding> {
    let is_file = [
        "could not load library",
        "could not access file",
        "incompatible library",
        "could not find function",
    ];
    is_file.iter().any(|words| said.starts_with(words)).then(|| Finding {
        severity: Severity::Blocker,
        subject: "server".into(),
        problem: format!(
            "new sessions cannot run functions, as when its program files were changed under it: {said}"
        ),
        remedy: Some("restart the server".into()),
    })
}

/// Tried rather than looked up: `has_parameter_privilege` exists since 15 only.
async fn parameters(client: &Client) -> Result<Vec<Finding>, Error> {
    let mut found = Vec::new();
    for ((parameter, _), (value, severity, consequence)) in grants::PARAMETERS.into_iter().zip([
        ("replica", Severity::Blocker, "the applier could not pass the fence"),
        ("'1s'", Severity::Warning, "the fence gives up where a vacuum has a table locked"),
    ]) {
        // One simple query is one transaction: the setting ends with it.
        let tried = client.batch_execute(&format!("SET LOCAL {parameter} = {value}; SELECT 1")).await;
        let Err(error) = tried else { continue };
        if error.code() != Some(&SqlState::INSUFFICIENT_PRIVILEGE) {
            return Err(refused("cannot check the role's rights")(error));
        }
        let sql = "SELECT quote_ident(current_user), current_setting('server_version_num')::int >= 150000";
        let answer = rows(client.simple_query(sql).await.map_err(refused("cannot check the database"))?);
        let text = |at: usize| answer.first().and_then(|row| row.get(at)).unwrap_or_default();
        let role = text(0).to_owned();
        let remedy = if text(1) == "t" {
            format!("GRANT SET ON PARAMETER {parameter} TO {role}")
        } else {
            format!(
                "before PostgreSQL 15 only a superuser may: ALTER ROLE {role} SUPERUSER, or a newer server"
            )
        };
        found.push(Finding {
            severity,
            problem: format!("may not set {parameter}: {consequence}"),
            remedy: Some(remedy),
            subject: role,
        });
    }
    Ok(found)
}

/// Whether some stream has copied into this database, or a copy broke that will go on.
async fn copied(client: &Client) -> Result<bool, Error> {
    Ok(has_copy(client).await? || is_copied_to(client).await?)
}

/// Whether a copy into this database is under way, or broke and will go on.
async fn is_copied_to(client: &Client) -> Result<bool, Error> {
    holds(client, "copying", "true").await
}

/// Whether this database holds a finished copy.
pub async fn has_copy(client: &Client) -> Result<bool, Error> {
    holds(client, "progress", "copied").await
}

/// Whether a table of Godwit's is there and has a row like that.
async fn holds(client: &Client, table: &str, like: &str) -> Result<bool, Error> {
    let there = strings(client, &format!("SELECT to_regclass('godwit.{table}')::text")).await?;
    let rows = format!("SELECT true FROM godwit.{table} WHERE {like} LIMIT 1");
    Ok(!there.is_empty() && !strings(client, &rows).await?.is_empty())
}

/// First column of every row; NULLs are left out.
async fn strings(client: &Client, sql: &str) -> Result<Vec<String>, Error> {
    let answer = client.simple_query(sql).await.map_err(refused("cannot check the database"))?;
    Ok(rows(answer).iter().filter_map(|row| row.get(0).map(str::to_owned)).collect())
}

#[cfg(test)]
mod tests {
    use super::unloaded;

    #[test]
    fn a_server_whose_files_were_changed_is_to_be_restarted() {
        let upgraded = "could not load library \"/usr/lib/postgresql/15/lib/plpgsql.so\": undefined symbol: get_rte_attribute";
        let found = unloaded(upgraded).expect("a finding");
        assert!(found.problem.ends_with(upgraded) && found.remedy.as_deref() == Some("restart the server"));
        assert!(unloaded("could not access file \"$libdir/plpgsql\": No such file or directory").is_some());
        assert!(
            unloaded("permission denied for language plpgsql").is_none(),
            "whose right that is, is told elsewhere"
        );
    }
}
