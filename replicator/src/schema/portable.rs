//! Makes a dump loadable by whoever loads it: not a superuser, and not of the version that it is of. Pure.
//!
//! Whoever owns an object has a say in the text of a dump (comments, defaults, bodies): only what stands between its statements, and how those begin,
//! is believed.

use std::borrow::Cow;
use std::collections::HashSet;

use super::statements::{Piece, identifier, listed, outside, pieces, qualified};
use crate::postgres::{block, quote_literal};

/// Settings in a dump's head that are the loading session's own business; `transaction_timeout` is unknown before 17.
const FOREIGN_SETTINGS: [&str; 5] = [
    "statement_timeout",
    "lock_timeout",
    "idle_in_transaction_session_timeout",
    "idle_session_timeout",
    "transaction_timeout",
];

/// Takes out of a dump what only psql, only newer versions or only the source understands, and what only a superuser may, unless there are no `others`: what
/// belongs to `others` and rights on it (`preflight` has a superuser make it), their default privileges, rights on the server's own objects. Who granted a
/// right is not kept: its owner does.
pub(super) fn portable(dump: &str, others: Option<&[String]>) -> String {
    let (head, key, dump) = unrestricted(dump);
    let mut text = String::with_capacity(head.len() + dump.len());
    text.push_str(head);
    let mut entry = Entry::default();
    // Whoever is given something must be allowed to make it there: a dump, written for superusers, says what may be made where only at its end.
    let (mut early, mut place) = (String::new(), None);
    for Piece { before, sql, end } in pieces(dump) {
        if let Some(header) = header(before) {
            entry = Entry::of(header, others);
            if place.is_none() && !entry.schema && !entry.extension {
                place = Some(text.len());
            }
        }
        text.push_str(before);
        let setting = sql.strip_prefix("SET ").and_then(|rest| rest.split([' ', '=']).next());
        if setting.is_some_and(|name| FOREIGN_SETTINGS.contains(&name))
            || key.is_some() && sql.strip_prefix("\\unrestrict ") == key
            || own_trigger(sql)
            || entry.is_a_superusers(sql, others)
        {
            continue;
        }
        let Some(sql) = without_stamp(sql) else { continue };
        // An extension that only a superuser makes is there already, and so is its schema.
        let sql = match sql.strip_prefix("CREATE SCHEMA ") {
            Some(rest) => format!("CREATE SCHEMA IF NOT EXISTS {rest}").into(),
            None => sql,
        };
        let hoisted =
            entry.right && entry.schema && ["GRANT ", "REVOKE "].iter().any(|word| sql.starts_with(word));
        let to = if hoisted { &mut early } else { &mut text };
        to.push_str(&sql);
        to.push_str(end);
    }
    text.insert_str(place.unwrap_or(text.len()), &early);
    text
}

/// What is before psql's `\restrict`, its key, and what is behind it.
fn unrestricted(dump: &str) -> (&str, Option<&str>, &str) {
    let mut at = 0;
    for line in dump.split_inclusive('\n') {
        let content = line.trim_end();
        if let Some(key) = content.strip_prefix("\\restrict ") {
            return (&dump[..at], Some(key), &dump[at + line.len()..]);
        }
        if !content.is_empty() && !content.starts_with("--") {
            break;
        }
        at += line.len();
    }
    ("", None, dump)
}

/// What the last header in what is before a statement says, without `Name: `.
fn header(before: &str) -> Option<&str> {
    let (mut previous, mut found) = ("", None);
    for line in before.lines() {
        if let Some(header) = line.strip_prefix("-- Name: ").filter(|_| previous == "--") {
            found = Some(header);
        }
        previous = line;
    }
    found
}

/// What one entry of a dump is about, as the comment before it says.
#[derive(Clone, Copy, Default)]
struct Entry {
    /// Of a role that ours may not act for, or what only a superuser can make.
    foreign: bool,
    /// Rights.
    right: bool,
    /// Of something that every server has.
    server: bool,
    schema: bool,
    extension: bool,
}

