//! What is left in the stream of tables and columns that its source has no more.

use std::time::Duration;

use migration::units::Generation;
use replicator::drift::gone;
use replicator::postgres::slot::Lane;
use replicator::status::Phase;

use super::databases::{Databases, Purpose};
use super::streams::Streams;
use crate::audit::{Audit, Entry};
use crate::causes::chain;

/// How long both databases are asked.
const PATIENCE: Duration = Duration::from_secs(10);

/// Has a stream that is not up skip what fits nowhere because its table is gone on the source, and gives the shadow the columns that it still names and the
/// source has no more. What the shadow has of either is only dropped as the policy says.
pub(super) async fn pass_over(
    resource: &str,
    generation: Generation,
    databases: &Databases,
    streams: &Streams,
    audit: &Audit,
) -> Result<(), String> {
    let Some((source, target, status)) = streams.status(generation) else { return Ok(()) };
    if status.phase == Phase::Streaming {
        return Ok(());
    }
    let asked = async {
        let [from, to] = databases.both([&source, &target], Purpose::Schema).await.map_err(chain)?;
        let mut done = Vec::new();
        for lane in [Lane::Main, Lane::Critical] {
            let slot = lane.slot_name(resource, generation.0);
            let passed = gone::pass_over(&from, &to, &slot).await.map_err(chain)?;
            done.extend(passed.tables.into_iter().map(|name| {
                format!("{name}: it is gone on {source}, and what is left of it in the stream is skipped")
            }));
            done.extend(passed.columns.into_iter().map(|name| {
                format!("{name}: it is gone on {source}, and here for what is left of it in the stream")
            }));
        }
        Ok::<_, String>(done)
    };
    let asked = tokio::time::timeout(PATIENCE, asked).await;
    let done = asked.map_err(|_| format!("no answer within {PATIENCE:?}"))??;
    if !done.is_empty() {
        tracing::warn!(resource, ?done, "the stream passes over what is gone");
        audit.note(Entry::Schema { resource: resource.to_owned(), zone: target, done });
    }
    Ok(())
}
