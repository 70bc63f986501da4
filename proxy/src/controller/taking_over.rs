//! A primary that is lost, and its shadow that takes over, since a person says so.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use migration::cutover::{Capacity, Phase, State};
use migration::policy::KeptByExtensions;
use migration::units::{Generation, Zone};
use replicator::postgres::slot::Lane;
use replicator::{extensions, fence, synchronous, takeover};
use tokio_postgres::Client;

use super::databases::Purpose;
use super::effects::{Failure, Hands};
use super::reconfigure::Staff;
use super::streams::Streams;
use super::view::{GuardView, ResourceView};
use super::{Denied, Plan};
use crate::causes::chain;
use crate::lock::lock;

/// How long a database may take to show that it is there.
const THERE: Duration = Duration::from_secs(3);
/// How often connections to the lost service are ended until none is in use.
const CUT: Duration = Duration::from_millis(20);
/// How long the workers that take over may take to be as many as they should: nobody is served meanwhile.
const SCALE: Duration = Duration::from_secs(30);

/// What a person says with it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Said {
    /// What had not reached the shadow may be lost.
    pub accept_loss: bool,
    /// Although the primary's database answers.
    pub primary_answers: bool,
    /// Although tables of the shadow are still being filled.
    pub incomplete: bool,
}

/// Whether the shadow of this resource could take over, what then happens, and what would be lost.
pub async fn plan(streams: &Streams, view: &ResourceView, said: Said) -> Plan {
    let (from, to) = (&view.primary, &view.shadow);
    let generation = Generation(view.generation);
    let lost = streams.there(from).await;
    let shadow = match streams.there(to).await {
        Ok(client) => streams.is_whole(view, &client).await,
        Err(why) => Err(why),
    };
    let unfilled = shadow.as_ref().map(|(_, unfilled)| unfilled.join(", ")).unwrap_or_default();
    let guard = |name: &str, passed, value: String, limit: &str| GuardView {
        name: name.into(),
        passed,
        value,
        limit: limit.into(),
        binds_operator: true,
    };
    let guards = vec![
        guard(
            "loss accepted",
            said.accept_loss,
            if said.accept_loss { "yes" } else { "no" }.into(),
            "accept_loss",
        ),
        guard(
            "primary lost",
            said.primary_answers || lost.is_err(),
            lost.map_or_else(|why| format!("{from} does not answer: {why}"), |_| format!("{from} answers")),
            "no answer, since godwit migrate loses nothing where there is one; or primary_answers",
        ),
        guard(
            "shadow whole",
            matches!(shadow, Ok((Some(_), _))),
            match &shadow {
                Ok((Some(has), _)) => has.clone(),
                Ok((None, _)) => format!("{to} has no whole copy"),
                Err(why) => format!("{to} does not answer: {why}"),
            },
            "a copy that was finished",
        ),
        guard(
            "tables whole",
            said.incomplete || unfilled.is_empty(),
            if unfilled.is_empty() { "all".into() } else { format!("rows are missing in {unfilled}") },
            "none that is being filled, or incomplete",
        ),
    ];
    let stream = &view.replication;
    let behind = format!("{}, {} replication", stream.behind().text(), stream.mode.effective);
    let steps = vec![
        format!("hold requests; commit generation {} without {from}", generation.next()),
        format!(
            "cut off whatever still applies changes of {from} in {to} ({behind}); fence {from} if it can be reached"
        ),
        format!("put the sequences in {to} ahead of its rows and {} numbers further", takeover::SKIPPED),
        format!("scale {to} up, open its database, swap the pool, release who waited"),
        format!(
            "what {from} alone has stays there, fenced once it is back, until godwit reseed {} empties it",
            view.name
        ),
    ];
    Plan { id: None, approval: None, from: from.clone(), to: to.clone(), steps, guards }
}

