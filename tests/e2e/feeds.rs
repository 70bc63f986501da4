//! Feeds of a running node: what another service says changes the score; what has become stale is unknown, not 0.

use std::net::SocketAddr;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use godwit::admin::HistoryView;
use godwit::controller::view::{DecisionView, TermView};
use godwit::demo::zone::{Playground, RESOURCE};
use godwit::feeds::external::decode::Decode;
use godwit::feeds::external::fetch::postgres::Databases;
use godwit::feeds::external::fetch::{Reach, Validators, fetch};
use godwit::feeds::external::finding::Finding;
use godwit::feeds::external::map::Program;
use godwit::feeds::external::places::Places;
use godwit::feeds::external::view::FeedView;
use godwit::feeds::external::{Feed, Reason, Secret, Source, Use, webhook};
use godwit_tests::http as service;
use godwit_tests::postgres::{SUPERUSER, TestCluster};
use godwit_tests::waiting::until;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioExecutor;

use crate::leader::{Leader, PROGRAM, of_node, options};

const SECRET: &str = "a secret of the test";

/// What the service says now: a status and a document by path.
#[derive(Default)]
struct Says {
    broken: bool,
    prices: String,
    works: String,
}

struct Service {
    running: service::Service,
    says: Arc<Mutex<Says>>,
}

impl Service {
    async fn start() -> Result<Self> {
        let says = Arc::<Mutex<Says>>::default();
        let shared = Arc::clone(&says);
        let running = service::Service::start(move |request| {
            let says = shared.lock().expect("never poisoned");
            let (status, body) = match request.uri().path() {
                _ if says.broken => (StatusCode::INTERNAL_SERVER_ERROR, String::new()),
                "/prices" => (StatusCode::OK, says.prices.clone()),
                "/api/v2/scheduled-maintenances.json" => (StatusCode::OK, says.works.clone()),
                _ => (StatusCode::NOT_FOUND, String::new()),
            };
            let mut response = Response::new(Full::new(Bytes::from(body)));
            *response.status_mut() = status;
            response
        })
        .await?;
        Ok(Self { running, says })
    }

    fn say(&self, change: impl FnOnce(&mut Says)) {
        change(&mut self.says.lock().expect("never poisoned"));
    }
}

