//! Which table and which column of the source is which on the shadow, whatever either is called; and which composite type, and value of an
//! enum.
//!
//! What both called the same when it was first seen is the same from then on (`godwit.identities`, on the shadow): numbers stay when a
//! name changes. So a table or column that was renamed is told from one that was added, and two tables that changed names from two
//! that changed.

use std::collections::{BTreeMap, HashMap, HashSet};

use tokio_postgres::Client;

use super::{Difference, Fingerprint, Mend, When, are_typed, columns, is_prepared};
use crate::error::Error;
use crate::fence::refused;
use crate::postgres::quote_ident;

/// A table (column 0) or a column of it, by its server's numbers.
pub(super) type Number = (u32, i16);

/// What stands for the column of a value of an enum, which has one number.
const VALUE: i16 = -1;

/// A value of an enum, by its server's number.
pub(super) fn value(number: u32) -> Number {
    (number, VALUE)
}

/// What is known of who is who: source, shadow, and a name that it has or had on the source.
pub(super) type Known = Vec<(Number, Number, String)>;

/// The number of the shadow's table that is the source's table `$3`, called `$2` in schema `$1` there: the one that is known to be it, whatever it is called; one
/// that is known to be none is found by its name.
macro_rules! target_table {
    () => {
        "coalesce( \
           (SELECT i.target_table FROM godwit.identities i JOIN pg_catalog.pg_class c ON c.oid = i.target_table \
            WHERE i.source_table = $3::oid AND i.source_column = 0 LIMIT 1), \
           (SELECT c.oid FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
            WHERE n.nspname = $1::text AND c.relname = $2::text \
              AND NOT EXISTS (SELECT FROM godwit.identities i WHERE i.target_table = c.oid AND i.source_column = 0)))"
    };
}
pub(crate) use target_table;

/// Reads what the shadow knows; none where it was not prepared yet.
pub(super) async fn read(shadow: &Client) -> Result<Option<Known>, Error> {
    let context = "read which table is which";
    if !is_prepared(shadow, "identities").await? {
        return Ok(None);
    }
    let all = "SELECT source_table, source_column, target_table, target_column, name FROM godwit.identities";
    let found = shadow.query(all, &[]).await.map_err(refused(context))?;
    let known = found.iter().map(|row| ((row.get(0), row.get(1)), (row.get(2), row.get(3)), row.get(4)));
    Ok(Some(known.collect()))
}

/// Writes down what has the same name on both sides and is not known yet: on the shadow, and for the way back on the source.
pub(super) async fn remember(
    [source, shadow]: [&Client; 2],
    [of_source, of_shadow]: [&Fingerprint; 2],
) -> Result<(), Error> {
    let new = unknown(of_source, of_shadow);
    if new.is_empty() {
        return Ok(());
    }
    let back = new.iter().map(|(here, there, name)| (*there, *here, name.clone())).collect();
    write(source, &back).await?;
    // This one last: by it alone is seen what is not known.
    write(shadow, &new).await
}

/// What says otherwise is of databases that were there before.
pub(super) async fn write(client: &Client, new: &Known) -> Result<(), Error> {
    let wrong = "DELETE FROM godwit.identities i USING unnest($1::oid[], $2::smallint[], $3::oid[], $4::smallint[]) AS new(s, sc, t, tc) \
        WHERE (source_table, source_column) = (s, sc) AND (target_table, target_column) <> (t, tc) \
           OR (target_table, target_column) = (t, tc) AND (source_table, source_column) <> (s, sc)";
    let sql = "INSERT INTO godwit.identities (source_table, source_column, target_table, target_column, name) \
        SELECT * FROM unnest($1::oid[], $2::smallint[], $3::oid[], $4::smallint[], $5::text[]) \
        ON CONFLICT (source_table, source_column, name) DO UPDATE \
        SET target_table = EXCLUDED.target_table, target_column = EXCLUDED.target_column";
    let column =
        |of: fn(&(Number, Number, String)) -> Number| -> (Vec<u32>, Vec<i16>) { new.iter().map(of).unzip() };
    let ((tables, columns), (theirs, places)) = (column(|new| new.0), column(|new| new.1));
    let names: Vec<&str> = new.iter().map(|new| new.2.as_str()).collect();
    let context = "write down which table is which";
    client.execute(wrong, &[&tables, &columns, &theirs, &places]).await.map_err(refused(context))?;
    client.execute(sql, &[&tables, &columns, &theirs, &places, &names]).await.map_err(refused(context))?;
    Ok(())
}

