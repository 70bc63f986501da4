//! Whether both databases have the same schema: tables (`fingerprint.sql`), what stands around them (`around.sql`: views,
//! functions, triggers, privileges, …; `objects.sql`: what is rarer; `foreign.sql`: what others have), how they are stored and described (`aside.sql`), and by what others read
//! their changes (`publications.sql`). Logical decoding carries no DDL.
//!
//! [`fingerprint`] reads one side, [`compare`] is pure, [`sync`] makes on the shadow what only the source has. What could lose a
//! row is shown, with the SQL, for a person; what is gone on the source goes where that is asked for.

mod columns;
mod constraints;
mod enums;
pub(crate) mod fill;
pub mod gone;
mod identities;
mod in_the_way;
mod keyless;
mod kinds;
mod names;
mod order;
mod rewritten;
mod sync;
#[cfg(test)]
mod tests;
mod types;
mod worded;
mod wording;

use std::collections::{BTreeMap, HashMap};

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use crate::error::Error;
use crate::fence::{refused, rows};
use crate::postgres::connection::SESSION_SETTINGS;
use crate::postgres::slot::{KEYLESS_OF_T, PASSING, filled};
use crate::schema::statements::outside;

use columns::Step;
use identities::{Index, Known, Number};
use kinds::{
    APART, ASIDE, HARMLESS, LONG, MADE_ANEW, OPTIONS, REPLACED, ROW_TYPE, STRICT, UNVALIDATED, WHOLE,
};

pub(crate) use identities::target_table;
pub(crate) use rewritten::{are_as_named, named};

pub use fill::{Filling, Numbered, Sides, not_whole, seed_anew};
pub use keyless::{identify, published_keyless, unpublish, unpublished as not_published};
pub use sync::{Synced, mark, sync};
pub use types::tables_of;

/// Of `pg_class c` and `pg_namespace n`: whether it is the service's, no extension's and nothing of Godwit's, and not only passing.
const OWN: &str = "c.relpersistence <> 't' \
    AND n.nspname <> ALL ('{pg_catalog,information_schema,godwit}') AND n.nspname !~ '^pg_(toast|temp_|toast_temp_)' \
    AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d \
                    WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e') \
    AND NOT {{passing}}";
/// Of `pg_attribute a`, `pg_type y`, `pg_collation co` and its `pg_namespace cn`: the column's type, with a collation of its own.
const KIND: &str = "pg_catalog.format_type(a.atttypid, a.atttypmod) \
    || CASE WHEN a.attcollation <> y.typcollation THEN format(' COLLATE %I.%I', cn.nspname, co.collname) ELSE '' END";
/// Default privileges as a query.
pub(crate) const DEFAULT_PRIVILEGES: &str = include_str!("defaults.sql");

/// What sessions are called by that bring a shadow's schema up: whoever empties the shadow ends them.
pub const APPLICATION: &str = "godwit-schema";

/// What others read changes by.
pub(crate) const PUBLICATIONS: &str = include_str!("publications.sql");

/// What is said of a table's being published that may not be.
const KEYLESS: &str = "keyless";
/// How often a schema is read that is changed meanwhile.
const TRIES: usize = 5;
/// What the definition of a sequence begins with that an identity column draws from.
const IDENTITY: &str = "of an identity column ";
/// What the kind of a privilege begins with; what it is on follows.
const RIGHT: &str = "right on ";

/// Identifies a thing: what it is, its table or type, its name.
type Key = (String, String, String);

/// What a thing is like, and the SQL that makes it elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Shape {
    definition: String,
    sql: Option<String>,
    /// SQL that takes it away, where nothing else is lost by that.
    undo: Option<String>,
}

