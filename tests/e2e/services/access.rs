//! Who gets into the PostgreSQL of a process driver.

use anyhow::{Context, Result};
use godwit::config::model::{ProcessDriver, Trusted};
use godwit::demo::zone::{self, SUPERUSER};
use godwit::drivers::Provisioning;
use godwit::drivers::process::ProcessProvisioning;
use godwit::drivers::process::cluster::Cluster;
use godwit_tests::waiting::until;

use super::{Cleanup, directory, settings};

/// Whether this role gets into the cluster of this driver by TCP.
pub(super) async fn gets_in(settings: &ProcessDriver, role: &str, password: Option<&str>) -> Result<bool> {
    let listen = settings.cluster.as_ref().context("a cluster")?.listen;
    let mut config = tokio_postgres::Config::new();
    config.host(listen.ip().to_string()).port(listen.port()).user(role).dbname("postgres");
    if let Some(password) = password {
        config.password(password);
    }
    Ok(config.connect(tokio_postgres::NoTls).await.is_ok())
}

pub(super) fn cluster_of(settings: &ProcessDriver) -> Result<Cluster> {
    let made = settings.cluster.clone().context("a cluster")?;
    Ok(Cluster { bin: made.bin, data: made.data, host: "127.0.0.1".into(), port: made.listen.port() })
}

async fn as_superuser(cluster: &Cluster, statement: &str) -> Result<()> {
    let mut config = tokio_postgres::Config::new();
    config.host("127.0.0.1").port(cluster.port).user(SUPERUSER).dbname("postgres");
    if let Some(password) = cluster.superuser_password() {
        config.password(password);
    }
    let (client, connection) = config.connect(tokio_postgres::NoTls).await?;
    let connection = tokio::spawn(connection);
    client.batch_execute(statement).await?;
    drop(client);
    Ok(connection.await??)
}

/// Makes it as an earlier version did.
fn leave_open(cluster: &Cluster) -> Result<()> {
    cluster.init("fsync = off\n")?;
    Ok(std::fs::remove_file(cluster.data.join("godwit.superuser"))?)
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_the_superuser_of_a_driver_s_cluster_because_he_says_so() -> Result<()> {
    let home = directory()?;
    let mut settings = settings(home.path(), 1, &zone::free_ports(2)?)?;
    let cluster = cluster_of(&settings)?;
    // As an earlier version left one: open, and running.
    leave_open(&cluster)?;
    let driver = ProcessProvisioning::new(settings.clone());
    let _cleanup = Cleanup(driver.clone());
    cluster.start()?;
    let mut careless = settings.clone();
    let made = careless.cluster.as_mut().context("a cluster")?;
    made.logins = vec![format!("postgres://{SUPERUSER}@{}/orders", made.listen).parse()?];
    ProcessProvisioning::new(careless).provision(&"op-0".into(), &0.into()).await?;
    assert!(
        gets_in(&settings, SUPERUSER, None).await?,
        "nobody is shut out whom the configuration lets come"
    );

    driver.provision(&"op-1".into(), &0.into()).await?;
    let password = cluster.superuser_password().context("a password")?;
    until("it is closed", async || Ok(!gets_in(&settings, SUPERUSER, None).await?)).await?;
    assert!(!gets_in(&settings, SUPERUSER, Some("postgres")).await?);
    assert!(gets_in(&settings, SUPERUSER, Some(&password)).await?);
    assert!(gets_in(&settings, "orders_app", None).await?, "the configuration has no password for it");
    driver.provision(&"op-2".into(), &0.into()).await?;
    assert_eq!(cluster.superuser_password(), Some(password));

    // Passwords are in the configuration from now on, its own and Godwit's, who was let in without one.
    as_superuser(&cluster, "CREATE ROLE godwit LOGIN").await?;
    let made = settings.cluster.as_mut().context("a cluster")?;
    made.trusted = Trusted::Roles([].into());
    for login in ["godwit:hunter2", "late:riser"] {
        made.logins.push(format!("postgres://{login}@{}/orders", made.listen).parse()?);
    }
    settings.service_dsn = settings.service_dsn.replace("orders_app@", "orders_app:it's@");
    // As the next look at it finds them, without an operation.
    let driver = ProcessProvisioning::new(settings.clone());
    driver.status().await?;
    until("it is asked for it", async || Ok(!gets_in(&settings, "orders_app", None).await?)).await?;
    assert!(gets_in(&settings, "orders_app", Some("it's")).await?);
    assert!(gets_in(&settings, "godwit", Some("hunter2")).await?);
    as_superuser(&cluster, "CREATE ROLE late LOGIN").await?;
    driver.status().await?;
    assert!(gets_in(&settings, "late", Some("riser")).await?, "a role that came later");

    // What a person gives the superuser is his, where the configuration says it, too.
    as_superuser(&cluster, "ALTER ROLE postgres PASSWORD 'byhand'").await?;
    let refused = driver.provision(&"op-3".into(), &0.into()).await.unwrap_err();
    assert!(refused.to_string().contains("cannot prepare"), "{refused}");
    let made = settings.cluster.as_mut().context("a cluster")?;
    made.logins.push(format!("postgres://{SUPERUSER}:byhand@{}/orders", made.listen).parse()?);
    let driver = ProcessProvisioning::new(settings.clone());
    driver.provision(&"op-3".into(), &0.into()).await?;
    assert_eq!(cluster.superuser_password().as_deref(), Some("byhand"));
    driver.deprovision(&"op-4".into()).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_stays_open_where_a_password_would_shut_somebody_out() -> Result<()> {
    let home = directory()?;
    let mut settings = settings(home.path(), 1, &zone::free_ports(2)?)?;
    let cluster = cluster_of(&settings)?;
    // As an earlier version left one, where nobody was ever asked for a password.
    leave_open(&cluster)?;
    cluster.start()?;
    as_superuser(&cluster, "CREATE ROLE orders_app LOGIN PASSWORD 'another'; CREATE ROLE ann LOGIN").await?;
    let key = "A".repeat(43);
    let verifier = format!("SCRAM-SHA-256$10:c2FsdA==${key}=:{key}=");
    let file = home.path().join("users");
    std::fs::write(&file, format!("\"ann\" \"{verifier}\"\n\"nobody\" \"{verifier}\"\n"))?;
    settings.service_dsn = settings.service_dsn.replace("orders_app@", "orders_app:it's@");
    let made = settings.cluster.as_mut().context("a cluster")?;
    (made.trusted, made.verifiers) = (Trusted::Roles([].into()), vec![file]);
    let driver = ProcessProvisioning::new(settings.clone());
    let _cleanup = Cleanup(driver.clone());
    driver.provision(&"op-1".into(), &0.into()).await?;
    for mended in ["ALTER ROLE orders_app PASSWORD 'it''s'", &format!("ALTER ROLE ann PASSWORD '{verifier}'")]
    {
        driver.status().await?;
        assert!(gets_in(&settings, SUPERUSER, None).await?, "before {mended}");
        assert_eq!(cluster.superuser_password(), None);
        as_superuser(&cluster, mended).await?;
    }
    driver.status().await?;
    until("it is closed", async || Ok(!gets_in(&settings, "ann", None).await?)).await?;
    assert!(gets_in(&settings, "orders_app", Some("it's")).await?);
    driver.deprovision(&"op-2".into()).await?;
    Ok(())
}