/// Both directions of what is known and still there on the shadow.
pub(super) struct Index {
    of_source: HashMap<Number, Number>,
    of_shadow: HashMap<Number, Number>,
    /// What of the source's had its like in this table of the shadow's, which has it no more.
    gone: HashSet<(Number, u32)>,
}

impl Index {
    pub(super) fn new(shadow: &Fingerprint) -> Self {
        let values = shadow.places.values().map(|(_, number)| value(*number));
        let there: HashSet<Number> = shadow.numbers.values().copied().chain(values).collect();
        let (known, gone): (Vec<_>, Vec<_>) =
            shadow.known.iter().flatten().partition(|(_, of, _)| there.contains(of));
        let known = || known.iter();
        Self {
            gone: gone.iter().map(|(source, (table, _), _)| (*source, *table)).collect(),
            of_source: known().map(|(source, shadow, _)| (*source, *shadow)).collect(),
            of_shadow: known().map(|(source, shadow, _)| (*shadow, *source)).collect(),
        }
    }

    /// Whether a table or column of the shadow is known to be one of the source's.
    pub(super) fn knows(&self, of_shadow: Number) -> bool {
        self.of_shadow.contains_key(&of_shadow)
    }

    /// Whether a table or column of the source is known to be one of the shadow's.
    pub(super) fn has(&self, of_source: Number) -> bool {
        self.of_source.contains_key(&of_source)
    }

    /// Whether the shadow had this column of the source's, and its table, which is still there, has it no more.
    fn is_gone(&self, of_source: Number) -> bool {
        let table = self.of_source.get(&(of_source.0, 0));
        !self.has(of_source) && table.is_some_and(|(table, _)| self.gone.contains(&(of_source, *table)))
    }

    /// Which value of the source's enums this one of the shadow's is known to be.
    pub(super) fn value(&self, of_shadow: u32) -> Option<u32> {
        self.of_shadow.get(&value(of_shadow)).map(|(number, _)| *number)
    }

    /// Nothing that is known says that these are not the same.
    pub(super) fn agrees(&self, here: Number, there: Number) -> bool {
        self.of_source.get(&here).is_none_or(|known| *known == there)
            && self.of_shadow.get(&there).is_none_or(|known| *known == here)
    }
}

fn unknown(source: &Fingerprint, shadow: &Fingerprint) -> Known {
    let Some(known) = &shadow.known else { return Vec::new() };
    let index = Index::new(shadow);
    let names: HashSet<(Number, &str)> =
        known.iter().map(|(source, _, name)| (*source, name.as_str())).collect();
    let mut new = Vec::new();
    let alive: HashSet<Number> = source.numbers.values().copied().collect();
    // Each table comes before its columns, which are only where it is.
    let (mut at_home, mut again) = (false, false);
    for (key @ (table, column), here) in &source.numbers {
        let there = shadow.numbers.get(key);
        if column.is_empty() {
            again = there.and_then(|there| index.of_shadow.get(there)).is_some_and(|of| !alive.contains(of))
                && is_same_type(source, shadow, table);
            at_home = there.is_some_and(|there| again || index.agrees(*here, *there));
        }
        let Some(there) = there else { continue };
        let name = if column.is_empty() { table } else { column };
        let is_new = match index.of_source.get(here) {
            // What somebody put in its place does not have its values.
            None if index.is_gone(*here) && is_kept(source, key) => false,
            None => at_home && (again || !index.knows(*there)),
            // By another name.
            Some(known) => known == there && !names.contains(&(*here, name)),
        };
        if is_new {
            new.push((*here, *there, name.clone()));
        }
    }
    let alive: HashSet<u32> = source.places.values().map(|(_, number)| *number).collect();
    for (key, (_, here)) in &source.places {
        let Some((_, there)) = shadow.places.get(key) else { continue };
        // Of a type that was made anew and kept its values, they are the same.
        if !index.has(value(*here)) && index.value(*there).is_none_or(|known| !alive.contains(&known)) {
            new.push((value(*here), value(*there), key.1.clone()));
        }
    }
    new
}

