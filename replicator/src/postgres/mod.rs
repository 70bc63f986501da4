//! The only files that speak to the source database: SQL connections, slots, the replication stream.

pub(crate) mod backlog;
pub(crate) mod connection;
mod dsn;
mod paced;
pub(crate) mod rows;
pub mod slot;
pub mod stream;
mod tls;

use std::pin::Pin;
use std::time::Duration;

use futures_util::FutureExt;
use tokio_postgres::{Client, NoTls};
use tokio_util::sync::CancellationToken;

use connection::Address;
pub use connection::{Dialed, Peek, Socket, dial};
pub use dsn::{Authority, ClientCertificate, Dsn, DsnError, Tls, TlsMode};
pub use tls::certificate_hash;

use crate::error::Error;

/// How long a connection attempt may take when the connection parameters do not say.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Godwit's own commits never wait for the shadow that it is bringing up; the applier sets its own level.
const COMMITS: &str = "-c synchronous_commit=local";
/// Time-outs of a session: what it waits for Godwit gives up by itself.
const TIME_OUTS: [&str; 4] =
    ["statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout", "idle_session_timeout"];
/// The same of one that servers before 17 do not know: they end a connection that begins with it.
const TIME_OUT_SINCE_17: &str = "SET transaction_timeout = 0";
/// That the other side is gone each of the two notices within a minute, also where nothing is under way between them.
const KEEPALIVES: &str = "-c tcp_keepalives_idle=30 -c tcp_keepalives_interval=10 -c tcp_keepalives_count=3";
/// The same where something is under way, which keepalives do not look at. Linux also counts how long a server that is well takes nothing more, as it
/// does while it executes a statement: only for sessions that have little to send behind one.
const UNHEARD: Duration = Duration::from_mins(1);
/// Of a connection whose parameters say nothing of it.
const USUAL_IDLE: Duration = Duration::from_hours(2);
/// Where sessions begin read-only the application has it so, or a person: no fence is made of it, and what Godwit writes is its own or already written.
const WRITES: &str = "-c default_transaction_read_only=off";
/// What a session begins with besides, whatever the database and the role say: values and SQL mean the same everywhere. What is asked of the catalogs of a large database is dear enough to be compiled, which takes seconds of the server's CPU.
const OPTIONS: &str = "\
    -c standard_conforming_strings=on -c default_transaction_isolation=read\\ committed \
    -c datestyle=ISO -c intervalstyle=postgres -c bytea_output=hex -c extra_float_digits=1 -c array_nulls=on \
    -c transform_null_equals=off -c quote_all_identifiers=off -c jit=off";

/// Opens an SQL connection and drives it from a task of its own, which ends when the client is dropped.
///
/// `connect_timeout` of `dsn` counts, 10 s otherwise, and bounds the whole of it, the server's answers included: a path that
/// swallows everything must not hang the caller. TLS is as [`Dsn::tls`] says, never less.
pub async fn connect(dsn: &Dsn, application_name: &str) -> Result<Client, Error> {
    Ok(driven(apart(dsn, application_name, WRITES, Some(UNHEARD)).await?))
}

/// The same for who sends more than the server takes in while it executes a statement, which may last as long as it likes. That the server has fallen
/// silent is noticed within a minute where nothing is under way, else when the kernel gives up what it sent, after about 15 min, or as soon as the
/// server is there again: it does not know the connection. `tcp_user_timeout` of `dsn` counts here, too.
pub async fn connect_to_write(dsn: &Dsn, application_name: &str) -> Result<Client, Error> {
    Ok(connect_to_write_watched(dsn, application_name).await?.0)
}

/// The same, with what is cancelled once the session has ended: who asks nothing of it learns that from nothing else.
pub async fn connect_to_write_watched(
    dsn: &Dsn,
    application_name: &str,
) -> Result<(Client, CancellationToken), Error> {
    let (client, driver) = apart(dsn, application_name, WRITES, None).await?;
    let ended = CancellationToken::new();
    let told = ended.clone().drop_guard();
    let driver = Box::pin(async move {
        let _told = told;
        driver.await
    });
    Ok((driven((client, driver)), ended))
}

/// The same for who changes schemas: the application's event triggers are for its own DDL. What they write may be fenced, and what they forbid is not
/// meant. A role that may not have it so goes without.
pub async fn connect_unseen(dsn: &Dsn, application_name: &str) -> Result<Client, Error> {
    unseen(connect(dsn, application_name).await?).await
}

/// The same for who also writes rows, as [`connect_to_write`].
pub async fn connect_unseen_to_write(dsn: &Dsn, application_name: &str) -> Result<Client, Error> {
    unseen(connect_to_write(dsn, application_name).await?).await
}

async fn unseen(client: Client) -> Result<Client, Error> {
    let sql = "DO $$ BEGIN PERFORM pg_catalog.set_config('session_replication_role', 'replica', false); \
        EXCEPTION WHEN insufficient_privilege THEN NULL; END $$";
    client.batch_execute(sql).await.map_err(Error::database("prepare a session"))?;
    Ok(client)
}