/// The schema of one database, as far as both sides must agree.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fingerprint {
    things: BTreeMap<Key, Shape>,
    /// The server's number of each table (column empty) and of each column.
    numbers: BTreeMap<(String, String), Number>,
    /// The file that each table's rows are in.
    files: BTreeMap<String, u32>,
    /// What was written down of those; none: it was not prepared.
    noted: Option<rewritten::Files>,
    /// The place of each value of an enum among its others, and the server's number of it.
    places: BTreeMap<(String, String), (u32, u32)>,
    /// Of a shadow that was prepared: which of the source's each is.
    known: Option<Known>,
    /// Of a shadow that was prepared: what both servers said of what they word otherwise.
    pairs: Option<worded::Pairs>,
    /// Which object each thing is that servers word otherwise, and in which state.
    objects: HashMap<Key, String>,
    /// Of a source: what it said when its shadow was copied, of what was not seen on both since.
    dumped: HashMap<Key, String>,
    /// Of a shadow: tables whose rows are not whole.
    unfilled: Vec<String>,
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
    /// This SQL, on the shadow: what only that has is dropped.
    Drop(String),
    /// This SQL, on the shadow: it is there, and has another name.
    Rename(String),
    /// This table of the shadow's is to be filled anew ([`seed_anew`]), which a person decides: its values cannot be told otherwise.
    Anew(String),
    /// This SQL, on the source: nothing tells the table's rows apart ([`identify`]).
    Identity(Option<String>),
    /// A person decides: this SQL on the shadow would do it, where it can be told.
    Person(Option<String>),
}

/// When a difference may be mended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// At once.
    Now,
    /// Changes from before it was made need not fit: the stream must have brought all that was written until the source was read.
    CaughtUp,
    /// The same; but where the stream stands still at what needs it, it has brought all that came before.
    Needed,
}

impl When {
    fn caught_up(strict: bool) -> Self {
        if strict { Self::CaughtUp } else { Self::Now }
    }
}

/// One difference. Sorts by what it is about, and columns by their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Table or type.
    pub subject: String,
    /// What differs, with the names of the zones.
    pub what: String,
    /// What mends it.
    pub mend: Mend,
    /// When it may be mended.
    pub when: When,
    /// The service would miss it after a move. Where it would not, no move waits for it.
    pub stops: bool,
    /// What the shadow's is made of, where its server words it otherwise: the thing, and the digest of the source's definition.
    made: Option<(Key, String)>,
    /// Of a column: its number on the source. Those of a table are added in this order.
    place: i16,
}

impl Difference {
    /// One that stops moves, and may be mended at once.
    pub fn new(subject: impl Into<String>, what: String, mend: Mend) -> Self {
        Self { subject: subject.into(), what, mend, when: When::Now, stops: true, made: None, place: 0 }
    }

    /// Whether [`sync`] does something about it; `gone`: what is gone on the source goes.
    pub fn is_mended(&self, gone: bool) -> bool {
        match self.mend {
            Mend::Add(_) | Mend::Table(_) | Mend::Rename(_) => true,
            Mend::Drop(_) => gone,
            Mend::Anew(_) | Mend::Identity(_) | Mend::Person(_) => false,
        }
    }
}

/// Whether this table of Godwit's is there: not before a shadow is prepared, nor by an older Godwit.
async fn is_prepared(client: &Client, table: &str) -> Result<bool, Error> {
    let sql = format!("SELECT 1 WHERE pg_catalog.to_regclass('godwit.{table}') IS NOT NULL");
    let found = client.simple_query(&sql).await.map_err(refused(&format!("look for godwit.{table}")))?;
    Ok(!rows(found).is_empty())
}

/// Reads the schema of a source, and what it said when its shadow was copied.
async fn fingerprint_of_source(client: &Client) -> Result<Fingerprint, Error> {
    let noted = rewritten::read(client).await?;
    let says = fingerprint(client).await?;
    Ok(Fingerprint { noted, dumped: worded::read_dumped(client).await?, ..says })
}

/// Reads the schema of a shadow, and which of its source's tables its are.
async fn fingerprint_of_shadow(client: &Client) -> Result<Fingerprint, Error> {
    let (known, unfilled) = (identities::read(client).await?, fill::unfilled(client).await?);
    let (pairs, noted) = (worded::read(client).await?, rewritten::read(client).await?);
    Ok(Fingerprint { noted, known, pairs, unfilled, ..fingerprint(client).await? })
}

/// Reads the schemas of a source and its shadow, with what is known of who is who.
pub async fn fingerprints([source, shadow]: [&Client; 2]) -> Result<[Fingerprint; 2], Error> {
    let (mut here, there) = tokio::try_join!(fingerprint_of_source(source), fingerprint_of_shadow(shadow))?;
    rewritten::doubt(source, &mut here, &there).await;
    Ok([here, there])
}

