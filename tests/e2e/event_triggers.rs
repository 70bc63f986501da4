//! Event triggers: what the application has its DDL watched by. Only a superuser makes them, and nothing that Godwit does sets them off.

use anyhow::{Context, Result, ensure};
use godwit::controller::view::ResourceView;
use godwit::demo::zone::{GODWIT_ROLE, OWNER_ROLE, Zone};

use crate::leader::{Leader, connect, superuser};
use crate::schema::{followed, owner, replicated};

async fn logged(zone: &Zone) -> Result<Vec<String>> {
    let sql = "SELECT tag || ' by ' || who FROM ddl_log ORDER BY id";
    Ok(connect(zone).await?.query(sql, &[]).await?.iter().map(|row| row.get(0)).collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn they_are_made_by_a_superuser_and_see_the_applications_ddl_only() -> Result<()> {
    let playground = replicated("mode: async, schema: all").await?;
    let [near, far] = &playground.zones;
    superuser(near)
        .await?
        .batch_execute(&format!(
            "SET ROLE {OWNER_ROLE};
             CREATE TABLE ddl_log (id bigserial PRIMARY KEY, tag text, who text);
             CREATE FUNCTION log_ddl() RETURNS event_trigger LANGUAGE plpgsql AS
               'BEGIN INSERT INTO public.ddl_log (tag, who) VALUES (tg_tag, current_user); END';
             CREATE FUNCTION forbid_ddl() RETURNS event_trigger LANGUAGE plpgsql AS
               'BEGIN IF current_user = ''{GODWIT_ROLE}'' THEN RAISE ''no DDL here''; END IF; END';
             RESET ROLE;
             CREATE EVENT TRIGGER logs ON ddl_command_end EXECUTE FUNCTION log_ddl();
             CREATE EVENT TRIGGER \"For bids\" ON ddl_command_start
               WHEN TAG IN ('CREATE FUNCTION', 'CREATE TRIGGER', 'DROP TRIGGER', 'CREATE TABLE', 'ALTER TABLE') EXECUTE FUNCTION forbid_ddl()"
        ))
        .await?;
    let mut leader = Leader::start(&playground, &[])?;
    let is_of =
        |problem: &&String| problem.contains("event trigger ") && problem.contains("a superuser may make");
    let view: ResourceView = leader
        .until("both are missed", |view| {
            view.phase == "shadowing" && view.problems.iter().filter(is_of).count() == 2
        })
        .await?;
    ensure!(leader.ask_to_migrate(&far.name).await.is_err(), "they would be lost");
    for problem in view.problems.iter().filter(is_of) {
        let (_, remedy) = problem.split_once("(mend: ").context("a remedy")?;
        let (sql, _) = remedy.split_once(" on the target").context("where")?;
        superuser(far).await?.batch_execute(sql).await?;
    }
    // It looks again when it begins, or within a minute.
    drop(leader);
    let mut leader = Leader::start(&playground, &[])?;
    leader.ready().await?;

    owner(near).await?.batch_execute("ALTER TABLE customers ADD COLUMN nick text").await?;
    followed(&mut leader).await?;
    for zone in [far, near, far] {
        leader.ready().await?;
        let id = leader.migrate(&zone.name).await?;
        leader.until("it moves", |view| view.primary == zone.name && view.phase == "shadowing").await?;
        ensure!(leader.migration(&id).await?.verified == Some(true));
    }
    owner(far).await?.batch_execute("ALTER TABLE customers DROP COLUMN nick").await?;
    followed(&mut leader).await?;
    leader.ready().await?;
    let by = format!("ALTER TABLE by {OWNER_ROLE}");
    for zone in [near, far] {
        ensure!(logged(zone).await? == [by.clone(), by.clone()], "{}: {:?}", zone.name, logged(zone).await?);
    }
    Ok(())
}
