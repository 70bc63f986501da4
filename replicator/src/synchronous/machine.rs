//! When commits wait for the shadow, and when not. Pure: facts and time in, at most one action out.
//!
//! ```text
//!            caught up for long enough          joined
//! Following ──────────────────────────► Joining ──────► Synchronous
//!     ▲  ▲                                │ refused         │ nobody streams for `after`,
//!     │  └────────────────────────────────┘                 │ or the name is gone from the setting
//!     └──────────── left ───────────── Leaving ◄────────────┘   (and from Following, where the name is in the setting)
//!                                         ▲
//!           Inherited ── `after` is over ─┘   (the name was there when we started: as Synchronous, but unguarded;
//!               └─ streams ─► Joining          once it streams it gets its guards, which bound each wait)
//! ```
//! Hysteresis: after each fall-back the stream must have been caught up for `back`, twice as long for each fall-back in
//! a row, before commits wait again. That somebody else took the name out makes it no longer.

use std::time::{Duration, Instant};

/// The policy's part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How long nobody may stream, or one commit may wait, before commits stop waiting.
    pub after: Duration,
    /// How long the stream must have been caught up before commits wait again.
    pub back: Duration,
}

/// How long the first start is watched.
const CALM: Duration = Duration::from_millis(500);
/// Longest wait before a return.
const LONGEST: Duration = Duration::from_mins(10);
/// Pause before a failed leave is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// What is known now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// The lane streams.
    pub streaming: bool,
    /// It streams and next to nothing is outstanding.
    pub caught_up: bool,
    /// The server's setting names the lane; none: the server did not say.
    pub named: Option<bool>,
    /// The guards in the database were there before the others were looked at; none: not known.
    pub guarded: Option<bool>,
    /// Why a guard took the name out.
    pub fell_back: Option<String>,
}

/// What is to be done; each is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Put guards up and the name in. Answer: [`Machine::handle_joined`].
    Join,
    /// Take the name out. Answer: [`Machine::handle_left`].
    Leave,
}

/// Where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Commits do not wait.
    Following {
        /// Caught up since then.
        calm: Option<Instant>,
        /// Why they do not: of the last fall-back or refusal.
        why: Option<String>,
    },
    /// The name was in the setting when we started.
    Inherited {
        /// Since then nobody has streamed.
        silent: Instant,
    },
    /// The name goes in.
    Joining,
    /// Commits wait.
    Synchronous {
        /// Since when.
        since: Instant,
        /// Since then nobody streams.
        silent: Option<Instant>,
    },
    /// The name goes out.
    Leaving {
        /// Why.
        why: String,
        /// Not before then, after a failure.
        pause: Option<Instant>,
        /// It is under way.
        under_way: bool,
    },
}

/// The state machine of one lane.
#[derive(Clone, Debug)]
pub struct Machine {
    settings: Settings,
    state: State,
    /// Fall-backs in a row.
    setbacks: u32,
    began: bool,
}

impl Machine {
    /// Knows nothing yet.
    pub fn new(settings: Settings) -> Self {
        Self { settings, state: State::Following { calm: None, why: None }, setbacks: 0, began: false }
    }

    /// Where it stands.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Commits may be waiting for the lane.
    pub fn may_wait(&self) -> bool {
        !matches!(self.state, State::Following { .. })
    }

    /// How long the stream must have been caught up before commits wait.
    pub fn calm_needed(&self) -> Duration {
        match self.setbacks {
            0 => CALM,
            times => (self.settings.back * 2_u32.saturating_pow(times.min(16) - 1)).min(LONGEST),
        }
    }