/// What of a plan stands in the way.
pub fn refused(plan: &Plan) -> Option<Denied> {
    let failed = plan.guards.iter().filter(|guard| !guard.passed);
    let lines: Vec<String> =
        failed.map(|guard| format!("{}: {} (needs {})", guard.name, guard.value, guard.limit)).collect();
    (!lines.is_empty()).then_some(Denied::Guards(lines))
}

impl Streams {
    /// A session of this zone's database that has answered just now.
    async fn there(&self, zone: &str) -> Result<Arc<Client>, String> {
        let asking = async {
            let client = self.databases().take(zone, Purpose::Examine).await.map_err(chain)?;
            client.batch_execute("SELECT 1").await.map_err(chain)?;
            Ok(client)
        };
        let asked = tokio::time::timeout(THERE, asking).await;
        asked.unwrap_or_else(|_| Err(format!("no answer within {} s", THERE.as_secs())))
    }

    /// What the shadow has, all of it up to some point (none: it has no whole copy), and which of its tables are still being filled.
    async fn is_whole(
        &self,
        view: &ResourceView,
        shadow: &Client,
    ) -> Result<(Option<String>, Vec<String>), String> {
        let (generation, from, to) = (Generation(view.generation), &view.primary, &view.shadow);
        let name = Lane::Main.slot_name(self.resource(), generation.0);
        let progress = "SELECT applied_lsn::text, copied FROM godwit.progress WHERE stream = $1";
        let progress = shadow.query_opt(progress, &[&name]).await.map_err(chain)?;
        if let Some(row) = progress.as_ref().filter(|row| row.get(1)) {
            let unfilled = takeover::unfilled(shadow).await.map_err(chain)?;
            let applied: &str = row.get(0);
            return Ok((Some(format!("{to} has what {from} committed up to {applied}")), unfilled));
        }
        // The old primary of the cutover that has made this generation, before its stream began. Later there is a checkpoint, unless that and more was
        // lost with a restore.
        let before = [Phase::Committed, Phase::Swapped, Phase::Released].map(Phase::name);
        let epoch = fence::state(shadow, self.resource()).await.map_err(chain)?;
        // One that waits for a copy was emptied, or is about to be.
        let is_left = before.contains(&&*view.phase)
            && progress.is_none()
            && epoch.is_some_and(|epoch| epoch.is_left_by(generation.0));
        let has = || {
            format!("{to} has what it committed itself before generation {generation}, and nothing of {from}")
        };
        Ok((is_left.then(has), Vec::new()))
    }

    /// Ends the lanes of a stream whose source is lost, here.
    pub(super) async fn abandon(&self, generation: Generation) {
        // It may be waiting for the lost one: nothing here depends on it.
        for keeper in self.keepers_taken(|of| of == generation.0) {
            tokio::spawn(keeper.end());
        }
        for lane in self.taken(generation) {
            lane.end().await;
        }
    }
}

