//! The shadow's large objects follow the primary's, beside the stream: a pass every few seconds, one before anybody is held, and what came since
//! under the hold.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use replicator::beside::Sides;
use replicator::copy::Pace;
use replicator::large_objects::{self, Carried, Left, Progress};
use replicator::verify::Kind;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use super::databases::{Databases, Purpose};
use super::drift;
use super::live::Live;
use super::view::{LargeObjectsView, ResourceView};
use crate::causes::chain;
use crate::lock::lock;

/// How often a pass is made.
const EVERY: Duration = Duration::from_secs(5);
/// To look for what was written reads all pages: it is done for no more than this share of the time.
const SHARE: u32 = 20;
/// How often an object that is written all the time is looked at before it counts as another.
const LOOKS: u32 = 10;
/// Where a pass changed no more objects, the next has hardly any.
const FEW: u64 = 20;
/// A pass over fewer objects is not worth telling of.
const MANY: u64 = 1000;

/// What the last pass said.
#[derive(Clone, Copy, Debug)]
struct Known {
    /// Of the stream.
    generation: u64,
    carried: Carried,
}

/// What is wrong, or under way.
#[derive(Clone, Debug, Default)]
struct Told {
    failed: Option<String>,
    progress: Option<Progress>,
}

/// Carries the large objects of one resource.
pub struct LargeObjects {
    live: Arc<Live>,
    databases: Arc<Databases>,
    known: Mutex<Option<Known>>,
    told: Mutex<Told>,
    /// One pass at a time.
    turn: tokio::sync::Mutex<()>,
}

impl LargeObjects {
    /// None is carried yet.
    pub fn new(live: Arc<Live>, databases: Arc<Databases>) -> Self {
        Self {
            live,
            databases,
            known: Mutex::default(),
            told: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
        }
    }

    /// Makes passes while there is a copy and nothing is moved; ends with `stop`.
    pub fn watch(self: &Arc<Self>, view: Arc<ArcSwap<ResourceView>>, stop: &CancellationToken) {
        let this = self.clone();
        tokio::spawn(stop.clone().run_until_cancelled_owned(async move {
            loop {
                let now = view.load_full();
                let mut pause = EVERY;
                if drift::stands_in_the_way(&now).is_none() && now.replication.state == "streaming" {
                    let zones = [&*now.primary, &*now.shadow];
                    let failed = match this.none(zones, now.generation).await {
                        // That a database cannot be reached is told by those who examine it.
                        Ok(true) | Err(_) => None,
                        Ok(false) => this.pass(zones, now.generation).await.err(),
                    };
                    lock(&this.told).failed = failed;
                    pause = pause.max(this.looked(now.generation) * SHARE);
                }
                tokio::time::sleep(pause).await;
            }
        }));
    }

    /// What keeps a move from being made, and what is only to be known.
    pub fn problems(&self, generation: u64) -> (Vec<String>, Option<String>) {
        let Told { failed, progress } = lock(&self.told).clone();
        let mut stops: Vec<String> =
            failed.map(|why| format!("large objects are not carried: {why}")).into_iter().collect();
        let (looked, hold) = (self.looked(generation), self.live.load().policy.max_hold);
        if looked > hold / 2 {
            stops.push(format!(
                "large objects: to find what was written of them takes {} ms, more than half of limits.max_hold ({} ms)",
                looked.as_millis(),
                hold.as_millis()
            ));
        }
        let progress = progress.filter(|progress| progress.of >= MANY).map(|Progress { compared, of }| {
            format!("large objects are being copied to the shadow: {compared} of {of}")
        });
        (stops, progress)
    }

    /// As shown; none: there are none, or it is not known yet.
    pub fn view(&self, generation: u64) -> Option<LargeObjectsView> {
        let carried = self.known(generation).filter(|carried| carried.objects > 0)?;
        let looked_ms = u64::try_from(carried.looked.as_millis()).unwrap_or(u64::MAX);
        Some(LargeObjectsView { objects: carried.objects, looked_ms })
    }

    /// From which transaction of the primary on something may be missing on the shadow, as far as is known.
    pub fn horizon(&self, generation: u64) -> Option<u64> {
        self.known(generation).map(|carried| carried.horizon)
    }

    fn known(&self, generation: u64) -> Option<Carried> {
        lock(&self.known).filter(|known| known.generation == generation).map(|known| known.carried)
    }

    fn looked(&self, generation: u64) -> Duration {
        self.known(generation).map_or(Duration::ZERO, |carried| carried.looked)
    }

