//! What extensions keep for their users follows beside the stream, since it is theirs and not the service's; and once more under the hold, where
//! the shadow's get what they act on as well.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use migration::policy::KeptByExtensions;
use replicator::beside::Sides;
use replicator::extensions::{self, All, Rows};
use tokio_util::sync::CancellationToken;

use super::databases::{Databases, Purpose};
use super::drift;
use super::live::Live;
use super::view::ResourceView;
use crate::clock;
use crate::lock::lock;

/// How often it is read.
const EVERY: Duration = Duration::from_secs(60);
/// How long a move waits for what follows at that moment.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often it is looked whether there is a stream to follow.
const LOOK: Duration = Duration::from_secs(2);

/// Of which generation, when, and what the shadow was given.
type Known = (u64, Instant, Option<Rows>);

/// Carries what one resource's extensions keep.
pub struct ExtensionRows {
    live: Arc<Live>,
    databases: Arc<Databases>,
    /// The stream's generation, what there is to be carried under the hold, and what the shadow has of it.
    left: Mutex<Option<(u64, All, Rows)>>,
    /// Held while the shadow's follow: what is put in place under a hold, nobody takes away late.
    following: tokio::sync::Mutex<Option<Known>>,
}

impl ExtensionRows {
    /// Nothing is known yet.
    pub fn new(live: Arc<Live>, databases: Arc<Databases>) -> Self {
        Self { live, databases, left: Mutex::default(), following: tokio::sync::Mutex::default() }
    }

    fn carried(&self) -> bool {
        self.live.load().policy.extensions == KeptByExtensions::Carry
    }

    /// Has the shadow's follow while there is a copy and nothing is moved; ends with `stop`.
    pub(super) fn follow(self: &Arc<Self>, view: Arc<ArcSwap<ResourceView>>, stop: &CancellationToken) {
        let this = self.clone();
        tokio::spawn(stop.clone().run_until_cancelled_owned(async move {
            loop {
                // A move that begins from here on waits.
                let mut known = this.following.lock().await;
                let now = view.load_full();
                if drift::stands_in_the_way(&now).is_some() || now.replication.state != "streaming" {
                    // What a move that was undone has left there goes.
                    *known = None;
                } else if this.carried() {
                    let at = clock::monotonic();
                    let last = known.take_if(|(of, when, _)| {
                        *of != now.generation || at.saturating_duration_since(*when) >= EVERY
                    });
                    if known.is_none() {
                        let zones = [&*now.primary, &*now.shadow];
                        let before =
                            last.filter(|(of, ..)| *of == now.generation).and_then(|(.., rows)| rows);
                        let bringing = this.bring(zones, now.generation, Purpose::Schema, before.as_ref());
                        let brought = tokio::time::timeout(PATIENCE, bringing).await;
                        let brought = brought
                            .unwrap_or_else(|_| Err(format!("not done within {} s", PATIENCE.as_secs())));
                        if let Err(why) = &brought {
                            // What is not allowed, or too much, is a finding.
                            tracing::debug!(resource = now.name, why, "what extensions keep does not follow");
                        }
                        *known = Some((now.generation, at, brought.ok().map(|(_, rows)| rows).or(before)));
                    }
                }
                drop(known);
                tokio::time::sleep(LOOK).await;
            }
        }));
    }

    /// Gives the shadow what the primary has, unless that is what it has been given `before`.
    async fn bring(
        &self,
        zones: [&str; 2],
        generation: u64,
        purpose: Purpose,
        before: Option<&Rows>,
    ) -> Result<(All, Rows), String> {
        let bring = async |sides: Sides<'_>| {
            let all = extensions::all(sides.source, sides.shadow).await?;
            let rows = all.read(sides.source).await?;
            if before != Some(&rows) {
                all.follow(sides, &rows).await?;
            }
            Ok((all, rows))
        };
        self.databases.beside(zones, generation, purpose, bring).await
    }

    /// Right before the hold: the shadow has what the primary has at this moment.
    pub async fn prepare(&self, zones: [&str; 2], generation: u64) -> Result<(), String> {
        *lock(&self.left) = None;
        if !self.carried() {
            return Ok(());
        }
        // The view tells of the move by now: what follows later finds it in the way, or what it leaves if it is undone between two looks.
        *self.following.lock().await = None;
        let (all, rows) = self.bring(zones, generation, Purpose::Control, None).await?;
        *lock(&self.left) = Some((generation, all, rows));
        Ok(())
    }

    /// Under the hold, when nobody is connected any more: what changed since, and what is acted on.
    pub async fn settle(&self, zones: [&str; 2], generation: u64) -> Result<(), String> {
        let left = lock(&self.left).take().filter(|(of, all, _)| *of == generation && !all.is_empty());
        let Some((_, all, before)) = left else { return Ok(()) };
        self.databases
            .beside(zones, generation, Purpose::Control, async |sides| {
                let rows = all.read(sides.source).await?;
                all.settle(sides, &rows, &before).await
            })
            .await
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// It may be over before the shadow's follow again, and has put there what a shadow must not act on.
    #[tokio::test]
    async fn a_move_that_is_prepared_leaves_nothing_known_of_the_shadow() {
        let live = Live::new(crate::config::samples::orders());
        let rows = ExtensionRows::new(live.clone(), Arc::new(Databases::new(live)));
        assert!(rows.carried());
        *rows.following.lock().await = Some((1, clock::monotonic(), Some(Rows::default())));
        // There is no database to prepare.
        rows.prepare(["near", "far"], 1).await.unwrap_err();
        assert!(rows.following.lock().await.is_none());
    }
}
