//! Values of enums: which of the source's is which on the shadow, by their numbers (`godwit.identities`), which stay when a value is renamed.
//!
//! No value is ever dropped: where one is gone, another type has the name of the one that had it, and what its rows became nothing tells.
//! So it is where an order changed, or a name passed from one value to another. Then the tables of the type are filled anew, which
//! exchanges it ([`super::fill`]). Not where another type is made of it, which would go on with the old one.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::identities::Index;
use super::{Difference, Fingerprint, Mend, When, anew, types};
use crate::postgres::quote_literal;

/// A label, and the number that the value has on the source, where it is known.
pub(super) type Value<'l> = (&'l str, Option<u32>);

/// What became of a type.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Pairing<'l> {
    /// The shadow's values in their order, as the source calls them; those that it has not by their own names.
    pub called: Vec<&'l str>,
    /// By which name the shadow has a value, and the source.
    renamed: Vec<(&'l str, &'l str)>,
    /// What the shadow has is no earlier state of what the source has.
    pub is_another: bool,
    /// The shadow has values that the source has not by their names, and of which nothing is known.
    pub is_unsure: bool,
}

/// Both in their order.
pub(super) fn paired<'l>(ours: &[(&'l str, u32)], theirs: &[Value<'l>]) -> Pairing<'l> {
    let names: HashMap<u32, &str> = ours.iter().map(|(label, number)| (*number, *label)).collect();
    let has = |label: &str| ours.iter().any(|(ours, _)| *ours == label);
    let mut found = Pairing::default();
    for (label, number) in theirs {
        let name = number.and_then(|number| names.get(&number)).copied();
        match (name, number) {
            (Some(name), _) if name != *label => {
                // Where it is another's here, the stream tells two by one name.
                found.is_another |= theirs.iter().any(|(other, _)| *other == name);
                found.renamed.push((*label, name));
            }
            (None, Some(_)) if !has(label) => found.is_another = true,
            (None, None) if !has(label) => found.is_unsure = true,
            _ => {}
        }
        found.called.push(name.unwrap_or(*label));
    }
    let ours: Vec<&str> = ours.iter().map(|(label, _)| *label).collect();
    found.is_another |= gaps(&ours, &found.called).0 != gaps(&found.called, &ours).0;
    found
}

/// Labels and numbers by type, in their order.
fn labels(side: &Fingerprint) -> BTreeMap<&str, Vec<(&str, u32)>> {
    let mut all: BTreeMap<&str, Vec<(u32, &str, u32)>> = BTreeMap::new();
    for ((of, label), (place, number)) in &side.places {
        all.entry(of).or_default().push((*place, label, *number));
    }
    all.into_iter()
        .map(|(of, mut labels)| {
            labels.sort_unstable();
            (of, labels.into_iter().map(|(_, label, number)| (label, number)).collect())
        })
        .collect()
}

/// What is between the labels that both have.
fn gaps<'l>(labels: &[&'l str], others: &[&str]) -> (Vec<&'l str>, Vec<Vec<&'l str>>) {
    let (mut shared, mut gaps) = (Vec::new(), vec![Vec::new()]);
    for label in labels {
        if others.contains(label) {
            shared.push(*label);
            gaps.push(Vec::new());
        } else if let Some(gap) = gaps.last_mut() {
            gap.push(*label);
        }
    }
    (shared, gaps)
}

/// The first value of a type goes before the first that the shadow has, in the source's order: each other follows one.
pub(super) fn before(source: &Fingerprint, shadow: &Fingerprint, of: &str, label: &str) -> String {
    let here = labels(source);
    let ours = here.get(of).map(Vec::as_slice).unwrap_or_default();
    let is_there =
        |(label, _): &&(&str, u32)| shadow.places.contains_key(&(of.to_owned(), (*label).to_owned()));
    match ours.iter().find(is_there) {
        Some((next, _)) if ours.first().is_some_and(|(first, _)| *first == label) => {
            format!(" BEFORE {}", quote_literal(next))
        }
        _ => String::new(),
    }
}

