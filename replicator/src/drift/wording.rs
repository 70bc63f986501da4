//! One server's wording of an expression that it words otherwise once it has read it back. Pure.
//!
//! A list that a `varchar` is compared with (`status IN ('new', 'paid')`) is kept as an array of it whose elements are cast together,
//! `(ARRAY['new'::character varying, 'paid'::character varying])::text[]`. Read back, by a dump or by what this program makes, the parser casts
//! each element instead (`transformArrayExpr` of PostgreSQL's `parse_expr.c`): `ARRAY[('new'::character varying)::text, …]`. Both are the same.

use std::borrow::Cow;

use crate::schema::statements::{in_word, quoted};

/// Whether two definitions are the same, each as a server of ours words it.
pub(super) fn is_same(one: &str, other: &str) -> bool {
    one == other || canonical(one) == canonical(other)
}

/// The definition as a server words it that has read it back.
pub(super) fn canonical(definition: &str) -> Cow<'_, str> {
    if !definition.contains("ARRAY[") || !definition.contains("[]") {
        return definition.into();
    }
    let mut text = String::with_capacity(definition.len());
    let mut rest = definition;
    while let Some(first) = rest.chars().next() {
        let length = match first {
            // Servers double a backslash as well.
            '\'' | '"' => quoted(rest.as_bytes(), rest.as_bytes()[0], false),
            'A' if rest.starts_with(ARRAY) && !in_word(text.as_bytes(), text.len()) => {
                match cast(rest, text.ends_with('(')) {
                    Some((array, length, enclosed)) => {
                        if enclosed {
                            text.pop();
                        }
                        text.push_str(&array);
                        rest = &rest[length..];
                        continue;
                    }
                    None => ARRAY.len(),
                }
            }
            other => other.len_utf8(),
        };
        text.push_str(&rest[..length]);
        rest = &rest[length..];
    }
    text.into()
}

const ARRAY: &str = "ARRAY[";

/// An array that is cast as a whole, with its elements cast one by one; how much of the text that is, and whether a bracket was opened
/// before it. None: it is not cast.
fn cast(text: &str, open: bool) -> Option<(String, usize, bool)> {
    let inner = &text[ARRAY.len()..];
    let (elements, length) = elements(inner)?;
    let after = &inner[length..];
    let (kind, enclosed) = match after.strip_prefix(")::") {
        Some(kind) if open => (kind, true),
        _ => (after.strip_prefix("::")?, false),
    };
    let (name, _) = kind.split_once("[]")?;
    let of_a_name = |c: char| c.is_alphanumeric() || "_ .(),\"".contains(c);
    if name.is_empty() || !name.chars().all(of_a_name) {
        return None;
    }
    let cast = |element: &&str| {
        let element = canonical(element);
        if enclosed { format!("({element})::{name}") } else { format!("{element}::{name}") }
    };
    let all: Vec<String> = elements.iter().map(cast).collect();
    let end = text.len() - kind.len() + name.len() + "[]".len();
    Some((format!("{ARRAY}{}]", all.join(", ")), end, enclosed))
}

/// The elements up to the bracket that closes their list, and how much of the text that is with it.
fn elements(text: &str) -> Option<(Vec<&str>, usize)> {
    let (mut all, mut start, mut at, mut depth) = (Vec::new(), 0, 0, 0usize);
    while let Some(first) = text[at..].chars().next() {
        let length = match first {
            '\'' | '"' => quoted(&text.as_bytes()[at..], text.as_bytes()[at], false),
            other => other.len_utf8(),
        };
        match first {
            '(' | '[' => depth += 1,
            ']' if depth == 0 => {
                all.push(&text[start..at]);
                return Some((all, at + length));
            }
            ')' | ']' => depth = depth.checked_sub(1)?,
            ',' if depth == 0 => {
                all.push(&text[start..at]);
                start = at + text[at..].strip_prefix(", ").map_or(1, |_| 2);
            }
            _ => {}
        }
        at += length;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As PostgreSQL 15 and 18 say them, of what was written and of what was made by the first.
    #[test]
    fn what_is_read_back_is_the_same() {
        for (written, read) in [
            (
                "CHECK (((s)::text = ANY ((ARRAY['a'::character varying, 'b]'::character varying])::text[])))",
                "CHECK (((s)::text = ANY (ARRAY[('a'::character varying)::text, ('b]'::character varying)::text])))",
            ),
            (
                "ON id, (s::text = ANY (ARRAY['a'::character varying, 'it''s, it'::character varying]::text[])) FROM chk",
                "ON id, (s::text = ANY (ARRAY['a'::character varying::text, 'it''s, it'::character varying::text])) FROM chk",
            ),
            (
                "((s)::text <> ALL ((ARRAY[n, 'x'::character varying])::text[]))",
                "((s)::text <> ALL (ARRAY[(n)::text, ('x'::character varying)::text]))",
            ),
            (
                "((\"ARRAY[\")::text = ANY ((ARRAY[lower('ARRAY['::text)])::character varying(3)[]))",
                "((\"ARRAY[\")::text = ANY (ARRAY[(lower('ARRAY['::text))::character varying(3)]))",
            ),
        ] {
            assert!(is_same(written, read), "{written}: {}", canonical(written));
            assert_eq!(canonical(read), read);
        }
    }

    #[test]
    fn what_means_something_else_is_not() {
        let list = |what: &str| format!("(s)::text = ANY ((ARRAY[{what}])::text[])");
        let one = list("'a'::character varying, 'b'::character varying");
        for other in [
            list("'a'::character varying"),
            list("'a'::character varying, 'c'::character varying"),
            one.replace("::text[]", "::bpchar[]"),
        ] {
            assert!(!is_same(&one, &other), "{other}");
        }
        for text in [
            "ARRAY[1, 2",
            "x = ARRAY[1, 2]",
            "MYARRAY['a']::text[]",
            "'ARRAY[1]::text[]",
            "f(a[1], '[]') ARRAY[)]::x[]",
        ] {
            assert_eq!(canonical(text), text);
        }
    }
}
