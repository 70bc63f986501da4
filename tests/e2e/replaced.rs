//! What a release replaces under its name, and what is computed by that: the shadow's rows are the primary's.

use anyhow::{Context, Result, ensure};
use godwit_tests::waiting::until;

use crate::leader::Leader;
use crate::releases::same_rows;
use crate::schema::{differences, followed, owner, replicated, seed_anew};

const SERVICE: &str = "
    CREATE TABLE texts (id int PRIMARY KEY, t text); INSERT INTO texts SELECT n, 'Some Words ' || n FROM generate_series(1, 50) n;
    CREATE FUNCTION slug(t text) RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT pg_catalog.lower(t)';
    CREATE TABLE blue (id int PRIMARY KEY, n int); INSERT INTO blue VALUES (1, 1);
    CREATE TABLE green (id int PRIMARY KEY, n int); INSERT INTO green VALUES (2, 2);
    CREATE TABLE one (id int PRIMARY KEY); CREATE TABLE two (id int PRIMARY KEY, n int); CREATE TABLE three (id int PRIMARY KEY, m int);
    CREATE TABLE old (id int PRIMARY KEY, n int); INSERT INTO old VALUES (1, 1); CREATE VIEW olds AS SELECT n FROM old;
    CREATE TABLE old_new (id int PRIMARY KEY, n int, more text); INSERT INTO old_new VALUES (1, 1, 'more'), (2, 2, 'more');
    CREATE TABLE viewed (id int PRIMARY KEY, a int, twice int GENERATED ALWAYS AS (a * 2) STORED); INSERT INTO viewed VALUES (1, 1);
    CREATE VIEW views AS SELECT a FROM viewed; CREATE VIEW views_of AS SELECT a FROM views; CREATE TABLE refers (id int PRIMARY KEY REFERENCES viewed);
    CREATE TYPE kind AS ENUM ('a', 'b', 'c'); CREATE TABLE kinds (id int PRIMARY KEY, k kind DEFAULT 'a', ks kind[]);
    INSERT INTO kinds VALUES (1, 'a', '{a,b}'), (2, 'b', '{c}'), (3, 'c', NULL);
    CREATE TABLE kinds_too (id int PRIMARY KEY, k kind NOT NULL); CREATE INDEX by_kind ON kinds_too (k);
    INSERT INTO kinds_too SELECT n, 'b' FROM generate_series(1, 100) n; CREATE INDEX of_c ON kinds_too (id) WHERE k = 'c';
    CREATE TABLE q (id int, day int, PRIMARY KEY (id, day)) PARTITION BY RANGE (day); CREATE TABLE q1 PARTITION OF q FOR VALUES FROM (0) TO (10);
    INSERT INTO q SELECT n, n % 10 FROM generate_series(1, 100) n;
    CREATE TABLE of_q (id int PRIMARY KEY, day int, CONSTRAINT its_q FOREIGN KEY (id, day) REFERENCES q); INSERT INTO of_q VALUES (1, 1), (2, 2);
    CREATE TYPE fewer AS ENUM ('none', 'some', 'all'); CREATE TABLE fewers (id int PRIMARY KEY, f fewer); INSERT INTO fewers VALUES (1, 'some');
    CREATE TYPE last AS ENUM ('one', 'two', 'three'); CREATE TABLE lasts (id int PRIMARY KEY, l last); INSERT INTO lasts VALUES (1, 'three')";

