//! `GET /api/v1/events` of a real node: a migration is told step by step, as the history has it, and can be heard again.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use godwit::controller::events::{MigrationEvent, Reset};
use godwit::demo::zone::{Playground, RESOURCE};
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::rt::TokioExecutor;

use super::leader::{Leader, PATIENCE, options};

#[derive(Debug, Default, PartialEq)]
pub(crate) struct Told {
    id: u64,
    pub(crate) event: String,
    pub(crate) data: String,
}

/// A stream of events.
pub(crate) struct Stream {
    body: Incoming,
    text: String,
}

impl Stream {
    pub(crate) async fn open(
        admin: impl std::fmt::Display,
        query: &str,
        last: Option<&str>,
    ) -> Result<(StatusCode, Self)> {
        let client: HttpClient<_, Empty<Bytes>> = HttpClient::builder(TokioExecutor::new()).build_http();
        let mut request = Request::get(format!("http://{admin}/api/v1/events{query}"));
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        let response = client.request(request.body(Empty::new())?).await?;
        let kind = response.headers().get(header::CONTENT_TYPE).cloned();
        if response.status().is_success() {
            ensure!(kind.is_some_and(|kind| kind == "text/event-stream"), "not a stream of events");
        }
        Ok((response.status(), Self { body: response.into_body(), text: String::new() }))
    }

    /// The next event; that the connection lives is passed over. `None`: the stream has ended.
    async fn next(&mut self) -> Result<Option<Told>> {
        loop {
            while let Some((block, rest)) = self.text.split_once("\n\n") {
                let mut told = Told::default();
                for (field, value) in block.lines().filter_map(|line| line.split_once(": ")) {
                    match field {
                        "id" => told.id = value.parse()?,
                        "event" => value.clone_into(&mut told.event),
                        "data" => told.data.push_str(value),
                        _ => {}
                    }
                }
                self.text = String::from(rest);
                if !told.event.is_empty() && told.event != "alive" {
                    return Ok(Some(told));
                }
            }
            let frame = tokio::time::timeout(PATIENCE, self.body.frame()).await.context("nothing is told")?;
            let Some(frame) = frame else { return Ok(None) };
            if let Ok(data) = frame?.into_data() {
                self.text.push_str(std::str::from_utf8(&data)?);
            }
        }
    }

    pub(crate) async fn until(&mut self, what: &str, reached: impl Fn(&Told) -> bool) -> Result<Vec<Told>> {
        let mut all = Vec::new();
        while let Some(told) = self.next().await? {
            let last = reached(&told);
            all.push(told);
            if last {
                return Ok(all);
            }
        }
        bail!("the stream ended before {what}")
    }
}

fn steps(told: &[Told]) -> Result<Vec<MigrationEvent>> {
    let migrations = told.iter().filter(|told| told.event == "migration");
    migrations.map(|told| Ok(serde_json::from_str(&told.data)?)).collect()
}

fn ended(told: &Told) -> bool {
    told.event == "migration" && told.data.contains("\"outcome\":\"retired\"")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_migration_is_told_as_the_history_has_it_and_again_to_who_comes_back() -> Result<()> {
    let playground = Playground::start(&options(false)?).await?;
    let mut leader = Leader::start(&playground, &[])?;
    leader.ready().await?;
    let (status, mut stream) = Stream::open(playground.admin, "", None).await?;
    ensure!(status == StatusCode::OK);
    let first = stream.next().await?.context("the first event")?;
    assert_eq!(first.event, "reset");
    assert_eq!(serde_json::from_str::<Reset>(&first.data)?.why, "start");

    let id = leader.migrate("eu-central").await?;
    let told = stream.until("the migration's end", ended).await?;
    // Numbers go up one by one; every view comes with its decision.
    let ids: Vec<u64> = told.iter().map(|told| told.id).collect();
    assert_eq!(ids, (first.id + 1..=first.id + told.len() as u64).collect::<Vec<_>>());
    for kind in ["resource", "decision", "migration"] {
        assert!(told.iter().any(|told| told.event == kind), "no {kind} was told");
    }
    let steps = steps(&told)?;
    let run = leader.migration(&id).await?;
    assert!(steps.iter().all(|step| step.id == id && step.resource == RESOURCE));
    // What was left, with its times, is what the history says; it ends with the last step, and the record is complete.
    let mut left: Vec<_> = steps.iter().filter_map(|step| step.left.clone()).collect();
    // The last one ends in the history when its end is written.
    left.last_mut().context("steps")?.ended_ms = run.ended_ms;
    assert_eq!(left, run.steps);
    assert!(run.ended() && run.verified == Some(true) && steps.iter().any(|step| step.verified));
    let commit = steps.iter().find(|step| step.committed).context("the commit")?;
    assert_eq!((commit.phase.as_str(), Some(commit.at_ms)), ("committed", run.committed_ms));
    assert!(steps.iter().all(|step| !(step.committed && step.may_abort)));

    // Who comes back hears the same from there.
    let begun = told.iter().position(|told| told.event == "migration").context("the first step")?;
    let (_, mut again) = Stream::open(playground.admin, "", Some(&told[begun].id.to_string())).await?;
    assert_eq!(again.until("the end, again", ended).await?, told[begun + 1..]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_heard_is_said_and_the_stream_ends_with_the_node() -> Result<()> {
    let playground = Playground::start(&options(false)?).await?;
    let mut leader = Leader::start(&playground, &[])?;
    leader.ready().await?;
    let (unknown, _) = Stream::open(playground.admin, "?resource=nobody", None).await?;
    assert_eq!(unknown, StatusCode::NOT_FOUND);
    let (wrong, _) = Stream::open(playground.admin, "", Some("yesterday")).await?;
    assert_eq!(wrong, StatusCode::BAD_REQUEST);
    let (_, mut stream) =
        Stream::open(playground.admin, &format!("?resource={RESOURCE}"), Some("12")).await?;
    let first = stream.next().await?.context("the first event")?;
    assert_eq!(first.event, "reset");
    assert_eq!(serde_json::from_str::<Reset>(&first.data)?.why, "gap");

    // The node does not wait for its listeners.
    leader.node.signal(rustix::process::Signal::TERM)?;
    while stream.next().await?.is_some() {}
    let deadline = tokio::time::Instant::now() + Duration::from_secs(8);
    while leader.node.ended()?.is_none() {
        ensure!(tokio::time::Instant::now() < deadline, "the node did not end");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}