/// Writes down on the source what its shadow is copied of. Before it is dumped: what changes in between is made again at worst.
pub(crate) async fn dumped(source: &Client, goes_on: bool) -> Result<(), Error> {
    let says = fingerprint(source).await?;
    rewritten::dumped(source, &says, goes_on).await?;
    worded::dumped(source, &says, goes_on).await
}

/// Writes down what is seen of both for the first time (which of one is which of the other; what either calls the same thing): on the
/// shadow, and for the way back on the source. On each, in which files its rows are of which the other has all columns.
pub async fn remember(clients: [&Client; 2], of: [&Fingerprint; 2]) -> Result<(), Error> {
    rewritten::remember(clients, of).await?;
    identities::remember(clients, of).await?;
    worded::remember(clients, of).await
}

/// Reads the schema. One round trip, or some more where it is changed meanwhile.
pub async fn fingerprint(client: &Client) -> Result<Fingerprint, Error> {
    let objects = include_str!("objects.sql").replace("{{defaults}}", DEFAULT_PRIVILEGES);
    let [around, foreign, aside, stamps] = [
        include_str!("around.sql"),
        include_str!("foreign.sql"),
        include_str!("aside.sql"),
        include_str!("stamps.sql"),
    ];
    let queries = [include_str!("fingerprint.sql"), around, &objects, foreign, aside, stamps, PUBLICATIONS];
    of(client, &queries).await
}

/// Reads what others read changes by, and nothing else.
pub(crate) async fn publications(client: &Client) -> Result<Fingerprint, Error> {
    of(client, &[PUBLICATIONS]).await
}

/// Reads what these queries tell.
async fn of(client: &Client, queries: &[&str]) -> Result<Fingerprint, Error> {
    // What is written in a definition must look the same, whatever sessions begin with at either side.
    let alike = SESSION_SETTINGS
        .into_iter()
        .chain([("quote_all_identifiers", "off"), ("standard_conforming_strings", "on")]);
    // Those who tell of a definition lock what it is of until the end. Whoever changes it is not to become the one of two that wait for each other that
    // the server ends, after 1 s as it comes: we let go before.
    let alike = alike.chain([("lock_timeout", "500ms")]);
    let alike: Vec<String> = alike.map(|(name, value)| format!("SET LOCAL {name} = '{value}'")).collect();
    let alike = alike.join("; ");
    let queries: Vec<_> = queries.iter().map(|query| query.trim_end()).collect();
    let sql = format!(
        "SET TRANSACTION READ ONLY; {alike}; {}; \
         SELECT current_setting('server_version_num'), quote_ident(current_user)",
        queries.join("; ")
    )
    .replace("{{kind}}", KIND)
    .replace("{{own}}", OWN)
    .replace("{{passing}}", PASSING)
    .replace("{{keyless}}", KEYLESS_OF_T)
    .replace("{{filled}}", filled!());
    let mut tries = 0;
    let answer = loop {
        let answer = client.simple_query(&sql).await;
        let Err(error) = &answer else { break answer };
        if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) {
            continue;
        }
        tries += 1;
        // A definition is looked up when its row is told: what was dropped since the reading began has none any more.
        if error.code() != Some(&SqlState::INTERNAL_ERROR) || tries == TRIES {
            break answer;
        }
    };
    let mut found = rows(answer.map_err(refused("read the schema"))?);
    let about = found.pop().and_then(|row| Some((row.get(0)?.parse::<u32>().ok()?, row.get(1)?.to_owned())));
    let (mut things, mut numbers, mut places) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    let (mut files, mut objects) = (BTreeMap::new(), HashMap::new());
    for row in &found {
        let text = |at: usize| row.get(at).unwrap_or_default().to_owned();
        if text(0) == "#" {
            let number = text(3);
            let number = number
                .split_once(' ')
                .and_then(|(table, column)| Some((table.parse().ok()?, column.parse().ok()?)));
            let number = number.ok_or_else(|| Error::Protocol("read the schema: no number".into()))?;
            numbers.insert((text(1), text(2)), number);
            continue;
        }
        if text(0) == "@" {
            let file = text(3).parse().map_err(|_| Error::Protocol("read the schema: no file".into()))?;
            files.insert(text(1), file);
            continue;
        }
        if text(0) == "%" {
            let object = text(3);
            let object = object.rsplit_once(' ');
            let (kind, object) =
                object.ok_or_else(|| Error::Protocol("read the schema: no object".into()))?;
            objects.insert((kind.to_owned(), text(1), text(2)), object.to_owned());
            continue;
        }
        if text(0) == "=" {
            let place = text(3);
            let place = place
                .split_once(' ')
                .and_then(|(place, number)| Some((place.parse().ok()?, number.parse().ok()?)));
            let place = place.ok_or_else(|| Error::Protocol("read the schema: no place".into()))?;
            places.insert((text(1), text(2)), place);
            continue;
        }
        // Only those of some have a sixth column.
        let sql = |at: usize| (at < row.len()).then(|| row.get(at).map(str::to_owned)).flatten();
        // What is gone by now is not defined any more.
        let Some(definition) = row.get(3).map(str::to_owned) else { continue };
        things.insert((text(0), text(1), text(2)), Shape { definition, sql: sql(4), undo: sql(5) });
    }
    let (version, role) = about.ok_or_else(|| Error::Protocol("read the schema: no version".into()))?;
    let major = version / 10_000;
    Ok(Fingerprint { things, numbers, files, places, objects, major, role, ..Fingerprint::default() })
}