    /// New facts, or only time.
    pub fn handle(&mut self, facts: &Facts, now: Instant) -> Option<Action> {
        if !self.began {
            // Only what was there before us is inherited.
            let named = facts.named?;
            self.began = true;
            if named {
                self.state = State::Inherited { silent: now };
            }
        }
        match &mut self.state {
            State::Following { calm, why } => {
                if facts.named == Some(true) {
                    // No guard of ours watches over it. Another resource's lane wrote what it had read before we left, for one.
                    let why = why.clone();
                    let why =
                        why.unwrap_or_else(|| "synchronous_standby_names was to be without it".to_owned());
                    return Some(self.leave(why));
                }
                if !facts.caught_up {
                    *calm = None;
                    return None;
                }
                let since = *calm.get_or_insert(now);
                if now.duration_since(since) < self.calm_needed() {
                    return None;
                }
                self.state = State::Joining;
                Some(Action::Join)
            }
            State::Inherited { silent } => {
                if facts.named == Some(false) {
                    // A guard of the earlier process: no setback of ours, which would keep commits from waiting for `back`.
                    let why = facts.fell_back.clone();
                    let why = why
                        .unwrap_or_else(|| "the name was taken out of synchronous_standby_names".to_owned());
                    return Some(self.leave(why));
                }
                if facts.streaming {
                    // Caught up or not: commits wait already, and maybe without guards.
                    if facts.named == Some(true) {
                        self.state = State::Joining;
                        return Some(Action::Join);
                    }
                    *silent = now;
                }
                (now.duration_since(*silent) >= self.settings.after)
                    .then(|| self.fall_back("nobody streamed after the start", now))
            }
            State::Joining => None,
            State::Synchronous { silent, .. } => {
                // A guard's word counts before the setting does: sessions see a change of it a moment later.
                if let Some(why) = &facts.fell_back {
                    return Some(self.fall_back(why, now));
                }
                if facts.named == Some(false) {
                    // Another resource's guard, or an operator: it says nothing of this lane's shadow.
                    let before = self.setbacks;
                    let action = self.fall_back("somebody changed synchronous_standby_names", now);
                    self.setbacks = self.setbacks.min(before.max(1));
                    return Some(action);
                }
                if facts.streaming {
                    *silent = None;
                } else {
                    let since = *silent.get_or_insert(now);
                    if now.duration_since(since) >= self.settings.after {
                        let why = format!("nobody streamed for {:?}", self.settings.after);
                        return Some(self.fall_back(&why, now));
                    }
                }
                if facts.guarded == Some(false) && facts.streaming {
                    // Without guards nobody would release commits if this process ended.
                    self.state = State::Joining;
                    return Some(Action::Join);
                }
                None
            }
            State::Leaving { under_way, pause, .. } => {
                if *under_way || pause.is_some_and(|pause| now < pause) {
                    return None;
                }
                *under_way = true;
                Some(Action::Leave)
            }
        }
    }

    fn fall_back(&mut self, why: &str, now: Instant) -> Action {
        if let State::Synchronous { since, .. } = self.state
            && now.duration_since(since) > self.settings.back.saturating_mul(10)
        {
            self.setbacks = 0;
        }
        self.setbacks = self.setbacks.saturating_add(1);
        self.leave(why.to_owned())
    }

    fn leave(&mut self, why: String) -> Action {
        self.state = State::Leaving { why, pause: None, under_way: true };
        Action::Leave
    }

    /// The answer to [`Action::Join`].
    pub fn handle_joined(&mut self, result: Result<(), String>, now: Instant) -> Option<Action> {
        if self.state != State::Joining {
            return None;
        }
        match result {
            Ok(()) => {
                self.state = State::Synchronous { since: now, silent: None };
                None
            }
            // Half of it may be done.
            Err(why) => Some(self.fall_back(&format!("commits cannot wait: {why}"), now)),
        }
    }

