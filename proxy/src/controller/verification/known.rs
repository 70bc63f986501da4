//! What verifications have found of the shadow that there is now.

use std::collections::{BTreeMap, BTreeSet};

use replicator::drift::Numbered;
use replicator::verify::{Difference, Kind};
use serde::{Deserialize, Serialize};

use super::{Standing, VerificationView};

/// By what number (oid) the database of each zone knows a table; one is missing where it is not known.
pub type Numbers = BTreeMap<String, u32>;

/// What is known of the shadow that there is now, by all verifications of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Known {
    /// Of the stream to it; 0: there is none.
    pub generation: u64,
    /// How often it was emptied by this process.
    #[serde(skip)]
    pub emptied: u64,
    /// The most that was found to differ since all of it was last compared; none: it never was, and nothing was found.
    pub differences: Option<u64>,
    /// When all of it was last compared, Unix milliseconds.
    pub verified_ms: Option<u64>,
    /// Tables whose rows were found to differ, until they are copied anew or found equal. They still do when the service has moved: the zone that it
    /// left has the others.
    pub differing: BTreeSet<String>,
    /// Which tables those are: another may get the name.
    pub numbers: BTreeMap<String, Numbers>,
    /// Those that the verification that was begun last did not find equal.
    pub found: BTreeSet<String>,
    /// Those that differed when it was begun, and that it compares by that name: the primary's number and the shadow's; none where it has
    /// no table of that name.
    pub begun: BTreeMap<String, [Option<u32>; 2]>,
    /// Zone and name of what was copied whole and has the name of one that differs, and not its number.
    #[serde(skip)]
    pub filled: BTreeSet<(String, String)>,
}

impl Known {
    /// Differences between the schemas are told where those are compared, and what moved at every reading is none; but neither says that what
    /// was found before is over. `numbers`: of what has the table's name.
    pub(super) fn differs(&mut self, found: &Difference, numbers: Numbers) {
        if matches!(found.kind, Kind::Missing | Kind::Extra | Kind::Changed) {
            self.differing.insert(found.table.clone());
            // One that differed before is still that one.
            if !numbers.is_empty() {
                self.numbers.entry(found.table.clone()).or_insert(numbers);
            }
        }
        self.found.insert(found.table.clone());
    }

    /// The number in this zone of one that differs.
    pub(super) fn number(&self, table: &str, zone: &str) -> Option<u32> {
        self.numbers.get(table)?.get(zone).copied()
    }

    /// It differs no more by that name; its numbers.
    pub(super) fn forget(&mut self, table: &str) -> Numbers {
        self.differing.remove(table);
        self.numbers.remove(table).unwrap_or_default()
    }

    /// Of tables that are copied anew, each in this zone, nothing is known any more, whatever they are called by now. One that only has the name of one
    /// that differs says nothing of that: it is looked for first.
    pub(super) fn seeded(&mut self, seeded: &[(String, Numbered)]) -> bool {
        let before = self.differing.len();
        for (zone, Numbered { name, number }) in seeded {
            let is_it = |table: &&String| self.number(table, zone) == Some(*number);
            let of_number = self.differing.iter().find(is_it).cloned();
            if let Some(table) = of_number.or_else(|| self.number(name, zone).is_none().then(|| name.clone()))
            {
                self.found.remove(&table);
                self.forget(&table);
            } else {
                self.filled.insert((zone.clone(), name.clone()));
            }
        }
        self.differing.len() != before
    }

    /// All that was asked for has been looked at: what was not found to differ is equal.
    pub(super) fn done(&mut self, view: &VerificationView) {
        if view.state != Standing::Done || view.generation != self.generation {
            return;
        }
        let tables = &view.request.tables;
        let is_looked_at = |table: &String| {
            tables.is_empty()
                || tables.contains(table)
                || table.strip_prefix("public.").is_some_and(|table| tables.iter().any(|it| it == table))
        };
        let is_equal = |table: &String| {
            is_looked_at(table) && self.begun.contains_key(table) && !self.found.contains(table)
        };
        let equal: Vec<String> = self.differing.iter().filter(|table| is_equal(table)).cloned().collect();
        for table in equal {
            self.forget(&table);
        }
    }

    pub(super) fn is_of(&self, generation: u64, emptied: u64) -> bool {
        (self.generation, self.emptied) == (generation, emptied)
    }

    /// What is known of the shadow of this stream.
    pub(super) fn of_another(&self, generation: u64, emptied: u64) -> Self {
        let known = Self { generation, emptied, ..Self::default() };
        if emptied != self.emptied {
            return known;
        }
        Self { differing: self.differing.clone(), numbers: self.numbers.clone(), ..known }
    }