/// Whether values of it are only where a row has them: it is no column that is computed, and its table is one that is filled.
fn is_kept(source: &Fingerprint, (table, column): &(String, String)) -> bool {
    let definition = |kind: &str, name: &str| {
        let shape = source.things.get(&(kind.to_owned(), table.clone(), name.to_owned()));
        shape.map_or("", |shape| shape.definition.as_str())
    };
    definition("table", "") == "plain" && !columns::is_generated(definition("column", column))
}

/// Whether both have a composite type of this name with the same attributes: values are told by their place, whichever of two such they are of.
fn is_same_type(source: &Fingerprint, shadow: &Fingerprint, name: &str) -> bool {
    let of_type = ("type".to_owned(), name.to_owned(), String::new());
    let definition = |side: &Fingerprint| side.things.get(&of_type).map(|shape| shape.definition.clone());
    definition(source).is_some() && definition(source) == definition(shadow)
}

/// What has another name on the source than on the shadow, or is another thing of the same name; and the tables whose other
/// differences mean nothing until that is mended.
pub(super) fn renamed(
    source: &Fingerprint,
    shadow: &Fingerprint,
    index: &Index,
    [zone, far]: [&str; 2],
) -> (Vec<Difference>, HashSet<String>) {
    let sides = Sides {
        source,
        shadow,
        index,
        zone,
        far,
        names_there: shadow.numbers.iter().map(|(key, number)| (*number, key)).collect(),
        alive: source.numbers.values().copied().collect(),
    };
    let (mut found, mut touched) = (Vec::new(), HashSet::new());
    let tables = || source.numbers.iter().filter(|((_, column), _)| column.is_empty());
    let moves: BTreeMap<&str, &str> = tables()
        .filter_map(|((table, _), number)| {
            let (name, _) = sides.name_there(*number).filter(|(name, _)| name != table)?;
            Some((name.as_str(), table.as_str()))
        })
        .collect();
    for (key @ (table, _), number) in tables() {
        match sides.name_there(*number) {
            Some((name, _)) if name != table => {
                touched.extend([name.clone(), table.clone()]);
                let (word, _) = sides.words(table);
                let kind = word.to_lowercase();
                if sides.another(key) == Some(false) {
                    // Once that is gone, the name is free.
                    let what = format!("{kind} was dropped on {zone}, and {name} has its name there");
                    found.push(sides.dropped(table, what));
                    continue;
                }
                let ring = ring(&moves, name);
                if ring.is_empty() {
                    let what = format!("{kind} {name} was renamed so on {zone}");
                    let sql = rename_table(word, name, table);
                    found.push(Difference::new(table, what, Mend::Rename(sql)));
                } else if ring.iter().all(|other| name.as_str() <= *other) {
                    // All of them at once, and told once.
                    let what = format!("{kind}s {} exchanged their names on {zone}", ring.join(", "));
                    found.push(Difference::new(name, what, Mend::Rename(sides.exchange(&ring, &moves))));
                }
            }
            Some(_) => {
                let (columns, any) = sides.columns(table);
                found.extend(columns);
                touched.extend(any.then(|| table.clone()));
            }
            None => {
                let Some(alive) = sides.another(key) else { continue };
                if !alive && is_same_type(source, shadow, table) {
                    continue;
                }
                touched.insert(table.clone());
                if !alive {
                    let kind = sides.words(table).0.to_lowercase();
                    found.push(sides.dropped(table, format!("{kind} was dropped and made anew on {zone}")));
                }
            }
        }
    }
    (found, touched)
}

