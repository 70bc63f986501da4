use std::path::PathBuf;

use rustls::RootCertStore;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::TlsConnector;

use tokio::sync::oneshot::error::TryRecvError;

use super::super::serving::Seat;
use super::*;
use crate::admin::access::{Identities, Role, Scope};
use crate::admin::access_routes::WhoView;
use crate::admin::{AdminState, serve};
use crate::audit::{Audit, Settings};
use crate::cli::client::Client;
use crate::config::{self, model::ClientRule};
use crate::controller::events::Events;
use crate::feeds::external::board::FeedBoard;
use crate::history::{History, Retention};
use crate::leading::running::Running;
use crate::store::{Journal, NewToken, Tokens};
use crate::{clock, pki};

/// A node's admin listener over TLS.
struct Node {
    address: SocketAddr,
    tokens: Arc<Tokens>,
    directory: tempfile::TempDir,
    stop: CancellationToken,
}

impl Node {
    /// With the certificate of authority `a`; clients of that authority count.
    fn start() -> Result<Self> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let directory = tempfile::tempdir()?;
        let path = |name: &str| directory.path().join(name);
        for authority in ["a", "b"] {
            pki::make(&path(authority), &["localhost", "prometheus"])?;
        }
        std::fs::copy(path("a/localhost.pem"), path("cert.pem"))?;
        std::fs::copy(path("a/localhost.key"), path("key.pem"))?;
        let file = path("godwit.yaml");
        std::fs::write(
            &file,
            "node: { name: n, zone: z, state: state, admin: { listen: 127.0.0.1:0, \
             tls: { cert: cert.pem, key: key.pem, client_ca: a/ca.pem }, \
             clients: [{ name: prometheus, role: viewer }] } }\nzones: { z: {}, y: {} }\nresources: { r: { \
             fronts: { http: { listen: 127.0.0.1:1 } }, primary: z, policy: p, placements: { \
             z: { http: [\"127.0.0.1:2\"], postgres: { dsn: \"postgres://x@127.0.0.1/x\" } }, \
             y: { http: [\"127.0.0.1:3\"], postgres: { dsn: \"postgres://y@127.0.0.1:4/x\" } } } } }\n",
        )?;
        std::fs::create_dir(path("policies"))?;
        std::fs::write(path("policies/p.yaml"), "mode: observe\n")?;
        let config = Arc::new(config::load(&file).map_err(|errors| anyhow::anyhow!("{errors}"))?);
        let settings = config.node.admin.clone();
        let rule = ClientRule { name: "prometheus".into(), role: Role::Viewer, scope: Scope::All };
        assert_eq!((settings.required, settings.clients.as_slice()), (true, &[rule][..]));
        let stop = CancellationToken::new();
        let listener = Listener::bind(&settings, &stop)?;
        let address = axum::serve::Listener::local_addr(&listener)?.address;
        let tokens = Arc::new(Tokens::open(directory.path())?);
        let identities = Identities::new(tokens.clone(), settings.clients, settings.required, true);
        let audit = Audit::start(Settings {
            directory: directory.path().join("audit"),
            node: "n".into(),
            rotate: 1 << 20,
        })?;
        let journal = Arc::new(Journal::open(directory.path())?);
        let state = AdminState {
            running: Running::new(config),
            history: History::start(directory.path(), Retention::default())?,
            freezes: Arc::new(crate::controller::freezes::Freezes::open(journal.clone())?),
            journal,
            identities: Arc::new(identities),
            audit,
            events: Arc::new(Events::new(clock::now(), CancellationToken::new())),
            metrics: None,
            feeds: FeedBoard::default(),
            changes: None,
            standing: None,
            answers: Arc::default(),
            sent: Arc::default(),
        };
        tokio::spawn(serve(listener, state, stop.clone()));
        Ok(Self { address, tokens, directory, stop })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A client that trusts this authority.
    fn client(&self, authority: &str, token: Option<String>) -> Client {
        let ca = self.path(authority).join("ca.pem");
        Client::new(&format!("https://localhost:{}", self.address.port())).with_token(token).with_ca(Some(ca))
    }