/// Values that have another name on the source, and types that are others there; and the values, by type and label, that are told with that.
pub(super) fn renamed(
    source: &Fingerprint,
    shadow: &Fingerprint,
    index: &Index,
    zone: &str,
) -> (Vec<Difference>, HashSet<(String, String)>) {
    let here = labels(source);
    let (mut found, mut told) = (Vec::new(), HashSet::new());
    for (of, theirs) in labels(shadow) {
        let Some(ours) = here.get(of) else { continue };
        let numbered: Vec<Value<'_>> =
            theirs.iter().map(|(label, number)| (*label, index.value(*number))).collect();
        let pairing = paired(ours, &numbered);
        if !pairing.is_another && !pairing.is_unsure && pairing.renamed.is_empty() {
            continue;
        }
        // What was added has its place among those that are called as they should be.
        told.extend(ours.iter().chain(&theirs).map(|(label, _)| (of.to_owned(), (*label).to_owned())));
        if pairing.is_another {
            found.extend(exchanged([source, shadow], of, ours, &theirs, zone));
            continue;
        }
        for (old, new) in &pairing.renamed {
            let what = format!("enum value {old} was renamed to {new} on {zone}");
            let mend = Mend::Rename(rename(of, old, new));
            found.push(Difference { when: When::Needed, ..Difference::new(of, what, mend) });
        }
        let seeding = if made_of(shadow, of).is_some() { "the shadow, all of it," } else { "its tables" };
        found.extend(unsure(of, ours, &pairing, zone, seeding));
    }
    (found, told)
}

fn rename(of: &str, old: &str, new: &str) -> String {
    format!("ALTER TYPE {of} RENAME VALUE {} TO {}", quote_literal(old), quote_literal(new))
}

/// Values of which nothing is known, by their place among those of the same name.
fn unsure<'l>(
    of: &'l str,
    ours: &[(&'l str, u32)],
    pairing: &Pairing<'l>,
    zone: &str,
    seeding: &str,
) -> Vec<Difference> {
    let ours: Vec<&str> = ours.iter().map(|(label, _)| *label).collect();
    let ((_, new), (_, old)) = (gaps(&ours, &pairing.called), gaps(&pairing.called, &ours));
    let mut found = Vec::new();
    for (new, old) in new.iter().zip(&old).filter(|(_, old)| !old.is_empty()) {
        let list = |labels: &[&str]| if labels.is_empty() { "gone".to_owned() } else { labels.join(", ") };
        let what = format!(
            "enum values {} are {} on {zone}: which is which cannot be told (seeding {seeding} anew makes them so)",
            list(old),
            list(new)
        );
        let plain = new.len() == old.len();
        let renames = old.iter().zip(new).map(|(old, new)| rename(of, old, new));
        let sql = plain.then(|| renames.collect::<Vec<_>>().join("; "));
        found.push(Difference::new(of, what, Mend::Person(sql)));
    }
    found
}

/// A type that is another one: each column of it.
fn exchanged(
    [source, shadow]: [&Fingerprint; 2],
    of: &str,
    ours: &[(&str, u32)],
    theirs: &[(&str, u32)],
    zone: &str,
) -> Vec<Difference> {
    let list = |values: &[(&str, u32)]| values.iter().map(|(label, _)| *label).collect::<Vec<_>>().join(", ");
    let what = format!("enum {of} is another on {zone}, of {}, and was of {}", list(ours), list(theirs));
    if let Some(other) = made_of(shadow, of) {
        let what = format!("{what}; {other} is made of it: seed the shadow, all of it, anew");
        return vec![Difference::new(of, what, Mend::Person(None))];
    }
    let columns = source.things.iter().filter(|(key, shape)| {
        key.0 == "column"
            && [Some(*shape), shadow.things.get(*key)]
                .into_iter()
                .all(|shape| shape.is_some_and(|shape| is_of(&shape.definition, of)))
    });
    let tables: BTreeMap<&str, &str> =
        columns.map(|((_, table, column), _)| (table.as_str(), column.as_str())).collect();
    if tables.is_empty() {
        let key = ("type".to_owned(), of.to_owned(), String::new());
        let made = source.things.get(&key).and_then(|shape| shape.sql.as_ref());
        let mend = made.map_or(Mend::Person(None), |sql| Mend::Drop(format!("DROP TYPE {of}; {sql}")));
        return vec![Difference { when: When::CaughtUp, ..Difference::new(of, what, mend) }];
    }
    let table = |(table, column): (&str, &str)| {
        let mend = anew(source, table);
        // A partition's columns are its parent's.
        let all = if matches!(mend, Mend::Anew(_)) { "the table" } else { "the shadow, all of it," };
        Difference::new(table, format!("column {column}: {what}: seed {all} anew"), mend)
    };
    tables.into_iter().map(table).collect()
}

/// A domain, range or composite type that is made of this type, or of arrays of it.
fn made_of<'s>(side: &'s Fingerprint, of: &str) -> Option<&'s str> {
    let first = ("type".to_owned(), String::new(), String::new());
    let mut types = side.things.range(first..).take_while(|(key, _)| key.0 == "type");
    let (key, _) =
        types.find(|(_, shape)| types::parts(&shape.definition).into_iter().any(|part| is_of(part, of)))?;
    Some(&key.1)
}

