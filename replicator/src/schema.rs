//! The schema, by `pg_dump`: taken from the source, made loadable by any major version from 14 to 18, loaded on the target.
//!
//! Taken in two parts under one snapshot: what must exist before rows arrive, and what is quicker or only right after them
//! (indexes, constraints, triggers, materialised views' content). Owners and grants travel; roles and tablespaces do not.

pub mod statements;

use std::borrow::Cow;
use std::collections::HashSet;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::Command;
use tokio_postgres::Client;
use tokio_postgres::config::{ChannelBinding, SslNegotiation};
use tokio_util::task::AbortOnDropHandle;

use crate::copy::{self, Columns};
use crate::error::Error;
use crate::postgres::connection::{Address, addresses};
use crate::postgres::{Authority, Dsn, connect, place, quote_literal};
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
/// Settings in a dump's head that are the loading session's own business; `transaction_timeout` is unknown before 17.
const FOREIGN_SETTINGS: [&str; 5] = [
    "statement_timeout",
    "lock_timeout",
    "idle_in_transaction_session_timeout",
    "idle_session_timeout",
    "transaction_timeout",
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
    /// Of the tables that it makes.
    pub(crate) columns: Columns,
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
    let (others, columns) = (others(&client).await?, copy::columns(&client).await?);
    let pre_data = portable(&run(section("pre-data"), &program).await?, others.as_deref());
    let post = section("post-data");
    let post_data = AbortOnDropHandle::new(tokio::spawn(async move {
        let text = run(post, &program).await?;
        // The snapshot was needed until here.
        client.batch_execute("COMMIT").await.map_err(Error::database("end the dump of the schema"))?;
        Ok(portable(&text, others.as_deref()))
    }));
    Ok(SchemaDump { pre_data, post_data: PostData(post_data), columns })
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

/// Takes out of a dump what only psql, only newer versions or only the source understands, and what only a superuser may, unless there are no `others`: what
/// belongs to `others` and rights on it (`preflight` has a superuser make it), their default privileges, rights on the server's own objects. Who granted a
/// right is not kept: its owner does.
fn portable(dump: &str, others: Option<&[String]>) -> String {
    let mut text = String::with_capacity(dump.len());
    let mut key = None;
    let mut head = true;
    let mut entry = Entry::default();
    let mut previous = "";
    // Whoever is given something must be allowed to make it there: a dump, written for superusers, says what may be made where only at its end.
    let (mut early, mut place) = (String::new(), None);
    for line in dump.split_inclusive('\n') {
        let content = line.trim_end();
        let headed = std::mem::replace(&mut previous, content) == "--";
        if head {
            if let Some(found) = content.strip_prefix("\\restrict ") {
                key = Some(found);
                continue;
            }
            let setting = content.strip_prefix("SET ").and_then(|rest| rest.split([' ', '=']).next());
            if setting.is_some_and(|name| FOREIGN_SETTINGS.contains(&name)) {
                continue;
            }
            head = content.is_empty()
                || content.starts_with("--")
                || setting.is_some()
                || content.starts_with("SELECT pg_catalog.set_config(");
        }
        // In the body of a function no such line stands below an empty comment and tells an owner, but by intent.
        if let Some(header) = content.strip_prefix("-- Name: ").filter(|_| headed) {
            entry = Entry::of(header, others);
            if place.is_none() && !entry.schema && !entry.extension {
                // Its comment begins in the line before.
                place = Some(text.len() - "--\n".len().min(text.len()));
            }
        }
        let unrestrict = key.is_some() && content.strip_prefix("\\unrestrict ") == key;
        if unrestrict || own_trigger(content) || entry.is_a_superusers(content, others) {
            continue;
        }
        let Some(line) = without_stamp(line) else { continue };
        // An extension that only a superuser makes is there already, and so is its schema.
        let made =
            line.strip_prefix("CREATE SCHEMA ").filter(|_| entry.schema && !entry.right && !entry.comment);
        let line = match made {
            Some(rest) => format!("CREATE SCHEMA IF NOT EXISTS {rest}").into(),
            None => line,
        };
        let hoisted =
            entry.right && entry.schema && ["GRANT ", "REVOKE "].iter().any(|word| content.starts_with(word));
        if hoisted { &mut early } else { &mut text }.push_str(&line);
    }
    text.insert_str(place.unwrap_or(text.len()), &early);
    text
}

/// What one entry of a dump is about, as the comment before it says.
#[derive(Clone, Copy, Default)]
struct Entry {
    /// Of a role that ours may not act for, or what only a superuser can make.
    foreign: bool,
    cast: bool,
    /// Rights.
    right: bool,
    /// Of something that every server has.
    server: bool,
    schema: bool,
    extension: bool,
    comment: bool,
}

impl Entry {
    /// `Name: ` is cut off.
    fn of(header: &str, others: Option<&[String]>) -> Self {
        let kind = |kind: &str| header.contains(&format!("; Type: {kind}; "));
        let owner = header.rsplit_once("; Owner: ").map(|(_, owner)| owner);
        Self {
            foreign: others.is_some_and(|others| {
                others.iter().any(|other| Some(other.as_str()) == owner)
                    || ["ACCESS METHOD", "TEXT SEARCH TEMPLATE", "TEXT SEARCH PARSER"].into_iter().any(kind)
            }),
            cast: kind("CAST"),
            right: kind("ACL") || kind("DEFAULT ACL"),
            server: header.contains("; Schema: pg_catalog; "),
            schema: kind("SCHEMA") || header.starts_with("SCHEMA ") && (kind("ACL") || kind("COMMENT")),
            extension: kind("EXTENSION") || header.starts_with("EXTENSION ") && kind("COMMENT"),
            comment: kind("COMMENT"),
        }
    }

    /// Whether this line of it is what only a superuser may say. An extension's comment comes with it; only its owner may say it, and one that a
    /// superuser made is not ours.
    fn is_a_superusers(self, line: &str, others: Option<&[String]>) -> bool {
        if self.extension && self.comment {
            return line.starts_with("COMMENT ON EXTENSION ") && line.ends_with(';');
        }
        if self.foreign && !line.starts_with("--") {
            // Said between entries, for the next one.
            return !line.starts_with("SET default_table");
        }
        if self.cast && others.is_some() && line.contains(" WITHOUT FUNCTION") {
            return true;
        }
        let Some(others) = others.filter(|_| self.right && !line.starts_with("--")) else { return false };
        let granted = ["SET SESSION AUTHORIZATION ", "RESET SESSION AUTHORIZATION;"];
        let of_other = |role: &String| {
            let quoted = format!("\"{}\" ", role.replace('"', "\"\""));
            line.strip_prefix("ALTER DEFAULT PRIVILEGES FOR ROLE ")
                .is_some_and(|rest| rest.starts_with(&quoted))
        };
        self.server || granted.iter().any(|word| line.starts_with(word)) || others.iter().any(of_other)
    }
}

/// The minor releases of November 2026 (15.20 and its like) keep a stamp of their own among each column's options. A `pg_dump` that is older
/// than they are writes it down, and a server that is older, or of another major version, does not know it. None: nothing is left.
fn without_stamp(line: &str) -> Option<Cow<'_, str>> {
    const STAMP: &str = "pg_attver=";
    let set = ["ALTER TABLE ", "ALTER FOREIGN TABLE "].iter().any(|what| line.starts_with(what));
    let Some((head, options)) = line.split_once(" SET (").filter(|(_, rest)| set && rest.contains(STAMP))
    else {
        return Some(line.into());
    };
    let Some((options, tail)) = options.split_once(')') else { return Some(line.into()) };
    let left: Vec<&str> = options.split(", ").filter(|option| !option.starts_with(STAMP)).collect();
    (!left.is_empty()).then(|| format!("{head} SET ({}){tail}", left.join(", ")).into())
}

