//! Resources that are reserved over the API, changed section by section, and dropped again.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use godwit::admin::SectionView;
use godwit::audit::verify::verify;
use godwit::cli::client::Client;
use godwit::controller::view::ResourceView;
use godwit::demo::node::Node;
use godwit::demo::zone::{DATABASE, GODWIT_ROLE, SERVICE_ROLE, free_ports};
use godwit::leading::changes::Reservation;
use godwit::leading::comparison::ConfigView;
use http::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::drivers::{Fleet, PATIENCE, folder_of, movable, policy, problem, until};
use crate::events::Stream;
use crate::leader::{connect, load};

#[tokio::test(flavor = "multi_thread")]
async fn a_resource_is_reserved_changed_and_dropped_by_the_api() -> Result<()> {
    let fleet = Fleet::new(&policy("")).await?;
    // The file's resource is another one, so that the reserved one can have the service to itself.
    let near = fleet.near();
    let ports = free_ports(4)?;
    let other = format!(
        "  other:\n    fronts: {{http: {{listen: \"127.0.0.1:{}\"}}}}\n    primary: {near}\n    policy: playground\n    \
         placements: {{{near}: {{http: [\"127.0.0.1:1\"]}}, far: {{http: [\"127.0.0.1:2\"]}}}}\n",
        ports[0],
        near = near.name
    );
    std::fs::write(&fleet.config, format!("{}{other}", fleet.text(false)))?;
    let client = fleet.client();
    let mut node = fleet.start()?;
    until(&mut node, &client, "other", "the node runs", |_| true).await?;

    let workers: Vec<String> = near.workers_from_leader.iter().map(ToString::to_string).collect();
    let spec = json!({
        "name": "cart", "location": "flexible", "driver": "fleet", "primary": near.name, "policy": "chosen",
        "fronts": { "http": { "listen": fleet.playground.front.to_string() },
                    "postgres": { "listen": format!("127.0.0.1:{}", ports[2]), "auth": "trust" } },
        "placements": { &near.name: {
            "http": workers, "capacity": 2,
            "postgres": { "dsn": format!("postgres://{GODWIT_ROLE}@{}/{DATABASE}", near.database),
                          "app_roles": [SERVICE_ROLE] } } },
    });
    refusals(&client, &spec).await?;

    let dry: Reservation =
        serde_json::from_slice(&client.send("/api/v1/resources?dry_run=true", &spec).await?)?;
    ensure!(dry.shadow == "far" && dry.steps.iter().any(|step| step.contains("make a cluster")), "{dry:#?}");
    ensure!(fleet.asked("provision").is_empty(), "a dry run made something");
    let key = [("idempotency-key", "cart-1")];
    let (body, headers) = client.call_with(Method::POST, "/api/v1/resources", Some(&spec), &key).await?;
    ensure!(
        headers["location"] == "/api/v1/resources/cart" && !headers.contains_key("idempotent-replayed"),
        "{headers:?}"
    );
    let (again, headers) = client.call_with(Method::POST, "/api/v1/resources", Some(&spec), &key).await?;
    ensure!(again == body && headers.contains_key("idempotent-replayed"), "{again:?}");
    let mut another = spec.clone();
    another["policy"] = "playground".into();
    let error =
        client.call_with(Method::POST, "/api/v1/resources", Some(&another), &key).await.expect_err("refused");
    ensure!(problem(&error)?.status == 409, "{error:#}");
    let dry = client.call_with(Method::POST, "/api/v1/resources?dry_run=true", Some(&spec), &key).await;
    ensure!(problem(&dry.expect_err("another request"))?.status == 409, "a dry run is told of a reservation");
    until(&mut node, &client, "cart", "the shadow is ready", movable).await?;
    let load = load(&fleet.playground, 50.0, "cart");
    until(&mut node, &client, "cart", "the new front answers", |_| load.snapshot().acknowledged > 10).await?;
    let outcome = load.stop().await;
    ensure!(outcome.totals.failed == 0, "{:#?}", outcome.failures);
    ensure!(count(&session(ports[2]).await?).await? > 0, "its database is reached through it");

    // Refused while somebody is connected to the shadow, which goes on.
    let stranger = fleet.stranger(GODWIT_ROLE).await?;
    let dropped = client.call_with(Method::DELETE, "/api/v1/resources/cart", None, &[]).await;
    let error = dropped.expect_err("refused");
    ensure!(problem(&error)?.status == 409 && problem(&error)?.detail.contains("report-job"), "{error:#}");
    let view: ResourceView = client.fetch("/api/v1/resources/cart").await?;
    ensure!(view.phase == "shadowing", "{view:#?}");
    let slots = "SELECT count(*) FROM pg_replication_slots WHERE active";
    let slots: i64 = connect(fleet.near()).await?.query_one(slots, &[]).await?.get(0);
    ensure!(slots > 0, "its stream has ended");
    stranger.leave().await?;

    changed(&fleet, &mut node, &client).await?;

    // What was reserved and changed is there after a restart.
    drop(node);
    let mut node = fleet.start()?;
    let view = until(&mut node, &client, "cart", "it serves after a restart", |view| view.decision.is_some())
        .await?;
    ensure!(view.phase == "idle", "the shadow was switched off: {view:#?}");
    let config: ConfigView = client.fetch("/api/v1/config").await?;
    let origin = |key: &str| config.entries.iter().find(|one| one.key == key).map(|one| one.origin.clone());
    let listen = origin("resources.cart.fronts.http.listen").context("the key")?;
    ensure!(listen.contains("overlay.json:"), "{listen}");
    let node_name = origin("node.name").context("the key")?;
    ensure!(node_name.contains("godwit.yaml:1:"), "{node_name}");

    // Clients that are connected may end what they have begun.
    let (idle, busy) = (session(ports[2]).await?, session(ports[2]).await?);
    busy.batch_execute("BEGIN; SELECT 1").await?;
    let (_, mut told) = Stream::open(&fleet.admin, "?resource=cart", None).await?;
    client.call_with(Method::DELETE, "/api/v1/resources/cart", None, &[]).await?;
    told.until("it is told that it is gone", |told| told.event == "gone" && told.data.contains("\"cart\""))
        .await?;
    ensure!(count(&idle).await.is_err(), "a session went on");
    ensure!(count(&busy).await? > 0, "a transaction was cut off");
    busy.batch_execute("COMMIT").await?;
    ensure!(count(&busy).await.is_err(), "a session went on");
    let let_in = async { count(&session(ports[2]).await?).await };
    ensure!(let_in.await.is_err(), "a front of nobody lets somebody in");
    let error = client.fetch::<ResourceView>("/api/v1/resources/cart").await.expect_err("refused");
    ensure!(problem(&error)?.status == 404, "{error:#}");
    ensure!(fleet.made().await.is_err() && fleet.asked("deprovision").len() == 1, "the shadow still runs");
    // The listener was there when the node started again, so it stays; nobody is behind it.
    let answer = ask(fleet.playground.front).await?;
    ensure!(answer.starts_with("HTTP/1.1 404 "), "its front still serves: {answer}\n{}", node.tail(40));
    let error =
        client.call_with(Method::DELETE, "/api/v1/resources/other", None, &[]).await.expect_err("refused");
    ensure!(problem(&error)?.status == 409, "what is in the file is not dropped: {error:#}");

    // Once more, and dropped by the node that it joined: its listener closes.
    let mut spec = spec;
    spec["fronts"]["postgres"]["listen"] = format!("127.0.0.1:{}", ports[3]).into();
    // By the key of the first time: what that was answered went with the resource.
    let (_, headers) = client.call_with(Method::POST, "/api/v1/resources", Some(&spec), &key).await?;
    ensure!(!headers.contains_key("idempotent-replayed"), "{headers:?}");
    until(&mut node, &client, "cart", "it is there again", |view| view.phase != "idle").await?;
    let session_again = session(ports[3]).await?;
    ensure!(count(&session_again).await? > 0, "its database is reached through it");
    client.call_with(Method::DELETE, "/api/v1/resources/cart", None, &[]).await?;
    ensure!(count(&session_again).await.is_err(), "a session went on");
    ensure!(tokio::net::TcpStream::connect(("127.0.0.1", ports[3])).await.is_err(), "it still listens");
    node.check()?;
    Ok(())
}

