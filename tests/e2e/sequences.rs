//! Sequences, which no stream carries: set on the shadow to exactly what they are on the primary, by the newest migration.

use anyhow::Result;
use godwit_tests::postgres::{TestCluster, other_major};
use replicator::beside::Shadow;
use replicator::error::Error;
use replicator::fence;
use replicator::sequences::{self, SequenceState};
use tokio_postgres::Client;

pub(crate) async fn set(
    client: &Client,
    generation: u64,
    run: &str,
    states: &[SequenceState],
) -> Result<(), Error> {
    sequences::apply(Shadow { client, resource: "orders", generation }, run, states).await
}

pub(crate) async fn claim(client: &Client, run: &str, begun_ms: u64) -> Result<(), Error> {
    fence::claim_way_back(client, "orders", 3, (run, begun_ms), None).await
}

#[tokio::test(flavor = "multi_thread")]
async fn sequences_travel_exactly_both_ways() -> Result<()> {
    let schema = r#"
        CREATE SEQUENCE fresh; CREATE SEQUENCE late START 100 INCREMENT 7;
        CREATE SEQUENCE down INCREMENT -5 MINVALUE -9223372036854775808 START -3;
        CREATE SEQUENCE edge MINVALUE -9223372036854775808; CREATE SEQUENCE small AS smallint CACHE 20;
        CREATE SCHEMA "It's"; CREATE SEQUENCE "It's"."A ""seq""";
        CREATE TABLE t (a serial, b bigint GENERATED ALWAYS AS IDENTITY);
    "#;
    let (old, new) = (TestCluster::start(15)?, TestCluster::start(other_major())?);
    let (old, new) = (
        (old.create_database("shop", schema).await?, old),
        (new.create_database("shop", schema).await?, new),
    );
    for (client, _) in [&old, &new] {
        fence::install(client, "orders", 1).await?;
        claim(client, "m1", 1).await?;
    }
    old.0
        .batch_execute(
            r#"SELECT nextval('down'), nextval('down'), nextval('small'), nextval('"It''s"."A ""seq"""');
               SELECT setval('late', 7000, false), setval('edge', 9007199254740993);
               INSERT INTO t DEFAULT VALUES; INSERT INTO t DEFAULT VALUES"#,
        )
        .await?;
    // The target is ahead in one: it is set back to exactly the source's state.
    new.0.batch_execute("SELECT setval('fresh', 55)").await?;
    let read = sequences::read(&old.0).await?;
    let find = |name: &str| read.iter().find(|s| s.name == name).map(|s| (s.last_value, s.is_called));
    assert_eq!(find("fresh"), Some((1, false)));
    assert_eq!(find("late"), Some((7000, false)));
    assert_eq!(find("down"), Some((-8, true)));
    assert_eq!(find("edge"), Some((9_007_199_254_740_993, true)));
    assert_eq!(find("t_b_seq"), Some((2, true)));
    fence::guard(&new.0, "orders", 1).await?;
    set(&new.0, 1, "m1", &read).await?;
    assert_eq!(sequences::read(&new.0).await?, read);
    let next: i64 = new.0.query_one("SELECT nextval('fresh')", &[]).await?.get(0);
    assert_eq!(next, 1);
    let next: i64 = new.0.query_one("SELECT nextval('down')", &[]).await?.get(0);
    assert_eq!(next, -13);
    fence::guard(&old.0, "orders", 2).await?;
    set(&old.0, 2, "m1", &sequences::read(&new.0).await?).await?;
    assert_eq!(sequences::read(&old.0).await?, sequences::read(&new.0).await?);

    // One missing: named, and nothing is set.
    let mut more = read.clone();
    let ghost = |name: &str| SequenceState {
        schema: "It's".into(),
        name: name.into(),
        last_value: 1,
        is_called: true,
    };
    more.extend([ghost("gone"), ghost("Gone Too")]);
    let before = sequences::read(&new.0).await?;
    let error = set(&new.0, 1, "m1", &more).await.expect_err("missing");
    assert!(matches!(error, Error::Unready(_)), "{error:?}");
    assert!(error.to_string().contains(r#""It's".gone, "It's"."Gone Too""#), "{error}");
    assert_eq!(sequences::read(&new.0).await?, before);

    // Late: another migration has set them by now, or the database serves, and would give numbers again.
    claim(&new.0, "m2", 2).await?;
    let late = set(&new.0, 1, "m1", &more[..1]).await.expect_err("another one is under way");
    assert!(matches!(late, Error::Fenced(_)), "{late:?}");
    set(&new.0, 1, "m2", &more[..1]).await?;
    fence::open(&new.0, "orders", 2, None).await?;
    for generation in [1, 2] {
        let late = set(&new.0, generation, "m2", &more[..1]).await.expect_err("it serves");
        assert!(matches!(late, Error::Fenced(_)), "{late:?}");
    }
    Ok(())
}
