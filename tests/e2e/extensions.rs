//! What extensions keep for their users, and what they do by themselves: it goes with the primary.

use anyhow::{Context, Result, ensure};
use godwit::demo::zone::{
    DATABASE, GODWIT_ROLE, OWNER_ROLE, Playground, RESOURCE, SERVICE_ROLE, SUPERUSER, Zone,
};
use godwit_tests::postgres::TestCluster;
use godwit_tests::waiting::until;
use replicator::grants::{Needs, grants};
use replicator::preflight::{Severity, compare, compare_for};
use rustix::process::Signal;
use serde_json::json;
use tempfile::TempDir;

use crate::cutover::died_or_finished;
use crate::faults::fault::{freeze, signal_all};
use crate::leader::{Leader, connect, options, superuser};
use crate::preflight::expect;
use crate::schema::followed;

/// Two servers of Debian's, with a job scheduler and a partition manager.
async fn scheduled() -> Result<Playground> {
    let mut options = options(false)?;
    options.bins = [options.bins[0].clone(), options.bins[0].clone()];
    options.policy = options
        .policy
        .replace("replication: {mode: async}", "replication: {mode: async, schema: all}")
        .replace("cooldown: 12s", "cooldown: 1s");
    let settings = format!(
        "shared_preload_libraries = 'pg_cron, pg_partman_bgw'\ncron.database_name = '{DATABASE}'\ncron.use_background_workers = on\n\
         pg_partman_bgw.interval = 1\npg_partman_bgw.dbname = '{DATABASE}'\npg_partman_bgw.role = '{SUPERUSER}'"
    );
    options.settings = [settings.clone(), settings];
    let playground = Playground::start(&options).await?;
    for zone in &playground.zones {
        let made = format!(
            "CREATE EXTENSION pg_cron; GRANT USAGE ON SCHEMA cron TO {OWNER_ROLE}, {SERVICE_ROLE}, {GODWIT_ROLE};
             CREATE SCHEMA partman; CREATE EXTENSION pg_partman SCHEMA partman; GRANT ALL ON SCHEMA partman TO {OWNER_ROLE};
             GRANT ALL ON ALL TABLES IN SCHEMA partman TO {OWNER_ROLE}"
        );
        superuser(zone).await?.batch_execute(&made).await?;
    }
    Ok(playground)
}

/// What `godwit grants --extensions --row-security` prints, in a database where the extensions are.
async fn grant(zone: &Zone) -> Result<()> {
    let needs = Needs {
        role: GODWIT_ROLE.into(),
        database: DATABASE.into(),
        owner: OWNER_ROLE.into(),
        app_roles: Vec::new(),
        synchronous: false,
        row_security: true,
        caches: false,
        verifiers: false,
        extensions: true,
    };
    let superuser = superuser(zone).await?;
    for grant in grants(&needs) {
        superuser.batch_execute(&grant.sql).await.with_context(|| grant.sql.clone())?;
    }
    Ok(())
}

async fn texts(zone: &Zone, sql: &str) -> Result<Vec<String>> {
    Ok(superuser(zone).await?.query(sql, &[]).await?.iter().map(|row| row.get(0)).collect())
}

/// Jobs and partition sets: what there is to act on.
async fn acted_on(zone: &Zone) -> Result<Vec<String>> {
    let sql =
        "SELECT jobname || ' ' || username || ' ' || (nodeport = current_setting('port')::int) FROM cron.job
        UNION ALL SELECT parent_table || ' ' || premake FROM partman.part_config ORDER BY 1";
    texts(zone, sql).await
}

async fn schedule(zone: &Zone, name: &str) -> Result<()> {
    let job = format!(
        "SET ROLE {SERVICE_ROLE}; SELECT cron.schedule('{name}', '* * * * *', 'INSERT INTO public.ticks (job) VALUES (''{name}'')')"
    );
    Ok(superuser(zone).await?.batch_execute(&job).await?)
}

