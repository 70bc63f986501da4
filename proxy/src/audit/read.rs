//! The newest records, for people. Nothing is checked here; [`super::verify`] does.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufReader};
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
    /// Only those of this caller.
    pub who: Option<String>,
}

impl Wanted {
    fn wants(&self, record: &Value) -> bool {
        let number = record["seq"].as_u64().unwrap_or(u64::MAX);
        let about = |name: &String| {
            let path = record["path"].as_str().and_then(|path| path.strip_prefix("/api/v1/resources/"));
            let in_path = path.and_then(|rest| rest.split('/').next()) == Some(name);
            in_path || record["resource"].as_str() == Some(name)
        };
        number < self.before
            && self.resource.as_ref().is_none_or(about)
            && self.who.as_ref().is_none_or(|who| record["who"]["name"].as_str() == Some(who))
    }
}

/// The newest records that are wanted, newest first.
pub fn newest(directory: &Path, wanted: &Wanted) -> io::Result<Vec<Value>> {
    let mut found = Vec::new();
    for path in folder::files(directory)?.into_iter().rev() {
        let missing = wanted.limit - found.len();
        if missing == 0 {
            break;
        }
        let mut reader = BufReader::new(File::open(path)?);
        let mut last = VecDeque::with_capacity(missing);
        while let Some((line, _)) = folder::read_line(&mut reader)? {
            let Ok(record) = serde_json::from_slice::<Value>(&line) else { continue };
            if wanted.wants(&record) {
                if last.len() == missing {
                    last.pop_front();
                }
                last.push_back(record);
            }
        }
        found.extend(last.into_iter().rev());
    }
    Ok(found)
}
