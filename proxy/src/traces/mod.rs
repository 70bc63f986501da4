//! Traces: which requests and migrations are told to a tracing backend, and what is said of them.
//!
//! A request that takes part gets a span of its own between its client's and its endpoint's ([`Place`], W3C Trace Context); a
//! migration is a trace of its own with a span per phase ([`migrations`]). Spans leave through a bounded queue, by OTLP over HTTP
//! (`otlp`, in builds with that feature): a backend that is slow or gone loses spans, never requests.

pub mod migrations;
#[cfg(feature = "otlp")]
mod otlp;

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;
use http::header::HeaderName;
use migration::units::Ratio;
use url::Url;

use crate::feeds::external::Secret;

/// Where traces go, and how many.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Takes OTLP over HTTP (`https://HOST:4318/v1/traces`).
    pub endpoint: Url,
    /// Sent along.
    pub headers: Vec<(HeaderName, Secret)>,
    /// Of the requests that nobody has decided about.
    pub sample: Ratio,
}

/// Whether this build can send any.
pub const SUPPORTED: bool = cfg!(feature = "otlp");

/// Where a span is in its trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The trace.
    pub trace: [u8; 16],
    /// The span.
    pub span: [u8; 8],
    /// The span that it is part of; none: it is the first.
    pub parent: Option<[u8; 8]>,
}

impl Place {
    /// The first of a new trace.
    pub fn first() -> Self {
        let mut trace = [0; 16];
        trace[..8].copy_from_slice(&crate::rng::quick().to_be_bytes());
        trace[8..].copy_from_slice(&luck());
        Self { trace, span: luck(), parent: None }
    }

    /// Below the span that a valid `traceparent` names.
    fn below(said: &[u8]) -> Option<Self> {
        let trace = bytes(said.get(3..35)?)?;
        Some(Self { trace, span: luck(), parent: Some(bytes(said.get(36..52)?)?) })
    }

    /// Another one below this.
    fn child(&self) -> Self {
        Self { trace: self.trace, span: luck(), parent: Some(self.span) }
    }

    /// The `traceparent` for whoever comes next: this trace, this span.
    pub fn header(&self, sampled: bool) -> Bytes {
        let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
        hex(&mut text[3..35], &self.trace);
        hex(&mut text[36..52], &self.span);
        if sampled {
            text[54] = b'1';
        }
        Bytes::copy_from_slice(&text)
    }
}

/// Never all zeros, which would be no id.
fn luck() -> [u8; 8] {
    (crate::rng::quick() | 1).to_be_bytes()
}

/// Two digits for each byte. Requests wait for it.
fn hex(text: &mut [u8], bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for (digits, byte) in text.chunks_exact_mut(2).zip(bytes) {
        digits.copy_from_slice(&[byte >> 4, byte & 0xf].map(|digit| DIGITS[usize::from(digit)]));
    }
}

/// Hexadecimal digits; none where they are not, or are not so many.
fn bytes<const N: usize>(digits: &[u8]) -> Option<[u8; N]> {
    let digits = std::str::from_utf8(digits).ok().filter(|digits| digits.len() == 2 * N)?;
    let mut bytes = [0; N];
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(digits.get(2 * at..2 * at + 2)?, 16).ok()?;
    }
    Some(bytes)
}

/// What is told of a request, a migration, or a phase of one.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    /// Which.
    pub place: Place,
    /// What kind of work: few different ones.
    pub name: Cow<'static, str>,
    /// Somebody else asked for it.
    pub serves: bool,
    /// When it began and ended, since 1970.
    pub began: Duration,
    /// See `began`.
    pub ended: Duration,
    /// Names of OpenTelemetry's semantic conventions, and our own under `godwit.`.
    pub facts: Vec<(&'static str, Fact)>,
    /// Why it failed.
    pub failed: Option<String>,
}

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub enum Fact {
    /// Words.
    Text(String),
    /// A count.
    Count(i64),
    /// A measure.
    Measure(f64),
}

#[cfg(feature = "otlp")]
type Way = otlp::Exporter;
/// There is none in this build.
#[cfg(not(feature = "otlp"))]
enum Way {}

/// Takes spans.
pub struct Traces {
    /// Of 2^64.
    threshold: u64,
    way: Way,
}

impl Traces {
    /// Sends to where the settings say, on `runtime`.
    ///
    /// # Errors
    /// There is no way in this build, or it cannot be set up.
    #[cfg(feature = "otlp")]
    pub fn start(
        settings: &Settings,
        node: &str,
        zone: &str,
        runtime: &tokio::runtime::Handle,
    ) -> anyhow::Result<Self> {
        let way = otlp::Exporter::start(settings, node, zone, runtime)?;
        Ok(Self { threshold: (settings.sample.get() * u64::MAX as f64) as u64, way })
    }

    /// There is no way to send any in this build.
    ///
    /// # Errors
    /// Always.
    #[cfg(not(feature = "otlp"))]
    pub fn start(_: &Settings, _: &str, _: &str, _: &tokio::runtime::Handle) -> anyhow::Result<Self> {
        anyhow::bail!("this build sends no traces: it lacks the feature otlp")
    }

    /// Where a request is whose client said this `traceparent` (valid, or none); `None`: it takes no part, and what was said is
    /// passed on as it is. Whoever is trusted decides; of others' requests some take part.
    pub fn place(&self, said: Option<&[u8]>, trusted: bool) -> Option<Place> {
        match said {
            Some(said) if trusted => {
                let flags: [u8; 1] = bytes(said.get(53..55)?)?;
                (flags[0] & 1 == 1).then(|| Place::below(said)).flatten()
            }
            Some(said) => self.chosen().then(|| Place::below(said)).flatten(),
            None => self.chosen().then(Place::first),
        }
    }

    fn chosen(&self) -> bool {
        self.threshold == u64::MAX || crate::rng::quick() < self.threshold
    }

    /// Leaves a span; never waits.
    pub fn send(&self, span: Span) {
        #[cfg(feature = "otlp")]
        self.way.send(span);
        #[cfg(not(feature = "otlp"))]
        {
            drop(span);
            match self.way {}
        }
    }

    /// Sends what is left, for at most `patience`; waits for that.
    pub fn end(&self, patience: Duration) {
        #[cfg(feature = "otlp")]
        self.way.end(patience);
        #[cfg(not(feature = "otlp"))]
        {
            let _ = patience;
            match self.way {}
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const SAID: &[u8] = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_span_below_another_is_in_the_same_trace() {
        let below = Place::below(SAID).unwrap();
        assert_eq!(below.trace[..2], [0x0a, 0xf7]);
        assert_eq!(below.parent, Some([0xb7, 0xad, 0x6b, 0x71, 0x69, 0x20, 0x33, 0x31]));
        let header = below.header(true);
        assert_eq!((header.len(), &header[..36]), (55, &SAID[..36]));
        assert_ne!(header[36..52], SAID[36..52], "its own span is what the endpoint's is below");
        assert_eq!(Place::below(&header).unwrap().parent, Some(below.span));
        assert_eq!(below.child().parent, Some(below.span));
        assert_ne!(Place::first().trace, Place::first().trace);
        assert_eq!(Place::below(b"00-0af7"), None);
        assert_eq!(bytes::<2>(b"0g1h"), None);
    }
}