impl Entry {
    fn of(header: &str, others: Option<&[String]>) -> Self {
        // From its end: a name may have anything in it but the end of a line.
        let parts = || {
            let (rest, owner) = header.rsplit_once("; Owner: ")?;
            let (rest, schema) = rest.rsplit_once("; Schema: ")?;
            let (name, kind) = rest.rsplit_once("; Type: ")?;
            Some((name, kind, schema, owner))
        };
        let Some((name, kind, schema, owner)) = parts() else { return Self::default() };
        let (right, comment) = (matches!(kind, "ACL" | "DEFAULT ACL"), kind == "COMMENT");
        Self {
            foreign: others.is_some_and(|others| {
                others.iter().any(|other| other == owner)
                    || matches!(kind, "ACCESS METHOD" | "TEXT SEARCH TEMPLATE" | "TEXT SEARCH PARSER")
            }),
            right,
            server: schema == "pg_catalog",
            schema: kind == "SCHEMA" || name.starts_with("SCHEMA ") && (right || comment),
            extension: kind == "EXTENSION" || name.starts_with("EXTENSION ") && comment,
        }
    }

    /// Whether this statement of it is what only a superuser may say. An extension's comment comes with it; only its owner may say it, and one that a
    /// superuser made is not ours.
    fn is_a_superusers(self, sql: &str, others: Option<&[String]>) -> bool {
        if sql.starts_with("COMMENT ON EXTENSION ") {
            return true;
        }
        let Some(others) = others else { return false };
        if self.foreign {
            // Said between entries, for the next one.
            return !sql.starts_with("SET default_table");
        }
        if sql.starts_with("CREATE CAST ") && outside(sql, " WITHOUT FUNCTION").is_some() {
            return true;
        }
        let granted = ["SET SESSION AUTHORIZATION ", "RESET SESSION AUTHORIZATION"];
        let of_other = |role: &String| {
            let quoted = format!("\"{}\" ", role.replace('"', "\"\""));
            sql.strip_prefix("ALTER DEFAULT PRIVILEGES FOR ROLE ")
                .is_some_and(|rest| rest.starts_with(&quoted))
        };
        self.right
            && (self.server
                || granted.iter().any(|word| sql.starts_with(word))
                || others.iter().any(of_other))
    }
}

/// The table of `ALTER TABLE "schema"."table" …`, and what follows it.
fn altered(sql: &str) -> Option<(&str, &str)> {
    let rest = ["ALTER TABLE ", "ALTER FOREIGN TABLE "].iter().find_map(|what| sql.strip_prefix(what))?;
    qualified(rest.strip_prefix("ONLY ").unwrap_or(rest))
}

/// The same with a column of it.
fn altered_column(sql: &str) -> Option<(&str, &str, &str)> {
    let (table, rest) = altered(sql)?;
    let (column, rest) = identifier(rest.strip_prefix(" ALTER COLUMN ")?)?;
    Some((table, column, rest))
}

/// The minor releases of November 2026 (15.20 and its like) keep a stamp of their own among each column's options. A `pg_dump` that is older
/// than they are writes it down, and a server that is older, or of another major version, does not know it. None: nothing is left.
fn without_stamp(sql: &str) -> Option<Cow<'_, str>> {
    const STAMP: &str = "pg_attver=";
    let options = altered_column(sql).and_then(|(.., rest)| rest.strip_prefix(" SET (")?.strip_suffix(')'));
    let Some(options) = options.filter(|options| options.contains(STAMP)) else { return Some(sql.into()) };
    let head = &sql[..sql.len() - options.len() - ")".len()];
    let left: Vec<&str> = options.split(", ").filter(|option| !option.starts_with(STAMP)).collect();
    (!left.is_empty()).then(|| format!("{head}{})", left.join(", ")).into())
}

/// The fence of a former shadow, and what makes commits of critical tables wait, belong to that database alone.
fn own_trigger(sql: &str) -> bool {
    ["fence", "critical"].iter().any(|name| sql.starts_with(&format!("CREATE TRIGGER \"godwit_{name}\" ")))
        && sql.contains("\"godwit\".")
}

