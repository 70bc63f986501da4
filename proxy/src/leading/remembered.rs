//! What the databases remember of a resource: where the journal does not know it (a state directory that was lost, or moved away, must not
//! make the configuration's first primary serve again), or another node may have led it since.
//!
//! What follows from it is decided in [`migration::cutover::memory`]. A move that is to be undone is forestalled in its target first
//! ([`fence::forestall`]).

use std::time::Duration;

use anyhow::{Result, bail};
use futures_util::future::join_all;
use migration::cutover::memory::{Found, Said, judge};
use migration::cutover::{Limits, Phase, State};
use migration::units::{Generation, Timestamp, Zone};
use replicator::fence;
use replicator::postgres::slot::{self, Lane};
use tokio_postgres::Client;

use crate::config::model::Resource;
use crate::controller::databases::Purpose;
use crate::controller::streams;

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
    /// Its primary took over from the other one, which has what nobody else has.
    pub(super) lost: bool,
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
    let found = runtime.block_on(async {
        for _ in 0..LOOKS {
                        let seen = ask(resource, true).await;
            if others {
                end_readers(resource, &seen).await;
            }
            let found = match judge(&Zone::from(resource.primary.as_str()), &seen.said) {
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
    });
    // A look-up without an answer is not waited for.
    runtime.shutdown_background();
    found
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
    let other = |zone: &Zone| Zone::from(if *zone.0 == *zones[0] { zones[1] } else { zones[0] });
    let stands = |primary: Zone, generation: Generation| {
        let shadow = other(&primary);
        let mut state = State::first(name, primary, shadow, now);
        state.generation = generation;
        state
    };
    let adopted = |state: State, unheard| {
        let lost = seen.took_over.as_ref() == Some(&state.primary);
        Settled::Yes(Some(Box::new(Remembered { state, unheard, lost })))
    };
    match found {
        Found::Nothing => Ok(Settled::Yes(None)),
        Found::Open { zone, generation } => {
            let same = |state: &State| state.primary == zone && state.generation == generation;
            // A shadow that takes over does so without asking the primary, and a database that was open at a newer generation has what this one
            // does not have, also while it does not answer. A commit that was not opened yet may have been undone by another node.
            let newer = |state: &State| {
                state.generation > generation
                    && state
                        .run
                        .as_ref()
                        .is_none_or(|run| run.taken_over || run.opened && state.phase.past_commit())
            };
            let first = known.is_none() && generation.0 <= 1 && *zone.0 == resource.primary;
            if first || known.is_some_and(|state| same(state) || newer(state)) {
                return Ok(Settled::Yes(None));
            }
            tracing::warn!(resource = %name, primary = %zone, %generation, "the databases know who serves: going on from there");
            Ok(adopted(stands(zone, generation), false))
        }
        Found::Unfinished { from, to, generation, run } => {
            let client = seen.clients.iter().find_map(|(zone, client)| (*zone == to).then_some(client));
            let Some(client) = client else { return Ok(Settled::Again) };
            let own = known.and_then(|state| state.run.as_ref()).is_some_and(|known| known.id == run);
            if own && !fence::is_undone(client, &run).await? {
                return Ok(Settled::Yes(None));
            }
            if !fence::forestall(client, name, generation.next().0, &run).await? {
                return Ok(Settled::Again);
            }
            tracing::warn!(resource = %name, primary = %from, %generation, run, "a move that another node had begun is undone");
            let limits = Limits::of(&resource.policy);
            Ok(adopted(stands(from, generation).undoing(&run, limits, WHY, now), false))
        }
        Found::Shadow { zone, generation } => {
            if known.is_some_and(|state| state.generation == generation) {
                return Ok(Settled::Yes(None));
            }
            let primary = other(&zone);
            tracing::warn!(resource = %name, %primary, %generation, "the primary does not answer: its shadow says which it is of");
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
        let seen = ask(resource, false).await;
        let Some(said) = seen.said.iter().find(|said| said.zone == state.primary) else { continue };
        // One that was lost is fenced when it is back: then the journal knows more than this.
        let unfinished = said.run.is_some() && said.generation == state.generation.next();
        return if unfinished {
            Err(format!("resource {}: {} was in the middle of a move", resource.name, state.primary))
        } else {
            Ok(())
        };
    }
}

/// What the databases that answer remember.
struct Seen {
    said: Vec<Said>,
    clients: Vec<(Zone, Client)>,
    /// Where clients may write since its primary was lost, unless that is known to be seeded anew.
    took_over: Option<Zone>,
}

/// Asks each of them; `first`, where nothing of ours runs yet, a fence that a process which is gone was raising ends before.
async fn ask(resource: &Resource, first: bool) -> Seen {
    let asked = resource.placements.values().map(async |placement| {
        let settings = placement.postgres.as_ref()?;
        let zone = Zone::from(placement.zone.as_str());
        let answer = tokio::time::timeout(PATIENCE, async {
            let client = replicator::postgres::connect(&settings.dsn, "godwit-control").await?;
            if first {
                Purpose::Fence.end_sessions(&client).await.map_err(anyhow::Error::msg)?;
            }
            let said = said(&client, &resource.name, &zone).await?;
            let took_over = fence::took_over(&client, &resource.name).await?;
            anyhow::Ok((client, said, took_over))
        });
        match answer.await {
            Ok(Ok((client, said, took_over))) => Some((zone, client, said, took_over)),
            Ok(Err(error)) => {
                tracing::debug!(resource = %resource.name, %zone, %error, "the database cannot be asked what it remembers");
                None
            }
            Err(_) => None,
        }
    });
    let mut seen = Seen { said: Vec::new(), clients: Vec::new(), took_over: None };
    for (zone, client, said, took_over) in join_all(asked).await.into_iter().flatten() {
        seen.said.extend(said);
        if took_over {
            seen.took_over = Some(zone.clone());
        }
        seen.clients.push((zone, client));
    }
    let seeded = seen.said.iter().any(|said| said.fenced && said.copy);
    seen.took_over = seen.took_over.filter(|_| !seeded);
    let alone = seen.clients.len() == 1;
    seen.said.iter_mut().for_each(|said| said.copy &= alone);
    seen
}

async fn said(client: &Client, resource: &str, zone: &Zone) -> Result<Option<Said>> {
    let Some(epoch) = fence::state(client, resource).await? else { return Ok(None) };
    let stream = Lane::Main.slot_name(resource, epoch.generation);
    Ok(Some(Said {
        zone: zone.clone(),
        generation: Generation(epoch.generation),
        fenced: epoch.fenced,
        copy: streams::copied(client, &stream).await.map_err(anyhow::Error::msg)? == Some(true),
        run: epoch.run.filter(|_| epoch.fenced && epoch.marker.is_some()),
    }))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use migration::cutover::{Event, Trigger, step};

    use super::*;

    /// The old primary is there again and open, and the one that took over does not answer for a moment.
    #[tokio::test]
    async fn a_primary_that_was_lost_is_not_gone_back_to() {
        let (resource, now) = (crate::config::samples::orders(), Timestamp(1));
        let limits = Limits::of(&resource.policy);
        let walk = |events: Vec<Event>| {
            let first = State::first("orders", "near".into(), "far".into(), now);
            let events = [Event::ShadowEnabled, Event::StreamUp].into_iter().chain(events);
            events.fold(first, |state, event| step(&state, event, now).unwrap().0)
        };
        let trigger = || Trigger::Operator("ann".into());
        let taken = [
            Event::TakeOverRequested { id: "m1".into(), trigger: trigger(), limits },
            Event::TakenOver,
            Event::PoolSwapped,
            Event::FenceLifted,
            Event::GateOpened,
        ];
        let moved = [
            Event::MigrateRequested { id: "m1".into(), to: "far".into(), trigger: trigger(), limits },
            Event::ShadowScaled,
            Event::GuardsPassed,
            Event::ReverseSlotMade,
            Event::GateClosed,
            Event::DrainFinished,
            Event::FenceUp { marker: migration::units::Position(7) },
            Event::MarkerApplied,
            Event::SequencesSet,
            Event::ReverseSlotMade,
            Event::FenceLifted,
        ];
        let open = || Found::Open { zone: "near".into(), generation: Generation(1) };
        for (events, goes_back) in [
            (taken[..1].to_vec(), false),
            (taken.to_vec(), false),
            (moved.to_vec(), false),
            // Another node has undone it.
            (moved[..moved.len() - 1].to_vec(), true),
        ] {
            let known = walk(events);
            assert_eq!(known.generation, Generation(2), "{known:?}");
            let seen = Seen { said: Vec::new(), clients: Vec::new(), took_over: None };
            let settled = settle(&resource, ["far", "near"], Some(&known), &seen, open(), now).await.unwrap();
            let Settled::Yes(adopted) = settled else { panic!("{known:?}: it has not changed meanwhile") };
            assert_eq!(adopted.is_some(), goes_back, "{known:?}");
        }
    }
}
