//! The order of a table's columns: INSERT and COPY without their names go by it, and so does what `SELECT *` gives.

use std::collections::HashSet;

use super::{Difference, Fingerprint, Key, Mend, anew};

/// The number of a column on the source; of all else 0.
pub(super) fn place(source: &Fingerprint, (kind, owner, name): &Key) -> i16 {
    let number = source.numbers.get(&(owner.clone(), name.clone())).filter(|_| kind == "column");
    number.map_or(0, |(_, column)| *column)
}

/// Tables whose columns, as far as both sides have them, are in another order on the shadow; but for those whose columns are not known.
pub(super) fn differences(
    source: &Fingerprint,
    shadow: &Fingerprint,
    touched: &HashSet<String>,
    [zone, other]: [&str; 2],
) -> Vec<Difference> {
    let tables = source.things.keys().filter(|(kind, table, _)| kind == "table" && !touched.contains(table));
    let found = tables.filter_map(|(_, table, _)| {
        let (ours, theirs) = (shared(source, shadow, table), shared(shadow, source, table));
        let (first, instead) = ours.iter().zip(&theirs).find(|(ours, theirs)| ours != theirs)?;
        let is_child = ties(source).any(|(child, _)| child == table);
        // What is done to the columns of one with children is done to theirs.
        let is_parent = ties(source).any(|(_, parent)| parent == table);
        let mend = if is_parent { Mend::Person(None) } else { anew(source, table) };
        let how = match &mend {
            Mend::Anew(_) => "seed the table anew".to_owned(),
            _ if is_child => "pg_dump makes a child so, with its parent's columns first".to_owned(),
            _ => format!("drop it on {other}, with what is part of it: all of that is made and filled anew"),
        };
        let what = format!(
            "columns are in another order, which INSERT without their names goes by: {first} comes before {instead} on {zone}, and after it on {other}: {how}"
        );
        Some(Difference { stops: !is_child, ..Difference::new(table, what, mend) })
    });
    found.collect()
}

/// Tables that inherit another's columns, each with that one; no partitions.
fn ties(side: &Fingerprint) -> impl Iterator<Item = (&String, &String)> {
    side.things.keys().filter(|(kind, ..)| kind == "child of").map(|(_, child, parent)| (child, parent))
}

/// A table's columns that the other side has as well, in their order.
fn shared<'f>(side: &'f Fingerprint, other: &Fingerprint, table: &str) -> Vec<&'f str> {
    let of = (table.to_owned(), String::new())..;
    let columns = side.numbers.range(of).take_while(|((of, _), _)| of == table);
    let shared =
        columns.filter(|(key @ (_, column), _)| !column.is_empty() && other.numbers.contains_key(*key));
    let mut shared: Vec<(i16, &str)> =
        shared.map(|((_, column), (_, number))| (*number, column.as_str())).collect();
    shared.sort_unstable();
    shared.into_iter().map(|(_, column)| column).collect()
}

#[cfg(test)]
mod tests {
    use super::super::{Shape, compare};
    use super::*;

    fn shape(definition: &str, sql: Option<String>) -> Shape {
        Shape { definition: definition.into(), sql, undo: None }
    }

    /// Table `s.t` with these columns in their order.
    fn side(columns: &[&str]) -> Fingerprint {
        let mut side = Fingerprint::default();
        let table = |kind: &str, name: &str| (kind.to_owned(), "s.t".to_owned(), name.to_owned());
        side.things.insert(table("table", ""), shape("plain", None));
        side.numbers.insert(("s.t".into(), String::new()), (1, 0));
        for (number, column) in (1..).zip(columns) {
            let sql = format!("ALTER TABLE s.t ADD COLUMN {column} text");
            side.things.insert(table("column", column), shape("text", Some(sql)));
            side.numbers.insert(("s.t".into(), (*column).into()), (1, number));
        }
        side
    }

    #[test]
    fn columns_are_added_in_the_order_of_the_source() {
        let found = compare(&side(&["id", "zip", "city", "at"]), &side(&["id"]), ["near", "far"]);
        let what: Vec<_> = found.iter().map(|found| found.what.as_str()).collect();
        assert_eq!(
            what,
            ["column zip added on near", "column city added on near", "column at added on near"]
        );
    }

    #[test]
    fn another_order_of_columns_is_a_difference() {
        let found = |source: &Fingerprint, shadow: &Fingerprint| {
            differences(source, shadow, &HashSet::new(), ["near", "far"])
        };
        let source = side(&["id", "zip", "city"]);
        for same in [&["id", "zip", "city"][..], &["id", "zip"], &["more", "id", "other", "city"], &[]] {
            assert!(found(&source, &side(same)).is_empty(), "{same:?}");
        }
        let moved = side(&["id", "city", "zip"]);
        let [difference] = &found(&source, &moved)[..] else { panic!("one") };
        assert!(difference.what.contains("zip comes before city on near, and after it on far"));
        assert!(difference.stops && difference.mend == Mend::Anew("s.t".into()));
        assert_eq!(found(&side(&["id", "zip", "x", "city"]), &moved).len(), 1, "x is not there");

        let tied = |kind: &str, child: &str, parent: &str| {
            let mut side = source.clone();
            side.things.insert((kind.into(), child.into(), parent.into()), shape("it", None));
            found(&side, &moved).into_iter().map(|found| (found.stops, found.mend)).next()
        };
        assert_eq!(tied("partition of", "s.t", "s.all"), Some((true, Mend::Person(None))));
        assert_eq!(tied("child of", "s.child", "s.t"), Some((true, Mend::Person(None))));
        // So `pg_dump` makes it, and dropping it would not help.
        assert_eq!(tied("child of", "s.t", "s.mother"), Some((false, Mend::Person(None))));
    }
}
