//! What only has another name: an index or a constraint need not be made anew for that.

use std::collections::{BTreeMap, HashSet};

use super::identities::split;
use super::{Difference, Fingerprint, Key, Mend};
use crate::postgres::quote_ident;

/// What is told by its definition, which does not say its name.
const TOLD: [&str; 5] = ["constraint", "index", "policy", "domain constraint", "its sequence"];

/// What stands on the source by one name and on the shadow by another, both being the only one of its table with that definition; and
/// the things that are told with that.
pub(super) fn renamed(
    source: &Fingerprint,
    shadow: &Fingerprint,
    zone: &str,
) -> (Vec<Difference>, HashSet<Key>) {
    let (here, there) = (only(source, shadow), only(shadow, source));
    let (mut found, mut told) = (Vec::new(), HashSet::new());
    for (what, ours) in here {
        let (Some(theirs), [new]) = (there.get(&what), &ours[..]) else { continue };
        let [old] = &theirs[..] else { continue };
        let (kind, owner, _) = what;
        let Some(sql) = sql(kind, owner, old, new) else { continue };
        found.push(Difference::new(
            owner,
            format!("{kind} {old} was renamed to {new} on {zone}"),
            Mend::Add(sql),
        ));
        told.extend([old, new].map(|name| (kind.to_owned(), owner.to_owned(), (*name).to_owned())));
    }
    (found, told)
}

/// Names of what one side has and the other has not, by kind, table or type, and definition.
fn only<'f>(
    side: &'f Fingerprint,
    other: &Fingerprint,
) -> BTreeMap<(&'f str, &'f str, &'f str), Vec<&'f str>> {
    let mut all: BTreeMap<_, Vec<&str>> = BTreeMap::new();
    for (key, shape) in &side.things {
        let (kind, owner, name) = key;
        if TOLD.contains(&kind.as_str()) && !other.things.contains_key(key) {
            let what = (kind.as_str(), owner.as_str(), shape.definition.as_str());
            all.entry(what).or_default().push(name);
        }
    }
    all
}

fn sql(kind: &str, owner: &str, old: &str, new: &str) -> Option<String> {
    let (from, to) = (quote_ident(old), quote_ident(new));
    Some(match kind {
        "constraint" => format!("ALTER TABLE {owner} RENAME CONSTRAINT {from} TO {to}"),
        "domain constraint" => format!("ALTER DOMAIN {owner} RENAME CONSTRAINT {from} TO {to}"),
        "policy" => format!("ALTER POLICY {from} ON {owner} RENAME TO {to}"),
        "index" => format!("ALTER INDEX {}.{from} RENAME TO {to}", split(owner).0),
        // Its name is qualified, and quoted already.
        _ => {
            let ((schema, _), (new_schema, name)) = (split(old), split(new));
            if schema != new_schema {
                return None;
            }
            format!("ALTER SEQUENCE {old} RENAME TO {name}")
        }
    })
}
