//! Spans by OTLP over HTTP (binary), in batches that the library's thread makes; sent on the node's runtime.

use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderValue, Request, Response};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use opentelemetry::trace::{SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue, Value};
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{BatchSpanProcessor, SpanData, SpanEvents, SpanLinks, SpanProcessor as _};
use rustls::{ClientConfig, RootCertStore};
use tokio::runtime::Handle;

use super::{Fact, Settings, Span};

/// How long a batch may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Longest answer that is read.
const ANSWER: usize = 64 << 10;

/// Sends spans.
pub(super) struct Exporter {
    processor: BatchSpanProcessor,
    scope: InstrumentationScope,
}

impl Exporter {
    pub(super) fn start(settings: &Settings, node: &str, zone: &str, runtime: &Handle) -> Result<Self> {
        let headers = settings.headers.iter().map(|(name, value)| (name.to_string(), value.0.clone()));
        let exporter = SpanExporter::builder()
            .with_http()
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(settings.endpoint.as_str())
            .with_headers(headers.collect())
            .with_timeout(TIMEOUT)
            .with_http_client(Sender { client: client(), runtime: runtime.clone() })
            .build()
            .context("traces cannot be sent")?;
        let mut processor = BatchSpanProcessor::builder(exporter).build();
        let node = [
            KeyValue::new("service.name", "godwit"),
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            KeyValue::new("service.instance.id", node.to_owned()),
            KeyValue::new("cloud.availability_zone", zone.to_owned()),
        ];
        processor.set_resource(&Resource::builder_empty().with_attributes(node).build());
        let scope = InstrumentationScope::builder("godwit").with_version(env!("CARGO_PKG_VERSION")).build();
        Ok(Self { processor, scope })
    }

    pub(super) fn send(&self, span: Span) {
        let place = span.place;
        let context = SpanContext::new(
            TraceId::from_bytes(place.trace),
            SpanId::from_bytes(place.span),
            TraceFlags::SAMPLED,
            false,
            TraceState::NONE,
        );
        let fact = |(name, fact): (&'static str, Fact)| {
            let value = match fact {
                Fact::Text(text) => Value::from(text),
                Fact::Count(count) => Value::from(count),
                Fact::Measure(measure) => Value::from(measure),
            };
            KeyValue::new(name, value)
        };
        self.processor.on_end(SpanData {
            span_context: context,
            parent_span_id: place.parent.map_or(SpanId::INVALID, SpanId::from_bytes),
            parent_span_is_remote: span.serves && place.parent.is_some(),
            span_kind: if span.serves { SpanKind::Server } else { SpanKind::Internal },
            name: span.name,
            start_time: UNIX_EPOCH + span.began,
            end_time: UNIX_EPOCH + span.ended,
            attributes: span.facts.into_iter().map(fact).collect(),
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: span.failed.map_or(Status::Unset, Status::error),
            instrumentation_scope: self.scope.clone(),
        });
    }

    pub(super) fn end(&self, patience: Duration) {
        if let Err(error) = self.processor.shutdown_with_timeout(patience) {
            tracing::warn!(%error, "the last traces are not sent");
        }
    }
}

type Https = Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

fn client() -> Https {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let tls = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let connector = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().build();
    Client::builder(TokioExecutor::new()).build(connector)
}

/// The library's thread is on no runtime: what it sends goes through the node's.
#[derive(Debug)]
struct Sender {
    client: Https,
    runtime: Handle,
}

#[async_trait]
impl HttpClient for Sender {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let client = self.client.clone();
        let exchange = async move {
            let (mut head, body) = request.into_parts();
            let agent = HeaderValue::from_static(concat!("godwit/", env!("CARGO_PKG_VERSION")));
            head.headers.insert(http::header::USER_AGENT, agent);
            let answer = client.request(Request::from_parts(head, Full::new(body))).await?;
            let (head, body) = answer.into_parts();
            let body = Limited::new(body, ANSWER).collect().await?.to_bytes();
            Ok::<_, HttpError>(Response::from_parts(head, body))
        };
        // The clock of the deadline is the runtime's, too.
        self.runtime.spawn(async move { tokio::time::timeout(TIMEOUT, exchange).await }).await??
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::net::SocketAddr;

