//! Effects that stop writes: the fence, what is settled under it, and its end.

use std::time::Duration;

use migration::cutover::{Phase, Run, State};
use migration::units::{Generation, Position, Zone};
use replicator::beside::Shadow;
use replicator::fence::{self, FenceSpec};
use replicator::large_objects::Left;
use replicator::sequences::{self, SequenceState};
use replicator::{Error, Lsn};

use super::databases::Purpose;
use super::effects::{Failure, Hands};
use crate::causes::chain;
use crate::lock::lock;

/// What a fence told so far.
#[derive(Clone, Default)]
pub(super) enum Fenced {
    /// None was raised.
    #[default]
    No,
    /// Writes are stopped; sessions still end.
    Raised(Generation, Vec<SequenceState>),
    /// Nobody is connected any more.
    Done(Generation, Vec<SequenceState>, Left),
    /// Sessions did not end.
    Failed(Failure),
}

impl Hands {
    /// What grows with the number of tables and sequences; under the hold only what changes from here on is left.
    pub(super) async fn prepare_fence(&self, run: &Run, generation: Generation) -> Result<(), Failure> {
        let from = self.databases.get(&run.from.0, Purpose::Fence).await.map_err(chain)?;
        let known = fence::prepare(&from, &self.resource.name, &run.id).await.map_err(chain)?;
        let (client, resource) = (&*self.control(&run.to).await?, &*self.resource.name);
        let shadow = Shadow { client, resource, generation: generation.0 };
        sequences::apply(shadow, &run.id, &known).await.map_err(chain)
    }

    /// Nobody waits for it, and triggers that stay let pass.
    pub(super) async fn clear_fence(&self, zone: &Zone) {
        if !self.resource.load().has_database() {
            return;
        }
        let cleared = async {
            let client = self.control(zone).await?;
            fence::clear(&client, &self.resource.name).await.map_err(chain)
        };
        if let Err(why) = cleared.await {
            tracing::info!(resource = %self.resource.name, %zone, why, "triggers of the fence stay for now: they let pass");
        }
    }

    pub(super) async fn fence(
        &self,
        zone: &Zone,
        generation: Generation,
        run: &Run,
        up: impl Fn(Position),
    ) -> Result<(), Failure> {
        let _fencing = self.fencing.lock().await;
        let settings = self.databases.settings(&zone.0).map_err(chain)?;
        let client = self.databases.get(&zone.0, Purpose::Fence).await.map_err(chain)?;
        let spec = FenceSpec {
            resource: self.resource.name.clone(),
            generation: generation.0,
            run: run.id.clone(),
            holder: self.holder().map(str::to_owned),
            app_roles: settings.app_roles.clone(),
            // Under the server's deadlock_timeout: the application must not become the victim of a deadlock with the fence.
            lock_timeout: (self.policy().max_hold / 2).min(Duration::from_millis(500)),
            // Unless the triggers took long: over before the run is undone for it, so that it is said who did not end.
            kill_timeout: self.hold_left(run.limits.hold).mul_f64(0.9),
            large_objects: self.large_objects.horizon(generation.0 - 1),
        };
        self.fenced.send_replace(Fenced::No);
        let compared = self.compared.lock().await.clone();
        let closed = fence::close_telling(&client, &spec, |raised| {
            self.fenced.send_replace(Fenced::Raised(generation, raised.sequences));
            up(Position(raised.marker.0));
        });
        let closed = closed.await.map_err(chain).and_then(|report| {
            if compared.is_none_or(|(of, stamp)| of != run.id || stamp != report.schema) {
                return Err(format!(
                    "the schema in {zone} was changed after it was compared with the shadow's"
                ));
            }
            Ok(report)
        });
        let report = closed.inspect_err(|why| {
            self.fenced.send_replace(Fenced::Failed(why.clone()));
        })?;
        tracing::info!(
            resource = %self.resource.name, %zone, marker = %report.marker, tables = report.tables,
            sessions = report.terminated, "old primary fenced"
        );
        self.fenced.send_replace(Fenced::Done(generation, report.sequences, report.large_objects));
        Ok(())
    }

