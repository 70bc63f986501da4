//! What is there before its driver is asked for anything is the driver's from then on: the primary, and a shadow that followed before its
//! placement named that driver.
//!
//! That is asked until it is done. A driver that does not answer just when a node starts would know nothing of it later, when it is to be scaled.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use migration::cutover::{Capacity, Phase};
use migration::units::{Generation, Zone};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::causes::chain;
use crate::config::model::{Config, Driver, ProcessDriver};
use crate::controller::effects::{Hands, ZoneDriver};
use crate::controller::view::ResourceView;
use crate::drivers::Operation;
use crate::drivers::ledger::Ledger;
use crate::drivers::process::cluster::Cluster;
use crate::lock::lock;

/// Between two attempts: at first, and at most.
const AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// Begins with each placement that has a driver; ends with `stop`.
pub(super) fn begin(
    config: &Arc<Config>,
    hands: &Arc<Hands>,
    view: &Arc<ArcSwap<ResourceView>>,
    stop: &CancellationToken,
    tasks: &TaskTracker,
) {
    for (zone, driver) in &hands.drivers {
        let adoption = Adoption {
            config: config.clone(),
            hands: hands.clone(),
            view: view.clone(),
            zone: zone.as_str().into(),
            driver: driver.clone(),
            operation: Operation { id: format!("adopt-{}", crate::rng::id()), deadline: driver.deadline },
            was_primary: false,
            is_adopted: false,
        };
        // Nobody who drops the resource waits for its driver.
        tasks.spawn(stop.clone().run_until_cancelled_owned(adoption.run()));
    }
}

struct Adoption {
    config: Arc<Config>,
    hands: Arc<Hands>,
    view: Arc<ArcSwap<ResourceView>>,
    zone: Zone,
    driver: ZoneDriver,
    operation: Operation,
    /// When this began.
    was_primary: bool,
    is_adopted: bool,
}

