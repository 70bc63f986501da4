//! Names of custom settings (`app.tenant`) that a statement sets. The server lists every setting that a session changed but these,
//! and tells their values only to who asks by name.

/// How much of a statement is looked at.
pub const LOOK: usize = 8 << 10;
/// The longest name that is kept.
const LONGEST: usize = 128;

/// Calls `found` with each name that `SET` or `set_config('…'` is followed by, lower case. A name that is in a string or a comment
/// is found too: asking for one that nobody set does no harm.
pub fn find(statement: &[u8], mut found: impl FnMut(&str)) {
    let text = &statement[..statement.len().min(LOOK)];
    let mut at = 0;
    while let Some(step) = text[at..].iter().position(|byte| matches!(byte, b's' | b'S')) {
        let begin = at + step;
        at = begin + 1;
        let word = &text[begin..];
        if word.len() < 4 || !word[..3].eq_ignore_ascii_case(b"set") || begin > 0 && is_part(text[begin - 1])
        {
            continue;
        }
        let name = if word[3].is_ascii_whitespace() {
            set(&word[3..])
        } else if word.len() > 10 && word[3..10].eq_ignore_ascii_case(b"_config") {
            set_config(&word[10..])
        } else {
            None
        };
        if let Some(name) = name.filter(|name| is_custom(name)) {
            found(&name.to_ascii_lowercase());
        }
    }
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

fn set(after: &[u8]) -> Option<&str> {
    let after = after.trim_ascii_start();
    let after = match after.get(..8) {
        Some(word) if word[..7].eq_ignore_ascii_case(b"session") && word[7].is_ascii_whitespace() => {
            after[8..].trim_ascii_start()
        }
        _ => after,
    };
    let end = after.iter().position(|byte| !is_part(*byte) && *byte != b'.').unwrap_or(after.len());
    std::str::from_utf8(&after[..end]).ok()
}

fn set_config(after: &[u8]) -> Option<&str> {
    let after = after.trim_ascii_start().strip_prefix(b"(")?.trim_ascii_start().strip_prefix(b"'")?;
    let end = after.iter().position(|byte| *byte == b'\'')?;
    std::str::from_utf8(&after[..end]).ok()
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
        for none in [
            "SET work_mem = '1MB'",
            "UPDATE t SET a = b.c",
            "RESET app.tenant",
            "SELECT set_config($1, $2, false)",
            "set",
            "SET ",
            "SET 1a.b = 2",
            "offset a.b",
            "SET a. = 1",
        ] {
            assert_eq!(names(none), [""; 0], "{none}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_looked_at(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            find(&bytes, |name| assert!(is_custom(name)));
            let mut set = b"SET ".to_vec();
            set.extend(&bytes);
            find(&set, |name| assert!(is_custom(name)));
        }
    }
}