impl Hands {
    /// From here on `zone` has nothing to do with `lost`.
    pub(super) async fn take_over(
        &self,
        zone: &Zone,
        lost: &Zone,
        generation: Generation,
        state: &State,
    ) -> Result<(), Failure> {
        if let Some(front) = &self.postgres {
            // Whoever is in the middle of something there is in it for ever.
            front.turnstile.close();
            front.turnstile.end_transactions();
        }
        let resource = &self.resource.name;
        let before = Generation(generation.0 - 1);
        self.cut_requests().await;
        self.give_snapshots_up().await;
        self.streams.abandon(before).await;
        // Where a move had just begun to go the other way, and its stream was not at its end yet.
        if let Some(older) = before.0.checked_sub(1) {
            self.streams.abandon(Generation(older)).await;
        }
        let client = self.control(zone).await?;
        takeover::clear_the_way(&client).await.map_err(chain)?;
        // First: whatever comes late is of an older generation.
        let (run, holder) = (state.run.as_ref().map_or("", |run| &run.id), self.holder());
        fence::guard_to_take_over(&client, resource, generation.0, run, holder).await.map_err(chain)?;
        // Where it was the primary before: nothing waits for its shadow of then any more.
        for slot in synchronous::left_over(&client, resource, None).await.map_err(chain)? {
            synchronous::leave(&client, &slot).await.map_err(chain)?;
        }
        let lanes = [Lane::Main, Lane::Critical];
        let streams = lanes.map(|lane| lane.slot_name(resource, before.0));
        let applied = takeover::cut_off(&client, &streams, generation.0).await.map_err(chain)?;
        // One that an undone migration made is of rows that the lost primary may not have.
        self.streams.drop_slots(generation, &client).await?;
        takeover::advance_sequences(&client).await.map_err(chain)?;
        if self.policy().extensions == KeptByExtensions::Carry
            && let Err(error) = extensions::unpark(&client, resource, before.0).await
        {
            // A service without them is better than none.
            tracing::error!(%resource, %zone, error = chain(error), "what extensions act on is not in place");
        }
        if let Some(front) = &self.postgres
            && let Err(error) = front.learn_numbers_there(&zone.0, &client).await
        {
            tracing::warn!(%resource, %zone, error = chain(error), "clients of the front that know types by number have to come again");
        }
        tracing::warn!(
            %resource, %zone, %lost, applied = applied.map(|lsn| lsn.to_string()),
            "the shadow takes over: what its primary committed after that is lost"
        );
        self.fence_lost(lost, generation);
        // Where they are not found, it goes on all the same: nobody is served elsewhere.
        let _ = self.look_up(zone).await;
        let scaled = tokio::time::timeout(SCALE, self.scale_to_serve(zone, state)).await;
        let scaled = scaled.unwrap_or_else(|_| Err(format!("not done within {} s", SCALE.as_secs())));
        *lock(&self.staff) = Staff::of(generation, scaled.is_ok());
        if let Err(why) = scaled {
            tracing::warn!(%resource, %zone, %why, "it takes over with the workers that it has");
        }
        Ok(())
    }

    /// All of its workers, as far as its driver can give them soon.
    async fn scale_to_serve(&self, zone: &Zone, state: &State) -> Result<(), Failure> {
        let Some(driver) = self.driver(zone) else { return Ok(()) };
        let workers = self.workers(zone, Capacity::Full);
        let mut operation = driver.operation("scale", zone, workers, state);
        operation.deadline = operation.deadline.min(SCALE);
        driver.does.scale(&operation, workers).await.map(drop).map_err(chain)
    }

    /// Until no request is at the lost primary's service: one that is answered late, when that is back, would acknowledge what is not here.
    async fn cut_requests(&self) {
        let Some(front) = &self.front else { return };
        let cutting = async {
            let mut drained = pin!(front.gate.drained());
            loop {
                // One that was let in before the gate closed may connect only now.
                front.pool.load().end_connections();
                if tokio::time::timeout(CUT, drained.as_mut()).await.is_ok() {
                    // A stream is outside as soon as it is one: the last of them may have connected since.
                    front.pool.load().end_connections();
                    return;
                }
            }
        };
        if tokio::time::timeout(THERE, cutting).await.is_err() {
            let left = front.gate.stats().in_flight;
            tracing::warn!(resource = %self.resource.name, left, "requests are still in flight to the lost primary");
        }
    }

    /// If it can be reached after all, nobody writes there any more; else when it is back. Nobody waits for that.
    fn fence_lost(&self, lost: &Zone, generation: Generation) {
        let (databases, resource, lost) = (self.databases.clone(), self.resource.name.clone(), lost.clone());
        tokio::spawn(async move {
            let fencing = async {
                let client = databases.take(&lost.0, Purpose::Examine).await.map_err(chain)?;
                fence::guard(&client, &resource, generation.0).await.map_err(chain)
            };
            if !matches!(tokio::time::timeout(THERE, fencing).await, Ok(Ok(()))) {
                tracing::warn!(resource, zone = %lost, "the lost primary cannot be fenced before it is back");
            }
        });
    }
}
