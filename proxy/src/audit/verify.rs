//! Reads an audit again: is the chain whole, and does it still reach every checkpoint?

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader};
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::chain::{self, Broken};
use super::checkpoint::Checkpoint;
use super::folder;

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Findings {
    /// Records that are in order.
    pub records: u64,
    /// Files read.
    pub files: usize,
    /// Number of the first record; above 1 where older files were taken away.
    pub first: Option<u64>,
    /// Number of the last record in order.
    pub last: Option<u64>,
    /// Time of the last record in order, RFC 3339.
    pub last_at: Option<String>,
    /// Checkpoints that agree with the chain.
    pub checkpoints: usize,
    /// Keys that signed them, hexadecimal.
    pub keys: Vec<String>,
    /// The first thing that is wrong, and where.
    pub broken: Option<String>,
}

/// Reads the audit in `directory`, with its own checkpoints and `others` that were kept elsewhere. With `key`, only checkpoints that
/// this key signed count, and another one is a finding.
pub fn verify(directory: &Path, others: &[Checkpoint], key: Option<&str>) -> io::Result<Findings> {
    let mut findings = Findings::default();
    let mut hashes = BTreeMap::new();
    let own = match File::open(directory.join(folder::CHECKPOINTS)) {
        Ok(file) => match read_checkpoints(file)? {
            Ok(checkpoints) => checkpoints,
            Err(why) => {
                findings.broken = Some(format!("{}: {why}", folder::CHECKPOINTS));
                return Ok(findings);
            }
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error),
    };
    let checkpoints: Vec<&Checkpoint> = own.iter().chain(others).collect();
    let wanted: std::collections::BTreeSet<u64> =
        checkpoints.iter().map(|checkpoint| checkpoint.seq).collect();
    let mut tip = None;
    for path in folder::files(directory)? {
        findings.files += 1;
        let mut reader = BufReader::new(File::open(&path)?);
        let mut number = 0;
        while let Some((line, whole)) = folder::read_line(&mut reader)? {
            number += 1;
            let checked = if whole {
                chain::check(&mut tip, &line)
            } else {
                Err(Broken::Form("it is cut off in the middle".to_owned()))
            };
            match checked {
                Ok(at) => {
                    let seq = tip.as_ref().map_or(0, |tip| tip.seq);
                    findings.records += 1;
                    findings.first.get_or_insert(seq);
                    (findings.last, findings.last_at) = (Some(seq), Some(at));
                    if let Some(tip) = tip.as_ref().filter(|tip| wanted.contains(&tip.seq)) {
                        hashes.insert(tip.seq, tip.hash.clone());
                    }
                }
                Err(broken) => {
                    let name =
                        path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
                    findings.broken = Some(format!("{name}, line {number}: {broken}"));
                    return Ok(findings);
                }
            }
        }
    }
    findings.broken = compare(&checkpoints, key, &hashes, &mut findings);
    Ok(findings)
}

/// The first checkpoint that the chain does not bear out.
fn compare(
    checkpoints: &[&Checkpoint],
    key: Option<&str>,
    hashes: &BTreeMap<u64, String>,
    findings: &mut Findings,
) -> Option<String> {
    for checkpoint in checkpoints {
        let Checkpoint { seq, at, hash, .. } = checkpoint;
        if !checkpoint.is_signed() {
            return Some(format!("the checkpoint of record {seq} ({at}) is not signed by its key"));
        }
        if key.is_some_and(|key| key != checkpoint.key) {
            return Some(format!(
                "the checkpoint of record {seq} ({at}) is signed by another key, {}",
                checkpoint.key
            ));
        }
        match hashes.get(seq) {
            Some(found) if found == hash => findings.checkpoints += 1,
            Some(_) => {
                return Some(format!(
                    "record {seq} is not the one that the checkpoint of {at} saw: the chain was rewritten"
                ));
            }
            // Older files may have been taken away on purpose.
            None if findings.first.is_some_and(|first| *seq < first) => {}
            None => {
                let end = findings.last.unwrap_or_default();
                return Some(format!(
                    "the end was cut off: a checkpoint of {at} saw record {seq}, the last one here is {end}"
                ));
            }
        }
        if !findings.keys.contains(&checkpoint.key) {
            findings.keys.push(checkpoint.key.clone());
        }
    }
    None
}

/// The checkpoints of a file, one JSON object per line; a line of a log may have anything before the object, or be an object that has it. The inner error
/// names the line that is none.
pub fn read_checkpoints(file: impl io::Read) -> io::Result<Result<Vec<Checkpoint>, String>> {
    let mut reader = BufReader::new(file);
    let (mut found, mut number) = (Vec::new(), 0);
    while let Some((line, whole)) = folder::read_line(&mut reader)? {
        number += 1;
        let text = String::from_utf8_lossy(&line);
        if text.trim().is_empty() {
            continue;
        }
        match checkpoint_of(&text) {
            Some(checkpoint) => found.push(checkpoint),
            // A crash left it unfinished.
            None if !whole && reader.fill_buf()?.is_empty() => {}
            None => return Ok(Err(format!("line {number} is not a checkpoint"))),
        }
    }
    Ok(Ok(found))
}

/// A line of the log where that is JSON: the checkpoint is one of its fields, as text.
#[derive(Deserialize)]
struct Logged {
    fields: Fields,
}

#[derive(Deserialize)]
struct Fields {
    checkpoint: String,
}

fn checkpoint_of(line: &str) -> Option<Checkpoint> {
    if let Some(at) = line.find("{\"node\":") {
        return first(&line[at..]);
    }
    let logged: Logged = first(&line[line.find('{')?..])?;
    first(&logged.fields.checkpoint)
}

/// What a text begins with.
fn first<T: DeserializeOwned>(text: &str) -> Option<T> {
    serde_json::Deserializer::from_str(text).into_iter().next()?.ok()
}
