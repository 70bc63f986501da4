//! The only files that speak to the source database: SQL connections, slots, the replication stream.

pub(crate) mod connection;
mod paced;
pub mod slot;
pub mod stream;

use std::time::Duration;

use tokio_postgres::config::SslMode;
use tokio_postgres::{Client, NoTls};

use crate::error::Error;

/// How long a connection attempt may take when the connection parameters do not say.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Opens an SQL connection and drives it from a task of its own, which ends when the client is dropped.
///
/// `connect_timeout` of `dsn` counts, 10 s otherwise, and bounds the whole of it, the server's answers included: a path that
/// swallows everything must not hang the caller. Connection parameters that demand TLS are refused: this version
/// has none, and does not downgrade.
pub async fn connect(dsn: &tokio_postgres::Config, application_name: &str) -> Result<Client, Error> {
    refuse_tls(dsn)?;
    let mut dsn = dsn.clone();
    dsn.application_name(application_name);
    // Godwit's own commits never wait for the shadow that it is bringing up; the applier sets its own level.
    let options = format!("{} -c synchronous_commit=local", dsn.get_options().unwrap_or_default());
    dsn.options(options.trim_start());
    if dsn.get_connect_timeout().is_none() {
        dsn.connect_timeout(CONNECT_TIMEOUT);
    }
    let patience = dsn.get_connect_timeout().copied().unwrap_or(CONNECT_TIMEOUT);
    let context = || format!("connect to {}", place(&dsn));
    let (client, connection) = tokio::time::timeout(patience, dsn.connect(NoTls))
        .await
        .map_err(|_| {
            Error::io(format!("{}: no answer within {patience:?}", context()))(
                std::io::ErrorKind::TimedOut.into(),
            )
        })?
        .map_err(Error::database(context()))?;
    tokio::spawn(async move {
        // Every call on the client reports the failure too; this is for the log.
        if let Err(error) = connection.await {
            tracing::debug!(%error, "database connection ended");
        }
    });
    Ok(client)
}

/// Refuses connection parameters that demand TLS.
pub(crate) fn refuse_tls(dsn: &tokio_postgres::Config) -> Result<(), Error> {
    match dsn.get_ssl_mode() {
        SslMode::Disable | SslMode::Prefer => Ok(()),
        _ => Err(Error::Unready(format!(
            "the connection to {} demands TLS (sslmode=require), which is not supported yet and is not downgraded: \
             use sslmode=prefer or disable over a trusted network",
            place(dsn)
        ))),
    }
}

/// `host:port/database`, for messages; never the password.
pub(crate) fn place(dsn: &tokio_postgres::Config) -> String {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_as_postgres_does() {
        assert_eq!(quote_ident("plain"), "\"plain\"");
        assert_eq!(quote_ident("we\"ird Name"), "\"we\"\"ird Name\"");
        assert_eq!(quote_literal("it's"), "'it''s'");
        assert_eq!(quote_literal(r"back\slash's"), r" E'back\\slash''s'");
    }

    #[tokio::test]
    async fn a_demand_for_tls_is_refused_not_downgraded() {
        let dsn: tokio_postgres::Config =
            "postgres://app:secret@db.example/orders?sslmode=require".parse().expect("valid");
        let Err(error) = connect(&dsn, "test").await else { panic!("connected") };
        let text = error.to_string();
        assert!(text.contains("db.example:5432/orders") && text.contains("sslmode=require"), "{text}");
        assert!(!text.contains("secret"), "{text}");
        assert!(matches!(error, Error::Unready(_)));
    }
}