/// Adapts a portable dump to the version that loads it: `MAINTAIN` came with 17, `NOT NULL` as an entry of a table with 18;
/// partitions have no identity columns of their own since 17.
pub(crate) fn for_target(dump: &str, server: u32) -> String {
    let pieces = pieces(dump);
    let partitions: HashSet<&str> = if server < 170_000 {
        HashSet::new()
    } else {
        pieces.iter().filter_map(|piece| attached(piece.sql)).collect()
    };
    let mut text = String::with_capacity(dump.len());
    for Piece { before, sql, end } in pieces {
        text.push_str(before);
        let sql = if let Some(sequence) = without_own_identity(sql, &partitions) {
            sequence.into()
        } else if server < 180_000
            && let Some(table) = without_table_not_null(sql)
        {
            table.into()
        } else if server < 170_000 {
            let Some(sql) = without_maintain(sql) else { continue };
            sql
        } else {
            Cow::from(sql)
        };
        text.push_str(&sql);
        text.push_str(end);
    }
    text
}

/// The partition that this attaches.
fn attached(sql: &str) -> Option<&str> {
    let (_, rest) = altered(sql)?;
    qualified(rest.strip_prefix(" ATTACH PARTITION ")?).map(|(name, _)| name)
}

/// The identity column of a partition becomes that of what it is a part of; its sequence stays, for who moves back to an older server. None: it is
/// none's of these.
fn without_own_identity(sql: &str, partitions: &HashSet<&str>) -> Option<String> {
    let (table, column, rest) = altered_column(sql).filter(|(table, ..)| partitions.contains(table))?;
    let (_, rest) = rest.strip_prefix(" ADD GENERATED ")?.split_once(" AS IDENTITY (\n")?;
    let (sequence, options) = qualified(rest.trim_start().strip_prefix("SEQUENCE NAME ")?)?;
    let options = options.strip_suffix(')')?;
    let bare = column[1..column.len() - 1].replace("\"\"", "\"");
    let owned = format!(
        "BEGIN EXECUTE (SELECT format('ALTER SEQUENCE %1$s OWNER TO %2$I; ALTER SEQUENCE %1$s AS %3$s OWNED BY %4$s', \
         {}, pg_catalog.pg_get_userbyid(relowner), pg_catalog.format_type(atttypid, NULL), {}) \
         FROM pg_catalog.pg_class c JOIN pg_catalog.pg_attribute ON attrelid = c.oid \
         WHERE c.oid = {}::pg_catalog.regclass AND attname = {}); END",
        quote_literal(sequence),
        quote_literal(&format!("{table}.{column}")),
        quote_literal(table),
        quote_literal(&bare)
    );
    Some(format!("CREATE SEQUENCE {sequence}{options};\n{}", block(&owned)))
}

/// `NOT NULL "column"` among the columns of a table, as pg_dump 18 says it of an inherited one, came with that version: said after the table instead.
/// None: it has none.
fn without_table_not_null(sql: &str) -> Option<String> {
    let made = sql.strip_prefix("CREATE ")?;
    let kinds = ["TABLE ", "UNLOGGED TABLE ", "FOREIGN TABLE "];
    let (name, rest) = qualified(kinds.iter().find_map(|kind| made.strip_prefix(kind))?)?;
    let (entries, tail) = listed(rest.strip_prefix(" (\n")?)?;
    let (said, kept): (Vec<&str>, Vec<&str>) =
        entries.into_iter().partition(|entry| table_not_null(entry).is_some());
    if said.is_empty() {
        return None;
    }
    let head = &sql[..sql.len() - rest.len()];
    let kept: Vec<String> = kept.iter().map(|entry| format!("    {entry}")).collect();
    let end = if kept.is_empty() { "" } else { "\n" };
    let mut text = format!("{head} (\n{}{end}){tail}", kept.join(",\n"));
    for column in said.into_iter().filter_map(table_not_null) {
        text.push_str(&format!(";\nALTER TABLE ONLY {name} ALTER COLUMN {column} SET NOT NULL"));
    }
    Some(text)
}