/// The fence of a former shadow, and what makes commits of critical tables wait, belong to that database alone.
fn own_trigger(line: &str) -> bool {
    ["fence", "critical"].iter().any(|name| line.starts_with(&format!("CREATE TRIGGER \"godwit_{name}\" ")))
        && line.ends_with(';')
        && line.contains("\"godwit\".")
}

/// Adapts a portable dump to the version that loads it: `MAINTAIN` came with 17, `NOT NULL` as an entry of a table with 18;
/// partitions have no identity columns of their own since 17.
pub(crate) fn for_target(sql: &str, server: u32) -> String {
    let mut sql = sql.to_owned();
    if server >= 170_000 && sql.contains(" ATTACH PARTITION ") && sql.contains(" AS IDENTITY (\n") {
        sql = without_own_identities(&sql);
    }
    if server < 180_000 && sql.contains(" NOT NULL \"") {
        sql = without_table_not_null(&sql);
    }
    if server < 170_000 && sql.contains("MAINTAIN") {
        sql = sql.split_inclusive('\n').filter_map(without_maintain).collect();
    }
    sql
}

/// The identity columns of partitions become those of what they are a part of; their sequences stay, for who moves back to an older server.
fn without_own_identities(sql: &str) -> String {
    fn attached(line: &str) -> Option<&str> {
        let (_, rest) = line.strip_prefix("ALTER TABLE ")?.split_once(" ATTACH PARTITION ")?;
        statements::qualified(rest).map(|(name, _)| name)
    }
    let partitions: HashSet<&str> = sql.lines().filter_map(attached).collect();
    let own = |line: &str| -> Option<(String, String)> {
        let rest = line.strip_prefix("ALTER TABLE ")?;
        let (table, rest) = statements::qualified(rest.strip_prefix("ONLY ").unwrap_or(rest))?;
        let (column, rest) = statements::identifier(rest.strip_prefix(" ALTER COLUMN ")?)?;
        let identity = rest.starts_with(" ADD GENERATED ") && rest.ends_with(" AS IDENTITY (\n");
        (identity && partitions.contains(table)).then(|| (table.to_owned(), column.to_owned()))
    };
    let mut text = String::with_capacity(sql.len());
    // The column whose identity is being told, and its sequence.
    let mut of: Option<(String, String, String)> = None;
    for line in sql.split_inclusive('\n') {
        if let Some((table, column)) = own(line) {
            of = Some((table, column, String::new()));
        } else if let Some((_, _, sequence)) = &mut of
            && let Some(name) = line.trim().strip_prefix("SEQUENCE NAME ")
        {
            name.clone_into(sequence);
            text.push_str(&format!("CREATE SEQUENCE {name}\n"));
        } else if line == ");\n"
            && let Some((table, column, sequence)) = of.take()
        {
            let bare = column[1..column.len() - 1].replace("\"\"", "\"");
            text.push_str(&format!(
                ";\nDO $godwit$BEGIN EXECUTE (SELECT format('ALTER SEQUENCE %1$s OWNER TO %2$I; ALTER SEQUENCE %1$s AS %3$s OWNED BY %4$s', \
                 {}, pg_catalog.pg_get_userbyid(relowner), pg_catalog.format_type(atttypid, NULL), {}) \
                 FROM pg_catalog.pg_class c JOIN pg_catalog.pg_attribute ON attrelid = c.oid \
                 WHERE c.oid = {}::pg_catalog.regclass AND attname = {}); END$godwit$;\n",
                quote_literal(&sequence),
                quote_literal(&format!("{table}.{column}")),
                quote_literal(&table),
                quote_literal(&bare)
            ));
        } else {
            text.push_str(line);
        }
    }
    text
}

