//! The PostgreSQL front of a resource.

use std::collections::BTreeMap;
use std::time::Duration;

use super::listeners::Listeners;
use super::load::Surroundings;
use super::model::{Database, FrontTls, PostgresAuth, PostgresFront, PostgresPool};
use super::raw::Value;
use super::secret;
use super::walk::Item;
use crate::fronts::postgres::protocol::names::is_custom;

/// Sessions at once when the configuration does not say.
const CONNECTIONS: u32 = 1000;
/// Time for a login when it does not say.
const STARTUP: Duration = Duration::from_secs(10);
const AUTH_RIGHT: &str = "query, trust, {query: SQL} or {file: PATH}";

/// `{listen, database, auth, tls, passwords, connections, startup, settings, pool}`. The database may still be without a name.
pub(super) fn read<'a>(
    resource: &str,
    item: &Item<'a>,
    around: &Surroundings<'_>,
    listeners: &mut Listeners<'a>,
) -> Option<PostgresFront> {
    let mut section = item.section()?;
    let listen = section.required("listen", "listen: 0.0.0.0:6432");
    let database = section.optional("database").map(|item| item.text("the name of a database"));
    let auth_item = section.optional("auth");
    let auth = auth_item.as_ref().map_or(Some(PostgresAuth::Query(None)), |item| auth(item, around));
    let tls = section.optional("tls").map(|item| tls(&item, around));
    let passwords = section.optional("passwords").map(|item| passwords(&item, around));
    let connections =
        section.optional("connections").map_or(Some(CONNECTIONS), |item| item.count(1, 1_000_000));
    let startup = section.optional("startup").map_or(Some(STARTUP), |item| some_time(&item, "10s"));
    let settings = section.optional("settings").map(|item| settings(&item));
    let pool = section.optional("pool").map(|item| pool(&item));
    section.finish();
    let (listen, address) = (listen.as_ref()?, listen.as_ref().and_then(Item::address)?);
    listeners.add_postgres(listen, address, resource);
    if auth == Some(PostgresAuth::Trust)
        && !address.ip().is_loopback()
        && let Some(item) = auth_item
    {
        item.wrong("lets everybody in who reaches it", "query, or listen on loopback");
    }
    Some(PostgresFront {
        listen: address,
        database: database.map_or(Some(String::new()), |name| name.map(str::to_owned))?,
        auth: auth?,
        tls: tls.map_or(Some(None), |tls| tls.map(Some))?,
        passwords: passwords.unwrap_or_default(),
        connections: connections? as usize,
        startup: startup?,
        settings: settings.unwrap_or_default(),
        pool: pool.map_or(Some(None), |pool| pool.map(Some))?,
    })
}

fn some_time(item: &Item<'_>, right: &str) -> Option<Duration> {
    let time = item.duration()?;
    if time.is_zero() {
        item.wrong("is no time at all", right);
    }
    Some(time)
}

fn pool(item: &Item<'_>) -> Option<PostgresPool> {
    let mut section = item.section()?;
    let default = PostgresPool::default();
    let mut count = |key, most, default: usize| {
        section.optional(key).map_or(Some(default), |item| item.count(1, most).map(|count| count as usize))
    };
    let size = count("size", 10_000, default.size);
    let statements = count("statements", 100_000, default.statements);
    let mut time =
        |key, right, default| section.optional(key).map_or(Some(default), |item| some_time(&item, right));
    let (wait, idle) = (time("wait", "30s", default.wait), time("idle", "10m", default.idle));
    section.finish();
    Some(PostgresPool { size: size?, wait: wait?, idle: idle?, statements: statements? })
}

/// Where it says nothing, the front's database is called as in the placements.
pub(super) fn named(mut front: PostgresFront, database: Option<&Database>) -> Option<PostgresFront> {
    if front.database.is_empty() {
        database?.dsn.get_dbname()?.clone_into(&mut front.database);
    }
    Some(front)
}

fn auth(item: &Item<'_>, around: &Surroundings<'_>) -> Option<PostgresAuth> {
    if !matches!(item.value(), Value::Map(_)) {
        let trust = item.choice(&[("query", false), ("trust", true)])?;
        return Some(if trust { PostgresAuth::Trust } else { PostgresAuth::Query(None) });
    }
    let mut section = item.section()?;
    let (query, file) = (section.optional("query"), section.optional("file"));
    section.finish();
    match (query, file) {
        (Some(query), None) => {
            let text = query.text("an SQL query with $1 for the role")?;
            if !text.contains("$1") {
                query.wrong("does not say where the role's name goes", "$1 for the role");
            }
            Some(PostgresAuth::Query(Some(text.to_owned())))
        }
        (None, Some(file)) => file.path(around.folder).map(PostgresAuth::File),
        _ => {
            item.wrong("names no one place of verifiers", AUTH_RIGHT);
            None
        }
    }
}

fn tls(item: &Item<'_>, around: &Surroundings<'_>) -> Option<FrontTls> {
    let mut section = item.section()?;
    let cert = section.required("cert", "cert: PATH");
    let key = section.required("key", "key: PATH");
    let required = section.optional("required").map_or(Some(false), |item| item.boolean());
    section.finish();
    let path = |item: Option<Item<'_>>| item.and_then(|item| item.path(around.folder));
    let (cert, key) = (path(cert), path(key));
    Some(FrontTls { cert: cert?, key: key?, required: required? })
}

fn passwords(item: &Item<'_>, around: &Surroundings<'_>) -> BTreeMap<String, String> {
    let roles = item.named("secrets").unwrap_or_default();
    roles
        .into_iter()
        .filter_map(|(role, item)| Some((role.to_owned(), secret::read(&item, around)?)))
        .collect()
}

fn settings(item: &Item<'_>) -> Vec<String> {
    let items = item.list("names of custom settings, such as [app.tenant]").unwrap_or_default();
    let name = |item: &Item<'_>| {
        let name = item.text("a name with a point, such as app.tenant")?;
        if !is_custom(name) {
            item.wrong("is not the name of a custom setting", "a name with a point, such as app.tenant");
        }
        Some(name.to_owned())
    };
    items.iter().filter_map(name).collect()
}
