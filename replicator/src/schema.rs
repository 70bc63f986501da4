//! The schema, by `pg_dump`: taken from the source, made loadable by any major version from 14 to 18, loaded on the target.
//!
//! Taken in two parts under one snapshot: what must exist before rows arrive, and what is quicker or only right after them
//! (indexes, constraints, triggers, materialised views' content). Owners and grants travel; roles and tablespaces do not.

mod portable;
pub mod statements;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::Command;
use tokio_postgres::Client;
use tokio_postgres::config::{ChannelBinding, SslNegotiation};
use tokio_util::task::AbortOnDropHandle;

use crate::error::Error;
use crate::postgres::connection::{Address, addresses};
use crate::postgres::{Authority, Dsn, connect, place};
pub(crate) use portable::for_target;
use portable::portable;
use statements::{Kind, Statement, joined, statements};

/// Settings of the receiving session that a dump changes; [`load`] puts them back.
const CHANGED_SETTINGS: [&str; 9] = [
    "check_function_bodies",
    "client_min_messages",
    "default_table_access_method",
    "default_tablespace",
    "row_security",
    "search_path",
    "standard_conforming_strings",
    "xmloption",
    "quote_all_identifiers",
];
/// How much of a program's complaint is repeated.
const COMPLAINT_LIMIT: usize = 2000;

/// SQL for an empty database.
#[derive(Debug)]
pub struct SchemaDump {
    /// Before the rows: schemas, types, tables, functions, views, sequences.
    pub pre_data: String,
    /// After the rows: indexes, keys, triggers, rules.
    pub post_data: PostData,
}

/// The second half of a dump, which is taken while the rows travel. Dropping it ends the program.
#[derive(Debug)]
pub struct PostData(AbortOnDropHandle<Result<String, Error>>);

impl PostData {
    /// Waits for it.
    pub async fn text(self) -> Result<String, Error> {
        self.0.await.map_err(|error| Error::Link(format!("the dump of the schema broke off: {error}")))?
    }
}

/// Dumps the schema of `dsn`'s database with the `pg_dump` in directory `bin`, or the one on `PATH`.
///
/// A `pg_dump` older than the server is refused. The password goes by environment, never by argument.
pub async fn dump(dsn: &Dsn, bin: Option<&Path>) -> Result<SchemaDump, Error> {
    let context = || format!("dump the schema of {}", place(dsn));
    let client = connect(dsn, "godwit schema").await?;
    let program = program(bin);
    let major = able(&program, dsn, server_version(&client).await?).await?;
    client
        .batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        .await
        .map_err(Error::database(context()))?;
    let row = client
        .query_one("SELECT pg_catalog.pg_export_snapshot()", &[])
        .await
        .map_err(Error::database(context()))?;
    let snapshot: String = row.get(0);
    let section = |name: &str| {
        let mut command = command(&program, dsn, major);
        command.arg(format!("--section={name}")).arg(format!("--snapshot={snapshot}"));
        command
    };
    let others = others(&client).await?;
    let pre_data = portable(&run(section("pre-data"), &program).await?, others.as_deref());
    let post = section("post-data");
    let post_data = AbortOnDropHandle::new(tokio::spawn(async move {
        let text = run(post, &program).await?;
        // The snapshot was needed until here.
        client.batch_execute("COMMIT").await.map_err(Error::database("end the dump of the schema"))?;
        Ok(portable(&text, others.as_deref()))
    }));
    Ok(SchemaDump { pre_data, post_data: PostData(post_data) })
}

/// Whether `pg_dump` in `bin` can dump the server of this session, which `dsn` leads to; what is made there later is dumped by it as well.
///
/// # Errors
/// [`Error::Unready`] with what mends it where it cannot, or where there is no such program.
pub async fn can_dump(dsn: &Dsn, bin: Option<&Path>, client: &Client) -> Result<(), Error> {
    able(&program(bin), dsn, server_version(client).await?).await.map(drop)
}

