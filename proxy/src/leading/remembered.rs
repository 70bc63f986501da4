//! What the databases remember of a resource: where the journal does not know it (a state directory that was lost, or moved away, must not
//! make the configuration's first primary serve again), or another node may have led it since.
//!
//! A fence is raised in the old primary before the new one takes writes, and both keep the generation. So a database that is
//! not fenced and knows the newest generation is the primary. Where none is open, a node went in the middle of a move; nothing was ever written in
//! its target, which is not open: that is made sure of there ([`fence::forestall`]), then the move is undone.

use std::time::Duration;

use anyhow::{Result, bail};
use futures_util::future::join_all;
use migration::cutover::{Limits, Phase, State};
use migration::units::{Generation, Timestamp};
use replicator::fence::{self, EpochState};
use replicator::postgres::slot::{self, Lane};
use tokio_postgres::Client;

use crate::config::model::Resource;

/// How long a database may take to say what it remembers.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often a primary that did not answer is asked again.
const AGAIN: Duration = Duration::from_secs(2);
/// How often what the databases say may change while it is looked at.
const LOOKS: u32 = 5;
/// Why a run is undone by a node that does not know it.
const WHY: &str = "the node that led was lost in the middle of it";

/// How a resource begins that the databases know better.
#[derive(Debug)]
pub(super) struct Remembered {
    pub(super) state: State,
    /// Its primary did not answer: what it knows may be something else.
    pub(super) unheard: bool,
}

/// The state to begin with, where the databases know of another one than the configuration's, or than the journal's (`known`); none: they do
/// not, or cannot be asked. Where there are `others` that led before, what they read ends.
///
/// # Errors
/// What they say fits no state that can be gone on from.
pub(super) fn state(
    resource: &Resource,
    zones: [&str; 2],
    known: Option<&State>,
    others: bool,
    now: Timestamp,
) -> Result<Option<Remembered>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        for _ in 0..LOOKS {
            let seen = ask(resource).await;
            if others {
                end_readers(resource, &seen).await;
            }

            let found = match judge(&resource.primary, &seen) {
                Ok(found) => found,
                // The journal knew it before they did.
                Err(_) if known.is_some() => return Ok(None),
                Err(why) => bail!(
                    "resource {}: the journal does not know it, and {why}. Start godwit with the state directory that knows \
                     (node.state), or see docs/operations.md, \"A lost state directory\"",
                    resource.name
                ),
            };
            if let Settled::Yes(remembered) = settle(resource, zones, known, &seen, found, now).await? {
                return Ok(remembered.map(|remembered| *remembered));
            }
        }
        bail!("resource {}: its databases say something else each time: another node moves it", resource.name)
    })
}

/// What another node had begun to read is ours to read now.
async fn end_readers(resource: &Resource, seen: &Seen) {
    for (zone, client) in &seen.clients {
        if let Err(error) = slot::end_readers(client, &resource.name).await {
            // They end when the server notices that nobody is there.
            tracing::warn!(resource = %resource.name, %zone, %error, "what another node reads there goes on for now");
        }
    }
}

enum Settled {
    Yes(Option<Box<Remembered>>),
    /// It has changed meanwhile.
    Again,
}

/// Makes a state of what was found.
async fn settle(
    resource: &Resource,
    zones: [&str; 2],
    known: Option<&State>,
    seen: &Seen,
    found: Found,
    now: Timestamp,
) -> Result<Settled> {
    let name = &resource.name;
    let other = |zone: &str| if zone == zones[0] { zones[1] } else { zones[0] };
    let stands = |primary: &str, generation| {
        let mut state = State::first(name, primary.into(), other(primary).into(), now);
        state.generation = Generation(generation);
        state
    };
    let adopted = |state, unheard| Settled::Yes(Some(Box::new(Remembered { state, unheard })));
    match found {
        Found::Nothing => Ok(Settled::Yes(None)),
        Found::Open { zone, generation } => {
            let same = |state: &State| *state.primary.0 == *zone && state.generation.0 == generation;
            // A shadow that takes over does so without asking the primary.
            let taking = |state: &State| {
                state.generation.0 > generation && state.run.as_ref().is_some_and(|run| run.taken_over)
            };
            let first = known.is_none() && generation <= 1 && zone == resource.primary;
            if first || known.is_some_and(|state| same(state) || taking(state)) {
                return Ok(Settled::Yes(None));
            }
            tracing::warn!(resource = %name, primary = %zone, generation, "the databases know who serves: going on from there");
            Ok(adopted(stands(&zone, generation), false))
        }
        Found::Unfinished { from, to, generation, run } => {
            let client = seen.clients.iter().find_map(|(zone, client)| (*zone == to).then_some(client));
            let Some(client) = client else { return Ok(Settled::Again) };
            let own = known.and_then(|state| state.run.as_ref()).is_some_and(|known| known.id == run);
            if own && !fence::is_undone(client, &run).await? {
                return Ok(Settled::Yes(None));
            }
            if !fence::forestall(client, name, generation + 1, &run).await? {
                return Ok(Settled::Again);
            }
            tracing::warn!(resource = %name, primary = %from, generation, run, "a move that another node had begun is undone");
            let limits = Limits::of(&resource.policy);
            Ok(adopted(stands(&from, generation).undoing(&run, limits, WHY, now), false))
        }
        Found::Shadow { zone, generation } => {
            let primary = other(&zone);
            if known.is_some_and(|state| state.generation.0 == generation) {
                return Ok(Settled::Yes(None));
            }
            tracing::warn!(resource = %name, %primary, generation, "the primary does not answer: its shadow says which it is of");
            let mut state = stands(primary, generation);
            state.phase = Phase::Shadowing;
            Ok(adopted(state, true))
        }
    }
}

