//! What is known of the kinds of things that schemas are compared by.

use super::{Key, identities};
use crate::postgres::quote_ident;
use crate::schema::statements::outside;

/// Things that stand for themselves; any other is part of the one that it names.
pub(super) const WHOLE: [&str; 18] = [
    "table",
    "view",
    "materialized view",
    "function",
    "sequence",
    "type",
    "schema",
    "extension",
    "collation",
    "text search dictionary",
    "text search configuration",
    "operator",
    "cast",
    "publication",
    "comment",
    "server",
    "foreign table",
    DEFAULTS,
];
/// What one major version words otherwise than another, with the same meaning.
pub(super) const WORDED: [&str; 12] = [
    "constraint",
    "index",
    "query",
    "body",
    "trigger",
    "rule",
    "policy",
    "statistics",
    "domain constraint",
    "row filter",
    "collation",
    OPTIONS,
];
/// What is too long to be told where it differs.
pub(super) const LONG: [&str; 11] = [
    "view",
    "materialized view",
    "query",
    "function",
    "body",
    "trigger",
    "rule",
    "policy",
    "table list",
    "row filter",
    "comment",
];
/// What does no harm where only the shadow has it; it stops no move, but would be in the way of what is made under its name later.
pub(super) const HARMLESS: [&str; 23] = [
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
    "collation",
    "text search dictionary",
    "text search configuration",
    "operator",
    "publication",
    "publication owner",
    "cast",
    // Goes with what it owns.
    "owner",
    "server",
    "foreign table",
    "user mapping",
    OPTIONS,
];
/// What the SQL that makes it also makes otherwise: nothing is lost by it.
pub(super) const REPLACED: [&str; 14] = [
    ROW_TYPE,
    "replica identity",
    "view",
    "query",
    "function",
    "body",
    "rule",
    "policy",
    "row security",
    "own state of trigger",
    "owner",
    "mapping",
    "view default",
    DEFAULTS,
];

/// What goes before it is made as it should be.
pub(super) const MADE_ANEW: [&str; 3] = ["constraint", "domain constraint", "index"];
/// What changes nothing that a service reads or writes, or is for each zone to say, and stops no move.
pub(super) const ASIDE: [&str; 13] = [
    "option",
    "column option",
    "statistics target",
    "storage",
    "compression",
    "cluster index",
    "publication",
    "option list",
    "table list",
    "row filter",
    "publication owner",
    "comment",
    OPTIONS,
];

/// What ties a table to another: it loses no row where it is taken from that.
pub(super) const APART: [&str; 2] = ["partition of", "child of"];
/// What rows from before it was added may not satisfy.
pub(super) const STRICT: [&str; 5] =
    ["constraint", "domain constraint", "partition of", "child of", UNVALIDATED];
/// `NOT NULL` of new rows only, named by its column; servers before 18 have none.
pub(super) const UNVALIDATED: &str = "unvalidated not null";
/// The composite type that a table is of: its columns come and go with the type's attributes.
pub(super) const ROW_TYPE: &str = "row type";
/// What others may do with what a role makes from now on.
pub(super) const DEFAULTS: &str = "default privileges";
/// Where and as what another server has it: each zone may have its own.
pub(super) const OPTIONS: &str = "foreign options";

/// SQL that takes away what does no harm; none of what is a part of something else, or may be an operator's own.
pub(super) fn drop_harmless((kind, owner, name): &Key) -> Option<String> {
    match kind.as_str() {
        "function" if owner.ends_with("(*)") || outside(owner, " ORDER BY ").is_some() => {
            Some(format!("DROP AGGREGATE {owner}"))
        }
        "function" => Some(format!("DROP ROUTINE {owner}")),
        "statistics" => Some(format!("DROP STATISTICS {}.{}", identities::split(owner).0, quote_ident(name))),
        "view"
        | "materialized view"
        | "sequence"
        | "type"
        | "schema"
        | "collation"
        | "text search dictionary"
        | "text search configuration"
        | "operator"
        | "cast"
        | "foreign table" => Some(format!("DROP {} {owner}", kind.to_uppercase())),
        _ => None,
    }
}
