//! Asks the shadow what clients were answered by the primary.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Request, Uri};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::{Mirror, Read};
use crate::lock::lock;

/// Reads under way at once.
const AT_ONCE: usize = 16;
/// How long the shadow may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Says to the service what it is.
const MARK: HeaderName = HeaderName::from_static("godwit-mirror");

type Http = Client<HttpConnector, Empty<bytes::Bytes>>;

impl Mirror {
    /// Asks until `stop`. There is one such task for each mirror.
    pub async fn serve(self: Arc<Self>, stop: CancellationToken) {
        let taken = lock(&self.waiting).take();
        let Some(mut waiting) = taken else { return };
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(PATIENCE));
        let client: Http = Client::builder(TokioExecutor::new()).build(connector);
        let turns = Arc::new(Semaphore::new(AT_ONCE));
        let mut next = 0_usize;
        loop {
            let read = tokio::select! {
                () = stop.cancelled() => return,
                read = waiting.recv() => match read { Some(read) => read, None => return },
            };
            // The queue fills and drops while all turns are taken.
            let turn = tokio::select! {
                () = stop.cancelled() => return,
                turn = turns.clone().acquire_owned() => match turn { Ok(turn) => turn, Err(_) => return },
            };
            next = next.wrapping_add(1);
            let (mirror, client) = (self.clone(), client.clone());
            tokio::spawn(async move {
                mirror.ask(&client, read, next).await;
                drop(turn);
            });
        }
    }

    async fn ask(&self, client: &Http, read: Read, next: usize) {
        let aim = self.aim.load_full();
        let Some(target) = aim.targets.get(next % aim.targets.len().max(1)) else { return };
        let path = read.uri.path_and_query().map_or("/", |path| path.as_str());
        let Ok(uri) = format!("http://{target}{path}").parse::<Uri>() else { return };
        let mut request = Request::new(Empty::new());
        *request.method_mut() = read.method.clone();
        *request.uri_mut() = uri;
        request.headers_mut().clone_from(&read.headers);
        request.headers_mut().insert(MARK, HeaderValue::from_static("1"));
        let began = crate::clock::monotonic();
        let answered = tokio::time::timeout(PATIENCE, async {
            let response = client.request(request).await.ok()?;
            let status = response.status().as_u16();
            let mut body = response.into_body();
            // To its end, as the client reads it; nothing of it is kept.
            while let Some(frame) = body.frame().await {
                frame.ok()?;
            }
            Some(status)
        });
        match answered.await {
            Ok(Some(status)) => self.note(&read, status, began.elapsed(), &aim.zone),
            Ok(None) | Err(_) => self.failed(&read, &aim.zone),
        }
    }
}