/// The program's major version; a server is of `server_version_num`.
async fn able(program: &Path, dsn: &Dsn, server: u32) -> Result<u32, Error> {
    let (major, server) = (dump_version(program).await?, server / 10_000);
    if major < server {
        return Err(Error::Unready(format!(
            "{} is version {major} and cannot dump the PostgreSQL {server} server at {}: install pg_dump {server} or newer, and name \
             its folder as postgres.bin of that zone's placement",
            program.display(),
            place(dsn)
        )));
    }
    if major < 16 && dsn.tls.ca == Some(Authority::System) {
        return Err(Error::Unready(format!(
            "{} is version {major} and does not know sslrootcert=system: name a PEM file, or install pg_dump 16 or newer",
            program.display()
        )));
    }
    Ok(major)
}

/// The SQL that makes tables (each `schema.table`, quoted where it must be) with their indexes, constraints and own sequences.
/// `client` is a session of the server that `dsn` leads to, which a `pg_dump` that is older is refused for.
pub async fn dump_tables(
    dsn: &Dsn,
    bin: Option<&Path>,
    client: &Client,
    tables: &[&str],
) -> Result<String, Error> {
    let program = program(bin);
    let major = able(&program, dsn, server_version(client).await?).await?;
    let mut command = command(&program, dsn, major);
    command.arg("--schema-only");
    for table in tables {
        command.arg("--table").arg(table);
    }
    // Of tables there are no default privileges.
    Ok(attached_last(&portable(&run(command, &program).await?, Some(&[]))))
}

/// Where its parent has indexes already, a partition gets its own from them as it is attached, unless it has them: so it is attached
/// after they are made, and before what the parent gives it is changed. Then nothing is left to do for the indexes.
fn attached_last(dump: &str) -> String {
    let attaches = |statement: &Statement, what: &str| {
        statement.sql.starts_with(what) && statement.sql.contains(" ATTACH PARTITION ")
    };
    let (mut attaching, mut rest): (Vec<Statement>, Vec<Statement>) = statements(dump)
        .into_iter()
        .filter(|statement| !attaches(statement, "ALTER INDEX "))
        .partition(|statement| attaches(statement, "ALTER TABLE "));
    if attaching.is_empty() {
        return dump.to_owned();
    }
    let own = |statement: &Statement| {
        matches!(statement.kind, Kind::Index(_) | Kind::Constraint(_))
            || statement.sql.starts_with("CREATE TABLE ")
            || statement.sql.starts_with("CREATE UNLOGGED TABLE ")
    };
    let place = rest.iter().rposition(own).map_or(rest.len(), |last| last + 1);
    rest.splice(place..place, attaching.drain(..));
    joined(rest)
}

/// Runs one part of a [`SchemaDump`] on a session of the target, as one transaction or inside the caller's.
///
/// The settings that a dump changes (`search_path` above all) are put back.
pub async fn load(client: &Client, sql: &str) -> Result<(), Error> {
    let names = CHANGED_SETTINGS.as_slice();
    let before = client
        .query("SELECT name, setting FROM pg_catalog.pg_settings WHERE name = ANY($1)", &[&names])
        .await
        .map_err(Error::database("read the session's settings"))?;
    let sql = for_target(sql, server_version(client).await?);
    client.batch_execute(&sql).await.map_err(|error| {
        let at = error.as_db_error().and_then(|error| match error.position() {
            Some(tokio_postgres::error::ErrorPosition::Original(position)) => {
                Some(statement_at(&sql, *position))
            }
            _ => None,
        });
        Error::database(match at {
            Some(line) => format!("load the schema, at: {line}"),
            None => "load the schema".into(),
        })(error)
    })?;
    let (names, values): (Vec<&str>, Vec<&str>) =
        before.iter().map(|row| (row.get::<_, &str>(0), row.get::<_, &str>(1))).unzip();
    client
        .execute(
            "SELECT pg_catalog.set_config(name, value, false) FROM unnest($1::text[], $2::text[]) AS s(name, value)",
            &[&names, &values],
        )
        .await
        .map_err(Error::database("put the session's settings back"))?;
    Ok(())
}

