//! What makes a domain or a composite type of the shadow's like its source's, a step at a time.

use tokio_postgres::Client;

use super::columns::{self, Step};
use super::{Mend, When};
use crate::error::Error;
use crate::fence::refused;
use crate::schema::statements::{listed, outside};

/// What a domain's definition begins with, as `around.sql` words it; the rest is like a column's.
const DOMAIN: &str = "domain over ";

/// The same of a range's.
const RANGE: &str = "range of ";

/// Tables with columns of these types, or of what is made of them, each with the name of that type. What else has such a name is of none.
const TABLES_OF: &str = "\
WITH RECURSIVE of(part, oid) AS MATERIALIZED ( \
  SELECT typelem, oid FROM pg_catalog.pg_type WHERE typelem <> 0 \
  UNION ALL SELECT typbasetype, oid FROM pg_catalog.pg_type WHERE typbasetype <> 0 \
  UNION ALL SELECT a.atttypid, c.reltype FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_class c ON c.oid = a.attrelid \
    WHERE a.attnum > 0 AND NOT a.attisdropped AND c.reltype <> 0 \
  UNION ALL SELECT rngsubtype, unnest(ARRAY[rngtypid, rngmultitypid]) FROM pg_catalog.pg_range), \
made AS ( \
  SELECT y.oid, name FROM unnest($1::text[]) name \
  JOIN (pg_catalog.pg_type y JOIN pg_catalog.pg_namespace n ON n.oid = y.typnamespace) ON format('%I.%I', n.nspname, y.typname) = name \
  UNION SELECT o.oid, m.name FROM made m JOIN of o ON o.part = m.oid) \
SELECT DISTINCT ON (c.oid) format('%I.%I', n.nspname, c.relname), m.name \
FROM made m JOIN pg_catalog.pg_attribute a ON a.atttypid = m.oid AND a.attnum > 0 AND NOT a.attisdropped \
JOIN pg_catalog.pg_class c ON c.oid = a.attrelid AND c.relkind = 'r' JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace ORDER BY c.oid, m.name";

/// Which tables have columns of these types (each as `schema.type`), or of what is made of them: each with one such type.
pub async fn tables_of(client: &Client, types: &[&str]) -> Result<Vec<(String, String)>, Error> {
    if types.is_empty() {
        return Ok(Vec::new());
    }
    let found = client.query(TABLES_OF, &[&types]).await.map_err(refused("look for columns of a type"))?;
    Ok(found.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// The types that one of this definition is made of: what a domain is over, a range's bounds, a composite type's attributes.
pub(super) fn parts(definition: &str) -> Vec<&str> {
    match definition.strip_prefix(DOMAIN).or_else(|| definition.strip_prefix(RANGE)) {
        Some(of) => vec![of],
        None => attributes(definition).into_iter().flatten().map(|(_, kind)| kind).collect(),
    }
}

/// Attributes of a composite type, each with its name and its type.
fn attributes(definition: &str) -> Option<Vec<(&str, &str)>> {
    let (all, _) = listed(definition.strip_prefix('(')?)?;
    all.into_iter().map(named).collect()
}

/// Name and type.
fn named(attribute: &str) -> Option<(&str, &str)> {
    let space = outside(attribute, " ")?;
    Some((&attribute[..space], &attribute[space + 1..]))
}

/// What makes the type `wanted` of the one that is `there`, the first step of it; and when.
pub(super) fn step(name: &str, wanted: &str, there: &str) -> (Mend, When) {
    let person = (Mend::Person(None), When::Now);
    if let (Some(new), Some(old)) = (wanted.strip_prefix(DOMAIN), there.strip_prefix(DOMAIN)) {
        return match columns::domain_step(new, old) {
            Step::Alter(what, when) => (Mend::Add(format!("ALTER DOMAIN {name} {what}")), when),
            _ => person,
        };
    }
    let (Some(new), Some(old)) = (attributes(wanted), attributes(there)) else { return person };
    // Also in tables of the type. Values are told by place: where as many came as went, those of either kind look like the other's.
    if let Some((attribute, kind)) = new.strip_prefix(&old[..]).and_then(<[_]>::first) {
        return (Mend::Add(format!("ALTER TYPE {name} ADD ATTRIBUTE {attribute} {kind} CASCADE")), When::Now);
    }
    let gone = old.iter().position(|attribute| !new.contains(attribute));
    let kept: Vec<_> = old.iter().filter(|attribute| new.contains(attribute)).collect();
    match gone {
        Some(at) if kept.iter().copied().eq(&new) => {
            (Mend::Drop(format!("ALTER TYPE {name} DROP ATTRIBUTE {} CASCADE", old[at].0)), When::Needed)
        }
        _ => person,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_type_is_made_of_is_told() {
        for (definition, made_of) in [
            ("domain over s.e[] NOT NULL", vec!["s.e[] NOT NULL"]),
            ("range of s.e", vec!["s.e"]),
            ("(\"a, b\" s.e, c numeric(10,2))", vec!["s.e", "numeric(10,2)"]),
            ("enum", vec![]),
        ] {
            assert_eq!(parts(definition), made_of, "{definition}");
        }
    }

    #[test]
    fn a_type_is_brought_up_step_by_step() {
        for (wanted, there, sql) in [
            ("domain over text NOT NULL", "domain over text", "t SET NOT NULL, caught up"),
            ("domain over text", "domain over text NOT NULL", "t DROP NOT NULL"),
            ("domain over text DEFAULT 'a' NOT NULL", "domain over text", "t SET DEFAULT 'a', caught up"),
            ("domain over text", "domain over text DEFAULT 'a'", "t DROP DEFAULT, caught up"),
            ("domain over integer", "domain over text", "-"),
            ("domain over text COLLATE public.folded", "domain over text", "-"),
            (
                "domain over text COLLATE public.folded",
                "domain over text COLLATE public.folded DEFAULT 'a'",
                "t DROP DEFAULT, caught up",
            ),
            (
                "(a text, b text COLLATE public.folded)",
                "(a text)",
                "t ADD ATTRIBUTE b text COLLATE public.folded CASCADE",
            ),
            ("(a text, b numeric(10,2))", "(a text)", "t ADD ATTRIBUTE b numeric(10,2) CASCADE"),
            ("(a text, \"b, c\" text)", "(a text)", "t ADD ATTRIBUTE \"b, c\" text CASCADE"),
            ("(a text, c text)", "(a text, b text)", "-"),
            ("(b text, a text)", "(a text, b text)", "-"),
            ("(a integer)", "(a text)", "-"),
            ("(b text)", "(a integer, b text)", "t DROP ATTRIBUTE a CASCADE, caught up"),
            ("(c text)", "(a integer, b text)", "-"),
            ("(a text, c text, b text)", "(a text, b text)", "-"),
            ("range of integer", "range of bigint", "-"),
        ] {
            let (mend, when) = step("t", wanted, there);
            let found = match mend {
                Mend::Add(sql) | Mend::Drop(sql) => {
                    let sql =
                        sql.strip_prefix("ALTER DOMAIN ").or(sql.strip_prefix("ALTER TYPE ")).unwrap_or("?");
                    format!("{sql}{}", if when == When::Now { "" } else { ", caught up" })
                }
                _ => "-".into(),
            };
            assert_eq!(found, sql, "{there} to {wanted}");
        }
    }
}