/// Reads both sides and tells every difference, in order; `zones` are their names.
pub async fn differences(
    source: &Client,
    shadow: &Client,
    zones: [&str; 2],
) -> Result<Vec<Difference>, Error> {
    let [here, there] = fingerprints([source, shadow]).await?;
    Ok(compare(&here, &there, zones))
}

/// Every difference between the source and its shadow, in order; `zones` are their names.
pub fn compare(source: &Fingerprint, shadow: &Fingerprint, zones: [&str; 2]) -> Vec<Difference> {
    let has = |side: &Fingerprint, kind: &str, name: &str| {
        side.things.contains_key(&(kind.to_owned(), name.to_owned(), String::new()))
    };
    // What Godwit may do is told elsewhere, and it may have another name at each side. A server before 17 has no MAINTAIN.
    let unknown = source.major.min(shadow.major) < 17;
    let ours = |kind: &str, name: &str| {
        let (what, role) = whose(name).unwrap_or_default();
        kind.starts_with(RIGHT)
            && (role == source.role || role == shadow.role || unknown && what == "MAINTAIN")
    };
    // Whose a schema is, and who may use it: what is made in a new one needs that as soon as it is there.
    let needed =
        |kind: &str, name: &str| ["owner", "right on schema"].contains(&kind) && has(source, "schema", name);
    let there = |side: &Fingerprint, name: &str| WHOLE.iter().any(|kind| has(side, kind, name));
    let index = Index::new(shadow);
    let (mut found, touched) = identities::renamed(source, shadow, &index, zones);
    let (values, told) = enums::renamed(source, shadow, &index, zones[0]);
    found.extend(values.into_iter().filter(|value| !touched.contains(&value.subject)));
    let (others, told_too) = names::renamed(source, shadow, zones[0]);
    found.extend(others.into_iter().filter(|other| !touched.contains(&other.subject)));
    // What is left alone, or not published, is said below.
    let said = |table: &String| matches!(published(source, table), Some(KEYLESS | "no"));
    let unfilled = shadow.unfilled.iter().filter(|table| !said(table));
    found.extend(unfilled.map(|table| {
        let what = format!("its rows on {} are not whole", zones[1]);
        Difference::new(table, what, Mend::Table(table.clone()))
    }));
    let told = |key: &Key| {
        key.0 == "enum value" && told.contains(&(key.1.clone(), key.2.clone())) || told_too.contains(key)
    };
    let typed = |table: &str| are_typed([source, shadow], table);
    // A column of the table that is only on the shadow, is not known, and may be this one by another name.
    let other_name = |table: &String, shape: &Shape| {
        let kind = |shape: &Shape| columns::kind(&shape.definition).map(str::to_owned);
        let first = ("column".to_owned(), table.clone(), String::new());
        let columns =
            shadow.things.range(first..).take_while(|(key, _)| key.0 == "column" && key.1 == *table);
        let mut only_there = columns.filter(|(key, other)| {
            let number = shadow.numbers.get(&(key.1.clone(), key.2.clone()));
            !source.things.contains_key(*key)
                && kind(other) == kind(shape)
                && number.is_some_and(|number| !index.knows(*number))
        });
        only_there.next().map(|((.., name), _)| name)
    };
    // What belongs to a table that is left alone, and to its columns.
    let alone = |owner: &str| {
        let table = owner.match_indices('.').nth(1).map_or(owner, |(at, _)| &owner[..at]);
        published(source, table) == Some(KEYLESS) && !has(shadow, "table", table)
    };
    for (key, shape) in source.things.iter().filter(|((_, owner, _), _)| !touched.contains(owner)) {
        let (kind, owner, name) = key;
        if kind != "published" && alone(owner) {
            continue;
        }
        if kind == "published" {
            let there = has(shadow, "table", owner);
            if shape.definition == KEYLESS {
                found.push(keyless(owner, there, shape, zones[0]));
            } else if shape.definition == "no" && there {
                // Where the table itself is missing, that is said already.
                found.push(unpublished(owner, zones[0]));
            }
            continue;
        }
        if ours(kind, name) || told(key) || kind == UNVALIDATED && shadow.major < 18 {
            continue;
        }
        let whole = WHOLE.contains(&kind.as_str());
        match shadow.things.get(key) {
            // What it is part of is a difference already.
            None if !whole && !there(shadow, owner) && !needed(kind, owner) => {}
            // They come and change with the type's attributes.
            None if kind == "column" && typed(owner) => {}
            None if kind == "table" && published(source, owner) == Some("yes") => {
                let what = format!("table is published on {} without being on {}", zones[0], zones[1]);
                found.push(Difference::new(owner, what, Mend::Table(owner.clone())));
            }
            None if kind == "column"
                && let Some(other) = other_name(owner, shape) =>
            {
                let what = format!("column {name} added on {}, or it is {other} by another name", zones[0]);
                found.push(Difference::new(owner, what, Mend::Person(shape.sql.clone())));
            }
            None if kind == "enum value" => {
                let sql =
                    shape.sql.as_ref().map(|sql| sql.clone() + &enums::before(source, shadow, owner, name));
                found.push(added(source, key, &Shape { sql, ..shape.clone() }, zones[0]));
            }
            None => found.push(added(source, key, shape, zones[0])),
            Some(there) if wording::is_same(&shape.definition, &there.definition) => {}
            Some(there)
                if kind == "column"
                    && typed(owner)
                    && columns::kind(&shape.definition) != columns::kind(&there.definition) => {}
            Some(there)
                if worded::is_worded(key)
                    && !constraints::is_validated(&shape.definition, &there.definition)
                    && worded::is_alike([source, shadow], key, shape, there) => {}
            Some(there) => {
                let Some((mend, when)) = changed(source, key, shape, there, shadow.major) else { continue };
                let called = called(kind, name);
                let what = if kind == OPTIONS {
                    format!(
                        "{called} were changed on {}, and are each zone's own: told until those on {} are changed, too",
                        zones[0], zones[1]
                    )
                } else if LONG.contains(&kind.as_str()) {
                    format!("{called} is not the same on {} and on {}", zones[0], zones[1])
                } else {
                    let (here, there) = (&shape.definition, &there.definition);
                    format!("{called} is {here} on {} and {there} on {}", zones[0], zones[1])
                };
                let stops = !ASIDE.contains(&kind.as_str());
                let made = worded::of(key, shape);
                let place = order::place(source, key);
                found.push(Difference { when, stops, made, place, ..Difference::new(owner, what, mend) });
            }
        }
    }
    found.extend(order::differences(source, shadow, &touched, zones));
    let is_filled = |table: &String, column: &String| {
        let shape = source.things.get(&("column".to_owned(), table.clone(), column.clone()));
        shape.is_some_and(|shape| columns::is_filled(&shape.definition))
    };
    for (key, shape) in shadow.things.iter().filter(|(key, _)| !source.things.contains_key(*key)) {
        let (kind, owner, name) = key;
        // A partition that is gone may leave its rows to another, which is to take them here as well. Another's rows are its parent's no more.
        let apart = kind == "partition of" || kind == "child of" && has(shadow, "foreign table", owner);
        let part = !WHOLE.contains(&kind.as_str()) && !apart;
        if kind == "published"
            || part && !there(source, owner)
            || ours(kind, name)
            || told(key)
            || touched.contains(owner)
            // Its column says that.
            || kind == UNVALIDATED && is_filled(owner, name)
            || kind == "column" && typed(owner)
        {
            continue;
        }
        if HARMLESS.contains(&kind.as_str()) {
            let owned = || source.things.keys().any(|(of, _, it)| of == "its sequence" && it == owner);
            if worded::was_on_both(shadow, key)
                && (kind != "sequence" || !owned())
                && let Some(sql) = kinds::drop_harmless(key)
            {
                let what = format!("{} is only on {}", called(kind, name), zones[1]);
                let when = When::CaughtUp;
                found.push(Difference {
                    when,
                    stops: false,
                    ..Difference::new(owner, what, Mend::Drop(sql))
                });
            }
            continue;
        }
        let mend = match &shape.undo {
            Some(sql) => Mend::Add(sql.clone()),
            None => match drop_sql(key, shape) {
                // No row is lost by it, and what is made anew may be used by everybody.
                Some(sql)
                    if kind.starts_with(RIGHT)
                        || [UNVALIDATED, ROW_TYPE].contains(&kind.as_str())
                        || APART.contains(&kind.as_str()) =>
                {
                    Mend::Add(sql)
                }
                // New rows come without it.
                Some(_) if kind == "column" && columns::is_demanded(&shape.definition) => {
                    Mend::Add(nullable(owner, name))
                }
                Some(sql) => Mend::Drop(sql),
                None => Mend::Person(None),
            },
        };
        found.push(Difference {
            // Older changes may still be for it. What forbids something is better gone at once.
            when: When::caught_up(
                matches!(kind.as_str(), "table" | "column") && !columns::is_demanded(&shape.definition),
            ),
            stops: !ASIDE.contains(&kind.as_str()),
            ..Difference::new(owner, format!("{} is only on {}", called(kind, name), zones[1]), mend)
        });
    }
    found.sort_by(|a, b| (&a.subject, a.place, &a.what).cmp(&(&b.subject, b.place, &b.what)));
    found
}

