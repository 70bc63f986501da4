//! A file without a name that is written once and read once, in blocks.
//!
//! ```text
//! 0       4      8
//! length  crc32  block …     (integers big-endian; the checksum covers the block's number and the block)
//! ```

use std::path::{Path, PathBuf};

use bytes::{Bytes, BytesMut};
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt};

use crate::error::Error;

/// Longest block.
pub(super) const BLOCK: usize = 256 << 10;

const HEADER: usize = 8;

/// Being written.
pub(super) struct Writer {
    file: File,
    directory: PathBuf,
    blocks: u64,
    bytes: u64,
}

impl Writer {
    /// A new file in `directory`, which is made if it is not there.
    pub(super) async fn create(directory: &Path) -> Result<Self, Error> {
        let place = directory.to_owned();
        let made = tokio::task::spawn_blocking(move || {
            std::fs::create_dir_all(&place)?;
            tempfile::tempfile_in(&place)
        });
        let file =
            made.await.map_err(std::io::Error::other).and_then(|file| file).map_err(failed(directory))?;
        Ok(Self::on(File::from_std(file), directory))
    }

    pub(super) fn on(file: File, directory: &Path) -> Self {
        Self { file, directory: directory.to_owned(), blocks: 0, bytes: 0 }
    }

    /// Appends a block of at most [`BLOCK`] bytes. A failure may show only at the next call.
    pub(super) async fn append(&mut self, block: &[u8]) -> Result<(), Error> {
        let mut header = [0; HEADER];
        header[..4].copy_from_slice(&(block.len() as u32).to_be_bytes());
        header[4..].copy_from_slice(&checksum(self.blocks, block).to_be_bytes());
        let written = async {
            self.file.write_all(&header).await?;
            self.file.write_all(block).await
        };
        written.await.map_err(failed(&self.directory))?;
        self.blocks += 1;
        self.bytes += (HEADER + block.len()) as u64;
        Ok(())
    }

    /// Bytes on the disk.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Back to the start, for reading.
    pub(super) async fn read(mut self) -> Result<Reader, Error> {
        let ready = async {
            self.file.flush().await?;
            self.file.rewind().await
        };
        ready.await.map_err(failed(&self.directory))?;
        Ok(Reader { file: self.file, directory: self.directory, blocks: self.blocks, next: 0 })
    }
}

/// Being read.
pub(super) struct Reader {
    file: File,
    directory: PathBuf,
    blocks: u64,
    next: u64,
}

impl Reader {
    /// The next block; `None` at the end. Not cancel-safe.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        if self.next == self.blocks {
            return Ok(None);
        }
        let mut header = [0; HEADER];
        self.file.read_exact(&mut header).await.map_err(failed(&self.directory))?;
        let [a, b, c, d, rest @ ..] = header;
        let (length, crc) = (u32::from_be_bytes([a, b, c, d]) as usize, u32::from_be_bytes(rest));
        if length > BLOCK {
            return Err(self.damaged());
        }
        let mut block = BytesMut::zeroed(length);
        self.file.read_exact(&mut block).await.map_err(failed(&self.directory))?;
        if checksum(self.next, &block) != crc {
            return Err(self.damaged());
        }
        self.next += 1;
        Ok(Some(block.freeze()))
    }

    fn damaged(&self) -> Error {
        let why = format!("block {} of a spill file is not what was written: check the disk", self.next);
        failed(&self.directory)(std::io::Error::new(std::io::ErrorKind::InvalidData, why))
    }
}

fn checksum(number: u64, block: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&number.to_be_bytes());
    hasher.update(block);
    hasher.finalize()
}

/// The source still has all of it: whatever happens to a spill file, the stream begins anew and loses nothing.
fn failed(directory: &Path) -> impl FnOnce(std::io::Error) -> Error {
    Error::io(format!(
        "keep an open transaction in {} (it needs room for the changes of the transactions that are running)",
        directory.display()
    ))
}
