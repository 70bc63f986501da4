//! What a whole node tells a tracing backend: a span for each request, and a trace for a migration, in the words of OTLP.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, ensure};
use godwit::controller::view::ResourceView;
use godwit::demo::zone::{Playground, RESOURCE};
use godwit_tests::http::Service;
use godwit_tests::waiting::until;
use http::{Request, Response};
use http_body_util::Full;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use prost::Message as _;

use crate::leader::{Leader, load, of_node, options};

/// What a client says of its own span.
const TRACE: u128 = 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c;
const PARENT: u64 = 0xb7ad_6b71_6920_3331;

/// A backend that keeps what it is told, and breaks at what it cannot read.
struct Backend {
    service: Service,
    spans: Arc<Mutex<Vec<Span>>>,
}

impl Backend {
    async fn start() -> Result<Self> {
        let spans = Arc::<Mutex<Vec<Span>>>::default();
        let kept = Arc::clone(&spans);
        let service = Service::start(move |request: Request<bytes::Bytes>| {
            assert_eq!(request.uri().path(), "/v1/traces");
            let told = ExportTraceServiceRequest::decode(request.into_body()).expect("it speaks OTLP");
            let scopes = told.resource_spans.into_iter().flat_map(|resource| resource.scope_spans);
            let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
            kept.extend(scopes.flat_map(|scope| scope.spans));
            Response::new(Full::default())
        });
        Ok(Self { service: service.await?, spans })
    }

    fn spans(&self, wanted: impl Fn(&Span) -> bool) -> Vec<Span> {
        let spans = self.spans.lock().unwrap_or_else(PoisonError::into_inner);
        spans.iter().filter(|span| wanted(span)).cloned().collect()
    }
}

fn fact<'s>(span: &'s Span, name: &str) -> Option<&'s Value> {
    span.attributes.iter().find(|fact| fact.key == name)?.value.as_ref()?.value.as_ref()
}

fn text<'s>(span: &'s Span, name: &str) -> &'s str {
    match fact(span, name) {
        Some(Value::StringValue(text)) => text,
        _ => "",
    }
}

fn is_request(span: &Span) -> bool {
    span.kind() == SpanKind::Server
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_is_told_of_every_request_and_of_a_migration_phase_by_phase() -> Result<()> {
    let backend = Backend::start().await?;
    let playground = Playground::start(&options(false)?).await?;
    let traces = format!("traces: {{url: \"http://{}/v1/traces\", sample: 100%}}", backend.service.address);
    std::fs::write(&playground.config, of_node(&playground, &traces)?)?;
    let mut leader = Leader::start(&playground, &[])?;
    let ready = leader.ready().await?;
    let (from, to) = (ready.primary.clone(), ready.shadow.clone());

    let load = load(&playground, 60.0, "traces");
    leader.until("the load runs", |_| load.snapshot().acknowledged > 20).await?;
    let id = leader.migrate(&to).await?;
    let moved = |view: &ResourceView| view.primary == to && view.phase == "shadowing";
    leader.until("it has moved", moved).await?;
    let before = load.snapshot().acknowledged;
    leader.until("it is served there", |_| load.snapshot().acknowledged > before + 20).await?;
    let totals = load.stop().await.totals;
    ensure!(totals.failed == 0, "{totals:?}");

    // One whose client takes part in a trace of its own.
    let url = format!("http://{}/orders/1", playground.front);
    let parent = format!("traceparent: 00-{TRACE:032x}-{PARENT:016x}-01");
    let arguments = ["-sf", "-o", "/dev/null", "-H", "host: orders.example", "-H", &parent, &url];
    let asked = tokio::process::Command::new("curl").args(arguments).status().await?;
    ensure!(asked.success(), "curl: {asked}");

    let all = totals.succeeded as usize + 1;
    until("each request has a span", async || Ok(backend.spans(is_request).len() >= all)).await?;
    let requests = backend.spans(is_request);
    ensure!(requests.len() == all, "{all} requests, {} spans", requests.len());
    for zone in [&from, &to] {
        ensure!(requests.iter().any(|span| text(span, "godwit.zone") == zone), "none was served in {zone}");
    }
    for span in &requests {
        let whole = span.end_time_unix_nano >= span.start_time_unix_nano && !span.name.is_empty();
        ensure!(whole && text(span, "godwit.resource") == RESOURCE, "{span:#?}");
    }
    let below =
        requests.iter().find(|span| span.trace_id == TRACE.to_be_bytes()).context("the client's trace")?;
    ensure!(below.parent_span_id == PARENT.to_be_bytes(), "{below:#?}");
    let held =
        |span: &Span| matches!(fact(span, "godwit.held_ms"), Some(Value::DoubleValue(held)) if *held > 0.0);
    ensure!(requests.iter().any(held), "nobody was held by the cutover");

    let run = leader.migration(&id).await?;
    let of_run = |span: &Span| text(span, "godwit.migration") == id;
    let told = async || Ok(backend.spans(of_run).len() > run.steps.len());
    until("the migration has spans", told).await?;
    let spans = backend.spans(of_run);
    let whole = spans.iter().find(|span| span.name == "migration").context("the migration's own span")?;
    ensure!(whole.parent_span_id.is_empty() && text(whole, "godwit.outcome") == run.state, "{whole:#?}");
    ensure!((text(whole, "godwit.from"), text(whole, "godwit.to")) == (&*from, &*to), "{whole:#?}");
    ensure!(spans.len() == run.steps.len() + 1, "{} phases, {spans:#?}", run.steps.len());
    for step in &run.steps {
        let phase = spans.iter().find(|span| span.name == step.phase);
        let phase = phase.with_context(|| format!("a span of {}", step.phase))?;
        ensure!(phase.trace_id == whole.trace_id && phase.parent_span_id == whole.span_id, "{phase:#?}");
        let within = phase.start_time_unix_nano >= whole.start_time_unix_nano
            && phase.end_time_unix_nano <= whole.end_time_unix_nano;
        ensure!(within, "{phase:#?}\nof {whole:#?}");
    }
    Ok(())
}
