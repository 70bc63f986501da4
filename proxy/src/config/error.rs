//! Everything that is wrong with the configuration, each problem with its position.

use std::cell::RefCell;
use std::fmt;

use crate::audit::entry::holds_password;

/// A place in a file; both numbers start at 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Position {
    pub(super) line: u64,
    pub(super) column: u64,
}

impl Position {
    pub(super) const START: Self = Self { line: 1, column: 1 };
}

/// One thing that is wrong. Its text holds no password as a URL or a connection string has one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file, as the caller named it.
    pub file: String,
    /// Line, from 1.
    pub line: u64,
    /// Column in characters, from 1.
    pub column: u64,
    /// Dotted key; empty when the whole file is meant.
    pub key: String,
    /// What is wrong.
    pub what: String,
    /// What would be right.
    pub right: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)?;
        for part in [&self.key, &self.what, &self.right] {
            if !part.is_empty() {
                write!(f, "  {part}")?;
            }
        }
        Ok(())
    }
}

/// All problems of a configuration, at least one, by file and position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigErrors {
    problems: Vec<Problem>,
}

impl ConfigErrors {
    /// The problems, in the order of the files and of the positions in them.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// A file that cannot be read.
    pub(crate) fn unreadable(path: &std::path::Path, error: &std::io::Error) -> Self {
        let report = Report::new(path.display().to_string());
        report.note(Position::START, "", format!("cannot be read: {error}"), "a readable file");
        Self::of(report)
    }

    /// The problems of one report that has some.
    pub(super) fn of(report: Report) -> Self {
        Self { problems: report.problems.into_inner() }
    }

    /// Puts the reports of several files together; `None` when none of them has a problem.
    pub(super) fn gather(reports: Vec<Report>) -> Option<Self> {
        let mut problems = Vec::new();
        for report in reports {
            let mut of_file = report.problems.into_inner();
            of_file.sort_by(|a, b| (a.line, a.column, &a.key).cmp(&(b.line, b.column, &b.key)));
            of_file.dedup();
            problems.append(&mut of_file);
        }
        (!problems.is_empty()).then_some(Self { problems })
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.problems.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

/// Collects the problems of one file.
pub(super) struct Report {
    file: String,
    problems: RefCell<Vec<Problem>>,
}

impl Report {
    pub(super) fn new(file: impl Into<String>) -> Self {
        Self { file: file.into(), problems: RefCell::default() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.problems.borrow().is_empty()
    }

    pub(super) fn note(
        &self,
        at: Position,
        key: impl Into<String>,
        what: impl Into<String>,
        right: impl Into<String>,
    ) {
        self.problems.borrow_mut().push(Problem {
            file: self.file.clone(),
            line: at.line,
            column: at.column,
            key: one_line(&key.into()),
            what: one_line(&without_password(what.into())),
            right: one_line(&right.into()),
        });
    }
}

/// Values are quoted, and somebody may have written a password into one.
fn without_password(what: String) -> String {
    let in_url = what.split_once("://").is_some_and(|(_, rest)| rest.contains('@'));
    if !in_url && !holds_password(&what) {
        return what;
    }
    // A value may have such marks itself: nothing between the first one and the last is shown.
    match (what.split_once('`'), what.rsplit_once('`')) {
        (Some((before, _)), Some((_, after)))
            if !before.contains("://")
                && !after.contains('@')
                && ![before, after].into_iter().any(holds_password) =>
        {
            format!("{before}`…`{after}")
        }
        _ => "…".to_owned(),
    }
}

/// A problem is one line of bounded length, whatever the file holds.
fn one_line(text: &str) -> String {
    const LONGEST: usize = 300;
    let mut line: String = String::with_capacity(text.len().min(LONGEST));
    for (i, c) in text.chars().enumerate() {
        if i == LONGEST {
            line.push('…');
            break;
        }
        if c.is_control() { line.extend(c.escape_default()) } else { line.push(c) }
    }
    line
}

/// `1 endpoint`, `2 endpoints`.
pub(super) fn counted(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

/// `did you mean …?` when a candidate is close to `wrong`, else the list of candidates.
pub(crate) fn suggest<'a>(wrong: &str, candidates: impl IntoIterator<Item = &'a str>) -> String {
    let candidates: Vec<&str> = candidates.into_iter().collect();
    let limit = (wrong.chars().count() / 3).clamp(1, 3);
    let closest = candidates
        .iter()
        .map(|candidate| (distance(wrong, candidate), *candidate))
        .filter(|(distance, _)| *distance <= limit)
        .min();
    match closest {
        Some((_, candidate)) => format!("did you mean `{candidate}`?"),
        None if candidates.is_empty() => "there is none to choose from".into(),
        None => format!("known here: {}", candidates.join(", ")),
    }
}

/// Edits (insert, delete, replace, swap neighbours) between two words, ignoring case.
fn distance(a: &str, b: &str) -> usize {
    // Longer words are never close enough; this bounds the work on hostile input.
    const LONGEST: usize = 64;
    let a: Vec<char> = a.to_lowercase().chars().take(LONGEST).collect();
    let b: Vec<char> = b.to_lowercase().chars().take(LONGEST).collect();
    // rows[i][j]: from the first i letters of a to the first j of b; right as it stands where i or j is 0.
    let mut rows: Vec<Vec<usize>> = (0..=a.len()).map(|i| (i..=i + b.len()).collect()).collect();
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            rows[i][j] = replaced.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                rows[i][j] = rows[i][j].min(rows[i - 2][j - 2] + 1);
            }
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::{distance, suggest, without_password};

    #[test]
    fn close_words_are_suggested() {
        assert_eq!(distance("zones", "zones"), 0);
        assert_eq!(distance("zoens", "zones"), 1);
        assert_eq!(distance("", "ab"), 2);
        assert_eq!(suggest("max_hodl", ["max_lag", "max_hold"]), "did you mean `max_hold`?");
        assert_eq!(suggest("xyz", ["a", "b"]), "known here: a, b");
    }

    #[test]
    fn a_value_with_a_password_is_not_quoted() {
        let shown = |text: &str| without_password(text.to_owned());
        for value in
            ["http://u:hunter2@h:1", "http://u:hunter 2@h", "http://u:hun`ter2@h", "host=h password=hunter2"]
        {
            assert_eq!(shown(&format!("`{value}` is not an endpoint")), "`…` is not an endpoint");
            assert_eq!(shown(&format!("is no text: {value}")), "…");
        }
        for text in ["`http://h:1` is not an endpoint", "there is no zone `password`", "is missing"] {
            assert_eq!(shown(text), text);
        }
    }
}