/// `NOT NULL "column"` among the columns of a table, as pg_dump 18 says it of an inherited one, came with that version: said after the table instead.
fn without_table_not_null(sql: &str) -> String {
    let mut text = String::with_capacity(sql.len());
    // The table whose columns are being told, what is to be said after it, and whether its list has ended.
    let mut table: Option<(&str, String, bool)> = None;
    let mut quoted = None;
    for line in sql.split_inclusive('\n') {
        let content = line.trim_end();
        let began_inside = quoted.is_some();
        for character in content.chars().filter(|character| matches!(character, '\'' | '"')) {
            quoted = match quoted {
                None => Some(character),
                Some(open) if open == character => None,
                open => open,
            };
        }
        if began_inside {
            text.push_str(line);
            continue;
        }
        match &mut table {
            None => {
                let create = content.strip_prefix("CREATE ").and_then(|rest| rest.strip_suffix(" ("));
                let kinds = ["TABLE ", "UNLOGGED TABLE ", "FOREIGN TABLE "];
                let name = create.and_then(|rest| kinds.iter().find_map(|kind| rest.strip_prefix(kind)));
                table = name.map(|name| (name, String::new(), false));
            }
            Some((name, after, false)) => {
                if let Some(column) = table_not_null(content.trim_end_matches(',')) {
                    after.push_str(&format!("ALTER TABLE ONLY {name} ALTER COLUMN {column} SET NOT NULL;\n"));
                    if !content.ends_with(',') && text.ends_with(",\n") {
                        text.replace_range(text.len() - 2..text.len() - 1, "");
                    }
                    continue;
                }
                if content.starts_with(')') {
                    table = table.map(|(name, after, _)| (name, after, true));
                }
            }
            Some((.., true)) => {}
        }
        text.push_str(line);
        if content.ends_with(';')
            && quoted.is_none()
            && let Some((_, after, true)) = table.take_if(|(.., ended)| *ended)
        {
            text.push_str(&after);
        }
    }
    text
}

