//! Who serves, by what the databases remember: for a node that does not have the journal, or an old one.
//!
//! A fence is raised in the old primary before the new one takes writes, and both keep the generation. So a database that is
//! not fenced and knows the newest generation is the primary. A primary that was lost is not fenced when it is back: the one that took over
//! from it says so. Where none is open, a node went in the middle of a move; nothing was ever written
//! in its target, which is not open: once it is made sure of there that this stays so, the move can be undone.

use crate::cutover::{Run, State};
use crate::units::{Generation, Zone};

/// What one database answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// Where it is.
    pub zone: Zone,
    /// Newest generation that it heard of.
    pub generation: Generation,
    /// Clients cannot write.
    pub fenced: bool,
    /// The migration whose fence is up, with its end marker.
    pub run: Option<String>,
    /// It is a finished copy of this generation's primary, and that one does not answer.
    pub copy: bool,
    /// It took over from a primary that was lost, which may be open still.
    pub took_over: bool,
}

/// What follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// A first start, by the configuration.
    Nothing,
    /// Clients may write to this one.
    Open {
        /// The primary.
        zone: Zone,
        /// Its generation.
        generation: Generation,
    },
    /// Clients may write to none: a migration had fenced one, and has not opened the other.
    Unfinished {
        /// The old primary.
        from: Zone,
        /// The shadow.
        to: Zone,
        /// Before it.
        generation: Generation,
        /// The migration.
        run: String,
    },
    /// The only one that answers is a finished copy of its generation's primary.
    Shadow {
        /// Where it is.
        zone: Zone,
        /// The generation.
        generation: Generation,
    },
}

/// What follows from what they say.
///
/// # Errors
/// They do not say who serves; in words.
pub fn judge(configured: &Zone, said: &[Said]) -> Result<Found, String> {
    let Some(newest) = said.iter().map(|one| one.generation).max() else { return Ok(Found::Nothing) };
    let open: Vec<&Said> = said.iter().filter(|one| !one.fenced).collect();
    let open_at_newest: Vec<_> = open.iter().filter(|one| one.generation == newest).collect();
    let never_moved = newest.0 <= 1;
    match (&open_at_newest[..], said) {
        // A first start that did not get far, or another node's before it: a shadow is open before it is guarded.
        _ if never_moved && open.iter().any(|one| one.zone == *configured) => {
            Ok(Found::Open { zone: configured.clone(), generation: newest })
        }
        ([one], _) if open.len() == 1 || one.took_over => {
            Ok(Found::Open { zone: one.zone.clone(), generation: newest })
        }
        ([], [one, other]) if open.is_empty() => {
            let (old, new) = if one.generation > other.generation { (one, other) } else { (other, one) };
            match &old.run {
                Some(run) if old.generation == new.generation.next() => Ok(Found::Unfinished {
                    from: old.zone.clone(),
                    to: new.zone.clone(),
                    generation: new.generation,
                    run: run.clone(),
                }),
                _ => Err(unclear(said)),
            }
        }
        ([], [one]) if one.copy => Ok(Found::Shadow { zone: one.zone.clone(), generation: newest }),
        // Of a first start, too: the shadow is guarded, and the primary does not answer.
        ([], _) if never_moved && said.iter().all(|one| one.zone != *configured) => Ok(Found::Nothing),
        _ => Err(unclear(said)),
    }
}

/// Whether a journal is older than the databases: one knows a newer generation, and not by the fence of that journal's own run. Of what
/// is done, the journal of who does it knows first.
pub fn is_old(journal: &State, said: &[Said]) -> bool {
    let own = |one: &Said| {
        let run = journal.run.as_ref().filter(|run| one.fenced && run.generation == one.generation);
        run.is_some_and(|run| one.run.as_ref().is_none_or(|id| *id == run.id))
    };
    is_overtaken(journal, said) || said.iter().any(|one| one.generation > journal.generation && !own(one))
}

/// Whether a takeover of a journal that has not begun never will: another node's run has opened the database that takes over as that generation,
/// or seeded it as a shadow of that. A takeover of one's own is known to have begun before it opens anything.
pub fn is_overtaken(journal: &State, said: &[Said]) -> bool {
    let of_another = |one: &Said| {
        let same = one.zone == journal.primary && one.generation == journal.generation;
        same && (!one.fenced || one.copy)
    };
    not_begun(journal).is_some() && said.iter().any(of_another)
}

