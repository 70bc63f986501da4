//! A service without a database of its own: its requests move.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use godwit::cli::client::Client;
use godwit::controller::view::{MigrationView, ResourceView};
use godwit::demo::node::Node;
use godwit::demo::zone::free_ports;
use godwit_tests::http::Service;
use http::Response;
use http_body_util::Full;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;

use crate::leader::{PATIENCE, PROGRAM, until_answer};

/// Answers every request with `name`.
async fn serve(name: &'static str) -> Result<Service> {
    Service::start(move |_| Response::new(Full::new(Bytes::from(name)))).await
}

/// Who answers at the front.
async fn ask(front: &str) -> Result<String> {
    let mut stream = TcpStream::connect(front).await?;
    stream.write_all(b"GET / HTTP/1.1\r\nhost: shop.example\r\nconnection: close\r\n\r\n").await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let (head, body) = answer.split_once("\r\n\r\n").context("an answer")?;
    ensure!(head.starts_with("HTTP/1.1 200 "), "{answer}");
    Ok(body.to_owned())
}

async fn said(admin: &str, arguments: &[&str]) -> Result<(Option<i32>, String)> {
    let output = Command::new(PROGRAM).args(["--admin", admin]).args(arguments).output().await?;
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    Ok((output.status.code(), text.concat()))
}

/// Its guards that bind operators let it move.
fn ready(view: &ResourceView) -> bool {
    let mut guards = view.decision.iter().flat_map(|decision| &decision.guards);
    view.phase == "shadowing" && view.decision.is_some() && guards.all(|g| g.passed || !g.binds_operator)
}

fn write(folder: &Path, policy: &str, endpoints: [&Service; 2], front: &str, admin: &str) -> Result<PathBuf> {
    std::fs::create_dir_all(folder.join("policies"))?;
    std::fs::write(
        folder.join("policies/quick.yaml"),
        format!("name: quick\nretire: {{after: 100ms}}\n{policy}"),
    )?;
    let config = folder.join("godwit.yaml");
    let [one, other] = endpoints.map(|service| service.address);
    std::fs::write(
        &config,
        format!(
            "node: {{name: edge, zone: west, state: {}, admin: {{listen: \"{admin}\"}}, threads: 2}}\n\
             zones: {{west: {{country: IE}}, east: {{country: DE}}}}\n\
             resources:\n  shop:\n    fronts: {{http: {{listen: \"{front}\"}}}}\n    primary: west\n    policy: quick\n    placements:\n      \
             west: {{http: [\"{one}\"], probe: /}}\n      east: {{http: [\"{other}\"], probe: /}}\n",
            folder.join("state").display()
        ),
    )?;
    Ok(config)
}

/// A service in two zones, and a node in front of it.
struct Shop {
    _folder: tempfile::TempDir,
    front: String,
    admin: String,
    west: Service,
    east: Service,
    config: PathBuf,
    node: Node,
    client: Client,
}

