//! Tables that were found to differ, by whatever name they have now, and those that are no more.
//!
//! The rows that differ are in a table of the shadow's, whatever the primary calls its own by now: that one is followed by its number. Where in
//! doubt a table still differs: a verification says that it does not, while nobody would miss its rows before the service has moved.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio_postgres::Client;

use super::known::Numbers;
use super::{Known, LARGE_OBJECTS, Standing, Verifications, save};
use crate::causes::chain;
use crate::clock;
use crate::controller::databases::Purpose;
use crate::lock::lock;

/// How often they are looked for.
const EVERY: Duration = Duration::from_secs(10);

/// What the tables of the primary and its shadow are called.
pub(super) struct Seen {
    zones: [String; 2],
    numbers: [BTreeMap<String, u32>; 2],
    names: [BTreeMap<u32, String>; 2],
}

/// What became of a table.
#[derive(Debug, PartialEq)]
enum Became {
    /// Nothing that is known.
    Same,
    /// It is by this name that it is known.
    Numbered,
    Called(String),
    Gone,
}

impl Seen {
    fn new(zones: [&str; 2], tables: [Vec<(String, u32)>; 2]) -> Self {
        let names = |tables: &Vec<(String, u32)>| {
            tables.iter().map(|(name, number)| (*number, name.clone())).collect::<BTreeMap<_, _>>()
        };
        let names = tables.each_ref().map(names);
        Self {
            zones: zones.map(str::to_owned),
            numbers: tables.map(|side| side.into_iter().collect()),
            names,
        }
    }

    /// Of all tables, or of those only that this knows to differ and those that have their names.
    async fn read(
        zones: [&str; 2],
        [source, target]: [&Client; 2],
        only: Option<&Known>,
    ) -> Result<Self, tokio_postgres::Error> {
        let named = "SELECT format('%I.%I', n.nspname, c.relname), c.oid FROM pg_catalog.pg_class c \
            JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind = 'r' \
            AND ($1 OR c.oid = ANY ($2) OR c.oid IN (SELECT pg_catalog.to_regclass(name) FROM unnest($3::text[]) name))";
        let called: Vec<&String> = only.iter().flat_map(|known| known.tables()).collect();
        let read = async |client: &Client, zone: &str| {
            let numbers =
                |known: &Known| known.tables().filter_map(|table| known.number(table, zone)).collect();
            let numbers: Vec<u32> = only.map(numbers).unwrap_or_default();
            let rows = client.query(named, &[&only.is_none(), &numbers, &called]).await?;
            Ok::<_, tokio_postgres::Error>(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
        };
        Ok(Self::new(zones, [read(source, zones[0]).await?, read(target, zones[1]).await?]))
    }

    /// The numbers of what has this name.
    pub(super) fn numbers(&self, table: &str) -> Numbers {
        let sides = self.zones.iter().zip(&self.numbers);
        sides.filter_map(|(zone, side)| Some((zone.clone(), *side.get(table)?))).collect()
    }

    /// What the primary and the shadow have by this name.
    fn pair(&self, table: &str) -> [Option<u32>; 2] {
        self.numbers.each_ref().map(|side| side.get(table).copied())
    }

    /// `number`: by which the shadow knows it; `is_filled`: what has the name, and another number, was copied whole since.
    fn became(&self, table: &str, number: Option<u32>, is_filled: bool) -> Became {
        match (number.and_then(|number| self.names[1].get(&number)), self.pair(table)) {
            (Some(name), _) if name == table => Became::Same,
            (Some(name), _) => Became::Called(name.clone()),
            // What only one side has by that name is dropped on the other one too, or made, or is to be.
            _ if number.is_some() && is_filled => Became::Gone,
            (None, [None, None]) if number.is_some() => Became::Gone,
            (None, [Some(_), Some(_)]) => Became::Numbered,
            (None, _) => Became::Same,
        }
    }
}

impl Verifications {
    /// Tables that differ and were renamed since do by their new names, and those that both sides have dropped do no more: nobody could copy them
    /// anew. Does not wait.
    pub(in crate::controller) fn look_after(self: &Arc<Self>, primary: &str, shadow: &str) {
        let now = clock::monotonic();
        {
            let known = lock(&self.known);
            let mut looked = lock(&self.looked);
            let recently = looked.is_some_and(|at| now.saturating_duration_since(at) < EVERY);
            if known.tables().next().is_none() || recently && known.filled.is_empty() {
                return;
            }
            *looked = Some(now);
        }
        let (own, primary, shadow) = (self.clone(), primary.to_owned(), shadow.to_owned());
        tokio::spawn(async move {
            if let Err(why) = own.look([&primary, &shadow]).await {
                tracing::debug!(why, "whether tables that differ are still there is not known");
            }
        });
    }

