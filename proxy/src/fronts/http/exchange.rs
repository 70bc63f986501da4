//! What the front remembers of one request while it passes.

use std::net::SocketAddr;
use std::sync::Arc;

use pingora::proxy::Session;
use pingora::{Error, ErrorType, Result};

use crate::fronts::gate::Admission;
use crate::fronts::latencies::Sample;
use crate::fronts::now;
use crate::fronts::pools::Pick;
use crate::fronts::routes::ResourceFront;
use crate::fronts::stopwatch::{Outcome, Stopwatch};

use super::error::Fault;

/// One request and its response. Dropping it leaves the gate and ends the claim on an endpoint, whatever happened.
pub struct Exchange {
    pub(super) watch: Stopwatch,
    pub(super) front: Option<Arc<ResourceFront>>,
    pub(super) admission: Option<Admission>,
    pub(super) pick: Option<Pick>,
    /// The zone of the endpoint it was last at.
    pub(super) zone: Option<Arc<str>>,
    /// Endpoints that could not be used.
    pub(super) tried: Vec<SocketAddr>,
    /// Why it failed, once that is known.
    pub(super) fault: Option<Fault>,
}

impl Exchange {
    /// The request's header was read.
    pub(super) fn start() -> Self {
        Self {
            watch: Stopwatch::start(now()),
            front: None,
            admission: None,
            pick: None,
            zone: None,
            tried: Vec::new(),
            fault: None,
        }
    }

    /// Notes why it fails.
    pub(super) fn fail<T>(&mut self, fault: Fault) -> Result<T> {
        self.fault = Some(fault);
        // Never retried by the proxy library.
        Error::e_explain(ErrorType::HTTPStatus(fault.status()), fault.label())
    }

    /// The endpoint it is at could not be used: leaves it, and avoids it from now on.
    pub(super) fn give_up_endpoint(&mut self) -> Option<Pick> {
        let pick = self.pick.take()?;
        self.tried.push(pick.address());
        self.zone = Some(Arc::clone(&pick.zone));
        Some(pick)
    }

    /// Leaves the gate and the endpoint, and returns what is kept of it.
    pub(super) fn finish(&mut self, session: &Session, error: Option<&Error>) -> Sample {
        drop(self.admission.take());
        let zone = self.pick.take().map(|pick| Arc::clone(&pick.zone)).or_else(|| self.zone.take());
        let status = session.response_written().map(|header| header.status.as_u16());
        let outcome = match (error, self.fault, status) {
            (None, _, Some(status)) => Outcome::Status(status),
            (_, Some(Fault::ClientLeft), _) | (_, None, None) => Outcome::Cancelled,
            (_, Some(fault), Some(status)) if fault.status() != status => Outcome::Aborted,
            (_, _, Some(status)) => Outcome::Status(status),
            (_, Some(fault), None) => Outcome::Status(fault.status()),
        };
        let whole = error.is_none();
        Sample {
            resource: self.front.take().map(|front| Arc::clone(&front.name)),
            zone,
            outcome,
            held: Some(self.watch.hold()).filter(|held| !held.is_zero()),
            segments: whole.then(|| self.watch.finish(now())).flatten(),
        }
    }
}
