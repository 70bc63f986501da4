//! Does a key that was found different really differ, or did it only move between the two readings?
//!
//! A reading of a key is in three steps: the source is read at some position L; the target is awaited to have applied L;
//! the target is read, at some position A. The target only ever shows what the source had, so readings of one key, made one
//! after the other, have L₁ ≤ A₁ ≤ L₂ ≤ A₂ ….
//!
//! | reading | verdict |
//! |---|---|
//! | both sides have the same content, or neither has the row | equal |
//! | the source showed the *same version* of the row at L₁ and L₂, and the target something else at A₁ | different: the row did not move in L₁..L₂, and A₁ is in between |
//! | the target showed the *same version* of the row at A₁ and A₂, and the source something else at L₂ | different: whatever had changed the source's row would have written the target's |
//! | the source's row was held (`FOR SHARE`) while the target was read, and the target had something else | different |
//! | anything else | read again |
//!
//! A version is the place and the writing transaction of a row, never its content: a value that goes and comes back is no
//! proof of rest. The second and third line also need that a commit which the target can show is visible on the
//! source; a commit that waits for a synchronous standby is not, though the stream may have carried it. Readings
//! say whether that was made sure ([`Answer::decisive`]); one that could not proves nothing but equality.
//!
//! Where several equal rows may be under one key (a table without one, where the key is the content) there is one more question: how many. The
//! versions of all of them rest together, and yet one more may have come and gone in between; nor does a held row keep another from
//! coming. So nothing is held, and the second line needs that the target had *fewer* at A₁, the third that the source had fewer at L₂.
//!
//! A key that never rests is held for one reading. What cannot be held (a row that comes and goes) and does not rest either
//! is given up after a bound: *unsettled*, told apart from equal and from different.

use std::collections::{BTreeMap, VecDeque};

use super::range::{Key, Pair, RowMark};

/// What is found out about a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Same content, or absent on both sides.
    Equal,
    /// The target lacks the row.
    Missing,
    /// Only the target has the row.
    Extra,
    /// Both have it, with different content.
    Changed,
    /// It moved at every reading.
    Unsettled,
}

/// How patient settling is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// Readings after which the source's row is held; `None`: never.
    pub hold_after: Option<u32>,
    /// Readings after which a key is given up.
    pub give_up_after: u32,
    /// Several rows may be under one key.
    pub several: bool,
}

impl Patience {
    /// The same for rows without a key.
    #[must_use]
    pub fn of_several(self) -> Self {
        Self { hold_after: None, several: true, ..self }
    }
}

impl Default for Patience {
    fn default() -> Self {
        Self { hold_after: Some(12), give_up_after: 60, several: false }
    }
}

/// Keys to read on both sides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    /// Which.
    pub keys: Vec<Key>,
    /// Hold the source's rows until the target is read.
    pub hold: bool,
    /// How often the most patient of them was read before.
    pub round: u32,
}

/// What was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// In the order of [`Ask::keys`].
    pub pairs: Vec<Pair>,
    /// Every commit that the target could show *before* this reading was visible on the source *at* this reading.
    pub decisive: bool,
    /// The source's rows were held while the target was read.
    pub held: bool,
}

#[derive(Debug)]
struct Candidate {
    last: Option<Pair>,
    rounds: u32,
}

/// The keys of one table that are not settled.
#[derive(Debug)]
pub struct Settle {
    patience: Patience,
    open: BTreeMap<Key, Candidate>,
    turn: VecDeque<Key>,
    asked: Option<Vec<Key>>,
    /// Keys that are held at their next reading.
    hold: VecDeque<Key>,
}

/// Held rows make their writers wait: few at a time.
const HOLD_AT_ONCE: usize = 8;

impl Settle {
    /// Nothing is open.
    pub fn new(patience: Patience) -> Self {
        Self { patience, open: BTreeMap::new(), turn: VecDeque::new(), asked: None, hold: VecDeque::new() }
    }

    /// A key to look at; `seen` is a reading of it that is already there. False when it is open already.
    pub fn add(&mut self, key: Key, seen: Option<Pair>) -> bool {
        if self.open.contains_key(&key) {
            return false;
        }
        self.turn.push_back(key.clone());
        let rounds = u32::from(seen.is_some());
        self.open.insert(key, Candidate { last: seen, rounds });
        true
    }

