//! A small client of the admin API.

use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use serde::de::DeserializeOwned;

use crate::admin::Problem;

/// Who asks, where the node does not want to have it proven.
pub const OPERATOR: &str = "x-godwit-operator";
/// How long a node may take to answer.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Talks to one node.
pub struct Client {
    /// `http://host:port` or with https.
    address: String,
    /// As it was read; not yet, where nothing was asked.
    token: OnceLock<Option<String>>,
    token_file: Option<PathBuf>,
    ca: Option<PathBuf>,
    /// Keeps its connections; not yet, where nothing was asked.
    http: OnceLock<Http>,
}

type Http = HttpClient<HttpsConnector<HttpConnector>, Full<Bytes>>;

/// What the API said, when it did not do what was asked.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.detail)]
pub struct Refusal(pub Problem);

impl Client {
    /// A client of the admin listener at `host:port`, or `https://host:port`.
    pub fn new(address: &str) -> Self {
        let address = address.trim_end_matches('/');
        let scheme = if address.contains("://") { "" } else { "http://" };
        Self {
            address: format!("{scheme}{address}"),
            token: OnceLock::new(),
            token_file: None,
            ca: None,
            http: OnceLock::new(),
        }
    }

    /// Shows this token, without the blanks around it; an empty one is none.
    #[must_use]
    pub fn with_token(self, token: Option<String>) -> Self {
        Self { token: OnceLock::from(token.as_deref().and_then(shown)), ..self }
    }

    /// Shows the token in this file, which is read with the first request: who asks nothing needs none.
    #[must_use]
    pub fn with_token_file(self, token_file: PathBuf) -> Self {
        Self { token_file: Some(token_file), ..self }
    }

    /// Trusts the authorities in this PEM file, instead of the system's.
    #[must_use]
    pub fn with_ca(self, ca: Option<PathBuf>) -> Self {
        Self { ca, http: OnceLock::new(), ..self }
    }

    /// `GET`, outside a runtime.
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        block_on(self.fetch(path))
    }

    /// `GET`, outside a runtime; the answer's text.
    pub fn text(&self, path: &str) -> Result<String> {
        block_on(async {
            Ok(String::from_utf8_lossy(&self.call(Method::GET, path, None).await?).into_owned())
        })
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

    /// Every page of a list, outside a runtime.
    pub fn get_all<T: DeserializeOwned>(&self, path: &str) -> Result<Vec<T>> {
        block_on(self.fetch_all(path))
    }

    /// Every page of a list, inside a runtime: each answer says in its Link header where the next one is (RFC 8288).
    pub async fn fetch_all<T: DeserializeOwned>(&self, path: &str) -> Result<Vec<T>> {
        let (mut all, mut next) = (Vec::new(), Some(path.to_owned()));
        while let Some(path) = next {
            let (body, headers) = self.call_with(Method::GET, &path, None, &[]).await?;
            let page: Vec<T> = serde_json::from_slice(&body)
                .with_context(|| format!("{path}: unexpected answer of {}", self.address))?;
            all.extend(page);
            next =
                headers.get(header::LINK).and_then(|link| next_page(link.to_str().ok()?)).map(str::to_owned);
        }
        Ok(all)
    }

    /// `POST`, inside a runtime; the answer's body.
    pub async fn send(&self, path: &str, body: &serde_json::Value) -> Result<Bytes> {
        self.call(Method::POST, path, Some(body)).await
    }

    /// `GET` with the answer's ETag, outside a runtime.
    pub fn get_tagged<T: DeserializeOwned>(&self, path: &str) -> Result<(T, String)> {
        block_on(self.fetch_tagged(path))
    }

    /// The same, inside a runtime.
    pub async fn fetch_tagged<T: DeserializeOwned>(&self, path: &str) -> Result<(T, String)> {
        let (body, headers) = self.call_with(Method::GET, path, None, &[]).await?;
        let tag = headers.get(header::ETAG).and_then(|value| value.to_str().ok()).unwrap_or_default();
        Ok((serde_json::from_slice(&body)?, tag.to_owned()))
    }

    /// `PUT` of what had this ETag, outside a runtime.
    pub fn put<T: DeserializeOwned>(&self, path: &str, body: &serde_json::Value, tag: &str) -> Result<T> {
        block_on(self.replace(path, body, tag))
    }

    /// The same, inside a runtime.
    pub async fn replace<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &serde_json::Value,
        tag: &str,
    ) -> Result<T> {
        let (body, _) = self.call_with(Method::PUT, path, Some(body), &[("if-match", tag)]).await?;
        serde_json::from_slice(&body).with_context(|| format!("{path}: unexpected answer"))
    }

    /// Any method with headers, inside a runtime; the answer's body and headers.
    pub async fn call_with(
        &self,
        method: Method,
        path: &str,
        body: Option<&serde_json::Value>,
        headers: &[(&str, &str)],
    ) -> Result<(Bytes, http::HeaderMap)> {
        let (status, body, headers) =
            tokio::time::timeout(TIMEOUT, self.exchange(method, path, body, headers)).await.with_context(
                || format!("{} did not answer within {} s", self.address, TIMEOUT.as_secs()),
            )??;
        if status.is_success() {
            return Ok((body, headers));
        }
        match serde_json::from_slice::<Problem>(&body) {
            Ok(problem) => Err(Refusal(problem).into()),
            Err(_) => bail!("{} answered {status}: {}", self.address, String::from_utf8_lossy(&body)),
        }
    }

    async fn call(&self, method: Method, path: &str, body: Option<&serde_json::Value>) -> Result<Bytes> {
        Ok(self.call_with(method, path, body, &[]).await?.0)
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Option<&serde_json::Value>,
        headers: &[(&str, &str)],
    ) -> Result<(StatusCode, Bytes, http::HeaderMap)> {
        let client = self.http()?;
        let uri: Uri = format!("{}{path}", self.address).parse().with_context(|| {
            format!(
                "{:?} is no address of a node (--admin, GODWIT_ADMIN): HOST:PORT or https://HOST:PORT",
                self.address
            )
        })?;
        let reads = method == Method::GET;
        let mut request = Request::builder().method(method).uri(uri);
        if let Some(token) = self.token()? {
            let shown = HeaderValue::try_from(format!("Bearer {token}"))
                .context("the token has a line break or the like (--token-file, GODWIT_TOKEN)")?;
            request = request.header(header::AUTHORIZATION, shown);
        }
        let named = headers.iter().any(|(name, _)| *name == OPERATOR);
        let user = std::env::var("USER").ok().and_then(|user| HeaderValue::try_from(user).ok());
        if let (false, Some(user)) = (named, user) {
            request = request.header(OPERATOR, user);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let bytes = match body {
            Some(body) => {
                request = request.header(header::CONTENT_TYPE, "application/json");
                Bytes::from(serde_json::to_vec(body)?)
            }
            None => Bytes::new(),
        };
        let request = request.body(Full::new(bytes))?;
        let again = reads.then(|| request.clone());
        let mut response = client.request(request).await;
        // A connection that was kept may end as it is used.
        if let (Err(error), Some(request)) = (&response, again)
            && !error.is_connect()
        {
            response = client.request(request).await;
        }
        let response = response.with_context(|| {
            format!(
                "no godwit answers at {} (start one with godwit run, or name it with --admin)",
                self.address
            )
        })?;
        let (status, headers) = (response.status(), response.headers().clone());
        Ok((status, response.into_body().collect().await?.to_bytes(), headers))
    }
}

