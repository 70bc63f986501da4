//! What one server words otherwise than another, mostly of another major version: which two wordings mean the same thing.
//!
//! Nothing tells that by itself. So what both servers said of a thing when the shadow got it is written down on both
//! (`godwit.worded`; of a copy, what the source said when it was dumped), and only who says something else since then has changed it.

use std::collections::HashMap;

use sha2::{Digest, Sha256};
use tokio_postgres::Client;

use super::kinds::{self, OPTIONS, WORDED};
use super::{Fingerprint, Key, Shape, is_prepared, wording};
use crate::error::Error;
use crate::fence::refused;

/// Where it is written down.
const TABLE: &str = "worded";

/// What both said of each, the source first, as digests, with the object that it was of; the shadow's is empty where that was only made.
pub(super) type Pairs = HashMap<Key, (String, String)>;

/// Whether servers word such a thing each its own way.
pub(super) fn is_worded((kind, ..): &Key) -> bool {
    WORDED.contains(&kind.as_str())
}

/// Whether it was seen on both: where the source has it no more, it is gone.
pub(super) fn was_on_both(shadow: &Fingerprint, key: &Key) -> bool {
    shadow.pairs.as_ref().is_some_and(|pairs| pairs.contains_key(key))
}

/// What is to be written down of a thing that is made like the source's.
pub(super) fn of(key: &Key, shape: &Shape) -> Option<(Key, String)> {
    is_worded(key).then(|| (key.clone(), digest(&shape.definition)))
}

/// What is written down of a definition.
fn digest(definition: &str) -> String {
    let whole = Sha256::digest(definition);
    format!("{:032x}", u128::from_be_bytes(std::array::from_fn(|at| whole[at])))
}

/// The same of a side's own, with which object it is ([`super::Fingerprint`]'s `objects`).
fn word(side: &Fingerprint, key: &Key, shape: &Shape) -> String {
    let digest = digest(&shape.definition);
    side.objects.get(key).map_or_else(|| digest.clone(), |object| format!("{digest} {object}"))
}

/// Whether this is the definition that was written down.
fn says(word: &str, shape: &Shape) -> bool {
    word.split(' ').next() == Some(&digest(&shape.definition))
}

/// Whether it is of the object that was written down, or none was.
fn is_of(word: &str, side: &Fingerprint, key: &Key) -> bool {
    word.split_once(' ').is_none_or(|(_, object)| side.objects.get(key).is_some_and(|other| other == object))
}

/// What the source said when its shadow was copied, of what was not seen on both since, as digests.
pub(super) async fn read_dumped(source: &Client) -> Result<HashMap<Key, String>, Error> {
    let pairs = read(source).await?.unwrap_or_default();
    Ok(pairs
        .into_iter()
        .filter(|(_, (there, _))| there.is_empty())
        .map(|(key, (_, here))| (key, here))
        .collect())
}

/// Writes down on the source what it says now, when a copy of it begins; of one that goes on, what it did not say before.
pub(super) async fn dumped(source: &Client, says: &Fingerprint, goes_on: bool) -> Result<(), Error> {
    let Some(mut known) = read(source).await? else { return Ok(()) };
    if !goes_on {
        let stale = "DELETE FROM godwit.worded";
        source.batch_execute(stale).await.map_err(refused("write down what is copied"))?;
        known.clear();
    }
    let new = says.things.iter().filter(|(key, _)| is_worded(key) && !known.contains_key(*key));
    let new: Vec<_> =
        new.map(|(key, shape)| (key.clone(), String::new(), digest(&shape.definition))).collect();
    write(source, &new, &[]).await
}

/// Reads what is known; none where the shadow was not prepared yet.
pub(super) async fn read(shadow: &Client) -> Result<Option<Pairs>, Error> {
    let context = "read which definitions mean the same";
    if !is_prepared(shadow, TABLE).await? {
        return Ok(None);
    }
    let all = "SELECT kind, owner, name, source, target FROM godwit.worded";
    let found = shadow.query(all, &[]).await.map_err(refused(context))?;
    let pair = |row: &tokio_postgres::Row| ((row.get(0), row.get(1), row.get(2)), (row.get(3), row.get(4)));
    Ok(Some(found.iter().map(pair).collect()))
}