/// Whether a table is one of a composite type, on both sides.
fn are_typed(sides: [&Fingerprint; 2], table: &str) -> bool {
    let key = (ROW_TYPE.to_owned(), table.to_owned(), String::new());
    sides.iter().all(|side| side.things.contains_key(&key))
}

fn published<'a>(side: &'a Fingerprint, table: &str) -> Option<&'a str> {
    let key = ("published".to_owned(), table.to_owned(), String::new());
    side.things.get(&key).map(|shape| shape.definition.as_str())
}

/// A table that is left alone: the clients of a server that publishes it could not update and delete its rows.
fn keyless(table: &str, there: bool, shape: &Shape, zone: &str) -> Difference {
    let how = if there { "table is on both sides, without a key on" } else { "table added on" };
    let what = format!(
        "{how} {zone}, and its changes are not published: nothing tells its rows apart, and updates and deletes would fail"
    );
    Difference::new(table, what, Mend::Identity(shape.sql.clone()))
}

fn unpublished(table: &str, zone: &str) -> Difference {
    let what = format!("table is on both sides, and its changes on {zone} are not published");
    Difference::new(table, what, Mend::Table(table.to_owned()))
}

fn called(kind: &str, name: &str) -> String {
    match (name, kind.strip_prefix(RIGHT)) {
        ("", _) => kind.to_owned(),
        (name, Some(_)) => format!("right {name}"),
        (name, None) => format!("{kind} {name}"),
    }
}

