//! What the databases remember of a resource: where the journal does not know it (a state directory that was lost, or moved away, must not
//! make the configuration's first primary serve again), or is older than they are (one from a backup, or another node has led since).
//!
//! What follows from it is decided in [`migration::cutover::memory`]. A move that is to be undone is forestalled in its target first
//! ([`fence::forestall`]).

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use futures_util::future::join_all;
use migration::cutover::memory::{
    Found, Said, contradicts, is_overtaken, knows_more, takeover_to_begin, told,
};
use migration::cutover::{Limits, Phase, Run, State};
use migration::units::{Generation, Timestamp, Zone};
use replicator::fence;
use replicator::postgres::slot::{self, Lane};
use tokio_postgres::Client;

use super::Anew;
use crate::causes::chain;
use crate::config::model::Resource;
use crate::controller::databases::Purpose;
use crate::controller::streams;
use crate::store::Journal;

/// How long a database may take to say what it remembers.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long, where the journal is old only if it was brought back from somewhere: clients wait meanwhile.
const BRIEFLY: Duration = Duration::from_secs(2);
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
/// not, or cannot be asked. Where there are `others` that led before, what they read ends; where there are none, a journal that is not old knows
/// more than the databases. `went_on`: one of them has led since the journal's newest generation, without it.
///
/// # Errors
/// What they say fits no state that can be gone on from.
pub(super) fn state(
    resource: &Resource,
    zones: [&str; 2],
    known: Option<&State>,
    others: bool,
    went_on: bool,
    now: Timestamp,
) -> Result<Option<Remembered>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let found = runtime.block_on(async {
        for _ in 0..LOOKS {
            let alone = known.is_some() && !others;
            let seen = ask(resource, !alone, if alone { BRIEFLY } else { PATIENCE }).await;
            if others {
                end_readers(resource, &seen).await;
            }
            let found = match told(&Zone::from(resource.primary.as_str()), known, others, &seen.said) {
                Ok(Some(found)) => found,
                Ok(None) => return Ok(None),
                Err(why) => bail!(
                    "resource {}: the journal does not know it, or is older than its databases, and {why}. Start godwit with the state directory that knows \
                     (node.state), or see docs/operations.md, \"A lost state directory\"",
                    resource.name
                ),
            };
            if let Settled::Yes(remembered) = settle(resource, zones, known, went_on, &seen, found, now).await? {
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
    went_on: bool,
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
            let first = known.is_none() && generation.0 <= 1 && *zone.0 == resource.primary;
            if first {
                return Ok(Settled::Yes(None));
            }
            if let Some(journal) = known.filter(|known| knows_more(known, &zone, generation, &seen.said)) {
                match takeover_to_begin(journal, &seen.said).filter(|_| went_on) {
                    Some(run) if !forestall(resource, seen, run).await? => return Ok(Settled::Again),
                    Some(_) => {}
                    // It answers, and was made anew since, or was never opened.
                    None if journal.run.is_none() && seen.unknown.contains(&journal.primary) => {}
                    None if journal.run.is_none() && seen.of(&journal.primary).is_none() => {
                        return Ok(adopted(journal.clone(), true));
                    }
                    None => return Ok(Settled::Yes(None)),
                }
            }
            tracing::warn!(resource = %name, primary = %zone, %generation, "the databases know who serves: going on from there");
            Ok(adopted(stands(zone, generation), false))
        }
        Found::Unfinished { from, to, generation, run } => {
            let Some(client) = seen.client(&to) else { return Ok(Settled::Again) };
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
            // Of one that is adopted nothing is known but where it is.
            let as_known = |state: &&State| {
                let overtaken = is_overtaken(state, &seen.said);
                state.generation == generation && state.phase != Phase::Idle && !overtaken
            };
            if let Some(state) = known.filter(as_known) {
                // Another node may have fenced its primary for a move: that one says so when it is heard. What is of its own run, it knows.
                let own = state.run.is_some();
                return Ok(if own { Settled::Yes(None) } else { adopted(state.clone(), true) });
            }
            let taking_over = known.filter(|known| known.generation == generation.next());
            if let Some(run) = taking_over.and_then(|known| takeover_to_begin(known, &seen.said)) {
                if !went_on {
                    return Ok(Settled::Yes(None));
                }
                if !forestall(resource, seen, run).await? {
                    return Ok(Settled::Again);
                }
            }
            let primary = other(&zone);
            tracing::warn!(resource = %name, %primary, %generation, "the primary does not answer: its shadow says which it is of");
            let mut state = stands(primary, generation);
            state.phase = Phase::Shadowing;
            Ok(adopted(state, true))
        }
    }
}

/// Makes sure that a takeover of this node's own, without which another has led since, never begins; false: it has, or its database is away.
async fn forestall(resource: &Resource, seen: &Seen, run: &Run) -> Result<bool> {
    let Some(client) = seen.client(&run.to) else { return Ok(false) };
    let forestalled = fence::forestall(client, &resource.name, run.generation.0, &run.id).await?;
    if forestalled {
        tracing::warn!(resource = %resource.name, run = run.id, "another node has led since this takeover, which had not begun: it is undone");
    }
    Ok(forestalled)
}

/// Waits until the primary that did not answer does, or the database that takes over; where what was thought of it is not so, the node begins anew.
pub(super) async fn hear(resource: Arc<Resource>, state: State, journal: Arc<Journal>, anew: Arc<Anew>) {
    let Err(why) = heard(&resource, &state).await else { return };
    // A run is ended by whoever asks the databases anew.
    let forgotten = if let Some(run) = &state.run {
        let begins = |now: &Run| now.id == run.id && !now.sequenced;
        journal.latest(&state.resource).map(|now| now.and_then(|now| now.run).as_ref().is_some_and(begins))
    } else {
        journal.forget(&state)
    };
    match forgotten {
        Ok(true) => anew.begin(why),
        // The shadow has taken over meanwhile, by what this node does.
        Ok(false) => {}
        Err(error) => {
            let why_not = chain(error);
            tracing::error!(resource = %resource.name, why, why_not, "where it stands is not known");
        }
    }
}

async fn heard(resource: &Resource, state: &State) -> Result<(), String> {
    loop {
        tokio::time::sleep(AGAIN).await;
        let seen = ask(resource, false, PATIENCE).await;
        if let Some(answer) = seen.answer(state) {
            return answer.map_err(|why| format!("resource {}: {why}", resource.name));
        }
    }
}

/// What the databases that answer remember.
#[derive(Default)]
struct Seen {
    said: Vec<Said>,
    clients: Vec<(Zone, Client)>,
    /// Those that answer, and have never heard of the resource.
    unknown: Vec<Zone>,
    /// Where clients may write since its primary was lost, unless that is known to be seeded anew.
    took_over: Option<Zone>,
}

impl Seen {
    fn of(&self, zone: &Zone) -> Option<&Said> {
        self.said.iter().find(|said| said.zone == *zone)
    }

    /// Whether the primary of this state is heard, and then why it is none, if so.
    fn answer(&self, state: &State) -> Option<Result<(), String>> {
        let primary = &state.primary;
        if let Some(said) = self.of(primary) {
            return Some(contradicts(state, said).map_or(Ok(()), Err));
        }
        // Where no other one takes writes, there is nobody to go back to.
        let made_anew = state.run.is_none()
            && self.unknown.contains(primary)
            && self.said.iter().any(|said| !said.fenced);
        made_anew.then(|| Err(format!("{primary} does not know of the resource: it was made anew")))
    }

    fn client(&self, zone: &Zone) -> Option<&Client> {
        self.clients.iter().find_map(|(of, client)| (of == zone).then_some(client))
    }
}

/// Asks each of them; `first`, where nothing of ours runs yet, a fence that a process which is gone was raising ends before.
async fn ask(resource: &Resource, first: bool, patience: Duration) -> Seen {
    let asked = resource.placements.values().map(async |placement| {
        let settings = placement.postgres.as_ref()?;
        let zone = Zone::from(placement.zone.as_str());
        let answer = tokio::time::timeout(patience, async {
            let client = replicator::postgres::connect(&settings.dsn, "godwit-control").await?;
            if first {
                Purpose::Fence.end_sessions(&client).await.map_err(anyhow::Error::msg)?;
            }
            let said = said(&client, &resource.name, &zone).await?;
            anyhow::Ok((client, said))
        });
        match answer.await {
            Ok(Ok((client, said))) => Some((zone, client, said)),
            Ok(Err(error)) => {
                tracing::debug!(resource = %resource.name, %zone, %error, "the database cannot be asked what it remembers");
                None
            }
            Err(_) => None,
        }
    });
    let mut seen = Seen::default();
    for (zone, client, said) in join_all(asked).await.into_iter().flatten() {
        if said.is_none() {
            seen.unknown.push(zone.clone());
        }
        seen.said.extend(said);
        seen.clients.push((zone, client));
    }
    let seeded = seen.said.iter().any(|said| said.fenced && said.copy);
    let mut took_over =
        seen.said.iter().filter(|said| said.took_over && !seeded).map(|said| said.zone.clone());
    seen.took_over = took_over.next_back();
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
        took_over: fence::took_over(client, resource).await?,
    }))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use migration::cutover::{Event, Trigger, step};

    use super::*;

    const NOW: Timestamp = Timestamp(1);

    fn at(primary: &str, shadow: &str, generation: u64) -> State {
        let first = State::first("orders", primary.into(), shadow.into(), NOW);
        State { generation: Generation(generation), ..first }
    }

    /// Zone, generation, whether it is fenced; `*` behind a zone: it took over.
    fn said(zones: &[(&str, u64, bool)]) -> Vec<Said> {
        let one = |(zone, generation, fenced): &(&str, u64, bool)| Said {
            zone: Zone::from(zone.trim_end_matches('*')),
            generation: Generation(*generation),
            fenced: *fenced,
            run: None,
            copy: false,
            took_over: zone.ends_with('*'),
        };
        zones.iter().map(one).collect()
    }

    /// The first primary was lost, the other one took over, and both are open; or it was moved, and only the old primary answers.
    #[test]
    fn an_old_journal_is_not_gone_on_with() {
        let open = |zone: &str, generation| {
            Ok(Some(Found::Open { zone: zone.into(), generation: Generation(generation) }))
        };
        let lost = [("near", 1, false), ("far*", 2, false)];
        let both = [("near", 1, false), ("far", 2, false)];
        let moved = [("near", 2, true), ("far", 2, false)];
        let (first, second) = (at("near", "far", 1), at("far", "near", 2));
        let limits = Limits::of(&crate::config::samples::orders().policy);
        let moving = State { phase: Phase::Drained, ..first.clone().undoing("m1", limits, WHY, NOW) };
        let mut fenced = said(&[("near", 2, true)]);
        fenced[0].run = Some("m1".into());
        for (known, others, said, expected) in [
            (Some(&first), true, said(&lost), open("far", 2)),
            (Some(&first), false, said(&lost), open("far", 2)),
            (None, false, said(&lost), open("far", 2)),
            (Some(&second), true, said(&lost), open("far", 2)),
            (Some(&second), false, said(&lost), Ok(None)),
            (Some(&first), true, said(&both), Err(())),
            (Some(&first), false, said(&both), Err(())),
            (Some(&second), true, said(&both), Ok(None)),
            (Some(&first), true, said(&moved), open("far", 2)),
            (Some(&first), false, said(&moved), open("far", 2)),
            (Some(&first), true, said(&moved[..1]), Err(())),
            (Some(&first), false, said(&moved[..1]), Err(())),
            (Some(&second), true, said(&moved[..1]), Ok(None)),
            (Some(&second), false, said(&moved[..1]), Ok(None)),
            (Some(&second), false, said(&[]), Ok(None)),
            (Some(&second), true, said(&[]), Ok(Some(Found::Nothing))),
            // Its own fence, and its shadow does not answer.
            (Some(&moving), true, fenced.clone(), Ok(None)),
            (Some(&moving), false, fenced.clone(), Ok(None)),
            (Some(&first), true, fenced.clone(), Err(())),
        ] {
            let found = told(&"near".into(), known, others, &said);
            assert_eq!(found.map_err(drop), expected, "{known:?}, {others}: {said:?}");
        }
    }

    /// Then it can take over from the one that was lost.
    #[tokio::test]
    async fn a_finished_copy_is_the_shadow_of_whom_another_node_knew() {
        let resource = crate::config::samples::orders();
        let seen = Seen::default();
        let following = State { phase: Phase::Shadowing, ..at("far", "near", 2) };
        let limits = Limits::of(&resource.policy);
        let moving = State { phase: Phase::Drained, ..following.clone().undoing("m3", limits, WHY, NOW) };
        for (known, adopts) in
            [(at("far", "near", 2), true), (following, true), (moving, false), (at("near", "far", 1), true)]
        {
            let found = Found::Shadow { zone: "near".into(), generation: Generation(2) };
            let settled = settle(&resource, ["near", "far"], Some(&known), false, &seen, found, NOW);
            let settled = settled.await.unwrap();
            let Settled::Yes(adopted) = settled else { panic!("{known:?}: it has not changed meanwhile") };
            assert_eq!(adopted.is_some(), adopts, "{known:?}");
            let Some(Remembered { state, unheard, .. }) = adopted.map(|adopted| *adopted) else { continue };
            assert_eq!((&*state.primary.0, state.phase, unheard), ("far", Phase::Shadowing, true));
        }
    }

    #[test]
    fn a_primary_that_is_heard_at_last_may_be_none() {
        let state = at("far", "near", 2);
        let one = |generation, fenced, run: Option<&str>| {
            let mut said = said(&[("far", generation, fenced)]).remove(0);
            said.run = run.map(str::to_owned);
            contradicts(&state, &said).is_some()
        };
        assert!(!one(2, false, None));
        assert!(one(3, true, None), "another node has gone on");
        assert!(one(3, true, Some("m2")), "it was moved");
        assert!(one(1, true, None), "it was never opened");
    }

    /// The old primary is there again and open, and the one that took over does not answer for a moment.
    #[tokio::test]
    async fn a_primary_that_was_lost_is_not_gone_back_to() {
        let (resource, now) = (crate::config::samples::orders(), NOW);
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
            let seen = Seen { said: said(&[("near", 1, false)]), ..Seen::default() };
            let settled = settle(&resource, ["far", "near"], Some(&known), false, &seen, open(), now);
            let Settled::Yes(adopted) = settled.await.unwrap() else {
                panic!("{known:?}: it has not changed meanwhile")
            };
            let Some(Remembered { state, unheard, .. }) = adopted.map(|adopted| *adopted) else {
                assert!(known.run.is_some() && !goes_back, "{known:?}: it is to be heard");
                continue;
            };
            // One that goes on without a run waits to hear whether that is so.
            assert_eq!((&*state.primary.0 == "near", unheard), (goes_back, !goes_back), "{known:?}");
        }
    }

    /// The database that would take over does not know of it. Where no other node has led since, it begins; where one has, and here nobody
    /// can say there that it does not begin, all are asked again.
    #[tokio::test]
    async fn a_takeover_that_has_not_begun_is_gone_on_with_if_no_other_node_went_on() {
        let resource = crate::config::samples::orders();
        let asked = Event::TakeOverRequested {
            id: "m1".into(),
            trigger: Trigger::Operator("ann".into()),
            limits: Limits::of(&resource.policy),
        };
        let first = State { phase: Phase::Shadowing, ..at("near", "far", 1) };
        let takes = step(&first, asked, NOW).unwrap().0;
        let (near, far) = (("near", 1, false), ("far", 1, true));
        let open = Found::Open { zone: "near".into(), generation: Generation(1) };
        let shadow = Found::Shadow { zone: "far".into(), generation: Generation(1) };
        for (answers, found) in [(&[near, far][..], open.clone()), (&[far], shadow)] {
            let seen = Seen { said: said(answers), ..Seen::default() };
            for went_on in [false, true] {
                let settled =
                    settle(&resource, ["far", "near"], Some(&takes), went_on, &seen, found.clone(), NOW);
                let settled = settled.await.unwrap();
                let as_expected = if went_on {
                    matches!(settled, Settled::Again)
                } else {
                    matches!(settled, Settled::Yes(None))
                };
                assert!(as_expected, "{answers:?}, {went_on}");
            }
        }
        // What another node has left of it, without a run.
        let seen = Seen { said: said(&[near, far]), ..Seen::default() };
        let left = at("far", "near", 2);
        let settled = settle(&resource, ["far", "near"], Some(&left), false, &seen, open, NOW);
        let Settled::Yes(Some(adopted)) = settled.await.unwrap() else { panic!("near is the primary") };
        assert_eq!(
            (&*adopted.state.primary.0, adopted.state.generation.0, adopted.unheard),
            ("near", 1, false)
        );
        // The other node has it take over, or moves there: that is the same generation, and the run of before can never open it.
        let open = Found::Open { zone: "far".into(), generation: Generation(2) };
        for (answers, went_on) in
            [(&[("far", 2, false)][..], false), (&[("near", 2, true), ("far", 2, false)], true)]
        {
            let seen = Seen { said: said(answers), ..Seen::default() };
            let settled = settle(&resource, ["far", "near"], Some(&takes), went_on, &seen, open.clone(), NOW);
            let Settled::Yes(Some(adopted)) = settled.await.unwrap() else { panic!("far is the primary") };
            assert_eq!((&*adopted.state.primary.0, adopted.state.generation.0), ("far", 2), "{answers:?}");
            assert_eq!((adopted.state.run.as_ref(), adopted.unheard), (None, false), "{answers:?}");
            // It may answer only after that.
            assert!(seen.answer(&takes).is_some_and(|answer| answer.is_err()), "{answers:?}");
        }
        for answers in [&[near, far][..], &[near, ("far", 2, true)]] {
            let seen = Seen { said: said(answers), ..Seen::default() };
            assert_eq!(seen.answer(&takes), Some(Ok(())), "{answers:?}: it is yet to begin");
        }
    }

    /// An empty database that answers is not one that is away.
    #[tokio::test]
    async fn a_primary_that_was_made_anew_is_not_gone_on_with_where_another_one_is_open() {
        let resource = crate::config::samples::orders();
        let taken = at("far", "near", 2);
        let open = Found::Open { zone: "near".into(), generation: Generation(1) };
        for (unknown, primary) in [(vec![], "far"), (vec![Zone::from("far")], "near")] {
            let answers = !unknown.is_empty();
            let seen = Seen { said: said(&[("near", 1, false)]), unknown, ..Seen::default() };
            let settled = settle(&resource, ["far", "near"], Some(&taken), false, &seen, open.clone(), NOW);
            let Settled::Yes(Some(adopted)) = settled.await.unwrap() else { panic!("{answers}") };
            assert_eq!((&*adopted.state.primary.0, adopted.unheard), (primary, !answers));
            assert_eq!(seen.answer(&taken).is_some_and(|answer| answer.is_err()), answers);
        }
        let alone = Seen { said: said(&[("near", 2, true)]), unknown: vec!["far".into()], ..Seen::default() };
        assert_eq!(alone.answer(&taken), None, "nobody else takes writes");
    }
}
