//! What the databases remember of a resource that the journal does not know: a state directory that was lost, or moved
//! away, must not make the configuration's first primary serve again.
//!
//! A fence is raised in the old primary before the new one takes writes, and both keep the generation. So a database that is
//! not fenced and knows the newest generation is the primary; anything else is for a person to look at.

use std::time::Duration;

use anyhow::{Result, bail};
use futures_util::future::join_all;
use migration::cutover::State;
use migration::units::{Generation, Timestamp};
use replicator::fence::{self, EpochState};

use crate::config::model::Resource;

/// How long a database may take to say what it remembers.
const PATIENCE: Duration = Duration::from_secs(5);

/// The state to begin with, where the databases know of another one than the configuration's; none: they do not, or cannot
/// be asked.
///
/// # Errors
/// What they say fits no state that can be gone on from.
pub(super) fn state(resource: &Resource, shadow: &str, now: Timestamp) -> Result<Option<State>> {
    let name = &resource.name;
    let seen = tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(ask(resource));
    match judge(&resource.primary, &seen) {
        Ok(None) => Ok(None),
        Ok(Some(found)) => {
            let other = if found.zone == resource.primary { shadow } else { &resource.primary };
            tracing::warn!(
                resource = %name, primary = %found.zone, generation = found.generation,
                "the journal does not know this resource, its databases do: going on from there"
            );
            let mut state = State::first(name, found.zone.as_str().into(), other.into(), now);
            state.generation = Generation(found.generation);
            Ok(Some(state))
        }
        Err(why) => bail!(
            "resource {name}: the journal does not know it, and {why}. Start godwit with the state directory that knows (node.state), or \
             see docs/operations.md, \"A lost state directory\""
        ),
    }
}

/// What each database that answers remembers.
async fn ask(resource: &Resource) -> Vec<(String, EpochState)> {
    let asked = resource.placements.values().map(async |placement| {
        let settings = placement.postgres.as_ref()?;
        let answer = tokio::time::timeout(PATIENCE, async {
            let client = replicator::postgres::connect(&settings.dsn, "godwit-control").await?;
            fence::state(&client, &resource.name).await
        });
        let zone = &placement.zone;
        match answer.await {
            Ok(Ok(state)) => state.map(|state| (zone.clone(), state)),
            Ok(Err(error)) => {
                tracing::debug!(resource = %resource.name, %zone, %error, "the database cannot be asked what it remembers");
                None
            }
            Err(_) => None,
        }
    });
    join_all(asked).await.into_iter().flatten().collect()
}

#[derive(Debug, PartialEq, Eq)]
struct Found {
    zone: String,
    generation: u64,
}

/// Who is the primary, where that is not what the configuration says of a first start.
fn judge(configured: &str, seen: &[(String, EpochState)]) -> Result<Option<Found>, String> {
    let Some(newest) = seen.iter().map(|(_, state)| state.generation).max() else { return Ok(None) };
    let open: Vec<_> = seen.iter().filter(|(_, state)| !state.fenced).collect();
    let open_at_newest: Vec<_> = open.iter().filter(|(_, state)| state.generation == newest).collect();
    let never_moved = newest <= 1;
    match open_at_newest[..] {
        // A first start that did not get far, or another node's before it.
        _ if never_moved && open.iter().any(|(zone, _)| zone == configured) => Ok(None),
        // Of a first start, too: the shadow is guarded, and the primary does not answer.
        [] if never_moved && seen.iter().all(|(zone, _)| zone != configured) => Ok(None),
        [(zone, _)] if open.len() == 1 => Ok(Some(Found { zone: zone.clone(), generation: newest })),
        _ => {
            let said = seen.iter().map(|(zone, state)| {
                let fenced = if state.fenced { "fenced" } else { "open" };
                format!("{zone} {fenced} at generation {}", state.generation)
            });
            Err(format!(
                "its databases do not say who serves ({}): a move may have been under way",
                said.collect::<Vec<_>>().join(", ")
            ))
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn seen(zones: &[(&str, u64, bool)]) -> Vec<(String, EpochState)> {
        let state = |generation, fenced| EpochState { generation, fenced, marker: None };
        zones
            .iter()
            .map(|(zone, generation, fenced)| ((*zone).to_owned(), state(*generation, *fenced)))
            .collect()
    }

    fn found(zone: &str, generation: u64) -> Found {
        Found { zone: zone.into(), generation }
    }

    #[test]
    fn a_first_start_goes_by_the_configuration() {
        for zones in [
            &[][..],
            &[("near", 1, false)],
            &[("near", 1, false), ("far", 1, true)],
            &[("near", 1, false), ("far", 1, false)],
            &[("far", 1, true)],
        ] {
            assert_eq!(judge("near", &seen(zones)).unwrap(), None, "{zones:?}");
        }
    }

    #[test]
    fn the_open_database_of_the_newest_generation_is_the_primary() {
        for (zones, expected) in [
            (&[("near", 2, true), ("far", 2, false)][..], found("far", 2)),
            (&[("near", 3, false), ("far", 3, true)], found("near", 3)),
            // A move back that was undone: the epoch of the old primary stays behind.
            (&[("near", 2, true), ("far", 3, false)], found("far", 3)),
            // The configuration names another first primary now.
            (&[("near", 1, true), ("far", 1, false)], found("far", 1)),
            (&[("far", 4, false)], found("far", 4)),
        ] {
            assert_eq!(judge("near", &seen(zones)).unwrap(), Some(expected), "{zones:?}");
        }
    }

    #[test]
    fn what_fits_nothing_is_for_a_person() {
        for zones in [
            // Under the fence of a move, its commit unknown.
            &[("near", 2, true), ("far", 1, true)][..],
            &[("near", 2, true), ("far", 2, true)],
            &[("near", 2, false), ("far", 2, false)],
            &[("near", 2, false), ("far", 3, true)],
            &[("near", 1, true)],
            &[("near", 2, true)],
        ] {
            let why = judge("near", &seen(zones)).unwrap_err();
            assert!(why.contains("near") && why.contains("generation"), "{why}");
        }
    }
}
