//! A primary is there before its driver is asked for anything: from then on it is the driver's.
//!
//! That is asked until it is done. A driver that does not answer just when a node starts would know nothing of it later, when it is to be scaled as the
//! old primary.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use migration::cutover::Capacity;
use migration::units::{Generation, Zone};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::causes::chain;
use crate::controller::effects::{Hands, ZoneDriver};
use crate::controller::view::ResourceView;
use crate::drivers::Operation;
use crate::lock::lock;

/// Between two attempts: at first, and at most.
const AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// Begins with each placement that has a driver; ends with `stop`.
pub(super) fn begin(
    hands: &Arc<Hands>,
    view: &Arc<ArcSwap<ResourceView>>,
    stop: &CancellationToken,
    tasks: &TaskTracker,
) {
    for (zone, driver) in &hands.drivers {
        let operation = Operation { id: format!("adopt-{}", crate::rng::id()), deadline: driver.deadline };
        let (hands, view, zone, driver) = (hands.clone(), view.clone(), (&**zone).into(), driver.clone());
        let adoption = Adoption { hands, view, zone, driver, operation, is_adopted: false };
        // Nobody who drops the resource waits for its driver.
        tasks.spawn(stop.clone().run_until_cancelled_owned(adoption.run()));
    }
}

struct Adoption {
    hands: Arc<Hands>,
    view: Arc<ArcSwap<ResourceView>>,
    zone: Zone,
    driver: ZoneDriver,
    operation: Operation,
    is_adopted: bool,
}

impl Adoption {
    async fn run(mut self) {
        let mut pause = AGAIN.0;
        while self.is_wanted() {
            let Err(why) = self.attempt().await else { break };
            let (resource, zone) = (&self.hands.resource.name, &self.zone);
            tracing::error!(%resource, %zone, %why, "the driver of what is there failed");
            lock(&self.hands.unadopted).insert(zone.to_string(), why);
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(AGAIN.1);
        }
        lock(&self.hands.unadopted).remove(&*self.zone.0);
    }

    /// After a move it is another one's to be large.
    fn is_wanted(&self) -> bool {
        *self.view.load().primary == *self.zone.0
    }

    async fn attempt(&mut self) -> Result<(), String> {
        let generation = Generation(self.view.load().generation);
        if !self.is_adopted {
            let workers = self.hands.workers(&self.zone, Capacity::Full);
            let status = self.driver.does.adopt(&self.operation, workers).await.map_err(chain)?;
            let (resource, zone) = (&self.hands.resource.name, &self.zone);
            tracing::info!(%resource, %zone, ready = status.ready, "primary adopted");
            self.is_adopted = true;
        }
        let found = self.hands.find_primary(&self.zone, generation).await;
        found.map_err(|why| format!("where it is is not known: {why}"))
    }
}