/// The same with nothing set that the database, the role or the server says otherwise: for who asks what sessions begin with.
pub async fn connect_untouched(dsn: &Dsn, application_name: &str) -> Result<Client, Error> {
    let (client, driver, _) = open(dsn, application_name, COMMITS, Some(UNHEARD)).await?;
    Ok(driven((client, driver)))
}

/// The same, but that nothing cuts the session short and it may write; what others begin with is `reset_val`.
pub async fn connect_unhurried(dsn: &Dsn, application_name: &str) -> Result<Client, Error> {
    let (client, driver, recent) = open(dsn, application_name, COMMITS, Some(UNHEARD)).await?;
    let client = driven((client, driver));
    let time_outs = TIME_OUTS.map(|name| format!("SET {name} = 0")).join("; ");
    let since_17 = if recent { TIME_OUT_SINCE_17 } else { "" };
    let set = format!("{time_outs}; SET jit = off; SET default_transaction_read_only = off; {since_17}");
    client.batch_execute(&set).await.map_err(Error::database("set a session's time-outs"))?;
    Ok(client)
}

/// Who keeps the sessions of this name in this database waiting for a lock, behind all others that wait: in words. Without `pg_read_all_stats` only who
/// it is. None: nobody. One round trip.
pub async fn blocks(client: &Client, application_name: &str) -> Result<Option<String>, Error> {
    let sql = "WITH RECURSIVE held (pid, far) AS ( \
        SELECT b.pid, 1 FROM pg_catalog.pg_stat_activity w, unnest(pg_catalog.pg_blocking_pids(w.pid)) b (pid) \
        WHERE w.application_name = $1 AND w.datname = current_database() AND w.usename = current_user \
        UNION SELECT b.pid, h.far + 1 FROM held h, unnest(pg_catalog.pg_blocking_pids(h.pid)) b (pid) WHERE h.far < 9) \
      SELECT CASE WHEN h.pid = 0 THEN 'a prepared transaction (pg_prepared_xacts)' \
        ELSE concat_ws(' ', format('pid %s', h.pid), 'of ' || b.usename, '(' || nullif(b.application_name, '') || ')', b.state) END \
      FROM held h LEFT JOIN pg_catalog.pg_stat_activity b ON b.pid = h.pid ORDER BY h.far DESC LIMIT 1";
    let row = client.query_opt(sql, &[&application_name]).await;
    Ok(row.map_err(Error::database("look who holds a lock"))?.map(|row| row.get(0)))
}

fn driven((client, driver): (Client, Driver)) -> Client {
    tokio::spawn(async move {
        // Every call on the client reports the failure too; this is for the log.
        if let Err(error) = driver.await {
            tracing::debug!(%error, "database connection ended");
        }
    });
    client
}

/// Drives a connection until its client is gone and the last answer is there.
pub type Driver = Pin<Box<dyn Future<Output = Result<(), tokio_postgres::Error>> + Send>>;

/// The same for callers that drive the connection themselves, and can so end it while the server owes an answer; and who may write where any client may.
pub async fn connect_apart(dsn: &Dsn, application_name: &str) -> Result<(Client, Driver), Error> {
    apart(dsn, application_name, "", Some(UNHEARD)).await
}

/// The same for who gives up after `limit`: the server would go on with what it was asked, since it does not see that nobody waits.
pub async fn connect_for(
    dsn: &Dsn,
    application_name: &str,
    limit: Duration,
) -> Result<(Client, Driver), Error> {
    let own = format!("-c statement_timeout={}", limit.as_millis().max(1));
    apart(dsn, application_name, &own, Some(UNHEARD)).await
}

async fn apart(
    dsn: &Dsn,
    application_name: &str,
    own: &str,
    unheard: Option<Duration>,
) -> Result<(Client, Driver), Error> {
    let time_outs = TIME_OUTS.map(|name| format!("-c {name}=0")).join(" ");
    let own = format!("{COMMITS} {time_outs} {OPTIONS} {own}");
    let (client, driver, recent) = open(dsn, application_name, &own, unheard).await?;
    if recent {
        // It goes out before whatever the caller asks, and nobody waits for the answer.
        let _ = client.batch_execute(TIME_OUT_SINCE_17).now_or_never();
    }
    Ok((client, driver))
}

/// What a session is opened with. `unheard`: how long what was sent may stay unacknowledged, where `dsn` does not say; none: as the kernel has it.
fn parameters(
    dsn: &Dsn,
    application_name: &str,
    own: &str,
    unheard: Option<Duration>,
) -> tokio_postgres::Config {
    let mut parameters = dsn.negotiated();
    parameters.application_name(application_name);
    let options = format!("{KEEPALIVES} {} {own}", parameters.get_options().unwrap_or_default());
    parameters.options(options.trim_start());
    keep_alive(&mut parameters);
    if let Some(unheard) = unheard.filter(|_| parameters.get_tcp_user_timeout().is_none()) {
        parameters.tcp_user_timeout(unheard);
    }
    parameters
}

/// Where they do not say when to look whether the other side is there.
fn keep_alive(parameters: &mut tokio_postgres::Config) {
    if parameters.get_keepalives_idle() == USUAL_IDLE {
        parameters.keepalives_idle(Duration::from_secs(30));
        parameters.keepalives_interval(Duration::from_secs(10)).keepalives_retries(3);
    }
}

