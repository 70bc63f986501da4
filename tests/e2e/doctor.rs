//! `godwit doctor`, asked of an admin listener, about two databases of different majors.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use godwit::admin::{AdminState, serve};
use godwit::controller::ResourceHandle;
use godwit::controller::databases::Databases;
use godwit::controller::doctor::DoctorView;
use godwit::controller::streams::Streams;
use godwit::controller::verification::Verifications;
use godwit::controller::view::ResourceView;
use godwit::demo::zone::{Playground, RESOURCE};
use godwit::links::Links;
use godwit::store::Journal;
use godwit_tests::postgres::{TestCluster, other_major};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::leader::{Leader, PROGRAM, options};

struct Answer {
    code: Option<i32>,
    text: String,
}

async fn doctor(admin: SocketAddr, arguments: &[&str]) -> Result<Answer> {
    let mut command = tokio::process::Command::new(PROGRAM);
    command.args(["--admin", &admin.to_string(), "doctor"]).args(arguments);
    let output = command.output().await?;
    Ok(Answer { code: output.status.code(), text: String::from_utf8(output.stdout)? })
}

fn state(folder: &std::path::Path, from: &TestCluster, to_port: u16) -> Result<AdminState> {
    let from_port = *from.config("shop").get_ports().first().context("a port")?;
    let path = folder.join("godwit.yaml");
    let placement = |http: u16, port: u16| {
        format!(
            "{{ http: [\"127.0.0.1:{http}\"], postgres: {{ dsn: \"postgres://postgres@127.0.0.1:{port}/shop\" }} }}"
        )
    };
    std::fs::write(
        &path,
        format!(
            "node: {{ name: edge-1, zone: near }}\nzones: {{ near: {{}}, far: {{}} }}\nresources:\n  orders:\n    \
             fronts: {{ http: {{ listen: 127.0.0.1:8080 }} }}\n    primary: near\n    placements:\n      \
             near: {}\n      far: {}\n",
            placement(8001, from_port),
            placement(8002, to_port)
        ),
    )?;
    let config = godwit::config::load(&path).map_err(|error| anyhow::anyhow!("{error:?}"))?;
    let resource = config.resources.get("orders").context("the resource")?;
    let journal = Arc::new(Journal::open(folder)?);
    let databases = Arc::new(Databases::new(resource));
    let links = Arc::new(Links::new(&config)?);
    let policy = resource.policy.clone();
    let streams = Arc::new(Streams::new("orders", policy, databases.clone(), links, journal.clone()));
    let verifications = Arc::new(Verifications::new(folder, databases, streams));
    let handle = ResourceHandle { commands: mpsc::channel(1).0, view: Arc::default(), verifications };
    handle.view.store(Arc::new(ResourceView {
        name: "orders".into(),
        primary: "near".into(),
        shadow: "far".into(),
        ..ResourceView::default()
    }));
    Ok(AdminState {
        config: Arc::new(config),
        resources: Arc::new(BTreeMap::from([("orders".to_owned(), handle)])),
        journal,
        metrics: None,
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_doctor_says_no_go_until_every_blocker_is_mended() -> Result<()> {
    let (from, to) = (TestCluster::start(15)?, TestCluster::start(other_major())?);
    let source = from.create_database("shop", "CREATE TABLE keyless (id int NOT NULL)").await?;
    let target = to.create_database("shop", "").await?;
    let folder = tempfile::tempdir()?;
    let to_port = *to.config("shop").get_ports().first().context("a port")?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let admin = listener.local_addr()?;
    let stop = CancellationToken::new();
    let server = tokio::spawn(serve(listener, state(folder.path(), &from, to_port)?, stop.clone()));

    let answer = doctor(admin, &["orders"]).await?;
    assert_eq!(answer.code, Some(4), "{}", answer.text);
    assert!(answer.text.starts_with("NO-GO  orders: near → far\n"), "{}", answer.text);
    assert!(answer.text.contains("blocker  near: public.keyless: updates and deletes"), "{}", answer.text);
    assert!(answer.text.contains("   mend  ALTER TABLE public.keyless ADD PRIMARY KEY"), "{}", answer.text);
    assert!(answer.text.contains("warning  far: max_slot_wal_keep_size: is unlimited"), "{}", answer.text);
    // What a source must fulfil is asked of the shadow too: the way back starts there. This test's session is seen.
    assert!(answer.text.contains("warning  far: postgres: its sessions are superuser"), "{}", answer.text);

    source.batch_execute("ALTER TABLE keyless ADD PRIMARY KEY (id)").await?;
    for server in [&source, &target] {
        server.batch_execute("ALTER SYSTEM SET max_slot_wal_keep_size = '64GB'").await?;
        server.batch_execute("SELECT pg_reload_conf()").await?;
    }
    let answer = doctor(admin, &["orders", "-o", "json"]).await?;
    let views: Vec<DoctorView> = serde_json::from_str(&answer.text)?;
    let [view] = views.as_slice() else { bail!("one resource: {}", answer.text) };
    assert_eq!((answer.code, view.go), (Some(0), true), "{}", answer.text);
    assert!(view.findings.iter().all(|finding| finding.severity == "warning"), "{}", answer.text);

    drop((target, to));
    let answer = doctor(admin, &["orders"]).await?;
    assert_eq!(answer.code, Some(4), "{}", answer.text);
    assert!(answer.text.contains("blocker  far: database: cannot be examined"), "{}", answer.text);
    stop.cancel();
    server.await??;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resource_whose_shadow_follows_is_fit_to_move() -> Result<()> {
    let playground = Playground::start(&options(false)?).await?;
    let mut leader = Leader::start(&playground, &[])?;
    let view = leader.ready().await?;
    let answer = doctor(playground.admin, &[]).await?;
    assert_eq!(answer.code, Some(0), "{}", answer.text);
    let verdict = format!("GO  {RESOURCE}: {} → {}\n", view.primary, view.shadow);
    assert!(answer.text.starts_with(&verdict), "{}", answer.text);
    let answer = doctor(playground.admin, &["nothing-of-the-kind"]).await?;
    assert_eq!((answer.code, answer.text.as_str()), (Some(1), ""));
    Ok(())
}