/// `server_version_num`, such as 150014.
pub(crate) async fn server_version(client: &Client) -> Result<u32, Error> {
    let row = client
        .query_one("SELECT current_setting('server_version_num')::int", &[])
        .await
        .map_err(Error::database("ask for the server's version"))?;
    Ok(row.get::<_, i32>(0).unsigned_abs())
}

fn program(bin: Option<&Path>) -> PathBuf {
    match bin {
        None => "pg_dump".into(),
        Some(path) if path.is_dir() => path.join("pg_dump"),
        Some(path) => path.to_owned(),
    }
}

async fn dump_version(program: &Path) -> Result<u32, Error> {
    let mut command = Command::new(program);
    command.arg("--version");
    let answer = run(command, program).await?;
    parse_version(&answer).ok_or_else(|| {
        Error::Unready(format!("{} --version says {answer:?}: not pg_dump", program.display()))
    })
}

/// Major version in `pg_dump (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)`.
fn parse_version(answer: &str) -> Option<u32> {
    let number = answer.strip_prefix("pg_dump (PostgreSQL) ")?;
    let end = number.find(|c: char| !c.is_ascii_digit()).unwrap_or(number.len());
    number[..end].parse().ok()
}

fn command(program: &Path, dsn: &Dsn, major: u32) -> Command {
    let mut command = Command::new(program);
    command.args([
        "--no-password",
        "--no-publications",
        "--no-subscriptions",
        "--no-tablespaces",
        // Large objects are carried apart; this spelling is understood by every version.
        "-B",
        "--exclude-schema=godwit",
        "--encoding=UTF8",
        // A word that is free in one version may be reserved in another.
        "--quote-all-identifiers",
        "--lock-wait-timeout=30000",
    ]);
    if major >= 18 {
        command.arg("--no-statistics");
    }
    let mut environment = |name: &str, value: Option<&OsStr>| {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    };
    let (hosts, ports): (Vec<String>, Vec<String>) = addresses(dsn)
        .into_iter()
        .map(|address| match address {
            Address::Tcp(host, port) => (host, port.to_string()),
            Address::Unix(socket) => {
                let port = socket.extension().unwrap_or_default().to_string_lossy().into_owned();
                (socket.parent().unwrap_or(Path::new("/")).display().to_string(), port)
            }
        })
        .unzip();
    let user = dsn.get_user().map(OsStr::new);
    environment("PGHOST", Some(OsStr::new(&hosts.join(","))));
    environment("PGPORT", Some(OsStr::new(&ports.join(","))));
    environment("PGUSER", user);
    // Not by argument: a name with "=" in it would be read as connection parameters.
    environment("PGDATABASE", dsn.get_dbname().map(OsStr::new).or(user));
    let password = dsn.get_password().map(String::from_utf8_lossy);
    environment("PGPASSWORD", password.as_deref().map(OsStr::new));
    environment("PGSSLMODE", Some(OsStr::new(dsn.tls.mode.as_str())));
    let ca = dsn.tls.ca.as_ref().map(|ca| match ca {
        Authority::System => OsStr::new("system"),
        Authority::File(path) => path.as_os_str(),
    });
    environment("PGSSLROOTCERT", ca);
    let client = dsn.tls.client.as_ref();
    environment("PGSSLCERT", client.map(|client| client.certificate.as_os_str()));
    environment("PGSSLKEY", client.map(|client| client.key.as_os_str()));
    environment(
        "PGCHANNELBINDING",
        Some(OsStr::new(match dsn.get_channel_binding() {
            ChannelBinding::Disable => "disable",
            ChannelBinding::Require => "require",
            _ => "prefer",
        })),
    );
    let direct = dsn.get_ssl_negotiation() == SslNegotiation::Direct;
    environment("PGSSLNEGOTIATION", direct.then_some(OsStr::new("direct")));
    environment("PGOPTIONS", dsn.get_options().map(OsStr::new));
    environment("PGAPPNAME", Some(OsStr::new("godwit schema")));
    let timeout = dsn.get_connect_timeout().map_or(10, |limit| limit.as_secs().max(2)).to_string();
    environment("PGCONNECT_TIMEOUT", Some(OsStr::new(&timeout)));
    for inherited in ["PGHOSTADDR", "PGSERVICE", "PGSERVICEFILE", "PGTARGETSESSIONATTRS"] {
        environment(inherited, None);
    }
    command
}

