//! Unlogged tables are in no stream and no WAL: a move refuses them, leaves them empty, or carries their rows under the hold.

use anyhow::{Result, ensure};
use godwit::controller::view::ResourceView;
use godwit::demo::zone::{SERVICE_ROLE, Zone};
use rustix::process::Signal;
use tokio_postgres::Client;

use crate::large_objects::moved;
use crate::leader::{Leader, connect};
use crate::schema::{followed, owner, replicated};

/// What services keep so: sessions and caches; of all kinds of columns, with what makes rows hard to write again.
const KEPT: &str = r#"
    CREATE TYPE mood AS ENUM ('sad', 'it''s "ok"');
    CREATE TYPE pair AS (a int, b text);
    CREATE UNLOGGED TABLE sessions (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, token uuid NOT NULL UNIQUE DEFAULT gen_random_uuid(),
        mood mood, pair pair, pairs pair[], doc jsonb, raw bytea, n numeric, f float8, at timestamptz, span interval, words text[], x tsvector,
        cost money, "It's" text, twice numeric GENERATED ALWAYS AS (n * 2) STORED);
    CREATE UNLOGGED TABLE marks (session bigint NOT NULL REFERENCES sessions, mark text, before int, dropped int);
    ALTER TABLE marks DROP COLUMN dropped;
    CREATE UNLOGGED TABLE nothing ();
    CREATE TABLE logged (what text, at timestamptz DEFAULT now(), id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY);
    CREATE FUNCTION noted() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO logged (what) VALUES (TG_TABLE_NAME); RETURN NEW; END $$;
    INSERT INTO sessions (mood, pair, pairs, doc, raw, n, f, at, span, words, x, cost, "It's")
      SELECT 'it''s "ok"', (n, 'a "b" \ c')::pair, ARRAY[(1, 'x,y')::pair, NULL], jsonb_build_object('n', n, 'said', E'\u00e4 \\ "'), decode('00ff5c27', 'hex'),
        CASE n % 3 WHEN 0 THEN 'NaN' WHEN 1 THEN 'Infinity' ELSE 1.10 END, 1.0 / n, CASE n % 2 WHEN 0 THEN 'infinity'::timestamptz ELSE '0044-03-15 BC' END,
        make_interval(days => n), ARRAY['NULL', NULL, '{}', E'tab\t\n'], '''a b'':1A c:2', 12.34, E'\\N' FROM generate_series(1, 1500) n;
    INSERT INTO marks SELECT id, NULLIF(id % 5, 0)::text FROM sessions WHERE id % 2 = 0;
    INSERT INTO nothing DEFAULT VALUES; INSERT INTO nothing DEFAULT VALUES;
    CREATE TRIGGER noted AFTER INSERT ON marks FOR EACH ROW EXECUTE FUNCTION noted()"#;

/// What they hold.
async fn held(zone: &Zone) -> Result<Vec<String>> {
    let sql = "SELECT 'sessions ' || count(*) || ' ' || coalesce(md5(string_agg(s::text, '' ORDER BY id)), '') FROM sessions s
        UNION ALL SELECT 'marks ' || count(*) || ' ' || coalesce(md5(string_agg(m::text, '' ORDER BY session, mark)), '') FROM marks m
        UNION ALL SELECT 'nothing ' || count(*) FROM nothing
        UNION ALL SELECT 'noted ' || count(*) FROM logged";
    Ok(connect(zone).await?.query(sql, &[]).await?.iter().map(|row| row.get(0)).collect())
}

fn told(view: &ResourceView, what: &str) -> bool {
    view.problems.iter().any(|problem| problem.contains(what))
}

/// Makes sessions until its own ends; says which it was told of.
fn writing(client: Client) -> tokio::task::JoinHandle<Vec<i64>> {
    tokio::spawn(async move {
        let mut acknowledged = Vec::new();
        let made = "INSERT INTO sessions (\"It's\") VALUES ('while it moves') RETURNING id";
        while let Ok(row) = client.query_one(made, &[]).await {
            acknowledged.push(row.get(0));
            tokio::time::sleep(std::time::Duration::from_millis(3)).await;
        }
        acknowledged
    })
}

/// There and back with all their rows, those too that were written until the hold; a new table as well. Not when they are too many.
#[tokio::test(flavor = "multi_thread")]
async fn unlogged_tables_are_carried_under_the_hold() -> Result<()> {
    let playground = replicated("mode: async, schema: all, unlogged: carry").await?;
    let [near, far] = &playground.zones;
    owner(near).await?.batch_execute(KEPT).await?;
    let mut leader = Leader::start(&playground, &[])?;
    leader.ready().await?;
    ensure!(held(far).await?[..3].iter().all(|line| line.contains(" 0")), "{:?}", held(far).await?);
    owner(near).await?.batch_execute(&format!("GRANT INSERT, SELECT ON sessions TO {SERVICE_ROLE}")).await?;
    followed(&mut leader).await?;

    let writer = replicator::postgres::connect(&near.dsn(SERVICE_ROLE), "writer").await?;
    let writer = writing(writer);
    moved(&mut leader, far).await?;
    let acknowledged = writer.await?;
    ensure!(!acknowledged.is_empty());
    ensure!(held(near).await? == held(far).await?, "{:?} {:?}", held(near).await?, held(far).await?);
    ensure!(held(far).await?[3] == "noted 0", "a trigger has fired: {:?}", held(far).await?);
    let client = owner(far).await?;
    let there = "SELECT count(*) FROM sessions WHERE id = ANY ($1)";
    let there: i64 = client.query_one(there, &[&acknowledged]).await?.get(0);
    ensure!(usize::try_from(there)? == acknowledged.len(), "{there} of {}", acknowledged.len());
    let id: i64 = client.query_one("INSERT INTO sessions DEFAULT VALUES RETURNING id", &[]).await?.get(0);
    ensure!(acknowledged.iter().all(|known| *known < id), "{id} was given before");

    // Back, with what changed meanwhile: rows, columns, a table that is new and one that is gone.
    client
        .batch_execute(
            "DELETE FROM marks; UPDATE sessions SET doc = NULL, n = id WHERE id < 100; DELETE FROM nothing;
             ALTER TABLE sessions ADD COLUMN later int DEFAULT 7, DROP COLUMN x;
             CREATE UNLOGGED TABLE fresh (id int PRIMARY KEY, said text); INSERT INTO fresh SELECT n, 'new' FROM generate_series(1, 9) n;
             DROP TRIGGER noted ON marks",
        )
        .await?;
    followed(&mut leader).await?;
    moved(&mut leader, near).await?;
    ensure!(held(near).await? == held(far).await?, "{:?} {:?}", held(near).await?, held(far).await?);
    let fresh: i64 =
        connect(near).await?.query_one("SELECT count(*) FROM fresh WHERE said = 'new'", &[]).await?.get(0);
    ensure!(fresh == 9, "{fresh} rows");

    owner(near)
        .await?
        .batch_execute(
            "INSERT INTO fresh SELECT n, repeat(md5(n::text), 40) FROM generate_series(10, 30000) n",
        )
        .await?;
    leader.until("it is too much", |view| told(view, "at most 16 MB are carried under a hold")).await?;
    ensure!(leader.ask_to_migrate(&far.name).await.is_err(), "that would be a long hold");
    // From now on it has a stream; what the move before last left of it is not among its rows.
    let logged = "DELETE FROM fresh WHERE id > 12; ALTER TABLE fresh SET LOGGED";
    owner(near).await?.batch_execute(logged).await?;
    followed(&mut leader).await?;
    owner(near).await?.batch_execute("DELETE FROM fresh WHERE id < 3").await?;
    moved(&mut leader, far).await?;
    let fresh = connect(far).await?.query_one("SELECT array_agg(id ORDER BY id) FROM fresh", &[]).await?;
    let fresh: Vec<i32> = fresh.get(0);
    ensure!(fresh == (3..=12).collect::<Vec<_>>(), "{fresh:?}");
    Ok(())
}

/// Refused where the policy says nothing; empty after each move where it says so.
#[tokio::test(flavor = "multi_thread")]
async fn unlogged_tables_are_refused_or_empty_after_a_move() -> Result<()> {
    let playground = replicated("mode: async").await?;
    let [near, far] = &playground.zones;
    owner(near).await?.batch_execute(KEPT).await?;
    let mut leader = Leader::start(&playground, &[])?;
    leader
        .until("they stand in the way", |view| {
            told(view, "public.sessions: its rows are not in the WAL (unlogged)")
        })
        .await?;
    ensure!(leader.ask_to_migrate(&far.name).await.is_err(), "their rows would be gone");
    let policy = playground.directory.join("policies/playground.yaml");
    let text = std::fs::read_to_string(&policy)?;
    std::fs::write(&policy, text.replace("{mode: async}", "{mode: async, unlogged: empty}"))?;
    leader.node.signal(Signal::HUP)?;
    moved(&mut leader, far).await?;
    let empty = async |zone: &Zone| -> Result<bool> {
        Ok(held(zone)
            .await?
            .iter()
            .zip(["sessions 0", "marks 0", "nothing 0"])
            .all(|(line, empty)| line.trim() == empty))
    };
    ensure!(empty(far).await?, "{:?}", held(far).await?);
    ensure!(held(near).await?[0].starts_with("sessions 1500 "), "{:?}", held(near).await?);
    let client = owner(far).await?;
    client.batch_execute("INSERT INTO sessions (\"It's\") VALUES ('far away')").await?;
    moved(&mut leader, near).await?;
    ensure!(empty(near).await?, "those of long ago: {:?}", held(near).await?);
    Ok(())
}