/// Whether these two mean the same, as far as is known.
pub(super) fn is_alike([source, shadow]: [&Fingerprint; 2], key: &Key, here: &Shape, there: &Shape) -> bool {
    let of_zone = key.0 == OPTIONS;
    let Some((of_source, of_shadow)) = shadow.pairs.as_ref().and_then(|pairs| pairs.get(key)) else {
        let copied = source.dumped.get(key).map(|copied| *copied == digest(&here.definition));
        // Of one major version they say the same of what nobody copied or made.
        return copied.unwrap_or(of_zone || source.major != shadow.major);
    };
    match (says(of_source, here), says(of_shadow, there)) {
        (true, same) => same || of_zone || of_shadow.is_empty(),
        // The shadow's was changed after it.
        (false, false) if of_zone => true,
        // Where both say something else of what they had, what it speaks of has another name. Of one major version they say that alike.
        (false, false) => {
            source.major != shadow.major
                && !of_shadow.is_empty()
                && is_of(of_source, source, key)
                && is_of(of_shadow, shadow, key)
        }
        (false, true) => false,
    }
}

/// What is to be written down of these two, each side's own word; none: it is. And what is gone.
fn news(source: &Fingerprint, shadow: &Fingerprint) -> (Vec<(Key, String, String)>, Vec<Key>) {
    let Some(pairs) = &shadow.pairs else { return (Vec::new(), Vec::new()) };
    let both = |key: &Key| Some((source.things.get(key)?, shadow.things.get(key)?));
    // What is only on the shadow yet is known to have been on both.
    let gone = pairs.keys().filter(|key| !shadow.things.contains_key(*key)).cloned().collect();
    let mut new = Vec::new();
    for key in source.things.keys().filter(|key| is_worded(key) || kinds::drop_harmless(key).is_some()) {
        let Some((here, there)) = both(key) else { continue };
        let alike = wording::is_same(&here.definition, &there.definition)
            || is_worded(key) && is_alike([source, shadow], key, here, there);
        if !alike {
            continue;
        }
        let pair = (word(source, key, here), word(shadow, key, there));
        if pairs.get(key) != Some(&pair) {
            new.push((key.clone(), pair.0, pair.1));
        }
    }
    (new, gone)
}

/// Writes down what means the same, on the shadow, and for the way back on the source.
pub(super) async fn remember(
    [source, shadow]: [&Client; 2],
    [of_source, of_shadow]: [&Fingerprint; 2],
) -> Result<(), Error> {
    let (new, gone) = news(of_source, of_shadow);
    if new.is_empty() && gone.is_empty() {
        return Ok(());
    }
    let back: Vec<_> =
        new.iter().map(|(key, here, there)| (key.clone(), there.clone(), here.clone())).collect();
    write(source, &back, &gone).await?;
    write(shadow, &new, &gone).await
}

/// Writes down of which definition the shadow's was made.
pub(super) async fn made(shadow: &Client, key: &Key, source: &str) -> Result<(), Error> {
    write(shadow, &[(key.clone(), source.to_owned(), String::new())], &[]).await
}

