//! Giving a stream up, and starting it from a new copy.

use std::sync::Arc;
use std::time::Duration;

use migration::units::{Generation, Zone};
use replicator::copy::COPIES_INTO_EMPTY;
use replicator::postgres::slot::{self, Lane};
use replicator::reseed::{self, Reseed};
use replicator::status::Phase;
use replicator::{fence, identity, lanes};
use tokio::sync::watch;

use super::databases::Purpose;
use super::streams::Streams;
use crate::causes::chain;

/// How often a shadow is emptied that is filled again before its copy begins.
const TRIES: usize = 3;
/// How often it is looked whether it is.
const LOOKS: Duration = Duration::from_secs(1);

/// Why a shadow is given no copy while some of what it had is left.
pub(super) fn half_emptied(resource: &str) -> String {
    format!(
        "emptying the shadow broke off: with `slot: {{reseed: auto}}` it goes on by itself, else with godwit reseed {resource}"
    )
}

/// The shadow is being emptied while this lives.
struct Emptying<'a>(&'a watch::Sender<bool>);

impl<'a> Emptying<'a> {
    fn begin(of: &'a watch::Sender<bool>) -> Self {
        of.send_replace(true);
        Self(of)
    }
}

impl Drop for Emptying<'_> {
    fn drop(&mut self) {
        self.0.send_replace(false);
    }
}

impl Streams {
    /// Ends the stream and drops its slots. It does not run again under this generation until [`Self::reseed`].
    pub async fn give_up(&self, generation: Generation, source: &Zone, why: String) -> Result<(), String> {
        self.refuse(generation, why);
        self.end(generation, source).await.map(drop)
    }

    /// Empties the shadow and starts the stream with a new copy; returns when it applies changes near the tip.
    ///
    /// Whatever breaks, the shadow is either as it was or waits for a copy. Where it broke while it was being emptied, that goes on when this is
    /// asked for again.
    pub async fn reseed(
        self: &Arc<Self>,
        generation: Generation,
        source: &Zone,
        target: &Zone,
    ) -> Result<(), String> {
        for left in (0..TRIES).rev() {
            self.empty(generation, source, target).await?;
            tokio::select! {
                up = self.run(generation, source, target) => return up,
                () = self.is_filled(generation), if left > 0 => {
                    tracing::warn!(resource = self.resource(), "the shadow was filled before its copy began: it is emptied again");
                }
            }
        }
        Ok(())
    }

    async fn empty(&self, generation: Generation, source: &Zone, target: &Zone) -> Result<(), String> {
        let _turn = self.turn().await;
        self.end(generation, source).await?;
        let _emptying = Emptying::begin(&self.emptying);
        let _schema = self.bounded(async { Ok(self.schema().lock().await) }).await?;
        let empty = async || {
            let from = self.databases().get(&source.0, Purpose::Control).await.map_err(chain)?;
            let to = self.databases().get(&target.0, Purpose::Control).await.map_err(chain)?;
            lanes::publish(&from, self.resource(), &[]).await.map_err(chain)?;
            let name = |lane: Lane| lane.slot_name(self.resource(), generation.0);
            let what = Reseed {
                resource: self.resource(),
                stream: &name(Lane::Main),
                critical: &name(Lane::Critical),
                generation: generation.0,
            };
            reseed::empty(&from, &to, &what).await.map_err(chain)
        };
        // Thousands of tables take minutes, each part of them a moment.
        while self.bounded(empty()).await? {}
        self.note_emptied();
        self.allow();
        Ok(())
    }

    /// Returns when the shadow that was emptied is found to hold tables before its copy has begun.
    async fn is_filled(&self, generation: Generation) {
        loop {
            let status = self.status(generation).map(|(.., status)| status.phase);
            if matches!(status, Some(Phase::Failed { error, .. }) if error.contains(COPIES_INTO_EMPTY)) {
                return;
            }
            tokio::time::sleep(LOOKS).await;
        }
    }

    /// Returns when the shadow is to be emptied.
    pub(super) async fn to_be_emptied(&self) {
        // It ends with these streams only.
        let _ = self.emptying.subscribe().wait_for(|emptying| *emptying).await;
    }

    /// Whether there is a copy whose stream can never go on, from the source that it belongs to.
    pub(super) async fn cannot_go_on(
        &self,
        generation: Generation,
        source: &Zone,
        target: &Zone,
    ) -> Result<bool, String> {
        self.bounded(async {
            let from = self.databases().get(&source.0, Purpose::Control).await.map_err(chain)?;
            let to = self.databases().get(&target.0, Purpose::Control).await.map_err(chain)?;
            if fence::state(&to, self.resource()).await.map_err(chain)?.is_none() {
                // Never ours: the first copy is still to come.
                return Ok(false);
            }
            let name = slot::slot_name(self.resource(), generation.0);
            let gone = slot::slot_info(&from, &name).await.map_err(chain)?;
            let gone = gone.is_none_or(|slot| slot.wal_status == "lost");
            // Another source is not for Godwit to judge: the configuration may be wrong.
            let found = identity::of(&from).await.map_err(chain)?;
            let known = identity::of_checkpoint(&to, &name).await.map_err(chain)?;
            Ok(gone
                && known.is_none_or(|known| Some(known) == found)
                && self.was_given_up_or_copied(generation, &to).await?)
        })
        .await
    }

    async fn was_given_up_or_copied(
        &self,
        generation: Generation,
        target: &tokio_postgres::Client,
    ) -> Result<bool, String> {
        let name = slot::slot_name(self.resource(), generation.0);
        if self.given_up(generation).is_some() {
            return Ok(true);
        }
        let copied = super::streams::copied(target, &name).await?;
        let epoch = fence::state(target, self.resource()).await.map_err(chain)?;
        match copied {
            Some(true) => Ok(true),
            Some(false) => Ok(epoch.is_some_and(|epoch| epoch.generation <= generation.0)
                && reseed::broke_off(target, self.resource(), &name).await.map_err(chain)?),
            // The old primary of the cutover that committed this generation, and the way back to it is lost.
            None => Ok(epoch.is_some_and(|epoch| epoch.is_left_by(generation.0))),
        }
    }
}