/// Nobody who drops a resource, or changes another one, waits for a driver.
#[tokio::test(flavor = "multi_thread")]
async fn a_resource_whose_driver_never_answers_is_dropped_all_the_same() -> Result<()> {
    let fleet = Fleet::new(&policy("")).await?;
    let hold = fleet.home.join("hold");
    std::fs::write(&hold, "")?;
    let script = format!(
        "#!/bin/sh\nread -r request\nprintf '%s\\n' \"$request\" >> {}\nwhile [ -e {} ]; do sleep 0.05; done\nexit 1\n",
        fleet.log().display(),
        hold.display()
    );
    std::fs::write(fleet.home.join("driver.sh"), script)?;
    let ports = free_ports(2)?;
    let near = &fleet.near().name;
    let resource = |port: u16, more: &Value| {
        let mut one = json!({
            "fronts": { "http": { "listen": format!("127.0.0.1:{port}") } }, "primary": near, "policy": "playground",
            "placements": { near: { "http": ["127.0.0.1:1", "127.0.0.1:3"] }, "far": { "http": ["127.0.0.1:2", "127.0.0.1:4"] } },
        });
        if let (Some(placement), Some(more)) = (one["placements"][near].as_object_mut(), more.as_object()) {
            placement.extend(more.clone());
        }
        one
    };
    let text = fleet.text(false).replace("deadline: 60s", "deadline: 10m");
    let other = resource(ports[0], &json!({})).to_string().replace("\":", "\": ");
    std::fs::write(&fleet.config, format!("{text}  other: {other}\n"))?;
    let client = fleet.client();
    let mut node = fleet.start()?;
    until(&mut node, &client, "other", "the node runs", |_| true).await?;
    let mut cart = resource(ports[1], &json!({ "driver": "fleet", "capacity": 1 }));
    cart["name"] = "cart".into();
    client.send("/api/v1/resources", &cart).await?;
    godwit_tests::waiting::until("its driver is asked", async || Ok(!fleet.asked("status").is_empty()))
        .await?;
    client.call_with(Method::DELETE, "/api/v1/resources/cart", None, &[]).await?;
    let path = "/api/v1/resources/other/scaling";
    let (_, tag) = client.fetch_tagged::<Value>(path).await?;
    let _: SectionView = client.replace(path, &json!({ "capacity": { near: 1, "far": 1 } }), &tag).await?;
    node.check()
}