/// What each does, and the tables that are to be alike then.
const RELEASES: [(&str, &[&str]); 3] = [
    (
        "BEGIN; CREATE TEXT SEARCH CONFIGURATION plainly (COPY = simple);
         ALTER TABLE texts ADD found tsvector GENERATED ALWAYS AS (to_tsvector('plainly', t)) STORED;
         CREATE OR REPLACE FUNCTION slug(t text) RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT pg_catalog.upper(t)';
         ALTER TABLE texts ADD s text GENERATED ALWAYS AS (slug(t)) STORED; CREATE INDEX by_slug ON texts (slug(t)); COMMIT",
        &["texts"],
    ),
    (
        "BEGIN; ALTER TABLE blue RENAME TO aside; ALTER TABLE green RENAME TO blue; ALTER TABLE aside RENAME TO green;
         ALTER TABLE one RENAME TO aside; ALTER TABLE three RENAME TO one; ALTER TABLE two RENAME TO three; ALTER TABLE aside RENAME TO two;
         DROP TABLE old CASCADE; ALTER TABLE old_new RENAME TO old; CREATE VIEW olds AS SELECT n FROM old;
         DROP TABLE viewed CASCADE; CREATE TABLE viewed (id int PRIMARY KEY, b int); INSERT INTO viewed VALUES (1, 7);
         CREATE VIEW views AS SELECT b FROM viewed; CREATE VIEW views_of AS SELECT b FROM views;
         ALTER TABLE refers ADD FOREIGN KEY (id) REFERENCES viewed;
         ALTER TABLE of_q DROP CONSTRAINT its_q; ALTER TABLE q RENAME TO q_old; CREATE TABLE q (id int, day int, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
         ALTER TABLE q_old DETACH PARTITION q1; ALTER TABLE q ATTACH PARTITION q1 FOR VALUES FROM (0) TO (20); DROP TABLE q_old;
         ALTER TABLE of_q ADD CONSTRAINT its_q FOREIGN KEY (id, day) REFERENCES q; COMMIT;
         INSERT INTO q VALUES (200, 5);
         INSERT INTO blue VALUES (3, 3); INSERT INTO green VALUES (4, 4); INSERT INTO two VALUES (1); INSERT INTO three VALUES (1, 1);
         INSERT INTO one (id, m) VALUES (1, 2); INSERT INTO old VALUES (3, 3, 'new')",
        &["blue", "green", "one", "two", "three", "old", "olds", "viewed", "views_of", "q", "q1", "of_q"],
    ),
    (
        "BEGIN; DROP INDEX of_c; CREATE TYPE kind_new AS ENUM ('a', 'x', 'c'); ALTER TABLE kinds ALTER k DROP DEFAULT;
         ALTER TABLE kinds ALTER k TYPE kind_new USING (CASE k WHEN 'b' THEN 'a' ELSE k::text END)::kind_new, ALTER ks TYPE kind_new[] USING '{x}';
         ALTER TABLE kinds_too ALTER k TYPE kind_new USING (CASE k WHEN 'b' THEN 'a' ELSE k::text END)::kind_new;
         ALTER TYPE kind RENAME TO kind_old; ALTER TYPE kind_new RENAME TO kind; DROP TYPE kind_old; ALTER TABLE kinds ALTER k SET DEFAULT 'a';
         CREATE INDEX of_c ON kinds_too (id) WHERE k = 'c';
         CREATE TYPE fewer_new AS ENUM ('none', 'all'); ALTER TABLE fewers ALTER f TYPE fewer_new USING 'all'; DROP TYPE fewer;
         ALTER TYPE fewer_new RENAME TO fewer; ALTER TYPE last ADD VALUE 'four'; ALTER TYPE last RENAME VALUE 'three' TO 'drei'; COMMIT;
         INSERT INTO kinds VALUES (4, 'x', '{a}'); INSERT INTO fewers VALUES (2, 'none'); INSERT INTO lasts VALUES (2, 'four'), (3, 'drei')",
        &["kinds", "kinds_too", "fewers", "lasts"],
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn what_a_release_replaces_under_its_name_is_followed() -> Result<()> {
    let playground = replicated("mode: async, schema: all, slot: {reseed: auto}").await?;
    let [near, far] = &playground.zones;
    let primary = owner(near).await?;
    primary.batch_execute(SERVICE).await?;
    let mut leader = Leader::start(&playground, &[])?;
    leader.ready().await?;
    followed(&mut leader).await?;
    let shadow = owner(far).await?;
    let file = "SELECT pg_relation_filenode('q1')::text";
    let of_q1 = shadow.query_one(file, &[]).await?.get::<_, String>(0);
    for (release, tables) in RELEASES {
        primary.batch_execute(release).await.context(release)?;
        followed(&mut leader).await.context(release)?;
        for table in tables {
            same_rows([&primary, &shadow], table).await.context(release)?;
        }
    }
    ensure!(
        of_q1 == shadow.query_one(file, &[]).await?.get::<_, String>(0),
        "the partition was copied again"
    );
    let by_index = "SET enable_seqscan = off; SELECT count(*) FROM texts WHERE slug(t) = upper(t)";
    let found = shadow.simple_query(by_index).await?;
    let count = found.iter().find_map(|message| match message {
        tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    });
    ensure!(count == Some("50"), "the index is of the old function: {count:?}");
    let left = "SELECT count(*) FROM pg_type WHERE typnamespace = 'godwit'::regnamespace AND typtype = 'e'";
    ensure!(shadow.query_one(left, &[]).await?.get::<_, i64>(0) == 0, "an old type is left");

    // The way back knows which value is which as well.
    leader.migrate(&far.name).await?;
    leader.until("moved", |view| view.primary == far.name && view.phase == "shadowing").await?;
    leader.ready().await?;
    shadow
        .batch_execute(
            "ALTER TYPE kind RENAME VALUE 'x' TO 'z'; INSERT INTO kinds VALUES (5, 'z'); INSERT INTO lasts VALUES (4, 'one')",
        )
        .await?;
    followed(&mut leader).await?;
    for table in ["kinds", "lasts"] {
        same_rows([&shadow, &primary], table).await?;
    }
    let renamed = "SELECT count(*) FROM kinds WHERE k = 'z'";
    until("it is called so", async || Ok(primary.query_one(renamed, &[]).await?.get::<_, i64>(0) == 2)).await
}

/// A domain over an enum would go on with the old one.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_release_replaces_stays_where_another_type_is_made_of_it() -> Result<()> {
    let playground = replicated("mode: async, schema: additions").await?;
    let [near, far] = &playground.zones;
    let primary = owner(near).await?;
    primary
        .batch_execute(
            "CREATE TYPE kind AS ENUM ('a', 'b'); CREATE DOMAIN sort AS kind; CREATE TABLE kinds (id int PRIMARY KEY, k kind); INSERT INTO kinds VALUES (1, 'a')",
        )
        .await?;
    let mut leader = Leader::start(&playground, &[])?;
    leader.ready().await?;
    followed(&mut leader).await?;
    primary
        .batch_execute(
            "BEGIN; DROP DOMAIN sort; ALTER TYPE kind RENAME TO kind_old; CREATE TYPE kind AS ENUM ('a', 'x');
             ALTER TABLE kinds ALTER k TYPE kind USING 'a'; DROP TYPE kind_old; CREATE DOMAIN sort AS kind; COMMIT",
        )
        .await?;
    let is_told = |what: &str| what.contains("public.sort is made of it: seed the shadow, all of it, anew");
    let told =
        async || Ok(differences(&leader).await?.iter().any(|left| is_told(&left.what) && !left.reseed));
    until("it is told", told).await?;
    // Asked for all the same.
    let refused = seed_anew(&leader, &["public.kinds"])
        .await
        .err()
        .map(|error| format!("{error:#}"))
        .unwrap_or_default();
    ensure!(is_told(&refused), "{refused}");
    let over = "SELECT format_type(typbasetype, NULL) FROM pg_type WHERE typname = 'sort'";
    let over: String = owner(far).await?.query_one(over, &[]).await?.get(0);
    ensure!(over == "kind", "{over}");
    Ok(())
}

/// As a restore does that cleans up before; and what somebody takes from the shadow is not given back empty.
#[tokio::test(flavor = "multi_thread")]
async fn a_restore_is_followed_and_what_only_the_shadow_lost_is_copied_again() -> Result<()> {
    let playground = replicated("mode: async, schema: all").await?;
    let [near, far] = &playground.zones;
    let primary = owner(near).await?;
    let restored = |other: &str, rows: &str| {
        format!(
            "CREATE SCHEMA m; CREATE TYPE m.pair AS (a int, b text); CREATE TYPE m.other AS ({other});
             CREATE TABLE m.pairs (id int PRIMARY KEY, p m.pair, o m.other); INSERT INTO m.pairs VALUES {rows}"
        )
    };
    primary.batch_execute(&restored("a int", "(1, '(1,x)', '(1)')")).await?;
    let noted = "CREATE TABLE noted (id int PRIMARY KEY, note text); INSERT INTO noted SELECT n, 'note ' || n FROM generate_series(1, 100) n";
    primary.batch_execute(noted).await?;
    let mut leader = Leader::start(&playground, &[])?;
    leader.ready().await?;
    followed(&mut leader).await?;
    let shadow = owner(far).await?;
    for (other, rows) in [("a int", "(2, '(2,y)', '(2)')"), ("z text, a int", "(3, '(3,z)', '(z,3)')")] {
        primary
            .batch_execute(&format!("BEGIN; DROP SCHEMA m CASCADE; {}; COMMIT", restored(other, rows)))
            .await?;
        followed(&mut leader).await.context(other)?;
        same_rows([&primary, &shadow], "m.pairs").await?;
    }

    shadow.batch_execute("ALTER TABLE noted DROP COLUMN note").await?;
    let told = format!(
        "not migratable: public.noted: column note is gone from {}: seed the table anew (mend: godwit reseed orders --table 'public.noted')",
        far.name
    );
    leader.until("it is told", |view| view.problems.contains(&told)).await?;
    ensure!(leader.ask_to_migrate(&far.name).await.is_err(), "its values would be lost");
    seed_anew(&leader, &["public.noted"]).await?;
    followed(&mut leader).await?;
    same_rows([&primary, &shadow], "noted").await?;
    // Another in its place does not have them, either.
    shadow
        .batch_execute("ALTER TABLE noted DROP COLUMN note; ALTER TABLE noted ADD COLUMN note text")
        .await?;
    leader.until("it is told again", |view| view.problems.contains(&told)).await?;
    seed_anew(&leader, &["public.noted"]).await?;
    followed(&mut leader).await?;
    same_rows([&primary, &shadow], "noted").await?;
    shadow.batch_execute("DROP TABLE noted").await?;
    until("it is copied again", async || {
        let there = "SELECT pg_catalog.to_regclass('noted') IS NOT NULL";
        Ok(shadow.query_one(there, &[]).await?.get::<_, bool>(0))
    })
    .await?;
    followed(&mut leader).await?;
    same_rows([&primary, &shadow], "noted").await
}