/// Partition set `metrics`, and where jobs write.
async fn begin(zone: &Zone) -> Result<()> {
    connect(zone)
        .await?
        .batch_execute(&format!(
            "SET ROLE {OWNER_ROLE};
             CREATE TABLE metrics (at timestamptz NOT NULL, v int, PRIMARY KEY (at)) PARTITION BY RANGE (at);
             SELECT partman.create_parent('public.metrics', 'at', 'native', 'daily', p_premake := 2);
             ALTER TABLE partman.template_public_metrics REPLICA IDENTITY FULL;
             CREATE TABLE ticks (id bigserial PRIMARY KEY, job text); GRANT INSERT ON ticks TO {SERVICE_ROLE}; GRANT USAGE ON SEQUENCE ticks_id_seq TO {SERVICE_ROLE}"
        ))
        .await?;
    schedule(zone, "tick").await
}

async fn parked(leader: &mut Leader<'_>, job: &str) -> Result<()> {
    let sql = "SELECT statements FROM godwit.parked WHERE generation = $1 AND resource = $2";
    let generation = i64::try_from(leader.view().await?.generation)?;
    let shadow = leader.zone(&leader.view().await?.shadow);
    until("what is acted on is parked", async || {
        let row = connect(shadow).await?.query_opt(sql, &[&generation, &RESOURCE]).await?;
        Ok(row.is_some_and(|row| row.get::<_, String>(0).contains(job)))
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_they_act_on_is_where_the_primary_is() -> Result<()> {
    let playground = scheduled().await?;
    let [near, far] = &playground.zones;
    begin(near).await?;
    let mut leader = Leader::start(&playground, &[])?;
    let unread =
        "cron.job: extension pg_cron keeps something for its users here, and role godwit may not carry it";
    let why = "row security hides from role godwit what extension pg_cron keeps";
    leader
        .until("it is told", |view| {
            view.phase == "shadowing" && view.problems.iter().any(|problem| problem.contains(unread))
        })
        .await?;
    ensure!(leader.ask_to_migrate(&far.name).await.is_err(), "they would be lost");
    for zone in [near, far] {
        superuser(zone)
            .await?
            .batch_execute(&format!("GRANT INSERT, DELETE ON cron.job TO {GODWIT_ROLE}"))
            .await?;
    }
    leader.until("why", |view| view.problems.iter().any(|problem| problem.contains(why))).await?;
    for zone in [near, far] {
        grant(zone).await?;
    }
    leader.ready().await?;
    ensure!(acted_on(far).await?.is_empty(), "a shadow acts");

    let both = ["public.metrics 2", "tick orders_app true"];
    let id = leader.migrate(&far.name).await?;
    leader.until("it moves", |view| view.primary == far.name && view.phase == "shadowing").await?;
    ensure!(leader.migration(&id).await?.verified == Some(true));
    ensure!(acted_on(far).await? == both, "{:?}", acted_on(far).await?);
    until("the old primary acts no more", async || Ok(acted_on(near).await?.is_empty())).await?;
    // The scheduler heard of its job, and so did the manager of the partitions: it makes the day that is missing, and the shadow gets it.
    schedule(far, "tock").await?;
    superuser(far).await?.batch_execute("UPDATE partman.part_config SET premake = 3, infinite_time_partitions = true, inherit_privileges = true").await?;
    let partitions = "SELECT count(*)::text FROM pg_inherits WHERE inhparent = 'metrics'::regclass";
    let before = texts(near, partitions).await?;
    until("a partition is made", async || Ok(texts(far, partitions).await? > before)).await?;
    followed(&mut leader).await?;
    ensure!(texts(near, partitions).await? == texts(far, partitions).await?);
    let ran = async || Ok(texts(far, "SELECT DISTINCT job FROM ticks ORDER BY 1").await? == ["tick", "tock"]);
    until("both jobs ran", ran).await?;

    leader.ready().await?;
    leader.migrate(&near.name).await?;
    leader.until("it moves back", |view| view.primary == near.name && view.phase == "shadowing").await?;
    let all = ["public.metrics 3", "tick orders_app true", "tock orders_app true"];
    ensure!(acted_on(near).await? == all, "moved back: {:?}", acted_on(near).await?);
    until("what was the primary meanwhile acts no more", async || Ok(acted_on(far).await?.is_empty()))
        .await?;

    // The primary is lost; what it acted on is known beside the shadow.
    parked(&mut leader, "tock").await?;
    let frozen = freeze(near)?;
    let body = json!({"accept_loss": true});
    until("it may take over", async || {
        Ok(leader.client.send(&format!("/api/v1/resources/{RESOURCE}/takeover"), &body).await.is_ok())
    })
    .await?;
    leader.until("it takes over", |view| view.primary == far.name).await?;
    until("it acts on what was parked", async || Ok(acted_on(far).await? == all)).await?;
    signal_all(&frozen, Signal::CONT)?;
    // What comes back is seeded anew: extensions, their schemas and what a superuser made stay.
    superuser(near)
        .await?
        .batch_execute("CREATE FUNCTION public.by_superuser() RETURNS int LANGUAGE sql AS 'SELECT 1'")
        .await?;
    let path = format!("/api/v1/resources/{RESOURCE}/reseed");
    until("a new seed is taken up", async || Ok(leader.client.send(&path, &json!({})).await.is_ok())).await?;
    leader
        .until("it has a copy", |view| view.replication.state == "streaming" && view.phase == "shadowing")
        .await?;
    until("it acts no more", async || Ok(acted_on(near).await?.is_empty())).await?;
    ensure!(
        texts(near, "SELECT 'there' WHERE to_regproc('public.by_superuser') IS NOT NULL").await?.len() == 1
    );
    ensure!(texts(near, partitions).await? == texts(far, partitions).await?);
    Ok(())
}

/// Whatever happens to the node, jobs are on one side: the primary's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_after_any_journal_record_leaves_jobs_with_the_primary() -> Result<()> {
    let playground = scheduled().await?;
    for zone in &playground.zones {
        grant(zone).await?;
    }
    begin(&playground.zones[0]).await?;
    for record in (2_u32..).step_by(3) {
        let mut leader = Leader::start(&playground, &[("GODWIT_TEST_KILL_AFTER", &record.to_string())])?;
        let to = leader.ready().await?.shadow;
        leader.migrate_or_die(&to).await?;
        let died = died_or_finished(&mut leader, &to).await?;
        if died {
            drop(leader);
            leader = Leader::start(&playground, &[])?;
        }
        let view = leader.ready().await?;
        let [primary, shadow] = [&view.primary, &view.shadow].map(|name| leader.zone(name));
        let none = async || Ok(acted_on(shadow).await?.is_empty());
        until("the shadow has none", none).await.with_context(|| format!("killed after record {record}"))?;
        let jobs = acted_on(primary).await?;
        ensure!(jobs == ["public.metrics 2", "tick orders_app true"], "after record {record}: {jobs:?}");
        if !died {
            ensure!(record > 8, "it was killed {record} times only");
            break;
        }
    }
    Ok(())
}

/// An extension of one's own. From 18 on extensions may lie elsewhere than in the server's own folder.
fn extension(name: &str, control: &str, sql: &str) -> Result<TempDir> {
    let directory = tempfile::tempdir()?;
    let folder = directory.path().join("extension");
    std::fs::create_dir(&folder)?;
    for path in [directory.path(), &folder] {
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    }
    std::fs::write(folder.join(format!("{name}.control")), format!("default_version = '1.0'\n{control}"))?;
    std::fs::write(folder.join(format!("{name}--1.0.sql")), sql)?;
    Ok(directory)
}

/// What is only read is on both sides, and before the rows that need it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_read_of_them_follows() -> Result<()> {
    let made = "CREATE TABLE unit (name text PRIMARY KEY, factor int, own bool DEFAULT true);
        INSERT INTO unit VALUES ('gram', 1, false), ('kilogram', 1000, false);
        SELECT pg_extension_config_dump('unit', 'WHERE own');
        CREATE FUNCTION grams(n int, unit text) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$
          DECLARE f int := (SELECT u.factor FROM units.unit u WHERE u.name = unit);
          BEGIN IF f IS NULL THEN RAISE 'no unit %', unit; END IF; RETURN n * f; END $$;
        GRANT SELECT ON unit TO PUBLIC; GRANT INSERT, UPDATE, DELETE ON unit TO PUBLIC";
    let directory = extension("units", "schema = units\nsuperuser = true\n", made)?;
    let mut options = options(false)?;
    options.bins = [options.bins[1].clone(), options.bins[1].clone()];
    options.policy = options.policy.replace("cooldown: 12s", "cooldown: 1s");
    let settings = format!("extension_control_path = '{}:$system'", directory.path().display());
    options.settings = [settings.clone(), settings];
    let playground = Playground::start(&options).await?;
    let [near, far] = &playground.zones;
    for zone in &playground.zones {
        let made = format!(
            "CREATE SCHEMA units; CREATE EXTENSION units; GRANT USAGE ON SCHEMA units TO {OWNER_ROLE}, {GODWIT_ROLE}"
        );
        superuser(zone).await?.batch_execute(&made).await?;
    }
    let weighed = "SET ROLE orders_owner; INSERT INTO units.unit VALUES ('pound', 454), ('it''s', 2);
        CREATE TABLE weighed (id int PRIMARY KEY, n int, unit text, grams int GENERATED ALWAYS AS (units.grams(n, unit)) STORED);
        INSERT INTO weighed VALUES (1, 2, 'pound')";
    superuser(near).await?.batch_execute(weighed).await?;
    let mut leader = Leader::start(&playground, &[])?;
    leader.ready().await?;
    let units = "SELECT name || ' ' || factor FROM units.unit ORDER BY 1";
    let had = ["gram 1", "it's 2", "kilogram 1000", "pound 454"];
    ensure!(texts(far, units).await? == had, "{:?}", texts(far, units).await?);
    superuser(near).await?.batch_execute("UPDATE units.unit SET factor = 28 WHERE name = 'it''s'; INSERT INTO units.unit VALUES ('stone', 6350)").await?;
    for zone in [far, near] {
        leader.ready().await?;
        leader.migrate(&zone.name).await?;
        leader.until("it moves", |view| view.primary == zone.name && view.phase == "shadowing").await?;
        let has = ["gram 1", "it's 28", "kilogram 1000", "pound 454", "stone 6350"];
        ensure!(texts(zone, units).await? == has, "{:?}", texts(zone, units).await?);
    }
    superuser(near).await?.batch_execute("DELETE FROM units.unit WHERE name = 'stone'").await?;
    drop(leader);
    // It looks when it begins, and once a minute from then on.
    let _leader = Leader::start(&playground, &[])?;
    until("the shadow follows", async || Ok(texts(far, units).await?.len() == 4)).await
}

/// What Godwit's role may not carry, or what is too much, stops a move; or what is to be left is a warning.
#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_carried_is_told() -> Result<()> {
    use Severity::{Blocker, Warning};
    let major = 18;
    let made = "CREATE TABLE job (id int PRIMARY KEY, command text, own boolean);
        INSERT INTO job VALUES (1, 'comes with it', false);
        SELECT pg_extension_config_dump('job', 'WHERE own'); GRANT SELECT ON job TO PUBLIC;
        CREATE TABLE secret (id int); SELECT pg_extension_config_dump('secret', '');
        CREATE SEQUENCE ticket; SELECT pg_extension_config_dump('ticket', '')";
    let directory = extension("timer", "trusted = true\nschema = public\n", made)?;
    let settings = format!("extension_control_path = '{}:$system'\n", directory.path().display());
    let (source, target) =
        (TestCluster::start_with(major, &settings)?, TestCluster::start_with(major, &settings)?);
    let client = source.create_database("shop", "").await?;
    let empty = target.create_database("shop", "").await?;
    let here = source.connect("shop").await?;
    here.batch_execute("CREATE EXTENSION timer").await?;
    assert_eq!(compare(&client, &empty).await?, [], "what comes with it is there");
    here.batch_execute("GRANT SELECT ON secret TO PUBLIC; INSERT INTO job VALUES (7, 'tidy', true)").await?;
    assert_eq!(compare(&client, &empty).await?, [], "the copy makes the extension");
    let there = target.connect("shop").await?;
    there.batch_execute("CREATE EXTENSION timer").await?;
    let found = compare(&client, &empty).await?;
    let grant = "GRANT USAGE ON SCHEMA public TO godwit; GRANT SELECT, INSERT, DELETE ON public.job TO godwit, on both sides";
    expect(&found, Blocker, "public.job", "role godwit may not carry it", grant);
    expect(
        &found,
        Blocker,
        "public",
        "has SELECT on TABLE public.secret",
        "GRANT SELECT ON TABLE public.secret TO PUBLIC",
    );
    assert_eq!(found.len(), 2, "{found:#?}");
    let left = compare_for(&client, &empty, false, Severity::Warning).await?;
    let rows = "COPY (SELECT * FROM public.job WHERE own) TO STDOUT on the source";
    expect(&left, Warning, "public.job", "1 rows that extension timer keeps", rows);
    there
        .batch_execute(
            "GRANT SELECT ON TABLE public.secret TO PUBLIC; INSERT INTO job VALUES (7, 'tidy', true)",
        )
        .await?;
    assert_eq!(compare_for(&client, &empty, false, Severity::Warning).await?, [], "both are the same");

    for side in [&here, &there] {
        side.batch_execute(
            "GRANT USAGE ON SCHEMA public TO godwit; GRANT SELECT, INSERT, DELETE ON public.job TO godwit",
        )
        .await?;
    }
    let found = compare(&client, &empty).await?;
    expect(
        &found,
        Blocker,
        "public.ticket",
        "may not carry it",
        "GRANT SELECT, UPDATE ON SEQUENCE public.ticket TO godwit",
    );
    assert_eq!(found.len(), 1, "{found:#?}");
    here.batch_execute("DELETE FROM job WHERE own").await?;
    assert_eq!(compare(&client, &empty).await?, [], "there is nothing that it counts");
    here.batch_execute("INSERT INTO job VALUES (7, 'tidy', true)").await?;
    for side in [&here, &there] {
        side.batch_execute("GRANT SELECT, UPDATE ON SEQUENCE ticket TO godwit").await?;
    }
    assert_eq!(compare(&client, &empty).await?, []);
    let hidden = "ALTER TABLE job ENABLE ROW LEVEL SECURITY; INSERT INTO secret VALUES (1); REVOKE SELECT ON secret FROM PUBLIC";
    here.batch_execute(hidden).await?;
    let found = compare(&client, &empty).await?;
    expect(
        &found,
        Blocker,
        "public.job",
        "row security hides from role godwit",
        "ALTER ROLE godwit BYPASSRLS",
    );
    expect(
        &found,
        Blocker,
        "public.secret",
        "may not carry it",
        "GRANT SELECT, INSERT, DELETE ON public.secret",
    );
    let lowered = "ALTER TABLE job DISABLE ROW LEVEL SECURITY; TRUNCATE secret; INSERT INTO job SELECT n, '', true FROM generate_series(8, 10008) n";
    here.batch_execute(lowered).await?;
    let found = compare(&client, &empty).await?;
    expect(&found, Blocker, "public.job", "more than 10000 rows", "replication: {extensions: leave}");
    assert_eq!(found.len(), 1, "{found:#?}");
    here.batch_execute("DELETE FROM job WHERE id > 7").await?;
    there.batch_execute("ALTER TABLE job RENAME command TO said").await?;
    let found = compare(&client, &empty).await?;
    expect(&found, Blocker, "public.job", "has no column \"command\"", "ALTER EXTENSION \"timer\" UPDATE");
    client.batch_execute("SET cron.database_name = 'elsewhere'").await?;
    let found = compare(&client, &empty).await?;
    expect(&found, Warning, "pg_cron", "keeps its jobs in database elsewhere", "schedule them on the target");
    Ok(())
}
