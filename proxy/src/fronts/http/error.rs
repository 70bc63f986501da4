//! Every way a request can fail here, and the one table from that to what the client gets.
//!
//! Nothing of the upstream's or our own error text reaches a client.

use bytes::Bytes;
use http::{HeaderValue, Method, header};
use pingora::http::ResponseHeader;
use pingora::proxy::Session;
use pingora::{Error, ErrorSource, ErrorType};

use crate::fronts::gate::Refused;

/// Why a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// No front serves the host.
    UnknownHost,
    /// The gate holds as many as it may.
    HoldFull,
    /// The gate held it as long as it may.
    HoldTooLong,
    /// The active pool has no endpoint.
    NoUpstream,
    /// No endpoint took a connection.
    Unreachable,
    /// An endpoint did not answer in time.
    TimedOut,
    /// An endpoint closed the connection, or answered what is not HTTP.
    BadAnswer,
    /// The placement has as many requests as it may.
    Full,
    /// A kept connection had ended before an endpoint took anything of the request, and it cannot be sent again.
    NotSent,
    /// The request is not HTTP as it should be.
    BadRequest,
    /// The request's target is longer than it may be.
    UriTooLong,
    /// The request's header is larger than it may be.
    HeaderTooLarge,
    /// The request's body is larger than it may be.
    BodyTooLarge,
    /// A long stream was ended because its resource moved.
    Moved,
    /// The client left.
    ClientLeft,
    /// The client sent nothing more of its body.
    ClientStalled,
    /// A fault of ours.
    Internal,
}

