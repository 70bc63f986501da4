//! What a verification reports.

use serde::{Deserialize, Serialize};

use super::range::Key;
use super::settle::Verdict;

/// Something that is not the same on both sides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// `schema.table`, quoted where SQL needs it.
    pub table: String,
    /// Key columns and values; empty: the table as a whole. A row of a table without a key is named by its content's hash.
    pub key: Vec<(String, String)>,
    /// What.
    pub kind: Kind,
    /// Columns that differ; values only where they were asked for.
    pub columns: Vec<ColumnDifference>,
}

/// What differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The target lacks the row.
    Missing,
    /// Only the target has the row.
    Extra,
    /// Columns have other values.
    Changed,
    /// The row moved at every reading: nothing is known.
    Unsettled,
    /// The target lacks the table.
    TableMissing,
    /// Only the target has the table.
    TableExtra,
    /// Columns exist on one side only.
    ColumnsMissing,
    /// The target lacks the sequence.
    SequenceMissing,
}

impl Kind {
    /// Of a settled key; `None`: equal.
    pub fn of(verdict: Verdict) -> Option<Self> {
        match verdict {
            Verdict::Equal => None,
            Verdict::Missing => Some(Self::Missing),
            Verdict::Extra => Some(Self::Extra),
            Verdict::Changed => Some(Self::Changed),
            Verdict::Unsettled => Some(Self::Unsettled),
        }
    }

    /// In words.
    pub fn words(self) -> &'static str {
        match self {
            Self::Missing => "missing on the target",
            Self::Extra => "only on the target",
            Self::Changed => "differs",
            Self::Unsettled => "moved at every reading",
            Self::TableMissing => "the target lacks the table",
            Self::TableExtra => "only the target has the table",
            Self::ColumnsMissing => "columns exist on one side only",
            Self::SequenceMissing => "the target lacks the sequence",
        }
    }
}

/// A column that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ColumnDifference {
    /// Its name.
    pub name: String,
    /// Value on the source, if it was asked for; NULL is `null`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub values: Option<(Option<String>, Option<String>)>,
}

/// Where a verification stands; enough to go on from there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Tables to compare.
    pub tables: u64,
    /// Tables done.
    pub tables_done: u64,
    /// Rows looked at.
    pub rows: u64,
    /// About how many there are.
    pub rows_estimate: u64,
    /// Differences found.
    pub differences: u64,
    /// The table under way: every table before it (in name order) is done.
    pub table: Option<String>,
    /// Every key up to here in that table is done.
    pub after: Option<Key>,
}

/// What happens while it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Happening {
    /// It stands here.
    Progress(Progress),
    /// Something differs. May be told again after a resumption.
    Difference(Difference),
    /// Something that is not compared, or worth knowing.
    Note(String),
}
