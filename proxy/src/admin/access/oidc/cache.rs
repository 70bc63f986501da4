//! The issuer's keys as they were last had, and when to ask for them again: pure.
//!
//! | the keys are | the key is there | it is not |
//! |---|---|---|
//! | younger than `refresh` | use it | ask, if the last inquiry is `pause` ago; otherwise no |
//! | older, younger than `keep` | use it; ask beside it, at most every `pause` | as above |
//! | older than `keep`, or none | ask, if the last inquiry is `pause` ago; otherwise it cannot be told | |
//!
//! So keys that were rotated in are known within `pause`, whoever makes up key ids has the issuer asked no oftener than that, and
//! an issuer that is down locks nobody out for `keep`. A key that the issuer took back counts no more from the next answer on.

use std::sync::Arc;
use std::time::Instant;

use super::jws::Algorithm;
use super::key::{Key, KeySet};
use super::{KeyTimes, Rejected};

/// What is known of the keys.
#[derive(Debug, Default)]
pub(super) struct Cache {
    had: Option<(Arc<KeySet>, Instant)>,
    asked: Option<Instant>,
    /// Why the last inquiry failed.
    failed: Option<String>,
}

/// What to do about a token.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Plan {
    /// These may have signed it; the keys are to be asked for again meanwhile, if so.
    Use(Vec<Key>, bool),
    /// Ask for the keys, then look again.
    Ask,
    /// Refuse it.
    Refuse(Rejected),
}

impl Cache {
    /// What to do about a token with this `kid` at `now`; for one whose turn to ask is over (`asked`), without asking again.
    pub(super) fn plan(
        &self,
        kid: Option<&str>,
        algorithm: Algorithm,
        times: KeyTimes,
        now: Instant,
        asked: bool,
    ) -> Plan {
        let since = self.asked.map(|asked| now.saturating_duration_since(asked));
        let may_ask = !asked && since.is_none_or(|since| since >= times.pause);
        let had = self.had.as_ref().map(|(keys, since)| (keys, now.saturating_duration_since(*since)));
        if let Some((keys, age)) = had.filter(|(_, age)| *age < times.keep) {
            let found = keys.of(kid, algorithm);
            if !found.is_empty() {
                return Plan::Use(found, age >= times.refresh && may_ask);
            }
            return match (may_ask, &self.failed) {
                (true, _) => Plan::Ask,
                (false, None) if asked => Plan::Refuse(Rejected::KeyUnknown),
                (false, None) => Plan::Refuse(Rejected::KeyUnseen),
                // It may be a new key: only the issuer could say.
                (false, Some(why)) => Plan::Refuse(Rejected::Unavailable(why.clone())),
            };
        }
        if may_ask {
            return Plan::Ask;
        }
        let why = self.failed.clone().unwrap_or_else(|| "they are being asked for".into());
        Plan::Refuse(Rejected::Unavailable(why))
    }

    /// An inquiry begins.
    pub(super) fn asks(&mut self, now: Instant) {
        self.asked = Some(now);
    }

    /// What came of it.
    pub(super) fn answered(&mut self, answer: Result<KeySet, String>, now: Instant) {
        match answer {
            Ok(keys) => (self.had, self.failed) = (Some((Arc::new(keys), now)), None),
            Err(why) => self.failed = Some(why),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const TIMES: KeyTimes = KeyTimes {
        refresh: Duration::from_secs(3600),
        keep: Duration::from_secs(86_400),
        pause: Duration::from_secs(10),
    };

    fn keys(kid: &str) -> KeySet {
        let x = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";
        let text = format!(r#"{{"keys":[{{"kty":"OKP","crv":"Ed25519","kid":"{kid}","x":"{x}"}}]}}"#);
        KeySet::parse(text.as_bytes()).expect("a set")
    }

    struct Run {
        cache: Cache,
        start: Instant,
    }

    impl Run {
        fn new() -> Self {
            Self { cache: Cache::default(), start: crate::clock::monotonic() }
        }

        fn plan(&self, kid: &str, after_s: u64) -> &'static str {
            let now = self.start + Duration::from_secs(after_s);
            match self.cache.plan(Some(kid), Algorithm::EdDsa, TIMES, now, false) {
                Plan::Use(_, false) => "use",
                Plan::Use(_, true) => "use and ask",
                Plan::Ask => "ask",
                Plan::Refuse(rejected) => rejected.label(),
            }
        }

        fn answer(&mut self, answer: Result<KeySet, String>, at_s: u64) {
            let now = self.start + Duration::from_secs(at_s);
            self.cache.asks(now);
            self.cache.answered(answer, now);
        }
    }

    #[test]
    fn the_first_token_asks_and_rotation_is_seen() {
        let mut run = Run::new();
        assert_eq!(run.plan("a", 0), "ask");
        run.cache.asks(run.start);
        assert_eq!(run.plan("a", 1), "unavailable", "somebody asks already");
        run.answer(Ok(keys("a")), 1);
        assert_eq!((run.plan("a", 2), run.plan("b", 2)), ("use", "key_unknown"));
        assert_eq!(run.plan("b", 11), "ask", "after the pause");
        run.answer(Ok(keys("b")), 11);
        assert_eq!(
            (run.plan("b", 12), run.plan("a", 12)),
            ("use", "key_unknown"),
            "what was taken back counts no more"
        );
    }

    #[test]
    fn old_keys_are_used_while_the_issuer_is_down_but_not_for_ever() {
        let mut run = Run::new();
        run.answer(Ok(keys("a")), 0);
        assert_eq!(run.plan("a", 3599), "use");
        assert_eq!(run.plan("a", 3600), "use and ask");
        run.answer(Err("down".into()), 3600);
        assert_eq!((run.plan("a", 3601), run.plan("b", 3601)), ("use", "unavailable"));
        assert_eq!(run.plan("a", 3610), "use and ask");
        run.answer(Err("down".into()), 86_390);
        assert_eq!(run.plan("a", 86_399), "use");
        assert_eq!(run.plan("a", 86_400), "ask");
        run.answer(Err("down".into()), 86_400);
        assert_eq!(run.plan("a", 86_401), "unavailable");
    }

    #[test]
    fn made_up_keys_have_the_issuer_asked_once_a_pause() {
        let mut run = Run::new();
        run.answer(Ok(keys("a")), 0);
        let mut asked = 0;
        for second in 1..=600 {
            for kid in 0..50 {
                if run.plan(&format!("made up {kid}"), second) == "ask" {
                    asked += 1;
                    run.answer(Ok(keys("a")), second);
                }
            }
        }
        assert_eq!(asked, 60);
    }
}