/// What follows from what they said where there is a journal (`known`), too; none: it knew it before they did. Where there are no `others` that
/// may have led since, only an old one is not gone on with.
///
/// # Errors
/// They do not say who serves, and the journal is old, or there is none; in words.
pub fn told(
    configured: &Zone,
    known: Option<&State>,
    others: bool,
    said: &[Said],
) -> Result<Option<Found>, String> {
    let knows = known.is_some_and(|known| !is_old(known, said));
    if knows && !others {
        return Ok(None);
    }
    // What another node left may be of a takeover that it did not bring to its end.
    let shut = known.is_some_and(|known| said.iter().any(|one| is_shut(known, one)));
    match judge(configured, said) {
        Err(_) if knows && !shut => Ok(None),
        found => found.map(Some),
    }
}

/// Whether a database that is said to be the primary takes no writes, and nobody knows of a run that would open it.
fn is_shut(known: &State, said: &Said) -> bool {
    known.run.is_none() && said.zone == known.primary && said.generation == known.generation && said.fenced
}

/// Whether a journal knows as much as a database in `zone` that is open at `generation`, or more, by what all that answer `said`.
pub fn knows_more(journal: &State, zone: &Zone, generation: Generation, said: &[Said]) -> bool {
    let same = journal.primary == *zone && journal.generation == generation && !is_overtaken(journal, said);
    // A shadow that takes over does so without asking the primary, and a database that was open at a newer generation has what this one
    // does not have, also while it does not answer. A commit that was not opened yet may have been undone by another node.
    let went_on = |run: &Run| run.taken_over || run.opened && journal.phase.past_commit();
    // One that was never opened there is what another node meant to do, and has left.
    let known = journal.run.as_ref().map_or(!is_behind(journal, said), went_on);
    same || journal.generation > generation && known
}

/// The takeover of a journal that has not begun in the database which takes over, by what that one `said`.
pub fn takeover_to_begin<'a>(journal: &'a State, said: &[Said]) -> Option<&'a Run> {
    not_begun(journal).filter(|_| is_behind(journal, said))
}

fn not_begun(journal: &State) -> Option<&Run> {
    journal.run.as_ref().filter(|run| run.taken_over && !run.sequenced)
}

/// Whether the primary of a journal answers, and does not know of that generation.
fn is_behind(journal: &State, said: &[Said]) -> bool {
    said.iter().any(|one| one.zone == journal.primary && one.generation < journal.generation)
}

/// Why `journal`, of a node that did not hear its primary, is not what that one says. Where the node has taken over from it meanwhile, its journal
/// is not this one any more.
pub fn contradicts(journal: &State, said: &Said) -> Option<String> {
    if journal.run.is_some() {
        // Everything else that it may say of the generation before, or of this one, is of what the run has yet to do, or has done.
        return is_overtaken(journal, std::slice::from_ref(said)).then(|| {
            format!("{} was opened at generation {} by another run", journal.primary, journal.generation.0)
        });
    }
    if said.run.is_some() && said.generation == journal.generation.next() {
        return Some(format!("{} was in the middle of a move", journal.primary));
    }
    if said.fenced && said.generation > journal.generation {
        return Some(format!("{} knows of generation {}", journal.primary, said.generation.0));
    }
    if is_shut(journal, said) {
        return Some(format!("{} was not opened at generation {}", journal.primary, said.generation.0));
    }
    // Whoever said that it was committed has not opened it.
    is_behind(journal, std::slice::from_ref(said))
        .then(|| format!("{} does not know of generation {}", journal.primary, journal.generation.0))
}

