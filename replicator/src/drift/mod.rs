//! Whether both databases have the same schema: logical decoding carries no DDL.
//!
//! [`fingerprint`] reads one side, [`compare`] is pure, [`sync`] makes on the shadow what only the source has. Nothing is
//! ever dropped or changed that could lose a row: such differences are shown, with the SQL, for a person.

mod sync;

use std::collections::BTreeMap;

use tokio_postgres::Client;

use crate::error::Error;
use crate::fence::{refused, rows};

pub use sync::sync;

/// Identifies a thing: what it is, its table or type, its name.
type Key = (String, String, String);

/// What a thing is like, and the SQL that makes it elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Shape {
    definition: String,
    sql: Option<String>,
}

/// The schema of one database, as far as both sides must agree.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fingerprint {
    things: BTreeMap<Key, Shape>,
    major: u32,
}

/// What can be done about a difference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mend {
    /// This SQL, on the shadow; nothing is lost by it.
    Add(String),
    /// A table that the shadow lacks or that is not published: made where it is missing, filled and published by [`sync`].
    Table(String),
    /// A person decides: this SQL on the shadow would do it, where it can be told.
    Person(Option<String>),
}

/// One difference. Sorts by what it is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Table or type.
    pub subject: String,
    /// What differs, with the names of the zones.
    pub what: String,
    /// What mends it.
    pub mend: Mend,
}

/// Reads the schema. One round trip.
pub async fn fingerprint(client: &Client) -> Result<Fingerprint, Error> {
    let sql = format!(
        "BEGIN READ ONLY; SET LOCAL search_path = ''; {}; COMMIT; SELECT current_setting('server_version_num')",
        include_str!("fingerprint.sql").trim_end()
    );
    let answer = client.simple_query(&sql).await;
    if answer.is_err() {
        // An error leaves the transaction open.
        let _ = client.batch_execute("ROLLBACK").await;
    }
    let mut found = rows(answer.map_err(refused("read the schema"))?);
    let version = found.pop().and_then(|row| row.get(0)?.parse::<u32>().ok());
    let mut things = BTreeMap::new();
    for row in &found {
        let text = |at: usize| row.get(at).unwrap_or_default().to_owned();
        let shape = Shape { definition: text(3), sql: row.get(4).map(str::to_owned) };
        things.insert((text(0), text(1), text(2)), shape);
    }
    let major = version.ok_or_else(|| Error::Protocol("read the schema: no version".into()))? / 10_000;
    Ok(Fingerprint { things, major })
}

/// Every difference between the source and its shadow, in order; `zones` are their names.
pub fn compare(source: &Fingerprint, shadow: &Fingerprint, zones: [&str; 2]) -> Vec<Difference> {
    let table = |side: &Fingerprint, name: &str| {
        side.things.contains_key(&("table".to_owned(), name.to_owned(), String::new()))
    };
    let mut found = Vec::new();
    for (key, shape) in &source.things {
        let (kind, owner, name) = key;
        if kind == "published" {
            // Where the table itself is missing, that is said already.
            if shape.definition == "no" && table(shadow, owner) {
                found.push(unpublished(owner, zones[0]));
            }
            continue;
        }
        let own = kind == "table" || kind == "enum value";
        match shadow.things.get(key) {
            // The table itself is a difference already.
            None if !own && !table(shadow, owner) => {}
            None if kind == "table" && published(source, owner) => found.push(Difference {
                subject: owner.clone(),
                what: format!(
                    "table added on {} and published without being on {}: seed anew",
                    zones[0], zones[1]
                ),
                mend: Mend::Person(None),
            }),
            None => found.push(added(key, shape, zones[0])),
            Some(there) if there.definition == shape.definition => {}
            // Versions word them differently.
            Some(_) if source.major != shadow.major && matches!(kind.as_str(), "constraint" | "index") => {}
            Some(there) => found.push(Difference {
                subject: owner.clone(),
                what: format!(
                    "{} is {} on {} and {} on {}",
                    called(kind, name),
                    shape.definition,
                    zones[0],
                    there.definition,
                    zones[1]
                ),
                mend: changed(key, shape, there),
            }),
        }
    }
    for key in shadow.things.keys().filter(|key| !source.things.contains_key(*key)) {
        let (kind, owner, name) = key;
        if kind == "published" {
            continue;
        }
        if kind != "table" && kind != "enum value" && !table(source, owner) {
            continue;
        }
        found.push(Difference {
            subject: owner.clone(),
            what: format!("{} is only on {}", called(kind, name), zones[1]),
            mend: Mend::Person(drop_sql(key)),
        });
    }
    found.sort_by(|a, b| (&a.subject, &a.what).cmp(&(&b.subject, &b.what)));
    found
}

