//! TLS to a real server, on SQL and replication connections alike: who is let in, who is not, and why.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use godwit::drivers::process::cluster::DropTo;
use godwit_tests::postgres::{SUPERUSER, TestCluster, other_major, wal_position};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use replicator::copy::CopyOptions;
use replicator::error::Cause;
use replicator::link::memory::Options;
use replicator::postgres::slot::{create_slot, ensure_publication};
use replicator::postgres::stream::ReplicationStream;
use replicator::postgres::{Authority, ClientCertificate, Dsn, Tls, TlsMode, connect};
use replicator::pump::{LocalEnd, LocalPeer, StreamSpec, maintain};
use replicator::spill::Spill;
use replicator::status::StreamStatus;
use replicator::{Error, ErrorKind, Lsn, fence, schema};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// A new authority, and what it signs.
struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Ca {
    fn new(name: &str) -> Result<Self> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate()?;
        let pem = params.self_signed(&key)?.pem();
        Ok(Self { issuer: Issuer::new(params, key), pem })
    }

    /// Certificate and key in `directory`, for these names.
    fn sign(&self, directory: &Path, common: &str, names: &[&str]) -> Result<ClientCertificate> {
        let mut params =
            CertificateParams::new(names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>())?;
        params.distinguished_name.push(DnType::CommonName, common);
        let key = KeyPair::generate()?;
        let pem = params.signed_by(&key, &self.issuer)?.pem();
        write(directory, common, &pem, &key)
    }
}

