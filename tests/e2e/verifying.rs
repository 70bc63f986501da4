//! `godwit verify`: a real node, a real shadow under load, and what a person sees.

use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use godwit::controller::verification::{Standing, VerificationView};
use godwit::controller::view::ResourceView;
use godwit::demo::zone::{Playground, RESOURCE};
use godwit_tests::waiting::until;
use serde_json::Value;
use tokio_postgres::Client;

use crate::leader::{Leader, PATIENCE, PROGRAM, connect, load, options};
use crate::schema::{followed, owner, replicated, seed_anew, sync};

/// How often what stands in the way is looked at.
const LOOKS: Duration = Duration::from_secs(1);

/// Runs the command line as a person would.
pub(crate) async fn godwit(leader: &Leader<'_>, arguments: &[&str]) -> Result<(ExitStatus, String, String)> {
    let output = tokio::process::Command::new(PROGRAM)
        .args(["--admin", &leader.playground.admin.to_string(), "verify", RESOURCE])
        .args(arguments)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(PATIENCE, output).await.context("godwit verify does not end")??;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok((output.status, text(&output.stdout), text(&output.stderr)))
}

async fn view(leader: &Leader<'_>) -> Result<VerificationView> {
    leader.client.fetch(&format!("/api/v1/resources/{RESOURCE}/verification")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_verifies_stops_resumes_and_sees_what_differs() -> Result<()> {
    let playground = Playground::start(&options(false)?).await?;
    // The load does not write to them.
    let apart = "INSERT INTO customers (id, name) VALUES (8007, 'to be damaged'), (8008, 'to be gone')";
    owner(&playground.zones[0]).await?.batch_execute(apart).await?;
    let mut leader = Leader::start(&playground, &[])?;
    let ready = leader.ready().await?;
    let load = load(&playground, 100.0, "verify");
    leader.until("the load runs", |_| load.snapshot().acknowledged > 20).await?;

    let (status, out, err) = godwit(&leader, &["--follow"]).await?;
    ensure!(out.contains("no verification was made yet"), "{status} {out} {err}");
    let (status, out, err) = godwit(&leader, &["--stop"]).await?;
    ensure!(status.code() == Some(4) && err.contains("no verification is under way"), "{status} {out} {err}");

    // Everything, under load.
    let (status, out, err) = godwit(&leader, &["--share", "1"]).await?;
    ensure!(status.success() && out.contains(": equal: "), "{status} {out} {err}");
    ensure!(view(&leader).await?.progress.rows >= 2_500, "{:#?}", view(&leader).await?);

    // A damaged row, by its key; and no other.
    let shadow = connect(leader.zone(&ready.shadow)).await?;
    let damaged = "SET session_replication_role = replica;
        UPDATE customers SET name = 'somebody else' WHERE id = 8007; DELETE FROM customers WHERE id = 8008";
    shadow.batch_execute(damaged).await?;
    let (status, out, err) = godwit(&leader, &["--table", "customers", "--values"]).await?;
    ensure!(status.code() == Some(6), "{status} {out} {err}");
    ensure!(out.contains("public.customers (id = 8008): missing on the target"), "{out}");
    ensure!(
        out.contains("public.customers (id = 8007): differs: name (") && out.contains("\"somebody else\""),
        "{out}"
    );
    ensure!(out.contains(": 2 differences: 1 of 1 tables"), "{out}");
    let (.., json) = {
        let (status, out, _) = godwit(&leader, &["--follow", "-o", "json"]).await?;
        (status, serde_json::from_str::<Value>(&out)?)
    };
    ensure!(json["progress"]["differences"] == 2 && json["state"] == "done", "{json:#}");
    let metrics = scrape(&leader).await?;
    ensure!(metrics.contains("godwit_verification_differences{resource=\"orders\"} 2"), "{metrics}");

    let (status, _, err) = godwit(&leader, &["--table", "nowhere"]).await?;
    ensure!(status.code() == Some(1), "{status} {err}");
    let failed = view(&leader).await?;
    ensure!(failed.state == Standing::Failed && failed.why.contains("public.nowhere"), "{failed:#?}");
    let (status, out, err) = godwit(&leader, &["--table", "orders"]).await?;
    ensure!(status.success(), "{status} {out} {err}");
    let metrics = scrape(&leader).await?;
    let differ = "godwit_verification_differences{resource=\"orders\"} 2";
    ensure!(metrics.contains(differ), "nothing says that those rows are equal by now: {metrics}");

    // Nobody is moved to rows that are known to be others.
    let told = "not migratable: public.customers: godwit verify found rows that differ (mend: godwit reseed orders --table";
    let is_told = |view: &ResourceView| view.problems.iter().any(|line| line.starts_with(told));
    leader.until("it stands in the way", is_told).await?;
    let refused = leader.ask_to_migrate(&ready.shadow).await.err().context("the shadow has other rows")?;
    ensure!(format!("{refused:#}").contains("found rows that differ"), "{refused:#}");

    // Stopped, the node killed meanwhile, and resumed: what was done is not done again.
    let (status, _, err) = godwit(&leader, &["--rate", "150", "--detach"]).await?;
    ensure!(status.success(), "{status} {err}");
    let (status, _, err) = godwit(&leader, &[]).await?;
    ensure!(status.code() == Some(4) && err.contains("a verification is under way"), "{status} {err}");
    leader
        .until_answer("verification", "rows are read", |view: &VerificationView| view.progress.rows > 0)
        .await?;
    let (status, out, err) = godwit(&leader, &["--stop"]).await?;
    ensure!(status.success() && out.contains("stopped ("), "{status} {out} {err}");
    let stopped = view(&leader).await?;
    ensure!(stopped.state == Standing::Stopped && stopped.progress.rows < 2_500, "{stopped:#?}");
    let outcome = load.stop().await;
    ensure!(outcome.totals.failed == 0, "{:#?}", outcome.failures);
    drop(leader);
    let mut leader = Leader::start(&playground, &[])?;
    leader.until("it still does", is_told).await?;
    leader.until("it streams", |view| view.replication.state == "streaming").await?;
    seed_anew(&leader, &["public.customers"]).await?;
    leader.ready().await?;
    let again = view(&leader).await?;
    ensure!(again.state == Standing::Stopped, "{again:#?}");
    let (status, out, err) = godwit(&leader, &["--resume", "--detach"]).await?;
    ensure!(status.success(), "{status} {out} {err}");
    let resumed = view(&leader).await?;
    ensure!(
        resumed.progress.rows >= again.progress.rows && resumed.request.rows_per_second == Some(150),
        "{resumed:#?}"
    );

    // A migration ends it: nothing else reads while requests are held.
    let running = view(&leader).await?;
    ensure!(running.state == Standing::Running, "{running:#?}");
    let id = leader.migrate(&ready.shadow).await?;
    let ended = leader
        .until_answer("verification", "it ends", |view: &VerificationView| view.state != Standing::Running)
        .await?;
    ensure!(ended.why.contains(&id), "{ended:#?}");
    Ok(())
}

async fn scrape(leader: &Leader<'_>) -> Result<String> {
    let url = format!("http://{}/metrics", leader.playground.admin);
    let output = tokio::process::Command::new("curl").args(["-sS", &url]).output().await?;
    Ok(String::from_utf8(output.stdout)?)
}

/// Whether it stands in the way that the rows of this table were found to differ.
fn told(view: &ResourceView, table: &str) -> bool {
    view.problems
        .iter()
        .any(|line| line.starts_with(&format!("not migratable: public.{table}: godwit verify")))
}

/// These tables lose their rows on the shadow, and a verification finds that.
async fn found_to_differ(leader: &mut Leader<'_>, shadow: &Client, tables: &[&str]) -> Result<()> {
    shadow.batch_execute("SET session_replication_role = replica").await?;
    for table in tables {
        shadow.batch_execute(&format!("DELETE FROM {table}")).await?;
    }
    let arguments: Vec<&str> = tables.iter().flat_map(|table| ["--table", table]).collect();
    let (status, out, err) = godwit(leader, &arguments).await?;
    ensure!(status.code() == Some(6), "{status} {out} {err}");
    let all = |view: &ResourceView| tables.iter().all(|table| told(view, table));
    leader.until("they stand in the way", all).await.map(drop)
}

/// Nobody could copy it anew.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_differed_and_is_gone_stops_no_move() -> Result<()> {
    let playground = replicated("mode: async, schema: all").await?;
    let [near, far] = &playground.zones;
    let primary = owner(near).await?;
    let tables = "CREATE TABLE dropped (id int PRIMARY KEY); CREATE TABLE renamed (id int PRIMARY KEY);
        INSERT INTO dropped VALUES (1); INSERT INTO renamed VALUES (1)";
    primary.batch_execute(tables).await?;
    let mut leader = Leader::start(&playground, &[])?;
    leader.ready().await?;
    followed(&mut leader).await?;
    let shadow = connect(far).await?;
    found_to_differ(&mut leader, &shadow, &["dropped", "renamed"]).await?;
    primary.batch_execute("DROP TABLE dropped; ALTER TABLE renamed RENAME TO other").await?;
    let view = leader
        .until("only the one that is left does", |view| !told(view, "dropped") && told(view, "other"))
        .await?;
    ensure!(!told(&view, "renamed"), "{:#?}", view.problems);
    primary.batch_execute("DROP TABLE other").await?;
    leader.until("none does", |view| !told(view, "other")).await?;
    leader.migrate(&far.name).await?;
    leader.until("moved", |view| view.primary == far.name && view.phase == "shadowing").await?;
    Ok(())
}

/// Meanwhile the primary has no table of the old name, and the shadow none of the new one.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_differs_does_by_its_new_name_whoever_verifies_before_the_shadow_follows() -> Result<()>
{
    let playground = replicated("mode: async, schema: manual").await?;
    let [near, far] = &playground.zones;
    let primary = owner(near).await?;
    let tables = "CREATE TABLE others (id int PRIMARY KEY); CREATE TABLE renamed (id int PRIMARY KEY);
        INSERT INTO others VALUES (1); INSERT INTO renamed VALUES (1)";
    primary.batch_execute(tables).await?;
    let mut leader = Leader::start(&playground, &[])?;
    leader.ready().await?;
    followed(&mut leader).await?;
    let shadow = connect(far).await?;
    found_to_differ(&mut leader, &shadow, &["renamed"]).await?;
    primary.batch_execute("ALTER TABLE renamed RENAME TO other").await?;
    let (status, out, err) = godwit(&leader, &["--table", "others"]).await?;
    ensure!(status.success(), "{status} {out} {err}");
    let view = leader.until("the schemas differ", |view| told(view, "renamed")).await?;
    ensure!(!told(&view, "other"), "{:#?}", view.problems);
    let synced = sync(&leader, false).await?;
    ensure!(synced.differences.is_empty(), "{synced:#?}");
    leader.until("the new name is told", |view| told(view, "other") && !told(view, "renamed")).await?;
    drop(leader);
    let mut leader = Leader::start(&playground, &[])?;
    leader.until("it still is", |view| told(view, "other")).await?;
    leader.until("it streams", |view| view.replication.state == "streaming").await?;
    // What it is called is known from before as well.
    let other = "ALTER TABLE other RENAME TO another";
    primary.batch_execute(other).await?;
    shadow.batch_execute(other).await?;
    leader.until("the newest name is told", |view| told(view, "another") && !told(view, "other")).await?;
    let (status, out, err) = godwit(&leader, &["--table", "another"]).await?;
    ensure!(status.code() == Some(6), "{status} {out} {err}");
    shadow.batch_execute("INSERT INTO another VALUES (1)").await?;
    let (status, out, err) = godwit(&leader, &["--table", "another"]).await?;
    ensure!(status.success(), "{status} {out} {err}");
    leader.until("found equal, it does not", |view| !told(view, "another")).await?;
    Ok(())
}

/// The new one has the name, and all of its rows.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_differs_and_was_rotated_stands_in_the_way_until_it_is_copied_anew() -> Result<()> {
    let playground = replicated("mode: async, schema: all").await?;
    let [near, far] = &playground.zones;
    let primary = owner(near).await?;
    primary.batch_execute("CREATE TABLE events (id int PRIMARY KEY); INSERT INTO events VALUES (1)").await?;
    let mut leader = Leader::start(&playground, &[])?;
    leader.ready().await?;
    followed(&mut leader).await?;
    let shadow = connect(far).await?;
    found_to_differ(&mut leader, &shadow, &["events"]).await?;
    let rotation =
        "BEGIN; ALTER TABLE events RENAME TO events_2026; CREATE TABLE events (id int PRIMARY KEY); COMMIT";
    primary.batch_execute(rotation).await?;
    leader.until("the old one does", |view| told(view, "events_2026") && !told(view, "events")).await?;
    let again = async || Ok(seed_anew(&leader, &["public.events"]).await.is_ok());
    until("the new one is there, and copied anew", again).await?;
    tokio::time::sleep(LOOKS * 3).await;
    let view: ResourceView = leader.client.fetch(&format!("/api/v1/resources/{RESOURCE}")).await?;
    ensure!(told(&view, "events_2026"), "that was the new one: {:#?}", view.problems);
    ensure!(leader.ask_to_migrate(&far.name).await.is_err(), "a row is missing");
    let again = async || Ok(seed_anew(&leader, &["public.events_2026"]).await.is_ok());
    until("so is the old one", again).await?;
    leader.until("copied anew, it does not", |view| !told(view, "events_2026")).await?;
    followed(&mut leader).await?;
    let rows: i64 = shadow.query_one("SELECT count(*) FROM events_2026", &[]).await?.get(0);
    ensure!(rows == 1, "{rows}");
    Ok(())
}
