//! The database of a placement.

use std::path::PathBuf;

use replicator::postgres::{Authority, ClientCertificate, Dsn, Tls, TlsMode};
use tokio_postgres::config::Host;

use super::listeners::Listeners;
use super::load::Surroundings;
use super::model::Database;
use super::raw::Value;
use super::secret;
use super::walk::Item;

const DSN_RIGHT: &str = "postgres://USER@HOST:PORT/DATABASE";

/// `{dsn, password, tls, bin, app_roles, heartbeat}`.
pub(super) fn read<'a>(
    item: &Item<'a>,
    around: &Surroundings<'_>,
    listeners: &mut Listeners<'a>,
) -> Option<Database> {
    let mut section = item.section()?;
    let dsn = section.required("dsn", &format!("dsn: {DSN_RIGHT}"));
    let tls = section.optional("tls");
    let dsn = dsn.and_then(|item| {
        let dsn = connection(&item, tls.is_some(), around)?;
        if let [Host::Tcp(host)] = dsn.get_hosts() {
            listeners.passes_on_to(&item, host, port(&dsn));
        }
        Some(dsn)
    });
    let tls = tls.map(|item| encryption(&item, around));
    let password = section.optional("password").map(|item| secret::read(&item, around));
    let bin = section.optional("bin").map(|item| item.path(around.folder));
    let app_roles = section.optional("app_roles").map(|item| roles(&item));
    let heartbeat = section.optional("heartbeat").map_or(Some(true), |item| item.boolean());
    section.finish();

    let mut dsn = dsn?;
    if let Some(password) = password {
        dsn.password(password?);
    }
    if let Some(tls) = tls {
        dsn.tls = tls?;
    }
    let bin = match bin {
        Some(bin) => Some(bin?),
        None => None,
    };
    let app_roles = app_roles.map_or(Some(Vec::new()), |roles| roles)?;
    Some(Database { dsn, bin, app_roles, heartbeat: heartbeat? })
}

fn roles(item: &Item<'_>) -> Option<Vec<String>> {
    let names = item.list("role names")?;
    names.iter().map(|name| name.text("the name of a role").map(str::to_owned)).collect()
}

/// `{mode, ca, cert, key}`.
fn encryption(item: &Item<'_>, around: &Surroundings<'_>) -> Option<Tls> {
    let mut section = item.section()?;
    let modes = [TlsMode::Disable, TlsMode::Prefer, TlsMode::Require, TlsMode::VerifyCa, TlsMode::VerifyFull];
    let mode = match section.optional("mode") {
        Some(item) => item.choice(&modes.map(|mode| (mode.as_str(), mode))),
        None => Some(TlsMode::VerifyFull),
    };
    let mut file = |name| section.optional(name).map(|item| pem(&item, around));
    let (cert, key) = (file("cert"), file("key"));
    let ca = section.optional("ca").map(|item| match item.value() {
        Value::Text(text) if text == "system" => Some(Authority::System),
        _ => pem(&item, around).map(Authority::File),
    });
    section.finish();
    let client = match (cert, key) {
        (None, None) => None,
        (Some(certificate), Some(key)) => Some(ClientCertificate { certificate: certificate?, key: key? }),
        _ => {
            item.wrong("has one of cert and key", "both: they belong together");
            return None;
        }
    };
    let ca = match ca {
        Some(ca) => Some(ca?),
        None => None,
    };
    let tls = Tls { mode: mode?, ca, client };
    match tls.check() {
        Ok(()) => Some(tls),
        Err(error) => {
            item.wrong(error.what, error.right);
            None
        }
    }
}

/// A file that can be read now; its content is read again for each connection.
fn pem(item: &Item<'_>, around: &Surroundings<'_>) -> Option<PathBuf> {
    let path = item.path(around.folder)?;
    readable(item, &path, around).then_some(path)
}

fn readable(item: &Item<'_>, path: &std::path::Path, around: &Surroundings<'_>) -> bool {
    let read = (around.read)(path);
    if let Err(error) = &read {
        let what = format!("cannot read {}: {}", path.display(), secret::reason(error));
        item.wrong(what, "a PEM file that this process may read");
    }
    read.is_ok()
}

/// Checks a connection string; nothing of it is quoted, since it might hold a password.
fn connection(item: &Item<'_>, tls_apart: bool, around: &Surroundings<'_>) -> Option<Dsn> {
    let text = item.text(&format!("a connection string such as {DSN_RIGHT}"))?;
    let config = match text.parse::<Dsn>() {
        Ok(dsn) => dsn.relative_to(around.folder),
        Err(error) => {
            item.wrong(error.what, error.right);
            return None;
        }
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
        !tls_apart || config.tls == Tls::default(),
        "speaks of TLS, and so does the key tls beside it",
        "one of the two: sslmode and the like in the connection string, or tls",
    );
    let files = match &config.tls.ca {
        Some(Authority::File(path)) => Some(path),
        _ => None,
    };
    let client = config.tls.client.as_ref();
    let files = files.into_iter().chain(client.into_iter().flat_map(|it| [&it.certificate, &it.key]));
    for path in files {
        right &= readable(item, path, around);
    }
    right.then_some(config)
}

/// Whether two connection strings mean the same database of the same server, as far as the text tells.
pub(crate) fn same(a: &Database, b: &Database) -> bool {
    a.dsn.get_hosts() == b.dsn.get_hosts()
        && port(&a.dsn) == port(&b.dsn)
        && a.dsn.get_dbname() == b.dsn.get_dbname()
}

fn port(dsn: &Dsn) -> u16 {
    dsn.get_ports().first().copied().unwrap_or(5432)
}