struct Sides<'f> {
    source: &'f Fingerprint,
    shadow: &'f Fingerprint,
    index: &'f Index,
    /// The source's.
    zone: &'f str,
    /// The shadow's.
    far: &'f str,
    names_there: HashMap<Number, &'f (String, String)>,
    /// What the source has.
    alive: HashSet<Number>,
}

impl Sides<'_> {
    /// What the shadow calls what the source has as this number.
    fn name_there(&self, number: Number) -> Option<&(String, String)> {
        self.index.of_source.get(&number).and_then(|there| self.names_there.get(there)).copied()
    }

    /// Where what the shadow has by this name is known to be another of the source's: whether that is still there.
    fn another(&self, name: &(String, String)) -> Option<bool> {
        let other = self.shadow.numbers.get(name).and_then(|there| self.index.of_shadow.get(there))?;
        Some(self.alive.contains(other))
    }

    /// What it and its parts are called in SQL: it is a table, or a type.
    fn words(&self, name: &str) -> (&'static str, &'static str) {
        let of_type = ("type".to_owned(), name.to_owned(), String::new());
        if self.source.things.contains_key(&of_type) { ("TYPE", "ATTRIBUTE") } else { ("TABLE", "COLUMN") }
    }

    /// What the shadow has by this name the source has no more.
    fn dropped(&self, table: &str, what: String) -> Difference {
        let mend = match self.words(table).0 {
            "TABLE" => Mend::Drop(format!("DROP TABLE IF EXISTS {table}")),
            // Tables that have it on the shadow go before, or are in its way.
            _ => Mend::Drop(format!("DROP TYPE IF EXISTS {table}")),
        };
        Difference { when: When::CaughtUp, ..Difference::new(table, what, mend) }
    }

    /// Gives each of these the name of the next, by way of a name that none has.
    fn exchange(&self, ring: &[&str], moves: &BTreeMap<&str, &str>) -> String {
        let Some((first, others)) = ring.split_first() else { return String::new() };
        let schema = split(first).0;
        let number =
            self.source.numbers.get(&((*first).to_owned(), String::new())).map_or(0, |number| number.0);
        let aside = format!("{schema}.godwit_{number}");
        let rename = |from: &str, to: &str, of: &str| rename_table(self.words(of).0, from, to);
        let mut steps = vec![rename(first, &aside, moves[first])];
        steps.extend(others.iter().rev().map(|from| rename(from, moves[from], moves[from])));
        steps.push(rename(&aside, moves[first], moves[first]));
        steps.join("; ")
    }

    /// What makes a column anew of which the stream tells nothing: it is computed of the others, on both sides.
    fn computed(&self, (table, column): &(String, String)) -> Option<String> {
        let key = ("column".to_owned(), table.clone(), column.clone());
        let (here, there) = (self.source.things.get(&key)?, self.shadow.things.get(&key)?);
        let both = [here, there].iter().all(|shape| columns::is_generated(&shape.definition));
        let sql = here.sql.as_ref().filter(|_| both)?;
        Some(columns::made_anew(table, column, sql))
    }

    /// The same of the columns of a table that has its name; and whether any of them is not what it is called.
    fn columns(&self, table: &str) -> (Vec<Difference>, bool) {
        let (mut found, mut any) = (Vec::new(), false);
        let of = (table.to_owned(), String::new())..;
        let columns = self.source.numbers.range(of).skip(1).take_while(|((of, _), _)| of == table);
        let zone = self.zone;
        let (word, part) = self.words(table);
        let called = part.to_lowercase();
        let anew = || if word == "TABLE" { Mend::Anew(table.to_owned()) } else { Mend::Person(None) };
        let typed = are_typed([self.source, self.shadow], table);
        for (key @ (_, column), number) in columns {
            match self.name_there(*number) {
                Some((_, name)) if name != column => {
                    any = true;
                    if typed {
                        // With its type's attribute.
                        continue;
                    }
                    let what = format!("{called} {name} was renamed to {column} on {zone}");
                    found.push(if self.shadow.numbers.contains_key(key) {
                        // The stream has told two by one name.
                        Difference::new(table, format!("{what}: seed the table anew"), anew())
                    } else {
                        let (from, to) = (quote_ident(name), quote_ident(column));
                        let cascade = if word == "TYPE" { " CASCADE" } else { "" };
                        let sql = format!("ALTER {word} {table} RENAME {part} {from} TO {to}{cascade}");
                        Difference::new(table, what, Mend::Rename(sql))
                    });
                }
                Some(_) => {}
                None => {
                    let Some(alive) = self.another(key) else {
                        if self.index.is_gone(*number) && is_kept(self.source, key) {
                            any = true;
                            let what =
                                format!("{called} {column} is gone from {}: seed the table anew", self.far);
                            found.push(Difference::new(table, what, anew()));
                        }
                        continue;
                    };
                    any = true;
                    if alive {
                        continue;
                    }
                    if let Some(sql) = self.computed(key) {
                        let what = format!("{called} {column} was dropped and made anew on {zone}");
                        found.push(Difference {
                            place: number.1,
                            ..Difference::new(table, what, Mend::Add(sql))
                        });
                    } else {
                        // The stream has told both by the same name: which values are of the new one cannot be told.
                        let what = format!(
                            "{called} {column} was dropped and made anew on {zone}: seed the table anew"
                        );
                        found.push(Difference::new(table, what, anew()));
                    }
                }
            }
        }
        (found, any)
    }
}