    /// What it answers to a GET of a client with a certificate of this authority.
    async fn get(&self, authority: &str, path: &str) -> Result<String> {
        let mut roots = RootCertStore::empty();
        for certificate in tls::certificates(&self.path("a/ca.pem"), WHAT)? {
            roots.add(certificate)?;
        }
        let own = self.path(authority);
        let config = rustls::ClientConfig::builder().with_root_certificates(roots).with_client_auth_cert(
            tls::certificates(&own.join("prometheus.pem"), WHAT)?,
            tls::key(&own.join("prometheus.key"), WHAT)?,
        )?;
        let stream = TcpStream::connect(self.address).await?;
        let mut stream =
            TlsConnector::from(Arc::new(config)).connect(ServerName::try_from("localhost")?, stream).await?;
        stream
            .write_all(
                format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").as_bytes(),
            )
            .await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    }
}

#[tokio::test]
async fn a_token_over_tls_and_a_certificate_that_is_replaced() -> Result<()> {
    let node = Node::start()?;
    let new = NewToken { name: "ann".into(), role: Role::Operator, resources: None, expires_s: None };
    let token = node.tokens.create(new, "test", clock::now())?.token;
    let who: WhoView = node.client("a", Some(token.clone())).fetch("/api/v1/whoami").await?;
    assert_eq!((who.name.as_str(), who.role), ("ann", Role::Operator));
    assert!(node.client("a", None).fetch::<WhoView>("/api/v1/whoami").await.is_err(), "a token is needed");
    assert!(node.client("b", Some(token.clone())).fetch::<WhoView>("/api/v1/whoami").await.is_err());
    std::fs::copy(node.path("b/localhost.pem"), node.path("cert.pem"))?;
    std::fs::copy(node.path("b/localhost.key"), node.path("key.pem"))?;
    let replaced = async {
        while node.client("b", Some(token.clone())).fetch::<WhoView>("/api/v1/whoami").await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), replaced)
        .await
        .context("the new certificate was not taken")?;
    node.stop.cancel();
    Ok(())
}

#[tokio::test]
async fn a_clients_certificate_gives_the_role_it_is_configured_for() -> Result<()> {
    let node = Node::start()?;
    let answer = node.get("a", "/api/v1/whoami").await?;
    assert!(
        answer.contains(r#"{"name":"prometheus","role":"viewer","resources":null,"via":"certificate"}"#),
        "{answer}"
    );
    assert!(
        node.get("b", "/api/v1/whoami").await.is_err(),
        "a certificate of another authority ends the handshake"
    );
    node.stop.cancel();
    Ok(())
}

#[test]
fn one_handshake_too_many_ends_the_oldest() {
    let mut places = Seats::of(HANDSHAKES);
    let mut taken: Vec<_> = (0..HANDSHAKES).map(|_| places.take()).collect();
    let ended = |place: &mut Seat| place.wanted.try_recv() != Err(TryRecvError::Empty);
    assert!(!taken.iter_mut().any(ended));
    taken.push(places.take());
    assert_eq!(taken.iter_mut().map(ended).collect::<Vec<_>>().as_slice()[..3], [true, false, false]);
    // One that is done leaves its place.
    taken.pop();
    taken.push(places.take());
    assert_eq!(taken.iter_mut().map(ended).filter(|ended| *ended).count(), 1);
}

/// Connections that never say a word keep nobody from an answer, and only the oldest are ended for it.
#[tokio::test]
async fn who_says_nothing_keeps_nobody_out() -> Result<()> {
    let node = Node::start()?;
    let mut silent = Vec::new();
    for _ in 0..HANDSHAKES + 6 {
        silent.push(TcpStream::connect(node.address).await?);
    }
    let answer = node.get("a", "/livez").await?;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(silent[0].read(&mut [0]).await?, 0);
    let others = &silent[7..];
    assert!(others.iter().all(|open| open.try_read(&mut [0]).is_err()), "one that had a place was ended");
    node.stop.cancel();
    Ok(())
}