/// What a client gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The status.
    pub status: u16,
    /// `Retry-After`, seconds.
    pub retry_after: Option<&'static str>,
    /// The body: RFC 9457.
    pub problem: &'static str,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 17] = [
        Self::UnknownHost,
        Self::HoldFull,
        Self::HoldTooLong,
        Self::NoUpstream,
        Self::Unreachable,
        Self::TimedOut,
        Self::BadAnswer,
        Self::Full,
        Self::NotSent,
        Self::BadRequest,
        Self::UriTooLong,
        Self::HeaderTooLarge,
        Self::BodyTooLarge,
        Self::Moved,
        Self::ClientLeft,
        Self::ClientStalled,
        Self::Internal,
    ];

    /// The table. None: nobody is there to get a reply.
    pub fn reply(self) -> Option<Reply> {
        let (status, retry_after, problem) = match self {
            Self::UnknownHost => (
                404,
                None,
                r#"{"type":"about:blank","title":"Not Found","status":404,"detail":"no service here answers to this host"}"#,
            ),
            Self::HoldFull => (
                503,
                Some("1"),
                r#"{"type":"about:blank","title":"Service Unavailable","status":503,"detail":"as many requests are held as may be; try again"}"#,
            ),
            Self::HoldTooLong => (
                503,
                Some("1"),
                r#"{"type":"about:blank","title":"Service Unavailable","status":503,"detail":"the request was held as long as it may be and was not processed; try again"}"#,
            ),
            Self::NoUpstream => (
                503,
                Some("1"),
                r#"{"type":"about:blank","title":"Service Unavailable","status":503,"detail":"the service has no endpoint now"}"#,
            ),
            Self::Unreachable => (
                502,
                None,
                r#"{"type":"about:blank","title":"Bad Gateway","status":502,"detail":"the service could not be reached"}"#,
            ),
            Self::TimedOut => (
                504,
                None,
                r#"{"type":"about:blank","title":"Gateway Timeout","status":504,"detail":"the service did not answer in time"}"#,
            ),
            Self::BadAnswer => (
                502,
                None,
                r#"{"type":"about:blank","title":"Bad Gateway","status":502,"detail":"the service gave no valid answer; the request may have been processed"}"#,
            ),
            Self::Full => (
                503,
                Some("1"),
                r#"{"type":"about:blank","title":"Service Unavailable","status":503,"detail":"the service has as many requests as it may; try again"}"#,
            ),
            Self::NotSent => (
                503,
                Some("1"),
                r#"{"type":"about:blank","title":"Service Unavailable","status":503,"detail":"the connection to the service ended before it took the request, which was not processed; try again"}"#,
            ),
            Self::Moved => (
                503,
                Some("1"),
                r#"{"type":"about:blank","title":"Service Unavailable","status":503,"detail":"the service has moved before it answered; the request may have been processed"}"#,
            ),
            Self::UriTooLong => (
                414,
                None,
                r#"{"type":"about:blank","title":"URI Too Long","status":414,"detail":"the target of the request is longer than it may be"}"#,
            ),
            Self::HeaderTooLarge => (
                431,
                None,
                r#"{"type":"about:blank","title":"Request Header Fields Too Large","status":431,"detail":"the header of the request is larger than it may be"}"#,
            ),
            Self::BodyTooLarge => (
                413,
                None,
                r#"{"type":"about:blank","title":"Payload Too Large","status":413,"detail":"the body of the request is larger than it may be"}"#,
            ),
            Self::BadRequest => (
                400,
                None,
                r#"{"type":"about:blank","title":"Bad Request","status":400,"detail":"the request is not valid HTTP"}"#,
            ),
            Self::ClientLeft => return None,
            Self::ClientStalled => (
                408,
                None,
                r#"{"type":"about:blank","title":"Request Timeout","status":408,"detail":"the rest of the request's body did not come in time"}"#,
            ),
            Self::Internal => (
                500,
                None,
                r#"{"type":"about:blank","title":"Internal Server Error","status":500,"detail":"the proxy failed"}"#,
            ),
        };
        Some(Reply { status, retry_after, problem })
    }

    /// Its name in logs.
    pub fn label(self) -> &'static str {
        match self {
            Self::UnknownHost => "unknown_host",
            Self::HoldFull => "hold_full",
            Self::HoldTooLong => "hold_too_long",
            Self::NoUpstream => "no_upstream",
            Self::Unreachable => "unreachable",
            Self::TimedOut => "timed_out",
            Self::BadAnswer => "bad_answer",
            Self::Full => "full",
            Self::NotSent => "not_sent",
            Self::BadRequest => "bad_request",
            Self::UriTooLong => "uri_too_long",
            Self::HeaderTooLarge => "header_too_large",
            Self::BodyTooLarge => "body_too_large",
            Self::Moved => "moved",
            Self::ClientLeft => "client_left",
            Self::ClientStalled => "client_stalled",
            Self::Internal => "internal",
        }
    }

    /// Whether the operator should hear of it.
    pub fn is_ours(self) -> bool {
        !matches!(
            self,
            Self::UnknownHost
                | Self::BadRequest
                | Self::UriTooLong
                | Self::HeaderTooLarge
                | Self::BodyTooLarge
                | Self::Moved
                | Self::ClientLeft
                | Self::ClientStalled
        )
    }

    /// What an error of the proxy library means.
    pub fn of(error: &Error) -> Self {
        use ErrorType::{
            ConnectError, ConnectNoRoute, ConnectRefused, ConnectTimedout, ConnectionClosed, H2Error,
            ReadError, ReadTimedout, WriteError, WriteTimedout,
        };
        match (error.esource(), error.etype()) {
            // Of HTTP/2 it is a reset, or the connection's end.
            (
                ErrorSource::Downstream,
                ConnectionClosed | H2Error | ReadError | WriteError | WriteTimedout,
            ) => Self::ClientLeft,
            // Of what is read here only a body has a time.
            (ErrorSource::Downstream, ReadTimedout) => Self::ClientStalled,
            (ErrorSource::Downstream, _) => Self::BadRequest,
            (ErrorSource::Upstream, ConnectRefused | ConnectNoRoute | ConnectError) => Self::Unreachable,
            (ErrorSource::Upstream, ConnectTimedout | ReadTimedout | WriteTimedout) => Self::TimedOut,
            (ErrorSource::Upstream, _) => Self::BadAnswer,
            (ErrorSource::Internal | ErrorSource::Unset, _) => Self::Internal,
        }
    }

    /// Its status; 499, which nobody gets to see, when the client left.
    pub fn status(self) -> u16 {
        self.reply().map_or(499, |reply| reply.status)
    }
}

