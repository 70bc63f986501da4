//! What makes a column of the shadow's like its source's, a step at a time.

use super::When;
use crate::postgres::quote_ident;
use crate::schema::statements::outside;

/// What a column has where nothing is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Value<'d> {
    Nothing,
    Default(&'d str),
    /// `ALWAYS` or `BY DEFAULT`.
    Identity(&'d str),
    /// The expression; whether it is computed when it is read.
    Generated(&'d str, bool),
}

/// A column's definition, as `fingerprint.sql` words it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Parts<'d> {
    /// Its type, with its collation.
    kind: &'d str,
    value: Value<'d>,
    /// `NOT NULL`.
    filled: bool,
}

impl<'d> Parts<'d> {
    fn of(definition: &'d str) -> Self {
        let (rest, filled) =
            definition.strip_suffix(" NOT NULL").map_or((definition, false), |rest| (rest, true));
        // The name of a type may have these words as well.
        let at = |words: &str| outside(rest, words).unwrap_or(usize::MAX);
        let (default, generated) = (at(" DEFAULT "), at(" GENERATED "));
        let (kind, value) = rest.split_at(default.min(generated).min(rest.len()));
        Self { kind, value: Value::of(value), filled }
    }
}

impl<'d> Value<'d> {
    fn of(text: &'d str) -> Self {
        if let Some(value) = text.strip_prefix(" DEFAULT ") {
            return Self::Default(value);
        }
        let Some(rest) = text.strip_prefix(" GENERATED ") else { return Self::Nothing };
        if let Some(when) = rest.strip_suffix(" AS IDENTITY") {
            return Self::Identity(when);
        }
        let rest = rest.strip_prefix("ALWAYS AS ").unwrap_or(rest);
        match rest.strip_suffix(" VIRTUAL") {
            Some(expression) => Self::Generated(expression, true),
            None => Self::Generated(rest.strip_suffix(" STORED").unwrap_or(rest), false),
        }
    }
}

/// One step towards a column of the source's.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// `ALTER COLUMN` with this does it.
    Alter(String, When),
    /// What makes its sequence makes it so.
    Sequence,
    /// It is computed of the others, and made anew.
    Computed,
    /// Its values would be others.
    Anew,
}

/// What makes a column `wanted` of the one that is `there`, on a server of this major version: the first step of it.
pub(super) fn step(wanted: &str, there: &str, major: u32) -> Step {
    let (new, old) = (Parts::of(wanted), Parts::of(there));
    let alter = |what: String| Step::Alter(what, When::Now);
    match (new.value, old.value) {
        (Value::Generated(wanted, late), Value::Generated(there, late_there)) => {
            if new.kind != old.kind || late != late_there {
                return Step::Computed;
            }
            if wanted != there {
                return if major < 17 {
                    Step::Computed
                } else {
                    alter(format!("SET EXPRESSION AS {wanted}"))
                };
            }
        }
        (Value::Generated(..), _) | (_, Value::Generated(_, true)) => return Step::Anew,
        // The stream brings its values from then on.
        (_, Value::Generated(_, false)) => return Step::Alter("DROP EXPRESSION".into(), When::Needed),
        _ => {}
    }
    if new.kind != old.kind {
        return if widens(new.kind, old.kind) { alter(format!("TYPE {}", new.kind)) } else { Step::Anew };
    }
    said(new, old)
}

/// The same of a domain, which is defined as a column is.
pub(super) fn domain_step(wanted: &str, there: &str) -> Step {
    let (new, old) = (Parts::of(wanted), Parts::of(there));
    if new.kind == old.kind { said(new, old) } else { Step::Anew }
}