    async fn look(&self, zones: [&str; 2]) -> Result<(), String> {
        // Who looks already tells.
        let Ok(_turn) = self.looking.try_lock() else { return Ok(()) };
        let [source, target] = self.databases.both(zones, Purpose::Control).await.map_err(chain)?;
        let asked = lock(&self.known).clone();
        let seen = Seen::read(zones, [&source, &target], Some(&asked)).await.map_err(chain)?;
        self.settle(&asked, &seen);
        Ok(())
    }

    /// The same of all tables, for a verification that begins or ends.
    pub(super) async fn look_at_all(
        &self,
        zones: [&str; 2],
        clients: [&Client; 2],
    ) -> Result<Seen, tokio_postgres::Error> {
        // Nothing older comes after it.
        let _turn = self.looking.lock().await;
        let asked = lock(&self.known).clone();
        let seen = Seen::read(zones, clients, None).await?;
        self.settle(&asked, &seen);
        Ok(seen)
    }

    fn settle(&self, asked: &Known, seen: &Seen) {
        let view = self.view();
        let mut known = lock(&self.known);
        if known.settle(asked, seen, view.state == Standing::Running) {
            drop(tokio::spawn(save(self.shelf.clone(), self.kept(view, &known))));
        }
    }
}

impl Known {
    /// What differs and is a table.
    fn tables(&self) -> impl Iterator<Item = &String> {
        self.differing.iter().filter(|table| *table != LARGE_OBJECTS)
    }

    /// Whether what was seen of those that were `asked` about changes what is known. While a verification `runs`, what it found by a name may be of
    /// the one that had the name before.
    fn settle(&mut self, asked: &Known, seen: &Seen, runs: bool) -> bool {
        if !self.is_of(asked.generation, asked.emptied) {
            return false;
        }
        let shadow = &seen.zones[1];
        let (before, mut renamed) = ((self.differing.clone(), self.numbers.clone()), Vec::new());
        for table in asked.tables() {
            let number = asked.number(table, shadow);
            if !self.differing.contains(table) || self.number(table, shadow) != number {
                continue;
            }
            let is_filled = asked.filled.contains(&(shadow.clone(), table.clone()));
            match seen.became(table, number, is_filled) {
                Became::Same => {}
                Became::Numbered => drop(self.numbers.insert(table.clone(), seen.numbers(table))),
                Became::Called(name) => {
                    tracing::info!(table, name, "a table that was found to differ is called otherwise");
                    renamed.push((table, name, self.forget(table)));
                }
                Became::Gone => {
                    tracing::info!(table, "a table that was found to differ is no more");
                    self.forget(table);
                }
            }
        }
        // One may have got the name of another.
        let old: Vec<&String> = renamed.iter().map(|(table, ..)| *table).collect();
        for (_, name, numbers) in renamed {
            self.differing.insert(name.clone());
            self.numbers.insert(name, numbers);
        }
        for table in old.into_iter().filter(|table| runs && self.found.contains(*table)) {
            if seen.numbers[1].contains_key(table) && self.differing.insert(table.clone()) {
                self.numbers.insert(table.clone(), seen.numbers(table));
            }
        }
        self.filled.retain(|one| !asked.filled.contains(one));
        (&self.differing, &self.numbers) != (&before.0, &before.1)
    }