impl Client {
    fn token(&self) -> Result<Option<&str>> {
        if let Some(known) = self.token.get() {
            return Ok(known.as_deref());
        }
        let read = match &self.token_file {
            Some(path) => shown(&std::fs::read_to_string(path).with_context(|| {
                format!("cannot read {} (--token-file, GODWIT_TOKEN_FILE)", path.display())
            })?),
            None => None,
        };
        Ok(self.token.get_or_init(|| read).as_deref())
    }

    fn http(&self) -> Result<&Http> {
        if let Some(made) = self.http.get() {
            return Ok(made);
        }
        let made = HttpClient::builder(TokioExecutor::new()).build(self.connector()?);
        Ok(self.http.get_or_init(|| made))
    }

    fn connector(&self) -> Result<HttpsConnector<HttpConnector>> {
        let mut roots = RootCertStore::empty();
        if self.address.starts_with("https:") {
            match &self.ca {
                Some(path) => {
                    let unreadable = || format!("cannot use {} (--ca)", path.display());
                    for certificate in CertificateDer::pem_file_iter(path).with_context(unreadable)? {
                        roots.add(certificate.with_context(unreadable)?).with_context(unreadable)?;
                    }
                }
                None => {
                    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
                }
            }
        }
        let tls = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        Ok(HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().build())
    }
}

/// The token in this text.
fn shown(text: &str) -> Option<String> {
    Some(text.trim().to_owned()).filter(|token| !token.is_empty())
}

/// The path of a resource, whatever somebody calls it.
pub(super) fn resource_path(name: &str) -> String {
    format!("/api/v1/resources/{}", percent(name))
}

/// A segment of a path, or a value of a query (RFC 3986, section 2.1).
pub(super) fn percent(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
        out
    })
}

/// `</path>; rel="next"`.
fn next_page(link: &str) -> Option<&str> {
    let (path, relation) = link.strip_prefix('<')?.split_once('>')?;
    relation.contains("rel=\"next\"").then_some(path)
}

fn block_on<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(future)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(client: &Client) -> String {
        format!("{:#}", client.text("/livez").expect_err("nothing answers"))
    }

    #[test]
    fn whatever_somebody_calls_a_resource_is_one_segment_of_a_path() {
        assert_eq!(resource_path("shop.eu-1"), "/api/v1/resources/shop.eu-1");
        assert_eq!(
            resource_path("ord ers?x=1/../é%#"),
            "/api/v1/resources/ord%20ers%3Fx%3D1%2F..%2F%C3%A9%25%23"
        );
    }

    #[test]
    fn what_cannot_be_sent_is_said_by_its_name() {
        for address in ["", "a b:9900"] {
            let why = refused(&Client::new(address));
            assert!(why.contains("--admin"), "{address:?}: {why}");
        }
        let client = Client::new("127.0.0.1:9").with_token(Some("gdw_a\nb".into()));
        let why = refused(&client);
        assert!(why.contains("GODWIT_TOKEN") && !why.contains("gdw_a"), "{why}");
    }

    #[test]
    fn the_file_of_a_token_is_read_once_and_when_something_is_asked() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("token");
        let client = Client::new("127.0.0.1:9").with_token_file(file.clone());
        let why = refused(&client);
        assert!(why.contains("--token-file") && why.contains(&file.display().to_string()), "{why}");
        std::fs::write(&file, " gdw_x\n").expect("written");
        assert_eq!(client.token().expect("it is there"), Some("gdw_x"));
        std::fs::remove_file(&file).expect("it was there");
        assert_eq!(client.token().expect("it is known"), Some("gdw_x"));
        assert_eq!(Client::new("127.0.0.1:9").token().expect("none is needed"), None);
    }
}