    /// What is left of a hold that may last so long.
    fn hold_left(&self, most: Duration) -> Duration {
        lock(&self.held_since).map_or(most, |since| most.saturating_sub(since.elapsed()))
    }

    /// Sets them as soon as writes are stopped, and again only if a session took numbers before it ended. Then large objects, unlogged
    /// tables and what extensions keep are settled: none of them is in the stream.
    pub(super) async fn set_sequences(&self, zone: &Zone, state: &State) -> Result<(), Failure> {
        let run = state.run.as_ref().ok_or("no migration is under way")?;
        let wanted = Some(run.generation);
        let client = self.control(zone).await?;
        let mut fenced = self.fenced.subscribe();
        let mut set: Option<Vec<SequenceState>> = None;
        let shadow =
            Shadow { client: &client, resource: &self.resource.name, generation: state.generation.0 };
        loop {
            let now = fenced.borrow_and_update().clone();
            match now {
                Fenced::Raised(generation, states) if Some(generation) == wanted && set.is_none() => {
                    sequences::apply(shadow, &run.id, &states).await.map_err(chain)?;
                    set = Some(states);
                    continue;
                }
                Fenced::Done(generation, states, left) if Some(generation) == wanted => {
                    if set.as_ref() != Some(&states) {
                        sequences::apply(shadow, &run.id, &states).await.map_err(chain)?;
                    }
                    let zones = [&*state.primary.0, &*zone.0];
                    let generation = state.generation.0;
                    let objects = self.large_objects.settle(zones, generation, left);
                    let rows = self.unlogged.settle(zones, generation);
                    return tokio::try_join!(objects, rows, self.extensions.settle(zones, generation))
                        .map(drop);
                }
                Fenced::Failed(why) => return Err(why),
                Fenced::No => return Err("the fence's sequences are not known to this process".into()),
                Fenced::Raised(..) | Fenced::Done(..) => {}
            }
            fenced.changed().await.map_err(|_| "the fence is gone")?;
        }
    }

    pub(super) async fn lift_fence(
        &self,
        zone: &Zone,
        generation: Generation,
        state: &State,
    ) -> Result<(), Failure> {
        let client = self.control(zone).await?;
        if state.phase != Phase::Aborting {
            // The new primary's contents at the marker, before its first client.
            let run = state.run.as_ref();
            let end = run.filter(|run| !run.taken_over).and_then(|run| run.fence).map(|marker| Lsn(marker.0));
            let run = run.map_or("", |run| &run.id);
            let (opened, ()) = tokio::join!(
                fence::open_committed(&client, &self.resource.name, generation.0, run, end, self.me.as_ref()),
                async {
                    // Beside a lost primary there is nothing to compare.
                    if end.is_some() {
                        self.take_marker_snapshot(zone, generation).await;
                    }
                }
            );
            if let (Err(Error::Fenced(why)), Some(_), Some(_)) = (&opened, end, &self.me)
                && fence::is_undone(&client, run).await.is_ok_and(|undone| undone)
            {
                // It would be refused for ever. The node that undid it may be gone, and its lease this one's again.
                (self.begins_anew)(format!("resource {}: {why}", self.resource.name));
            }
            return opened.map_err(chain);
        }
        // A fence that is still going up, of this process or of one that died, must be over first. This one's task was cancelled when the run
        // began to be undone: what is left of it is in the server.
        let _fencing = self.fencing.lock().await;
        Purpose::Fence.end_sessions(&client).await?;
        self.databases.forget(&zone.0, Purpose::Fence).await;
        let run = state.run.as_ref().map(|run| run.id.as_str());
        fence::open(&client, &self.resource.name, generation.0, run).await.map_err(chain)?;
        if let Some(front) = &self.postgres {
            // The fence may have ended their connections.
            front.turnstile.go_back(zone.0.clone());
            self.sessions_are_ready().await;
        }
        Ok(())
    }
}
