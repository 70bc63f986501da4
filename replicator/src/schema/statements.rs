//! The statements of a dump's second half, sorted by when they may run. Pure.
//!
//! `pg_dump` writes its own SQL: names quoted, one statement an entry. What is not recognised is left in the dump's order.

/// One statement, without its semicolon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    /// As dumped.
    pub sql: String,
    /// What it does.
    pub kind: Kind,
}

/// What a statement does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Sets the session for those behind it.
    Setting,
    /// A primary key, a unique or an exclusion constraint of this table (as dumped, quoted).
    Constraint(String),
    /// An index on this table (as dumped, quoted).
    Index(String),
    /// A foreign key of this table.
    ForeignKey {
        /// As dumped, quoted.
        table: String,
        /// The constraint, quoted.
        name: String,
        /// The table that it refers to, as dumped, quoted.
        refers_to: String,
    },
    /// Fills a materialised view.
    Refresh,
    /// Anything else.
    Other,
}

/// Takes a dump apart, in its order.
pub fn statements(dump: &str) -> Vec<Statement> {
    split(dump).into_iter().map(|sql| Statement { kind: kind(sql), sql: sql.to_owned() }).collect()
}

/// A dump of these statements.
pub(crate) fn joined(statements: impl IntoIterator<Item = Statement>) -> String {
    statements.into_iter().flat_map(|statement| [statement.sql, ";\n".into()]).collect()
}

/// One statement as it stands in a text, with what is before and behind it: one after the other they are the whole text.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece<'d> {
    /// Blanks and comments.
    pub before: &'d str,
    /// Without its semicolon; empty where none follows.
    pub sql: &'d str,
    /// To the end of its line, with its semicolon where it has one.
    pub end: &'d str,
}

impl<'d> Piece<'d> {
    fn of(text: &'d str, sql: &'d str, begins: usize) -> Self {
        let first = begins + sql.len() - sql.trim_start().len();
        let sql = sql.trim();
        Self { before: &text[..first], sql, end: &text[first + sql.len()..] }
    }
}

/// The text of each statement.
fn split(sql: &str) -> Vec<&str> {
    pieces(sql).into_iter().map(|piece| piece.sql).filter(|sql| !sql.is_empty()).collect()
}

/// Takes a text apart at the semicolons outside of quotes, comments, brackets and the body of a routine. What somebody has written in a comment,
/// a default or a body is never taken for a statement.
pub(super) fn pieces(sql: &str) -> Vec<Piece<'_>> {
    let bytes = sql.as_bytes();
    let (mut all, mut begin, mut start, mut at, mut depth) = (Vec::new(), 0, 0, 0, 0usize);
    // What `END` has to end yet: a routine's body, and what is a CASE in it.
    let mut blocks = 0usize;
    let mut blank = true;
    while at < bytes.len() {
        let rest = &sql[at..];
        let length = match bytes[at] {
            b'-' if rest.starts_with("--") => rest.find('\n').map_or(rest.len(), |end| end + 1),
            b'/' if rest.starts_with("/*") => block_comment(rest),
            b'\'' => {
                let escapes = at > 0 && matches!(bytes[at - 1], b'e' | b'E') && !in_word(bytes, at - 1);
                quoted(rest.as_bytes(), b'\'', escapes)
            }
            b'"' => quoted(rest.as_bytes(), b'"', false),
            b'$' if !in_word(bytes, at) => dollar(rest),
            b';' if depth == 0 && blocks == 0 => {
                let end = at + if rest.starts_with(";\n") { 2 } else { 1 };
                let start = if blank { at } else { start };
                all.push(Piece::of(&sql[begin..end], &sql[start..at], start - begin));
                (begin, at, blank) = (end, end, true);
                continue;
            }
            b'(' => {
                depth += 1;
                1
            }
            b')' => {
                depth = depth.saturating_sub(1);
                1
            }
            // What begins in brackets ends there.
            byte if depth == 0 && byte.is_ascii_alphabetic() && !in_word(bytes, at) => {
                let word =
                    &rest[..rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len())];
                let is = |name: &str| word.eq_ignore_ascii_case(name);
                if is("BEGIN") && !blank && makes_routine(&sql[start..at]) || is("CASE") && blocks > 0 {
                    blocks += 1;
                } else if is("END") {
                    blocks = blocks.saturating_sub(1);
                }
                word.len()
            }
            _ => rest.chars().next().map_or(1, char::len_utf8),
        };
        let comment = rest.starts_with("--") || rest.starts_with("/*");
        // What is before a statement does not belong to it.
        if blank && !comment && !bytes[at].is_ascii_whitespace() {
            (start, blank) = (at, false);
        }
        at = (at + length).min(bytes.len());
    }
    if begin < sql.len() {
        let start = if blank { sql.len() } else { start };
        all.push(Piece::of(&sql[begin..], &sql[start..], start - begin));
    }
    all
}

