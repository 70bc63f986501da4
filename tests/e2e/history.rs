//! What is kept of a service, read back through the API and the command line, and what a restart makes of it.

use anyhow::{Context, Result, bail, ensure};
use godwit::admin::{HistoryView, LatencyView, Problem};
use godwit::cli::client::Refusal;
use godwit::controller::forecast::ForecastView;
use godwit::controller::zones::ChoiceView;
use godwit::demo::zone::{Playground, RESOURCE};

use crate::leader::{Leader, PROGRAM, load, options};

async fn get<T: serde::de::DeserializeOwned>(leader: &Leader<'_>, path: &str) -> Result<T> {
    leader.client.fetch(&format!("/api/v1/resources/{RESOURCE}/{path}")).await
}

/// The program's answer: exit code, standard output, standard error.
pub(crate) async fn godwit(leader: &Leader<'_>, arguments: &[&str]) -> Result<(Option<i32>, String, String)> {
    let output = tokio::process::Command::new(PROGRAM)
        .args(["--admin", &leader.playground.admin.to_string()])
        .args(arguments)
        .output()
        .await?;
    Ok((output.status.code(), String::from_utf8(output.stdout)?, String::from_utf8(output.stderr)?))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_restarted_forecasts_at_once_from_what_it_kept() -> Result<()> {
    let mut options = options(false)?;
    options.policy = options.policy.replace("step: 200ms", "step: 500ms");
    let playground = Playground::start(&options).await?;
    let mut leader = Leader::start(&playground, &[])?;
    let load = load(&playground, 60.0, "history");
    let recorded: ForecastView = leader
        .until_answer("forecast", "a forecast", |view: &ForecastView| {
            !view.steps.is_empty() && view.trust.steps >= 30
        })
        .await?;
    ensure!(recorded.trust.replayed == 0 && recorded.steps.len() == 20, "{recorded:#?}");
    ensure!(recorded.trust.abstained.iter().any(|of| of.reason == "too_few"), "{:?}", recorded.trust);
    ensure!(recorded.trust.ahead[0].coverage.is_some(), "{:?}", recorded.trust);
    let latency: LatencyView = leader
        .until_answer("latency?step=10s", "a minute of latency", |view: &LatencyView| view.points.len() >= 6)
        .await?;
    let upstream = latency.points.iter().find(|point| point.segment == "upstream").context("upstream")?;
    ensure!(
        upstream.count > 0 && upstream.p95_ms > 0.0 && upstream.p50_ms <= upstream.max_ms,
        "{upstream:?}"
    );

    wrong_parameters_are_named(&leader).await?;
    what_is_logged_changes(&leader).await?;
    let (code, out, err) = godwit(&leader, &["explain", RESOURCE]).await?;
    ensure!(
        code == Some(0) && out.contains("forecast of the request path in eu-west: 90 % band held"),
        "{out} {err}"
    );
    let choice: ChoiceView = get(&leader, "zones").await?;
    let history = choice.candidates[0].terms.iter().find(|term| term.name == "history").context("history")?;
    ensure!(history.detail.contains("h of probes are kept, 6 h are needed"), "{history:?}");

    // Killed; then nobody asks for anything: whatever it forecasts, it forecasts from what was kept.
    load.stop().await;
    leader.node.signal(rustix::process::Signal::KILL)?;
    drop(leader);
    let mut leader = Leader::start(&playground, &[])?;
    let again: ForecastView =
        leader.until_answer("forecast", "a forecast", |view: &ForecastView| view.trust.replayed > 0).await?;
    ensure!(again.abstained.is_none() && again.steps.len() == 20, "{again:#?}\n{}", leader.node.tail(20));
    ensure!(again.trust.replayed >= 20 && again.zone == "eu-west", "{:?}", again.trust);
    exports(&leader).await
}

async fn wrong_parameters_are_named(leader: &Leader<'_>) -> Result<()> {
    for (path, parameter) in [
        ("latency?step=7s", "step"),
        ("latency?step=10s&from=300d", "step"),
        ("latency?from=tomorrow", "from"),
        ("history?from=1h&to=2h", "from"),
        ("history?series=nonsense", "series"),
        ("history?resolution=gold", "resolution"),
        ("history?limit=0", "limit"),
        ("history?cursor=fine.1.2", "cursor"),
        ("history?cursor=fine.1.2.3.4&to=1h", "to"),
        ("history?sorted=yes", "sorted"),
    ] {
        let answer: Result<serde_json::Value> = get(leader, path).await;
        let Some(Refusal(Problem { status, parameter: named, detail, .. })) =
            answer.as_ref().err().and_then(|error| error.downcast_ref())
        else {
            bail!("{path}: {answer:?}");
        };
        ensure!(*status == 400 && named.as_deref() == Some(parameter), "{path}: {named:?} {detail}");
    }
    Ok(())
}

/// What is logged changes while the node runs; a wrong filter changes nothing.
async fn what_is_logged_changes(leader: &Leader<'_>) -> Result<()> {
    let (code, before, _) = godwit(leader, &["log"]).await?;
    ensure!(code == Some(0) && before.contains("info"), "{before:?}");
    let more = "info,godwit::controller=debug";
    let (code, now, _) = godwit(leader, &["log", more]).await?;
    ensure!(code == Some(0) && now.trim() == more, "{now:?}");
    ensure!(leader.node.tail(200).contains("what is logged has changed"), "{}", leader.node.tail(30));
    let (code, _, error) = godwit(leader, &["log", "godwit=loud"]).await?;
    ensure!(code == Some(1) && error.contains("filter"), "{error:?}");
    ensure!(godwit(leader, &["log"]).await?.1.trim() == more, "a wrong filter changes nothing");
    let (code, after, _) = godwit(leader, &["log", "--reset"]).await?;
    ensure!(code == Some(0) && after == before, "{after:?}");
    Ok(())
}

/// What the pages of the API hold is what is exported, on a grid without holes.
async fn exports(leader: &Leader<'_>) -> Result<()> {
    let (from, to) = ("1h", godwit::clock::now().0);
    let mut rows = Vec::new();
    let mut next = format!("history?series=request_p95_ms&limit=7&from={from}&to={to}");
    loop {
        let page: HistoryView = get(leader, &next).await?;
        ensure!(page.step_ms == 500 && page.resolution == "fine", "{page:?}");
        rows.extend(page.rows);
        let Some(cursor) = page.cursor else { break };
        next = format!("history?series=request_p95_ms&limit=7&cursor={cursor}");
    }
    ensure!(rows.len() >= 20 && rows.windows(2).all(|pair| pair[0].at_ms < pair[1].at_ms), "{}", rows.len());

    let file = leader.playground.directory.join("history.csv");
    let to = to.to_string();
    let path = file.display().to_string();
    let export = ["history", "export", RESOURCE, "--from", from, "--to", &to, "--series", "request_p95_ms"];
    let (code, out, err) = godwit(leader, &[&export[..], &["--file", &path]].concat()).await?;
    ensure!(
        code == Some(0) && out.is_empty() && err.starts_with(&format!("{} rows in ", rows.len())),
        "{out} {err}"
    );
    let text = std::fs::read_to_string(&file)?;
    let mut lines = text.lines();
    ensure!(lines.next() == Some("series_id,t,value_ms"), "{text}");
    let mut times = Vec::new();
    let mut values = Vec::new();
    for line in lines {
        let fields: Vec<&str> = line.split(',').collect();
        let [id, at, value] = fields[..] else { bail!("{line}") };
        ensure!(id == "request_p95_ms/eu-west", "{line}");
        times.push(at.parse::<f64>()?);
        values.extend(value.parse::<f64>().ok());
    }
    ensure!(values == rows.iter().map(|row| row.mean).collect::<Vec<_>>(), "{text}");
    ensure!(times.windows(2).all(|pair| (0.2..0.8).contains(&(pair[1] - pair[0]))), "{times:?}");

    let (code, out, err) = godwit(leader, &[&export[..], &["--json"]].concat()).await?;
    ensure!(code == Some(0) && out.lines().count() == rows.len(), "{err}");
    let first: serde_json::Value = serde_json::from_str(out.lines().next().context("a line")?)?;
    ensure!(first["at_ms"] == rows[0].at_ms && first["zone"] == "eu-west", "{first}");
    // Everything: the score, the forecasts and the probes of both zones are there too.
    let (_, out, _) = godwit(leader, &["history", "export", RESOURCE, "--to", &to]).await?;
    ensure!(out.starts_with("series_id,t,value\n"), "{out}");
    for series in [
        "probe_answer_ms/eu-central,",
        "score/eu-west,",
        "score_utilization/eu-west,",
        "forecast_p95_ms_16/eu-west,",
        "utilization/",
    ] {
        ensure!(out.contains(&format!("\n{series}")), "{series}");
    }
    let (code, out, _) = godwit(leader, &["history"]).await?;
    ensure!(code == Some(0) && out.starts_with("STARTED"), "{out}");
    let (code, _, err) = godwit(leader, &["history", "export", RESOURCE, "--from", "noon"]).await?;
    ensure!(code == Some(1) && err.contains("--from noon: is no moment"), "{err}");
    Ok(())
}