/// Waits until the primary that did not answer does; the error says that it is another one than was thought.
pub(super) async fn heard(resource: &Resource, state: &State) -> Result<(), String> {
    loop {
        tokio::time::sleep(AGAIN).await;
        let seen = ask(resource).await;
        let Some((_, said)) = seen.said.iter().find(|(zone, _)| **zone == *state.primary.0) else { continue };
        // One that was lost is fenced when it is back: then the journal knows more than this.
        let unfinished = said.fenced && said.run.is_some() && said.generation == state.generation.0 + 1;
        return if unfinished {
            Err(format!("resource {}: {} was in the middle of a move", resource.name, state.primary))
        } else {
            Ok(())
        };
    }
}

/// What the databases that answer remember.
struct Seen {
    said: Vec<(String, EpochState)>,
    clients: Vec<(String, Client)>,
    /// The one that has a whole copy for its generation, where only it has answered.
    whole: Option<String>,
}

/// What a database answered.
struct Told {
    zone: String,
    client: Client,
    epoch: Option<EpochState>,
    copied: bool,
}

async fn ask(resource: &Resource) -> Seen {
    let asked = resource.placements.values().map(async |placement| {
        let settings = placement.postgres.as_ref()?;
        let zone = &placement.zone;
        let answer = tokio::time::timeout(PATIENCE, async {
            let client = replicator::postgres::connect(&settings.dsn, "godwit-control").await?;
            let epoch = fence::state(&client, &resource.name).await?;
            let copied = match &epoch {
                Some(epoch) => has_copy(&client, &resource.name, epoch.generation).await?,
                None => false,
            };
            anyhow::Ok(Told { zone: zone.clone(), client, epoch, copied })
        });
        match answer.await {
            Ok(Ok(told)) => Some(told),
            Ok(Err(error)) => {
                tracing::debug!(resource = %resource.name, %zone, %error, "the database cannot be asked what it remembers");
                None
            }
            Err(_) => None,
        }
    });
    let told: Vec<Told> = join_all(asked).await.into_iter().flatten().collect();
    let whole = match &told[..] {
        [only] if only.copied => Some(only.zone.clone()),
        _ => None,
    };
    let said = told.iter().filter_map(|told| Some((told.zone.clone(), told.epoch.clone()?))).collect();
    Seen { said, whole, clients: told.into_iter().map(|told| (told.zone, told.client)).collect() }
}

/// Whether a database is the finished copy of this generation's primary.
async fn has_copy(client: &Client, resource: &str, generation: u64) -> Result<bool> {
    let stream = Lane::Main.slot_name(resource, generation);
    let sql = "SELECT EXISTS (SELECT FROM godwit.progress WHERE stream = $1 AND copied)";
    Ok(client.query_one(sql, &[&stream]).await?.get(0))
}

#[derive(Debug, PartialEq, Eq)]
enum Found {
    /// A first start, by the configuration.
    Nothing,
    /// Clients may write to this one.
    Open { zone: String, generation: u64 },
    /// Clients may write to none: `run` had fenced `from`, and has not opened `to`, the shadow of `generation`.
    Unfinished { from: String, to: String, generation: u64, run: String },
    /// The only one that answers is a finished copy of this generation's primary.
    Shadow { zone: String, generation: u64 },
}