    use axum::Router;
    use axum::http::HeaderMap;
    use axum::routing::post;
    use migration::units::Ratio;
    use tokio::sync::mpsc;

    use super::*;
    use crate::feeds::external::Secret;
    use crate::traces::Traces;

    const SAID: &[u8] = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn traces(receiver: SocketAddr, sample: f64) -> Traces {
        let settings = Settings {
            endpoint: format!("http://{receiver}/v1/traces").parse().unwrap(),
            headers: vec![("x-key".parse().unwrap(), Secret("letmein".into()))],
            sample: Ratio::new(sample).unwrap(),
        };
        Traces::start(&settings, "edge", "eu-west", &Handle::current()).unwrap()
    }

    fn span(traces: &Traces, number: i64) -> Span {
        Span {
            place: traces.place(Some(SAID), true).unwrap(),
            name: "GET checkout".into(),
            serves: true,
            began: Duration::from_millis(1_000),
            ended: Duration::from_millis(1_020),
            facts: vec![("godwit.attempts", Fact::Count(number))],
            failed: (number == 0).then(|| "no-upstream".into()),
        }
    }

    fn has(body: &[u8], part: &[u8]) -> bool {
        body.windows(part.len()).any(|window| window == part)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn spans_reach_a_receiver_with_its_key() {
        let (told, mut heard) = mpsc::unbounded_channel();
        let receive = move |headers: HeaderMap, body: Bytes| {
            let told = told.clone();
            async move { drop(told.send((headers, body))) }
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let receiver = listener.local_addr().unwrap();
        let app = Router::new().route("/v1/traces", post(receive));
        let server = tokio::spawn(async move { axum::serve(listener, app).await });
        let traces = traces(receiver, 0.0);
        let span = span(&traces, 0);
        let place = span.place;
        traces.send(span);
        tokio::task::spawn_blocking(move || traces.end(Duration::from_secs(10))).await.unwrap();
        let heard = tokio::time::timeout(Duration::from_secs(20), heard.recv()).await;
        let (headers, body) = heard.expect("the receiver is told").unwrap();
        assert_eq!(headers["content-type"], "application/x-protobuf");
        assert_eq!(headers["x-key"], "letmein");
        for part in [&place.trace[..], &place.span, &place.parent.unwrap()] {
            assert!(has(&body, part), "ids are there as they are");
        }
        for part in
            ["GET checkout", "godwit.attempts", "no-upstream", "service.instance.id", "edge", "eu-west"]
        {
            assert!(has(&body, part.as_bytes()), "{part}");
        }
        server.abort();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_receiver_that_is_gone_loses_spans_and_nothing_else() {
        let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let traces = traces(gone, 1.0);
        for number in 0..20_000 {
            traces.send(span(&traces, number));
        }
        // Whoever ends waits no longer than it likes to.
        tokio::task::spawn_blocking(move || traces.end(Duration::from_secs(5))).await.unwrap();
    }

    #[tokio::test]
    async fn who_is_trusted_decides_and_of_the_rest_some_are_chosen() {
        let nobody = "127.0.0.1:9".parse().unwrap();
        let (none, all) = (traces(nobody, 0.0), traces(nobody, 1.0));
        let mut unsampled = SAID.to_vec();
        unsampled[54] = b'0';
        assert!(none.place(Some(SAID), true).is_some(), "as the trusted one says");
        assert!(all.place(Some(&unsampled), true).is_none(), "as the trusted one says");
        assert!(none.place(Some(SAID), false).is_none() && none.place(None, true).is_none());
        let chosen = all.place(Some(&unsampled), false).unwrap();
        assert!(chosen.parent.is_some(), "in its client's trace");
        assert_eq!(all.place(None, false).unwrap().parent, None);
        for traces in [none, all] {
            tokio::task::spawn_blocking(move || traces.end(Duration::from_secs(5))).await.unwrap();
        }
    }
}
