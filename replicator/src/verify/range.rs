//! Keys, ranges of keys, and what is read of them.

use serde::{Deserialize, Serialize};

/// The values of a row's key columns as text, in key order. A row without a key goes by the hash of its content.
pub type Key = Vec<String>;

/// Rows with `after < key <= until`; an absent bound is none.
///
/// A chain of ranges, each beginning where the one before ended, from no bound to no bound, covers every key at least once in
/// *any* order of the keys: a side that sorts text differently is searched less neatly, but not less completely.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Range {
    /// Exclusive lower bound.
    pub after: Option<Key>,
    /// Inclusive upper bound.
    pub until: Option<Key>,
}

impl Range {
    /// Cuts at these keys, which lie inside.
    pub fn cut(&self, at: Vec<Key>) -> Vec<Self> {
        let mut after = self.after.clone();
        let mut parts: Vec<Self> = Vec::with_capacity(at.len() + 1);
        for key in at {
            if Some(&key) == self.until.as_ref() {
                break;
            }
            parts.push(Self { after: after.replace(key.clone()), until: Some(key) });
        }
        parts.push(Self { after, until: self.until.clone() });
        parts
    }
}

/// The two databases.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// Where clients write.
    Source,
    /// Where the stream is applied.
    Target,
}

/// Number of rows and sum of their hashes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Sum {
    /// Rows.
    pub rows: u64,
    /// Sum of the hashes, each 64-bit half by itself.
    pub hash: u128,
}

impl Sum {
    /// Both together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self { rows: self.rows + other.rows, hash: add_halves(self.hash, other.hash) }
    }
}

/// Adds each 64-bit half by itself, without carry between them.
pub(super) fn add_halves(a: u128, b: u128) -> u128 {
    let high = ((a >> 64) as u64).wrapping_add((b >> 64) as u64);
    let low = (a as u64).wrapping_add(b as u64);
    u128::from(high) << 64 | u128::from(low)
}

/// One row as one side has it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RowMark {
    /// Hash of its content; of several rows under one key, the sum.
    pub hash: u128,
    /// Names the row's version: a row that was written again, even with the same content, has another.
    pub version: String,
}

impl RowMark {
    /// A second row under the same key: something that a unique key forbids, and a table without one allows.
    #[must_use]
    pub fn with(self, other: Self) -> Self {
        Self {
            hash: add_halves(self.hash, other.hash),
            version: format!("{} {}", self.version, other.version),
        }
    }
}

/// One key on both sides.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Pair {
    /// On the source.
    pub source: Option<RowMark>,
    /// On the target, read after the target had applied all that the source had at its reading.
    pub target: Option<RowMark>,
}

impl Pair {
    /// Same content, or absent on both sides.
    pub fn equal(&self) -> bool {
        self.source.as_ref().map(|row| row.hash) == self.target.as_ref().map(|row| row.hash)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_do_not_carry() {
        assert_eq!(add_halves(u128::from(u64::MAX), 1), 0);
        assert_eq!(add_halves(u128::MAX, 1 << 64), u128::from(u64::MAX));
    }

    #[test]
    fn a_cut_range_is_the_same_range() {
        let key = |text: &str| Some(vec![text.to_owned()]);
        let range = Range { after: key("a"), until: key("m") };
        let parts = range.cut(vec![vec!["c".into()], vec!["f".into()]]);
        let expected = [(key("a"), key("c")), (key("c"), key("f")), (key("f"), key("m"))];
        assert_eq!(parts, expected.map(|(after, until)| Range { after, until }));
        // A cut at the end makes no empty part.
        assert_eq!(range.cut(vec![vec!["m".into()]]), std::slice::from_ref(&range));
        assert_eq!(Range::default().cut(Vec::new()), [Range::default()]);
    }
}
