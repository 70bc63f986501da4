//! How a client learns that its request or its stream is over.

use std::time::Duration;

use http::StatusCode;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use pingora::http::ResponseHeader;
use pingora::proxy::Session;

use super::websocket::RESTART;

/// How much of a refused request's body is read so that the client gets to see the reply, and for how long.
const LINGER: (usize, Duration) = (1 << 20, Duration::from_millis(500));

/// The response whose header was sent. An informational one before it is none, but that of an upgrade is.
pub(super) fn response(session: &Session) -> Option<&ResponseHeader> {
    let is_final =
        |status: StatusCode| !status.is_informational() || status == StatusCode::SWITCHING_PROTOCOLS;
    session.response_written().filter(|header| is_final(header.status))
}

/// Ends a long stream that has to go, so that its client takes it for an end and comes again: a gRPC status, or the regular
/// end of a body of events. Of any other body the client must see that a part is missing: the library breaks it off. A WebSocket mostly got its
/// close frame when the endpoint's connection was ended; where that broke instead, it gets it here if a frame may follow (`close`).
pub(super) async fn end_stream(session: &mut Session, close: bool) {
    let Some(written) = response(session) else { return };
    let kind = written.headers.get(CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    let grpc = kind.starts_with(b"application/grpc");
    let open = written.status == StatusCode::SWITCHING_PROTOCOLS || kind.starts_with(b"text/event-stream");
    let ended = if grpc && session.is_http2() {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("14"));
        trailers.insert("grpc-message", HeaderValue::from_static("the service has moved; call again"));
        session.downstream_session.write_response_trailers(trailers).await
    } else if close {
        session.downstream_session.write_response_body(RESTART, true).await
    } else if open {
        session.downstream_session.finish_body().await
    } else {
        return;
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a stream that has to go could not be told so");
    }
}

/// Reads what the client is still sending, within bounds: closing on unread bytes would reset the connection, and the
/// client might lose the reply.
pub(super) async fn linger(session: &mut Session) {
    let (mut left, time) = LINGER;
    let read = async {
        while left > 0 && !session.downstream_session.is_body_done() {
            match session.downstream_session.read_request_body().await {
                Ok(Some(bytes)) => left = left.saturating_sub(bytes.len().max(1)),
                Ok(None) | Err(_) => return,
            }
        }
    };
    // A client that is still sending after that is on its own.
    let _ = tokio::time::timeout(time, read).await;
}
