//! Waiting, under the hold, until nobody is inside any more; and who it is that does not come to an end.

use std::convert::Infallible;
use std::time::Duration;

use migration::policy::{OnDrainTimeout, Policy, ReadsDuringHold};
use migration::units::Zone;
use replicator::fence;

use super::effects::{Failure, Hands};
use crate::causes::chain;
use crate::clock;
use crate::fronts::routes::ResourceFront;
use crate::lock::lock;

/// How often it is looked, under the hold, whether who is inside counts as a stream by now: the regular look comes too seldom for that.
const LOOK: Duration = Duration::from_millis(10);

/// How long a hold waits for who is inside, at most.
pub(super) fn longest(policy: &Policy) -> Duration {
    policy.drain_timeout.min(policy.max_hold)
}

/// Every request has left, or is a stream.
async fn no_requests(front: &ResourceFront) {
    let leaving = async {
        loop {
            front.streams.leave(clock::monotonic());
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::select! {
        () = front.gate.drained() => {}
        never = leaving => match never {},
    }
}

impl Hands {
    /// Nobody is inside `primary` any more. Where that takes more than half of its time, who is still there is noted: a move that is undone
    /// for it says so.
    pub(super) async fn drain(&self, primary: &Zone, next: Option<&Zone>) -> Result<(), Failure> {
        *lock(&self.undrained) = None;
        tokio::select! {
            drained = self.drained(next) => drained,
            never = self.note_undrained(primary) => match never {},
        }
    }

    /// Nobody is inside any more: HTTP first, then PostgreSQL, whose sessions get ready for `next`.
    async fn drained(&self, next: Option<&Zone>) -> Result<(), Failure> {
        if let Some(front) = &self.front {
            no_requests(front).await;
        }
        let Some(front) = &self.postgres else { return Ok(()) };
        let turnstile = &front.turnstile;
        let but_reads = self.policy().reads_during_hold == ReadsDuringHold::GoOn;
        if !turnstile.close_if_armed(next.map(|zone| zone.0.clone()), but_reads) {
            return Err("the gate was opened again".into());
        }
        let drained = || async {
            if but_reads {
                turnstile.only_reads().await;
                turnstile.close_reads();
            }
            turnstile.drained().await;
        };
        if self.policy().on_drain_timeout == OnDrainTimeout::Terminate {
            // What is left of the hold is for the fence and the last changes.
            let patience = self.policy().drain_timeout.min(self.policy().max_hold / 2);
            if tokio::time::timeout(patience, drained()).await.is_err() {
                let open = turnstile.stats().running;
                tracing::warn!(resource = %self.resource.name, sessions = open, "open transactions are ended");
                turnstile.end_transactions();
            }
        }
        drained().await;
        Ok(())
    }

    async fn note_undrained(&self, primary: &Zone) -> Infallible {
        let half = longest(&self.policy()) / 2;
        tokio::time::sleep(half).await;
        let inside = self.inside(primary, half).await;
        tracing::warn!(resource = %self.resource.name, inside, "the hold waits");
        *lock(&self.undrained) = Some(inside).filter(|inside| !inside.is_empty());
        std::future::pending().await
    }

    /// Who has been inside for so long, in words.
    async fn inside(&self, primary: &Zone, long: Duration) -> String {
        let requests = self.front.as_ref().map_or(0, |front| front.gate.stats().in_flight);
        let mut inside: Vec<String> =
            (requests > 0).then(|| format!("{requests} requests are under way")).into_iter().collect();
        if let Some(front) = self.postgres.as_ref().filter(|front| front.turnstile.is_closed()) {
            let ours = front.processes(&primary.0);
            let found = async {
                let client = self.control(primary).await?;
                fence::in_the_way(&client, long, &ours, true).await.map_err(chain)
            };
            let running = front.turnstile.stats().running;
            match found.await {
                Ok(found) if !found.is_empty() => inside.extend(found),
                _ if running > 0 => {
                    inside.push(format!("{running} sessions of the PostgreSQL front are in a transaction"));
                }
                _ => {}
            }
        }
        inside.join("; ")
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::config::model::{HoldLimits, HttpFront};
    use crate::fronts::http::settings::AtCutover;
    use crate::fronts::pools::Pool;
    use crate::fronts::streams::{Arrival, UNANSWERED};

    /// Nobody looks at the streams but the drain.
    #[tokio::test]
    async fn who_asked_for_a_stream_just_now_is_waited_for_for_a_small_part_of_the_hold() {
        const HOLD: HoldLimits = HoldLimits { requests: 9, bytes: 9, time: Duration::from_secs(9) };
        let listen = SocketAddr::from(([127, 0, 0, 1], 1));
        let front =
            ResourceFront::new("a", &HttpFront::plain(listen, &[]), HOLD, Pool::new(0, "z", &[listen]));
        let now = clock::monotonic();
        let pick = front.pool.pick(&[], now).unwrap();
        let arrival = Arrival {
            generation: 0,
            at_cutover: AtCutover::Finish,
            client: None,
            certain: now + UNANSWERED,
            admission: front.gate.try_enter(),
            streaming: pick.streams(None),
        };
        let _place = front.streams.begin(arrival, now);
        front.gate.close();
        let drained = tokio::time::timeout(Duration::from_secs(20), no_requests(&front)).await;
        assert!(drained.is_ok() && clock::monotonic() >= now + UNANSWERED);
    }
}
