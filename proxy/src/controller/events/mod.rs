//! What changed, told to whoever listens: the controllers append, each listener reads at its own pace from one bounded
//! [`Ring`]. Nothing is polled and nothing is queued for a listener: it has a place in the ring, and when the ring has gone
//! past that place it is told so and dropped.

mod ring;
mod shapes;

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use migration::units::Timestamp;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::sync::CancellationToken;

use super::view::ResourceView;
use crate::lock::lock;

pub use ring::{Event, Gone, Kind, Ring};
pub use shapes::{MigrationEvent, ProblemEvent, Reset};

/// Events that are kept.
const EVENTS: usize = 4_096;
/// Bytes of events that are kept.
const BYTES: usize = 8 << 20;
/// Listeners at a time.
const LISTENERS: usize = 64;
/// Events a listener takes out of the ring at a time.
const BATCH: usize = 32;

/// The events of a node.
pub struct Events {
    ring: Mutex<Ring>,
    newest: watch::Sender<u64>,
    seats: Arc<Semaphore>,
    stop: CancellationToken,
}

impl Events {
    /// None yet. Numbers begin at a thousand for each millisecond since 1970, so that those of a later process are higher
    /// than those of an earlier one. Listening ends with `stop`.
    pub fn new(now: Timestamp, stop: CancellationToken) -> Self {
        let ring = Ring::new(now.0.saturating_mul(1_000), EVENTS, BYTES);
        Self {
            newest: watch::Sender::new(ring.newest()),
            ring: Mutex::new(ring),
            seats: Arc::new(Semaphore::new(LISTENERS)),
            stop,
        }
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        lock(&self.ring)
    }

    /// Tells what differs between two views of a resource.
    pub fn view(&self, old: &ResourceView, new: &ResourceView, at: Timestamp) {
        for (kind, data) in shapes::changes(old, new, at) {
            self.append(kind, &new.name, data);
        }
    }

    /// Tells a step of a migration.
    pub fn migration(&self, step: &MigrationEvent) {
        self.append(Kind::Migration, &step.resource, shapes::json(step));
    }

    /// Tells that there is no such resource any more.
    pub fn released(&self, resource: &str, at: Timestamp) {
        let data = serde_json::json!({ "resource": resource, "at_ms": at.0 });
        self.append(Kind::Released, resource, data.to_string());
    }

    fn append(&self, kind: Kind, resource: &str, data: String) {
        let newest = self.ring().append(kind, resource, data);
        // Two controllers may come here in the other order.
        self.newest.send_if_modified(|known| {
            let newer = newest > *known;
            *known = newest.max(*known);
            newer
        });
    }

    /// Listens from now on, or, `after` an event, from there. `only`: to these resources. `None`: there are as many
    /// listeners as there may be.
    pub fn listen(self: &Arc<Self>, only: Option<BTreeSet<String>>, after: Option<u64>) -> Option<Listener> {
        let seat = self.seats.clone().try_acquire_owned().ok()?;
        let (newest, oldest) = {
            let ring = self.ring();
            (ring.newest(), ring.oldest())
        };
        let mut listener = Listener {
            events: self.clone(),
            changed: self.newest.subscribe(),
            only,
            place: after.unwrap_or(newest),
            taken: VecDeque::new(),
            reset: None,
            ended: false,
            _seat: seat,
        };
        let kept = |after: u64| after.saturating_add(1) >= oldest && after <= newest;
        listener.reset = match after {
            None => Some(Reset::start()),
            Some(after) if !kept(after) => Some(Reset::gap(after, oldest, newest)),
            Some(_) => None,
        };
        if listener.reset.is_some() {
            listener.place = newest;
        }
        Some(listener)
    }
}

/// What a listener hears.
#[derive(Clone, Debug, PartialEq)]
pub enum Message {
    /// Something happened.
    Event(Arc<Event>),
    /// Events were missed, or this is the start: read the state anew. The number is where listening goes on.
    Reset(u64, Reset),
}

/// One listener. Dropping it gives its seat back.
pub struct Listener {
    events: Arc<Events>,
    changed: watch::Receiver<u64>,
    only: Option<BTreeSet<String>>,
    /// The last event that was taken or passed over.
    place: u64,
    taken: VecDeque<Arc<Event>>,
    reset: Option<Reset>,
    ended: bool,
    _seat: OwnedSemaphorePermit,
}

impl Listener {
    /// The next message, once there is one; `None`: it was too slow and has been told so, or the node stops. Cancelling it
    /// loses nothing.
    pub async fn next(&mut self) -> Option<Message> {
        loop {
            if let Some(reset) = self.reset.take() {
                return Some(Message::Reset(self.place, reset));
            }
            if let Some(event) = self.taken.pop_front() {
                return Some(Message::Event(event));
            }
            if self.ended {
                return None;
            }
            self.changed.mark_unchanged();
            self.take();
            if !self.taken.is_empty() || self.reset.is_some() {
                continue;
            }
            tokio::select! {
                biased;
                () = self.events.stop.cancelled() => return None,
                changed = self.changed.changed() => changed.ok()?,
            }
        }
    }

    fn take(&mut self) {
        let taken = self.events.ring().after(self.place, BATCH);
        match taken {
            Ok(events) => {
                let Some(last) = events.last() else { return };
                self.place = last.id;
                let wanted =
                    |event: &Arc<Event>| self.only.as_ref().is_none_or(|only| only.contains(&event.resource));
                self.taken.extend(events.into_iter().filter(wanted));
                // A whole batch of other resources' events: there may be more.
                if self.taken.is_empty() {
                    self.take();
                }
            }
            Err(Gone { oldest, newest }) => {
                self.reset = Some(Reset::slow(self.place, oldest, newest));
                self.place = newest;
                self.ended = true;
            }
        }
    }
}

#[cfg(test)]
mod tests;
