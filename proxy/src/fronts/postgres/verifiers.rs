//! Where the verifiers of roles come from: the database that is primary now, or a file.

use std::path::Path;
use std::sync::Arc;

use replicator::postgres::{Dsn, connect};
use tokio::sync::Mutex;
use tokio_postgres::Client;

use super::protocol::scram::Verifier;
use crate::config::model::PostgresAuth;

/// What a role's verifier is asked for with; `$1` is its name. Needs a superuser: others give a function of their own.
pub(super) const QUERY: &str = "SELECT rolpassword FROM pg_catalog.pg_authid \
    WHERE rolname = $1 AND rolcanlogin AND (rolvaliduntil IS NULL OR rolvaliduntil > now())";

/// Why it is not known.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unknown {
    #[error("the verifiers cannot be asked for")]
    Database(#[from] replicator::Error),
    #[error("the verifiers cannot be asked for")]
    Query(#[from] tokio_postgres::Error),
    #[error("the verifiers cannot be asked for: no answer")]
    NoAnswer,
    #[error("the file of verifiers cannot be read")]
    File(#[from] std::io::Error),
    #[error("the role's password is kept as something else than a SCRAM-SHA-256 verifier")]
    OtherKind,
}

/// Asks one database; keeps its connection.
#[derive(Default)]
pub(super) struct Asked {
    client: Mutex<Option<(Arc<str>, Arc<Client>)>>,
}

impl Asked {
    /// None: there is no such role, or it has no password.
    pub(super) async fn get(
        &self,
        zone: &Arc<str>,
        dsn: &Dsn,
        query: &str,
        user: &str,
    ) -> Result<Option<Verifier>, Unknown> {
        let mut again = true;
        loop {
            let client = self.client(zone, dsn).await?;
            let found = tokio::time::timeout(ANSWER, client.query_opt(query, &[&user])).await;
            match found {
                Ok(Ok(row)) => {
                    let text = row.map(|row| row.try_get::<_, Option<String>>(0)).transpose()?.flatten();
                    return text.map(|text| text.parse().map_err(|_| Unknown::OtherKind)).transpose();
                }
                // It had died since it was used last.
                Ok(Err(error)) if !(again && error.is_closed()) => return Err(error.into()),
                _ if !again => return Err(Unknown::NoAnswer),
                _ => {}
            }
            again = false;
            *self.client.lock().await = None;
        }
    }

    /// Its connection.
    pub(super) async fn client(&self, zone: &Arc<str>, dsn: &Dsn) -> Result<Arc<Client>, replicator::Error> {
        let mut kept = self.client.lock().await;
        if let Some((of, client)) = &*kept
            && of == zone
            && !client.is_closed()
        {
            return Ok(Arc::clone(client));
        }
        let client = Arc::new(connect(dsn, "godwit-front").await?);
        *kept = Some((Arc::clone(zone), Arc::clone(&client)));
        Ok(client)
    }
}

/// Asks once, by a connection of somebody else's, and leaves what comes.
pub(crate) async fn try_out(auth: &PostgresAuth, client: &Client, user: &str) -> Result<(), Unknown> {
    let query = match auth {
        PostgresAuth::Trust => return Ok(()),
        PostgresAuth::File(path) => return Ok(tokio::fs::File::open(path).await.map(drop)?),
        PostgresAuth::Query(query) => query.as_deref().unwrap_or(QUERY),
    };
    let answer = tokio::time::timeout(ANSWER, client.query_opt(query, &[&user])).await;
    Ok(answer.map_err(|_| Unknown::NoAnswer)?.map(drop)?)
}

/// How long the answer may take.
const ANSWER: std::time::Duration = std::time::Duration::from_secs(5);

/// Looks for it in a file of lines `"role" "verifier"`, as PgBouncer has them; read each time, so that a change counts at once.
pub(super) async fn in_file(path: &Path, user: &str) -> Result<Option<Verifier>, Unknown> {
    let text = tokio::fs::read_to_string(path).await?;
    find(&text, user)
}

fn find(text: &str, user: &str) -> Result<Option<Verifier>, Unknown> {
    for line in text.lines() {
        let Some((name, rest)) = quoted(line.trim_start()) else { continue };
        if name != user {
            continue;
        }
        let verifier = quoted(rest.trim_start()).and_then(|(verifier, _)| verifier.parse().ok());
        return verifier.map(Some).ok_or(Unknown::OtherKind);
    }
    Ok(None)
}

/// Text in double quotes, where two of them are one; and what follows.
fn quoted(line: &str) -> Option<(String, &str)> {
    let mut rest = line.strip_prefix('"')?;
    let mut text = String::new();
    loop {
        let (part, after) = rest.split_once('"')?;
        text.push_str(part);
        match after.strip_prefix('"') {
            Some(more) => {
                text.push('"');
                rest = more;
            }
            None => return Some((text, after)),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::fronts::postgres::protocol::{base64, scram};

    #[test]
    fn a_file_is_looked_through() {
        let verifier = scram::verifier(b"secret", b"salt", 10).unwrap();
        let text = format!(
            "; a comment\n\"other\" \"md5abc\"\n \"odd \"\"one\"\"\"  \"SCRAM-SHA-256$10:{}${}:{}\"\n\"broken\n",
            base64::encode(b"salt"),
            base64::encode(&verifier.stored_key),
            base64::encode(&verifier.server_key)
        );
        assert_eq!(find(&text, "odd \"one\"").unwrap(), Some(verifier));
        assert_eq!(find(&text, "nobody").unwrap(), None);
        assert!(matches!(find(&text, "other"), Err(Unknown::OtherKind)));
    }
}
