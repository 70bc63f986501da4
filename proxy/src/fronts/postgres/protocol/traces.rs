//! What a statement may leave in its session when its transaction is over: settings, locks, temporary objects, listeners.
//!
//! A client that shares connections is asked about after a transaction that may have left something. The server's own word for what
//! it did (CommandComplete) tells of every command; functions that do the same from inside a query are found by their names in its
//! text. What a function of the database hides is found by neither.

/// A longer statement is not read: it may leave anything.
const LOOK: usize = 64 << 10;

/// Commands that leave nothing, or only what their transaction keeps.
const CLEAN: [&[u8]; 26] = [
    // These end nothing either.
    b"SELECT",
    b"INSERT",
    b"UPDATE",
    b"DELETE",
    b"MERGE",
    b"BEGIN",
    b"START",
    b"FETCH",
    b"MOVE",
    b"COPY",
    b"COMMIT",
    b"ROLLBACK",
    b"SAVEPOINT",
    b"RELEASE",
    b"SHOW",
    b"EXPLAIN",
    b"NOTIFY",
    b"DECLARE",
    b"CLOSE",
    b"VACUUM",
    b"ANALYZE",
    b"TRUNCATE",
    b"LOCK",
    b"REFRESH",
    b"REINDEX",
    b"COMMENT",
];
/// How many of them also end nothing that is there.
const ENDS_NOTHING: usize = 10;

/// Whether a command that the server names so may have left something, or with `ended`: or ended what another had left.
pub fn in_tag(tag: &[u8], ended: bool) -> bool {
    let word = tag.split(|byte| *byte == b' ').next().unwrap_or(tag);
    let clean = if ended { &CLEAN[..ENDS_NOTHING] } else { &CLEAN[..] };
    !clean.contains(&word)
}

/// Whether a statement says something that leaves a trace without a command of its own: `set_config`, an update of `pg_settings`, advisory locks,
/// temporary objects, cursors WITH HOLD. A word in a string or a comment counts too: looking once more does no harm.
pub fn in_text(statement: &[u8]) -> bool {
    if statement.len() > LOOK {
        return true;
    }
    let mut before = b' ';
    let (mut updates, mut settings) = (false, false);
    for (at, byte) in statement.iter().enumerate() {
        let rest = &statement[at..];
        let found = match byte | 0x20 {
            b'a' => begins(rest, b"advisory"),
            b's' => begins(rest, b"set_config"),
            b't' => word(before, rest, b"temp") || word(before, rest, b"temporary"),
            b'h' => word(before, rest, b"hold"),
            b'u' => {
                updates |= begins(rest, b"update");
                false
            }
            b'p' => {
                settings |= begins(rest, b"pg_settings");
                false
            }
            _ => false,
        };
        if found || updates && settings {
            return true;
        }
        before = *byte;
    }
    false
}

/// Whether a statement may bring a setting back to what it was as its session began: `RESET`, `DISCARD`, `SET … TO DEFAULT`. One that only looks so
/// counts, too.
pub fn resets(statement: &[u8]) -> bool {
    let (mut before, mut sets) = (b' ', false);
    let resets = |(at, byte): (usize, &u8)| {
        let rest = &statement[at..];
        let found = match byte | 0x20 {
            b'r' => word(before, rest, b"reset"),
            b'd' => word(before, rest, b"discard") || sets && word(before, rest, b"default"),
            b's' => {
                sets |= word(before, rest, b"set");
                false
            }
            _ => false,
        };
        before = *byte;
        found
    };
    statement.len() > LOOK || statement.iter().enumerate().any(resets)
}

fn begins(text: &[u8], word: &[u8]) -> bool {
    text.get(..word.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(word))
}

fn word(before: u8, text: &[u8], word: &[u8]) -> bool {
    let part = |byte: u8| byte.is_ascii_alphanumeric() || byte >= 0x80;
    begins(text, word)
        && !part(before)
        && !text.get(word.len()).is_some_and(|byte| part(*byte) || *byte == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_reset_settings() {
        for text in [
            "RESET ALL",
            "begin;reset timezone",
            "/* x */ Discard all",
            "SET TimeZone TO DEFAULT",
            "set session\tx=default;",
        ] {
            assert!(resets(text.as_bytes()), "{text}");
        }
        for text in ["SELECT 1", "INSERT INTO t VALUES (DEFAULT)", "SET presets = 'offset'", "resetting"] {
            assert!(!resets(text.as_bytes()), "{text}");
        }
        assert!(resets(&vec![b'x'; LOOK + 1]), "what was not looked at");
    }

    #[test]
    fn commands_and_words_that_leave_something() {
        for tag in [
            "SET",
            "RESET",
            "LISTEN",
            "UNLISTEN",
            "PREPARE",
            "DEALLOCATE ALL",
            "DISCARD ALL",
            "CREATE TABLE",
            "DO",
            "CALL",
            "LOAD",
        ] {
            assert!(in_tag(tag.as_bytes(), false), "{tag}");
        }
        for tag in ["SELECT 7", "INSERT 0 1", "START TRANSACTION", "DECLARE CURSOR", "COPY 5", "COMMIT"] {
            assert!(!in_tag(tag.as_bytes(), false), "{tag}");
        }
        assert!(in_tag(b"CLOSE CURSOR", true) && in_tag(b"COMMIT", true) && !in_tag(b"SELECT 1", true));
        for text in [
            "SELECT pg_catalog.set_config('a.b', $1, false)",
            "select PG_TRY_ADVISORY_LOCK(7)",
            "SELECT 1 INTO TEMP x",
            "create temporary table t ()",
            "SELECT * INTO pg_temp.x FROM y",
            "DECLARE c CURSOR WITH HOLD FOR SELECT 1",
            "UPDATE pg_settings SET setting = 'off' WHERE name = 'synchronous_commit'",
            "update pg_catalog.PG_SETTINGS set setting = $1",
        ] {
            assert!(in_text(text.as_bytes()), "{text}");
        }
        for text in [
            "SELECT threshold, temperature, attempt FROM household",
            "SELECT setting FROM pg_settings",
            "UPDATE t SET a = 1",
            "",
            "template",
        ] {
            assert!(!in_text(text.as_bytes()), "{text}");
        }
        assert!(in_text(&vec![b' '; LOOK + 1]));
    }
}
