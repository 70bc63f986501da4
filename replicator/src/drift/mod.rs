//! Whether both databases have the same schema: tables (`fingerprint.sql`) and what stands around them (`around.sql`: views,
//! functions, triggers, privileges, …). Logical decoding carries no DDL.
//!
//! [`fingerprint`] reads one side, [`compare`] is pure, [`sync`] makes on the shadow what only the source has. Nothing is
//! ever dropped or changed that could lose a row: such differences are shown, with the SQL, for a person.

mod sync;

use std::collections::BTreeMap;

use tokio_postgres::Client;

use crate::error::Error;
use crate::fence::{refused, rows};
use crate::postgres::connection::SESSION_SETTINGS;

pub use sync::sync;

/// Things that stand for themselves; any other is part of the one that it names.
const WHOLE: [&str; 9] =
    ["table", "view", "materialized view", "function", "sequence", "type", "schema", "extension", DEFAULTS];
/// What one major version words otherwise than another, with the same meaning.
const WORDED: [&str; 9] =
    ["constraint", "index", "query", "body", "trigger", "rule", "policy", "statistics", "domain constraint"];
/// What is too long to be told where it differs.
const LONG: [&str; 8] =
    ["view", "materialized view", "query", "function", "body", "trigger", "rule", "policy"];
/// What does no harm where only the shadow has it.
const HARMLESS: [&str; 11] = [
    "view",
    "materialized view",
    "query",
    "function",
    "body",
    "sequence",
    "its sequence",
    "type",
    "schema",
    "extension",
    "statistics",
];
/// What the SQL that makes it also makes otherwise: nothing is lost by it.
const REPLACED: [&str; 10] = [
    "replica identity",
    "view",
    "query",
    "function",
    "body",
    "rule",
    "policy",
    "row security",
    "owner",
    DEFAULTS,
];

/// Default privileges as a query.
pub(crate) const DEFAULT_PRIVILEGES: &str = include_str!("defaults.sql");
/// What others may do with what a role makes from now on.
const DEFAULTS: &str = "default privileges";

/// What the kind of a privilege begins with; what it is on follows.
const RIGHT: &str = "right on ";

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
    /// As whom it was read, as SQL has it.
    role: String,
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
    // What is written in a definition must look the same, whatever sessions begin with at either side.
    let alike = SESSION_SETTINGS
        .into_iter()
        .chain([("quote_all_identifiers", "off"), ("standard_conforming_strings", "on")]);
    let alike: Vec<String> = alike.map(|(name, value)| format!("SET LOCAL {name} = '{value}'")).collect();
    let alike = alike.join("; ");
    let sql = format!(
        "BEGIN READ ONLY; {alike}; {}; {}; COMMIT; \
         SELECT current_setting('server_version_num'), quote_ident(current_user)",
        include_str!("fingerprint.sql").trim_end(),
        include_str!("around.sql").trim_end().replace("{{defaults}}", DEFAULT_PRIVILEGES)
    );
    let answer = client.simple_query(&sql).await;
    if answer.is_err() {
        // An error leaves the transaction open.
        let _ = client.batch_execute("ROLLBACK").await;
    }
    let mut found = rows(answer.map_err(refused("read the schema"))?);
    let about = found.pop().and_then(|row| Some((row.get(0)?.parse::<u32>().ok()?, row.get(1)?.to_owned())));
    let mut things = BTreeMap::new();
    for row in &found {
        let text = |at: usize| row.get(at).unwrap_or_default().to_owned();
        let shape = Shape { definition: text(3), sql: row.get(4).map(str::to_owned) };
        things.insert((text(0), text(1), text(2)), shape);
    }
    let (version, role) = about.ok_or_else(|| Error::Protocol("read the schema: no version".into()))?;
    Ok(Fingerprint { things, major: version / 10_000, role })
}