/// What is done where the values of a column cannot be told.
fn anew(source: &Fingerprint, table: &str) -> Mend {
    let plain = ("table".to_owned(), table.to_owned(), String::new());
    let plain = source.things.get(&plain).is_some_and(|shape| shape.definition == "plain");
    let part = APART.iter().any(|kind| {
        let first = ((*kind).to_owned(), table.to_owned(), String::new());
        let next = source.things.range(first..).next();
        next.is_some_and(|((of, owner, _), _)| of == kind && owner == table)
    });
    // What a column of a part is, another table says.
    if plain && !part { Mend::Anew(table.to_owned()) } else { Mend::Person(None) }
}

fn added(source: &Fingerprint, key @ (kind, owner, name): &Key, shape: &Shape, zone: &str) -> Difference {
    let mend = match &shape.sql {
        _ if kind == "table" => Mend::Table(owner.clone()),
        Some(sql) => Mend::Add(sql.clone()),
        None if kind == "column" => anew(source, owner),
        None => Mend::Person(None),
    };
    let strict = STRICT.contains(&kind.as_str())
        || shape.sql.as_deref().is_some_and(|sql| sql.starts_with("CREATE UNIQUE INDEX "));
    let stops = !ASIDE.contains(&kind.as_str());
    Difference {
        when: When::caught_up(strict),
        stops,
        made: worded::of(key, shape),
        place: order::place(source, key),
        ..Difference::new(owner, format!("{} added on {zone}", called(kind, name)), mend)
    }
}