/// How many addresses there are behind the hosts; one, of a name that cannot be looked up.
async fn count_addresses(dsn: &Dsn) -> u32 {
    let mut count = 0;
    for address in connection::addresses(dsn) {
        count += match address {
            Address::Tcp(host, port) => {
                tokio::net::lookup_host((host, port)).await.map_or(1, |found| found.take(64).count())
            }
            Address::Unix(_) => 1,
        };
    }
    u32::try_from(count).unwrap_or(u32::MAX).max(1)
}

/// Also says whether the server is of version 17 or newer.
async fn open(
    dsn: &Dsn,
    application_name: &str,
    own: &str,
    unheard: Option<Duration>,
) -> Result<(Client, Driver, bool), Error> {
    let mut parameters = parameters(dsn, application_name, own, unheard);
    let patience = parameters.get_connect_timeout().copied().unwrap_or(CONNECT_TIMEOUT);
    let context = || format!("connect to {}", place(dsn));
    let connector = (dsn.tls.mode != TlsMode::Disable).then(|| tls::Connector::new(&dsn.tls)).transpose()?;
    let connecting: Pin<Box<dyn Future<Output = Result<_, tokio_postgres::Error>> + Send>> =
        Box::pin(async move {
            // An address that does not answer leaves time for the next.
            parameters.connect_timeout(patience / count_addresses(dsn).await);
            let Some(connector) = connector else {
                let (client, connection) = parameters.connect(NoTls).await?;
                let recent = is_recent(connection.parameter("server_version"));
                return Ok((client, Box::pin(connection) as Driver, recent));
            };
            let (client, connection) = parameters.connect(connector).await?;
            let recent = is_recent(connection.parameter("server_version"));
            Ok((client, Box::pin(connection) as Driver, recent))
        });
    tokio::time::timeout(patience, connecting)
        .await
        .map_err(|_| {
            Error::io(format!("{}: no answer within {patience:?}", context()))(
                std::io::ErrorKind::TimedOut.into(),
            )
        })?
        .map_err(Error::database(context()))
}

/// Whether this is version 17 or newer.
fn is_recent(version: Option<&str>) -> bool {
    let major = version.and_then(|version| version.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok());
    major.is_some_and(|major: u32| major >= 17)
}

/// `host:port/database`, for messages; never the password.
pub(crate) fn place(dsn: &Dsn) -> String {
    let hosts: Vec<String> = connection::addresses(dsn).iter().map(ToString::to_string).collect();
    let hosts = if hosts.is_empty() { "nowhere".to_owned() } else { hosts.join(",") };
    format!("{hosts}/{}", dsn.get_dbname().or(dsn.get_user()).unwrap_or_default())
}

/// `name` as an SQL identifier, always quoted.
pub fn quote_ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// `text` as an SQL string literal, whatever `standard_conforming_strings` says.
pub fn quote_literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if quoted.contains('\\') {
        // The space keeps E apart from a keyword before it, as PostgreSQL's quote_literal does.
        format!(" E'{}'", quoted.replace('\\', "\\\\"))
    } else {
        format!("'{quoted}'")
    }
}

/// A PL/pgSQL block as a statement. Quoted as text is: names in it may have whatever ends another quote.
pub(crate) fn block(body: &str) -> String {
    format!("DO {}", quote_literal(body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_holds_any_name() {
        assert_eq!(block("BEGIN LOCK \"it's $godwit$\"; END"), "DO 'BEGIN LOCK \"it''s $godwit$\"; END'");
    }

    #[test]
    fn a_server_says_what_it_knows_by_its_version() {
        assert!(["17.2 (Debian 17.2-1.pgdg12+1)", "18beta1", "19devel"].map(Some).into_iter().all(is_recent));
        assert!(![Some("16.9"), Some("9.6.24"), Some(""), None].into_iter().any(is_recent));
    }

    #[test]
    fn who_sends_much_waits_for_a_server_that_takes_nothing_more() {
        let dsn: Dsn = "postgres://u@h/d".parse().expect("a dsn");
        let of = |dsn: &Dsn, unheard| parameters(dsn, "a", "", unheard).get_tcp_user_timeout().copied();
        assert_eq!(of(&dsn, Some(UNHEARD)), Some(UNHEARD));
        assert_eq!(of(&dsn, None), None);
        let said: Dsn = "postgres://u@h/d?tcp_user_timeout=5".parse().expect("a dsn");
        for unheard in [Some(UNHEARD), None] {
            assert_eq!(of(&said, unheard), Some(Duration::from_secs(5)));
        }
    }

    #[test]
    fn quotes_as_postgres_does() {
        assert_eq!(quote_ident("plain"), "\"plain\"");
        assert_eq!(quote_ident("we\"ird Name"), "\"we\"\"ird Name\"");
        assert_eq!(quote_literal("it's"), "'it''s'");
        assert_eq!(quote_literal(r"back\slash's"), r" E'back\\slash''s'");
    }
}
