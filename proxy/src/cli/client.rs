//! A small client of the admin API.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::rt::TokioExecutor;
use serde::de::DeserializeOwned;

use crate::admin::Problem;

/// How long a node may take to answer.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Talks to one node.
pub struct Client {
    address: String,
}

/// What the API said, when it did not do what was asked.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.detail)]
pub struct Refusal(pub Problem);

impl Client {
    /// A client of the admin listener at `host:port`.
    pub fn new(address: &str) -> Self {
        Self { address: address.trim_start_matches("http://").trim_end_matches('/').to_owned() }
    }

    /// `GET`, outside a runtime.
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        block_on(self.fetch(path))
    }

    /// `POST`, outside a runtime; the answer's body.
    pub fn post(&self, path: &str, body: &serde_json::Value) -> Result<Bytes> {
        block_on(self.send(path, body))
    }

    /// `DELETE`, outside a runtime; the answer's body.
    pub fn delete(&self, path: &str) -> Result<Bytes> {
        block_on(self.call(Method::DELETE, path, None))
    }

    /// `GET`, inside a runtime.
    pub async fn fetch<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        let body = self.call(Method::GET, path, None).await?;
        serde_json::from_slice(&body)
            .with_context(|| format!("{path}: unexpected answer of {}", self.address))
    }

    /// `POST`, inside a runtime; the answer's body.
    pub async fn send(&self, path: &str, body: &serde_json::Value) -> Result<Bytes> {
        self.call(Method::POST, path, Some(body)).await
    }

    async fn call(&self, method: Method, path: &str, body: Option<&serde_json::Value>) -> Result<Bytes> {
        let (status, body) = tokio::time::timeout(TIMEOUT, self.exchange(method, path, body))
            .await
            .with_context(|| format!("{} did not answer within {} s", self.address, TIMEOUT.as_secs()))??;
        if status.is_success() {
            return Ok(body);
        }
        match serde_json::from_slice::<Problem>(&body) {
            Ok(problem) => Err(Refusal(problem).into()),
            Err(_) => bail!("{} answered {status}: {}", self.address, String::from_utf8_lossy(&body)),
        }
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Option<&serde_json::Value>,
    ) -> Result<(StatusCode, Bytes)> {
        let client: HttpClient<_, Full<Bytes>> = HttpClient::builder(TokioExecutor::new()).build_http();
        let mut request = Request::builder().method(method).uri(format!("http://{}{path}", self.address));
        if let Ok(user) = std::env::var("USER") {
            request = request.header("x-godwit-operator", user);
        }
        let bytes = match body {
            Some(body) => {
                request = request.header(header::CONTENT_TYPE, "application/json");
                Bytes::from(serde_json::to_vec(body)?)
            }
            None => Bytes::new(),
        };
        let response = client.request(request.body(Full::new(bytes))?).await.with_context(|| {
            format!(
                "no godwit answers at {} (start one with godwit run, or name it with --admin)",
                self.address
            )
        })?;
        let status = response.status();
        Ok((status, response.into_body().collect().await?.to_bytes()))
    }
}

fn block_on<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(future)
}