/// What makes one of the other, and when; none: another difference does it. Where values would be others a person decides.
fn changed(
    source: &Fingerprint,
    key @ (kind, owner, name): &Key,
    wanted: &Shape,
    there: &Shape,
    major: u32,
) -> Option<(Mend, When)> {
    let ident = crate::postgres::quote_ident(name);
    match kind.as_str() {
        "column" => {
            let alter = |what: String| Mend::Add(format!("ALTER TABLE {owner} ALTER COLUMN {ident} {what}"));
            let [new, old] = [wanted, there].map(|shape| wording::canonical(&shape.definition));
            return match columns::step(&new, &old, major) {
                Step::Alter(what, when) => Some((alter(what), when)),
                Step::Sequence => None,
                Step::Computed => {
                    let sql = wanted.sql.as_ref().map(|sql| columns::made_anew(owner, name, sql));
                    Some((sql.map_or_else(|| anew(source, owner), Mend::Add), When::Now))
                }
                Step::Anew => Some((anew(source, owner), When::Now)),
            };
        }
        // Its rows there were of no stream; it is filled once it is published.
        "table" if (wanted.definition.as_str(), there.definition.as_str()) == ("plain", "plain unlogged") => {
            let sql = format!("DELETE FROM ONLY {owner}; ALTER TABLE {owner} SET LOGGED");
            return Some((Mend::Add(sql), When::Now));
        }
        "type" => return Some(types::step(owner, &wanted.definition, &there.definition)),
        "constraint" | "domain constraint"
            if constraints::is_validated(&wanted.definition, &there.definition) =>
        {
            let of = if kind == "constraint" { "TABLE" } else { "DOMAIN" };
            return Some((
                Mend::Add(format!("ALTER {of} {owner} VALIDATE CONSTRAINT {ident}")),
                When::CaughtUp,
            ));
        }
        "constraint" => {
            if let Some(when) = constraints::deferred(&wanted.definition, &there.definition) {
                let sql = format!("ALTER TABLE {owner} ALTER CONSTRAINT {ident} {when}");
                return Some((Mend::Add(sql), When::Now));
            }
        }
        "its sequence" => {
            let (new, old) =
                (wanted.definition.strip_prefix(IDENTITY), there.definition.strip_prefix(IDENTITY));
            return match (new, old) {
                (Some(counts), Some(_)) => {
                    Some((Mend::Add(format!("ALTER SEQUENCE {name} {counts}")), When::Now))
                }
                (None, None) => {
                    Some((Mend::Add(format!("ALTER SEQUENCE {name} {}", wanted.definition)), When::Now))
                }
                // The column's default, which uses it, goes first.
                (Some(_), None) => {
                    let sql = wanted.sql.as_deref().unwrap_or_default();
                    Some((Mend::Add(format!("DROP SEQUENCE IF EXISTS {name}; {sql}")), When::Now))
                }
                // It goes with the column's identity.
                (None, Some(_)) => None,
            };
        }
        kinds::DEFAULTS => {
            let steps: Vec<&str> =
                [there.undo.as_deref(), wanted.sql.as_deref()].into_iter().flatten().collect();
            return Some((Mend::Add(steps.join("; ")), When::Now));
        }
        of if of.starts_with(RIGHT) && there.definition.ends_with(" with grant option") => {
            // Who had it from there loses it on the source as well, or gets it of the owner.
            let option =
                drop_sql(key, there)?.replacen("REVOKE ", "REVOKE GRANT OPTION FOR ", 1) + " CASCADE";
            return Some((Mend::Add(option), When::Now));
        }
        _ => {}
    }
    Some((replaced(key, wanted), When::Now))
}

