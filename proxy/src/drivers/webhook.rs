//! The `webhook` driver: a service of the operator's. The request is posted, signed with HMAC-SHA256 over the moment and
//! the body; the answer comes at once (200) or is fetched later (202 and Location).
//!
//! It may only be asked where `node.egress` lets Godwit ask (as feeds). What failed on the way is sent again under the
//! same operation id until the deadline; redirects are not followed.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::{Method, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use url::Url;

use super::contract::{LONGEST, Outcome, Request, Said, outside, parse, short};
use super::outside::Carrier;
use super::{DriverError, DriverErrorKind};
use crate::clock;
use crate::config::model::WebhookDriver;
use crate::feeds::external::egress::Egress;
use crate::feeds::external::fetch::http::{connect, retry_after};
use crate::feeds::external::fetch::tls;
use crate::feeds::external::webhook::{HEADER, sign};

/// How long one exchange may take.
const EXCHANGE: Duration = Duration::from_secs(30);
/// First and longest pause before something is sent again, or asked for again.
const PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(10));

/// Posts each request.
#[derive(Clone, Debug)]
pub struct Webhook {
    settings: WebhookDriver,
    egress: Egress,
}

/// What came of one exchange.
enum Step {
    /// The answer.
    Answer(Said),
    /// It works on it: ask there again, not before so long.
    Later(Url, Option<Duration>),
    /// It did not work out, but may; what it worked on may be lost, too.
    Again { what: String, wait: Option<Duration>, lost: bool },
    /// It will not work out.
    Never(DriverErrorKind, String),
}

impl Webhook {
    /// Of these settings, within `egress`.
    pub fn new(settings: WebhookDriver, egress: Egress) -> Self {
        Self { settings, egress }
    }

    /// Posts until there is an answer. Only an operation is tried again: a question is asked anew by itself.
    async fn until_answered(&self, request: &Request, last: &mut String) -> Result<Said, DriverError> {
        let text = serde_json::to_vec(request)
            .map_err(|error| outside(DriverErrorKind::Failed, format!("{}: {error}", self.name())))?;
        let body = Bytes::from(text);
        let mut pause = PAUSES.0;
        let mut at: Option<Url> = None;
        loop {
            let step = match &at {
                None => self.exchange(Method::POST, &self.settings.url, body.clone(), request).await,
                Some(place) => self.exchange(Method::GET, place, Bytes::new(), request).await,
            };
            let wait = match step {
                Step::Answer(said) => return Ok(said),
                Step::Never(kind, what) => return Err(outside(kind, format!("{}: {what}", self.name()))),
                Step::Later(place, wait) => {
                    if at.replace(place).is_none() {
                        pause = PAUSES.0;
                    }
                    wait
                }
                Step::Again { what, wait, lost } => {
                    if lost {
                        at = None;
                    }
                    tracing::debug!(driver = %self.name(), operation = request.operation, %what, "sent again");
                    *last = what;
                    if request.operation.is_none() {
                        let what = format!("{}: {last}", self.name());
                        return Err(outside(DriverErrorKind::Failed, what));
                    }
                    wait
                }
            };
            tokio::time::sleep(wait.unwrap_or(pause).max(PAUSES.0)).await;
            pause = (pause * 2).min(PAUSES.1);
        }
    }

    async fn exchange(&self, method: Method, url: &Url, body: Bytes, request: &Request) -> Step {
        let polled = method == Method::GET;
        // Ends with this exchange: a set aborts what it holds when it is dropped.
        let mut connections = JoinSet::new();
        let sent = tokio::time::timeout(EXCHANGE, async {
            let response = self.send(method, url, body, request, &mut connections).await?;
            let (parts, body) = response.into_parts();
            let body = http_body_util::Limited::new(body, LONGEST as usize);
            let bytes = body.collect().await.map_err(|error| format!("its answer broke off: {error}"))?;
            Ok::<_, String>((parts, bytes.to_bytes()))
        });
        let (parts, body) = match sent.await {
            Ok(Ok(answer)) => answer,
            Ok(Err(what)) => return again(what, None),
            Err(_) => return again(format!("no answer within {} s", EXCHANGE.as_secs()), None),
        };
        let header = |name| parts.headers.get(name).and_then(|value| value.to_str().ok());
        let wait = header(header::RETRY_AFTER).and_then(|text| retry_after(text, clock::now()));
        let said = format!("answered {}", parts.status.as_u16());
        match parts.status {
            StatusCode::OK => match parse(&body) {
                Ok(Said::Progress(_)) => {
                    Step::Never(DriverErrorKind::Failed, format!("{said} without a result"))
                }
                Ok(said) => Step::Answer(said),
                Err(why) => Step::Never(DriverErrorKind::Failed, format!("its answer {why}")),
            },
            StatusCode::ACCEPTED => {
                if let Ok(Said::Progress(progress)) = parse(&body) {
                    let placement = &request.placement;
                    tracing::info!(
                        driver = %self.name(), resource = %placement.resource, zone = %placement.zone,
                        operation = request.operation, done = progress.done, message = %progress.message,
                        "driver works"
                    );
                }
                match header(header::LOCATION) {
                    Some(location) => self.place(url, location, wait),
                    None if polled => Step::Later(url.clone(), wait),
                    None => Step::Never(DriverErrorKind::Failed, format!("{said} without Location")),
                }
            }
            // What it worked on is gone: asked under the same id, it knows what was done.
            StatusCode::NOT_FOUND | StatusCode::GONE if polled => {
                Step::Again { what: said, wait, lost: true }
            }
            StatusCode::CONFLICT => Step::Never(DriverErrorKind::Busy, Self::words(&said, &body)),
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS => {
                again(said, wait)
            }
            status if status.is_server_error() => again(Self::words(&said, &body), wait),
            _ => Step::Never(DriverErrorKind::Refused, Self::words(&said, &body)),
        }
    }