    /// Keys that are open.
    pub fn len(&self) -> usize {
        self.open.len()
    }

    /// Nothing is open.
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// What to read next, at most `limit` keys; nothing while an answer is awaited.
    pub fn poll(&mut self, limit: usize) -> Option<Ask> {
        if self.asked.is_some() {
            return None;
        }
        let hold = !self.hold.is_empty();
        let (queue, limit) = if hold { (&mut self.hold, HOLD_AT_ONCE) } else { (&mut self.turn, limit) };
        let keys: Vec<Key> = queue.drain(..limit.min(queue.len())).collect();
        if keys.is_empty() {
            return None;
        }
        let round =
            keys.iter().filter_map(|key| self.open.get(key)).map(|open| open.rounds).max().unwrap_or(0);
        self.asked = Some(keys.clone());
        Some(Ask { keys, hold, round })
    }

    /// Takes the answer to the last [`Settle::poll`]; returns what is settled by it.
    pub fn handle(&mut self, answer: &Answer) -> Vec<(Key, Verdict)> {
        let keys = self.asked.take().unwrap_or_default();
        let mut settled = Vec::new();
        for (key, pair) in keys.into_iter().zip(&answer.pairs) {
            let Some(candidate) = self.open.get_mut(&key) else { continue };
            candidate.rounds += 1;
            match judge(candidate.last.as_ref(), pair, answer, self.patience.several) {
                Some(verdict) => settled.push((key, verdict)),
                None if candidate.rounds >= self.patience.give_up_after => {
                    settled.push((key, Verdict::Unsettled));
                }
                None => {
                    let hold = self.patience.hold_after.is_some_and(|after| candidate.rounds >= after);
                    // Only a row that is there can be held.
                    if hold && pair.source.is_some() { &mut self.hold } else { &mut self.turn }
                        .push_back(key);
                    candidate.last = Some(pair.clone());
                }
            }
        }
        for (key, _) in &settled {
            self.open.remove(key);
        }
        settled
    }

    /// Reads the asked keys again later: their reading failed.
    pub fn handle_failure(&mut self) {
        self.turn.extend(self.asked.take().unwrap_or_default());
    }
}

fn judge(last: Option<&Pair>, now: &Pair, answer: &Answer, several: bool) -> Option<Verdict> {
    if now.equal() {
        return Some(Verdict::Equal);
    }
    if answer.held && now.source.is_some() {
        return Some(differs(now));
    }
    let last = last.filter(|_| answer.decisive)?;
    let same_version = |before: Option<&RowMark>, now: Option<&RowMark>| matches!((before, now), (Some(before), Some(now)) if before.version == now.version);
    let fewer = |one: Option<&RowMark>, other: Option<&RowMark>| !several || copies(one) < copies(other);
    let source_rested = same_version(last.source.as_ref(), now.source.as_ref())
        && !last.equal()
        && fewer(last.target.as_ref(), last.source.as_ref());
    let target_rested = same_version(last.target.as_ref(), now.target.as_ref())
        && fewer(now.source.as_ref(), now.target.as_ref());
    (source_rested || target_rested).then(|| differs(now))
}

/// Rows under one key.
fn copies(row: Option<&RowMark>) -> usize {
    row.map_or(0, |row| row.version.split(' ').count())
}

