//! Names of settings in a statement that sets them: custom ones (`app.tenant`), since the server lists every setting that a session changed but these,
//! and tells their values only to who asks by name; and those that texts are read by.

/// How much of a statement is looked at.
pub const LOOK: usize = 64 << 10;
/// The longest name that is kept.
const LONGEST: usize = 128;
/// The longest escape in a string: `\U0000000a`.
const ESCAPE: usize = 10;
/// What follows `set` in the function's name.
const CONFIG: &[u8] = b"_config";

/// What may be in a prepared statement for good, since its text is read by it: in its constants, in the types of its parameters.
const READ_BY: [&str; 12] = [
    "search_path",
    "timezone",
    "timezone_abbreviations",
    "datestyle",
    "intervalstyle",
    "client_encoding",
    "standard_conforming_strings",
    "backslash_quote",
    "transform_null_equals",
    "array_nulls",
    "xmloption",
    "lc_monetary",
];
/// How else `SET`, `RESET` and `DISCARD` name those: `TIME ZONE`, `NAMES`, `SCHEMA`, `XML OPTION`; and what goes along with a role, all of them, or
/// the value of any (`UPDATE pg_settings SET setting = …`).
const SAID_ELSE: [&str; 9] =
    ["time", "names", "schema", "xml", "role", "authorization", "session_authorization", "all", "setting"];

/// Whether texts are read by the setting of this name.
pub fn is_read_by(name: &[u8]) -> bool {
    READ_BY.iter().any(|known| name.eq_ignore_ascii_case(known.as_bytes()))
}

/// Whether the setting of this name says who a session is.
pub fn is_who(name: &[u8]) -> bool {
    ["role", "session_authorization"].iter().any(|who| name.eq_ignore_ascii_case(who.as_bytes()))
}

/// Whether a statement may set what texts are read by, for its transaction or longer. One that only looks so counts, too.
pub fn rereads(statement: &[u8]) -> bool {
    let text = &statement[..statement.len().min(LOOK)];
    let sets = |at: usize| {
        if !matches!(text[at] | 0x20, b's' | b'r' | b'd') {
            return false;
        }
        let after = ["set_config", "set", "reset", "discard"].iter().find_map(|keyword| {
            let (word, rest) = text[at..].split_at_checked(keyword.len())?;
            (word.eq_ignore_ascii_case(keyword.as_bytes())
                && !rest.first().is_some_and(|byte| is_part(*byte)))
            .then_some(rest)
        });
        after.is_some_and(|after| !is_within(&text[..at]) && may_be_read_by(after))
    };
    statement.len() > LOOK || (0..text.len()).any(sets)
}

/// Whether what is named behind the keyword may be what texts are read by.
fn may_be_read_by(after: &[u8]) -> bool {
    let mut text = bare(after);
    for keyword in ["local", "session"] {
        text = behind(text, keyword).map_or(text, bare);
    }
    let (name, rest) = text.split_at(text.iter().take_while(|byte| is_part(**byte)).count());
    let is = |known: &&str| name.eq_ignore_ascii_case(known.as_bytes());
    // It is said by numbers, put together, or behind a comment.
    let ends = rest.strip_prefix(b"'").is_some_and(|rest| !trimmed(rest).starts_with(b","));
    let cut = ends || matches!(rest.first(), Some(b'%' | b'|' | b'&' | b'\\')) || name.contains(&b'$');
    let unread = cut || is_comment(text) || text.is_empty();
    unread || READ_BY.iter().chain(&SAID_ELSE).any(is)
}

/// Behind what may stand between a keyword and a name.
fn bare(text: &[u8]) -> &[u8] {
    let before = |byte: &&u8| is_space(**byte) || matches!(**byte, b'(' | b'"' | b'\'');
    &text[text.iter().take_while(before).count()..]
}

/// What is set.
enum Set {
    /// Nothing, or what the server lists.
    Listed,
    Custom(String),
    /// A name that cannot be read here: a parameter, an expression, a comment in it, one that is put together.
    Unread,
}