/// Whether a column is of this type, or of arrays of it.
fn is_of(definition: &str, of: &str) -> bool {
    definition.strip_prefix(of).is_some_and(|rest| {
        let rest = rest.trim_start_matches("[]");
        rest.is_empty() || rest.starts_with(' ')
    })
}

#[cfg(test)]
mod tests {
    use super::super::identities::value;
    use super::super::{Key, Shape};
    use super::*;

    /// Type `s.e` with these values, numbered from this on.
    fn side(labels: &[(&str, u32)]) -> Fingerprint {
        let place = |(place, (label, number)): (usize, &(&str, u32))| {
            (("s.e".to_owned(), (*label).to_owned()), (u32::try_from(place).unwrap_or(0), *number))
        };
        let shape = |definition: &str| Shape { definition: definition.into(), sql: None, undo: None };
        let mut side =
            Fingerprint { places: labels.iter().enumerate().map(place).collect(), ..Fingerprint::default() };
        for (kind, column, definition) in
            [("table", "", "plain"), ("column", "of", "s.e DEFAULT 'a'::s.e"), ("column", "as", "s.ex")]
        {
            side.things.insert((kind.into(), "s.t".into(), column.into()), shape(definition));
        }
        side
    }

    fn of_source(labels: &[&str], first: u32) -> Vec<(String, u32)> {
        labels.iter().zip(first..).map(|(label, number)| ((*label).to_owned(), number)).collect()
    }

    /// What is told of a source that has these values, of a shadow that was like `before`, with the same numbers and a hundred more.
    fn told(source: &[(&str, u32)], before: &[&str], is_known: bool) -> Vec<String> {
        told_with(source, before, is_known, None)
    }

    /// The same, of a shadow that has this type as well.
    fn told_with(
        source: &[(&str, u32)],
        before: &[&str],
        is_known: bool,
        made: Option<(Key, &str)>,
    ) -> Vec<String> {
        let before = of_source(before, 1);
        let there: Vec<(&str, u32)> =
            before.iter().map(|(label, number)| (label.as_str(), number + 100)).collect();
        let mut shadow = side(&there);
        shadow
            .things
            .extend(made.map(|(key, is)| (key, Shape { definition: is.into(), sql: None, undo: None })));
        let known = before.iter().filter(|_| is_known);
        shadow.known =
            Some(known.map(|(label, number)| (value(*number), value(number + 100), label.clone())).collect());
        let (found, _) = renamed(&side(source), &shadow, &Index::new(&shadow), "a");
        found.iter().map(|found| format!("{}: {} {:?}", found.subject, found.what, found.mend)).collect()
    }