impl Shop {
    async fn start(policy: &str) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let ports = free_ports(2)?;
        let [front, admin] = [ports[0], ports[1]].map(|port| format!("127.0.0.1:{port}"));
        let (west, east) = (serve("west").await?, serve("east").await?);
        let config = write(folder.path(), policy, [&west, &east], &front, &admin)?;
        let node = Node::start(Path::new(PROGRAM), &config, &[])?;
        let client = Client::new(&admin);
        Ok(Self { _folder: folder, front, admin, west, east, config, node, client })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_without_a_database_moves_as_well() -> Result<()> {
    let shop = Shop::start("").await?;
    let Shop { front, admin, config, mut node, client, .. } = shop;
    let path = "/api/v1/resources/shop";
    let view = until_answer(&mut node, &client, path, "it is ready", ready).await?;
    ensure!(view.replication.state == "none" && view.problems.is_empty(), "{view:#?}");
    let (code, status) = said(&admin, &["status", "shop"]).await?;
    ensure!(code == Some(0) && !status.contains("replication") && !status.contains("mode"), "{status}");
    let (code, doctor) = said(&admin, &["doctor", "shop"]).await?;
    ensure!(code == Some(0) && doctor.starts_with("GO"), "{doctor}");
    let (code, seed) = said(&admin, &["reseed", "shop"]).await?;
    ensure!(code != Some(0) && seed.contains("has no database"), "{seed}");
    for arguments in [
        &["schema", "diff", "shop"][..],
        &["schema", "sync", "shop"],
        &["reseed", "shop", "--table", "orders"],
        &["verify", "shop"],
    ] {
        let (code, refused) = said(&admin, arguments).await?;
        ensure!(
            code == Some(4) && refused.contains("has no database: there is no"),
            "{arguments:?}: {refused}"
        );
    }
    let (code, lost) = said(&admin, &["takeover", "shop", "--accept-loss"]).await?;
    ensure!(code != Some(0) && lost.contains("godwit migrate"), "{lost}");
    let (_, plan) = said(&admin, &["migrate", "shop", "--to", "east", "--dry-run"]).await?;
    ensure!(plan.contains("swap the pool") && !plan.contains("fence"), "{plan}");

    // One who asks all the time.
    let over = Arc::new(AtomicBool::new(false));
    let asks = {
        let (front, over) = (front.clone(), over.clone());
        tokio::spawn(async move {
            let mut heard = Vec::new();
            while !over.load(Ordering::Relaxed) {
                heard.push(ask(&front).await?);
            }
            anyhow::Ok(heard)
        })
    };
    for to in ["east", "west", "east"] {
        let body = client.send(&format!("{path}/migrations"), &json!({ "to": to })).await?;
        let plan: serde_json::Value = serde_json::from_slice(&body)?;
        let id = plan["id"].as_str().context("the migration's id")?;
        let moved = |view: &ResourceView| view.primary == to && ready(view);
        until_answer(&mut node, &client, path, "it moved", moved).await?;
        ensure!(ask(&front).await? == to, "another zone answers");
        let run: MigrationView = client.fetch(&format!("{path}/migrations/{id}")).await?;
        ensure!(run.state == "retired", "{run:#?}");
    }
    over.store(true, Ordering::Relaxed);
    let heard = asks.await??;
    let changes = heard.windows(2).filter(|two| two[0] != two[1]).count();
    ensure!(changes == 3, "{} answers, from another zone {changes} times", heard.len());

    // What a process that ended knew, the next one knows.
    drop(node);
    let mut node = Node::start(Path::new(PROGRAM), &config, &[])?;
    let stays = |view: &ResourceView| view.primary == "east" && ready(view);
    until_answer(&mut node, &client, path, "it is ready again", stays).await?;
    ensure!(ask(&front).await? == "east");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_moved_to_where_nothing_answers() -> Result<()> {
    let policy = "score: {step: 200ms, horizon: 10s}\n";
    let shop = Shop::start(policy).await?;
    let Shop { front, admin, west, mut node, client, .. } = shop;
    let path = "/api/v1/resources/shop";
    until_answer(&mut node, &client, path, "it is ready", ready).await?;

    // The zone that serves burns: that is told, and it can be left.
    drop(west);
    let told = |view: &ResourceView| {
        view.problems.iter().any(|what| what.starts_with("the service in west does not answer ("))
    };
    until_answer(&mut node, &client, path, "the silence is told", told).await?;
    let (code, doctor) = said(&admin, &["doctor", "shop"]).await?;
    ensure!(code == Some(0) && doctor.contains("warning  west: service: does not answer: "), "{doctor}");
    let (code, moved) = said(&admin, &["migrate", "shop", "--to", "east", "--wait"]).await?;
    ensure!(code == Some(0) && ask(&front).await? == "east", "{moved}");

    // There is no way back to it.
    let stays = |view: &ResourceView| {
        let silent =
            view.problems.iter().find(|what| what.starts_with("the service in west does not answer ("));
        view.phase == "shadowing" && silent.is_some_and(|what| what.ends_with(": the service stays in east"))
    };
    let view = until_answer(&mut node, &client, path, "it is told of the shadow", stays).await?;
    ensure!(!ready(&view), "{view:#?}");
    let (code, doctor) = said(&admin, &["doctor", "shop"]).await?;
    ensure!(code == Some(4) && doctor.contains("blocker  west: service: does not answer: "), "{doctor}");
    let (code, plan) = said(&admin, &["plan", "shop", "--to", "west"]).await?;
    ensure!(code == Some(4) && plan.contains("service answers"), "{plan}");
    let (code, refused) = said(&admin, &["migrate", "shop", "--to", "west"]).await?;
    ensure!(code == Some(4) && refused.contains("service answers: "), "{refused}");
    ensure!(ask(&front).await? == "east");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_leads_nowhere_keeps_nobody_from_being_served() -> Result<()> {
    let shop = Shop::start("score: {step: 200ms, horizon: 10s}\n").await?;
    let Shop { front, admin, east, config, node, client, .. } = shop;
    drop(node);
    let (text, east) = (std::fs::read_to_string(&config)?, east.address.to_string());
    std::fs::write(&config, text.replace(&east, "nowhere.invalid:80"))?;
    let mut node = Node::start(Path::new(PROGRAM), &config, &[])?;
    let told = |view: &ResourceView| {
        view.phase == "shadowing"
            && view
                .problems
                .iter()
                .any(|what| what == "the endpoint nowhere.invalid:80 in east cannot be resolved")
    };
    until_answer(&mut node, &client, "/api/v1/resources/shop", "it is told", told).await?;
    ensure!(ask(&front).await? == "west");
    let (code, moved) = said(&admin, &["migrate", "shop", "--to", "east", "--wait"]).await?;
    ensure!(code != Some(0) && ask(&front).await? == "west", "{moved}");
    Ok(())
}

/// Steps may be minutes apart: the service is asked anew before anybody is held.
#[tokio::test(flavor = "multi_thread")]
async fn what_answered_long_ago_is_asked_again() -> Result<()> {
    let policy = "score: {step: 30m, horizon: 3h, sustain: 1h}\n";
    let shop = Shop::start(policy).await?;
    let Shop { front, admin, east, mut node, client, .. } = shop;
    let path = "/api/v1/resources/shop";
    let answered = |view: &ResourceView| {
        ready(view) && view.placements.iter().all(|placement| matches!(placement.http_probe, Some(Ok(_))))
    };
    until_answer(&mut node, &client, path, "both answer", answered).await?;
    drop(east);
    let (code, undone) = said(&admin, &["migrate", "shop", "--to", "east", "--wait"]).await?;
    ensure!(code != Some(0) && undone.contains("the service in east does not answer: "), "{undone}");
    let back = |view: &ResourceView| view.primary == "west" && view.phase == "shadowing";
    until_answer(&mut node, &client, path, "it stays", back).await?;
    ensure!(ask(&front).await? == "west");
    Ok(())
}

/// What is not there is an error, what is in the way refuses, and programs are told on standard output.
#[tokio::test(flavor = "multi_thread")]
async fn exit_codes_say_what_the_readme_says() -> Result<()> {
    let shop = Shop::start("score: {step: 200ms, horizon: 10s}\n").await?;
    let Shop { admin, config, mut node, client, .. } = shop;
    let shadowing = |view: &ResourceView| view.phase == "shadowing";
    until_answer(&mut node, &client, "/api/v1/resources/shop", "it is there", shadowing).await?;
    let expect = async |arguments: &str, code: i32, says: &str| {
        let words: Vec<&str> = arguments.split(' ').collect();
        let (found, text) = said(&admin, &words).await?;
        ensure!(found == Some(code) && text.contains(says), "{arguments}: {found:?} {text}");
        anyhow::Ok(())
    };
    for verb in
        ["status", "explain", "migrate --to east", "takeover", "reseed", "schema sync", "verify", "history"]
    {
        let (name, rest) =
            verb.split_once(" --").map_or((verb, String::new()), |(name, rest)| (name, format!(" --{rest}")));
        expect(&format!("{name} nope{rest}"), 1, "there is no resource \"nope\"").await?;
    }
    expect("-o json status nope", 1, "\"detail\": \"there is no resource \\\"nope\\\"\"").await?;
    expect("migrate shop --to west", 4, "godwit: refused: ").await?;
    expect("-o json migrate shop --to west", 4, "\"status\": 409").await?;
    expect("unfreeze shop", 4, "godwit freezes").await?;
    expect("freeze shop --why release --for 0s", 2, "longer than nothing").await?;
    expect("freeze shop --why release --for 1h", 0, "release").await?;
    expect("freezes", 0, "release").await?;
    expect("log inof", 1, "did you mean `info`?").await?;
    expect("log info", 0, "info").await?;
    // Nobody reads: that is no error, and `--watch` ends.
    for arguments in [&["zones", "--catalogue"][..], &["status", "--watch"], &["completions", "bash"]] {
        let (reader, writer) = std::io::pipe()?;
        drop(reader);
        let mut asked = Command::new(PROGRAM);
        asked.args(["--admin", &admin]).args(arguments).kill_on_drop(true);
        let asked = asked.stdout(writer).stderr(Stdio::piped()).spawn()?;
        let output = tokio::time::timeout(PATIENCE, asked.wait_with_output()).await??;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success() && errors.is_empty(), "{arguments:?}: {} {errors}", output.status);
    }

    let text = std::fs::read_to_string(&config)?;
    std::fs::write(&config, text.replace("policy: quick", "policy: quack"))?;
    expect("config diff", 3, "did you mean `quick`?").await?;
    expect("config reload", 3, "did you mean `quick`?").await?;
    std::fs::write(&config, text.replace("primary: west", "primary: east"))?;
    expect("config diff", 0, "godwit migrate moves it").await?;

    // What is no text is no name.
    let mut stream = TcpStream::connect(&admin).await?;
    let request = format!("GET /api/v1/resources/%ff HTTP/1.1\r\nhost: {admin}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    ensure!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("application/problem+json"), "{answer}");
    Ok(())
}
