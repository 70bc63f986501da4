//! A shadow's zone that is given up: the resource is served as before, and its shadow begins anew where the files have it by then.

use anyhow::{Result, ensure};
use godwit::demo::zone::{DATABASE, OWNER_ROLE, Playground, SUPERUSER, needs};
use godwit_tests::waiting::until;
use replicator::grants::grants;
use replicator::postgres::connect as as_person;

use crate::leader::{Leader, connect, load, options};

#[tokio::test(flavor = "multi_thread")]
async fn a_shadow_in_another_zone_is_seeded_there() -> Result<()> {
    let playground = Playground::start(&options(false)?).await?;
    let [near, far] = &playground.zones;
    let mut leader = Leader::start(&playground, &[])?;
    leader.ready().await?;
    leader.migrate(&far.name).await?;
    leader.until("it moves", |view| view.primary == far.name && view.phase == "shadowing").await?;
    drop(leader);

    // An empty database, in a zone that the resource has never been in.
    let mut maintenance = near.dsn(SUPERUSER);
    maintenance.dbname("postgres");
    let server = as_person(&maintenance, "a person").await?;
    let slots = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE NOT active";
    as_person(&near.dsn(SUPERUSER), "a person").await?.batch_execute(slots).await?;
    server.batch_execute(&format!("DROP DATABASE {DATABASE} WITH (FORCE)")).await?;
    server.batch_execute(&format!("CREATE DATABASE {DATABASE} OWNER {OWNER_ROLE}")).await?;
    let administrator = as_person(&near.dsn(SUPERUSER), "a person").await?;
    for grant in grants(&needs()) {
        administrator.batch_execute(&grant.sql).await?;
    }
    let text = std::fs::read_to_string(&playground.config)?
        .replace("\ndrivers:\n", "\n  third: {country: FR}\ndrivers:\n")
        .replace(&format!("\n      {}:\n", near.name), "\n      third:\n")
        .replace(&format!("primary: {}", near.name), &format!("primary: {}", far.name));
    std::fs::write(&playground.config, text)?;

    let mut leader = Leader::start(&playground, &[])?;
    let follows =
        |view: &godwit::controller::view::ResourceView| view.shadow == "third" && view.phase == "shadowing";
    let view = leader.until("it is seeded there", follows).await?;
    ensure!(view.primary == far.name && view.generation == 2, "{view:#?}");
    let load = load(&playground, 60.0, "elsewhere");
    leader.until("it serves", |_| load.snapshot().acknowledged > 20).await?;
    let outcome = load.stop().await;
    ensure!(outcome.totals.failed == 0, "{:#?}", outcome.failures);
    let (primary, shadow) = (connect(far).await?, connect(near).await?);
    until("both have the same orders", async || {
        let sql = "SELECT count(*) FROM orders";
        let [one, other] = [primary.query_one(sql, &[]).await?, shadow.query_one(sql, &[]).await?];
        Ok(one.get::<_, i64>(0) > 0 && one.get::<_, i64>(0) == other.get::<_, i64>(0))
    })
    .await?;
    // It can be moved to.
    leader.ready().await?;
    leader.migrate("third").await?;
    leader.until("it moves there", |view| view.primary == "third" && view.phase == "shadowing").await?;
    Ok(())
}