    #[test]
    fn a_value_is_known_by_its_number() {
        let before = ["a", "b", "c"];
        assert!(told(&[("a", 1), ("x", 9), ("b", 2), ("c", 3)], &before, true).is_empty(), "one was added");
        assert_eq!(
            told(&[("a", 1), ("it's", 2), ("c", 3), ("d", 9)], &before, true),
            [
                "s.e: enum value b was renamed to it's on a Rename(\"ALTER TYPE s.e RENAME VALUE 'b' TO 'it''s'\")"
            ]
        );
        // Several in one place, which were added and renamed.
        assert_eq!(
            told(&[("a", 1), ("b", 2), ("x", 3), ("y", 9)], &before, true),
            ["s.e: enum value c was renamed to x on a Rename(\"ALTER TYPE s.e RENAME VALUE 'c' TO 'x'\")"]
        );
        // Values of another type that kept all of them.
        assert!(told(&[("a", 11), ("b", 12), ("c", 13), ("d", 14)], &before, true).is_empty());
    }

    #[test]
    fn tables_of_a_type_that_is_another_are_seeded_anew() {
        let anew = |values: &str| {
            [format!(
                "s.t: column of: enum s.e is another on a, of {values}, and was of a, b, c: seed the table anew Anew(\"s.t\")"
            )]
        };
        let told = |source: &[(&str, u32)]| told(source, &["a", "b", "c"], true);
        assert_eq!(told(&[("a", 11), ("x", 12), ("c", 13)]), anew("a, x, c"));
        assert_eq!(told(&[("a", 11), ("c", 13)]), anew("a, c"));
        assert_eq!(told(&[("b", 11), ("a", 12), ("c", 13)]), anew("b, a, c"));
        assert_eq!(told(&[("b", 1), ("a", 2), ("c", 3)]), anew("b, a, c"), "two exchanged their names");
    }

    #[test]
    fn an_enum_that_another_type_is_made_of_is_not_exchanged() {
        let whole = "s.e: enum s.e is another on a, of a, c, and was of a, b, c; s.d is made of it: seed the shadow, all of it, anew Person(None)";
        for definition in ["domain over s.e[] NOT NULL", "(a text, b s.e)", "range of s.e"] {
            let made = ("type".to_owned(), "s.d".to_owned(), String::new());
            assert_eq!(
                told_with(&[("a", 11), ("c", 13)], &["a", "b", "c"], true, Some((made, definition))),
                [whole]
            );
        }
    }

    #[test]
    fn what_nothing_is_known_of_is_for_a_person() {
        let told = |source: &[(&str, u32)]| told(source, &["a", "b", "c"], false);
        let cannot = "which is which cannot be told (seeding its tables anew makes them so)";
        assert!(told(&[("a", 1), ("x", 9), ("b", 2), ("c", 3)]).is_empty());
        assert_eq!(
            told(&[("a", 1), ("x", 2), ("c", 3)]),
            [format!(
                "s.e: enum values b are x on a: {cannot} Person(Some(\"ALTER TYPE s.e RENAME VALUE 'b' TO 'x'\"))"
            )]
        );
        assert_eq!(
            told(&[("a", 1), ("x", 2), ("y", 9), ("c", 3)]),
            [format!("s.e: enum values b are x, y on a: {cannot} Person(None)")]
        );
        assert_eq!(
            told(&[("a", 1), ("c", 3)]),
            [format!("s.e: enum values b are gone on a: {cannot} Person(None)")]
        );
    }

    #[test]
    fn what_comes_first_is_added_before_what_is_there() {
        let numbered = |labels: &[&str]| {
            let labels = of_source(labels, 1);
            side(&labels.iter().map(|(label, number)| (label.as_str(), *number)).collect::<Vec<_>>())
        };
        let before = |source: &[&str], label: &str| {
            super::before(&numbered(source), &numbered(&["it's", "info"]), "s.e", label)
        };
        assert_eq!(before(&["trace", "it's", "info"], "trace"), " BEFORE 'it''s'");
        assert_eq!(
            before(&["finest", "trace", "it's"], "finest"),
            " BEFORE 'it''s'",
            "trace is not there yet"
        );
        assert_eq!(before(&["finest", "trace", "it's"], "trace"), "", "it follows finest");
        assert_eq!(before(&["finest", "trace"], "finest"), "", "none is there");
    }
}
