//! Tables whose rows were written anew since the other side was last seen to have all of their columns.
//!
//! A column with a default that is drawn row by row gets its values so, and the stream tells nothing of that; without the default it then looks like
//! one that older rows have nothing in. What else writes a table anew takes away what the catalog says of older rows. So each side writes down in
//! which file its tables' rows were (`godwit.files`), and of a column that came with another file the rows themselves are asked. So are those of one
//! with a default that is not what older rows have, where nothing is written down of its table.

use std::collections::{BTreeSet, HashMap, HashSet};

use tokio_postgres::Client;

use super::identities::{Index, Number};
use super::{Fingerprint, Key, columns, is_prepared};
use crate::error::Error;
use crate::fence::{refused, rows};
use crate::postgres::quote_ident;

/// Where it is written down.
const TABLE: &str = "files";
/// How long a table is looked through for a row that has something in a column.
const PATIENCE: &str = "500ms";

/// What is called something, and what.
const NAMED: &str = "pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace";
const NAME: &str = "pg_catalog.format('%I.%I', n.nspname, c.relname)";

/// By a table's number.
pub(super) type Files = HashMap<u32, u32>;

/// Reads what is written down; none where it was not prepared yet.
pub(super) async fn read(client: &Client) -> Result<Option<Files>, Error> {
    if !is_prepared(client, TABLE).await? {
        return Ok(None);
    }
    let found = client.query("SELECT of, file FROM godwit.files", &[]).await;
    let found = found.map_err(refused("read which files tables had"))?;
    Ok(Some(found.iter().map(|row| (row.get(0), row.get(1))).collect()))
}

/// Takes the SQL from columns that the shadow lacks where it would leave older rows without what they have.
pub(super) async fn doubt(client: &Client, source: &mut Fingerprint, shadow: &Fingerprint) {
    for key in untold(source, shadow) {
        if has_values(client, &key.1, &key.2).await
            && let Some(shape) = source.things.get_mut(&key)
        {
            shape.sql = None;
        }
    }
}

/// Columns that the shadow lacks, of which nothing but the rows tells what older ones have.
fn untold(source: &Fingerprint, shadow: &Fingerprint) -> Vec<Key> {
    // What the shadow lacks wholly is made and filled as it is by then: nothing is added to it. One that it has may be called otherwise there.
    let index = Index::new(shadow);
    let lacks = |table: &String| {
        let plain = ("table".to_owned(), table.clone(), String::new());
        !shadow.things.contains_key(&plain) && number(source, table).is_none_or(|number| !index.has(number))
    };
    let rewritten = tables(source, |noted, file| noted.is_some_and(|noted| noted != file));
    let unsure = tables(source, |noted, file| noted != Some(file));
    let new = source.things.iter().filter(|(key @ (kind, table, _), shape)| {
        let bare = columns::kind(&shape.definition)
            .zip(shape.sql.as_ref())
            .is_some_and(|(kind, add)| add.ends_with(&format!(" {kind}")));
        let doubtful = if columns::has_default(&shape.definition) { &unsure } else { &rewritten };
        let new = kind == "column" && bare && !shadow.things.contains_key(*key);
        new && doubtful.contains(table.as_str()) && !lacks(table)
    });
    new.map(|(key, _)| key.clone()).collect()
}

/// Tables of which this is so, by the file that is written down and the one that they have.
fn tables(source: &Fingerprint, is_so: impl Fn(Option<u32>, u32) -> bool) -> BTreeSet<&str> {
    let noted = |table: &str| source.noted.as_ref()?.get(&number(source, table)?.0).copied();
    let of_it = source.files.iter().filter(|(table, file)| is_so(noted(table), **file));
    let mut tables: BTreeSet<&str> = of_it.map(|(table, _)| table.as_str()).collect();
    // A partitioned table has its rows in its parts.
    let parts: Vec<(&str, &str)> = source
        .things
        .keys()
        .filter(|(kind, ..)| kind == "partition of")
        .map(|(_, part, of)| (part.as_str(), of.as_str()))
        .collect();
    let mut before = 0;
    while before < tables.len() {
        before = tables.len();
        let more: Vec<&str> =
            parts.iter().filter(|(part, _)| tables.contains(part)).map(|(_, of)| *of).collect();
        tables.extend(more);
    }
    tables
}

/// Whether a row has something in this column, or that cannot be told within a moment.
async fn has_values(client: &Client, table: &str, column: &str) -> bool {
    let sql = format!(
        "BEGIN READ ONLY; SET LOCAL statement_timeout = '{PATIENCE}'; SET LOCAL row_security = off; \
         SELECT EXISTS (SELECT FROM {table} WHERE {} IS NOT NULL); COMMIT",
        quote_ident(column)
    );
    match client.simple_query(&sql).await {
        Ok(answer) => rows(answer).first().and_then(|row| row.get(0)) != Some("f"),
        Err(_) => {
            let _ = client.batch_execute("ROLLBACK").await;
            true
        }
    }
}