    /// Only one of everything, at its end, says that there are fewer differences than an earlier one found.
    pub(super) fn take(&mut self, view: &VerificationView) {
        if view.generation != self.generation {
            return;
        }
        let found = view.progress.differences;
        if view.state == Standing::Done && view.request.tables.is_empty() {
            (self.differences, self.verified_ms) = (Some(found), view.ended_ms);
        } else if found > 0 {
            self.differences = self.differences.max(Some(found));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::view;
    use super::super::{LARGE_OBJECTS, mend};
    use super::*;

    #[test]
    fn what_was_found_to_differ_does_until_all_of_it_is_found_equal() {
        let mut known = Known { generation: 3, ..Known::default() };
        let mut after = |view: &VerificationView| {
            known.take(view);
            (known.differences, known.verified_ms)
        };
        assert_eq!(after(&view(Standing::Running, &[], 0)), (None, None));
        assert_eq!(after(&view(Standing::Done, &["clean"], 0)), (None, None));
        assert_eq!(after(&view(Standing::Running, &["damaged"], 1)), (Some(1), None));
        assert_eq!(after(&view(Standing::Done, &["damaged"], 2)), (Some(2), None));
        for (state, tables, found) in [
            (Standing::Running, &[][..], 0),
            (Standing::Failed, &["nowhere"], 0),
            (Standing::Done, &["clean"], 0),
            (Standing::Done, &["other"], 1),
            (Standing::Stopped, &[], 1),
        ] {
            assert_eq!(after(&view(state, tables, found)), (Some(2), None), "{state:?} {tables:?}");
        }
        let other = VerificationView { generation: 2, ..view(Standing::Done, &[], 0) };
        assert_eq!(after(&other), (Some(2), None), "that was another shadow");
        assert_eq!(after(&view(Standing::Done, &[], 1)), (Some(1), Some(9_000)));
        assert_eq!(after(&view(Standing::Done, &[], 0)), (Some(0), Some(9_000)));
        assert_eq!(after(&view(Standing::Running, &[], 0)), (Some(0), Some(9_000)));
    }

    fn tables(known: &Known) -> Vec<&str> {
        known.differing.iter().map(String::as_str).collect()
    }

    #[test]
    fn a_table_that_differs_does_until_it_is_copied_anew_or_found_equal() {
        let found = |kind, table: &str| Difference {
            table: table.into(),
            key: Vec::new(),
            kind,
            columns: Vec::new(),
        };
        let numbers = |number| Numbers::from([("south".to_owned(), number)]);
        let mut known = Known { generation: 3, ..Known::default() };
        for (kind, table, number) in [
            (Kind::Changed, "public.a", 1),
            (Kind::Missing, "public.b", 2),
            (Kind::Extra, "s.c", 3),
            (Kind::Unsettled, "public.moves", 4),
            (Kind::TableMissing, "public.gone", 5),
        ] {
            known.differs(&found(kind, table), numbers(number));
        }
        known.done(&view(Standing::Done, &[], 3));
        assert_eq!(tables(&known), ["public.a", "public.b", "s.c"]);
        // The next one finds what is found anew.
        let begin = |known: &mut Known| {
            known.found.clear();
            let all = known.differing.iter().map(|table| (table.clone(), [Some(0); 2]));
            known.begun = all.collect();
        };
        begin(&mut known);
        for kind in [Kind::Unsettled, Kind::ColumnsMissing] {
            known.differs(&found(kind, "public.b"), numbers(9));
            known.done(&view(Standing::Done, &["b"], 1));
            assert_eq!(tables(&known), ["public.a", "public.b", "s.c"], "it was not looked at to its end");
        }
        known.differs(&found(Kind::Changed, "public.b"), numbers(9));
        assert_eq!(known.number("public.b", "south"), Some(2), "another has its name by now");
        begin(&mut known);
        known.done(&view(Standing::Stopped, &[], 0));
        known.done(&VerificationView { generation: 2, ..view(Standing::Done, &[], 0) });
        known.begun.remove("s.c");
        known.done(&view(Standing::Done, &["a", "c"], 0));
        known.done(&VerificationView {
            request: super::super::Request { tables: vec!["s.c".into()], ..Default::default() },
            ..view(Standing::Done, &[], 0)
        });
        assert_eq!(tables(&known), ["public.b", "s.c"], "found equal; another had the name of the last one");
        let moved = known.of_another(4, 0);
        assert_eq!(tables(&moved), ["public.b", "s.c"], "the service has moved");
        assert_eq!(moved.numbers, known.numbers);
        assert!(tables(&known.of_another(3, 1)).is_empty(), "all of it is copied anew");
        let kept: Known = serde_json::from_str(&serde_json::to_string(&known).unwrap()).unwrap();
        assert_eq!((tables(&kept), &kept.numbers), (vec!["public.b", "s.c"], &known.numbers));
        begin(&mut known);
        known.done(&view(Standing::Done, &[], 0));
        assert!(tables(&known).is_empty() && known.numbers.is_empty());
        for table in ["public.a", LARGE_OBJECTS] {
            assert!(crate::cli::parses(mend("shop", table).split(',').next().unwrap()), "{table}");
        }
        let of_before = r#"{"generation":3,"differing":["public.a"],"found":["public.a"]}"#;
        let kept: Known = serde_json::from_str(of_before).unwrap();
        assert_eq!((tables(&kept), kept.numbers.len()), (vec!["public.a"], 0));
    }

    #[test]
    fn what_is_copied_anew_is_told_by_its_number() {
        let mut known = Known::default();
        for (table, number) in [("public.events_2026", 7), ("public.events", 8)] {
            known.differing.insert(table.into());
            known
                .numbers
                .insert(table.into(), Numbers::from([("south".into(), number), ("north".into(), 70)]));
        }
        known.differing.insert("public.unknown".into());
        let seeded = |zone: &str, name: &str, number| [(zone.into(), Numbered { name: name.into(), number })];
        assert!(!known.seeded(&seeded("south", "public.other", 70)), "that is the number of the other zone");
        assert!(!known.seeded(&seeded("south", "public.events", 9)), "that is a new one");
        assert!(known.filled.contains(&("south".into(), "public.events".into())));
        assert!(known.seeded(&seeded("south", "public.events", 7)), "that was its name");
        assert_eq!(tables(&known), ["public.events", "public.unknown"]);
        assert!(known.seeded(&seeded("south", "public.unknown", 5)));
        assert!(known.seeded(&seeded("south", "public.events", 8)));
        assert!(tables(&known).is_empty() && known.numbers.is_empty());
    }
}
