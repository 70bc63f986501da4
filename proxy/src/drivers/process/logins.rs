//! The roles that the configuration logs in as, and their passwords.

use std::collections::BTreeMap;

use replicator::postgres::{Dsn, quote_ident, quote_literal};
use sha2::{Digest, Sha256};
use tokio_postgres::{Client, Error};

use super::SUPERUSER;
use crate::config::model::{ProcessCluster, Trusted};
use crate::fronts::postgres::protocol::{base64, scram};
use crate::fronts::postgres::verifiers;

/// As PostgreSQL does by default.
const ITERATIONS: u32 = 4096;
/// Who may log in, and what the database keeps of a password that still counts.
const KEPT: &str = "SELECT rolname::text, \
    CASE WHEN rolvaliduntil <= now() THEN '' ELSE coalesce(rolpassword, '') END \
    FROM pg_catalog.pg_authid WHERE rolcanlogin";
const OTHER: &str = "that is not the one in the database (or that one is none of SCRAM, or too old): ALTER ROLE … PASSWORD gives it one";

/// Those of Godwit's logins that have a password.
pub(super) fn with_passwords(cluster: &ProcessCluster) -> impl Iterator<Item = &Dsn> {
    cluster.logins.iter().filter(|login| login.get_user().is_some() && login.get_password().is_some())
}

/// The role of this connection string and its database, where they are not there.
pub(super) async fn make_service(client: &Client, service: &Dsn) -> Result<(), Error> {
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
pub(super) async fn give_password(client: &Client, of: &Dsn) -> Result<bool, Error> {
    let Some(role) = of.get_user() else { return Ok(false) };
    let has_one = "SELECT rolpassword IS NOT NULL FROM pg_authid WHERE rolname = $1";
    let has_one = client.query_opt(has_one, &[&role]).await?.map(|row| row.get::<_, bool>(0));
    if let (Some(false), Some(password)) = (has_one, of.get_password()) {
        let kept = to_keep(role, password);
        let password = quote_literal(&kept.unwrap_or_else(|| String::from_utf8_lossy(password).into_owned()));
        client.batch_execute(&format!("ALTER ROLE {} PASSWORD {password}", quote_ident(role))).await?;
    }
    Ok(has_one.is_some())
}

/// What a database is to keep of this role's password: the same in both zones, so that a front lets its clients in at either with what it
/// asked the other for. The salt is no secret, and says nothing of the password. None: PostgreSQL may know that password in another form.
fn to_keep(role: &str, password: &[u8]) -> Option<String> {
    if password.is_empty() || !password.is_ascii() {
        return None;
    }
    let digest: scram::Key = Sha256::digest(format!("godwit {role}")).into();
    let made = scram::verifier(password, &digest[..16], ITERATIONS).ok()?;
    let salt = base64::encode(&made.salt);
    let (stored, server) = (base64::encode(&made.stored_key), base64::encode(&made.server_key));
    Some(format!("{}${ITERATIONS}:{salt}${stored}:{server}", scram::PLAIN))
}

/// Who gets in without a password so far, will be asked for one, and would not get in with what the configuration or a front's file has:
/// the first of them, and why.
pub(super) async fn shut_out(
    client: &Client,
    cluster: &ProcessCluster,
    service: Option<&Dsn>,
    before: &Trusted,
) -> Result<Option<(String, String)>, Error> {
    let mut kept = BTreeMap::new();
    for row in client.query(KEPT, &[]).await? {
        let (role, of): (String, String) = (row.try_get(0)?, row.try_get(1)?);
        // The superuser gets the password that he comes with.
        if role != SUPERUSER && before.has(&role) && !cluster.trusted.has(&role) {
            kept.insert(role, of);
        }
    }
    for login in cluster.logins.iter().chain(service) {
        if let (Some(role), Some(password)) = (login.get_user(), login.get_password())
            && kept.get(role).is_some_and(|kept| !is_of(kept, password))
        {
            return Ok(Some((role.to_owned(), format!("the configuration has a password {OTHER}"))));
        }
    }
    if kept.is_empty() {
        return Ok(None);
    }
    for path in &cluster.verifiers {
        let file = path.display();
        let text = match tokio::fs::read_to_string(path).await {
            Ok(text) => text,
            Err(error) => {
                return Ok(Some((format!("who is in {file}"), format!("it cannot be read ({error})"))));
            }
        };
        for (role, kept) in &kept {
            if let Ok(Some(verifier)) = verifiers::find(&text, role)
                && kept.parse::<scram::Verifier>() != Ok(verifier)
            {
                return Ok(Some((role.clone(), format!("{file} has a verifier {OTHER}"))));
            }
        }
    }
    Ok(None)
}

fn is_of(kept: &str, password: &[u8]) -> bool {
    kept.parse::<scram::Verifier>().is_ok_and(|known| {
        scram::verifier(password, &known.salt, known.iterations).is_ok_and(|made| made == known)
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_of_a_password_is_the_same_in_both_zones() {
        let kept = to_keep("app", b"it's").unwrap();
        assert_eq!(to_keep("app", b"it's").unwrap(), kept);
        assert!(is_of(&kept, b"it's") && !is_of(&kept, b"its"), "{kept}");
        assert_ne!(to_keep("other", b"it's").unwrap(), kept);
        let salt = |kept: &str| kept.parse::<scram::Verifier>().unwrap().salt;
        assert_eq!(
            salt(&to_keep("app", b"hunter2").unwrap()),
            salt(&kept),
            "it says nothing of the password"
        );
        assert_eq!(to_keep("app", "pässword".as_bytes()), None, "PostgreSQL may normalise it");
        assert_eq!(to_keep("app", b""), None);
        for other in ["", "md5d6a35858d61d85e4a82ab1fb044aba9d", "it's"] {
            assert!(!is_of(other, b"it's"), "{other}");
        }
    }
}