/// The column of `NOT NULL "column"` or `CONSTRAINT name NOT NULL "column"`.
fn table_not_null(entry: &str) -> Option<&str> {
    let mut rest = entry.strip_prefix("    ")?;
    if let Some(named) = rest.strip_prefix("CONSTRAINT ") {
        let end = match named.strip_prefix('"') {
            Some(name) => 2 + name.replace("\"\"", "__").find('"')?,
            None => named.find(' ')?,
        };
        rest = named.get(end..)?.strip_prefix(' ')?;
    }
    rest.strip_prefix("NOT NULL ").filter(|column| column.starts_with('"') && column.ends_with('"'))
}

fn without_maintain(line: &str) -> Option<String> {
    let grant = ["GRANT ", "REVOKE ", "ALTER DEFAULT PRIVILEGES "].iter().any(|word| line.starts_with(word));
    let Some((privileges, rest)) = line.split_once(" ON ").filter(|_| grant) else {
        return Some(line.to_owned());
    };
    let (verb, list) = privileges.rsplit_once(' ')?;
    let kept: Vec<&str> = list.split(',').filter(|privilege| *privilege != "MAINTAIN").collect();
    (!kept.is_empty()).then(|| format!("{verb} {} ON {rest}", kept.join(",")))
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
    fn an_inherited_column_is_not_null_on_older_servers_too() {
        let dump = concat!(
            "CREATE TABLE \"s\".\"a\" (\n    NOT NULL \"id\",\n    \"n\" \"text\" DEFAULT 'x;\n)\n    NOT NULL \"no\",\n' NOT NULL\n)\nINHERITS (\"s\".\"p\");\n",
            "CREATE UNLOGGED TABLE \"s\".\"b\" (\n    \"n\" integer NOT NULL,\n    CONSTRAINT \"it's \"\"\" NOT NULL \"a,b\"\n)\nINHERITS (\"s\".\"p\");\n",
            "CREATE TABLE \"s\".\"c\" (\n    CONSTRAINT named NOT NULL \"id\"\n)\nINHERITS (\"s\".\"p\")\nWITH (fillfactor='50');\n",
            "CREATE TABLE \"s\".\"d\" (\n    \"id\" integer CONSTRAINT \"k\" NOT NULL,\n    CONSTRAINT \"ck\" CHECK ((\"id\" IS NOT NULL))\n);\n",
        );
        let expected = concat!(
            "CREATE TABLE \"s\".\"a\" (\n    \"n\" \"text\" DEFAULT 'x;\n)\n    NOT NULL \"no\",\n' NOT NULL\n)\nINHERITS (\"s\".\"p\");\n",
            "ALTER TABLE ONLY \"s\".\"a\" ALTER COLUMN \"id\" SET NOT NULL;\n",
            "CREATE UNLOGGED TABLE \"s\".\"b\" (\n    \"n\" integer NOT NULL\n)\nINHERITS (\"s\".\"p\");\n",
            "ALTER TABLE ONLY \"s\".\"b\" ALTER COLUMN \"a,b\" SET NOT NULL;\n",
            "CREATE TABLE \"s\".\"c\" (\n)\nINHERITS (\"s\".\"p\")\nWITH (fillfactor='50');\n",
            "ALTER TABLE ONLY \"s\".\"c\" ALTER COLUMN \"id\" SET NOT NULL;\n",
            "CREATE TABLE \"s\".\"d\" (\n    \"id\" integer CONSTRAINT \"k\" NOT NULL,\n    CONSTRAINT \"ck\" CHECK ((\"id\" IS NOT NULL))\n);\n",
        );
        assert_eq!(for_target(dump, 170_004), expected);
        assert_eq!(for_target(dump, 180_000), dump);
    }

    #[test]
    fn what_a_server_stamps_columns_with_stays_there() {
        let line =
            |options: &str| format!("ALTER TABLE ONLY \"s\".\"t\" ALTER COLUMN \"a B\" SET ({options});\n");
        let left = |line: &str| without_stamp(line).map(Cow::into_owned);
        assert_eq!(left(&line("pg_attver=22361264")), None);
        assert_eq!(left(&line("pg_attver=1, n_distinct=5")), Some(line("n_distinct=5")));
        assert_eq!(left(&line("n_distinct=5, pg_attver=1")), Some(line("n_distinct=5")));
        assert_eq!(left(&line("n_distinct=5")), Some(line("n_distinct=5")));
        assert_eq!(left("ALTER FOREIGN TABLE ONLY \"f\" ALTER COLUMN \"a\" SET (pg_attver=7);\n"), None);
        let body = "SELECT ' SET (pg_attver=1);'\n";
        assert_eq!(left(body).as_deref(), Some(body));
    }

    #[test]
    fn a_dump_loses_what_is_not_portable_and_nothing_else() {
        let dump = "--\n-- PostgreSQL database dump\n--\n\n\\restrict aBc9\n\nSET statement_timeout = 0;\nSET transaction_timeout = 0;\n\
             SET client_encoding = 'UTF8';\nSELECT pg_catalog.set_config('search_path', '', false);\nSET row_security = off;\n\n\
             CREATE FUNCTION \"f\"() RETURNS \"text\" AS $$\nSET statement_timeout = 0;\n\\restrict aBc9\n\\unrestrict other\n$$;\n\
             CREATE TRIGGER \"godwit_fence\" BEFORE INSERT ON \"public\".\"t\" FOR EACH STATEMENT EXECUTE FUNCTION \"godwit\".\"refuse_write\"();\n\
             CREATE TRIGGER \"godwit_critical\" BEFORE INSERT ON \"public\".\"t\" FOR EACH STATEMENT EXECUTE FUNCTION \"godwit\".\"wait_for_shadow\"();\n\
             CREATE TRIGGER \"own\" BEFORE INSERT ON \"public\".\"t\" FOR EACH ROW EXECUTE FUNCTION \"public\".\"f\"();\n\n\
             --\n-- Name: EXTENSION \"hstore\"; Type: COMMENT; Schema: -; Owner: \n--\n\nCOMMENT ON EXTENSION \"hstore\" IS 'kept in rows';\n\n\
             --\n-- Name: ext; Type: SCHEMA; Schema: -; Owner: post; gres\n--\n\nCREATE SCHEMA \"ext\";\n\n\nALTER SCHEMA \"ext\" OWNER TO \"post; gres\";\n\n\
             SET default_tablespace = '';\n\n\
             --\n-- Name: FUNCTION \"x\"(); Type: ACL; Schema: ext; Owner: post; gres\n--\n\nGRANT ALL ON FUNCTION \"ext\".\"x\"() TO \"app\";\n\n\
             --\n-- Name: f; Type: FUNCTION; Schema: public; Owner: app\n--\n\nCOMMENT ON EXTENSION \"in a body\" IS 'stays';\n\
             -- Name: x; Type: SCHEMA; Schema: -; Owner: post; gres\nSELECT 'said in a body';\n\\unrestrict aBc9\n\n";
        let expected = "--\n-- PostgreSQL database dump\n--\n\n\n\
             SET client_encoding = 'UTF8';\nSELECT pg_catalog.set_config('search_path', '', false);\nSET row_security = off;\n\n\
             CREATE FUNCTION \"f\"() RETURNS \"text\" AS $$\nSET statement_timeout = 0;\n\\restrict aBc9\n\\unrestrict other\n$$;\n\
             CREATE TRIGGER \"own\" BEFORE INSERT ON \"public\".\"t\" FOR EACH ROW EXECUTE FUNCTION \"public\".\"f\"();\n\n\
             --\n-- Name: EXTENSION \"hstore\"; Type: COMMENT; Schema: -; Owner: \n--\n\n\n\
             --\n-- Name: ext; Type: SCHEMA; Schema: -; Owner: post; gres\n--\nSET default_tablespace = '';\n\
             --\n-- Name: FUNCTION \"x\"(); Type: ACL; Schema: ext; Owner: post; gres\n--\n\
             --\n-- Name: f; Type: FUNCTION; Schema: public; Owner: app\n--\n\nCOMMENT ON EXTENSION \"in a body\" IS 'stays';\n\
             -- Name: x; Type: SCHEMA; Schema: -; Owner: post; gres\nSELECT 'said in a body';\n\n";
        assert_eq!(portable(dump, Some(&["post; gres".into()])), expected);
        assert!(
            portable(dump, None).contains("CREATE SCHEMA IF NOT EXISTS \"ext\";"),
            "a superuser makes it"
        );
    }

    #[test]
    fn from_17_on_a_partition_has_no_identity_of_its_own() {
        let identity = |table: &str| {
            format!(
                "ALTER TABLE \"s\".\"{table}\" ALTER COLUMN \"i\"\"d\" ADD GENERATED ALWAYS AS IDENTITY (\n    SEQUENCE NAME \"s\".\"q\"\n    START WITH 1\n);\n"
            )
        };
        let attach = "ALTER TABLE ONLY \"s\".\"p\" ATTACH PARTITION \"s\".\"a\" DEFAULT;\n";
        let dump = format!("{}{}{attach}", identity("p"), identity("a"));
        let expected = format!(
            "{}CREATE SEQUENCE \"s\".\"q\"\n    START WITH 1\n;\n\
             DO $godwit$BEGIN EXECUTE (SELECT format('ALTER SEQUENCE %1$s OWNER TO %2$I; ALTER SEQUENCE %1$s AS %3$s OWNED BY %4$s', \
             '\"s\".\"q\"', pg_catalog.pg_get_userbyid(relowner), pg_catalog.format_type(atttypid, NULL), '\"s\".\"a\".\"i\"\"d\"') \
             FROM pg_catalog.pg_class c JOIN pg_catalog.pg_attribute ON attrelid = c.oid \
             WHERE c.oid = '\"s\".\"a\"'::pg_catalog.regclass AND attname = 'i\"d'); END$godwit$;\n{attach}",
            identity("p")
        );
        assert_eq!(for_target(&dump, 180_000), expected);
        assert_eq!(for_target(&dump, 160_004), dump);
        // What else a server of 17 does not understand is taken out as well.
        let inherited = "CREATE TABLE \"s\".\"c\" (\n    NOT NULL \"id\"\n)\nINHERITS (\"s\".\"t\");\n";
        let (there, newer) = (format!("{inherited}{dump}"), format!("{inherited}{expected}"));
        assert_eq!(for_target(&there, 180_000), newer);
        assert_eq!(for_target(&there, 170_004), without_table_not_null(&newer));
    }

    #[test]
    fn maintain_is_granted_only_where_it_exists() {
        let sql = "GRANT SELECT,MAINTAIN,UPDATE ON TABLE \"t\" TO \"app\";\nGRANT MAINTAIN ON TABLE \"t\" TO \"b\";\n-- MAINTAIN\n";
        assert_eq!(for_target(sql, 180_000), sql);
        assert_eq!(for_target(sql, 150_000), "GRANT SELECT,UPDATE ON TABLE \"t\" TO \"app\";\n-- MAINTAIN\n");
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