/// Names that go round, each to the next, beginning with this one; none where one of them is free.
fn ring<'n>(moves: &BTreeMap<&'n str, &'n str>, name: &'n str) -> Vec<&'n str> {
    let mut ring = vec![name];
    let mut at = name;
    while let Some(next) = moves.get(at) {
        if *next == name {
            return ring;
        }
        ring.push(next);
        at = next;
    }
    Vec::new()
}

fn rename_table(word: &str, from: &str, to: &str) -> String {
    let ((schema, name), (new_schema, new_name)) = (split(from), split(to));
    let mut steps = Vec::new();
    if schema != new_schema {
        steps.push(format!("ALTER {word} {from} SET SCHEMA {new_schema}"));
    }
    if name != new_name {
        steps.push(format!("ALTER {word} {new_schema}.{name} RENAME TO {new_name}"));
    }
    steps.join("; ")
}

/// Schema and name of `schema.name`, each quoted where it must be.
pub(super) fn split(name: &str) -> (&str, &str) {
    let mut quoted = false;
    let dot = name.char_indices().find(|(_, character)| {
        quoted ^= *character == '"';
        *character == '.' && !quoted
    });
    dot.map_or(("", name), |(at, _)| (&name[..at], &name[at + 1..]))
}

#[cfg(test)]
mod tests {
    use super::super::Shape;
    use super::*;

    fn side(numbers: &[(&str, &str, Number)]) -> Fingerprint {
        let number =
            |(table, column, number): &(&str, &str, Number)| (((*table).into(), (*column).into()), *number);
        Fingerprint { numbers: numbers.iter().map(number).collect(), ..Fingerprint::default() }
    }

    /// What is said once the source is like this, of a shadow that was like `before`.
    fn told(before: &[(&str, &str, Number)], source: &[(&str, &str, Number)]) -> Vec<String> {
        let shifted: Vec<_> =
            before.iter().map(|(table, column, of)| (*table, *column, (of.0 + 100, of.1))).collect();
        let mut shadow = side(&shifted);
        assert!(unknown(&side(before), &shadow).is_empty(), "it was not prepared");
        shadow.known = Some(Vec::new());
        let known = unknown(&side(before), &shadow);
        assert_eq!(known.len(), before.len());
        shadow.known = Some(known);
        assert!(unknown(&side(before), &shadow).is_empty());
        let (found, _) = renamed(&side(source), &shadow, &Index::new(&shadow), ["a", "b"]);
        found.iter().map(|found| format!("{}: {} {:?}", found.subject, found.what, found.mend)).collect()
    }