fn differs(pair: &Pair) -> Verdict {
    match (&pair.source, &pair.target) {
        (Some(_), None) => Verdict::Missing,
        (None, Some(_)) => Verdict::Extra,
        _ => Verdict::Changed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[allow(clippy::unnecessary_wraps, reason = "as readings have it")]
    fn row(hash: u128, version: &str) -> Option<RowMark> {
        Some(RowMark { hash, version: version.into() })
    }

    fn pair(source: Option<RowMark>, target: Option<RowMark>) -> Pair {
        Pair { source, target }
    }

    /// Reads one key again and again.
    fn read(settle: &mut Settle, pair: Pair, decisive: bool) -> Option<Verdict> {
        let ask = settle.poll(10).expect("the key is open");
        assert_eq!(ask.keys.len(), 1);
        let answer = Answer { pairs: vec![pair], decisive, held: false };
        settle.handle(&answer).pop().map(|(_, verdict)| verdict)
    }

    fn open(seen: Option<Pair>) -> Settle {
        let mut settle = Settle::new(Patience { hold_after: Some(4), give_up_after: 6, several: false });
        assert!(settle.add(vec!["k".into()], seen.clone()));
        assert!(!settle.add(vec!["k".into()], seen), "a key is open once");
        settle
    }

    #[test]
    fn a_row_that_rested_on_the_source_decides() {
        for (target, verdict) in [(row(2, "t"), Verdict::Changed), (None, Verdict::Missing)] {
            let mut settle = open(Some(pair(row(1, "s"), target.clone())));
            assert_eq!(read(&mut settle, pair(row(1, "s"), target), true), Some(verdict));
            assert!(settle.is_empty());
        }
    }

    #[test]
    fn the_same_content_in_another_version_decides_nothing() {
        let mut settle = open(Some(pair(row(1, "s1"), row(2, "t1"))));
        assert_eq!(read(&mut settle, pair(row(1, "s2"), row(2, "t2")), true), None);
        assert_eq!(read(&mut settle, pair(row(1, "s2"), row(1, "t3")), true), Some(Verdict::Equal));
    }

    #[test]
    fn an_extra_row_must_rest_on_the_target() {
        let mut settle = open(Some(pair(None, row(2, "t1"))));
        assert_eq!(read(&mut settle, pair(None, row(2, "t2")), true), None);
        assert_eq!(read(&mut settle, pair(None, row(2, "t2")), true), Some(Verdict::Extra));
    }

    #[test]
    fn a_commit_that_the_source_does_not_show_yet_decides_nothing() {
        // The target has what a commit wrote that still waits for its synchronous standby.
        let mut settle = open(Some(pair(row(1, "s"), row(2, "t"))));
        assert_eq!(read(&mut settle, pair(row(1, "s"), row(2, "t")), false), None);
        assert_eq!(read(&mut settle, pair(row(2, "s2"), row(2, "t")), false), Some(Verdict::Equal));
    }

    #[test]
    fn what_never_rests_is_held_and_what_cannot_be_held_is_given_up() {
        let mut settle = open(None);
        for round in 0..4 {
            let moving = pair(row(1, &format!("s{round}")), row(2, &format!("t{round}")));
            assert_eq!(read(&mut settle, moving, true), None);
        }
        let ask = settle.poll(10).expect("open");
        assert!(ask.hold);
        assert_eq!(settle.poll(10), None, "one question at a time");
        let held = Answer { pairs: vec![pair(row(7, "s9"), row(8, "t9"))], decisive: false, held: true };
        assert_eq!(settle.handle(&held), [(vec!["k".to_owned()], Verdict::Changed)]);

        let mut settle = open(None);
        for round in 0..5 {
            assert_eq!(read(&mut settle, pair(None, row(2, &round.to_string())), true), None);
        }
        assert_eq!(read(&mut settle, pair(None, row(2, "t")), true), Some(Verdict::Unsettled));
    }
    #[test]
    fn of_equal_rows_one_more_that_came_and_went_is_no_difference() {
        let rows = |count: usize, version: &str| {
            let mark = |_| RowMark { hash: 1, version: version.into() };
            (0..count).map(mark).reduce(RowMark::with)
        };
        let open = || {
            let mut settle =
                Settle::new(Patience { hold_after: Some(1), ..Patience::default() }.of_several());
            settle.add(vec!["k".into()], None);
            settle
        };
        let mut settle = open();
        // The target shows what was there between the two readings of the source.
        assert_eq!(read(&mut settle, pair(rows(2, "s"), rows(3, "t")), true), None);
        assert_eq!(read(&mut settle, pair(rows(2, "s"), rows(4, "t")), true), None);
        assert_eq!(settle.open.len(), 1, "and nothing is held");
        assert_eq!(read(&mut settle, pair(rows(2, "s"), rows(2, "t")), true), Some(Verdict::Equal));
        let mut settle = open();
        assert_eq!(read(&mut settle, pair(rows(2, "s"), rows(1, "t")), true), None);
        assert_eq!(
            read(&mut settle, pair(rows(2, "s"), rows(1, "u")), true),
            Some(Verdict::Changed),
            "one is missing"
        );
        let mut settle = open();
        assert_eq!(read(&mut settle, pair(rows(1, "s"), rows(2, "t")), true), None);
        assert_eq!(read(&mut settle, pair(None, rows(2, "t")), true), Some(Verdict::Extra));
    }
}