fn write(directory: &Path, name: &str, pem: &str, key: &KeyPair) -> Result<ClientCertificate> {
    let (certificate, secret) =
        (directory.join(format!("{name}.crt")), directory.join(format!("{name}.key")));
    std::fs::write(&certificate, pem)?;
    std::fs::write(&secret, key.serialize_pem())?;
    // The server, and libpq, refuse a key that others may read.
    std::fs::set_permissions(&secret, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    Ok(ClientCertificate { certificate, key: secret })
}

/// A server that takes `roles` over TLS only.
struct Server {
    cluster: TestCluster,
    ca: Ca,
    ca_file: PathBuf,
}

const ROLES: &str =
    "SET password_encryption = 'scram-sha-256'; CREATE ROLE scram LOGIN SUPERUSER PASSWORD 's€cret';
    CREATE ROLE shown LOGIN SUPERUSER; SET password_encryption = 'md5';
    CREATE ROLE hashed LOGIN SUPERUSER PASSWORD 'secret'; CREATE TABLE t (id int PRIMARY KEY);";

const RULES: &str = "hostssl all scram 127.0.0.1/32 scram-sha-256\nhostssl all hashed 127.0.0.1/32 md5\n\
    hostssl all shown 127.0.0.1/32 cert\nhost all postgres 127.0.0.1/32 trust\n";

impl Server {
    async fn start(names: &[&str]) -> Result<Self> {
        let cluster = TestCluster::start(15)?;
        let (ca, directory) = (Ca::new("Godwit's test authority")?, cluster.directory().to_owned());
        let ca_file = directory.join("ca.pem");
        std::fs::write(&ca_file, &ca.pem)?;
        let own = ca.sign(&directory, "server", names)?;
        let this = Self { cluster, ca, ca_file };
        let client = this.cluster.create_database_of_superuser("app", ROLES).await?;
        ensure_publication(&client, "godwit_app").await?;
        create_slot(&client, "s").await?;
        std::fs::write(this.cluster.cluster.data.join("pg_hba.conf"), RULES)?;
        this.serve(&own).await?;
        Ok(this)
    }

    /// Shows this certificate from now on.
    async fn serve(&self, own: &ClientCertificate) -> Result<()> {
        if let Some(user) = DropTo::find()? {
            for path in [&own.certificate, &own.key, &self.ca_file] {
                user.own(path)?;
            }
        }
        let client = self.cluster.connect("app").await?;
        let files = [("cert", &own.certificate), ("key", &own.key), ("ca", &self.ca_file)];
        for (name, path) in files {
            client.batch_execute(&format!("ALTER SYSTEM SET ssl_{name}_file = '{}'", path.display())).await?;
        }
        client.batch_execute("ALTER SYSTEM SET ssl = on").await?;
        client.batch_execute("SELECT pg_reload_conf()").await?;
        // New sessions get what the postmaster has read.
        let deadline = Instant::now() + Duration::from_secs(20);
        let wanted = own.certificate.display().to_string();
        loop {
            let row = self.cluster.connect("app").await?;
            let row =
                row.query_one("SELECT current_setting('ssl_cert_file'), current_setting('ssl')", &[]).await?;
            if row.get::<_, String>(0) == wanted && row.get::<_, String>(1) == "on" {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "the server did not turn TLS on; see its log");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn dsn(&self, user: &str, mode: TlsMode, ca: Option<&Path>) -> Dsn {
        let mut dsn = self.cluster.config_as(user, "app");
        dsn.password("s€cret");
        dsn.with_tls(Tls { mode, ca: ca.map(|ca| Authority::File(ca.to_owned())), client: None })
    }
}

/// Both kinds of connection; they must agree.
async fn both(dsn: &Dsn) -> Result<(), Error> {
    let sql = connect(dsn, "godwit-test").await;
    let stream = ReplicationStream::start(dsn, "s", "godwit_app", Lsn::ZERO).await;
    match (sql, stream) {
        (Ok(client), Ok(_)) => {
            let row = client
                .query_one("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()", &[])
                .await
                .map_err(Error::database("ask"))?;
            let wanted = dsn.tls.mode != TlsMode::Disable;
            assert_eq!(row.get::<_, bool>(0), wanted, "TLS as {:?} says", dsn.tls.mode);
            Ok(())
        }
        (Err(sql), Err(stream)) => {
            assert_eq!(sql.cause().policy().kind, stream.cause().policy().kind, "{sql:?} and {stream:?}");
            println!("    {:?}: {}", sql.cause(), chain(&sql));
            println!("    {:?}: {}", stream.cause(), chain(&stream));
            Err(sql)
        }
        (sql, stream) => panic!("{dsn:?}: {:?} but {:?}", sql.map(drop), stream.map(drop)),
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let sources = std::iter::successors(Some(error), |error| error.source());
    sources.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

async fn refused(dsn: &Dsn, cause: Cause, word: &str) -> Result<()> {
    let Err(error) = both(dsn).await else { anyhow::bail!("{dsn:?} was let in") };
    let text = chain(&error);
    ensure!(error.cause() == cause && error.kind() == ErrorKind::Operator, "{:?}: {text}", error.cause());
    ensure!(text.contains(word) && !text.contains("s€cret"), "{text} lacks {word:?}");
    Ok(())
}

/// Waits until the slot is free again: a dropped stream's walsender ends a little later.
async fn let_in(dsn: &Dsn) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        match both(dsn).await {
            Err(error) if error.cause() == Cause::InUse && Instant::now() < deadline => {}
            result => return result.with_context(|| format!("{dsn:?}")),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_mode_lets_in_whom_it_should() -> Result<()> {
    use TlsMode::{Disable, Prefer, Require, VerifyCa, VerifyFull};
    let server = Server::start(&["127.0.0.1"]).await?;
    let directory = server.cluster.directory();
    let ca = server.ca_file.as_path();
    let stranger = directory.join("stranger.pem");
    std::fs::write(&stranger, Ca::new("somebody else")?.pem)?;
    let dsn = |mode, ca| server.dsn("scram", mode, ca);

    // The right name and authority.
    for (mode, ca) in
        [(Prefer, None), (Require, None), (Require, Some(ca)), (VerifyCa, Some(ca)), (VerifyFull, Some(ca))]
    {
        let_in(&dsn(mode, ca)).await?;
    }
    // SCRAM bound to the TLS; a server that could not would be refused.
    let mut bound = dsn(VerifyFull, Some(ca));
    bound.channel_binding(tokio_postgres::config::ChannelBinding::Require);
    let_in(&bound).await?;
    // In the clear nothing binds, and this server does not take it at all.
    refused(&dsn(Disable, None), Cause::Credentials, "no encryption").await?;

    // Another authority.
    for mode in [Require, VerifyCa, VerifyFull] {
        refused(&dsn(mode, Some(&stranger)), Cause::Tls, "UnknownIssuer").await?;
    }
    // Another name: only verify-full looks at it.
    let mut other = Dsn::default().with_tls(dsn(VerifyFull, Some(ca)).tls);
    other.host("db.example").hostaddr("127.0.0.1".parse()?).port(server.cluster.cluster.port);
    other.user("scram").dbname("app").password("s€cret");
    refused(&other, Cause::Tls, "db.example").await?;
    other.tls.mode = VerifyCa;
    let_in(&other).await?;

    // A wrong password, and none.
    let mut wrong = dsn(VerifyFull, Some(ca));
    wrong.password("hunter2");
    refused(&wrong, Cause::Credentials, "password authentication failed").await?;
    // MD5 is spoken as libpq does, unless binding is demanded.
    let mut hashed = server.dsn("hashed", VerifyFull, Some(ca));
    hashed.password("secret");
    let_in(&hashed).await?;
    hashed.channel_binding(tokio_postgres::config::ChannelBinding::Require);
    let Err(error) = both(&hashed).await else { anyhow::bail!("MD5 passed for channel binding") };
    ensure!(error.kind() == ErrorKind::Operator, "{error:?}");

    // Client certificates.
    let mut shown = server.dsn("shown", VerifyFull, Some(ca));
    refused(&shown, Cause::Credentials, "client certificate").await?;
    shown.tls.client = Some(server.ca.sign(directory, "shown", &[])?);
    let_in(&shown).await?;
    shown.tls.client = Some(server.ca.sign(directory, "someone", &[])?);
    refused(&shown, Cause::Credentials, "authentication failed").await?;
    shown.tls.client = Some(Ca::new("forger")?.sign(directory, "forged", &[])?);
    refused(&shown, Cause::Tls, "UnknownCA").await?;

    // Files that are not there, or are something else.
    let (nowhere, key) = (directory.join("nowhere.pem"), directory.join("server.key"));
    refused(&dsn(VerifyFull, Some(&nowhere)), Cause::Unready, "nowhere.pem").await?;
    refused(&dsn(VerifyFull, Some(&key)), Cause::Unready, "no certificate").await?;

    // pg_dump goes the same way.
    let bin = godwit_tests::postgres::bin_directory(15).context("PostgreSQL 15")?;
    let dump = schema::dump(&dsn(VerifyFull, Some(ca)), Some(&bin)).await?;
    ensure!(dump.pre_data.contains("CREATE TABLE"), "{}", dump.pre_data);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_that_is_its_own_authority() -> Result<()> {
    let server = Server::start(&["127.0.0.1"]).await?;
    let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()])?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "alone");
    let key = KeyPair::generate()?;
    let own = write(server.cluster.directory(), "alone", &params.self_signed(&key)?.pem(), &key)?;
    server.serve(&own).await?;
    let_in(&server.dsn("scram", TlsMode::VerifyFull, Some(&own.certificate))).await?;
    // The same names in another certificate are not the same certificate.
    let other = KeyPair::generate()?;
    let twin = write(server.cluster.directory(), "twin", &params.self_signed(&other)?.pem(), &other)?;
    let Err(error) = both(&server.dsn("scram", TlsMode::VerifyFull, Some(&twin.certificate))).await else {
        anyhow::bail!("a twin was taken")
    };
    ensure!(error.cause() == Cause::Tls, "{}", chain(&error));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_without_tls_is_refused_where_tls_is_demanded() -> Result<()> {
    let cluster = TestCluster::start(other_major())?;
    let client = cluster.create_database_of_superuser("app", "CREATE TABLE t (id int PRIMARY KEY)").await?;
    ensure_publication(&client, "godwit_app").await?;
    create_slot(&client, "s").await?;
    let plain = cluster.config_as(SUPERUSER, "app");
    let ca = cluster.directory().join("ca.pem");
    std::fs::write(&ca, Ca::new("unused")?.pem)?;
    for (mode, ca) in [(TlsMode::Require, None), (TlsMode::VerifyFull, Some(Authority::File(ca)))] {
        let dsn = plain.clone().with_tls(Tls { mode, ca, client: None });
        let error = connect(&dsn, "test").await.expect_err("in the clear");
        ensure!(error.cause() == Cause::Tls && error.kind() == ErrorKind::Operator, "{}", chain(&error));
        let Err(error) = ReplicationStream::start(&dsn, "s", "godwit_app", Lsn::ZERO).await else {
            anyhow::bail!("in the clear")
        };
        ensure!(
            error.kind() == ErrorKind::Operator && chain(&error).contains("has no TLS"),
            "{}",
            chain(&error)
        );
    }
    // Preferred is not demanded.
    connect(&plain.clone().with_tls(Tls::default()), "test").await?;
    ReplicationStream::start(&plain, "s", "godwit_app", Lsn::ZERO).await?;
    Ok(())
}

/// Megabytes both ways over TLS, changes and reports at the same time, with a transaction in pieces among them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_flows_over_tls_at_both_ends() -> Result<()> {
    let server = Server::start(&["127.0.0.1"]).await?;
    let tables = "CREATE TABLE bulk (id int PRIMARY KEY, body text)";
    let from = server.cluster.connect("app").await?;
    from.batch_execute(tables).await?;
    let to = server.cluster.create_database_of_superuser("copy", tables).await?;
    let spec = StreamSpec {
        resource: "app".into(),
        generation: 1,
        slot: "godwit_app_g1".into(),
        publication: "godwit_app".into(),
        origin: "godwit_app".into(),
        source_zone: "a".into(),
        target_zone: "b".into(),
        synchronous: false,
    };
    for client in [&from, &to] {
        fence::install(client, "app", 1).await?;
    }
    ensure_publication(&from, &spec.publication).await?;
    let start = create_slot(&from, &spec.slot).await?;
    replicator::apply::seed_progress(&to, &spec.slot, start, 1, None).await?;

    let source = server.dsn("scram", TlsMode::VerifyFull, Some(&server.ca_file));
    let mut target = source.clone();
    target.dbname("copy");
    let spill = Spill { directory: server.cluster.directory().join("spill"), memory: 1 << 20 };
    let peer = LocalPeer::new(LocalEnd::Target { dsn: target }, Options::default());
    let (sender, mut status) = watch::channel(StreamStatus::default());
    let stop = CancellationToken::new();
    let running = {
        let (spec, stop) = (spec.clone(), stop.clone());
        let end = LocalEnd::Source { dsn: source, bin: None, spill, copy: CopyOptions::default() };
        tokio::spawn(async move { maintain(&*peer, &spec, &end, &sender, &stop).await })
    };
    for (first, last) in [(1, 12_000), (12_001, 12_010)] {
        from.execute(
            "INSERT INTO bulk SELECT g, repeat(md5(g::text), 30) FROM generate_series($1::int, $2) g",
            &[&first, &last],
        )
        .await?;
    }
    let position = wal_position(&from).await?;
    tokio::time::timeout(Duration::from_secs(60), status.wait_for(|status| status.applied_lsn >= position))
        .await
        .context("the stream did not catch up")??;
    ensure!(status.borrow().failures.is_empty(), "{:?}", status.borrow().failures);
    let secure: i64 = from
        .query_one(
            "SELECT count(*) FROM pg_stat_ssl s JOIN pg_stat_activity a USING (pid) WHERE a.usename = 'scram' AND s.ssl",
            &[],
        )
        .await?
        .get(0);
    ensure!(secure == 2, "{secure} secure sessions: one streams, one applies");
    let sum = "SELECT count(*), sum(hashtext(t::text)) FROM bulk t";
    let (left, right) = (from.query_one(sum, &[]).await?, to.query_one(sum, &[]).await?);
    ensure!(
        left.get::<_, i64>(0) == 12_010 && left.get::<_, i64>(1) == right.get::<_, i64>(1),
        "{left:?} {right:?}"
    );
    stop.cancel();
    Ok(running.await??)
}