fn number(side: &Fingerprint, table: &str) -> Option<Number> {
    side.numbers.get(&(table.to_owned(), String::new())).copied()
}

/// Writes down on the source in which files its rows are, when a copy of it begins; of one that goes on, what was not there before.
pub(super) async fn dumped(source: &Client, says: &Fingerprint, goes_on: bool) -> Result<(), Error> {
    let Some(mut known) = read(source).await? else { return Ok(()) };
    if !goes_on {
        let stale = "DELETE FROM godwit.files";
        source.batch_execute(stale).await.map_err(refused("write down what is copied"))?;
        known.clear();
    }
    let all = says.files.iter().filter_map(|(table, file)| Some((number(says, table)?.0, *file)));
    write(source, all.filter(|(table, _)| !known.contains_key(table)).collect()).await
}

/// Writes down on the source what each of its tables is called while a copy of all begins.
pub(crate) async fn named(source: &Client) -> Result<(), Error> {
    if !is_prepared(source, TABLE).await? {
        return Ok(());
    }
    let sql = format!("UPDATE godwit.files f SET named = {NAME} FROM {NAMED} WHERE c.oid = f.of");
    source.batch_execute(&sql).await.map_err(refused("write down what tables are called"))
}

/// Whether all of these, by schema and name, are what was called so then: none was made or renamed since.
pub(crate) async fn are_as_named(source: &Client, tables: &HashSet<(&str, &str)>) -> Result<bool, Error> {
    if !is_prepared(source, TABLE).await? {
        return Ok(true);
    }
    let (schemas, names): (Vec<&str>, Vec<&str>) = tables.iter().copied().unzip();
    let sql = format!(
        "SELECT count(*) FROM unnest($1::text[], $2::text[]) AS t (schema, name) \
         JOIN {NAMED} ON (n.nspname, c.relname) = (t.schema, t.name) JOIN godwit.files f ON f.of = c.oid AND f.named = {NAME}"
    );
    let found = source.query_one(&sql, &[&schemas, &names]).await;
    let found = found.map_err(refused("read what tables were called"))?;
    Ok(usize::try_from(found.get::<_, i64>(0)) == Ok(tables.len()))
}

/// Writes down on each side in which files its rows are whose columns the other has.
pub(super) async fn remember(
    [source, shadow]: [&Client; 2],
    [of_source, of_shadow]: [&Fingerprint; 2],
) -> Result<(), Error> {
    if of_shadow.known.is_none() {
        return Ok(());
    }
    let index = Index::new(of_shadow);
    let here = news(of_source, of_shadow, |here, there| match there {
        Some(there) => index.agrees(here, there),
        None => !index.has(here),
    });
    let there = news(of_shadow, of_source, |there, here| match here {
        Some(here) => index.agrees(here, there),
        None => !index.knows(there),
    });
    write(source, here).await?;
    write(shadow, there).await
}

/// What is to be written down of a side's tables: of those that the other has whole, or lacks wholly and gets as they are then.
/// `is_it`: whether a table of the other's, or none, is what the other has of it.
fn news(
    side: &Fingerprint,
    other: &Fingerprint,
    is_it: impl Fn(Number, Option<Number>) -> bool,
) -> Vec<(u32, u32)> {
    let Some(noted) = &side.noted else { return Vec::new() };
    let is_whole = |table: &str| {
        let first = ("column".to_owned(), table.to_owned(), String::new());
        let mut columns =
            side.things.range(first..).take_while(|((kind, of, _), _)| kind == "column" && of == table);
        columns.all(|(key, _)| other.things.contains_key(key))
    };
    let new = side.files.iter().filter_map(|(table, file)| {
        let (here, there) = (number(side, table)?, number(other, table));
        let new = noted.get(&here.0) != Some(file) && is_it(here, there);
        (new && (there.is_none() || is_whole(table))).then_some((here.0, *file))
    });
    new.collect()
}