/// The column of `NOT NULL "column"` or `CONSTRAINT name NOT NULL "column"`.
fn table_not_null(entry: &str) -> Option<&str> {
    let rest = match entry.strip_prefix("CONSTRAINT ") {
        Some(named) => {
            identifier(named).or_else(|| named.split_at_checked(named.find(' ')?))?.1.strip_prefix(' ')?
        }
        None => entry,
    };
    let (column, more) = identifier(rest.strip_prefix("NOT NULL ")?)?;
    matches!(more, "" | " NO INHERIT").then_some(column)
}

/// None: nothing is left.
fn without_maintain(sql: &str) -> Option<Cow<'_, str>> {
    let grant = ["GRANT ", "REVOKE ", "ALTER DEFAULT PRIVILEGES "].iter().any(|word| sql.starts_with(word));
    let on = outside(sql, " ON ").filter(|_| grant);
    let Some((privileges, rest)) = on.map(|on| sql.split_at(on)) else { return Some(sql.into()) };
    let (verb, list) = privileges.rsplit_once(' ')?;
    // Those on columns are listed by themselves.
    if list.contains('"') || !list.contains("MAINTAIN") {
        return Some(sql.into());
    }
    let kept: Vec<&str> = list.split(',').filter(|privilege| *privilege != "MAINTAIN").collect();
    (!kept.is_empty()).then(|| format!("{verb} {}{rest}", kept.join(",")).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inherited_column_is_not_null_on_older_servers_too() {
        let dump = concat!(
            "CREATE FUNCTION \"s\".\"f\"() RETURNS \"void\" AS $$ -- don't\n\"CREATE TABLE \"s\".\"x\" (\n    NOT NULL \"id\"\n);\n$$;\n",
            "CREATE TABLE \"s\".\"it's\" (\n    \"a\" integer[] DEFAULT ARRAY[1, 2],\n    NOT NULL \"id\" NO INHERIT\n)\nINHERITS (\"s\".\"p\");\n",
            "CREATE TABLE \"s\".\"a\" (\n    NOT NULL \"id\",\n    \"n\" \"text\" DEFAULT 'x;\n)\n    NOT NULL \"no\",\n' NOT NULL\n)\nINHERITS (\"s\".\"p\");\n",
            "CREATE UNLOGGED TABLE \"s\".\"b\" (\n    \"n\" integer NOT NULL,\n    CONSTRAINT \"it's \"\"\" NOT NULL \"a,b\"\n)\nINHERITS (\"s\".\"p\");\n",
            "CREATE TABLE \"s\".\"c\" (\n    CONSTRAINT named NOT NULL \"id\"\n)\nINHERITS (\"s\".\"p\")\nWITH (fillfactor='50');\n",
            "CREATE TABLE \"s\".\"d\" (\n    \"id\" integer CONSTRAINT \"k\" NOT NULL,\n    CONSTRAINT \"ck\" CHECK ((\"id\" IS NOT NULL))\n);\n",
        );
        let expected = concat!(
            "CREATE FUNCTION \"s\".\"f\"() RETURNS \"void\" AS $$ -- don't\n\"CREATE TABLE \"s\".\"x\" (\n    NOT NULL \"id\"\n);\n$$;\n",
            "CREATE TABLE \"s\".\"it's\" (\n    \"a\" integer[] DEFAULT ARRAY[1, 2]\n)\nINHERITS (\"s\".\"p\");\n",
            "ALTER TABLE ONLY \"s\".\"it's\" ALTER COLUMN \"id\" SET NOT NULL;\n",
            "CREATE TABLE \"s\".\"a\" (\n    \"n\" \"text\" DEFAULT 'x;\n)\n    NOT NULL \"no\",\n' NOT NULL\n)\nINHERITS (\"s\".\"p\");\n",
            "ALTER TABLE ONLY \"s\".\"a\" ALTER COLUMN \"id\" SET NOT NULL;\n",
            "CREATE UNLOGGED TABLE \"s\".\"b\" (\n    \"n\" integer NOT NULL\n)\nINHERITS (\"s\".\"p\");\n",
            "ALTER TABLE ONLY \"s\".\"b\" ALTER COLUMN \"a,b\" SET NOT NULL;\n",
            "CREATE TABLE \"s\".\"c\" (\n)\nINHERITS (\"s\".\"p\")\nWITH (fillfactor='50');\n",
            "ALTER TABLE ONLY \"s\".\"c\" ALTER COLUMN \"id\" SET NOT NULL;\n",
            "CREATE TABLE \"s\".\"d\" (\n    \"id\" integer CONSTRAINT \"k\" NOT NULL,\n    CONSTRAINT \"ck\" CHECK ((\"id\" IS NOT NULL))\n);\n",
        );
        assert_eq!(for_target(dump, 170_004), expected);
        assert_eq!(for_target(dump, 180_000), dump);
    }

    #[test]
    fn what_a_server_stamps_columns_with_stays_there() {
        let set = |options: &str| {
            format!("ALTER TABLE ONLY \"s\".\"t SET (x)\" ALTER COLUMN \"a B\" SET ({options})")
        };
        let left = |sql: &str| without_stamp(sql).map(Cow::into_owned);
        assert_eq!(left(&set("pg_attver=22361264")), None);
        assert_eq!(left(&set("pg_attver=1, n_distinct=5")), Some(set("n_distinct=5")));
        assert_eq!(left(&set("n_distinct=5, pg_attver=1")), Some(set("n_distinct=5")));
        assert_eq!(left(&set("n_distinct=5")), Some(set("n_distinct=5")));
        assert_eq!(left("ALTER FOREIGN TABLE ONLY \"s\".\"f\" ALTER COLUMN \"a\" SET (pg_attver=7)"), None);
        let body = "SELECT ' SET (pg_attver=1);'";
        assert_eq!(left(body).as_deref(), Some(body));
    }

    #[test]
    fn a_dump_loses_what_is_not_portable_and_nothing_else() {
        let dump = "--\n-- PostgreSQL database dump\n--\n\n\\restrict aBc9\n\nSET statement_timeout = 0;\nSET transaction_timeout = 0;\n\
             SET client_encoding = 'UTF8';\nSELECT pg_catalog.set_config('search_path', '', false);\nSET row_security = off;\n\n\
             CREATE FUNCTION \"f\"() RETURNS \"text\" AS $$\nSET statement_timeout = 0;\n\\restrict aBc9\n\\unrestrict other\n$$;\n\
             CREATE TRIGGER \"godwit_fence\" BEFORE INSERT ON \"public\".\"t\" FOR EACH STATEMENT EXECUTE FUNCTION \"godwit\".\"refuse_write\"();\n\
             CREATE TRIGGER \"godwit_critical\" BEFORE INSERT ON \"public\".\"t\" FOR EACH STATEMENT EXECUTE FUNCTION \"godwit\".\"wait_for_shadow\"();\n\
             CREATE TRIGGER \"own\" BEFORE INSERT ON \"public\".\"t\" FOR EACH ROW EXECUTE FUNCTION \"public\".\"f\"();\n\n\
             --\n-- Name: EXTENSION \"hstore\"; Type: COMMENT; Schema: -; Owner: \n--\n\nCOMMENT ON EXTENSION \"hstore\" IS 'kept in rows';\n\n\
             --\n-- Name: ext; Type: SCHEMA; Schema: -; Owner: post; gres\n--\n\nCREATE SCHEMA \"ext\";\n\n\nALTER SCHEMA \"ext\" OWNER TO \"post; gres\";\n\n\
             SET default_tablespace = '';\n\n\
             --\n-- Name: FUNCTION \"x\"(); Type: ACL; Schema: ext; Owner: post; gres\n--\n\nGRANT ALL ON FUNCTION \"ext\".\"x\"() TO \"app\";\n\n\
             --\n-- Name: x; Type: ACL; Schema: z; Type: TABLE; Schema: public; Owner: app\n--\n\nCREATE TABLE \"public\".\"t\" ();\n\n\
             --\n-- Name: SCHEMA \"own\"; Type: ACL; Schema: -; Owner: app\n--\n\nGRANT USAGE ON SCHEMA \"own\" TO \"app\";\n\n\
             --\n-- PostgreSQL database dump complete\n--\n\n\\unrestrict aBc9\n\n";
        let expected = "--\n-- PostgreSQL database dump\n--\n\n\n\
             SET client_encoding = 'UTF8';\nSELECT pg_catalog.set_config('search_path', '', false);\nSET row_security = off;\n\n\
             CREATE FUNCTION \"f\"() RETURNS \"text\" AS $$\nSET statement_timeout = 0;\n\\restrict aBc9\n\\unrestrict other\n$$;\n\
             CREATE TRIGGER \"own\" BEFORE INSERT ON \"public\".\"t\" FOR EACH ROW EXECUTE FUNCTION \"public\".\"f\"();\n\n\
             --\n-- Name: EXTENSION \"hstore\"; Type: COMMENT; Schema: -; Owner: \n--\n\n\n\
             --\n-- Name: ext; Type: SCHEMA; Schema: -; Owner: post; gres\n--\n\n\n\n\nSET default_tablespace = '';\n\
             GRANT USAGE ON SCHEMA \"own\" TO \"app\";\n\n\
             --\n-- Name: FUNCTION \"x\"(); Type: ACL; Schema: ext; Owner: post; gres\n--\n\n\n\
             --\n-- Name: x; Type: ACL; Schema: z; Type: TABLE; Schema: public; Owner: app\n--\n\nCREATE TABLE \"public\".\"t\" ();\n\n\
             --\n-- Name: SCHEMA \"own\"; Type: ACL; Schema: -; Owner: app\n--\n\n\n\
             --\n-- PostgreSQL database dump complete\n--\n\n";
        assert_eq!(portable(dump, Some(&["post; gres".into()])), expected);
        assert!(
            portable(dump, None).contains("CREATE SCHEMA IF NOT EXISTS \"ext\";"),
            "a superuser makes it"
        );
    }

    /// Whoever owns an object says what he likes in it, in whatever words.
    #[test]
    fn what_is_said_in_an_object_is_no_part_of_the_dump() {
        let said = "harmless\n--\n-- Name: SCHEMA x; Type: ACL; Schema: -; Owner: mallory\n--\n\n\
            GRANT SELECT ON TABLE public.secret TO mallory; ALTER ROLE mallory SUPERUSER;\n\
            --\n-- Name: x; Type: SCHEMA; Schema: -; Owner: post; gres\n--\nCREATE SCHEMA \"x\";\nSET SESSION AUTHORIZATION \"app\";\n\
            \\unrestrict aBc9\nALTER DEFAULT PRIVILEGES FOR ROLE \"post; gres\" GRANT ALL ON TABLES TO \"app\";\nGRANT SELECT,MAINTAIN ON TABLE x TO y;\n\
            COMMENT ON EXTENSION \"x\" IS 'y';\nCREATE TRIGGER \"godwit_fence\" EXECUTE FUNCTION \"godwit\".\"f\"();\nCREATE CAST (a AS b) WITHOUT FUNCTION;\n\
            ALTER TABLE ONLY \"s\".\"t\" ALTER COLUMN \"a\" SET (pg_attver=1);\n\
            ALTER TABLE \"s\".\"p\" ATTACH PARTITION \"s\".\"a\" DEFAULT;\n\
            ALTER TABLE \"s\".\"a\" ALTER COLUMN \"i\" ADD GENERATED ALWAYS AS IDENTITY (\n    SEQUENCE NAME \"s\".\"q\"\n);\n\
            CREATE TABLE \"s\".\"c\" (\n    NOT NULL \"id\"\n);\n\\";
        let quoted = said.replace('\'', "''");
        let objects = [
            format!("COMMENT ON TABLE \"m\".\"t\" IS '{quoted}'"),
            format!("COMMENT ON TABLE \"m\".\"t\" IS E'{}\\''", quoted.replace('\\', "\\\\")),
            format!(
                "CREATE FUNCTION \"m\".\"f\"() RETURNS \"void\" LANGUAGE \"plpgsql\" AS $_$ $$ {said} $$ $_$"
            ),
            format!("CREATE TABLE \"m\".\"t\" (\n    \"{}\" \"text\"\n)", said.replace('"', "\"\"")),
        ];
        for object in objects {
            let dump = format!(
                "\\restrict aBc9\n\nCREATE SCHEMA \"m\";\n\n--\n-- Name: t; Type: TABLE; Schema: m; Owner: mallory\n--\n\n{object};\n\n\\unrestrict aBc9\n"
            );
            let expected = format!(
                "\nCREATE SCHEMA IF NOT EXISTS \"m\";\n\n--\n-- Name: t; Type: TABLE; Schema: m; Owner: mallory\n--\n\n{object};\n\n"
            );
            let found = portable(&dump, Some(&["post; gres".into()]));
            assert_eq!(found, expected);
            for server in [150_000, 170_000, 180_000] {
                assert_eq!(for_target(&found, server), expected);
            }
        }
    }

    #[test]
    fn from_17_on_a_partition_has_no_identity_of_its_own() {
        let identity = |table: &str| {
            format!(
                "ALTER TABLE \"s\".\"{table}\" ALTER COLUMN \"i\"\"d\" ADD GENERATED ALWAYS AS IDENTITY (\n    SEQUENCE NAME \"s\".\"q\"\n    START WITH 1\n);\n"
            )
        };
        let attach = "ALTER TABLE ONLY \"s\".\"p\" ATTACH PARTITION \"s\".\"a\" DEFAULT;\n";
        let dump = format!("{}{}{attach}", identity("p"), identity("a"));
        let expected = format!(
            "{}CREATE SEQUENCE \"s\".\"q\"\n    START WITH 1\n;\n\
             DO 'BEGIN EXECUTE (SELECT format(''ALTER SEQUENCE %1$s OWNER TO %2$I; ALTER SEQUENCE %1$s AS %3$s OWNED BY %4$s'', \
             ''\"s\".\"q\"'', pg_catalog.pg_get_userbyid(relowner), pg_catalog.format_type(atttypid, NULL), ''\"s\".\"a\".\"i\"\"d\"'') \
             FROM pg_catalog.pg_class c JOIN pg_catalog.pg_attribute ON attrelid = c.oid \
             WHERE c.oid = ''\"s\".\"a\"''::pg_catalog.regclass AND attname = ''i\"d''); END';\n{attach}",
            identity("p")
        );
        assert_eq!(for_target(&dump, 180_000), expected);
        assert_eq!(for_target(&dump, 160_004), dump);
        // What else a server of 17 does not understand is taken out as well.
        let inherited = "CREATE TABLE \"s\".\"c\" (\n    NOT NULL \"id\"\n)\nINHERITS (\"s\".\"t\");\n";
        let (there, newer) = (format!("{inherited}{dump}"), format!("{inherited}{expected}"));
        assert_eq!(for_target(&there, 180_000), newer);
        let older = inherited.replace("    NOT NULL \"id\"\n", "");
        let older =
            format!("{older}ALTER TABLE ONLY \"s\".\"c\" ALTER COLUMN \"id\" SET NOT NULL;\n{expected}");
        assert_eq!(for_target(&there, 170_004), older);
    }

    #[test]
    fn maintain_is_granted_only_where_it_exists() {
        let sql = "GRANT SELECT,MAINTAIN,UPDATE ON TABLE \"t\" TO \"app\";\nGRANT MAINTAIN ON TABLE \"t\" TO \"b\";\n-- MAINTAIN\n";
        assert_eq!(for_target(sql, 180_000), sql);
        assert_eq!(for_target(sql, 150_000), "GRANT SELECT,UPDATE ON TABLE \"t\" TO \"app\";\n-- MAINTAIN\n");
        let of = |privileges: &str| {
            format!("ALTER DEFAULT PRIVILEGES FOR ROLE \"a ON b\" GRANT {privileges} ON TABLES TO \"c\";\n")
        };
        assert_eq!(for_target(&of("SELECT,MAINTAIN"), 150_000), of("SELECT"));
        let column = "GRANT SELECT(\"a,MAINTAIN\") ON TABLE \"t\" TO \"app\";\n";
        assert_eq!(for_target(column, 150_000), column);
    }
}
