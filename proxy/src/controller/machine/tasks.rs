//! Which of the tasks that carry out effects are the same one: it is not begun twice.

use migration::cutover::Effect;

/// What an effect's task is known by. It begins with the effect's name. A stream belongs to the resource; everything else belongs to
/// the migration that wants it: one that begins while its predecessor soaks must not take that one's comparison for its own.
pub(super) fn key(effect: &Effect, run: Option<&str>) -> String {
    match (effect, run) {
        (Effect::RunStream { .. }, _) | (_, None) => format!("{effect:?}"),
        (_, Some(run)) => format!("{effect:?} of {run}"),
    }
}

#[cfg(test)]
mod tests {
    use migration::units::Generation;

    use super::*;

    #[test]
    fn a_comparison_is_of_one_migration() {
        assert_eq!(key(&Effect::Compare, Some("a")), key(&Effect::Compare, Some("a")));
        assert_ne!(key(&Effect::Compare, Some("a")), key(&Effect::Compare, Some("b")));
        assert!(key(&Effect::Compare, Some("a")).starts_with("Compare"));
    }

    #[test]
    fn a_stream_outlives_migrations() {
        let stream =
            Effect::RunStream { generation: Generation(3), source: "here".into(), target: "there".into() };
        assert_eq!(key(&stream, Some("a")), key(&stream, None));
    }
}