fn published(side: &Fingerprint, table: &str) -> bool {
    let key = ("published".to_owned(), table.to_owned(), String::new());
    side.things.get(&key).is_some_and(|shape| shape.definition == "yes")
}

fn unpublished(table: &str, zone: &str) -> Difference {
    Difference {
        subject: table.to_owned(),
        what: format!("table is on both sides, and its changes on {zone} are not published"),
        mend: Mend::Table(table.to_owned()),
    }
}

fn called(kind: &str, name: &str) -> String {
    if name.is_empty() { kind.to_owned() } else { format!("{kind} {name}") }
}

fn added((kind, owner, name): &Key, shape: &Shape, zone: &str) -> Difference {
    let mend = match &shape.sql {
        _ if kind == "table" && shape.definition == "plain" => Mend::Table(owner.clone()),
        Some(sql) => Mend::Add(sql.clone()),
        None => Mend::Person(None),
    };
    Difference { subject: owner.clone(), what: format!("{} added on {zone}", called(kind, name)), mend }
}

/// Stricter, or another default: no row changes. Anything else is for a person.
fn changed((kind, owner, name): &Key, wanted: &Shape, there: &Shape) -> Mend {
    if kind == "replica identity" {
        return wanted.sql.clone().map_or(Mend::Person(None), Mend::Add);
    }
    if kind == "column" && wanted.definition == format!("{} NOT NULL", there.definition) {
        return Mend::Add(format!(
            "ALTER TABLE {owner} ALTER COLUMN {} SET NOT NULL",
            crate::postgres::quote_ident(name)
        ));
    }
    Mend::Person(None)
}

fn drop_sql((kind, owner, name): &Key) -> Option<String> {
    let name = crate::postgres::quote_ident(name);
    match kind.as_str() {
        "table" => Some(format!("DROP TABLE {owner}")),
        "column" => Some(format!("ALTER TABLE {owner} DROP COLUMN {name}")),
        "constraint" => Some(format!("ALTER TABLE {owner} DROP CONSTRAINT {name}")),
        "index" => Some(format!("DROP INDEX {}.{name}", owner.split_once('.')?.0)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn side(rows: &[(&str, &str, &str, &str, Option<&str>)]) -> Fingerprint {
        let thing = |row: &(&str, &str, &str, &str, Option<&str>)| {
            let shape = Shape { definition: row.3.into(), sql: row.4.map(str::to_owned) };
            ((row.0.into(), row.1.into(), row.2.into()), shape)
        };
        Fingerprint { things: rows.iter().map(thing).collect(), major: 15 }
    }

    #[test]
    fn every_difference_is_named_with_what_mends_it() {
        let source = side(&[
            ("table", "public.orders", "", "plain", None),
            ("column", "public.orders", "id", "bigint NOT NULL", None),
            (
                "column",
                "public.orders",
                "note",
                "text",
                Some("ALTER TABLE public.orders ADD COLUMN note text"),
            ),
            ("column", "public.orders", "stamp", "uuid DEFAULT gen_random_uuid()", None),
            ("column", "public.orders", "total", "numeric NOT NULL", None),
            (
                "index",
                "public.orders",
                "by_note",
                "CREATE INDEX",
                Some("CREATE INDEX by_note ON public.orders (note)"),
            ),
            ("table", "public.new", "", "plain", None),
            ("column", "public.new", "id", "bigint", None),
            ("enum value", "public.mood", "calm", "present", Some("ALTER TYPE public.mood ADD VALUE 'calm'")),
        ]);
        let shadow = side(&[
            ("table", "public.orders", "", "plain", None),
            ("column", "public.orders", "id", "integer NOT NULL", None),
            ("column", "public.orders", "total", "numeric", None),
            ("column", "public.orders", "old", "text", None),
            ("table", "public.gone", "", "plain", None),
            ("column", "public.gone", "id", "bigint", None),
        ]);
        let found = compare(&source, &shadow, ["eu-west", "eu-central"]);
        let text: Vec<String> = found
            .iter()
            .map(|found| format!("{}: {}  [{:?}]", found.subject, found.what, found.mend))
            .collect();
        insta::assert_snapshot!(text.join("\n"));
        assert!(compare(&source, &source, ["a", "b"]).is_empty());
    }
}