/// The playground's configuration with feeds.
fn with_feeds(playground: &Playground, service: SocketAddr) -> Result<()> {
    let text = of_node(playground, "egress: {allow: [127.0.0.1]}")?;
    std::fs::write(playground.config.with_file_name("hook"), SECRET)?;
    let [west, central] = playground.zones.each_ref().map(|zone| &zone.name);
    let feeds = format!(
        "
feeds:
  prices:
    url: http://{service}/prices
    map: '[to_entries[] | {{zone: .key, value: .value}}]'
    use: cost
    every: 1s
    stale_after: 3s
  works:
    preset: statuspage
    url: http://{service}
    zones: {{{west}: \"*dublin*\", {central}: \"*frankfurt*\"}}
    every: 1s
  busy:
    webhook: {{secret: {{file: hook}}}}
    map: '[to_entries[] | {{zone: .key, value: .value, unit: \"%\"}}]'
    use: utilization
    stale_after: 1h
  sessions: {{postgres: {{}}, resource: orders, use: utilization, every: 1s}}
  tables:
    postgres: {{query: \"select count(*) from pg_class where relname = 'orders'\"}}
    resource: orders
    use: events
    every: 1s
"
    );
    Ok(std::fs::write(&playground.config, text + &feeds)?)
}

async fn decision(
    leader: &mut Leader<'_>,
    what: &str,
    reached: impl Fn(&DecisionView) -> bool,
) -> Result<DecisionView> {
    let view = leader.until(what, |view| view.decision.as_ref().is_some_and(&reached)).await?;
    // The route that a person asks says the same.
    let shown: DecisionView = leader.client.fetch(&format!("/api/v1/resources/{RESOURCE}/score")).await?;
    ensure!(shown.terms.len() == 3, "{shown:#?}");
    view.decision.context("a decision")
}

fn term<'d>(decision: &'d DecisionView, name: &str) -> &'d TermView {
    decision.terms.iter().find(|term| term.name == name).expect("the term")
}

fn near(term: &TermView, raw: f64) -> bool {
    term.raw.is_some_and(|value| (value - raw).abs() < 1e-6)
}

/// Awaits that the history has what the forecasters of `zone` were told of maintenance: these values, in turn.
async fn told(leader: &Leader<'_>, zone: &str, values: [f64; 2]) -> Result<()> {
    let path = format!("/api/v1/resources/{RESOURCE}/history?series=told_maintenance");
    until(&format!("the history has what was told of {zone}"), async || {
        let page: HistoryView = leader.client.fetch(&path).await?;
        let series = page.series.iter().position(|series| series.zone == zone);
        let mut kept: Vec<f64> =
            page.rows.iter().filter(|row| Some(row.series) == series).map(|row| row.mean).collect();
        kept.dedup();
        Ok(kept == values)
    })
    .await
}

async fn request(address: SocketAddr, request: Request<Full<Bytes>>) -> Result<(StatusCode, String)> {
    let client = hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build_http();
    let (mut parts, body) = request.into_parts();
    parts.uri = format!("http://{address}{}", parts.uri).parse()?;
    let response = client.request(Request::from_parts(parts, body)).await?;
    let status = response.status();
    Ok((status, String::from_utf8(response.into_body().collect().await?.to_bytes().to_vec())?))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_feed_says_changes_the_score_until_it_is_stale() -> Result<()> {
    let service = Service::start().await?;
    let playground = Playground::start(&options(false)?).await?;
    with_feeds(&playground, service.running.address)?;
    let [west, central] = playground.zones.each_ref().map(|zone| zone.name.clone());
    service.say(|says| {
        says.prices = format!(r#"{{"{west}": 0.8, "{central}": 0.2, "mars": 1}}"#);
        says.works = r#"{"scheduled_maintenances": []}"#.into();
    });
    let mut leader = Leader::start(&playground, &[])?;

    // Configured are 0.40 and 0.32; the feed says otherwise.
    let fresh =
        decision(&mut leader, "the feed's cost is in the score", |d| near(term(d, "cost"), 0.75)).await?;
    let cost = term(&fresh, "cost");
    ensure!(cost.source == "feed prices" && cost.age_ms.is_some_and(|age| age < 3000), "{cost:#?}");
    // One worker's, as the dashboard shows it.
    for placement in leader.view().await?.placements {
        let price = if placement.zone == west { 0.8 } else { 0.2 };
        let cost = &placement.cost;
        ensure!(cost.value.is_some_and(|value| (value - price).abs() < 1e-9), "{placement:#?}");
        ensure!(cost.source == "feed prices", "{placement:#?}");
    }

    // A window of the target is a guard.
    let begun = godwit::clock::now().0 / 1000 - 60;
    let component = r#"[{"name": "Frankfurt (FRA1)"}]"#;
    service.say(|says| {
        says.works = format!(
            r#"{{"scheduled_maintenances": [{{"id": "1", "name": "New routers", "status": "in_progress",
               "scheduled_for": {begun}, "scheduled_until": {}, "impact": "maintenance", "components": {component}}}]}}"#,
            begun + 36_000
        );
    });
    let guarded = decision(&mut leader, "the guard fails", |d| {
        d.guards.iter().any(|guard| guard.name == "no maintenance ahead" && !guard.passed)
    })
    .await?;
    let guard =
        guarded.guards.iter().find(|guard| guard.name == "no maintenance ahead").expect("found before");
    ensure!(guard.value == format!("maintenance of {central} ends in 9 h: New routers"), "{guard:#?}");
    ensure!(!guard.binds_operator, "{guard:#?}");
    told(&leader, &central, [0.0, 1.0]).await?;

    // What is posted counts as soon as it is signed.
    let body = format!(r#"{{"{west}": 90, "{central}": 10}}"#);
    let post = |signature: Option<String>| {
        let mut request = Request::post("/api/v1/feeds/busy");
        if let Some(signature) = signature {
            request = request.header("Godwit-Signature", signature);
        }
        request.body(Full::new(Bytes::from(body.clone())))
    };
    let (status, problem) = request(playground.admin, post(None)?).await?;
    ensure!(status == StatusCode::FORBIDDEN && problem.contains("is missing"), "{status} {problem}");
    let signature = webhook::sign(&Secret(SECRET.into()), body.as_bytes(), godwit::clock::now());
    let (status, answer) = request(playground.admin, post(Some(signature.clone()))?).await?;
    ensure!(status == StatusCode::ACCEPTED && answer == r#"{"readings":2}"#, "{status} {answer}");
    let (status, problem) = request(playground.admin, post(Some(signature))?).await?;
    ensure!(status == StatusCode::FORBIDDEN && problem.contains("no later than"), "{status} {problem}");
    let busy =
        decision(&mut leader, "what was posted is in the score", |d| near(term(d, "utilization"), 0.8))
            .await?;
    ensure!(term(&busy, "utilization").source == "feed busy", "{busy:#?}");

    // The shadow has its tables by then.
    leader.ready().await?;
    // The service breaks: what it said stands for a while, then the configured costs do, and say why.
    service.say(|says| says.broken = true);
    let stale = decision(&mut leader, "the configured cost is back", |d| near(term(d, "cost"), 0.2)).await?;
    let source = &term(&stale, "cost").source;
    ensure!(
        source.starts_with("configuration, because the newest of feed prices is ")
            && source.ends_with("3 s are allowed; source: answered 500"),
        "{source}"
    );
    let feeds: Vec<FeedView> = leader.client.fetch("/api/v1/feeds").await?;
    let prices = feeds.iter().find(|feed| feed.name == "prices").context("prices")?;
    ensure!(prices.state == "stale" && prices.elsewhere == 1 && prices.readings_total == 2, "{prices:#?}");
    ensure!(prices.last_error.as_ref().is_some_and(|error| error.reason == "status"), "{prices:#?}");
    ensure!(prices.next_ms.is_some() && prices.age_ms.is_some_and(|age| age > 3000), "{prices:#?}");
    // Both databases are asked, here how busy they are (`busy` is believed before it) and what they have.
    for name in ["sessions", "tables"] {
        let feed = feeds.iter().find(|feed| feed.name == name).context(name)?;
        ensure!(feed.state == "fresh" && feed.readings_total == 2, "{feed:#?}");
        let values = feed.readings.iter().filter_map(|finding| match finding {
            Finding::Value(value) => Some(value.value),
            Finding::Event(_) => None,
        });
        let right = |value: f64| if name == "tables" { value >= 1.0 } else { (0.0..1.0).contains(&value) };
        ensure!(values.into_iter().all(right), "{feed:#?}");
    }
    // A window that was announced does not go away with its feed.
    let guard =
        stale.guards.iter().find(|guard| guard.name == "no maintenance ahead").context("the guard")?;
    ensure!(!guard.passed, "{guard:#?}");
    let metrics = Request::get("/metrics").body(Full::default())?;
    let (_, metrics) = request(playground.admin, metrics).await?;
    for line in [
        "godwit_feed_age_seconds{feed=\"prices\"} ",
        "godwit_feed_failures_total{feed=\"prices\",reason=\"status\"} ",
    ] {
        ensure!(metrics.contains(line), "{line} is not in {metrics}");
    }
    drop(leader);

    // Nothing is configured: the term is unknown, gives nothing, and says why.
    let text = std::fs::read_to_string(&playground.config)?;
    let text: Vec<&str> = text.lines().filter(|line| !line.trim_start().starts_with("cost: ")).collect();
    std::fs::write(&playground.config, text.join("\n"))?;
    service.say(|says| says.broken = false);
    let mut leader = Leader::start(&playground, &[])?;
    decision(&mut leader, "the feed's cost is in the score again", |d| near(term(d, "cost"), 0.75)).await?;
    service.say(|says| says.broken = true);
    let unknown = decision(&mut leader, "the cost is unknown", |d| term(d, "cost").raw.is_none()).await?;
    let cost = term(&unknown, "cost");
    ensure!(cost.points.abs() < f64::EPSILON && cost.points_lower.abs() < f64::EPSILON, "{cost:#?}");
    ensure!(cost.source.starts_with("unknown: the newest of feed prices is "), "{cost:#?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_feed_is_tried_stage_by_stage_without_a_node() -> Result<()> {
    let service = Service::start().await?;
    service.say(|says| says.prices = r#"{"west": 0.8, "east": 0.2}"#.into());
    let folder = tempfile::tempdir()?;
    let config = folder.path().join("godwit.yaml");
    let golden = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/feeds");
    std::fs::write(
        &config,
        format!(
            "
node: {{name: edge-1, zone: west, egress: {{allow: [127.0.0.1, status.example]}}}}
zones: {{west: {{}}, east: {{}}}}
resources:
  orders:
    fronts: {{http: {{listen: \"127.0.0.1:0\"}}}}
    placements: {{west: {{http: [\"127.0.0.1:1\"]}}, east: {{http: [\"127.0.0.1:2\"]}}}}
    primary: west
feeds:
  prices:
    url: http://{}/prices
    map: '[to_entries[] | {{zone: .key, value: .value}}]'
    use: cost
    every: 1m
  works: {{preset: statuspage, url: \"https://status.example\", zones: {{west: \"*dub1*\", east: \"*fra1*\"}}}}
",
            service.running.address
        ),
    )?;
    let tried = |arguments: &[&str]| {
        let output = Command::new(PROGRAM)
            .args(["feeds", "test", "-c"])
            .arg(&config)
            .args(arguments)
            .env("NO_COLOR", "1")
            .output();
        let output = output.expect("the program runs");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    let run = |arguments: Vec<String>| {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        tried(&arguments)
    };
    let fixture = |name: &str| golden.join(name).display().to_string();

    let arguments = vec!["prices".to_owned()];
    let (code, out, err) = tokio::task::block_in_place(|| run(arguments));
    ensure!(code == Some(0), "{code:?} {out} {err}");
    ensure!(out.contains("{east: number, west: number}") && out.contains("2 readings"), "{out}");

    let arguments =
        vec!["works".into(), "--fixture".into(), fixture("statuspage-scheduled-maintenances.json")];
    let (code, out, err) = tokio::task::block_in_place(|| run(arguments));
    ensure!(code == Some(0) && out.contains("2 readings, 1 about other places"), "{code:?} {out} {err}");
    ensure!(out.contains("east  maintenance  Network maintenance in Frankfurt (FRA1)"), "{out}");

    for (arguments, stage) in [
        (
            vec!["works".to_owned(), "--fixture".into(), fixture("rss-status.xml")],
            "works: decode: is not JSON",
        ),
        (
            vec!["works".into(), "--fixture".into(), fixture("prometheus-vector.json")],
            "works: map: the program failed",
        ),
        (vec!["works".into(), "--fixture".into(), fixture("missing.json")], "works: source: "),
        (vec!["nothing".into()], "has no feed \"nothing\"; it has: prices, works"),
    ] {
        let (code, out, err) = tokio::task::block_in_place(|| run(arguments));
        ensure!(code == Some(1) && err.contains(stage), "{code:?} {out} {err}");
    }
    let arguments =
        vec!["works".into(), "-o".into(), "json".into(), "--fixture".into(), fixture("rss-status.xml")];
    let (code, out, _) = tokio::task::block_in_place(|| run(arguments));
    let trial: serde_json::Value = serde_json::from_str(&out)?;
    ensure!(code == Some(1) && trial["error"]["stage"] == "decode", "{trial:#}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_that_nobody_waits_for_ends_at_the_server() -> Result<()> {
    let cluster = TestCluster::start(15)?;
    let administrator = cluster.connect(SUPERUSER).await?;
    administrator.batch_execute("CREATE SEQUENCE asked").await?;
    let databases = vec![("west".to_owned(), cluster.config_as(SUPERUSER, SUPERUSER))];
    let query = "SELECT pg_sleep(600 + 0 * nextval('asked'))".to_owned();
    let feed = Feed {
        name: "slow".into(),
        preset: None,
        source: Source::Postgres(Databases { databases, query }),
        decode: Decode::Json,
        map: Program::new(".")?,
        serves: Use::Events,
        places: Places::Named(Vec::new()),
        resource: None,
        every: Duration::from_secs(1),
        stale_after: Duration::from_secs(1),
        timeout: Duration::from_millis(300),
        max_bytes: 1 << 20,
    };
    let number = async |sql: &str| anyhow::Ok(administrator.query_one(sql, &[]).await?.get::<_, i64>(0));
    until("the server has been asked three times", async || {
        let failure =
            fetch(&feed, &Reach::default(), &Validators::default()).await.err().context("no failure")?;
        ensure!(matches!(failure.reason, Reason::Timeout | Reason::Database), "{failure}");
        Ok(number("SELECT last_value FROM asked").await? >= 3)
    })
    .await?;
    until("the server does nothing for a feed any more", async || {
        let of_feeds = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'godwit-feed'";
        Ok(number(of_feeds).await? == 0)
    })
    .await
}
