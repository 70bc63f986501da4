//! The dashboard: the files of `proxy/dashboard`, inside the program; its modules joined, its styles too, and all of it compressed once, when
//! the first is asked for.

mod join;

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::LazyLock;

use axum::extract::Path;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use flate2::Compression;
use flate2::write::GzEncoder;
use sha2::{Digest, Sha256};

use super::Problem;

/// Scripts, styles, connections and pictures of this origin only; no inline code; in nobody's frame.
const POLICY: &str =
    "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'";

macro_rules! files {
    ($($path:literal)*) => {
        &[$(($path, include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/dashboard/", $path)) as &[u8])),*]
    };
}

/// Every file that is served; a test compares it with the folder.
const FILES: &[(&str, &[u8])] = files! {
    "api.js"
    "app.js"
    "chart.js"
    "format.js"
    "icon.svg"
    "index.html"
    "live.js"
    "parts/audit.js"
    "parts/checks.js"
    "parts/cost.js"
    "parts/fan.js"
    "parts/history.js"
    "parts/latency.js"
    "parts/login.js"
    "parts/migrate.js"
    "parts/overview.js"
    "parts/replication.js"
    "parts/resource.js"
    "parts/score.js"
    "parts/settings.js"
    "parts/state.js"
    "parts/timeline.js"
    "parts/zones.js"
    "store.js"
    "style.css"
    "theme.js"
    "ui.js"
    "vendor/LICENSE-atlas"
    "vendor/LICENSE-htm"
    "vendor/LICENSE-preact"
    "vendor/LICENSE-signals"
    "vendor/LICENSE-signals-core"
    "vendor/LICENSE-uplot"
    "vendor/htm.js"
    "vendor/land.js"
    "vendor/preact-hooks.js"
    "vendor/preact.js"
    "vendor/signals-core.js"
    "vendor/signals.js"
    "vendor/uplot.css"
    "vendor/uplot.js"
};

struct Asset {
    kind: &'static str,
    plain: Vec<u8>,
    gzip: Vec<u8>,
    tag: HeaderValue,
}

/// Modules that the page asks for when they are wanted, and that share the others with [`ENTRY`].
const LATER: &[&str] = &["parts/audit.js", "parts/settings.js"];

static ASSETS: LazyLock<BTreeMap<&str, Asset>> = LazyLock::new(|| {
    let served = FILES.iter().filter(|(path, _)| match *path {
        ENTRY => true,
        CHARTS_STYLE => false,
        path => !part_of_entry(path),
    });
    served.map(|(path, plain)| (*path, Asset::of(path, prepared(path, plain)))).collect()
});

/// Goes before the page's own style, in one file.
const CHARTS_STYLE: &str = "vendor/uplot.css";

/// The module that all others are joined to.
const ENTRY: &str = "app.js";

fn part_of_entry(path: &str) -> bool {
    extension(path) == "js" && !path.starts_with("vendor/") && !LATER.contains(&path)
}

/// Lower case in every file of the dashboard; none: empty.
fn extension(path: &str) -> &str {
    path.rsplit_once('.').map_or("", |(_, extension)| extension)
}

fn text_of(path: &str) -> Option<&'static str> {
    let (_, plain) = FILES.iter().find(|(name, _)| *name == path)?;
    std::str::from_utf8(plain).ok()
}

fn prepared(path: &str, plain: &'static [u8]) -> Vec<u8> {
    match path {
        ENTRY => join::join(ENTRY, LATER, &text_of).into_bytes(),
        _ if LATER.contains(&path) => join::later(path, ENTRY, &text_of).into_bytes(),
        "style.css" => [CHARTS_STYLE, path]
            .iter()
            .filter_map(|path| text_of(path))
            .map(join::tight)
            .collect::<String>()
            .into_bytes(),
        _ => plain.to_vec(),
    }
}

impl Asset {
    fn of(path: &str, plain: Vec<u8>) -> Self {
        let kind = match extension(path) {
            "html" => "text/html; charset=utf-8",
            "css" => "text/css; charset=utf-8",
            "js" => "text/javascript; charset=utf-8",
            "svg" => "image/svg+xml",
            _ => "text/plain; charset=utf-8",
        };
        let hash = Sha256::digest(&plain);
        let hex = hash.iter().take(8).fold(String::new(), |text, byte| format!("{text}{byte:02x}"));
        // Hexadecimal digits in quotes are a header value.
        let tag = HeaderValue::try_from(format!("\"{hex}\"")).unwrap_or(HeaderValue::from_static("\"\""));
        Self { kind, gzip: gzip(&plain), plain, tag }
    }

    fn answer(&'static self, headers: &HeaderMap) -> Response {
        let known = headers.get(header::IF_NONE_MATCH).and_then(|tags| tags.to_str().ok());
        let tag = self.tag.to_str().unwrap_or_default();
        let fresh = known.is_some_and(|tags| {
            tags.split(',').any(|one| one.trim().trim_start_matches("W/") == tag || one.trim() == "*")
        });
        let zipped = accepts_gzip(headers);
        let mut response = if fresh {
            StatusCode::NOT_MODIFIED.into_response()
        } else if zipped {
            self.gzip.as_slice().into_response()
        } else {
            self.plain.as_slice().into_response()
        };
        let mut set = |name: HeaderName, value: &'static str| {
            response.headers_mut().insert(name, HeaderValue::from_static(value));
        };
        if !fresh {
            set(header::CONTENT_TYPE, self.kind);
            if zipped {
                set(header::CONTENT_ENCODING, "gzip");
            }
        }
        set(header::VARY, "accept-encoding");
        // Asked about each time, sent only when a new version of the program has another one.
        set(header::CACHE_CONTROL, "no-cache");
        set(header::CONTENT_SECURITY_POLICY, POLICY);
        set(header::X_CONTENT_TYPE_OPTIONS, "nosniff");
        set(header::REFERRER_POLICY, "no-referrer");
        set(header::X_FRAME_OPTIONS, "DENY");
        response.headers_mut().insert(header::ETAG, self.tag.clone());
        response
    }
}

fn accepts_gzip(headers: &HeaderMap) -> bool {
    let accepted = headers.get(header::ACCEPT_ENCODING).and_then(|value| value.to_str().ok());
    accepted.unwrap_or_default().split(',').any(|one| {
        let mut parts = one.split(';').map(str::trim);
        let refused = |quality: &str| {
            quality.strip_prefix("q=").is_some_and(|q| q.parse::<f32>().is_ok_and(|q| q <= 0.0))
        };
        matches!(parts.next(), Some("gzip" | "*")) && !parts.any(refused)
    })
}

fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    // Writing to memory cannot fail.
    let _ = encoder.write_all(plain);
    encoder.finish().unwrap_or_default()
}

pub(super) async fn index(headers: HeaderMap) -> Response {
    answer("index.html", &headers)
}

pub(super) async fn asset(Path(path): Path<String>, headers: HeaderMap) -> Response {
    answer(&path, &headers)
}

fn answer(path: &str, headers: &HeaderMap) -> Response {
    match ASSETS.get(path) {
        Some(asset) => asset.answer(headers),
        None => Problem::not_found("file of the dashboard", path).into_response(),
    }
}

#[cfg(test)]
mod tests;