fn unclear(said: &[Said]) -> String {
    let said = said.iter().map(|one| {
        let fenced = if one.fenced { "fenced" } else { "open" };
        format!("{} {fenced} at generation {}", one.zone, one.generation.0)
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
    use crate::cutover::{Limits, Phase};
    use crate::policy::{Policy, PolicyParts};
    use crate::units::Timestamp;

    /// Zone, generation, whether it is fenced.
    fn said(zones: &[(&str, u64, bool)]) -> Vec<Said> {
        let one = |(zone, generation, fenced): &(&str, u64, bool)| Said {
            zone: Zone::from(*zone),
            generation: Generation(*generation),
            fenced: *fenced,
            run: None,
            copy: false,
            took_over: false,
        };
        zones.iter().map(one).collect()
    }

    fn near() -> Zone {
        Zone::from("near")
    }

    fn open(zone: &str, generation: u64) -> Found {
        Found::Open { zone: zone.into(), generation: Generation(generation) }
    }

    #[test]
    fn a_first_start_goes_by_the_configuration() {
        for zones in [&[][..], &[("far", 1, true)]] {
            assert_eq!(judge(&near(), &said(zones)).unwrap(), Found::Nothing, "{zones:?}");
        }
        for zones in [
            &[("near", 1, false)][..],
            &[("near", 1, false), ("far", 1, true)],
            &[("near", 1, false), ("far", 1, false)],
        ] {
            assert_eq!(judge(&near(), &said(zones)).unwrap(), open("near", 1), "{zones:?}");
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
            assert_eq!(judge(&near(), &said(zones)).unwrap(), expected, "{zones:?}");
        }
    }

    #[test]
    fn a_move_that_was_under_way_is_known_by_its_fence() {
        let mut zones = said(&[("near", 4, true), ("far", 3, true)]);
        assert!(judge(&near(), &zones).is_err(), "a fence that is still going up");
        zones[0].run = Some("m7".into());
        let unfinished =
            Found::Unfinished { from: near(), to: "far".into(), generation: Generation(3), run: "m7".into() };
        assert_eq!(judge(&near(), &zones).unwrap(), unfinished);
        zones.swap(0, 1);
        assert_eq!(judge(&"far".into(), &zones).unwrap(), unfinished);
        zones.remove(0);
        assert!(judge(&near(), &zones).is_err(), "the other one may be open by now");
    }

    #[test]
    fn a_primary_that_was_lost_and_is_back_is_none() {
        let mut zones = said(&[("near", 1, false), ("far", 2, false)]);
        assert!(judge(&near(), &zones).is_err(), "nobody knows why both are open");
        zones[1].took_over = true;
        assert_eq!(judge(&near(), &zones).unwrap(), open("far", 2));
        // It was lost in its turn.
        zones[0] = Said { took_over: true, ..said(&[("near", 3, false)]).remove(0) };
        assert_eq!(judge(&near(), &zones).unwrap(), open("near", 3));
        zones[1].generation = Generation(3);
        assert!(judge(&near(), &zones).is_err(), "two at the newest");
    }

    #[test]
    fn a_journal_is_old_where_a_database_knows_what_is_not_its_own() {
        let first = State::first("r", near(), "far".into(), Timestamp(1));
        let mut moves = first.clone().undoing(
            "m7",
            Limits::of(&Policy::new(PolicyParts::default()).unwrap()),
            "",
            Timestamp(1),
        );
        moves.phase = Phase::Drained;
        let moved =
            State { generation: Generation(2), primary: "far".into(), shadow: near(), ..moves.clone() };
        let fenced_by = |run: Option<&str>| {
            let mut zones = said(&[("near", 2, true), ("far", 1, true)]);
            zones[0].run = run.map(str::to_owned);
            zones
        };
        for (journal, zones, old) in [
            (&first, said(&[]), false),
            (&first, said(&[("near", 1, false), ("far", 1, true)]), false),
            (&first, said(&[("near", 2, true), ("far", 2, false)]), true),
            (&first, said(&[("near", 1, false), ("far", 2, false)]), true),
            (&first, said(&[("near", 2, true)]), true),
            (&first, fenced_by(Some("m7")), true),
            // Its own fence, before and after it is known to be up.
            (&moves, said(&[("near", 1, false), ("far", 1, true)]), false),
            (&moves, fenced_by(None), false),
            (&moves, fenced_by(Some("m7")), false),
            (&moves, fenced_by(Some("m8")), true),
            (&moves, said(&[("near", 2, true), ("far", 2, false)]), true),
            (&moves, said(&[("near", 3, true), ("far", 2, false)]), true),
            // The commit is in the journal before anything of it is done.
            (&moved, fenced_by(Some("m7")), false),
            (&moved, said(&[("near", 2, true), ("far", 2, false)]), false),
            (&moved, said(&[("near", 3, false), ("far", 3, true)]), true),
        ] {
            assert_eq!(is_old(journal, &zones), old, "{journal:?}: {zones:?}");
        }
    }

    #[test]
    fn a_primary_that_is_heard_at_last_may_have_been_moved_on_from() {
        let journal =
            State { generation: Generation(2), ..State::first("r", near(), "far".into(), Timestamp(1)) };
        for (generation, fenced, contradicted) in
            [(2, false, false), (2, true, true), (3, true, true), (4, true, true), (1, true, true)]
        {
            let said = said(&[("near", generation, fenced)]).remove(0);
            assert_eq!(contradicts(&journal, &said).is_some(), contradicted, "{generation}, {fenced}");
        }
    }

    /// Another node has left that it would take over, or the journal that it has.
    #[test]
    fn a_takeover_that_its_database_has_not_heard_of_has_not_begun() {
        let first = State::first("r", near(), "far".into(), Timestamp(1));
        let limits = Limits::of(&Policy::new(PolicyParts::default()).unwrap());
        let run = first.undoing("m7", limits, "", Timestamp(1)).run.unwrap();
        let left =
            State { generation: Generation(2), ..State::first("r", "far".into(), near(), Timestamp(1)) };
        let takes = State {
            phase: Phase::Committed,
            run: Some(Run { taken_over: true, aborted: None, lift_fence: false, ..run }),
            ..left.clone()
        };
        let mut taken = takes.clone();
        taken.run.as_mut().unwrap().sequenced = true;
        // Another node has led since, and has opened it at that generation.
        let opened = said(&[("near", 2, true), ("far", 2, false)]);
        assert_eq!(judge(&near(), &opened).unwrap(), open("far", 2));
        for (journal, own) in [(&takes, false), (&taken, true), (&left, true)] {
            assert_eq!(is_overtaken(journal, &opened), !own, "{journal:?}");
            assert_eq!(is_old(journal, &opened), !own, "{journal:?}");
            assert_eq!(knows_more(journal, &"far".into(), Generation(2), &opened), own, "{journal:?}");
            assert_eq!(contradicts(journal, &opened[1]).is_some(), !own, "{journal:?}");
            assert_eq!(told(&near(), Some(journal), false, &opened).unwrap().is_some(), !own, "{journal:?}");
        }
        // Or it is the shadow of that generation's primary, in a third zone.
        let mut seeded = said(&[("far", 2, true)]);
        assert!(!is_overtaken(&takes, &seeded), "its own guard");
        seeded[0].copy = true;
        assert!(is_overtaken(&takes, &seeded));
        for (zones, goes_on, begins) in [
            (&[("near", 1, false)][..], true, false),
            (&[("near", 1, false), ("far", 1, true)], false, true),
            (&[("near", 1, false), ("far", 2, true)], true, false),
        ] {
            let said = said(zones);
            let knows = |journal: &State| knows_more(journal, &near(), Generation(1), &said);
            assert_eq!((knows(&left), knows(&takes)), (goes_on, true), "{zones:?}");
            assert_eq!(takeover_to_begin(&takes, &said).is_some(), begins, "{zones:?}");
            assert_eq!([&left, &taken].map(|journal| takeover_to_begin(journal, &said)), [None; 2]);
        }
    }

    #[test]
    fn a_shadow_alone_knows_whose_it_is() {
        for generation in [1, 5] {
            let mut zones = said(&[("far", generation, true)]);
            zones[0].copy = true;
            let shadow = Found::Shadow { zone: "far".into(), generation: Generation(generation) };
            assert_eq!(judge(&near(), &zones).unwrap(), shadow);
            assert_eq!(judge(&"far".into(), &zones).unwrap(), shadow);
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
            let why = judge(&near(), &said(zones)).unwrap_err();
            assert!(why.contains("near") && why.contains("generation"), "{why}");
        }
    }
}