/// Calls `found` with each custom name that `SET` or `set_config('…'` is followed by, lower case; false: it may set others, too. A name that is in
/// a string or a comment is found too: asking for one that nobody set does no harm.
pub fn find(statement: &[u8], mut found: impl FnMut(&str)) -> bool {
    let text = &statement[..statement.len().min(LOOK)];
    let mut all = statement.len() <= LOOK;
    let mut at = 0;
    while let Some(step) = text[at..].iter().position(|byte| matches!(byte, b's' | b'S')) {
        let begin = at + step;
        at = begin + 1;
        let word = &text[begin..];
        if is_within(&text[..begin]) || word.len() < 4 || !word[..3].eq_ignore_ascii_case(b"set") {
            continue;
        }
        let set = if is_space(word[3]) || matches!(word[3], b'"' | b'/' | b'-') {
            set(&word[3..])
        } else if matches!(word[3], b'\'' | b'$' | b'\\' | b'%') {
            // A string ends there, or goes on: `'SET' || …`, `format('%s %I = %L', 'set', …)`, `E'SET\t…'`, `'SET%s'`.
            Set::Unread
        } else if let Some((config, rest)) = word[3..].split_at_checked(CONFIG.len())
            && config.eq_ignore_ascii_case(CONFIG)
            && !rest.first().is_some_and(|byte| is_part(*byte))
        {
            set_config(rest)
        } else {
            Set::Listed
        };
        match set {
            Set::Custom(name) => found(&name),
            Set::Unread => all = false,
            Set::Listed => {}
        }
    }
    all
}

/// Whether a word goes on behind this text.
fn is_within(before: &[u8]) -> bool {
    // `$` may end the quote that a text begins with.
    if before.last().is_none_or(|byte| *byte == b'$' || !is_part(*byte)) {
        return false;
    }
    // `E'\nSET …'`, `E'\u000aSET …'`
    let near = &before[before.len().saturating_sub(ESCAPE)..];
    near.iter().rposition(|byte| !is_part(*byte)).is_none_or(|at| near[at] != b'\\')
}

/// Two parts at least, of letters, digits, `_` and `$`.
pub fn is_custom(name: &str) -> bool {
    let part = |part: &str| {
        part.bytes().next().is_some_and(|first| !first.is_ascii_digit() && first != b'$')
            && part.bytes().all(is_part)
    };
    name.len() <= LONGEST && name.contains('.') && name.split('.').all(part)
}

fn is_part(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$') || byte >= 0x80
}

fn is_space(byte: u8) -> bool {
    byte.is_ascii_whitespace() || byte == 0x0b
}

fn trimmed(text: &[u8]) -> &[u8] {
    &text[text.iter().take_while(|byte| is_space(**byte)).count()..]
}

fn is_comment(text: &[u8]) -> bool {
    text.starts_with(b"--") || text.starts_with(b"/*")
}

/// Behind a keyword that stands before what is set; a setting may begin with it, too (`session.user`).
fn behind<'t>(text: &'t [u8], keyword: &str) -> Option<&'t [u8]> {
    let (word, rest) = text.split_at_checked(keyword.len())?;
    let ends =
        word.eq_ignore_ascii_case(keyword.as_bytes()) && !rest.first().is_some_and(|byte| is_part(*byte));
    Some(trimmed(rest)).filter(|rest| ends && !rest.starts_with(b"."))
}

fn set(after: &[u8]) -> Set {
    let mut text = trimmed(after);
    // What lasts for a transaction only is nobody's afterwards.
    if behind(text, "local").is_some() {
        return Set::Listed;
    }
    text = behind(text, "session").unwrap_or(text);
    let mut name = Vec::new();
    loop {
        let (part, rest) = if let Some(quoted) = text.strip_prefix(b"\"") {
            let Some(end) = quoted.iter().position(|byte| *byte == b'"') else { return Set::Unread };
            (&quoted[..end], &quoted[end + 1..])
        } else {
            text.split_at(text.iter().take_while(|byte| is_part(**byte)).count())
        };
        name.extend(part);
        let next = trimmed(rest);
        // U&"…" says it by numbers, and "" is one in a name.
        if is_comment(next) || rest.starts_with(b"\"") || rest.starts_with(b"&\"") {
            return Set::Unread;
        }
        // It is put together where it stands in a string that ends in it, or is a pattern: `'SET ' || …`, `'SET %I = …'`.
        let cut = part.starts_with(b"$") || part.ends_with(b"$") || rest.starts_with(b"'");
        let nothing = name.is_empty() && !matches!(next.first(), None | Some(b'('));
        if cut || nothing || rest.starts_with(b"%") {
            return Set::Unread;
        }
        match next.strip_prefix(b".") {
            Some(more) => text = trimmed(more),
            None => return named(&name),
        }
        name.push(b'.');
    }
}