impl Adoption {
    async fn run(mut self) {
        self.was_primary = self.is_primary();
        if !self.was_primary && self.is_known() {
            return;
        }
        let mut pause = AGAIN.0;
        while self.is_there() {
            let Err(why) = self.attempt().await else { break };
            let before = lock(&self.hands.unadopted).insert(self.zone.to_string(), why.clone());
            if before.as_ref() != Some(&why) {
                let (resource, zone) = (&self.hands.resource.name, &self.zone);
                tracing::error!(%resource, %zone, %why, "what is there is not its driver's yet");
            }
            if self.was_primary && !self.is_known() && self.cluster().is_some() {
                // Once more, and an empty database may come into the place of one that is just being started again.
                return;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(AGAIN.1);
        }
        lock(&self.hands.unadopted).remove(&*self.zone.0);
    }

    fn is_primary(&self) -> bool {
        *self.view.load().primary == *self.zone.0
    }

    /// Its driver has provisioned or adopted it.
    fn is_known(&self) -> bool {
        matches!(self.driver.does.provisioned(), Ok(true))
    }

    /// The database that its driver would make, and the driver's directory.
    fn cluster(&self) -> Option<(Cluster, PathBuf)> {
        let settings = self.hands.settings();
        let name = settings.placements.get(&*self.zone.0)?.driver.as_ref()?;
        made_by(self.config.drivers.get(name)?)
    }

    /// As the primary, or as a shadow that is not to be provisioned first.
    fn is_there(&self) -> bool {
        let view = self.view.load();
        let none = [Phase::Idle, Phase::Preparing].map(Phase::name);
        self.is_primary() || *view.shadow == *self.zone.0 && !none.contains(&&*view.phase)
    }

    async fn attempt(&mut self) -> Result<(), String> {
        let (is_primary, generation) = (self.is_primary(), Generation(self.view.load().generation));
        if !self.is_adopted && (is_primary || !self.is_known()) {
            self.adopt(is_primary).await?;
        }
        self.is_adopted = true;
        let found = if is_primary {
            self.hands.find_primary(&self.zone, generation).await
        } else {
            self.hands.locate(&self.zone, &self.driver, self.driver.does.known_endpoint()).await
        };
        found.map_err(|why| format!("where it is is not known: {why}"))
    }

    async fn adopt(&self, is_primary: bool) -> Result<(), String> {
        if let Some((cluster, directory)) = self.cluster().filter(|_| !self.was_primary) {
            let asked = tokio::task::spawn_blocking(move || may_adopt(&cluster, &directory));
            asked.await.map_err(chain)??;
        }
        // An old primary has all of its workers until it has soaked.
        let is_full = is_primary || self.view.load().migration.is_some();
        let capacity = if is_full { Capacity::Full } else { Capacity::Shadow };
        let workers = self.hands.workers(&self.zone, capacity);
        let status = self.driver.does.adopt(&self.operation, workers).await.map_err(chain)?;
        let (resource, zone) = (&self.hands.resource.name, &self.zone);
        tracing::info!(%resource, %zone, ready = status.ready, "what is there is its driver's");
        Ok(())
    }
}

/// The database that this driver makes, if it makes one by itself.
fn made_by(driver: &Driver) -> Option<(Cluster, PathBuf)> {
    let Driver::Process(ProcessDriver { cluster: Some(cluster), directory, .. }) = driver else {
        return None;
    };
    let (bin, data, listen) = (cluster.bin.clone(), cluster.data.clone(), cluster.listen);
    Some((Cluster { bin, data, host: listen.ip().to_string(), port: listen.port() }, directory.clone()))
}

/// A database that follows is not made anew beside itself: one that is there, and neither runs nor was ever its driver's, was made in vain.
fn may_adopt(cluster: &Cluster, directory: &Path) -> Result<(), String> {
    let was_made =
        || Ledger::read(directory).map(|ledger| ledger.is_some_and(|ledger| ledger.has_provisioned()));
    if cluster.exists() && (matches!(cluster.running(), Ok(true)) || was_made().map_err(chain)?) {
        return Ok(());
    }
    Err(format!(
        "a process driver takes over no database that it did not make, and {} holds none that runs: name a driver without cluster, or have the shadow made \
         anew (godwit shadow disable, then enable)",
        cluster.data.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::model::{ProcessCluster, Trusted};

    #[test]
    fn a_process_driver_adopts_no_database_that_it_did_not_make() {
        let folder = tempfile::tempdir().expect("temporary directory");
        let data = folder.path().join("data");
        let cluster = ProcessCluster {
            bin: "/bin".into(),
            data: data.clone(),
            listen: ([127, 0, 0, 1], 1).into(),
            trusted: Trusted::All,
            logins: Vec::new(),
            verifiers: Vec::new(),
        };
        let driver = |cluster: Option<ProcessCluster>| {
            Driver::Process(ProcessDriver {
                directory: folder.path().join("driver"),
                argv: Vec::new(),
                listen: Vec::new(),
                service_dsn: String::new(),
                environment: std::collections::BTreeMap::new(),
                ready: "/healthz".into(),
                cluster,
            })
        };
        assert!(made_by(&driver(None)).is_none(), "workers alone");
        let (cluster, directory) = made_by(&driver(Some(cluster))).expect("it makes one");
        let why = may_adopt(&cluster, &directory).expect_err("there is none");
        assert!(why.contains(&data.display().to_string()), "{why}");
        std::fs::create_dir(&data).expect("made");
        std::fs::write(data.join("godwit.ready"), "").expect("written");
        std::fs::create_dir(&directory).expect("made");
        let mut ledger = Ledger::new();
        ledger.write(&directory).expect("written");
        may_adopt(&cluster, &directory).expect_err("an attempt to take over that failed leaves so much");
        ledger.note("op", crate::drivers::Action::Provision, 1);
        ledger.write(&directory).expect("written");
        assert_eq!(may_adopt(&cluster, &directory), Ok(()));
    }
}
