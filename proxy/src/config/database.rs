//! The database of a placement.

use tokio_postgres::config::{Host, SslMode};

use super::load::Surroundings;
use super::model::Database;
use super::secret;
use super::walk::Item;

const DSN_RIGHT: &str = "postgres://USER@HOST:PORT/DATABASE";

/// `{dsn, password, bin, app_roles}`.
pub(super) fn read(item: &Item<'_>, around: &Surroundings<'_>) -> Option<Database> {
    let mut section = item.section()?;
    let dsn = section.required("dsn", &format!("dsn: {DSN_RIGHT}"));
    let dsn = dsn.and_then(|item| connection(&item));
    let password = section.optional("password").map(|item| secret::read(&item, around));
    let bin = section.optional("bin").map(|item| item.path(around.folder));
    let app_roles = section.optional("app_roles").map(|item| roles(&item));
    section.finish();

    let mut dsn = dsn?;
    if let Some(password) = password {
        dsn.password(password?);
    }
    let bin = match bin {
        Some(bin) => Some(bin?),
        None => None,
    };
    Some(Database { dsn, bin, app_roles: app_roles.map_or(Some(Vec::new()), |roles| roles)? })
}

fn roles(item: &Item<'_>) -> Option<Vec<String>> {
    let names = item.list("role names")?;
    names.iter().map(|name| name.text("the name of a role").map(str::to_owned)).collect()
}

/// Checks a connection string; nothing of it is quoted, since it might hold a password.
fn connection(item: &Item<'_>) -> Option<tokio_postgres::Config> {
    let text = item.text(&format!("a connection string such as {DSN_RIGHT}"))?;
    let Ok(config) = text.parse::<tokio_postgres::Config>() else {
        item.wrong("is not a connection string", DSN_RIGHT);
        return None;
    };
    let mut right = true;
    let mut rule = |holds: bool, what: &str, instead: &str| {
        if !holds {
            item.wrong(what, instead);
            right = false;
        }
    };
    rule(
        config.get_password().is_none(),
        "holds a password",
        "take it out and add password: {file: PATH} or {env: NAME}",
    );
    rule(config.get_user().is_some_and(|user| !user.is_empty()), "names no user", DSN_RIGHT);
    rule(config.get_dbname().is_some_and(|name| !name.is_empty()), "names no database", DSN_RIGHT);
    match config.get_hosts() {
        [Host::Tcp(host)] => rule(!host.is_empty(), "names no host", DSN_RIGHT),
        [_] => rule(false, "names a Unix socket", "a host reached over TCP, such as 127.0.0.1"),
        [] => rule(false, "names no host", DSN_RIGHT),
        _ => rule(false, "names more than one host", "the one host that is this placement's database"),
    }
    rule(
        config.get_ssl_mode() != SslMode::Require,
        "asks for TLS (sslmode=require), which this version does not speak to PostgreSQL",
        "sslmode=disable on a network you trust",
    );
    right.then_some(config)
}

/// Whether two connection strings mean the same database of the same server, as far as the text tells.
pub(super) fn same(a: &Database, b: &Database) -> bool {
    let port = |database: &Database| database.dsn.get_ports().first().copied().unwrap_or(5432);
    a.dsn.get_hosts() == b.dsn.get_hosts() && port(a) == port(b) && a.dsn.get_dbname() == b.dsn.get_dbname()
}
