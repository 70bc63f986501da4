//! Where the verifiers of roles come from: the database that is primary now, or a file.

use std::path::Path;
use std::sync::{Arc, Mutex};

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared};
use replicator::postgres::{Dsn, connect};
use tokio_postgres::Client;

use super::protocol::scram::Verifier;
use crate::config::model::PostgresAuth;
use crate::lock::lock;

/// What a role's verifier is asked for with; `$1` is its name. Needs a superuser: others give a function of their own.
pub(super) const QUERY: &str = "SELECT rolpassword FROM pg_catalog.pg_authid \
    WHERE rolname = $1 AND rolcanlogin AND (rolvaliduntil IS NULL OR rolvaliduntil > now())";

/// Why it is not known.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unknown {
    #[error("the verifiers cannot be asked for")]
    Database(#[from] Arc<replicator::Error>),
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
    kept: Mutex<Option<(Arc<str>, Connecting)>>,
}

/// A connection that is there, or yet to come, for all who wait for it.
type Connecting = Shared<BoxFuture<'static, Result<Arc<Client>, Arc<replicator::Error>>>>;

impl Asked {
    /// None: there is no such role, or it has no password. Who waits for it may give up: it is asked to the end, so that a connection that comes late
    /// is there for the next one, and one that is dead is not.
    pub(super) async fn get(
        self: &Arc<Self>,
        zone: &Arc<str>,
        dsn: &Dsn,
        query: &str,
        user: &str,
    ) -> Result<Option<Verifier>, Unknown> {
        let (this, zone, dsn) = (Arc::clone(self), Arc::clone(zone), dsn.clone());
        let (query, user) = (query.to_owned(), user.to_owned());
        let asking = tokio::spawn(async move { this.ask(&zone, &dsn, &query, &user).await });
        asking.await.unwrap_or(Err(Unknown::NoAnswer))
    }

    async fn ask(
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
                _ => self.forget(&client),
            }
            if !again {
                return Err(Unknown::NoAnswer);
            }
            again = false;
        }
    }

    /// Its connection.
    pub(super) async fn client(&self, zone: &Arc<str>, dsn: &Dsn) -> Result<Arc<Client>, Unknown> {
        let connecting = {
            let mut kept = lock(&self.kept);
            let usable = kept.as_ref().filter(|(of, connecting)| {
                let made = connecting.peek();
                of == zone && made.is_none_or(|made| made.as_ref().is_ok_and(|client| !client.is_closed()))
            });
            if let Some((_, connecting)) = usable {
                connecting.clone()
            } else {
                let dsn = dsn.clone();
                let connect =
                    async move { connect(&dsn, "godwit-front").await.map(Arc::new).map_err(Arc::new) };
                let connecting = connect.boxed().shared();
                tokio::spawn(connecting.clone());
                *kept = Some((Arc::clone(zone), connecting.clone()));
                connecting
            }
        };
        Ok(connecting.await?)
    }

    /// The next one is asked by another connection.
    fn forget(&self, dead: &Arc<Client>) {
        let made = |connecting: &Connecting| matches!(connecting.peek(), Some(Ok(client)) if Arc::ptr_eq(client, dead));
        lock(&self.kept).take_if(|(_, connecting)| made(connecting));
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

/// None: it is not in this text of such a file.
pub(crate) fn find(text: &str, user: &str) -> Result<Option<Verifier>, Unknown> {
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
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::fronts::postgres::protocol::{base64, message, scram};

    const KEPT: &str = "SCRAM-SHA-256$10:c2FsdA==$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";

    /// A database that nobody answers for, and who asks it.
    async fn silent() -> (TcpListener, Dsn, Arc<Asked>) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let dsn = format!("postgres://godwit@127.0.0.1:{port}/shop?sslmode=disable").parse().unwrap();
        (listener, dsn, Arc::default())
    }

    async fn get(asked: &Arc<Asked>, dsn: &Dsn) -> Option<Verifier> {
        asked.get(&"a".into(), dsn, QUERY, "ann").await.unwrap()
    }

    async fn greet(socket: &mut TcpStream) {
        let length = socket.read_u32().await.unwrap();
        socket.read_exact(&mut vec![0; length as usize - 4]).await.unwrap();
        let mut out = b"R\0\0\0\x08\0\0\0\0".to_vec();
        message::ready(&mut out);
        socket.write_all(&out).await.unwrap();
    }

    /// Answers each question with [`KEPT`], for ever.
    async fn answer(mut socket: TcpStream) -> Option<Verifier> {
        loop {
            let tag = socket.read_u8().await.unwrap();
            let length = socket.read_u32().await.unwrap();
            socket.read_exact(&mut vec![0; length as usize - 4]).await.unwrap();
            let mut out = Vec::new();
            let mut write = |tag, body: &[u8]| message::write(&mut out, tag, |out| out.extend(body));
            match tag {
                b'P' => write(b'1', b""),
                b'D' => {
                    write(b't', b"\0\x01\0\0\0\x19");
                    write(b'T', b"\0\x01v\0\0\0\0\0\0\0\0\0\0\x19\xff\xff\xff\xff\xff\xff\0\0");
                }
                b'B' => write(b'2', b""),
                b'E' => {
                    let length = u32::try_from(KEPT.len()).unwrap().to_be_bytes();
                    write(b'D', &[b"\0\x01", &length[..], KEPT.as_bytes()].concat());
                    write(b'C', b"SELECT 1\0");
                }
                b'C' => write(b'3', b""),
                b'S' => message::ready(&mut out),
                other => panic!("{other}"),
            }
            socket.write_all(&out).await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_connection_that_comes_late_is_there_for_the_next_one() {
        let (listener, dsn, asked) = silent().await;
        // The first one gives up as it is on its way.
        let mut socket = tokio::select! {
            accepted = listener.accept() => accepted.unwrap().0,
            _ = get(&asked, &dsn) => panic!("nobody has answered"),
        };
        let late = async {
            greet(&mut socket).await;
            answer(socket).await
        };
        let found = tokio::select! { found = get(&asked, &dsn) => found, never = late => never };
        assert_eq!(found, KEPT.parse().ok());
    }

    #[tokio::test]
    async fn a_connection_that_has_fallen_silent_is_not_kept() {
        let (listener, dsn, asked) = silent().await;
        let greeted = async {
            let (mut socket, _) = listener.accept().await.unwrap();
            greet(&mut socket).await;
            socket
        };
        // It is there, and who asks by it gives up before that is known to be in vain.
        let zone = "a".into();
        let (client, mut dead) = tokio::join!(asked.client(&zone, &dsn), greeted);
        client.unwrap();
        tokio::select! {
            question = dead.read_u8() => assert_eq!(question.unwrap(), b'P'),
            _ = get(&asked, &dsn) => panic!("nobody has answered"),
        }
        tokio::time::pause();
        tokio::time::advance(ANSWER).await;
        tokio::time::resume();
        let (mut socket, _) = listener.accept().await.unwrap();
        greet(&mut socket).await;
        let found = tokio::select! { found = get(&asked, &dsn) => found, never = answer(socket) => never };
        assert_eq!(found, KEPT.parse().ok());
    }

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
