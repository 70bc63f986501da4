//! What is left in the stream of tables that its source has no more.

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

/// Has a stream that is not up skip what fits nowhere because its table is gone on the source. The shadow's, if it has one, is only dropped as
/// the policy says.
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
        let mut names = Vec::new();
        for lane in [Lane::Main, Lane::Critical] {
            let slot = lane.slot_name(resource, generation.0);
            names.extend(gone::pass_over(&from, &to, &slot).await.map_err(chain)?);
        }
        Ok::<_, String>(names)
    };
    let asked = tokio::time::timeout(PATIENCE, asked).await;
    let names = asked.map_err(|_| format!("no answer within {PATIENCE:?}"))??;
    if !names.is_empty() {
        tracing::warn!(resource, tables = ?names, "what is left in the stream of tables that are gone is skipped");
        let line =
            |name| format!("{name}: it is gone on {source}, and what is left of it in the stream is skipped");
        let done = names.into_iter().map(line).collect();
        audit.note(Entry::Schema { resource: resource.to_owned(), zone: target, done });
    }
    Ok(())
}
