//! The tasks that carry out effects, and which of them are the same one: it is not begun twice at a time.
//!
//! A task that failed tells the controller, which begins it anew. It may hear of it before the task has ended; that one must not be
//! taken for the new attempt, or there would be none.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use migration::cutover::Effect;
use tokio::task::JoinHandle;

/// The tasks under way, by what they are known by.
#[derive(Default)]
pub(super) struct Tasks(HashMap<String, Task>);

struct Task {
    handle: JoinHandle<()>,
    over: Over,
}

/// A task's word that nothing of it is awaited any more.
#[derive(Clone, Debug, Default)]
pub(super) struct Over(Arc<AtomicBool>);

impl Over {
    /// Before what became of it is told.
    pub(super) fn say(&self) {
        self.0.store(true, SeqCst);
    }
}

impl Task {
    fn is_over(&self) -> bool {
        self.over.0.load(SeqCst) || self.handle.is_finished()
    }

    fn abort(&self) {
        // It ends at its next wait, and is awaited by nobody until then.
        self.over.say();
        self.handle.abort();
    }
}

impl Tasks {
    /// Whether this one is under way.
    pub(super) fn has(&self, key: &str) -> bool {
        self.0.get(key).is_some_and(|task| !task.is_over())
    }

    /// Begins one that is not under way.
    pub(super) fn begin<F>(&mut self, key: String, work: impl FnOnce(Over) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.0.retain(|_, task| !task.is_over());
        let over = Over::default();
        let handle = tokio::spawn(work(over.clone()));
        self.0.insert(key, Task { handle, over });
    }

    /// Takes one in; one of the same name before it is done with.
    pub(super) fn replace(&mut self, key: &str, handle: JoinHandle<()>) {
        if let Some(old) = self.0.insert(key.to_owned(), Task { handle, over: Over::default() }) {
            old.abort();
        }
    }

    /// Ends those of these names.
    pub(super) fn abort(&self, which: impl Fn(&str) -> bool) {
        self.0.iter().filter(|(key, _)| which(key)).for_each(|(_, task)| task.abort());
    }
}

/// What an effect's task is known by. It begins with the effect's name. One that begins while its predecessor soaks must not take that
/// one's comparison for its own.
pub(super) fn key(effect: &Effect, run: Option<&str>) -> String {
    match run {
        Some(run) if !effect.is_of_the_resource() => format!("{effect:?} of {run}"),
        _ => format!("{effect:?}"),
    }
}

/// Whether nobody wants what the task of this key does once migration `run` has begun: it is of another one, or of what came before, and would
/// act on databases and workers as they were then. A stream belongs to the resource, the end of an old one harms nobody, and a comparison
/// only tells what it found. What is no effect (in lower case) is not for a migration to end.
pub(super) fn is_outdated(key: &str, run: &str) -> bool {
    let stays = key.starts_with(char::is_lowercase)
        || ["RunStream", "EndStream", "Compare"].iter().any(|name| key.starts_with(name));
    !stays && !key.ends_with(&format!(" of {run}"))
}

#[cfg(test)]
mod tests {
    use migration::cutover::Capacity;
    use migration::units::Generation;

    use super::*;

    #[test]
    fn a_comparison_is_of_one_migration() {
        assert_eq!(key(&Effect::Compare, Some("a")), key(&Effect::Compare, Some("a")));
        assert_ne!(key(&Effect::Compare, Some("a")), key(&Effect::Compare, Some("b")));
        assert!(key(&Effect::Compare, Some("a")).starts_with("Compare"));
    }

    #[test]
    fn what_is_not_of_the_migration_that_begins_is_outdated() {
        let scale = Effect::Scale { zone: "there".into(), capacity: Capacity::Shadow };
        let lift = Effect::LiftFence { zone: "here".into(), generation: Generation(3) };
        let drop_slot =
            Effect::DropReverseSlot { run: "b".into(), generation: Generation(4), zone: "there".into() };
        for effect in [scale, lift, drop_slot] {
            assert!(is_outdated(&key(&effect, Some("a")), "b"), "{effect:?}");
            assert!(is_outdated(&key(&effect, None), "b"), "{effect:?}");
            assert!(!is_outdated(&key(&effect, Some("b")), "b"), "{effect:?}");
        }
        let stream =
            Effect::RunStream { generation: Generation(3), source: "here".into(), target: "there".into() };
        let end = Effect::EndStream { generation: Generation(2), source: "here".into() };
        assert!(!is_outdated(&key(&stream, None), "b") && !is_outdated(&key(&end, Some("a")), "b"));
        assert!(!is_outdated(&key(&Effect::Compare, Some("a")), "b") && !is_outdated("retire", "b"));
    }

    #[tokio::test]
    async fn one_that_has_told_is_begun_anew_although_it_has_not_ended() {
        let mut tasks = Tasks::default();
        let (told, mut heard) = tokio::sync::mpsc::unbounded_channel();
        let endless = |over: Over, speaks: bool| {
            let told = told.clone();
            async move {
                if speaks {
                    over.say();
                }
                let _ = told.send(());
                std::future::pending::<()>().await;
            }
        };
        tasks.begin("lift".into(), |over| endless(over, true));
        heard.recv().await;
        assert!(!tasks.has("lift"), "it has said that it is over");
        tasks.begin("lift".into(), |over| endless(over, false));
        heard.recv().await;
        assert!(tasks.has("lift") && !tasks.has("fence"));
        // One that is cut off, too: it has not ended at once.
        tasks.abort(|key| key == "lift");
        assert!(!tasks.has("lift"));
        tasks.replace("lift", tokio::spawn(std::future::pending()));
        assert!(tasks.has("lift"));
    }

    #[test]
    fn a_stream_outlives_migrations() {
        let stream =
            Effect::RunStream { generation: Generation(3), source: "here".into(), target: "there".into() };
        assert_eq!(key(&stream, Some("a")), key(&stream, None));
    }
}
