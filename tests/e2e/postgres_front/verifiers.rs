//! Roles' verifiers, for which the primary is asked.

use anyhow::{Context, Result, ensure};
use godwit::controller::view::ResourceView;
use godwit::demo::zone::{DATABASE, RESOURCE, SERVICE_ROLE, SUPERUSER};
use tokio_postgres::NoTls;

use super::{PASSWORD, cutover, drivers};
use crate::history::godwit;
use crate::leader::Leader;

/// Nobody could log in after a move to a database that is not asked, or is not asked already: that is told, with what mends it.
#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_be_asked_for_them_is_told() -> Result<()> {
    let (playground, front) = cutover::playground(std::time::Duration::ZERO, "").await?;
    let config = std::fs::read_to_string(&playground.config)?;
    let asks = config.replace("\", auth: trust", "\", auth: query");
    ensure!(asks != config, "{config}");
    std::fs::write(&playground.config, asks)?;
    drivers::same_verifier(&playground).await?;
    let mut leader = Leader::start(&playground, &[])?;
    let told = |view: &ResourceView, zone: &str| {
        let line = format!(
            "not migratable: {zone}: PostgreSQL front: nobody can log in while this database is primary"
        );
        view.problems.iter().any(|problem| problem.starts_with(&line))
    };
    let [near, far] = &playground.zones;
    leader.until("both are told", |view| told(view, &near.name) && told(view, &far.name)).await?;
    ensure!(leader.ask_to_migrate(&far.name).await.is_err(), "nobody could log in there");
    let grant = "GRANT SELECT ON pg_catalog.pg_authid TO \"godwit\"";
    let (code, said, _) = godwit(&leader, &["doctor", RESOURCE]).await?;
    ensure!(code != Some(0) && said.contains(grant), "{said}");
    let written =
        ["grants", RESOURCE, "--owner", "keeper", "--config", playground.config.to_str().context("a path")?];
    let (_, script, _) = godwit(&leader, &written).await?;
    ensure!(script.contains(grant), "{script}");

    for zone in [near, far] {
        let administrator = replicator::postgres::connect(&zone.dsn(SUPERUSER), "godwit-test").await?;
        administrator.batch_execute(grant).await?;
    }
    leader.ready().await?;
    for zone in [far, near] {
        leader.migrate(&zone.name).await?;
        leader.until("it moved", |view| view.primary == zone.name && view.phase == "shadowing").await?;
        let mut client = tokio_postgres::Config::new();
        client.host(front.ip().to_string()).port(front.port()).user(SERVICE_ROLE).password(PASSWORD);
        let (client, connection) = client.dbname(DATABASE).connect(NoTls).await?;
        let connection = tokio::spawn(connection);
        client.batch_execute("SELECT 1").await?;
        drop(client);
        connection.await??;
        leader.ready().await?;
    }

    // The same password with a salt of its own: no client comes through the front with it.
    let (code, said, _) = godwit(&leader, &["doctor", RESOURCE]).await?;
    ensure!(code == Some(0), "{said}");
    let administrator = replicator::postgres::connect(&far.dsn(SUPERUSER), "godwit-test").await?;
    administrator.batch_execute(&format!("ALTER ROLE {SERVICE_ROLE} PASSWORD '{PASSWORD}'")).await?;
    let (code, said, _) = godwit(&leader, &["doctor", RESOURCE]).await?;
    let blocker =
        said.lines().any(|line| line.contains("blocker") && line.contains("the same with another salt"));
    ensure!(code == Some(4) && blocker && said.contains("pg_dumpall --roles-only"), "{said}");
    Ok(())
}