async fn run(mut command: Command, program: &Path) -> Result<String, Error> {
    let output =
        command.stdin(Stdio::null()).env("LC_MESSAGES", "C").kill_on_drop(true).output().await.map_err(
            |source| match source.kind() {
                std::io::ErrorKind::NotFound => Error::Unready(format!(
                    "{} is not there: install PostgreSQL's client programs, or say where they are",
                    program.display()
                )),
                _ => Error::Io { context: format!("run {}", program.display()), source },
            },
        )?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        let complaint: String = complaint.trim().chars().take(COMPLAINT_LIMIT).collect();
        return Err(Error::Unready(format!("{} failed ({}): {complaint}", program.display(), output.status)));
    }
    String::from_utf8(output.stdout)
        .map_err(|_| Error::Unready(format!("what {} printed is not UTF-8", program.display())))
}

/// Roles that ours may not act for; none where ours is superuser, who may everything.
async fn others(client: &Client) -> Result<Option<Vec<String>>, Error> {
    let sql = "SELECT rolsuper, ARRAY(SELECT rolname::text FROM pg_catalog.pg_roles WHERE NOT pg_catalog.pg_has_role(oid, 'MEMBER')) \
        FROM pg_catalog.pg_roles WHERE rolname = current_user";
    let row = client.query_one(sql, &[]).await;
    let found = row.and_then(|row| Ok((!row.try_get::<_, bool>(0)?).then_some(row.try_get(1)?)));
    found.map_err(Error::database("read for which roles ours may act"))
}

/// The line of `sql` around the server's error position (characters, from 1).
fn statement_at(sql: &str, position: u32) -> &str {
    let byte = sql.char_indices().nth(position.saturating_sub(1) as usize).map_or(sql.len(), |(at, _)| at);
    let start = sql[..byte].rfind('\n').map_or(0, |at| at + 1);
    sql[start..].lines().next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_pg_dump_that_is_too_old_is_named_with_what_mends_it() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let dsn: Dsn = "postgres://godwit@east.db/shop".parse().unwrap();
        let refused = async |server| {
            let program = program(Some(folder.path()));
            able(&program, &dsn, server).await.err().map(|error| error.to_string())
        };
        assert!(refused(150_000).await.is_some(), "there is none");
        let file = folder.path().join("pg_dump");
        std::fs::write(&file, "#!/bin/sh\necho 'pg_dump (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)'\n")
            .unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(refused(150_014).await, None);
        let why = refused(180_001).await.expect("it is too old");
        let told = "is version 15 and cannot dump the PostgreSQL 18 server at";
        assert!(
            why.contains(told) && why.contains("install pg_dump 18") && why.contains("postgres.bin"),
            "{why}"
        );
    }

    #[test]
    fn versions_of_pg_dump() {
        assert_eq!(parse_version("pg_dump (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)\n"), Some(15));
        assert_eq!(parse_version("pg_dump (PostgreSQL) 19devel\n"), Some(19));
        assert_eq!(parse_version("pg_restore 1"), None);
    }

    #[tokio::test]
    async fn a_missing_program_says_so() {
        let error = dump_version(Path::new("/nowhere/pg_dump")).await.expect_err("not there");
        assert!(error.to_string().contains("/nowhere/pg_dump is not there"), "{error}");
    }

    #[test]
    fn an_error_position_names_its_line() {
        assert_eq!(statement_at("é one;\ntwo three;\nfour", 12), "two three;");
        assert_eq!(statement_at("x", 99), "x");
    }
}
