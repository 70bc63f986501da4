//! Who could log in at the other side, by what it proved itself by here.

use super::pooled::POOL_OF_FIVE;
use super::*;

async fn rehearse(setup: &Setup) -> Vec<String> {
    setup.front.rehearse("b", DEADLINE).await
}

async fn run(cluster: &TestCluster, sql: &str) {
    cluster.connect(DATABASE).await.unwrap().batch_execute(sql).await.unwrap();
}

fn is_app_alone(told: &[String]) -> bool {
    matches!(told, [one] if one.starts_with("role app cannot log in at b as it does at a"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_shares_connections_is_tried_with_the_password_it_has_now() {
    let setup = Setup::with(HOLD, |settings| settings.pool = Some(POOL_OF_FIVE), "").await;
    setup.connect().await.batch_execute("SELECT 1").await.unwrap();
    assert_eq!(rehearse(&setup).await, [""; 0]);
    run(&setup.clusters[0], "ALTER ROLE app PASSWORD 'another'").await;
    let mut config = setup.config();
    config.password("another");
    Session::start(&config).await.client.batch_execute("SELECT 1").await.unwrap();
    let told = rehearse(&setup).await;
    assert!(is_app_alone(&told), "{told:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn that_there_is_no_room_here_for_now_is_no_reason_to_forget_a_role() {
    let setup = Setup::start().await;
    let _open = setup.connect().await;
    run(&setup.clusters[0], "ALTER ROLE app CONNECTION LIMIT 1").await;
    run(&setup.clusters[1], "ALTER ROLE app PASSWORD 'another'").await;
    for _ in 0..2 {
        let told = rehearse(&setup).await;
        assert!(is_app_alone(&told), "{told:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_reads_changes_may_do_so_over_there_too() {
    let setup = Setup::start().await;
    let [here, there] = &setup.clusters;
    for cluster in [here, there] {
        run(cluster, "ALTER ROLE app REPLICATION").await;
    }
    let _open = setup.connect().await;
    let listen = setup.front.settings.listen;
    let reader = format!(
        "host={} port={} user=app dbname={DATABASE} replication=database",
        listen.ip(),
        listen.port()
    );
    let mut psql = Command::new(here.cluster.bin.join("psql"));
    psql.args(["-X", "-c", "IDENTIFY_SYSTEM", &reader]).env("PGPASSWORD", PASSWORD).env_remove("PGOPTIONS");
    let output = psql.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(rehearse(&setup).await, [""; 0]);
    run(there, "ALTER ROLE app NOREPLICATION").await;
    // A fence hides nothing of it.
    for sql in ["SELECT 1", "REVOKE CONNECT ON DATABASE shop FROM public"] {
        run(there, sql).await;
        let told = rehearse(&setup).await;
        assert!(is_app_alone(&told), "{told:?}");
        assert!(told[0].ends_with("(42501) (mend: ALTER ROLE app REPLICATION at b)"), "{told:?}");
    }
    run(there, "ALTER ROLE app REPLICATION").await;
    assert_eq!(rehearse(&setup).await, [""; 0]);
    for cluster in [here, there] {
        run(cluster, "ALTER ROLE app NOREPLICATION").await;
    }
    assert_eq!(rehearse(&setup).await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_logged_in_before_its_password_was_changed_goes_along() {
    let setup = Setup::start().await;
    let first = setup.connect().await;
    // The same password, with another salt.
    same_verifier(&setup.clusters, "app").await;
    let told = rehearse(&setup).await;
    assert!(matches!(&told[..], [one] if one.contains("would be thrown out: 1 (mend")), "{told:?}");
    let second = setup.connect().await;
    assert_eq!(rehearse(&setup).await, [""; 0]);
    setup.cutover().await;
    for client in [&first, &second] {
        assert_eq!(port(client).await, i32::from(setup.clusters[1].cluster.port));
    }
    drop(first);
    drop(second);
    until("both have left", async || setup.front.sessions() == 0).await;
    same_verifier(&setup.clusters, "app").await;
    assert_eq!(setup.front.rehearse("a", DEADLINE).await, [""; 0], "nobody is there");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_shares_connections_gets_one_after_its_password_was_changed() {
    let setup = Setup::with(HOLD, |settings| settings.pool = Some(POOL_OF_FIVE), "").await;
    let first = setup.connect().await;
    first.batch_execute("SELECT 1").await.unwrap();
    same_verifier(&setup.clusters, "app").await;
    let second = setup.connect().await;
    // It has the one that lay there.
    second.batch_execute("BEGIN").await.unwrap();
    first.batch_execute("SELECT 1").await.unwrap();
}