    #[test]
    fn who_is_who_is_told_by_number() {
        let before = [("s.t", "", (1, 0)), ("s.t", "x", (1, 1)), ("s.t", "y", (1, 2)), ("s.u", "", (2, 0))];
        assert!(told(&before, &before).is_empty());
        let more = [&before[..], &[("s.t", "z", (1, 3)), ("s.v", "", (3, 0))]].concat();
        assert!(told(&before, &more).is_empty(), "what was added is not renamed");
        assert!(told(&before, &before[..2]).is_empty(), "what is gone is not renamed");
        let column = [("s.t", "", (1, 0)), ("s.t", "x y", (1, 1)), ("s.t", "y", (1, 2))];
        assert_eq!(
            told(&before, &column),
            [
                r#"s.t: column x was renamed to x y on a Rename("ALTER TABLE s.t RENAME COLUMN \"x\" TO \"x y\"")"#
            ]
        );
        let exchanged = [("s.t", "", (1, 0)), ("s.t", "y", (1, 1)), ("s.t", "x", (1, 2))];
        assert_eq!(
            told(&before, &exchanged),
            [
                "s.t: column y was renamed to x on a: seed the table anew Anew(\"s.t\")",
                "s.t: column x was renamed to y on a: seed the table anew Anew(\"s.t\")"
            ]
        );
        let anew = [("s.t", "", (1, 0)), ("s.t", "x", (1, 3)), ("s.u", "", (5, 0))];
        assert_eq!(
            told(&before, &anew),
            [
                "s.t: column x was dropped and made anew on a: seed the table anew Anew(\"s.t\")",
                r#"s.u: table was dropped and made anew on a Drop("DROP TABLE IF EXISTS s.u")"#
            ]
        );
        let exchanged = [("s.t", "", (2, 0)), ("s.u", "", (1, 0))];
        assert_eq!(
            told(&before, &exchanged),
            ["s.t: tables s.t, s.u exchanged their names on a Rename(\"ALTER TABLE s.t RENAME TO godwit_2; \
                 ALTER TABLE s.u RENAME TO t; ALTER TABLE s.godwit_2 RENAME TO u\")"]
        );
        let three = [("s.a", "", (1, 0)), ("s.b", "", (2, 0)), ("s.c", "", (3, 0)), ("s.d", "", (4, 0))];
        let round = [("s.b", "", (1, 0)), ("s.c", "", (2, 0)), ("s.a", "", (3, 0)), ("s.e", "", (4, 0))];
        assert_eq!(
            told(&three, &round),
            [
                "s.a: tables s.a, s.b, s.c exchanged their names on a Rename(\"ALTER TABLE s.a RENAME TO godwit_3; \
                 ALTER TABLE s.c RENAME TO a; ALTER TABLE s.b RENAME TO c; ALTER TABLE s.godwit_3 RENAME TO b\")",
                "s.e: table s.d was renamed so on a Rename(\"ALTER TABLE s.d RENAME TO e\")"
            ]
        );
        assert_eq!(
            told(&before, &[("s.t", "", (2, 0))]),
            ["s.t: table was dropped on a, and s.u has its name there Drop(\"DROP TABLE IF EXISTS s.t\")"]
        );
        let tables = [("s.u", "", (1, 0)), ("\"s.\".t", "", (2, 0))];
        assert_eq!(
            told(&before, &tables),
            [
                r#""s.".t: table s.u was renamed so on a Rename("ALTER TABLE s.u SET SCHEMA \"s.\"; ALTER TABLE \"s.\".u RENAME TO t")"#,
                r#"s.u: table s.t was renamed so on a Rename("ALTER TABLE s.t RENAME TO u")"#
            ]
        );
    }