/// The same of what is made anew.
fn replaced(key @ (kind, owner, _): &Key, wanted: &Shape) -> Mend {
    let sql = wanted.sql.as_deref().unwrap_or_default();
    if let Some(rest) = sql.strip_prefix("CREATE MATERIALIZED VIEW ") {
        // Its rows are those of others, and refreshed before a move.
        return Mend::Drop(format!(
            "DROP MATERIALIZED VIEW IF EXISTS {owner}; CREATE MATERIALIZED VIEW {rest}"
        ));
    }
    if kind == "sequence" {
        return Mend::Add(format!("ALTER SEQUENCE {owner} {}", wanted.definition));
    }
    let replaced =
        REPLACED.contains(&kind.as_str()) || ASIDE.contains(&kind.as_str()) || kind.starts_with(RIGHT);
    if !sql.is_empty() && (replaced || sql.starts_with("CREATE OR REPLACE ")) {
        return Mend::Add(sql.to_owned());
    }
    // What is gone can be made anew.
    match drop_sql(key, wanted) {
        Some(drop) if !sql.is_empty() && MADE_ANEW.contains(&kind.as_str()) => Mend::Drop(drop),
        _ => Mend::Person(None),
    }
}

fn nullable(table: &str, column: &str) -> String {
    format!("ALTER TABLE {table} ALTER COLUMN {} DROP NOT NULL", crate::postgres::quote_ident(column))
}

/// What a right is, and the role that has it: `SELECT (id) to app`.
fn whose(right: &str) -> Option<(&str, &str)> {
    let at = outside(right, " to ")?;
    Some((&right[..at], &right[at + " to ".len()..]))
}

/// Takes away a right that this gives: what it is on may be called otherwise there than where it is compared.
fn revoked((kind, owner, name): &Key, given: Option<&str>) -> Option<String> {
    let (what, role) = whose(name)?;
    let on = || {
        let given = given?.strip_prefix("GRANT ")?.strip_prefix(what)?;
        let given = given.strip_suffix(" WITH GRANT OPTION").unwrap_or(given);
        Some(given.strip_suffix(role)?.strip_suffix(" TO ")?.to_owned())
    };
    let on = on().unwrap_or_else(|| format!(" ON {} {owner}", kind[RIGHT.len()..].to_uppercase()));
    Some(format!("REVOKE {what}{on} FROM {role}"))
}

/// SQL that takes away what has this definition.
fn drop_sql(key @ (kind, owner, name): &Key, shape: &Shape) -> Option<String> {
    if kind.starts_with(RIGHT) {
        return revoked(key, shape.sql.as_deref());
    }
    match kind.as_str() {
        "partition of" => return Some(format!("ALTER TABLE {name} DETACH PARTITION {owner}")),
        "child of" => return Some(format!("ALTER TABLE {owner} NO INHERIT {name}")),
        UNVALIDATED => return Some(nullable(owner, name)),
        ROW_TYPE => return Some(format!("ALTER TABLE {owner} NOT OF")),
        _ => {}
    }
    let name = crate::postgres::quote_ident(name);
    match kind.as_str() {
        "trigger" | "rule" | "policy" => Some(format!("DROP {} {name} ON {owner}", kind.to_uppercase())),
        "row security" => {
            Some(format!("ALTER TABLE {owner} DISABLE ROW LEVEL SECURITY, NO FORCE ROW LEVEL SECURITY"))
        }
        "domain constraint" => Some(format!("ALTER DOMAIN {owner} DROP CONSTRAINT {name}")),
        // It may have gone with its parent's.
        "table" => Some(format!("DROP TABLE IF EXISTS {owner}")),
        "column" => Some(format!("ALTER TABLE {owner} DROP COLUMN IF EXISTS {name}")),
        "constraint" => Some(format!("ALTER TABLE {owner} DROP CONSTRAINT IF EXISTS {name}")),
        "index" => Some(format!("DROP INDEX IF EXISTS {}.{name}", identities::split(owner).0)),
        _ => None,
    }
}