async fn write(client: &Client, new: Vec<(u32, u32)>) -> Result<(), Error> {
    if new.is_empty() {
        return Ok(());
    }
    let (tables, files): (Vec<u32>, Vec<u32>) = new.into_iter().unzip();
    let sql = "WITH gone AS (DELETE FROM godwit.files f WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.oid = f.of)) \
        INSERT INTO godwit.files (of, file) SELECT * FROM unnest($1::oid[], $2::oid[]) \
        ON CONFLICT (of) DO UPDATE SET file = EXCLUDED.file";
    client.execute(sql, &[&tables, &files]).await.map_err(refused("write down which files tables have"))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::Shape;
    use super::*;

    /// Table `s.t` (number 7) with these columns in this file, a part of `s.p`.
    fn side(columns: &[&str], file: u32, noted: &[(u32, u32)]) -> Fingerprint {
        let shape =
            |definition: &str, sql: Option<String>| Shape { definition: definition.into(), sql, undo: None };
        let mut side = Fingerprint {
            numbers: [(("s.t".into(), String::new()), (7, 0))].into(),
            files: [("s.t".into(), file)].into(),
            noted: Some(noted.iter().copied().collect()),
            known: Some(Vec::new()),
            ..Fingerprint::default()
        };
        for table in ["s.t", "s.p"] {
            let plain = ("table".into(), table.into(), String::new());
            side.things.insert(plain, shape("plain", None));
        }
        let part = ("partition of".into(), "s.t".into(), "s.p".into());
        side.things.insert(part, shape("DEFAULT", None));
        for column in columns {
            for table in ["s.t", "s.p"] {
                let sql = format!("ALTER TABLE {table} ADD COLUMN {column} uuid");
                let (sql, definition) = match *column {
                    "old" => (format!("{sql} DEFAULT 'x'"), "uuid"),
                    "late" => (sql, "uuid DEFAULT 'x'"),
                    _ => (sql, "uuid"),
                };
                side.things
                    .insert(("column".into(), table.into(), (*column).into()), shape(definition, Some(sql)));
            }
        }
        side
    }

    #[test]
    fn of_a_table_that_was_written_anew_the_rows_are_asked() {
        let shadow = side(&["a"], 3, &[]);
        let found = |columns: &[&str], noted: &[(u32, u32)]| -> Vec<String> {
            let found = untold(&side(columns, 2, noted), &shadow);
            found.into_iter().map(|(_, table, column)| format!("{table} {column}")).collect()
        };
        assert_eq!(
            found(&["a", "b", "old"], &[(7, 1)]),
            ["s.p b", "s.t b"],
            "old tells what older rows have"
        );
        assert!(found(&["a", "b"], &[(7, 2)]).is_empty(), "it was not written anew");
        assert!(found(&["a", "b"], &[(8, 1)]).is_empty(), "nothing is known");
        assert!(found(&["a"], &[(7, 1)]).is_empty(), "nothing is new");
        assert_eq!(found(&["a", "late"], &[(7, 1)]), ["s.p late", "s.t late"]);
        assert!(found(&["a", "late"], &[(7, 2)]).is_empty());
        assert_eq!(
            found(&["a", "late"], &[(8, 1)]),
            ["s.p late", "s.t late"],
            "nothing is known, and there is a default"
        );
    }

    #[test]
    fn a_table_that_the_shadow_lacks_wholly_is_asked_for_nothing() {
        let source = side(&["a", "late"], 2, &[(7, 1)]);
        let tables = |shadow: &Fingerprint| -> BTreeSet<String> {
            untold(&source, shadow).into_iter().map(|(_, table, _)| table).collect()
        };
        assert!(tables(&Fingerprint::default()).is_empty());
        let renamed = Fingerprint {
            numbers: [(("s.was".into(), String::new()), (9, 0))].into(),
            known: Some(vec![((7, 0), (9, 0), "t".into())]),
            ..Fingerprint::default()
        };
        assert_eq!(tables(&renamed), BTreeSet::from(["s.t".to_owned()]), "it has it under another name");
    }

    #[test]
    fn a_file_is_written_down_when_the_other_side_has_all_of_it() {
        let shadow = side(&["a"], 3, &[]);
        let all = |_: Number, _: Option<Number>| true;
        assert_eq!(news(&side(&["a"], 2, &[(7, 1)]), &shadow, all), [(7, 2)]);
        assert!(news(&side(&["a"], 2, &[(7, 2)]), &shadow, all).is_empty(), "it is");
        assert!(news(&side(&["a", "b"], 2, &[(7, 1)]), &shadow, all).is_empty(), "a column is missing");
        assert!(news(&side(&["a"], 2, &[(7, 1)]), &shadow, |_, _| false).is_empty(), "it is another table");
        let none = Fingerprint::default();
        assert_eq!(
            news(&side(&["a", "b"], 2, &[]), &none, all),
            [(7, 2)],
            "it will be copied as it is by then"
        );
        let unprepared = Fingerprint { noted: None, ..side(&["a"], 2, &[]) };
        assert!(news(&unprepared, &shadow, all).is_empty());
    }
}
