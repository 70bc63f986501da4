//! Values of enums: none is ever dropped, so one that only the shadow has was renamed.

use std::collections::{BTreeMap, HashSet};

use super::{Difference, Fingerprint, Mend, When};
use crate::postgres::quote_literal;

/// Labels by type, in their order.
fn labels(side: &Fingerprint) -> BTreeMap<&str, Vec<&str>> {
    let mut all: BTreeMap<&str, Vec<(u32, &str)>> = BTreeMap::new();
    for ((of, label), place) in &side.places {
        all.entry(of).or_default().push((*place, label));
    }
    all.into_iter()
        .map(|(of, mut labels)| {
            labels.sort_unstable();
            (of, labels.into_iter().map(|(_, label)| label).collect())
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
    let is_there = |label: &&&str| shadow.places.contains_key(&(of.to_owned(), (**label).to_owned()));
    match ours.iter().find(is_there) {
        Some(next) if ours.first() == Some(&label) => format!(" BEFORE {}", quote_literal(next)),
        _ => String::new(),
    }
}

/// Values that have another name on the source, by their place among those of the same name; and the values, by type and label, that are
/// told with that.
pub(super) fn renamed(
    source: &Fingerprint,
    shadow: &Fingerprint,
    zone: &str,
) -> (Vec<Difference>, HashSet<(String, String)>) {
    let here = labels(source);
    let (mut found, mut told) = (Vec::new(), HashSet::new());
    for (of, theirs) in labels(shadow) {
        let Some(ours) = here.get(of) else { continue };
        let ((shared, new), (shared_there, old)) = (gaps(ours, &theirs), gaps(&theirs, ours));
        let same_order = shared == shared_there;
        if !same_order {
            let what = format!(
                "enum values are in the order {} on {zone}, and not on the other side",
                shared.join(", ")
            );
            found.push(Difference::new(of, what, Mend::Person(None)));
        }
        for (new, old) in new.iter().zip(&old) {
            if old.is_empty() && (same_order || new.is_empty()) {
                continue;
            }
            told.extend(new.iter().chain(old).map(|label| (of.to_owned(), (*label).to_owned())));
            let plain = same_order && new.len() == old.len();
            if !plain {
                let list = |labels: &[&str]| labels.join(", ");
                let what = format!(
                    "enum values {} are {} on {zone}: which is which cannot be told",
                    list(old),
                    list(new)
                );
                found.push(Difference::new(of, what, Mend::Person(None)));
            }
            for (new, old) in new.iter().zip(old).filter(|_| plain) {
                let sql =
                    format!("ALTER TYPE {of} RENAME VALUE {} TO {}", quote_literal(old), quote_literal(new));
                let what = format!("enum value {old} was renamed to {new} on {zone}");
                found.push(Difference { when: When::Needed, ..Difference::new(of, what, Mend::Rename(sql)) });
            }
        }
    }
    (found, told)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn side(labels: &[&str]) -> Fingerprint {
        let place = |(place, label): (usize, &&str)| {
            (("s.e".to_owned(), (*label).to_owned()), u32::try_from(place).unwrap_or(0))
        };
        Fingerprint { places: labels.iter().enumerate().map(place).collect(), ..Fingerprint::default() }
    }

    fn told(source: &[&str], shadow: &[&str]) -> Vec<String> {
        let (found, _) = renamed(&side(source), &side(shadow), "a");
        found.iter().map(|found| format!("{} {:?}", found.what, found.mend)).collect()
    }

    #[test]
    fn a_value_that_is_only_on_the_shadow_was_renamed() {
        assert!(told(&["a", "b", "c"], &["a", "c"]).is_empty(), "one was added");
        assert_eq!(
            told(&["a", "it's", "c", "d"], &["a", "b", "c"]),
            ["enum value b was renamed to it's on a Rename(\"ALTER TYPE s.e RENAME VALUE 'b' TO 'it''s'\")"]
        );
        assert_eq!(
            told(&["a", "x", "y", "c"], &["a", "b", "c"]),
            ["enum values b are x, y on a: which is which cannot be told Person(None)"]
        );
        assert_eq!(
            told(&["c", "x", "a"], &["a", "b", "c"]),
            [
                "enum values are in the order c, a on a, and not on the other side Person(None)",
                "enum values b are x on a: which is which cannot be told Person(None)"
            ]
        );
        assert_eq!(
            told(&["b", "a"], &["a", "b"]),
            ["enum values are in the order b, a on a, and not on the other side Person(None)"]
        );
    }

    #[test]
    fn what_comes_first_is_added_before_what_is_there() {
        let before = |source: &[&str], label: &str| {
            super::before(&side(source), &side(&["it's", "info"]), "s.e", label)
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
