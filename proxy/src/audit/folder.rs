//! The files of an audit: `audit-<number of the first record>.jsonl`, the newest one is written to.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::chain::{self, Tip};
use super::verify::read_checkpoints;

/// Longest record, bytes; a longer one is shortened.
pub const LONGEST: u64 = 1 << 20;
const PREFIX: &str = "audit-";
const SUFFIX: &str = ".jsonl";
/// Name of the checkpoints' file.
pub const CHECKPOINTS: &str = "checkpoints.jsonl";

/// The files of records in `directory`, oldest first.
pub fn files(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if let Some(first) = first_of(&path) {
            found.push((first, path));
        }
    }
    found.sort();
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

/// The number of a file's first record, as its name says.
fn first_of(path: &Path) -> Option<u64> {
    let name = path.file_name()?.to_str()?;
    name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?.parse().ok()
}

/// A line of up to [`LONGEST`] bytes without its newline; none at the end. The flag: it has a newline.
pub fn read_line(reader: &mut impl BufRead) -> io::Result<Option<(Vec<u8>, bool)>> {
    let mut line = Vec::new();
    reader.take(LONGEST + 1).read_until(b'\n', &mut line)?;
    if line.is_empty() {
        return Ok(None);
    }
    let whole = line.last() == Some(&b'\n');
    if whole {
        line.pop();
    }
    Ok(Some((line, whole)))
}

/// The newest file, open at its end.
pub struct Open {
    directory: PathBuf,
    file: File,
    /// Bytes of it that are whole records.
    length: u64,
    /// The last record.
    pub tip: Tip,
    /// Bytes of an unfinished record that were cut off.
    pub cut: u64,
}

impl Open {
    /// Opens the newest file of `directory`, or makes the first. A record that a crash left unfinished is cut off; one that is
    /// whole and wrong is an error: nothing is written behind it. `known` is the last record as its writer knows it, none at its start: files
    /// may have been taken away since.
    pub fn newest(directory: &Path, known: Option<Tip>) -> io::Result<Self> {
        std::fs::create_dir_all(directory)?;
        let Some(path) = files(directory)?.pop() else {
            let tip = known.unwrap_or_default();
            let file = create(directory, tip.seq + 1)?;
            return Ok(Self { directory: directory.to_owned(), file, length: 0, tip, cut: 0 });
        };
        let file = OpenOptions::new().read(true).write(true).open(&path)?;
        let mut reader = BufReader::new(&file);
        let (mut tip, mut length, mut line_number) = (None, 0, 0);
        while let Some((line, whole)) = read_line(&mut reader)? {
            line_number += 1;
            if !whole {
                // Longer than any record that a crash could have left: what is behind it may be whole.
                if line.len() as u64 > LONGEST {
                    let what = format!("{}, line {line_number}: it is longer than a record", path.display());
                    return Err(io::Error::new(io::ErrorKind::InvalidData, what));
                }
                break;
            }
            chain::check(&mut tip, &line).map_err(|broken| {
                let what = format!("{}, line {line_number}: {broken}", path.display());
                io::Error::new(io::ErrorKind::InvalidData, what)
            })?;
            length += line.len() as u64 + 1;
        }
        let cut = file.metadata()?.len() - length;
        let tip = match tip {
            Some(tip) => tip,
            // A new file whose first record never came.
            None => tip_before(directory, &path, known)?,
        };
        let mut open = Self { directory: directory.to_owned(), file, length, tip, cut };
        open.cut_off()?;
        Ok(open)
    }

    /// Appends whole lines and returns when they are on disk. On an error nothing of them counts.
    pub fn append(&mut self, lines: &str, tip: Tip) -> io::Result<()> {
        let written = self.write(lines);
        if let Err(error) = written {
            // What got through of it must not stand before the next record.
            let _ = self.cut_off();
            return Err(error);
        }
        self.length += lines.len() as u64;
        self.tip = tip;
        Ok(())
    }

