//! Holding a client's request, and noticing that the client left meanwhile.
//!
//! A request without a body: the connection is watched while it waits, so its place in the queue is free the moment the
//! client goes. A request with a body: reading would consume the body, so only the state of the socket is asked for, once,
//! at the release; until then it keeps its place. Half a close counts as leaving, as it does everywhere in the proxy library.

use std::sync::Arc;

use pingora::proxy::Session;

use crate::fronts::gate::{Admission, Gate};

use super::error::Fault;

/// `TCP_ESTABLISHED` of the kernel: both sides may still send.
const ESTABLISHED: u8 = 1;

/// Enters the gate, waiting while it is closed and the client is there.
pub(super) async fn enter(gate: &Arc<Gate>, session: &mut Session) -> Result<Admission, Fault> {
    if let Some(admission) = gate.try_enter() {
        return Ok(admission);
    }
    let downstream = &mut session.downstream_session;
    let header_bytes = match downstream.as_http1() {
        Some(http1) => http1.get_headers_raw_bytes().len(),
        None => fields(&downstream.req_header().headers),
    };
    let admission = if downstream.is_body_empty() {
        tokio::select! {
            biased;
            entered = gate.enter(header_bytes) => entered?,
            gone = downstream.read_body_or_idle(true) => return Err(match gone {
                Err(error) => Fault::of(&error.into_down()),
                Ok(_) => Fault::BadRequest,
            }),
        }
    } else {
        gate.enter(header_bytes).await?
    };
    if admission.held.is_some() && has_left(session) {
        return Err(Fault::ClientLeft);
    }
    Ok(admission)
}

/// How large decoded header fields are.
fn fields(headers: &http::HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum()
}

/// Whether the client has closed its side; when the kernel does not say, it is taken to be there.
fn has_left(session: &Session) -> bool {
    session
        .downstream_session
        .digest()
        .and_then(|digest| digest.socket_digest.as_ref())
        .and_then(|socket| socket.tcp_info())
        .is_some_and(|info| info.tcpi_state != ESTABLISHED)
}