    /// The same, with what they are: `(kind, name, column, definition)`.
    fn shaped(numbers: &[(&str, &str, Number)], things: &[[&str; 4]]) -> Fingerprint {
        let thing = |[kind, name, column, definition]: &[&str; 4]| {
            let shape = Shape { definition: (*definition).into(), sql: None, undo: None };
            (((*kind).into(), (*name).into(), (*column).into()), shape)
        };
        Fingerprint { things: things.iter().map(thing).collect(), ..side(numbers) }
    }

    fn mends(source: &Fingerprint, shadow: &Fingerprint) -> Vec<(String, Mend)> {
        let (found, _) = renamed(source, shadow, &Index::new(shadow), ["a", "b"]);
        found.into_iter().map(|found| (found.what, found.mend)).collect()
    }

    #[test]
    fn a_column_that_the_shadow_had_is_not_added_empty() {
        let things = [
            ["table", "s.t", "", "plain"],
            ["column", "s.t", "x", "text"],
            ["column", "s.t", "y", "text GENERATED ALWAYS AS (x) STORED"],
        ];
        let source = shaped(&[("s.t", "", (1, 0)), ("s.t", "x", (1, 2)), ("s.t", "y", (1, 3))], &things);
        let known =
            vec![((1, 0), (9, 0), "s.t".into()), ((1, 2), (9, 2), "x".into()), ((1, 3), (9, 3), "y".into())];
        let gone = [("column x is gone from b: seed the table anew".to_owned(), Mend::Anew("s.t".into()))];
        for (numbers, told, new) in [
            // What is computed is computed again.
            (&[("s.t", "", (9, 0))][..], &gone[..], 0),
            // Somebody has put another in its place.
            (&[("s.t", "", (9, 0)), ("s.t", "x", (9, 4)), ("s.t", "y", (9, 5))], &gone, 1),
            // The table itself was made anew, and so filled.
            (&[("s.t", "", (10, 0)), ("s.t", "x", (10, 1)), ("s.t", "y", (10, 2))], &[], 3),
        ] {
            let shadow = Fingerprint { known: Some(known.clone()), ..shaped(numbers, &things) };
            assert_eq!(mends(&source, &shadow), told, "{numbers:?}");
            assert_eq!(unknown(&source, &shadow).len(), new, "{numbers:?}");
        }
    }

    #[test]
    fn a_composite_type_that_was_made_anew_alike_is_the_same() {
        let known = Some(vec![((1, 0), (9, 0), "s.t".into()), ((1, 1), (9, 1), "a".into())]);
        let of = |number, column, definition| {
            shaped(
                &[("s.t", "", (number, 0)), ("s.t", column, (number, 1))],
                &[["type", "s.t", "", definition]],
            )
        };
        let shadow = Fingerprint { known, ..of(9, "a", "(a integer)") };
        let source = of(2, "a", "(a integer)");
        assert!(mends(&source, &shadow).is_empty());
        let new = unknown(&source, &shadow);
        assert_eq!(new, [((2, 0), (9, 0), "s.t".into()), ((2, 1), (9, 1), "a".into())]);
        let other = of(2, "b", "(b text)");
        assert!(unknown(&other, &shadow).is_empty());
        let what = "type was dropped and made anew on a".to_owned();
        assert_eq!(mends(&other, &shadow), [(what, Mend::Drop("DROP TYPE IF EXISTS s.t".into()))]);
    }

    #[test]
    fn a_new_name_of_what_is_known_is_another_line() {
        let mut shadow = side(&[("s.t", "", (9, 0)), ("s.t", "x", (9, 1))]);
        shadow.known = Some(vec![((1, 0), (9, 0), "s.t".into()), ((1, 1), (9, 1), "w".into())]);
        let source = side(&[("s.t", "", (1, 0)), ("s.t", "x", (1, 1))]);
        assert_eq!(unknown(&source, &shadow), [((1, 1), (9, 1), "x".into())]);
        // Of another table of the same name nothing is written down.
        let other = side(&[("s.t", "", (2, 0)), ("s.t", "x", (2, 1))]);
        assert!(unknown(&other, &shadow).is_empty());
    }
}