    /// The status, and what an error of the contract says beside it.
    fn words(said: &str, body: &Bytes) -> String {
        match parse(body) {
            Ok(Said::Error(_, message)) if !message.is_empty() => format!("{said}: {message}"),
            _ => said.to_owned(),
        }
    }

    /// Where the answer will be: within egress, and never from TLS to plain text.
    fn place(&self, from: &Url, location: &str, wait: Option<Duration>) -> Step {
        let never = |what: String| Step::Never(DriverErrorKind::Refused, what);
        let Ok(place) = from.join(location) else {
            return never(format!("its Location {:?} is no URL", short(location)));
        };
        let secure = from.scheme() == "https";
        if !matches!(place.scheme(), "http" | "https") || (secure && place.scheme() != "https") {
            return never(format!("its Location leads from {} to {}", from.scheme(), place.scheme()));
        }
        match self.egress.host(&place, &self.settings.url) {
            Ok(()) => Step::Later(place, wait),
            Err(why) => never(format!("its Location is not asked: {why}")),
        }
    }

    async fn send(
        &self,
        method: Method,
        url: &Url,
        body: Bytes,
        request: &Request,
        connections: &mut JoinSet<()>,
    ) -> Result<Response<Incoming>, String> {
        self.egress.host(url, &self.settings.url)?;
        let host = url.host_str().unwrap_or_default().to_owned();
        let authority = url.port().map_or_else(|| host.clone(), |port| format!("{host}:{port}"));
        let query = url.query().map_or_else(String::new, |query| format!("?{query}"));
        let mut message = http::Request::builder()
            .method(method)
            .uri(format!("{}{query}", url.path()))
            .header(header::HOST, authority)
            .header(header::USER_AGENT, concat!("godwit/", env!("CARGO_PKG_VERSION")))
            .header(header::ACCEPT, "application/json")
            .header(header::CONNECTION, "close")
            .header(HEADER, sign(&self.settings.secret, &body, clock::now()));
        if !body.is_empty() {
            message = message.header(header::CONTENT_TYPE, "application/json");
        }
        if let Some(operation) = &request.operation {
            message = message.header("idempotency-key", operation);
        }
        let message = message.body(Full::new(body)).map_err(|error| error.to_string())?;
        let stream = connect(url, &host, &self.egress).await.map_err(|failure| failure.what)?;
        if url.scheme() == "https" {
            let client = tls::client(self.settings.authority.as_deref())?;
            let name = rustls_pki_types::ServerName::try_from(host.trim_matches(['[', ']']).to_owned())
                .map_err(|error| error.to_string())?;
            let stream = TlsConnector::from(client).connect(name, stream).await;
            hand_over(stream.map_err(|error| format!("TLS: {error}"))?, message, connections).await
        } else {
            hand_over(stream, message, connections).await
        }
    }
}

fn again(what: String, wait: Option<Duration>) -> Step {
    Step::Again { what, wait, lost: false }
}

async fn hand_over<S>(
    stream: S,
    message: http::Request<Full<Bytes>>,
    connections: &mut JoinSet<()>,
) -> Result<Response<Incoming>, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    connections.spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a driver's connection ended");
        }
    });
    sender.send_request(message).await.map_err(|error| error.to_string())
}

#[async_trait]
impl Carrier for Webhook {
    fn name(&self) -> String {
        let url = &self.settings.url;
        format!("{}{}", url.host_str().unwrap_or_default(), url.path())
    }

    async fn ask(&self, request: &Request) -> Result<Outcome, DriverError> {
        let mut last = String::new();
        let answered =
            tokio::time::timeout(request.deadline(), self.until_answered(request, &mut last)).await;
        match answered {
            Ok(Ok(Said::Result(outcome))) => Ok(outcome),
            Ok(Ok(Said::Error(kind, message))) => Err(outside(kind, format!("{}: {message}", self.name()))),
            Ok(Ok(Said::Progress(_))) => {
                Err(outside(DriverErrorKind::Failed, format!("{}: no result", self.name())))
            }
            Ok(Err(error)) => Err(error),
            Err(_) => {
                let last = if last.is_empty() { "it still works on it".to_owned() } else { last };
                let what = format!("{}: not done within {:?}: {last}", self.name(), request.deadline());
                Err(outside(DriverErrorKind::NotReady, what))
            }
        }
    }
}

#[cfg(test)]
mod tests;