fn set_config(after: &[u8]) -> Set {
    let literal = trimmed(after).strip_prefix(b"(").and_then(|text| trimmed(text).strip_prefix(b"'"));
    let Some(literal) = literal else { return Set::Unread };
    let Some(end) = literal.iter().position(|byte| *byte == b'\'') else { return Set::Unread };
    if !trimmed(&literal[end + 1..]).starts_with(b",") {
        return Set::Unread;
    }
    match named(&literal[..end]) {
        Set::Listed if !literal[..end].iter().all(|byte| is_part(*byte)) => Set::Unread,
        set => set,
    }
}

fn named(name: &[u8]) -> Set {
    if !name.contains(&b'.') {
        return Set::Listed;
    }
    let name = std::str::from_utf8(name).ok().filter(|name| is_custom(name));
    name.map_or(Set::Unread, |name| Set::Custom(name.to_ascii_lowercase()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn names(statement: &str) -> Vec<String> {
        let mut names = Vec::new();
        find(statement.as_bytes(), |name| names.push(name.to_owned()));
        names
    }

    #[test]
    fn names_are_found_where_they_are_set() {
        assert_eq!(names("SET app.tenant = '7'"), ["app.tenant"]);
        assert_eq!(names("set session App.Tenant to 7; SET\n a.b.c=1"), ["app.tenant", "a.b.c"]);
        assert_eq!(names("SELECT set_config( 'app.user', $1, false)"), ["app.user"]);
        assert_eq!(names("SELECT pg_catalog.SET_CONFIG('app.user', 'x', true)"), ["app.user"]);
        assert_eq!(
            names("SET \"App.tenant\" = '7'; SET SESSION \"app\" . user TO 7"),
            ["app.tenant", "app.user"]
        );
        assert_eq!(names("SET\"app\".\"tenant\"='7'; SET session.id = 7"), ["app.tenant", "session.id"]);
        assert_eq!(names(&format!("SELECT '{}'; SET app.tenant = 7", "x".repeat(20 << 10))), ["app.tenant"]);
        assert_eq!(names("DO $a$BEGIN EXECUTE $$SET app.tenant = 7$$; END$a$"), ["app.tenant"]);
        for escape in ["n", "t", "x0a", "012", "u000a", "U0000000a"] {
            let sql = format!("DO $$BEGIN EXECUTE E'\\{escape}SET app.tenant = 7'; END$$");
            assert_eq!(names(&sql), ["app.tenant"], "{sql}");
        }
        for none in [
            "SET work_mem = '1MB'",
            "UPDATE t SET a = b.c",
            "RESET app.tenant",
            "SELECT set_config($1, $2, false)",
            "SET LOCAL app.tenant = 7",
            "set",
            "SET ",
            "SET 1a.b = 2",
            "offset a.b",
            "SET a. = 1",
        ] {
            assert_eq!(names(none), [""; 0], "{none}");
        }
    }

    #[test]
    fn what_texts_are_read_by_is_known() {
        for sets in [
            "SET TimeZone = 'Asia/Tokyo'",
            "set local time zone 'UTC'",
            "BEGIN;SET\tLOCAL \"search_path\" TO tenant",
            "SET SESSION datestyle = 'German'",
            "SET NAMES 'LATIN1'; SELECT 1",
            "SET SCHEMA 'tenant'",
            "SET LOCAL ROLE clerk",
            "RESET SESSION AUTHORIZATION",
            "RESET ALL",
            "DISCARD ALL",
            "SELECT set_config( 'search_path', $1, true)",
            "SELECT pg_catalog.\"set_config\"(E'search_path', $1, true)",
            "SELECT set_config($1, $2, true)",
            "SET LOCAL /* which */ timezone = 'UTC'",
            "SET LOCAL U&\"time\\007aone\" = 'UTC'",
            "DO $$BEGIN EXECUTE 'SET LOCAL search_path = ' || n; END$$",
            "DO $$BEGIN EXECUTE 'SET LOCAL ' || n || ' = 7'; END$$",
            "DO $$BEGIN EXECUTE 'SET LOCAL search' || n; END$$",
            "DO $$BEGIN EXECUTE format('SET LOCAL %I = %L', n, v); END$$",
            "DO $$BEGIN EXECUTE E'\\nSET\\tLOCAL search_path = x'; END$$",
            "UPDATE pg_settings SET setting = 'UTC' WHERE name = 'TimeZone'",
        ] {
            assert!(rereads(sets.as_bytes()), "{sets}");
        }
        assert!(rereads(&vec![b'x'; LOOK + 1]), "what was not looked at");
        for other in [
            "SET LOCAL app.tenant = '7'",
            "SELECT set_config('app.tenant', $1, true), set_config('work_mem' , $2, true)",
            "SET work_mem = '1MB'; SET LOCAL \"statement_timeout\" = 0; RESET lock_timeout",
            "UPDATE users SET name = $1, role = $2 WHERE id = $3",
            "UPDATE t SET (a, b) = (1, 2)",
            "SELECT role, search_path FROM tenants ORDER BY 1 OFFSET 10",
            "CREATE TABLE t (a int REFERENCES u ON DELETE SET NULL)",
            "DISCARD PLANS",
            "",
        ] {
            assert!(!rereads(other.as_bytes()), "{other}");
        }
        assert!(is_read_by(b"TimeZone") && !is_read_by(b"work_mem"));
    }

    #[test]
    fn what_may_set_others_is_known() {
        let all = |statement: &str| find(statement.as_bytes(), |_| {});
        for unread in [
            "SELECT set_config($1, $2, false)",
            "SELECT set_config('app.' || 'tenant', '7', false)",
            "SELECT set_config(E'app\\x2etenant', '7', false)",
            "SELECT set_config('app\\056tenant', '7', false)",
            "SELECT set_config(/* which */ 'app.tenant', '7', false)",
            "SELECT \"set_config\"('app.tenant', '7', false)",
            "select set_config",
            "SET /* which */ app.tenant = '7'",
            "SET/**/app.tenant = '7'",
            "SET app-- which\n.tenant = '7'",
            "SET SESSION -- which\n app.tenant = '7'",
            "SET U&\"app\\002etenant\" = '7'",
            "SET \"app.ten\"\"ant\" = '7'",
            "SET \"my-app.tenant\" = '7'",
            "DO $$BEGIN EXECUTE format('SET %I = %L', 'app.tenant', '7'); END$$",
            "DO $$BEGIN EXECUTE format('SET SESSION app%s = %L', '.tenant', '7'); END$$",
            "DO $$BEGIN EXECUTE 'SET ' || n || ' = 7'; END$$",
            "DO $$BEGIN EXECUTE 'SET app' || n || ' = 7'; END$$",
            "DO $a$BEGIN EXECUTE $b$SET $b$ || n; END$a$",
            "DO $a$BEGIN EXECUTE $$SET app.ten$$ || n; END$a$",
            "DO $$BEGIN EXECUTE 'SET' || ' app.tenant = 7'; END$$",
            "DO $a$BEGIN EXECUTE $$SET$$ || ' app.tenant = 7'; END$a$",
            "DO $$BEGIN EXECUTE concat_ws(' ', 'SET', n, '=', '7'); END$$",
            "DO $$BEGIN EXECUTE format('%s %I = %L', 'set', 'app.tenant', '7'); END$$",
            "DO $$BEGIN EXECUTE format('SET%sapp.tenant = 7', ' '); END$$",
            "DO $$BEGIN EXECUTE E'SET\\tapp.tenant = 7'; END$$",
            "DO $$BEGIN EXECUTE E'\\nSET ' || n || ' = 7'; END$$",
        ] {
            assert!(!all(unread), "{unread}");
        }
        assert!(!all(&"x".repeat(LOOK + 1)), "what was not looked at");
        for read in [
            "SET app.tenant = '7'; SET \"app\".\"tenant\" TO '7'",
            "SELECT set_config('app.tenant', $1, false), set_config('search_path' , $2, true)",
            "SET LOCAL \"app.tenant\" = '7'",
            "SET SESSION AUTHORIZATION clerk; SET ROLE \"clerk\"; SET TIME ZONE 'UTC'; SET LOCAL work_mem = 1",
            "UPDATE t SET a = 1 - 2, b = $1 /* why */ WHERE c = 'settled'",
            "UPDATE t SET (a, b) = (1, 2)",
            "ALTER TABLE t ALTER c SET STATISTICS -1, ALTER d SET DATA TYPE \"my type\"",
            "ON DELETE SET NULL",
            "SELECT set_config_id FROM set_configs",
        ] {
            assert!(all(read), "{read}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_looked_at(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            find(&bytes, |name| assert!(is_custom(name)));
            let mut set = b"SET ".to_vec();
            set.extend(&bytes);
            find(&set, |name| assert!(is_custom(name)));
            rereads(&bytes);
            rereads(&set);
        }
    }
}