    /// The answer to [`Action::Leave`].
    pub fn handle_left(&mut self, result: Result<(), String>, now: Instant) {
        let State::Leaving { why, .. } = &self.state else { return };
        let why = why.clone();
        self.state = match result {
            Ok(()) => State::Following { calm: None, why: Some(why) },
            Err(_) => State::Leaving { why, pause: Some(now + RETRY), under_way: false },
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: Settings = Settings { after: Duration::from_secs(5), back: Duration::from_secs(10) };

    fn facts(streaming: bool, named: bool) -> Facts {
        Facts {
            streaming,
            caught_up: streaming,
            named: Some(named),
            guarded: Some(named),
            ..Facts::default()
        }
    }

    struct Run {
        machine: Machine,
        now: Instant,
    }

    impl Run {
        fn new() -> Self {
            Self { machine: Machine::new(SETTINGS), now: crate::clock::now() }
        }

        fn after(&mut self, seconds: f64, facts: &Facts) -> Option<Action> {
            self.now += Duration::from_secs_f64(seconds);
            self.machine.handle(facts, self.now)
        }

        fn synchronous() -> Self {
            let mut run = Self::new();
            assert_eq!(run.after(0.0, &facts(true, false)), None);
            assert_eq!(run.after(0.6, &facts(true, false)), Some(Action::Join));
            assert_eq!(run.machine.handle_joined(Ok(()), run.now), None);
            run
        }
    }

    #[test]
    fn joins_only_when_caught_up_for_a_while() {
        let mut run = Run::new();
        assert_eq!(run.after(0.0, &Facts { caught_up: true, streaming: true, ..Facts::default() }), None);
        assert!(!run.machine.may_wait(), "the server has not said what it names");
        assert_eq!(run.after(9.0, &facts(true, false)), None);
        assert_eq!(run.after(0.3, &facts(false, false)), None);
        assert_eq!(run.after(0.3, &facts(true, false)), None, "counted from the last gap");
        assert_eq!(run.after(0.6, &facts(true, false)), Some(Action::Join));
        assert_eq!(run.after(0.6, &facts(true, false)), None, "once");
    }

    #[test]
    fn a_name_that_somebody_puts_back_is_taken_out() {
        let mut run = Run::new();
        assert_eq!(run.after(0.0, &facts(true, false)), None);
        let expected = Some(Action::Leave);
        assert_eq!(run.after(0.1, &facts(false, true)), expected, "whether or not it streams");
        assert!(run.machine.may_wait(), "until it has left");
        run.machine.handle_left(Ok(()), run.now);
        assert_eq!(run.after(0.1, &facts(true, false)), None);
        assert_eq!(run.after(0.6, &facts(true, false)), Some(Action::Join), "it was no setback");
    }

    #[test]
    fn a_short_gap_is_waited_out_a_long_one_is_not() {
        let mut run = Run::synchronous();
        assert_eq!(run.after(1.0, &facts(false, true)), None);
        assert_eq!(run.after(4.9, &facts(false, true)), None);
        assert_eq!(run.after(0.0, &facts(true, true)), None);
        assert_eq!(run.after(1.0, &facts(false, true)), None);
        assert_eq!(run.after(5.0, &facts(false, true)), Some(Action::Leave));
        assert!(run.machine.may_wait(), "until it has left");
        run.machine.handle_left(Err("no answer".into()), run.now);
        assert_eq!(run.after(0.5, &facts(false, true)), None);
        assert_eq!(run.after(0.6, &facts(false, true)), Some(Action::Leave), "tried again");
        run.machine.handle_left(Ok(()), run.now);
        assert!(!run.machine.may_wait());
    }

    #[test]
    fn the_way_back_gets_longer_with_each_setback_and_short_again() {
        let mut run = Run::synchronous();
        let fell_back = Facts { fell_back: Some("a commit waited".into()), ..facts(true, false) };
        for needed in [10.0, 20.0, 40.0] {
            assert_eq!(run.after(0.1, &fell_back), Some(Action::Leave), "its guard took it out");
            run.machine.handle_left(Ok(()), run.now);
            assert_eq!(run.after(0.0, &facts(true, false)), None);
            assert_eq!(run.after(needed - 0.1, &facts(true, false)), None);
            assert_eq!(run.after(0.2, &facts(true, false)), Some(Action::Join));
            run.machine.handle_joined(Ok(()), run.now);
        }
        assert_eq!(run.after(101.0, &facts(true, true)), None);
        assert_eq!(run.after(0.1, &fell_back), Some(Action::Leave));
        assert_eq!(run.machine.calm_needed(), SETTINGS.back);
    }

    #[test]
    fn what_others_take_out_does_not_make_the_way_back_longer() {
        let mut run = Run::synchronous();
        for _ in 0..3 {
            assert_eq!(run.after(0.1, &facts(true, false)), Some(Action::Leave), "not its own guard");
            run.machine.handle_left(Ok(()), run.now);
            assert_eq!(run.after(0.0, &facts(true, false)), None);
            assert_eq!(run.after(9.9, &facts(true, false)), None);
            assert_eq!(run.after(0.2, &facts(true, false)), Some(Action::Join));
            run.machine.handle_joined(Ok(()), run.now);
        }
    }

    #[test]
    fn a_guard_that_fell_back_is_not_replaced() {
        let mut run = Run::synchronous();
        let lost = Facts { guarded: Some(false), ..facts(true, true) };
        let fell_back = Facts { fell_back: Some("a commit waited".into()), ..lost.clone() };
        assert_eq!(
            run.after(0.1, &fell_back),
            Some(Action::Leave),
            "though the setting still names the lane"
        );
        assert!(matches!(run.machine.state(), State::Leaving { why, .. } if why == "a commit waited"));
        let mut run = Run::synchronous();
        assert_eq!(
            run.after(0.1, &lost),
            Some(Action::Join),
            "it died, and commits must not be left unguarded"
        );
    }

    #[test]
    fn a_refusal_leaves_and_says_why() {
        let mut run = Run::new();
        run.after(0.0, &facts(true, false));
        assert_eq!(run.after(1.0, &facts(true, false)), Some(Action::Join));
        assert_eq!(run.machine.handle_joined(Err("no right".into()), run.now), Some(Action::Leave));
        run.machine.handle_left(Ok(()), run.now);
        let State::Following { why: Some(why), .. } = run.machine.state() else { panic!("following") };
        assert!(why.contains("no right"), "{why}");
    }

    #[test]
    fn what_an_earlier_process_left_is_taken_over_or_undone() {
        let mut run = Run::new();
        assert_eq!(run.after(0.0, &facts(false, true)), None);
        assert_eq!(run.after(1.0, &facts(true, true)), Some(Action::Join), "at once, with new guards");

        let mut run = Run::new();
        assert_eq!(run.after(0.0, &facts(false, true)), None);
        assert!(run.machine.may_wait());
        assert_eq!(run.after(5.0, &facts(false, true)), Some(Action::Leave));
    }

    #[test]
    fn what_an_earlier_process_left_gets_guards_however_far_the_shadow_is_behind() {
        let slow = Facts { caught_up: false, ..facts(true, true) };
        let unseen = Facts { named: None, guarded: None, ..slow.clone() };
        let mut run = Run::new();
        assert_eq!(run.after(0.0, &facts(false, true)), None);
        assert_eq!(run.after(6.0, &unseen), None, "it streams, but the server does not answer");
        assert_eq!(run.after(6.0, &slow), Some(Action::Join));
        assert_eq!(run.machine.handle_joined(Ok(()), run.now), None);
        assert_eq!(run.after(60.0, &slow), None, "its guards see to it that no commit waits for long");
    }

    #[test]
    fn a_guard_that_lets_go_as_we_start_is_no_setback_of_ours() {
        let mut run = Run::new();
        assert_eq!(run.after(0.0, &facts(false, true)), None);
        let fell_back = Facts { fell_back: Some("nobody streamed".into()), ..facts(true, false) };
        assert_eq!(run.after(0.1, &fell_back), Some(Action::Leave));
        assert!(matches!(run.machine.state(), State::Leaving { why, .. } if why == "nobody streamed"));
        run.machine.handle_left(Ok(()), run.now);
        assert_eq!(run.after(0.1, &facts(true, false)), None);
        assert_eq!(
            run.after(0.6, &facts(true, false)),
            Some(Action::Join),
            "it comes back as after any start"
        );
    }

    #[test]
    fn missing_guards_are_put_up_again() {
        let mut run = Run::synchronous();
        let unguarded = Facts { guarded: Some(false), ..facts(true, true) };
        assert_eq!(run.after(1.0, &unguarded), Some(Action::Join));
    }
}