impl From<Refused> for Fault {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::TooMany | Refused::TooLarge => Self::HoldFull,
            Refused::TooLong => Self::HoldTooLong,
        }
    }
}

impl Reply {
    /// Sends it, unless a response has begun. The connection is closed after it.
    pub(super) async fn send(&self, session: &mut Session) -> pingora::Result<()> {
        let mut header = ResponseHeader::build(self.status, Some(4))?;
        header.insert_header(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"))?;
        header.insert_header(header::CONTENT_LENGTH, self.problem.len())?;
        header.insert_header(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))?;
        if let Some(seconds) = self.retry_after {
            header.insert_header(header::RETRY_AFTER, HeaderValue::from_static(seconds))?;
        }
        let bodiless = session.req_header().method == Method::HEAD;
        let body = if bodiless { Bytes::new() } else { Bytes::from_static(self.problem.as_bytes()) };
        session.downstream_session.write_error_response(header, body).await
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fmt::Write as _;

    use super::*;

    #[test]
    fn the_table() {
        let mut table = String::new();
        for fault in Fault::ALL {
            let Some(reply) = fault.reply() else {
                writeln!(table, "{:14} -", fault.label()).unwrap();
                continue;
            };
            let problem: serde_json::Value = serde_json::from_str(reply.problem).unwrap();
            assert_eq!(problem["status"], reply.status);
            let title = http::StatusCode::from_u16(reply.status).unwrap().canonical_reason().unwrap();
            assert_eq!(problem["title"], title);
            let retry = reply.retry_after.unwrap_or("-");
            let detail = problem["detail"].as_str().unwrap();
            writeln!(table, "{:14} {} {retry} {detail}", fault.label(), reply.status).unwrap();
        }
        insta::assert_snapshot!(table, @r"
        unknown_host   404 - no service here answers to this host
        hold_full      503 1 as many requests are held as may be; try again
        hold_too_long  503 1 the request was held as long as it may be and was not processed; try again
        no_upstream    503 1 the service has no endpoint now
        unreachable    502 - the service could not be reached
        timed_out      504 - the service did not answer in time
        bad_answer     502 - the service gave no valid answer; the request may have been processed
        full           503 1 the service has as many requests as it may; try again
        not_sent       503 1 the connection to the service ended before it took the request, which was not processed; try again
        bad_request    400 - the request is not valid HTTP
        uri_too_long   414 - the target of the request is longer than it may be
        header_too_large 431 - the header of the request is larger than it may be
        body_too_large 413 - the body of the request is larger than it may be
        moved          503 1 the service has moved before it answered; the request may have been processed
        client_left    -
        client_stalled 408 - the rest of the request's body did not come in time
        internal       500 - the proxy failed
        ");
    }

    #[test]
    fn errors_are_classified_by_source_and_kind() {
        let up = |kind| Error::new(kind).into_up();
        let down = |kind| Error::new(kind).into_down();
        for (error, fault) in [
            (up(ErrorType::ConnectRefused), Fault::Unreachable),
            (up(ErrorType::ConnectTimedout), Fault::TimedOut),
            (up(ErrorType::ConnectionClosed), Fault::BadAnswer),
            (up(ErrorType::InvalidHTTPHeader), Fault::BadAnswer),
            (up(ErrorType::H2Error), Fault::BadAnswer),
            (down(ErrorType::ConnectionClosed), Fault::ClientLeft),
            (down(ErrorType::H2Error), Fault::ClientLeft),
            (down(ErrorType::ReadTimedout), Fault::ClientStalled),
            (down(ErrorType::WriteTimedout), Fault::ClientLeft),
            (down(ErrorType::InvalidHTTPHeader), Fault::BadRequest),
            (Error::new(ErrorType::InternalError), Fault::Internal),
        ] {
            assert_eq!(Fault::of(&error), fault, "{error}");
        }
    }
}