/// Who is the primary, where that is not what the configuration says of a first start.
fn judge(configured: &str, seen: &Seen) -> Result<Found, String> {
    let said = &seen.said;
    let Some(newest) = said.iter().map(|(_, state)| state.generation).max() else {
        return Ok(Found::Nothing);
    };
    let open: Vec<_> = said.iter().filter(|(_, state)| !state.fenced).collect();
    let open_at_newest: Vec<_> = open.iter().filter(|(_, state)| state.generation == newest).collect();
    let never_moved = newest <= 1;
    match (&open_at_newest[..], &said[..]) {
        // A first start that did not get far, or another node's before it: a shadow is open before it is guarded.
        _ if never_moved && open.iter().any(|(zone, _)| zone == configured) => {
            Ok(Found::Open { zone: configured.to_owned(), generation: newest })
        }

        ([(zone, _)], _) if open.len() == 1 => Ok(Found::Open { zone: zone.clone(), generation: newest }),
        ([], [one, two]) if open.is_empty() => {
            let (old, new) = if one.1.generation > two.1.generation { (one, two) } else { (two, one) };
            match &old.1.run {
                Some(run) if old.1.generation == new.1.generation + 1 && old.1.marker.is_some() => {
                    Ok(Found::Unfinished {
                        from: old.0.clone(),
                        to: new.0.clone(),
                        generation: new.1.generation,
                        run: run.clone(),
                    })
                }
                _ => Err(unclear(said)),
            }
        }
        ([], [(zone, _)]) if seen.whole.as_ref() == Some(zone) => {
            Ok(Found::Shadow { zone: zone.clone(), generation: newest })
        }
        // Of a first start, too: the shadow is guarded, and the primary does not answer.
        ([], _) if never_moved && said.iter().all(|(zone, _)| zone != configured) => Ok(Found::Nothing),
        _ => Err(unclear(said)),
    }
}

fn unclear(said: &[(String, EpochState)]) -> String {
    let said = said.iter().map(|(zone, state)| {
        let fenced = if state.fenced { "fenced" } else { "open" };
        format!("{zone} {fenced} at generation {}", state.generation)
    });
    format!(
        "its databases do not say who serves ({}): a move may have been under way",
        said.collect::<Vec<_>>().join(", ")
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Zone, generation, whether it is fenced; a run with a marker where it was fenced by one.
    fn seen(zones: &[(&str, u64, bool)]) -> Seen {
        let state = |generation, fenced| EpochState { generation, fenced, marker: None, run: None };
        let said = zones
            .iter()
            .map(|(zone, generation, fenced)| ((*zone).to_owned(), state(*generation, *fenced)))
            .collect();
        Seen { said, clients: Vec::new(), whole: None }
    }

    fn open(zone: &str, generation: u64) -> Found {
        Found::Open { zone: zone.into(), generation }
    }

    #[test]
    fn a_first_start_goes_by_the_configuration() {
        for zones in [&[][..], &[("far", 1, true)]] {
            assert_eq!(judge("near", &seen(zones)).unwrap(), Found::Nothing, "{zones:?}");
        }
        for zones in [
            &[("near", 1, false)][..],
            &[("near", 1, false), ("far", 1, true)],
            &[("near", 1, false), ("far", 1, false)],
        ] {
            assert_eq!(judge("near", &seen(zones)).unwrap(), open("near", 1), "{zones:?}");
        }
    }

    #[test]
    fn the_open_database_of_the_newest_generation_is_the_primary() {
        for (zones, expected) in [
            (&[("near", 2, true), ("far", 2, false)][..], open("far", 2)),
            (&[("near", 3, false), ("far", 3, true)], open("near", 3)),
            // A move back that was undone: the epoch of the old primary stays behind.
            (&[("near", 2, true), ("far", 3, false)], open("far", 3)),
            // The configuration names another first primary now.
            (&[("near", 1, true), ("far", 1, false)], open("far", 1)),
            (&[("far", 4, false)], open("far", 4)),
        ] {
            assert_eq!(judge("near", &seen(zones)).unwrap(), expected, "{zones:?}");
        }
    }

    #[test]
    fn a_move_that_was_under_way_is_known_by_its_fence() {
        let mut zones = seen(&[("near", 4, true), ("far", 3, true)]);
        zones.said[0].1.run = Some("m7".into());
        assert!(judge("near", &zones).is_err(), "a fence that is still going up");
        zones.said[0].1.marker = Some(replicator::Lsn(7));
        let unfinished =
            Found::Unfinished { from: "near".into(), to: "far".into(), generation: 3, run: "m7".into() };
        assert_eq!(judge("near", &zones).unwrap(), unfinished);
        zones.said.swap(0, 1);
        assert_eq!(judge("far", &zones).unwrap(), unfinished);
        zones.said.remove(0);
        assert!(judge("near", &zones).is_err(), "the other one may be open by now");
    }

    #[test]
    fn a_shadow_alone_knows_whose_it_is() {
        for generation in [1, 5] {
            let mut zones = seen(&[("far", generation, true)]);
            zones.whole = Some("far".into());
            let shadow = Found::Shadow { zone: "far".into(), generation };
            assert_eq!(judge("near", &zones).unwrap(), shadow);
            assert_eq!(judge("far", &zones).unwrap(), shadow);
        }
    }

    #[test]
    fn what_fits_nothing_is_for_a_person() {
        for zones in [
            // Under the fence of a move that is not known.
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