/// Of two of one type, neither computed.
fn said(new: Parts<'_>, old: Parts<'_>) -> Step {
    let alter = |what: String| Step::Alter(what, When::Now);
    // Rows from before it was added have what it was added with, and the stream may have to bring some yet. What draws of a sequence was not added so,
    // and the sequence may have to go.
    let drawn = matches!(old.value, Value::Default(value) if value.contains("nextval("));
    let default = |what: String| Step::Alter(what, When::caught_up(!drawn));
    if new.value != old.value {
        match (new.value, old.value) {
            (Value::Identity(when), Value::Identity(_)) => {
                return alter(format!("SET GENERATED {when}"));
            }
            (_, Value::Identity(_)) => return alter("DROP IDENTITY".into()),
            (Value::Default(value), _) => return default(format!("SET DEFAULT {value}")),
            (Value::Identity(_), Value::Default(_)) => return alter("DROP DEFAULT".into()),
            (_, Value::Default(_)) => return default("DROP DEFAULT".into()),
            (Value::Identity(_), _) if old.filled => return Step::Sequence,
            _ => {}
        }
    }
    match (new.filled, old.filled) {
        (true, false) => Step::Alter("SET NOT NULL".into(), When::CaughtUp),
        (false, true) => alter("DROP NOT NULL".into()),
        _ => Step::Anew,
    }
}

/// Whether every value of the old type is one of the new, and written alike.
fn widens(new: &str, old: &str) -> bool {
    const INTEGERS: [&str; 3] = ["smallint", "integer", "bigint"];
    let place = |kind: &str| INTEGERS.iter().position(|integer| *integer == kind);
    let length = |kind: &str| -> Option<u32> {
        kind.strip_prefix("character varying(")?.strip_suffix(')')?.parse().ok()
    };
    let digits = |kind: &str| -> Option<(u32, i32)> {
        let (precision, scale) = kind.strip_prefix("numeric(")?.strip_suffix(')')?.split_once(',')?;
        Some((precision.parse().ok()?, scale.parse().ok()?))
    };
    match old {
        "character varying" => new == "text",
        _ if place(old).is_some() => place(new) > place(old),
        _ if length(old).is_some() => {
            ["text", "character varying"].contains(&new) || length(new) > length(old)
        }
        _ => digits(old).is_some_and(|(precision, scale)| {
            new == "numeric" || digits(new).is_some_and(|new| new.0 > precision && new.1 == scale)
        }),
    }
}

/// A column's type, where it is not generated.
pub(super) fn kind(definition: &str) -> Option<&str> {
    let parts = Parts::of(definition);
    matches!(parts.value, Value::Nothing | Value::Default(_)).then_some(parts.kind)
}

/// Drops a column that is computed of the others, and makes it by this SQL.
pub(super) fn made_anew(table: &str, column: &str, sql: &str) -> String {
    format!("ALTER TABLE {table} DROP COLUMN {}; {sql}", quote_ident(column))
}

/// Whether a column must be said.
pub(super) fn is_demanded(definition: &str) -> bool {
    matches!(Parts::of(definition), Parts { value: Value::Nothing, filled: true, .. })
}

/// Whether a column is `NOT NULL`.
pub(super) fn is_filled(definition: &str) -> bool {
    Parts::of(definition).filled
}

/// Whether a column has something where nothing is said, and no sequence of its own.
pub(super) fn has_default(definition: &str) -> bool {
    matches!(Parts::of(definition).value, Value::Default(_))
}