async fn write(client: &Client, new: &[(Key, String, String)], gone: &[Key]) -> Result<(), Error> {
    let context = "write down which definitions mean the same";
    let columns = |keys: &mut dyn Iterator<Item = &Key>| {
        let (mut kinds, mut owners, mut names) = (Vec::new(), Vec::new(), Vec::new());
        for (kind, owner, name) in keys {
            kinds.push(kind.clone());
            owners.push(owner.clone());
            names.push(name.clone());
        }
        (kinds, owners, names)
    };
    if !gone.is_empty() {
        let (kinds, owners, names) = columns(&mut gone.iter());
        let sql = "DELETE FROM godwit.worded w USING unnest($1::text[], $2::text[], $3::text[]) AS gone(kind, owner, name) \
            WHERE (w.kind, w.owner, w.name) = (gone.kind, gone.owner, gone.name)";
        client.execute(sql, &[&kinds, &owners, &names]).await.map_err(refused(context))?;
    }
    if !new.is_empty() {
        let (kinds, owners, names) = columns(&mut new.iter().map(|(key, ..)| key));
        let sources: Vec<&str> = new.iter().map(|(_, source, _)| source.as_str()).collect();
        let targets: Vec<&str> = new.iter().map(|(.., target)| target.as_str()).collect();
        let sql = "INSERT INTO godwit.worded (kind, owner, name, source, target) \
            SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[]) \
            ON CONFLICT (kind, owner, name) DO UPDATE SET source = EXCLUDED.source, target = EXCLUDED.target";
        client
            .execute(sql, &[&kinds, &owners, &names, &sources, &targets])
            .await
            .map_err(refused(context))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drift::Mend;

    fn side(major: u32, definitions: &[(&str, &str)]) -> Fingerprint {
        let thing = |(name, definition): &(&str, &str)| {
            let shape = Shape { definition: (*definition).into(), sql: None, undo: None };
            (("query".into(), (*name).into(), String::new()), shape)
        };
        Fingerprint { things: definitions.iter().map(thing).collect(), major, ..Fingerprint::default() }
    }

    #[test]
    fn only_who_says_something_else_has_changed_it() {
        let source = side(15, &[("a", "SELECT t.x"), ("b", "SELECT t.y")]);
        let mut shadow = side(18, &[("a", "SELECT x"), ("b", "SELECT y")]);
        assert_eq!(news(&source, &shadow), (vec![], vec![]), "it was not prepared");
        shadow.pairs = Some(Pairs::new());
        let (new, gone) = news(&source, &shadow);
        assert_eq!((new.len(), gone.len()), (2, 0));
        let pairs: Pairs = new.into_iter().map(|(key, here, there)| (key, (here, there))).collect();
        shadow.pairs = Some(pairs.clone());
        assert_eq!(news(&source, &shadow), (vec![], vec![]));

        let told_by = |major, source: &[(&str, &str)], there: &[(&str, &str)], pairs: &Pairs| {
            let (source, shadow) =
                (side(major, source), Fingerprint { pairs: Some(pairs.clone()), ..side(18, there) });
            let alike = source
                .things
                .iter()
                .all(|(key, here)| is_alike([&source, &shadow], key, here, &shadow.things[key]));
            let (new, gone) = news(&source, &shadow);
            (alike, new.len(), gone.len())
        };
        let told = |source: &[(&str, &str)], there: &[(&str, &str)], pairs: &Pairs| {
            told_by(15, source, there, pairs)
        };
        let a = ("a", "SELECT t.x");
        let there = [("a", "SELECT x"), ("b", "SELECT y")];
        assert_eq!(told(&[a, ("b", "SELECT t.z")], &there, &pairs), (false, 0, 0), "changed on the source");
        assert_eq!(
            told(&[a, ("b", "SELECT t.y")], &[there[0], ("b", "SELECT z")], &pairs),
            (false, 0, 0),
            "on the shadow"
        );
        assert_eq!(
            told(&[a, ("b", "SELECT t.z")], &[there[0], ("b", "SELECT z")], &pairs),
            (true, 1, 0),
            "by a name"
        );
        assert_eq!(
            told_by(18, &[a, ("b", "SELECT t.z")], &[there[0], ("b", "SELECT z")], &pairs),
            (false, 0, 0),
            "one version words a name alike"
        );
        assert_eq!(told(&[a], &there[..1], &pairs), (true, 0, 1), "one is gone");
        // Made of what the source said then: what the shadow says of it is believed while the source says the same.
        let mut made = pairs;
        made.insert(("query".into(), "b".into(), String::new()), (digest("SELECT t.z"), String::new()));
        assert_eq!(told(&[a, ("b", "SELECT t.z")], &there, &made), (true, 1, 0));
        assert_eq!(told(&[a, ("b", "SELECT t.w")], &there, &made), (false, 0, 0));
        // Not seen on both yet, and changed since it was dumped.
        let copied = |of: &str| {
            let dumped = [(("query".into(), "b".into(), String::new()), digest(of))].into();
            let source = Fingerprint { dumped, ..side(15, &[("b", "SELECT t.y")]) };
            let shadow = Fingerprint { pairs: Some(Pairs::new()), ..side(18, &there) };
            news(&source, &shadow).0.len()
        };
        assert_eq!((copied("SELECT t.y"), copied("SELECT t.v")), (1, 0));
    }

    #[test]
    fn a_zone_has_its_own_servers_until_the_source_has_others() {
        let key = (OPTIONS.to_owned(), "afar".to_owned(), String::new());
        let of = |host: &str| {
            let shape = Shape { definition: host.into(), sql: None, undo: None };
            Fingerprint { things: [(key.clone(), shape)].into(), major: 18, ..Fingerprint::default() }
        };
        let prepared = |host: &str, pairs: &Pairs| Fingerprint { pairs: Some(pairs.clone()), ..of(host) };
        let alike = |source: &Fingerprint, shadow: &Fingerprint| {
            is_alike([source, shadow], &key, &source.things[&key], &shadow.things[&key])
        };
        let none = Pairs::new();
        assert!(alike(&of("near"), &prepared("far", &none)), "as an older Godwit left them");
        let dumped = [(key.clone(), digest("old"))].into();
        let since = Fingerprint { dumped, ..of("near") };
        assert!(!alike(&since, &prepared("far", &none)), "changed since it was copied");
        let (new, _) = news(&of("near"), &prepared("near", &none));
        let pairs: Pairs = new.into_iter().map(|(key, here, there)| (key, (here, there))).collect();
        assert!(alike(&of("near"), &prepared("far", &pairs)), "the shadow's own");
        assert!(!alike(&of("nearer"), &prepared("near", &pairs)), "changed on the source");
        assert!(alike(&of("nearer"), &prepared("farther", &pairs)), "and then on the shadow");
        // A person may have changed the shadow's first, or want it as it is.
        let told = crate::drift::compare(&of("nearer"), &prepared("near", &pairs), ["one", "other"]);
        let [told] = told.as_slice() else { panic!("{told:#?}") };
        assert!(!told.stops && told.mend == Mend::Person(None), "{told:#?}");
        assert!(told.what.ends_with("told until those on other are changed, too"), "{}", told.what);
    }

    #[test]
    fn what_was_made_anew_is_not_the_same_by_another_name() {
        let key = ("query".to_owned(), "a".to_owned(), String::new());
        let of = |major, definition: &str, object: &str| {
            let objects = [(key.clone(), object.to_owned())].into();
            Fingerprint { objects, ..side(major, &[("a", definition)]) }
        };
        let prepared = |shadow: Fingerprint, pairs: Pairs| Fingerprint { pairs: Some(pairs), ..shadow };
        let first = prepared(of(18, "x", "9"), Pairs::new());
        let (new, _) = news(&of(15, "t.x", "1/5"), &first);
        let pairs: Pairs = new.into_iter().map(|(key, here, there)| (key, (here, there))).collect();
        let alike = |source: &Fingerprint, shadow: Fingerprint| {
            let shadow = prepared(shadow, pairs.clone());
            is_alike([source, &shadow], &key, &source.things[&key], &shadow.things[&key])
        };
        assert!(alike(&of(15, "t.y", "1/5"), of(18, "y", "9")), "a name changed");
        assert!(!alike(&of(15, "t.y > 1", "1/6"), of(18, "y", "9")), "changed on the source, and a name");
        assert!(!alike(&of(15, "t.y", "1/5"), of(18, "y > 1", "8")), "on the shadow");
        assert!(alike(&of(15, "t.x", "1/6"), of(18, "x", "8")), "made anew as it was");
        // What an older Godwit wrote down tells no objects.
        let old: Pairs = pairs
            .iter()
            .map(|(key, (here, there))| {
                let bare = |word: &str| word.split(' ').next().unwrap_or_default().to_owned();
                (key.clone(), (bare(here), bare(there)))
            })
            .collect();
        let (source, shadow) = (of(15, "t.x", "1/5"), prepared(of(18, "x", "9"), old));
        assert_eq!(news(&source, &shadow).0.len(), 1, "they are written down");
    }
}