    /// A verification begins: which of those that differ it compares.
    pub(super) fn begin(&mut self, seen: &Seen) {
        let [primary, shadow] = &seen.zones;
        let is_it = |table: &str, pair: [Option<u32>; 2]| {
            let [source, target] = [primary, shadow].map(|zone| self.number(table, zone));
            // One that was made anew is compared in its place.
            let is_there = source.is_some_and(|number| seen.names[0].contains_key(&number));
            match pair {
                [None, None] => true,
                [Some(_), Some(_)] => target == pair[1] && (source == pair[0] || !is_there),
                _ => false,
            }
        };
        let pairs = self.differing.iter().map(|table| (table.clone(), seen.pair(table)));
        self.begun = pairs.filter(|(table, pair)| is_it(table, *pair)).collect();
    }

    /// It has ended: what is called otherwise by now it may not have compared.
    pub(super) fn end(&mut self, seen: &Seen) {
        self.begun.retain(|table, pair| seen.pair(table) == *pair);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const ZONES: [&str; 2] = ["north", "south"];

    type Tables<'a> = &'a [(&'a str, u32)];

    fn seen(source: Tables<'_>, target: Tables<'_>) -> Seen {
        let side =
            |tables: Tables<'_>| tables.iter().map(|(name, number)| ((*name).to_owned(), *number)).collect();
        Seen::new(ZONES, [side(source), side(target)])
    }

    /// Each with a number on both sides, the shadow's greater by 100; 0: none is known.
    fn known(tables: Tables<'_>) -> Known {
        let mut known = Known { generation: 3, ..Known::default() };
        for (table, number) in tables {
            known.differing.insert((*table).to_owned());
            let numbers = Numbers::from([("north".to_owned(), *number), ("south".to_owned(), number + 100)]);
            known.numbers.extend((*number > 0).then(|| ((*table).to_owned(), numbers)));
        }
        known
    }

    fn of(known: &Known) -> Vec<(&str, u32)> {
        let of = |table| known.number(table, "south").unwrap_or_default();
        known.differing.iter().map(|table| (table.as_str(), of(table))).collect()
    }

    #[test]
    fn what_differs_is_followed_by_what_the_shadow_calls_it() {
        let cases: [(&str, Tables<'_>, Tables<'_>, Tables<'_>, Tables<'_>); 15] = [
            ("as it was", &[("t", 1)], &[("t", 1)], &[("t", 101)], &[("t", 101)]),
            ("renamed", &[("t", 1)], &[("u", 1)], &[("u", 101)], &[("u", 101)]),
            ("renamed on the primary so far", &[("t", 1)], &[("u", 1)], &[("t", 101)], &[("t", 101)]),
            ("renamed on the shadow first", &[("t", 1)], &[("t", 1)], &[("u", 101)], &[("u", 101)]),
            ("dropped", &[("t", 1)], &[], &[], &[]),
            ("dropped on the primary so far", &[("t", 1)], &[], &[("t", 101)], &[("t", 101)]),
            ("dropped on the shadow so far", &[("t", 1)], &[("t", 1)], &[], &[("t", 101)]),
            ("made anew on both", &[("t", 1)], &[("t", 2)], &[("t", 102)], &[("t", 102)]),
            (
                "rotation",
                &[("events", 1)],
                &[("events", 2), ("events_2026", 1)],
                &[("events", 102), ("events_2026", 101)],
                &[("events_2026", 101)],
            ),
            (
                "swap",
                &[("a", 1)],
                &[("a", 2), ("a_old", 1)],
                &[("a", 102), ("a_old", 101)],
                &[("a_old", 101)],
            ),
            (
                "exchange",
                &[("t", 1), ("u", 2)],
                &[("t", 2), ("u", 1)],
                &[("t", 102), ("u", 101)],
                &[("t", 102), ("u", 101)],
            ),
            ("exchange of one", &[("t", 1)], &[("t", 2), ("u", 1)], &[("t", 102), ("u", 101)], &[("u", 101)]),
            (
                "chain",
                &[("a", 1), ("b", 2)],
                &[("b", 1), ("c", 2)],
                &[("b", 101), ("c", 102)],
                &[("b", 101), ("c", 102)],
            ),
            ("of unknown number, and there", &[("t", 0)], &[("t", 1)], &[("t", 101)], &[("t", 101)]),
            ("of unknown number, and not there", &[("t", 0)], &[("u", 1)], &[("u", 101)], &[("t", 0)]),
        ];
        for (case, before, source, target, after) in cases {
            let mut known = known(before);
            let asked = known.clone();
            let changed = known.settle(&asked, &seen(source, target), false);
            assert_eq!(of(&known), after, "{case}");
            assert_eq!(changed, known != asked, "{case}");
        }
    }

    #[test]
    fn what_was_copied_whole_by_the_name_of_one_that_is_no_more_differs_no_more() {
        let name = ("south".to_owned(), "events".to_owned());
        for (target, after) in [
            (&[("events", 102)][..], &[][..]),
            (&[("events", 102), ("events_2026", 101)], &[("events_2026", 101)]),
        ] {
            let mut known = known(&[("events", 1)]);
            known.filled.insert(name.clone());
            let asked = known.clone();
            assert!(known.settle(&asked, &seen(&[("events", 2)], target), false));
            assert_eq!((of(&known), known.filled.len()), (after.to_vec(), 0));
        }
    }

    #[test]
    fn what_was_seen_of_what_is_known_otherwise_by_now_says_nothing() {
        let asked = known(&[("t", 1), ("u", 2)]);
        let nothing = seen(&[], &[]);
        let mut other = known(&[("t", 3), ("v", 4)]);
        assert!(!other.settle(&asked, &nothing, false));
        assert_eq!(of(&other), [("t", 103), ("v", 104)]);
        let mut other = Known { generation: 4, ..asked.clone() };
        assert!(!other.settle(&asked, &nothing, false), "the service has moved meanwhile");
    }

    /// It compares by name.
    #[test]
    fn what_a_verification_found_by_a_name_is_of_both_that_had_it_meanwhile() {
        let mut known = known(&[("t", 1)]);
        known.found.insert("t".into());
        let asked = known.clone();
        assert!(known.settle(&asked, &seen(&[("t", 2), ("u", 1)], &[("t", 102), ("u", 101)]), true));
        assert_eq!(of(&known), [("t", 102), ("u", 101)]);
    }

    #[test]
    fn a_verification_finds_equal_what_it_compared_from_its_begin_to_its_end() {
        let begun = |known: &Known| known.begun.keys().cloned().collect::<BTreeSet<_>>();
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<BTreeSet<_>>();
        let mut known = known(&[("t", 1), ("swapped", 2), ("dropped", 3), ("gone", 0), ("half", 4)]);
        known.differing.insert(LARGE_OBJECTS.into());
        let target = [("t", 101), ("swapped", 102), ("dropped", 103), ("half", 104)];
        // Another has its name on the primary, which has it yet; another was made in its place; one was dropped there.
        let source = [("t", 1), ("swapped", 12), ("swapped_old", 2), ("dropped", 13)];
        known.begin(&seen(&source, &target));
        assert_eq!(begun(&known), names(&["t", "dropped", "gone", LARGE_OBJECTS]));
        let mut exchanged = known.clone();
        exchanged.end(&seen(&source, &[("t", 105), ("u", 101), ("dropped", 103)]));
        assert_eq!(begun(&exchanged), names(&["dropped", "gone", LARGE_OBJECTS]));
        known.end(&seen(&source, &target));
        assert_eq!(begun(&known).len(), 4);
    }
}