/// Whether a column is computed of the others.
pub(super) fn is_generated(definition: &str) -> bool {
    matches!(Parts::of(definition).value, Value::Generated(..))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_column_is_brought_up_step_by_step() {
        const IDENTITY: &str = "bigint GENERATED BY DEFAULT AS IDENTITY NOT NULL";
        for (wanted, there, sql) in [
            ("bigint NOT NULL", "integer NOT NULL", Some("TYPE bigint")),
            ("bigint DEFAULT '0'::bigint NOT NULL", "integer DEFAULT 0", Some("TYPE bigint")),
            ("integer", "bigint", None),
            ("numeric", "integer", None),
            ("text", "integer", None),
            ("text", "character varying(20)", Some("TYPE text")),
            ("text COLLATE public.x", "character varying(20)", None),
            (
                "character varying(30) DEFAULT 'a'",
                "character varying(20)",
                Some("TYPE character varying(30)"),
            ),
            ("character varying(10)", "character varying(20)", None),
            ("numeric(12,2)", "numeric(10,2)", Some("TYPE numeric(12,2)")),
            ("numeric(12,3)", "numeric(10,2)", None),
            ("numeric", "numeric(10,2)", Some("TYPE numeric")),
            ("text DEFAULT 'b' NOT NULL", "text DEFAULT 'a'", Some("SET DEFAULT 'b'")),
            ("text", "text DEFAULT 'a'", Some("DROP DEFAULT")),
            ("text NOT NULL", "text", Some("SET NOT NULL")),
            ("text", "text NOT NULL", Some("DROP NOT NULL")),
            (IDENTITY, "integer GENERATED BY DEFAULT AS IDENTITY NOT NULL", Some("TYPE bigint")),
            (IDENTITY, "bigint GENERATED ALWAYS AS IDENTITY NOT NULL", Some("SET GENERATED BY DEFAULT")),
            (IDENTITY, "bigint DEFAULT nextval('s') NOT NULL", Some("DROP DEFAULT")),
            ("bigint NOT NULL", "bigint DEFAULT nextval('s') NOT NULL", Some("DROP DEFAULT")),
            (IDENTITY, "bigint", Some("SET NOT NULL")),
            ("bigint NOT NULL", IDENTITY, Some("DROP IDENTITY")),
            ("bigint DEFAULT nextval('s') NOT NULL", IDENTITY, Some("DROP IDENTITY")),
            ("integer GENERATED ALWAYS AS (1) STORED", "integer", None),
            ("integer GENERATED ALWAYS AS (1) STORED", "integer GENERATED ALWAYS AS (1) VIRTUAL", None),
            (
                "integer GENERATED ALWAYS AS (2) STORED",
                "integer GENERATED ALWAYS AS (1) STORED NOT NULL",
                Some("SET EXPRESSION AS (2)"),
            ),
            (
                "integer GENERATED ALWAYS AS (2) STORED",
                "integer GENERATED ALWAYS AS (2) STORED NOT NULL",
                Some("DROP NOT NULL"),
            ),
            ("bigint DEFAULT 1", "integer GENERATED ALWAYS AS (2) STORED", Some("DROP EXPRESSION")),
            ("integer", "integer GENERATED ALWAYS AS (2) VIRTUAL", None),
        ] {
            let found = match step(wanted, there, 17) {
                Step::Alter(sql, when) => Some((sql, when)),
                Step::Anew | Step::Computed | Step::Sequence => None,
            };
            let when = match sql {
                Some("SET NOT NULL" | "SET DEFAULT 'b'") => When::CaughtUp,
                Some("DROP DEFAULT") if !there.contains("nextval(") => When::CaughtUp,
                Some("DROP EXPRESSION") => When::Needed,
                _ => When::Now,
            };
            assert_eq!(found, sql.map(|sql| (sql.to_owned(), when)), "{there} to {wanted}");
        }
        assert_eq!(step(IDENTITY, "bigint NOT NULL", 15), Step::Sequence);
        let text = |words: &str| format!("tsvector GENERATED ALWAYS AS ({words}) STORED");
        assert_eq!(step(&text("a DEFAULT b"), &text("c"), 16), Step::Computed, "it cannot be told to");
        assert!(
            is_generated(&text("a DEFAULT b")) && !is_demanded(&text("a")) && is_demanded("text NOT NULL")
        );
        assert_eq!(kind("text COLLATE public.x DEFAULT 'a GENERATED b'"), Some("text COLLATE public.x"));
        assert_eq!(kind(IDENTITY), None);
        let odd = |number: i32| format!("s.\"x DEFAULT {number}; DROP TABLE t;--\"");
        assert_eq!(step(&odd(2), &odd(1), 17), Step::Anew, "it is a type's name");
    }
}