/// A client of the database itself, through the front at this port.
async fn session(port: u16) -> Result<tokio_postgres::Client> {
    let to = format!("host=127.0.0.1 port={port} user={SERVICE_ROLE} dbname={DATABASE}");
    let (client, connection) = tokio_postgres::connect(&to, tokio_postgres::NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

async fn count(client: &tokio_postgres::Client) -> Result<i64> {
    Ok(client.query_one("SELECT count(*) FROM orders", &[]).await?.get(0))
}

/// Each wrong request is answered with the place of what is wrong.
async fn refusals(client: &Client, spec: &Value) -> Result<()> {
    let path = "/api/v1/resources";
    let taken = std::net::TcpListener::bind("127.0.0.1:0")?;
    let mut logged = spec["fronts"]["http"].clone();
    logged["access_log"] = json!({"file": "audit/000000000001.jsonl", "sample": "100%"});
    let edits: [(&str, Value, u16, &str); 8] = [
        ("/primary", "nowhere".into(), 422, "/primary"),
        ("/policy", "brave".into(), 422, "/policy"),
        ("/driver", "fleeet".into(), 422, "/driver"),
        ("/fronts/http/listen", ":80".into(), 422, "/fronts/http/listen"),
        ("/fronts/postgres/listen", taken.local_addr()?.to_string().into(), 422, "/fronts/postgres/listen"),
        ("/fronts/http", logged, 422, "/fronts/http/access_log/file"),
        ("/name", "other".into(), 409, ""),
        ("/name", 7.into(), 422, "/name"),
    ];
    for (pointer, value, status, place) in edits {
        let mut wrong = spec.clone();
        *wrong.pointer_mut(pointer).context("the key")? = value;
        let error = client.send(path, &wrong).await.expect_err("refused");
        let found = problem(&error)?;
        let places: Vec<&str> = found.errors.iter().map(|one| one.pointer.as_str()).collect();
        ensure!(
            found.status == status && (place.is_empty() || places.contains(&place)),
            "{pointer}: {found:#?}"
        );
    }
    let key = [("idempotency-key", "has a space")];
    let error = client.call_with(Method::POST, path, Some(spec), &key).await.expect_err("refused");
    ensure!(problem(&error)?.status == 422, "{error:#}");
    Ok(())
}

/// What a listener answers to a request.
async fn ask(listener: std::net::SocketAddr) -> Result<String> {
    let mut connection = tokio::net::TcpStream::connect(listener).await?;
    connection.write_all(b"GET /healthz HTTP/1.1\r\nHost: cart\r\nConnection: close\r\n\r\n").await?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await?;
    Ok(answer)
}

/// Sections are changed by who saw them last, at once and for good.
async fn changed(fleet: &Fleet, node: &mut Node, client: &Client) -> Result<()> {
    let path = "/api/v1/resources/cart/shadow";
    let (section, tag) = client.fetch_tagged::<SectionView>(path).await?;
    ensure!(section.value["enabled"] == true && section.origin == "policy chosen", "{section:#?}");
    let body = json!({ "enabled": false, "capacity": "50%" });
    let error = client.call_with(Method::PUT, path, Some(&body), &[]).await.expect_err("refused");
    ensure!(problem(&error)?.status == 428, "{error:#}");
    let error = client.replace::<Value>(path, &body, "\"0\"").await.expect_err("refused");
    ensure!(problem(&error)?.status == 412, "{error:#}");
    let wrong = json!({ "enabled": "yes", "capcity": "50%" });
    let error = client.replace::<Value>(path, &wrong, &tag).await.expect_err("refused");
    let found = problem(&error)?;
    let mut places: Vec<&str> = found.errors.iter().map(|one| one.pointer.as_str()).collect();
    places.sort_unstable();
    ensure!(found.status == 422 && places == ["/capcity", "/enabled"], "{found:#?}");

    // More workers while it is led.
    let (_, scaling) = client.fetch_tagged::<Value>("/api/v1/resources/cart/scaling").await?;
    let near = fleet.near().name.clone();
    let error = client
        .replace::<Value>("/api/v1/resources/cart/scaling", &json!({ "capacity": { &near: 9 } }), &scaling)
        .await
        .expect_err("refused");
    ensure!(problem(&error)?.errors[0].pointer == format!("/capacity/{near}"), "{error:#}");

    // What the driver could not do is a problem until it can.
    let broken = fleet.home.join("broken");
    std::fs::write(&broken, "")?;
    let fails =
        |view: &ResourceView| view.problems.iter().any(|problem| problem.starts_with("adjust_shadow failed"));
    let all = json!({ "enabled": true, "capacity": "100%" });
    client.replace::<Value>(path, &all, &tag).await?;
    until(node, client, "cart", "the driver fails", fails).await?;
    std::fs::remove_file(&broken)?;
    let (_, tag) = client.fetch_tagged::<Value>(path).await?;
    let half = json!({ "enabled": true, "capacity": "50%" });
    client.replace::<Value>(path, &half, &tag).await?;
    until(node, client, "cart", "that is no problem any more", |view| !fails(view)).await?;
    let (_, tag) = client.fetch_tagged::<Value>(path).await?;

    let (_, replication) = client.fetch_tagged::<Value>("/api/v1/resources/cart/replication").await?;
    let mode = json!({ "mode": "sync", "fallback": { "after": "7s" } });
    let now: SectionView = client.replace("/api/v1/resources/cart/replication", &mode, &replication).await?;
    ensure!(now.value["mode"] == "sync" && now.value["fallback"]["after"] == "7s", "{now:#?}");
    until(node, client, "cart", "commits wait for the shadow", |view| {
        view.replication.mode.effective == "sync"
    })
    .await?;

    let now: SectionView = client.replace(path, &body, &tag).await?;
    ensure!(now.value["enabled"] == false && now.origin != "policy chosen", "{now:#?}");
    until(node, client, "cart", "no shadow is kept", |view| view.phase == "idle").await?;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let change = loop {
        let records: Vec<Value> = client.fetch("/api/v1/audit?limit=200").await?;
        let found = records.iter().find(|one| one["kind"] == "changed" && one["section"] == "shadow");
        if let Some(found) = found {
            break found.clone();
        }
        ensure!(tokio::time::Instant::now() < deadline, "no record: {records:#?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    ensure!(change["before"]["enabled"] == true && change["after"]["enabled"] == false, "{change:#?}");
    let audit = folder_of(&fleet.config).join("state/audit");
    ensure!(verify(&audit, &[], None)?.broken.is_none(), "the audit is not whole");
    Ok(())
}
