//! The roles that the configuration logs in as, and their passwords.

use replicator::postgres::{Dsn, quote_ident, quote_literal};
use tokio_postgres::Client;

use super::SUPERUSER;
use crate::config::model::ProcessCluster;

/// Those of Godwit's logins that have a password.
pub(super) fn with_passwords(cluster: &ProcessCluster) -> impl Iterator<Item = &Dsn> {
    cluster.logins.iter().filter(|login| login.get_user().is_some() && login.get_password().is_some())
}

/// The role of this connection string and its database, where they are not there.
pub(super) async fn make_service(client: &Client, service: &Dsn) -> Result<(), tokio_postgres::Error> {
    if let Some(role) = service.get_user()
        && !give_password(client, service).await?
    {
        client.batch_execute(&format!("CREATE ROLE {} LOGIN", quote_ident(role))).await?;
        give_password(client, service).await?;
    }
    let database = service.get_dbname().unwrap_or(SUPERUSER);
    let there = "SELECT 1 FROM pg_database WHERE datname = $1";
    if client.query_opt(there, &[&database]).await?.is_none() {
        client.batch_execute(&format!("CREATE DATABASE {}", quote_ident(database))).await?;
    }
    Ok(())
}

/// Gives the role of this connection string the password in there, where it has none. False: there is no such role.
pub(super) async fn give_password(client: &Client, of: &Dsn) -> Result<bool, tokio_postgres::Error> {
    let Some(role) = of.get_user() else { return Ok(false) };
    let has_one = "SELECT rolpassword IS NOT NULL FROM pg_authid WHERE rolname = $1";
    let has_one = client.query_opt(has_one, &[&role]).await?.map(|row| row.get::<_, bool>(0));
    if let (Some(false), Some(password)) = (has_one, of.get_password()) {
        let password = quote_literal(&String::from_utf8_lossy(password));
        client.batch_execute(&format!("ALTER ROLE {} PASSWORD {password}", quote_ident(role))).await?;
    }
    Ok(has_one.is_some())
}
