//! What of a constraint can change without its rows being looked at anew, or with nothing but that.

/// What the definition of a constraint ends with that was not looked at for the rows that were there.
const NOT_VALID: &str = " NOT VALID";

/// Whether a constraint was only validated since.
pub(super) fn is_validated(wanted: &str, there: &str) -> bool {
    there.strip_suffix(NOT_VALID) == Some(wanted)
}

/// What makes a foreign key be checked when `wanted` says, after `ALTER CONSTRAINT` and its name; none: it differs otherwise.
pub(super) fn deferred(wanted: &str, there: &str) -> Option<String> {
    let ((new, when), (old, _)) = (parts(wanted)?, parts(there)?);
    (new == old).then(|| if when.is_empty() { "NOT DEFERRABLE".into() } else { when.into() })
}

/// A foreign key without what says when it is checked, and that.
fn parts(definition: &str) -> Option<(&str, &str)> {
    let rest = definition.starts_with("FOREIGN KEY ").then_some(definition)?;
    let rest = rest.strip_suffix(" INITIALLY DEFERRED").unwrap_or(rest);
    let rest = rest.strip_suffix(" DEFERRABLE").unwrap_or(rest);
    Some((rest, definition[rest.len()..].trim_start()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_constraint_is_changed_without_being_made_anew() {
        assert!(is_validated("CHECK (true)", "CHECK (true) NOT VALID"));
        assert!(
            !is_validated("CHECK (true) NOT VALID", "CHECK (true)")
                && !is_validated("CHECK (a)", "CHECK (b) NOT VALID")
        );
        let key = "FOREIGN KEY (a) REFERENCES t(b)";
        let when = |new: &str, old: &str| deferred(&format!("{key}{new}"), &format!("{key}{old}"));
        assert_eq!(when("", " DEFERRABLE").as_deref(), Some("NOT DEFERRABLE"));
        assert_eq!(
            when(" DEFERRABLE INITIALLY DEFERRED", "").as_deref(),
            Some("DEFERRABLE INITIALLY DEFERRED")
        );
        assert_eq!(when(" ON DELETE CASCADE", ""), None);
        assert_eq!(deferred("UNIQUE (a) DEFERRABLE", "UNIQUE (a)"), None, "PostgreSQL alters no other so");
    }
}
