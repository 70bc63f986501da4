//! The newest records, for people. Nothing is checked here; [`super::verify`] does.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use serde_json::Value;

use super::folder;

/// Which records.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// At most so many.
    pub limit: usize,
    /// Only those before this number.
    pub before: u64,
    /// Only those about this resource.
    pub resource: Option<String>,
    /// Only those of this caller, by name or by which one it is.
    pub who: Option<String>,
}

impl Wanted {
    fn wants(&self, record: &Value) -> bool {
        let number = record["seq"].as_u64().unwrap_or(u64::MAX);
        let about = |name: &String| {
            // What an earlier program recorded names it in its path only.
            let path = record["path"].as_str().and_then(|path| path.strip_prefix("/api/v1/resources/"));
            let in_path = path.and_then(|rest| rest.split('/').next()) == Some(name);
            in_path || record["resource"].as_str() == Some(name)
        };
        number < self.before
            && self.resource.as_ref().is_none_or(about)
            && self
                .who
                .as_ref()
                .is_none_or(|who| ["name", "id"].iter().any(|key| record["who"][*key].as_str() == Some(who)))
    }
}

/// Bytes of a file that are read at a time.
const BLOCK: u64 = 64 << 10;

/// The newest records that are wanted, newest first. Files are read from their ends: how long an audit is does not matter where the
/// newest records are among the wanted ones.
pub fn newest(directory: &Path, wanted: &Wanted) -> io::Result<Vec<Value>> {
    let mut found = Vec::new();
    for path in folder::files(directory)?.into_iter().rev() {
        let mut lines = Backwards::new(File::open(path)?)?;
        while found.len() < wanted.limit
            && let Some(line) = lines.next_line()?
        {
            // The last one may be under way.
            let Ok(record) = serde_json::from_slice::<Value>(&line) else { continue };
            if wanted.wants(&record) {
                found.push(record);
            }
        }
    }
    Ok(found)
}

/// Lines of a file, last first.
struct Backwards {
    file: File,
    /// What was not read yet ends here.
    end: u64,
    /// Bytes from `end` on that belong to lines not handed out yet.
    rest: Vec<u8>,
}

impl Backwards {
    fn new(file: File) -> io::Result<Self> {
        let end = file.metadata()?.len();
        Ok(Self { file, end, rest: Vec::new() })
    }

    /// The line before, without its newline; none: that was the first. A line that is longer than a record can be ends it.
    fn next_line(&mut self) -> io::Result<Option<Vec<u8>>> {
        if self.rest.last() == Some(&b'\n') {
            self.rest.pop();
        }
        let mut searched = 0;
        loop {
            let unread = &self.rest[..self.rest.len() - searched];
            if let Some(before) = unread.iter().rposition(|byte| *byte == b'\n') {
                return Ok(Some(self.rest.split_off(before + 1)));
            }
            searched = self.rest.len();
            if self.end == 0 || searched as u64 > folder::LONGEST {
                self.end = 0;
                let first = std::mem::take(&mut self.rest);
                return Ok((!first.is_empty()).then_some(first));
            }
            let length = BLOCK.min(self.end);
            self.end -= length;
            let mut block = vec![0; length as usize];
            self.file.read_exact_at(&mut block, self.end)?;
            if self.rest.is_empty() && block.last() == Some(&b'\n') {
                block.pop();
            }
            block.append(&mut self.rest);
            self.rest = block;
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Write as _;

    use proptest::prelude::*;

    use super::*;

    fn backwards(text: &[u8]) -> Vec<Vec<u8>> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text).unwrap();
        let mut lines = Backwards::new(file.reopen().unwrap()).unwrap();
        let mut found = Vec::new();
        while let Some(line) = lines.next_line().unwrap() {
            found.push(line);
        }
        found
    }

    #[test]
    fn a_caller_is_found_by_name_and_by_id() {
        let record = serde_json::json!({ "seq": 1, "who": { "name": "ann", "id": "3f8h" } });
        for (who, found) in [(None, true), (Some("ann"), true), (Some("3f8h"), true), (Some("bob"), false)] {
            let who = who.map(str::to_owned);
            assert_eq!(Wanted { limit: 1, before: 2, resource: None, who }.wants(&record), found);
        }
    }

    #[test]
    fn lines_come_last_first() {
        assert!(backwards(b"").is_empty());
        assert_eq!(backwards(b"one\ntwo\n"), [b"two", b"one"]);
        // The last one is not whole yet.
        assert_eq!(backwards(b"one\ntw"), [&b"tw"[..], b"one"]);
    }

    #[test]
    fn a_file_without_newlines_is_not_read_whole() {
        let text = vec![b'x'; 3 << 20];
        let lines = backwards(&text);
        assert!(lines.len() == 1 && lines[0].len() < 2 << 20);
    }

    proptest! {
        #[test]
        fn however_long_lines_are(lengths in proptest::collection::vec(1_usize..100_000, 0..12), ends in any::<bool>()) {
            let lines: Vec<Vec<u8>> =
                lengths.iter().enumerate().map(|(at, length)| vec![b'a' + (at % 26) as u8; *length]).collect();
            let mut text = lines.join(&b'\n');
            if ends && !lines.is_empty() {
                text.push(b'\n');
            }
            let expected: Vec<_> = lines.into_iter().rev().collect();
            prop_assert_eq!(backwards(&text), expected);
        }
    }
}
