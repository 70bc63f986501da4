//! The shadow's sequences follow the primary's, a few seconds behind: should the primary be lost, nobody else knows what was drawn.
//! A cutover sets them exactly, whatever was set here.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use replicator::beside::Sides;
use replicator::takeover;
use tokio_util::sync::CancellationToken;

use super::databases::{Databases, Purpose};
use super::drift;
use super::view::ResourceView;

/// How often they are looked at.
const EVERY: Duration = Duration::from_secs(10);
/// How long that may take: the sessions have no time-outs.
const PATIENCE: Duration = Duration::from_secs(20);

/// Brings them on while there is a copy and nothing is moved; ends with `stop`.
pub(super) fn follow(databases: Arc<Databases>, view: Arc<ArcSwap<ResourceView>>, stop: &CancellationToken) {
    tokio::spawn(stop.clone().run_until_cancelled_owned(async move {
        loop {
            let now = view.load_full();
            if drift::stands_in_the_way(&now).is_none() && now.replication.state == "streaming" {
                let zones = [&*now.primary, &*now.shadow];
                let follow = async |sides: Sides<'_>| takeover::follow_sequences(sides).await;
                let following = databases.beside(zones, now.generation, Purpose::Schema, follow);
                // One that is missing there is a difference of the schemas; that a database cannot be reached is told elsewhere.
                if let Err(why) = within(&databases, zones, following).await {
                    tracing::debug!(resource = now.name, why, "the shadow's sequences stay behind");
                }
            }
            tokio::time::sleep(EVERY).await;
        }
    }));
}

/// Connections that brought no answer are not used again.
async fn within<T>(
    databases: &Databases,
    zones: [&str; 2],
    doing: impl Future<Output = Result<T, String>>,
) -> Result<T, String> {
    let Ok(done) = tokio::time::timeout(PATIENCE, doing).await else {
        for zone in zones {
            databases.forget(zone, Purpose::Schema).await;
        }
        return Err(format!("no answer within {} s", PATIENCE.as_secs()));
    };
    done
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::live::Live;
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_database_that_has_fallen_silent_is_not_waited_for() {
        let databases = Databases::new(Live::new(crate::config::samples::orders()));
        let silent = std::future::pending::<Result<(), _>>();
        let why = within(&databases, ["near", "far"], silent).await.unwrap_err();
        assert_eq!(why, "no answer within 20 s");
    }
}