/// Whether a statement that begins so makes a function or a procedure, whose body may be SQL (`BEGIN ATOMIC … END`).
fn makes_routine(begun: &str) -> bool {
    let mut words = begun.split_ascii_whitespace().filter(|word| !matches!(*word, "OR" | "REPLACE"));
    words.next() == Some("CREATE") && matches!(words.next(), Some("FUNCTION" | "PROCEDURE"))
}

/// The first place of these words outside of quotes.
pub(crate) fn outside(text: &str, words: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        if bytes[at..].starts_with(words.as_bytes()) {
            return Some(at);
        }
        at += match bytes[at] {
            quote @ (b'\'' | b'"') => quoted(&bytes[at..], quote, false),
            _ => 1,
        };
    }
    None
}

/// The entries of a list that is open, between commas outside of quotes and brackets, and what is behind its own bracket.
pub(crate) fn listed(text: &str) -> Option<(Vec<&str>, &str)> {
    let bytes = text.as_bytes();
    let (mut all, mut start, mut at, mut depth) = (Vec::new(), 0, 0, 0usize);
    while at < bytes.len() {
        match bytes[at] {
            quote @ (b'\'' | b'"') => {
                at += quoted(&bytes[at..], quote, false);
                continue;
            }
            b'(' | b'[' => depth += 1,
            b')' if depth == 0 => {
                all.push(text[start..at].trim());
                return Some((all, &text[at + 1..]));
            }
            b')' | b']' => depth = depth.checked_sub(1)?,
            b',' if depth == 0 => {
                all.push(text[start..at].trim());
                start = at + 1;
            }
            _ => {}
        }
        at += 1;
    }
    None
}

/// Whether the byte before `at` is part of a word.
pub(crate) fn in_word(bytes: &[u8], at: usize) -> bool {
    at > 0 && (bytes[at - 1].is_ascii_alphanumeric() || bytes[at - 1] == b'_' || bytes[at - 1] >= 0x80)
}

/// Length of a quoted text, quotes included.
pub(crate) fn quoted(bytes: &[u8], quote: u8, escapes: bool) -> usize {
    let mut at = 1;
    while at < bytes.len() {
        if escapes && bytes[at] == b'\\' {
            at += 2;
        } else if bytes[at] != quote {
            at += 1;
        } else if bytes.get(at + 1) == Some(&quote) {
            at += 2;
        } else {
            return at + 1;
        }
    }
    bytes.len()
}