    /// Passes until hardly anything is left for the hold, as far as that can be reached.
    pub async fn catch_up(&self, zones: [&str; 2], generation: u64) -> Result<(), String> {
        let mut before = u64::MAX;
        loop {
            self.carry(zones, generation).await?;
            let changed = self.known(generation).map_or(0, |carried| carried.changed);
            // Who writes as fast as this carries is not caught up with.
            if changed <= FEW || changed > before / 2 {
                return Ok(());
            }
            before = changed;
        }
    }

    /// One pass from the primary to its shadow.
    pub async fn carry(&self, zones: [&str; 2], generation: u64) -> Result<(), String> {
        if self.none(zones, generation).await? {
            return Ok(());
        }
        self.pass(zones, generation).await
    }

    /// Whether there are none on either side.
    async fn none(&self, zones: [&str; 2], generation: u64) -> Result<bool, String> {
        let [source, shadow] = self.databases.both(zones, Purpose::Control).await.map_err(chain)?;
        let none = !large_objects::any(&source, &shadow).await.map_err(chain)?;
        if none {
            // No transaction is older than one that writes the first.
            *lock(&self.known) = Some(Known { generation, carried: Carried::default() });
        }
        Ok(none)
    }

    async fn pass(&self, zones: [&str; 2], generation: u64) -> Result<(), String> {
        let _turn = self.turn.lock().await;
        let _told = Ends(&self.told);
        let mut pace = Pace::new(self.live.load().policy.copy_rate.map(|rate| rate.0));
        let tell = |progress| lock(&self.told).progress = Some(progress);
        let pass = async |sides: Sides<'_>| large_objects::carry(sides, &mut pace, tell).await;
        self.with_sessions(zones, generation, pass).await
    }

    /// A pass by sessions of its own.
    async fn with_sessions(
        &self,
        zones: [&str; 2],
        generation: u64,
        pass: impl AsyncFnOnce(Sides<'_>) -> Result<Carried, replicator::Error>,
    ) -> Result<(), String> {
        // Taken: one that is given up in the middle of a pass has a transaction open.
        let purpose = Purpose::LargeObjects;
        let source = self.databases.take(zones[0], purpose).await.map_err(chain)?;
        let shadow = self.databases.take(zones[1], purpose).await.map_err(chain)?;
        let resource = self.live.load();
        let sides = Sides { source: &source, shadow: &shadow, resource: &resource.name, generation };
        let carried = pass(sides).await.map_err(chain)?;
        *lock(&self.known) = Some(Known { generation, carried });
        if carried.changed > 0 {
            tracing::debug!(
                resource = %resource.name, objects = carried.objects, changed = carried.changed, looked = ?carried.looked,
                "large objects are carried"
            );
        }
        self.databases.keep(zones[0], purpose, source).await;
        self.databases.keep(zones[1], purpose, shadow).await;
        Ok(())
    }

    /// Carries what came since the last pass, of which the primary says `left`: nobody writes any more.
    pub async fn settle(&self, zones: [&str; 2], generation: u64, left: Left) -> Result<(), String> {
        let Some(known) = self.known(generation).filter(|known| known.objects > 0) else {
            return if left.objects > 0 { self.carry(zones, generation).await } else { Ok(()) };
        };
        if left.nothing_since(known.objects) {
            return Ok(());
        }
        let _turn = self.turn.lock().await;
        self.with_sessions(zones, generation, async |sides| large_objects::settle(sides, known.horizon).await)
            .await
    }

    /// Which are not the same on both sides, by sessions of nobody else, although what is on its way may come: at most the share `duty` of the time is spent on it.
    pub async fn differing(
        &self,
        sessions: [&Client; 2],
        zones: [&str; 2],
        generation: u64,
        duty: f64,
    ) -> Result<Vec<(u32, Kind)>, String> {
        let [source, shadow] = sessions;
        let mut open = large_objects::differing(source, shadow, None, duty).await.map_err(chain)?;
        for _ in 0..LOOKS {
            if open.is_empty() {
                break;
            }
            self.carry(zones, generation).await?;
            let numbers: Vec<u32> = open.iter().map(|(number, _)| *number).collect();
            open = large_objects::differing(source, shadow, Some(&numbers), duty).await.map_err(chain)?;
        }
        Ok(open)
    }
}

/// How far a pass is ends with it, however that ends.
struct Ends<'a>(&'a Mutex<Told>);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        lock(self.0).progress = None;
    }
}