    fn write(&mut self, lines: &str) -> io::Result<()> {
        // A disk that is full, of which tests have none.
        #[cfg(test)]
        if self.directory.join("full").exists() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        // One that hangs.
        #[cfg(test)]
        while self.directory.join("hangs").exists() {
            std::thread::yield_now();
        }
        self.file.write_all(lines.as_bytes())?;
        self.file.sync_data()
    }

    /// Takes away what is behind the last whole record.
    pub fn cut_off(&mut self) -> io::Result<()> {
        self.file.set_len(self.length)?;
        self.file.seek(SeekFrom::Start(self.length))?;
        Ok(())
    }

    /// Bytes of the newest file.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Begins a new file.
    pub fn rotate(&mut self) -> io::Result<()> {
        self.file = create(&self.directory, self.tip.seq + 1)?;
        self.length = 0;
        Ok(())
    }

    /// Adds a line to the checkpoints, in the place of one that a crash left unfinished.
    pub fn add_checkpoint(&self, line: &str) -> io::Result<()> {
        let path = self.directory.join(CHECKPOINTS);
        let mut options = OpenOptions::new();
        let mut file = options.read(true).write(true).create(true).truncate(false).mode(0o640).open(path)?;
        let length = whole_lines(&file)?;
        file.set_len(length)?;
        file.seek(SeekFrom::Start(length))?;
        let written = file.write_all(line.as_bytes()).and_then(|()| file.sync_data());
        if written.is_err() {
            // What got through of it must not stand before the next one.
            let _ = file.set_len(length);
        }
        written
    }
}

/// Bytes up to the last newline.
fn whole_lines(file: &File) -> io::Result<u64> {
    let (mut block, mut end) = ([0; 4096], file.metadata()?.len());
    while end > 0 {
        let begin = end.saturating_sub(block.len() as u64);
        let read = &mut block[..(end - begin) as usize];
        file.read_exact_at(read, begin)?;
        if let Some(at) = read.iter().rposition(|byte| *byte == b'\n') {
            return Ok(begin + at as u64 + 1);
        }
        end = begin;
    }
    Ok(0)
}

fn create(directory: &Path, first: u64) -> io::Result<File> {
    let path = directory.join(format!("{PREFIX}{first:020}{SUFFIX}"));
    let file =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o640).open(path)?;
    // The name must survive a power cut as its records do.
    File::open(directory)?.sync_all()?;
    Ok(file)
}

/// The record that the newest file, which has none, goes on from.
fn tip_before(directory: &Path, newest: &Path, known: Option<Tip>) -> io::Result<Tip> {
    let before = first_of(newest).unwrap_or_default().saturating_sub(1);
    if before == 0 {
        return Ok(Tip::default());
    }
    let is_it = |tip: &Tip| tip.seq == before;
    if let Some(tip) = known.filter(is_it) {
        return Ok(tip);
    }
    let file = files(directory)?.into_iter().rev().find(|path| path != newest);
    let last = file.map(|path| last_of(&path)).transpose()?.flatten();
    if let Some(tip) = last.filter(is_it) {
        return Ok(tip);
    }
    checkpointed(directory, before)?.ok_or_else(|| {
        let what = format!(
            "{}: record {before}, which it goes on from, is in no file here: put the file before it back",
            newest.display()
        );
        io::Error::new(io::ErrorKind::InvalidData, what)
    })
}

/// The last record of a file.
fn last_of(path: &Path) -> io::Result<Option<Tip>> {
    let mut reader = BufReader::new(File::open(path)?);
    let mut tip = None;
    while let Some((line, _)) = read_line(&mut reader)? {
        chain::check(&mut tip, &line).map_err(|broken| {
            io::Error::new(io::ErrorKind::InvalidData, format!("{}: {broken}", path.display()))
        })?;
    }
    Ok(tip)
}

/// A record of which there is a checkpoint.
fn checkpointed(directory: &Path, seq: u64) -> io::Result<Option<Tip>> {
    let file = match File::open(directory.join(CHECKPOINTS)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let checkpoints = read_checkpoints(file)?.unwrap_or_default();
    let found = checkpoints.into_iter().rfind(|checkpoint| checkpoint.seq == seq && checkpoint.is_signed());
    Ok(found.map(|checkpoint| Tip { seq, hash: checkpoint.hash }))
}