fn block_comment(text: &str) -> usize {
    let bytes = text.as_bytes();
    let (mut depth, mut at) = (0usize, 0);
    while at < bytes.len() {
        if bytes[at..].starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if bytes[at..].starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    bytes.len()
}

/// Length of `$tag$ … $tag$`, or 1 where none begins.
fn dollar(text: &str) -> usize {
    let Some(end) = text[1..].find('$') else { return 1 };
    let tag = &text[..end + 2];
    let name = &tag[1..tag.len() - 1];
    let word = |c: char| c.is_alphanumeric() || c == '_';
    if !name.chars().all(word) || name.starts_with(|c: char| c.is_ascii_digit()) {
        return 1;
    }
    text[tag.len()..].find(tag).map_or(text.len(), |end| tag.len() + end + tag.len())
}

fn kind(sql: &str) -> Kind {
    if sql.starts_with("SET ") || sql.starts_with("SELECT pg_catalog.set_config(") {
        return Kind::Setting;
    }
    if sql.starts_with("REFRESH MATERIALIZED VIEW ") {
        return Kind::Refresh;
    }
    index(sql).or_else(|| constraint(sql)).unwrap_or(Kind::Other)
}

fn index(sql: &str) -> Option<Kind> {
    let rest = sql.strip_prefix("CREATE INDEX ").or_else(|| sql.strip_prefix("CREATE UNIQUE INDEX "))?;
    let (_, rest) = identifier(rest)?;
    let rest = rest.strip_prefix(" ON ")?;
    let (table, _) = qualified(rest.strip_prefix("ONLY ").unwrap_or(rest))?;
    Some(Kind::Index(table.to_owned()))
}

fn constraint(sql: &str) -> Option<Kind> {
    let rest = sql.strip_prefix("ALTER TABLE ")?;
    let (table, rest) = qualified(rest.strip_prefix("ONLY ").unwrap_or(rest))?;
    let (name, rest) = identifier(rest.trim_start().strip_prefix("ADD CONSTRAINT ")?)?;
    let rest = rest.trim_start();
    if let Some(columns) = rest.strip_prefix("FOREIGN KEY (") {
        let (refers_to, _) = qualified(after_columns(columns)?.strip_prefix(" REFERENCES ")?)?;
        let [table, name, refers_to] = [table, name, refers_to].map(str::to_owned);
        return Some(Kind::ForeignKey { table, name, refers_to });
    }
    ["PRIMARY KEY", "UNIQUE", "EXCLUDE"]
        .iter()
        .any(|word| rest.starts_with(word))
        .then(|| Kind::Constraint(table.to_owned()))
}

/// What follows a list of quoted names in brackets, of which the first is open.
fn after_columns(mut text: &str) -> Option<&str> {
    loop {
        let (_, rest) = identifier(text.strip_prefix("PERIOD ").unwrap_or(text))?;
        let Some(more) = rest.strip_prefix(", ") else { return rest.strip_prefix(')') };
        text = more;
    }
}

/// A quoted name, and what follows it.
pub(super) fn identifier(text: &str) -> Option<(&str, &str)> {
    text.starts_with('"').then(|| text.split_at(quoted(text.as_bytes(), b'"', false)))
}

/// `"schema"."name"`, and what follows it.
pub(super) fn qualified(text: &str) -> Option<(&str, &str)> {
    let (_, rest) = identifier(text)?;
    let (_, rest) = identifier(rest.strip_prefix('.')?)?;
    Some(text.split_at(text.len() - rest.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dump_falls_into_its_statements() {
        let dump = r#"--
-- PostgreSQL database dump
--

SET statement_timeout = 0;
SELECT pg_catalog.set_config('search_path', '', false);

--
-- Name: a; Type: CONSTRAINT; Schema: s; Owner: o
--

ALTER TABLE ONLY "s"."a"
    ADD CONSTRAINT "a;pkey" PRIMARY KEY ("id");


CREATE UNIQUE INDEX "odd""i" ON "s"."a" USING "btree" ("b") WHERE ("c" <> 'x;''y'::"text");
CREATE INDEX "p" ON ONLY "s"."parent" USING "btree" ("b");
ALTER INDEX "s"."p" ATTACH PARTITION "s"."q";
CREATE INDEX "e" ON "s"."a" USING "btree" ((E'\';' || "b"));
COMMENT ON INDEX "s"."e" IS 'ends; -- Name: here
--';
CREATE RULE "r" AS ON INSERT TO "s"."a" DO ALSO ( INSERT INTO "s"."log" VALUES (1); DELETE FROM "s"."old" );
CREATE TRIGGER "t" AFTER INSERT ON "s"."a" FOR EACH ROW EXECUTE FUNCTION "s"."f"('$a$;');
SELECT $x$ ; $y$ ; $x$;
ALTER TABLE ONLY "s"."a"
    ADD CONSTRAINT "fk" FOREIGN KEY ("b", PERIOD "d) REFERENCES ""x""") REFERENCES "s"."b"("id", PERIOD "d") DEFERRABLE;
ALTER TABLE ONLY "s"."a" REPLICA IDENTITY USING INDEX "i";
REFRESH MATERIALIZED VIEW "s"."v";
/* a /* nested; */ comment; */
SELECT 1
"#;
        let all = statements(dump);
        let table = || "\"s\".\"a\"".to_owned();
        let kinds: Vec<Kind> = all.iter().map(|statement| statement.kind.clone()).collect();
        assert_eq!(
            kinds,
            [
                Kind::Setting,
                Kind::Setting,
                Kind::Constraint(table()),
                Kind::Index(table()),
                Kind::Index("\"s\".\"parent\"".into()),
                Kind::Other,
                Kind::Index(table()),
                Kind::Other,
                Kind::Other,
                Kind::Other,
                Kind::Other,
                Kind::ForeignKey { table: table(), name: "\"fk\"".into(), refers_to: "\"s\".\"b\"".into() },
                Kind::Other,
                Kind::Refresh,
                Kind::Other,
            ]
        );
        assert_eq!(
            all[2].sql,
            "ALTER TABLE ONLY \"s\".\"a\"\n    ADD CONSTRAINT \"a;pkey\" PRIMARY KEY (\"id\")"
        );
        assert_eq!(all[7].sql, "COMMENT ON INDEX \"s\".\"e\" IS 'ends; -- Name: here\n--'");
        assert!(all[8].sql.ends_with("DELETE FROM \"s\".\"old\" )"));
        assert_eq!(all[10].sql, "SELECT $x$ ; $y$ ; $x$");
        assert_eq!(all[14].sql, "SELECT 1");
    }

    #[test]
    fn the_body_of_a_routine_stays_whole() {
        let function = r#"CREATE FUNCTION "s"."f"("begin" integer) RETURNS "text"
    LANGUAGE "sql"
    BEGIN ATOMIC
 SELECT CASE WHEN "a"."end" THEN CASE "a"."x" WHEN 1 THEN 'END;' END END AS "case_end", end_of FROM "s"."a";
 SELECT (CASE WHEN true THEN "a"."b" END) FROM "s"."a" GROUP BY "a"."id";
END"#;
        let procedure = "CREATE OR REPLACE PROCEDURE \"s\".\"p\"() LANGUAGE \"sql\" BEGIN ATOMIC END";
        let old =
            "CREATE FUNCTION \"s\".\"g\"() RETURNS integer LANGUAGE plpgsql AS $$ BEGIN; RETURN 1; END; $$";
        let all = [function, procedure, old, "BEGIN", "SELECT CASE WHEN true THEN 1 END", "END"];
        assert_eq!(split(&format!("{};", all.join(";\n"))), all);
    }

    #[test]
    fn words_in_quotes_are_not_found() {
        assert_eq!(outside("GRANT SELECT(\"a ON \"\"b\") ON TABLE", " ON "), Some(24));
        assert_eq!(outside("x 'it''s ON ' \u{e4} ON y", " ON "), Some(16));
        assert_eq!(outside("\"an ON ", " ON "), None);
    }

    proptest::proptest! {
        #[test]
        fn nothing_panics_and_nothing_is_lost(text in "([-;'\"$()/*aE\\\\ \n\u{e4}]|CREATE FUNCTION |BEGIN|END){0,60}") {
            let parts = split(&text);
            let kept: usize = parts.iter().map(|part| part.len()).sum();
            proptest::prop_assert!(kept <= text.len());
            for statement in statements(&text) {
                proptest::prop_assert!(text.contains(&statement.sql));
            }
            let whole: String = pieces(&text).iter().flat_map(|piece| [piece.before, piece.sql, piece.end]).collect();
            proptest::prop_assert_eq!(whole, text);
        }
    }
}
