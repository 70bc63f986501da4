//! TLS towards clients: asked for, direct, bound to.

use godwit::config::model::FrontTls;
use godwit_tests::postgres::bin_directory;

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_come_by_tls_and_bind_to_it() {
    let directory = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let (cert, key) = (directory.path().join("front.pem"), directory.path().join("front.key"));
    std::fs::write(&cert, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let tls = FrontTls { cert: cert.clone(), key, required: true };
    let setup = Setup::with(HOLD, |settings| settings.tls = Some(tls), "").await;
    let error = setup.config().ssl_mode(tokio_postgres::config::SslMode::Disable).connect(NoTls).await;
    assert_eq!(sqlstate(&error.err().expect("refused")), "28000");

    let port = setup.front.settings.listen.port();
    let psql = |major: u32, more: &str| {
        let target = format!(
            "host=localhost hostaddr=127.0.0.1 port={port} user=app dbname={DATABASE} sslmode=verify-full sslrootcert={} {more}",
            cert.display()
        );
        let output = Command::new(bin_directory(major).unwrap().join("psql"))
            .args(["-X", "-q", "-A", "-t", &target, "-c", "SELECT 'in as ' || current_user"])
            .env("PGPASSWORD", PASSWORD)
            .output()
            .unwrap();
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let inside = ("in as app\n".to_owned(), String::new());
    assert_eq!(psql(15, "channel_binding=require"), inside);
    assert_eq!(psql(15, "channel_binding=disable"), inside);
    // TLS first, as PostgreSQL 17 and later know it.
    let direct = format!(
        "host=localhost hostaddr=127.0.0.1 port={port} user=app password='{PASSWORD}' dbname={DATABASE} \
         sslmode=verify-full sslrootcert={} sslnegotiation=direct channel_binding=require",
        cert.display()
    );
    let client = replicator::postgres::connect(&direct.parse().unwrap(), "direct").await.unwrap();
    assert_eq!(client.query_one("SELECT current_user::text", &[]).await.unwrap().get::<_, String>(0), "app");
}