/// Every difference between the source and its shadow, in order; `zones` are their names.
pub fn compare(source: &Fingerprint, shadow: &Fingerprint, zones: [&str; 2]) -> Vec<Difference> {
    let has = |side: &Fingerprint, kind: &str, name: &str| {
        side.things.contains_key(&(kind.to_owned(), name.to_owned(), String::new()))
    };
    // What Godwit may do is told elsewhere, and it may have another name at each side.
    let ours = |kind: &str, name: &str| {
        let role = whose(name).map_or("", |(_, role)| role);
        kind.starts_with(RIGHT) && (role == source.role || role == shadow.role)
    };
    let there = |side: &Fingerprint, name: &str| WHOLE.iter().any(|kind| has(side, kind, name));
    let mut found = Vec::new();
    for (key, shape) in &source.things {
        let (kind, owner, name) = key;
        if kind == "published" {
            // Where the table itself is missing, that is said already.
            if shape.definition == "no" && has(shadow, "table", owner) {
                found.push(unpublished(owner, zones[0]));
            }
            continue;
        }
        if ours(kind, name) {
            continue;
        }
        let whole = WHOLE.contains(&kind.as_str());
        match shadow.things.get(key) {
            // What it is part of is a difference already.
            None if !whole && !there(shadow, owner) => {}
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
            Some(_) if source.major != shadow.major && WORDED.contains(&kind.as_str()) => {}
            Some(there) if LONG.contains(&kind.as_str()) => found.push(Difference {
                subject: owner.clone(),
                what: format!("{} is not the same on {} and on {}", called(kind, name), zones[0], zones[1]),
                mend: changed(key, shape, there),
            }),
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
        let part = !WHOLE.contains(&kind.as_str());
        if kind == "published"
            || HARMLESS.contains(&kind.as_str())
            || part && !there(source, owner)
            || ours(kind, name)
        {
            continue;
        }
        found.push(Difference {
            subject: owner.clone(),
            what: format!("{} is only on {}", called(kind, name), zones[1]),
            mend: match drop_sql(key) {
                // No row is lost by it, and what is made anew may be used by everybody.
                Some(revoke) if kind.starts_with(RIGHT) => Mend::Add(revoke),
                sql => Mend::Person(sql),
            },
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
    match (name, kind.strip_prefix(RIGHT)) {
        ("", _) => kind.to_owned(),
        (name, Some(_)) => format!("right {name}"),
        (name, None) => format!("{kind} {name}"),
    }
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
    let sql = wanted.sql.as_deref().unwrap_or_default();
    if let Some(rest) = sql.strip_prefix("CREATE MATERIALIZED VIEW ") {
        return Mend::Person(Some(format!(
            "DROP MATERIALIZED VIEW {owner}; CREATE MATERIALIZED VIEW {rest}"
        )));
    }
    if let Some(rest) = sql.strip_prefix("CREATE SEQUENCE ") {
        return Mend::Add(format!("ALTER SEQUENCE {rest}"));
    }
    let replaced = REPLACED.contains(&kind.as_str()) || kind.starts_with(RIGHT);
    if !sql.is_empty() && (replaced || sql.starts_with("CREATE OR REPLACE ")) {
        return Mend::Add(sql.to_owned());
    }
    if kind == "column" && wanted.definition == format!("{} NOT NULL", there.definition) {
        return Mend::Add(format!(
            "ALTER TABLE {owner} ALTER COLUMN {} SET NOT NULL",
            crate::postgres::quote_ident(name)
        ));
    }
    Mend::Person(None)
}

/// What a right is, and the role that has it: `SELECT (id) to app`.
fn whose(right: &str) -> Option<(&str, &str)> {
    let columns = right.find(") to ").map_or(0, |end| end + 1);
    let (_, role) = right[columns..].split_once(" to ")?;
    Some((right[..right.len() - role.len()].strip_suffix(" to ")?, role))
}

fn drop_sql((kind, owner, name): &Key) -> Option<String> {
    if let Some(of) = kind.strip_prefix(RIGHT) {
        let (what, role) = whose(name)?;
        return Some(format!("REVOKE {what} ON {} {owner} FROM {role}", of.to_uppercase()));
    }
    let name = crate::postgres::quote_ident(name);
    match kind.as_str() {
        "trigger" | "rule" | "policy" => Some(format!("DROP {} {name} ON {owner}", kind.to_uppercase())),
        "row security" => {
            Some(format!("ALTER TABLE {owner} DISABLE ROW LEVEL SECURITY, NO FORCE ROW LEVEL SECURITY"))
        }
        "domain constraint" => Some(format!("ALTER DOMAIN {owner} DROP CONSTRAINT {name}")),
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
        Fingerprint { things: rows.iter().map(thing).collect(), major: 15, role: "godwit".into() }
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
            ("type", "public.mood", "", "enum", None),
            ("enum value", "public.mood", "calm", "present", Some("ALTER TYPE public.mood ADD VALUE 'calm'")),
            ("type", "public.color", "", "enum", Some("CREATE TYPE public.color AS ENUM ('red')")),
            ("enum value", "public.color", "red", "present", Some("ALTER TYPE public.color ADD VALUE 'red'")),
            (
                "function",
                "public.f(integer)",
                "",
                "body 1",
                Some("CREATE OR REPLACE FUNCTION public.f(integer) …"),
            ),
            (
                "owner",
                "public.f(integer)",
                "",
                "clerk",
                Some("ALTER FUNCTION public.f(integer) OWNER TO clerk"),
            ),
            ("function", "public.g()", "", "body 1", Some("CREATE OR REPLACE FUNCTION public.g() …")),
            (
                "right on function",
                "public.g()",
                "EXECUTE to PUBLIC",
                "granted",
                Some("GRANT EXECUTE ON FUNCTION public.g() TO PUBLIC"),
            ),
            (
                "view",
                "public.open",
                "",
                "(id bigint)",
                Some("CREATE OR REPLACE VIEW public.open AS SELECT 1"),
            ),
            ("query", "public.open", "", "SELECT 1", Some("CREATE OR REPLACE VIEW public.open AS SELECT 1")),
            (
                "materialized view",
                "public.sums",
                "",
                "(id bigint)",
                Some("CREATE MATERIALIZED VIEW public.sums AS SELECT 2"),
            ),
            (
                "query",
                "public.sums",
                "",
                "SELECT 2",
                Some("CREATE MATERIALIZED VIEW public.sums AS SELECT 2"),
            ),
            (
                "sequence",
                "public.numbers",
                "",
                "INCREMENT BY 2",
                Some("CREATE SEQUENCE public.numbers INCREMENT BY 2"),
            ),
            (
                "right on table",
                "public.orders",
                "SELECT to app",
                "granted",
                Some("GRANT SELECT ON TABLE public.orders TO app"),
            ),
        ]);
        let shadow = side(&[
            ("table", "public.orders", "", "plain", None),
            ("column", "public.orders", "id", "integer NOT NULL", None),
            ("column", "public.orders", "total", "numeric", None),
            ("column", "public.orders", "old", "text", None),
            ("table", "public.gone", "", "plain", None),
            ("column", "public.gone", "id", "bigint", None),
            ("type", "public.mood", "", "enum", None),
            ("function", "public.f(integer)", "", "body 2", None),
            ("owner", "public.f(integer)", "", "postgres", None),
            ("function", "public.of_a_person()", "", "body 1", None),
            ("view", "public.open", "", "(id bigint)", None),
            ("query", "public.open", "", "SELECT 0", None),
            ("materialized view", "public.sums", "", "(id bigint)", None),
            ("query", "public.sums", "", "SELECT 1", None),
            ("sequence", "public.numbers", "", "INCREMENT BY 1", None),
            ("right on table", "public.orders", "SELECT to everybody", "granted", None),
            ("right on table", "public.orders", "SELECT to godwit_there", "granted", None),
            ("trigger", "public.orders", "spy", "CREATE TRIGGER", None),
        ]);
        let shadow = Fingerprint { role: "godwit_there".into(), ..shadow };
        let found = compare(&source, &shadow, ["eu-west", "eu-central"]);
        let text: Vec<String> = found
            .iter()
            .map(|found| format!("{}: {}  [{:?}]", found.subject, found.what, found.mend))
            .collect();
        insta::assert_snapshot!(text.join("\n"));
        let other_major = Fingerprint { major: 18, ..shadow.clone() };
        let words = compare(&source, &other_major, ["eu-west", "eu-central"]);
        assert!(words.iter().all(|difference| !difference.what.starts_with("query")), "{words:#?}");
        assert!(compare(&source, &source, ["a", "b"]).is_empty());
        assert_eq!(whose("SELECT to app"), Some(("SELECT", "app")));
        assert_eq!(whose(r#"SELECT ("up to") to "to to""#), Some((r#"SELECT ("up to")"#, r#""to to""#)));
    }
}
