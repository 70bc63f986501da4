//! Signed statements of where the chain was: kept elsewhere, they show that a tail was cut off.
//!
//! A checkpoint is a line of JSON with an Ed25519 signature (RFC 8032) over its other fields, one per line. It goes into
//! `checkpoints.jsonl` beside the records and into the log; number and the first 48 bits of the hash are metrics, so that any
//! Prometheus that scrapes the node keeps them too.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use migration::units::Timestamp;
use ring::rand::SystemRandom;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use serde::{Deserialize, Serialize};

use super::chain::{Tip, hex, moment};

/// What is signed begins with this, so that the signature means nothing else.
const CONTEXT: &str = "godwit-audit-checkpoint-1";

/// Where the chain was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// The node that wrote the audit.
    pub node: String,
    /// Number of the last record.
    pub seq: u64,
    /// Its hash.
    pub hash: String,
    /// When, RFC 3339.
    pub at: String,
    /// The public key, hexadecimal.
    pub key: String,
    /// The signature, hexadecimal.
    pub signature: String,
}

/// The key that signs.
pub struct Signer {
    pair: Ed25519KeyPair,
    node: String,
}

impl Signer {
    /// Reads the key of `path`, or makes it, readable by its owner only. The error names the path.
    pub fn open(path: &Path, node: &str) -> io::Result<Self> {
        let pair = Self::key(path)
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
        Ok(Self { pair, node: node.to_owned() })
    }

    fn key(path: &Path) -> io::Result<Ed25519KeyPair> {
        let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
        let document = match std::fs::read(path) {
            // An empty one, from a disk that was full when it was made, has signed nothing.
            Ok(bytes) if !bytes.is_empty() => bytes,
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {
                let made = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new())
                    .map_err(|_| invalid("the system gives no randomness for a key"))?;
                write_key(path, made.as_ref())?;
                made.as_ref().to_vec()
            }
        };
        Ed25519KeyPair::from_pkcs8(&document).map_err(|error| invalid(&error.to_string()))
    }

    /// States that the chain is at `tip`.
    pub fn sign(&self, tip: &Tip, at: Timestamp) -> Checkpoint {
        let mut checkpoint = Checkpoint {
            node: self.node.clone(),
            seq: tip.seq,
            hash: tip.hash.clone(),
            at: moment(at),
            key: hex(self.pair.public_key().as_ref()),
            signature: String::new(),
        };
        checkpoint.signature = hex(self.pair.sign(checkpoint.signed().as_bytes()).as_ref());
        checkpoint
    }
}

impl Checkpoint {
    fn signed(&self) -> String {
        format!("{CONTEXT}\n{}\n{}\n{}\n{}", self.node, self.seq, self.hash, self.at)
    }

    /// Whether its signature is that of its key.
    pub fn is_signed(&self) -> bool {
        let (Some(key), Some(signature)) = (unhex(&self.key), unhex(&self.signature)) else { return false };
        UnparsedPublicKey::new(&ED25519, key).verify(self.signed().as_bytes(), &signature).is_ok()
    }
}

/// It is there as a whole, or not at all.
fn write_key(path: &Path, key: &[u8]) -> io::Result<()> {
    let new = path.with_extension("key.new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(key)?;
    file.sync_all()?;
    std::fs::rename(&new, path)?;
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

/// Lower-case digits only: a signature has one spelling.
fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if !text.len().is_multiple_of(2) || !digits {
        return None;
    }
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok()).collect()
}
